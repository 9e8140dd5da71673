"""The engine's WebSocket as a source: against a stand-in on real sockets, and a real engine where there is one.

``CONSTELLATION_ENGINE_URL`` names one (with ``CONSTELLATION_API_KEY``, if it wants a key):
what holds for any engine then runs against that, too.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import math
import os
import runpy
import socket
import ssl
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock
from uuid import UUID

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from constellation_otel.delivery import Bridge, Position, Record, Restarted, Source, SourceItem, Unreadable
from constellation_otel.errors import ConfigurationError, MissingExtraError, UnavailableError
from constellation_otel.events import (
    ErrorInfo,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleFailed,
    ModuleStarted,
    decode_frame,
    encode_frame,
)
from constellation_otel.transports.journal import Journal
from constellation_otel.transports.websocket import connection as connection_module
from constellation_otel.transports.websocket import websocket
from constellation_otel.transports.websocket.connection import Connection, OversizeError, failure_of, is_answer
from constellation_otel.transports.websocket.connection import connected as connection_to
from constellation_otel.transports.websocket.websocket import (
    WebSocketCounters,
    WebSocketSource,
    WebSocketState,
    _Executions,
    _Loss,
)
from deliveries import ListSink
from engine_stand_in import EVENTS_PATH, EngineStandIn, Line, Request, recorded
from support import DEADLINE, eventually, self_signed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    MakeSource = Callable[..., WebSocketSource]

LOGGER = "constellation_otel.transports.websocket.websocket"
KEY = "a-key-of-twenty-four-chars"
SOON = 0.05
"""Seconds between tries, at most, so that tests need not wait."""
ONE = UUID("00000000-0000-4000-8000-000000000001")
TWO = UUID("00000000-0000-4000-8000-000000000002")
CONNECTED = WebSocketState("connected", None)
REAL_ENGINE = os.environ.get("CONSTELLATION_ENGINE_URL")
REAL_KEY = os.environ.get("CONSTELLATION_API_KEY", "")
ENGINES = ["stand-in", *([REAL_ENGINE] if REAL_ENGINE else [])]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSTELLATION_API_KEY", raising=False)


@pytest.fixture
def engine() -> Iterator[EngineStandIn]:
    with EngineStandIn() as engine:
        yield engine


@pytest.fixture(params=ENGINES)
def engine_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of each engine that there is."""
    if request.param != "stand-in":
        monkeypatch.setenv("CONSTELLATION_API_KEY", REAL_KEY)
        yield request.param
        return
    with EngineStandIn() as engine:
        yield engine.url


@pytest.fixture
def make_source() -> Iterator[MakeSource]:
    """Makes sources that are closed in the end; they try again soon."""
    made: list[WebSocketSource] = []

    def make(url: str, **options: Any) -> WebSocketSource:
        made.append(WebSocketSource(url, **{"max_reconnect_wait": SOON, **options}))
        return made[-1]

    yield make
    for source in made:
        source.close()


@pytest.fixture
def _one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """So long between tries that a test sees the first one only."""
    monkeypatch.setattr(websocket, "_FIRST_WAIT", 60.0)


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The files of a certificate and of its key."""
    return self_signed(tmp_path_factory.mktemp("tls"), "engine", "IP:127.0.0.1")


def server_tls(tls_files: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls_files)
    return context


def client_tls(tls_files: tuple[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=tls_files[0])


def connected(source: WebSocketSource) -> WebSocketSource:
    """The source, once it has a connection."""
    source.read(0)
    eventually(lambda: source.state == CONNECTED, f"{source.name} to be connected, but it is {source.state}")
    return source


def read_count(source: WebSocketSource, count: int) -> list[SourceItem]:
    """So many items of it."""
    items: list[SourceItem] = []
    end = time.monotonic() + DEADLINE
    while len(items) < count:
        assert time.monotonic() < end, f"{len(items)} of {count} items came from {source.name}: {source.counters}"
        items += source.read(0.1)
    return items


def reason_of(source: WebSocketSource) -> str:
    """Why there is no connection, once that is known."""
    source.read(0)
    eventually(lambda: source.state.reason is not None, f"a reason why {source.name} is not connected")
    return source.state.reason or ""


def started(number: int, execution_id: UUID = ONE) -> ExecutionStarted:
    return ExecutionStarted(execution_id, f"dag-{number}", number * 1_000_000)


def completed(execution_id: UUID) -> ExecutionCompleted:
    return ExecutionCompleted(execution_id, "dag-1", True, 5.0, 9_000_000)


def frame_of(event: ExecutionStarted) -> str:
    return encode_frame(event).decode()


def messages_of(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER and record.levelno == level]


# The URL, the key and the numbers


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("ws://engine", f"ws://engine:8080{EVENTS_PATH}"),
        ("wss://engine", f"wss://engine:443{EVENTS_PATH}"),
        ("ws://engine:1234/", f"ws://engine:1234{EVENTS_PATH}"),
        ("WS://Engine:80/behind/a proxy", "ws://engine:80/behind/a%20proxy"),
        ("ws://[::1]:9", f"ws://[::1]:9{EVENTS_PATH}"),
        ("ws://bücher.example", f"ws://xn--bcher-kva.example:8080{EVENTS_PATH}"),
        (f"ws://engine?executionId={ONE}", f"ws://engine:8080{EVENTS_PATH}?executionId={ONE}"),
        (f"ws://engine?executionId={ONE.hex}", f"ws://engine:8080{EVENTS_PATH}?executionId={ONE}"),
    ],
)
def test_a_url_is_completed_and_is_the_sources_name(url: str, name: str) -> None:
    source: Source = WebSocketSource(url)
    assert (source.name, source.is_ordered, source.is_durable, source.has_ended) == (name, False, False, False)


def test_an_execution_id_goes_into_the_query_and_may_be_given_twice_if_it_is_the_same() -> None:
    expected = f"ws://engine:8080{EVENTS_PATH}?executionId={ONE}"
    assert WebSocketSource("ws://engine", execution_id=ONE).name == expected
    assert WebSocketSource(f"ws://engine?executionId={ONE}", execution_id=ONE).name == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://engine", "the URL is no WebSocket's; give ws://host:port or wss://host:port"),
        ("engine:8080", "the URL is no WebSocket's; give ws://host:port or wss://host:port"),
        ("ws://:8080", "the URL is no WebSocket's; give ws://host:port or wss://host:port"),
        ("ws://engine:port", "the URL's host, port or path cannot be used; give ws://host:port or wss://host:port"),
        ("ws://[::1", "the URL's host, port or path cannot be used; give ws://host:port or wss://host:port"),
        ("ws://h:1/\udcff", "the URL's host, port or path cannot be used; give ws://host:port or wss://host:port"),
        ("ws://a..b", "the URL's host, port or path cannot be used; give ws://host:port or wss://host:port"),
        (
            "ws://me:secret@engine",
            "ws://engine: a URL may have no user or password; the key goes into api_key, or CONSTELLATION_API_KEY",
        ),
        (
            "ws://engine?token=secret",
            "ws://engine: a query may have executionId only; the key goes into api_key, or CONSTELLATION_API_KEY",
        ),
        ("ws://engine#there", "ws://engine: a URL may have no fragment (#…) here"),
        ("ws://engine?executionId=7", "ws://engine: executionId is no UUID"),
        (f"ws://engine?executionId={TWO}&executionId={ONE}", f"ws://engine: one executionId, not {ONE}, {TWO}"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        WebSocketSource(url)
    assert str(refused.value) == message


@settings(deadline=None)
@given(secret=st.text("abcdefghijkmnpqrstuvwxyz0123456789-_.~", min_size=12), port=st.sampled_from(["", ":1", ":x"]))
def test_no_message_has_what_a_url_hides(secret: str, port: str) -> None:
    secret = f"Qq{secret}"
    for url in (
        f"ws://{secret}@engine{port}",
        f"ws://me:{secret}@engine{port}",
        f"ws://engine{port}?{secret}",
        f"ws://engine{port}?apiKey={secret}",
        f"ws://engine{port}?executionId={secret}",
        f"ws://engine{port}#{secret}",
        f"ws://me:{secret}@[engine{port}",
    ):
        with pytest.raises(ConfigurationError) as refused:
            WebSocketSource(url)
        assert secret not in str(refused.value)
        assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize(
    "options",
    [
        {"max_held": 0},
        {"ping_interval": 0},
        {"ping_interval": 600},
        {"open_timeout": 0},
        {"open_timeout": math.inf},
        {"open_timeout": math.nan},
        {"max_reconnect_wait": 0},
        {"max_reconnect_wait": -1},
        {"max_reconnect_wait": math.inf},
        {"max_reconnect_wait": math.nan},
    ],
    ids=str,
)
def test_a_number_that_cannot_be_used_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="^" + next(iter(options)) + "="):
        WebSocketSource("ws://engine", **options)


def test_tls_settings_for_a_url_without_tls_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^ws://engine:8080/\S+: ssl is for wss://, and this is ws://$"):
        WebSocketSource("ws://engine", ssl=ssl.create_default_context())


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\r\nX-Evil: 1", f"Bearer {KEY}", f"{KEY}ü"])
def test_a_key_that_no_header_takes_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigurationError, match="the API key has spaces, line ends or other characters") as refused:
        WebSocketSource("ws://engine", api_key=key)
    assert KEY not in str(refused.value)


def test_a_short_key_is_warned_of_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    WebSocketSource("ws://engine", api_key=KEY[:23])
    assert messages_of(caplog, logging.WARNING) == [
        f"ws://engine:8080{EVENTS_PATH}: the API key has 23 characters, and an engine takes none below 24"
    ]


def test_without_the_library_the_import_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets", None)
    with pytest.raises(
        MissingExtraError,
        match=r"^websockets is not installed; run: pip install 'constellation-otel\[websocket\]'$",
    ):
        runpy.run_path(websocket.__file__)


# Any engine


def test_it_connects_with_the_first_read_and_leaves_at_once_when_closed(engine_url: str) -> None:
    source = WebSocketSource(engine_url)
    assert source.state == WebSocketState("connecting", None)
    assert source.trouble == "connecting"
    connected(source)
    before = time.monotonic()
    source.close()
    assert time.monotonic() - before < 2
    assert source.state == WebSocketState("closed", None)
    assert source.name not in {thread.name for thread in threading.enumerate()}


def test_its_text_pings_do_no_harm(engine_url: str, make_source: MakeSource) -> None:
    source = connected(make_source(engine_url, ping_interval=0.02))
    for _ in range(5):
        source.read(0.05)
    assert (source.state, source.trouble, source.counters.disconnections) == (CONNECTED, None, 0)


def test_it_can_ask_for_one_execution(engine_url: str, make_source: MakeSource) -> None:
    assert connected(make_source(engine_url, execution_id=ONE)).read(0.05) == []


# What comes


@pytest.mark.parametrize("name", ["engine-frames.jsonl", "engine-frames-50.jsonl", "engine-frames-50-lossy.jsonl"])
def test_every_recorded_frame_is_read_in_the_order_in_which_it_came(
    name: str, engine: EngineStandIn, make_source: MakeSource
) -> None:
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
        ('{"type":"module:paused","executionId":"' + str(ONE) + '","timestamp":1}', "'module:paused' is none of the"),
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


def test_text_that_is_no_utf_8_is_unreadable_and_the_connection_stays(
    engine: EngineStandIn, make_source: MakeSource
) -> None:
    source = connected(make_source(engine.url))
    engine.send_raw(b"\x81\x02\xff\xfe")
    (item,) = read_count(source, 1)
    assert isinstance(item, Unreadable)
    assert (item.data, source.state) == (b"\xff\xfe", CONNECTED)


def test_a_frame_in_fragments_is_one_frame_and_a_protocol_ping_between_them_is_answered(
    engine: EngineStandIn, make_source: MakeSource
) -> None:
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
    assert [len(source.read(0)) for _ in range(3)] == [512, 88, 0]


def test_what_finds_no_room_is_dropped_the_newest_first_counted_and_told(
    engine: EngineStandIn, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
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
    assert source.read(0) == [Record(started(1), Position(None, 1)), Record(started(2), Position(None, 2))]
    engine.send(frame_of(started(5)))
    assert read_count(source, 1) == [Record(started(5), Position(None, 5))]
    assert messages_of(caplog, logging.WARNING) == [
        f"{source.name}: 2 frames were dropped, since 2 others, or 67108864 bytes, waited; what reads them is too slow"
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
        Record(ModuleFailed(ONE, TWO, "trim", ErrorInfo(None, message), 1_000_000), Position(None, 1)),
        Record(started(1), Position(None, 2)),
    ]
    assert (source.counters.oversize, source.counters.disconnections) == (0, 0)


def test_of_a_message_of_more_than_16_mib_the_beginning_is_given_as_unreadable_and_the_next_one_is_read(
    engine: EngineStandIn, make_source: MakeSource
) -> None:
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


@pytest.mark.usefixtures("_one_try")
def test_a_message_of_more_than_64_mib_costs_the_connection_which_is_made_again_at_once(
    engine: EngineStandIn, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    source = connected(make_source(engine.url))
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


def test_an_engine_that_sends_nothing_but_such_messages_is_not_tried_at_once_for_ever() -> None:
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
    assert len(source.read(0)) == 4
    engine.send(frame_of(started(1)))
    assert read_count(source, 1) == [Record(started(1), Position(None, 7))]


def test_acknowledging_is_taken_and_does_nothing(engine: EngineStandIn, make_source: MakeSource) -> None:
    source = connected(make_source(engine.url))
    source.acknowledge([Position(None, 1)])
    assert source.state == CONNECTED


def test_a_read_that_waits_is_ended_by_closing_and_what_had_come_is_still_given(engine: EngineStandIn) -> None:
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
    assert [source.read(DEADLINE), source.read(DEADLINE)] == [[Record(started(1), Position(None, 1))], []]


def test_a_source_that_was_never_read_closes_and_then_connects_no_more(engine: EngineStandIn) -> None:
    source = WebSocketSource(engine.url)
    source.close()
    source.close()
    assert source.read(DEADLINE) == []
    assert (source.state, engine.requests) == (WebSocketState("closed", None), [])


# What it says to the engine


def test_the_handshake_has_the_key_in_a_header_and_offers_no_extension(make_source: MakeSource) -> None:
    with EngineStandIn(api_key=KEY) as engine:
        connected(make_source(engine.url, api_key=KEY, execution_id=ONE))
        (request,) = engine.requests
        assert (request.method, request.target) == ("GET", f"{EVENTS_PATH}?executionId={ONE}")
        assert sorted(request.headers) == [
            "authorization",
            "connection",
            "host",
            "sec-websocket-key",
            "sec-websocket-version",
            "upgrade",
            "user-agent",
        ]
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert request.headers["user-agent"].startswith("constellation-otel/")


@pytest.mark.parametrize(
    ("argument", "variable", "sent"),
    [
        (None, None, None),
        (None, "", None),
        (None, KEY, f"Bearer {KEY}"),
        ("", KEY, None),
        (KEY, "the-variable-is-not-asked-for", f"Bearer {KEY}"),
    ],
)
def test_the_key_is_the_arguments_or_else_the_variables(
    argument: str | None,
    variable: str | None,
    sent: str | None,
    engine: EngineStandIn,
    make_source: MakeSource,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is not None:
        monkeypatch.setenv("CONSTELLATION_API_KEY", variable)
    connected(make_source(engine.url, api_key=argument))
    assert engine.requests[0].headers.get("authorization") == sent


def test_the_key_is_in_no_log_at_any_level(make_source: MakeSource, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with EngineStandIn(api_key=KEY) as engine:
        source = connected(make_source(engine.url, api_key=KEY))
        engine.api_key = "another-key-than-the-source-has"
        engine.cut()
        eventually(lambda: source.state.status == "refused", "the key to be refused")
    assert KEY not in caplog.text + repr(source.state) + source.name


def test_it_writes_the_text_ping_and_so_is_not_cut_as_a_client_that_writes_nothing_is(make_source: MakeSource) -> None:
    with EngineStandIn(idle_timeout=1) as engine:
        source = connected(make_source(engine.url, ping_interval=0.02))
        engine.wait_until(lambda: engine.text_pings >= 60, "sixty pings, which take longer than that")
        assert (engine.idle_cuts, engine.protocol_pings, source.counters.disconnections) == (0, 0, 0)


def test_a_client_that_writes_nothing_is_cut_and_comes_again(make_source: MakeSource) -> None:
    with EngineStandIn(idle_timeout=0.05) as engine:
        source = make_source(engine.url)
        source.read(0)
        engine.wait_until(lambda: engine.idle_cuts >= 1 and engine.connections >= 2, "a cut, and another connection")
        eventually(lambda: source.counters.disconnections >= 1, "the source to have noticed")


def receive_and_ping(connection: ClientConnection) -> None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        connection.ping()
        with suppress(TimeoutError):
            connection.recv(0.002)


def test_a_pong_between_a_frames_header_and_payload_ends_a_client_that_pings_and_not_this_source(
    make_source: MakeSource,
) -> None:
    lines = recorded("engine-frames-50.jsonl")
    with EngineStandIn(gap=0.01) as engine:
        sock = socket.create_connection(("127.0.0.1", engine.port))
        with connect(engine.url + EVENTS_PATH, sock=sock, ping_interval=None, compression=None) as pinging:
            engine.play(lines[:100], speed=math.inf)
            with pytest.raises(ConnectionClosedError) as ended:
                receive_and_ping(pinging)
        sent = ended.value.sent
        assert sent is not None
        assert sent.code in {1002, 1007}
        assert engine.protocol_pings > 0
        engine.wait_until(lambda: engine.clients == 0, "that client to be gone")
        source = connected(make_source(engine.url, ping_interval=0.002))
        engine.play(lines[:100], speed=math.inf)
        items = read_count(source, 100)
        assert [item.position.offset for item in items if isinstance(item, Record)] == list(range(1, 101))
        assert (source.counters.disconnections, engine.text_pings > 10) == (0, True)


def test_it_says_goodbye_with_a_close_frame(engine: EngineStandIn) -> None:
    source = connected(WebSocketSource(engine.url))
    source.close()
    engine.wait_until(lambda: engine.goodbyes == [1000], "the close frame")


def test_an_engine_that_does_not_answer_the_goodbye_keeps_nobody(make_source: MakeSource) -> None:
    with EngineStandIn(deaf=True) as engine:
        source = connected(make_source(engine.url))
        before = time.monotonic()
        source.close()
        assert time.monotonic() - before < 2
        assert source.name not in {thread.name for thread in threading.enumerate()}


def test_silence_is_hinted_at_once_and_never_where_anything_has_come(
    engine: EngineStandIn, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    silent = connected(make_source(engine.url, ping_interval=0.02))
    hint = (
        f"{silent.name}: connected, and nothing has come for 0.02 s; nothing may have run,"
        " or the engine was started without withListener(ws.listener)"
    )
    engine.wait_until(lambda: engine.text_pings >= 3, "three pings")
    assert messages_of(caplog, logging.INFO).count(hint) == 1
    silent.close()
    caplog.clear()
    engine.wait_until(lambda: engine.clients == 0, "the first to be gone")
    other = make_source(engine.url)
    other.read(0)
    engine.send(frame_of(started(1)))
    read_count(other, 1)
    other._ping_interval = 0.02
    engine.cut()
    engine.text_pings = 0
    engine.wait_until(lambda: engine.text_pings >= 3, "three pings on another connection, where nothing has come")
    assert hint not in messages_of(caplog, logging.INFO)


# Connections that end


def cut(engine: EngineStandIn) -> None:
    engine.cut()


def reset(engine: EngineStandIn) -> None:
    engine.cut(reset=True)


def going_away(engine: EngineStandIn) -> None:
    engine.close(1001, "for lunch")


def reserved_opcode(engine: EngineStandIn) -> None:
    engine.send_raw(b"\x83\x00")


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (cut, "it was cut without a close frame (1006)"),
        (reset, "Connection reset by peer"),
        (going_away, "the engine closed it: 1001 (going away) for lunch"),
        (reserved_opcode, "what came breaks the protocol: invalid opcode"),
    ],
)
def test_a_connection_that_ends_is_told_of_and_made_anew(
    end: Callable[[EngineStandIn], None],
    reason: str,
    engine: EngineStandIn,
    make_source: MakeSource,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    source = connected(make_source(engine.url))
    engine.send(frame_of(started(1)))
    engine.flush()
    end(engine)
    eventually(lambda: source.counters.connections == 2, "another connection")
    engine.wait_for_clients()
    engine.send(frame_of(started(2)))
    assert read_count(source, 2) == [Record(started(1), Position(None, 1)), Record(started(2), Position(None, 2))]
    assert source.counters == WebSocketCounters(
        frames=2,
        delivered=2,
        dropped=0,
        oversize=0,
        held=0,
        connections=2,
        disconnections=1,
        failures=0,
        health_failures=0,
        connected=True,
    )
    (lost,) = messages_of(caplog, logging.WARNING)
    assert lost.startswith(f"{source.name}: lost the connection after ")
    assert f" s: {reason}; trying again in " in lost
    assert lost.endswith(
        "; what the engine sends meanwhile is lost, and executions that are open now will be abandoned unless their"
        " end still comes"
    )


def test_an_engine_that_is_killed_and_started_again_is_found_again(
    engine: EngineStandIn, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    source = connected(make_source(engine.url))
    engine.kill()
    eventually(lambda: source.counters.failures >= 2, "tries that fail")
    assert source.state == WebSocketState("connecting", "Connection refused")
    assert source.trouble == "Connection refused"
    assert source.read(0.01) == []
    assert any(
        " cannot connect: Connection refused; trying again in " in m for m in messages_of(caplog, logging.WARNING)
    )
    engine.start()
    engine.send(frame_of(started(1)))
    assert read_count(source, 2) == [Restarted(Position(None, 1)), Record(started(1), Position(None, 2))]


# An engine that was restarted


def restart(engine: EngineStandIn, source: WebSocketSource) -> None:
    """Restarts an engine, which the source notices."""
    before = source.counters
    engine.kill()
    eventually(lambda: source.counters.failures > before.failures, "a refusal")
    engine.start()
    eventually(lambda: source.counters.connections > before.connections, "another connection")


def test_a_connection_that_is_lost_and_made_again_without_a_refusal_is_no_restart(
    engine: EngineStandIn, make_source: MakeSource
) -> None:
    source = connected(make_source(engine.url))
    engine.cut()
    eventually(lambda: source.counters.connections == 2, "another connection")
    engine.send(frame_of(started(1)))
    assert read_count(source, 1) == [Record(started(1), Position(None, 1))]


def test_of_two_restarts_with_nothing_in_between_one_is_given_and_no_counter_has_it(
    engine: EngineStandIn, make_source: MakeSource
) -> None:
    source = connected(make_source(engine.url))
    for _ in range(2):
        restart(engine, source)
    engine.send(frame_of(started(1)))
    assert read_count(source, 2) == [Restarted(Position(None, 2)), Record(started(1), Position(None, 3))]
    counters = source.counters
    assert (counters.frames, counters.delivered, counters.held) == (1, 1, 0)


@pytest.mark.parametrize("with_journal", [True, False])
@pytest.mark.parametrize("case", ["global-time-out", "scheduler-queue-full"])
def test_executions_of_the_engine_that_can_never_end_are_abandoned_when_it_was_restarted(
    case: str, with_journal: bool, engine: EngineStandIn, make_source: MakeSource, tmp_path: Path
) -> None:
    """They once stayed open for an hour; what the new engine runs stays open, and has its own end."""
    frames = [frame for _, frame in recorded(f"{case}.jsonl")]
    executions = {UUID(frame["executionId"]) for frame in frames}
    sink = ListSink(takes="spans")
    journal = Journal(tmp_path / "journal.db", sinks=["list"]) if with_journal else None
    source = make_source(engine.url)
    bridge = Bridge(source, [sink], journal=journal, settle=0.1)
    thread = threading.Thread(target=bridge.run)
    thread.start()
    try:
        for frame in frames:
            engine.send(frame)
        eventually(lambda: bridge.report.events == len(frames), "the frames to be read")
        restart(engine, source)
        engine.send(frame_of(started(1)))
        eventually(lambda: bridge.report.abandoned == len(executions), "all of them to be abandoned")
        engine.send(encode_frame(completed(ONE)).decode())
        eventually(lambda: any(span.name == "dag-1" for span in sink.items), "the new engine's execution")
    finally:
        bridge.stop()
        thread.join(DEADLINE)
    reason = "constellation.abandoned.reason"
    found = {
        UUID(str(span.attributes["constellation.execution.id"])): span.attributes.get(reason)
        for span in sink.items
        if span.parent_span_id is None
    }
    assert found == {**dict.fromkeys(executions, "engine_restarted"), ONE: None}


# An engine that shuts down


@pytest.fixture
def _soon_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tests need not wait for the two seconds."""
    monkeypatch.setattr(websocket, "_QUIET", 0.05)


def health_checks(engine: EngineStandIn) -> list[Request]:
    return [request for request in list(engine.requests) if request.target == "/health"]


@pytest.mark.usefixtures("_soon_quiet")
def test_a_quiet_engine_is_asked_for_its_health_without_the_key_and_never_at_the_events_path(
    make_source: MakeSource,
) -> None:
    with EngineStandIn(api_key=KEY) as engine:
        source = connected(make_source(engine.url, api_key=KEY))
        engine.wait_until(lambda: len(health_checks(engine)) >= 3, "three questions for its health")
        for request in health_checks(engine):
            assert (request.method, request.headers["host"]) == ("GET", f"127.0.0.1:{engine.port}")
            assert sorted(request.headers) == ["connection", "host", "user-agent"]
        assert (engine.connections, engine.ghosts, source.state) == (1, 0, CONNECTED)
        assert (source.counters.health_failures, source.counters.disconnections) == (0, 0)


def test_an_engine_that_sends_is_not_asked(
    engine: EngineStandIn, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_QUIET", 0.5)
    source = connected(make_source(engine.url))
    engine.play([Line(number * 20_000_000, {"number": number}) for number in range(50)], speed=1)
    assert health_checks(engine) == []
    engine.wait_until(lambda: health_checks(engine), "a question, now that nothing comes")
    assert source.state == CONNECTED


@pytest.mark.usefixtures("_soon_quiet")
@pytest.mark.parametrize("status", [200, 401, 404, 503])
def test_an_answer_of_any_status_says_that_the_engine_is_there(
    status: int, engine: EngineStandIn, make_source: MakeSource
) -> None:
    engine.health = status
    source = connected(make_source(engine.url))
    engine.wait_until(lambda: len(health_checks(engine)) >= 2, "two questions")
    assert (source.state, source.counters.health_failures, source.counters.disconnections) == (CONNECTED, 0, 0)


@pytest.mark.usefixtures("_soon_quiet")
def test_an_engine_that_does_not_say_how_it_is_is_read_all_the_same(
    engine: EngineStandIn,
    make_source: MakeSource,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "HEALTH_TIMEOUT", 0.05)
    monkeypatch.setattr(websocket, "HEALTH_TIMEOUT", 0.05)
    engine.health = None
    source = connected(make_source(engine.url))
    eventually(lambda: source.counters.health_failures >= 2, "two questions without an answer")
    engine.send(frame_of(started(1)))
    assert read_count(source, 1) == [Record(started(1), Position(None, 1))]
    assert (source.state, source.counters.disconnections) == (CONNECTED, 0)
    reason = "the engine took more than 0.05 s to answer"
    assert messages_of(caplog, logging.WARNING) == [
        f"{source.name}: GET /health has no answer: {reason}; the events are read all the same"
    ]


@pytest.mark.usefixtures("_soon_quiet")
def test_a_question_that_is_hung_up_on_is_counted_and_no_shutdown(
    engine: EngineStandIn, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    engine.health = 0
    source = connected(make_source(engine.url))
    eventually(lambda: source.counters.health_failures >= 1, "a question that was hung up on")
    eventually(lambda: messages_of(caplog, logging.WARNING), "a warning")
    assert "GET /health has no answer: Connection reset by peer; " in messages_of(caplog, logging.WARNING)[0]
    assert source.state == CONNECTED


@pytest.mark.usefixtures("_soon_quiet")
def test_an_engine_that_shuts_down_is_let_go_at_once_where_nothing_runs(
    engine: EngineStandIn, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    """It once took the 30 s for which the engine waits for its clients."""
    caplog.set_level(logging.INFO)
    source = connected(make_source(engine.url))
    engine.play(recorded())
    read_count(source, len(recorded()))
    before = time.monotonic()
    engine.stop()
    assert time.monotonic() - before < 3
    assert engine.goodbyes == [1000]
    eventually(lambda: source.counters.failures, "tries to connect again")
    assert any("shutting down, and was let go so that it can end; trying again" in m for m in messages_of(caplog, 30))
    engine.start()
    connected(source)


@pytest.mark.usefixtures("_soon_quiet")
def test_what_still_comes_of_what_is_open_is_taken_before_the_engine_is_let_go(
    engine: EngineStandIn, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = connected(make_source(engine.url))
    engine.send(frame_of(started(1)))
    items = read_count(source, 1)
    engine.refuse()
    eventually(lambda: "it is shutting down; it is let go when" in caplog.text, "the shutdown to be seen")
    for frame in (encode_frame(ModuleStarted(ONE, TWO, "trim", 2_000_000)), encode_frame(completed(ONE))):
        engine.send(frame.decode())
    items += read_count(source, 2)
    assert [item.position.offset for item in items if isinstance(item, Record)] == [1, 2, 3]
    engine.wait_until(lambda: engine.clients == 0, "the source to let go")
    assert engine.goodbyes == [1000]


@pytest.mark.usefixtures("_soon_quiet")
def test_what_never_ends_is_waited_for_four_seconds_at_most(
    engine: EngineStandIn, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With shorter ones; an execution that the engine has timed out has no end."""
    monkeypatch.setattr(websocket, "_LAST_FRAMES", 0.3)
    source = connected(make_source(engine.url))
    for _, frame in recorded("global-time-out.jsonl"):
        engine.send(frame)
    read_count(source, 5)
    before = time.monotonic()
    engine.stop()
    assert 0.3 <= time.monotonic() - before < 3


@pytest.mark.usefixtures("_soon_quiet")
def test_frames_that_nobody_reads_are_waited_for_too(
    engine: EngineStandIn, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_LAST_FRAMES", 0.3)
    source = connected(make_source(engine.url))
    engine.send(frame_of(started(1)))
    engine.flush()
    before = time.monotonic()
    engine.stop()
    assert 0.3 <= time.monotonic() - before < 3
    assert read_count(source, 1) == [Record(started(1), Position(None, 1))]


@pytest.mark.usefixtures("_soon_quiet")
def test_a_wss_engine_that_shuts_down_is_let_go_too(make_source: MakeSource, tls_files: tuple[str, str]) -> None:
    with EngineStandIn(tls=server_tls(tls_files)) as engine:
        source = connected(make_source(engine.url, ssl=client_tls(tls_files)))
        engine.wait_until(lambda: health_checks(engine), "a question for its health")
        before = time.monotonic()
        engine.stop()
        assert time.monotonic() - before < 3
        assert (engine.goodbyes, source.counters.health_failures) == ([1000], 0)


@pytest.mark.usefixtures("_soon_quiet")
def test_what_nobody_expected_of_the_question_for_the_health_is_logged(
    engine: EngineStandIn,
    make_source: MakeSource,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("what nobody expected")

    monkeypatch.setattr(websocket, "ask_for_health", fail)
    source = connected(make_source(engine.url))
    eventually(lambda: source.counters.health_failures >= 2, "it is asked again")
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    why = "GET /health has no answer: an unexpected RuntimeError; the events are read all the same"
    assert record.getMessage() == f"{source.name}: {why}"
    assert record.exc_info is not None
    assert source.state == CONNECTED


def test_a_source_that_is_closed_while_it_asks_for_the_health_keeps_nobody(
    engine: EngineStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_QUIET", 0.01)
    engine.health = None
    source = connected(WebSocketSource(engine.url))
    engine.wait_until(lambda: health_checks(engine), "a question for its health")
    before = time.monotonic()
    source.close()
    assert time.monotonic() - before < 2
    assert source.name not in {thread.name for thread in threading.enumerate()}


@pytest.mark.usefixtures("_soon_quiet")
def test_an_engine_that_shuts_down_and_does_not_answer_the_goodbye_is_let_go(make_source: MakeSource) -> None:
    with EngineStandIn(deaf=True) as engine:
        connected(make_source(engine.url))
        before = time.monotonic()
        engine.stop()
        assert time.monotonic() - before < 4


def test_which_executions_are_open_is_known_in_whatever_order_frames_come() -> None:
    executions = _Executions()
    for event in (started(1), started(1, TWO), completed(ONE), ModuleStarted(ONE, TWO, "late", 3)):
        executions.see(Record(event, Position(None, 1)))
    assert executions.open == 1
    executions.see(Record(completed(TWO), Position(None, 1)))
    executions.see(Record(started(1, TWO), Position(None, 1)))
    assert executions.open == 0


def test_of_many_executions_the_first_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_MAX_FOLLOWED", 2)
    executions = _Executions()
    for number in range(5):
        executions.see(Record(started(1, UUID(int=number)), Position(None, 1)))
    assert executions.open == 2


# Connections that are refused, or do not come about


def test_a_refused_key_is_an_alarm_and_is_tried_until_somebody_mends_it(
    make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    with EngineStandIn(api_key="what-the-engine-wants-to-have") as engine:
        source = make_source(engine.url, api_key=KEY)
        source.read(0)
        eventually(lambda: source.counters.failures >= 3, "three refusals")
        why = "HTTP 401: the engine does not take this API key; mend api_key, or CONSTELLATION_API_KEY"
        assert source.state == WebSocketState("refused", why)
        (alarm,) = messages_of(caplog, logging.ERROR)
        assert alarm.startswith(f"{source.name}: cannot connect: {why}; trying again in ")
        engine.api_key = KEY
        connected(source)


@pytest.mark.usefixtures("_one_try")
@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [
        (
            401,
            "refused",
            "HTTP 401: the engine wants an API key, a read-only one suffices; set api_key, or CONSTELLATION_API_KEY",
        ),
        (
            403,
            "refused",
            "HTTP 403: the engine wants an API key, a read-only one suffices; set api_key, or CONSTELLATION_API_KEY",
        ),
        (
            404,
            "refused",
            "HTTP 404: nothing is at this path; is it an engine, started withExecutionWebSocket(ws)?",
        ),
        (
            426,
            "refused",
            "HTTP 426: it sees no WebSocket request; does a proxy in between drop the Upgrade header?",
        ),
        (
            301,
            "refused",
            "HTTP 301: it redirects, which is not followed, since the key would go along; give the engine's own URL",
        ),
        (200, "refused", "HTTP 200: it is no engine, or something in between answers for it"),
        (429, "connecting", "HTTP 429"),
        (503, "connecting", "HTTP 503"),
    ],
)
def test_a_refusal_says_what_it_means(
    status: int, expected: str, reason: str, engine: EngineStandIn, make_source: MakeSource
) -> None:
    engine.answer(status, "Location: ws://elsewhere/\r\n" if status == 301 else "")
    source = make_source(engine.url)
    assert (reason_of(source), source.state.status) == (reason, expected)
    assert source.counters.failures == 1


@pytest.mark.usefixtures("_one_try")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "the connection was closed during the handshake"),
        (b"SSH-2.0-OpenSSH_9\r\n", "the answer is no WebSocket's ("),
        (
            b"HTTP/1.1 101 Hm\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            "the answer is no WebSocket's (missing",
        ),
    ],
)
def test_an_answer_that_is_no_handshake_is_told_of(
    answer: bytes, reason: str, engine: EngineStandIn, make_source: MakeSource
) -> None:
    engine.answer_raw(answer)
    source = make_source(engine.url)
    assert reason_of(source).startswith(reason)
    assert source.state.status == "connecting"


def test_an_engine_that_does_not_answer_the_handshake_is_given_up_in_time(make_source: MakeSource) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = make_source(f"ws://127.0.0.1:{silent.getsockname()[1]}", open_timeout=0.05)
        assert reason_of(source) == "the engine took more than 0.05 s to answer"
        eventually(lambda: source.counters.failures >= 2, "another try")


def test_an_engine_whose_host_does_not_answer_is_given_up_in_time_and_keeps_nobody(make_source: MakeSource) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        try:
            # the queue of connections that nobody accepts; what comes after it gets no answer
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(address)
            source = make_source(f"ws://127.0.0.1:{address[1]}", open_timeout=0.1)
            assert reason_of(source) == "the engine took more than 0.1 s to answer"
            patient = make_source(f"ws://127.0.0.1:{address[1]}", open_timeout=DEADLINE)
            patient.read(0.05)
            before = time.monotonic()
            patient.close()
            assert time.monotonic() - before < 2
        finally:
            for filler in fillers:
                filler.close()


def test_a_name_that_cannot_be_resolved_is_told_of(make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    source = make_source("ws://engine.example")
    assert reason_of(source) == "the name 'engine.example' cannot be resolved: Name or service not known"


def test_a_name_that_is_still_being_resolved_keeps_closing_for_no_longer_than_promised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answered, addresses = threading.Event(), threading.Event(), socket.getaddrinfo("127.0.0.1", 9)

    def wait(*_: object, **__: object) -> list[Any]:
        asked.set()
        assert answered.wait(DEADLINE)
        return addresses

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    monkeypatch.setattr(websocket, "_CLOSE_TIMEOUT", 0.05)
    source = WebSocketSource("ws://engine.example")
    source.read(0)
    assert asked.wait(DEADLINE)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == source.name]
    try:
        source.close()
        assert thread.is_alive()
    finally:
        answered.set()
        thread.join(DEADLINE)
    assert not thread.is_alive()
    assert source.state == WebSocketState("closed", None)


def test_a_host_with_several_addresses_is_tried_at_each(
    engine: EngineStandIn, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: object, **__: object) -> list[Any]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        # nothing connects to the first, which says so at once
        return [(*kind, (host, engine.port)) for host in ("255.255.255.255", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    source = connected(make_source(f"ws://engine.example:{engine.port}"))
    assert (source.counters.failures, engine.requests[0].headers["host"]) == (0, f"engine.example:{engine.port}")


def test_its_socket_notices_a_far_side_that_has_vanished(engine: EngineStandIn, make_source: MakeSource) -> None:
    uri = make_source(engine.url)._uri
    options = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 120_000}
    there = {name: value for name, value in options.items() if hasattr(socket, name)}

    async def connect_and_ask() -> tuple[int, dict[str, int]]:
        async with connection_to(uri, None, {}, DEADLINE) as connection:
            sock = connection._writer.get_extra_info("socket")
            found = {name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in there}
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), found

    assert asyncio.run(connect_and_ask()) == (1, there)


def test_a_far_side_that_has_vanished_ends_the_connection_and_is_no_mere_silence(make_source: MakeSource) -> None:
    async def receive() -> None:
        reader = asyncio.StreamReader()
        # what the kernel says after the two minutes that no test waits
        reader.set_exception(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
        await Connection(make_source("ws://engine")._uri, reader, Mock(), DEADLINE).receive(DEADLINE)

    with pytest.raises(TimeoutError) as vanished:
        asyncio.run(receive())
    assert str(failure_of(vanished.value, "engine", DEADLINE)) == "Connection timed out"


def test_a_wss_engine_is_trusted_as_the_given_context_says(make_source: MakeSource, tls_files: tuple[str, str]) -> None:
    lines = recorded()
    with EngineStandIn(tls=server_tls(tls_files)) as engine:
        source = connected(make_source(engine.url, ssl=client_tls(tls_files)))
        engine.play(lines)
        assert len(read_count(source, len(lines))) == len(lines)
        source.close()
        engine.wait_until(lambda: engine.goodbyes == [1000], "the close frame")


def test_a_certificate_that_is_not_trusted_is_an_alarm_that_says_what_is_wrong(
    make_source: MakeSource, tls_files: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with EngineStandIn(tls=server_tls(tls_files)) as engine:
        source = make_source(engine.url)
        reason = reason_of(source).replace("-", " ")
        assert reason == "TLS: the engine's certificate is not accepted: self signed certificate"
        assert source.state.status == "refused"
        eventually(lambda: messages_of(caplog, logging.ERROR), "the alarm")


def test_tls_with_an_engine_that_speaks_none_is_told_of(engine: EngineStandIn, make_source: MakeSource) -> None:
    source = make_source(engine.url.replace("ws:", "wss:"))
    assert reason_of(source).startswith("TLS failed (")
    assert source.state.status == "connecting"


@pytest.mark.usefixtures("_one_try")
def test_an_engine_that_hangs_up_during_the_tls_handshake_is_told_of(make_source: MakeSource) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging_up:
        source = make_source(f"wss://127.0.0.1:{hanging_up.getsockname()[1]}")
        source.read(0)
        accepted, _ = hanging_up.accept()
        with accepted:
            accepted.settimeout(DEADLINE)
            assert accepted.recv(4096)
        assert reason_of(source) == "the connection was closed"
        assert source.state.status == "connecting"


def test_a_source_that_is_closed_during_the_tls_handshake_keeps_nobody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = WebSocketSource(f"wss://127.0.0.1:{silent.getsockname()[1]}", open_timeout=DEADLINE)
        source.read(0)
        accepted, _ = silent.accept()
        with accepted:
            accepted.settimeout(DEADLINE)
            assert accepted.recv(1) == b"\x16", "the first byte of a TLS handshake"
            before = time.monotonic()
            source.close()
            assert time.monotonic() - before < 2
            while accepted.recv(4096):
                pass


def test_what_nobody_expected_is_logged_and_does_not_end_the_source(
    make_source: MakeSource, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("what nobody expected")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    source = make_source("ws://engine.example")
    assert reason_of(source) == "an unexpected RuntimeError"
    eventually(lambda: source.counters.failures >= 2, "another try")
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == f"{source.name}: an unexpected error; the source goes on"
    assert record.exc_info is not None


def test_a_process_without_files_left_is_told_of_by_the_read_and_the_next_one_may_succeed(
    engine: EngineStandIn, make_source: MakeSource
) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    source = make_source(engine.url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", fail)
        with pytest.raises(UnavailableError) as unavailable:
            source.read(0)
    assert str(unavailable.value) == f"{source.name}: cannot connect: Too many open files"
    connected(source)


# How long it waits between tries


LOST = UnavailableError("lost")


def test_the_waits_begin_with_a_tenth_of_a_second_and_double_and_a_part_of_each_is_random() -> None:
    source = WebSocketSource("ws://engine")
    waits = [source._wait_after(_Loss(LOST, None, is_answered=True)) for _ in range(10)]
    most = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5]
    assert [limit / 2 <= wait <= limit for limit, wait in zip(most, waits, strict=True)] == [True] * 10
    assert len(set(waits)) == 10


def test_a_connection_that_lasted_longer_than_the_wait_before_it_starts_the_waits_again() -> None:
    source = WebSocketSource("ws://engine")
    waited = [source._wait_after(_Loss(LOST, None, is_answered=answered)) for answered in (True, False) * 6][-2]
    assert source._wait_after(_Loss(LOST, waited / 2, is_answered=True)) > 1
    for answered in (True, False):
        assert source._wait_after(_Loss(LOST, 31, is_answered=answered)) <= 0.1


@pytest.mark.parametrize(
    ("longest", "answered", "most"), [(None, True, 5), (None, False, 30), (1.5, True, 1.5), (1.5, False, 1.5)]
)
def test_how_long_it_waits_at_most_depends_on_whether_the_host_answers_unless_it_is_given(
    longest: float | None, answered: bool, most: float
) -> None:
    source = WebSocketSource("ws://engine", max_reconnect_wait=longest)
    waits = [source._wait_after(_Loss(LOST, None, is_answered=answered)) for _ in range(64)][16:]
    assert most / 2 <= min(waits) < max(waits) <= most


@pytest.mark.parametrize(
    ("error", "answered"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (ConnectionError(), True),
        (ssl.SSLError(1, "no TLS"), True),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), True),
        (TimeoutError(), False),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), False),
        (OSError(errno.EHOSTUNREACH, "No route to host"), False),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), False),
    ],
)
def test_a_refusal_is_an_answer_and_silence_is_none(error: OSError, answered: bool) -> None:
    assert is_answer(error) is answered


def test_an_engine_that_is_back_after_a_second_is_connected_to_within_another(engine: EngineStandIn) -> None:
    source = connected(WebSocketSource(engine.url))
    try:
        engine.kill()
        eventually(lambda: source.counters.failures >= 3, "three tries, which are refused")
        engine.start()
        before = time.monotonic()
        connected(source)
        assert time.monotonic() - before < 2
    finally:
        source.close()


# The stand-in's own habits


def test_the_stand_in_answers_health_and_refuses_as_the_engine_does() -> None:
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


def test_the_stand_in_sends_one_execution_to_a_client_that_asked_for_it(
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
