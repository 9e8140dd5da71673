"""Some executions of a source: which are taken, whole, and what becomes of the others."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constellation_otel.delivery import Batch, Bridge, ExecutionFilter, Position, Revoked, Source, Unreadable
from constellation_otel.errors import UnavailableError
from constellation_otel.events import Event, ExecutionJoined, ExecutionStarted
from deliveries import MS, T0, ListSink, ListSource, execution, records
from support import UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constellation_otel.delivery import SourceItem


def read_all(source: ExecutionFilter) -> list[SourceItem]:
    taken: list[SourceItem] = []
    while not source.has_ended:
        taken += source.read(0)
    return taken


def events_in(items: Sequence[SourceItem]) -> list[Event]:
    return [event for item in items if isinstance(item, Batch) for event in item.events]


def selected(events: Sequence[Event], **window: Any) -> list[Event]:
    return events_in(read_all(ExecutionFilter(ListSource(records(events)), **window)))


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


@UNWATCHED
@given(interleavings(), st.none() | st.integers(0, 11), st.none() | st.integers(0, 11))
def test_an_execution_is_taken_or_left_whole_by_its_start(
    events: list[Event], since_ms: int | None, until_ms: int | None
) -> None:
    """Whatever the order in which its events come."""
    since_ns = None if since_ms is None else T0 + since_ms * MS
    until_ns = None if until_ms is None else T0 + until_ms * MS
    source = ExecutionFilter(ListSource(records(events)), since_ns=since_ns, until_ns=until_ns)
    taken = events_in(read_all(source))
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
    assert len(taken) + source.left == len(events)


@given(interleavings(), st.integers(1, 5), st.integers(1, 3))
def test_an_execution_that_finds_no_room_to_wait_is_left_whole(
    events: list[Event], max_waiting: int, batch: int
) -> None:
    batches = [records(events[first : first + batch], first=first) for first in range(0, len(events), batch)]
    source = ExecutionFilter(ListSource(*batches), since_ns=T0, max_waiting=max_waiting)
    taken = []
    while not source.has_ended:
        taken += events_in(source.read(0))
        assert sum(map(len, source._waiting.values())) == source._waiting_count <= max_waiting
    for execution_id in {event.execution_id for event in events}:
        of_it = [event for event in events if event.execution_id == execution_id]
        assert [event for event in taken if event.execution_id == execution_id] in ([], of_it)
    assert len(taken) + source.left == len(events)


def test_the_executions_that_were_heard_last_are_remembered() -> None:
    first, second, third = started_at(0, 0, 0)
    mixed = [first[0], second[0], first[1], third[0], first[2], second[1]]
    source = ExecutionFilter(ListSource(records(mixed)), since_ns=0, max_known=2)
    assert events_in(read_all(source)) == [first[0], second[0], first[1], third[0], first[2]]
    assert list(source._is_taken) == [third[0].execution_id, first[0].execution_id]
    assert source.left == 1


def test_a_window_contains_its_beginning_and_not_its_end() -> None:
    first, second, third = started_at(1, 2, 3)
    events = [*first, *second, *third]
    assert selected(events, since_ns=T0 + 2 * MS) == [*second, *third]
    assert selected(events, until_ns=T0 + 2 * MS) == first
    assert selected(events, since_ns=T0 + 2 * MS, until_ns=T0 + 3 * MS) == second
    assert selected(events, since_ns=T0 + 2 * MS, until_ns=T0 + 2 * MS) == []


def test_an_execution_is_taken_by_its_id_even_without_a_start() -> None:
    first, second = started_at(0, 0)
    source = ExecutionFilter(ListSource(records([*first[1:], *second])), execution_id=UUID(int=1))
    assert events_in(read_all(source)) == first[1:]
    assert source.left == 4


def test_one_execution_in_a_window_has_to_have_started_in_it() -> None:
    first, second = started_at(0, 1)
    for events, window, taken in [
        ([*first, *second], {"since_ns": T0}, first),
        ([*first, *second], {"since_ns": T0 + MS}, []),
        (first[1:], {"since_ns": T0}, []),
    ]:
        assert selected(events, execution_id=UUID(int=1), **window) == taken


def test_an_execution_that_was_joined_is_taken_by_when_that_was() -> None:
    """Where it started is told by another process, in its own journal."""
    _, *modules, _ = execution(1)
    joined = [ExecutionJoined(execution(1)[0].execution_id, "dag-1", T0 + 5 * MS), *modules]
    assert selected(joined, since_ns=T0 + 5 * MS) == joined
    assert selected(joined, until_ns=T0 + 5 * MS) == []


def test_events_that_still_wait_at_the_end_count_as_left() -> None:
    source = ListSource(records(execution(1)[1:]), ends=False)
    filtered = ExecutionFilter(source, since_ns=0)
    assert filtered.read(0) == []
    assert (filtered.has_ended, filtered.left) == (False, 0)
    source._ends = True
    assert (filtered.has_ended, filtered.left, filtered.left) == (True, 3, 3)


def test_a_batch_stays_as_it_is_where_everything_is_taken() -> None:
    batch = Batch(execution(1), range(4), "a", [(2, "module_name")])
    (same,) = read_all(ExecutionFilter(ListSource([batch])))
    assert same is batch


def test_what_is_unreadable_or_revoked_passes_through_a_filter() -> None:
    unreadable = Unreadable(b"{", "it is cut", Position("a", 7))
    revoked = Revoked("a")
    source = ExecutionFilter(ListSource([unreadable, revoked]), execution_id=UUID(int=1), since_ns=T0)
    assert read_all(source) == [unreadable, revoked]


def test_what_waits_of_a_part_that_is_revoked_is_not_taken() -> None:
    """It is the next owner's."""
    first, second, third = started_at(0, 0, 0)
    a, b = records([first[1], second[1]], "a"), records([second[2], third[1]], "b")
    starts = records([first[0], second[0], third[0]], "b", 2)
    source = ExecutionFilter(ListSource([*a, *b], [Revoked("a")], starts), since_ns=T0)
    assert read_all(source) == [
        Revoked("a"),
        Batch([first[0], second[2], second[0], third[1], third[0]], [2, 0, 3, 1, 4], "b"),
    ]
    assert source.left == 2


def test_what_was_corrected_comes_with_its_own_event_only() -> None:
    """Not with what else is taken at that moment, nor where its execution is left."""
    (first, second), b = started_at(5, 0), "b"
    module, other = first[1], second[1]
    source = ExecutionFilter(
        ListSource(
            [Batch([module, other], [7, 8], "a", [(7, "one"), (7, "two"), (8, "left")])],
            [Batch([second[0], first[0]], [1, 2], b, [(1, "left"), (2, "of the start")])],
        ),
        since_ns=T0 + MS,
    )
    assert read_all(source) == [
        Batch([module], [7], "a", [(7, "one"), (7, "two")]),
        Batch([first[0]], [2], b, [(2, "of the start")]),
    ]


def test_a_filter_is_what_its_source_is_and_passes_all_on() -> None:
    alive: list[str] = []
    source = ListSource(is_durable=False, is_ordered=False, keep_alive=lambda: alive.append("yes"))
    filtered = ExecutionFilter(source, since_ns=0)
    assert (filtered.name, filtered.is_durable, filtered.is_ordered) == ("list://", False, False)
    assert ExecutionFilter(ListSource()).is_durable
    assert ExecutionFilter(ListSource()).is_ordered
    filtered.keep_alive()
    ExecutionFilter(ListSource()).keep_alive()
    assert alive == ["yes"]
    filtered.acknowledge([Position(None, 3)])
    assert source.acknowledged == [Position(None, 3)]
    source.faults.append(UnavailableError("away"))
    with pytest.raises(UnavailableError, match="away"):
        filtered.read(0)
    filtered.close()
    assert source.closed.is_set()


def test_what_a_source_says_of_itself_a_filter_says_too() -> None:
    class Lossy(ListSource):
        last_error = "no connection"
        dropped = 3
        failed_acknowledgements = 2
        fraction_read = 0.5

    lossy, silent = ExecutionFilter(Lossy()), ExecutionFilter(ListSource())
    assert (lossy.last_error, lossy.dropped, lossy.fraction_read) == ("no connection", 3, 0.5)
    assert (silent.last_error, silent.dropped, silent.fraction_read) == (None, 0, None)
    assert (lossy.failed_acknowledgements, silent.failed_acknowledgements) == (2, 0)


def test_a_bridge_acknowledges_no_more_than_what_is_taken() -> None:
    early, late = started_at(0, 5)
    mixed = [event for pair in zip(early, late, strict=True) for event in pair]
    source, sink = ListSource(records(mixed)), ListSink()
    report = Bridge(ExecutionFilter(source, since_ns=T0 + MS), [sink]).run()
    assert sink.items == late
    assert Counter(source.acknowledged) == Counter(Position(None, offset) for offset in (1, 3, 5, 7))
    assert (report.events, report.is_delivered) == (4, True)


def test_a_source_is_not_told_anything_in_a_dry_run() -> None:
    source = ListSource(records(execution(1)))
    assert Bridge(ExecutionFilter(source, acknowledges=False), [ListSink()]).run().events == 4
    ExecutionFilter(source, acknowledges=False).acknowledge([Position(None, 0)])
    assert source.acknowledged == []


def test_a_filter_wants_acknowledgements_where_its_source_does() -> None:
    class Fleeting(Source):
        """Has no use for acknowledgements."""

    source = ListSource()
    assert ExecutionFilter(source).wants_acknowledgements
    assert not ExecutionFilter(source, acknowledges=False).wants_acknowledgements
    assert not ExecutionFilter(Fleeting()).wants_acknowledgements
