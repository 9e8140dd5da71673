"""What is in a journal's file: events in MessagePack, rows, and how they are read again."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation_otel.delivery import Batch, Restarted, Unreadable
from constellation_otel.delivery.journal import all_events_of
from constellation_otel.delivery.journal.rows import Gathered, row_of
from constellation_otel.events import (
    EVENT_TYPES,
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
)
from constellation_otel.transports.journal import Journal, events_of
from journals import EXECUTION, MODULE, NS, TRACEPARENT, execute, numbered, offsets_in, positions, positions_of

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
HEADERS = st.none() | st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40)
MAYBE_TEXTS = st.none() | TEXTS
TIMES = st.integers(0, 2**63 - 1)
DURATIONS = st.none() | st.floats(0, 2**43)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(ExecutionStarted, st.uuids(), TEXTS, TIMES, HEADERS, HEADERS),
    st.builds(ModuleStarted, st.uuids(), st.none() | st.uuids(), TEXTS, TIMES),
    st.builds(ModuleCompleted, st.uuids(), st.none() | st.uuids(), TEXTS, DURATIONS, TIMES),
    st.builds(
        ModuleFailed,
        st.uuids(),
        st.none() | st.uuids(),
        TEXTS,
        st.builds(ErrorInfo, MAYBE_TEXTS, MAYBE_TEXTS, st.none(), MAYBE_TEXTS),
        TIMES,
    ),
    st.builds(ExecutionCompleted, st.uuids(), TEXTS, st.booleans(), DURATIONS, TIMES),
    st.builds(ExecutionCancelled, st.uuids(), TEXTS, TIMES),
)


def of_modules(execution_id: UUID, modules: int) -> list[Event]:
    return [ModuleStarted(execution_id, uuid4(), "Trim", NS + number) for number in range(modules)]


def items_of(*rows: tuple[int, bytes]) -> list[Batch | Unreadable | Restarted]:
    gathered = Gathered()
    for number, data in rows:
        gathered.add(number, data)
    return gathered.items


@given(event=EVENTS)
def test_an_event_that_comes_out_equals_the_one_that_went_in(event: Event) -> None:
    """Each that an event may be when it has passed the door."""
    assert items_of((7, row_of([event]).data)) == [Batch([event], [7])]


@given(
    data=st.binary()
    | st.tuples(st.sampled_from(sorted(cls.kind for cls in EVENT_TYPES)), st.binary()).map(msgspec.msgpack.encode)
)
def test_no_bytes_whatever_raise_when_they_are_read(data: bytes) -> None:
    """Whether or not they are an event."""
    offsets = [position.offset for position in positions_of(items_of((7, data)))]
    assert offsets == list(range(7, 7 + len(offsets)))
    assert 1 <= len(offsets) <= 64


@settings(max_examples=12, deadline=None)
@given(events=st.lists(EVENTS, max_size=10))
def test_what_is_appended_is_read_as_one_batch_in_order(events: list[Event]) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(Journal(f"{folder}/events.db", sinks=["otlp"])) as journal:
        assert journal.append(events) == len(events)
        batches = [Batch(events, [*range(1, len(events) + 1)])] if events else []
        assert journal.read("otlp", 0, 100) == batches


def test_a_traceback_is_kept_in_the_file_as_its_text(path: Path) -> None:
    try:
        int("the")
    except ValueError as raised:
        error = ErrorInfo.of(raised)
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append([ModuleFailed(EXECUTION, MODULE, "Trim", error, NS)])
        items = journal.read("otlp", 0, 10)
    assert error.frames is not None
    stored = ErrorInfo("ValueError", "invalid literal for int() with base 10: 'the'", None, error.frames.format())
    assert items == [Batch([ModuleFailed(EXECUTION, MODULE, "Trim", stored, NS)], [1])]
    assert "test_a_traceback_is_kept_in_the_file_as_its_text" in error.frames.format()


def test_what_utf_8_and_64_bits_cannot_hold_is_replaced(path: Path) -> None:
    odd: list[Event] = [
        ExecutionStarted(EXECUTION, "dag-\ud800", NS, TRACEPARENT, None),
        ModuleCompleted(EXECUTION, MODULE, "Trim", 10**30, NS),
        ModuleFailed(EXECUTION, None, "Trim", ErrorInfo("E", "\udfff", None, "\ud83d\ude00"), NS),
    ]
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(odd)
        replaced: list[Event] = [
            ExecutionStarted(EXECUTION, "dag-\ufffd", NS, TRACEPARENT, None),
            ModuleCompleted(EXECUTION, MODULE, "Trim", None, NS),
            ModuleFailed(EXECUTION, None, "Trim", ErrorInfo("E", "\ufffd", None, "\ufffd\ufffd"), NS),
        ]
        assert journal.read("otlp", 0, 10) == [Batch(replaced, [1, 2, 3])]


def test_a_wrong_type_refuses_its_whole_batch_of_events(path: Path) -> None:
    wrong = ExecutionCancelled(EXECUTION, 5, NS)  # type: ignore[arg-type] # what is tested
    with closing(Journal(path, sinks=["otlp"])) as journal:
        with pytest.raises(TypeError, match="dag_name must be a str, not 5"):
            journal.append([*numbered(1), wrong])
        assert journal.held("otlp") == 0
        assert journal.read("otlp", 0, 10) == []


def test_a_damaged_row_is_unreadable_and_acknowledged(path: Path) -> None:
    """As any other."""
    with closing(Journal(path, sinks=["otlp"])) as journal:
        for number in (1, 2, 3, 4):
            journal.append(numbered(number))
        future = msgspec.msgpack.encode(("module.skipped", {}))
        negative = msgspec.msgpack.encode(("execution.cancelled", (EXECUTION, "dag", -1)))
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE events SET data = ? WHERE id = 1", (b"\x00\xff",))
            connection.execute("UPDATE events SET data = ? WHERE id = 2", (future,))
            connection.execute("UPDATE events SET data = ? WHERE id = 3", (negative,))
        items = journal.read("otlp", 0, 10)
        reasons = [
            "the event in the journal is damaged: Expected `array`, got `int`",
            "the event in the journal is of an unknown kind, 'module.skipped'; a newer version may read it",
            "the event in the journal is damaged: Expected `object`, got `array`",
        ]
        datas = [b"\x00\xff", future, negative]
        assert items == [
            *(Unreadable(datas[n], reasons[n], positions(n + 1)[0]) for n in range(3)),
            Batch(numbered(4), [4]),
        ]
        journal.acknowledge("otlp", positions_of(items))
        assert offsets_in(path) == []
        assert journal.held("otlp") == 0


def test_offsets_are_not_used_again_when_rows_are_deleted(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(1, 2))
        journal.acknowledge("otlp", positions(1, 2))
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(3))
        assert positions_of(journal.read("otlp", 0, 10)) == positions(3)


def test_events_of_one_execution_can_be_read_by_others(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While another process has the journal; what cannot be read is left out, and logged."""
    others = [of_modules(uuid4(), 50) for _ in range(5)]
    wanted = of_modules(EXECUTION, 4)
    expected = [*wanted]
    with closing(Journal(path, sinks=["otlp"])) as journal:
        for other in others:
            journal.append([*other, wanted.pop(0)] if wanted else other)
        assert events_of(path, EXECUTION) == expected
        assert events_of(path, uuid4()) == []
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE events SET data = x'00' WHERE id = 51")
        assert events_of(path, EXECUTION) == expected[1:]
    assert caplog.messages == [
        f"{path}: event 51 is left out: the event in the journal is damaged: Expected `array`, got `int`"
    ]


def test_all_events_can_be_read_by_others_some_rows_at_a_time(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While another process has the journal; what cannot be read is logged, and restarts are no events."""
    runs = [of_modules(uuid4(), 2) for _ in range(600)]
    expected = [event for run in runs for event in run]
    with closing(Journal(path, sinks=["otlp"])) as journal:
        assert list(all_events_of(path)) == []
        journal.append([item for run in runs for item in (*run, None)])
        assert list(all_events_of(path)) == expected
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE events SET data = x'00' WHERE id = 1")
        assert list(all_events_of(path))[-1198:] == expected[2:]
    assert len(caplog.messages) == 1


def test_an_engines_restart_is_kept_among_the_events(path: Path) -> None:
    """Until every sink has acknowledged it."""
    first, second = numbered(1, 2)
    with closing(Journal(path, sinks=["a", "b"])) as journal:
        assert journal.append([first, None, second]) == 3
    with closing(Journal(path, sinks=["a", "b"])) as journal:
        items = journal.read("a", 0, 10)
        assert items == journal.read("b", 0, 10)
        assert items == [
            Batch([first], [1]),
            Restarted(positions(2)[0]),
            Batch([second], [3]),
        ]
        journal.acknowledge("a", positions(1, 2, 3))
        assert (journal.held("a"), journal.held("b")) == (0, 3)
        journal.acknowledge("b", positions(1, 2, 3))
    assert offsets_in(path) == []
    assert events_of(path, EXECUTION) == []


def test_a_run_of_one_executions_events_is_one_row_of_64_at_most(path: Path) -> None:
    other = uuid4()
    events = [*of_modules(EXECUTION, 65), *of_modules(other, 1), None, *of_modules(other, 2)]
    with closing(Journal(path, sinks=["otlp"])) as journal:
        assert journal.append(events) == 69
        assert execute(path, "SELECT id FROM events ORDER BY id") == [(1,), (65,), (66,), (67,), (68,)]
        assert offsets_in(path) == list(range(1, 70))
        assert [len(events_of(path, of)) for of in (EXECUTION, other)] == [65, 3]


def test_events_in_the_middle_of_a_row_are_acknowledged_and_read_by_themselves(path: Path) -> None:
    events = of_modules(EXECUTION, 60)
    with closing(Journal(path, sinks=["a", "b"])) as journal:
        journal.append(events)
        journal.acknowledge("a", positions(*range(11, 21), 50))
        assert (journal.held("a"), journal.held("b")) == (49, 60)
        assert journal.read("b", 30, 5) == [Batch(events[30:35], [*range(31, 36)])]
        left = [*range(1, 11), *range(21, 50), *range(51, 61)]
        assert journal.read("a", 0, 100) == [Batch([events[offset - 1] for offset in left], left)]
        assert journal.read("b", 0, 100) == [Batch(events, [*range(1, 61)])]
        journal.acknowledge("b", positions(*range(1, 61)))
        assert offsets_in(path) == left
        journal.acknowledge("a", positions(*left))
        assert offsets_in(path) == []
        assert (journal.held("a"), journal.held("b")) == (0, 0)


def test_a_row_that_is_damaged_costs_its_own_events(path: Path) -> None:
    events = of_modules(EXECUTION, 30)
    (row, of_others) = row_of(events[:20]).data, row_of(events[20:]).data
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(events[:20])
        journal.append(events[20:])
        execute(path, f"UPDATE events SET data = x'{row[:-4].hex()}' WHERE id = 1")
        one = of_others.replace(b"module.started", b"module.skipped", 1)
        execute(path, f"UPDATE events SET data = x'{one.hex()}' WHERE id = 21")
        assert positions_of(journal.read("otlp", 0, 5)) == positions(*range(1, 6))
        items = journal.read("otlp", 0, 100)
        assert positions_of(items) == positions(*range(1, 31))
        assert items[21:] == [Batch(events[21:], [*range(22, 31)])]
        # what says the same twenty times need not be kept for the other nineteen
        journal.acknowledge("otlp", positions(1))
        assert journal.held("otlp") == 10
        journal.acknowledge("otlp", positions_of(items))
        assert journal.held("otlp") == 0


def test_a_file_of_version_1_is_read_and_appended_to(path: Path) -> None:
    """There each row is the pair of one event."""
    events = [*of_modules(EXECUTION, 3), *numbered(4, 5)]
    with closing(Journal(path, sinks=["otlp"])) as journal:
        for event in events[:3]:
            journal.append([event])
    for number, event in enumerate(events[:3], 1):
        pair = row_of([event]).data[1:]
        execute(path, f"UPDATE events SET data = x'{pair.hex()}' WHERE id = {number}")
    execute(path, "PRAGMA user_version = 1")
    with closing(Journal(path, sinks=["otlp"])) as journal:
        assert journal.read("otlp", 0, 10) == [Batch(events[:3], [1, 2, 3])]
        assert execute(path, "PRAGMA user_version") == [(1,)]
        journal.append(events[3:])
        assert execute(path, "PRAGMA user_version") == [(2,)]
        assert journal.read("otlp", 0, 10) == [Batch(events, [1, 2, 3, 4, 5])]
        journal.acknowledge("otlp", positions(1, 3, 4))
        assert offsets_in(path) == [2, 5]
