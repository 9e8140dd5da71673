"""BufferedListener with a journal: durable, in order, and truthful where a disk fails, is locked, or hangs."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from constellation_otel.delivery import BufferedListener, Counters, JournalCounters, SendingCounters
from constellation_otel.errors import JournalError, UnavailableError
from constellation_otel.events import ModuleFailed
from constellation_otel.transports.journal import Journal
from deliveries import ListSink, execution
from delivering import ALWAYS, QUICK, Gate, MemoryStore, accept, away, events_of, is_balanced, raises_for
from delivering import taking_less_than as less_than
from journals import locked, run, taken_away
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from constellation_otel.delivery import Transform
    from constellation_otel.events import Event


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "telemetry.db"


def opened(path: Path) -> Journal:
    """A journal; on a busy machine a listener that was closed before has the file a moment longer."""
    made: list[Journal] = []

    def make() -> bool:
        try:
            made.append(Journal(path, sinks=["list"]))
        except JournalError as error:
            assert "only one at a time" in str(error)  # noqa: PT017 - others are none of these
        return bool(made)

    eventually(make, "the file is free")
    return made[0]


def held_in(path: Path) -> int:
    """How many events a journal holds for the sink."""
    journal = opened(path)
    held = journal.held("list")
    journal.close()
    return held


@pytest.mark.parametrize("is_path", [True, False])
def test_a_journal_is_empty_when_everything_has_arrived(path: Path, is_path: bool) -> None:
    sink = ListSink()
    listener = BufferedListener(sink, journal=path if is_path else Journal(path, sinks=["list"]))
    accept(listener, 1)
    assert listener.flush(DEADLINE)
    assert sink.items == execution(1)
    assert listener.close(DEADLINE)
    assert listener.counters == Counters(4, 4, 0, 0, 0, sending=SendingCounters(sent=4), journal=JournalCounters())
    assert held_in(path) == 0


def test_the_next_process_delivers_what_was_not_delivered(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = BufferedListener(away(Gate()), journal=path, retry=QUICK)
    accept(first, 1)
    assert not first.flush(0.2)
    assert not first.close(0.4)
    assert "4 events are still held, 0 of them in no journal" in caplog.text
    sink = ListSink()
    listener = BufferedListener(sink, journal=opened(path))
    accept(listener, 2)
    assert listener.flush(DEADLINE)
    assert sink.items == events_of(1, 2)
    sending, journal = SendingCounters(sent=8), JournalCounters(recovered=4)
    assert listener.counters == Counters(8, 8, 0, 0, 0, sending=sending, journal=journal)
    assert listener.close(DEADLINE)
    assert "the journal holds 4 events of an earlier run; they are delivered now" in caplog.text


def test_more_than_a_sender_holds_comes_from_the_journal(path: Path) -> None:
    """And more than one page of it."""
    before = Journal(path, sinks=["list"])
    before.append(events_of(*range(400)))
    before.close()
    sink = ListSink()
    listener = BufferedListener(sink, journal=path, max_queue=600)
    assert listener.flush(DEADLINE)
    assert sink.items == events_of(*range(400))
    assert listener.close(DEADLINE)


def test_closing_brings_more_than_a_sender_holds_as_well(path: Path) -> None:
    before = Journal(path, sinks=["list"])
    before.append(events_of(*range(400)))
    before.close()
    gate = Gate()
    sink = ListSink(gate.wait)
    listener = BufferedListener(sink, journal=path, max_queue=100)
    assert gate.reached.wait(DEADLINE)
    listener._pipeline.close_by(time.monotonic() + DEADLINE)
    gate.opened.set()
    assert listener.close(DEADLINE)
    assert len(sink.items) == 1_600


def test_a_restart_in_the_journal_is_not_an_event_that_is_held(path: Path) -> None:
    """A bridge has written it, say."""
    before = Journal(path, sinks=["list"])
    before.append([*events_of(1), None])
    before.close()
    sink = ListSink()
    listener = BufferedListener(sink, journal=path)
    assert listener.flush(DEADLINE)
    assert listener.close(DEADLINE)
    sending, journal = SendingCounters(sent=4), JournalCounters(recovered=5)
    assert listener.counters == Counters(4, 4, 0, 0, 0, sending=sending, journal=journal)
    assert (sink.items, held_in(path)) == (events_of(1), 0)


def test_an_error_has_its_stack_trace_in_the_journal(path: Path) -> None:
    """And an event that no sink could take is rejected before that, alone."""
    sink = ListSink()
    listener = BufferedListener(sink, journal=path)
    try:
        raise ValueError("bad")
    except ValueError as error:
        listener.on_module_failed(UUID(int=1), UUID(int=2), "trim", error)
    listener.on_module_start(UUID(int=1), UUID(int=2), 7)  # type: ignore[arg-type] # what is tested
    assert listener.flush(DEADLINE)
    (failed,) = sink.items
    assert isinstance(failed, ModuleFailed)
    assert "ValueError: bad" in str(failed.error.stacktrace)
    assert listener.close(DEADLINE)
    assert (listener.counters.rejected, listener.counters.held) == (1, 0)


def test_a_listener_that_cannot_be_made_leaves_the_file_free(path: Path) -> None:
    class Refusing(BufferedListener["Event"]):
        def _new_transform(self) -> Transform[Event]:
            raise ValueError("max_open=0 must be at least 1")

    with pytest.raises(ValueError, match="max_open=0"):
        Refusing(ListSink(), journal=path)
    Journal(path, sinks=["list"]).close()


def test_what_a_journal_cannot_take_is_said_and_not_durable(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It goes to the sink from memory until the journal can be written again."""
    sink = ListSink()
    listener = BufferedListener(sink, journal=path, retry=QUICK)
    accept(listener, 1)
    assert listener.flush(DEADLINE)
    with taken_away(path):
        accept(listener, 2)
        assert listener.flush(DEADLINE)
        assert sink.items == events_of(1, 2)
        assert listener.last_error is not None
        assert listener.last_error.reason.startswith(f"the journal takes no events: {path} was moved, deleted")
        assert listener.last_error.needs_fixing
    assert "was moved, deleted or replaced while it was open" in caplog.text

    def is_written_again() -> bool:
        accept(listener, 3)
        return listener.last_error is None

    eventually(is_written_again, "the journal is written again")
    assert listener.flush(DEADLINE)
    counters = listener.counters
    assert listener.close(DEADLINE)
    assert counters.journal is not None
    assert counters.journal.not_durable >= 4
    assert counters.delivered == counters.received == len(sink.items)
    assert held_in(path) == 0


def test_a_journal_without_acknowledgements_is_an_error() -> None:
    store = MemoryStore()
    store.acknowledge_fault = UnavailableError("the disk is full")
    listener = BufferedListener(ListSink(), journal=store, retry=QUICK)
    accept(listener, 1)
    eventually(lambda: listener.last_error, "its error")
    assert listener.last_error is not None
    assert listener.last_error.reason == "delivered records cannot be acknowledged: the disk is full"
    assert listener.counters.journal is not None
    assert listener.counters.journal.failed_acknowledgements > 0
    assert not listener.flush(0.05)
    store.acknowledge_fault = None
    assert listener.flush(DEADLINE)
    assert listener.last_error is None
    assert listener.close(DEADLINE)


def test_what_stays_unacknowledged_at_the_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """It is delivered, and comes again; where that takes an operator, it is not waited for."""
    store, sink = MemoryStore(), ListSink()
    store.acknowledge_fault = RuntimeError("a defect")
    listener = BufferedListener(sink, journal=store, retry=QUICK)
    accept(listener, 1)
    eventually(lambda: listener.last_error, "its error")
    with less_than(DEADLINE / 2):
        assert not listener.close(DEADLINE)
    assert (sink.items, listener.counters.held) == (execution(1), 0)
    what = "4 delivered records stay in the journal: delivered records cannot be acknowledged: a defect"
    assert what in caplog.text


def test_an_absent_sink_gets_nothing_from_memory(path: Path) -> None:
    """The journal gets it, when it can."""
    listener = BufferedListener(away(Gate()), journal=path, retry=QUICK)
    accept(listener, 1)
    eventually(lambda: listener.last_error, "the sink is away")
    journaled = listener._journaled
    assert journaled is not None
    with taken_away(path):
        accept(listener, 2)
        eventually(lambda: journaled.last_error, "the journal is away, too")
    eventually(lambda: journaled.last_error is None and not journaled.front.held, "it is written after all")
    assert listener.counters.journal == JournalCounters()
    assert not listener.close(0.1)
    assert held_in(path) == 8


def test_the_newest_are_dropped_where_nothing_takes_events(caplog: pytest.LogCaptureFixture) -> None:
    """A journal and a sink that are away hold as much as the queue."""
    store = MemoryStore()
    store.appends = [UnavailableError("the disk is full")] * ALWAYS
    listener = BufferedListener(away(Gate()), journal=store, max_queue=3, retry=QUICK)
    listener.accept(execution(1)[0])
    eventually(lambda: listener._pipeline.sender.last_error, "the sink is away")
    for event in [*execution(1)[1:], *events_of(2, 3)]:
        listener.accept(event)
    assert not listener.flush(0.05)
    assert not listener.close(0.2)
    counters = listener.counters
    assert counters.received == 12 == counters.held + counters.dropped
    assert counters.dropped > 0
    assert f"{counters.held} events are still held, {counters.held} of them in no journal" in caplog.text


def test_an_event_for_which_a_journal_raises_is_rejected(tmp_path: Path) -> None:
    """Alone. That is a defect: what passes the door can be written."""
    store, sink = MemoryStore(), ListSink()
    store.appends = [raises_for(2)] * 20
    dead = tmp_path / "dead.jsonl"
    listener = BufferedListener(sink, journal=store, dead_letters=dead, retry=QUICK)
    for number in (1, 2, 3):
        listener.on_execution_start(UUID(int=number), "dag")
    assert listener.flush(DEADLINE)
    assert [event.execution_id.int for event in sink.items] == [1, 3]
    assert listener.close(DEADLINE)
    counters = listener.counters
    assert (counters.received, counters.delivered, counters.rejected, counters.held) == (3, 2, 1, 0)
    assert len(dead.read_text().splitlines()) == 1


@pytest.mark.parametrize("faults", [4, 3, 1])
def test_a_journal_that_raises_for_a_while_loses_nothing(faults: int) -> None:
    """Nor does one that recovers in the middle of being looked at."""
    store, sink = MemoryStore(), ListSink()
    store.appends = [ZeroDivisionError("a defect")] * faults
    listener = BufferedListener(sink, journal=store, retry=QUICK)
    listener.on_execution_start(UUID(int=1), "dag")
    listener.on_execution_cancelled(UUID(int=1), "dag")
    eventually(lambda: len(sink.items) == 2, "they come from memory or from the journal")
    assert listener.close(DEADLINE)
    assert (listener.counters.delivered, listener.counters.rejected) == (2, 0)


@pytest.mark.parametrize("timeout", [0, -1.0, math.nan, -math.inf, 0.1])
def test_a_locked_journal_delays_neither_flush_nor_close(
    path: Path, timeout: float, caplog: pytest.LogCaptureFixture
) -> None:
    """And what they say is true."""
    listener = BufferedListener(away(Gate()), journal=path, retry=QUICK)
    accept(listener, 1)
    assert not listener.flush(0.1)
    eventually(lambda: listener.last_error, "the sink is away")
    with locked(path):
        accept(listener, 2)
        with less_than(0.5):
            assert not listener.flush(timeout)
        with less_than(0.5):
            assert listener.counters.held == 8
        with less_than(0.5):
            assert not listener.close(timeout)
        assert listener._journaled is not None
        workers = [listener._pipeline.worker, listener._journaled.front.worker]
        eventually(lambda: all(worker.has_finished for worker in workers), "nobody waits for the lock any longer")
        assert not listener.close(timeout)
        assert (listener.counters.held, is_balanced(listener.counters)) == (8, True)
    assert "8 events are still held, 4 of them in no journal" in caplog.text
    assert held_in(path) == 4


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 1e10])
def test_timeouts_without_an_end_are_taken_as_they_are(path: Path, timeout: float) -> None:
    sink = ListSink(UnavailableError("away"))
    listener = BufferedListener(sink, journal=path, retry=QUICK)
    accept(listener, 1)
    assert listener.flush(timeout)
    sink.faults = [UnavailableError("away")]
    accept(listener, 2)
    assert listener.close(timeout)
    assert listener.counters.delivered == 8


def test_a_disk_that_hangs_keeps_nobody_beyond_the_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """The sink has what is in the call that hangs, and what waits behind it, from memory."""
    gate = Gate()
    store, sink = MemoryStore(), ListSink()
    store.appends = [gate.wait]
    listener = BufferedListener(sink, journal=store)
    accept(listener, 1)
    assert gate.reached.wait(DEADLINE)
    accept(listener, 2)
    with less_than(3.0):
        assert listener.close(1.0)
    assert sink.items == events_of(1, 2)
    assert listener.counters.journal == JournalCounters(not_durable=8)
    assert "BufferedListener-journal: not done within" in caplog.text
    assert (listener.close(0.1), listener.counters.held, len(sink.items)) == (True, 0, 8)
    gate.opened.set()
    eventually(lambda: store.events == execution(1), "the disk is back")
    assert (listener.close(0.1), listener.counters.journal) == (True, JournalCounters(not_durable=8))
    assert is_balanced(listener.counters)


def test_a_hanging_disk_and_an_absent_sink_lose_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    store = MemoryStore()
    store.appends = [gate.wait]
    listener = BufferedListener(away(Gate()), journal=store, retry=QUICK)
    accept(listener, 1)
    assert gate.reached.wait(DEADLINE)
    accept(listener, 2)
    with less_than(3.0):
        assert not listener.close(0.2)
    assert (listener.counters.held, is_balanced(listener.counters)) == (8, True)
    assert "8 events are still held, 8 of them in no journal" in caplog.text
    gate.opened.set()


def test_a_sink_that_hangs_keeps_nobody_beyond_the_timeout(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When it is back, it is told that its acknowledgement is not heard; all is in the journal."""
    gate = Gate()
    listener = BufferedListener(ListSink(gate.wait), journal=path)
    accept(listener, 1)
    assert gate.reached.wait(DEADLINE)
    accept(listener, 2)
    with less_than(3.0):
        assert not listener.close(0.2)
    assert "8 events are still held, 0 of them in no journal" in caplog.text
    gate.opened.set()
    eventually(lambda: listener._pipeline.worker.has_finished, "the sink is back")
    assert is_balanced(listener.counters)
    assert "JournalError" not in caplog.text
    assert held_in(path) == 8


def test_a_journal_that_nobody_can_close_is_left_behind() -> None:
    gate = Gate()
    store = MemoryStore()
    store.close = gate.wait  # type: ignore[method-assign] # it hangs
    listener = BufferedListener(ListSink(), journal=store)
    accept(listener, 1)
    assert listener.flush(DEADLINE)
    with less_than(3.0):
        assert not listener.close(0.1)
    assert gate.reached.is_set()
    assert listener.counters.held == 0
    gate.opened.set()
    eventually(lambda: listener.close(0.1), "it is closed after all")


def test_a_forked_child_leaves_the_journal_to_its_parent(path: Path, tmp_path: Path) -> None:
    """And delivers from memory, and says so once, with its first event."""
    out, sink = tmp_path / "child", ListSink()
    listener = BufferedListener(sink, journal=path)
    accept(listener, 1)
    assert listener.flush(DEADLINE)
    child = os.fork()
    if child == 0:
        try:
            said: list[str] = []
            handler = logging.Handler()
            handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
            logging.getLogger("constellation_otel").addHandler(handler)
            accept(listener, 2)
            flushed = listener.flush(DEADLINE)
            accept(listener, 3)
            closed = listener.close(DEADLINE)
            ids = {item.execution_id.int: None for item in sink.items[4:]}
            out.write_text("\n".join([f"{flushed} {closed} {[*ids]} {listener.counters.received}", *said]))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    what = "BufferedListener: the journal is the parent process's; this child delivers from memory, without one"
    assert out.read_text().splitlines() == ["True True [2, 3] 8", what]
    accept(listener, 3)
    assert listener.flush(DEADLINE)
    assert listener.close(DEADLINE)
    assert sink.items == events_of(1, 3)


def test_a_forked_child_without_an_event_touches_nothing(tmp_path: Path) -> None:
    """It closes no journal, and has nothing to say."""
    store, out = MemoryStore(), tmp_path / "child"
    listener = BufferedListener(ListSink(), journal=store)
    accept(listener, 1)
    assert listener.flush(DEADLINE)
    child = os.fork()
    if child == 0:
        try:
            said: list[str] = []
            handler = logging.Handler()
            handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
            logging.getLogger("constellation_otel").addHandler(handler)
            closed = listener.close(DEADLINE)
            out.write_text(f"{closed} {store.closed} {said} {listener.counters.journal}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert out.read_text() == "True 0 [] None"
    assert listener.close(DEADLINE)
    assert store.closed == 1


EXIT = """
import sys
sys.path[:0] = sys.argv[2].split(":")
from constellation_otel.delivery import BufferedListener
from delivering import accept
from deliveries import ListSink
import atexit

sink = ListSink()
# registered first, so that it is called last
atexit.register(lambda: print(len(sink.items), sink.closed))
listener = BufferedListener(sink, journal=sys.argv[1])
accept(listener, *range(int(sys.argv[3])))
"""


@pytest.mark.parametrize("executions", [0, 3])
def test_an_exit_without_a_close_delivers_and_closes(path: Path, executions: int) -> None:
    """The sink, and the journal, whose log is folded into its file."""
    tests = ":".join(entry for entry in sys.path if entry.endswith("tests"))
    assert run(EXIT, path, tests, executions) == [f"{4 * executions} 1"]
    assert sorted(it.name for it in path.parent.iterdir() if "lock" not in it.name) == ["telemetry.db"]
    assert held_in(path) == 0
