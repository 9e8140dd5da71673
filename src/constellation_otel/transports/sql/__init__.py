"""SQL: the guide's audit table, in PostgreSQL and SQLite."""

from __future__ import annotations

from constellation_otel.errors import MissingExtraError

try:
    import sqlalchemy  # noqa: F401 - everything here needs it
except ModuleNotFoundError as error:
    raise MissingExtraError("sqlalchemy", "sql") from error

from constellation_otel.transports.sql.looking import AuditTable, look_at
from constellation_otel.transports.sql.sink import SqlAuditListener, SqlSink
from constellation_otel.transports.sql.source import SqlSource
from constellation_otel.transports.sql.table import places_of, schema_ddl

__all__ = [
    "AuditTable",
    "SqlAuditListener",
    "SqlSink",
    "SqlSource",
    "look_at",
    "places_of",
    "schema_ddl",
    "sink_of",
    "source_of",
]

source_of = SqlSource.from_url
sink_of = SqlSink.from_url
