"""Brokers and topics that come and go, and closing meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import KafkaError

from constellation_otel.delivery import (
    Position,
    Revoked,
    SourceItem,
)
from constellation_otel.errors import (
    MisconfiguredError,
    UnavailableError,
)
from constellation_otel.transports.kafka import KafkaSource
from constellation_otel.transports.kafka.consumer import Limits
from constellation_otel.transports.url import SourceOptions
from deliveries import flat
from support import DEADLINE, eventually
from transports.kafka.helpers import FETCH, TOPIC, Cluster, break_for_good, failing, positions, read, record, written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    MakeSource = Callable[..., KafkaSource]


def test_without_a_broker_a_read_is_unavailable_in_time(cluster: Cluster) -> None:
    """It names the broker."""
    cluster.down()
    source = KafkaSource(cluster.brokers, TOPIC, group="bridge")
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=f"^kafka://{cluster.brokers}/{TOPIC}: .*Connection refused") as caught:
        source.read(0.5)
    assert time.monotonic() - began < 3
    assert not isinstance(caught.value, MisconfiguredError)
    source.close()


def test_reading_goes_on_when_a_broker_is_back(cluster: Cluster, make_source: MakeSource) -> None:
    cluster.write(*written("a"))
    source = make_source()
    read(source, 1)
    cluster.down()
    assert "brokers are down" in str(failing(lambda: source.read(0.2)))
    assert "the topic cannot be looked up" in str(failing(lambda: source.read(0.2)))
    cluster.up()

    def is_back() -> bool:
        try:
            return source.read(0.2) == ()
        except UnavailableError:
            return False

    eventually(is_back, "the broker is there again")
    cluster.write(*written("b"))
    # where it was away for longer than a session, what was not acknowledged comes before that
    eventually(lambda: record("b", 1) in flat(source.read(0.2)), "what came later is read")


def test_wrong_credentials_are_an_alarm_of_the_source_too(cluster: Cluster) -> None:
    source = KafkaSource.from_url(f"kafka://alice:geheim@{cluster.brokers}/{TOPIC}?group=bridge", SourceOptions())
    failure = failing(lambda: source.read(0.5))
    source.close()
    assert isinstance(failure, MisconfiguredError)
    assert "(user 'alice', mechanism PLAIN): check the user" in str(failure)
    assert "geheim" not in str(failure)


def test_a_topic_to_follow_may_be_created_later(cluster: Cluster, make_source: MakeSource) -> None:
    source = make_source("later")
    with pytest.raises(MisconfiguredError, match="create the topic, or correct its name"):
        source.read(1)
    cluster.create("later")
    cluster.write(*written("a"), topic="later")
    assert read(source, 1) == [record("a", 0, topic="later")]


def test_a_topic_may_go_and_come_back(cluster: Cluster, make_source: MakeSource) -> None:
    cluster.write(*written("a"))
    source = make_source(topic_metadata_refresh_interval_ms=100)
    read(source, 1)
    cluster.break_topic(KafkaError.UNKNOWN_TOPIC_OR_PART)
    failure = failing(lambda: source.read(0.2))
    assert isinstance(failure, MisconfiguredError)
    cluster.break_topic(0)
    cluster.write(*written("b"))

    def is_back() -> bool:
        try:
            return record("b", 1) in flat(source.read(0.2))
        except UnavailableError:
            return False

    eventually(is_back, "what came later is read")


def test_an_error_comes_after_what_was_read_before_it(cluster: Cluster, make_source: MakeSource) -> None:
    cluster.write(*written("a"))
    source = make_source()
    read(source, 1)
    cluster.answer_with(FETCH, *[KafkaError.TOPIC_AUTHORIZATION_FAILED] * 3)
    assert isinstance(failing(lambda: source.read(0.2)), MisconfiguredError)
    cluster.forget_answers(FETCH)
    source._reader._failure = UnavailableError("kept for the next read")
    with pytest.raises(UnavailableError, match="kept for the next read"):
        source.read(0.2)


def test_a_member_that_cannot_go_on_is_replaced(cluster: Cluster, make_source: MakeSource) -> None:
    """What it had is revoked."""
    cluster.write(*written("a"))
    source = make_source()
    read(source, 1)
    break_for_good(source._reader.consumer, KafkaError.FENCED_INSTANCE_ID)
    assert read(source, 1) == [Revoked((TOPIC, 0))]
    with pytest.raises(UnavailableError, match="this member is out of the group, a new one joins: Fatal error"):
        source.read(0.2)
    assert read(source, 1) == [record("a", 0)]


def test_closing_ends_a_read_that_waits_and_reading_is_over(cluster: Cluster, make_source: MakeSource) -> None:
    source = make_source()
    source.read(0.1)
    answers: list[Sequence[SourceItem]] = []
    reader = threading.Thread(target=lambda: answers.append(source.read(DEADLINE)))
    reader.start()
    eventually(lambda: not source._is_idle.is_set(), "it reads")
    began = time.monotonic()
    source.close()
    reader.join(DEADLINE)
    assert time.monotonic() - began < 5
    source.close()
    source.acknowledge([Position((TOPIC, 0), 0)])
    source.keep_alive()
    assert [*answers, source.read(DEADLINE)] == [(), ()]


def test_closing_does_not_wait_for_a_broker_that_does_not_answer(
    cluster: Cluster, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.write(*written("a"))
    source = make_source(limits=Limits(close_s=0.2))
    source.acknowledge(positions(read(source, 1)))
    cluster.answer_after(1_000)
    began = time.monotonic()
    source.close()
    assert time.monotonic() - began < 0.9
    assert [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING] == [
        (
            f"kafka://{cluster.brokers}/{TOPIC}: not closed within 0.2 s; the broker does not answer, so the last"
            " acknowledgements may be lost and the group waits for the session to time out"
        )
    ]
    eventually(lambda: not [each for each in threading.enumerate() if each.name.startswith("closing ")], "it ends")


def test_closing_does_not_wait_for_a_read_that_does_not_end(
    cluster: Cluster, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.answer_after(1_000)
    source = make_source(limits=Limits(close_s=0.1))
    errors: list[UnavailableError] = []
    reader = threading.Thread(target=lambda: errors.append(failing(lambda: source.read(0.4))))
    reader.start()
    eventually(lambda: not source._is_idle.is_set() and source._reader.consumer is not None, "it reads")
    source.close()
    reader.join(DEADLINE)
    assert len(errors) == 1
    assert "not closed within 0.1 s" in caplog.text
