"""What it costs to write finished spans as an OTLP request.

On one side ``encode_request``. On the other the OpenTelemetry SDK's encoder, as its
OTLP exporters call it, on the same spans as the SDK has them: to bytes, both, and
with the same five attributes on a module, seven with an exception on one in ten.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.traces import span_id_of, trace_id_of
from constellation_otel.traces.span import (
    DAG_NAME,
    ERROR_TYPE,
    EXCEPTION_EVENT,
    EXCEPTION_MESSAGE,
    EXCEPTION_TYPE,
    EXECUTION_ID,
    MODULE_ID,
    MODULE_NAME,
    OUTCOME,
    Span,
    SpanEvent,
)
from constellation_otel.transports.otlp import encode_request, make_resource

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

__all__ = ["main"]

_SPANS: Final = 512
_MODULES: Final = 8
"""Modules of an execution."""
_ROUNDS: Final = 21
_CLAIM: Final = 4


def _finished_spans() -> list[Span]:
    spans = []
    for number in range(_SPANS):
        if number % _MODULES == 0:
            execution_id = uuid4()
        module_id = uuid4()
        failed = number % 10 == 0
        attributes = {
            EXECUTION_ID: str(execution_id),
            DAG_NAME: "my-pipeline",
            MODULE_ID: str(module_id),
            MODULE_NAME: f"module-{number % _MODULES}",
            OUTCOME: "failure" if failed else "success",
        }
        happened = SpanEvent(EXCEPTION_EVENT, 2_000, {EXCEPTION_TYPE: "ValueError", EXCEPTION_MESSAGE: "no number"})
        spans.append(
            Span(
                trace_id=trace_id_of(execution_id),
                span_id=span_id_of(execution_id, module_id),
                parent_span_id=span_id_of(execution_id),
                trace_state="",
                trace_flags=TraceFlags.SAMPLED,
                name=f"module-{number % _MODULES}",
                kind=SpanKind.INTERNAL,
                start_ns=1_700_000_000_000_000_000,
                end_ns=1_700_000_000_002_000_000,
                attributes={**attributes, ERROR_TYPE: "ValueError"} if failed else dict(attributes),
                status=StatusCode.ERROR if failed else StatusCode.UNSET,
                status_description="no number" if failed else None,
                events=(happened,) if failed else (),
            )
        )
    return spans


def _as_the_sdk_has_it(span: Span, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    flags = TraceFlags(span.trace_flags)
    parent = SpanContext(span.trace_id, span.parent_span_id or 0, is_remote=False, trace_flags=flags)
    return ReadableSpan(
        span.name,
        SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=flags),
        parent,
        resource,
        span.attributes,
        [Event(event.name, event.attributes, event.timestamp_ns) for event in span.events],
        (),
        span.kind,
        status=Status(span.status, span.status_description),
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=scope,
    )


def main() -> None:
    """Prints the ratio, and what the claim is."""
    resource = make_resource("shop")
    scope = InstrumentationScope(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)
    sdk, ours = [], []
    for _ in range(_ROUNDS):
        # new ones each time, so that no round finds the ids of the one before in a cache
        spans = _finished_spans()
        readable = [_as_the_sdk_has_it(span, resource, scope) for span in spans]
        start = time.thread_time()
        encode_spans(readable).SerializeToString()
        between = time.thread_time()
        encode_request(spans, resource)
        sdk.append((between - start) / _SPANS * 1e6)
        ours.append((time.thread_time() - between) / _SPANS * 1e6)
    print(
        f"OTLP encoding: the SDK's encoder {median(sdk):.1f} us a span, encode_request {median(ours):.1f} us:"
        f" 1/{median(sdk) / median(ours):.1f} (claimed: at most 1/{_CLAIM})"
    )
