"""The critical path: which modules decided when an execution ended, and where none ran."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from opentelemetry.trace import SpanKind

from constellation_otel.traces import (
    ATTEMPT,
    LINK,
    UPSTREAM,
    CriticalPath,
    Gap,
    PathPart,
    Span,
    SpanLink,
    critical_path_of,
)
from support import UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Sequence

TOP = 1


def span(
    span_id: int,
    start_ns: int,
    end_ns: int,
    *,
    takes: Sequence[int] = (),
    parent: int | None = TOP,
    name: str = "",
    attempt: object = None,
) -> Span:
    """A module's span, or with the id 1 the execution's own."""
    links = tuple(SpanLink(1, target, {LINK: UPSTREAM}) for target in takes)
    return Span(
        trace_id=1,
        span_id=span_id,
        parent_span_id=None if span_id == TOP else parent,
        trace_state="",
        trace_flags=1,
        name=name or f"m{span_id}",
        kind=SpanKind.INTERNAL,
        start_ns=start_ns,
        end_ns=end_ns,
        attributes={} if attempt is None else {ATTEMPT: attempt},  # type: ignore[dict-item] # odd ones, too
        is_execution=span_id == TOP,
        links=links,
    )


def path_of(*spans: Span) -> CriticalPath:
    path = critical_path_of(spans)
    assert path is not None
    return path


def drawn(path: CriticalPath) -> str:
    """The path as a text: ``2:0-5`` is a part of span 2, ``-:5-6`` a gap."""
    pieces = [(part.start_ns, f"{part.span_id}:{part.start_ns}-{part.end_ns}") for part in path.parts]
    pieces += [(gap.start_ns, f"-:{gap.start_ns}-{gap.end_ns}") for gap in path.gaps]
    return " ".join(text for _, text in sorted(pieces))


def test_the_path_goes_by_what_a_module_takes() -> None:
    """And not by what merely ended last before it."""
    path = path_of(
        span(1, 0, 100),
        span(2, 5, 20),
        span(3, 20, 60, takes=[2]),
        span(4, 20, 70, takes=[2]),
        span(5, 72, 90, takes=[3]),
        span(6, 72, 80, takes=[4]),
    )
    assert path == CriticalPath(
        (PathPart(2, 5, 20), PathPart(3, 20, 60), PathPart(5, 72, 90)),
        (Gap(0, 5, 2), Gap(60, 72, 5), Gap(90, 100, None)),
        frozenset({2, 3, 5}),
    )


def test_of_several_that_are_taken_the_last_to_end_counts() -> None:
    spans = [span(1, 0, 50), span(2, 0, 20), span(3, 0, 30), span(4, 30, 50, takes=[2, 3])]
    assert drawn(path_of(*spans)) == "3:0-30 4:30-50"


def test_where_an_engine_tells_no_edges_the_path_goes_by_time() -> None:
    spans = [span(1, 0, 100), span(2, 0, 30), span(3, 0, 40), span(4, 45, 99), span(5, 41, 60), span(6, 10, 46)]
    assert drawn(path_of(*spans)) == "3:0-40 -:40-45 4:45-99 -:99-100"


def test_a_module_that_takes_nothing_waited_for_none() -> None:
    """Where edges are told: that another had ended is a coincidence."""
    spans = [span(1, 0, 30), span(2, 0, 10), span(3, 10, 20), span(4, 20, 30, takes=[3])]
    assert drawn(path_of(*spans)) == "-:0-10 3:10-20 4:20-30"


def test_an_attempt_waited_for_the_one_before_it() -> None:
    """Of several modules of its name, for the one that had ended last."""
    spans = [
        span(1, 0, 60),
        span(2, 0, 10),
        span(3, 10, 20, takes=[2], name="load"),
        span(4, 10, 22, takes=[2], name="load"),
        span(5, 10, 40, takes=[2], name="load"),
        span(6, 30, 60, takes=[2], name="load", attempt=2),
        span(7, 30, 35, takes=[2], name="odd", attempt="2"),
        span(8, 30, 35, takes=[2], name="other", attempt=2),
        span(9, 5, 35, takes=[2], name="load", attempt=2),
    ]
    assert drawn(path_of(*spans)) == "2:0-10 4:10-22 -:22-30 6:30-60"


def test_attempts_alone_are_no_edges() -> None:
    spans = [span(1, 0, 60), span(2, 0, 10, name="a"), span(3, 20, 30, name="b"), span(4, 30, 60, name="a", attempt=2)]
    assert drawn(path_of(*spans)) == "2:0-10 -:10-20 3:20-30 4:30-60"


def test_a_module_of_parts_is_gone_through() -> None:
    """What is left of it is its own; edges between parts of different modules are those modules'."""
    spans = [
        span(1, 0, 100),
        span(2, 0, 50),
        span(3, 5, 20, parent=2),
        span(4, 20, 48, parent=2, takes=[3]),
        span(5, 60, 100),
        span(6, 60, 90, parent=5, takes=[4]),
        span(7, 0, 59),
    ]
    path = path_of(*spans)
    assert drawn(path) == "2:0-5 3:5-20 4:20-48 2:48-50 -:50-60 6:60-90 5:90-100"
    assert path.span_ids == {2, 3, 4, 5, 6}


def test_a_link_to_ones_own_module_or_elsewhere_is_no_edge() -> None:
    module = span(3, 6, 10, takes=[1, 3, 9])
    module = structs.replace(module, links=(*module.links, SpanLink(1, 2, {LINK: "other"})))
    spans = [span(1, 0, 10), span(2, 0, 5), module, span(4, 7, 8, parent=3, takes=[3])]
    assert drawn(path_of(*spans)) == "2:0-5 -:5-6 3:6-7 4:7-8 3:8-10"


def test_a_path_stays_within_its_execution() -> None:
    """Though clocks differ: what sticks out is cut, and a module that began before what it takes has no time."""
    spans = [span(1, 10, 50), span(2, 0, 30), span(3, 20, 70, takes=[2]), span(4, 60, 80), span(5, 0, 5)]
    assert drawn(path_of(*spans)) == "2:10-20 3:20-50"
    spans = [span(1, 10, 50), span(2, 5, 50, takes=[3]), span(3, 5, 40, takes=[2])]
    assert drawn(path_of(*spans)) == "2:10-50"
    spans = [span(1, 10, 50), span(2, 30, 50, takes=[3]), span(3, 40, 45)]
    assert drawn(path_of(*spans)) == "-:10-30 2:30-50"


def test_an_execution_without_modules_is_one_gap() -> None:
    assert path_of(span(1, 0, 10)) == CriticalPath((), (Gap(0, 10, None),), frozenset())
    assert path_of(span(1, 10, 0)) == CriticalPath((), (), frozenset())


def test_without_the_executions_span_there_is_no_path() -> None:
    assert critical_path_of([span(2, 0, 10)]) is None
    assert critical_path_of([]) is None


@UNWATCHED
@pytest.mark.parametrize("takes", [True, False])
def test_many_modules_in_a_row_or_in_one_another_make_a_path(takes: bool) -> None:
    row = [span(number, number, number + 1, takes=[number - 1] if takes else []) for number in range(2, 5_002)]
    assert len(path_of(span(1, 0, 6_000), *row).parts) == 5_000
    deep = [span(number, number, 6_000, parent=number - 1) for number in range(2, 5_002)]
    assert len(path_of(span(1, 0, 6_000), *deep).parts) == 5_000


IDS = st.integers(1, 9)
MODULES = st.builds(
    span,
    st.integers(2, 9),
    st.integers(0, 20),
    st.integers(0, 20),
    takes=st.lists(IDS, max_size=3),
    parent=IDS,
    name=st.sampled_from("ab"),
    attempt=st.none() | st.integers(1, 3),
)


@given(st.integers(0, 20), st.integers(0, 20), st.lists(MODULES, max_size=8))
def test_parts_and_gaps_cover_the_execution_and_do_not_overlap(start: int, end: int, modules: list[Span]) -> None:
    """Whatever the spans say; and a part is a span's own time."""
    path = path_of(span(1, start, end), *modules)
    pieces = [(part.start_ns, part.end_ns) for part in path.parts]
    pieces = sorted([*pieces, *((gap.start_ns, gap.end_ns) for gap in path.gaps)])
    assert all(begins < ends for begins, ends in pieces)
    edges = [start, *(moment for piece in pieces for moment in piece), max(start, end)]
    assert edges[::2] == edges[1::2]
    by_id = {module.span_id: module for module in reversed(modules)}
    assert all(by_id[part.span_id].start_ns <= part.start_ns for part in path.parts)
    assert all(part.end_ns <= by_id[part.span_id].end_ns for part in path.parts)
    assert {part.span_id for part in path.parts} | {gap.before for gap in path.gaps} - {None} <= path.span_ids
    assert path.span_ids <= by_id.keys()


@given(st.lists(MODULES, max_size=8, unique_by=lambda module: module.span_id), st.randoms(use_true_random=False))
def test_the_order_of_the_spans_does_not_matter(modules: list[Span], random: object) -> None:
    spans = [span(1, 0, 20), *modules]
    path = path_of(*spans)
    random.shuffle(spans)  # type: ignore[attr-defined] # hypothesis' own type of it is not public
    assert path_of(*spans) == path
