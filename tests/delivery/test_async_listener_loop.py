"""AsyncListenerAdapter's event loop: what runs on it besides the callbacks, and how it ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from async_listeners import E, Everything, M, loop_threads, tell_everything
from constellation_otel import AsyncListenerAdapter
from constellation_otel.delivery.worker import QueueCounters
from event_loops import close_between_turns, never
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from uuid import UUID


def test_the_loop_runs_on_between_callbacks_until_closing() -> None:
    class StartsATask:
        ticks = 0
        task: asyncio.Task[None]

        async def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
            self.task = asyncio.ensure_future(self.tick())

        async def tick(self) -> None:
            while True:
                self.ticks += 1
                await asyncio.sleep(0.001)

    listener = StartsATask()
    adapter = AsyncListenerAdapter(listener)
    tell_everything(adapter)
    assert adapter.flush(DEADLINE)
    seen = listener.ticks
    eventually(lambda: listener.ticks > seen + 3, "the task to go on")
    assert adapter.close(DEADLINE)
    assert listener.task.cancelled()
    assert loop_threads() == []


class Leaves:
    """Starts a task and an async generator, neither of which has ended when its callback has.

    Args:
        ends: What each awaits when it is made to end.
    """

    def __init__(self, ends: Callable[[], Awaitable[object]]) -> None:
        self.ends = ends
        self.notes: list[str] = []
        self.generator = self.generate()

    async def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        self.task = asyncio.create_task(self.wait(), name="left")
        await asyncio.sleep(0)
        await anext(self.generator)

    async def wait(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await self.ends()
            self.notes.append("task")

    async def generate(self) -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await self.ends()
            self.notes.append("generator")


def test_closing_waits_for_tasks_and_then_async_generators() -> None:
    async def a_few_turns() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    listener = Leaves(a_few_turns)
    adapter = AsyncListenerAdapter(listener)
    adapter.on_execution_start(E, "d")
    assert adapter.close(DEADLINE)
    assert listener.notes == ["task", "generator"]


def test_closing_abandons_what_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    listener = Leaves(never)
    adapter = AsyncListenerAdapter(listener, callback_timeout=0.05)
    adapter.on_execution_start(E, "d")
    assert adapter.close(DEADLINE)
    assert listener.notes == []
    assert loop_threads() == []
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("constellation_otel.")]
    assert [message.partition(": ")[2] for message in warnings] == [
        "not ended within 0.1 s of closing; it is abandoned",
        "not ended within 0.1 s of closing; it is abandoned",
    ]
    assert "name='left'" in warnings[0]
    assert "shutdown_asyncgens" in warnings[1]


def test_closing_abandons_a_loop_that_is_blocked(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()

    class Blocks:
        async def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
            gate.wait(DEADLINE)

    adapter = AsyncListenerAdapter(Blocks(), callback_timeout=0.05)
    adapter.on_execution_start(E, "d")
    assert adapter.close(DEADLINE)
    (thread,) = loop_threads()
    gate.set()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert adapter.counters == QueueCounters(received=1, delivered=0, dropped=0, rejected=1, held=0)
    assert [
        record.getMessage() for record in caplog.records if record.name == "constellation_otel.delivery.async_listener"
    ] == ["AsyncListenerAdapter: the event loop has not ended; something in the listener blocks it"]


def test_at_the_interpreters_exit_tasks_end() -> None:
    """And nothing is printed."""
    program = """
import asyncio
from uuid import UUID
from constellation_otel import AsyncListenerAdapter

class Leaves:
    async def on_execution_start(self, execution_id, dag_name):
        self.task = asyncio.create_task(self.wait())
        await asyncio.sleep(0)

    async def wait(self):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            print("the task has ended")

adapter = AsyncListenerAdapter(Leaves())
adapter.on_execution_start(UUID(int=1), "d")
assert adapter.flush(30)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("the task has ended\n", "")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_task_that_exits_does_not_stop_the_loop(error: BaseException) -> None:
    """Nor its closing."""

    class Leaves:
        tasks: tuple[asyncio.Task[None], ...] = ()
        ended = False
        completed = 0

        async def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
            coroutines = (self.exits(), self.exits_when_cancelled(), self.exits_when_cancelled(), self.ends())
            self.tasks = tuple(map(asyncio.create_task, coroutines))

        async def exits(self) -> None:
            raise error

        async def exits_when_cancelled(self) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise error from None

        async def ends(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                self.ended = True

        async def on_execution_complete(
            self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float
        ) -> None:
            await asyncio.sleep(0)
            self.completed += 1

    listener = Leaves()
    adapter = AsyncListenerAdapter(listener)
    tell_everything(adapter)
    assert adapter.close(DEADLINE)
    assert [task.exception() for task in listener.tasks[:-1]] == [error, error, error]
    assert listener.tasks[-1].cancelled()
    assert listener.ended
    assert listener.completed == 1
    assert loop_threads() == []
    assert adapter.counters == QueueCounters(received=6, delivered=6, dropped=0, rejected=0, held=0)


def test_a_loop_ends_though_a_task_exits_in_the_same_turn() -> None:
    class Leaves:
        async def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
            self.task = asyncio.create_task(self.exits())

        async def exits(self) -> None:
            while adapter.counters.delivered == 0:  # noqa: ASYNC110 - no asyncio.Event announces it
                await asyncio.sleep(0)
            ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
            before = len(ready)
            closing.start()
            eventually(lambda: len(ready) > before, "the loop to be asked")
            await asyncio.sleep(0)  # to the same turn, after the asking
            raise SystemExit(3)

    listener = Leaves()
    adapter = AsyncListenerAdapter(listener)
    closing = threading.Thread(target=adapter.close, args=(DEADLINE,))
    adapter.on_execution_start(E, "d")
    eventually(lambda: closing.ident is not None and not closing.is_alive(), "the adapter to be closed")
    assert isinstance(listener.task.exception(), SystemExit)
    assert loop_threads() == []


def test_a_loop_that_was_closed_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    class Closes(Everything):
        async def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
            close_between_turns(asyncio.get_running_loop())
            await never()

    listener = Closes()
    adapter = AsyncListenerAdapter(listener)
    tell_everything(adapter)
    assert adapter.close(DEADLINE)
    assert [call[0] for call in listener.calls[:2]] == ["module_start", "module_complete"]
    assert adapter.counters == QueueCounters(received=6, delivered=5, dropped=0, rejected=1, held=0)
    assert loop_threads() == []


def test_without_a_thread_the_loop_runs_in_the_workers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As at the exit of Python 3.12.0 to 3.12.2, when the first events are called only then."""
    start = threading.Thread.start
    left: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        if thread.name == AsyncListenerAdapter.__name__:
            raise RuntimeError("can't create new thread at interpreter shutdown")
        start(thread)

    class Mixed(Everything):
        async def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
            self.task = asyncio.create_task(self.stay())
            await super().on_execution_start(execution_id, dag_name)

        async def stay(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                left.append("ended")

        def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
            return asyncio.Event().wait()  # type: ignore[return-value] # an awaitable, from what is no coroutine function

        async def on_module_failed(self, *args: object) -> None:
            raise SystemExit

    listener = Mixed()
    adapter = AsyncListenerAdapter(listener, callback_timeout=0.05)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        adapter.on_execution_start(E, "d")
        adapter.on_execution_cancelled(E, "d")
        adapter.on_module_failed(E, M, "m", ValueError())
        adapter.on_module_start(E, M, "m")
        assert adapter.close(DEADLINE)
    assert [call[0] for call in listener.calls] == ["execution_start", "module_start"]
    assert left == ["ended"]
    assert adapter.counters == QueueCounters(received=4, delivered=2, dropped=0, rejected=2, held=0)
    assert "the event loop has no thread of its own: can't create new thread" in caplog.text


def test_a_forked_child_has_a_loop_of_its_own() -> None:
    listener = Everything()
    adapter = AsyncListenerAdapter(listener)
    adapter.on_module_start(E, M, "parent")
    assert adapter.flush(DEADLINE)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            adapter.on_module_start(E, M, "child")
            done = adapter.close(DEADLINE)
            os.write(write, repr((done, [call[-1] for call in listener.calls])).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "(True, ['parent', 'child'])"
    assert os.waitpid(child, 0)[1] == 0
    assert adapter.close(DEADLINE)
