"""What the OpenTelemetry SDK's exporters send, decoded; and what cannot be."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel.errors import DecodeError
from constellation_otel.otel._sdk_internals import emit_log
from constellation_otel.receiver import (
    Exemplar,
    LogRecord,
    MetricPoint,
    Received,
    Receiver,
    Resource,
    Scope,
    decode_metrics,
    decode_traces,
)
from constellation_otel.traces import Span, SpanEvent
from otlp_client import spans_named

SDK_RESOURCE = SdkResource({"service.name": "shop"}, "https://example.com/resource")
RESOURCE = Resource({"service.name": "shop"}, "https://example.com/resource")
EVERYTHING = [
    pytest.param("grpc", False, id="grpc"),
    pytest.param("grpc", True, id="grpc-gzip"),
    pytest.param("http", False, id="http"),
    pytest.param("http", True, id="http-gzip"),
]


EXPORTERS: dict[str, tuple[Any, Any]] = {
    "traces": (GrpcSpanExporter, HttpSpanExporter),
    "metrics": (GrpcMetricExporter, HttpMetricExporter),
    "logs": (GrpcLogExporter, HttpLogExporter),
}


def exporter_to(receiver: Receiver, signal: str, protocol: str, zipped: bool) -> Any:
    by_grpc, by_http = EXPORTERS[signal]
    if protocol == "grpc":
        compression = grpc.Compression.Gzip if zipped else grpc.Compression.NoCompression
        return by_grpc(receiver.grpc_endpoint, insecure=True, compression=compression)
    http_compression = Compression.Gzip if zipped else Compression.NoCompression
    return by_http(f"{receiver.http_endpoint}/v1/{signal}", compression=http_compression)


@pytest.mark.parametrize(("protocol", "zipped"), EVERYTHING)
def test_a_span_of_the_sdk_arrives_whole(receiver: Receiver, protocol: str, zipped: bool) -> None:
    exporter = exporter_to(receiver, "traces", protocol, zipped)
    provider = TracerProvider(resource=SDK_RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("scope", "1.2", "https://example.com/scope", {"of": "the scope"})
    with tracer.start_as_current_span("parent") as parent:
        child = tracer.start_span("child", kind=SpanKind.CLIENT, start_time=1_000)
        attributes: dict[str, Any] = {
            "text": "é",
            "truth": True,
            "int": -(2**62),
            "float": 0.5,
            "many": ("a", "b"),
            "none": (),
        }
        child.set_attributes(attributes)
        child.add_event("happened", {"n": 1}, timestamp=1_500)
        child.set_status(StatusCode.ERROR, "boom")
        child.end(2_000)
    provider.shutdown()

    context = child.get_span_context()
    assert receiver.received[0] == Received(
        Span(
            trace_id=context.trace_id,
            span_id=context.span_id,
            parent_span_id=parent.get_span_context().span_id,
            trace_state="",
            # the SDK's exporter sends no W3C flags, only whether the parent was remote
            trace_flags=0,
            name="child",
            kind=SpanKind.CLIENT,
            start_ns=1_000,
            end_ns=2_000,
            attributes=attributes,
            status=StatusCode.ERROR,
            status_description="boom",
            events=(SpanEvent("happened", 1_500, {"n": 1}),),
        ),
        RESOURCE,
        Scope("scope", "1.2", "https://example.com/scope", {"of": "the scope"}),
    )
    root = receiver.spans[1]
    assert (root.name, root.parent_span_id, root.status, root.status_description, root.kind) == (
        "parent",
        None,
        StatusCode.UNSET,
        None,
        SpanKind.INTERNAL,
    )
    request = receiver.requests[0]
    assert request.signal == "traces"
    assert request.protocol == ("grpc" if protocol == "grpc" else "http/protobuf")
    assert (request.outcome, request.status, request.message) == ("accepted", "OK" if protocol == "grpc" else "200", "")
    assert request.headers["user-agent"].startswith("OTel-OTLP-Exporter-Python/")
    if protocol == "http":
        assert request.headers.get("content-encoding", "none") == ("gzip" if zipped else "none")
        assert request.size == int(request.headers["content-length"])


@pytest.mark.parametrize(("protocol", "zipped"), EVERYTHING)
def test_metrics_of_the_sdk_arrive_with_their_exemplars(receiver: Receiver, protocol: str, zipped: bool) -> None:
    exporter = exporter_to(receiver, "metrics", protocol, zipped)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=float("inf"))
    provider = MeterProvider([reader], resource=SDK_RESOURCE, shutdown_on_exit=False)
    meter = provider.get_meter("scope", "1.2", "https://example.com/scope")
    traces = TracerProvider(shutdown_on_exit=False)
    with traces.get_tracer("scope").start_as_current_span("measured") as span:
        duration = meter.create_histogram("duration", "s", "How long", explicit_bucket_boundaries_advisory=[1.0, 2.0])
        duration.record(1.5, {"module": "Trim", "left.out": False})
        span_context = span.get_span_context()
    duration.record(2.5, {"module": "Trim", "left.out": False})
    meter.create_counter("runs").add(3)
    meter.create_up_down_counter("active").add(-1)
    meter.create_gauge("level", "1").set(0.25)
    provider.force_flush()
    provider.shutdown()

    points = {point.name: point for point in receiver.metrics}
    common: dict[str, Any] = {"resource": RESOURCE, "scope": Scope("scope", "1.2", "https://example.com/scope")}
    times: dict[str, Any] = {
        name: {"start_ns": point.start_ns, "time_ns": point.time_ns} for name, point in points.items()
    }
    (exemplar,) = [it for it in points["duration"].exemplars if it.trace_id]
    assert exemplar == Exemplar(1.5, exemplar.timestamp_ns, span_context.trace_id, span_context.span_id)
    assert points["duration"] == MetricPoint(
        name="duration",
        description="How long",
        unit="s",
        kind="histogram",
        attributes={"module": "Trim", "left.out": False},
        temporality="cumulative",
        count=2,
        sum=4.0,
        min=1.5,
        max=2.5,
        bounds=(1.0, 2.0),
        bucket_counts=(0, 1, 1),
        exemplars=points["duration"].exemplars,
        **times["duration"],
        **common,
    )
    assert points["runs"] == MetricPoint(
        name="runs",
        description="",
        unit="",
        kind="sum",
        attributes={},
        temporality="cumulative",
        monotonic=True,
        value=3,
        exemplars=points["runs"].exemplars,
        **times["runs"],
        **common,
    )
    assert (points["active"].kind, points["active"].monotonic, points["active"].value) == ("sum", False, -1)
    level = points["level"]
    assert (level.kind, level.unit, level.monotonic, level.temporality, level.value) == ("gauge", "1", None, None, 0.25)
    assert 0 < points["duration"].start_ns < points["duration"].time_ns
    assert 0 < exemplar.timestamp_ns < points["duration"].time_ns


@pytest.mark.parametrize(("protocol", "zipped"), EVERYTHING)
def test_a_log_record_of_the_sdk_arrives_whole(receiver: Receiver, protocol: str, zipped: bool) -> None:
    exporter = exporter_to(receiver, "logs", protocol, zipped)
    provider = LoggerProvider(resource=SDK_RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    logger = provider.get_logger("scope", "1.2", "https://example.com/scope")
    traces = TracerProvider(shutdown_on_exit=False)
    with traces.get_tracer("scope").start_as_current_span("logged") as span:
        emit_log(
            logger,
            timestamp=1_000,
            observed_timestamp=2_000,
            severity_number=SeverityNumber.WARN,
            severity_text="WARNING",
            body={"said": ["a", 1, b"\xff"]},
            attributes={"n": 1},
            event_name="module.failed",
        )
        span_context = span.get_span_context()
    # an older exporter needs a severity, and takes no null in a list
    emit_log(
        logger,
        timestamp=3_000,
        observed_timestamp=3_000,
        severity_number=SeverityNumber.UNSPECIFIED,
        body="outside",
    )
    provider.shutdown()

    scope = Scope("scope", "1.2", "https://example.com/scope")
    inside, outside = receiver.logs
    assert inside == LogRecord(
        timestamp_ns=1_000,
        observed_timestamp_ns=2_000,
        severity_number=13,
        severity_text="WARNING",
        body={"said": ("a", 1, b"\xff")},
        event_name="module.failed",
        attributes={"n": 1},
        trace_id=span_context.trace_id,
        span_id=span_context.span_id,
        trace_flags=span_context.trace_flags,
        resource=RESOURCE,
        scope=scope,
    )
    assert (outside.body, outside.trace_id, outside.span_id, outside.event_name) == ("outside", None, None, "")


def metric_of(kind: str) -> ExportMetricsServiceRequest:
    """A metric with one data point of that kind; ``name`` is one without data."""
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="latency")
    if kind != "name":
        getattr(metric, kind).data_points.add(time_unix_nano=9)
    return request


@pytest.mark.parametrize("kind", ["summary", "exponential_histogram"])
def test_a_metric_of_another_kind_is_refused(kind: str) -> None:
    with pytest.raises(DecodeError) as refused:
        decode_metrics(metric_of(kind).SerializeToString())
    assert str(refused.value) == f"metric 'latency' is of kind {kind}; this receiver reads gauge, sum, histogram"


def test_a_metric_without_data_has_no_points() -> None:
    assert decode_metrics(metric_of("name").SerializeToString()) == []


def test_a_data_point_without_a_value_has_none() -> None:
    (point,) = decode_metrics(metric_of("gauge").SerializeToString())
    assert (point.time_ns, point.value) == (9, None)


def test_unset_and_unknown_values_are_read_as_specified() -> None:
    request = spans_named("odd")
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.kind = 0  # type: ignore[assignment] # unspecified
    span.attributes.add(key="empty")
    # OTLP 1.9's string_value_strindex, whether or not the messages that are installed know it
    span.attributes.add(key="profile").value.MergeFromString(b"\x40\x03")
    span.parent_span_id = bytes(8)
    span.status.code = trace_pb2.Status.STATUS_CODE_ERROR
    (received,) = decode_traces(request.SerializeToString())
    assert received.span.kind is SpanKind.INTERNAL
    assert received.span.attributes == {"empty": None, "profile": None}
    assert received.span.parent_span_id is None
    assert (received.span.status, received.span.status_description) == (StatusCode.ERROR, None)


@pytest.mark.parametrize(
    ("field", "raw", "said"),
    [
        ("trace_id", b"\x0a\xbc", "the trace id of span 's' is 0abc; it must be 16 bytes, not all zero"),
        ("trace_id", b"", "the trace id of span 's' is empty; it must be 16 bytes, not all zero"),
        ("span_id", bytes(8), "the span id of span 's' is 0000000000000000; it must be 8 bytes, not all zero"),
        ("parent_span_id", b"\1", "the parent id of span 's' is 01; it must be 8 bytes, not all zero"),
    ],
)
def test_an_id_that_is_not_valid_is_refused(field: str, raw: bytes, said: str) -> None:
    request = spans_named("s")
    setattr(request.resource_spans[0].scope_spans[0].spans[0], field, raw)
    with pytest.raises(DecodeError) as refused:
        decode_traces(request.SerializeToString())
    assert str(refused.value) == said


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused_with_a_decode_error(data: bytes) -> None:
    try:
        decode_traces(data)
    except DecodeError as error:
        assert str(error)  # noqa: PT017 - either is fine, no other error is
