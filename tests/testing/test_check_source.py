"""The check of sources: what a user's own needs to pass it, and a broken one for each promise."""

from __future__ import annotations

import threading
from itertools import cycle
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

import pytest

from constellation_otel.delivery import Batch, Position, Record, Restarted, Revoked, Unreadable
from constellation_otel.errors import SourceError, UnavailableError
from constellation_otel.events import ModuleStarted
from constellation_otel.testing import check_source
from deliveries import T0, execution, records
from support import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constellation_otel.delivery import AnySource, SourceItem
    from constellation_otel.events import Event

EVENTS: list[Event] = [*execution(1), *execution(2, fails=True), *execution(3)]


class Least:
    """A file of a user's own, which has what is needed and no more; it is read from its beginning each time."""

    name = "least:file"
    is_ordered = True
    is_durable = True

    def __init__(self) -> None:
        self.left: list[Any] = list(self.contents())

    def contents(self) -> Sequence[SourceItem]:
        return records(EVENTS)

    @property
    def has_ended(self) -> bool:
        return not self.left

    def read(self, timeout: float) -> Sequence[SourceItem]:
        taken, self.left = self.left[:5], self.left[5:]
        return taken

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Keeps nothing."""

    def close(self) -> None:
        """Has nothing to close."""


class Topic(Least):
    """A topic that is followed, and knows what was acknowledged: it commits up to the first that is missing."""

    committed: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        first = next(offset for offset in range(100) if offset not in self.committed)
        self.left = [record for record in records(EVENTS, "a") if record.position.offset >= first]
        self._closed = threading.Event()
        self._is_busy = True

    @property
    def has_ended(self) -> bool:
        return False

    def read(self, timeout: float) -> Sequence[SourceItem]:
        if self._closed.wait(0 if self.left else timeout):
            return []
        if self._is_busy:
            self._is_busy = False
            raise UnavailableError("the broker is busy")
        return super().read(timeout)

    def acknowledge(self, positions: Sequence[Position]) -> None:
        self._is_busy = not self._is_busy
        if self._is_busy:
            raise UnavailableError("the broker is busy")
        self.committed.update(position.offset for position in positions)

    def close(self) -> None:
        self._closed.set()


class Volatile(Topic):
    """A topic that keeps nothing."""

    is_durable = False


def topic(on: type[Topic] = Topic) -> type[Topic]:
    """A topic of which nothing was acknowledged."""
    return type(on.__name__, (on,), {"committed": set()})


def violations_of(make: Callable[[], Any], **options: Any) -> list[str]:
    """What the check says of a source, without its first line."""
    with pytest.raises(AssertionError) as violations:
        check_source(make, **({"events": EVENTS} | options))
    first, *lines = str(violations.value).splitlines()
    assert first == "the source does not keep its contract:"
    return [line.strip() for line in lines]


def test_a_users_source_with_the_needed_methods_passes() -> None:
    check_source(Least, events=EVENTS)
    check_source(Least)


def test_a_source_that_is_followed_and_resumes_passes() -> None:
    """And one that is not durable."""
    at_once(
        lambda: check_source(topic(), events=EVENTS, resumes=True),
        lambda: check_source(topic(Volatile), events=EVENTS),
    )


def test_a_source_may_give_everything_that_the_contract_has() -> None:
    class Everything(Least):
        def contents(self) -> Sequence[SourceItem]:
            return [
                Batch(EVENTS[:4], range(4), "a", [(2, "duration_ms was left out")]),
                Unreadable(b"{", "it is cut", Position("a", 4)),
                Restarted(Position("a", 5)),
                *records(EVENTS[4:8], "b"),
                Revoked("b"),
                *records(EVENTS[8:], "b"),
            ]

    check_source(Everything, events=EVENTS)


class Loses(Least):
    def contents(self) -> Sequence[SourceItem]:
        return records(EVENTS[1:])


class Misreads(Least):
    def contents(self) -> Sequence[SourceItem]:
        return [Unreadable(b"{", "it is cut", Position(None, 0)), *records(EVENTS[1:], first=1)]


class Doubles(Least):
    def contents(self) -> Sequence[SourceItem]:
        return [*records(EVENTS), *records(EVENTS[:1], first=100)]


class Invents(Least):
    def contents(self) -> Sequence[SourceItem]:
        return records([*EVENTS, *execution(9)[:1]])


class Shuffles(Least):
    def contents(self) -> Sequence[SourceItem]:
        return records(EVENTS[::-1])


class Descends(Least):
    def contents(self) -> Sequence[SourceItem]:
        return records(EVENTS)[::-1]


class RepeatsPositions(Least):
    def contents(self) -> Sequence[SourceItem]:
        return [Record(event, Position(None, 7)) for event in EVENTS]


class HasOddPositions(Least):
    def contents(self) -> Sequence[SourceItem]:
        return [Record(event, Position([], 7)) for event in EVENTS]  # type: ignore[arg-type] # that is the violation


class LosesOffsets(Least):
    def contents(self) -> Sequence[SourceItem]:
        return [Batch(EVENTS, range(3), corrected=[(5, "what?")])]


class ValidatesNothing(Least):
    def contents(self) -> Sequence[SourceItem]:
        return [Batch([ModuleStarted(UUID(int=1), None, 5, T0)], [0])]  # type: ignore[arg-type] # that is the violation


class GivesEvents(Least):
    def contents(self) -> Sequence[Any]:
        return EVENTS


class GivesNone(Least):
    def read(self, timeout: float) -> Any:
        super().read(timeout)


class Awaited(Least):
    async def read(self, *_: object) -> Any:  # type: ignore[override]
        """Never gets here."""

    async def acknowledge(self, positions: Sequence[Position]) -> None:  # type: ignore[override]
        """Never gets here."""

    async def close(self) -> None:  # type: ignore[override]
        """Never gets here."""


class AwaitedAndFollowed(Awaited):
    has_ended = False


class AwaitedAcknowledgement(Least):
    async def acknowledge(self, positions: Sequence[Position]) -> None:  # type: ignore[override]
        """Never gets here."""


class Breaks(Least):
    def read(self, timeout: float) -> Sequence[SourceItem]:
        raise OSError("no such device")


class IsNone(Least):
    def read(self, timeout: float) -> Sequence[SourceItem]:
        raise SourceError("no such table")


class GoesOn(Least):
    def read(self, timeout: float) -> Sequence[SourceItem]:
        items = super().read(timeout)
        return items or records(EVENTS[:1], first=100)


class BeginsAgain(Least):
    _looks = 0

    @property
    def has_ended(self) -> bool:
        self._looks += not self.left
        return not self.left and self._looks < 3


class EndsEarly(Least):
    @property
    def has_ended(self) -> bool:
        return len(self.left) < 5


class KeepsOrderOfAcknowledgements(Least):
    last = -1

    def acknowledge(self, positions: Sequence[Position]) -> None:
        for position in positions:
            assert position.offset > self.last, "not in order"
            self.last = position.offset


class ClosesOnce(Least):
    is_closed = False

    def close(self) -> None:
        assert not self.is_closed, "closed already"
        self.is_closed = True


BROKEN: dict[type, str] = {
    Loses: "1 of 12 events did not come, as ('ExecutionStarted', UUID('00000000-0000-0000-0000-000000000001'), None)",
    Misreads: (
        "1 of 12 events did not come, as ('ExecutionStarted', UUID('00000000-0000-0000-0000-000000000001'), None),"
        " though has_ended is True; 1 are unreadable: it is cut in the first run"
    ),
    Doubles: "1 events came more than once, as ('ExecutionStarted', ",
    Invents: "1 events came that it does not have, as ('ExecutionStarted', ",
    Shuffles: "is_ordered is True, and an execution's events came in another order in the first run",
    Descends: "read gave offset 10 after 11 in part None in the first run, and 2 more like it",
    RepeatsPositions: "read gave offset 7 after 7 in part None in the first run, and 2 more like it",
    HasOddPositions: "read gave Position(origin=[], offset=7), whose offset is no int, or whose ",
    LosesOffsets: "read gave a Batch of 12 events with 3 offsets in the first run, and 2 more like it",
    ValidatesNothing: "read gave a Batch with an event that was not validated: a ModuleStarted ",
    GivesEvents: "read gave ExecutionStarted(",
    GivesNone: "read returned None, not a sequence of items in the first run",
    Awaited: "read returned an awaitable, which is never awaited in the first run",
    AwaitedAndFollowed: "read, while another thread closes the source, returned an awaitable, which is never awaited",
    AwaitedAcknowledgement: "acknowledge returned an awaitable, which is never awaited in the second run, ",
    Breaks: "read raised OSError: 'no such device', neither an UnavailableError nor a SourceError in the first run",
    IsNone: "read raised SourceError: 'no such table', though the source can be read in the first run",
    GoesOn: "read gave 1 more items after has_ended was True ",
    BeginsAgain: "has_ended was True, and is False again ",
    EndsEarly: "2 of 12 events did not come, as ",
    KeepsOrderOfAcknowledgements: "acknowledge raised AssertionError: 'not in order",
    ClosesOnce: "close, called twice, raised AssertionError: 'closed already",
}


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
def test_a_broken_source_is_caught(make: type) -> None:
    found = violations_of(make)
    assert [line for line in found if line.startswith(BROKEN[make])], found


def test_a_source_says_of_itself_what_it_is() -> None:
    names = cycle("xab")  # one is whether it is there
    wrong: dict[str, Any] = {
        "its name has a password in it": {"name": "ws://user:secret@host"},
        "its name is 'two\\nlines', not a line of text": {"name": "two\nlines"},
        "its name changes: 'a', 'b'": {"name": property(lambda self: next(names))},
        "is_ordered is None, neither True nor False": {"is_ordered": None},
        "last_error is 5, not a text": {"last_error": 5},
        "dropped is -1, not a count": {"dropped": -1},
        "fraction_read is 1.5, not from 0 to 1": {"fraction_read": 1.5},
        "keep_alive raised TypeError: \"'int' object is not callable\"": {"keep_alive": 5},
    }
    for message, fields in wrong.items():
        assert violations_of(type("Wrong", (Least,), fields)) == [f"{message} in the first run, and 2 more like it"]
    assert violations_of(object) == [
        "it has no name, is_ordered, is_durable, has_ended, read, acknowledge, close in the first run"
    ]
    check_source(type("Right", (Least,), {"name": "//[no url"}), events=EVENTS)


def test_a_source_that_loses_what_was_not_acknowledged_is_caught() -> None:
    class CommitsWhatIsRead(Topic):
        def read(self, timeout: float) -> Sequence[SourceItem]:
            items = super().read(timeout)
            self.committed.update(item.position.offset for item in items if isinstance(item, Record))
            return items

    class CommitsTheHighest(Topic):
        def acknowledge(self, positions: Sequence[Position]) -> None:
            self.committed.update(range(1 + max((position.offset for position in positions), default=-1)))

    ((unread,), (unacknowledged,)) = at_once(
        lambda: violations_of(topic(CommitsWhatIsRead), timeout=5.0),
        lambda: violations_of(topic(CommitsTheHighest), timeout=5.0),
    )
    assert unread.startswith("is_durable is True, and 12 of 12 that were not acknowledged did not come again, as ")
    assert unread.endswith(" in the second run, after nothing was acknowledged")
    assert unacknowledged.startswith("is_durable is True, and 5 of 6 that were not acknowledged did not come again, ")
    assert unacknowledged.endswith(" in the third run, after every second one was acknowledged")


def test_a_source_that_forgets_acknowledgements_is_caught() -> None:
    (found,) = violations_of(Least, resumes=True)
    assert found.startswith("12 of 12 that were acknowledged came again, as ('ExecutionStarted', ")
    assert found.endswith(" in the fourth run, after all was acknowledged")


def test_a_source_that_never_recovers_is_caught() -> None:
    class Away(Topic):
        def read(self, timeout: float) -> Sequence[SourceItem]:
            raise UnavailableError("no broker")

    class NeverWrites(Volatile):
        def acknowledge(self, positions: Sequence[Position]) -> None:
            raise UnavailableError("read-only")

    assert at_once(
        lambda: violations_of(topic(Away), timeout=1.0), lambda: violations_of(topic(NeverWrites), timeout=2.0)
    ) == [
        ["read raised UnavailableError: 'no broker' to the end in the first run"],
        ["acknowledge raised UnavailableError: 'read-only' to the end in the first run"],
    ]


def test_a_source_whose_calls_do_not_end_in_time_is_caught() -> None:
    class Late(Volatile):
        def read(self, timeout: float) -> Sequence[SourceItem]:
            released.wait(0 if self.left else timeout + 2.1)
            return super().read(0)

    class NeverEnds(Volatile):
        def read(self, timeout: float) -> Sequence[SourceItem]:
            released.wait(60 if timeout > 60 else 0)
            return super().read(timeout)

    class NeverCloses(Volatile):
        def close(self) -> None:
            super().close()
            released.wait(60)

    released = threading.Event()
    try:
        never_ends, never_closes, late = at_once(
            lambda: violations_of(topic(NeverEnds), events=None, timeout=2.0),
            lambda: violations_of(topic(NeverCloses), events=None, timeout=2.0),
            lambda: violations_of(topic(Late), events=None, timeout=5.0),
        )
        hangs = "had not returned after 2 s in the first run"
        assert never_ends == [f"read, while another thread closes the source, {hangs}"]
        assert never_closes == [f"close, called from another thread, {hangs}"]
        assert late[0].startswith("read took longer than 2.5 s in the first run")
    finally:
        released.set()


def test_a_source_that_closes_slowly_is_caught() -> None:
    class Slow(Least):
        is_durable = False

        def close(self) -> None:
            threading.Event().wait(0.6)

    assert violations_of(Slow, timeout=2.0) == [
        "close took longer than 0.5 s in the first run",
        "close, called twice, took longer than 0.5 s in the first run",
    ]


def test_a_source_in_an_outage_gives_nothing_and_closes() -> None:
    def failing(error: Exception) -> Callable[[], AnySource]:
        class Fails(Topic):
            def read(self, timeout: float) -> Sequence[SourceItem]:
                raise error

        return topic(Fails)

    class Silent(Topic):
        def __init__(self) -> None:
            super().__init__()
            self.left.clear()

    right: dict[str, Callable[[], AnySource]]
    right = {"away": failing(UnavailableError("no")), "not there": failing(SourceError("no")), "silent": topic(Silent)}
    check_source(Least, outages=right)
    wrong: dict[str, Callable[[], AnySource]]
    wrong = {"breaks": failing(OSError("no route")), "gives": topic()}
    what = "read, while another thread closes the source,"
    assert violations_of(Least, outages=wrong) == [
        f"{what} raised OSError: 'no route', neither an UnavailableError nor a SourceError in the outage 'breaks'",
        "read gave 12 items in the outage 'gives'",
    ]


def test_a_source_that_cannot_be_made_is_reported() -> None:
    def fails() -> Any:
        raise ValueError("no url")

    assert violations_of(fails) == ["make() raised ValueError: 'no url' in the first run"]
