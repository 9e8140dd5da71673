"""What the source says to the engine: the handshake, pings, and the goodbye."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from constellation_otel.delivery import Record
from constellation_otel.transports.websocket.source import (
    Timing,
    WebSocketSource,
)
from engine_stand_in import EVENTS_PATH, EngineStandIn, recorded
from support import DEADLINE, eventually
from transports.websocket.helpers import KEY, ONE, connected, frame_of, messages_of, read_count, started

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeSource = Callable[..., WebSocketSource]


def test_the_handshake_has_the_key_in_a_header(make_source: MakeSource) -> None:
    """It offers no extension."""
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


def test_it_writes_the_text_ping_and_is_not_cut(make_source: MakeSource) -> None:
    with EngineStandIn(idle_timeout=1) as engine:
        source = connected(make_source(engine.url, ping_s=0.02))
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


def test_a_pong_inside_a_frame_does_not_end_the_source(
    make_source: MakeSource,
) -> None:
    """The engine sends one between a frame's header and its payload to clients that ping by the protocol."""
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
        source = connected(make_source(engine.url, ping_s=0.002))
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


def test_silence_is_logged_one_time(
    engine: EngineStandIn, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    """And never where anything has come."""
    caplog.set_level(logging.INFO)
    silent = connected(make_source(engine.url, ping_s=0.02))
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
    other._timing = Timing(ping_s=0.02)
    engine.cut()
    engine.text_pings = 0
    engine.wait_until(lambda: engine.text_pings >= 3, "three pings on another connection, where nothing has come")
    assert hint not in messages_of(caplog, logging.INFO)
