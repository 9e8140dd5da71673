"""Which executions are traced: a sampler's answer, once for each, whatever sends the spans."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec
from msgspec import Struct
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.sampling import Decision as Sampling
from opentelemetry.sdk.trace.sampling import SamplingResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.span import TraceState

from constellation_otel._support.environment import configured
from constellation_otel._support.log import RateLimitedLog
from constellation_otel.events import clean_name
from constellation_otel.traces.ids import span_id_of, trace_id_of
from constellation_otel.traces.span import DAG_NAME, EXECUTION_ID, MODULE_NAME, Span

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace.sampling import Sampler

__all__ = ["NOT_TRACED", "Decision", "Sampled", "decide", "sampler_of_environment"]

_LOGGER: Final = logging.getLogger(__name__)


class Decision(Struct, frozen=True):
    """What holds for all spans of an execution, found when it started.

    Attributes:
        context: The caller's context.
        span_context: The execution's span; ``None`` where it is not known.
        result: What the sampler answered; ``None`` where it was not asked.
    """

    context: Context
    span_context: SpanContext | None
    result: SamplingResult | None

    def context_of(self, span_id: int, context: Context) -> Context:
        """``context`` with a span of the execution's trace as the current one."""
        execution = self.span_context
        if execution is None:
            return context
        span_context = SpanContext(
            execution.trace_id,
            span_id,
            is_remote=False,
            trace_flags=execution.trace_flags,
            trace_state=execution.trace_state,
        )
        return trace.set_span_in_context(NonRecordingSpan(span_context), context)


NOT_TRACED: Final = Decision(Context(), None, None)
"""For an execution of which no spans are made."""


def decide(sampler: Sampler, execution_id: UUID, dag_name: str, context: Context) -> Decision:
    """Asks a sampler about an execution, for all of its spans.

    Args:
        sampler: Any sampler.
        execution_id: The execution.
        dag_name: Its DAG's name.
        context: The caller's context.

    Raises:
        Exception: What the sampler raises.
    """
    caller = trace.get_current_span(context).get_span_context()
    has_caller = caller.is_valid
    trace_id = caller.trace_id if has_caller else trace_id_of(execution_id)
    name = clean_name(dag_name)
    result = sampler.should_sample(
        context,
        trace_id,
        name,
        SpanKind.INTERNAL if has_caller else SpanKind.SERVER,
        {EXECUTION_ID: str(execution_id), DAG_NAME: name},
        (),
        caller.trace_state if has_caller else None,
    )
    flags = TraceFlags.SAMPLED if result.decision is Sampling.RECORD_AND_SAMPLE else TraceFlags.DEFAULT
    if not has_caller or caller.trace_flags.random_trace_id:
        flags |= TraceFlags.RANDOM_TRACE_ID
    span_context = SpanContext(
        trace_id,
        span_id_of(execution_id),
        is_remote=False,
        trace_flags=TraceFlags(flags),
        trace_state=result.trace_state,
    )
    return Decision(context, span_context, result)


class Sampled:
    """Gives spans that we export ourselves what a sampler says of their trace.

    The sampler is asked once for an execution: by :meth:`decide`, when it starts in this
    process, or else when its first span leaves, which is the same answer as long as the
    sampler goes by the trace and the parent, as all of OpenTelemetry's do.

    Args:
        sampler: Any sampler.
        observe: Called with every span, sampled or not, and a context in which it is current.
            What it raises is logged.
        max_remembered: Decisions kept at most. Beyond it the oldest is forgotten, and made
            again from what the spans of its execution tell.
    """

    def __init__(
        self,
        sampler: Sampler,
        observe: Callable[[Span, Context], None] = lambda span, context: None,  # noqa: ARG005 - nobody asked
        *,
        max_remembered: int = 100_000,
    ) -> None:
        self._sampler = sampler
        self._observe = observe
        self._max_remembered = max_remembered
        self._log = RateLimitedLog()
        # callbacks remember, in any thread, while the worker goes by it
        self._lock = threading.Lock()
        self._decisions: OrderedDict[UUID, Decision] = OrderedDict()

    def decide(self, execution_id: UUID, dag_name: str, context: Context) -> Decision:
        """What holds for an execution; never raises.

        An execution for which the sampler raises is not traced.
        """
        try:
            return decide(self._sampler, execution_id, dag_name, context)
        except Exception as error:  # noqa: BLE001 - a sampler of the user's own
            message = "the sampler raised for execution %s; the execution is not traced"
            self._log.write(_LOGGER, logging.ERROR, "sampler", message, execution_id, error=error)
            return NOT_TRACED

    def remember(self, execution_id: UUID, decision: Decision) -> None:
        """Has :meth:`__call__` go by a decision, until the execution's own span has passed."""
        with self._lock:
            self._decisions[execution_id] = decision
            if len(self._decisions) > self._max_remembered:
                self._decisions.popitem(last=False)

    def decision_of(self, execution_id: UUID) -> Decision | None:
        """What was remembered, of an execution whose own span has not passed."""
        return self._decisions.get(execution_id)

    def forget(self, execution_id: UUID) -> None:
        """For an execution of which no span will come."""
        with self._lock:
            self._decisions.pop(execution_id, None)

    def __call__(self, span: Span) -> Span | None:
        """A finished span as it is sent; ``None`` where its trace is not sampled."""
        execution_id = UUID(str(span.attributes[EXECUTION_ID]))
        is_execution = MODULE_NAME not in span.attributes
        decision = self._decisions.get(execution_id)
        if decision is None:
            decision = self.decide(execution_id, str(span.attributes[DAG_NAME]), _context_of(span, execution_id))
            self.remember(execution_id, decision)
        if is_execution:
            # its own span is its last
            self.forget(execution_id)
        try:
            self._observe(span, decision.context_of(span.span_id, Context()))
        except Exception as error:  # noqa: BLE001 - metrics and logs; the span goes its way all the same
            self._log.write(_LOGGER, logging.ERROR, "observe", "a span is not in the metrics or logs", error=error)
        execution, result = decision.span_context, decision.result
        if execution is None or result is None or result.decision is not Sampling.RECORD_AND_SAMPLE:
            return None
        attributes = span.attributes
        if is_execution and result.attributes:
            attributes = {**dict(result.attributes), **attributes}
        return msgspec.structs.replace(
            span,
            trace_flags=int(execution.trace_flags),
            trace_state=execution.trace_state.to_header(),
            attributes=attributes,
        )


def _context_of(span: Span, execution_id: UUID) -> Context:
    """The context of an execution's caller, as far as a span of the execution tells it."""
    if span.trace_id == trace_id_of(execution_id):
        return Context()
    caller = SpanContext(
        span.trace_id,
        # samplers do not look at it, and of a module's span it is not known
        span.parent_span_id or span.span_id,
        is_remote=True,
        trace_flags=TraceFlags(span.trace_flags),
        trace_state=TraceState.from_header([span.trace_state]),
    )
    return trace.set_span_in_context(NonRecordingSpan(caller), Context())


def sampler_of_environment() -> Sampler:
    """The sampler that OTEL_TRACES_SAMPLER says.

    Raises:
        ConfigurationError: It, or a limit of spans in the environment, cannot be used.
    """
    with configured("OTEL_TRACES_", "OTEL_SPAN_", "OTEL_ATTRIBUTE_", "OTEL_EVENT_", "OTEL_LINK_", "OTEL_PYTHON_"):
        return SdkTracerProvider(resource=Resource.get_empty(), shutdown_on_exit=False).sampler
