"""What tests of listeners and bridges need: endpoints and journals that fail on order, and quick tries."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from constellation_otel.delivery import Bridge, BridgeReport, Position, Record, Restarted, Retry
from constellation_otel.errors import UnavailableError
from deliveries import ListSink, execution
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from constellation_otel.delivery import BufferedListener, Counters, Unreadable
    from constellation_otel.events import Event

QUICK = Retry(first=0.02, longest=0.05, jitter=lambda: 1.0)
"""Of what is away and comes back soon."""
ALWAYS = 1_000_000
"""More calls than any test makes."""


class Gate:
    """A fault that ends when the gate is opened: of a sink's call, or of a journal's."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()

    def wait(self, _: object = None) -> None:
        """Does not return until then."""
        self.reached.set()
        assert self.opened.wait(DEADLINE)

    def fail(self, _: object = None) -> Exception | None:
        """Is away until then."""
        self.reached.set()
        return None if self.opened.is_set() else UnavailableError("away", retry_after=0.0)


def away(gate: Gate, **options: Any) -> ListSink:
    """A sink that is away until the gate is opened."""
    return ListSink(*itertools.repeat(gate.fail, 100_000), **options)


def events_of(*numbers: int) -> list[Event]:
    """The events of executions, one after the other."""
    return [event for number in numbers for event in execution(number)]


def span_names(sink: ListSink) -> list[str]:
    return [span.name for span in sink.items]


def reasons(sink: ListSink) -> dict[str, object]:
    """Why executions were abandoned, by the DAG's name, where they were."""
    reason = "constellation.abandoned.reason"
    return {span.name: span.attributes[reason] for span in sink.items if reason in span.attributes}


def accept(listener: BufferedListener[Any], *numbers: int) -> None:
    """Has a listener take the events of executions."""
    for event in events_of(*numbers):
        listener.accept(event)


def is_balanced(counters: Counters) -> bool:
    """Whether nothing is missing."""
    return counters.received == counters.delivered + counters.dropped + counters.rejected + counters.held


@contextmanager
def running(bridge: Bridge) -> Iterator[list[BridgeReport]]:
    """A bridge in a thread of its own, which is stopped at the end; then its report is in the list."""
    reports: list[BridgeReport] = []
    thread = threading.Thread(target=lambda: reports.append(bridge.run()))
    thread.start()
    try:
        yield reports
    finally:
        bridge.stop()
        thread.join(DEADLINE)
        assert not thread.is_alive()


@contextmanager
def taking_less_than(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


class MemoryStore:
    """A journal in memory, whose calls fail on order: for faults that a disk does not produce when asked.

    Attributes:
        items: What was appended; nothing is deleted, for the test to look at.
        room: Records that still find room.
        appends: What the next appends do instead: an exception to raise, how many to take, or
            a function that answers one of these for the events.
        reads: What the next reads raise, or call.
        acknowledge_fault: What an acknowledgement raises.
        acknowledged: The offsets that were acknowledged, in order.
        asked: How often something was appended.
        closed: How often it was closed.
    """

    def __init__(self, *events: Event) -> None:
        self._offsets = itertools.count()
        self.items: list[Record | Unreadable | Restarted] = []
        self.room = ALWAYS
        self.appends: list[Any] = []
        self.reads: list[Exception | Callable[[], None]] = []
        self.acknowledge_fault: Exception | None = None
        self.acknowledged: list[int] = []
        self.asked = self.closed = 0
        self.finishes: list[float] = []
        self._keep(events)

    @property
    def events(self) -> list[Event]:
        return [item.event for item in self.items if isinstance(item, Record)]

    def _keep(self, events: Sequence[Event | None]) -> None:
        for event in events:
            at = self.next_position()
            self.items.append(Restarted(at) if event is None else Record(event, at))

    def next_position(self) -> Position:
        return Position(None, next(self._offsets))

    def append(self, events: Sequence[Event | None]) -> int:
        self.asked += 1
        fault = self.appends.pop(0) if self.appends else None
        if callable(fault):
            fault = fault(events)
        if isinstance(fault, Exception):
            raise fault
        taken = min(self.room, len(events) if fault is None else min(int(fault), len(events)))
        self.room -= taken
        self._keep(events[:taken])
        return taken

    def read(self, sink: str, after: int, limit: int) -> list[Record | Unreadable | Restarted]:
        fault = self.reads.pop(0) if self.reads else None
        if isinstance(fault, Exception):
            raise fault
        if fault is not None:
            fault()
        return [item for item in list(self.items) if item.position.offset > after][:limit]

    def acknowledge(self, sink: str, positions: Sequence[Position]) -> None:
        if self.acknowledge_fault is not None:
            raise self.acknowledge_fault
        self.acknowledged += [position.offset for position in positions]

    def held(self, sink: str) -> int:
        return len(self.items)

    def finish_by(self, deadline: float) -> None:
        self.finishes.append(deadline)

    def close(self) -> None:
        self.closed += 1


def raises_for(*numbers: int) -> Callable[[Sequence[Event | None]], Exception | None]:
    """A defect of a journal: it raises for the events of some executions."""
    bad = {UUID(int=number) for number in numbers}

    def fault(events: Sequence[Event | None]) -> Exception | None:
        is_bad = any(event is not None and event.execution_id in bad for event in events)
        return ZeroDivisionError("a defect") if is_bad else None

    return fault
