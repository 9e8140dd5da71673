"""What a bridge does where there is no room: a durable source waits, another one's newest events are dropped."""

from __future__ import annotations

import threading
import time

from constellation_otel.delivery import Bridge
from constellation_otel.errors import UnavailableError
from constellation_otel.events import ExecutionStarted
from deliveries import ListSink, ListSource, execution, records
from delivering import QUICK, Gate, away, events_of, running
from support import DEADLINE, eventually


def batches(count: int) -> list[list[object]]:
    return [[*records(events_of(number), first=number * 4)] for number in range(count)]


def test_a_durable_source_is_read_as_fast_as_its_sinks_take() -> None:
    """And kept alive meanwhile."""
    gate, asked = Gate(), threading.Event()
    source = ListSource(*batches(20), keep_alive=asked.set)  # type: ignore[arg-type] # they are records
    sink = away(gate)
    bridge = Bridge(source, [sink], max_held=4, retry=QUICK)
    with running(bridge) as reports:
        assert asked.wait(DEADLINE)
        assert bridge.report.events <= 16
        gate.opened.set()
        eventually(lambda: len(sink.items) == 80, "everything arrives")
    assert reports[0].dropped == 0


def test_the_newest_of_a_volatile_source_are_dropped() -> None:
    """For the sink that is full; the other one gets everything."""
    gate = Gate()
    source = ListSource(*batches(20), ends=False, is_durable=False)  # type: ignore[arg-type] # they are records
    stuck, fine = away(gate, name="stuck"), ListSink(name="fine")
    bridge = Bridge(source, [stuck, fine], max_held=16, retry=QUICK)
    with running(bridge) as reports:
        eventually(lambda: bridge.report.events == 80, "all is read")
        gate.opened.set()
        eventually(lambda: bridge.troubles == {}, "the sink is back")
    report = reports[0]
    assert report.dropped >= 80 - 2 * 16 - 4
    assert stuck.items == [event for event in events_of(*range(20)) if event in stuck.items]
    assert report.sinks["stuck"].delivered + report.dropped >= 80


def test_a_volatile_source_can_be_waited_for_until_a_stop() -> None:
    """What is left then is counted: everything is dropped, or held."""
    gate = Gate()
    source = ListSource(*batches(20), is_durable=False)  # type: ignore[arg-type] # they are records
    bridge = Bridge(source, [away(gate)], max_held=4, on_full="wait", close_timeout=0.2, retry=QUICK)
    with running(bridge) as reports:
        eventually(lambda: bridge.report.events >= 8, "it waits")
    (report,) = reports
    assert report.events == report.dropped + report.lost
    assert report.lost == report.sinks["list"].held
    assert not report.is_delivered


def test_a_batch_that_is_larger_than_the_room_goes_in_parts() -> None:
    source = ListSource(records(events_of(*range(50))))
    sink = ListSink()
    report = Bridge(source, [sink], max_held=16).run()
    assert (len(sink.items), report.dropped, len(source.acknowledged)) == (200, 0, 200)


def test_what_a_durable_source_drops_by_request_is_safe() -> None:
    """It is not waited for: acknowledged for good, as what is delivered."""
    gate = Gate()
    source = ListSource(*batches(20), ends=False)  # type: ignore[arg-type] # they are records
    bridge = Bridge(source, [away(gate)], max_held=4, on_full="drop", retry=QUICK)
    with running(bridge):
        eventually(lambda: bridge.report.events == 80, "all is read")
        gate.opened.set()
        eventually(lambda: len(source.acknowledged) == 80, "all is acknowledged")
        assert bridge.report.dropped > 0


def test_an_outage_of_one_sink_abandons_nothing_in_another() -> None:
    """Time stands still for what is open while the bridge waits for room."""
    gate, asked = Gate(), threading.Event()
    open_ones = [event for number in range(1_000, 1_010) for event in execution(number)]
    begun = records([event for event in open_ones if isinstance(event, ExecutionStarted)])
    rest = records([event for event in open_ones if not isinstance(event, ExecutionStarted)], first=1_000)
    middle = [records(events_of(number), first=100 + 4 * number) for number in range(40)]
    source = ListSource(begun, *middle, rest, keep_alive=asked.set)
    spans_sink, stuck = ListSink(takes="spans"), away(gate, name="stuck")
    bridge = Bridge(source, [spans_sink, stuck], idle_timeout=0.4, max_held=8, retry=QUICK)
    with running(bridge) as reports:
        assert asked.wait(DEADLINE)
        since = time.monotonic()
        eventually(lambda: time.monotonic() > since + 0.8, "two timeouts have passed")
        gate.opened.set()
        eventually(lambda: bridge.report.assembly.executions == 50, "everything is emitted")
    assert (reports[0].assembly.abandoned, reports[0].assembly.late) == (0, 0)


def test_no_time_passes_while_a_durable_source_is_away() -> None:
    """What it has will be read."""
    source = ListSource(records(events_of(1)[:1]), ends=False)
    bridge = Bridge(source, [ListSink(takes="spans")], idle_timeout=0.2)
    with running(bridge) as reports:
        eventually(lambda: bridge.open_executions, "it is open")
        source.faults = [UnavailableError("no broker", retry_after=0.1)] * 100
        eventually(lambda: bridge.troubles, "the source is away")
        since = time.monotonic()
        eventually(lambda: time.monotonic() > since + 0.6, "three timeouts have passed")
        assert bridge.report.assembly.abandoned == 0
    assert reports[0].open == 1
