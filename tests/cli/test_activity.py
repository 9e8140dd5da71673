"""What a source's executions are doing: what runs, what has ended, what was lost."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from constellation_otel.cli.activity import WINDOW_S, Activity, Finished, Losses, Running, RunningModule
from constellation_otel.delivery import BatchBuilder, Position, Restarted, Revoked, Unreadable
from constellation_otel.events import (
    ErrorInfo,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
)
from deliveries import MS, T0, execution
from strategies import any_event

if TYPE_CHECKING:
    from constellation_otel.delivery import Batch
    from constellation_otel.events import Event

SECOND = 1_000 * MS
HOUR = 3_600 * SECOND
FIRST = UUID(int=1)
TRIM, WORDS = UUID(int=11), UUID(int=12)


def batch(*events: Event, origin: object = None, first: int = 0) -> Batch:
    gathered = BatchBuilder()
    for number, event in enumerate(events):
        gathered.add(event, first + number, origin)
    (made,) = gathered.items
    return made  # type: ignore[return-value] # events only


def ordered() -> Activity:
    return Activity(settle=0.0)


def running(activity: Activity, now_ns: int) -> tuple[Running, ...]:
    shown = activity.snapshot(now_ns, 100)
    assert shown.running_count == len(shown.running)
    return shown.running


def test_what_runs_has_its_modules_and_for_how_long() -> None:
    """An execution is silent since its last event."""
    activity = ordered()
    activity.add(
        [
            batch(
                ExecutionStarted(FIRST, "nightly", T0),
                ModuleStarted(FIRST, TRIM, "trim", T0 + SECOND),
                ModuleStarted(FIRST, WORDS, "words", T0 + 2 * SECOND),
                ModuleCompleted(FIRST, TRIM, "trim", 2_000.0, T0 + 3 * SECOND),
            )
        ],
        T0 + 3 * SECOND,
    )
    assert running(activity, T0 + 10 * SECOND) == (
        Running(FIRST, "nightly", 10 * SECOND, 7 * SECOND, 1, (RunningModule("words", 8 * SECOND),)),
    )


def test_modules_without_an_id_run_until_as_many_have_ended() -> None:
    activity = ordered()
    activity.add(
        [
            batch(
                ExecutionStarted(FIRST, "nightly", T0),
                ModuleStarted(FIRST, None, "trim", T0 + 1),
                ModuleStarted(FIRST, None, "trim", T0 + 2),
                ModuleCompleted(FIRST, None, "trim", 1.0, T0 + 3),
                ModuleFailed(FIRST, None, "words", ErrorInfo(None, None), T0 + 4),
            )
        ],
        T0 + 4,
    )
    assert running(activity, T0 + 12) == (Running(FIRST, "nightly", 12, 8, 2, (RunningModule("trim", 10),)),)


def test_an_execution_without_a_start_runs_since_its_first_event() -> None:
    """Its DAG is not known; a clock that is ahead gives no negative times."""
    activity = ordered()
    activity.add([batch(ModuleStarted(FIRST, TRIM, "trim", T0))], T0 - SECOND)
    assert running(activity, T0 - SECOND) == (Running(FIRST, "unknown", 0, 0, 0, (RunningModule("trim", 0),)),)
    assert running(activity, T0 + 5) == (Running(FIRST, "unknown", 5, 5, 0, (RunningModule("trim", 5),)),)


def test_an_end_is_told_once_with_what_failed() -> None:
    activity = ordered()
    end_ns = T0 + 4 * MS
    expected = Finished(FIRST, "dag-1", "failure", T0, end_ns, 1, "trim failed: bad")
    assert activity.add([batch(*execution(1, fails=True))], end_ns) == [expected]
    assert activity.add([batch(*execution(1, fails=True))], end_ns) == []
    shown = activity.snapshot(end_ns, 10)
    assert (shown.running, shown.running_count, shown.events) == ((), 0, 8)
    assert shown.failures == shown.slowest == (expected,)
    assert shown.finished == shown.outcomes == {"failure": 1}
    assert (shown.finished_per_minute, shown.losses) == (1, Losses())


def test_an_end_waits_for_what_may_still_come_where_the_order_is_not_kept() -> None:
    """It does not run meanwhile."""
    activity = Activity(settle=1.0)
    started, module, ended, end = execution(1)
    assert activity.add([batch(end, module, ended)], T0 + 4 * MS) == []
    assert running(activity, T0 + 4 * MS) == ()
    assert activity.add([batch(started)], T0 + 5 * MS) == []
    assert activity.advance(T0 + 5 * MS + SECOND - 1) == []
    done = activity.advance(T0 + 5 * MS + SECOND)
    assert [(it.outcome, it.modules, it.missing) for it in done] == [("success", 1, None)]
    assert activity.snapshot(T0, 10).losses == Losses()


def test_an_end_waits_as_long_where_the_clock_of_the_engine_is_late() -> None:
    activity = Activity(settle=1.0)
    now_ns = T0 + 30 * SECOND
    assert activity.add([batch(*execution(1))], now_ns) == []
    assert activity.advance(now_ns + SECOND - 1) == []
    assert [it.outcome for it in activity.advance(now_ns + SECOND)] == ["success"]


def test_what_waits_for_its_end_to_settle_is_told_at_the_end() -> None:
    """An execution without an end is not."""
    activity = Activity(settle=1.0)
    activity.add([batch(*execution(1), *execution(2)[:2])], T0 + 4 * MS)
    assert [it.dag_name for it in activity.finish(T0 + 4 * MS)] == ["dag-1"]
    assert [it.dag_name for it in running(activity, T0 + 4 * MS)] == ["dag-2"]


def test_a_module_that_settles_while_its_execution_runs_counts_for_it() -> None:
    activity = Activity(settle=1.0)
    activity.add([batch(*execution(1)[:3])], T0 + 3 * MS)
    assert activity.advance(T0 + 3 * SECOND) == []
    (done,) = [*activity.add([batch(execution(1)[3], first=3)], T0 + 3 * SECOND), *activity.finish(T0 + 3 * SECOND)]
    assert done.modules == 1


def test_rates_are_of_the_last_seconds_and_the_last_minute() -> None:
    """What has finished counts when it did; an event, when it came."""
    activity = ordered()
    for number in range(1, 6):
        activity.add([batch(*execution(number, start_ns=T0 - 50 * SECOND))], T0)
    activity.add([batch(*execution(9, start_ns=T0 - 100 * SECOND))], T0)
    shown = activity.snapshot(T0 + SECOND, 0)
    assert (shown.events_per_second, shown.finished_per_minute, shown.outcomes["success"]) == (2.4, 5, 6)
    shown = activity.snapshot(T0 + 12 * SECOND, 0)
    assert (shown.events_per_second, shown.finished_per_minute, shown.outcomes["success"]) == (0, 0, 6)
    shown = activity.snapshot(T0 + WINDOW_S * SECOND, 0)
    assert (shown.outcomes, shown.slowest, shown.finished) == (Counter(), (), {"success": 6})


def test_the_slowest_are_few_and_of_the_last_minutes() -> None:
    activity = ordered()
    for number in range(1, 20):
        end_ns = T0 + number * MS
        activity.add(
            [
                batch(
                    ExecutionStarted(UUID(int=number), "dag", T0),
                    ExecutionCompleted(UUID(int=number), "dag", True, None, end_ns),
                )
            ],
            T0 + SECOND,
        )
    slowest = activity.snapshot(T0 + SECOND, 0).slowest
    assert [it.duration_ns for it in slowest] == [19 * MS, 18 * MS, 17 * MS, 16 * MS, 15 * MS]


def test_the_last_failures_are_few_and_the_newest_first() -> None:
    activity = ordered()
    for number in range(1, 20):
        activity.add([batch(*execution(number, fails=True))], T0 + SECOND)
    assert [it.dag_name for it in activity.snapshot(T0 + SECOND, 0).failures] == [
        f"dag-{number}" for number in (19, 18, 17, 16, 15)
    ]


def test_what_has_long_finished_is_in_no_rate() -> None:
    activity = ordered()
    (done,) = activity.add([batch(*execution(1))], T0 + HOUR)
    shown = activity.snapshot(T0 + HOUR, 0)
    assert (done.outcome, shown.outcomes, shown.finished) == ("success", Counter(), {"success": 1})


def test_an_execution_that_was_left_without_an_end_long_ago_does_not_run() -> None:
    """Past events count as of their own time: one that others are an hour later than is given up."""
    activity = ordered()
    activity.add([batch(execution(1)[0])], T0 + 24 * HOUR)
    done = activity.add([batch(*execution(2, start_ns=T0 + 2 * HOUR), first=1)], T0 + 24 * HOUR)
    assert [(it.dag_name, it.outcome, it.missing) for it in done] == [
        ("dag-2", "success", None),
        ("dag-1", "abandoned", "end"),
    ]
    assert activity.snapshot(T0 + 24 * HOUR, 0).losses == Losses(abandoned=1)


def test_a_running_execution_is_given_up_after_an_hour_of_silence() -> None:
    """Time passes when everything is read; while nothing is open, it stands, for what comes may be of the past."""
    activity = ordered()
    assert activity.advance(T0 + 24 * HOUR) == []
    activity.add([batch(execution(1)[0])], T0)
    assert activity.advance(T0 + HOUR - 1) == []
    assert [it.outcome for it in activity.advance(T0 + HOUR)] == ["abandoned"]
    assert running(activity, T0 + HOUR) == ()


def test_a_restart_gives_up_what_came_before_it_in_its_part() -> None:
    """What has an end keeps it."""
    activity = Activity(settle=1.0)
    here = batch(*execution(1)[:2], *execution(2))
    elsewhere = batch(execution(3)[0], origin="other")
    later = batch(execution(4)[0], first=9)
    restarted = Restarted(Position(None, 6))
    finished = activity.add([here, elsewhere, later, restarted, Revoked(None)], T0 + SECOND)
    assert [(it.dag_name, it.outcome) for it in finished] == [("dag-1", "abandoned")]
    assert [it.dag_name for it in running(activity, T0 + SECOND)] == ["dag-3", "dag-4"]
    assert activity.snapshot(T0, 0).losses == Losses(restarts=1, abandoned=1)


def test_what_cannot_be_read_is_counted_with_the_last_reason() -> None:
    activity = ordered()
    bad = [Unreadable(b"x", reason, Position(None, at)) for at, reason in enumerate(("first", "last"))]
    activity.add(bad, T0)
    assert activity.snapshot(T0, 0).losses == Losses(unreadable=2, unreadable_reason="last")


def test_an_event_that_no_reader_would_give_costs_itself_only() -> None:
    activity = ordered()
    whole = batch(*execution(1), *execution(2)[:1])
    odd: Any = ModuleStarted(UUID(int=3), "no id", "odd", T0)  # type: ignore[arg-type] # the point
    whole.events.insert(2, odd)
    whole.offsets = range(6)
    assert [it.dag_name for it in activity.add([whole], T0 + SECOND)] == ["dag-1"]
    reason = "AttributeError: 'str' object has no attribute 'int'"
    assert activity.snapshot(T0, 0).losses == Losses(unreadable=1, unreadable_reason=reason)
    assert activity.snapshot(T0, 9).running_count == 2


def test_starts_and_ends_that_never_came_are_losses() -> None:
    activity = ordered()
    activity.add(
        [
            batch(
                ExecutionStarted(FIRST, "dag", T0),
                ModuleCompleted(FIRST, TRIM, "trim", 1.0, T0 + 1),
                ModuleStarted(FIRST, WORDS, "words", T0 + 1),
                ExecutionCompleted(FIRST, "dag", True, 1.0, T0 + 2),
                ExecutionCancelled(UUID(int=2), "dag", T0 + 2),
            )
        ],
        T0 + 2,
    )
    assert activity.snapshot(T0 + 2, 0).losses == Losses(executions=1, modules=2)


def test_what_the_source_says_of_its_losses_is_kept() -> None:
    activity = ordered()
    activity.lose(gaps=2, dropped=3)
    assert activity.snapshot(T0, 0).losses == Losses(gaps=2, dropped=3)


def test_no_more_is_held_than_it_may_be() -> None:
    """The execution that was silent longest is given up."""
    activity = Activity(settle=0.0, max_open=3)
    finished = activity.add([batch(*(execution(number)[0] for number in range(1, 6)))], T0)
    assert [(it.dag_name, it.outcome) for it in finished] == [("dag-1", "abandoned"), ("dag-2", "abandoned")]
    assert [it.dag_name for it in running(activity, T0)] == ["dag-3", "dag-4", "dag-5"]


def test_only_as_many_running_executions_are_shown_as_are_wanted() -> None:
    activity = ordered()
    activity.add([batch(*(execution(number)[0] for number in range(1, 6)))], T0)
    shown = activity.snapshot(T0, 2)
    assert ([it.dag_name for it in shown.running], shown.running_count) == (["dag-1", "dag-2"], 5)


def test_an_empty_batch_is_nothing() -> None:
    activity = ordered()
    empty = batch(*execution(1))
    empty.events, empty.offsets = [], []
    assert activity.add([empty], T0) == []
    assert activity.snapshot(T0, 1).events == 0


NAMES = st.sampled_from(["trim", "words"])
EVENTS = st.builds(
    lambda event, number, at_ns: replace(event, execution_id=UUID(int=number), timestamp_ns=at_ns),
    any_event(NAMES, st.none() | st.just(1.0), traceparents=st.nothing()),
    st.integers(1, 8),
    st.integers(T0 - 3 * HOUR, T0 + 3 * HOUR) | st.integers(0, 2**63 - 1),
)
RESTARTS = st.sampled_from([[], [Restarted(Position(None, 1 << 40))]])
STEPS = st.tuples(st.integers(0, 2 * HOUR), st.lists(EVENTS, max_size=8), RESTARTS, st.booleans())


@given(st.sampled_from([0.0, 1.0]), st.lists(STEPS, max_size=8))
def test_whatever_comes_in_whatever_order_stays_bounded_and_adds_up(
    settle: float, steps: list[tuple[int, list[Event], list[Restarted], bool]]
) -> None:
    """Each execution ends once, and what runs is what has not ended."""
    activity = Activity(settle=settle, max_open=6)
    now_ns, finished, events = T0, list[Finished](), 0
    for passed_ns, part, restarts, advances in steps:
        now_ns += passed_ns
        finished += activity.add([*([batch(*part, first=events)] if part else []), *restarts], now_ns)
        events += len(part)
        if advances:
            finished += activity.advance(now_ns)
        shown = activity.snapshot(now_ns, 100)
        assert shown.events == events
        assert shown.running_count == len(shown.running) <= 6
        assert not {it.execution_id for it in shown.running} & {it.execution_id for it in finished}
        assert shown.finished == Counter(it.outcome for it in finished)
        assert shown.outcomes <= shown.finished
        assert len(shown.failures) <= 5
        assert len(shown.slowest) <= 5
        assert len(activity._seconds) <= WINDOW_S
        assert all(it.duration_ns >= 0 for it in finished)
        assert all(it.elapsed_ns >= it.silent_ns >= 0 for it in shown.running)
        assert all(module.elapsed_ns >= 0 for it in shown.running for module in it.modules)
        assert len({it.execution_id for it in finished}) == len(finished)


@given(st.permutations([*execution(1), *execution(2, fails=True), *execution(3)[:2]]))
def test_the_order_of_events_does_not_matter_where_it_is_not_kept(events: list[Event]) -> None:
    activity = Activity(settle=1.0)
    finished = [*activity.add([batch(*events)], T0 + SECOND), *activity.advance(T0 + 60 * SECOND)]
    assert {(it.dag_name, it.outcome, it.modules, it.failure) for it in finished} == {
        ("dag-1", "success", 1, None),
        ("dag-2", "failure", 1, "trim failed: bad"),
    }
    assert [(it.dag_name, [m.name for m in it.modules]) for it in running(activity, T0)] == [("dag-3", ["trim"])]
    assert activity.snapshot(T0, 0).losses == Losses()
