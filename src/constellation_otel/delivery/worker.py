"""A bounded queue and the one thread that empties it.

What every listener that does more than append is built on: the callback's side
costs one append, the worker's side may take its time. It is fork-safe, starts
its thread with the first item, and keeps the timeouts of flush and close.
"""

from __future__ import annotations

import contextvars
import encodings.idna  # noqa: F401 - the first look-up would: a fork during that leaves it half made in the child
import logging
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

__all__ = ["Handler", "QueueCounters", "Worker"]

_LOGGER: Final = logging.getLogger(__name__)
_EXIT_TIMEOUT: Final = 5.0
_NEVER: Final = 2**30 - 1
"""More than a queue is ever long; a number of one digit of CPython's, which compares faster."""
_TURN: Final = 32
"""Items after which other threads have their turn: a thread that wakes up waits for the interpreter, 5 ms at worst."""
_PAUSE: Final = 2e-5
"""Seconds: long enough for one of them to take it."""
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


class Handler(Generic[T]):
    """What a worker's thread does; all calls but :meth:`also_held` and :meth:`after_fork` come from that thread."""

    def is_ready(self) -> bool:
        """Whether items may be taken out of the queue now; asked after each :meth:`tick`.

        Where they may not, they wait in the queue, and what finds it full is dropped. Once the
        worker is closed, and where this raises, items are taken all the same.
        """
        return True

    def handle(self, items: list[T]) -> None:
        """Takes items, in order. Where it raises, all of them count as rejected."""
        raise NotImplementedError

    def tick(self) -> float | None:
        """Does what time alone makes due; called after every batch, and when the time has come that it last answered.

        Returns:
            In how many seconds it wants to be called again; ``None``: not before the next item.
            When it raises, it is called again in a second.
        """
        return None

    def finish(self) -> None:
        """Called once, last, when the worker is closed."""

    def after_fork(self) -> None:
        """Called in a forked child, before anything else happens there; must be quick."""

    def also_held(self) -> int:
        """How many items of those that were handled are held elsewhere, for the log when closing takes too long."""
        return 0


class Worker(Generic[T]):
    """A bounded queue of items, and a daemon thread that hands them to a handler.

    All that the handler does is done by the one thread, so what its methods share needs no
    lock. An exception out of one of them is logged and counted, and the worker goes on.

    The thread keeps the worker and its handler alive: only :meth:`close` ends them. A worker
    that is forgotten without it lives on to the end of the process, which closes it. A lock
    is held only for the queue's own bookkeeping, never while the handler is at work. It is
    made when it is needed: the listener may be older than gevent's patches.

    It is one class of more than 300 lines: a queue, its one thread, and the ways in which both
    may end, all of which change the same few fields under the same lock.

    Args:
        handler: Takes the items.
        name: The thread's name; also the prefix of log messages.
        max_queue: Items held at most; beyond it the newest is dropped and counted.
            Several threads at once may overshoot it by one item each.
        linger: Seconds that the worker lets items gather after the first one, unless
            half of the queue is in use before.
        max_batch: Items that the worker takes at once, at most; the handler is given 32 of them at a time.
        tick_again: Seconds after which a tick that raised is called again.
    """

    # what :meth:`put` reads, which is where a callback spends its time: the busiest ones do themselves what it does
    __slots__ = ("__dict__", "__weakref__", "queue", "room", "wake_from")

    _condition = PerProcess(lambda: threading.Condition(threading.Lock()))

    def __init__(
        self,
        handler: Handler[T],
        *,
        name: str,
        max_queue: int = 65_536,
        linger: float = 0.05,
        max_batch: int = 512,
        tick_again: float = 1.0,
    ) -> None:
        if max_queue < 1:
            message = f"max_queue={max_queue!r} must be at least 1"
            raise ValueError(message)
        self._handler = handler
        self._name = name
        self._max_queue = max_queue
        self._enough = max(1, max_queue // 2)
        self._linger = linger
        self._max_batch = max_batch
        self._tick_again = tick_again
        self._log = RateLimitedLog()
        self._start_afresh()
        after_fork_in_child(self._after_fork)
        self._at_exit = exit_hook(self._close_at_exit)
        # now, for a first item that comes when the interpreter's exit has begun; and again with the thread
        call_at_exit(self._at_exit)

    def _start_afresh(self, *, closed: bool = False) -> None:
        self.queue: deque[T] = deque()
        self._thread: threading.Thread | None = None
        # how long the queue must have been for an append to wake the worker
        self.wake_from = 0
        self._hurry = False
        self._nudged = False
        self._closed = closed
        # how long the queue may get; 0 once it is closed
        self.room = 0 if closed else self._max_queue
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
        self._handler.after_fork()

    @property
    def counters(self) -> QueueCounters:
        """What has become of the items so far."""
        with self._condition:
            # each is read once: they change without the lock
            waiting, delivered, rejected, dropped = (
                len(self.queue),
                self._delivered,
                self._rejected,
                self._drops.count,
            )
            received = waiting + self._taken + dropped
            held = waiting + self._taken - delivered - rejected
            return QueueCounters(received, delivered, dropped, rejected, held)

    def put(self, item: T, *, beyond: int = 0) -> bool:
        """Appends an item; never waits and never raises.

        Args:
            item: What to append.
            beyond: How many items beyond the queue's bound there may be, for one without which others are misread.

        Returns:
            Whether it was taken; otherwise it is dropped and counted.
        """
        queue = self.queue
        length = len(queue)
        if length >= self.room and (self._closed or length >= self.room + beyond):
            self._drop()
            return False
        queue.append(item)
        # first the item, then the look at the mark, which the worker sets before its own look at the queue
        if length < self.wake_from:
            return True
        return self.wake(item)

    def nudge(self) -> None:
        """Has ``tick`` called soon, whether or not there are items."""
        with self._condition:
            self._nudged = True
            self._condition.notify_all()
        if self._thread is None and not self._closed:
            self._start()

    @property
    def has_finished(self) -> bool:
        """Whether it was closed, and nothing more will be done."""
        return self._finished

    def end_soon(self) -> None:
        """Takes nothing more, deals with what is held, and ends; does not wait for that, as :meth:`close` does."""
        with self._condition:
            self._closed, self.room = True, 0
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
            goal = self._taken + len(self.queue)
            self._hurry = bool(self.queue)
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
            self._closed, self.room = True, 0
            if threading.current_thread() is self._thread:
                return self._finished
            if self._thread is None and not self.queue:
                self._drained = self._finished = True
            self._condition.notify_all()
        if not self._finished:
            self._start()
        return self._wait_for_the_end(timeout)

    def _wait_for_the_end(self, timeout: float) -> bool:
        with self._condition:
            done = self._wait_for(lambda: self._finished, 0 if self._thread is None else timeout)
            held = len(self.queue) + self._taken - self._delivered - self._rejected
        forget_at_exit(self._at_exit)
        if not done:
            message = "%s: not done within %.1f s of closing; %d items are still held"
            held += self._handler.also_held()
            self._log.write(_LOGGER, logging.WARNING, "close", message, self._name, timeout, held)
        return done

    def _close_at_exit(self) -> None:
        """Closes in the thread that ends the process, where no other can be had any more (Python 3.12.0 to 3.12.2)."""
        with self._condition:
            self._closed, self.room = True, 0
            is_idle = self._thread is None and not self.queue
        if not is_idle:
            self._start()
        if is_idle or self._thread is not None:
            self.close(_EXIT_TIMEOUT)
        else:
            self._thread = threading.current_thread()
            contextvars.copy_context().run(self._run)
            forget_at_exit(self._at_exit)

    def drain(self) -> list[T]:
        """Takes everything out of the queue, for another thread to deal with: the worker's does not return."""
        with self._condition:
            items = [self.queue.popleft() for _ in range(len(self.queue))]
            self._taken += len(items)
            self._delivered += len(items)
            return items

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

    def wake(self, item: T) -> bool:
        """Has the item that was just appended dealt with, or takes it back if the worker is beyond that."""
        with self._condition:
            is_too_late = self._drained
            if is_too_late and not self._take_back(item):
                return True
            if not is_too_late:
                self.wake_from = _NEVER
                self._condition.notify_all()
        if is_too_late:
            self._drop()
        elif self._thread is None:
            self._start()
        return not is_too_late

    def _take_back(self, item: T) -> bool:
        """Whether an item was still in the queue; it is not any more. The lock is held."""
        # a copy, since others may append; what they append comes after it
        for index, waiting in enumerate(list(self.queue)):
            if waiting is item:
                del self.queue[index]
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
                self.wake_from = 0
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
            self._handler.finish()
        except BaseException as error:  # noqa: BLE001 - who closes is waiting
            self._log_error("finish", error)
        with self._condition:
            self._finished = True
            self._condition.notify_all()

    def _take(self, wake_at: float) -> list[T]:
        """Waits for items, for the time to come, for a nudge, or for the end."""
        is_ready = self._is_ready()
        with self._condition:
            # first the mark, then the look: an item that comes between them finds the mark set
            self.wake_from = 0 if is_ready else _NEVER
            self._wait_for(
                lambda: (is_ready and self.queue) or self._nudged or self._closed,
                max(0.0, wake_at - time.monotonic()),
            )
            if is_ready and 0 < len(self.queue) < self._max_batch:
                self.wake_from = self._enough - 1
                self._wait_for(lambda: len(self.queue) >= self._enough or self._closed or self._hurry, self._linger)
            self._nudged = False
            takes = min(len(self.queue), self._max_batch) if is_ready or self._closed else 0
            batch = [self.queue.popleft() for _ in range(takes)]
            self._taken += len(batch)
            self._hurry = self._hurry and bool(self.queue)
            self._drained = self._closed and not batch
            # an item that comes too late finds that out by a wake
            self.wake_from = 0 if self._drained else _NEVER
            return batch

    def _is_ready(self) -> bool:
        try:
            return self._handler.is_ready()
        except BaseException as error:  # noqa: BLE001 - nothing may end the one thread that empties the queue
            self._log_error("is_ready", error)
            return True

    def _process(self, batch: list[T]) -> None:
        """Has the handler deal with items, some at a time, and counts them when that is done."""
        for first in range(0, len(batch), _TURN):
            if first and len(self.queue) < self._enough and not self._closed:
                time.sleep(_PAUSE)
            items = batch[first : first + _TURN]
            try:
                self._handler.handle(items)
            except BaseException as error:  # noqa: BLE001 - nothing may end the one thread that empties the queue
                self._rejected += len(items)
                self._log_error("handle", error)
            else:
                self._delivered += len(items)

    def _do_what_is_due(self) -> float:
        """Answers at what time something will be due again."""
        try:
            wake_in = self._handler.tick()
        except BaseException as error:  # noqa: BLE001 - nothing may end the one thread that empties the queue
            self._log_error("tick", error)
            wake_in = self._tick_again
        return inf if wake_in is None else time.monotonic() + wake_in

    def _log_error(self, method: str, error: BaseException) -> None:
        message = "%s: %s raised; the worker goes on"
        where = f"{type(self._handler).__qualname__}.{method}"
        self._log.write(_LOGGER, logging.ERROR, type(error).__name__, message, self._name, where, error=error)

    def _drop(self) -> None:
        if self._closed:
            self._drops.write(_LOGGER, logging.WARNING, "closed", _CLOSED, self._name)
        else:
            self._drops.write(_LOGGER, logging.WARNING, "full", _FULL, self._name, self._max_queue)
