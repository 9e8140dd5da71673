"""What a URL means: which source, which sink. A secret in a URL is never printed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from constellation_otel._support.places import names_of_file
from constellation_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from uuid import UUID

    from opentelemetry.sdk.resources import Resource

    from constellation_otel.delivery import Sink, Source

__all__ = ["check_sink", "places_of", "sink_of", "source_of"]

_SOURCES: Final = (
    "ws://host:port or wss://host:port (a Constellation Engine), kafka://broker:9092/topic?group=name,"
    " postgresql://…, sqlite:///file, jsonl:file (jsonl:- is standard input), journal:file.db[?sink=name]"
)
_SINKS: Final = (
    "otlp://host:4317 (gRPC), otlp+http://host:4318, otlps://…, otlp+https://…, kafka://broker:9092/topic,"
    " postgresql://…, sqlite:///file, jsonl:file (jsonl:- is standard output), journal:file.db[?max_bytes=number]"
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
            input), or ``journal:file.db``, read as the sink that ``?sink=name`` says.
        follow: Whether to go on with what comes, or to end with what there is.
        execution_id: The only execution to be read, where the source can choose; others give all.
        api_key: For the engine.
        max_reconnect_wait: Seconds between two tries to connect to the engine, at most; what
            :class:`~constellation_otel.transports.websocket.websocket.WebSocketSource` has where it is ``None``.
        dry_run: Whether a journal is only looked at, and may be another process's.

    Raises:
        ConfigurationError: The URL cannot be used.
        MissingExtraError: What it needs is not installed.
        JournalError: The journal's file cannot be used, or another process has it.
        UnavailableError: Nor can it now: its disk is full, or it is busy.
    """
    scheme, rest = _split(url, _SOURCES, "source")
    match scheme:
        case "ws" | "wss" if follow:
            from constellation_otel.transports.websocket import WebSocketSource  # noqa: PLC0415 - needs an extra

            return WebSocketSource(
                url, api_key=api_key, execution_id=execution_id, max_reconnect_wait=max_reconnect_wait
            )
        case "ws" | "wss":
            message = "an engine's WebSocket has no past to be replayed; constellation-otel bridge follows it"
            raise ConfigurationError(message)
        case "kafka":
            from constellation_otel.transports.kafka import KafkaSource  # noqa: PLC0415 - needs an extra

            return KafkaSource.from_url(url, follow=follow)
        case "postgresql" | "sqlite":
            from constellation_otel.transports.sql import SqlSource  # noqa: PLC0415 - needs an extra

            return SqlSource(url, follow=follow, execution_id=execution_id)
        case "jsonl":
            from constellation_otel.transports.jsonl import JsonlSource  # noqa: PLC0415 - only where it is used

            return JsonlSource(rest, follow=follow)
        case "journal":
            from constellation_otel.delivery.journal import (  # noqa: PLC0415 - only where it is used
                DEFAULT_SINK,
                JournalSource,
            )

            path, sink = _journal(rest, "sink")
            return JournalSource(path, sink=sink or DEFAULT_SINK, follow=follow, only_looks=dry_run)
        case _:
            raise _unknown(url, _SOURCES, "source")


def sink_of(url: str, *, resource: Resource) -> Sink[Any]:
    """Makes the sink that a URL names.

    Args:
        url: ``otlp://host:4317`` (gRPC) or ``otlp+http://host:4318``, with TLS ``otlps://…`` or
            ``otlp+https://…``, ``kafka://broker:9092/topic``, ``postgresql://…``,
            ``sqlite:///file``, ``jsonl:file`` (``jsonl:-`` is standard output), or
            ``journal:file.db``, which holds as much as ``?max_bytes=number`` says.
        resource: What an OTLP endpoint is told that spans come from.

    Raises:
        ConfigurationError: The URL cannot be used.
        MissingExtraError: What it needs is not installed.
        JournalError: The journal's file cannot be used, or another process has it.
        UnavailableError: Nor can it now: its disk is full, or it is busy.
    """
    scheme, rest = _split(url, _SINKS, "sink")
    match scheme:
        case "otlp" | "otlps" | "otlp+http" | "otlp+https":
            from constellation_otel.transports.otlp import OtlpSink  # noqa: PLC0415 - only where it is used

            return OtlpSink.from_url(url, resource=resource)
        case "kafka":
            from constellation_otel.transports.kafka import KafkaSink  # noqa: PLC0415 - needs an extra

            return KafkaSink.from_url(url)
        case "postgresql" | "sqlite":
            from constellation_otel.transports.sql import SqlSink  # noqa: PLC0415 - needs an extra

            return SqlSink(url)
        case "jsonl":
            from constellation_otel.transports.jsonl import JsonlSink  # noqa: PLC0415 - only where it is used

            return JsonlSink(rest)
        case "journal":
            from constellation_otel.delivery.journal import JournalSink  # noqa: PLC0415 - only where it is used

            path, max_bytes = _journal_to_append(rest)
            return JournalSink(path) if max_bytes is None else JournalSink(path, max_bytes=max_bytes)
        case _:
            raise _unknown(url, _SINKS, "sink")


def check_sink(url: str, *, resource: Resource) -> None:
    """Refuses a URL that :func:`sink_of` would refuse, without opening, making or connecting anything.

    Raises:
        ConfigurationError: The URL cannot be used.
        MissingExtraError: What it needs is not installed.
    """
    scheme, rest = _split(url, _SINKS, "sink")
    if scheme != "journal":
        # none of these does anything before it is sent something
        sink_of(url, resource=resource).close()
        return
    _journal_to_append(rest)


def places_of(url: str) -> set[tuple[object, ...]]:
    """What a source and a sink have in common that are the same file, table or topic, however their URLs are written.

    Nothing is opened or connected: two names of one host are two hosts here.

    Raises:
        ConfigurationError: The URL cannot be used.
        MissingExtraError: What it needs is not installed.
    """
    scheme, _, rest = url.partition(":")
    match scheme:
        case "kafka":
            from constellation_otel.transports.kafka import places_of_topic  # noqa: PLC0415 - needs an extra

            return places_of_topic(url)
        case "postgresql" | "sqlite":
            from constellation_otel.transports.sql import places_of_table  # noqa: PLC0415 - needs an extra

            return places_of_table(url)
        case "jsonl" | "journal":
            path = rest.partition("?")[0] if scheme == "journal" else rest
            return {(scheme, name) for name in names_of_file(path)}
        case _:
            return {(url,)}


def _split(url: str, known: str, what: str) -> tuple[str, str]:
    scheme, colon, rest = url.partition(":")
    if not colon:
        raise _unknown(url, known, what)
    if not rest:
        message = f"a URL that ends after its scheme is no {what}; there are: {known}"
        raise ConfigurationError(message)
    return scheme, rest


def _unknown(url: str, known: str, what: str) -> ConfigurationError:
    scheme, colon, rest = url.partition(":")
    # what stands before a colon may be a user or a key as well, and the rest may have a password
    is_scheme = colon and _SCHEME.fullmatch(scheme) and ("@" not in rest or rest.startswith("//"))
    begins = f"a URL that begins with {scheme!r}" if is_scheme else "what has no scheme"
    return ConfigurationError(f"{begins} is no {what}; there are: {known}")


def _journal_to_append(rest: str) -> tuple[str, int | None]:
    """A journal's path, and the bytes that it may have where the URL says so."""
    from constellation_otel.delivery.journal import check_max_bytes  # noqa: PLC0415 - only where it is used

    path, max_bytes = _journal(rest, "max_bytes")
    if max_bytes is None:
        return path, None
    try:
        number = int(max_bytes)
        check_max_bytes(number)
    except ValueError as error:
        message = f"?max_bytes={max_bytes} cannot be used: {error}; give a number of bytes"
        raise ConfigurationError(message) from error
    return path, number


def _journal(rest: str, parameter: str) -> tuple[str, str | None]:
    """A journal's path, and the value of the one parameter that it may have."""
    path, _, query = rest.partition("?")
    options = parse_qsl(query, keep_blank_values=True)
    if not path or "\0" in path:
        message = f"a journal has to be in a file; give journal:file.db, or journal:file.db?{parameter}=…"
        raise ConfigurationError(message)
    if not query:
        return path, None
    if len(options) != 1 or options[0][0] != parameter or not options[0][1]:
        message = f"journal:{path} has something after the ? that means nothing; there is ?{parameter}=… alone here"
        raise ConfigurationError(message)
    return path, options[0][1]
