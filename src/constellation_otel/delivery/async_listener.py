"""AsyncListenerAdapter: a listener with async callbacks, on an event loop of its own."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Final

from constellation_otel._support.deadline import bounded
from constellation_otel._support.log import log
from constellation_otel._support.loop_thread import LoopThread
from constellation_otel._support.spelling import CALLBACKS, check_callbacks
from constellation_otel.delivery.worker import Handler, QueueCounters, Worker
from constellation_otel.errors import ListenerDefinitionError
from constellation_otel.events import Event, EventListener
from constellation_otel.listener import ExecutionListener

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

__all__ = ["AsyncListenerAdapter"]

_LOGGER: Final = logging.getLogger(__name__)


class AsyncListenerAdapter(EventListener):
    """Calls a listener whose callbacks are coroutine functions, or return something that can be awaited.

    Events are queued, and their callbacks awaited one after another, in order, on an event
    loop in a thread of its own. The loop runs on between them, so that clients that need it
    (connection pools, producers) work. The queue is bounded: an event that finds it full is
    dropped, counted and logged. A module's error arrives as a
    :class:`~constellation_otel.RemoteError`, since a queued exception would pin the locals
    of its frames. No exception of a callback or a task of the listener ends the loop or the
    process, SystemExit and KeyboardInterrupt included.

    Args:
        listener: Any object that has one or more of the SPI's callbacks, each
            ``async def`` or plain. It need not be an ExecutionListener.
        redact: Rewrites the message of each error before it is kept anywhere.
        max_queue: Events held at most.
        callback_timeout: Seconds after which a callback that has not returned is
            cancelled and counted as rejected. Closing waits as long for the listener's
            tasks to end, and as long again for its async generators.

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
        callback_timeout: float = 30.0,
    ) -> None:
        super().__init__(redact)
        for cls in type(listener).__mro__[:-1]:
            check_callbacks(cls, allow_async=True)
        caller = _Caller(listener, type(self).__name__, bounded(callback_timeout))
        # one at a time, since each may take its time
        self._worker: Worker[Event] = Worker(
            caller, name=f"{type(self).__name__}({type(listener).__name__})", max_queue=max_queue, max_batch=1
        )

    @property
    def counters(self) -> QueueCounters:
        """The events by what became of them; rejected are those whose callback raised."""
        return self._worker.counters

    def accept(self, event: Event) -> None:
        self._worker.put(event)

    def flush(self, timeout: float) -> bool:
        """Waits until the callbacks of all events so far have returned, for ``timeout`` seconds at most.

        Returns:
            Whether they have.
        """
        return self._worker.flush(timeout)

    def close(self, timeout: float) -> bool:
        """Takes no more events, makes the callbacks of those that are held, and ends the loop.

        Then the listener's tasks are cancelled and awaited, and its async generators closed;
        what does not end is logged. This returns within ``timeout`` seconds.

        Returns:
            Whether the callbacks of all events that were held have returned.
        """
        return self._worker.close(timeout)


class _Caller(Handler["Event"]):
    """Calls a listener's callbacks in the worker's thread, each on an event loop where it wants one.

    Args:
        listener: The listener.
        name: The adapter's, for the log and the loop's thread.
        timeout: Seconds that a callback may take.
    """

    def __init__(self, listener: object, name: str, timeout: float) -> None:
        self._target = _Target(listener, self._await)
        self._name = name
        self._timeout = timeout
        self._loop: LoopThread | None = None

    def handle(self, items: list[Event]) -> None:
        for event in items:
            event.notify(self._target)

    def finish(self) -> None:
        # a timeout each for tasks, async generators, and a callback that blocks the loop
        if self._loop is not None and not self._loop.close(3 * self._timeout):
            message = "%s: the event loop has not ended; something in the listener blocks it"
            log(_LOGGER, logging.WARNING, message, self._name)

    def after_fork(self) -> None:
        self._loop = None

    def _await(self, awaitable: Awaitable[object]) -> None:
        loop = self._loop
        if loop is None or not loop.is_running:
            loop = self._loop = LoopThread(self._name, self._timeout)
            try:
                loop.start()
            except RuntimeError as error:
                message = "%s: the event loop has no thread of its own: %s"
                log(_LOGGER, logging.WARNING, message, self._name, error)
        loop.wait_for(loop.submit(_contained, awaitable), self._timeout)


async def _contained(awaitable: Awaitable[object]) -> None:
    """Awaits, and raises an ordinary error instead of the two that asyncio raises in the loop's thread."""
    try:
        await awaitable
    except (SystemExit, KeyboardInterrupt) as error:
        message = f"the callback raised {error!r}; the event loop goes on"
        raise RuntimeError(message) from error


class _Target(ExecutionListener):
    """Calls the listener's callbacks and waits for what they return."""

    def __init__(self, listener: object, wait: Callable[[Awaitable[object]], None]) -> None:
        self._callbacks = {name: getattr(listener, name) for name in CALLBACKS if hasattr(listener, name)}
        if not self._callbacks:
            message = f"{listener!r} has none of the callbacks {', '.join(CALLBACKS)}; define at least one"
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
            message = f"{name} returned {returned!r}, whose body would never run; take the yield out of the callback"
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
