"""LoopThread: an event loop in a thread of its own, which nothing that runs on it can end."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, NoReturn

import pytest

from constellation_otel._support import loop_thread
from constellation_otel._support.loop_thread import LoopThread
from event_loops import close_between_turns, never
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread("loop")
    loop.start()
    yield loop
    assert loop.close(DEADLINE)


def test_an_async_function_runs_in_the_callers_context(loop: LoopThread) -> None:
    seen: list[tuple[str, str]] = []

    async def look() -> None:
        seen.append((VARIABLE.get(), threading.current_thread().name))

    VARIABLE.set("the caller's")
    loop.wait_for(loop.submit(look), DEADLINE)
    assert seen == [("the caller's", "loop")]


def test_what_a_function_raises_is_raised_by_wait_for(loop: LoopThread) -> None:
    async def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        loop.wait_for(loop.submit(fails), DEADLINE)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_task_that_exits_does_not_end_the_loop(loop: LoopThread, error: BaseException) -> None:
    async def exits() -> None:
        raise error

    future = loop.submit(exits)
    assert future.exception(DEADLINE) is error
    loop.wait_for(loop.submit(asyncio.sleep, 0), DEADLINE)


def test_a_task_that_stops_the_loop_does_not_end_it(loop: LoopThread) -> None:
    async def stops() -> None:
        asyncio.get_running_loop().stop()

    loop.wait_for(loop.submit(stops), DEADLINE)
    loop.wait_for(loop.submit(asyncio.sleep, 0.001), DEADLINE)


def test_what_takes_longer_than_its_timeout_is_cancelled(loop: LoopThread) -> None:
    ended = threading.Event()

    async def waits() -> None:
        try:
            await never()
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        loop.wait_for(loop.submit(waits), 0.01)
    assert ended.wait(DEADLINE)


def test_a_closed_loop_cancels_its_tasks_and_takes_no_more() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def begins() -> None:
        loops.append(asyncio.get_running_loop())
        await never()

    lost = LoopThread("lost")
    lost.start()
    pending = lost.submit(begins)
    eventually(lambda: loops, "the function begins")
    close_between_turns(loops[0])
    with pytest.raises(CancelledError):
        pending.result(DEADLINE)
    eventually(lambda: not lost.thread.is_alive(), "the thread ends")
    with pytest.raises(RuntimeError, match="the event loop has ended"):
        lost.submit(never)
    assert lost.close(DEADLINE)


def test_closing_waits_for_the_threads_of_the_default_executor() -> None:
    notes: list[str] = []
    loop = LoopThread("loop")
    loop.start()

    def work() -> None:
        eventually(lambda: not loop.is_running, "the loop is being closed")
        notes.append("done")

    async def starts() -> None:
        asyncio.get_running_loop().run_in_executor(None, work)

    loop.wait_for(loop.submit(starts), DEADLINE)
    assert loop.close(DEADLINE)
    assert notes == ["done"]


def test_a_loop_without_a_thread_runs_in_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    threads: list[threading.Thread] = []

    async def look() -> None:
        threads.append(threading.current_thread())

    monkeypatch.setattr(threading.Thread, "start", refuse)
    loop = LoopThread("loop", 1.0)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        loop.start()
    loop.wait_for(loop.submit(look), DEADLINE)
    with pytest.raises(TimeoutError):
        loop.wait_for(loop.submit(never), 0.01)
    assert loop.close(0)
    assert threads == [threading.current_thread()]


def test_a_loop_that_was_stopped_takes_nothing() -> None:
    loop = LoopThread("stopped")
    loop.stop()
    with pytest.raises(RuntimeError, match="the event loop has ended"):
        loop.submit(never)


def test_a_coroutine_made_later_may_be_awaited_and_closed() -> None:
    async def two() -> int:
        return 2

    async def main() -> int:
        loop_thread._Later(two).close()
        return await loop_thread._Later(two)

    assert asyncio.run(main()) == 2
