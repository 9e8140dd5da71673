"""The finished span, and the names of what is on it.

What the assembler puts out and every sink takes; a span that came back from an
OTLP endpoint is read into the same type. Names follow OpenTelemetry's semantic
conventions where those have one, and are ``constellation.*`` where they do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias
from uuid import UUID

from msgspec import Struct
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE, ErrorTypeValues
from opentelemetry.semconv.attributes.exception_attributes import (
    EXCEPTION_MESSAGE,
    EXCEPTION_STACKTRACE,
    EXCEPTION_TYPE,
)
from opentelemetry.trace import SpanKind, StatusCode

__all__ = [
    "ABANDONED_REASON",
    "ATTEMPT",
    "CANCELLED_EVENT",
    "DAG_NAME",
    "ENGINE",
    "ERROR_TYPE",
    "EXCEPTION_EVENT",
    "EXCEPTION_MESSAGE",
    "EXCEPTION_STACKTRACE",
    "EXCEPTION_TYPE",
    "EXECUTION_ID",
    "LINK",
    "MISSING",
    "MODULE_ID",
    "MODULE_NAME",
    "NOTHING_DROPPED",
    "OTHER_ERROR",
    "OUTCOME",
    "REASON",
    "REPORTED_DURATION",
    "UPSTREAM",
    "AttributeValue",
    "Dropped",
    "Span",
    "SpanEvent",
    "SpanLink",
]

EXECUTION_ID: Final = "constellation.execution.id"
DAG_NAME: Final = "constellation.dag.name"
MODULE_ID: Final = "constellation.module.id"
MODULE_NAME: Final = "constellation.module.name"
OUTCOME: Final = "constellation.outcome"
"""``success``, ``failure``, ``cancelled``; of executions ``abandoned``, of modules ``unknown, skipped, cached``."""
MISSING: Final = "constellation.missing"
"""Which of the span's events never came: ``start``, ``end``, or ``start,end``."""
REPORTED_DURATION: Final = "constellation.reported_duration_ms"
"""What was reported, where the span is not as long as that."""
ENGINE: Final = "constellation.engine"
ATTEMPT: Final = "constellation.module.attempt"
REASON: Final = "constellation.module.reason"
"""Why it was skipped, or where its output came from."""
LINK: Final = "constellation.link"
"""What a link is about."""
UPSTREAM: Final = "upstream"
"""That its target is a module whose output is taken."""
ABANDONED_REASON: Final = "constellation.abandoned.reason"

OTHER_ERROR: Final = ErrorTypeValues.OTHER.value
"""The conventions' value of ``error.type`` where the class is unknown."""
EXCEPTION_EVENT: Final = "exception"
CANCELLED_EVENT: Final = "cancelled"

AttributeValue: TypeAlias = (
    str | bool | int | float | bytes | Sequence["AttributeValue"] | Mapping[str, "AttributeValue"] | None
)


class SpanEvent(Struct, frozen=True):
    """Something that happened at one moment of a span.

    Attributes:
        name: The event's name.
        timestamp_ns: Epoch nanoseconds.
        attributes: By name.
        is_failure: Whether it is the exception that a module failed with.
    """

    name: str
    timestamp_ns: int
    attributes: dict[str, AttributeValue]
    is_failure: bool = False


class SpanLink(Struct, frozen=True):
    """Another span that a span has to do with.

    Attributes:
        trace_id: 128 bits.
        span_id: 64 bits.
        attributes: By name.
        trace_state: The W3C tracestate header's value.
        trace_flags: The W3C flags.
    """

    trace_id: int
    span_id: int
    attributes: dict[str, AttributeValue]
    trace_state: str = ""
    trace_flags: int = 0


class Dropped(Struct, frozen=True):
    """How much of a span was left out, since it was too much.

    Attributes:
        attributes: How many.
        events: How many.
        links: How many.
    """

    attributes: int = 0
    events: int = 0
    links: int = 0


NOTHING_DROPPED: Final = Dropped()


class Span(Struct, frozen=True):
    """A finished span.

    Attributes:
        trace_id: 128 bits, never zero.
        span_id: 64 bits, never zero.
        parent_span_id: The parent's span id; ``None`` for the root of a trace.
        trace_state: The W3C tracestate header's value; empty where there is none.
        trace_flags: The W3C flags, as the parent's context or the ids' randomness
            gives them; a sink's sampler decides the sampled flag of a root.
        name: The span's name, never empty.
        kind: The span's kind.
        start_ns: Epoch nanoseconds.
        end_ns: Epoch nanoseconds, after ``start_ns``.
        attributes: By name.
        status: Unset or error.
        status_description: What went wrong; ``None`` unless the status is error.
        events: In the order of their timestamps.
        execution_id: The execution that it belongs to; ``None`` where a span of another program was read.
        is_execution: Whether it is the execution's own span, and not a module's.
        duration_ns: What was reported, or else what is between the start and the end event; ``None`` where
            neither is known. For metrics: the span may be longer.
        links: In the order of their ids, those to the modules whose outputs it takes first.
        dropped: What of it was too much.
    """

    trace_id: int
    span_id: int
    parent_span_id: int | None
    trace_state: str
    trace_flags: int
    name: str
    kind: SpanKind
    start_ns: int
    end_ns: int
    attributes: dict[str, AttributeValue]
    status: StatusCode = StatusCode.UNSET
    status_description: str | None = None
    events: tuple[SpanEvent, ...] = ()
    execution_id: UUID | None = None
    is_execution: bool = False
    duration_ns: int | None = None
    links: tuple[SpanLink, ...] = ()
    dropped: Dropped = NOTHING_DROPPED
