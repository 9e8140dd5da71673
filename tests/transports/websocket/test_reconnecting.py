"""Connections that end, engines that are restarted, and the waits between tries."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from constellation_otel.delivery import Bridge, Position, Record, Restarted
from constellation_otel.errors import UnavailableError
from constellation_otel.events import (
    encode_frame,
)
from constellation_otel.transports.journal import Journal
from constellation_otel.transports.websocket.connection import is_answer
from constellation_otel.transports.websocket.source import (
    WebSocketCounters,
    WebSocketSource,
    WebSocketState,
    _Loss,
)
from deliveries import ListSink
from engine_stand_in import EngineStandIn, recorded
from support import DEADLINE, eventually
from transports.websocket.helpers import ONE, completed, connected, frame_of, messages_of, read_count, started

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    MakeSource = Callable[..., WebSocketSource]


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
    assert source.gaps == 1
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
    assert source.last_error == "Connection refused"
    assert source.read(0.01) == []
    assert any(
        " cannot connect: Connection refused; trying again in " in m for m in messages_of(caplog, logging.WARNING)
    )
    engine.start()
    engine.send(frame_of(started(1)))
    assert read_count(source, 2) == [Restarted(Position(None, 1)), Record(started(1), Position(None, 2))]


def restart(engine: EngineStandIn, source: WebSocketSource) -> None:
    """Restarts an engine, which the source notices."""
    before = source.counters
    engine.kill()
    eventually(lambda: source.counters.failures > before.failures, "a refusal")
    engine.start()
    eventually(lambda: source.counters.connections > before.connections, "another connection")


def test_a_reconnection_without_a_refusal_is_not_a_restart(engine: EngineStandIn, make_source: MakeSource) -> None:
    source = connected(make_source(engine.url))
    engine.cut()
    eventually(lambda: source.counters.connections == 2, "another connection")
    engine.send(frame_of(started(1)))
    assert read_count(source, 1) == [Record(started(1), Position(None, 1))]


def test_two_restarts_with_nothing_in_between_are_one(engine: EngineStandIn, make_source: MakeSource) -> None:
    """No counter has it."""
    source = connected(make_source(engine.url))
    for _ in range(2):
        restart(engine, source)
    engine.send(frame_of(started(1)))
    assert read_count(source, 2) == [Restarted(Position(None, 2)), Record(started(1), Position(None, 3))]
    counters = source.counters
    assert (counters.frames, counters.delivered, counters.held) == (1, 1, 0)


@pytest.mark.parametrize("with_journal", [True, False])
@pytest.mark.parametrize("case", ["global-time-out", "scheduler-queue-full"])
def test_a_restart_abandons_executions_that_can_never_end(
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
        eventually(lambda: bridge.report.assembly.abandoned == len(executions), "all of them to be abandoned")
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


LOST = UnavailableError("lost")


def test_the_waits_begin_with_a_tenth_of_a_second_and_double() -> None:
    """A part of each is random."""
    source = WebSocketSource("ws://engine")
    waits = [source._wait_after(_Loss(LOST, None, is_answered=True)) for _ in range(10)]
    most = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5]
    assert [limit / 2 <= wait <= limit for limit, wait in zip(most, waits, strict=True)] == [True] * 10
    assert len(set(waits)) == 10


def test_a_connection_that_lasted_starts_the_waits_again() -> None:
    """Longer than the wait before it."""
    source = WebSocketSource("ws://engine")
    waited = [source._wait_after(_Loss(LOST, None, is_answered=answered)) for answered in (True, False) * 6][-2]
    assert source._wait_after(_Loss(LOST, waited / 2, is_answered=True)) > 1
    for answered in (True, False):
        assert source._wait_after(_Loss(LOST, 31, is_answered=answered)) <= 0.1


@pytest.mark.parametrize(
    ("longest", "answered", "most"), [(None, True, 5), (None, False, 30), (1.5, True, 1.5), (1.5, False, 1.5)]
)
def test_the_longest_wait_depends_on_whether_the_host_answers(
    longest: float | None, answered: bool, most: float
) -> None:
    """Unless it is given."""
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


def test_an_engine_that_is_back_is_connected_to_within_a_second(engine: EngineStandIn) -> None:
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
