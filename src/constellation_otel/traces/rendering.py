"""What is known of an execution or a module becomes a finished span: names, outcome, length, status.

Pure functions of the facts, but for what they count. When a span is made is for the
assembler to say.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from uuid import UUID

from msgspec import Struct, field, to_builtins
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel.events import (
    ErrorInfo,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
    clean_message,
    clean_name,
    ns_of,
    remote_parent,
)
from constellation_otel.traces.ids import RANDOM_TRACE_ID, SpanIds, anonymous_module_id, trace_id_of
from constellation_otel.traces.span import (
    ABANDONED_REASON,
    CANCELLED_EVENT,
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
    REPORTED_DURATION,
    AttributeValue,
    Span,
    SpanEvent,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from constellation_otel.traces.sampling import Sampling

__all__ = ["EMITTED", "Execution", "Module", "Reason", "Rendering"]

ModuleEnd: TypeAlias = ModuleCompleted | ModuleFailed
ExecutionEnd: TypeAlias = ExecutionCompleted | ExecutionCancelled
_Outcome: TypeAlias = Literal["success", "failure", "cancelled", "abandoned", "unknown"]
Reason: TypeAlias = Literal["idle", "age", "capacity", "closed", "engine_restarted"]

_REASONS: Final[dict[Reason, str]] = {
    "idle": "no event for the idle time",
    "age": "open beyond the maximum age",
    "capacity": "too many were open",
    "closed": "the source ended",
    "engine_restarted": "the engine was restarted",
}
_UNKNOWN: Final = clean_name("")
_MAX_NS: Final = 2**63
"""Epoch nanoseconds are below this, since backends hold them in a signed integer."""
# looked up once: an enum's member costs as much as a small function
_INTERNAL: Final = SpanKind.INTERNAL
_SERVER: Final = SpanKind.SERVER
_UNSET: Final = StatusCode.UNSET


class Module(Struct, gc=False):
    """What is known of a module whose span was not emitted.

    Attributes:
        key: Its id, as a number.
        start: The earliest start event.
        end: The least end event.
        due_ns: Until when it waits for what may still come, once it has ended.
    """

    key: int
    start: ModuleStarted | None = None
    end: ModuleEnd | None = None
    due_ns: int = 0


EMITTED: Final = Module(-1)
"""Stands among an execution's modules for each whose span was emitted."""


class _Failure(Struct, frozen=True, order=True):
    """What an execution's span says of a failed module; the first one is the least.

    Attributes:
        timestamp_ns: When it failed.
        module: What tells modules apart that failed at the same moment.
        error_type: As the span has it.
        said: What failed, and why.
    """

    timestamp_ns: int
    module: int
    error_type: str
    said: str


class _Constants(Struct):
    """What all spans of an execution have in common, for as long as no other start is known.

    Attributes:
        start: The start event that this was made from.
        dag_name: The DAG's name; ``unknown`` where no event has told it.
        trace_id: The trace.
        parent_span_id: The caller's span.
        trace_flags: The W3C flags.
        trace_state: The tracestate header.
        ids: The execution's span ids.
        attributes: Of each of the spans.
        extra: Of the execution's span: what the sampler adds.
    """

    start: ExecutionStarted | None
    dag_name: str
    trace_id: int
    parent_span_id: int | None
    trace_flags: int
    trace_state: str
    ids: SpanIds
    attributes: dict[str, AttributeValue]
    extra: dict[str, AttributeValue]


class Execution(Struct):
    """What is known of an open execution.

    Attributes:
        execution_id: The execution.
        key: Its id, as a number.
        opened_ns: When its first event came; on a replay, that event's own time.
        touched_ns: When its last event came, likewise.
        start: The earliest start event.
        end: The least end event.
        modules: By the id's number; :data:`EMITTED` for one whose span was emitted.
        anonymous: Module events without an id, by (timestamp, position).
        failure: The first failed module, of those whose spans were made.
        first_ns: When the first of its modules' spans begins, of those that were made.
        last_ns: When the last of them ends.
        heard_ns: When the last of their ends was.
        has_emitted: Whether a span of a module was emitted.
        lacks_starts: Whether a module's end came before its start.
        constants: What its spans have in common.
        ended: Modules that wait for what may still come, in the order in which they are due.
        is_scheduled: Whether the first of them will be looked at when it is due.
        note: Whatever the owner of the assembler keeps with it.
    """

    execution_id: UUID
    key: int
    opened_ns: int
    touched_ns: int
    start: ExecutionStarted | None = None
    end: ExecutionEnd | None = None
    modules: dict[int, Module] = field(default_factory=dict)
    anonymous: dict[tuple[int, int], ModuleStarted | ModuleEnd] = field(default_factory=dict)
    failure: _Failure | None = None
    first_ns: float = inf
    last_ns: float = -inf
    heard_ns: float = -inf
    has_emitted: bool = False
    lacks_starts: bool = False
    constants: _Constants | None = None
    ended: deque[Module] = field(default_factory=deque)
    is_scheduled: bool = False
    note: Any = None

    def not_emitted(self) -> list[Module]:
        """The modules whose span was not emitted."""
        return [module for module in self.modules.values() if module is not EMITTED]


class Rendering:
    """Makes spans of facts.

    Args:
        sampling: Decides on each execution; its flags, state and attributes are on the spans.
            Without one the flags are the caller's, or say that the ids are random.

    Attributes:
        corrected: Values that could not be used and were left out: trace contexts, durations.
    """

    def __init__(self, sampling: Sampling | None = None) -> None:
        self._sampling = sampling
        self.corrected = 0

    def last_spans(self, execution: Execution, left: Sequence[Module], reason: Reason | None) -> list[Span]:
        """The spans of an execution that is over: of the modules that are left, and its own, the last.

        A module without an end lasts until its execution's end, and the execution lasts for as long as any of
        its modules.

        Args:
            execution: What is known of it.
            left: The modules with ids whose spans were not made before.
            reason: Why it is abandoned, where it has no end.
        """
        spans: list[Span] = []
        groups = (left, False), (self._anonymous_modules(execution), True)
        for modules, are_anonymous in groups:
            ended = [module for module in modules if module.end is not None]
            if ended:
                spans += self.module_spans(execution, ended, are_anonymous=are_anonymous)
        running = [
            ([module for module in modules if module.end is None], are_anonymous) for modules, are_anonymous in groups
        ]
        own = self._execution_span(execution, reason, [module for modules, _ in running for module in modules])
        for modules, are_anonymous in running:
            if modules:
                spans += self.module_spans(execution, modules, are_anonymous=are_anonymous, until_ns=own.end_ns)
        spans.append(own)
        return spans

    def _execution_span(self, execution: Execution, reason: Reason | None, running: Sequence[Module]) -> Span:
        """The span of an execution, the spans of whose modules that have ended were made before."""
        start, end, failure = execution.start, execution.end, execution.failure
        constants = self._constants(execution)
        attributes: dict[str, AttributeValue] = {**constants.extra, **constants.attributes}
        description: str | None = None
        events: tuple[SpanEvent, ...] = ()
        outcome: _Outcome
        match end:
            case None:
                outcome = "abandoned"
                why = reason or "closed"
                attributes[ABANDONED_REASON] = why
                description = f"abandoned without an end: {_REASONS[why]}"
            case ExecutionCancelled():
                outcome = "cancelled"
                events = (SpanEvent(CANCELLED_EVENT, end.timestamp_ns, {}),)
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
        if start is None or end is None:
            attributes[MISSING] = _missing(start, end)
        duration_ms = end.duration_ms if isinstance(end, ExecutionCompleted) else None
        starts = [module.start.timestamp_ns for module in running if module.start is not None]
        if end is None:
            first_ns = execution.first_ns if start is None else start.timestamp_ns
            start_ns, end_ns, duration_ns = first_ns, max(first_ns, execution.heard_ns), None
            if start is None:
                start_ns = end_ns = min((first_ns, *starts))
        else:
            start_ns, end_ns, duration_ns = self._times(start, end, duration_ms)
        # it holds its modules, those that begin when it ends included
        start_ns = int(min((start_ns, execution.first_ns, *starts)))
        end_ns = int(max((end_ns, execution.last_ns, execution.heard_ns if end is None else 0, *starts, start_ns + 1)))
        if duration_ms is not None and duration_ns != end_ns - start_ns:
            attributes[REPORTED_DURATION] = duration_ms
        return Span(
            constants.trace_id,
            constants.ids.execution,
            constants.parent_span_id,
            constants.trace_state,
            constants.trace_flags,
            constants.dag_name,
            _SERVER if constants.parent_span_id is None else _INTERNAL,
            start_ns,
            end_ns,
            attributes,
            _UNSET if description is None else StatusCode.ERROR,
            description,
            events,
            execution.execution_id,
            True,
            duration_ns,
        )

    def module_spans(
        self, execution: Execution, modules: Iterable[Module], *, are_anonymous: bool = False, until_ns: int = 0
    ) -> list[Span]:
        """The spans of modules, as far as they are known.

        One loop, since this is where a busy listener spends its time.

        Args:
            execution: The modules'.
            modules: What is known of each; some.
            are_anonymous: Whether the ids are computed, and none that somebody else knows.
            until_ns: When those end that have no end: when the execution's span does.
        """
        constants = self._constants(execution)
        common, span_id_of, times = constants.attributes, constants.ids.of_module, self._times
        trace_id, parent_id = constants.trace_id, constants.ids.execution
        state, flags, execution_id = constants.trace_state, constants.trace_flags, execution.execution_id
        first_ns, last_ns, heard_ns = execution.first_ns, execution.last_ns, execution.heard_ns
        spans: list[Span] = []
        for module in modules:
            start, end = module.start, module.end
            known: ModuleStarted | ModuleEnd = start or end  # type: ignore[assignment] # one of the two is known
            name = known.module_name
            status, description = _UNSET, None
            events: tuple[SpanEvent, ...] = ()
            duration_ns: int | None = None
            if are_anonymous:
                attributes: dict[str, AttributeValue] = {**common, MODULE_NAME: name}
            else:
                # some seven times as fast as the UUID's own str()
                module_id = to_builtins(known.module_id)
                attributes = {**common, MODULE_ID: module_id, MODULE_NAME: name}
            if end is None:
                attributes[OUTCOME] = "cancelled" if isinstance(execution.end, ExecutionCancelled) else "unknown"
                end_ns = until_ns
                # where it begins when its execution ends, it is of 1 ns before
                start_ns = min(known.timestamp_ns, end_ns - 1)
            else:
                if type(end) is ModuleCompleted:
                    attributes[OUTCOME] = "success"
                    duration_ms = end.duration_ms
                    start_ns, end_ns, duration_ns = times(start, end, duration_ms)
                    if duration_ms is not None and duration_ns != end_ns - start_ns:
                        attributes[REPORTED_DURATION] = duration_ms
                else:
                    error = end.error  # type: ignore[union-attr] # it failed, as it did not complete
                    error_type = attributes[ERROR_TYPE] = error.type or OTHER_ERROR
                    attributes[OUTCOME] = "failure"
                    status, description = StatusCode.ERROR, _said(error) or "failed"
                    events = (_exception_event(error, end.timestamp_ns),)
                    failure = _Failure(end.timestamp_ns, module.key, error_type, _described(name, error))
                    execution.failure = failure if execution.failure is None else min(execution.failure, failure)
                    start_ns, end_ns, duration_ns = times(start, end, None)
                first_ns, last_ns = min(first_ns, start_ns), max(last_ns, end_ns)
                heard_ns = max(heard_ns, end.timestamp_ns)
            if start is None or end is None:
                attributes[MISSING] = _missing(start, end)
            spans.append(
                Span(
                    trace_id,
                    span_id_of(module.key),
                    parent_id,
                    state,
                    flags,
                    name,
                    _INTERNAL,
                    start_ns,
                    end_ns,
                    attributes,
                    status,
                    description,
                    events,
                    execution_id,
                    False,
                    duration_ns,
                )
            )
        execution.first_ns, execution.last_ns, execution.heard_ns = first_ns, last_ns, heard_ns
        return spans

    def _anonymous_modules(self, execution: Execution) -> list[Module]:
        """Modules without ids: identified by name and occurrence, in order of time."""
        occurrences: dict[str, int] = {}
        open_ones: dict[str, deque[Module]] = {}
        modules: list[Module] = []
        for _, event in sorted(execution.anonymous.items(), key=lambda item: item[0]):
            name = event.module_name
            waiting = open_ones.setdefault(name, deque())
            if not isinstance(event, ModuleStarted) and waiting:
                waiting.popleft().end = event
                continue
            occurrence = occurrences.get(name, 0)
            occurrences[name] = occurrence + 1
            key = anonymous_module_id(execution.execution_id, name, occurrence).int
            module = Module(key, start=event) if isinstance(event, ModuleStarted) else Module(key, end=event)
            modules.append(module)
            if module.start is not None:
                waiting.append(module)
        return modules

    def _constants(self, execution: Execution) -> _Constants:
        constants, start = execution.constants, execution.start
        if constants is not None and constants.start is start and start is not None:
            return constants
        execution_id = execution.execution_id
        known = start or execution.end
        name = _UNKNOWN if known is None else known.dag_name
        parent = None
        if start is not None and start.traceparent is not None:
            parent = remote_parent(start.traceparent, start.tracestate)
            self.corrected += parent is None
        trace_id, parent_span_id, flags, state = None, None, RANDOM_TRACE_ID, ""
        ids = None if constants is None else constants.ids
        if parent is not None:
            caller = trace.get_current_span(parent).get_span_context()
            trace_id, parent_span_id = caller.trace_id, caller.span_id
            flags, state = int(caller.trace_flags), caller.trace_state.to_header()
        extra: dict[str, AttributeValue] = {}
        if self._sampling is not None:
            decision = self._sampling.decision_on(execution_id, name, parent or Context())
            flags, state, extra = decision.trace_flags, decision.trace_state, decision.attributes
            ids = ids or decision.ids
            if trace_id is None and decision.span_context is not None:
                trace_id = decision.span_context.trace_id
        execution.constants = _Constants(
            start,
            name,
            trace_id_of(execution_id) if trace_id is None else trace_id,
            parent_span_id,
            flags,
            state,
            ids or SpanIds(execution_id),
            {EXECUTION_ID: to_builtins(execution_id), DAG_NAME: name},
            extra,
        )
        return execution.constants

    def _times(
        self,
        start: ExecutionStarted | ModuleStarted | None,
        end: ExecutionEnd | ModuleEnd,
        duration_ms: float | None,
    ) -> tuple[int, int, int | None]:
        """When a span starts and ends, and its length for metrics, where that is known.

        It is as long as reported, from its start event on, and where that never came, until its end event. Without a
        report it is from one to the other. Backends take equal times for a negative length: it has 1 ns at least.
        """
        if duration_ms is not None:
            # within its range, since the event was validated
            duration_ns = ns_of(duration_ms)
            length_ns = duration_ns or 1
            if start is not None:
                start_ns = start.timestamp_ns
                if start_ns + length_ns < _MAX_NS:
                    return start_ns, start_ns + length_ns, duration_ns
            elif length_ns <= end.timestamp_ns:
                return end.timestamp_ns - length_ns, end.timestamp_ns, duration_ns
            self.corrected += 1
        end_ns = end.timestamp_ns
        if start is None:
            return max(end_ns - 1, 0), max(end_ns, 1), None
        start_ns = min(start.timestamp_ns, end_ns)
        return start_ns, max(end_ns, start_ns + 1), end_ns - start_ns


def _missing(start: object, end: object) -> str:
    return "end" if start is not None else "start" if end is not None else "start,end"


def _said(error: ErrorInfo) -> str | None:
    return error.message or error.type or None


def _described(module_name: str, error: ErrorInfo) -> str:
    said = _said(error)
    return clean_message(f"{module_name} failed: {said}" if said else f"{module_name} failed")


def _exception_event(error: ErrorInfo, timestamp_ns: int) -> SpanEvent:
    attributes: dict[str, AttributeValue] = {}
    if error.type is not None:
        attributes[EXCEPTION_TYPE] = error.type
    if error.message is not None:
        attributes[EXCEPTION_MESSAGE] = error.message
    if error.stacktrace is not None:
        attributes[EXCEPTION_STACKTRACE] = error.stacktrace
    return SpanEvent(EXCEPTION_EVENT, timestamp_ns, attributes, is_failure=True)
