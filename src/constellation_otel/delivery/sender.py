"""Sends items to one sink: batches, retries with backoff, bisects refused batches, dead-letters, counts.

What a transport need not know. Owned and called by one thread; it has no thread and
no queue of its own, and says when it wants to be called again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec
from msgspec import Struct, field

from constellation_otel._support.log import RateLimitedLog, log
from constellation_otel.delivery.counters import SendingCounters, SinkCounters
from constellation_otel.delivery.receipt import Receipt
from constellation_otel.delivery.retry import LastError, Retry
from constellation_otel.delivery.transform import Outbox
from constellation_otel.errors import GoneError, MisconfiguredError, RefusedError, UnavailableError
from constellation_otel.events import encode_json, said, shown
from constellation_otel.traces import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from constellation_otel.delivery.contract import Batch, Position, Rejection, Sink
    from constellation_otel.delivery.dead_letters import DeadLetters
    from constellation_otel.delivery.transform import Transform

__all__ = ["Sender"]

_LOGGER: Final = logging.getLogger(__name__)
_OPEN_FACTOR: Final = 16
"""How many times ``max_held`` records may be open."""
_FULL: Final = 2_048
"""Items that are sent although more are about to come, whatever the sink would take at once."""
_HANGS: Final = 2
"""How many times the sink's own timeout a call may take before that is an error."""

T = TypeVar("T")
"""Event or Span."""


class _Load(Struct, Generic[T]):
    """What the sink is sent at once."""

    items: list[T]
    receipts: list[Receipt]

    def __len__(self) -> int:
        return len(self.items)

    def part(self, indices: Sequence[int]) -> _Load[T]:
        return _Load([self.items[index] for index in indices], [self.receipts[index] for index in indices])

    def halves(self) -> tuple[_Load[T], _Load[T]]:
        middle = len(self.items) // 2
        first, second = slice(middle), slice(middle, None)
        return _Load(self.items[first], self.receipts[first]), _Load(self.items[second], self.receipts[second])


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
    parts: list[_Load[T]] = field(default_factory=list)
    alone: list[tuple[_Load[T], BaseException]] = field(default_factory=list)
    is_second_look: bool = False


class Sender(Generic[T]):
    """Brings events to one sink, as long as it takes.

    Not thread-safe: all calls come from one thread, but for the properties and
    :meth:`finish_by`.

    It is one class of more than 300 lines, since every answer of the sink changes the same
    books: what waits, what is to be sent again, what is held, and since when it fails.

    Args:
        sink: Closed by :meth:`close`.
        transform: Makes of events what the sink takes.
        max_held: Events held at most; see :meth:`has_room`.
        send_timeout: Seconds that one call of the sink may take.
        dead_letters: Where what is refused goes.
        retry: Between tries.
        slice_s: Seconds that sending may go on before :meth:`tick` returns.
        clock: Seconds, monotonic.

    Attributes:
        settled: Receipts of what is safe, or refused for good, for the owner to take.
        is_gone: Whether the sink will never take anything again.
    """

    def __init__(
        self,
        sink: Sink[T],
        transform: Transform[T],
        *,
        max_held: int = 65_536,
        send_timeout: float = 10.0,
        dead_letters: DeadLetters | None = None,
        retry: Retry | None = None,
        slice_s: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sink = sink
        self.transform = transform
        self.settled: list[Receipt] = []
        self.is_gone = False
        self._max_held = max_held
        self._send_timeout = send_timeout
        self._dead_letters = dead_letters
        self._backoff = (retry or Retry()).backoff()
        self._slice_s = slice_s
        self._clock = clock
        self._log = RateLimitedLog()
        self._outbox: Outbox[T] = Outbox()
        # what failed, or was halved, the next one last
        self._again: list[_Load[T]] = []
        self._again_count = 0
        self._bisection: _Bisection[T] | None = None
        self._answered = 0
        self._in_flight: _Load[T] | None = None
        # the answer that is awaited: whoever takes it out has what becomes of the items in flight
        self._awaited: deque[_Load[T]] = deque()
        self._is_abandoned = False
        self._sending_since: float | None = None
        self._not_before = 0.0
        self._finish_by: float | None = None
        self._last_error: LastError | None = None
        self._received = self._delivered = self._rejected = self._revoked = 0
        self._retried = self._sent = self._refused = self._dead_lettered = self._evicted = 0

    @property
    def counters(self) -> SinkCounters:
        """What has become of the events so far."""
        # what is over is read first, so that nothing is missing when another thread reads
        delivered, rejected, revoked, received = self._delivered, self._rejected, self._revoked, self._received
        return SinkCounters(
            received,
            delivered,
            rejected,
            revoked,
            received - delivered - rejected - revoked,
            SendingCounters(self._sent, self._refused, self._retried, self._dead_lettered, self._evicted),
        )

    @property
    def last_error(self) -> LastError | None:
        """Why the sink takes nothing at the moment; ``None`` where it does, as far as is known."""
        since = self._sending_since
        if since is not None and self._clock() - since > _HANGS * self._send_timeout:
            took = self._clock() - since
            return LastError(
                f"send() has not returned for {took:.1f} s, well past its timeout", since, needs_fixing=True
            )
        return self._last_error

    @property
    def waiting(self) -> int:
        """Items that could be sent now and are not safe yet."""
        in_flight = self._in_flight
        return (0 if in_flight is None else len(in_flight)) + len(self._outbox.items) + self._again_count

    @property
    def held(self) -> int:
        """Events that are open, wait, or are on their way."""
        return self._received - self._delivered - self._rejected - self._revoked

    def has_room(self) -> bool:
        """Whether more events may be added.

        What waits is bounded by ``max_held``, spans of executions that are open included; what
        is open, of long executions too, by sixteen times that where its positions are kept,
        and by the transform otherwise.
        """
        transform = self.transform
        if transform.is_immediate:
            # of a batch that is not safe yet, what was sent, or taken out, is in nobody's way
            return self.waiting < self._max_held
        open_records = transform.open_records
        is_too_open = transform.tracks and open_records >= _OPEN_FACTOR * self._max_held
        return max(self.held - open_records, self.waiting) < self._max_held and not is_too_open

    def add(self, batch: Batch) -> None:
        """Takes events; what is made of them is sent by the next :meth:`tick`."""
        self._received += len(batch.events)
        self.transform.add(batch, self._outbox)
        self._look()

    def restart(self, at: Position) -> None:
        """Gives up executions that are open and came before a position, which is settled when they are safe."""
        self.transform.restart(at, self._outbox)
        self._look()

    def revoke(self, origin: Hashable) -> None:
        """Drops what is open of a part of the source, since another reader has it from now on."""
        self._revoked += self.transform.revoke(origin)

    def end(self, *, abandon_open: bool) -> None:
        """The source has ended: puts out what has ended, and what is open where that is to be abandoned."""
        self.transform.finish(self._outbox, abandon=abandon_open)
        self._look()

    def tick(self, *, more: bool = False) -> float | None:
        """Does what is due: lets time pass, sends, sends again, makes room.

        Args:
            more: Whether more is added next, so that a batch that is not full is not sent before that.

        Returns:
            In how many seconds something will be due; ``None`` where only an event makes it so.
        """
        self.transform.advance(self._outbox)
        self._look()
        full = max(1, min(self.sink.max_batch, _FULL)) if more and self.has_room() else 1
        send_in = self.send_until(self._clock() + self._slice_s, at_least=full)
        while not self.has_room() and not self.waiting:
            # all that is held is open: without this, nothing would ever be taken in again
            if not self.transform.make_room(self._outbox):
                message = "%s: there is no room, and nothing is open that could be given up; report this as a defect"
                self._log.write(_LOGGER, logging.ERROR, "no room", message, self.sink.name)
                break
            self._look()
            self._evicted += 1
            message = "%s: more than %d events are open; the execution that was silent longest is abandoned"
            self._log.write(_LOGGER, logging.ERROR, "evict", message, self.sink.name, _OPEN_FACTOR * self._max_held)
            send_in = self.send_until(self._clock() + self._slice_s)
        return min((due for due in (send_in, self.transform.wake_in()) if due is not None), default=None)

    def send_until(self, deadline: float, *, at_least: int = 1) -> float | None:
        """Sends what there is.

        Args:
            deadline: Until when, in seconds of the clock.
            at_least: How many items that were not sent before, so that fewer are left for the next time.

        Returns:
            In how many seconds to go on; ``None`` where nothing is left to be sent now.
        """
        outbox = self._outbox
        while not self._is_abandoned and (self._again or len(outbox.items) >= at_least or self._bisection is not None):
            now = self._clock()
            if now < self._not_before:
                return self._not_before - now
            if now >= deadline:
                return 0.0
            self._send(self._next(), self._send_timeout)
            self._in_flight = None
            if self._bisection is not None:
                self._look_closer(self._bisection)
        return None

    def finish_by(self, deadline: float) -> None:
        """Has no call of the sink wait longer than until then, in seconds of the clock; from any thread."""
        self._finish_by = deadline

    def hurry(self) -> None:
        """Has the next call try once more, however long the pause was meant to be."""
        self._not_before = 0.0

    def abandon(self) -> tuple[list[T], list[Receipt]]:
        """Gives up a call of the sink that does not return; from another thread, at the end.

        Returns:
            Everything that waits to be sent, in order, what is in flight included.
        """
        self._is_abandoned = True
        in_flight = self._taken_over()
        items, receipts = self.take_held()
        if in_flight is None:
            return items, receipts
        # it waits no longer, though the call has yet to return
        self._in_flight = None
        return in_flight.items + items, in_flight.receipts + receipts

    def take_held(self) -> tuple[list[T], list[Receipt]]:
        """Takes out everything that waits to be sent, in order: it goes another way."""
        items, receipts = self._held_items()
        self._again, self._again_count, self._bisection = [], 0, None
        self._outbox.items, self._outbox.receipts = [], []
        return items, receipts

    def put_back(self, items: list[T], receipts: list[Receipt]) -> None:
        """Puts items before everything that waits."""
        self._outbox.items[:0] = items
        self._outbox.receipts[:0] = receipts

    def settle(self, receipt: Receipt, items: int, *, rejected: int = 0) -> None:
        """Items that were taken out with a receipt are safe, or refused for good."""
        receipt.pending -= items
        receipt.rejected += rejected
        self._settle(receipt)

    def close(self) -> None:
        """Closes the sink, and says what was not delivered."""
        if self.waiting:
            message = "%s: %d items were not delivered before the end: %s"
            why = "the sink is too slow" if self._last_error is None else self._last_error.reason
            self._log.write(_LOGGER, logging.WARNING, "finish", message, self.sink.name, self.waiting, why)
        self.sink.close()

    def _held_items(self) -> tuple[list[T], list[Receipt]]:
        loads = list(reversed(self._again))
        if self._bisection is not None:
            loads += [*(load for load, _ in self._bisection.alone), *reversed(self._bisection.parts)]
        items = [*chain.from_iterable(load.items for load in loads), *self._outbox.items]
        receipts = [*chain.from_iterable(load.receipts for load in loads), *self._outbox.receipts]
        return items, receipts

    def _next(self) -> _Load[T]:
        """What is sent next; in flight before it is taken out, so that no other thread sees nothing wait."""
        parts = self._again if self._bisection is None else self._bisection.parts
        if parts:
            load = self._in_flight = parts.pop()
            self._again_count -= len(load)
            self._retried += 1
            return load
        outbox = self._outbox
        count = max(1, self.sink.max_batch)
        load = self._in_flight = _Load(outbox.items[:count], outbox.receipts[:count])
        del outbox.items[:count], outbox.receipts[:count]
        return load

    def _send(self, load: _Load[T], timeout: float) -> None:
        if self._finish_by is not None:
            timeout = max(0.1, min(timeout, self._finish_by - self._clock()))
        self._sending_since = self._clock()
        self._awaited.append(load)
        try:
            rejections = _checked(self.sink.send(load.items, timeout), len(load))
        except BaseException as error:  # noqa: BLE001 - a sink of the user's own, or a defect; nothing may get lost by it
            if self._taken_over() is not None:
                self._failed(load, error)
        else:
            if self._taken_over() is not None:
                self._answered += 1
                self._recovered()
                self._done(load.receipts if not rejections else self._rejected_from(load, rejections).receipts)
        finally:
            self._sending_since = None

    def _taken_over(self) -> _Load[T] | None:
        """What is in flight, for one of the two that ask: the call that has returned, or who gives it up."""
        try:
            return self._awaited.pop()
        except IndexError:
            return None

    def _failed(self, load: _Load[T], error: BaseException) -> None:
        if isinstance(error, RefusedError):
            self._answered += 1
            self._recovered()
            if len(load) == 1:
                self._refuse(load, str(error), is_known=True)
            else:
                first, second = load.halves()
                self._put_again(second)
                self._put_again(first)
        elif isinstance(error, UnavailableError):
            # of its indices, those that there are: a sink may be the user's own
            delivered = [index for index in range(len(load)) if index in error.delivered]
            self._done(load.part(delivered).receipts)
            left = load.part([index for index in range(len(load)) if index not in error.delivered])
            self._hold(left, error)
        else:
            self._bisect(load, error)

    def _rejected_from(self, load: _Load[T], rejections: Sequence[Rejection]) -> _Load[T]:
        """Refuses what was rejected; the rest of the load."""
        refused: set[int] = set()
        for rejection in sorted(rejections, key=lambda it: it.index is None):
            # where the endpoint says only how many, some of the others have to stand for them
            indices = range(len(load)) if rejection.index is None else (rejection.index,)
            chosen = [index for index in indices if index not in refused][-rejection.count :]
            refused.update(chosen)
            if chosen:
                self._refuse(load.part(chosen), rejection.reason, is_known=rejection.index is not None)
        return load.part([index for index in range(len(load)) if index not in refused])

    def _put_again(self, load: _Load[T]) -> None:
        if load.items:
            self._again.append(load)
            self._again_count += len(load)

    def _bisect(self, load: _Load[T], error: BaseException) -> None:
        """Parts a load for which the sink raised something unexpected, until what is at fault is alone."""
        if self._bisection is None:
            self._bisection = _Bisection(self._clock(), self._answered, error)
        self._bisection.error = error
        if len(load) == 1:
            self._bisection.alone.append((load, error))
        else:
            first, second = load.halves()
            self._bisection.parts += (second, first)
        self._again_count += len(load)

    def _look_closer(self, found: _Bisection[T]) -> None:
        """Judges what failed alone, when the rest was tried, or when nothing of it was taken for too long.

        A sink that took, or refused, other items of the load works: what failed alone is
        tried once more, and is then at fault. One that raised for everything does not work,
        and everything is held.
        """
        works = self._answered > found.answered
        if found.parts and (works or self._clock() - found.started < self._slice_s):
            return
        if works and not found.is_second_look and found.alone:
            found.is_second_look = True
            found.parts = [load for load, _ in reversed(found.alone)]
            found.alone = []
            return
        self._bisection = None
        count = sum(map(len, found.parts)) + len(found.alone)
        if works:
            for load, error in found.alone:
                message = "%s raised for one item, and not for the others; that item is left out"
                self._log.write(_LOGGER, logging.ERROR, "fault", message, self.sink.name, error=error)
                self._refuse(load, f"{type(error).__name__}: {said(error)}", is_known=True)
        elif count:
            # what was not tried comes first the next time, so that not the same items stand before it for ever
            loads = [*reversed(found.parts), *(load for load, _ in found.alone)]
            self.put_back(
                [*chain.from_iterable(load.items for load in loads)],
                [*chain.from_iterable(load.receipts for load in loads)],
            )
            self._hold(_Load([], []), found.error)
        self._again_count -= count

    def _hold(self, load: _Load[T], error: BaseException) -> None:
        """Keeps what could not be sent, and waits."""
        self._put_again(load)
        self.is_gone = isinstance(error, GoneError)
        wait = self._backoff.next(error.retry_after if isinstance(error, UnavailableError) else None)
        self._not_before = self._clock() + wait
        needs_fixing = isinstance(error, MisconfiguredError) or not isinstance(error, UnavailableError)
        since = self._last_error.since if self._last_error is not None else self._clock()
        self._last_error = LastError(said(error) or type(error).__name__, since, needs_fixing)
        self._log.write(
            _LOGGER,
            logging.ERROR if needs_fixing else logging.WARNING,
            type(error).__name__,
            "%s: %s; %d events are held, the next try is in %.1f s",
            self.sink.name,
            self._last_error.reason,
            self.held,
            wait,
            error=None if isinstance(error, UnavailableError) else error,
        )

    def _recovered(self) -> None:
        self._backoff.reset()
        last_error, self._last_error = self._last_error, None
        if last_error is not None:
            away = self._clock() - last_error.since
            log(_LOGGER, logging.INFO, "%s: takes events again, after %.1f s", self.sink.name, away)

    def _done(self, receipts: Sequence[Receipt]) -> None:
        self._sent += len(receipts)
        for receipt in receipts:
            receipt.pending -= 1
            if not receipt.pending:
                self._settle(receipt)

    def _refuse(self, load: _Load[T], reason: str, *, is_known: bool) -> None:
        self._refused += len(load)
        message = "%s refuses %d items for good: %s"
        self._log.write(_LOGGER, logging.ERROR, "refused", message, self.sink.name, len(load), reason)
        for item, receipt in zip(load.items, load.receipts, strict=True):
            if is_known:
                self._dead_letter(reason, _readable(item))
            receipt.pending -= 1
            receipt.rejected += 1
            self._settle(receipt)

    def _dead_letter(self, reason: str, data: bytes) -> None:
        if self._dead_letters is not None:
            self._dead_lettered += self._dead_letters.write(self.sink.name, reason, data)

    def _look(self) -> None:
        """Settles what a transform has put out without anything to send, and rejects what it raised for."""
        outbox = self._outbox
        if outbox.settled:
            settled, outbox.settled = outbox.settled, []
            for receipt in settled:
                self._settle(receipt)
        if outbox.faulty:
            faulty, outbox.faulty = outbox.faulty, []
            for event, origin, offset, error in faulty:
                self._reject(event, origin, offset, error)

    def _reject(self, event: object, origin: Hashable, offset: int, error: Exception) -> None:
        self._rejected += 1
        message = "%s: event %s cannot be sent: %s"
        self._log.write(_LOGGER, logging.ERROR, "event", message, self.sink.name, offset, error, error=error)
        self._dead_letter(str(error), shown(event).encode())
        # its own count was taken above
        self.settled.append(Receipt(origin, offset, 0, [offset], is_complete=True, is_settled=True))

    def _settle(self, receipt: Receipt) -> None:
        """A receipt that is complete and of which nothing is pending is settled."""
        if not receipt.is_complete or receipt.pending or receipt.is_settled:
            return
        receipt.is_settled = True
        rejected = min(receipt.rejected, receipt.count)
        self._rejected += rejected
        self._delivered += receipt.count - rejected
        self.settled.append(receipt)
        if receipt.after is not None:
            receipt.after.pending -= 1
            self._settle(receipt.after)


def _checked(answer: Sequence[Rejection] | None, sent: int) -> Sequence[Rejection]:
    """What a sink answered, which may be one of the user's own.

    Raises:
        RuntimeError: It rejects what it was not sent.
    """
    rejections = answer or ()
    for rejection in rejections:
        if rejection.count < 1 or not (rejection.index is None or 0 <= rejection.index < sent):
            message = f"the sink answered {rejection!r} to {sent} items; fix the sink"
            raise RuntimeError(message)
    return rejections


def _readable(item: object) -> bytes:
    """An item for a person to look at."""
    try:
        if not isinstance(item, Span):
            return encode_json(item)  # type: ignore[arg-type] # it is an event, as it is not a span
        ids = {"trace_id": f"{item.trace_id:032x}", "span_id": f"{item.span_id:016x}"}
        return msgspec.json.encode({**msgspec.structs.asdict(item), **ids})
    except Exception:  # noqa: BLE001 - it may be at fault for just this
        return shown(item).encode()
