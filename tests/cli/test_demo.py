"""``constellation-otel demo``: what it draws or sends, and how it fails."""

from __future__ import annotations

import re
import threading
from collections import Counter
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from commands import command
from constellation_otel import OpenTelemetryListener
from constellation_otel.cli.demo import DemoError, _close
from constellation_otel.testing import span_tree
from demo_traces import PIPELINES, TRACES, linked_traces
from support import DEADLINE

if TYPE_CHECKING:
    from constellation_otel.receiver import Receiver
    from constellation_otel.traces import Span


def traces_of(spans: list[Span]) -> dict[int, list[Span]]:
    traces: dict[int, list[Span]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    return traces


def test_the_demo_draws_every_trace_that_arrived() -> None:
    done = command("demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(set(re.findall(r"^trace ([0-9a-f]{32})$", done.stdout, re.MULTILINE))) == 72
    for name, outcome in [
        ("word-count", "success"),
        ("age-of-text", "failure"),
        ("slow-index", "cancelled"),
        ("archive", "success"),
    ]:
        assert re.search(rf"^{name} · {outcome} · ", done.stdout, re.MULTILINE)
    assert re.search("^GET /report · ", done.stdout, re.MULTILINE)
    assert re.search("^72 traces with 278 spans, ", done.stdout, re.MULTILINE)
    assert "raised 23 times" in done.stdout


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_demo_sends_to_an_endpoint_and_prints_links(receiver: Receiver, protocol: str) -> None:
    endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
    done = command(
        "demo", "--endpoint", endpoint, "--jaeger", "http://jaeger.test/", OTEL_EXPORTER_OTLP_PROTOCOL=protocol
    )
    assert (done.returncode, done.stderr) == (0, "")
    traces = traces_of(receiver.spans)
    lines = linked_traces(done.stdout, "http://jaeger.test")
    assert {int(trace_id, 16) for trace_id, _ in lines} == traces.keys()
    assert Counter(name for _, name in lines) == TRACES
    trees = {tree.split(" (")[0]: tree for tree in map(span_tree, traces.values())}
    assert {name: trees[name] for name in PIPELINES} == PIPELINES
    assert {request.protocol for request in receiver.requests} == {protocol}
    assert any(point.exemplars for point in receiver.metrics)


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
