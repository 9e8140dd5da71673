"""The guide's audit table, in PostgreSQL or SQLite: events into it, and events out of it.

:class:`SqlSink` writes, :class:`SqlSource` reads, and :func:`schema_ddl` is what the
sink makes where there is no table. What the two databases differ in is data, one
``_Dialect`` each.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack
from urllib.parse import quote
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct

from constellation_otel._fork import after_fork_in_child
from constellation_otel._log import RateLimitedLog
from constellation_otel.delivery import Position, Record, Rejection, Unreadable
from constellation_otel.dialects import decode_json, encode_json
from constellation_otel.errors import (
    ConfigurationError,
    ConstellationOtelError,
    DecodeError,
    DeliveryError,
    MisconfiguredError,
    MissingExtraError,
    RefusedError,
    SourceError,
    UnavailableError,
)
from constellation_otel.events import Event, check_event, clean_name
from constellation_otel.transports._listener import ListenerOptions, TransportListener

try:
    import sqlalchemy
except ModuleNotFoundError as error:
    raise MissingExtraError("sqlalchemy", "sql") from error
from sqlalchemy import URL, ColumnElement, Insert, Select, TableClause, types
from sqlalchemy import event as hooks
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DataError, SQLAlchemyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection, Engine, Inspector, RowMapping
    from sqlalchemy.engine.interfaces import ReflectedColumn
    from sqlalchemy.types import TypeEngine

__all__ = ["SqlAuditListener", "SqlSink", "SqlSource", "schema_ddl"]

_LOGGER: Final = logging.getLogger(__name__)
_TABLE: Final = "execution_audit"
_MAX_BATCH: Final = 512
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EVENT_ID: Final = b"constellation-otel/1/audit/"
_LOWEST_ID: Final = -(2**63)
_HIGHEST_ID: Final = 2**63 - 1

# PostgreSQL cuts longer names off, and an index's name is 17 bytes longer than its table's
_MAX_TABLE_BYTES: Final = 63 - len("idx__execution_id")
_MAX_SAID: Final = 500

# of the time for a statement: when the server gives up, and when we leave it, since it did not
_SERVER_SHARE: Final = 0.75
_CLIENT_SHARE: Final = 0.9
_MIN_TIMEOUT: Final = 0.1
# PostgreSQL's client takes one second for two
_MIN_CONNECT_TIMEOUT: Final = 2
_READ_TIMEOUT: Final = 30.0
_NO_ANSWER: Final = "no answer within the time that there was"
_CLOSE_TIMEOUT: Final = 5.0

_MAX_GAPS: Final = 4096
_GAPS_A_QUERY: Final = 100

_FIELDS: Final = {
    "event_type": "eventType",
    "execution_id": "executionId",
    "dag_name": "dagName",
    "module_name": "moduleName",
    "duration_ms": "durationMs",
    "succeeded": "succeeded",
    "error_message": "error",
    "module_id": "moduleId",
    "error_type": "errorType",
    "occurred_ns": "timestampNs",
    "duration_ns": "durationNs",
    "traceparent": "traceparent",
    "tracestate": "tracestate",
}
"""The columns that hold what a field of the guide's JSON holds."""

_GUIDE: Final[dict[str, tuple[type[TypeEngine[Any]], ...]]] = {
    "id": (types.Integer,),
    "event_type": (types.String,),
    "execution_id": (types.Uuid, types.String),
    "dag_name": (types.String,),
    "module_name": (types.String,),
    "duration_ms": (types.Integer, types.Numeric),
    "succeeded": (types.Boolean,),
    "error_message": (types.String,),
    "created_at": (types.DateTime,),
}
"""The guide's columns, and what they may be in a database that is strict about types."""

_OURS: Final[dict[str, tuple[type[TypeEngine[Any]], ...]]] = {
    "event_id": (types.Uuid, types.String),
    "module_id": (types.Uuid, types.String),
    "error_type": (types.String,),
    "occurred_ns": (types.BigInteger, types.Numeric),
    "duration_ns": (types.BigInteger, types.Numeric),
    "traceparent": (types.String,),
    "tracestate": (types.String,),
}
"""Our columns; one that is something else in a table is left alone."""

_UUIDS: Final = ("execution_id", "event_id", "module_id")
_UUID_LENGTH: Final = 36
_HEX_LENGTH: Final = 32

_ID: Final = sqlalchemy.column("id", types.BigInteger)
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")
_SHOWN: Final = ("host", "port", "table", "timezone")
_NO_URL: Final = (
    "it has to be postgresql://user:password@host/database or sqlite:///file, "
    "with %40 for an @ in the user's name or the password, %2F for a slash and %3A for a colon"
)
_ISO: Final = 'YYYY-MM-DD"T"HH24:MI:SS.US'


def schema_ddl(dialect: Literal["postgresql", "sqlite"], table: str = _TABLE) -> str:
    """The statements that make the table which :class:`SqlSink` makes where there is none.

    The guide's columns and indexes, and then ours. Running them again changes nothing.

    Args:
        dialect: The database's kind, as its URL begins.
        table: The table's name.

    Raises:
        ConfigurationError: There is no such dialect, or the name is none for a table.
    """
    if dialect not in _DIALECTS:
        message = f"{dialect!r} is none of {', '.join(_DIALECTS)}"
        raise ConfigurationError(message)
    _check_table(table)
    return "".join(f"{statement};\n" for statement in _statements(_DIALECTS[dialect], table))


class SqlSink:
    """Writes events into an audit table.

    A table that exists with the guide's columns is written as it is, never altered;
    those of our own columns that it has are used. Where there is no table, one with all
    of them is made, see :func:`schema_ddl`. Names that are too long for their column
    are cut.

    A batch is one transaction. Where the table has ``event_id`` with a unique index, an
    event that is sent again is dropped by the database; where it has not, as in a table
    that was made with the guide's own DDL, it is there twice after a lost answer.

    ``created_at`` is the time of the event where the table has ``occurred_ns``, too;
    otherwise it is left to the column's default, the time of the insertion.

    Making one does no I/O. In a forked child it connects anew.

    Args:
        url: ``postgresql://user:password@host/database`` or ``sqlite:///file``. The
            parameters ``table`` and ``timezone`` are those below, and win over them;
            the others are the driver's.
        table: The table's name, without a schema: PostgreSQL's ``search_path`` says which.
        timezone: The zone that ``created_at`` is in, as ``Europe/Berlin``; the server's
            own by default, and UTC with SQLite.

    Raises:
        ConfigurationError: The URL, the table's name or the zone cannot be used.
        MissingExtraError: The driver is not installed.
    """

    def __init__(self, url: str, *, table: str = _TABLE, timezone: str | None = None) -> None:
        self._audit = _Audit(_address_of(url, table, timezone))

    @property
    def name(self) -> Literal["sql"]:
        """What kind of sink it is."""
        return "sql"

    @property
    def takes(self) -> Literal["events"]:
        """What :meth:`send` is called with."""
        return "events"

    @property
    def max_batch(self) -> int:
        """Events in one call of :meth:`send`, at most."""
        return _MAX_BATCH

    def send(self, items: Sequence[Event], timeout: float) -> Sequence[Rejection]:
        """Inserts events, in one transaction; they are committed when this returns.

        Args:
            items: The events.
            timeout: Seconds. To connect takes two at most where less is left: PostgreSQL's
                client knows no shorter time.

        Returns:
            The events that carry a value of the wrong type: they cannot be written anywhere.

        Raises:
            UnavailableError: The database is away, busy, locked or full; none was written,
                or the answer was lost.
            MisconfiguredError: It refuses the user, has no such database, or the table is
                no audit table.
            RefusedError: It refuses one of the rows.
        """
        end = time.monotonic() + timeout
        layout = self._audit.layout or self._audit.look(timeout, self._make)
        rows: list[dict[str, Any]] = []
        rejections: list[Rejection] = []
        for index, item in enumerate(items):
            try:
                check_event(item)
                rows.append(layout.row_of(item))
            except (TypeError, ValueError) as error:
                rejections.append(Rejection(index, 1, str(error)))
        if rows:
            with self._audit.transaction(end - time.monotonic(), refusable=True) as connection:
                connection.execute(layout.insert, rows)
        return rejections

    def close(self) -> None:
        """Closes the connection."""
        self._audit.close()

    def _make(self, connection: Connection) -> _Layout:
        """Makes the table where there is none, and says what there is."""
        address = self._audit.address
        if not sqlalchemy.inspect(connection).has_table(address.table):
            for statement in _statements(address.dialect, address.table):
                connection.exec_driver_sql(statement)
        layout = _layout_of(connection, address, MisconfiguredError)
        if layout.demands:
            message = (
                f"{address.name}: the table {address.table} has columns that must not be null and have no default: "
                f"{', '.join(layout.demands)}; give them defaults, or name another table with ?table="
            )
            raise MisconfiguredError(message)
        return layout


class SqlAuditListener(TransportListener):
    """Writes every event into an audit table, in the background: the guide's second example.

    Its rows are what :class:`SqlSink` writes. While there is no database, events are
    held, for as long as there is room; with ``journal="events.db"`` they outlive the process.

    Args:
        url: ``postgresql://user:password@host/database`` or ``sqlite:///file``.
        table: The table's name; it is made where it is not there.
        timezone: The zone that ``created_at`` is in; the server's own by default.
        **options: See :class:`~constellation_otel.transports._listener.ListenerOptions`.

    Raises:
        ConfigurationError: The URL, the table's name or the zone cannot be used.
        JournalError: The journal cannot be used.
        MissingExtraError: The driver is not installed.
    """

    def __init__(
        self, url: str, *, table: str = _TABLE, timezone: str | None = None, **options: Unpack[ListenerOptions]
    ) -> None:
        super().__init__(SqlSink(url, table=table, timezone=timezone), **options)


class SqlSource:
    """Reads the events of an audit table, ours or one that the guide's own listener fills.

    Rows come in the order of their ids, in pages, however many there are. What is read
    is acknowledged nowhere: the next run begins at the beginning again. A row that is no
    event is an :class:`~constellation_otel.delivery.Unreadable` with the row as JSON.

    Without ``follow`` it ends at the highest id that there was at the first read. Rows
    whose transaction was still open when their place was read count as newer than that.

    With ``follow`` it goes on for ever. Ids commit out of order: a row may turn up below
    one that was read before. So an id that is missing is looked for again, until
    ``gap_timeout`` seconds after it was missed; a transaction that stays open for longer
    hides its rows. No row comes twice. Such late rows come after rows with higher ids.

    The event's time is ``occurred_ns``, to the nanosecond, or else ``created_at``, to the
    microsecond, in the zone below. A local time that there is twice, when summer time
    ends, is taken for the first of the two; one that there is not, when it begins, as if
    it had not begun.

    Making one does no I/O. In a forked child it connects anew.

    Args:
        url: As for :class:`SqlSink`.
        table: As for :class:`SqlSink`.
        timezone: As for :class:`SqlSink`.
        follow: Whether to go on at the end.
        poll_interval: Seconds between two looks at a table that has nothing new.
        gap_timeout: Seconds that an id may be missing and still come.
        execution_id: Only the events of this execution.

    Raises:
        ConfigurationError: The URL, the table's name or the zone cannot be used.
        MissingExtraError: The driver is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        table: str = _TABLE,
        timezone: str | None = None,
        follow: bool = False,
        poll_interval: float = 1.0,
        gap_timeout: float = 10.0,
        execution_id: UUID | None = None,
    ) -> None:
        self._audit = _Audit(_address_of(url, table, timezone))
        self._execution_id = execution_id
        self._follow = follow
        self._poll_interval = poll_interval
        self._last = _LOWEST_ID
        # the highest id of the replay, once that is known
        self._end = _HIGHEST_ID if follow else None
        self._gaps = _Gaps(gap_timeout)
        self._next_read = self._next_look = -float("inf")
        self._has_ended = False
        self._closing = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._log = RateLimitedLog()

    @property
    def name(self) -> str:
        """The URL without secrets."""
        return self._audit.address.name

    @property
    def is_ordered(self) -> bool:
        """No: ids are not times."""
        return False

    @property
    def is_durable(self) -> bool:
        """Yes: it is read from the beginning again."""
        return True

    @property
    def has_ended(self) -> bool:
        """Whether the replay is at its end; a table that is followed has none."""
        return self._has_ended

    def read(self, timeout: float) -> Sequence[Record | Unreadable]:
        """Reads the next rows.

        Args:
            timeout: Seconds to wait for the first one. A statement that the database does
                not answer is given up after 30.

        Raises:
            UnavailableError: The database is away or busy.
            MisconfiguredError: It refuses the user, or has no such database.
            SourceError: There is no such table or file, or the table is no audit table.
        """
        self._idle.clear()
        try:
            end = time.monotonic() + timeout
            while not (self.has_ended or self._closing.is_set()):
                now = time.monotonic()
                if now >= self._next_read:
                    items = self._read_now()
                    if items:
                        return items
                left = end - time.monotonic()
                if self._has_ended or left <= 0:
                    break
                self._closing.wait(min(self._next_read - now, left))
            return []
        finally:
            self._idle.set()

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Nothing is kept between two runs."""

    def close(self) -> None:
        """Ends a :meth:`read` that waits, and closes the connection."""
        self._closing.set()
        end = time.monotonic() + _CLOSE_TIMEOUT
        while not self._idle.wait(0.1) and time.monotonic() < end:
            self._audit.interrupt()
        self._audit.close()

    def _read_now(self) -> list[Record | Unreadable]:
        """Reads a page: of the ids that were missing where it is time to look, or else of what follows."""
        now = time.monotonic()
        late: Sequence[RowMapping] = []
        rows: Sequence[RowMapping] = []
        try:
            layout = self._audit.layout or self._find()
            with self._audit.transaction(_READ_TIMEOUT) as connection:
                if self._end is None:
                    highest = sqlalchemy.func.coalesce(sqlalchemy.func.max(_ID), _LOWEST_ID)
                    self._end = connection.execute(sqlalchemy.select(highest).select_from(layout.table)).scalar_one()
                if now >= self._next_look:
                    late = self._late_rows(connection, layout)
                if not late:
                    rows = self._rows(connection, layout, sqlalchemy.and_(self._last < _ID, self._end >= _ID))
        except UnavailableError:
            if self._closing.is_set():
                return []
            raise
        # not before the transaction has ended: what fails is read again
        if late:
            self._gaps.fill(row["id"] for row in late)
        else:
            self._go_on(rows, now)
        return [_item_of(row, layout.zone) for row in late or rows]

    def _find(self) -> _Layout:
        """Looks at the table, which has to be there."""
        file = self._audit.address.file
        # SQLite would make an empty one
        if file is not None and not file.is_file():
            message = f"{self.name}: there is no file {file}"
            raise SourceError(message)
        return self._audit.look(_READ_TIMEOUT, self._describe)

    def _describe(self, connection: Connection) -> _Layout:
        address = self._audit.address
        if not sqlalchemy.inspect(connection).has_table(address.table):
            message = f"{address.name}: there is no table {address.table}; name the one to read with ?table="
            raise SourceError(message)
        return _layout_of(connection, address, SourceError)

    def _late_rows(self, connection: Connection, layout: _Layout) -> Sequence[RowMapping]:
        for ranges in self._gaps.chunks():
            rows = self._rows(connection, layout, sqlalchemy.or_(*(_ID.between(*ids) for ids in ranges)))
            if rows:
                return rows
        return []

    def _rows(self, connection: Connection, layout: _Layout, which: ColumnElement[bool]) -> Sequence[RowMapping]:
        page = layout.select.where(which).order_by(_ID).limit(_MAX_BATCH)
        if self._execution_id is not None:
            # without a type: PostgreSQL takes the text for what the column is
            wanted = layout.value_of("execution_id", str(self._execution_id))
            page = page.where(sqlalchemy.column("execution_id") == sqlalchemy.literal(wanted, types.NullType()))
        return connection.execute(page).mappings().all()

    def _go_on(self, rows: Sequence[RowMapping], now: float) -> None:
        """Moves on behind a page; if it was time to look at the ids that were missing, none has come."""
        if now >= self._next_look:
            self._gaps.expire(now)
            self._next_look = now + self._poll_interval
        if not rows:
            self._next_read = time.monotonic() + self._poll_interval
        self._has_ended = not self._follow and len(rows) < _MAX_BATCH
        for row in rows:
            if self._follow and not self._gaps.note(self._last, row["id"], now):
                message = "%s: more than %d gaps in the ids; those before %d are not waited for"
                self._log.write(_LOGGER, logging.INFO, "gaps", message, self.name, _MAX_GAPS, self._gaps.lowest)
            self._last = row["id"]


class _Gap(Struct):
    """Ids that are missing.

    Attributes:
        first: The lowest.
        last: The highest.
        until: Monotonic seconds; when they are given up.
    """

    first: int
    last: int
    until: float


class _Gaps:
    """The ids below the highest one read that have not come: ranges, in ascending order, which is by age.

    Args:
        timeout: Seconds that an id may be missing.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._gaps: list[_Gap] = []

    @property
    def lowest(self) -> int:
        """The lowest id that is waited for; there is one."""
        return self._gaps[0].first

    def note(self, last: int, following: int, now: float) -> bool:
        """Notes what is missing between two ids that came one after the other.

        Returns:
            Whether there was room; the oldest range has been given up otherwise.
        """
        # serial ids begin at 1
        first = max(last, 0) + 1
        if first < following:
            self._gaps.append(_Gap(first, following - 1, now + self._timeout))
        has_room = len(self._gaps) <= _MAX_GAPS
        del self._gaps[:-_MAX_GAPS]
        return has_room

    def fill(self, ids: Iterable[int]) -> None:
        """Takes out ids that have come; each is in one of the ranges."""
        for found in ids:
            index = bisect_left(self._gaps, found, key=lambda gap: gap.last)
            gap = self._gaps[index]
            parts = (_Gap(gap.first, found - 1, gap.until), _Gap(found + 1, gap.last, gap.until))
            self._gaps[index : index + 1] = [part for part in parts if part.first <= part.last]

    def expire(self, now: float) -> None:
        """Gives up what has been missing for too long."""
        self._gaps = [gap for gap in self._gaps if gap.until > now]

    def chunks(self) -> Iterator[list[tuple[int, int]]]:
        """The ranges, first and last id, as many as one query takes at a time."""
        for start in range(0, len(self._gaps), _GAPS_A_QUERY):
            yield [(gap.first, gap.last) for gap in self._gaps[start : start + _GAPS_A_QUERY]]


class _Layout(Struct, frozen=True):
    """What the table is like.

    Attributes:
        table: The table.
        insert: Inserts rows of :meth:`row_of`.
        select: Selects the guide's columns, and those of ours that there are.
        written: The columns that ``insert`` has values for.
        demands: Other columns that want a value in every row.
        lengths: How many characters there is room for, by column; an event's type is never cut.
        zone: What ``created_at`` is in.
        is_aware: Whether ``created_at`` has a zone itself.
    """

    table: TableClause
    insert: Insert
    select: Select[Any]
    written: Sequence[str]
    demands: Sequence[str]
    lengths: Mapping[str, int | None]
    zone: ZoneInfo
    is_aware: bool

    def row_of(self, event: Event) -> dict[str, object]:
        """The row of an event."""
        content = encode_json(event)
        fields = msgspec.json.decode(content)
        row: dict[str, Any] = {column: fields.get(field) for column, field in _FIELDS.items()}
        row["event_id"] = str(UUID(bytes=blake2b(_EVENT_ID + content, digest_size=16).digest()))
        row["created_at"] = self._time_of(event.timestamp_ns)
        # of the texts, these two come as a wire brought them
        for column in ("traceparent", "tracestate"):
            row[column] = clean_name(row[column]) if row[column] else None
        return {column: self.value_of(column, row[column]) for column in self.written}

    def value_of(self, column: str, value: Any) -> object:
        """A value as the column holds it: texts are cut, and a UUID is 32 digits where there is no room for more."""
        if not isinstance(value, str):
            return value
        length = self.lengths.get(column)
        if column in _UUIDS and length is not None and length < _UUID_LENGTH:
            return value.replace("-", "")
        return value[:length]

    def _time_of(self, timestamp_ns: int) -> str:
        at = (_EPOCH + timedelta(microseconds=timestamp_ns // 1000)).astimezone(self.zone)
        return (at if self.is_aware else at.replace(tzinfo=None)).isoformat(" ", "microseconds")


def _layout_of(connection: Connection, address: _Address, unfit: type[ConstellationOtelError]) -> _Layout:
    """Looks at a table that is there.

    Raises:
        ConstellationOtelError: It is no audit table, or the server's time zone is unknown; of the type ``unfit``.
    """
    inspector = sqlalchemy.inspect(connection)
    found = {column["name"]: column for column in inspector.get_columns(address.table)}
    wrong = [f"{name} is missing" for name in _GUIDE if name not in found]
    wrong += [
        f"{name} is {found[name]['type']!r}, not one of {', '.join(kind.__name__ for kind in kinds)}"
        for name, kinds in _GUIDE.items()
        if name in found and not _can_hold(address.dialect, found[name]["type"], kinds)
    ]
    if wrong:
        message = (
            f"{address.name}: the table {address.table} is no audit table: {'; '.join(wrong)}. Make one that has what "
            "`constellation-otel schema` prints, or name another with ?table="
        )
        raise unfit(message)
    ours = [name for name, kinds in _OURS.items() if name in found]
    ours = [name for name in ours if _can_hold(address.dialect, found[name]["type"], _OURS[name])]
    written = [name for name in _GUIDE if name != "id" and (name != "created_at" or "occurred_ns" in ours)] + ours
    table = sqlalchemy.table(address.table, *(sqlalchemy.column(name) for name in [*_GUIDE, *ours]))
    insert = address.dialect.insert(table)
    if "event_id" in ours and _is_unique(inspector, address.table, "event_id"):
        insert = insert.on_conflict_do_nothing(index_elements=["event_id"])
    is_aware = bool(getattr(found["created_at"]["type"], "timezone", False))
    read: list[ColumnElement[Any]] = [column for column in table.columns if column.name != "created_at"]
    read.append(address.dialect.created_at(table.columns["created_at"], is_aware).label("created_at"))
    zone = address.zone
    if zone is None:
        name = str(connection.exec_driver_sql(address.dialect.timezone).scalar_one())
        zone = _zone_of(name, f"{address.name}: the server's time zone", unfit)
    return _Layout(
        table=table,
        insert=insert,
        select=sqlalchemy.select(*read),
        written=written,
        demands=[name for name, column in found.items() if name not in {"id", *written} and _is_demanded(column)],
        lengths={name: getattr(found[name]["type"], "length", None) for name in written if name != "event_type"},
        zone=zone,
        is_aware=is_aware,
    )


def _can_hold(dialect: _Dialect, kind: TypeEngine[Any], kinds: tuple[type[TypeEngine[Any]], ...]) -> bool:
    """Whether a column's type will do; a type that SQLAlchemy does not know is the database's own business."""
    if not dialect.is_strict or isinstance(kind, types.NullType):
        return True
    length = getattr(kind, "length", None)
    return isinstance(kind, kinds) and (types.Uuid not in kinds or length is None or length >= _HEX_LENGTH)


def _is_demanded(column: ReflectedColumn) -> bool:
    has_value = column["default"] is not None or "identity" in column or "computed" in column
    return not (column["nullable"] or has_value)


def _is_unique(inspector: Inspector, table: str, column: str) -> bool:
    """Whether ON CONFLICT finds a unique index on this one column; one on some of the rows will not do."""
    indexes = inspector.get_indexes(table, include_auto_indexes=True)
    whole = [index for index in indexes if not any(name.endswith("_where") for name in index["dialect_options"])]
    unique = [index["column_names"] for index in whole if index["unique"]]
    return [column] in [*unique, inspector.get_pk_constraint(table)["constrained_columns"]]


def _item_of(row: RowMapping, zone: ZoneInfo) -> Record | Unreadable:
    position = Position(None, row["id"])
    try:
        return Record(_event_of(row, zone), position)
    except DecodeError as error:
        return Unreadable(_ENCODER.encode(dict(row)), str(error), position)


def _event_of(row: RowMapping, zone: ZoneInfo) -> Event:
    fields: dict[str, Any] = {field: row.get(column) for column, field in _FIELDS.items()}
    if fields["timestampNs"] is None:
        fields["timestampNs"] = _timestamp_ns_of(row["created_at"], zone)
    # what is read where the nanoseconds are 0
    fields["timestamp"] = 0
    # SQLite has no booleans
    fields["succeeded"] = {0: False, 1: True}.get(fields["succeeded"], fields["succeeded"])
    return decode_json(_ENCODER.encode(fields))


def _timestamp_ns_of(created_at: object, zone: ZoneInfo) -> int:
    """Epoch nanoseconds of a local time in ISO 8601, or of one with an offset.

    Raises:
        DecodeError: It is none.
    """
    if not isinstance(created_at, str):
        message = f"not an event: created_at is {created_at!r}, which is no time"
        raise DecodeError(message)
    try:
        at = datetime.fromisoformat(created_at)
        since = (at if at.tzinfo is not None else at.replace(tzinfo=zone)) - _EPOCH
    except (ValueError, OverflowError) as error:
        message = f"not an event: created_at is {created_at!r}, which is no time: {error}"
        raise DecodeError(message) from None
    return (since // timedelta(microseconds=1)) * 1000


class _Audit:
    """The one connection to a table, of this process, and what the table is like.

    Args:
        address: Where the table is.
    """

    def __init__(self, address: _Address) -> None:
        self.address = address
        self.layout: _Layout | None = None
        # monotonic seconds; when what is done now is left
        self._until = 0.0
        self._start_afresh()
        after_fork_in_child(self._leave_to_parent)

    def look(self, timeout: float, find: Callable[[Connection], _Layout]) -> _Layout:
        """Connects and finds out what the table is like."""
        with self.transaction(timeout) as connection:
            layout = find(connection)
        self.layout = layout
        return layout

    @contextmanager
    def transaction(self, timeout: float, *, refusable: bool = False) -> Iterator[Connection]:
        """A transaction, committed at the end.

        Args:
            timeout: Seconds, for all of it.
            refusable: Whether the data may be refused; otherwise it is tried again.

        Raises:
            UnavailableError: It failed; the next one connects anew and looks at the table again.
            RefusedError: The database refused the data.
        """
        timeout = max(timeout, _MIN_TIMEOUT)
        self._until = time.monotonic() + timeout * _CLIENT_SHARE
        limit = self.address.dialect.limit.format(ms=int(timeout * _SERVER_SHARE * 1000))
        # for a server that answers nothing, not even that time is up
        watchdog = threading.Timer(timeout * _CLIENT_SHARE, self.interrupt)
        watchdog.daemon = True
        # no thread at the interpreter's exit, say: then the server's limit has to do
        with suppress(RuntimeError):
            watchdog.start()
        try:
            with self._engine.begin() as connection:
                connection.exec_driver_sql(limit)
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
        verdict = _verdict_on(error)
        said = _said(error, self.address)
        if verdict is RefusedError and refusable:
            return RefusedError(said)
        self.layout = None
        self._engine.dispose()
        if verdict is MisconfiguredError:
            return MisconfiguredError(f"{said}; mend the URL, the table or the user's rights")
        return UnavailableError(said)

    def _start_afresh(self) -> None:
        address = self.address
        try:
            self._engine = sqlalchemy.create_engine(
                address.url,
                poolclass=sqlalchemy.QueuePool,
                pool_size=1,
                max_overflow=0,
                pool_pre_ping=True,
                hide_parameters=True,
            )
        except ModuleNotFoundError as error:
            raise MissingExtraError(address.dialect.library, "sql") from error
        self._raw: Any = None
        hooks.listen(self._engine, "do_connect", self._before_connect)
        hooks.listen(self._engine, "connect", self._after_connect)

    def _before_connect(self, _dialect: object, _record: object, _args: object, options: dict[str, Any]) -> None:
        for option, value in self.address.dialect.options.items():
            options.setdefault(option, value)
        left = self._until - time.monotonic()
        if left <= 0:
            # the pool connects anew when it finds that the watchdog has ended a connection
            raise self._engine.dialect.loaded_dbapi.OperationalError(_NO_ANSWER)
        # half: a name may have two addresses
        options[self.address.dialect.connect_timeout] = max(_MIN_CONNECT_TIMEOUT, int(left / 2))

    def _after_connect(self, connection: Any, _record: object) -> None:
        self.address.dialect.prepare(connection)
        self._raw = connection

    def _leave_to_parent(self) -> None:
        """The connection is the parent's: it is neither used here nor closed, which collecting it would do."""
        _PARENTS.append(self._engine)
        self.layout = None
        self._start_afresh()


_PARENTS: Final[list[Engine]] = []


class _Address(Struct, frozen=True):
    """Where a table is.

    Attributes:
        dialect: The database's kind.
        url: For SQLAlchemy.
        file: The file that it is in, where it is in one.
        name: The URL as it was given, without secrets.
        secrets: What no message may have in it.
        table: The table's name.
        zone: The zone that was given.
    """

    dialect: _Dialect
    url: URL
    file: Path | None
    name: str
    secrets: Sequence[str]
    table: str
    zone: ZoneInfo | None

    def __repr__(self) -> str:
        return f"_Address({self.name!r})"


def _address_of(url: str, table: str, timezone: str | None) -> _Address:
    """Takes a URL apart.

    Raises:
        ConfigurationError: It cannot be used; the message does not have it, since it may have a password.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError(_NO_URL) from None
    dialect = _DIALECTS.get(parsed.drivername)
    if dialect is None:
        message = f"no audit table is at a URL that begins with {parsed.drivername!r}: {_NO_URL}"
        raise ConfigurationError(message)
    if "@" in f"{parsed.host}{parsed.database}":
        raise ConfigurationError(_NO_URL)
    table = _parameter(parsed, "table") or table
    timezone = _parameter(parsed, "timezone") or timezone
    _check_table(table)
    zone = None if timezone is None else _zone_of(timezone, "timezone", ConfigurationError)
    shown = {name: value for name, value in parsed.query.items() if name in _SHOWN}
    hidden = [_parameter(parsed, name) for name in parsed.query if "password" in name]
    for_driver = parsed.difference_update_query(["table", "timezone"]).set(drivername=dialect.driver)
    return _Address(
        dialect=dialect,
        url=for_driver,
        file=dialect.file_of(for_driver),
        name=parsed.set(query=shown).render_as_string(hide_password=True),
        secrets=[secret for secret in (parsed.password, *hidden) if secret],
        table=table,
        zone=zone,
    )


def _parameter(url: URL, name: str) -> str | None:
    """A parameter that a URL may have once.

    Raises:
        ConfigurationError: It has it twice.
    """
    value = url.query.get(name)
    if isinstance(value, tuple):
        message = f"the URL has {name} {len(value)} times; give it once"
        raise ConfigurationError(message)
    return value


def _file_of(url: URL) -> Path | None:
    """The file of a SQLite database, where the URL names it in the ordinary way.

    Raises:
        ConfigurationError: It names none, or has parameters that no driver takes.
    """
    if "uri" in url.query:
        return None
    if url.database in {None, "", ":memory:"}:
        message = (
            "a table in memory is gone when it is closed; name a file: sqlite:///audit.db, or sqlite:////var/audit.db"
        )
        raise ConfigurationError(message)
    if url.query:
        message = f"SQLite takes the parameters {', '.join(url.query)} with sqlite:///file:audit.db?uri=true&… only"
        raise ConfigurationError(message)
    return Path(str(url.database))


def _check_table(table: str) -> None:
    if not 0 < len(table.encode(errors="replace")) <= _MAX_TABLE_BYTES or not table.isprintable():
        message = (
            f"table={table!r} is no name for a table: 1 to {_MAX_TABLE_BYTES} bytes are, without control characters"
        )
        raise ConfigurationError(message)


def _zone_of(name: str, what: str, unfit: type[ConstellationOtelError]) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        message = f"{what} is {name!r}, which is unknown here; name one with ?timezone=, as Europe/Berlin"
        raise unfit(message) from None


def _said(error: SQLAlchemyError, address: _Address) -> str:
    """What a database or its driver said, in a line, without secrets."""
    said = " ".join(str(getattr(error, "orig", error)).split())
    for secret in address.secrets:
        for form in (secret, quote(secret, safe="")):
            said = said.replace(form, "***")
    return f"{address.name}: {said[:_MAX_SAID]}"


def _verdict_on(error: SQLAlchemyError) -> type[DeliveryError]:
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
)


def _statements(dialect: _Dialect, table: str) -> list[str]:
    prepare = dialect.quoting().identifier_preparer.quote
    prefix = "idx_audit" if table == _TABLE else f"idx_{table}"
    names = {
        "table": prepare(table),
        "by_execution_id": prepare(f"{prefix}_execution_id"),
        "by_dag_name": prepare(f"{prefix}_dag_name"),
    }
    return [statement.format(**names) for statement in (dialect.ddl, _BY_EXECUTION_ID, _BY_DAG_NAME)]


class _Dialect(Struct, frozen=True):
    """What one kind of database has of its own.

    Attributes:
        driver: SQLAlchemy's name for it and its driver.
        library: The driver's distribution.
        quoting: What knows how it quotes.
        ddl: Makes the table.
        insert: SQLAlchemy's INSERT with ON CONFLICT.
        options: What is given to the driver where the URL says nothing else.
        connect_timeout: The driver's option for the seconds that connecting may take.
        limit: The statement that limits the time of those that follow in its transaction.
        timezone: The query for the time zone of ``created_at``.
        is_strict: Whether a column holds values of its type only.
        file_of: The file that a URL names.
        created_at: ``created_at`` as a text in ISO 8601, with an offset where the column has a zone.
        prepare: Done with a new connection.
        interrupt: Makes what waits for this connection fail, from another thread.
    """

    driver: str
    library: str
    quoting: Callable[[], sqlalchemy.Dialect]
    ddl: str
    insert: Callable[[TableClause], Any]
    options: Mapping[str, object]
    connect_timeout: str
    limit: str
    timezone: str
    is_strict: bool
    file_of: Callable[[URL], Path | None]
    created_at: Callable[[ColumnElement[Any], bool], ColumnElement[Any]]
    prepare: Callable[[Any], None]
    interrupt: Callable[[Any], None]


def _iso_of(created_at: ColumnElement[Any], is_aware: bool) -> ColumnElement[Any]:
    """As text, since Python has no infinite times, and none after the year 9999."""
    if is_aware:
        return sqlalchemy.func.to_char(sqlalchemy.func.timezone("UTC", created_at), f'{_ISO}"+00:00"')
    return sqlalchemy.func.to_char(created_at, _ISO)


def _shut_down(connection: Any) -> None:
    """Ends a PostgreSQL connection under whoever waits for it: a server that is stopped hears no cancellation."""
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as same:
        same.shutdown(socket.SHUT_RDWR)


def _read_any_text(connection: sqlite3.Connection) -> None:
    """Has bytes that are no UTF-8 read as U+FFFD, rather than the whole page refused."""
    connection.text_factory = lambda data: data.decode(errors="replace")


_BY_EXECUTION_ID: Final = "CREATE INDEX IF NOT EXISTS {by_execution_id} ON {table}(execution_id)"
_BY_DAG_NAME: Final = "CREATE INDEX IF NOT EXISTS {by_dag_name} ON {table}(dag_name)"

_POSTGRESQL: Final = _Dialect(
    driver="postgresql+psycopg",
    library="psycopg",
    quoting=postgresql.dialect,
    ddl="""\
CREATE TABLE IF NOT EXISTS {table} (
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
)""",
    insert=postgresql.insert,
    options={
        "client_encoding": "utf8",
        "fallback_application_name": "constellation-otel",
        # milliseconds, after which a host that has gone without a word counts as gone
        "tcp_user_timeout": 30_000,
    },
    connect_timeout="connect_timeout",
    limit="SET LOCAL statement_timeout = {ms}",
    timezone="SHOW timezone",
    is_strict=True,
    file_of=lambda _url: None,
    created_at=_iso_of,
    prepare=lambda _connection: None,
    interrupt=_shut_down,
)

_SQLITE: Final = _Dialect(
    driver="sqlite+pysqlite",
    library="sqlite3",
    quoting=sqlite.dialect,
    # AUTOINCREMENT: the id of a row that was deleted never comes again
    ddl="""\
CREATE TABLE IF NOT EXISTS {table} (
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
)""",
    insert=sqlite.insert,
    options={},
    connect_timeout="timeout",
    limit="PRAGMA busy_timeout = {ms}",
    # what CURRENT_TIMESTAMP is in
    timezone="SELECT 'UTC'",
    is_strict=False,
    file_of=_file_of,
    created_at=lambda created_at, _is_aware: created_at,
    prepare=_read_any_text,
    interrupt=sqlite3.Connection.interrupt,
)

_DIALECTS: Final = {"postgresql": _POSTGRESQL, "sqlite": _SQLITE}
