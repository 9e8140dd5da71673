"""Sources and sinks of the tests' own: ordinary ones, as users write them, that fail on order."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from constellation_otel.delivery import Batch, Position, Record
from constellation_otel.errors import UnavailableError
from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from constellation_otel.delivery import Rejection, Source, SourceItem

MS = 1_000_000
T0 = 1_795_465_363_577 * MS


def execution(number: int, *, fails: bool = False, start_ns: int = T0) -> list[Event]:
    """The events of an execution of one module, in order."""
    execution_id = UUID(int=number)
    module_id = UUID(int=number << 64 | 1)
    end: Event = ModuleCompleted(execution_id, module_id, "trim", 2.0, start_ns + 3 * MS)
    if fails:
        end = ModuleFailed(execution_id, module_id, "trim", ErrorInfo("ValueError", "bad"), start_ns + 3 * MS)
    return [
        ExecutionStarted(execution_id, f"dag-{number}", start_ns),
        ModuleStarted(execution_id, module_id, "trim", start_ns + MS),
        end,
        ExecutionCompleted(execution_id, f"dag-{number}", not fails, 4.0, start_ns + 4 * MS),
    ]


def records(events: Sequence[Event], origin: object = None, first: int = 0) -> list[Record]:
    return [Record(event, Position(origin, first + number)) for number, event in enumerate(events)]


class ListSink:
    """Keeps what it is sent; each call first does the next thing that was ordered.

    Attributes:
        items: What was taken.
        calls: How many items each call had.
        faults: What the next calls do instead: an exception to raise, rejections to return
            (what is not rejected is taken), or a function to call with the items.
    """

    def __init__(
        self,
        *faults: Any,
        takes: Literal["events", "spans"] = "events",
        name: str = "list",
        max_batch: int = 512,
    ) -> None:
        self.name = name
        self.takes: Literal["events", "spans"] = takes
        self.max_batch = max_batch
        self.items: list[Any] = []
        self.calls: list[int] = []
        self.timeouts: list[float] = []
        self.faults: list[Any] = list(faults)
        self.closed = 0

    def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
        self.calls.append(len(items))
        self.timeouts.append(timeout)
        fault = self.faults.pop(0) if self.faults else []
        if callable(fault):
            fault = fault(items) or []
        if isinstance(fault, BaseException):
            delivered = fault.delivered if isinstance(fault, UnavailableError) else frozenset()
            self.items += [item for index, item in enumerate(items) if index in delivered]
            raise fault
        refused = {rejection.index for rejection in fault}
        self.items += [item for index, item in enumerate(items) if index not in refused]
        return list(fault)

    def close(self) -> None:
        self.closed += 1


class ListSource:
    """Gives batches in order, then ends, or waits to be closed.

    Attributes:
        acknowledged: What was said to be safe, in order.
        faults: What the next reads raise instead.
    """

    def __init__(
        self,
        *batches: Sequence[SourceItem],
        ends: bool = True,
        is_durable: bool = True,
        is_ordered: bool = True,
        keep_alive: Callable[[], None] | None = None,
    ) -> None:
        self.name = "list://"
        self.is_ordered = is_ordered
        self.is_durable = is_durable
        self.faults: list[Exception] = []
        self.acknowledge_faults: list[Exception] = []
        self.acknowledged: list[Position] = []
        self.closed = threading.Event()
        self._batches = list(batches)
        self._ends = ends
        if keep_alive is not None:
            self.keep_alive = keep_alive

    @property
    def has_ended(self) -> bool:
        return self._ends and not self._batches

    def put(self, batch: Sequence[SourceItem]) -> None:
        self._batches.append(batch)

    def read(self, timeout: float) -> Sequence[SourceItem]:
        if self.faults:
            raise self.faults.pop(0)
        if self._batches:
            return self._batches.pop(0)
        if not self._ends:
            self.closed.wait(min(timeout, 0.01))
        return ()

    def acknowledge(self, positions: Sequence[Position]) -> None:
        if self.acknowledge_faults:
            raise self.acknowledge_faults.pop(0)
        self.acknowledged += positions

    def close(self) -> None:
        self.closed.set()


def flat(items: Iterable[SourceItem]) -> list[Any]:
    """What a source gave, with a record for each event of a batch."""
    records: list[Any] = []
    for item in items:
        if isinstance(item, Batch):
            for event, offset in zip(item.events, item.offsets, strict=True):
                corrected = tuple(reason for where, reason in item.corrected if where == offset)
                records.append(Record(event, Position(item.origin, offset), corrected))
        else:
            records.append(item)
    return records


def read_all(source: Source) -> list[Any]:
    """What a source gives until it has ended, a record for each event; closes it."""
    items: list[Any] = []
    while not source.has_ended:
        items += flat(source.read(10))
    source.close()
    return items
