"""AsyncListenerAdapter: async callbacks, in order."""

from __future__ import annotations

import asyncio
import threading
from functools import wraps
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

from async_listeners import E, Everything, M, tell_everything
from constellation_otel import AsyncListenerAdapter, ListenerDefinitionError
from constellation_otel.delivery.worker import QueueCounters
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator
    from uuid import UUID


def test_callbacks_are_awaited_in_order_with_the_callers_span() -> None:
    """On one loop."""
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


def test_a_callback_that_raises_or_hangs_is_rejected(caplog: pytest.LogCaptureFixture) -> None:
    """And the next one is called."""

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
        (SystemExit(3), "RuntimeError: the callback raised SystemExit(3); the event loop goes on"),
        (
            KeyboardInterrupt(),
            "RuntimeError: the callback raised KeyboardInterrupt(); the event loop goes on",
        ),
        (GeneratorExit("mine"), "GeneratorExit: mine"),
        (BaseException("mine"), "BaseException: mine"),
        (asyncio.CancelledError(), "CancelledError: "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_callback_that_raises_a_base_exception_is_rejected(
    error: BaseException, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, and the next one is awaited."""

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


def test_a_listener_with_misspelt_or_no_callbacks_is_refused() -> None:
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
    eventually(lambda: adapter.counters.held == 1 and not adapter._worker.queue, "the first event to be taken")
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
