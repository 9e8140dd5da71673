"""The way to one sink: what is sent, sent again, halved, refused, acknowledged and counted."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constellation_otel.delivery import DeadLetters, Position, Record, Rejection
from constellation_otel.delivery.sender import Backoff, Lane, LaneCounters, Trouble
from constellation_otel.delivery.transform import AssemblyStage, EventStage
from constellation_otel.errors import MisconfiguredError, RefusedError, UnavailableError
from constellation_otel.events import ModuleStarted, encode_json
from constellation_otel.traces import Assembler, span_id_of, trace_id_of
from deliveries import T0, ListSink, execution, records

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    """Time that passes on order."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Noted:
    """Keeps what was acknowledged; fails first, where that was ordered."""

    def __init__(self, *faults: Exception) -> None:
        self.positions: list[Position] = []
        self._faults = list(faults)

    def __call__(self, positions: Any) -> None:
        if self._faults:
            raise self._faults.pop(0)
        self.positions += positions

    @property
    def offsets(self) -> list[int]:
        return [position.offset for position in self.positions]


def event_lane(sink: ListSink, clock: Clock | None = None, **options: Any) -> Lane[Any]:
    return Lane(sink, EventStage(), clock=clock or Clock(), backoff=Backoff(jitter=lambda: 1.0), **options)


def span_lane(sink: ListSink, **options: Any) -> Lane[Any]:
    stage = AssemblyStage(Assembler())
    return Lane(sink, stage, clock=Clock(), backoff=Backoff(jitter=lambda: 1.0), **options)


def counted(lane: Lane[Any]) -> dict[str, int]:
    """The counters that are not zero."""
    counters = lane.counters
    found = {name: getattr(counters, name) for name in LaneCounters.__struct_fields__}
    assert found["received"] == found["delivered"] + found["rejected"] + found["revoked"] + found["held"]
    return {name: count for name, count in found.items() if count}


def test_events_are_sent_in_order_in_batches_and_acknowledged_when_they_are_safe() -> None:
    sink, noted = ListSink(max_batch=3), Noted()
    lane = event_lane(sink, acknowledge=noted)
    for record in records(execution(1)):
        lane.add(record)
    assert (lane.waiting, noted.offsets) == (4, [])
    assert lane.tick() is None
    assert (sink.items, sink.calls) == (execution(1), [3, 1])
    assert noted.offsets == [0, 1, 2, 3]
    assert counted(lane) == {"received": 4, "delivered": 4, "sent": 4}


def test_an_execution_is_acknowledged_with_the_last_of_its_spans() -> None:
    sink, noted = ListSink(takes="spans"), Noted()
    lane = span_lane(sink, acknowledge=noted)
    for record in records(execution(1)[:3]):
        lane.add(record)
    lane.tick()
    assert ([span.name for span in sink.items], noted.offsets) == (["trim"], [])
    assert counted(lane) == {"received": 3, "held": 3, "sent": 1}
    lane.add(records(execution(1), first=0)[3])
    lane.tick()
    assert ([span.name for span in sink.items], noted.offsets) == (["trim", "dag-1"], [0, 1, 2, 3])
    assert counted(lane) == {"received": 4, "delivered": 4, "sent": 2}


def test_what_could_not_be_sent_is_sent_again_after_a_pause_that_grows(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    sink, noted = ListSink(UnavailableError("away"), UnavailableError("away")), Noted()
    lane = event_lane(sink, clock, acknowledge=noted)
    lane.add(records(execution(1))[0])
    assert lane.tick() == 0.5
    assert lane.trouble == Trouble("away", 1_000.0, needs_mending=False)
    clock.now += 0.4
    assert lane.tick() == pytest.approx(0.1)
    clock.now += 0.1
    assert lane.tick() == 1.0
    assert lane.trouble == Trouble("away", 1_000.0, needs_mending=False)
    assert counted(lane) == {"received": 1, "held": 1, "retried": 1}
    clock.now += 1
    assert lane.tick() is None
    assert (sink.items, sink.calls, noted.offsets) == (execution(1)[:1], [1, 1, 1], [0])
    assert lane.trouble is None
    assert counted(lane) == {"received": 1, "delivered": 1, "sent": 1, "retried": 2}
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "list: away; 1 events are held, the next try is in 0.5 s"),
        ("INFO", "list: takes events again, after 1.5 s"),
    ]


def test_what_comes_while_the_sink_is_away_waits_its_turn() -> None:
    clock = Clock()
    sink = ListSink(UnavailableError("away"))
    lane = event_lane(sink, clock)
    first, *others = records(execution(1))
    lane.add(first)
    lane.tick()
    for record in others:
        lane.add(record)
    clock.now += 1
    lane.tick()
    assert (sink.items, sink.calls) == (execution(1), [1, 1, 3])


def test_the_pause_that_the_far_side_asks_for_is_kept() -> None:
    lane = event_lane(ListSink(UnavailableError("slow down", retry_after=17.0)))
    lane.add(records(execution(1))[0])
    assert lane.tick() == 17.0


def test_what_was_safe_all_the_same_is_not_sent_again() -> None:
    clock = Clock()
    sink, noted = ListSink(UnavailableError("half", delivered=frozenset({0, 2}))), Noted()
    lane = event_lane(sink, clock, acknowledge=noted)
    for record in records(execution(1)):
        lane.add(record)
    lane.tick()
    assert noted.offsets == [0, 2]
    clock.now += 1
    lane.tick()
    assert sink.calls == [4, 2]
    assert sorted(noted.offsets) == [0, 1, 2, 3]
    all_safe = event_lane(ListSink(UnavailableError("all", delivered=frozenset({0}))))
    all_safe.add(records(execution(1))[0])
    all_safe.tick()
    assert counted(all_safe) == {"received": 1, "delivered": 1, "sent": 1}


def test_what_only_somebody_can_mend_is_held_and_an_alarm(caplog: pytest.LogCaptureFixture) -> None:
    lane = event_lane(ListSink(MisconfiguredError("the password is wrong")))
    lane.add(records(execution(1))[0])
    lane.tick()
    assert lane.trouble == Trouble("the password is wrong", 1_000.0, needs_mending=True)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert counted(lane) == {"received": 1, "held": 1}


@pytest.mark.parametrize(("error", "reason"), [(RuntimeError("a defect"), "a defect"), (KeyError(), "KeyError")])
def test_a_sink_that_raises_what_it_may_not_loses_nothing_and_its_traceback_is_logged(
    error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    lane = event_lane(ListSink(error))
    lane.add(records(execution(1))[0])
    lane.tick()
    assert lane.trouble == Trouble(reason, 1_000.0, needs_mending=True)
    assert caplog.records[0].exc_info is not None
    assert counted(lane) == {"received": 1, "held": 1}


@pytest.mark.parametrize(
    "answer", [[Rejection(9, 1, "no")], [Rejection(-1, 1, "no")], [Rejection(None, 0, "no")], asyncio.CancelledError()]
)
def test_whatever_a_sink_answers_wrongly_loses_nothing_and_is_a_trouble(answer: Any) -> None:
    """It is a trouble where the sink answers so to every part of the batch, too."""
    clock = Clock()
    sink, noted = ListSink(*[answer] * 7), Noted()
    lane = event_lane(sink, clock, acknowledge=noted)
    for record in records(execution(1)):
        lane.add(record)
    lane.tick()
    assert lane.trouble is not None
    assert (lane.waiting, noted.offsets) == (4, [])
    clock.now += 1
    lane.tick()
    assert (lane.waiting, noted.offsets) == (0, [0, 1, 2, 3])
    assert lane.trouble is None


def test_a_sink_that_answers_nothing_has_taken_all() -> None:
    class Silent(ListSink):
        def send(self, items: Any, timeout: float) -> Any:
            super().send(items, timeout)

    lane = event_lane(Silent(max_batch=0))
    for record in records(execution(1)):
        lane.add(record)
    lane.tick()
    assert counted(lane) == {"received": 4, "delivered": 4, "sent": 4}


def test_a_sink_that_does_not_return_is_a_trouble() -> None:
    clock = Clock()
    seen: list[Any] = []

    def hang(items: Any) -> None:
        clock.now += 21
        seen.append(lane.trouble)

    lane = event_lane(ListSink(hang), clock, send_timeout=10)
    lane.add(records(execution(1))[0])
    lane.tick()
    assert [trouble and trouble.reason for trouble in seen] == [
        "it has not returned from a call whose timeout is long over"
    ]
    assert lane.trouble is None


def test_a_trace_that_is_not_sampled_is_counted_once() -> None:
    noted = Noted()
    stage = AssemblyStage(Assembler(settle=60), lambda span: None)
    lane: Lane[Any] = Lane(ListSink(takes="spans"), stage, acknowledge=noted)
    for record in records([*execution(1), *execution(2)[:2]]):
        lane.add(record)
    lane.finish()
    assert sorted(noted.offsets) == [0, 1, 2, 3, 4, 5]
    assert counted(lane) == {"received": 6, "delivered": 6}


def test_what_could_not_be_read_is_acknowledged_with_the_others() -> None:
    noted = Noted(UnavailableError("busy"))
    lane = event_lane(ListSink(), acknowledge=noted)
    lane.skip(Position(None, 7))
    lane.tick()
    lane.tick()
    assert noted.offsets == [7]


def test_the_end_tries_once_more_however_long_the_pause_was_to_be() -> None:
    sink = ListSink(UnavailableError("later", retry_after=3_000))
    lane: Lane[Any] = Lane(sink, EventStage())
    lane.add(records(execution(1))[0])
    lane.tick()
    lane.finish_by(lane._clock() + 1)
    lane.finish()
    assert (sink.calls, lane.waiting) == ([1, 1], 0)


def test_what_there_is_is_sent_in_the_time_that_is_left() -> None:
    clock = Clock()
    sink = ListSink(max_batch=1)
    lane = event_lane(sink, clock)
    for record in records(execution(1)):
        lane.add(record)
    assert lane.send_in_time()
    assert len(sink.items) == 4
    lane.finish_by(clock.now)
    lane.add(records(execution(1))[0])
    assert not lane.send_in_time()


def refuses(*bad: int) -> Any:
    """A far side that refuses every batch which has one of these executions, and does not say which."""

    def fault(items: Any) -> Exception | None:
        if any(item.execution_id.int in bad for item in items):
            return RefusedError("one of these is bad")
        return None

    return fault


@given(st.integers(1, 40), st.sets(st.integers(1, 40), max_size=3))
def test_a_refused_batch_is_halved_until_the_bad_ones_are_alone(count: int, bad: set[int]) -> None:
    sink, noted = ListSink(*[refuses(*bad)] * 500), Noted()
    lane = event_lane(sink, acknowledge=noted)
    events = [execution(number)[0] for number in range(1, count + 1)]
    for record in records(events):
        lane.add(record)
    lane.tick()
    here = {number for number in bad if number <= count}
    assert sink.items == [event for event in events if event.execution_id.int not in bad]
    assert sorted(noted.offsets) == list(range(count))
    counters = lane.counters
    assert (counters.delivered, counters.rejected, counters.refused) == (count - len(here), len(here), len(here))


def test_what_is_refused_is_logged_and_written_to_the_dead_letters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl")
    sink = ListSink([Rejection(1, 1, "no such thing")])
    lane = event_lane(sink, dead_letters=letters)
    for record in records(execution(1)[:3]):
        lane.add(record)
    lane.tick()
    assert sink.items == [execution(1)[0], execution(1)[2]]
    (line,) = (tmp_path / "dead.jsonl").read_text().splitlines()
    letter = json.loads(line)
    assert (letter["where"], letter["reason"]) == ("list", "no such thing")
    assert letter["data"] == encode_json(execution(1)[1]).decode()
    assert [record.getMessage() for record in caplog.records] == ["list refuses 1 items for good: no such thing"]
    assert counted(lane) == {
        "received": 3, "delivered": 2, "rejected": 1, "sent": 2, "refused": 1, "dead_lettered": 1,
    }  # fmt: skip


def test_a_span_that_is_refused_is_a_dead_letter_that_a_person_can_read(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl")
    lane = span_lane(ListSink([Rejection(0, 1, "bad span")], takes="spans"), dead_letters=letters)
    for record in records(execution(1, fails=True)):
        lane.add(record)
    lane.tick()
    (line,) = (tmp_path / "dead.jsonl").read_text().splitlines()
    span = json.loads(json.loads(line)["data"])
    assert (span["name"], span["status_description"]) == ("trim", "bad")
    assert (span["trace_id"], span["span_id"]) == (
        f"{trace_id_of(UUID(int=1)):032x}",
        f"{span_id_of(UUID(int=1), UUID(int=1 << 64 | 1)):016x}",
    )
    assert counted(lane) == {
        "received": 4, "delivered": 3, "rejected": 1, "sent": 1, "refused": 1, "dead_lettered": 1,
    }  # fmt: skip


def test_of_a_partial_success_some_stand_for_those_that_were_rejected_and_are_no_dead_letters(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl")
    lane = event_lane(ListSink([Rejection(None, 3, "too old"), Rejection(0, 1, "bad")]), dead_letters=letters)
    for record in records(execution(1)):
        lane.add(record)
    lane.tick()
    assert counted(lane) == {"received": 4, "rejected": 4, "refused": 4, "dead_lettered": 1}


def test_an_event_that_carries_what_it_cannot_is_refused_alone(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl")
    sink, noted = ListSink(), Noted()
    lane = event_lane(sink, acknowledge=noted, dead_letters=letters)
    lane.validate_and_add(ModuleStarted(UUID(int=1), UUID(int=2), 7, T0), Position(None, 9))  # type: ignore[arg-type]
    lane.tick()
    assert noted.offsets == [9]
    assert counted(lane) == {"received": 1, "rejected": 1, "dead_lettered": 1}
    assert "module_name must be a str, not 7" in (tmp_path / "dead.jsonl").read_text()


def test_what_is_safe_and_could_not_be_noted_down_is_said_again() -> None:
    noted = Noted(UnavailableError("the disk is full"))
    lane = event_lane(ListSink(), acknowledge=noted)
    lane.add(records(execution(1))[0])
    assert lane.tick() == 1.0
    assert (lane.waiting, noted.offsets) == (1, [])
    assert lane.tick() is None
    assert (lane.waiting, noted.offsets) == (0, [0])


@pytest.mark.parametrize(
    ("error", "needs_mending"),
    [(UnavailableError("locked"), False), (MisconfiguredError("locked"), True), (RuntimeError("locked"), True)],
)
def test_an_acknowledgement_that_fails_is_counted_and_a_trouble_until_one_succeeds(
    error: Exception, needs_mending: bool, caplog: pytest.LogCaptureFixture
) -> None:
    clock, noted = Clock(), Noted(error, error)
    lane = event_lane(ListSink(), clock, acknowledge=noted)
    lane.add(records(execution(1))[0])
    for later in (0, 1):
        clock.now += later
        lane.tick()
        since = clock.now - later
        assert lane.acknowledge_trouble == Trouble(
            "what is safe cannot be acknowledged: locked", since, needs_mending=needs_mending
        )
    assert (lane.trouble, counted(lane)["failed_acknowledgements"]) == (None, 2)
    assert "list: 1 events are safe, which could not be noted down: locked" in caplog.text
    lane.tick()
    assert (lane.acknowledge_trouble, noted.offsets) == (None, [0])


def test_an_end_does_not_wait_for_acknowledgements_that_only_somebody_can_fix(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = ListSink()
    lane = event_lane(sink, acknowledge=Noted(*[RuntimeError("closed")] * 100))
    lane.add(records(execution(1))[0])
    lane.finish()
    assert (lane.counters.failed_acknowledgements, sink.closed) == (1, 1)
    assert "1 items were not delivered in time for the end; what is safe cannot be acknowledged: closed" in caplog.text


def test_the_worker_gets_its_turn_while_there_is_much_to_send() -> None:
    clock = Clock()

    def slow(items: Any) -> None:
        clock.now += 0.2

    sink = ListSink(*[slow] * 4, max_batch=1)
    lane = event_lane(sink, clock)
    for record in records(execution(1)):
        lane.add(record)
    assert lane.tick() == 0.0
    assert sink.calls == [1, 1]
    assert lane.tick() is None
    assert sink.calls == [1, 1, 1, 1]


def test_where_too_much_is_open_the_execution_that_was_silent_longest_makes_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink, noted = ListSink(takes="spans"), Noted()
    lane = span_lane(sink, acknowledge=noted, max_held=3)
    monkeypatch.setattr("constellation_otel.delivery.sender._OPEN_FACTOR", 1)
    for record in records([execution(1)[0], execution(2)[0], execution(1)[1]]):
        lane.add(record)
    assert not lane.has_room()
    lane.tick()
    assert lane.has_room()
    assert [(span.name, span.attributes["constellation.abandoned.reason"]) for span in sink.items] == [
        ("dag-2", "capacity")
    ]
    assert noted.offsets == [1]
    assert lane.counters.evicted == 1
    assert "more than 3 events are open; the execution that was silent longest is let go" in caplog.text


def test_what_is_open_takes_no_room_from_what_waits() -> None:
    sink = ListSink(takes="spans")
    lane = span_lane(sink, max_held=2)
    for record in records(execution(1)):
        assert lane.has_room()
        lane.add(record)
    assert not lane.has_room()
    lane.tick()
    assert ([span.name for span in sink.items], lane.has_room()) == (["trim", "dag-1"], True)


def test_room_is_made_in_the_turn_that_has_sent_the_last_that_could_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("constellation_otel.delivery.sender._OPEN_FACTOR", 1)
    sink, noted = ListSink(takes="spans"), Noted()
    lane = span_lane(sink, acknowledge=noted, max_held=3)
    for record in records([*execution(1), *(execution(number)[0] for number in (2, 3, 4))]):
        lane.add(record)
    lane.tick()
    # or nothing would wake the lane before the open ones are given up for being idle
    assert lane.has_room()
    assert [span.name for span in sink.items] == ["trim", "dag-1", "dag-2"]
    assert sorted(noted.offsets) == [0, 1, 2, 3, 4]


def test_a_late_event_is_acknowledged_with_its_executions_spans() -> None:
    noted = Noted()
    lane = span_lane(ListSink(takes="spans"), acknowledge=noted)
    for record in records([*execution(1), execution(1)[0]]):
        lane.add(record)
    # it is as safe as the spans of its execution
    assert (lane.waiting, counted(lane)) == (2, {"received": 5, "held": 5})
    lane.tick()
    assert sorted(noted.offsets) == [0, 1, 2, 3, 4]


def test_a_lane_whose_sink_is_away_keeps_what_is_open() -> None:
    lane = span_lane(ListSink(UnavailableError("away"), takes="spans"), max_held=5)
    for record in records([*execution(1), execution(2)[0]]):
        lane.add(record)
    lane.tick()
    assert counted(lane) == {"received": 5, "held": 5}


def test_what_is_open_of_a_part_that_is_taken_away_is_no_longer_held() -> None:
    lane = span_lane(ListSink(takes="spans"))
    for record in [*records(execution(1)[:2], origin="a"), *records(execution(2)[:1], origin="b")]:
        lane.add(record)
    lane.revoke("a")
    assert counted(lane) == {"received": 3, "revoked": 2, "held": 1}


@pytest.mark.parametrize(("abandon_open", "names"), [(True, ["dag-1", "dag-2"]), (False, ["dag-1"]), (None, [])])
def test_the_end_lets_leave_what_it_is_told_to(abandon_open: bool | None, names: list[str]) -> None:
    sink = ListSink(takes="spans")
    lane: Lane[Any] = Lane(sink, AssemblyStage(Assembler(settle=60)))
    for record in records([execution(1)[0], execution(1)[3], execution(2)[0]]):
        lane.add(record)
    lane.finish_by(lane._clock() + 10, abandon_open=abandon_open)
    lane.finish()
    assert ([span.name for span in sink.items], sink.closed) == (names, 1)


def test_the_end_waits_for_a_sink_that_comes_back_in_time() -> None:
    sink, noted = ListSink(UnavailableError("away")), Noted(UnavailableError("busy"))
    lane: Lane[Any] = Lane(sink, EventStage(), acknowledge=noted, backoff=Backoff(first=0.02))
    lane.add(records(execution(1))[0])
    lane.tick()
    lane.finish()
    assert (sink.calls, noted.offsets, lane.waiting, sink.closed) == ([1, 1], [0], 0, 1)


def test_the_end_does_not_wait_for_ever_and_says_what_was_not_delivered(caplog: pytest.LogCaptureFixture) -> None:
    sink = ListSink(*[UnavailableError("away")] * 100)
    lane: Lane[Any] = Lane(sink, EventStage(), backoff=Backoff(first=0.02, longest=0.02))
    lane.add(records(execution(1))[0])
    lane.finish_by(lane._clock() + 0.1)
    lane.finish()
    assert (lane.waiting, sink.closed) == (1, 1)
    assert max(sink.timeouts) <= 0.1
    assert caplog.records[-1].getMessage() == "list: 1 items were not delivered in time for the end; away"


def test_a_sink_that_is_too_slow_for_the_end_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    wait = threading.Event().wait
    sink = ListSink(lambda _: wait(0.05), max_batch=1)
    lane: Lane[Any] = Lane(sink, EventStage())
    for record in records(execution(1)):
        lane.add(record)
    lane.finish_by(lane._clock() + 0.01)
    lane.finish()
    assert caplog.records[-1].getMessage() == "list: 3 items were not delivered in time for the end; it is too slow"


def test_a_pause_doubles_up_to_its_longest_and_half_of_it_is_chance() -> None:
    most, least = Backoff(jitter=lambda: 1.0), Backoff(jitter=lambda: 0.0)
    assert [most.next() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert [least.next() for _ in range(3)] == [0.25, 0.5, 1]
    assert least.next(0.1) == 2
    assert least.next(1e9) == 3_600
    least.reset()
    assert (least.next(), least.failures) == (0.25, 1)
    for _ in range(2_000):
        most.next()
    assert most.next() == 30


@given(
    st.lists(
        st.one_of(
            st.just([]),
            st.just(UnavailableError("away")),
            st.just(RefusedError("bad")),
            st.builds(lambda index: UnavailableError("half", delivered=frozenset({index})), st.integers(0, 3)),
            st.just([Rejection(None, 2, "some")]),
            st.just(RuntimeError("defect")),
        ),
        max_size=30,
    ),
    st.sampled_from(["events", "spans"]),
)
def test_whatever_the_far_side_does_no_event_is_lost_from_the_counts_and_each_is_acknowledged_once(
    faults: list[Any], takes: Any
) -> None:
    sink, noted, clock = ListSink(*faults, takes=takes, max_batch=4), Noted(), Clock()
    stage: Any = EventStage() if takes == "events" else AssemblyStage(Assembler())
    lane: Lane[Any] = Lane(sink, stage, acknowledge=noted, clock=clock)
    events = [event for number in range(1, 6) for event in execution(number)]
    for record in records(events):
        lane.add(record)
        lane.tick()
        assert lane.counters.received == record.position.offset + 1
    while lane.waiting:
        clock.now += 60
        lane.tick()
    assert sorted(noted.offsets) == list(range(len(events)))
    counters = lane.counters
    assert (counters.held, counters.delivered + counters.rejected) == (0, len(events))


# --- one bad item is no outage ------------------------------------------------------------


class Choosy(ListSink):
    """Raises what it should not, for batches that have one of these executions."""

    def __init__(self, *executions: int, raises: type[BaseException] = ZeroDivisionError) -> None:
        super().__init__()
        self.bad = {UUID(int=each) for each in executions}
        self.raises = raises
        self.asked = 0

    def send(self, items: Any, timeout: float) -> Any:
        self.asked += 1
        if self.bad & {item.execution_id for item in items}:
            raise self.raises("for one of them")
        return super().send(items, timeout)


@pytest.mark.parametrize("raises", [ZeroDivisionError, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("bad", [(0,), (99,), (50,), (0, 99), (7, 8, 9, 60), tuple(range(0, 100, 2))])
def test_items_for_which_a_sink_raises_are_left_out_and_the_others_go_on(
    bad: tuple[int, ...], raises: type[BaseException], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl")
    sink, noted = Choosy(*bad, raises=raises), Noted()
    lane = event_lane(sink, acknowledge=noted, dead_letters=letters)
    for record in records([execution(number)[0] for number in range(100)]):
        lane.add(record)
    lane.tick()
    good = 100 - len(bad)
    assert counted(lane) == {
        "received": 100,
        "delivered": good,
        "sent": good,
        "rejected": len(bad),
        "refused": len(bad),
        "dead_lettered": len(bad),
        "retried": lane.counters.retried,
    }
    assert (lane.waiting, lane.trouble, sorted(noted.offsets)) == (0, None, [*range(100)])
    assert (tmp_path / "dead.jsonl").read_text().count(f"{raises.__name__}: for one of them") == len(bad)
    assert caplog.records[0].exc_info is not None


def test_a_sink_that_raises_for_everything_is_an_outage_and_loses_nothing() -> None:
    clock = Clock()
    sink, noted = Choosy(*range(100)), Noted()
    lane = event_lane(sink, clock, acknowledge=noted)
    for record in records([execution(number)[0] for number in range(100)]):
        lane.add(record)
    for _ in range(5):
        lane.tick()
        assert (lane.waiting, noted.offsets) == (100, [])
        assert lane.trouble is not None
        clock.now += 60
    sink.bad = set()
    lane.tick()
    assert (lane.waiting, lane.trouble, sorted(noted.offsets)) == (0, None, [*range(100)])
    assert counted(lane)["delivered"] == 100


def test_a_slow_sink_that_raises_for_everything_is_asked_a_few_times_only() -> None:
    clock = Clock()

    class Slow(Choosy):
        def send(self, items: Any, timeout: float) -> Any:
            clock.now += 1
            return super().send(items, timeout)

    sink = Slow(*range(100))
    lane = event_lane(sink, clock)
    for record in records([execution(number)[0] for number in range(100)]):
        lane.add(record)
    lane.tick()
    assert (sink.asked, lane.waiting) == (1, 100)


def test_a_lone_item_is_held_until_others_show_that_the_sink_works() -> None:
    clock = Clock()
    lane = event_lane(Choosy(0), clock)
    lane.add(records(execution(0))[0])
    for _ in range(3):
        lane.tick()
        assert (lane.waiting, lane.trouble is not None) == (1, True)
        clock.now += 60
    lane.add(records(execution(1))[0])
    lane.tick()
    assert (lane.waiting, lane.trouble) == (0, None)
    assert (lane.counters.delivered, lane.counters.rejected) == (1, 1)


def test_a_sink_that_recovers_in_the_middle_loses_nothing() -> None:
    """What failed alone is tried once more after the others."""
    sink = Choosy(*range(4))

    class Recovers(ListSink):
        def send(self, items: Any, timeout: float) -> Any:
            if sink.asked == 4:
                sink.bad = set()
            return sink.send(items, timeout)

    lane = event_lane(Recovers())
    for record in records([execution(number)[0] for number in range(4)]):
        lane.add(record)
    lane.tick()
    assert (lane.waiting, lane.counters.delivered, lane.counters.rejected) == (0, 4, 0)


def test_what_is_refused_within_a_part_is_refused_as_ever() -> None:
    class Both(Choosy):
        def send(self, items: Any, timeout: float) -> Any:
            if UUID(int=3) in {item.execution_id for item in items}:
                raise RefusedError("too odd")
            return super().send(items, timeout)

    lane = event_lane(Both(0))
    for record in records([execution(number)[0] for number in range(4)]):
        lane.add(record)
    lane.tick()
    assert (lane.waiting, lane.counters.delivered, lane.counters.rejected) == (0, 2, 2)


def test_a_stage_that_raises_costs_one_record(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(EventStage):
        def add(self, record: Record) -> Any:
            if record.position.offset % 2:
                raise LookupError
            return super().add(record)

    noted = Noted()
    lane: Lane[Any] = Lane(ListSink(), Odd(), acknowledge=noted)
    for record in records(execution(1)):
        lane.add(record)
    lane.tick()
    assert (lane.counters.rejected, sorted(noted.offsets)) == (2, [0, 1, 2, 3])
    assert caplog.records[0].exc_info is not None


def test_a_lane_without_room_in_which_nothing_is_open_does_not_spin(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(EventStage):
        def add(self, record: Record) -> Any:
            return ()

    lane: Lane[Any] = Lane(ListSink(), Stuck(), max_held=2)
    for record in records(execution(1)):
        lane.add(record)
    lane.tick()
    assert "nothing is open that could be let go" in caplog.text


def test_an_item_that_cannot_even_be_shown_as_it_is_becomes_a_dead_letter(tmp_path: Path) -> None:
    sink = ListSink(ZeroDivisionError(), ZeroDivisionError(), [], ZeroDivisionError())
    lane = event_lane(sink, dead_letters=DeadLetters(tmp_path / "dead.jsonl"))
    odd = ModuleStarted(UUID(int=1), None, object(), T0)  # type: ignore[arg-type] # by a defect
    for offset, event in enumerate((odd, execution(1)[0])):
        lane.add(Record(event, Position(None, offset)))
    lane.tick()
    assert (lane.counters.delivered, lane.counters.rejected, lane.counters.dead_lettered) == (1, 1, 1)
    assert "ModuleStarted(" in (tmp_path / "dead.jsonl").read_text()
