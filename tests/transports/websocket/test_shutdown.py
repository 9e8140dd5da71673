"""An engine that shuts down is asked for its health, and disconnected."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from constellation_otel.delivery import Batch, Position, Record
from constellation_otel.events import (
    ModuleStarted,
    encode_frame,
)
from constellation_otel.transports.websocket import source as source_module
from constellation_otel.transports.websocket.source import (
    Timing,
    WebSocketSource,
    _Executions,
)
from engine_stand_in import EngineStandIn, Line, recorded
from support import eventually
from transports.websocket.helpers import (
    CONNECTED,
    KEY,
    ONE,
    TWO,
    client_tls,
    completed,
    connected,
    frame_of,
    messages_of,
    read_count,
    server_tls,
    started,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from websocket_wire import Request

    MakeSource = Callable[..., WebSocketSource]


QUIET = {"quiet_s": 0.05}
"""So that tests need not wait for the two seconds."""


def health_checks(engine: EngineStandIn) -> list[Request]:
    return [request for request in list(engine.requests) if request.target == "/health"]


def test_a_quiet_engine_is_asked_for_its_health_without_the_key(
    make_source: MakeSource,
) -> None:
    """And never at the path of the events."""
    with EngineStandIn(api_key=KEY) as engine:
        source = connected(make_source(engine.url, api_key=KEY, **QUIET))
        engine.wait_until(lambda: len(health_checks(engine)) >= 3, "three questions for its health")
        for request in health_checks(engine):
            assert (request.method, request.headers["host"]) == ("GET", f"127.0.0.1:{engine.port}")
            assert sorted(request.headers) == ["connection", "host", "user-agent"]
        assert (engine.connections, engine.ghosts, source.state) == (1, 0, CONNECTED)
        assert (source.counters.health_failures, source.counters.disconnections) == (0, 0)


def test_an_engine_that_sends_is_not_asked(engine: EngineStandIn, make_source: MakeSource) -> None:
    source = connected(make_source(engine.url, quiet_s=0.5))
    engine.play([Line(number * 20_000_000, {"number": number}) for number in range(50)], speed=1)
    assert health_checks(engine) == []
    engine.wait_until(lambda: health_checks(engine), "a question, now that nothing comes")
    assert source.state == CONNECTED


@pytest.mark.parametrize("status", [200, 401, 404, 503])
def test_an_answer_of_any_status_says_that_the_engine_is_there(
    status: int, engine: EngineStandIn, make_source: MakeSource
) -> None:
    engine.health = status
    source = connected(make_source(engine.url, **QUIET))
    engine.wait_until(lambda: len(health_checks(engine)) >= 2, "two questions")
    assert (source.state, source.counters.health_failures, source.counters.disconnections) == (CONNECTED, 0, 0)


def test_an_engine_without_an_answer_about_its_health_is_read(
    engine: EngineStandIn, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    engine.health = None
    source = connected(make_source(engine.url, health_s=0.05, **QUIET))
    eventually(lambda: source.counters.health_failures >= 2, "two questions without an answer")
    engine.send(frame_of(started(1)))
    assert read_count(source, 1) == [Record(started(1), Position(None, 1))]
    assert (source.state, source.counters.disconnections) == (CONNECTED, 0)
    reason = "the engine took more than 0.05 s to answer"
    assert messages_of(caplog, logging.WARNING) == [
        f"{source.name}: GET /health has no answer: {reason}; the events are read all the same"
    ]


def test_a_question_that_is_hung_up_on_is_counted_and_no_shutdown(
    engine: EngineStandIn, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    engine.health = 0
    source = connected(make_source(engine.url, **QUIET))
    eventually(lambda: source.counters.health_failures >= 1, "a question that was hung up on")
    eventually(lambda: messages_of(caplog, logging.WARNING), "a warning")
    assert "GET /health has no answer: Connection reset by peer; " in messages_of(caplog, logging.WARNING)[0]
    assert source.state == CONNECTED


def test_an_idle_engine_that_shuts_down_is_let_go_at_once(
    engine: EngineStandIn, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    """It once took the 30 s for which the engine waits for its clients."""
    caplog.set_level(logging.INFO)
    source = connected(make_source(engine.url, **QUIET))
    engine.play(recorded())
    read_count(source, len(recorded()))
    before = time.monotonic()
    engine.stop()
    assert time.monotonic() - before < 3
    assert engine.goodbyes == [1000]
    eventually(lambda: source.counters.failures, "tries to connect again")
    assert any(
        "shutting down, and was disconnected so that it can end; trying again" in m for m in messages_of(caplog, 30)
    )
    engine.start()
    connected(source)


def test_the_last_frames_are_taken_before_disconnecting(
    engine: EngineStandIn, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = connected(make_source(engine.url, **QUIET))
    engine.send(frame_of(started(1)))
    items = read_count(source, 1)
    engine.refuse()
    eventually(lambda: "it is shutting down; it is disconnected when" in caplog.text, "the shutdown to be seen")
    for frame in (encode_frame(ModuleStarted(ONE, TWO, "trim", 2_000_000)), encode_frame(completed(ONE))):
        engine.send(frame.decode())
    items += read_count(source, 2)
    assert [item.position.offset for item in items if isinstance(item, Record)] == [1, 2, 3]
    engine.wait_until(lambda: engine.clients == 0, "the source to let go")
    assert engine.goodbyes == [1000]


def test_what_never_ends_is_waited_for_four_seconds_at_most(engine: EngineStandIn, make_source: MakeSource) -> None:
    """With shorter ones; an execution that the engine has timed out has no end."""
    source = connected(make_source(engine.url, last_frames_s=0.3, **QUIET))
    for _, frame in recorded("global-time-out.jsonl"):
        engine.send(frame)
    read_count(source, 5)
    before = time.monotonic()
    engine.stop()
    assert 0.3 <= time.monotonic() - before < 3


def test_frames_that_nobody_reads_are_waited_for_too(engine: EngineStandIn, make_source: MakeSource) -> None:
    source = connected(make_source(engine.url, last_frames_s=0.3, **QUIET))
    engine.send(frame_of(started(1)))
    engine.flush()
    before = time.monotonic()
    engine.stop()
    assert 0.3 <= time.monotonic() - before < 3
    assert read_count(source, 1) == [Record(started(1), Position(None, 1))]


def test_a_wss_engine_that_shuts_down_is_let_go_too(make_source: MakeSource, tls_files: tuple[str, str]) -> None:
    with EngineStandIn(tls=server_tls(tls_files)) as engine:
        source = connected(make_source(engine.url, ssl=client_tls(tls_files), **QUIET))
        engine.wait_until(lambda: health_checks(engine), "a question for its health")
        before = time.monotonic()
        engine.stop()
        assert time.monotonic() - before < 3
        assert (engine.goodbyes, source.counters.health_failures) == ([1000], 0)


def test_an_unexpected_error_of_the_health_check_is_logged(
    engine: EngineStandIn,
    make_source: MakeSource,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("what nobody expected")

    monkeypatch.setattr(source_module, "ask_for_health", fail)
    source = connected(make_source(engine.url, **QUIET))
    eventually(lambda: source.counters.health_failures >= 2, "it is asked again")
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    why = "GET /health has no answer: an unexpected RuntimeError; the events are read all the same"
    assert record.getMessage() == f"{source.name}: {why}"
    assert record.exc_info is not None
    assert source.state == CONNECTED


def test_closing_while_it_asks_for_the_health_does_not_wait(engine: EngineStandIn) -> None:
    engine.health = None
    source = connected(WebSocketSource(engine.url, timing=Timing(quiet_s=0.01)))
    engine.wait_until(lambda: health_checks(engine), "a question for its health")
    before = time.monotonic()
    source.close()
    assert time.monotonic() - before < 2
    assert source.name not in {thread.name for thread in threading.enumerate()}


def test_a_shutdown_without_an_answer_to_the_goodbye_is_let_go(make_source: MakeSource) -> None:
    with EngineStandIn(deaf=True) as engine:
        connected(make_source(engine.url, **QUIET))
        before = time.monotonic()
        engine.stop()
        assert time.monotonic() - before < 4


def test_open_executions_are_known_in_any_order_of_frames() -> None:
    executions = _Executions()
    for event in (started(1), started(1, TWO), completed(ONE), ModuleStarted(ONE, TWO, "late", 3)):
        executions.see(Batch([event], [1]))
    assert executions.open == 1
    executions.see(Batch([completed(TWO)], [1]))
    executions.see(Batch([started(1, TWO)], [1]))
    assert executions.open == 0


def test_of_many_executions_the_first_are_forgotten() -> None:
    executions = _Executions(most=2)
    for number in range(5):
        executions.see(Batch([started(1, UUID(int=number))], [1]))
    assert executions.open == 2
