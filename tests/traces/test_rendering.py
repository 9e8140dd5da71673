"""What a span looks like: its name, ids, times, outcome, status and attributes."""

from __future__ import annotations

from math import nan

import msgspec
import pytest
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
    validated,
)
from constellation_otel.traces import Assembler, Decision, Sampling, Span, SpanEvent
from constellation_otel.traces.ids import anonymous_module_id, span_id_of, trace_id_of
from stories import (
    BOOM,
    E1,
    EXECUTION,
    M1,
    M2,
    M3,
    MS,
    PARENT,
    STORY,
    T0,
    TRIM,
    UPPERCASE,
    WORD_COUNT,
    anonymous_story,
    assemble,
    the_execution,
)


def test_the_guides_timeline_becomes_a_trace_with_every_field() -> None:
    assert assemble(STORY) == [TRIM, UPPERCASE, WORD_COUNT, EXECUTION]


def test_a_span_whose_start_was_lost_says_so() -> None:
    trim, execution = assemble(
        [ModuleCompleted(E1, M1, "Trim", 2.0, T0), ExecutionCompleted(E1, "my-pipeline", True, 5.0, T0 + MS)]
    )
    assert trim.attributes == TRIM.attributes | {"constellation.missing": "start"}
    assert (trim.start_ns, trim.end_ns) == (T0 - 2 * MS, T0)
    assert execution.attributes == {
        "constellation.execution.id": str(E1),
        "constellation.dag.name": "my-pipeline",
        "constellation.outcome": "success",
        "constellation.missing": "start",
    }
    assert (execution.start_ns, execution.end_ns) == (T0 - 4 * MS, T0 + MS)


def test_a_module_without_an_end_lasts_until_its_executions() -> None:
    """At least, and it says so."""
    trim, execution = assemble([STORY[0], STORY[1], ExecutionCompleted(E1, "my-pipeline", True, 15.0, T0 + 17 * MS)])
    assert trim == msgspec.structs.replace(
        TRIM,
        end_ns=T0 + 15 * MS,
        attributes=TRIM.attributes | {"constellation.outcome": "unknown", "constellation.missing": "end"},
        duration_ns=None,
    )
    assert execution.attributes["constellation.outcome"] == "success"


def test_a_cancelled_execution_lasts_until_its_cancellation() -> None:
    """Its open modules are cancelled with it, and none of them has an error."""
    trim, execution = assemble([*STORY[:2], ExecutionCancelled(E1, "my-pipeline", T0 + 7 * MS)])
    assert trim.attributes["constellation.outcome"] == "cancelled"
    assert (trim.status, execution.status) == (StatusCode.UNSET, StatusCode.UNSET)
    assert execution.attributes["constellation.outcome"] == "cancelled"
    assert (execution.start_ns, execution.end_ns) == (T0, T0 + 7 * MS)
    assert execution.events == (SpanEvent("cancelled", T0 + 7 * MS, {}),)
    assert (trim.start_ns, trim.end_ns) == (T0 + MS, T0 + 7 * MS)


def times_of(spans: list[Span]) -> list[tuple[int, int]]:
    """Nanoseconds after T0."""
    return [(span.start_ns - T0, span.end_ns - T0) for span in spans]


def test_a_cancellation_without_a_start_lasts_a_nanosecond() -> None:
    assert times_of(assemble([ExecutionCancelled(E1, "my-pipeline", T0)])) == [(-1, 0)]
    assert times_of(assemble([ExecutionCancelled(E1, "my-pipeline", 0)])) == [(-T0, 1 - T0)]


def test_an_end_before_its_start_gives_no_negative_length() -> None:
    spans = assemble([STORY[0], ModuleStarted(E1, M3, "W", T0 + 9), ModuleFailed(E1, M3, "W", BOOM, T0 + 4)], settle=1)
    assert times_of(spans) == [(4, 5), (0, 5)]


def test_an_execution_holds_its_modules_however_late_it_is_told() -> None:
    """The engine sends its completion late under load; the report stays to be seen."""
    events: list[Event] = [
        ModuleStarted(E1, M1, "Trim", T0 - 2 * MS),
        ExecutionStarted(E1, "my-pipeline", T0),
        ModuleCompleted(E1, M1, "Trim", 30.0, T0 + 29 * MS),
        ExecutionCompleted(E1, "my-pipeline", True, 1.0, T0 + 30 * MS),
    ]
    trim, execution = assemble(events)
    assert times_of([trim, execution]) == [(-2 * MS, 28 * MS), (-2 * MS, 28 * MS)]
    assert execution.attributes["constellation.reported_duration_ms"] == 1.0
    assert "constellation.reported_duration_ms" not in trim.attributes
    assert (trim.duration_ns, execution.duration_ns) == (30 * MS, 1 * MS)


def test_a_span_of_no_length_has_a_nanosecond_and_says_so() -> None:
    trim, execution = assemble(
        [*STORY[:2], ModuleCompleted(E1, M1, "Trim", 0.0, T0 + MS), ExecutionCompleted(E1, "d", True, 0.0, T0 + MS)]
    )
    assert times_of([trim, execution]) == [(MS, MS + 1), (0, MS + 1)]
    assert [span.attributes["constellation.reported_duration_ms"] for span in (trim, execution)] == [0.0, 0.0]
    assert (trim.duration_ns, execution.duration_ns) == (0, 0)
    ended = assemble([STORY[0], ModuleCompleted(E1, M1, "Trim", 0.0, T0 + MS)])[0]
    assert times_of([ended]) == [(MS - 1, MS)]


def test_a_module_that_begins_when_its_execution_ends_lasts_a_nanosecond() -> None:
    """It is padded backwards, so that the execution need not be widened."""
    end: Event = ExecutionCompleted(E1, "my-pipeline", True, 15.0, T0 + 15 * MS)
    for at in (0, 5):
        begun = ModuleStarted(E1, M1, "Trim", T0 + 15 * MS + at)
        spans = assemble([STORY[0], begun, end])
        assert times_of(spans) == [(15 * MS + at - 1, 15 * MS + at), (0, 15 * MS + at)]


def test_an_execution_without_an_end_lasts_until_the_last_news_of_it() -> None:
    """A module's end that came long after what it reports is news, too; nobody knows a duration."""
    ended = ModuleCompleted(E1, M1, "Trim", 2.0, T0 + 9 * MS)
    spans = assemble([*STORY[:2], ended, ModuleStarted(E1, M2, "Uppercase", T0 + 7 * MS)])
    assert times_of(spans) == [(MS, 3 * MS), (7 * MS, 9 * MS), (0, 9 * MS)]
    assert [span.duration_ns for span in spans] == [2 * MS, None, None]
    assert times_of(assemble([STORY[0]])) == [(0, 1)]


def test_the_callers_span_is_the_parent_and_its_trace_the_trace() -> None:
    start = ExecutionStarted(E1, "my-pipeline", T0, PARENT, "vendor=1")
    spans = assemble([start, *STORY[1:]])
    assert {(span.trace_id, span.trace_state, span.trace_flags) for span in spans} == {
        (0x0AF7651916CD43DD8448EB211C80319C, "vendor=1", 1)
    }
    assert [span.parent_span_id for span in spans] == [span_id_of(E1)] * 3 + [0xB7AD6B7169203331]
    assert spans[-1].kind is SpanKind.INTERNAL


def test_an_invalid_trace_context_is_left_out_and_counted() -> None:
    assembler = Assembler()
    assembler.add(ExecutionStarted(E1, "my-pipeline", T0, "00-nonsense", None), 0)
    (execution,) = assembler.add(ExecutionCompleted(E1, "my-pipeline", True, 15.0, T0 + 15 * MS), 0)
    assert (execution.trace_id, execution.parent_span_id) == (trace_id_of(E1), None)
    assert assembler.counters.corrected == 1


def test_a_failure_without_a_known_failed_module_says_so() -> None:
    execution = the_execution([STORY[0], STORY[-1]])
    assert execution.attributes["error.type"] == "_OTHER"
    assert (
        execution.status_description
        == "failed, and no failed module is known; a time-out in the engine looks like this"
    )


def test_a_failure_names_the_module_that_failed_first() -> None:
    later = ModuleFailed(E1, M1, "Trim", ErrorInfo("E", "second"), T0 + 15 * MS)
    assert the_execution([STORY[0], later, *STORY[5:]], settle=1).status_description == EXECUTION.status_description


@pytest.mark.parametrize(
    ("error", "error_type", "module_says", "execution_says"),
    [
        (ErrorInfo("E", "why"), "E", "why", "W failed: why"),
        (ErrorInfo("E", ""), "E", "E", "W failed: E"),
        (ErrorInfo("E", None), "E", "E", "W failed: E"),
        (ErrorInfo(None, "why"), "_OTHER", "why", "W failed: why"),
        (ErrorInfo(None, None), "_OTHER", "failed", "W failed"),
    ],
)
def test_an_error_is_described_by_what_is_known_of_it(
    error: ErrorInfo, error_type: str, module_says: str, execution_says: str
) -> None:
    module, execution = assemble([STORY[0], ModuleFailed(E1, M1, "W", error, T0), STORY[-1]])
    assert (module.attributes["error.type"], module.status_description) == (error_type, module_says)
    assert (execution.attributes["error.type"], execution.status_description) == (error_type, execution_says)


@pytest.mark.parametrize("duration_ms", [-1.0, nan, float("inf"), 1e30, 9e12])
def test_a_duration_that_cannot_be_one_is_left_out_and_counted(duration_ms: float) -> None:
    """At the door, or where it would end beyond what backends can hold, here; the span runs from start to end."""
    event, corrected = validated(ModuleCompleted(E1, M1, "Trim", duration_ms, T0 + 3 * MS))
    assembler = Assembler()
    for known in STORY[:2]:
        assembler.add(known, 0)
    assert assembler.add(event, 0) == [TRIM]
    assert len(corrected) + assembler.counters.corrected == 1


def test_a_completion_without_a_duration_runs_from_start_to_end() -> None:
    execution = the_execution([STORY[0], ExecutionCompleted(E1, "my-pipeline", True, None, T0 + 15 * MS)])
    assert (execution.start_ns, execution.end_ns) == (T0, T0 + 15 * MS)


@pytest.mark.parametrize(("name", "shown"), [("", "unknown"), ("a\x00\x1b[31mb", "a��[31mb"), ("\udc80", "�")])
def test_a_name_that_no_backend_can_hold_is_cleaned_at_the_door(name: str, shown: str) -> None:
    """What is rendered was validated before, and is not cleaned again."""
    events = [validated(event).event for event in (ExecutionStarted(E1, name, T0), ExecutionCancelled(E1, name, T0))]
    execution = the_execution(events)
    assert (execution.name, execution.attributes["constellation.dag.name"]) == (shown, shown)


def test_an_execution_known_by_its_modules_begins_with_them() -> None:
    trim, execution = assemble([ModuleStarted(E1, M1, "Trim", T0 + 5), ModuleCompleted(E1, M1, "Trim", 2.0, T0 + 9)])
    assert (trim.name, trim.attributes["constellation.dag.name"]) == ("Trim", "unknown")
    assert execution.name == "unknown"
    assert times_of([trim, execution]) == [(5, 2 * MS + 5), (5, 2 * MS + 5)]
    assert execution.attributes["constellation.missing"] == "start,end"
    assert times_of(assemble([ModuleStarted(E1, None, "Trim", T0 + 5)])) == [(5, 6), (5, 6)]


def test_an_error_type_is_clean_wherever_it_is_shown() -> None:
    failed, _ = validated(ModuleFailed(E1, M1, "W", ErrorInfo("\ud800" + "x" * 10_000, "why"), T0))
    module, execution = assemble([STORY[0], failed, STORY[-1]])
    shown = "\N{REPLACEMENT CHARACTER}" + "x" * 1_023
    assert module.attributes["error.type"] == execution.attributes["error.type"] == shown
    assert module.events[0].attributes["exception.type"] == shown


def test_a_stack_trace_is_an_attribute_of_the_exceptions_event() -> None:
    error = ErrorInfo("E", None, None, "Traceback (most recent call last):\nE\n")
    module, _ = assemble([STORY[0], ModuleFailed(E1, M1, "W", error, T0), STORY[-1]])
    assert module.events == (
        SpanEvent("exception", T0, {"exception.type": "E", "exception.stacktrace": error.stacktrace}, is_failure=True),
    )


def test_an_exceptions_type_is_left_out_where_it_is_not_known() -> None:
    module, _ = assemble([STORY[0], ModuleFailed(E1, M1, "W", ErrorInfo(None, "why"), T0), STORY[-1]])
    assert module.attributes["error.type"] == "_OTHER"
    assert module.events == (SpanEvent("exception", T0, {"exception.message": "why"}, is_failure=True),)


def test_what_a_sampling_decides_is_on_the_spans_it_is_about() -> None:
    """Flags and state on all of them, attributes on the execution's, where none of ours has their name."""
    decision = Decision(Context(), None, None, True, 1, "rule=all", {"rule": "all", "constellation.outcome": "?"})
    assembler = Assembler(sampling=Sampling(lambda *_, **__: decision))
    module, execution = [span for event in (STORY[0], STORY[3], STORY[-1]) for span in assembler.add(event, 0)]
    assert {(span.trace_flags, span.trace_state) for span in (module, execution)} == {(1, "rule=all")}
    assert "rule" not in module.attributes
    assert (execution.attributes["rule"], execution.attributes["constellation.outcome"]) == ("all", "failure")


def test_an_earlier_start_gives_later_spans_its_name_and_parent() -> None:
    """The start is the earliest one; nothing was emitted before it came."""
    earlier = ExecutionStarted(E1, "earlier", T0 - MS, PARENT)
    execution = the_execution([STORY[0], STORY[1], earlier, STORY[-1]], settle=1)
    assert (execution.name, execution.parent_span_id) == ("earlier", 0xB7AD6B7169203331)


def test_an_end_without_id_pairs_with_its_names_oldest_start() -> None:
    """Of those that are open."""
    first, second, lost, execution = assemble(anonymous_story())
    assert [span.span_id for span in (first, second, lost)] == [
        span_id_of(E1, anonymous_module_id(E1, "Trim", 0)),
        span_id_of(E1, anonymous_module_id(E1, "Trim", 1)),
        span_id_of(E1, anonymous_module_id(E1, "Lost", 0)),
    ]
    assert times_of([first, second, lost]) == [(1 * MS, 5 * MS), (2 * MS, 6 * MS), (6 * MS, 7 * MS)]
    assert second.attributes == {
        "constellation.execution.id": str(E1),
        "constellation.dag.name": "my-pipeline",
        "constellation.module.name": "Trim",
        "constellation.outcome": "success",
    }
    assert lost.attributes["constellation.missing"] == "start"
    assert execution.status_description == "Trim failed: too many words"
