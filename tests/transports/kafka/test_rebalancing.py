"""Partitions that are taken away, lost, and kept by a reader without room."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import confluent_kafka
from confluent_kafka import KafkaError

from constellation_otel.delivery import (
    Position,
    Revoked,
    SourceItem,
)
from constellation_otel.transports.kafka.consumer import Limits
from deliveries import flat
from support import eventually
from transports.kafka.helpers import HEARTBEAT, TOPIC, Cluster, committed, positions, read, record, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from constellation_otel.transports.kafka import KafkaSource

    MakeSource = Callable[..., KafkaSource]


def test_a_partition_that_is_taken_away_is_revoked_in_order(cluster: Cluster, make_source: MakeSource) -> None:
    """Its successor begins with what was not acknowledged."""
    cluster.create("two", 2)
    for partition in range(2):
        cluster.write(*written(*"abc"), partition=partition, topic="two")
    # the stand-in's groups know only the older way, in which everything is taken away for a moment
    settings = {"partition_assignment_strategy": "range"}
    first = make_source("two", limits=Limits(commit_every_s=0), **settings)
    read(first, 6)
    first.acknowledge([Position(("two", partition), 0) for partition in range(2)])
    second = make_source("two", limits=Limits(commit_every_s=0), **settings)
    firsts: list[SourceItem] = []
    seconds: list[SourceItem] = []

    def has_read() -> bool:
        firsts.extend(flat(first.read(0.05)))
        seconds.extend(flat(second.read(0.05)))
        return len(seconds) >= 2

    eventually(has_read, "the second one has a partition")
    assert set(firsts[:2]) == {Revoked(("two", 0)), Revoked(("two", 1))}
    taken = next(partition for partition in range(2) if positions(seconds)[0].origin == ("two", partition))
    assert seconds[:2] == [record("b", 1, taken, "two"), record("c", 2, taken, "two")]


def test_a_partition_that_is_lost_is_revoked(cluster: Cluster, make_source: MakeSource) -> None:
    """Nothing is committed for it."""
    cluster.write(*written(*"ab"))
    source = make_source()
    items = read(source, 2)
    source._reader.commit_error = "Broker: Not coordinator"
    cluster.answer_with(HEARTBEAT, KafkaError.UNKNOWN_MEMBER_ID)
    assert read(source, 1) == [Revoked((TOPIC, 0))]
    assert source.last_error is None
    source.acknowledge(positions(items))
    source.close()
    assert committed(cluster) == confluent_kafka.OFFSET_INVALID


def test_a_reader_without_room_stays_in_the_group(cluster: Cluster, make_source: MakeSource) -> None:
    """It reads on later."""
    cluster.write(*written("a"))
    source = make_source(max_poll_interval_ms=1_100, session_timeout_ms=1_100)
    source.keep_alive()
    source.acknowledge([])
    assert read(source, 1) == [record("a", 0)]
    cluster.write(*written("b"))
    end = time.monotonic() + 1.5

    def is_over() -> bool:
        source.keep_alive()
        return time.monotonic() > end

    eventually(is_over, "longer than a group waits")
    assert read(source, 1) == [record("b", 1)]


def test_what_a_reader_without_room_loses_comes_with_its_next_read(cluster: Cluster, make_source: MakeSource) -> None:
    cluster.write(*written("a"))
    source = make_source()
    read(source, 1)
    cluster.answer_with(HEARTBEAT, KafkaError.UNKNOWN_MEMBER_ID)

    def is_taken_away() -> bool:
        source.keep_alive()
        return bool(source._reader._polled.items)

    eventually(is_taken_away, "the partition is taken away")
    assert read(source, 2) == [Revoked((TOPIC, 0)), record("a", 0)]


def test_a_partition_that_was_never_read_is_given_up_silently(make_source: MakeSource) -> None:
    """Nothing of it is open that would have to be dropped."""
    source = make_source()
    source._reader._drop([(TOPIC, 9)])
    assert source._reader._polled.items == []
