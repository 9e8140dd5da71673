"""The two databases that an audit table may be in: their URLs, the one connection to them, what their errors mean.

What PostgreSQL and SQLite differ in is data, one :class:`Dialect` each. What is in the
table is in ``table``.
"""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import sqlalchemy
from msgspec import Struct
from sqlalchemy import event as hooks
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DataError, SQLAlchemyError

from constellation_otel._support.fork import after_fork_in_child
from constellation_otel._support.places import names_of_file
from constellation_otel.errors import (
    ConfigurationError,
    ConstellationOtelError,
    DeliveryError,
    MisconfiguredError,
    MissingExtraError,
    RefusedError,
    UnavailableError,
)
from constellation_otel.transports.url import Secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Connection, Engine

__all__ = ["DIALECTS", "POSTGRESQL", "SQLITE", "Address", "Database", "Dialect", "Table", "table_of", "zone_of"]

_MAX_SAID: Final = 500
# PostgreSQL cuts longer names off, and an index's name is 17 bytes longer than its table's
_MAX_TABLE_BYTES: Final = 63 - len("idx__execution_id")
_MAX_SCHEMA_BYTES: Final = 63
_NAME: Final = r'"(?:[^"]|"")+"|[^".][^.]*'
_TABLE: Final = re.compile(rf"(?:(?P<schema>{_NAME})\.)?(?P<name>{_NAME})")

# of the time for a statement: when the server gives up, and when we leave it, since it did not
_SERVER_SHARE: Final = 0.75
_CLIENT_SHARE: Final = 0.9
_MIN_TIMEOUT: Final = 0.1
# PostgreSQL's client takes one second for two
_MIN_CONNECT_TIMEOUT: Final = 2

_UNFIT: Final = re.compile(r"[\0\ud800-\udfff]|%00")
_SHOWN: Final = ("host", "port", "table", "timezone")
_NO_URL: Final = (
    "it has to be postgresql://user:password@host/database or sqlite:///file, "
    "with %40 for an @ in the user's name or the password, %2F for a slash and %3A for a colon"
)


class Dialect(Struct, frozen=True):
    """What one kind of database has of its own.

    Attributes:
        driver: SQLAlchemy's name for it and its driver.
        module: SQLAlchemy's, with how it quotes, and its INSERT with ON CONFLICT.
        words: What the table's DDL has in its own words.
        options: What is given to the driver where the URL says nothing else.
        fixed: What is given to the driver whatever the URL says.
        connect_timeout: The driver's option for the seconds that connecting may take.
        begin: The statement that limits the time of those that follow in its transaction, and has times in ISO 8601.
        timezone: The query for the time zone of ``created_at``.
        clock: The query for the server's time, in seconds since 1970; ``None`` where there is no server.
        is_strict: Whether a column holds values of its type only.
        has_schemas: Whether a table's name may have a schema before it.
        prepare: Done with a new connection.
        interrupt: Makes what waits for this connection fail, from another thread.
    """

    driver: str
    module: ModuleType
    words: Mapping[str, str]
    options: Mapping[str, str]
    fixed: Mapping[str, object]
    connect_timeout: str
    begin: str
    timezone: str
    clock: str | None
    is_strict: bool
    has_schemas: bool
    prepare: Callable[[Any], None]
    interrupt: Callable[[Any], None]


def shut_down(connection: Any) -> None:
    """Ends a PostgreSQL connection that another thread waits for: a stopped server takes no cancellation."""
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as same:
        same.shutdown(socket.SHUT_RDWR)


def _read_any_text(connection: sqlite3.Connection) -> None:
    """Reads bytes that are not UTF-8 as U+FFFD, rather than refusing the whole page."""
    connection.text_factory = lambda data: data.decode(errors="replace")


POSTGRESQL: Final = Dialect(
    driver="postgresql+psycopg",
    module=postgresql,
    words={"serial": "SERIAL PRIMARY KEY", "uuid": "UUID", "now": "NOW()"},
    options={
        "client_encoding": "utf8",
        "fallback_application_name": "constellation-otel",
        # milliseconds, after which a host that has gone without a word counts as gone
        "tcp_user_timeout": "30000",
    },
    # a prepared statement belongs to a session, which PgBouncer changes from transaction to transaction
    fixed={"prepare_threshold": None},
    connect_timeout="connect_timeout",
    begin="SELECT set_config('statement_timeout', '{ms}', true), set_config('datestyle', 'ISO', true)",
    timezone="SHOW timezone",
    clock="SELECT extract(epoch from now())",
    is_strict=True,
    has_schemas=True,
    prepare=lambda _connection: None,
    interrupt=shut_down,
)

SQLITE: Final = Dialect(
    driver="sqlite+pysqlite",
    module=sqlite,
    # AUTOINCREMENT: the id of a row that was deleted never comes again
    words={"serial": "INTEGER PRIMARY KEY AUTOINCREMENT", "uuid": "CHAR(36)", "now": "CURRENT_TIMESTAMP"},
    options={},
    fixed={},
    connect_timeout="timeout",
    begin="PRAGMA busy_timeout = {ms}",
    # what CURRENT_TIMESTAMP is in
    timezone="SELECT 'UTC'",
    clock=None,
    is_strict=False,
    has_schemas=False,
    prepare=_read_any_text,
    interrupt=sqlite3.Connection.interrupt,
)

DIALECTS: Final = {"postgresql": POSTGRESQL, "sqlite": SQLITE}


class Table(NamedTuple):
    """A table's name.

    Attributes:
        name: The table's own.
        schema: The schema's; ``None`` where PostgreSQL's ``search_path`` says which.
    """

    name: str
    schema: str | None = None

    def __str__(self) -> str:
        """As :func:`table_of` reads it."""
        names = (self.name,) if self.schema is None else (self.schema, self.name)
        return ".".join(_quoted(name) for name in names)


class Address:
    """Where a table is.

    Args:
        url: The URL that a user gave.
        table: The table's name, where the URL has none.
        timezone: The zone of its ``created_at``, where the URL has none.

    Attributes:
        dialect: The database's kind.
        url: For SQLAlchemy.
        file: The file that it is in, where it is in one.
        name: The URL as it was given, without secrets.
        table: The table's name.
        zone: The zone that was given.

    Raises:
        ConfigurationError: It cannot be used; the message does not have the URL, since it may have a password.
    """

    def __init__(self, url: str, table: str, timezone: str | None) -> None:
        if _UNFIT.search(url):
            message = f"the URL has characters that are not text: {_NO_URL}"
            raise ConfigurationError(message)
        try:
            parsed = sqlalchemy.make_url(url)
        except (ArgumentError, ValueError):
            raise ConfigurationError(_NO_URL) from None
        dialect = DIALECTS.get(parsed.drivername)
        if dialect is None:
            message = f"an audit table cannot be at a URL that begins with {parsed.drivername!r}: {_NO_URL}"
            raise ConfigurationError(message)
        if "@" in f"{parsed.host}{parsed.database}":
            raise ConfigurationError(_NO_URL)
        parameters = parsed.normalized_query
        self.table = table_of(parameters.get("table", (table,))[-1], dialect)
        zone = parameters.get("timezone", (timezone,))[-1]
        self.zone = None if zone is None else zone_of(zone, "timezone", ConfigurationError)
        self.dialect = dialect
        for_driver = parsed.difference_update_query(["table", "timezone"])
        self.url = for_driver.set(drivername=dialect.driver, query={**dialect.options, **for_driver.query})
        self._check_parameters()
        self.file = _file_of(for_driver) if dialect is SQLITE else None
        shown = {name: value for name, value in parsed.query.items() if name in _SHOWN}
        self.name = parsed.set(query=shown).render_as_string(hide_password=True)
        hidden = [value for name, values in parameters.items() if "password" in name for value in values]
        self._secrets = Secrets([parsed.password, *hidden])

    def _check_parameters(self) -> None:
        """Refuses what SQLAlchemy and the driver would raise for at the first connection, in their own ways."""
        dialect = self.url.get_dialect()()
        try:
            dialect.create_connect_args(self.url.set(query={}))
        except ArgumentError:
            raise ConfigurationError(_NO_URL) from None
        # SQLite takes the others with this one only, which _file_of sees to
        beside = {"uri": "true"} if self.dialect is SQLITE else {}
        for name, given in self.url.query.items():
            try:
                dialect.create_connect_args(self.url.set(query=beside | {name: given}))
            except (ArgumentError, TypeError, ValueError) as error:
                values = (given,) if isinstance(given, str) else given
                value = "it" if "password" in name else ", ".join(map(repr, values))
                message = f"the parameter {name!r} of the URL cannot be used: {value} ({error})"
                raise ConfigurationError(message) from None
        hosts = ",".join((self.url.host or "", *self.url.normalized_query.get("host", ())))
        for host in hosts.split(",") if self.dialect is not SQLITE else ():
            try:
                host.encode("idna")
            except UnicodeError as error:
                message = f"{host!r} in the URL is not a valid host name ({error})"
                raise ConfigurationError(message) from None

    @property
    def places(self) -> set[tuple[object, ...]]:
        """The table in its file, or at each host: equal for two ways to write a URL."""
        if self.dialect is SQLITE:
            # whose names of tables are the same in upper and lower case
            names = names_of_file(str(self.url.database).removeprefix("file:"))
            return {(name, self.table.name.lower()) for name in names}
        # as its client reads them: the parameters before the rest, and a user's name for the database's
        query = self.url.normalized_query
        port = ",".join(query.get("port", (str(self.url.port or 5432),)))
        hosts = ",".join(query.get("host", (self.url.host or "",))).lower().split(",")
        database = ",".join(query.get("dbname", (self.url.database or self.url.username or "",)))
        table = (self.table.schema or "public", self.table.name)
        return {(host if ":" in host else f"{host}:{port}", database, *table) for host in hosts}

    def told(self, error: SQLAlchemyError) -> str:
        """What a database or its driver said, in a line, without secrets."""
        said = self._secrets.hide(" ".join(str(getattr(error, "orig", error)).split()))
        return f"{self.name}: {said[:_MAX_SAID]}"


def table_of(text: str, dialect: Dialect) -> Table:
    """Reads ``name`` or ``schema.name``; what has a dot, or begins with a quote, is in double quotes, as in SQL.

    Upper and lower case are kept as they are.

    Raises:
        ConfigurationError: It is not a name for a table of that kind of database.
    """
    found = _TABLE.fullmatch(text)
    table = Table(_unquoted(found["name"]), found["schema"] and _unquoted(found["schema"])) if found else Table("")
    size, size_of_schema = (len((part or "").encode(errors="replace")) for part in table)
    if not text.isprintable() or not 0 < size <= _MAX_TABLE_BYTES or size_of_schema > _MAX_SCHEMA_BYTES:
        message = (
            f"table={text!r} is not a valid table name: give 1 to {_MAX_TABLE_BYTES} bytes without control characters, "
            f"after a schema's 1 to {_MAX_SCHEMA_BYTES} and a dot where there is a schema; "
            "put a name that has a dot in double quotes"
        )
        raise ConfigurationError(message)
    if table.schema is None or dialect.has_schemas:
        return table
    if table.schema == "main":
        return Table(table.name)
    message = (
        f"table={text!r} is not a valid table name for SQLite, which has only the schema main: leave {table.schema!r}"
        f' out, or, where the dot is part of the name, put the name in double quotes: table="{text}"'
    )
    raise ConfigurationError(message)


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _quoted(name: str) -> str:
    """A name in double quotes, where it needs them."""
    return '"' + name.replace('"', '""') + '"' if "." in name or name.startswith('"') else name


def zone_of(name: str, what: str, unfit: type[ConstellationOtelError]) -> ZoneInfo:
    """A time zone by its name.

    Raises:
        ConstellationOtelError: There is none; of the type ``unfit``, and about ``what``.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        message = f"{what} is {name!r}, which is unknown here; name one with ?timezone=, such as Europe/Berlin"
        raise unfit(message) from None


def _file_of(url: URL) -> Path | None:
    """The file of a SQLite database, where the URL names it in the ordinary way."""
    if "uri" in url.query:
        return None
    if url.database in {None, "", ":memory:"}:
        message = (
            "a table in memory is gone when it is closed; name a file: sqlite:///audit.db, or sqlite:////var/audit.db"
        )
        raise ConfigurationError(message)
    if url.query:
        message = f"SQLite takes the parameters {', '.join(url.query)} only with sqlite:///file:audit.db?uri=true&…"
        raise ConfigurationError(message)
    return Path(str(url.database))


class Database:
    """The one connection to a database, of this process.

    Nothing outlives a transaction on the server's side: no setting, no prepared statement.
    So each may have another session, as PgBouncer's ``pool_mode=transaction`` has it.

    Making one does no I/O. In a forked child it connects anew.

    Args:
        address: Where the database is, and which table of it.

    Raises:
        MissingExtraError: The driver is not installed.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._connect_timeout = _MIN_CONNECT_TIMEOUT
        self._start_afresh()
        after_fork_in_child(self._leave_to_parent)

    @contextmanager
    def transaction(self, timeout: float, *, refusable: bool = False) -> Iterator[Connection]:
        """A transaction, committed at the end.

        Args:
            timeout: Seconds, for all of it.
            refusable: Whether the data may be refused; otherwise it is tried again.

        Raises:
            UnavailableError: It failed; the next one connects anew.
            RefusedError: The database refused the data.
        """
        timeout = max(timeout, _MIN_TIMEOUT)
        # half: a name may have two addresses
        self._connect_timeout = max(_MIN_CONNECT_TIMEOUT, int(timeout * _CLIENT_SHARE / 2))
        begin = self.address.dialect.begin.format(ms=int(timeout * _SERVER_SHARE * 1000))
        # for a server that answers nothing, not even that time is up
        watchdog = threading.Timer(timeout * _CLIENT_SHARE, self.interrupt)
        watchdog.daemon = True
        # no thread at the interpreter's exit, say: then the server's limit has to do
        with suppress(RuntimeError):
            watchdog.start()
        try:
            with self._engine.begin() as connection:
                connection.exec_driver_sql(begin)
                yield connection
        except SQLAlchemyError as error:
            raise self._failure(error, refusable=refusable) from None
        finally:
            watchdog.cancel()

    def interrupt(self) -> None:
        """Makes what waits for the database fail; from another thread."""
        if self._raw is not None:
            # it may be closed by now
            with suppress(self._engine.dialect.loaded_dbapi.Error, OSError):
                self.address.dialect.interrupt(self._raw)

    def close(self) -> None:
        """Closes the connection."""
        self._engine.dispose()

    def _failure(self, error: SQLAlchemyError, *, refusable: bool) -> DeliveryError:
        verdict = verdict_on(error)
        said = self.address.told(error)
        if verdict is RefusedError and refusable:
            return RefusedError(said)
        self._engine.dispose()
        if verdict is MisconfiguredError:
            return MisconfiguredError(f"{said}; fix the URL, the table or the user's rights")
        return UnavailableError(said)

    def _start_afresh(self) -> None:
        try:
            self._engine = sqlalchemy.create_engine(self.address.url, hide_parameters=True)
        except ModuleNotFoundError as error:
            raise MissingExtraError("psycopg", "sql") from error
        self._raw: Any = None
        hooks.listen(self._engine, "do_connect", self._connect)
        hooks.listen(self._engine, "connect", self._after_connect)

    def _set_options(self, options: dict[str, Any]) -> None:
        options |= self.address.dialect.fixed
        options[self.address.dialect.connect_timeout] = self._connect_timeout

    def _connect(self, dialect: Any, _record: object, args: Any, options: dict[str, Any]) -> Any:
        self._set_options(options)
        try:
            return dialect.connect(*args, **options)
        except (OverflowError, TypeError, ValueError) as error:  # not the driver's own: of what it was given
            message = f"{self.address.name}: a parameter of the URL cannot be used: {error}"
            raise MisconfiguredError(message) from None

    def _after_connect(self, connection: Any, _record: object) -> None:
        self.address.dialect.prepare(connection)
        self._raw = connection

    def _leave_to_parent(self) -> None:
        """The connection is the parent's: it is neither used here nor closed, which collecting it would do."""
        _PARENTS.append(self._engine)
        self._start_afresh()


_PARENTS: Final[list[Engine]] = []


def verdict_on(error: SQLAlchemyError) -> type[DeliveryError]:
    """What a database's error means: by its SQLSTATE, by SQLite's code, or by what a refused connection says."""
    cause = getattr(error, "orig", error)
    state = getattr(cause, "sqlstate", None)
    if state is not None:
        return _VERDICTS.get(state) or _VERDICTS.get(state[:2], UnavailableError)
    code = getattr(cause, "sqlite_errorcode", None)
    if code is not None:
        # the rest are details
        return _VERDICTS.get(code & 0xFF, UnavailableError)
    if isinstance(error, DataError):
        return RefusedError
    # PostgreSQL's client has no SQLSTATE where there is no connection; in another language it is just unavailable
    return MisconfiguredError if _NOT_LET_IN.search(str(cause)) else UnavailableError


_VERDICTS: Final[dict[str | int, type[DeliveryError]]] = {
    "22": RefusedError,  # data exception
    "23": RefusedError,  # integrity constraint violation
    "44": RefusedError,  # a view's check option
    "54": RefusedError,  # program limit exceeded: a row too large for an index
    "P0": RefusedError,  # a trigger's own error
    "28": MisconfiguredError,  # invalid authorization
    "3D": MisconfiguredError,  # no such database
    "3F": MisconfiguredError,  # no such schema
    "42": MisconfiguredError,  # no such table or column, no right to it, a wrong type
    "42P07": UnavailableError,  # another process made the table at the same time
    "25006": MisconfiguredError,  # a read-only server
    sqlite3.SQLITE_CONSTRAINT: RefusedError,
    sqlite3.SQLITE_MISMATCH: RefusedError,
    sqlite3.SQLITE_TOOBIG: RefusedError,
    sqlite3.SQLITE_ERROR: MisconfiguredError,  # no such table or column
    sqlite3.SQLITE_AUTH: MisconfiguredError,
    sqlite3.SQLITE_CANTOPEN: MisconfiguredError,
    sqlite3.SQLITE_CORRUPT: MisconfiguredError,
    sqlite3.SQLITE_NOTADB: MisconfiguredError,
    sqlite3.SQLITE_PERM: MisconfiguredError,
    sqlite3.SQLITE_READONLY: MisconfiguredError,
}
"""By SQLSTATE, by its class, and by SQLite's primary code; all others pass: connections lost, locks, full disks."""

_NOT_LET_IN: Final = re.compile(
    "authentication failed|no password supplied|no pg_hba.conf entry|permission denied|is not permitted to log in"
    "|(database|role) .* does not exist|invalid connection option"
    # PgBouncer's own words
    "|no such database|unsupported startup parameter"
)
