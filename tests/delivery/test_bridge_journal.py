"""A bridge with a journal: the source hears at once, every sink gets everything, and a failure loses nothing."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from constellation_otel.delivery import (
    Bridge,
    DeadLetters,
    JournalCounters,
    Position,
    Record,
    Restarted,
    Revoked,
    sink_names,
)
from constellation_otel.errors import JournalError, UnavailableError
from constellation_otel.events import ModuleStarted
from constellation_otel.transports.journal import Journal
from deliveries import T0, ListSink, ListSource, records
from delivering import (
    ALWAYS,
    QUICK,
    Gate,
    MemoryStore,
    away,
    events_of,
    raises_for,
    running,
    span_names,
    taking_less_than,
)
from journals import locked, taken_away
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def held_in(path: Path, *sinks: str) -> list[int]:
    """How many events a journal holds for each sink."""
    journal = Journal(path, sinks=sinks)
    held = [journal.held(sink) for sink in sinks]
    journal.close()
    return held


def test_with_a_journal_the_source_hears_at_once_of_safety(path: Path) -> None:
    """And every sink gets everything."""
    gate = Gate()
    source = ListSource(records(events_of(1)), ends=False)
    sinks = [away(gate, name="stuck"), ListSink(name="fine"), ListSink(takes="spans", name="otlp")]
    bridge = Bridge(source, sinks, journal=Journal(path, sinks=sink_names(sinks)), retry=QUICK)
    with running(bridge) as reports:
        eventually(lambda: len(source.acknowledged) == 4, "the source is told")
        eventually(lambda: len(sinks[1].items) == 4 and len(sinks[2].items) == 2, "the others have it")
        assert (sinks[0].items, span_names(sinks[2])) == ([], ["trim", "dag-1"])
        gate.opened.set()
        eventually(lambda: sinks[0].items == events_of(1), "the one that was away has it")
    assert (reports[0].is_delivered, reports[0].journal) == (True, JournalCounters())
    assert held_in(path, "stuck", "fine", "otlp") == [0, 0, 0]


def test_the_next_bridge_delivers_from_the_journal(path: Path) -> None:
    """What the first one could not."""
    source = ListSource(records(events_of(1)), is_durable=False)
    first = Bridge(source, [away(Gate())], journal=Journal(path, sinks=["list"]), close_timeout=0.2, retry=QUICK)
    report = first.run()
    assert (report.is_delivered, report.lost) == (False, 0)
    sink = ListSink()
    report = Bridge(ListSource(records(events_of(2))), [sink], journal=Journal(path, sinks=["list"])).run()
    assert (sink.items, report.is_delivered) == (events_of(1, 2), True)
    assert report.journal == JournalCounters(recovered=4)


def test_a_stop_with_more_in_the_journal_than_sent_says_so(path: Path) -> None:
    journal = Journal(path, sinks=["list"])
    journal.append(events_of(*range(500)))
    gate = Gate()
    sink = ListSink(gate.wait)
    bridge = Bridge(ListSource(ends=False), [sink], journal=journal, max_held=256, close_timeout=0.1)
    with running(bridge) as reports:
        assert gate.reached.wait(DEADLINE)
        bridge.stop()
        eventually(lambda: reports, "it ends")
    gate.opened.set()
    assert not reports[0].is_delivered
    eventually(lambda: not is_open(path), "the file is free")
    sink = ListSink()
    bridge = Bridge(ListSource(ends=False), [sink], journal=Journal(path, sinks=["list"]), max_held=256)
    with running(bridge) as reports:
        eventually(lambda: sink.calls, "it has begun")
    assert (reports[0].is_delivered, sink.items) == (True, events_of(*range(500)))
    assert held_in(path, "list") == [0]


def is_open(path: Path) -> bool:
    try:
        Journal(path, sinks=["list"]).close()
    except JournalError:
        return True
    return False


def test_an_event_that_no_journal_could_keep_is_left_out(path: Path) -> None:
    odd = ModuleStarted(UUID(int=1), UUID(int=2), 7, T0)  # type: ignore[arg-type] # what is tested
    good = records(events_of(1))
    source = ListSource([good[0], Record(odd, Position(None, 9)), *good[1:]])
    sink = ListSink()
    report = Bridge(source, [sink], journal=Journal(path, sinks=["list"])).run()
    assert (sink.items, report.unreadable, len(source.acknowledged)) == (events_of(1), 1, 5)


def test_an_open_execution_stays_in_the_journal_for_the_next(path: Path) -> None:
    """And is whole when its end comes to that."""
    begun = ListSource(records(events_of(1)[:3]), ends=False, is_durable=False)
    first = Bridge(begun, [ListSink(takes="spans")], journal=Journal(path, sinks=["list"]))
    with running(first):
        eventually(lambda: first.open_executions, "it is open")
    sink = ListSink(takes="spans")
    rest = ListSource(records(events_of(1)[3:]), is_durable=False)
    assert Bridge(rest, [sink], journal=Journal(path, sinks=["list"])).run().is_delivered
    assert span_names(sink) == ["trim", "dag-1"]
    assert held_in(path, "list") == [0]


@pytest.mark.parametrize("is_durable", [True, False])
def test_what_is_in_a_journal_is_not_another_readers(path: Path, is_durable: bool) -> None:
    """It was acknowledged, so that no other reader will have it."""
    source = ListSource(
        [*records(events_of(1)[:2], origin="a"), Revoked("a")],
        records(events_of(1)[2:], origin="a"),
        is_durable=is_durable,
    )
    sink = ListSink(takes="spans")
    Bridge(source, [sink], journal=Journal(path, sinks=["list"])).run()
    assert span_names(sink) == ["trim", "dag-1"]


@pytest.mark.parametrize("error", [UnavailableError("it is locked"), RuntimeError("it is locked")])
def test_a_journal_without_acknowledgements_is_in_trouble(error: Exception) -> None:
    store = MemoryStore()
    store.acknowledge_fault = error
    bridge = Bridge(ListSource(records(events_of(1)), ends=False), [ListSink()], journal=store, retry=QUICK)
    with running(bridge) as reports:
        troubles = {"journal": "delivered records cannot be acknowledged: it is locked (by list)"}
        eventually(lambda: bridge.troubles == troubles, "the journal's trouble")
        assert bridge.report.sinks["list"].failed_acknowledgements > 0
        store.acknowledge_fault = None
        eventually(lambda: not bridge.troubles, "it works again")
    assert (reports[0].is_delivered, sorted(store.acknowledged)) == (True, [0, 1, 2, 3])


@pytest.mark.parametrize("is_durable", [True, False])
def test_what_a_journal_cannot_take_goes_to_sinks_from_memory(path: Path, is_durable: bool) -> None:
    """In order with what the journal has; a durable source is told when the sinks have it."""
    source = ListSource(records(events_of(1)[:2]), ends=False, is_durable=is_durable)
    sinks = [ListSink(), ListSink(takes="spans", name="otlp")]
    bridge = Bridge(source, sinks, journal=Journal(path, sinks=sink_names(sinks)), retry=QUICK)
    with running(bridge) as reports:
        eventually(lambda: len(sinks[0].items) == 2, "they go through the journal")
        with taken_away(path):
            source.put(records(events_of(1)[2:], first=2))
            eventually(lambda: span_names(sinks[1]) == ["trim", "dag-1"], "the rest comes from memory")
            eventually(lambda: sinks[0].items == events_of(1), "also to the other sink")
            assert "was moved, deleted or replaced" in bridge.troubles["journal"]
            eventually(lambda: len(source.acknowledged) == (4 if is_durable else 0), "the source is told")
            assert bridge.report.journal == JournalCounters(not_durable=2)
        numbers = iter(range(1_000))

        def is_written_again() -> bool:
            source.put(records(events_of(2)[:1], first=100 + next(numbers)))
            return bridge.troubles == {}

        eventually(is_written_again, "the journal is written again")
        source.put(records(events_of(2)[1:], first=50))
        eventually(lambda: span_names(sinks[1]) == ["trim", "dag-1", "trim", "dag-2"], "all is as ever")
    assert (reports[0].is_delivered, reports[0].dropped, reports[0].lost) == (True, 0, 0)
    assert held_in(path, "list", "otlp") == [0, 0]


@pytest.mark.parametrize("is_durable", [True, False])
def test_a_journal_is_waited_for_where_no_sink_takes_events(path: Path, is_durable: bool) -> None:
    source = ListSource(records(events_of(1)), ends=False, is_durable=is_durable)
    journal = Journal(path, sinks=["list"])
    bridge = Bridge(source, [away(Gate())], journal=journal, close_timeout=0.1, retry=QUICK)
    with running(bridge):
        eventually(lambda: "list" in bridge.troubles, "the sink is away")
        with taken_away(path):
            source.put(records(events_of(2), first=4))
            eventually(lambda: "journal" in bridge.troubles, "the journal is away, too")
        eventually(lambda: "journal" not in bridge.troubles, "it is written after all")
        assert bridge.report.journal == JournalCounters()
    assert held_in(path, "list") == [8]


@pytest.mark.parametrize("is_durable", [True, False])
def test_a_stop_does_not_wait_for_a_disk_that_hangs(is_durable: bool) -> None:
    """What it could not write goes to the sinks, if only at the end; then the source is told."""
    gate = Gate()
    store, sink = MemoryStore(), ListSink()
    store.appends = [gate.wait]
    source = ListSource(records(events_of(1)), ends=False, is_durable=is_durable)
    bridge = Bridge(source, [sink], journal=store, close_timeout=0.5, retry=QUICK)
    try:
        with running(bridge) as reports:
            assert gate.reached.wait(DEADLINE)
            source.put(records(events_of(2), first=4))
            eventually(lambda: bridge.report.events == 8, "there is more behind that")
            with taking_less_than(3.0):
                bridge.stop()
                eventually(lambda: reports, "it ends")
    finally:
        gate.opened.set()
    assert sink.items == events_of(1, 2)
    assert (reports[0].is_delivered, reports[0].lost, reports[0].journal) == (True, 0, JournalCounters(not_durable=8))
    assert len(source.acknowledged) == (8 if is_durable else 0)
    eventually(lambda: store.closed, "the journal is closed")


@pytest.mark.parametrize(("is_durable", "lost"), [(True, 0), (False, 4)])
def test_a_hanging_disk_and_an_absent_sink_tell_the_truth(is_durable: bool, lost: int) -> None:
    """Nothing is delivered, nothing acknowledged; what nobody reads again is lost."""
    gate = Gate()
    store = MemoryStore()
    store.appends = [gate.wait]
    source = ListSource(records(events_of(1)), ends=False, is_durable=is_durable)
    bridge = Bridge(source, [away(Gate())], journal=store, close_timeout=0.3, retry=QUICK)
    try:
        with running(bridge) as reports:
            assert gate.reached.wait(DEADLINE)
            bridge.stop()
            eventually(lambda: reports, "it ends")
    finally:
        gate.opened.set()
    assert (reports[0].is_delivered, reports[0].lost, source.acknowledged) == (False, lost, [])


def test_a_journal_that_another_process_locks_delays_no_end(path: Path) -> None:
    source = ListSource(records(events_of(1)), ends=False)
    sink = ListSink()
    bridge = Bridge(source, [sink], journal=Journal(path, sinks=["list"]), close_timeout=0.5, retry=QUICK)
    with locked(path), running(bridge) as reports:
        eventually(lambda: bridge.report.events == 4, "they are read")
        with taking_less_than(3.0):
            bridge.stop()
            eventually(lambda: reports, "it ends")
        assert (sink.items, len(source.acknowledged)) == (events_of(1), 4)
        assert (reports[0].is_delivered, reports[0].lost) == (True, 0)


def test_where_no_thread_can_be_had_for_it_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The events go to the sinks at the end."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "bridge-journal":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    store, sink = MemoryStore(), ListSink()
    source = ListSource(records(events_of(1)))
    report = Bridge(source, [sink], journal=store, close_timeout=0.3).run()
    assert (sink.items, len(source.acknowledged), report.is_delivered) == (events_of(1), 4, True)
    assert report.journal == JournalCounters(not_durable=4)


def test_a_closed_journal_is_an_error_and_ends_no_bridge() -> None:
    """The sinks get the events from memory."""
    store, sink = MemoryStore(), ListSink()
    store.appends = [JournalError("the journal is closed")] * 100
    source = ListSource(records(events_of(1)), ends=False)
    bridge = Bridge(source, [sink], journal=store, retry=QUICK)
    with running(bridge) as reports:
        eventually(lambda: bridge.troubles == {"journal": "the journal is closed"}, "it is a trouble")
        eventually(lambda: len(source.acknowledged) == 4, "the sinks have all")
    assert (sink.items, reports[0].is_delivered) == (events_of(1), True)
    assert reports[0].journal == JournalCounters(not_durable=4)


def test_a_journal_that_took_nothing_is_given_some_pause() -> None:
    """It is not asked again at every batch."""
    store, sink = MemoryStore(), ListSink()
    store.room = 0
    source = ListSource(ends=False, is_durable=False)
    bridge = Bridge(source, [sink], journal=store)
    with running(bridge) as reports:
        for number in range(20):
            source.put(records(events_of(number), first=4 * number))
            eventually(lambda: len(sink.items) == bridge.report.events > 4 * number, "it arrives")  # noqa: B023 - now
        assert store.asked < 10
    assert (sink.items, reports[0].is_delivered) == (events_of(*range(20)), True)
    assert reports[0].journal == JournalCounters(not_durable=80)


def test_a_full_journal_is_waited_for_where_no_sink_takes() -> None:
    store = MemoryStore()
    store.room = 1
    source = ListSource(records(events_of(1)[:1]), ends=False, is_durable=False)
    bridge = Bridge(source, [away(Gate())], journal=store, on_full="wait", close_timeout=0.1, retry=QUICK)
    with running(bridge) as reports:
        eventually(lambda: "list" in bridge.troubles, "the sink is away")
        source.put(records(events_of(1)[1:], first=1))
        eventually(lambda: store.asked > 2, "it is asked again")
        store.room = ALWAYS
        eventually(lambda: store.events == events_of(1), "it has room")
    assert (reports[0].dropped, reports[0].lost, reports[0].journal) == (0, 0, JournalCounters())


def test_the_newest_are_dropped_where_no_one_takes_or_waits() -> None:
    store = MemoryStore()
    store.room = 1
    source = ListSource(records(events_of(1)[:1]), ends=False, is_durable=False)
    bridge = Bridge(source, [away(Gate())], journal=store, max_held=4, close_timeout=0.1, retry=QUICK)
    with running(bridge) as reports:
        eventually(lambda: "list" in bridge.troubles, "the sink is away")
        source.put(records(events_of(1, 2, 3), first=1))
        eventually(lambda: bridge.report.dropped, "there is no room in memory either")
    report = reports[0]
    assert report.dropped + report.lost == 12
    assert report.lost > 0


@pytest.mark.parametrize(("is_durable", "lost", "acknowledged"), [(True, 0, 1), (False, 3, 0)])
def test_a_stop_does_not_wait_for_a_journal_that_is_full(is_durable: bool, lost: int, acknowledged: int) -> None:
    store = MemoryStore()
    store.room = 1
    source = ListSource(records(events_of(1)[:1]), ends=False, is_durable=is_durable)
    bridge = Bridge(source, [away(Gate())], journal=store, on_full="wait", close_timeout=0.1, retry=QUICK)
    with running(bridge) as reports:
        eventually(lambda: "list" in bridge.troubles, "the sink is away")
        source.put(records(events_of(1)[1:], first=1))
        eventually(lambda: store.asked > 2, "it waits")
    assert (reports[0].lost, len(source.acknowledged)) == (lost, acknowledged)


@pytest.mark.parametrize(("is_durable", "lost"), [(True, 0), (False, 6)])
def test_what_a_journal_took_of_a_batch_is_not_counted_lost(is_durable: bool, lost: int) -> None:
    store = MemoryStore()
    store.room = 3
    source = ListSource(records(events_of(1)[:1]), ends=False, is_durable=is_durable)
    bridge = Bridge(source, [away(Gate())], journal=store, on_full="wait", close_timeout=0.1, retry=QUICK)
    with running(bridge) as reports:
        eventually(lambda: "list" in bridge.troubles, "the sink is away")
        source.put(records([*events_of(1)[1:], *events_of(2, 3)[:5]], first=1))
        eventually(lambda: store.asked > 2, "it waits")
    assert (reports[0].lost, reports[0].is_delivered) == (lost, False)
    assert [it.offset for it in source.acknowledged] == ([0] if is_durable else [])


def test_what_finds_no_room_at_the_end_is_not_acknowledged() -> None:
    """A sink that hangs has a full queue, and a journal that fails nothing to put into it."""
    gate = Gate()
    store = MemoryStore()
    store.appends = [UnavailableError("the disk is full")] * ALWAYS
    source = ListSource(ends=False)
    sink = ListSink(gate.wait)
    bridge = Bridge(source, [sink], journal=store, max_held=2, close_timeout=0.3, retry=QUICK)
    events = events_of(1, 2, 3)
    try:
        with running(bridge) as reports:
            for number, event in enumerate(events):
                source.put(records([event], first=number))
            assert gate.reached.wait(DEADLINE)
            eventually(lambda: bridge._is_waiting, "there is no room any more")
            bridge.stop()
            eventually(lambda: reports, "it ends")
        assert (source.acknowledged, reports[0].is_delivered) == ([], False)
    finally:
        gate.opened.set()


def test_an_event_for_which_a_journal_raises_is_left_out_alone(tmp_path: Path) -> None:
    """Counted as unreadable, and dead-lettered."""
    store, sink = MemoryStore(), ListSink()
    store.appends = [raises_for(2)] * 100
    dead = tmp_path / "dead.jsonl"
    source = ListSource(records(events_of(1, 2, 3)))
    report = Bridge(source, [sink], journal=store, dead_letters=DeadLetters(dead), retry=QUICK).run()
    assert sink.items == events_of(1, 3)
    assert (report.unreadable, dead.read_text().count("ZeroDivisionError: a defect")) == (4, 4)
    assert sorted(position.offset for position in source.acknowledged) == [*range(12)]


def test_a_journal_that_raises_for_everything_loses_nothing() -> None:
    store, sink = MemoryStore(), ListSink()
    store.appends = [ZeroDivisionError("a defect")] * ALWAYS
    report = Bridge(ListSource(records(events_of(1))), [sink], journal=store, retry=QUICK).run()
    assert (sink.items, report.unreadable, report.journal) == (events_of(1), 0, JournalCounters(not_durable=4))


def test_no_time_passes_for_what_waits_for_the_journal() -> None:
    """Where the sink is away, too: the events that would end an execution wait in memory."""
    store, gate = MemoryStore(), Gate()
    source = ListSource(records(events_of(1)[:1]), ends=False)
    sink = away(gate, takes="spans")
    bridge = Bridge(source, [sink], journal=store, idle_timeout=0.4, retry=QUICK)
    with running(bridge) as reports:
        source.put(records(events_of(2), first=10))
        eventually(lambda: "list" in bridge.troubles, "the sink is away")
        store.room = 0
        source.put(records(events_of(1)[1:], first=1))
        eventually(lambda: "journal" in bridge.troubles, "the journal is full")
        since = time.monotonic()
        eventually(lambda: time.monotonic() > since + 1.0, "two timeouts have passed")
        gate.opened.set()
        eventually(lambda: bridge.report.assembly.executions == 2, "all are emitted")
    assert reports[0].assembly.abandoned == 0


def test_a_restart_in_a_batch_that_goes_past_the_journal() -> None:
    """See the tests of restarts; here only that the others keep their order around it."""
    store, sink = MemoryStore(), ListSink()
    store.appends = [UnavailableError("the disk is full")] * ALWAYS
    items: Any = [*records(events_of(1)), Restarted(Position(None, 4)), *records(events_of(2), first=5)]
    report = Bridge(ListSource(items), [sink], journal=store, close_timeout=0.5, retry=QUICK).run()
    assert (sink.items, report.journal) == (events_of(1, 2), JournalCounters(not_durable=8))
