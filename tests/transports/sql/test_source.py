"""Reading a table in pages, and following it."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from constellation_otel.errors import (
    SourceError,
    UnavailableError,
)
from constellation_otel.transports.sql.database import SQLITE
from constellation_otel.transports.sql.source import _Gaps
from constellation_otel.transports.sql.table import GUIDE
from deliveries import flat
from sql_events import EXECUTION
from support import DEADLINE, UNWATCHED, eventually
from transports.sql.helpers import ENDLESS, GUIDE_TABLE, Database, insert_ids, offsets, read_all, run, started

if TYPE_CHECKING:
    from constellation_otel.transports.sql import SqlSource


def test_a_long_table_comes_in_pages(database: Database) -> None:
    """Up to the highest id that there was at the first read."""
    database.execute(GUIDE_TABLE, insert_ids(*range(1, 1201)))
    source = database.source()
    first = source.read(0)
    database.execute(insert_ids(1201))
    pages = [first, source.read(0), source.read(0), source.read(0)]
    assert [len(flat(page)) for page in pages] == [512, 512, 176, 0]
    assert offsets([item for page in pages for item in page]) == list(range(1, 1201))
    assert source.has_ended


def test_a_table_without_rows_is_at_its_end_at_once(database: Database) -> None:
    database.execute(GUIDE_TABLE)
    source = database.source(poll_interval=2 * DEADLINE)
    begun = time.monotonic()
    assert (source.read(DEADLINE), source.has_ended) == ([], True)
    assert time.monotonic() - begun < DEADLINE


def test_ids_may_be_negative(database: Database) -> None:
    database.execute(GUIDE_TABLE, insert_ids(-7, 0))
    assert offsets(read_all(database.source())) == [-7, 0]


def test_the_rows_of_one_execution_are_found(database: Database) -> None:
    database.execute(GUIDE_TABLE, insert_ids(*range(1, 9)))
    database.execute(f"UPDATE execution_audit SET execution_id = '{EXECUTION}' WHERE id IN (3, 5)")
    assert offsets(read_all(database.source(execution_id=EXECUTION))) == [3, 5]


def test_a_source_without_its_file_says_so_and_makes_none(database: Database) -> None:
    with pytest.raises(SourceError, match=r"there is no file .*audit\.db"):
        database.source().read(DEADLINE)
    assert not database.file.exists()


def test_a_source_without_its_table_says_so(database: Database) -> None:
    database.execute("CREATE TABLE something (id INTEGER)")
    with pytest.raises(SourceError, match=r"there is no table audit; name the one to read with \?table="):
        database.source("?table=audit").read(DEADLINE)


def test_a_missing_table_may_be_in_another_schema(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.execute("CREATE TABLE something (id INTEGER)")
    source = database.source()
    monkeypatch.setattr(source._audit.address, "dialect", replace(SQLITE, has_schemas=True))
    with pytest.raises(
        SourceError, match=r"no table execution_audit; .* and with \?table=schema\.name one in a schema"
    ):
        source.read(DEADLINE)


def test_a_table_is_followed(database: Database) -> None:
    database.execute(GUIDE_TABLE)
    source = database.source(follow=True, poll_interval=0.01)
    assert source.read(0) == []
    reader = Reader(source)
    for number in (1, 2, 3):
        database.execute(insert_ids(number))
        eventually(lambda number=number: reader.offsets == [*range(1, number + 1)], f"row {number} has come")  # type: ignore[misc] # bound
    reader.stop()
    assert not source.has_ended


class Reader:
    """Reads a source in a thread of its own until it is stopped."""

    def __init__(self, source: SqlSource) -> None:
        self.source = source
        self.offsets: list[int] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.offsets.extend(offsets(self.source.read(0.05)))

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()


def test_a_table_is_asked_no_more_often_than_the_interval_says(
    database: Database,
) -> None:
    """A read waits as long as it was told."""
    database.execute(GUIDE_TABLE)
    source = database.source(follow=True, poll_interval=DEADLINE)
    begun = time.monotonic()
    assert source.read(0.2) == []
    assert 0.2 <= time.monotonic() - begun < DEADLINE
    database.execute(insert_ids(1))
    assert source.read(0.05) == []


def test_a_row_that_turns_up_below_others_is_given_once(database: Database) -> None:
    database.execute(GUIDE_TABLE, insert_ids(2, 4, 9))
    source = database.source(follow=True, poll_interval=0.0, gap_timeout=DEADLINE)
    assert offsets(source.read(0)) == [2, 4, 9]
    assert source.read(0) == []
    database.execute(insert_ids(6, 3, 10))
    assert offsets([*source.read(0), *source.read(0)]) == [3, 6, 10]
    database.execute(insert_ids(1, 5, 7, 8))
    assert offsets(source.read(0)) == [1, 5, 7, 8]
    assert source.read(0) == []


def test_a_long_gap_that_is_filled_at_once_comes_in_pages(database: Database) -> None:
    database.execute(GUIDE_TABLE, insert_ids(1201))
    source = database.source(follow=True, poll_interval=0.0, gap_timeout=DEADLINE)
    assert offsets(source.read(0)) == [1201]
    database.execute(insert_ids(*range(1, 1201)))
    pages = [source.read(0) for _ in range(4)]
    assert [len(flat(page)) for page in pages] == [512, 512, 176, 0]
    assert offsets([item for page in pages for item in page]) == list(range(1, 1201))


def test_more_gaps_than_fit_one_query_are_all_looked_for(database: Database) -> None:
    database.execute(GUIDE_TABLE, insert_ids(*range(2, 504, 2)))
    source = database.source(follow=True, poll_interval=0.0, gap_timeout=DEADLINE)
    assert len(flat(source.read(0))) == 251
    database.execute(insert_ids(499))
    assert offsets(source.read(0)) == [499]


def test_an_id_that_never_comes_is_given_up(database: Database) -> None:
    database.execute(GUIDE_TABLE, insert_ids(2))
    source = database.source(follow=True, poll_interval=0.0, gap_timeout=0.01)
    assert offsets(source.read(0)) == [2]
    eventually(lambda: source.read(0) == [] and not source._gaps.held, "the gap is given up")
    database.execute(insert_ids(1, 3))
    assert offsets(source.read(0)) == [3]


def test_gaps_are_bounded_and_the_oldest_are_given_up(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """With a line in the log."""
    ids = range(2, 2 * 4097 + 1, 2)
    database.execute(GUIDE_TABLE, insert_ids(*ids))
    source = database.source(follow=True, poll_interval=0.0, gap_timeout=DEADLINE)
    with caplog.at_level(logging.INFO, "constellation_otel.transports.sql"):
        assert [offset for _ in range(9) for offset in offsets(source.read(0))] == list(ids)
    assert [record.getMessage() for record in caplog.records] == [
        f"{database.url}: more than 4096 gaps in the ids; rows missing in the oldest gaps are not waited for"
    ]
    database.execute(insert_ids(1, 3, 5))
    assert offsets(source.read(0)) == [3, 5]


@UNWATCHED
@settings(deadline=None)
@given(st.data())
def test_gaps_are_the_ids_below_the_highest_that_have_not_come(data: st.DataObject) -> None:
    gaps = _Gaps(10.0)
    come: set[int] = set()
    for step in range(data.draw(st.integers(1, 5))):
        highest = max(come, default=0)
        page = sorted(data.draw(st.sets(st.integers(highest + 1, highest + 20), max_size=6)))
        assert gaps.note(highest + 1, page, step)
        come |= set(page)
        missing = sorted(set(range(1, max(come, default=0))) - come)
        late = sorted(data.draw(st.sets(st.sampled_from(missing)))) if missing else []
        gaps.fill(late)
        come |= set(late)
        found = [number for gap in gaps.held for number in range(gap.first, gap.last + 1)]
        assert found == [number for number in missing if number not in late]
    before = gaps.held
    gaps.expire(9.0)
    assert gaps.held == before
    gaps.expire(20.0)
    assert gaps.held == []


def test_a_table_that_cannot_be_read_now_is_read_on_where_it_was(
    database: Database,
) -> None:
    database.execute(GUIDE_TABLE, insert_ids(1))
    source = database.source(follow=True, poll_interval=0.0, read_timeout=0.4)
    assert offsets(source.read(0)) == [1]
    with closing(sqlite3.connect(database.file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute(insert_ids(2))
        with pytest.raises(UnavailableError, match="database is locked"):
            source.read(0)
        other.commit()
    assert offsets(source.read(0)) == [2]


def test_closing_ends_a_read_that_the_database_takes_its_time_for(database: Database) -> None:
    columns = ", ".join(f"n AS {name}" for name in GUIDE)
    database.execute(
        f"CREATE VIEW execution_audit AS SELECT {columns} FROM ({ENDLESS.replace('count(*)', 'sum(i) AS n')})"
    )
    source = database.source(follow=True)
    reading, results = run(lambda: source.read(DEADLINE))
    eventually(lambda: source._layout is not None, "the query is on its way")
    source.close()
    reading.join(DEADLINE)
    assert results == [[]]
    assert source.read(DEADLINE) == []


def test_a_replay_says_how_much_of_the_table_has_been_read(database: Database) -> None:
    database.sink().send([started(number) for number in range(600)], DEADLINE)
    source = database.source()
    assert source.fraction_read is None
    source.read(DEADLINE)
    assert source.fraction_read == 512 / 600
    read_all(source)
    assert source.fraction_read == 1
    assert database.source(follow=True).fraction_read is None
    database.execute("DELETE FROM execution_audit", "DELETE FROM sqlite_sequence")
    empty = database.source()
    read_all(empty)
    assert empty.fraction_read == 1
