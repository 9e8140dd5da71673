"""What an execution's length is made of: the chain of modules that decided when it ended, and the gaps between them.

Pure functions on finished spans.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from msgspec import Struct

from constellation_otel.traces.span import ATTEMPT, LINK, UPSTREAM, Span
from constellation_otel.traces.tree import tree_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from constellation_otel.traces.tree import Tree

__all__ = ["CriticalPath", "Gap", "PathPart", "critical_path_of"]


class PathPart(Struct, frozen=True):
    """Time on the path that a module's span took.

    Attributes:
        span_id: The span; of spans one in the other, the innermost one.
        start_ns: Epoch nanoseconds.
        end_ns: Epoch nanoseconds, after ``start_ns``.
    """

    span_id: int
    start_ns: int
    end_ns: int


class Gap(Struct, frozen=True):
    """Time on the path in which no module ran that the next one waited for.

    Attributes:
        start_ns: Epoch nanoseconds.
        end_ns: Epoch nanoseconds, after ``start_ns``.
        before: The span id of the module that begins where the gap ends; ``None`` at the execution's end.
    """

    start_ns: int
    end_ns: int
    before: int | None


class CriticalPath(Struct, frozen=True):
    """What decided when an execution ended.

    Its parts and gaps do not overlap, and are together as long as the execution.

    Attributes:
        parts: In the order of time.
        gaps: In the order of time.
        span_ids: The spans of modules that are on it: those with a part, and those around them.
    """

    parts: tuple[PathPart, ...]
    gaps: tuple[Gap, ...]
    span_ids: frozenset[int]


def critical_path_of(spans: Iterable[Span]) -> CriticalPath | None:
    """Finds the critical path of an execution.

    It is followed backwards. Its last module is the one that ended last; before a module comes
    the one that it waited for, which is the last to end of

    - the modules whose outputs it takes, and the attempt before it, where the engine tells such edges;
    - all that had ended when it began, where the engine tells none.

    A module that consists of parts is gone through in the same way, and what is left of it is its own.

    Args:
        spans: The spans of one execution, in any order.

    Returns:
        The path; ``None`` where the execution's own span is not among them.
    """
    # of the same execution given twice, the earlier one
    tops = sorted((span for span in spans if span.is_execution), key=lambda span: (span.start_ns, span.span_id))
    return _Search(tree_of(spans), tops[0]).path() if tops else None


class _Search:
    """One execution's spans, and what each of them waited for."""

    def __init__(self, tree: Tree, top: Span) -> None:
        self._top = top.span_id
        self._children = tree.children
        self._starts = {span_id: copies[0].start_ns for span_id, copies in tree.spans.items()}
        # a clock may have been set back while the span was open
        self._ends = {span_id: max(copies[0].end_ns, copies[0].start_ns) for span_id, copies in tree.spans.items()}
        parents: dict[int, int] = {}
        depths = {self._top: 0}
        for span_id in tree.walk([self._top]):
            for child in tree.children.get(span_id, ()):
                parents[child] = span_id
                depths[child] = depths[span_id] + 1
        self._waits_for = _edges({span_id: tree.spans[span_id][0] for span_id in depths}, parents, depths)
        self._told = {parents[span_id] for span_id in self._waits_for}
        for span_id, before in _attempts({it: tree.spans[it][0] for it in parents}, parents).items():
            if parents[span_id] in self._told:
                self._waits_for[span_id] |= before

    def path(self) -> CriticalPath:
        """The execution's path."""
        parts: list[PathPart] = []
        gaps: list[Gap] = []
        on_path: set[int] = set()
        # a stack, since modules may be deeper in one another than Python's stack
        left = [(self._top, self._starts[self._top], self._ends[self._top])]
        while left:
            span_id, start, end = left.pop()
            on_path.add(span_id)
            before: int | None = None
            for child, begins, ends in self._chain(span_id, start, end):
                left.append((child, begins, ends))
                self._own(span_id, ends, end, before, parts, gaps)
                before, end = child, begins
            self._own(span_id, start, end, before, parts, gaps)
        parts.sort(key=lambda part: part.start_ns)
        gaps.sort(key=lambda gap: gap.start_ns)
        return CriticalPath(tuple(parts), tuple(gaps), frozenset(on_path - {self._top}))

    def _own(
        self, span_id: int, start: int, end: int, before: int | None, parts: list[PathPart], gaps: list[Gap]
    ) -> None:
        """Time of a span on the path in which nothing in it is: of the execution, a gap."""
        if start >= end:
            return
        if span_id == self._top:
            gaps.append(Gap(start, end, before))
        else:
            parts.append(PathPart(span_id, start, end))

    def _chain(self, parent: int, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The children of a span that are on the path, the last one first, each with its time there."""
        starts, ends = self._starts, self._ends

        def order(span_id: int) -> tuple[int, int, int]:
            # of several that end at the same time, the longest
            return min(ends[span_id], end), -starts[span_id], -span_id

        in_order = sorted((it for it in self._children.get(parent, ()) if ends[it] > start), key=order)
        at = end
        found = next((it for it in reversed(in_order) if starts[it] < end), None)
        while found is not None:
            begins = max(starts[found], start)
            yield found, begins, min(ends[found], at)
            if begins == start:
                return
            at = begins
            if parent in self._told:
                before = (it for it in self._waits_for.get(found, ()) if starts[it] < at and ends[it] > start)
                found = max(before, key=lambda it: (min(ends[it], at), order(it)), default=None)
            else:
                # what does not come before this one does not come before an earlier one either
                while in_order and (ends[in_order[-1]] > at or starts[in_order[-1]] >= at):
                    in_order.pop()
                found = in_order[-1] if in_order else None


def _edges(
    spans: Mapping[int, Span], parents: Mapping[int, int], depths: Mapping[int, int]
) -> defaultdict[int, set[int]]:
    """By span id, the siblings whose outputs it takes, or parts of it take: those links, lifted to one level."""
    waits_for: defaultdict[int, set[int]] = defaultdict(set)
    for span_id, span in spans.items():
        for link in span.links:
            if link.attributes.get(LINK) != UPSTREAM or link.span_id not in depths:
                continue
            taker, giver = span_id, link.span_id
            while depths[taker] > depths[giver]:
                taker = parents[taker]
            while depths[giver] > depths[taker]:
                giver = parents[giver]
            # one may be a part of the other
            while taker != giver and parents[taker] != parents[giver]:
                taker, giver = parents[taker], parents[giver]
            if taker != giver:
                waits_for[taker].add(giver)
    return waits_for


def _attempts(spans: Mapping[int, Span], parents: Mapping[int, int]) -> dict[int, set[int]]:
    """By the span id of an attempt, the one before it: the last that had ended, of several of that name."""
    attempts: defaultdict[tuple[int, str, object], list[Span]] = defaultdict(list)
    for span_id, span in spans.items():
        attempts[parents[span_id], span.name, span.attributes.get(ATTEMPT, 1)].append(span)
    before: dict[int, set[int]] = {}
    for span_id, span in spans.items():
        number = span.attributes.get(ATTEMPT)
        if isinstance(number, int):
            ended = _ended_by(span.start_ns, attempts.get((parents[span_id], span.name, number - 1), ()))
            before[span_id] = {it.span_id for it in ended}
    return before


def _ended_by(time_ns: int, spans: Sequence[Span]) -> Sequence[Span]:
    """The last of some spans that had ended at a time; none where none had."""
    ended = [span for span in spans if span.end_ns <= time_ns]
    return [max(ended, key=lambda span: (span.end_ns, span.span_id))] if ended else ()
