"""The schema, the URLs, and what errors mean."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg.errors
import pytest
import sqlalchemy
from sqlalchemy.exc import DataError, DBAPIError

from constellation_otel.errors import (
    ConfigurationError,
    MisconfiguredError,
    RefusedError,
    UnavailableError,
)
from constellation_otel.transports.sql import SqlSink, SqlSource, schema_ddl
from constellation_otel.transports.sql.database import Address, verdict_on
from constellation_otel.transports.sql.table import TABLE
from sql_events import SIX
from support import DEADLINE
from transports.sql.helpers import Database, read_all

if TYPE_CHECKING:
    from pathlib import Path


SECRET = "hunter2/ä@:"
QUOTED_SECRET = "hunter2%2F%C3%A4%40%3A"
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
  tracestate    TEXT,
  engine_name   TEXT,
  execution_attributes TEXT,
  module_details TEXT,
  module_body   TEXT
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
  tracestate    TEXT,
  engine_name   TEXT,
  execution_attributes TEXT,
  module_details TEXT,
  module_body   TEXT
);
CREATE INDEX IF NOT EXISTS "idx_Audit of 2026_execution_id" ON "Audit of 2026"(execution_id);
CREATE INDEX IF NOT EXISTS "idx_Audit of 2026_dag_name" ON "Audit of 2026"(dag_name);
"""


def test_the_ddl_of_postgresql_is_the_guides_and_then_ours() -> None:
    assert schema_ddl("postgresql") == POSTGRESQL_DDL


def test_the_ddl_of_sqlite_is_the_natural_equivalent() -> None:
    """Names are quoted where they must be."""
    assert schema_ddl("sqlite", table="Audit of 2026") == SQLITE_DDL


def test_the_sink_makes_just_what_the_ddl_says(database: Database, tmp_path: Path) -> None:
    """Running it again changes nothing."""
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
    with pytest.raises(ConfigurationError, match="is not a valid table name: give 1 to 46 bytes"):
        schema_ddl("sqlite", table)
    with pytest.raises(ConfigurationError, match="is not a valid table name"):
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


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "it has to be postgresql://user:password@host/database or sqlite:///file, with %40 for an @"),
        ("postgresql://u@host:hunter2/db", "it has to be postgresql"),
        ("postgresql://u:hun@ter2@host/db", "it has to be postgresql"),
        ("mysql://u:hunter2@host/db", "an audit table cannot be at a URL that begins with 'mysql'"),
        ("postgresql+psycopg2://u:hunter2@host/db", "begins with 'postgresql\\+psycopg2'"),
        ("sqlite://", "a table in memory is gone when it is closed; name a file: sqlite:///audit.db"),
        ("sqlite:///:memory:", "a table in memory is gone"),
        ("sqlite:///audit.db?mode=ro", "SQLite takes the parameters mode only with sqlite:///file:audit.db"),
        ("sqlite:///file:audit.db?uri=maybe", "the parameter 'uri' of the URL cannot be used: 'maybe'"),
        ("postgresql://u:hunter2@h/db?port=many", "the parameter 'port' of the URL cannot be used: 'many'"),
        ("postgresql://h/db?port=1&port=x&host=a&host=b", "the parameter 'port' of the URL cannot be used: '1', 'x'"),
        ("postgresql://../db", "'..' in the URL is not a valid host name"),
        ("postgresql://h/db?host=a,.b", "'.b' in the URL is not a valid host name"),
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


def test_no_message_of_the_database_shows_the_password() -> None:
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
def test_sqlite_has_no_schema_but_main(database: Database, table: str) -> None:
    """The message says what to write."""
    message = (
        r"is not a valid table name for SQLite, which has only the schema main: leave .* out, or, .* in double quotes"
    )
    for make in (database.sink, database.source):
        with pytest.raises(ConfigurationError, match=message):
            make(table=table)
    with pytest.raises(ConfigurationError, match=message):
        schema_ddl("sqlite", table)


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
def test_an_error_is_a_refusal_a_misconfiguration_or_passes(error: BaseException, verdict: type[Exception]) -> None:
    assert verdict_on(failure(error)) is verdict


def test_what_the_driver_itself_refuses_is_refused() -> None:
    error = DataError("INSERT", {}, psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"))
    assert verdict_on(error) is RefusedError


def test_what_sqlalchemy_says_by_itself_passes() -> None:
    assert verdict_on(sqlalchemy.exc.PendingRollbackError("roll back first")) is UnavailableError


@pytest.mark.parametrize(("missing", "library"), [("sqlalchemy", "sqlalchemy"), ("psycopg", "psycopg")])
def test_a_missing_library_says_what_to_install(missing: str, library: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from constellation_otel.transports.sql import SqlSink\n"
        "SqlSink('sqlite:///audit.db').close()\n"
        "SqlSink('postgresql://db/shop')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith(f"{library} is not installed; run: pip install 'constellation-otel[sql]'\n")
