"""Following a topic: what is given, acknowledged and committed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import confluent_kafka
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from constellation_otel.delivery import (
    Position,
    Record,
    SourceItem,
    Unreadable,
)
from constellation_otel.events import (
    ModuleStarted,
)
from constellation_otel.transports.kafka.consumer import Limits
from constellation_otel.transports.kafka.offsets import Partition
from deliveries import flat
from support import eventually
from transports.kafka.helpers import (
    EXECUTION,
    OFFSET_COMMIT,
    OFFSET_FETCH,
    SENDING,
    STARTED,
    TOPIC,
    Cluster,
    committed,
    failing,
    positions,
    read,
    record,
    written,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

    from constellation_otel.transports.kafka import KafkaSink, KafkaSource

    MakeSink = Callable[..., KafkaSink]
    MakeSource = Callable[..., KafkaSource]


def test_what_was_written_is_read_with_its_position(
    cluster: Cluster, make_source: MakeSource, make_sink: MakeSink
) -> None:
    """What is not an event is unreadable."""
    make_sink().send([STARTED], SENDING)
    old = (
        b'{"eventType":"module.started","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410","dagName":null,'
        b'"moduleName":"Trim","durationMs":null,"succeeded":null,"error":null,"timestamp":1795465363577}'
    )
    cluster.write(old, None, b"", b"junk", b"[" + b" " * 100_000)
    source = make_source()
    origin = (TOPIC, 0)
    items = read(source, 5)
    assert items[:2] == [
        Record(STARTED, Position(origin, 0)),
        Record(ModuleStarted(EXECUTION, None, "Trim", 1_795_465_363_577_000_000), Position(origin, 1)),
    ]
    assert [(item.data, item.reason[:13]) for item in items[2:] if isinstance(item, Unreadable)] == [
        (b"", "not an event:"),
        (b"junk", "not an event:"),
        (b"[" + b" " * 65_535, "not an event:"),
    ]
    assert positions(items[2:]) == [Position(origin, 3), Position(origin, 4), Position(origin, 5)]
    assert source.read(0) == ()


def test_a_tombstone_is_nothing_and_holds_up_no_commit(cluster: Cluster, make_source: MakeSource) -> None:
    cluster.write(*written("a"), None, *written("b"), None)
    source = make_source()
    items = read(source, 2)
    source.acknowledge(positions(items))
    source.close()
    cluster.write(*written("c"))
    assert read(make_source(), 1) == [record("c", 4)]


def test_a_read_gives_at_most_a_batch_and_the_next_goes_on(cluster: Cluster, make_source: MakeSource) -> None:
    cluster.write(*written(*"abcde"))
    source = make_source(limits=Limits(max_batch=2))
    answers: list[Sequence[SourceItem]] = []

    def are_all_read() -> bool:
        answers.append(flat(source.read(0.5)))
        return sum(map(len, answers)) == 5

    eventually(are_all_read, "all are read")
    assert max(map(len, answers)) == 2
    assert [item for answer in answers for item in answer] == [
        record(name, offset) for offset, name in enumerate("abcde")
    ]


def test_only_what_is_not_acknowledged_is_read_again(cluster: Cluster, make_source: MakeSource) -> None:
    cluster.write(*written(*"abcde"))
    first = make_source()
    places = positions(read(first, 5))
    first.acknowledge([places[3], places[0], places[1]])
    first.acknowledge([Position(None, 2), Position((TOPIC, 9), 2), Position((TOPIC, 0), 99)])
    first.close()
    # so that whoever knows only of the offset misses none
    assert committed(cluster) == 2
    second = make_source()
    items = read(second, 2)
    assert items == [record("c", 2), record("e", 4)]
    second.acknowledge(positions(items))
    second.close()
    cluster.write(*written("f"))
    assert read(make_source(), 1) == [record("f", 5)]


def test_commits_go_out_from_time_to_time_while_it_reads(cluster: Cluster, make_source: MakeSource) -> None:
    cluster.write(*written(*"ab"))
    source = make_source(limits=Limits(commit_every_s=0.05))
    source.acknowledge(positions(read(source, 2)))
    eventually(lambda: source.read(0.05) or committed(cluster) == 2, "the offset is committed")


def test_a_commit_that_fails_is_logged_and_tried_again(
    cluster: Cluster, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.write(*written(*"ab"))
    source = make_source(limits=Limits(commit_every_s=0))
    items = read(source, 2)
    cluster.answer_with(OFFSET_COMMIT, KafkaError.GROUP_AUTHORIZATION_FAILED)
    source.acknowledge(positions(items))
    eventually(lambda: source.read(0.05) or source.last_error is not None, "the commit has failed")
    assert source.last_error == "delivered records cannot be acknowledged: Broker: Group authorization failed"
    eventually(lambda: source.read(0.05) or committed(cluster) == 2, "the offset is committed")
    eventually(lambda: source.read(0.05) or source.last_error is None, "and that is known")
    assert source.failed_acknowledgements == 1
    assert [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING] == [
        (
            f"kafka://{cluster.brokers}/{TOPIC}: acknowledgements could not be committed; the next commit has them,"
            " or they are read again: Broker: Group authorization failed"
        )
    ]


def test_a_commit_that_raises_breaks_no_read_and_is_tried_again(
    cluster: Cluster, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library raises what it knows at once; nothing that a broker answers makes it do so."""

    class Raising:
        def __init__(self, consumer: Consumer) -> None:
            self._consumer = consumer

        def __getattr__(self, name: str) -> Any:
            return getattr(self._consumer, name)

        def commit(self, **_: object) -> None:
            raise KafkaException(KafkaError(KafkaError._STATE))

    cluster.write(*written(*"ab"))
    source = make_source(limits=Limits(commit_every_s=0))
    items = read(source, 2)
    consumer = source._reader.consumer
    assert consumer is not None
    monkeypatch.setattr(source._reader, "consumer", Raising(consumer))
    source.acknowledge(positions(items))
    assert (source.read(0.05), source.last_error) == (
        (),
        "delivered records cannot be acknowledged: Local: Erroneous state",
    )
    assert source.failed_acknowledgements == 2
    source._reader.consumer = consumer
    eventually(lambda: source.read(0.05) or committed(cluster) == 2, "the offset is committed")


def commit(cluster: Cluster, offset: int, metadata: str) -> None:
    """What somebody else commits for the group."""
    settings = {"bootstrap.servers": cluster.brokers, "group.id": "bridge", "log_level": 0}
    with Consumer(settings) as consumer:
        consumer.commit(offsets=[TopicPartition(TOPIC, 0, offset, metadata)], asynchronous=False)


def test_what_somebody_else_has_committed_is_an_offset_only(cluster: Cluster, make_source: MakeSource) -> None:
    cluster.write(*written(*"abc"))
    commit(cluster, 1, "set back by hand")
    assert read(make_source(), 2) == [record("b", 1), record("c", 2)]


def test_an_offset_beyond_the_topic_is_not_about_this_topic(cluster: Cluster, make_source: MakeSource) -> None:
    """As where it was deleted and made anew."""
    cluster.write(*written(*"ab"))
    longer = Partition(0, 0)
    for offset in range(9):
        longer.read(offset)
        longer.acknowledge(offset)
    commit(cluster, longer.safe, longer.metadata)
    assert read(make_source(), 2) == [record("a", 0), record("b", 1)]


def test_a_read_without_the_committed_offset_is_unavailable(cluster: Cluster, make_source: MakeSource) -> None:
    """It skips nothing."""
    cluster.write(*written(*"ab"))
    source = make_source()
    # the library has asked by itself, for where to begin
    cluster.answer_with(OFFSET_FETCH, 0, KafkaError.GROUP_AUTHORIZATION_FAILED)
    failure = failing(lambda: source.read(0.2))
    assert "the committed offset of partition 0 cannot be looked up" in str(failure)
    assert read(source, 2) == [record("a", 0), record("b", 1)]


def test_the_last_commit_stays_while_too_much_is_open(
    cluster: Cluster, make_source: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.write(*written(*"abcdefgh"))
    source = make_source(limits=Limits(commit_every_s=0, max_metadata=40))
    places = positions(read(source, 8))
    with caplog.at_level(logging.INFO):
        source.acknowledge([places[0], *places[5:]])
    assert f"kafka://{cluster.brokers}/{TOPIC}: too much is open in partition 0 for a commit" in caplog.text
    assert committed(cluster) == confluent_kafka.OFFSET_INVALID
    source.acknowledge(places[:5])
    eventually(lambda: source.read(0.05) or committed(cluster) == 8, "the offset is committed")


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 30), st.sets(st.integers(0, 100)), st.sets(st.integers(0, 100))), max_size=5),
)
def test_a_successor_is_given_what_was_not_acknowledged(
    gaps: list[int], successors: list[tuple[int, set[int], set[int]]]
) -> None:
    """By none of its predecessors."""
    offsets = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    acknowledged: set[int] = set()
    partition = Partition(0, 0)
    # each reads so many, acknowledges some of those, and then some are deleted from the topic; the last reads all
    for count, wanted, deleted in [*successors, (len(offsets), set(offsets), set())]:
        safe, metadata = partition.safe, partition.metadata
        there = [offset for offset in offsets if offset >= safe]
        partition = Partition(0, there[0] if there else safe)
        partition.resume(safe, metadata)
        given = [offset for offset in there[:count] if partition.read(offset)]
        assert given == [offset for offset in there[:count] if offset not in acknowledged]
        for offset in wanted & set(given):
            partition.acknowledge(offset)
            acknowledged.add(offset)
        offsets = [offset for offset in offsets if offset not in deleted]
    # what is deleted keeps nothing open, either
    assert partition.outstanding.keys().isdisjoint(offsets)


@given(st.lists(st.integers(1, 3), max_size=30), st.data())
def test_what_is_committed_is_the_first_offset_that_is_open(gaps: list[int], data: st.DataObject) -> None:
    """Whatever the order of the acknowledgements."""
    offsets = [100 + sum(gaps[:index]) for index in range(len(gaps) + 1)]
    partition = Partition(0, 100)
    assert partition.safe == 100
    for offset in offsets:
        partition.read(offset)
    still_open = set(offsets)
    for offset in data.draw(st.permutations(offsets)):
        assert partition.safe == min(still_open)
        partition.acknowledge(offset)
        still_open.discard(offset)
    assert partition.safe == offsets[-1] + 1
