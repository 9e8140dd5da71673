"""Spans of modules' bodies as a listener makes them, and what is set on them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from constellation_otel.bodies import Bodies, BodySpan
from constellation_otel.traces import Sampling, decide

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import SpanLimits

EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
MODULE = UUID("b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538")
OTHER = UUID("6ba7b810-9dad-41d1-80b4-00c04fd430c8")
NOW = 1_795_465_363_577_123_456
ELSEWHERE = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("a", "b")]))
"""A span that others link to."""


def bodies_of(
    sampler: Sampler = ALWAYS_ON,
    limits: SpanLimits | None = None,
    max_open: int = 10,
    redact: Callable[[str], str] | None = None,
    caller: Context | None = None,
) -> Bodies:
    """What a listener keeps that has heard of an execution's start."""
    sampling = Sampling(partial(decide, sampler, limits=limits))
    sampling.decide(EXECUTION, "pipeline", Context() if caller is None else caller)
    return Bodies(sampling, max_open, redact)


def current_in(bodies: Bodies, module_id: UUID = MODULE, context: Context | None = None) -> trace.Span:
    """What is the current span in a module's body."""
    return trace.get_current_span(bodies.context_of(EXECUTION, module_id, context or Context()))


def recorded_by(bodies: Bodies, module_id: UUID = MODULE, context: Context | None = None) -> BodySpan:
    """The same, which is one that records."""
    span: object = current_in(bodies, module_id, context)
    assert isinstance(span, BodySpan)
    return span
