"""A bounded queue and the one thread that empties it.

What every listener that does more than append is built on: the callback's side
costs one append, the worker's side may take its time. It is fork-safe, starts
its thread with the first item, and keeps the timeouts of flush and close.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from msgspec import Struct
from opentelemetry import context as otel_context

from constellation_otel._fork import after_fork_in_child
from constellation_otel._log import RateLimitedLog

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["QueueCounters", "Worker"]

_LOGGER: Final = logging.getLogger(__name__)
_EXIT_TIMEOUT: Final = 5.0
_MAX_BATCH: Final = 512

T = TypeVar("T")
R = TypeVar("R")


class QueueCounters(Struct, frozen=True):
    """What has become of the items so far: ``received = delivered + dropped + rejected + held``.

    Attributes:
        received: Items that were offered.
        delivered: Items that the worker has dealt with.
        dropped: Items that found the queue full, or closed.
        rejected: Items whose handling raised.
        held: Items that wait in the queue or are in the worker's hands.
    """

    received: int
    delivered: int
    dropped: int
    rejected: int
    held: int


class Worker(Generic[T]):
    """A bounded queue of items, and a daemon thread that hands them to a handler.

    All calls of ``handle``, ``tick`` and ``finish`` come from the one thread, so what
    they share needs no lock. An exception out of one of them is logged and counted,
    and the worker goes on.

    Args:
        handle: Takes one item.
        name: The thread's name, and who is speaking in the log.
        max_queue: Items held at most; beyond it the newest is dropped and counted.
            Several threads at once may overshoot it by one item each.
        linger: Seconds that the worker lets items gather after the first one.
        tick: Called after every batch and when the time that it last answered has
            come: does what time alone makes due, and answers in how many seconds it
            wants to be called again (``None``: not before the next item).
        finish: Called once, last, when the worker is closed.
        forked: Called in a forked child, before its own worker starts afresh.
    """

    def __init__(
        self,
        handle: Callable[[T], None],
        *,
        name: str,
        max_queue: int = 65_536,
        linger: float = 0.05,
        tick: Callable[[], float | None] = lambda: None,
        finish: Callable[[], None] = lambda: None,
        forked: Callable[[], None] = lambda: None,
    ) -> None:
        if max_queue < 1:
            message = f"max_queue={max_queue!r} must be at least 1"
            raise ValueError(message)
        self._handle = handle
        self._name = name
        self._max_queue = max_queue
        self._linger = linger
        self._tick = tick
        self._finish = finish
        self._forked = forked
        self._log = RateLimitedLog()
        self._at_exit = _closer(weakref.ref(self))
        self._start_afresh()
        after_fork_in_child(self._after_fork)

    def _start_afresh(self) -> None:
        self._queue: deque[T] = deque()
        self._condition = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._asleep = True
        self._hurry = False
        self._closed = False
        self._finished = False
        self._taken = 0
        self._done = 0
        self._rejected = 0
        self._dropped = 0

    def _after_fork(self) -> None:
        self._start_afresh()
        self._forked()

    @property
    def counters(self) -> QueueCounters:
        """What has become of the items so far."""
        with self._condition:
            held = len(self._queue) + self._taken - self._done
            received = len(self._queue) + self._taken + self._dropped
            delivered = self._done - self._rejected
            return QueueCounters(received, delivered, self._dropped, self._rejected, held)

    def put(self, item: T) -> bool:
        """Appends an item; never waits and never raises.

        Returns:
            Whether it was taken; otherwise it is dropped and counted.
        """
        queue = self._queue
        if len(queue) >= self._max_queue or self._closed:
            self._drop()
            return False
        queue.append(item)
        if self._asleep:
            self._wake()
        return True

    def flush(self, timeout: float) -> bool:
        """Waits until what has been put so far has been dealt with.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether all of it has been dealt with.
        """
        if threading.current_thread() is self._thread:
            # the worker cannot wait for itself
            return False
        with self._condition:
            goal = self._taken + len(self._queue)
            self._hurry = True
            self._condition.notify_all()
            return self._condition.wait_for(lambda: self._done >= goal, timeout)

    def close(self, timeout: float) -> bool:
        """Takes nothing more, deals with what is held, and ends the thread.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether everything was dealt with. What was not is logged, and is lost when
            the process ends.
        """
        with self._condition:
            self._closed = True
            if self._thread is None:
                if self._queue:
                    self._start()
                else:
                    self._finished = True
            self._condition.notify_all()
            done = self._condition.wait_for(lambda: self._finished, timeout if self._thread is not None else 0)
            held = len(self._queue) + self._taken - self._done
        atexit.unregister(self._at_exit)
        if not done:
            message = "%s: not done within %.1f s of closing; %d items are still held"
            _LOGGER.warning(message, self._name, timeout, held)
        return done

    def _drop(self) -> None:
        with self._condition:
            self._dropped += 1
        why = "closed" if self._closed else f"full ({self._max_queue} items)"
        self._log.write(_LOGGER, logging.WARNING, why, "%s: the queue is %s; dropping the newest", self._name, why)

    def _wake(self) -> None:
        with self._condition:
            self._asleep = False
            if self._thread is None:
                self._start()
            self._condition.notify_all()

    def _start(self) -> None:
        """Starts the thread; the lock is held."""
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # the interpreter is going down, or the machine has no threads left
            self._log.write(_LOGGER, logging.ERROR, "thread", "%s: no worker thread: %s", self._name, error)
            self._asleep = True
            return
        self._thread = thread
        # not sooner: what was registered before us, an SDK's shutdown for one, then runs after us
        atexit.register(self._at_exit)

    def _run(self) -> None:
        # for good: what this thread does, exporting included, is never traced itself
        otel_context.attach(otel_context.set_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY, True))  # noqa: SLF001 - the exporters' own key
        wake_at = inf
        last = False
        while not last:
            batch, last = self._take(wake_at)
            self._process(batch)
            wake_in = self._call(self._tick)
            wake_at = inf if wake_in is None else time.monotonic() + wake_in
            if last:
                self._call(self._finish)
            with self._condition:
                self._finished = last
                self._condition.notify_all()

    def _process(self, batch: list[T]) -> None:
        """Deals with items, counting each as done when it is."""
        for item in batch:
            self._call(self._handle, item)
            self._done += 1

    def _take(self, wake_at: float) -> tuple[list[T], bool]:
        """Waits for items, for the time to come, or for the end."""
        with self._condition:
            # first the flag, then the look: an item that comes between them finds the flag up
            self._asleep = True
            timeout = None if wake_at == inf else max(0.0, wake_at - time.monotonic())
            self._condition.wait_for(lambda: self._queue or self._closed, timeout)
            self._asleep = False
            if 0 < len(self._queue) < _MAX_BATCH:
                self._condition.wait_for(lambda: self._closed or self._hurry, self._linger)
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), _MAX_BATCH))]
            self._taken += len(batch)
            self._hurry = self._hurry and bool(self._queue)
            return batch, self._closed and not batch

    def _call(self, function: Callable[..., R], *args: T) -> R | None:
        try:
            return function(*args)
        except BaseException as error:  # noqa: BLE001 - nothing may end the one thread that empties the queue
            self._rejected += len(args)
            message = "%s: %s raised; the worker goes on"
            self._log.write(_LOGGER, logging.ERROR, type(error).__name__, message, self._name, function, error=error)
            return None


def _closer(reference: weakref.ref[Worker[Any]]) -> Callable[[], None]:
    """What the interpreter does at its exit, without keeping the worker alive."""

    def close() -> None:
        worker = reference()
        if worker is not None:
            worker.close(_EXIT_TIMEOUT)

    return close
