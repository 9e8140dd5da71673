"""A source's executions as a list: which there were, how they ended, and how long they took."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from heapq import heappush, heappushpop
from typing import TYPE_CHECKING, Final
from uuid import UUID

from msgspec import Struct
from rich.text import Text

from constellation_otel.cli.signs import ASCII, STYLES, UNICODE, duration_text, end_ns_of, outcome_of
from constellation_otel.traces import Assembler, Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console

    from constellation_otel.events import Event

__all__ = ["Listed", "Wanted", "list_executions", "print_listing"]

_HEADINGS: Final = ("OUTCOME", "STARTED (UTC)", "DURATION", "MODULES", "EXECUTION", "DAG")
_RIGHT: Final = {"DURATION", "MODULES"}
_GAP: Final = "  "
_MAX_OPEN: Final = 100_000
"""How many executions and modules are held until their source has ended."""


class Wanted(Struct, frozen=True):
    """Which executions are listed; ``None`` stands for any.

    Attributes:
        dag_name: The DAG's name, exactly.
        outcome: The outcome.
        slower_than_ns: Longer than this.
        since_ns: Epoch nanoseconds; those that started then or later.
    """

    dag_name: str | None = None
    outcome: str | None = None
    slower_than_ns: int | None = None
    since_ns: int | None = None

    def has(self, span: Span) -> bool:
        """Whether an execution is wanted, by its span."""
        return (
            (self.dag_name is None or span.name == self.dag_name)
            and (self.outcome is None or outcome_of(span) == self.outcome)
            and (self.slower_than_ns is None or end_ns_of(span) - span.start_ns > self.slower_than_ns)
            and (self.since_ns is None or span.start_ns >= self.since_ns)
        )


class Listed(Struct, frozen=True):
    """An execution of a list.

    Attributes:
        execution_id: Its id.
        span: Its span.
        modules: How many spans of modules it has.
    """

    execution_id: UUID
    span: Span
    modules: int


def list_executions(events: Iterable[Event], wanted: Wanted, limit: int) -> tuple[list[Listed], int]:
    """Finds the newest executions of a source.

    It holds what is listed, and 100,000 executions and modules: of a source that mixes more
    than these, those that were silent longest are taken as they are.

    Args:
        events: All events of the source.
        wanted: Which executions.
        limit: How many are listed at most, above zero.

    Returns:
        The list, newest first, and how many there were.
    """
    newest: list[tuple[int, int, Listed]] = []
    count = 0
    for spans in _emitted(events):
        modules = Counter(span.execution_id for span in spans if not span.is_execution)
        for span in spans:
            execution_id = span.execution_id
            if execution_id is None or not span.is_execution or not wanted.has(span):
                continue
            count += 1
            item = (span.start_ns, count, Listed(execution_id, span, modules[execution_id]))
            if len(newest) < limit:
                heappush(newest, item)
            else:
                heappushpop(newest, item)
    return [listed for _, _, listed in sorted(newest, reverse=True)], count


def _emitted(events: Iterable[Event]) -> Iterator[list[Span]]:
    """The spans of executions, each with all of its modules', in any order of the events."""
    assembler = Assembler(settle=1.0, max_open=_MAX_OPEN)
    for position, event in enumerate(events):
        spans = assembler.add(event, 0, position)
        if spans:
            yield spans
    yield assembler.finish()


def print_listing(listed: Sequence[Listed], console: Console) -> None:
    """Prints a list with headings, one line for each execution.

    On a terminal lines are cut at its width. Elsewhere they are whole, so that a script can
    read them: the DAG's name is the last column, since it may have blanks.
    """
    glyphs = ASCII if console.options.ascii_only else UNICODE
    rows = [
        (
            outcome_of(it.span),
            datetime.fromtimestamp(it.span.start_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            duration_text(end_ns_of(it.span) - it.span.start_ns, glyphs.micro),
            str(it.modules),
            str(it.execution_id),
            glyphs.text(it.span.name),
        )
        for it in listed
    ]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    for row in (_HEADINGS, *rows):
        cells = [
            f"{cell:>{width}}" if heading in _RIGHT else f"{cell:<{width}}"
            for cell, heading, width in zip(row, _HEADINGS, widths, strict=True)
        ]
        others = f"{_GAP}{_GAP.join(cells[1:]).rstrip()}"
        if row is _HEADINGS:
            line = Text(f"  {cells[0]}{others}", style="dim")
        else:
            line = Text.assemble((f"{glyphs.mark(row[0])} {cells[0]}", STYLES[row[0]]), others)
        console.print(glyphs.cut(line, console.width) if console.is_terminal else line, soft_wrap=True)
