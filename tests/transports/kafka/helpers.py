"""The cluster that librdkafka has for tests, and what is written to it."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import confluent_kafka
from confluent_kafka import Consumer, Producer, TopicPartition
from opentelemetry.sdk.resources import Resource

from constellation_otel.delivery import (
    Position,
    Record,
    Revoked,
    SourceItem,
)
from constellation_otel.errors import (
    UnavailableError,
)
from constellation_otel.events import (
    ExecutionStarted,
    ModuleStarted,
    encode_json,
)
from constellation_otel.transports.url import SinkOptions
from deliveries import flat
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constellation_otel.transports.kafka import KafkaSource


SINK = SinkOptions(resource=Resource({}))
TOPIC = "constellation-events"
EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
MODULE = UUID("b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538")
NS = 1_795_465_363_577_123_456
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STARTED = ExecutionStarted(EXECUTION, "my-pipeline", NS, TRACEPARENT, "vendor=value")
QUICK = {"enable.idempotence": False}
"""Half a second is what an idempotent producer takes to get its id."""
IMPATIENT = {"fetch.wait.max.ms": 10}
"""A broker holds an answer back for that long when nothing is there."""
SENDING = DEADLINE
PRODUCE, FETCH, LIST_OFFSETS, OFFSET_COMMIT, OFFSET_FETCH, HEARTBEAT = 0, 1, 2, 8, 9, 12
"""Kinds of requests, as the protocol numbers them."""
LIBRARY = ctypes.CDLL(
    next(
        str(path)
        for path in (Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs").glob("librdkafka*")
    )
)
LIBRARY.rd_kafka_handle_mock_cluster.restype = ctypes.c_void_p
LIBRARY.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p


def handle(client: object) -> ctypes.c_void_p:
    """The library's own object in a producer or a consumer: the first field."""
    return ctypes.c_void_p.from_address(id(client) + object.__basicsize__)


def break_for_good(client: object, code: int) -> None:
    """Has a client find that it cannot go on, which no broker brings about reliably."""
    assert LIBRARY.rd_kafka_test_fatal_error(handle(client), code, b"for a test") == 0


class Cluster:
    """One broker, with one topic of one partition to begin with."""

    def __init__(self) -> None:
        self._owner = Producer({"test.mock.num.brokers": 1, "log_level": 0})
        self._cluster = ctypes.c_void_p(LIBRARY.rd_kafka_handle_mock_cluster(handle(self._owner)))
        self.brokers: str = LIBRARY.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        # the first member need not wait for others
        LIBRARY.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self.create(TOPIC)

    def create(self, topic: str, partitions: int = 1) -> None:
        assert LIBRARY.rd_kafka_mock_topic_create(self._cluster, topic.encode(), partitions, 1) == 0

    def down(self) -> None:
        assert LIBRARY.rd_kafka_mock_broker_set_down(self._cluster, 1) == 0

    def up(self) -> None:
        assert LIBRARY.rd_kafka_mock_broker_set_up(self._cluster, 1) == 0

    def answer_after(self, milliseconds: int) -> None:
        assert LIBRARY.rd_kafka_mock_broker_set_rtt(self._cluster, 1, milliseconds) == 0

    def answer_with(self, kind: int, *codes: int) -> None:
        """Answers the next requests of that kind with these errors."""
        errors = (ctypes.c_int * len(codes))(*codes)
        LIBRARY.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(kind), ctypes.c_size_t(len(codes)), errors
        )

    def forget_answers(self, kind: int) -> None:
        LIBRARY.rd_kafka_mock_clear_request_errors(self._cluster, ctypes.c_int16(kind))

    def break_topic(self, code: int, topic: str = TOPIC) -> None:
        """Answers with this error when it is asked for the topic; 0 mends it."""
        LIBRARY.rd_kafka_mock_topic_set_error(self._cluster, topic.encode(), code)

    def delete_records(self, before: int) -> None:
        LIBRARY.rd_kafka_mock_partition_delete_records(self._cluster, TOPIC.encode(), 0, ctypes.c_int64(before))

    def write(self, *values: bytes | None, partition: int = 0, topic: str = TOPIC) -> None:
        """Writes records as anybody may."""
        producer = Producer({"bootstrap.servers": self.brokers, "linger.ms": 0, "log_level": 0})
        for value in values:
            producer.produce(topic, value, partition=partition)
        assert producer.flush(DEADLINE) == 0

    def records(self, topic: str = TOPIC, partitions: int = 1) -> list[tuple[Any, ...]]:
        """All that is in a topic: key, value and headers, partition by partition."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.brokers,
                "group.id": "test",
                "enable.partition.eof": True,
                "enable.auto.commit": False,
                "log_level": 0,
                **IMPATIENT,
            }
        )
        found = []
        places = [TopicPartition(topic, partition, 0) for partition in range(partitions)]
        with consumer:
            consumer.assign(places)
            while places:
                message = consumer.poll(DEADLINE)
                assert message is not None
                if message.error() is None:
                    found.append(message)
                else:
                    places.pop()
        found.sort(key=lambda message: (message.partition(), message.offset()))
        return [(message.key(), message.value(), message.headers()) for message in found]

    def values(self) -> list[bytes]:
        return [value for _, value, _ in self.records()]


def module_started(name: str, execution_id: UUID = EXECUTION) -> ModuleStarted:
    return ModuleStarted(execution_id, MODULE, name, NS)


def written(*names: str) -> list[bytes]:
    return [encode_json(module_started(name)) for name in names]


def read(source: KafkaSource, count: int) -> list[SourceItem]:
    """Reads until there is that much."""
    items: list[SourceItem] = []
    end = time.monotonic() + DEADLINE
    while len(items) < count:
        assert time.monotonic() < end, items
        items += flat(source.read(0.2))
    return items


def record(name: str, offset: int, partition: int = 0, topic: str = TOPIC) -> Record:
    return Record(module_started(name), Position((topic, partition), offset))


def positions(items: Sequence[SourceItem]) -> list[Position]:
    return [item.position for item in flat(items) if not isinstance(item, Revoked)]


def failing(read: Callable[[], object]) -> UnavailableError:
    """Calls until it raises."""
    raised: list[UnavailableError] = []

    def fails() -> bool:
        try:
            read()
        except UnavailableError as error:
            raised.append(error)
        return bool(raised)

    eventually(fails, "it raises")
    return raised[0]


def committed(cluster: Cluster) -> int:
    """What the group has committed of the topic's partition."""
    settings = {"bootstrap.servers": cluster.brokers, "group.id": "bridge", "log_level": 0}
    with Consumer(settings) as consumer:
        return int(consumer.committed([TopicPartition(TOPIC, 0)], DEADLINE)[0].offset)
