"""A journal on disks that are full, or fail."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from constellation_otel.errors import UnavailableError
from constellation_otel.events import ExecutionCancelled
from constellation_otel.transports.journal import Journal
from journals import EXECUTION, execute, numbered, numbers_of, positions, positions_of, run
from support import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


LIMITED = """
import resource, sys
from contextlib import closing
from constellation_otel.delivery import Position
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
    print([event.timestamp_ns for item in items for event in item.events] == list(range(taken)), taken > 500)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(journal.append(batch))
    journal.acknowledge("otlp", [Position(None, offset) for item in items for offset in item.offsets])
    print(journal.held("otlp"))
"""


def test_a_disk_full_of_the_journal_takes_acknowledgements(small_disk: Path) -> None:
    """Which make room."""
    with closing(Journal(small_disk / "events.db", sinks=["otlp"])) as journal:
        numbers = fill(journal)
        assert len(numbers) > 1000
        items = journal.read("otlp", 0, 100_000)
        assert numbers_of(items) == numbers
        for start in range(0, len(numbers), 500):
            journal.acknowledge("otlp", positions_of(items)[start : start + 500])
        assert journal.held("otlp") == 0
        assert journal.append(numbered(7)) == 1
        assert numbers_of(journal.read("otlp", 0, 10)) == [7]
    assert execute(small_disk / "events.db", "PRAGMA integrity_check") == [("ok",)]


def test_on_a_disk_that_others_fill_up_nothing_is_lost(small_disk: Path) -> None:
    """And all goes on when there is space again."""
    with closing(Journal(small_disk / "events.db", sinks=["otlp"])) as journal:
        journal.append(numbered(*range(1, 101)))
        filler = fill_up(small_disk)
        with pytest.raises(UnavailableError, match=r"the disk of .* is full: \d+ bytes are free"):
            journal.append(numbered(101))
    with closing(Journal(small_disk / "events.db", sinks=["otlp"], reserve_bytes=0)) as journal:
        with pytest.raises(UnavailableError, match="disk is full; free some space"):
            journal.append(numbered(*range(101, 9_000)))
        items = journal.read("otlp", 0, 1000)
        assert numbers_of(items) == list(range(1, 101))
        filler.unlink()
        journal.acknowledge("otlp", positions_of(items)[:50])
        assert journal.append(numbered(101)) == 1
        assert numbers_of(journal.read("otlp", 0, 1000)) == list(range(51, 102))


def test_a_full_disk_acknowledges_in_the_logs_own_space(small_disk: Path) -> None:
    """What the log has moves into the file, and its space is written to anew."""
    with closing(Journal(small_disk / "events.db", sinks=["otlp"], reserve_bytes=0)) as journal:
        # rows that are in the file, and a log that has changes of theirs
        journal.append(numbered(*range(1, 20_001)))
        execute(small_disk / "events.db", "PRAGMA wal_checkpoint(TRUNCATE)")
        journal.acknowledge("otlp", positions(*range(1, 10_001)))
        fill_up(small_disk)
        journal.acknowledge("otlp", positions(*range(10_001, 10_501)))
        assert journal.held("otlp") == 9_500
        assert numbers_of(journal.read("otlp", 0, 1)) == [10_501]


def test_a_write_that_fails_takes_nothing_of_its_batch(path: Path) -> None:
    assert run(LIMITED, path) == [
        f"{path}: disk I/O error; check its disk, and this process's limits",
        "True True",
        "50",
        "50",
    ]


def test_a_full_file_system_takes_nothing_of_a_batch(path: Path) -> None:
    """Also where that is found out in the middle of it, when the log is full."""
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(1))
        journal._database.row("PRAGMA max_page_count = 1")
        with pytest.raises(UnavailableError, match="database or disk is full; free some space on its disk"):
            journal.append(numbered(*range(2, 5000)))
        journal._database.row("PRAGMA max_page_count = 1000000")
        assert journal.append(numbered(2)) == 1
        assert numbers_of(journal.read("otlp", 0, 10)) == [1, 2]


def test_room_is_left_on_the_disk_where_the_file_would_grow(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(numbered(*range(1, 1001)))
    with closing(Journal(path, sinks=["otlp"], reserve_bytes=2**80)) as journal:
        with pytest.raises(
            UnavailableError, match=f"are free, and {2**80} are reserved for acknowledging; free some space"
        ):
            journal.append(numbered(1001))
        journal.acknowledge("otlp", positions(*range(1, 1001)))
        assert journal.append(numbered(1001)) == 1
        assert numbers_of(journal.read("otlp", 0, 10)) == [1001]
