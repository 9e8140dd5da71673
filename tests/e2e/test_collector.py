"""collector-config.yaml, the configuration that users are offered, in a real Collector in front of a real Jaeger."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from .peers import Collector, Jaeger, NotYet, eventually
from .peers.collector import CONFIG, validate
from .peers.jaeger import spans_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.trace import SpanContext

RESOURCE = Resource({"service.name": "e2e"})


@dataclass(frozen=True)
class Exporters:
    """The SDK's three exporters, toward one Collector over one protocol."""

    protocol: str
    spans: SpanExporter
    metrics: MetricExporter
    logs: LogRecordExporter


def exporters(collector: Collector, protocol: str) -> Exporters:
    if protocol == "grpc":
        endpoint = collector.grpc_endpoint
        return Exporters(
            protocol,
            GrpcSpanExporter(endpoint=endpoint),
            GrpcMetricExporter(endpoint=endpoint),
            GrpcLogExporter(endpoint=endpoint),
        )
    endpoint = collector.http_endpoint
    return Exporters(
        protocol,
        HttpSpanExporter(endpoint=f"{endpoint}/v1/traces"),
        HttpMetricExporter(endpoint=f"{endpoint}/v1/metrics"),
        HttpLogExporter(endpoint=f"{endpoint}/v1/logs"),
    )


@pytest.fixture(params=["grpc", "http"])
def out(request: pytest.FixtureRequest, collector: Collector) -> Exporters:
    return exporters(collector, request.param)


def test_the_collector_itself_accepts_the_configuration_with_no_variable_set() -> None:
    checked = validate(CONFIG)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_the_collector_itself_refuses_a_misspelt_setting(tmp_path: Path) -> None:
    misspelt = tmp_path / "collector-config.yaml"
    misspelt.write_text(CONFIG.read_text().replace("max_elapsed_time", "max_elapsed_tiem"))
    checked = validate(misspelt)
    assert checked.returncode != 0
    assert "max_elapsed_tiem" in checked.stdout


def test_the_health_check_says_that_the_collector_is_available(collector: Collector) -> None:
    status, body = collector.health()
    assert (status, json.loads(body)["status"]) == (200, "Server available")


def test_a_trace_arrives_whole_in_jaeger(out: Exporters, jaeger: Jaeger) -> None:
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(out.spans))
    tracer = provider.get_tracer("e2e")
    with tracer.start_as_current_span("execution", attributes={"protocol": out.protocol}) as execution:
        modules = [tracer.start_span(name) for name in ("trim", "uppercase", "count")]
        for module in modules:
            module.end()
    provider.shutdown()

    root, *children = spans_of(jaeger.trace(f"{execution.get_span_context().trace_id:032x}", spans=4))

    assert (root["name"], root.get("parentSpanId")) == ("execution", None)
    assert root["attributes"] == [{"key": "protocol", "value": {"stringValue": out.protocol}}]
    assert [(child["name"], child["parentSpanId"]) for child in children] == [
        ("trim", root["spanId"]),
        ("uppercase", root["spanId"]),
        ("count", root["spanId"]),
    ]


def test_a_histogram_shows_on_the_prometheus_endpoint_with_its_exemplar(out: Exporters, collector: Collector) -> None:
    tracer = TracerProvider(resource=RESOURCE, shutdown_on_exit=False).get_tracer("e2e")
    # A day between exports: it is the shutdown that sends.
    reader = PeriodicExportingMetricReader(out.metrics, export_interval_millis=86_400_000)
    provider = MeterProvider([reader], resource=RESOURCE, shutdown_on_exit=False)
    histogram = provider.get_meter("e2e").create_histogram(f"e2e.{out.protocol}.duration", unit="s")
    with tracer.start_as_current_span("measured") as span:
        histogram.record(0.25)
    provider.shutdown()
    context = span.get_span_context()

    def exemplars() -> list[str]:
        buckets = [
            line
            for line in collector.scrape().splitlines()
            if line.startswith(f"e2e_{out.protocol}_duration_seconds_bucket{{")
        ]
        if not buckets:
            raise NotYet(collector.scrape())
        return [line.partition(" # ")[2] for line in buckets if " # " in line]

    (exemplar,) = eventually(exemplars, 10, "the histogram is on the Prometheus endpoint with its exemplar")
    labels, value, _timestamp = exemplar.split(" ")
    assert sorted(labels.strip("{}").split(",")) == [
        f'span_id="{context.span_id:016x}"',
        f'trace_id="{context.trace_id:032x}"',
    ]
    assert float(value) == 0.25


def emit_log(exporter: LogRecordExporter, body: str) -> None:
    provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    provider.get_logger("e2e").emit(
        timestamp=1, body=body, severity_number=SeverityNumber.ERROR, attributes={"answer": 42}
    )
    provider.shutdown()


def test_a_log_record_is_in_the_log_file(out: Exporters, collector: Collector) -> None:
    body = f"sent over {out.protocol}"
    emit_log(out.logs, body)

    def arrived() -> list[dict[str, Any]]:
        return [record for record in collector.log_records() if record["body"] == {"stringValue": body}]

    (record,) = eventually(arrived, 10, "the record is in the log file")
    assert record["timeUnixNano"] == "1"
    assert record["severityNumber"] == SeverityNumber.ERROR.value
    assert record["attributes"] == [{"key": "answer", "value": {"intValue": "42"}}]
    assert record["resource"]["attributes"] == [{"key": "service.name", "value": {"stringValue": "e2e"}}]


def finished_trace(spans: int) -> list[ReadableSpan]:
    """A root span and its children, ended and not yet sent."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("e2e")
    with tracer.start_as_current_span("execution"):
        for number in range(spans - 1):
            tracer.start_span(f"module {number}").end()
    provider.shutdown()
    return list(memory.get_finished_spans())


@pytest.mark.parametrize("end", [Collector.kill, Collector.stop], ids=["kill", "stop"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_spans_acknowledged_while_jaeger_is_down_survive_the_end_of_the_collector(
    tmp_path: Path, protocol: str, end: Callable[[Collector], int | None]
) -> None:
    jaeger = Jaeger(tmp_path / "jaeger")
    sent = finished_trace(50)
    with Collector(tmp_path / "collector", jaeger=jaeger.target) as collector:
        exporter = exporters(collector, protocol).spans
        # One request each: with a batch processor in the pipeline, the last of these would die with the process.
        acknowledged = [exporter.export([span]) for span in sent]
        end(collector)
        exporter.shutdown()
        assert acknowledged == [SpanExportResult.SUCCESS] * 50

        collector.start()
        with jaeger:
            found = spans_of(jaeger.trace(f"{context_of(sent[0]).trace_id:032x}", spans=50, deadline=60))

    assert sorted(span["spanId"] for span in found) == sorted(f"{context_of(span).span_id:016x}" for span in sent)


def test_spans_that_wait_for_jaeger_show_in_the_metrics_of_the_collector_itself(tmp_path: Path) -> None:
    with Collector(tmp_path, jaeger="127.0.0.1:1") as collector:
        exporter = exporters(collector, "grpc").spans
        assert exporter.export(finished_trace(50)) is SpanExportResult.SUCCESS
        exporter.shutdown()
        assert collector.queued_bytes() > 50


def test_log_records_survive_a_kill_of_the_collector(tmp_path: Path) -> None:
    with Collector(tmp_path / "collector", jaeger="127.0.0.1:1") as collector:
        emit_log(exporters(collector, "grpc").logs, "before")
        collector.kill()
        collector.start()
        emit_log(exporters(collector, "grpc").logs, "after")
        bodies = [record["body"]["stringValue"] for record in collector.log_records()]
    assert bodies == ["before", "after"]


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context
