"""SQL: the guide's audit table, in PostgreSQL and SQLite."""

from __future__ import annotations

from constellation_otel.transports.sql.sql import SqlAuditListener, SqlSink, SqlSource, places_of_table, schema_ddl

__all__ = [
    "SqlAuditListener",
    "SqlSink",
    "SqlSource",
    "places_of_table",
    "schema_ddl",
]
