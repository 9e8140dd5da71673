"""Events in, finished spans out: a state machine without I/O and without a clock.

What is known of an execution is a set of facts, and merging two such sets is
commutative, associative and idempotent: the start is the earliest one, the end
the least by (timestamp, kind, content). Order and repetition therefore cannot
matter for as long as an execution is open. Nothing stays open for ever. What a
span looks like is in ``rendering``.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict, deque
from heapq import heapify, heappop, heappush
from itertools import islice
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from msgspec import Struct

from constellation_otel.events import (
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionJoined,
    ExecutionStarted,
    ModuleCompleted,
    ModuleDescribed,
    ModuleFailed,
    ModuleStarted,
)
from constellation_otel.traces.rendering import EMITTED, Execution, Module, Reason, Rendering
from constellation_otel.traces.span import MISSING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from uuid import UUID

    from constellation_otel.traces.sampling import Sampling
    from constellation_otel.traces.span import Span

__all__ = ["Assembler", "Counters", "Taken"]

_SECOND: Final = 1_000_000_000
_DUE_SLACK: Final = 768
_LOOK_MASK: Final = 0xFF
"""Which of what is scheduled looks whether most of that is of no use any more: every 256th."""
_LOOKED_AT: Final = 256
_KEY: Final = attrgetter("key")
_DUE: Final = attrgetter("due_ns", "key")
_START_PATIENCE: Final = 30
"""How many times ``settle`` an execution that has ended waits for its start."""
_KIND: Final[dict[type[Event], int]] = {ModuleFailed: 1, ExecutionCancelled: 1}
"""Which of two ends at the same moment is the lesser one; the others are 0."""

_NOTHING: Final[Sequence[Span]] = ()
_NO_KEY: Final = -1

Taken: TypeAlias = "tuple[Execution | None, int, Sequence[Span] | Exception]"
"""Events of one execution, one behind the other.

The execution, ``None`` where they are late; the index behind the last of them; the spans that it emits. Or,
where taking an event in raised, that alone, which is left out, with what was raised.
"""

_Due: TypeAlias = tuple[int, int, int, bool]
"""When, a number that no other one has, the execution's key, and whether it is its end, or modules that ended."""


class Counters(Struct):
    """What an assembler has seen and done so far.

    Attributes:
        events: Events taken in.
        executions: Executions whose span was emitted.
        spans: Spans that were emitted, executions and modules, sampled or not.
        late: Events of executions or modules whose span was emitted already; never exported again.
        duplicate: Events that repeated a fact that was known.
        abandoned: Executions that were given up without an end.
        corrected: Values that could not be used and were left out: durations, trace contexts.
        incomplete_executions: Executions whose span was emitted without a start or an end that
            never came.
        incomplete_modules: Modules likewise, those that a cancellation left without an end
            included.
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


class Assembler:
    """Turns events into finished spans.

    Not thread-safe: one thread owns it. ``now_ns`` is nanoseconds of a monotonic clock, for live
    sources. On a replay events are added with their own timestamps, or the time where that is later,
    in whatever order, and the time that passes is one before which hardly anything still comes.

    It is one class of more than 300 lines, since all of its methods keep the same books: what
    is open, in which order it was touched, and what is due.

    Args:
        settle: Seconds that a span waits, after its end came, for events that are
            still on their way; 0 for a source that keeps the order.
        max_open: Executions and modules held at most; beyond it, the execution that
            was silent longest is abandoned.
        idle_timeout: Seconds without an event after which an execution is abandoned.
        max_age: Seconds after its first event at which an execution is abandoned.
        max_settled: How many ids of settled executions are remembered, and how many of
            modules that were emitted, so that a late event does not open them again.
        sampling: Decides on each execution; its flags, state and attributes are on the spans.
        on_loss: Called with each span that is incomplete since an event was lost, or is likely
            to have been: one that came shows that another came before, or an execution was
            silent for ``idle_timeout``. Running modules of an execution that failed, was
            cancelled or is abandoned may have no end, and what is open at the end, or
            beyond ``max_open`` or ``max_age``, may still get one.

    Attributes:
        held: Executions and modules that are open.
        max_open: How many may be.
    """

    def __init__(
        self,
        *,
        settle: float = 0.0,
        max_open: int = 100_000,
        idle_timeout: float = 3_600.0,
        max_age: float = 86_400.0,
        max_settled: int = 100_000,
        sampling: Sampling | None = None,
        on_loss: Callable[[Span], object] | None = None,
    ) -> None:
        if settle < 0 or min(max_open, max_settled) < 1 or min(idle_timeout, max_age) <= 0:
            message = (
                f"settle={settle!r} must not be negative, and max_open={max_open!r}, max_settled={max_settled!r},"
                f" idle_timeout={idle_timeout!r} and max_age={max_age!r} must be above zero"
            )
            raise ValueError(message)
        self._counters = Counters()
        self._rendering = Rendering(sampling)
        self._on_loss = on_loss
        self._settle_ns = round(settle * _SECOND)
        self.max_open = max_open
        self._idle_ns = round(idle_timeout * _SECOND)
        self._max_age_ns = round(max_age * _SECOND)
        self._max_settled = max_settled
        # by the ids' numbers: a UUID's own hash is a function in Python
        self._open: OrderedDict[int, Execution] = OrderedDict()
        self._touched: OrderedDict[int, None] = OrderedDict()
        self._settled: OrderedDict[int, None] = OrderedDict()
        # of executions that were joined, and forgotten: there may be more modules of them, beside those emitted
        self._joined: OrderedDict[int, tuple[ExecutionJoined, dict[int, Module]]] = OrderedDict()
        self._open_joined = 0
        # which modules of whose were emitted, the oldest emission first, its first module last; and how many they are
        self._emitted: deque[tuple[dict[int, Module], list[int]]] = deque()
        self._remembered = 0
        # what is emitted at which time: mostly in order, since most of it waits for as long as all
        self._due: list[_Due] = []
        self._due_in_order: deque[_Due] = deque()
        # when an execution may be silent or open for too long, at the earliest
        self._evict_at_ns: float = inf
        self._position = 0
        self.held = 0
        self._running = 0

    @property
    def counters(self) -> Counters:
        """What was seen and done so far."""
        self._counters.corrected = self._rendering.corrected
        return self._counters

    @property
    def open_executions(self) -> int:
        """Executions whose span was not emitted, but for those that another process has started."""
        return len(self._open) - self._open_joined

    def is_open(self, execution_id: UUID) -> bool:
        """Whether an execution is known and its span was not emitted."""
        return execution_id.int in self._open

    @property
    def open_modules(self) -> int:
        """Modules that have started and not ended, as far as is known."""
        return self._running

    @property
    def deadline_ns(self) -> int | None:
        """When :meth:`advance` has something to do next; ``None`` while nothing is open."""
        if not self._open:
            return None
        deadline = self._next_eviction_ns()
        return int(min(deadline, self._next_due_ns()))

    def add(self, event: Event, now_ns: int, position: int | None = None) -> list[Span]:
        """Takes an event in.

        Args:
            event: The event, which was :func:`~constellation_otel.events.validated`.
            now_ns: The time.
            position: Where it stands in its source; tells two occurrences of the same
                module name apart where modules have no ids. The order of arrival where
                a source has no positions.

        Returns:
            The spans that are emitted by it.
        """
        spans: list[Span] = []
        for _, _, emitted in self.take((event,), (now_ns,), (position,)):
            if isinstance(emitted, Exception):
                raise emitted
            spans += emitted
        while self.held > self.max_open:
            spans += self.evict()
        return spans

    def take(  # noqa: C901, PLR0912, PLR0915 - the busiest one: a call less for each event
        self, events: Sequence[Event], times_ns: Sequence[int], positions: Sequence[int | None]
    ) -> Iterator[Taken]:
        """Takes events in, for a caller who keeps something of its own with each execution.

        It gives nothing up: beyond :attr:`max_open`, the caller does so before it asks for the next.

        Args:
            events: As :meth:`add` takes them, any number.
            times_ns: The time of each.
            positions: The position of each.

        Returns:
            What became of them, in order; all of it has to be asked for.
        """
        self._counters.events += len(events)
        settle_ns, max_open, is_open = self._settle_ns, self.max_open, self._open
        # of the events that were not reported yet
        execution: Any = None
        module: Any
        key, reported = _NO_KEY, 0
        for index, event in enumerate(events):
            emitted: Sequence[Span] | Exception = _NOTHING
            try:
                if event.execution_id.int != key:
                    if reported < index:
                        execution.touched_ns = times_ns[index - 1]
                        yield execution, index, _NOTHING
                        reported = index
                    key = _NO_KEY
                    found = self._found(event, times_ns[index])
                    if found is None:
                        reported = index + 1
                        yield None, reported, _NOTHING
                        continue
                    execution, key, modules = found, found.key, found.modules
                kind = type(event)
                if kind is ModuleStarted:
                    module_id = event.module_id  # type: ignore[union-attr] # it is one
                    if module_id is None:
                        self._add_anonymous(execution, event, positions[index])  # type: ignore[arg-type] # likewise
                    elif (number := module_id.int) in modules:
                        self._merge_start(execution, modules[number], event)  # type: ignore[arg-type] # likewise
                    else:
                        module = modules[number] = Module(number, event)  # type: ignore[arg-type] # likewise
                        self.held += 1
                        self._running += 1
                        if event.details is not None:  # type: ignore[union-attr] # likewise
                            execution.tell(module, event.timestamp_ns, event.details)  # type: ignore[union-attr] # likewise
                elif kind is ModuleCompleted or kind is ModuleFailed:
                    module_id = event.module_id  # type: ignore[union-attr] # likewise
                    module = None if module_id is None else modules.get(module_id.int)
                    # what was emitted is described, too
                    if module is None or module.end is not None or module.described is not None:
                        module = self._ended(execution, module, event, positions[index])  # type: ignore[arg-type] # likewise
                    else:
                        module.end = event
                        self._running -= 1
                        if event.details is not None:  # type: ignore[union-attr] # likewise
                            execution.tell(module, event.timestamp_ns, event.details)  # type: ignore[union-attr] # likewise
                    if module is not None and settle_ns:
                        due_ns = module.due_ns = times_ns[index] + settle_ns
                        if execution.is_scheduled and execution.ended[-1].due_ns <= due_ns:
                            execution.ended.append(module)
                        else:
                            self._schedule_module(execution, module)
                    elif module is not None and execution.start is not None:
                        emitted = self.emit_modules(execution, [module])
                elif kind is ModuleDescribed:
                    emitted = self._merge_described(execution, event, times_ns[index])  # type: ignore[arg-type] # it is one
                else:
                    emitted = self._merge_own(execution, event, times_ns[index])  # type: ignore[arg-type] # one of the others
            except Exception as error:  # noqa: BLE001 - a defect, which must cost one event and no more
                if reported < index:
                    execution.touched_ns = times_ns[index - 1]
                    yield execution, index, _NOTHING
                emitted = error
                if key != _NO_KEY and event.execution_id != execution.execution_id:
                    key = _NO_KEY
            if emitted or self.held > max_open or (execution is not None and execution.is_over):
                reported = index + 1
                if key == _NO_KEY:
                    # it was not found out which execution's it is
                    yield None, reported, emitted
                    continue
                execution.touched_ns = times_ns[index]
                yield execution, reported, emitted
                if is_open.get(key) is not execution:
                    key = _NO_KEY
        if reported < len(events):
            execution.touched_ns = times_ns[-1]
            yield execution, len(events), _NOTHING

    def _found(self, event: Event, now_ns: int) -> Execution | None:
        """The event's execution, a new one where need be; ``None`` where the event is late."""
        key = event.execution_id.int
        execution = self._open.get(key)
        if execution is None:
            return self._opened(event, now_ns)
        self._touched.move_to_end(key)
        return execution

    def _opened(self, event: Event, now_ns: int) -> Execution | None:
        """A new execution; ``None`` where its span was emitted already: the event is late, and counted."""
        key = event.execution_id.int
        if key in self._settled:
            self._counters.late += 1
            return None
        execution = self._open[key] = Execution(event.execution_id, key, now_ns, now_ns)
        if key in self._joined:
            execution.start, execution.modules = self._joined.pop(key)
            execution.has_emitted = bool(execution.modules)
            self._open_joined += 1
        self._touched[key] = None
        self.held += 1
        self._evict_at_ns = min(self._evict_at_ns, now_ns + min(self._idle_ns, self._max_age_ns))
        return execution

    def _merge_start(self, execution: Execution, module: Module, event: ModuleStarted) -> None:
        """One more start of a module, or one behind its end, which waits for time or the execution's start."""
        if module is EMITTED:
            self._counters.late += 1
            return
        module.start = event if module.start is None else self._least(module.start, event)
        if event.details is not None:
            execution.tell(module, event.timestamp_ns, event.details)

    def _merge_described(self, execution: Execution, event: ModuleDescribed, now_ns: int) -> Sequence[Span]:
        """A module that did not run; where its events say that it did, they are right."""
        key = event.module_id.int
        module = execution.modules.get(key)
        if module is EMITTED:
            self._counters.late += 1
            return _NOTHING
        if module is None:
            module = execution.modules[key] = Module(key)
            self.held += 1
        elif not module.is_over:
            self._running -= 1
        was_over = module.is_over
        module.described = self._least(module.described, event)
        execution.tell(module, event.timestamp_ns, event.details)
        if was_over:
            return _NOTHING
        if self._settle_ns:
            module.due_ns = now_ns + self._settle_ns
            self._schedule_module(execution, module)
            return _NOTHING
        return self.emit_modules(execution, [module]) if execution.start is not None else _NOTHING

    def _ended(
        self, execution: Execution, module: Module | None, event: ModuleCompleted | ModuleFailed, position: int | None
    ) -> Module | None:
        """A module that has ended and not started; ``None`` where it has no id, or had ended before."""
        if event.module_id is None:
            self._add_anonymous(execution, event, position)
            return None
        if module is None:
            key = event.module_id.int
            module = execution.modules[key] = Module(key, None, event)
            execution.lacks_starts = True
            self.held += 1
            if event.details is not None:
                execution.tell(module, event.timestamp_ns, event.details)
            return module
        if module is EMITTED:
            self._counters.late += 1
            return None
        module.end = self._least(module.end, event)
        execution.lacks_starts = execution.lacks_starts or module.start is None
        if event.details is not None:
            execution.tell(module, event.timestamp_ns, event.details)
        return None

    @property
    def executions(self) -> Collection[Execution]:
        """What is open."""
        return self._open.values()

    def advance(self, now_ns: int) -> list[Span]:
        """Lets time pass.

        Args:
            now_ns: The time.

        Returns:
            The spans that are emitted by it, in the order in which they were due.
        """
        return [
            span
            for execution, reason, ended in self.due(now_ns)
            for span in (self.emit(execution, reason) if ended is None else self.emit_modules(execution, ended))
        ]

    def due(self, now_ns: int) -> Iterator[tuple[Execution, Reason | None, list[Module] | None]]:
        """Lets time pass, for a caller who keeps something of its own with each execution.

        Args:
            now_ns: The time.

        Returns:
            Executions of which something is due, each with why it is abandoned, where it is, and with the modules
            that are due, where it is not due itself: to be emitted before the next one is asked for. All of them
            have to be asked for.
        """
        yield from self._settled_by(now_ns)
        if now_ns < self._evict_at_ns:
            return
        idle_ns, max_age_ns = self._idle_ns, self._max_age_ns
        for execution in self._silent_for(self._touched, lambda it: it.touched_ns, idle_ns, now_ns):
            yield execution, "idle", None
        for execution in self._silent_for(self._open, lambda it: it.opened_ns, max_age_ns, now_ns):
            yield execution, "age", None
        self._evict_at_ns = min(self._next_eviction_ns(), now_ns + min(idle_ns, max_age_ns)) if self._open else inf

    def _silent_for(
        self, keys: OrderedDict[int, Any], since_ns: Callable[[Execution], int], patience_ns: int, now_ns: int
    ) -> Iterator[Execution]:
        """Of what stands first in an order, what has been so for too long."""
        from_future = 0
        while keys:
            key = next(iter(keys))
            execution = self._open[key]
            since = since_ns(execution)
            if since + patience_ns <= now_ns:
                yield execution
            elif since > now_ns + patience_ns and from_future < _LOOKED_AT:
                # an event from the future: it hides nothing that stands behind it
                keys.move_to_end(key)
                from_future += 1
            else:
                return

    def _next_due_ns(self) -> float:
        in_order, others = self._due_in_order, self._due
        if not others:
            return in_order[0][0] if in_order else inf
        return min(in_order[0][0], others[0][0]) if in_order else others[0][0]

    def _next_eviction_ns(self) -> float:
        oldest = self._open[next(iter(self._open))]
        silent = self._open[next(iter(self._touched))]
        return min(oldest.opened_ns + self._max_age_ns, silent.touched_ns + self._idle_ns)

    def finish(self, *, abandon: bool = True) -> list[Span]:
        """Emits everything: its source has ended, or its owner closes.

        Args:
            abandon: Whether executions without an end are emitted too; otherwise they stay open.

        Returns:
            The spans: executions without an end are abandoned.
        """
        return [span for execution in self.to_finish(abandon=abandon) for span in self.emit(execution, "closed")]

    def to_finish(self, *, abandon: bool) -> list[Execution]:
        """What :meth:`finish` emits, for a caller who does so one at a time."""
        return [it for it in self._open.values() if abandon or it.end is not None]

    def evict(self) -> list[Span]:
        """Emits an execution, to make room: one of which nothing is open, or that was silent longest.

        Returns:
            Its spans; none where nothing is open.
        """
        execution = self.next_to_evict()
        return [] if execution is None else self.emit(execution, "capacity")

    def next_to_evict(self) -> Execution | None:
        """What makes room, for a caller who emits it."""
        if not self._touched:
            return None
        # of those that were silent longest only, so that it costs little
        silent = (self._open[key] for key in islice(self._touched, _LOOKED_AT))
        over = (it for it in silent if it.end is not None or it.is_only_remembered)
        return next(over, self._open[next(iter(self._touched))])

    def unsettle(self, execution_id: UUID) -> None:
        """Forgets that an execution was emitted, so that its events, read once more, make the same spans again."""
        self._settled.pop(execution_id.int, None)

    def discard(self, execution: Execution) -> None:
        """Forgets an open execution as if it had never been heard of: another process has it."""
        self._close(execution)
        execution.modules.clear()

    def _merge_own(
        self,
        execution: Execution,
        event: ExecutionStarted | ExecutionJoined | ExecutionCompleted | ExecutionCancelled,
        now_ns: int,
    ) -> list[Span]:
        if isinstance(event, ExecutionStarted | ExecutionJoined):
            if execution.has_emitted:
                # a module's span has the parent and the trace already; it may be joined again
                is_again = isinstance(event, ExecutionJoined) and execution.is_joined
                self._counters.late += not is_again
                self._counters.duplicate += is_again
                return []
            was_known, was_joined = execution.start is not None, execution.is_joined
            execution.start = self._least(execution.start, event)
            self._open_joined += execution.is_joined - was_joined
            if not self._settle_ns:
                return self._modules_that_waited(execution) if execution.modules else []
            if not was_known:
                self._schedule_what_waited(execution, now_ns)
        else:
            was_known = execution.end is not None
            execution.end = self._least(execution.end, event)
            if not self._settle_ns:
                return self.emit(execution, None)
            if not was_known:
                self._schedule_end(execution, now_ns)
        return []

    def _least(self, known: Any, event: Any) -> Any:
        """The fact that stays of two that are the same kind of fact."""
        if known is None:
            return event
        self._counters.duplicate += 1
        return min(known, event, key=_order)

    def _add_anonymous(
        self, execution: Execution, event: ModuleStarted | ModuleCompleted | ModuleFailed, position: int | None
    ) -> None:
        if position is None:
            position = self._position
            self._position += 1
        at = (event.timestamp_ns, position)
        if at in execution.anonymous:
            self._counters.duplicate += 1
        else:
            self.held += 1
            execution.anonymous = execution.anonymous or {}
            execution.anonymous[at] = event

    def _settled_by(self, now_ns: int) -> Iterator[tuple[Execution, None, list[Module] | None]]:
        """What has waited for long enough after its end."""
        in_order, others, is_open = self._due_in_order, self._due, self._open
        while in_order or others:
            is_first = in_order and (not others or in_order[0] < others[0])
            if (in_order if is_first else others)[0][0] > now_ns:
                break
            _, _, key, is_end = in_order.popleft() if is_first else heappop(others)
            execution = is_open.get(key)
            # looked at again: what was due may have been emitted, and its id have been opened anew
            if execution is None:
                continue
            if not is_end:
                ended = self._settled_of(execution, now_ns)
                if ended:
                    yield execution, None, ended
            elif execution.end is not None:
                patience_ends_ns = execution.touched_ns + self._settle_ns * _START_PATIENCE
                if execution.start is not None or now_ns >= patience_ends_ns:
                    yield execution, None, None
                else:
                    self._schedule_at(patience_ends_ns, execution, is_end=True)

    def _settled_of(self, execution: Execution, now_ns: int) -> list[Module]:
        """Those of an execution's modules that ended long enough ago, once its start is known."""
        execution.is_scheduled = False
        due: list[Module] = []
        ended = execution.ended
        if execution.start is None or ended is None:
            return due
        while ended and ended[0].due_ns <= now_ns:
            due.append(ended.popleft())
        if ended:
            execution.is_scheduled = True
            self._schedule_at(ended[0].due_ns, execution, is_end=False)
        return due

    def _schedule_end(self, execution: Execution, now_ns: int) -> None:
        """Sees to it that an execution that has ended is emitted; one without a start is waited for longer."""
        patience = 1 if execution.start is not None else _START_PATIENCE
        self._schedule_at(now_ns + self._settle_ns * patience, execution, is_end=True)

    def _schedule_what_waited(self, execution: Execution, now_ns: int) -> None:
        """Sees to it that what came before the start is emitted when that has settled."""
        if execution.end is not None:
            self._schedule_end(execution, now_ns)
        if execution.ended and not execution.is_scheduled:
            execution.is_scheduled = True
            self._schedule_at(now_ns + self._settle_ns, execution, is_end=False)

    def _schedule_module(self, execution: Execution, module: Module) -> None:
        """Sees to it that a module that has ended is emitted, with others of its execution that are due then."""
        ended = execution.ended = execution.ended if execution.ended is not None else deque()
        if not ended or ended[-1].due_ns <= module.due_ns:
            ended.append(module)
        else:
            # on a replay only, and before one from the future, too
            insort(ended, module, key=_DUE)
        if not execution.is_scheduled or ended[0] is module:
            execution.is_scheduled = True
            self._schedule_at(module.due_ns, execution, is_end=False)

    def _schedule_at(self, due_ns: int, execution: Execution, *, is_end: bool) -> None:
        number = self._position = self._position + 1
        in_order = self._due_in_order
        if not in_order or in_order[-1][0] <= due_ns:
            in_order.append((due_ns, number, execution.key, is_end))
        else:
            heappush(self._due, (due_ns, number, execution.key, is_end))
        if not number & _LOOK_MASK and len(in_order) + len(self._due) > 4 * self.held + _DUE_SLACK:
            # most are of what was emitted otherwise
            kept = [due for due in in_order if due[2] in self._open]
            in_order.clear()
            in_order += kept
            self._due[:] = [due for due in self._due if due[2] in self._open]
            heapify(self._due)

    def _modules_that_waited(self, execution: Execution) -> list[Span]:
        """The modules whose end came before the execution's start."""
        waited = [module for module in execution.not_emitted() if module.is_over]
        return self.emit_modules(execution, waited) if waited else []

    def emit_modules(self, execution: Execution, ended: list[Module]) -> list[Span]:
        """Modules that have ended become spans; what stays is that they were emitted, and how they failed."""
        spans = self._rendering.module_spans(execution, ended)
        # the first one last, so that it can be taken off
        keys = [module.key for module in reversed(ended)]
        execution.modules.update(dict.fromkeys(keys, EMITTED))
        execution.has_emitted = True
        self.held -= len(ended)
        self._counters.spans += len(ended)
        self._emitted.append((execution.modules, keys))
        self._remembered += len(keys)
        self._forget_oldest()
        if execution.lacks_starts:
            for span in spans:
                if MISSING in span.attributes:
                    self._count_incomplete(span, is_loss=True)
        return spans

    def _forget_oldest(self) -> None:
        """Forgets which modules were emitted, of executions that are over, and beyond what is remembered."""
        emitted = self._emitted
        while True:
            # what was emitted last is never forgotten as a whole
            modules, keys = emitted[0]
            if not modules:
                self._remembered -= len(keys)
                keys.clear()
            while keys and self._remembered > self._max_settled:
                modules.pop(keys.pop(), None)
                self._remembered -= 1
            if keys:
                return
            emitted.popleft()

    def emit(self, execution: Execution, reason: Reason | None) -> list[Span]:
        """What is left of an open execution becomes spans, its own the last.

        Args:
            execution: One that is open.
            reason: Why it is abandoned, where it has no end.
        """
        left = self._close(execution)
        counters, start = self._counters, execution.start
        if not isinstance(start, ExecutionJoined):
            self._settled[execution.key] = None
            if len(self._settled) > self._max_settled:
                self._settled.popitem(last=False)
            counters.abandoned += execution.end is None
        succeeded = isinstance(execution.end, ExecutionCompleted) and execution.end.succeeded
        left.sort(key=_KEY)
        spans = self._rendering.last_spans(execution, left, reason)
        for span in spans:
            missing = span.attributes.get(MISSING)
            if missing is None:
                continue
            if span.is_execution:
                is_loss = execution.start is None or reason == "idle"
            else:
                is_loss = missing != "end" or succeeded
            self._count_incomplete(span, is_loss=is_loss)
        counters.spans += len(spans)
        if isinstance(start, ExecutionJoined):
            self._remember_joined(execution, start, left)
        else:
            counters.executions += 1
            # the memory of what was emitted has the same dictionary
            execution.modules.clear()
        return spans

    def _remember_joined(self, execution: Execution, start: ExecutionJoined, left: list[Module]) -> None:
        """What another process has started may have more modules here, and events of those that were emitted."""
        if left:
            keys = [module.key for module in reversed(left)]
            execution.modules.update(dict.fromkeys(keys, EMITTED))
            self._emitted.append((execution.modules, keys))
            self._remembered += len(keys)
            self._forget_oldest()
        self._joined[execution.key] = (start, execution.modules)
        if len(self._joined) > self._max_settled:
            _, (_, modules) = self._joined.popitem(last=False)
            modules.clear()

    def _count_incomplete(self, span: Span, *, is_loss: bool) -> None:
        if span.is_execution:
            self._counters.incomplete_executions += 1
        else:
            self._counters.incomplete_modules += 1
        if is_loss and self._on_loss is not None:
            self._on_loss(span)

    def _close(self, execution: Execution) -> list[Module]:
        """An execution is not open any more; its modules whose span was not emitted."""
        key = execution.key
        del self._open[key]
        del self._touched[key]
        left = execution.not_emitted()
        self.held -= 1 + len(left) + len(execution.anonymous)
        execution.is_over = True
        self._open_joined -= execution.is_joined
        for module in left:
            self._running -= not module.is_over
        if not self._open:
            self._due.clear()
            self._due_in_order.clear()
        return left


def _order(event: Event) -> tuple[bool, int, int, bytes]:
    """Timestamp, kind, content: a total order on the facts of one kind. That an execution was joined is the last."""
    is_joined = type(event) is ExecutionJoined
    return is_joined, event.timestamp_ns, _KIND.get(type(event), 0), repr(event).encode("utf-8", "surrogatepass")
