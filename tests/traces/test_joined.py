"""An execution that another process has started: modules are told of here, and its own span is made there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from constellation_otel import ExecutionJoined, ModuleDescribed, ModuleDetails
from constellation_otel.events import (
    ExecutionCancelled,
    ExecutionCompleted,
    ModuleFailed,
    ModuleStarted,
)
from constellation_otel.traces import Assembler, Counters, Decision, Sampling, Span, SpanLink, decide
from constellation_otel.traces.ids import span_id_of, trace_id_of
from samplers import Opinionated, RaisingSampler
from stories import BOOM, E1, E2, EXECUTION, M1, M2, M3, MS, SECOND, STORY, T0, TRIM, UPPERCASE, WORD_COUNT, bytes_of

if TYPE_CHECKING:
    import random

    from opentelemetry.sdk.trace.sampling import Sampler

    from constellation_otel.events import Event

THEIRS = 0x0AF7651916CD43DD8448EB211C80319C
SAMPLED = f"00-{THEIRS:032x}-{span_id_of(E1):016x}-01"
JOINED = ExecutionJoined(E1, "my-pipeline", T0)
MODULES = STORY[1:-1]
PART: list[Event] = [JOINED, *MODULES]
"""What one of the processes tells of the story: the modules."""
SPANS = [TRIM, UPPERCASE, WORD_COUNT]


def taken(assembler: Assembler, events: list[Event], now_ns: int = 0) -> list[Span]:
    return [span for event in events for span in assembler.add(event, now_ns)]


def sampling_by(sampler: Sampler) -> Sampling:
    def decider(execution_id: Any, dag_name: str, context: Any, **known: Any) -> Decision:
        return decide(sampler, execution_id, dag_name, context, **known)

    return Sampling(decider)


def unknown(end_ns: int) -> Span:
    """The span of a module whose end never came."""
    attributes = {**TRIM.attributes, "constellation.outcome": "unknown", "constellation.missing": "end"}
    return replace(TRIM, end_ns=end_ns, attributes=attributes, duration_ns=None)


def test_modules_of_a_joined_execution_leave_with_their_ends() -> None:
    """Below the execution's span, of which none is made, nor is it counted anywhere."""
    assembler = Assembler()
    assert taken(assembler, PART) == SPANS
    assert (assembler.open_executions, assembler.open_modules, assembler.held) == (0, 0, 1)
    assert assembler.finish() == []
    assert assembler.counters == Counters(events=7, spans=3)
    assert assembler.held == 0


def test_without_joining_a_false_execution_is_made_at_the_end() -> None:
    """What joining is for: modules are held, and what is made has the id of the span that is made elsewhere."""
    assembler = Assembler()
    assert taken(assembler, MODULES) == []
    *_, false = assembler.finish()
    assert (false.span_id, false.attributes["constellation.outcome"]) == (EXECUTION.span_id, "abandoned")
    assert (assembler.counters.executions, assembler.counters.abandoned) == (1, 1)


@given(st.permutations(PART), st.lists(st.sampled_from(PART), max_size=5))
def test_neither_order_nor_repetition_changes_the_spans_of_one(order: list[Event], repeated: list[Event]) -> None:
    """Before they settle; when they do, only they leave."""
    assembler = Assembler(settle=2)
    assert taken(assembler, [*order, *repeated]) == []
    spans = assembler.advance(2 * SECOND)
    assert bytes_of(spans) == bytes_of(SPANS)
    assert assembler.finish() == []
    assert assembler.counters == Counters(events=7 + len(repeated), spans=3, duplicate=len(repeated))


@given(st.permutations([*STORY, JOINED, replace(JOINED, timestamp_ns=0, traceparent=SAMPLED)]))
def test_an_own_start_wins_over_a_join_in_any_order(order: list[Event]) -> None:
    """It is the process that starts it, so the execution's span is its to make."""
    assembler = Assembler(settle=2)
    assert taken(assembler, order) == []
    spans = assembler.advance(2 * SECOND) + assembler.finish()
    assert bytes_of(spans) == bytes_of([*SPANS, EXECUTION])
    assert assembler.counters == Counters(events=10, executions=1, spans=4, duplicate=2)


@given(st.permutations([JOINED, replace(JOINED, timestamp_ns=T0 + 1, traceparent=SAMPLED, dag_name="other")]))
def test_of_two_joins_the_earlier_one_counts(order: list[Event]) -> None:
    assembler = Assembler(settle=2)
    taken(assembler, [*order, *MODULES])
    assert assembler.advance(2 * SECOND) == SPANS


def test_modules_that_came_before_the_join_leave_with_it() -> None:
    assembler = Assembler()
    assert taken(assembler, [*MODULES, JOINED]) == SPANS
    assert assembler.finish() == []


def test_an_own_start_behind_modules_of_a_join_is_late() -> None:
    """They have the trace and the parent already; joining once more is a repetition."""
    assembler = Assembler()
    taken(assembler, PART)
    assert taken(assembler, [replace(JOINED, timestamp_ns=0, traceparent=SAMPLED)]) == []
    assert taken(assembler, [STORY[0]]) == []
    assert assembler.finish() == []
    assert assembler.counters == Counters(events=9, spans=3, late=1, duplicate=1)


@pytest.mark.parametrize("traceparent", [SAMPLED, SAMPLED[:-1] + "0"])
def test_the_traceparent_says_the_trace_and_the_flags(traceparent: str) -> None:
    """Whatever the sampler here would say, which is not asked."""
    sampler = Opinionated()
    for sampling in (None, sampling_by(sampler), sampling_by(RaisingSampler())):
        assembler = Assembler(sampling=sampling)
        flags = int(traceparent[-1])
        spans = taken(assembler, [replace(JOINED, traceparent=traceparent), *MODULES])
        assert spans == [replace(span, trace_id=THEIRS, trace_flags=flags) for span in SPANS]
    assert sampler.asked == []


@pytest.mark.parametrize("traceparent", [None, "", "00-1", "no header"])
@pytest.mark.parametrize(("sampler", "flags"), [(ALWAYS_ON, 3), (ALWAYS_OFF, 2)])
def test_without_a_traceparent_the_sampler_here_is_asked(traceparent: str | None, sampler: Sampler, flags: int) -> None:
    """About the trace that is computed; what is none is counted."""
    assembler = Assembler(sampling=sampling_by(sampler))
    spans = taken(assembler, [replace(JOINED, traceparent=traceparent), *MODULES])
    assert spans == [replace(span, trace_flags=flags) for span in SPANS]
    assert {span.trace_id for span in spans} == {trace_id_of(E1)}
    assert assembler.counters.corrected == (traceparent is not None)


def test_an_execution_is_forgotten_after_the_idle_time() -> None:
    """After its last event; nothing leaves, and nothing is abandoned."""
    assembler = Assembler(idle_timeout=3)
    taken(assembler, [JOINED, *MODULES[:2]])
    taken(assembler, MODULES[2:], 2 * SECOND)
    assert assembler.deadline_ns == 5 * SECOND
    assert assembler.advance(5 * SECOND - 1) == []
    assert assembler.held == 1
    assert assembler.advance(5 * SECOND) == []
    assert assembler.held == 0
    assert assembler.counters == Counters(events=7, spans=3)


@pytest.mark.parametrize("events", [STORY[2:3] + STORY[4:5], [JOINED, *STORY[2:3], *STORY[4:5]]])
def test_modules_behind_that_leave_as_the_others_did(events: list[Event]) -> None:
    """Joined once more or not."""
    assembler = Assembler(idle_timeout=3)
    assert taken(assembler, [JOINED, STORY[1], STORY[3]]) == [TRIM]
    assert assembler.advance(3 * SECOND) == []
    assert taken(assembler, events, 4 * SECOND) == [UPPERCASE]
    assert assembler.open_executions == 0
    assert assembler.advance(8 * SECOND) == []
    assert assembler.counters == Counters(events=3 + len(events), spans=2, duplicate=len(events) - 2)


@pytest.mark.parametrize("settle", [0, 1])
def test_no_module_leaves_twice_though_its_execution_was_forgotten(settle: float) -> None:
    """One that was open for too long is unknown; its end, when it comes, is late."""
    assembler = Assembler(settle=settle, idle_timeout=3)
    lasting = ModuleStarted(E1, M3, "WordCount", T0 + 9 * MS)
    spans = taken(assembler, [JOINED, STORY[1], STORY[3], lasting]) + assembler.advance(2 * SECOND)
    assert spans == [TRIM]
    given_up = assembler.advance(3 * SECOND)
    assert [span.attributes["constellation.outcome"] for span in given_up] == ["unknown"]
    again = [JOINED, STORY[1], STORY[3], lasting, STORY[6]]
    assert taken(assembler, again, 4 * SECOND) + assembler.finish() == []
    assert assembler.counters == Counters(events=9, spans=2, late=4, duplicate=1, incomplete_modules=1)


def test_what_is_remembered_of_forgotten_ones_is_bounded() -> None:
    """The oldest goes; a module of it is of an execution that was never heard of."""
    assembler = Assembler(max_settled=1, idle_timeout=3)
    for execution_id in (E1, E2):
        taken(assembler, [replace(event, execution_id=execution_id) for event in PART])
    assembler.advance(3 * SECOND)
    assert (len(assembler._joined), assembler._remembered) == (1, 1)
    assert taken(assembler, [STORY[1], STORY[3]], 4 * SECOND) == []
    again = [replace(event, execution_id=E2) for event in (STORY[2], STORY[4])]
    assert [span.name for span in taken(assembler, again, 4 * SECOND)] == ["Uppercase"]


def test_at_close_its_open_modules_are_unknown() -> None:
    """They last until the last thing that is known of it."""
    lost: list[Span] = []
    assembler = Assembler(on_loss=lost.append)
    assert taken(assembler, [JOINED, STORY[1], STORY[2], STORY[4]]) == [UPPERCASE]
    assert assembler.open_modules == 1
    assert assembler.finish() == [unknown(T0 + 8 * MS)]
    assert assembler.counters == Counters(events=4, spans=2, incomplete_modules=1)
    assert lost == []


@pytest.mark.parametrize(
    "end", [ExecutionCompleted(E1, "my-pipeline", True, 15.0, T0 + 15 * MS), ExecutionCancelled(E1, "d", T0 + 15 * MS)]
)
def test_an_end_that_is_told_here_makes_no_span_either(end: Event) -> None:
    """Two processes that both claim to own it: the one that has joined it does not."""
    assembler = Assembler()
    assert taken(assembler, [*PART, end]) == SPANS
    assert assembler.counters == Counters(events=8, spans=3)
    # there may be more
    module: list[Event] = [ModuleStarted(E1, E2, "Late", T0), ModuleFailed(E1, E2, "Late", BOOM, T0 + 1 * MS)]
    assert [span.name for span in taken(assembler, module)] == ["Late"]


def test_of_a_group_that_another_process_tells_of_no_span_is_made() -> None:
    """Its span has the id that its part's parent has; what it takes the outputs of is linked to likewise."""
    details = ModuleDetails(parent_id=M2, upstream=(M3,))
    started = replace(STORY[1], details=details)
    assembler = Assembler()
    (span,) = taken(assembler, [JOINED, started, STORY[3]])
    link = SpanLink(trace_id_of(E1), span_id_of(E1, M3), {"constellation.link": "upstream"})
    assert span == replace(TRIM, parent_span_id=span_id_of(E1, M2), links=(link,))
    assert assembler.finish() == []


def test_a_module_that_did_not_run_is_told_of_here_too() -> None:
    described = ModuleDescribed(E1, M1, "Trim", T0 + 1 * MS, ModuleDetails(outcome="cached", reason="a file"))
    assembler = Assembler()
    (span,) = taken(assembler, [JOINED, described])
    told = {"constellation.outcome": "cached", "constellation.module.reason": "a file"}
    assert span.attributes == TRIM.attributes | told
    assert assembler.counters == Counters(events=2, spans=1)


def test_modules_without_ids_leave_when_it_is_forgotten() -> None:
    anonymous: list[Event] = [replace(event, module_id=None) for event in (STORY[1], STORY[3])]
    assembler = Assembler(idle_timeout=3)
    assert taken(assembler, [JOINED, *anonymous]) == []
    assert [(span.name, span.attributes["constellation.outcome"]) for span in assembler.advance(3 * SECOND)] == [
        ("Trim", "success")
    ]
    assert assembler.counters == Counters(events=3, spans=1)


def test_too_many_joined_ones_are_forgotten_the_most_silent_first() -> None:
    assembler = Assembler(max_open=2)
    for execution_id in (E1, E2):
        assert taken(assembler, [replace(JOINED, execution_id=execution_id)]) == []
    assert [span.name for span in taken(assembler, [ModuleStarted(E1, M1, "Trim", T0)])] == []
    assert [assembler.is_open(execution_id) for execution_id in (E1, E2)] == [True, False]
    assert assembler.counters == Counters(events=3)


def test_what_makes_room_first_is_joined_with_nothing_open() -> None:
    """Not an execution of this process that is silent since a module of it takes long, or one with an open module."""
    assembler = Assembler(max_open=8)
    own = [replace(event, execution_id=E2) for event in STORY[:2]]
    lasting: list[Event] = [replace(event, execution_id=UUID(int=1)) for event in (JOINED, STORY[1])]
    taken(assembler, [*own, *lasting])
    for number in range(2, 100):
        assert taken(assembler, [replace(event, execution_id=UUID(int=number)) for event in PART]) != []
    assert [assembler.is_open(it) for it in (E2, UUID(int=1), UUID(int=99))] == [True, True, True]
    assert assembler.counters.abandoned == 0
    assert assembler.counters.incomplete_modules == 0
    assert assembler.held <= assembler.max_open


def test_one_that_is_revoked_is_forgotten_without_a_trace() -> None:
    """Whoever reads its events again makes its spans again."""
    assembler = Assembler()
    for _ in range(2):
        assert taken(assembler, PART) == SPANS
        (execution,) = assembler.executions
        assembler.discard(execution)
        assert (assembler.open_executions, assembler.held) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30), st.randoms(use_true_random=False))
def test_open_executions_are_those_that_were_started_here(told: list[tuple[int, bool]], rng: random.Random) -> None:
    """However starts and joins come, and whatever is given up meanwhile."""
    assembler = Assembler(settle=rng.choice([0, 1]), max_open=rng.choice([2, 100]), idle_timeout=2)
    for now, (number, is_joined) in enumerate(told):
        event = replace(JOINED if is_joined else STORY[0], execution_id=UUID(int=number))
        assembler.add(event, now * SECOND // 2)
        assembler.advance(now * SECOND // 2)
        assert assembler.open_executions == sum(not it.is_joined for it in assembler.executions)
    assembler.finish()
    assert assembler.open_executions == assembler.held == 0
    assert assembler.counters.executions == assembler.counters.abandoned
