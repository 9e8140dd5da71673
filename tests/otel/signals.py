"""What metrics and failure logs are made from, in a module that imports little: the tests' programs have it as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext, TraceFlags

from constellation_otel.traces import Assembler, Decision
from deliveries import execution

if TYPE_CHECKING:
    from constellation_otel.otel import PrivateSignals
    from constellation_otel.traces import Span

RESOURCE = Resource({"service.name": "shop"})


def failed_spans() -> list[Span]:
    """A failed module's span and its execution's."""
    assembler = Assembler()
    return [span for event in execution(1, fails=True) for span in assembler.add(event, 0)]


def observe(signals: PrivateSignals) -> list[Span]:
    spans = failed_spans()
    for span in spans:
        span_context = SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=TraceFlags(1))
        signals.observe(span, Decision(Context(), span_context, is_recorded=True, trace_flags=1))
    return spans
