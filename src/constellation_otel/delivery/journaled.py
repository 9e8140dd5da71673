"""A journal between those who put events and the sinks: a pipeline before it, and one for each sink behind it.

::

    put ─► pipeline ─► journal (a sink) ┈ (a source) ─► pipeline ─► sink
                 └──── what it cannot take, from memory, in order ───┘
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from constellation_otel._support.deadline import seconds_left
from constellation_otel._support.fork import PerProcess
from constellation_otel._support.log import RateLimitedLog
from constellation_otel.delivery.contract import Batch, Position, Restarted
from constellation_otel.delivery.counters import JournalCounters
from constellation_otel.delivery.journal_ends import ReadingEnd, WritingEnd
from constellation_otel.delivery.pipeline import SPILLED, Pipeline, Spilled
from constellation_otel.delivery.retry import LastError, Retry
from constellation_otel.delivery.sender import Sender
from constellation_otel.delivery.transform import PassThrough

if TYPE_CHECKING:
    from collections.abc import Callable

    from constellation_otel.delivery.contract import Store
    from constellation_otel.delivery.dead_letters import DeadLetters
    from constellation_otel.delivery.door import Door
    from constellation_otel.delivery.receipt import Receipt

__all__ = ["Journaled"]

_LOGGER: Final = logging.getLogger(__name__)
_LONGEST_PAUSE_S: Final = 1.0
"""Between tries to write: room is made, and disks come back, without any notice."""
_PAGE: Final = 512


class Journaled:
    """The way of events through a journal.

    An event that the journal has taken is delivered to every sink at least once. What it
    cannot take waits in memory, or goes from there to the sinks while one of them takes
    events: what comes first, first, and each behind all that the journal took before it.

    Args:
        store: The journal; closed with this.
        name: The prefix of the threads' names and of log messages.
        max_queue: Events that wait for the journal at most.
        max_held: Events that are held for it at most; as many where none is given.
        retry: Between tries to write.
        door: Validates what is put; where there is none, batches are put.
        dead_letters: Where an event goes for which the journal raises, and not for others.
        drops: Whether a sink that has no room for what the journal cannot take goes without
            it; otherwise all wait for that sink.
        on_settled: Called with receipts of what is in the journal, or safe in every sink.
        write_timeout: Seconds that the journal has for one call; twice as many are an error.
    """

    _lock = PerProcess(threading.Lock)

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        max_queue: int,
        max_held: int | None = None,
        retry: Retry,
        door: Door | None = None,
        dead_letters: DeadLetters | None = None,
        drops: bool = False,
        on_settled: Callable[[list[Receipt]], None] | None = None,
        write_timeout: float = 5.0,
    ) -> None:
        self._store = store
        self._name = name
        self._drops = drops
        self._log = RateLimitedLog()
        self._pipelines: list[Pipeline[Any]] = []
        self._ends: list[ReadingEnd] = []
        # each event that went past the journal: its receipt, and the sinks that have yet to settle it
        self._spilled: dict[int, tuple[Receipt, int]] = {}
        self._numbers = 0
        # what the sinks' threads have settled of those, for the thread before the journal
        self._settled_numbers: deque[int] = deque()
        # restarts that the sinks know of, and the journal does not
        self._known_restarts: list[Receipt] = []
        self._not_durable = 0
        self._recovered = 0
        # one entry for each pipeline that has ended, since a sum of several threads' would miss some
        self._ended: list[None] = []
        self._is_front_over = self._is_closed = False
        pauses = Retry(min(retry.first, _LONGEST_PAUSE_S), min(retry.longest, _LONGEST_PAUSE_S), retry.jitter)
        self.front: Pipeline[Any] = Pipeline(
            lambda: Sender(
                WritingEnd(store, self._count_written),
                PassThrough(keeps_restarts=True),
                max_held=max_held or max_queue,
                send_timeout=write_timeout,
                dead_letters=dead_letters,
                retry=pauses,
            ),
            name=f"{name}-journal",
            max_queue=max_queue,
            door=door,
            on_settled=on_settled,
            on_tick=self._tick,
            on_end=self._end_front,
            is_patient=False,
        )

    @property
    def counters(self) -> JournalCounters:
        """What has become of the events on their way through the journal."""
        owed = [it.acknowledgements for it in self._pipelines if it.acknowledgements is not None]
        return JournalCounters(
            self._recovered,
            self._not_durable,
            sum(it.unreadable for it in self._pipelines),
            sum(it.failed for it in owed),
        )

    @property
    def last_error(self) -> LastError | None:
        """Why the journal takes no events at the moment; ``None`` where it does, as far as is known."""
        error = self.front.sender.last_error
        if error is None:
            return None
        return LastError(f"the journal takes no events: {error.reason}", error.since, error.needs_fixing)

    @property
    def in_memory(self) -> int:
        """Events that went past the journal, and are not safe yet; none waits for it after :meth:`close_front`."""
        return len(self._spilled)

    def is_behind(self) -> bool:
        """Whether events wait for a journal that cannot be written, so that no sink has them yet."""
        return self.front.sender.last_error is not None and self.front.waiting > 0

    def reading_end(self, sink: str) -> ReadingEnd:
        """What the pipeline of a sink reads; it is added with :meth:`add`."""
        end = ReadingEnd(self._store, sink)
        self._ends.append(end)
        return end

    def add(self, pipeline: Pipeline[Any]) -> None:
        """Adds a pipeline behind the journal; its ``on_settled`` is :meth:`settle`, its ``on_end`` :meth:`end_sink`."""
        self._recovered += pipeline.written
        self._pipelines.append(pipeline)
        if pipeline.written:
            message = "%s: the journal holds %d events of an earlier run; they are delivered now"
            self._log.write(_LOGGER, logging.INFO, "recovered", message, self._name, pipeline.written)
        pipeline.worker.nudge()

    def settle(self, receipts: list[Receipt]) -> None:
        """What a sink has settled; called in its thread."""
        numbers = [at.offset for receipt in receipts for at in receipt.positions() if at.origin is SPILLED]
        if numbers:
            self._settled_numbers.extend(numbers)
            self.front.worker.nudge()

    def end_sink(self) -> None:
        """A sink's pipeline has ended; called in its thread."""
        self._ended.append(None)
        self._close_if_over()

    def close_front(self, deadline: float) -> None:
        """Writes what is held, in half of the time at most, so that some is left to deliver.

        What could not be written goes to the sinks from memory, also where the disk hangs.

        Args:
            deadline: Seconds of :func:`time.monotonic`.
        """
        half = deadline - seconds_left(deadline) / 2
        self._store.finish_by(half)
        self.front.close(seconds_left(half))
        if not self.front.worker.has_finished and not self._is_front_over:
            # its thread is in a call that does not return
            self._is_front_over = True
            self._pass_on(*self.front.abandon(), at_the_end=True)
        self._store.finish_by(deadline)

    def settle_the_rest(self) -> None:
        """Counts what the sinks have settled since the pipeline before the journal has ended."""
        self._look_at_settled()

    def close_store(self, deadline: float) -> None:
        """Closes the journal, in a thread that is left behind where the disk hangs; once more does nothing.

        Args:
            deadline: Seconds of :func:`time.monotonic`.
        """
        if self._is_closed:
            return
        thread = threading.Thread(target=self._close_store, name=f"{self._name}-journal-close", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # the interpreter is going down, and lets go of everything
            message = "%s: no thread to close the journal: %s"
            self._log.write(_LOGGER, logging.WARNING, "close", message, self._name, error)
        else:
            thread.join(seconds_left(deadline))

    def _close_if_over(self) -> None:
        """Closes the journal where its pipelines have ended, and nothing waits to be written."""
        if len(self._ended) == len(self._pipelines) and (self._is_front_over or not self.front.held):
            self._close_store()

    def _close_store(self) -> None:
        self._is_closed = True
        for end in self._ends:
            end.close()
        self._store.close()

    def _count_written(self, count: int) -> None:
        for pipeline in self._pipelines:
            pipeline.written += count
            pipeline.worker.nudge()
        self._known_restarts = [it for it in self._known_restarts if not it.is_settled]

    def _end_front(self) -> None:
        self._look_at_settled()
        if not self._is_front_over:
            # also to a sink that is away: it is tried once more
            self._pass_on(*self.front.sender.take_held(), at_the_end=True)
        self._is_front_over = True
        self._close_if_over()

    def _tick(self) -> None:
        """What the thread before the journal does when it has tried to write."""
        self._look_at_settled()
        if self._is_front_over:
            # it was in a call that did not return in time: the sinks have all that it had
            return
        sender = self.front.sender
        self.front.moving = sender.waiting
        error = sender.last_error
        if self.front.moving and error is not None:
            message = "the journal cannot be written: %s; %d events wait for it, or go to the sinks from memory"
            self._log.write(_LOGGER, logging.ERROR, "unwritten", message, error.reason, self.front.moving)
            if self._has_taker():
                items, receipts = sender.take_held()
                sender.put_back(*self._pass_on(items, receipts, at_the_end=False))
        self.front.moving = 0

    def _has_taker(self) -> bool:
        """Whether a sink takes events at the moment, as far as is known."""
        return any(pipeline.sender.last_error is None for pipeline in self._pipelines)

    def _look_at_settled(self) -> None:
        with self._lock:
            while self._settled_numbers:
                number = self._settled_numbers.popleft()
                # a restart has a number as well, and is not waited for
                receipt, sinks = self._spilled.get(number, (None, 0))
                if sinks > 1 and receipt is not None:
                    self._spilled[number] = (receipt, sinks - 1)
                elif receipt is not None:
                    del self._spilled[number]
                    self.front.sender.settle(receipt, 1)
        self.front.settle()

    def _pass_on(
        self, items: list[Any], receipts: list[Receipt], *, at_the_end: bool
    ) -> tuple[list[Any], list[Receipt]]:
        """Gives the sinks what the journal cannot take, as far as they have room; what stays for the journal."""
        done, restarts = 0, []
        while done < len(items):
            if items[done] is None:
                # the journal gets it as well, when it can, before what comes behind it
                self._pass_on_restart(receipts[done])
                restarts.append(done)
                done += 1
                continue
            end = done
            while end < len(items) and end - done < _PAGE and items[end] is not None:
                end += 1
            if not (at_the_end or self._drops or all(it.has_room(end - done) for it in self._pipelines)):
                break
            self._give(items[done:end], receipts[done:end])
            done = end
        left = [*restarts, *range(done, len(items))]
        return [items[at] for at in left], [receipts[at] for at in left]

    def _pass_on_restart(self, receipt: Receipt) -> None:
        if any(it is receipt for it in self._known_restarts):
            return
        self._known_restarts.append(receipt)
        self._numbers += 1
        for pipeline in self._pipelines:
            pipeline.spill(Spilled(Restarted(Position(SPILLED, self._numbers)), pipeline.written))

    def _give(self, events: list[Any], receipts: list[Receipt]) -> None:
        first = self._numbers + 1
        self._numbers += len(events)
        numbers = range(first, self._numbers + 1)
        for number, receipt in zip(numbers, receipts, strict=True):
            self._spilled[number] = (receipt, len(self._pipelines))
        self._not_durable += len(events)
        for pipeline in self._pipelines:
            if self._drops and not pipeline.has_room(len(events)):
                pipeline.dropped += len(events)
                self._settled_numbers.extend(numbers)
            else:
                # where that takes nothing any more they are not safe, and stay held
                pipeline.spill(Spilled(Batch(events, numbers, SPILLED), pipeline.written))
