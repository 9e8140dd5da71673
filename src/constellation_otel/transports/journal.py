"""The journal as a source and a sink, and its URLs; the journal itself is in ``delivery.journal``."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from constellation_otel._support.places import names_of_file
from constellation_otel.delivery.journal import (
    DEFAULT_SINK,
    Journal,
    JournalSink,
    JournalSource,
    check_max_bytes,
    events_of,
    forget,
    held_of,
)
from constellation_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from constellation_otel.transports.url import SinkOptions, SourceOptions

__all__ = [
    "DEFAULT_SINK",
    "Journal",
    "JournalSink",
    "JournalSource",
    "check_sink",
    "events_of",
    "forget",
    "held_of",
    "places_of",
    "sink_of",
    "source_of",
]


def source_of(url: str, options: SourceOptions) -> JournalSource:
    """Makes a source from ``journal:file.db[?sink=name]``.

    Raises:
        ConfigurationError: The URL is of another form.
        JournalError: The file cannot be used, or another process has it.
        UnavailableError: The file cannot be used now: its disk is full, or it is busy.
    """
    path, sink = _path_and(url, "sink")
    return JournalSource(path, sink=sink or DEFAULT_SINK, follow=options.follow, only_looks=options.only_looks)


def sink_of(url: str, _options: SinkOptions) -> JournalSink:
    """Makes a sink from ``journal:file.db[?max_bytes=number]``; it raises as :func:`source_of` does."""
    path, max_bytes = _path_and_size(url)
    return JournalSink(path) if max_bytes is None else JournalSink(path, max_bytes=max_bytes)


def check_sink(url: str) -> None:
    """Refuses a URL that cannot be used, without opening or making a file.

    Raises:
        ConfigurationError: It cannot.
    """
    _path_and_size(url)


def places_of(url: str) -> set[tuple[object, ...]]:
    """The file, by each of its names."""
    path = url.partition(":")[2].partition("?")[0]
    return {("journal", name) for name in names_of_file(path)}


def _path_and_size(url: str) -> tuple[str, int | None]:
    path, max_bytes = _path_and(url, "max_bytes")
    if max_bytes is None:
        return path, None
    try:
        number = int(max_bytes)
        check_max_bytes(number)
    except ValueError as error:
        message = f"?max_bytes={max_bytes} cannot be used: {error}; give a number of bytes"
        raise ConfigurationError(message) from error
    return path, number


def _path_and(url: str, parameter: str) -> tuple[str, str | None]:
    """A journal's path, and the value of the one parameter that it may have."""
    path, _, query = url.partition(":")[2].partition("?")
    options = parse_qsl(query, keep_blank_values=True)
    if not path or "\0" in path:
        message = f"a journal has to be in a file; give journal:file.db, or journal:file.db?{parameter}=…"
        raise ConfigurationError(message)
    if not query:
        return path, None
    if len(options) != 1 or options[0][0] != parameter or not options[0][1]:
        message = f"journal:{path} has something unknown after the ?; it takes ?{parameter}=… alone here"
        raise ConfigurationError(message)
    return path, options[0][1]
