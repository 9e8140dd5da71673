"""A bounded queue and the one thread that empties it.

What every listener that does more than append is built on: the callback's side
costs one append, the worker's side may take its time. It is fork-safe, starts
its thread with the first item, and keeps the timeouts of flush and close.
"""

from __future__ import annotations

import contextvars
import encodings.idna  # noqa: F401 - the first look-up would: a fork during that leaves it half made in the child
import logging
import sys
import threading
import time
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from msgspec import Struct
from opentelemetry import context as otel_context

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.exit import call_at_exit, exit_hook, forget_at_exit
from constellation_otel._support.fork import PerProcess, after_fork_in_child
from constellation_otel._support.log import RateLimitedLog

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["QueueCounters", "Worker"]

_LOGGER: Final = logging.getLogger(__name__)
_EXIT_TIMEOUT: Final = 5.0
_MAX_BATCH: Final = 512
_TICK_AGAIN: Final = 1.0
_NEVER: Final = sys.maxsize
_FULL: Final = "%s: the queue is full (%d items); dropping the newest"
_CLOSED: Final = "%s: the queue is closed; dropping the newest"

T = TypeVar("T")


class QueueCounters(Struct, frozen=True):
    """What has become of the items so far: ``received = delivered + dropped + rejected + held``.

    Attributes:
        received: Items that were offered.
        delivered: Items that the worker has dealt with.
        dropped: Items that found the queue full, or the worker closed.
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

    The thread keeps the worker, and whatever its functions belong to, alive: only
    :meth:`close` ends them. A worker that is forgotten without it lives on to the end of
    the process, which closes it (see :mod:`constellation_otel._support.exit`). A forked child's
    worker starts with an empty queue, makes a thread of its own for its first item, and is
    closed if it was closed before the fork.

    No lock is held while a thread is started or one of the functions is called, and none is
    made before it is needed: the listener may be older than gevent's patches.

    Args:
        handle: Takes one item.
        name: The thread's name, and who is speaking in the log.
        max_queue: Items held at most; beyond it the newest is dropped and counted.
            Several threads at once may overshoot it by one item each.
        linger: Seconds that the worker lets items gather after the first one, unless
            half of the queue is in use before.
        is_ready: Whether items may be taken out of the queue now. Where they may not, they
            wait in it, and what finds it full is dropped; asked after each ``tick``. Once
            the worker is closed, items are taken all the same.
        tick: Called after every batch and when the time that it last answered has
            come: does what time alone makes due, and answers in how many seconds it
            wants to be called again (``None``: not before the next item). When it
            raises, it is called again in a second.
        finish: Called once, last, when the worker is closed.
        forked: Called in a forked child, before anything else happens there; must be quick.
        also_held: How many items of those that were handled are still held elsewhere, for
            what is logged when closing takes too long.
    """

    _condition = PerProcess(lambda: threading.Condition(threading.Lock()))

    def __init__(
        self,
        handle: Callable[[T], None],
        *,
        name: str,
        max_queue: int = 65_536,
        linger: float = 0.05,
        is_ready: Callable[[], bool] = lambda: True,
        tick: Callable[[], float | None] = lambda: None,
        finish: Callable[[], None] = lambda: None,
        forked: Callable[[], None] = lambda: None,
        also_held: Callable[[], int] = lambda: 0,
    ) -> None:
        if max_queue < 1:
            message = f"max_queue={max_queue!r} must be at least 1"
            raise ValueError(message)
        self._handle = handle
        self._name = name
        self._max_queue = max_queue
        self._enough = max(1, max_queue // 2)
        self._linger = linger
        self._is_ready = is_ready
        self._tick = tick
        self._finish = finish
        self._forked = forked
        self._also_held = also_held
        self._log = RateLimitedLog()
        self._start_afresh()
        after_fork_in_child(self._after_fork)
        self._at_exit = exit_hook(self._close_at_exit)
        # now, for a first item that comes when the interpreter's exit has begun; and again with the thread
        call_at_exit(self._at_exit)

    def _start_afresh(self, *, closed: bool = False) -> None:
        self._queue: deque[T] = deque()
        self._thread: threading.Thread | None = None
        # how long the queue must be for an append to wake the worker
        self._wake_from = 1
        self._hurry = False
        self._nudged = False
        self._closed = closed
        # the worker has had its last look at the queue; and then, it has finished
        self._drained = closed
        self._finished = closed
        self._taken = 0
        self._delivered = 0
        self._rejected = 0
        # counts what is dropped, too, so that a queue that is full costs one lock
        self._drops = RateLimitedLog()

    def _after_fork(self) -> None:
        self._start_afresh(closed=self._closed)
        self._forked()

    @property
    def counters(self) -> QueueCounters:
        """What has become of the items so far."""
        with self._condition:
            # each is read once: they change without the lock
            waiting, delivered, rejected, dropped = (
                len(self._queue),
                self._delivered,
                self._rejected,
                self._drops.count,
            )
            received = waiting + self._taken + dropped
            held = waiting + self._taken - delivered - rejected
            return QueueCounters(received, delivered, dropped, rejected, held)

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
        return len(queue) < self._wake_from or self._wake(item)

    def nudge(self) -> None:
        """Has ``tick`` called soon, whether or not there are items."""
        with self._condition:
            self._nudged = True
            self._condition.notify_all()
        if self._thread is None and not self._closed:
            self._start()

    def wait_for_room(self, count: int, timeout: float) -> bool:
        """Waits until so many items would find room in the queue.

        Args:
            count: Items; more than the queue can hold find room when it is empty.
            timeout: Seconds; this returns within them.

        Returns:
            Whether there is room, which another thread may take.
        """
        with self._condition:
            most = max(0, self._max_queue - count)
            return self._wait_for(lambda: len(self._queue) <= most, timeout)

    @property
    def has_finished(self) -> bool:
        """Whether it was closed, and nothing more will be done."""
        return self._finished

    def end_soon(self) -> None:
        """Takes nothing more, deals with what is held, and ends; does not wait for that, as :meth:`close` does."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if not self._finished:
            self._start()

    def wait_until(self, condition: Callable[[], object], timeout: float) -> bool:
        """Waits until a condition holds that the worker's thread brings about.

        Args:
            condition: Asked at once and after every batch and tick; must not wait.
            timeout: Seconds; this returns within them.

        Returns:
            Whether it holds.
        """
        with self._condition:
            return self._wait_for(condition, timeout)

    def flush(self, timeout: float) -> bool:
        """Waits until what has been put so far has been dealt with.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether all of it has been dealt with.
        """
        if threading.current_thread() is self._thread:
            # the worker cannot wait for itself
            return self._finished
        with self._condition:
            goal = self._taken + len(self._queue)
            self._hurry = bool(self._queue)
            self._condition.notify_all()
            # an item that is taken back from a closed queue is in no sum
            return self._wait_for(lambda: self._delivered + self._rejected >= goal or self._finished, timeout)

    def close(self, timeout: float) -> bool:
        """Takes nothing more, deals with what is held, and ends the thread.

        Called in the worker's own thread, it answers at once; the thread ends when it
        has dealt with what is held.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether everything was dealt with. What was not is logged, and is lost when
            the process ends.
        """
        with self._condition:
            self._closed = True
            if threading.current_thread() is self._thread:
                return self._finished
            if self._thread is None and not self._queue:
                self._drained = self._finished = True
            self._condition.notify_all()
        if not self._finished:
            self._start()
        return self._wait_for_the_end(timeout)

    def _wait_for_the_end(self, timeout: float) -> bool:
        with self._condition:
            done = self._wait_for(lambda: self._finished, 0 if self._thread is None else timeout)
            held = len(self._queue) + self._taken - self._delivered - self._rejected
        forget_at_exit(self._at_exit)
        if not done:
            message = "%s: not done within %.1f s of closing; %d items are still held"
            held += self._also_held()
            self._log.write(_LOGGER, logging.WARNING, "close", message, self._name, timeout, held)
        return done

    def _close_at_exit(self) -> None:
        """Closes in the thread that ends the process, where no other can be had any more (Python 3.12.0 to 3.12.2)."""
        with self._condition:
            self._closed = True
            is_idle = self._thread is None and not self._queue
        if not is_idle:
            self._start()
        if is_idle or self._thread is not None:
            self.close(_EXIT_TIMEOUT)
        else:
            self._thread = threading.current_thread()
            contextvars.copy_context().run(self._run)
            forget_at_exit(self._at_exit)

    def close_first_at_exit(self) -> None:
        """Has the end of the process close this before it runs the exit hooks registered so far.

        The worker's own hook is registered when its thread starts, and the latest runs
        first. What is registered after that and has to outlive the worker, such as the
        shutdown of a tracer provider, asks for this. Without a thread, and once closed,
        there is nothing to be done.
        """
        if self._thread is not None and not self._closed:
            call_at_exit(self._at_exit)

    def _wait_for(self, condition: Callable[[], object], timeout: float) -> bool:
        """Waits for a condition, however long; the lock is held."""
        return bool(self._condition.wait_for(condition, min(seconds_left(deadline_of(timeout)), threading.TIMEOUT_MAX)))

    def _wake(self, item: T) -> bool:
        """Has the item that was just appended dealt with, or takes it back if the worker is beyond that."""
        with self._condition:
            is_too_late = self._drained
            if is_too_late and not self._take_back(item):
                return True
            if not is_too_late:
                self._wake_from = _NEVER
                self._condition.notify_all()
        if is_too_late:
            self._drop()
        elif self._thread is None:
            self._start()
        return not is_too_late

    def _take_back(self, item: T) -> bool:
        """Whether an item was still in the queue; it is not any more. The lock is held."""
        # a copy, since others may append; what they append comes after it
        for index, waiting in enumerate(list(self._queue)):
            if waiting is item:
                del self._queue[index]
                return True
        # the worker had it in its last batch, before it was asked for here
        return False

    def _start(self) -> None:
        """Starts the thread, unless there is one; without the lock, since under gevent others run meanwhile."""
        with self._condition:
            if self._thread is not None or self._finished:
                return
            thread = self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # the interpreter is going down, or the machine has no threads left
            with self._condition:
                self._thread = None
                self._wake_from = 1
            self._log.write(_LOGGER, logging.ERROR, "thread", "%s: no worker thread: %s", self._name, error)
            return
        # not only sooner: what was registered before the first item, an SDK's shutdown for one, runs after us
        call_at_exit(self._at_exit)

    def _run(self) -> None:
        # for good: what this thread does, exporting included, is never traced itself
        otel_context.attach(otel_context.set_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY, True))  # noqa: SLF001 - the exporters' own key
        wake_at = inf
        while not self._drained:
            self._process(self._take(wake_at))
            wake_at = self._do_what_is_due()
            with self._condition:
                self._condition.notify_all()
        try:
            self._finish()
        except BaseException as error:  # noqa: BLE001 - who closes is waiting
            self._log_error(self._finish, error)
        with self._condition:
            self._finished = True
            self._condition.notify_all()

    def _take(self, wake_at: float) -> list[T]:
        """Waits for items, for the time to come, for a nudge, or for the end."""
        is_ready = self._is_ready()
        with self._condition:
            # first the mark, then the look: an item that comes between them finds the mark set
            self._wake_from = 1 if is_ready else _NEVER
            self._wait_for(
                lambda: (is_ready and self._queue) or self._nudged or self._closed,
                max(0.0, wake_at - time.monotonic()),
            )
            if is_ready and 0 < len(self._queue) < _MAX_BATCH:
                self._wake_from = self._enough
                self._wait_for(lambda: len(self._queue) >= self._enough or self._closed or self._hurry, self._linger)
            self._nudged = False
            takes = min(len(self._queue), _MAX_BATCH) if is_ready or self._closed else 0
            batch = [self._queue.popleft() for _ in range(takes)]
            self._taken += len(batch)
            self._hurry = self._hurry and bool(self._queue)
            self._drained = self._closed and not batch
            if not self._drained:
                self._wake_from = _NEVER
            return batch

    def _process(self, batch: list[T]) -> None:
        """Deals with items, counting each when it is done."""
        for item in batch:
            try:
                self._handle(item)
            except BaseException as error:  # noqa: BLE001 - nothing may end the one thread that empties the queue
                self._rejected += 1
                self._log_error(self._handle, error)
            else:
                self._delivered += 1

    def _do_what_is_due(self) -> float:
        """Answers at what time something will be due again."""
        try:
            wake_in = self._tick()
        except BaseException as error:  # noqa: BLE001 - as above
            self._log_error(self._tick, error)
            wake_in = _TICK_AGAIN
        return inf if wake_in is None else time.monotonic() + wake_in

    def _log_error(self, function: Callable[..., object], error: BaseException) -> None:
        message = "%s: %s raised; the worker goes on"
        self._log.write(_LOGGER, logging.ERROR, type(error).__name__, message, self._name, function, error=error)

    def _drop(self) -> None:
        if self._closed:
            self._drops.write(_LOGGER, logging.WARNING, "closed", _CLOSED, self._name)
        else:
            self._drops.write(_LOGGER, logging.WARNING, "full", _FULL, self._name, self._max_queue)
