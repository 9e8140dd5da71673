"""Which executions are traced: a sampler's answer, asked once for each, whatever sends the spans."""

from __future__ import annotations

import logging
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from msgspec import Struct, field, to_builtins
from msgspec.structs import replace
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.sampling import Decision as Answer
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from constellation_otel._support.environment import configured
from constellation_otel._support.log import RateLimitedLog
from constellation_otel.events import clean_name, remote_parent
from constellation_otel.traces.ids import RANDOM_TRACE_ID, SpanIds, trace_id_of
from constellation_otel.traces.span import DAG_NAME, EXECUTION_ID, AttributeValue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from constellation_otel.traces.span import Span

__all__ = [
    "NOT_TRACED",
    "Decider",
    "Decision",
    "Sampling",
    "decide",
    "exported",
    "sampler_of_environment",
    "without_exceptions",
]

_LOGGER: Final = logging.getLogger(__name__)
_SAMPLED: Final = int(TraceFlags.SAMPLED)
# looked up once: an enum's member costs as much as a small function
_INTERNAL: Final = SpanKind.INTERNAL
_SERVER: Final = SpanKind.SERVER
_SAMPLE: Final = Answer.RECORD_AND_SAMPLE
_DROP: Final = Answer.DROP
_FLAGS: Final = {flags: TraceFlags(flags) for flags in range(_SAMPLED + RANDOM_TRACE_ID + 1)}
_CURRENT_SPAN: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))
"""What a context knows its current span by: the API has no name for it, and this costs a third of its function."""


class Decision(Struct, frozen=True):
    """What holds for all spans of an execution, found when it started.

    Attributes:
        caller: The caller's context.
        span_context: The execution's span; ``None`` where it is not known, or not traced.
        result: What the sampler answered; ``None`` where it was not asked.
        is_recorded: Whether spans are made: sampled, or for the application's processors only.
        trace_flags: The spans' W3C flags.
        trace_state: Their tracestate header.
        attributes: What the sampler adds to the execution's span.
        ids: The execution's span ids, where they were computed for this.
        limits: Of what a span may have; the environment's where there are none.
        bodies: The spans of its modules' bodies that run, by the module's id as a number.
        has_bodies: Whether there are any: its spans are recorded, and their ids are known.
        is_joined: Whether another process has started the execution, and makes its span.
    """

    caller: Context
    span_context: SpanContext | None = None
    result: SamplingResult | None = None
    is_recorded: bool = False
    trace_flags: int = 0
    trace_state: str = ""
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    ids: SpanIds | None = None
    limits: SpanLimits | None = None
    bodies: dict[int, Any] = field(default_factory=dict)
    has_bodies: bool = False
    is_joined: bool = False

    @property
    def execution_id(self) -> UUID | None:
        """The execution's id, where the ids were computed."""
        return None if self.ids is None else self.ids.execution_id

    def span_context_of(self, span_id: int) -> SpanContext | None:
        """The context of a span of the execution's trace; ``None`` where that is not known, or not traced."""
        execution = self.span_context
        if execution is None:
            return None
        return SpanContext(execution.trace_id, span_id, False, execution.trace_flags, execution.trace_state)

    def context_of(self, span_id: int, context: Context) -> Context:
        """``context`` with a span of the execution's trace as the current one."""
        span_context = self.span_context_of(span_id)
        if span_context is None:
            return context
        return Context({**context, _CURRENT_SPAN: NonRecordingSpan(span_context)})


NOT_TRACED: Final = Decision(Context())
"""For an execution of which no spans are made."""


class Decider(Protocol):
    """Decides on executions, as :func:`decide` with a sampler."""

    def __call__(
        self, execution_id: UUID, dag_name: str, context: Context, *, own: SpanContext | None = None
    ) -> Decision:
        """Decides on an execution; where its own span is known, that has the answer."""


def decide(
    sampler: Sampler,
    execution_id: UUID,
    dag_name: str,
    context: Context,
    limits: SpanLimits | None = None,
    *,
    own: SpanContext | None = None,
) -> Decision:
    """Asks a sampler about an execution, for all of its spans.

    Args:
        sampler: Any sampler.
        execution_id: The execution.
        dag_name: Its DAG's name.
        context: The caller's context.
        limits: Of what a span may have.
        own: The execution's own span, where another process has started it: its flag is the answer, and the
            sampler is not asked.

    Raises:
        Exception: What the sampler raises.
    """
    if own is not None:
        return _answered(execution_id, own, limits)
    # there is none in an empty context
    caller = trace.get_current_span(context).get_span_context() if context else INVALID_SPAN_CONTEXT
    has_caller = caller.is_valid
    trace_id = caller.trace_id if has_caller else trace_id_of(execution_id)
    name = clean_name(dag_name)
    attributes = {EXECUTION_ID: to_builtins(execution_id), DAG_NAME: name}
    result = sampler.should_sample(
        context,
        trace_id,
        name,
        _INTERNAL if has_caller else _SERVER,
        attributes,
        (),
        caller.trace_state if has_caller else None,
    )
    flags = _SAMPLED if result.decision is _SAMPLE else 0
    if not has_caller or caller.trace_flags & RANDOM_TRACE_ID:
        flags |= RANDOM_TRACE_ID
    ids = SpanIds(execution_id)
    span_context = SpanContext(trace_id, ids.execution, False, _FLAGS[flags], result.trace_state)
    state = span_context.trace_state
    return Decision(
        context,
        span_context,
        result,
        result.decision is not _DROP,
        flags,
        state.to_header() if state else "",
        # the SDK's samplers give back what they were given
        {key: value for key, value in result.attributes.items() if key not in attributes}
        if result.attributes != attributes
        else {},
        ids,
        limits,
        has_bodies=result.decision is not _DROP,
    )


def _answered(execution_id: UUID, own: SpanContext, limits: SpanLimits | None) -> Decision:
    """The decision that another process has taken."""
    is_sampled = bool(own.trace_flags & _SAMPLED)
    flags = own.trace_flags & len(_FLAGS) - 1
    ids = SpanIds(execution_id)
    return Decision(
        Context(),
        SpanContext(own.trace_id, ids.execution, False, _FLAGS[flags], own.trace_state),
        SamplingResult(_SAMPLE if is_sampled else _DROP),
        is_sampled,
        flags,
        ids=ids,
        has_bodies=is_sampled,
        limits=limits,
    )


def _close_bodies(decision: Decision) -> None:
    """Ends the spans of bodies that run on, as those of a cancelled execution's modules may."""
    for span in list(decision.bodies.values()):
        span.close()


def exported(*, with_events: bool) -> Callable[[Sequence[Span]], Sequence[Span]]:
    """What is exported of spans of one execution that were made together: all of them, where it is sampled.

    Args:
        with_events: Whether the exceptions that modules failed with stay on them as events.
    """

    def of(spans: Sequence[Span]) -> Sequence[Span]:
        if not spans[0].trace_flags & _SAMPLED:
            return ()
        return spans if with_events else without_exceptions(spans)

    return of


def without_exceptions(spans: Sequence[Span]) -> Sequence[Span]:
    """The same spans without the exceptions that modules failed with, which go elsewhere."""
    return [
        replace(span, events=tuple(event for event in span.events if not event.is_failure)) if span.events else span
        for span in spans
    ]


class Sampling:
    """Keeps what was decided on each execution, from its start until its own span was made.

    The sampler is asked once for an execution: by :meth:`decide`, when it starts in this
    process, or else when its first span is made, which is the same answer as long as the
    sampler goes by the trace and the parent, as all of OpenTelemetry's do. An execution for
    which the sampler raises is not traced.

    Args:
        decider: As :func:`decide` with a sampler; ``None`` while nothing is traced.
        max_remembered: Decisions kept at most. Beyond it the oldest is forgotten, and made
            again when a span of its execution is made.

    Attributes:
        decider: The same.
        decisions: What was decided, by the execution's id as a number.
    """

    def __init__(self, decider: Decider | None, *, max_remembered: int = 100_000) -> None:
        self.decider = decider
        self._max_remembered = max_remembered
        self._log = RateLimitedLog()
        # callbacks remember, in any thread, while a worker goes by it: each step is one call in C, with keys that
        # are numbers, so that no other thread comes between
        self.decisions: OrderedDict[int, Decision] = OrderedDict()

    def decide(self, execution_id: UUID, dag_name: str, context: Context) -> bool:
        """Decides on an execution that starts, unless that was done before; never raises.

        Args:
            execution_id: The execution.
            dag_name: Its DAG's name.
            context: The caller's.

        Returns:
            Whether it was decided now, and not before.
        """
        key = execution_id.int
        decider = self.decider
        if decider is None or key in self.decisions:
            return False
        decision = self._decided(decider, execution_id, dag_name, context)
        return self._remembered(key, decision) is decision

    def decision_on(self, execution_id: UUID, dag_name: str, context: Context) -> Decision:
        """What was decided on an execution; decided now where its start was never heard of.

        Args:
            execution_id: The execution.
            dag_name: Its DAG's name.
            context: Of its caller, as far as that is known.
        """
        key = execution_id.int
        known = self.decisions.get(key)
        if known is not None:
            return known
        decider = self.decider
        if decider is None:
            return NOT_TRACED
        return self._remembered(key, self._decided(decider, execution_id, dag_name, context))

    def join(self, execution_id: UUID, dag_name: str, traceparent: str | None) -> Decision:
        """What holds for the modules of an execution that another process has started.

        Args:
            execution_id: The execution.
            dag_name: Its DAG's name.
            traceparent: The execution's own span, whose flag is the answer; it is decided on here where there is none.
        """
        known = self.decisions.get(execution_id.int)
        if known is not None:
            return known
        decider = self.decider
        if decider is None:
            return NOT_TRACED
        parent = remote_parent(traceparent, None)
        own = None if parent is None else trace.get_current_span(parent).get_span_context()
        decision = self._decided(decider, execution_id, dag_name, Context(), own)
        if decision.is_recorded:
            decision = replace(decision, is_joined=True)
        return self._remembered(execution_id.int, decision)

    def recall(self, execution_id: UUID) -> Decision | None:
        """What was decided on an execution, and was not forgotten."""
        return self.decisions.get(execution_id.int)

    def remembered(self) -> list[Decision]:
        """Everything that was decided and not forgotten, the oldest first."""
        return list(self.decisions.copy().values())

    def forget(self, execution_id: UUID) -> None:
        """For an execution whose own span was made, or of which no span will come."""
        decision = self.decisions.pop(execution_id.int, None)
        if decision is not None:
            _close_bodies(decision)

    def _remembered(self, key: int, decision: Decision) -> Decision:
        """What is remembered from now on: another thread may have been faster."""
        known = self.decisions.setdefault(key, decision)
        if len(self.decisions) > self._max_remembered:
            # unless all were forgotten since
            with suppress(KeyError):
                _close_bodies(self.decisions.popitem(last=False)[1])
        return known

    def _decided(
        self, decider: Decider, execution_id: UUID, dag_name: str, context: Context, own: SpanContext | None = None
    ) -> Decision:
        try:
            return decider(execution_id, dag_name, context, own=own)
        except Exception as error:  # noqa: BLE001 - a sampler of the user's own
            message = "the sampler raised for execution %s; the execution is not traced"
            self._log.write(_LOGGER, logging.ERROR, "sampler", message, execution_id, error=error)
            return NOT_TRACED


def sampler_of_environment() -> Sampler:
    """The sampler that OTEL_TRACES_SAMPLER names.

    Raises:
        ConfigurationError: It, or a limit of spans in the environment, cannot be used.
    """
    with configured("OTEL_TRACES_", "OTEL_SPAN_", "OTEL_ATTRIBUTE_", "OTEL_EVENT_", "OTEL_LINK_", "OTEL_PYTHON_"):
        return SdkTracerProvider(resource=Resource.get_empty(), shutdown_on_exit=False).sampler
