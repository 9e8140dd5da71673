"""OpenTelemetryListener with a real SDK, over real OTLP, and what it does when something is wrong."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import (
    ReadableSpan,
    SpanLimits,
    SpanProcessor,
    TracerProvider,
    _disable_tracer_configurator,
)
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from constellation_otel import (
    ExecutionListener,
    OpenTelemetryListener,
    span_id_of,
    trace_id_of,
)
from constellation_otel.events import ExecutionCompleted, ExecutionStarted, ModuleCompleted, ModuleStarted
from constellation_otel.otel import ListenerCounters
from constellation_otel.otel.sdk_spans import _KnownAnswer
from constellation_otel.testing import span_tree
from constellation_otel.traces import NOT_TRACED, Assembler
from support import DEADLINE, eventually, in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from constellation_otel.receiver import Receiver

LONG = 10 * DEADLINE
UNWATCHED = pytest.mark.no_cover
"""For what is covered elsewhere, and would spend most of its time on being watched."""
"""For what is much work, not a wait."""
TREE = """\
my-pipeline (server) failure ERROR "WordCount failed: too many words"
  Trim (internal) success
  WordCount (internal) failure ERROR "too many words"\
"""


class Boom(Exception):
    """What a module raises in these tests."""


@pytest.fixture
def made() -> Iterator[list[OpenTelemetryListener]]:
    """Listeners to close at the end."""
    listeners: list[OpenTelemetryListener] = []
    yield listeners
    for listener in listeners:
        listener.close(DEADLINE)


@pytest.fixture
def make(made: list[OpenTelemetryListener]) -> Callable[..., OpenTelemetryListener]:
    """Makes listeners that are closed at the end."""

    def make(*providers: Any, **options: Any) -> OpenTelemetryListener:
        made.append(OpenTelemetryListener(*providers, **options))
        return made[-1]

    return make


@pytest.fixture
def memory() -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    """A tracer provider for tests of what needs no wire."""
    provider, exporter = provider_with(ALWAYS_ON)
    yield provider, exporter
    provider.shutdown()


def raised() -> Boom:
    try:
        raise Boom("too many words")
    except Boom as error:
        return error


def run(listener: ExecutionListener, error: BaseException | None = None) -> UUID:
    """One execution of the guide's pipeline, as an engine would tell it."""
    execution_id, trim, word_count = uuid4(), uuid4(), uuid4()
    listener.on_execution_start(execution_id, "my-pipeline")
    listener.on_module_start(execution_id, trim, "Trim")
    listener.on_module_complete(execution_id, trim, "Trim", 2.0)
    listener.on_module_start(execution_id, word_count, "WordCount")
    listener.on_module_failed(execution_id, word_count, "WordCount", error or raised())
    listener.on_execution_complete(execution_id, "my-pipeline", False, 15.0)
    return execution_id


# --- the telemetry, over the wire ----------------------------------------------------------------------------------


def test_an_execution_arrives_as_a_trace(application: Any, make: Callable[..., OpenTelemetryListener]) -> None:
    listener = make(application.traces, application.metrics, application.logs)
    execution_id = run(listener)
    assert listener.flush(DEADLINE)
    application.export()
    spans = application.receiver.spans
    assert span_tree(spans) == TREE
    assert {span.trace_id for span in spans} == {trace_id_of(execution_id)}
    by_name = {span.name: span for span in spans}
    assert by_name["my-pipeline"].span_id == span_id_of(execution_id)
    assert by_name["my-pipeline"].end_ns - by_name["my-pipeline"].start_ns == 15_000_000
    assert by_name["Trim"].end_ns - by_name["Trim"].start_ns == 2_000_000
    (event,) = by_name["WordCount"].events
    assert event.attributes["exception.type"] == f"{__name__}.Boom"
    assert event.attributes["exception.message"] == "too many words"
    assert 'raise Boom("too many words")\n' in str(event.attributes["exception.stacktrace"])
    assert application.receiver.logs == []
    assert listener.counters == ListenerCounters(
        received=6, delivered=6, dropped=0, rejected=0, held=0, late=0, duplicate=0, corrected=0, executions=1,
        spans=3, abandoned=0, failed=0,
    )  # fmt: skip


def test_the_scope_says_who_speaks_and_the_resource_is_the_applications(
    application: Any, make: Callable[..., OpenTelemetryListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs/dup")
    listener = make(application.traces, application.metrics, application.logs)
    run(listener)
    assert listener.flush(DEADLINE)
    application.export()
    receiver: Receiver = application.receiver
    everything: list[Any] = [*receiver.received, *receiver.metrics, *receiver.logs]
    assert {type(item).__name__ for item in everything} == {"Received", "MetricPoint", "LogRecord"}
    for item in everything:
        assert item.resource.attributes["service.name"] == "shop"
        assert (item.scope.name, item.scope.version, item.scope.schema_url) == (
            "constellation_otel",
            "0.1.0",
            "https://opentelemetry.io/schemas/1.44.0",
        )


def test_metrics_arrive_with_exemplars_that_point_at_the_spans(
    application: Any, make: Callable[..., OpenTelemetryListener]
) -> None:
    listener = make(application.traces, application.metrics)
    run(listener)
    open_execution = uuid4()
    listener.on_execution_start(open_execution, "open")
    listener.on_module_start(open_execution, uuid4(), "open")
    assert listener.flush(DEADLINE)
    application.export()
    points = application.receiver.metrics
    spans = {(span.trace_id, span.span_id): span for span in application.receiver.spans}
    durations = [point for point in points if point.name.endswith(".duration")]
    boom = ("error.type", f"{__name__}.Boom")
    dag = ("constellation.dag.name", "my-pipeline")
    assert sorted((point.name, point.unit, *sorted(point.attributes.items()), point.sum) for point in durations) == [
        ("constellation.execution.duration", "s", dag, ("constellation.outcome", "failure"), boom, 0.015),
        (
            "constellation.module.duration", "s", dag,
            ("constellation.module.name", "Trim"), ("constellation.outcome", "success"), 0.002,
        ),
        (
            "constellation.module.duration", "s", dag,
            ("constellation.module.name", "WordCount"), ("constellation.outcome", "failure"), boom,
            pytest.approx(0, abs=DEADLINE),
        ),
    ]  # fmt: skip
    for point in durations:
        (exemplar,) = point.exemplars
        span = spans[exemplar.trace_id, exemplar.span_id]
        assert span.name == point.attributes.get("constellation.module.name", "my-pipeline")
    active = {point.name: point.value for point in points if point.name.endswith(".active")}
    assert active == {"constellation.execution.active": 1, "constellation.module.active": 1}


@pytest.mark.parametrize(
    ("opt_in", "as_event", "as_log"),
    [(None, True, False), ("", True, False), ("logs", False, True), ("logs/dup", True, True), ("spans", True, False)],
)
def test_an_exception_goes_where_the_conventions_opt_in_says(
    application: Any,
    make: Callable[..., OpenTelemetryListener],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    opt_in: str | None,
    as_event: bool,
    as_log: bool,
) -> None:
    if opt_in is not None:
        monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", opt_in)
    listener = make(application.traces, application.metrics, application.logs)
    run(listener)
    assert listener.flush(DEADLINE)
    application.export()
    failed = next(span for span in application.receiver.spans if span.name == "WordCount")
    assert bool(failed.events) is as_event
    assert len(application.receiver.logs) == as_log
    for record in application.receiver.logs:
        assert (record.trace_id, record.span_id) == (failed.trace_id, failed.span_id)
        assert (record.severity_text, record.event_name, record.body) == ("ERROR", "exception", "too many words")
        assert record.attributes["exception.type"] == f"{__name__}.Boom"
        assert record.attributes["constellation.module.name"] == "WordCount"
    expected = (
        "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN='spans' is unknown and ignored: exceptions are span events;"
        " use 'logs' or 'logs/dup'"
    )
    assert [text for text in caplog.messages if "OPT_IN" in text] == ([expected] if opt_in == "spans" else [])


def test_an_execution_called_inside_a_span_is_its_child_and_processors_see_the_callers_baggage(
    application: Any, make: Callable[..., OpenTelemetryListener]
) -> None:
    started: list[object] = []

    class SeesBaggage(SpanProcessor):
        def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
            started.append((span.name, baggage.get_baggage("tenant", parent_context)))

    application.traces.add_span_processor(SeesBaggage())
    listener = make(application.traces)
    token = context.attach(baggage.set_baggage("tenant", "blue"))
    try:
        with application.traces.get_tracer("web").start_as_current_span("GET /", kind=SpanKind.SERVER):
            run(listener)
    finally:
        context.detach(token)
    assert listener.flush(DEADLINE)
    application.export()
    indented = TREE.replace("(server)", "(internal)").replace("\n", "\n  ")
    assert span_tree(application.receiver.spans) == f"GET / (server)\n  {indented}"
    assert started == [("GET /", "blue"), ("Trim", "blue"), ("WordCount", "blue"), ("my-pipeline", "blue")]


def test_what_a_modules_body_does_nests_under_the_modules_span(
    application: Any, make: Callable[..., OpenTelemetryListener]
) -> None:
    listener = make(application.traces)
    execution_id, module_id = uuid4(), uuid4()
    listener.on_execution_start(execution_id, "my-pipeline")
    listener.on_module_start(execution_id, module_id, "Trim")
    current = listener.module_context(execution_id, module_id, Context({"kept": 1}))
    assert current["kept"] == 1
    application.traces.get_tracer("http").start_span("GET", current).end()
    listener.on_module_complete(execution_id, module_id, "Trim", 2.0)
    listener.on_execution_complete(execution_id, "my-pipeline", True, 3.0)
    assert listener.flush(DEADLINE)
    application.export()
    assert span_tree(application.receiver.spans) == (
        "my-pipeline (server) success\n  Trim (internal) success\n    GET (internal)"
    )


def test_module_context_of_an_unknown_execution_is_the_callers(make: Callable[..., OpenTelemetryListener]) -> None:
    caller = Context({"kept": 1})
    assert make().module_context(uuid4(), uuid4(), caller) is caller


def test_events_from_a_source_keep_their_times_and_their_parents(
    application: Any, make: Callable[..., OpenTelemetryListener]
) -> None:
    listener = make(application.traces, settle=0.01)
    execution_id, module_id = uuid4(), uuid4()
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for _ in range(2):
        listener.accept(ExecutionStarted(execution_id, "my-pipeline", 4_000_000_000, parent))
    listener.accept(ExecutionCompleted(execution_id, "my-pipeline", True, 3.0, 6_000_000_000))
    listener.accept(ModuleCompleted(execution_id, module_id, "Trim", 2.0, 5_000_000_000))
    eventually(lambda: listener.counters.executions == 1, "the execution to settle")
    application.export()
    module, execution = application.receiver.spans
    assert (module.name, module.start_ns, module.end_ns) == ("Trim", 4_998_000_000, 5_000_000_000)
    assert (execution.name, execution.start_ns, execution.end_ns) == ("my-pipeline", 5_997_000_000, 6_000_000_000)
    assert {span.trace_id for span in (module, execution)} == {0x0AF7651916CD43DD8448EB211C80319C}
    assert execution.parent_span_id == 0xB7AD6B7169203331


def test_the_sdks_limits_are_respected(make_application: Any, make: Callable[..., OpenTelemetryListener]) -> None:
    application = make_application(
        span_limits=SpanLimits(max_span_attribute_length=8, max_span_attributes=3, max_events=0)
    )
    listener = make(application.traces)
    run(listener)
    assert listener.flush(DEADLINE)
    application.export()
    assert len(application.receiver.spans) == 3
    for span in application.receiver.spans:
        assert len(span.attributes) == 3
        assert all(len(str(value)) <= 8 for value in span.attributes.values())
        assert span.events == ()


# --- whose decision it is ------------------------------------------------------------------------------------------


def provider_with(sampler: Sampler) -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


@UNWATCHED
@pytest.mark.parametrize("sampler", [TraceIdRatioBased(0.1), ParentBased(TraceIdRatioBased(0.1))])
def test_ratio_sampling_keeps_its_share_of_executions_each_of_them_whole(
    make: Callable[..., OpenTelemetryListener], sampler: Sampler
) -> None:
    """10,000 executions, with a span that a library makes inside each module's body."""
    rng = random.Random(2026)
    provider, exporter = provider_with(sampler)
    listener = make(provider)
    library = provider.get_tracer("library")
    for _ in range(10_000):
        execution_id, module_id = UUID(int=rng.getrandbits(128)), UUID(int=rng.getrandbits(128))
        listener.on_execution_start(execution_id, "d")
        listener.on_module_start(execution_id, module_id, "m")
        library.start_span("inner", listener.module_context(execution_id, module_id, Context())).end()
        listener.on_module_complete(execution_id, module_id, "m", 1.0)
        listener.on_execution_complete(execution_id, "d", True, 2.0)
    assert listener.flush(LONG)
    traces: dict[int, list[str]] = {}
    for span in exporter.get_finished_spans():
        traces.setdefault(span.context.trace_id, []).append(span.name)
    assert 800 <= len(traces) <= 1_200
    assert {tuple(sorted(names)) for names in traces.values()} == {("d", "inner", "m")}
    provider.shutdown()


@pytest.mark.parametrize(("sampled", "expected"), [(True, 3), (False, 0)])
def test_the_callers_sampling_decision_holds_for_all_of_the_execution(
    make: Callable[..., OpenTelemetryListener], sampled: bool, expected: int
) -> None:
    provider, exporter = provider_with(ParentBased(ALWAYS_OFF if sampled else ALWAYS_ON))
    listener = make(provider)
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    with trace.use_span(NonRecordingSpan(SpanContext(5, 7, is_remote=True, trace_flags=flags))):
        run(listener)
    assert listener.flush(DEADLINE)
    assert [span.context.trace_id for span in exporter.get_finished_spans()] == [5] * expected
    assert listener.counters.spans == 3
    provider.shutdown()


def test_metrics_count_executions_that_are_not_sampled(make: Callable[..., OpenTelemetryListener]) -> None:
    provider, exporter = provider_with(ALWAYS_OFF)
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    listener = make(provider, meters)
    run(listener)
    assert listener.flush(DEADLINE)
    assert exporter.get_finished_spans() == ()
    (point,) = points_of(reader, "constellation.execution.duration")
    assert (point.count, point.exemplars) == (1, [])
    meters.shutdown()
    provider.shutdown()


class Opinionated(Sampler):
    """Says more than yes or no."""

    def __init__(self, decision: Decision = Decision.RECORD_AND_SAMPLE) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.decision = decision

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        links: Any = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        self.asked.append((trace_id, name, kind, dict(attributes), trace_state and trace_state.to_header()))
        return SamplingResult(self.decision, {"sampler.rule": "all"}, TraceState([("rule", "all")]))

    def get_description(self) -> str:
        return "Opinionated"


def test_the_sampler_is_asked_once_and_its_attributes_and_trace_state_are_used(
    make: Callable[..., OpenTelemetryListener],
) -> None:
    sampler = Opinionated()
    provider, exporter = provider_with(sampler)
    listener = make(provider)
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


def test_metrics_need_no_tracer_provider(make: Callable[..., OpenTelemetryListener]) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    listener = make(None, meters)
    run(listener)
    run(listener)
    assert listener.flush(DEADLINE)
    (point,) = points_of(reader, "constellation.execution.duration")
    assert (point.count, point.exemplars) == (2, [])
    meters.shutdown()


def test_logs_need_no_meter_provider(
    application: Any, make: Callable[..., OpenTelemetryListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs")
    listener = make(application.traces, None, application.logs)
    run(listener)
    assert listener.flush(DEADLINE)
    application.export()
    assert [record.body for record in application.receiver.logs] == ["too many words"]


def test_the_sampler_of_our_own_provider_says_whose_answer_it_gives() -> None:
    """In the SDK's description of a provider, where a reader may wonder."""
    assert _KnownAnswer().get_description() == "the application's sampler, asked once for each execution"


def test_the_trace_flags_say_sampled_and_random(
    memory: tuple[TracerProvider, InMemorySpanExporter], make: Callable[..., OpenTelemetryListener]
) -> None:
    """On the wire the SDK's own encoder leaves them out, so this looks at the spans."""
    provider, exporter = memory
    listener = make(provider)
    run(listener)
    assert listener.flush(DEADLINE)
    flags = TraceFlags.SAMPLED | TraceFlags.RANDOM_TRACE_ID
    assert [span.context.trace_flags for span in exporter.get_finished_spans()] == [flags] * 3


def test_spans_that_are_only_recorded_reach_the_processors_unsampled(
    make: Callable[..., OpenTelemetryListener],
) -> None:
    ended: list[tuple[str, bool]] = []

    class Sees(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            assert span.context is not None
            ended.append((span.name, span.context.trace_flags.sampled))

    provider, exporter = provider_with(Opinionated(Decision.RECORD_ONLY))
    provider.add_span_processor(Sees())
    listener = make(provider)
    run(listener)
    assert listener.flush(DEADLINE)
    assert exporter.get_finished_spans() == ()
    assert ended == [("Trim", False), ("WordCount", False), ("my-pipeline", False)]
    provider.shutdown()


def test_a_scope_that_the_application_switched_off_stays_silent(make: Callable[..., OpenTelemetryListener]) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False, _tracer_configurator=_disable_tracer_configurator)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    listener = make(provider)
    run(listener)
    assert listener.flush(DEADLINE)
    assert exporter.get_finished_spans() == ()
    assert listener.counters.delivered == 6
    provider.shutdown()


def test_two_listeners_and_another_library_do_not_disturb_each_others_ids(
    memory: tuple[TracerProvider, InMemorySpanExporter], make: Callable[..., OpenTelemetryListener]
) -> None:
    provider, exporter = memory
    listeners = [make(provider), make(provider)]
    library = provider.get_tracer("constellation_otel", "0.1.0", "https://opentelemetry.io/schemas/1.44.0")
    executions: list[list[UUID]] = [[], []]
    together = threading.Barrier(3)

    def trace_on() -> None:
        together.wait(DEADLINE)
        for _ in range(2_000):
            with library.start_as_current_span("theirs"), library.start_as_current_span("child"):
                pass

    def execute(number: int) -> None:
        together.wait(DEADLINE)
        executions[number] = [run(listeners[number]) for _ in range(500)]

    threads = [threading.Thread(target=trace_on), *(threading.Thread(target=execute, args=(n,)) for n in (0, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert all(listener.flush(LONG) for listener in listeners)
    ours = {trace_id_of(execution_id) for ids in executions for execution_id in ids}
    spans = exporter.get_finished_spans()
    traces: dict[int, list[str]] = {}
    for span in spans:
        traces.setdefault(span.context.trace_id, []).append(span.name)
    assert len({span.context.span_id for span in spans}) == len(spans)
    assert {tuple(sorted(traces[trace_id])) for trace_id in ours} == {("Trim", "WordCount", "my-pipeline")}
    assert {tuple(names) for trace_id, names in traces.items() if trace_id not in ours} == {("child", "theirs")}


def test_what_was_dropped_is_a_metric_too(make: Callable[..., OpenTelemetryListener]) -> None:
    exporter = Blocking()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    listener = make(provider, meters, max_queue=10)
    run(listener)
    assert exporter.entered.wait(DEADLINE)
    for _ in range(5):
        run(listener)
    exporter.gate.set()
    assert listener.close(DEADLINE)
    (point,) = points_of(reader, "constellation.events.dropped")
    assert point.value == listener.counters.dropped > 0
    meters.shutdown()
    provider.shutdown()


def test_a_callers_trace_id_is_not_called_random_where_the_caller_did_not(
    memory: tuple[TracerProvider, InMemorySpanExporter], make: Callable[..., OpenTelemetryListener]
) -> None:
    provider, exporter = memory
    listener = make(provider)
    for flags in (TraceFlags.SAMPLED, TraceFlags.SAMPLED | TraceFlags.RANDOM_TRACE_ID):
        caller = SpanContext(5, 7, is_remote=True, trace_flags=TraceFlags(flags))
        with trace.use_span(NonRecordingSpan(caller)):
            run(listener)
        assert listener.flush(DEADLINE)
    assert [int(span.context.trace_flags) for span in exporter.get_finished_spans()] == [1] * 3 + [3] * 3


def test_listeners_that_share_a_meter_provider_are_summed(make: Callable[..., OpenTelemetryListener]) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    listeners = [make(trace.NoOpTracerProvider(), meters) for _ in range(2)]
    for listener in listeners:
        listener.on_execution_start(uuid4(), "d")
        assert listener.flush(DEADLINE)
    (active,) = points_of(reader, "constellation.execution.active")
    assert active.value == 2
    meters.shutdown()


# --- what is counted, and where it shows ---------------------------------------------------------------------------


def points_of(reader: InMemoryMetricReader, name: str) -> list[Any]:
    data = reader.get_metrics_data()
    assert data is not None
    return [
        point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


def test_late_duplicate_abandoned_and_rejected_are_metrics_too(
    make: Callable[..., OpenTelemetryListener], caplog: pytest.LogCaptureFixture
) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    listener = make(trace.NoOpTracerProvider(), meters)
    execution_id = run(listener)
    listener.on_module_start(execution_id, uuid4(), "late")
    listener.on_execution_start(uuid4(), "abandoned")
    module_id = uuid4()
    for _ in range(2):
        listener.accept(ModuleStarted(UUID(int=1), module_id, "duplicate", 1))
    listener.on_module_start(UUID(int=1), module_id, 7)  # type: ignore[arg-type]
    assert listener.close(DEADLINE)
    listener.on_module_start(execution_id, uuid4(), "dropped")
    points = {}
    for name in ("events.late", "events.duplicate", "events.rejected", "executions.abandoned"):
        (point,) = points_of(reader, f"constellation.{name}")
        points[name] = point.value
    assert points == {"events.late": 1, "events.duplicate": 1, "events.rejected": 1, "executions.abandoned": 2}
    assert [point.value for point in points_of(reader, "constellation.executions.incomplete")] == [2]
    assert [point.value for point in points_of(reader, "constellation.modules.incomplete")] == [1]
    # what has no length has no duration: neither of the two that were abandoned, and none of their modules
    assert [point.count for point in points_of(reader, "constellation.execution.duration")] == [1]
    assert sum(point.count for point in points_of(reader, "constellation.module.duration")) == 2
    counters = listener.counters
    assert counters.received == counters.delivered + counters.dropped + counters.rejected + counters.held == 12
    assert (counters.dropped, counters.rejected, counters.abandoned) == (1, 1, 2)
    assert (counters.incomplete_executions, counters.incomplete_modules) == (2, 1)
    # of its execution only a module's start came
    lost = f"the start and the end of execution {UUID(int=1)} of DAG"
    assert f"the source of OpenTelemetryListener loses events: {lost}" in caplog.text
    assert "module_name must be a str, not 7" in caplog.text
    meters.shutdown()


# --- when something is wrong ---------------------------------------------------------------------------------------


class Blocking(SpanExporter):
    """An exporter that does not come back until it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        assert self.gate.wait(LONG)
        return SpanExportResult.SUCCESS


def test_an_exporter_that_blocks_stops_no_callback_and_what_is_dropped_is_counted_and_logged(
    make: Callable[..., OpenTelemetryListener], caplog: pytest.LogCaptureFixture
) -> None:
    exporter = Blocking()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    listener = make(provider, max_queue=10, max_open=5)
    run(listener)
    assert exporter.entered.wait(DEADLINE)
    for _ in range(20):
        run(listener)
    assert len(listener._decisions) <= 5
    assert not listener.flush(0.01)
    counters = listener.counters
    assert counters.dropped > 0
    assert counters.received == counters.delivered + counters.dropped + counters.rejected + counters.held == 126
    assert [message for message in caplog.messages if "dropping" in message] == [
        "OpenTelemetryListener: the queue is full (10 items); dropping the newest"
    ]
    exporter.gate.set()
    assert listener.close(DEADLINE)
    provider.shutdown()


def test_a_provider_that_raises_loses_its_span_and_nothing_else(
    make: Callable[..., OpenTelemetryListener], caplog: pytest.LogCaptureFixture
) -> None:
    class Raises(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            if span.name == "Trim":
                raise Boom("no room")

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Raises())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    listener = make(provider)
    for _ in range(3):
        run(listener)
    assert listener.flush(DEADLINE)
    assert [span.name for span in exporter.get_finished_spans()] == ["WordCount", "my-pipeline"] * 3
    assert (listener.counters.failed, listener.counters.delivered) == (3, 18)
    assert caplog.messages == ["the application's OpenTelemetry SDK raised for a span; it is lost, the others go on"]
    provider.shutdown()


def test_a_sampler_that_raises_costs_the_execution_its_trace_and_nothing_else(
    make: Callable[..., OpenTelemetryListener], caplog: pytest.LogCaptureFixture
) -> None:
    class Raises(Opinionated):
        def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
            raise Boom("no opinion")

    provider, exporter = provider_with(Raises())
    listener = make(provider)
    execution_id = uuid4()
    listener.on_execution_start(execution_id, "d")
    caller = Context()
    assert listener.module_context(execution_id, uuid4(), caller) is caller
    listener.on_execution_complete(execution_id, "d", True, 1.0)
    assert listener.flush(DEADLINE)
    assert exporter.get_finished_spans() == ()
    assert caplog.messages == [f"the sampler raised for execution {execution_id}; the execution is not traced"]
    provider.shutdown()


def test_after_an_overload_nothing_is_left_of_what_was_dropped_and_traces_are_whole_again(
    make: Callable[..., OpenTelemetryListener],
) -> None:
    exporter = Blocking()
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    listener = make(provider, max_queue=50, max_open=100)
    run(listener)
    assert exporter.entered.wait(DEADLINE)
    for _ in range(1_000):
        run(listener)
    assert listener.counters.dropped > 0
    exporter.gate.set()
    assert listener.flush(DEADLINE)
    eventually(lambda: listener.flush(DEADLINE) and len(listener._decisions) == listener.open_executions, "recovery")
    kept.clear()
    for _ in range(20):
        with provider.get_tracer("web").start_as_current_span("GET"):
            run(listener)
        assert listener.flush(DEADLINE)
    traces: dict[int, list[str]] = {}
    for span in kept.get_finished_spans():
        traces.setdefault(span.context.trace_id, []).append(span.name)
    assert [sorted(names) for names in traces.values()] == [["GET", "Trim", "WordCount", "my-pipeline"]] * 20
    provider.shutdown()


def test_a_start_that_is_late_or_refused_leaves_no_decision_behind(
    memory: tuple[TracerProvider, InMemorySpanExporter], make: Callable[..., OpenTelemetryListener]
) -> None:
    provider, _ = memory
    listener = make(provider)
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
    assert listener._decisions == {}
    assert (listener.counters.late, listener.counters.rejected, listener.counters.dropped) == (40, 25, 1)


def test_the_answers_of_samplers_are_bounded_with_what_is_open(
    memory: tuple[TracerProvider, InMemorySpanExporter], make: Callable[..., OpenTelemetryListener]
) -> None:
    provider, _ = memory
    listener = make(provider, max_open=20, max_queue=1_000)
    for _ in range(300):
        listener.on_execution_start(uuid4(), "d")
        listener.accept(ExecutionStarted(uuid4(), "d", 1))
    assert len(listener._decisions) <= 40
    assert listener.flush(DEADLINE)
    assert len(listener._decisions) == listener.open_executions <= 20


def test_threads_that_start_the_same_execution_agree_on_one_answer(
    make: Callable[..., OpenTelemetryListener],
) -> None:
    entered = threading.Barrier(2)

    class Together(Opinionated):
        def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
            result = super().should_sample(*args, **kwargs)
            entered.wait(DEADLINE)
            return result

    provider, exporter = provider_with(Together())
    listener = make(provider)
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
def test_where_there_is_no_room_for_its_answer_the_sampler_is_still_asked_about_the_caller(
    memory: tuple[TracerProvider, InMemorySpanExporter],
    make: Callable[..., OpenTelemetryListener],
    sampled: bool,
    expected: list[str],
) -> None:
    provider, exporter = provider_with(ParentBased(ALWAYS_ON if sampled else ALWAYS_OFF))
    listener = make(provider, max_open=2)
    for _ in range(2):
        listener._decisions[uuid4()] = NOT_TRACED
    execution_id = uuid4()
    with provider.get_tracer("web").start_as_current_span("GET"):
        listener.on_execution_start(execution_id, "d")
    listener.on_module_complete(execution_id, uuid4(), "m", 1.0)
    listener.on_execution_complete(execution_id, "d", True, 2.0)
    assert listener.flush(DEADLINE)
    spans = exporter.get_finished_spans()
    assert sorted(span.name for span in spans) == expected
    assert len({span.context.trace_id for span in spans}) == bool(expected)
    provider.shutdown()


def test_a_second_start_of_an_execution_does_not_part_its_trace(
    memory: tuple[TracerProvider, InMemorySpanExporter], make: Callable[..., OpenTelemetryListener]
) -> None:
    provider, exporter = memory
    listener = make(provider)
    execution_id = uuid4()
    listener.on_execution_start(execution_id, "d")
    listener.on_module_complete(execution_id, uuid4(), "m", 1.0)
    with trace.use_span(NonRecordingSpan(SpanContext(5, 7, is_remote=True))):
        listener.on_execution_start(execution_id, "d")
    listener.on_execution_complete(execution_id, "d", True, 2.0)
    assert listener.flush(DEADLINE)
    assert [span.context.trace_id for span in exporter.get_finished_spans()] == [trace_id_of(execution_id)] * 2


class RaisingMeters(MeterProvider):
    """A meter provider that is of no use."""

    def get_meter(self, *args: Any, **kwargs: Any) -> Any:
        raise Boom("no meter")


def test_a_meter_provider_that_raises_costs_the_metrics_and_nothing_else(
    memory: tuple[TracerProvider, InMemorySpanExporter],
    make: Callable[..., OpenTelemetryListener],
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider, exporter = memory
    meters = RaisingMeters([], shutdown_on_exit=False)
    listener = make(provider, meters)
    run(listener)
    assert listener.flush(DEADLINE)
    assert len(exporter.get_finished_spans()) == 3
    assert caplog.messages == ["a meter provider raised; it is asked again when the next execution starts"]
    meters.shutdown()


def test_a_processor_and_a_logger_that_raise_cost_neither_the_metrics_nor_each_other(
    make: Callable[..., OpenTelemetryListener], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs/dup")

    class Raises(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise Boom("no room")

    class RaisingLoggers(LoggerProvider):
        def get_logger(self, *args: Any, **kwargs: Any) -> Any:
            raise Boom("no logger")

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Raises())
    loggers = RaisingLoggers(shutdown_on_exit=False)
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    listener = make(provider, meters, loggers)
    run(listener)
    assert listener.flush(DEADLINE)
    assert sum(point.count for point in points_of(reader, "constellation.module.duration")) == 2
    assert listener.counters.failed == 3
    assert sorted(caplog.messages) == [
        "the application's OpenTelemetry SDK raised for a span; it is lost, the others go on",
        "the application's logger raised",
    ]
    meters.shutdown()
    loggers.shutdown()
    provider.shutdown()


def test_a_counter_that_raises_stops_neither_time_nor_the_other_counters(
    memory: tuple[TracerProvider, InMemorySpanExporter],
    make: Callable[..., OpenTelemetryListener],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider, exporter = memory
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    listener = make(provider, meters, settle=0.05)
    assert listener._instruments is not None

    def refuse(gained: int) -> None:
        raise Boom("no more")

    monkeypatch.setattr(listener._instruments._counters["rejected"], "add", refuse)
    execution_id = run(listener)
    listener.on_module_start("no id", uuid4(), "rejected")  # type: ignore[arg-type]
    eventually(lambda: len(exporter.get_finished_spans()) == 3, "the spans to settle")
    listener.on_module_start(execution_id, uuid4(), "late")
    eventually(lambda: points_of(reader, "constellation.events.late"), "the late event to be a metric")
    (late,) = points_of(reader, "constellation.events.late")
    assert late.value == 1
    meters.shutdown()


def test_events_before_any_start_are_taken_where_there_is_an_sdk(
    memory: tuple[TracerProvider, InMemorySpanExporter], make: Callable[..., OpenTelemetryListener]
) -> None:
    provider, exporter = memory
    listener = make(provider)
    execution_id = uuid4()
    listener.on_module_complete(execution_id, uuid4(), "Trim", 2.0)
    listener.on_execution_complete(execution_id, "my-pipeline", True, 3.0)
    assert listener.flush(DEADLINE)
    assert [span.name for span in exporter.get_finished_spans()] == ["Trim", "my-pipeline"]
    assert listener.counters.received == 2


def test_a_provider_that_has_no_tracer_to_give_is_asked_again(
    memory: tuple[TracerProvider, InMemorySpanExporter],
    make: Callable[..., OpenTelemetryListener],
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider, exporter = memory
    answers: list[trace.Tracer] = []

    class NotReady(trace.TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            return answers.pop()

    listener = make(NotReady())
    run(listener)
    assert caplog.messages == ["a tracer provider raised; it is asked again when the next execution starts"]
    answers.append(provider.get_tracer("library"))
    run(listener)
    assert listener.flush(DEADLINE)
    assert len(exporter.get_finished_spans()) == 3
    assert listener.counters.received == 6


def test_an_event_of_an_unknown_execution_makes_a_trace_that_says_what_is_missing(
    memory: tuple[TracerProvider, InMemorySpanExporter], make: Callable[..., OpenTelemetryListener]
) -> None:
    provider, exporter = memory
    listener = make(provider)
    run(listener)
    execution_id = uuid4()
    listener.on_module_complete(execution_id, uuid4(), "Trim", 2.0)
    listener.on_execution_complete(execution_id, "my-pipeline", True, 3.0)
    assert listener.flush(DEADLINE)
    spans = exporter.get_finished_spans()[3:]
    assert [(span.name, (span.attributes or {})["constellation.missing"]) for span in spans] == [
        ("Trim", ("start",)),
        ("my-pipeline", ("start",)),
    ]
    assert {span.context.trace_id for span in spans} == {trace_id_of(execution_id)}


class StrRaises(Exception):
    def __str__(self) -> str:
        raise Boom("not even this")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Boom("x" * 1_000_000), "x" * 8_158 + "… (cut; it had 1000000 characters)"),
        (StrRaises(), "<str() of this StrRaises raised Boom>"),
        (Boom("lone \ud800 and \x00"), "lone � and �"),
    ],
    ids=["a megabyte", "str raises", "surrogates"],
)
def test_an_error_however_odd_has_a_bounded_effect(
    application: Any, make: Callable[..., OpenTelemetryListener], error: Exception, message: str
) -> None:
    listener = make(application.traces)
    run(listener, error=error)
    assert listener.flush(DEADLINE)
    application.export()
    failed = next(span for span in application.receiver.spans if span.name == "WordCount")
    assert failed.status_description == message
    assert failed.events[0].attributes["exception.message"] == message


@pytest.mark.parametrize(
    ("name", "shown"),
    [("", "unknown"), ("a\x07b", "a�b"), ("\udcff", "�"), ("x" * 2000, "x" * 1024)],
    ids=["empty", "control character", "lone surrogate", "long"],
)
def test_a_name_however_odd_arrives_mended_and_counted_as_does_a_negative_duration(
    application: Any, make: Callable[..., OpenTelemetryListener], name: str, shown: str
) -> None:
    listener = make(application.traces)
    execution_id = uuid4()
    listener.on_execution_start(execution_id, name)
    listener.on_execution_complete(execution_id, name, True, -1.0)
    assert listener.flush(DEADLINE)
    application.export()
    (span,) = application.receiver.spans
    assert span.name == shown
    # the name of both events, and the duration
    assert listener.counters.corrected == 3


def test_what_the_redact_hook_takes_out_is_nowhere(
    application: Any, make: Callable[..., OpenTelemetryListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs/dup")
    listener = make(
        application.traces, application.metrics, application.logs, redact=lambda text: text.replace("s3cret", "***")
    )
    secret = "s3" + "cret"
    try:
        try:
            raise Boom(f"password {secret}")
        except Boom as cause:
            raise Boom(f"and {secret} again") from cause
    except Boom as error:
        run(listener, error=error)
    assert listener.flush(DEADLINE)
    application.export()
    receiver = application.receiver
    assert "and *** again" in repr(receiver.spans)
    assert "password ***" in repr(receiver.logs)
    assert secret not in repr((receiver.spans, receiver.logs, receiver.metrics))


# --- whether there is an SDK ---------------------------------------------------------------------------------------


def program(receiver: Receiver, text: str, **env: str) -> str:
    """Runs a program of its own, since global providers can be set only once; what it printed."""
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint} | env
    command = [sys.executable, "-W", "error", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


PRELUDE = """
import threading, uuid
from constellation_otel import OpenTelemetryListener, trace_id_of
listener = OpenTelemetryListener()
def run(name):
    execution_id, module_id, other_id = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    listener.on_execution_start(execution_id, name)
    listener.on_module_start(execution_id, module_id, "m")
    listener.on_module_failed(execution_id, module_id, "m", ValueError("x"))
    listener.on_module_start(execution_id, other_id, "n")
    listener.on_module_complete(execution_id, other_id, "n", 1.0)
    listener.on_execution_complete(execution_id, name, True, 2.0)
    return execution_id
def set_up():
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
"""
MODULES = '  m (internal) failure ERROR "x"\n  n (internal) success'


def test_without_an_sdk_events_are_dropped_at_once_and_no_thread_is_started(receiver: Receiver) -> None:
    text = PRELUDE + "run('nobody listens'); print(threading.active_count(), listener.counters.received)"
    assert program(receiver, text) == "1 0\n"
    assert receiver.requests == []


def test_providers_may_be_set_after_the_listener_was_made_and_exit_loses_nothing(receiver: Receiver) -> None:
    text = PRELUDE + "run('before'); set_up(); print(format(trace_id_of(run('after')), '032x'))"
    trace_id = program(receiver, text).strip()
    assert span_tree(receiver.spans) == f"after (server) success\n{MODULES}"
    assert {format(span.trace_id, "032x") for span in receiver.spans} == {trace_id}


def test_a_disabled_sdk_is_told_nothing(receiver: Receiver) -> None:
    text = PRELUDE + "set_up(); run('x'); print(listener.counters.received)"
    assert program(receiver, text, OTEL_SDK_DISABLED="true") == "0\n"
    assert receiver.requests == []


def test_a_forked_child_sends_its_own_executions_and_none_of_its_parents(receiver: Receiver) -> None:
    text = """
import os
set_up()
listener.on_execution_start(uuid.uuid4(), "left open by the parent")
run("parent")
child = os.fork()
if child == 0:
    run("child")
    assert listener.close(20)
    from opentelemetry import trace
    trace.get_tracer_provider().force_flush()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    program(receiver, PRELUDE + text)
    assert span_tree(receiver.spans) == (
        f"child (server) success\n{MODULES}\n\n"
        'left open by the parent (server) abandoned ERROR "abandoned without an end: the source ended"\n\n'
        f"parent (server) success\n{MODULES}"
    )


def test_tracing_that_is_set_up_after_metrics_is_still_served_at_exit(receiver: Receiver) -> None:
    text = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
metrics.set_meter_provider(MeterProvider())
run("metrics only")
assert listener.flush(20)
set_up()
run("and traces")
"""
    program(receiver, PRELUDE + text)
    assert span_tree(receiver.spans) == f"and traces (server) success\n{MODULES}"


def test_a_fork_while_another_thread_makes_instruments_does_not_hang_the_child(receiver: Receiver) -> None:
    text = """
import os
from constellation_otel.otel import metrics as instruments
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
metrics.set_meter_provider(MeterProvider())
with instruments._REGISTRY.lock:
    child = os.fork()
    if child == 0:
        run("child")
        os._exit(0 if listener.close(20) and not listener._decisions else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    program(receiver, PRELUDE + text)


def test_a_forked_child_knows_nothing_of_what_its_parent_had_decided(receiver: Receiver) -> None:
    text = """
import os
set_up()
listener.on_execution_start(uuid.UUID(int=1), "the parent's")
assert len(listener._decisions) == 1
child = os.fork()
if child == 0:
    os._exit(len(listener._decisions) or len(listener._worker._queue))
assert os.waitpid(child, 0)[1] == 0
"""
    program(receiver, PRELUDE + text)


def test_a_provider_that_is_not_the_sdks_gets_plain_spans_and_one_warning(
    memory: tuple[TracerProvider, InMemorySpanExporter],
    make: Callable[..., OpenTelemetryListener],
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider, exporter = memory

    class VendorsTracer(trace.Tracer):
        def __init__(self, tracer: trace.Tracer) -> None:
            self.tracer = tracer

        def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
            return self.tracer.start_span(*args, **kwargs)

        def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    class Vendor(trace.TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            return VendorsTracer(provider.get_tracer(*args, **kwargs))

    listener = make(Vendor())
    with provider.get_tracer("web").start_as_current_span("GET /"):
        run(listener)
    run(listener)
    execution_id = uuid4()
    listener.on_execution_start(execution_id, "d")
    caller = Context()
    assert listener.module_context(execution_id, uuid4(), caller) is caller
    assert listener.flush(DEADLINE)
    assert [message.split(":")[0] for message in caplog.messages] == [
        f"{Vendor.__qualname__} is not the OpenTelemetry SDK's tracer provider"
    ]
    spans = exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in spans}
    inside = [span for span in spans if span.context.trace_id == spans[0].context.trace_id]
    assert [(span.name, names[span.parent.span_id] if span.parent else None) for span in inside] == [
        ("GET /", None),
        ("Trim", "my-pipeline"),
        ("WordCount", "my-pipeline"),
        ("my-pipeline", "GET /"),
    ]
    assert inside[2].status.status_code is StatusCode.ERROR
    assert len(spans) == 7


# --- many at once --------------------------------------------------------------------------------------------------


class AlwaysRaises(ExecutionListener):
    """Rides along in a composite."""

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        raise Boom("start")

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        raise Boom("complete")


class Counts(ExecutionListener):
    """Counts executions that have ended, in a way that threads cannot spoil."""

    def __init__(self) -> None:
        self.ended: list[UUID] = []

    def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
        self.ended.append(execution_id)


def tell_from_eight_threads(listener: ExecutionListener) -> list[UUID]:
    """Tells of 10,000 executions of three modules; their ids."""
    ids: list[UUID] = []

    def tell() -> None:
        for _ in range(1_250):
            ids.append(execution_id := uuid4())
            listener.on_execution_start(execution_id, "d")
            module_ids = {name: uuid4() for name in ("first", "second", "third")}
            for name, module_id in module_ids.items():
                listener.on_module_start(execution_id, module_id, name)
            for name, module_id in module_ids.items():
                listener.on_module_complete(execution_id, module_id, name, 1.0)
            listener.on_execution_complete(execution_id, "d", True, 2.0)

    in_threads(8, tell, LONG)
    return ids


@UNWATCHED
def test_eight_threads_and_ten_thousand_executions_lose_and_cross_nothing(
    make: Callable[..., OpenTelemetryListener], caplog: pytest.LogCaptureFixture
) -> None:
    provider, exporter = provider_with(ALWAYS_ON)
    listener, counts = make(provider, max_queue=100_000), Counts()
    ids = tell_from_eight_threads(ExecutionListener.composite(AlwaysRaises(), listener, counts))
    assert sorted(counts.ended) == sorted(ids)
    assert len(ids) == 10_000
    assert listener.flush(LONG)
    traces: dict[int, list[str]] = {}
    for span in exporter.get_finished_spans():
        traces.setdefault(span.context.trace_id, []).append(span.name)
    assert set(traces) == {trace_id_of(execution_id) for execution_id in ids}
    assert {tuple(sorted(names)) for names in traces.values()} == {("d", "first", "second", "third")}
    counters = listener.counters
    assert (counters.received, counters.delivered, counters.spans) == (80_000, 80_000, 40_000)
    assert (counters.late, counters.duplicate, counters.abandoned, counters.corrected) == (0, 0, 0, 0)
    raised_records = [record for record in caplog.records if record.name.endswith(".AlwaysRaises")]
    assert 2 <= len(raised_records) <= 100
    assert all(record.exc_info for record in raised_records)
    provider.shutdown()


@UNWATCHED
def test_with_the_default_queue_what_is_not_delivered_is_dropped_counted_and_logged(
    make: Callable[..., OpenTelemetryListener], caplog: pytest.LogCaptureFixture
) -> None:
    exporter = Blocking()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    listener = make(provider)
    tell_from_eight_threads(ExecutionListener.composite(AlwaysRaises(), listener, Counts()))
    exporter.gate.set()
    assert listener.flush(LONG)
    counters = listener.counters
    assert counters.received == counters.delivered + counters.dropped == 80_000
    assert counters.dropped > 0
    assert any("the queue is full (65536 items); dropping the newest" in message for message in caplog.messages)
    provider.shutdown()


def test_an_execution_that_cannot_be_finished_costs_the_others_nothing(
    application: Any,
    make: Callable[..., OpenTelemetryListener],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By a defect: nothing that comes in is known to bring it about."""
    finish_one = Assembler.finish_one

    def fail_once(assembler: Assembler, execution_id: UUID) -> Any:
        if execution_id == UUID(int=2):
            raise ZeroDivisionError
        return finish_one(assembler, execution_id)

    monkeypatch.setattr(Assembler, "finish_one", fail_once)
    listener = make(application.traces)
    for number in (1, 2, 3):
        listener.on_execution_start(UUID(int=number), f"dag-{number}")
    assert listener.close(DEADLINE)
    application.export()
    assert [span.name for span in application.receiver.spans] == ["dag-1", "dag-3"]
    assert "cannot be finished, and is left out" in caplog.text
