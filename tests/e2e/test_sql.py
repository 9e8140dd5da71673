"""The audit table in a real PostgreSQL, whose time zone is Berlin's."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import closing, contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from constellation_otel.delivery import Position, Record, Unreadable
from constellation_otel.errors import MisconfiguredError, RefusedError, SourceError, UnavailableError
from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
    encode_json,
)
from constellation_otel.transports.sql import SqlSink, SqlSource, schema_ddl
from constellation_otel.transports.sql.database import POSTGRESQL, Address
from constellation_otel.transports.sql.table import GUIDE, OURS, base_of, can_hold
from deliveries import flat
from sql_events import EXECUTION, MODULE, NS, SIX, TRACEPARENT

from .peers import Postgres, eventually
from .peers.postgres import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

TIMEOUT = 30.0

# as the guide has it
GUIDE_DDL = """
CREATE TABLE execution_audit (
  id            SERIAL PRIMARY KEY,
  event_type    VARCHAR(50) NOT NULL,
  execution_id  UUID NOT NULL,
  dag_name      VARCHAR(255),
  module_name   VARCHAR(255),
  duration_ms   BIGINT,
  succeeded     BOOLEAN,
  error_message TEXT,
  created_at    TIMESTAMP DEFAULT NOW()
);

CREATE INDEX idx_audit_execution_id ON execution_audit(execution_id);
CREATE INDEX idx_audit_dag_name ON execution_audit(dag_name);
"""


class Database:
    """A database of its own for one test, and what is opened on it: all of it closed at the end."""

    def __init__(self, postgres: Postgres, name: str) -> None:
        self.postgres = postgres
        self.name = name
        self.url = postgres.url(name)
        self.opened: list[SqlSink | SqlSource] = []

    def psql(self, script: str) -> str:
        return self.postgres.psql(script, database=self.name)

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A session of somebody else's, with a transaction open from its first statement on."""
        connection = psycopg.connect(self.url, connect_timeout=10)
        try:
            yield connection
        finally:
            connection.close()

    def sink(self, parameters: str = "") -> SqlSink:
        sink = SqlSink(self.url + parameters)
        self.opened.append(sink)
        return sink

    def source(self, parameters: str = "", **options: Any) -> SqlSource:
        source = SqlSource(self.url + parameters, **options)
        self.opened.append(source)
        return source

    def items(self, parameters: str = "", **options: Any) -> list[Record | Unreadable]:
        source = self.source(parameters, **options)
        items: list[Record | Unreadable] = []
        while not source.has_ended:
            items.extend(flat(source.read(TIMEOUT)))
        return items

    def events(self, parameters: str = "", **options: Any) -> list[Event]:
        return [item.event for item in self.items(parameters, **options) if isinstance(item, Record)]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("postgres"), {"timezone": "Europe/Berlin"}) as server:
        yield server


@pytest.fixture
def make_database() -> Iterator[Callable[[Postgres], Database]]:
    made: list[Database] = []

    def make(postgres: Postgres) -> Database:
        name = f"audit_{next(numbers)}"
        postgres.psql(f"CREATE DATABASE {name}")
        made.append(Database(postgres, name))
        return made[-1]

    yield make
    for database in made:
        for opened in database.opened:
            opened.close()


@pytest.fixture
def database(postgres: Postgres, make_database: Callable[[Postgres], Database]) -> Database:
    return make_database(postgres)


numbers = count()


def started(number: int) -> ExecutionStarted:
    return ExecutionStarted(UUID(int=number), f"dag-{number}", NS + number)


def insert(number: int) -> str:
    return (
        "INSERT INTO execution_audit (event_type, execution_id, dag_name)"
        f" VALUES ('execution.started', '{UUID(int=number)}', 'dag-{number}')"
    )


def offsets(items: Sequence[Record | Unreadable]) -> list[int]:
    return [item.position.offset for item in items]


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


def test_the_ddl_that_is_printed_makes_what_the_sink_makes(
    postgres: Postgres, make_database: Callable[[Postgres], Database]
) -> None:
    by_hand, by_sink = make_database(postgres), make_database(postgres)
    by_hand.psql(schema_ddl("postgresql"))
    by_hand.psql(schema_ddl("postgresql"))
    by_sink.sink().send(SIX, TIMEOUT)
    columns = (
        "SELECT column_name, data_type, character_maximum_length, is_nullable, column_default"
        " FROM information_schema.columns WHERE table_name = 'execution_audit' ORDER BY ordinal_position"
    )
    indexes = "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'execution_audit' ORDER BY indexname"
    assert by_sink.psql(columns) == by_hand.psql(columns)
    assert by_sink.psql(indexes) == by_hand.psql(indexes)
    assert by_hand.psql(columns).splitlines()[:10] == [
        "id|integer||NO|nextval('execution_audit_id_seq'::regclass)",
        "event_type|character varying|50|NO|",
        "execution_id|uuid||NO|",
        "dag_name|character varying|255|YES|",
        "module_name|character varying|255|YES|",
        "duration_ms|bigint||YES|",
        "succeeded|boolean||YES|",
        "error_message|text||YES|",
        "created_at|timestamp without time zone||YES|now()",
        "event_id|uuid||YES|",
    ]
    assert [line.split("|")[0] for line in by_hand.psql(indexes).splitlines()] == [
        "execution_audit_event_id_key",
        "execution_audit_pkey",
        "idx_audit_dag_name",
        "idx_audit_execution_id",
    ]


def test_a_batch_that_is_sent_twice_is_there_once(database: Database) -> None:
    sink = database.sink()
    assert sink.send(SIX, TIMEOUT) == []
    assert sink.send(SIX, TIMEOUT) == []
    assert database.events() == SIX
    assert database.psql("SELECT created_at FROM execution_audit WHERE id = 1") == "2026-03-29 01:00:00.123456"


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


def test_a_table_with_the_guides_columns_only_is_written_as_it_is(database: Database) -> None:
    database.psql(GUIDE_DDL)
    before = time.time_ns() // 1000 * 1000
    database.sink().send(SIX, TIMEOUT)
    read = database.events()
    assert [type(event) for event in read] == [type(event) for event in SIX]
    assert all(before <= event.timestamp_ns <= time.time_ns() for event in read)
    assert database.psql("SELECT count(*) FROM information_schema.columns WHERE table_name = 'execution_audit'") == "9"


def test_a_table_with_other_columns_and_types_is_written_and_read(database: Database) -> None:
    table = GUIDE_DDL.replace("UUID NOT NULL", "VARCHAR(32) NOT NULL").replace(
        "SERIAL", "BIGINT GENERATED ALWAYS AS IDENTITY"
    )
    more = "DEFAULT NOW(), host TEXT DEFAULT 'a', day DATE GENERATED ALWAYS AS (DATE '2026-01-01') STORED NOT NULL,"
    table = table.replace("DEFAULT NOW()", more + " module_id UUID, occurred_ns NUMERIC, error_type INTEGER")
    database.psql(table.replace("execution_audit", '"Audit"'))
    database.sink("?table=Audit").send(SIX[3:4], TIMEOUT)
    assert database.events("?table=Audit", execution_id=EXECUTION) == [
        ModuleFailed(EXECUTION, MODULE, "WordCount", ErrorInfo(None, "no words"), NS + 3)
    ]
    assert database.psql('SELECT execution_id, host, error_type FROM "Audit"') == f"{EXECUTION.hex}|a|"


TYPES = [
    *("smallint", "integer", "bigint", "numeric", "numeric(18)", "numeric(19)", "numeric(10,2)", "real"),
    *("double precision", "text", "varchar", "varchar(40)", "varchar(31)", "char(40)", "name", '"char"', "boolean"),
    *("timestamp", "timestamp(0)", "timestamptz", "date", "interval", "money", "uuid", "bytea", "json", "jsonb"),
    *("text[]", "oid", "bit(8)", "inet", "short_name", "some_id", "some_ns", "outcome"),
]
DOMAINS = """
CREATE DOMAIN short_name AS VARCHAR(40); CREATE DOMAIN some_id AS UUID; CREATE DOMAIN some_ns AS BIGINT;
CREATE TYPE outcome AS ENUM ('execution.started', 'module.started');
"""
CHARACTERS = ["text", "varchar", "varchar(40)", "varchar(31)", "char(40)", "short_name", "outcome"]
UUIDS = ["text", "varchar", "varchar(40)", "char(40)", "uuid", "short_name", "some_id", "outcome"]
NUMBERS = [
    *("smallint", "integer", "bigint", "numeric", "numeric(18)", "numeric(19)", "numeric(10,2)", "real"),
    *("double precision", "some_ns"),
]
WHOLE = ["bigint", "numeric", "numeric(19)", "some_ns"]


def test_the_types_that_are_taken_for_each_column(database: Database) -> None:
    columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(TYPES))
    database.psql(f"{DOMAINS} CREATE TABLE kinds ({columns})")
    engine = sqlalchemy.create_engine(Address(database.url, "kinds", None).url)
    with engine.connect() as connection:
        reflected = [column["type"] for column in sqlalchemy.inspect(connection).get_columns("kinds")]
    engine.dispose()
    assert {
        name: [
            kind
            for kind, found in zip(TYPES, reflected, strict=True)
            if can_hold(POSTGRESQL, base_of(found), column.kinds)
        ]
        for name, column in {**GUIDE, **OURS}.items()
    } == {
        "id": ["smallint", "integer", "bigint", "some_ns"],
        "event_type": CHARACTERS,
        "execution_id": UUIDS,
        "dag_name": CHARACTERS,
        "module_name": CHARACTERS,
        "duration_ms": NUMBERS,
        "succeeded": ["boolean"],
        "error_message": CHARACTERS,
        "created_at": ["timestamp", "timestamp(0)", "timestamptz"],
        "event_id": UUIDS,
        "module_id": UUIDS,
        "error_type": CHARACTERS,
        "occurred_ns": WHOLE,
        "duration_ns": WHOLE,
        "traceparent": CHARACTERS,
        "tracestate": CHARACTERS,
    }


texts = st.sampled_from(["TEXT", "VARCHAR", "VARCHAR(60)", "CHAR(60)", "some_text", 'text COLLATE "C"'])
uuids = st.sampled_from(["UUID", "TEXT", "VARCHAR(32)", "VARCHAR(35)", "CHAR(36)", "CHAR(60)", "some_id", "some_text"])
numbers_ = st.sampled_from(["INTEGER", "BIGINT", "NUMERIC", "NUMERIC(12,3)", "REAL", "DOUBLE PRECISION", "some_ns"])
whole = st.sampled_from(["BIGINT", "NUMERIC", "NUMERIC(19)", "NUMERIC(30,3)", "some_ns"])
tables = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["SERIAL", "SMALLSERIAL", "BIGSERIAL", "BIGINT GENERATED ALWAYS AS IDENTITY"]),
        "event_type": texts,
        "execution_id": uuids,
        "dag_name": texts,
        "module_name": texts,
        "duration_ms": numbers_,
        "succeeded": st.sampled_from(["BOOLEAN", "some_boolean"]),
        "error_message": texts,
        "created_at": st.sampled_from(
            [f"{kind} DEFAULT NOW()" for kind in ("TIMESTAMP", "TIMESTAMPTZ", "TIMESTAMP(0)")]
        ),
        "event_id": uuids.map(lambda kind: f"{kind} UNIQUE"),
        "module_id": uuids,
        "error_type": texts,
        "occurred_ns": whole,
        "duration_ns": whole,
        "traceparent": texts,
        "tracestate": texts,
    }
)
# what CHAR would cut off at the end is not in them
names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=60)
times = st.integers(0, 2**63 - 1)
lengths = st.none() | st.integers(0, 2**53 // 1_000_000).map(lambda ns: ns / 1_000_000)
ids = st.uuids()
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(ExecutionStarted, ids, names, times, st.none() | st.just(TRACEPARENT), st.none() | st.just("v=1")),
    st.builds(ModuleStarted, ids, st.none() | ids, names, times),
    st.builds(ModuleCompleted, ids, st.none() | ids, names, lengths, times),
    st.builds(
        ModuleFailed, ids, st.none() | ids, names, st.builds(ErrorInfo, st.none() | names, st.none() | names), times
    ),
    st.builds(ExecutionCompleted, ids, names, st.booleans(), lengths, times),
    st.builds(ExecutionCancelled, ids, names, times),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=tables,
    without=st.sets(st.sampled_from(list(OURS))),
    written=st.lists(events, min_size=1, unique_by=encode_json),
)
def test_what_is_written_into_whatever_columns_are_taken_is_read_back(
    database: Database, table: dict[str, str], without: set[str], written: list[Event]
) -> None:
    columns = ", ".join(f"{name} {kind}" for name, kind in table.items() if name not in without)
    database.psql(
        "DROP TABLE IF EXISTS execution_audit; DROP DOMAIN IF EXISTS some_text, some_id, some_ns, some_boolean;"
        "CREATE DOMAIN some_text AS VARCHAR(60); CREATE DOMAIN some_id AS UUID; CREATE DOMAIN some_ns AS BIGINT;"
        f"CREATE DOMAIN some_boolean AS BOOLEAN; CREATE TABLE execution_audit ({columns})"
    )
    with closing(SqlSink(database.url)) as sink:
        assert sink.send(written, TIMEOUT) == []
    read = read_and_closed(SqlSource(database.url))
    expected = [as_kept(event, without, at.timestamp_ns, table) for event, at in zip(written, read, strict=True)]
    assert [as_kept(event, set(), event.timestamp_ns, table) for event in read] == expected
    # whatever its column is made of, it is found
    wanted = written[0].execution_id
    found = read_and_closed(SqlSource(database.url, execution_id=wanted))
    assert found == [event for event in read if event.execution_id == wanted]


def read_and_closed(source: SqlSource) -> list[Event]:
    with closing(source):
        return [item.event for item in flat(source.read(TIMEOUT)) if isinstance(item, Record)]


def as_kept(event: Event, without: set[str], at: int, table: dict[str, str]) -> Event:
    """What a table keeps of an event: not what it has no column for, and of a length what its column has room for."""
    lost: dict[str, object] = {"timestamp_ns": at} if "occurred_ns" in without else {}
    lost |= {
        name: None for name in ("module_id", "traceparent", "tracestate") if name in without and hasattr(event, name)
    }
    if isinstance(event, ModuleFailed) and "error_type" in without:
        lost["error"] = ErrorInfo(None, event.error.message)
    if isinstance(event, ModuleCompleted | ExecutionCompleted) and event.duration_ms is not None:
        ms = event.duration_ms if "duration_ns" not in without else float(event.duration_ms // 1)
        lost["duration_ms"] = float(f"{ms:.5g}") if table["duration_ms"] == "REAL" else ms
    return replace(event, **lost)


@pytest.mark.parametrize("kind", ["NUMERIC", "REAL", "DOUBLE PRECISION"])
def test_a_length_that_is_no_number_does_not_cost_the_event(database: Database, kind: str) -> None:
    database.psql(
        GUIDE_DDL.replace("duration_ms   BIGINT", f"duration_ms {kind}, occurred_ns NUMERIC, duration_ns NUMERIC")
    )
    columns = "event_type, execution_id, dag_name, succeeded, duration_ms, created_at, occurred_ns, duration_ns"
    rows = [
        f"('execution.completed', '{EXECUTION}', 'd', true, {ms}, '2026-03-29 00:00:00.123456', {at}, {ns})"
        for ms, at, ns in [
            ("'NaN'", "NULL", "NULL"),
            ("'Infinity'", "'NaN'", "'NaN'"),
            ("2.5", "'-Infinity'", "'Infinity'"),
            ("'NaN'", f"{NS}.0", "2500000.0"),
        ]
    ]
    database.psql(f"INSERT INTO execution_audit ({columns}) VALUES {', '.join(rows)}")
    at = NS // 1000 * 1000
    assert database.events("?timezone=UTC") == [
        ExecutionCompleted(EXECUTION, "d", True, None, at),
        ExecutionCompleted(EXECUTION, "d", True, None, at),
        ExecutionCompleted(EXECUTION, "d", True, 2.5, at),
        ExecutionCompleted(EXECUTION, "d", True, 2.5, NS),
    ]


@pytest.mark.parametrize("kind", ["UUID", "TEXT", "VARCHAR(50)", "CHAR(50)"])
def test_one_execution_is_found_by_whatever_spelling_of_its_id_is_read(database: Database, kind: str) -> None:
    database.psql(GUIDE_DDL.replace("UUID", kind))
    spellings = [
        *(str(EXECUTION), str(EXECUTION).upper(), EXECUTION.hex, "6ba7B8109Dad41d180B400c04FD430c8"),
        f"{{{EXECUTION}}}",
        *([] if kind == "UUID" else [EXECUTION.urn, EXECUTION.urn.upper()]),
    ]
    for spelling in [*spellings, str(MODULE)]:
        database.psql(
            "INSERT INTO execution_audit (event_type, execution_id, dag_name)"
            f" VALUES ('execution.started', '{spelling}', 'd')"
        )
    assert [event.execution_id for event in database.events()] == [EXECUTION] * len(spellings) + [MODULE]
    assert len(database.events(execution_id=EXECUTION)) == len(spellings)
    assert len(database.events(execution_id=MODULE)) == 1


def test_an_unreadable_row_is_json_whatever_it_holds(database: Database) -> None:
    database.psql(GUIDE_DDL.replace("BIGINT", "NUMERIC"))
    database.psql(insert(1) + "; UPDATE execution_audit SET event_type = 'no', duration_ms = 'NaN', succeeded = true")
    (item,) = database.items()
    assert isinstance(item, Unreadable)
    row = json.loads(item.data)
    assert (row["duration_ms"], row["succeeded"], row["dag_name"]) == ("NaN", True, "dag-1")


def test_a_table_that_is_no_audit_table_is_somebodys_to_mend(database: Database) -> None:
    database.psql("CREATE TABLE execution_audit (id SERIAL PRIMARY KEY, execution_id INTEGER)")
    message = (
        "the table execution_audit is not an audit table: event_type is missing; "
        r"execution_id is INTEGER\(\), not one of Uuid, String; dag_name is missing; .* Make one"
    )
    with pytest.raises(MisconfiguredError, match=message):
        database.sink().send(SIX, TIMEOUT)
    with pytest.raises(SourceError, match=message):
        database.source().read(TIMEOUT)
    with pytest.raises(SourceError, match="there is no table audit"):
        database.source("?table=audit").read(TIMEOUT)


@pytest.mark.parametrize("table", ["ops.execution_audit", "Ops.Audit", '"a.b"', '"a.b"."c.""d"', 'ops.Été "1"'])
def test_a_table_in_another_schema_is_made_written_and_read(database: Database, table: str) -> None:
    database.psql('CREATE SCHEMA ops; CREATE SCHEMA "Ops"; CREATE SCHEMA "a.b"')
    parameters = f"?table={quote(table)}"
    # one that a name without its schema would find first
    database.sink().send([started(1)], TIMEOUT)
    database.sink(parameters).send(SIX, TIMEOUT)
    database.sink(parameters).send(SIX, TIMEOUT)
    assert database.events(parameters) == SIX
    assert database.events() == [started(1)]


def test_a_table_that_is_in_no_schema_of_the_search_path_is_missing_and_the_message_says_how_to_name_it(
    database: Database,
) -> None:
    database.psql("CREATE SCHEMA ops; SET search_path = ops; " + schema_ddl("postgresql"))
    message = (
        r"there is no table execution_audit; .* with \?table=schema\.name one in a schema that is not in the search"
    )
    with pytest.raises(SourceError, match=message):
        database.source().read(TIMEOUT)
    with pytest.raises(SourceError, match=r"there is no table nowhere\.execution_audit"):
        database.source("?table=nowhere.execution_audit").read(TIMEOUT)
    with pytest.raises(MisconfiguredError, match='schema "nowhere" does not exist'):
        database.sink("?table=nowhere.execution_audit").send(SIX, TIMEOUT)


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
        "not an event: eventType 'started' is none of the six",
        "not an event: dagName is missing or null",
    ]
    assert items[-1] == Record(ExecutionStarted(UUID(int=5), "dag-5", NS - 123_456_789), Position(None, 5))


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


def test_a_server_that_is_killed_and_started_again_has_all_that_was_acknowledged(
    tmp_path: Path, make_database: Callable[[Postgres], Database]
) -> None:
    with Postgres(tmp_path) as postgres:
        database = make_database(postgres)
        sink = database.sink()
        acknowledged: list[ExecutionStarted] = []
        failures: list[UnavailableError] = []
        stopped = threading.Event()

        def send() -> None:
            batches = count()
            batch: list[ExecutionStarted] = []
            while not stopped.is_set():
                batch = batch or [started(next(batches) * 100 + number) for number in range(50)]
                try:
                    sink.send(batch, 5.0)
                except UnavailableError as error:
                    failures.append(error)
                    stopped.wait(0.05)
                else:
                    acknowledged.extend(batch)
                    batch = []

        sender = threading.Thread(target=send)
        sender.start()
        try:
            for _ in range(2):
                had = len(acknowledged)
                eventually(lambda had=had: len(acknowledged) > had + 200, TIMEOUT, "some batches are written")  # type: ignore[misc] # bound
                postgres.kill()
                failed = len(failures)
                eventually(lambda failed=failed: len(failures) > failed, TIMEOUT, "the sink notices")  # type: ignore[misc] # bound
                postgres.start()
            had = len(acknowledged)
            eventually(lambda: len(acknowledged) > had + 200, TIMEOUT, "it writes again")
        finally:
            stopped.set()
            sender.join(TIMEOUT)
        assert {type(failure) for failure in failures} == {UnavailableError}
        found = database.events()
        assert len(found) == len(set(found))
        assert set(acknowledged) <= set(found)
        for opened in database.opened:
            opened.close()


def test_a_table_that_somebody_has_locked_is_unavailable_within_the_timeout(database: Database) -> None:
    sink = database.sink()
    sink.send([started(1)], TIMEOUT)
    with database.connection() as other:
        other.execute("LOCK TABLE execution_audit")
        begun = time.monotonic()
        with pytest.raises(UnavailableError, match="canceling statement due to statement timeout"):
            sink.send([started(2)], 4.0)
        assert 2.0 < time.monotonic() - begun < 4.0
    sink.send([started(2)], TIMEOUT)
    assert database.events() == [started(1), started(2)]


def test_a_server_that_answers_nothing_is_unavailable_within_the_timeout(database: Database) -> None:
    sink, source = database.sink(), database.source(follow=True, poll_interval=0.01)
    sink.send([started(1)], TIMEOUT)
    assert offsets(flat(source.read(TIMEOUT))) == [1]
    processes = database.psql(
        f"SELECT pid FROM pg_stat_activity WHERE datname = '{database.name}' AND pid <> pg_backend_pid()"
    )
    backends = [int(line) for line in processes.splitlines()]
    assert len(backends) == 2
    for backend in backends:
        os.kill(backend, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            sink.send([started(2)], 2.0)
        assert 1.0 < time.monotonic() - begun < 2.5
        assert type(caught.value) is UnavailableError
        results: list[object] = []
        reader = threading.Thread(target=lambda: results.append(source.read(TIMEOUT)))
        reader.start()
        eventually(lambda: not source._idle.is_set(), TIMEOUT, "it reads")
        source.close()
        reader.join(TIMEOUT)
        assert results == [[]]
    finally:
        for backend in backends:
            os.kill(backend, signal.SIGCONT)
    sink.send([started(2)], TIMEOUT)
    assert database.events() == [started(1), started(2)]


def test_a_whole_server_that_is_stopped_is_unavailable_within_the_timeout(
    tmp_path: Path, make_database: Callable[[Postgres], Database]
) -> None:
    with Postgres(tmp_path) as postgres:
        sink = make_database(postgres).sink()
        os.kill(postgres.pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            with pytest.raises(UnavailableError, match="timeout expired"):
                sink.send(SIX, 5.0)
            assert time.monotonic() - begun < 5.0
        finally:
            os.kill(postgres.pid, signal.SIGCONT)
        sink.send(SIX, TIMEOUT)
        sink.close()


@pytest.mark.parametrize(
    ("user", "password", "name", "message"),
    [
        ("constellation", "wr0ng-passw0rd", "postgres", 'password authentication failed for user "constellation"'),
        ("nobody-here", PASSWORD, "postgres", 'password authentication failed for user "nobody-here"'),
        ("constellation", PASSWORD, "no_such_database", 'database "no_such_database" does not exist'),
    ],
)
def test_who_is_not_let_in_is_told_and_nothing_tells_the_password(
    postgres: Postgres, caplog: pytest.LogCaptureFixture, user: str, password: str, name: str, message: str
) -> None:
    url = postgres.url(name, user=user, password=password)
    with caplog.at_level(logging.DEBUG):
        for transport in (SqlSink(url), SqlSource(url)):
            with pytest.raises(MisconfiguredError, match=re.escape(message)) as caught:
                transport.send(SIX, TIMEOUT) if isinstance(transport, SqlSink) else transport.read(TIMEOUT)
            transport.close()
            said = (
                f"{caught.value!r} {''.join(traceback.format_exception(caught.value))} {transport!r} {transport.name}"
            )
            assert password not in said
    assert password not in caplog.text


def test_who_may_not_write_or_read_is_told(database: Database) -> None:
    database.psql(schema_ddl("postgresql") + "CREATE ROLE guest LOGIN PASSWORD 'guest'")
    url = database.postgres.url(database.name, user="guest", password="guest")
    sink, source = SqlSink(url), SqlSource(url)
    with pytest.raises(MisconfiguredError, match="permission denied for table execution_audit; fix the URL"):
        sink.send(SIX, TIMEOUT)
    with pytest.raises(MisconfiguredError, match="permission denied for table execution_audit; fix the URL"):
        source.read(TIMEOUT)
    database.psql("GRANT ALL ON execution_audit, execution_audit_id_seq TO guest")
    sink.send(SIX, TIMEOUT)
    assert len(flat(source.read(TIMEOUT))) == 6
    sink.close()
    source.close()
    database.psql("DROP OWNED BY guest; DROP ROLE guest")


def test_a_server_that_is_not_there_and_an_option_that_is_none_are_told_apart(postgres: Postgres) -> None:
    nowhere = SqlSink("postgresql://me:secret@127.0.0.1:1/shop")
    with pytest.raises(UnavailableError, match=r"[Cc]onnection refused") as caught:
        nowhere.send(SIX, TIMEOUT)
    assert type(caught.value) is UnavailableError
    nowhere.close()
    misspelt = SqlSink(f"{postgres.url()}?ssl_mode=require")
    with pytest.raises(MisconfiguredError, match='invalid connection option "ssl_mode"'):
        misspelt.send(SIX, TIMEOUT)
    misspelt.close()


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
