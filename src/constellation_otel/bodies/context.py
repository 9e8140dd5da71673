"""The context of a module's body where there is no listener: in another process than its execution's."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from constellation_otel.bodies.running import RUNNING, Unrecorded
from constellation_otel.events import remote_parent
from constellation_otel.traces import decide, sampler_of_environment, span_id_of

if TYPE_CHECKING:
    from uuid import UUID

    from opentelemetry.sdk.trace.sampling import Sampler

    from constellation_otel.traces import Decision

__all__ = ["CURRENT_SPAN", "module_context", "span_context_of", "traceparent_of"]

CURRENT_SPAN: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))
"""What a context knows its current span by: the API has no name for it, and this costs a third of its function."""


def module_context(
    execution_id: UUID, module_id: UUID, traceparent: str | None = None, *, sampler: Sampler | None = None
) -> Context:
    """The current context with a module's span as the current one, where no listener knows the execution.

    For a body that runs in another process than the one that tells of it: the ids are computed, so
    that what the body does nests under a span that is made elsewhere, before or after. The span
    does not record.

    Args:
        execution_id: The execution.
        module_id: The module.
        traceparent: The execution's own span as a W3C header value, as ``listener.traceparent_of`` gives it,
            or a carrier; its flag is the sampler's answer. Without one, the trace id is computed.
        sampler: Asked for the computed trace id, where there is no traceparent; otherwise that of
            ``OTEL_TRACES_SAMPLER`` is.

    Returns:
        The context to make current around the body.

    Raises:
        ConfigurationError: ``OTEL_TRACES_SAMPLER`` cannot be used.
    """
    context = otel_context.get_current()
    execution = span_context_of(execution_id, traceparent, sampler=sampler)
    span_id = span_id_of(execution_id, module_id)
    span = NonRecordingSpan(
        SpanContext(execution.trace_id, span_id, False, execution.trace_flags, execution.trace_state)
    )
    return Context({**context, CURRENT_SPAN: span, RUNNING: Unrecorded(execution_id, module_id.int)})


def span_context_of(
    execution_id: UUID, traceparent: str | None = None, *, sampler: Sampler | None = None
) -> SpanContext:
    """The context of an execution's own span: what a traceparent says, or else computed and sampled here."""
    parent = remote_parent(traceparent, None)
    if parent is not None:
        known = trace.get_current_span(parent).get_span_context()
        return SpanContext(known.trace_id, span_id_of(execution_id), False, known.trace_flags, known.trace_state)
    decision = decide(sampler or _sampler_of_environment(), execution_id, "", Context())
    # it was asked, so it is known
    return decision.span_context or trace.INVALID_SPAN_CONTEXT


def traceparent_of(decision: Decision | None) -> str | None:
    """The execution's own span as a W3C header value; ``None`` where it is not known, or not traced at all."""
    known = None if decision is None else decision.span_context
    if known is None:
        return None
    flags = TraceFlags(known.trace_flags)
    return f"00-{known.trace_id:032x}-{known.span_id:016x}-{flags:02x}"


@cache
def _sampler_of_environment() -> Sampler:
    return sampler_of_environment()
