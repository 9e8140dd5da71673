"""BufferedListener: from callbacks to a sink, with a journal and without."""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from constellation_otel.delivery import DeadLetters, Lane, Position, Record, Rejection, Restarted, Unreadable
from constellation_otel.delivery.buffered_listener import BufferCounters, BufferedListener, Feed, isolate
from constellation_otel.delivery.transform import EventStage
from constellation_otel.errors import JournalError, UnavailableError
from constellation_otel.events import ExecutionStarted, ModuleFailed, ModuleStarted
from constellation_otel.testing import check_listener
from constellation_otel.transports.journal import Journal
from deliveries import T0, ListSink, execution
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from constellation_otel.delivery import Worker
    from constellation_otel.events import Event


class Gate:
    """A fault of a sink that waits until it is opened, or that fails until then."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()

    def wait(self, items: object) -> None:
        self.reached.set()
        assert self.opened.wait(DEADLINE)

    def fail(self, items: object) -> Exception | None:
        self.reached.set()
        return None if self.opened.is_set() else UnavailableError("away", retry_after=0.0)


def told(listener: BufferedListener, events: Sequence[Event]) -> None:
    for event in events:
        listener.accept(event)


def kinds(sink: ListSink) -> list[str]:
    return [type(item).__name__ for item in sink.items]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A far side that comes back is tried again soon."""
    monkeypatch.setattr("constellation_otel.delivery.sender._SLICE", 5.0)
    monkeypatch.setattr("constellation_otel.delivery.sender.Backoff.__init__.__defaults__", (0.02, 0.05, lambda: 1.0))


def test_a_listener_keeps_the_spis_promises() -> None:
    check_listener(lambda: _Closing(ListSink()))


class _Closing(BufferedListener):
    def close(self, timeout: float = DEADLINE) -> bool:
        return super().close(timeout)


def test_every_callback_arrives_as_its_event_in_order_and_is_counted() -> None:
    sink = ListSink()
    listener = BufferedListener(sink)
    for event in execution(1, fails=True):
        event.notify(listener)
    listener.on_execution_cancelled(UUID(int=1), "dag-1")
    assert listener.flush(DEADLINE)
    assert kinds(sink) == [
        "ExecutionStarted", "ModuleStarted", "ModuleFailed", "ExecutionCompleted", "ExecutionCancelled",
    ]  # fmt: skip
    assert listener.close(DEADLINE)
    assert listener.counters == BufferCounters(5, 5, 0, 0, 0, 0, 5, 0, 0, 0)
    assert (sink.closed, listener.trouble) == (1, None)


def test_what_the_sink_cannot_take_now_is_delivered_when_it_can() -> None:
    gate = Gate()
    sink = ListSink(*[gate.fail] * 1_000)
    listener = BufferedListener(sink)
    told(listener, execution(1))
    assert gate.reached.wait(DEADLINE)
    eventually(lambda: listener.trouble is not None, "the trouble is told")
    assert not listener.flush(0.05)
    assert listener.counters.held == 4
    gate.opened.set()
    assert listener.flush(DEADLINE)
    assert sink.items == execution(1)
    assert listener.trouble is None
    assert listener.close(DEADLINE)
    assert listener.counters.retried > 0


def test_what_finds_everything_full_is_dropped_and_the_sum_is_right(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    sink = ListSink(gate.wait)
    listener = BufferedListener(sink, max_queue=4)
    events = [event for number in range(10) for event in execution(number)]
    told(listener, events[:1])
    assert gate.reached.wait(DEADLINE)
    told(listener, events[1:])
    counters = listener.counters
    assert counters.received == 40 == counters.dropped + counters.held
    assert counters.dropped >= 40 - 1 - 4
    gate.opened.set()
    assert listener.close(DEADLINE)
    counters = listener.counters
    assert (counters.held, counters.delivered) == (0, 40 - counters.dropped)
    assert len(sink.items) == counters.delivered
    assert "the queue is full (4 items); dropping the newest" in caplog.text


def test_what_is_refused_is_counted_and_a_dead_letter(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl")
    listener = BufferedListener(ListSink([Rejection(0, 1, "no")]), dead_letters=letters)
    told(listener, execution(1)[:1])
    assert listener.flush(DEADLINE)
    assert listener.close(DEADLINE)
    assert listener.counters == BufferCounters(1, 0, 0, 1, 0, 0, 0, 1, 1, 0)


def test_an_event_that_carries_what_it_cannot_is_rejected() -> None:
    sink = ListSink()
    listener = BufferedListener(sink)
    listener.on_module_start(UUID(int=1), UUID(int=2), 7)  # type: ignore[arg-type]
    told(listener, execution(1)[:1])
    assert listener.close(DEADLINE)
    assert (kinds(sink), listener.counters.rejected, listener.counters.held) == (["ExecutionStarted"], 1, 0)


def test_closing_keeps_its_timeout_and_tells_the_truth_about_a_sink_that_is_away() -> None:
    listener = BufferedListener(ListSink(*[UnavailableError("away")] * 10_000))
    told(listener, execution(1))
    assert not listener.close(0.2)
    assert listener.counters.held == 4


def test_flushing_keeps_its_timeout_while_the_sink_takes_its_time() -> None:
    gate = Gate()
    listener = BufferedListener(ListSink(gate.wait))
    told(listener, execution(1)[:1])
    assert gate.reached.wait(DEADLINE)
    told(listener, execution(1)[1:])
    assert not listener.flush(0.05)
    gate.opened.set()
    assert listener.flush(DEADLINE)
    assert listener.close(DEADLINE)


def test_a_forked_child_starts_with_nothing_and_delivers_its_own(tmp_path: Path) -> None:
    gate, out = Gate(), tmp_path / "child"
    sink = ListSink(gate.wait)
    listener = BufferedListener(sink)
    told(listener, execution(1))
    assert gate.reached.wait(DEADLINE)
    child = os.fork()
    if child == 0:
        try:
            sink.items, sink.faults = [], []
            told(listener, execution(2))
            closed = listener.close(DEADLINE)
            out.write_text(f"{closed} {[item.execution_id.int for item in sink.items]} {listener.counters.received}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    gate.opened.set()
    assert listener.close(DEADLINE)
    assert out.read_text() == "True [2, 2, 2, 2] 4"
    assert sink.items == execution(1)


# --- with a journal ------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "telemetry.db"


def journal(path: Path, **options: Any) -> Journal:
    """A journal; on a busy machine a listener that was closed before has the file a moment longer."""
    made: list[Journal] = []

    def make() -> bool:
        try:
            made.append(Journal(path, sinks=["list"], **options))
        except JournalError as error:
            if "only one at a time" not in str(error):
                raise
        return bool(made)

    eventually(make, "the file is free")
    return made[0]


def test_with_a_journal_events_arrive_all_the_same_and_nothing_is_left_in_it(path: Path) -> None:
    sink = ListSink()
    listener = BufferedListener(sink, journal=journal(path))
    told(listener, execution(1, fails=True))
    assert listener.flush(DEADLINE)
    assert kinds(sink) == ["ExecutionStarted", "ModuleStarted", "ModuleFailed", "ExecutionCompleted"]
    assert listener.close(DEADLINE)
    assert listener.counters == BufferCounters(4, 4, 0, 0, 0, 0, 4, 0, 0, 0)
    with journal_of(path) as left:
        assert left.held("list") == 0


class journal_of:  # noqa: N801 - reads as a function
    """A journal that is closed again."""

    def __init__(self, path: Path) -> None:
        self._journal = journal(path)

    def __enter__(self) -> Journal:
        return self._journal

    def __exit__(self, *_: object) -> None:
        self._journal.close()


def test_what_was_not_delivered_is_delivered_by_the_next_process_from_the_journal(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    away = BufferedListener(ListSink(*[UnavailableError("away")] * 10_000), journal=journal(path))
    told(away, execution(1))
    assert not away.flush(0.2)
    assert not away.close(0.4)
    sink = ListSink()
    listener = BufferedListener(sink, journal=journal(path))
    told(listener, execution(2))
    assert listener.flush(DEADLINE)
    assert [item.execution_id.int for item in sink.items] == [1] * 4 + [2] * 4
    assert listener.counters == BufferCounters(8, 8, 0, 0, 0, 0, 8, 0, 0, 0)
    assert listener.close(DEADLINE)
    assert "the journal holds 4 events from before; they are delivered" in caplog.text


def test_more_than_a_page_and_than_the_lane_holds_comes_through(path: Path) -> None:
    sink = ListSink()
    away = BufferedListener(ListSink(*[UnavailableError("away")] * 10_000), journal=journal(path))
    told(away, [event for number in range(400) for event in execution(number)])
    assert away._writer is not None
    assert away._writer.flush(DEADLINE)
    away.close(1.0)
    listener = BufferedListener(sink, journal=journal(path), max_queue=600)
    assert listener.flush(DEADLINE)
    assert len(sink.items) == 1_600
    assert listener.close(DEADLINE)


def test_closing_brings_more_from_the_journal_than_the_lane_holds(path: Path) -> None:
    before = journal(path)
    before.append([event for number in range(400) for event in execution(number)])
    before.close()
    gate = Gate()
    sink = ListSink(gate.wait)
    listener = BufferedListener(sink, journal=journal(path), max_queue=100)
    assert gate.reached.wait(DEADLINE)
    listener._delivery.close_by(time.monotonic() + DEADLINE, abandon_open=True)
    gate.opened.set()
    assert listener.close(DEADLINE)
    assert len(sink.items) == 1_600


def test_an_error_has_its_stack_trace_in_the_journal_and_a_bad_event_is_rejected_alone(path: Path) -> None:
    sink = ListSink()
    listener = BufferedListener(sink, journal=journal(path))
    try:
        raise ValueError("bad")
    except ValueError as error:
        listener.on_module_failed(UUID(int=1), UUID(int=2), "trim", error)
    listener.on_module_start(UUID(int=1), UUID(int=2), 7)  # type: ignore[arg-type]
    assert listener.flush(DEADLINE)
    (failed,) = sink.items
    assert isinstance(failed, ModuleFailed)
    assert "ValueError: bad" in str(failed.error.stacktrace)
    assert listener.close(DEADLINE)
    assert (listener.counters.rejected, listener.counters.held) == (1, 0)


class Store:
    """A journal in memory, whose calls fail on order: for faults that a disk does not produce when asked."""

    def __init__(self) -> None:
        self.items: list[Record | Unreadable | Restarted] = []
        self.append_faults: list[Any] = []
        self.read_faults: list[Exception] = []
        self.acknowledge_fault: Exception | None = None
        self.acknowledged: list[int] = []
        self.closed = False
        self.offsets = iter(range(1_000_000))

    def append(self, events: Sequence[Event | None]) -> int:
        fault = self.append_faults.pop(0) if self.append_faults else len(events)
        if callable(fault):
            fault = fault(events) or len(events)
        if isinstance(fault, Exception):
            raise fault
        positions = [Position(None, next(self.offsets)) for _ in events[:fault]]
        self.items += [
            Record(event, at) if event else Restarted(at) for event, at in zip(events, positions, strict=False)
        ]
        return int(fault)

    def read(self, sink: str, after: int, limit: int) -> list[Record | Unreadable | Restarted]:
        if self.read_faults:
            raise self.read_faults.pop(0)
        return [item for item in list(self.items) if item.position.offset > after][:limit]

    def acknowledge(self, sink: str, positions: Sequence[Position]) -> None:
        if self.acknowledge_fault is not None:
            raise self.acknowledge_fault
        self.acknowledged += [position.offset for position in positions]

    def finish_by(self, deadline: float) -> None:
        """It never waits."""

    def held(self, sink: str) -> int:
        return len(self.items)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def store() -> Store:
    return Store()


class away_from:  # noqa: N801 - reads as a function
    """The journal's file is moved away, so that nothing can be appended, and is put back at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._path.rename(self._path.with_name("elsewhere"))

    def __exit__(self, *_: object) -> None:
        self._path.with_name("elsewhere").rename(self._path)


def assert_sum(counters: BufferCounters) -> None:
    assert counters.received == counters.delivered + counters.dropped + counters.rejected + counters.held


def test_what_the_journal_cannot_take_goes_to_the_sink_from_memory_and_is_not_durable(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = ListSink()
    listener = BufferedListener(sink, journal=journal(path))
    told(listener, execution(1))
    assert listener.flush(DEADLINE)
    with away_from(path):
        told(listener, execution(2))
        assert listener.flush(DEADLINE)
        assert sink.items == execution(1) + execution(2)
        assert listener.trouble is not None
        assert "the journal takes no events" in listener.trouble.reason
        assert listener.trouble.needs_mending
    assert "was moved, deleted or replaced while it was open" in caplog.text

    def is_written_again() -> bool:
        told(listener, execution(3))
        return listener.trouble is None

    eventually(is_written_again, "the journal is written again")
    assert listener.flush(DEADLINE)
    counters = listener.counters
    assert listener.close(DEADLINE)
    assert counters.not_durable >= 4
    assert counters.delivered == counters.received == len(sink.items)
    with journal_of(path) as left:
        assert left.held("list") == 0


def test_what_comes_from_memory_comes_after_what_the_journal_has(path: Path) -> None:
    """The sink takes nothing at first, so that the journal fills up; then all comes, in order."""
    gate = Gate()
    sink = ListSink(gate.wait)
    listener = BufferedListener(sink, journal=journal(path, max_bytes=65_536), max_queue=1_000)
    assert listener._writer is not None
    queue = listener._writer.worker
    events = [event for number in range(500) for event in execution(number)]
    for first in range(0, 2_000, 500):
        told(listener, events[first : first + 500])
        eventually(lambda: not queue.counters.held, "they are taken out of the queue")
    assert 0 < listener.counters.not_durable < 2_000
    assert (listener.counters.held, listener.counters.dropped) == (2_000, 0)
    gate.opened.set()
    assert listener.flush(DEADLINE)
    assert sink.items == events
    assert listener.close(DEADLINE)
    assert_sum(listener.counters)


def test_what_comes_from_memory_waits_for_room_behind_what_the_journal_has(store: Store) -> None:
    before = [event for number in range(300) for event in execution(number)]
    store.items = [Record(event, Position(None, next(store.offsets))) for event in before]
    store.append_faults = [UnavailableError("the disk is full")] * 1_000
    gate = Gate()
    sink = ListSink(gate.wait)
    listener = BufferedListener(sink, journal=store, max_queue=100)
    told(listener, execution(1_000))
    eventually(lambda: listener.counters.not_durable == 4, "they go on")
    gate.opened.set()
    assert listener.flush(DEADLINE)
    assert sink.items == before + execution(1_000)
    assert listener.close(DEADLINE)


def test_a_journal_that_takes_no_acknowledgements_is_a_trouble_of_the_listener(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("constellation_otel.delivery.sender._ACKNOWLEDGE_AGAIN", 0.02)
    store.acknowledge_fault = UnavailableError("the disk is full")
    listener = BufferedListener(ListSink(), journal=store)
    told(listener, execution(1))
    eventually(lambda: listener.trouble, "its trouble")
    assert listener.trouble is not None
    assert listener.trouble.reason == "what is safe cannot be acknowledged: the disk is full"
    assert listener.counters.failed_acknowledgements > 0
    store.acknowledge_fault = None
    assert listener.flush(DEADLINE)
    assert listener.trouble is None
    assert listener.close(DEADLINE)


def test_nothing_piles_up_while_a_full_disk_takes_neither_events_nor_acknowledgements(store: Store) -> None:
    store.items = [Record(event, Position(None, next(store.offsets))) for event in execution(1)]
    store.append_faults = [UnavailableError("the disk is full")] * 1_000
    store.acknowledge_fault = UnavailableError("the disk is full")
    sink = ListSink()
    listener = BufferedListener(sink, journal=store)
    told(listener, [event for number in range(2, 20) for event in execution(number)])
    eventually(lambda: len(sink.items) == 76, "all of them arrive")
    eventually(lambda: listener._delivery.waiting == 4, "what is yet to be acknowledged is what the journal has")
    store.acknowledge_fault = None
    assert listener.flush(DEADLINE)
    assert sorted(store.acknowledged) == [0, 1, 2, 3]
    assert listener.close(DEADLINE)


def test_a_sink_that_is_away_gets_nothing_from_memory_and_the_journal_gets_it_when_it_can(path: Path) -> None:
    gate = Gate()
    sink = ListSink(*[gate.fail] * 1_000_000)
    listener = BufferedListener(sink, journal=journal(path))
    told(listener, execution(1))
    eventually(lambda: listener._delivery.lane.trouble, "the sink is away")
    with away_from(path):
        told(listener, execution(2))
        eventually(lambda: listener._writer is not None and listener._writer.trouble, "the journal is away, too")
    eventually(lambda: listener._writer is not None and not listener._writer.held, "it is written after all")
    assert listener.counters.not_durable == 0
    assert not listener.close(0.1)
    with journal_of(path) as left:
        assert left.held("list") == 8


def test_a_journal_and_a_sink_that_are_away_hold_as_much_as_the_queue_and_drop_the_newest(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.append_faults = [UnavailableError("the disk is full")] * 100_000
    listener = BufferedListener(ListSink(*[UnavailableError("away")] * 100_000), journal=store, max_queue=3)
    told(listener, execution(1)[:1])
    eventually(lambda: listener._delivery.lane.trouble, "the sink is away")
    told(listener, execution(1)[1:])
    told(listener, execution(2))
    told(listener, execution(3))
    assert not listener.flush(0.05)
    assert not listener.close(0.2)
    counters = listener.counters
    assert counters.received == 12 == counters.held + counters.dropped
    assert counters.dropped > 0
    assert f"{counters.held} events are still held, {counters.held} of them in no journal" in caplog.text


def test_a_journal_that_can_be_neither_read_nor_written_holds_nothing_up(store: Store) -> None:
    store.items = [Record(event, Position(None, next(store.offsets))) for event in execution(1)]
    store.read_faults = [UnavailableError("damaged")] * 100_000
    store.append_faults = [UnavailableError("damaged")] * 100_000
    sink = ListSink()
    listener = BufferedListener(sink, journal=store)
    told(listener, execution(2))
    eventually(lambda: sink.items == execution(2), "they come from memory")
    assert not listener.close(0.2)
    assert (listener.counters.held, listener.counters.not_durable) == (4, 4)


def test_at_the_end_what_a_journal_cannot_take_is_tried_once_more_from_memory(store: Store) -> None:
    store.append_faults = [UnavailableError("the disk is full")] * 100_000
    gate = Gate()
    sink = ListSink(*[gate.fail] * 1_000_000)
    store.items = [Record(event, Position(None, next(store.offsets))) for event in execution(1)]
    listener = BufferedListener(sink, journal=store)
    assert gate.reached.wait(DEADLINE)
    eventually(lambda: listener.trouble, "the sink is away")
    told(listener, execution(2))
    eventually(lambda: listener._writer is not None and listener._writer.trouble, "the journal is full")
    gate.opened.set()
    listener.close(DEADLINE)
    assert sink.items == execution(1) + execution(2)


# --- a close that keeps its time -----------------------------------------------------------------------------------


@contextmanager
def taking_less_than(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody else's write transaction, which stays open."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


@pytest.mark.parametrize("timeout", [0, -1.0, math.nan, -math.inf, 0.1])
def test_flush_and_close_keep_their_time_while_another_process_has_locked_the_journal(
    path: Path, timeout: float, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    listener = BufferedListener(ListSink(*[gate.fail] * 1_000_000), journal=journal(path))
    told(listener, execution(1))
    assert not listener.flush(0.1)
    eventually(lambda: listener.trouble, "the sink is away")
    with locked(path):
        told(listener, execution(2))
        with taking_less_than(0.5):
            assert not listener.flush(timeout)
        with taking_less_than(0.5):
            assert listener.counters.held == 8
        with taking_less_than(0.5):
            assert not listener.close(timeout)
        assert "8 events are still held, 4 of them in no journal" in caplog.text
        assert listener._writer is not None
        workers: list[Worker[Any]] = [listener._delivery.worker, listener._writer.worker]
        eventually(lambda: all(worker.has_finished for worker in workers), "nobody waits for the lock any longer")
        assert not listener.close(timeout)
        counters = listener.counters
        assert_sum(counters)
    assert f"{counters.held} events are still held, {counters.held - 4} of them in no journal" in caplog.text
    with journal_of(path) as left:
        assert left.held("list") == 4


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 1e10])
@pytest.mark.parametrize("has_journal", [False, True])
def test_timeouts_without_an_end_are_taken(path: Path, has_journal: bool, timeout: float) -> None:
    sink = ListSink(UnavailableError("away"))
    listener = BufferedListener(sink, journal=journal(path) if has_journal else None)
    told(listener, execution(1))
    assert listener.flush(timeout)
    told(listener, execution(2))
    sink.faults = [UnavailableError("away")]
    assert listener.close(timeout)
    assert listener.counters.delivered == 8


def test_a_disk_that_hangs_keeps_nobody_longer_than_the_timeout_and_what_is_said_is_true(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    sink = ListSink()
    listener = BufferedListener(sink, journal=store)
    store.append_faults = [gate.wait]
    told(listener, execution(1))
    assert gate.reached.wait(DEADLINE)
    told(listener, execution(2))
    with taking_less_than(0.5):
        assert not listener.close(0.1)
    assert_sum(listener.counters)
    assert listener.counters.held == 8
    assert "BufferedListener-journal: not done within" in caplog.text
    assert " 8 items are still held" in caplog.text
    assert " 0 items" not in caplog.text
    assert "8 events are still held, 8 of them in no journal" in caplog.text
    gate.opened.set()
    eventually(lambda: store.closed, "the disk is back")
    assert not listener.close(0.1)
    assert_sum(listener.counters)
    assert (listener.counters.held, len(store.items)) == (8, 8)
    assert "8 events are still held, 0 of them in no journal" in caplog.text


@pytest.mark.parametrize("has_journal", [False, True])
def test_a_sink_that_hangs_keeps_nobody_longer_than_the_timeout_and_what_is_said_is_true(
    path: Path, has_journal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    listener = BufferedListener(ListSink(gate.wait), journal=journal(path) if has_journal else None)
    told(listener, execution(1))
    assert gate.reached.wait(DEADLINE)
    told(listener, execution(2))
    with taking_less_than(0.5):
        assert not listener.close(0.1)
    assert listener.counters.held == 8
    assert "8 events are still held" in caplog.text
    gate.opened.set()
    eventually(lambda: listener._delivery.worker.has_finished, "the sink is back")
    held = listener.counters.held
    assert listener.close(0.1) is (held == 0 and not has_journal)
    assert_sum(listener.counters)


def test_a_journal_that_nobody_can_close_in_time_is_left_behind(store: Store) -> None:
    gate = Gate()
    store.close = lambda: gate.wait(())  # type: ignore[method-assign]
    listener = BufferedListener(ListSink(), journal=store)
    told(listener, execution(1))
    assert listener.flush(DEADLINE)
    with taking_less_than(0.5):
        assert not listener.close(0.1)
    assert gate.reached.is_set()
    assert listener.counters.held == 0
    gate.opened.set()
    eventually(lambda: listener.close(0.1), "it is closed after all")


def test_a_journal_is_left_to_the_interpreter_where_no_thread_can_be_had_to_close_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: threading.Thread) -> None:
        message = "can't create new thread at interpreter shutdown"
        raise RuntimeError(message)

    feed = Feed(store, "list")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        feed.close_by(time.monotonic())
    assert "no thread to close the journal: can't create new thread" in caplog.text
    assert not store.closed
    feed.close_by(time.monotonic() + DEADLINE)
    assert store.closed


def test_a_journal_that_cannot_be_read_now_is_read_later(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.read_faults = [UnavailableError("busy")] * 2
    sink = ListSink()
    listener = BufferedListener(sink, journal=store)
    told(listener, execution(1))
    assert listener.flush(DEADLINE)
    assert sink.items == execution(1)
    assert listener.close(DEADLINE)
    assert "list: busy; it is read again" in caplog.text


def test_a_sink_that_is_still_at_work_when_the_journal_is_closed_breaks_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    listener = BufferedListener(ListSink(gate.wait), journal=journal(path))
    told(listener, execution(1))
    assert gate.reached.wait(DEADLINE)
    assert not listener.close(0.2)
    gate.opened.set()
    eventually(lambda: listener.counters.delivered == 4, "the sink has it after all")
    eventually(lambda: not listener._delivery.lane.waiting, "and is told that nobody hears of it")
    assert "JournalError" not in caplog.text
    with journal_of(path) as left:
        assert left.held("list") == 4


def test_a_journal_that_fails_while_it_is_in_use_is_no_secret(store: Store) -> None:
    broken = JournalError("this process has no such journal")
    feed = Feed(store, "list")
    store.read_faults = [broken]
    lane: Lane[Event] = Lane(ListSink(), EventStage())
    with pytest.raises(JournalError):
        feed.fetch(lane, 1)
    store.acknowledge_fault = broken
    with pytest.raises(JournalError):
        feed.acknowledge([Position(None, 1)])
    feed.close()
    store.read_faults = [broken]
    assert feed.fetch(lane, 1) == 1.0
    feed.acknowledge([Position(None, 1)])
    store.acknowledge_fault = UnavailableError("another thread closes it")
    feed.acknowledge([Position(None, 1)])


@pytest.mark.parametrize("has_letters", [True, False])
def test_a_record_of_the_journal_that_cannot_be_read_is_left_out_and_counted(
    store: Store, tmp_path: Path, has_letters: bool, caplog: pytest.LogCaptureFixture
) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl") if has_letters else None
    store.items = [Unreadable(b"junk", "no event", Position(None, next(store.offsets)))]
    sink = ListSink()
    listener = BufferedListener(sink, journal=store, dead_letters=letters)
    told(listener, execution(1)[:1])
    assert listener.flush(DEADLINE)
    assert (sink.items, sorted(store.acknowledged)) == (execution(1)[:1], [0, 1])
    assert listener.close(DEADLINE)
    assert (listener.counters.rejected, listener.counters.held) == (1, 0)
    assert "record 0 cannot be read and is left out: no event" in caplog.text
    assert (tmp_path / "dead.jsonl").exists() is has_letters


def test_a_forked_child_leaves_the_journal_to_its_parent_and_delivers_from_memory(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "child"
    sink = ListSink()
    listener = BufferedListener(sink, journal=journal(path))
    told(listener, execution(1))
    assert listener.flush(DEADLINE)
    child = os.fork()
    if child == 0:
        try:
            told(listener, execution(2))
            closed = listener.close(DEADLINE)
            ids = [item.execution_id.int for item in sink.items[4:]]
            out.write_text(f"{closed} {ids} {listener.counters.received}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert out.read_text() == "True [2, 2, 2, 2] 4"
    told(listener, execution(3))
    assert listener.flush(DEADLINE)
    assert listener.close(DEADLINE)
    assert [item.execution_id.int for item in sink.items] == [1] * 4 + [3] * 4


def test_events_that_were_read_keep_their_time() -> None:
    sink = ListSink()
    listener = BufferedListener(sink)
    event = ExecutionStarted(UUID(int=1), "dag", T0)
    listener.accept(event)
    listener.accept(ModuleStarted(UUID(int=1), None, "trim", T0 + 1))
    assert listener.close(DEADLINE)
    assert sink.items == [event, ModuleStarted(UUID(int=1), None, "trim", T0 + 1)]


@pytest.mark.parametrize("has_letters", [True, False])
def test_an_event_for_which_a_journal_raises_is_left_out_alone(store: Store, tmp_path: Path, has_letters: bool) -> None:
    """By a defect: what passes the door can be written."""

    def raises(events: Sequence[Event | None]) -> Any:
        return ZeroDivisionError("a defect") if any(event and event.execution_id == BAD for event in events) else None

    store.append_faults = [raises] * 20
    sink = ListSink()
    dead = tmp_path / "dead.jsonl"
    listener = BufferedListener(sink, journal=store, dead_letters=DeadLetters(dead) if has_letters else None)
    for execution_id in (UUID(int=1), BAD, UUID(int=3)):
        listener.on_execution_start(execution_id, "dag")
    assert listener.flush(DEADLINE)
    assert [event.execution_id for event in sink.items] == [UUID(int=1), UUID(int=3)]
    assert listener.close(DEADLINE)
    counters = listener.counters
    assert (counters.received, counters.delivered, counters.rejected, counters.held) == (3, 2, 1, 0)
    assert dead.exists() == has_letters


BAD = UUID(int=2)


@pytest.mark.parametrize("faults", [4, 3, 1])
def test_a_journal_that_raises_for_everything_is_away_and_loses_nothing(store: Store, faults: int) -> None:
    """Nor does one that recovers in the middle."""
    store.append_faults = [ZeroDivisionError("a defect")] * faults
    sink = ListSink()
    listener = BufferedListener(sink, journal=store)
    listener.on_execution_start(UUID(int=1), "dag")
    listener.on_execution_cancelled(UUID(int=1), "dag")
    eventually(lambda: len(sink.items) == 2, "they come from memory or from the journal")
    assert listener.close(DEADLINE)
    assert (listener.counters.delivered, listener.counters.rejected) == (2, 0)


def test_what_a_journal_cannot_take_now_is_no_defect_of_the_events() -> None:
    def append(events: list[int]) -> int:
        if len(events) > 1:
            raise ZeroDivisionError
        if events == [1]:
            return 1
        raise UnavailableError("away")

    items = [1, 2, 3, 4]
    assert isolate(append, items, ZeroDivisionError()) == (1, [])
    assert items == [2, 3, 4]


@pytest.mark.parametrize("answer", [UnavailableError("away"), 0])
def test_what_a_journal_cannot_take_at_the_second_look_is_written_later(answer: Exception | int) -> None:
    answers: list[Any] = [ZeroDivisionError(), ZeroDivisionError(), 1, answer]

    def append(events: list[str]) -> int:
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return int(given)

    items = ["first", "second"]
    assert isolate(append, items, ZeroDivisionError()) == (1, [])
    assert items == ["first"]
