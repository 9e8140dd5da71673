"""What a journal's file may be, and what becomes of one that cannot be used."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from constellation_otel.delivery.journal.database import use_log
from constellation_otel.delivery.journal.rows import prepare
from constellation_otel.errors import JournalError, MisconfiguredError
from constellation_otel.transports.journal import Journal, JournalSink, JournalSource, events_of, forget, held_of
from journals import EXECUTION, execute, numbered, numbers_of, positions, run
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPENERS: list[Callable[[Path], Any]] = [
    lambda path: Journal(path, sinks=["otlp"]),
    JournalSink,
    JournalSource,
    lambda path: events_of(path, EXECUTION),
    lambda path: forget(path, "otlp"),
    held_of,
]
EVERY_OPENER = pytest.mark.parametrize(
    "opener", OPENERS, ids=["journal", "sink", "source", "events_of", "forget", "held_of"]
)


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


def test_an_empty_file_becomes_a_journal_with_a_log(path: Path) -> None:
    path.touch()
    with closing(Journal(str(path), sinks=["otlp"])) as journal:
        assert journal.append(numbered(1)) == 1
    assert execute(path, "PRAGMA integrity_check") == [("ok",)]
    assert execute(path, "PRAGMA journal_mode") == [("wal",)]


def test_what_is_committed_is_synced_to_the_disk(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        assert journal._database.row("PRAGMA synchronous") == (2,)


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
    with pytest.raises(JournalError, match="is a journal of version 7, and this release has version 2; empty it"):
        opener(path)


@EVERY_OPENER
def test_a_folder_that_is_not_there_is_named_when_opening(tmp_path: Path, opener: Callable[[Path], Any]) -> None:
    with pytest.raises(JournalError, match=f"does not exist; create {tmp_path / 'absent'}"):
        opener(tmp_path / "absent" / "events.db")


@EVERY_OPENER
def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path, opener: Callable[[Path], Any]) -> None:
    with pytest.raises(JournalError, match="is a folder; add the journal's file to the path"):
        opener(tmp_path)


@pytest.mark.parametrize("opener", OPENERS[3:], ids=["events_of", "forget", "held_of"])
def test_who_only_looks_at_a_journal_makes_no_file(path: Path, opener: Callable[[Path], Any]) -> None:
    with pytest.raises(JournalError, match=f"there is no journal at {path}"):
        opener(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(JournalError, match="is an empty file and no journal yet"):
        opener(path)


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
    with nobody(), pytest.raises(JournalError, match="readonly database; check that the file and its folder exist"):
        opener(path)


def test_a_lock_file_that_cannot_be_made_is_named(path: Path) -> None:
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


def test_a_file_that_is_damaged_while_open_is_an_alarm(path: Path) -> None:
    """And it takes nothing."""
    with closing(Journal(path, sinks=["otlp"])) as journal:
        execute(path, "DROP TABLE events")
        with pytest.raises(MisconfiguredError, match="no such table: events; it is no journal, or damaged"):
            journal.append(numbered(1))
        with pytest.raises(MisconfiguredError, match="no such table: events"):
            journal.read("otlp", 0, 10)
        with pytest.raises(MisconfiguredError, match="no such table: events"):
            journal.acknowledge("otlp", positions(1))


def test_a_disk_without_shared_memory_is_refused(path: Path) -> None:
    """As SQLite finds a network's disk; one of its own ways to files has none either."""
    with (
        closing(sqlite3.connect(f"{path.as_uri()}?vfs=unix-none", uri=True)) as connection,
        pytest.raises(JournalError, match=r"\(its mode is 'delete'\); put it on a local disk"),
    ):
        use_log(connection, path, DEADLINE)


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


def test_a_maker_that_comes_second_leaves_the_file_as_it_is(path: Path) -> None:
    """Which was empty when it looked."""

    def make_it_first(statement: str) -> None:
        if "auto_vacuum" in statement:
            with closing(Journal(path, sinks=["otlp"])) as journal:
                journal.append(numbered(1))

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.set_trace_callback(make_it_first)
        prepare(connection, path, "rwc")
    with closing(JournalSource(path, sink="otlp")) as source:
        assert numbers_of(source.read(0)) == [1]


def test_a_file_that_was_taken_away_is_an_alarm(path: Path) -> None:
    """Until it is put back."""
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


def test_what_is_held_is_told_for_each_sink_beside_who_has_the_journal(tmp_path: Path) -> None:
    """No file of SQLite's is left that was not there before."""
    path = tmp_path / "events.db"
    journal = Journal(path, sinks=["otlp", "kafka"])
    journal.append(numbered(1, 3))
    journal.acknowledge("otlp", positions(1))
    assert held_of(path) == {"kafka": 2, "otlp": 1}
    journal.close()
    before = sorted(tmp_path.iterdir())
    assert held_of(path) == {"kafka": 2, "otlp": 1}
    assert sorted(tmp_path.iterdir()) == before
