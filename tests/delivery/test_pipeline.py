"""The way to one sink by itself: what finds no room, what comes too late, and what the end does."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from constellation_otel.delivery import Batch, Position, Restarted, SinkCounters
from constellation_otel.delivery.journaled import Journaled
from constellation_otel.delivery.pipeline import SPILLED, Pipeline, Spilled
from constellation_otel.delivery.sender import Sender
from constellation_otel.delivery.transform import PassThrough
from constellation_otel.errors import UnavailableError
from deliveries import ListSink, execution
from delivering import ALWAYS, QUICK, Gate, MemoryStore, events_of
from support import DEADLINE, eventually

if TYPE_CHECKING:
    import pytest

    from constellation_otel.delivery.receipt import Receipt


def pipeline_to(sink: ListSink, **options: Any) -> Pipeline[Any]:
    return Pipeline(lambda: Sender(sink, PassThrough(), max_held=4, retry=QUICK), name="test", **options)


def test_a_batch_is_taken_as_far_as_there_is_room_for_it(caplog: pytest.LogCaptureFixture) -> None:
    """The rest of it is dropped; any batch finds room in an empty queue."""
    gate = Gate()
    sink = ListSink(gate.wait)
    pipeline = pipeline_to(sink, max_queue=6)
    events = events_of(1, 2, 3)
    assert pipeline.give(Batch(events[:4], range(1, 5))) == 4
    assert gate.reached.wait(DEADLINE)
    assert pipeline.give(Batch(events[4:8], range(5, 9))) == 4
    assert (pipeline.has_room(2), pipeline.has_room(3)) == (True, False)
    assert pipeline.give(Batch(events[8:], range(9, 13))) == 2
    assert (pipeline.held, pipeline.queued, pipeline.dropped) == (10, 6, 2)
    assert "test: the queue is full (6 events); dropping the newest" in caplog.text
    gate.opened.set()
    assert pipeline.flush(DEADLINE)
    assert pipeline.close(DEADLINE)
    assert (sink.items, sink.closed) == (events[:10], 1)
    assert pipeline.counters == SinkCounters(10, 10, 0, 0, 0, pipeline.counters.sending)


def test_what_is_given_to_a_closed_pipeline_is_not_taken() -> None:
    sink = ListSink()
    pipeline = pipeline_to(sink)
    assert pipeline.close(DEADLINE)
    assert pipeline.give(Batch(execution(1), range(1, 5))) == 0
    assert not pipeline.spill(Spilled(Batch(execution(1), range(1, 5), SPILLED), 0))
    assert not pipeline.control(Restarted(Position(None, 9)))
    assert (pipeline.held, pipeline.dropped, sink.items) == (0, 4, [])


def test_a_thread_that_does_not_return_says_what_it_holds(caplog: pytest.LogCaptureFixture) -> None:
    """In the sender's hands, too."""
    gate = Gate()
    pipeline = pipeline_to(ListSink(gate.wait))
    pipeline.give(Batch(execution(1), range(1, 5)))
    assert gate.reached.wait(DEADLINE)
    pipeline.give(Batch(execution(2), range(5, 9)))
    assert not pipeline.close(0.1)
    assert "test: not done within 0.1 s of closing; 8 items are still held" in caplog.text
    gate.opened.set()
    eventually(lambda: pipeline.worker.has_finished, "it ends after all")
    assert pipeline.close(0.1)


def test_a_clock_that_stands_still_is_looked_at_again() -> None:
    """Though nothing happens meanwhile."""
    is_behind = [True]
    asked: list[bool] = []

    def look() -> bool:
        asked.append(is_behind[0])
        return is_behind[0]

    pipeline = pipeline_to(ListSink(), is_behind=look, look_again=0.01)
    pipeline.worker.nudge()
    eventually(lambda: len(asked) > 3, "it is looked at again and again")
    is_behind[0] = False
    eventually(lambda: not asked[-1], "it is not behind any more")
    assert pipeline.close(DEADLINE)


def test_the_drops_of_one_sink_are_not_waited_for_by_others() -> None:
    """Past the journal, where a sink has no room: what drops is settled for that sink, by request."""
    gate, settled = Gate(), list[int]()
    store = MemoryStore()
    store.appends = [UnavailableError("the disk is full")] * ALWAYS

    def settle(receipts: list[Receipt]) -> None:
        settled.extend(position.offset for receipt in receipts for position in receipt.positions())

    journaled = Journaled(store, "test", max_queue=100, retry=QUICK, drops=True, on_settled=settle)
    sinks = [ListSink(gate.wait, name="slow"), ListSink(name="fast")]
    pipelines = [
        pipeline_to(
            sink,
            max_queue=4,
            reads=journaled.reading_end(sink.name),
            on_settled=journaled.settle,
            on_end=journaled.end_sink,
        )
        for sink in sinks
    ]
    for pipeline in pipelines:
        journaled.add(pipeline)
    events = events_of(*range(6))
    for number in range(6):
        journaled.front.give(Batch(events[4 * number : 4 * number + 4], range(4 * number, 4 * number + 4)))
        eventually(lambda: len(sinks[1].items) == 4 * number + 4, "the fast one has it")  # noqa: B023 - now
    assert pipelines[0].dropped > 0
    gate.opened.set()
    eventually(lambda: sorted(settled) == [*range(24)], "everything is settled")
    assert len(sinks[0].items) + pipelines[0].dropped == 24
    assert (journaled.in_memory, pipelines[1].dropped) == (0, 0)
    for pipeline in [journaled.front, *pipelines]:
        assert pipeline.close(DEADLINE)
    assert store.closed >= 1


def test_nothing_is_said_of_a_restart_that_nobody_can_hear(caplog: pytest.LogCaptureFixture) -> None:
    """A sink of events has nothing to abandon."""
    caplog.set_level(logging.INFO)
    sink = ListSink()
    pipeline = pipeline_to(sink)
    assert pipeline.control(Restarted(Position(None, 9)))
    assert pipeline.flush(DEADLINE)
    assert pipeline.close(DEADLINE)
    assert (sink.items, caplog.messages, pipeline.counters) == ([], [], SinkCounters(0, 0, 0, 0, 0))
