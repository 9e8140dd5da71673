"""OtlpListener when its process ends, is killed, or forks, and under automatic instrumentation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from constellation_otel import trace_id_of
from constellation_otel.receiver import Drop, Receiver, Refuse
from constellation_otel.testing import span_tree
from programs import ROOT, run_command
from support import DEADLINE, UNWATCHED, eventually
from telemetry import (
    OPT_IN,
    TREE,
    Wire,
    assert_sum,
    endpoint_of,
    traces_of,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from constellation_otel.otel import OtlpListener


pytestmark = pytest.mark.usefixtures("clean_environment")


PRELUDE = """
import os, sys, uuid
sys.path[:0] = ["tests"]
from constellation_otel.otel import OtlpListener
from reports import run
"""


TO_BE_KILLED = """
listener = OtlpListener(sys.argv[1], journal=sys.argv[2])
listener.on_execution_start(uuid.UUID(int=1), "cut")
listener.on_module_start(uuid.UUID(int=1), uuid.UUID(int=2), "done")
listener.on_module_complete(uuid.UUID(int=1), uuid.UUID(int=2), "done", 1.0)
listener.on_module_start(uuid.UUID(int=1), uuid.UUID(int=3), "running")
while True:
    ids = [run(listener) for _ in range(5)]
    assert listener._journaled.front.flush(20)
    print(*ids, flush=True)
"""


FORKING = """
listener = OtlpListener(sys.argv[1], protocol=sys.argv[2], journal=sys.argv[3] if sys.argv[3:] else None)
listener.on_execution_start(uuid.UUID(int=1), "left open by the parent")
run(listener)
assert listener.flush(20)
child = os.fork()
if child == 0:
    assert len(listener._sampling.decisions) == listener.counters.received == 0
    run(listener)
    os._exit(0 if listener.close(20) else 1)
_, status = os.waitpid(child, 0)
assert listener.close(20)
grandchild = os.fork()
if grandchild == 0:
    run(listener)
    os._exit(0 if listener.close(20) and listener.counters.dropped == 6 else 1)
print(os.waitstatus_to_exitcode(status), os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
"""


def started(text: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", PRELUDE + text, *arguments]
    environment = os.environ | variables
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )


def output_of(text: str, *arguments: str, **variables: str) -> tuple[str, str]:
    with started(text, *arguments, **variables) as program:
        try:
            printed, logged = program.communicate(timeout=DEADLINE)
        finally:
            program.kill()
    assert program.returncode == 0, logged
    return printed, logged


@UNWATCHED
@pytest.mark.parametrize("endpoint", ["away", "refuses", "answers too late"])
def test_the_next_process_delivers_what_a_killed_one_committed(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], tmp_path: Path, endpoint: str
) -> None:
    if endpoint == "away":
        receiver.stop()
    elif endpoint == "refuses":
        receiver.order(Refuse(times=1_000_000))
    else:
        # what arrives is not known to have arrived, so it is sent again
        receiver.order(Drop(kept=True, times=1_000_000))
    journal = tmp_path / "journal.db"
    committed: list[UUID] = []
    with started(TO_BE_KILLED, receiver.grpc_endpoint, str(journal), OTEL_METRICS_EXPORTER="none") as program:
        try:
            assert program.stdout is not None
            for _ in range(4):
                committed += map(UUID, program.stdout.readline().split())
            if endpoint == "answers too late":
                receiver.wait_for_spans(1, DEADLINE)
        finally:
            program.send_signal(signal.SIGKILL)
            program.communicate(timeout=DEADLINE)
    assert program.returncode == -signal.SIGKILL
    assert len(committed) == 20
    if endpoint == "answers too late":
        receiver._faults.clear()
    else:
        receiver.clear()
        receiver.start()
    listener = make_otlp(receiver.grpc_endpoint, journal=journal, idle_timeout=0.5)
    eventually(lambda: listener.flush(5.0) and not listener.open_executions, "the journal to be empty")
    # what is given up at that moment is for a moment neither open nor waiting
    eventually(lambda: "cut" in {span.name for span in receiver.spans}, "what was open to be given up")
    assert listener.flush(DEADLINE)
    traces = traces_of(receiver.spans)
    assert {trace_id: traces[trace_id] for trace_id in whole(committed)} == whole(committed)
    cut = {span.name: span for span in receiver.spans if span.trace_id == trace_id_of(UUID(int=1))}
    assert span_tree(cut.values()) == (
        'cut (server) abandoned ERROR "abandoned without an end: no event for the idle time"\n'
        "  done (internal) success\n"
        "  running (internal) unknown"
    )
    assert cut["cut"].attributes["constellation.abandoned.reason"] == "idle"
    missing = {name: span.attributes.get("constellation.missing") for name, span in cut.items()}
    assert missing == {"cut": "end", "running": "end", "done": None}
    assert listener.counters.held == 0
    assert_sum(listener.counters)


@pytest.mark.parametrize(("protocol", "with_journal"), [("grpc", False), ("grpc", True), ("http/protobuf", True)])
def test_a_forked_child_sends_none_of_its_parents_executions(
    receiver: Receiver, tmp_path: Path, protocol: Wire, with_journal: bool
) -> None:
    """But its own."""
    journal = [str(tmp_path / "journal.db")] if with_journal else []
    printed, logged = output_of(FORKING, endpoint_of(receiver, protocol), protocol, *journal)
    assert printed == "0 0\n"
    assert ("this child delivers from memory" in logged) is with_journal
    abandoned = 'left open by the parent (server) abandoned ERROR "abandoned without an end: the source ended"'
    assert span_tree(receiver.spans) == f"{abandoned}\n\n{TREE}\n\n{TREE}"
    counts = [point.count for point in receiver.metrics if point.name == "constellation.execution.duration"]
    assert counts == [1, 1]


@UNWATCHED
@pytest.mark.parametrize("with_journal", [False, True])
def test_the_interpreters_exit_delivers_spans_and_metrics(
    receiver: Receiver, tmp_path: Path, with_journal: bool
) -> None:
    journal = f", journal={str(tmp_path / 'journal.db')!r}" if with_journal else ""
    text = f"run(OtlpListener({receiver.http_endpoint!r}, protocol='http/protobuf'{journal}))"
    assert output_of(text) == ("", "")
    assert span_tree(receiver.spans) == TREE
    assert "constellation.module.duration" in {point.name for point in receiver.metrics}


@UNWATCHED
def test_the_interpreters_exit_waits_a_while_for_an_endpoint(receiver: Receiver) -> None:
    """One that is away: about five for spans, and one more for metrics."""
    receiver.stop()
    start = time.monotonic()
    _, logged = output_of(f"run(OtlpListener({receiver.grpc_endpoint!r}))")
    assert 4 < time.monotonic() - start < DEADLINE / 2
    assert "OtlpListener: not done within 5.0 s of closing" in logged or "were not delivered before the end" in logged


INSTRUMENTED = """
import requests
from constellation_otel import Constellation, Dag
from constellation_otel.otel import OtlpListener

def fetch(url):
    with requests.get(url, timeout=20) as response:
        return response.status_code

listener = OtlpListener({endpoint!r}, protocol="http/protobuf", journal={journal!r}, service_name="shop")
with Constellation(listener=listener) as engine:
    engine.run(Dag("my-pipeline", [fetch]), {{"url": {endpoint!r}}})
assert listener.close(20)
"""


@UNWATCHED
def test_under_instrumentation_our_own_requests_are_not_traced(receiver: Receiver, tmp_path: Path) -> None:
    """But those of modules are."""
    program = tmp_path / "program.py"
    journal = str(tmp_path / "journal.db")
    program.write_text(INSTRUMENTED.format(endpoint=receiver.http_endpoint, journal=journal))
    run_command(receiver, f"opentelemetry-instrument python {program}", **{OPT_IN: "logs"})
    assert span_tree(receiver.spans) == (
        "my-pipeline (server) success\n  fetch (internal) success\n    GET (client) ERROR"
    )
    ours = [request for request in receiver.requests if request.protocol == "http/protobuf"]
    assert {request.signal for request in ours} == {"traces", "metrics"}
    assert not any("traceparent" in request.headers for request in ours)
