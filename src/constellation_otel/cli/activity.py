"""What a source's executions are doing: a model that is fed with what was read, without I/O and without a clock.

How it looks on a terminal is in ``board``; what reads the source is in ``watch``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable
from heapq import nlargest
from itertools import islice
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Final
from uuid import UUID

from msgspec import Struct, field
from msgspec.structs import replace

from constellation_otel.cli.signs import end_ns_of, outcome_of
from constellation_otel.delivery import Batch, Restarted, Unreadable
from constellation_otel.events import ModuleStarted
from constellation_otel.traces import MISSING, Assembler

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from constellation_otel.delivery import Revoked
    from constellation_otel.events import Event
    from constellation_otel.traces import Execution, Reason, Span

__all__ = ["WINDOW_S", "Activity", "Finished", "Losses", "Running", "RunningModule", "Snapshot"]

WINDOW_S: Final = 300
"""Seconds for which it is remembered what has finished."""
_MINUTE_S: Final = 60
_EVENT_RATE_S: Final = 10
_SECOND: Final = 1_000_000_000
_PAST_NS: Final = 60 * _SECOND
"""How far back events are of the past, and their clock is not just late."""
_SHOWN: Final = 5
"""How many of the last failures, and of the slowest, are kept."""
_UNKNOWN: Final = "unknown"


class Finished(Struct, frozen=True):
    """An execution that has ended, or was given up.

    Attributes:
        execution_id: Its id.
        dag_name: The DAG's name.
        outcome: ``success``, ``failure``, ``cancelled`` or ``abandoned``.
        start_ns: Epoch nanoseconds.
        end_ns: Epoch nanoseconds, not before the start.
        modules: How many modules are known of it.
        failure: What failed and why; ``None`` where nothing did.
        missing: Which of its own events never came: ``start``, ``end`` or ``start,end``.
    """

    execution_id: UUID
    dag_name: str
    outcome: str
    start_ns: int
    end_ns: int
    modules: int
    failure: str | None = None
    missing: str | None = None

    @property
    def duration_ns(self) -> int:
        """From start to end."""
        return self.end_ns - self.start_ns


class RunningModule(Struct, frozen=True):
    """A module that has started and not ended.

    Attributes:
        name: Its name.
        elapsed_ns: Since its start.
    """

    name: str
    elapsed_ns: int


class Running(Struct, frozen=True):
    """An execution that has not ended.

    Attributes:
        execution_id: Its id.
        dag_name: The DAG's name; ``unknown`` where no event has told it.
        elapsed_ns: Since its start, or since its first event where its start never came.
        silent_ns: Since its last event.
        done: Modules that have ended.
        modules: Modules that run, those that have run longest first.
    """

    execution_id: UUID
    dag_name: str
    elapsed_ns: int
    silent_ns: int
    done: int
    modules: tuple[RunningModule, ...]


class Losses(Struct, frozen=True):
    """What a source has lost, as far as that can be seen.

    Attributes:
        gaps: How often the source was away, and lost what came meanwhile.
        dropped: Events that the source had no room for.
        restarts: How often what produces the events was restarted.
        unreadable: Records that could not be read as events.
        unreadable_reason: Why the last of these could not.
        executions: Executions whose start or end never came.
        modules: Modules likewise.
        abandoned: Executions that were given up without an end, those of restarts included.
    """

    gaps: int = 0
    dropped: int = 0
    restarts: int = 0
    unreadable: int = 0
    unreadable_reason: str | None = None
    executions: int = 0
    modules: int = 0
    abandoned: int = 0


class Snapshot(Struct, frozen=True):
    """What is going on at one moment.

    Attributes:
        events: Events that were read.
        running: The executions that have run longest, as many as were asked for.
        running_count: How many run.
        events_per_second: Of the last ten seconds, by when they came.
        finished_per_minute: How many executions have ended in the last minute.
        outcomes: How many have ended in the last five minutes, by outcome.
        slowest: Of the last five minutes, the slowest first.
        failures: The last ones, the newest first.
        finished: How many have ended since the beginning, by outcome.
        losses: What was lost.
    """

    events: int
    running: tuple[Running, ...]
    running_count: int
    events_per_second: float
    finished_per_minute: int
    outcomes: Counter[str]
    slowest: tuple[Finished, ...]
    failures: tuple[Finished, ...]
    finished: Counter[str]
    losses: Losses


class _Note(Struct):
    """What is kept with an open execution, beside what the assembler knows.

    Attributes:
        origin: The part of the source that its first event came from.
        offset: Where that part has its last one.
        first_ns: The earliest of its events' timestamps.
        last_ns: The latest of them.
        modules: Modules whose spans were made.
        is_running: Whether its end has not come.
    """

    origin: Hashable
    offset: int
    first_ns: int
    last_ns: int
    modules: int = 0
    is_running: bool = True


class _Second(Struct):
    """What has happened in one second.

    Attributes:
        events: Events that came.
        outcomes: How executions have ended.
        slowest: The slowest of these.
    """

    events: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: list[Finished] = field(default_factory=list)


class Activity:
    """What runs, what has finished in the last minutes, and what was lost.

    Times that are handed in are epoch nanoseconds that never go back. What it holds is bounded:
    beyond ``max_open`` executions and modules, the execution that was silent longest is given up.

    Past events are taken as of their own time, so that an execution which was left without an end
    an hour before the last of them is given up, and does not count as running.

    Args:
        settle: Seconds that an end waits for events that are still on their way; 0 for a source
            that keeps the order.
        max_open: Executions and modules held at most.
        idle_timeout: Seconds without an event after which an execution is given up.
    """

    def __init__(self, *, settle: float = 1.0, max_open: int = 100_000, idle_timeout: float = 3_600.0) -> None:
        self._assembler = Assembler(
            settle=settle, max_open=max_open, idle_timeout=idle_timeout, on_loss=self._count_loss
        )
        # by what the events say, and when something was last handed in
        self._time_ns = self._looked_ns = 0
        self._events = self._running_count = 0
        self._seconds: dict[int, _Second] = {}
        self._failures: deque[Finished] = deque(maxlen=_SHOWN)
        self._finished: Counter[str] = Counter()
        self._losses = Losses()

    def add(self, items: Iterable[Batch | Unreadable | Restarted | Revoked], now_ns: int) -> list[Finished]:
        """Takes in what a source has given.

        Args:
            items: As :func:`~constellation_otel.delivery.batches_of` gathers them.
            now_ns: The time.

        Returns:
            The executions that have ended by it.
        """
        self._looked_ns = now_ns
        finished: list[Finished] = []
        for item in items:
            if isinstance(item, Batch):
                finished += self._take(item, now_ns)
            elif isinstance(item, Unreadable):
                self._count_unreadable(item.reason)
            elif isinstance(item, Restarted):
                finished += self._restart(item, now_ns)
            # nobody takes a part of a source away that is only watched
        return finished

    def advance(self, now_ns: int) -> list[Finished]:
        """Lets time pass, when everything has been read that there is.

        Args:
            now_ns: The time.

        Returns:
            The executions that have ended by it: what had to settle, or was silent for too long.
        """
        passed_ns, self._looked_ns = now_ns - self._looked_ns, now_ns
        if not self._assembler.held:
            # time stands: what comes first may be long past
            return []
        if now_ns - self._time_ns > _PAST_NS:
            # what was read is of the past, and nothing of it is still on its way
            return self._pass(now_ns, now_ns)
        # what is on its way has as long as it should, though the clock of who sends it be late
        return self._pass(self._time_ns + passed_ns, now_ns)

    def finish(self, now_ns: int) -> list[Finished]:
        """Takes no more in; executions without an end go on running.

        Args:
            now_ns: The time.

        Returns:
            The executions that had ended, and waited for what might still come.
        """
        ended = self._assembler.to_finish(abandon=False)
        return [done for it in ended for done in self._give_up(it, None, now_ns)]

    def lose(self, *, gaps: int, dropped: int) -> None:
        """Takes what the source says of its losses so far.

        Args:
            gaps: How often it was away, and lost what came meanwhile.
            dropped: Events that it had no room for.
        """
        self._losses = replace(self._losses, gaps=gaps, dropped=dropped)

    def snapshot(self, now_ns: int, most: int) -> Snapshot:
        """What is going on.

        Args:
            now_ns: The time.
            most: How many running executions are wanted, at most.
        """
        self._forget(now_ns)
        this = now_ns // _SECOND
        outcomes: Counter[str] = Counter()
        for second in self._seconds.values():
            outcomes.update(second.outcomes)
        last_minute = [second.outcomes.total() for at, second in self._seconds.items() if at > this - _MINUTE_S]
        last_events = [second.events for at, second in self._seconds.items() if this - _EVENT_RATE_S <= at < this]
        return Snapshot(
            events=self._events,
            running=tuple(_running(it, now_ns) for it in islice(self._open(), most)),
            running_count=self._running_count,
            events_per_second=sum(last_events) / _EVENT_RATE_S,
            finished_per_minute=sum(last_minute),
            outcomes=outcomes,
            slowest=tuple(_slowest(it for second in self._seconds.values() for it in second.slowest)),
            failures=tuple(reversed(self._failures)),
            finished=self._finished.copy(),
            losses=self._losses,
        )

    def _open(self) -> Iterator[Execution]:
        """What runs, in the order in which it was first heard of."""
        return (it for it in self._assembler.executions if it.note.is_running)

    def _take(self, batch: Batch, now_ns: int) -> Iterator[Finished]:
        events, offsets = batch.events, batch.offsets
        self._events += len(events)
        self._second(now_ns, now_ns).events += len(events)
        times_ns = [max(self._time_ns, min(now_ns, event.timestamp_ns)) for event in events]
        first = 0
        for execution, stop, spans in self._assembler.take(events, times_ns, offsets):
            if isinstance(spans, Exception):
                # a defect, which costs one event
                self._count_unreadable(f"{type(spans).__name__}: {spans}")
                spans = ()  # noqa: PLW2901 - none were made
            if execution is not None:
                self._note(execution, batch.origin, offsets[stop - 1], events[first:stop])
                yield from self._emitted(execution, spans, now_ns)
            first = stop
            while self._assembler.held > self._assembler.max_open and (oldest := self._assembler.next_to_evict()):
                yield from self._give_up(oldest, "capacity", now_ns)
        yield from self._pass(max(times_ns, default=0), now_ns)

    def _note(self, execution: Execution, origin: Hashable, offset: int, events: Sequence[Event]) -> None:
        """These events are of the execution."""
        first_ns = min(event.timestamp_ns for event in events)
        last_ns = max(event.timestamp_ns for event in events)
        note: _Note | None = execution.note
        if note is None:
            note = execution.note = _Note(origin, offset, first_ns, last_ns)
            self._running_count += 1
        note.offset = offset
        note.first_ns, note.last_ns = min(note.first_ns, first_ns), max(note.last_ns, last_ns)
        if execution.end is not None:
            self._stop(note)

    def _stop(self, note: _Note) -> None:
        self._running_count -= note.is_running
        note.is_running = False

    def _pass(self, time_ns: int, now_ns: int) -> list[Finished]:
        self._time_ns = max(self._time_ns, time_ns)
        finished: list[Finished] = []
        for execution, reason, ended in self._assembler.due(self._time_ns):
            if ended is None:
                finished += self._give_up(execution, reason, now_ns)
            else:
                finished += self._emitted(execution, self._assembler.emit_modules(execution, ended), now_ns)
        return finished

    def _restart(self, item: Restarted, now_ns: int) -> list[Finished]:
        """What was open in that part before has no end any more."""
        self._losses = replace(self._losses, restarts=self._losses.restarts + 1)
        origin, offset = item.position
        lost = [
            it
            for it in self._assembler.executions
            if it.note.is_running and it.note.origin == origin and it.note.offset < offset
        ]
        return [done for it in lost for done in self._give_up(it, "engine_restarted", now_ns)]

    def _give_up(self, execution: Execution, reason: Reason | None, now_ns: int) -> list[Finished]:
        """An execution is over: it has ended, or it is abandoned."""
        return self._emitted(execution, self._assembler.emit(execution, reason), now_ns)

    def _emitted(self, execution: Execution, spans: Sequence[Span], now_ns: int) -> list[Finished]:
        """Takes in spans of an execution, of its modules and its own."""
        note: _Note = execution.note
        if execution.is_over:
            self._stop(note)
        own = [span for span in spans if span.is_execution]
        note.modules += len(spans) - len(own)
        return [self._finish(execution.execution_id, span, note.modules, now_ns) for span in own]

    def _finish(self, execution_id: UUID, span: Span, modules: int, now_ns: int) -> Finished:
        outcome, missing = outcome_of(span), span.attributes.get(MISSING)
        done = Finished(
            execution_id=execution_id,
            dag_name=span.name,
            outcome=outcome,
            start_ns=span.start_ns,
            end_ns=end_ns_of(span),
            modules=modules,
            failure=span.status_description,
            missing=None if missing is None else str(missing),
        )
        self._finished[outcome] += 1
        if outcome == "failure":
            self._failures.append(done)
        if outcome == "abandoned":
            self._losses = replace(self._losses, abandoned=self._losses.abandoned + 1)
        second = self._second(done.end_ns, now_ns)
        second.outcomes[outcome] += 1
        second.slowest = _slowest([*second.slowest, done])
        return done

    def _second(self, at_ns: int, now_ns: int) -> _Second:
        """Where it is counted what happened then; what is long past is counted nowhere."""
        this = now_ns // _SECOND
        # a clock of the engine's that is ahead
        at = min(at_ns // _SECOND, this)
        if at <= this - WINDOW_S:
            return _Second()
        if at not in self._seconds:
            self._forget(now_ns)
            self._seconds[at] = _Second()
        return self._seconds[at]

    def _forget(self, now_ns: int) -> None:
        oldest = now_ns // _SECOND - WINDOW_S
        for at in [at for at in self._seconds if at <= oldest]:
            del self._seconds[at]

    def _count_unreadable(self, reason: str) -> None:
        self._losses = replace(self._losses, unreadable=self._losses.unreadable + 1, unreadable_reason=reason)

    def _count_loss(self, span: Span) -> None:
        if not span.is_execution:
            self._losses = replace(self._losses, modules=self._losses.modules + 1)
        elif span.attributes[MISSING] != "end":
            # one without an end counts as given up
            self._losses = replace(self._losses, executions=self._losses.executions + 1)


def _slowest(finished: Iterable[Finished]) -> list[Finished]:
    return nlargest(_SHOWN, finished, key=attrgetter("duration_ns"))


def _running(execution: Execution, now_ns: int) -> Running:
    """How an execution is that has not ended."""
    note: _Note = execution.note
    start, modules = execution.start, execution.modules.values()
    started = [(it.start.module_name, it.start.timestamp_ns) for it in modules if it.start and not it.is_over]
    without_id, ended = _without_id(execution)
    started = sorted(started + without_id, key=itemgetter(1, 0))
    return Running(
        execution_id=execution.execution_id,
        dag_name=_UNKNOWN if start is None else start.dag_name,
        elapsed_ns=max(0, now_ns - note.first_ns),
        silent_ns=max(0, now_ns - note.last_ns),
        done=sum(module.is_over for module in modules) + ended,
        modules=tuple(RunningModule(name, max(0, now_ns - start_ns)) for name, start_ns in started),
    )


def _without_id(execution: Execution) -> tuple[list[tuple[str, int]], int]:
    """Of modules whose events have no id, which run, and how many have ended: an end is that of the oldest start."""
    started: dict[str, deque[int]] = {}
    ended: Counter[str] = Counter()
    for _, event in sorted(execution.anonymous.items(), key=itemgetter(0)):
        if isinstance(event, ModuleStarted):
            started.setdefault(event.module_name, deque()).append(event.timestamp_ns)
        else:
            ended[event.module_name] += 1
    running = [(name, at) for name, starts in started.items() for at in islice(starts, ended[name], None)]
    return running, ended.total()
