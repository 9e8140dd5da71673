"""A SQLite file with an audit table, and events for it."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any
from uuid import UUID

from hypothesis import strategies as st

from constellation_otel.delivery import Record, SourceItem, Unreadable
from constellation_otel.events import (
    Event,
    ExecutionStarted,
)
from constellation_otel.transports.sql import SqlSink, SqlSource
from deliveries import flat
from sql_events import NS
from strategies import any_event
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


GUIDE_TABLE = """
CREATE TABLE execution_audit (
  id            INTEGER PRIMARY KEY AUTOINCREMENT,
  event_type    VARCHAR(50) NOT NULL,
  execution_id  CHAR(36) NOT NULL,
  dag_name      VARCHAR(255),
  module_name   VARCHAR(255),
  duration_ms   BIGINT,
  succeeded     BOOLEAN,
  error_message TEXT,
  created_at    TIMESTAMP DEFAULT CURRENT_TIMESTAMP
)
"""


class Database:
    """A SQLite file, and what is opened on it: all of it closed at the end."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.url = f"sqlite:///{file}"
        self.opened: list[SqlSink | SqlSource] = []

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """Runs statements by the standard library; returns what the last one gave."""
        with closing(sqlite3.connect(self.file, timeout=DEADLINE)) as connection:
            rows: list[tuple[Any, ...]] = []
            for statement in statements:
                rows = connection.execute(statement).fetchall()
            connection.commit()
            return rows

    def sink(self, parameters: str = "", **options: Any) -> SqlSink:
        sink = SqlSink(self.url + parameters, **options)
        self.opened.append(sink)
        return sink

    def source(self, parameters: str = "", **options: Any) -> SqlSource:
        source = SqlSource(self.url + parameters, **options)
        self.opened.append(source)
        return source

    def events(self) -> list[Event]:
        return [item.event for item in read_all(self.source()) if isinstance(item, Record)]


def read_all(source: SqlSource) -> list[Record | Unreadable]:
    items: list[Record | Unreadable] = []
    while not source.has_ended:
        items += flat(source.read(DEADLINE))
    return items


def started(number: int) -> ExecutionStarted:
    return ExecutionStarted(UUID(int=number), f"dag-{number}", NS + number)


def insert_ids(*ids: int) -> str:
    rows = ", ".join(
        f"({number}, 'execution.started', '{UUID(int=abs(number))}', 'dag-{number}', '2026-03-29 00:00:00')"
        for number in ids
    )
    return f"INSERT INTO execution_audit (id, event_type, execution_id, dag_name, created_at) VALUES {rows}"


def offsets(items: Sequence[SourceItem]) -> list[int]:
    return [item.position.offset for item in flat(items)]


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


texts = st.text(max_size=250)


lengths = st.none() | st.floats(min_value=0, max_value=1e12, allow_nan=False) | st.just(float("nan"))


events = any_event(texts, lengths, tracestates=st.just("a=1,b=2"))


def run(function: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    return thread, results
