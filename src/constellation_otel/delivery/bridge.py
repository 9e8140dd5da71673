"""A bridge reads a source and brings its events to sinks, until the source ends or it is stopped."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.log import RateLimitedLog, log
from constellation_otel.delivery.clocks import Watermark
from constellation_otel.delivery.contract import (
    Batch,
    Position,
    Restarted,
    Revoked,
    Unreadable,
    as_source,
    batches_of,
    kinds_for,
)
from constellation_otel.delivery.counters import AssemblyCounters, JournalCounters, SinkCounters
from constellation_otel.delivery.journaled import Journaled
from constellation_otel.delivery.losses import LossLog
from constellation_otel.delivery.pipeline import Ended, Pipeline
from constellation_otel.delivery.receipt import Acknowledgements, place_of
from constellation_otel.delivery.retry import Retry
from constellation_otel.delivery.sender import Sender
from constellation_otel.delivery.transform import PassThrough, TraceAssembly
from constellation_otel.errors import ConfigurationError, MisconfiguredError, SourceError, UnavailableError
from constellation_otel.events import ExecutionStarted
from constellation_otel.traces import Assembler, Sampling, decide, exported, sampler_of_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from opentelemetry.sdk.trace.sampling import Sampler

    from constellation_otel.delivery.contract import AnySource, Sink, SpanObserver, Store
    from constellation_otel.delivery.dead_letters import DeadLetters
    from constellation_otel.delivery.journal_ends import ReadingEnd
    from constellation_otel.delivery.receipt import Receipt
    from constellation_otel.traces import Span

__all__ = ["Bridge", "BridgeReport", "sink_names"]

_LOGGER: Final = logging.getLogger(__name__)
_READ_S: Final = 0.25
_STEP_S: Final = 0.05
"""Seconds in which a pause notices that the bridge is stopped."""
_SETTLE_S: Final = 1.0
"""Seconds that spans wait for events still on their way, where the source does not keep the order."""
_WAITING: Final = 2_048
"""Events that wait for a sink at most, where more are read only when there is room: few, since they are at hand."""
_OWED_FACTOR: Final = 16
"""How many times ``max_held`` acknowledgements are remembered that the source could not take."""
_COUNTED: Final = ("late", "duplicate", "abandoned", "incomplete_executions", "incomplete_modules")
"""What of the assembly is a metric."""


class BridgeReport(Struct, frozen=True):
    """What a bridge has done so far.

    Attributes:
        source: The source's name.
        events: Events that were read.
        unreadable: Records of the source or the journal that could not be read as events, and
            events for which the journal raised, while it took others.
        dropped: Events that found no room, in the source or on the way to a sink.
        corrected: Values that could not be read, or that no backend could hold, and that were replaced or left out.
        open: Executions that are open.
        lost: Events that were held when the bridge ended, in no journal, and that nothing reads again.
        is_delivered: Whether nothing is left that could be delivered now, or by the next run.
        failed_acknowledgements: Acknowledgements that the source could not take. They are
            repeated while the bridge runs; if none succeeds, a restart reads the records again.
        sinks: The counters of each sink, by its name.
        assembly: Of the first sink that takes spans; each assembles the same.
        journal: Of the journal; ``None`` where there is none.
    """

    source: str
    events: int
    unreadable: int
    dropped: int
    corrected: int
    open: int
    lost: int
    is_delivered: bool
    failed_acknowledgements: int
    sinks: dict[str, SinkCounters]
    assembly: AssemblyCounters
    journal: JournalCounters | None = None

    @property
    def rejected(self) -> int:
        """Events that some sink refused for good."""
        return sum(sink.rejected for sink in self.sinks.values())

    @property
    def evicted(self) -> int:
        """Executions that were given up since too many events were open."""
        return sum(sink.sending.evicted for sink in self.sinks.values())


class Bridge:
    """Reads a source and brings its events to one or more sinks.

    ``Bridge(source, [sink, ...]).run()`` returns when the source has ended or :meth:`stop`
    was called, and has then delivered what could be delivered in time.

    What is promised: an event that a durable source has given, or that is in the journal,
    is delivered to every sink at least once, across outages of the sinks and the death of
    this process. A repeated span is the same span. While the journal cannot be written, or
    cannot grow, the sinks get events from memory, as if there were no journal. If the source
    is not durable and there is no journal, what finds no room for a sink is dropped for that
    sink, the newest first, and counted.

    It is one class of more than 300 lines: what is read, where it goes and how it ends are
    steps of one loop in one thread.

    Args:
        source: Where events come from. Closed by :meth:`run`.
        sinks: Where they go. Closed by :meth:`run`.
        journal: Keeps events until every sink has them; opened with :func:`sink_names` of
            the sinks. Closed by :meth:`run`.
        settle: Seconds that spans wait for events still on their way; 0 for a source that
            keeps the order and 1 for others, where none is given.
        idle_timeout: Seconds without an event after which an execution is abandoned.
        max_age: Seconds after its first event at which an execution is abandoned.
        max_open: Executions and modules held open at most, for each sink that takes spans.
        max_held: Events that are on their way to each sink at most, beside one batch. As many
            again may wait, where the newest would be dropped otherwise.
        is_replay: Whether the events are of the past: time goes by their timestamps, and the run
            ends where an operator has to fix the source, or it is away for ``close_timeout``.
        on_full: What happens when there is no room for a sink, or in the journal: ``wait`` reads
            no more until there is, ``drop`` drops the newest. ``wait`` for a durable source
            and ``drop`` for others, where none is given.
        abandon_open: Whether executions without an end are emitted when the source has ended.
            When the bridge is stopped they are in any case, unless they are read again.
        sampler: Of traces; what ``OTEL_TRACES_SAMPLER`` says where none is given.
        telemetry: Metrics and logs beside the first sink that takes spans.
        dead_letters: Where what cannot be read or is refused goes.
        send_timeout: Seconds that one call of a sink may take.
        close_timeout: Seconds for delivering what is held at the end: altogether where the bridge
            was stopped, and without any progress where the source has ended.
        retry: Between tries to read, to send, to write to the journal, and to acknowledge.

    Raises:
        ConfigurationError: There is no sink.
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        source: AnySource,
        sinks: Sequence[Sink[Any]],
        *,
        journal: Store | None = None,
        settle: float | None = None,
        idle_timeout: float = 3_600.0,
        max_age: float = 86_400.0,
        max_open: int = 100_000,
        max_held: int = 65_536,
        is_replay: bool = False,
        on_full: Literal["wait", "drop"] | None = None,
        abandon_open: bool = False,
        sampler: Sampler | None = None,
        telemetry: SpanObserver | None = None,
        dead_letters: DeadLetters | None = None,
        send_timeout: float = 10.0,
        close_timeout: float = 30.0,
        retry: Retry | None = None,
    ) -> None:
        if not sinks:
            message = "a bridge needs at least one sink"
            raise ConfigurationError(message)
        retry = retry or Retry()
        self._engine: str | None = getattr(source, "engine", None)
        self._source = as_source(source)
        self._waits = on_full == "wait" or (on_full is None and self._source.is_durable)
        self._abandon_open = abandon_open
        self._is_replay = is_replay
        self._telemetry = telemetry
        self._dead_letters = dead_letters
        self._close_timeout = close_timeout
        self._max_held = max_held
        self._is_stopped = self._is_waiting = self._is_cut = False
        self._log = RateLimitedLog()
        self._backoff = retry.backoff(longest=10.0)
        self._events = self._unreadable = self._corrected = self._lost = 0
        self._source_error: str | None = None
        self._silent_since: float | None = None
        self._looped = time.monotonic()
        self._published: Counter[str] = Counter()
        self._acknowledgements = Acknowledgements(
            self._source, retry.backoff(longest=5.0), max_owed=_OWED_FACTOR * max_held
        )
        self._ledger: _Ledger | None = None
        if self._source.is_durable and self._source.wants_acknowledgements:
            self._ledger = _Ledger(1 if journal is not None else len(sinks))
        self._journaled: Journaled | None = None
        if journal is not None:
            self._journaled = Journaled(
                journal,
                "bridge",
                max_queue=self._max_waiting(max_held),
                max_held=max_held,
                retry=retry,
                dead_letters=dead_letters,
                drops=not self._waits,
                on_settled=None if self._ledger is None else partial(self._ledger.settle, 0),
            )
        self._assemblies: list[TraceAssembly[Span]] = []
        self._pipelines: dict[str, Pipeline[Any]] = {}
        for name, sink in zip(sink_names(sinks), sinks, strict=True):
            tracks = self._ledger is not None or journal is not None
            transform: PassThrough | TraceAssembly[Span] = PassThrough(tracks=tracks, kinds=kinds_for(sink))
            if sink.takes == "spans":
                decider = partial(decide, sampler or sampler_of_environment())
                sampling = Sampling(decider, max_remembered=max_open)
                assembler = Assembler(
                    settle=(0.0 if self._source.is_ordered else _SETTLE_S) if settle is None else settle,
                    max_open=max_open,
                    idle_timeout=idle_timeout,
                    max_age=max_age,
                    sampling=sampling,
                    # where several sinks take spans, each assembles the same
                    on_loss=None if self._assemblies else LossLog(self._source.name),
                )
                transform = TraceAssembly(
                    assembler,
                    sampling,
                    exported(with_events=telemetry is None or telemetry.with_events),
                    # the first one observes: a span is one, however many endpoints it goes to
                    observer=None if self._assemblies else telemetry,
                    watermark=Watermark() if is_replay else None,
                    tracks=tracks,
                )
                self._assemblies.append(transform)
            sender: Sender[Any] = Sender(
                sink,
                transform,
                max_held=max_held,
                send_timeout=send_timeout,
                dead_letters=dead_letters,
                retry=retry,
            )
            self._add(name, sender, max_held=max_held, retry=retry)

    def _add(self, name: str, sender: Sender[Any], *, max_held: int, retry: Retry) -> None:
        journaled = self._journaled
        reads: ReadingEnd | None = None if journaled is None else journaled.reading_end(name)
        settle: Callable[[list[Receipt]], None] | None = None
        if self._ledger is not None:
            settle = partial(self._ledger.settle, len(self._pipelines))
        if journaled is not None:
            settle = journaled.settle
        pipeline: Pipeline[Any] = Pipeline(
            # a bridge is not used in a forked child: its sender there is this one
            lambda: sender,
            name=f"bridge-{name}",
            max_queue=self._max_waiting(max_held),
            retry=retry,
            reads=reads,
            dead_letters=self._dead_letters,
            on_settled=settle,
            on_tick=None if self._pipelines or self._telemetry is None else self._publish,
            on_end=None if journaled is None else journaled.end_sink,
            is_behind=self._is_behind,
        )
        self._pipelines[name] = pipeline
        if journaled is not None:
            journaled.add(pipeline)

    def _max_waiting(self, max_held: int) -> int:
        return min(max_held, _WAITING) if self._waits else max_held

    @property
    def _outlets(self) -> list[Pipeline[Any]]:
        """Where what is read goes: to the journal, or to every sink."""
        return [*self._pipelines.values()] if self._journaled is None else [self._journaled.front]

    def run(self) -> BridgeReport:
        """Reads until the source has ended or :meth:`stop` was called, then delivers what is held.

        Returns:
            What was done.

        Raises:
            SourceError: The source can never be read as it is, or that of a replay is away for
                too long. What was read before is delivered.
        """
        with ExitStack() as stack:
            stack.callback(self._source.close)
            try:
                self._read_all()
            finally:
                is_delivered = self._drain()
                # what other sinks have counted since the first one has ended
                self._publish()
                self._tell_source_at_the_end()
                if self._journaled is not None:
                    self._journaled.close_store(deadline_of(1.0))
        if not is_delivered and not self._source.is_durable:
            journaled = self._journaled
            self._lost = sum(it.held for it in self._outlets) if journaled is None else journaled.in_memory
        if self._lost:
            message = "%d events could not be delivered in time, and are lost: nothing reads them again"
            self._log.write(_LOGGER, logging.ERROR, "lost", message, self._lost)
        return self._report(is_delivered=is_delivered)

    def stop(self) -> None:
        """Has :meth:`run` end; from any thread, or from a signal handler."""
        # no event, whose lock the interrupted thread may have
        self._is_stopped = True

    @property
    def report(self) -> BridgeReport:
        """What was done so far."""
        return self._report(is_delivered=not any(it.waiting for it in [*self._outlets, *self._pipelines.values()]))

    @property
    def troubles(self) -> dict[str, str]:
        """What does not work at the moment: why, by the name of the source or the sink, or ``journal``."""
        found: dict[str, str] = {}
        owed = self._acknowledgements.last_error
        source_error = self._source_error or self._source.last_error or (None if owed is None else owed.reason)
        if source_error is not None:
            found[self._source.name] = source_error
        if self._journaled is not None and self._journaled.front.sender.last_error is not None:
            found["journal"] = self._journaled.front.sender.last_error.reason
        for name, pipeline in self._pipelines.items():
            if pipeline.sender.last_error is not None:
                found[name] = pipeline.sender.last_error.reason
            if pipeline.acknowledgements is not None and pipeline.acknowledgements.last_error is not None:
                found.setdefault("journal", f"{pipeline.acknowledgements.last_error.reason} (by {name})")
        return found

    @property
    def fraction_read(self) -> float | None:
        """How much of the source has been read, from 0 to 1; ``None`` where it does not say so."""
        return self._source.fraction_read

    @property
    def idle_seconds(self) -> float:
        """Seconds since the reading loop last came around; many mean that it hangs."""
        return time.monotonic() - self._looped

    @property
    def open_executions(self) -> int:
        """Executions that have started and not ended."""
        return self._assemblies[0].open_executions if self._assemblies else 0

    @property
    def open_modules(self) -> int:
        """Modules that have started and not ended."""
        return self._assemblies[0].open_modules if self._assemblies else 0

    def _report(self, *, is_delivered: bool) -> BridgeReport:
        # a copy: it goes on counting
        assembly = replace(self._assemblies[0].counters) if self._assemblies else AssemblyCounters()
        journal, unreadable = None, 0
        if self._journaled is not None:
            journal = self._journaled.counters
            unreadable = journal.unreadable + self._journaled.front.sender.counters.rejected
        pipelines = {*self._pipelines.values(), *self._outlets}
        return BridgeReport(
            source=self._source.name,
            events=self._events,
            unreadable=self._unreadable + unreadable,
            dropped=self._source.dropped + sum(it.dropped for it in pipelines),
            corrected=self._corrected + assembly.corrected,
            open=self.open_executions,
            lost=self._lost,
            is_delivered=is_delivered,
            failed_acknowledgements=self._acknowledgements.failed + self._source.failed_acknowledgements,
            sinks={name: it.counters for name, it in self._pipelines.items()},
            assembly=assembly,
            journal=journal,
        )

    def _read_all(self) -> None:
        while not self._is_stopped:
            self._looped = time.monotonic()
            items = self._read()
            self._pass_on(items)
            self._tell_source()
            if (not items and self._source.has_ended) or self._is_any_gone():
                break

    def _is_any_gone(self) -> bool:
        return any(it.sender.is_gone for it in self._pipelines.values())

    def _read(self) -> Sequence[Batch | Unreadable | Revoked | Restarted]:
        try:
            items = self._source.read(_READ_S)
        except UnavailableError as error:
            self._could_not_read(error)
            return ()
        self._silent_since = None
        self._backoff.reset()
        self._source_error = None
        return batches_of(items)

    def _could_not_read(self, error: UnavailableError) -> None:
        """Waits; a replay, whose end is waited for, does not do so for ever.

        Raises:
            SourceError: It is one, and the source takes an operator or has been away for too long.
        """
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        needs_fixing = isinstance(error, MisconfiguredError)
        if self._is_replay and (needs_fixing or now - self._silent_since > self._close_timeout):
            raise SourceError(str(error)) from error
        pause = self._backoff.next(error.retry_after)
        is_new, self._source_error = self._source_error is None, str(error)
        if is_new:
            # so that time stands still at once
            self._nudge()
        level = logging.ERROR if needs_fixing else logging.WARNING
        message = "%s cannot be read now: %s; trying again in %.1f s"
        self._log.write(_LOGGER, level, "source", message, self._source.name, error, pause)
        self._pause(pause)

    def _pass_on(self, items: Sequence[Batch | Unreadable | Revoked | Restarted]) -> None:
        for item in items:
            if self._is_cut and not isinstance(item, Revoked):
                continue
            if isinstance(item, Batch):
                self._deliver(item if self._engine is None else _of_engine(item, self._engine))
            elif isinstance(item, Unreadable):
                self._skip(item)
            elif isinstance(item, Restarted):
                self._restart(item)
            else:
                self._revoke(item)

    def _skip(self, item: Unreadable) -> None:
        self._unreadable += 1
        where = f"{self._source.name}, {place_of(item.position)}"
        # not keyed by the reason, which has foreign data in it
        self._log.write(_LOGGER, logging.WARNING, "unreadable", "%s cannot be read: %s", where, item.reason)
        if self._dead_letters is not None:
            self._dead_letters.write(where, item.reason, item.data)
        if self._ledger is not None:
            self._acknowledgements.add([item.position])

    def _deliver(self, batch: Batch) -> None:
        self._events += len(batch.events)
        for offset, reason in batch.corrected:
            self._corrected += 1
            where = f"{self._source.name}, {place_of(Position(batch.origin, offset))}"
            message = "%s: a value was left out or replaced, the rest is kept: %s"
            self._log.write(_LOGGER, logging.WARNING, "corrected", message, where, reason)
        if self._ledger is not None:
            self._ledger.expect(batch.origin, batch.offsets)
        for number, outlet in enumerate(self._outlets):
            for first in range(0, len(batch.events), self._max_held):
                part = slice(first, first + self._max_held)
                self._give(number, outlet, Batch(batch.events[part], batch.offsets[part], batch.origin))

    def _give(self, number: int, outlet: Pipeline[Any], batch: Batch) -> None:
        """Gives a batch to an outlet; where there is no room, waits or drops."""
        count = len(batch.events)
        has_room = not self._waits or outlet.has_room(count) or self._wait_for_room(outlet, count)
        self._is_cut = self._is_cut or (not has_room and self._source.is_durable)
        if self._is_cut:
            # it gives again what a bridge that is stopped has not taken, and what comes behind that
            return
        taken = outlet.give(batch)
        if self._ledger is not None and taken < count:
            # for good: it is not waited for
            self._ledger.leave_out(number, batch.origin, batch.offsets[taken:])

    def _restart(self, item: Restarted) -> None:
        """Has what is open be given up, by way of the journal where there is one."""
        if self._ledger is not None:
            self._ledger.expect(item.position.origin, [item.position.offset])
        self._control(item)

    def _revoke(self, item: Revoked) -> None:
        if self._ledger is None:
            return
        self._ledger.forget(item.origin)
        self._acknowledgements.forget(item.origin)
        if self._journaled is None:
            # what is in a journal was acknowledged, so that no other reader will have it
            self._control(item)

    def _control(self, item: Restarted | Revoked | Ended) -> None:
        for outlet in self._outlets:
            if self._waits and not outlet.has_room(1):
                self._wait_for_room(outlet, 1)
            outlet.control(item)

    def _wait_for_room(self, outlet: Pipeline[Any], count: int) -> bool:
        """Waits until there is room, or the bridge is stopped, or a sink is gone; whether there is."""
        while not outlet.worker.wait_until(lambda: outlet.has_room(count), _READ_S):
            self._looped = time.monotonic()
            if self._is_stopped or self._is_any_gone():
                return False
            if not self._is_waiting:
                self._is_waiting = True
                # so that time stands still at once
                self._nudge()
            self._tell_source()
            # a consumer that does not ask for anything is taken for dead
            self._source.keep_alive()
        self._is_waiting = False
        return True

    def _is_behind(self) -> bool:
        """Whether there are records that should have been read by now: time does not pass for what is open then."""
        is_away = self._source.is_durable and self._source_error is not None
        return self._is_waiting or is_away or (self._journaled is not None and self._journaled.is_behind())

    def _pause(self, seconds: float) -> None:
        """Waits, unless the bridge is stopped; it does not hang meanwhile."""
        end = time.monotonic() + seconds
        while not self._is_stopped and time.monotonic() < end:
            self._looped = time.monotonic()
            time.sleep(min(_STEP_S, max(0.0, end - time.monotonic())))

    def _tell_source(self) -> float | None:
        """Says what has become safe, in the thread that reads; in how many seconds to do so again."""
        if self._ledger is None:
            return None
        self._acknowledgements.add(self._ledger.take())
        return self._acknowledgements.tell()

    def _tell_source_at_the_end(self) -> None:
        deadline = deadline_of(min(1.0, self._close_timeout))
        self._acknowledgements.hurry()
        wait = self._tell_source()
        while wait is not None and seconds_left(deadline):
            time.sleep(min(wait, seconds_left(deadline)))
            wait = self._tell_source()

    def _publish(self) -> None:
        """Brings the counters that are metrics up to date; called from one sink's thread."""
        if self._telemetry is None:
            return
        report = self.report
        now = Counter({name: getattr(report.assembly, name) for name in _COUNTED})
        now.update(dropped=report.dropped, rejected=report.rejected)
        gained, self._published = now - self._published, now
        if gained:
            self._telemetry.count(gained)

    def _nudge(self) -> None:
        for pipeline in self._pipelines.values():
            pipeline.worker.nudge()

    def _drain(self) -> bool:
        """Delivers what is held and ends the pipelines; whether nothing is left."""
        # what is read again is not given up
        abandon_open = None if self._source.is_durable or self._journaled is not None else True
        pipelines = [*self._pipelines.values()]
        if self._is_stopped and any(it.waiting for it in pipelines):
            log(_LOGGER, logging.INFO, "stopped; what is held is delivered now, in %.0f s at most", self._close_timeout)
        if self._source.has_ended and not self._is_stopped and not self._is_any_gone():
            abandon_open = None
            self._end()
        deadline = deadline_of(self._close_timeout)
        if self._journaled is not None:
            self._journaled.close_front(deadline)
        self._looped = time.monotonic()
        for pipeline in pipelines:
            pipeline.close_by(deadline, abandon_open=abandon_open)
        # every one, also behind one that is not
        closed = [self._has_closed(pipeline, deadline, abandon_open) for pipeline in pipelines]
        if self._journaled is not None:
            self._journaled.settle_the_rest()
            if self._journaled.in_memory and not self._source.is_durable:
                # also what is open: it is in no journal
                return False
        return all(closed)

    def _end(self) -> None:
        """The source has ended: everything that has, and what is open where that is abandoned, is delivered."""
        self._drain_while_there_is_progress()
        for pipeline in self._pipelines.values():
            # also where a sink made no progress, which has been waited for
            pipeline.control(Ended(self._abandon_open))
        self._drain_while_there_is_progress()

    def _has_closed(self, pipeline: Pipeline[Any], deadline: float, abandon_open: bool | None) -> bool:
        """Waits until a pipeline has ended, which shows that it is waited for; whether it has nothing left."""
        while not pipeline.worker.wait_until(lambda: pipeline.worker.has_finished, _READ_S):
            self._looped = time.monotonic()
            if time.monotonic() > deadline:
                break
        return pipeline.close(max(0.1, seconds_left(deadline)), abandon_open=abandon_open)

    def _drain_while_there_is_progress(self) -> None:
        outlets = [*dict.fromkeys([*self._outlets, *self._pipelines.values()])]
        deadline = deadline_of(self._close_timeout)
        sent = -1
        while not self._is_stopped and not self._is_any_gone() and time.monotonic() < deadline:
            self._looped = time.monotonic()
            if all(it.flush(_READ_S) for it in outlets):
                return
            self._tell_source()
            now_sent = sum(it.sender.counters.sending.sent for it in outlets)
            if now_sent > sent:
                sent, deadline = now_sent, deadline_of(self._close_timeout)


def sink_names(sinks: Sequence[Sink[Any]]) -> list[str]:
    """The names that a journal knows sinks by: their kind, and a number where there are several of one.

    Not their URL, so that what is held for a collector goes to the one that took its place.
    """
    seen: Counter[str] = Counter()
    names: list[str] = []
    for sink in sinks:
        name = sink.name
        while name in names:
            seen[sink.name] += 1
            name = f"{sink.name}-{seen[sink.name] + 1}"
        names.append(name)
    return names


class _Ledger:
    """Which records every outlet has settled; outlets say so from their threads, and the reading thread counts.

    Args:
        outlets: How many have to settle each.
    """

    def __init__(self, outlets: int) -> None:
        self._all = (1 << outlets) - 1
        # one bit for each outlet that has yet to settle a record; what is not here belongs to another reader by now
        self._missing: dict[tuple[Hashable, int], int] = {}
        self._settled: deque[tuple[int, list[Position]]] = deque()

    def expect(self, origin: Hashable, offsets: Sequence[int]) -> None:
        """Records are on their way to the outlets."""
        for offset in offsets:
            self._missing[origin, offset] = self._all

    def settle(self, outlet: int, receipts: list[Receipt]) -> None:
        """What an outlet, by its number, has settled; called in its thread.

        A record that was taken away and read again may be settled twice by the same.
        """
        self._settled.extend((1 << outlet, receipt.positions()) for receipt in receipts)

    def leave_out(self, outlet: int, origin: Hashable, offsets: Sequence[int]) -> None:
        """Records that an outlet does not get."""
        self._settled.append((1 << outlet, [Position(origin, offset) for offset in offsets]))

    def forget(self, origin: Hashable) -> None:
        """Another reader has that part of the source from now on."""
        self._missing = {key: left for key, left in self._missing.items() if key[0] != origin}

    def take(self) -> list[Position]:
        """What every outlet has settled, and was not taken before."""
        safe: list[Position] = []
        missing = self._missing
        while self._settled:
            outlet, positions = self._settled.popleft()
            for position in positions:
                before = missing.get(position, 0)
                left = before & ~outlet
                if left:
                    missing[position] = left
                elif before:
                    del missing[position]
                    safe.append(position)
        return safe


def _of_engine(batch: Batch, engine: str) -> Batch:
    """The same batch, whose executions' starts say which engine they are of."""
    events = [
        replace(event, engine=engine) if type(event) is ExecutionStarted and event.engine is None else event
        for event in batch.events
    ]
    return replace(batch, events=events)
