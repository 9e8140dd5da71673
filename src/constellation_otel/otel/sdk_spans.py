"""Finished spans into a tracer provider, with ids, parents and times of our own.

The application's tracers are not touched. Its processors get a span that was made at its
end; where one of them looks at spans before, it gets one that the SDK has made and ended.
Both are equal.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode
from opentelemetry.trace.span import TraceState

from constellation_otel._support.log import RateLimitedLog
from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.delivery import Rejection, Sink
from constellation_otel.otel import _sdk_internals as internals
from constellation_otel.traces import NOT_TRACED, Decision, Span, SpanLink, decide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from opentelemetry.sdk.trace import SpanLimits
    from opentelemetry.sdk.trace import Tracer as SdkTracer
    from opentelemetry.trace import Tracer
    from opentelemetry.util.types import Attributes

__all__ = ["PlainTraces", "Recorded", "SdkSink", "SdkTraces"]

_LOGGER: Final = logging.getLogger(__name__)
_UNSET: Final = Status(StatusCode.UNSET)


class Recorded(NamedTuple):
    """A span that goes to the application's SDK.

    Attributes:
        span: The finished span.
        decision: That of its execution.
    """

    span: Span
    decision: Decision


class SdkSink(Sink[Recorded]):
    """Hands spans to the application's SDK; what that raises is counted and logged, and costs no other span.

    Attributes:
        traces: Where they go; ``None`` while no provider is known.
        failed: Spans for which the application's SDK raised.
    """

    def __init__(self) -> None:
        self.traces: SdkTraces | PlainTraces | None = None
        self.failed = 0
        self._log = RateLimitedLog()

    @property
    def name(self) -> str:
        return "opentelemetry"

    @property
    def takes(self) -> Literal["events", "spans"]:
        return "spans"

    def send(self, items: Sequence[Recorded], timeout: float) -> Sequence[Rejection]:  # noqa: ARG002 - the SDK takes none
        traces = self.traces
        if traces is None:
            return ()
        for span, decision in items:
            try:
                traces.emit(span, decision)
            except Exception as error:  # noqa: BLE001 - the application's processors
                self.failed += 1
                message = "the application's OpenTelemetry SDK raised for a span; that span is lost"
                self._log.write(_LOGGER, logging.ERROR, "emit", message, error=error)
        return ()


class SdkTraces:
    """Gives spans to an application's OpenTelemetry SDK.

    :meth:`emit` is for one thread only.

    Args:
        tracer: A tracer of the application's provider.
    """

    def __init__(self, tracer: SdkTracer) -> None:
        self._tracer = tracer
        self._limits = internals.limits_of(tracer)
        self._scope = InstrumentationScope(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)
        self._processors: object = None
        self._real: _RealSpans | None = None

    def decide(
        self, execution_id: UUID, dag_name: str, context: Context, *, own: SpanContext | None = None
    ) -> Decision:
        """Asks the application's sampler about an execution.

        Args:
            execution_id: The execution.
            dag_name: Its DAG's name.
            context: The caller's context.
            own: The execution's own span, where another process has started it; its flag is the answer.

        Raises:
            Exception: What the sampler raises.
        """
        if not internals.is_enabled(self._tracer):
            return NOT_TRACED
        return decide(self._tracer.sampler, execution_id, dag_name, context, self._limits, own=own)

    def emit(self, span: Span, decision: Decision) -> None:
        """Hands over a span.

        Args:
            span: The finished span.
            decision: That of its execution.

        Raises:
            Exception: What the application's processors raise.
        """
        execution, result = decision.span_context, decision.result
        if execution is None or result is None:
            return
        processors = internals.processors_of(self._tracer)
        if processors is not self._processors:
            self._processors = processors
            self._real = _RealSpans(self._tracer) if internals.needs_real_spans(self._tracer) else None
        if self._real is not None:
            self._real.emit(span, decision, execution, result)
            return
        tracer, limits = self._tracer, self._limits
        parent: SpanContext | None = execution
        if span.parent_span_id != execution.span_id and not span.is_execution:
            parent = decision.span_context_of(span.parent_span_id or 0)
        if span.is_execution:
            caller = trace.get_current_span(decision.caller).get_span_context()
            parent = caller if caller.is_valid else None
        attributes: Any = span.attributes
        dropped = span.dropped
        # its own attributes are few and short, as a rule
        if (
            dropped.attributes
            or decision.attributes
            or limits.max_span_attribute_length is not None
            or not _has_room(limits, attributes)
        ):
            attributes = BoundedAttributes(
                limits.max_span_attributes, attributes, max_value_len=limits.max_span_attribute_length
            )
            attributes.dropped += dropped.attributes
        events = _events(span, limits) if span.events or dropped.events else ()
        links = _links(span, limits) if span.links or dropped.links else ()
        tracer.span_processor.on_end(
            ReadableSpan(
                span.name,
                execution if span.is_execution else decision.span_context_of(span.span_id),
                parent,
                tracer.resource,
                attributes,
                events,
                links,
                span.kind,
                tracer.instrumentation_info,
                _UNSET if span.status is StatusCode.UNSET else Status(span.status, span.status_description),
                span.start_ns,
                span.end_ns,
                self._scope,
            )
        )


class _RealSpans:
    """Spans that the SDK makes and ends, through a provider of our own over the application's parts."""

    def __init__(self, tracer: SdkTracer) -> None:
        self._ids = _KnownIds()
        self._sampler = _KnownAnswer()
        self._theirs = tracer
        self._provider = SdkTracerProvider(
            sampler=self._sampler,
            resource=tracer.resource,
            active_span_processor=tracer.span_processor,
            id_generator=self._ids,
            span_limits=internals.limits_of(tracer),
            shutdown_on_exit=False,
        )
        self._tracer = self._provider.get_tracer(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)
        internals.share_span_metrics(self._tracer, tracer)

    def emit(self, span: Span, decision: Decision, execution: SpanContext, result: SamplingResult) -> None:
        # single-threaded by construction: the worker's
        self._ids.trace_id, self._ids.span_id = execution.trace_id, span.span_id
        parent = decision.caller
        if not span.is_execution:
            above = execution.span_id if span.parent_span_id is None else span.parent_span_id
            parent = decision.context_of(above, parent)
        self._sampler.result = SamplingResult(result.decision, _theirs(span.attributes), result.trace_state)
        links = [_link(link) for link in span.links]
        made = self._tracer.start_span(
            span.name, parent, span.kind, _theirs(span.attributes), links, start_time=span.start_ns
        )
        internals.give_flags(made, execution.trace_flags)
        dropped = span.dropped
        internals.give_dropped(made, attributes=dropped.attributes, events=dropped.events, links=dropped.links)
        _finish(made, span)


class PlainTraces:
    """Creates spans through a tracer that is not the OpenTelemetry SDK's.

    Its spans get ids of its own choosing, so an execution's spans are created
    together, when it has ended. Those of an execution that another process has started are
    created at once, below its span where that is known. For one thread only.

    Args:
        tracer: Any tracer.
        max_held: Modules' spans that wait for their execution's, at most. Beyond it those of
            the execution that began to wait first are created at once, below its caller.
    """

    def __init__(self, tracer: Tracer, max_held: int = 100_000) -> None:
        self._tracer = tracer
        self._max_held = max_held
        self._held = 0
        self._modules: dict[UUID | None, tuple[Context, list[Span]]] = {}
        self._log = RateLimitedLog()

    def decide(
        self,
        execution_id: UUID,  # noqa: ARG002 - as SdkTraces
        dag_name: str,  # noqa: ARG002 - likewise
        context: Context,
        *,
        own: SpanContext | None = None,
    ) -> Decision:
        """Keeps the caller's context, or the execution's own span; the sampling is the tracer's own business."""
        if own is not None:
            caller = trace.set_span_in_context(NonRecordingSpan(own), Context())
            return Decision(caller, is_recorded=own.trace_flags.sampled)
        return Decision(context, is_recorded=True)

    def emit(self, span: Span, decision: Decision) -> None:
        """Keeps a module's span until its execution's comes, then creates them all.

        Raises:
            Exception: What the tracer raises.
        """
        if decision.is_joined and not span.is_execution:
            _finish(self._start(span, decision.caller), span)
            return
        if not span.is_execution:
            self._modules.setdefault(span.execution_id, (decision.caller, []))[1].append(span)
            self._held += 1
            if self._held > self._max_held:
                self._create_oldest()
            return
        _, modules = self._modules.pop(span.execution_id, (None, []))
        self._held -= len(modules)
        execution = self._start(span, decision.caller)
        context = trace.set_span_in_context(execution, decision.caller)
        for module in modules:
            _finish(self._start(module, context), module)
        _finish(execution, span)

    def _create_oldest(self) -> None:
        """Creates the spans that have waited longest, without the execution's that they waited for."""
        message = "more than %d spans of modules wait for their execution's; the oldest execution's are made without it"
        self._log.write(_LOGGER, logging.WARNING, "held", message, self._max_held)
        context, modules = self._modules.pop(next(iter(self._modules)))
        self._held -= len(modules)
        for module in modules:
            _finish(self._start(module, context), module)

    def _start(self, span: Span, context: Context) -> trace.Span:
        return self._tracer.start_span(
            span.name, context, span.kind, _theirs(span.attributes), start_time=span.start_ns
        )


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
        kind: trace.SpanKind | None = None,  # noqa: ARG002
        attributes: Attributes = None,  # noqa: ARG002
        links: Sequence[Link] | None = None,  # noqa: ARG002
        trace_state: TraceState | None = None,  # noqa: ARG002
    ) -> SamplingResult:
        return self.result

    def get_description(self) -> str:
        return "the application's sampler, asked once for each execution"


def _theirs(attributes: Mapping[str, Any]) -> Attributes:
    """Attributes as the SDK's types have them: the same values."""
    return attributes


def _has_room(limits: SpanLimits, attributes: Mapping[str, Any]) -> bool:
    return limits.max_span_attributes is None or len(attributes) <= limits.max_span_attributes


def _events(span: Span, limits: SpanLimits) -> Sequence[Event]:
    bounded = partial(
        BoundedAttributes, limits.max_event_attributes, max_value_len=limits.max_attribute_length, immutable=True
    )
    events = [Event(it.name, bounded(_theirs(it.attributes)), it.timestamp_ns) for it in span.events]
    # the oldest are dropped, and counted
    if limits.max_events is None and not span.dropped.events:
        return events
    return _bounded_list(limits.max_events, events, span.dropped.events)


def _bounded_list(limit: int | None, items: Sequence[Any], dropped: int) -> Sequence[Any]:
    kept: Any = BoundedList(limit)
    for item in items:
        kept.append(item)
    kept.dropped += dropped
    return kept  # type: ignore[no-any-return] # the SDK's own list has no types


def _links(span: Span, limits: SpanLimits) -> Sequence[Link]:
    bounded = partial(
        BoundedAttributes, limits.max_link_attributes, max_value_len=limits.max_attribute_length, immutable=True
    )
    links = [Link(it.context, bounded(_theirs(it.attributes or {}))) for it in map(_link, span.links)]
    return _bounded_list(limits.max_links, links, span.dropped.links)


def _link(link: SpanLink) -> Link:
    state = TraceState.from_header([link.trace_state]) if link.trace_state else None
    context = SpanContext(link.trace_id, link.span_id, False, trace.TraceFlags(link.trace_flags), state)
    return Link(context, _theirs(link.attributes))


def _finish(made: trace.Span, span: Span) -> None:
    if span.status is not StatusCode.UNSET:
        made.set_status(Status(span.status, span.status_description))
    for event in span.events:
        made.add_event(event.name, _theirs(event.attributes), event.timestamp_ns)
    made.end(span.end_ns)
