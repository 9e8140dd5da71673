"""When a worker does what it does: the linger, ticks and nudges."""

from __future__ import annotations

import threading
import time

import pytest

from constellation_otel.delivery import QueueCounters, Worker
from support import DEADLINE, eventually
from worker_handlers import Blocked, Doing


def test_flush_and_close_do_not_wait_for_the_linger() -> None:
    worker = Worker[int](Doing(), name="lingering", linger=1e6)
    worker.put(1)
    assert worker.flush(DEADLINE)
    worker.put(2)
    assert worker.close(DEADLINE)


@pytest.mark.parametrize("flushes", ["none", "one of nothing", "one of an item"])
def test_items_gather_for_as_long_as_the_linger(flushes: str) -> None:
    """Whatever was flushed before."""
    handled_at: list[float] = []
    worker = Worker[int](Doing(lambda _: handled_at.append(time.monotonic())), name="gathering", linger=0.1)
    if flushes == "one of an item":
        worker.put(0)
    if flushes != "none":
        assert worker.flush(DEADLINE)
    handled_at.clear()
    before = time.monotonic()
    worker.put(1)
    eventually(lambda: handled_at, "the item")
    assert handled_at[0] - before > 0.1 * 0.9
    assert worker.close(DEADLINE)


def test_half_of_the_queue_in_use_ends_the_linger() -> None:
    seen: list[int] = []
    worker = Worker[int](Doing(seen.append), name="half-full", linger=1e6, max_queue=100)
    worker.put(0)
    eventually(lambda: worker.wake_from == 49, "the linger")
    assert all(worker.put(item) for item in range(1, 50))
    eventually(lambda: seen == list(range(50)), "the items")
    assert worker.close(DEADLINE)


def test_there_is_no_linger_where_a_whole_batch_waits() -> None:
    blocked = Blocked()
    worker = Worker[int](blocked, name="batch", linger=1e6, max_batch=4)
    worker.put(0)
    worker.flush(0)
    assert blocked.entered.wait(DEADLINE)
    assert all(worker.put(item) for item in range(1, 5))
    blocked.gate.set()
    eventually(lambda: blocked.items == list(range(5)), "the batch")
    assert worker.close(DEADLINE)


def test_there_is_no_linger_where_only_a_tick_is_due() -> None:
    ticks: list[int] = []

    def tick() -> float | None:
        ticks.append(len(ticks))
        return 0.01 if len(ticks) < 3 else None

    worker = Worker[int](Doing(tick=tick), name="tick-only", linger=1e6)
    worker.put(1)
    assert worker.flush(DEADLINE)
    eventually(lambda: ticks == [0, 1, 2], "the ticks")
    assert worker.close(DEADLINE)


def test_a_tick_that_raises_is_called_again_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    ticked_at: list[float] = []

    def tick() -> None:
        ticked_at.append(time.monotonic())
        if len(ticked_at) == 1:
            raise ValueError

    worker = Worker[int](Doing(tick=tick), name="stumbling", linger=0, tick_again=0.1)
    worker.put(1)
    eventually(lambda: len(ticked_at) == 2, "the second tick")
    assert ticked_at[1] - ticked_at[0] > 0.1 * 0.9
    assert worker.counters == QueueCounters(received=1, delivered=1, dropped=0, rejected=0, held=0)
    assert worker.close(DEADLINE)
    assert [(record.getMessage(), record.exc_info and record.exc_info[0]) for record in caplog.records] == [
        ("stumbling: Doing.tick raised; the worker goes on", ValueError)
    ]


def test_a_tick_comes_after_every_batch_and_when_it_said() -> None:
    ticks: list[int] = []
    enough = threading.Event()

    def tick() -> float | None:
        ticks.append(len(ticks))
        if len(ticks) == 3:
            enough.set()
            return None
        return 0.01

    worker = Worker[int](Doing(tick=tick), name="ticking", linger=0)
    worker.put(1)
    assert enough.wait(DEADLINE)
    assert worker.close(DEADLINE)


def test_a_nudge_has_tick_called_without_any_item() -> None:
    ticked = threading.Event()
    worker = Worker[int](Doing(tick=ticked.set), name="nudged")
    worker.nudge()
    assert ticked.wait(DEADLINE)
    ticked.clear()
    worker.nudge()
    assert ticked.wait(DEADLINE)
    assert worker.close(DEADLINE)


def test_a_nudge_after_the_end_starts_no_thread() -> None:
    worker = Worker[int](Doing(), name="ended")
    assert worker.close(DEADLINE)
    worker.nudge()
    assert worker._thread is None
