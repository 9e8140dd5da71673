"""Connections that are refused, or do not come about."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from constellation_otel.errors import UnavailableError
from constellation_otel.transports.websocket.connection import Connection, failure_of
from constellation_otel.transports.websocket.connection import connected as connection_to
from constellation_otel.transports.websocket.source import (
    Timing,
    WebSocketSource,
    WebSocketState,
)
from engine_stand_in import EngineStandIn, recorded
from support import DEADLINE, eventually
from transports.websocket.helpers import (
    KEY,
    ONE_TRY,
    client_tls,
    connected,
    messages_of,
    read_count,
    server_tls,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeSource = Callable[..., WebSocketSource]


def reason_of(source: WebSocketSource) -> str:
    """Why there is no connection, once that is known."""
    source.read(0)
    eventually(lambda: source.state.reason is not None, f"a reason why {source.name} is not connected")
    return source.state.reason or ""


def test_a_refused_key_is_an_alarm_and_is_tried_until_it_is_fixed(
    make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    with EngineStandIn(api_key="what-the-engine-wants-to-have") as engine:
        source = make_source(engine.url, api_key=KEY)
        source.read(0)
        eventually(lambda: source.counters.failures >= 3, "three refusals")
        why = "HTTP 401: the engine rejects this API key; fix api_key, or CONSTELLATION_API_KEY"
        assert source.state == WebSocketState("refused", why)
        (alarm,) = messages_of(caplog, logging.ERROR)
        assert alarm.startswith(f"{source.name}: cannot connect: {why}; trying again in ")
        engine.api_key = KEY
        connected(source)


@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [
        (
            401,
            "refused",
            "HTTP 401: the engine requires an API key, read-only is enough; set api_key, or CONSTELLATION_API_KEY",
        ),
        (
            403,
            "refused",
            "HTTP 403: the engine requires an API key, read-only is enough; set api_key, or CONSTELLATION_API_KEY",
        ),
        (
            404,
            "refused",
            "HTTP 404: nothing is at this path; is it an engine, started withExecutionWebSocket(ws)?",
        ),
        (
            426,
            "refused",
            "HTTP 426: it sees no WebSocket request; does a proxy drop the Upgrade header?",
        ),
        (
            301,
            "refused",
            "HTTP 301: it redirects, which is not followed, since the key would go along; give the engine's own URL",
        ),
        (200, "refused", "HTTP 200: it is not an engine, or a proxy answers in its place"),
        (429, "connecting", "HTTP 429"),
        (503, "connecting", "HTTP 503"),
    ],
)
def test_a_refusal_says_what_it_means(
    status: int, expected: str, reason: str, engine: EngineStandIn, make_source: MakeSource
) -> None:
    engine.answer(status, "Location: ws://elsewhere/\r\n" if status == 301 else "")
    source = make_source(engine.url, **ONE_TRY)
    assert (reason_of(source), source.state.status) == (reason, expected)
    assert source.counters.failures == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "the connection was closed during the handshake"),
        (b"SSH-2.0-OpenSSH_9\r\n", "the answer is not a WebSocket handshake ("),
        (
            b"HTTP/1.1 101 Hm\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            "the answer is not a WebSocket handshake (missing",
        ),
    ],
)
def test_an_answer_that_is_no_handshake_is_told_of(
    answer: bytes, reason: str, engine: EngineStandIn, make_source: MakeSource
) -> None:
    engine.answer_raw(answer)
    source = make_source(engine.url, **ONE_TRY)
    assert reason_of(source).startswith(reason)
    assert source.state.status == "connecting"


def test_a_handshake_without_an_answer_is_given_up_in_time(make_source: MakeSource) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = make_source(f"ws://127.0.0.1:{silent.getsockname()[1]}", open_s=0.05)
        assert reason_of(source) == "the engine took more than 0.05 s to answer"
        eventually(lambda: source.counters.failures >= 2, "another try")


def test_an_engine_whose_host_does_not_answer_is_given_up_in_time(make_source: MakeSource) -> None:
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
            source = make_source(f"ws://127.0.0.1:{address[1]}", open_s=0.1)
            assert reason_of(source) == "the engine took more than 0.1 s to answer"
            patient = make_source(f"ws://127.0.0.1:{address[1]}", open_s=DEADLINE)
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


def test_a_name_that_is_being_resolved_does_not_hold_up_closing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answered, addresses = threading.Event(), threading.Event(), socket.getaddrinfo("127.0.0.1", 9)

    def wait(*_: object, **__: object) -> list[Any]:
        asked.set()
        assert answered.wait(DEADLINE)
        return addresses

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    source = WebSocketSource("ws://engine.example", timing=Timing(close_s=0.05))
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


def test_its_socket_notices_a_peer_that_has_vanished(engine: EngineStandIn, make_source: MakeSource) -> None:
    uri = make_source(engine.url)._uri
    options = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 120_000}
    there = {name: value for name, value in options.items() if hasattr(socket, name)}

    async def connect_and_ask() -> tuple[int, dict[str, int]]:
        async with connection_to(uri, None, {}, DEADLINE) as connection:
            sock = connection._writer.get_extra_info("socket")
            found = {name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in there}
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), found

    assert asyncio.run(connect_and_ask()) == (1, there)


def test_a_peer_that_has_vanished_ends_the_connection(make_source: MakeSource) -> None:
    """It is not taken for silence."""

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


def test_a_certificate_that_is_not_trusted_is_an_alarm(
    make_source: MakeSource, tls_files: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """It says what is wrong."""
    with EngineStandIn(tls=server_tls(tls_files)) as engine:
        source = make_source(engine.url)
        reason = reason_of(source).replace("-", " ")
        assert reason.startswith("TLS: the engine's certificate is not accepted: self signed certificate; name its ")
        assert source.state.status == "refused"
        eventually(lambda: messages_of(caplog, logging.ERROR), "the alarm")


def test_tls_with_an_engine_that_speaks_none_is_told_of(engine: EngineStandIn, make_source: MakeSource) -> None:
    source = make_source(engine.url.replace("ws:", "wss:"))
    assert reason_of(source).startswith("TLS failed (")
    assert source.state.status == "connecting"


def test_a_hang_up_during_the_tls_handshake_is_unavailable(make_source: MakeSource) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging_up:
        source = make_source(f"wss://127.0.0.1:{hanging_up.getsockname()[1]}", **ONE_TRY)
        source.read(0)
        accepted, _ = hanging_up.accept()
        with accepted:
            accepted.settimeout(DEADLINE)
            assert accepted.recv(4096)
        assert reason_of(source) == "the connection was closed"
        assert source.state.status == "connecting"


def test_closing_during_the_tls_handshake_does_not_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = WebSocketSource(f"wss://127.0.0.1:{silent.getsockname()[1]}", timing=Timing(open_s=DEADLINE))
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


def test_an_unexpected_error_does_not_end_the_source(
    make_source: MakeSource, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("what nobody expected")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    source = make_source("ws://engine.example")
    assert reason_of(source) == "an unexpected RuntimeError"
    eventually(lambda: source.counters.failures >= 2, "another try")
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == f"{source.name}: an unexpected error; the source goes on"
    assert record.exc_info is not None


def test_a_process_without_files_left_fails_the_read(engine: EngineStandIn, make_source: MakeSource) -> None:
    """The next one may succeed."""

    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    source = make_source(engine.url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", fail)
        with pytest.raises(UnavailableError) as unavailable:
            source.read(0)
    assert str(unavailable.value) == f"{source.name}: cannot connect: Too many open files"
    connected(source)
