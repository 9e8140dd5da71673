"""Traces as text that is the same in every run."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from opentelemetry.trace import StatusCode

from constellation_otel.traces import OUTCOME, tree_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from constellation_otel.traces import Span, Tree

__all__ = ["span_tree"]


def span_tree(spans: Iterable[Span]) -> str:
    """Draws traces as text that is the same in every run.

    A line has a span's name, its kind, its ``constellation.outcome`` if it has one, and
    its status if that is set; children are indented by two spaces. There are no ids and
    no times, and siblings are ordered by the text of their subtrees, since modules that
    run in parallel start in any order. Traces are separated by an empty line.

    * Spans whose parent is not among ``spans`` stand under ``… (parent missing)``,
      siblings under one.
    * The same line twice for one span id is marked ``x2``: it was delivered twice.
    * Spans that are each other's ancestors stand under ``… (parents form a cycle)``.

    Control characters and lone surrogates are escaped.

    Args:
        spans: The spans of any number of traces, in any order.

    Returns:
        The text, without a newline at its end; empty if there are no spans.
    """
    traces: defaultdict[int, list[Span]] = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    return "\n\n".join(sorted("\n".join(_trace_lines(trace)) for trace in traces.values()))


_MISSING: Final = "… (parent missing)"
_CYCLE: Final = "… (parents form a cycle)"


def _trace_lines(trace: list[Span]) -> list[str]:
    # sorted by line, so that a cycle is cut at the same span in every run
    tree = tree_of(sorted(trace, key=_line))
    blocks = _blocks(tree.roots, tree)
    blocks += [[_MISSING, *_indented(_blocks(siblings, tree))] for siblings in tree.orphans.values()]
    blocks += [[_CYCLE, *_indented(_blocks([top], tree))] for top in tree.cycles]
    return [line for block in sorted(blocks) for line in block]


def _blocks(span_ids: list[int], tree: Tree) -> list[list[str]]:
    """The lines of each span's subtree."""
    drawn: dict[int, list[str]] = {}
    # children first
    for span_id in reversed(list(tree.walk(span_ids))):
        subtrees = [drawn.pop(child) for child in tree.children.get(span_id, ())]
        drawn[span_id] = [*_node_lines(tree.spans[span_id]), *_indented(subtrees)]
    return [drawn[span_id] for span_id in span_ids]


def _indented(blocks: list[list[str]]) -> list[str]:
    return [f"  {line}" for block in sorted(blocks) for line in block]


def _node_lines(copies: list[Span]) -> list[str]:
    counts = Counter(map(_line, copies))
    return [line if count == 1 else f"{line} x{count}" for line, count in sorted(counts.items())]


def _line(span: Span) -> str:
    parts = [_escaped(span.name), f"({span.kind.name.lower()})"]
    outcome = span.attributes.get(OUTCOME)
    if outcome is not None:
        parts.append(str(outcome))
    if span.status is not StatusCode.UNSET:
        parts.append(span.status.name)
    if span.status_description is not None:
        parts.append(json.dumps(_escaped(span.status_description, keep="\n\t"), ensure_ascii=False))
    return " ".join(parts)


def _escaped(text: str, keep: str = "") -> str:
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text
    )
