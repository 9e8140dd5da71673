"""The audit table in SQLite, written and read; what PostgreSQL alone has is in tests/e2e/test_sql.py."""

from __future__ import annotations

import json
import logging
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID

import psycopg.errors
import pytest
import sqlalchemy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import types
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DataError, DBAPIError

from constellation_otel.delivery import Position, Record, Unreadable
from constellation_otel.errors import (
    ConfigurationError,
    MisconfiguredError,
    RefusedError,
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
    decode_json,
    encode_json,
)
from constellation_otel.transports.sql import SqlSink, SqlSource, schema_ddl, sql
from constellation_otel.transports.sql.database import POSTGRESQL, SQLITE, Address, shut_down, verdict_on
from constellation_otel.transports.sql.database import Database as _Database
from constellation_otel.transports.sql.table import GUIDE, OURS, TABLE, base_of, can_hold, finder, layout_of
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

EXECUTION = UUID("6ba7b810-9dad-41d1-80b4-00c04fd430c8")
MODULE = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
NS = 1_774_742_400_123_456_789
"""2026-03-29T00:00:00.123456789 UTC."""
TRACEPARENT = "00-4104c80a8a6c1bf4a355527a7906fb00-00f067aa0ba902b7-01"
SECRET = "hunter2/ä@:"
QUOTED_SECRET = "hunter2%2F%C3%A4%40%3A"

SIX: list[Event] = [
    ExecutionStarted(EXECUTION, "my-pipeline", NS, TRACEPARENT, "vendor=1"),
    ModuleStarted(EXECUTION, MODULE, "Trim", NS + 1),
    ModuleCompleted(EXECUTION, MODULE, "Trim", 2.5, NS + 2),
    ModuleFailed(EXECUTION, MODULE, "WordCount", ErrorInfo("ValueError", "no words"), NS + 3),
    ExecutionCompleted(EXECUTION, "my-pipeline", False, 15.0, NS + 4),
    ExecutionCancelled(EXECUTION, "my-pipeline", NS + 5),
]

GUIDE_TABLE = """
CREATE TABLE execution_audit (
  id            INTEGER PRIMARY KEY AUTOINCREMENT,
  event_type    VARCHAR(50) NOT NULL,
  execution_id  CHAR(36) NOT NULL,
  dag_name      VARCHAR(255),
  module_name   VARCHAR(255),
  duration_ms   BIGINT,
  succeeded     BOOLEAN,
  error_message TEXT,
  created_at    TIMESTAMP DEFAULT CURRENT_TIMESTAMP
)
"""

POSTGRESQL_DDL = """\
CREATE TABLE IF NOT EXISTS execution_audit (
  id            SERIAL PRIMARY KEY,
  event_type    VARCHAR(50) NOT NULL,
  execution_id  UUID NOT NULL,
  dag_name      VARCHAR(255),
  module_name   VARCHAR(255),
  duration_ms   BIGINT,
  succeeded     BOOLEAN,
  error_message TEXT,
  created_at    TIMESTAMP DEFAULT NOW(),
  event_id      UUID UNIQUE,
  module_id     UUID,
  error_type    TEXT,
  occurred_ns   BIGINT,
  duration_ns   BIGINT,
  traceparent   TEXT,
  tracestate    TEXT
);
CREATE INDEX IF NOT EXISTS idx_audit_execution_id ON execution_audit(execution_id);
CREATE INDEX IF NOT EXISTS idx_audit_dag_name ON execution_audit(dag_name);
"""

SQLITE_DDL = """\
CREATE TABLE IF NOT EXISTS "Audit of 2026" (
  id            INTEGER PRIMARY KEY AUTOINCREMENT,
  event_type    VARCHAR(50) NOT NULL,
  execution_id  CHAR(36) NOT NULL,
  dag_name      VARCHAR(255),
  module_name   VARCHAR(255),
  duration_ms   BIGINT,
  succeeded     BOOLEAN,
  error_message TEXT,
  created_at    TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
  event_id      CHAR(36) UNIQUE,
  module_id     CHAR(36),
  error_type    TEXT,
  occurred_ns   BIGINT,
  duration_ns   BIGINT,
  traceparent   TEXT,
  tracestate    TEXT
);
CREATE INDEX IF NOT EXISTS "idx_Audit of 2026_execution_id" ON "Audit of 2026"(execution_id);
CREATE INDEX IF NOT EXISTS "idx_Audit of 2026_dag_name" ON "Audit of 2026"(dag_name);
"""


class Database:
    """A SQLite file, and what is opened on it: all of it closed at the end."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.url = f"sqlite:///{file}"
        self.opened: list[SqlSink | SqlSource] = []

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """Runs statements by the standard library; returns what the last one gave."""
        with closing(sqlite3.connect(self.file, timeout=DEADLINE)) as connection:
            rows: list[tuple[Any, ...]] = []
            for statement in statements:
                rows = connection.execute(statement).fetchall()
            connection.commit()
            return rows

    def sink(self, parameters: str = "", **options: Any) -> SqlSink:
        sink = SqlSink(self.url + parameters, **options)
        self.opened.append(sink)
        return sink

    def source(self, parameters: str = "", **options: Any) -> SqlSource:
        source = SqlSource(self.url + parameters, **options)
        self.opened.append(source)
        return source

    def events(self) -> list[Event]:
        return [item.event for item in read_all(self.source()) if isinstance(item, Record)]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "audit.db")
    yield made
    for opened in made.opened:
        opened.close()


def read_all(source: SqlSource) -> list[Record | Unreadable]:
    items: list[Record | Unreadable] = []
    while not source.has_ended:
        items.extend(source.read(DEADLINE))
    return items


def started(number: int) -> ExecutionStarted:
    return ExecutionStarted(UUID(int=number), f"dag-{number}", NS + number)


def insert_ids(*ids: int) -> str:
    rows = ", ".join(
        f"({number}, 'execution.started', '{UUID(int=abs(number))}', 'dag-{number}', '2026-03-29 00:00:00')"
        for number in ids
    )
    return f"INSERT INTO execution_audit (id, event_type, execution_id, dag_name, created_at) VALUES {rows}"


def offsets(items: Sequence[Record | Unreadable]) -> list[int]:
    return [item.position.offset for item in items]


# -- the schema


def test_the_ddl_of_postgresql_is_the_guides_and_then_ours() -> None:
    assert schema_ddl("postgresql") == POSTGRESQL_DDL


def test_the_ddl_of_sqlite_is_the_natural_equivalent_and_names_are_quoted_where_they_must_be() -> None:
    assert schema_ddl("sqlite", table="Audit of 2026") == SQLITE_DDL


def test_the_sink_makes_just_what_the_ddl_says_and_running_it_again_changes_nothing(
    database: Database, tmp_path: Path
) -> None:
    database.sink("?table=Audit%20of%202026").send(SIX, DEADLINE)
    by_hand = Database(tmp_path / "by-hand.db")
    with closing(sqlite3.connect(by_hand.file)) as connection:
        connection.executescript(SQLITE_DDL + SQLITE_DDL)
    schema = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
    assert database.execute(schema) == by_hand.execute(schema)


def test_a_dialect_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'mysql' is none of postgresql, sqlite"):
        schema_ddl("mysql")  # type: ignore[arg-type] # what is tested


@pytest.mark.parametrize(
    "table", ["", "a\nb", "x" * 47, "ä" * 24, "a.b.c", ".a", "a.", ".", '"a', '""', '"a"b', "x" * 64 + ".a", "\ud800"]
)
def test_a_name_that_no_table_can_have_is_refused(table: str) -> None:
    with pytest.raises(ConfigurationError, match="is no name for a table: 1 to 46 bytes are"):
        schema_ddl("sqlite", table)
    with pytest.raises(ConfigurationError, match="is no name for a table"):
        SqlSink("sqlite:///audit.db", table=table)


@pytest.mark.parametrize(
    ("table", "quoted", "index"),
    [
        ("ops.execution_audit", "ops.execution_audit", "idx_audit_dag_name"),
        ("Ops.Audit", '"Ops"."Audit"', '"idx_Audit_dag_name"'),
        ('"a.b"', '"a.b"', '"idx_a.b_dag_name"'),
        ('"a.b"."""c"', '"a.b"."""c"', '"idx_""c_dag_name"'),
        ('o"ps.été', '"o""ps"."été"', '"idx_été_dag_name"'),
        ("x" * 63 + "." + "y" * 46, "x" * 63 + "." + "y" * 46, "idx_" + "y" * 46 + "_dag_name"),
    ],
)
def test_a_tables_name_may_have_a_schema_and_be_in_double_quotes(table: str, quoted: str, index: str) -> None:
    ddl = schema_ddl("postgresql", table)
    assert ddl.startswith(f"CREATE TABLE IF NOT EXISTS {quoted} (")
    assert f"CREATE INDEX IF NOT EXISTS {index} ON {quoted}(" in ddl
    assert str(Address(f"postgresql://db/shop?table={quote(table)}", TABLE, None).table) == table


# -- URLs


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "it has to be postgresql://user:password@host/database or sqlite:///file, with %40 for an @"),
        ("postgresql://u@host:hunter2/db", "it has to be postgresql"),
        ("postgresql://u:hun@ter2@host/db", "it has to be postgresql"),
        ("mysql://u:hunter2@host/db", "no audit table is at a URL that begins with 'mysql'"),
        ("postgresql+psycopg2://u:hunter2@host/db", "begins with 'postgresql\\+psycopg2'"),
        ("sqlite://", "a table in memory is gone when it is closed; name a file: sqlite:///audit.db"),
        ("sqlite:///:memory:", "a table in memory is gone"),
        ("sqlite:///audit.db?mode=ro", "SQLite takes the parameters mode with sqlite:///file:audit.db"),
        ("sqlite:///file:audit.db?uri=maybe", "the parameter 'uri' of the URL cannot be used: 'maybe'"),
        ("postgresql://u:hunter2@h/db?port=many", "the parameter 'port' of the URL cannot be used: 'many'"),
        ("postgresql://h/db?port=1&port=x&host=a&host=b", "the parameter 'port' of the URL cannot be used: '1', 'x'"),
        ("postgresql://../db", "'..' in the URL can be no host's name"),
        ("postgresql://h/db?host=a,.b", "'.b' in the URL can be no host's name"),
        ("sqlite://../audit.db", "it has to be postgresql"),
        ("sqlite:///audit.db?timezone=Europe/Nowhere", "timezone is 'Europe/Nowhere', which is unknown here"),
        ("sqlite:///audit.db?timezone=Europe", "timezone is 'Europe', which is unknown here; name one with"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str, message: str) -> None:
    for transport in (SqlSink, SqlSource):
        with pytest.raises(ConfigurationError, match=message) as caught:
            transport(url)
        assert "hun" not in str(caught.value)


def test_a_sources_name_is_its_url_without_secrets() -> None:
    url = f"postgresql://me:{QUOTED_SECRET}@db:5433/shop?table=audit&timezone=UTC&sslpassword={QUOTED_SECRET}&sslmode=require"
    source = SqlSource(url)
    assert source.name == "postgresql://me:***@db:5433/shop?table=audit&timezone=UTC"
    assert (source.is_ordered, source.is_durable, source.has_ended) == (False, True, False)
    source.close()


def test_a_sinks_name_is_its_kind() -> None:
    sink = SqlSink("postgresql://db/shop")
    assert (sink.name, sink.takes, sink.max_batch) == ("sql", "events", 512)
    sink.close()


def test_no_message_of_the_database_gets_out_with_the_password_in_it() -> None:
    address = Address(f"postgresql://me:{QUOTED_SECRET}@db/shop?sslpassword=t0p", "execution_audit", None)
    said = f"no\nsuch user: me/{SECRET} or {QUOTED_SECRET} with t0p " + "x" * 600
    message = address.told(failure(psycopg.OperationalError(said)))
    assert message.startswith("postgresql://me:***@db/shop: no such user: me/*** or *** with *** xxx")
    assert len(message) < 540
    assert SECRET not in repr(address)


def test_making_one_touches_no_file(database: Database) -> None:
    database.sink()
    database.source()
    assert not database.file.exists()


def test_a_uri_reaches_sqlite_as_it_is(database: Database) -> None:
    database.sink().send(SIX, DEADLINE)
    source = SqlSource(f"sqlite:///file:{database.file}?mode=ro&uri=true&table=execution_audit")
    database.opened.append(source)
    assert len(read_all(source)) == 6


@pytest.mark.parametrize("table", ['"a.b"', "main.Audit", 'c"d', "Été ☃", "main.main"])
def test_a_table_of_sqlite_is_made_and_found_by_its_name(database: Database, table: str) -> None:
    database.sink(table=table).send(SIX, DEADLINE)
    assert len(read_all(database.source(f"?table={quote(table)}"))) == 6


@pytest.mark.parametrize("table", ["ops.audit", '"main.x".audit', "temp.audit"])
def test_sqlite_has_no_schema_but_main_and_the_message_says_what_to_write(database: Database, table: str) -> None:
    message = r"is no name for a table of SQLite, which has no schema but main: leave .* out, or .* in double quotes"
    for make in (database.sink, database.source):
        with pytest.raises(ConfigurationError, match=message):
            make(table=table)
    with pytest.raises(ConfigurationError, match=message):
        schema_ddl("sqlite", table)


# -- the sink


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


def test_names_are_cut_to_their_columns_and_what_no_text_can_hold_is_replaced(database: Database) -> None:
    events: list[Event] = [
        ExecutionStarted(EXECUTION, "d" * 300, NS, TRACEPARENT, "a=\x00"),
        ExecutionStarted(EXECUTION, "d", NS + 1, "", ""),
        ModuleFailed(EXECUTION, MODULE, "m\x00" * 200, ErrorInfo("E\x00", "bad \x00\ud800"), NS),
    ]
    assert database.sink().send(events, DEADLINE) == []
    assert database.events() == [
        ExecutionStarted(EXECUTION, "d" * 255, NS, TRACEPARENT, "a=\N{REPLACEMENT CHARACTER}"),
        ExecutionStarted(EXECUTION, "d", NS + 1),
        ModuleFailed(
            EXECUTION,
            MODULE,
            ("m\N{REPLACEMENT CHARACTER}" * 200)[:255],
            ErrorInfo("E\N{REPLACEMENT CHARACTER}", "bad \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"),
            NS,
        ),
    ]


def test_a_trace_context_that_its_column_has_no_room_for_is_left_out(database: Database) -> None:
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


def test_a_row_that_the_database_refuses_is_refused_with_its_batch_and_nothing_of_it_is_written(
    database: Database,
) -> None:
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
        "the table execution_audit is no audit table: dag_name is missing; module_name is missing; duration_ms is "
        "missing; succeeded is missing; error_message is missing; created_at is missing. Make one that has what "
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
    with pytest.raises(MisconfiguredError, match="no such table: execution_audit; mend the URL, the table or the"):
        sink.send(SIX, DEADLINE)
    sink.send(SIX, DEADLINE)
    assert database.events() == SIX


def test_other_columns_may_be_there_as_long_as_they_have_a_value_of_their_own(database: Database) -> None:
    more = "CURRENT_TIMESTAMP, host TEXT, tenant INTEGER NOT NULL DEFAULT 7"
    database.execute(GUIDE_TABLE.replace("CURRENT_TIMESTAMP", more))
    database.sink().send(SIX[:1], DEADLINE)
    assert database.execute("SELECT host, tenant FROM execution_audit") == [(None, 7)]
    database.execute("CREATE TABLE strict AS SELECT * FROM execution_audit", "DROP TABLE execution_audit")
    database.execute(GUIDE_TABLE.replace("CURRENT_TIMESTAMP", "CURRENT_TIMESTAMP, tenant INTEGER NOT NULL"))
    with pytest.raises(MisconfiguredError, match="columns that must not be null and have no default: tenant; give"):
        database.sink().send(SIX[:1], DEADLINE)


def test_a_locked_database_is_unavailable_within_the_timeout_and_then_takes_it(database: Database) -> None:
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


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def test_a_statement_that_takes_too_long_is_left_within_the_timeout(database: Database) -> None:
    database.execute(GUIDE_TABLE, f"CREATE TRIGGER slow AFTER INSERT ON execution_audit BEGIN {ENDLESS}; END")
    begun = time.monotonic()
    with pytest.raises(UnavailableError, match=r"audit\.db: interrupted"):
        database.sink().send(SIX, 0.5)
    assert time.monotonic() - begun < DEADLINE
    assert database.execute("SELECT count(*) FROM execution_audit") == [(0,)]


def test_without_a_thread_to_watch_it_a_batch_is_written_all_the_same(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Timer, "start", start)
    database.sink().send(SIX, DEADLINE)
    monkeypatch.undo()
    assert database.events() == SIX


@pytest.mark.parametrize("content", ["folder", "nonsense"])
def test_what_can_be_no_database_is_somebodys_to_mend(tmp_path: Path, content: str) -> None:
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
    return [item.position.offset for item in source.read(30.0)]

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


# -- what an error means


def failure(error: BaseException) -> DBAPIError:
    return DBAPIError("INSERT", {}, error)


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("it says so")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (psycopg.errors.NotNullViolation(), RefusedError),
        (psycopg.errors.CheckViolation(), RefusedError),
        (psycopg.errors.StringDataRightTruncation(), RefusedError),
        (psycopg.errors.NumericValueOutOfRange(), RefusedError),
        (psycopg.errors.RaiseException(), RefusedError),
        (psycopg.errors.ProgramLimitExceeded(), RefusedError),
        (psycopg.errors.WithCheckOptionViolation(), RefusedError),
        (psycopg.errors.InvalidPassword(), MisconfiguredError),
        (psycopg.errors.InvalidCatalogName(), MisconfiguredError),
        (psycopg.errors.InvalidSchemaName(), MisconfiguredError),
        (psycopg.errors.UndefinedTable(), MisconfiguredError),
        (psycopg.errors.InsufficientPrivilege(), MisconfiguredError),
        (psycopg.errors.ReadOnlySqlTransaction(), MisconfiguredError),
        (psycopg.errors.DuplicateTable(), UnavailableError),
        (psycopg.errors.DiskFull(), UnavailableError),
        (psycopg.errors.TooManyConnections(), UnavailableError),
        (psycopg.errors.DeadlockDetected(), UnavailableError),
        (psycopg.errors.SerializationFailure(), UnavailableError),
        (psycopg.errors.QueryCanceled(), UnavailableError),
        (psycopg.errors.AdminShutdown(), UnavailableError),
        (psycopg.errors.CannotConnectNow(), UnavailableError),
        (psycopg.errors.LockNotAvailable(), UnavailableError),
        (psycopg.OperationalError('FATAL:  password authentication failed for user "me"'), MisconfiguredError),
        (psycopg.OperationalError('FATAL:  database "shop" does not exist'), MisconfiguredError),
        (psycopg.OperationalError('FATAL:  role "me" does not exist'), MisconfiguredError),
        (psycopg.OperationalError("fe_sendauth: no password supplied"), MisconfiguredError),
        (psycopg.OperationalError('FATAL:  no pg_hba.conf entry for host "10.0.0.1"'), MisconfiguredError),
        (psycopg.ProgrammingError('invalid connection option "colour"'), MisconfiguredError),
        (psycopg.OperationalError("FATAL:  no such database: shop"), MisconfiguredError),
        (psycopg.OperationalError("FATAL:  unsupported startup parameter: options"), MisconfiguredError),
        (psycopg.OperationalError("connection refused"), UnavailableError),
        (psycopg.errors.ProtocolViolation("query_wait_timeout"), UnavailableError),
        (psycopg.OperationalError("server closed the connection unexpectedly"), UnavailableError),
        (sqlite_error(sqlite3.SQLITE_CONSTRAINT_UNIQUE), RefusedError),
        (sqlite_error(sqlite3.SQLITE_TOOBIG), RefusedError),
        (sqlite_error(sqlite3.SQLITE_MISMATCH), RefusedError),
        (sqlite_error(sqlite3.SQLITE_FULL), UnavailableError),
        (sqlite_error(sqlite3.SQLITE_BUSY), UnavailableError),
        (sqlite_error(sqlite3.SQLITE_IOERR_FSYNC), UnavailableError),
        (sqlite_error(sqlite3.SQLITE_ERROR), MisconfiguredError),
        (sqlite_error(sqlite3.SQLITE_READONLY_DBMOVED), MisconfiguredError),
        (sqlite_error(sqlite3.SQLITE_CANTOPEN_ISDIR), MisconfiguredError),
    ],
)
def test_an_error_means_that_data_are_refused_that_somebody_has_to_mend_it_or_that_it_passes(
    error: BaseException, verdict: type[Exception]
) -> None:
    assert verdict_on(failure(error)) is verdict


def test_what_the_driver_itself_refuses_is_refused() -> None:
    error = DataError("INSERT", {}, psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"))
    assert verdict_on(error) is RefusedError


def test_what_sqlalchemy_says_by_itself_passes() -> None:
    assert verdict_on(sqlalchemy.exc.PendingRollbackError("roll back first")) is UnavailableError


# -- the source


def test_what_was_written_is_read_back_to_the_nanosecond(database: Database) -> None:
    database.sink().send(SIX, DEADLINE)
    source = database.source()
    assert read_all(source) == [Record(event, Position(None, number)) for number, event in enumerate(SIX, start=1)]
    source.acknowledge([Position(None, 1)])
    assert source.read(DEADLINE) == []


texts = st.text(max_size=250)
ids = st.uuids()
times = st.integers(0, 2**63 - 1)
lengths = st.none() | st.floats(min_value=0, max_value=1e12, allow_nan=False) | st.just(float("nan"))
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(ExecutionStarted, ids, texts, times, st.none() | st.just(TRACEPARENT), st.none() | st.just("a=1,b=2")),
    st.builds(ModuleStarted, ids, st.none() | ids, texts, times),
    st.builds(ModuleCompleted, ids, st.none() | ids, texts, lengths, times),
    st.builds(
        ModuleFailed, ids, st.none() | ids, texts, st.builds(ErrorInfo, st.none() | texts, st.none() | texts), times
    ),
    st.builds(ExecutionCompleted, ids, texts, st.booleans(), lengths, times),
    st.builds(ExecutionCancelled, ids, texts, times),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(events, min_size=1, max_size=20, unique_by=encode_json))
def test_a_table_keeps_of_an_event_what_the_guides_json_keeps(database: Database, written: list[Event]) -> None:
    database.execute("DROP TABLE IF EXISTS execution_audit")
    sink = database.sink()
    assert sink.send(written, DEADLINE) == []
    sink.close()
    assert database.events() == [decode_json(encode_json(event)) for event in written]


for_texts = st.sampled_from(["", "TEXT", "VARCHAR(255)", "CHAR(255)", "BLOB"])
for_times = st.sampled_from(["", "TEXT", "VARCHAR(255)", "BLOB", "BIGINT", "NUMERIC", "STRING", "BOOLEAN"])
for_others = for_times | st.just("REAL")
COLUMNS = [name for name in [*GUIDE, *OURS] if name != "id"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.fixed_dictionaries(
        {
            name: for_times
            if name.endswith("_ns")
            else for_others
            if name in {"duration_ms", "succeeded", "created_at"}
            else for_texts
            for name in COLUMNS
        }
    ),
    written=st.lists(events, min_size=1, max_size=10, unique_by=encode_json),
)
@example(table=dict.fromkeys(COLUMNS, "TEXT"), written=SIX)
@example(table=dict.fromkeys(COLUMNS, "NUMERIC"), written=SIX)
def test_what_is_written_into_columns_of_any_type_is_read_back(
    database: Database, table: dict[str, str], written: list[Event]
) -> None:
    columns = ", ".join(f"{name} {kind}" for name, kind in table.items())
    database.execute(
        "DROP TABLE IF EXISTS execution_audit", f"CREATE TABLE execution_audit (id INTEGER PRIMARY KEY, {columns})"
    )
    with closing(SqlSink(database.url)) as sink:
        assert sink.send(written, DEADLINE) == []
    with closing(SqlSource(database.url)) as source:
        read = [item.event for item in read_all(source) if isinstance(item, Record)]
    assert read == [decode_json(encode_json(event)) for event in written]


def test_texts_that_a_column_has_made_numbers_of_are_texts_again(database: Database) -> None:
    table = GUIDE_TABLE.replace("VARCHAR(255)", "STRING").replace("TEXT", "STRING")
    database.execute(table.replace("CURRENT_TIMESTAMP", "CURRENT_TIMESTAMP, error_type STRING, occurred_ns STRING"))
    written: list[Event] = [
        ExecutionStarted(EXECUTION, "2026", NS),
        ModuleFailed(EXECUTION, None, "7", ErrorInfo("404", "-1.5"), NS),
    ]
    database.sink().send(written, DEADLINE)
    assert database.execute("SELECT typeof(dag_name), typeof(error_message) FROM execution_audit") == [
        ("integer", "null"),
        ("null", "real"),
    ]
    assert database.events() == written


@pytest.mark.parametrize("column", ["occurred_ns", "duration_ns"])
def test_a_column_that_rounds_nanoseconds_is_left_alone(database: Database, column: str) -> None:
    database.execute(GUIDE_TABLE.replace("CURRENT_TIMESTAMP", f"CURRENT_TIMESTAMP, {column} DOUBLE"))
    database.sink().send(SIX[4:5], DEADLINE)
    assert database.execute(f"SELECT duration_ms, {column} FROM execution_audit") == [(15, None)]


@pytest.mark.parametrize(
    ("key", "is_taken"),
    [
        ("integer primary key", True),
        ("INTEGER DEFAULT (abs(random()))", True),
        ("INT PRIMARY KEY", False),
        ("BIGINT PRIMARY KEY", False),
        ("SERIAL PRIMARY KEY", False),
        ("INTEGER", False),
    ],
)
def test_a_table_whose_rows_would_get_no_id_is_not_written(database: Database, key: str, is_taken: bool) -> None:
    database.execute(GUIDE_TABLE.replace("INTEGER PRIMARY KEY AUTOINCREMENT", key))
    if is_taken:
        database.sink().send(SIX, DEADLINE)
        assert len(database.events()) == len(SIX)
        return
    with pytest.raises(MisconfiguredError, match="columns that must not be null and have no default: id; give them"):
        database.sink().send(SIX, DEADLINE)
    assert read_all(database.source()) == []


def test_a_view_is_written_by_its_trigger(database: Database) -> None:
    database.sink("?table=stored").send(SIX[:1], DEADLINE)
    columns = "event_type, execution_id, dag_name, occurred_ns"
    database.execute(
        "CREATE VIEW execution_audit AS SELECT * FROM stored",
        "CREATE TRIGGER written INSTEAD OF INSERT ON execution_audit BEGIN"
        f" INSERT INTO stored ({columns}) VALUES ({', '.join(f'new.{name}' for name in columns.split(', '))}); END",
    )
    database.sink().send([started(7)], DEADLINE)
    assert len(database.events()) == 2


def test_texts_in_the_place_of_ids_are_no_rows_of_ours(database: Database) -> None:
    insert(database, ROW)
    database.execute("ALTER TABLE execution_audit RENAME TO numbered")
    database.execute(
        "CREATE VIEW execution_audit AS SELECT * FROM numbered UNION ALL"
        f" SELECT 'x', {', '.join([*ROW, *OURS])} FROM numbered"
    )
    assert offsets(read_all(database.source())) == [1]


def test_rows_of_the_guides_own_listener_have_no_module_ids_and_the_time_of_their_insertion(
    database: Database,
) -> None:
    database.execute(
        GUIDE_TABLE,
        "INSERT INTO execution_audit (event_type, execution_id, dag_name, module_name, duration_ms, succeeded,"
        " error_message, created_at) VALUES"
        f" ('execution.started', '{EXECUTION}', 'd', NULL, NULL, NULL, NULL, '2026-11-24 06:07:08'),"
        f" ('module.completed', '{EXECUTION}', NULL, 'Trim', 2, TRUE, NULL, '2026-11-24 06:07:08.000009'),"
        f" ('module.failed', '{EXECUTION}', NULL, 'Count', NULL, FALSE, NULL, '2026-11-24T06:07:08+01:00'),"
        f" ('execution.completed', '{EXECUTION}', 'd', NULL, 15, FALSE, NULL, '2026-11-24 06:07:08.5')",
    )
    second = 1_795_500_428_000_000_000
    assert database.events() == [
        ExecutionStarted(EXECUTION, "d", second),
        ModuleCompleted(EXECUTION, None, "Trim", 2.0, second + 9_000),
        ModuleFailed(EXECUTION, None, "Count", ErrorInfo(None, None), second - 3_600_000_000_000),
        ExecutionCompleted(EXECUTION, "d", False, 15.0, second + 500_000_000),
    ]


@pytest.mark.parametrize(
    ("local", "utc"),
    [
        ("2026-01-15 12:00:00", "2026-01-15 11:00:00"),
        ("2026-07-15 12:00:00", "2026-07-15 10:00:00"),
        # there twice: the first
        ("2026-10-25 02:30:00", "2026-10-25 00:30:00"),
        # not there
        ("2026-03-29 02:30:00", "2026-03-29 01:30:00"),
    ],
)
def test_created_at_is_in_the_zone_that_the_url_names(database: Database, local: str, utc: str) -> None:
    database.execute(
        GUIDE_TABLE,
        "INSERT INTO execution_audit (event_type, execution_id, dag_name, created_at)"
        f" VALUES ('execution.started', '{EXECUTION}', 'd', '{local}')",
    )
    (epoch,) = database.execute(f"SELECT CAST(strftime('%s', '{utc}') AS INTEGER)")[0]
    for source in (
        database.source("?timezone=Europe/Berlin"),
        database.source(timezone="Europe/Berlin"),
        database.source("?timezone=Europe/Berlin", timezone="Asia/Tokyo"),
    ):
        (item,) = read_all(source)
        assert item == Record(ExecutionStarted(EXECUTION, "d", epoch * 1_000_000_000), Position(None, 1))


def test_the_sink_writes_created_at_in_the_zone_that_the_url_names(database: Database) -> None:
    database.sink("?timezone=Asia/Kolkata").send(SIX[:1], DEADLINE)
    assert database.execute("SELECT created_at FROM execution_audit") == [("2026-03-29 05:30:00.123456",)]


ROW = {
    "event_type": "execution.completed",
    "execution_id": str(EXECUTION),
    "dag_name": "d",
    "module_name": None,
    "duration_ms": 1,
    "succeeded": 1,
    "error_message": None,
    "created_at": "2026-03-29 00:00:00",
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"event_type": "Execution.Completed"}, "eventType 'Execution.Completed' is none of the six"),
        ({"execution_id": "6ba7b810"}, "Invalid UUID"),
        ({"dag_name": None}, "dagName is missing or null"),
        ({"dag_name": 5}, "Expected `str | null`, got `int`"),
        ({"event_type": "module.failed"}, "moduleName is missing or null"),
        ({"succeeded": None}, "succeeded is missing or null"),
        ({"succeeded": 2}, "Expected `bool | null`, got `int`"),
        ({"created_at": None}, "created_at is None, which is no time"),
        ({"created_at": "infinity"}, "created_at is 'infinity', which is no time: Invalid isoformat string"),
        ({"created_at": "1969-12-31 23:59:59"}, "timestampNs is -1000000000, not within 0 and 2**63"),
    ],
)
def test_a_row_that_is_no_event_is_given_as_it_is_and_reading_goes_on(
    database: Database, change: dict[str, object], reason: str
) -> None:
    columns = ", ".join(ROW)
    database.execute(GUIDE_TABLE.replace(" NOT NULL", "").replace("VARCHAR(255)", ""))
    with closing(sqlite3.connect(database.file)) as connection:
        for row in (ROW | change, ROW):
            connection.execute(
                f"INSERT INTO execution_audit ({columns}) VALUES ({', '.join('?' * len(row))})", tuple(row.values())
            )
        connection.commit()
    unreadable, record = read_all(database.source())
    assert isinstance(unreadable, Unreadable)
    assert json.loads(unreadable.data) == {"id": 1, **ROW, **change}
    assert unreadable.reason.startswith("not an event: ")
    assert reason in unreadable.reason
    assert unreadable.position == Position(None, 1)
    assert record == Record(ExecutionCompleted(EXECUTION, "d", True, 1.0, NS - 123_456_789), Position(None, 2))


def insert(database: Database, *rows: Mapping[str, object]) -> None:
    """Inserts values as they are, each into columns that change none of them."""
    names = ", ".join([*ROW, *OURS])
    database.execute(f"CREATE TABLE IF NOT EXISTS execution_audit (id INTEGER PRIMARY KEY, {names})")
    with closing(sqlite3.connect(database.file)) as connection:
        for row in rows:
            marks = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO execution_audit ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
        connection.commit()


ROWS: dict[str, dict[str, object]] = {
    "execution.started": {"dag_name": "d"},
    "module.started": {"module_name": "m"},
    "module.completed": {"module_name": "m"},
    "module.failed": {"module_name": "m"},
    "execution.completed": {"dag_name": "d", "succeeded": 1},
    "execution.cancelled": {"dag_name": "d"},
}
"""What a row of each type has to have, besides an execution and a time."""

anything = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.sampled_from(["NaN", "Infinity", "1e999999999", "12 ms", str(MODULE), MODULE.bytes, TRACEPARENT, "true"])
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), event_type=st.sampled_from(list(ROWS)))
def test_whatever_an_optional_column_of_sqlite_holds_the_rest_of_the_event_is_kept(
    database: Database, data: st.DataObject, event_type: str
) -> None:
    needed = {"event_type": event_type, "execution_id": str(EXECUTION), "created_at": AT, **ROWS[event_type]}
    optional = {name: data.draw(anything, name) for name in [*ROW, *OURS] if name not in needed}
    database.execute("DROP TABLE IF EXISTS execution_audit")
    insert(database, needed | optional)
    (item,) = read_all(database.source())
    assert isinstance(item, Record)
    assert EVENT_TYPES[type(item.event)] == event_type
    assert item.event.execution_id == EXECUTION
    assert getattr(item.event, "dag_name", "d") == "d"
    assert getattr(item.event, "module_name", "m") == "m"
    assert getattr(item.event, "succeeded", True) is True
    assert encode_json(item.event)


EVENT_TYPES: dict[type[Event], str] = {type(event): json.loads(encode_json(event))["eventType"] for event in SIX}
AT = "2026-03-29 00:00:00.123456"
AT_NS = NS // 1000 * 1000


@pytest.mark.parametrize(
    ("column", "value", "event", "is_left_out"),
    [
        ("duration_ms", "15", ExecutionCompleted(EXECUTION, "d", True, 15.0, AT_NS), False),
        ("duration_ms", 2.5, ExecutionCompleted(EXECUTION, "d", True, 2.5, AT_NS), False),
        ("duration_ms", "15 ms", ExecutionCompleted(EXECUTION, "d", True, None, AT_NS), True),
        ("duration_ms", "NaN", ExecutionCompleted(EXECUTION, "d", True, None, AT_NS), True),
        ("duration_ms", float("inf"), ExecutionCompleted(EXECUTION, "d", True, None, AT_NS), True),
        ("duration_ns", "2500000", ExecutionCompleted(EXECUTION, "d", True, 2.5, AT_NS), False),
        ("duration_ns", -1, ExecutionCompleted(EXECUTION, "d", True, None, AT_NS), True),
        ("duration_ns", "soon", ExecutionCompleted(EXECUTION, "d", True, None, AT_NS), True),
        ("occurred_ns", str(NS), ExecutionCompleted(EXECUTION, "d", True, None, NS), False),
        ("occurred_ns", str(NS).encode(), ExecutionCompleted(EXECUTION, "d", True, None, NS), False),
        ("occurred_ns", 0, ExecutionCompleted(EXECUTION, "d", True, None, 0), False),
        ("occurred_ns", -1, ExecutionCompleted(EXECUTION, "d", True, None, AT_NS), True),
        ("occurred_ns", "1e999999999", ExecutionCompleted(EXECUTION, "d", True, None, AT_NS), True),
        ("occurred_ns", "never", ExecutionCompleted(EXECUTION, "d", True, None, AT_NS), True),
        ("succeeded", "False", ExecutionCompleted(EXECUTION, "d", False, None, AT_NS), False),
        ("dag_name", b"caf\xc3\xa9", ExecutionCompleted(EXECUTION, "café", True, None, AT_NS), False),
        ("event_type", b"execution.completed", ExecutionCompleted(EXECUTION, "d", True, None, AT_NS), False),
        ("module_id", "Trim", ModuleFailed(EXECUTION, None, "m", ErrorInfo(None, None), AT_NS), True),
        ("module_id", MODULE.bytes, ModuleFailed(EXECUTION, MODULE, "m", ErrorInfo(None, None), AT_NS), False),
        ("module_id", f"{{{MODULE}}}", ModuleFailed(EXECUTION, MODULE, "m", ErrorInfo(None, None), AT_NS), False),
        ("succeeded", 2, ModuleFailed(EXECUTION, None, "m", ErrorInfo(None, None), AT_NS), True),
        ("dag_name", 5, ModuleFailed(EXECUTION, None, "m", ErrorInfo(None, None), AT_NS), True),
        ("error_message", 5.5, ModuleFailed(EXECUTION, None, "m", ErrorInfo(None, None), AT_NS), True),
        ("error_message", b"no\xff", ModuleFailed(EXECUTION, None, "m", ErrorInfo(None, "no\ufffd"), AT_NS), False),
        ("error_type", 5, ModuleFailed(EXECUTION, None, "m", ErrorInfo(None, None), AT_NS), True),
    ],
)
def test_a_value_that_cannot_be_read_is_left_out_and_one_that_can_is_read(
    database: Database, column: str, value: object, event: Event, is_left_out: bool
) -> None:
    event_type = EVENT_TYPES[type(event)]
    row = {"event_type": event_type, "execution_id": str(EXECUTION), "created_at": AT, **ROWS[event_type]}
    insert(database, row | {column: value})
    (item,) = read_all(database.source())
    assert isinstance(item, Record)
    assert (item.event, item.position, bool(item.corrected)) == (event, Position(None, 1), is_left_out)


def test_what_is_left_out_is_told_with_the_event(database: Database) -> None:
    insert(database, *[ROW | {"duration_ms": "x" * 1000}] * 3)
    shown = "'" + "x" * 99 + "…"
    expected = (f"duration_ms is {shown}, which cannot be read",)
    assert [item.corrected for item in read_all(database.source()) if isinstance(item, Record)] == [expected] * 3


SPELLINGS: list[str | bytes] = [
    str(EXECUTION),
    str(EXECUTION).upper(),
    "6ba7B810-9Dad-41d1-80B4-00c04FD430c8",
    EXECUTION.hex,
    EXECUTION.hex.upper(),
    f"{{{EXECUTION}}}",
    f"{{{EXECUTION.hex}}}",
    EXECUTION.urn,
    f"URN:UUID:{str(EXECUTION).upper()}",
    f"urn:uuid:{{{EXECUTION}}}",
    EXECUTION.bytes,
    str(EXECUTION).encode(),
    EXECUTION.hex.upper().encode(),
]
NO_SPELLINGS: list[str | bytes] = [
    f" {EXECUTION}",
    f"{{{EXECUTION}",
    f"{EXECUTION}".replace("-", "", 1),
    f"uuid:{EXECUTION}",
    EXECUTION.bytes[:-1],
    EXECUTION.bytes * 2,
]


def test_one_execution_is_found_by_whatever_spelling_of_its_id_is_read(database: Database) -> None:
    spelled: dict[str, object] = {"event_type": "execution.started", "dag_name": "d", "created_at": AT}
    others: list[str | bytes] = [str(MODULE), MODULE.bytes]
    insert(database, *(spelled | {"execution_id": id_} for id_ in [*SPELLINGS, *NO_SPELLINGS, *others]))
    everything = read_all(database.source())
    assert [isinstance(item, Record) for item in everything] == [True] * 13 + [False] * 6 + [True] * 2
    assert everything[:13] == [
        Record(ExecutionStarted(EXECUTION, "d", AT_NS), Position(None, number)) for number in range(1, 14)
    ]
    assert read_all(database.source(execution_id=EXECUTION)) == everything[:13]
    assert read_all(database.source(execution_id=MODULE)) == everything[-2:]


@pytest.mark.parametrize(
    ("created_at", "unit"),
    [
        (1_774_742_400, "seconds"),
        (1_774_742_400.5, "seconds"),
        ("1774742400", "seconds"),
        (1_774_742_400_123, "milliseconds"),
        (b"1774742400123", "milliseconds"),
        (1_774_742_400_123_456, "microseconds"),
        (NS, "nanoseconds"),
        (str(NS), "nanoseconds"),
    ],
)
def test_a_number_is_no_time_and_the_message_names_its_unit(database: Database, created_at: object, unit: str) -> None:
    insert(database, ROW | {"created_at": created_at}, ROW | {"created_at": created_at, "occurred_ns": NS})
    unreadable, record = read_all(database.source())
    assert isinstance(unreadable, Unreadable)
    assert f"a number, as of {unit} since 1970, which is no time; write it as 2026-03-29" in unreadable.reason
    assert record == Record(ExecutionCompleted(EXECUTION, "d", True, 1.0, NS), Position(None, 2))


def test_an_unreadable_row_is_json_whatever_it_holds(database: Database) -> None:
    insert(database, ROW | {"event_type": "no", "duration_ms": float("inf"), "dag_name": b"\xff", "module_id": 2.5})
    (item,) = read_all(database.source())
    assert isinstance(item, Unreadable)
    row = json.loads(item.data)
    assert {name: value for name, value in row.items() if value is not None} == {
        "id": 1,
        **{name: value for name, value in ROW.items() if value is not None},
        "event_type": "no",
        "duration_ms": "inf",
        "dag_name": "\\xff",
        "module_id": 2.5,
    }


def test_a_row_without_an_execution_is_no_event(database: Database) -> None:
    database.execute(
        GUIDE_TABLE.replace(" NOT NULL", ""), "INSERT INTO execution_audit (event_type) VALUES ('execution.started')"
    )
    (item,) = read_all(database.source())
    assert isinstance(item, Unreadable)
    assert "Expected `uuid`, got `null`" in item.reason


def test_bytes_that_are_no_utf_8_are_replaced(database: Database) -> None:
    database.execute(GUIDE_TABLE, insert_ids(1), "UPDATE execution_audit SET dag_name = CAST(x'61ff' AS TEXT)")
    (item,) = read_all(database.source())
    assert isinstance(item, Record)
    assert isinstance(item.event, ExecutionStarted)
    assert item.event.dag_name == "a\N{REPLACEMENT CHARACTER}"


def test_a_long_table_comes_in_pages_up_to_the_highest_id_that_there_was_at_the_first(database: Database) -> None:
    database.execute(GUIDE_TABLE, insert_ids(*range(1, 1201)))
    source = database.source()
    first = source.read(0)
    database.execute(insert_ids(1201))
    pages = [first, source.read(0), source.read(0), source.read(0)]
    assert [len(page) for page in pages] == [512, 512, 176, 0]
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


def test_where_there_are_schemas_a_missing_table_may_be_in_another_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_nothing_new_is_waited_for_as_long_as_asked_and_asked_for_no_more_often_than_said(
    database: Database,
) -> None:
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
    assert [len(page) for page in pages] == [512, 512, 176, 0]
    assert offsets([item for page in pages for item in page]) == list(range(1, 1201))


def test_more_gaps_than_fit_one_query_are_all_looked_for(database: Database) -> None:
    database.execute(GUIDE_TABLE, insert_ids(*range(2, 504, 2)))
    source = database.source(follow=True, poll_interval=0.0, gap_timeout=DEADLINE)
    assert len(source.read(0)) == 251
    database.execute(insert_ids(499))
    assert offsets(source.read(0)) == [499]


def test_an_id_that_never_comes_is_given_up(database: Database) -> None:
    database.execute(GUIDE_TABLE, insert_ids(2))
    source = database.source(follow=True, poll_interval=0.0, gap_timeout=0.01)
    assert offsets(source.read(0)) == [2]
    eventually(lambda: source.read(0) == [] and not source._gaps.held, "the gap is given up")
    database.execute(insert_ids(1, 3))
    assert offsets(source.read(0)) == [3]


def test_gaps_are_bounded_and_the_oldest_are_given_up_with_a_record_in_the_log(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sql, "_MAX_GAPS", 2)
    database.execute(GUIDE_TABLE, insert_ids(2, 4, 6))
    source = database.source(follow=True, poll_interval=0.0, gap_timeout=DEADLINE)
    with caplog.at_level(logging.INFO, sql.__name__):
        assert offsets(source.read(0)) == [2, 4, 6]
    assert [record.getMessage() for record in caplog.records] == [
        f"{database.url}: more than 2 gaps in the ids; the oldest are not waited for"
    ]
    database.execute(insert_ids(1, 3, 5))
    assert offsets(source.read(0)) == [3, 5]


@settings(deadline=None)
@given(st.data())
def test_the_ids_that_are_missing_are_those_below_the_highest_that_have_not_come(data: st.DataObject) -> None:
    gaps = sql._Gaps(10.0)
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
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "_READ_TIMEOUT", 0.2)
    database.execute(GUIDE_TABLE, insert_ids(1))
    source = database.source(follow=True, poll_interval=0.0)
    assert offsets(source.read(0)) == [1]
    with closing(sqlite3.connect(database.file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute(insert_ids(2))
        with pytest.raises(UnavailableError, match="database is locked"):
            source.read(0)
        other.commit()
    monkeypatch.undo()
    assert offsets(source.read(0)) == [2]


def test_closing_ends_a_read_that_waits(database: Database) -> None:
    database.execute(GUIDE_TABLE)
    source = database.source(follow=True, poll_interval=DEADLINE)
    reading, results = run(lambda: source.read(DEADLINE))
    eventually(lambda: source._next_read > 0, "it has looked once")
    source.close()
    reading.join(DEADLINE)
    assert results == [[]]
    assert source.read(DEADLINE) == []


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


def run(function: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    return thread, results


# -- what is PostgreSQL's alone, as far as it is a function


def test_postgresqls_client_gets_our_options_where_the_url_has_none() -> None:
    address = Address("postgresql://db/shop?client_encoding=latin1&sslmode=require", "execution_audit", None)
    assert address.url.query == {
        "client_encoding": "latin1",
        "fallback_application_name": "constellation-otel",
        "sslmode": "require",
        "tcp_user_timeout": "30000",
    }


@pytest.mark.parametrize(("timeout", "seconds"), [(0.0, 2), (9.0, 4), (30.0, 13)])
def test_connecting_takes_half_of_the_time_for_each_of_two_addresses(
    database: Database, timeout: float, seconds: int
) -> None:
    made = _Database(Address(database.url, "execution_audit", None))
    options: dict[str, object] = {}
    with made.transaction(timeout):
        made._set_options(options)
    made.close()
    assert options == {"timeout": seconds}


def test_there_is_nothing_to_interrupt_before_there_is_a_connection(database: Database) -> None:
    made = _Database(Address(database.url, "execution_audit", None))
    made.interrupt()
    made.close()


def test_a_connection_that_is_shut_down_wakes_whoever_waits_for_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        waiting, results = run(lambda: ours.recv(1))
        shut_down(SimpleNamespace(pgconn=SimpleNamespace(socket=ours.fileno())))
        waiting.join(DEADLINE)
        assert results == [b""]


class Nameless(types.TypeEngine[Any]):
    """A type of which SQLAlchemy does not know what Python has for it."""

    @property
    def python_type(self) -> type[Any]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("column", "kind", "fits"),
    [
        ("execution_id", postgresql.UUID(), True),
        ("execution_id", types.VARCHAR(36), True),
        ("execution_id", types.CHAR(32), True),
        ("execution_id", types.TEXT(), True),
        ("execution_id", types.VARCHAR(31), False),
        ("execution_id", types.BIGINT(), False),
        ("dag_name", postgresql.CITEXT(), True),
        ("dag_name", types.JSON(), False),
        ("succeeded", types.BOOLEAN(), True),
        ("succeeded", types.SMALLINT(), False),
        ("created_at", postgresql.TIMESTAMP(timezone=True), True),
        ("created_at", types.DATE(), False),
        ("id", types.BIGINT(), True),
        ("id", postgresql.UUID(), False),
        ("error_message", types.NullType(), True),
        ("error_message", Nameless(), False),
        ("dag_name", postgresql.ENUM("d", name="dags"), True),
        # PostgreSQL's "char" and name
        ("event_type", types.String(), False),
        ("duration_ms", types.SMALLINT(), True),
        ("duration_ms", types.NUMERIC(10, 2), True),
        ("duration_ms", types.REAL(), True),
        ("duration_ms", types.DOUBLE_PRECISION(), True),
        ("duration_ms", postgresql.INTERVAL(), False),
        ("duration_ms", types.TEXT(), False),
        ("occurred_ns", types.BIGINT(), True),
        ("occurred_ns", types.INTEGER(), False),
        ("occurred_ns", types.NUMERIC(), True),
        ("occurred_ns", types.NUMERIC(19), True),
        ("occurred_ns", types.NUMERIC(18), False),
        ("occurred_ns", types.NUMERIC(20, 2), False),
        ("occurred_ns", types.DOUBLE_PRECISION(), False),
    ],
)
def test_a_column_of_postgresql_has_to_be_of_a_type_that_holds_our_values(
    column: str, kind: types.TypeEngine[Any], fits: bool
) -> None:
    kinds = {**GUIDE, **OURS}[column].kinds
    assert can_hold(POSTGRESQL, kind, kinds) is fits
    assert can_hold(SQLITE, kind, kinds) is (column != "occurred_ns" or kind.python_type is not float)


def test_a_domain_is_what_it_is_made_of() -> None:
    name = types.VARCHAR(40)
    assert base_of(postgresql.DOMAIN("outer", postgresql.DOMAIN("inner", name))) is name
    assert base_of(name) is name


@pytest.mark.parametrize(
    ("kind", "condition"),
    [
        # which finds whatever is the same id, by the column's index
        (postgresql.UUID(), "execution_id = %("),
        (types.CHAR(40), "lower(CAST(execution_id AS TEXT)) IN ("),
    ],
)
def test_an_execution_is_looked_for_by_what_its_column_is(kind: types.TypeEngine[Any], condition: str) -> None:
    found = finder(POSTGRESQL, kind)(EXECUTION).compile(dialect=POSTGRESQL.module.dialect())
    assert str(found).startswith(condition)


def test_where_the_database_is_strict_texts_and_times_are_read_as_text(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.sink().send(SIX, DEADLINE)
    database.execute("UPDATE execution_audit SET error_message = 404 WHERE error_message IS NOT NULL")
    source = database.source()
    monkeypatch.setattr(source._audit.address, "dialect", replace(SQLITE, is_strict=True))
    read = [item.event for item in read_all(source) if isinstance(item, Record)]
    failed = ModuleFailed(EXECUTION, MODULE, "WordCount", ErrorInfo("ValueError", "404"), NS + 3)
    assert read == [*SIX[:3], failed, *SIX[4:]]


def test_a_table_with_columns_of_other_types_is_none_where_the_database_is_strict(database: Database) -> None:
    database.execute(GUIDE_TABLE.replace("CHAR(36)", "INTEGER").replace("dag_name ", "dags "))
    address = Address(database.url, "execution_audit", None)
    address.dialect = replace(SQLITE, is_strict=True)
    made = _Database(address)
    message = "audit table: execution_id is INTEGER\\(\\), not one of Uuid, String; dag_name is missing. Make one"
    with pytest.raises(SourceError, match=message), made.transaction(DEADLINE) as connection:
        layout_of(connection, address, SourceError)
    made.close()


# -- what is missing


@pytest.mark.parametrize(("missing", "library"), [("sqlalchemy", "sqlalchemy"), ("psycopg", "psycopg")])
def test_a_missing_library_says_what_to_install(missing: str, library: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from constellation_otel.transports.sql.sql import SqlSink\n"
        "SqlSink('sqlite:///audit.db').close()\n"
        "SqlSink('postgresql://db/shop')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith(f"{library} is not installed; run: pip install 'constellation-otel[sql]'\n")


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
