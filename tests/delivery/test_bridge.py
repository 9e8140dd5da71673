"""From a source to its sinks: what is delivered, what is acknowledged, and what happens at the end."""

from __future__ import annotations

import itertools
import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from constellation_otel.delivery import (
    DeadLetters,
    Position,
    Record,
    Rejection,
    Restarted,
    Revoked,
    SourceItem,
    Unreadable,
)
from constellation_otel.delivery.bridge import Bridge, BridgeReport, _place, sink_names
from constellation_otel.delivery.sender import LaneCounters
from constellation_otel.errors import (
    ConfigurationError,
    GoneError,
    JournalError,
    MisconfiguredError,
    SourceError,
    UnavailableError,
)
from constellation_otel.events import ExecutionStarted, ModuleStarted
from constellation_otel.transports.journal import Journal
from deliveries import MS, T0, ListSink, ListSource, execution, records
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back is tried again soon."""
    monkeypatch.setattr("constellation_otel.delivery.sender.Backoff.__init__.__defaults__", (0.02, 0.05, lambda: 1.0))


def events_of(*numbers: int) -> list[Any]:
    return [event for number in numbers for event in execution(number)]


def spans(sink: ListSink) -> list[str]:
    return [span.name for span in sink.items]


@contextmanager
def running(bridge: Bridge) -> Iterator[list[BridgeReport]]:
    """A bridge in a thread of its own, which is stopped at the end; then its report is in the list."""
    reports: list[BridgeReport] = []
    thread = threading.Thread(target=lambda: reports.append(bridge.run()))
    thread.start()
    try:
        yield reports
    finally:
        bridge.stop()
        thread.join(DEADLINE)
        assert not thread.is_alive()


class Gate:
    """A fault of a sink that is away until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __call__(self, items: object) -> Exception | None:
        return None if self.opened.is_set() else UnavailableError("away")


def away(gate: Gate, **options: Any) -> ListSink:
    return ListSink(*[gate] * 100_000, **options)


def test_any_source_meets_any_sinks_and_is_told_what_all_of_them_have() -> None:
    source = ListSource(records(events_of(1)), records(events_of(2), first=4))
    events, traces = ListSink(), ListSink(takes="spans", name="otlp")
    report = Bridge(source, [events, traces]).run()
    assert events.items == events_of(1, 2)
    assert spans(traces) == ["trim", "dag-1", "trim", "dag-2"]
    assert sorted(source.acknowledged) == [Position(None, number) for number in range(8)]
    assert (source.closed.is_set(), events.closed, traces.closed) == (True, 1, 1)
    assert report == BridgeReport(
        source="list://", events=8, unreadable=0, dropped=0,
        sinks={
            "list": LaneCounters(8, 8, 0, 0, 0, 0, 8, 0, 0, 0, 0),
            "otlp": LaneCounters(8, 8, 0, 0, 0, 0, 4, 0, 0, 0, 0),
        },
        executions=2, spans=4, open=0, late=0, duplicate=0, abandoned=0, corrected=0, lost=0, is_delivered=True,
    )  # fmt: skip
    assert (report.rejected, report.evicted) == (0, 0)


def test_a_bridge_without_a_sink_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one sink"):
        Bridge(ListSource(), [])


def test_sinks_are_known_by_their_kind_and_number() -> None:
    sinks = [ListSink(name=name) for name in ("otlp", "kafka", "otlp", "otlp")]
    assert sink_names(sinks) == ["otlp", "kafka", "otlp-2", "otlp-3"]
    assert sink_names([ListSink(name=name) for name in ("a", "a", "a-2")]) == ["a", "a-2", "a-2-2"]


def test_one_sink_that_is_away_stops_no_other_and_the_source_is_not_told() -> None:
    gate = Gate()
    source = ListSource(records(events_of(1)), ends=False)
    stuck, fine = away(gate, name="stuck"), ListSink(name="fine")
    bridge = Bridge(source, [stuck, fine])
    with running(bridge):
        eventually(lambda: len(fine.items) == 4, "the other sink has everything")
        eventually(lambda: bridge.troubles == {"stuck": "away"}, "the trouble is told")
        assert source.acknowledged == []
        assert not bridge.report.is_delivered
        gate.opened.set()
        eventually(lambda: len(source.acknowledged) == 4, "the source is told")
        eventually(lambda: bridge.troubles == {}, "the trouble is over")
        assert bridge.report.is_delivered


def test_an_execution_is_acknowledged_as_a_whole_and_not_before_its_end() -> None:
    source = ListSource(records([*events_of(1)[:3], *events_of(2)]), ends=False)
    sink = ListSink(takes="spans")
    bridge = Bridge(source, [sink])
    with running(bridge) as reports:
        eventually(lambda: len(source.acknowledged) == 4, "the one that has ended")
        assert (bridge.open_executions, bridge.open_modules) == (1, 0)
        assert bridge.idle_seconds < DEADLINE
    assert [position.offset for position in source.acknowledged] == [3, 4, 5, 6]
    assert spans(sink) == ["trim", "trim", "dag-2"]
    assert (reports[0].open, reports[0].abandoned) == (1, 0)


def test_what_is_open_when_a_bridge_is_stopped_leaves_where_nobody_reads_it_again() -> None:
    source = ListSource(records(events_of(1)[:1]), ends=False, is_durable=False)
    sink = ListSink(takes="spans")
    bridge = Bridge(source, [sink])
    with running(bridge) as reports:
        eventually(lambda: bridge.open_executions, "it is open")
    assert [span.attributes["constellation.abandoned.reason"] for span in sink.items] == ["closed"]
    assert (source.acknowledged, reports[0].abandoned) == ([], 1)


@pytest.mark.parametrize(("abandon_open", "names", "is_open"), [(True, ["dag-1"], 0), (False, [], 1)])
def test_what_is_open_when_a_source_has_ended_leaves_where_that_was_asked_for(
    abandon_open: bool, names: list[str], is_open: int
) -> None:
    sink = ListSink(takes="spans")
    report = Bridge(ListSource(records(events_of(1)[:1])), [sink], abandon_open=abandon_open, is_replay=True).run()
    assert (spans(sink), report.open) == (names, is_open)


def test_what_nobody_reads_again_and_could_not_be_delivered_is_lost_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = ListSource(records(events_of(1)), ends=False, is_durable=False)
    bridge = Bridge(source, [away(Gate())], close_timeout=0.1)
    with running(bridge) as reports:
        eventually(lambda: bridge.troubles, "it is held")
    assert (reports[0].lost, reports[0].is_delivered) == (4, False)
    assert "4 events could not be delivered in time, and are lost: nobody reads them again" in caplog.text


def test_a_sink_that_is_gone_for_good_ends_the_bridge() -> None:
    source = ListSource(records(events_of(1)), ends=False)
    gone, other = ListSink(*[GoneError("nobody reads it")] * 100), ListSink()
    report = Bridge(source, [gone, other]).run()
    assert (report.is_delivered, other.items) == (False, events_of(1))


def test_a_source_that_does_not_keep_the_order_is_given_time_to_settle() -> None:
    first, *others = events_of(1)
    source = ListSource(records([*others, first]), is_ordered=False)
    sink = ListSink(takes="spans")
    Bridge(source, [sink]).run()
    assert spans(sink) == ["trim", "dag-1"]
    assert "constellation.missing" not in sink.items[1].attributes
    at_once = ListSink(takes="spans")
    Bridge(ListSource(records([*others, first]), is_ordered=False), [at_once], settle=0).run()
    assert at_once.items[-1].attributes["constellation.missing"] == ("start",)


def test_what_cannot_be_read_is_counted_logged_buried_and_acknowledged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl")
    junk = Unreadable(b"junk", "not an event", Position(("topic", 3), 7))
    source = ListSource([*records(events_of(1)[:1]), junk, *records(events_of(1)[1:], first=1)])
    sink = ListSink()
    report = Bridge(source, [sink], dead_letters=letters).run()
    assert (sink.items, report.unreadable, report.events) == (events_of(1), 1, 4)
    assert Position(("topic", 3), 7) in source.acknowledged
    assert "list://, topic/3, record 7 cannot be read: not an event" in caplog.text
    assert "not an event" in (tmp_path / "dead.jsonl").read_text()
    volatile = ListSource([Unreadable(b"junk", "not an event", Position(None, 7))], is_durable=False)
    assert Bridge(volatile, [ListSink()]).run().unreadable == 1
    assert volatile.acknowledged == []


def test_the_words_of_unreadable_records_do_not_decide_how_much_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    junk = [
        Unreadable(b"junk", f"not an event: eventType '{number}'", Position(None, number)) for number in range(5000)
    ]
    report = Bridge(ListSource(junk), [ListSink()]).run()
    assert report.unreadable == 5000
    assert [record.levelname for record in caplog.records].count("WARNING") < 5


def test_a_source_that_cannot_be_read_now_is_read_again(caplog: pytest.LogCaptureFixture) -> None:
    source = ListSource(records(events_of(1)))
    source.faults = [UnavailableError("no broker")] * 3
    sink = ListSink()
    bridge = Bridge(source, [sink])
    bridge.run()
    assert sink.items == events_of(1)
    assert bridge.troubles == {}
    assert "list:// is not read: no broker; it is tried again in" in caplog.text


def test_a_source_that_needs_mending_is_an_alarm_for_a_bridge_and_the_end_of_a_replay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong = MisconfiguredError("the password is wrong")
    source = ListSource(records(events_of(1)))
    source.faults = [wrong]
    Bridge(source, [ListSink()]).run()
    assert [(record.levelname) for record in caplog.records] == ["ERROR"]
    source = ListSource(records(events_of(1)))
    source.faults = [wrong]
    with pytest.raises(SourceError, match="the password is wrong"):
        Bridge(source, [ListSink()], is_replay=True).run()


def test_a_replay_does_not_wait_for_a_source_for_ever() -> None:
    source = ListSource(records(events_of(1)))
    source.faults = [UnavailableError("no broker")] * 1_000
    with pytest.raises(SourceError, match="no broker"):
        Bridge(source, [ListSink()], is_replay=True, close_timeout=0.1).run()


def test_a_position_is_told_as_its_source_counts() -> None:
    assert [_place(Position(origin, 7)) for origin in (None, ("topic", 3), "part")] == [
        "record 7", "topic/3, record 7", "part, record 7",
    ]  # fmt: skip


def test_the_trouble_of_a_source_is_told() -> None:
    source = ListSource(ends=False)
    source.faults = [UnavailableError("no broker", retry_after=60)]
    bridge = Bridge(source, [ListSink()])
    with running(bridge):
        eventually(lambda: bridge.troubles == {"list://": "no broker"}, "the trouble is told")


def test_what_a_source_says_of_itself_is_told_as_well() -> None:
    class Lossy(ListSource):
        trouble = "no connection"
        dropped = 3

    bridge = Bridge(Lossy(records(events_of(1))), [ListSink()])
    assert bridge.troubles == {"list://": "no connection"}
    assert bridge.run().dropped == 3


def test_a_long_pause_is_not_taken_for_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("constellation_otel.delivery.bridge._SLICE", 0.01)
    source = ListSource(ends=False)
    source.faults = [UnavailableError("no broker", retry_after=3_600)]
    sink = away(Gate())
    bridge = Bridge(source, [sink], close_timeout=0.2)
    with running(bridge):
        eventually(lambda: bridge.troubles, "it pauses")
        before = bridge._looped
        eventually(lambda: bridge._looped > before, "it shows that it lives")


def test_a_long_end_is_not_taken_for_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("constellation_otel.delivery.bridge._SLICE", 0.01)
    source = ListSource(records(events_of(1)), ends=False, is_durable=False)
    bridge = Bridge(source, [away(Gate())], close_timeout=0.3)
    with running(bridge):
        eventually(lambda: bridge.troubles, "it waits")
        bridge.stop()
        before = bridge._looped
        eventually(lambda: bridge._looped > before, "it shows that it lives")


class Telemetry:
    """What a bridge asks of the metrics and logs beside its spans."""

    def __init__(self, *, with_events: bool) -> None:
        self.with_events = with_events
        self.observed: list[str] = []
        self.counted: list[Any] = []

    def observe(self, span: Any, context: object) -> None:
        self.observed.append(span.name)

    def count(self, before: object, now: object) -> None:
        self.counted.append(now)


@pytest.mark.parametrize("with_events", [True, False])
def test_metrics_and_logs_see_every_span_once_and_the_counters(with_events: bool) -> None:
    telemetry: Any = Telemetry(with_events=with_events)
    sinks = [ListSink(takes="spans"), ListSink(takes="spans")]
    late = records(execution(1)[:1], first=4)
    Bridge(ListSource(records(execution(1, fails=True)), late), sinks, telemetry=telemetry).run()
    assert telemetry.observed == ["trim", "dag-1"]
    assert telemetry.counted[-1].late == 1
    assert [bool(sink.items[0].events) for sink in sinks] == [with_events, with_events]


def test_a_source_that_can_never_be_read_ends_the_bridge_and_what_was_read_is_delivered() -> None:
    source = ListSource(records(events_of(1)))
    sink = ListSink()

    class Broken(ListSource):
        def read(self, timeout: float) -> Any:
            items = source.read(timeout)
            if not items:
                message = "no such table"
                raise SourceError(message)
            return items

    with pytest.raises(SourceError, match="no such table"):
        Bridge(Broken(), [sink]).run()
    assert (sink.items, sink.closed) == (events_of(1), 1)


def test_a_source_that_cannot_note_down_what_is_safe_is_logged_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    source = ListSource(records(events_of(1)), records(events_of(2), first=4))
    source.acknowledge_faults = [UnavailableError("no coordinator")]
    sink = ListSink()
    report = Bridge(source, [sink]).run()
    assert (report.is_delivered, report.failed_acknowledgements) == (True, 1)
    assert "could not be acknowledged: no coordinator; it is tried again" in caplog.text
    assert len(source.acknowledged) == 8


def test_acknowledgements_that_fail_are_a_trouble_until_they_are_repeated_with_success() -> None:
    source = ListSource(records(events_of(1)), ends=False)
    source.acknowledge_faults = [UnavailableError("no coordinator")] * 1_000
    bridge = Bridge(source, [ListSink()])
    with running(bridge):
        troubles = {"list://": "what is safe cannot be acknowledged: no coordinator"}
        eventually(lambda: bridge.troubles == troubles, "the source's trouble")
        eventually(lambda: bridge.report.failed_acknowledgements > 1, "it is tried again, though nothing new comes")
        source.acknowledge_faults.clear()
        eventually(lambda: not bridge.troubles, "it works again")
        assert sorted(source.acknowledged) == [Position(None, number) for number in range(4)]


def test_a_bridge_that_ends_does_not_wait_long_for_its_last_acknowledgements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("constellation_otel.delivery.bridge._LAST_WAIT", 0.1)
    source = ListSource(records(events_of(1)))
    source.acknowledge_faults = [UnavailableError("no coordinator")] * 1_000
    began = time.monotonic()
    report = Bridge(source, [ListSink()]).run()
    assert (report.is_delivered, source.acknowledged, source.closed.is_set()) == (True, [], True)
    assert report.failed_acknowledgements > 1
    assert time.monotonic() - began < DEADLINE / 2


@pytest.mark.parametrize("error", [UnavailableError("it is locked"), RuntimeError("it is locked")])
def test_acknowledgements_that_the_journal_does_not_take_are_a_trouble_of_the_journal(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_broken = threading.Event()
    is_broken.set()
    journal = Journal(tmp_path / "events.db", sinks=["list"])
    acknowledge = journal.acknowledge

    def acknowledge_unless_broken(sink: str, positions: Any) -> None:
        if is_broken.is_set():
            raise error
        acknowledge(sink, positions)

    monkeypatch.setattr(journal, "acknowledge", acknowledge_unless_broken)
    monkeypatch.setattr("constellation_otel.delivery.sender._ACKNOWLEDGE_AGAIN", 0.02)
    bridge = Bridge(ListSource(records(events_of(1)), ends=False), [ListSink()], journal=journal)
    with running(bridge) as reports:
        troubles = {"journal": "what is safe cannot be acknowledged: it is locked (by list)"}
        eventually(lambda: bridge.troubles == troubles, "the journal's trouble")
        assert bridge.report.sinks["list"].failed_acknowledgements > 0
        is_broken.clear()
        eventually(lambda: not bridge.troubles, "it works again")
    assert reports[0].is_delivered


def test_a_source_that_loses_events_is_warned_of_once_and_what_is_incomplete_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    start, module_start, _, end = events_of(1)
    source = ListSource(records([start, module_start, end, *events_of(2)[1:]]))
    report = Bridge(source, [ListSink(takes="spans"), ListSink(takes="spans")]).run()
    assert (report.incomplete_executions, report.incomplete_modules, report.events) == (1, 1, 6)
    lost = f"the end of module 'trim' of execution {UUID(int=1)} of DAG 'dag-1' never came"
    assert [entry.getMessage() for entry in caplog.records] == [f"list:// loses events: {lost}"]


def test_a_position_that_cannot_be_acknowledged_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(ListSource):
        def acknowledge(self, positions: Any) -> None:
            if Position(None, 2) in positions:
                message = "a defect"
                raise ZeroDivisionError(message)
            super().acknowledge(positions)

    source = Picky(records(events_of(1)), ends=False)
    bridge = Bridge(source, [ListSink()])
    with running(bridge):
        eventually(lambda: len(source.acknowledged) == 3, "the others")
        assert (bridge.troubles, bridge.report.failed_acknowledgements) == ({}, 1)
    assert "list://: the acknowledgement of some records raised a defect; not acknowledged: record 2 (1 records)" in (
        caplog.text
    )


def test_what_cannot_be_acknowledged_is_remembered_within_bounds_and_not_of_a_part_that_was_taken_away() -> None:
    parts = [records(events_of(number), first=4 * number, origin="ab"[number % 2]) for number in range(20)]
    source = ListSource(*parts, ends=False)
    source.acknowledge_faults = [UnavailableError("no coordinator")] * 1_000
    bridge = Bridge(source, [ListSink()], max_held=4)
    with running(bridge):
        eventually(lambda: [it.offset for it in bridge._owed] == [*range(16, 80)], "the newest of 80")
        source.put([Revoked("a")])
        eventually(lambda: {it.origin for it in bridge._owed} == {"b"}, "no longer ours")
        source.acknowledge_faults.clear()
        eventually(lambda: not bridge.troubles, "it works again")
    assert [it.offset for it in source.acknowledged] == [it for it in range(16, 80) if it // 4 % 2]


def test_a_durable_source_is_read_no_faster_than_its_sinks_take_and_kept_alive_meanwhile() -> None:
    gate, asked = Gate(), threading.Event()
    source = ListSource(*[records(events_of(number), first=number * 4) for number in range(20)], keep_alive=asked.set)
    sink = away(gate)
    bridge = Bridge(source, [sink], max_held=4)
    with running(bridge) as reports:
        assert asked.wait(DEADLINE)
        assert bridge.report.events <= 16
        gate.opened.set()
        eventually(lambda: len(sink.items) == 80, "everything arrives")
    assert reports[0].dropped == 0


def test_from_a_source_that_is_not_durable_the_newest_are_dropped_for_the_sink_that_is_full() -> None:
    gate = Gate()
    batches = [records(events_of(number), first=number * 4) for number in range(20)]
    source = ListSource(*batches, ends=False, is_durable=False)
    stuck, fine = away(gate, name="stuck"), ListSink(name="fine")
    bridge = Bridge(source, [stuck, fine], max_held=16)
    with running(bridge) as reports:
        eventually(lambda: bridge.report.events == 80, "all is read")
        gate.opened.set()
        eventually(lambda: bridge.troubles == {}, "the sink is back")
    report = reports[0]
    assert report.dropped >= 80 - 2 * 16 - 4
    assert stuck.items == events_of(*range(20))[: len(stuck.items)] or len(stuck.items) < 80
    assert report.sinks["stuck"].delivered + report.dropped >= 80


def test_a_source_that_is_not_durable_can_be_waited_for_and_what_is_left_at_a_stop_is_counted() -> None:
    gate = Gate()
    batches = [records(events_of(number), first=number * 4) for number in range(20)]
    source = ListSource(*batches, is_durable=False)
    sink = away(gate)
    bridge = Bridge(source, [sink], max_held=4, on_full="wait", close_timeout=0.2)
    with running(bridge) as reports:
        eventually(lambda: bridge.report.events >= 8, "it waits")
    (report,) = reports
    assert report.events == report.dropped + report.sinks["list"].held
    assert not report.is_delivered


def test_what_is_taken_away_is_dropped_without_export_and_the_next_owner_gives_it_whole() -> None:
    mine, other = records(events_of(1)[:3], origin="a"), records(events_of(2)[:3], origin="b")
    whole = records(events_of(1), origin="a", first=100)
    source = ListSource([*mine, *other, Revoked("a")], [*whole, *records(events_of(2)[3:], origin="b", first=3)])
    traces, events = ListSink(takes="spans"), ListSink()
    report = Bridge(source, [traces, events]).run()
    assert sorted(spans(traces)) == ["dag-1", "dag-2", "trim", "trim", "trim"]
    assert report.sinks["list"].revoked == 3
    assert [it for it in source.acknowledged if it.origin == "a" and it.offset < 100] == []
    assert sorted(it.offset for it in source.acknowledged if it.origin == "b") == [0, 1, 2, 3]


def test_a_batch_that_is_larger_than_a_lane_is_given_to_it_in_parts() -> None:
    source = ListSource(records(events_of(*range(50))))
    sink = ListSink()
    report = Bridge(source, [sink], max_held=16).run()
    assert (len(sink.items), report.dropped, len(source.acknowledged)) == (200, 0, 200)


def test_what_a_durable_source_drops_by_request_is_not_waited_for() -> None:
    gate = Gate()
    source = ListSource(*[records(events_of(number), first=number * 4) for number in range(20)], ends=False)
    sink = away(gate)
    bridge = Bridge(source, [sink], max_held=4, on_full="drop")
    with running(bridge):
        eventually(lambda: bridge.report.events == 80, "all is read")
        gate.opened.set()
        eventually(lambda: len(source.acknowledged) == 80, "all is acknowledged: delivered, or dropped for good")
        assert bridge.report.dropped > 0


def test_one_sinks_two_deliveries_are_not_two_sinks() -> None:
    """Read, taken away, and read again: the first sink may have it twice, the second not at all."""
    gate = Gate()
    mine = records(events_of(1), origin="a")
    source = ListSource([*mine, Revoked("a"), *mine], ends=False)
    first, second = ListSink(), away(gate)
    bridge = Bridge(source, [first, second])
    with running(bridge):
        eventually(lambda: len(first.items) == 8, "the first has it twice")
        assert source.acknowledged == []
        gate.opened.set()
        eventually(lambda: len(source.acknowledged) == 4, "the second has it, too")


def test_an_outage_of_one_sink_does_not_abandon_what_another_one_holds_open() -> None:
    gate = Gate()
    pairs = [events_of(number) for number in range(40)]
    open_ones = [event for number in range(1_000, 1_010) for event in execution(number)]
    begun = records([event for event in open_ones if isinstance(event, ExecutionStarted)])
    rest = records([event for event in open_ones if not isinstance(event, ExecutionStarted)], first=1_000)
    batches = [records(events, first=100 + 4 * number) for number, events in enumerate(pairs)]
    source = ListSource(begun, *batches, rest)
    spans_sink, stuck = ListSink(takes="spans"), away(gate, name="stuck")
    bridge = Bridge(source, [spans_sink, stuck], idle_timeout=0.4, max_held=8)
    with running(bridge) as reports:
        eventually(lambda: "stuck" in bridge.troubles and bridge._is_waiting, "the bridge waits for the one")
        threading.Event().wait(0.8)
        gate.opened.set()
        eventually(lambda: bridge.report.executions == 50, "everything leaves")
    assert (reports[0].abandoned, reports[0].late) == (0, 0)


def test_a_source_of_bare_events_is_told_what_is_wrong() -> None:
    bare: Any = events_of(1)[:1]
    source = ListSource(bare)
    sink = ListSink()
    message = r"gave ExecutionStarted\(.*\), which is no Record, Unreadable, Restarted or Revoked"
    with pytest.raises(TypeError, match=message):
        Bridge(source, [sink]).run()
    assert (source.closed.is_set(), sink.closed) == (True, 1)


def test_a_source_that_raises_when_it_is_told_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    source = ListSource(records(events_of(1)))
    source.acknowledge_faults = [RuntimeError("a defect")]
    sink = ListSink()
    report = Bridge(source, [sink]).run()
    assert (report.is_delivered, report.failed_acknowledgements) == (True, 1)
    assert (source.closed.is_set(), sink.closed) == (True, 1)
    assert "a defect" in caplog.text


def test_a_sink_that_never_got_anything_is_closed() -> None:
    sink = ListSink()
    Bridge(ListSource(), [sink]).run()
    assert sink.closed == 1


def test_a_bridge_that_waits_for_a_source_it_will_read_again_lets_no_time_pass() -> None:
    source = ListSource(records(events_of(1)[:1]), ends=False)
    bridge = Bridge(source, [ListSink(takes="spans")], idle_timeout=0.2)
    with running(bridge) as reports:
        eventually(lambda: bridge.open_executions, "it is open")
        source.faults = [UnavailableError("no broker", retry_after=0.1)] * 100
        eventually(lambda: bridge.troubles, "the source is away")
        threading.Event().wait(0.6)
        assert bridge.report.abandoned == 0
    assert reports[0].open == 1


def test_a_replay_whose_last_traces_are_slow_to_send_waits_while_there_is_progress() -> None:
    wait = threading.Event().wait
    sink = ListSink(*[lambda _: wait(0.05)] * 40, takes="spans", max_batch=1)
    source = ListSource(records(events_of(*range(10))), is_ordered=False)
    report = Bridge(source, [sink], is_replay=True, close_timeout=0.3).run()
    assert (len(sink.items), report.is_delivered) == (20, True)


@pytest.mark.parametrize("last", [records(events_of(5)), [Revoked("a")]])
def test_a_bridge_that_is_stopped_waits_for_no_room_and_what_it_leaves_is_not_acknowledged(last: Any) -> None:
    many = records(events_of(*range(4)))
    asked = threading.Event()
    source = ListSource(many[:8], many[8:], last, ends=False, keep_alive=asked.set)
    bridge = Bridge(source, [away(Gate())], max_held=8, close_timeout=0.1)
    with running(bridge):
        assert asked.wait(DEADLINE)
    assert source.acknowledged == []


@pytest.mark.parametrize("is_durable", [True, False])
def test_what_is_in_a_journal_is_nobody_elses(tmp_path: Path, is_durable: bool) -> None:
    source = ListSource(
        [*records(events_of(1)[:2], origin="a"), Revoked("a")],
        records(events_of(1)[2:], origin="a"),
        is_durable=is_durable,
    )
    sink = ListSink(takes="spans")
    Bridge(source, [sink], journal=Journal(tmp_path / "j.db", sinks=["list"])).run()
    assert spans(sink) == ["trim", "dag-1"]


def test_a_replay_goes_by_the_time_of_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    days = [event for number in range(200) for event in execution(number, start_ns=T0 + number * 86_400_000 * MS)]
    lost = execution(1_000)[:1]
    sink = ListSink(takes="spans")
    report = Bridge(ListSource(records([*lost, *days])), [sink], is_replay=True).run()
    assert (report.executions, report.abandoned, report.open) == (201, 1, 0)


def test_the_sampler_decides_for_whole_traces_and_what_it_drops_is_delivered() -> None:
    sink = ListSink(takes="spans")
    source = ListSource(records(events_of(1)))
    report = Bridge(source, [sink, ListSink(takes="spans")], sampler=ALWAYS_OFF).run()
    assert sink.items == []
    assert report.sinks["list"].delivered == 4
    assert len(source.acknowledged) == 4


def test_a_replay_waits_for_a_slow_sink_as_long_as_there_is_progress() -> None:
    wait = threading.Event().wait
    sink = ListSink(*[lambda _: wait(0.05)] * 40, max_batch=1)
    report = Bridge(ListSource(records(events_of(*range(5)))), [sink], close_timeout=0.5).run()
    assert (len(sink.items), report.is_delivered) == (20, True)


def test_a_replay_does_not_wait_for_ever_for_a_sink_that_is_away() -> None:
    sink = away(Gate())
    report = Bridge(ListSource(records(events_of(1))), [sink], close_timeout=0.3).run()
    assert (report.is_delivered, report.sinks["list"].held) == (False, 4)


def test_a_stop_ends_a_replay_that_waits_for_a_sink() -> None:
    bridge = Bridge(ListSource(records(events_of(1))), [away(Gate())], close_timeout=0.3)
    with running(bridge):
        eventually(lambda: bridge.troubles, "it waits")


# --- with a journal ------------------------------------------------------------------------------------------------


def test_with_a_journal_the_source_is_told_at_once_and_every_sink_gets_everything(tmp_path: Path) -> None:
    gate = Gate()
    source = ListSource(records(events_of(1)), ends=False)
    sinks = [away(gate, name="stuck"), ListSink(name="fine"), ListSink(takes="spans", name="otlp")]
    bridge = Bridge(source, sinks, journal=Journal(tmp_path / "j.db", sinks=sink_names(sinks)))
    with running(bridge) as reports:
        eventually(lambda: len(source.acknowledged) == 4, "the source is told")
        eventually(lambda: len(sinks[1].items) == 4 and spans(sinks[2]) == ["trim", "dag-1"], "the others have it")
        assert sinks[0].items == []
        gate.opened.set()
        eventually(lambda: sinks[0].items == events_of(1), "the one that was away has it")
    assert reports[0].is_delivered


def test_what_a_bridge_could_not_deliver_the_next_one_does_from_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    first = Bridge(
        ListSource(records(events_of(1)), is_durable=False),
        [away(Gate())],
        journal=Journal(path, sinks=["list"]),
        close_timeout=0.2,
    )
    assert not first.run().is_delivered
    sink = ListSink()
    report = Bridge(ListSource(records(events_of(2))), [sink], journal=Journal(path, sinks=["list"])).run()
    assert (sink.items, report.is_delivered) == (events_of(1, 2), True)


def test_a_bridge_that_is_stopped_with_more_in_the_journal_than_it_could_send_says_so(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    journal = Journal(path, sinks=["list"])
    journal.append(events_of(*range(500)))
    journal.close()
    wait = threading.Event().wait
    sink = ListSink(*[lambda _: wait(0.2)] * 100)
    journal = Journal(path, sinks=["list"])
    bridge = Bridge(ListSource(ends=False), [sink], journal=journal, max_held=256, close_timeout=0.1)
    with running(bridge) as reports:
        eventually(lambda: sink.calls, "it has begun")
    assert not reports[0].is_delivered
    sink = ListSink()
    journal = Journal(path, sinks=["list"])
    bridge = Bridge(ListSource(ends=False), [sink], journal=journal, max_held=256)
    with running(bridge) as reports:
        eventually(lambda: sink.calls, "it has begun")
    left = Journal(path, sinks=["list"])
    assert (reports[0].is_delivered, left.held("list")) == (True, 0)
    left.close()


def test_an_event_that_a_journal_cannot_keep_is_left_out_alone(tmp_path: Path) -> None:
    odd = ModuleStarted(UUID(int=1), UUID(int=2), 7, T0)  # type: ignore[arg-type]
    good = records(events_of(1))
    source = ListSource([good[0], Record(odd, Position(None, 9)), *good[1:]])
    sink = ListSink()
    report = Bridge(source, [sink], journal=Journal(tmp_path / "j.db", sinks=["list"])).run()
    assert (sink.items, report.unreadable, len(source.acknowledged)) == (events_of(1), 1, 5)


def test_an_open_execution_stays_in_the_journal_and_is_whole_when_its_end_comes_to_the_next_bridge(
    tmp_path: Path,
) -> None:
    path = tmp_path / "j.db"
    begun = ListSource(records(events_of(1)[:3]), ends=False, is_durable=False)
    first = Bridge(begun, [ListSink(takes="spans")], journal=Journal(path, sinks=["list"]))
    with running(first):
        eventually(lambda: first.open_executions, "it is open")
    sink = ListSink(takes="spans")
    rest = ListSource(records(events_of(1)[3:]), is_durable=False)
    assert Bridge(rest, [sink], journal=Journal(path, sinks=["list"])).run().is_delivered
    assert spans(sink) == ["trim", "dag-1"]
    left = Journal(path, sinks=["list"])
    assert left.held("list") == 0
    left.close()


class FullJournal:
    """A journal that has no room."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.asked = 0
        self.room = 0

    def append(self, events: Any) -> int:
        self.asked += 1
        taken = min(self.room, len(events))
        self.room -= taken
        self.kept += events[:taken]
        return taken

    def read(self, sink: str, after: int, limit: int) -> list[Any]:
        positions = [Position(None, number) for number in range(len(self.kept))]
        found = [Record(event, at) if event else Restarted(at) for event, at in zip(self.kept, positions, strict=True)]
        return found[after + 1 :][:limit]

    def acknowledge(self, sink: str, positions: Any) -> None:
        """Everything is kept, for the test to look at."""

    def finish_by(self, deadline: float) -> None:
        """It never waits."""

    def held(self, sink: str) -> int:
        return len(self.kept)

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def taken_away(path: Path) -> Iterator[None]:
    """A journal's file that is elsewhere, so that nothing can be appended; it is put back at the end."""
    elsewhere = path.rename(path.with_name("elsewhere"))
    try:
        yield
    finally:
        elsewhere.rename(path)


@pytest.mark.parametrize("is_durable", [True, False])
def test_what_a_journal_cannot_take_goes_to_the_sinks_from_memory(
    tmp_path: Path, is_durable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """In order with what the journal has; a durable source is told when the sinks have it."""
    path = tmp_path / "j.db"
    source = ListSource(records(events_of(1)[:2]), ends=False, is_durable=is_durable)
    sinks = [ListSink(), ListSink(takes="spans", name="otlp")]
    bridge = Bridge(source, sinks, journal=Journal(path, sinks=sink_names(sinks)))
    numbers = iter(range(1_000))

    def is_written_again() -> bool:
        source.put(records(events_of(2)[:1], first=100 + next(numbers)))
        return bridge.troubles == {}

    with running(bridge) as reports:
        eventually(lambda: len(sinks[0].items) == 2, "they go through the journal")
        with taken_away(path):
            source.put(records(events_of(1)[2:], first=2))
            eventually(lambda: spans(sinks[1]) == ["trim", "dag-1"], "the rest comes from memory")
            eventually(lambda: sinks[0].items == events_of(1), "also to the other sink")
            assert "was moved, deleted or replaced" in bridge.troubles["journal"]
            eventually(lambda: len(source.acknowledged) == (4 if is_durable else 0), "the source is told")
            assert bridge.report.not_durable == 2
        eventually(is_written_again, "the journal is written again")
        source.put(records(events_of(2)[1:], first=50))
        eventually(lambda: spans(sinks[1]) == ["trim", "dag-1", "trim", "dag-2"], "all is as ever")
    assert (reports[0].is_delivered, reports[0].dropped, reports[0].lost) == (True, 0, 0)
    assert "2 events wait for it, or go to sinks that take them, not durable" in caplog.text
    left = Journal(path, sinks=sink_names(sinks))
    assert (left.held("list"), left.held("otlp")) == (0, 0)
    left.close()


@pytest.mark.parametrize("is_durable", [True, False])
def test_where_no_sink_takes_events_a_journal_that_cannot_be_written_is_waited_for(
    tmp_path: Path, is_durable: bool
) -> None:
    path = tmp_path / "j.db"
    source = ListSource(records(events_of(1)), ends=False, is_durable=is_durable)
    bridge = Bridge(source, [away(Gate())], journal=Journal(path, sinks=["list"]), close_timeout=0.1)
    with running(bridge):
        eventually(lambda: "list" in bridge.troubles, "the sink is away")
        with taken_away(path):
            source.put(records(events_of(2), first=4))
            eventually(lambda: "journal" in bridge.troubles, "the journal is away, too")
        eventually(lambda: "journal" not in bridge.troubles, "it is written after all")
        assert bridge.report.not_durable == 0
    left = Journal(path, sinks=["list"])
    assert left.held("list") == 8
    left.close()


@pytest.mark.parametrize("is_durable", [True, False])
def test_a_bridge_that_is_stopped_does_not_wait_for_a_disk_that_hangs(
    monkeypatch: pytest.MonkeyPatch, is_durable: bool
) -> None:
    """What it could not write goes to the sinks, if only at the end."""
    monkeypatch.setattr("constellation_otel.delivery.bridge._HANGS", 0.3)
    monkeypatch.setattr("constellation_otel.delivery.bridge._WAIT", 0.01)
    hangs, ends = threading.Event(), threading.Event()
    journal = FullJournal()

    def hang(events: object) -> int:
        hangs.set()
        assert ends.wait(DEADLINE)
        return 0

    monkeypatch.setattr(journal, "append", hang)
    sink = ListSink()
    source = ListSource(records(events_of(1)), ends=False, is_durable=is_durable)
    bridge = Bridge(source, [sink], journal=journal, close_timeout=0.5)
    try:
        with running(bridge) as reports:
            assert hangs.wait(DEADLINE)
            eventually(lambda: "a write has not returned" in bridge.troubles.get("journal", ""), "it is a trouble")
            start = time.monotonic()
            bridge.stop()
            eventually(lambda: reports, "it ends")
            assert time.monotonic() - start < 2.0
    finally:
        ends.set()
    assert len(sink.items) == 4
    assert (reports[0].lost, len(source.acknowledged)) == (0, 4 if is_durable else 0)
    assert reports[0].not_durable == 4


def test_where_no_thread_can_be_had_the_journal_is_written_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "bridge-journal":
            message = "can't start new thread"
            raise RuntimeError(message)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    journal, sink = FullJournal(), ListSink()
    journal.room = 4
    report = Bridge(ListSource(records(events_of(1))), [sink], journal=journal).run()
    assert (sink.items, report.not_durable, report.is_delivered) == (events_of(1), 0, True)


def test_what_a_journal_raises_ends_the_bridge() -> None:
    closed = FullJournal()

    def fail(events: object) -> int:
        message = "the journal is closed"
        raise JournalError(message)

    closed.append = fail  # type: ignore[method-assign]
    with pytest.raises(JournalError, match="the journal is closed"):
        Bridge(ListSource(records(events_of(1))), [ListSink()], journal=closed).run()


def test_a_journal_that_took_nothing_is_not_asked_again_at_every_batch() -> None:
    journal, sink = FullJournal(), ListSink()
    source = ListSource(records(events_of(1)), records(events_of(2), first=4), is_durable=False)
    report = Bridge(source, [sink], journal=journal).run()
    assert (journal.asked, sink.items) == (1, events_of(1, 2))
    assert (report.not_durable, report.is_delivered) == (8, True)


def test_where_no_sink_takes_events_a_full_journal_is_waited_for() -> None:
    journal = FullJournal()
    journal.room = 1
    source = ListSource(records(events_of(1)[:1]), ends=False, is_durable=False)
    bridge = Bridge(source, [away(Gate())], journal=journal, on_full="wait", close_timeout=0.1)
    with running(bridge) as reports:
        eventually(lambda: "list" in bridge.troubles, "the sink is away")
        source.put(records(events_of(1)[1:], first=1))
        eventually(lambda: journal.asked > 2, "it is asked again")
        journal.room = 1_000
        eventually(lambda: journal.kept == events_of(1), "it has room")
    assert (reports[0].not_durable, reports[0].dropped, reports[0].lost) == (0, 0, 0)


def test_where_no_sink_takes_events_and_nobody_waits_the_newest_are_dropped() -> None:
    journal = FullJournal()
    journal.room = 1
    source = ListSource(records(events_of(1)[:1]), ends=False, is_durable=False)
    bridge = Bridge(source, [away(Gate())], journal=journal, max_held=4, close_timeout=0.1)
    with running(bridge) as reports:
        eventually(lambda: "list" in bridge.troubles, "the sink is away")
        source.put(records(events_of(1, 2, 3), first=1))
        eventually(lambda: bridge.report.dropped, "there is no room in memory either")
    report = reports[0]
    assert (report.not_durable, report.dropped + report.lost) == (12, 12)
    assert report.lost > 0


@pytest.mark.parametrize(("is_durable", "lost", "acknowledged"), [(True, 0, 1), (False, 3, 0)])
def test_a_bridge_that_is_stopped_does_not_wait_for_a_full_journal(
    is_durable: bool, lost: int, acknowledged: int
) -> None:
    journal = FullJournal()
    journal.room = 1
    source = ListSource(records(events_of(1)[:1]), ends=False, is_durable=is_durable)
    bridge = Bridge(source, [away(Gate())], journal=journal, on_full="wait", close_timeout=0.1)
    with running(bridge) as reports:
        eventually(lambda: "list" in bridge.troubles, "the sink is away")
        source.put(records(events_of(1)[1:], first=1))
        eventually(lambda: journal.asked > 2, "it waits")
    assert (reports[0].lost, len(source.acknowledged)) == (lost, acknowledged)


@pytest.mark.parametrize("close_timeout", [math.nan, -1.0, 0.0])
def test_a_close_timeout_of_any_kind_ends(close_timeout: float) -> None:
    bridge = Bridge(ListSource(ends=False), [away(Gate())], close_timeout=close_timeout)
    with running(bridge) as reports:
        pass
    assert reports[0].is_delivered


def test_a_close_timeout_without_an_end_is_taken() -> None:
    sink = ListSink(UnavailableError("away"))
    report = Bridge(ListSource(records(events_of(1))), [sink], close_timeout=math.inf).run()
    assert (report.is_delivered, sink.items) == (True, events_of(1))


def test_a_rejected_event_is_in_the_report() -> None:
    report = Bridge(ListSource(records(events_of(1))), [ListSink([Rejection(0, 1, "no")])]).run()
    assert (report.rejected, report.is_delivered) == (1, True)


# What an engine that was restarted has left open


def reasons(sink: ListSink) -> dict[str, object]:
    """Why executions were abandoned, by the DAG's name, where they were."""
    reason = "constellation.abandoned.reason"
    return {span.name: span.attributes[reason] for span in sink.items if reason in span.attributes}


@pytest.mark.parametrize("is_durable", [True, False])
def test_what_was_open_when_an_engine_was_restarted_is_abandoned_in_every_sink(is_durable: bool) -> None:
    restarted = Restarted(Position(None, 5))
    before = records([*events_of(1)[:3], *events_of(2)[:1]])
    source = ListSource([*before, restarted, *records(events_of(3)[:1], first=6)], ends=False, is_durable=is_durable)
    sinks = [ListSink(takes="spans", name="one"), ListSink(takes="spans", name="two"), ListSink()]
    bridge = Bridge(source, sinks)
    with running(bridge):
        eventually(lambda: bridge.report.abandoned == 2, "two are abandoned")
        eventually(lambda: all(len(reasons(sink)) == 2 for sink in sinks[:2]), "in both sinks")
        assert bridge.open_executions == 1
        if is_durable:
            eventually(lambda: len(source.acknowledged) == 5, "they are acknowledged, and so is that")
    assert reasons(sinks[0]).items() >= {("dag-1", "engine_restarted"), ("dag-2", "engine_restarted")}
    assert len(source.acknowledged) == (5 if is_durable else 0)
    assert sinks[2].items == [*events_of(1)[:3], *events_of(2)[:1], *events_of(3)[:1]]


def test_a_lane_without_room_is_notified_of_a_restart_when_it_has_some_and_what_came_later_stays_open() -> None:
    gate = Gate()
    sink = away(gate, takes="spans")
    source = ListSource(
        records([*events_of(1), *events_of(2)[:1]]),
        *[records(events_of(number), first=4 * number) for number in range(3, 30)],
        ends=False,
        is_durable=False,
    )
    bridge = Bridge(source, [sink], max_held=6)
    numbers = itertools.count(30)

    def restart() -> bool:
        """Restarts behind ever more executions, for the lane takes some of what it has no room for now."""
        number = next(numbers)
        source.put([*records(events_of(number), first=4 * number), Restarted(Position(None, 4 * number))])
        return bool(bridge._unnotified)

    with running(bridge):
        eventually(lambda: bridge.report.dropped, "there is no room")
        eventually(restart, "a restart has found none")
        gate.opened.set()
        eventually(lambda: not bridge._unnotified, "there is room")
        eventually(lambda: "dag-2" in reasons(sink), "it is abandoned")
    assert reasons(sink)["dag-2"] == "engine_restarted"


def test_that_an_engine_was_restarted_survives_in_the_journal_until_what_was_open_is_safe(tmp_path: Path) -> None:
    """Across an outage of the sink and an end of the bridge; what came after it stays open."""
    path = tmp_path / "journal.db"
    items: list[SourceItem] = [
        *records(events_of(1)[:3]),
        Restarted(Position(None, 5)),
        *records(events_of(2)[:1], first=6),
    ]
    first = Bridge(
        ListSource(items, is_durable=False),
        [ListSink(*[UnavailableError("away")] * 10_000, takes="spans")],
        journal=Journal(path, sinks=["list"]),
        close_timeout=0.2,
    )
    assert not first.run().is_delivered
    sink = ListSink(takes="spans")
    source = ListSource(ends=False, is_durable=False)
    bridge = Bridge(source, [sink], journal=Journal(path, sinks=["list"]))
    with running(bridge):
        eventually(lambda: reasons(sink), "it is abandoned")
        eventually(lambda: bridge.open_executions == 1, "the other is open")
    assert reasons(sink) == {"dag-1": "engine_restarted"}
    left = Journal(path, sinks=["list"])
    assert [item.event for item in left.read("list", 0, 9) if isinstance(item, Record)] == events_of(2)[:1]
    assert left.held("list") == 1
    left.close()


def test_a_restart_that_found_no_room_in_the_journal_is_written_before_what_comes_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what the lanes had from memory before it is abandoned without the journal."""
    monkeypatch.setattr("constellation_otel.delivery.bridge._WAIT", 0.0)

    class LaterJournal(FullJournal):
        """It has room from the third time on that it is asked."""

        def append(self, events: Any) -> int:
            self.room = 9 if self.asked == 2 else 0
            return super().append(events)

    journal = LaterJournal()
    one, two = (records(events_of(number)[:1], first=number) for number in (1, 3))
    source = ListSource([*one, Restarted(Position(None, 2))], two, is_durable=False)
    sink = ListSink(takes="spans")
    report = Bridge(source, [sink], journal=journal).run()
    assert journal.kept == [None, two[0].event]
    assert reasons(sink) == {"dag-1": "engine_restarted"}
    assert (report.abandoned, report.dropped) == (1, 0)


class RaisingJournal(FullJournal):
    """A journal with a defect: it raises for the executions that are named, or for everything."""

    def __init__(self, *bad: int, breaks: bool = False) -> None:
        super().__init__()
        self.room = 100
        self.bad = {UUID(int=each) for each in bad}
        self.breaks = breaks

    def append(self, events: Any) -> int:
        if self.breaks or self.bad & {event.execution_id for event in events}:
            raise ZeroDivisionError("a defect")
        return super().append(events)


def test_an_event_for_which_a_journal_raises_is_left_out_alone(tmp_path: Path) -> None:
    journal, sink = RaisingJournal(2), ListSink()
    dead = tmp_path / "dead.jsonl"
    source = ListSource(records(events_of(1, 2, 3)))
    report = Bridge(source, [sink], journal=journal, dead_letters=DeadLetters(dead)).run()
    assert sink.items == events_of(1, 3)
    assert (report.unreadable, dead.read_text().count("the journal raised ZeroDivisionError: a defect")) == (4, 4)
    assert sorted(position.offset for position in source.acknowledged) == [*range(12)]


def test_a_journal_that_raises_for_everything_loses_nothing() -> None:
    journal, sink = RaisingJournal(breaks=True), ListSink()
    bridge = Bridge(ListSource(records(events_of(1))), [sink], journal=journal)
    report = bridge.run()
    assert (sink.items, report.not_durable, report.unreadable) == (events_of(1), 4, 0)


def test_a_source_that_raises_for_every_acknowledgement_is_counted_and_ends_nothing() -> None:
    source = ListSource(records(events_of(1)))

    def acknowledge(positions: Any) -> None:
        raise ZeroDivisionError("a defect")

    source.acknowledge = acknowledge  # type: ignore[method-assign]
    sink = ListSink()
    report = Bridge(source, [sink]).run()
    assert sink.items == events_of(1)
    assert report.failed_acknowledgements > 0
