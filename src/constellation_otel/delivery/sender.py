"""The way to one sink: batches, retries with backoff, halving, dead letters, acknowledgement, counters.

What a transport need not know. A lane has no thread of its own: one worker's
thread calls it, and whoever owns that thread gives it records.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec
from msgspec import Struct, field

from constellation_otel._support.log import RateLimitedLog, log
from constellation_otel.delivery.contract import Record
from constellation_otel.delivery.transform import Parcel
from constellation_otel.errors import GoneError, MisconfiguredError, RefusedError, UnavailableError
from constellation_otel.events import encode_json, said, shown, validated
from constellation_otel.traces import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from constellation_otel.delivery.contract import Position, Rejection, Sink
    from constellation_otel.delivery.dead_letters import DeadLetters
    from constellation_otel.delivery.transform import Group, Stage

__all__ = ["Backoff", "Lane", "LaneCounters", "Trouble"]

_LOGGER: Final = logging.getLogger(__name__)
_SLICE: Final = 0.25
"""Seconds that sending may go on before the worker looks at its queue again."""
_FINISH_TIMEOUT: Final = 5.0
_OPEN_FACTOR: Final = 16
_HANGS: Final = 2
"""How many times the sink's own timeout a call may take before that is a trouble."""
_ACKNOWLEDGE_AGAIN: Final = 1.0

T = TypeVar("T")
"""Event or Span."""


class Backoff:
    """How long to wait before the next try: twice as long each time, with jitter, bounded.

    Args:
        first: Seconds before the second try, at most.
        longest: Seconds, at most; what a far side asks for may be longer.
        jitter: Gives numbers from 0 to 1.
    """

    def __init__(self, first: float = 0.5, longest: float = 30.0, jitter: Callable[[], float] = random.random) -> None:
        self._first = first
        self._longest = longest
        self._jitter = jitter
        self.failures = 0

    def next(self, asked_for: float | None = None) -> float:
        """Seconds to wait after one more failure.

        Args:
            asked_for: What the far side asked for: waited at least, an hour at most.
        """
        # half of it is certain, so that many clients come back neither together nor at once
        ceiling = min(self._longest, self._first * 2.0 ** min(self.failures, 32))
        self.failures += 1
        wait = ceiling * (0.5 + self._jitter() / 2)
        return wait if asked_for is None else max(wait, min(asked_for, _LONGEST_ASKED_FOR))

    def reset(self) -> None:
        """After a success."""
        self.failures = 0


_LONGEST_ASKED_FOR: Final = 3_600.0


class Trouble(Struct, frozen=True):
    """Why a sink takes nothing at the moment.

    Attributes:
        reason: What it, or its protocol, said last.
        since: When that began, in seconds of :func:`time.monotonic`.
        needs_mending: Whether only somebody can mend it: credentials, a path, a table.
    """

    reason: str
    since: float
    needs_mending: bool


class LaneCounters(Struct, frozen=True):
    """What has become of the events of a lane: ``received = delivered + rejected + revoked + held``.

    Attributes:
        received: Events that were added.
        delivered: Events that are safe with everything made of them.
        rejected: Events that carry what they cannot, or whose item the far side refused for good.
        revoked: Events that somebody else reads from now on.
        held: Events that are open, wait, or are on their way.
        retried: Batches that were sent again.
        sent: Items that are safe: events, or spans.
        refused: Items that the far side refused for good.
        dead_lettered: What was written to the dead-letter file.
        evicted: Executions that were let go since too many events were open.
        corrected: Values that no backend could hold and that were replaced or left out.
        failed_acknowledgements: Acknowledgements that could not be written down, and are repeated.
    """

    received: int
    delivered: int
    rejected: int
    revoked: int
    held: int
    retried: int
    sent: int
    refused: int
    dead_lettered: int
    evicted: int
    corrected: int
    failed_acknowledgements: int = 0


class _Bisection(Struct, Generic[T]):
    """A batch for which the sink raised what it should not: which items are at fault, or is it everything?

    Attributes:
        started: When it began, in seconds of the clock.
        answered: How often the sink had answered until then.
        error: What it raised last.
        parts: What is to be sent in parts, the next one last.
        alone: Items for which the sink raised when they were alone.
        is_second_look: Whether ``parts`` are such items, once more.
    """

    started: float
    answered: int
    error: BaseException
    parts: list[list[Parcel[T]]] = field(default_factory=list)
    alone: list[tuple[Parcel[T], BaseException]] = field(default_factory=list)
    is_second_look: bool = False


class Lane(Generic[T]):
    """Brings records to one sink, as long as it takes.

    Not thread-safe: all calls come from one thread, but for the properties and
    :meth:`finish_by`.

    Args:
        sink: Closed by :meth:`finish`.
        stage: What makes of records what the sink takes.
        acknowledge: Called with the positions that are safe, in any order. Where it raises, it is
            called again with the same ones, but for those that an UnavailableError has as ``delivered``.
        max_held: Events held at most; see :meth:`has_room`.
        send_timeout: Seconds that one call of the sink may take.
        dead_letters: Where what is refused goes.
        backoff: Between tries.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        sink: Sink[T],
        stage: Stage[T],
        *,
        acknowledge: Callable[[Sequence[Position]], None] = lambda positions: None,  # noqa: ARG005 - nobody asked
        max_held: int = 65_536,
        send_timeout: float = 10.0,
        dead_letters: DeadLetters | None = None,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sink = sink
        self.stage = stage
        self._acknowledge = acknowledge
        self._max_held = max_held
        self._send_timeout = send_timeout
        self._dead_letters = dead_letters
        self._abandon_open: bool | None = True
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._log = RateLimitedLog()
        self._outbox: deque[Parcel[T]] = deque()
        # what failed, or was halved, the next one last
        self._again: list[list[Parcel[T]]] = []
        self._again_count = 0
        self._bisection: _Bisection[T] | None = None
        self._answered = 0
        self._in_flight = 0
        self._sending_since: float | None = None
        self._is_gone = False
        self._not_before = 0.0
        self._safe: list[Position] = []
        # where an engine was restarted, and what had to be abandoned for it
        self._restarts: deque[tuple[Position, list[Group]]] = deque()
        self._finish_by: float | None = None
        self._trouble: Trouble | None = None
        self._acknowledge_trouble: Trouble | None = None
        self._failed_acknowledgements = 0
        self._received = self._delivered = self._rejected = self._revoked = 0
        self._retried = self._sent = self._refused = self._dead_lettered = self._evicted = self._corrected = 0

    @property
    def counters(self) -> LaneCounters:
        """What has become of the events so far."""
        # what leaves is read first, so that nothing is missing when another thread reads
        delivered, rejected, revoked, received = self._delivered, self._rejected, self._revoked, self._received
        return LaneCounters(
            received=received,
            delivered=delivered,
            rejected=rejected,
            revoked=revoked,
            held=received - delivered - rejected - revoked,
            retried=self._retried,
            sent=self._sent,
            refused=self._refused,
            dead_lettered=self._dead_lettered,
            evicted=self._evicted,
            corrected=self._corrected,
            failed_acknowledgements=self._failed_acknowledgements,
        )

    @property
    def acknowledge_trouble(self) -> Trouble | None:
        """Why what is safe cannot be acknowledged at the moment; ``None`` where it can, as far as is known."""
        return self._acknowledge_trouble

    @property
    def trouble(self) -> Trouble | None:
        """Why the sink takes nothing at the moment; ``None`` where it does, as far as is known."""
        since = self._sending_since
        if since is not None and self._clock() - since > _HANGS * self._send_timeout:
            return Trouble("it has not returned from a call whose timeout is long over", since, needs_mending=True)
        return self._trouble

    @property
    def waiting(self) -> int:
        """Items that could be sent now and are not safe yet, and acknowledgements that were not taken."""
        return self._in_flight + len(self._outbox) + self._again_count + len(self._safe)

    @property
    def is_gone(self) -> bool:
        """Whether the sink will never take anything again."""
        return self._is_gone

    def has_room(self) -> bool:
        """Whether one more record may be added.

        What waits is bounded by ``max_held``; what is open, of long executions too, by
        sixteen times that.
        """
        open_records = self.stage.open_records
        return self._held() - open_records < self._max_held and open_records < _OPEN_FACTOR * self._max_held

    def add(self, record: Record) -> None:
        """Takes a record, whose event was validated; it is sent by the next :meth:`tick`."""
        self._received += 1
        try:
            parcels = self.stage.add(record)
        except Exception as error:  # noqa: BLE001 - a defect, which must cost one record and no more
            self._reject(record.event, record.position, error)
        else:
            self._take(parcels)

    def validate_and_add(self, event: object, position: Position) -> None:
        """Takes what a callback, or a user's own code, has made; what no encoder could write is rejected."""
        try:
            valid, corrected = validated(event)
        except (TypeError, ValueError) as error:
            self._received += 1
            self._reject(event, position, error)
        else:
            self._corrected += len(corrected)
            for reason in corrected:
                message = "%s: of an event something is left out or replaced: %s"
                self._log.write(_LOGGER, logging.WARNING, "corrected", message, self.sink.name, reason)
            self.add(Record(valid, position))

    def _reject(self, event: object, position: Position, error: Exception) -> None:
        self._rejected += 1
        message = "%s: event %s cannot be sent: %s"
        is_expected = isinstance(error, TypeError | ValueError)
        self._log.write(
            _LOGGER,
            logging.ERROR,
            "event",
            message,
            self.sink.name,
            position.offset,
            error,
            error=None if is_expected else error,
        )
        self._bury(str(error), shown(event).encode())
        self._safe.append(position)

    def skip(self, position: Position) -> None:
        """Acknowledges, with the others, a record that could not be read."""
        self._safe.append(position)

    def send_in_time(self) -> bool:
        """Sends what there is, until the time that :meth:`finish_by` has set; whether it was all sent before that."""
        deadline = self._finish_by if self._finish_by is not None else self._clock() + _FINISH_TIMEOUT
        self._not_before = 0.0
        is_sent = self._send_all(deadline) is None
        self._acknowledge_all()
        return is_sent and self._clock() < deadline

    def revoke(self, origin: Hashable) -> None:
        """Drops what is open of a part of the source, since somebody else reads it from now on."""
        for group in self.stage.revoke(origin):
            self._revoked += len(group.positions)

    def abandon(self, before: Position) -> None:
        """Has executions leave that are open and came before a position, which is acknowledged when they are safe."""
        parcels = self.stage.abandon(before)
        self._take(parcels)
        self._restarts.append((before, [parcel.group for parcel in parcels]))

    def tick(self) -> float | None:
        """Does what is due: sends, sends again, acknowledges.

        Returns:
            In how many seconds something will be due; ``None`` where only a record makes it so.
        """
        self._take(self.stage.advance())
        send_in = self._send_all(self._clock() + _SLICE)
        # what has just become safe waits for nothing but this
        acknowledge_in = self._acknowledge_all()
        while not self.has_room() and not self.waiting:
            # all that is held is open: without this, nothing would ever be taken in again
            parcels = self.stage.make_room()
            if not parcels:
                message = "%s: there is no room, and nothing is open that could be let go; report this as a defect"
                self._log.write(_LOGGER, logging.ERROR, "no room", message, self.sink.name)
                break
            self._evicted += 1
            message = "%s: more than %d events are open; the execution that was silent longest is let go"
            self._log.write(_LOGGER, logging.ERROR, "evict", message, self.sink.name, _OPEN_FACTOR * self._max_held)
            self._take(parcels)
            send_in = self._send_all(self._clock() + _SLICE)
            acknowledge_in = self._acknowledge_all()
        return min(
            (due for due in (send_in, acknowledge_in, self.stage.wake_in()) if due is not None),
            default=None,
        )

    def end(self, *, abandon_open: bool) -> None:
        """The source has ended: lets leave what has ended, and what is open where that is to be abandoned."""
        self._take(self.stage.finish(abandon=abandon_open))

    def finish_by(self, deadline: float, *, abandon_open: bool | None = True) -> None:
        """Says how :meth:`finish` is to go on; from any thread, before it is called.

        Args:
            deadline: Until when, in seconds of the clock.
            abandon_open: Whether executions without an end leave then; ``None`` where they
                are read again, by a successor: nothing leaves that has not left by itself.
        """
        self._finish_by = deadline
        self._abandon_open = abandon_open

    def finish(self) -> None:
        """Lets everything leave that does, sends it while there is time, and closes the sink."""
        if self._abandon_open is not None:
            self.end(abandon_open=self._abandon_open)
        # at least one more try, however long the pause was meant to be
        self._not_before = 0.0
        deadline = self._finish_by if self._finish_by is not None else self._clock() + _FINISH_TIMEOUT
        pause = threading.Event()
        while self.waiting:
            send_in = self._send_all(deadline)
            acknowledge_in = self._acknowledge_all()
            left = deadline - self._clock()
            if not self.waiting or left <= 0 or self._is_gone or self._waits_in_vain():
                break
            pause.wait(min([left, *(due for due in (send_in, acknowledge_in) if due is not None)]))
        if self.waiting:
            message = "%s: %d items were not delivered in time for the end; %s"
            trouble = self._trouble or self._acknowledge_trouble
            why = trouble.reason if trouble is not None else "it is too slow"
            self._log.write(_LOGGER, logging.WARNING, "finish", message, self.sink.name, self.waiting, why)
        self.sink.close()

    def _waits_in_vain(self) -> bool:
        """Whether all that is left are acknowledgements, and only somebody can fix why they fail."""
        trouble = self._acknowledge_trouble
        return trouble is not None and trouble.needs_mending and self.waiting == len(self._safe)

    def _held(self) -> int:
        return self._received - self._delivered - self._rejected - self._revoked

    def _take(self, parcels: Iterable[Parcel[T]]) -> None:
        for parcel in parcels:
            if parcel.item is None:
                self._look_at(parcel.group)
            else:
                self._outbox.append(parcel)

    def _look_at(self, group: Group) -> None:
        """A group whose last parcel is safe is safe."""
        if group.is_complete and not group.outstanding and not group.is_safe:
            group.is_safe = True
            rejected = min(group.rejected, len(group.positions))
            self._rejected += rejected
            self._delivered += len(group.positions) - rejected
            self._safe += group.positions

    def _send_all(self, until: float) -> float | None:
        """Sends what there is; in how many seconds to go on, ``None`` where nothing is left."""
        while self._again or self._outbox or self._bisection is not None:
            now = self._clock()
            if now < self._not_before:
                return self._not_before - now
            if now >= until:
                return 0.0
            parts = self._again if self._bisection is None else self._bisection.parts
            if parts:
                batch = parts.pop()
                self._in_flight = len(batch)
                self._again_count -= len(batch)
                self._retried += 1
            else:
                # first the mark, so that another thread never sees nothing waiting in between
                self._in_flight = min(len(self._outbox), max(1, self.sink.max_batch))
                batch = [self._outbox.popleft() for _ in range(self._in_flight)]
            self._send(batch, self._send_timeout)
            self._in_flight = 0
            if self._bisection is not None:
                self._look_closer(self._bisection)
        return None

    def _send(self, batch: list[Parcel[T]], timeout: float) -> None:
        finish_by = self._finish_by
        if finish_by is not None:
            timeout = max(0.1, min(timeout, finish_by - self._clock()))
        self._sending_since = self._clock()
        try:
            answer = self.sink.send([parcel.item for parcel in batch if parcel.item is not None], timeout)
            rejections = _checked(answer, len(batch))
        except RefusedError as error:
            self._answered += 1
            self._recovered()
            self._halve(batch, str(error))
        except UnavailableError as error:
            self._done([parcel for index, parcel in enumerate(batch) if index in error.delivered])
            left = [parcel for index, parcel in enumerate(batch) if index not in error.delivered]
            self._hold(left, error)
        except BaseException as error:  # noqa: BLE001 - a sink of the user's own, or a defect; nothing may get lost by it
            self._bisect(batch, error)
        else:
            self._answered += 1
            self._recovered()
            refused: set[int] = set()
            for rejection in rejections:
                # where the far side tells only how many, some have to stand for them
                indices = range(len(batch)) if rejection.index is None else (rejection.index,)
                chosen = [index for index in indices if index not in refused][-rejection.count :]
                refused.update(chosen)
                self._refuse([batch[index] for index in chosen], rejection.reason, is_known=rejection.index is not None)
            self._done([parcel for index, parcel in enumerate(batch) if index not in refused])
        finally:
            self._sending_since = None

    def _put_again(self, batch: list[Parcel[T]]) -> None:
        if batch:
            self._again.append(batch)
            self._again_count += len(batch)

    def _halve(self, batch: list[Parcel[T]], reason: str) -> None:
        if len(batch) == 1:
            self._refuse(batch, reason, is_known=True)
            return
        middle = len(batch) // 2
        self._put_again(batch[middle:])
        self._put_again(batch[:middle])

    def _bisect(self, batch: list[Parcel[T]], error: BaseException) -> None:
        """Parts a batch for which the sink raised something unexpected, until what is at fault is alone."""
        if self._bisection is None:
            self._bisection = _Bisection(self._clock(), self._answered, error)
        self._bisection.error = error
        if len(batch) == 1:
            self._bisection.alone.append((batch[0], error))
        else:
            middle = len(batch) // 2
            self._bisection.parts += (batch[middle:], batch[:middle])
        self._again_count += len(batch)

    def _look_closer(self, found: _Bisection[T]) -> None:
        """Judges what failed alone, when the rest was tried, or when nothing of it was taken for too long.

        A sink that took, or refused, other items of the batch works: what failed alone is
        tried once more, and is then at fault. One that raised for everything does not work,
        and everything is held.
        """
        works = self._answered > found.answered
        if found.parts and (works or self._clock() - found.started < _SLICE):
            return
        if works and not found.is_second_look and found.alone:
            found.is_second_look = True
            found.parts = [[parcel] for parcel, _ in reversed(found.alone)]
            found.alone = []
            return
        self._bisection = None
        count = sum(map(len, found.parts)) + len(found.alone)
        if works:
            for parcel, error in found.alone:
                message = "%s raised for one item, which is left out, and not for the others"
                self._log.write(_LOGGER, logging.ERROR, "fault", message, self.sink.name, error=error)
                self._refuse([parcel], f"{type(error).__name__}: {said(error)}", is_known=True)
        else:
            # what was not tried comes first the next time, so that not the same items stand before it for ever
            held = [*chain.from_iterable(reversed(found.parts)), *(parcel for parcel, _ in found.alone)]
            self._outbox.extendleft(reversed(held))
            self._hold([], found.error)
        self._again_count -= count

    def _hold(self, batch: list[Parcel[T]], error: BaseException) -> None:
        """Keeps what could not be sent, and waits."""
        self._put_again(batch)
        self._is_gone = isinstance(error, GoneError)
        wait = self._backoff.next(error.retry_after if isinstance(error, UnavailableError) else None)
        self._not_before = self._clock() + wait
        needs_mending = isinstance(error, MisconfiguredError) or not isinstance(error, UnavailableError)
        since = self._trouble.since if self._trouble is not None else self._clock()
        self._trouble = Trouble(said(error) or type(error).__name__, since, needs_mending)
        self._log.write(
            _LOGGER,
            logging.ERROR if needs_mending else logging.WARNING,
            type(error).__name__,
            "%s: %s; %d events are held, the next try is in %.1f s",
            self.sink.name,
            self._trouble.reason,
            self._held(),
            wait,
            error=None if isinstance(error, UnavailableError) else error,
        )

    def _recovered(self) -> None:
        self._backoff.reset()
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            away = self._clock() - trouble.since
            log(_LOGGER, logging.INFO, "%s: takes events again, after %.1f s", self.sink.name, away)

    def _done(self, parcels: Sequence[Parcel[T]]) -> None:
        self._sent += len(parcels)
        for parcel in parcels:
            parcel.group.outstanding -= 1
            self._look_at(parcel.group)

    def _refuse(self, parcels: Sequence[Parcel[T]], reason: str, *, is_known: bool) -> None:
        self._refused += len(parcels)
        message = "%s refuses %d items for good: %s"
        self._log.write(_LOGGER, logging.ERROR, "refused", message, self.sink.name, len(parcels), reason)
        for parcel in parcels:
            if is_known:
                self._bury(reason, _readable(parcel.item))
            parcel.group.outstanding -= 1
            parcel.group.rejected += 1
            self._look_at(parcel.group)

    def _bury(self, reason: str, data: bytes) -> None:
        if self._dead_letters is not None:
            self._dead_lettered += self._dead_letters.write(self.sink.name, reason, data)

    def _acknowledge_all(self) -> float | None:
        """Says which records are safe; in how many seconds to say it again, ``None`` where it was heard."""
        while self._restarts and all(group.is_safe for group in self._restarts[0][1]):
            self._safe.append(self._restarts.popleft()[0])
        if not self._safe:
            return None
        try:
            self._acknowledge(self._safe)
        except Exception as error:  # noqa: BLE001 - whatever it is, what is safe is delivered, and the rest goes on
            self._could_not_acknowledge(error)
            return _ACKNOWLEDGE_AGAIN
        self._safe = []
        self._acknowledge_trouble = None
        return None

    def _could_not_acknowledge(self, error: Exception) -> None:
        self._failed_acknowledgements += 1
        is_unavailable = isinstance(error, UnavailableError)
        since = self._acknowledge_trouble.since if self._acknowledge_trouble is not None else self._clock()
        why = said(error) or type(error).__name__
        needs_mending = isinstance(error, MisconfiguredError) or not is_unavailable
        self._acknowledge_trouble = Trouble(f"what is safe cannot be acknowledged: {why}", since, needs_mending)
        message = "%s: %d events are safe, which could not be noted down: %s; it is tried again"
        self._log.write(
            _LOGGER,
            logging.WARNING,
            "safe",
            message,
            self.sink.name,
            len(self._safe),
            why,
            error=None if is_unavailable else error,
        )
        if isinstance(error, UnavailableError):
            self._safe = [position for index, position in enumerate(self._safe) if index not in error.delivered]


def _checked(answer: Sequence[Rejection] | None, sent: int) -> Sequence[Rejection]:
    """What a sink answered, which may be one of the user's own.

    Raises:
        RuntimeError: It rejects what it was not sent.
    """
    rejections = answer or ()
    for rejection in rejections:
        if rejection.count < 1 or not (rejection.index is None or 0 <= rejection.index < sent):
            message = f"the sink answered {rejection!r} to {sent} items; mend the sink"
            raise RuntimeError(message)
    return rejections


def _readable(item: object) -> bytes:
    """An item for a person to look at."""
    try:
        if not isinstance(item, Span):
            return encode_json(item)  # type: ignore[arg-type] # a parcel has an event or a span
        ids = {"trace_id": f"{item.trace_id:032x}", "span_id": f"{item.span_id:016x}"}
        return msgspec.json.encode({**msgspec.structs.asdict(item), **ids})
    except Exception:  # noqa: BLE001 - it may be at fault for just this
        return shown(item).encode()
