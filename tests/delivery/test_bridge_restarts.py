"""What an engine that was restarted has left open is abandoned: at once, in every sink, and past the journal, too."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from constellation_otel.delivery import Batch, Bridge, Position, Record, Restarted, SourceItem
from constellation_otel.errors import UnavailableError
from constellation_otel.transports.journal import Journal
from deliveries import ListSink, ListSource, records
from delivering import QUICK, Gate, MemoryStore, away, events_of, reasons, running
from support import eventually

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("is_durable", [True, False])
def test_what_a_restarted_engine_left_open_is_abandoned(is_durable: bool) -> None:
    """In every sink; what came after that stays open."""
    before = records([*events_of(1)[:3], *events_of(2)[:1]])
    restarted = Restarted(Position(None, 5))
    items: list[SourceItem] = [*before, restarted, *records(events_of(3)[:1], first=6)]
    source = ListSource(items, ends=False, is_durable=is_durable)
    sinks = [ListSink(takes="spans", name="one"), ListSink(takes="spans", name="two"), ListSink()]
    bridge = Bridge(source, sinks)
    with running(bridge):
        eventually(lambda: bridge.report.assembly.abandoned == 2, "two are abandoned")
        eventually(lambda: all(len(reasons(sink)) == 2 for sink in sinks[:2]), "in both sinks")
        assert bridge.open_executions == 1
        if is_durable:
            eventually(lambda: len(source.acknowledged) == 5, "they are acknowledged, and so is that")
    assert reasons(sinks[0]).items() >= {("dag-1", "engine_restarted"), ("dag-2", "engine_restarted")}
    assert len(source.acknowledged) == (5 if is_durable else 0)
    assert sinks[2].items == [*events_of(1)[:3], *events_of(2)[:1], *events_of(3)[:1]]


def test_a_restart_takes_its_turn_where_a_sink_has_no_room() -> None:
    """What came after it stays open."""
    gate = Gate()
    sink = away(gate, takes="spans")
    numbers = itertools.count(3)
    source = ListSource(records([*events_of(1), *events_of(2)[:1]]), ends=False, is_durable=False)
    bridge = Bridge(source, [sink], max_held=6, retry=QUICK)

    def restart_without_room() -> bool:
        number = next(numbers)
        source.put([*records(events_of(number), first=8 * number), Restarted(Position(None, 8 * number + 4))])
        return bool(bridge.report.dropped)

    with running(bridge):
        eventually(restart_without_room, "there is no room")
        gate.opened.set()
        eventually(lambda: "dag-2" in reasons(sink), "it is abandoned")
        source.put(records(events_of(2_000)[:1], first=20_000))
        eventually(lambda: bridge.open_executions == 1, "the next one is open")
    assert reasons(sink).items() >= {("dag-2", "engine_restarted"), ("dag-2000", "closed")}


def test_a_restart_survives_in_the_journal_until_all_is_safe(tmp_path: Path) -> None:
    """Across an outage of the sink and an end of the bridge; what came after it stays open."""
    path = tmp_path / "journal.db"
    restarted = Restarted(Position(None, 5))
    items: list[SourceItem] = [*records(events_of(1)[:3]), restarted, *records(events_of(2)[:1], first=6)]
    first = Bridge(
        ListSource(items, is_durable=False),
        [away(Gate(), takes="spans")],
        journal=Journal(path, sinks=["list"]),
        close_timeout=0.2,
        retry=QUICK,
    )
    assert not first.run().is_delivered
    sink = ListSink(takes="spans")
    bridge = Bridge(ListSource(ends=False, is_durable=False), [sink], journal=Journal(path, sinks=["list"]))
    with running(bridge):
        eventually(lambda: reasons(sink), "it is abandoned")
        eventually(lambda: bridge.open_executions == 1, "the other is open")
    assert reasons(sink) == {"dag-1": "engine_restarted"}
    left = Journal(path, sinks=["list"])
    assert (left.read("list", 0, 9), left.held("list")) == ([Batch(events_of(2)[:1], [5])], 1)
    left.close()


@pytest.mark.parametrize("is_durable", [True, False])
def test_a_restart_that_found_no_room_is_written_in_its_turn(is_durable: bool) -> None:
    """Before what comes after it. What sinks had from memory before it is abandoned without the journal."""
    store, sink = MemoryStore(), ListSink(takes="spans")
    store.room = 0
    one, two = (records(events_of(number)[:1], first=number) for number in (1, 3))
    source = ListSource([*one, Restarted(Position(None, 2))], ends=False, is_durable=is_durable)
    bridge = Bridge(source, [sink], journal=store, retry=QUICK)
    with running(bridge) as reports:
        eventually(lambda: reasons(sink) == {"dag-1": "engine_restarted"}, "it is abandoned")
        if is_durable:
            eventually(lambda: [it.offset for it in source.acknowledged] == [1], "the restart is not in the journal")
        store.room = 9
        # before it has been tried again, what is new goes to the sinks from memory
        eventually(lambda: store.items, "the journal has the restart")
        source.put(two)
        eventually(lambda: len(store.items) == 2, "the journal has it, and what comes after it")
    assert store.items == [Restarted(Position(None, 0)), Record(two[0].event, Position(None, 1))]
    assert reasons(sink) == {"dag-1": "engine_restarted"}
    assert (reports[0].assembly.abandoned, reports[0].dropped, reports[0].open) == (1, 0, 1)
    assert [it.offset for it in source.acknowledged] == ([1, 2, 3] if is_durable else [])


def test_a_restart_is_told_once_though_it_waits_for_the_journal() -> None:
    """However often the journal is tried."""
    store, sink = MemoryStore(), ListSink(takes="spans")
    store.appends = [UnavailableError("the disk is full")] * 10_000
    source = ListSource([*records(events_of(1)[:1]), Restarted(Position(None, 2))], ends=False)
    bridge = Bridge(source, [sink], journal=store, retry=QUICK, close_timeout=0.2)
    with running(bridge) as reports:
        eventually(lambda: reasons(sink) == {"dag-1": "engine_restarted"}, "it is abandoned")
        source.put(records(events_of(2)[:1], first=3))
        eventually(lambda: bridge.open_executions == 1, "the next one is open")
        asked = store.asked
        eventually(lambda: store.asked > asked + 3, "the journal is tried again and again")
        assert bridge.open_executions == 1
    assert reasons(sink) == {"dag-1": "engine_restarted"}
    assert [it.offset for it in source.acknowledged] == [0]
    assert (reports[0].assembly.abandoned, reports[0].is_delivered) == (1, True)


def test_a_restart_behind_what_a_stop_left_is_left_as_well() -> None:
    """The next reader has the ends of what it would have abandoned."""
    gate, asked = Gate(), Gate()
    items = [*records(events_of(1)[:1]), *records(events_of(2), first=1), *records(events_of(1)[1:], first=5)]
    sink = away(gate, takes="spans")
    filler = records(events_of(3, 4), origin="other", first=100)
    source = ListSource(filler, [*items, Restarted(Position(None, 8))], ends=False, keep_alive=asked.reached.set)
    bridge = Bridge(source, [sink], max_held=2, retry=QUICK, close_timeout=1.0)
    with running(bridge):
        eventually(asked.reached.is_set, "it waits for room")
        bridge.stop()
        gate.opened.set()
    assert reasons(sink) == {}
