"""With a journal: the collector is away for a minute at 500 events a second and comes back; no span is missing and
none is shown twice. Without one: what was dropped is counted and said.

The first test takes more than a minute by its nature.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from constellation_otel import OtlpListener, span_id_of, trace_id_of
from constellation_otel.events import ExecutionCompleted, ExecutionStarted, encode_frame
from constellation_otel.traces import MISSING
from deliveries import MS, T0, execution
from engine_stand_in import EngineStandIn, Line

from .bridges import RunningBridge, bridging
from .peers import Collector, Jaeger, eventually
from .traces import received_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from constellation_otel.events import Event
    from constellation_otel.traces import Span

DEADLINE = 90.0
RATE = 500
"""Events a second."""
AWAY_S = 60.0
OPEN_AT_ONCE = 60
"""Executions that are open at the same time, some half a second each."""
EXECUTION_EVENTS = 4


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """A Jaeger for this module's thousands of traces; each test has execution numbers of its own."""
    with Jaeger(tmp_path_factory.mktemp("jaeger")) as server:
        yield server
        # in order it would take ten seconds
        server.kill()


@pytest.fixture
def collector(tmp_path: Path, jaeger: Jaeger) -> Iterator[Collector]:
    """A Collector that the test may kill."""
    with Collector(tmp_path / "collector", jaeger=jaeger.target) as server:
        yield server


@pytest.fixture
def start_bridge(tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:

        def start(engine: EngineStandIn, collector: Collector, *options: str) -> RunningBridge:
            bridge = stack.enter_context(bridging(tmp_path, engine.url, "--to", otlp(collector), *options))
            engine.wait_until(lambda: engine.clients, "the bridge to be connected", DEADLINE)
            return bridge

        yield start


def otlp(collector: Collector) -> str:
    return f"otlp://127.0.0.1:{collector.grpc_port}"


def start_ns(number: int) -> int:
    """When an execution starts, by its events: each at a time of its own."""
    return T0 + number * 8 * MS


def interleaved(numbers: range) -> list[Event]:
    """The events of executions that overlap: whenever something is killed, it is in the middle of many."""
    executions = [
        [named(number, event) for event in execution(number, start_ns=start_ns(number))] for number in numbers
    ]
    lag = OPEN_AT_ONCE // (EXECUTION_EVENTS - 1)
    places = ((index + step * lag, step, index) for index in range(len(executions)) for step in range(EXECUTION_EVENTS))
    return [executions[index][step] for _, step, index in sorted(places)]


def dag_name(number: int) -> str:
    """One of ten: engines have some DAGs, and metrics a series for each."""
    return f"dag-{number % 10}"


def named(number: int, event: Event) -> Event:
    return (
        replace(event, dag_name=dag_name(number)) if isinstance(event, ExecutionStarted | ExecutionCompleted) else event
    )


def feed(engine: EngineStandIn, events: Sequence[Event]) -> None:
    """Sends events at a steady pace, and none that would find the engine's queue full."""
    begun, pause, batch = time.monotonic(), threading.Event(), RATE // 20
    for first in range(0, len(events), batch):
        lines = [Line(0, json.loads(encode_frame(event))) for event in events[first : first + batch]]
        pause.wait(max(0.0, begun + first / RATE - time.monotonic()))
        engine.play(lines)


def traces_of(jaeger: Jaeger, numbers: Iterable[int]) -> dict[int, list[Span]]:
    """What Jaeger shows of executions, by their numbers; those of which it has nothing are left out."""

    def spans_of(number: int) -> tuple[int, list[Span]]:
        found = jaeger.find(f"{trace_id_of(UUID(int=number)):032x}")
        return number, [] if found is None else spans_in(found)

    with ThreadPoolExecutor(4) as threads:
        return {number: spans for number, spans in threads.map(spans_of, numbers) if spans}


def spans_in(trace: Mapping[str, Any]) -> list[Span]:
    return [received.span for received in received_in(trace)]


Shown = tuple[int, int | None, str, int, int, str]


def shown(spans: Iterable[Span]) -> list[Shown]:
    """What matters of spans: their ids, names, times and outcomes."""
    return sorted(
        (it.span_id, it.parent_span_id, it.name, it.start_ns, it.end_ns, str(it.attributes["constellation.outcome"]))
        for it in spans
    )


def whole(number: int) -> list[Shown]:
    """What is to be seen of an execution: two spans."""
    execution_id, module_id, begins = UUID(int=number), UUID(int=number << 64 | 1), start_ns(number)
    root = span_id_of(execution_id)
    module = span_id_of(execution_id, module_id)
    return sorted(
        [
            (root, None, dag_name(number), begins, begins + 4 * MS, "success"),
            (module, root, "trim", begins + 1 * MS, begins + 3 * MS, "success"),
        ]
    )


def appended(journal: Path) -> int:
    """How many events have ever been written to a journal, by another process."""
    with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)) as connection:
        found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
    return 0 if found is None else int(found[0])


def held(journal: Path) -> int:
    """How many events a journal still has."""
    with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM events").fetchone()[0])


def test_with_a_journal_a_minute_without_the_collector_loses_no_span_and_shows_none_twice(
    jaeger: Jaeger, collector: Collector, start_bridge: Any, tmp_path: Path
) -> None:
    """With a journal: the collector is away for a minute at 500 events a second and comes back; no span is missing
    and none is shown twice. In that minute the bridge is killed, too, and started again on the same journal.
    """
    journal = tmp_path / "journal.db"
    numbers = range(1, 8_501)
    events = interleaved(numbers)
    before, away = 5 * RATE, round(AWAY_S * RATE)
    until_the_bridge_is_killed = before + away * 2 // 3
    with EngineStandIn() as engine:
        killed = start_bridge(engine, collector, "--journal", str(journal))
        feed(engine, events[:before])
        eventually(lambda: jaeger.find(f"{trace_id_of(UUID(int=1)):032x}"), DEADLINE, "the first trace is there")
        collector.kill()
        away_since = time.monotonic()
        feed(engine, events[before:until_the_bridge_is_killed])
        engine.flush()
        # what was sent and is not written down yet would be lost with the bridge, as the engine keeps nothing
        eventually(lambda: appended(journal) == until_the_bridge_is_killed, DEADLINE, "what was sent is in the journal")
        killed.kill()
        engine.wait_until(lambda: not engine.clients, "the killed bridge to be gone", DEADLINE)
        bridge = start_bridge(engine, collector, "--journal", str(journal))
        feed(engine, events[until_the_bridge_is_killed : before + away])
        threading.Event().wait(away_since + AWAY_S - time.monotonic())
        collector.start()
        feed(engine, events[before + away :])
        engine.flush()
        eventually(lambda: appended(journal) == len(events), DEADLINE, "what was sent is in the journal")
        eventually(lambda: held(journal) == 0, DEADLINE, "the collector has what is in the journal")
        code, report = bridge.ended()
        assert engine.dropped == 0
    assert any("the next try is in" in message for message in killed.messages("WARNING"))
    assert any("the next try is in" in message for message in bridge.messages("WARNING"))
    assert any("otlp: takes events again, after " in message for message in bridge.messages("INFO"))
    assert (code, report["is_delivered"], report["dropped"], report["unreadable"], report["open"]) == (0, True, 0, 0, 0)
    assert report["events"] == len(events) - until_the_bridge_is_killed
    assert (report["assembly"]["late"], report["assembly"]["duplicate"], report["assembly"]["abandoned"]) == (0, 0, 0)

    def is_complete() -> bool:
        return len(traces_of(jaeger, numbers)) == len(numbers)

    eventually(is_complete, DEADLINE, "every execution is in Jaeger")
    found = {number: shown(spans) for number, spans in traces_of(jaeger, numbers).items()}
    assert {number: spans for number, spans in found.items() if spans != whole(number)} == {}
    assert found.keys() == set(numbers)


def known_events(spans: Iterable[Span]) -> int:
    """How many events spans show: each has had a start and an end, but for what it says is missing."""
    total = 0
    for span in spans:
        missing = span.attributes.get(MISSING)
        total += 2 - (0 if missing is None else len(str(missing).split(",")))
    return total


def test_without_a_journal_what_a_bridge_drops_is_counted_and_said_and_the_rest_arrives_whole(
    jaeger: Jaeger, collector: Collector, start_bridge: Any
) -> None:
    """Without a journal: what was dropped is counted and said. The bridge holds 400 events at most."""
    numbers = range(10_001, 10_901)
    events = interleaved(numbers)
    before, after = 2 * RATE, len(events) - RATE
    with EngineStandIn() as engine:
        # well above what is open at a time
        bridge = start_bridge(engine, collector, "--max-held", "400", "--settle", "0.1")
        feed(engine, events[:before])
        first, last = numbers[0], numbers[-1]
        eventually(lambda: traces_of(jaeger, [first]), DEADLINE, "the first trace is there")
        collector.kill()
        feed(engine, events[before:after])
        engine.flush()
        eventually(lambda: bridge.messages("WARNING")[1:], DEADLINE, "the bridge says that it drops")
        collector.start()
        eventually(
            lambda: [it for it in bridge.messages("INFO") if "takes events again" in it], DEADLINE, "they are friends"
        )
        feed(engine, events[after:])
        engine.flush()
        eventually(lambda: shown(traces_of(jaeger, [last]).get(last, [])) == whole(last), DEADLINE, "the last trace")
        code, report = bridge.ended()
        assert engine.dropped == 0
    assert "bridge-otlp: the queue is full (400 events); dropping the newest" in bridge.messages("WARNING")
    lane = report["sinks"]["otlp"]
    assert (code, report["is_delivered"], lane["held"], lane["rejected"], report["unreadable"]) == (4, True, 0, 0, 0)
    assert report["dropped"] > 0
    assert report["events"] == len(events) == lane["delivered"] + report["dropped"]
    assert_all_of_it_is_there(
        jaeger, numbers, spans=lane["sending"]["sent"], events=lane["delivered"] - report["assembly"]["late"]
    )
    # what came before the outage had left, and what came after it found room
    found = traces_of(jaeger, numbers)
    untouched = [*numbers[: before // EXECUTION_EVENTS - OPEN_AT_ONCE], last]
    assert {number: shown(found[number]) for number in untouched} == {number: whole(number) for number in untouched}


def assert_all_of_it_is_there(jaeger: Jaeger, numbers: range, *, spans: int, events: int) -> None:
    """Jaeger shows so many spans, made of so many events; and of what was dropped, nothing."""

    def found() -> list[Span]:
        return [span for trace in traces_of(jaeger, numbers).values() for span in trace]

    eventually(lambda: len(found()) >= spans, DEADLINE, f"{spans} spans are in Jaeger")
    shown_spans = found()
    assert len({(span.trace_id, span.span_id) for span in shown_spans}) == len(shown_spans) == spans
    assert known_events(shown_spans) == events


def test_without_a_journal_what_a_listener_drops_is_counted_and_said_and_the_rest_arrives_whole(
    jaeger: Jaeger, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a journal: what was dropped is counted and said. The listener holds 400 events, and 400 wait, at most."""
    numbers = range(20_001, 20_901)
    events = interleaved(numbers)
    first, last = numbers[0], numbers[-1]
    before, after = 2 * RATE, len(events) - RATE
    with closed(OtlpListener(collector.grpc_endpoint, max_queue=400)) as listener:
        call(listener, events[:before])
        assert listener.flush(DEADLINE)
        collector.kill()
        call(listener, events[before:after])
        assert not listener.flush(0.1)
        in_the_outage = listener.counters
        collector.start()
        assert listener.flush(DEADLINE)
        call(listener, events[after:])
        assert listener.close(DEADLINE)
        counters = listener.counters
    assert in_the_outage.received == after
    # beyond what waits and what is held, a batch that was taken from the one to the other
    assert 400 <= in_the_outage.held <= 400 + 400 + 512
    assert in_the_outage.dropped == after - in_the_outage.delivered - in_the_outage.held > 0
    assert (counters.received, counters.held, counters.rejected) == (len(events), 0, 0)
    assert counters.received == counters.delivered + counters.dropped
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "OtlpListener: the queue is full (400 items); dropping the newest" in said
    assert any(message.startswith("otlp: ") and "are held, the next try is in" in message for message in said)
    assert counters.assembly is not None
    late = counters.assembly.late
    assert_all_of_it_is_there(jaeger, numbers, spans=counters.sending.sent, events=counters.delivered - late)
    found = traces_of(jaeger, [first, last])
    names = {number: sorted(span.name for span in spans) for number, spans in found.items()}
    assert names == {number: sorted([dag_name(number), "trim"]) for number in (first, last)}


@contextmanager
def closed(listener: OtlpListener) -> Iterator[OtlpListener]:
    try:
        yield listener
    finally:
        listener.close(1)


def call(listener: OtlpListener, events: Sequence[Event]) -> None:
    """Calls the callbacks, at a steady pace."""
    begun, pause = time.monotonic(), threading.Event()
    for number, event in enumerate(events):
        pause.wait(max(0.0, begun + number / RATE - time.monotonic()))
        event.notify(listener)
