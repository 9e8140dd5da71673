"""OpenTelemetryListener: executions into the application's own OpenTelemetry SDK.

The callbacks append events to a queue; one worker assembles them and creates
spans, metrics and logs through the application's providers. What the providers'
exporters then do with them is theirs: delivery is as good as they are.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

from msgspec import Struct
from opentelemetry import _logs, metrics, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Tracer as SdkTracer

from constellation_otel._support.log import RateLimitedLog, log
from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.delivery import LossLog, Worker
from constellation_otel.events import (
    Event,
    EventListener,
    ExecutionStarted,
    ModuleCompleted,
    ModuleStarted,
    remote_parent,
    started_now,
    validated,
)
from constellation_otel.otel.exception_logs import exception_signals, log_exceptions
from constellation_otel.otel.metrics import Instruments
from constellation_otel.otel.sdk_spans import PlainTraces, SdkTraces
from constellation_otel.traces import (
    DAG_NAME,
    EXECUTION_ID,
    MODULE_NAME,
    NOT_TRACED,
    Assembler,
    Decision,
    Span,
    span_id_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry._logs import LoggerProvider
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

__all__ = ["ListenerCounters", "OpenTelemetryListener"]

_LOGGER: Final = logging.getLogger(__name__)
_time_ns: Final = time.time_ns


class ListenerCounters(Struct, frozen=True):
    """What has become of the events so far: ``received = delivered + dropped + rejected + held``.

    Attributes:
        received: Callbacks that were called while there was an SDK to tell.
        delivered: Events that were assembled.
        dropped: Events that found the queue full, or the listener closed.
        rejected: Events that could not be assembled: a value of the wrong type.
        held: Events that are not assembled yet.
        late: Events of executions or modules whose span had left.
        duplicate: Events that repeated a fact that was known.
        corrected: Values that no backend could hold and that were mended or left out.
        executions: Executions whose span has left.
        spans: Spans that have left the assembler, executions and modules, sampled or not.
        abandoned: Executions that were let go without an end.
        failed: Spans that the application's SDK refused by raising.
        incomplete_executions: Executions whose span was emitted without a start or an end that
            never came.
        incomplete_modules: Modules likewise, those that a cancellation left without an end
            included.
    """

    received: int
    delivered: int
    dropped: int
    rejected: int
    held: int
    late: int
    duplicate: int
    corrected: int
    executions: int
    spans: int
    abandoned: int
    failed: int
    incomplete_executions: int = 0
    incomplete_modules: int = 0


class OpenTelemetryListener(EventListener):
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

    Where an error of a module goes is said by ``OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN``
    (OpenTelemetry's semantic conventions for exceptions): an event of its span as a
    rule, a log record instead with ``logs``, both with ``logs/dup``.

    Args:
        tracer_provider: The global one where none is given.
        meter_provider: The global one where none is given.
        logger_provider: The global one where none is given.
        redact: Rewrites the message of each error before it is kept anywhere.
        settle: Seconds that spans wait for events still on their way: 0 for an engine
            that keeps the order, as the embedded one does.
        max_queue: Events held at most.
        max_open: Executions and modules held open at most.
        idle_timeout: Seconds without an event after which an execution is abandoned.
        max_age: Seconds after its start at which an execution is abandoned.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        *,
        redact: Callable[[str], str] | None = None,
        settle: float = 0.0,
        max_queue: int = 65_536,
        max_open: int = 100_000,
        idle_timeout: float = 3_600.0,
        max_age: float = 86_400.0,
    ) -> None:
        super().__init__(redact)
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._logger_provider = logger_provider
        self._max_open = max_open
        on_loss = LossLog(f"the source of {type(self).__name__}")
        self._new_assembler: Callable[[], Assembler] = lambda: Assembler(
            settle=settle, max_open=max_open, idle_timeout=idle_timeout, max_age=max_age, on_loss=on_loss
        )
        self._exceptions_as_events, self._exceptions_as_logs = exception_signals()
        self._log = RateLimitedLog()
        self._start_afresh()
        self._worker = Worker(
            self._handle,
            name=type(self).__name__,
            max_queue=max_queue,
            tick=self._tick,
            finish=self._finish,
            forked=self._start_afresh,
        )
        self._put = self._worker.put
        self._is_listening()

    def _start_afresh(self) -> None:
        """What is known of executions is this process's own, and providers may be other ones in a child."""
        self._traces: SdkTraces | PlainTraces | None = None
        self._tracing_known = False
        self._instruments: Instruments | None = None
        self._metrics_known = False
        self._active = False
        self._assembler = self._new_assembler()
        # callbacks and the worker share it by single steps of a dict. The callbacks add max_open at most; beyond
        # that the worker does for what is open, and is bounded, too
        self._decisions: dict[UUID, Decision] = {}
        self._failed = self._corrected = 0
        self._published = ListenerCounters(*[0] * len(ListenerCounters.__struct_fields__))

    @property
    def counters(self) -> ListenerCounters:
        """What has become of the events so far."""
        queue, assembled = self._worker.counters, self._assembler.counters
        return ListenerCounters(
            received=queue.received,
            delivered=queue.delivered,
            dropped=queue.dropped,
            rejected=queue.rejected,
            held=queue.held,
            late=assembled.late,
            duplicate=assembled.duplicate,
            corrected=self._corrected + assembled.corrected,
            executions=assembled.executions,
            spans=assembled.spans,
            abandoned=assembled.abandoned,
            failed=self._failed,
            incomplete_executions=assembled.incomplete_executions,
            incomplete_modules=assembled.incomplete_modules,
        )

    @property
    def open_executions(self) -> int:
        """Executions that have started and not left."""
        return self._assembler.open_executions

    @property
    def open_modules(self) -> int:
        """Modules that have started and not ended."""
        return self._assembler.open_modules

    def accept(self, event: Event) -> None:
        """Takes an event that a source has read, with the time that it carries.

        The callbacks are for an engine in this process; this is for events that have
        travelled. Costs as little, and never raises.
        """
        if self._active or self._is_listening():
            self._put(event)

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        if not self._is_listening():
            return
        event = started_now(execution_id, dag_name)
        # here, and not in the worker: module_context needs the answer at once
        has_decided = len(self._decisions) < self._max_open and self._decide(event, otel_context.get_current())
        if not self._put(event) and has_decided:
            self._decisions.pop(execution_id, None)

    # The two that fire most are written out: a call less each.

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        if self._active:
            self._put(ModuleStarted(execution_id, module_id, module_name, _time_ns()))

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        if self._active:
            self._put(ModuleCompleted(execution_id, module_id, module_name, duration_ms, _time_ns()))

    def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
        if self._active:
            super().on_module_failed(execution_id, module_id, module_name, error)

    def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
        """The context in which a module's body runs: its span is the current one.

        The span itself is created when the module has ended; its ids are known before.

        Args:
            execution_id: An execution that has started.
            module_id: The module.
            context: The caller's.

        Returns:
            ``context`` itself where the execution is not known, or not traced at all.
        """
        decision = self._decisions.get(execution_id)
        return context if decision is None else decision.context_of(span_id_of(execution_id, module_id), context)

    def flush(self, timeout: float) -> bool:
        """Waits until what was called so far has been handed to the application's SDK.

        What its exporters hold is for its own ``force_flush``.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether all of it has been handed over.
        """
        return self._worker.flush(timeout)

    def close(self, timeout: float) -> bool:
        """Hands over what is held, abandons what is open, and ends the worker.

        Callbacks after that are dropped and counted. The providers are not shut down.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether everything has been handed over.
        """
        return self._worker.close(timeout)

    def _decide(self, event: ExecutionStarted, context: Context) -> bool:
        """Asks the sampler, once for all of the execution's spans.

        Returns:
            Whether it was asked: not where there is an answer already.
        """
        execution_id: object = event.execution_id
        if self._traces is None or not isinstance(execution_id, UUID) or execution_id in self._decisions:
            return False
        decision = self._decision(execution_id, event.dag_name, context)
        # another thread may have been faster
        return self._decisions.setdefault(execution_id, decision) is decision

    def _decision(self, execution_id: UUID, dag_name: str, context: Context) -> Decision:
        if self._traces is None:
            return NOT_TRACED
        try:
            return self._traces.decide(execution_id, dag_name, context)
        except Exception as error:  # noqa: BLE001 - a sampler of the application's; a callback may not raise
            message = "the sampler raised for execution %s; the execution is not traced"
            self._log.write(_LOGGER, logging.ERROR, "sampler", message, execution_id, error=error)
            return NOT_TRACED

    def _is_listening(self) -> bool:
        """Whether there is anyone to tell; looks for providers until they are real.

        Two threads doing so at once is harmless.
        """
        if not self._tracing_known:
            self._try("a tracer provider raised; it is asked again when the next execution starts", self._find_traces)
        if not self._metrics_known:
            self._try("a meter provider raised; it is asked again when the next execution starts", self._find_meter)
        self._active = self._traces is not None or self._instruments is not None
        return self._active

    def _try(self, message: str, step: Callable[..., object], *args: object) -> bool:
        """Takes a step through the application's OpenTelemetry, whose failure is only its own.

        Returns:
            Whether it went well; otherwise ``message`` is logged.
        """
        try:
            step(*args)
        except Exception as error:  # noqa: BLE001 - the application's providers, processors, instruments
            self._log.write(_LOGGER, logging.ERROR, message, message, error=error)
            return False
        return True

    def _find_traces(self) -> None:
        provider = self._tracer_provider or trace.get_tracer_provider()
        if not isinstance(provider, trace.ProxyTracerProvider):
            self._traces = self._traces_of(provider)
            self._tracing_known = True
            self._worker.close_first_at_exit()

    def _find_meter(self) -> None:
        provider = self._meter_provider or metrics.get_meter_provider()
        # the class of the API's proxy has no public name
        if type(provider).__name__ != "_ProxyMeterProvider":
            self._instruments = Instruments.of(provider)
            if self._instruments is not None:
                self._instruments.observe(self)
            self._metrics_known = True
            self._worker.close_first_at_exit()

    def _traces_of(self, provider: TracerProvider) -> SdkTraces | PlainTraces | None:
        tracer = provider.get_tracer(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)
        if isinstance(tracer, SdkTracer):
            return SdkTraces(tracer)
        if isinstance(tracer, trace.NoOpTracer):
            return None
        log(
            _LOGGER,
            logging.WARNING,
            "%s is not the OpenTelemetry SDK's tracer provider: spans get ids of its own choosing, and a module's"
            " own work does not nest under its span",
            type(provider).__qualname__,
        )
        return PlainTraces(tracer, self._max_open)

    def _handle(self, event: Event) -> None:
        try:
            spans = self._add(event)
        finally:
            if isinstance(event, ExecutionStarted):
                self._forget_unless_open(event.execution_id)
        for span in spans:
            self._emit(span)

    def _add(self, event: Event) -> list[Span]:
        """Takes an event in; the spans that are emitted by it."""
        event, corrected = validated(event)
        self._corrected += len(corrected)
        for reason in corrected:
            message = "of an event something is left out or replaced: %s"
            self._log.write(_LOGGER, logging.WARNING, "corrected", message, reason)
        if isinstance(event, ExecutionStarted):
            # where the callback could not: the event has travelled, or the SDK or room for an answer came later
            self._decide(event, remote_parent(event.traceparent, event.tracestate) or Context())
        return self._assembler.add(event, time.monotonic_ns())

    def _forget_unless_open(self, execution_id: object) -> None:
        """Of a start that was late, or refused, no span will come that takes the decision away."""
        if isinstance(execution_id, UUID) and not self._assembler.is_open(execution_id):
            self._decisions.pop(execution_id, None)

    def _tick(self) -> float | None:
        now_ns = time.monotonic_ns()
        for span in self._assembler.advance(now_ns):
            self._emit(span)
        if self._instruments is not None:
            before, self._published = self._published, self.counters
            self._try("a counter raised", self._instruments.count, before, self._published)
        deadline_ns = self._assembler.deadline_ns
        return None if deadline_ns is None else max(0.0, (deadline_ns - now_ns) / 1e9)

    def _finish(self) -> None:
        for execution_id in self._assembler.to_finish(abandon=True):
            for span in self._finished(execution_id):
                self._emit(span)
        self._tick()

    def _finished(self, execution_id: UUID) -> list[Span]:
        try:
            return self._assembler.finish_one(execution_id)
        except Exception as error:  # noqa: BLE001 - a defect, which must cost one execution and no more
            message = "execution %s cannot be finished, and is left out"
            self._log.write(_LOGGER, logging.ERROR, "finish", message, execution_id, error=error)
            return []

    def _emit(self, span: Span) -> None:
        decision = self._decision_of(span)
        if self._traces is not None:
            message = "the application's OpenTelemetry SDK raised for a span; it is lost, the others go on"
            emit = partial(self._traces.emit, with_events=self._exceptions_as_events)
            self._failed += not self._try(message, emit, span, decision)
        context = decision.context_of(span.span_id, Context())
        if self._exceptions_as_logs and span.events:
            provider = self._logger_provider or _logs.get_logger_provider()
            self._try("the application's logger raised", log_exceptions, provider, span, context)
        if self._instruments is not None:
            self._try("a histogram raised", self._instruments.record, span, context)

    def _decision_of(self, span: Span) -> Decision:
        """What was decided when the execution started; decided now where its start was never told."""
        execution_id = UUID(str(span.attributes[EXECUTION_ID]))
        decision = self._decisions.get(execution_id)
        if decision is None:
            decision = self._decision(execution_id, str(span.attributes[DAG_NAME]), Context())
            decision = self._decisions.setdefault(execution_id, decision)
        if MODULE_NAME not in span.attributes:
            # an execution's own span is its last
            self._decisions.pop(execution_id, None)
        return decision
