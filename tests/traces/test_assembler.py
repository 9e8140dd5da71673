"""When a span is emitted, what is counted, and that nothing stays open for ever."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID

import msgspec
import pytest

from constellation_otel.events import (
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
)
from constellation_otel.traces import Assembler, Counters, Span
from constellation_otel.traces.ids import trace_id_of
from stories import (
    BOOM,
    E1,
    E2,
    EXECUTION,
    M1,
    M2,
    M3,
    MS,
    PARENT,
    SECOND,
    STORY,
    T0,
    TRIM,
    UPPERCASE,
    WORD_COUNT,
    anonymous_story,
)
from support import UNWATCHED


def test_spans_of_an_ordered_source_are_emitted_with_their_end() -> None:
    assembler = Assembler()
    emitted = [[span.name for span in assembler.add(event, 0)] for event in STORY]
    assert emitted == [[], [], [], ["Trim"], ["Uppercase"], [], ["WordCount"], ["my-pipeline"]]


def test_spans_of_an_unordered_source_are_emitted_once_settled() -> None:
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


def test_no_span_is_emitted_before_the_start_is_known() -> None:
    """The start carries the DAG's name and the parent."""
    assembler = Assembler(settle=1)
    for event in STORY[1:]:
        assembler.add(event, 0)
    assert assembler.advance(5 * SECOND) == []
    assert assembler.add(STORY[0], 6 * SECOND) == []
    assert assembler.advance(7 * SECOND) == [TRIM, UPPERCASE, WORD_COUNT, EXECUTION]


def test_modules_of_an_ordered_source_wait_for_a_late_start() -> None:
    assembler = Assembler()
    assert [assembler.add(event, 0) for event in STORY[1:4]] == [[], [], []]
    assert assembler.add(STORY[0], 0) == [TRIM]


def test_an_ended_execution_waits_for_its_start_for_a_while() -> None:
    """Thirty times ``settle`` after its last event."""
    assembler = Assembler(settle=1)
    assembler.add(ExecutionCompleted(E1, "my-pipeline", True, 5.0, T0), 0)
    assembler.add(ModuleCompleted(E1, M1, "Trim", 2.0, T0), 10 * SECOND)
    assert assembler.advance(30 * SECOND) == []
    assert [span.name for span in assembler.advance(40 * SECOND)] == ["Trim", "my-pipeline"]


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
def test_missing_events_are_counted_and_reported_as_losses(
    events: list[Event], counted: tuple[int, int], lost: list[str]
) -> None:
    """A loss is what other events show to have been there."""
    reported: list[Span] = []
    assembler = Assembler(settle=1, on_loss=reported.append)
    spans = [span for event in events for span in assembler.add(event, 0)] + assembler.finish()
    assert (assembler.counters.incomplete_executions, assembler.counters.incomplete_modules) == counted
    assert sum("constellation.missing" in span.attributes for span in spans) == sum(counted)
    assert [span.name for span in reported] == lost
    assert all(span in spans for span in reported)


@pytest.mark.parametrize(
    ("options", "lost"), [({"idle_timeout": 1}, ["my-pipeline"]), ({"max_age": 1}, []), ({"max_open": 1}, [])]
)
def test_an_execution_without_an_end_is_a_loss_if_it_was_silent(options: dict[str, Any], lost: list[str]) -> None:
    reported: list[Span] = []
    assembler = Assembler(on_loss=reported.append, **options)
    assembler.add(STORY[0], 0)
    assembler.add(STORY[1], 0)
    assembler.advance(SECOND)
    assert (assembler.counters.incomplete_executions, assembler.counters.incomplete_modules) == (1, 1)
    assert [span.name for span in reported] == lost


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


def test_events_after_their_span_are_late_and_not_exported_again() -> None:
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
def test_an_execution_without_an_end_is_abandoned_with_a_reason(
    options: dict[str, float], at: int | None, reason: str, said: str
) -> None:
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
        end_ns=T0 + MS,
        duration_ns=None,
        attributes={
            "constellation.execution.id": str(E1),
            "constellation.dag.name": "my-pipeline",
            "constellation.abandoned.reason": reason,
            "constellation.outcome": "abandoned",
            "constellation.missing": "end",
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


@UNWATCHED
def test_memory_is_bounded_under_executions_that_never_end() -> None:
    assembler = Assembler(max_open=100)
    emitted = 0
    rng = random.Random(7)
    for number in range(5_000):
        execution_id = UUID(int=rng.getrandbits(128))
        emitted += len(assembler.add(ExecutionStarted(execution_id, "d", T0 + number), number))
        emitted += len(assembler.add(ModuleStarted(execution_id, M1, "m", T0 + number), number))
        emitted += len(assembler.add(ModuleStarted(execution_id, None, "m", T0 + number), number))
        assert assembler.held <= 100
        assert assembler.open_executions <= 50
    assert emitted + len(assembler.finish()) == 15_000
    assert (assembler.held, assembler.open_modules, assembler._due) == (0, 0, [])


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


def test_a_start_after_a_modules_span_does_not_split_the_trace() -> None:
    """Also an earlier one: it is late."""
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


def test_a_modules_end_from_the_future_holds_up_no_other() -> None:
    """As a replay adds them: each with its own time."""
    assembler = Assembler(settle=1)
    for event, at in zip(STORY[:7], (0, 1, 2, 900 * SECOND, 5, 6, 400 * SECOND), strict=True):
        assembler.add(event, at)
    assert assembler.advance(SECOND + 5) == [UPPERCASE]
    assert assembler.advance(401 * SECOND) == [WORD_COUNT]
    assert assembler.advance(901 * SECOND) == [TRIM]


def test_what_was_due_of_an_emitted_execution_is_forgotten() -> None:
    """An execution of the same id that comes later is not emitted by it."""
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


def test_a_long_execution_holds_only_the_modules_that_are_open() -> None:
    assembler = Assembler(max_open=10, max_settled=100)
    assembler.add(STORY[0], 0)
    rng = random.Random(3)
    for number in range(3_000):
        module_id = UUID(int=rng.getrandbits(128))
        assembler.add(ModuleStarted(E1, module_id, "m", T0 + number), number)
        assert len(assembler.add(ModuleFailed(E1, module_id, "m", BOOM, T0 + number), number)) == 1
    assert (assembler.held, len(assembler._emitted), assembler.counters.abandoned) == (1, 100, 0)
    assert assembler.add(ModuleStarted(E1, module_id, "m", T0), 0) == []
    assert assembler.counters.late == 1
    (execution,) = assembler.add(STORY[-1], 3_000)
    assert execution.status_description == "m failed: too many words"


def test_modules_emitted_together_are_forgotten_in_order() -> None:
    assembler = Assembler(settle=1, max_settled=2)
    for module_id in (M1, M2, M3):
        assembler.add(ModuleStarted(E1, module_id, "m", T0), 0)
        assembler.add(ModuleCompleted(E1, module_id, "m", 1.0, T0 + MS), 0)
    assembler.add(STORY[0], 0)
    assert len(assembler.advance(SECOND)) == 3
    for module_id in (M1, M2, M3):
        assembler.add(ModuleStarted(E1, module_id, "m", T0), SECOND)
    assert (assembler.counters.late, assembler.open_modules) == (2, 1)


def test_an_event_that_cannot_be_taken_in_costs_no_other() -> None:
    """By a defect: nothing that was validated is known to bring it about."""
    odd: Any = object()
    start, *others = STORY
    events = [start, ModuleStarted(E1, odd, "m", T0), ModuleStarted(odd, M1, "m", T0), *others]
    assembler = Assembler()
    taken: list[Any] = [*assembler.take(events, [0] * len(events), range(len(events)))]
    assert [(stop, type(spans)) for _, stop, spans in taken[:3]] == [
        (1, tuple),
        (2, AttributeError),
        (3, AttributeError),
    ]
    assert [execution is None for execution, _, _ in taken[:4]] == [False, False, True, False]
    assert [span for *_, spans in taken[3:] for span in spans] == [TRIM, UPPERCASE, WORD_COUNT, EXECUTION]
    with pytest.raises(AttributeError):
        assembler.add(events[2], 0)


def test_memory_is_bounded_where_spans_settle_too() -> None:
    assembler = Assembler(settle=1, max_open=100)
    rng = random.Random(11)
    for number in range(5_000):
        assembler.add(ExecutionCompleted(UUID(int=rng.getrandbits(128)), "d", True, 1.0, T0), number)
        assert assembler.held <= 100
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


def test_a_discarded_execution_may_be_assembled_again_whole() -> None:
    """As when another process takes a partition over, and gives it back."""
    assembler = Assembler()
    for event in STORY[:4]:
        assembler.add(event, 0)
    (execution,) = assembler.executions
    assembler.discard(execution)
    assert (assembler.open_executions, assembler.open_modules, assembler.deadline_ns) == (0, 0, None)
    assert [span for event in STORY for span in assembler.add(event, 0)] == [TRIM, UPPERCASE, WORD_COUNT, EXECUTION]
    assert assembler.counters.late == 0


def test_of_two_starts_before_any_span_the_earlier_one_counts() -> None:
    assembler = Assembler()
    assembler.add(ModuleStarted(E1, M1, "m", T0), 0)
    for at, name in ((5, "later"), (3, "earlier")):
        assembler.add(ExecutionStarted(E1, name, at), 0)
    (*_, span) = assembler.add(ExecutionCompleted(E1, "earlier", True, None, T0), 0)
    assert (span.name, span.start_ns, assembler.counters.late, assembler.counters.duplicate) == ("earlier", 3, 0, 1)


def test_open_executions_of_a_restarted_engine_are_abandoned() -> None:
    assembler = Assembler(settle=1)
    assembler.add(ExecutionStarted(E1, "my-pipeline", T0), 0)
    assembler.add(ExecutionStarted(E2, "ended", T0), 0)
    assembler.add(ExecutionCancelled(E2, "ended", T0 + MS), 0)
    first, _ = assembler.executions
    (abandoned,) = assembler.emit(first, "engine_restarted")
    assert abandoned.attributes["constellation.abandoned.reason"] == "engine_restarted"
    assert abandoned.status_description == "abandoned without an end: the engine was restarted"
    assert [span.name for span in assembler.advance(SECOND)] == ["ended"]
    assert assembler.counters.abandoned == 1


def test_finish_without_abandon_emits_only_what_has_ended() -> None:
    assembler = Assembler(settle=1)
    for event in [*STORY, ExecutionStarted(E2, "other", T0)]:
        assembler.add(event, 0)
    assert assembler.finish(abandon=False) == [TRIM, UPPERCASE, WORD_COUNT, EXECUTION]
    assert assembler.open_executions == 1
    assert assembler.counters.abandoned == 0


def test_eviction_takes_the_execution_that_was_silent_longest() -> None:
    """And nothing where nothing is open."""
    assembler = Assembler()
    assert assembler.evict() == []
    for execution_id in (E1, E2, E1):
        assembler.add(ExecutionStarted(execution_id, "dag", T0), 0)
    (execution,) = assembler.evict()
    assert execution.attributes["constellation.execution.id"] == str(E2)
    assert execution.attributes["constellation.abandoned.reason"] == "capacity"


def test_eviction_takes_an_ended_execution_before_a_silent_one() -> None:
    assembler = Assembler(settle=60)
    for event in (ExecutionStarted(E1, "silent", T0), ExecutionCancelled(E2, "ended", T0)):
        assembler.add(event, 0)
    assert [span.name for span in assembler.evict()] == ["ended"]


def test_an_unsettled_execution_makes_the_same_spans_again() -> None:
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
        assert assembler.held <= 100


@pytest.mark.parametrize(
    "options",
    [{"settle": -1.0}, {"max_open": 0}, {"max_settled": 0}, {"idle_timeout": 0.0}, {"max_age": 0.0}],
)
def test_an_option_out_of_its_range_is_refused_with_its_value(options: dict[str, float]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Assembler(**options)  # type: ignore[arg-type]


def test_an_execution_without_module_ids_is_emitted_when_it_ends() -> None:
    assembler = Assembler()
    assert [len(assembler.add(event, 0)) for event in anonymous_story()] == [0, 0, 0, 0, 0, 0, 4]


def test_a_long_executions_spans_are_emitted_while_it_runs() -> None:
    assembler = Assembler()
    assembler.add(STORY[0], 0)
    for number in range(1000):
        module_id = UUID(int=number + 1)
        assembler.add(ModuleStarted(E1, module_id, "m", T0 + number), number)
        assert len(assembler.add(ModuleCompleted(E1, module_id, "m", 0.0, T0 + number), number)) == 1
    assert assembler.counters.spans == 1000
