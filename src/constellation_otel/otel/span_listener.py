"""What the two span listeners share: executions are sampled, assembled and measured; how a span goes out is theirs."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from msgspec.structs import replace
from opentelemetry import context as otel_context

from constellation_otel.bodies import Bodies
from constellation_otel.delivery import BufferedListener, LossLog, TraceAssembly
from constellation_otel.events import (
    Budget,
    EventListener,
    ExecutionStarted,
    ModuleCompleted,
    ModuleStarted,
    clean_attributes,
    shown,
    started_now,
)
from constellation_otel.traces import Assembler, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from opentelemetry.context import Context
    from opentelemetry.util.types import AttributeValue

    from constellation_otel.delivery import AssemblyCounters, SpanObserver
    from constellation_otel.events import Event
    from constellation_otel.traces import Decider, Span

__all__ = ["ExecutionAttributes", "SpanListener"]

_LOGGER: Final = logging.getLogger(__name__)
_COUNTED: Final = ("late", "duplicate", "abandoned", "incomplete_executions", "incomplete_modules")
"""What of the assembly is a metric."""
_time_ns: Final = time.time_ns

ExecutionAttributes: TypeAlias = "Callable[[ExecutionStarted, Context], Mapping[str, AttributeValue]]"
"""Given an execution's start and its caller's context, what its span has besides."""

T = TypeVar("T")
"""What the sink is sent for a span."""


class SpanListener(BufferedListener[T]):
    """Turns executions into spans for a sink.

    What the sampler says of an execution when it starts holds for all of its spans, and for
    what its modules do. Where the sampler raises, the execution is not traced, and that is logged.

    Args:
        sink: Takes what :meth:`_as_items` makes of spans.
        settle: Seconds that spans wait for events still on their way.
        max_open: Executions and modules held open at most.
        idle_timeout: Seconds without an event after which an execution is abandoned.
        max_age: Seconds after its first event at which an execution is abandoned.
        attributes: Gives attributes of an execution's span; called in :meth:`on_execution_start`.
        **options: As :class:`~constellation_otel.delivery.BufferedListener` has them.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        sink: Any,
        *,
        settle: float,
        max_open: int,
        idle_timeout: float,
        max_age: float,
        attributes: ExecutionAttributes | None = None,
        **options: Any,
    ) -> None:
        self._attributes = attributes
        self._limits = {"settle": settle, "max_open": max_open, "idle_timeout": idle_timeout, "max_age": max_age}
        self._loss_log = LossLog(f"the source of {type(self).__name__}")
        # a subclass says otherwise for as long as nothing takes what callbacks say
        self._is_active = True
        # it refuses numbers: before anything is opened
        self._assembler(Sampling(None))
        super().__init__(sink, **options)

    def _assembler(self, sampling: Sampling) -> Assembler:
        return Assembler(**self._limits, sampling=sampling, on_loss=self._loss_log)  # type: ignore[arg-type] # by name

    def _decider(self) -> Decider | None:
        """What decides on executions; ``None`` while nothing does."""
        raise NotImplementedError

    def _as_items(self, spans: Sequence[Span]) -> Sequence[T]:
        """What the sink is sent for spans of one execution that were made together."""
        raise NotImplementedError

    def _observer(self) -> SpanObserver:
        """Sees every span, and the counters."""
        raise NotImplementedError

    def _new_transform(self) -> TraceAssembly[T]:
        # once more in a forked child, in the fork: what is known of executions is a process's own
        self._published: Counter[str] = Counter()
        max_open = int(self._limits["max_open"])
        self._sampling = Sampling(self._decider(), max_remembered=max_open)
        self._bodies = Bodies(self._sampling, max_open, self._redact)
        self._decisions, self._details = self._sampling.decisions, self._waiting.details
        if type(self).module_context is BufferedListener.module_context:
            # a call less for each module
            self.module_context = self._bodies.context_of  # type: ignore[method-assign] # as the method has it
        self._assembly_of = TraceAssembly(
            self._assembler(self._sampling),
            self._sampling,
            self._as_items,
            observer=self._observer(),
            tracks=self._tracks,
        )
        return self._assembly_of

    def _new_bodies(self) -> Bodies:
        # made with what assembles
        return self._bodies

    def _assembly(self) -> AssemblyCounters:
        return replace(self._assembly_of.counters)

    @property
    def open_executions(self) -> int:
        """Executions that have started and not ended."""
        return self._assembly_of.open_executions

    @property
    def open_modules(self) -> int:
        """Modules that have started and not ended."""
        return self._assembly_of.open_modules

    def accept(self, event: Event) -> None:
        """Takes an event that a source has read, with the time that it carries.

        The callbacks are for an engine in this process; this is for events that have
        travelled. Costs as little, and never raises.
        """
        if self._is_active or self._is_listening():
            self._worker.put(event)

    def _is_listening(self) -> bool:
        """Whether anything takes what callbacks say."""
        return self._is_active

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        if not self._is_listening():
            return
        event, context = started_now(execution_id, dag_name), otel_context.get_current()
        # here, and not in the worker: module_context needs the answer at once
        has_decided = self._decide(execution_id, dag_name, context)
        if self._attributes is not None:
            event = self._with_attributes(event, context)
        if not self._worker.put(event) and has_decided:
            self._sampling.forget(execution_id)

    def _with_attributes(self, event: ExecutionStarted, context: Context) -> ExecutionStarted:
        """The start of an execution with what the user's callable gives for its span; never raises."""
        give: Any = self._attributes
        log, said = self._log, shown(give)
        try:
            given = give(event, context)
            attributes, dropped = clean_attributes({} if given is None else given, Budget())
        except Exception as error:  # noqa: BLE001 - the user's own code
            message = "attributes=%s raised for execution %s, whose span goes without them"
            log.write(_LOGGER, logging.ERROR, "attributes", message, said, event.execution_id, error=error)
            return event
        if dropped:
            message = (
                "attributes=%s gave %d that cannot be kept, of execution %s: a value is a text, a bool, a number or a"
                " sequence of these, and 128 are kept"
            )
            log.write(_LOGGER, logging.WARNING, "dropped", message, said, dropped, event.execution_id)
        return replace(event, attributes=attributes or None)

    # The two that fire most are written out, down to what `Worker.put` does: three calls less each.

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        if self._is_active:
            worker = self._worker
            queue = worker.queue
            length = len(queue)
            if self._details or length >= worker.room:
                details = self._waiting.take(execution_id, module_id)
                worker.put(ModuleStarted(execution_id, module_id, module_name, _time_ns(), details))
            else:
                event = ModuleStarted(execution_id, module_id, module_name, _time_ns())
                queue.append(event)
                if length >= worker.wake_from:
                    worker.wake(event)

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        if self._is_active:
            now = _time_ns()
            try:
                body = self._decisions[execution_id.int].bodies.pop(module_id.int, None)
            except (AttributeError, KeyError, TypeError):
                # the execution is not known; or an id is none, and the event will be rejected
                body = None
            worker = self._worker
            if body is not None:
                body.has_ended = True
                if body.span is not None:
                    record = self._bodies.record_of(body, module_id)
                    details = self._waiting.take(execution_id, module_id)
                    worker.put(ModuleCompleted(execution_id, module_id, module_name, duration_ms, now, details, record))
                    return
            queue = worker.queue
            length = len(queue)
            if self._details or length >= worker.room:
                details = self._waiting.take(execution_id, module_id)
                worker.put(ModuleCompleted(execution_id, module_id, module_name, duration_ms, now, details))
            else:
                event = ModuleCompleted(execution_id, module_id, module_name, duration_ms, now)
                queue.append(event)
                if length >= worker.wake_from:
                    worker.wake(event)

    def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
        if self._is_active:
            super().on_module_failed(execution_id, module_id, module_name, error)

    def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
        # what is kept of the execution goes when its span was made
        EventListener.on_execution_complete(self, execution_id, dag_name, succeeded, duration_ms)

    def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
        EventListener.on_execution_cancelled(self, execution_id, dag_name)

    def join(self, execution_id: UUID, dag_name: str, traceparent: str | None = None) -> None:
        if self._is_listening():
            super().join(execution_id, dag_name, traceparent)

    def module_details(self, execution_id: UUID, module_id: UUID, **details: Any) -> None:
        if self._is_active:
            super().module_details(execution_id, module_id, **details)

    def _gained(self) -> Mapping[str, int]:
        """What the counters that are metrics have gained since this was last called."""
        counters = self.counters
        now = Counter({name: getattr(counters.assembly, name) for name in _COUNTED})
        now.update(dropped=counters.dropped, rejected=counters.rejected, **self._also_counted())
        gained, self._published = now - self._published, now
        return gained

    def _also_counted(self) -> Mapping[str, int]:
        """Further counters that are metrics."""
        return {}
