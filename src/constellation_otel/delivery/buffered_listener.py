"""BufferedListener: callbacks into a bounded queue, and from there to a sink that acknowledges.

One worker delivers; with a journal, another one writes what was called to disk
first, and the first delivers from there. The callback's side costs one append.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from itertools import chain, count
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from msgspec import Struct

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.log import RateLimitedLog, log
from constellation_otel.delivery.contract import InMemory, Position, Record, Restarted, Revoked
from constellation_otel.delivery.sender import Backoff, Lane, Trouble
from constellation_otel.delivery.transform import EventStage
from constellation_otel.delivery.worker import Worker
from constellation_otel.errors import JournalError, MisconfiguredError, UnavailableError
from constellation_otel.events import Event, EventListener, said, shown, validated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from constellation_otel.delivery.contract import Sink, Store
    from constellation_otel.delivery.dead_letters import DeadLetters

__all__ = ["BufferCounters", "BufferedListener", "Delivery", "Feed", "NotJournaled"]

_LOGGER: Final = logging.getLogger(__name__)
_LOOK_AGAIN: Final = 1.0
_PASS_ON_AGAIN: Final = 0.25
"""Seconds after which the writer looks again whether the sink takes what the journal does not."""
_PAGE: Final = 512
"""Events that are read from a journal at once."""

T = TypeVar("T")
"""Event or Span."""


class Faulty(NamedTuple, Generic[T]):
    """An item for which a write raised what it should not, and did not for others.

    Attributes:
        item: The item.
        error: What was raised.
    """

    item: T
    error: Exception


def isolate(append: Callable[[list[T]], int], items: list[T], error: Exception) -> tuple[int, list[Faulty[T]]]:
    """Writes the rest where writing all together has raised something unexpected.

    Args:
        append: Writes items, and says how many it took, from the first.
        items: What it raised for, in order; those that stay in it are to be written later.
        error: What it raised.

    Returns:
        How many were taken, and the items at fault.

    Raises:
        Exception: ``error``, where none was taken: then it is not known to be about one of them.
    """
    parts, left = [items[:]], list[T]()
    taken, faulty = 0, list[Faulty[T]]()
    while parts and not left:
        part = parts.pop()
        try:
            count = append(part)
        except (JournalError, UnavailableError):
            left = part
        except Exception as raised:  # noqa: BLE001 - a defect, which must cost one item and no more
            middle = len(part) // 2
            if middle:
                parts += (part[middle:], part[:middle])
            else:
                faulty.append(Faulty(part[0], raised))
        else:
            taken += count
            left = part[count:]
    if not taken:
        raise error
    again, later, faulty = _look_again(append, [item for item, _ in faulty])
    items[:] = [*later, *left, *chain.from_iterable(reversed(parts))]
    return taken + again, faulty


def _look_again(append: Callable[[list[T]], int], suspects: list[T]) -> tuple[int, list[T], list[Faulty[T]]]:
    """Writes once more, each alone, what raised before others were taken: it may have been the journal's own doing.

    Returns:
        How many were taken, what is to be written later, and the items at fault.
    """
    taken, later, faulty = 0, list[T](), list[Faulty[T]]()
    for item in suspects:
        try:
            count = append([item])
        except (JournalError, UnavailableError):
            count = 0
        except Exception as raised:  # noqa: BLE001 - it is raised for this item
            faulty.append(Faulty(item, raised))
            continue
        taken += count
        later += [] if count else [item]
    return taken, later, faulty


class Feed:
    """Brings what a store holds for a sink into its lane, as the lane has room.

    Args:
        store: The journal.
        sink: What the journal knows the sink by.
        dead_letters: Where what cannot be read goes.

    Attributes:
        is_at_end: Whether the journal had no more when it was read last.
        records: How many records were read.
        unreadable: Records of the journal that could not be read.
        not_before: When it is read again after it could not be, in seconds of :func:`time.monotonic`.
        passed: Records that the journal could not take, and that are safe or refused all the same.
    """

    def __init__(self, store: Store, sink: str, dead_letters: DeadLetters | None = None) -> None:
        self._store = store
        self._sink = sink
        self._dead_letters = dead_letters
        self._after = -1
        self._backoff = Backoff(longest=5.0)
        self._log = RateLimitedLog()
        self._is_closed = False
        self.is_at_end = False
        self.records = 0
        self.unreadable = 0
        self.not_before = 0.0
        self.passed = 0

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Says which records the sink has; after :meth:`close` nobody hears it, and they are sent again.

        Raises:
            UnavailableError: It could not be noted down; ``delivered`` has those that need not be.
        """
        passed = frozenset(index for index, position in enumerate(positions) if isinstance(position, InMemory))
        kept = [position for index, position in enumerate(positions) if index not in passed]
        try:
            if kept:
                self._store.acknowledge(self._sink, kept)
        except JournalError:
            if not self._is_closed:
                raise
        except UnavailableError as error:
            if not self._is_closed:
                self.passed += len(passed)
                raise UnavailableError(str(error), delivered=passed) from error
        self.passed += len(passed)

    def close(self) -> None:
        """Closes the store; what a sink that is still at work asks of it then is answered with nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._store.close()

    def close_by(self, deadline: float) -> None:
        """Closes the store, unless it is closed, in a thread that is left behind where the disk hangs.

        Args:
            deadline: Seconds of :func:`time.monotonic`.
        """
        if self._is_closed:
            return
        thread = threading.Thread(target=self.close, name=f"{self._sink}-journal-close", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # the interpreter is going down, and lets go of everything
            self._log.write(
                _LOGGER, logging.WARNING, "close", "%s: no thread to close the journal: %s", self._sink, error
            )
        else:
            thread.join(seconds_left(deadline))

    def fetch(self, lane: Lane[T], until: int) -> float | None:
        """Fills a lane.

        Args:
            lane: The lane.
            until: How many of the journal's records it gets, counted from the first.

        Returns:
            In how many seconds there may be more; ``None`` where there is no more for now, or no room.
        """
        self.is_at_end = False
        while lane.has_room() and self.records < until and not self.is_at_end:
            if seconds_left(self.not_before):
                return seconds_left(self.not_before)
            limit = min(_PAGE, until - self.records)
            try:
                items = self._store.read(self._sink, self._after, limit)
                self._backoff.reset()
            except UnavailableError as error:
                self._log.write(_LOGGER, logging.WARNING, "read", "%s: %s; it is read again", self._sink, error)
                wait = self._backoff.next()
                self.not_before = time.monotonic() + wait
                return wait
            except JournalError:
                if not self._is_closed:
                    raise
                return _LOOK_AGAIN
            for item in items:
                self._after = item.position.offset
                if isinstance(item, Record):
                    lane.add(item)
                elif isinstance(item, Restarted):
                    lane.abandon(item.position)
                else:
                    self._skip(item.reason, item.data, item.position)
                    lane.skip(item.position)
            self.records += len(items)
            self.is_at_end = len(items) < limit
        return None

    def _skip(self, reason: str, data: bytes, position: Position) -> None:
        self.unreadable += 1
        message = "%s: the journal's record %d cannot be read and is left out: %s"
        self._log.write(_LOGGER, logging.ERROR, "unreadable", message, self._sink, position.offset, reason)
        if self._dead_letters is not None:
            self._dead_letters.write(f"journal, record {position.offset}", reason, data)


class NotJournaled(Struct, frozen=True):
    """A record that the journal could not take, for the sink to have it from memory.

    Attributes:
        record: The record, or a restart; its position is an :class:`~constellation_otel.delivery.contract.InMemory`.
        after: How many of the journal's records come before it, counted as :class:`Feed` does.
    """

    record: Record | Restarted
    after: int


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
        written: How many records the journal has for the sink.
        is_behind: Whether whoever puts records has more of them that should have been put by
            now. Time does not pass for what is open while that is so, nor while the lane has
            no room or half of the queue is in use.
        on_tick: Called in the thread whenever it has looked at what is due.
        on_end: Called in the thread, last.
        held: How many records are held, for what is logged when closing takes too long; what
            :attr:`held` has, where none is given.

    Attributes:
        written: How many records the journal has had for the sink, those that are delivered
            included; kept up to date by whoever appends.
    """

    def __init__(
        self,
        new_lane: Callable[[], Lane[T]],
        *,
        name: str,
        max_queue: int = 65_536,
        feed: Feed | None = None,
        written: int = 0,
        is_behind: Callable[[], bool] = lambda: False,
        on_tick: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
        held: Callable[[], int] | None = None,
    ) -> None:
        self.lane = new_lane()
        self._is_behind = is_behind
        self._much = max(1, max_queue // 2)
        self._feed = feed
        self._new_lane = new_lane
        self._on_tick = on_tick
        self._on_end = on_end
        self._count = 0
        self._given = 0
        self.written = written
        self._has_all = False
        self._fetched = 0
        # what the journal could not take, until its turn comes; one batch of the worker's at most, until it is closed
        self._not_journaled: deque[NotJournaled] = deque()
        self.worker = Worker[Record | NotJournaled | Restarted | Revoked | Ended | Event](
            self._add,
            name=name,
            max_queue=max_queue,
            is_ready=self._has_room,
            tick=self._tick,
            finish=self._finish,
            forked=self._after_fork,
            also_held=lambda: (self.held if held is None else held()) - self.worker.counters.held,
        )
        self.put = self.worker.put

    @property
    def held(self) -> int:
        """Records that were put, or fetched from the journal, and are not there yet."""
        return self.worker.counters.held + len(self._not_journaled) + self.lane.counters.held

    @property
    def in_memory(self) -> int:
        """How many of them are in no journal."""
        if self._feed is None:
            return self.held
        return self.worker.counters.held + self._given - self._feed.passed

    @property
    def waiting(self) -> int:
        """What could be sent now, as :attr:`Lane.waiting <constellation_otel.delivery.Lane.waiting>` has it."""
        return len(self._not_journaled) + self.lane.waiting

    def flush(self, timeout: float) -> bool:
        """Waits until everything that could leave has been delivered; executions that are open stay.

        Args:
            timeout: Seconds; this returns within them.
        """
        feed = self._feed
        fetched = self._fetched

        def is_delivered() -> bool:
            return not self.waiting and (feed is None or self._fetched > fetched or self.worker.has_finished)

        deadline = deadline_of(timeout)
        if not self.worker.flush(seconds_left(deadline)):
            return False
        if feed is not None:
            self.worker.nudge()
        return self.worker.wait_until(is_delivered, seconds_left(deadline))

    def close(self, timeout: float, *, abandon_open: bool | None = True) -> bool:
        """Delivers what is held while there is time, and ends the thread.

        Args:
            timeout: Seconds; this returns within them.
            abandon_open: As :meth:`Lane.finish_by <constellation_otel.delivery.Lane.finish_by>` has it.

        Returns:
            Whether nothing is left that could have been delivered.
        """
        deadline = deadline_of(timeout)
        # a little less, so that who waits for it hears that it has ended
        self.close_by(deadline - 0.05 * seconds_left(deadline), abandon_open=abandon_open)
        is_finished = self.worker.close(seconds_left(deadline))
        return is_finished and not self.waiting and (self._feed is None or self._has_all)

    def close_by(self, deadline: float, *, abandon_open: bool | None) -> None:
        """Takes nothing more, and has the thread deliver what is held until then; does not wait.

        Args:
            deadline: Seconds of :func:`time.monotonic`.
            abandon_open: As :meth:`close` has it.
        """
        self.lane.finish_by(deadline, abandon_open=abandon_open)
        self.worker.end_soon()

    def end(self, *, abandon_open: bool) -> None:
        """The source has ended; as :meth:`~constellation_otel.delivery.Lane.end`, in order with what was put."""
        self.worker.put(Ended(abandon_open))

    # these two look the lane up each time: a forked child has another one

    def _add(self, item: Record | NotJournaled | Restarted | Revoked | Ended | Event) -> None:
        if isinstance(item, Record):
            self.lane.add(item)
        elif isinstance(item, NotJournaled):
            self._given += 1
            self._not_journaled.append(item)
        elif isinstance(item, Restarted):
            self.lane.abandon(item.position)
        elif isinstance(item, Revoked):
            self.lane.revoke(item.origin)
        elif isinstance(item, Ended):
            self.lane.end(abandon_open=item.abandon_open)
        else:
            # numbered here, and not in the callback, which this costs most of its time
            self._count += 1
            self.lane.validate_and_add(item, Position(None, self._count))

    def _has_room(self) -> bool:
        return self.lane.has_room() and not self._not_journaled

    def _fetch(self) -> float | None:
        """Brings what the journal has, and what it could not take, into the lane, each in its turn.

        Returns:
            As :meth:`Feed.fetch` does.
        """
        feed = self._feed
        if feed is None:
            return None
        # first this: what is put from now on comes after all of that
        written = self.written
        while self._not_journaled and self.lane.has_room():
            first = self._not_journaled[0]
            is_unreadable = feed.fetch(self.lane, first.after) is not None
            # a journal that cannot be read either holds nothing up
            if not (is_unreadable or feed.is_at_end or feed.records >= first.after):
                break
            if isinstance(first.record, Record):
                self.lane.add(first.record)
            else:
                self.lane.abandon(first.record.position)
            self._not_journaled.popleft()
        self._has_all = False
        if self._not_journaled or self.worker.counters.held:
            # what waits in the queue has its turn before what the journal has taken since
            return None
        fetch_in = feed.fetch(self.lane, written)
        self._has_all = fetch_in is None and (feed.is_at_end or feed.records >= written)
        self._fetched += self._has_all
        return fetch_in

    def _tick(self) -> float | None:
        fetch_in = self._fetch()
        has_all = self.lane.has_room() and not self._is_behind() and self.worker.counters.held < self._much
        self.lane.stage.run_clock(runs=has_all)
        lane_in = self.lane.tick()
        if self._feed is not None and fetch_in is None and self.lane.has_room():
            # room that this tick has made
            fetch_in = self._fetch()
            lane_in = 0.0 if self.lane.waiting and self.lane.trouble is None else lane_in
        if not has_all:
            # time stands still, and has to be set going again
            lane_in = _LOOK_AGAIN if lane_in is None else min(lane_in, _LOOK_AGAIN)
        self._on_tick()
        return min((due for due in (fetch_in, lane_in) if due is not None), default=None)

    def _finish(self) -> None:
        try:
            self._deliver_the_rest()
        finally:
            self._on_end()

    def _deliver_the_rest(self) -> None:
        if self._feed is not None:
            # one more try
            self._feed.not_before = 0.0
        while self._feed is not None:
            is_away = self._fetch() is not None
            if is_away or self._has_all or not self.lane.send_in_time():
                break
        self.lane.finish()
        self._on_tick()

    def _after_fork(self) -> None:
        self._feed = None
        self._not_journaled.clear()
        self.lane = self._new_lane()


class BufferCounters(Struct, frozen=True):
    """What has become of the events so far: ``received = delivered + dropped + rejected + held``.

    Attributes:
        received: Callbacks that were called, and what a journal held when it was opened.
        delivered: Events that are safe on the far side, with everything made of them.
        dropped: Events that found the queue full, or the listener closed.
        rejected: Events that carry what they cannot, or that the far side refused for good.
        held: Events that are not there yet: they wait, are on their way, or their execution
            is still open.
        retried: Batches that were sent again.
        sent: Items that the far side took: events, or spans.
        refused: Items that the far side refused for good.
        dead_lettered: What was written to the dead-letter file.
        corrected: Values that no backend could hold and that were replaced or left out.
        not_durable: Events that the journal could not take, and that the sink was given from
            memory; they are among the others as well.
        failed_acknowledgements: Acknowledgements that the journal could not write down, and that
            are repeated.
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
    corrected: int
    not_durable: int = 0
    failed_acknowledgements: int = 0


class BufferedListener(EventListener):
    """Brings callbacks to a sink, in the background, as surely as the sink and the journal allow.

    A callback costs about one append and never raises. The queue is bounded: what finds
    it full is dropped, the newest first, counted and logged. One daemon thread sends
    batches; what the sink cannot take now is held and sent again with growing pauses,
    for as long as there is room; what it refuses for good is counted, logged, and
    written to the dead-letter file.

    With a journal, events are on disk some 50 ms after their callback, and from then on
    they are delivered at least once: across outages of the far side, kill -9, and
    restarts. Without one, what is held when the process ends is lost. While the journal
    cannot grow, or be written, what is new goes to a sink that takes it from memory, in
    order, bounded, counted as not durable; that is an ERROR in the log. When it can be
    written again, it is.

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
        self._log = RateLimitedLog()
        self._journal = journal
        self._writer: _Writer | None = None
        self._recovered = 0
        self._is_delivery_over = self._is_writer_over = False
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
                log(_LOGGER, logging.WARNING, message, name)
            on_tick()

        self._delivery: Delivery[T] = Delivery(
            new_lane,
            name=name,
            max_queue=max_queue,
            feed=self._feed,
            written=self._recovered,
            on_tick=tick,
            on_end=self._end_delivery,
            held=lambda: self.counters.held,
        )
        if journal is not None:
            self._writer = _Writer(
                journal, self._delivery, self._end_writer, f"{name}-journal", max_queue, dead_letters
            )
            if self._recovered:
                log(
                    _LOGGER,
                    logging.INFO,
                    "%s: the journal holds %d events from before; they are delivered",
                    name,
                    self._recovered,
                )
            self._delivery.worker.nudge()

    @property
    def counters(self) -> BufferCounters:
        """What has become of the events so far."""
        # what leaves is read first, so that nothing is missing when another thread reads
        lane, queue, writer = self._delivery.lane.counters, self._delivery.worker.counters, self._writer
        received, dropped, rejected = queue.received, queue.dropped, queue.rejected + lane.rejected
        corrected = lane.corrected
        if self._feed is not None:
            rejected += self._feed.unreadable
        if writer is not None:
            written = writer.worker.counters
            # what the writer gives to the queue has come through the writer
            received = self._recovered + written.received
            dropped += written.dropped
            rejected += written.rejected + writer.rejected
            corrected += writer.corrected
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
            corrected=corrected,
            not_durable=0 if writer is None else writer.not_durable,
            failed_acknowledgements=lane.failed_acknowledgements,
        )

    @property
    def trouble(self) -> Trouble | None:
        """Why the sink takes nothing at the moment, or the journal no events or acknowledgements.

        ``None`` where both work, as far as is known.
        """
        lane = self._delivery.lane
        return lane.trouble or (None if self._writer is None else self._writer.trouble) or lane.acknowledge_trouble

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
        deadline = deadline_of(timeout)
        if self._writer is not None and not self._writer.flush(seconds_left(deadline)):
            return False
        return self._delivery.flush(seconds_left(deadline))

    def close(self, timeout: float) -> bool:
        """Takes nothing more, delivers what is held while there is time, and ends the threads.

        Never raises. A thread that is in a call which does not return, of a sink or a disk
        that hangs, is left behind: the log says what is held, and calling this again says
        what has become of it.

        Args:
            timeout: Seconds, any float; this returns within them.

        Returns:
            Whether everything has been delivered. What has not is in the journal, where
            there is one, and lost with the process otherwise.
        """
        deadline = deadline_of(timeout)
        is_written = self._writer is None or self._writer.close(deadline)
        # the last bit is for letting go of the journal
        is_delivered = self._delivery.close((0.9 if self._feed else 1.0) * seconds_left(deadline))
        if self._feed is not None and self._may_close_journal():
            # where the delivery's thread is in a call that does not return; another listener may want the file
            self._feed.close_by(deadline)
        held = self.counters.held
        if held:
            lost = min(held, self._delivery.in_memory + (0 if self._writer is None else self._writer.held))
            message = "%s: %d events are still held, %d of them in no journal: those are lost when the process ends"
            self._log.write(_LOGGER, logging.WARNING, ("held", held, lost), message, type(self).__name__, held, lost)
        return is_written and is_delivered and not held

    def _end_delivery(self) -> None:
        self._is_delivery_over = True
        if self._feed is not None and self._may_close_journal():
            self._feed.close()

    def _end_writer(self) -> None:
        self._is_writer_over = True
        if self._feed is not None and self._is_delivery_over:
            self._feed.close()

    def _may_close_journal(self) -> bool:
        """Whether the writer has nothing to write any more; otherwise it closes the journal when it has."""
        return self._writer is None or self._is_writer_over or not self._writer.held

    def _leave_the_journal_to_the_parent(self) -> None:
        self._is_left_to_parent = self._is_left_to_parent or self._writer is not None
        self._owner = os.getpid()
        self._recovered = 0
        self._writer = self._journal = self._feed = None


def _heard(positions: Sequence[Position]) -> None:
    """Nobody has to be told what is safe."""


class _Writer:
    """Writes callbacks' events to a journal, as they come, and nudges the delivery, which reads them there.

    What the journal cannot take now waits here, or is given to the delivery from memory
    while the sink takes events: those that come first, first, and each after all that the
    journal took before it.

    Attributes:
        corrected: Values that no backend could hold and that were replaced or left out.
        rejected: Events for which the journal raised, and not for others.
        not_durable: Events that were given to the delivery from memory.
        trouble: Why the journal takes nothing at the moment.
    """

    def __init__(
        self,
        journal: Store,
        delivery: Delivery[Any],
        on_end: Callable[[], None],
        name: str,
        max_queue: int,
        dead_letters: DeadLetters | None,
    ) -> None:
        self._journal = journal
        self._delivery = delivery
        self._on_end = on_end
        self._name = name
        self._max_pending = max_queue
        self._dead_letters = dead_letters
        self._pending: list[Event] = []
        self._numbers = count(1)
        self._backoff = Backoff(longest=5.0)
        self._not_before = 0.0
        self._log = RateLimitedLog()
        self.corrected = self.rejected = self.not_durable = 0
        self.trouble: Trouble | None = None
        self.worker = Worker[Event](
            self._handle,
            name=name,
            max_queue=max_queue,
            is_ready=lambda: len(self._pending) < self._max_pending,
            tick=self._tick,
            finish=self._finish,
            also_held=lambda: len(self._pending),
        )

    @property
    def held(self) -> int:
        """Events that are neither in the journal nor given to the delivery."""
        return self.worker.counters.held + len(self._pending)

    def flush(self, timeout: float) -> bool:
        deadline = deadline_of(timeout)
        return self.worker.flush(timeout) and self.worker.wait_until(lambda: not self._pending, seconds_left(deadline))

    def close(self, deadline: float) -> bool:
        """Writes what is held, and ends; takes half of the time at most, so that some is left to deliver."""
        half = deadline - seconds_left(deadline) / 2
        self._journal.finish_by(half)
        is_written = self.worker.close(seconds_left(half)) and not self._pending
        self._journal.finish_by(deadline)
        return is_written

    def _handle(self, event: Event) -> None:
        valid, corrected = validated(event)
        self.corrected += len(corrected)
        for reason in corrected:
            message = "%s: of an event something is left out or replaced: %s"
            self._log.write(_LOGGER, logging.WARNING, "corrected", message, self._name, reason)
        self._pending.append(valid)

    def _tick(self) -> float | None:
        if self._pending and not seconds_left(self._not_before):
            self._append()
        if self._pending and self._delivery.lane.trouble is None:
            self._pass_on()
        return min(seconds_left(self._not_before), _PASS_ON_AGAIN) if self._pending else None

    def _append(self) -> None:
        """Writes what is pending, or the first ones where there is no room for all."""
        why: Exception | None = None
        taken = 0
        try:
            taken = self._journal.append(self._pending)
            del self._pending[:taken]
        except (JournalError, UnavailableError) as error:
            why = error
        except Exception as error:  # noqa: BLE001 - a defect; events behind the one at fault go on
            try:
                taken, faulty = isolate(self._journal.append, self._pending, error)
                self._reject(faulty)
            except Exception as raised:  # noqa: BLE001 - it is raised for every event
                why = raised
        if taken:
            self._delivery.written += taken
            self._delivery.worker.nudge()
        if self._pending and why is None:
            # room is made without anybody's help
            full = UnavailableError("the journal is full; see that the sink takes events, or allow it more")
            self._hold(full, _PASS_ON_AGAIN)
        elif why is not None:
            self._hold(why, self._backoff.next())
        elif self.trouble is not None:
            away = time.monotonic() - self.trouble.since
            self._backoff.reset()
            self.trouble = None
            log(_LOGGER, logging.INFO, "%s: the journal is written again, after %.1f s", self._name, away)

    def _reject(self, faulty: Iterable[Faulty[Event]]) -> None:
        for event, error in faulty:
            self.rejected += 1
            message = "%s: the journal raised for an event, which is left out, and not for others"
            self._log.write(_LOGGER, logging.ERROR, "fault", message, self._name, error=error)
            if self._dead_letters is not None:
                self._dead_letters.write("journal", f"{type(error).__name__}: {said(error)}", shown(event).encode())

    def _hold(self, why: Exception, wait: float) -> None:
        self._not_before = time.monotonic() + wait
        since = time.monotonic() if self.trouble is None else self.trouble.since
        needs_fixing = not isinstance(why, UnavailableError) or isinstance(why, MisconfiguredError)
        self.trouble = Trouble(f"the journal takes no events: {why}", since, needs_fixing)
        message = (
            "%s: %s; %d events wait in memory for it, and go from there to a sink that takes them, not durable;"
            " the next try is in %.1f s"
        )
        self._log.write(_LOGGER, logging.ERROR, "append", message, self._name, why, len(self._pending), wait)

    def _pass_on(self) -> None:
        """Gives to the delivery what is pending, as far as it has room."""
        while self._pending and self._delivery.worker.wait_for_room(min(len(self._pending), _PAGE), 0.0):
            given = self._pending[:_PAGE]
            for event in given:
                record = Record(event, InMemory(None, next(self._numbers)))
                self.not_durable += self._delivery.put(NotJournaled(record, self._delivery.written))
            del self._pending[: len(given)]

    def _finish(self) -> None:
        try:
            if self._pending:
                self._append()
            # also to a sink that is away: the delivery tries once more
            self._pass_on()
        finally:
            self._on_end()
