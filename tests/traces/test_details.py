"""What is told of a module besides the callbacks: attempts, parts, skipped modules, links, attributes."""

from __future__ import annotations

from math import inf
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.trace import StatusCode

from constellation_otel.events import (
    BodyRecord,
    ErrorInfo,
    Event,
    ExecutionCompleted,
    ModuleCompleted,
    ModuleDescribed,
    ModuleDetails,
    ModuleFailed,
    ModuleStarted,
)
from constellation_otel.traces import Assembler, Sampling, Span, SpanLink
from constellation_otel.traces.details import Known, known_of, merged
from constellation_otel.traces.ids import span_id_of, trace_id_of
from constellation_otel.traces.sampling import NOT_TRACED
from stories import BOOM, E1, M1, M2, M3, MS, STORY, T0, assemble

END = ExecutionCompleted(E1, "my-pipeline", False, 15.0, T0 + 15 * MS)


def by_id(spans: list[Span]) -> dict[int, Span]:
    return {span.span_id: span for span in spans}


def attempt(number: int, module_id: UUID, error: ErrorInfo | None, at: int) -> list[Event]:
    """An attempt at a module whose first one is M1."""
    details = None if number == 1 else ModuleDetails(attempt=number, attempt_of=M1)
    begun = ModuleStarted(E1, module_id, "flaky", T0 + at, details)
    if error is None:
        return [begun, ModuleCompleted(E1, module_id, "flaky", 1.0, T0 + at + MS)]
    return [begun, ModuleFailed(E1, module_id, "flaky", error, T0 + at + MS)]


def test_a_module_that_has_recovered_is_not_to_blame() -> None:
    """The execution names the one whose last attempt failed, though it failed later."""
    boom = ModuleFailed(E1, M3, "boom", ErrorInfo("E", "no number"), T0 + 9 * MS)
    events = [STORY[0], *attempt(1, M1, BOOM, 1), *attempt(2, M2, None, 5), boom, END]
    *modules, execution = assemble(events)
    assert execution.status_description == "boom failed: no number"
    assert execution.attributes["error.type"] == "E"
    attempts = {span.span_id: span.attributes.get("constellation.module.attempt") for span in modules}
    assert attempts == {span_id_of(E1, M1): None, span_id_of(E1, M2): 2, span_id_of(E1, M3): None}
    assert {span.name for span in modules} == {"flaky", "boom"}


def test_a_module_whose_last_attempt_failed_is_named() -> None:
    events = [STORY[0], *attempt(1, M1, None, 1), *attempt(3, M3, ErrorInfo("E", "third"), 9), *attempt(2, M2, BOOM, 5)]
    assert assemble([*events, END], settle=1)[-1].status_description == "flaky failed: third"


def test_of_two_attempts_of_one_number_the_failed_counts() -> None:
    for order in ((None, BOOM), (BOOM, None)):
        events = [STORY[0], *attempt(2, M2, order[0], 1), *attempt(2, M3, order[1], 5), END]
        assert assemble(events)[-1].status_description == "flaky failed: too many words"
    twice = [STORY[0], *attempt(2, M2, BOOM, 5), *attempt(2, M3, ErrorInfo("E", "first"), 1), END]
    assert assemble(twice, settle=1)[-1].status_description == "flaky failed: first"


def test_failures_without_number_take_bounded_memory() -> None:
    """What is said in the end stays among them."""
    assembler = Assembler()
    assembler.add(STORY[0], 0)
    for number in range(5_000):
        error = ErrorInfo("E", str(number))
        assembler.add(ModuleFailed(E1, UUID(int=number + 1), "m", error, T0 + (number + 2_500) % 5_000), 0)
    (execution,) = assembler.executions
    assert len(execution.failures) <= 2_049
    assert assembler.add(END, 0)[-1].status_description == "m failed: 2500"


@pytest.mark.parametrize("outcome", ["skipped", "cached"])
def test_a_module_that_did_not_run_has_a_span_of_a_nanosecond(outcome: Any) -> None:
    details = ModuleDetails(outcome=outcome, reason="up to date", upstream=(M2,))
    events = [STORY[0], ModuleDescribed(E1, M1, "Trim", T0 + MS, details), END]
    trim, _ = assemble(events)
    assert (trim.name, trim.start_ns, trim.end_ns, trim.duration_ns) == ("Trim", T0 + MS, T0 + MS + 1, None)
    assert trim.attributes == {
        "constellation.execution.id": str(E1),
        "constellation.dag.name": "my-pipeline",
        "constellation.module.id": str(M1),
        "constellation.module.name": "Trim",
        "constellation.outcome": outcome,
        "constellation.module.reason": "up to date",
    }
    assert (trim.status, trim.links) == (
        StatusCode.UNSET,
        (SpanLink(trace_id_of(E1), span_id_of(E1, M2), {"constellation.link": "upstream"}),),
    )
    at_once, again, late = Assembler(), Assembler(), Assembler()
    assert [len(at_once.add(event, 0)) for event in events] == [0, 1, 1]
    # told again, and told when it has started
    story = [STORY[0], STORY[1], events[1], events[1], ModuleStarted(E1, M1, "Trim", T0), END]
    assert [len(again.add(event, 0)) for event in story] == [0, 0, 1, 0, 0, 1]
    assert (again.counters.late, again.open_modules) == (2, 0)
    assert [len(late.add(event, 0)) for event in (events[1], STORY[0], END)] == [0, 1, 1]


def test_where_a_module_ran_its_events_are_right() -> None:
    described = ModuleDescribed(E1, M1, "Trim", T0 + MS, ModuleDetails(outcome="skipped"))
    for story in ([STORY[1], STORY[3], described], [described, STORY[1], STORY[3]]):
        trim, _ = assemble([STORY[0], *story, END], settle=1)
        assert (trim.attributes["constellation.outcome"], trim.duration_ns) == ("success", 2 * MS)


def test_a_part_is_below_the_module_that_it_is_a_part_of() -> None:
    """Which holds it; of another one nothing else is known."""
    events = [
        STORY[0],
        ModuleStarted(E1, M1, "sub", T0 + MS),
        ModuleStarted(E1, M2, "inner", T0 + 2 * MS, ModuleDetails(parent_id=M1)),
        ModuleCompleted(E1, M2, "inner", 9.0, T0 + 3 * MS),
        ModuleCompleted(E1, M1, "sub", 3.0, T0 + 4 * MS),
        ModuleStarted(E1, M3, "lost", T0 + 5 * MS, ModuleDetails(parent_id=UUID(int=7))),
        END,
    ]
    spans = by_id(assemble(events))
    sub, inner, lost = (spans[span_id_of(E1, module_id)] for module_id in (M1, M2, M3))
    unknown = spans[span_id_of(E1, UUID(int=7))]
    assert (inner.parent_span_id, sub.parent_span_id) == (sub.span_id, span_id_of(E1))
    assert (sub.start_ns, sub.end_ns, sub.duration_ns) == (T0 + MS, T0 + 11 * MS, 3 * MS)
    assert sub.attributes["constellation.reported_duration_ms"] == 3.0
    assert (lost.parent_span_id, unknown.name, unknown.parent_span_id) == (unknown.span_id, "unknown", span_id_of(E1))
    assert unknown.attributes["constellation.missing"] == "start,end"
    assert unknown.start_ns <= lost.start_ns < lost.end_ns <= unknown.end_ns


@pytest.mark.parametrize("settle", [0.0, 0.001])
@pytest.mark.parametrize("is_part_last", [False, True])
def test_a_group_is_forgotten_once_its_last_span_is_made(settle: float, is_part_last: bool) -> None:
    """A long execution may have any number of them."""
    assembler = Assembler(settle=settle)
    assembler.add(STORY[0], T0)
    spans: list[Span] = []
    for number in range(100):
        at, group, part = T0 + number * 10 * MS, UUID(int=1_000 + number), UUID(int=2_000 + number)
        events: list[Event] = [
            ModuleStarted(E1, group, "sub", at),
            ModuleStarted(E1, part, "inner", at + MS, ModuleDetails(parent_id=group)),
            ModuleCompleted(E1, part, "inner", 1.0, at + 2 * MS),
            ModuleCompleted(E1, group, "sub", 3.0, at + 3 * MS),
        ]
        if is_part_last:
            events[2:] = reversed(events[2:])
        for event in events:
            spans += assembler.add(event, event.timestamp_ns)
        spans += assembler.advance(at + 9 * MS)
        (execution,) = assembler.executions
        assert execution.groups == {}
    assert len(spans) == 200
    assert len(assembler.add(END, T0 + 2_000 * MS) + assembler.finish()) == 1


def test_modules_that_are_parts_of_each_other_get_spans() -> None:
    events: list[Event] = [
        STORY[0],
        ModuleStarted(E1, M1, "a", T0, ModuleDetails(parent_id=M2)),
        ModuleStarted(E1, M2, "b", T0, ModuleDetails(parent_id=M1)),
        END,
    ]
    a, b, _ = assemble(events)
    assert {a.parent_span_id, b.parent_span_id} == {a.span_id, b.span_id}


def test_what_the_model_has_is_not_overwritten() -> None:
    """Neither by an engine's attributes nor by a body's; a body's status stays where the module has succeeded."""
    told = ModuleDetails(attributes={"constellation.outcome": "x", "tenant": "a", "queue": "q"})
    body = BodyRecord({"constellation.dag.name": "x", "error.type": "y", "queue": "r"}, status="error", description="d")
    completed = ModuleCompleted(E1, M1, "Trim", 2.0, T0 + 3 * MS, told, body)
    failed = ModuleFailed(E1, M2, "Uppercase", BOOM, T0 + 3 * MS, None, body)
    trim, uppercase, _ = assemble([*STORY[:3], completed, failed, END])
    assert trim.attributes["constellation.outcome"] == "success"
    assert (trim.attributes["tenant"], trim.attributes["queue"], trim.attributes["error.type"]) == ("a", "r", "y")
    assert (trim.status, trim.status_description) == (StatusCode.ERROR, "d")
    assert (uppercase.status_description, uppercase.attributes["error.type"]) == ("too many words", "app.Boom")
    assert uppercase.attributes["constellation.dag.name"] == "my-pipeline"


def test_details_are_merged_key_by_key_in_any_order() -> None:
    """The least by time and content wins; of too many those with the least keys stay."""
    first = (1, ModuleDetails(attempt=3, reason="b", attributes={"x": 1, **{f"k{n:03}": n for n in range(100)}}))
    second = (2, ModuleDetails(parent_id=M1, attempt=2, upstream=(M2,), attributes={"x": 2, "y": True}))
    third = (1, ModuleDetails(reason="a", upstream=tuple(UUID(int=n) for n in range(1, 129)), attributes={"a": 1.0}))
    more = (3, ModuleDetails(attributes={f"z{n:03}": n for n in range(128)}))
    everything = (first, second, third, more)
    expected: ModuleDetails | None = None
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 0, 3, 2, 0], [2, 0, 2, 3, 1]):
        known: Known | None = None
        for number in order:
            known = merged(known, *everything[number])
        found = known_of(known)
        expected = expected or found
        assert found == expected
    assert expected is not None
    assert (expected.parent_id, expected.attempt, expected.reason) == (M1, 3, "a")
    assert (expected.attributes["x"], len(expected.attributes), len(expected.upstream)) == (1, 128, 128)
    assert M2 not in expected.upstream
    assert known_of(merged(merged(None, *first), *first)) is first[1]
    assert known_of(None) == ModuleDetails()


def test_nothing_is_decided_on_what_is_joined_without_a_decider() -> None:
    assert Sampling(None).join(E1, "d", None) is NOT_TRACED


def test_a_length_that_would_begin_before_1970_is_left_out() -> None:
    trim, _ = assemble([STORY[0], ModuleCompleted(E1, M1, "Trim", 1e12, 5_000), END], settle=1)
    assert (trim.start_ns, trim.end_ns, trim.duration_ns) == (4_999, 5_000, None)
    assert trim.start_ns < inf
