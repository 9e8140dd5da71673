"""From batches of events to what a sink takes: the events themselves, or the spans that they make.

A transform remembers which records an item stands for, by their receipt: an event
for its batch, a span for all events of its execution.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from constellation_otel._support.log import RateLimitedLog
from constellation_otel.delivery.clocks import PausableClock, Watermark
from constellation_otel.delivery.receipt import Receipt
from constellation_otel.events import ExecutionStarted
from constellation_otel.traces import NOT_TRACED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Sequence
    from uuid import UUID

    from constellation_otel.delivery.contract import Batch, Position, SpanObserver
    from constellation_otel.events import Event
    from constellation_otel.traces import Assembler, Counters, Execution, Module, Reason, Sampling, Span

__all__ = ["Outbox", "PassThrough", "TraceAssembly", "Transform"]

_LOGGER: Final = logging.getLogger(__name__)

T = TypeVar("T")
"""Event or Span."""


class Outbox(Generic[T]):
    """What transforms put out, for a sender to send.

    Attributes:
        items: What the sink is to be sent, in order.
        receipts: The receipt of each.
        settled: Receipts of records of which nothing is sent, or not any more.
        faulty: Events for which a transform raised, with their position and the error.
    """

    def __init__(self) -> None:
        self.items: list[T] = []
        self.receipts: list[Receipt] = []
        self.settled: list[Receipt] = []
        self.faulty: list[tuple[object, Hashable, int, Exception]] = []


class Transform(Protocol[T]):
    """What a sender asks of a transform; see :class:`PassThrough` and :class:`TraceAssembly`."""

    tracks: bool
    """Whether it keeps the positions of what is open, so that this has to be bounded."""
    is_immediate: bool
    """Whether what is added is put out at once, so that only what waits to be sent has to be bounded."""

    @property
    def open_records(self) -> int:
        """How many records are held of which nothing, or not everything, was put out."""

    def run_clock(self, *, runs: bool) -> None:
        """Says whether time passes. It does not while records wait that should have been added by now."""

    def add(self, batch: Batch, out: Outbox[T]) -> None:
        """Takes in events."""

    def advance(self, out: Outbox[T]) -> None:
        """Lets time pass."""

    def wake_in(self) -> float | None:
        """Seconds until :meth:`advance` has something to do; ``None`` while nothing is open."""

    def make_room(self, out: Outbox[T]) -> bool:
        """Gives up what is open for longest without news; whether there was anything."""

    def finish(self, out: Outbox[T], *, abandon: bool) -> None:
        """The source has ended."""

    def restart(self, at: Position, out: Outbox[T]) -> None:
        """Gives up what is open and came before a position in its part, which is safe when that is."""

    def revoke(self, origin: Hashable) -> int:
        """Drops what is open of a part of the source; how many records that was."""


class PassThrough:
    """For sinks that take events: a batch is what it is.

    Args:
        tracks: Whether positions are kept, for a source that has to be told what is safe.
        keeps_restarts: Whether that the engine was restarted is an item, too: ``None``, as a
            journal writes it.
        kinds: The kinds of events that the sink takes; all of them where none are given.
    """

    open_records: Final = 0
    is_immediate = True

    def __init__(self, *, tracks: bool = True, keeps_restarts: bool = False, kinds: Collection[type] = ()) -> None:
        self.tracks = tracks
        self._kinds = frozenset(kinds)
        self._keeps_restarts = keeps_restarts

    def run_clock(self, *, runs: bool) -> None:
        """Nothing here goes by time."""

    def add(self, batch: Batch, out: Outbox[object]) -> None:
        count = len(batch.events)
        if not count:
            return
        offsets = list(batch.offsets) if self.tracks else []
        events = batch.events
        kinds = self._kinds
        if kinds:
            # a reader that matches on the six must not meet a seventh
            events = [event for event in events if type(event) in kinds]
        pending = len(events)
        receipt = Receipt(batch.origin, batch.offsets[-1], count, offsets, pending=pending, is_complete=True)
        out.items += events
        out.receipts += [receipt] * pending
        if not pending:
            out.settled.append(receipt)

    def advance(self, out: Outbox[object]) -> None:
        """Nothing here goes by time."""

    def wake_in(self) -> float | None:
        return None

    def make_room(self, out: Outbox[object]) -> bool:  # noqa: ARG002 - nothing is ever open here
        return False

    def finish(self, out: Outbox[object], *, abandon: bool) -> None:
        """Nothing is ever open here."""

    def restart(self, at: Position, out: Outbox[object]) -> None:
        receipt = Receipt(at.origin, at.offset, 0, [at.offset], is_complete=True)
        if self._keeps_restarts:
            receipt.pending = 1
            out.items.append(None)
            out.receipts.append(receipt)
        else:
            out.settled.append(receipt)

    def revoke(self, origin: Hashable) -> int:  # noqa: ARG002 - nothing is ever open here
        return 0


class TraceAssembly(Generic[T]):
    """For sinks that take spans: an assembler, and which records are in which trace.

    An open execution has its receipt as the assembler's note.

    Args:
        assembler: Owned by this from now on, with ``sampling``.
        sampling: What is decided on each execution.
        as_items: What the sink is sent for spans of one execution; called again for each one
            where it raises.
        observer: Sees every span, sent or not, before it is sent.
        watermark: The time of a replay; a monotonic clock where none is given.
        tracks: Whether positions are kept, for a source that has to be told what is safe.
    """

    is_immediate = False

    def __init__(
        self,
        assembler: Assembler,
        sampling: Sampling,
        as_items: Callable[[Sequence[Span]], Sequence[T]],
        *,
        observer: SpanObserver | None = None,
        watermark: Watermark | None = None,
        tracks: bool = True,
    ) -> None:
        self.tracks = tracks
        self._assembler = assembler
        self._sampling = sampling
        self._as_items = as_items
        self._observer = observer
        self._watermark = watermark
        self._clock = PausableClock()
        self._log = RateLimitedLog()
        # executions whose span was put out, and whose spans are not safe yet
        self._unsafe: OrderedDict[int, tuple[UUID, Receipt]] = OrderedDict()
        self._open_records = 0

    @property
    def counters(self) -> Counters:
        """The assembler's."""
        return self._assembler.counters

    @property
    def open_executions(self) -> int:
        """Executions that have started and not ended."""
        return self._assembler.open_executions

    @property
    def open_modules(self) -> int:
        """Modules that have started and not ended."""
        return self._assembler.open_modules

    @property
    def open_records(self) -> int:
        return self._open_records

    def run_clock(self, *, runs: bool) -> None:
        self._clock.run(runs=runs)

    def add(self, batch: Batch, out: Outbox[T]) -> None:
        watermark = self._watermark
        if watermark is None:
            self._add(batch.events, batch.offsets, batch.origin, [self._clock()] * len(batch.events), out)
            return
        # time passes after a number of records, so that how they came in batches does not matter
        for events, offsets, timestamps in watermark.parts_of(batch):
            # a replay is many records behind: what waits there does so from the event's own time on
            now_ns, times_ns = watermark.now_ns, timestamps
            if min(timestamps) < now_ns:
                times_ns = [max(timestamp_ns, now_ns) for timestamp_ns in timestamps]
            self._add(events, offsets, batch.origin, times_ns, out)
            if watermark.see(timestamps):
                self._advance(watermark.now_ns, out)

    def _add(
        self,
        events: Sequence[Event],
        offsets: Sequence[int],
        origin: Hashable,
        times_ns: Sequence[int],
        out: Outbox[T],
    ) -> None:
        assembler, max_open = self._assembler, self._assembler.max_open
        if len(offsets) != len(events):
            message = f"a batch has {len(events)} events and {len(offsets)} offsets; a source has to give one for each"
            raise ValueError(message)
        self._open_records += len(events)
        first = 0
        for execution, stop, spans in assembler.take(events, times_ns, offsets):
            # what raised, or is late, is one event
            if isinstance(spans, Exception):
                self._leave_out(execution, origin, offsets[first], out)
                out.faulty.append((events[first], origin, offsets[first], spans))
            elif execution is None:
                self._late(events[first], origin, offsets[first], out)
            else:
                self._note(execution, origin, offsets[first:stop])
                if spans or execution.is_over:
                    self._put_out(execution, spans, out)
                while assembler.held > max_open:
                    self.make_room(out)
            first = stop

    def _note(self, execution: Execution, origin: Hashable, offsets: Sequence[int]) -> None:
        """These records are of the execution."""
        receipt: Receipt | None = execution.note
        if receipt is None:
            receipt = execution.note = Receipt(origin, offsets[0], 0, [])
        if self.tracks:
            receipt.add(origin, offsets)
        else:
            receipt.count += len(offsets)
            if origin is None or origin == receipt.origin:
                receipt.last = offsets[-1]

    def advance(self, out: Outbox[T]) -> None:
        if self._watermark is None:
            self._advance(self._clock(), out)

    def wake_in(self) -> float | None:
        deadline_ns = self._assembler.deadline_ns
        if deadline_ns is None or self._watermark is not None:
            # the time of a replay passes with its records only
            return None
        return max(0.0, (deadline_ns - self._clock()) / 1e9)

    def make_room(self, out: Outbox[T]) -> bool:
        execution = self._assembler.next_to_evict()
        if execution is None:
            return False
        self._emit(execution, "capacity", out)
        return True

    def finish(self, out: Outbox[T], *, abandon: bool) -> None:
        for execution in self._assembler.to_finish(abandon=abandon):
            self._emit(execution, "closed", out)

    def restart(self, at: Position, out: Outbox[T]) -> None:
        after = Receipt(at.origin, at.offset, 0, [at.offset], is_complete=True)
        for execution in list(self._assembler.executions):
            receipt: Receipt = execution.note
            # of an execution in several parts, where it began
            if receipt.origin != at.origin or receipt.last >= at.offset or execution.end is not None:
                continue
            if not self._emit(execution, "engine_restarted", out):
                continue
            receipt.after = after
            after.pending += 1
        out.settled.append(after)

    def revoke(self, origin: Hashable) -> int:
        # an execution's records are in one part of a source, where it has parts
        revoked = 0
        for execution in list(self._assembler.executions):
            receipt: Receipt = execution.note
            if receipt.origin == origin:
                self._assembler.discard(execution)
                self._close(execution, receipt)
                revoked += receipt.count
        for key, (execution_id, receipt) in list(self._unsafe.items()):
            if receipt.pending and receipt.count and receipt.origin == origin:
                # its spans are sent, and stand for nothing: whoever reads its events again makes them again
                del self._unsafe[key]
                self._assembler.unsettle(execution_id)
                revoked += receipt.count
                receipt.count, receipt.offsets, receipt.others = 0, [], None
        return revoked

    def _advance(self, now_ns: int, out: Outbox[T]) -> None:
        for execution, reason, ended in self._assembler.due(now_ns):
            self._emit(execution, reason, out, ended)

    def _emit(
        self, execution: Execution, reason: Reason | None, out: Outbox[T], ended: list[Module] | None = None
    ) -> bool:
        """Puts out what is left of an execution, or modules that have ended; whether there is anything."""
        assembler = self._assembler
        try:
            spans = assembler.emit(execution, reason) if ended is None else assembler.emit_modules(execution, ended)
        except Exception as error:  # noqa: BLE001 - a defect, which must cost one execution and no more
            message = "no spans can be made of execution %s, and it is left out"
            self._log.write(_LOGGER, logging.ERROR, "emit", message, execution.execution_id, error=error)
            self._give_up(execution, out)
            return False
        self._put_out(execution, spans, out)
        return True

    def _leave_out(self, execution: Execution | None, origin: Hashable, offset: int, out: Outbox[T]) -> None:
        """A record for which the assembler raised is none of its execution's."""
        self._open_records -= 1
        if execution is None:
            return
        is_first = execution.note is None
        if is_first:
            execution.note = Receipt(origin, offset, 0, [])
        if is_first or not self._assembler.is_open(execution.execution_id):
            self._give_up(execution, out)

    def _give_up(self, execution: Execution, out: Outbox[T]) -> None:
        """An execution that the assembler lost by a defect is over: nothing more is made of its records."""
        receipt: Receipt = execution.note
        if self._assembler.is_open(execution.execution_id):
            self._assembler.discard(execution)
        self._close(execution, receipt)
        receipt.rejected, receipt.is_complete = receipt.count, True
        out.settled.append(receipt)

    def _late(self, event: Event, origin: Hashable, offset: int, out: Outbox[T]) -> None:
        """A record of an execution whose span was put out: safe when that is, and at once where that is."""
        execution_id = event.execution_id
        self._open_records -= 1
        if isinstance(event, ExecutionStarted):
            # it was decided on in its callback
            self._sampling.forget(execution_id)
        _, unsafe = self._unsafe.get(execution_id.int, (None, None))
        if unsafe is not None and unsafe.pending:
            unsafe.add(origin, [offset])
        else:
            out.settled.append(Receipt(origin, offset, 1, [offset] if self.tracks else [], is_complete=True))

    def _close(self, execution: Execution, receipt: Receipt) -> None:
        self._open_records -= receipt.count
        self._sampling.forget(execution.execution_id)

    def _put_out(self, execution: Execution, spans: Sequence[Span], out: Outbox[T]) -> None:
        receipt: Receipt = execution.note
        if self._observer is not None:
            self._observe(self._observer, execution, spans)
        try:
            items = self._as_items(spans) if spans else ()
        except Exception as error:  # noqa: BLE001 - a defect, which must cost one span and no more
            items = self._one_by_one(spans, receipt, error)
        receipt.pending += len(items)
        out.items += items
        out.receipts += [receipt] * len(items)
        if execution.is_over:
            self._close(execution, receipt)
            receipt.is_complete = True
            if not receipt.pending:
                out.settled.append(receipt)
            elif self.tracks:
                self._remember_unsafe(execution, receipt)

    def _one_by_one(self, spans: Sequence[Span], receipt: Receipt, error: Exception) -> list[T]:
        """What the sink is sent for each of some spans, which raised for all together."""
        items: list[T] = []
        message, is_found = "a span of execution %s cannot be sent, and is left out", False
        for span in spans:
            try:
                items += self._as_items([span])
            except Exception as raised:  # noqa: BLE001 - for this one
                self._log.write(_LOGGER, logging.ERROR, "item", message, span.execution_id, error=raised)
                receipt.rejected += 1
                is_found = True
        if not is_found:
            message = "spans of execution %s were made ready one by one, which failed for all together"
            self._log.write(_LOGGER, logging.ERROR, "items", message, spans[0].execution_id, error=error)
        return items

    def _observe(self, observer: SpanObserver, execution: Execution, spans: Sequence[Span]) -> None:
        decision = self._sampling.recall(execution.execution_id) or NOT_TRACED
        for span in spans:
            try:
                observer.observe(span, decision)
            except Exception as error:  # noqa: BLE001 - metrics and logs; the span is sent all the same
                message = "the span %s of execution %s is not in the metrics or logs"
                self._log.write(_LOGGER, logging.ERROR, "observe", message, span.name, span.execution_id, error=error)

    def _remember_unsafe(self, execution: Execution, receipt: Receipt) -> None:
        self._unsafe[execution.key] = (execution.execution_id, receipt)
        # the first ones have mostly become safe
        while self._unsafe and not next(iter(self._unsafe.values()))[1].pending:
            self._unsafe.popitem(last=False)
