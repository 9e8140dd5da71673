"""An engine's threads: the executor's and the event loop's, and what runs in them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
import weakref
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from opentelemetry import context as otel_context

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.log import log
from constellation_otel._support.loop_thread import LoopThread
from constellation_otel.errors import ConstellationOtelError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from contextlib import AbstractContextManager

    from opentelemetry.context import Context

__all__ = ["Threads"]

_CLOSE_SLICE: Final = 0.1
_MAX_THREADS: Final = 1_000
_LOGGER: Final = logging.getLogger(__name__)


class Threads:
    """An engine's threads in one process, each started when it is first needed.

    They end when the engine is collected: the executor's as Python's do, the event loop's by ``_finalizer``.
    """

    def __init__(self, executor: Executor | None) -> None:
        self.executor = ThreadPoolExecutor(_MAX_THREADS, "constellation") if executor is None else executor
        self.is_local = isinstance(self.executor, ThreadPoolExecutor)
        self._owned = executor is None
        self._lock = threading.Lock()
        self._pending: set[Future[Any]] = set()
        self._pauses: set[asyncio.Timeout] = set()
        self._closed = False
        self._ended = False
        self._loop: LoopThread | None = None
        self._ref = weakref.ref(self)

    def submit(self, function: Callable[..., None], *args: Any) -> Future[None]:
        """Runs a function in a thread of the executor."""
        with _submitting() if type(self.executor) is ThreadPoolExecutor else nullcontext():
            return self.track(self.executor.submit(function, *args))

    def submit_async(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> Future[None]:
        """Runs an async function on the event loop; raises a RuntimeError or an OSError where there can be none."""
        with self._lock:  # so that close() does not come between
            if self._ended:
                message = "the engine has ended"
                raise RuntimeError(message)
            if self._loop is None or not self._loop.is_running:
                loop = LoopThread("constellation-loop")
                try:
                    # stop() takes no lock: a collection may come while this thread holds the executor's lock or ours
                    finalizer = weakref.finalize(self, loop.stop)
                    finalizer.atexit = False
                    loop.start()
                except BaseException:
                    loop.stop()
                    raise
                self._loop, self._finalizer = loop, finalizer
            return self._loop.submit(function, *args)

    def track(self, module: Future[Any]) -> Future[Any]:
        """Makes :meth:`close` wait for a module."""
        self._pending.add(module)
        module.add_done_callback(self._pending.discard)
        return module

    def admit(self, execution: Future[Any]) -> None:
        """Makes :meth:`close` wait for an execution; refuses it after that, except in the engine's own modules."""
        execution.add_done_callback(self._pending.discard)
        with self._lock:
            if self._closed and self._ref not in _inside.get():
                message = "this Constellation is closed and starts nothing more; make another one"
                raise ConstellationOtelError(message)
            self._pending.add(execution)

    @contextmanager
    def entered(self, context: Context) -> Iterator[None]:
        """Makes current what a module's body finds: its trace context, and that it is in this engine."""
        inside = _inside.get()
        entered = _inside.set(inside if self._ref in inside else (*inside, self._ref))
        token = otel_context.attach(context)
        try:
            yield
        finally:
            otel_context.detach(token)
            _inside.reset(entered)

    @contextmanager
    def pausing(self) -> Iterator[asyncio.Timeout]:
        """How long a pause on the event loop may be: as long as it takes, and not at all while the engine is closed."""
        with self._lock:
            limit = asyncio.timeout(0.0 if self._closed else None)
            if not self._closed:
                self._pauses.add(limit)
        try:
            yield limit
        finally:
            self._pauses.discard(limit)

    async def _end_pauses(self) -> None:
        while self._pauses:
            self._pauses.pop().reschedule(0.0)

    def are_waited_for(self) -> bool:
        """Whether this is in a module, perhaps of another engine, that occupies a thread of the same executor."""
        engines = [engine for each in _inside.get() if (engine := each()) is not None]
        return any(engine.executor is self.executor for engine in engines)

    def check_may_wait(self) -> None:
        """Raises a ConstellationOtelError in the event loop's thread."""
        if self._loop is not None and threading.current_thread() is self._loop.thread:
            message = "waiting here would block this Constellation's event loop for ever; await run_async() instead"
            raise ConstellationOtelError(message)

    def close(self, timeout: float) -> bool:
        """Does what :meth:`Constellation.close` promises."""
        deadline = deadline_of(timeout)
        with self._lock:
            self._closed = True
        if self._pauses:
            with suppress(RuntimeError, OSError):  # there is no event loop any more, and no pause
                self.submit_async(self._end_pauses)
        while pending := [future for future in tuple(self._pending) if not future.done()]:
            left = seconds_left(deadline)
            # in slices: a future that is cancelled meanwhile wakes wait() only when its executor looks at it
            wait(pending, min(left, _CLOSE_SLICE))
            if not left and not all(future.done() for future in pending):
                message = "%d executions or modules have not ended within %g s; they go on"
                log(_LOGGER, logging.WARNING, message, len(pending), timeout)
                return False
        if self._owned:
            self.executor.shutdown()
        with self._lock:
            self._ended = True
        if self._loop is None:
            return True
        self._finalizer.detach()
        return self._loop.close(seconds_left(deadline))


def _submitting() -> AbstractContextManager[object]:
    """A lock for submitting to thread pools, which makes them start their threads.

    They hold a lock of their own meanwhile, one for all pools. If gevent has patched the process
    since that was made, a greenlet that waits for it blocks all others, and starting a thread
    switches greenlets. So no greenlet may wait for it: this lock, of the class that ``threading``
    has now, is taken first.
    """
    key = (os.getpid(), threading.Lock)
    return _SUBMITTING.get(key) or _SUBMITTING.setdefault(key, threading.Lock())


_SUBMITTING: Final[dict[tuple[int, object], AbstractContextManager[object]]] = {}

_Inside: TypeAlias = "tuple[weakref.ref[Threads], ...]"

_inside: Final = contextvars.ContextVar[_Inside]("constellation_inside", default=())
"""The engines in whose modules this is, the outermost first."""
