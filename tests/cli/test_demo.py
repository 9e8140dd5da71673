"""``constellation-otel demo``: what it draws or sends, and how it fails."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from commands import command
from constellation_otel import OpenTelemetryListener
from constellation_otel.cli.demo import DemoError, _close
from constellation_otel.testing import span_tree
from demo_traces import BAD_YEAR, PIPELINES, RAN, RECORDED, RECORDED_SERVICE, SERVICE, SHOWN_RECORDED, linked_traces
from support import DEADLINE

if TYPE_CHECKING:
    from constellation_otel.receiver import Receiver
    from constellation_otel.traces import Span

HOUR_NS = 3_600_000_000_000


def traces_of(spans: list[Span]) -> dict[int, list[Span]]:
    traces: dict[int, list[Span]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    return traces


def test_the_demo_draws_what_ran_and_two_of_the_recorded_executions() -> None:
    done = command("demo")
    assert (done.returncode, done.stderr) == (0, "")
    *drawn, summary = done.stdout.split("\n\n")
    assert [tuple(trace.split(" · ")[:2]) for trace in drawn[:4] + drawn[5:]] == [
        ("word-count", "success"),
        ("age-of-text", "failure"),
        ("slow-index", "cancelled"),
        ("archive", "success"),
        ("ephemeral", "failure"),
        ("cancel-demo", "cancelled"),
    ]
    assert drawn[4].startswith("GET /report · ")
    assert drawn[0].count("takes from trim") == 3
    assert f"{BAD_YEAR}; takes from words" in drawn[1]
    assert "boom: t" in drawn[5]
    rest, arrived, *more = summary.splitlines()
    assert rest == "65 more executions were recorded from the real engine; --all shows them, too."
    assert arrived.startswith("72 traces with 278 spans, ")
    assert "raised 23 times" in " ".join(more)


def test_the_demo_draws_every_trace_that_arrived_if_all_are_asked_for() -> None:
    done = command("demo", "--all")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(set(re.findall(r"^trace ([0-9a-f]{32})$", done.stdout, re.MULTILINE))) == 72
    assert re.search("^72 traces with 278 spans, ", done.stdout, re.MULTILINE)
    assert "--all" not in done.stdout


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_demo_sends_to_an_endpoint_and_prints_links(receiver: Receiver, protocol: str) -> None:
    endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
    variables = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    done = command("demo", "--all", "--endpoint", endpoint, "--jaeger", "http://jaeger.test/", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    traces = traces_of(receiver.spans)
    lines = linked_traces(done.stdout, "http://jaeger.test")
    assert {int(trace_id, 16) for trace_id, _ in lines} == traces.keys()
    names = [name for _, name in lines]
    assert (tuple(names[:5]), Counter(names[5:])) == (RAN, RECORDED)
    trees = {tree.split(" (")[0]: tree for tree in map(span_tree, traces.values())}
    assert {name: trees[name] for name in PIPELINES} == PIPELINES
    assert {request.protocol for request in receiver.requests} == {protocol}
    assert any(point.exemplars for point in receiver.metrics)


def test_a_cancelled_module_is_as_long_as_its_body_ran(receiver: Receiver) -> None:
    command("demo", "--endpoint", receiver.grpc_endpoint)
    (span,) = [span for span in receiver.spans if span.name == "wait-for-more"]
    assert span.attributes["constellation.outcome"] == "cancelled"
    assert 100_000_000 <= span.end_ns - span.start_ns < 10_000_000_000


def test_recordings_have_just_ended_and_are_of_another_service_and_new_ids(receiver: Receiver) -> None:
    began_ns = time.time_ns()
    twice = [command("demo", "--endpoint", receiver.grpc_endpoint, OTEL_SERVICE_NAME="shop") for _ in range(2)]
    ended_ns = time.time_ns()
    lines = [linked_traces(done.stdout, "http://localhost:16686") for done in twice]
    assert [tuple(name for _, name in shown) for shown in lines] == [(*RAN, *SHOWN_RECORDED)] * 2
    assert "65 more executions" in twice[0].stdout
    assert "the service shop, and where they were recorded, of shop-recordings" in " ".join(twice[0].stdout.split())
    of_service: dict[object, list[Span]] = {}
    for received in receiver.received:
        of_service.setdefault(received.resource.attributes["service.name"], []).append(received.span)
    assert {name: len(traces_of(spans)) for name, spans in of_service.items()} == {"shop": 10, "shop-recordings": 134}
    recorded = traces_of(of_service["shop-recordings"])
    assert [len({span.span_id for span in spans}) for spans in recorded.values()] == list(map(len, recorded.values()))
    ends = sorted(max(span.end_ns for span in spans) for spans in recorded.values())
    assert began_ns < ends[-1] <= ended_ns
    assert ends[-1] - ends[0] < HOUR_NS
    # what ran is the latest
    assert sum(span.parent_span_id is None and span.start_ns > ends[-1] for span in of_service["shop"]) == len(RAN)


@pytest.mark.parametrize("signal", ["metrics", "logs"])
def test_the_demo_sends_no_metrics_or_logs_where_a_variable_says_so(receiver: Receiver, signal: str) -> None:
    variables = {f"OTEL_{signal.upper()}_EXPORTER": "none", "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN": "logs"}
    done = command("demo", "--endpoint", receiver.grpc_endpoint, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert {request.signal for request in receiver.requests} == {"traces", "metrics", "logs"} - {signal}
    services = {record.resource.attributes["service.name"] for record in receiver.logs}
    assert services == (set() if signal == "logs" else {SERVICE, RECORDED_SERVICE})


def test_the_demo_says_that_an_endpoint_is_away(receiver: Receiver) -> None:
    endpoint = receiver.http_endpoint
    receiver.stop()
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    done = command("demo", **variables, OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"constellation-otel demo: {endpoint} did not accept ")
    assert last.endswith("is an OTLP endpoint listening there, for gRPC (usually 4317) or HTTP (4318)?")


def test_the_demo_says_when_its_listener_did_not_finish(caplog: pytest.LogCaptureFixture) -> None:
    entered, gate = threading.Event(), threading.Event()

    class Blocks(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            entered.set()
            assert gate.wait(DEADLINE)

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Blocks())
    listener = OpenTelemetryListener(provider)
    listener.on_execution_start(UUID(int=1), "d")
    listener.on_execution_cancelled(UUID(int=1), "d")
    assert entered.wait(DEADLINE)
    with pytest.raises(DemoError, match=r"the listener still held 2 events after 0\.01 s"):
        _close(listener, timeout=0.01)
    assert "2 items are still held" in caplog.text
    gate.set()
    assert listener.close(DEADLINE)
    provider.shutdown()
