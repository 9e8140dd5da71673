"""The time that passes for what is open: that of the events on a replay, and one that can be stopped otherwise."""

from __future__ import annotations

import sys
import time
from operator import attrgetter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from constellation_otel.delivery.contract import Batch
    from constellation_otel.events import Event

__all__ = ["PausableClock", "Watermark"]

_NEVER: Final = sys.maxsize
_TIMESTAMP_NS: Final = attrgetter("timestamp_ns")
_BLOCK: Final = 64
"""Records that have to agree that it is later, before a :class:`Watermark` believes it."""


class Watermark:
    """The time of a replay: what the events say, and not the wall.

    With every 64th record it becomes the earliest timestamp of these 64, and it never goes back:
    neither one event from the future nor an engine whose clock is an hour ahead of the others' makes
    everything else look as if it had been silent since. Until the 64th it is 0.

    Attributes:
        now_ns: Nanoseconds.
    """

    def __init__(self) -> None:
        self.now_ns = 0
        self._earliest_ns = _NEVER
        self._left = _BLOCK

    def parts_of(self, batch: Batch) -> Iterator[tuple[Sequence[Event], Sequence[int], list[int]]]:
        """Cuts a batch where it becomes later: events, offsets, timestamps; :meth:`see` is called with these next."""
        start = 0
        while start < len(batch.events):
            stop = start + self._left
            events = batch.events[start:stop]
            yield events, batch.offsets[start:stop], [*map(_TIMESTAMP_NS, events)]
            start = stop

    def see(self, timestamps: Sequence[int]) -> bool:
        """Takes note of records; whether it may be later now."""
        self._left -= len(timestamps)
        self._earliest_ns = min(self._earliest_ns, *timestamps)
        if self._left:
            return False
        self.now_ns = max(self.now_ns, self._earliest_ns)
        self._earliest_ns, self._left = _NEVER, _BLOCK
        return True


class PausableClock:
    """A monotonic clock that can be stopped, in nanoseconds."""

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
        """Lets it run from now on, or stop."""
        self()
        self._runs = runs
