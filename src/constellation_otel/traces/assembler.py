"""Events in, finished spans out: a state machine without I/O and without a clock.

What is known of an execution is a set of facts, and merging two such sets is
commutative, associative and idempotent: the start is the earliest one, the end
the least by (timestamp, kind, content). Order and repetition therefore cannot
matter for as long as an execution is open. Nothing stays open for ever.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar
from uuid import UUID

from msgspec import Struct, field
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode, TraceFlags

from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
    clean_message,
    clean_name,
    duration_ns_of,
    remote_parent,
)
from constellation_otel.traces.ids import anonymous_module_id, span_id_of, trace_id_of
from constellation_otel.traces.span import (
    ABANDONED_REASON,
    DAG_NAME,
    ERROR_TYPE,
    EXCEPTION_EVENT,
    EXCEPTION_MESSAGE,
    EXCEPTION_STACKTRACE,
    EXCEPTION_TYPE,
    EXECUTION_ID,
    MISSING,
    MODULE_ID,
    MODULE_NAME,
    OTHER_ERROR,
    OUTCOME,
    AttributeValue,
    Span,
    SpanEvent,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Assembler", "Counters"]

_SECOND: Final = 1_000_000_000
_DUE_SLACK: Final = 1_024
_LOOKED_AT: Final = 256
_START_PATIENCE: Final = 30
"""How many times ``settle`` an execution that has ended waits for its start."""

_ModuleEnd: TypeAlias = ModuleCompleted | ModuleFailed
_ExecutionEnd: TypeAlias = ExecutionCompleted | ExecutionCancelled
_Outcome: TypeAlias = Literal["success", "failure", "cancelled", "abandoned", "unknown"]
_Reason: TypeAlias = Literal["idle", "age", "capacity", "closed", "engine_restarted"]
_KIND: Final = {ModuleCompleted: 0, ModuleFailed: 1, ExecutionCompleted: 0, ExecutionCancelled: 1}

_E = TypeVar("_E", bound=Event)


class Counters(Struct):
    """What an assembler has seen and done so far.

    Attributes:
        events: Events taken in.
        executions: Executions whose span has left.
        spans: Spans that have left, executions and modules.
        late: Events of executions or modules whose span had left; never exported again.
        duplicate: Events that repeated a fact that was known.
        abandoned: Executions that were let go without an end.
        incomplete_executions: Executions whose span was emitted without a start or an end that
            never came.
        incomplete_modules: Modules likewise, those that a cancellation left without an end
            included.
        corrected: Values that no backend could hold and that were mended or left out:
            names, durations, trace contexts.
    """

    events: int = 0
    executions: int = 0
    spans: int = 0
    late: int = 0
    duplicate: int = 0
    abandoned: int = 0
    corrected: int = 0
    incomplete_executions: int = 0
    incomplete_modules: int = 0


class _TraceOf(Struct, frozen=True):
    """The trace that an execution belongs to."""

    trace_id: int
    parent_span_id: int | None
    trace_flags: int
    trace_state: str


class _Module(Struct):
    """What is known of a module whose span has not left."""

    start: ModuleStarted | None = None
    end: _ModuleEnd | None = None


class _Failure(Struct, frozen=True, order=True):
    """What an execution's span says of a failed module; the first one is the least.

    Attributes:
        timestamp_ns: When it failed.
        module: What tells modules apart that failed at the same moment.
        error_type: As the span has it.
        said: What failed, and why.
    """

    timestamp_ns: int
    module: str
    error_type: str
    said: str


class _Execution(Struct):
    """What is known of an open execution."""

    execution_id: UUID
    number: int
    opened_ns: int
    touched_ns: int
    start: ExecutionStarted | None = None
    end: _ExecutionEnd | None = None
    modules: dict[UUID, _Module] = field(default_factory=dict)
    anonymous: dict[tuple[int, int], ModuleStarted | _ModuleEnd] = field(default_factory=dict)
    running: int = 0
    failure: _Failure | None = None
    has_left: bool = False
    trace_of: tuple[ExecutionStarted | None, _TraceOf] | None = None

    def size(self) -> int:
        return 1 + len(self.modules) + len(self.anonymous)


class Assembler:
    """Turns events into finished spans.

    Not thread-safe: one thread owns it. ``now_ns`` is nanoseconds of any clock that
    does not jump: a monotonic one for live sources, event time for a replay.

    Args:
        settle: Seconds that a span waits, after its end came, for events that are
            still on their way; 0 for a source that keeps the order.
        max_open: Executions and modules held at most; beyond it, the execution that
            was silent longest is abandoned.
        idle_timeout: Seconds without an event after which an execution is abandoned.
        max_age: Seconds after its first event at which an execution is abandoned.
        max_settled: How many ids of settled executions are remembered, and how many of
            modules that have left, so that a late event does not open them again.
        on_loss: Called with each span that is incomplete since an event was lost, or is likely
            to have been: one that came shows that another came before, or an execution was
            silent for ``idle_timeout``. Running modules of an execution that failed, was
            cancelled or is abandoned may have no end, and what is open at the end, or
            beyond ``max_open`` or ``max_age``, may still get one.

    Attributes:
        counters: What was seen and done so far.
    """

    def __init__(
        self,
        *,
        settle: float = 0.0,
        max_open: int = 100_000,
        idle_timeout: float = 3_600.0,
        max_age: float = 86_400.0,
        max_settled: int = 100_000,
        on_loss: Callable[[Span], object] = lambda span: None,  # noqa: ARG005 - nobody asked
    ) -> None:
        if settle < 0 or min(max_open, max_settled) < 1 or min(idle_timeout, max_age) <= 0:
            message = (
                f"settle={settle!r} must not be negative, and max_open={max_open!r}, max_settled={max_settled!r},"
                f" idle_timeout={idle_timeout!r} and max_age={max_age!r} must be above zero"
            )
            raise ValueError(message)
        self.counters = Counters()
        self._on_loss = on_loss
        self._settle_ns = round(settle * _SECOND)
        self._max_open = max_open
        self._idle_ns = round(idle_timeout * _SECOND)
        self._max_age_ns = round(max_age * _SECOND)
        self._max_settled = max_settled
        self._open: OrderedDict[UUID, _Execution] = OrderedDict()
        self._touched: OrderedDict[UUID, None] = OrderedDict()
        self._settled: OrderedDict[UUID, None] = OrderedDict()
        self._left: OrderedDict[tuple[UUID, UUID], int] = OrderedDict()
        self._due: list[tuple[int, int, UUID, UUID | None]] = []
        self._position = 0
        self._opened = 0
        self._held = 0
        self._running = 0

    @property
    def open_executions(self) -> int:
        """Executions that have not left."""
        return len(self._open)

    def is_open(self, execution_id: UUID) -> bool:
        """Whether an execution is known and has not left."""
        return execution_id in self._open

    @property
    def open_modules(self) -> int:
        """Modules that have started and not ended, as far as is known."""
        return self._running

    @property
    def deadline_ns(self) -> int | None:
        """When :meth:`advance` has something to do next; ``None`` while nothing is open."""
        if not self._open:
            return None
        oldest = self._open[next(iter(self._open))]
        silent = self._open[next(iter(self._touched))]
        deadline = min(oldest.opened_ns + self._max_age_ns, silent.touched_ns + self._idle_ns)
        return min(deadline, self._due[0][0]) if self._due else deadline

    def add(self, event: Event, now_ns: int, position: int | None = None) -> list[Span]:
        """Takes an event in.

        Args:
            event: The event, which was :func:`~constellation_otel.events.validation.validated`.
            now_ns: The time.
            position: Where it stands in its source; tells two occurrences of the same
                module name apart where modules have no ids. The order of arrival where
                a source has no positions.

        Returns:
            The spans that leave by it.

        """
        self.counters.events += 1
        execution_id = event.execution_id
        if execution_id in self._settled:
            self.counters.late += 1
            return []
        execution = self._touch(execution_id, now_ns)
        spans = self._merge(execution, event, now_ns, position)
        while self._held > self._max_open:
            spans += self.evict()
        return spans

    def advance(self, now_ns: int) -> list[Span]:
        """Lets time pass.

        Args:
            now_ns: The time.

        Returns:
            The spans that leave by it, in the order in which they were due.
        """
        spans = self._settle(now_ns)
        while self._open:
            silent = next(iter(self._touched))
            if self._open[silent].touched_ns + self._idle_ns > now_ns:
                break
            spans += self._evict(silent, "idle")
        while self._open:
            oldest = next(iter(self._open))
            if self._open[oldest].opened_ns + self._max_age_ns > now_ns:
                break
            spans += self._evict(oldest, "age")
        return spans

    def finish(self, *, abandon: bool = True) -> list[Span]:
        """Lets everything leave: its source has ended, or its owner closes.

        Args:
            abandon: Whether executions without an end leave too; otherwise they stay open.

        Returns:
            The spans of what leaves: executions without an end are abandoned.
        """
        return [span for execution_id in self.to_finish(abandon=abandon) for span in self.finish_one(execution_id)]

    def to_finish(self, *, abandon: bool) -> list[UUID]:
        """The executions that :meth:`finish` lets leave, for who wants to do so one at a time."""
        return [execution_id for execution_id, it in self._open.items() if abandon or it.end is not None]

    def finish_one(self, execution_id: UUID) -> list[Span]:
        """Lets one open execution leave, as :meth:`finish` does; its spans."""
        return self._evict(execution_id, "closed")

    def abandon(self, execution_ids: Iterable[UUID]) -> list[Span]:
        """Lets executions leave that can never end, since their engine was restarted.

        Args:
            execution_ids: Those that are open; one that has an end leaves by itself.

        Returns:
            Their spans.
        """
        spans: list[Span] = []
        for execution_id in execution_ids:
            if self._open[execution_id].end is None:
                spans += self._evict(execution_id, "engine_restarted")
        return spans

    def evict(self) -> list[Span]:
        """Lets an execution leave, to make room: one that has ended, or that was silent longest.

        Returns:
            Its spans; none where nothing is open.
        """
        if not self._touched:
            return []
        # of those that were silent longest only, so that it costs little
        ended = (it for it in islice(self._touched, _LOOKED_AT) if self._open[it].end is not None)
        return self._evict(next(ended, next(iter(self._touched))), "capacity")

    def unsettle(self, execution_id: UUID) -> None:
        """Forgets that an execution has left, so that its events, told once more, make the same spans again."""
        self._settled.pop(execution_id, None)

    def discard(self, execution_id: UUID) -> None:
        """Forgets an open execution as if it had never been told of: somebody else has it.

        Args:
            execution_id: The execution. One that is not open stays as it is.
        """
        execution = self._open.get(execution_id)
        if execution is not None:
            self._close(execution)

    def _settle(self, now_ns: int) -> list[Span]:
        """What has waited for long enough after its end leaves."""
        spans: list[Span] = []
        while self._due and self._due[0][0] <= now_ns:
            _, _, execution_id, module_id = heappop(self._due)
            execution = self._open.get(execution_id)
            if execution is None:
                continue
            # looked at again: what was due may have left, and its id have been opened anew
            if module_id is not None:
                module = execution.modules.get(module_id)
                if execution.start is not None and module is not None and module.end is not None:
                    spans.append(self._leave_module(execution, module_id))
            elif execution.end is not None:
                patience_ends_ns = execution.touched_ns + self._settle_ns * _START_PATIENCE
                if execution.start is not None or now_ns >= patience_ends_ns:
                    spans += self._leave(execution, None)
                else:
                    self._schedule_at(patience_ends_ns, execution_id, None)
        return spans

    def _touch(self, execution_id: UUID, now_ns: int) -> _Execution:
        """The open execution, opened if need be, as the one that was silent for the shortest time."""
        execution = self._open.get(execution_id)
        if execution is None:
            self._opened += 1
            execution = self._open[execution_id] = _Execution(execution_id, self._opened, now_ns, now_ns)
            self._touched[execution_id] = None
            self._held += 1
        else:
            execution.touched_ns = now_ns
            self._touched.move_to_end(execution_id)
        return execution

    def _merge(self, execution: _Execution, event: Event, now_ns: int, position: int | None) -> list[Span]:
        """Adds an event to what is known of its execution; the spans that leave by it."""
        match event:
            case ExecutionStarted() if execution.has_left:
                # a module's span has told the parent and the trace already
                self.counters.late += 1
            case ExecutionStarted():
                was_known = execution.start is not None
                execution.start = self._least(execution.start, event)
                if not self._settle_ns:
                    return self._modules_that_waited(execution)
                if not was_known:
                    self._schedule_what_waited(execution, now_ns)
            case ExecutionCompleted() | ExecutionCancelled():
                was_known = execution.end is not None
                execution.end = self._least(execution.end, event)
                if not self._settle_ns:
                    return self._leave(execution, None)
                if not was_known:
                    self._schedule_end(execution, now_ns)
            case ModuleStarted(module_id=None) | ModuleCompleted(module_id=None) | ModuleFailed(module_id=None):
                self._add_anonymous(execution, event, position)
            case _:
                return self._add_module(execution, event, now_ns)
        return []

    def _least(self, known: _E | None, event: _E) -> _E:
        """The fact that stays of two that are the same kind of fact."""
        if known is None:
            return event
        self.counters.duplicate += 1
        return min(known, event, key=_order)

    def _add_anonymous(self, execution: _Execution, event: ModuleStarted | _ModuleEnd, position: int | None) -> None:
        if position is None:
            position = self._position
            self._position += 1
        at = (event.timestamp_ns, position)
        if at in execution.anonymous:
            self.counters.duplicate += 1
        else:
            self._held += 1
            execution.anonymous[at] = event

    def _add_module(self, execution: _Execution, event: Event, now_ns: int) -> list[Span]:
        assert isinstance(event, ModuleStarted | ModuleCompleted | ModuleFailed)  # noqa: S101 - for the type checker
        assert event.module_id is not None  # noqa: S101 - as above
        module_id = event.module_id
        if self._left.get((execution.execution_id, module_id)) == execution.number:
            self.counters.late += 1
            return []
        module = execution.modules.get(module_id)
        if module is None:
            module = execution.modules[module_id] = _Module()
            self._held += 1
        was_running = module.start is not None and module.end is None
        if isinstance(event, ModuleStarted):
            module.start = self._least(module.start, event)
        else:
            first = module.end is None
            module.end = self._least(module.end, event)
            if first and self._settle_ns:
                self._schedule_at(now_ns + self._settle_ns, execution.execution_id, module_id)
        self._count_running(execution, (module.start is not None and module.end is None) - was_running)
        if module.end is not None and not self._settle_ns and execution.start is not None:
            return [self._leave_module(execution, module_id)]
        return []

    def _count_running(self, execution: _Execution, change: int) -> None:
        execution.running += change
        self._running += change

    def _schedule_end(self, execution: _Execution, now_ns: int) -> None:
        """Sees to it that an execution that has ended leaves; one without a start is waited for longer."""
        patience = 1 if execution.start is not None else _START_PATIENCE
        self._schedule_at(now_ns + self._settle_ns * patience, execution.execution_id, None)

    def _schedule_what_waited(self, execution: _Execution, now_ns: int) -> None:
        """Sees to it that what came before the start leaves when that has settled."""
        if execution.end is not None:
            self._schedule_end(execution, now_ns)
        for module_id, module in execution.modules.items():
            if module.end is not None:
                self._schedule_at(now_ns + self._settle_ns, execution.execution_id, module_id)

    def _schedule_at(self, due_ns: int, execution_id: UUID, module_id: UUID | None) -> None:
        self._position += 1
        heappush(self._due, (due_ns, self._position, execution_id, module_id))
        if len(self._due) > 4 * self._held + _DUE_SLACK:
            # most are of what has left otherwise
            self._due = [due for due in self._due if due[2] in self._open]
            heapify(self._due)

    def _modules_that_waited(self, execution: _Execution) -> list[Span]:
        """The modules whose end came before the execution's start."""
        return [
            self._leave_module(execution, module_id)
            for module_id, module in list(execution.modules.items())
            if module.end is not None
        ]

    def _evict(self, execution_id: UUID, reason: _Reason) -> list[Span]:
        return self._leave(self._open[execution_id], reason)

    def _leave(self, execution: _Execution, reason: _Reason | None) -> list[Span]:
        """Everything that is left of an execution becomes spans, its own the last."""
        self._close(execution)
        self._settled[execution.execution_id] = None
        if len(self._settled) > self._max_settled:
            self._settled.popitem(last=False)
        if execution.end is None:
            self.counters.abandoned += 1
        spans = []
        for module_id, module in _identified(execution):
            known_id = module_id if module_id in execution.modules else None
            spans.append(self._module_span(execution, module_id, known_id, module))
        spans.append(self._execution_span(execution, reason))
        self.counters.executions += 1
        self.counters.spans += len(spans)
        return spans

    def _close(self, execution: _Execution) -> None:
        """An execution is open no longer."""
        del self._open[execution.execution_id]
        del self._touched[execution.execution_id]
        self._held -= execution.size()
        self._count_running(execution, -execution.running)
        if not self._open:
            self._due.clear()

    def _leave_module(self, execution: _Execution, module_id: UUID) -> Span:
        """A module becomes a span; what stays is that it has left, and how it failed."""
        span = self._module_span(execution, module_id, module_id, execution.modules.pop(module_id))
        self._held -= 1
        execution.has_left = True
        self._left[execution.execution_id, module_id] = execution.number
        if len(self._left) > self._max_settled:
            self._left.popitem(last=False)
        self.counters.spans += 1
        return span

    def _trace_of(self, execution: _Execution) -> _TraceOf:
        if execution.trace_of is None or execution.trace_of[0] is not execution.start:
            execution.trace_of = (execution.start, self._new_trace_of(execution))
        return execution.trace_of[1]

    def _new_trace_of(self, execution: _Execution) -> _TraceOf:
        start = execution.start
        if start is not None and start.traceparent is not None:
            parent = remote_parent(start.traceparent, start.tracestate)
            if parent is not None:
                caller = trace.get_current_span(parent).get_span_context()
                return _TraceOf(
                    caller.trace_id, caller.span_id, int(caller.trace_flags), caller.trace_state.to_header()
                )
            self.counters.corrected += 1
        return _TraceOf(trace_id_of(execution.execution_id), None, int(TraceFlags.RANDOM_TRACE_ID), "")

    def _name(self, name: str | None) -> str:
        """A name as every backend can hold it."""
        if name is None:
            return clean_name("")
        clean = clean_name(name)
        self.counters.corrected += clean != name
        return clean

    def _times(self, start_ns: int | None, end_ns: int | None, duration_ms: float | None) -> tuple[int, int]:
        """A span's start and end: section 6's rule of lengths."""
        if end_ns is None:
            # an execution or module of which only the start is known has no length
            at = start_ns if start_ns is not None else 0
            return at, at
        if duration_ms is not None:
            duration_ns = duration_ns_of(duration_ms)
            if duration_ns is not None and duration_ns <= end_ns:
                return end_ns - duration_ns, end_ns
            self.counters.corrected += 1
        return (end_ns if start_ns is None else min(start_ns, end_ns)), end_ns

    def _execution_span(self, execution: _Execution, reason: _Reason | None) -> Span:
        start, end, failure = execution.start, execution.end, execution.failure
        trace_of = self._trace_of(execution)
        name = self._name(_dag_name(execution))
        attributes: dict[str, AttributeValue] = {EXECUTION_ID: str(execution.execution_id), DAG_NAME: name}
        description: str | None = None
        outcome: _Outcome
        match end:
            case None:
                outcome = "abandoned"
                why = reason or "closed"
                attributes[ABANDONED_REASON] = why
                description = f"abandoned without an end: {_REASONS[why]}"
            case ExecutionCancelled():
                outcome = "cancelled"
            case ExecutionCompleted() if end.succeeded:
                outcome = "success"
            case _:
                outcome = "failure"
                if failure is None:
                    attributes[ERROR_TYPE] = OTHER_ERROR
                    description = "failed, and no failed module is known; a time-out in the engine looks like this"
                else:
                    attributes[ERROR_TYPE] = failure.error_type
                    description = failure.said
        attributes[OUTCOME] = outcome
        _put_missing(attributes, start, end)
        start_ns, end_ns = self._times(
            start.timestamp_ns if start else None,
            end.timestamp_ns if end else None,
            end.duration_ms if isinstance(end, ExecutionCompleted) else None,
        )
        if start is None and end is None:
            start_ns = end_ns = min(_timestamps(execution), default=0)
        span = Span(
            trace_of.trace_id,
            span_id_of(execution.execution_id),
            trace_of.parent_span_id,
            trace_of.trace_state,
            trace_of.trace_flags,
            name,
            SpanKind.SERVER if trace_of.parent_span_id is None else SpanKind.INTERNAL,
            start_ns,
            end_ns,
            attributes,
            StatusCode.UNSET if description is None else StatusCode.ERROR,
            description,
        )
        if MISSING in attributes:
            self.counters.incomplete_executions += 1
            if start is None or reason == "idle":
                self._on_loss(span)
        return span

    def _module_span(
        self,
        execution: _Execution,
        module_id: UUID,
        known_id: UUID | None,
        module: _Module,
    ) -> Span:
        start, end = module.start, module.end
        trace_of = self._trace_of(execution)
        name = self._name(start.module_name if start else end.module_name if end else None)
        attributes: dict[str, AttributeValue] = {
            EXECUTION_ID: str(execution.execution_id),
            DAG_NAME: clean_name(_dag_name(execution) or ""),
        }
        if known_id is not None:
            attributes[MODULE_ID] = str(known_id)
        attributes[MODULE_NAME] = name
        status, description = StatusCode.UNSET, None
        events: tuple[SpanEvent, ...] = ()
        outcome: _Outcome
        match end:
            case ModuleCompleted():
                outcome = "success"
            case ModuleFailed():
                outcome = "failure"
                error_type = attributes[ERROR_TYPE] = _type_of(end.error)
                status, description = StatusCode.ERROR, _said(end.error) or "failed"
                events = (_exception_event(end.error, end.timestamp_ns),)
                failure = _Failure(end.timestamp_ns, str(module_id), error_type, _described(name, end.error))
                execution.failure = failure if execution.failure is None else min(execution.failure, failure)
            case _:
                outcome = "cancelled" if isinstance(execution.end, ExecutionCancelled) else "unknown"
        attributes[OUTCOME] = outcome
        _put_missing(attributes, start, end)
        start_ns, end_ns = self._times(
            start.timestamp_ns if start else None,
            end.timestamp_ns if end else None,
            end.duration_ms if isinstance(end, ModuleCompleted) else None,
        )
        span = Span(
            trace_of.trace_id,
            span_id_of(execution.execution_id, module_id),
            span_id_of(execution.execution_id),
            trace_of.trace_state,
            trace_of.trace_flags,
            name,
            SpanKind.INTERNAL,
            start_ns,
            end_ns,
            attributes,
            status,
            description,
            events,
        )
        if MISSING in attributes:
            self.counters.incomplete_modules += 1
            if start is None or (isinstance(execution.end, ExecutionCompleted) and execution.end.succeeded):
                self._on_loss(span)
        return span


_REASONS: Final[dict[_Reason, str]] = {
    "idle": "no event for the idle time",
    "age": "open beyond the maximum age",
    "capacity": "too many were open",
    "closed": "the source ended",
    "engine_restarted": "the engine was restarted",
}


def _order(event: Event) -> tuple[int, int, bytes]:
    """Timestamp, kind, content: a total order on the facts of one kind."""
    kind = _KIND.get(type(event), 0)
    return event.timestamp_ns, kind, repr(event).encode("utf-8", "surrogatepass")


def _timestamps(execution: _Execution) -> Iterator[int]:
    for at, _ in execution.anonymous:
        yield at
    for module in execution.modules.values():
        if module.start is not None:
            yield module.start.timestamp_ns
        if module.end is not None:
            yield module.end.timestamp_ns


def _identified(execution: _Execution) -> Iterable[tuple[UUID, _Module]]:
    """The modules by id; where there is none, by name and occurrence, in order of time."""
    modules = sorted(execution.modules.items(), key=lambda item: item[0].bytes)
    if not execution.anonymous:
        return modules
    occurrences: dict[str, int] = {}
    open_ones: dict[str, deque[_Module]] = {}
    for _, event in sorted(execution.anonymous.items(), key=lambda item: item[0]):
        name = event.module_name
        waiting = open_ones.setdefault(name, deque())
        if not isinstance(event, ModuleStarted) and waiting:
            waiting.popleft().end = event
            continue
        module = _Module(start=event) if isinstance(event, ModuleStarted) else _Module(end=event)
        occurrence = occurrences.get(name, 0)
        occurrences[name] = occurrence + 1
        modules.append((anonymous_module_id(execution.execution_id, name, occurrence), module))
        if module.start is not None:
            waiting.append(module)
    return modules


def _put_missing(attributes: dict[str, AttributeValue], start: object, end: object) -> None:
    missing = tuple(name for name, fact in (("start", start), ("end", end)) if fact is None)
    if missing:
        attributes[MISSING] = missing


def _dag_name(execution: _Execution) -> str | None:
    known = execution.start or execution.end
    return known.dag_name if known is not None else None


def _type_of(error: ErrorInfo) -> str:
    return clean_name(error.type) if error.type else OTHER_ERROR


def _said(error: ErrorInfo) -> str | None:
    return clean_message(error.message) if error.message else clean_name(error.type) if error.type else None


def _described(module_name: str, error: ErrorInfo) -> str:
    said = _said(error)
    return clean_message(f"{module_name} failed: {said}" if said else f"{module_name} failed")


def _exception_event(error: ErrorInfo, timestamp_ns: int) -> SpanEvent:
    attributes: dict[str, AttributeValue] = {EXCEPTION_TYPE: _type_of(error)}
    if error.message is not None:
        attributes[EXCEPTION_MESSAGE] = clean_message(error.message)
    if error.stacktrace is not None:
        attributes[EXCEPTION_STACKTRACE] = error.stacktrace
    return SpanEvent(EXCEPTION_EVENT, timestamp_ns, attributes)
