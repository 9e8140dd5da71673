"""Some executions of a source, and not the others: by when they started, or by id."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from constellation_otel.delivery.contract import Record, Revoked
from constellation_otel.events import ExecutionStarted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from constellation_otel.delivery.contract import Position, Source, SourceItem

__all__ = ["DryRun", "Selection"]

_MAX_KNOWN: Final = 1_000_000
"""Executions whose fate is remembered, at most; those are forgotten that have been silent for longest."""
_MAX_WAITING: Final = 100_000
"""Events that wait for their execution's start, at most."""


class Selection:
    """A source of which only some executions are read; a :class:`~constellation_otel.delivery.contract.Source`.

    An execution is taken or left as a whole, by the time of its start, so that no trace is
    cut at the edge of the window. What comes before the start does is kept until it has
    come. An execution whose start never comes is left, unless its id is all that was asked
    for; so is one whose events find no more room to wait for it, a hundred thousand in all.

    What is left is not acknowledged: a journal keeps it for whoever reads it next, and the
    offset that a Kafka consumer group commits stays before it.

    Args:
        source: All executions.
        since_ns: Epoch nanoseconds; executions that started earlier are left.
        until_ns: Epoch nanoseconds; executions that started then or later are left.
        execution_id: The only execution to be taken.
    """

    def __init__(
        self,
        source: Source,
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
        execution_id: UUID | None = None,
    ) -> None:
        self._source = source
        self._since_ns = since_ns
        self._until_ns = until_ns
        self._execution_id = execution_id
        self._is_taken: OrderedDict[UUID, bool] = OrderedDict()
        self._waiting: OrderedDict[UUID, list[Record]] = OrderedDict()
        self._waiting_count = 0
        self._left = 0

    @property
    def left(self) -> int:
        """Events that were not taken; with those whose start has not come, when the source has ended."""
        return self._left + (self._waiting_count if self._source.has_ended else 0)

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def is_ordered(self) -> bool:
        return self._source.is_ordered

    @property
    def is_durable(self) -> bool:
        return self._source.is_durable

    @property
    def has_ended(self) -> bool:
        return self._source.has_ended

    def read(self, timeout: float) -> Sequence[SourceItem]:
        """Reads once from the source; what is taken of that may be nothing."""
        taken: list[SourceItem] = []
        for item in self._source.read(timeout):
            if isinstance(item, Record):
                taken += self._select(item)
                continue
            if isinstance(item, Revoked):
                self._revoke(item)
            taken.append(item)
        return taken

    @property
    def trouble(self) -> str | None:
        """Why the source gives nothing at the moment, where it says so."""
        trouble: str | None = getattr(self._source, "trouble", None)
        return trouble

    @property
    def fraction_read(self) -> float | None:
        """How much of the source has been read, where it says so."""
        fraction: float | None = getattr(self._source, "fraction_read", None)
        return fraction

    @property
    def dropped(self) -> int:
        """Events that the source had no room for, where it counts them."""
        dropped: int = getattr(self._source, "dropped", 0)
        return dropped

    @property
    def failed_acknowledgements(self) -> int:
        """Acknowledgements that the source could not write down, where it counts them."""
        failed: int = getattr(self._source, "failed_acknowledgements", 0)
        return failed

    def keep_alive(self) -> None:
        """Says that the reader lives and has no room, to a source that wants to know."""
        keep_alive: Callable[[], None] | None = getattr(self._source, "keep_alive", None)
        if keep_alive is not None:
            keep_alive()

    def acknowledge(self, positions: Sequence[Position]) -> None:
        self._source.acknowledge(positions)

    def close(self) -> None:
        self._source.close()

    def _select(self, record: Record) -> Sequence[Record]:
        """What is taken now that this has come."""
        execution_id = record.event.execution_id
        if self._execution_id is not None and execution_id != self._execution_id:
            self._left += 1
            return ()
        if self._since_ns is None and self._until_ns is None:
            return (record,)
        records: Sequence[Record] = (record,)
        if execution_id in self._is_taken:
            self._is_taken.move_to_end(execution_id)
        elif isinstance(record.event, ExecutionStarted):
            records = (*self._no_longer_waiting(execution_id), record)
            self._decide(execution_id, self._is_in_window(record.event))
        else:
            self._wait(record)
            return ()
        if self._is_taken[execution_id]:
            return records
        self._left += len(records)
        return ()

    def _is_in_window(self, start: ExecutionStarted) -> bool:
        return (self._since_ns is None or start.timestamp_ns >= self._since_ns) and (
            self._until_ns is None or start.timestamp_ns < self._until_ns
        )

    def _decide(self, execution_id: UUID, is_taken: bool) -> None:
        self._is_taken[execution_id] = is_taken
        if len(self._is_taken) > _MAX_KNOWN:
            self._is_taken.popitem(last=False)

    def _wait(self, record: Record) -> None:
        self._waiting.setdefault(record.event.execution_id, []).append(record)
        self._waiting_count += 1
        if self._waiting_count > _MAX_WAITING:
            oldest = next(iter(self._waiting))
            self._left += len(self._no_longer_waiting(oldest))
            # its start would bring an execution without its beginning
            self._decide(oldest, is_taken=False)

    def _no_longer_waiting(self, execution_id: UUID) -> list[Record]:
        waiting = self._waiting.pop(execution_id, [])
        self._waiting_count -= len(waiting)
        return waiting

    def _revoke(self, revoked: Revoked) -> None:
        """Whoever has that part now reads it again."""
        for execution_id, waiting in list(self._waiting.items()):
            kept = [record for record in waiting if record.position.origin != revoked.origin]
            self._waiting_count -= len(waiting) - len(kept)
            self._left += len(waiting) - len(kept)
            if kept:
                self._waiting[execution_id] = kept
            else:
                del self._waiting[execution_id]


class DryRun(Selection):
    """A selection that is only looked at: the source is not told what was read."""

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Nothing has been delivered."""
