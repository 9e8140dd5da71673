"""The time that passes for what is open: of a replay, and of a clock that can be stopped."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from constellation_otel import ExecutionStarted
from constellation_otel.delivery import Watermark
from constellation_otel.delivery.clocks import PausableClock
from deliveries import MS, T0
from sender_parts import batch
from support import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

HOUR_NS = 3_600_000 * MS


def seen(watermark: Watermark, timestamps: Sequence[int], size: int = 1_000) -> list[int]:
    """The time after each of the parts, of batches of a size."""
    times = []
    for first in range(0, len(timestamps), size):
        events = [ExecutionStarted(UUID(int=1), "d", timestamp_ns) for timestamp_ns in timestamps[first : first + size]]
        for part, offsets, times_of_part in watermark.parts_of(batch(events, first=first)):
            assert [event.timestamp_ns for event in part] == [timestamps[offset] for offset in offsets] == times_of_part
            before = watermark.now_ns
            is_looked_at = watermark.see(times_of_part)
            assert is_looked_at or watermark.now_ns == before
            times.append(watermark.now_ns)
    return times


def test_the_time_of_a_replay_is_the_earliest_of_64_records() -> None:
    """So that neither one from the future nor an engine whose clock is ahead of the others' decides anything."""
    watermark = Watermark()
    assert seen(watermark, range(T0, T0 + 130)) == [T0, T0 + 64, T0 + 64]
    assert seen(watermark, [T0 + HOUR_NS] * 63) == [T0 + 128, T0 + 128]
    assert seen(watermark, [T0 + HOUR_NS] * 63) == [T0 + HOUR_NS]


@given(st.lists(st.integers(1, 1_000), max_size=300), st.integers(1, 100))
def test_the_time_of_a_replay_never_goes_back(timestamps: list[int], size: int) -> None:
    """And how its records come in batches does not matter."""
    watermark = Watermark()
    times = seen(watermark, timestamps, size)
    assert times == sorted(times)
    earliest = [min(timestamps[first : first + 64]) for first in range(0, len(timestamps) - 63, 64)]
    assert watermark.now_ns == max(earliest, default=0)


def test_a_clock_that_is_stopped_goes_on_from_where_it_was() -> None:
    clock = PausableClock()
    first = clock()
    eventually(lambda: clock() > first, "time")
    clock.run(runs=False)
    stopped = clock()
    end = time.monotonic() + 0.02
    while time.monotonic() < end:
        assert clock() == stopped
    clock.run(runs=True)
    assert clock() - stopped < 20 * MS
    eventually(lambda: clock() > stopped, "time")
