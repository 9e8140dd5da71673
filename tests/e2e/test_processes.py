"""An execution that several processes tell of over one topic, and the bridge that makes its trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from constellation_otel import trace_id_of
from constellation_otel.testing import span_tree
from sharing import DAG, EXECUTION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from constellation_otel.receiver import Receiver

    from .bridges import RunningBridge
    from .peers import Kafka

DEADLINE = 60.0
ROOT = Path(__file__).parents[2]


@pytest.fixture
def topic(kafka: Kafka) -> str:
    """A topic of its own, with more parts than one."""
    name = f"e2e-{uuid.uuid4()}"
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    admin.create_topics([NewTopic(name, 3, 1)])[name].result(DEADLINE)
    return name


@contextmanager
def sharing(scene: str, method: str, kafka: Kafka, topic: str) -> Iterator[subprocess.Popen[str]]:
    """The program that shares an execution with its children; killed at the end."""
    line = [sys.executable, "tests/sharing.py", scene, method, "kafka", kafka.brokers, topic]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as program:
        try:
            yield program
        finally:
            program.kill()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_whose_workers_write_to_the_topic_makes_one_trace(
    kafka: Kafka, topic: str, receiver: Receiver, start_bridge: Callable[..., RunningBridge], method: str
) -> None:
    to = receiver.grpc_endpoint.replace("http:", "otlp:")
    bridge = start_bridge(f"kafka://{kafka.brokers}/{topic}?group={topic}", "--to", to)
    with sharing("pool", method, kafka, topic) as program:
        printed, _ = program.communicate(timeout=DEADLINE)
    assert program.returncode == 0
    parent, *workers = map(int, printed.splitlines()[0].split())
    receiver.wait_for_spans(6, DEADLINE)
    report = bridge.end()
    modules = ["0", "1", "2", "3", "load"]
    assert span_tree(receiver.spans) == "\n".join(
        [f"{DAG} (server) success", *(f"  {name} (internal) success" for name in modules)]
    )
    assert len(receiver.spans) == 6
    assert {span.trace_id for span in receiver.spans} == {trace_id_of(EXECUTION)}
    told = {span.name: span.attributes["pid"] for span in receiver.spans if span.name != DAG}
    assert told == {"load": parent, **dict(zip(modules, workers, strict=False))}
    assert len({parent, *workers}) == 3
    assert {name: report["assembly"][name] for name in ("executions", "abandoned", "late")} == {
        "executions": 1,
        "abandoned": 0,
        "late": 0,
    }


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_killed_parents_execution_is_abandoned_once_by_the_bridge(
    kafka: Kafka, topic: str, receiver: Receiver, start_bridge: Callable[..., RunningBridge], method: str
) -> None:
    """After its idle time, and not by the children, whose modules go on until their parent is dead."""
    to = receiver.grpc_endpoint.replace("http:", "otlp:")
    bridge = start_bridge(
        f"kafka://{kafka.brokers}/{topic}?group={topic}", "--to", to, "--idle-timeout", "4", "--settle", "0.2"
    )
    with sharing("orphans", method, kafka, topic) as program:
        assert program.stdout is not None
        assert [program.stdout.readline() for _ in range(2)] == ["running\n"] * 2
        program.send_signal(signal.SIGKILL)
        printed, _ = program.communicate(timeout=DEADLINE)
    assert (program.returncode, printed) == (-signal.SIGKILL, "ended\n" * 2)
    receiver.wait_for_spans(4, DEADLINE)
    # at its end it makes whatever there still is
    report = bridge.end()
    assert span_tree(receiver.spans) == (
        f'{DAG} (server) abandoned ERROR "abandoned without an end: no event for the idle time"\n'
        "  first (internal) success\n"
        "  load (internal) success\n"
        "  second (internal) success"
    )
    assert len(receiver.spans) == 4
    assert {name: report["assembly"][name] for name in ("executions", "abandoned", "late")} == {
        "executions": 1,
        "abandoned": 1,
        "late": 0,
    }
