"""BufferedListener: callbacks into a bounded queue, and from there to a sink that acknowledges.

One worker delivers; with a journal, another one writes what was called to disk
first, and the first delivers from there. The callback's side costs one append.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec
from msgspec import Struct

from constellation_otel._log import RateLimitedLog
from constellation_otel.delivery import Position, Record, Revoked
from constellation_otel.errors import JournalError, UnavailableError
from constellation_otel.events import Event, EventListener, ModuleFailed, check_event, plain
from constellation_otel.lane import Backoff, Lane
from constellation_otel.stages import EventStage
from constellation_otel.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constellation_otel.dead_letters import DeadLetters
    from constellation_otel.delivery import Sink, Store
    from constellation_otel.lane import Trouble

__all__ = ["BufferCounters", "BufferedListener", "Delivery", "Feed"]

_LOGGER: Final = logging.getLogger(__name__)
_LOOK_AGAIN: Final = 1.0
_PAGE: Final = 512
"""Events that are read from a journal at once."""

T = TypeVar("T")
"""Event or Span."""


class Feed:
    """Brings what a store holds for a sink into its lane, as the lane has room.

    Args:
        store: The journal.
        sink: What the journal knows the sink by.
        dead_letters: Where what cannot be read goes.

    Attributes:
        fetched: How often the journal was read to its end.
        is_at_end: Whether that is where it was read to last.
        unreadable: Records of the journal that could not be read.
    """

    def __init__(self, store: Store, sink: str, dead_letters: DeadLetters | None = None) -> None:
        self._store = store
        self._sink = sink
        self._dead_letters = dead_letters
        self._after = -1
        self._backoff = Backoff(longest=5.0)
        self._log = RateLimitedLog()
        self._is_closed = False
        self.fetched = 0
        self.is_at_end = False
        self.unreadable = 0

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Says which records the sink has; after :meth:`close` nobody hears it, and they are sent again."""
        try:
            self._store.acknowledge(self._sink, positions)
        except JournalError:
            if not self._is_closed:
                raise

    def close(self) -> None:
        """Closes the store; what a sink that is still at work asks of it then is answered with nothing."""
        self._is_closed = True
        self._store.close()

    def fetch(self, lane: Lane[T]) -> float | None:
        """Fills a lane.

        Returns:
            In how many seconds there may be more; ``None`` where there is no more for now, or no room.
        """
        while lane.has_room():
            try:
                items = self._store.read(self._sink, self._after, _PAGE)
                self._backoff.reset()
            except UnavailableError as error:
                self._log.write(_LOGGER, logging.WARNING, "read", "%s: %s; it is read again", self._sink, error)
                return self._backoff.next()
            except JournalError:
                if not self._is_closed:
                    raise
                return None
            for item in items:
                self._after = item.position.offset
                if isinstance(item, Record):
                    lane.add(item)
                else:
                    self._skip(item.reason, item.data, item.position)
                    lane.skip(item.position)
            self.is_at_end = len(items) < _PAGE
            if self.is_at_end:
                self.fetched += 1
                return None
        return None

    def _skip(self, reason: str, data: bytes, position: Position) -> None:
        self.unreadable += 1
        message = "%s: the journal's record %d cannot be read and is left out: %s"
        self._log.write(_LOGGER, logging.ERROR, "unreadable", message, self._sink, position.offset, reason)
        if self._dead_letters is not None:
            self._dead_letters.write(f"journal, record {position.offset}", reason, data)


class Ended(Struct, frozen=True):
    """Nothing comes after this.

    Attributes:
        abandon_open: Whether what is open is abandoned.
    """

    abandon_open: bool


class Delivery(Generic[T]):
    """A lane and the thread that works it.

    Args:
        new_lane: Makes the lane; once more in a forked child, where all starts afresh.
        name: The thread's.
        max_queue: Records that wait for the lane at most.
        feed: Where the lane's records come from instead of :meth:`put`; not in a forked child.
        is_behind: Whether whoever puts records has more of them that should have been put by
            now. Time does not pass for what is open while that is so, nor while the lane has
            no room or half of the queue is in use.
        on_tick: Called in the thread whenever it has looked at what is due.
    """

    def __init__(
        self,
        new_lane: Callable[[], Lane[T]],
        *,
        name: str,
        max_queue: int = 65_536,
        feed: Feed | None = None,
        is_behind: Callable[[], bool] = lambda: False,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.lane = new_lane()
        self._is_behind = is_behind
        self._much = max(1, max_queue // 2)
        self._feed = feed
        self._new_lane = new_lane
        self._on_tick = on_tick
        self._count = 0
        self.worker = Worker[Record | Revoked | Ended | Event](
            self._add,
            name=name,
            max_queue=max_queue,
            is_ready=self._has_room,
            tick=self._tick,
            finish=self._finish,
            forked=self._after_fork,
        )
        self.put = self.worker.put

    def flush(self, timeout: float) -> bool:
        """Waits until everything that could leave has been delivered; executions that are open stay.

        Args:
            timeout: Seconds; this returns within them.
        """
        feed = self._feed
        fetched = 0 if feed is None else feed.fetched

        def is_delivered() -> bool:
            return not self.lane.waiting and (feed is None or feed.fetched > fetched or self.worker.has_finished)

        deadline = time.monotonic() + timeout
        if not self.worker.flush(timeout):
            return False
        if feed is not None:
            self.worker.nudge()
        return self.worker.wait_until(is_delivered, max(0.0, deadline - time.monotonic()))

    def close(self, timeout: float, *, abandon_open: bool | None = True) -> bool:
        """Delivers what is held while there is time, and ends the thread.

        Args:
            timeout: Seconds; this returns within them.
            abandon_open: As :meth:`Lane.finish_by <constellation_otel.lane.Lane.finish_by>` has it.

        Returns:
            Whether nothing is left that could have been delivered.
        """
        # a little less, so that who waits for it hears that it has ended
        self.close_by(time.monotonic() + 0.95 * timeout, abandon_open=abandon_open)
        is_finished = self.worker.close(timeout)
        return is_finished and not self.lane.waiting and (self._feed is None or self._feed.is_at_end)

    def close_by(self, deadline: float, *, abandon_open: bool | None) -> None:
        """Takes nothing more, and has the thread deliver what is held until then; does not wait.

        Args:
            deadline: Seconds of :func:`time.monotonic`.
            abandon_open: As :meth:`close` has it.
        """
        self.lane.finish_by(deadline, abandon_open=abandon_open)
        self.worker.end_soon()

    def end(self, *, abandon_open: bool) -> None:
        """The source has ended; as :meth:`Lane.end <constellation_otel.lane.Lane.end>`, in order with what was put."""
        self.worker.put(Ended(abandon_open))

    # these two look the lane up each time: a forked child has another one

    def _add(self, item: Record | Revoked | Ended | Event) -> None:
        if isinstance(item, Record):
            self.lane.add(item)
        elif isinstance(item, Revoked):
            self.lane.revoke(item.origin)
        elif isinstance(item, Ended):
            self.lane.end(abandon_open=item.abandon_open)
        else:
            # numbered here, and not in the callback, which this costs most of its time
            self._count += 1
            self.lane.add(Record(item, Position(None, self._count)))

    def _has_room(self) -> bool:
        return self.lane.has_room()

    def _tick(self) -> float | None:
        fetch_in = None if self._feed is None else self._feed.fetch(self.lane)
        has_all = self.lane.has_room() and not self._is_behind() and self.worker.counters.held < self._much
        self.lane.stage.run_clock(runs=has_all)
        lane_in = self.lane.tick()
        if self._feed is not None and fetch_in is None and self.lane.has_room():
            # room that this tick has made
            fetch_in = self._feed.fetch(self.lane)
            lane_in = 0.0 if self.lane.waiting and self.lane.trouble is None else lane_in
        if not has_all:
            # time stands still, and has to be set going again
            lane_in = _LOOK_AGAIN if lane_in is None else min(lane_in, _LOOK_AGAIN)
        self._on_tick()
        return min((due for due in (fetch_in, lane_in) if due is not None), default=None)

    def _finish(self) -> None:
        while self._feed is not None:
            fetched = self._feed.fetched
            is_away = self._feed.fetch(self.lane) is not None
            if is_away or self._feed.fetched > fetched or not self.lane.send_in_time():
                break
        self.lane.finish()
        self._on_tick()

    def _after_fork(self) -> None:
        self._feed = None
        self.lane = self._new_lane()


class BufferCounters(Struct, frozen=True):
    """What has become of the events so far: ``received = delivered + dropped + rejected + held``.

    Attributes:
        received: Callbacks that were called, and what a journal held when it was opened.
        delivered: Events that are safe on the far side, with everything made of them.
        dropped: Events that found the queue or the journal full, or the listener closed.
        rejected: Events that carry what they cannot, or that the far side refused for good.
        held: Events that are not there yet: they wait, are on their way, or their execution
            is still open.
        retried: Batches that were sent again.
        sent: Items that the far side took: events, or spans.
        refused: Items that the far side refused for good.
        dead_lettered: What was written to the dead-letter file.
    """

    received: int
    delivered: int
    dropped: int
    rejected: int
    held: int
    retried: int
    sent: int
    refused: int
    dead_lettered: int


class BufferedListener(EventListener):
    """Brings callbacks to a sink, in the background, as surely as the sink and the journal allow.

    A callback costs about one append and never raises. The queue is bounded: what finds
    it full is dropped, the newest first, counted and logged. One daemon thread sends
    batches; what the sink cannot take now is held and sent again with growing pauses,
    for as long as there is room; what it refuses for good is counted, logged, and
    written to the dead-letter file.

    With a journal, events are on disk some 50 ms after their callback, and from then on
    they are delivered at least once: across outages of the far side, kill -9, and
    restarts. Without one, what is held when the process ends is lost.

    A forked child starts with an empty queue and a thread of its own. The journal stays
    its parent's: the child delivers from memory, and says so.

    Args:
        sink: Where events go. Closed with this.
        journal: Keeps events until the sink has them; it knows the sink by its ``name``.
            Closed with this.
        redact: Rewrites the message of each error before it is kept anywhere.
        max_queue: Events that wait at most, and events that are on their way at most.
        send_timeout: Seconds that one call of the sink may take.
        dead_letters: Where what is refused goes.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        sink: Sink[Event],
        *,
        journal: Store | None = None,
        redact: Callable[[str], str] | None = None,
        max_queue: int = 65_536,
        send_timeout: float = 10.0,
        dead_letters: DeadLetters | None = None,
    ) -> None:
        def make_lane(acknowledge: Callable[[Sequence[Position]], None]) -> Lane[Event]:
            return Lane(
                sink,
                EventStage(),
                acknowledge=acknowledge,
                max_held=max_queue,
                send_timeout=send_timeout,
                dead_letters=dead_letters,
            )

        super().__init__(redact)
        self._start(sink.name, make_lane, journal, max_queue, dead_letters)

    def _start(
        self,
        sink_name: str,
        make_lane: Callable[[Callable[[Sequence[Position]], None]], Lane[T]],
        journal: Store | None,
        max_queue: int,
        dead_letters: DeadLetters | None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Builds the threads' parts; for this class and those that send something else than events."""
        name = type(self).__name__
        self._owner = os.getpid()
        self._journal = journal
        self._writer: _Writer | None = None
        self._recovered = 0
        self._feed: Feed | None = None
        if journal is not None:
            self._feed = Feed(journal, sink_name, dead_letters)
            self._recovered = journal.held(sink_name)

        self._is_left_to_parent = False

        def new_lane() -> Lane[T]:
            if os.getpid() != self._owner:
                self._leave_the_journal_to_the_parent()
            return make_lane(_heard if self._feed is None else self._feed.acknowledge)

        def tick() -> None:
            if self._is_left_to_parent:
                # said with the first event: most forked children never have one
                self._is_left_to_parent = False
                message = "%s: the journal is the parent process's; this child delivers from memory, without one"
                _LOGGER.warning(message, name)
            on_tick()

        self._delivery: Delivery[T] = Delivery(new_lane, name=name, max_queue=max_queue, feed=self._feed, on_tick=tick)
        if journal is not None:
            self._writer = _Writer(journal, self._delivery.worker.nudge, f"{name}-journal", max_queue)
            if self._recovered:
                _LOGGER.info("%s: the journal holds %d events from before; they are delivered", name, self._recovered)
            self._delivery.worker.nudge()

    @property
    def counters(self) -> BufferCounters:
        """What has become of the events so far."""
        # what leaves is read first, so that nothing is missing when another thread reads
        lane, queue = self._delivery.lane.counters, self._delivery.worker.counters
        received, dropped, rejected = queue.received, queue.dropped, queue.rejected + lane.rejected
        if self._feed is not None:
            rejected += self._feed.unreadable
        if self._writer is not None:
            written = self._writer.worker.counters
            received += self._recovered + written.received
            dropped += written.dropped + self._writer.dropped
            rejected += written.rejected
        return BufferCounters(
            received=received,
            delivered=lane.delivered,
            dropped=dropped,
            rejected=rejected,
            held=received - lane.delivered - dropped - rejected,
            retried=lane.retried,
            sent=lane.sent,
            refused=lane.refused,
            dead_lettered=lane.dead_lettered,
        )

    @property
    def trouble(self) -> Trouble | None:
        """Why the sink takes nothing at the moment; ``None`` where it does, as far as is known."""
        return self._delivery.lane.trouble

    def accept(self, event: Event) -> None:
        """Takes an event, with the time that it carries. Costs one append and never raises."""
        self._put(event)

    def _put(self, event: Event) -> bool:
        """Whether it was taken; otherwise it is dropped and counted."""
        writer = self._writer
        return self._delivery.put(event) if writer is None else writer.worker.put(event)

    def flush(self, timeout: float) -> bool:
        """Waits until what was called so far has been delivered.

        Where the sink takes spans, executions that are still open are not waited for.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether it has been.
        """
        deadline = time.monotonic() + timeout
        if self._writer is not None and not self._writer.flush(timeout):
            return False
        return self._delivery.flush(max(0.0, deadline - time.monotonic()))

    def close(self, timeout: float) -> bool:
        """Takes nothing more, delivers what is held while there is time, and ends the threads.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether everything has been delivered. What has not is in the journal, where
            there is one, and lost with the process otherwise.
        """
        deadline = time.monotonic() + timeout
        writer = self._writer
        # half of it at most, so that a journal that cannot be written leaves time to deliver
        is_written = writer is None or writer.close(timeout / 2)
        is_delivered = self._delivery.close(max(0.0, deadline - time.monotonic()))
        if self._feed is not None:
            self._feed.close()
        return is_written and is_delivered and not self.counters.held

    def _leave_the_journal_to_the_parent(self) -> None:
        self._is_left_to_parent = self._is_left_to_parent or self._writer is not None
        self._owner = os.getpid()
        self._recovered = 0
        self._writer = self._journal = self._feed = None


def _heard(positions: Sequence[Position]) -> None:
    """Nobody has to be told what is safe."""


class _Writer:
    """Writes callbacks' events to a journal, as they come, and tells whoever delivers from there.

    Attributes:
        dropped: Events that the journal had no room for.
    """

    def __init__(self, journal: Store, tell: Callable[[], None], name: str, max_queue: int) -> None:
        self._journal = journal
        self._tell = tell
        self._name = name
        self._max_pending = max_queue
        self._pending: list[Event] = []
        self._backoff = Backoff(longest=5.0)
        self._not_before = 0.0
        self._log = RateLimitedLog()
        self.dropped = 0
        self.worker = Worker[Event](
            self._handle,
            name=name,
            max_queue=max_queue,
            is_ready=lambda: len(self._pending) < self._max_pending,
            tick=self._tick,
            finish=self._finish,
        )

    def flush(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        return self.worker.flush(timeout) and self.worker.wait_until(
            lambda: not self._pending, max(0.0, deadline - time.monotonic())
        )

    def close(self, timeout: float) -> bool:
        return self.worker.close(timeout) and not self._pending

    def _handle(self, event: Event) -> None:
        check_event(event)
        if isinstance(event, ModuleFailed):
            event = msgspec.structs.replace(event, error=event.error.formatted())
        self._pending.append(plain(event))

    def _tick(self) -> float | None:
        left = self._not_before - time.monotonic()
        if self._pending and left > 0:
            return left
        return self._append()

    def _append(self) -> float | None:
        if not self._pending:
            return None
        try:
            taken = self._journal.append(self._pending)
        except UnavailableError as error:
            wait = self._backoff.next()
            self._not_before = time.monotonic() + wait
            message = "%s: %s; %d events wait in memory for it, the next try is in %.1f s"
            self._log.write(_LOGGER, logging.ERROR, "append", message, self._name, error, len(self._pending), wait)
            return wait
        self._backoff.reset()
        full = len(self._pending) - taken
        if full:
            self.dropped += full
            self._log.write(_LOGGER, logging.ERROR, "full", "%s: the journal is full; dropping the newest", self._name)
        self._pending = []
        if taken:
            self._tell()
        return None

    def _finish(self) -> None:
        if self._append() is not None:
            message = "%s: %d events could not be written to the journal, and are lost with the process"
            self._log.write(_LOGGER, logging.ERROR, "lost", message, self._name, len(self._pending))
