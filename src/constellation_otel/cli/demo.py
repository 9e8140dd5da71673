"""What ``constellation-otel demo`` runs: the main job on real input, with nothing else running.

A handful of pipelines over this package's own documentation, then what was
recorded from the real engine. Everything leaves over OTLP; what is drawn is what
arrived.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import ExitStack, contextmanager, suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_traces
from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_traces
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from constellation_otel._support.text import printable
from constellation_otel.cli.demo_pipelines import ARCHIVE, FAILING, TEXT, WORD_COUNT, page, slow_index
from constellation_otel.cli.waterfall import render_waterfall
from constellation_otel.engine import Constellation
from constellation_otel.errors import (
    ConstellationOtelError,
    ExecutionFailedError,
    MissingExtraError,
)
from constellation_otel.events import ExecutionStarted, decode_frame
from constellation_otel.listener import ExecutionListener
from constellation_otel.otel import Exporters, OpenTelemetryListener, grpc_options, http_options
from constellation_otel.receiver import Receiver
from constellation_otel.traces import trace_id_of
from constellation_otel.transports.otlp import make_resource

try:
    from rich.console import Console
except ModuleNotFoundError as error:
    raise MissingExtraError("rich", "cli") from error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from opentelemetry.sdk.trace import ReadableSpan

    from constellation_otel.transports.otlp import WireProtocol

__all__ = ["DemoError", "run_demo"]

_SERVICE: Final = "constellation-demo"
_RECORDINGS: Final = ("engine-frames.jsonl", "engine-frames-50.jsonl")
_HTTP_PORT: Final = ":4318"
_TIMEOUT: Final = 20.0


class DemoError(ConstellationOtelError):
    """The demo's telemetry could not be delivered."""


class _Shown(NamedTuple):
    """A trace that the demo has made."""

    trace_id: int
    name: str


def run_demo(endpoint: str | None, jaeger: str, console: Console | None = None) -> None:
    """Runs the pipelines, plays the recorded frames, and shows their traces.

    Args:
        endpoint: An OTLP endpoint's URL: everything is sent there, and each trace id is
            printed with a link. ``None`` for an endpoint in this process, from which each
            trace is drawn as it arrived.
        jaeger: The URL of Jaeger's page, for the links.
        console: Where to print; standard output where none is given.

    Raises:
        ConfigurationError: The endpoint, or a variable, cannot be used.
        DemoError: Some of the telemetry could not be delivered.
    """
    console = console or Console(highlight=False)
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver()) if endpoint is None else None
        application = _Application(receiver.grpc_endpoint if receiver else str(endpoint))
        stack.callback(application.shutdown)
        moody = MoodyListener()
        recorded = _play_recordings(application)
        ran = _run_pipelines(application, moody)
        application.export()
        if receiver is None:
            for shown in (*recorded, *ran):
                trace_id = format(shown.trace_id, "032x")
                line = printable(f"{trace_id}  {shown.name}  {jaeger.rstrip('/')}/trace/{trace_id}")
                console.print(line, soft_wrap=True, markup=False, emoji=False)
        else:
            arrived = receiver.spans
            for shown in (*recorded, *ran):
                console.print(render_waterfall([span for span in arrived if span.trace_id == shown.trace_id]))
                console.print()
            console.print(
                f"{len({span.trace_id for span in arrived})} traces with {len(arrived)} spans,"
                f" {len(receiver.metrics)} metric points and {len(receiver.logs)} log records arrived over OTLP."
            )
        console.print(
            f"{len(recorded)} executions were recorded from the real engine, {len(ran)} pipelines ran here; a listener"
            f" beside OpenTelemetry's raised {moody.raised} times, and nobody else noticed."
        )


class MoodyListener(ExecutionListener):
    """Rides along in the composite and raises whenever a module has started.

    Attributes:
        raised: How often it did.
    """

    def __init__(self) -> None:
        self.raised = 0

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:  # noqa: ARG002 - the SPI's
        self.raised += 1
        message = f"no mood for {module_name}"
        raise RuntimeError(message)


class _Names(ExecutionListener):
    """Rides along too, and notes which executions there were."""

    def __init__(self) -> None:
        self.shown: list[_Shown] = []

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        caller = trace.get_current_span().get_span_context()
        trace_id = caller.trace_id if caller.is_valid else trace_id_of(execution_id)
        self.shown.append(_Shown(trace_id, dag_name))


class _Watched(SpanExporter):
    """Remembers what the exporter behind it could not deliver, of which the SDK only logs."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _Application:
    """An application's own OpenTelemetry set-up, exporting over OTLP.

    Args:
        endpoint: gRPC, or HTTP where ``OTEL_EXPORTER_OTLP_PROTOCOL`` or the port, 4318, says so.

    Raises:
        ConfigurationError: The endpoint, or a variable, cannot be used.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        # what the variable says is for far_side_of to read
        is_said = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip()
        by_port: WireProtocol = "http/protobuf" if endpoint.rstrip("/").endswith(_HTTP_PORT) else "grpc"
        exporters = Exporters(endpoint, None if is_said else by_port, None)
        far_side = exporters.far_side("traces")
        spans: SpanExporter
        if far_side.protocol == "grpc":
            spans = grpc_traces.OTLPSpanExporter(**grpc_options(far_side))
        else:
            spans = http_traces.OTLPSpanExporter(**http_options(far_side))
        metrics, logs = exporters.metrics(), exporters.logs()
        resource = make_resource(os.environ.get("OTEL_SERVICE_NAME") or _SERVICE)
        self._spans = _Watched(spans)
        self.traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.traces.add_span_processor(BatchSpanProcessor(self._spans))
        reader = PeriodicExportingMetricReader(metrics, export_interval_millis=float("inf"))
        self.metrics = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self.logs = LoggerProvider(resource=resource, shutdown_on_exit=False)
        self.logs.add_log_record_processor(BatchLogRecordProcessor(logs))

    def export(self) -> None:
        """Sends what the SDK holds.

        Raises:
            DemoError: The endpoint did not take it.
        """
        self.traces.force_flush()
        if self._spans.failed:
            message = (
                f"{self._endpoint} did not take {self._spans.failed} spans;"
                " is an OTLP endpoint listening there, for gRPC (4317, as a rule) or for HTTP (4318)?"
            )
            raise DemoError(message)
        self.metrics.force_flush()
        self.logs.force_flush()

    def shutdown(self) -> None:
        """Ends the SDK's threads."""
        self.traces.shutdown()
        self.metrics.shutdown()
        self.logs.shutdown()


def _run_pipelines(application: _Application, moody: MoodyListener) -> list[_Shown]:
    """Runs the pipelines, as a user would, with listeners of one's own beside OpenTelemetry's."""
    names = _Names()
    telemetry = OpenTelemetryListener(application.traces, application.metrics, application.logs)
    tracer = application.traces.get_tracer("demo")
    inputs = {"text": TEXT}
    with (
        page(application.traces) as url,
        _quiet(MoodyListener),
        Constellation(ExecutionListener.composite(moody, telemetry, names)) as engine,
    ):
        engine.run(WORD_COUNT, inputs)
        with suppress(ExecutionFailedError):
            engine.run(FAILING, inputs)
        running, gate = threading.Event(), threading.Event()
        execution = engine.start(slow_index(running, gate), inputs)
        running.wait(_TIMEOUT)
        execution.cancel()
        gate.set()
        engine.run(ARCHIVE, {**inputs, "url": url, "provider": application.traces})
        with tracer.start_as_current_span("GET /report", kind=SpanKind.SERVER):
            engine.run(WORD_COUNT, inputs)
    _close(telemetry)
    return names.shown


def _play_recordings(application: _Application) -> list[_Shown]:
    """Plays what was recorded from the real engine, with the times that it had."""
    shown = []
    for name in _RECORDINGS:
        telemetry = OpenTelemetryListener(application.traces, NoOpMeterProvider(), application.logs, settle=1.0)
        recording = files("constellation_otel").joinpath("data", name)
        for line in recording.read_bytes().splitlines():
            event = decode_frame(bytes(msgspec.json.decode(line, type=_Recorded).frame))
            if isinstance(event, ExecutionStarted):
                shown.append(_Shown(trace_id_of(event.execution_id), event.dag_name))
            telemetry.accept(event)
        _close(telemetry)
    return shown


class _Recorded(msgspec.Struct):
    """A line of a recording; what else is on it is about the recording."""

    frame: msgspec.Raw


def _close(telemetry: OpenTelemetryListener) -> None:
    if not telemetry.close(_TIMEOUT):
        message = f"the listener still held {telemetry.counters.held} events after {_TIMEOUT:.0f} s"
        raise DemoError(message)


@contextmanager
def _quiet(listener: type[ExecutionListener]) -> Iterator[None]:
    """Keeps a listener's expected errors off the terminal: they are counted instead."""
    logger = logging.getLogger(f"constellation_otel.listener.{listener.__name__}")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
