"""AsyncListenerAdapter: async callbacks, in order, on a loop of their own."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

from constellation_otel import AsyncListenerAdapter, ListenerDefinitionError, RemoteError
from constellation_otel.buffer import QueueCounters
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from constellation_otel import ExecutionListener

E = UUID(int=1)
M = UUID(int=2)


def tell_everything(listener: ExecutionListener) -> None:
    listener.on_execution_start(E, "d")
    listener.on_module_start(E, M, "m")
    listener.on_module_complete(E, M, "m", 2.5)
    listener.on_module_failed(E, M, "m", ValueError("bad"))
    listener.on_execution_complete(E, "d", False, 3.5)
    listener.on_execution_cancelled(E, "d")


class Everything:
    """Every callback, async, and one thing that lives between callbacks."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.threads: set[str] = set()
        self.background: asyncio.Task[None] | None = None

    async def note(self, *call: object) -> None:
        await asyncio.sleep(0)
        self.threads.add(threading.current_thread().name)
        self.calls.append(call)

    async def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        current = trace.get_current_span().get_span_context().span_id
        await self.note("execution_start", execution_id, dag_name, current)

    async def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        await self.note("module_start", execution_id, module_id, module_name)

    async def on_module_complete(
        self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float
    ) -> None:
        await self.note("module_complete", execution_id, module_id, module_name, duration_ms)

    async def on_module_failed(
        self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException
    ) -> None:
        assert isinstance(error, RemoteError)
        await self.note("module_failed", execution_id, module_id, module_name, error.type, error.message)

    async def on_execution_complete(
        self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float
    ) -> None:
        await self.note("execution_complete", execution_id, dag_name, succeeded, duration_ms)

    def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
        self.calls.append(("execution_cancelled", execution_id, dag_name))


def test_every_callback_is_awaited_in_order_on_one_loop_with_the_callers_span() -> None:
    listener = Everything()
    adapter = AsyncListenerAdapter(listener)
    with trace.use_span(NonRecordingSpan(SpanContext(5, 7, is_remote=False))):
        tell_everything(adapter)
    assert adapter.flush(DEADLINE)
    assert listener.calls == [
        ("execution_start", E, "d", 7),
        ("module_start", E, M, "m"),
        ("module_complete", E, M, "m", 2.5),
        ("module_failed", E, M, "m", "ValueError", "bad"),
        ("execution_complete", E, "d", False, 3.5),
        ("execution_cancelled", E, "d"),
    ]
    assert listener.threads == {"AsyncListenerAdapter"}
    assert adapter.counters == QueueCounters(received=6, delivered=6, dropped=0, rejected=0, held=0)
    assert adapter.close(DEADLINE)


def test_the_loop_runs_on_between_callbacks_and_ends_with_the_adapter() -> None:
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
    eventually(listener.task.cancelled, "the task to be cancelled")
    name = "AsyncListenerAdapter"
    eventually(lambda: name not in {thread.name for thread in threading.enumerate()}, "the loop's thread to end")


def test_a_callback_that_raises_or_hangs_is_rejected_and_the_next_is_called(caplog: pytest.LogCaptureFixture) -> None:
    class Troubled:
        completed = 0

        async def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
            raise ValueError(module_name)

        async def on_module_complete(
            self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float
        ) -> None:
            await asyncio.Event().wait()

        async def on_execution_complete(
            self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float
        ) -> None:
            self.completed += 1

    listener = Troubled()
    adapter = AsyncListenerAdapter(listener, callback_timeout=0.05)
    tell_everything(adapter)
    assert adapter.close(DEADLINE)
    assert listener.completed == 1
    assert adapter.counters == QueueCounters(received=6, delivered=4, dropped=0, rejected=2, held=0)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ValueError, TimeoutError]


def test_a_listener_may_have_plain_callbacks_too() -> None:
    class Plain:
        started = 0

        def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
            self.started += 1

    listener = Plain()
    adapter = AsyncListenerAdapter(listener)
    tell_everything(adapter)
    assert adapter.close(DEADLINE)
    assert listener.started == 1


def test_a_misspelt_callback_and_a_listener_without_any_are_refused() -> None:
    class Misspelt:
        async def on_module_started(self, execution_id: UUID, module_id: UUID, module_name: str) -> None: ...

    with pytest.raises(ListenerDefinitionError, match="the callback's name is on_module_start"):
        AsyncListenerAdapter(Misspelt())
    with pytest.raises(ListenerDefinitionError, match="has none of the callbacks on_execution_start, "):
        AsyncListenerAdapter(object())


def test_what_finds_the_queue_full_is_dropped_and_counted() -> None:
    gate = threading.Event()

    class Slow:
        async def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
            await asyncio.to_thread(gate.wait, DEADLINE)

    adapter = AsyncListenerAdapter(Slow(), max_queue=1)
    adapter.on_execution_start(E, "d")
    eventually(lambda: adapter.counters.held == 1 and not adapter._worker._queue, "the first event to be taken")
    for _ in range(3):
        adapter.on_execution_start(E, "d")
    assert not adapter.flush(0.01)
    assert adapter.counters == QueueCounters(received=4, delivered=0, dropped=2, rejected=0, held=2)
    gate.set()
    assert adapter.close(DEADLINE)


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
