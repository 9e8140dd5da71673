"""Finished spans into a tracer provider, with ids, parents and times of our own.

The application's tracers are not touched: spans are created by a provider of our
own over the application's resource, processors and limits, and with the answer
that its sampler gave when the execution started.
"""

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
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision as Sampling
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, TraceFlags
from opentelemetry.trace.span import TraceState

from constellation_otel._environment import configured
from constellation_otel._log import RateLimitedLog
from constellation_otel._version import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.events import clean_name
from constellation_otel.ids import span_id_of, trace_id_of
from constellation_otel.spans import DAG_NAME, EXECUTION_ID, MODULE_NAME, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.trace import Link, Tracer
    from opentelemetry.util.types import Attributes

__all__ = ["NOT_TRACED", "Decision", "PlainTraces", "Sampled", "SdkTraces", "decide", "sampler_of_environment"]


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


class SdkTraces:
    """Creates spans through an application's OpenTelemetry SDK.

    :meth:`emit` is for one thread only.

    Args:
        tracer: A tracer of the application's provider.
    """

    def __init__(self, tracer: SdkTracer) -> None:
        self._theirs = tracer
        self._ids = _KnownIds()
        self._sampler = _KnownAnswer()
        provider = SdkTracerProvider(
            sampler=self._sampler,
            resource=tracer.resource,
            active_span_processor=tracer.span_processor,
            id_generator=self._ids,
            # the only one of these parts without a public name
            span_limits=tracer._span_limits,  # noqa: SLF001
            shutdown_on_exit=False,
        )
        self._tracer = provider.get_tracer(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)

    def decide(self, execution_id: UUID, dag_name: str, context: Context) -> Decision:
        """Asks the application's sampler about an execution.

        Args:
            execution_id: The execution.
            dag_name: Its DAG's name.
            context: The caller's context.

        Raises:
            Exception: What the sampler raises.
        """
        if not self._theirs._is_enabled():  # noqa: SLF001 - the tracer configurator's answer has no public name
            return NOT_TRACED
        return decide(self._theirs.sampler, execution_id, dag_name, context)

    def emit(self, span: Span, decision: Decision, *, with_events: bool) -> None:
        """Creates and ends a span.

        Args:
            span: The finished span.
            decision: That of its execution.
            with_events: Whether the span's events go with it.

        Raises:
            Exception: What the application's processors raise.
        """
        execution, result = decision.span_context, decision.result
        if execution is None or result is None or result.decision is Sampling.DROP:
            return
        self._ids.trace_id = execution.trace_id
        self._ids.span_id = span.span_id
        attributes: Attributes = span.attributes
        parent = decision.context
        if MODULE_NAME in span.attributes:
            parent = decision.context_of(execution.span_id, parent)
        else:
            attributes = {**result.attributes, **span.attributes}
        self._sampler.result = SamplingResult(result.decision, attributes, result.trace_state)
        made = self._tracer.start_span(span.name, parent, span.kind, attributes, start_time=span.start_ns)
        _finish(made, span, with_events=with_events)


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


class PlainTraces:
    """Creates spans through a tracer that is not the OpenTelemetry SDK's.

    Its spans get ids of its own choosing, so an execution's spans are created
    together, when it has ended. For one thread only.

    Args:
        tracer: Any tracer.
        max_held: Modules' spans that wait for their execution's, at most. Beyond it those of
            the execution that began to wait first are created at once, below its caller.
    """

    def __init__(self, tracer: Tracer, max_held: int = 100_000) -> None:
        self._tracer = tracer
        self._max_held = max_held
        self._held = 0
        self._modules: dict[object, tuple[Context, list[Span]]] = {}
        self._log = RateLimitedLog()

    def decide(self, execution_id: UUID, dag_name: str, context: Context) -> Decision:  # noqa: ARG002 - as SdkTraces
        """Keeps the caller's context; the sampling is the tracer's own business."""
        return Decision(context, None, None)

    def emit(self, span: Span, decision: Decision, *, with_events: bool) -> None:
        """Keeps a module's span until its execution's comes, then creates them all.

        Raises:
            Exception: What the tracer raises.
        """
        execution_id = span.attributes[EXECUTION_ID]
        if MODULE_NAME in span.attributes:
            self._modules.setdefault(execution_id, (decision.context, []))[1].append(span)
            self._held += 1
            if self._held > self._max_held:
                self._let_go(with_events=with_events)
            return
        _, modules = self._modules.pop(execution_id, (None, []))
        self._held -= len(modules)
        execution = self._start(span, decision.context)
        context = trace.set_span_in_context(execution, decision.context)
        for module in modules:
            _finish(self._start(module, context), module, with_events=with_events)
        _finish(execution, span, with_events=with_events)

    def _let_go(self, *, with_events: bool) -> None:
        """Creates the spans that have waited longest, without the execution's that they waited for."""
        message = "more than %d modules' spans wait for their executions'; those of the oldest are not below it"
        self._log.write(_LOGGER, logging.WARNING, "held", message, self._max_held)
        context, modules = self._modules.pop(next(iter(self._modules)))
        self._held -= len(modules)
        for module in modules:
            _finish(self._start(module, context), module, with_events=with_events)

    def _start(self, span: Span, context: Context) -> trace.Span:
        return self._tracer.start_span(span.name, context, span.kind, span.attributes, start_time=span.start_ns)


class _KnownIds(IdGenerator):
    """Hands out the ids that it was given."""

    trace_id = trace.INVALID_TRACE_ID
    span_id = trace.INVALID_SPAN_ID

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id

    def is_trace_id_random(self) -> bool:
        return True


class _KnownAnswer(Sampler):
    """Answers what the application's sampler has answered before."""

    result: SamplingResult

    def should_sample(
        self,
        parent_context: Context | None,  # noqa: ARG002 - the SDK's signature
        trace_id: int,  # noqa: ARG002
        name: str,  # noqa: ARG002
        kind: SpanKind | None = None,  # noqa: ARG002
        attributes: Attributes = None,  # noqa: ARG002
        links: Sequence[Link] | None = None,  # noqa: ARG002
        trace_state: TraceState | None = None,  # noqa: ARG002
    ) -> SamplingResult:
        return self.result

    def get_description(self) -> str:
        return "the application's sampler, asked once for each execution"


def _finish(made: trace.Span, span: Span, *, with_events: bool) -> None:
    if span.status_description is not None:
        made.set_status(Status(span.status, span.status_description))
    if with_events:
        for event in span.events:
            made.add_event(event.name, event.attributes, event.timestamp_ns)
    made.end(span.end_ns)


def sampler_of_environment() -> Sampler:
    """The sampler that OTEL_TRACES_SAMPLER says.

    Raises:
        ConfigurationError: It, or a limit of spans in the environment, cannot be used.
    """
    with configured("OTEL_TRACES_", "OTEL_SPAN_", "OTEL_ATTRIBUTE_", "OTEL_EVENT_", "OTEL_LINK_", "OTEL_PYTHON_"):
        return SdkTracerProvider(resource=Resource.get_empty(), shutdown_on_exit=False).sampler
