"""The way to one sink: what is sent, sent again, refused, settled and counted."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple

from constellation_otel.delivery import DeadLetters, LastError, Position, Rejection, Retry
from constellation_otel.delivery.sender import Sender
from constellation_otel.delivery.transform import PassThrough
from constellation_otel.errors import GoneError, MisconfiguredError, RefusedError, UnavailableError
from constellation_otel.events import encode_json
from constellation_otel.traces import span_id_of, trace_id_of
from deliveries import ListSink, execution
from sender_parts import Clock, assembly, batch, counted, event_sender, settled, span_sender
from support import UNWATCHED

if TYPE_CHECKING:
    from pathlib import Path


def letters_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- what is sent -------------------------------------------------------------------------


def test_events_are_sent_in_order_and_settled_when_all_are_safe() -> None:
    """In batches as the sink takes them; those that came together are settled together."""
    sink = ListSink(max_batch=3)
    sender = event_sender(sink)
    sender.add(batch(execution(1)))
    assert (sender.waiting, settled(sender)) == (4, [])
    assert counted(sender) == {"received": 4, "held": 4}
    assert sender.tick() is None
    assert (sink.items, sink.calls, sink.timeouts) == (execution(1), [3, 1], [10.0, 10.0])
    assert (sender.waiting, settled(sender)) == (0, [0, 1, 2, 3])
    assert counted(sender) == {"received": 4, "delivered": 4, "sent": 4}


def test_events_of_several_batches_are_sent_together_if_small() -> None:
    sink = ListSink()
    sender = event_sender(sink)
    sender.add(batch(execution(1)[:1]))
    sender.add(batch([]))
    sender.add(batch(execution(1)[1:], first=1))
    sender.tick()
    assert (sink.items, sink.calls, settled(sender)) == (execution(1), [4], [0, 1, 2, 3])


@pytest.mark.parametrize(("max_batch", "full"), [(8, 8), (1_000_000, 2_048)])
def test_while_more_is_about_to_come_only_what_is_full_is_sent(max_batch: int, full: int) -> None:
    """However much the sink would take at once."""
    sink = ListSink(max_batch=max_batch)
    sender = event_sender(sink)
    for number in range(full // 4):
        assert sink.calls == []
        sender.add(batch(execution(number), first=4 * number))
        sender.tick(more=True)
    assert sink.calls == [full]
    sender.add(batch(execution(full), first=full))
    sender.tick(more=True)
    assert sink.calls == [full]
    sender.tick()
    assert sink.calls == [full, 4]


def test_an_execution_is_settled_with_the_last_of_its_spans() -> None:
    sink = ListSink(takes="spans")
    sender = span_sender(sink)
    sender.add(batch(execution(1)[:3]))
    sender.tick()
    assert ([span.name for span in sink.items], settled(sender)) == (["trim"], [])
    assert counted(sender) == {"received": 3, "held": 3, "sent": 1}
    sender.add(batch(execution(1)[3:], first=3))
    sender.tick()
    assert ([span.name for span in sink.items], settled(sender)) == (["trim", "dag-1"], [0, 1, 2, 3])
    assert counted(sender) == {"received": 4, "delivered": 4, "sent": 2}


def test_a_late_event_is_settled_with_its_executions_spans() -> None:
    sender = span_sender(ListSink(takes="spans"))
    sender.add(batch([*execution(1), execution(1)[0]]))
    # it is as safe as the spans of its execution
    assert (sender.waiting, counted(sender)) == (2, {"received": 5, "held": 5})
    sender.tick()
    assert settled(sender) == [0, 1, 2, 3, 4]
    sender.add(batch(execution(1)[:1], first=5))
    assert settled(sender) == [5]
    assert counted(sender) == {"received": 6, "delivered": 6, "sent": 2}


def test_a_trace_that_is_not_sampled_is_settled_without_a_send() -> None:
    transform = assembly(as_item=lambda span: None, settle=60.0)
    sink = ListSink(takes="spans")
    sender: Sender[Any] = Sender(sink, transform)
    sender.add(batch([*execution(1), *execution(2)[:2]]))
    sender.end(abandon_open=True)
    sender.tick()
    assert sorted(settled(sender)) == [0, 1, 2, 3, 4, 5]
    assert (sink.calls, counted(sender)) == ([], {"received": 6, "delivered": 6})


@pytest.mark.parametrize(("abandon_open", "names"), [(True, ["dag-1", "dag-2"]), (False, ["dag-1"])])
def test_the_end_of_the_source_puts_out_what_it_is_told_to(abandon_open: bool, names: list[str]) -> None:
    sink = ListSink(takes="spans")
    sender: Sender[Any] = Sender(sink, assembly(settle=60))
    sender.add(batch([execution(1)[0], execution(1)[3], execution(2)[0]]))
    sender.end(abandon_open=abandon_open)
    sender.tick()
    assert [span.name for span in sink.items] == names


def test_a_sink_that_answers_nothing_has_taken_everything() -> None:
    class Silent(ListSink):
        def send(self, items: Any, timeout: float) -> Any:
            super().send(items, timeout)

    sender = event_sender(Silent(max_batch=0))
    sender.add(batch(execution(1)))
    sender.tick()
    assert counted(sender) == {"received": 4, "delivered": 4, "sent": 4}


def test_others_get_their_turn_while_there_is_much_to_send() -> None:
    clock = Clock()

    def slow(items: Any) -> None:
        clock.now += 0.2

    sink = ListSink(*[slow] * 4, max_batch=1)
    sender = event_sender(sink, clock, slice_s=0.3)
    sender.add(batch(execution(1)))
    assert sender.tick() == 0.0
    assert sink.calls == [1, 1]
    assert sender.tick() is None
    assert sink.calls == [1, 1, 1, 1]


# --- what is sent again -------------------------------------------------------------------


def test_what_could_not_be_sent_is_sent_again_after_a_pause(caplog: pytest.LogCaptureFixture) -> None:
    """The pauses grow until the sink takes something."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    sink = ListSink(UnavailableError("away"), UnavailableError("away"))
    sender = event_sender(sink, clock)
    sender.add(batch(execution(1)[:1]))
    assert sender.tick() == 0.5
    assert sender.last_error == LastError("away", 1_000.0, needs_fixing=False)
    clock.now += 0.4
    assert sender.tick() == pytest.approx(0.1)
    clock.now += 0.1
    assert sender.tick() == 1.0
    assert sender.last_error == LastError("away", 1_000.0, needs_fixing=False)
    assert counted(sender) == {"received": 1, "held": 1, "retried": 1}
    clock.now += 1
    assert sender.tick() is None
    assert (sink.items, sink.calls, settled(sender)) == (execution(1)[:1], [1, 1, 1], [0])
    assert sender.last_error is None
    assert counted(sender) == {"received": 1, "delivered": 1, "sent": 1, "retried": 2}
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "list: away; 1 events are held, the next try is in 0.5 s"),
        ("INFO", "list: takes events again, after 1.5 s"),
    ]


def test_what_comes_while_the_sink_is_away_waits_its_turn() -> None:
    clock = Clock()
    sink = ListSink(UnavailableError("away"))
    sender = event_sender(sink, clock)
    sender.add(batch(execution(1)[:1]))
    sender.tick()
    sender.add(batch(execution(1)[1:], first=1))
    clock.now += 1
    sender.tick()
    assert (sink.items, sink.calls) == (execution(1), [1, 1, 3])


def test_the_pause_that_an_endpoint_asks_for_is_waited() -> None:
    sender = event_sender(ListSink(UnavailableError("slow down", retry_after=17.0)))
    sender.add(batch(execution(1)[:1]))
    assert sender.tick() == 17.0


def test_a_pause_can_be_cut_short_for_one_more_try() -> None:
    sink = ListSink(UnavailableError("later", retry_after=3_000))
    sender = event_sender(sink)
    sender.add(batch(execution(1)[:1]))
    sender.tick()
    sender.hurry()
    assert sender.tick() is None
    assert (sink.calls, sender.waiting) == ([1, 1], 0)


def test_what_was_safe_in_a_failed_call_is_not_sent_again() -> None:
    clock = Clock()
    sink = ListSink(UnavailableError("half", delivered=frozenset({0, 2})))
    sender = event_sender(sink, clock)
    for offset, event in enumerate(execution(1)):
        sender.add(batch([event], first=offset))
    sender.tick()
    assert settled(sender) == [0, 2]
    assert counted(sender) == {"received": 4, "delivered": 2, "held": 2, "sent": 2}
    clock.now += 1
    sender.tick()
    assert (sink.calls, settled(sender)) == ([4, 2], [1, 3])


def test_a_failed_call_by_which_all_is_safe_leaves_nothing() -> None:
    sender = event_sender(ListSink(UnavailableError("all", delivered=frozenset({0}))))
    sender.add(batch(execution(1)[:1]))
    sender.tick()
    assert counted(sender) == {"received": 1, "delivered": 1, "sent": 1}
    assert (sender.waiting, sender.tick()) == (0, None)


def test_what_was_not_sent_cannot_be_safe_in_a_failed_call() -> None:
    """A sink of a user's own that counts in some other way loses nothing by it."""
    clock = Clock()
    sink = ListSink(UnavailableError("odd", delivered=frozenset({-1, 1, 4, 99})))
    sender = event_sender(sink, clock)
    sender.add(batch(execution(1)))
    sender.tick()
    assert (sender.waiting, counted(sender)) == (3, {"received": 4, "held": 4, "sent": 1})
    clock.now += 1
    sender.tick()
    assert (sink.calls, settled(sender)) == ([4, 3], [0, 1, 2, 3])


def test_what_takes_an_operator_is_held_and_an_alarm_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    sender = event_sender(ListSink(MisconfiguredError("the password is wrong")))
    sender.add(batch(execution(1)[:1]))
    sender.tick()
    assert sender.last_error == LastError("the password is wrong", 1_000.0, needs_fixing=True)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert counted(sender) == {"received": 1, "held": 1}
    assert not sender.is_gone


def test_a_sink_that_is_gone_is_known_to_be_until_it_is_back() -> None:
    clock = Clock()
    sender = event_sender(ListSink(GoneError("the pipe is closed"), UnavailableError("away")), clock)
    sender.add(batch(execution(1)[:1]))
    sender.tick()
    assert sender.is_gone
    clock.now += 1
    sender.tick()
    assert not sender.is_gone


def test_a_call_that_does_not_return_is_an_error_of_the_sink() -> None:
    clock = Clock()
    seen: list[LastError | None] = []

    def hang(items: Any) -> None:
        clock.now += 20
        seen.append(sender.last_error)
        clock.now += 1
        seen.append(sender.last_error)

    sender = event_sender(ListSink(hang), clock, send_timeout=10)
    sender.add(batch(execution(1)[:1]))
    sender.tick()
    reason = "send() has not returned for 21.0 s, well past its timeout"
    assert seen == [None, LastError(reason, 1_000.0, needs_fixing=True)]
    assert sender.last_error is None


# --- what is refused ----------------------------------------------------------------------


def refuses(*bad: int) -> Any:
    """An endpoint that refuses every batch which has one of these executions, and does not say which."""

    def fault(items: Any) -> Exception | None:
        return RefusedError("one of these is bad") if any(item.execution_id.int in bad for item in items) else None

    return fault


@given(st.integers(1, 40), st.sets(st.integers(1, 40), max_size=3), st.integers(1, 40))
def test_a_refused_batch_is_halved_until_bad_ones_are_alone(count: int, bad: set[int], size: int) -> None:
    sink = ListSink(*[refuses(*bad)] * 500)
    sender = event_sender(sink)
    events = [execution(number)[0] for number in range(1, count + 1)]
    for first in range(0, count, size):
        sender.add(batch(events[first : first + size], first=first))
    sender.tick()
    here = len({number for number in bad if number <= count})
    assert sink.items == [event for event in events if event.execution_id.int not in bad]
    assert sorted(settled(sender)) == [*range(count)]
    counters = sender.counters
    assert (counters.delivered, counters.rejected, counters.sending.refused) == (count - here, here, here)
    assert (counters.held, sender.waiting) == (0, 0)


def test_what_is_refused_is_logged_and_becomes_a_dead_letter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl")
    sink = ListSink([Rejection(1, 1, "no such thing")])
    sender = event_sender(sink, dead_letters=letters)
    sender.add(batch(execution(1)[:3]))
    sender.tick()
    assert sink.items == [execution(1)[0], execution(1)[2]]
    (letter,) = letters_in(tmp_path / "dead.jsonl")
    assert (letter["where"], letter["reason"]) == ("list", "no such thing")
    assert letter["data"] == encode_json(execution(1)[1]).decode()
    assert caplog.messages == ["list refuses 1 items for good: no such thing"]
    assert settled(sender) == [0, 1, 2]
    assert counted(sender) == {
        "received": 3, "delivered": 2, "rejected": 1, "sent": 2, "refused": 1, "dead_lettered": 1,
    }  # fmt: skip


def test_a_refused_span_is_a_dead_letter_that_can_be_read(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl")
    sender = span_sender(ListSink([Rejection(0, 1, "bad span")], takes="spans"), dead_letters=letters)
    sender.add(batch(execution(1, fails=True)))
    sender.tick()
    (letter,) = letters_in(tmp_path / "dead.jsonl")
    span = json.loads(letter["data"])
    assert (span["name"], span["status_description"]) == ("trim", "bad")
    assert (span["trace_id"], span["span_id"]) == (
        f"{trace_id_of(UUID(int=1)):032x}",
        f"{span_id_of(UUID(int=1), UUID(int=1 << 64 | 1)):016x}",
    )
    assert counted(sender) == {
        "received": 4, "delivered": 3, "rejected": 1, "sent": 1, "refused": 1, "dead_lettered": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [
        [Rejection(None, 3, "too old"), Rejection(0, 1, "bad")],
        [Rejection(None, 3, "too old"), Rejection(3, 1, "bad")],
        [Rejection(3, 1, "bad"), Rejection(3, 1, "bad again"), Rejection(None, 9, "too old")],
    ],
)
def test_some_stand_for_those_that_were_rejected_by_number(
    answer: list[Rejection], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Others than those that were named; what is only likely to be bad is no dead letter."""
    letters = DeadLetters(tmp_path / "dead.jsonl")
    sender = event_sender(ListSink(answer), dead_letters=letters)
    sender.add(batch(execution(1)))
    sender.tick()
    assert counted(sender) == {"received": 4, "rejected": 4, "refused": 4, "dead_lettered": 1}
    assert [letter["reason"] for letter in letters_in(tmp_path / "dead.jsonl")] == ["bad"]
    assert caplog.messages == ["list refuses 1 items for good: bad"]


# --- restarts and other readers -----------------------------------------------------------


def test_a_restart_is_settled_after_what_was_given_up_for_it() -> None:
    """It is no event, and is counted as none."""
    sink = ListSink(UnavailableError("away"), takes="spans")
    clock = Clock()
    sender = span_sender(sink, clock)
    sender.add(batch([execution(1)[0], execution(2)[0]]))
    sender.restart(Position(None, 2))
    assert (sender.waiting, settled(sender)) == (2, [])
    sender.tick()
    assert settled(sender) == []
    clock.now += 1
    sender.tick()
    assert settled(sender) == [0, 1, 2]
    sender.restart(Position(None, 3))
    assert settled(sender) == [3]
    assert counted(sender) == {"received": 2, "delivered": 2, "sent": 2, "retried": 1}


def test_a_restart_is_settled_with_executions_never_sent() -> None:
    sender: Sender[Any] = Sender(ListSink(), assembly(as_item=lambda span: None))
    sender.add(batch(execution(1)[:2]))
    sender.restart(Position(None, 2))
    assert settled(sender) == [0, 1, 2]
    assert counted(sender) == {"received": 2, "delivered": 2}


def test_a_restart_that_a_journal_keeps_is_sent_in_its_turn() -> None:
    sink = ListSink()
    sender: Sender[Any] = Sender(sink, PassThrough(keeps_restarts=True))
    sender.add(batch(execution(1)[:1]))
    sender.restart(Position(None, 1))
    sender.add(batch(execution(1)[1:2], first=2))
    sender.tick()
    assert (sink.items, settled(sender)) == ([execution(1)[0], None, execution(1)[1]], [0, 1, 2])
    assert counted(sender) == {"received": 2, "delivered": 2, "sent": 3}


def test_what_is_open_of_a_revoked_part_is_no_longer_held() -> None:
    sender = span_sender(ListSink(takes="spans"))
    sender.add(batch(execution(1)[:2], "a"))
    sender.add(batch(execution(2)[:1], "b"))
    sender.revoke("a")
    assert counted(sender) == {"received": 3, "revoked": 2, "held": 1}


def test_spans_of_a_revoked_part_are_sent_and_stand_for_nothing() -> None:
    sink = ListSink(takes="spans")
    sender = span_sender(sink)
    sender.add(batch(execution(1), "a"))
    sender.add(batch(execution(2)[:3], "a", first=4))
    sender.revoke("a")
    assert counted(sender) == {"received": 7, "revoked": 7}
    sender.tick()
    assert [span.name for span in sink.items] == ["trim", "dag-1", "trim"]
    assert settled(sender) == []
    assert counted(sender) == {"received": 7, "revoked": 7, "sent": 3}


def test_a_refused_span_of_a_revoked_part_rejects_no_event() -> None:
    sender = span_sender(ListSink([Rejection(0, 1, "bad")], takes="spans"))
    sender.add(batch(execution(1), "a"))
    sender.revoke("a")
    sender.tick()
    assert counted(sender) == {"received": 4, "revoked": 4, "sent": 1, "refused": 1}


# --- whatever happens ---------------------------------------------------------------------

ANSWERS = st.one_of(
    st.just([]),
    st.just(UnavailableError("away")),
    st.just(RefusedError("bad")),
    st.builds(lambda index: UnavailableError("half", delivered=frozenset({index})), st.integers(-1, 5)),
    st.just([Rejection(None, 2, "some")]),
    st.builds(lambda index: [Rejection(index, 1, "one")], st.integers(0, 3)),
    st.just(RuntimeError("defect")),
    st.just(KeyboardInterrupt()),
)


@UNWATCHED
@given(st.lists(ANSWERS, max_size=30), st.sampled_from(["events", "spans"]), st.integers(1, 7), st.data())
def test_whatever_a_sink_does_each_event_is_settled_just_once(
    faults: list[Any], takes: Any, size: int, data: st.DataObject
) -> None:
    """And the counters add up after every step; but for what another reader has."""
    sink, clock = ListSink(*faults, takes=takes, max_batch=4), Clock()
    transform: Any = PassThrough() if takes == "events" else assembly()
    sender: Sender[Any] = Sender(sink, transform, clock=clock, retry=Retry(first=0.01))
    events = [event for number in range(1, 6) for event in execution(number)]
    done: list[int] = []
    for first in range(0, len(events), size):
        sender.add(batch(events[first : first + size], first=first))
        clock.now += data.draw(st.sampled_from([0.0, 60.0]))
        if data.draw(st.booleans()):
            sender.tick()
        counted(sender)
        done += settled(sender)
    while sender.waiting:
        clock.now += 60
        sender.tick()
        counted(sender)
        done += settled(sender)
    assert sorted(done) == [*range(len(events))]
    counters = sender.counters
    assert (counters.held, counters.delivered + counters.rejected) == (0, len(events))
    assert (sender._again_count, sender._in_flight, sender._bisection) == (0, None, None)


@UNWATCHED
@given(st.lists(ANSWERS, max_size=12), st.lists(st.sampled_from(["add", "tick", "revoke", "restart"]), max_size=25))
def test_whatever_is_revoked_or_restarted_the_counters_add_up(faults: list[Any], steps: list[str]) -> None:
    """What was settled stays settled, once; what is held at the end is open."""
    sink, clock = ListSink(*faults, takes="spans", max_batch=2), Clock()
    sender = span_sender(sink, clock)
    events = [event for pair in zip(*(execution(number) for number in range(1, 30)), strict=True) for event in pair]
    offset, done = 0, list[int]()
    for step in [*steps, *["tick"] * 40]:
        if step == "add":
            sender.add(batch(events[offset : offset + 7], offset % 2, first=offset))
            offset += 7
        elif step == "revoke":
            sender.revoke(0)
        elif step == "restart":
            sender.restart(Position(1, offset))
            offset += 1
        else:
            clock.now += 60
            sender.tick()
        counted(sender)
        done += settled(sender)
    assert sender.waiting == 0
    assert len(set(done)) == len(done)
    assert sender.held == sender.transform.open_records


def test_a_receipt_is_whole_when_the_owner_takes_it() -> None:
    sender = event_sender(ListSink([Rejection(0, 1, "bad")]))
    sender.add(batch(execution(1), "a", first=3))
    sender.tick()
    (receipt,) = sender.settled
    assert astuple(receipt) == ("a", 6, 4, [3, 4, 5, 6], None, 0, True, 1, True, None)
