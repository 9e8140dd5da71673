"""Whatever modules and the system do to the event loop, executions end."""

from __future__ import annotations

import asyncio
import os
import queue
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from constellation_otel.engine import Constellation, Dag, module
from engine_support import (
    PIPELINE,
    Elsewhere,
    Recorder,
    failed,
    last,
    logged,
    one,
    raises,
    returns_a_coroutine,
    succeeded,
    three,
    two,
)
from event_loops import close_between_turns, never
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable


LOST = "CancelledError: its task was cancelled, or its event loop closed, and not by Execution.cancel()"


def cancel_the_others() -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


def test_a_module_whose_task_is_cancelled_before_it_begins_fails() -> None:
    async def cancels() -> None:
        # the other's task begins in the turn after the one in which it was made
        while asyncio.all_tasks() == {asyncio.current_task()}:  # noqa: ASYNC110 - nothing tells that it was made
            await asyncio.sleep(0)
        cancel_the_others()

    async def other() -> None: ...

    recorder = Recorder()
    with Constellation(recorder) as constellation:
        assert failed(constellation, [cancels, other]) == {"other": LOST}
    assert recorder.calls == [
        "p starts",
        "cancels starts",
        "cancels completes",
        "other starts",
        "other fails",
        "p fails",
    ]


@pytest.mark.parametrize("own", [False, True])
def test_a_module_whose_task_is_cancelled_fails_and_says_so(own: bool) -> None:
    begun = asyncio.Event()

    async def waits() -> None:
        task = asyncio.current_task()
        if own and task is not None:
            task.cancel()
        begun.set()
        await asyncio.sleep(3600)

    async def cancels() -> None:
        await begun.wait()
        cancel_the_others()

    with Constellation() as constellation:
        assert failed(constellation, [waits] if own else [waits, cancels]) == {
            "waits": "CancelledError: its task was cancelled, and not by Execution.cancel()"
        }


def test_a_module_that_cancels_itself_and_returns_completes() -> None:
    async def cancels() -> int:
        cancelled = asyncio.current_task()
        assert cancelled is not None
        cancelled.cancel()
        return 1

    with Constellation() as constellation:
        assert succeeded(constellation, [module(cancels, name="one"), two]) == {"one": 1, "two": 2}


def test_a_module_that_stops_the_event_loop_stops_nothing() -> None:
    async def stops() -> int:
        asyncio.get_running_loop().stop()
        return 1

    with Constellation() as constellation:
        assert succeeded(constellation, [module(stops, name="one"), two]) == {"one": 1, "two": 2}


def lose_its_descriptor(loop: asyncio.AbstractEventLoop) -> None:
    """Does what a module does that closes every descriptor it finds."""
    loop.call_soon_threadsafe(os.close, loop._selector.fileno())  # type: ignore[attr-defined]


@pytest.mark.parametrize("end", [close_between_turns, lose_its_descriptor])
def test_a_lost_event_loop_fails_its_modules_and_is_replaced(
    end: Callable[[asyncio.AbstractEventLoop], None], caplog: pytest.LogCaptureFixture
) -> None:
    loops: queue.Queue[asyncio.AbstractEventLoop] = queue.Queue()

    async def waits() -> None:
        loops.put(asyncio.get_running_loop())
        await never()

    def ends() -> None:
        end(loops.get(timeout=DEADLINE))

    with Constellation() as constellation:
        assert failed(constellation, [waits, ends]) == {"waits": LOST}
        assert succeeded(constellation, [one, two]) == {"one": 1, "two": 2}


def test_a_task_cannot_stop_the_event_loop_while_it_winds_up() -> None:
    ended = threading.Event()
    left: set[asyncio.Task[None]] = set()

    async def leaves() -> None:
        async def stops() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                asyncio.get_running_loop().stop()
                await asyncio.sleep(0)
                ended.set()

        left.add(asyncio.create_task(stops()))
        await asyncio.sleep(0)

    with Constellation() as constellation:
        assert succeeded(constellation, [leaves]) == {"leaves": None}
    assert ended.is_set()


def test_an_event_loop_that_cannot_be_wound_up_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def breaks() -> None:
        loop = asyncio.get_running_loop()
        loop.shutdown_asyncgens = raises  # type: ignore[assignment, method-assign]
        loops.append(loop)

    with Constellation() as constellation:
        assert succeeded(constellation, [breaks]) == {"breaks": None}
    assert loops[0].is_closed()
    messages = [record.getMessage() for record in logged(caplog)]
    assert messages in ([], ["the event loop did not close"])  # at most one in ten seconds


def test_without_an_event_loop_the_modules_that_need_it_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "constellation-loop":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Constellation(recorder) as constellation:
        error = "RuntimeError: can't start new thread"
        assert failed(constellation, [one, two, last]) == {"two": error}
        assert failed(constellation, [one, module(returns_a_coroutine, name="lambda")]) == {"lambda": error}
        monkeypatch.undo()
        assert succeeded(constellation, [one, two]) == {"one": 1, "two": 2}
    assert recorder.calls[:8] == [
        *("p starts", "one starts", "one completes"),
        *("two starts", "two fails", "last starts", "last completes", "p fails"),
    ]


def test_without_an_event_loop_no_module_runs_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with Elsewhere() as executor, Constellation(executor=executor) as constellation:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert failed(constellation, [one, three, two])["one"] == "RuntimeError: can't start new thread"
        monkeypatch.undo()
        assert succeeded(constellation, [one, two]) == {"one": 1, "two": 2}


def test_a_task_that_exits_does_not_stop_the_event_loop() -> None:
    """Nor its closing, which cancels the tasks that modules have started and not awaited."""
    left: list[asyncio.Task[Any]] = []

    async def leaves() -> None:
        async def exits() -> None:
            raise SystemExit(3)

        left.append(asyncio.create_task(exits()))
        left.append(asyncio.create_task(asyncio.sleep(3600)))

    with Constellation() as constellation:
        constellation.run(Dag("p", [leaves]), {})
        assert constellation.run(PIPELINE, {"text": "a b"})["word_count"] == 2
    assert isinstance(left[0].exception(), SystemExit)
    assert left[1].cancelled()


WITHOUT_DESCRIPTORS = """
import os, resource, sys
from concurrent.futures import ThreadPoolExecutor
from constellation_otel import Constellation, Dag
from constellation_otel.errors import ExecutionFailedError
from constellation_otel.testing import RecordingListener

def one():
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
    kept.extend(open("/dev/null") for _ in range(20 - len(os.listdir("/proc/self/fd"))))
    return 1

async def two(one): return 2
def three(one): return two(one)
def four(one): return 4

sys.unraisablehook = lambda _: None  # Python 3.11's own, of a loop that was made by half
kept = []
recording = RecordingListener()
with Constellation(recording) as constellation:
    try:
        constellation.run(Dag("p", [one, two, three, four]), {})
    except ExecutionFailedError as error:
        for name, each in sorted(error.errors.items()):
            print(name, repr(each))
        print(dict(error.outputs))
print(type(recording.events[-1]).__name__)
for each in kept:
    each.close()
"""


def test_without_descriptors_the_modules_that_need_one_fail() -> None:
    program = [sys.executable, "-W", "error", "-c", WITHOUT_DESCRIPTORS]
    ran = subprocess.run(program, check=True, capture_output=True, text=True, timeout=DEADLINE)
    error = "OSError(24, 'Too many open files')"
    assert ran.stdout.splitlines() == [
        f"three {error}",
        f"two {error}",
        "{'one': 1, 'four': 4}",
        "ExecutionCompleted",
    ]
    assert ran.stderr == ""
