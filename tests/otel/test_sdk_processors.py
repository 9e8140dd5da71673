"""Which span processors get spans that the SDK has made, and which spans that are made at their end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk import trace as sdk_trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from constellation_otel.otel.sdk_spans import SdkTraces
from constellation_otel.traces import Decision, decide
from constellation_otel.traces import Span as FinishedSpan
from otel.helpers import SINCE, VERSION
from stories import E1, STORY, assemble
from telemetry import points_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.sdk.trace import Tracer


class Sees(SpanProcessor):
    """Does something when a span starts."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("seen", "at its start")


class SeesEnding(SpanProcessor):
    """Does something just before a span ends."""

    def _on_ending(self, span: Span) -> None:
        """An attribute would be too late."""


class SeesInBatch(BatchSpanProcessor):
    """Is the SDK's, with an ``on_start`` of its own."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("seen", "at its start")


class Foreign:
    """Is no ``SpanProcessor``."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("seen", "at its start")

    def _on_ending(self, span: Span) -> None: ...

    def on_end(self, span: ReadableSpan) -> None: ...

    def shutdown(self) -> None: ...

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


class EndsOnly(SpanProcessor):
    """Is the application's own, and looks at spans that have ended."""

    def on_end(self, span: ReadableSpan) -> None: ...


class Unhashable:
    """Is called when a span starts, and is no function."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("seen", "at its start")


class SeesForAll(sdk_trace.SynchronousMultiSpanProcessor):
    """Passes spans on, and does something itself."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("seen", "at its start")
        super().on_start(span, parent_context)


def simple() -> SpanProcessor:
    return SimpleSpanProcessor(InMemorySpanExporter())


def batch() -> SpanProcessor:
    return BatchSpanProcessor(InMemorySpanExporter())


def with_attribute(on_start: Any) -> SpanProcessor:
    processor = simple()
    processor.on_start = on_start  # type: ignore[method-assign]
    return processor


def with_function() -> SpanProcessor:
    processor = simple()
    processor._on_ending = lambda span: None  # type: ignore[method-assign]
    return processor


def in_turn(cls: Any = sdk_trace.SynchronousMultiSpanProcessor) -> Any:
    """Passes spans on to its processors, one after another."""
    return cls()


def passing_on(multi: Any, *processors: Any) -> Any:
    for processor in processors:
        multi.add_span_processor(processor)
    return multi


def with_own_on_start() -> Any:
    multi = passing_on(in_turn(), simple())
    multi.on_start = Sees().on_start
    return multi


IDLE: dict[str, Callable[[], Any]] = {
    "none": in_turn,
    "simple": lambda: passing_on(in_turn(), simple()),
    "batch": lambda: passing_on(in_turn(), batch()),
    "both": lambda: passing_on(in_turn(), simple(), batch()),
    "the application's own": lambda: passing_on(in_turn(), simple(), EndsOnly()),
    "concurrent": lambda: passing_on(ConcurrentMultiSpanProcessor(), simple(), batch()),
}
LOOKING: dict[str, Callable[[], Any]] = {
    "unhashable": lambda: passing_on(in_turn(), with_attribute(Unhashable())),
    "on_start": lambda: passing_on(in_turn(), simple(), Sees()),
    "_on_ending": lambda: passing_on(in_turn(), SeesEnding(), simple()),
    "subclass": lambda: passing_on(in_turn(), SeesInBatch(InMemorySpanExporter())),
    "instance attribute": lambda: passing_on(in_turn(), with_attribute(Sees().on_start)),
    "a function for _on_ending": lambda: passing_on(in_turn(), with_function()),
    "foreign": lambda: passing_on(in_turn(), Foreign()),
    "concurrent": lambda: passing_on(ConcurrentMultiSpanProcessor(), simple(), Sees()),
    "behind another": lambda: passing_on(in_turn(), passing_on(ConcurrentMultiSpanProcessor(), Sees())),
    "the one that passes on": lambda: passing_on(in_turn(SeesForAll), simple()),
    "an attribute of the one that passes on": with_own_on_start,
}
"""Processors of which one does something before a span ends."""


class Keeps(SpanProcessor):
    """Keeps the spans that have ended, and whether the SDK has made them."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


@pytest.fixture
def provider_of() -> Iterator[Callable[..., TracerProvider]]:
    """Makes providers over an active processor."""
    made: list[TracerProvider] = []

    def make(active: Any = None, **options: Any) -> TracerProvider:
        made.append(TracerProvider(active_span_processor=active, shutdown_on_exit=False, **options))
        return made[-1]

    yield make
    for provider in made:
        provider.shutdown()


def finished() -> tuple[FinishedSpan, Decision]:
    """An execution's span, and what was decided on it."""
    return assemble(STORY)[-1], decide(ALWAYS_ON, E1, "my-pipeline", Context())


def makes_real_spans(traces: SdkTraces) -> bool:
    """Whether the SDK makes the spans, as is seen by who has its own method called."""
    span, decision = finished()
    traces.emit(span, decision)
    return traces._real is not None


@pytest.mark.parametrize("active", IDLE.values(), ids=IDLE)
def test_spans_that_nobody_looks_at_before_are_made_at_their_end(
    provider_of: Callable[..., TracerProvider], active: Callable[[], Any]
) -> None:
    assert not makes_real_spans(SdkTraces(tracer_of(provider_of(active()))))


@pytest.mark.parametrize("active", LOOKING.values(), ids=LOOKING)
def test_a_processor_that_looks_at_spans_before_gets_the_sdks(
    provider_of: Callable[..., TracerProvider], active: Callable[[], Any]
) -> None:
    processors = active()
    traces = SdkTraces(tracer_of(provider_of(processors)))
    assert makes_real_spans(traces)
    # what it does to the span is on what the others export
    keeps = passing_on(processors, kept := Keeps()) and kept
    span, decision = finished()
    traces.emit(span, decision)
    (seen,) = keeps.spans
    expected = {"seen": "at its start"} if does_something_at_start(processors) else {}
    assert dict(seen.attributes or {}) == dict(span.attributes) | expected


def does_something_at_start(processor: Any) -> bool:
    """Whether a span that is started has the attribute, as the SDK itself does it."""
    provider = TracerProvider(active_span_processor=processor, shutdown_on_exit=False)
    with provider.get_tracer("probe").start_as_current_span("probe") as span:
        return "seen" in (span.attributes or {})  # type: ignore[attr-defined] # the SDK's


def tracer_of(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("t")  # type: ignore[return-value] # the SDK's


def test_a_processor_that_is_added_later_gets_what_it_needs(provider_of: Callable[..., TracerProvider]) -> None:
    provider = provider_of()
    provider.add_span_processor(simple())
    traces = SdkTraces(tracer_of(provider))
    assert not makes_real_spans(traces)
    provider.add_span_processor(Sees())
    assert makes_real_spans(traces)


@pytest.mark.skipif(SINCE["_tracer_metrics"] > VERSION, reason="has no metrics of its own spans")
def test_the_sdks_metrics_of_spans_count_ours_too(
    provider_of: Callable[..., TracerProvider], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the meter provider that the application's tracer provider was given."""
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    traces = SdkTraces(tracer_of(provider_of(meter_provider=meters)))
    assert makes_real_spans(traces)
    assert makes_real_spans(traces)
    assert [point.value for point in points_of(reader, "otel.sdk.span.started")] == [2]
    assert [point.value for point in points_of(reader, "otel.sdk.span.live")] == [0]
    meters.shutdown()
