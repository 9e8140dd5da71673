"""Databases of a real PostgreSQL, and what tests put into an audit table by hand."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg

from constellation_otel.delivery import Record, Unreadable
from constellation_otel.events import Event, ExecutionStarted
from constellation_otel.transports.sql import SqlSink, SqlSource
from deliveries import flat
from sql_events import NS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .peers import Postgres

TIMEOUT = 30.0
BERLIN = "Europe/Berlin"
GUIDE_DDL = """
CREATE TABLE execution_audit (
  id            SERIAL PRIMARY KEY,
  event_type    VARCHAR(50) NOT NULL,
  execution_id  UUID NOT NULL,
  dag_name      VARCHAR(255),
  module_name   VARCHAR(255),
  duration_ms   BIGINT,
  succeeded     BOOLEAN,
  error_message TEXT,
  created_at    TIMESTAMP DEFAULT NOW()
);

CREATE INDEX idx_audit_execution_id ON execution_audit(execution_id);
CREATE INDEX idx_audit_dag_name ON execution_audit(dag_name);
"""
"""The audit table as the guide has it."""


class Database:
    """A database of its own for one test, and what is opened on it: all of it closed at the end."""

    def __init__(self, postgres: Postgres, name: str) -> None:
        self.postgres = postgres
        self.name = name
        self.url = postgres.url(name)
        self.opened: list[SqlSink | SqlSource] = []

    def psql(self, script: str) -> str:
        return self.postgres.psql(script, database=self.name)

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A session of somebody else's, with a transaction open from its first statement on."""
        connection = psycopg.connect(self.url, connect_timeout=10)
        try:
            yield connection
        finally:
            connection.close()

    def sink(self, parameters: str = "") -> SqlSink:
        sink = SqlSink(self.url + parameters)
        self.opened.append(sink)
        return sink

    def source(self, parameters: str = "", **options: Any) -> SqlSource:
        source = SqlSource(self.url + parameters, **options)
        self.opened.append(source)
        return source

    def items(self, parameters: str = "", **options: Any) -> list[Record | Unreadable]:
        source = self.source(parameters, **options)
        items: list[Record | Unreadable] = []
        while not source.has_ended:
            items.extend(flat(source.read(TIMEOUT)))
        return items

    def events(self, parameters: str = "", **options: Any) -> list[Event]:
        return [item.event for item in self.items(parameters, **options) if isinstance(item, Record)]


def started(number: int) -> ExecutionStarted:
    return ExecutionStarted(UUID(int=number), f"dag-{number}", NS + number)


def insert(number: int) -> str:
    return (
        "INSERT INTO execution_audit (event_type, execution_id, dag_name)"
        f" VALUES ('execution.started', '{UUID(int=number)}', 'dag-{number}')"
    )


def offsets(items: Sequence[Record | Unreadable]) -> list[int]:
    return [item.position.offset for item in items]
