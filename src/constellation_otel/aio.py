"""AsyncListenerAdapter: a listener with async callbacks, on an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Final

from constellation_otel._callbacks import CALLBACKS, check_callbacks
from constellation_otel.buffer import QueueCounters, Worker
from constellation_otel.errors import ListenerDefinitionError
from constellation_otel.events import Event, EventListener
from constellation_otel.listener import ExecutionListener

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from uuid import UUID

__all__ = ["AsyncListenerAdapter"]

_CALLBACK_TIMEOUT: Final = 30.0


class AsyncListenerAdapter(EventListener):
    """Runs a listener whose callbacks are coroutine functions.

    Events are queued, and awaited one after another, in order, on an event loop in a
    thread of its own; the loop runs on between them, so that clients that need it
    (connection pools, producers) work. The queue is bounded: what finds it full is
    dropped, counted and logged. An error of a module arrives as a
    :class:`~constellation_otel.RemoteError`, since a queued exception would pin the
    locals of its frames.

    Args:
        listener: Any object that has one or more of the SPI's callbacks, each
            ``async def`` or plain. It need not be an ExecutionListener.
        redact: Rewrites the message of each error before it is kept anywhere.
        max_queue: Events held at most.
        callback_timeout: Seconds after which a callback that has not returned is
            cancelled and counted as rejected.

    Raises:
        ListenerDefinitionError: The listener's class has a misspelt callback, or none.
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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker = Worker(
            self._handle,
            name=f"{type(self).__name__}({type(listener).__name__})",
            max_queue=max_queue,
            finish=self._stop_loop,
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

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether everything that was held has been called.
        """
        return self._worker.close(timeout)

    def _handle(self, event: Event) -> None:
        event.notify(self._target)

    def _await(self, coroutine: Coroutine[Any, Any, object]) -> None:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(self._loop,), name=type(self).__name__, daemon=True).start()
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            future.result(self._callback_timeout)
        except TimeoutError:
            future.cancel()
            raise

    def _stop_loop(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _forget_loop(self) -> None:
        self._loop = None


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=_CALLBACK_TIMEOUT))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


class _Target(ExecutionListener):
    """Calls the async listener's callbacks and has what they return awaited."""

    def __init__(self, listener: object, wait: Callable[[Coroutine[Any, Any, object]], None]) -> None:
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
        if asyncio.iscoroutine(returned):
            self._wait(returned)

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
