"""The habits of the engine's stand-in."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import requests

from constellation_otel.delivery import Position, Record
from engine_stand_in import EVENTS_PATH, EngineStandIn, Line, recorded
from support import DEADLINE
from transports.websocket.helpers import KEY, ONE, TWO, connected, read_count, started

if TYPE_CHECKING:
    from collections.abc import Callable

    from constellation_otel.transports.websocket.source import (
        WebSocketSource,
    )

    MakeSource = Callable[..., WebSocketSource]


def test_the_stand_in_answers_and_refuses_as_the_engine_does() -> None:
    with EngineStandIn(api_key=KEY) as engine:
        http = engine.url.replace("ws:", "http:")
        health = requests.get(f"{http}/health", timeout=DEADLINE)
        no_key = requests.get(http + EVENTS_PATH, timeout=DEADLINE)
        in_query = requests.get(f"{http}{EVENTS_PATH}?apiKey={KEY}", timeout=DEADLINE)
        ghost = requests.get(http + EVENTS_PATH, headers={"Authorization": f"Bearer {KEY}"}, timeout=DEADLINE)
        assert [answer.status_code for answer in (health, no_key, in_query, ghost)] == [200, 401, 401, 426]
        assert no_key.json() == in_query.json() == {"error": "Unauthorized"}
        assert (engine.refusals, engine.ghosts, engine.connections) == (2, 1, 0)


def test_the_stand_in_drops_past_a_clients_queue_and_tells_nobody(make_source: MakeSource) -> None:
    with EngineStandIn(gap=0.1, queue_size=5) as engine:
        source = connected(make_source(engine.url))
        assert engine.play(recorded()[:12], speed=math.inf) == 12
        assert 0 < engine.dropped <= 7
        assert len(read_count(source, 12 - engine.dropped)) == 12 - engine.dropped


def test_the_stand_in_sends_the_one_execution_that_was_asked_for(
    engine: EngineStandIn, make_source: MakeSource
) -> None:
    one = make_source(engine.url, execution_id=ONE)
    all_of_them = make_source(engine.url)
    connected(one)
    connected(all_of_them)
    engine.wait_for_clients(2)
    frame = {"type": "execution:start", "dagName": "dag-1", "timestamp": 1}
    assert [engine.send({**frame, "executionId": str(which)}) for which in (ONE, TWO)] == [2, 1]
    assert read_count(one, 1) == [Record(started(1), Position(None, 1))]
    assert read_count(all_of_them, 2) == [
        Record(started(1), Position(None, 1)),
        Record(started(1, TWO), Position(None, 2)),
    ]
    assert one.read(0.01) == []


def test_the_stand_in_plays_at_the_pace_of_the_recording_or_faster(
    engine: EngineStandIn, make_source: MakeSource
) -> None:
    source = connected(make_source(engine.url))
    lines = [Line(0, {"number": 1}), Line(400_000_000, {"number": 2})]
    before = time.monotonic()
    engine.play(lines, speed=2)
    assert time.monotonic() - before >= 0.2
    assert len(read_count(source, 2)) == 2
