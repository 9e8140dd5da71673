"""From a source to its sinks: what is delivered, what is reported, and what does not work at the moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from constellation_otel.delivery import (
    AssemblyCounters,
    Bridge,
    BridgeReport,
    DeadLetters,
    Position,
    Record,
    Rejection,
    Revoked,
    SendingCounters,
    SinkCounters,
    Unreadable,
    sink_names,
)
from constellation_otel.errors import ConfigurationError, MisconfiguredError, UnavailableError
from constellation_otel.events import ModuleStarted
from deliveries import MS, T0, ListSink, ListSource, execution, records
from delivering import QUICK, Gate, away, events_of, running, span_names
from support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def test_any_source_meets_any_sinks_and_hears_what_is_safe() -> None:
    """What all of them have is safe."""
    source = ListSource(records(events_of(1)), records(events_of(2), first=4))
    events, traces = ListSink(), ListSink(takes="spans", name="otlp")
    report = Bridge(source, [events, traces], retry=QUICK).run()
    assert events.items == events_of(1, 2)
    assert span_names(traces) == ["trim", "dag-1", "trim", "dag-2"]
    assert sorted(source.acknowledged) == [Position(None, number) for number in range(8)]
    assert (source.closed.is_set(), events.closed, traces.closed) == (True, 1, 1)
    assert report == BridgeReport(
        source="list://",
        events=8,
        unreadable=0,
        dropped=0,
        corrected=0,
        open=0,
        lost=0,
        is_delivered=True,
        failed_acknowledgements=0,
        sinks={
            "list": SinkCounters(8, 8, 0, 0, 0, SendingCounters(sent=8)),
            "otlp": SinkCounters(8, 8, 0, 0, 0, SendingCounters(sent=4)),
        },
        assembly=AssemblyCounters(events=8, executions=2, spans=4),
        journal=None,
    )
    assert (report.rejected, report.evicted) == (0, 0)


def test_a_bridge_without_a_sink_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigurationError, match="at least one sink"):
        Bridge(ListSource(), [])


def test_sinks_are_known_by_their_kind_and_their_number() -> None:
    sinks = [ListSink(name=name) for name in ("otlp", "kafka", "otlp", "otlp")]
    assert sink_names(sinks) == ["otlp", "kafka", "otlp-2", "otlp-3"]
    assert sink_names([ListSink(name=name) for name in ("a", "a", "a-2")]) == ["a", "a-2", "a-2-2"]


def test_a_source_that_keeps_no_order_is_given_time_to_settle() -> None:
    """Unless it is told that there is no need."""
    first, *others = events_of(1)
    source = ListSource(records([*others, first]), is_ordered=False)
    sink = ListSink(takes="spans")
    Bridge(source, [sink], retry=QUICK).run()
    assert span_names(sink) == ["trim", "dag-1"]
    assert "constellation.missing" not in sink.items[1].attributes
    at_once = ListSink(takes="spans")
    Bridge(ListSource(records([*others, first]), is_ordered=False), [at_once], settle=0).run()
    assert at_once.items[-1].attributes["constellation.missing"] == "start"


def test_what_cannot_be_read_is_dead_lettered_and_acknowledged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted, and logged with its place, as well."""
    letters = DeadLetters(tmp_path / "dead.jsonl")
    junk = Unreadable(b"junk", "not an event", Position(("topic", 3), 7))
    source = ListSource([*records(events_of(1)[:1]), junk, *records(events_of(1)[1:], first=1)])
    sink = ListSink()
    report = Bridge(source, [sink], dead_letters=letters).run()
    assert (sink.items, report.unreadable, report.events) == (events_of(1), 1, 4)
    assert Position(("topic", 3), 7) in source.acknowledged
    assert "list://, topic/3, record 7 cannot be read: not an event" in caplog.text
    assert "not an event" in (tmp_path / "dead.jsonl").read_text()


def test_what_cannot_be_read_of_a_volatile_source_is_counted() -> None:
    """And not acknowledged, since such a source hears nothing."""
    source = ListSource([Unreadable(b"junk", "not an event", Position(None, 7))], is_durable=False)
    assert Bridge(source, [ListSink()]).run().unreadable == 1
    assert source.acknowledged == []


def test_the_words_of_unreadable_records_flood_no_log(caplog: pytest.LogCaptureFixture) -> None:
    junk = [
        Unreadable(b"junk", f"not an event: eventType '{number}'", Position(None, number)) for number in range(5000)
    ]
    report = Bridge(ListSource(junk), [ListSink()]).run()
    assert report.unreadable == 5000
    assert [record.levelname for record in caplog.records].count("WARNING") < 5


def test_what_is_left_out_of_a_record_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """With its place; the rest of it is delivered."""
    first, *others = events_of(1)
    record = Record(first, Position("part", 3), ("dagName: it is too long",))
    sink = ListSink()
    report = Bridge(ListSource([record, *records(others)]), [sink]).run()
    assert (sink.items, report.corrected) == ([first, *others], 1)
    what = "list://, part, record 3: a value was left out or replaced, the rest is kept: dagName: it is too long"
    assert caplog.messages == [what]


def test_an_event_that_no_sink_could_take_is_unreadable_alone() -> None:
    odd = ModuleStarted(UUID(int=1), UUID(int=2), 7, T0)  # type: ignore[arg-type] # what is tested
    good = records(events_of(1))
    source = ListSource([good[0], Record(odd, Position(None, 9)), *good[1:]])
    sink = ListSink()
    report = Bridge(source, [sink]).run()
    assert (sink.items, report.unreadable, len(source.acknowledged)) == (events_of(1), 1, 5)


def test_a_source_of_bare_events_is_refused_with_what_it_gave() -> None:
    bare: Any = events_of(1)[:1]
    source = ListSource(bare)
    sink = ListSink()
    with pytest.raises(TypeError, match=r"ExecutionStarted\(.*\) is not a Record, Batch, Unreadable, Restarted or"):
        Bridge(source, [sink]).run()
    assert (source.closed.is_set(), sink.closed) == (True, 1)


def test_a_source_that_cannot_be_read_now_is_read_again(caplog: pytest.LogCaptureFixture) -> None:
    source = ListSource(records(events_of(1)))
    source.faults = [UnavailableError("no broker")] * 3
    sink = ListSink()
    bridge = Bridge(source, [sink], retry=QUICK)
    bridge.run()
    assert sink.items == events_of(1)
    assert bridge.troubles == {}
    assert "list:// cannot be read now: no broker; trying again in" in caplog.text


def test_a_source_that_needs_fixing_is_an_alarm_of_the_bridge(caplog: pytest.LogCaptureFixture) -> None:
    source = ListSource(records(events_of(1)))
    source.faults = [MisconfiguredError("the password is wrong")]
    Bridge(source, [ListSink()], retry=QUICK).run()
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_why_a_source_is_not_read_is_among_the_troubles() -> None:
    source = ListSource(ends=False)
    source.faults = [UnavailableError("no broker", retry_after=60)]
    bridge = Bridge(source, [ListSink()])
    with running(bridge):
        eventually(lambda: bridge.troubles == {"list://": "no broker"}, "it is among them")


def test_what_a_source_says_of_itself_is_reported_as_well() -> None:
    class Lossy(ListSource):
        last_error = "no connection"
        dropped = 3
        failed_acknowledgements = 2
        fraction_read = 0.5

    bridge = Bridge(Lossy(records(events_of(1))), [ListSink()])
    assert (bridge.troubles, bridge.fraction_read) == ({"list://": "no connection"}, 0.5)
    report = bridge.run()
    assert (report.dropped, report.failed_acknowledgements) == (3, 2)


def test_a_long_pause_is_not_taken_for_a_loop_that_hangs() -> None:
    source = ListSource(ends=False)
    source.faults = [UnavailableError("no broker", retry_after=3_600)]
    bridge = Bridge(source, [ListSink()])
    with running(bridge):
        eventually(lambda: bridge.troubles, "it pauses")
        eventually(comes_around(bridge), "it shows that it lives")


def test_a_long_end_is_not_taken_for_a_loop_that_hangs() -> None:
    source = ListSource(records(events_of(1)), ends=False, is_durable=False)
    bridge = Bridge(source, [away(Gate())], close_timeout=1.0, retry=QUICK)
    with running(bridge):
        eventually(lambda: bridge.troubles, "it waits")
        bridge.stop()
        eventually(comes_around(bridge), "it shows that it lives")


def comes_around(bridge: Bridge) -> Callable[[], bool]:
    """Whether the loop came around since this was asked last."""
    seconds = [0.0]

    def has_come_around() -> bool:
        seconds.append(bridge.idle_seconds)
        return seconds[-1] < seconds[-2]

    return has_come_around


class Telemetry:
    """What a bridge asks of the metrics and logs beside its spans."""

    def __init__(self, *, with_events: bool) -> None:
        self.with_events = with_events
        self.observed: list[str] = []
        self.counted: dict[str, int] = {}

    def observe(self, span: Any, context: object) -> None:
        self.observed.append(span.name)

    def count(self, gained: Mapping[str, int]) -> None:
        for name, count in gained.items():
            self.counted[name] = self.counted.get(name, 0) + count


@pytest.mark.parametrize("with_events", [True, False])
def test_metrics_and_logs_see_spans_once_and_the_counters(with_events: bool) -> None:
    """Where several sinks take spans, the first one's."""
    telemetry: Any = Telemetry(with_events=with_events)
    sinks = [ListSink(takes="spans"), ListSink([Rejection(0, 1, "no")], takes="spans")]
    late = records(execution(1)[:1], first=4)
    Bridge(ListSource(records(execution(1, fails=True)), late), sinks, telemetry=telemetry).run()
    assert telemetry.observed == ["trim", "dag-1"]
    assert telemetry.counted == {"late": 1, "rejected": 1}
    assert [bool(sink.items[0].events) for sink in sinks] == [with_events, False]


def test_a_source_that_loses_events_is_warned_of_only_once(caplog: pytest.LogCaptureFixture) -> None:
    """What is incomplete is counted."""
    start, module_start, _, end = events_of(1)
    source = ListSource(records([start, module_start, end, *events_of(2)[1:]]))
    report = Bridge(source, [ListSink(takes="spans"), ListSink(takes="spans")]).run()
    assert report.assembly == AssemblyCounters(
        events=6, executions=2, spans=4, incomplete_executions=1, incomplete_modules=1
    )
    lost = f"the end of module 'trim' of execution {UUID(int=1)} of DAG 'dag-1' never came"
    assert [entry.getMessage() for entry in caplog.records] == [f"list:// loses events: {lost}"]


def test_a_replay_goes_by_the_time_of_its_own_events() -> None:
    days = [event for number in range(200) for event in execution(number, start_ns=T0 + number * 86_400_000 * MS)]
    lost = execution(1_000)[:1]
    sink = ListSink(takes="spans")
    report = Bridge(ListSource(records([*lost, *days])), [sink], is_replay=True).run()
    assert (report.assembly.executions, report.assembly.abandoned, report.open) == (201, 1, 0)


def test_the_sampler_decides_for_whole_traces_of_all_sinks() -> None:
    """What it drops is delivered."""
    sink = ListSink(takes="spans")
    source = ListSource(records(events_of(1)))
    report = Bridge(source, [sink, ListSink(takes="spans")], sampler=ALWAYS_OFF).run()
    assert sink.items == []
    assert report.sinks == dict.fromkeys(["list", "list-2"], SinkCounters(4, 4, 0, 0, 0))
    assert len(source.acknowledged) == 4


def test_an_event_that_a_sink_rejects_is_in_the_report() -> None:
    report = Bridge(ListSource(records(events_of(1))), [ListSink([Rejection(0, 1, "no")])]).run()
    assert (report.rejected, report.is_delivered) == (1, True)


def test_one_sink_that_is_away_holds_up_no_other_sink() -> None:
    """The source hears nothing until that one has it, too."""
    gate = Gate()
    source = ListSource(records(events_of(1)), ends=False)
    stuck, fine = away(gate, name="stuck"), ListSink(name="fine")
    bridge = Bridge(source, [stuck, fine], retry=QUICK)
    with running(bridge):
        eventually(lambda: len(fine.items) == 4, "the other sink has everything")
        eventually(lambda: bridge.troubles == {"stuck": "away"}, "the trouble is told")
        assert source.acknowledged == []
        assert not bridge.report.is_delivered
        gate.opened.set()
        eventually(lambda: len(source.acknowledged) == 4, "the source is told")
        eventually(lambda: bridge.troubles == {}, "the trouble is over")
        assert bridge.report.is_delivered


def test_what_another_reader_has_now_is_dropped_unexported() -> None:
    """And the next owner gives it whole."""
    mine, other = records(events_of(1)[:3], origin="a"), records(events_of(2)[:3], origin="b")
    whole = records(events_of(1), origin="a", first=100)
    source = ListSource([*mine, *other, Revoked("a")], [*whole, *records(events_of(2)[3:], origin="b", first=3)])
    traces, events = ListSink(takes="spans"), ListSink()
    report = Bridge(source, [traces, events]).run()
    assert sorted(span_names(traces)) == ["dag-1", "dag-2", "trim", "trim", "trim"]
    assert report.sinks["list"].revoked == 3
    assert [it for it in source.acknowledged if it.origin == "a" and it.offset < 100] == []
    assert sorted(it.offset for it in source.acknowledged if it.origin == "b") == [0, 1, 2, 3]


def test_a_part_that_a_volatile_source_loses_changes_nothing() -> None:
    """Nobody reads it again."""
    source = ListSource(
        [*records(events_of(1)[:2], origin="a"), Revoked("a"), *records(events_of(1)[2:], origin="a", first=2)],
        is_durable=False,
    )
    sink = ListSink(takes="spans")
    Bridge(source, [sink]).run()
    assert span_names(sink) == ["trim", "dag-1"]
