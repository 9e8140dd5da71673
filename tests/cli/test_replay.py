"""``constellation-otel replay``, run as a user runs it, against real endpoints."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from commands import command, environment, events_of, line, otlp, written
from constellation_otel import trace_id_of
from constellation_otel.cli.console import LOST, NOT_DELIVERED
from constellation_otel.cli.replay import run_replay
from constellation_otel.errors import ConfigurationError
from constellation_otel.events import encode_json
from constellation_otel.testing import span_tree
from constellation_otel.transports.journal import Journal, forget
from deliveries import MS, execution
from support import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path

    from constellation_otel.receiver import Receiver


def test_a_replay_delivers_the_traces_and_reports(receiver: Receiver, tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", [*events_of(1, 2), execution(3)[0]])
    done = command("replay", source, "--to", otlp(receiver), "--service-name", "old")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        (
            f"9 events replayed from {source}: 2 executions, 4 spans, 1 still open, 0 abandoned, 0 late, 0 duplicate,"
            " 0 unreadable, 0 dropped"
        ),
        "  otlp: 4 sent, 0 refused, 1 events held, 0 batches sent again",
        "1 executions have no end yet: they are left for the next run",
    ]
    assert span_tree(receiver.spans) == (
        "dag-1 (server) success\n  trim (internal) success\n\ndag-2 (server) success\n  trim (internal) success"
    )
    assert receiver.metrics == []


def test_a_replay_says_what_is_incomplete(receiver: Receiver, tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", [*execution(1)[1:], *execution(2)[:2], execution(2)[-1]])
    done = command("replay", source, "--to", otlp(receiver))
    assert (done.returncode, done.stdout.splitlines()[2:]) == (
        0, ["1 executions and 1 modules are incomplete: their start or end never arrived"],
    )  # fmt: skip
    assert "loses events: the start of execution" in done.stderr or "loses events: the end of module" in done.stderr


def test_open_executions_are_delivered_with_abandon_open(receiver: Receiver, tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", execution(3)[:1])
    done = command("replay", source, "--to", otlp(receiver), "--abandon-open")
    assert (done.returncode, [span.attributes["constellation.outcome"] for span in receiver.spans]) == (
        0, ["abandoned"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (["--since", "2026-11-22T23:30:00+01:00"], [2, 3]),
        (["--until", "2026-11-23"], [1, 2]),
        (["--since", "2026-11-22T10:00:00Z", "--until", "2026-11-23T00:00:00Z"], [2]),
        (["--execution", str(UUID(int=3))], [3]),
    ],
)
def test_a_replay_of_some_executions_takes_them_whole(
    receiver: Receiver, tmp_path: Path, options: list[str], numbers: list[int]
) -> None:
    starts = [int(datetime(2026, 11, day, 22, 30, tzinfo=UTC).timestamp()) * 1_000 * MS for day in (21, 22, 23)]
    events = [event for number, start in enumerate(starts, 1) for event in execution(number, start_ns=start)]
    done = command("replay", written(tmp_path / "e.jsonl", events), "--to", otlp(receiver), *options, TZ="UTC")
    assert (done.returncode, done.stdout.count("\n")) == (0, 2)
    assert {span.trace_id for span in receiver.spans} == {trace_id_of(UUID(int=number)) for number in numbers}
    assert len(receiver.spans) == 2 * len(numbers)


def test_a_replay_that_loses_something_has_its_exit_code(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    source = written(path, events_of(1))
    path.write_bytes(b"no event\n" + path.read_bytes())
    letters = tmp_path / "dead.jsonl"
    done = command("replay", source, "--to", otlp(receiver), "--dead-letters", str(letters))
    assert (done.returncode, len(receiver.spans)) == (LOST, 2)
    assert "1 unreadable" in done.stdout
    assert json.loads(letters.read_text())["data"] == "no event"


def test_a_replay_that_is_stopped_has_to_be_run_again(receiver: Receiver) -> None:
    with subprocess.Popen(
        line("replay", "jsonl:-", "--to", otlp(receiver), "--settle", "0"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(b"".join(encode_json(event) + b"\n" for event in events_of(1)))
        process.stdin.flush()
        receiver.wait_for_spans(2, DEADLINE)
        process.send_signal(signal.SIGTERM)
        # what it reads is still open
        assert process.wait(DEADLINE) == NOT_DELIVERED


def test_a_sink_on_standard_output_moves_the_summary(tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", events_of(1))
    done = command("replay", source, "--to", "jsonl:-")
    assert (done.returncode, done.stdout) == (0, (tmp_path / "events.jsonl").read_text())
    assert done.stderr.startswith("4 events replayed from ")


def test_a_reader_that_leaves_the_pipe_ends_the_replay(tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", events_of(*range(2_000)))
    pipeline = f"{shlex.join(line('replay', source, '--to', 'jsonl:-'))} | head -1"
    done = subprocess.run(
        ["bash", "-c", pipeline], capture_output=True, text=True, timeout=30, env=environment(), check=False
    )
    assert done.stdout.count("\n") == 1
    assert "nothing reads standard output" in done.stderr


def test_a_dry_run_delivers_nothing_and_counts(tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", events_of(1))
    done = command("replay", source, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.startswith(f"4 events would be replayed from {source}: 1 executions, 2 spans, ")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("journal:x.db?max_bytes=1", "max_bytes=1 cannot be used"),
        ("journal:x.db?max=1", "has something unknown after the ?"),
        ("sqlite:///x.db?table=a%0Ab", "not a valid table name"),
        ("kafka://h/t?no.such.setting=1", "no.such.setting"),
        ("otlp://", "otlp"),
        ("ftp://h", "'ftp' is not a sink"),
        ("jsonl:{folder}/events.jsonl", "sink 1 is also the source"),
    ],
)
def test_a_dry_run_checks_the_urls_of_its_sinks(url: str, said: str, tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", events_of(1))
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        run_replay(source, [url.replace("{folder}", str(tmp_path))], dry_run=True)


def test_a_dry_run_touches_nothing(tmp_path: Path) -> None:
    """It creates, opens, registers and claims nothing, and yet refuses what could not be used."""
    source = written(tmp_path / "events.jsonl", events_of(1))
    journal = tmp_path / "source.db"
    kept = Journal(journal, sinks=["otlp"])
    kept.append(events_of(1))
    made = tmp_path / "made"
    sinks = [f"journal:{made}.db?max_bytes=70000", f"sqlite:///{made}.sqlite", f"jsonl:{made}", "otlp://127.0.0.1:1"]
    arguments = [word for sink in [*sinks, "kafka://127.0.0.1:1/topic", "postgresql://h/d"] for word in ("--to", sink)]
    before = sorted(path.name for path in tmp_path.iterdir())
    # and another process may have the journal
    for url in (source, f"journal:{journal}?sink=otlp"):
        done = command("replay", url, "--dry-run", *arguments)
        assert (done.returncode, done.stdout[:29]) == (0, "4 events would be replayed fr")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    kept.close()
    assert command("replay", f"journal:{journal}?sink=otlp", "--dry-run").returncode == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("made")] == []
    for sink in (f"journal:{made}?max_bytes=many", "journal:?max_bytes=1", "nonsense:x"):
        assert command("replay", source, "--dry-run", "--to", sink).returncode == 2


def files_in(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_a_dry_run_reads_a_journal_that_is_in_use(tmp_path: Path) -> None:
    """A bridge may have it open; nothing of it changes."""
    path = tmp_path / "j.db"
    journal = Journal(path, sinks=["otlp"])
    journal.append(events_of(1))
    for _ in range(2):
        assert "4 events would be replayed" in command("replay", f"journal:{path}?sink=otlp", "--dry-run").stdout
    assert journal.held("otlp") == 4
    journal.close()
    before = files_in(tmp_path)
    assert "4 events would be replayed" in command("replay", f"journal:{path}?sink=otlp", "--dry-run").stdout
    assert files_in(tmp_path) == before


KILLED = """
import os, pickle, sys
from constellation_otel.transports.journal import Journal

Journal(sys.argv[1], sinks=["otlp"]).append(pickle.load(sys.stdin.buffer))
os._exit(0)
"""


def test_a_dry_run_leaves_what_a_killed_writer_left(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    subprocess.run([sys.executable, "-c", KILLED, path], input=pickle.dumps(events_of(1)), check=True)
    before = files_in(tmp_path)
    assert before["j.db-wal"][0]
    assert "4 events would be replayed" in command("replay", f"journal:{path}?sink=otlp", "--dry-run").stdout
    after = files_in(tmp_path)
    assert after.keys() == before.keys()
    assert [after[name] == before[name] for name in ("j.db", "j.db-wal")] == [True, True]


def test_a_dry_run_of_a_journal_registers_no_sink(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    Journal(path, sinks=["gone"]).close()
    forget(path, "gone")
    before = files_in(tmp_path)
    assert command("replay", f"journal:{path}", "--dry-run").stdout.startswith("0 events would be replayed")
    assert files_in(tmp_path) == before


def test_a_dry_run_leaves_a_journal_that_a_replay_empties(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    journal = Journal(path, sinks=["otlp"])
    journal.append([*events_of(1), execution(2)[0]])
    journal.close()
    url = f"journal:{path}?sink=otlp"
    assert "it has 5 events for ?sink=otlp" in command("replay", f"journal:{path}", "--dry-run").stderr
    assert "5 events would be replayed" in command("replay", url, "--dry-run").stdout
    assert command("replay", url, "--to", otlp(receiver)).returncode == 0
    assert len(receiver.spans) == 2
    journal = Journal(path, sinks=["otlp"])
    assert journal.held("otlp") == 1
    journal.close()
