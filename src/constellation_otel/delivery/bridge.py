"""Bridge: from a source to its sinks, with acknowledgements.

Each sink has a lane and a thread of its own, so that none waits for another. A
source is told that a record is safe when every sink has it, or, with a journal,
when it is on disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.log import RateLimitedLog, log
from constellation_otel.delivery.buffered_listener import Delivery, Feed, NotJournaled, isolate
from constellation_otel.delivery.contract import InMemory, Published, Record, Restarted, Revoked, Unreadable
from constellation_otel.delivery.losses import LossLog
from constellation_otel.delivery.sender import Backoff, Lane, LaneCounters
from constellation_otel.delivery.transform import AssemblyStage, EventClock, EventStage
from constellation_otel.errors import (
    ConfigurationError,
    JournalError,
    MisconfiguredError,
    SourceError,
    UnavailableError,
)
from constellation_otel.events import said, shown, validated
from constellation_otel.traces import Assembler, Sampled, sampler_of_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.sampling import Sampler

    from constellation_otel.delivery.contract import Position, Sink, Source, SourceItem, SpanObserver, Store
    from constellation_otel.delivery.dead_letters import DeadLetters
    from constellation_otel.delivery.sender import Trouble
    from constellation_otel.events import Event
    from constellation_otel.traces import Span

__all__ = ["Bridge", "BridgeReport", "sink_names"]

_LOGGER: Final = logging.getLogger(__name__)
_READ_TIMEOUT: Final = 0.25
_SETTLE: Final = 1.0
"""Seconds that spans wait for events still on their way, where the source does not keep the order."""


class BridgeReport(Struct, frozen=True):
    """What a bridge has done so far.

    Attributes:
        source: The source's name.
        events: Events that were read.
        unreadable: Records that could not be read as events, of the source or the journal.
        dropped: Events that found no room, in the source or in a lane.
        sinks: The counters of each sink's lane, by the sink's name.
        executions: Executions whose span has left.
        spans: Spans that have left, sampled or not.
        open: Executions that are open.
        late: Events of executions or modules whose span had left.
        duplicate: Events that repeated a fact that was known.
        abandoned: Executions that were let go without an end.
        corrected: Values that could not be read, or that no backend could hold, and that were replaced or left out.
        lost: Events that were held when the bridge ended, in no journal, and that nobody reads again.
        is_delivered: Whether nothing is left that could be delivered now, or by the next run.
        not_durable: Events that the journal could not take, and that the sinks were given from memory.
        failed_acknowledgements: Acknowledgements that the source could not take. They are
            repeated while the bridge runs; what they are about is read again after a restart otherwise.
        incomplete_executions: Executions whose span was emitted without a start or an end that never came.
        incomplete_modules: Modules likewise, those that a cancellation left without an end included.
    """

    source: str
    events: int
    unreadable: int
    dropped: int
    sinks: dict[str, LaneCounters]
    executions: int
    spans: int
    open: int
    late: int
    duplicate: int
    abandoned: int
    corrected: int
    lost: int
    is_delivered: bool
    not_durable: int = 0
    failed_acknowledgements: int = 0
    incomplete_executions: int = 0
    incomplete_modules: int = 0

    @property
    def rejected(self) -> int:
        """Events that some sink refused for good."""
        return sum(lane.rejected for lane in self.sinks.values())

    @property
    def evicted(self) -> int:
        """Executions that some lane let go since too many events were open."""
        return sum(lane.evicted for lane in self.sinks.values())


class Bridge:
    """Reads a source and brings its events to one or more sinks.

    ``Bridge(source, [sink, ...]).run()`` returns when the source has ended or :meth:`stop`
    was called, and has then delivered what could be delivered in time.

    What is promised: an event that a durable source has given, or that is in the journal,
    is delivered to every sink at least once, across outages of the sinks and the death of
    this process. A repeated span is the same span. While the journal cannot be written, or
    grow, sinks that take events get them from memory, as if there were none. From a source that is neither, what
    finds a sink's lane full is dropped for that sink, the newest first, and counted.

    Args:
        source: Where events come from. Closed by :meth:`run`.
        sinks: Where they go. Closed by :meth:`run`.
        journal: Keeps events until every sink has them; opened with :func:`sink_names` of
            the sinks. Closed by :meth:`run`.
        settle: Seconds that spans wait for events still on their way; 0 for a source that
            keeps the order and 1 for others, where none is given.
        idle_timeout: Seconds without an event after which an execution is abandoned.
        max_age: Seconds after its first event at which an execution is abandoned.
        max_open: Executions and modules held open at most, for each sink that takes spans.
        max_held: Events that each lane holds at most, and a batch; as many may wait for it.
        is_replay: Whether what is read has happened before: time is what the events say, and a
            source that needs mending, or is away for ``close_timeout``, ends it.
        on_full: What happens when a lane, or the journal, is full: ``wait`` reads no more
            until there is room, ``drop`` drops the newest. ``wait`` where none is given,
            unless the source is not durable.
        abandon_open: Whether executions without an end leave when the source has ended.
            When the bridge is stopped they leave as well, unless they are read again.
        sampler: Of traces; what ``OTEL_TRACES_SAMPLER`` says where none is given.
        telemetry: Metrics and logs beside the first sink that takes spans.
        dead_letters: Where what cannot be read or is refused goes.
        send_timeout: Seconds that one call of a sink may take.
        close_timeout: Seconds for delivering what is held, at the end: without any
            progress where the source has ended, altogether where the bridge was stopped.

    Raises:
        ConfigurationError: There is no sink.
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        source: Source,
        sinks: Sequence[Sink[Any]],
        *,
        journal: Store | None = None,
        settle: float | None = None,
        idle_timeout: float = 3_600.0,
        max_age: float = 86_400.0,
        max_open: int = 100_000,
        max_held: int = 65_536,
        is_replay: bool = False,
        on_full: Literal["wait", "drop"] | None = None,
        abandon_open: bool = False,
        sampler: Sampler | None = None,
        telemetry: SpanObserver | None = None,
        dead_letters: DeadLetters | None = None,
        send_timeout: float = 10.0,
        close_timeout: float = 30.0,
    ) -> None:
        if not sinks:
            message = "a bridge needs at least one sink"
            raise ConfigurationError(message)
        self._source = source
        self._journal = journal
        self._waits = on_full == "wait" or (on_full is None and source.is_durable)
        self._abandon_open = abandon_open
        self._dead_letters = dead_letters
        self._close_timeout = close_timeout
        self._max_held = max_held
        self._is_stopped = self._is_waiting = self._is_journal_full = False
        self._log = RateLimitedLog()
        self._backoff = Backoff(longest=10.0)
        self._events = self._unreadable = self._corrected = self._not_durable = self._lost = 0
        self._source_trouble: str | None = None
        self._silent_since: float | None = None
        self._is_replay = is_replay
        self._journal_trouble: str | None = None
        self._journal_backoff = Backoff(longest=5.0)
        self._journal_not_before = self._acknowledge_not_before = 0.0
        self._looped = time.monotonic()
        self._safe = _Safe(len(sinks)) if source.is_durable else None
        # what is safe, and the source could not be told
        self._owed: list[Position] = []
        self._max_owed = _OWED_FACTOR * max_held
        self._acknowledge_trouble: str | None = None
        self._acknowledge_backoff = Backoff(longest=5.0)
        self._failed_acknowledgements = 0
        self._published = Published()
        self._stages: list[AssemblyStage] = []
        self._deliveries: dict[str, Delivery[Any]] = {}
        self._feeds: list[Feed] = []
        # lanes that had no room for being notified of a restart, and the restart that the journal had none for
        self._unnotified: dict[str, Restarted] = {}
        self._unwritten: Restarted | None = None
        if settle is None:
            settle = 0.0 if source.is_ordered else _SETTLE
        for number, (name, sink) in enumerate(zip(sink_names(sinks), sinks, strict=True)):
            feed = None if journal is None else Feed(journal, name, dead_letters)
            stage: EventStage | AssemblyStage = EventStage()
            if sink.takes == "spans":
                assembler = Assembler(
                    settle=settle,
                    max_open=max_open,
                    idle_timeout=idle_timeout,
                    max_age=max_age,
                    # where several sinks take spans, each assembles the same
                    on_loss=_unlogged if self._stages else LossLog(source.name),
                )
                sampled = Sampled(
                    sampler or sampler_of_environment(),
                    # the first one observes: a span is one, however many endpoints it goes to
                    _unobserved if self._stages or telemetry is None else telemetry.observe,
                    max_remembered=max_open,
                )
                with_events = telemetry is None or telemetry.with_events
                finish_span = sampled if with_events else partial(_without_events, sampled)
                stage = AssemblyStage(assembler, finish_span, EventClock() if is_replay else None, sampled.forget)
                self._stages.append(stage)
            lane: Lane[Any] = Lane(
                sink,
                stage,
                acknowledge=self._heard_by(number, feed),
                max_held=max_held,
                send_timeout=send_timeout,
                dead_letters=dead_letters,
            )
            if feed is not None:
                self._feeds.append(feed)
            on_tick = _nothing if self._deliveries or telemetry is None else partial(self._publish, telemetry)
            # a bridge is not used in a forked child: its lane there is this one
            self._deliveries[name] = Delivery(
                partial(_same, lane),
                name=f"bridge-{name}",
                max_queue=max_held,
                feed=feed,
                written=0 if journal is None else journal.held(name),
                is_behind=self._is_behind,
                on_tick=on_tick,
            )

    def run(self) -> BridgeReport:
        """Reads until the source has ended or :meth:`stop` was called, then delivers what is held.

        Returns:
            What was done.

        Raises:
            SourceError: The source can never be read as it is, or a replay's is away for too
                long. What was read before is delivered.
        """
        with ExitStack() as stack:
            stack.callback(self._source.close)
            try:
                self._read_all()
            finally:
                is_delivered = self._drain()
                self._tell_source_at_the_end()
                for feed in self._feeds:
                    feed.close_by(deadline_of(_LAST_WAIT))
        if not is_delivered and not self._source.is_durable:
            self._lost = sum(delivery.in_memory for delivery in self._deliveries.values())
        if self._lost:
            message = "%d events could not be delivered in time, and are lost: nobody reads them again"
            self._log.write(_LOGGER, logging.ERROR, "lost", message, self._lost)
        return self._report(is_delivered=is_delivered)

    def stop(self) -> None:
        """Has :meth:`run` end; from any thread, or from a signal handler."""
        # no event, whose lock the interrupted thread may have
        self._is_stopped = True

    @property
    def report(self) -> BridgeReport:
        """What was done so far."""
        return self._report(is_delivered=not any(it.waiting for it in self._deliveries.values()))

    @property
    def troubles(self) -> dict[str, str]:
        """What does not work at the moment: why, by the name of the source or the sink, or ``journal``."""
        found = {}
        source_trouble: str | None = (
            self._source_trouble or getattr(self._source, "trouble", None) or self._acknowledge_trouble
        )
        if source_trouble is not None:
            found[self._source.name] = source_trouble
        if self._journal_trouble is not None:
            found["journal"] = self._journal_trouble
        for name, delivery in self._deliveries.items():
            trouble: Trouble | None = delivery.lane.trouble
            if trouble is not None:
                found[name] = trouble.reason
            trouble = delivery.lane.acknowledge_trouble
            if trouble is not None:
                found.setdefault("journal", f"{trouble.reason} (by {name})")
        return found

    @property
    def fraction_read(self) -> float | None:
        """How much of the source has been read, from 0 to 1; ``None`` where it does not say so."""
        fraction: float | None = getattr(self._source, "fraction_read", None)
        return fraction

    @property
    def idle_seconds(self) -> float:
        """Seconds since the reading loop last came around; more than some says that it hangs."""
        return time.monotonic() - self._looped

    @property
    def open_executions(self) -> int:
        """Executions that have started and not left."""
        return self._stages[0].open_executions if self._stages else 0

    @property
    def open_modules(self) -> int:
        """Modules that have started and not ended."""
        return self._stages[0].open_modules if self._stages else 0

    def _report(self, *, is_delivered: bool) -> BridgeReport:
        assembled: Counter[str] = Counter()
        # where several sinks take spans, each assembles the same
        for stage in self._stages[:1]:
            assembled.update({name: getattr(stage.counters, name) for name in _ASSEMBLED})
        assembled["corrected"] += self._corrected
        return BridgeReport(
            source=self._source.name,
            events=self._events,
            unreadable=self._unreadable + sum(feed.unreadable for feed in self._feeds),
            dropped=getattr(self._source, "dropped", 0)
            + sum(it.worker.counters.dropped for it in self._deliveries.values()),
            not_durable=self._not_durable,
            failed_acknowledgements=self._failed_acknowledgements + getattr(self._source, "failed_acknowledgements", 0),
            sinks={name: delivery.lane.counters for name, delivery in self._deliveries.items()},
            open=self.open_executions,
            lost=self._lost,
            is_delivered=is_delivered,
            **{name: assembled[name] for name in _ASSEMBLED},
        )

    def _read_all(self) -> None:
        if self._feeds:
            self._nudge()
        while not self._is_stopped:
            self._looped = time.monotonic()
            items = self._read()
            self._notify_lanes()
            self._pass_on(items)
            self._tell_source()
            if (not items and self._source.has_ended) or any(it.lane.is_gone for it in self._deliveries.values()):
                break

    def _read(self) -> Sequence[SourceItem]:
        try:
            items = self._source.read(_READ_TIMEOUT)
        except UnavailableError as error:
            self._could_not_read(error)
            return ()
        self._silent_since = None
        self._backoff.reset()
        self._source_trouble = None
        return items

    def _could_not_read(self, error: UnavailableError) -> None:
        """Waits; a replay, which somebody is waiting for, does not do so for ever.

        Raises:
            SourceError: It is one, and the source needs mending or has been away for too long.
        """
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        needs_mending = isinstance(error, MisconfiguredError)
        if self._is_replay and (needs_mending or now - self._silent_since > self._close_timeout):
            raise SourceError(str(error)) from error
        pause = self._backoff.next(error.retry_after)
        if self._source_trouble is None:
            self._source_trouble = str(error)
            # so that time stands still at once
            self._nudge()
        self._source_trouble = str(error)
        level = logging.ERROR if needs_mending else logging.WARNING
        message = "%s is not read: %s; it is tried again in %.1f s"
        self._log.write(_LOGGER, level, "source", message, self._source.name, error, pause)
        self._pause(pause)

    def _pass_on(self, items: Iterable[SourceItem]) -> None:
        records: list[Record] = []
        for item in items:
            if isinstance(item, Record):
                records.append(item)
            elif isinstance(item, Unreadable):
                self._skip(item)
            elif not isinstance(item, Restarted | Revoked):
                message = (
                    f"{self._source.name} gave {item!r}, which is no Record, Unreadable, Restarted or Revoked;"
                    " mend the source"
                )
                raise TypeError(message)
            else:
                # in order: it is about what was read before
                self._deliver(records)
                records = []
                if isinstance(item, Restarted):
                    self._restart(item)
                else:
                    self._revoke(item)
        self._deliver(records)

    def _skip(self, item: Unreadable) -> None:
        self._unreadable += 1
        where = f"{self._source.name}, {_place(item.position)}"
        # not keyed by the reason, which has foreign data in it
        self._log.write(_LOGGER, logging.WARNING, "unreadable", "%s cannot be read: %s", where, item.reason)
        if self._dead_letters is not None:
            self._dead_letters.write(where, item.reason, item.data)
        if self._source.is_durable:
            self._acknowledge([item.position])

    def _deliver(self, records: list[Record]) -> None:
        self._events += len(records)
        records = self._kept(records)
        if not records:
            return
        if self._journal is not None:
            self._write(self._journal, [*records])
            return
        self._give(records)

    def _give(self, records: list[Record]) -> None:
        """Gives records to every lane."""
        if self._safe is not None:
            self._safe.expect([record.position for record in records])
        for number, delivery in enumerate(self._deliveries.values()):
            for first in range(0, len(records), self._max_held):
                self._put(number, delivery, records[first : first + self._max_held])

    def _put(self, number: int, delivery: Delivery[Any], records: list[Record]) -> None:
        """Gives records to a lane; where there is no room, waits or drops."""
        has_room = partial(delivery.worker.wait_for_room, len(records), _WAIT)
        # a durable source gives again what a bridge that is stopped has not taken
        if self._waits and not self._wait_for(has_room) and self._source.is_durable:
            return
        dropped = [
            record.position
            for record in records
            if not delivery.put(record if self._journal is None else NotJournaled(record, delivery.written))
        ]
        if self._safe is not None and dropped:
            # for good: it is not waited for
            self._safe.heard_by(number)(dropped)

    def _restart(self, item: Restarted) -> None:
        """Has what is open be abandoned, by way of the journal where there is one."""
        if self._journal is not None:
            self._write(self._journal, [item])
            return
        if self._safe is not None:
            self._safe.expect([item.position])
        self._notify_lanes_of(item)

    def _notify_lanes_of(self, item: Restarted) -> None:
        # of several, the last one says all
        self._unnotified = dict.fromkeys(self._deliveries, item)
        if self._waits:
            for delivery in self._deliveries.values():
                self._wait_for(partial(delivery.worker.wait_for_room, 1, _WAIT))
        self._notify_lanes()

    def _notify_lanes(self) -> None:
        """Notifies lanes of a restart, those without room some other time: what came after it is not abandoned."""
        for name, item in list(self._unnotified.items()):
            delivery = self._deliveries[name]
            in_turn = item if self._journal is None else NotJournaled(item, delivery.written)
            if delivery.worker.wait_for_room(1, 0) and delivery.put(in_turn):
                del self._unnotified[name]

    def _revoke(self, item: Revoked) -> None:
        if self._safe is not None:
            self._safe.forget(item.origin)
            self._owed = [position for position in self._owed if position.origin != item.origin]
        if self._safe is None or self._journal is not None:
            # what is in a journal has been acknowledged, so nobody else will have it
            return
        for delivery in self._deliveries.values():
            if self._wait_for(partial(delivery.worker.wait_for_room, 1, _WAIT)):
                delivery.put(item)

    def _write(self, journal: Store, items: list[Record | Restarted]) -> None:
        """Puts records into the journal; where that cannot be, gives them to the sinks from memory, or waits."""
        # a restart that was not written is still about what is before these
        left = items if self._unwritten is None else [self._unwritten, *items]
        self._unwritten = None

        def is_done() -> bool:
            if not seconds_left(self._journal_not_before):
                self._append(journal, left)
            if not left or self._has_taker() or (self._is_journal_full and not self._waits):
                return True
            self._pause(seconds_left(self._journal_not_before))
            return False

        self._wait_for(is_done)
        if left and (self._has_taker() or not self._source.is_durable):
            records = [Record(it.event, InMemory(*it.position)) for it in left if isinstance(it, Record)]
            for item in left:
                if isinstance(item, Restarted):
                    self._unwritten = item
                    # and of what is in memory the lanes know without the journal
                    self._notify_lanes_of(Restarted(InMemory(*item.position)))
            self._not_durable += len(records)
            self._give(records)

    def _append(self, journal: Store, left: list[Record | Restarted]) -> None:
        """Writes records down, which are not left then."""
        why: str | None = None
        taken: list[Record | Restarted] = []

        def append(items: list[Record | Restarted]) -> int:
            count = self._appended(journal, [item.event if isinstance(item, Record) else None for item in items])
            taken.extend(items[:count])
            return count

        try:
            del left[: append(left)]
        except UnavailableError as error:
            why = str(error)
        except JournalError:
            raise
        except Exception as error:  # noqa: BLE001 - a defect; records behind the one at fault go on
            why = self._append_in_parts(append, left, error)
        if taken:
            if self._source.is_durable:
                self._acknowledge([item.position for item in taken])
            for delivery in self._deliveries.values():
                delivery.written += len(taken)
            self._nudge()
        if not left:
            self._journal_backoff.reset()
            self._journal_trouble = None
            return
        self._is_journal_full = why is None
        self._journal_trouble = why or "it is full; see that the sinks take events, or allow it more"
        # room is made without anybody's help
        wait = _WAIT if self._is_journal_full else self._journal_backoff.next()
        self._journal_not_before = time.monotonic() + wait
        message = "the journal cannot be written: %s; %d events wait for it, or go to sinks that take them, not durable"
        self._log.write(_LOGGER, logging.ERROR, "journal", message, self._journal_trouble, len(left))

    def _append_in_parts(
        self, append: Callable[[list[Record | Restarted]], int], left: list[Record | Restarted], error: Exception
    ) -> str | None:
        """Writes down what the journal does not raise for; says why it takes nothing, where that is all of it."""
        try:
            _, faulty = isolate(append, left, error)
        except Exception as raised:  # noqa: BLE001 - it is raised for every record
            return f"{type(raised).__name__}: {said(raised)}"
        for item, fault in faulty:
            reason = f"the journal raised {type(fault).__name__}: {said(fault)}"
            data = shown(item.event if isinstance(item, Record) else item).encode()
            self._skip(Unreadable(data, reason, item.position))
        return None

    def _appended(self, journal: Store, events: list[Event | None]) -> int:
        """Appends in a thread, so that a bridge which is stopped need not wait for a disk that hangs.

        Returns:
            As :meth:`Store.append <constellation_otel.delivery.Store.append>` does.

        Raises:
            UnavailableError: As that, or it has not returned and the bridge is stopped.
        """
        answers: list[int | BaseException] = []

        def append() -> None:
            try:
                answers.append(journal.append(events))
            except BaseException as error:  # noqa: BLE001 - raised again by who waits
                answers.append(error)

        thread = threading.Thread(target=append, name="bridge-journal", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # the machine has no threads left
            append()
        else:
            self._wait_for_write(thread)
        (answer,) = answers
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _wait_for_write(self, thread: threading.Thread) -> None:
        began = time.monotonic()
        thread.join(_WAIT)
        while thread.is_alive():
            hanging = f"a write has not returned for {time.monotonic() - began:.1f} s; look at its disk"
            if self._is_stopped:
                raise UnavailableError(hanging)
            if time.monotonic() - began > _HANGS:
                self._journal_trouble = hanging
            thread.join(_WAIT)

    def _has_taker(self) -> bool:
        """Whether a sink takes events at the moment, as far as is known."""
        return any(delivery.lane.trouble is None for delivery in self._deliveries.values())

    def _kept(self, records: list[Record]) -> list[Record]:
        """Those with an event that every sink can take; the others are counted, and not asked for again."""
        kept = []
        for record in records:
            try:
                event, corrected = validated(record.event)
            except (TypeError, ValueError) as error:
                self._skip(Unreadable(shown(record.event).encode(), str(error), record.position))
                continue
            for reason in (*record.corrected, *corrected):
                self._corrected += 1
                where = f"{self._source.name}, {_place(record.position)}"
                message = "%s: something is left out or replaced, the rest is kept: %s"
                self._log.write(_LOGGER, logging.WARNING, "corrected", message, where, reason)
            kept.append(Record(event, record.position))
        return kept

    def _wait_for(self, condition: Callable[[], bool]) -> bool:
        """Waits for a condition that waits a little itself, until the bridge is stopped; whether it held."""
        while not condition():
            self._looped = time.monotonic()
            if self._is_stopped:
                return False
            if not self._is_waiting:
                self._is_waiting = True
                # so that time stands still at once
                self._nudge()
            self._tell_source()
            # a consumer that does not ask for anything is taken for dead
            keep_alive: Callable[[], None] | None = getattr(self._source, "keep_alive", None)
            if keep_alive is not None:
                keep_alive()
        self._is_waiting = False
        return True

    def _is_behind(self) -> bool:
        """Whether there are records that should have been read by now: time does not pass for what is open then."""
        return self._is_waiting or (self._source.is_durable and self._source_trouble is not None)

    def _pause(self, seconds: float) -> None:
        """Waits, unless the bridge is stopped; it does not hang meanwhile."""
        end = time.monotonic() + seconds
        while not self._is_stopped and time.monotonic() < end:
            self._looped = time.monotonic()
            time.sleep(min(_SLICE, max(0.0, end - time.monotonic())))

    def _tell_source(self) -> None:
        """Says what has become safe, in the thread that reads."""
        if self._safe is not None:
            self._acknowledge(self._safe.take())

    def _tell_source_at_the_end(self) -> None:
        deadline = deadline_of(min(_LAST_WAIT, self._close_timeout))
        self._acknowledge_not_before = 0.0
        self._tell_source()
        while self._owed and seconds_left(deadline):
            time.sleep(min(seconds_left(self._acknowledge_not_before), seconds_left(deadline)))
            self._tell_source()

    def _acknowledge(self, positions: Sequence[Position]) -> None:
        """Acknowledges, together with what could not be acknowledged before."""
        self._owed += positions
        if not self._owed or seconds_left(self._acknowledge_not_before):
            return
        error = self._acknowledge_owed()
        if error is not None:
            self._could_not_acknowledge(error)
            return
        self._acknowledge_backoff.reset()
        self._acknowledge_trouble = None

    def _acknowledge_owed(self) -> Exception | None:
        """Acknowledges all that it can; what was raised, where that is nothing."""

        def acknowledge(positions: list[Position]) -> int:
            # a copy: what it is given is the source's own
            self._source.acknowledge(positions[:])
            return len(positions)

        try:
            acknowledge(self._owed)
        except UnavailableError as error:
            self._failed_acknowledgements += 1
            return error
        except Exception as error:  # noqa: BLE001 - a defect; positions behind the one at fault go on
            self._failed_acknowledgements += 1
            try:
                _, faulty = isolate(acknowledge, self._owed, error)
            except Exception as raised:  # noqa: BLE001 - it is raised for every position
                return raised
            places = ", ".join(_place(position) for position, _ in faulty[:_NAMED]) or "none"
            message = "%s: the acknowledgement of some records raised %s; not acknowledged: %s (%d records)"
            self._log.write(
                _LOGGER,
                logging.WARNING,
                "acknowledge",
                message,
                self._source.name,
                said(error),
                places,
                len(faulty),
                error=error,
            )
        else:
            self._owed = []
        return None

    def _could_not_acknowledge(self, error: Exception) -> None:
        why = said(error) or type(error).__name__
        self._acknowledge_trouble = f"what is safe cannot be acknowledged: {why}"
        wait = self._acknowledge_backoff.next()
        self._acknowledge_not_before = time.monotonic() + wait
        message = (
            "%s: %d records are safe, which could not be acknowledged: %s; it is tried again in %.1f s, and they are"
            " read again after a restart otherwise"
        )
        self._log.write(
            _LOGGER,
            logging.WARNING,
            "acknowledge",
            message,
            self._source.name,
            len(self._owed),
            why,
            wait,
            error=None if isinstance(error, UnavailableError) else error,
        )
        # bounded: the oldest are read again after a restart
        del self._owed[: -self._max_owed]

    def _publish(self, telemetry: SpanObserver) -> None:
        """Brings the counters that are metrics up to date; called from one sink's thread."""
        report = self.report
        before, self._published = (
            self._published,
            Published(
                report.dropped,
                report.rejected,
                report.late,
                report.duplicate,
                report.abandoned,
                report.incomplete_executions,
                report.incomplete_modules,
            ),
        )
        telemetry.count(before, self._published)

    def _heard_by(self, number: int, feed: Feed | None) -> Callable[[Sequence[Position]], None]:
        """What a sink's lane calls with the records that the sink has."""
        tell_source = _heard if self._safe is None else self._safe.heard_by(number)
        if feed is None:
            return tell_source

        def tell_both(positions: Sequence[Position]) -> None:
            tell_source([position for position in positions if isinstance(position, InMemory)])
            feed.acknowledge(positions)

        return tell_both

    def _nudge(self) -> None:
        for delivery in self._deliveries.values():
            delivery.worker.nudge()

    def _drain(self) -> bool:
        """Delivers what is held and ends the lanes; whether nothing is left."""
        # what is read again is not let go
        abandon_open = None if self._source.is_durable or self._journal is not None else True
        deliveries = self._deliveries.values()
        if self._is_stopped and any(it.waiting for it in deliveries):
            log(_LOGGER, logging.INFO, "stopped; what is held is delivered now, in %.0f s at most", self._close_timeout)
        is_gone = any(it.lane.is_gone for it in deliveries)
        if self._source.has_ended and not self._is_stopped and not is_gone:
            abandon_open = None
            for delivery in deliveries:
                self._wait_for(partial(delivery.worker.wait_for_room, 1, _WAIT))
                delivery.end(abandon_open=self._abandon_open)
            self._drain_while_there_is_progress()
        deadline = deadline_of(self._close_timeout)
        if self._journal is not None:
            self._journal.finish_by(deadline)
        for delivery in deliveries:
            delivery.close_by(deadline, abandon_open=abandon_open)
        # every one, also behind one that is not
        closed = [self._is_closed(delivery, deadline, abandon_open) for delivery in deliveries]
        return all(closed)

    def _is_closed(self, delivery: Delivery[Any], deadline: float, abandon_open: bool | None) -> bool:
        """Waits until a lane has ended, which shows that it is waited for; whether it has nothing left."""
        while not delivery.worker.wait_until(lambda: delivery.worker.has_finished, _WAIT):
            self._looped = time.monotonic()
            if time.monotonic() > deadline:
                break
        return delivery.close(max(0.1, seconds_left(deadline)), abandon_open=abandon_open)

    def _drain_while_there_is_progress(self) -> None:
        deliveries = self._deliveries.values()
        deadline = deadline_of(self._close_timeout)
        sent = -1
        while not self._is_stopped and time.monotonic() < deadline:
            self._looped = time.monotonic()
            if all(delivery.flush(_WAIT) for delivery in deliveries) or any(it.lane.is_gone for it in deliveries):
                return
            self._tell_source()
            now_sent = sum(delivery.lane.counters.sent for delivery in deliveries)
            if now_sent > sent:
                sent, deadline = now_sent, deadline_of(self._close_timeout)


_OWED_FACTOR: Final = 16
"""How many times ``max_held`` positions are remembered that the source could not be told."""
_NAMED: Final = 3
"""Records that a log line names, at most."""
_WAIT: Final = 0.25
_HANGS: Final = 10.0
"""Seconds after which a write to the journal that has not returned is a trouble."""
_LAST_WAIT: Final = 1.0
"""Seconds for the last acknowledgements, and for letting go of the journal, after ``close_timeout``."""
_SLICE: Final = 0.05
"""Seconds in which a pause notices that the bridge is stopped."""
_ASSEMBLED: Final = (
    "executions",
    "spans",
    "late",
    "duplicate",
    "abandoned",
    "corrected",
    "incomplete_executions",
    "incomplete_modules",
)


def sink_names(sinks: Sequence[Sink[Any]]) -> list[str]:
    """What a journal knows sinks by: their kind, and which of its kind where there are several.

    Not their URL, so that what is held for a collector goes to the one that took its place.
    """
    seen: Counter[str] = Counter()
    names: list[str] = []
    for sink in sinks:
        name = sink.name
        while name in names:
            seen[sink.name] += 1
            name = f"{sink.name}-{seen[sink.name] + 1}"
        names.append(name)
    return names


class _Safe:
    """Which records every sink has; lanes say so from their threads, the bridge takes note in its own.

    Args:
        sinks: How many have to say so.
    """

    def __init__(self, sinks: int) -> None:
        self._all = (1 << sinks) - 1
        self._lock = threading.Lock()
        # a bit for each sink that has not said so
        self._missing: dict[Position, int] = {}
        self._safe: list[Position] = []

    def expect(self, positions: Iterable[Position]) -> None:
        """Records are on their way to the sinks."""
        with self._lock:
            self._missing.update((position, self._all) for position in positions)

    def heard_by(self, sink: int) -> Callable[[Sequence[Position]], None]:
        """What a sink's lane calls with the records that the sink has."""
        return partial(self._acknowledge, 1 << sink)

    def _acknowledge(self, bit: int, positions: Sequence[Position]) -> None:
        with self._lock:
            for position in positions:
                # what is not expected belongs to somebody else by now
                missing = self._missing.get(position, 0)
                if missing & ~bit:
                    self._missing[position] = missing & ~bit
                elif missing:
                    del self._missing[position]
                    self._safe.append(position)

    def forget(self, origin: object) -> None:
        """Somebody else reads that part of the source from now on."""
        with self._lock:
            self._missing = {it: missing for it, missing in self._missing.items() if it.origin != origin}
            self._safe = [it for it in self._safe if it.origin != origin]

    def take(self) -> list[Position]:
        """What every sink has, and was not taken before."""
        with self._lock:
            safe, self._safe = self._safe, []
        return safe


def _heard(positions: Sequence[Position]) -> None:
    """A source that does not ask is not told."""


def _nothing() -> None:
    """Nobody asked."""


def _unobserved(span: Span, context: Context) -> None:
    """Nobody asked."""


def _unlogged(span: Span) -> None:
    """The first sink's assembler has logged it."""


def _without_events(finish: Callable[[Span], Span | None], span: Span) -> Span | None:
    finished = finish(span)
    return finished and replace(finished, events=())


def _same(lane: Lane[Any]) -> Lane[Any]:
    return lane


def _place(position: Position) -> str:
    origin = position.origin
    if origin is None:
        return f"record {position.offset}"
    part = "/".join(map(str, origin)) if isinstance(origin, tuple) else origin
    return f"{part}, record {position.offset}"
