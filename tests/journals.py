"""What tests of journals need: events with numbers, what is in a file, and programs in other processes."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from constellation_otel.delivery import Batch, Position
from constellation_otel.delivery.journal.rows import Gathered
from constellation_otel.events import Event, ExecutionCancelled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from constellation_otel.delivery import Restarted, Unreadable

EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
MODULE = UUID("b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538")
NS = 1_795_465_363_577_123_456
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def numbered(*numbers: int) -> list[Event]:
    """Events whose time is their number."""
    return [ExecutionCancelled(EXECUTION, f"dag-{number}", number) for number in numbers]


def numbers_of(items: Sequence[Batch | Unreadable | Restarted]) -> list[int]:
    """The numbers of the events that were read."""
    return [event.timestamp_ns for item in items if isinstance(item, Batch) for event in item.events]


def positions_of(items: Sequence[Batch | Unreadable | Restarted]) -> list[Position]:
    """Where everything is that was read."""
    return [at for item in items for at in (positions(*item.offsets) if isinstance(item, Batch) else [item.position])]


def positions(*offsets: int) -> list[Position]:
    return [Position(None, offset) for offset in offsets]


def offsets_in(path: Path) -> list[int]:
    """The offsets of the events in a journal's file."""
    offsets: list[int] = []
    for first, data in execute(path, "SELECT id, data FROM events ORDER BY id"):
        gathered = Gathered()
        gathered.add(first, data)
        offsets += [position.offset for position in positions_of(gathered.items)]
    return offsets


def execute(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    """Runs statements over a connection of their own, and answers the last one's rows."""
    rows: list[tuple[Any, ...]] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process's write transaction, which stays open."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


@contextmanager
def taken_away(path: Path) -> Iterator[None]:
    """A journal's file is elsewhere, so that nothing can be appended; it is put back at the end."""
    elsewhere = path.rename(path.with_name("elsewhere"))
    try:
        yield
    finally:
        elsewhere.rename(path)


def run(program: str, *arguments: object) -> list[str]:
    """Runs a program of a test's in an interpreter of its own, and answers its lines."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()
