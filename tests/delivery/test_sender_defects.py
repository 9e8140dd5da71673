"""One bad item is no outage: what becomes of a sink, or a transform, that raises what it should not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from constellation_otel.delivery import DeadLetters, LastError, Position, Rejection
from constellation_otel.delivery.sender import Sender
from constellation_otel.errors import GoneError, RefusedError, UnavailableError
from constellation_otel.events import ModuleStarted
from deliveries import T0, ListSink, execution
from sender_parts import Clock, assembly, batch, counted, event_sender, raising, settled

if TYPE_CHECKING:
    from pathlib import Path

    from constellation_otel.delivery import Batch


class Choosy(ListSink):
    """Raises what it should not, for batches that have one of these executions.

    Attributes:
        asked: How often it was called.
    """

    def __init__(self, *executions: int, raises: type[BaseException] = ZeroDivisionError) -> None:
        super().__init__()
        self.bad = {UUID(int=each) for each in executions}
        self.raises = raises
        self.asked = 0

    def send(self, items: Any, timeout: float) -> Any:
        self.asked += 1
        if self.bad & {item.execution_id for item in items}:
            raise self.raises("for one of them")
        return super().send(items, timeout)


def starts(count: int) -> Batch:
    """The starts of executions 0, 1, …, each at the offset of its number."""
    return batch([execution(number)[0] for number in range(count)])


@pytest.mark.parametrize(("error", "reason"), [(RuntimeError("a defect"), "a defect"), (KeyError(), "KeyError")])
def test_nothing_is_lost_by_what_a_sink_should_not_raise(
    error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    sender = event_sender(ListSink(error))
    sender.add(batch(execution(1)[:1]))
    sender.tick()
    assert sender.last_error == LastError(reason, 1_000.0, needs_fixing=True)
    assert caplog.messages == [f"list: {reason}; 1 events are held, the next try is in 0.5 s"]
    assert caplog.records[0].exc_info is not None
    assert (counted(sender), sender.waiting) == ({"received": 1, "held": 1}, 1)


@pytest.mark.parametrize(
    "answer",
    [
        [Rejection(9, 1, "no")],
        [Rejection(-1, 1, "no")],
        [Rejection(None, 0, "no")],
        [object()],
        7,
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        SystemExit(1),
    ],
)
def test_nothing_is_lost_by_whatever_a_sink_answers_wrongly(answer: Any) -> None:
    """It is an error of the sink where it answers so to every part of the batch, too."""

    class Wrong(ListSink):
        def send(self, items: Any, timeout: float) -> Any:
            if len(self.calls) == 7:
                return super().send(items, timeout)
            self.calls.append(len(items))
            if isinstance(answer, BaseException):
                raise answer
            return answer

    clock = Clock()
    sink = Wrong()
    sender = event_sender(sink, clock)
    sender.add(batch(execution(1)))
    sender.tick()
    last_error = sender.last_error
    assert last_error is not None
    assert (sink.calls, sender.waiting, settled(sender)) == ([4, 2, 1, 1, 2, 1, 1], 4, [])
    clock.now += 1
    sender.tick()
    assert (sender.waiting, settled(sender)) == (0, [0, 1, 2, 3])
    assert sender.last_error is None


@pytest.mark.parametrize("raises", [ZeroDivisionError, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("bad", [(0,), (99,), (50,), (0, 99), (7, 8, 9, 60), tuple(range(0, 100, 2))])
def test_items_for_which_a_sink_raises_are_left_out_alone(
    bad: tuple[int, ...], raises: type[BaseException], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl")
    sink = Choosy(*bad, raises=raises)
    sender = event_sender(sink, dead_letters=letters)
    sender.add(starts(100))
    sender.tick()
    good = 100 - len(bad)
    assert counted(sender) == {
        "received": 100,
        "delivered": good,
        "sent": good,
        "rejected": len(bad),
        "refused": len(bad),
        "dead_lettered": len(bad),
        "retried": sender.counters.sending.retried,
    }
    assert [item.execution_id.int for item in sink.items] == [each for each in range(100) if each not in bad]
    assert (sender.waiting, sender.last_error, settled(sender)) == (0, None, [*range(100)])
    assert (tmp_path / "dead.jsonl").read_text().count(f"{raises.__name__}: for one of them") == len(bad)
    assert caplog.messages[0] == "list raised for one item, and not for the others; that item is left out"
    assert caplog.records[0].exc_info is not None


def test_a_sink_that_raises_for_everything_is_an_outage() -> None:
    """Which loses nothing."""
    clock, sink = Clock(), Choosy(*range(100))
    sender = event_sender(sink, clock)
    sender.add(starts(100))
    for _ in range(5):
        sender.tick()
        assert (sender.waiting, settled(sender), counted(sender)["held"]) == (100, [], 100)
        assert sender.last_error == LastError("for one of them", 1_000.0, needs_fixing=True)
        clock.now += 60
    sink.bad = set()
    sender.tick()
    assert (sender.waiting, sender.last_error, settled(sender)) == (0, None, [*range(100)])
    assert counted(sender)["delivered"] == 100


def test_a_slow_sink_that_raises_for_everything_is_not_pestered() -> None:
    """It is asked for no longer than a turn takes, and then given a pause."""
    clock = Clock()

    class Slow(Choosy):
        def send(self, items: Any, timeout: float) -> Any:
            clock.now += 1
            return super().send(items, timeout)

    sink = Slow(*range(100))
    sender = event_sender(sink, clock)
    sender.add(starts(100))
    turns = [(sender.tick(), sink.asked) for _ in range(3)]
    assert turns == [(0.0, 1), (0.5, 2), (0.5, 2)]
    assert (sender.waiting, sender.last_error) == (100, LastError("for one of them", 1_002.0, needs_fixing=True))
    clock.now += 60
    sink.bad = set()
    assert sender.tick() is None
    assert ([item.execution_id.int for item in sink.items], sender.waiting) == ([*range(100)], 0)


def test_a_lone_item_is_held_until_others_show_the_sink_works() -> None:
    clock = Clock()
    sender = event_sender(Choosy(0), clock)
    sender.add(starts(1))
    for _ in range(3):
        sender.tick()
        assert (sender.waiting, sender.last_error is not None) == (1, True)
        clock.now += 60
    sender.add(batch(execution(1)[:1], first=1))
    sender.tick()
    assert (sender.waiting, sender.last_error, settled(sender)) == (0, None, [1, 0])
    assert (sender.counters.delivered, sender.counters.rejected) == (1, 1)


def test_a_sink_that_recovers_in_the_middle_loses_nothing() -> None:
    """What failed alone is tried once more after the others."""

    class Recovers(Choosy):
        def send(self, items: Any, timeout: float) -> Any:
            if self.asked == 4:
                self.bad = set()
            return super().send(items, timeout)

    sink = Recovers(*range(4))
    sender = event_sender(sink)
    sender.add(starts(4))
    sender.tick()
    assert (sender.waiting, sender.counters.delivered, sender.counters.rejected) == (0, 4, 0)
    assert [item.execution_id.int for item in sink.items] == [2, 3, 0, 1]


def test_what_is_refused_while_a_fault_is_searched_is_refused() -> None:
    class Both(Choosy):
        def send(self, items: Any, timeout: float) -> Any:
            if UUID(int=3) in {item.execution_id for item in items}:
                raise RefusedError("too odd")
            return super().send(items, timeout)

    sender = event_sender(Both(0))
    sender.add(starts(4))
    sender.tick()
    assert (sender.waiting, sender.counters.delivered, sender.counters.rejected) == (0, 2, 2)


def test_an_outage_while_a_fault_is_searched_loses_nothing() -> None:
    """The search goes on when the sink is back."""
    clock = Clock()

    class Goes(Choosy):
        def send(self, items: Any, timeout: float) -> Any:
            if self.asked in {2, 5}:
                self.asked += 1
                raise UnavailableError("away")
            return super().send(items, timeout)

    sink = Goes(1)
    sender = event_sender(sink, clock)
    sender.add(starts(8))
    sender.tick()
    assert (sender.waiting, sender.last_error) == (8, LastError("away", 1_000.0, needs_fixing=False))
    clock.now += 60
    sender.tick()
    assert counted(sender)["received"] == 8
    clock.now += 60
    sender.tick()
    assert (sender.waiting, sorted(settled(sender))) == (0, [*range(8)])
    assert (sender.counters.delivered, sender.counters.rejected) == (7, 1)


def test_an_outage_that_follows_a_defect_is_the_last_error() -> None:
    """There is nothing left of which the defect is known."""
    clock = Clock()
    sender = event_sender(ListSink(ZeroDivisionError(), GoneError("gone"), GoneError("gone for good")), clock)
    sender.add(starts(2))
    sender.tick()
    clock.now += 60
    assert sender.tick() == 1.0
    assert sender.last_error == LastError("gone for good", 1_000.0, needs_fixing=False)
    assert (sender.is_gone, sender.waiting) == (True, 2)
    clock.now += 60
    sender.tick()
    assert (sender.waiting, sorted(settled(sender))) == (0, [0, 1])


def test_what_waits_can_be_taken_out_while_a_fault_is_searched() -> None:
    """In its order; nothing of it is here any more."""
    clock = Clock()

    class Slow(Choosy):
        def send(self, items: Any, timeout: float) -> Any:
            clock.now += 1
            return super().send(items, timeout)

    sender = event_sender(Slow(1, 2), clock, slice_s=2.5)
    sender.add(starts(6))
    # the first half of the first half, which shows that the sink works, and the next one alone
    assert sender.tick() == 0.0
    assert settled(sender) == []
    sender.tick()
    items, receipts = sender.take_held()
    taken = [item.execution_id.int for item in items]
    assert taken == [1, 2, 3, 4, 5]
    assert len(receipts) == len(items)
    assert (sender.waiting, sender.take_held()) == (0, ([], []))
    sender.put_back(items, receipts)
    sender.sink.bad = set()  # type: ignore[attr-defined] # it is the one above
    while sender.waiting:
        clock.now += 60
        sender.tick()
    assert settled(sender) == [*range(6)]


def test_an_event_for_which_a_transform_raises_is_rejected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = raising(lambda _, position: position in {1, 2})
    letters = DeadLetters(tmp_path / "dead.jsonl")
    sender: Sender[Any] = Sender(ListSink(takes="spans"), assembly(odd), dead_letters=letters)
    sender.add(batch(execution(1)))
    sender.tick()
    assert settled(sender) == [1, 2, 0, 3]
    assert counted(sender) == {"received": 4, "delivered": 2, "rejected": 2, "sent": 1, "dead_lettered": 2}
    assert caplog.messages == ["list: event 1 cannot be sent: odd"]
    assert caplog.records[0].exc_info is not None
    assert "ModuleStarted(" in (tmp_path / "dead.jsonl").read_text()


def test_a_span_that_cannot_be_sent_rejects_one_event_only() -> None:
    def as_item(span: Any) -> Any:
        if span.name == "trim":
            raise LookupError
        return span

    sender: Sender[Any] = Sender(ListSink(takes="spans"), assembly(as_item=as_item))
    sender.add(batch(execution(1)))
    sender.tick()
    assert settled(sender) == [0, 1, 2, 3]
    assert counted(sender) == {"received": 4, "delivered": 3, "rejected": 1, "sent": 1}


def test_an_item_that_cannot_be_encoded_is_a_dead_letter_too(tmp_path: Path) -> None:
    sink = ListSink(ZeroDivisionError(), ZeroDivisionError(), [], ZeroDivisionError())
    sender = event_sender(sink, dead_letters=DeadLetters(tmp_path / "dead.jsonl"))
    odd = ModuleStarted(UUID(int=1), None, object(), T0)  # type: ignore[arg-type] # by a defect
    sender.add(batch([odd, execution(1)[0]]))
    sender.tick()
    counters = sender.counters
    assert (counters.delivered, counters.rejected, counters.sending.dead_lettered) == (1, 1, 1)
    assert "ModuleStarted(" in (tmp_path / "dead.jsonl").read_text()


def test_a_restart_that_a_sink_cannot_take_rejects_no_event() -> None:
    """As a journal's is, which has it among its items."""
    sender = event_sender(ListSink([Rejection(0, 1, "no")]))
    sender.transform._keeps_restarts = True  # type: ignore[attr-defined] # it is a PassThrough
    sender.restart(Position(None, 1))
    sender.tick()
    assert settled(sender) == [1]
    assert counted(sender) == {"refused": 1}
