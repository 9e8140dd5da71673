"""What comes from an engine: frames, their sizes, and closing."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from constellation_otel.delivery import Position, Record, Unreadable
from constellation_otel.events import (
    ErrorInfo,
    ModuleFailed,
    clean_message,
    decode_frame,
    encode_frame,
)
from constellation_otel.transports.websocket.connection import OversizeError
from constellation_otel.transports.websocket.source import (
    WebSocketCounters,
    WebSocketSource,
    WebSocketState,
    _Loss,
)
from deliveries import flat
from engine_stand_in import EngineStandIn, Line, recorded
from support import DEADLINE, eventually
from transports.websocket.helpers import (
    CONNECTED,
    ONE,
    ONE_TRY,
    TWO,
    connected,
    frame_of,
    messages_of,
    read_count,
    started,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    MakeSource = Callable[..., WebSocketSource]


REAL_ENGINE = os.environ.get("CONSTELLATION_ENGINE_URL")
REAL_KEY = os.environ.get("CONSTELLATION_API_KEY", "")
ENGINES = ["stand-in", *([REAL_ENGINE] if REAL_ENGINE else [])]


@pytest.fixture(params=ENGINES)
def engine_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of each engine that there is."""
    if request.param != "stand-in":
        monkeypatch.setenv("CONSTELLATION_API_KEY", REAL_KEY)
        yield request.param
        return
    with EngineStandIn() as engine:
        yield engine.url


def test_it_connects_with_the_first_read(engine_url: str) -> None:
    """It disconnects at once when closed."""
    source = WebSocketSource(engine_url)
    assert source.state == WebSocketState("connecting", None)
    assert source.last_error == "connecting"
    connected(source)
    before = time.monotonic()
    source.close()
    assert time.monotonic() - before < 2
    assert source.state == WebSocketState("closed", None)
    assert source.name not in {thread.name for thread in threading.enumerate()}


def test_its_text_pings_do_no_harm(engine_url: str, make_source: MakeSource) -> None:
    source = connected(make_source(engine_url, ping_s=0.02))
    for _ in range(5):
        source.read(0.05)
    assert (source.state, source.last_error, source.counters.disconnections) == (CONNECTED, None, 0)


def test_it_can_ask_for_one_execution(engine_url: str, make_source: MakeSource) -> None:
    assert connected(make_source(engine_url, execution_id=ONE)).read(0.05) == []


@pytest.mark.parametrize("name", ["engine-frames.jsonl", "engine-frames-50.jsonl", "engine-frames-50-lossy.jsonl"])
def test_every_recorded_frame_is_read_in_order(name: str, engine: EngineStandIn, make_source: MakeSource) -> None:
    lines = recorded(name)
    source = connected(make_source(engine.url))
    assert engine.play(lines) == len(lines)
    assert read_count(source, len(lines)) == [
        Record(decode_frame(json.dumps(line.frame)), Position(None, number)) for number, line in enumerate(lines, 1)
    ]
    assert source.counters == WebSocketCounters(
        frames=len(lines),
        delivered=len(lines),
        dropped=0,
        oversize=0,
        held=0,
        connections=1,
        disconnections=0,
        failures=0,
        health_failures=0,
        connected=True,
    )


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("ping", "not an event: JSON is malformed"),
        (
            '{"type":"module:paused","executionId":"' + str(ONE) + '","timestamp":1}',
            "'module:paused' is none that is known",
        ),
        (b'{"type":"execution:start"}', "a binary frame; the engine sends text"),
    ],
)
def test_what_is_no_event_is_unreadable_and_the_next_one_is_read(
    frame: str | bytes, reason: str, engine: EngineStandIn, make_source: MakeSource
) -> None:
    source = connected(make_source(engine.url))
    engine.send(frame)
    engine.send(frame_of(started(1)))
    unreadable, record = read_count(source, 2)
    assert isinstance(unreadable, Unreadable)
    data = frame if isinstance(frame, bytes) else frame.encode()
    assert (unreadable.data, unreadable.position) == (data, Position(None, 1))
    assert reason in unreadable.reason
    assert record == Record(started(1), Position(None, 2))


def test_text_that_is_not_utf_8_is_unreadable(engine: EngineStandIn, make_source: MakeSource) -> None:
    """The connection stays."""
    source = connected(make_source(engine.url))
    engine.send_raw(b"\x81\x02\xff\xfe")
    (item,) = read_count(source, 1)
    assert isinstance(item, Unreadable)
    assert (item.data, source.state) == (b"\xff\xfe", CONNECTED)


def test_a_frame_in_fragments_is_one_frame(engine: EngineStandIn, make_source: MakeSource) -> None:
    """A ping of the protocol between them is answered."""
    source = connected(make_source(engine.url))
    text = encode_frame(started(1))
    first, second, third = text[:10], text[10:20], text[20:]
    engine.send_raw(bytes([0x01, len(first)]) + first)
    engine.send_raw(b"\x89\x02hi" + bytes([0x00, len(second)]) + second)
    engine.send_raw(bytes([0x80, len(third)]) + third)
    assert read_count(source, 1) == [Record(started(1), Position(None, 1))]
    engine.wait_until(lambda: engine.pongs == [b"hi"], "the answer to the ping")


def test_a_read_gives_some_hundred_items_at_most(engine: EngineStandIn, make_source: MakeSource) -> None:
    source = connected(make_source(engine.url))
    engine.play([Line(0, {"number": number}) for number in range(600)])
    eventually(lambda: source.counters.held == 600, "all to have come")
    assert [len(flat(source.read(0))) for _ in range(3)] == [512, 88, 0]


def test_what_finds_no_room_is_dropped_counted_and_logged(
    engine: EngineStandIn, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest first."""
    source = connected(make_source(engine.url, max_held=2))
    for number in (1, 2, 3, 4):
        engine.send(frame_of(started(number)))
    eventually(lambda: source.counters.frames == 4, "all to have come")
    assert source.counters == WebSocketCounters(
        frames=4,
        delivered=0,
        dropped=2,
        oversize=0,
        held=2,
        connections=1,
        disconnections=0,
        failures=0,
        health_failures=0,
        connected=True,
    )
    assert source.dropped == 2
    assert flat(source.read(0)) == [Record(started(1), Position(None, 1)), Record(started(2), Position(None, 2))]
    engine.send(frame_of(started(5)))
    assert read_count(source, 1) == [Record(started(5), Position(None, 5))]
    assert messages_of(caplog, logging.WARNING) == [
        f"{source.name}: 2 frames were dropped, since 2 others, or 67108864 bytes, waited; their reader is too slow"
    ]
    counters = source.counters
    assert counters.frames == counters.delivered + counters.dropped + counters.held


def failed(message: str) -> dict[str, Any]:
    """The frame of a module that failed with a message."""
    fields = {"moduleId": str(TWO), "moduleName": "trim", "error": message, "timestamp": 1}
    return {"type": "module:failed", "executionId": str(ONE), **fields}


def test_the_message_of_a_failed_module_is_read_however_long(engine: EngineStandIn, make_source: MakeSource) -> None:
    """A frame of 16 MiB, which came as one of 1.2 MB did from the engine: it once cost the connection."""
    source = connected(make_source(engine.url))
    overhead = len(json.dumps(failed(""), separators=(",", ":")))
    message = "m" * (16 * 2**20 - overhead)
    engine.send(failed(message))
    engine.send(frame_of(started(1)))
    assert read_count(source, 2) == [
        Record(ModuleFailed(ONE, TWO, "trim", ErrorInfo(None, clean_message(message)), 1_000_000), Position(None, 1)),
        Record(started(1), Position(None, 2)),
    ]
    assert (source.counters.oversize, source.counters.disconnections) == (0, 0)


def test_a_message_of_more_than_16_mib_is_unreadable(engine: EngineStandIn, make_source: MakeSource) -> None:
    """Its beginning is given, and the next one is read."""
    source = connected(make_source(engine.url))
    engine.send("x" * (16 * 2**20 + 1))
    engine.send("y" * 64 * 2**20)
    engine.send(frame_of(started(1)))
    assert read_count(source, 3) == [
        Unreadable(b"x" * 65_536, "a message of 16777217 bytes; no more than 16777216 are read", Position(None, 1)),
        Unreadable(b"y" * 65_536, "a message of 67108864 bytes; no more than 16777216 are read", Position(None, 2)),
        Record(started(1), Position(None, 3)),
    ]
    assert source.counters == WebSocketCounters(
        frames=3,
        delivered=3,
        dropped=0,
        oversize=2,
        held=0,
        connections=1,
        disconnections=0,
        failures=0,
        health_failures=0,
        connected=True,
    )


def test_a_message_in_fragments_is_too_long_as_a_whole(engine: EngineStandIn, make_source: MakeSource) -> None:
    source = connected(make_source(engine.url))
    engine.send_raw(bytes([0x01, 127]) + (16 * 2**20).to_bytes(8) + b"x" * (16 * 2**20))
    engine.send_raw(b"\x00\x02yy" + b"\x80\x01z")
    reason = "a message of 16777219 bytes; no more than 16777216 are read"
    assert read_count(source, 1) == [Unreadable(b"x" * 65_536, reason, Position(None, 1))]
    assert source.counters.disconnections == 0


def test_a_message_of_more_than_64_mib_costs_the_connection(
    engine: EngineStandIn, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    """It is made again at once."""
    source = connected(make_source(engine.url, **ONE_TRY))
    engine.announce(64 * 2**20 + 1)
    eventually(lambda: source.counters.connections == 2, "another connection")
    engine.wait_for_clients()
    engine.send(frame_of(started(1)))
    reason = "a message has more than 67108864 bytes, the most that is received"
    assert read_count(source, 2) == [Unreadable(b"", reason, Position(None, 1)), Record(started(1), Position(None, 2))]
    counters = source.counters
    assert (counters.frames, counters.oversize, counters.disconnections, counters.connections) == (2, 1, 1, 2)
    (lost,) = messages_of(caplog, logging.WARNING)
    assert f" s: {reason}; trying again in 0.0 s; " in lost


def test_too_long_messages_alone_are_not_tried_at_once_for_ever() -> None:
    source = WebSocketSource("ws://engine")
    oversize = OversizeError("too long")
    assert source._wait_after(_Loss(oversize, 100, is_answered=True)) == 0
    assert source._wait_after(_Loss(oversize, 0.001, is_answered=True)) > 0
    assert source._wait_after(_Loss(oversize, 100, is_answered=True)) == 0


def test_what_waits_is_bounded_in_bytes_too(engine: EngineStandIn, make_source: MakeSource) -> None:
    source = connected(make_source(engine.url))
    for _ in range(5):
        engine.send("x" * 16 * 2**20)
    engine.send(frame_of(started(1)))
    eventually(lambda: source.counters.frames == 6, "all to have come")
    assert (source.counters.held, source.counters.dropped) == (4, 2)
    assert len(flat(source.read(0))) == 4
    engine.send(frame_of(started(1)))
    assert read_count(source, 1) == [Record(started(1), Position(None, 7))]


def test_closing_ends_a_read_that_waits(engine: EngineStandIn) -> None:
    """What had come is still given."""
    source = connected(WebSocketSource(engine.url))
    closing = threading.Timer(0.05, source.close)
    closing.start()
    try:
        before = time.monotonic()
        assert source.read(DEADLINE) == []
        assert time.monotonic() - before < DEADLINE / 2
    finally:
        closing.join()
    source = connected(WebSocketSource(engine.url))
    engine.send(frame_of(started(1)))
    eventually(lambda: source.counters.held == 1, "the frame to have come")
    source.close()
    assert [flat(source.read(DEADLINE)), source.read(DEADLINE)] == [[Record(started(1), Position(None, 1))], []]


def test_a_source_that_was_never_read_can_be_closed(engine: EngineStandIn) -> None:
    """It connects no more."""
    source = WebSocketSource(engine.url)
    source.close()
    source.close()
    assert source.read(DEADLINE) == []
    assert (source.state, engine.requests) == (WebSocketState("closed", None), [])
