"""OpenTelemetryListener asks the application's sampler once, and its answer holds for all of an execution."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import (
    ReadableSpan,
    SpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState

from constellation_otel import (
    OpenTelemetryListener,
    trace_id_of,
)
from constellation_otel.events import ExecutionStarted
from constellation_otel.otel.sdk_spans import _KnownAnswer
from constellation_otel.traces.ids import RANDOM_TRACE_ID
from reports import run
from samplers import Opinionated, RaisingSampler
from stories import with_spans_inside
from support import DEADLINE, UNWATCHED
from telemetry import LONG, assembly_of, caller_of, points_of, provider_with

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@UNWATCHED
@pytest.mark.parametrize("sampler", [TraceIdRatioBased(0.1), ParentBased(TraceIdRatioBased(0.1))])
def test_ratio_sampling_keeps_its_share_of_whole_executions(
    make_listener: Callable[..., OpenTelemetryListener], sampler: Sampler
) -> None:
    """10,000 executions, with a span that a library makes inside each module's body."""
    provider, exporter = provider_with(sampler)
    listener = make_listener(provider)
    library = provider.get_tracer("library")
    with_spans_inside(listener, library, 10_000)
    assert listener.flush(LONG)
    traces: dict[int, list[str]] = {}
    for span in exporter.get_finished_spans():
        traces.setdefault(span.context.trace_id, []).append(span.name)
    assert 800 <= len(traces) <= 1_200
    assert {tuple(sorted(names)) for names in traces.values()} == {("d", "inner", "m")}
    provider.shutdown()


@pytest.mark.parametrize(("sampled", "expected"), [(True, 3), (False, 0)])
def test_the_callers_decision_holds_for_all_of_the_execution(
    make_listener: Callable[..., OpenTelemetryListener], sampled: bool, expected: int
) -> None:
    provider, exporter = provider_with(ParentBased(ALWAYS_OFF if sampled else ALWAYS_ON))
    listener = make_listener(provider)
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    with trace.use_span(NonRecordingSpan(SpanContext(5, 7, is_remote=True, trace_flags=flags))):
        run(listener)
    assert listener.flush(DEADLINE)
    assert [span.context.trace_id for span in exporter.get_finished_spans()] == [5] * expected
    assert assembly_of(listener).spans == 3
    provider.shutdown()


def test_the_samplers_attributes_and_trace_state_are_used(
    make_listener: Callable[..., OpenTelemetryListener],
) -> None:
    """It is asked once."""
    sampler = Opinionated()
    provider, exporter = provider_with(sampler)
    listener = make_listener(provider)
    caller = SpanContext(5, 7, is_remote=True, trace_state=TraceState([("vendor", "1")]))
    with trace.use_span(NonRecordingSpan(caller)):
        execution_id = run(listener)
    assert listener.flush(DEADLINE)
    attributes = {"constellation.execution.id": str(execution_id), "constellation.dag.name": "my-pipeline"}
    assert sampler.asked == [(5, "my-pipeline", SpanKind.INTERNAL, attributes, "vendor=1")]
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert {span.context.trace_state.to_header() for span in spans.values()} == {"rule=all"}
    assert (spans["my-pipeline"].attributes or {})["sampler.rule"] == "all"
    assert "sampler.rule" not in (spans["Trim"].attributes or {})
    provider.shutdown()


def test_our_own_providers_sampler_says_whose_answer_it_is() -> None:
    """In the SDK's description of a provider, where a reader may wonder."""
    assert _KnownAnswer().get_description() == "the application's sampler, asked once for each execution"


def test_the_trace_flags_say_sampled_and_random(
    memory: tuple[TracerProvider, InMemorySpanExporter], make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    """On the wire the SDK's own encoder leaves them out, so this looks at the spans."""
    provider, exporter = memory
    listener = make_listener(provider)
    run(listener)
    assert listener.flush(DEADLINE)
    flags = TraceFlags.SAMPLED | RANDOM_TRACE_ID
    assert [span.context.trace_flags for span in exporter.get_finished_spans()] == [flags] * 3


def test_spans_that_are_only_recorded_reach_the_processors(
    make_listener: Callable[..., OpenTelemetryListener],
) -> None:
    ended: list[tuple[str, bool]] = []

    class Sees(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            assert span.context is not None
            ended.append((span.name, span.context.trace_flags.sampled))

    provider, exporter = provider_with(Opinionated(Decision.RECORD_ONLY))
    provider.add_span_processor(Sees())
    listener = make_listener(provider)
    run(listener)
    assert listener.flush(DEADLINE)
    assert exporter.get_finished_spans() == ()
    assert ended == [("Trim", False), ("WordCount", False), ("my-pipeline", False)]
    provider.shutdown()


def test_a_callers_trace_id_is_random_if_the_caller_says_so(
    memory: tuple[TracerProvider, InMemorySpanExporter], make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    provider, exporter = memory
    listener = make_listener(provider)
    for flags in (TraceFlags.SAMPLED, TraceFlags.SAMPLED | RANDOM_TRACE_ID):
        caller = SpanContext(5, 7, is_remote=True, trace_flags=TraceFlags(flags))
        with trace.use_span(NonRecordingSpan(caller)):
            run(listener)
        assert listener.flush(DEADLINE)
    assert [int(span.context.trace_flags) for span in exporter.get_finished_spans()] == [1] * 3 + [3] * 3


def test_an_execution_for_which_the_sampler_raises_has_no_trace(
    make_listener: Callable[..., OpenTelemetryListener], caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked once, which is logged once; the execution is in the metrics all the same."""
    sampler = RaisingSampler()
    provider, exporter = provider_with(sampler)
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    listener = make_listener(provider, meters)
    execution_id, module_id = uuid4(), uuid4()
    listener.on_execution_start(execution_id, "d")
    caller = Context()
    assert listener.module_context(execution_id, module_id, caller) is caller
    listener.on_module_start(execution_id, module_id, "m")
    listener.on_module_complete(execution_id, module_id, "m", 1.0)
    listener.on_execution_complete(execution_id, "d", True, 1.0)
    assert listener.flush(DEADLINE)
    assert exporter.get_finished_spans() == ()
    assert [point.count for point in points_of(reader, "constellation.execution.duration")] == [1]
    assert caplog.messages == [f"the sampler raised for execution {execution_id}; the execution is not traced"]
    assert (len(sampler.asked), listener.counters.delivered, listener.failed) == (1, 4, 0)
    meters.shutdown()
    provider.shutdown()


def test_a_late_or_refused_start_leaves_no_decision_behind(
    memory: tuple[TracerProvider, InMemorySpanExporter], make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    provider, _ = memory
    listener = make_listener(provider)
    for _ in range(20):
        execution_id = run(listener)
        assert listener.flush(DEADLINE)
        listener.on_execution_start(execution_id, "my-pipeline")
        listener.accept(ExecutionStarted(execution_id, "my-pipeline", 1))
        listener.accept(ExecutionStarted(uuid4(), "my-pipeline", -1))
    listener.on_execution_start(["no id"], "my-pipeline")  # type: ignore[arg-type]
    listener.on_execution_start("no id", "my-pipeline")  # type: ignore[arg-type]
    for name in (7, None, b"my-pipeline"):
        listener.on_execution_start(uuid4(), name)  # type: ignore[arg-type]
    assert listener.close(DEADLINE)
    listener.on_execution_start(uuid4(), "after closing")
    assert listener._sampling.decisions == {}
    assert (assembly_of(listener).late, listener.counters.rejected, listener.counters.dropped) == (40, 25, 1)


def test_decisions_are_bounded_as_what_is_open(
    memory: tuple[TracerProvider, InMemorySpanExporter], make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    provider, _ = memory
    listener = make_listener(provider, max_open=20, max_queue=1_000)
    for _ in range(300):
        listener.on_execution_start(uuid4(), "d")
        listener.accept(ExecutionStarted(uuid4(), "d", 1))
    assert len(listener._sampling.decisions) <= 20
    assert listener.flush(DEADLINE)
    assert len(listener._sampling.decisions) <= listener.open_executions <= 20


def test_threads_that_start_one_execution_agree_on_a_decision(
    make_listener: Callable[..., OpenTelemetryListener],
) -> None:
    entered = threading.Barrier(2)

    class Together(Opinionated):
        def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
            result = super().should_sample(*args, **kwargs)
            entered.wait(DEADLINE)
            return result

    provider, exporter = provider_with(Together())
    listener = make_listener(provider)
    execution_id, answers = uuid4(), []

    def start(trace_id: int) -> None:
        with trace.use_span(NonRecordingSpan(SpanContext(trace_id, 7, is_remote=True))):
            listener.on_execution_start(execution_id, "d")
        context = listener.module_context(execution_id, uuid4(), Context())
        answers.append(trace.get_current_span(context).get_span_context().trace_id)

    threads = [threading.Thread(target=start, args=(trace_id,)) for trace_id in (5, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    listener.on_execution_complete(execution_id, "d", True, 1.0)
    assert listener.flush(DEADLINE)
    (span,) = exporter.get_finished_spans()
    assert answers == [span.context.trace_id] * 2
    provider.shutdown()


@pytest.mark.parametrize(("sampled", "expected"), [(True, ["GET", "d", "m"]), (False, [])])
def test_a_forgotten_decision_is_made_again_about_the_caller(
    memory: tuple[TracerProvider, InMemorySpanExporter],
    make_listener: Callable[..., OpenTelemetryListener],
    sampled: bool,
    expected: list[str],
) -> None:
    provider, exporter = provider_with(ParentBased(ALWAYS_ON if sampled else ALWAYS_OFF))
    listener = make_listener(provider, max_open=2)
    execution_id = uuid4()
    with provider.get_tracer("web").start_as_current_span("GET"):
        listener.on_execution_start(execution_id, "d")
    for _ in range(2):
        listener._sampling.decide(uuid4(), "other", Context())
    assert listener._sampling.recall(execution_id) is None
    listener.on_module_complete(execution_id, uuid4(), "m", 1.0)
    listener.on_execution_complete(execution_id, "d", True, 2.0)
    assert listener.flush(DEADLINE)
    spans = exporter.get_finished_spans()
    assert sorted(span.name for span in spans) == expected
    assert len({span.context.trace_id for span in spans}) == bool(expected)
    provider.shutdown()


def test_a_second_start_of_an_execution_does_not_part_its_trace(
    memory: tuple[TracerProvider, InMemorySpanExporter], make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    provider, exporter = memory
    listener = make_listener(provider)
    execution_id = uuid4()
    listener.on_execution_start(execution_id, "d")
    listener.on_module_complete(execution_id, uuid4(), "m", 1.0)
    with caller_of(5):
        listener.on_execution_start(execution_id, "d")
    listener.on_execution_complete(execution_id, "d", True, 2.0)
    assert listener.flush(DEADLINE)
    assert [span.context.trace_id for span in exporter.get_finished_spans()] == [trace_id_of(execution_id)] * 2


def test_events_before_any_start_are_taken_where_there_is_an_sdk(
    memory: tuple[TracerProvider, InMemorySpanExporter], make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    provider, exporter = memory
    listener = make_listener(provider)
    execution_id = uuid4()
    listener.on_module_complete(execution_id, uuid4(), "Trim", 2.0)
    listener.on_execution_complete(execution_id, "my-pipeline", True, 3.0)
    assert listener.flush(DEADLINE)
    assert [span.name for span in exporter.get_finished_spans()] == ["Trim", "my-pipeline"]
    assert listener.counters.received == 2
