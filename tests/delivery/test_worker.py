"""The bounded queue and its worker: order, bounds, faults, and what flush and close answer."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any

import pytest
from opentelemetry import context as otel_context

from constellation_otel.delivery import Handler, QueueCounters, Worker
from constellation_otel.delivery import worker as worker_module
from support import DEADLINE, eventually, in_threads
from worker_handlers import Blocked, Doing

PROMPTLY = 5.0
"""Seconds: far more than a timeout of 50 ms needs on a busy machine, far less than a test's deadline."""


def errors_in(caplog: pytest.LogCaptureFixture) -> list[tuple[str, Any]]:
    """What was logged with a traceback, and the exception's type."""
    return [(record.getMessage(), record.exc_info[0]) for record in caplog.records if record.exc_info]


def test_one_thread_handles_all_items_in_their_order() -> None:
    """The first item starts it; closing ends it."""
    seen: list[tuple[int, str]] = []
    worker = Worker[int](
        Doing(lambda item: seen.append((item, threading.current_thread().name))), name="orderly", linger=0
    )
    assert "orderly" not in {thread.name for thread in threading.enumerate()}
    assert all(worker.put(item) for item in range(1000))
    assert worker.flush(DEADLINE)
    assert seen == [(item, "orderly") for item in range(1000)]
    assert worker.counters == QueueCounters(received=1000, delivered=1000, dropped=0, rejected=0, held=0)
    assert worker.close(DEADLINE)
    eventually(lambda: "orderly" not in {thread.name for thread in threading.enumerate()}, "the thread's end")


def test_a_handler_needs_only_a_method_that_takes_items() -> None:
    class Plain(Handler[int]):
        def handle(self, items: list[int]) -> None:
            seen.extend(items)

    seen: list[int] = []
    handler = Plain()
    worker = Worker[int](handler, name="plain")
    worker.put(1)
    assert worker.close(DEADLINE)
    assert seen == [1]
    handler.after_fork()
    assert (handler.is_ready(), handler.tick(), handler.also_held()) == (True, None, 0)
    with pytest.raises(NotImplementedError):
        Handler[int]().handle([1])


def test_items_come_in_batches_no_larger_than_the_bound() -> None:
    class Sizes(Handler[int]):
        def handle(self, items: list[int]) -> None:
            entered.set()
            assert gate.wait(DEADLINE)
            sizes.append(len(items))

    sizes: list[int] = []
    entered, gate = threading.Event(), threading.Event()
    worker = Worker[int](Sizes(), name="batches", linger=0, max_batch=3)
    worker.put(0)
    assert entered.wait(DEADLINE)
    assert all(worker.put(item) for item in range(7))
    gate.set()
    assert worker.close(DEADLINE)
    assert sizes == [1, 3, 3, 1]


def test_other_threads_have_their_turn_within_a_batch() -> None:
    """A thread that wakes up need not wait for all of it."""
    sizes: list[int] = []
    gate = threading.Event()

    class Sizes(Handler[int]):
        def handle(self, items: list[int]) -> None:
            assert gate.wait(DEADLINE)
            sizes.append(len(items))

    worker = Worker(Sizes(), name="w", linger=0.0)
    worker.put(0)
    eventually(lambda: worker.counters.held == 1, "the first one is in its hands")
    for number in range(1, 201):
        worker.put(number)
    gate.set()
    assert worker.flush(DEADLINE)
    assert worker.close(DEADLINE)
    assert sum(sizes) == 201
    assert max(sizes) == 32


def test_a_full_queue_drops_counts_and_logs_the_newest(caplog: pytest.LogCaptureFixture) -> None:
    blocked = Blocked()
    worker = Worker[int](blocked, name="full", max_queue=3, linger=0)
    worker.put(0)
    assert blocked.entered.wait(DEADLINE)
    assert [worker.put(item) for item in range(1, 7)] == [True, True, True, False, False, False]
    assert worker.counters == QueueCounters(received=7, delivered=0, dropped=3, rejected=0, held=4)
    blocked.gate.set()
    assert worker.close(DEADLINE)
    assert blocked.items == [0, 1, 2, 3]
    assert worker.counters == QueueCounters(received=7, delivered=4, dropped=3, rejected=0, held=0)
    assert caplog.messages == ["full: the queue is full (3 items); dropping the newest"]


def test_a_full_queue_takes_some_more_of_what_others_are_misread_without() -> None:
    blocked = Blocked()
    worker = Worker[int](blocked, name="full", max_queue=1, linger=0)
    worker.put(0)
    assert blocked.entered.wait(DEADLINE)
    assert [worker.put(item, beyond=2) for item in (1, 2, 3, 4)] == [True, True, True, False]
    assert not worker.put(5)
    blocked.gate.set()
    assert worker.close(DEADLINE)
    assert not worker.put(6, beyond=2)
    assert blocked.items == [0, 1, 2, 3]
    assert worker.counters == QueueCounters(received=7, delivered=4, dropped=3, rejected=0, held=0)


def test_what_is_dropped_costs_one_lock_and_no_formatting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log's own lock counts it as well."""
    blocked = Blocked()
    worker = Worker[int](blocked, name="full", max_queue=1, linger=0)
    worker.put(0)
    assert blocked.entered.wait(DEADLINE)
    worker.put(1)
    condition = worker._condition
    with monkeypatch.context() as patch:
        # anything that used it would raise
        patch.setattr(worker, "_condition", None)
        assert [worker.put(item) for item in range(3)] == [False, False, False]
    assert worker._condition is condition
    assert worker.counters.dropped == 3
    blocked.gate.set()
    assert worker.close(DEADLINE)


def test_a_queue_must_have_room_for_one_item_at_least() -> None:
    with pytest.raises(ValueError, match="max_queue=0 must be at least 1"):
        Worker[int](Doing(), name="none", max_queue=0)


def test_nothing_is_taken_any_more_after_closing(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker[int](Doing(), name="closed")
    assert worker.close(DEADLINE)
    assert worker.close(DEADLINE)
    assert not worker.put(1)
    assert worker.counters == QueueCounters(received=1, delivered=0, dropped=1, rejected=0, held=0)
    assert caplog.messages == ["closed: the queue is closed; dropping the newest"]


def test_what_a_handler_raises_is_counted_and_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    def handle(item: int) -> None:
        if item == 1:
            raise ValueError(item)
        if item == 2:
            raise SystemExit
        seen.append(item)

    worker = Worker[int](Doing(handle), name="raising", max_batch=1)
    for item in range(4):
        worker.put(item)
    assert worker.close(DEADLINE)
    assert seen == [0, 3]
    assert worker.counters == QueueCounters(received=4, delivered=2, dropped=0, rejected=2, held=0)
    message = "raising: Doing.handle raised; the worker goes on"
    assert errors_in(caplog) == [(message, ValueError), (message, SystemExit)]


def test_a_batch_for_which_the_handler_raises_is_rejected() -> None:
    def handle(item: int) -> None:
        blocked.handle([item])
        if item == 2:
            raise ValueError

    blocked = Blocked()
    worker = Worker[int](Doing(handle), name="raising", linger=0)
    worker.put(0)
    assert blocked.entered.wait(DEADLINE)
    assert all(worker.put(item) for item in (1, 2, 3))
    blocked.gate.set()
    assert worker.close(DEADLINE)
    assert blocked.items == [0, 1, 2]
    assert worker.counters == QueueCounters(received=4, delivered=1, dropped=0, rejected=3, held=0)


def test_flush_and_close_keep_their_timeout_and_tell_the_truth(caplog: pytest.LogCaptureFixture) -> None:
    blocked = Blocked()
    worker = Worker[int](blocked, name="slow", linger=0)
    worker.put(1)
    worker.put(2)
    assert blocked.entered.wait(DEADLINE)
    before = time.monotonic()
    assert not worker.flush(0.05)
    assert not worker.close(0.05)
    assert 0.1 * 0.9 < time.monotonic() - before < PROMPTLY
    assert blocked.items == []
    assert caplog.messages == ["slow: not done within 0.1 s of closing; 2 items are still held"]
    blocked.gate.set()
    assert worker.flush(DEADLINE)
    assert worker.close(DEADLINE)


def test_a_close_that_fails_says_what_else_the_handler_holds(caplog: pytest.LogCaptureFixture) -> None:
    entered, gate = threading.Event(), threading.Event()

    def handle(_: int) -> None:
        entered.set()
        assert gate.wait(DEADLINE)

    worker = Worker[int](Doing(handle, also_held=lambda: 40), name="slow", linger=0)
    worker.put(1)
    assert entered.wait(DEADLINE)
    assert not worker.close(0)
    assert caplog.messages == ["slow: not done within 0.0 s of closing; 41 items are still held"]
    gate.set()
    assert worker.close(DEADLINE)


def test_timeouts_may_be_infinite_and_beyond_what_locks_take() -> None:
    worker = Worker[int](Doing(tick=lambda: 1e300), name="endless", linger=float("inf"))
    worker.put(1)
    assert worker.flush(float("inf"))
    worker.put(2)
    assert worker.close(float("inf"))
    assert worker.counters == QueueCounters(received=2, delivered=2, dropped=0, rejected=0, held=0)


def test_a_condition_is_awaited_that_the_worker_brings_about() -> None:
    seen: list[int] = []
    worker = Worker[int](Doing(seen.append), name="awaited", linger=0)
    assert not worker.wait_until(lambda: seen, 0.02)
    worker.put(1)
    assert worker.wait_until(lambda: seen == [1], DEADLINE)
    assert worker.close(DEADLINE)


def test_the_worker_cannot_wait_for_itself_to_flush() -> None:
    answers: list[bool] = []
    worker = Worker[int](Doing(lambda _: answers.append(worker.flush(DEADLINE))), name="selfish")
    worker.put(1)
    assert worker.close(DEADLINE)
    assert answers == [False]


def test_a_worker_that_closes_itself_ends_after_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    """It does not wait for itself."""
    calls: list[object] = []

    def handle(item: int) -> None:
        calls.append(item)
        if item == 1:
            calls.append(worker.close(DEADLINE))
            calls.append(worker.put(3))

    worker = Worker[int](Doing(handle, finish=lambda: calls.append("finish")), name="self-closing", linger=1e6)
    worker.put(1)
    worker.put(2)
    before = time.monotonic()
    worker.flush(DEADLINE)
    eventually(lambda: "self-closing" not in {thread.name for thread in threading.enumerate()}, "the thread's end")
    assert time.monotonic() - before < DEADLINE / 2
    assert calls == [1, False, False, 2, "finish"]
    assert worker.close(0)
    assert caplog.messages == ["self-closing: the queue is closed; dropping the newest"]


def test_items_wait_in_the_queue_while_the_worker_is_not_ready() -> None:
    """What finds the queue full is dropped meanwhile."""
    seen: list[int] = []
    ready = threading.Event()
    worker = Worker[int](Doing(seen.append, is_ready=ready.is_set), name="not ready", max_queue=2, linger=0)
    assert [worker.put(number) for number in range(3)] == [True, True, False]
    assert not worker.flush(0.05)
    assert (seen, worker.counters.held) == ([], 2)
    ready.set()
    worker.nudge()
    assert worker.flush(DEADLINE)
    assert worker.close(DEADLINE)
    assert seen == [0, 1]


def test_closing_takes_the_items_of_one_that_is_never_ready() -> None:
    seen: list[int] = []
    worker = Worker[int](Doing(seen.append, is_ready=lambda: False), name="never ready", linger=0)
    worker.put(1)
    assert worker.close(DEADLINE)
    assert seen == [1]


def test_a_question_that_raises_does_not_end_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    """Whether it is ready is not known then, and the items are taken."""
    seen: list[int] = []

    def is_ready() -> bool:
        raise LookupError

    worker = Worker[int](Doing(seen.append, is_ready=is_ready), name="doubtful", linger=0)
    worker.put(1)
    assert worker.flush(DEADLINE)
    assert worker.close(DEADLINE)
    assert seen == [1]
    assert errors_in(caplog) == [("doubtful: Doing.is_ready raised; the worker goes on", LookupError)]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_logging_handler_that_raises_reaches_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[BaseException]
) -> None:
    """Neither does the worker end, nor does who puts hear of it; it is on stderr."""

    def refuse(_: logging.LogRecord) -> bool:
        raise error("the log is broken")

    monkeypatch.setattr(worker_module._LOGGER, "filters", [refuse])
    seen: list[int] = []

    def handle(item: int) -> None:
        if item == 0:
            raise LookupError(item)
        seen.append(item)

    worker = Worker[int](Doing(handle), name="unheard", linger=0)
    worker.put(0)
    assert worker.flush(DEADLINE)
    worker.put(1)
    assert worker.close(DEADLINE)
    assert not worker.put(2)
    assert seen == [1]
    assert worker.counters == QueueCounters(received=3, delivered=1, dropped=1, rejected=1, held=0)
    told = capsys.readouterr().err
    assert "unheard: Doing.handle raised; the worker goes on" in told
    assert "LookupError: 0" in told
    assert f"{error.__name__}: the log is broken" in told
    assert "unheard: the queue is closed; dropping the newest" in told


def test_close_does_not_raise_what_a_logging_handler_raises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: logging.LogRecord) -> bool:
        raise ValueError

    monkeypatch.setattr(worker_module._LOGGER, "filters", [refuse])
    blocked = Blocked()
    worker = Worker[int](blocked, name="unheard", linger=0)
    worker.put(1)
    assert not worker.close(0)
    assert "unheard: not done within 0.0 s of closing; 1 items are still held" in capsys.readouterr().err
    blocked.gate.set()
    assert worker.close(DEADLINE)


def test_what_the_worker_does_is_never_traced_itself() -> None:
    seen: list[object] = []
    key = otel_context._SUPPRESS_INSTRUMENTATION_KEY
    worker = Worker[int](Doing(lambda _: seen.append(otel_context.get_value(key))), name="quiet")
    worker.put(1)
    assert worker.close(DEADLINE)
    assert seen == [True]


def test_the_queue_can_be_drained_while_the_worker_hangs() -> None:
    """What was taken out is another thread's, and not held here any more."""
    blocked = Blocked()
    worker = Worker[int](blocked, name="hanging", linger=0)
    worker.put(1)
    assert blocked.entered.wait(DEADLINE)
    assert all(worker.put(item) for item in (2, 3))
    assert worker.drain() == [2, 3]
    assert worker.drain() == []
    assert worker.counters == QueueCounters(received=3, delivered=2, dropped=0, rejected=0, held=1)
    blocked.gate.set()
    assert worker.close(DEADLINE)
    assert blocked.items == [1]
    assert worker.counters == QueueCounters(received=3, delivered=3, dropped=0, rejected=0, held=0)


def test_the_sum_of_the_counters_is_right_at_every_moment() -> None:
    class Moment(deque[int]):
        """A queue that gets longer whenever somebody looks, as one without a lock may."""

        def __len__(self) -> int:
            self.append(0)
            return super().__len__()

    blocked = Blocked()
    worker = Worker[int](blocked, name="sum", linger=0)
    worker.put(0)
    assert blocked.entered.wait(DEADLINE)
    queue, worker.queue = worker.queue, Moment()
    assert worker.counters == QueueCounters(received=2, delivered=0, dropped=0, rejected=0, held=2)
    worker.queue = queue
    blocked.gate.set()
    assert worker.close(DEADLINE)


def test_eight_threads_lose_nothing_and_the_sum_is_right(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    seen: list[int] = []
    worker = Worker[int](Doing(seen.append), name="busy", max_queue=500, linger=0)

    def produce() -> None:
        for item in range(5000):
            worker.put(item)

    in_threads(8, produce)
    assert worker.close(DEADLINE)
    assert worker.counters == QueueCounters(
        received=40_000, delivered=len(seen), dropped=40_000 - len(seen), rejected=0, held=0
    )
