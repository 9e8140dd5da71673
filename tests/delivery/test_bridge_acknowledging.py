"""What a bridge tells its source: only what is safe in every sink, again and again, and within bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from constellation_otel.delivery import Bridge, Position, Revoked
from constellation_otel.errors import UnavailableError
from deliveries import ListSink, ListSource, records
from delivering import QUICK, Gate, away, events_of, running, span_names, taking_less_than
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest


class Deaf(ListSource):
    """Takes no acknowledgements until it is told to, and keeps what it was told last."""

    def __init__(self, *batches: Any, **options: Any) -> None:
        super().__init__(*batches, **options)
        self.is_deaf = True
        self.told: list[Position] = []

    def acknowledge(self, positions: Sequence[Position]) -> None:
        self.told = [*positions]
        if self.is_deaf:
            raise UnavailableError("no coordinator")
        super().acknowledge(positions)


class Picky(ListSource):
    """Has a defect: it raises for one position."""

    def acknowledge(self, positions: Sequence[Position]) -> None:
        if Position(None, 2) in positions:
            raise ZeroDivisionError("a defect")
        super().acknowledge(positions)


class Broken(ListSource):
    """Has a defect: it raises for every position."""

    def acknowledge(self, positions: Sequence[Position]) -> None:
        raise ZeroDivisionError("a defect")


def test_an_execution_is_acknowledged_whole_at_its_end() -> None:
    source = ListSource(records([*events_of(1)[:3], *events_of(2)]), ends=False)
    sink = ListSink(takes="spans")
    bridge = Bridge(source, [sink])
    with running(bridge) as reports:
        eventually(lambda: len(source.acknowledged) == 4, "the one that has ended")
        assert (bridge.open_executions, bridge.open_modules) == (1, 0)
        assert bridge.idle_seconds < DEADLINE
    assert [position.offset for position in source.acknowledged] == [3, 4, 5, 6]
    assert span_names(sink) == ["trim", "trim", "dag-2"]
    assert (reports[0].open, reports[0].assembly.abandoned) == (1, 0)


def test_a_source_that_cannot_acknowledge_now_is_told_again(caplog: pytest.LogCaptureFixture) -> None:
    source = ListSource(records(events_of(1)), records(events_of(2), first=4))
    source.acknowledge_faults = [UnavailableError("no coordinator")]
    report = Bridge(source, [ListSink()], retry=QUICK).run()
    assert (report.is_delivered, report.failed_acknowledgements) == (True, 1)
    assert "could not be acknowledged: no coordinator; trying again in" in caplog.text
    assert sorted(source.acknowledged) == [Position(None, number) for number in range(8)]


def test_failing_acknowledgements_are_told_until_they_work() -> None:
    """Though nothing new comes."""
    source = Deaf(records(events_of(1)), ends=False)
    bridge = Bridge(source, [ListSink()], retry=QUICK)
    with running(bridge):
        troubles = {"list://": "delivered records cannot be acknowledged: no coordinator"}
        eventually(lambda: bridge.troubles == troubles, "the source's trouble")
        eventually(lambda: bridge.report.failed_acknowledgements > 1, "it is tried again")
        source.is_deaf = False
        eventually(lambda: not bridge.troubles, "it works again")
        assert sorted(source.acknowledged) == [Position(None, number) for number in range(4)]


def test_a_bridge_that_ends_waits_little_to_acknowledge() -> None:
    """A second at most; what it could not say is read again."""
    source = Deaf(records(events_of(1)))
    with taking_less_than(DEADLINE / 2):
        report = Bridge(source, [ListSink()], retry=QUICK).run()
    assert (report.is_delivered, source.acknowledged, source.closed.is_set()) == (True, [], True)
    assert report.failed_acknowledgements > 1


def test_a_position_that_cannot_be_acknowledged_stands_alone(caplog: pytest.LogCaptureFixture) -> None:
    """It holds up no other."""
    source = Picky(records(events_of(1)), ends=False)
    bridge = Bridge(source, [ListSink()], retry=QUICK)
    with running(bridge):
        eventually(lambda: len(source.acknowledged) == 3, "the others")
        assert (bridge.troubles, bridge.report.failed_acknowledgements) == ({}, 1)
    what = "list://: the acknowledgement of some records raised a defect; not acknowledged: record 2 (1 records)"
    assert what in caplog.text


def test_a_source_that_raises_for_every_position_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    source = Broken(records(events_of(1)))
    sink = ListSink()
    report = Bridge(source, [sink], retry=QUICK).run()
    assert (sink.items, report.is_delivered) == (events_of(1), True)
    assert report.failed_acknowledgements > 0
    assert (source.closed.is_set(), sink.closed) == (True, 1)
    assert "a defect" in caplog.text


def test_what_is_owed_is_bounded_and_only_of_what_is_ours() -> None:
    """The oldest are given up, and so is what another reader has by now."""
    parts = [records(events_of(number), first=4 * number, origin="ab"[number % 2]) for number in range(20)]
    source = Deaf(*parts, ends=False)
    bridge = Bridge(source, [ListSink()], max_held=4, retry=QUICK)
    with running(bridge):
        eventually(lambda: [it.offset for it in source.told] == [*range(16, 80)], "the newest of 80")
        source.put([Revoked("a")])
        eventually(lambda: {it.origin for it in source.told} == {"b"}, "no longer ours")
        source.is_deaf = False
        eventually(lambda: not bridge.troubles, "it works again")
    assert [it.offset for it in source.acknowledged] == [it for it in range(16, 80) if it // 4 % 2]


def test_one_sinks_two_deliveries_are_not_two_sinks() -> None:
    """Read, taken away, and read again: the first sink may have it twice, the second not at all."""
    gate = Gate()
    mine = records(events_of(1), origin="a")
    source = ListSource([*mine, Revoked("a"), *mine], ends=False)
    first, second = ListSink(), away(gate)
    bridge = Bridge(source, [first, second], retry=QUICK)
    with running(bridge):
        eventually(lambda: len(first.items) == 8, "the first has it twice")
        assert source.acknowledged == []
        gate.opened.set()
        eventually(lambda: len(source.acknowledged) == 4, "the second has it, too")


def test_a_source_that_wants_to_hear_nothing_is_told_nothing() -> None:
    """It can be durable all the same: who runs it again reads everything again."""

    class Silent(ListSource):
        wants_acknowledgements = False

    source = Silent(records(events_of(1)))
    report = Bridge(source, [ListSink()]).run()
    assert report.is_delivered
