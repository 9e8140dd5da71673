"""What becomes of batches before they are sent: nothing, or spans, and which records those stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from msgspec.structs import astuple
from opentelemetry.context import Context

from constellation_otel.delivery import Batch, Position
from constellation_otel.delivery.transform import Outbox, PassThrough
from deliveries import execution
from sender_parts import added, assembly, batch, names, safe

if TYPE_CHECKING:
    from constellation_otel.traces import Span


def test_a_batch_of_events_is_what_it_is_with_one_receipt() -> None:
    events = execution(1)
    out = added(PassThrough(), batch(events, "a", first=7))
    assert out.items == events
    assert len({id(receipt) for receipt in out.receipts}) == 1
    # origin, last, count, offsets, others, pending, is_complete, rejected, is_settled, after
    assert astuple(out.receipts[0]) == ("a", 10, 4, [7, 8, 9, 10], None, 4, True, 0, False, None)
    assert (out.settled, out.faulty) == ([], [])


def test_no_positions_are_kept_of_what_nobody_is_told_about() -> None:
    out = added(PassThrough(tracks=False), batch(execution(1)))
    assert out.receipts[0].positions() == []
    assert (out.receipts[0].count, out.receipts[0].pending) == (4, 4)


def test_nothing_ever_waits_where_events_pass_through() -> None:
    through, out = PassThrough(), Outbox[Any]()
    through.run_clock(runs=False)
    through.advance(out)
    through.finish(out, abandon=True)
    through.add(Batch([], []), out)
    assert (through.make_room(out), through.revoke(None), through.wake_in(), through.open_records) == (
        False, 0, None, 0,
    )  # fmt: skip
    assert (out.items, out.receipts, out.settled, out.faulty) == ([], [], [], [])


def test_a_restart_is_settled_or_is_an_item_as_a_journal_has_it() -> None:
    out = Outbox[Any]()
    PassThrough().restart(Position("a", 9), out)
    (receipt,) = out.settled
    assert astuple(receipt) == ("a", 9, 0, [9], None, 0, True, 0, False, None)
    assert out.items == []
    out = Outbox[Any]()
    PassThrough(keeps_restarts=True).restart(Position("a", 9), out)
    (receipt,) = out.receipts
    assert astuple(receipt) == ("a", 9, 0, [9], None, 1, True, 0, False, None)
    assert (out.items, out.settled) == ([None], [])


def test_the_spans_of_an_execution_have_one_complete_receipt() -> None:
    """It is complete with the execution's own span."""
    transform = assembly()
    out = added(transform, batch(execution(1)[:3]))
    (receipt,) = out.receipts
    assert astuple(receipt) == (None, 2, 3, [0, 1, 2], None, 1, False, 0, False, None)
    added(transform, batch(execution(1)[3:], first=3), out=out)
    assert names(out) == ["trim", "dag-1"]
    assert out.receipts == [receipt, receipt]
    assert astuple(receipt) == (None, 3, 4, [0, 1, 2, 3], None, 2, True, 0, False, None)
    assert (out.settled, out.faulty) == ([], [])


def test_only_a_count_is_kept_of_what_nobody_is_told_about() -> None:
    out = added(assembly(tracks=False), batch(execution(1)[:2]), batch(execution(1)[2:], "b", first=100))
    # the last one is that of its own part
    assert astuple(out.receipts[0]) == (None, 1, 4, [], None, 2, True, 0, False, None)


def test_an_execution_in_two_parts_has_positions_in_both() -> None:
    out = added(assembly(), batch(execution(1)[:2], "a"), batch(execution(1)[2:], "b", first=100))
    assert out.receipts[0].positions() == [
        Position("a", 0), Position("a", 1), Position("b", 100), Position("b", 101),
    ]  # fmt: skip
    assert (out.receipts[0].count, out.receipts[0].last) == (4, 1)


def test_what_is_open_is_counted_in_records_until_it_ends() -> None:
    transform, out = assembly(), Outbox[Any]()
    added(transform, batch([*execution(1)[:3], *execution(2)[:1]], "a"), out=out)
    assert transform.open_records == 4
    added(transform, batch(execution(1)[3:], "a", first=9), out=out)
    assert transform.open_records == 1
    added(transform, batch(execution(1)[3:], "a", first=10), out=out)
    assert transform.open_records == 1
    transform.revoke("a")
    assert transform.open_records == 0


def test_what_is_open_is_given_up_at_the_end_or_kept() -> None:
    transform = assembly()
    out = added(transform, batch([*execution(1)[:2], *execution(2)[:1]]))
    assert (transform.open_executions, transform.open_modules) == (2, 1)
    transform.finish(out, abandon=False)
    assert out.items == []
    assert transform.make_room(out)
    assert names(out) == ["trim", "dag-1"]
    transform.finish(out, abandon=True)
    assert names(out) == ["trim", "dag-1", "dag-2"]
    assert (transform.open_executions, transform.open_records) == (0, 0)
    assert not transform.make_room(out)


# --- late events --------------------------------------------------------------------------


@pytest.mark.parametrize("tracks", [True, False])
def test_a_late_event_is_settled_where_its_execution_is_safe(tracks: bool) -> None:
    transform = assembly(tracks=tracks)
    sampling = transform._sampling
    safe(added(transform, batch(execution(1))).receipts)
    sampling.decide(UUID(int=1), "dag-1", Context())
    out = added(transform, batch(execution(1)[:1], first=4))
    (receipt,) = out.settled
    assert astuple(receipt) == (None, 4, 1, [4] if tracks else [], None, 0, True, 0, False, None)
    assert (out.items, transform.counters.late, transform.open_records) == ([], 1, 0)
    # its execution's decision was forgotten again
    assert sampling.recall(UUID(int=1)) is None


def test_a_late_event_is_as_safe_as_its_executions_spans() -> None:
    """Where anybody is told what is safe."""
    transform = assembly()
    out = added(transform, batch(execution(1)), batch(execution(1)[:1], first=4))
    assert (out.settled, transform.open_records) == ([], 0)
    assert astuple(out.receipts[0]) == (None, 4, 5, [0, 1, 2, 3, 4], None, 2, True, 0, False, None)
    transform = assembly(tracks=False)
    out = added(transform, batch(execution(1)), batch(execution(1)[:1], first=4))
    assert (out.receipts[0].count, [late.count for late in out.settled]) == (4, [1])


# --- another reader has it ----------------------------------------------------------------


def test_what_is_open_of_a_revoked_part_may_come_again() -> None:
    transform = assembly()
    added(transform, batch(execution(1)[:3], "a"), batch(execution(2)[:3], "b"))
    assert transform.revoke("a") == 3
    assert (transform.open_executions, transform.open_records) == (1, 3)
    assert transform._sampling.recall(UUID(int=1)) is None
    assert names(added(transform, batch(execution(1), "a"))) == ["trim", "dag-1"]


def test_a_revoked_execution_is_made_again_when_it_comes_again() -> None:
    """Also one whose spans were put out, and were not safe yet: those are sent, and stand for nothing."""
    transform = assembly()
    first = added(transform, batch(execution(1), "a"))
    other = added(transform, batch(execution(2), "b"))
    assert transform.revoke("a") == 4
    assert (first.receipts[0].count, first.receipts[0].positions()) == (0, [])
    assert other.receipts[0].count == 4
    again = added(transform, batch(execution(1), "a"))
    assert again.items == first.items
    safe((*first.receipts, *again.receipts, *other.receipts))
    assert transform.revoke("a") == transform.revoke("b") == 0


def test_executions_that_are_safe_are_not_remembered_as_unsafe() -> None:
    transform = assembly()
    for number in range(1, 50):
        safe(added(transform, batch(execution(number))).receipts)
    assert len(transform._unsafe) == 1


# --- a restart of the engine --------------------------------------------------------------


def test_a_restart_gives_up_what_is_open_and_came_before_it() -> None:
    """Neither what has an end and settles, nor what came later, if in part, nor what is of another part."""
    transform = assembly(settle=60.0)
    out = added(
        transform,
        batch(execution(1)[:2]),
        batch(execution(2), first=2),
        batch(execution(3)[:1], first=6),
        batch(execution(4)[:1], "a"),
        batch(execution(3)[1:2], first=9),
    )
    transform.restart(Position(None, 8), out)
    assert names(out) == ["trim", "dag-1"]
    own, (after,) = out.items[-1], out.settled
    assert own.attributes["constellation.abandoned.reason"] == "engine_restarted"
    assert own.status_description == "abandoned without an end: the engine was restarted"
    assert (transform.open_executions, transform.counters.abandoned) == (3, 1)
    # it is safe when that is
    assert out.receipts[0].is_complete
    assert out.receipts[0].after is after
    assert astuple(after) == (None, 8, 0, [8], None, 1, True, 0, False, None)
    again = Outbox[Any]()
    transform.restart(Position(None, 8), again)
    assert (again.items, again.settled[0].pending) == ([], 0)


@pytest.mark.parametrize("tracks", [True, False])
def test_a_restart_is_compared_with_offsets_of_its_own_part(tracks: bool) -> None:
    """Those of another part, where the execution went on, say nothing."""
    transform = assembly(tracks=tracks)
    out = added(transform, batch(execution(1)[:1], first=5), batch(execution(1)[1:2], "memory", first=1_000))
    transform.restart(Position("memory", 2_000), out)
    assert out.items == []
    transform.restart(Position(None, 6), out)
    assert names(out) == ["trim", "dag-1"]


def test_a_restart_waits_for_no_execution_that_is_not_sampled() -> None:
    transform = assembly(as_item=lambda span: None)
    out = added(transform, batch(execution(1)[:2]))
    transform.restart(Position(None, 2), out)
    of_execution, after = out.settled
    assert of_execution.after is after
    assert (of_execution.pending, after.pending) == (0, 1)


def test_a_batch_without_an_offset_for_each_event_is_refused() -> None:
    """Before anything is counted."""
    transform = assembly()
    with pytest.raises(ValueError, match="a batch has 2 events and 1 offsets"):
        transform.add(Batch(execution(1)[:2], [0]), Outbox())
    assert (transform.open_records, transform.counters.events) == (0, 0)


# --- what is sent of a span ---------------------------------------------------------------


def test_a_span_that_is_not_sent_needs_no_waiting_for() -> None:
    def all_but_modules(span: Span) -> Span | None:
        return span if span.is_execution else None

    out = added(assembly(as_item=all_but_modules), batch(execution(1)))
    assert (names(out), out.receipts[0].pending) == (["dag-1"], 1)
    unsampled = added(assembly(as_item=lambda span: None), batch(execution(1)))
    (receipt,) = unsampled.settled
    assert unsampled.items == []
    assert astuple(receipt) == (None, 3, 4, [0, 1, 2, 3], None, 0, True, 0, False, None)
