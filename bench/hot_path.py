"""What a module's telemetry costs the thread that runs the module.

On one side ``on_module_start`` and ``on_module_complete`` of OpenTelemetryListener.
On the other the same telemetry written by hand, inline, with the OpenTelemetry SDK:
a span with five attributes, a histogram record with an exemplar, two up-down
counter adds. Both against a BatchSpanProcessor whose exporter throws away.

OtlpListener's two callbacks stand beside them, its spans being sent to an endpoint in
this process. Measured is the calling thread's CPU time, so that the work of other threads (the
listener's worker, the processors' exporters) does not count; it is told apart in the
last line, as all threads' CPU time for an event, to its span and metrics being made.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from constellation_otel import ExecutionListener, OpenTelemetryListener
from constellation_otel.otel import OtlpListener
from constellation_otel.receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["main"]

_MODULES: Final = 5_000
_ROUNDS: Final = 9
_CLAIM: Final = 30


class _ThrowAway(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002 - the SDK's signature
        return SpanExportResult.SUCCESS


def _by_hand(tracer: trace.Tracer, meters: MeterProvider, execution_id: UUID) -> Callable[[UUID], None]:
    meter = meters.get_meter("by-hand")
    duration = meter.create_histogram("module.duration", "s")
    active_modules = meter.create_up_down_counter("module.active")
    active_work = meter.create_up_down_counter("work.active")

    def module(module_id: UUID) -> None:
        active_modules.add(1)
        with tracer.start_as_current_span("Trim") as span:
            span.set_attribute("constellation.execution.id", str(execution_id))
            span.set_attribute("constellation.dag.name", "my-pipeline")
            span.set_attribute("constellation.module.id", str(module_id))
            span.set_attribute("constellation.module.name", "Trim")
            span.set_attribute("constellation.outcome", "success")
            duration.record(0.002, {"constellation.module.name": "Trim", "constellation.outcome": "success"})
        active_work.add(-1)

    return module


def _listener(listener: ExecutionListener, execution_id: UUID) -> Callable[[UUID], None]:
    def module(module_id: UUID) -> None:
        listener.on_module_start(execution_id, module_id, "Trim")
        listener.on_module_complete(execution_id, module_id, "Trim", 2.0)

    return module


def _nothing(_: UUID) -> None:
    return


def _microseconds(module: Callable[[UUID], None], ids: list[UUID]) -> float:
    start = time.thread_time()
    for module_id in ids:
        module(module_id)
    return (time.thread_time() - start) / len(ids) * 1e6


def _round(listener: OpenTelemetryListener | OtlpListener, execution_id: UUID, ids: list[UUID]) -> float:
    """Microseconds of an execution's modules, each, once all is dealt with."""
    listener.on_execution_start(execution_id, "my-pipeline")
    took = _microseconds(_listener(listener, execution_id), ids)
    listener.on_execution_complete(execution_id, "my-pipeline", True, 10.0)
    if not listener.flush(60):
        message = f"the worker of {type(listener).__name__} did not keep up within a minute"
        raise SystemExit(message)
    return took


def main() -> None:
    """Prints the ratio, and what the claim is."""
    tracers, meters = TracerProvider(), MeterProvider([InMemoryMetricReader()])
    tracers.add_span_processor(BatchSpanProcessor(_ThrowAway()))
    listener = OpenTelemetryListener(tracers, meters)
    by_hand, listened, sent, loop, whole = [], [], [], [], []
    with Receiver(max_kept=1) as receiver:
        otlp_listener = OtlpListener(receiver.grpc_endpoint)
        for _ in range(_ROUNDS):
            ids = [uuid4() for _ in range(_MODULES)]
            execution_id = uuid4()
            loop.append(_microseconds(_nothing, ids))
            by_hand.append(_microseconds(_by_hand(tracers.get_tracer("by-hand"), meters, execution_id), ids))
            start = time.process_time()
            listened.append(_round(listener, execution_id, ids))
            whole.append((time.process_time() - start) / (2 * _MODULES) * 1e6)
            sent.append(_round(otlp_listener, execution_id, ids))
        otlp_listener.close(5)
    tracers.shutdown()
    meters.shutdown()
    listener.close(5)
    hand, ours, otlp = (median(each) - median(loop) for each in (by_hand, listened, sent))
    print(
        f"hot path: by hand {hand:.1f} us a module, OpenTelemetryListener {ours:.2f} us:"
        f" 1/{hand / ours:.0f} (claimed: at most 1/{_CLAIM})"
    )
    print(f"hot path: OtlpListener {otlp:.2f} us a module: 1/{hand / otlp:.0f}")
    print(f"hot path: all threads together {median(whole):.1f} us an event, to span and metrics")
