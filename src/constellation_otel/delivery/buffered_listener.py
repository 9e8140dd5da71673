"""BufferedListener: callbacks into a bounded queue, and from there to a sink that acknowledges."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Generic, TypedDict, TypeVar
from uuid import UUID

from opentelemetry import context as otel_context

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.fork import after_fork_in_child
from constellation_otel._support.log import RateLimitedLog, log
from constellation_otel._support.scope import ENGINE_KEY
from constellation_otel.bodies import Bodies
from constellation_otel.delivery.contract import kinds_for
from constellation_otel.delivery.counters import Counters, SendingCounters
from constellation_otel.delivery.dead_letters import DeadLetters
from constellation_otel.delivery.door import Door
from constellation_otel.delivery.journaled import Journaled
from constellation_otel.delivery.pipeline import Pipeline
from constellation_otel.delivery.retry import LastError, Retry
from constellation_otel.delivery.sender import Sender
from constellation_otel.delivery.transform import PassThrough
from constellation_otel.events import Event, EventListener, ExecutionJoined
from constellation_otel.traces import Sampling, decide, sampler_of_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.trace import SpanContext

    from constellation_otel.delivery.contract import Sink, Store
    from constellation_otel.delivery.counters import AssemblyCounters
    from constellation_otel.delivery.transform import Transform
    from constellation_otel.delivery.worker import Worker
    from constellation_otel.events import BodyRecord
    from constellation_otel.traces import Decision

__all__ = ["BufferedListener", "ListenerOptions"]

_LOGGER: Final = logging.getLogger(__name__)
_MAX_BODIES: Final = 100_000
"""Modules whose body runs, and whose span is kept, at most."""
_MAX_JOINS: Final = 1_024
"""How many a full queue still takes: modules of an execution that nobody has joined look as one that was abandoned."""

T = TypeVar("T")
"""What the sink takes: Event or Span."""


class ListenerOptions(TypedDict, total=False):
    """The options that every ready-made listener takes, as :class:`BufferedListener` has them.

    Attributes:
        journal: A file that keeps events until the sink has them.
        redact: Rewrites the message of each error before it is kept anywhere.
        max_queue: Events that wait at most, and events that are on their way at most.
        send_timeout: Seconds that one call of the sink may take.
        dead_letters: A file for what is refused for good.
        retry: Between tries to send, and to write to the journal.
    """

    journal: Store | str | os.PathLike[str] | None
    redact: Callable[[str], str] | None
    max_queue: int
    send_timeout: float
    dead_letters: DeadLetters | str | os.PathLike[str] | None
    retry: Retry | None


class BufferedListener(EventListener, Generic[T]):
    """Brings callbacks to a sink, in the background, as reliably as the sink and the journal allow.

    A callback costs about one append and never raises. The queue is bounded: what finds
    it full is dropped, the newest first, counted and logged. One daemon thread sends
    batches; what the sink cannot take now is held and sent again with growing pauses,
    for as long as there is room; what it refuses for good is counted, logged, and
    written to the dead-letter file.

    With a journal, events are on disk some 50 ms after their callback, and from then on
    they are delivered at least once: across outages of the endpoint, kill -9, and
    restarts. Without one, what is held when the process ends is lost. While the journal
    cannot grow, or be written, what is new goes to a sink that takes it from memory, in
    order, bounded, counted as not durable; that is an ERROR in the log. When it can be
    written again, it is.

    A forked child starts with an empty queue and a thread of its own. The journal stays
    its parent's: the child delivers from memory, and says so.

    Args:
        sink: Where events go. Closed with this.
        journal: Keeps events until the sink has them; it knows the sink by its ``name``.
            Closed with this. A path names a journal's file, which is opened.
        redact: Rewrites the message of each error before it is kept anywhere.
        max_queue: Events that wait at most, and events that are on their way at most.
        send_timeout: Seconds that one call of the sink may take.
        dead_letters: Where what is refused goes; a path names a file.
        retry: Between tries to send, and to write to the journal.

    Raises:
        JournalError: The journal cannot be used: another process has it, or it is not one.
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        sink: Sink[T],
        *,
        journal: Store | str | os.PathLike[str] | None = None,
        redact: Callable[[str], str] | None = None,
        max_queue: int = 65_536,
        send_timeout: float = 10.0,
        dead_letters: DeadLetters | str | os.PathLike[str] | None = None,
        retry: Retry | None = None,
    ) -> None:
        super().__init__(redact, max_queue)
        if max_queue < 1:
            message = f"max_queue={max_queue!r} must be at least 1"
            raise ValueError(message)
        self._sink = sink
        name = type(self).__name__
        retry = retry or Retry()
        letters = dead_letters if isinstance(dead_letters, DeadLetters | None) else DeadLetters(dead_letters)
        self._log = RateLimitedLog()
        self._is_left_to_parent = False
        self._journaled: Journaled | None = None
        with ExitStack() as stack:
            store = journal
            if isinstance(store, str | os.PathLike):
                store = _opened(store, sink.name)
                stack.callback(store.close)
            if store is not None:
                door = Door(name, letters)
                self._journaled = Journaled(
                    store, name, max_queue=max_queue, retry=retry, door=door, dead_letters=letters
                )
            journaled = self._journaled
            self._pipeline: Pipeline[T] = Pipeline(
                lambda: Sender(
                    sink,
                    self._new_transform(),
                    max_held=max_queue,
                    send_timeout=send_timeout,
                    dead_letters=letters,
                    retry=retry,
                ),
                name=name,
                max_queue=max_queue,
                retry=retry,
                door=Door(name, letters),
                reads=None if journaled is None else journaled.reading_end(sink.name),
                dead_letters=letters,
                on_settled=None if journaled is None else journaled.settle,
                on_tick=self._on_tick,
                on_end=None if journaled is None else journaled.end_sink,
                is_behind=None if journaled is None else journaled.is_behind,
            )
            # nothing has failed: it is closed with this
            stack.pop_all()
        self._bodies = self._new_bodies()
        self._worker: Worker[Any] = self._pipeline.worker
        if journaled is not None:
            journaled.add(self._pipeline)
            self._worker = journaled.front.worker
        after_fork_in_child(self._after_fork)

    def _new_transform(self) -> Transform[Any]:
        """What the sink takes of events; for this class, and those that send something else."""
        return PassThrough(tracks=self._tracks, kinds=kinds_for(self._sink))

    def _new_bodies(self) -> Bodies:
        """What keeps the spans of modules' bodies; made anew in a forked child."""
        return Bodies(Sampling(_decide_by_environment), _MAX_BODIES, self._redact)

    def _decide(self, execution_id: UUID, dag_name: str, context: Context) -> bool:
        """Asks the sampler, once for all of the execution's spans.

        Returns:
            Whether it was asked: not where there is an answer already, or the event will be rejected.
        """
        if not _is_usable(execution_id, dag_name):
            return False
        return self._bodies.sampling.decide(execution_id, dag_name, context)

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        self._decide(execution_id, dag_name, otel_context.get_current())
        super().on_execution_start(execution_id, dag_name)

    def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
        super().on_execution_complete(execution_id, dag_name, succeeded, duration_ms)
        self._bodies.end(execution_id)

    def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
        super().on_execution_cancelled(execution_id, dag_name)
        self._bodies.end(execution_id)

    def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
        """The context in which a module's body runs: its span is the current one, and records what is set on it.

        Args:
            execution_id: An execution that has started.
            module_id: The module.
            context: The caller's.

        Returns:
            ``context`` itself where the execution is not known, or not traced at all.
        """
        return self._bodies.context_of(execution_id, module_id, context)

    def join(self, execution_id: UUID, dag_name: str, traceparent: str | None = None) -> None:
        """Says that modules of an execution run here which another process has started; never raises.

        Args:
            execution_id: The execution.
            dag_name: Its DAG's name.
            traceparent: The execution's own span as a W3C header value, whose flag is the sampler's
                answer; without one, this process's sampler is asked.
        """
        if _is_usable(execution_id, dag_name):
            self._bodies.sampling.join(execution_id, dag_name, traceparent)
        engine: Any = otel_context.get_value(ENGINE_KEY)
        event = ExecutionJoined(execution_id, dag_name, time.time_ns(), traceparent, engine)
        self._worker.put(event, beyond=_MAX_JOINS)

    def traceparent_of(self, execution_id: UUID) -> str | None:
        """The execution's own span as a W3C header value; ``None`` where it is not known, or not traced at all."""
        return self._bodies.traceparent_of(execution_id)

    def _body_of(self, execution_id: UUID, module_id: UUID, error: BaseException | None) -> BodyRecord | None:
        return self._bodies.take(execution_id, module_id, error)

    @property
    def _tracks(self) -> bool:
        """Whether there is a journal, to which what is safe is acknowledged."""
        return self._journaled is not None

    @property
    def counters(self) -> Counters:
        """What has become of the events so far."""
        # what is over is read first, so that nothing is missing when another thread reads
        pipeline, journaled = self._pipeline, self._journaled
        sink, queue = pipeline.sender.counters, pipeline.worker.counters
        received, dropped = queue.received, queue.dropped
        rejected = sink.rejected + queue.rejected + pipeline.unreadable
        doors = [pipeline.door]
        journal = None
        if journaled is not None:
            before = journaled.front.worker.counters
            journal = journaled.counters
            # what is given from memory has come through the thread before the journal
            received = journal.recovered - pipeline.restarts + before.received
            dropped = before.dropped
            rejected += before.rejected + journaled.front.sender.counters.rejected
            doors.append(journaled.front.door)
        corrected = sum(door.corrected for door in doors if door is not None)
        rejected += sum(door.rejected for door in doors if door is not None)
        dead_lettered = sink.sending.dead_lettered + sum(door.dead_lettered for door in doors if door is not None)
        sending = sink.sending
        return Counters(
            received,
            sink.delivered,
            dropped,
            rejected,
            received - sink.delivered - dropped - rejected,
            corrected,
            SendingCounters(sending.sent, sending.refused, sending.retried, dead_lettered, sending.evicted),
            journal,
            self._assembly(),
        )

    def _assembly(self) -> AssemblyCounters | None:
        """What has become of events that make spans."""
        return None

    @property
    def last_error(self) -> LastError | None:
        """Why the sink takes nothing at the moment, or the journal no events or acknowledgements.

        ``None`` where both work, as far as is known.
        """
        error = self._pipeline.sender.last_error
        if error is None and self._journaled is not None:
            error = self._journaled.last_error
        if error is None and self._pipeline.acknowledgements is not None:
            error = self._pipeline.acknowledgements.last_error
        return error

    @property
    def trouble(self) -> LastError | None:
        """The same as :attr:`last_error`, by its older name."""
        return self.last_error

    def accept(self, event: Event) -> None:
        """Takes an event, with the time that it carries. Costs one append and never raises."""
        self._worker.put(event)

    def flush(self, timeout: float) -> bool:
        """Waits until the events so far have been delivered.

        Where the sink takes spans, executions that are still open are not waited for.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether they have been.
        """
        deadline = deadline_of(timeout)
        if self._journaled is not None and not self._journaled.front.flush(seconds_left(deadline)):
            return False
        return self._pipeline.flush(seconds_left(deadline))

    def close(self, timeout: float) -> bool:
        """Takes nothing more, delivers what is held while there is time, and ends the threads.

        Never raises. A thread that is in a call which does not return, of a sink or a disk
        that hangs, is left behind: the log says what is held, and calling this again says
        what has become of it.

        Args:
            timeout: Seconds, any float; this returns within them.

        Returns:
            Whether everything has been delivered. What has not is in the journal, where
            there is one, and lost with the process otherwise.
        """
        deadline = deadline_of(timeout)
        journaled = self._journaled
        if journaled is not None:
            journaled.close_front(deadline)
        # the last bit is for closing the journal
        is_delivered = self._pipeline.close((1.0 if journaled is None else 0.9) * seconds_left(deadline))
        if journaled is not None:
            journaled.close_store(deadline)
            journaled.settle_the_rest()
        held = self.counters.held
        if held:
            lost = min(held, self._pipeline.held if journaled is None else journaled.in_memory)
            message = "%s: %d events are still held, %d of them in no journal: those are lost when the process ends"
            self._log.write(_LOGGER, logging.WARNING, ("held", held, lost), message, type(self).__name__, held, lost)
        return is_delivered and not held

    def _on_tick(self) -> None:
        """What the thread does now and then."""
        if self._is_left_to_parent and self._pipeline.sender.counters.received:
            # said with the first event: most forked children never have one
            self._is_left_to_parent = False
            message = "%s: the journal is the parent process's; this child delivers from memory, without one"
            log(_LOGGER, logging.WARNING, message, type(self).__name__)

    def _after_fork(self) -> None:
        self._is_left_to_parent = self._is_left_to_parent or self._journaled is not None
        self._bodies = self._new_bodies()
        self._journaled = None
        self._worker = self._pipeline.worker


def _is_usable(execution_id: object, dag_name: object) -> bool:
    """Whether an event with these will not be rejected."""
    return isinstance(execution_id, UUID) and isinstance(dag_name, str)


def _decide_by_environment(
    execution_id: UUID, dag_name: str, context: Context, *, own: SpanContext | None = None
) -> Decision:
    return decide(_sampler(), execution_id, dag_name, context, own=own)


@cache
def _sampler() -> Sampler:
    return sampler_of_environment()


def _opened(path: Any, sink: str) -> Store:
    from constellation_otel.delivery.journal import Journal  # noqa: PLC0415 - SQLite, only where it is used

    return Journal(path, sinks=[sink])
