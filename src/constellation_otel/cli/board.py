"""How a source's activity looks: a board that fits a terminal, and a line for each execution that has ended."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rich.text import Text

from constellation_otel.cli.activity import WINDOW_S
from constellation_otel.cli.signs import ASCII, STYLES, UNICODE, Glyphs, duration_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

    from constellation_otel.cli.activity import Finished, Losses, Running, Snapshot

__all__ = ["Board", "line_of", "losses_of", "outcomes_of"]

_SECOND: Final = 1_000_000_000
_SILENT_NS: Final = 5 * _SECOND
"""How long an execution may be without an event before that is said."""
_MOST_MODULES: Final = 8
_LISTED: Final = 3
"""How many failures, and how many of the slowest, on a terminal that is high enough for them."""
_HIGH: Final = 32
_LINES_EACH: Final = 2
"""Of a running execution: itself, and its modules."""
_ALWAYS: Final = 2
"""Executions that are shown on the smallest of terminals."""
_GAP: Final = "  "
_WIDTH: Final = 14
"""Of the first column: a length of time, or a moment."""
_INDENT: Final = " " * (_WIDTH + 4)
_HEADING: Final = "bold"
_LOSS: Final = "yellow"


class Board:
    """A snapshot as a renderable of rich, no wider than the console and, with more than a few lines, no higher.

    Args:
        name: The source's name.
        snapshot: What is going on.
        trouble: Why the source gives nothing at the moment; ``None`` where it works.
    """

    def __init__(self, name: str, snapshot: Snapshot, trouble: str | None = None) -> None:
        self._name = name
        self._snapshot = snapshot
        self._trouble = trouble

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        glyphs = ASCII if options.ascii_only else UNICODE
        most = _LISTED if console.height >= _HIGH else _LISTED - 1
        above, below = [*self._above(glyphs)], [*self._below(most, glyphs)]
        room = max(_ALWAYS, (console.height - 1 - len(above) - len(below)) // _LINES_EACH)
        for line in (*above, *self._running(room, glyphs), *below):
            yield glyphs.cut(line, options.max_width)

    def _above(self, glyphs: Glyphs) -> Iterator[Text]:
        yield Text(glyphs.text(self._name), style=_HEADING)
        if self._trouble is not None:
            yield Text(glyphs.text(self._trouble), style="bold red")
        it = self._snapshot
        ended = outcomes_of(it.outcomes) or "nothing has ended"
        rates = f"{it.events_per_second:.1f} events/s, {it.finished_per_minute} executions/min"
        yield Text(f"{rates}; in {WINDOW_S // 60} min: {ended}")

    def _running(self, room: int, glyphs: Glyphs) -> Iterator[Text]:
        it = self._snapshot
        yield Text(f"RUNNING: {it.running_count}", style=_HEADING)
        shown = it.running[: room if it.running_count <= room else max(_ALWAYS, room - 1)]
        for running in shown:
            yield from _lines_of(running, glyphs)
        if it.running_count > len(shown):
            yield Text(f"{_GAP}{glyphs.ellipsis} and {it.running_count - len(shown)} more", style="dim")

    def _below(self, most: int, glyphs: Glyphs) -> Iterator[Text]:
        it = self._snapshot
        if it.failures:
            yield Text("LAST FAILURES (UTC)", style=_HEADING)
            for done in it.failures[:most]:
                yield from _failure(done, glyphs)
        if it.slowest:
            yield Text(f"SLOWEST IN {WINDOW_S // 60} MIN", style=_HEADING)
            yield from (_slow(done, glyphs) for done in it.slowest[:most])
        losses = losses_of(it.losses)
        yield Text("LOST" if losses else "LOST: nothing, as far as can be seen", style=_HEADING)
        yield from (Text(f"{_GAP}{glyphs.text(loss)}", style=_LOSS) for loss in losses)


def _lines_of(running: Running, glyphs: Glyphs) -> Iterator[Text]:
    """An execution that runs, and its modules."""
    elapsed = duration_text(running.elapsed_ns, glyphs.micro)
    silent = ""
    if running.silent_ns >= _SILENT_NS:
        silent = f"silent for {duration_text(running.silent_ns, glyphs.micro)}{_GAP}"
    yield Text(f"{_GAP}{elapsed:>{_WIDTH}}{_GAP}{running.execution_id}{_GAP}{glyphs.text(running.dag_name)}")
    modules = [
        f"{glyphs.text(module.name)} {duration_text(module.elapsed_ns, glyphs.micro)}"
        for module in running.modules[:_MOST_MODULES]
    ]
    more = len(running.modules) - len(modules)
    if more:
        modules.append(f"{glyphs.ellipsis} and {more} more")
    line = f"{running.done} done{_GAP}{', '.join(modules)}"
    yield Text.assemble(_INDENT, (silent, _LOSS), (line, "dim"))


def _failure(done: Finished, glyphs: Glyphs) -> Iterator[Text]:
    text = f"{_moment(done.end_ns):>{_WIDTH}}{_GAP}{done.execution_id}{_GAP}{glyphs.text(done.dag_name)}"
    yield Text.assemble((glyphs.failure, STYLES["failure"]), f" {text}")
    yield Text(f"{_INDENT}{glyphs.text(done.failure or '')}")


def _slow(done: Finished, glyphs: Glyphs) -> Text:
    text = f" {duration_text(done.duration_ns, glyphs.micro):>{_WIDTH}}{_GAP}{done.execution_id}{_GAP}"
    return Text.assemble((glyphs.mark(done.outcome), STYLES[done.outcome]), text, glyphs.text(done.dag_name))


def _moment(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns // _SECOND, UTC).strftime("%m-%d %H:%M:%S")


def line_of(done: Finished, glyphs: Glyphs) -> str:
    """An execution that has ended, in one line: its outcome, start (UTC), length, modules, id, DAG, what went wrong."""
    started = datetime.fromtimestamp(done.start_ns // _SECOND, UTC).strftime("%Y-%m-%d %H:%M:%S")
    cells = [
        f"{glyphs.mark(done.outcome)} {done.outcome:<9}",
        started,
        f"{duration_text(done.duration_ns, glyphs.micro):>12}",
        f"{done.modules:>4} modules",
        str(done.execution_id),
        glyphs.text(done.dag_name),
    ]
    if done.failure is not None:
        cells.append(glyphs.text(done.failure))
    if done.missing is not None:
        cells.append(f"(never came: {done.missing.replace(',', ', ')})")
    return _GAP.join(cells)


def outcomes_of(outcomes: dict[str, int]) -> str:
    """How many have ended, by outcome; empty where there are none."""
    return ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in STYLES if outcomes.get(outcome))


def losses_of(losses: Losses) -> Sequence[str]:
    """What was lost, a line each; none where nothing was, as far as can be seen."""
    said = {
        "connections lost, with what came meanwhile": losses.gaps,
        "events that found no room": losses.dropped,
        "restarts of the engine": losses.restarts,
        "unreadable records": losses.unreadable,
        "executions whose start never came": losses.executions,
        "modules whose start or end never came": losses.modules,
        "executions given up without an end": losses.abandoned,
    }
    lines = {what: f"{what}: {count}" for what, count in said.items() if count}
    if losses.unreadable_reason is not None:
        lines["unreadable records"] += f" (the last one: {losses.unreadable_reason})"
    return [*lines.values()]
