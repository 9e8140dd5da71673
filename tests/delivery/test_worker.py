"""The bounded queue and its worker: what is promised under load, faults, forks and exits."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import pytest
from opentelemetry import context as otel_context

from constellation_otel.delivery import worker as worker_module
from constellation_otel.delivery.worker import QueueCounters, Worker
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPTLY = 5.0
"""Seconds: far more than a timeout of 50 ms needs on a busy machine, far less than a test's deadline."""


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


class Late(deque[int]):
    """A queue in which something happens just before an item is appended, as another thread could do it."""

    def __init__(self, before: Callable[[], object]) -> None:
        super().__init__()
        self.before = before

    def append(self, item: int) -> None:
        self.before()
        super().append(item)


def output_of(program: str) -> tuple[str, str]:
    """What a program says on stdout and stderr, to the end of its interpreter."""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return ran.stdout, ran.stderr


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


def test_what_is_dropped_costs_one_lock_and_no_formatted_string(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert 0.1 * 0.9 < time.monotonic() - before < PROMPTLY
    assert blocked.items == []
    assert caplog.messages == ["slow: not done within 0.1 s of closing; 2 items are still held"]
    blocked.gate.set()
    assert worker.flush(DEADLINE)
    assert worker.close(DEADLINE)


def test_timeouts_without_an_end_are_taken() -> None:
    worker = Worker[int](lambda _: None, name="endless", linger=float("inf"), tick=lambda: 1e300)
    worker.put(1)
    assert worker.flush(float("inf"))
    worker.put(2)
    assert worker.close(float("inf"))
    assert worker.counters == QueueCounters(received=2, delivered=2, dropped=0, rejected=0, held=0)


def test_the_worker_cannot_wait_for_itself() -> None:
    answers: list[bool] = []
    worker = Worker[int](lambda _: answers.append(worker.flush(DEADLINE)), name="selfish")
    worker.put(1)
    assert worker.close(DEADLINE)
    assert answers == [False]


def test_a_worker_that_closes_itself_does_not_wait_and_ends_when_the_rest_is_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[object] = []

    def handle(item: int) -> None:
        calls.append(item)
        if item == 1:
            calls.append(worker.close(DEADLINE))
            calls.append(worker.put(3))

    worker = Worker[int](handle, name="self-closing", linger=1e6, finish=lambda: calls.append("finish"))
    worker.put(1)
    worker.put(2)
    before = time.monotonic()
    worker.flush(DEADLINE)
    eventually(lambda: "self-closing" not in {thread.name for thread in threading.enumerate()}, "the thread's end")
    assert time.monotonic() - before < DEADLINE / 2
    assert calls == [1, False, False, 2, "finish"]
    assert worker.close(0)
    assert caplog.messages == ["self-closing: the queue is closed; dropping the newest"]


def test_flush_does_not_linger() -> None:
    worker = Worker[int](lambda _: None, name="lingering", linger=1e6)
    worker.put(1)
    assert worker.flush(DEADLINE)
    worker.put(2)
    assert worker.close(DEADLINE)


@pytest.mark.parametrize("flushes", ["none", "one of nothing", "one of an item"])
def test_items_gather_for_as_long_as_the_linger_whatever_was_flushed_before(flushes: str) -> None:
    handled_at: list[float] = []
    worker = Worker[int](lambda _: handled_at.append(time.monotonic()), name="gathering", linger=0.1)
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


def test_half_a_full_queue_ends_the_linger() -> None:
    seen: list[int] = []
    worker = Worker[int](seen.append, name="half-full", linger=1e6, max_queue=100)
    worker.put(0)
    eventually(lambda: worker._wake_from == 50, "the linger")
    assert all(worker.put(item) for item in range(1, 50))
    eventually(lambda: seen == list(range(50)), "the items")
    assert worker.close(DEADLINE)


def test_a_whole_batch_is_not_lingered_on() -> None:
    blocked = Blocked()
    worker = Worker[int](blocked, name="batch", linger=1e6)
    worker.put(0)
    worker.flush(0)
    assert blocked.entered.wait(DEADLINE)
    assert all(worker.put(item) for item in range(1, worker_module._MAX_BATCH + 1))
    blocked.gate.set()
    eventually(lambda: blocked.items == list(range(worker_module._MAX_BATCH + 1)), "the batch")
    assert worker.close(DEADLINE)


def test_a_tick_alone_is_not_lingered_on() -> None:
    ticks: list[int] = []

    def tick() -> float | None:
        ticks.append(len(ticks))
        return 0.01 if len(ticks) < 3 else None

    worker = Worker[int](lambda _: None, name="tick-only", linger=1e6, tick=tick)
    worker.put(1)
    assert worker.flush(DEADLINE)
    eventually(lambda: ticks == [0, 1, 2], "the ticks")
    assert worker.close(DEADLINE)


def test_a_tick_that_raises_is_logged_and_called_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "_TICK_AGAIN", 0.1)
    ticked_at: list[float] = []

    def tick() -> None:
        ticked_at.append(time.monotonic())
        if len(ticked_at) == 1:
            raise ValueError

    worker = Worker[int](lambda _: None, name="stumbling", linger=0, tick=tick)
    worker.put(1)
    eventually(lambda: len(ticked_at) == 2, "the second tick")
    assert ticked_at[1] - ticked_at[0] > 0.1 * 0.9
    assert worker.counters == QueueCounters(received=1, delivered=1, dropped=0, rejected=0, held=0)
    assert worker.close(DEADLINE)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ValueError]


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


def test_what_finish_raises_is_logged_and_the_worker_is_closed_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    def finish() -> None:
        raise ValueError

    worker = Worker[int](lambda _: None, name="fumbling", finish=finish)
    worker.put(1)
    assert worker.close(DEADLINE)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ValueError]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_logging_handler_that_raises_neither_ends_the_worker_nor_reaches_who_puts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[BaseException]
) -> None:
    def refuse(_: logging.LogRecord) -> bool:
        raise error("the log is broken")

    monkeypatch.setattr(worker_module._LOGGER, "filters", [refuse])
    seen: list[int] = []

    def handle(item: int) -> None:
        if item == 0:
            raise LookupError(item)
        seen.append(item)

    worker = Worker[int](handle, name="unheard", linger=0)
    worker.put(0)
    assert worker.flush(DEADLINE)
    worker.put(1)
    assert worker.close(DEADLINE)
    assert not worker.put(2)
    assert seen == [1]
    assert worker.counters == QueueCounters(received=3, delivered=1, dropped=1, rejected=1, held=0)
    told = capsys.readouterr().err
    assert "unheard: <function" in told
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


def test_a_logging_handler_may_ask_the_worker_whose_thread_could_not_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[QueueCounters] = []

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    start = threading.Thread.start

    def ask(_: logging.LogRecord) -> bool:
        # in a thread of its own, so that a worker that kept its lock would not hang the test run
        asking = threading.Thread(target=lambda: seen.append(worker.counters), daemon=True)
        start(asking)
        asking.join(PROMPTLY)
        return True

    worker = Worker[int](lambda _: None, name="asked", linger=0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        patch.setattr(worker_module._LOGGER, "filters", [ask])
        assert worker.put(1)
        assert seen == [QueueCounters(received=1, delivered=0, dropped=0, rejected=0, held=1)]
    assert worker.close(DEADLINE)


def test_an_item_that_comes_after_the_worker_has_ended_is_taken_back() -> None:
    for items in ([], [1]):
        worker = Worker[int](lambda _: None, name="ended", linger=0)
        assert all(worker.put(item) for item in items)
        assert worker.flush(DEADLINE)
        worker._queue = Late(before=lambda worker=worker: worker.close(DEADLINE))  # type: ignore[misc]
        assert not worker.put(2)
        done = len(items)
        assert worker.counters == QueueCounters(received=done + 1, delivered=done, dropped=1, rejected=0, held=0)
        assert worker.flush(0)
        assert worker.close(0)


def test_an_item_that_comes_while_the_worker_finishes_is_taken_back() -> None:
    finishing, gate = threading.Event(), threading.Event()

    def finish() -> None:
        finishing.set()
        assert gate.wait(DEADLINE)

    def begin_to_close() -> None:
        assert not worker.close(0)
        assert finishing.wait(DEADLINE)

    worker = Worker[int](lambda _: None, name="finishing", linger=0, finish=finish)
    worker.put(1)
    assert worker.flush(DEADLINE)
    worker._queue = Late(before=begin_to_close)
    assert not worker.put(2)
    gate.set()
    assert worker.close(DEADLINE)
    assert worker.counters == QueueCounters(received=2, delivered=1, dropped=1, rejected=0, held=0)


def test_an_item_that_comes_while_the_worker_still_deals_with_others_is_dealt_with() -> None:
    blocked = Blocked()
    worker = Worker[int](blocked, name="closing", linger=0)
    worker.put(1)
    assert blocked.entered.wait(DEADLINE)
    worker._queue = Late(before=lambda: worker.close(0))
    assert worker.put(2)
    blocked.gate.set()
    assert worker.close(DEADLINE)
    assert blocked.items == [1, 2]


def test_what_comes_too_late_takes_back_itself_and_nobody_elses_item() -> None:
    """A putter that was overtaken between its append and its look at the queue: its item may have been taken."""
    worker = Worker[list[int]](lambda _: None, name="overtaken")
    assert worker.close(DEADLINE)
    taken, late = [1], [1]
    worker._queue.append(late)
    assert worker._wake(taken)
    assert list(worker._queue) == [late]
    assert not worker._wake(late)
    assert worker.counters == QueueCounters(received=1, delivered=0, dropped=1, rejected=0, held=0)


def test_what_is_put_while_another_thread_closes_is_delivered_or_dropped_and_the_answer_says_which(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    for _ in range(50):
        worker = Worker[int](lambda _: None, name="racing", linger=0)
        taken: list[bool] = []

        def produce(put: Callable[[int], bool] = worker.put, taken: list[bool] = taken) -> None:
            while put(0):
                taken.append(True)

        threads = [threading.Thread(target=produce) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert worker.close(DEADLINE)
        for thread in threads:
            thread.join(DEADLINE)
        assert worker.counters == QueueCounters(
            received=len(taken) + 4, delivered=len(taken), dropped=4, rejected=0, held=0
        )


def test_the_sum_is_right_at_every_moment() -> None:
    class Moment(deque[int]):
        """A queue that gets longer whenever somebody looks, as one without a lock may."""

        def __len__(self) -> int:
            self.append(0)
            return super().__len__()

    blocked = Blocked()
    worker = Worker[int](blocked, name="sum", linger=0)
    worker.put(0)
    assert blocked.entered.wait(DEADLINE)
    queue, worker._queue = worker._queue, Moment()
    counters = worker.counters
    assert counters == QueueCounters(received=2, delivered=0, dropped=0, rejected=0, held=2)
    worker._queue = queue
    blocked.gate.set()
    assert worker.close(DEADLINE)


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


def test_a_worker_that_was_closed_before_the_fork_is_closed_in_the_child() -> None:
    program = """
import os, warnings
from constellation_otel.delivery import Worker
# the thread ends a moment after its end is told, and Python 3.12 warns of a fork beside another thread
warnings.simplefilter("ignore", DeprecationWarning)
worker = Worker(lambda item: os.write(1, item), name="closed", finish=lambda: os.write(1, b"finished\\n"))
worker.put(b"item\\n")
worker.close(30)
child = os.fork()
if child == 0:
    taken = worker.put("child's")
    counters = worker.counters
    os.write(1, f"{taken} {counters.dropped} {counters.held} {worker.close(0)}\\n".encode())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    assert output_of(program) == (
        "item\nfinished\nFalse 1 0 True\n",
        "closed: the queue is closed; dropping the newest\n",
    )


LEAVING = """
import atexit
from constellation_otel.delivery import Worker
worker = Worker(print, name="leaving", linger=1e6, finish=lambda: print("finished"))
"""


def test_the_interpreters_exit_waits_for_what_is_held() -> None:
    assert output_of(LEAVING + "worker.put('held')") == ("held\nfinished\n", "")


def test_the_interpreters_exit_waits_for_what_a_forgotten_worker_holds() -> None:
    program = LEAVING + "import gc; worker.put('held'); del worker; gc.collect()"
    assert output_of(program) == ("held\nfinished\n", "")


def test_the_worker_closes_after_exit_hooks_that_are_younger_than_its_thread_unless_it_is_put_first() -> None:
    program = LEAVING + "worker.put('held'); atexit.register(print, 'the provider shuts down')"
    assert output_of(program) == ("the provider shuts down\nheld\nfinished\n", "")
    assert output_of(f"{program}; worker.close_first_at_exit()") == ("held\nfinished\nthe provider shuts down\n", "")


def test_a_worker_that_is_put_first_before_it_has_a_thread_stays_where_it_is() -> None:
    program = """
worker.close_first_at_exit()
atexit.register(print, "the provider shuts down")
Worker.close = lambda *_: print("closed")
"""
    assert output_of(LEAVING + program) == ("the provider shuts down\nclosed\n", "")


def test_a_worker_that_is_put_first_during_the_exit_is_still_closed() -> None:
    program = "worker.put('held'); atexit.register(worker.close_first_at_exit)"
    assert output_of(LEAVING + program) == ("held\nfinished\n", "")


def test_the_exit_does_not_close_what_is_closed() -> None:
    program = """
worker.put("held")
worker.close_first_at_exit()
worker.close(30)
worker.close_first_at_exit()
Worker.close = lambda *_: print("closed again")
"""
    assert output_of(LEAVING + program) == ("held\nfinished\n", "")


def test_a_worker_that_is_gone_does_not_disturb_the_exit() -> None:
    program = """
import gc, threading, weakref
worker = Worker(lambda _: worker.close(30), name="gone")
reference = weakref.ref(worker)
worker.put("last")
thread = worker._thread
thread.join(30)
del worker, thread
gc.collect()
print(reference())
"""
    assert output_of(LEAVING + program) == ("None\n", "")


def test_items_wait_in_the_queue_while_the_worker_is_not_ready_and_what_finds_it_full_is_dropped() -> None:
    seen: list[int] = []
    ready = threading.Event()
    worker = Worker[int](seen.append, name="not ready", max_queue=2, linger=0, is_ready=ready.is_set)
    assert [worker.put(number) for number in range(3)] == [True, True, False]
    assert not worker.flush(0.05)
    assert (seen, worker.counters.held) == ([], 2)
    ready.set()
    worker.nudge()
    assert worker.flush(DEADLINE)
    assert worker.close(DEADLINE)
    assert seen == [0, 1]


def test_a_worker_that_is_never_ready_takes_what_it_has_when_it_is_closed() -> None:
    seen: list[int] = []
    worker = Worker[int](seen.append, name="never ready", linger=0, is_ready=lambda: False)
    worker.put(1)
    assert worker.close(DEADLINE)
    assert seen == [1]


def test_a_nudge_has_tick_called_without_any_item() -> None:
    ticked = threading.Event()
    worker = Worker[int](lambda _: None, name="nudged", tick=ticked.set)
    worker.nudge()
    assert ticked.wait(DEADLINE)
    assert worker.close(DEADLINE)


def test_a_nudge_after_the_end_starts_nothing() -> None:
    worker = Worker[int](lambda _: None, name="ended")
    assert worker.close(DEADLINE)
    worker.nudge()
    assert worker._thread is None


def test_room_is_waited_for_and_more_than_the_queue_holds_finds_room_when_it_is_empty() -> None:
    ready = threading.Event()
    worker = Worker[int](lambda _: None, name="roomy", max_queue=3, linger=0, is_ready=ready.is_set)
    assert worker.wait_for_room(100, 0)
    worker.put(1)
    assert worker.wait_for_room(2, 0)
    assert not worker.wait_for_room(3, 0.05)
    ready.set()
    worker.nudge()
    assert worker.wait_for_room(100, DEADLINE)
    assert worker.close(DEADLINE)


def test_a_worker_can_be_told_to_end_without_waiting_and_finishes_also_what_never_began() -> None:
    finished = threading.Event()
    worker = Worker[int](lambda _: None, name="never began", finish=finished.set)
    worker.end_soon()
    assert finished.wait(DEADLINE)
    assert worker.close(DEADLINE)
    assert worker.has_finished
    worker.end_soon()
    assert not worker.put(1)


def test_where_no_thread_can_be_had_any_more_the_exit_itself_deals_with_what_is_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in Python 3.12.0 to 3.12.2, whose exit refuses new threads before its hooks are called."""
    handled: list[str] = []
    worker = Worker[str](handled.append, name="last", finish=lambda: handled.append("finished"))

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    worker.put("held")
    worker._close_at_exit()
    assert handled == ["held", "finished"]
    assert worker.has_finished
    assert not worker.put("too late")
