"""A queue, a transform and a sender in one thread: the way to one sink, with a journal before it or without.

::

    put ─► queue ─► (door) ─► transform ─► sender ─► sink
                                  ▲
    journal ── read, in its turn ─┘      and told what is safe
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.log import RateLimitedLog
from constellation_otel.delivery.contract import Batch, Restarted, Revoked
from constellation_otel.delivery.receipt import Acknowledgements, place_of
from constellation_otel.delivery.retry import Retry
from constellation_otel.delivery.worker import Handler, Worker
from constellation_otel.errors import UnavailableError
from constellation_otel.events import said

if TYPE_CHECKING:
    from collections.abc import Callable

    from constellation_otel.delivery.contract import Unreadable
    from constellation_otel.delivery.counters import SinkCounters
    from constellation_otel.delivery.dead_letters import DeadLetters
    from constellation_otel.delivery.door import Door
    from constellation_otel.delivery.journal_ends import ReadingEnd
    from constellation_otel.delivery.receipt import Receipt
    from constellation_otel.delivery.sender import Sender

__all__ = ["SPILLED", "Ended", "Pipeline", "Spilled"]

_LOGGER: Final = logging.getLogger(__name__)
_FINISH_S: Final = 5.0
_PAGE: Final = 512
"""Events that are read from a journal at once."""

T = TypeVar("T")
"""Event or Span."""


SPILLED: Final = object()
"""The origin of events that a journal could not take."""


class Spilled(Struct, frozen=True):
    """Events that the journal could not take, for the sink to have them from memory.

    Attributes:
        batch: The events, or a restart of the engine; the origin is :data:`SPILLED`.
        after: How many of the journal's records come before it.
    """

    batch: Batch | Restarted
    after: int


class Ended(Struct, frozen=True):
    """Nothing comes after this.

    Attributes:
        abandon_open: Whether what is open is abandoned.
    """

    abandon_open: bool


_ENTRIES: Final = {Batch, Spilled, Restarted, Revoked, Ended}


class Pipeline(Handler[Any], Generic[T]):
    """The way to one sink.

    It is one class of more than 300 lines, since what is put, what a journal has, what the sink
    settles and how all of it ends are done by one thread, and go by the same fields.

    Args:
        new_sender: Makes the sender; once more in a forked child, where all starts afresh.
        name: The thread's; also the prefix of log messages.
        max_queue: Events that wait for the sender at most.
        retry: Between tries to read a journal, and to acknowledge.
        door: Validates what is put; where there is none, batches are put, with :meth:`give`.
        reads: A journal, which the sink's events come from, too; not in a forked child.
        dead_letters: Where what cannot be read goes.
        on_settled: Called with receipts that are settled, in the thread.
        on_tick: Called in the thread whenever it has looked at what is due.
        on_end: Called in the thread, last.
        is_patient: Whether the end waits for a sink that is away, as long as there is time.
        is_behind: Whether the one who puts has more that should have been put by now. Time
            does not pass for what is open while that is so, nor while the sender has no room,
            the journal cannot be read, or half of the queue is in use.
        look_again: Seconds after which that is looked at again.

    Attributes:
        written: How many records the journal has had for the sink; kept up to date by its writer.
        dropped: Events that found no room, in batches.
        unreadable: Records of the journal that could not be read.
        restarts: Records of the journal that are no events: restarts of the engine.
        moving: Items that its owner is taking elsewhere, so that they are never nowhere.
    """

    def __init__(
        self,
        new_sender: Callable[[], Sender[T]],
        *,
        name: str,
        max_queue: int = 65_536,
        retry: Retry | None = None,
        door: Door | None = None,
        reads: ReadingEnd | None = None,
        dead_letters: DeadLetters | None = None,
        on_settled: Callable[[list[Receipt]], None] | None = None,
        on_tick: Callable[[], None] | None = None,
        on_end: Callable[[], None] | None = None,
        is_patient: bool = True,
        is_behind: Callable[[], bool] | None = None,
        look_again: float = 1.0,
    ) -> None:
        self.sender = new_sender()
        self._new_sender = new_sender
        self._name = name
        self._max_queue = max_queue
        self._much = max(1, max_queue // 2)
        self.door = door
        self._reads = reads
        self._dead_letters = dead_letters
        self._on_settled = on_settled
        self._on_tick = on_tick
        self._on_end = on_end
        self._is_patient = is_patient
        self._is_behind = is_behind
        self._look_again = look_again
        retry = retry or Retry()
        self._backoff = retry.backoff(longest=5.0)
        self._acknowledgements = None if reads is None else Acknowledgements(reads, retry.backoff(longest=5.0))
        self._log = RateLimitedLog()
        self._finish_by: float | None = None
        self._abandon_open: bool | None = True
        # events in batches, and batches and the like: what is put and what is taken count in one thread each
        self._given = self._taken = 0
        self._entries_given = self._entries_taken = 0
        self.dropped = 0
        self._spilled: deque[Spilled] = deque()
        self.written = 0 if reads is None else reads.held()
        self.unreadable = self.restarts = 0
        self._read_again = 0.0
        self._has_all = False
        # how many of the journal's records had been written when it was last read to its end
        self._had_all_of = 0
        self.moving = 0
        # a batch at a time, so that what is made of it is sent before the next one makes more
        self.worker: Worker[Any] = Worker(self, name=name, max_queue=max_queue, max_batch=1 if door is None else _PAGE)

    @property
    def counters(self) -> SinkCounters:
        """What has become of the sink's events, and of what the journal was told."""
        counters = self.sender.counters
        if self._acknowledgements is None:
            return counters
        return replace(counters, failed_acknowledgements=self._acknowledgements.failed)

    @property
    def acknowledgements(self) -> Acknowledgements | None:
        """What is told to the journal; ``None`` where there is none."""
        return self._acknowledgements

    @property
    def queued(self) -> int:
        """Events that wait in the queue."""
        entries = self._entries_given - self._entries_taken
        return self._given - self._taken + max(0, self.worker.counters.held - entries)

    @property
    def held(self) -> int:
        """Events that were put, or read from the journal, and are not safe yet."""
        return self.queued + sum(map(_size_of, list(self._spilled))) + self.sender.held

    @property
    def waiting(self) -> int:
        """What could be sent now and is not safe yet, and what could not be acknowledged."""
        owed = 0 if self._acknowledgements is None else self._acknowledgements.owed
        return len(self._spilled) + self.sender.waiting + owed + self.moving

    def has_room(self, count: int) -> bool:
        """Whether so many events would find room in the queue; any number does when it is empty."""
        waiting = self._given - self._taken
        return not waiting or waiting + count <= self._max_queue

    def give(self, batch: Batch) -> int:
        """Puts a batch, as far as there is room; never waits.

        Returns:
            How many of its events were taken, the first ones. The others are dropped and counted.
        """
        count = len(batch.events)
        waiting = self._given - self._taken
        room = count if not waiting else max(0, min(count, self._max_queue - waiting))
        if room < count:
            batch = Batch(batch.events[:room], batch.offsets[:room], batch.origin)
        if room and not self._put_entry(batch, room):
            room = 0
        self.dropped += count - room
        if room < count:
            message = "%s: the queue is full (%d events); dropping the newest"
            self._log.write(_LOGGER, logging.WARNING, "full", message, self._name, self._max_queue)
        return room

    def spill(self, spilled: Spilled) -> bool:
        """Puts what the journal could not take; whether it was taken, as :meth:`give` with no part of it."""
        return self._put_entry(spilled, _size_of(spilled))

    def control(self, item: Restarted | Revoked | Ended) -> bool:
        """Puts what is about the events before it; whether it was taken."""
        return self._put_entry(item, 0)

    def _put_entry(self, entry: object, events: int) -> bool:
        self._given += events
        self._entries_given += 1
        if self.worker.put(entry):
            return True
        self._given -= events
        self._entries_given -= 1
        return False

    def flush(self, timeout: float) -> bool:
        """Waits until everything that could be sent has been delivered; executions that are open stay.

        Args:
            timeout: Seconds; this returns within them.
        """
        reads, written = self._reads, self.written

        def is_delivered() -> bool:
            has_all = reads is None or self._had_all_of >= written or self.worker.has_finished
            return has_all and not self.waiting

        deadline = deadline_of(timeout)
        if not self.worker.flush(seconds_left(deadline)):
            return False
        if reads is not None:
            self.worker.nudge()
        return self.worker.wait_until(is_delivered, seconds_left(deadline))

    def close(self, timeout: float, *, abandon_open: bool | None = True) -> bool:
        """Delivers what is held while there is time, and ends the thread.

        Args:
            timeout: Seconds; this returns within them.
            abandon_open: Whether executions without an end are put out then; ``None`` where
                they are read again, by a successor: nothing is put out that was not by itself.

        Returns:
            Whether nothing is left that could have been delivered.
        """
        deadline = deadline_of(timeout)
        # a little less, so that the one who waits for it hears that it has ended
        self.close_by(deadline - 0.05 * seconds_left(deadline), abandon_open=abandon_open)
        is_finished = self.worker.close(seconds_left(deadline))
        return is_finished and not self.waiting and (self._reads is None or self._has_all)

    def close_by(self, deadline: float, *, abandon_open: bool | None = True) -> None:
        """Takes nothing more, and has the thread deliver what is held until then; does not wait.

        Args:
            deadline: Seconds of :func:`time.monotonic`.
            abandon_open: As :meth:`close` has it.
        """
        self._finish_by = deadline
        self._abandon_open = abandon_open
        self.sender.finish_by(deadline)
        self.worker.end_soon()

    def abandon(self) -> tuple[list[T], list[Receipt]]:
        """Gives up a thread that is in a call which does not return; at the end, from another one.

        Returns:
            What it was to send, in order, with the receipts.
        """
        items, receipts = self.sender.abandon()
        self.handle(self.worker.drain())
        more, of_more = self.sender.take_held()
        return items + more, receipts + of_more

    # what the worker calls

    def is_ready(self) -> bool:
        return self.sender.has_room() and not self._spilled

    def handle(self, items: list[Any]) -> None:
        if self.door is not None and _ENTRIES.isdisjoint(map(type, items)):
            self.sender.add(self.door.admit(items))
            return
        for item in items:
            self._entries_taken += 1
            self._handle(item)

    def _handle(self, item: Batch | Spilled | Restarted | Revoked | Ended) -> None:
        if isinstance(item, Batch):
            self._taken += len(item.events)
            self.sender.add(item)
        elif isinstance(item, Spilled):
            # first into the one, so that another thread never sees it in neither
            self._spilled.append(item)
            self._taken += _size_of(item)
        elif isinstance(item, Restarted):
            self.sender.restart(item.position)
        elif isinstance(item, Revoked):
            self.sender.revoke(item.origin)
        else:
            self.sender.end(abandon_open=item.abandon_open)

    def tick(self) -> float | None:
        read_in = self._read()
        is_behind = self._is_behind is not None and self._is_behind()
        has_all = read_in is None and self.sender.has_room() and not is_behind and self.queued < self._much
        self.sender.transform.run_clock(runs=has_all)
        # with what waits in the queue there is more to be sent at once; it is taken next, where it may be
        send_in = self.sender.tick(more=self.queued > 0 and self.is_ready())
        tell_in = self.settle()
        if self._reads is not None and read_in is None and self.sender.has_room():
            # room that this tick has made
            read_in = self._read()
            if self.sender.waiting and self.sender.last_error is None:
                send_in = 0.0
        if not has_all:
            # time stands still, and has to be set going again
            send_in = self._look_again if send_in is None else min(send_in, self._look_again)
        if self._on_tick is not None:
            self._on_tick()
        return min((due for due in (read_in, send_in, tell_in) if due is not None), default=None)

    def finish(self) -> None:
        try:
            self._deliver_the_rest()
        finally:
            if self._on_end is not None:
                self._on_end()
            self.sender.close()

    def after_fork(self) -> None:
        if self._reads is not None:
            # the parent's, with all that hangs on it
            self._reads = self._acknowledgements = self._on_settled = self._on_end = None
        self._spilled.clear()
        self._given = self._taken = self._entries_given = self._entries_taken = 0
        self.dropped = self.unreadable = self.restarts = 0
        self.sender = self._new_sender()

    def also_held(self) -> int:
        return self.held - self.worker.counters.held

    # what the journal has

    def _read(self) -> float | None:
        """Brings what the journal has, and what it could not take, to the sender, each in its turn.

        Returns:
            In how many seconds there may be more; ``None`` where there is no more for now, or no room.
        """
        reads, owed = self._reads, self._acknowledgements
        if reads is None or owed is None:
            return None
        # first this: what is put from now on comes after all of that
        written = self.written
        while self._spilled and self.sender.has_room():
            first = self._spilled[0]
            is_unreadable = self._read_until(reads, owed, first.after) is not None
            # a journal that cannot be read either holds nothing up
            if not (is_unreadable or reads.is_at_end or reads.records >= first.after):
                break
            if isinstance(first.batch, Batch):
                self.sender.add(first.batch)
            else:
                self.sender.restart(first.batch.position)
            self._spilled.popleft()
        self._has_all = False
        if self._spilled or self._given - self._taken:
            # what waits in the queue has its turn before what the journal has taken since
            return None
        read_in = self._read_until(reads, owed, written)
        self._has_all = read_in is None and (reads.is_at_end or reads.records >= written)
        if self._has_all:
            self._had_all_of = written
        return read_in

    def _read_until(self, reads: ReadingEnd, owed: Acknowledgements, until: int) -> float | None:
        reads.is_at_end = False
        while self.sender.has_room() and reads.records < until and not reads.is_at_end:
            wait = seconds_left(self._read_again)
            if wait:
                return wait
            try:
                items = reads.read_some(min(_PAGE, until - reads.records))
            except Exception as error:  # noqa: BLE001 - whatever it is: what is in memory does not wait for it
                return self._look_again if reads.is_closed else self._put_off(error)
            self._backoff.reset()
            for item in items:
                if isinstance(item, Batch):
                    self.sender.add(item)
                elif isinstance(item, Restarted):
                    self.restarts += 1
                    self.sender.restart(item.position)
                else:
                    self._skip(item, owed)
        return None

    def _put_off(self, error: Exception) -> float:
        """Has the journal, which could not be read, be given a pause; how long."""
        is_known = isinstance(error, UnavailableError)
        wait = self._backoff.next()
        self._log.write(
            _LOGGER,
            logging.WARNING if is_known else logging.ERROR,
            "read",
            "%s: the journal was not read: %s; trying again in %.1f s",
            self._name,
            said(error) or type(error).__name__,
            wait,
            error=None if is_known else error,
        )
        self._read_again = time.monotonic() + wait
        return wait

    def _skip(self, item: Unreadable, owed: Acknowledgements) -> None:
        self.unreadable += 1
        message = "%s: the journal's %s cannot be read and is left out: %s"
        place = place_of(item.position)
        self._log.write(_LOGGER, logging.ERROR, "unreadable", message, self._name, place, item.reason)
        if self._dead_letters is not None:
            self._dead_letters.write(f"journal, {place}", item.reason, item.data)
        owed.add([item.position])

    # what is safe

    def settle(self) -> float | None:
        """Passes on what is safe, and tells the journal.

        Returns:
            In how many seconds to do so again; ``None`` where nothing is owed.
        """
        if self.sender.settled:
            settled, self.sender.settled = self.sender.settled, []
            if self._on_settled is not None:
                self._on_settled(settled)
            if self._acknowledgements is not None:
                self._acknowledgements.add(
                    position
                    for receipt in settled
                    for position in receipt.positions()
                    if position.origin is not SPILLED
                )
        return None if self._acknowledgements is None else self._acknowledgements.tell()

    def _deliver_the_rest(self) -> None:
        sender = self.sender
        deadline = self._finish_by if self._finish_by is not None else deadline_of(_FINISH_S)
        # one more try of everything
        self._read_again = 0.0
        sender.hurry()
        if self._acknowledgements is not None:
            self._acknowledgements.hurry()
        while self._reads is not None:
            is_away = self._read() is not None
            is_sent = sender.send_until(deadline) is None
            self.settle()
            if is_away or self._has_all or not is_sent or not seconds_left(deadline):
                break
        if self._abandon_open is not None:
            sender.end(abandon_open=self._abandon_open)
        sender.hurry()
        while True:
            due = (sender.send_until(deadline), self.settle(), seconds_left(deadline))
            if not self.waiting or not seconds_left(deadline) or self._gives_up():
                break
            time.sleep(min(wait for wait in due if wait is not None))
        owed = self._acknowledgements
        if owed is not None and owed.owed and owed.last_error is not None:
            message = "%s: %d delivered records stay in the journal: %s"
            self._log.write(_LOGGER, logging.WARNING, "owed", message, self._name, owed.owed, owed.last_error.reason)
        if self._on_tick is not None:
            self._on_tick()

    def _gives_up(self) -> bool:
        """Whether the end does not wait: the sink is gone, or all that is left takes an operator."""
        if self.sender.is_gone or not (self._is_patient or self.sender.last_error is None):
            return True
        owed = self._acknowledgements
        if owed is None or owed.last_error is None or not owed.last_error.needs_fixing:
            return False
        return self.waiting == owed.owed


def _size_of(spilled: Spilled) -> int:
    return len(spilled.batch.events) if isinstance(spilled.batch, Batch) else 1
