"""The time that passes for what is open: that of the events on a replay, and one that can be stopped otherwise."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

__all__ = ["PausableClock", "Watermark"]

_WINDOW: Final = 64
"""Records that have to agree that it is later, before a :class:`Watermark` believes it."""


class Watermark:
    """The time of a replay: what the events say, and not the wall.

    It is the earliest timestamp of the last 64 records, and never goes back: neither one
    event from the future nor an engine whose clock is an hour ahead of the others' makes
    everything else look as if it had been silent since. Of the first 64 it is the median.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._first: list[int] = []
        # those of the last 64 that may become the earliest, with their numbers, ascending
        self._earliest: deque[tuple[int, int]] = deque()
        self._now_ns = 0

    def __call__(self) -> int:
        """Nanoseconds."""
        return self._now_ns

    def see(self, timestamp_ns: int) -> int:
        """Takes note of a record's timestamp; the time as it is then."""
        seen = self._seen = self._seen + 1
        earliest = self._earliest
        while earliest and earliest[-1][0] >= timestamp_ns:
            earliest.pop()
        earliest.append((timestamp_ns, seen))
        if earliest[0][1] <= seen - _WINDOW:
            earliest.popleft()
        if seen < _WINDOW:
            self._first.append(timestamp_ns)
            if timestamp_ns <= self._now_ns:
                return self._now_ns
            agreed_ns = sorted(self._first)[(seen - 1) // 2]
        else:
            agreed_ns = earliest[0][0]
        self._now_ns = max(self._now_ns, agreed_ns)
        return self._now_ns


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
