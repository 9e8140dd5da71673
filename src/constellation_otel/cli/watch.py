"""What ``constellation-otel watch`` does: follow a source until a signal, and show what runs."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from rich.live import Live

from constellation_otel._support.log import RateLimitedLog, log
from constellation_otel._support.text import printable
from constellation_otel.cli.activity import Activity
from constellation_otel.cli.board import Board, line_of, losses_of, outcomes_of
from constellation_otel.cli.console import collecting_rarely, log_handler, make_console, stopping
from constellation_otel.cli.signs import ASCII, UNICODE
from constellation_otel.delivery import Retry, batches_of
from constellation_otel.errors import ConfigurationError, UnavailableError
from constellation_otel.transports import source_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from constellation_otel.cli.activity import Finished
    from constellation_otel.delivery import Source, SourceItem

__all__ = ["run_watch"]

_LOGGER: Final = logging.getLogger(__name__)
_TURN_S: Final = 0.25
"""Seconds between two drawings, and until a signal is noticed at the latest."""


def run_watch(source_url: str, *, api_key: str | None) -> int:
    """Shows what runs until SIGTERM or SIGINT, or until the source ends.

    On a terminal that is a board, drawn a few times a second; elsewhere a line is printed for each
    execution that ends. Nothing is acknowledged to the source, and no consumer group is joined.

    Args:
        source_url: The source of events.
        api_key: The engine's API key.

    Returns:
        The exit code.

    Raises:
        ConstellationOtelError: It cannot start, or cannot continue.
    """
    if source_url.partition(":")[0] == "journal":
        message = "a journal has only what its sinks have yet to take; watch what its events come from"
        raise ConfigurationError(message)
    console = make_console()
    is_live = console.is_terminal and not console.is_dumb_terminal
    # what is logged comes above the board; elsewhere standard output has lines of executions only
    beside = console if is_live else make_console(stderr=True)
    with ExitStack() as stack:
        stack.enter_context(log_handler(beside))
        source = source_of(source_url, follow=True, api_key=api_key, dry_run=True)
        stack.callback(source.close)
        watch = _Watch(source)
        stack.enter_context(stopping(watch))
        stack.enter_context(collecting_rarely())
        if is_live:
            with Live(watch.board(console.height), console=console, auto_refresh=False) as live:
                watch.run(lambda _: live.update(watch.board(console.height), refresh=True))
        else:
            watch.run(partial(_print_lines, console))
        if beside.is_terminal:
            beside.print(printable(watch.summary), soft_wrap=True, markup=False, emoji=False)
        else:
            log(_LOGGER, logging.INFO, "%s", watch.summary)
    return 0


def _print_lines(console: Console, finished: Sequence[Finished]) -> None:
    glyphs = ASCII if console.options.ascii_only else UNICODE
    for done in finished:
        console.print(line_of(done, glyphs), soft_wrap=True, markup=False, emoji=False)


class _Watch:
    """Reads a source into a model, and has it shown."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._activity = Activity(settle=0.0 if source.is_ordered else 1.0)
        self._is_stopped = False
        self._error: str | None = None
        self._read_at = 0.0
        self._backoff = Retry().backoff(longest=10.0)
        self._log = RateLimitedLog()
        # a wall clock that is set back would have executions end before they start
        self._epoch_ns, self._begun = time.time_ns(), time.monotonic_ns()

    def stop(self) -> None:
        """Has :meth:`run` end; from a signal handler."""
        self._is_stopped = True

    def board(self, height: int) -> Board:
        """What is going on now, for a terminal of so many lines."""
        snapshot = self._activity.snapshot(self._now_ns(), height)
        return Board(self._source.name, snapshot, self._error or self._source.last_error)

    @property
    def summary(self) -> str:
        """What was seen, in one line."""
        it = self._activity.snapshot(self._now_ns(), 0)
        lost = "; ".join(losses_of(it.losses)) or "nothing, as far as can be seen"
        ended = f"{it.finished.total()} executions ended"
        if it.finished:
            ended += f" ({outcomes_of(it.finished)})"
        return f"{it.events} events watched from {self._source.name}: {ended}, {it.running_count} running; lost: {lost}"

    def run(self, show: Callable[[Sequence[Finished]], None]) -> None:
        """Reads until it is stopped or the source has ended.

        Args:
            show: Called a few times a second with what has ended since.
        """
        finished: list[Finished] = []
        shown = 0.0
        while not (self._is_stopped or self._source.has_ended):
            finished += self._turn()
            if time.monotonic() - shown >= _TURN_S:
                show(finished)
                finished, shown = [], time.monotonic()
        show(finished + self._activity.finish(self._now_ns()))

    def _turn(self) -> list[Finished]:
        items = batches_of(self._read())
        self._activity.lose(gaps=self._source.gaps, dropped=self._source.dropped)
        now_ns = self._now_ns()
        return self._activity.add(items, now_ns) if items else self._activity.advance(now_ns)

    def _read(self) -> Sequence[SourceItem]:
        """Reads for a turn; a source that cannot be read now is left alone for longer and longer."""
        wait = self._read_at - time.monotonic()
        if wait > 0:
            time.sleep(min(wait, _TURN_S))
            return ()
        try:
            items = self._source.read(_TURN_S)
        except UnavailableError as error:
            pause = self._backoff.next(error.retry_after)
            self._error, self._read_at = str(error), time.monotonic() + pause
            message = "%s cannot be read now: %s; trying again in %.1f s"
            self._log.write(_LOGGER, logging.WARNING, "source", message, self._source.name, error, pause)
            return ()
        self._backoff.reset()
        self._error = None
        return items

    def _now_ns(self) -> int:
        return self._epoch_ns + time.monotonic_ns() - self._begun
