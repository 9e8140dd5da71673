"""Events on their way through a journal, past it, and to several sinks: order, room, and what a failing disk costs."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from constellation_otel.delivery import Batch, BufferedListener, DeadLetters, JournalCounters, Position, Unreadable
from constellation_otel.delivery.journal_ends import ReadingEnd
from constellation_otel.delivery.journaled import Journaled
from constellation_otel.errors import JournalError, UnavailableError
from constellation_otel.transports.journal import Journal
from deliveries import ListSink, execution
from delivering import ALWAYS, QUICK, Gate, MemoryStore, accept, away, events_of, is_balanced
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def waits(listener: BufferedListener[Any]) -> int:
    """How many events wait for the thread before the journal."""
    assert listener._journaled is not None
    return listener._journaled.front.worker.counters.held


def not_durable(listener: BufferedListener[Any]) -> int:
    counters = listener.counters.journal
    assert counters is not None
    return counters.not_durable


def test_what_comes_from_memory_comes_after_what_was_written(tmp_path: Path) -> None:
    """The sink takes nothing at first, so that the journal fills up; then all comes, in order."""
    gate = Gate()
    sink = ListSink(gate.wait)
    journal = Journal(tmp_path / "j.db", sinks=["list"], max_bytes=65_536)
    listener = BufferedListener(sink, journal=journal, max_queue=1_000)
    events = events_of(*range(500))
    for first in range(0, 2_000, 500):
        for event in events[first : first + 500]:
            listener.accept(event)
        eventually(lambda: not waits(listener), "they are taken out of the queue")
    assert 0 < not_durable(listener) < 2_000
    assert (listener.counters.held, listener.counters.dropped) == (2_000, 0)
    gate.opened.set()
    assert listener.flush(DEADLINE)
    assert sink.items == events
    assert listener.close(DEADLINE)
    assert is_balanced(listener.counters)


def test_what_comes_from_memory_waits_behind_older_events() -> None:
    """Of which the journal has more than there is room for at once."""
    store = MemoryStore(*events_of(*range(300)))
    store.appends = [UnavailableError("the disk is full")] * ALWAYS
    gate = Gate()
    sink = ListSink(gate.wait)
    listener = BufferedListener(sink, journal=store, max_queue=100, retry=QUICK)
    accept(listener, 1_000)
    eventually(lambda: not_durable(listener) == 4, "they go on")
    gate.opened.set()
    assert listener.flush(DEADLINE)
    assert sink.items == events_of(*range(300), 1_000)
    assert listener.close(DEADLINE)


def test_order_is_kept_while_a_journal_comes_and_goes() -> None:
    """Which it does at every other write, taking a part of what it is given."""
    store, sink = MemoryStore(), ListSink()
    store.appends = [UnavailableError("the disk is full"), 1, 2, 100_000] * 100
    listener = BufferedListener(sink, journal=store, retry=QUICK)
    for number in range(60):
        accept(listener, number)
        eventually(lambda: not waits(listener), "they are taken out of the queue")
    assert listener.flush(DEADLINE)
    assert sink.items == events_of(*range(60))
    assert 0 < not_durable(listener) == 240 - len(store.events)
    assert listener.close(DEADLINE)
    assert listener.counters.delivered == 240
    assert sorted(store.acknowledged) == [*range(len(store.events))]


def test_nothing_piles_up_while_a_disk_takes_nothing_at_all() -> None:
    """Neither events nor acknowledgements: those that are owed are the journal's own."""
    store, sink = MemoryStore(*execution(1)), ListSink()
    store.appends = [UnavailableError("the disk is full")] * ALWAYS
    store.acknowledge_fault = UnavailableError("the disk is full")
    listener = BufferedListener(sink, journal=store, retry=QUICK)
    accept(listener, *range(2, 20))
    eventually(lambda: len(sink.items) == 76, "all of them arrive")
    owed = listener._pipeline.acknowledgements
    assert owed is not None
    eventually(lambda: listener._pipeline.waiting == owed.owed == 4, "what is owed is what the journal has")
    store.acknowledge_fault = None
    assert listener.flush(DEADLINE)
    assert sorted(store.acknowledged) == [0, 1, 2, 3]
    assert listener.close(DEADLINE)


@pytest.mark.parametrize("error", [UnavailableError("damaged"), JournalError("it is closed"), ZeroDivisionError()])
def test_a_journal_that_is_of_no_use_holds_nothing_up(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """It can be neither read nor written, for whatever reason."""
    store, sink = MemoryStore(*execution(1)), ListSink()
    store.reads = [error] * ALWAYS
    store.appends = [error] * ALWAYS
    listener = BufferedListener(sink, journal=store, retry=QUICK)
    accept(listener, 2)
    eventually(lambda: sink.items == execution(2), "they come from memory")
    assert not listener.close(0.2)
    assert (listener.counters.held, listener.counters.journal) == (4, JournalCounters(recovered=4, not_durable=4))
    assert f"the journal was not read: {str(error) or 'ZeroDivisionError'}; trying again in " in caplog.text


def test_a_journal_that_its_owner_has_closed_holds_nothing_up(tmp_path: Path) -> None:
    sink = ListSink()
    journal = Journal(tmp_path / "j.db", sinks=["list"])
    listener = BufferedListener(sink, journal=journal, retry=QUICK)
    journal.close()
    accept(listener, 1)
    eventually(lambda: sink.items == execution(1), "they come from memory")
    listener.close(1.0)
    assert listener.counters.held == 0


def test_the_end_tries_once_more_what_waits_for_the_journal() -> None:
    """Also at a sink that was away when it was asked last."""
    store, gate = MemoryStore(*execution(1)), Gate()
    store.appends = [UnavailableError("the disk is full")] * ALWAYS
    sink = away(gate)
    listener = BufferedListener(sink, journal=store, retry=QUICK)
    eventually(lambda: listener.last_error, "the sink is away")
    accept(listener, 2)
    assert listener._journaled is not None
    journaled = listener._journaled
    eventually(lambda: journaled.last_error, "the journal is full")
    gate.opened.set()
    assert listener.close(DEADLINE)
    assert sink.items == events_of(1, 2)


def test_a_journal_that_cannot_be_read_now_is_read_later(caplog: pytest.LogCaptureFixture) -> None:
    store, sink = MemoryStore(), ListSink()
    store.reads = [UnavailableError("busy")] * 2
    listener = BufferedListener(sink, journal=store, retry=QUICK)
    accept(listener, 1)
    assert listener.flush(DEADLINE)
    assert sink.items == execution(1)
    assert listener.close(DEADLINE)
    assert "BufferedListener: the journal was not read: busy; trying again in " in caplog.text


@pytest.mark.parametrize("has_letters", [True, False])
def test_a_record_that_cannot_be_read_is_left_out_and_counted(
    tmp_path: Path, has_letters: bool, caplog: pytest.LogCaptureFixture
) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl") if has_letters else None
    store, sink = MemoryStore(), ListSink()
    store.items = [Unreadable(b"junk", "not an event", store.next_position())]
    listener = BufferedListener(sink, journal=store, dead_letters=letters)
    listener.accept(execution(1)[0])
    assert listener.flush(DEADLINE)
    assert (sink.items, sorted(store.acknowledged)) == (execution(1)[:1], [0, 1])
    assert listener.close(DEADLINE)
    assert (listener.counters.rejected, listener.counters.held) == (1, 0)
    assert "the journal's record 0 cannot be read and is left out: not an event" in caplog.text
    assert (tmp_path / "dead.jsonl").exists() is has_letters


def test_flushing_waits_for_what_was_written_meanwhile() -> None:
    """Not only for what the journal had when it was read last."""
    store, sink, gate = MemoryStore(*execution(1)), ListSink(), Gate()
    store.reads = [gate.wait]
    listener = BufferedListener(sink, journal=store)
    assert gate.reached.wait(DEADLINE)
    accept(listener, 2)
    assert listener._journaled is not None
    assert listener._journaled.front.flush(DEADLINE)
    flushed: list[bool] = []
    thread = threading.Thread(target=lambda: flushed.append(listener._pipeline.flush(DEADLINE)))
    thread.start()
    gate.opened.set()
    thread.join(DEADLINE)
    assert (flushed, sink.items) == ([True], events_of(1, 2))
    assert listener.close(DEADLINE)


def test_no_time_passes_while_the_journal_cannot_be_read() -> None:
    """The ends of what is open may be in it."""
    store = MemoryStore()
    clock: list[bool] = []

    class Timed(BufferedListener[Any]):
        def _new_transform(self) -> Any:
            transform: Any = super()._new_transform()
            transform.run_clock = lambda *, runs: clock.append(runs)
            return transform

    store.reads = [UnavailableError("busy")] * 5
    listener = Timed(ListSink(), journal=store, retry=QUICK)
    accept(listener, 1)
    assert listener.flush(DEADLINE)
    assert listener.close(DEADLINE)
    assert clock.count(False) >= 5
    assert clock[-1]


def test_a_write_that_does_not_return_is_an_error_soon() -> None:
    gate, store = Gate(), MemoryStore()
    store.appends = [gate.wait]
    journaled = Journaled(store, "test", max_queue=100, retry=QUICK, write_timeout=0.05)
    pipe = journaled.front
    assert pipe.give(Batch(execution(1), range(1, 5))) == 4
    assert gate.reached.wait(DEADLINE)
    eventually(lambda: journaled.last_error, "it is an error")
    assert journaled.last_error is not None
    assert journaled.last_error.reason.startswith("the journal takes no events: send() has not returned for")
    assert journaled.last_error.needs_fixing
    gate.opened.set()
    journaled.close_front(time.monotonic() + DEADLINE)
    journaled.close_store(time.monotonic() + DEADLINE)
    assert (store.events, store.closed, journaled.in_memory) == (execution(1), 1, 0)
    journaled.close_store(time.monotonic() + DEADLINE)
    assert store.closed == 1


def test_a_journal_is_left_open_where_no_thread_can_be_had(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To close it in; the interpreter is going down then, and lets go of everything."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    store = MemoryStore()
    journaled = Journaled(store, "test", max_queue=100, retry=QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        journaled.close_store(time.monotonic())
    assert "no thread to close the journal: can't create new thread" in caplog.text
    closed = [store.closed]
    journaled.close_store(time.monotonic() + DEADLINE)
    assert [*closed, store.closed] == [0, 1]


def test_the_reading_end_is_a_source_as_any_other_one() -> None:
    """It acknowledges for its sink, and hears nothing of a journal that is closed."""
    store = MemoryStore(*events_of(1))
    end = ReadingEnd(store, "list")
    (batch,) = end.read(0.0)
    assert (end.name, end.held(), end.is_at_end) == ("the journal for list", 4, True)
    assert (getattr(batch, "events", None), getattr(batch, "offsets", None)) == (execution(1), [0, 1, 2, 3])
    end.acknowledge([Position(None, 0)])
    assert store.acknowledged == [0]
    store.acknowledge_fault = JournalError("it is closed")
    with pytest.raises(JournalError, match="it is closed"):
        end.acknowledge([Position(None, 1)])
    end.close()
    end.acknowledge([Position(None, 1)])
    assert store.acknowledged == [0]


def test_many_threads_and_an_unsteady_disk_lose_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Nor deliver anything twice, while nothing hangs."""
    caplog.set_level(logging.CRITICAL)
    store, sink = MemoryStore(), ListSink(*[UnavailableError("away"), []] * 20)
    store.appends = [UnavailableError("busy"), 3, 100_000, ZeroDivisionError(), 0] * 50
    listener = BufferedListener(sink, journal=store, retry=QUICK)
    numbers: Sequence[range] = [range(at, at + 50) for at in range(0, 200, 50)]
    threads = [threading.Thread(target=accept, args=(listener, *part)) for part in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert listener.close(DEADLINE)
    assert (len(sink.items), listener.counters.delivered, is_balanced(listener.counters)) == (800, 800, True)
    for number in range(200):
        assert [it for it in sink.items if it.execution_id.int == number] == execution(number)
