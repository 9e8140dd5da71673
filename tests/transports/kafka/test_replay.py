"""Reading a topic once, from end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from confluent_kafka import KafkaError

from constellation_otel.delivery import (
    Position,
    SourceItem,
)
from constellation_otel.errors import (
    MisconfiguredError,
    SourceError,
)
from constellation_otel.transports.kafka import KafkaSource
from constellation_otel.transports.kafka.consumer import Limits
from constellation_otel.transports.url import SourceOptions
from deliveries import flat
from support import DEADLINE, eventually
from transports.kafka.helpers import FETCH, LIST_OFFSETS, Cluster, positions, read, record, written

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeSource = Callable[..., KafkaSource]


def replayed(source: KafkaSource) -> list[SourceItem]:
    items: list[SourceItem] = []

    def has_ended() -> bool:
        items.extend(flat(source.read(0.2)))
        return source.has_ended

    eventually(has_ended, "the replay has ended")
    return items


def test_a_replay_reads_every_partition_to_its_end(cluster: Cluster, make_source: MakeSource) -> None:
    """It joins no group and commits nothing."""
    cluster.create("three", 3)
    for partition in (0, 2):
        cluster.write(*written(*"abc"), partition=partition, topic="three")
    source = make_source("three", follow=False, limits=Limits(max_batch=2))
    assert not source.has_ended
    assert source.fraction_read is None
    items = read(source, 2)
    assert source.fraction_read == len(items) / 6
    items += replayed(source)
    assert source.fraction_read == 1
    assert sorted(positions(items)) == [
        Position(("three", partition), offset) for partition in (0, 2) for offset in range(3)
    ]
    source.acknowledge(positions(items))
    assert source.read(DEADLINE) == ()
    again = make_source("three", follow=False)
    assert sorted(positions(replayed(again))) == sorted(positions(items))


def test_a_replay_of_an_empty_topic_ends_at_once(make_source: MakeSource) -> None:
    source = make_source(follow=False)
    assert source.read(DEADLINE) == ()
    assert source.has_ended
    assert (source.fraction_read, make_source().fraction_read) == (1, None)


def test_a_replay_ends_where_the_topic_ended_when_it_began(cluster: Cluster, make_source: MakeSource) -> None:
    cluster.write(*written(*"ab"))
    source = make_source(follow=False, limits=Limits(max_batch=1))
    items = read(source, 1)
    cluster.write(*written("c"))
    assert [*items, *replayed(source)] == [record("a", 0), record("b", 1)]


@pytest.mark.parametrize("later", [[], ["c"]])
def test_a_replay_ends_where_records_are_deleted_meanwhile(
    cluster: Cluster, make_source: MakeSource, later: list[str]
) -> None:
    cluster.write(*written(*"ab"))
    # so that nothing is there before it is deleted
    cluster.answer_with(FETCH, KafkaError.KAFKA_STORAGE_ERROR)
    source = make_source(follow=False, fetch_error_backoff_ms=100)
    assert source.read(0) == ()
    cluster.delete_records(2)
    cluster.write(*written(*later))
    assert replayed(source) == []


def test_a_replay_of_a_topic_that_is_not_there_can_never_be(make_source: MakeSource) -> None:
    with pytest.raises(SourceError, match="create the topic, or correct its name"):
        make_source("nowhere", follow=False).read(1)


def test_a_replay_waits_for_what_may_get_well(cluster: Cluster, make_source: MakeSource) -> None:
    cluster.create("two", 2)
    for partition in range(2):
        cluster.write(*written("a"), partition=partition, topic="two")
    source = make_source("two", follow=False)
    cluster.break_topic(KafkaError.TOPIC_AUTHORIZATION_FAILED, "two")
    with pytest.raises(MisconfiguredError, match="Topic authorization failed"):
        source.read(1)
    cluster.break_topic(0, "two")
    # of each partition the first and the last offset are asked for
    cluster.answer_with(LIST_OFFSETS, 0, 0, *[KafkaError.TOPIC_AUTHORIZATION_FAILED] * 2)
    with pytest.raises(MisconfiguredError, match=r"the topic cannot be looked up: .*authorization failed"):
        source.read(1)
    assert sorted(positions(replayed(source))) == [Position(("two", partition), 0) for partition in range(2)]


def test_a_topic_is_looked_at_without_being_read(cluster: Cluster, make_source: MakeSource) -> None:
    cluster.create("two", 2)
    cluster.write(*written("a", "b"), topic="two", partition=1)
    assert make_source("two", follow=False).look(DEADLINE) == (2, 2)
    with pytest.raises(SourceError, match="create the topic, or correct its name"):
        make_source("missing", follow=False).look(DEADLINE)


def test_one_that_only_looks_follows_without_the_group(cluster: Cluster, make_source: MakeSource) -> None:
    """Every partition, from the oldest record on; the group's member notices nothing, and nothing is committed."""
    cluster.create("two", 2)
    for partition in range(2):
        cluster.write(*written("a"), partition=partition, topic="two")
    member = make_source("two")
    mine = read(member, 2)
    url = f"kafka://{cluster.brokers}/two?group=bridge&fetch.wait.max.ms=10"
    looking = KafkaSource.from_url(url, SourceOptions(follow=True, only_looks=True))
    try:
        items = read(looking, 2)
        assert sorted(positions(items)) == sorted(positions(mine))
        looking.acknowledge(positions(items))
        cluster.write(*written("b"), None, partition=1, topic="two")
        assert read(looking, 1) == read(member, 1) == [record("b", 1, 1, "two")]
        assert looking.read(0.2) == ()
        assert (looking.has_ended, looking.fraction_read) == (False, None)
        assert looking.name == f"kafka://{cluster.brokers}/two"
    finally:
        looking.close()
