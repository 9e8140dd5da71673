"""Which transport a URL names: a package with ``source_of``, ``sink_of`` and ``places_of``, and a line here.

A package is imported when one of its URLs is used, since most need an extra.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct

from constellation_otel.errors import ConfigurationError
from constellation_otel.transports.url import SinkOptions, SourceOptions, without_details

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from opentelemetry.sdk.resources import Resource

    from constellation_otel.delivery import Sink, Source

__all__ = ["check_sink", "places_of", "refuse_loop", "sink_of", "source_of"]


class _Transport(Struct, frozen=True):
    """A package of this one.

    Attributes:
        package: Its name.
        schemes: What its URLs begin with.
        source: What the URLs of its source look like; ``None`` where it has none.
        sink: Those of its sink.
        has_default: Whether its scheme alone is a URL, too.
    """

    package: str
    schemes: tuple[str, ...]
    source: str | None
    sink: str | None
    has_default: bool = False


_TRANSPORTS: Final = (
    _Transport("websocket", ("ws", "wss"), "ws://host:port or wss://host:port (a Constellation Engine)", None),
    _Transport(
        "otlp",
        ("otlp", "otlps", "otlp+http", "otlp+https"),
        None,
        "otlp://host:4317 (gRPC), otlp+http://host:4318, otlps://…, otlp+https://…",
    ),
    _Transport("kafka", ("kafka",), "kafka://broker:9092/topic?group=name", "kafka://broker:9092/topic"),
    _Transport("sql", ("postgresql", "sqlite"), "postgresql://…, sqlite:///file", "postgresql://…, sqlite:///file"),
    _Transport(
        "jsonl", ("jsonl",), "jsonl:file (jsonl:- is standard input)", "jsonl:file (jsonl:- is standard output)"
    ),
    _Transport("journal", ("journal",), "journal:file.db[?sink=name]", "journal:file.db[?max_bytes=number]"),
    _Transport(
        "dagster",
        ("dagster",),
        "dagster:folder[?job=name&since=time] (dagster: is $DAGSTER_HOME)",
        None,
        has_default=True,
    ),
)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")


def source_of(
    url: str,
    *,
    follow: bool,
    execution_id: UUID | None = None,
    api_key: str | None = None,
    max_reconnect_wait: float | None = None,
    dry_run: bool = False,
) -> Source:
    """Makes the source that a URL names.

    Args:
        url: ``ws://host:port`` or ``wss://host:port``, ``kafka://broker:9092/topic?group=name``,
            ``postgresql://…``, ``sqlite:///file``, ``jsonl:file`` (``jsonl:-`` is standard
            input), ``journal:file.db``, read as the sink that ``?sink=name`` says, or
            ``dagster:folder``, the folder of a Dagster instance.
        follow: Whether to go on with what comes, or to end with what there is.
        execution_id: The only execution to be read, where the source can choose; others give all.
        api_key: For the engine.
        max_reconnect_wait: Seconds between two tries to connect to the engine, at most; what
            :class:`~constellation_otel.transports.websocket.WebSocketSource` has where it is ``None``.
        dry_run: Whether it is only looked at: a journal may be another process's, and a topic that is
            followed is so without its consumer group.

    Raises:
        ConfigurationError: The URL cannot be used.
        MissingExtraError: What it needs is not installed.
        JournalError: The journal's file cannot be used, or another process has it.
        UnavailableError: The journal's file cannot be used now: its disk is full, or it is busy.
    """
    options = SourceOptions(
        follow=follow,
        execution_id=execution_id,
        api_key=api_key,
        max_reconnect_wait=max_reconnect_wait,
        only_looks=dry_run,
    )
    source: Source = _package_of(url, "source").source_of(url, options)
    return source


def sink_of(url: str, *, resource: Resource) -> Sink[Any]:
    """Makes the sink that a URL names.

    Args:
        url: ``otlp://host:4317`` (gRPC) or ``otlp+http://host:4318``, with TLS ``otlps://…`` or
            ``otlp+https://…``, ``kafka://broker:9092/topic``, ``postgresql://…``,
            ``sqlite:///file``, ``jsonl:file`` (``jsonl:-`` is standard output), or
            ``journal:file.db``, which holds as much as ``?max_bytes=number`` says. With ``?details=records``
            Kafka, a table or a file gets records of modules that did not run, too.
        resource: What sends the spans, for an OTLP endpoint.

    Raises:
        ConfigurationError: The URL cannot be used.
        MissingExtraError: What it needs is not installed.
        JournalError: The journal's file cannot be used, or another process has it.
        UnavailableError: The journal's file cannot be used now: its disk is full, or it is busy.
    """
    package = _package_of(url, "sink")
    url, takes_details = without_details(url)
    sink: Sink[Any] = package.sink_of(url, SinkOptions(resource, takes_details))
    return sink


def check_sink(url: str, *, resource: Resource) -> None:
    """Refuses a URL that :func:`sink_of` would refuse, without opening, making or connecting anything.

    Raises:
        ConfigurationError: The URL cannot be used.
        MissingExtraError: What it needs is not installed.
    """
    package = _package_of(url, "sink")
    url, _ = without_details(url)
    if hasattr(package, "check_sink"):
        package.check_sink(url)
    else:
        # it does nothing before it is sent something
        package.sink_of(url, SinkOptions(resource=resource)).close()


def places_of(url: str) -> set[tuple[object, ...]]:
    """What two URLs of the same file, table or topic have in common, however they are written.

    Nothing is opened or connected: two names of one host are two hosts here.

    Raises:
        ConfigurationError: The URL cannot be used.
        MissingExtraError: What it needs is not installed.
    """
    transport = _transport_of(url)
    if transport is None or transport.source is None or transport.sink is None:
        return {(url,)}
    places: set[tuple[object, ...]] = _imported(transport).places_of(without_details(url)[0])
    return places


def refuse_loop(source_url: str, sink_urls: Sequence[str]) -> None:
    """Refuses a sink that is also the source: a bridge would read what it writes, until the disk is full.

    Raises:
        ConfigurationError: One is.
    """
    if source_url == "jsonl:-":
        return
    source = places_of(source_url)
    for number, sink_url in enumerate(sink_urls, 1):
        if source & places_of(sink_url):
            message = f"sink {number} is also the source: the bridge would loop; name another one"
            raise ConfigurationError(message)


def _transport_of(url: str) -> _Transport | None:
    scheme = url.partition(":")[0]
    return next((transport for transport in _TRANSPORTS if scheme in transport.schemes), None)


def _imported(transport: _Transport) -> Any:
    return import_module(f"constellation_otel.transports.{transport.package}")


def _package_of(url: str, what: Literal["source", "sink"]) -> Any:
    """The package that a URL names, if it has what is wanted.

    Raises:
        ConfigurationError: It names none; the message says which there are.
    """
    forms = ", ".join(form for transport in _TRANSPORTS if (form := getattr(transport, what)) is not None)
    scheme, colon, rest = url.partition(":")
    transport = _transport_of(url) if colon else None
    if colon and not rest and not (transport is not None and transport.has_default):
        message = f"a URL that ends after its scheme is not a {what}; use one of: {forms}"
        raise ConfigurationError(message)
    if transport is None or getattr(transport, what) is None:
        # what stands before a colon may be a user or a key as well, and the rest may have a password
        is_scheme = colon and _SCHEME.fullmatch(scheme) and ("@" not in rest or rest.startswith("//"))
        begins = f"a URL that begins with {scheme!r}" if is_scheme else "a URL without a scheme"
        message = f"{begins} is not a {what}; use one of: {forms}"
        raise ConfigurationError(message)
    return _imported(transport)
