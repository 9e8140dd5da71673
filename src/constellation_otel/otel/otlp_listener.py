"""OtlpListener: executions to an OTLP endpoint, acknowledged, without an application's SDK.

The spans are assembled, encoded and sent by this package; with a journal, none
is lost while the endpoint is away.
"""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from msgspec.structs import replace
from opentelemetry import context as otel_context

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.log import log
from constellation_otel.delivery import AssemblyStage, BufferedListener, DeadLetters, Lane, LossLog, Published
from constellation_otel.delivery.journal import Journal
from constellation_otel.events import ExecutionStarted, ModuleCompleted, ModuleStarted, started_now
from constellation_otel.otel.own_providers import PrivateSignals
from constellation_otel.traces import Assembler, Sampled, sampler_of_environment, span_id_of
from constellation_otel.transports.otlp import OtlpSink, make_resource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.sampling import Sampler

    from constellation_otel.delivery import Position
    from constellation_otel.events import Event
    from constellation_otel.traces import Counters, Span

__all__ = ["OtlpListener"]

_LOGGER: Final = logging.getLogger(__name__)
_SINK: Final = "otlp"
_time_ns: Final = time.time_ns


class OtlpListener(BufferedListener):
    """Sends executions to an OTLP endpoint, as traces, with acknowledgement.

    ``OtlpListener("http://collector:4317", journal="telemetry.db")`` loses no event that
    its journal has, whatever becomes of the collector or of this process: it is delivered
    at least once, and a span that is sent twice is the same span. Without a journal,
    what is held when the process ends is lost, and so is what finds the queue full.

    A callback costs about one append and never raises. What the sampler says of an
    execution when it starts holds for all of its spans. Duration metrics, and log records
    of failures where ``OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN`` asks for them, go to the
    same endpoint through SDK providers of this listener's own; they are as good as those.

    A forked child sends what it executes itself, from memory; the journal stays its
    parent's. At the interpreter's exit, up to five seconds are spent on what is held, and
    one more on metrics and logs.

    With ``OTEL_SDK_DISABLED=true`` callbacks return at once and the journal is not opened.

    Args:
        endpoint: ``http://host:4317``; ``https://`` for TLS. What the
            ``OTEL_EXPORTER_OTLP_*`` variables say where none is given; they also say all
            that is not given here: timeouts, compression, certificates.
        journal: A file that keeps events until the endpoint has their spans.
        protocol: ``grpc`` or ``http/protobuf``; ``OTEL_EXPORTER_OTLP_PROTOCOL``, or else ``grpc``.
        headers: Sent with every request.
        service_name: The resource's ``service.name``; ``OTEL_SERVICE_NAME``, or else ``constellation``.
        sampler: Of traces; what ``OTEL_TRACES_SAMPLER`` says where none is given.
        redact: Rewrites the message of each error before it is kept anywhere.
        settle: Seconds that spans wait for events still on their way: 0 for an engine
            that keeps the order, as the embedded one does.
        max_queue: Events that wait at most, and events that are held at most, open
            executions included.
        max_open: Executions and modules held open at most.
        idle_timeout: Seconds without an event after which an execution is abandoned.
        max_age: Seconds after its first event at which an execution is abandoned.
        max_journal_bytes: The size at which the journal takes no more; new events go to an
            endpoint that is there from memory then, bounded, counted and logged.
        dead_letters: A file for what the endpoint refuses for good.

    Raises:
        ConfigurationError: The endpoint, or a variable, cannot be used.
        JournalError: The journal cannot be used: another process has it, or it is none.
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        journal: str | os.PathLike[str] | None = None,
        protocol: Any = None,
        headers: Mapping[str, str] | None = None,
        service_name: str | None = None,
        sampler: Sampler | None = None,
        redact: Callable[[str], str] | None = None,
        settle: float = 0.0,
        max_queue: int = 65_536,
        max_open: int = 100_000,
        idle_timeout: float = 3_600.0,
        max_age: float = 86_400.0,
        max_journal_bytes: int = 1024 * 1024 * 1024,
        dead_letters: str | os.PathLike[str] | None = None,
    ) -> None:
        # not BufferedListener's own: what leaves here are spans
        super(BufferedListener, self).__init__(redact)
        if max_queue < 1:
            # the worker would refuse it, too, when threads run and files are open
            message = f"max_queue={max_queue!r} must be at least 1"
            raise ValueError(message)
        resource = make_resource(service_name)
        sink = OtlpSink(endpoint, protocol=protocol, resource=resource, headers=headers)
        self._is_enabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
        self._sampler = sampler or sampler_of_environment()
        letters = None if dead_letters is None else DeadLetters(dead_letters)

        new_assembler = partial(
            Assembler,
            settle=settle,
            max_open=max_open,
            idle_timeout=idle_timeout,
            max_age=max_age,
            on_loss=LossLog(f"the source of {type(self).__name__}"),
        )
        # it refuses numbers: before anything is opened
        new_assembler()

        def make_lane(acknowledge: Callable[[Sequence[Position]], None]) -> Lane[Span]:
            # once more in a forked child, in the fork: nothing here has threads or connections
            self._published = Published()
            self._sampled = Sampled(self._sampler, self._signals.observe, max_remembered=max_open)
            self._stage = AssemblyStage(new_assembler(), self._finish_span, forget=self._sampled.forget)
            return Lane(sink, self._stage, acknowledge=acknowledge, max_held=max_queue, dead_letters=letters)

        store = None
        if not self._is_enabled:
            log(_LOGGER, logging.INFO, "OTEL_SDK_DISABLED is set: nothing is sent, and a journal stays as it is")
        elif journal is not None:
            store = Journal(Path(journal), sinks=[_SINK], max_bytes=max_journal_bytes)
        try:
            self._signals = PrivateSignals(
                resource,
                endpoint=None if endpoint is None else sink.endpoint,
                protocol=protocol if endpoint is None else sink.protocol,
                headers=headers,
                made_again=lambda: self._delivery.worker.close_first_at_exit(),  # noqa: PLW0108 - the delivery is made later
            )
            self._signals.watch(self)
            self._start(_SINK, make_lane, store, max_queue, letters, on_tick=self._publish)
        except BaseException:
            if store is not None:
                store.close()
            raise

    @property
    def assembled(self) -> Counters:
        """What has become of the events that were assembled: late, duplicate, abandoned and so on."""
        assembled = self._stage.counters
        return replace(assembled, corrected=assembled.corrected + self.counters.corrected)

    @property
    def open_executions(self) -> int:
        """Executions that have started and not left."""
        return self._stage.open_executions

    @property
    def open_modules(self) -> int:
        """Modules that have started and not ended."""
        return self._stage.open_modules

    def accept(self, event: Event) -> None:
        if self._is_enabled:
            super().accept(event)

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        if not self._is_enabled:
            return
        event = started_now(execution_id, dag_name)
        # here, and not in the worker: module_context needs the answer at once
        has_decided = self._decide(event, otel_context.get_current())
        if not self._put(event) and has_decided:
            self._sampled.forget(execution_id)

    # The two that fire most are written out: two calls less each.

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        if self._is_enabled:
            self._put(ModuleStarted(execution_id, module_id, module_name, _time_ns()))

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        if self._is_enabled:
            self._put(ModuleCompleted(execution_id, module_id, module_name, duration_ms, _time_ns()))

    def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
        """The context in which a module's body runs: its span is the current one.

        Args:
            execution_id: An execution that has started.
            module_id: The module.
            context: The caller's.

        Returns:
            ``context`` itself where the execution is not known.
        """
        decision = self._sampled.decision_of(execution_id)
        return context if decision is None else decision.context_of(span_id_of(execution_id, module_id), context)

    def close(self, timeout: float) -> bool:
        deadline = deadline_of(timeout)
        # metrics get a part of the time of their own: spans that cannot be delivered take all that they are given
        is_delivered = super().close(0.8 * seconds_left(deadline))
        self._publish()
        self._signals.close(seconds_left(deadline))
        return is_delivered

    def _decide(self, event: ExecutionStarted, context: Context) -> bool:
        """Asks the sampler, once for all of the execution's spans.

        Returns:
            Whether it was asked: not where there is an answer already, or the event will be rejected.
        """
        execution_id: object = event.execution_id
        dag_name: object = event.dag_name
        if not isinstance(execution_id, UUID) or not isinstance(dag_name, str):
            return False
        if self._sampled.decision_of(execution_id) is not None:
            return False
        self._sampled.remember(execution_id, self._sampled.decide(execution_id, dag_name, context))
        return True

    def _finish_span(self, span: Span) -> Span | None:
        finished = self._sampled(span)
        if finished is None or self._signals.with_events or not finished.events:
            return finished
        return replace(finished, events=())

    def _publish(self) -> None:
        counters, assembled = self.counters, self._stage.counters
        before, self._published = (
            self._published,
            Published(
                counters.dropped,
                counters.rejected,
                assembled.late,
                assembled.duplicate,
                assembled.abandoned,
                assembled.incomplete_executions,
                assembled.incomplete_modules,
            ),
        )
        self._signals.count(before, self._published)
