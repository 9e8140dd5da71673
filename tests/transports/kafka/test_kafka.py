"""Kafka as a sink and as a source, against the client library's own stand-in for brokers: its protocol, real sockets.

The stand-in runs inside the library that a producer brings, and is told through the
library's C interface to be down, slow, or to answer with errors.
"""

from __future__ import annotations

import ctypes
import logging
import os
import runpy
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import confluent_kafka
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from constellation_otel.delivery import (
    Backoff,
    Lane,
    Position,
    Record,
    Rejection,
    Revoked,
    Sink,
    Source,
    SourceItem,
    Unreadable,
)
from constellation_otel.delivery.transform import EventStage
from constellation_otel.errors import (
    ConfigurationError,
    MisconfiguredError,
    MissingExtraError,
    RefusedError,
    SourceError,
    UnavailableError,
)
from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleFailed,
    ModuleStarted,
    encode_json,
)
from constellation_otel.traces import span_id_of, trace_id_of
from constellation_otel.transports.kafka import KafkaSink, KafkaSource, kafka
from constellation_otel.transports.kafka import reader as reader_module
from constellation_otel.transports.kafka.partition import Partition
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    MakeSink = Callable[..., KafkaSink]
    MakeSource = Callable[..., KafkaSource]

LOGGER = "constellation_otel.transports.kafka.kafka"
TOPIC = "constellation-events"
EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
OTHER = UUID("00000000-0000-4000-8000-000000000001")
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
SASL = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}

LIBRARY = ctypes.CDLL(
    next(
        str(path)
        for path in (Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs").glob("librdkafka*")
    )
)
LIBRARY.rd_kafka_handle_mock_cluster.restype = ctypes.c_void_p
LIBRARY.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p

# made for tests of TLS; it protects nothing
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBZTCCAQygAwIBAgIBATAKBggqhkjOPQQDAjARMQ8wDQYDVQQDDAZlbmdpbmUw
IBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBExDzANBgNVBAMMBmVu
Z2luZTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABONdHFmQ4HU2jn6QKui/zOkL
U/IEvyFKbYjn7iVCeyum/V7RwOTfHr+/jmi2BET6ILAAPIjY1iGHpdnjCFGwTnCj
UzBRMA8GA1UdEQQIMAaHBH8AAAEwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8E
BAMCAoQwHQYDVR0OBBYEFPtygXpWBHBOV7/+JRjjGWITt6UJMAoGCCqGSM49BAMC
A0cAMEQCIAhZFBZ3o3IG9weMdq2dOe7jhzhczLvJ/DSvUWBfcxgIAiB2suWghO0Y
b0BqUgg7BuYMkX1Z2Rpcm4TlfvCnPXJAMw==
-----END CERTIFICATE-----
"""


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


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def make_sink(cluster: Cluster) -> Iterator[MakeSink]:
    with ExitStack() as stack:

        def make(topic: str = TOPIC, **config: Any) -> KafkaSink:
            sink = KafkaSink(cluster.brokers, topic, config={**QUICK, **config})
            stack.callback(sink.close)
            return sink

        yield make


@pytest.fixture
def make_source(cluster: Cluster) -> Iterator[MakeSource]:
    with ExitStack() as stack:

        def make(topic: str = TOPIC, *, follow: bool = True, max_batch: int = 512, **config: Any) -> KafkaSource:
            # the stand-in rebalances a group that is not new a second before a session would time out
            settings = {
                "session.timeout.ms": 1_500,
                "heartbeat.interval.ms": 50,
                **IMPATIENT,
                "reconnect.backoff.max.ms": 200,
            }
            settings |= {name.replace("_", "."): value for name, value in config.items()}
            source = KafkaSource(
                cluster.brokers, topic, group="bridge", follow=follow, config=settings, max_batch=max_batch
            )
            stack.callback(source.close)
            return source

        yield make


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
        items += source.read(0.2)
    return items


def record(name: str, offset: int, partition: int = 0, topic: str = TOPIC) -> Record:
    return Record(module_started(name), Position((topic, partition), offset))


def positions(items: Sequence[SourceItem]) -> list[Position]:
    return [item.position for item in items if not isinstance(item, Revoked)]


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


# --- settings and URLs ----------------------------------------------------------------


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(
        MissingExtraError,
        match=r"^confluent-kafka is not installed; run: pip install 'constellation-otel\[kafka\]'$",
    ):
        runpy.run_path(kafka.__file__)


def test_they_are_what_the_contract_asks_for(make_sink: MakeSink, make_source: MakeSource, cluster: Cluster) -> None:
    sink: Sink[Event] = make_sink()
    source: Source = make_source()
    replay: Source = make_source(follow=False)
    assert (sink.name, sink.takes, sink.max_batch) == ("kafka", "events", 512)
    assert (source.name, replay.name) == (
        f"kafka://{cluster.brokers}/{TOPIC}?group=bridge",
        f"kafka://{cluster.brokers}/{TOPIC}",
    )
    assert [(each.is_ordered, each.is_durable, each.has_ended) for each in (source, replay)] == [
        (False, True, False),
        (False, True, False),
    ]


def test_a_url_says_brokers_topic_credentials_and_settings() -> None:
    sink = KafkaSink.from_url("kafka://us%40er:ge%2Fheim%3A@one:9092,two:9093/my.topic?linger.ms=7&acks=all")
    assert sink._cluster.url == "kafka://one:9092,two:9093/my.topic"
    expected = {
        "bootstrap.servers": "one:9092,two:9093",
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "us@er",
        "sasl.password": "ge/heim:",
        "linger.ms": "7",
        "compression.type": "lz4",
        "enable.idempotence": True,
    }
    assert {name: sink._cluster.settings.get(name) for name in expected} == expected


def test_a_url_may_ask_for_another_mechanism_and_names_a_group() -> None:
    source = KafkaSource.from_url(
        "kafka://u:geheim@one?group=g&security.protocol=SASL_SSL&sasl.mechanism=SCRAM-SHA-256"
    )
    assert source.name == "kafka://one/constellation-events?group=g"
    expected = {
        "group.id": "g",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-256",
        "partition.assignment.strategy": "cooperative-sticky",
    }
    assert {name: source._cluster.settings.get(name) for name in expected} == expected


def test_with_the_newer_group_protocol_the_broker_assigns() -> None:
    source = KafkaSource.from_url("kafka://one?group=g&group.protocol=consumer")
    assert "partition.assignment.strategy" not in source._cluster.settings


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "kafka:u:geheim@one/topic",
            "a Kafka URL is kafka://[user:password@]broker:9092/topic; this one begins otherwise",
        ),
        ("kafka://u:geheim@/topic", "kafka:///topic names no broker; give one or more as host:port"),
        (
            "kafka://u:geheim@one/a%5Eb",
            "'a^b' is no topic's name: 1 to 249 of A-Z, a-z, 0-9, dot, dash, underscore",
        ),
        (
            "kafka://u:geheim@one/topic?liger.ms=5",
            'kafka://one/topic: No such configuration property: "liger.ms"; correct or leave it out',
        ),
        (
            "kafka://u:geheim@one/topic?sasl.mechanism=PLAIN&acks=oh",
            'kafka://one/topic: Invalid value for configuration property "request.required.acks"; correct or',
        ),
        (
            "kafka://one/topic?ssl.ca.location=%2Fnowhere&security.protocol=SSL",
            "kafka://one/topic: Failed to create producer: ssl.ca.location failed: ",
        ),
        (
            "kafka://one/topic?bootstrap.servers=two",
            "kafka://one/topic: bootstrap.servers is not among the options that can be given; leave it out",
        ),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secrets(
    url: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        KafkaSink.from_url(url)
    assert str(caught.value).startswith(message)
    assert "geheim" not in str(caught.value)
    assert "geheim" not in "".join(capfd.readouterr())


def test_the_librarys_words_go_out_without_the_settings_secrets() -> None:
    sink = KafkaSink.from_url("kafka://u:geheim@one/topic?ssl.key.password=privat")
    assert sink._cluster.hide("no geheim, no privat") == "no ***, no ***"


def test_following_needs_a_group_and_replaying_needs_none() -> None:
    for none in ("", "?group=", "?group=%20", "?group=%0A%09"):  # of blanks librdkafka makes an abort
        with pytest.raises(ConfigurationError, match=r"^following a topic needs a consumer group: add \?group=NAME"):
            KafkaSource.from_url(f"kafka://one/topic{none}")
    assert KafkaSource.from_url("kafka://one/topic", follow=False).name == "kafka://one/topic"


def test_the_sinks_queue_has_room_for_what_is_sent_at_once_whatever_is_wished() -> None:
    with pytest.raises(ConfigurationError, match=r"queue\.buffering\.max\.messages is not among the options"):
        KafkaSink.from_url("kafka://one/topic?queue.buffering.max.messages=2")


@pytest.mark.parametrize("setting", ["enable.auto.commit", "enable.partition.eof", "group.id"])
def test_what_the_promises_rest_on_cannot_be_set(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{setting} is not among the options that can be given; leave it out"):
        KafkaSource.from_url(f"kafka://one/topic?group=g&{setting}=true")


# --- the sink -------------------------------------------------------------------------


def test_a_record_has_the_execution_as_its_key_the_guides_json_and_the_trace_context(
    cluster: Cluster, make_sink: MakeSink
) -> None:
    sink = make_sink(**{"enable.idempotence": True})
    events: list[Event] = [
        module_started("Early"),
        STARTED,
        module_started("Trim"),
        ExecutionStarted(OTHER, "other", NS, "00-junk"),
        ExecutionStarted(EXECUTION, "my-pipeline", NS, TRACEPARENT.replace("-01", "-00")),
        ExecutionCompleted(EXECUTION, "my-pipeline", True, 1.5, NS),
    ]
    assert sink.send(events, SENDING) == []
    own, others = f"{span_id_of(EXECUTION):016x}", f"{span_id_of(OTHER):016x}"
    key = str(EXECUTION).encode()
    headers = [
        [("traceparent", f"00-{trace_id_of(EXECUTION):032x}-{own}-03".encode())],
        [("traceparent", TRACEPARENT.encode()), ("tracestate", b"vendor=value")],
        [
            ("traceparent", f"00-0af7651916cd43dd8448eb211c80319c-{own}-01".encode()),
            ("tracestate", b"vendor=value"),
        ],
        [("traceparent", f"00-{trace_id_of(OTHER):032x}-{others}-03".encode())],
        [("traceparent", TRACEPARENT.replace("-01", "-00").encode())],
        [("traceparent", f"00-0af7651916cd43dd8448eb211c80319c-{own}-00".encode())],
    ]
    keys = [key, key, key, str(OTHER).encode(), key, key]
    assert cluster.records() == [
        (key, encode_json(event), its_headers) for key, event, its_headers in zip(keys, events, headers, strict=True)
    ]


def test_callers_are_remembered_up_to_a_bound(
    cluster: Cluster, make_sink: MakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "_MAX_CALLERS", 1)
    sink = make_sink()
    sink.send([STARTED, ExecutionStarted(OTHER, "other", NS, TRACEPARENT)], SENDING)
    sink.send([module_started("Trim"), module_started("Trim", OTHER)], SENDING)
    traces = [headers[0][1].split(b"-")[1] for _, _, headers in cluster.records()]
    assert traces[2:] == [f"{trace_id_of(EXECUTION):032x}".encode(), b"0af7651916cd43dd8448eb211c80319c"]


def test_the_events_of_an_execution_go_to_one_partition_in_order_where_javas_producer_sends_them(
    cluster: Cluster, make_sink: MakeSink
) -> None:
    cluster.create("four", 4)
    names = [str(number) for number in range(50)]
    assert make_sink("four").send([module_started(name) for name in names], SENDING) == []
    # Java's DefaultPartitioner: toPositive(murmur2(key)) % 4
    assert confluent_kafka.murmur2(str(EXECUTION).encode(), 4) == 3
    assert [value for _, value, _ in cluster.records("four", 4)] == written(*names)
    assert [name for (name, _, _) in cluster.records("four", 3)] == []


def test_what_is_no_utf8_is_rejected_and_the_rest_is_delivered(cluster: Cluster, make_sink: MakeSink) -> None:
    bad = ExecutionStarted(EXECUTION, "my-pipeline", NS, None, "\ud800")
    reason = (
        "it cannot be written as UTF-8:"
        " 'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed"
    )
    sink = make_sink()
    assert sink.send([bad, module_started("Trim")], SENDING) == [Rejection(0, 1, reason)]
    assert sink.send([bad], SENDING) == [Rejection(0, 1, reason)]
    assert cluster.values() == written("Trim")


def test_what_is_too_large_for_the_client_is_rejected_and_the_rest_is_delivered(
    cluster: Cluster, make_sink: MakeSink
) -> None:
    large = ModuleFailed(EXECUTION, MODULE, "Large", ErrorInfo("E", "x" * 5_000), NS)
    sink = make_sink(**{"message.max.bytes": 2_000})
    reason = "Unable to produce message: Broker: Message size too large"
    assert sink.send([large, module_started("Trim"), large], SENDING) == [
        Rejection(0, 1, reason),
        Rejection(2, 1, reason),
    ]
    assert cluster.values() == written("Trim")


def test_what_a_broker_refuses_together_is_sent_again_in_halves_until_the_one_is_known(
    cluster: Cluster, make_sink: MakeSink
) -> None:
    cluster.answer_with(PRODUCE, KafkaError.INVALID_RECORD, KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD)
    sink = make_sink(**{"linger.ms": 100})
    lane: Lane[Event] = Lane(sink, EventStage(), backoff=Backoff(0.01))
    for offset, name in enumerate("abcd"):
        lane.add(record(name, offset))
    eventually(lambda: lane.tick() is None, "all are sent")
    counters = lane.counters
    assert (counters.delivered, counters.rejected, counters.retried) == (3, 1, 4)
    assert cluster.values() == written("b", "c", "d")


def test_what_is_safe_beside_what_a_broker_refuses_together_is_not_sent_again(
    cluster: Cluster, make_sink: MakeSink
) -> None:
    cluster.create("two", 2)
    sink = make_sink("two", **{"linger.ms": 100})
    events = [module_started("Trim", UUID(int=number)) for number in range(20)]
    assert sink.send(events, SENDING) == []
    cluster.answer_with(PRODUCE, KafkaError.INVALID_RECORD)
    with pytest.raises(UnavailableError, match="were not acknowledged: Broker: Broker failed to validate") as caught:
        sink.send(events, SENDING)
    assert 0 < len(caught.value.delivered) < len(events)
    left = [event for index, event in enumerate(events) if index not in caught.value.delivered]
    cluster.answer_with(PRODUCE, KafkaError.INVALID_RECORD)
    with pytest.raises(
        RefusedError, match=f"^kafka://{cluster.brokers}/two: Broker: Broker failed to validate record$"
    ):
        sink.send(left, SENDING)


def test_without_a_broker_it_is_unavailable_within_the_timeout_and_nothing_is_written_later(
    cluster: Cluster, make_sink: MakeSink, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    sink = make_sink()
    cluster.down()
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=r"1 of 1 records were not acknowledged.*Connection refused") as caught:
        sink.send([module_started("lost")], 1)
    assert time.monotonic() - began < 3
    assert not isinstance(caught.value, MisconfiguredError)
    assert cluster.brokers in str(caught.value)
    assert caught.value.delivered == frozenset()
    with pytest.raises(UnavailableError, match=r"brokers are down; .*Connection refused"):
        sink.send([module_started("lost")], 1)
    cluster.up()
    assert sink.send([module_started("found")], SENDING) == []
    assert cluster.values() == written("found")
    # the library's own words are in the log, once in a while
    assert [(entry.name, "Connection refused" in entry.getMessage()) for entry in caplog.records] == [(LOGGER, True)]
    assert capfd.readouterr() == ("", "")


def test_a_broker_that_does_not_answer_costs_no_more_than_the_timeout_and_its_late_report_counts_for_nobody(
    cluster: Cluster, make_sink: MakeSink
) -> None:
    sink = make_sink(**{"enable.idempotence": True})
    assert sink.send([module_started("first")], SENDING) == []
    cluster.answer_after(1_500)
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="2 of 2 records were not acknowledged: no broker has answered in time"):
        sink.send([module_started("a"), module_started("b")], 0.5)
    assert time.monotonic() - began < 1.4
    cluster.answer_after(0)
    assert sink.send([module_started("c")], SENDING) == []
    assert cluster.values()[-1:] == written("c")


def test_what_is_safe_is_told_where_the_rest_is_not(cluster: Cluster, make_sink: MakeSink) -> None:
    cluster.create("four", 4)
    sink = make_sink("four")
    events = [module_started("Trim", UUID(int=number)) for number in range(20)]
    told = [*events]
    assert sink.send(events, SENDING) == []
    safe: frozenset[int] = frozenset()
    # which of the four partitions' answers comes first is chance, and the refusal ends the call
    for _ in range(50):
        cluster.answer_with(PRODUCE, KafkaError.TOPIC_AUTHORIZATION_FAILED)
        with pytest.raises(
            MisconfiguredError,
            match=r"Broker: Topic authorization failed: check the user, the password and what the user may do$",
        ) as caught:
            sink.send(events, SENDING)
        cluster.forget_answers(PRODUCE)
        safe = caught.value.delivered
        told += [events[index] for index in safe]
        if safe:
            break
    assert 0 < len(safe) < len(events)
    written_down = Counter(key for key, _, _ in cluster.records("four", 4))
    assert written_down == Counter(str(event.execution_id).encode() for event in told)


def test_a_topic_that_is_not_there_is_an_alarm_until_it_is(cluster: Cluster, make_sink: MakeSink) -> None:
    cluster.break_topic(KafkaError.UNKNOWN_TOPIC_OR_PART)
    sink = make_sink(**{"topic.metadata.propagation.max.ms": 100})
    with pytest.raises(MisconfiguredError, match=r"Unknown topic or partition: create the topic, or correct its name$"):
        sink.send([module_started("Trim")], SENDING)
    cluster.break_topic(0)
    assert sink.send([module_started("Trim")], SENDING) == []


def test_wrong_credentials_are_an_alarm_at_once_that_names_the_user_and_not_the_password(cluster: Cluster) -> None:
    # the stand-in refuses everybody who wants to log in
    sink = KafkaSink.from_url(f"kafka://alice:geheim@{cluster.brokers}/{TOPIC}")
    began = time.monotonic()
    with pytest.raises(MisconfiguredError) as caught:
        sink.send([module_started("Trim")], SENDING)
    assert time.monotonic() - began < SENDING / 2
    with pytest.raises(MisconfiguredError, match="user 'alice'"):
        sink.send([module_started("Trim")], SENDING)
    sink.close()
    assert str(caught.value).endswith(
        "(user 'alice', mechanism PLAIN): check the user, the password and what the user may do"
    )
    assert "geheim" not in str(caught.value)


def test_settings_that_break_later_are_an_alarm(tmp_path: Path, cluster: Cluster, make_sink: MakeSink) -> None:
    pem = tmp_path / "ca.pem"
    pem.write_text(CERTIFICATE)
    sink = make_sink(**{"security.protocol": "SSL", "ssl.ca.location": str(pem)})
    source = KafkaSource.from_url(f"kafka://one/t?group=g&security.protocol=SSL&ssl.ca.location={pem}")
    pem.unlink()
    with pytest.raises(MisconfiguredError, match=r"ssl.ca.location failed.*check the settings and the files"):
        sink.send([module_started("Trim")], 1)
    with pytest.raises(MisconfiguredError, match=r"ssl.ca.location failed.*check the settings and the files"):
        source.read(1)
    source.close()


def test_a_producer_that_cannot_go_on_is_replaced(cluster: Cluster, make_sink: MakeSink) -> None:
    sink = make_sink(**{"enable.idempotence": True})
    assert sink.send([module_started("a")], SENDING) == []
    break_for_good(sink._producer, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER)
    with pytest.raises(UnavailableError, match="Local: Fatal error"):
        sink.send([module_started("b")], SENDING)
    assert sink.send([module_started("b")], SENDING) == []
    assert cluster.values() == written("a", "b")


FORKING = """
import os, sys
from constellation_otel.transports.kafka import KafkaSink, KafkaSource
sys.path.insert(0, {folder!r})
from test_kafka import *
from constellation_otel.transports.kafka.cluster import abandon

cluster = Cluster()
sink = KafkaSink(cluster.brokers, config=QUICK)
unused = KafkaSink(cluster.brokers)
source = KafkaSource(cluster.brokers, TOPIC, group="bridge")
sink.send([module_started("parent")], DEADLINE)
assert len(read(source, 1)) == 1
child = os.fork()
if child == 0:
    abandon(cluster._owner)
    assert sink.send([module_started("child")], DEADLINE) == []
    replay = KafkaSource(cluster.brokers, TOPIC, group=None, follow=False)
    assert len(read(replay, 2)) == 2
    sink.close()
    source.close()
    sys.exit(7)  # an orderly exit, which frees what can be freed
_, status = os.waitpid(child, 0)
sink.send([module_started("parent")], DEADLINE)
print(os.waitstatus_to_exitcode(status), len(read(source, 2)), cluster.values() == written("parent", "child", "parent"))
source.close()
"""


def test_a_forked_child_has_clients_of_its_own_and_ends_in_order() -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING.format(folder=str(here))],
        env={**os.environ, "PYTHONPATH": str(here.parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "7 2 True\n", "")


# --- following ------------------------------------------------------------------------


def test_what_was_written_is_read_with_its_position_and_what_is_no_event_is_unreadable(
    cluster: Cluster, make_source: MakeSource, make_sink: MakeSink
) -> None:
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


def test_an_answer_has_no_more_than_was_asked_for_and_the_next_goes_on(
    cluster: Cluster, make_source: MakeSource
) -> None:
    cluster.write(*written(*"abcde"))
    source = make_source(max_batch=2)
    answers: list[Sequence[SourceItem]] = []

    def are_all_read() -> bool:
        answers.append(source.read(0.5))
        return sum(map(len, answers)) == 5

    eventually(are_all_read, "all are read")
    assert max(map(len, answers)) == 2
    assert [item for answer in answers for item in answer] == [
        record(name, offset) for offset, name in enumerate("abcde")
    ]


def test_what_is_not_acknowledged_is_read_again_and_nothing_else_is(cluster: Cluster, make_source: MakeSource) -> None:
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


def committed(cluster: Cluster) -> int:
    """What the group has committed of the topic's partition."""
    settings = {"bootstrap.servers": cluster.brokers, "group.id": "bridge", "log_level": 0}
    with Consumer(settings) as consumer:
        return int(consumer.committed([TopicPartition(TOPIC, 0)], DEADLINE)[0].offset)


def test_commits_go_out_from_time_to_time_while_it_reads(
    cluster: Cluster, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_COMMIT_EVERY", 0.05)
    cluster.write(*written(*"ab"))
    source = make_source()
    source.acknowledge(positions(read(source, 2)))
    eventually(lambda: source.read(0.05) or committed(cluster) == 2, "the offset is committed")


def test_a_commit_that_fails_is_logged_and_tried_again(
    cluster: Cluster, make_source: MakeSource, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_COMMIT_EVERY", 0)
    cluster.write(*written(*"ab"))
    source = make_source()
    items = read(source, 2)
    cluster.answer_with(OFFSET_COMMIT, KafkaError.GROUP_AUTHORIZATION_FAILED)
    source.acknowledge(positions(items))
    eventually(lambda: source.read(0.05) or source.trouble is not None, "the commit has failed")
    assert source.trouble == "what is safe cannot be acknowledged: Broker: Group authorization failed"
    eventually(lambda: source.read(0.05) or committed(cluster) == 2, "the offset is committed")
    eventually(lambda: source.read(0.05) or source.trouble is None, "and that is known")
    assert source.failed_acknowledgements == 1
    assert [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING] == [
        (
            f"kafka://{cluster.brokers}/{TOPIC}: acknowledgements could not be committed; they are with the next,"
            " or else read again: Broker: Group authorization failed"
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

    monkeypatch.setattr(reader_module, "_COMMIT_EVERY", 0)
    cluster.write(*written(*"ab"))
    source = make_source()
    items = read(source, 2)
    consumer = source._reader.consumer
    assert consumer is not None
    monkeypatch.setattr(source._reader, "consumer", Raising(consumer))
    source.acknowledge(positions(items))
    assert (source.read(0.05), source.trouble) == ((), "what is safe cannot be acknowledged: Local: Erroneous state")
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


def test_what_was_committed_of_a_topic_that_was_longer_once_is_not_about_this_one(
    cluster: Cluster, make_source: MakeSource
) -> None:
    cluster.write(*written(*"ab"))
    longer = Partition(0, 0)
    for offset in range(9):
        longer.read(offset)
        longer.acknowledge(offset)
    commit(cluster, longer.safe, longer.metadata)
    assert read(make_source(), 2) == [record("a", 0), record("b", 1)]


def test_where_nobody_says_what_is_committed_a_read_is_unavailable_and_skips_nothing(
    cluster: Cluster, make_source: MakeSource
) -> None:
    cluster.write(*written(*"ab"))
    source = make_source()
    # the library has asked by itself, for where to begin
    cluster.answer_with(OFFSET_FETCH, 0, KafkaError.GROUP_AUTHORIZATION_FAILED)
    failure = failing(lambda: source.read(0.2))
    assert "partition 0 cannot be asked for what is committed" in str(failure)
    assert read(source, 2) == [record("a", 0), record("b", 1)]


def test_where_too_much_is_open_the_last_commit_stays_until_it_is_not(
    cluster: Cluster, make_source: MakeSource, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_COMMIT_EVERY", 0)
    monkeypatch.setattr(reader_module, "_MAX_METADATA", 40)
    cluster.write(*written(*"abcdefgh"))
    source = make_source()
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
def test_each_successor_is_given_what_none_of_its_predecessors_has_acknowledged(
    gaps: list[int], successors: list[tuple[int, set[int], set[int]]]
) -> None:
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
def test_what_is_safe_to_commit_is_the_first_offset_that_is_open_whatever_the_order(
    gaps: list[int], data: st.DataObject
) -> None:
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


def test_a_partition_that_is_taken_away_is_told_of_in_order_and_its_successor_begins_where_was_acknowledged(
    cluster: Cluster, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_COMMIT_EVERY", 0)
    cluster.create("two", 2)
    for partition in range(2):
        cluster.write(*written(*"abc"), partition=partition, topic="two")
    # the stand-in's groups know only the older way, in which everything is taken away for a moment
    settings = {"partition_assignment_strategy": "range"}
    first = make_source("two", **settings)
    read(first, 6)
    first.acknowledge([Position(("two", partition), 0) for partition in range(2)])
    second = make_source("two", **settings)
    firsts: list[SourceItem] = []
    seconds: list[SourceItem] = []

    def has_read() -> bool:
        firsts.extend(first.read(0.05))
        seconds.extend(second.read(0.05))
        return len(seconds) >= 2

    eventually(has_read, "the second one has a partition")
    assert set(firsts[:2]) == {Revoked(("two", 0)), Revoked(("two", 1))}
    taken = next(partition for partition in range(2) if positions(seconds)[0].origin == ("two", partition))
    assert seconds[:2] == [record("b", 1, taken, "two"), record("c", 2, taken, "two")]


def test_a_partition_that_is_lost_is_told_of_and_nothing_is_committed_for_it(
    cluster: Cluster, make_source: MakeSource
) -> None:
    cluster.write(*written(*"ab"))
    source = make_source()
    items = read(source, 2)
    source._reader.commit_error = "Broker: Not coordinator"
    cluster.answer_with(HEARTBEAT, KafkaError.UNKNOWN_MEMBER_ID)
    assert read(source, 1) == [Revoked((TOPIC, 0))]
    assert source.trouble is None
    source.acknowledge(positions(items))
    source.close()
    assert committed(cluster) == confluent_kafka.OFFSET_INVALID


def test_a_reader_without_room_stays_in_the_group_and_reads_on_later(cluster: Cluster, make_source: MakeSource) -> None:
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


def test_what_is_taken_away_from_a_reader_without_room_is_told_of_by_its_next_read(
    cluster: Cluster, make_source: MakeSource
) -> None:
    cluster.write(*written("a"))
    source = make_source()
    read(source, 1)
    cluster.answer_with(HEARTBEAT, KafkaError.UNKNOWN_MEMBER_ID)

    def is_taken_away() -> bool:
        source.keep_alive()
        return bool(source._reader.items)

    eventually(is_taken_away, "the partition is taken away")
    assert read(source, 2) == [Revoked((TOPIC, 0)), record("a", 0)]


def test_without_a_broker_a_read_is_unavailable_within_its_timeout_and_names_the_broker(cluster: Cluster) -> None:
    cluster.down()
    source = KafkaSource(cluster.brokers, TOPIC, group="bridge")
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=f"^kafka://{cluster.brokers}/{TOPIC}: .*Connection refused") as caught:
        source.read(0.5)
    assert time.monotonic() - began < 3
    assert not isinstance(caught.value, MisconfiguredError)
    source.close()


def test_a_broker_that_goes_away_is_told_of_and_reading_goes_on_when_it_is_back(
    cluster: Cluster, make_source: MakeSource
) -> None:
    cluster.write(*written("a"))
    source = make_source()
    read(source, 1)
    cluster.down()
    assert "brokers are down" in str(failing(lambda: source.read(0.2)))
    assert "the topic cannot be asked for" in str(failing(lambda: source.read(0.2)))
    cluster.up()

    def is_back() -> bool:
        try:
            return source.read(0.2) == ()
        except UnavailableError:
            return False

    eventually(is_back, "the broker is there again")
    cluster.write(*written("b"))
    # where it was away for longer than a session, what was not acknowledged comes before that
    eventually(lambda: record("b", 1) in source.read(0.2), "what came later is read")


def test_wrong_credentials_are_an_alarm_of_the_source_too(cluster: Cluster) -> None:
    source = KafkaSource.from_url(f"kafka://alice:geheim@{cluster.brokers}/{TOPIC}?group=bridge")
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
            return record("b", 1) in source.read(0.2)
        except UnavailableError:
            return False

    eventually(is_back, "what came later is read")


def test_an_error_of_a_partition_comes_after_what_was_read_before_it(cluster: Cluster, make_source: MakeSource) -> None:
    cluster.write(*written("a"))
    source = make_source()
    read(source, 1)
    cluster.answer_with(FETCH, *[KafkaError.TOPIC_AUTHORIZATION_FAILED] * 3)
    assert isinstance(failing(lambda: source.read(0.2)), MisconfiguredError)
    cluster.forget_answers(FETCH)
    source._reader._failure = UnavailableError("kept for the next read")
    with pytest.raises(UnavailableError, match="kept for the next read"):
        source.read(0.2)


def test_a_member_that_cannot_go_on_is_replaced_and_what_it_had_is_told_of(
    cluster: Cluster, make_source: MakeSource
) -> None:
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
    cluster: Cluster, make_source: MakeSource, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "_CLOSE", 0.2)
    cluster.write(*written("a"))
    source = make_source()
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
    cluster: Cluster, make_source: MakeSource, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "_CLOSE", 0.1)
    cluster.answer_after(1_000)
    source = make_source()
    errors: list[UnavailableError] = []
    reader = threading.Thread(target=lambda: errors.append(failing(lambda: source.read(0.4))))
    reader.start()
    eventually(lambda: not source._is_idle.is_set() and source._reader.consumer is not None, "it reads")
    source.close()
    reader.join(DEADLINE)
    assert len(errors) == 1
    assert "not closed within 0.1 s" in caplog.text


# --- replaying ------------------------------------------------------------------------


def replayed(source: KafkaSource) -> list[SourceItem]:
    items: list[SourceItem] = []

    def has_ended() -> bool:
        items.extend(source.read(0.2))
        return source.has_ended

    eventually(has_ended, "the replay has ended")
    return items


def test_a_replay_reads_every_partition_to_its_end_joins_no_group_and_commits_nothing(
    cluster: Cluster, make_source: MakeSource
) -> None:
    cluster.create("three", 3)
    for partition in (0, 2):
        cluster.write(*written(*"abc"), partition=partition, topic="three")
    source = make_source("three", follow=False, max_batch=2)
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
    source = make_source(follow=False, max_batch=1)
    items = read(source, 1)
    cluster.write(*written("c"))
    assert [*items, *replayed(source)] == [record("a", 0), record("b", 1)]


@pytest.mark.parametrize("later", [[], ["c"]])
def test_a_replay_ends_where_what_was_to_be_read_is_deleted_meanwhile(
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
    with pytest.raises(MisconfiguredError, match=r"the topic cannot be asked for: .*authorization failed"):
        source.read(1)
    assert sorted(positions(replayed(source))) == [Position(("two", partition), 0) for partition in range(2)]
