"""The examples that need a server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from .peers import Kafka

if TYPE_CHECKING:
    import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def kafka_events(brokers: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "kafka_events.py")],
        env=os.environ | {"KAFKA_BOOTSTRAP_SERVERS": brokers},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_kafka_events_prints_what_a_consumer_finds(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Kafka(tmp_path_factory.mktemp("kafka")) as kafka:
        admin = AdminClient({"bootstrap.servers": kafka.brokers})
        admin.create_topics([NewTopic("constellation-events", num_partitions=1)])["constellation-events"].result(30)
        done = kafka_events(kafka.brokers)
    assert (done.returncode, done.stdout) == (
        0,
        "ExecutionStarted\nModuleStarted\nModuleCompleted\nExecutionCompleted\n",
    )


def test_kafka_events_without_a_broker_says_that_it_needs_one() -> None:
    done = kafka_events("127.0.0.1:1")
    *_, last = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert last == "4 events were not delivered; start a broker at 127.0.0.1:1, or set KAFKA_BOOTSTRAP_SERVERS"
    assert "Traceback" not in done.stderr
