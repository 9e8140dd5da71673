"""AsyncListenerAdapter: async callbacks, in order, on a loop of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from functools import wraps
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

from constellation_otel import AsyncListenerAdapter, ListenerDefinitionError, RemoteError
from constellation_otel.delivery.worker import QueueCounters
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator

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


def loop_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "AsyncListenerAdapter"]


def test_the_loop_runs_on_between_callbacks_and_has_ended_when_the_adapter_is_closed() -> None:
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


def test_closing_waits_for_the_end_of_tasks_and_then_of_async_generators() -> None:
    async def a_few_turns() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    listener = Leaves(a_few_turns)
    adapter = AsyncListenerAdapter(listener)
    adapter.on_execution_start(E, "d")
    assert adapter.close(DEADLINE)
    assert listener.notes == ["task", "generator"]


def test_closing_does_not_wait_for_ever_for_what_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    listener = Leaves(never)
    adapter = AsyncListenerAdapter(listener, callback_timeout=0.05)
    adapter.on_execution_start(E, "d")
    assert adapter.close(DEADLINE)
    assert listener.notes == []
    assert loop_threads() == []
    warnings = [
        record.getMessage() for record in caplog.records if record.name == "constellation_otel.delivery.async_listener"
    ]
    assert [message.partition(": ")[2] for message in warnings] == [
        "not ended within 0.1 s of closing; it is abandoned",
        "not ended within 0.1 s of closing; it is abandoned",
    ]
    assert "name='left'" in warnings[0]
    assert "shutdown_asyncgens" in warnings[1]


def test_closing_does_not_wait_for_ever_for_a_loop_that_is_blocked(caplog: pytest.LogCaptureFixture) -> None:
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
    ] == ["AsyncListenerAdapter: the event loop has not ended; something of the listener blocks it"]


def test_at_the_interpreters_exit_tasks_end_and_nothing_is_printed() -> None:
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


def test_a_callback_that_hangs_is_cancelled_at_its_timeout() -> None:
    class Hangs:
        cancelled = False

        async def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise

    listener = Hangs()
    adapter = AsyncListenerAdapter(listener, callback_timeout=0.05)
    adapter.on_execution_start(E, "d")
    eventually(lambda: listener.cancelled, "the callback to be cancelled while the adapter is open")
    assert adapter.close(DEADLINE)


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (SystemExit(3), "RuntimeError: the callback raised SystemExit(3), which ends nothing here"),
        (KeyboardInterrupt(), "RuntimeError: the callback raised KeyboardInterrupt(), which ends nothing here"),
        (GeneratorExit("mine"), "GeneratorExit: mine"),
        (BaseException("mine"), "BaseException: mine"),
        (asyncio.CancelledError(), "CancelledError: "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_callback_that_raises_no_exception_is_rejected_at_once_and_the_next_is_awaited(
    error: BaseException, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Exits:
        completed = 0

        async def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
            raise error

        async def on_execution_complete(
            self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float
        ) -> None:
            self.completed += 1

    listener = Exits()
    adapter = AsyncListenerAdapter(listener, callback_timeout=2 * DEADLINE)
    tell_everything(adapter)
    assert adapter.close(DEADLINE)
    assert listener.completed == 1
    assert adapter.counters == QueueCounters(received=6, delivered=5, dropped=0, rejected=1, held=0)
    (raised,) = (record.exc_info[1] for record in caplog.records if record.exc_info)
    assert f"{type(raised).__name__}: {raised}" == logged


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_task_of_the_listeners_own_stops_neither_the_loop_nor_its_closing(error: BaseException) -> None:
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


def test_a_loop_that_is_asked_to_end_in_the_very_turn_in_which_a_task_exits_ends() -> None:
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


def test_whatever_can_be_awaited_is_awaited() -> None:
    class Query:
        def __init__(self, listener: Returns) -> None:
            self.listener = listener

        def __await__(self) -> Generator[None, None, None]:
            yield
            self.listener.notes.append("query")

    class Returns:
        def __init__(self) -> None:
            self.notes: list[str] = []

        async def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
            self.loop = asyncio.get_running_loop()
            self.future: asyncio.Future[None] = self.loop.create_future()
            self.future.add_done_callback(lambda _: self.notes.append("future"))

        def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> Awaitable[None]:
            return Query(self)

        def on_module_complete(
            self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float
        ) -> Awaitable[None]:
            self.loop.call_soon_threadsafe(self.loop.call_later, 0.01, self.future.set_result, None)
            return self.future

        async def on_execution_complete(
            self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float
        ) -> None:
            self.notes.append("complete")

    listener = Returns()
    adapter = AsyncListenerAdapter(listener)
    tell_everything(adapter)
    assert adapter.close(DEADLINE)
    assert listener.notes == ["query", "future", "complete"]
    assert adapter.counters == QueueCounters(received=6, delivered=6, dropped=0, rejected=0, held=0)


def test_an_async_generator_is_refused_as_a_callback() -> None:
    class Yields:
        async def on_module_start(
            self, execution_id: UUID, module_id: UUID, module_name: str
        ) -> AsyncIterator[None]:  # pragma: no cover - refused
            yield

    class Inherits(Yields):
        pass

    for listener in (Yields(), Inherits()):
        with pytest.raises(ListenerDefinitionError) as refused:
            AsyncListenerAdapter(listener)
        assert str(refused.value) == (
            f"{Yields.__qualname__}.on_module_start is an async generator, which nobody would iterate, so that its"
            " body would never run: take the yield out"
        )


def test_a_callback_that_turns_out_to_be_a_generator_is_rejected(caplog: pytest.LogCaptureFixture) -> None:
    def decorated(function: Callable[..., object]) -> Callable[..., object]:
        @wraps(function)
        def call(*args: object) -> object:
            return function(*args)

        return call

    class Yields:
        @decorated
        async def on_execution_start(self, execution_id: UUID, dag_name: str) -> AsyncIterator[None]:
            yield

        def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> Generator[None, None, None]:
            yield

    adapter = AsyncListenerAdapter(Yields())
    tell_everything(adapter)
    assert adapter.close(DEADLINE)
    assert adapter.counters == QueueCounters(received=6, delivered=4, dropped=0, rejected=2, held=0)


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


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_any_float_is_taken_as_a_timeout(timeout: float) -> None:
    listener = Everything()
    adapter = AsyncListenerAdapter(listener, callback_timeout=timeout)
    adapter.on_module_start(E, M, "m")
    assert adapter.flush(timeout)
    assert adapter.close(timeout)
    assert [call[-1] for call in listener.calls] == ["m"]


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("-inf"), float("nan")])
def test_no_time_is_taken_as_a_timeout_that_is_over(timeout: float) -> None:
    gate = threading.Event()

    class Slow:
        async def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
            await asyncio.to_thread(gate.wait, DEADLINE)

    adapter = AsyncListenerAdapter(Slow())
    adapter.on_execution_start(E, "d")
    assert not adapter.flush(timeout)
    assert not adapter.close(timeout)
    gate.set()
    assert adapter.close(DEADLINE)


def test_where_the_loop_can_have_no_thread_it_runs_in_the_workers(
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
