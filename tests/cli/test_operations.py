"""The commands that move events, run as a user runs them, against real endpoints."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import pickle
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import pytest
from rich.console import Console

from commands import command, environment, line
from constellation_otel import trace_id_of
from constellation_otel.cli import operations
from constellation_otel.delivery import Bridge
from constellation_otel.errors import ConfigurationError, UnavailableError
from constellation_otel.events import encode_json
from constellation_otel.receiver import Receiver, Refuse
from constellation_otel.testing import span_tree
from constellation_otel.transports.journal import Journal, forget
from constellation_otel.transports.jsonl import JsonlSink
from constellation_otel.transports.sql import SqlSink
from deliveries import MS, ListSink, ListSource, execution, records
from engine_stand_in import EngineStandIn, recorded
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from constellation_otel.events import Event


@contextmanager
def running(*arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on until it is told to end, and is killed if it does not."""
    with subprocess.Popen(
        line(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**variables)
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    """Ends a bridge in order; its exit code and what it logged."""
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=DEADLINE)
    return process.returncode, [json.loads(logged) for logged in stderr.splitlines()]


def otlp(receiver: Receiver) -> str:
    return receiver.grpc_endpoint.replace("http://", "otlp://")


def events_of(*numbers: int) -> list[Event]:
    return [event for number in numbers for event in execution(number)]


def written(path: Path, events: list[Event]) -> str:
    """A file of JSON lines as a source."""
    path.write_bytes(b"".join(encode_json(event) + b"\n" for event in events))
    return f"jsonl:{path}"


# --- bridge --------------------------------------------------------------------------------------------------------


def test_a_bridge_follows_an_engine_until_it_is_told_to_end_and_says_what_it_did(
    receiver: Receiver, tmp_path: Path
) -> None:
    with (
        EngineStandIn(api_key="k" * 24) as engine,
        running(
            "bridge", engine.url, "--to", otlp(receiver), "--to", f"jsonl:{tmp_path}/events.jsonl.gz",
            "--journal", str(tmp_path / "journal.db"), "--health", "127.0.0.1:0", "--service-name", "engine",
            "--api-key-file", str(written_key(tmp_path)),
        ) as process,
    ):  # fmt: skip
        engine.play(recorded("engine-frames-50.jsonl"))
        receiver.wait_for_spans(200, DEADLINE)
        code, logged = ended(process)
    assert code == 0
    # on a busy machine the end finds something that is held for a moment more
    said = [entry for entry in logged if "what is held is delivered now" not in entry["message"]]
    assert [(entry["level"], re.sub(r"http\S+", "URL", entry["message"])) for entry in said] == [
        ("INFO", f"from {engine.url}/api/v1/executions/events to otlp, jsonl"),
        ("INFO", "health is served on URL"),
        ("INFO", f"{engine.url}/api/v1/executions/events: connected"),
        ("INFO", "400 events bridged"),
    ]
    report = logged[-1]["report"]
    assert (report["events"], report["executions"], report["spans"], report["is_delivered"]) == (400, 50, 200, True)
    assert {name: lane["sent"] for name, lane in report["sinks"].items()} == {"otlp": 200, "jsonl": 400}
    assert len(receiver.spans) == 200
    assert {it.resource.attributes["service.name"] for it in receiver.received} == {"engine"}
    assert len(gzip.decompress((tmp_path / "events.jsonl.gz").read_bytes()).splitlines()) == 400
    names = {point.name for point in receiver.metrics}
    assert {"constellation.execution.duration", "constellation.module.duration"} <= names


def written_key(folder: Path) -> Path:
    key = folder / "key"
    key.write_text("k" * 24 + "\n")
    return key


def test_a_bridge_makes_log_records_of_failures_where_they_are_opted_for(receiver: Receiver) -> None:
    with (
        EngineStandIn() as engine,
        running("bridge", engine.url, "--to", otlp(receiver), OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN="logs") as process,
    ):
        engine.play(recorded("engine-frames.jsonl"))
        receiver.wait_for(lambda it: any(span.attributes.get("error.type") for span in it.spans), DEADLINE, "a failure")
        code, _ = ended(process)
    assert code == 0
    assert not any(span.events for span in receiver.spans)
    assert {record.event_name for record in receiver.logs} == {"exception"}


def test_what_is_piped_in_is_bridged_as_it_comes(receiver: Receiver) -> None:
    with subprocess.Popen(
        line("bridge", "jsonl:-", "--to", otlp(receiver)),
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    ) as process:  # fmt: skip
        assert process.stdin is not None
        for event in events_of(1):
            process.stdin.write(encode_json(event) + b"\n")
            process.stdin.flush()
        receiver.wait_for_spans(2, DEADLINE)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE)
    assert process.returncode == 0


def test_a_bridge_whose_sink_is_away_ends_in_time_and_says_that_it_is_to_be_run_again(
    receiver: Receiver, tmp_path: Path
) -> None:
    source = written(tmp_path / "events.jsonl", events_of(1))
    endpoint = otlp(receiver)
    receiver.stop()
    with running("bridge", source, "--to", endpoint, "--close-timeout", "0.5", OTEL_METRICS_EXPORTER="none") as process:
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["message"] == f"from {source} to otlp"
        first = json.loads(process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=DEADLINE)
    assert "are held, the next try is in" in first["message"]
    assert process.returncode == operations.NOT_DELIVERED
    last = json.loads(stderr.splitlines()[-1])["report"]
    assert (last["is_delivered"], last["sinks"]["otlp"]["held"]) == (False, 4)


def test_a_bridge_between_transports_of_events_makes_no_telemetry_of_its_own(tmp_path: Path) -> None:
    written(tmp_path / "events.jsonl", events_of(1))
    source = written(tmp_path / "more.jsonl", events_of(2, 1, 3))
    copy = f"jsonl:{tmp_path}/copy.jsonl"
    with running("bridge", source, "--to", copy, "--execution", str(UUID(int=1))) as process:
        end = time.monotonic() + DEADLINE
        while not (tmp_path / "copy.jsonl").exists() and time.monotonic() < end:
            select.select([], [], [], 0.02)
        code, logged = ended(process)
    assert (code, [entry["message"] for entry in logged]) == (0, [f"from {source} to jsonl", "4 events bridged"])
    assert (tmp_path / "copy.jsonl").read_bytes() == (tmp_path / "events.jsonl").read_bytes()


def test_an_error_in_the_log_has_its_traceback(tmp_path: Path) -> None:
    record = operations._JsonFormatter().format(_failed_record())
    assert "ValueError: bad" in json.loads(record)["exception"]


def _failed_record() -> Any:
    import logging  # noqa: PLC0415 - for the record only

    try:
        raise ValueError("bad")
    except ValueError:
        return logging.LogRecord("name", logging.ERROR, __file__, 1, "%s", ("it failed",), sys.exc_info())


def test_a_journal_before_kafka_is_refused_with_the_reason() -> None:
    done = command("bridge", "kafka://127.0.0.1:1/t?group=g", "--to", "jsonl:-", "--journal", "x.db")
    assert done.returncode == 2
    assert done.stderr.startswith("constellation-otel bridge: a journal is of no use between Kafka and its sinks")


def test_a_bridge_without_a_sink_is_wrong_usage() -> None:
    done = command("bridge", "jsonl:-")
    assert (done.returncode, "Missing option '--to'" in done.stderr) == (2, True)


def read_terminal(descriptor: int, until: str) -> str:
    """What a program wrote to its terminal, until something is there."""
    text, end = "", time.monotonic() + DEADLINE
    while until not in text:
        assert time.monotonic() < end, f"no {until!r} in {text!r}"
        if select.select([descriptor], [], [], 0.1)[0]:
            try:
                text += os.read(descriptor, 65_536).decode()
            except OSError:
                assert until in text, f"no {until!r} in {text!r}"
    return text


def test_on_a_terminal_a_status_line_is_kept_up_to_date_and_the_troubles_are_in_it(
    receiver: Receiver, tmp_path: Path
) -> None:
    source = written(tmp_path / "events.jsonl", events_of(1))
    receiver.order(Refuse(grpc_code=_unauthenticated(), message="who are you", times=1_000), signal="traces")
    ours, theirs = pty.openpty()
    arguments = line("bridge", source, "--to", otlp(receiver), "--close-timeout", "0.2")
    try:
        with subprocess.Popen(arguments, stderr=theirs, env=environment(TERM="xterm", COLUMNS="200")) as process:
            os.close(theirs)
            text = read_terminal(ours, "4 events, 0 open, sent: otlp 0, held: 4")
            text += read_terminal(ours, "otlp: http")
            process.send_signal(signal.SIGINT)
            text += read_terminal(ours, "run it again: what is missing is still where it was")
            assert process.wait(DEADLINE) == operations.NOT_DELIVERED
    finally:
        os.close(ours)
    assert "4 events bridged from jsonl:" in text


def test_on_a_terminal_a_replay_has_a_progress_bar(receiver: Receiver, tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", events_of(*range(500)))
    receiver.order(Refuse(times=1_000), signal="traces")
    ours, theirs = pty.openpty()
    arguments = line("replay", source, "--to", otlp(receiver))
    try:
        with subprocess.Popen(arguments, stdout=theirs, stderr=theirs, env=environment(TERM="xterm")) as process:
            os.close(theirs)
            read_terminal(ours, "━━━")
            receiver.clear()
            read_terminal(ours, "2000 events replayed from jsonl:")
            assert process.wait(DEADLINE) == 0
    finally:
        os.close(ours)
    assert len(receiver.spans) == 1_000


def _unauthenticated() -> Any:
    import grpc  # noqa: PLC0415 - for the code only

    return grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
    ],
)
def test_the_second_signal_ends_a_bridge_at_once(first: int, second: int, receiver: Receiver, tmp_path: Path) -> None:
    """Whichever of SIGTERM and SIGINT the two are."""
    source = written(tmp_path / "events.jsonl", events_of(1))
    endpoint = otlp(receiver)
    receiver.stop()
    with running("bridge", source, "--to", endpoint, "--close-timeout", "600") as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.readline()
        process.send_signal(first)
        while "what is held is delivered now" not in process.stderr.readline():
            pass
        process.send_signal(second)
        assert process.wait(DEADLINE) == -second


def test_a_bridge_whose_source_tells_nothing_twice_says_what_it_has_lost(receiver: Receiver) -> None:
    endpoint = otlp(receiver)
    receiver.stop()
    with (
        EngineStandIn() as engine,
        running(
            "bridge", engine.url, "--to", endpoint, "--close-timeout", "0.3", OTEL_METRICS_EXPORTER="none"
        ) as process,
    ):  # fmt: skip
        engine.play(recorded("engine-frames.jsonl")[:40])
        assert process.stderr is not None
        while "are held" not in process.stderr.readline():
            pass
        code, logged = ended(process)
    assert (code, logged[-1]["report"]["lost"]) == (operations.LOST, 40)


def test_a_summary_says_what_is_lost() -> None:
    away = ListSink(*[UnavailableError("away")] * 99)
    bridge = Bridge(ListSource(records(events_of(1)), is_durable=False), [away], close_timeout=0.1)
    *_, last = operations._summary(bridge.run(), "bridged", with_sinks=True)
    assert last == "4 events are lost: they could not be delivered in time, and nobody reads them again"


def test_a_summary_says_what_the_journal_could_not_take(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", sinks=["list"])
    (tmp_path / "j.db").rename(tmp_path / "elsewhere")
    report = Bridge(ListSource(records(events_of(1))), [ListSink()], journal=journal).run()
    *_, last = operations._summary(report, "bridged", with_sinks=True)
    assert last == "4 events went to the sinks from memory, since the journal could not take them"


@pytest.mark.parametrize("command_name", ["bridge", "replay"])
def test_what_would_feed_itself_is_refused(command_name: str, tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", events_of(1))
    done = command(command_name, source, "--to", "jsonl:-", "--to", f"jsonl:{tmp_path}/./events.jsonl")
    assert done.returncode == 2
    assert "sink 2 is the source itself, which would be fed with what it gives; name another one" in done.stderr


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_what_would_feed_itself_through_a_link_is_refused(link: Callable[[Path, Path], None], tmp_path: Path) -> None:
    path, other = tmp_path / "events.jsonl", tmp_path / "other"
    source = written(path, events_of(1))
    link(path, other)
    with pytest.raises(ConfigurationError, match="sink 1 is the source itself"):
        operations.run_replay(source, [f"jsonl:{other}"])
    with pytest.raises(ConfigurationError, match="sink 1 is the source itself"):
        operations.run_replay(f"sqlite:///{path}?table=events", [f"sqlite:///{other}?table=Events"])


@pytest.mark.parametrize("command_name", ["bridge", "replay"])
def test_a_table_that_would_feed_itself_is_refused_before_anything_is_made(command_name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    done = command(command_name, f"sqlite:///{os.path.relpath(path)}", "--to", f"sqlite:///{path}")
    assert done.returncode == 2
    assert "sink 1 is the source itself" in done.stderr
    assert not path.exists()


def test_who_reads_only_the_beginning_is_not_waited_for(tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", events_of(*range(2_000)))
    pipeline = f"{shlex.join(line('replay', source, '--to', 'jsonl:-'))} | head -1"
    done = subprocess.run(
        ["bash", "-c", pipeline], capture_output=True, text=True, timeout=30, env=environment(), check=False
    )
    assert done.stdout.count("\n") == 1
    assert "nothing reads standard output" in done.stderr


def test_an_api_key_that_is_none_is_said_in_one_line(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"\xff\xfe")
    done = command("bridge", "ws://127.0.0.1:1", "--to", "jsonl:-", "--api-key-file", str(key))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "has no API key: it is not all ASCII" in done.stderr


# --- replay --------------------------------------------------------------------------------------------------------


def test_a_replay_gives_the_traces_and_says_what_it_did(receiver: Receiver, tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", [*events_of(1, 2), execution(3)[0]])
    done = command("replay", source, "--to", otlp(receiver), "--service-name", "old")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        (
            f"9 events replayed from {source}: 2 executions, 4 spans, 1 still open, 0 abandoned, 0 late, 0 duplicate,"
            " 0 unreadable, 0 dropped"
        ),
        "  otlp: 4 sent, 0 refused, 1 events held, 0 batches sent again",
        "1 executions have not ended, as far as is known: they are left for the next run",
    ]
    assert span_tree(receiver.spans) == (
        "dag-1 (server) success\n  trim (internal) success\n\ndag-2 (server) success\n  trim (internal) success"
    )
    assert receiver.metrics == []


def test_a_replay_says_what_is_incomplete(receiver: Receiver, tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", [*execution(1)[1:], *execution(2)[:2], execution(2)[-1]])
    done = command("replay", source, "--to", otlp(receiver))
    assert (done.returncode, done.stdout.splitlines()[2:]) == (
        0, ["1 executions and 1 modules are incomplete: their start or end never came"],
    )  # fmt: skip
    assert "loses events: the start of execution" in done.stderr or "loses events: the end of module" in done.stderr


def test_a_replay_delivers_what_is_open_where_that_is_asked_for(receiver: Receiver, tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", execution(3)[:1])
    done = command("replay", source, "--to", otlp(receiver), "--abandon-open")
    assert (done.returncode, [span.attributes["constellation.outcome"] for span in receiver.spans]) == (
        0, ["abandoned"],
    )  # fmt: skip


def test_a_dry_run_delivers_nothing_and_counts(tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", events_of(1))
    done = command("replay", source, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.startswith(f"4 events would be replayed from {source}: 1 executions, 2 spans, ")


def files_in(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("journal:x.db?max_bytes=1", "max_bytes=1 cannot be used"),
        ("journal:x.db?max=1", "means nothing"),
        ("sqlite:///x.db?table=a%0Ab", "no name for a table"),
        ("kafka://h/t?no.such.setting=1", "no.such.setting"),
        ("otlp://", "otlp"),
        ("ftp://h", "'ftp' is no sink"),
        ("jsonl:{folder}/events.jsonl", "sink 1 is the source itself"),
    ],
)
def test_a_dry_run_checks_the_urls_of_its_sinks(url: str, said: str, tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", events_of(1))
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        operations.run_replay(source, [url.replace("{folder}", str(tmp_path))], dry_run=True)


def test_a_dry_run_of_a_journal_needs_it_no_more_than_it_changes_it(tmp_path: Path) -> None:
    """A bridge may have it meanwhile."""
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


def test_a_dry_run_of_a_journal_registers_no_sink_with_it(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    Journal(path, sinks=["gone"]).close()
    forget(path, "gone")
    before = files_in(tmp_path)
    assert command("replay", f"journal:{path}", "--dry-run").stdout.startswith("0 events would be replayed")
    assert files_in(tmp_path) == before


def test_where_standard_output_is_a_sink_the_summary_is_not_in_it(tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", events_of(1))
    done = command("replay", source, "--to", "jsonl:-")
    assert (done.returncode, done.stdout) == (0, (tmp_path / "events.jsonl").read_text())
    assert done.stderr.startswith("4 events replayed from ")


def test_a_dry_run_touches_nothing(tmp_path: Path) -> None:
    """Nothing is made, opened, registered or claimed; what could not be used is said all the same."""
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


def test_a_dry_run_leaves_a_journal_as_it_is_and_a_replay_empties_it(receiver: Receiver, tmp_path: Path) -> None:
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


def test_a_replay_that_loses_something_says_so_by_its_exit_code(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    source = written(path, events_of(1))
    path.write_bytes(b"no event\n" + path.read_bytes())
    letters = tmp_path / "dead.jsonl"
    done = command("replay", source, "--to", otlp(receiver), "--dead-letters", str(letters))
    assert (done.returncode, len(receiver.spans)) == (operations.LOST, 2)
    assert "1 unreadable" in done.stdout
    assert json.loads(letters.read_text())["data"] == "no event"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["replay", "jsonl:missing.jsonl", "--dry-run"], 1, "missing.jsonl cannot be read: No such file or directory"),
        (["replay", "ws://h:1", "--dry-run"], 2, "has no past to be replayed"),
        (["replay", "nonsense", "--dry-run"], 2, "what has no scheme is no source"),
        (["replay", "journal:missing.db", "--dry-run"], 1, "missing.db"),
        (["replay", "jsonl:x", "--dry-run", "--since", "2026-01-02", "--until", "2026-01-02"], 2, "a later --until"),
        (["bridge", "kafka://h:1/t?group=g", "--to", "jsonl:-", "--execution", str(UUID(int=1))], 2, "use replay"),
        (["bridge", "ws://h:1", "--to", "jsonl:-", "--max-reconnect-wait", "inf"], 2, "max_reconnect_wait=inf must be"),
        (["replay", "jsonl:x"], 2, "Missing option '--to'; without one there is --dry-run."),
        (["replay", "jsonl:x", "--dry-run", "--since", "soon"], 2, "'soon' is no time; 2026-11-24 or"),
        (["schema", "mysql:"], 2, "there is no schema for 'mysql'; give postgresql: or sqlite:"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments: list[str], code: int, said: str) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_replay_that_is_stopped_before_its_end_is_to_be_run_again(receiver: Receiver) -> None:
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
        assert process.wait(DEADLINE) == operations.NOT_DELIVERED


# --- show and schema -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "sqlite", "journal"])
def test_an_execution_is_shown_from_wherever_its_events_are(tmp_path: Path, kind: str) -> None:
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
    assert absent.stderr == f"constellation-otel show: there is no event of execution {UUID(int=7)}\n"


@pytest.mark.parametrize(
    ("url", "table"),
    [
        ("postgresql://host/db", "execution_audit"),
        ("sqlite:///file?table=mine", "mine"),
        ("postgresql:", "execution_audit"),
    ],
)
def test_the_schema_is_printed_for_the_database_of_a_url(url: str, table: str) -> None:
    done = command("schema", url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"CREATE TABLE IF NOT EXISTS {table} (\n")


def test_a_missing_extra_is_said_in_one_line() -> None:
    program = (
        "import sys; sys.modules['websockets'] = None; sys.argv = ['c', 'bridge', 'ws://h:1', '--to', 'jsonl:-']\n"
    )
    program += "from constellation_otel.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "constellation-otel bridge: websockets is not installed; run: pip install 'constellation-otel[websocket]'\n"
    )


def test_the_operations_need_rich() -> None:
    program = "import sys; sys.modules['rich'] = None\nimport constellation_otel.cli.operations"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.endswith("rich is not installed; run: pip install 'constellation-otel[cli]'\n")


HOSTILE = "a\x1b[2J\x9b5n\u202e[red]b[/]"


def test_what_others_say_does_nothing_to_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The names and messages of events, the words of an endpoint, the name of a file: on a console that is one."""
    path = tmp_path / "[red]x[b]\x1b[31m.jsonl"
    execution_id = str(UUID(int=1))
    fields = {"executionId": execution_id, "dagName": HOSTILE, "durationMs": None, "error": None, "timestamp": 1}
    kinds = ("execution.started", "execution.completed")
    records = [{**fields, "eventType": kind, "moduleName": None, "succeeded": kind == kinds[1]} for kind in kinds]
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records, {"eventType": HOSTILE}]))
    console = Console(force_terminal=True, no_color=True, highlight=False, file=io.StringIO(), width=200)
    assert operations.show(UUID(int=1), f"jsonl:{path}", console)
    with operations._logging(console):
        logging.getLogger("theirs").warning("%s", HOSTILE)
        operations._LOGGER.warning("%s", HOSTILE)
    report = Bridge(ListSource([]), [ListSink()]).report
    (sent,) = report.sinks.values()
    report = msgspec.structs.replace(report, source=HOSTILE, sinks={HOSTILE: sent}, failed_acknowledgements=3)
    operations._say(report, HOSTILE, console)
    console.print(operations._status(report, {HOSTILE: HOSTILE}, None))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3 acknowledgements failed" in shown
    for harmful in ("\x1b[2J", "\x9b", "\u202e", "\x1b[31m"):
        assert harmful not in shown
    assert shown.count("[red]b[/]") >= 6
    assert operations.run_replay(f"jsonl:{path}", [f"jsonl:{tmp_path}/out.jsonl"]) == operations.LOST
    captured = capfd.readouterr()
    assert all(text.replace("\n", "").isprintable() for text in captured)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["bridge", f"jsonl:{HOSTILE}/", "--to", "jsonl:-", "--health", HOSTILE], 2),
        (["replay", f"{HOSTILE}:x", "--to", "jsonl:-"], 2),
        (["replay", f"jsonl:{HOSTILE}.missing", "--to", "jsonl:-"], 1),
        (["replay", "jsonl:-", "--to", f"otlp://h/{HOSTILE}"], 2),
        (["show", HOSTILE, "--from", "jsonl:x"], 2),
        (["show", str(UUID(int=1)), "--from", f"{HOSTILE}://x"], 2),
        (["schema", f"{HOSTILE}:"], 2),
        (["schema", f"sqlite:?table={HOSTILE}"], 2),
        (["trace-id", HOSTILE], 2),
        ([HOSTILE], 2),
        ([f"--{HOSTILE}"], 2),
        (["demo", f"--{HOSTILE}", "x"], 2),
        (["demo", "--endpoint", f"http://me:s3cr3t@{HOSTILE}"], 2),
        (["bridge", "kafka://h:1/t?group=%FF\udcff", "--to", "jsonl:-"], 2),
        (["bridge", "kafka://h:1/t?group=g&client.id=\udcff", "--to", "jsonl:-"], 2),
        (["bridge", "jsonl:-", "--to", "kafka://me:\udcff@h:1/t"], 2),
        (["bridge", "jsonl:-", "--to", "kafka://\udcff:1/t"], 2),
        (["bridge", "jsonl:-", "--to", "kafka://h:1/t?\udcff=1"], 2),
        (["bridge", "jsonl:-", "--to", "postgresql://me:\udcff@127.0.0.1:1/d"], 2),
        (["bridge", "ws://h\udcff:1", "--to", "jsonl:-"], 2),
        (["bridge", "jsonl:-", "--to", "otlp+http://h:1/\udcff"], 2),
        (["bridge", "jsonl:-", "--to", "otlp://h:1", "--service-name", "\udcff"], 2),
    ],
)
def test_an_odd_word_of_the_command_line_is_one_error_without_a_trace(
    arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    said = done.stderr
    assert (done.returncode, done.stdout) == (code, ""), said
    assert "Traceback" not in said
    assert "s3cr3t" not in said
    assert said.replace("\n", "").replace("│", "").isprintable()
