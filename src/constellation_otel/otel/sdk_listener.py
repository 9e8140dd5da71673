"""OpenTelemetryListener: executions into the application's own OpenTelemetry SDK.

The callbacks append events to a queue; one worker assembles them and hands spans,
metrics and logs to the application's providers. What the providers' exporters then
do with them is their business: delivery is as good as they are.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk.trace import Tracer as SdkTracer

from constellation_otel._support.log import RateLimitedLog, log
from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.otel import _sdk_internals as internals
from constellation_otel.otel.exception_logs import exception_signals, log_exceptions
from constellation_otel.otel.metrics import Instruments
from constellation_otel.otel.sdk_spans import PlainTraces, Recorded, SdkSink, SdkTraces
from constellation_otel.otel.span_listener import SpanListener
from constellation_otel.traces import without_exceptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry._logs import LoggerProvider
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from constellation_otel.otel.span_listener import ExecutionAttributes
    from constellation_otel.traces import Decider, Decision, Span

__all__ = ["OpenTelemetryListener"]

_LOGGER: Final = logging.getLogger(__name__)


class OpenTelemetryListener(SpanListener[Recorded]):
    """Turns executions into traces, metrics and logs of the application's OpenTelemetry SDK.

    ``Constellation(listener=OpenTelemetryListener())`` is all there is to do. An
    execution is a span, its modules are its children; what a module's body does
    nests under the module's span, where the engine asks :meth:`module_context`.

    The providers may be set before or after this is made. While there is none, or
    with ``OTEL_SDK_DISABLED=true``, callbacks return at once. The sampler is asked
    once for an execution, in :meth:`on_execution_start`, so that traces are whole.

    A callback costs about one append and never raises; what it appends is handled by
    one daemon thread. The queue is bounded: what finds it full is dropped, counted
    and logged. A forked child starts with an empty queue and a thread of its own.
    At the interpreter's exit, up to 5 seconds are spent on what is held.

    ``OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN`` (OpenTelemetry's semantic conventions for
    exceptions) says where a module's error goes: it is an event of the module's span by
    default, a log record instead with ``logs``, both with ``logs/dup``.

    Args:
        tracer_provider: The global one where none is given.
        meter_provider: The global one where none is given.
        logger_provider: The global one where none is given.
        attributes: Gives further attributes of an execution's span (a tenant, a queue): a callable that is given the
            execution's start event and the caller's context. Called in :meth:`on_execution_start`; what it raises
            is logged, and 128 of them are kept.
        redact: Rewrites the message of each error before it is kept anywhere.
        settle: Seconds that spans wait for events still on their way: 0 for an engine
            that keeps the order, as the embedded one does.
        max_queue: Events that wait at most.
        max_open: Executions and modules held open at most.
        idle_timeout: Seconds without an event after which an execution is abandoned.
        max_age: Seconds after its first event at which an execution is abandoned.

    Attributes:
        with_events: Whether exceptions are events of spans.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        *,
        attributes: ExecutionAttributes | None = None,
        redact: Callable[[str], str] | None = None,
        settle: float = 0.0,
        max_queue: int = 65_536,
        max_open: int = 100_000,
        idle_timeout: float = 3_600.0,
        max_age: float = 86_400.0,
    ) -> None:
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._logger_provider = logger_provider
        self._max_open = max_open
        self.with_events, self._exceptions_as_logs = exception_signals()
        self._spans = SdkSink()
        self._providers_log = RateLimitedLog()
        super().__init__(
            self._spans,
            settle=settle,
            max_open=max_open,
            idle_timeout=idle_timeout,
            max_age=max_age,
            attributes=attributes,
            redact=redact,
            max_queue=max_queue,
        )
        self._is_listening()

    def _decider(self) -> Decider | None:
        # afresh, also in a forked child, where the providers may be other ones
        self._spans.traces, self._spans.failed = None, 0
        self._instruments: Instruments | None = None
        self._tracing_known = self._metrics_known = self._is_active = False
        return None

    def _as_items(self, spans: Sequence[Span]) -> Sequence[Recorded]:
        execution_id = spans[0].execution_id
        decision = None if execution_id is None else self._sampling.recall(execution_id)
        if decision is None or not decision.is_recorded:
            return ()
        if not self.with_events:
            spans = without_exceptions(spans)
        return [Recorded(span, decision) for span in spans]

    def _observer(self) -> OpenTelemetryListener:
        return self

    @property
    def failed(self) -> int:
        """Spans for which the application's SDK raised."""
        return self._spans.failed

    def flush(self, timeout: float) -> bool:
        """Waits until the events so far have been handed to the application's SDK.

        Executions that are still open are not waited for. What the SDK's exporters hold is
        for its own ``force_flush``.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether all of it has been handed over.
        """
        return super().flush(timeout)

    def close(self, timeout: float) -> bool:
        """Hands over what is held, abandons what is open, and ends the worker.

        Callbacks after that are dropped and counted. The providers are not shut down.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether everything has been handed over.
        """
        return super().close(timeout)

    def observe(self, span: Span, decision: Decision) -> None:
        """Gives a span to the application's metrics and logs; called in the worker's thread.

        Args:
            span: The span, with its events.
            decision: What was decided on its execution.
        """
        if self._exceptions_as_logs and span.events:
            provider = self._logger_provider or _logs.get_logger_provider()
            self._try("the application's logger raised", log_exceptions, provider, span, decision)
        if self._instruments is not None:
            self._try("the application's histogram raised", self._instruments.record, span, decision)

    def count(self, gained: Mapping[str, int]) -> None:
        """Gives the application's metrics how the counters have grown; called in the worker's thread."""
        if self._instruments is not None:
            self._try("the application's counters raised", self._instruments.count, gained)

    def _on_tick(self) -> None:
        super()._on_tick()
        gained = self._gained()
        if gained:
            self.count(gained)

    def _also_counted(self) -> Mapping[str, int]:
        return {"failed": self._spans.failed}

    def _is_listening(self) -> bool:
        """Whether any provider takes what callbacks say; looks for providers until they are real.

        Two threads doing so at once is harmless.
        """
        if not self._tracing_known:
            self._try("the tracer provider raised; it is asked again when the next execution starts", self._find_traces)
        if not self._metrics_known:
            self._try("the meter provider raised; it is asked again when the next execution starts", self._find_meter)
        self._is_active = self._spans.traces is not None or self._instruments is not None
        return self._is_active

    def _try(self, message: str, step: Callable[..., object], *args: object) -> bool:
        """Takes a step through the application's OpenTelemetry, whose failure is only its own.

        Returns:
            Whether it went well; otherwise ``message`` is logged.
        """
        try:
            step(*args)
        except Exception as error:  # noqa: BLE001 - the application's providers, processors, instruments
            self._providers_log.write(_LOGGER, logging.ERROR, message, message, error=error)
            return False
        return True

    def _find_traces(self) -> None:
        provider = self._tracer_provider or trace.get_tracer_provider()
        if not isinstance(provider, trace.ProxyTracerProvider):
            traces = self._traces_of(provider)
            self._spans.traces = traces
            self._sampling.decider = None if traces is None else traces.decide
            self._tracing_known = True
            self._pipeline.worker.close_first_at_exit()

    def _find_meter(self) -> None:
        provider = self._meter_provider or metrics.get_meter_provider()
        if not internals.is_proxy(provider):
            self._instruments = Instruments.of(provider)
            if self._instruments is not None:
                self._instruments.observe(self)
            self._metrics_known = True
            self._pipeline.worker.close_first_at_exit()

    def _traces_of(self, provider: TracerProvider) -> SdkTraces | PlainTraces | None:
        tracer = provider.get_tracer(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)
        if isinstance(tracer, SdkTracer):
            return SdkTraces(tracer)
        if isinstance(tracer, trace.NoOpTracer):
            return None
        log(
            _LOGGER,
            logging.WARNING,
            "%s is not the OpenTelemetry SDK's tracer provider: it chooses the spans' ids itself, and the work"
            " of a module's body does not nest under the module's span",
            type(provider).__qualname__,
        )
        return PlainTraces(tracer, self._max_open)
