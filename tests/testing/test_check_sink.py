"""The check of sinks: what a user's own needs to pass it, and a broken one for each promise."""

from __future__ import annotations

import threading
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

import pytest

from constellation_otel.delivery import Rejection
from constellation_otel.errors import MisconfiguredError, RefusedError, UnavailableError
from constellation_otel.events import ExecutionCancelled
from constellation_otel.testing import check_sink
from deliveries import ListSink, execution
from support import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from constellation_otel.delivery import Sink

ARRIVED: list[Any] = []
"""What the endpoint of this module's sinks has."""


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    ARRIVED.clear()
    yield
    ARRIVED.clear()


class Least:
    """A sink of a user's own that has what is needed and no more."""

    name = "least"
    takes: Literal["events", "spans"] = "events"
    max_batch = 20

    def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
        ARRIVED.extend(items)
        return ()

    def close(self) -> None:
        """Has nothing to close."""


class Away(Least):
    """An endpoint that is not there."""

    def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
        raise UnavailableError("no connection", retry_after=1.0)


class Refusing(Least):
    """An endpoint that refuses everything together."""

    def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
        raise RefusedError("too large")


class Picky(Least):
    """An endpoint that refuses everything, item by item."""

    def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
        return [Rejection(index, 1, "no") for index in range(len(items))]


class Flaky(Least):
    """An endpoint that fails in every way, one after the other."""

    def __init__(self) -> None:
        self._calls = 0

    def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
        self._calls += 1
        match self._calls % 5:
            case 1:
                raise MisconfiguredError("wrong password")
            case 2:
                ARRIVED.extend(items[:1])
                raise UnavailableError("disk full", delivered=frozenset({0}))
            case 3:
                # the answer is lost
                ARRIVED.extend(items)
                raise UnavailableError("timed out")
            case 4 if len(items) > 1:
                raise RefusedError("too many")
        ARRIVED.extend(items[1:])
        return [Rejection(0, 1, "no")]


class Several(Least):
    """Says how many were refused, and not which."""

    def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
        ARRIVED.extend(items[1:])
        return [Rejection(None, 1, "no")]


def violations_of(make: Callable[[], Any], **options: Any) -> list[str]:
    """What the check says of a sink, without its first line."""
    with pytest.raises(AssertionError) as violations:
        check_sink(make, **({"received": ARRIVED.copy} | options))
    first, *lines = str(violations.value).splitlines()
    assert first == "the sink does not keep its contract:"
    return [line.strip() for line in lines]


@pytest.mark.parametrize("takes", ["events", "spans"])
def test_a_users_sink_with_the_needed_methods_passes(takes: Literal["events", "spans"]) -> None:
    class Either(Least):
        pass

    Either.takes = takes
    check_sink(
        Either,
        received=ARRIVED.copy,
        outages={"it is not there": Away},
        refusing=Refusing,
        flaky=Flaky,
    )
    assert len(ARRIVED) > 100


def test_what_is_not_given_is_not_checked() -> None:
    class Forgets(Least):
        def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
            return []

    check_sink(Forgets)
    check_sink(Least, refusing=Picky)
    check_sink(Least, flaky=Several, received=ARRIVED.copy)


def test_a_sink_gets_batches_of_every_size_and_its_items() -> None:
    sinks: list[Sink[Any]] = []

    def make() -> Sink[Any]:
        sinks.append(ListSink(max_batch=7))
        return sinks[-1]

    mine = execution(1)
    check_sink(make, items=mine)
    ordinary = sinks[0]
    assert isinstance(ordinary, ListSink)
    assert (ordinary.calls, ordinary.items, ordinary.closed) == ([1, 3, 1], [*mine, mine[0]], 2)
    check_sink(make)
    later = sinks[2]
    assert isinstance(later, ListSink)
    assert later.calls == [1, 3, 7, 1]


def _answers(answer: object, on: type[Least] = Least) -> type[Least]:
    class Answers(on):  # type: ignore[misc,valid-type] # a base that is given
        def send(self, items: Sequence[Any], timeout: float) -> Any:
            super().send(items, timeout)
            if isinstance(answer, BaseException):
                raise answer
            return answer

    return Answers


class Loses(Least):
    def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
        return super().send(items[1:] if len(items) > 1 else items, timeout)


class Doubles(Least):
    def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
        super().send(items, timeout)
        return super().send(items, timeout)


class RejectsWhatIsThere(Least):
    def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
        super().send(items, timeout)
        return [Rejection(0, 1, "no")]


class MiscountsRejections(Least):
    def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
        super().send(items, timeout)
        return [Rejection(None, 1, "no")]


class Sorts(Least):
    def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
        super().send(items, timeout)
        items.reverse()  # type: ignore[attr-defined] # that is the violation
        return ()


class ClosesOnce(Least):
    def __init__(self) -> None:
        self._connection: list[int] | None = []

    def close(self) -> None:
        assert self._connection is not None, "closed already"
        self._connection = None


class Encodes(Least):
    def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
        for item in items:
            getattr(item, "dag_name", "").encode("ascii")
        return super().send(items, timeout)


class FailsOnOdd(Least):
    def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
        if any(isinstance(item, ExecutionCancelled) and not item.timestamp_ns for item in items):
            raise UnavailableError("the database is away")
        return super().send(items, timeout)


class Awaited(Least):
    async def send(self, *_: object) -> Sequence[Rejection]:  # type: ignore[override]
        return ()

    async def close(self) -> None:  # type: ignore[override]
        """Never gets here."""


BROKEN: dict[type, str] = {
    Loses: "2 of 24 items that send took are not there, as ",
    Doubles: "24 of 24 items are there more often than they were sent: ",
    RejectsWhatIsThere: "3 items that were rejected are there, as ",
    MiscountsRejections: "1 of 3 items were rejected, and 0 are not there ",
    Refusing: "send raised RefusedError: 'too large' for ordinary items, though the endpoint works ",
    Away: "send raised UnavailableError: 'no connection' for ordinary items, though the endpoint works ",
    Picky: "send rejected ordinary items, though the endpoint works ",
    Sorts: "send changed the items, or their list ",
    ClosesOnce: "close, called twice, raised AssertionError: 'closed already",
    Encodes: "send raised UnicodeEncodeError: ",
    FailsOnOdd: "send raised UnavailableError: 'the database is away', though the endpoint works (with odd items)",
    Awaited: "send returned an awaitable, which is never awaited (with ordinary items), and ",
    _answers(None): "send returned None, not a sequence of Rejections ",
    _answers([1]): "send returned [1], not a sequence of Rejections ",
    _answers([Rejection(20, 1, "no")]): "send answered Rejection(index=20, count=1, reason='no') to 1 items ",
    _answers([Rejection(None, 0, "no")]): "send answered Rejection(index=None, count=0, reason='no') to 1 items ",
    _answers([Rejection(None, 2, "no")]): "send rejected 2 of 1 items ",
    _answers([Rejection(0, 1, "no")] * 2): "send rejected the same item twice ",
    _answers(OSError("broken pipe")): (
        "send raised OSError: 'broken pipe', neither an UnavailableError nor a RefusedError (with ordinary items), and "
    ),
    _answers(UnavailableError("no", delivered=frozenset({0, 20}))): "UnavailableError.delivered has 20 of 1 items ",
    _answers(UnavailableError("no", retry_after=-1.0)): "UnavailableError.retry_after is -1.0, not seconds ",
}


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
def test_a_broken_sink_is_caught(make: type) -> None:
    found = violations_of(make)
    assert [line for line in found if line.startswith(BROKEN[make])], found


def test_a_sink_says_of_itself_what_it_is() -> None:
    names = cycle("xab")  # one is whether it is there
    wrong: dict[str, Any] = {
        "takes is 'both', neither 'events' nor 'spans'": {"takes": "both"},
        "max_batch is 0, not a number of items": {"max_batch": 0},
        "its name is 'two words', not a word": {"name": "two words"},
        "its name is None, not a word": {"name": None},
        "its name changes: 'a', 'b'": {"name": property(lambda self: next(names))},
    }
    for message, fields in wrong.items():
        (found,) = violations_of(type("Wrong", (Least,), fields))
        assert found == f"{message} (with ordinary items), and 1 more like it"
    assert violations_of(object) == [
        "it has no name, takes, max_batch, send, close (with ordinary items), and 1 more like it"
    ]


def test_a_sink_that_gives_up_in_an_outage_is_caught() -> None:
    outages = {"off": Least, "refuses": Refusing, "rejects": Picky, "raises": _answers(OSError("no route"))}
    assert violations_of(Least, outages=outages) == [
        "send returned as if the items were safe (in the outage 'off'), and 1 more like it",
        ("send gave up items for good that can be sent again later (in the outage 'refuses'), and 3 more like it"),
        (
            "send raised OSError: 'no route', neither an UnavailableError nor a RefusedError (in the outage 'raises'),"
            " and 1 more like it"
        ),
    ]


def test_a_sink_that_retries_what_is_refused_is_caught() -> None:
    assert violations_of(Least, refusing=Away) == [
        (
            "send raised UnavailableError: 'no connection', though the endpoint refuses the items for good"
            " (with an endpoint that refuses everything), and 1 more like it"
        )
    ]
    assert violations_of(Least, refusing=Least) == [
        "send took items that the endpoint refuses (with an endpoint that refuses everything), and 1 more like it"
    ]


def test_a_sink_that_never_recovers_is_caught() -> None:
    found = violations_of(Least, flaky=Away, timeout=1.0)
    assert found == [
        ("64 of 64 items could not be delivered by sending them again (with an endpoint that fails at times)")
    ]


def test_a_sink_that_ignores_its_timeout_is_caught() -> None:
    class Slow(Away):
        def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
            released.wait(2.6)
            return super().send(items, timeout)

    class Hangs(Away):
        def send(self, items: Sequence[Any], timeout: float) -> Sequence[Rejection]:
            released.wait(60)
            return super().send(items, timeout)

    released = threading.Event()
    try:
        slow, hangs = at_once(
            lambda: violations_of(Least, outages={"it never answers": Slow}, received=None),
            lambda: violations_of(Least, outages={"it never answers": Hangs}, received=None, timeout=1.0),
        )
        assert slow == ["send took longer than 2.5 s (in the outage 'it never answers'), and 1 more like it"]
        assert hangs == ["send had not returned after 1 s (in the outage 'it never answers')"]
    finally:
        released.set()


def test_a_sink_that_cannot_be_made_or_seen_is_reported() -> None:
    def fails() -> Any:
        raise ValueError("no url")

    assert violations_of(fails) == ["make() raised ValueError: 'no url' (with ordinary items), and 1 more like it"]
    assert violations_of(Least, received=fails) == [
        "received() raised ValueError: 'no url' (with ordinary items), and 1 more like it"
    ]


def test_a_check_without_items_is_refused() -> None:
    with pytest.raises(ValueError, match="items is empty, so nothing would be sent"):
        check_sink(Least, items=[])
