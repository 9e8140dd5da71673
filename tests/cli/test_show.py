"""``constellation-otel show`` and ``schema``, run as a user runs them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from commands import command, events_of
from constellation_otel import trace_id_of
from constellation_otel.events import encode_json
from constellation_otel.transports.journal import Journal
from constellation_otel.transports.jsonl import JsonlSink
from constellation_otel.transports.sql import SqlSink
from deliveries import MS, T0, execution
from support import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path

    from constellation_otel.events import Event


KINDS = pytest.mark.parametrize("kind", ["jsonl", "sqlite", "journal"])
COMPLAINT = "constellation-otel show: "


def source_with(kind: str, path: Path, events: list[Event]) -> str:
    """Writes events to a file of some kind; returns its URL as a source."""
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
    return url


@KINDS
def test_an_execution_is_shown_from_any_source(tmp_path: Path, kind: str) -> None:
    url = source_with(kind, tmp_path / "events", events_of(1, 2))
    done = command("show", str(UUID(int=2)), "--from", url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == [
        "dag-2 · success · 4 ms · 2 spans",
        f"trace {trace_id_of(UUID(int=2)):032x}",
    ]
    absent = command("show", str(UUID(int=7)), "--from", url)
    assert (absent.returncode, absent.stdout) == (1, "")
    assert absent.stderr == f"{COMPLAINT}no event of execution {UUID(int=7)}; check the id and --from\n"


@KINDS
def test_without_an_id_executions_are_listed_from_any_source(tmp_path: Path, kind: str) -> None:
    """Each is then shown by the id in its line."""
    old = [event for number in (1, 2) for event in execution(number, start_ns=T0 + number * MS)]
    new = execution(3, fails=True, start_ns=time.time_ns() - 60_000 * MS)
    url = source_with(kind, tmp_path / "events", [*old, *new])

    def listed(*options: str) -> list[str]:
        done = command("show", "--from", url, *options)
        assert (done.returncode, done.stderr) == (0, "")
        heading, *rows = done.stdout.splitlines()
        assert heading.split() == ["OUTCOME", "STARTED", "(UTC)", "DURATION", "MODULES", "EXECUTION", "DAG"]
        return [row.split()[-1] for row in rows]

    assert listed() == ["dag-3", "dag-2", "dag-1"]
    assert listed("--dag", "dag-2") == ["dag-2"]
    assert listed("--outcome", "failure") == ["dag-3"]
    assert listed("--slower-than", "3.9ms") == ["dag-3", "dag-2", "dag-1"]
    assert listed("--since", "1h") == listed("--since", datetime.now(UTC).date().isoformat()) == ["dag-3"]
    done = command("show", "--from", url, "--limit", "1")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    assert done.stderr == f"{COMPLAINT}2 older ones are left out; see --limit\n"
    shown = command("show", done.stdout.split()[-2], "--from", url)
    assert shown.stdout.startswith("dag-3 · failure · 4 ms · 2 spans\n")


def test_a_list_of_nothing_says_what_to_check(tmp_path: Path) -> None:
    url = source_with("jsonl", tmp_path / "events", events_of(1))
    done = command("show", "--from", url, "--slower-than", "4ms")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{COMPLAINT}no such execution; check the filters and --from\n"
    done = command("show", "--from", source_with("jsonl", tmp_path / "empty", []), "--limit", "3")
    assert (done.returncode, done.stderr) == (1, f"{COMPLAINT}no such execution; check --from\n")


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_text("no event\nnor this\n")
    with path.open("ab") as file:
        file.write(b"".join(encode_json(event) + b"\n" for event in events_of(1)))
    done = command("show", "--from", f"jsonl:{path}")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    assert done.stderr.startswith(f"jsonl:{path}: unreadable records are left out: 2, the first at 0: ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--since", "yesterday"], "'yesterday' is not an ISO 8601 time"),
        (["--since", "9999999d"], "'9999999d' is before the year 1"),
        (["--slower-than", "fast"], "'fast' is not a length of time, e.g. 500ms, 2s, 1.5m, 1h or 2d"),
        (["--outcome", "odd"], "'odd' is not one of"),
        (["--limit", "0"], "0 is not in the range"),
        ([str(UUID(int=1)), "--dag", "x"], "are for the list; leave them or the UUID out"),
    ],
)
def test_what_a_list_cannot_use_is_wrong_usage(options: list[str], said: str) -> None:
    done = command("show", "--from", "jsonl:/nowhere", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@KINDS
def test_a_page_is_written_from_any_source(tmp_path: Path, kind: str) -> None:
    """What was in the file is replaced, but not where there is nothing to write."""
    url = source_with(kind, tmp_path / "events", events_of(1, 2))
    page = tmp_path / "page.html"
    for number in (2, 1):
        done = command("show", str(UUID(int=number)), "--from", url, "--html", str(page))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert f"<title>dag-{number}: success</title>" in page.read_text("utf-8")
    absent = command("show", str(UUID(int=7)), "--from", url, "--html", str(page))
    assert (absent.returncode, absent.stdout) == (1, "")
    assert "no event of execution" in absent.stderr
    assert "<title>dag-1: success</title>" in page.read_text("utf-8")


def test_a_page_that_cannot_be_written_is_wrong_usage(tmp_path: Path) -> None:
    url = source_with("jsonl", tmp_path / "events", events_of(1))
    page = tmp_path / "no folder" / "page.html"
    done = command("show", str(UUID(int=1)), "--from", url, "--html", str(page))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{COMPLAINT}{page} cannot be written: No such file or directory; give another --html\n"
    done = command("show", "--from", url, "--html", str(page))
    assert (done.returncode, done.stdout) == (2, "")
    assert "--html is for the trace of one execution" in done.stderr


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
