"""An event loop in a thread of its own, which nothing that runs on it can end."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from constellation_otel._support.log import RateLimitedLog, log

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from concurrent.futures import Future

__all__ = ["LoopThread"]

T = TypeVar("T")

_LOGGER: Final = logging.getLogger(__name__)
_LIMITED: Final = RateLimitedLog()


class LoopThread:
    """An event loop in a daemon thread, which runs until it is stopped, whatever runs on it.

    SystemExit and KeyboardInterrupt of a task do not end the loop. A loop that cannot run on,
    since it was closed or lost its descriptors, cancels everything that was submitted.

    If no thread can be started, as at the exit of Python 3.12.0 to 3.12.2, :meth:`start` raises,
    and the loop runs in the caller's thread, during :meth:`wait_for` and :meth:`close`.

    Args:
        name: The thread's name.
        grace: Seconds that closing waits for tasks, and then for async generators; what has not
            ended by then is logged and abandoned. ``None`` waits for all of them, and for the
            threads of the loop's default executor.

    Attributes:
        thread: The thread.
        is_running: Whether the loop accepts functions.
    """

    def __init__(self, name: str, grace: float | None = None) -> None:
        self.is_running = False
        self._grace = grace
        self._lock = threading.Lock()
        self._left: set[Future[None]] = set()
        self._stopping = False
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._loop = asyncio.new_event_loop()

    def start(self) -> None:
        """Starts the thread; raises a RuntimeError where none can be started."""
        self.is_running = True
        self.thread.start()

    def submit(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> Future[None]:
        """Runs an async function in a copy of the caller's context; raises a RuntimeError once the loop has ended."""
        with self._lock:
            if not self.is_running:
                message = "the event loop has ended"
                raise RuntimeError(message)
            made_later = _Later(functools.partial(function, *args))
            future = cast("Future[None]", asyncio.run_coroutine_threadsafe(made_later, self._loop))
            self._left.add(future)
        future.add_done_callback(self._left.discard)
        return future

    def wait_for(self, future: Future[None], timeout: float) -> None:
        """Waits for what was submitted, and raises what that raises.

        Raises:
            TimeoutError: It took longer than ``timeout`` seconds, and is cancelled.
        """
        if self.thread.ident is None:
            here = asyncio.wait_for(asyncio.wrap_future(future, loop=self._loop), timeout)
            self._run_until_done(task := self._loop.create_task(here))
            return task.result()
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise

    def stop(self) -> None:
        """Ends the loop as :meth:`close` does; does not wait, and takes no lock."""
        self._stopping = True
        self.is_running = False
        if self.thread.ident is None:
            self._loop.close()
        else:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self._loop.stop)

    def close(self, timeout: float) -> bool:
        """Ends the loop: cancels tasks and waits for them, then closes async generators.

        Returns:
            Whether it has ended, within ``timeout`` seconds.
        """
        if self.thread.ident is None:
            self._stopping = True
            self._run()
            return True
        self.stop()
        self.thread.join(timeout)
        return not self.thread.is_alive()

    def _run(self) -> None:
        try:
            self._run_until_stopped()
        except BaseException as error:  # noqa: BLE001 - it was closed, its descriptors are gone, or another loop runs
            _LIMITED.write(_LOGGER, logging.ERROR, "run", "the event loop cannot go on", error=error)
            self._try(self._loop.close)  # before another loop gets the number of a descriptor that this one has lost
        with self._lock:
            self.is_running = False
        for future in tuple(self._left):
            future.cancel()
        if not self._loop.is_closed():
            self._try(lambda: self._run_until_done(self._loop.create_task(self._wind_up())))
            self._try(self._loop.close)

    def _run_until_stopped(self) -> None:
        while not self._stopping:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                message = "a task raised %s; the event loop goes on"
                _LIMITED.write(_LOGGER, logging.WARNING, "exit", message, type(error).__name__)

    def _run_until_done(self, task: asyncio.Task[None]) -> None:
        while not (task.done() or self._loop.is_closed()):
            # an exit belongs to the task that raised it; asyncio raises a RuntimeError for a loop that a task stopped
            with suppress(SystemExit, KeyboardInterrupt, RuntimeError):
                self._loop.run_until_complete(task)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - the loop is not used any more
            _LIMITED.write(_LOGGER, logging.WARNING, "close", "the event loop did not close", error=error)

    async def _wind_up(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await self._wait(left)
        await self._wait({asyncio.create_task(self._loop.shutdown_asyncgens())})
        if self._grace is None:
            await self._loop.shutdown_default_executor()

    async def _wait(self, tasks: set[asyncio.Task[Any]]) -> None:
        _, pending = await asyncio.wait(tasks, timeout=self._grace)
        for task in pending:
            message = "%s: not ended within %.1f s of closing; it is abandoned"
            log(_LOGGER, logging.WARNING, message, task, self._grace)


class _Later(Coroutine[Any, Any, T]):
    """A coroutine that is made where it first runs: one that never runs needs no closing."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._make = make

    @functools.cached_property
    def _made(self) -> Coroutine[Any, Any, T]:
        return self._make()

    def send(self, value: Any) -> Any:
        return self._made.send(value)

    def throw(self, *error: Any) -> Any:
        return self._made.throw(*error)

    def close(self) -> None:
        self._made.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._made.__await__()
