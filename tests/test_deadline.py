"""Deadlines: any float is a timeout, and what is left is one that every wait takes."""

from __future__ import annotations

import math
import threading
import time

import pytest

from constellation_otel._deadline import deadline_of, seconds_left


@pytest.mark.parametrize("timeout", [0, 0.0, -0.0, -1, -math.inf, math.nan])
def test_no_time_is_left_of_what_is_no_timeout(timeout: float) -> None:
    assert seconds_left(deadline_of(timeout)) == 0.0


@pytest.mark.parametrize("timeout", [5, 0.5, 86_400.0])
def test_a_deadline_is_as_far_away_as_its_timeout(timeout: float) -> None:
    before = time.monotonic()
    deadline = deadline_of(timeout)
    assert before + timeout <= deadline <= time.monotonic() + timeout
    assert 0 < seconds_left(deadline) <= timeout


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 1e18])
def test_a_timeout_without_an_end_is_one_that_every_wait_takes(timeout: float) -> None:
    left = seconds_left(deadline_of(timeout))
    assert left > 1e8
    event = threading.Event()
    event.set()
    assert event.wait(left)
    lock = threading.Lock()
    assert lock.acquire(timeout=left)
