"""A reader that follows an audit table in a real PostgreSQL, while several writers commit in any order."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from constellation_otel.transports.sql import SqlSink, SqlSource, schema_ddl
from deliveries import flat

from .databases import GUIDE_DDL, TIMEOUT, Database, insert, offsets, started
from .peers import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from constellation_otel.events import ExecutionStarted


@contextmanager
def reading(source: SqlSource) -> Iterator[list[int]]:
    """What a source gives, read by a thread, as long as the block takes."""
    stopped = threading.Event()
    given: list[int] = []

    def run() -> None:
        while not stopped.is_set():
            given.extend(offsets(flat(source.read(0.05))))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield given
    finally:
        stopped.set()
        thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_ids_that_commit_out_of_order_are_all_given_and_each_once(database: Database) -> None:
    database.psql(GUIDE_DDL)
    source = database.source(follow=True, poll_interval=0.02, gap_timeout=TIMEOUT)
    with reading(source) as given, database.connection() as slow, database.connection() as slower:
        slow.execute(insert(1))
        slower.execute(insert(2))
        database.psql(insert(3))
        eventually(lambda: given == [3], TIMEOUT, "the third row, which was first, is given")
        slower.commit()
        eventually(lambda: given == [3, 2], TIMEOUT, "the second row is given")
        slow.execute(insert(4))
        database.psql(insert(5))
        eventually(lambda: given == [3, 2, 5], TIMEOUT, "the fifth row is given")
        slow.commit()
        eventually(lambda: len(given) >= 5, TIMEOUT, "all rows are given")
        database.psql(insert(6))
        eventually(lambda: 6 in given, TIMEOUT, "the sixth row is given")
    assert given == [3, 2, 5, 1, 4, 6]


def test_ids_that_were_rolled_back_hold_nothing_up(database: Database) -> None:
    database.psql(GUIDE_DDL)
    source = database.source(follow=True, poll_interval=0.02, gap_timeout=0.1)
    with reading(source) as given, database.connection() as other:
        other.execute(insert(1))
        database.psql(insert(2))
        eventually(lambda: given == [2], TIMEOUT, "the second row is given")
        other.rollback()
        database.psql(insert(3))
        eventually(lambda: given == [2, 3], TIMEOUT, "the third row is given")
        eventually(lambda: not source._gaps.held, TIMEOUT, "the gap is given up")


def test_several_writers_at_once_lose_nothing_to_a_reader_that_follows(database: Database) -> None:
    database.psql(schema_ddl("postgresql"))
    batches = [[started(writer * 1000 + number) for number in range(200)] for writer in range(4)]

    def write(batch: list[ExecutionStarted]) -> None:
        sink = SqlSink(database.url)
        for begin in range(0, len(batch), 20):
            sink.send(batch[begin : begin + 20], TIMEOUT)
        sink.close()

    with reading(database.source(follow=True, poll_interval=0.01, gap_timeout=TIMEOUT)) as given:
        writers = [threading.Thread(target=write, args=(batch,)) for batch in batches]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(TIMEOUT)
        eventually(lambda: len(given) >= 800, TIMEOUT, "all rows are given")
    assert sorted(given) == sorted(offsets(database.items()))
    assert sorted(event.execution_id.int for event in database.events()) == sorted(
        event.execution_id.int for batch in batches for event in batch
    )
