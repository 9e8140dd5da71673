"""Traces as text, as a backend has them, so that two backends can be compared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from constellation_otel.receiver import decode_traces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from constellation_otel.receiver import Received

    from .peers import Jaeger

__all__ = ["read_back", "trace_text", "traces_text"]

JAEGERS_OWN = "@jaeger@warnings"
"""What Jaeger adds to spans that it finds odd: without length, or outside their parent's."""


def read_back(jaeger: Jaeger, trace_id: int, *, spans: int) -> list[Received]:
    """A trace, once all of its spans are there."""
    answer = jaeger.trace(f"{trace_id:032x}", spans=spans)
    return decode_traces(json.dumps(answer).encode(), json=True)


def trace_text(received: list[Received]) -> str:
    """Everything that is the same of a trace wherever it came from: a line for each span, in order of ids."""
    return "\n".join(sorted(_line(it) for it in received))


def traces_text(jaeger: Jaeger, expected: Mapping[int, int]) -> str:
    """Traces of which so many spans each are expected."""
    return "\n\n".join(trace_text(read_back(jaeger, trace_id, spans=spans)) for trace_id, spans in expected.items())


def _line(received: Received) -> str:
    span, resource = received.span, received.resource
    attributes = {name: value for name, value in sorted(span.attributes.items()) if name != JAEGERS_OWN}
    events = [(event.name, event.timestamp_ns, sorted(event.attributes.items())) for event in span.events]
    parent = "" if span.parent_span_id is None else f"{span.parent_span_id:016x}"
    return (
        f"{span.trace_id:032x} {span.span_id:016x} < {parent} {span.name!r} {span.kind.name}"
        f" {span.start_ns} {span.end_ns} {span.status.name} {span.status_description!r} {attributes} {events}"
        f" {sorted(resource.attributes.items())} {received.scope}"
    )
