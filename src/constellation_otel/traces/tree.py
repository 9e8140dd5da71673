"""A trace's spans as a tree, even if some were delivered twice, are missing, or are each other's ancestors."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, cast

from msgspec import Struct

from constellation_otel.traces.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Tree", "tree_of"]


class Tree(Struct, frozen=True):
    """The spans of one trace, by span id, in the order in which they were given.

    Attributes:
        spans: By id, what was delivered with this id: one span, or several.
        roots: Spans without a parent.
        orphans: By the id of a parent that is not among the spans, its children.
        cycles: From each cycle of ancestors, the span at which it is cut.
        children: By id, the children of a span that has some.
    """

    spans: dict[int, list[Span]]
    roots: list[int]
    orphans: dict[int, list[int]]
    cycles: list[int]
    children: dict[int, list[int]]

    def walk(self, span_ids: Iterable[int]) -> Iterator[int]:
        """Spans and all that is below them, parents before their children.

        Without recursion, since a trace may be deeper than Python's stack.
        """
        left = list(span_ids)[::-1]
        while left:
            span_id = left.pop()
            yield span_id
            left += self.children.get(span_id, [])[::-1]


def tree_of(spans: Iterable[Span]) -> Tree:
    """Lays out the spans of one trace as a tree, in which each span id occurs once.

    Of several spans with one id, the first says what the parent is. A cycle is cut at its
    first span.
    """
    by_id: dict[int, list[Span]] = {}
    for span in spans:
        by_id.setdefault(span.span_id, []).append(span)
    parents = {span_id: copies[0].parent_span_id for span_id, copies in by_id.items()}
    tree = Tree(by_id, [], {}, [], {})
    for span_id, parent in parents.items():
        if parent is None:
            tree.roots.append(span_id)
        else:
            (tree.children if parent in by_id else tree.orphans).setdefault(parent, []).append(span_id)
    reached = set(tree.walk(chain(tree.roots, *tree.orphans.values())))
    position = {span_id: number for number, span_id in enumerate(by_id)}
    for span_id in by_id:
        if span_id not in reached:
            cycle = _cycle_above(span_id, parents)
            top = min(cycle, key=position.__getitem__)
            tree.children[cycle[top]].remove(top)
            tree.cycles.append(top)
            reached.update(tree.walk([top]))
    return tree


def _cycle_above(span_id: int, parents: Mapping[int, int | None]) -> dict[int, int]:
    """The cycle that a span's ancestors end in: the parent of each of its spans."""
    cycle: dict[int, int] = {}
    for _ in range(2):  # the first way up enters the cycle, the second one starts in it
        cycle = {}
        while span_id not in cycle:
            # every span that is not below a root or an orphan has a parent
            cycle[span_id] = cast("int", parents[span_id])
            span_id = cycle[span_id]
    return cycle
