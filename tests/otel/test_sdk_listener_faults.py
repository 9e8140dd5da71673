"""OpenTelemetryListener when the application's SDK blocks or raises, and when there is more than it can take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import (
    ReadableSpan,
    SpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_ON,
)

from constellation_otel import (
    ExecutionListener,
    OpenTelemetryListener,
    trace_id_of,
)
from constellation_otel.delivery import AssemblyCounters
from constellation_otel.traces import Assembler
from reports import Boom, run
from support import DEADLINE, UNWATCHED, eventually, in_threads
from telemetry import LONG, BlockingExporter, assert_sum, points_of, provider_with

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def test_an_exporter_that_blocks_stops_no_callback(
    make_listener: Callable[..., OpenTelemetryListener], caplog: pytest.LogCaptureFixture
) -> None:
    """What is dropped is counted and logged."""
    exporter = BlockingExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    listener = make_listener(provider, max_queue=10, max_open=5)
    run(listener)
    assert exporter.entered.wait(DEADLINE)
    for _ in range(20):
        run(listener)
    assert len(listener._sampling.decisions) <= 5
    assert not listener.flush(0.01)
    counters = listener.counters
    assert counters.dropped > 0
    assert_sum(counters)
    assert counters.received == 126
    assert [message for message in caplog.messages if "dropping" in message] == [
        "OpenTelemetryListener: the queue is full (10 items); dropping the newest"
    ]
    exporter.gate.set()
    assert listener.close(DEADLINE)
    provider.shutdown()


def test_a_provider_that_raises_loses_its_span_and_nothing_else(
    make_listener: Callable[..., OpenTelemetryListener], caplog: pytest.LogCaptureFixture
) -> None:
    class Raises(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            if span.name == "Trim":
                raise Boom("no room")

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Raises())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    listener = make_listener(provider)
    for _ in range(3):
        run(listener)
    assert listener.flush(DEADLINE)
    assert [span.name for span in exporter.get_finished_spans()] == ["WordCount", "my-pipeline"] * 3
    assert (listener.failed, listener.counters.delivered) == (3, 18)
    assert caplog.messages == ["the application's OpenTelemetry SDK raised for a span; that span is lost"]
    provider.shutdown()


def test_after_an_overload_traces_are_whole_again(
    make_listener: Callable[..., OpenTelemetryListener],
) -> None:
    """And nothing is left of what was dropped."""
    exporter = BlockingExporter()
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    listener = make_listener(provider, max_queue=50, max_open=100)
    run(listener)
    assert exporter.entered.wait(DEADLINE)
    for _ in range(1_000):
        run(listener)
    assert listener.counters.dropped > 0
    exporter.gate.set()
    assert listener.flush(DEADLINE)
    eventually(
        lambda: listener.flush(DEADLINE) and len(listener._sampling.decisions) == listener.open_executions, "recovery"
    )
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


def test_a_processor_and_a_logger_that_raise_cost_no_metric(
    make_listener: Callable[..., OpenTelemetryListener],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor do they cost each other anything."""
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
    listener = make_listener(provider, meters, loggers)
    run(listener)
    assert listener.flush(DEADLINE)
    assert sum(point.count for point in points_of(reader, "constellation.module.duration")) == 2
    assert listener.failed == 3
    assert sorted(caplog.messages) == [
        "the application's OpenTelemetry SDK raised for a span; that span is lost",
        "the application's logger raised",
    ]
    meters.shutdown()
    loggers.shutdown()
    provider.shutdown()


def test_an_execution_that_cannot_be_finished_costs_no_other(
    application: Any,
    make_listener: Callable[..., OpenTelemetryListener],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By a defect: nothing that comes in is known to bring it about."""
    emit = Assembler.emit

    def fail_once(assembler: Assembler, execution: Any, reason: Any) -> Any:
        if execution.key == 2:
            raise ZeroDivisionError
        return emit(assembler, execution, reason)

    monkeypatch.setattr(Assembler, "emit", fail_once)
    listener = make_listener(application.traces)
    for number in (1, 2, 3):
        listener.on_execution_start(UUID(int=number), f"dag-{number}")
    assert listener.close(DEADLINE)
    application.export()
    assert [span.name for span in application.receiver.spans] == ["dag-1", "dag-3"]
    assert "and it is left out" in caplog.text


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
def test_eight_threads_and_ten_thousand_executions_lose_nothing(
    make_listener: Callable[..., OpenTelemetryListener], caplog: pytest.LogCaptureFixture
) -> None:
    """Nor do their traces cross."""
    provider, exporter = provider_with(ALWAYS_ON)
    listener, counts = make_listener(provider, max_queue=100_000), Counts()
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
    assert (counters.received, counters.delivered, counters.sending.sent) == (80_000, 80_000, 40_000)
    assert counters.assembly == AssemblyCounters(events=80_000, executions=10_000, spans=40_000)
    raised_records = [record for record in caplog.records if record.name.endswith(".AlwaysRaises")]
    assert 2 <= len(raised_records) <= 100
    assert all(record.exc_info for record in raised_records)
    provider.shutdown()


@UNWATCHED
def test_an_overload_of_the_default_queue_is_counted_and_logged(
    make_listener: Callable[..., OpenTelemetryListener], caplog: pytest.LogCaptureFixture
) -> None:
    exporter = BlockingExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    listener = make_listener(provider)
    tell_from_eight_threads(listener)
    exporter.gate.set()
    assert listener.flush(LONG)
    counters = listener.counters
    assert_sum(counters)
    assert counters.received == 80_000
    assert counters.dropped > 0
    # of executions whose end was dropped
    assert listener.open_executions <= counters.held <= 7 * listener.open_executions
    assert any("the queue is full (65536 items); dropping the newest" in message for message in caplog.messages)
    provider.shutdown()
