"""``constellation-otel bridge``, run as a user runs it, against real endpoints."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from commands import command, ended, environment, events_of, line, otlp, running, until, written
from constellation_otel.cli.console import LOST, NOT_DELIVERED
from constellation_otel.cli.replay import run_replay
from constellation_otel.errors import ConfigurationError
from constellation_otel.events import encode_json
from engine_stand_in import EngineStandIn, recorded
from support import DEADLINE, UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from constellation_otel.receiver import Receiver


def test_a_bridge_follows_an_engine_until_sigterm(receiver: Receiver, tmp_path: Path) -> None:
    """It then reports what it did."""
    with (
        EngineStandIn(api_key="k" * 24) as engine,
        running(
            "bridge", engine.url, "--to", otlp(receiver), "--to", f"jsonl:{tmp_path}/events.jsonl",
            "--journal", str(tmp_path / "journal.db"), "--health", "127.0.0.1:0", "--service-name", "engine",
            "--api-key-file", str(written_key(tmp_path)),
        ) as process,
    ):  # fmt: skip
        engine.play(recorded("engine-frames-50.jsonl"))
        receiver.wait_for_spans(200, DEADLINE)
        code, logged = ended(process)
    assert code == 0
    # on a busy machine something is still held at the end
    said = [entry for entry in logged if "what is held is delivered now" not in entry["message"]]
    assert [(entry["level"], re.sub(r"http\S+", "URL", entry["message"])) for entry in said] == [
        ("INFO", f"bridging from {engine.url}/api/v1/executions/events to otlp, jsonl"),
        ("INFO", "health is served on URL"),
        ("INFO", f"{engine.url}/api/v1/executions/events: connected"),
        ("INFO", "400 events bridged"),
    ]
    report = logged[-1]["report"]
    assembly = report["assembly"]
    assert (report["events"], report["is_delivered"]) == (400, True)
    assert (assembly["executions"], assembly["spans"]) == (50, 200)
    assert {name: sink["sending"]["sent"] for name, sink in report["sinks"].items()} == {"otlp": 200, "jsonl": 400}
    assert len(receiver.spans) == 200
    assert {span.attributes["constellation.engine"] for span in receiver.spans} == {"constellation"}
    assert {it.resource.attributes["service.name"] for it in receiver.received} == {"engine"}
    assert len((tmp_path / "events.jsonl").read_bytes().splitlines()) == 400
    names = {point.name for point in receiver.metrics}
    assert {"constellation.execution.duration", "constellation.module.duration"} <= names


def written_key(folder: Path) -> Path:
    key = folder / "key"
    key.write_text("k" * 24 + "\n")
    return key


@UNWATCHED
def test_failures_become_log_records_if_opted_in(receiver: Receiver) -> None:
    with (
        EngineStandIn() as engine,
        running("bridge", engine.url, "--to", otlp(receiver), OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN="logs") as process,
    ):
        engine.play(recorded("engine-frames.jsonl"))
        receiver.wait_for(lambda it: any(span.attributes.get("error.type") for span in it.spans), DEADLINE, "a failure")
        code, _ = ended(process)
    assert code == 0
    assert {event.name for span in receiver.spans for event in span.events} <= {"cancelled"}
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


@UNWATCHED
def test_a_bridge_without_an_endpoint_ends_in_time(receiver: Receiver, tmp_path: Path) -> None:
    """It says that it has to be run again."""
    source = written(tmp_path / "events.jsonl", events_of(1))
    endpoint = otlp(receiver)
    receiver.stop()
    with running("bridge", source, "--to", endpoint, "--close-timeout", "0.5", OTEL_METRICS_EXPORTER="none") as process:
        assert json.loads(until(process, "bridging"))["message"] == f"bridging from {source} to otlp"
        until(process, "are held, the next try is in")
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == NOT_DELIVERED
    last = json.loads(stderr.splitlines()[-1])["report"]
    assert (last["is_delivered"], last["sinks"]["otlp"]["held"]) == (False, 4)


def test_a_bridge_between_event_transports_sends_no_telemetry(tmp_path: Path) -> None:
    written(tmp_path / "events.jsonl", events_of(1))
    source = written(tmp_path / "more.jsonl", events_of(2, 1, 3))
    copy = f"jsonl:{tmp_path}/copy.jsonl"
    with running("bridge", source, "--to", copy, "--execution", str(UUID(int=1))) as process:
        end = time.monotonic() + DEADLINE
        while not (tmp_path / "copy.jsonl").exists() and time.monotonic() < end:
            select.select([], [], [], 0.02)
        code, logged = ended(process)
    # one that is stopped at once may say that it delivers what it holds
    said = [entry["message"] for entry in logged if not entry["message"].startswith("stopped;")]
    assert (code, said) == (0, [f"bridging from {source} to jsonl", "4 events bridged"])
    assert (tmp_path / "copy.jsonl").read_bytes() == (tmp_path / "events.jsonl").read_bytes()


@UNWATCHED
def test_a_bridge_from_an_engine_says_what_it_has_lost(receiver: Receiver) -> None:
    """The engine sends nothing twice."""
    endpoint = otlp(receiver)
    receiver.stop()
    with (
        EngineStandIn() as engine,
        running(
            "bridge", engine.url, "--to", endpoint, "--close-timeout", "0.3", OTEL_METRICS_EXPORTER="none"
        ) as process,
    ):  # fmt: skip
        engine.play(recorded("engine-frames.jsonl")[:40])
        until(process, "are held")
        code, logged = ended(process)
    assert (code, logged[-1]["report"]["lost"]) == (LOST, 40)


def test_a_journal_behind_kafka_is_refused_with_the_reason() -> None:
    done = command("bridge", "kafka://127.0.0.1:1/t?group=g", "--to", "jsonl:-", "--journal", "x.db")
    assert done.returncode == 2
    assert done.stderr.startswith("constellation-otel bridge: a journal is of no use between Kafka and its sinks")


def test_a_bridge_without_a_sink_is_wrong_usage() -> None:
    done = command("bridge", "jsonl:-")
    assert (done.returncode, "Missing option '--to'" in done.stderr) == (2, True)


@pytest.mark.parametrize("command_name", ["bridge", "replay"])
def test_a_sink_that_is_also_the_source_is_refused(command_name: str, tmp_path: Path) -> None:
    source = written(tmp_path / "events.jsonl", events_of(1))
    done = command(command_name, source, "--to", "jsonl:-", "--to", f"jsonl:{tmp_path}/./events.jsonl")
    assert done.returncode == 2
    assert "sink 2 is also the source: the bridge would loop; name another one" in done.stderr


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_sink_that_links_to_the_source_is_refused(link: Callable[[Path, Path], None], tmp_path: Path) -> None:
    path, other = tmp_path / "events.jsonl", tmp_path / "other"
    source = written(path, events_of(1))
    link(path, other)
    with pytest.raises(ConfigurationError, match="sink 1 is also the source"):
        run_replay(source, [f"jsonl:{other}"])
    with pytest.raises(ConfigurationError, match="sink 1 is also the source"):
        run_replay(f"sqlite:///{path}?table=events", [f"sqlite:///{other}?table=Events"])


@pytest.mark.parametrize("command_name", ["bridge", "replay"])
def test_a_table_that_is_also_the_source_is_not_created(command_name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    done = command(command_name, f"sqlite:///{os.path.relpath(path)}", "--to", f"sqlite:///{path}")
    assert done.returncode == 2
    assert "sink 1 is also the source" in done.stderr
    assert not path.exists()


def test_an_api_key_that_is_not_ascii_is_refused_in_one_line(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"\xff\xfe")
    done = command("bridge", "ws://127.0.0.1:1", "--to", "jsonl:-", "--api-key-file", str(key))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not an API key: it has characters that are not ASCII" in done.stderr
