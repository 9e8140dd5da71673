"""Metrics and failure logs beside the spans that we export ourselves: through SDK providers of our own.

At-least-once is for spans. Durations and log records are sent by the OpenTelemetry
SDK, with the same resource and to the same endpoint.
"""

from __future__ import annotations

import logging
import netrc  # noqa: F401 - the first export would: a fork during that leaves it half made in the child
import os
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
from opentelemetry.exporter.otlp.proto.grpc import _log_exporter as grpc_logs
from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc_metrics
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http import _log_exporter as http_logs
from opentelemetry.exporter.otlp.proto.http import metric_exporter as http_metrics
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.environment import configured
from constellation_otel._support.exit import call_at_exit, exit_hook, forget_at_exit
from constellation_otel._support.fork import after_fork_in_child
from constellation_otel._support.log import RateLimitedLog, clean
from constellation_otel.errors import ConfigurationError
from constellation_otel.otel import _sdk_internals as internals
from constellation_otel.otel.exception_logs import exception_signals, log_exceptions
from constellation_otel.otel.metrics import Instruments
from constellation_otel.transports.otlp import credentials_of, far_side_of, proxy_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource

    from constellation_otel.otel.metrics import Observed
    from constellation_otel.traces import Decision, Span
    from constellation_otel.transports.otlp import FarSide, Signal

__all__ = ["Exporters", "PrivateSignals", "grpc_options", "http_options", "is_wanted"]

_LOGGER: Final = logging.getLogger(__name__)
_EXIT_TIMEOUT: Final = 1.0
# the SDK's type is about text, gRPC's option about a number
_OWN_CONNECTION: Final[Any] = ("grpc.use_local_subchannel_pool", 1)
"""Of gRPC's channels: a shared connection would be the parent's in a forked child."""
_MAX_INTERVAL: Final = 86_400_000


class PrivateSignals:
    """Duration metrics, and log records of failures where they are opted for.

    ``OTEL_METRICS_EXPORTER=none`` and ``OTEL_LOGS_EXPORTER=none`` do without the one or
    the other, ``OTEL_SDK_DISABLED=true`` without both. A log record is made for each
    failed module where ``OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN`` is ``logs`` or ``logs/dup``.

    The end of the process closes this, within a second. In a forked child it makes providers
    of its own when there is something to record, and sends nothing of its parent's.

    Args:
        resource: The spans' own.
        endpoint: An OTLP endpoint, with or without the traces' path; what the standard
            variables say where none is given.
        protocol: ``grpc`` or ``http/protobuf``; what the variables say of each signal, and
            else ``grpc``, where none is given.
        headers: Sent with every request; the variables' where none are given.
        made_again: Called when a forked child has providers of its own, which have to outlive
            what records with them.

    Attributes:
        with_events: Whether exceptions are events of spans.

    Raises:
        ConfigurationError: A variable cannot be used.
    """

    def __init__(
        self,
        resource: Resource,
        *,
        endpoint: str | None,
        protocol: str | None = None,
        headers: Mapping[str, str] | None = None,
        made_again: Callable[[], None] = lambda: None,
    ) -> None:
        self._log = RateLimitedLog()
        self._is_closed = False
        self.with_events, with_logs = exception_signals()
        self._resource = resource
        self._exporters = Exporters(endpoint, protocol, headers)
        clean(*internals.THEIR_LOGGERS)
        self._has_metrics = is_wanted("OTEL_METRICS_EXPORTER")
        self._has_logs = with_logs and is_wanted("OTEL_LOGS_EXPORTER")
        self._observed: weakref.WeakSet[Observed] = weakref.WeakSet()
        self._made_again = made_again
        self._inherited: Any = None
        self._at_exit = exit_hook(self._close_at_exit)
        self._make_providers()
        after_fork_in_child(self._forget_providers)

    def _make_providers(self) -> None:
        self._reader: _Reader | None = None
        self._instruments: Instruments | None = None
        self._processor: BatchLogRecordProcessor | None = None
        self._logger_provider: LoggerProvider | None = None
        self._is_made = True
        if self._is_closed:
            return
        if self._has_logs:
            _check_interval("OTEL_BLRP_SCHEDULE_DELAY")
            with configured("OTEL_BLRP_", "OTEL_LOGRECORD_", "OTEL_ATTRIBUTE_", "OTEL_EXPORTER_", "OTEL_PYTHON_"):
                self._logger_provider = LoggerProvider(resource=self._resource, shutdown_on_exit=False)
                self._processor = BatchLogRecordProcessor(self._exporters.logs())
            self._logger_provider.add_log_record_processor(self._processor)
        if self._has_metrics:
            try:
                self._reader, self._instruments = _metrics(self._exporters, self._resource)
            except ConfigurationError:
                if self._processor is not None:
                    # its thread would run on
                    internals.shut_down(self._processor, 0)
                raise
        if self._instruments is not None:
            for observed in list(self._observed):
                self._instruments.observe(observed)
        call_at_exit(self._at_exit)

    def _make_providers_again(self) -> None:
        try:
            self._make_providers()
        except Exception as error:  # noqa: BLE001 - of the SDK; spans are sent all the same
            message = "metrics and logs of this forked process are not sent"
            self._log.write(_LOGGER, logging.ERROR, "made again", message, error=error)
        self._made_again()

    def _forget_providers(self) -> None:
        # kept, since letting go of exporters would close the parent's connections
        self._inherited = (self._inherited, self._reader, self._processor)
        if self._processor is not None:
            internals.leave_to_parent(self._processor)
        self._reader = self._instruments = self._processor = self._logger_provider = None
        self._is_made = False

    def watch(self, observed: Observed) -> None:
        """Has what is open of it in the metrics, for as long as it lives."""
        self._observed.add(observed)
        if self._instruments is not None:
            self._instruments.observe(observed)

    def observe(self, span: Span, decision: Decision) -> None:
        """Records a finished span; never raises.

        Args:
            span: The span, with its events.
            decision: What was decided on its execution.
        """
        if not self._is_made:
            self._make_providers_again()
        if self._instruments is not None:
            self._instruments.record(span, decision)
        if self._logger_provider is not None:
            log_exceptions(self._logger_provider, span, decision)

    def count(self, gained: Mapping[str, int]) -> None:
        """Adds what counters have gained, as :meth:`Instruments.count` does."""
        if not self._is_made and any(gained.values()):
            self._make_providers_again()
        if self._instruments is not None:
            self._instruments.count(gained)

    def close(self, timeout: float) -> bool:
        """Sends what is held, and ends the SDK's threads; once more does nothing.

        Args:
            timeout: Seconds; this returns within them. An export that is on its way then
                is given up, and what is held is lost.

        Returns:
            Whether that has ended in time.
        """
        if self._is_closed:
            return True
        self._is_closed = True
        forget_at_exit(self._at_exit)
        if self._reader is None and self._processor is None:
            return True
        deadline = deadline_of(timeout)
        is_done = True
        if self._reader is not None:
            # half of it at most, so that logs get their part
            left = seconds_left(deadline) if self._processor is None else seconds_left(deadline) / 2
            is_done = self._shut_down(self._reader.shutdown, left)
        if self._processor is not None:
            shutdown = partial(internals.shut_down, self._processor)
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

    def _close_at_exit(self) -> None:
        self.close(_EXIT_TIMEOUT)


class _Reader(internals.NoThreadAfterFork, PeriodicExportingMetricReader):
    """A reader whose thread is its own process's."""


class Exporters:
    """Makes the SDK's exporters from each signal's settings, as ``far_side_of`` has read them.

    Raises:
        ConfigurationError: An argument, or a variable, cannot be used.
    """

    def __init__(self, endpoint: str | None, protocol: str | None, headers: Mapping[str, str] | None) -> None:
        self._endpoint = None if endpoint is None else endpoint.rstrip("/").removesuffix("/v1/traces")
        self._protocol = protocol
        self._headers = headers

    def metrics(self) -> MetricExporter:
        far_side = self.far_side("metrics")
        if far_side.protocol == "grpc":
            return grpc_metrics.OTLPMetricExporter(**grpc_options(far_side))
        return http_metrics.OTLPMetricExporter(**http_options(far_side))

    def logs(self) -> LogRecordExporter:
        far_side = self.far_side("logs")
        if far_side.protocol == "grpc":
            return grpc_logs.OTLPLogExporter(**grpc_options(far_side))
        return http_logs.OTLPLogExporter(**http_options(far_side))

    def far_side(self, signal: Signal) -> FarSide:
        return far_side_of(
            self._endpoint,
            signal=signal,
            protocol=cast("Any", self._protocol),
            headers=self._headers,
            compression=None,
            timeout=None,
            certificate=None,
            client_key=None,
            client_certificate=None,
        )


def grpc_options(far_side: FarSide) -> dict[str, Any]:
    """What the SDK's exporters over gRPC are made with, so that they read nothing themselves."""
    is_secure = far_side.endpoint.scheme == "https"
    return {
        "endpoint": far_side.url,
        "insecure": not is_secure,
        "credentials": credentials_of(far_side) if is_secure else None,
        "headers": far_side.headers,
        "timeout": far_side.timeout,
        "compression": grpc.Compression.Gzip if far_side.is_zipped else grpc.Compression.NoCompression,
        "channel_options": (_OWN_CONNECTION, *proxy_options(far_side)),
    }


def http_options(far_side: FarSide) -> dict[str, Any]:
    """What the SDK's exporters over HTTP are made with, so that they read nothing themselves."""
    return {
        "endpoint": far_side.url,
        "headers": far_side.headers,
        "timeout": far_side.timeout,
        "compression": Compression.Gzip if far_side.is_zipped else Compression.NoCompression,
        "certificate_file": far_side.certificate,
        "client_key_file": far_side.client_key,
        "client_certificate_file": far_side.client_certificate,
    }


def _metrics(exporters: Exporters, resource: Resource) -> tuple[_Reader, Instruments | None]:
    _check_interval("OTEL_METRIC_EXPORT_INTERVAL")
    with configured("OTEL_METRIC", "OTEL_EXPORTER_", "OTEL_PYTHON_"):
        exporter = exporters.metrics()
        # reads the rest of the variables, before the reader has a thread
        MeterProvider(resource=resource, shutdown_on_exit=False)
        reader = _Reader(exporter)
    return reader, Instruments.of(MeterProvider([reader], resource=resource, shutdown_on_exit=False))


def _check_interval(variable: str) -> None:
    """Refuses an interval, in milliseconds, at which the SDK's thread would end by an exception."""
    value = os.environ.get(variable, "")
    try:
        interval = float(value)
    except ValueError:
        # the SDK warns and takes its default
        return
    if not 0 < interval <= _MAX_INTERVAL:
        message = f"{variable} is {value!r}; a positive number of milliseconds is needed, {_MAX_INTERVAL} at most"
        raise ConfigurationError(message)


def is_wanted(exporter: str) -> bool:
    """Whether a signal is to be sent: its variable, as ``OTEL_METRICS_EXPORTER``, is not ``none``."""
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not is_disabled and os.environ.get(exporter, "").strip().lower() != "none"
