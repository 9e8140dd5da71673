"""What the commands ``bridge``, ``replay``, ``show`` and ``schema`` do."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from constellation_otel._support.log import CleanFormatter, log
from constellation_otel._support.text import printable
from constellation_otel.cli.health import Health
from constellation_otel.cli.waterfall import render_waterfall
from constellation_otel.delivery import Bridge, BridgeReport, DeadLetters, DryRun, Record, Selection, sink_names
from constellation_otel.delivery.journal import Journal, events_of
from constellation_otel.errors import ConfigurationError, MissingExtraError
from constellation_otel.otel import PrivateSignals
from constellation_otel.traces import Assembler, sampler_of_environment
from constellation_otel.transports import check_sink, places_of, sink_of, source_of
from constellation_otel.transports.otlp import OtlpSink, make_resource

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.logging import RichHandler
    from rich.progress_bar import ProgressBar
    from rich.text import Text
except ModuleNotFoundError as error:
    raise MissingExtraError("rich", "cli") from error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from opentelemetry.sdk.resources import Resource
    from rich.console import RenderableType

    from constellation_otel.delivery import Rejection, Sink
    from constellation_otel.events import Event
    from constellation_otel.traces import Span

__all__ = ["DELIVERED", "LOST", "NOT_DELIVERED", "run_bridge", "run_replay", "schema", "show"]

DELIVERED: Final = 0
"""The exit code where everything has been delivered."""
NOT_DELIVERED: Final = 3
"""The exit code where something is still to be delivered: run it again."""
LOST: Final = 4
"""The exit code where everything else has been delivered, and some was dropped, refused, or could not be read."""

_LOGGER: Final = logging.getLogger(__name__)
_REFRESHES_PER_SECOND: Final = 4
_SIGNALS_TIMEOUT: Final = 5.0


def run_bridge(
    source_url: str,
    sink_urls: Sequence[str],
    *,
    journal: str | None = None,
    service_name: str | None = None,
    settle: float | None = None,
    idle_timeout: float = 3_600.0,
    max_age: float = 86_400.0,
    max_held: int = 65_536,
    execution_id: UUID | None = None,
    api_key: str | None = None,
    max_reconnect_wait: float | None = None,
    dead_letters: str | None = None,
    health: str | None = None,
    close_timeout: float = 30.0,
) -> int:
    """Follows a source until SIGTERM or SIGINT, delivers what is held, and says what it did.

    Args:
        source_url: Where events come from.
        sink_urls: Where they go.
        journal: A file that keeps events until every sink has them.
        service_name: The traces' ``service.name``.
        settle: As :class:`~constellation_otel.Bridge` has it, and so have the next three.
        idle_timeout: Seconds.
        max_age: Seconds.
        max_held: Events.
        execution_id: The only execution to be followed.
        api_key: For the engine.
        max_reconnect_wait: Seconds between two tries to connect to the engine, at most.
        dead_letters: A file for what cannot be read or is refused.
        health: ``host:port`` to serve the health on.
        close_timeout: Seconds for delivering what is held, at the end.

    Returns:
        The exit code.

    Raises:
        ConstellationOtelError: It cannot begin, or can never go on.
    """
    if journal is not None and source_url.startswith("kafka:"):
        message = (
            "a journal is of no use between Kafka and its sinks: the topic keeps what is not acknowledged, and a"
            " partition that another bridge takes over takes its executions along; leave --journal out"
        )
        raise ConfigurationError(message)
    if execution_id is not None and source_url.startswith("kafka:"):
        message = (
            "one execution cannot be followed in a Kafka consumer group, whose offsets are committed for all of them;"
            " leave --execution out, or use replay"
        )
        raise ConfigurationError(message)
    _refuse_circle(source_url, sink_urls)
    resource = make_resource(service_name)
    console = Console(stderr=True, highlight=False)
    with ExitStack() as stack:
        stack.enter_context(_logging(console))
        source = source_of(
            source_url,
            follow=True,
            execution_id=execution_id,
            api_key=api_key,
            max_reconnect_wait=max_reconnect_wait,
        )
        if execution_id is not None:
            source = Selection(source, execution_id=execution_id)
        sinks = [sink_of(url, resource=resource) for url in sink_urls]
        kept = None if journal is None else Journal(journal, sinks=sink_names(sinks))
        letters = None if dead_letters is None else DeadLetters(dead_letters)
        telemetry = _telemetry_of(sinks, resource)
        bridge = Bridge(
            source,
            sinks,
            journal=kept,
            settle=settle,
            idle_timeout=idle_timeout,
            max_age=max_age,
            max_held=max_held,
            # what is piped in can wait
            on_full="wait" if source_url == "jsonl:-" else None,
            telemetry=telemetry,
            dead_letters=letters,
            close_timeout=close_timeout,
        )
        log(_LOGGER, logging.INFO, "from %s to %s", source.name, ", ".join(sink_names(sinks)))
        if health is not None:
            served = stack.enter_context(Health(health, bridge))
            log(_LOGGER, logging.INFO, "health is served on %s", served.url)
        if telemetry is not None:
            telemetry.watch(bridge)
        with _stopping(bridge):
            try:
                report = _run(bridge, console)
            finally:
                if telemetry is not None:
                    telemetry.close(_SIGNALS_TIMEOUT)
        if console.is_terminal:
            _say(report, "bridged", console)
        else:
            log(_LOGGER, logging.INFO, "%d events bridged", report.events, report=msgspec.to_builtins(report))
        return _exit_code(report)


def run_replay(
    source_url: str,
    sink_urls: Sequence[str],
    *,
    service_name: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    execution_id: UUID | None = None,
    abandon_open: bool = False,
    dry_run: bool = False,
    dead_letters: str | None = None,
    settle: float | None = None,
) -> int:
    """Reads a source to its end, delivers everything, and says what it did.

    Args:
        source_url: Where events come from.
        sink_urls: Where they go; looked at in a dry run, too, and not used.
        service_name: The traces' ``service.name``.
        since: Executions that started earlier are left out; without a zone, local time.
        until: Executions that started then or later are left out.
        execution_id: The only execution to be replayed.
        abandon_open: Whether executions without an end are delivered, as abandoned.
        dry_run: Whether nothing is delivered, and only counted.
        dead_letters: A file for what cannot be read or is refused.
        settle: As :class:`~constellation_otel.Bridge` has it.

    Returns:
        The exit code.

    Raises:
        ConstellationOtelError: It cannot begin, or can never go on.
    """
    since_ns, until_ns = _ns_of(since), _ns_of(until)
    if since_ns is not None and until_ns is not None and since_ns >= until_ns:
        message = f"no execution can have started from {since} on and before {until}; give a later --until"
        raise ConfigurationError(message)
    _refuse_circle(source_url, sink_urls)
    resource = make_resource(service_name)
    for url in sink_urls if dry_run else ():
        check_sink(url, resource=resource)
    select = DryRun if dry_run else Selection
    source = select(
        source_of(source_url, follow=False, execution_id=execution_id, dry_run=dry_run),
        since_ns=since_ns,
        until_ns=until_ns,
        execution_id=execution_id,
    )
    sinks: list[Sink[Any]] = [_Nowhere()] if dry_run else [sink_of(url, resource=resource) for url in sink_urls]
    bridge = Bridge(
        source,
        sinks,
        settle=settle,
        is_replay=True,
        on_full="wait",
        abandon_open=abandon_open,
        dead_letters=None if dead_letters is None or dry_run else DeadLetters(dead_letters),
    )
    console = Console(stderr=True, highlight=False)
    with _logging(console), _stopping(bridge):
        report = _run(bridge, console)
    # standard output may be a sink
    result = console if "jsonl:-" in sink_urls else Console(highlight=False)
    _say(report, "would be replayed" if dry_run else "replayed", result, with_sinks=not dry_run)
    # somebody may have stopped it before
    return _exit_code(report) if source.has_ended else NOT_DELIVERED


def show(execution_id: UUID, source_url: str, console: Console) -> bool:
    """Draws the trace of an execution from what a source has of it.

    Args:
        execution_id: The execution.
        source_url: Where its events are.
        console: Where it is drawn.

    Returns:
        Whether there was any event of it.
    """
    assembler = Assembler(settle=1.0)
    spans: list[Span] = []
    for position, event in enumerate(_events_of(execution_id, source_url)):
        spans += assembler.add(event, 0, position)
    spans += assembler.finish()
    if spans:
        console.print(render_waterfall(spans))
    return bool(spans)


def schema(url: str) -> str:
    """The DDL of the audit table, for the database that a URL is about.

    Raises:
        ConfigurationError: It is about none.
    """
    from constellation_otel.transports.sql import schema_ddl  # noqa: PLC0415 - needs an extra

    table = parse_qs(urlsplit(url).query).get("table", ["execution_audit"])[-1]
    match url.partition(":")[0]:
        case "postgresql":
            return schema_ddl("postgresql", table)
        case "sqlite":
            return schema_ddl("sqlite", table)
        case scheme:
            message = f"there is no schema for {scheme!r}; give postgresql: or sqlite:"
            raise ConfigurationError(message)


def _events_of(execution_id: UUID, source_url: str) -> Iterator[Event]:
    scheme, _, rest = source_url.partition(":")
    if scheme == "journal":
        # without taking it from the process that has it
        yield from events_of(rest, execution_id)
        return
    source = DryRun(source_of(source_url, follow=False, execution_id=execution_id), execution_id=execution_id)
    try:
        while not source.has_ended:
            yield from (item.event for item in source.read(_READ_TIMEOUT) if isinstance(item, Record))
    finally:
        source.close()


_READ_TIMEOUT: Final = 10.0


def _refuse_circle(source_url: str, sink_urls: Sequence[str]) -> None:
    """A bridge that feeds itself would fill the disk."""
    if source_url == "jsonl:-":
        return
    source = places_of(source_url)
    for number, sink_url in enumerate(sink_urls, 1):
        if source & places_of(sink_url):
            message = f"sink {number} is the source itself, which would be fed with what it gives; name another one"
            raise ConfigurationError(message)


def _ns_of(when: datetime | None) -> int | None:
    if when is None:
        return None
    since_epoch = when.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since_epoch.days * 86_400 + since_epoch.seconds) * 1_000_000 + since_epoch.microseconds) * 1_000


def _telemetry_of(sinks: Sequence[Sink[Any]], resource: Resource) -> PrivateSignals | None:
    """Metrics and failure logs go where the traces go: to the first OTLP endpoint."""
    for sink in sinks:
        if isinstance(sink, OtlpSink):
            # what a bridge refuses is refused before there are metrics, which would be sent at the exit
            sampler_of_environment()
            return PrivateSignals(resource, endpoint=sink.endpoint, protocol=sink.protocol)
    return None


class _Nowhere:
    """The sink of a dry run: takes spans, and keeps none."""

    name: Final = "nowhere"
    takes: Final = "spans"
    max_batch: Final = 512

    def send(self, items: Sequence[Span], timeout: float) -> Sequence[Rejection]:  # noqa: ARG002 - a sink's
        return ()

    def close(self) -> None:
        """Nothing is open."""


def _run(bridge: Bridge, console: Console) -> BridgeReport:
    """Runs a bridge until it ends or is asked to."""
    with _status_line(bridge, console):
        return bridge.run()


def _exit_code(report: BridgeReport) -> int:
    if not report.is_delivered and not report.lost:
        return NOT_DELIVERED
    is_whole = not (report.lost or report.dropped or report.rejected or report.unreadable or report.evicted)
    return DELIVERED if is_whole else LOST


def _say(report: BridgeReport, verb: str, console: Console, *, with_sinks: bool = True) -> None:
    for line in _summary(report, verb, with_sinks=with_sinks):
        console.print(printable(line), soft_wrap=True, markup=False, emoji=False)


@contextmanager
def _stopping(bridge: Bridge) -> Iterator[None]:
    """SIGTERM or SIGINT ends the bridge in order; the second one, whichever it is, ends the process at once."""
    before: dict[signal.Signals, Any] = {}

    def stop(_number: int, _frame: object) -> None:
        # no KeyboardInterrupt, which would first have everything ended in order
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        bridge.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _logging(console: Console) -> Iterator[None]:
    """On a terminal for people, otherwise a JSON object a line."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False)
        handler.setFormatter(CleanFormatter())
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonFormatter())
    # the libraries' warnings, too: an exporter's, say
    root, ours = logging.getLogger(), logging.getLogger("constellation_otel")
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        ours.setLevel(level)


class _JsonFormatter(CleanFormatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        report = getattr(record, "report", None)
        if report is not None:
            fields["report"] = report
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


@contextmanager
def _status_line(bridge: Bridge, console: Console) -> Iterator[None]:
    """A line that is kept up to date, where somebody may be looking."""
    if not console.is_terminal:
        yield
        return
    ended = threading.Event()

    def refresh(live: Live) -> None:
        while not ended.wait(1 / _REFRESHES_PER_SECOND):
            live.update(_status(bridge.report, bridge.troubles, bridge.fraction_read))

    with Live(console=console, auto_refresh=True, refresh_per_second=_REFRESHES_PER_SECOND, transient=True) as live:
        thread = threading.Thread(target=refresh, args=(live,), name="status-line", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _status(report: BridgeReport, troubles: dict[str, str], fraction_read: float | None) -> RenderableType:
    held = sum(lane.held for lane in report.sinks.values())
    sent = ", ".join(f"{name} {lane.sent}" for name, lane in report.sinks.items())
    line = f"{report.source}: {report.events} events, {report.open} open, sent: {sent}, held: {held}"
    text = Text(printable(line))
    for name, reason in troubles.items():
        text.append("\n")
        text.append(printable(f"{name}: {reason}"), style="bold red")
    return text if fraction_read is None else Group(ProgressBar(1.0, fraction_read), text)


def _summary(report: BridgeReport, verb: str, *, with_sinks: bool) -> Iterator[str]:
    yield (
        f"{report.events} events {verb} from {report.source}: {report.executions} executions, {report.spans} spans,"
        f" {report.open} still open, {report.abandoned} abandoned, {report.late} late, {report.duplicate} duplicate,"
        f" {report.unreadable} unreadable, {report.dropped} dropped"
    )
    for name, lane in report.sinks.items() if with_sinks else ():
        yield (
            f"  {name}: {lane.sent} sent, {lane.refused} refused, {lane.held} events held,"
            f" {lane.retried} batches sent again"
        )
    if report.incomplete_executions or report.incomplete_modules:
        yield (
            f"{report.incomplete_executions} executions and {report.incomplete_modules} modules are incomplete:"
            " their start or end never came"
        )
    if report.not_durable:
        yield f"{report.not_durable} events went to the sinks from memory, since the journal could not take them"
    if report.failed_acknowledgements:
        yield f"{report.failed_acknowledgements} acknowledgements failed: some records may be read and delivered again"
    if report.open:
        yield f"{report.open} executions have not ended, as far as is known: they are left for the next run"
    if report.lost:
        yield f"{report.lost} events are lost: they could not be delivered in time, and nobody reads them again"
    elif not report.is_delivered:
        yield "not everything was delivered; run it again: what is missing is still where it was"
