"""What an engine and a module's body have told besides, in a journal: in one transaction with their event."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from constellation_otel.delivery import Batch
from constellation_otel.delivery.journal.rows import Gathered, row_of
from constellation_otel.events import Event, ModuleCompleted
from constellation_otel.transports.journal import Journal
from programs import ROOT
from records import TOLD, told_all
from support import DEADLINE, UNWATCHED

if TYPE_CHECKING:
    from pathlib import Path

KILLED = """
import os, signal, sys, threading
sys.path[:0] = ["tests"]
from bodied import set_all
from constellation_otel import Constellation, Dag, OtlpListener

def body():
    set_all()

listener = OtlpListener("http://127.0.0.1:1", journal=sys.argv[1])
with Constellation(listener) as engine:
    for _ in range(10):
        engine.run(Dag("pipeline", [body]), {})
    assert listener._journaled.front.flush(20)
    print("appended", flush=True)
    while True:
        engine.run(Dag("pipeline", [body]), {})
"""


def read_back(path: Path) -> list[Event]:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        return [
            event for item in journal.read("otlp", 0, 1_000_000) if isinstance(item, Batch) for event in item.events
        ]


def test_one_of_everything_and_the_largest_are_read_back(path: Path) -> None:
    with closing(Journal(path, sinks=["otlp"])) as journal:
        journal.append(told_all())
    assert read_back(path) == told_all()


@given(st.lists(TOLD, min_size=1, max_size=5))
def test_whatever_was_told_is_read_back(events: list[Event]) -> None:
    for event in events:
        gathered = Gathered()
        gathered.add(1, row_of([event]).data)
        assert gathered.items == [Batch([event], [1])]


@UNWATCHED
def test_after_kill_9_an_end_has_what_its_body_set(path: Path) -> None:
    """Or is not there."""
    command = [sys.executable, "-c", KILLED, str(path)]
    environment = os.environ | {"OTEL_METRICS_EXPORTER": "none"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "appended\n"
        finally:
            program.send_signal(signal.SIGKILL)
            program.communicate(timeout=DEADLINE)
    bodies = [event.body for event in read_back(path) if isinstance(event, ModuleCompleted)]
    assert len(bodies) >= 10
    for body in bodies:
        assert body is not None
        assert (body.attributes["rows"], body.events[0].name, len(body.links)) == (7, "cache miss", 1)
        assert (body.status, body.description, body.name) == ("error", "half of it", "renamed")
