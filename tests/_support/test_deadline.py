"""Deadlines: any float is a timeout, and what is left is one that every wait takes."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.resources import Resource

from constellation_otel import Constellation, Dag, module
from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel.transports import sink_of, source_of
from deliveries import execution
from support import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path


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
    assert left > 1e6
    event = threading.Event()
    event.set()
    assert event.wait(left)
    lock = threading.Lock()
    assert lock.acquire(timeout=left)


ANY = pytest.mark.parametrize("timeout", [math.inf, 1e300, math.nan, -1.0])


@ANY
@pytest.mark.parametrize("url", ["jsonl:{0}/e.jsonl", "sqlite:///{0}/e.db", "journal:{0}/j.db", "ws://127.0.0.1:1"])
def test_a_source_is_read_for_any_time(url: str, timeout: float, tmp_path: Path) -> None:
    event = execution(1)[0]
    for made in ("jsonl:{0}/e.jsonl", "sqlite:///{0}/e.db"):
        sink = sink_of(made.format(tmp_path), resource=Resource({}))
        sink.send([event], DEADLINE)
        sink.close()
    source = source_of(url.format(tmp_path), follow=True)
    source.read(DEADLINE if "/e." in url else 0)
    closing = threading.Timer(0.05, source.close)
    closing.start()
    assert list(source.read(timeout)) == []
    closing.join(DEADLINE)


@ANY
@pytest.mark.parametrize("url", ["jsonl:{0}/e.jsonl", "sqlite:///{0}/e.db", "journal:{0}/j.db"])
def test_a_sink_is_sent_to_within_any_time(url: str, timeout: float, tmp_path: Path) -> None:
    sink = sink_of(url.format(tmp_path), resource=Resource({}))
    assert list(sink.send(execution(1), timeout)) == []
    sink.close()


@ANY
def test_an_execution_is_waited_for_for_any_time(timeout: float) -> None:
    gate = threading.Event()
    with Constellation() as constellation:
        started = constellation.start(Dag("p", [module(lambda: gate.wait(DEADLINE), name="waits")]), {})
        opening = threading.Timer(0.05, gate.set)
        opening.start()
        if timeout > 0:
            assert started.result(timeout) == {"waits": True}
        else:
            with pytest.raises(TimeoutError):
                started.result(timeout)
        opening.join(DEADLINE)
