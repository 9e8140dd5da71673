"""What is known of an execution or a module becomes a finished span: names, outcome, length, status.

Pure functions of the facts, but for what they count. When a span is made is for the
assembler to say.
"""

from __future__ import annotations

from collections import deque
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from uuid import UUID

from msgspec import Struct, field, to_builtins
from msgspec.structs import replace
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel.events import (
    BodyRecord,
    ErrorInfo,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionJoined,
    ExecutionStarted,
    ModuleCompleted,
    ModuleDescribed,
    ModuleDetails,
    ModuleFailed,
    ModuleStarted,
    clean_message,
    clean_name,
    ns_of,
    remote_parent,
)
from constellation_otel.traces.details import Known, known_of, merged
from constellation_otel.traces.ids import RANDOM_TRACE_ID, SpanIds, anonymous_module_id, trace_id_of
from constellation_otel.traces.span import (
    ABANDONED_REASON,
    ATTEMPT,
    CANCELLED_EVENT,
    DAG_NAME,
    ENGINE,
    ERROR_TYPE,
    EXCEPTION_EVENT,
    EXCEPTION_MESSAGE,
    EXCEPTION_STACKTRACE,
    EXCEPTION_TYPE,
    EXECUTION_ID,
    LINK,
    MISSING,
    MODULE_ID,
    MODULE_NAME,
    OTHER_ERROR,
    OUTCOME,
    REASON,
    REPORTED_DURATION,
    UPSTREAM,
    AttributeValue,
    Dropped,
    Span,
    SpanEvent,
    SpanLink,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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
_MAX_FAILURES: Final = 1_024
_NONE: Final[Any] = MappingProxyType({})
"""Stands for a dictionary until something has to be in it."""
_OWN: Final = "constellation."
"""Attributes that begin so are the model's."""
_NO_DETAILS: Final = ModuleDetails()
_NO_BODY: Final = BodyRecord()
_STATUSES: Final = {"unset": StatusCode.UNSET, "ok": StatusCode.OK, "error": StatusCode.ERROR}
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
        known: What its details say.
        described: That it did not run; the least such event.
    """

    key: int
    start: ModuleStarted | None = None
    end: ModuleEnd | None = None
    due_ns: int = 0
    known: Known | None = None
    described: ModuleDescribed | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or did not run at all."""
        return self.end is not None or self.described is not None


EMITTED: Final = Module(-1, described=ModuleDescribed(UUID(int=0), UUID(int=0), "", 0, ModuleDetails()))
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


class _Group(Struct):
    """What is known of a module of which others are a part.

    Attributes:
        members: Modules of which it was told that they are a part of it.
        first_ns: When the first of them begins, of those whose spans were made.
        last_ns: When the last of them ends.
        end_ns: When its own span ends, once that was made.
    """

    members: set[int] = field(default_factory=set)
    first_ns: float = inf
    last_ns: float = -inf
    end_ns: int | None = None


class _Constants(Struct):
    """What all spans of an execution have in common, for as long as no other start is known.

    Attributes:
        start: The start event, or that it was joined, that this was made from.
        dag_name: The DAG's name; ``unknown`` where no event has told it.
        trace_id: The trace.
        parent_span_id: The caller's span.
        trace_flags: The W3C flags.
        trace_state: The tracestate header.
        ids: The execution's span ids.
        attributes: Of each of the spans.
        extra: Of the execution's span: what the sampler adds.
    """

    start: ExecutionStarted | ExecutionJoined | None
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
        start: The earliest start event; where there is none, that it was joined.
        end: The least end event.
        modules: By the id's number; :data:`EMITTED` for one whose span was emitted.
        anonymous: Module events without an id, by (timestamp, position).
        failures: By a module's first attempt, its last attempt so far, and how that failed, where it did; of
            those whose spans were made.
        groups: By the id's number, modules of which others are a part.
        first_ns: When the first of its modules' spans begins, of those that were made.
        last_ns: When the last of them ends.
        heard_ns: When the last of their ends was.
        has_emitted: Whether a span of a module was emitted.
        lacks_starts: Whether a module's end came before its start.
        constants: What its spans have in common.
        ended: Modules that wait for what may still come, in the order in which they are due.
        is_scheduled: Whether the first of them will be looked at when it is due.
        is_over: Whether it is not open any more.
        note: Whatever the owner of the assembler keeps with it.
    """

    execution_id: UUID
    key: int
    opened_ns: int
    touched_ns: int
    start: ExecutionStarted | ExecutionJoined | None = None
    end: ExecutionEnd | None = None
    modules: dict[int, Module] = field(default_factory=dict)
    # most have none of these: where 100,000 are open, that is much
    anonymous: dict[tuple[int, int], ModuleStarted | ModuleEnd] = _NONE
    failures: dict[int, tuple[int, _Failure | None]] = _NONE
    groups: dict[int, _Group] = _NONE
    first_ns: float = inf
    last_ns: float = -inf
    heard_ns: float = -inf
    has_emitted: bool = False
    lacks_starts: bool = False
    constants: _Constants | None = None
    ended: deque[Module] | None = None
    is_scheduled: bool = False
    is_over: bool = False
    note: Any = None

    @property
    def is_joined(self) -> bool:
        """Whether another process has started it, and tells of it."""
        return type(self.start) is ExecutionJoined

    @property
    def is_only_remembered(self) -> bool:
        """Whether it was joined, and all that is known of it was emitted."""
        return self.is_joined and not self.anonymous and all(it is EMITTED for it in self.modules.values())

    def tell(self, module: Module, timestamp_ns: int, details: ModuleDetails) -> None:
        """Takes in details of a module."""
        module.known = merged(module.known, timestamp_ns, details)
        if details.parent_id is not None:
            self.groups = self.groups or {}
            self.groups.setdefault(details.parent_id.int, _Group()).members.add(module.key)

    def running_in(self, key: int) -> list[Module]:
        """The modules that are a part of another one, or of a part of it, and have no end."""
        found: dict[int, Module] = {}
        left = [key]
        while left:
            group = self.groups.get(key := left.pop())
            for member in () if group is None else group.members:
                module = self.modules.get(member, EMITTED)
                if member not in found and not module.is_over and _parent_of(module) == key:
                    found[member] = module
                    left.append(member)
        return list(found.values())

    def groups_around(self, module: Module) -> list[_Group]:
        """What a module is a part of, the innermost first, as far up as spans were not made."""
        groups: dict[int, _Group] = {}
        parent = _parent_of(module)
        while parent in self.groups and parent not in groups:
            groups[parent] = self.groups[parent]
            parent = _parent_of(self.modules.get(parent, EMITTED))
        return list(groups.values())

    def forget_part(self, module: Module) -> None:
        """Forgets that a module whose span is made is a part of another one, and that others were a part of it."""
        for key in (module.key, _parent_of(module)):
            group = None if key is None else self.groups.get(key)
            if key is None or group is None:
                continue
            group.members.discard(module.key)
            if group.end_ns is not None and not group.members:
                del self.groups[key]

    def failed(self, group: int, attempt: int, failure: _Failure | None) -> None:
        """Takes in how an attempt at a module has ended; of two with one number, a failure counts."""
        self.failures = self.failures or {}
        known = self.failures.get(group)
        if known is None or known[0] < attempt:
            self.failures[group] = (attempt, failure)
        elif known[0] == attempt and failure is not None:
            self.failures[group] = (attempt, failure if known[1] is None else min(known[1], failure))
        if len(self.failures) > 2 * _MAX_FAILURES:
            # the first one is what is said in the end
            kept = sorted(self.failures.items(), key=lambda item: (item[1][1] is None, item[1][1] or 0))
            self.failures = dict(kept[:_MAX_FAILURES])

    @property
    def failure(self) -> _Failure | None:
        """The first failed module, of those whose last attempt failed."""
        return min((failure for _, failure in self.failures.values() if failure is not None), default=None)

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

        An execution that was joined has none of its own: the process that started it makes that.

        A module without an end lasts until its execution's end, and the execution lasts for as long as any of
        its modules.

        Args:
            execution: What is known of it.
            left: The modules with ids whose spans were not made before.
            reason: Why it is abandoned, where it has no end.
        """
        spans: list[Span] = []
        anonymous = self._anonymous_modules(execution)
        parts = (left, False), (anonymous, True)
        for modules, are_anonymous in parts:
            ended = [module for module in modules if module.is_over]
            if ended:
                spans += self.module_spans(execution, ended, are_anonymous=are_anonymous)
        # known once its parts are; those of an execution that was joined may be told of by another process
        unknown = [] if execution.is_joined else self._unknown_groups(execution)
        parts = ([*left, *unknown], False), (anonymous, True)
        running = [([module for module in modules if not module.is_over], are_it) for modules, are_it in parts]
        own = self._execution_span(execution, reason, [module for modules, _ in running for module in modules])
        for modules, are_anonymous in running:
            if modules:
                spans += self.module_spans(execution, modules, are_anonymous=are_anonymous, until_ns=own.end_ns)
        if not execution.is_joined:
            spans.append(own)
        return spans

    def _unknown_groups(self, execution: Execution) -> list[Module]:
        """Modules of which others are a part, and of which nothing else was ever told."""
        return [
            Module(key)
            for key, group in execution.groups.items()
            if group.end_ns is None
            and key not in execution.modules
            and (group.first_ns < inf or execution.running_in(key))
        ]

    def _execution_span(self, execution: Execution, reason: Reason | None, running: Sequence[Module]) -> Span:
        """The span of an execution, the spans of whose modules that have ended were made before."""
        start, end, failure = execution.start, execution.end, execution.failure
        constants = self._constants(execution)
        attributes: dict[str, AttributeValue] = {**constants.extra, **constants.attributes}
        duration_ms = end.duration_ms if isinstance(end, ExecutionCompleted) else None
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

        Those that have completed, and of which nothing else is known, are made in one loop, since this is where a
        busy listener spends its time.

        Args:
            execution: The modules'.
            modules: What is known of each; some.
            are_anonymous: Whether the ids are computed, and none that somebody else knows.
            until_ns: When those end that have no end: when the execution's span does.
        """
        constants = self._constants(execution)
        common, span_id_of = constants.attributes, constants.ids.of_module
        trace_id, parent_id = constants.trace_id, constants.ids.execution
        state, flags, execution_id = constants.trace_state, constants.trace_flags, execution.execution_id
        first_ns, last_ns, heard_ns = execution.first_ns, execution.last_ns, execution.heard_ns
        is_plain = not execution.groups and not are_anonymous
        if execution.groups:
            modules = _parts_first(execution, modules, are_running=until_ns > 0)
        spans: list[Span] = []
        for module in modules:
            start, end = module.start, module.end
            if (
                is_plain
                and type(end) is ModuleCompleted
                and start is not None
                and module.known is None
                and end.body is None
                and (duration_ms := end.duration_ms) is not None
            ):
                # as `_module_span` makes it, which is asked where this cannot be used
                start_ns = start.timestamp_ns
                duration_ns = ns_of(duration_ms)
                end_ns = start_ns + (duration_ns or 1)
                if end_ns < _MAX_NS:
                    # a function would cost three times as much
                    first_ns = start_ns if start_ns < first_ns else first_ns  # noqa: FURB136
                    last_ns = end_ns if end_ns > last_ns else last_ns  # noqa: FURB136
                    heard_ns = end.timestamp_ns if end.timestamp_ns > heard_ns else heard_ns  # noqa: FURB136
                    name = start.module_name
                    # some seven times as fast as the UUID's own str()
                    module_id = to_builtins(start.module_id)
                    attributes: dict[str, AttributeValue] = {
                        **common,
                        MODULE_ID: module_id,
                        MODULE_NAME: name,
                        OUTCOME: "success",
                    }
                    if not duration_ns:
                        attributes[REPORTED_DURATION] = duration_ms
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
                            _UNSET,
                            None,
                            (),
                            execution_id,
                            False,
                            duration_ns,
                        )
                    )
                    continue
            span = self._module_span(execution, module, constants, is_anonymous=are_anonymous, until_ns=until_ns)
            if module.is_over:
                first_ns, last_ns = min(first_ns, span.start_ns), max(last_ns, span.end_ns)
            if end is not None:
                heard_ns = max(heard_ns, end.timestamp_ns)
            spans.append(span)
        execution.first_ns, execution.last_ns, execution.heard_ns = first_ns, last_ns, heard_ns
        return spans

    def _module_span(
        self, execution: Execution, module: Module, constants: _Constants, *, is_anonymous: bool, until_ns: int
    ) -> Span:
        """The span of a module, whatever is known of it."""
        start, end = module.start, module.end
        known = start or end or module.described
        name = _UNKNOWN if known is None else known.module_name
        status, description = _UNSET, None
        events: tuple[SpanEvent, ...] = ()
        duration_ns: int | None = None
        duration_ms: float | None = None
        attributes: dict[str, AttributeValue] = {**constants.attributes}
        if not is_anonymous:
            attributes[MODULE_ID] = to_builtins(UUID(int=module.key))
        attributes[MODULE_NAME] = name
        if end is None:
            if module.described is None:
                is_cancelled = isinstance(execution.end, ExecutionCancelled)
                attributes[OUTCOME] = "cancelled" if is_cancelled else "unknown"
                end_ns = until_ns
                # where it begins when its execution ends, it is of 1 ns before
                start_ns = end_ns - 1 if start is None else min(start.timestamp_ns, end_ns - 1)
            else:
                attributes[OUTCOME] = "skipped"
                at_ns = module.described.timestamp_ns
                start_ns = at_ns if start is None else min(start.timestamp_ns, at_ns)
                end_ns = max(at_ns, start_ns + 1)
        elif isinstance(end, ModuleCompleted):
            attributes[OUTCOME] = "success"
            duration_ms = end.duration_ms
            # where the body ran elsewhere, its start was told when it was submitted
            is_here = end.body is None or not end.body.is_elsewhere
            start_ns, end_ns, duration_ns = self._times(start if is_here else None, end, duration_ms)
        else:
            error = end.error
            error_type = attributes[ERROR_TYPE] = error.type or OTHER_ERROR
            attributes[OUTCOME] = "failure"
            status, description = StatusCode.ERROR, _said(error) or "failed"
            events = (_exception_event(error, end.timestamp_ns),)
            failure = _Failure(end.timestamp_ns, module.key, error_type, _described(name, error))
            details = known_of(module.known)
            first = module.key if details.attempt_of is None else details.attempt_of.int
            execution.failed(first, details.attempt, failure)
            start_ns, end_ns, duration_ns = self._times(start, end, None)
        if (start is None or end is None) and module.described is None:
            attributes[MISSING] = _missing(start, end)
        if execution.groups:
            start_ns, end_ns = self._grouped(execution, module, start_ns, end_ns)
        if duration_ms is not None and duration_ns != end_ns - start_ns:
            attributes[REPORTED_DURATION] = duration_ms
        span = Span(
            constants.trace_id,
            constants.ids.of_module(module.key),
            constants.ids.execution,
            constants.trace_state,
            constants.trace_flags,
            name,
            _INTERNAL,
            start_ns,
            end_ns,
            attributes,
            status,
            description,
            events,
            execution.execution_id,
            False,
            duration_ns,
        )
        if module.known is not None or (end is not None and end.body is not None):
            return self._told(execution, module, constants, span)
        return span

    def _grouped(self, execution: Execution, module: Module, start_ns: int, end_ns: int) -> tuple[int, int]:
        """A module's times where modules are parts of others: it holds its own, and is held."""
        group = execution.groups.get(module.key)
        around = execution.groups_around(module)
        if not module.is_over and around and around[0].end_ns is not None:
            end_ns = around[0].end_ns
            start_ns = min(start_ns, end_ns - 1)
        if group is not None:
            begun = [it.start.timestamp_ns for it in execution.running_in(module.key) if it.start is not None]
            start_ns = int(min((start_ns, group.first_ns, *begun)))
            end_ns = group.end_ns = int(max(end_ns, group.last_ns))
        for outer in around:
            outer.first_ns, outer.last_ns = min(outer.first_ns, start_ns), max(outer.last_ns, end_ns)
        execution.forget_part(module)
        return start_ns, end_ns

    def _told(self, execution: Execution, module: Module, constants: _Constants, span: Span) -> Span:
        """A module's span with what its engine has told besides, and with what its body has set."""
        details = known_of(module.known)
        body = _NO_BODY if module.end is None or module.end.body is None else module.end.body
        has_failed = span.status is StatusCode.ERROR
        if details.attempt > 1 and span.attributes[OUTCOME] == "success":
            first = module.key if details.attempt_of is None else details.attempt_of.int
            execution.failed(first, details.attempt, None)
        own = dict(span.attributes)
        if module.described is not None and module.end is None:
            own[OUTCOME] = details.outcome or "skipped"
        if details.attempt > 1:
            own[ATTEMPT] = details.attempt
        if details.reason is not None:
            own[REASON] = details.reason
        told = {
            name: value
            for attributes in (details.attributes, body.attributes)
            for name, value in attributes.items()
            if not name.startswith(_OWN)
        }
        # in this order: the SDK drops the first ones where there are too many
        attributes: dict[str, AttributeValue] = {**{name: told[name] for name in told if name not in own}, **own}
        links = [
            SpanLink(constants.trace_id, constants.ids.of_module(each.int), {LINK: UPSTREAM})
            for each in details.upstream
        ]
        links += [
            SpanLink(int(it.trace_id, 16), int(it.span_id, 16), _theirs(it.attributes), it.trace_state, it.trace_flags)
            for it in body.links
        ]
        events = [SpanEvent(it.name, it.timestamp_ns, _theirs(it.attributes)) for it in body.events]
        events += span.events
        status, description = span.status, span.status_description
        if not has_failed and body.status != "unset":
            status = _STATUSES[body.status]
            description = (body.description or "") if body.status == "error" else None
        parent_id = span.parent_span_id
        if details.parent_id is not None:
            parent_id = constants.ids.of_module(details.parent_id.int)
        return replace(
            span,
            parent_span_id=parent_id,
            name=body.name or span.name,
            attributes=attributes,
            status=status,
            status_description=description,
            events=tuple(events),
            links=tuple(links),
            dropped=Dropped(body.dropped_attributes, body.dropped_events, body.dropped_links),
        )

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
        ids = None if constants is None else constants.ids
        parent = None
        if start is not None and start.traceparent is not None:
            parent = remote_parent(start.traceparent, None if isinstance(start, ExecutionJoined) else start.tracestate)
            self.corrected += parent is None
        trace_id, parent_span_id, flags, state = None, None, RANDOM_TRACE_ID, ""
        if parent is not None:
            caller = trace.get_current_span(parent).get_span_context()
            trace_id, parent_span_id = caller.trace_id, caller.span_id
            flags, state = int(caller.trace_flags), caller.trace_state.to_header()
        extra: dict[str, AttributeValue] = {}
        if self._sampling is not None:
            if isinstance(start, ExecutionJoined):
                decision = self._sampling.join(execution_id, name, start.traceparent)
            else:
                decision = self._sampling.decision_on(execution_id, name, parent or Context())
            flags, state, extra = decision.trace_flags, decision.trace_state, decision.attributes
            ids = ids or decision.ids
            if trace_id is None and decision.span_context is not None:
                trace_id = decision.span_context.trace_id
        attributes: dict[str, AttributeValue] = {EXECUTION_ID: to_builtins(execution_id), DAG_NAME: name}
        if start is not None and start.engine is not None:
            attributes[ENGINE] = start.engine
        if isinstance(start, ExecutionStarted) and start.attributes:
            extra = {**extra, **{key: it for key, it in start.attributes.items() if not key.startswith(_OWN)}}
        execution.constants = _Constants(
            start,
            name,
            trace_id_of(execution_id) if trace_id is None else trace_id,
            parent_span_id,
            flags,
            state,
            ids or SpanIds(execution_id),
            attributes,
            extra,
        )
        return execution.constants

    def _times(
        self,
        start: ExecutionStarted | ExecutionJoined | ModuleStarted | None,
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


def _parent_of(module: Module) -> int | None:
    """The number of the id of the module that it is a part of."""
    parent_id = known_of(module.known).parent_id
    return None if parent_id is None else parent_id.int


def _parts_first(execution: Execution, modules: Iterable[Module], *, are_running: bool) -> list[Module]:
    """Modules in an order in which each is before, or where they have no end, behind, the one it is a part of."""
    sign = 1 if are_running else -1
    return sorted(modules, key=lambda module: (sign * len(execution.groups_around(module)), module.key))


def _theirs(attributes: Mapping[str, Any]) -> dict[str, AttributeValue]:
    """Attributes as a span has them: the same values."""
    return dict(attributes)


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
