"""AsyncListenerAdapter: a listener with async callbacks, on an event loop of its own."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from constellation_otel._support.log import log
from constellation_otel._support.spelling import CALLBACKS, check_callbacks
from constellation_otel.delivery.worker import QueueCounters, Worker
from constellation_otel.errors import ListenerDefinitionError
from constellation_otel.events import Event, EventListener
from constellation_otel.listener import ExecutionListener

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

__all__ = ["AsyncListenerAdapter"]

_LOGGER: Final = logging.getLogger(__name__)
_CALLBACK_TIMEOUT: Final = 30.0


class AsyncListenerAdapter(EventListener):
    """Runs a listener whose callbacks are coroutine functions, or return what can be awaited.

    Events are queued, and awaited one after another, in order, on an event loop in a
    thread of its own; the loop runs on between them, so that clients that need it
    (connection pools, producers) work. The queue is bounded: what finds it full is
    dropped, counted and logged. An error of a module arrives as a
    :class:`~constellation_otel.RemoteError`, since a queued exception would pin the
    locals of its frames. Nothing that a callback or a task of the listener raises ends
    the loop, SystemExit and KeyboardInterrupt included; nor does it end the process.

    Args:
        listener: Any object that has one or more of the SPI's callbacks, each
            ``async def`` or plain. It need not be an ExecutionListener.
        redact: Rewrites the message of each error before it is kept anywhere.
        max_queue: Events held at most.
        callback_timeout: Seconds after which a callback that has not returned is
            cancelled and counted as rejected. Closing waits as long for the tasks that
            the listener has left, and as long again for its async generators.

    Raises:
        ListenerDefinitionError: The listener's class has a misspelt callback, one that is
            an async generator, or none.
    """

    def __init__(
        self,
        listener: object,
        *,
        redact: Callable[[str], str] | None = None,
        max_queue: int = 65_536,
        callback_timeout: float = _CALLBACK_TIMEOUT,
    ) -> None:
        super().__init__(redact)
        for cls in type(listener).__mro__[:-1]:
            check_callbacks(cls, allow_async=True)
        self._target = _Target(listener, self._await)
        self._callback_timeout = callback_timeout
        self._loop: _LoopThread | None = None
        self._worker = Worker(
            self._handle,
            name=f"{type(self).__name__}({type(listener).__name__})",
            max_queue=max_queue,
            finish=self._close_loop,
            forked=self._forget_loop,
        )

    @property
    def counters(self) -> QueueCounters:
        """What has become of the events so far; rejected are those whose callback raised."""
        return self._worker.counters

    def accept(self, event: Event) -> None:
        self._worker.put(event)

    def flush(self, timeout: float) -> bool:
        """Waits until the callbacks of what was put so far have returned.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether they have.
        """
        return self._worker.flush(timeout)

    def close(self, timeout: float) -> bool:
        """Takes nothing more, calls what is held, and ends the loop.

        What the listener has left on the loop ends with it: tasks are cancelled and
        awaited, then async generators are closed. What does not end is logged.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether everything that was held has been called.
        """
        return self._worker.close(timeout)

    def _handle(self, event: Event) -> None:
        event.notify(self._target)

    def _await(self, awaitable: Awaitable[object]) -> None:
        if self._loop is None:
            self._loop = _LoopThread(type(self).__name__, self._callback_timeout)
        self._loop.wait_for(awaitable)

    def _close_loop(self) -> None:
        if self._loop is not None:
            self._loop.close()

    def _forget_loop(self) -> None:
        self._loop = None


class _LoopThread:
    """An event loop, and the thread in which it runs until it is closed.

    Where no thread can be started any more, as at the exit of Python 3.12.0 to 3.12.2, the
    loop runs in the caller's thread, while something is waited for.

    Args:
        name: The thread's.
        timeout: Seconds that anything which is waited for may take.
    """

    def __init__(self, name: str, timeout: float) -> None:
        # any float, as a thread's join takes it: less than 0 and NaN are 0
        self._timeout = min(max(0.0, timeout), threading.TIMEOUT_MAX / 3)
        self._loop = asyncio.new_event_loop()
        self._closing: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._has_thread = False
            log(_LOGGER, logging.WARNING, "%s: the event loop has no thread of its own: %s", name, error)
        else:
            self._has_thread = True

    def wait_for(self, awaitable: Awaitable[object]) -> None:
        """Has something awaited, and waits until it has been.

        Raises:
            TimeoutError: It took too long, and is cancelled.
            BaseException: What it raised.
        """
        if not self._has_thread:
            self._wait_here(self._loop.create_task(_contained(awaitable)))
            return
        future = asyncio.run_coroutine_threadsafe(_contained(awaitable), self._loop)
        try:
            future.result(self._timeout)
        except TimeoutError:
            future.cancel()
            raise

    def _wait_here(self, task: asyncio.Task[None]) -> None:
        self._run_until(self._loop.create_task(asyncio.wait({task}, timeout=self._timeout)))
        if not task.done():
            task.cancel()
            raise TimeoutError
        task.result()

    def close(self) -> None:
        """Ends tasks, then async generators, then the loop; what does not end in time is logged."""
        if not self._has_thread:
            self._closing.set_result(None)
            self._run()
            return
        self._loop.call_soon_threadsafe(self._closing.set_result, None)
        self._thread.join(3 * self._timeout)  # tasks, generators, and what blocks the loop
        if self._thread.is_alive():
            log(
                _LOGGER,
                logging.WARNING,
                "%s: the event loop has not ended; something of the listener blocks it",
                self._thread.name,
            )

    def _run(self) -> None:
        try:
            self._run_until(self._closing)
            self._run_until(self._loop.create_task(self._wind_up()))
        finally:
            self._loop.close()

    def _run_until(self, future: asyncio.Future[Any]) -> None:
        while not future.done():
            # an exit is of a task that the listener has made, and that task has it; a RuntimeError is asyncio's own
            # word for a loop that was stopped: by what was still scheduled of the run that an exit cut short
            with suppress(SystemExit, KeyboardInterrupt, RuntimeError):
                self._loop.run_until_complete(future)

    async def _wind_up(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await self._end(left)
        await self._end({asyncio.create_task(self._loop.shutdown_asyncgens())})

    async def _end(self, tasks: set[asyncio.Task[Any]]) -> None:
        _, pending = await asyncio.wait(tasks, timeout=self._timeout)
        for task in pending:
            log(
                _LOGGER, logging.WARNING, "%s: not ended within %.1f s of closing; it is abandoned", task, self._timeout
            )


async def _contained(awaitable: Awaitable[object]) -> None:
    """Awaits, and turns into an ordinary error the two that asyncio would let out through the loop."""
    try:
        await awaitable
    except (SystemExit, KeyboardInterrupt) as error:
        message = f"the callback raised {error!r}, which ends nothing here"
        raise RuntimeError(message) from error


class _Target(ExecutionListener):
    """Calls the async listener's callbacks and has what they return awaited."""

    def __init__(self, listener: object, wait: Callable[[Awaitable[object]], None]) -> None:
        self._callbacks = {name: getattr(listener, name) for name in CALLBACKS if hasattr(listener, name)}
        if not self._callbacks:
            message = f"{listener!r} has none of the callbacks {', '.join(CALLBACKS)}"
            raise ListenerDefinitionError(message)
        self._wait = wait

    def _call(self, name: str, *args: object) -> None:
        callback = self._callbacks.get(name)
        if callback is None:
            return
        returned = callback(*args)
        if inspect.isawaitable(returned):
            self._wait(returned)
        elif isinstance(returned, Generator | AsyncGenerator):
            message = f"{name} returned {returned!r}, whose body nobody would run; take the yield out of the callback"
            raise TypeError(message)

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        self._call("on_execution_start", execution_id, dag_name)

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        self._call("on_module_start", execution_id, module_id, module_name)

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        self._call("on_module_complete", execution_id, module_id, module_name, duration_ms)

    def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
        self._call("on_module_failed", execution_id, module_id, module_name, error)

    def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
        self._call("on_execution_complete", execution_id, dag_name, succeeded, duration_ms)

    def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
        self._call("on_execution_cancelled", execution_id, dag_name)
