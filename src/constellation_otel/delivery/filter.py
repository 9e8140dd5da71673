"""Filters a source by execution id or start time."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from constellation_otel.delivery.contract import Batch, Forwarding, Revoked, batches_of
from constellation_otel.events import Event, ExecutionJoined, ExecutionStarted

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from uuid import UUID

    from constellation_otel.delivery.contract import AnySource, Position, SourceItem

__all__ = ["ExecutionFilter"]


class _Waiting(NamedTuple):
    """An event, where its source has it, and what of it could not be read."""

    event: Event
    origin: Hashable
    offset: int
    corrected: tuple[str, ...]


class ExecutionFilter(Forwarding):
    """Reads only some executions of a source.

    An execution is taken or left out as a whole, by the time of its start, so that no trace
    is cut at the edge of the window. Events that come before their execution's start wait
    for it. An execution whose start never comes is left out, unless only its id was asked
    for; so is one whose events find no room to wait.

    What is left out is not acknowledged: a journal keeps it for its next reader, and the
    offset that a Kafka consumer group commits stays before it.

    Args:
        source: All executions.
        since_ns: Epoch nanoseconds; executions that started earlier are left out.
        until_ns: Epoch nanoseconds; executions that started then or later are left out.
        execution_id: The only execution to be taken.
        acknowledges: Whether what is safe is acknowledged to the source; not in a dry run.
        max_waiting: Events that wait for their execution's start at most.
        max_known: Executions that are remembered as taken or left out at most; those that have
            been silent longest are forgotten.
    """

    def __init__(
        self,
        source: AnySource,
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
        execution_id: UUID | None = None,
        acknowledges: bool = True,
        max_waiting: int = 100_000,
        max_known: int = 1_000_000,
    ) -> None:
        super().__init__(source)
        self._since_ns = since_ns
        self._until_ns = until_ns
        self._execution_id = execution_id
        self._acknowledges = acknowledges
        self._max_waiting = max_waiting
        self._max_known = max_known
        self._is_taken: OrderedDict[UUID, bool] = OrderedDict()
        self._waiting: OrderedDict[UUID, list[_Waiting]] = OrderedDict()
        self._waiting_count = 0
        self._left = 0

    @property
    def left(self) -> int:
        """Events that were not taken; with those whose start has not come, when the source has ended."""
        return self._left + (self._waiting_count if self._source.has_ended else 0)

    def read(self, timeout: float) -> Sequence[SourceItem]:
        """Reads once from the source; what is taken of that may be nothing."""
        taken: list[SourceItem] = []
        for item in batches_of(self._source.read(timeout)):
            if isinstance(item, Batch):
                taken += self._select(item)
                continue
            if isinstance(item, Revoked):
                self._revoke(item)
            taken.append(item)
        return taken

    def acknowledge(self, positions: Sequence[Position]) -> None:
        if self._acknowledges:
            super().acknowledge(positions)

    @property
    def wants_acknowledgements(self) -> bool:
        return self._acknowledges and super().wants_acknowledgements

    def _select(self, batch: Batch) -> list[Batch]:
        """What is taken now that this has come."""
        is_windowed = self._since_ns is not None or self._until_ns is not None
        if not is_windowed and self._execution_id is None:
            return [batch]
        corrected: dict[int, tuple[str, ...]] = {}
        for offset, reason in batch.corrected:
            corrected[offset] = (*corrected.get(offset, ()), reason)
        selected: list[Batch] = []
        for event, offset in zip(batch.events, batch.offsets, strict=True):
            here = _Waiting(event, batch.origin, offset, corrected.get(offset, ()))
            if self._execution_id is not None and event.execution_id != self._execution_id:
                self._left += 1
            elif is_windowed:
                _put(self._select_by_start(here), selected)
            else:
                _put([here], selected)
        return selected

    def _select_by_start(self, here: _Waiting) -> list[_Waiting]:
        event = here.event
        execution_id = event.execution_id
        taken = [here]
        if execution_id in self._is_taken:
            self._is_taken.move_to_end(execution_id)
        elif isinstance(event, ExecutionStarted | ExecutionJoined):
            taken = [*self._no_longer_waiting(execution_id), here]
            self._decide(execution_id, is_taken=self._is_in_window(event))
        else:
            self._wait(here)
            return []
        if self._is_taken[execution_id]:
            return taken
        self._left += len(taken)
        return []

    def _is_in_window(self, start: ExecutionStarted | ExecutionJoined) -> bool:
        return (self._since_ns is None or start.timestamp_ns >= self._since_ns) and (
            self._until_ns is None or start.timestamp_ns < self._until_ns
        )

    def _decide(self, execution_id: UUID, *, is_taken: bool) -> None:
        self._is_taken[execution_id] = is_taken
        if len(self._is_taken) > self._max_known:
            self._is_taken.popitem(last=False)

    def _wait(self, here: _Waiting) -> None:
        self._waiting.setdefault(here.event.execution_id, []).append(here)
        self._waiting_count += 1
        if self._waiting_count > self._max_waiting:
            oldest = next(iter(self._waiting))
            self._left += len(self._no_longer_waiting(oldest))
            # its start would bring an execution without its beginning
            self._decide(oldest, is_taken=False)

    def _no_longer_waiting(self, execution_id: UUID) -> list[_Waiting]:
        waiting = self._waiting.pop(execution_id, [])
        self._waiting_count -= len(waiting)
        return waiting

    def _revoke(self, revoked: Revoked) -> None:
        """Whoever has that part now reads it again."""
        for execution_id, waiting in list(self._waiting.items()):
            kept = [it for it in waiting if it.origin != revoked.origin]
            self._waiting_count -= len(waiting) - len(kept)
            self._left += len(waiting) - len(kept)
            if kept:
                self._waiting[execution_id] = kept
            else:
                del self._waiting[execution_id]


def _put(taken: list[_Waiting], batches: list[Batch]) -> None:
    """Puts events at the end of batches, each in one of its own part."""
    for event, origin, offset, corrected in taken:
        if not batches or batches[-1].origin != origin:
            batches.append(Batch([], [], origin))
        batch = batches[-1]
        batch.events.append(event)
        batch.offsets.append(offset)  # type: ignore[attr-defined] # it is the list above
        batch.corrected += [(offset, reason) for reason in corrected]
