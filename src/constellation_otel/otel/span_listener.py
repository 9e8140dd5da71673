"""What the two span listeners share: executions are sampled, assembled and measured; how a span goes out is theirs."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

from msgspec.structs import replace
from opentelemetry import context as otel_context

from constellation_otel.delivery import BufferedListener, LossLog, TraceAssembly
from constellation_otel.events import ModuleCompleted, ModuleStarted, started_now
from constellation_otel.traces import Assembler, Sampling, span_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.context import Context

    from constellation_otel.delivery import AssemblyCounters, SpanObserver
    from constellation_otel.events import Event
    from constellation_otel.traces import Decision, Span

__all__ = ["SpanListener"]

_COUNTED: Final = ("late", "duplicate", "abandoned", "incomplete_executions", "incomplete_modules")
"""What of the assembly is a metric."""
_time_ns: Final = time.time_ns

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
        **options: As :class:`~constellation_otel.delivery.BufferedListener` has them.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self, sink: Any, *, settle: float, max_open: int, idle_timeout: float, max_age: float, **options: Any
    ) -> None:
        self._limits = {"settle": settle, "max_open": max_open, "idle_timeout": idle_timeout, "max_age": max_age}
        self._loss_log = LossLog(f"the source of {type(self).__name__}")
        # a subclass says otherwise for as long as nothing takes what callbacks say
        self._is_active = True
        # it refuses numbers: before anything is opened
        self._assembler(Sampling(None))
        super().__init__(sink, **options)

    def _assembler(self, sampling: Sampling) -> Assembler:
        return Assembler(**self._limits, sampling=sampling, on_loss=self._loss_log)  # type: ignore[arg-type] # by name

    def _decider(self) -> Callable[[UUID, str, Context], Decision] | None:
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
        self._sampling = Sampling(self._decider(), max_remembered=int(self._limits["max_open"]))
        self._assembly_of = TraceAssembly(
            self._assembler(self._sampling),
            self._sampling,
            self._as_items,
            observer=self._observer(),
            tracks=self._tracks,
        )
        return self._assembly_of

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
            self._put(event)

    def _is_listening(self) -> bool:
        """Whether anything takes what callbacks say."""
        return self._is_active

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        if not self._is_listening():
            return
        event = started_now(execution_id, dag_name)
        # here, and not in the worker: module_context needs the answer at once
        has_decided = self._decide(execution_id, dag_name, otel_context.get_current())
        if not self._put(event) and has_decided:
            self._sampling.forget(execution_id)

    # The two that fire most are written out: two calls less each. CPython looks for a method first where an
    # attribute is called, so it is read before.

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        if self._is_active:
            put = self._put
            put(ModuleStarted(execution_id, module_id, module_name, _time_ns()))

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        if self._is_active:
            put = self._put
            put(ModuleCompleted(execution_id, module_id, module_name, duration_ms, _time_ns()))

    def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
        if self._is_active:
            super().on_module_failed(execution_id, module_id, module_name, error)

    def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
        """The context in which a module's body runs: its span is the current one.

        The span itself is made when the module has ended; its ids are known before.

        Args:
            execution_id: An execution that has started.
            module_id: The module.
            context: The caller's.

        Returns:
            ``context`` itself where the execution is not known, or not traced at all.
        """
        decision = self._sampling.recall(execution_id)
        return context if decision is None else decision.context_of(span_id_of(execution_id, module_id), context)

    def _decide(self, execution_id: object, dag_name: object, context: Context) -> bool:
        """Asks the sampler, once for all of the execution's spans.

        Returns:
            Whether it was asked: not where there is an answer already, or the event will be rejected.
        """
        if not isinstance(execution_id, UUID) or not isinstance(dag_name, str):
            return False
        return self._sampling.decide(execution_id, dag_name, context)

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
