"""The journal against real files: other processes, kill -9, full disks, forks."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation_otel.delivery import Position, Record, Rejection, Restarted, Sink, Source, Unreadable
from constellation_otel.delivery.journal import file as module
from constellation_otel.errors import (
    ConfigurationError,
    JournalError,
    MisconfiguredError,
    SourceError,
    UnavailableError,
)
from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
)
from constellation_otel.transports.journal import DEFAULT_SINK, Journal, JournalSink, JournalSource, events_of, forget
from support import DEADLINE, eventually, small_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
MODULE = UUID("b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538")
NS = 1_795_465_363_577_123_456
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


def numbered(*numbers: int) -> list[Event]:
    return [ExecutionCancelled(EXECUTION, f"dag-{number}", number) for number in numbers]


def of_execution(execution_id: UUID, modules: int) -> list[Event]:
    return [ModuleStarted(execution_id, uuid4(), "Trim", NS + number) for number in range(modules)]


def numbers_of(items: list[Record | Unreadable | Restarted]) -> list[int]:
    return [item.event.timestamp_ns for item in items if isinstance(item, Record)]


def positions_of(items: list[Record | Unreadable | Restarted]) -> list[Position]:
    return [item.position for item in items]


def positions(*offsets: int) -> list[Position]:
    return [Position(None, offset) for offset in offsets]


def offsets_in(path: Path) -> list[int]:
    return [offset for (offset,) in execute(path, "SELECT id FROM events ORDER BY id")]


def execute(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    """Runs statements over a connection of their own, and answers the last one's rows."""
    rows: list[tuple[Any, ...]] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


def run(program: str, *arguments: object) -> list[str]:
    """Runs a program of this test's in an interpreter of its own, and answers its lines."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


# --- events in and out ------------------------------------------------------------------

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


@given(event=EVENTS)
def test_an_event_that_comes_out_equals_the_one_that_went_in(event: Event) -> None:
    assert module._item(7, module._row(event).data) == Record(event, Position(None, 7))


@given(data=st.binary() | st.tuples(st.sampled_from(sorted(module._TYPES)), st.binary()).map(msgspec.msgpack.encode))
def test_no_bytes_whatever_raise_when_they_are_read(data: bytes) -> None:
    assert module._item(7, data).position == Position(None, 7)


@settings(max_examples=12, deadline=None)
@given(events=st.lists(EVENTS, max_size=10))
def test_what_is_appended_is_read_in_order(events: list[Event]) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(Journal(f"{folder}/events.db", sinks=["otlp"])) as journal:
        assert journal.append(events) == len(events)
        expected = [Record(event, Position(None, offset)) for offset, event in enumerate(events, 1)]
        assert journal.read("otlp", 0, 100) == expected


def test_a_traceback_is_kept_as_text(path: Path) -> None:
    try:
        int("the")
    except ValueError as raised:
        error = ErrorInfo.of(raised)
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append([ModuleFailed(EXECUTION, MODULE, "Trim", error, NS)])
        [record] = journal.read("otlp", 0, 10)
    assert error.frames is not None
    stored = ErrorInfo("ValueError", "invalid literal for int() with base 10: 'the'", None, error.frames.format())
    assert record == Record(ModuleFailed(EXECUTION, MODULE, "Trim", stored, NS), Position(None, 1))
    assert "test_a_traceback_is_kept_as_text" in error.frames.format()


def test_what_utf_8_and_64_bits_cannot_hold_is_replaced(path: Path) -> None:
    odd: list[Event] = [
        ExecutionStarted(EXECUTION, "dag-\ud800", NS, TRACEPARENT, None),
        ModuleCompleted(EXECUTION, MODULE, "Trim", 10**30, NS),
        ModuleFailed(EXECUTION, None, "Trim", ErrorInfo("E", "\udfff", None, "\ud83d\ude00"), NS),
    ]
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(odd)
        assert journal.read("otlp", 0, 10) == [
            Record(ExecutionStarted(EXECUTION, "dag-\ufffd", NS, TRACEPARENT, None), Position(None, 1)),
            Record(ModuleCompleted(EXECUTION, MODULE, "Trim", None, NS), Position(None, 2)),
            Record(
                ModuleFailed(EXECUTION, None, "Trim", ErrorInfo("E", "\ufffd", None, "\ufffd\ufffd"), NS),
                Position(None, 3),
            ),
        ]


def test_an_event_with_a_value_of_the_wrong_type_is_refused_with_its_whole_batch(path: Path) -> None:
    wrong = ExecutionCancelled(EXECUTION, 5, NS)  # type: ignore[arg-type] # what is tested
    with closing(Journal(path, sinks=["otlp"])) as journal:
        with pytest.raises(TypeError, match="dag_name must be a str, not 5"):
            journal.append([*numbered(1), wrong])
        assert journal.held("otlp") == 0
        assert journal.read("otlp", 0, 10) == []


def test_a_damaged_row_is_unreadable_and_is_acknowledged_as_any_other(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(1, 2, 3, 4))
        future = msgspec.msgpack.encode(("module.skipped", {}))
        negative = msgspec.msgpack.encode(("execution.cancelled", (EXECUTION, "dag", -1)))
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE events SET data = ? WHERE id = 1", (b"\x00\xff",))
            connection.execute("UPDATE events SET data = ? WHERE id = 2", (future,))
            connection.execute("UPDATE events SET data = ? WHERE id = 3", (negative,))
        items = journal.read("otlp", 0, 10)
        reasons = [
            "the journal's event is damaged: Expected `array`, got `int`",
            "the journal's event is of an unknown kind, 'module.skipped'; a newer version may read it",
            "the journal's event is damaged: Expected `object`, got `array`",
        ]
        datas = [b"\x00\xff", future, negative]
        assert items == [
            *(Unreadable(datas[n], reasons[n], Position(None, n + 1)) for n in range(3)),
            Record(numbered(4)[0], Position(None, 4)),
        ]
        journal.acknowledge("otlp", positions_of(items))
        assert offsets_in(path) == []
        assert journal.held("otlp") == 0


# --- sinks ------------------------------------------------------------------------------


def test_what_all_sinks_have_acknowledged_is_deleted_whatever_is_open_around_it(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
        journal.append(numbered(1, 2, 3, 4, 5, 6))
        journal.acknowledge("otlp", positions(5, 2, 3))
        assert numbers_of(journal.read("otlp", 0, 10)) == [1, 4, 6]
        assert numbers_of(journal.read("sql", 0, 10)) == [1, 2, 3, 4, 5, 6]
        journal.acknowledge("sql", positions(3, 6, 2))
        assert offsets_in(path) == [1, 4, 5, 6]
        assert (journal.held("otlp"), journal.held("sql")) == (3, 3)
        journal.acknowledge("otlp", positions(2, 3, 6, 6, 99))
        journal.acknowledge("sql", [])
        assert offsets_in(path) == [1, 4, 5]
        assert (journal.held("otlp"), journal.held("sql")) == (2, 3)
        assert numbers_of(journal.read("otlp", 1, 10)) == [4]
        assert numbers_of(journal.read("sql", 1, 1)) == [4]


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 5)),
            st.tuples(st.sampled_from(["otlp", "sql"]), st.sets(st.integers(1, 20), max_size=8)),
            st.tuples(st.sampled_from(["read otlp", "read sql"]), st.integers(0, 20)),
        ),
        max_size=25,
    )
)
def test_each_sink_reads_what_it_has_not_acknowledged_in_any_sequence_of_calls(steps: list[tuple[str, Any]]) -> None:
    pending: dict[str, list[int]] = {"otlp": [], "sql": []}
    appended = 0
    with tempfile.TemporaryDirectory() as folder, closing(Journal(f"{folder}/e.db", sinks=sorted(pending))) as journal:
        for step, value in steps:
            if step == "append":
                new = range(appended + 1, appended + value + 1)
                assert journal.append(numbered(*new)) == value
                appended += value
                for sink in pending:
                    pending[sink] += new
            elif step in pending:
                journal.acknowledge(step, positions(*value))
                pending[step] = [number for number in pending[step] if number not in value]
            else:
                sink = step.removeprefix("read ")
                expected = [number for number in pending[sink] if number > value]
                assert numbers_of(journal.read(sink, value, 3)) == expected[:3]
        assert {sink: journal.held(sink) for sink in pending} == {sink: len(left) for sink, left in pending.items()}
        assert offsets_in(Path(folder, "e.db")) == sorted({*pending["otlp"], *pending["sql"]})


def test_rows_that_another_sink_pins_are_looked_at_once(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
        journal.append(numbered(*range(1, 1001)))
        journal.acknowledge("otlp", positions(*range(1, 1001)))
        assert journal.read("otlp", 0, 10) == []
        assert journal._reader("otlp")._gap == (0, 1000)
        journal.append(numbered(1001, 1002))
        assert numbers_of(journal.read("otlp", 0, 10)) == [1001, 1002]
        assert numbers_of(journal.read("otlp", 500, 1)) == [1001]


def test_numbers_are_never_used_twice(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(1, 2))
        journal.acknowledge("otlp", positions(1, 2))
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(3))
        assert positions_of(journal.read("otlp", 0, 10)) == positions(3)


def test_what_was_not_acknowledged_is_there_when_the_journal_is_opened_again(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(1, 2, 3))
        journal.acknowledge("otlp", positions(2))
    with closing(Journal(path, sinks=["otlp"])) as journal:
        assert journal.held("otlp") == 2
        assert numbers_of(journal.read("otlp", 0, 10)) == [1, 3]


def test_a_new_sink_gets_what_is_appended_from_then_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(1))
    with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
        journal.append(numbered(2))
        assert numbers_of(journal.read("otlp", 0, 10)) == [1, 2]
        assert numbers_of(journal.read("sql", 0, 10)) == [2]
    assert caplog.messages == []


def test_a_sink_that_is_gone_keeps_its_events_and_a_warning_says_so(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
        journal.append(numbered(1, 2))
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(3))
        journal.acknowledge("otlp", positions(1, 2, 3))
    assert offsets_in(path) == [1, 2]
    assert caplog.record_tuples == [
        (
            "constellation_otel.delivery.journal.journal",
            logging.WARNING,
            (
                f"{path} keeps 2 events for 'sql', which is no sink of it now: read it for that sink,"
                " or drop them with constellation_otel.delivery.journal.journal.forget(path, 'sql')"
            ),
        )
    ]


def test_a_sink_that_is_forgotten_pins_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FORGET_ROWS", 3)
    with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
        journal.append(numbered(*range(1, 11)))
        journal.acknowledge("otlp", positions(1, 2, 3, 4))
        journal.acknowledge("sql", positions(4, 5))
    assert forget(path, "sql") == 8
    assert offsets_in(path) == [5, 6, 7, 8, 9, 10]
    with pytest.raises(ValueError, match=r"knows no sink 'sql', only \['otlp'\]"):
        forget(path, "sql")
    # its bit goes to another one, which must not inherit anything
    with closing(Journal(path, sinks=["otlp", "kafka"])) as journal:
        assert journal.read("kafka", 0, 10) == []
        assert numbers_of(journal.read("otlp", 0, 10)) == [5, 6, 7, 8, 9, 10]
        with pytest.raises(JournalError, match=f"process {os.getpid()} has {path} to consume"):
            forget(path, "otlp")


def test_a_sink_that_the_journal_was_not_opened_for_is_refused(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
        with pytest.raises(ValueError, match=r"'kafka' is none of the sinks .*: \['otlp', 'sql'\]"):
            journal.read("kafka", 0, 1)
        with pytest.raises(ValueError, match="'kafka' is none"):
            journal.acknowledge("kafka", [])
        with pytest.raises(ValueError, match="'kafka' is none"):
            journal.held("kafka")


@pytest.mark.parametrize("sinks", [[], ["otlp", "otlp"]])
def test_sinks_must_be_one_or_more_different_ones(path: Path, sinks: list[str]) -> None:
    with pytest.raises(ValueError, match="must be one or more different names"):
        Journal(path, sinks=sinks)


def test_a_file_knows_62_sinks_at_most(path: Path) -> None:
    with closing(Journal(path, sinks=[f"sink-{number}" for number in range(62)])) as journal:
        journal.append(numbered(1))
        assert numbers_of(journal.read("sink-61", 0, 10)) == [1]
        for number in range(62):
            journal.acknowledge(f"sink-{number}", positions(1))
        assert offsets_in(path) == []
    with pytest.raises(JournalError, match="knows 62 sinks, and no more are possible: forget one of"):
        Journal(path, sinks=["one-more"])


# --- size -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda path, size: Journal(path, sinks=["otlp"], max_bytes=size), JournalSink])
def test_a_size_too_small_is_refused(path: Path, make: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="max_bytes=65535 must be at least 65536"):
        make(path, max_bytes=65_535) if make is JournalSink else make(path, 65_535)


def test_the_newest_events_are_not_taken_when_the_size_is_reached_and_room_is_used_again(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"], max_bytes=300_000)) as journal:
        batch = numbered(*range(1, 301))
        taken = [journal.append(batch) for _ in range(10)]
        assert taken[0] == 300
        assert taken[-1] < 300
        assert 200_000 < journal.size_bytes <= 300_000
        assert journal.held("otlp") == sum(taken)
        assert [journal.append(batch) for _ in range(200)][-1] == 0
        held = journal.read("otlp", 0, 10_000)
        assert numbers_of(held)[:300] == list(range(1, 301))
        journal.acknowledge("otlp", positions_of(held))
        assert journal.append(batch) == 300
        assert journal.size_bytes < 200_000


def test_the_file_shrinks_after_an_outage_and_the_log_stays_small(path: Path) -> None:
    big = [
        *numbered(0),
        *(ModuleFailed(EXECUTION, None, "m", ErrorInfo("E", "x" * 3_000), number) for number in range(500)),
    ]
    with closing(Journal(path, sinks=["otlp"])) as journal:
        for _ in range(8):
            journal.append(big)
        grown = path.stat().st_size
        while items := journal.read("otlp", 0, 500):
            journal.acknowledge("otlp", positions_of(items))
        assert path.with_name("events.db-wal").stat().st_size < 12_000_000
    assert grown > 11_000_000
    assert path.stat().st_size < 5_000_000


# --- what a file may be -----------------------------------------------------------------


def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    path.touch()
    with closing(Journal(str(path), sinks=["otlp"])) as journal:
        assert journal.append(numbered(1)) == 1
    assert execute(path, "PRAGMA integrity_check") == [("ok",)]
    assert execute(path, "PRAGMA journal_mode") == [("wal",)]


def test_what_is_committed_is_synced(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        assert journal._database.row("PRAGMA synchronous", timeout=1) == (2,)


OPENERS: list[Callable[[Path], Any]] = [
    lambda path: Journal(path, sinks=["otlp"]),
    JournalSink,
    JournalSource,
    lambda path: events_of(path, EXECUTION),
    lambda path: forget(path, "otlp"),
]
EVERY_OPENER = pytest.mark.parametrize("opener", OPENERS, ids=["journal", "sink", "source", "events_of", "forget"])


@EVERY_OPENER
def test_a_file_of_another_kind_is_refused_and_left_alone(path: Path, opener: Callable[[Path], Any]) -> None:
    path.write_text("id,name\n" * 1000)
    with pytest.raises(JournalError, match="file is not a database; it is no journal, or damaged: move it away"):
        opener(path)
    assert [child.name for child in path.parent.iterdir()] == ["events.db"]
    assert path.read_text() == "id,name\n" * 1000


@EVERY_OPENER
def test_another_applications_database_is_refused_and_left_alone(path: Path, opener: Callable[[Path], Any]) -> None:
    execute(path, "CREATE TABLE users (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"another application's SQLite file \(application_id 0x0, a journal's is"):
        opener(path)
    assert path.read_bytes() == before
    assert [child.name for child in path.parent.iterdir()] == ["events.db"]


@EVERY_OPENER
def test_another_version_is_refused_with_both_numbers(path: Path, opener: Callable[[Path], Any]) -> None:
    Journal(path, sinks=["otlp"]).close()
    execute(path, "PRAGMA user_version = 7")
    with pytest.raises(JournalError, match="is a journal of version 7, and this release has version 1; empty it"):
        opener(path)


@EVERY_OPENER
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, opener: Callable[[Path], Any]) -> None:
    with pytest.raises(JournalError, match=f"has no folder to be in; make {tmp_path / 'absent'}"):
        opener(tmp_path / "absent" / "events.db")


@EVERY_OPENER
def test_a_folder_is_no_journal(tmp_path: Path, opener: Callable[[Path], Any]) -> None:
    with pytest.raises(JournalError, match="is a folder; add the journal's file to the path"):
        opener(tmp_path)


@pytest.mark.parametrize("opener", OPENERS[3:], ids=["events_of", "forget"])
def test_who_only_looks_makes_no_file(path: Path, opener: Callable[[Path], Any]) -> None:
    with pytest.raises(JournalError, match=f"there is no journal {path}"):
        opener(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(JournalError, match="is an empty file and no journal yet"):
        opener(path)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As root, permissions mean nothing: become somebody whom they stop."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("opener", OPENERS[:3], ids=["journal", "sink", "source"])
def test_a_folder_that_cannot_be_written_is_named(open_folder: Path, opener: Callable[[Path], Any]) -> None:
    open_folder.chmod(0o555)
    with nobody(), pytest.raises(JournalError, match=f"{open_folder}/events.db: unable to open .* may write to them"):
        opener(open_folder / "events.db")


@pytest.mark.parametrize("opener", OPENERS[:3], ids=["journal", "sink", "source"])
def test_a_file_that_cannot_be_written_is_named(open_folder: Path, opener: Callable[[Path], Any]) -> None:
    path = open_folder / "events.db"
    Journal(path, sinks=["otlp"]).close()
    for file in open_folder.iterdir():
        file.chmod(0o666)
    path.chmod(0o444)
    open_folder.chmod(0o777)
    with nobody(), pytest.raises(JournalError, match="readonly database; see that the file and its folder are there"):
        opener(path)


def test_a_lock_that_cannot_be_made_is_named(path: Path) -> None:
    path.with_name("events.db.append-lock").mkdir()
    with pytest.raises(JournalError, match="append-lock cannot be opened: Is a directory"):
        JournalSink(path)


def test_a_damaged_file_is_named_and_never_a_surprise(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(*range(1, 2000)))
    size = path.stat().st_size
    with path.open("r+b") as file:
        for page in range(2, size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    with pytest.raises(JournalError, match="malformed; it is no journal, or damaged"):
        JournalSource(path)


def test_a_file_that_is_damaged_while_it_is_open_is_an_alarm_and_takes_nothing(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        execute(path, "DROP TABLE events")
        with pytest.raises(MisconfiguredError, match="no such table: events; it is no journal, or damaged"):
            journal.append(numbered(1))
        with pytest.raises(MisconfiguredError, match="no such table: events"):
            journal.read("otlp", 0, 10)
        with pytest.raises(MisconfiguredError, match="no such table: events"):
            journal.acknowledge("otlp", positions(1))


def test_a_disk_without_shared_memory_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # what SQLite answers there; such a disk is not to be had in a test
    monkeypatch.setattr(module, "_USE_WAL", "PRAGMA journal_mode = DELETE")
    with pytest.raises(JournalError, match="no write-ahead log \\(it is 'delete'\\); put it on a local disk"):
        JournalSink(path)


def test_many_processes_may_make_the_file_at_once(path: Path) -> None:
    program = """
import sys
from contextlib import closing
from constellation_otel.transports.journal import JournalSink, JournalSource
with closing((JournalSink if sys.argv[2] == "sink" else JournalSource)(sys.argv[1])):
    print("open")
"""
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            ran = [pool.submit(run, program, path, role) for role in ("sink", "source")]
            assert [future.result() for future in ran] == [["open"], ["open"]]
            path.unlink()


def test_threads_that_make_the_file_at_once_both_find_a_journal(tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / f"{number}.db"
        barrier = threading.Barrier(2)

        def make(
            opener: type[JournalSink | JournalSource], path: Path = path, barrier: threading.Barrier = barrier
        ) -> None:
            barrier.wait(DEADLINE)
            opener(path).close()

        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(make, JournalSink), pool.submit(make, JournalSource)]:
                future.result(DEADLINE)


def test_a_maker_that_comes_second_leaves_the_file_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_empty = module._is_empty
    answers = []

    def after_which_another_makes_it(connection: sqlite3.Connection, where: Path) -> bool:
        answers.append(is_empty(connection, where))
        if len(answers) == 1:
            with closing(Journal(path, sinks=["otlp"])) as journal:
                journal.append(numbered(1))
        return answers[-1]

    monkeypatch.setattr(module, "_is_empty", after_which_another_makes_it)
    with closing(JournalSource(path, sink="otlp")) as source:
        assert numbers_of(source.read(0)) == [1]
    assert answers[0] is True


def test_the_switch_to_the_log_waits_for_whoever_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(1))
    execute(path, "PRAGMA journal_mode = DELETE")
    with writing(path):
        monkeypatch.setattr(module, "_TIMEOUT", 0.2)
        with pytest.raises(UnavailableError, match="database is locked"):
            JournalSink(path)
        monkeypatch.undo()
    JournalSink(path).close()


# --- one appender, one consumer ---------------------------------------------------------

HOLDER = """
import os, sys
from constellation_otel.transports.journal import Journal, JournalSink, JournalSource
opened = eval(sys.argv[2])(sys.argv[1])
print(os.getpid(), flush=True)
sys.stdin.readline()
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(
    ("holder", "taken"),
    [
        ("lambda path: Journal(path, sinks=['otlp'])", {"append", "consume"}),
        ("JournalSink", {"append"}),
        ("JournalSource", {"consume"}),
    ],
)
def test_a_second_process_is_refused_by_name_until_the_first_is_gone(path: Path, holder: str, taken: set[str]) -> None:
    needs = {"append": JournalSink, "consume": JournalSource}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            assert process.stdin
            assert process.stdout.readline() == f"{process.pid}\n"
            for role, opener in needs.items():
                if role in taken:
                    with pytest.raises(JournalError, match=f"process {process.pid} has {path} to {role}, as only one"):
                        opener(path)
                else:
                    opener(path).close()
            with pytest.raises(JournalError, match=f"process {process.pid} has"):
                Journal(path, sinks=["otlp"])
        finally:
            process.communicate("die\n", timeout=DEADLINE)
    assert process.returncode == -signal.SIGKILL
    Journal(path, sinks=["otlp"]).close()


def test_a_holder_that_has_not_yet_written_its_id_is_called_new(path: Path) -> None:
    with path.with_name("events.db.append-lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(JournalError, match="process that has only just started has"):
            JournalSink(path)


def test_a_journal_that_could_not_be_opened_holds_nothing(path: Path) -> None:
    with closing(JournalSource(path)):
        for _ in range(2):
            with pytest.raises(JournalError, match="to consume"):
                Journal(path, sinks=["otlp"])
        JournalSink(path).close()


# --- waiting ----------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Somebody else's write transaction, which stays open."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


def test_reading_goes_on_while_somebody_writes_and_writing_gives_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", 0.2)
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(1, 2))
        with writing(path):
            assert numbers_of(journal.read("otlp", 0, 10)) == [1, 2]
            assert journal.held("otlp") == 2
            with pytest.raises(UnavailableError, match="database is locked; another process has been writing"):
                journal.append(numbered(3))
            with pytest.raises(UnavailableError, match="database is locked"):
                journal.acknowledge("otlp", positions(1))
        assert journal.append(numbered(3)) == 1
        journal.acknowledge("otlp", positions(1))
        assert numbers_of(journal.read("otlp", 0, 10)) == [2, 3]


def test_a_thread_waits_for_another_no_longer_than_its_deadline(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        with journal._database.transaction(1), monkeypatch.context() as patch:
            patch.setattr(module, "_TIMEOUT", 0.05)
            with pytest.raises(UnavailableError, match="another thread has been using it all the time"):
                journal.append(numbered(1))
        assert journal.append(numbered(1)) == 1


def test_a_thread_that_waits_for_another_goes_on_when_that_is_done(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL", 0.001)
    looked: list[float] = []
    left = module.Database._left

    def look(database: module.Database, deadline: float) -> float:
        looked.append(deadline)
        return left(database, deadline)

    monkeypatch.setattr(module.Database, "_left", look)
    with closing(Journal(path, sinks=["otlp"])) as journal, ThreadPoolExecutor(1) as pool:
        with journal._database.transaction(DEADLINE):
            looked.clear()
            waiting = pool.submit(journal.append, numbered(1))
            eventually(lambda: len(looked) > 6, "it has looked at the time again and again")
        assert waiting.result(DEADLINE) == 1


def test_a_call_that_waits_ends_when_the_time_for_it_is_made_shorter(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal, ThreadPoolExecutor(2) as pool:
        with writing(path):
            waiting = [pool.submit(journal.append, numbered(1)) for _ in range(2)]
            start = time.monotonic()
            journal.finish_by(start + 0.5)
            # whichever is first waits for the database, and the other one for it
            errors = [call.exception(DEADLINE) for call in waiting]
            assert all(isinstance(error, UnavailableError) for error in errors)
            said = " ".join(map(str, errors))
            assert "database is locked" in said
            assert "is busy: another thread" in said
            assert time.monotonic() - start < module._TIMEOUT / 2
        journal.finish_by(time.monotonic() + DEADLINE)
        assert journal.append(numbered(1)) == 1


def test_closing_waits_for_no_thread_that_hangs_which_lets_go_of_the_file_when_it_is_done(path: Path) -> None:
    journal = Journal(path, sinks=["otlp"])
    hangs, ends = threading.Event(), threading.Event()

    def hang() -> None:
        with journal._database.transaction(1):
            hangs.set()
            assert ends.wait(DEADLINE)

    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(hang)
        assert hangs.wait(DEADLINE)
        journal.finish_by(time.monotonic())
        start = time.monotonic()
        journal.close()
        assert time.monotonic() - start < module._TIMEOUT / 2
        with pytest.raises(UnavailableError, match="another thread"):
            journal.append(numbered(1))
        ends.set()
        hanging.result(DEADLINE)
    assert journal._database._connection is None
    with pytest.raises(JournalError, match="is closed"):
        journal.append(numbered(1))
    Journal(path, sinks=["otlp"]).close()


def test_an_appender_and_readers_at_once_lose_nothing(path: Path) -> None:
    sinks = ["kafka", "otlp", "sql"]
    got: dict[str, list[int]] = {sink: [] for sink in sinks}
    with closing(Journal(path, sinks=sinks)) as journal:

        def drain(sink: str) -> None:
            def drained() -> bool:
                items = journal.read(sink, 0, 50)
                got[sink] += numbers_of(items)
                journal.acknowledge(sink, positions_of(items))
                return len(got[sink]) >= 1000

            eventually(drained, f"all events at {sink}")

        with ThreadPoolExecutor(3) as pool:
            draining = [pool.submit(drain, sink) for sink in sinks]
            for start in range(1, 1001, 20):
                assert journal.append(numbered(*range(start, start + 20))) == 20
            for future in draining:
                future.result(DEADLINE)
        assert {sink: journal.held(sink) for sink in sinks} == dict.fromkeys(sinks, 0)
    assert got == {sink: list(range(1, 1001)) for sink in sinks}
    assert offsets_in(path) == []


def test_a_closed_journal_says_so_and_closes_again(path: Path) -> None:
    journal = Journal(path, sinks=["otlp"])
    journal.close()
    journal.close()
    for use in (
        lambda: journal.append(numbered(1)),
        lambda: journal.read("otlp", 0, 1),
        lambda: journal.acknowledge("otlp", positions(1)),
        lambda: journal.held("otlp"),
        lambda: journal.size_bytes,
    ):
        with pytest.raises(JournalError, match=f"{path} is closed; open it again"):
            use()


# --- kill -9 ----------------------------------------------------------------------------

KILLED = """
import os, random, signal, sys, time
from constellation_otel.delivery import Position
from constellation_otel.events import ExecutionCancelled
from constellation_otel.transports.journal import Journal
from uuid import UUID

path, log_path = sys.argv[1:]
execution = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def tell(word, numbers):
    os.write(log, f"{word} {' '.join(map(str, numbers))}\\n".encode())

def work(first):
    journal, number = Journal(path, sinks=["otlp", "sql"]), first
    while True:
        batch = range(number, number + random.randint(1, 60))
        number += len(batch)
        tell("appending", batch)
        journal.append([ExecutionCancelled(execution, "x" * random.randint(1, 2000), n) for n in batch])
        tell("appended", batch)
        for sink in ("otlp", "sql"):
            items = journal.read(sink, 0, 200)
            chosen = random.sample(items, len(items) * 2 // 3)
            numbers = [item.event.timestamp_ns for item in chosen]
            tell("acknowledging-" + sink, numbers)
            journal.acknowledge(sink, [item.position for item in chosen])
            tell("acknowledged-" + sink, numbers)

def lines():
    with open(log_path) as file:
        return sum(1 for _ in file)

for line in sys.stdin:
    first, steps, delay_ms = map(int, line.split())
    before = lines()
    child = os.fork()
    if child == 0:
        work(first)
    deadline = time.monotonic() + 30
    while lines() < before + steps and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay_ms / 1000)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


def told(log: Path) -> defaultdict[str, set[int]]:
    """Which numbers the killed processes said of what they did, by what they did."""
    said: defaultdict[str, set[int]] = defaultdict(set)
    for line in log.read_text().splitlines():
        word, *numbers = line.split(" ")
        said[word].update(int(number) for number in numbers if number)
    return said


def test_kill_9_loses_nothing_that_was_committed_and_brings_back_nothing_acknowledged(path: Path) -> None:
    log = path.with_name("log")
    kills = 24
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            for kill in range(kills):
                process.stdin.write(f"{kill * 1_000_000 + 1} {random.randint(1, 20)} {random.randint(0, 10)}\n")
                process.stdin.flush()
                assert process.stdout.readline() == f"{-signal.SIGKILL}\n"
                said = told(log)
                with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
                    for sink in ("otlp", "sql"):
                        there = Counter(numbers_of(journal.read(sink, 0, 1_000_000)))
                        assert set(there.values()) <= {1}
                        assert journal.held(sink) == len(there)
                        left = said["appended"] - said[f"acknowledging-{sink}"]
                        assert left <= there.keys()
                        assert not said[f"acknowledged-{sink}"] & there.keys()
                        assert there.keys() <= said["appending"]
                assert execute(path, "PRAGMA integrity_check") == [("ok",)]
        finally:
            process.stdin.close()
            process.wait(DEADLINE)
    assert len(told(log)["appended"]) > kills


# --- full disks -------------------------------------------------------------------------


@pytest.fixture(name="small_disk")
def small_disk_of_16_mib(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "16m") as disk:
        yield disk


def fill(journal: Journal) -> list[int]:
    """Appends until the disk is full, and answers the numbers of what was taken."""
    taken: list[int] = []

    def append_for_ever() -> None:
        while True:
            numbers = range(len(taken) + 1, len(taken) + 101)
            journal.append([ExecutionCancelled(EXECUTION, "x" * 1000, number) for number in numbers])
            taken.extend(numbers)

    with pytest.raises(UnavailableError, match="free some space"):
        append_for_ever()
    return taken


def fill_up(disk: Path) -> Path:
    """Leaves not one byte, and answers which file to delete for space."""
    filler = disk / "filler"
    file = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(file, bytes(4096))
    except OSError:
        return filler
    finally:
        os.close(file)


def test_on_a_disk_that_the_journal_has_filled_acknowledging_goes_on_and_makes_room(small_disk: Path) -> None:
    with closing(Journal(small_disk / "events.db", sinks=["otlp"])) as journal:
        numbers = fill(journal)
        assert len(numbers) > 1000
        items = journal.read("otlp", 0, 100_000)
        assert numbers_of(items) == numbers
        for start in range(0, len(items), 500):
            journal.acknowledge("otlp", positions_of(items[start : start + 500]))
        assert journal.held("otlp") == 0
        assert journal.append(numbered(7)) == 1
        assert numbers_of(journal.read("otlp", 0, 10)) == [7]
    assert execute(small_disk / "events.db", "PRAGMA integrity_check") == [("ok",)]


def test_on_a_disk_that_others_have_filled_nothing_is_lost_and_all_goes_on_when_there_is_space(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Journal(small_disk / "events.db", sinks=["otlp"])) as journal:
        journal.append(numbered(*range(1, 101)))
        filler = fill_up(small_disk)
        with pytest.raises(UnavailableError, match=r"the disk of .* is full: \d+ bytes are free"):
            journal.append(numbered(101))
        monkeypatch.setattr(module, "_RESERVE_BYTES", 0)
        with pytest.raises(UnavailableError, match="disk is full; free some space"):
            journal.append(numbered(*range(101, 9_000)))
        monkeypatch.undo()
        items = journal.read("otlp", 0, 1000)
        assert numbers_of(items) == list(range(1, 101))
        filler.unlink()
        journal.acknowledge("otlp", positions_of(items[:50]))
        assert journal.append(numbered(101)) == 1
        assert numbers_of(journal.read("otlp", 0, 1000)) == list(range(51, 102))


def test_acknowledging_on_a_full_disk_writes_the_log_anew_in_the_space_it_has(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RESERVE_BYTES", 0)
    with closing(Journal(small_disk / "events.db", sinks=["otlp"])) as journal:
        # rows that are in the file, and a log that has changes of theirs
        journal.append(numbered(*range(1, 2001)))
        journal._database.row("PRAGMA wal_checkpoint(TRUNCATE)", timeout=5)
        journal.acknowledge("otlp", positions(*range(1, 1001)))
        fill_up(small_disk)
        journal.acknowledge("otlp", positions(*range(1001, 1501)))
        assert journal.held("otlp") == 500
        assert numbers_of(journal.read("otlp", 0, 1)) == [1501]


LIMITED = """
import resource, sys
from contextlib import closing
from constellation_otel.errors import UnavailableError
from constellation_otel.events import ExecutionCancelled
from constellation_otel.transports.journal import Journal
from uuid import UUID

execution, taken = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410"), 0
with closing(Journal(sys.argv[1], sinks=["otlp"])) as journal:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
    try:
        while True:
            batch = [ExecutionCancelled(execution, "x" * 1000, taken + n) for n in range(50)]
            taken += journal.append(batch)
    except UnavailableError as error:
        print(error)
    items = journal.read("otlp", 0, 100_000)
    print([item.event.timestamp_ns for item in items] == list(range(taken)), taken > 500)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(journal.append(batch))
    journal.acknowledge("otlp", [item.position for item in items])
    print(journal.held("otlp"))
"""


def test_a_write_that_fails_takes_nothing_of_its_batch(path: Path) -> None:
    assert run(LIMITED, path) == [
        f"{path}: disk I/O error; look at its disk, and at this process's limits",
        "True True",
        "50",
        "50",
    ]


def test_a_file_system_that_fails_when_the_log_is_full_takes_nothing_of_its_batch(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(1))
        journal._database.row("PRAGMA max_page_count = 1", timeout=1)
        with pytest.raises(UnavailableError, match="database or disk is full; free some space on its disk"):
            journal.append(numbered(*range(2, 5000)))
        journal._database.row("PRAGMA max_page_count = 1000000", timeout=1)
        assert journal.append(numbered(2)) == 1
        assert numbers_of(journal.read("otlp", 0, 10)) == [1, 2]


def test_room_is_left_on_the_disk_where_the_file_would_grow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(*range(1, 1001)))
        monkeypatch.setattr(module, "_RESERVE_BYTES", 2**80)
        with pytest.raises(
            UnavailableError, match=f"are free, and {2**80} are left for acknowledging; free some space"
        ):
            journal.append(numbered(1001))
        journal.acknowledge("otlp", positions(*range(1, 1001)))
        assert journal.append(numbered(1001)) == 1
        assert numbers_of(journal.read("otlp", 0, 10)) == [1001]


def test_a_file_that_was_taken_away_is_an_alarm_until_it_is_put_back(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        elsewhere = path.rename(path.with_name("elsewhere"))
        alarm = f"{path} was moved, deleted or replaced while it was open: put it back"
        with pytest.raises(MisconfiguredError, match=alarm):
            journal.append(numbered(1))
        path.touch()
        with pytest.raises(MisconfiguredError, match=alarm):
            journal.append(numbered(1))
        elsewhere.rename(path)
        assert journal.append(numbered(2)) == 1
        assert numbers_of(journal.read("otlp", 0, 10)) == [2]


# --- forks ------------------------------------------------------------------------------

FORKED = """
import os, sys
from contextlib import closing
from constellation_otel.delivery import Position
from constellation_otel.errors import ConfigurationError, JournalError
from constellation_otel.events import ExecutionCancelled
from constellation_otel.transports.journal import Journal, JournalSink, JournalSource, events_of
from uuid import UUID

path = sys.argv[1]
execution = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
journal = Journal(path, sinks=["otlp"])
journal.append([ExecutionCancelled(execution, "dag", 1)])
closed = Journal(path + ".closed", sinks=["otlp"])
closed.close()
child = os.fork()
if child == 0:
    refused = 0
    for use in (
        lambda: journal.append([]),
        lambda: journal.read("otlp", 0, 1),
        lambda: journal.acknowledge("otlp", []),
        lambda: journal.held("otlp"),
        lambda: Journal(path, sinks=["otlp"]),
        lambda: JournalSink(path),
        lambda: events_of(path, execution),
    ):
        try:
            use()
        except JournalError as error:
            refused += "was open in the process that forked this one" in str(error)
    journal.close()
    with closing(Journal(path + ".closed", sinks=["otlp"])) as own:
        print(refused, own.append([ExecutionCancelled(execution, "dag", 2)]))
    sys.exit()
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
try:
    JournalSink(path)
except JournalError as error:
    print("still held")
print(journal.append([ExecutionCancelled(execution, "dag", 2)]), journal.held("otlp"))
journal.close()
"""

FORKED_WHILE_WRITING = """
import os, sys, threading
from constellation_otel.events import ExecutionCancelled
from constellation_otel.transports.journal import Journal
from uuid import UUID

execution, ended, taken = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410"), threading.Event(), 0
journal = Journal(sys.argv[1], sinks=["otlp"])

def write():
    global taken
    while not ended.is_set():
        taken += journal.append([ExecutionCancelled(execution, "x" * 500, n) for n in range(200)])

writer = threading.Thread(target=write)
writer.start()
for _ in range(6):
    child = os.fork()
    if child == 0:
        sys.exit()
    _, status = os.waitpid(child, 0)
    assert status == 0, status
ended.set()
writer.join()
print(taken == journal.held("otlp") == len(journal.read("otlp", 0, 10_000_000)))
journal.close()
"""

ORPHANED = """
import os, sys
from constellation_otel.transports.journal import Journal

journal = Journal(sys.argv[1], sinks=["otlp"])
if os.fork() == 0:
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    os._exit(0)
os.kill(os.getpid(), 9)
"""


def test_a_forked_child_can_do_nothing_with_the_parents_journal_and_does_it_no_harm(path: Path) -> None:
    assert run(FORKED, path) == ["7 1", "0", "still held", "1 2"]
    assert execute(path, "PRAGMA integrity_check") == [("ok",)]


def test_children_that_are_forked_in_the_middle_of_a_transaction_do_the_file_no_harm(path: Path) -> None:
    assert run(FORKED_WHILE_WRITING, path) == ["True"]
    assert execute(path, "PRAGMA integrity_check") == [("ok",)]


def fork_takes() -> float:
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(0)
    seconds = time.monotonic() - start
    os.waitpid(child, 0)
    return seconds


def test_a_fork_waits_for_all_databases_together_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No longer than it would for one, and not again for what hangs."""
    monkeypatch.setattr(module, "_FORK_TIMEOUT", 0.3)
    with contextlib.ExitStack() as stack:
        for number in range(10):
            journal = stack.enter_context(closing(Journal(tmp_path / f"{number}.db", sinks=["otlp"])))
            stack.enter_context(journal._database.transaction(1))
        begun = time.monotonic()
        assert fork_takes() < 1.5
        eventually(lambda: time.monotonic() > begun + 0.3, "they have taken too long")
        assert fork_takes() < 0.25


def test_the_locks_go_with_the_process_even_if_its_child_lives_on(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdin
        try:
            assert int(process.stdout.readline()) != process.pid
            process.wait(DEADLINE)
            Journal(path, sinks=["otlp"]).close()
        finally:
            # ends the child, which has the same standard input
            process.stdin.close()
            assert process.stdout.read() == ""


# --- two processes, one file ------------------------------------------------------------


def test_the_transports_keep_the_contract(path: Path) -> None:
    with closing(JournalSink(path)) as journal_sink, closing(JournalSource(path)) as journal_source:
        sink: Sink[Event] = journal_sink
        source: Source = journal_source
        assert (sink.name, sink.takes, sink.max_batch) == ("journal", "events", 512)
        described = (source.name, source.is_ordered, source.is_durable, source.has_ended)
        assert described == (f"journal:{path}", False, True, False)


@pytest.mark.parametrize("first", ["sink", "source"])
def test_what_the_sink_is_sent_the_source_reads_whichever_is_there_first(path: Path, first: str) -> None:
    with contextlib.ExitStack() as stack:
        if first == "source":
            source = stack.enter_context(closing(JournalSource(path)))
        sink = stack.enter_context(closing(JournalSink(path)))
        assert sink.send(numbered(1, 2, 3), 5) == []
        if first == "sink":
            source = stack.enter_context(closing(JournalSource(path)))
        items = source.read(5)
        assert items == [Record(event, Position(None, offset)) for offset, event in enumerate(numbered(1, 2, 3), 1)]
        source.acknowledge(positions(3, 1))
        assert source.read(0) == []
        assert offsets_in(path) == [2]
        assert execute(path, "SELECT name, bit, held FROM sinks") == [(DEFAULT_SINK, 1, 1)]


def test_the_sink_appends_for_every_sink_that_the_file_knows_at_that_moment(path: Path) -> None:
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


def test_what_the_source_has_not_acknowledged_comes_again(path: Path) -> None:
    with closing(JournalSink(path)) as sink:
        sink.send(numbered(1, 2), 5)
    for _ in range(2):
        with closing(JournalSource(path)) as source:
            assert numbers_of(source.read(5)) == [1, 2]


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


def test_what_the_source_could_not_acknowledge_is_acknowledged_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(JournalSink(path)) as sink, closing(JournalSource(path)) as source:
        sink.send(numbered(1, 2, 3), 5)
        source.read(5)
        monkeypatch.setattr(module, "_TIMEOUT", 0.05)
        with writing(path), pytest.raises(UnavailableError, match="locked"):
            source.acknowledge(positions(1))
        monkeypatch.undo()
        source.acknowledge(positions(1, 3))
        assert offsets_in(path) == [2]


def test_a_damaged_file_is_a_source_error_and_an_alarm_of_the_sink(path: Path) -> None:
    with closing(JournalSink(path)) as sink, closing(JournalSource(path)) as source:
        execute(path, "DROP TABLE events")
        with pytest.raises(SourceError, match="no such table: events; it is no journal, or damaged"):
            source.read(5)
        with pytest.raises(MisconfiguredError, match="no such table: events"):
            source.acknowledge(positions(1))
        with pytest.raises(MisconfiguredError, match="no such table: events"):
            sink.send(numbered(1), 5)


def test_a_sink_rejects_single_events_with_values_of_the_wrong_type(path: Path) -> None:
    wrong = ExecutionCancelled(EXECUTION, 5, NS)  # type: ignore[arg-type] # what is tested
    late = ExecutionCancelled(EXECUTION, "dag", 2**63)
    with closing(JournalSink(path)) as sink, closing(JournalSource(path)) as source:
        rejections = sink.send([*numbered(1), wrong, *numbered(2), late], 5)
        assert [(rejection.index, rejection.count) for rejection in rejections] == [(1, 1), (3, 1)]
        assert rejections[0] == Rejection(1, 1, "dag_name must be a str, not 5; the event is dropped, fix what sent it")
        assert numbers_of(source.read(5)) == [1, 2]


def test_a_sink_that_is_full_says_which_events_are_safe_and_goes_on_when_there_is_room(path: Path) -> None:
    wrong = ExecutionCancelled(EXECUTION, 5, NS)  # type: ignore[arg-type] # what is tested
    with closing(JournalSink(path, max_bytes=100_000)) as sink, closing(JournalSource(path)) as source:
        events = [wrong, *numbered(*range(1, 2000))]
        with pytest.raises(UnavailableError, match="has reached max_bytes=100000: see that what reads it runs") as full:
            sink.send(events, 5)
        delivered = full.value.delivered
        assert delivered == frozenset(range(1, len(delivered) + 1))
        items = source.read(5)
        assert numbers_of(items) == list(range(1, len(delivered) + 1))
        source.acknowledge(positions_of(items))
        assert len(sink.send(events[:100], 5)) == 1


def test_a_busy_file_is_waited_for_no_longer_than_the_sinks_timeout(path: Path) -> None:
    with closing(JournalSink(path)) as sink, writing(path):
        start = time.monotonic()
        with pytest.raises(UnavailableError, match="locked"):
            sink.send(numbered(1), 0.1)
        assert time.monotonic() - start < DEADLINE / 10


def test_the_events_of_one_execution_are_shown_while_others_have_the_journal(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = [of_execution(uuid4(), 50) for _ in range(5)]
    wanted = of_execution(EXECUTION, 4)
    with closing(Journal(path, sinks=["otlp"])) as journal:
        for other in others:
            journal.append([*other, wanted.pop(0)] if wanted else other)
        expected = [item.event for item in journal.read("otlp", 0, 1000) if isinstance(item, Record)]
        expected = [event for event in expected if event.execution_id == EXECUTION]
        assert events_of(path, EXECUTION) == expected
        assert len(expected) == 4
        assert events_of(path, uuid4()) == []
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE events SET data = x'00' WHERE id = 51")
        assert events_of(path, EXECUTION) == expected[1:]
    assert caplog.messages == [
        f"{path}: event 51 is left out: the journal's event is damaged: Expected `array`, got `int`"
    ]


def test_that_an_engine_was_restarted_is_kept_among_the_events_until_every_sink_has_acknowledged_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.db"
    first, second = numbered(1, 2)
    with closing(Journal(path, sinks=["a", "b"])) as journal:
        assert journal.append([first, None, second]) == 3
    with closing(Journal(path, sinks=["a", "b"])) as journal:
        items = journal.read("a", 0, 10)
        assert items == journal.read("b", 0, 10)
        assert items == [
            Record(first, Position(None, 1)), Restarted(Position(None, 2)), Record(second, Position(None, 3)),
        ]  # fmt: skip
        journal.acknowledge("a", positions(1, 2, 3))
        assert (journal.held("a"), journal.held("b")) == (0, 3)
        journal.acknowledge("b", positions(1, 2, 3))
    assert offsets_in(path) == []
    assert events_of(path, EXECUTION) == []


def test_a_sinks_name_that_is_no_text_is_refused(path: Path) -> None:
    for make in (lambda: Journal(path, sinks=["\udcff"]), lambda: JournalSource(path, sink="\udcff")):
        with pytest.raises(ConfigurationError, match=r"'\\udcff' can be no sink's name"):
            make()
    Journal(path, sinks=["otlp"]).close()
