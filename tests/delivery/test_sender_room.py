"""How much a sender holds, and how what it holds goes another way, or comes to an end."""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from constellation_otel.delivery import Retry
from constellation_otel.delivery.pipeline import Pipeline
from constellation_otel.delivery.sender import Sender
from constellation_otel.delivery.transform import PassThrough
from constellation_otel.errors import RefusedError, UnavailableError
from deliveries import ListSink, execution
from sender_parts import Clock, assembly, batch, counted, event_sender, settled, span_sender
from support import DEADLINE

SHORT = Retry(first=0.02, longest=0.02)


def starts(*numbers: int, first: int = 0) -> Any:
    return batch([execution(number)[0] for number in numbers], first=first)


# --- room ---------------------------------------------------------------------------------


def test_no_more_is_held_than_may_wait_for_a_sink() -> None:
    clock = Clock()
    sender = event_sender(ListSink(UnavailableError("away")), clock, max_held=4)
    assert sender.has_room()
    sender.add(batch(execution(1)))
    assert not sender.has_room()
    sender.tick()
    assert not sender.has_room()
    clock.now += 1
    sender.tick()
    assert sender.has_room()


def test_what_is_open_takes_no_room_from_what_waits() -> None:
    sink = ListSink(takes="spans")
    sender = span_sender(sink, max_held=2)
    for offset, event in enumerate(execution(1)):
        assert sender.has_room()
        sender.add(batch([event], first=offset))
    assert not sender.has_room()
    sender.tick()
    assert ([span.name for span in sink.items], sender.has_room()) == (["trim", "dag-1"], True)


@pytest.mark.parametrize("tracks", [True, False])
def test_spans_that_wait_of_an_open_execution_are_bounded(tracks: bool) -> None:
    """Their events are open, and may be many where the execution is long."""
    sink, clock = ListSink(UnavailableError("away"), takes="spans"), Clock()
    sender: Sender[Any] = Sender(
        sink, assembly(tracks=tracks), clock=clock, max_held=100, retry=Retry(jitter=lambda: 1.0)
    )
    start, module, end, _ = execution(1)
    sender.add(batch([start]))
    modules = 0
    while sender.has_room() and modules < 1_000:
        modules += 1
        events = [replace(event, module_id=UUID(int=modules)) for event in (module, end)]
        sender.add(batch(events, first=2 * modules))
        sender.tick()
    assert (modules, sender.waiting) == (100, 100)
    clock.now += 1
    sender.tick()
    assert (len(sink.items), sender.has_room()) == (100, True)


def test_where_too_much_is_open_the_most_silent_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    """Sixteen times as much as may wait, where the positions are kept."""
    sink = ListSink(takes="spans")
    sender = span_sender(sink, max_held=1)
    sender.add(starts(*range(1, 16)))
    assert sender.has_room()
    sender.add(batch(execution(1)[1:2], first=15))
    assert not sender.has_room()
    sender.tick()
    assert sender.has_room()
    assert [(span.name, span.attributes["constellation.abandoned.reason"]) for span in sink.items] == [
        ("dag-2", "capacity")
    ]
    assert settled(sender) == [1]
    assert counted(sender) == {"received": 16, "delivered": 1, "held": 15, "sent": 1, "evicted": 1}
    assert caplog.messages == ["list: more than 16 events are open; the execution that was silent longest is abandoned"]


def test_what_is_open_is_the_transforms_where_nothing_is_kept() -> None:
    sender: Sender[Any] = Sender(ListSink(takes="spans"), assembly(tracks=False), max_held=1)
    sender.add(starts(*range(1, 100)))
    assert sender.has_room()
    sender.tick()
    assert counted(sender) == {"received": 99, "held": 99}


def test_room_is_made_in_the_turn_that_has_sent_the_last() -> None:
    """Or nothing would wake the sender before what is open is given up for being idle."""
    sink = ListSink(takes="spans")
    sender = span_sender(sink, max_held=1)
    sender.add(batch([*execution(1), *(execution(number)[0] for number in range(2, 18))]))
    sender.tick()
    assert sender.has_room()
    assert [span.name for span in sink.items] == ["trim", "dag-1", "dag-2"]
    assert sorted(settled(sender)) == [0, 1, 2, 3, 4]


def test_what_is_open_is_kept_while_the_sink_is_away() -> None:
    sender = span_sender(ListSink(UnavailableError("away"), takes="spans"), max_held=5)
    sender.add(batch([*execution(1), execution(2)[0]]))
    sender.tick()
    assert counted(sender) == {"received": 5, "held": 5}


def test_the_room_that_is_made_ends_where_the_sink_is_away() -> None:
    """What was given up waits then: there is no room, and no need to give up more."""
    sender = span_sender(ListSink(UnavailableError("away"), takes="spans"), max_held=1)
    sender.add(starts(*range(1, 20)))
    assert sender.tick() == 0.5
    assert counted(sender) == {"received": 19, "held": 19, "evicted": 1}


def test_a_sender_without_room_and_nothing_open_does_not_spin(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(PassThrough):
        is_immediate = False

        def add(self, batch: Any, out: Any) -> None:
            """Nothing ever comes of it."""

    sender: Sender[Any] = Sender(ListSink(), Stuck(), max_held=2)
    sender.add(batch(execution(1)))
    assert sender.tick() is None
    assert caplog.messages == [
        "list: there is no room, and nothing is open that could be given up; report this as a defect"
    ]


def test_a_sender_wakes_when_it_or_its_transform_wants_to() -> None:
    sender: Sender[Any] = Sender(ListSink(takes="spans"), assembly(settle=60.0))
    assert sender.tick() is None
    sender.add(batch(execution(1)))
    assert 59 < (sender.tick() or 0) <= 60


# --- another way --------------------------------------------------------------------------


def test_what_waits_can_be_taken_out_and_put_back_in_order() -> None:
    """What is to be sent again first: it came first."""
    clock, sink = Clock(), ListSink(UnavailableError("away"), max_batch=2)
    sender = event_sender(sink, clock)
    sender.add(batch(execution(1)))
    sender.tick()
    sender.add(batch(execution(2), first=4))
    items, receipts = sender.take_held()
    assert items == [*execution(1), *execution(2)]
    assert [receipt.last for receipt in receipts] == [3] * 4 + [7] * 4
    assert (sender.waiting, sender.held) == (0, 8)
    sender.add(batch(execution(3), first=8))
    sender.put_back(items, receipts)
    clock.now += 1
    sender.tick()
    assert sink.items == [*execution(1), *execution(2), *execution(3)]
    assert settled(sender) == [*range(12)]


def test_what_went_another_way_is_settled_when_it_is_safe_there() -> None:
    sender = event_sender(ListSink(UnavailableError("away")))
    sender.add(batch(execution(1)))
    sender.tick()
    _, (receipt, *_) = sender.take_held()
    sender.settle(receipt, 3)
    assert (settled(sender), counted(sender)) == ([], {"received": 4, "held": 4})
    sender.settle(receipt, 1, rejected=1)
    sender.settle(receipt, 0)
    assert settled(sender) == [0, 1, 2, 3]
    assert counted(sender) == {"received": 4, "delivered": 3, "rejected": 1}


@pytest.mark.parametrize(
    "ends", [None, UnavailableError("too late"), RefusedError("too late"), ZeroDivisionError("too late")]
)
def test_a_call_that_does_not_return_can_be_given_up(ends: Exception | None) -> None:
    """Its items come with the others; whatever it answers in the end, they went another way."""
    entered, gate = threading.Event(), threading.Event()

    def hang(_: Any) -> Exception | None:
        entered.set()
        assert gate.wait(DEADLINE)
        return ends

    sink = ListSink(hang, max_batch=3)
    sender: Sender[Any] = Sender(sink, PassThrough())
    sender.add(batch(execution(1)))
    thread = threading.Thread(target=sender.tick)
    thread.start()
    assert entered.wait(DEADLINE)
    assert sender.waiting == 4
    items, receipts = sender.abandon()
    assert (items, len(receipts), sender.waiting) == (execution(1), 4, 0)
    gate.set()
    thread.join(DEADLINE)
    assert (sender.waiting, settled(sender), sink.calls) == (0, [], [3])
    assert counted(sender) == {"received": 4, "held": 4}
    sender.settle(receipts[0], 4)
    assert (settled(sender), counted(sender)) == ([0, 1, 2, 3], {"received": 4, "delivered": 4})


def test_a_call_that_returns_as_it_is_given_up_keeps_its_items() -> None:
    """Only one of the two has them: the answer is being dealt with."""

    class Racing(Sender[Any]):
        def _recovered(self) -> None:
            given_up.append(self.abandon())
            super()._recovered()

    given_up: list[Any] = []
    sink = ListSink(max_batch=3)
    sender = Racing(sink, PassThrough())
    sender.add(batch(execution(1)))
    sender.tick()
    ((items, receipts),) = given_up
    assert (sink.items, items) == (execution(1)[:3], execution(1)[3:])
    assert settled(sender) == []
    sender.settle(receipts[0], 1)
    assert settled(sender) == [0, 1, 2, 3]


def test_all_that_waits_is_given_up_where_no_call_is_made() -> None:
    sender = event_sender(ListSink())
    sender.add(batch(execution(1)))
    items, receipts = sender.abandon()
    assert (items, len(receipts), sender.waiting) == (execution(1), 4, 0)


# --- the end ------------------------------------------------------------------------------


def test_no_call_of_the_sink_goes_beyond_the_deadline() -> None:
    clock = Clock()
    sink = ListSink(UnavailableError("away"), max_batch=1)
    sender = event_sender(sink, clock, send_timeout=10.0)
    sender.add(batch(execution(1)))
    sender.finish_by(clock.now + 4)
    sender.tick()
    clock.now += 10
    assert sender.send_until(clock.now) == 0.0
    assert sender.send_until(clock.now + 1) is None
    assert sink.timeouts == [4.0, 0.1, 0.1, 0.1, 0.1]


@pytest.mark.parametrize(
    ("fault", "why"), [(UnavailableError("away"), "away"), (None, "the sink is too slow")], ids=["away", "slow"]
)
def test_what_was_not_delivered_is_said_when_it_is_closed(
    fault: Exception | None, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    sink = ListSink(*[fault] if fault else [])
    sender = event_sender(sink)
    sender.add(batch(execution(1)))
    if fault:
        sender.tick()
    sender.close()
    assert sink.closed == 1
    assert caplog.messages[-1] == f"list: 4 items were not delivered before the end: {why}"


def test_a_sender_that_has_delivered_everything_just_closes(caplog: pytest.LogCaptureFixture) -> None:
    sink = ListSink()
    sender = event_sender(sink)
    sender.add(batch(execution(1)))
    sender.tick()
    sender.close()
    assert (sink.closed, caplog.messages) == (1, [])


def pipeline(sink: ListSink, transform: Any = None, **options: Any) -> Pipeline[Any]:
    """The way to a sink, whose owner ends it; nothing was sent so far."""
    return Pipeline(lambda: Sender(sink, transform or PassThrough(), **options), name="end")


def test_the_end_tries_once_more_however_long_the_pause_is() -> None:
    sink = ListSink(UnavailableError("later", retry_after=3_000))
    way = pipeline(sink)
    way.give(batch(execution(1)))
    way.flush(0.2)
    assert sink.calls == [4]
    assert way.close(DEADLINE)
    assert (sink.calls, sink.closed) == ([4, 4], 1)


def test_the_end_waits_for_a_sink_that_comes_back_in_time() -> None:
    sink = ListSink(*[UnavailableError("away")] * 3)
    way = pipeline(sink, retry=SHORT)
    way.give(batch(execution(1)))
    assert way.close(DEADLINE)
    assert (sink.items, way.waiting, sink.closed) == (execution(1), 0, 1)


def test_the_end_does_not_wait_longer_than_it_is_given(caplog: pytest.LogCaptureFixture) -> None:
    sink = ListSink(*[UnavailableError("away")] * 1_000)
    way = pipeline(sink, retry=SHORT)
    way.give(batch(execution(1)))
    assert not way.close(0.3)
    assert (way.waiting, sink.closed) == (4, 1)
    assert caplog.messages[-1] == "list: 4 items were not delivered before the end: away"


@pytest.mark.parametrize(("abandon_open", "names"), [(True, ["dag-1", "dag-2"]), (False, ["dag-1"]), (None, [])])
def test_the_end_puts_out_of_what_is_open_what_it_is_told(abandon_open: bool | None, names: list[str]) -> None:
    sink = ListSink(takes="spans")
    way = pipeline(sink, assembly(settle=60))
    way.give(batch([execution(1)[0], execution(1)[3], execution(2)[0]]))
    assert way.close(DEADLINE, abandon_open=abandon_open)
    assert ([span.name for span in sink.items], sink.closed) == (names, 1)


def test_a_sink_that_would_take_nothing_at_once_is_sent_one_by_one() -> None:
    sink = ListSink(max_batch=0)
    sender = event_sender(sink)
    sender.add(batch(execution(1)))
    sender.tick(more=True)
    assert sink.calls == [1, 1, 1, 1]
