"""Which columns an audit table in a real PostgreSQL may have, of which types, and what is kept in them."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from constellation_otel.delivery import Record
from constellation_otel.errors import MisconfiguredError, SourceError
from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCompleted,
    ModuleCompleted,
    ModuleFailed,
    encode_json,
)
from constellation_otel.transports.sql import SqlSink, SqlSource, schema_ddl
from constellation_otel.transports.sql.database import POSTGRESQL, Address
from constellation_otel.transports.sql.table import GUIDE, OURS, base_of, can_hold
from deliveries import flat
from sql_events import EXECUTION, MODULE, NS, SIX
from strategies import any_event

from .databases import GUIDE_DDL, TIMEOUT, Database, started

if TYPE_CHECKING:
    from collections.abc import Callable

    from .peers import Postgres


def test_the_ddl_that_is_printed_makes_what_the_sink_makes(
    berlin: Postgres, make_database: Callable[[Postgres], Database]
) -> None:
    by_hand, by_sink = make_database(berlin), make_database(berlin)
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
        "engine_name": CHARACTERS,
        "execution_attributes": CHARACTERS,
        "module_details": CHARACTERS,
        "module_body": CHARACTERS,
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
lengths = st.none() | st.integers(0, 2**53 // 1_000_000).map(lambda ns: ns / 1_000_000)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=tables,
    without=st.sets(st.sampled_from(list(OURS))),
    written=st.lists(any_event(names, lengths, tracestates=st.just("v=1")), min_size=1, unique_by=encode_json),
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


def test_a_table_that_is_no_audit_table_is_somebodys_to_mend(database: Database) -> None:
    database.psql("CREATE TABLE execution_audit (id SERIAL PRIMARY KEY, execution_id INTEGER)")
    message = (
        "the table execution_audit is not an audit table: event_type is missing; "
        r"execution_id is INTEGER\(\), not one of Uuid, String; dag_name is missing; .* make one"
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
