"""Kafka's sink and source keep the contract, against the client library's own stand-in for brokers."""

from __future__ import annotations

import ctypes
from contextlib import closing
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import Producer

from constellation_otel.delivery import Record
from constellation_otel.testing import check_sink, check_source
from constellation_otel.transports.kafka import KafkaSink, KafkaSource
from deliveries import execution, read_all
from support import DEADLINE

TOPIC = "constellation-events"
EVENTS = [event for number in range(1, 201) for event in execution(number)]
LIBRARY = ctypes.CDLL(
    str(next((Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs").glob("librdkafka*")))
)
LIBRARY.rd_kafka_handle_mock_cluster.restype = ctypes.c_void_p
LIBRARY.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
# the stand-in rebalances a group that is not new a second before a session would time out
QUICK = {"session.timeout.ms": 1_500, "heartbeat.interval.ms": 50, "fetch.wait.max.ms": 10}
NOWHERE = "127.0.0.1:1"


class Cluster:
    """One broker, with one topic of one partition."""

    def __init__(self) -> None:
        self._owner = Producer({"test.mock.num.brokers": 1, "log_level": 0})
        # the library's own object in a producer: the first field
        handle = ctypes.c_void_p.from_address(id(self._owner) + object.__basicsize__)
        cluster = ctypes.c_void_p(LIBRARY.rd_kafka_handle_mock_cluster(handle))
        self.brokers: str = LIBRARY.rd_kafka_mock_cluster_bootstraps(cluster).decode()
        LIBRARY.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0)
        assert LIBRARY.rd_kafka_mock_topic_create(cluster, TOPIC.encode(), 1, 1) == 0


@pytest.fixture
def brokers() -> Any:
    cluster = Cluster()
    yield cluster.brokers
    del cluster


def replay(brokers: str) -> KafkaSource:
    return KafkaSource(brokers, TOPIC, group="look", follow=False, config=QUICK)


def test_the_kafka_sink(brokers: str) -> None:
    check_sink(
        lambda: KafkaSink(brokers, TOPIC),
        received=lambda: [item.event for item in read_all(replay(brokers)) if isinstance(item, Record)],
        outages={"it is not there": lambda: KafkaSink(NOWHERE, TOPIC)},
    )


@pytest.mark.parametrize("follow", [False, True])
def test_the_kafka_source(follow: bool, brokers: str) -> None:
    with closing(KafkaSink(brokers, TOPIC)) as sink:
        for start in range(0, len(EVENTS), 100):
            assert not sink.send(EVENTS[start : start + 100], DEADLINE)
    check_source(
        lambda: KafkaSource(brokers, TOPIC, group="bridge", follow=follow, config=QUICK),
        events=EVENTS,
        resumes=follow,
        outages={"it is not there": lambda: KafkaSource(NOWHERE, TOPIC, group="bridge", follow=follow)},
    )
