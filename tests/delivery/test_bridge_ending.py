"""How a bridge ends: with its source, when it is stopped, when a sink is gone; and what becomes of what it holds."""

from __future__ import annotations

import logging
import math
import threading
from typing import TYPE_CHECKING, Any

import pytest

from constellation_otel.delivery import Bridge, Position, Revoked, SendingCounters, SinkCounters
from constellation_otel.errors import GoneError, MisconfiguredError, SourceError, UnavailableError
from deliveries import ListSink, ListSource, records
from delivering import QUICK, Gate, away, events_of, reasons, running, span_names, taking_less_than
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constellation_otel.delivery import SourceItem


def test_what_is_open_when_a_bridge_is_stopped_is_emitted() -> None:
    """Where it is not read again."""
    source = ListSource(records(events_of(1)[:1]), ends=False, is_durable=False)
    sink = ListSink(takes="spans")
    bridge = Bridge(source, [sink])
    with running(bridge) as reports:
        eventually(lambda: bridge.open_executions, "it is open")
    assert reasons(sink) == {"dag-1": "closed"}
    assert (source.acknowledged, reports[0].assembly.abandoned) == ([], 1)


@pytest.mark.parametrize(("abandon_open", "names", "is_open"), [(True, ["dag-1"], 0), (False, [], 1)])
def test_what_is_open_at_the_sources_end_is_emitted_if_asked(
    abandon_open: bool, names: list[str], is_open: int
) -> None:
    sink = ListSink(takes="spans")
    report = Bridge(ListSource(records(events_of(1)[:1])), [sink], abandon_open=abandon_open, is_replay=True).run()
    assert (span_names(sink), report.open) == (names, is_open)


def test_what_is_lost_for_good_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    source = ListSource(records(events_of(1)), ends=False, is_durable=False)
    bridge = Bridge(source, [away(Gate())], close_timeout=0.1, retry=QUICK)
    with running(bridge) as reports:
        eventually(lambda: bridge.troubles, "it is held")
    assert (reports[0].lost, reports[0].is_delivered) == (4, False)
    assert "4 events could not be delivered in time, and are lost: nothing reads them again" in caplog.text


def test_a_sink_that_is_gone_for_good_ends_the_bridge_at_once() -> None:
    """What other sinks can have they get."""
    source = ListSource(records(events_of(1)), ends=False)
    gone, other = ListSink(*[GoneError("the pipe is closed")] * 100), ListSink()
    with taking_less_than(DEADLINE / 2):
        report = Bridge(source, [gone, other]).run()
    assert (report.is_delivered, other.items) == (False, events_of(1))
    assert source.acknowledged == []


def test_a_sink_that_is_gone_ends_a_bridge_that_waits_for_it() -> None:
    """For room, that is: it does not wait for ever."""
    batches = [records(events_of(number), first=4 * number) for number in range(20)]
    sink = ListSink(UnavailableError("away"), *[GoneError("the pipe is closed")] * 100)
    with taking_less_than(DEADLINE / 2):
        report = Bridge(ListSource(*batches), [sink], max_held=4, retry=QUICK).run()
    assert (report.is_delivered, report.sinks["list"].delivered) == (False, 0)


def test_a_source_that_can_never_be_read_ends_the_bridge() -> None:
    """What was read is delivered."""

    class Broken(ListSource):
        def read(self, timeout: float) -> Sequence[SourceItem]:
            items = super().read(timeout)
            if not items:
                raise SourceError("no such table")
            return items

    sink = ListSink()
    with pytest.raises(SourceError, match="no such table"):
        Bridge(Broken(records(events_of(1)), ends=False), [sink]).run()
    assert (sink.items, sink.closed) == (events_of(1), 1)


def test_a_source_that_needs_fixing_ends_a_replay() -> None:
    source = ListSource(records(events_of(1)))
    source.faults = [MisconfiguredError("the password is wrong")]
    with pytest.raises(SourceError, match="the password is wrong"):
        Bridge(source, [ListSink()], is_replay=True).run()


def test_a_replay_waits_for_its_source_only_for_so_long() -> None:
    source = ListSource(records(events_of(1)))
    source.faults = [UnavailableError("no broker")] * 1_000
    with pytest.raises(SourceError, match="no broker"):
        Bridge(source, [ListSink()], is_replay=True, close_timeout=0.1, retry=QUICK).run()


def test_a_sink_that_never_got_anything_is_closed_all_the_same() -> None:
    sink = ListSink()
    Bridge(ListSource(), [sink]).run()
    assert sink.closed == 1


def slowly(_: object) -> None:
    """What a slow sink does in each call."""
    threading.Event().wait(0.05)


def test_a_slow_sink_is_waited_for_while_there_is_progress() -> None:
    sink = ListSink(*[slowly] * 40, max_batch=1)
    report = Bridge(ListSource(records(events_of(*range(5)))), [sink], close_timeout=0.5).run()
    assert (len(sink.items), report.is_delivered) == (20, True)


def test_the_last_traces_of_a_replay_are_waited_for_likewise() -> None:
    """They are made at the source's end only, where it keeps no order."""
    sink = ListSink(*[slowly] * 40, takes="spans", max_batch=1)
    source = ListSource(records(events_of(*range(10))), is_ordered=False)
    report = Bridge(source, [sink], is_replay=True, close_timeout=0.3).run()
    assert (len(sink.items), report.is_delivered) == (20, True)


def test_a_replay_does_not_wait_for_ever_for_an_absent_sink() -> None:
    report = Bridge(ListSource(records(events_of(1))), [away(Gate())], close_timeout=0.3, retry=QUICK).run()
    assert (report.is_delivered, report.sinks["list"].held) == (False, 4)


def test_an_absent_sink_without_room_does_not_stop_the_end() -> None:
    """Nor is it waited for beyond the time without progress."""
    batches = [records(events_of(number), first=4 * number) for number in range(20)]
    source = ListSource(*batches, is_durable=False)
    with taking_less_than(DEADLINE / 2):
        report = Bridge(source, [away(Gate())], max_held=4, close_timeout=0.3, retry=QUICK).run()
    assert (report.is_delivered, report.dropped + report.lost) == (False, 80)


def test_a_full_sink_at_the_sources_end_is_waited_for() -> None:
    """The end takes its turn behind what waits for room, and then what is open is emitted."""
    gate = Gate()
    batches = [records(events_of(number), first=4 * number) for number in range(5)]
    sink = away(gate, takes="spans")
    source = ListSource(*batches, records(events_of(9)[:1], first=90))
    bridge = Bridge(source, [sink], max_held=4, abandon_open=True, retry=QUICK)
    with running(bridge) as reports:
        assert gate.reached.wait(DEADLINE)
        gate.opened.set()
        eventually(lambda: reports, "it ends by itself")
    assert (reasons(sink), reports[0].is_delivered) == ({"dag-9": "closed"}, True)


def test_a_stop_ends_a_replay_that_waits_for_a_sink() -> None:
    bridge = Bridge(ListSource(records(events_of(1))), [away(Gate())], close_timeout=0.3, retry=QUICK)
    with running(bridge) as reports:
        eventually(lambda: bridge.troubles, "it waits")
    assert reports[0].sinks == {"list": SinkCounters(4, 0, 0, 0, 4, SendingCounters(retried=retries(reports[0])))}


def retries(report: Any) -> int:
    return int(report.sinks["list"].sending.retried)


@pytest.mark.parametrize("last", [records(events_of(5)), [Revoked("a")]])
def test_a_bridge_that_is_stopped_waits_for_no_room_any_more(last: Any) -> None:
    """What it leaves is not acknowledged."""
    many = records(events_of(*range(4)))
    asked = threading.Event()
    source = ListSource(many[:8], many[8:], last, ends=False, keep_alive=asked.set)
    bridge = Bridge(source, [away(Gate())], max_held=8, close_timeout=0.1, retry=QUICK)
    with running(bridge):
        assert asked.wait(DEADLINE)
    assert source.acknowledged == []


def test_what_comes_behind_what_was_left_is_left_as_well(caplog: pytest.LogCaptureFixture) -> None:
    """A stop cuts what was read at one place: the next reader has the rest, whole and in order."""
    caplog.set_level(logging.INFO)
    gate, asked = Gate(), threading.Event()
    parts = [records(events_of(number), origin=f"part-{number}", first=4 * number) for number in range(4)]
    source = ListSource([item for part in parts for item in part], ends=False, keep_alive=asked.set)
    sink = ListSink(gate.wait)
    bridge = Bridge(source, [sink], max_held=4)
    with running(bridge):
        assert gate.reached.wait(DEADLINE)
        assert asked.wait(DEADLINE)
        bridge.stop()
        eventually(lambda: "stopped; what is held is delivered now" in caplog.text, "it has noticed")
        gate.opened.set()
    assert sink.items == events_of(0, 1, 2, 3)[: len(sink.items)]
    assert sorted(it.offset for it in source.acknowledged) == [*range(len(sink.items))]
    assert len(sink.items) < 16


@pytest.mark.parametrize("close_timeout", [math.nan, -1.0, 0.0])
def test_a_close_timeout_of_any_kind_comes_to_its_end(close_timeout: float) -> None:
    bridge = Bridge(ListSource(ends=False), [away(Gate())], close_timeout=close_timeout)
    with running(bridge) as reports:
        pass
    assert reports[0].is_delivered


def test_a_close_timeout_without_an_end_is_taken_as_one() -> None:
    sink = ListSink(UnavailableError("away"))
    report = Bridge(ListSource(records(events_of(1))), [sink], close_timeout=math.inf, retry=QUICK).run()
    assert (report.is_delivered, sink.items) == (True, events_of(1))


def test_a_sink_that_hangs_at_the_end_is_left_behind_in_time() -> None:
    gate = Gate()
    source = ListSource(records(events_of(1)), ends=False)
    bridge = Bridge(source, [ListSink(gate.wait)], close_timeout=0.2)
    try:
        with running(bridge) as reports:
            assert gate.reached.wait(DEADLINE)
            with taking_less_than(DEADLINE / 2):
                bridge.stop()
                eventually(lambda: reports, "it ends")
        assert (reports[0].is_delivered, reports[0].lost, source.acknowledged) == (False, 0, [])
    finally:
        gate.opened.set()


def test_what_a_stop_delivers_late_is_acknowledged_at_the_end() -> None:
    """In the time that there is for what is held."""
    gate = Gate()
    source = ListSource(records(events_of(1)), ends=False)
    bridge = Bridge(source, [away(gate)], retry=QUICK)
    with running(bridge) as reports:
        eventually(lambda: bridge.troubles, "it is held")
        bridge.stop()
        gate.opened.set()
    assert (reports[0].is_delivered, len(source.acknowledged)) == (True, 4)
    assert sorted(source.acknowledged) == [Position(None, number) for number in range(4)]
