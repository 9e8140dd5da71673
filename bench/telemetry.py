"""The two sides of most rows: the telemetry of an execution from a listener, and the same written by hand.

By hand is what a user would write around a module's body with the OpenTelemetry SDK:
a span that is current, with five attributes; one value of a histogram, with an
exemplar; two adds to an up-down counter. The execution has a span, a value and two
adds, too. Both sides export through the same parts of the SDK, the listener that
needs none excepted, and are closed when the endpoint has acknowledged everything.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from uuid import UUID, uuid4

from opentelemetry import context as otel_context
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

from constellation_otel import OpenTelemetryListener, OtlpListener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span

    from bench.endpoint import Endpoint

__all__ = ["DAG", "ByHand", "Execution", "Listened", "Otlp", "Sdk", "SdkParts", "Side", "executions", "run"]

DAG: Final = "my-pipeline"
_NAMES: Final = tuple(f"module-{number}" for number in range(10))
_DURATION_MS: Final = 2.0
_MAX_QUEUE: Final = 65_536
"""As a listener's own: with the SDK's 2,048, spans would be dropped on either side."""
_FLUSH_TIMEOUT: Final = 60.0


class Execution(NamedTuple):
    """An execution that is to be reported.

    Attributes:
        execution_id: Its id.
        modules: Id and name of each of its modules.
    """

    execution_id: UUID
    modules: Sequence[tuple[UUID, str]]


def executions(number: int, modules: int) -> list[Execution]:
    """New executions, so that no round finds the ids of another in a cache."""
    return [
        Execution(uuid4(), [(uuid4(), _NAMES[index % len(_NAMES)]) for index in range(modules)]) for _ in range(number)
    ]


class Side(Protocol):
    """Who makes the telemetry of executions."""

    def execution(self, execution_id: UUID) -> AbstractContextManager[Callable[[UUID, str], None]]:
        """An execution, from its start to its end, and what makes a module's telemetry."""

    def flush(self) -> None:
        """Waits until spans are acknowledged."""

    def close(self) -> None:
        """Waits until spans and metrics are acknowledged."""


def run(side: Side, told: Sequence[Execution]) -> None:
    """Makes the telemetry of executions, one after the other."""
    for execution_id, modules in told:
        with side.execution(execution_id) as module:
            for module_id, name in modules:
                module(module_id, name)


class _OnStart(SpanProcessor):
    """A processor of the application's that sets an attribute when a span starts."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the SDK's signature
        span.set_attribute("deployment.environment.name", "bench")


class SdkParts:
    """The application's OpenTelemetry SDK, exporting over gRPC.

    Args:
        endpoint: Where to.
        has_metrics: Whether there is a meter provider.
        has_on_start: Whether one more span processor needs each span when it starts.
    """

    def __init__(self, endpoint: Endpoint, *, has_metrics: bool = True, has_on_start: bool = False) -> None:
        self.tracers = TracerProvider()
        if has_on_start:
            self.tracers.add_span_processor(_OnStart())
        exporter = OTLPSpanExporter(endpoint=endpoint.grpc_url, insecure=True)
        self.tracers.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_MAX_QUEUE))
        self.meters: MeterProvider | None = None
        if has_metrics:
            metric_exporter = OTLPMetricExporter(endpoint=endpoint.grpc_url, insecure=True)
            self.meters = MeterProvider([PeriodicExportingMetricReader(metric_exporter)])

    def flush(self) -> None:
        """Waits until spans are acknowledged."""
        self.tracers.force_flush()

    def close(self) -> None:
        """Waits until spans and metrics are acknowledged."""
        self.tracers.shutdown()
        if self.meters is not None:
            self.meters.shutdown()


def _constant() -> float:
    return _DURATION_MS / 1e3


class ByHand:
    """The telemetry as a user writes it, inline."""

    def __init__(self, sdk: SdkParts) -> None:
        self._sdk = sdk
        self._tracer = sdk.tracers.get_tracer("by-hand")
        self._has_metrics = sdk.meters is not None
        if sdk.meters is not None:
            meter = sdk.meters.get_meter("by-hand")
            self._execution_duration = meter.create_histogram("execution.duration", "s")
            self._module_duration = meter.create_histogram("module.duration", "s")
            self._active_executions = meter.create_up_down_counter("execution.active")
            self._active_modules = meter.create_up_down_counter("module.active")

    @contextmanager
    def execution(self, execution_id: UUID) -> Iterator[Callable[[UUID, str], None]]:
        attributes = {"constellation.execution.id": str(execution_id), "constellation.dag.name": DAG}
        if self._has_metrics:
            self._active_executions.add(1)
        with self._tracer.start_as_current_span(DAG, kind=SpanKind.SERVER, attributes=attributes) as span:
            yield lambda module_id, name: self.module(execution_id, module_id, name, _constant)
            span.set_attribute("constellation.outcome", "success")
            if self._has_metrics:
                measured = {"constellation.dag.name": DAG, "constellation.outcome": "success"}
                self._execution_duration.record(0.01, measured)
        if self._has_metrics:
            self._active_executions.add(-1)

    def module(self, execution_id: UUID, module_id: UUID, name: str, work: Callable[[], float]) -> None:
        """Makes a module's telemetry.

        Args:
            execution_id: Its execution, whose span is the current one.
            module_id: Its id.
            name: Its name.
            work: Its body; says how many seconds it took.
        """
        attributes = {
            "constellation.execution.id": str(execution_id),
            "constellation.dag.name": DAG,
            "constellation.module.id": str(module_id),
            "constellation.module.name": name,
        }
        if self._has_metrics:
            self._active_modules.add(1)
        with self._tracer.start_as_current_span(name, attributes=attributes) as span:
            seconds = work()
            span.set_attribute("constellation.outcome", "success")
            if self._has_metrics:
                measured = {
                    "constellation.dag.name": DAG,
                    "constellation.module.name": name,
                    "constellation.outcome": "success",
                }
                self._module_duration.record(seconds, measured)
        if self._has_metrics:
            self._active_modules.add(-1)

    def flush(self) -> None:
        self._sdk.flush()

    def close(self) -> None:
        self._sdk.close()


class Listened:
    """The telemetry as a listener makes it of callbacks.

    Args:
        listener: The listener.
        has_bodies: Whether it is asked for the context of each module's body, as an engine asks it.
    """

    def __init__(self, listener: OpenTelemetryListener | OtlpListener, *, has_bodies: bool = False) -> None:
        self.listener = listener
        self._has_bodies = has_bodies

    @contextmanager
    def execution(self, execution_id: UUID) -> Iterator[Callable[[UUID, str], None]]:
        started, completed = self.listener.on_module_start, self.listener.on_module_complete

        def module(module_id: UUID, name: str) -> None:
            started(execution_id, module_id, name)
            completed(execution_id, module_id, name, _DURATION_MS)

        context_of, current = self.listener.module_context, otel_context.get_current()

        def module_with_body(module_id: UUID, name: str) -> None:
            started(execution_id, module_id, name)
            context_of(execution_id, module_id, current)
            completed(execution_id, module_id, name, _DURATION_MS)

        self.listener.on_execution_start(execution_id, DAG)
        yield module_with_body if self._has_bodies else module
        self.listener.on_execution_complete(execution_id, DAG, True, 10.0)

    def flush(self) -> None:
        if not self.listener.flush(_FLUSH_TIMEOUT):
            message = f"{type(self.listener).__name__} has not delivered within {_FLUSH_TIMEOUT:.0f} s"
            raise RuntimeError(message)

    def close(self) -> None:
        self.flush()
        self.listener.close(_FLUSH_TIMEOUT)


class Otlp(Listened):
    """OtlpListener; metrics as the environment says.

    Args:
        endpoint: Where to.
        journal: Its journal, where it has one.
        has_bodies: As :class:`Listened` has it.
    """

    def __init__(self, endpoint: Endpoint, journal: Path | None = None, *, has_bodies: bool = False) -> None:
        super().__init__(OtlpListener(endpoint.grpc_url, journal=journal), has_bodies=has_bodies)


class Sdk(Listened):
    """OpenTelemetryListener over the application's SDK.

    Args:
        sdk: The SDK.
        has_bodies: As :class:`Listened` has it.
    """

    def __init__(self, sdk: SdkParts, *, has_bodies: bool = False) -> None:
        super().__init__(OpenTelemetryListener(sdk.tracers, sdk.meters), has_bodies=has_bodies)
        self._sdk = sdk

    def flush(self) -> None:
        super().flush()
        self._sdk.flush()

    def close(self) -> None:
        super().close()
        self._sdk.close()
