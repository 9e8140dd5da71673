"""How a worker ends: closed, too late, without threads, in a forked child, with the interpreter."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING

import pytest

from constellation_otel.delivery import QueueCounters, Worker
from constellation_otel.delivery import worker as worker_module
from support import DEADLINE, UNWATCHED
from worker_handlers import Blocked, Doing, output_of

if TYPE_CHECKING:
    from collections.abc import Callable

LEAVING = """
import atexit
from constellation_otel.delivery import Handler, Worker

class Printing(Handler):
    def handle(self, items):
        print(*items)
    def finish(self):
        print("finished")

worker = Worker(Printing(), name="leaving", linger=1e6)
"""


class Late(deque[int]):
    """A queue in which something happens just before an item is appended, as another thread could do it."""

    def __init__(self, before: Callable[[], object]) -> None:
        super().__init__()
        self.before = before

    def append(self, item: int) -> None:
        self.before()
        super().append(item)


def no_thread(_: threading.Thread) -> None:
    """What starting a thread does where there are no more."""
    raise RuntimeError("can't start new thread")


def test_finish_is_called_once_and_after_everything_else() -> None:
    calls: list[str] = []
    worker = Worker[str](Doing(calls.append, finish=lambda: calls.append("finish")), name="finishing")
    worker.put("item")
    assert worker.close(DEADLINE)
    assert worker.close(DEADLINE)
    assert calls == ["item", "finish"]


def test_a_finish_that_raises_is_logged_and_the_worker_closed(caplog: pytest.LogCaptureFixture) -> None:
    def finish() -> None:
        raise ValueError

    worker = Worker[int](Doing(finish=finish), name="fumbling")
    worker.put(1)
    assert worker.close(DEADLINE)
    assert [(record.getMessage(), record.exc_info and record.exc_info[0]) for record in caplog.records] == [
        ("fumbling: Doing.finish raised; the worker goes on", ValueError)
    ]


def test_a_worker_can_be_told_to_end_without_waiting_for_it() -> None:
    """It finishes also what never began; once more does nothing."""
    finished = threading.Event()
    worker = Worker[int](Doing(finish=finished.set), name="never began")
    assert not worker.has_finished
    worker.end_soon()
    assert finished.wait(DEADLINE)
    assert worker.close(DEADLINE)
    assert worker.has_finished
    worker.end_soon()
    assert not worker.put(1)


def test_items_are_held_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    worker = Worker[int](Doing(seen.append), name="threadless")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        assert worker.put(1)
        assert not worker.close(0.0)
    assert caplog.messages == [
        "threadless: no worker thread: can't start new thread",
        "threadless: not done within 0.0 s of closing; 1 items are still held",
    ]
    assert worker.close(DEADLINE)
    assert seen == [1]


def test_a_logging_handler_may_ask_a_worker_without_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lock is held while it is logged that there is none."""
    seen: list[QueueCounters] = []
    start = threading.Thread.start

    def ask(_: logging.LogRecord) -> bool:
        # in a thread of its own, so that a worker that kept its lock would not hang the test run
        asking = threading.Thread(target=lambda: seen.append(worker.counters), daemon=True)
        start(asking)
        asking.join(5)
        return True

    worker = Worker[int](Doing(), name="asked", linger=0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        patch.setattr(worker_module._LOGGER, "filters", [ask])
        assert worker.put(1)
        assert seen == [QueueCounters(received=1, delivered=0, dropped=0, rejected=0, held=1)]
    assert worker.close(DEADLINE)


@pytest.mark.parametrize("items", [[], [1]])
def test_an_item_that_comes_after_the_end_is_taken_back(items: list[int]) -> None:
    worker = Worker[int](Doing(), name="ended", linger=0)
    assert all(worker.put(item) for item in items)
    assert worker.flush(DEADLINE)
    worker.queue = Late(before=lambda: worker.close(DEADLINE))
    assert not worker.put(2)
    done = len(items)
    assert worker.counters == QueueCounters(received=done + 1, delivered=done, dropped=1, rejected=0, held=0)
    assert worker.flush(0)
    assert worker.close(0)


def test_an_item_that_comes_while_it_finishes_is_taken_back() -> None:
    finishing, gate = threading.Event(), threading.Event()

    def finish() -> None:
        finishing.set()
        assert gate.wait(DEADLINE)

    def begin_to_close() -> None:
        assert not worker.close(0)
        assert finishing.wait(DEADLINE)

    worker = Worker[int](Doing(finish=finish), name="finishing", linger=0)
    worker.put(1)
    assert worker.flush(DEADLINE)
    worker.queue = Late(before=begin_to_close)
    assert not worker.put(2)
    gate.set()
    assert worker.close(DEADLINE)
    assert worker.counters == QueueCounters(received=2, delivered=1, dropped=1, rejected=0, held=0)


def test_an_item_too_late_for_a_full_handler_is_taken_back() -> None:
    worker = Worker[int](Doing(is_ready=lambda: False), name="full", linger=0)
    worker.queue = Late(before=lambda: worker.close(DEADLINE))
    assert not worker.put(1)
    assert worker.counters == QueueCounters(received=1, delivered=0, dropped=1, rejected=0, held=0)


def test_an_item_that_comes_just_in_time_is_dealt_with() -> None:
    """The worker was told to close, and still deals with others."""
    blocked = Blocked()
    worker = Worker[int](blocked, name="closing", linger=0)
    worker.put(1)
    assert blocked.entered.wait(DEADLINE)
    worker.queue = Late(before=lambda: worker.close(0))
    assert worker.put(2)
    blocked.gate.set()
    assert worker.close(DEADLINE)
    assert blocked.items == [1, 2]


def test_what_comes_too_late_takes_back_nobody_elses_item() -> None:
    """A putter that was overtaken between its append and its look at the queue: its item may have been taken."""
    worker = Worker[list[int]](Doing(), name="overtaken")
    assert worker.close(DEADLINE)
    taken, late = [1], [1]
    worker.queue.append(late)
    assert worker.wake(taken)
    assert list(worker.queue) == [late]
    assert not worker.wake(late)
    assert worker.counters == QueueCounters(received=1, delivered=0, dropped=1, rejected=0, held=0)


@UNWATCHED
def test_the_answer_of_put_is_true_while_another_thread_closes(caplog: pytest.LogCaptureFixture) -> None:
    """What is put meanwhile is delivered or dropped, and the answer says which."""
    caplog.set_level(logging.CRITICAL)
    for _ in range(50):
        worker = Worker[int](Doing(), name="racing", linger=0)
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


def test_a_forked_child_has_a_worker_and_no_items_of_its_parent() -> None:
    class Forking(Blocked):
        def after_fork(self) -> None:
            forked.append(os.getpid())

    blocked = Forking()
    forked: list[int] = []
    worker = Worker[int](blocked, name="forking", linger=0)
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


def test_a_worker_closed_before_the_fork_is_closed_in_the_child() -> None:
    program = """
import os, warnings
from constellation_otel.delivery import Handler, Worker
# the thread ends a moment after its end is told, and Python 3.12 warns of a fork beside another thread
warnings.simplefilter("ignore", DeprecationWarning)

class Writing(Handler):
    def handle(self, items):
        for item in items:
            os.write(1, item)
    def finish(self):
        os.write(1, b"finished\\n")

worker = Worker(Writing(), name="closed")
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


def test_the_interpreters_exit_waits_for_what_is_held() -> None:
    assert output_of(LEAVING + "worker.put('held')") == ("held\nfinished\n", "")


def test_the_exit_waits_for_what_a_forgotten_worker_holds() -> None:
    program = LEAVING + "import gc; worker.put('held'); del worker; gc.collect()"
    assert output_of(program) == ("held\nfinished\n", "")


def test_a_worker_closes_first_at_exit_where_it_is_asked_to() -> None:
    """Exit hooks that are younger than its thread are called before it otherwise."""
    program = LEAVING + "worker.put('held'); atexit.register(print, 'the provider shuts down')"
    assert output_of(program) == ("the provider shuts down\nheld\nfinished\n", "")
    assert output_of(f"{program}; worker.close_first_at_exit()") == ("held\nfinished\nthe provider shuts down\n", "")


def test_a_worker_put_first_without_a_thread_stays_where_it_is() -> None:
    program = """
worker.close_first_at_exit()
atexit.register(print, "the provider shuts down")
Worker.close = lambda *_: print("closed")
"""
    assert output_of(LEAVING + program) == ("the provider shuts down\nclosed\n", "")


def test_a_worker_that_is_put_first_during_the_exit_is_closed() -> None:
    program = "worker.put('held'); atexit.register(worker.close_first_at_exit)"
    assert output_of(LEAVING + program) == ("held\nfinished\n", "")


def test_the_exit_does_not_close_what_is_closed_already() -> None:
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
class Closing(Handler):
    def handle(self, items):
        worker.close(30)
worker = Worker(Closing(), name="gone")
reference = weakref.ref(worker)
worker.put("last")
thread = worker._thread
thread.join(30)
del worker, thread
gc.collect()
print(reference())
"""
    assert output_of(LEAVING + program) == ("None\n", "")


def test_the_exit_itself_works_where_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Python 3.12.0 to 3.12.2, whose exit refuses new threads before its hooks are called."""
    handled: list[str] = []
    worker = Worker[str](Doing(handled.append, finish=lambda: handled.append("finished")), name="last")
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    worker.put("held")
    worker._close_at_exit()
    assert handled == ["held", "finished"]
    assert worker.has_finished
    assert not worker.put("too late")


def test_an_idle_worker_without_a_thread_just_closes_at_exit() -> None:
    worker = Worker[str](Doing(), name="idle")
    worker._close_at_exit()
    assert worker.has_finished
    assert not worker.put("too late")


def test_a_worker_with_a_thread_is_closed_by_it_at_the_exit() -> None:
    handled: list[str] = []
    worker = Worker[str](Doing(handled.append), name="busy", linger=1e6)
    worker.put("held")
    worker._close_at_exit()
    assert (handled, worker.has_finished) == (["held"], True)


def test_a_worker_may_be_made_before_gevent_patches_threads() -> None:
    """Its lock is made when it is needed."""
    program = """
from constellation_otel.delivery import Handler, Worker
class Printing(Handler):
    def handle(self, items):
        gevent.sleep(0.01)
        print(*items)
worker = Worker(Printing(), name="early", linger=0)
from gevent import monkey
monkey.patch_all()
import gevent
def put():
    worker.put("item")
gevent.joinall([gevent.spawn(put) for _ in range(2)])
print(worker.flush(30), worker.close(30), worker.counters.delivered)
"""
    out, err = output_of(program)
    assert (sorted(out.split()), err) == (["2", "True", "True", "item", "item"], "")
