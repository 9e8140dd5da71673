"""Metrics and failure logs beside the spans that we export ourselves: through SDK providers of our own.

At-least-once is for spans. Durations and log records leave as the OpenTelemetry
SDK sends them, with the same resource and to the same endpoint.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.exporter.otlp.proto.grpc import _log_exporter as grpc_logs
from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc_metrics
from opentelemetry.exporter.otlp.proto.http import _log_exporter as http_logs
from opentelemetry.exporter.otlp.proto.http import metric_exporter as http_metrics
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from constellation_otel._deadline import deadline_of, seconds_left
from constellation_otel._log import RateLimitedLog
from constellation_otel.exception_logs import exception_signals, log_exceptions
from constellation_otel.instruments import Instruments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricsData
    from opentelemetry.sdk.resources import Resource

    from constellation_otel.instruments import Observed
    from constellation_otel.spans import Span

__all__ = ["PrivateSignals"]

_LOGGER: Final = logging.getLogger(__name__)
_EXIT_TIMEOUT: Final = 1.0
# the SDK's type is about text, gRPC's option about a number
_OWN_CONNECTION: Final[Any] = (("grpc.use_local_subchannel_pool", 1),)
"""Of gRPC's channels: a shared connection would be the parent's in a forked child."""


class PrivateSignals:
    """Duration metrics, and log records of failures where they are opted for.

    ``OTEL_METRICS_EXPORTER=none`` and ``OTEL_LOGS_EXPORTER=none`` do without the one or
    the other, ``OTEL_SDK_DISABLED=true`` without both. A log record is made for each
    failed module where ``OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN`` is ``logs`` or ``logs/dup``.

    The interpreter's exit closes this, within a second. In a forked child it does nothing:
    what it holds is the parent's, and the child is to have one of its own.

    Args:
        resource: The spans' own.
        endpoint: An OTLP endpoint, with or without the traces' path; what the standard
            variables say where none is given.
        protocol: ``grpc`` or ``http/protobuf``; what the variables say of each signal, and
            else ``grpc``, where none is given.
        headers: Sent with every request; the variables' where none are given.

    Attributes:
        with_events: Whether exceptions are events of spans.
    """

    def __init__(
        self,
        resource: Resource,
        *,
        endpoint: str | None,
        protocol: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._log = RateLimitedLog()
        self._owner = os.getpid()
        self._is_closed = False
        self.with_events, with_logs = exception_signals()
        self._reader: _Reader | None = None
        self._instruments: Instruments | None = None
        self._processor: BatchLogRecordProcessor | None = None
        self._logger_provider: LoggerProvider | None = None
        far_side = _FarSide(endpoint, protocol, headers)
        if _is_wanted("OTEL_METRICS_EXPORTER"):
            self._reader = _Reader(far_side.metrics())
            self._instruments = Instruments.of(MeterProvider([self._reader], resource=resource, shutdown_on_exit=False))
        if with_logs and _is_wanted("OTEL_LOGS_EXPORTER"):
            self._processor = BatchLogRecordProcessor(far_side.logs())
            self._logger_provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
            self._logger_provider.add_log_record_processor(self._processor)
        self._at_exit = _closer(weakref.ref(self))
        atexit.register(self._at_exit)

    def watch(self, observed: Observed) -> None:
        """Has what is open of it in the metrics, for as long as it lives."""
        if self._instruments is not None:
            self._instruments.observe(observed)

    def observe(self, span: Span, context: Context) -> None:
        """Records a finished span; never raises.

        Args:
            span: The span, with its events.
            context: Has it as the current one: exemplars point at it.
        """
        if self._instruments is not None:
            self._instruments.record(span, context)
        if self._logger_provider is not None:
            log_exceptions(self._logger_provider, span, context)

    def count(self, before: object, now: object) -> None:
        """Adds what counters have gained, as :meth:`Instruments.count` does."""
        if self._instruments is not None:
            self._instruments.count(before, now)

    def close(self, timeout: float) -> bool:
        """Sends what is held, and ends the SDK's threads; once more does nothing.

        Args:
            timeout: Seconds; this returns within them. An export that is on its way then
                is given up, and what is held is lost.

        Returns:
            Whether that has ended in time.
        """
        if self._is_closed or os.getpid() != self._owner:
            return True
        self._is_closed = True
        atexit.unregister(self._at_exit)
        deadline = deadline_of(timeout)
        is_done = True
        if self._reader is not None:
            # half of it at most, so that logs get their part
            left = seconds_left(deadline) if self._processor is None else seconds_left(deadline) / 2
            is_done = self._shut_down(self._reader.shutdown, left)
        if self._processor is not None:
            # its own shutdown takes no timeout
            shutdown = self._processor._batch_processor.shutdown  # noqa: SLF001
            is_done = self._shut_down(shutdown, seconds_left(deadline)) and is_done
        is_in_time = time.monotonic() < deadline
        if not is_in_time:
            message = "metrics and logs were not sent within %.1f s of closing; what they held may be lost"
            self._log.write(_LOGGER, logging.WARNING, "close", message, timeout)
        return is_in_time and is_done

    def _shut_down(self, shutdown: Callable[..., object], timeout: float) -> bool:
        """Whether a part of the SDK has shut down; what it, or an exporter, raises is no business of who closes."""
        try:
            shutdown(timeout_millis=round(1000 * timeout))
        except Exception as error:  # noqa: BLE001 - the SDK's, and its exporters'
            message = "the OpenTelemetry SDK raised while metrics and logs were closed; what they held may be lost"
            self._log.write(_LOGGER, logging.ERROR, type(error).__name__, message, error=error)
            return False
        return True


class _Reader(PeriodicExportingMetricReader):
    """A reader that the SDK starts again in a forked child, and that sends nothing from there."""

    def __init__(self, exporter: MetricExporter) -> None:
        self._owner = os.getpid()
        super().__init__(exporter)

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        if os.getpid() == self._owner:
            super()._receive_metrics(metrics_data, timeout_millis, **kwargs)


class _FarSide:
    """What the SDK's exporters are made with; what is not given they ask the variables for."""

    def __init__(self, endpoint: str | None, protocol: str | None, headers: Mapping[str, str] | None) -> None:
        self._endpoint = None if endpoint is None else endpoint.rstrip("/").removesuffix("/v1/traces")
        self._protocol = protocol
        # gRPC takes no others
        self._headers = None if headers is None else {name.lower(): value for name, value in headers.items()}

    def metrics(self) -> MetricExporter:
        if self._is_grpc("METRICS"):
            return grpc_metrics.OTLPMetricExporter(
                self._endpoint, headers=self._headers, channel_options=_OWN_CONNECTION
            )
        return http_metrics.OTLPMetricExporter(self._url("/v1/metrics"), headers=self._headers)

    def logs(self) -> LogRecordExporter:
        if self._is_grpc("LOGS"):
            return grpc_logs.OTLPLogExporter(self._endpoint, headers=self._headers, channel_options=_OWN_CONNECTION)
        return http_logs.OTLPLogExporter(self._url("/v1/logs"), headers=self._headers)

    def _is_grpc(self, signal: str) -> bool:
        protocol = self._protocol
        for variable in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            protocol = protocol or os.environ.get(variable, "").strip().lower()
        return (protocol or "grpc") == "grpc"

    def _url(self, path: str) -> str | None:
        return None if self._endpoint is None else self._endpoint + path


def _is_wanted(exporter: str) -> bool:
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not is_disabled and os.environ.get(exporter, "").strip().lower() != "none"


def _closer(reference: weakref.ref[PrivateSignals]) -> Callable[[], None]:
    """What the interpreter does at its exit, without keeping the signals alive."""

    def close() -> None:
        signals = reference()
        if signals is not None:
            signals.close(_EXIT_TIMEOUT)

    return close
