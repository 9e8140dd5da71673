"""Writing rows into a table, ours or another one."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from constellation_otel.errors import (
    MisconfiguredError,
    RefusedError,
    SourceError,
    UnavailableError,
)
from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
)
from constellation_otel.transports.sql import SqlSink
from sql_events import EXECUTION, MODULE, NS, SIX, TRACEPARENT
from support import DEADLINE
from transports.sql.helpers import ENDLESS, GUIDE_TABLE, Database, read_all, started

if TYPE_CHECKING:
    from pathlib import Path


def test_each_event_is_a_row_with_the_guides_columns_and_ours(database: Database) -> None:
    assert database.sink().send(SIX, DEADLINE) == []
    rows = database.execute(
        "SELECT id, event_type, execution_id, dag_name, module_name, duration_ms, succeeded, error_message, created_at,"
        " module_id, error_type, occurred_ns, duration_ns, traceparent, tracestate FROM execution_audit ORDER BY id"
    )
    execution, module, at = str(EXECUTION), str(MODULE), "2026-03-29 00:00:00.123456"
    dag = (execution, "my-pipeline", None)
    nothing = (None, None, None)
    assert rows == [
        (1, "execution.started", *dag, None, None, None, at, None, None, NS, None, TRACEPARENT, "vendor=1"),
        (2, "module.started", execution, None, "Trim", None, None, None, at, module, None, NS + 1, None, None, None),
        (3, "module.completed", execution, None, "Trim", 2, 1, None, at, module, None, NS + 2, 2_500_000, None, None),
        (
            4,
            "module.failed",
            execution,
            None,
            "WordCount",
            None,
            0,
            "no words",
            at,
            module,
            "ValueError",
            NS + 3,
            *nothing,
        ),
        (5, "execution.completed", *dag, 15, 0, None, at, None, None, NS + 4, 15_000_000, None, None),
        (6, "execution.cancelled", *dag, None, None, None, at, None, None, NS + 5, None, None, None),
    ]


def test_an_event_that_is_sent_again_is_there_once(database: Database) -> None:
    sink = database.sink()
    sink.send(SIX[:4], DEADLINE)
    sink.send(SIX, DEADLINE)
    # another run of the program
    database.sink().send(SIX, DEADLINE)
    assert database.events() == SIX


def test_an_event_id_is_a_hash_of_the_event(database: Database) -> None:
    database.sink().send(SIX[:2], DEADLINE)
    assert database.execute("SELECT event_id FROM execution_audit ORDER BY id") == [
        ("26d28805-67c5-c9ae-2c5a-fc3a30eaa5b9",),
        ("54081b3b-f558-72ab-48cb-23dd6e218c21",),
    ]


def test_a_table_with_the_guides_columns_only_is_written_as_it_is(database: Database) -> None:
    before = database.execute(GUIDE_TABLE, "SELECT sql FROM sqlite_master")
    database.sink().send(SIX, DEADLINE)
    assert database.execute("SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'") == before[:1]
    rows = database.execute(
        "SELECT event_type, dag_name, module_name, duration_ms, succeeded, error_message,"
        " created_at = strftime('%Y-%m-%d %H:%M:%S', created_at) AND created_at > '2020' FROM execution_audit"
    )
    assert rows == [
        ("execution.started", "my-pipeline", None, None, None, None, 1),
        ("module.started", None, "Trim", None, None, None, 1),
        ("module.completed", None, "Trim", 2, 1, None, 1),
        ("module.failed", None, "WordCount", None, 0, "no words", 1),
        ("execution.completed", "my-pipeline", None, 15, 0, None, 1),
        ("execution.cancelled", "my-pipeline", None, None, None, None, 1),
    ]


def test_those_of_our_columns_that_a_table_has_are_used(database: Database) -> None:
    extended = GUIDE_TABLE.replace("CURRENT_TIMESTAMP", "CURRENT_TIMESTAMP, module_id CHAR(36), occurred_ns BIGINT")
    database.execute(extended)
    database.sink().send(SIX[2:4], DEADLINE)
    assert database.events() == [
        ModuleCompleted(EXECUTION, MODULE, "Trim", 2.0, NS + 2),
        ModuleFailed(EXECUTION, MODULE, "WordCount", ErrorInfo(None, "no words"), NS + 3),
    ]


@pytest.mark.parametrize(
    ("column", "index", "times"),
    [
        ("event_id CHAR(36)", "CREATE INDEX i ON execution_audit(event_id)", 2),
        ("event_id CHAR(36)", "CREATE UNIQUE INDEX i ON execution_audit(event_id) WHERE id > 9", 2),
        ("event_id CHAR(36)", "CREATE UNIQUE INDEX i ON execution_audit(id, event_id)", 2),
        ("event_id CHAR(36)", "CREATE UNIQUE INDEX i ON execution_audit(event_id)", 1),
    ],
)
def test_a_repeated_event_is_dropped_where_the_event_id_is_unique(
    database: Database, column: str, index: str, times: int
) -> None:
    database.execute(GUIDE_TABLE.replace("CURRENT_TIMESTAMP", f"CURRENT_TIMESTAMP, {column}"), index)
    sink = database.sink()
    sink.send(SIX[:1], DEADLINE)
    sink.send(SIX[:1], DEADLINE)
    assert database.execute("SELECT count(*) FROM execution_audit") == [(times,)]


def test_a_column_of_32_characters_has_uuids_without_dashes(database: Database) -> None:
    database.execute(GUIDE_TABLE.replace("CHAR(36)", "CHAR(32)"))
    database.sink().send(SIX[:1], DEADLINE)
    assert database.execute("SELECT execution_id FROM execution_audit") == [(EXECUTION.hex,)]
    (item,) = read_all(database.source(execution_id=EXECUTION))
    assert item.event.execution_id == EXECUTION  # type: ignore[union-attr] # no Unreadable


def test_names_are_cut_to_their_columns(database: Database) -> None:
    """What no text can hold is replaced."""
    events: list[Event] = [
        ExecutionStarted(EXECUTION, "d" * 300, NS, TRACEPARENT, "a=1"),
        ExecutionStarted(EXECUTION, "d", NS + 1, "", ""),
        ModuleFailed(EXECUTION, MODULE, "m\x00" * 200, ErrorInfo("E\x00", "bad \x00\ud800"), NS),
    ]
    assert database.sink().send(events, DEADLINE) == []
    assert database.events() == [
        ExecutionStarted(EXECUTION, "d" * 255, NS, TRACEPARENT, "a=1"),
        ExecutionStarted(EXECUTION, "d", NS + 1),
        ModuleFailed(
            EXECUTION,
            MODULE,
            ("m\N{REPLACEMENT CHARACTER}" * 200)[:255],
            ErrorInfo("E\N{REPLACEMENT CHARACTER}", "bad \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"),
            NS,
        ),
    ]


def test_a_trace_context_that_does_not_fit_is_left_out(database: Database) -> None:
    more = "CURRENT_TIMESTAMP, occurred_ns BIGINT, traceparent VARCHAR(54), tracestate VARCHAR(3)"
    database.execute(GUIDE_TABLE.replace("CURRENT_TIMESTAMP", more))
    database.sink().send(
        [
            ExecutionStarted(EXECUTION, "d", NS, TRACEPARENT, "a=1"),
            ExecutionStarted(EXECUTION, "d", NS + 1, "00-1", "a=12"),
        ],
        DEADLINE,
    )
    assert database.events() == [
        ExecutionStarted(EXECUTION, "d", NS, None, "a=1"),
        ExecutionStarted(EXECUTION, "d", NS + 1, "00-1", None),
    ]


def test_a_row_that_the_database_refuses_is_refused_with_its_batch(
    database: Database,
) -> None:
    """Nothing of the batch is written."""
    database.execute(GUIDE_TABLE.replace("VARCHAR(255),", "VARCHAR(255) CHECK (dag_name <> 'dag-2'),", 1))
    sink = database.sink()
    with pytest.raises(RefusedError, match=r"audit\.db: CHECK constraint failed: dag_name <> 'dag-2'"):
        sink.send([started(1), started(2), started(3)], DEADLINE)
    assert database.execute("SELECT count(*) FROM execution_audit") == [(0,)]
    sink.send([started(1)], DEADLINE)
    assert database.execute("SELECT dag_name FROM execution_audit") == [("dag-1",)]


def test_a_table_without_the_guides_columns_is_no_audit_table(database: Database) -> None:
    database.execute("CREATE TABLE execution_audit (id INTEGER PRIMARY KEY, event_type TEXT, execution_id TEXT)")
    message = (
        "the table execution_audit is not an audit table: dag_name is missing; module_name is missing; duration_ms is "
        "missing; succeeded is missing; error_message is missing; created_at is missing; make one that has what "
        "`constellation-otel schema` prints, or name another with \\?table="
    )
    with pytest.raises(MisconfiguredError, match=message):
        database.sink().send(SIX, DEADLINE)
    with pytest.raises(SourceError, match=message):
        database.source().read(DEADLINE)


def test_a_table_is_looked_at_again_when_it_was_no_audit_table(database: Database) -> None:
    database.execute("CREATE TABLE execution_audit (id INTEGER PRIMARY KEY)")
    sink = database.sink()
    with pytest.raises(MisconfiguredError):
        sink.send(SIX, DEADLINE)
    database.execute("DROP TABLE execution_audit", GUIDE_TABLE)
    sink.send(SIX, DEADLINE)
    database.execute("DROP TABLE execution_audit")
    with pytest.raises(MisconfiguredError, match="no such table: execution_audit; fix the URL, the table or the"):
        sink.send(SIX, DEADLINE)
    sink.send(SIX, DEADLINE)
    assert database.events() == SIX


def test_other_columns_may_be_there_if_they_have_a_default(database: Database) -> None:
    more = "CURRENT_TIMESTAMP, host TEXT, tenant INTEGER NOT NULL DEFAULT 7"
    database.execute(GUIDE_TABLE.replace("CURRENT_TIMESTAMP", more))
    database.sink().send(SIX[:1], DEADLINE)
    assert database.execute("SELECT host, tenant FROM execution_audit") == [(None, 7)]
    database.execute("CREATE TABLE strict AS SELECT * FROM execution_audit", "DROP TABLE execution_audit")
    database.execute(GUIDE_TABLE.replace("CURRENT_TIMESTAMP", "CURRENT_TIMESTAMP, tenant INTEGER NOT NULL"))
    with pytest.raises(MisconfiguredError, match="columns that must not be null and have no default: tenant; give"):
        database.sink().send(SIX[:1], DEADLINE)


def test_a_locked_database_is_unavailable_in_time(database: Database) -> None:
    """It takes the batch once it is unlocked."""
    sink = database.sink()
    sink.send([started(1)], DEADLINE)
    with closing(sqlite3.connect(database.file)) as other:
        other.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        with pytest.raises(UnavailableError, match=r"audit\.db: database is locked") as caught:
            sink.send([started(2)], 0.4)
        assert 0.2 < time.monotonic() - begun < DEADLINE
        assert type(caught.value) is UnavailableError
    sink.send([started(2)], DEADLINE)
    assert database.events() == [started(1), started(2)]


def test_a_statement_that_takes_too_long_is_given_up_in_time(database: Database) -> None:
    database.execute(GUIDE_TABLE, f"CREATE TRIGGER slow AFTER INSERT ON execution_audit BEGIN {ENDLESS}; END")
    begun = time.monotonic()
    with pytest.raises(UnavailableError, match=r"audit\.db: interrupted"):
        database.sink().send(SIX, 0.5)
    assert time.monotonic() - begun < DEADLINE
    assert database.execute("SELECT count(*) FROM execution_audit") == [(0,)]


def test_a_batch_is_written_without_a_thread_to_watch_it(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Timer, "start", start)
    database.sink().send(SIX, DEADLINE)
    monkeypatch.undo()
    assert database.events() == SIX


@pytest.mark.parametrize("content", ["folder", "nonsense"])
def test_what_is_not_a_database_is_for_an_operator_to_fix(tmp_path: Path, content: str) -> None:
    file = tmp_path / "audit.db"
    if content == "folder":
        file.mkdir()
    else:
        file.write_bytes(b"no database at all, whoever looks" * 100)
    sink = SqlSink(f"sqlite:///{file}")
    with pytest.raises(MisconfiguredError, match=r"unable to open database file|file is not a database"):
        sink.send(SIX, DEADLINE)
    sink.close()


FORKING = """
import os, sys
from uuid import UUID
from constellation_otel.events import ExecutionStarted
from constellation_otel.transports.sql import SqlSink, SqlSource

sink, source = SqlSink(sys.argv[1]), SqlSource(sys.argv[1], follow=True)

def written_and_read(number):
    sink.send([ExecutionStarted(UUID(int=number), f"dag-{number}", number)], 30.0)
    return [offset for batch in source.read(30.0) for offset in batch.offsets]

assert written_and_read(1) == [1]
child = os.fork()
if child == 0:
    # what does not get here exits with 1
    os._exit(0 if written_and_read(2) == [2] else 2)
assert os.waitpid(child, 0)[1] == 0
assert written_and_read(3) == [2, 3]
sink.close()
source.close()
"""


def test_a_forked_child_has_a_connection_of_its_own(database: Database) -> None:
    arguments = [sys.executable, "-c", FORKING, database.url]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert database.execute("SELECT dag_name FROM execution_audit ORDER BY id") == [("dag-1",), ("dag-2",), ("dag-3",)]
