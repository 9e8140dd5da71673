"""The check of sources: what :class:`~constellation_otel.delivery.Source` promises, over several runs."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Hashable
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from msgspec import Struct, field

from constellation_otel._support.deadline import deadline_of
from constellation_otel._support.text import shown
from constellation_otel.delivery import Batch, Position, Record, Restarted, Revoked, Unreadable, as_source
from constellation_otel.errors import SourceError, UnavailableError
from constellation_otel.events import validated
from constellation_otel.testing.samples import key_of
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
    from collections.abc import Callable, Mapping, Sequence

    from constellation_otel.delivery import AnySource, SourceItem
    from constellation_otel.events import Event
    from constellation_otel.testing.violations import Progress

__all__ = ["check_source"]

_READ_TIMEOUT: Final = 0.5
_LONG_TIMEOUT: Final = 3_600.0
_QUIET: Final = 1.0
"""Seconds without an item after which a source that has not ended is taken to have given all."""
_PAUSE: Final = 0.05
_CLOSE_AFTER: Final = 0.2
_NEEDED: Final = ("name", "is_ordered", "is_durable", "has_ended", "read", "acknowledge", "close")


def check_source(
    make: Callable[[], AnySource],
    *,
    events: Sequence[Event] | None = None,
    resumes: bool = False,
    outages: Mapping[str, Callable[[], AnySource]] | None = None,
    timeout: float = 30.0,
) -> None:
    """Checks that a source keeps the contract of :class:`~constellation_otel.delivery.Source`.

    It is read until it has ended, or gives nothing for a second, and made and read again.
    It must give what a source may give, each position once and in ascending order, and raise
    UnavailableError and SourceError only; read must return in time if nothing comes, and
    end if another thread closes the source; acknowledgements are taken in any order, twice,
    of a part, or never. If it is durable, what was not acknowledged must come again.

    All calls of one source come from one thread, except for ``close``. What is not given
    is not checked.

    Args:
        make: Makes a source over the same records each time; called up to four times, each
            time after the one before was closed.
        events: The events that the source has, in the order in which they happened: each
            must come once in a run. An event is recognized by its type and ids.
        resumes: Whether what was acknowledged does not come again, as of a journal or of a
            consumer group; a file is read from its beginning each time.
        outages: Makes sources that cannot be read now, or at all, by what is wrong: ``read``
            must give nothing or raise, and end when another thread closes the source.
        timeout: Seconds for each part, after which a call counts as hanging; closing may
            take a quarter of that, and seven at most.

    Raises:
        AssertionError: The source breaks a promise; the message has every violation.
    """
    violations = Violations("the source does not keep its contract")
    first, second, third, fourth = (_Read() for _ in range(4))

    def run(scenario: Callable[[_Run], None], where: str, make_one: Callable[[], AnySource] = make) -> None:
        part = partial(_run, make_one, scenario, where, violations, timeout)
        run_in_time(part, where, violations, timeout, "check-source")

    run(partial(_first_run, read=first, events=events), " in the first run")
    if first.is_durable and first.is_complete:
        where = " in the second run, after nothing was acknowledged"
        run(partial(_later_run, read=second, owed=first.given, acknowledge=_every_second), where)
    if second.is_complete:
        where = " in the third run, after every second one was acknowledged"
        run(partial(_later_run, read=third, owed=second.owed, acknowledge=_all), where)
    if third.is_complete and resumes:
        run(partial(_resumed_run, read=fourth, done=third.given), " in the fourth run, after all was acknowledged")
    for name, make_failing in (outages or {}).items():
        run(_outage, f" in the outage {name!r}", make_failing)
    violations.raise_if_any()


class _Read(Struct):
    """What a run has given.

    Attributes:
        given: By what it is known; events and what is unreadable.
        owed: What of it was not acknowledged.
        positions: Where the source has it, in order.
        is_durable: Whether the source says so.
        is_complete: Whether all was read that there was.
    """

    given: list[Hashable] = field(default_factory=list)
    owed: list[Hashable] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)
    is_durable: bool = False
    is_complete: bool = False


class _Run(Component):
    """A source in one part of the check, and what it has given."""

    def __init__(self, own: AnySource, where: str, violations: Violations, progress: Progress, timeout: float) -> None:
        super().__init__(where, violations, progress)
        self.own = own
        self.source = as_source(own)
        self.events: list[Event] = []
        self.unreadable: list[Unreadable] = []
        self._timeout = timeout
        self._last: dict[Hashable, int] = {}
        self._is_disordered = False
        self._gave_up = False

    def describe(self) -> bool:
        """Checks what a source says of itself; whether the rest of the check makes sense."""
        missing = [name for name in _NEEDED if not hasattr(self.own, name)]
        if missing:
            self.add(f"it has no {', '.join(missing)}")
            return False
        source = self.source
        name = source.name
        if type(name) is not str or not name or not name.isprintable():
            self.add(f"its name is {shown(name)}, not a line of text")
        elif _password_in(name):
            self.add("its name has a password in it")
        again = source.name
        if again != name:
            self.add(f"its name changes: {shown(name)}, {shown(again)}")
        for flag in ("is_ordered", "is_durable", "has_ended"):
            value = getattr(source, flag)
            if type(value) is not bool:
                self.add(f"{flag} is {shown(value)}, neither True nor False")
        return True

    def read_all(self, read: _Read, count: int) -> None:
        """Reads until the source has ended, or has given so many items and then nothing for a while."""
        end = deadline_of(self._timeout * 0.6)
        quiet_since = time.monotonic()
        error: UnavailableError | None = None
        while not self.source.has_ended and time.monotonic() < end:
            answer = self.read(_READ_TIMEOUT)
            if answer is None:
                return
            if isinstance(answer, list):
                self._take(answer, read)
            error = answer if isinstance(answer, UnavailableError) else None
            if error is None and answer:
                quiet_since = time.monotonic()
            elif len(read.given) >= count and error is None and time.monotonic() - quiet_since >= _QUIET:
                break
            else:
                time.sleep(_PAUSE)
        if error is not None:
            self.add(f"read raised {described(error)} to the end")
            return
        read.is_complete = True
        self._check_states()
        if self.source.has_ended:
            self._check_end()

    def read(self, timeout: float) -> list[SourceItem] | UnavailableError | None:
        """Reads once: what was given, a failure that passes, or nothing where to go on makes no sense."""
        answer = self.call("read", self.own.read, timeout, within=timeout + SLACK)
        if isinstance(answer, UnavailableError):
            return answer
        if isinstance(answer, SourceError):
            self.add(f"read raised {described(answer)}, though the source can be read")
        elif isinstance(answer, BaseException):
            self.add(f"read raised {described(answer)}, neither an UnavailableError nor a SourceError")
        elif is_awaitable(answer):
            self.add("read returned an awaitable, which is never awaited")
        elif not isinstance(answer, list | tuple):
            self.add(f"read returned {shown(answer)[:100]}, not a sequence of items")
        else:
            return list(answer)
        return None

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Acknowledges, again where that cannot be written down now; no more once it never could."""
        if self._gave_up:
            return
        end = deadline_of(self._timeout * 0.2)
        while True:
            answer = self.call("acknowledge", self.own.acknowledge, list(positions), within=_LONG_TIMEOUT)
            if not isinstance(answer, UnavailableError) or time.monotonic() >= end:
                break
            time.sleep(_PAUSE)
        if isinstance(answer, UnavailableError):
            self._gave_up = True
            self.add(f"acknowledge raised {described(answer)} to the end")
        elif isinstance(answer, BaseException):
            self.add(f"acknowledge raised {described(answer)}, not an UnavailableError")
        elif is_awaitable(answer):
            self.add("acknowledge returned an awaitable, which is never awaited")

    def close(self) -> None:
        """Closes the source, twice; where it has not ended, the first time from another thread while it is read."""
        if not self.source.has_ended:
            self.close_while_read()
        else:
            self._close_here("close")
        self._close_here("close, called twice,")

    def close_while_read(self) -> list[SourceItem]:
        """Has another thread close the source while a read waits; what the read gave all the same."""
        by_another = "close, called from another thread,"
        is_closing = threading.Event()

        def close() -> None:
            is_closing.set()
            self._close(by_another)

        closer = threading.Timer(_CLOSE_AFTER, close)
        closer.daemon = True
        closer.start()
        what = "read, while another thread closes the source,"
        given: list[SourceItem] = []
        while not is_closing.is_set():
            answer = self.call(what, self.own.read, _LONG_TIMEOUT, within=FEW_SECONDS)
            if isinstance(answer, list | tuple):
                given += answer
            elif is_awaitable(answer):
                self.add(f"{what} returned an awaitable, which is never awaited")
                break
            elif isinstance(answer, BaseException) and not isinstance(answer, UnavailableError | SourceError):
                self.add(f"{what} raised {described(answer)}, neither an UnavailableError nor a SourceError")
                break
            time.sleep(_PAUSE)
        self.progress.call = by_another
        closer.join()
        return given

    def _close_here(self, what: str) -> None:
        self.progress.call = what
        self._close(what)

    def _close(self, what: str) -> None:
        # not by call(): while another thread closes, the read is what may hang
        start = time.monotonic()
        try:
            answer: object = self.own.close()  # type: ignore[func-returns-value] # a user's own may
        except BaseException as error:  # noqa: BLE001 - reported, whatever it is
            self.add(f"{what} raised {described(error)}")
        else:
            if is_awaitable(answer):
                self.add(f"{what} returned an awaitable, which is never awaited")
        limit = min(FEW_SECONDS, self._timeout / 4)
        if time.monotonic() - start > limit:
            self.add(f"{what} took longer than {limit:g} s")

    def _take(self, items: Sequence[SourceItem], read: _Read) -> None:
        for item in items:
            if isinstance(item, Batch):
                self._take_batch(item, read)
            elif isinstance(item, Record):
                self._at(item.position, read)
                self._event(item.event, read)
            elif isinstance(item, Unreadable):
                self._at(item.position, read)
                self.unreadable.append(item)
                read.given.append(("unreadable", item.data))
            elif isinstance(item, Restarted):
                self._at(item.position, read)
                read.given.append("a restart")
            elif isinstance(item, Revoked):
                # another reader may give it back
                self._last.pop(item.origin, None)
            else:
                self.add(f"read gave {shown(item)[:100]}, no Record, Batch, Unreadable, Restarted or Revoked")

    def _take_batch(self, batch: Batch, read: _Read) -> None:
        if len(batch.events) != len(batch.offsets):
            self.add(f"read gave a Batch of {len(batch.events)} events with {len(batch.offsets)} offsets")
        strange = [offset for offset, _ in batch.corrected if offset not in batch.offsets]
        if strange:
            self.add(f"read gave a Batch with a correction at {strange[0]}, which is none of its offsets")
        for event, offset in zip(batch.events, batch.offsets, strict=False):
            if not _is_validated(event):
                self.add(f"read gave a Batch with an event that was not validated: a {type(event).__name__}")
            self._at(Position(batch.origin, offset), read)
            self._event(event, read)

    def _event(self, event: Event, read: _Read) -> None:
        self.events.append(event)
        read.given.append(key_of(event))

    def _at(self, position: Position, read: _Read) -> None:
        origin, offset = position
        read.positions.append(position)
        if not (_is_hashable(origin) and type(offset) is int):
            self.add(f"read gave {shown(position)[:100]}, whose offset is no int, or whose origin is not hashable")
            return
        last = self._last.get(origin)
        if last is not None and offset <= last and not self._is_disordered:
            self._is_disordered = True
            self.add(f"read gave offset {offset} after {last} in part {shown(origin)}")
        self._last[origin] = offset

    def _check_end(self) -> None:
        answer = self.read(0.0)
        if answer and isinstance(answer, list):
            self.add(f"read gave {len(answer)} more items after has_ended was True")
        if not self.source.has_ended:
            self.add("has_ended was True, and is False again")

    def _check_states(self) -> None:
        source = self.source
        error, fraction = source.last_error, source.fraction_read
        if error is not None and type(error) is not str:
            self.add(f"last_error is {shown(error)}, not a text")
        for name in ("failed_acknowledgements", "dropped"):
            count = getattr(source, name)
            if type(count) is not int or count < 0:
                self.add(f"{name} is {shown(count)}, not a count")
        if fraction is not None and not 0 <= fraction <= 1:
            self.add(f"fraction_read is {shown(fraction)}, not from 0 to 1")
        answer = self.call("keep_alive", source.keep_alive, within=FEW_SECONDS)
        if isinstance(answer, BaseException):
            self.add(f"keep_alive raised {described(answer)}")


def _run(
    make: Callable[[], AnySource],
    scenario: Callable[[_Run], None],
    where: str,
    violations: Violations,
    timeout: float,
    progress: Progress,
) -> None:
    run = _Run(make(), where, violations, progress, timeout)
    if run.describe():
        scenario(run)


def _first_run(run: _Run, read: _Read, events: Sequence[Event] | None) -> None:
    """Everything comes, once; nothing is acknowledged where it is to come again."""
    read.is_durable = run.source.is_durable
    run.read_all(read, len(events or ()))
    if read.is_complete and events is not None:
        _compare(run, [key_of(event) for event in events], events)
    if not read.is_durable:
        _every_second(run, read)
    run.close()


def _compare(run: _Run, expected: list[Hashable], events: Sequence[Event]) -> None:
    given = Counter(map(key_of, run.events))
    wanted = Counter(expected)
    missing, more = wanted - given, given - wanted
    if missing:
        ended = ", though has_ended is True" if run.source.has_ended else ""
        read = f"; {len(run.unreadable)} are unreadable: {run.unreadable[0].reason}" if run.unreadable else ""
        run.add(f"{missing.total()} of {len(events)} events did not come, as {next(iter(missing))}{ended}{read}")
    twice = [key for key in more if key in wanted]
    if twice:
        run.add(f"{len(twice)} events came more than once, as {twice[0]}")
    foreign = [key for key in more if key not in wanted]
    if foreign:
        run.add(f"{len(foreign)} events came that it does not have, as {foreign[0]}")
    if run.source.is_ordered and not more and not missing and _by_execution(run.events) != _by_execution(events):
        run.add("is_ordered is True, and an execution's events came in another order")


def _by_execution(events: Sequence[Event]) -> dict[Hashable, list[Hashable]]:
    keys: defaultdict[Hashable, list[Hashable]] = defaultdict(list)
    for event in events:
        keys[event.execution_id].append(key_of(event))
    return keys


def _later_run(run: _Run, read: _Read, owed: Sequence[Hashable], acknowledge: Callable[[_Run, _Read], None]) -> None:
    """What was not acknowledged comes again."""
    run.read_all(read, len(owed))
    missing = Counter(owed) - Counter(read.given)
    if missing:
        run.add(
            f"is_durable is True, and {missing.total()} of {len(owed)} that were not acknowledged"
            f" did not come again, as {next(iter(missing))}"
        )
        read.is_complete = False
    else:
        acknowledge(run, read)
    run.close()


def _resumed_run(run: _Run, read: _Read, done: Sequence[Hashable]) -> None:
    """What was acknowledged does not come again."""
    run.read_all(read, 0)
    again = Counter(done) & Counter(read.given)
    if again:
        run.add(f"{again.total()} of {len(done)} that were acknowledged came again, as {next(iter(again))}")
    run.close()


def _every_second(run: _Run, read: _Read) -> None:
    """Acknowledges every second one, the last first, then those again, and nothing."""
    read.owed = read.given[1::2]
    half = read.positions[::2]
    run.acknowledge(half[::-1])
    run.acknowledge(half)
    run.acknowledge([])


def _all(run: _Run, read: _Read) -> None:
    """Acknowledges one by one, and the rest together."""
    for position in read.positions[:3]:
        run.acknowledge([position])
    run.acknowledge(read.positions[3:])


def _outage(run: _Run) -> None:
    """It gives nothing, and can be closed all the same."""
    given = run.close_while_read()
    if given:
        run.add(f"read gave {len(given)} items")


def _is_validated(event: Event) -> bool:
    try:
        return validated(event).event == event
    except (TypeError, ValueError):
        return False


def _is_hashable(origin: object) -> bool:
    try:
        hash(origin)
    except TypeError:
        return False
    return True


def _password_in(name: str) -> bool:
    try:
        return bool(urlsplit(name).password)
    except ValueError:
        return False
