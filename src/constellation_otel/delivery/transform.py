"""What stands between records and what a sink takes: nothing for events, the assembler for spans.

A stage turns records into parcels and remembers which records a parcel stands
for, so that a record is acknowledged when everything made of it is safe: an
event with itself, the events of an execution with the last of its spans.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar
from uuid import UUID

from msgspec import Struct

from constellation_otel._support.log import RateLimitedLog
from constellation_otel.delivery.contract import InMemory, Position, Record
from constellation_otel.traces import EXECUTION_ID, MODULE_NAME, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from constellation_otel.events import Event
    from constellation_otel.traces import Assembler, Counters

__all__ = ["AssemblyStage", "EventClock", "EventStage", "Group", "Parcel", "Stage"]

_LOGGER: Final = logging.getLogger(__name__)

T = TypeVar("T")
"""Event or Span."""

_WINDOW: Final = 64
"""Records that have to agree that it is later, before an :class:`EventClock` believes it."""


class Group(Struct):
    """Records that become safe together.

    Attributes:
        positions: Where their source has them.
        outstanding: Parcels made of them that are on their way.
        is_complete: Whether no more will be made of them.
        rejected: Parcels made of them that the far side has refused.
        is_safe: Whether they have been told to be safe.
    """

    positions: list[Position]
    outstanding: int = 0
    is_complete: bool = False
    rejected: int = 0
    is_safe: bool = False


class Parcel(Struct, Generic[T]):
    """What a sink is to be sent.

    Attributes:
        item: The event or the span; ``None`` where there is nothing to send and the group
            has only to be looked at: its events were late, or its trace is not sampled.
        group: The records that it stands for.
    """

    item: T | None
    group: Group


class Stage(Protocol[T]):
    """What a lane asks of a stage; see :class:`EventStage` and :class:`AssemblyStage`."""

    @property
    def open_records(self) -> int:
        """How many records are held of which nothing, or not everything, has left."""

    def run_clock(self, *, runs: bool) -> None:
        """Says whether time passes. It does not while records wait that should have been added by now."""

    def add(self, record: Record) -> Sequence[Parcel[T]]:
        """Takes in a record, whose event was validated; what is emitted by it."""

    def advance(self) -> Sequence[Parcel[T]]:
        """Lets time pass; what leaves by it."""

    def wake_in(self) -> float | None:
        """Seconds until :meth:`advance` has something to do; ``None`` while nothing is open."""

    def make_room(self) -> Sequence[Parcel[T]]:
        """Lets go of what is open for longest without news; what leaves by it."""

    def finish(self, *, abandon: bool) -> Sequence[Parcel[T]]:
        """The source has ended; what leaves by it."""

    def abandon(self, before: Position) -> Sequence[Parcel[T]]:
        """Lets go of what is open and came before a position in its part; what leaves by it."""

    def revoke(self, origin: Hashable) -> Sequence[Group]:
        """Drops what is open of a part of the source; the groups that are dropped."""


class EventStage:
    """For sinks that take events: each is a parcel of its own."""

    open_records: Final = 0

    def run_clock(self, *, runs: bool) -> None:
        """Nothing here goes by time."""

    def add(self, record: Record) -> Sequence[Parcel[Event]]:
        return (Parcel(record.event, Group([record.position], 1, is_complete=True)),)

    def advance(self) -> Sequence[Parcel[Event]]:
        return ()

    def wake_in(self) -> float | None:
        return None

    def make_room(self) -> Sequence[Parcel[Event]]:
        return ()

    def finish(self, *, abandon: bool) -> Sequence[Parcel[Event]]:  # noqa: ARG002 - nothing is ever open here
        return ()

    def abandon(self, before: Position) -> Sequence[Parcel[Event]]:  # noqa: ARG002 - nothing is ever open here
        return ()

    def revoke(self, origin: Hashable) -> Sequence[Group]:  # noqa: ARG002 - as above
        return ()


class EventClock:
    """The time of a replay: what the events say, and not the wall.

    It is the earliest timestamp of the last 64 records, and never goes back: neither one
    event from the future nor an engine whose clock is an hour ahead of the others' makes
    everything else look as if it had been silent since. Of the first 64 it is the median.
    """

    def __init__(self) -> None:
        self._window: deque[int] = deque(maxlen=_WINDOW)
        self._now_ns = 0

    def __call__(self) -> int:
        """Nanoseconds."""
        return self._now_ns

    def see(self, timestamp_ns: int) -> None:
        """Takes note of a record's timestamp."""
        self._window.append(timestamp_ns)
        if timestamp_ns > self._now_ns:
            is_full = len(self._window) == _WINDOW
            agreed_ns = min(self._window) if is_full else sorted(self._window)[(len(self._window) - 1) // 2]
            self._now_ns = max(self._now_ns, agreed_ns)


class AssemblyStage:
    """For sinks that take spans: an assembler, and which records are in which trace.

    Args:
        assembler: Owned by this from now on.
        finish_span: Has the last word on each span: what the sampler adds, or ``None`` for
            a span that is not to be sent. Called once for each, in order.
        clock: The time of a replay; a monotonic clock where none is given.
        forget: Called with an execution of which no span will come: its events were late, or
            somebody else has it.
    """

    def __init__(
        self,
        assembler: Assembler,
        finish_span: Callable[[Span], Span | None] = lambda span: span,
        clock: EventClock | None = None,
        forget: Callable[[UUID], object] = lambda execution_id: None,  # noqa: ARG005 - nobody asked
    ) -> None:
        self._assembler = assembler
        self._finish_span = finish_span
        self._event_clock = clock
        self._clock = clock or _StandingClock()
        self._forget = forget
        self._log = RateLimitedLog()
        self._groups: dict[UUID, Group] = {}
        # executions that have left, and whose spans are not safe yet
        self._unsafe: OrderedDict[UUID, Group] = OrderedDict()
        self._open_records = 0

    @property
    def counters(self) -> Counters:
        """The assembler's."""
        return self._assembler.counters

    @property
    def open_executions(self) -> int:
        """Executions that have started and not left."""
        return self._assembler.open_executions

    @property
    def open_modules(self) -> int:
        """Modules that have started and not ended."""
        return self._assembler.open_modules

    @property
    def open_records(self) -> int:
        return self._open_records

    def run_clock(self, *, runs: bool) -> None:
        if isinstance(self._clock, _StandingClock):
            self._clock.run(runs=runs)

    def add(self, record: Record) -> Sequence[Parcel[Span]]:
        event = record.event
        if self._event_clock is not None:
            self._event_clock.see(event.timestamp_ns)
        execution_id = event.execution_id
        group = self._groups.setdefault(execution_id, Group([]))
        group.positions.append(record.position)
        self._open_records += 1
        now_ns = self._clock()
        parcels = self._parcels(self._assembler.add(event, now_ns, record.position.offset))
        if not self._assembler.is_open(execution_id) and not group.is_complete:
            parcels.append(self._late(execution_id, group))
        if self._event_clock is not None:
            # at every record, so that how they came in batches does not matter
            parcels += self._parcels(self._assembler.advance(now_ns))
        return parcels

    def _late(self, execution_id: UUID, group: Group) -> Parcel[Span]:
        """What stands for a record whose execution has left: safe with that, and at once where that is."""
        del self._groups[execution_id]
        self._open_records -= len(group.positions)
        self._forget(execution_id)
        unsafe = self._unsafe.get(execution_id)
        if unsafe is not None and unsafe.outstanding:
            unsafe.positions += group.positions
            return Parcel(None, unsafe)
        group.is_complete = True
        return Parcel(None, group)

    def advance(self) -> Sequence[Parcel[Span]]:
        return self._parcels(self._assembler.advance(self._clock()))

    def wake_in(self) -> float | None:
        deadline_ns = self._assembler.deadline_ns
        if deadline_ns is None or self._event_clock is not None:
            # the time of a replay passes with its records only
            return None
        return max(0.0, (deadline_ns - self._clock()) / 1e9)

    def make_room(self) -> Sequence[Parcel[Span]]:
        return self._parcels(self._assembler.evict())

    def finish(self, *, abandon: bool) -> Sequence[Parcel[Span]]:
        parcels: list[Parcel[Span]] = []
        for execution_id in self._assembler.to_finish(abandon=abandon):
            group = self._groups[execution_id]
            on_their_way = group.outstanding
            try:
                parcels += self._parcels(self._assembler.finish_one(execution_id))
            except Exception as error:  # noqa: BLE001 - a defect; there is no later time for the other executions
                message = "execution %s cannot be finished, and is left out"
                self._log.write(_LOGGER, logging.ERROR, "finish", message, execution_id, error=error)
                self._assembler.discard(execution_id)
                self._forget(execution_id)
                if self._groups.pop(execution_id, None) is not None:
                    self._open_records -= len(group.positions)
                group.outstanding, group.rejected, group.is_complete = on_their_way, len(group.positions), True
                parcels.append(Parcel(None, group))
        return parcels

    def abandon(self, before: Position) -> Sequence[Parcel[Span]]:
        gone = []
        for execution_id, group in self._groups.items():
            last = group.positions[-1]
            # what a journal could not take has other offsets than what it has
            is_comparable = last.origin == before.origin and isinstance(last, InMemory) is isinstance(before, InMemory)
            if is_comparable and last.offset < before.offset:
                gone.append(execution_id)
        return self._parcels(self._assembler.abandon(gone))

    def revoke(self, origin: Hashable) -> Sequence[Group]:
        # an execution's records are in one part of a source, where it has parts
        revoked = [execution_id for execution_id, group in self._groups.items() if group.positions[0].origin == origin]
        groups = []
        for execution_id in revoked:
            self._assembler.discard(execution_id)
            self._forget(execution_id)
            group = self._groups.pop(execution_id)
            self._open_records -= len(group.positions)
            groups.append(group)
        for execution_id, group in list(self._unsafe.items()):
            if group.outstanding and group.positions and group.positions[0].origin == origin:
                # its spans go their way, and stand for nothing: who reads its events again makes them again
                del self._unsafe[execution_id]
                self._assembler.unsettle(execution_id)
                groups.append(Group(group.positions))
                group.positions = []
        return groups

    def _parcels(self, spans: Sequence[Span]) -> list[Parcel[Span]]:
        parcels: list[Parcel[Span]] = []
        for span in spans:
            execution_id = UUID(str(span.attributes[EXECUTION_ID]))
            group = self._groups[execution_id]
            is_last = MODULE_NAME not in span.attributes
            if is_last:
                # an execution's own span
                del self._groups[execution_id]
                self._open_records -= len(group.positions)
                group.is_complete = True
            finished = self._finish_span(span)
            if finished is not None:
                group.outstanding += 1
            if finished is not None or is_last:
                parcels.append(Parcel(finished, group))
            if is_last and group.outstanding:
                self._remember_unsafe(execution_id, group)
        return parcels

    def _remember_unsafe(self, execution_id: UUID, group: Group) -> None:
        self._unsafe[execution_id] = group
        # the first ones have mostly become safe
        while self._unsafe and not next(iter(self._unsafe.values())).outstanding:
            self._unsafe.popitem(last=False)


class _StandingClock:
    """A monotonic clock that can be made to stand still."""

    def __init__(self) -> None:
        self._now_ns = self._seen_ns = time.monotonic_ns()
        self._runs = True

    def __call__(self) -> int:
        """Nanoseconds."""
        real_ns = time.monotonic_ns()
        if self._runs:
            self._now_ns += real_ns - self._seen_ns
        self._seen_ns = real_ns
        return self._now_ns

    def run(self, *, runs: bool) -> None:
        """Lets it run from now on, or stand."""
        self()
        self._runs = runs
