"""The audit table: its DDL, what one that exists is like, events as rows and rows as events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import sqlalchemy
from msgspec import Struct
from sqlalchemy import Insert, Select, types

from constellation_otel.delivery import Position, Record, Unreadable
from constellation_otel.dialects import decode_json, encode_json
from constellation_otel.errors import ConstellationOtelError, DecodeError
from constellation_otel.events import Event, clean_name
from constellation_otel.transports._sql_database import zone_of

if TYPE_CHECKING:
    from sqlalchemy import Connection, Inspector, RowMapping
    from sqlalchemy.engine.interfaces import ReflectedColumn
    from sqlalchemy.types import TypeEngine

    from constellation_otel.transports._sql_database import Address, Dialect, Table

__all__ = ["HIGHEST_ID", "LOWEST_ID", "TABLE", "Layout", "has_table", "layout_of", "statements"]

TABLE: Final = "execution_audit"
LOWEST_ID: Final = -(2**63)
HIGHEST_ID: Final = 2**63 - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EVENT_ID: Final = b"constellation-otel/1/audit/"
_UUID_LENGTH: Final = 36
_HEX_LENGTH: Final = 32
_ID: Final = sqlalchemy.column("id", types.BigInteger)
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")

_DDL: Final = (
    """\
CREATE TABLE IF NOT EXISTS {table} (
  id            {serial},
  event_type    VARCHAR(50) NOT NULL,
  execution_id  {uuid} NOT NULL,
  dag_name      VARCHAR(255),
  module_name   VARCHAR(255),
  duration_ms   BIGINT,
  succeeded     BOOLEAN,
  error_message TEXT,
  created_at    TIMESTAMP DEFAULT {now},
  event_id      {uuid} UNIQUE,
  module_id     {uuid},
  error_type    TEXT,
  occurred_ns   BIGINT,
  duration_ns   BIGINT,
  traceparent   TEXT,
  tracestate    TEXT
)""",
    "CREATE INDEX IF NOT EXISTS {by_execution_id} ON {table}(execution_id)",
    "CREATE INDEX IF NOT EXISTS {by_dag_name} ON {table}(dag_name)",
)


class _Column(NamedTuple):
    """A column.

    Attributes:
        field: The field of the guide's JSON that it holds; ``None`` where it holds something else.
        kinds: What it may be in a database that is strict about types.
    """

    field: str | None
    kinds: tuple[type[TypeEngine[Any]], ...]


GUIDE: Final = {
    "id": _Column(None, (types.Integer,)),
    "event_type": _Column("eventType", (types.String,)),
    "execution_id": _Column("executionId", (types.Uuid, types.String)),
    "dag_name": _Column("dagName", (types.String,)),
    "module_name": _Column("moduleName", (types.String,)),
    "duration_ms": _Column("durationMs", (types.Integer, types.Numeric)),
    "succeeded": _Column("succeeded", (types.Boolean,)),
    "error_message": _Column("error", (types.String,)),
    "created_at": _Column(None, (types.DateTime,)),
}
"""The guide's columns."""

_OURS: Final = {
    "event_id": _Column(None, (types.Uuid, types.String)),
    "module_id": _Column("moduleId", (types.Uuid, types.String)),
    "error_type": _Column("errorType", (types.String,)),
    "occurred_ns": _Column("timestampNs", (types.BigInteger, types.Numeric)),
    "duration_ns": _Column("durationNs", (types.BigInteger, types.Numeric)),
    "traceparent": _Column("traceparent", (types.String,)),
    "tracestate": _Column("tracestate", (types.String,)),
}
"""Our columns; one that is something else in a table is left alone."""

_FIELDS: Final = {name: column.field for name, column in {**GUIDE, **_OURS}.items() if column.field is not None}
_UUIDS: Final = [name for name, column in {**GUIDE, **_OURS}.items() if types.Uuid in column.kinds]


def statements(dialect: Dialect, table: Table) -> list[str]:
    """What makes the table, and its indexes, where there is none."""
    quoted = dialect.module.dialect().identifier_preparer.quote
    prefix = "idx_audit" if table.name == TABLE else f"idx_{table.name}"
    names = {
        "table": quoted(table.name) if table.schema is None else f"{quoted(table.schema)}.{quoted(table.name)}",
        "by_execution_id": quoted(f"{prefix}_execution_id"),
        "by_dag_name": quoted(f"{prefix}_dag_name"),
    }
    return [statement.format(**names, **dialect.words) for statement in _DDL]


class Layout(Struct, frozen=True):
    """What a table is like.

    Attributes:
        insert: Inserts rows of :meth:`row_of`.
        select: Selects the guide's columns, and those of ours that there are.
        highest_id: Selects the highest id, :data:`LOWEST_ID` where there is no row.
        written: The columns that ``insert`` has values for.
        demands: Other columns that want a value in every row.
        lengths: How many characters there is room for, by column; an event's type is never cut.
        zone: What ``created_at`` is in.
        is_aware: Whether ``created_at`` has a zone itself.
    """

    insert: Insert
    select: Select[Any]
    highest_id: Select[Any]
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
        at = (_EPOCH + timedelta(microseconds=event.timestamp_ns // 1000)).astimezone(self.zone)
        row["created_at"] = (at if self.is_aware else at.replace(tzinfo=None)).isoformat(" ", "microseconds")
        # of the texts, these two come as a wire brought them
        for column in ("traceparent", "tracestate"):
            row[column] = clean_name(row[column]) if row[column] else None
        return {column: self._value_of(column, row[column]) for column in self.written}

    def page(self, ranges: Sequence[tuple[int, int]], execution_id: UUID | None, limit: int) -> Select[Any]:
        """Selects rows by their ids, in their order.

        Args:
            ranges: The lowest and the highest id of each part.
            execution_id: Only the rows of this execution.
            limit: Rows, at most.
        """
        page = self.select.where(sqlalchemy.or_(*(_ID.between(*ids) for ids in ranges))).order_by(_ID).limit(limit)
        if execution_id is None:
            return page
        # without a type: PostgreSQL takes the text for what the column is
        wanted = sqlalchemy.literal(self._value_of("execution_id", str(execution_id)), types.NullType())
        return page.where(sqlalchemy.column("execution_id") == wanted)

    def item_of(self, row: RowMapping) -> Record | Unreadable:
        """What a row is."""
        position = Position(None, row["id"])
        try:
            return Record(self._event_of(row), position)
        except DecodeError as error:
            return Unreadable(_ENCODER.encode(dict(row)), str(error), position)

    def _value_of(self, column: str, value: Any) -> object:
        """A value as the column holds it: texts are cut, and a UUID is 32 digits where there is no room for more."""
        if not isinstance(value, str):
            return value
        length = self.lengths.get(column)
        if column in _UUIDS and length is not None and length < _UUID_LENGTH:
            return value.replace("-", "")
        return value[:length]

    def _event_of(self, row: RowMapping) -> Event:
        fields: dict[str, Any] = {field: row.get(column) for column, field in _FIELDS.items()}
        if fields["timestampNs"] is None:
            fields["timestampNs"] = _timestamp_ns_of(row["created_at"], self.zone)
        # what is read where the nanoseconds are 0
        fields["timestamp"] = 0
        # SQLite has no booleans
        fields["succeeded"] = {0: False, 1: True}.get(fields["succeeded"], fields["succeeded"])
        return decode_json(_ENCODER.encode(fields))


def has_table(connection: Connection, address: Address) -> bool:
    """Whether there is a table of the name."""
    return sqlalchemy.inspect(connection).has_table(*address.table)


def layout_of(connection: Connection, address: Address, unfit: type[ConstellationOtelError]) -> Layout:
    """Looks at a table that is there.

    Raises:
        ConstellationOtelError: It is no audit table, or the server's time zone is unknown; of the type ``unfit``.
    """
    dialect = address.dialect
    inspector = sqlalchemy.inspect(connection)
    found = {column["name"]: column for column in inspector.get_columns(*address.table)}
    wrong = []
    for name, column in GUIDE.items():
        if name not in found:
            wrong.append(f"{name} is missing")
        elif not can_hold(dialect, found[name]["type"], column.kinds):
            kinds = ", ".join(kind.__name__ for kind in column.kinds)
            wrong.append(f"{name} is {found[name]['type']!r}, not one of {kinds}")
    if wrong:
        message = (
            f"{address.name}: the table {address.table} is no audit table: {'; '.join(wrong)}. Make one that has what "
            "`constellation-otel schema` prints, or name another with ?table="
        )
        raise unfit(message)
    ours = [
        name for name, column in _OURS.items() if name in found and can_hold(dialect, found[name]["type"], column.kinds)
    ]
    written = [name for name in GUIDE if name != "id" and (name != "created_at" or "occurred_ns" in ours)] + ours
    table = sqlalchemy.table(
        address.table.name, *(sqlalchemy.column(name) for name in [*GUIDE, *ours]), schema=address.table.schema
    )
    insert = dialect.module.insert(table)
    if "event_id" in ours and _is_unique(inspector, address.table, "event_id"):
        insert = insert.on_conflict_do_nothing(index_elements=["event_id"])
    read = [column for column in table.columns if column.name != "created_at"]
    # as text, since Python has no infinite times, and none after the year 9999
    created_at = sqlalchemy.cast(table.columns["created_at"], types.Text).label("created_at")
    zone = address.zone
    if zone is None:
        name = str(connection.exec_driver_sql(dialect.timezone).scalar_one())
        zone = zone_of(name, f"{address.name}: the server's time zone", unfit)
    return Layout(
        insert=insert,
        select=sqlalchemy.select(*read, created_at),
        highest_id=sqlalchemy.select(sqlalchemy.func.coalesce(sqlalchemy.func.max(_ID), LOWEST_ID)).select_from(table),
        written=written,
        demands=[name for name, column in found.items() if name not in {"id", *written} and _is_demanded(column)],
        lengths={name: getattr(found[name]["type"], "length", None) for name in written if name != "event_type"},
        zone=zone,
        is_aware=bool(getattr(found["created_at"]["type"], "timezone", False)),
    )


def can_hold(dialect: Dialect, kind: TypeEngine[Any], kinds: tuple[type[TypeEngine[Any]], ...]) -> bool:
    """Whether a column's type will do; a type that SQLAlchemy does not know is the database's own business."""
    if not dialect.is_strict or isinstance(kind, types.NullType):
        return True
    length = getattr(kind, "length", None)
    return isinstance(kind, kinds) and (types.Uuid not in kinds or length is None or length >= _HEX_LENGTH)


def _is_demanded(column: ReflectedColumn) -> bool:
    has_value = column["default"] is not None or "identity" in column or "computed" in column
    return not (column["nullable"] or has_value)


def _is_unique(inspector: Inspector, table: Table, column: str) -> bool:
    """Whether ON CONFLICT finds a unique index on this one column; one on some of the rows will not do."""
    indexes = inspector.get_indexes(*table, include_auto_indexes=True)
    whole = [index for index in indexes if not any(name.endswith("_where") for name in index["dialect_options"])]
    unique = [index["column_names"] for index in whole if index["unique"]]
    return [column] in [*unique, inspector.get_pk_constraint(*table)["constrained_columns"]]


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
