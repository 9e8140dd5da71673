"""BufferedListener without a journal: from callbacks to a sink, counted, in time, and across a fork."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from constellation_otel.delivery import BufferedListener, Counters, DeadLetters, Rejection, SendingCounters
from constellation_otel.errors import UnavailableError
from constellation_otel.events import ExecutionStarted, ModuleStarted
from deliveries import T0, ListSink, execution
from delivering import QUICK, Gate, accept, away, events_of, is_balanced, taking_less_than
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from constellation_otel.events import Event


def test_every_callback_arrives_as_its_event_in_its_order() -> None:
    sink = ListSink()
    listener = BufferedListener(sink)
    for event in execution(1, fails=True):
        event.notify(listener)
    listener.on_execution_cancelled(UUID(int=1), "dag-1")
    assert listener.flush(DEADLINE)
    assert [type(item).__name__ for item in sink.items] == [
        "ExecutionStarted",
        "ModuleStarted",
        "ModuleFailed",
        "ExecutionCompleted",
        "ExecutionCancelled",
    ]
    assert listener.close(DEADLINE)
    assert listener.counters == Counters(5, 5, 0, 0, 0, sending=SendingCounters(sent=5))
    assert (sink.closed, listener.last_error, listener.trouble) == (1, None, None)


def test_events_that_were_read_elsewhere_keep_their_time() -> None:
    sink = ListSink()
    listener = BufferedListener(sink)
    events: list[Event] = [ExecutionStarted(UUID(int=1), "dag", T0), ModuleStarted(UUID(int=1), None, "trim", T0 + 1)]
    for event in events:
        listener.accept(event)
    assert listener.close(DEADLINE)
    assert sink.items == events


def test_a_queue_without_room_for_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="max_queue=0 must be at least 1"):
        BufferedListener(ListSink(), max_queue=0)


def test_what_a_sink_cannot_take_now_is_delivered_later() -> None:
    gate = Gate()
    sink = away(gate)
    listener = BufferedListener(sink, retry=QUICK)
    accept(listener, 1)
    eventually(lambda: listener.last_error is not None, "the error is told")
    assert listener.last_error is not None
    assert (listener.last_error.reason, listener.last_error.needs_fixing) == ("away", False)
    assert listener.trouble == listener.last_error
    assert not listener.flush(0.05)
    assert listener.counters.held == 4
    gate.opened.set()
    assert listener.flush(DEADLINE)
    assert sink.items == execution(1)
    assert listener.close(DEADLINE)
    assert listener.counters.sending.retried > 0


def test_what_finds_everything_full_is_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    sink = ListSink(gate.wait)
    listener = BufferedListener(sink, max_queue=4)
    events = events_of(*range(10))
    listener.accept(events[0])
    assert gate.reached.wait(DEADLINE)
    for event in events[1:]:
        listener.accept(event)
    counters = listener.counters
    assert counters.received == 40 == counters.dropped + counters.held
    assert counters.dropped >= 40 - 1 - 4
    gate.opened.set()
    assert listener.close(DEADLINE)
    counters = listener.counters
    assert (counters.held, counters.delivered) == (0, 40 - counters.dropped)
    assert len(sink.items) == counters.delivered
    assert "the queue is full (4 items); dropping the newest" in caplog.text


@pytest.mark.parametrize("is_path", [True, False])
def test_what_is_refused_is_counted_and_dead_lettered(tmp_path: Path, is_path: bool) -> None:
    dead = tmp_path / "dead.jsonl"
    letters = dead if is_path else DeadLetters(dead)
    listener = BufferedListener(ListSink([Rejection(0, 1, "no")]), dead_letters=letters)
    listener.accept(execution(1)[0])
    assert listener.close(DEADLINE)
    assert listener.counters == Counters(1, 0, 0, 1, 0, sending=SendingCounters(refused=1, dead_lettered=1))
    assert len(dead.read_text().splitlines()) == 1


def test_an_event_that_no_sink_could_take_is_rejected(tmp_path: Path) -> None:
    """And what was corrected of another one is counted."""
    dead = tmp_path / "dead.jsonl"
    sink = ListSink()
    listener = BufferedListener(sink, dead_letters=dead)
    listener.on_module_start(UUID(int=1), UUID(int=2), 7)  # type: ignore[arg-type] # what is tested
    listener.accept(ExecutionStarted(UUID(int=1), "dag-\ud800", T0))
    assert listener.close(DEADLINE)
    assert sink.items == [ExecutionStarted(UUID(int=1), "dag-\ufffd", T0)]
    sending = SendingCounters(sent=1, dead_lettered=1)
    assert listener.counters == Counters(2, 1, 0, 1, 0, corrected=1, sending=sending)
    assert len(dead.read_text().splitlines()) == 1


def test_closing_tells_the_truth_about_an_absent_sink(caplog: pytest.LogCaptureFixture) -> None:
    """In its time; and again, when it is asked again."""
    listener = BufferedListener(away(Gate()), retry=QUICK)
    accept(listener, 1)
    with taking_less_than(3.0):
        assert not listener.close(0.2)
    assert not listener.close(0.0)
    assert listener.counters.held == 4
    assert "4 events are still held, 4 of them in no journal: those are lost when the process ends" in caplog.text


def test_flushing_keeps_its_timeout_while_a_sink_is_slow() -> None:
    gate = Gate()
    listener = BufferedListener(ListSink(gate.wait))
    listener.accept(execution(1)[0])
    assert gate.reached.wait(DEADLINE)
    for event in execution(1)[1:]:
        listener.accept(event)
    assert not listener.flush(0.05)
    gate.opened.set()
    assert listener.flush(DEADLINE)
    assert listener.close(DEADLINE)


def test_a_sink_that_hangs_keeps_nobody_beyond_the_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """And what is said is true, then and later."""
    gate = Gate()
    listener = BufferedListener(ListSink(gate.wait))
    accept(listener, 1)
    assert gate.reached.wait(DEADLINE)
    accept(listener, 2)
    with taking_less_than(3.0):
        assert not listener.close(0.1)
    assert (listener.counters.held, is_balanced(listener.counters)) == (8, True)
    assert "8 events are still held" in caplog.text
    gate.opened.set()
    eventually(lambda: listener._pipeline.worker.has_finished, "the sink is back")
    assert listener.close(0.1) is (listener.counters.held == 0)
    assert is_balanced(listener.counters)


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 1e10])
def test_timeouts_without_an_end_are_taken_as_they_are(timeout: float) -> None:
    sink = ListSink(UnavailableError("away"))
    listener = BufferedListener(sink, retry=QUICK)
    accept(listener, 1)
    assert listener.flush(timeout)
    sink.faults = [UnavailableError("away")]
    accept(listener, 2)
    assert listener.close(timeout)
    assert listener.counters.delivered == 8


def test_a_forked_child_starts_with_nothing_of_its_parents(tmp_path: Path) -> None:
    """And delivers its own."""
    gate, out = Gate(), tmp_path / "child"
    sink = ListSink(gate.wait)
    listener = BufferedListener(sink)
    accept(listener, 1)
    assert gate.reached.wait(DEADLINE)
    child = os.fork()
    if child == 0:
        try:
            sink.items, sink.faults = [], []
            accept(listener, 2)
            closed = listener.close(DEADLINE)
            out.write_text(f"{closed} {[item.execution_id.int for item in sink.items]} {listener.counters.received}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    gate.opened.set()
    assert listener.close(DEADLINE)
    assert out.read_text() == "True [2, 2, 2, 2] 4"
    assert sink.items == execution(1)
