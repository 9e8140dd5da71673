"""The bounded queue and its worker: what is promised under load, faults, forks and exits."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time

import pytest
from opentelemetry import context as otel_context

from constellation_otel.buffer import QueueCounters, Worker
from support import DEADLINE, eventually


class Blocked:
    """A handler that waits until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.items: list[int] = []

    def __call__(self, item: int) -> None:
        self.entered.set()
        assert self.gate.wait(DEADLINE)
        self.items.append(item)


def test_items_are_handled_in_order_by_one_thread_that_the_first_one_starts() -> None:
    seen: list[tuple[int, str]] = []
    worker = Worker[int](lambda item: seen.append((item, threading.current_thread().name)), name="orderly", linger=0)
    assert "orderly" not in {thread.name for thread in threading.enumerate()}
    assert all(worker.put(item) for item in range(1000))
    assert worker.flush(DEADLINE)
    assert seen == [(item, "orderly") for item in range(1000)]
    assert worker.counters == QueueCounters(received=1000, delivered=1000, dropped=0, rejected=0, held=0)
    assert worker.close(DEADLINE)
    eventually(lambda: "orderly" not in {thread.name for thread in threading.enumerate()}, "the thread's end")


def test_the_newest_is_dropped_counted_and_logged_when_the_queue_is_full(caplog: pytest.LogCaptureFixture) -> None:
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
    assert [record.getMessage() for record in caplog.records] == [
        "full: the queue is full (3 items); dropping the newest"
    ]


def test_nothing_is_taken_after_closing(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker[int](lambda _: None, name="closed")
    assert worker.close(DEADLINE)
    assert worker.close(DEADLINE)
    assert not worker.put(1)
    assert worker.counters == QueueCounters(received=1, delivered=0, dropped=1, rejected=0, held=0)
    assert caplog.messages == ["closed: the queue is closed; dropping the newest"]


def test_what_a_handler_raises_is_counted_and_logged_and_the_worker_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    def handle(item: int) -> None:
        if item == 1:
            raise ValueError(item)
        if item == 2:
            raise SystemExit
        seen.append(item)

    worker = Worker[int](handle, name="raising")
    for item in range(4):
        worker.put(item)
    assert worker.close(DEADLINE)
    assert seen == [0, 3]
    assert worker.counters == QueueCounters(received=4, delivered=2, dropped=0, rejected=2, held=0)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ValueError, SystemExit]


def test_flush_and_close_return_within_their_timeout_and_tell_the_truth(caplog: pytest.LogCaptureFixture) -> None:
    blocked = Blocked()
    worker = Worker[int](blocked, name="slow", linger=0)
    worker.put(1)
    worker.put(2)
    assert blocked.entered.wait(DEADLINE)
    before = time.monotonic()
    assert not worker.flush(0.05)
    assert not worker.close(0.05)
    assert time.monotonic() - before < DEADLINE
    assert caplog.messages == ["slow: not done within 0.1 s of closing; 2 items are still held"]
    blocked.gate.set()
    assert worker.flush(DEADLINE)
    assert worker.close(DEADLINE)


def test_the_worker_cannot_wait_for_itself() -> None:
    answers: list[bool] = []
    worker = Worker[int](lambda _: answers.append(worker.flush(DEADLINE)), name="selfish")
    worker.put(1)
    assert worker.close(DEADLINE)
    assert answers == [False]


def test_flush_does_not_linger() -> None:
    worker = Worker[int](lambda _: None, name="lingering", linger=1e6)
    worker.put(1)
    assert worker.flush(DEADLINE)
    worker.put(2)
    assert worker.close(DEADLINE)


def test_tick_is_called_after_every_batch_and_again_when_it_said() -> None:
    ticks: list[int] = []
    enough = threading.Event()

    def tick() -> float | None:
        ticks.append(len(ticks))
        if len(ticks) == 3:
            enough.set()
            return None
        return 0.01

    worker = Worker[int](lambda _: None, name="ticking", tick=tick, linger=0)
    worker.put(1)
    assert enough.wait(DEADLINE)
    assert worker.close(DEADLINE)


def test_finish_is_called_last_and_once() -> None:
    calls: list[str] = []
    worker = Worker[str](calls.append, name="finishing", finish=lambda: calls.append("finish"))
    worker.put("item")
    assert worker.close(DEADLINE)
    assert worker.close(DEADLINE)
    assert calls == ["item", "finish"]


def test_what_the_worker_does_is_never_traced() -> None:
    seen: list[object] = []
    key = otel_context._SUPPRESS_INSTRUMENTATION_KEY
    worker = Worker[int](lambda _: seen.append(otel_context.get_value(key)), name="quiet")
    worker.put(1)
    assert worker.close(DEADLINE)
    assert seen == [True]


def test_a_queue_must_have_room() -> None:
    with pytest.raises(ValueError, match="max_queue=0 must be at least 1"):
        Worker[int](lambda _: None, name="none", max_queue=0)


def test_where_no_thread_can_be_had_items_are_held_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    worker = Worker[int](seen.append, name="threadless")

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert worker.put(1)
        assert not worker.close(0.0)
    assert caplog.messages == [
        "threadless: no worker thread: can't start new thread",
        "threadless: not done within 0.0 s of closing; 1 items are still held",
    ]
    assert worker.close(DEADLINE)
    assert seen == [1]


def test_eight_threads_lose_nothing_and_the_sum_is_right(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    seen: list[int] = []
    worker = Worker[int](seen.append, name="busy", max_queue=500, linger=0)

    def produce() -> None:
        for item in range(5000):
            worker.put(item)

    threads = [threading.Thread(target=produce) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert worker.close(DEADLINE)
    counters = worker.counters
    assert counters == QueueCounters(
        received=40_000, delivered=len(seen), dropped=40_000 - len(seen), rejected=0, held=0
    )


def test_a_forked_child_starts_its_own_worker_and_has_none_of_the_parents_items() -> None:
    blocked = Blocked()
    forked: list[int] = []
    worker = Worker[int](blocked, name="forking", forked=lambda: forked.append(os.getpid()), linger=0)
    worker.put(1)
    assert blocked.entered.wait(DEADLINE)
    worker.put(2)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # only what must be: the rest of the test run is not this child's
        status = 1
        try:
            blocked.items, blocked.gate = [], threading.Event()
            blocked.gate.set()
            fresh = worker.counters == QueueCounters(0, 0, 0, 0, 0) and forked == [os.getpid()]
            worker.put(3)
            done = worker.close(DEADLINE)
            os.write(write, repr((fresh, done, blocked.items)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "(True, True, [3])"
    assert os.waitpid(child, 0)[1] == 0
    blocked.gate.set()
    assert worker.close(DEADLINE)
    assert blocked.items == [1, 2]


def test_the_interpreters_exit_waits_for_what_is_held() -> None:
    program = """
from constellation_otel.buffer import Worker
worker = Worker(print, name="leaving", linger=1e6, finish=lambda: print("finished"))
worker.put("held")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "held\nfinished\n"


def test_a_worker_that_is_gone_does_not_disturb_the_exit() -> None:
    program = """
import gc
from constellation_otel.buffer import Worker
worker = Worker(print, name="gone")
close = worker._at_exit
del worker
gc.collect()
close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("", "")
