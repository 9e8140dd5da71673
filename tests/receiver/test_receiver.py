"""The OTLP endpoint, spoken to by real exporters, by requests and by gRPC stubs over real sockets."""

from __future__ import annotations

import gzip
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
import requests
from google.protobuf import json_format
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # stubs without py.typed
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # stubs without py.typed
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
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel.errors import DecodeError, ReceiverError
from constellation_otel.receiver import (
    Delay,
    Drop,
    Exemplar,
    ExponentialBuckets,
    LogRecord,
    MetricPoint,
    PartialSuccess,
    Received,
    Receiver,
    Refuse,
    Resource,
    Scope,
    decode_traces,
)
from constellation_otel.traces import Span, SpanEvent
from support import in_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json"}
SDK_RESOURCE = SdkResource({"service.name": "shop"}, "https://example.com/resource")
RESOURCE = Resource({"service.name": "shop"}, "https://example.com/resource")
EVERYTHING = [
    pytest.param("grpc", False, id="grpc"),
    pytest.param("grpc", True, id="grpc-gzip"),
    pytest.param("http", False, id="http"),
    pytest.param("http", True, id="http-gzip"),
]
SERVICES: dict[str, tuple[str, Any, Any]] = {
    "traces": (
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
    ),
    "metrics": (
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        ExportMetricsServiceRequest,
        ExportMetricsServiceResponse,
    ),
    "logs": (
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        ExportLogsServiceRequest,
        ExportLogsServiceResponse,
    ),
}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def spans_named(*names: str) -> ExportTraceServiceRequest:
    """A request with a span of each name."""
    request = ExportTraceServiceRequest()
    scope_spans = request.resource_spans.add().scope_spans.add()
    for number, name in enumerate(names, 1):
        scope_spans.spans.add(trace_id=bytes(15) + b"\1", span_id=number.to_bytes(8), name=name)
    return request


def two_of_each(signal: str) -> Any:
    """A request of that signal with two items."""
    if signal == "traces":
        return spans_named("one", "two")
    if signal == "metrics":
        request = ExportMetricsServiceRequest()
        metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="one and two")
        metric.gauge.data_points.add(as_int=1)
        metric.gauge.data_points.add(as_int=2)
        return request
    logs = ExportLogsServiceRequest()
    scope_logs = logs.resource_logs.add().scope_logs.add()
    scope_logs.log_records.add(severity_text="one")
    scope_logs.log_records.add(severity_text="two")
    return logs


def post(receiver: Receiver, message: Any, signal: str = "traces", **options: Any) -> requests.Response:
    """Sends a message over HTTP/protobuf."""
    return requests.post(
        f"{receiver.http_endpoint}/v1/{signal}",
        data=message.SerializeToString(),
        headers=PROTOBUF,
        **{"timeout": 10, **options},
    )


def call(receiver: Receiver, message: Any, signal: str = "traces", **options: Any) -> Any:
    """Sends a message, or bytes, over gRPC."""
    method, _, response = SERVICES[signal]
    with grpc.insecure_channel(receiver.grpc_endpoint.removeprefix("http://")) as channel:
        export = channel.unary_unary(
            method,
            request_serializer=lambda it: it if isinstance(it, bytes) else it.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return cast("Any", export)(message, **{"timeout": 10, **options})


def trailing_metadata(error: Any) -> dict[str, Any]:
    return dict(error.trailing_metadata())


def names(receiver: Receiver) -> list[str]:
    return [span.name for span in receiver.spans]


def outcomes(receiver: Receiver) -> list[tuple[str | None, str | None, str, str]]:
    return [(request.signal, request.protocol, request.outcome, request.status) for request in receiver.requests]


@pytest.mark.parametrize(("protocol", "zipped"), EVERYTHING)
def test_a_span_of_the_sdk_arrives_whole(receiver: Receiver, protocol: str, zipped: bool) -> None:
    exporter: Any
    if protocol == "grpc":
        compression = grpc.Compression.Gzip if zipped else grpc.Compression.NoCompression
        exporter = GrpcSpanExporter(receiver.grpc_endpoint, insecure=True, compression=compression)
    else:
        http_compression = Compression.Gzip if zipped else Compression.NoCompression
        exporter = HttpSpanExporter(f"{receiver.http_endpoint}/v1/traces", compression=http_compression)
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
    exporter: Any
    if protocol == "grpc":
        compression = grpc.Compression.Gzip if zipped else grpc.Compression.NoCompression
        exporter = GrpcMetricExporter(receiver.grpc_endpoint, insecure=True, compression=compression)
    else:
        http_compression = Compression.Gzip if zipped else Compression.NoCompression
        exporter = HttpMetricExporter(f"{receiver.http_endpoint}/v1/metrics", compression=http_compression)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=float("inf"))
    view = View(instrument_name="sizes", aggregation=ExponentialBucketHistogramAggregation(max_scale=0))
    provider = MeterProvider([reader], resource=SDK_RESOURCE, views=[view], shutdown_on_exit=False)
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
    sizes = meter.create_histogram("sizes")
    for size in (-3, 0, 3, 5):
        sizes.record(abs(size))
    provider.force_flush()
    provider.shutdown()

    points = {point.name: point for point in receiver.metrics}
    common: dict[str, Any] = {"resource": RESOURCE, "scope": Scope("scope", "1.2", "https://example.com/scope")}
    times: dict[str, Any] = {
        name: {"start_ns": point.start_ns, "time_ns": point.time_ns} for name, point in points.items()
    }
    (exemplar,) = [it for it in points["duration"].exemplars if it.trace_id]
    assert exemplar == Exemplar(1.5, exemplar.timestamp_ns, span_context.trace_id, span_context.span_id, {})
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
    assert (points["sizes"].kind, points["sizes"].count, points["sizes"].sum) == ("exponential_histogram", 4, 11.0)
    assert points["sizes"].exponential == ExponentialBuckets(
        scale=0,
        zero_threshold=0.0,
        zero_count=1,
        positive_offset=1,
        positive_counts=(2, 1),
        negative_offset=0,
        negative_counts=(0,),
    )
    assert 0 < points["duration"].start_ns < points["duration"].time_ns
    assert 0 < exemplar.timestamp_ns < points["duration"].time_ns


@pytest.mark.parametrize(("protocol", "zipped"), EVERYTHING)
def test_a_log_record_of_the_sdk_arrives_whole(receiver: Receiver, protocol: str, zipped: bool) -> None:
    exporter: Any
    if protocol == "grpc":
        compression = grpc.Compression.Gzip if zipped else grpc.Compression.NoCompression
        exporter = GrpcLogExporter(receiver.grpc_endpoint, insecure=True, compression=compression)
    else:
        http_compression = Compression.Gzip if zipped else Compression.NoCompression
        exporter = HttpLogExporter(f"{receiver.http_endpoint}/v1/logs", compression=http_compression)
    provider = LoggerProvider(resource=SDK_RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    logger = provider.get_logger("scope", "1.2", "https://example.com/scope")
    traces = TracerProvider(shutdown_on_exit=False)
    with traces.get_tracer("scope").start_as_current_span("logged") as span:
        logger.emit(
            timestamp=1_000,
            observed_timestamp=2_000,
            severity_number=SeverityNumber.WARN,
            severity_text="WARNING",
            body={"said": ["a", 1, None, b"\xff"]},
            attributes={"n": 1},
            event_name="module.failed",
        )
        span_context = span.get_span_context()
    logger.emit(timestamp=3_000, observed_timestamp=3_000, body="outside")
    provider.shutdown()

    scope = Scope("scope", "1.2", "https://example.com/scope")
    inside, outside = receiver.logs
    assert inside == LogRecord(
        timestamp_ns=1_000,
        observed_timestamp_ns=2_000,
        severity_number=13,
        severity_text="WARNING",
        body={"said": ("a", 1, None, b"\xff")},
        event_name="module.failed",
        attributes={"n": 1},
        trace_id=span_context.trace_id,
        span_id=span_context.span_id,
        trace_flags=span_context.trace_flags,
        resource=RESOURCE,
        scope=scope,
    )
    assert (outside.body, outside.trace_id, outside.span_id, outside.event_name) == ("outside", None, None, "")


def test_otlp_json_is_read_with_hexadecimal_ids_and_answered_in_json(receiver: Receiver) -> None:
    document = {
        "resourceSpans": [
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]},
                "scopeSpans": [
                    {
                        "scope": {"name": "scope"},
                        "spans": [
                            {
                                "traceId": "4BF92F3577B34DA6A3CE929D0E0E4736",
                                "spanId": "00f067aa0ba902b7",
                                "parentSpanId": "",
                                "traceState": "k=v",
                                "flags": 0x301,
                                "name": "json",
                                "kind": 2,
                                "startTimeUnixNano": "1000",
                                "endTimeUnixNano": 2000,
                                "attributes": [
                                    # a name that is also a field's
                                    {"key": "traceId", "value": {"intValue": "9007199254740993"}},
                                    {"key": "bytes", "value": {"bytesValue": "/w=="}},
                                ],
                                "status": {"code": 1, "message": "for an error only"},
                                "newField": {"spanId": None},
                            }
                        ],
                    }
                ],
            }
        ]
    }
    answer = requests.post(f"{receiver.http_endpoint}/v1/traces", json=document, timeout=10)
    assert (answer.status_code, answer.headers["content-type"], answer.json()) == (200, "application/json", {})
    assert receiver.received == [
        Received(
            Span(
                trace_id=0x4BF92F3577B34DA6A3CE929D0E0E4736,
                span_id=0x00F067AA0BA902B7,
                parent_span_id=None,
                trace_state="k=v",
                trace_flags=1,
                name="json",
                kind=SpanKind.SERVER,
                start_ns=1_000,
                end_ns=2_000,
                attributes={"traceId": 9007199254740993, "bytes": b"\xff"},
                status=StatusCode.OK,
            ),
            Resource({"service.name": "shop"}),
            Scope("scope"),
        )
    ]
    assert outcomes(receiver) == [("traces", "http/json", "accepted", "200")]


def test_metrics_and_logs_are_read_from_json_too(receiver: Receiver) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    exemplar = {"asInt": "7", "timeUnixNano": "5", "traceId": trace_id, "spanId": span_id}
    metrics = {
        "resourceMetrics": [
            {"scopeMetrics": [{"metrics": [{"name": "m", "gauge": {"dataPoints": [{"exemplars": [exemplar]}]}}]}]}
        ]
    }
    logs = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"traceId": trace_id, "spanId": span_id, "flags": 257}]}]}]}
    assert requests.post(f"{receiver.http_endpoint}/v1/metrics", json=metrics, timeout=10).json() == {}
    assert requests.post(f"{receiver.http_endpoint}/v1/logs", json=logs, timeout=10).json() == {}
    (point,), (record,) = receiver.metrics, receiver.logs
    assert point.value is None
    assert point.exemplars == (Exemplar(7, 5, int(trace_id, 16), int(span_id, 16), {}),)
    assert (record.trace_id, record.span_id, record.trace_flags, record.body) == (
        int(trace_id, 16),
        int(span_id, 16),
        1,
        None,
    )


def test_a_summary_is_read_and_a_metric_without_data_has_no_points(receiver: Receiver) -> None:
    request = ExportMetricsServiceRequest()
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    metrics.add(name="nothing")
    point = metrics.add(name="latency", unit="ms").summary.data_points.add(count=2, sum=3.0, time_unix_nano=9)
    point.quantile_values.add(quantile=0.5, value=1.25)
    post(receiver, request, "metrics")
    assert receiver.metrics == [
        MetricPoint(
            name="latency",
            description="",
            unit="ms",
            kind="summary",
            attributes={},
            start_ns=0,
            time_ns=9,
            resource=Resource({}),
            scope=Scope(""),
            count=2,
            sum=3.0,
            quantiles={0.5: 1.25},
        )
    ]


def test_values_that_this_version_does_not_know_are_read_as_the_specification_says() -> None:
    request = spans_named("odd")
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.kind = 0  # type: ignore[assignment] # unspecified
    span.attributes.add(key="empty")
    span.attributes.add(key="profile").value.string_value_strindex = 3
    span.parent_span_id = bytes(8)
    span.status.code = trace_pb2.Status.STATUS_CODE_ERROR
    (received,) = decode_traces(request.SerializeToString(), json=False)
    assert received.span.kind is SpanKind.INTERNAL
    assert received.span.attributes == {"empty": None, "profile": None}
    assert received.span.parent_span_id is None
    assert (received.span.status, received.span.status_description) == (StatusCode.ERROR, None)


def test_what_a_backend_returns_decodes_to_the_same_spans_from_json_and_protobuf() -> None:
    request = spans_named("a", "b")
    as_json = json.dumps(
        {
            "resourceSpans": [
                {
                    "scopeSpans": [
                        {
                            "spans": [
                                {"traceId": f"{1:032x}", "spanId": f"{1:016x}", "name": "a"},
                                {"traceId": f"{1:032x}", "spanId": f"{2:016x}", "name": "b"},
                            ]
                        }
                    ]
                }
            ]
        }
    ).encode()
    received = decode_traces(as_json, json=True)
    assert received == decode_traces(request.SerializeToString(), json=False)
    assert [it.span.name for it in received] == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff", "ExportTraceServiceRequest in JSON: "),
        (b"{", "ExportTraceServiceRequest in JSON: "),
        (b"[]", "an object is needed, not list"),
        (b"[" * 100_000, "RecursionError|recursion"),
        (b'{"resourceSpans": 3}', "ExportTraceServiceRequest in JSON: "),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}', "hexadecimal"),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "\\ud800"}]}]}]}', "in JSON: "),
        (
            b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "s", "traceId": "0abc"}]}]}]}',
            "the trace id of span 's' is 0abc; 16 bytes are needed that are not all zero",
        ),
        (
            b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "s"}]}]}]}',
            "the trace id of span 's' is empty; 16 bytes",
        ),
    ],
)
def test_json_that_is_no_otlp_is_refused_with_a_reason(receiver: Receiver, data: bytes, said: str) -> None:
    with pytest.raises(DecodeError, match=said):
        decode_traces(data, json=True)
    answer = requests.post(f"{receiver.http_endpoint}/v1/traces", data=data, headers=JSON, timeout=10)
    assert answer.status_code == 400
    assert answer.json()["code"] == 3
    assert re.search(said, answer.json()["message"])
    assert outcomes(receiver) == [("traces", "http/json", "invalid", "400")]
    assert receiver.spans == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(
            st.sampled_from(["resourceSpans", "scopeSpans", "spans", "traceId", "name", "kind", "attributes", "value"])
            | st.text(),
            values,
            max_size=3,
        )
    ),
)


@given(json_values | st.builds(lambda spans: {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}, json_values))
def test_any_json_is_read_or_refused_with_a_decode_error(document: Any) -> None:
    try:
        decode_traces(json.dumps(document).encode(), json=True)
    except DecodeError as error:
        assert str(error)  # noqa: PT017 - either is fine, no other error is


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused_with_a_decode_error(data: bytes) -> None:
    try:
        decode_traces(data, json=False)
    except DecodeError as error:
        assert str(error)  # noqa: PT017 - either is fine, no other error is


def test_junk_in_protobuf_is_refused_as_a_bad_request_over_both_protocols(receiver: Receiver) -> None:
    answer = requests.post(f"{receiver.http_endpoint}/v1/logs", data=b"\xff", headers=PROTOBUF, timeout=10)
    status = Status.FromString(answer.content)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/x-protobuf")
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert status.message.startswith("the body is no ExportLogsServiceRequest in protobuf: ")
    with pytest.raises(grpc.RpcError) as refused:
        call(receiver, b"\xff", "logs")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == status.message
    assert outcomes(receiver) == [
        ("logs", "http/protobuf", "invalid", "400"),
        ("logs", "grpc", "invalid", "INVALID_ARGUMENT"),
    ]


def test_another_path_a_wrong_method_and_an_unknown_type_have_their_own_statuses(receiver: Receiver) -> None:
    url = receiver.http_endpoint
    with requests.Session() as session:
        elsewhere = session.post(f"{url}/v2/traces", data=b"x", headers=PROTOBUF, timeout=10)
        got = session.get(f"{url}/v1/traces", timeout=10)
        head = session.head(f"{url}/v1/traces", timeout=10)
        text = session.post(f"{url}/v1/traces", data=b"x", headers={"Content-Type": "text/plain"}, timeout=10)
        fine = session.post(f"{url}/v1/traces?a=b", data=b"", headers=PROTOBUF, timeout=10)
    assert elsewhere.status_code == 404
    message = "/v2/traces is not here; there are /v1/traces, /v1/metrics, /v1/logs"
    assert Status.FromString(elsewhere.content).message == message
    assert (got.status_code, got.headers["allow"]) == (405, "POST")
    assert got.text == "GET is not allowed here; OTLP is sent by POST"
    assert (head.status_code, head.text) == (405, "")
    assert text.status_code == 415
    assert (
        text.text == "the content type text/plain is unknown here; there are application/x-protobuf, application/json"
    )
    assert fine.status_code == 200
    assert outcomes(receiver) == [
        (None, "http/protobuf", "invalid", "404"),
        ("traces", None, "invalid", "405"),
        ("traces", None, "invalid", "405"),
        ("traces", None, "invalid", "415"),
        ("traces", "http/protobuf", "accepted", "200"),
    ]


def test_all_requests_of_a_client_share_one_connection_whatever_the_answers(receiver: Receiver) -> None:
    host, port = receiver.http_endpoint.removeprefix("http://").split(":")
    junk = b"POST /v1/traces HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n{"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(junk * 3)
        seen = b""
        while seen.count(b'"code": 3') < 3:
            seen += connection.recv(65_536)
    assert seen.count(b"HTTP/1.1 400 Bad Request") == 3


@pytest.mark.parametrize(
    ("encoding", "body", "status", "said"),
    [
        ("gzip", b"not gzip", 400, "the body is no gzip: "),
        ("gzip", gzip.compress(b"x" * 100, mtime=0)[:-9], 400, "the body is no gzip: "),
        ("gzip", gzip.compress(b"x", mtime=0)[:10] + b"\xff\xff\xff\xff" * 5, 400, "the body is no gzip: "),
        ("br", b"x", 415, "the content encoding br is unknown here; there are gzip and identity"),
    ],
)
def test_a_body_that_cannot_be_unpacked_is_refused(
    receiver: Receiver, encoding: str, body: bytes, status: int, said: str
) -> None:
    headers = {**PROTOBUF, "Content-Encoding": encoding}
    answer = requests.post(f"{receiver.http_endpoint}/v1/traces", data=body, headers=headers, timeout=10)
    assert answer.status_code == status
    assert Status.FromString(answer.content).message.startswith(said)


def test_a_request_over_the_limit_is_refused_packed_or_not_and_the_connection_stays_usable() -> None:
    request = spans_named("x" * 2_000).SerializeToString()
    with Receiver(max_request_bytes=1_000) as receiver, requests.Session() as session:
        url = f"{receiver.http_endpoint}/v1/traces"
        large = session.post(url, data=request, headers=PROTOBUF, timeout=10)
        huge = session.post(url, data=bytes(3_000_000), headers=PROTOBUF, timeout=10)
        bomb = {**PROTOBUF, "Content-Encoding": "gzip"}
        packed = session.post(url, data=gzip.compress(request), headers=bomb, timeout=10)
        small = session.post(url, data=b"", headers=PROTOBUF, timeout=10)
        with pytest.raises(grpc.RpcError) as refused:
            call(receiver, request)
        statuses = [large.status_code, huge.status_code, packed.status_code, small.status_code]
    assert statuses == [413, 413, 413, 200]
    assert Status.FromString(large.content).message == f"{len(request)} bytes are too much; the limit is 1000 bytes"
    assert Status.FromString(packed.content).message == "the unpacked body is too much; the limit is 1000 bytes"
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert receiver.spans == []
    assert [it.size for it in receiver.requests] == [len(request), 3_000_000, len(gzip.compress(request)), 0]


def test_a_chunked_body_is_read(receiver: Receiver) -> None:
    body = spans_named("in pieces").SerializeToString()
    pieces = iter([body[:3], body[3:]])
    answer = requests.post(f"{receiver.http_endpoint}/v1/traces", data=pieces, headers=PROTOBUF, timeout=10)
    assert answer.status_code == 200
    assert names(receiver) == ["in pieces"]
    assert receiver.requests[0].size == len(body)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("Content-Length: -1", "'-1' is no length of a body"),
        ("Content-Length: ab", "'ab' is no length of a body"),
        ("Transfer-Encoding: chunked", "'' is no length of a body"),
        ("Content-Length: 10", "the body ended 10 bytes before its end"),
    ],
)
def test_a_body_without_a_proper_end_is_a_bad_request_and_ends_the_connection(
    receiver: Receiver, head: str, said: str
) -> None:
    host, port = receiver.http_endpoint.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"POST /v1/traces HTTP/1.1\r\n{head}\r\n\r\n".encode())
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"Connection: close\r\n" in answer
    assert answer.endswith(said.encode())
    assert outcomes(receiver) == [("traces", None, "invalid", "400")]


def test_trailers_after_a_chunked_body_are_skipped(receiver: Receiver) -> None:
    host, port = receiver.http_endpoint.removeprefix("http://").split(":")
    head = b"POST /v1/traces HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head + b"1;ext=1\r\n{\r\n1\r\n}\r\n0\r\nTrailer: x\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"{}")


def test_a_connection_that_breaks_in_the_middle_is_logged_and_the_others_go_on(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = receiver.http_endpoint.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(b"POST /v1/traces HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
    # its thread is in the middle of this request now
    assert connection.recv(1) == b"H"
    # a reset, where a close would be an end
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert post(receiver, spans_named("after")).status_code == 200
    receiver.stop()
    assert [record.getMessage().partition(" from ")[0] for record in caplog.records] == ["the connection"]
    assert names(receiver) == ["after"]


def test_stopping_in_the_middle_of_a_request_is_nothing_to_warn_of(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = receiver.http_endpoint.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /v1/traces HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
        # its thread is in the middle of this request now
        assert connection.recv(1) == b"H"
        receiver.stop()
    assert outcomes(receiver) == [("traces", None, "invalid", "400")]
    assert caplog.records == []


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_a_refusal_over_http_has_the_status_retry_after_and_a_status_message(receiver: Receiver, signal: str) -> None:
    receiver.order(Refuse(http_status=429, retry_after=1.2, message="slow down", times=2))
    first = post(receiver, two_of_each(signal), signal)
    as_json = json_format.MessageToDict(two_of_each("logs"))
    second = requests.post(f"{receiver.http_endpoint}/v1/logs", json=as_json, timeout=10)
    third = post(receiver, two_of_each(signal), signal)
    assert [answer.status_code for answer in (first, second, third)] == [429, 429, 200]
    assert first.headers["retry-after"] == "2"
    assert Status.FromString(first.content) == Status(code=14, message="slow down")
    assert second.json() == {"code": 14, "message": "slow down"}
    assert "retry-after" not in third.headers
    assert len(receiver.spans) + len(receiver.metrics) + len(receiver.logs) == 2
    assert [it.outcome for it in receiver.requests] == ["refused", "refused", "accepted"]
    assert receiver.requests[0].message == "slow down"


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_a_refusal_over_grpc_has_the_code_and_retry_info(receiver: Receiver, signal: str) -> None:
    receiver.order(Refuse(retry_after=1.25))
    receiver.order(Refuse(grpc_code=grpc.StatusCode.PERMISSION_DENIED, message="who are you"))
    with pytest.raises(grpc.RpcError) as unavailable:
        call(receiver, two_of_each(signal), signal)
    with pytest.raises(grpc.RpcError) as denied:
        call(receiver, two_of_each(signal), signal)
    response = call(receiver, two_of_each(signal), signal)

    assert unavailable.value.code() is grpc.StatusCode.UNAVAILABLE
    assert unavailable.value.details() == "refused by order"
    status = Status.FromString(trailing_metadata(unavailable.value)["grpc-status-details-bin"])
    assert (status.code, status.message) == (14, "refused by order")
    retry_info = RetryInfo()
    assert status.details[0].Unpack(retry_info)
    assert retry_info.retry_delay.ToTimedelta().total_seconds() == 1.25
    assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "grpc-status-details-bin" not in trailing_metadata(denied.value)
    assert not response.HasField("partial_success")
    assert outcomes(receiver) == [
        (signal, "grpc", "refused", "UNAVAILABLE"),
        (signal, "grpc", "refused", "PERMISSION_DENIED"),
        (signal, "grpc", "accepted", "OK"),
    ]


@pytest.mark.parametrize(
    ("signal", "field"),
    [("traces", "rejected_spans"), ("metrics", "rejected_data_points"), ("logs", "rejected_log_records")],
)
def test_a_partial_success_keeps_what_is_not_rejected(receiver: Receiver, signal: str, field: str) -> None:
    receiver.order(PartialSuccess(1, "the last one", times=2))
    receiver.order(PartialSuccess(9))
    receiver.order(PartialSuccess(0, ""))
    _, _, response = SERVICES[signal]
    over_http = response.FromString(post(receiver, two_of_each(signal), signal).content)
    over_grpc = call(receiver, two_of_each(signal), signal)
    everything = call(receiver, two_of_each(signal), signal)
    nothing = call(receiver, two_of_each(signal), signal)
    assert over_http == over_grpc
    assert getattr(over_http.partial_success, field) == 1
    assert over_http.partial_success.error_message == "the last one"
    assert getattr(everything.partial_success, field) == 2
    assert nothing.HasField("partial_success")
    assert getattr(nothing.partial_success, field) == 0
    kept = [
        *names(receiver),
        *(point.value for point in receiver.metrics),
        *(record.severity_text for record in receiver.logs),
    ]
    assert kept == ([1, 1, 1, 2] if signal == "metrics" else ["one", "one", "one", "two"])
    assert [it.outcome for it in receiver.requests] == ["partial"] * 4


def test_a_partial_success_in_json_has_its_count_as_json_has_64_bits(receiver: Receiver) -> None:
    receiver.order(PartialSuccess(1, "no"))
    span = {"traceId": "1" * 32, "spanId": "1" * 16}
    document = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    answer = requests.post(f"{receiver.http_endpoint}/v1/traces", json=document, timeout=10)
    assert answer.json() == {"partialSuccess": {"rejectedSpans": "1", "errorMessage": "no"}}


def test_a_dropped_request_has_no_answer_and_is_kept_only_where_the_answer_alone_gets_lost(receiver: Receiver) -> None:
    receiver.order(Drop(times=2))
    receiver.order(Drop(kept=True, times=3))
    with pytest.raises(requests.ConnectionError):
        post(receiver, spans_named("lost"))
    with pytest.raises(grpc.RpcError) as lost:
        call(receiver, spans_named("lost"))
    with pytest.raises(requests.ConnectionError):
        post(receiver, spans_named("kept over HTTP"))
    with pytest.raises(grpc.RpcError) as unanswered:
        call(receiver, spans_named("kept over gRPC"))
    with pytest.raises(grpc.RpcError) as junk:
        call(receiver, b"\xff")
    assert {it.value.code() for it in (lost, unanswered, junk)} == {grpc.StatusCode.CANCELLED}
    assert names(receiver) == ["kept over HTTP", "kept over gRPC"]
    assert outcomes(receiver) == [
        ("traces", protocol, "dropped", "") for protocol in ("http/protobuf", "grpc", "http/protobuf", "grpc", "grpc")
    ]


def test_a_delayed_request_is_answered_late_over_both_protocols(receiver: Receiver) -> None:
    receiver.order(Delay(0.05, times=2))
    for send in (post, call):
        started = time.monotonic()
        send(receiver, spans_named("late"))
        assert time.monotonic() - started >= 0.05
    assert names(receiver) == ["late", "late"]


def test_stopping_ends_a_delay_and_what_was_delayed_is_not_kept(receiver: Receiver) -> None:
    receiver.order(Delay(600, times=2))
    with ThreadPoolExecutor(2) as threads:
        over_http = threads.submit(post, receiver, spans_named("never"), timeout=30)
        over_grpc = threads.submit(call, receiver, spans_named("never"), timeout=30)
        receiver.wait_for(lambda it: it.faults == [], 10, "both requests to be delayed")
        receiver.stop()
        assert isinstance(over_http.exception(), requests.ConnectionError)
        assert isinstance(over_grpc.exception(), grpc.RpcError)
    assert receiver.spans == []
    assert sorted(outcomes(receiver)) == [
        ("traces", "grpc", "dropped", ""),
        ("traces", "http/protobuf", "dropped", ""),
    ]


def test_faults_happen_in_order_and_only_to_their_signal(receiver: Receiver) -> None:
    receiver.order(Refuse(http_status=500), signal="logs")
    receiver.order(Refuse(http_status=502, times=2))
    assert receiver.faults == [Refuse(http_status=500), Refuse(http_status=502, times=2)]
    statuses = [
        post(receiver, two_of_each(signal), signal).status_code
        for signal in ("traces", "logs", "metrics", "logs", "traces")
    ]
    assert statuses == [502, 500, 502, 200, 200]
    assert receiver.faults == []


def test_a_fault_that_never_happens_is_refused(receiver: Receiver) -> None:
    with pytest.raises(ValueError, match=r"Delay\(seconds=1, times=0\) would happen 0 times; order at least one"):
        receiver.order(Delay(1, times=0))


def test_a_receiver_that_was_away_comes_back_on_the_same_ports_with_what_it_had(receiver: Receiver) -> None:
    endpoints = receiver.grpc_endpoint, receiver.http_endpoint
    post(receiver, spans_named("before"))
    receiver.stop()
    receiver.stop()
    with pytest.raises(requests.ConnectionError):
        post(receiver, spans_named("meanwhile"))
    with pytest.raises(grpc.RpcError) as away:
        call(receiver, spans_named("meanwhile"))
    assert away.value.code() is grpc.StatusCode.UNAVAILABLE
    receiver.start()
    receiver.start()
    assert (receiver.grpc_endpoint, receiver.http_endpoint) == endpoints
    post(receiver, spans_named("after"))
    call(receiver, spans_named("after"))
    assert names(receiver) == ["before", "after", "after"]


def test_an_exporter_that_retries_gets_its_span_through_an_outage(receiver: Receiver) -> None:
    receiver.order(Refuse())
    exporter = GrpcSpanExporter(receiver.grpc_endpoint, insecure=True)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("scope").start_span("persistent").end()
    provider.shutdown()
    assert names(receiver) == ["persistent"]
    assert [it.outcome for it in receiver.requests] == ["refused", "accepted"]
    arrivals = [it.received_ns for it in receiver.requests]
    assert arrivals == sorted(arrivals)


def test_stopping_cuts_idle_connections_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with Receiver() as receiver, requests.Session() as session:
        session.get(receiver.http_endpoint, timeout=10)
        call(receiver, spans_named("x"))
        receiver.stop()
        left = {thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("otlp-")}
    assert left == set()


CLIENT_THAT_STAYS_CONNECTED = """
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from constellation_otel.receiver import Receiver

for number in range(10):
    with Receiver() as receiver:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(receiver.grpc_endpoint)))
        provider.get_tracer("scope").start_span("x").end()
    provider.shutdown()
"""


def test_stopping_lets_a_connected_grpc_client_go_without_a_word() -> None:
    line = [sys.executable, "-c", CLIENT_THAT_STAYS_CONNECTED]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_port_in_use_is_an_error_that_names_it(receiver: Receiver) -> None:
    grpc_port, http_port = (int(it.rpartition(":")[2]) for it in (receiver.grpc_endpoint, receiver.http_endpoint))
    with pytest.raises(ReceiverError, match=rf"OTLP/HTTP on 127\.0\.0\.1:{http_port}: .*; port 0 takes a free one"):
        Receiver(http_port=http_port).start()
    with pytest.raises(ReceiverError, match=rf"OTLP/gRPC on 127\.0\.0\.1:{grpc_port}: .*; port 0 takes a free one"):
        Receiver(grpc_port=grpc_port).start()
    with pytest.raises(ReceiverError, match=r"OTLP/HTTP on 127\.0\.0\.1:70000: "):
        Receiver(http_port=70_000).start()


def test_an_ipv6_address_is_in_brackets_in_the_endpoints() -> None:
    with Receiver("::1") as receiver:
        assert receiver.http_endpoint.startswith("http://[::1]:")
        post(receiver, spans_named("http"))
        call(receiver, spans_named("grpc"))
    assert names(receiver) == ["http", "grpc"]


def test_a_receiver_that_never_started_has_no_endpoint() -> None:
    with pytest.raises(ReceiverError, match=r"no port yet; use it in a with statement or call start\(\)"):
        _ = Receiver().grpc_endpoint


def test_waiting_ends_when_the_spans_are_there(receiver: Receiver) -> None:
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(receiver.wait_for_spans, 2)
        post(receiver, spans_named("a"))
        call(receiver, spans_named("b"))
        assert [span.name for span in waiting.result(timeout=10)] == ["a", "b"]


def test_a_missed_deadline_says_what_was_awaited_and_what_there_was(receiver: Receiver) -> None:
    with pytest.raises(ReceiverError) as nothing:
        receiver.wait_for_spans(1, timeout=0)
    assert str(nothing.value) == (
        "waited 0 s for 1 spans; there were 0 spans, 0 data points and 0 log records in 0 requests"
    )
    receiver.order(Refuse())
    with pytest.raises(grpc.RpcError):
        call(receiver, spans_named("refused"))
    requests.get(receiver.http_endpoint, timeout=10)
    post(receiver, spans_named(*"abcdefghijkl"))
    with pytest.raises(ReceiverError) as something:
        receiver.wait_for(lambda it: bool(it.logs), 0.01, "a log record")
    assert str(something.value) == (
        "waited 0.01 s for a log record; there were 12 spans (… c, d, e, f, g, h, i, j, k, l), 0 data points and"
        " 0 log records in 3 requests (traces grpc refused UNAVAILABLE, invalid 404, traces http/protobuf accepted 200)"
    )


def test_what_is_kept_is_bounded_and_what_was_let_go_is_counted() -> None:
    with Receiver(max_kept=3) as receiver:
        post(receiver, spans_named("a", "b"))
        post(receiver, spans_named("c", "d"))
        post(receiver, spans_named("e", "f", "g", "h", "i"))
        post(receiver, two_of_each("metrics"), "metrics")
    assert names(receiver) == ["g", "h", "i"]
    assert len(receiver.requests) == 3
    assert receiver.dropped == {"spans": 6, "metrics": 0, "logs": 0, "requests": 1}


def test_clearing_forgets_everything(receiver: Receiver) -> None:
    for signal in ("traces", "metrics", "logs"):
        call(receiver, two_of_each(signal), signal)
    receiver.order(Drop())
    receiver.clear()
    assert (receiver.spans, receiver.metrics, receiver.logs, receiver.requests, receiver.faults) == ([], [], [], [], [])
    assert set(receiver.dropped.values()) == {0}


def test_grpc_metadata_is_kept_and_binary_values_are_in_base64(receiver: Receiver) -> None:
    call(receiver, spans_named("a"), metadata=(("authorization", "Bearer x"), ("token-bin", b"\xff")))
    headers = receiver.requests[0].headers
    assert (headers["authorization"], headers["token-bin"]) == ("Bearer x", "/w==")


def test_a_predicate_that_is_waited_for_holds_no_request_up(receiver: Receiver) -> None:
    asked: list[int] = []

    def met(it: Receiver) -> bool:
        asked.append(len(it.requests))
        if len(asked) == 1:
            # would wait for this one's lock
            in_threads(1, lambda: post(it, ExportTraceServiceRequest(), timeout=5))
        return len(asked) == 2

    receiver.wait_for(met, 10.0, "the request")
    assert asked == [0, 1]
