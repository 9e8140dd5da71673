"""An OTLP client of the simplest kind: requests and gRPC stubs over real sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import grpc
import requests
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from constellation_otel.receiver import Receiver

__all__ = ["PROTOBUF", "SERVICES", "call", "names", "outcomes", "post", "spans_named", "two_of_each"]

PROTOBUF = {"Content-Type": "application/x-protobuf"}
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


def names(receiver: Receiver) -> list[str]:
    """The names of the spans that arrived, in order."""
    return [span.name for span in receiver.spans]


def outcomes(receiver: Receiver) -> list[tuple[str | None, str | None, str, str]]:
    """Each request's signal, protocol, outcome and status, in order of arrival."""
    return [(request.signal, request.protocol, request.outcome, request.status) for request in receiver.requests]
