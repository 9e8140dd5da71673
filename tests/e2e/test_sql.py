"""Events in the rows of a real PostgreSQL, whose time zone is Berlin's, and back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from uuid import UUID, uuid4

import pytest

from constellation_otel.delivery import Position, Record, Unreadable
from constellation_otel.errors import RefusedError, UnavailableError
from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
)
from constellation_otel.transports.sql import SqlSink, schema_ddl
from deliveries import flat
from records import told_all
from sql_events import EXECUTION, MODULE, NS, SIX

from .databases import GUIDE_DDL, TIMEOUT, Database, insert, started


def test_the_rows_of_the_guides_own_listener_are_read_with_the_time_of_their_insertion(database: Database) -> None:
    database.psql(GUIDE_DDL)
    columns = "event_type, execution_id, dag_name, module_name, duration_ms, succeeded, error_message"
    before = time.time_ns()
    with database.connection() as connection:
        for row in [
            ("execution.started", EXECUTION, "my-pipeline", None, None, None, None),
            ("module.started", EXECUTION, None, "Trim", None, None, None),
            ("module.completed", EXECUTION, None, "Trim", 2, True, None),
            ("module.failed", EXECUTION, None, "WordCount", None, False, "no words"),
            ("execution.completed", EXECUTION, "my-pipeline", None, 15, False, None),
        ]:
            connection.execute(f"INSERT INTO execution_audit ({columns}) VALUES (%s, %s, %s, %s, %s, %s, %s)", row)
            connection.commit()
    after = time.time_ns()
    read = database.events()
    at = [event.timestamp_ns for event in read]
    assert read == [
        ExecutionStarted(EXECUTION, "my-pipeline", at[0]),
        ModuleStarted(EXECUTION, None, "Trim", at[1]),
        ModuleCompleted(EXECUTION, None, "Trim", 2.0, at[2]),
        ModuleFailed(EXECUTION, None, "WordCount", ErrorInfo(None, "no words"), at[3]),
        ExecutionCompleted(EXECUTION, "my-pipeline", False, 15.0, at[4]),
    ]
    # the server's NOW() has microseconds
    assert [before // 1000 * 1000, *at, after] == sorted([before // 1000 * 1000, *at, after])
    assert database.events(execution_id=EXECUTION) == read
    assert database.events(execution_id=MODULE) == []


@pytest.mark.parametrize(
    ("parameters", "hours"),
    [("", 1), ("?timezone=Europe/Berlin", 1), ("?timezone=UTC", 0), ("?timezone=Asia/Tokyo", 9)],
)
def test_created_at_is_in_the_servers_zone_or_in_the_urls(database: Database, parameters: str, hours: int) -> None:
    database.psql(GUIDE_DDL)
    database.psql(insert(1) + "; UPDATE execution_audit SET created_at = '2026-01-15 12:00:00.000001'")
    noon = 1_768_478_400_000_001_000
    assert database.events(parameters) == [ExecutionStarted(UUID(int=1), "dag-1", noon - hours * 3_600_000_000_000)]


def test_times_are_read_whatever_style_the_server_writes_them_in(database: Database) -> None:
    database.psql(GUIDE_DDL)
    database.psql(insert(1) + "; UPDATE execution_audit SET created_at = '2026-01-02 12:00:00.5'")
    database.psql(f"ALTER DATABASE {database.name} SET datestyle = 'German'")
    assert database.psql("SELECT created_at FROM execution_audit") == "02.01.2026 12:00:00.5"
    noon = 1_767_355_200_500_000_000
    assert database.events("?timezone=UTC") == [ExecutionStarted(UUID(int=1), "dag-1", noon)]


def test_a_column_with_a_zone_needs_none(database: Database) -> None:
    database.psql(GUIDE_DDL.replace("TIMESTAMP", "TIMESTAMPTZ"))
    database.psql(insert(1) + "; UPDATE execution_audit SET created_at = '2026-01-15 12:00:00.000001-05'")
    assert database.events("?timezone=Asia/Tokyo") == [
        ExecutionStarted(UUID(int=1), "dag-1", 1_768_478_400_000_001_000 + 5 * 3_600_000_000_000)
    ]
    database.psql("ALTER TABLE execution_audit ADD occurred_ns BIGINT")
    database.sink("?timezone=Asia/Tokyo").send(SIX[:1], TIMEOUT)
    assert (
        database.psql("SET timezone = 'UTC'; SELECT created_at FROM execution_audit WHERE id = 2")
        == "2026-03-29 00:00:00.123456+00"
    )


def test_a_batch_that_is_sent_twice_is_there_once(database: Database) -> None:
    sink = database.sink()
    assert sink.send(SIX, TIMEOUT) == []
    assert sink.send(SIX, TIMEOUT) == []
    assert database.events() == SIX
    assert database.psql("SELECT created_at FROM execution_audit WHERE id = 1") == "2026-03-29 01:00:00.123456"


def test_what_bodies_and_engines_have_told_of_modules_comes_back(database: Database) -> None:
    """Into a table with the guide's columns alone it is not written."""
    events = told_all()
    assert database.sink().send(events, TIMEOUT) == []
    assert database.events() == events
    database.psql(f"DROP TABLE execution_audit; {GUIDE_DDL}")
    assert database.sink().send(events, TIMEOUT) == []
    bare = database.events()
    assert [type(event) for event in bare] == [type(event) for event in events]
    assert not [event for event in bare if getattr(event, "body", None) or getattr(event, "details", None)]


def test_what_no_text_can_hold_is_replaced_and_names_are_cut(database: Database) -> None:
    """Of a caller who cannot be read nothing is left, when the table is read."""
    replaced = "\N{REPLACEMENT CHARACTER}"
    events: list[Event] = [
        ExecutionStarted(EXECUTION, "d" * 300, NS, "00-\x00", "a=\x00"),
        ModuleFailed(EXECUTION, MODULE, "ä" * 300, ErrorInfo("E\x00", "bad \x00\ud800"), NS + 1),
    ]
    assert database.sink().send(events, TIMEOUT) == []
    assert database.events() == [
        ExecutionStarted(EXECUTION, "d" * 255, NS, None, None),
        ModuleFailed(EXECUTION, MODULE, "ä" * 255, ErrorInfo(f"E{replaced}", f"bad {replaced}{replaced}"), NS + 1),
    ]


def test_an_unreadable_row_is_json_whatever_it_holds(database: Database) -> None:
    database.psql(GUIDE_DDL.replace("BIGINT", "NUMERIC"))
    database.psql(insert(1) + "; UPDATE execution_audit SET event_type = 'no', duration_ms = 'NaN', succeeded = true")
    (item,) = database.items()
    assert isinstance(item, Unreadable)
    row = json.loads(item.data)
    assert (row["duration_ms"], row["succeeded"], row["dag_name"]) == ("NaN", True, "dag-1")


def test_a_row_that_the_database_refuses_is_refused_and_the_next_batch_is_written(database: Database) -> None:
    database.psql(schema_ddl("postgresql") + "ALTER TABLE execution_audit ADD CHECK (dag_name <> 'dag-2')")
    sink = database.sink()
    with pytest.raises(RefusedError, match='violates check constraint "execution_audit_dag_name_check"'):
        sink.send([started(1), started(2), started(3)], TIMEOUT)
    sink.send([started(1), started(3)], TIMEOUT)
    assert database.events() == [started(1), started(3)]


def test_rows_that_are_no_events_are_given_as_they_are(database: Database) -> None:
    database.psql(GUIDE_DDL)
    database.psql("; ".join(map(insert, range(1, 6))))
    database.psql(
        "UPDATE execution_audit SET created_at = 'infinity' WHERE id = 1;"
        "UPDATE execution_audit SET created_at = '20000-01-01' WHERE id = 2;"
        "UPDATE execution_audit SET event_type = 'started' WHERE id = 3;"
        "UPDATE execution_audit SET dag_name = NULL WHERE id = 4;"
        "UPDATE execution_audit SET created_at = '2026-03-29 01:00:00' WHERE id > 2"
    )
    items, never, late = database.items(), "infinity", "20000-01-01 00:00:00"
    assert [item.reason.split(";")[0] for item in items if isinstance(item, Unreadable)] == [
        f"not an event: created_at is {never!r}, which is not an ISO 8601 time: Invalid isoformat string: {never!r}",
        f"not an event: created_at is {late!r}, which is not an ISO 8601 time: Invalid isoformat string: {late!r}",
        "not an event: eventType 'started' is none that is known",
        "not an event: dagName is missing or null",
    ]
    assert items[-1] == Record(ExecutionStarted(UUID(int=5), "dag-5", NS - 123_456_789), Position(None, 5))


def test_sinks_that_make_the_table_at_the_same_time_all_succeed_in_the_end(database: Database) -> None:
    barrier = threading.Barrier(4)
    done: list[int] = []

    def write(number: int) -> None:
        sink = SqlSink(database.url)
        barrier.wait(TIMEOUT)
        for _ in range(3):
            try:
                sink.send([started(number)], TIMEOUT)
            except UnavailableError as error:
                assert type(error) is UnavailableError  # noqa: PT017 - it is one of three tries
            else:
                done.append(number)
                break
        sink.close()

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(TIMEOUT)
    assert sorted(done) == [0, 1, 2, 3]
    assert sorted(event.execution_id.int for event in database.events()) == [0, 1, 2, 3]


FORKING = """
import os, sys
from uuid import UUID
from constellation_otel.events import ExecutionStarted
from constellation_otel.transports.sql import SqlSink

sink = SqlSink(sys.argv[1])

def write(number):
    sink.send([ExecutionStarted(UUID(int=number), f"dag-{number}", number)], 30.0)

write(1)
child = os.fork()
if child == 0:
    write(2)
    # with all that an interpreter does at its end, so that the parent's connection would be closed if it could
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
write(3)
sink.close()
"""


def test_a_forked_child_has_a_connection_of_its_own(database: Database) -> None:
    arguments = [sys.executable, "-c", FORKING, database.url]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert [event.execution_id.int for event in database.events()] == [1, 2, 3]


def test_a_long_table_is_read_in_pages(database: Database) -> None:
    database.psql(schema_ddl("postgresql"))
    sink = database.sink()
    written = [ModuleCompleted(uuid4(), uuid4(), "Trim", 2.5, NS + number) for number in range(2000)]
    for begin in range(0, len(written), sink.max_batch):
        sink.send(written[begin : begin + sink.max_batch], TIMEOUT)
    source = database.source()
    pages = [flat(source.read(TIMEOUT)) for _ in range(4)]
    assert [len(page) for page in pages] == [512, 512, 512, 464]
    assert source.has_ended
    assert [item.event for page in pages for item in page if isinstance(item, Record)] == written
