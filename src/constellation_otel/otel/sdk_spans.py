"""Finished spans into a tracer provider, with ids, parents and times of our own.

The application's tracers are not touched: spans are created by a provider of our
own over the application's resource, processors and limits, and with the answer
that its sampler gave when the execution started.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision as Sampling
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import SpanKind, Status

from constellation_otel._support.log import RateLimitedLog
from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.traces import EXECUTION_ID, MODULE_NAME, NOT_TRACED, Decision, Span, decide

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Tracer
    from opentelemetry.trace.span import TraceState
    from opentelemetry.util.types import Attributes

__all__ = ["PlainTraces", "SdkTraces"]


_LOGGER: Final = logging.getLogger(__name__)


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
