"""What becomes of records before they are sent: nothing, or spans."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from msgspec.structs import replace

from constellation_otel.delivery import Position, Record
from constellation_otel.delivery.transform import AssemblyStage, EventClock, EventStage, Group, Parcel
from constellation_otel.traces import Assembler
from deliveries import MS, T0, execution, records
from support import eventually

if TYPE_CHECKING:
    from constellation_otel.traces import Span


def test_an_event_is_a_parcel_of_its_own_and_nothing_ever_waits() -> None:
    stage = EventStage()
    (record,) = records(execution(1)[:1], first=7)
    assert stage.add(record) == (Parcel(record.event, Group([Position(None, 7)], 1, is_complete=True)),)
    assert (stage.advance(), stage.make_room(), stage.finish(abandon=True), stage.revoke(None)) == ((), (), (), ())
    assert stage.abandon(Position(None, 9)) == ()
    assert stage.wake_in() is None


def test_the_records_of_an_execution_are_one_group_that_is_complete_with_its_own_span() -> None:
    stage = AssemblyStage(Assembler())
    parcels = [parcel for record in records(execution(1)) for parcel in stage.add(record)]
    module, whole = parcels
    assert [parcel.item.name for parcel in parcels if parcel.item] == ["trim", "dag-1"]
    assert module.group is whole.group
    assert whole.group == Group([Position(None, number) for number in range(4)], 2, is_complete=True)


def test_a_late_event_has_nothing_to_wait_for_and_its_execution_is_forgotten() -> None:
    forgotten: list[UUID] = []
    stage = AssemblyStage(Assembler(), forget=forgotten.append)
    parcels = [parcel for record in records(execution(1)) for parcel in stage.add(record)]
    parcels[0].group.outstanding = 0
    late = records(execution(1), first=4)[0]
    assert stage.add(late) == [Parcel(None, Group([Position(None, 4)], 0, is_complete=True))]
    assert forgotten == [UUID(int=1)]
    assert stage.counters.late == 1


def test_a_late_event_is_as_safe_as_the_spans_of_its_execution() -> None:
    stage = AssemblyStage(Assembler())
    parcels = [parcel for record in records(execution(1)) for parcel in stage.add(record)]
    (late,) = stage.add(records(execution(1), first=4)[0])
    assert late == Parcel(None, parcels[0].group)
    assert [position.offset for position in late.group.positions] == [0, 1, 2, 3, 4]


def test_what_has_left_and_is_not_safe_when_its_part_is_taken_away_is_made_again_when_it_comes_again() -> None:
    stage = AssemblyStage(Assembler())
    first = [parcel for record in records(execution(1), origin="a") for parcel in stage.add(record)]
    other = [parcel for record in records(execution(2), origin="b") for parcel in stage.add(record)]
    (revoked,) = stage.revoke("a")
    assert revoked.positions == [Position("a", number) for number in range(4)]
    assert (first[0].group.positions, len(other[0].group.positions)) == ([], 4)
    again = [parcel for record in records(execution(1), origin="a") for parcel in stage.add(record)]
    assert [parcel.item for parcel in again] == [parcel.item for parcel in first]
    for parcel in (*again, *other):
        parcel.group.outstanding = 0
    assert stage.revoke("a") == []


def test_time_stands_still_while_records_wait_that_should_have_been_added() -> None:
    stage = AssemblyStage(Assembler(settle=0.02))
    stage.run_clock(runs=False)
    for record in records(execution(1)):
        stage.add(record)
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        assert stage.advance() == []
    stage.run_clock(runs=True)
    assert stage.advance() == []
    eventually(lambda: [parcel.item.name for parcel in stage.advance() if parcel.item], "they settle")
    EventStage().run_clock(runs=True)
    AssemblyStage(Assembler(), clock=EventClock()).run_clock(runs=False)


def test_what_is_open_is_counted_in_records() -> None:
    stage = AssemblyStage(Assembler())
    for record in records([*execution(1)[:3], *execution(2)[:1]], origin="a"):
        stage.add(record)
    assert stage.open_records == 4
    stage.add(Record(execution(1)[3], Position("a", 9)))
    assert stage.open_records == 1
    stage.add(Record(execution(1)[3], Position("a", 10)))
    assert stage.open_records == 1
    stage.revoke("a")
    assert stage.open_records == 0


def test_what_is_open_and_came_before_a_restart_is_abandoned_and_nothing_else() -> None:
    """Neither what has an end and settles, nor what came later, if in part, nor what is of another part."""
    stage = AssemblyStage(Assembler(settle=60.0))
    for record in (
        *records(execution(1)[:2]),
        *records(execution(2), first=2),
        *records(execution(3)[:1], first=6),
        *records(execution(4)[:1], origin="a"),
        *records(execution(3)[1:2], first=9),
    ):
        stage.add(record)
    parcels = stage.abandon(Position(None, 8))
    assert [parcel.item.name for parcel in parcels if parcel.item] == ["trim", "dag-1"]
    assert {parcel.group.is_complete for parcel in parcels} == {True}
    own = parcels[-1].item
    assert own is not None
    assert own.attributes["constellation.abandoned.reason"] == "engine_restarted"
    assert own.status_description == "abandoned without an end: the engine was restarted"
    assert (stage.open_executions, stage.counters.abandoned) == (3, 1)
    assert stage.abandon(Position(None, 8)) == []


def test_a_span_that_is_not_to_be_sent_is_a_parcel_without_an_item() -> None:
    stage = AssemblyStage(Assembler(), lambda span: None if span.name == "trim" else span)
    parcels = [parcel for record in records(execution(1)) for parcel in stage.add(record)]
    assert [parcel.item and parcel.item.name for parcel in parcels] == ["dag-1"]
    assert parcels[0].group.outstanding == 1
    unsampled = AssemblyStage(Assembler(), lambda span: None)
    (parcel,) = [it for record in records(execution(1)) for it in unsampled.add(record)]
    assert parcel == Parcel(None, Group([Position(None, number) for number in range(4)], 0, is_complete=True))


def test_what_is_open_is_let_go_at_the_end_or_kept_and_counted() -> None:
    stage = AssemblyStage(Assembler())
    for record in records([*execution(1)[:2], *execution(2)[:1]]):
        stage.add(record)
    assert (stage.open_executions, stage.open_modules) == (2, 1)
    assert stage.finish(abandon=False) == []
    assert [parcel.item.name for parcel in stage.make_room() if parcel.item] == ["trim", "dag-1"]
    assert [parcel.item.name for parcel in stage.finish(abandon=True) if parcel.item] == ["dag-2"]
    assert stage.open_executions == 0


def test_time_lets_spans_leave_and_says_when_it_will() -> None:
    stage = AssemblyStage(Assembler(settle=0.01))
    assert stage.wake_in() is None
    for record in records(execution(1)):
        assert stage.add(record) == []
    wake_in = stage.wake_in()
    assert wake_in is not None
    assert 0 <= wake_in <= 0.01
    parcels: list[Parcel[Span]] = []
    while len(parcels) < 2:
        parcels += stage.advance()
    assert [parcel.item.name for parcel in parcels if parcel.item] == ["trim", "dag-1"]


def test_what_is_open_of_a_part_that_is_taken_away_is_dropped_and_may_come_again() -> None:
    forgotten: list[UUID] = []
    stage = AssemblyStage(Assembler(), forget=forgotten.append)
    for record in [*records(execution(1)[:3], origin="a"), *records(execution(2)[:3], origin="b")]:
        stage.add(record)
    (group,) = stage.revoke("a")
    assert group.positions == [Position("a", number) for number in range(3)]
    assert forgotten == [UUID(int=1)]
    assert stage.open_executions == 1
    again = [parcel for record in records(execution(1), origin="a") for parcel in stage.add(record)]
    assert [parcel.item.name for parcel in again if parcel.item] == ["trim", "dag-1"]


def test_the_time_of_a_replay_is_what_its_records_agree_on() -> None:
    clock = EventClock()
    assert clock() == 0
    seen = []
    for timestamp_ns in (T0 - 3_600_000 * MS, T0, T0 + 1, T0 + 3_600_000 * MS, T0 + 2, *range(T0 + 3, T0 + 70)):
        clock.see(timestamp_ns)
        seen.append(clock() - T0)
    assert seen[:6] == [-3_600_000 * MS, -3_600_000 * MS, 0, 0, 1, 1]
    assert seen == sorted(seen)
    for timestamp_ns in (*range(T0 + 70, T0 + 140), T0 - 1):
        clock.see(timestamp_ns)
    assert clock() == T0 + 139 - 63


def test_a_replay_lets_what_was_silent_leave_by_the_time_of_its_records_only() -> None:
    stage = AssemblyStage(Assembler(idle_timeout=60), clock=EventClock())
    opened = records(execution(1)[:1])[0]
    stage.add(opened)
    later = [record for number in range(2, 20) for record in records(execution(number, start_ns=T0 + 30_000 * MS))]
    for record in later:
        stage.add(record)
    assert stage.wake_in() is None
    assert stage.advance() == []
    much_later = execution(20, start_ns=T0 + 120_000 * MS)
    much = [replace(event, timestamp_ns=T0 + 120_000 * MS) for _ in range(17) for event in much_later]
    left = [parcel for record in records(much) for parcel in stage.add(record)]
    assert [parcel.item.name for parcel in left if parcel.item][-1] == "dag-1"


@pytest.mark.parametrize("bad", ["trim", "dag-2"])
def test_an_execution_that_cannot_be_finished_costs_the_others_nothing(
    bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    def finish_span(span: Span) -> Span:
        if span.name == bad:
            raise ZeroDivisionError
        return span

    stage = AssemblyStage(Assembler(), finish_span)
    for record in records([execution(1)[0], *execution(2)[:2], execution(3)[0]]):
        stage.add(record)
    parcels = stage.finish(abandon=True)
    assert [parcel.item and parcel.item.name for parcel in parcels] == ["dag-1", None, "dag-3"]
    group = parcels[1].group
    assert (group.rejected, group.outstanding, group.is_complete, stage.open_records) == (2, 0, True, 0)
    assert caplog.records[0].exc_info is not None
