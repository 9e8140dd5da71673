"""Decodes OTLP export requests from protobuf into this package's own records.

Traces, logs, and the metrics that OpenTelemetry's instruments make: gauges, sums and
histograms. What other kinds there are (summaries, exponential histograms) is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from google.protobuf.message import DecodeError as ProtobufDecodeError
from msgspec import Struct
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel.errors import DecodeError
from constellation_otel.traces import AttributeValue, Dropped, Span, SpanEvent, SpanLink

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.metrics.v1 import metrics_pb2

__all__ = [
    "Exemplar",
    "LogRecord",
    "MetricPoint",
    "Received",
    "Resource",
    "Scope",
    "decode_logs",
    "decode_metrics",
    "decode_traces",
]

_W3C_FLAGS: Final = 0xFF
"""The bits of an OTLP flags field that are W3C trace flags."""
_TRACE_ID_BYTES: Final = 16
_SPAN_ID_BYTES: Final = 8


class Resource(Struct, frozen=True):
    """The entity that sent the telemetry, such as a service.

    Attributes:
        attributes: The attributes by name.
        schema_url: The schema of the attributes; empty if unknown.
    """

    attributes: dict[str, AttributeValue]
    schema_url: str = ""


class Scope(Struct, frozen=True):
    """The instrumentation scope that made the telemetry.

    Attributes:
        name: The instrumentation's name.
        version: Its version; empty if unknown.
        schema_url: The schema of what is in the scope; empty if unknown.
        attributes: The scope's attributes by name.
    """

    name: str
    version: str = ""
    schema_url: str = ""
    attributes: dict[str, AttributeValue] = {}


class Received(Struct, frozen=True):
    """A span with its resource and scope.

    Attributes:
        span: The span.
        resource: The sender.
        scope: The instrumentation scope.
    """

    span: Span
    resource: Resource
    scope: Scope


class Exemplar(Struct, frozen=True):
    """One of a data point's measurements, with the span that was current.

    Attributes:
        value: The measured value.
        timestamp_ns: Epoch nanoseconds.
        trace_id: The current span's trace id; ``None`` if there was no span.
        span_id: The current span's id; ``None`` if there was no span.
    """

    value: float
    timestamp_ns: int
    trace_id: int | None
    span_id: int | None


class MetricPoint(Struct, frozen=True, kw_only=True):
    """A data point of a metric. What its kind does not have is ``None`` or empty.

    Attributes:
        name: The metric's name.
        description: The metric's description.
        unit: The metric's unit.
        kind: The metric's kind.
        attributes: The data point's attributes by name.
        start_ns: When counting began, in epoch nanoseconds; 0 if unknown.
        time_ns: When the value was read, in epoch nanoseconds.
        resource: The sender.
        scope: The instrumentation scope.
        temporality: Whether a sum or a histogram counts since the last data point
            (``delta``) or since the start (``cumulative``).
        monotonic: Whether a sum only grows.
        value: A gauge's or a sum's number.
        count: A histogram's number of measurements.
        sum: The sum of these measurements.
        min: The least of these measurements.
        max: The greatest of these measurements.
        bounds: A histogram's inclusive upper bounds; the last bucket has none.
        bucket_counts: A count for each bucket, so one more than bounds.
        exemplars: Sampled measurements.
    """

    name: str
    description: str
    unit: str
    kind: Literal["gauge", "sum", "histogram"]
    attributes: dict[str, AttributeValue]
    start_ns: int
    time_ns: int
    resource: Resource
    scope: Scope
    temporality: Literal["delta", "cumulative"] | None = None
    monotonic: bool | None = None
    value: float | None = None
    count: int | None = None
    sum: float | None = None
    min: float | None = None
    max: float | None = None
    bounds: tuple[float, ...] = ()
    bucket_counts: tuple[int, ...] = ()
    exemplars: tuple[Exemplar, ...] = ()


class LogRecord(Struct, frozen=True, kw_only=True):
    """A log record.

    Attributes:
        timestamp_ns: When it happened, in epoch nanoseconds; 0 if unknown.
        observed_timestamp_ns: When it was observed, in epoch nanoseconds.
        severity_number: 1 to 24 as OpenTelemetry numbers them (9 is INFO); 0 if unknown.
        severity_text: The sender's name for the severity.
        body: The message, or another value that was logged.
        event_name: The kind of event; empty for a plain log record.
        attributes: The attributes by name.
        trace_id: The current span's trace id; ``None`` if there was no span.
        span_id: The current span's id; ``None`` if there was no span.
        trace_flags: The W3C trace flags.
        resource: The sender.
        scope: The instrumentation scope.
    """

    timestamp_ns: int
    observed_timestamp_ns: int
    severity_number: int
    severity_text: str
    body: AttributeValue
    event_name: str
    attributes: dict[str, AttributeValue]
    trace_id: int | None
    span_id: int | None
    trace_flags: int
    resource: Resource
    scope: Scope


def decode_traces(data: bytes) -> list[Received]:
    """Decodes the spans of an export request; a TracesData message reads the same.

    Args:
        data: The protobuf message.

    Returns:
        The spans in the message's order.

    Raises:
        DecodeError: It is not such a message, or a span has no valid ids.
    """
    request = _parsed(ExportTraceServiceRequest(), data)
    return [
        Received(_span(span), resource, scope)
        for group, resource, scope in _groups(request.resource_spans, "scope_spans")
        for span in group.spans
    ]


def decode_metrics(data: bytes) -> list[MetricPoint]:
    """Decodes the data points of an export request, in the message's order.

    Raises:
        DecodeError: It is not such a message, a metric is a summary or an exponential
            histogram, or an exemplar has no valid ids.
    """
    request = _parsed(ExportMetricsServiceRequest(), data)
    return [
        point
        for group, resource, scope in _groups(request.resource_metrics, "scope_metrics")
        for metric in group.metrics
        for point in _points(metric, resource, scope)
    ]


def decode_logs(data: bytes) -> list[LogRecord]:
    """Decodes the log records of an export request, in the message's order.

    Raises:
        DecodeError: It is not such a message, or a record has no valid ids.
    """
    request = _parsed(ExportLogsServiceRequest(), data)
    return [
        LogRecord(
            timestamp_ns=record.time_unix_nano,
            observed_timestamp_ns=record.observed_time_unix_nano,
            severity_number=record.severity_number,
            severity_text=record.severity_text,
            body=_value(record.body),
            event_name=record.event_name,
            attributes=_attributes(record.attributes),
            trace_id=_optional_id(record.trace_id, _TRACE_ID_BYTES, "a log record's trace id"),
            span_id=_optional_id(record.span_id, _SPAN_ID_BYTES, "a log record's span id"),
            trace_flags=record.flags & _W3C_FLAGS,
            resource=resource,
            scope=scope,
        )
        for group, resource, scope in _groups(request.resource_logs, "scope_logs")
        for record in group.log_records
    ]


M = TypeVar("M", ExportTraceServiceRequest, ExportMetricsServiceRequest, ExportLogsServiceRequest)


def _parsed(message: M, data: bytes) -> M:
    try:
        message.ParseFromString(data)
    except ProtobufDecodeError as error:
        why = f"the body is not a valid {type(message).__name__} in protobuf: {error}"
        raise DecodeError(why) from error
    return message


def _groups(messages: Iterable[Any], field: str) -> Iterator[tuple[Any, Resource, Scope]]:
    """What is in each scope of each resource; ``field`` has a resource's scopes."""
    for message in messages:
        resource = Resource(_attributes(message.resource.attributes), message.schema_url)
        for group in getattr(message, field):
            scope = group.scope
            yield group, resource, Scope(scope.name, scope.version, group.schema_url, _attributes(scope.attributes))


def _span(span: trace_pb2.Span) -> Span:
    failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    return Span(
        trace_id=_id(span.trace_id, _TRACE_ID_BYTES, f"the trace id of span {span.name!r}"),
        span_id=_id(span.span_id, _SPAN_ID_BYTES, f"the span id of span {span.name!r}"),
        parent_span_id=_optional_id(span.parent_span_id, _SPAN_ID_BYTES, f"the parent id of span {span.name!r}"),
        trace_state=span.trace_state,
        trace_flags=span.flags & _W3C_FLAGS,
        name=span.name,
        kind=_KINDS.get(span.kind, SpanKind.INTERNAL),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        status=_STATUS_CODES.get(span.status.code, StatusCode.UNSET),
        status_description=span.status.message or None if failed else None,
        events=tuple(
            SpanEvent(event.name, event.time_unix_nano, _attributes(event.attributes)) for event in span.events
        ),
        links=tuple(
            SpanLink(
                _id(link.trace_id, _TRACE_ID_BYTES, f"the trace id of a link of span {span.name!r}"),
                _id(link.span_id, _SPAN_ID_BYTES, f"the span id of a link of span {span.name!r}"),
                _attributes(link.attributes),
                link.trace_state,
                link.flags & _W3C_FLAGS,
            )
            for link in span.links
        ),
        dropped=Dropped(span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count),
    )


# the protocol counts kinds from 1, the API from 0; the protocol's 0 is unspecified, which means internal
_KINDS: Final = {kind.value + 1: kind for kind in SpanKind}
_STATUS_CODES: Final = {code.value: code for code in StatusCode}


def _points(metric: metrics_pb2.Metric, resource: Resource, scope: Scope) -> Iterator[MetricPoint]:
    kind = metric.WhichOneof("data")
    if kind is None:
        return
    if kind not in _KINDS_OF_METRICS:
        message = f"metric {metric.name!r} is of kind {kind}; this receiver reads {', '.join(_KINDS_OF_METRICS)}"
        raise DecodeError(message)
    data = getattr(metric, kind)
    for point in data.data_points:
        fields: dict[str, Any] = {}
        if kind != "gauge":
            fields["temporality"] = _TEMPORALITIES.get(data.aggregation_temporality)
        if kind == "sum":
            fields["monotonic"] = data.is_monotonic
        if kind == "histogram":
            fields |= {name: getattr(point, name) for name in ("sum", "min", "max") if point.HasField(name)}
            fields["count"] = point.count
            fields["bounds"], fields["bucket_counts"] = tuple(point.explicit_bounds), tuple(point.bucket_counts)
        else:
            fields["value"] = _number(point)
        yield MetricPoint(
            name=metric.name,
            description=metric.description,
            unit=metric.unit,
            kind=kind,
            attributes=_attributes(point.attributes),
            start_ns=point.start_time_unix_nano,
            time_ns=point.time_unix_nano,
            resource=resource,
            scope=scope,
            exemplars=tuple(map(_exemplar, point.exemplars)),
            **fields,
        )


_KINDS_OF_METRICS: Final = ("gauge", "sum", "histogram")
_TEMPORALITIES: Final[dict[int, Literal["delta", "cumulative"]]] = {1: "delta", 2: "cumulative"}


def _number(point: metrics_pb2.NumberDataPoint | metrics_pb2.Exemplar) -> float | None:
    field = point.WhichOneof("value")
    return None if field is None else cast("float", getattr(point, field))


def _exemplar(exemplar: metrics_pb2.Exemplar) -> Exemplar:
    return Exemplar(
        _number(exemplar) or 0,
        exemplar.time_unix_nano,
        _optional_id(exemplar.trace_id, _TRACE_ID_BYTES, "an exemplar's trace id"),
        _optional_id(exemplar.span_id, _SPAN_ID_BYTES, "an exemplar's span id"),
    )


def _attributes(attributes: Iterable[KeyValue]) -> dict[str, AttributeValue]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: AnyValue) -> AttributeValue:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(map(_value, value.array_value.values))
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    # a reference into a profile's string table means nothing in other signals
    if kind is None or kind == "string_value_strindex":
        return None
    return cast("AttributeValue", getattr(value, kind))


def _id(raw: bytes, length: int, what: str) -> int:
    number = int.from_bytes(raw)
    if len(raw) != length or not number:
        message = f"{what} is {raw.hex() or 'empty'}; it must be {length} bytes, not all zero"
        raise DecodeError(message)
    return number


def _optional_id(raw: bytes, length: int, what: str) -> int | None:
    # some senders write zeros for no id
    return _id(raw, length, what) if any(raw) else None
