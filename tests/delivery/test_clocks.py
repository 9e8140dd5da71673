"""The time that passes for what is open: of a replay, and of a clock that can be stopped."""

from __future__ import annotations

import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from constellation_otel.delivery import Watermark
from constellation_otel.delivery.clocks import PausableClock
from deliveries import MS, T0
from support import eventually

HOUR_NS = 3_600_000 * MS


def test_the_time_of_a_replay_is_what_its_records_agree_on() -> None:
    """The median of the first ones: neither the one from the past nor the one from the future decides."""
    watermark = Watermark()
    assert watermark() == 0
    timestamps = (T0 - HOUR_NS, T0, T0 + 1, T0 + HOUR_NS, T0 + 2)
    assert [watermark.see(timestamp_ns) - T0 for timestamp_ns in timestamps] == [-HOUR_NS, -HOUR_NS, 0, 0, 1]
    assert watermark() == T0 + 1


def test_the_time_of_a_replay_is_the_earliest_of_64_records() -> None:
    """As soon as there are so many, so that an engine whose clock is ahead of the others' decides nothing."""
    watermark = Watermark()
    for timestamp_ns in range(T0, T0 + 140):
        watermark.see(timestamp_ns)
    assert watermark() == T0 + 139 - 63
    for ahead in range(64):
        before = watermark()
        watermark.see(T0 + HOUR_NS)
        assert watermark() == max(before, min(T0 + 77 + ahead, T0 + 139) if ahead < 63 else T0 + HOUR_NS)


@given(st.lists(st.integers(1, 1_000), max_size=300))
def test_the_time_of_a_replay_never_goes_back(timestamps: list[int]) -> None:
    watermark = Watermark()
    seen = [watermark.see(timestamp_ns) for timestamp_ns in timestamps]
    assert all(earlier <= later for earlier, later in pairwise(seen))
    for last, now_ns in enumerate(seen, 1):
        window = sorted(timestamps[max(0, last - 64) : last])
        agreed_ns = window[0] if last >= 64 else window[(last - 1) // 2]
        assert now_ns == max(agreed_ns, seen[last - 2] if last > 1 else 0)


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
