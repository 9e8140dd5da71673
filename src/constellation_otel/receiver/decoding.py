"""OTLP's messages as this package's own records: what a receiver keeps and a reader of a backend wants.

Reading only, of bytes that were received; sockets are the receiver's.
"""

from __future__ import annotations

from base64 import b64encode
from json import loads
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from google.protobuf import json_format
from google.protobuf.message import DecodeError as ProtobufDecodeError
from msgspec import Struct
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel.errors import DecodeError
from constellation_otel.traces import AttributeValue, Span, SpanEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
    from opentelemetry.proto.metrics.v1 import metrics_pb2
    from opentelemetry.proto.resource.v1 import resource_pb2

__all__ = [
    "Exemplar",
    "ExponentialBuckets",
    "LogRecord",
    "MetricPoint",
    "Received",
    "Resource",
    "Scope",
    "decode_logs",
    "decode_metrics",
    "decode_traces",
]

_FLAGS: Final = 0xFF
"""The bits of an OTLP flags field that are W3C trace flags."""
_TRACE_ID_BYTES: Final = 16
_SPAN_ID_BYTES: Final = 8


class Resource(Struct, frozen=True):
    """What sent the telemetry.

    Attributes:
        attributes: By name.
        schema_url: Of the attributes; empty where there is none.
    """

    attributes: dict[str, AttributeValue]
    schema_url: str = ""


class Scope(Struct, frozen=True):
    """The instrumentation that made the telemetry.

    Attributes:
        name: The instrumentation's name.
        version: Its version; empty where there is none.
        schema_url: Of what is in the scope; empty where there is none.
        attributes: By name.
    """

    name: str
    version: str = ""
    schema_url: str = ""
    attributes: dict[str, AttributeValue] = {}


class Received(Struct, frozen=True):
    """A span, with where it came from.

    Attributes:
        span: The span. Its links and what its sender had left out are not kept.
        resource: What sent it.
        scope: What made it.
    """

    span: Span
    resource: Resource
    scope: Scope


class Exemplar(Struct, frozen=True):
    """A measurement that stands for others of its data point.

    Attributes:
        value: What was measured.
        timestamp_ns: Epoch nanoseconds.
        trace_id: Of the span that was current; ``None`` where there was none.
        span_id: The same span's; ``None`` where there was none.
        attributes: What the data point's own attributes leave out.
    """

    value: float
    timestamp_ns: int
    trace_id: int | None
    span_id: int | None
    attributes: dict[str, AttributeValue]


class ExponentialBuckets(Struct, frozen=True):
    """The buckets of an exponential histogram's data point.

    Attributes:
        scale: The resolution; bounds are powers of ``2 ** (2 ** -scale)``.
        zero_threshold: The width of the bucket of zeros.
        zero_count: How many were in it.
        positive_offset: The index of the first of ``positive_counts``.
        positive_counts: One count for each bucket of positive values.
        negative_offset: The index of the first of ``negative_counts``.
        negative_counts: One count for each bucket of negative values.
    """

    scale: int
    zero_threshold: float
    zero_count: int
    positive_offset: int
    positive_counts: tuple[int, ...]
    negative_offset: int
    negative_counts: tuple[int, ...]


class MetricPoint(Struct, frozen=True, kw_only=True):
    """A metric's data point. What its kind does not have is ``None`` or empty.

    Attributes:
        name: The metric's name.
        description: The metric's description.
        unit: The metric's unit.
        kind: The metric's kind.
        attributes: The data point's, by name.
        start_ns: Epoch nanoseconds; 0 where it is not known.
        time_ns: Epoch nanoseconds.
        resource: What sent it.
        scope: What made it.
        temporality: Since when a sum or a histogram counts: ``delta`` since the last
            data point, ``cumulative`` since the start.
        monotonic: Whether a sum only grows.
        value: A gauge's or a sum's number.
        count: A histogram's or a summary's number of measurements.
        sum: Of these measurements.
        min: The least of these measurements.
        max: The greatest of these measurements.
        bounds: A histogram's upper bounds, inclusive, but for the last bucket's, which has none.
        bucket_counts: One count for each bucket: one more than bounds.
        exponential: An exponential histogram's buckets.
        quantiles: A summary's values, by quantile from 0 to 1.
        exemplars: Measurements that stand for the others.
    """

    name: str
    description: str
    unit: str
    kind: Literal["gauge", "sum", "histogram", "exponential_histogram", "summary"]
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
    exponential: ExponentialBuckets | None = None
    quantiles: dict[float, float] = {}
    exemplars: tuple[Exemplar, ...] = ()


class LogRecord(Struct, frozen=True, kw_only=True):
    """A log record.

    Attributes:
        timestamp_ns: When it happened, in epoch nanoseconds; 0 where that is not known.
        observed_timestamp_ns: When it was seen, in epoch nanoseconds.
        severity_number: 1 to 24 as OpenTelemetry numbers them (9 is INFO); 0 where it is not known.
        severity_text: What the sender calls that severity.
        body: The message, or whatever value the sender logged.
        event_name: What kind of event it is; empty where it is none.
        attributes: By name.
        trace_id: Of the span that was current; ``None`` where there was none.
        span_id: The same span's; ``None`` where there was none.
        trace_flags: The W3C flags.
        resource: What sent it.
        scope: What made it.
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


def decode_traces(data: bytes, *, json: bool) -> list[Received]:
    """Reads spans from OTLP: an export request, or the TracesData that a backend returns.

    Args:
        data: The message.
        json: Whether it is OTLP/JSON (ids in hexadecimal) and not protobuf.

    Returns:
        The spans in the message's order.

    Raises:
        DecodeError: It is not such a message, or a span has no valid ids.
    """
    request = _parsed(ExportTraceServiceRequest(), data, json=json)
    return [
        Received(_span(span), resource, scope)
        for message in request.resource_spans
        for resource in [_resource(message.resource, message.schema_url)]
        for group in message.scope_spans
        for scope in [_scope(group.scope, group.schema_url)]
        for span in group.spans
    ]


def decode_metrics(data: bytes, *, json: bool) -> list[MetricPoint]:
    """Reads data points from an OTLP export request; as :func:`decode_traces`.

    Raises:
        DecodeError: It is not such a message, or an exemplar has no valid ids.
    """
    request = _parsed(ExportMetricsServiceRequest(), data, json=json)
    return [
        point
        for message in request.resource_metrics
        for resource in [_resource(message.resource, message.schema_url)]
        for group in message.scope_metrics
        for scope in [_scope(group.scope, group.schema_url)]
        for metric in group.metrics
        for point in _points(metric, resource, scope)
    ]


def decode_logs(data: bytes, *, json: bool) -> list[LogRecord]:
    """Reads log records from an OTLP export request; as :func:`decode_traces`.

    Raises:
        DecodeError: It is not such a message, or a record has no valid ids.
    """
    request = _parsed(ExportLogsServiceRequest(), data, json=json)
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
            trace_flags=record.flags & _FLAGS,
            resource=resource,
            scope=scope,
        )
        for message in request.resource_logs
        for resource in [_resource(message.resource, message.schema_url)]
        for group in message.scope_logs
        for scope in [_scope(group.scope, group.schema_url)]
        for record in group.log_records
    ]


M = TypeVar("M", ExportTraceServiceRequest, ExportMetricsServiceRequest, ExportLogsServiceRequest)


def _parsed(message: M, data: bytes, *, json: bool) -> M:
    try:
        if json:
            document = loads(data)
            if not isinstance(document, dict):
                why = f"an object is needed, not {type(document).__name__}"
                raise DecodeError(why)
            _ids_to_base64(document)
            json_format.ParseDict(document, message, ignore_unknown_fields=True)
        else:
            message.ParseFromString(data)
    except (ProtobufDecodeError, json_format.ParseError, ValueError, RecursionError) as error:
        said = str(error) or type(error).__name__
        why = f"the body is no {type(message).__name__} in {'JSON' if json else 'protobuf'}: {said}"
        raise DecodeError(why) from error
    return message


def _ids_to_base64(document: dict[str, Any]) -> None:
    """Turns the ids of an OTLP/JSON message from hexadecimal to what protobuf's JSON has for bytes.

    Attributes have their names as values, so a field of one of these names is always an id.
    """
    nodes: list[Any] = [document]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            for name, value in node.items():
                if name in _ID_FIELDS and isinstance(value, str):
                    node[name] = b64encode(bytes.fromhex(value)).decode()
                else:
                    nodes.append(value)
        elif isinstance(node, list):
            nodes.extend(node)


_ID_FIELDS: Final = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})


def _span(span: trace_pb2.Span) -> Span:
    failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    return Span(
        trace_id=_id(span.trace_id, _TRACE_ID_BYTES, f"the trace id of span {span.name!r}"),
        span_id=_id(span.span_id, _SPAN_ID_BYTES, f"the id of span {span.name!r}"),
        parent_span_id=_optional_id(span.parent_span_id, _SPAN_ID_BYTES, f"the parent's id of span {span.name!r}"),
        trace_state=span.trace_state,
        trace_flags=span.flags & _FLAGS,
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
    )


# the protocol's numbers of the kinds are the API's and one; 0 is unspecified, which means internal
_KINDS: Final = {kind.value + 1: kind for kind in SpanKind}
_STATUS_CODES: Final = {code.value: code for code in StatusCode}


def _points(metric: metrics_pb2.Metric, resource: Resource, scope: Scope) -> Iterator[MetricPoint]:
    kind = metric.WhichOneof("data")
    if kind is None:
        return
    data = getattr(metric, kind)
    for point in data.data_points:
        common: dict[str, Any] = {
            "name": metric.name,
            "description": metric.description,
            "unit": metric.unit,
            "kind": kind,
            "attributes": _attributes(point.attributes),
            "start_ns": point.start_time_unix_nano,
            "time_ns": point.time_unix_nano,
            "resource": resource,
            "scope": scope,
        }
        if kind == "summary":
            quantiles = {quantile.quantile: quantile.value for quantile in point.quantile_values}
            yield MetricPoint(**common, count=point.count, sum=point.sum, quantiles=quantiles)
            continue
        common["exemplars"] = tuple(map(_exemplar, point.exemplars))
        if kind != "gauge":
            common["temporality"] = _TEMPORALITIES.get(data.aggregation_temporality)
        if kind in {"gauge", "sum"}:
            monotonic = data.is_monotonic if kind == "sum" else None
            yield MetricPoint(**common, monotonic=monotonic, value=_number(point))
            continue
        common["count"] = point.count
        for name in ("sum", "min", "max"):
            common[name] = getattr(point, name) if point.HasField(name) else None
        if kind == "histogram":
            bounds, bucket_counts = tuple(point.explicit_bounds), tuple(point.bucket_counts)
            yield MetricPoint(**common, bounds=bounds, bucket_counts=bucket_counts)
        else:
            yield MetricPoint(**common, exponential=_exponential_buckets(point))


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
        _attributes(exemplar.filtered_attributes),
    )


def _exponential_buckets(point: metrics_pb2.ExponentialHistogramDataPoint) -> ExponentialBuckets:
    return ExponentialBuckets(
        scale=point.scale,
        zero_threshold=point.zero_threshold,
        zero_count=point.zero_count,
        positive_offset=point.positive.offset,
        positive_counts=tuple(point.positive.bucket_counts),
        negative_offset=point.negative.offset,
        negative_counts=tuple(point.negative.bucket_counts),
    )


def _resource(resource: resource_pb2.Resource, schema_url: str) -> Resource:
    return Resource(_attributes(resource.attributes), schema_url)


def _scope(scope: InstrumentationScope, schema_url: str) -> Scope:
    return Scope(scope.name, scope.version, schema_url, _attributes(scope.attributes))


def _attributes(attributes: Iterable[KeyValue]) -> dict[str, AttributeValue]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: AnyValue) -> AttributeValue:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(map(_value, value.array_value.values))
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    # a reference into a profile's table of strings has no meaning in other signals
    if kind is None or kind == "string_value_strindex":
        return None
    return cast("AttributeValue", getattr(value, kind))


def _id(raw: bytes, length: int, what: str) -> int:
    number = int.from_bytes(raw)
    if len(raw) != length or not number:
        message = f"{what} is {raw.hex() or 'empty'}; {length} bytes are needed that are not all zero"
        raise DecodeError(message)
    return number


def _optional_id(raw: bytes, length: int, what: str) -> int | None:
    # zeros are how some senders write that there is none
    return _id(raw, length, what) if any(raw) else None
