"""OpenTelemetryListener's metrics: durations, what is open, and what was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import (
    TracerProvider,
)
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
)

from constellation_otel.events import ModuleStarted
from reports import BOOM, Boom, run
from support import DEADLINE, eventually
from telemetry import BlockingExporter, assembly_of, assert_sum, points_of, provider_with

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from constellation_otel import (
        OpenTelemetryListener,
    )


def test_metrics_arrive_with_exemplars_that_point_at_the_spans(
    application: Any, make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    listener = make_listener(application.traces, application.metrics)
    run(listener)
    open_execution = uuid4()
    listener.on_execution_start(open_execution, "open")
    listener.on_module_start(open_execution, uuid4(), "open")
    assert listener.flush(DEADLINE)
    application.export()
    points = application.receiver.metrics
    spans = {(span.trace_id, span.span_id): span for span in application.receiver.spans}
    durations = [point for point in points if point.name.endswith(".duration")]
    boom = ("error.type", BOOM)
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


def test_metrics_count_executions_that_are_not_sampled(make_listener: Callable[..., OpenTelemetryListener]) -> None:
    provider, exporter = provider_with(ALWAYS_OFF)
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    listener = make_listener(provider, meters)
    run(listener)
    assert listener.flush(DEADLINE)
    assert exporter.get_finished_spans() == ()
    (point,) = points_of(reader, "constellation.execution.duration")
    assert (point.count, point.exemplars) == (1, [])
    meters.shutdown()
    provider.shutdown()


def test_metrics_are_recorded_without_a_tracer_provider(make_listener: Callable[..., OpenTelemetryListener]) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    listener = make_listener(None, meters)
    run(listener)
    run(listener)
    assert listener.flush(DEADLINE)
    (point,) = points_of(reader, "constellation.execution.duration")
    assert (point.count, point.exemplars) == (2, [])
    meters.shutdown()


def test_listeners_that_share_a_meter_provider_are_summed(make_listener: Callable[..., OpenTelemetryListener]) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    listeners = [make_listener(trace.NoOpTracerProvider(), meters) for _ in range(2)]
    for listener in listeners:
        listener.on_execution_start(uuid4(), "d")
        assert listener.flush(DEADLINE)
    (active,) = points_of(reader, "constellation.execution.active")
    assert active.value == 2
    meters.shutdown()


def test_events_that_found_the_queue_full_are_a_metric(make_listener: Callable[..., OpenTelemetryListener]) -> None:
    exporter = BlockingExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    listener = make_listener(provider, meters, max_queue=10)
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


def test_late_duplicate_abandoned_and_rejected_are_metrics(
    make_listener: Callable[..., OpenTelemetryListener], caplog: pytest.LogCaptureFixture
) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    listener = make_listener(trace.NoOpTracerProvider(), meters)
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
    assert_sum(counters)
    assert (counters.received, counters.dropped, counters.rejected) == (12, 1, 1)
    assembly = assembly_of(listener)
    assert (assembly.late, assembly.duplicate, assembly.abandoned) == (1, 1, 2)
    assert (assembly.incomplete_executions, assembly.incomplete_modules) == (2, 1)
    # of its execution only a module's start came
    lost = f"the start and the end of execution {UUID(int=1)} of DAG"
    assert f"the source of OpenTelemetryListener loses events: {lost}" in caplog.text
    assert "module_name must be a str, not 7" in caplog.text
    meters.shutdown()


class RaisingMeters(MeterProvider):
    """A meter provider that is of no use."""

    def get_meter(self, *args: Any, **kwargs: Any) -> Any:
        raise Boom("no meter")


def test_a_meter_provider_that_raises_costs_only_the_metrics(
    memory: tuple[TracerProvider, InMemorySpanExporter],
    make_listener: Callable[..., OpenTelemetryListener],
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider, exporter = memory
    meters = RaisingMeters([], shutdown_on_exit=False)
    listener = make_listener(provider, meters)
    run(listener)
    assert listener.flush(DEADLINE)
    assert len(exporter.get_finished_spans()) == 3
    assert caplog.messages == ["the meter provider raised; it is asked again when the next execution starts"]
    meters.shutdown()


def test_a_counter_that_raises_stops_no_other_counter(
    memory: tuple[TracerProvider, InMemorySpanExporter],
    make_listener: Callable[..., OpenTelemetryListener],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does time stop."""
    provider, exporter = memory
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    listener = make_listener(provider, meters, settle=0.05)
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
