"""What a URL names, looked at with what a bridge would use: one function for each transport.

Nothing is written: an OTLP endpoint gets a request without spans, Kafka is asked for the
topic, a database for the table, and a file is only opened to be read.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from constellation_otel.cli.doctor.certificate import check_certificate, context_of
from constellation_otel.cli.doctor.clock import Asked, check_clock, seconds_of
from constellation_otel.cli.doctor.finding import Finding, of_error, ok, problem, warning
from constellation_otel.delivery import Batch, Unreadable, batches_of
from constellation_otel.errors import (
    ConfigurationError,
    ConstellationOtelError,
    MissingExtraError,
    RefusedError,
)
from constellation_otel.transports import check_sink, source_of
from constellation_otel.transports.journal import held_of
from constellation_otel.transports.otlp import OtlpSink, far_side_of, make_resource
from constellation_otel.transports.url import SinkOptions, SourceOptions, without_details

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from constellation_otel.cli.doctor.finding import Check

__all__ = ["TIMEOUT_S", "check_url", "is_otlp", "name_of", "otlp_sink"]

TIMEOUT_S: Final = 5.0
"""Seconds that each question may take."""
_START: Final = "start it, or correct the host and the port; look at firewalls and proxies between"
_ENGINES: Final = frozenset({"ws", "wss"})
_FILES: Final = frozenset({"jsonl", "journal", "dagster"})
_OTLP: Final = frozenset({"otlp", "otlps", "otlp+http", "otlp+https"})


def is_otlp(url: str) -> bool:
    """Whether a URL is of an OTLP endpoint."""
    return url.partition(":")[0] in _OTLP


def otlp_sink(url: str | None, service_name: str | None = None) -> OtlpSink:
    """The sink that a bridge would send to.

    Args:
        url: A sink's URL; where it is ``None``, the endpoint is the one that the variables name.
        service_name: What sends.

    Raises:
        ConfigurationError: The URL or a variable cannot be used.
    """
    resource = make_resource(service_name)
    return OtlpSink(resource=resource) if url is None else OtlpSink.from_url(url, SinkOptions(resource))


def name_of(url: str | None, number: int) -> str:
    """What a URL is called in findings; it has no secret.

    Args:
        url: As for :func:`check_url`.
        number: Of the URL among the others: its name, where it cannot be used.
    """
    if url is None:
        return "OTEL_EXPORTER_OTLP_ENDPOINT"
    scheme = url.partition(":")[0]
    try:
        if is_otlp(url):
            # refuses whatever may hold a secret
            otlp_sink(url).close()
        elif scheme not in _FILES:
            source = source_of(without_details(url)[0], follow=scheme in _ENGINES)
            source.close()
            return source.name
    except ConstellationOtelError:
        return f"URL {number}"
    return url


def check_url(url: str | None, api_key: str | None) -> Iterator[Finding]:
    """Looks at what a URL names.

    Args:
        url: A source's or a sink's; where it is ``None``, it is the OTLP endpoint that the variables name.
        api_key: The engine's.

    Yields:
        Findings; the last one is a problem if it cannot go on.
    """
    scheme = "otlp" if url is None else url.partition(":")[0]
    try:
        if url is None or is_otlp(url):
            yield from _check_otlp(url)
        elif scheme in _ENGINES:
            yield from _check_engine(url, api_key)
        elif scheme in _CHECKS:
            yield from _CHECKS[scheme](without_details(url)[0])
        else:
            yield from _refused(url)
    except MissingExtraError as error:
        yield of_error(error, "extras", "install it")
    except ConfigurationError as error:
        yield of_error(error, "url", "correct the URL")
    except ConstellationOtelError as error:
        # what Kafka's ends with is after a colon
        separator = ": " if scheme == "kafka" else "; "
        about, remedy = _ABOUT.get(scheme, ("connection", _START))
        yield of_error(error, about, remedy, separator=separator)


def _refused(url: str) -> Iterator[Finding]:
    """What the errors say of a URL that is neither a source's nor a sink's."""
    for use in (partial(source_of, url, follow=True), partial(check_sink, url, resource=make_resource())):
        try:
            use()
        except ConfigurationError as error:
            yield of_error(error, "url", "correct the URL")


def _check_otlp(url: str | None) -> Iterator[Finding]:
    sink = otlp_sink(url)
    began = time.time()
    try:
        date = sink.ask(TIMEOUT_S)
    except RefusedError as error:
        yield warning("connection", f"it answers, and refuses a request without spans: {error}", _TRY_A_SPAN)
        return
    finally:
        sink.close()
    asked = Asked.since(began)
    yield ok("connection", f"{sink.endpoint} took a request without spans, over {sink.protocol}")
    far_side = far_side_of(
        sink.endpoint,
        protocol=sink.protocol,
        headers=None,
        compression=None,
        timeout=None,
        certificate=None,
        client_key=None,
        client_certificate=None,
    )
    if far_side.headers:
        yield ok("credentials", f"it was sent the headers {', '.join(far_side.headers)}")
    # through a proxy, the connection is the proxy's
    if far_side.endpoint.scheme == "https" and far_side.proxy is None:
        context = context_of(
            far_side.certificate,
            far_side.client_certificate,
            far_side.client_key,
            speaks_http2=far_side.protocol == "grpc",
        )
        host, port = str(far_side.endpoint.hostname), far_side.endpoint.port or 443
        yield from check_certificate(host, port, context, TIMEOUT_S)
    yield from check_clock(seconds_of(date), asked)


_TRY_A_SPAN: Final = "give --jaeger as well, to send one span and find it again"


def _check_engine(url: str, api_key: str | None) -> Iterator[Finding]:
    from constellation_otel.transports.websocket import WebSocketSource, ask_engine  # noqa: PLC0415 - needs an extra

    source = WebSocketSource(url, api_key=api_key)
    began = time.time()
    date = ask_engine(url, api_key=api_key, timeout=TIMEOUT_S)
    asked = Asked.since(began)
    yield ok("engine", f"{source.name} took a WebSocket connection, which was closed again")
    if source.name.startswith("wss:"):
        parts = urlsplit(source.name)
        yield from check_certificate(str(parts.hostname), parts.port or 443, context_of(), TIMEOUT_S)
    yield from check_clock(seconds_of(date), asked)


def _check_kafka(url: str) -> Iterator[Finding]:
    from constellation_otel.transports.kafka import KafkaSource  # noqa: PLC0415 - needs an extra

    # a replay is in no group, and commits nothing
    source = KafkaSource.from_url(url, SourceOptions(follow=False))
    try:
        partitions, records = source.look(TIMEOUT_S)
    finally:
        source.close()
    yield ok("topic", f"{source.name} has {partitions} partitions, with {records} records in them")


def _check_table(url: str) -> Iterator[Finding]:
    from constellation_otel.transports.sql import look_at  # noqa: PLC0415 - needs an extra

    began = time.time()
    found = look_at(url, TIMEOUT_S)
    asked = Asked.since(began)
    if not found.exists:
        remedy = "leave that to the first event of a sink; for a source, name the table that there is with ?table="
        yield warning("table", f"{found.name} has no table {found.table}", remedy)
    elif found.lacking:
        lacking = f"the table {found.table} has the guide's columns, and lacks {', '.join(found.lacking)}"
        yield warning("columns", lacking, _ADD_COLUMNS)
    else:
        yield ok("columns", f"the table {found.table} has the guide's columns and all of this package's")
    if found.demands:
        demands = f"as a sink, the table has columns that no event fills: {', '.join(found.demands)}"
        yield warning("columns", demands, "give these columns defaults, or name another table with ?table=")
    yield from check_clock(found.clock, asked)


_ADD_COLUMNS: Final = (
    "add them as `constellation-otel schema` prints them; without, times are those of the insertion, and an event"
    " that is sent twice is there twice"
)


def _check_lines(url: str) -> Iterator[Finding]:
    path = url.partition(":")[2]
    # refuses what cannot be a path
    source_of(url, follow=False).close()
    if path == "-":
        yield ok("file", "standard input, or output, which is not looked at")
        return
    if Path(path).exists():
        yield from _check_beginning(url, "file")
    else:
        check_sink(url, resource=make_resource())
        yield from _check_folder(path, "a file", "what is read must be there, unless it is followed")


def _check_instance(url: str) -> Iterator[Finding]:
    return _check_beginning(url, "instance")


def _check_beginning(url: str, check: Check) -> Iterator[Finding]:
    """Reads the first items of a source, which is not changed by that."""
    source = source_of(url, follow=False)
    try:
        items = batches_of(source.read(TIMEOUT_S))
    finally:
        source.close()
    events = sum(len(item.events) for item in items if isinstance(item, Batch))
    unreadable = [item for item in items if isinstance(item, Unreadable)]
    found = f"{source.name} can be read: {events} events at its beginning"
    if unreadable:
        remedy = "take them out, or keep them with --dead-letters: a bridge goes on behind them"
        yield warning(check, f"{found}, and {len(unreadable)} records that are none: {unreadable[0].reason}", remedy)
    else:
        yield ok(check, found)


def _check_journal(url: str) -> Iterator[Finding]:
    path, _, query = url.partition(":")[2].partition("?")
    is_source = query.startswith("sink=")
    if not is_source:
        check_sink(url, resource=make_resource())
    if not Path(path).exists():
        yield from _check_folder(path, "a journal", "what is replayed must be there")
        return
    if is_source:
        # refuses the name of a sink that the file does not know
        source_of(url, follow=False, dry_run=True).close()
    held = ", ".join(f"{count} events for {name}" for name, count in sorted(held_of(path).items()))
    yield ok("journal", f"{path} can be read, and holds {held or 'nothing yet'}")


def _check_folder(path: str, what: str, otherwise: str) -> Iterator[Finding]:
    """Says whether a file can be made that is not there."""
    folder = Path(path).absolute().parent
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        yield warning("file", f"there is no {path} yet", f"as a sink, {what} is made there; {otherwise}")
    else:
        remedy = "make the folder, or let this user write to it; or correct the path"
        yield problem("file", f"there is no {path}, and none can be made in {folder}", remedy)


_CHECKS: Final[dict[str, Callable[[str], Iterator[Finding]]]] = {
    "kafka": _check_kafka,
    "postgresql": _check_table,
    "sqlite": _check_table,
    "jsonl": _check_lines,
    "journal": _check_journal,
    "dagster": _check_instance,
}
_ABOUT: Final[dict[str, tuple[Check, str]]] = {
    "ws": ("engine", _START),
    "wss": ("engine", _START),
    "sqlite": ("file", "let other programs end their transactions; look at the disk, and at this user's rights"),
    "jsonl": ("file", "name a file that is there and that this user may read"),
    "journal": ("journal", "look at the disk, at this user's rights, and at the process that has the journal"),
    "dagster": ("instance", "name the folder that is DAGSTER_HOME, and start its database"),
}
"""What is looked at, and what to do where it cannot be had, by scheme; others are a server's connection."""
