"""What kill -9 leaves in a journal."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import closing
from typing import TYPE_CHECKING

from constellation_otel.transports.journal import Journal
from journals import execute, numbers_of
from support import DEADLINE, UNWATCHED

if TYPE_CHECKING:
    from pathlib import Path

KILLED = """
import os, random, signal, sys, time
from constellation_otel.delivery import Position
from constellation_otel.events import ExecutionCancelled
from constellation_otel.transports.journal import Journal
from uuid import UUID

path, log_path = sys.argv[1:]
execution = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def tell(word, numbers):
    os.write(log, f"{word} {' '.join(map(str, numbers))}\\n".encode())

def work(first):
    journal, number = Journal(path, sinks=["otlp", "sql"]), first
    while True:
        batch = range(number, number + random.randint(1, 60))
        number += len(batch)
        tell("appending", batch)
        journal.append([ExecutionCancelled(execution, "x" * random.randint(1, 2000), n) for n in batch])
        tell("appended", batch)
        for sink in ("otlp", "sql"):
            rows = [
                (event.timestamp_ns, offset)
                for item in journal.read(sink, 0, 200)
                for event, offset in zip(item.events, item.offsets)
            ]
            chosen = random.sample(rows, len(rows) * 2 // 3)
            numbers = [number for number, _ in chosen]
            tell("acknowledging-" + sink, numbers)
            journal.acknowledge(sink, [Position(None, offset) for _, offset in chosen])
            tell("acknowledged-" + sink, numbers)

def lines():
    with open(log_path) as file:
        return sum(1 for _ in file)

for line in sys.stdin:
    first, steps, delay_ms = map(int, line.split())
    before = lines()
    child = os.fork()
    if child == 0:
        work(first)
    deadline = time.monotonic() + 30
    while lines() < before + steps and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay_ms / 1000)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


def told(log: Path) -> defaultdict[str, set[int]]:
    """Which numbers the killed processes said of what they did, by what they did."""
    said: defaultdict[str, set[int]] = defaultdict(set)
    for line in log.read_text().splitlines():
        word, *numbers = line.split(" ")
        said[word].update(int(number) for number in numbers if number)
    return said


@UNWATCHED
def test_kill_9_loses_nothing_that_was_committed(path: Path) -> None:
    """And brings back nothing that was acknowledged."""
    log = path.with_name("log")
    kills = 24
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            for kill in range(kills):
                process.stdin.write(f"{kill * 1_000_000 + 1} {random.randint(1, 20)} {random.randint(0, 10)}\n")
                process.stdin.flush()
                assert process.stdout.readline() == f"{-signal.SIGKILL}\n"
                said = told(log)
                with closing(Journal(path, sinks=["otlp", "sql"])) as journal:
                    for sink in ("otlp", "sql"):
                        there = Counter(numbers_of(journal.read(sink, 0, 1_000_000)))
                        assert set(there.values()) <= {1}
                        assert journal.held(sink) == len(there)
                        left = said["appended"] - said[f"acknowledging-{sink}"]
                        assert left <= there.keys()
                        assert not said[f"acknowledged-{sink}"] & there.keys()
                        assert there.keys() <= said["appending"]
                assert execute(path, "PRAGMA integrity_check") == [("ok",)]
        finally:
            process.stdin.close()
            process.wait(DEADLINE)
    assert len(told(log)["appended"]) > kills
