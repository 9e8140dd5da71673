"""Some executions of a source: which are taken, whole, and what becomes of the others."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constellation_otel.delivery import Bridge, DryRun, Position, Record, Revoked, Selection, Unreadable
from constellation_otel.delivery import filter as module
from constellation_otel.errors import UnavailableError
from constellation_otel.events import Event, ExecutionStarted
from deliveries import MS, T0, ListSink, ListSource, execution, records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constellation_otel.delivery import Source, SourceItem


def read_all(selection: Selection) -> list[SourceItem]:
    taken: list[SourceItem] = []
    while not selection.has_ended:
        taken += selection.read(0)
    return taken


def events_in(items: Sequence[SourceItem]) -> list[Event]:
    return [item.event for item in items if isinstance(item, Record)]


def selected(events: Sequence[Event], **window: Any) -> list[Event]:
    return events_in(read_all(Selection(ListSource(records(events)), **window)))


def started_at(*starts_ms: int) -> list[list[Event]]:
    """Executions 1, 2, … that start so many milliseconds after the tests' first."""
    return [execution(number, start_ns=T0 + start_ms * MS) for number, start_ms in enumerate(starts_ms, 1)]


@st.composite
def interleavings(draw: st.DrawFn) -> list[Event]:
    """Events of executions that start within 10 ms, some without a start, some events more than once, in any order."""
    events = []
    for whole in started_at(*draw(st.lists(st.integers(0, 10), max_size=5))):
        events += draw(st.lists(st.sampled_from(whole), max_size=8))
    return draw(st.permutations(events))


@given(interleavings(), st.none() | st.integers(0, 11), st.none() | st.integers(0, 11))
def test_an_execution_is_taken_whole_or_left_whole_by_the_time_of_its_start_whatever_the_order(
    events: list[Event], since_ms: int | None, until_ms: int | None
) -> None:
    since_ns = None if since_ms is None else T0 + since_ms * MS
    until_ns = None if until_ms is None else T0 + until_ms * MS
    selection = Selection(ListSource(records(events)), since_ns=since_ns, until_ns=until_ns)
    taken = events_in(read_all(selection))
    in_window = {
        event.execution_id
        for event in events
        if isinstance(event, ExecutionStarted)
        and (since_ns is None or event.timestamp_ns >= since_ns)
        and (until_ns is None or event.timestamp_ns < until_ns)
    }
    if since_ns is None and until_ns is None:
        in_window = {event.execution_id for event in events}
    for execution_id in {event.execution_id for event in events}:
        of_it = [event for event in events if event.execution_id == execution_id]
        # in the order in which they came
        assert [event for event in taken if event.execution_id == execution_id] == (
            of_it if execution_id in in_window else []
        )
    assert len(taken) + selection.left == len(events)


@given(interleavings(), st.integers(1, 5), st.integers(1, 3))
def test_what_is_remembered_is_bounded_and_an_execution_that_found_no_room_is_left_whole(
    events: list[Event], max_waiting: int, batch: int
) -> None:
    batches = [records(events[first : first + batch], first=first) for first in range(0, len(events), batch)]
    selection = Selection(ListSource(*batches), since_ns=T0)
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MAX_WAITING", max_waiting)
        while not selection.has_ended:
            taken += events_in(selection.read(0))
            assert sum(map(len, selection._waiting.values())) == selection._waiting_count <= max_waiting
    for execution_id in {event.execution_id for event in events}:
        of_it = [event for event in events if event.execution_id == execution_id]
        assert [event for event in taken if event.execution_id == execution_id] in ([], of_it)
    assert len(taken) + selection.left == len(events)


def test_the_executions_that_are_remembered_are_those_that_spoke_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_KNOWN", 2)
    first, second, third = started_at(0, 0, 0)
    selection = Selection(
        ListSource(records([first[0], second[0], first[1], third[0], first[2], second[1]])), since_ns=0
    )
    assert events_in(read_all(selection)) == [first[0], second[0], first[1], third[0], first[2]]
    assert list(selection._is_taken) == [third[0].execution_id, first[0].execution_id]
    assert selection.left == 1


def test_a_window_has_its_beginning_and_not_its_end() -> None:
    first, second, third = started_at(1, 2, 3)
    events = [*first, *second, *third]
    assert selected(events, since_ns=T0 + 2 * MS) == [*second, *third]
    assert selected(events, until_ns=T0 + 2 * MS) == first
    assert selected(events, since_ns=T0 + 2 * MS, until_ns=T0 + 3 * MS) == second
    assert selected(events, since_ns=T0 + 2 * MS, until_ns=T0 + 2 * MS) == []


def test_one_execution_is_taken_by_its_id_even_without_its_start() -> None:
    first, second = started_at(0, 0)
    selection = Selection(ListSource(records([*first[1:], *second])), execution_id=UUID(int=1))
    assert events_in(read_all(selection)) == first[1:]
    assert selection.left == 4


def test_one_execution_in_a_window_has_to_have_started_in_it() -> None:
    first, second = started_at(0, 1)
    for events, window, taken in [
        ([*first, *second], {"since_ns": T0}, first),
        ([*first, *second], {"since_ns": T0 + MS}, []),
        (first[1:], {"since_ns": T0}, []),
    ]:
        assert selected(events, execution_id=UUID(int=1), **window) == taken


def test_events_that_still_wait_count_as_left_when_the_source_has_ended() -> None:
    source = ListSource(records(execution(1)[1:]), ends=False)
    selection = Selection(source, since_ns=0)
    assert selection.read(0) == []
    assert (selection.has_ended, selection.left) == (False, 0)
    source._ends = True
    assert (selection.has_ended, selection.left, selection.left) == (True, 3, 3)


def test_what_cannot_be_read_and_what_is_taken_away_passes() -> None:
    unreadable = Unreadable(b"{", "it is cut", Position("a", 7))
    revoked = Revoked("a")
    selection = Selection(ListSource([unreadable, revoked]), execution_id=UUID(int=1), since_ns=T0)
    assert read_all(selection) == [unreadable, revoked]


def test_what_waits_of_a_part_that_is_taken_away_is_the_next_owners() -> None:
    first, second, third = started_at(0, 0, 0)
    a, b = records([first[1], second[1]], "a"), records([second[2], third[1]], "b")
    starts = records([first[0], second[0], third[0]], "b", 2)
    selection = Selection(ListSource([*a, *b], [Revoked("a")], starts), since_ns=T0)
    assert read_all(selection) == [Revoked("a"), starts[0], b[0], starts[1], b[1], starts[2]]
    assert selection.left == 2


def test_it_is_what_its_source_is_and_passes_on_what_it_is_told() -> None:
    alive: list[str] = []
    source = ListSource(is_durable=False, is_ordered=False, keep_alive=lambda: alive.append("yes"))
    selection = Selection(source, since_ns=0)
    as_source: Source = selection
    assert (as_source.name, as_source.is_durable, as_source.is_ordered) == ("list://", False, False)
    assert Selection(ListSource()).is_durable
    assert Selection(ListSource()).is_ordered
    selection.keep_alive()
    Selection(ListSource()).keep_alive()
    assert alive == ["yes"]
    selection.acknowledge([Position(None, 3)])
    assert source.acknowledged == [Position(None, 3)]
    source.faults.append(UnavailableError("away"))
    with pytest.raises(UnavailableError, match="away"):
        selection.read(0)
    selection.close()
    assert source.closed.is_set()


def test_a_bridge_delivers_what_is_taken_and_acknowledges_no_more() -> None:
    early, late = started_at(0, 5)
    mixed = [event for pair in zip(early, late, strict=True) for event in pair]
    source, sink = ListSource(records(mixed)), ListSink()
    report = Bridge(Selection(source, since_ns=T0 + MS), [sink]).run()
    assert sink.items == late
    assert Counter(source.acknowledged) == Counter(Position(None, offset) for offset in (1, 3, 5, 7))
    assert (report.events, report.is_delivered) == (4, True)


def test_what_a_source_says_of_itself_a_selection_says_too() -> None:
    class Lossy(ListSource):
        trouble = "no connection"
        dropped = 3
        failed_acknowledgements = 2
        fraction_read = 0.5

    lossy, silent = Selection(Lossy()), Selection(ListSource())
    assert (lossy.trouble, lossy.dropped, lossy.fraction_read) == ("no connection", 3, 0.5)
    assert (silent.trouble, silent.dropped, silent.fraction_read) == (None, 0, None)
    assert (lossy.failed_acknowledgements, silent.failed_acknowledgements) == (2, 0)


def test_a_dry_run_tells_the_source_nothing() -> None:
    source = ListSource(records(execution(1)))
    assert Bridge(DryRun(source), [ListSink()]).run().events == 4
    assert source.acknowledged == []
