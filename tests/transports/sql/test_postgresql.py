"""What is PostgreSQL's alone, as far as it is a function."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import types
from sqlalchemy.dialects import postgresql

from constellation_otel.delivery import Record
from constellation_otel.errors import (
    SourceError,
)
from constellation_otel.events import (
    ErrorInfo,
    ModuleFailed,
)
from constellation_otel.transports.sql.database import POSTGRESQL, SQLITE, Address, shut_down
from constellation_otel.transports.sql.database import Database as _Database
from constellation_otel.transports.sql.table import GUIDE, OURS, base_of, can_hold, finder, layout_of
from sql_events import EXECUTION, MODULE, NS, SIX
from support import DEADLINE
from transports.sql.helpers import GUIDE_TABLE, Database, read_all, run


def test_postgresqls_client_gets_our_options() -> None:
    """Where the URL has none."""
    address = Address("postgresql://db/shop?client_encoding=latin1&sslmode=require", "execution_audit", None)
    assert address.url.query == {
        "client_encoding": "latin1",
        "fallback_application_name": "constellation-otel",
        "sslmode": "require",
        "tcp_user_timeout": "30000",
    }


@pytest.mark.parametrize(("timeout", "seconds"), [(0.0, 2), (9.0, 4), (30.0, 13)])
def test_connecting_takes_half_of_the_time_for_each_address(database: Database, timeout: float, seconds: int) -> None:
    made = _Database(Address(database.url, "execution_audit", None))
    options: dict[str, object] = {}
    with made.transaction(timeout):
        made._set_options(options)
    made.close()
    assert options == {"timeout": seconds}


def test_nothing_is_interrupted_before_there_is_a_connection(database: Database) -> None:
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
def test_a_column_of_postgresql_has_to_hold_our_values(column: str, kind: types.TypeEngine[Any], fits: bool) -> None:
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


def test_a_strict_database_gives_texts_and_times_as_text(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.sink().send(SIX, DEADLINE)
    database.execute("UPDATE execution_audit SET error_message = 404 WHERE error_message IS NOT NULL")
    source = database.source()
    monkeypatch.setattr(source._audit.address, "dialect", replace(SQLITE, is_strict=True))
    read = [item.event for item in read_all(source) if isinstance(item, Record)]
    failed = ModuleFailed(EXECUTION, MODULE, "WordCount", ErrorInfo("ValueError", "404"), NS + 3)
    assert read == [*SIX[:3], failed, *SIX[4:]]


def test_a_strict_database_has_columns_of_the_right_types(database: Database) -> None:
    database.execute(GUIDE_TABLE.replace("CHAR(36)", "INTEGER").replace("dag_name ", "dags "))
    address = Address(database.url, "execution_audit", None)
    address.dialect = replace(SQLITE, is_strict=True)
    made = _Database(address)
    message = "audit table: execution_id is INTEGER\\(\\), not one of Uuid, String; dag_name is missing; make one"
    with pytest.raises(SourceError, match=message), made.transaction(DEADLINE) as connection:
        layout_of(connection, address, SourceError)
    made.close()
