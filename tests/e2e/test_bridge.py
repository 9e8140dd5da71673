"""From the engine's WebSocket to Jaeger, by way of everything that there is."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen
from uuid import UUID

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from constellation_otel import trace_id_of
from engine_stand_in import EngineStandIn, recorded

from .bridges import bridging, command
from .peers import Collector, Jaeger, Kafka, Postgres, eventually
from .recorded_runs import by_execution, check_whole, is_module, spans_in
from .traces import read_back, traces_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from constellation_otel.traces import Span

    from .recorded_runs import Frames


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """One of this module's own: all that is in it came over a bridge."""
    server = Jaeger(tmp_path_factory.mktemp("jaeger"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory, jaeger: Jaeger) -> Iterator[Collector]:
    with Collector(tmp_path_factory.mktemp("collector"), jaeger=jaeger.target) as server:
        yield server


@pytest.fixture
def fresh_jaegers(tmp_path: Path) -> Iterator[list[Jaeger]]:
    """Jaegers that know nothing; killed in the end, since they take long to stop in order."""
    jaegers = [Jaeger(tmp_path / f"jaeger-{number}") for number in range(4)]
    try:
        for jaeger in jaegers:
            jaeger.start()
        yield jaegers
    finally:
        for jaeger in jaegers:
            jaeger.kill()


def otlp(endpoint: str) -> str:
    return endpoint.replace("http://", "otlp://")


def spans_of(jaeger: Jaeger, execution_id: UUID, frames: Frames) -> list[Span]:
    """The spans that there have to be of these frames, once Jaeger has so many."""
    return [it.span for it in read_back(jaeger, trace_id_of(execution_id), spans=spans_in(frames))]


def test_an_engines_executions_come_through_a_collector_and_a_cut_connection_into_jaeger(
    tmp_path: Path, collector: Collector, jaeger: Jaeger
) -> None:
    """The recorded runs, among them 50 executions at once; the engine is cut and comes back in the middle."""
    first, second = recorded("engine-frames.jsonl"), recorded("engine-frames-50.jsonl")
    arrived_lines, sent = list(first), 0
    with (
        EngineStandIn() as engine,
        bridging(
            tmp_path, engine.url, "--to", otlp(collector.grpc_endpoint), "--settle", "0.3", "--idle-timeout", "3",
        ) as bridge,
    ):  # fmt: skip
        engine.play(first, speed=math.inf)
        engine.flush()
        for cut_at in (40, 130, 220, 310):
            engine.play(second[sent:cut_at], speed=math.inf)
            arrived_lines += second[sent:cut_at]
            engine.flush()
            bridge.wait_until_read(len(arrived_lines))
            engine.kill()
            # what happens while it is away, nobody hears of
            sent = cut_at + 8
            engine.start()
            engine.wait_for_clients(1)
        engine.play(second[sent:], speed=math.inf)
        arrived_lines += second[sent:]
        everything, arrived = by_execution([*first, *second]), by_execution(arrived_lines)
        whole = [it for it in everything if everything[it] == arrived.get(it)]
        cut = [it for it in arrived if it not in whole]
        assert (len(whole), len(cut)) == (len(everything) - 8, 8)
        for execution_id in whole:
            frames = everything[execution_id]
            check_whole(spans_of(jaeger, execution_id, frames), execution_id, frames)
        outcomes: Counter[str] = Counter()
        for execution_id in cut:
            frames = arrived[execution_id]
            spans = spans_of(jaeger, execution_id, frames)
            (execution,) = [span for span in spans if not is_module(span)]
            outcomes[str(execution.attributes["constellation.outcome"])] += 1
            check_what_is_missing(execution, frames, "execution:start", "execution:complete")
            for span in filter(is_module, spans):
                own = [it for it in frames if it.get("moduleId") == span.attributes["constellation.module.id"]]
                check_what_is_missing(span, own, "module:start", "module:complete")
        report = bridge.end()
    assert outcomes["abandoned"] == sum(
        all(frame["type"] != "execution:complete" for frame in arrived[it]) for it in cut
    )
    assert outcomes["abandoned"] > 0
    assert report["assembly"]["abandoned"] >= outcomes["abandoned"]
    assert (report["unreadable"], report["dropped"]) == (0, 0)
    assert report["events"] == len(arrived_lines)
    # said at most once in ten seconds each
    assert bridge.said(": connected")
    assert bridge.said("lost")


def check_what_is_missing(span: Span, frames: Frames, start: str, end: str) -> None:
    types = {frame["type"] for frame in frames}
    missing = ",".join(name for name, kind in (("start", start), ("end", end)) if kind not in types)
    assert span.attributes.get("constellation.missing", "") == missing
    if not is_module(span):
        assert (span.attributes["constellation.outcome"] == "abandoned") == ("end" in missing)


REAL_ENGINE = os.environ.get("CONSTELLATION_ENGINE_URL", "")
PROGRAM = "in text: String\nshout = Uppercase(text)\nout shout\n"

if REAL_ENGINE:

    def test_the_executions_of_a_real_engine_come_into_jaeger(tmp_path: Path, jaeger: Jaeger) -> None:
        """Where CONSTELLATION_ENGINE_URL names one; its execution ids are known from the events only."""
        copy = tmp_path / "events.jsonl"
        with bridging(tmp_path, REAL_ENGINE, "--to", otlp(jaeger.grpc_endpoint), "--to", f"jsonl:{copy}") as bridge:
            bridge.wait_until_said("connected")
            address = REAL_ENGINE.replace("ws", "http", 1).split("/api/")[0]
            body = json.dumps({"source": PROGRAM, "inputs": {"text": "to be"}}).encode()
            headers = {"Content-Type": "application/json"}
            if key := os.environ.get("CONSTELLATION_API_KEY"):
                headers["Authorization"] = f"Bearer {key}"
            for _ in range(20):
                urlopen(Request(f"{address}/run", body, headers), timeout=30).close()
            bridge.wait_until_read(20 * 4)
            executions = {json.loads(event)["executionId"] for event in copy.read_text().splitlines()}
            assert len(executions) >= 20
            for execution_id in executions:
                read_back(jaeger, trace_id_of(UUID(execution_id)), spans=2)
            assert bridge.end()["is_delivered"]


def test_what_went_to_kafka_postgres_and_a_file_replays_into_the_same_traces(
    tmp_path: Path, kafka: Kafka, postgres: Postgres, fresh_jaegers: list[Jaeger]
) -> None:
    """Ids, names, parents, times, outcomes, attributes: compared as text with what the bridge sent directly."""
    jaeger, *others = fresh_jaegers
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    admin.create_topics([NewTopic("events", num_partitions=3)])["events"].result(30)
    stored = {
        "kafka": f"kafka://{kafka.brokers}/events",
        "postgresql": postgres.url(),
        "jsonl": f"jsonl:{tmp_path}/events.jsonl",
    }
    lines = [*recorded("engine-frames.jsonl"), *recorded("engine-frames-50.jsonl")]
    sinks = [argument for url in (otlp(jaeger.grpc_endpoint), *stored.values()) for argument in ("--to", url)]
    with EngineStandIn() as engine, bridging(tmp_path, engine.url, *sinks, "--settle", "0.5") as bridge:
        for first in range(0, len(lines), 50):
            # no more at once than its queue holds
            engine.play(lines[first : first + 50], speed=math.inf)
            engine.flush()
        assert engine.dropped == 0
        executions = by_execution(lines)
        expected = {trace_id_of(it): spans_in(frames) for it, frames in executions.items()}
        bridge.wait_until_read(len(lines))
        # before Jaeger is asked, which finds modules whose execution is not there yet odd, and says so on them
        report = bridge.end()
    directly = traces_text(jaeger, expected)
    assert {name: lane["sending"]["sent"] for name, lane in report["sinks"].items()} | {"otlp": 0} == {
        "otlp": 0, "kafka": len(lines), "sql": len(lines), "jsonl": len(lines),
    }  # fmt: skip
    for url, fresh in zip(stored.values(), others, strict=True):
        done = command("replay", url, "--to", otlp(fresh.grpc_endpoint))
        assert done.returncode == 0, done.stderr
        assert f"{len(lines)} events replayed from " in done.stdout
        assert traces_text(fresh, expected) == directly


def test_a_bridge_is_alive_and_ready_and_says_what_is_wrong(tmp_path: Path, collector: Collector) -> None:
    """The health that an orchestrator asks for, before the engine is there, with it, and without it again."""
    with (
        EngineStandIn() as engine,
        bridging(
            tmp_path, engine.url, "--to", otlp(collector.grpc_endpoint)
        ) as bridge,
    ):  # fmt: skip
        assert bridge.asks("/livez")[0] == 200
        bridge.wait_until_said("connected")
        eventually(lambda: bridge.asks("/readyz")[0] == 200, 20, "it is ready")
        engine.kill()
        eventually(lambda: bridge.asks("/readyz")[0] == 503, 20, "it is not ready")
        status, body = bridge.asks("/readyz")
        assert (status, list(body["troubles"])) == (503, [f"{engine.url}/api/v1/executions/events"])
        assert bridge.asks("/livez")[0] == 200
        engine.start()
        eventually(lambda: bridge.asks("/readyz")[0] == 200, 40, "it is ready again")
        assert bridge.asks("/")[1]["events"] == 0
