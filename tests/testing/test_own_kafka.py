"""Kafka's sink and source keep the contract, against the client library's own stand-in for brokers."""

from __future__ import annotations

from contextlib import closing

import pytest
from confluent_kafka import KafkaError

from constellation_otel.delivery import Record
from constellation_otel.testing import check_sink, check_source
from constellation_otel.transports.kafka import KafkaSink, KafkaSource
from deliveries import execution, read_all
from support import DEADLINE
from transports.kafka.helpers import IMPATIENT, PRODUCE, QUICK, TOPIC, Cluster

EVENTS = [event for number in range(1, 201) for event in execution(number)]
# the stand-in rebalances a group that is not new a second before a session would time out
MEMBER = {"session.timeout.ms": 1_500, "heartbeat.interval.ms": 50, **IMPATIENT}
NOWHERE = "127.0.0.1:1"


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_the_kafka_sink(cluster: Cluster) -> None:
    """A broker that refuses records refuses whatever comes with them."""

    def make() -> KafkaSink:
        # so that a batch is one request
        return KafkaSink(cluster.brokers, TOPIC, config={**QUICK, "linger.ms": 20})

    def replay() -> KafkaSource:
        return KafkaSource(cluster.brokers, TOPIC, group="look", follow=False, config=MEMBER)

    def flaky() -> KafkaSink:
        refusals = KafkaError.INVALID_RECORD, KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD
        cluster.answer_with(PRODUCE, *refusals, 0, KafkaError.TOPIC_AUTHORIZATION_FAILED)
        return make()

    def refusing() -> KafkaSink:
        cluster.answer_with(PRODUCE, *[KafkaError.INVALID_RECORD] * 20)
        return make()

    check_sink(
        make,
        received=lambda: [item.event for item in read_all(replay()) if isinstance(item, Record)],
        flaky=flaky,
        refusing=refusing,
        outages={"it is not there": lambda: KafkaSink(NOWHERE, TOPIC)},
    )


@pytest.mark.parametrize("follow", [False, True])
def test_the_kafka_source(follow: bool, cluster: Cluster) -> None:
    with closing(KafkaSink(cluster.brokers, TOPIC, config=QUICK)) as sink:
        for start in range(0, len(EVENTS), 100):
            assert not sink.send(EVENTS[start : start + 100], DEADLINE)
    check_source(
        lambda: KafkaSource(cluster.brokers, TOPIC, group="bridge", follow=follow, config=MEMBER),
        events=EVENTS,
        resumes=follow,
        outages={"it is not there": lambda: KafkaSource(NOWHERE, TOPIC, group="bridge", follow=follow)},
    )
