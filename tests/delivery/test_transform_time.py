"""How time passes for what is assembled: by a clock that can be stopped, or by the records of a replay."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from constellation_otel.delivery import Watermark
from constellation_otel.delivery.transform import Outbox
from deliveries import MS, T0, execution
from sender_parts import added, assembly, batch, names
from support import UNWATCHED, eventually

if TYPE_CHECKING:
    from constellation_otel.events import Event

HOUR_NS = 3_600_000 * MS


def test_time_lets_spans_be_put_out_and_says_when_it_will() -> None:
    transform = assembly(settle=0.01)
    assert transform.wake_in() is None
    out = added(transform, batch(execution(1)))
    assert out.items == []
    wake_in = transform.wake_in()
    assert wake_in is not None
    assert 0 <= wake_in <= 0.01
    while len(out.items) < 2:
        transform.advance(out)
    assert names(out) == ["trim", "dag-1"]


def test_time_stands_still_while_records_wait_to_be_added() -> None:
    transform = assembly(settle=0.02)
    transform.run_clock(runs=False)
    out = added(transform, batch(execution(1)))
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        transform.advance(out)
        assert out.items == []
    transform.run_clock(runs=True)
    transform.advance(out)
    assert out.items == []

    def settles() -> bool:
        transform.advance(out)
        return bool(out.items)

    eventually(settles, "they settle")


def test_a_replay_gives_up_what_is_silent_by_its_records_only() -> None:
    transform = assembly(watermark=Watermark(), idle_timeout=60)
    # whether its clock runs says nothing there
    transform.run_clock(runs=False)
    out = added(transform, batch(execution(1)[:1]))
    for number in range(2, 20):
        added(transform, batch(execution(number, start_ns=T0 + 30_000 * MS)), out=out)
    assert transform.wake_in() is None
    transform.advance(out)
    assert "dag-1" not in names(out)
    much_later = [replace(event, timestamp_ns=T0 + 120_000 * MS) for event in execution(20)] * 40
    added(transform, batch(much_later), out=out)
    assert "dag-1" in names(out)


@pytest.mark.parametrize("settle", [0.0, 1.0])
@pytest.mark.parametrize("apart_h", [2, 25])
def test_a_replay_gives_up_nothing_that_goes_on(settle: float, apart_h: int) -> None:
    """However long nothing happened before: three executions at a time, which take turns, every hour or day."""
    events: list[Event] = []
    for number in range(100):
        three = [execution(3 * number + each, start_ns=T0 + number * apart_h * HOUR_NS) for each in (1, 2, 3)]
        # thirteen, so that it becomes later at each of them in turn
        events += [three[0][0], *(event for each in zip(*three, strict=True) for event in each)]
    transform = assembly(watermark=Watermark(), settle=settle)
    transform.finish(added(transform, batch(events)), abandon=False)
    counters = transform.counters
    assert (counters.executions, counters.spans) == (300, 600)
    assert (counters.abandoned, counters.late, counters.incomplete_modules) == (0, 0, 0)


def test_on_a_replay_a_span_waits_for_what_happened_shortly_before_it() -> None:
    """However little happens: the next record may be an hour later."""
    events: list[Event] = []
    for number in range(1, 100):
        start, started, completed, end = execution(number, start_ns=T0 + number * HOUR_NS)
        events += [start, completed, end, execution(1_000 + number, start_ns=T0 + number * HOUR_NS + 1)[0], started]
    transform = assembly(watermark=Watermark(), settle=1)
    transform.finish(added(transform, batch(events)), abandon=False)
    counters = transform.counters
    assert (counters.late, counters.incomplete_modules) == (0, 0)


def test_what_is_behind_the_time_of_a_replay_waits_from_that_time_on() -> None:
    """As an engine's events do whose clock is ten minutes behind the others'."""
    transform = assembly(watermark=Watermark(), idle_timeout=60, settle=1)
    others = [execution(number, start_ns=T0 + 600_000 * MS) for number in range(2, 42)]
    out = added(transform, batch([event for each in others for event in each]))
    start, started, completed, end = execution(1)
    added(transform, batch([start, completed, end, started]), out=out)
    transform.finish(out, abandon=False)
    counters = transform.counters
    assert (counters.executions, counters.late, counters.abandoned, counters.incomplete_modules) == (41, 0, 0, 0)


def test_an_event_from_the_future_hides_nothing_that_is_silent() -> None:
    """Nor what is open for too long."""
    for idle_timeout, max_age in ((60, 1e9), (1e9, 60)):
        transform = assembly(watermark=Watermark(), idle_timeout=idle_timeout, max_age=max_age)
        out = added(transform, batch(execution(1, start_ns=2**62)[:1] + execution(2)[:1]))
        later = [execution(number, start_ns=T0 + number * 1_000 * MS) for number in range(3, 200)]
        added(transform, batch([event for each in later for event in each]), out=out)
        assert "dag-2" in names(out)
        assert "dag-1" not in names(out)


@st.composite
def replays(draw: st.DrawFn) -> list[Event]:
    """Events of some executions over two minutes, in the order of their time."""
    numbers = draw(st.lists(st.integers(1, 6), min_size=1, max_size=200))
    pauses = draw(st.lists(st.integers(0, 40_000), min_size=len(numbers), max_size=len(numbers)))
    now_ns, events = T0, []
    for number, pause_ms in zip(numbers, pauses, strict=True):
        now_ns += pause_ms * MS
        event = draw(st.sampled_from(execution(number)))
        events.append(replace(event, timestamp_ns=now_ns))
    return events


@UNWATCHED
@given(replays(), st.sampled_from([0.0, 5.0]), st.integers(1, 40))
def test_how_records_come_in_batches_does_not_change_spans(events: list[Event], settle: float, size: int) -> None:
    def replayed(size: int) -> tuple[list[Any], list[int]]:
        transform, out = assembly(watermark=Watermark(), idle_timeout=60, settle=settle), Outbox[Any]()
        for first in range(0, len(events), size):
            added(transform, batch(events[first : first + size], first=first), out=out)
        transform.advance(out)
        transform.finish(out, abandon=True)
        return out.items, [receipt.count for receipt in out.receipts]

    assert replayed(size) == replayed(1)
