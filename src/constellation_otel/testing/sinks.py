"""The check of sinks: what :class:`~constellation_otel.delivery.Sink` promises, in the scenarios of outages."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.text import shown
from constellation_otel.delivery import Rejection
from constellation_otel.errors import RefusedError, UnavailableError
from constellation_otel.testing.samples import key_of, odd_items, plain_items
from constellation_otel.testing.violations import (
    FEW_SECONDS,
    SLACK,
    Component,
    Violations,
    described,
    is_awaitable,
    run_in_time,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from constellation_otel.delivery import Sink
    from constellation_otel.events import Event
    from constellation_otel.testing.violations import Progress
    from constellation_otel.traces import Span

__all__ = ["check_sink"]

_SEND_TIMEOUT: Final = 10.0
_SHORT_TIMEOUT: Final = 0.5
_MAX_FULL_BATCH: Final = 10_000
_PAUSE: Final = 0.05


def check_sink(
    make: Callable[[], Sink[Any]],
    *,
    received: Callable[[], Iterable[Event | Span]] | None = None,
    outages: Mapping[str, Callable[[], Sink[Any]]] | None = None,
    refusing: Callable[[], Sink[Any]] | None = None,
    flaky: Callable[[], Sink[Any]] | None = None,
    items: Sequence[Event] | Sequence[Span] | None = None,
    timeout: float = 30.0,
) -> None:
    """Checks that a sink keeps the contract of :class:`~constellation_otel.delivery.Sink`.

    A sink gets one item, several, a full batch, the same item again, and odd but legal
    ones. It must take what is ordinary, raise UnavailableError and RefusedError only,
    keep to the timeout, leave what it is sent as it is, and reject only what it was
    sent. It must close in time, and closing it twice must do no harm.

    All calls of one sink come from one thread. The other scenarios, and what has
    arrived, are checked only if they are given.

    Args:
        make: Makes a sink whose endpoint works; called once for each part of the check.
        received: What the endpoint of ``make`` and ``flaky`` has, read back: each item
            must be there once, or be rejected; one that was sent again, at least once.
            An event is recognized by its type and ids, a span by its ids.
        outages: Makes sinks whose endpoint cannot take anything now, by what is wrong with
            it: it is not there, it never answers, its disk is full. :meth:`send` must raise
            UnavailableError, which includes MisconfiguredError, within its timeout.
        refusing: Makes a sink whose endpoint refuses everything for good: each item must be
            rejected, or RefusedError raised.
        flaky: Makes a sink whose endpoint fails at times, in any way that ends: what is sent
            again and again, as delivery does it, must be taken or rejected in the end.
        items: Ordinary items to send instead of the check's own, as for an endpoint that
            takes certain ones only; each with ids of its own.
        timeout: Seconds for each part, after which a call counts as hanging.

    Raises:
        AssertionError: The sink breaks a promise; the message has every violation.
        ValueError: There are no items.
    """
    if items is not None and not items:
        message = "items is empty, so nothing would be sent; give some, or leave it out"
        raise ValueError(message)
    violations = Violations("the sink does not keep its contract")
    scenarios: list[tuple[str, Callable[[], Sink[Any]], Callable[[_Run], None]]] = [
        ("with ordinary items", make, _ordinary),
        ("with odd items", make, _odd),
    ]
    if flaky is not None:
        scenarios.append(("with an endpoint that fails at times", flaky, partial(_flaky, timeout=timeout)))
    if refusing is not None:
        scenarios.append(("with an endpoint that refuses everything", refusing, _refusing))
    for name, make_failing in (outages or {}).items():
        scenarios.append((f"in the outage {name!r}", make_failing, _outage))
    for what, make_one, scenario in scenarios:
        where = f" ({what})"
        # of the other endpoints nothing is read back
        arrivals = received if make_one in {make, flaky} else None
        run = partial(_run, make_one, scenario, where, violations, arrivals, items)
        run_in_time(run, where, violations, timeout, "check-sink")
    violations.raise_if_any()


class _Answer(Struct):
    """What became of the items of one call, by their indices."""

    taken: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    unnamed: int = 0  # rejected, of those that were taken
    error: RefusedError | UnavailableError | None = None
    is_broken: bool = False


class _Run(Component):
    """A sink in one part of the check, and what was sent to it."""

    def __init__(
        self,
        sink: Sink[Any],
        where: str,
        violations: Violations,
        progress: Progress,
        received: Callable[[], Iterable[Event | Span]] | None,
        items: Sequence[Event] | Sequence[Span] | None,
    ) -> None:
        super().__init__(where, violations, progress)
        self.sink = sink
        self._received = received
        self._items = items
        self._before = self._arrived()
        # how often a call had it and did not say that it was refused
        self._sent: Counter[Hashable] = Counter()
        self._taken: set[Hashable] = set()
        self._rejected: set[Hashable] = set()
        self._unnamed: list[tuple[list[Hashable], int]] = []

    def describe(self) -> bool:
        """Checks what a sink says of itself; whether the rest of the check makes sense."""
        sink = self.sink
        missing = [name for name in ("name", "takes", "max_batch", "send", "close") if not hasattr(sink, name)]
        if missing:
            self.add(f"it has no {', '.join(missing)}")
            return False
        name, takes, max_batch = sink.name, sink.takes, sink.max_batch
        if type(name) is not str or not name or not name.isprintable() or " " in name:
            self.add(f"its name is {shown(name)}, not a word")
        again = sink.name
        if again != name:
            self.add(f"its name changes: {shown(name)}, {shown(again)}")
        if takes not in {"events", "spans"}:
            self.add(f"takes is {shown(takes)}, neither 'events' nor 'spans'")
        if type(max_batch) is not int or max_batch < 1:
            self.add(f"max_batch is {shown(max_batch)}, not a number of items")
        return takes in {"events", "spans"} and type(max_batch) is int and max_batch > 0

    def plain(self, count: int) -> list[Any]:
        """Ordinary items, at most so many where they are the user's own."""
        return plain_items(self.sink.takes, count) if self._items is None else list(self._items[:count])

    def deliver(self, items: list[Any]) -> None:
        """Sends ordinary items, which a working endpoint takes."""
        answer = self.send(items, _SEND_TIMEOUT)
        if answer.error is not None:
            self.add(f"send raised {described(answer.error)} for ordinary items, though the endpoint works")
        elif answer.rejected or answer.unnamed:
            self.add("send rejected ordinary items, though the endpoint works")

    def send(self, items: list[Any], timeout: float) -> _Answer:
        """Sends items once, and checks the answer."""
        before = shown(items)
        answer = self.call("send", self.sink.send, items, timeout, within=timeout + SLACK)
        if shown(items) != before:
            self.add("send changed the items, or their list")
        found = self._judged(answer, len(items))
        if found.is_broken or isinstance(found.error, RefusedError):
            return found
        keys = [key_of(item) for item in items]
        refused = {keys[index] for index in found.rejected}
        self._sent.update(key for key in keys if key not in refused)
        self._rejected |= refused
        if found.unnamed:
            self._unnamed.append(([keys[index] for index in found.taken], found.unnamed))
        else:
            self._taken.update(keys[index] for index in found.taken)
        return found

    def reject(self, item: object) -> None:
        """The endpoint refused an item that was alone."""
        self._rejected.add(key_of(item))

    def check_arrived(self) -> None:
        """Compares what the endpoint has with what it was said to have."""
        if self._received is None:
            return
        arrived = self._arrived()
        arrived.subtract(self._before)
        missing = [key for key in self._taken if arrived[key] < 1]
        if missing:
            self.add(f"{len(missing)} of {len(self._taken)} items that send took are not there, as {missing[0]}")
        twice = [key for key, times in self._sent.items() if arrived[key] > times]
        if twice:
            self.add(f"{len(twice)} of {len(self._sent)} items are there more often than they were sent: {twice[0]}")
        there = [key for key in self._rejected - self._taken if key not in self._sent and arrived[key] > 0]
        if there:
            self.add(f"{len(there)} items that were rejected are there, as {there[0]}")
        for keys, count in self._unnamed:
            lost = sum(arrived[key] < 1 for key in keys)
            # one that was sent before, without an answer, may be there since then
            if lost > count or (lost < count and all(self._sent[key] == 1 for key in keys)):
                self.add(f"{count} of {len(keys)} items were rejected, and {lost} are not there")

    def close(self) -> None:
        """Closes the sink, twice."""
        for what in ("close", "close, called twice,"):
            answer = self.call(what, self.sink.close, within=FEW_SECONDS)
            if isinstance(answer, BaseException):
                self.add(f"{what} raised {described(answer)}")
            elif is_awaitable(answer):
                self.add(f"{what} returned an awaitable, which is never awaited")

    def _arrived(self) -> Counter[Hashable]:
        if self._received is None:
            return Counter()
        self.progress.call = "received()"
        return Counter(map(key_of, self._received()))

    def _judged(self, answer: object, sent: int) -> _Answer:
        if isinstance(answer, RefusedError):
            return _Answer(error=answer)
        if isinstance(answer, UnavailableError):
            return _Answer(taken=self._delivered(answer, sent), error=answer)
        if isinstance(answer, BaseException):
            self.add(f"send raised {described(answer)}, neither an UnavailableError nor a RefusedError")
            return _Answer(is_broken=True)
        if is_awaitable(answer):
            self.add("send returned an awaitable, which is never awaited")
            return _Answer(is_broken=True)
        if not isinstance(answer, list | tuple) or not all(isinstance(it, Rejection) for it in answer):
            self.add(f"send returned {shown(answer)[:100]}, not a sequence of Rejections")
            return _Answer(is_broken=True)
        return self._rejections(answer, sent)

    def _delivered(self, error: UnavailableError, sent: int) -> list[int]:
        strange = sorted(set(error.delivered) - set(range(sent)))
        if strange:
            self.add(f"UnavailableError.delivered has {strange[0]!r} of {sent} items")
        wait = error.retry_after
        if wait is not None and not wait >= 0:
            self.add(f"UnavailableError.retry_after is {wait!r}, not seconds")
        return [index for index in range(sent) if index in error.delivered]

    def _rejections(self, rejections: Sequence[Rejection], sent: int) -> _Answer:
        named: list[int] = []
        unnamed = 0
        for rejection in rejections:
            index, count = rejection.index, rejection.count
            if index is None:
                unnamed += count
            else:
                named.append(index)
            is_wrong = count < 1 or (index is not None and (count != 1 or not 0 <= index < sent))
            if is_wrong:
                self.add(f"send answered {rejection!r} to {sent} items")
                return _Answer(is_broken=True)
        if len(set(named)) < len(named):
            self.add("send rejected the same item twice")
        if len(set(named)) + unnamed > sent:
            self.add(f"send rejected {len(set(named)) + unnamed} of {sent} items")
            return _Answer(is_broken=True)
        taken = [index for index in range(sent) if index not in named]
        return _Answer(taken, named, unnamed)


def _run(
    make: Callable[[], Sink[Any]],
    scenario: Callable[[_Run], None],
    where: str,
    violations: Violations,
    received: Callable[[], Iterable[Event | Span]] | None,
    items: Sequence[Event] | Sequence[Span] | None,
    progress: Progress,
) -> None:
    run = _Run(make(), where, violations, progress, received, items)
    if run.describe():
        scenario(run)
        run.close()
        # what is safe does not need the sink to be open
        run.check_arrived()


def _ordinary(run: _Run) -> None:
    """One item, several, a full batch, and one that was sent before."""
    max_batch = run.sink.max_batch
    sizes = (1, min(3, max_batch), min(max_batch, _MAX_FULL_BATCH))
    left = run.plain(sum(sizes))
    first = left[:1]
    for size in sizes:
        batch, left = left[:size], left[size:]
        if batch:
            run.deliver(batch)
    run.check_arrived()
    run.deliver(first)


def _odd(run: _Run) -> None:
    """Odd items in batches; those that are refused together are sent in halves, as delivery does it."""
    items = odd_items(run.sink.takes)
    size = min(run.sink.max_batch, len(items))
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    while parts:
        part = parts.pop()
        answer = run.send(part, _SEND_TIMEOUT)
        if isinstance(answer.error, UnavailableError):
            run.add(f"send raised {described(answer.error)}, though the endpoint works")
        parts += _halves(run, part, answer)


def _flaky(run: _Run, timeout: float) -> None:
    """Everything is sent until it is taken or rejected."""
    size = min(run.sink.max_batch, 8)
    items = run.plain(8 * size)
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    end = deadline_of(timeout * 0.8)
    while parts and time.monotonic() < end:
        part = parts.pop()
        answer = run.send(part, _SHORT_TIMEOUT)
        parts += _halves(run, part, answer)
        if isinstance(answer.error, UnavailableError):
            left = [item for index, item in enumerate(part) if index not in answer.taken]
            parts += [left] if left else []
            time.sleep(min(answer.error.retry_after or _PAUSE, seconds_left(end)))
    if parts:
        run.add(f"{sum(map(len, parts))} of {len(items)} items could not be delivered by sending them again")


def _halves(run: _Run, items: list[Any], answer: _Answer) -> list[list[Any]]:
    """What is sent next where items were refused together."""
    if not isinstance(answer.error, RefusedError):
        return []
    if len(items) == 1:
        run.reject(items[0])
        return []
    middle = len(items) // 2
    return [items[middle:], items[:middle]]


def _refusing(run: _Run) -> None:
    """Nothing is taken, and nothing is to be sent again."""
    for count in (1, min(3, run.sink.max_batch)):
        answer = run.send(run.plain(count), _SEND_TIMEOUT)
        if isinstance(answer.error, UnavailableError):
            run.add(f"send raised {described(answer.error)}, though the endpoint refuses the items for good")
        elif len(answer.taken) > answer.unnamed:
            run.add("send took items that the endpoint refuses")


def _outage(run: _Run) -> None:
    """Twice, since what fails at first may hang later."""
    for count in (1, min(3, run.sink.max_batch)):
        answer = run.send(run.plain(count), _SHORT_TIMEOUT)
        if isinstance(answer.error, RefusedError) or answer.rejected or answer.unnamed:
            run.add("send gave up items for good that can be sent again later")
        elif answer.error is None and not answer.is_broken:
            run.add("send returned as if the items were safe")
