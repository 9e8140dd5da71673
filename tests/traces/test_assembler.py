"""The assembler's laws, and every rule of the trace model."""

from __future__ import annotations

import random
from math import nan
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
)
from constellation_otel.traces import Assembler, Counters, Span, SpanEvent
from constellation_otel.traces.ids import anonymous_module_id, span_id_of, trace_id_of

MS = 1_000_000
SECOND = 1_000_000_000
T0 = 1_795_465_363_577 * MS
E1 = UUID("11111111-1111-4111-8111-111111111111")
E2 = UUID("22222222-2222-4222-8222-222222222222")
M1 = UUID("aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa")
M2 = UUID("bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb")
M3 = UUID("cccccccc-cccc-4ccc-8ccc-cccccccccccc")
BOOM = ErrorInfo("app.Boom", "too many words")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

STORY: list[Event] = [
    ExecutionStarted(E1, "my-pipeline", T0),
    ModuleStarted(E1, M1, "Trim", T0 + 1 * MS),
    ModuleStarted(E1, M2, "Uppercase", T0 + 2 * MS),
    ModuleCompleted(E1, M1, "Trim", 2.0, T0 + 3 * MS),
    ModuleCompleted(E1, M2, "Uppercase", 5.0, T0 + 8 * MS),
    ModuleStarted(E1, M3, "WordCount", T0 + 9 * MS),
    ModuleFailed(E1, M3, "WordCount", BOOM, T0 + 14 * MS),
    ExecutionCompleted(E1, "my-pipeline", False, 15.0, T0 + 15 * MS),
]


def module_span(name: str, module_id: UUID | None, start_ns: int, end_ns: int, outcome: str = "success") -> Span:
    """A module's span of execution E1 of my-pipeline, when all is known of it."""
    attributes = {"constellation.execution.id": str(E1), "constellation.dag.name": "my-pipeline"}
    if module_id is not None:
        attributes["constellation.module.id"] = str(module_id)
    attributes["constellation.module.name"] = name
    return Span(
        trace_id_of(E1),
        span_id_of(E1, module_id),
        span_id_of(E1),
        "",
        2,
        name,
        SpanKind.INTERNAL,
        start_ns,
        end_ns,
        {**attributes, "constellation.outcome": outcome},
    )


TRIM = module_span("Trim", M1, T0 + 1 * MS, T0 + 3 * MS)
UPPERCASE = module_span("Uppercase", M2, T0 + 3 * MS, T0 + 8 * MS)
WORD_COUNT = msgspec.structs.replace(
    module_span("WordCount", M3, T0 + 9 * MS, T0 + 14 * MS),
    attributes={
        "constellation.execution.id": str(E1),
        "constellation.dag.name": "my-pipeline",
        "constellation.module.id": str(M3),
        "constellation.module.name": "WordCount",
        "error.type": "app.Boom",
        "constellation.outcome": "failure",
    },
    status=StatusCode.ERROR,
    status_description="too many words",
    events=(
        SpanEvent("exception", T0 + 14 * MS, {"exception.type": "app.Boom", "exception.message": "too many words"}),
    ),
)
EXECUTION = Span(
    trace_id_of(E1),
    span_id_of(E1),
    None,
    "",
    2,
    "my-pipeline",
    SpanKind.SERVER,
    T0,
    T0 + 15 * MS,
    {
        "constellation.execution.id": str(E1),
        "constellation.dag.name": "my-pipeline",
        "error.type": "app.Boom",
        "constellation.outcome": "failure",
    },
    StatusCode.ERROR,
    "WordCount failed: too many words",
)


def assemble(events: list[Event], **options: float) -> list[Span]:
    """What leaves when all events arrive at once and then time passes."""
    assembler = Assembler(**options)  # type: ignore[arg-type]
    spans = [span for event in events for span in assembler.add(event, 0)]
    return spans + assembler.advance(SECOND) + assembler.finish()


def the_execution(events: list[Event], **options: float) -> Span:
    return assemble(events, **options)[-1]


def test_the_guides_timeline_becomes_a_trace_with_every_field() -> None:
    assert assemble(STORY) == [TRIM, UPPERCASE, WORD_COUNT, EXECUTION]


def test_an_ordered_source_s_spans_leave_with_their_end() -> None:
    assembler = Assembler()
    left = [[span.name for span in assembler.add(event, 0)] for event in STORY]
    assert left == [[], [], [], ["Trim"], ["Uppercase"], [], ["WordCount"], ["my-pipeline"]]


def test_an_unordered_source_s_spans_leave_when_they_have_settled() -> None:
    assembler = Assembler(settle=1)
    assert [assembler.add(event, at * SECOND // 10) for at, event in enumerate(STORY[:5])] == [[]] * 5
    assert assembler.advance(12 * SECOND // 10) == []
    assert assembler.advance(13 * SECOND // 10) == [TRIM]
    assert assembler.advance(14 * SECOND // 10) == [UPPERCASE]
    for event in STORY[5:]:
        assert assembler.add(event, 2 * SECOND) == []
    assert assembler.deadline_ns == 3 * SECOND
    assert assembler.advance(3 * SECOND) == [WORD_COUNT, EXECUTION]
    assert assembler.deadline_ns is None


def test_nothing_leaves_before_the_start_is_known_which_carries_the_name_and_the_parent() -> None:
    assembler = Assembler(settle=1)
    for event in STORY[1:]:
        assembler.add(event, 0)
    assert assembler.advance(5 * SECOND) == []
    assert assembler.add(STORY[0], 6 * SECOND) == []
    assert assembler.advance(7 * SECOND) == [TRIM, UPPERCASE, WORD_COUNT, EXECUTION]


def test_an_ordered_source_s_modules_wait_for_a_start_that_is_late() -> None:
    assembler = Assembler()
    assert [assembler.add(event, 0) for event in STORY[1:4]] == [[], [], []]
    assert assembler.add(STORY[0], 0) == [TRIM]


def test_an_execution_that_has_ended_does_not_wait_for_its_start_for_ever() -> None:
    assembler = Assembler(settle=1)
    assembler.add(ExecutionCompleted(E1, "my-pipeline", True, 5.0, T0), 0)
    assembler.add(ModuleCompleted(E1, M1, "Trim", 2.0, T0), 10 * SECOND)
    assert assembler.advance(30 * SECOND) == []
    assert [span.name for span in assembler.advance(40 * SECOND)] == ["Trim", "my-pipeline"]


def test_a_lost_start_is_said_on_the_spans() -> None:
    trim, execution = assemble(
        [ModuleCompleted(E1, M1, "Trim", 2.0, T0), ExecutionCompleted(E1, "my-pipeline", True, 5.0, T0 + MS)]
    )
    assert trim.attributes == TRIM.attributes | {"constellation.missing": ("start",)}
    assert (trim.start_ns, trim.end_ns) == (T0 - 2 * MS, T0)
    assert execution.attributes == {
        "constellation.execution.id": str(E1),
        "constellation.dag.name": "my-pipeline",
        "constellation.outcome": "success",
        "constellation.missing": ("start",),
    }
    assert (execution.start_ns, execution.end_ns) == (T0 - 4 * MS, T0 + MS)


def test_a_module_without_an_end_has_no_length_and_says_so() -> None:
    trim, execution = assemble([STORY[0], STORY[1], ExecutionCompleted(E1, "my-pipeline", True, 15.0, T0 + 15 * MS)])
    assert trim == msgspec.structs.replace(
        TRIM,
        end_ns=T0 + 1 * MS,
        attributes=TRIM.attributes | {"constellation.outcome": "unknown", "constellation.missing": ("end",)},
    )
    assert execution.attributes["constellation.outcome"] == "success"


def test_a_cancelled_execution_runs_from_start_to_cancellation_and_so_do_its_open_modules_end() -> None:
    trim, execution = assemble([*STORY[:2], ExecutionCancelled(E1, "my-pipeline", T0 + 7 * MS)])
    assert trim.attributes["constellation.outcome"] == "cancelled"
    assert (trim.status, execution.status) == (StatusCode.UNSET, StatusCode.UNSET)
    assert execution.attributes["constellation.outcome"] == "cancelled"
    assert (execution.start_ns, execution.end_ns) == (T0, T0 + 7 * MS)


@pytest.mark.parametrize(
    ("events", "counted", "lost"),
    [
        ([*STORY], (0, 0), []),
        # an end shows that there was a start, and a module that there was an execution
        ([*STORY[1:]], (1, 0), ["my-pipeline"]),
        ([STORY[0], STORY[3], STORY[7]], (0, 1), ["Trim"]),
        ([STORY[0], ModuleCompleted(E1, None, "Trim", 2.0, T0), STORY[7]], (0, 1), ["Trim"]),
        ([STORY[1], STORY[3]], (1, 0), ["unknown"]),
        # a success shows that every module that started has ended
        ([*STORY[:2], ExecutionCompleted(E1, "my-pipeline", True, 15.0, T0 + 15 * MS)], (0, 1), ["Trim"]),
        # what runs when its execution fails or is cancelled may have no end
        ([*STORY[:3], *STORY[4:]], (0, 1), []),
        ([*STORY[:2], ExecutionCancelled(E1, "my-pipeline", T0 + 7 * MS)], (0, 1), []),
        # what is open at the end may still get one
        ([*STORY[:2]], (1, 1), []),
    ],
)
def test_what_never_came_is_counted_and_told_where_it_is_a_loss(
    events: list[Event], counted: tuple[int, int], lost: list[str]
) -> None:
    told: list[Span] = []
    assembler = Assembler(settle=1, on_loss=told.append)
    spans = [span for event in events for span in assembler.add(event, 0)] + assembler.finish()
    assert (assembler.counters.incomplete_executions, assembler.counters.incomplete_modules) == counted
    assert sum("constellation.missing" in span.attributes for span in spans) == sum(counted)
    assert [span.name for span in told] == lost
    assert all(span in spans for span in told)


@pytest.mark.parametrize(
    ("options", "lost"), [({"idle_timeout": 1}, ["my-pipeline"]), ({"max_age": 1}, []), ({"max_open": 1}, [])]
)
def test_an_execution_without_an_end_is_a_loss_where_it_was_silent(options: dict[str, int], lost: list[str]) -> None:
    told: list[Span] = []
    assembler = Assembler(on_loss=told.append, **options)
    assembler.add(STORY[0], 0)
    assembler.add(STORY[1], 0)
    assembler.advance(SECOND)
    assert (assembler.counters.incomplete_executions, assembler.counters.incomplete_modules) == (1, 1)
    assert [span.name for span in told] == lost


def test_a_cancellation_without_a_start_has_no_length() -> None:
    (execution,) = assemble([ExecutionCancelled(E1, "my-pipeline", T0)])
    assert (execution.start_ns, execution.end_ns) == (T0, T0)


def test_an_end_before_its_start_gives_no_negative_length() -> None:
    spans = assemble([STORY[0], ModuleStarted(E1, M3, "W", T0 + 9), ModuleFailed(E1, M3, "W", BOOM, T0 + 4)], settle=1)
    assert [(span.start_ns, span.end_ns) for span in spans] == [(T0 + 4, T0 + 4), (T0, T0)]


def test_the_callers_span_is_the_parent_and_its_trace_the_trace() -> None:
    start = ExecutionStarted(E1, "my-pipeline", T0, PARENT, "vendor=1")
    spans = assemble([start, *STORY[1:]])
    assert {(span.trace_id, span.trace_state, span.trace_flags) for span in spans} == {
        (0x0AF7651916CD43DD8448EB211C80319C, "vendor=1", 1)
    }
    assert [span.parent_span_id for span in spans] == [span_id_of(E1)] * 3 + [0xB7AD6B7169203331]
    assert spans[-1].kind is SpanKind.INTERNAL


def test_a_trace_context_that_is_no_trace_context_is_left_out_and_counted() -> None:
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


@pytest.mark.parametrize("duration_ms", [-1.0, nan, float("inf"), 1e30, 2e12])
def test_a_duration_that_cannot_be_one_is_left_out_and_counted(duration_ms: float) -> None:
    assembler = Assembler()
    for event in STORY[:2]:
        assembler.add(event, 0)
    (trim,) = assembler.add(ModuleCompleted(E1, M1, "Trim", duration_ms, T0 + 3 * MS), 0)
    assert trim == TRIM
    assert assembler.counters.corrected == 1


def test_a_completion_without_a_duration_runs_from_start_to_end() -> None:
    execution = the_execution([STORY[0], ExecutionCompleted(E1, "my-pipeline", True, None, T0 + 15 * MS)])
    assert (execution.start_ns, execution.end_ns) == (T0, T0 + 15 * MS)


@pytest.mark.parametrize(("name", "shown"), [("", "unknown"), ("a\x00\x1b[31mb", "a��[31mb"), ("\udc80", "�")])
def test_a_name_that_no_backend_can_hold_is_mended_and_counted(name: str, shown: str) -> None:
    assembler = Assembler()
    assembler.add(ExecutionStarted(E1, name, T0), 0)
    (execution,) = assembler.add(ExecutionCompleted(E1, name, True, 1.0, T0 + MS), 0)
    assert (execution.name, execution.attributes["constellation.dag.name"]) == (shown, shown)
    assert assembler.counters.corrected == 1


def test_the_second_of_two_starts_and_of_two_ends_is_a_duplicate() -> None:
    """As the engine's dashboard sends them: twice, with other timestamps."""
    doubled = [
        *STORY,
        ExecutionStarted(E1, "my-pipeline", T0 + 4),
        ExecutionCompleted(E1, "my-pipeline", False, 15.0, T0 + 16 * MS),
    ]
    assembler = Assembler(settle=1)
    for event in doubled:
        assembler.add(event, 0)
    assert assembler.advance(SECOND) == [TRIM, UPPERCASE, WORD_COUNT, EXECUTION]
    assert assembler.counters == Counters(events=10, executions=1, spans=4, duplicate=2)


def test_what_comes_after_its_span_has_left_is_late_and_never_exported_again() -> None:
    assembler = Assembler()
    for event in STORY[:4]:
        assembler.add(event, 0)
    assert assembler.add(STORY[3], 0) == []
    for event in STORY[4:]:
        assembler.add(event, 0)
    assert [assembler.add(event, 0) for event in STORY] == [[]] * 8
    assert assembler.counters == Counters(events=17, executions=1, spans=4, late=9)


def test_the_memory_of_settled_executions_is_bounded() -> None:
    assembler = Assembler(max_settled=1)
    for execution_id in (E1, E2):
        assembler.add(ExecutionCancelled(execution_id, "d", T0), 0)
    assert len(assembler.add(ExecutionCancelled(E1, "d", T0), 0)) == 1
    assert assembler.add(ExecutionCancelled(E1, "d", T0), 0) == []


@pytest.mark.parametrize(
    ("options", "at", "reason", "said"),
    [
        ({"idle_timeout": 2.0}, 2 * SECOND, "idle", "no event for the idle time"),
        ({"max_age": 2.0}, 2 * SECOND, "age", "open beyond the maximum age"),
        ({}, None, "closed", "the source ended"),
    ],
)
def test_nothing_waits_for_ever(options: dict[str, float], at: int | None, reason: str, said: str) -> None:
    assembler = Assembler(**options)  # type: ignore[arg-type]
    for event in STORY[:2]:
        assembler.add(event, 0)
    if at is None:
        spans = assembler.finish()
    else:
        assert assembler.deadline_ns == at
        assert assembler.advance(at - 1) == []
        spans = assembler.advance(at)
    trim, execution = spans
    assert trim.attributes["constellation.outcome"] == "unknown"
    assert execution == msgspec.structs.replace(
        EXECUTION,
        end_ns=T0,
        attributes={
            "constellation.execution.id": str(E1),
            "constellation.dag.name": "my-pipeline",
            "constellation.abandoned.reason": reason,
            "constellation.outcome": "abandoned",
            "constellation.missing": ("end",),
        },
        status_description=f"abandoned without an end: {said}",
    )
    assert assembler.counters.abandoned == 1
    assert (assembler.open_executions, assembler.open_modules) == (0, 0)


def test_an_event_starts_the_idle_time_anew_but_not_the_age() -> None:
    assembler = Assembler(idle_timeout=2, max_age=3)
    assembler.add(STORY[0], 0)
    assembler.add(STORY[1], 3 * SECOND // 2)
    assert assembler.advance(2 * SECOND) == []
    assert assembler.deadline_ns == 3 * SECOND
    assert assembler.advance(3 * SECOND)[-1].attributes["constellation.abandoned.reason"] == "age"


def test_an_abandoned_execution_of_which_only_modules_are_known_stands_at_their_first_event() -> None:
    trim, execution = assemble([ModuleStarted(E1, M1, "Trim", T0 + 5), ModuleCompleted(E1, M1, "Trim", 2.0, T0 + 9)])
    assert (trim.name, trim.attributes["constellation.dag.name"]) == ("Trim", "unknown")
    assert (execution.name, execution.start_ns, execution.end_ns) == ("unknown", T0 + 5, T0 + 5)
    assert execution.attributes["constellation.missing"] == ("start", "end")
    anonymous = the_execution([ModuleStarted(E1, None, "Trim", T0 + 5)])
    assert (anonymous.start_ns, anonymous.end_ns) == (T0 + 5, T0 + 5)


def test_memory_is_bounded_under_executions_that_never_end() -> None:
    assembler = Assembler(max_open=100)
    left = 0
    rng = random.Random(7)
    for number in range(5_000):
        execution_id = UUID(int=rng.getrandbits(128))
        left += len(assembler.add(ExecutionStarted(execution_id, "d", T0 + number), number))
        left += len(assembler.add(ModuleStarted(execution_id, M1, "m", T0 + number), number))
        left += len(assembler.add(ModuleStarted(execution_id, None, "m", T0 + number), number))
        assert assembler._held <= 100
        assert assembler.open_executions <= 50
    assert left + len(assembler.finish()) == 15_000
    assert (assembler._held, assembler.open_modules, assembler._due) == (0, 0, [])


def test_the_execution_that_was_silent_longest_makes_room() -> None:
    assembler = Assembler(max_open=2)
    assembler.add(ExecutionStarted(E1, "first", T0), 0)
    assembler.add(ExecutionStarted(E2, "second", T0), 1)
    assembler.add(ExecutionStarted(E1, "first", T0), 2)
    (evicted,) = assembler.add(ExecutionStarted(M1, "third", T0), 3)
    assert (evicted.name, evicted.attributes["constellation.abandoned.reason"]) == ("second", "capacity")


def test_open_modules_are_counted_while_they_run() -> None:
    assembler = Assembler(settle=1)
    counts = []
    for event in STORY:
        assembler.add(event, 0)
        counts.append(assembler.open_modules)
    assert counts == [0, 1, 2, 1, 0, 1, 0, 0]


def test_an_earlier_start_that_comes_after_a_module_has_left_is_late_and_does_not_part_the_trace() -> None:
    assembler = Assembler(settle=1)
    for event in STORY[:4]:
        assembler.add(event, 0)
    (trim,) = assembler.advance(SECOND)
    assembler.add(ExecutionStarted(E1, "my-pipeline", T0 - MS, PARENT), SECOND)
    assembler.add(STORY[-1], SECOND)
    *_, execution = assembler.advance(2 * SECOND)
    assert trim.trace_id == execution.trace_id == trace_id_of(E1)
    assert (execution.start_ns, execution.parent_span_id) == (T0, None)
    assert assembler.counters.late == 1


def test_what_was_due_of_an_execution_that_has_left_does_not_touch_one_of_the_same_id() -> None:
    for last in (ModuleCompleted(E1, M1, "Trim", 2.0, T0), ExecutionCompleted(E1, "d", True, 1.0, T0)):
        assembler = Assembler(settle=1, max_open=3, max_settled=1)
        assembler.add(last, 0)
        while assembler.is_open(E1):
            assembler.add(ExecutionStarted(UUID(int=assembler.counters.events), "d", T0), 0)
        assembler.add(ExecutionStarted(M2, "d", T0), 0)
        assembler.add(ExecutionCancelled(M2, "d", T0), 0)
        settled = assembler.add(ExecutionStarted(M3, "d", T0), 0) + assembler.advance(SECOND)
        assert E1 not in assembler._settled
        assert settled
        assembler.add(ExecutionStarted(E1, "my-pipeline", T0), SECOND)
        assembler.add(ModuleStarted(E1, M1, "Trim", T0), SECOND)
        assert assembler.advance(40 * SECOND) == []
        assert assembler.is_open(E1)


def test_a_long_execution_of_many_modules_one_after_another_holds_only_what_is_open() -> None:
    assembler = Assembler(max_open=10, max_settled=100)
    assembler.add(STORY[0], 0)
    rng = random.Random(3)
    for number in range(3_000):
        module_id = UUID(int=rng.getrandbits(128))
        assembler.add(ModuleStarted(E1, module_id, "m", T0 + number), number)
        assert len(assembler.add(ModuleFailed(E1, module_id, "m", BOOM, T0 + number), number)) == 1
    assert (assembler._held, len(assembler._left), assembler.counters.abandoned) == (1, 100, 0)
    assert assembler.add(ModuleStarted(E1, module_id, "m", T0), 0) == []
    assert assembler.counters.late == 1
    (execution,) = assembler.add(STORY[-1], 3_000)
    assert execution.status_description == "m failed: too many words"


def test_memory_is_bounded_where_spans_settle_too() -> None:
    assembler = Assembler(settle=1, max_open=100)
    rng = random.Random(11)
    for number in range(5_000):
        assembler.add(ExecutionCompleted(UUID(int=rng.getrandbits(128)), "d", True, 1.0, T0), number)
        assert assembler._held <= 100
        assert len(assembler._due) <= 4 * 101 + 1_024


def test_a_flood_of_duplicates_does_not_grow_what_is_due() -> None:
    assembler = Assembler(settle=1)
    modules = [UUID(int=number + 1) for number in range(100)]
    for module_id in modules:
        assembler.add(ModuleCompleted(E1, module_id, "m", 1.0, T0), 0)
    for _ in range(1_000):
        assembler.add(STORY[0], 0)
        assembler.add(STORY[-1], 0)
    assert len(assembler._due) <= 2 * len(modules) + 2
    assert len(assembler.advance(SECOND)) == 101


def test_what_is_due_is_forgotten_when_nothing_is_open() -> None:
    assembler = Assembler(settle=1)
    for event in STORY:
        assembler.add(event, 0)
    assembler.finish()
    assert (assembler._due, assembler.deadline_ns) == ([], None)


def test_the_deadline_is_the_first_of_settling_idleness_and_age() -> None:
    assembler = Assembler(settle=3, idle_timeout=2, max_age=4)
    assembler.add(STORY[0], 0)
    assert assembler.deadline_ns == 2 * SECOND
    assembler.add(STORY[-1], SECOND)
    assert assembler.deadline_ns == 3 * SECOND
    assembler = Assembler(settle=1, idle_timeout=2, max_age=4)
    for event in STORY:
        assembler.add(event, 0)
    assert assembler.deadline_ns == SECOND


def test_what_is_discarded_was_never_told_and_may_be_told_again_whole() -> None:
    """As when another process takes a partition over, and gives it back."""
    assembler = Assembler()
    for event in STORY[:4]:
        assembler.add(event, 0)
    assembler.discard(E1)
    assembler.discard(E2)
    assert (assembler.open_executions, assembler.open_modules, assembler.deadline_ns) == (0, 0, None)
    assert [span for event in STORY for span in assembler.add(event, 0)] == [TRIM, UPPERCASE, WORD_COUNT, EXECUTION]
    assert assembler.counters.late == 0


def test_finishing_without_abandoning_lets_only_what_has_ended_leave() -> None:
    assembler = Assembler(settle=1)
    for event in [*STORY, ExecutionStarted(E2, "other", T0)]:
        assembler.add(event, 0)
    assert assembler.finish(abandon=False) == [TRIM, UPPERCASE, WORD_COUNT, EXECUTION]
    assert assembler.open_executions == 1
    assert assembler.counters.abandoned == 0


def test_eviction_takes_the_execution_that_was_silent_longest_and_nothing_where_nothing_is_open() -> None:
    assembler = Assembler()
    assert assembler.evict() == []
    for execution_id in (E1, E2, E1):
        assembler.add(ExecutionStarted(execution_id, "dag", T0), 0)
    (execution,) = assembler.evict()
    assert execution.attributes["constellation.execution.id"] == str(E2)
    assert execution.attributes["constellation.abandoned.reason"] == "capacity"


def test_eviction_takes_an_execution_that_has_ended_before_one_that_is_only_silent() -> None:
    assembler = Assembler(settle=60)
    for event in (ExecutionStarted(E1, "silent", T0), ExecutionCancelled(E2, "ended", T0)):
        assembler.add(event, 0)
    assert [span.name for span in assembler.evict()] == ["ended"]


def test_an_execution_that_is_unsettled_may_be_told_again() -> None:
    assembler = Assembler()
    first = [span for event in STORY for span in assembler.add(event, 0)]
    assembler.unsettle(E1)
    assert [span for event in STORY for span in assembler.add(event, 0)] == first
    assembler.unsettle(E2)


def test_one_event_may_have_to_make_room_twice() -> None:
    assembler = Assembler(max_open=100)
    for number in range(100):
        assembler.add(ExecutionStarted(UUID(int=number), "d", T0), number)
    for number in range(100, 200):
        assembler.add(ModuleStarted(UUID(int=number), M1, "m", T0), number)
        assert assembler._held <= 100


def test_an_error_type_from_a_wire_is_mended_wherever_it_is_shown() -> None:
    error = ErrorInfo("\ud800" + "x" * 10_000, "why")
    module, execution = assemble([STORY[0], ModuleFailed(E1, M1, "W", error, T0), STORY[-1]])
    shown = "\N{REPLACEMENT CHARACTER}" + "x" * 1_023
    assert module.attributes["error.type"] == execution.attributes["error.type"] == shown
    assert module.events[0].attributes["exception.type"] == shown


def test_a_bad_name_is_counted_once_for_each_span_that_it_names() -> None:
    assembler = Assembler()
    assembler.add(ExecutionStarted(E1, "", T0), 0)
    for module_id in (M1, M2):
        assembler.add(ModuleCompleted(E1, module_id, "m", 1.0, T0), 0)
    assembler.add(ExecutionCompleted(E1, "", True, 1.0, T0), 0)
    assert assembler.counters.corrected == 1


@pytest.mark.parametrize(
    "options",
    [{"settle": -1.0}, {"max_open": 0}, {"max_settled": 0}, {"idle_timeout": 0.0}, {"max_age": 0.0}],
)
def test_an_option_out_of_its_range_is_refused_with_its_value(options: dict[str, float]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Assembler(**options)  # type: ignore[arg-type]


# --- executions without module ids ---------------------------------------------------------------------------------


def anonymous_story() -> list[Event]:
    """What the guide's own listener writes: one module name twice, overlapping."""
    return [
        ExecutionStarted(E1, "my-pipeline", T0),
        ModuleStarted(E1, None, "Trim", T0 + 1 * MS),
        ModuleStarted(E1, None, "Trim", T0 + 2 * MS),
        ModuleFailed(E1, None, "Trim", BOOM, T0 + 5 * MS),
        ModuleCompleted(E1, None, "Trim", 4.0, T0 + 6 * MS),
        ModuleCompleted(E1, None, "Lost", 1.0, T0 + 7 * MS),
        ExecutionCompleted(E1, "my-pipeline", False, 15.0, T0 + 15 * MS),
    ]


def test_an_end_without_an_id_pairs_with_the_oldest_open_start_of_its_name() -> None:
    first, second, lost, execution = assemble(anonymous_story())
    assert [span.span_id for span in (first, second, lost)] == [
        span_id_of(E1, anonymous_module_id(E1, "Trim", 0)),
        span_id_of(E1, anonymous_module_id(E1, "Trim", 1)),
        span_id_of(E1, anonymous_module_id(E1, "Lost", 0)),
    ]
    assert (first.start_ns, first.end_ns) == (T0 + 1 * MS, T0 + 5 * MS)
    assert (second.start_ns, second.end_ns) == (T0 + 2 * MS, T0 + 6 * MS)
    assert second.attributes == {
        "constellation.execution.id": str(E1),
        "constellation.dag.name": "my-pipeline",
        "constellation.module.name": "Trim",
        "constellation.outcome": "success",
    }
    assert lost.attributes["constellation.missing"] == ("start",)
    assert execution.status_description == "Trim failed: too many words"


def test_an_execution_without_module_ids_leaves_whole_when_it_has_ended() -> None:
    assembler = Assembler()
    assert [len(assembler.add(event, 0)) for event in anonymous_story()] == [0, 0, 0, 0, 0, 0, 4]


@given(st.permutations(range(7)), st.lists(st.integers(0, 6), max_size=5))
def test_with_positions_neither_order_nor_repetition_matters_without_module_ids(
    order: list[int], repeated: list[int]
) -> None:
    story = anonymous_story()
    expected = assemble(story)
    assembler = Assembler(settle=1)
    for position in [*order, *repeated]:
        assembler.add(story[position], 0, position)
    assert assembler.advance(SECOND) == expected


# --- the law -------------------------------------------------------------------------------------------------------

names = st.sampled_from(["Trim", "Uppercase", "WordCount", "", "Ünïcode ☃"])
instants = st.integers(T0, T0 + 50)
durations = st.sampled_from([0.0, 0.5, 2.0, 1234.567891])
errors = st.sampled_from([BOOM, ErrorInfo(None, None), ErrorInfo("E", "\ud800 lone")])
parents = st.sampled_from([None, PARENT, "junk"])


@st.composite
def stories(draw: st.DrawFn) -> list[Event]:
    """One execution's events as an engine might send them: lost, doubled, failed, cancelled, parallel."""
    events: list[Event] = []
    dag = draw(names)
    twice = st.integers(0, 2)
    events.extend(ExecutionStarted(E1, dag, draw(instants), draw(parents)) for _ in range(draw(twice)))
    for module_id in draw(st.lists(st.uuids(version=4), max_size=4, unique=True)):
        name = draw(names)
        events.extend(ModuleStarted(E1, module_id, name, draw(instants)) for _ in range(draw(twice)))
        for _ in range(draw(twice)):
            if draw(st.booleans()):
                events.append(ModuleCompleted(E1, module_id, name, draw(durations), draw(instants)))
            else:
                events.append(ModuleFailed(E1, module_id, name, draw(errors), draw(instants)))
    for _ in range(draw(twice)):
        if draw(st.booleans()):
            events.append(ExecutionCompleted(E1, dag, draw(st.booleans()), draw(durations), draw(instants)))
        else:
            events.append(ExecutionCancelled(E1, dag, draw(instants)))
    return events


def bytes_of(spans: list[Span]) -> list[str]:
    return sorted(map(repr, spans))


@settings(max_examples=400)
@given(stories(), st.randoms(use_true_random=False))
def test_no_permutation_and_no_duplication_before_settling_changes_a_byte(
    story: list[Event], rng: random.Random
) -> None:
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


def in_order(story: list[Event]) -> list[Event]:
    """As an ordered source tells it: nothing twice, each start before what it starts, the end last."""
    first: dict[tuple[object, object], Event] = {}
    for event in story:
        is_start = isinstance(event, ExecutionStarted | ModuleStarted)
        first.setdefault((getattr(event, "module_id", None), is_start), event)
    return sorted(
        first.values(),
        key=lambda event: (
            not isinstance(event, ExecutionStarted),
            isinstance(event, ExecutionCompleted | ExecutionCancelled),
            not isinstance(event, ModuleStarted),
        ),
    )


@given(stories())
def test_an_ordered_source_s_spans_are_the_same_whether_they_settle_or_leave_at_once(story: list[Event]) -> None:
    events = in_order(story)
    at_once, settled = assemble(events), assemble(events, settle=1)
    assert bytes_of(at_once) == bytes_of(settled)


@given(stories(), st.integers(0, 2**30), st.randoms(use_true_random=False))
def test_no_events_are_lost_from_the_counts_however_time_passes(
    story: list[Event], room: int, rng: random.Random
) -> None:
    """Identified and anonymous modules mixed, spans leaving between events, evictions: never a span twice."""
    mixed = [
        msgspec.structs.replace(event, module_id=None) if hasattr(event, "module_id") and rng.random() < 0.3 else event
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
    assert (assembler._held, assembler.open_modules, assembler.deadline_ns) == (0, 0, None)


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


def test_events_and_spans_of_a_long_execution_are_visible_while_it_runs() -> None:
    assembler = Assembler()
    assembler.add(STORY[0], 0)
    for number in range(1000):
        module_id = UUID(int=number + 1)
        assembler.add(ModuleStarted(E1, module_id, "m", T0 + number), number)
        assert len(assembler.add(ModuleCompleted(E1, module_id, "m", 0.0, T0 + number), number)) == 1
    assert assembler.counters.spans == 1000
