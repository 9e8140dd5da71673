"""Rows as events, whatever is in them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from constellation_otel.delivery import Position, Record, Unreadable
from constellation_otel.errors import (
    MisconfiguredError,
)
from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    decode_json,
    encode_json,
)
from constellation_otel.transports.sql import SqlSink, SqlSource
from constellation_otel.transports.sql.table import GUIDE, OURS
from sql_events import EXECUTION, MODULE, NS, SIX, TRACEPARENT
from support import DEADLINE, UNWATCHED
from transports.sql.helpers import GUIDE_TABLE, Database, events, insert_ids, offsets, read_all, started

if TYPE_CHECKING:
    from collections.abc import Mapping


def test_what_was_written_is_read_back_to_the_nanosecond(database: Database) -> None:
    database.sink().send(SIX, DEADLINE)
    source = database.source()
    assert read_all(source) == [Record(event, Position(None, number)) for number, event in enumerate(SIX, start=1)]
    source.acknowledge([Position(None, 1)])
    assert source.read(DEADLINE) == []


@UNWATCHED
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


@UNWATCHED
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


def test_rows_of_the_guides_own_listener_are_read(
    database: Database,
) -> None:
    """They have no module ids, and the time of their insertion."""
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
        ({"event_type": "Execution.Completed"}, "eventType 'Execution.Completed' is none that is known"),
        ({"execution_id": "6ba7b810"}, "Invalid UUID"),
        ({"dag_name": None}, "dagName is missing or null"),
        ({"dag_name": 5}, "Expected `str | null`, got `int`"),
        ({"event_type": "module.failed"}, "moduleName is missing or null"),
        ({"succeeded": None}, "succeeded is missing or null"),
        ({"succeeded": 2}, "Expected `bool | null`, got `int`"),
        ({"created_at": None}, "created_at is None, which is not an ISO 8601 time"),
        (
            {"created_at": "infinity"},
            "created_at is 'infinity', which is not an ISO 8601 time: Invalid isoformat",
        ),
        ({"created_at": "1969-12-31 23:59:59"}, "timestampNs is -1000000000, not within 0 and 2**63"),
    ],
)
def test_a_row_that_is_not_an_event_is_unreadable(database: Database, change: dict[str, object], reason: str) -> None:
    """It is given as it is, and reading goes on."""
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


@UNWATCHED
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), event_type=st.sampled_from(list(ROWS)))
def test_an_odd_value_in_an_optional_column_costs_that_field_only(
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
def test_a_value_that_cannot_be_read_is_left_out(
    database: Database, column: str, value: object, event: Event, is_left_out: bool
) -> None:
    """One that can is read."""
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


def test_one_execution_is_found_by_any_spelling_of_its_id(database: Database) -> None:
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
    assert (
        f"a number, as of {unit} since 1970, which is not an ISO 8601 time; write it as 2026-03-29" in unreadable.reason
    )
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
