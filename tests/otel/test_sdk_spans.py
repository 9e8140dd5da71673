"""Spans for the application's SDK: those made at their end are what the SDK would have made."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import (
    ReadableSpan,
    SpanLimits,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.sdk.trace.sampling import Decision as Answer
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.otel.sdk_spans import PlainTraces, Recorded, SdkSink, SdkTraces, _RealSpans
from constellation_otel.traces import (
    NOT_TRACED,
    Assembler,
    Decision,
    Dropped,
    Span,
    SpanEvent,
    SpanLink,
    decide,
    span_id_of,
)
from deliveries import execution
from stories import E1, M1, M2, STORY, assemble
from support import UNWATCHED
from telemetry import provider_with

if TYPE_CHECKING:
    import pytest
    from opentelemetry.sdk.trace import Tracer

RESOURCE = Resource({"service.name": "shop"})
MODULE_ID, OUTER_ID = M1, M2


class Keeps(SpanProcessor):
    """Keeps the spans that have ended."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


class Looks(Keeps):
    """Has to be given spans that the SDK has made."""

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        """Does nothing, which is not known."""


class Answers(Sampler):
    """Gives one answer."""

    def __init__(self, decision: Answer, attributes: dict[str, Any], state: list[tuple[str, str]]) -> None:
        self.result = SamplingResult(decision, attributes, TraceState(state))

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return self.result

    def get_description(self) -> str:
        return "Answers"


def tracer_with(processor: SpanProcessor, limits: SpanLimits) -> Tracer:
    processors: Any = SynchronousMultiSpanProcessor
    active = processors()
    active.add_span_processor(processor)
    provider = TracerProvider(
        resource=RESOURCE, active_span_processor=active, span_limits=limits, shutdown_on_exit=False
    )
    tracer: Any = provider.get_tracer(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)
    return tracer  # type: ignore[no-any-return] # the SDK's


def parts_of(context: SpanContext | None) -> tuple[object, ...]:
    # a context's own comparison leaves out nothing, and says nothing of what differs
    return () if context is None else tuple(context)


def everything_of(span: ReadableSpan) -> dict[str, Any]:
    """All that an exporter can see of a span."""
    return {
        "json": span.to_json(),
        "context": parts_of(span.get_span_context()),
        "parent": parts_of(span.parent),
        "kind": span.kind,
        "times": (span.start_time, span.end_time),
        "attributes": list((span.attributes or {}).items()),
        "status": (span.status.status_code, span.status.description),
        "events": [
            (event.name, event.timestamp, list((event.attributes or {}).items()), event.dropped_attributes)
            for event in span.events
        ],
        "links": [
            (parts_of(link.context), list((link.attributes or {}).items()), link.dropped_attributes)
            for link in span.links
        ],
        "resource": span.resource,
        "scope": span.instrumentation_scope,
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
    }


texts = st.text(max_size=12)
names = st.text(min_size=1, max_size=12)
values = st.one_of(
    texts,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.lists(texts, max_size=3).map(tuple),
)
odd_values = st.one_of(values, st.none(), st.lists(st.one_of(texts, st.integers()), max_size=3))
attributes = st.dictionaries(names, values, max_size=6)
counts = st.sampled_from([SpanLimits.UNSET, 0, 1, 2, 3, 128])
states = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=2, unique_by=lambda it: it[0])
times = st.integers(0, 2**63 - 1)
trace_ids, span_ids = st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)
states_of_links, few = st.sampled_from(["", "a=1,b=2"]), st.integers(0, 3)
limits_of_providers = st.builds(
    SpanLimits,
    max_events=counts,
    max_span_attributes=counts,
    max_links=counts,
    max_link_attributes=counts,
    max_event_attributes=counts,
    max_attribute_length=counts,
    max_span_attribute_length=counts,
)
callers = st.none() | st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    is_remote=st.booleans(),
    trace_flags=st.integers(0, 3).map(TraceFlags),
    trace_state=states.map(TraceState),
)
answers = st.builds(
    Answers,
    st.sampled_from([Answer.RECORD_ONLY, Answer.RECORD_AND_SAMPLE]),
    st.dictionaries(names, odd_values, max_size=6),
    states,
)


@st.composite
def finished(draw: st.DrawFn) -> Recorded:
    """A span of an execution or a module, as far as the SDK is concerned an arbitrary one, and its decision."""
    caller = draw(callers)
    context = Context() if caller is None else trace.set_span_in_context(NonRecordingSpan(caller), Context())
    decision = decide(draw(answers), E1, "d", context)
    assert decision.span_context is not None
    is_execution = draw(st.booleans())
    status = draw(st.sampled_from(StatusCode))
    parent_span_id = draw(st.sampled_from([decision.span_context.span_id, span_id_of(E1, OUTER_ID)]))
    if is_execution:
        parent_span_id = caller.span_id if caller is not None else None  # type: ignore[assignment] # a root has none
    span = Span(
        decision.span_context.trace_id,
        decision.span_context.span_id if is_execution else span_id_of(E1, MODULE_ID),
        parent_span_id,
        decision.trace_state,
        decision.trace_flags,
        draw(names),
        draw(st.sampled_from(SpanKind)),
        draw(times),
        draw(times),
        # as rendering does it
        {**(decision.attributes if is_execution else {}), **draw(attributes)},
        status,
        draw(texts) if status is StatusCode.ERROR else None,
        tuple(draw(st.lists(st.builds(SpanEvent, names, times, attributes), max_size=4))),
        E1,
        is_execution,
        links=tuple(draw(st.lists(st.builds(SpanLink, trace_ids, span_ids, attributes, states_of_links), max_size=4))),
        dropped=draw(st.builds(Dropped, few, few, few)),
    )
    return Recorded(span, decision)


@UNWATCHED
@settings(max_examples=400)
@given(finished(), limits_of_providers)
def test_a_span_made_at_its_end_is_what_the_sdk_would_have_made(recorded: Recorded, limits: SpanLimits) -> None:
    """Whatever the span, the sampler's answer, the caller and the provider's limits."""
    at_its_end, by_the_sdk = Keeps(), Looks()
    for keeps in (at_its_end, by_the_sdk):
        traces = SdkTraces(tracer_with(keeps, limits))
        traces.emit(recorded.span, recorded.decision)
        assert isinstance(traces._real, _RealSpans) is (keeps is by_the_sdk)
    (ours,), (theirs,) = at_its_end.spans, by_the_sdk.spans
    assert everything_of(ours) == everything_of(theirs)
    assert type(ours) is type(theirs) is ReadableSpan


def test_a_part_is_made_below_the_module_that_it_is_a_part_of() -> None:
    """With all of its events, where the provider has no limit of them."""
    keeps = Keeps()
    decision = decide(ALWAYS_ON, E1, "d", Context())
    failed = structs.replace(assemble(STORY)[2], parent_span_id=span_id_of(E1, OUTER_ID))
    SdkTraces(tracer_with(keeps, SpanLimits(max_events=SpanLimits.UNSET))).emit(failed, decision)
    (span,) = keeps.spans
    assert span.parent is not None
    assert span.parent.span_id == span_id_of(E1, OUTER_ID)
    assert [event.name for event in span.events] == ["exception"]


def test_an_execution_that_is_not_traced_makes_no_span() -> None:
    keeps = Keeps()
    traces = SdkTraces(tracer_with(keeps, SpanLimits()))
    traces.emit(assemble(STORY)[-1], NOT_TRACED)
    assert keeps.spans == []


def test_a_sink_that_knows_no_provider_yet_sends_nothing() -> None:
    sink = SdkSink()
    recorded = Recorded(assemble(STORY)[-1], decide(ALWAYS_ON, E1, "d", Context()))
    assert sink.send([recorded], 1.0) == ()
    assert (sink.name, sink.takes, sink.failed) == ("opentelemetry", "spans", 0)


# --- a tracer that is not the SDK's ----------------------------------------------------------------------------------


def test_plain_spans_that_wait_for_their_executions_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    provider, exporter = provider_with(ALWAYS_ON)
    traces, assembler = PlainTraces(provider.get_tracer("plain"), max_held=10), Assembler()

    def emit(event: Any) -> None:
        for span in assembler.add(event, 0):
            decision = traces.decide(UUID(int=0), "dag", Context())
            traces.emit(span, decision)

    with caplog.at_level(logging.WARNING):
        for number in range(1, 101):
            for event in execution(number)[:3]:
                emit(event)
    assert len(traces._modules) == 10
    # of the first 90 there are modules only, each a trace of its own
    spans = exporter.get_finished_spans()
    assert ([span.name for span in spans], {span.parent for span in spans}) == (["trim"] * 90, {None})
    assert len(caplog.records) == 1
    for number in (1, 100):
        emit(execution(number)[3])
    first, module, last = exporter.get_finished_spans()[90:]
    assert (first.name, module.name, last.name) == ("dag-1", "trim", "dag-100")
    assert module.parent is not None
    assert module.parent.span_id == last.get_span_context().span_id  # type: ignore[union-attr] # it has one
    assert len(traces._modules) == 9
    provider.shutdown()


def test_plain_spans_have_their_events() -> None:
    provider, exporter = provider_with(ALWAYS_ON)
    traces = PlainTraces(provider.get_tracer("plain"))
    for span in assemble(STORY):
        traces.emit(span, Decision(Context(), is_recorded=True))
    *modules, whole = exporter.get_finished_spans()
    assert [len(span.events) for span in modules] == [0, 0, 1]
    assert whole.status.description == "WordCount failed: too many words"
    provider.shutdown()
