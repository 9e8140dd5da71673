"""Traces as text, as a backend has them, so that two backends can be compared."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from constellation_otel.receiver import decode_traces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from constellation_otel.receiver import Received

    from .peers import Jaeger

__all__ = ["JAEGERS_OWN", "read_back", "received_in", "trace_text", "traces_text"]

JAEGERS_OWN = "@jaeger@warnings"
"""What Jaeger adds to spans that it finds odd: of a negative length, outside their parent's, or without it."""
ID_FIELDS = {"traceId", "spanId", "parentSpanId"}


def read_back(jaeger: Jaeger, trace_id: int, *, spans: int) -> list[Received]:
    """A trace, once all of its spans are there."""
    answer = jaeger.trace(f"{trace_id:032x}", spans=spans)
    return received_in(answer)


def received_in(answer: Mapping[str, Any]) -> list[Received]:
    """The spans of an answer of Jaeger's query API, which is OTLP/JSON."""
    request = ExportTraceServiceRequest()
    json_format.ParseDict(_with_base64_ids(answer), request, ignore_unknown_fields=True)
    return decode_traces(request.SerializeToString())


def _with_base64_ids(node: Any) -> Any:
    """OTLP/JSON has ids in hexadecimal, protobuf's JSON has all bytes in base64."""
    match node:
        case dict():
            return {
                name: b64encode(bytes.fromhex(value)).decode() if name in ID_FIELDS else _with_base64_ids(value)
                for name, value in node.items()
            }
        case list():
            return [_with_base64_ids(item) for item in node]
        case _:
            return node


def trace_text(received: list[Received]) -> str:
    """Everything that is the same of a trace wherever it came from: a line for each span, in order of ids."""
    return "\n".join(sorted(_line(it) for it in received))


def traces_text(jaeger: Jaeger, expected: Mapping[int, int]) -> str:
    """Traces of which so many spans each are expected."""
    return "\n\n".join(trace_text(read_back(jaeger, trace_id, spans=spans)) for trace_id, spans in expected.items())


def _line(received: Received) -> str:
    span, resource = received.span, received.resource
    attributes = dict(sorted(span.attributes.items()))
    events = [(event.name, event.timestamp_ns, sorted(event.attributes.items())) for event in span.events]
    parent = "" if span.parent_span_id is None else f"{span.parent_span_id:016x}"
    return (
        f"{span.trace_id:032x} {span.span_id:016x} < {parent} {span.name!r} {span.kind.name}"
        f" {span.start_ns} {span.end_ns} {span.status.name} {span.status_description!r} {attributes} {events}"
        f" {sorted(resource.attributes.items())} {received.scope}"
    )
