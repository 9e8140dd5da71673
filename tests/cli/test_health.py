"""A bridge's health, asked for over real HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
import pytest

from constellation_otel._support.http_server import HttpHandler
from constellation_otel.cli.health import Health
from constellation_otel.delivery import Bridge
from constellation_otel.delivery import bridge as bridge_module
from constellation_otel.errors import ConfigurationError, MisconfiguredError, UnavailableError
from deliveries import ListSink, ListSource, execution, records
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def bridge() -> Bridge:
    return Bridge(ListSource(), [ListSink()])


def get(url: str, path: str, method: str = "GET") -> tuple[int, str | None, bytes]:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)) as connection:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type"), response.read()


def answer(url: str, path: str) -> tuple[int, Any]:
    status, content_type, body = get(url, path)
    assert content_type == "application/json"
    return status, json.loads(body)


def connected(health: Health) -> socket.socket:
    parts = urlsplit(health.url)
    return socket.create_connection((parts.hostname, parts.port), DEADLINE)


def test_a_bridge_that_works_is_alive_and_ready() -> None:
    events, traces = ListSink(), ListSink(takes="spans", name="otlp")
    bridge = Bridge(ListSource(records(execution(1))), [events, traces])
    with Health("127.0.0.1:0", bridge) as health:
        assert answer(health.url, "/readyz") == (200, {"status": "ready", "troubles": {}})
        status, body = answer(health.url, "/livez?verbose=1")
        assert (status, body["status"], body.keys()) == (200, "alive", {"status", "idle_seconds"})
        assert 0 <= body["idle_seconds"] < DEADLINE
        bridge.run()
        sink = {"received": 4, "delivered": 4, "rejected": 0, "revoked": 0, "held": 0, "failed_acknowledgements": 0}
        sending = {"refused": 0, "retried": 0, "dead_lettered": 0, "evicted": 0}
        assert answer(health.url, "/") == (
            200,
            {
                "troubles": {},
                "source": "list://",
                "events": 4,
                "unreadable": 0,
                "dropped": 0,
                "corrected": 0,
                "open": 0,
                "lost": 0,
                "is_delivered": True,
                "failed_acknowledgements": 0,
                "sinks": {
                    "list": sink | {"sending": sending | {"sent": 4}},
                    "otlp": sink | {"sending": sending | {"sent": 2}},
                },
                "assembly": msgspec.to_builtins(bridge.report.assembly),
                "journal": None,
            },
        )


def test_what_does_not_work_is_named_until_it_works_again() -> None:
    fixed = threading.Event()

    def away(items: object) -> Exception | None:
        return None if fixed.is_set() else MisconfiguredError("no such topic; make it")

    source = ListSource(records(execution(1)), ends=False)
    bridge = Bridge(source, [ListSink(*[away] * 100_000, name="kafka"), ListSink()])
    thread = threading.Thread(target=bridge.run)
    with Health("127.0.0.1:0", bridge) as health, ExitStack() as stack:
        thread.start()
        stack.callback(thread.join, DEADLINE)
        stack.callback(bridge.stop)
        troubles = {"kafka": "no such topic; make it"}
        eventually(lambda: bridge.troubles == troubles, "the sink's trouble")
        assert answer(health.url, "/readyz") == (503, {"status": "troubled", "troubles": troubles})
        status, counters = answer(health.url, "/")
        assert (status, counters["troubles"]) == (200, troubles)
        assert answer(health.url, "/livez")[0] == 200
        source.faults.append(UnavailableError("connection to \udcff refused", retry_after=DEADLINE))
        troubles = {"list://": "connection to \\udcff refused", **troubles}
        eventually(lambda: bridge.troubles == troubles, "the source's trouble")
        assert answer(health.url, "/readyz") == (503, {"status": "troubled", "troubles": troubles})
        fixed.set()
    assert not thread.is_alive()


def test_a_bridge_whose_acknowledgements_fail_is_not_ready() -> None:
    source = ListSource(records(execution(1)), ends=False)
    source.acknowledge_faults = [RuntimeError("no coordinator")] * 10_000
    bridge = Bridge(source, [ListSink()])
    thread = threading.Thread(target=bridge.run)
    with Health("127.0.0.1:0", bridge) as health, ExitStack() as stack:
        thread.start()
        stack.callback(thread.join, DEADLINE)
        stack.callback(bridge.stop)
        troubles = {"list://": "delivered records cannot be acknowledged: no coordinator"}
        eventually(lambda: bridge.troubles == troubles, "the source's trouble")
        assert answer(health.url, "/readyz") == (503, {"status": "troubled", "troubles": troubles})
        status, counters = answer(health.url, "/")
        assert (status, counters["troubles"]) == (200, troubles)
        assert counters["failed_acknowledgements"] > 0
        source.acknowledge_faults.clear()
        eventually(lambda: not bridge.troubles, "it works again")
        assert answer(health.url, "/readyz") == (200, {"status": "ready", "troubles": {}})


def test_a_bridge_whose_loop_hangs_is_not_alive(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = time.monotonic()

        @classmethod
        def monotonic(cls) -> float:
            return cls.now

    monkeypatch.setattr(bridge_module, "time", Clock)
    bridge._looped = Clock.now
    with Health("127.0.0.1:0", bridge) as health:
        assert answer(health.url, "/livez") == (200, {"status": "alive", "idle_seconds": 0.0})
        Clock.now = bridge._looped + 59.5
        assert answer(health.url, "/livez")[0] == 200
        Clock.now = bridge._looped + 60.5
        status, body = answer(health.url, "/livez")
        assert (status, body) == (503, {"status": "hanging", "idle_seconds": pytest.approx(60.5)})


def test_other_paths_and_methods_are_refused(bridge: Bridge) -> None:
    with Health("127.0.0.1:0", bridge) as health:
        assert answer(health.url, "/metrics") == (404, {"error": "there is no such path; use /, /livez or /readyz"})
        assert get(health.url, "/livez", "POST")[0] == 501


@pytest.mark.parametrize(
    ("address", "begins"),
    [
        ("127.0.0.1:0", "http://127.0.0.1:"),
        (":0", "http://127.0.0.1:"),
        ("localhost:0", "http://localhost:"),
        ("[::1]:0", "http://[::1]:"),
        ("[::ffff:127.0.0.1]:0", "http://[::ffff:127.0.0.1]:"),
    ],
)
def test_it_is_served_where_the_address_says(bridge: Bridge, address: str, begins: str) -> None:
    with Health(address, bridge) as health:
        assert health.url.startswith(begins)
        assert not health.url.endswith(":0")
        assert answer(health.url, "/readyz")[0] == 200


@pytest.mark.parametrize(
    "address",
    ["", "8080", "localhost", "localhost:", "localhost:http", "localhost:-1", "localhost: 80", "::1:0", "[]:0"],
)
def test_an_address_that_is_not_valid_is_refused(bridge: Bridge, address: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Health(address, bridge)
    assert str(raised.value) == (f"{address!r} is not a valid health address; give host:port, or [host]:port for IPv6")


@pytest.mark.parametrize("address", ["127.0.0.1:65536", "192.0.2.1:0", f"{'a' * 70}.b:0"])
def test_an_address_that_cannot_be_listened_on_is_refused(bridge: Bridge, address: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Health(address, bridge)
    assert str(raised.value) == (
        f"cannot serve health on {address!r}: {raised.value.__cause__}; give this machine's host:port with a free port"
    )


def test_a_port_that_is_in_use_is_refused(bridge: Bridge) -> None:
    with Health("127.0.0.1:0", bridge) as health:
        address = urlsplit(health.url).netloc
        with pytest.raises(ConfigurationError, match=rf"'{address}': \[Errno \d+\] Address already in use; give"):
            Health(address, bridge)
        assert answer(health.url, "/readyz")[0] == 200
    with Health(address, bridge) as health:
        assert answer(health.url, "/readyz")[0] == 200


def test_a_silent_client_delays_neither_others_nor_the_end(bridge: Bridge) -> None:
    with Health("127.0.0.1:0", bridge) as health, connected(health) as silent:
        eventually(lambda: health._server._connections, "the silent client's connection")
        assert answer(health.url, "/readyz")[0] == 200
        start = time.monotonic()
        health.__exit__(None, None, None)
        assert time.monotonic() - start < HttpHandler.timeout / 2
        assert silent.recv(1) == b""


def test_a_65th_connection_is_closed_without_an_answer(bridge: Bridge) -> None:
    with Health("127.0.0.1:0", bridge) as health, ExitStack() as stack:
        first, *_ = [stack.enter_context(connected(health)) for _ in range(64)]
        eventually(lambda: len(health._server._connections) == 64, "64 connections")
        with connected(health) as another:
            assert another.recv(1) == b""
        first.close()
        eventually(lambda: len(health._server._connections) == 63, "the first one's end")
        assert answer(health.url, "/readyz")[0] == 200


def test_a_client_that_breaks_off_is_logged(
    bridge: Bridge, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with Health("127.0.0.1:0", bridge) as health:
        with connected(health) as client:
            # a reset at the close, in the middle of a request
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"GET /readyz HT")
        eventually(lambda: caplog.messages, "the log of the reset")
        assert answer(health.url, "/readyz")[0] == 200
    assert caplog.messages == ["the connection from 127.0.0.1 broke"]
    assert capsys.readouterr() == ("", "")
