"""An application's OpenTelemetry set-up, as the demo's pipelines have it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_traces
from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_traces
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from constellation_otel.errors import ConstellationOtelError
from constellation_otel.otel import Exporters, grpc_options, http_options, is_wanted
from constellation_otel.transports.otlp import make_resource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

    from constellation_otel.transports.otlp import WireProtocol

__all__ = ["Application", "DemoError"]

_SERVICE: Final = "constellation-demo"
_HTTP_PORT: Final = ":4318"


class DemoError(ConstellationOtelError):
    """The demo's telemetry could not be delivered."""


class _Watched(SpanExporter):
    """Counts the spans that an exporter could not deliver; the SDK only logs them."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        # they count also where the exporter raises, as the SDK's older ones over HTTP do
        self.failed += len(spans)
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.failed -= len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class Application:
    """Providers that export over OTLP, without what ``OTEL_METRICS_EXPORTER=none`` and its like for logs leave out.

    Args:
        endpoint: The OTLP endpoint; gRPC unless ``OTEL_EXPORTER_OTLP_PROTOCOL`` or the
            port, 4318, says HTTP.

    Attributes:
        service: The name of the service: ``OTEL_SERVICE_NAME``, or else ``constellation-demo``.
        traces: The tracer provider.
        metrics: The meter provider.
        logs: The logger provider.

    Raises:
        ConfigurationError: The endpoint, or a variable, cannot be used.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        # None lets Exporters read the variable
        is_set = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip()
        by_port: WireProtocol = "http/protobuf" if endpoint.rstrip("/").endswith(_HTTP_PORT) else "grpc"
        exporters = Exporters(endpoint, None if is_set else by_port, None)
        target = exporters.far_side("traces")
        spans: SpanExporter
        if target.protocol == "grpc":
            spans = grpc_traces.OTLPSpanExporter(**grpc_options(target))
        else:
            spans = http_traces.OTLPSpanExporter(**http_options(target))
        metrics = exporters.metrics() if is_wanted("OTEL_METRICS_EXPORTER") else None
        logs = exporters.logs() if is_wanted("OTEL_LOGS_EXPORTER") else None
        self.service = os.environ.get("OTEL_SERVICE_NAME") or _SERVICE
        resource = make_resource(self.service)
        self._spans = _Watched(spans)
        self._span_processor = BatchSpanProcessor(self._spans)
        self._log_processor = None if logs is None else BatchLogRecordProcessor(logs)
        self.traces, self.logs = self._providers(resource)
        readers = [] if metrics is None else [_reader(metrics)]
        self.metrics = MeterProvider(readers, resource=resource, shutdown_on_exit=False)

    def providers_of(self, service: str) -> tuple[TracerProvider, LoggerProvider]:
        """Providers for the spans and log records of another service, which are sent with this one's."""
        return self._providers(make_resource(service))

    def _providers(self, resource: Resource) -> tuple[TracerProvider, LoggerProvider]:
        traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        traces.add_span_processor(self._span_processor)
        logs = LoggerProvider(resource=resource, shutdown_on_exit=False)
        if self._log_processor is not None:
            logs.add_log_record_processor(self._log_processor)
        return traces, logs

    def export(self) -> None:
        """Sends what the SDK holds.

        Raises:
            DemoError: The endpoint did not accept all spans.
        """
        self.traces.force_flush()
        if self._spans.failed:
            message = (
                f"{self._endpoint} did not accept {self._spans.failed} spans;"
                " is an OTLP endpoint listening there, for gRPC (usually 4317) or HTTP (4318)?"
            )
            raise DemoError(message)
        self.metrics.force_flush()
        self.logs.force_flush()

    def shutdown(self) -> None:
        """Stops the SDK's threads."""
        self.traces.shutdown()
        self.metrics.shutdown()
        self.logs.shutdown()


def _reader(exporter: MetricExporter) -> PeriodicExportingMetricReader:
    """Exports when it is told to, and not by itself."""
    return PeriodicExportingMetricReader(exporter, export_interval_millis=float("inf"))
