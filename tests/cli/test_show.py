"""``constellation-otel show`` and ``schema``, run as a user runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from commands import command, events_of
from constellation_otel import trace_id_of
from constellation_otel.transports.journal import Journal
from constellation_otel.transports.jsonl import JsonlSink
from constellation_otel.transports.sql import SqlSink
from support import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", ["jsonl", "sqlite", "journal"])
def test_an_execution_is_shown_from_any_source(tmp_path: Path, kind: str) -> None:
    events = events_of(1, 2)
    path = tmp_path / "events"
    url = f"{kind}:{path}"
    if kind == "jsonl":
        sink = JsonlSink(path)
        sink.send(events, DEADLINE)
        sink.close()
    elif kind == "sqlite":
        url = f"sqlite:///{path}"
        audit = SqlSink(url)
        audit.send(events, DEADLINE)
        audit.close()
    else:
        journal = Journal(path, sinks=["otlp"])
        journal.append(events)
        journal.close()
    done = command("show", str(UUID(int=2)), "--from", url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == [
        "dag-2 · success · 4 ms · 2 spans",
        f"trace {trace_id_of(UUID(int=2)):032x}",
    ]
    absent = command("show", str(UUID(int=7)), "--from", url)
    assert (absent.returncode, absent.stdout) == (1, "")
    assert absent.stderr == f"constellation-otel show: no event of execution {UUID(int=7)}; check the id and --from\n"


@pytest.mark.parametrize(
    ("url", "table"),
    [
        ("postgresql://host/db", "execution_audit"),
        ("sqlite:///file?table=mine", "mine"),
        ("postgresql:", "execution_audit"),
        ("sqlite:?table=mine", "mine"),
        ("postgresql://[x", "execution_audit"),
    ],
)
def test_the_schema_is_printed_for_the_database_of_a_url(url: str, table: str) -> None:
    done = command("schema", url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"CREATE TABLE IF NOT EXISTS {table} (\n")
