"""Rows as the guide's own listener writes them, and the spans that have to become of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID, uuid4

import psycopg
from msgspec.structs import replace
from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel import span_id_of, trace_id_of
from constellation_otel.traces import Span, SpanEvent
from constellation_otel.traces.ids import anonymous_module_id

if TYPE_CHECKING:
    from contextlib import ExitStack

    from constellation_otel.traces import AttributeValue

MS = 1_000_000
INSERT = """
INSERT INTO execution_audit (event_type, execution_id, dag_name, module_name, duration_ms, succeeded, error_message)
VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING id
"""

WORDS, FETCHES, PHOTOS, LOSSY, CANCELLED, QUICK = (uuid4() for _ in range(6))
DAGS = {WORDS: "words", FETCHES: "fetches", PHOTOS: "photos", LOSSY: "lossy", CANCELLED: "cancelled", QUICK: "quick"}

Row: TypeAlias = tuple[str, UUID, str | None, str | None, int | None, bool | None, str | None]


def started(execution: UUID) -> Row:
    return "execution.started", execution, DAGS[execution], None, None, None, None


def module_started(execution: UUID, module: str) -> Row:
    return "module.started", execution, None, module, None, None, None


def module_completed(execution: UUID, module: str, duration_ms: int) -> Row:
    return "module.completed", execution, None, module, duration_ms, True, None


def module_failed(execution: UUID, module: str, error: str) -> Row:
    return "module.failed", execution, None, module, None, False, error


def completed(execution: UUID, duration_ms: int, *, succeeded: bool = True) -> Row:
    return "execution.completed", execution, DAGS[execution], None, duration_ms, succeeded, None


class Transaction:
    """A row that is inserted and not committed yet."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], row: Row) -> None:
        self._connection = connection
        self.id = inserted(connection, row)

    def commit(self) -> None:
        self._connection.commit()

    def roll_back(self) -> None:
        self._connection.rollback()


class Listener:
    """Writes rows as the guide's listener does: each in a transaction of its own, from a pool of connections."""

    def __init__(self, url: str, stack: ExitStack, **settings: str) -> None:
        self._url = url
        self._stack = stack
        self._settings = settings
        self._connection = self._connect(autocommit=True)

    def write(self, *rows: Row) -> list[int]:
        """One after the other, so that their times are in this order; their ids."""
        return [inserted(self._connection, row) for row in rows]

    def begin(self, row: Row) -> Transaction:
        return Transaction(self._connect(autocommit=False), row)

    def _connect(self, *, autocommit: bool) -> psycopg.Connection[tuple[Any, ...]]:
        options = " ".join(f"-c {name}={value}" for name, value in self._settings.items())
        connection = psycopg.connect(self._url, autocommit=autocommit, connect_timeout=20, options=options)
        self._stack.callback(connection.close)
        return connection


def inserted(connection: psycopg.Connection[tuple[Any, ...]], row: Row) -> int:
    answer = connection.execute(INSERT, row).fetchone()
    assert answer is not None
    return int(answer[0])


def module(
    execution: UUID, name: str, occurrence: int, start_ns: int, end_ns: int, *, error: str | None = None
) -> Span:
    """A module's span, its times as they have to be; without an error it has succeeded."""
    outcome = "success" if error is None else "failure"
    attributes: dict[str, AttributeValue] = {
        "constellation.execution.id": str(execution),
        "constellation.dag.name": DAGS[execution],
        "constellation.module.name": name,
        "constellation.outcome": outcome,
    }
    status = StatusCode.UNSET
    events: tuple[SpanEvent, ...] = ()
    if error is not None:
        attributes["error.type"] = "_OTHER"
        status = StatusCode.ERROR
        # of what type, the guide's listener does not say
        events = (SpanEvent("exception", end_ns, {"exception.message": error}),)
    return Span(
        trace_id_of(execution),
        span_id_of(execution, anonymous_module_id(execution, name, occurrence)),
        span_id_of(execution),
        "",
        0,
        name,
        SpanKind.INTERNAL,
        start_ns,
        end_ns,
        attributes,
        status,
        error,
        events,
    )


def whole(
    execution: UUID, duration_ms: int | None, begun_ns: int, *modules: Span, failed: str | None = None
) -> list[Span]:
    """An execution's span and those of its modules, which it holds; `failed` says which module did, and why."""
    start_ns = min(begun_ns, *(module.start_ns for module in modules))
    end_ns = max(begun_ns + (duration_ms or 0) * MS, *(module.end_ns for module in modules))
    attributes: dict[str, AttributeValue] = {
        "constellation.execution.id": str(execution),
        "constellation.dag.name": DAGS[execution],
        "constellation.outcome": "success" if failed is None else "failure",
    }
    if failed is not None:
        attributes["error.type"] = "_OTHER"
    if duration_ms is not None and end_ns - start_ns != duration_ms * MS:
        attributes["constellation.reported_duration_ms"] = float(duration_ms)
    own = Span(
        trace_id_of(execution),
        span_id_of(execution),
        None,
        "",
        0,
        DAGS[execution],
        SpanKind.SERVER,
        start_ns,
        end_ns,
        attributes,
        StatusCode.UNSET if failed is None else StatusCode.ERROR,
        failed,
    )
    return [own, *modules]


def with_attributes(span: Span, more: dict[str, AttributeValue]) -> Span:
    return replace(span, attributes=span.attributes | more)
