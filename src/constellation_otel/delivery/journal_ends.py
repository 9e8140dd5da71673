"""The two ends of a journal: a sink that writes to it, and a source that reads what a sink has not acknowledged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from constellation_otel.delivery.contract import Batch, Rejection, Sink, Source, batches_of
from constellation_otel.errors import JournalError, MisconfiguredError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constellation_otel.delivery.contract import Position, Restarted, Store, Unreadable
    from constellation_otel.events import Event

__all__ = ["ReadingEnd", "WritingEnd"]

_MAX_BATCH = 4_096


class WritingEnd(Sink["Event | None"]):
    """Writes events to a journal that this process has; ``None`` stands for a restart of the engine.

    Args:
        store: The journal.
        on_written: Called with how many were written.
    """

    def __init__(self, store: Store, on_written: Callable[[int], None]) -> None:
        self._store = store
        self._on_written = on_written

    @property
    def name(self) -> str:
        return "journal"

    @property
    def max_batch(self) -> int:
        return _MAX_BATCH

    def send(self, items: Sequence[Event | None], timeout: float) -> Sequence[Rejection]:  # noqa: ARG002 - the journal has its own
        try:
            taken = self._store.append(items)
        except JournalError as error:
            raise MisconfiguredError(str(error)) from error
        if taken:
            self._on_written(taken)
        if taken < len(items):
            message = "the journal is full; check that the sinks take events, or allow it more bytes"
            raise UnavailableError(message, delivered=frozenset(range(taken)))
        return ()


class ReadingEnd(Source):
    """Reads what a journal that this process has keeps for one sink, and acknowledges for it.

    Args:
        store: The journal.
        sink: What it knows the sink by.

    Attributes:
        records: How many records were read.
        is_at_end: Whether there were no more when it was read last.
        is_closed: Whether the journal was closed, so that nothing can be read any more.
    """

    def __init__(self, store: Store, sink: str) -> None:
        self._store = store
        self._sink = sink
        self._after = -1
        self.records = 0
        self.is_at_end = False
        self.is_closed = False

    @property
    def name(self) -> str:
        return f"the journal for {self._sink}"

    def held(self) -> int:
        """How many events the sink has yet to acknowledge."""
        return self._store.held(self._sink)

    def read_some(self, limit: int) -> list[Batch | Unreadable | Restarted]:
        """Reads the next records, at most so many.

        Raises:
            UnavailableError: It cannot be read now.
            JournalError: It is closed.
        """
        # a journal revokes nothing
        items: list[Batch | Unreadable | Restarted] = batches_of(self._store.read(self._sink, self._after, limit))  # type: ignore[assignment]
        count = 0
        for item in items:
            if isinstance(item, Batch):
                count += len(item.events)
                self._after = item.offsets[-1]
            else:
                count += 1
                self._after = item.position.offset
        self.records += count
        self.is_at_end = count < limit
        return items

    def read(self, timeout: float) -> list[Batch | Unreadable | Restarted]:  # noqa: ARG002 - it has what it has
        return self.read_some(_MAX_BATCH)

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Says that the sink has these; when the journal is closed that is not heard, and they are sent again."""
        try:
            self._store.acknowledge(self._sink, positions)
        except JournalError:
            if not self.is_closed:
                raise

    def close(self) -> None:
        self.is_closed = True
