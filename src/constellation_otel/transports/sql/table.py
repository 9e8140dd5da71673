"""The audit table: its DDL, what one that exists is like, events as rows and rows as events."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import sqlalchemy
from msgspec import Struct
from sqlalchemy import ColumnElement, Insert, Select, types
from sqlalchemy.dialects import postgresql

from constellation_otel.delivery import Position, Unreadable
from constellation_otel.errors import ConfigurationError, ConstellationOtelError, DecodeError
from constellation_otel.events import Event, Reading, clean_name, encode_identity, encode_json, read_json, shown
from constellation_otel.transports.sql.database import DIALECTS, Address, table_of, zone_of

if TYPE_CHECKING:
    from sqlalchemy import Connection, Inspector, RowMapping
    from sqlalchemy.engine.interfaces import ReflectedColumn
    from sqlalchemy.types import TypeEngine

    from constellation_otel.delivery import BatchBuilder
    from constellation_otel.transports.sql.database import Dialect, Table

__all__ = [
    "HIGHEST_ID",
    "LOWEST_ID",
    "OURS",
    "TABLE",
    "Layout",
    "has_table",
    "layout_of",
    "places_of",
    "schema_ddl",
    "statements",
]

TABLE: Final = "execution_audit"
LOWEST_ID: Final = -(2**63)
HIGHEST_ID: Final = 2**63 - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EVENT_ID: Final = b"constellation-otel/1/audit/"
_UUID_LENGTH: Final = 36
_HEX_LENGTH: Final = 32
_ID: Final = sqlalchemy.column("id", types.BigInteger)
_UUID_BYTES: Final = 16
_SHOWN: Final = 200
_NS_DIGITS: Final = 19
_URN: Final = "urn:uuid:"
_DIGITS: Final = "[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UUID: Final = re.compile(rf"(?:{_URN})?(?:(?P<digits>{_DIGITS})|\{{(?P<in_braces>{_DIGITS})\}})", re.IGNORECASE)
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
  tracestate    TEXT,
  engine_name   TEXT,
  execution_attributes TEXT,
  module_details TEXT,
  module_body   TEXT
)""",
    "CREATE INDEX IF NOT EXISTS {by_execution_id} ON {table}(execution_id)",
    "CREATE INDEX IF NOT EXISTS {by_dag_name} ON {table}(dag_name)",
)


class _Column(NamedTuple):
    """A column.

    Attributes:
        field: The field of the guide's JSON that it holds; ``None`` where it holds something else.
        kinds: What it may be in a database that is strict about types, or whatever holds the same Python values.
    """

    field: str | None
    kinds: tuple[type[TypeEngine[Any]], ...]


GUIDE: Final = {
    "id": _Column(None, (types.Integer,)),
    "event_type": _Column("eventType", (types.String,)),
    "execution_id": _Column("executionId", (types.Uuid, types.String)),
    "dag_name": _Column("dagName", (types.String,)),
    "module_name": _Column("moduleName", (types.String,)),
    "duration_ms": _Column("durationMs", (types.Integer, types.Numeric, types.Float)),
    "succeeded": _Column("succeeded", (types.Boolean,)),
    "error_message": _Column("error", (types.String,)),
    "created_at": _Column(None, (types.DateTime,)),
}
"""The guide's columns."""

OURS: Final = {
    "event_id": _Column(None, (types.Uuid, types.String)),
    "module_id": _Column("moduleId", (types.Uuid, types.String)),
    "error_type": _Column("errorType", (types.String,)),
    "occurred_ns": _Column("timestampNs", (types.BigInteger, types.Numeric)),
    "duration_ns": _Column("durationNs", (types.BigInteger, types.Numeric)),
    "traceparent": _Column("traceparent", (types.String,)),
    "tracestate": _Column("tracestate", (types.String,)),
    "engine_name": _Column("engine", (types.String,)),
    "execution_attributes": _Column("attributes", (types.String,)),
    "module_details": _Column("details", (types.String,)),
    "module_body": _Column("body", (types.String,)),
}
"""Our columns; one that is something else in a table is left alone."""

_FIELDS: Final = {name: column.field for name, column in {**GUIDE, **OURS}.items() if column.field is not None}
_UUIDS: Final = [name for name, column in {**GUIDE, **OURS}.items() if types.Uuid in column.kinds]
_TEXTS: Final = [name for name, column in {**GUIDE, **OURS}.items() if types.String in column.kinds]
_NAMES: Final = [name for name in _TEXTS if name not in _UUIDS]
_NS: Final = [name for name, column in {**GUIDE, **OURS}.items() if types.BigInteger in column.kinds]
_TRACE_CONTEXT: Final = ("traceparent", "tracestate")
_JSON: Final = ("execution_attributes", "module_details", "module_body")
"""Columns that hold JSON as text, which is of no use when cut."""


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


def schema_ddl(dialect: Literal["postgresql", "sqlite"], table: str = TABLE) -> str:
    """The statements that make the table which ``SqlSink`` makes where there is none.

    The guide's columns and indexes, and then ours. Running them again changes nothing.

    Args:
        dialect: The database's kind, as its URL begins.
        table: The table's name, or ``schema.name``.

    Raises:
        ConfigurationError: There is no such dialect, or a table cannot have the name.
    """
    if dialect not in DIALECTS:
        message = f"{dialect!r} is none of {', '.join(DIALECTS)}"
        raise ConfigurationError(message)
    kind = DIALECTS[dialect]
    return "".join(f"{statement};\n" for statement in statements(kind, table_of(table, kind)))


def places_of(url: str) -> set[tuple[object, ...]]:
    """The table in its file, or at each host that a URL names: two URLs of one table have one in common.

    Raises:
        ConfigurationError: The URL cannot be used.
    """
    return Address(url, TABLE, None).places


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
        execution_is: Whether a row is of an execution, however its id is spelled.
    """

    insert: Insert
    select: Select[Any]
    highest_id: Select[Any]
    written: Sequence[str]
    demands: Sequence[str]
    lengths: Mapping[str, int | None]
    zone: ZoneInfo
    is_aware: bool
    execution_is: Callable[[UUID], ColumnElement[bool]]

    def row_of(self, event: Event) -> dict[str, object]:
        """The row of an event."""
        content = encode_json(event)
        fields = msgspec.json.decode(content)
        for column in _JSON:
            field = OURS[column].field
            if field in fields:
                text, length = _ENCODER.encode(fields[field]).decode(), self.lengths.get(column)
                fields[field] = text if length is None or len(text) <= length else None
        row: dict[str, Any] = {column: fields.get(field) for column, field in _FIELDS.items()}
        row["event_id"] = str(UUID(bytes=blake2b(_EVENT_ID + encode_identity(event), digest_size=16).digest()))
        at = (_EPOCH + timedelta(microseconds=event.timestamp_ns // 1000)).astimezone(self.zone)
        row["created_at"] = (at if self.is_aware else at.replace(tzinfo=None)).isoformat(" ", "microseconds")
        # of the texts, these two come as a wire brought them, and are of no use when cut
        for column in _TRACE_CONTEXT:
            text = clean_name(row[column]) if row[column] else ""
            row[column] = text if 0 < len(text) <= (self.lengths.get(column) or len(text)) else None
        return {column: self._value_of(column, row[column]) for column in self.written}

    def page(self, ranges: Sequence[tuple[int, int]], execution_id: UUID | None, limit: int) -> Select[Any]:
        """Selects rows by their ids, in their order.

        Args:
            ranges: The lowest and the highest id of each part.
            execution_id: Only the rows of this execution.
            limit: Rows, at most.
        """
        page = self.select.where(sqlalchemy.or_(*(_ID.between(*ids) for ids in ranges))).order_by(_ID).limit(limit)
        return page if execution_id is None else page.where(self.execution_is(execution_id))

    def read(self, row: RowMapping, gathered: BatchBuilder) -> None:
        """Adds the event that a row is; one that is none is unreadable, and given as JSON."""
        try:
            event, corrected = self._reading_of(row)
        except DecodeError as error:
            data = _ENCODER.encode({name: _shown(value) for name, value in row.items()})
            gathered.put(Unreadable(data, str(error), Position(None, row["id"])))
        else:
            gathered.add(event, row["id"], None, corrected)

    def _value_of(self, column: str, value: Any) -> object:
        """A value as the column holds it: texts are cut, and a UUID is 32 digits where there is no room for more."""
        if not isinstance(value, str):
            return value
        length = self.lengths.get(column)
        if column in _UUIDS and length is not None and length < _UUID_LENGTH:
            return value.replace("-", "")
        return value[:length]

    def _reading_of(self, row: RowMapping) -> Reading:
        corrected: list[str] = []
        fields: dict[str, Any] = {"eventType": None, "executionId": None}
        for column, value in row.items():
            if value is None or column not in _READ:
                continue
            field, read = _READ[column]
            try:
                fields[field] = read(value)
            except (ValueError, ArithmeticError):
                if _is_needed(column, _text_of(row["event_type"])):
                    # for the decoder to refuse
                    fields[field] = value
                else:
                    corrected.append(f"{column} is {shown(value)}, which cannot be read")
        if "timestampNs" not in fields:
            fields["timestampNs"] = _timestamp_ns_of(_text_of(row["created_at"]), self.zone)
        event, more = read_json(_ENCODER.encode(fields))
        return Reading(event, (*corrected, *more))


def has_table(connection: Connection, address: Address) -> bool:
    """Whether there is a table of the name."""
    return sqlalchemy.inspect(connection).has_table(*address.table)


def layout_of(connection: Connection, address: Address, unfit: type[ConstellationOtelError]) -> Layout:
    """Looks at a table that is there.

    Raises:
        ConstellationOtelError: It is not an audit table, or the server's time zone is unknown; of the type ``unfit``.
    """
    dialect = address.dialect
    inspector = sqlalchemy.inspect(connection)
    found = {column["name"]: column for column in inspector.get_columns(*address.table)}
    kinds = {name: base_of(column["type"]) for name, column in found.items()}
    wrong = []
    for name, column in GUIDE.items():
        if name not in found:
            wrong.append(f"{name} is missing")
        elif not can_hold(dialect, kinds[name], column.kinds):
            wanted = ", ".join(kind.__name__ for kind in column.kinds)
            wrong.append(f"{name} is {found[name]['type']!r}, not one of {wanted}")
    if wrong:
        message = (
            f"{address.name}: the table {address.table} is not an audit table: {'; '.join(wrong)}; make one that has "
            "what `constellation-otel schema` prints, or name another with ?table="
        )
        raise unfit(message)
    ours = [name for name, column in OURS.items() if name in found and can_hold(dialect, kinds[name], column.kinds)]
    written = [name for name in GUIDE if name != "id" and (name != "created_at" or "occurred_ns" in ours)] + ours
    table = sqlalchemy.table(
        address.table.name, *(sqlalchemy.column(name) for name in [*GUIDE, *ours]), schema=address.table.schema
    )
    insert = dialect.module.insert(table)
    if "event_id" in ours and _is_unique(inspector, address.table, "event_id"):
        insert = insert.on_conflict_do_nothing(index_elements=["event_id"])
    zone = address.zone
    if zone is None:
        server = str(connection.exec_driver_sql(dialect.timezone).scalar_one())
        zone = zone_of(server, f"{address.name}: the server's time zone", unfit)
    return Layout(
        insert=insert,
        select=sqlalchemy.select(*(_selected(dialect, column, kinds[column.name]) for column in table.columns)),
        # SQLite may have texts there, too
        highest_id=sqlalchemy.select(sqlalchemy.func.coalesce(sqlalchemy.func.max(_ID), LOWEST_ID))
        .select_from(table)
        .where(_ID.between(LOWEST_ID, HIGHEST_ID)),
        written=written,
        demands=[
            *(name for name, column in found.items() if name not in {"id", *written} and _is_demanded(column)),
            *([] if dialect.is_strict or _is_numbered(connection, inspector, address.table, found["id"]) else ["id"]),
        ],
        lengths={name: _length_of(kinds[name]) for name in written if name != "event_type"},
        zone=zone,
        is_aware=bool(getattr(kinds["created_at"], "timezone", False)),
        execution_is=finder(dialect, kinds["execution_id"]),
    )


def can_hold(dialect: Dialect, kind: TypeEngine[Any], kinds: tuple[type[TypeEngine[Any]], ...]) -> bool:
    """Whether a column's type will do: one of some kinds, or another that holds the same Python values.

    A type that SQLAlchemy does not know is the database's own business.
    """
    if not dialect.is_strict:
        # of what SQLite holds in any column, REAL rounds nanoseconds
        return types.BigInteger not in kinds or _python_type(kind) is not float
    if isinstance(kind, types.NullType):
        return True
    # what PostgreSQL calls "char" and name, which cut without a word
    if _python_type(kind) not in {_python_type(wanted()) for wanted in kinds} or type(kind) is types.String:
        return False
    if types.Uuid in kinds:
        length = _length_of(kind)
        return length is None or length >= _HEX_LENGTH
    return types.BigInteger not in kinds or _has_room_for_ns(kind)


def base_of(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """What a domain is made of; another type is itself."""
    while isinstance(kind, postgresql.DOMAIN):
        kind = kind.data_type
    return kind


def _python_type(kind: TypeEngine[Any]) -> type:
    try:
        return kind.python_type
    except NotImplementedError:
        return object


def _length_of(kind: TypeEngine[Any]) -> int | None:
    """Characters that there is room for; an enum has its labels, and what is cut is none of them."""
    return None if isinstance(kind, types.Enum) else getattr(kind, "length", None)


def _has_room_for_ns(kind: TypeEngine[Any]) -> bool:
    if isinstance(kind, types.Integer):
        return isinstance(kind, types.BigInteger)
    precision: int | None = getattr(kind, "precision", None)
    scale: int = getattr(kind, "scale", None) or 0
    return precision is None or (scale >= 0 and precision - scale >= _NS_DIGITS)


def _selected(dialect: Dialect, column: ColumnElement[Any], kind: TypeEngine[Any]) -> ColumnElement[Any]:
    """A column as it is read.

    In PostgreSQL what is neither a number nor a boolean is read as text: without the blanks that CHAR
    is filled up with, and times as they are, since Python has no infinite ones, and none after
    the year 9999. SQLite tells what each value is; only a column of a number's type, as it takes
    STRING for, has made numbers of those texts that look like one.
    """
    name = str(column.key)
    is_text = name in {*_TEXTS, "created_at"} if dialect.is_strict else name in _NAMES and _is_number(kind)
    return sqlalchemy.cast(column, types.Text).label(name) if is_text else column


def _is_number(kind: TypeEngine[Any]) -> bool:
    return _python_type(kind) in {int, float, Decimal}


def _is_numbered(connection: Connection, inspector: Inspector, table: Table, column: ReflectedColumn) -> bool:
    """Whether SQLite gives each row of a table a number as its id; of a view that is its trigger's business."""
    if column["default"] is not None or table.name in inspector.get_view_names():
        return True
    # INTEGER to the letter: with any other type, a primary key may be null, and is
    keys = connection.exec_driver_sql("SELECT name, upper(type) FROM pragma_table_info(?) WHERE pk", (table.name,))
    return [tuple(key) for key in keys] == [("id", "INTEGER")]


def finder(dialect: Dialect, kind: TypeEngine[Any]) -> Callable[[UUID], ColumnElement[bool]]:
    """What finds the rows of an execution, by the type of ``execution_id``."""
    if not dialect.is_strict:
        return _is_stored
    return _is_uuid if _python_type(kind) is UUID else _is_spelled


def _is_uuid(execution_id: UUID) -> ColumnElement[bool]:
    """Whether a column of PostgreSQL's own type has this id."""
    column = _execution_id()
    # without a type: PostgreSQL takes the text for what the column is
    return column == sqlalchemy.literal(str(execution_id), types.NullType())


def _is_spelled(execution_id: UUID) -> ColumnElement[bool]:
    """Whether a column has this id as text, in one of the spellings that :func:`_read_uuid` reads."""
    forms = (str(execution_id), execution_id.hex)
    spellings = [prefix + form for form in (*forms, *(f"{{{form}}}" for form in forms)) for prefix in ("", _URN)]
    return sqlalchemy.func.lower(sqlalchemy.cast(_execution_id(), types.Text)).in_(spellings)


def _is_stored(execution_id: UUID) -> ColumnElement[bool]:
    """Whether a column of SQLite has this id, as text or as its bytes."""
    column = _execution_id()
    return _is_spelled(execution_id) | (column == sqlalchemy.literal(execution_id.bytes, types.LargeBinary))


def _execution_id() -> ColumnElement[Any]:
    return sqlalchemy.column("execution_id")


def _is_demanded(column: ReflectedColumn) -> bool:
    has_value = column["default"] is not None or "identity" in column or "computed" in column
    return not (column["nullable"] or has_value)


def _is_unique(inspector: Inspector, table: Table, column: str) -> bool:
    """Whether ON CONFLICT finds a unique index on this one column; one on some of the rows will not do."""
    indexes = inspector.get_indexes(*table, include_auto_indexes=True)
    whole = [index for index in indexes if not any(name.endswith("_where") for name in index["dialect_options"])]
    unique = [index["column_names"] for index in whole if index["unique"]]
    return [column] in [*unique, inspector.get_pk_constraint(*table)["constrained_columns"]]


def _is_needed(column: str, event_type: object) -> bool:
    """Whether an event of a type has to have what a column holds."""
    is_execution = str(event_type).startswith("execution.")
    return column in {"event_type", "execution_id", "dag_name" if is_execution else "module_name"} or (
        column == "succeeded" and event_type == "execution.completed"
    )


def _text_of(value: object) -> object:
    """A value without bytes, which SQLite keeps where it is given them."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _shown(value: object) -> object:
    """A value that JSON has."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return str(value) if isinstance(value, float | Decimal) and not isfinite(value) else value


def _read_text(value: object) -> str:
    text = _text_of(value)
    if not isinstance(text, str):
        message = "it is not a text"
        raise ValueError(message)  # noqa: TRY004 - what is in a row is a value, whatever its type
    return text


def _read_uuid(value: object) -> str:
    """Digits of either case, with hyphens where they belong or without, in braces or not, after urn:uuid: or not."""
    if isinstance(value, bytes) and len(value) == _UUID_BYTES:
        return value.hex()
    found = _UUID.fullmatch(_read_text(value))
    if found is None:
        message = "it is not a UUID"
        raise ValueError(message)
    return found["in_braces"] or found["digits"]


def _read_duration(value: Any) -> float:
    duration = float(value)
    if not isfinite(duration):
        message = "it is not a length of time"
        raise ValueError(message)
    return duration


def _read_ns(value: Any) -> int:
    """Whole nanoseconds, exactly."""
    ns = value if isinstance(value, int) else Decimal(_text_of(value))  # type: ignore[arg-type] # refuses what is none
    if not 0 <= ns <= HIGHEST_ID:
        message = "it is not within 0 and 2**63 - 1"
        raise ValueError(message)
    return int(ns)


def _read_succeeded(value: object) -> bool:
    # SQLite has no booleans
    text = _text_of(value)
    succeeded = _BOOLEANS.get(text.lower() if isinstance(text, str) else text)
    if succeeded is None:
        message = "it is neither true nor false"
        raise ValueError(message)
    return succeeded


_BOOLEANS: Final[dict[object, bool]] = {
    0: False,
    1: True,
    "false": False,
    "true": True,
    "f": False,
    "t": True,
    "0": False,
    "1": True,
}


def _read_json(value: object) -> object:
    try:
        return msgspec.json.decode(_read_text(value))
    except (msgspec.MsgspecError, RecursionError) as error:
        message = "it is not JSON"
        raise ValueError(message) from error


_READERS: Final[dict[str, Callable[[Any], object]]] = {
    **dict.fromkeys(_TEXTS, _read_text),
    **dict.fromkeys(_UUIDS, _read_uuid),
    **dict.fromkeys(_NS, _read_ns),
    **dict.fromkeys(_JSON, _read_json),
    "duration_ms": _read_duration,
    "succeeded": _read_succeeded,
}
_READ: Final = {column: (field, _READERS[column]) for column, field in _FIELDS.items()}
"""The field that a column is, and what reads it, or raises ValueError or ArithmeticError where the value is none."""


def _timestamp_ns_of(created_at: object, zone: ZoneInfo) -> int:
    """Epoch nanoseconds of a local time in ISO 8601, or of one with an offset.

    Raises:
        DecodeError: It is none.
    """
    number = _number_in(created_at)
    if number is not None:
        message = (
            f"not an event: created_at is {created_at!r}, a number, as of {_unit_of(number)} since 1970, which is not "
            "an ISO 8601 time; write it as 2026-03-29 00:00:00, or nanoseconds into a column occurred_ns"
        )
        raise DecodeError(message)
    if not isinstance(created_at, str):
        message = f"not an event: created_at is {created_at!r}, which is not an ISO 8601 time"
        raise DecodeError(message)
    try:
        at = datetime.fromisoformat(created_at)
        since = (at if at.tzinfo is not None else at.replace(tzinfo=zone)) - _EPOCH
    except (ValueError, OverflowError) as error:
        message = f"not an event: created_at is {created_at!r}, which is not an ISO 8601 time: {error}"
        raise DecodeError(message) from None
    return (since // timedelta(microseconds=1)) * 1000


def _number_in(created_at: object) -> float | None:
    if isinstance(created_at, str):
        return float(created_at) if _NUMBER.fullmatch(created_at) else None
    return created_at if isinstance(created_at, int | float) else None


def _unit_of(number: float) -> str:
    """What a time since 1970 is likely to be counted in: each unit's numbers have three digits more."""
    return next((unit for unit, limit in _UNITS if abs(number) < limit), "nanoseconds")


_NUMBER: Final = re.compile(r"-?\d{9,}(\.\d*)?")
_UNITS: Final = (("seconds", 1e11), ("milliseconds", 1e14), ("microseconds", 1e17))
