"""The assembler's laws: order, repetition and what else happens at the same time cannot matter."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation_otel.events import ModuleCompleted, ModuleFailed, ModuleStarted
from constellation_otel.traces import Assembler, Span
from stories import (
    SECOND,
    anonymous_story,
    assemble,
    bytes_of,
    in_order,
    stories,
)
from support import UNWATCHED

if TYPE_CHECKING:
    import random

    from constellation_otel.events import Event


@given(st.permutations(range(7)), st.lists(st.integers(0, 6), max_size=5))
def test_with_positions_order_cannot_matter_without_module_ids(order: list[int], repeated: list[int]) -> None:
    """Nor can repetition."""
    story = anonymous_story()
    expected = assemble(story)
    assembler = Assembler(settle=1)
    for position in [*order, *repeated]:
        assembler.add(story[position], 0, position)
    assert assembler.advance(SECOND) == expected


@UNWATCHED
@settings(max_examples=400)
@given(stories(), st.randoms(use_true_random=False))
def test_neither_order_nor_repetition_changes_a_byte_of_spans(story: list[Event], rng: random.Random) -> None:
    """As long as all comes before the execution settles."""
    expected = bytes_of(assemble(story, settle=2))
    shuffled = story + rng.choices(story, k=rng.randrange(6)) if story else story
    rng.shuffle(shuffled)
    assembler = Assembler(settle=2)
    spans = []
    now = 0
    for event in shuffled:
        spans += assembler.add(event, now)
        now += rng.randrange(2 * SECOND // (len(shuffled) + 1))
        spans += assembler.advance(now)
    assert spans == []
    spans += assembler.advance(now + 3 * SECOND)
    assert bytes_of(spans + assembler.finish()) == expected
    assert assembler.counters.late == 0


@UNWATCHED
@settings(max_examples=400)
@given(stories())
def test_a_parent_holds_its_children_whatever_was_told(story: list[Event]) -> None:
    """But for those that are each other's ancestors; every span has a length, and its parent is there."""
    spans = {span.span_id: span for span in assemble(story, settle=1)}
    above = {span_id: spans.get(span.parent_span_id or 0) for span_id, span in spans.items()}
    for span in spans.values():
        assert span.start_ns < span.end_ns
        ancestors, parent = [span.span_id], above[span.span_id]
        while parent is not None and parent.span_id not in ancestors:
            ancestors.append(parent.span_id)
            parent = above[parent.span_id]
        if parent is None and not span.is_execution:
            parent = spans[span.parent_span_id or 0]
            assert parent.start_ns <= span.start_ns < span.end_ns <= parent.end_ns


@given(stories())
def test_settling_does_not_change_the_spans_of_an_ordered_source(story: list[Event]) -> None:
    events = in_order(story)
    at_once, settled = assemble(events), assemble(events, settle=1)
    assert bytes_of(at_once) == bytes_of(settled)


@given(stories(), st.integers(0, 2**30), st.randoms(use_true_random=False))
def test_no_events_are_lost_from_the_counts_however_time_passes(
    story: list[Event], room: int, rng: random.Random
) -> None:
    """Identified and anonymous modules mixed, spans emitted between events, evictions: never a span twice."""
    mixed = [
        msgspec.structs.replace(event, module_id=None)
        if isinstance(event, ModuleStarted | ModuleCompleted | ModuleFailed) and rng.random() < 0.3
        else event
        for event in story
    ]
    assembler = Assembler(settle=rng.choice([0, 1]), max_open=1 + room % 5, idle_timeout=3, max_age=5)
    spans: list[Span] = []
    now = 0
    for event in mixed:
        spans += assembler.add(event, now)
        now += rng.randrange(2 * SECOND)
        spans += assembler.advance(now)
    spans += assembler.finish()
    counters = assembler.counters
    assert counters.events == len(story)
    assert (counters.spans, counters.executions) == (len(spans), bool(story))
    assert len({(span.trace_id, span.span_id) for span in spans}) == len(spans)
    assert (assembler.held, assembler.open_modules, assembler.deadline_ns) == (0, 0, None)


@given(st.lists(stories(), min_size=2, max_size=3), st.randoms(use_true_random=False))
def test_executions_do_not_disturb_each_other(several: list[list[Event]], rng: random.Random) -> None:
    ids = [UUID(int=number + 1) for number in range(len(several))]
    moved = [
        [msgspec.structs.replace(event, execution_id=execution_id) for event in story]
        for execution_id, story in zip(ids, several, strict=True)
    ]
    apart = [span for story in moved for span in assemble(story, settle=1)]
    mixed = [event for story in moved for event in story]
    rng.shuffle(mixed)
    assert bytes_of(assemble(mixed, settle=1)) == bytes_of(apart)
