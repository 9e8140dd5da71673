"""``constellation-otel watch``, run as a user runs it: on a growing file, an engine, a topic, and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from commands import HOSTILE, command, ended, environment, line, running, until
from constellation_otel.events import ExecutionStarted, encode_json
from deliveries import MS, T0, execution
from engine_stand_in import EngineStandIn, recorded
from support import DEADLINE
from transports.kafka.helpers import TOPIC, Cluster, committed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from constellation_otel.events import Event

CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def append(path: Path, events: list[Event], *more: bytes) -> None:
    with path.open("ab") as file:
        file.write(b"".join(it + b"\n" for it in (*map(encode_json, events), *more)))


def now(number: int, *, fails: bool = False) -> list[Event]:
    """The events of an execution that has just run."""
    return execution(number, fails=fails, start_ns=time.time_ns() - 5 * MS)


def lines_of(process: subprocess.Popen[str], count: int) -> list[str]:
    """Waits for so many lines of standard output."""
    assert process.stdout is not None
    # so that the output ends
    watchdog = threading.Timer(DEADLINE, process.kill)
    watchdog.start()
    try:
        return [process.stdout.readline() for _ in range(count)]
    finally:
        watchdog.cancel()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_file_that_grows_gives_a_line_for_each_execution_that_ends(tmp_path: Path, number: signal.Signals) -> None:
    """A signal ends it with exit code 0 and a summary."""
    path = tmp_path / "events.jsonl"
    with running("watch", f"jsonl:{path}") as process:
        append(path, now(1))
        first = lines_of(process, 1)
        append(path, [*now(2, fails=True), *now(3)[:2]], b"junk")
        second = lines_of(process, 1)
        process.send_signal(number)
        rest, logged = process.communicate(timeout=DEADLINE)
    assert (process.returncode, rest) == (0, "")
    assert re.fullmatch(r"✓ success    20\S+ \S+ +4 ms +1 modules  0{8}-.*1  dag-1\n", first[0])
    assert re.fullmatch(r"✗ failure    20\S+ \S+ +4 ms +1 modules  0{8}-.*2  dag-2  trim failed: bad\n", second[0])
    (said,) = [json.loads(entry)["message"] for entry in logged.splitlines()]
    assert said == (
        f"10 events watched from jsonl:{path}: 2 executions ended (1 success, 1 failure), 1 running;"
        " lost: unreadable records: 1 (the last one: not an event: JSON is malformed: invalid character (byte 0);"
        " the record is b'junk')"
    )


def test_what_is_piped_into_it_ends_it(tmp_path: Path) -> None:
    """Lines have no control characters, and are ASCII where the output cannot have more."""
    path = tmp_path / "events.jsonl"
    append(path, [ExecutionStarted(UUID(int=1), HOSTILE, T0), *execution(1)[1:]])
    done = subprocess.run(
        line("watch", "jsonl:-"),
        input=path.read_bytes(),
        capture_output=True,
        env=environment(PYTHONIOENCODING="ascii"),
        timeout=DEADLINE,
        check=False,
    )
    text = done.stdout.decode("ascii")
    assert done.returncode == 0
    assert text.startswith("+ success    2026-11-23 20:22:43          4 ms     1 modules  00000000-")
    assert not CONTROL.search(text)
    assert text.count("\n") == 1
    assert "4 events watched from jsonl:-: 1 executions ended (1 success), 0 running; lost: nothing" in str(done.stderr)


def test_an_engine_is_watched_and_its_losses_are_said(tmp_path: Path) -> None:
    """An execution was open when the engine was restarted; one's start never came."""
    key = tmp_path / "key"
    key.write_text("k" * 24 + "\n")
    frames = recorded("engine-frames-50.jsonl")
    with (
        EngineStandIn(api_key="k" * 24) as engine,
        running("watch", engine.url, "--api-key-file", str(key)) as process,
    ):
        engine.play(frames)
        lines = lines_of(process, 50)
        engine.play(recorded("engine-frames.jsonl")[:1])
        engine.flush()
        engine.kill()
        until(process, "is lost")
        until(process, "trying again")
        engine.start()
        engine.wait_for_clients()
        lines += lines_of(process, 1)
        code, logged = ended(process)
    assert code == 0
    assert [it[:9] for it in lines] == ["✓ success"] * 50 + ["? abandon"]
    assert logged[-1]["message"] == (
        f"401 events watched from {engine.url}/api/v1/executions/events: 51 executions ended (50 success, 1 abandoned),"
        " 0 running; lost: connections lost, with what came meanwhile: 1; restarts of the engine: 1;"
        " executions given up without an end: 1"
    )


def test_a_topic_is_watched_without_its_consumer_group() -> None:
    """Whoever is in the group keeps its partitions, and what it has committed."""
    cluster = Cluster()
    cluster.write(*map(encode_json, now(1)))
    with running("watch", f"kafka://{cluster.brokers}/{TOPIC}?group=bridge&fetch.wait.max.ms=10") as process:
        lines = lines_of(process, 1)
        cluster.write(*map(encode_json, now(2)))
        lines += lines_of(process, 1)
        code, logged = ended(process)
    assert (code, [it.split()[-1] for it in lines]) == (0, ["dag-1", "dag-2"])
    assert "8 events watched from kafka://" in logged[-1]["message"]
    assert "?group" not in logged[-1]["message"]
    assert committed(cluster) < 0


def test_a_source_that_is_away_is_waited_for() -> None:
    cluster = Cluster()
    cluster.down()
    with running("watch", f"kafka://{cluster.brokers}/{TOPIC}?reconnect.backoff.max.ms=200") as process:
        until(process, "cannot be read now")
        cluster.up()
        cluster.write(*map(encode_json, now(1)))
        (only,) = lines_of(process, 1)
        code, _ = ended(process)
    assert (code, only.split()[-1]) == (0, "dag-1")


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("journal:x.db", 2, "a journal has only what its sinks have yet to take"),
        ("otlp://localhost:4317", 2, "is not a source"),
        ("sqlite:///missing.db", 1, "there is no file"),
    ],
)
def test_what_cannot_be_watched_is_said_in_one_line(source: str, code: int, said: str) -> None:
    done = command("watch", source)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines()[-1].startswith("constellation-otel watch: ")
    assert said in done.stderr


class Terminal:
    """A terminal of 24 lines, and what a program has written to it."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.text = ""
        self._descriptor = descriptor

    def wait_for(self, *said: str) -> None:
        """Reads until these texts are there."""
        end = time.monotonic() + DEADLINE
        while not all(it in self.text for it in said):
            assert time.monotonic() < end, f"no {said} in {self.text!r}"
            self.read()

    def read(self) -> bool:
        """Reads what is there; whether there may be more."""
        if select.select([self._descriptor], [], [], 0.1)[0]:
            try:
                self.text += os.read(self._descriptor, 65_536).decode()
            except OSError:
                return False
        return True


@contextmanager
def terminal(*arguments: str, **variables: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    env = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "24"} | variables
    try:
        with subprocess.Popen(
            line(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**env)
        ) as process:
            os.close(theirs)
            try:
                yield Terminal(ours, process)
            finally:
                process.kill()
    finally:
        os.close(ours)


def test_on_a_terminal_a_board_is_drawn_again_and_again(tmp_path: Path) -> None:
    """After Ctrl-C its last state stays, with a summary below."""
    path = tmp_path / "events.jsonl"
    with terminal("watch", f"jsonl:{path}") as it:
        it.wait_for("RUNNING: 0", "LOST: nothing")
        ago = execution(2, start_ns=time.time_ns() - 10_000 * MS)
        append(path, [*now(1, fails=True), *ago[:2]], b"junk")
        it.wait_for("RUNNING: 1", "dag-2", "0 done", "trim 1", "LAST FAILURES", "trim failed: bad", "SLOWEST IN 5 MIN")
        it.wait_for("unreadable records: 1", "silent for 1")
        it.process.send_signal(signal.SIGINT)
        it.wait_for("6 events watched from jsonl:", "1 running; lost: unreadable records: 1")
        assert it.process.wait(DEADLINE) == 0
    assert "\x1b[31m✗" in it.text


def test_a_board_has_no_colours_where_none_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append(path, now(1, fails=True))
    with terminal("watch", f"jsonl:{path}", NO_COLOR="1") as it:
        it.wait_for("trim failed: bad")
        it.process.send_signal(signal.SIGTERM)
        it.wait_for("4 events watched")
        assert it.process.wait(DEADLINE) == 0
    assert not re.search(r"\x1b\[(?:[\d;]*;)?3\d", it.text)


def test_a_board_says_why_its_source_gives_nothing() -> None:
    with terminal("watch", "ws://127.0.0.1:1", TERM="xterm") as it:
        it.wait_for("RUNNING: 0", "refused")
        it.process.send_signal(signal.SIGTERM)
        it.wait_for("0 events watched")
        assert it.process.wait(DEADLINE) == 0


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append(path, now(1))
    with terminal("watch", f"jsonl:{path}", TERM="dumb") as it:
        it.wait_for("✓ success", "dag-1")
        it.process.send_signal(signal.SIGTERM)
        it.wait_for("4 events watched")
        assert it.process.wait(DEADLINE) == 0
    assert "\x1b" not in it.text
