"""What a command shows on its console: log, status line, summary; and how signals stop it."""

from __future__ import annotations

import gc
import json
import logging
import signal
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from constellation_otel._support.log import CleanFormatter
from constellation_otel._support.text import printable
from constellation_otel.errors import MissingExtraError

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.logging import RichHandler
    from rich.progress_bar import ProgressBar
    from rich.text import Text
except ModuleNotFoundError as error:
    raise MissingExtraError("rich", "cli") from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from constellation_otel.delivery import Bridge, BridgeReport

__all__ = [
    "DELIVERED",
    "LOST",
    "NOT_DELIVERED",
    "Stoppable",
    "collecting_rarely",
    "exit_code",
    "log_handler",
    "make_console",
    "say",
    "status_line",
    "stopping",
]

DELIVERED: Final = 0
"""The exit code if everything was delivered."""
NOT_DELIVERED: Final = 3
"""The exit code if something is still to be delivered: run it again."""
LOST: Final = 4
"""The exit code if everything else was delivered, and something was dropped, refused, or unreadable."""

_REFRESHES_PER_SECOND: Final = 4
_NEW_OBJECTS: Final = 500_000


class Stoppable(Protocol):
    """What runs until it is stopped."""

    def stop(self) -> None:
        """Has it end; called from a signal handler."""


def make_console(*, stderr: bool = False) -> Console:
    """A console on standard output or standard error."""
    return Console(stderr=stderr, highlight=False)


@contextmanager
def log_handler(console: Console) -> Iterator[None]:
    """Shows log records on the console: formatted on a terminal, otherwise one JSON object per line."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False)
        handler.setFormatter(CleanFormatter())
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonFormatter())
    # on the root logger, for warnings of other libraries, such as exporters
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
def status_line(bridge: Bridge, console: Console) -> Iterator[None]:
    """Keeps a line up to date on a terminal; does nothing elsewhere."""
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
    held = sum(sink.held for sink in report.sinks.values())
    sent = ", ".join(f"{name} {sink.sending.sent}" for name, sink in report.sinks.items())
    line = f"{report.source}: {report.events} events, {report.open} open, sent: {sent}, held: {held}"
    text = Text(printable(line))
    for name, reason in troubles.items():
        text.append("\n")
        text.append(printable(f"{name}: {reason}"), style="bold red")
    return text if fraction_read is None else Group(ProgressBar(1.0, fraction_read), text)


def say(report: BridgeReport, verb: str, console: Console, *, with_sinks: bool = True) -> None:
    """Prints the summary of a run.

    Args:
        report: What the run did.
        verb: The word for that: bridged, replayed.
        console: The console to print on.
        with_sinks: Whether each sink has a line.
    """
    for line in _summary(report, verb, with_sinks=with_sinks):
        console.print(printable(line), soft_wrap=True, markup=False, emoji=False)


def _summary(report: BridgeReport, verb: str, *, with_sinks: bool) -> Iterator[str]:
    assembly = report.assembly
    yield (
        f"{report.events} events {verb} from {report.source}: {assembly.executions} executions, {assembly.spans} spans,"
        f" {report.open} still open, {assembly.abandoned} abandoned, {assembly.late} late,"
        f" {assembly.duplicate} duplicate, {report.unreadable} unreadable, {report.dropped} dropped"
    )
    for name, sink in report.sinks.items() if with_sinks else ():
        yield (
            f"  {name}: {sink.sending.sent} sent, {sink.sending.refused} refused, {sink.held} events held,"
            f" {sink.sending.retried} batches sent again"
        )
    if assembly.incomplete_executions or assembly.incomplete_modules:
        yield (
            f"{assembly.incomplete_executions} executions and {assembly.incomplete_modules} modules are incomplete:"
            " their start or end never arrived"
        )
    if report.journal is not None and report.journal.not_durable:
        count = report.journal.not_durable
        yield f"{count} events went to the sinks from memory, since the journal could not take them"
    if report.failed_acknowledgements:
        yield f"{report.failed_acknowledgements} acknowledgements failed: some records may be read and delivered again"
    if report.open:
        yield f"{report.open} executions have no end yet: they are left for the next run"
    if report.lost:
        yield f"{report.lost} events are lost: they were not delivered in time, and cannot be read again"
    elif not report.is_delivered:
        yield "not everything was delivered; run it again: what is missing can be read again"


def exit_code(report: BridgeReport) -> int:
    """``DELIVERED``, ``NOT_DELIVERED`` or ``LOST``."""
    if not report.is_delivered and not report.lost:
        return NOT_DELIVERED
    is_whole = not (report.lost or report.dropped or report.rejected or report.unreadable or report.evicted)
    return DELIVERED if is_whole else LOST


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Has Python look for garbage in cycles after 500,000 new objects, and not after some hundred.

    Events and spans are in no cycles, and those that wait are many: looking at them took a tenth of a replay.
    """
    before = gc.get_threshold()
    gc.set_threshold(_NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def stopping(running: Stoppable) -> Iterator[None]:
    """The first SIGTERM or SIGINT stops a run in order; the second one, of either, ends the process at once."""
    before: dict[signal.Signals, Any] = {}

    def stop(_number: int, _frame: object) -> None:
        # not KeyboardInterrupt, which would unwind every context first
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        running.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
