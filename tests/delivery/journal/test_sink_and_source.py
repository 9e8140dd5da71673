"""One process appends to a journal, another reads it."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from constellation_otel.delivery import Batch, Rejection, Sink, Source
from constellation_otel.errors import JournalError, MisconfiguredError, SourceError, UnavailableError
from constellation_otel.events import Event, ExecutionCancelled
from constellation_otel.transports.journal import DEFAULT_SINK, Journal, JournalSink, JournalSource, forget
from journals import EXECUTION, NS, execute, locked, numbered, numbers_of, offsets_in, positions, positions_of
from support import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path


def test_the_sink_and_the_source_keep_the_contract(path: Path) -> None:
    with closing(JournalSink(path)) as journal_sink, closing(JournalSource(path)) as journal_source:
        sink: Sink[Event] = journal_sink
        source: Source = journal_source
        assert (sink.name, sink.takes, sink.max_batch) == ("journal", "events", 512)
        described = (source.name, source.is_ordered, source.is_durable, source.has_ended)
        assert described == (f"journal:{path}", False, True, False)


@pytest.mark.parametrize("first", ["sink", "source"])
def test_what_the_sink_is_sent_the_source_reads(path: Path, first: str) -> None:
    """Whichever is there first."""
    with contextlib.ExitStack() as stack:
        if first == "source":
            source = stack.enter_context(closing(JournalSource(path)))
        sink = stack.enter_context(closing(JournalSink(path)))
        assert sink.send(numbered(1, 2, 3), 5) == []
        if first == "sink":
            source = stack.enter_context(closing(JournalSource(path)))
        items = source.read(5)
        assert items == [Batch(numbered(1, 2, 3), [1, 2, 3])]
        source.acknowledge(positions(3, 1))
        assert source.read(0) == []
        assert offsets_in(path) == [2]
        assert execute(path, "SELECT name, bit, held FROM sinks") == [(DEFAULT_SINK, 1, 1)]


def test_the_sink_appends_for_every_sink_the_file_knows(path: Path) -> None:
    """At that moment."""
    Journal(path, sinks=["otlp", "sql"]).close()
    with closing(JournalSink(path)) as sink:
        sink.send(numbered(1), 5)
        with closing(JournalSource(path, sink="late")) as source:
            sink.send(numbered(2), 5)
            assert numbers_of(source.read(5)) == [2]
        with closing(JournalSource(path, sink="sql")) as source:
            assert numbers_of(source.read(5)) == [1, 2]
        assert [forget(path, name) for name in ("otlp", "sql", "late")] == [2, 2, 1]
        assert offsets_in(path) == []
        sink.send(numbered(3), 5)
    with closing(JournalSource(path)) as source:
        assert numbers_of(source.read(5)) == [3]


def test_a_source_that_does_not_follow_ends_when_all_is_read(path: Path) -> None:
    with closing(JournalSink(path)) as sink:
        sink.send(numbered(*range(1, 514)), 5)
        with closing(JournalSource(path, follow=False)) as source:
            assert numbers_of(source.read(60)) == list(range(1, 513))
            assert not source.has_ended
            assert numbers_of(source.read(60)) == [513]
            assert not source.has_ended
            assert source.read(60) == []
            assert source.has_ended


def test_a_source_that_follows_waits_for_what_comes(path: Path) -> None:
    with closing(JournalSink(path)) as sink, closing(JournalSource(path)) as source, ThreadPoolExecutor(1) as pool:
        start = time.monotonic()
        assert source.read(0.12) == []
        assert time.monotonic() - start >= 0.12
        reading = pool.submit(source.read, DEADLINE)
        sink.send(numbered(1), 5)
        assert numbers_of(reading.result(DEADLINE)) == [1]
        assert not source.has_ended


def test_closing_a_source_ends_a_read_that_waits(path: Path) -> None:
    source = JournalSource(path)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(source.read, 2 * DEADLINE)
        source.close()
        assert reading.result(DEADLINE) == []
    source.close()
    assert source.read(0) == []
    with pytest.raises(MisconfiguredError, match="is closed"):
        source.acknowledge(positions(1))


def test_a_sink_that_is_closed_says_so_and_closes_again(path: Path) -> None:
    sink = JournalSink(path)
    sink.close()
    sink.close()
    with pytest.raises(MisconfiguredError, match=f"{path} is closed; open it again"):
        sink.send(numbered(1), 5)


def test_what_the_source_cannot_acknowledge_is_repeated(path: Path) -> None:
    with closing(JournalSink(path)) as sink, closing(JournalSource(path, timeout=0.05)) as source:
        sink.send(numbered(1, 2, 3), 5)
        source.read(5)
        with locked(path), pytest.raises(UnavailableError, match="locked"):
            source.acknowledge(positions(1))
        source.acknowledge(positions(1, 3))
        assert offsets_in(path) == [2]


def test_a_damaged_file_ends_the_source_and_alarms_the_sink(path: Path) -> None:
    with closing(JournalSink(path)) as sink, closing(JournalSource(path)) as source:
        execute(path, "DROP TABLE events")
        with pytest.raises(SourceError, match="no such table: events; it is no journal, or damaged"):
            source.read(5)
        with pytest.raises(MisconfiguredError, match="no such table: events"):
            source.acknowledge(positions(1))
        with pytest.raises(MisconfiguredError, match="no such table: events"):
            sink.send(numbered(1), 5)


def test_a_sink_rejects_single_events_with_a_wrong_type(path: Path) -> None:
    wrong = ExecutionCancelled(EXECUTION, 5, NS)  # type: ignore[arg-type] # what is tested
    late = ExecutionCancelled(EXECUTION, "dag", 2**63)
    with closing(JournalSink(path)) as sink, closing(JournalSource(path)) as source:
        rejections = sink.send([*numbered(1), wrong, *numbered(2), late], 5)
        assert [(rejection.index, rejection.count) for rejection in rejections] == [(1, 1), (3, 1)]
        assert rejections[0] == Rejection(1, 1, "dag_name must be a str, not 5; the event is dropped; fix what made it")
        assert numbers_of(source.read(5)) == [1, 2]


def test_a_sink_that_is_full_says_which_events_are_safe(path: Path) -> None:
    """And goes on when there is room."""
    wrong = ExecutionCancelled(EXECUTION, 5, NS)  # type: ignore[arg-type] # what is tested
    with closing(JournalSink(path, max_bytes=100_000)) as sink, closing(JournalSource(path)) as source:
        events = [wrong, *numbered(*range(1, 2000))]
        with pytest.raises(UnavailableError, match="has reached max_bytes=100000; check that its reader runs") as full:
            sink.send(events, 5)
        delivered = full.value.delivered
        assert delivered == frozenset(range(1, len(delivered) + 1))
        read: list[int] = []
        while len(read) < len(delivered):
            items = source.read(5)
            read += numbers_of(items)
            source.acknowledge(positions_of(items))
        assert read == list(range(1, len(delivered) + 1))
        assert len(sink.send(events[:100], 5)) == 1


def test_who_only_looks_claims_nothing_and_leaves_all_there(path: Path) -> None:
    """Whether or not the one who has the journal is at work."""
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(1, 2))
        assert looked_at(path, "otlp") == [1, 2]
        assert looked_at(path, "otlp") == [1, 2]
        assert journal.held("otlp") == 2
    files = sorted(path.parent.iterdir())
    assert looked_at(path, "otlp") == [1, 2]
    assert sorted(path.parent.iterdir()) == files
    assert execute(path, "SELECT name, held FROM sinks") == [("otlp", 2)]


def test_who_looks_for_an_unknown_sink_hears_of_the_others(path: Path) -> None:
    """Where the file knows none at all, there is nothing to be read."""
    with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
        journal.append(numbered(1, 2))
        journal.acknowledge("sql", positions(1))
        there = r"has nothing for 'kafka'; it has 2 events for \?sink=otlp, 1 events for \?sink=sql"
        with pytest.raises(JournalError, match=there):
            looked_at(path, "kafka")
    assert [forget(path, sink) for sink in ("otlp", "sql")] == [2, 1]
    assert looked_at(path, "kafka") == []


def looked_at(path: Path, sink: str) -> list[int]:
    """The numbers that a source gives which only looks."""
    with closing(JournalSource(path, sink=sink, follow=False, only_looks=True)) as source:
        numbers: list[int] = []
        while not source.has_ended:
            numbers += numbers_of(source.read(DEADLINE))
        return numbers
