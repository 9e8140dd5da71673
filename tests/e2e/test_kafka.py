"""The Kafka sink and source with a real broker: what is on the wire, who has which partition, what crashes lose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from opentelemetry.sdk.resources import Resource

from constellation_otel.delivery import Batch, Position, Record, Revoked, Unreadable
from constellation_otel.delivery.sender import Sender
from constellation_otel.delivery.transform import PassThrough
from constellation_otel.errors import MisconfiguredError, UnavailableError
from constellation_otel.events import (
    CALLBACK_EVENTS,
    ErrorInfo,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
)
from constellation_otel.transports.kafka import KafkaSink, KafkaSource
from constellation_otel.transports.kafka.consumer import Limits
from constellation_otel.transports.url import SinkOptions, SourceOptions
from deliveries import flat
from records import told_all

from .peers import Kafka, NotYet, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from constellation_otel.delivery import SourceItem
    from constellation_otel.events import Event

    MakeSource = Callable[..., KafkaSource]

SINK = SinkOptions(resource=Resource({}))
EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
MODULE = UUID("b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538")
NS = 1_795_465_363_577_123_456
DEADLINE = 60.0
SENDING = 20.0


GUIDES_FIELDS = [
    "eventType", "executionId", "dagName", "moduleName", "durationMs", "succeeded", "error", "timestamp",
]  # fmt: skip


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker for this module; a test that kills it starts it again."""
    with Kafka(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture
def sink(kafka: Kafka) -> Iterator[Callable[[str], KafkaSink]]:
    with ExitStack() as stack:

        def make(topic: str) -> KafkaSink:
            sink = KafkaSink(kafka.brokers, topic)
            stack.callback(sink.close)
            return sink

        yield make


@pytest.fixture
def make_source(kafka: Kafka) -> Iterator[MakeSource]:
    with ExitStack() as stack:

        def make(topic: str, *, follow: bool = True, limits: Limits | None = None, **config: Any) -> KafkaSource:
            settings = {"session.timeout.ms": 6_000, "heartbeat.interval.ms": 200, "reconnect.backoff.max.ms": 500}
            settings |= {name.replace("_", "."): value for name, value in config.items()}
            group = f"group-of-{topic}"
            source = KafkaSource(kafka.brokers, topic, group=group, follow=follow, config=settings, limits=limits)
            stack.callback(source.close)
            return source

        yield make


def new_topic(kafka: Kafka, partitions: int = 1, **config: str) -> str:
    """Makes a topic of its own for a test."""
    name = f"e2e-{uuid.uuid4()}"
    settings = {setting.replace("_", "."): value for setting, value in config.items()}
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    admin.create_topics([NewTopic(name, partitions, 1, config=settings)])[name].result(DEADLINE)
    return name


def modules(count: int, first: int = 0) -> list[ModuleStarted]:
    """Events of as many executions, told apart by their names."""
    return [ModuleStarted(UUID(int=number), MODULE, str(number), NS) for number in range(first, first + count)]


def names(items: Sequence[SourceItem]) -> list[int]:
    """Which of the events of `modules` these are."""
    return [
        int(item.event.module_name)
        for item in items
        if isinstance(item, Record) and isinstance(item.event, ModuleStarted)
    ]


def positions(items: Sequence[SourceItem]) -> list[Position]:
    return [item.position for item in flat(items) if not isinstance(item, Revoked)]


def read(source: KafkaSource, count: int) -> list[SourceItem]:
    """Reads until there is that much; a broker that is away meanwhile is no reason to stop."""
    items: list[SourceItem] = []

    def is_there() -> bool:
        try:
            items.extend(flat(source.read(0.2)))
        except UnavailableError as error:
            raise NotYet(str(error)) from error
        if len(items) < count:
            raise NotYet(repr(items))
        return True

    eventually(is_there, DEADLINE, f"{count} items are read")
    return items


def replayed(source: KafkaSource) -> list[SourceItem]:
    items: list[SourceItem] = []

    def has_ended() -> bool:
        items.extend(flat(source.read(0.5)))
        return source.has_ended

    eventually(has_ended, DEADLINE, "the replay has ended")
    return items


def committed(kafka: Kafka, topic: str, partitions: int = 1) -> list[int]:
    """What the topic's group has committed, by partition; negative where nothing."""
    places = [TopicPartition(topic, number) for number in range(partitions)]
    with Consumer({"bootstrap.servers": kafka.brokers, "group.id": f"group-of-{topic}"}) as consumer:
        return [int(place.offset) for place in consumer.committed(places, DEADLINE)]


def test_a_record_is_on_the_wire_as_the_guide_has_it_with_the_trace_context_in_its_headers(
    kafka: Kafka, sink: Callable[[str], KafkaSink]
) -> None:
    topic = new_topic(kafka)
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    started = ExecutionStarted(EXECUTION, "my-pipeline", NS, traceparent, "vendor=value")
    assert sink(topic).send([started, ModuleCompleted(EXECUTION, MODULE, "Trim", 2.5, NS)], SENDING) == []
    with Consumer({"bootstrap.servers": kafka.brokers, "group.id": "plain"}) as consumer:
        consumer.assign([TopicPartition(topic, 0, 0)])
        found = [consumer.poll(DEADLINE) for _ in range(2)]
    assert [(each.key(), each.value(), each.headers()) for each in found if each is not None] == [
        (
            b"54b81984-f9a6-4e39-b99f-6ab4e8a03410",
            (
                b'{"eventType":"execution.started","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
                b'"dagName":"my-pipeline","moduleName":null,"durationMs":null,"succeeded":null,"error":null,'
                b'"timestamp":1795465363577,"timestampNs":1795465363577123456,'
                b'"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","tracestate":"vendor=value"}'
            ),
            [
                ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
                ("tracestate", b"vendor=value"),
            ],
        ),
        (
            b"54b81984-f9a6-4e39-b99f-6ab4e8a03410",
            (
                b'{"eventType":"module.completed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
                b'"dagName":null,"moduleName":"Trim","durationMs":2,"succeeded":true,"error":null,'
                b'"timestamp":1795465363577,"moduleId":"b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538",'
                b'"timestampNs":1795465363577123456,"durationNs":2500000}'
            ),
            [
                ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-189dc6593864ea2b-01"),
                ("tracestate", b"vendor=value"),
            ],
        ),
    ]


def test_what_bodies_and_engines_have_told_of_modules_comes_back(
    kafka: Kafka, sink: Callable[[str], KafkaSink], make_source: MakeSource
) -> None:
    """A reader of the guide's records meets none but its own six fields and types."""
    topic, events = new_topic(kafka), told_all()
    assert sink(topic).send(events, SENDING) == []
    items = replayed(make_source(topic, follow=False))
    assert [item.event for item in items if isinstance(item, Record)] == events
    with Consumer({"bootstrap.servers": kafka.brokers, "group.id": "plain"}) as consumer:
        consumer.assign([TopicPartition(topic, 0, 0)])
        found = [consumer.poll(DEADLINE) for _ in events]
    records = [json.loads(each.value() or b"") for each in found if each is not None]
    assert {record["eventType"] for record in records} <= {event.kind for event in CALLBACK_EVENTS}
    assert [list(record)[:8] for record in records] == [GUIDES_FIELDS] * len(events)


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
def test_a_member_that_comes_and_goes_takes_partitions_over_where_was_acknowledged(
    kafka: Kafka,
    sink: Callable[[str], KafkaSink],
    make_source: MakeSource,
    strategy: str,
) -> None:
    # so that what is committed is committed because it is taken away
    limits = Limits(commit_every_s=3_600)
    topic = new_topic(kafka, 4)
    assert sink(topic).send(modules(200), SENDING) == []
    first = make_source(topic, limits=limits, partition_assignment_strategy=strategy)
    items = read(first, 200)
    # of each partition the first half
    by_origin = {
        number: [place for place in positions(items) if place.origin == (topic, number)] for number in range(4)
    }
    half = {number: len(places) // 2 for number, places in by_origin.items()}
    first.acknowledge([place for number, places in by_origin.items() for place in places[: half[number]]])

    second = make_source(topic, limits=limits, partition_assignment_strategy=strategy)
    firsts: list[SourceItem] = []
    seconds: list[SourceItem] = []

    def are_shared() -> bool:
        firsts.extend(flat(first.read(0.1)))
        seconds.extend(flat(second.read(0.1)))
        return len({place.origin for place in positions(seconds)}) == 2

    eventually(are_shared, DEADLINE, "the second member has two partitions")
    taken = {place.origin for place in positions(seconds)}
    assert taken <= {item.origin for item in firsts if isinstance(item, Revoked)}
    begins = {place.origin: place.offset for place in reversed(positions(seconds))}
    assert begins == {origin: half[number] for number in range(4) if (origin := (topic, number)) in taken}
    # acknowledging what is another's changes nothing
    first.acknowledge(positions(items))
    second.close()
    back = {place for number, places in by_origin.items() for place in places[half[number] :] if place.origin in taken}
    later: list[SourceItem] = []

    def are_back() -> bool:
        later.extend(flat(first.read(0.1)))
        # with the older strategy its own are read again, too
        return {place for place in positions(later) if place.origin in taken} == back

    eventually(are_back, DEADLINE, "the first member has them all again")


CONSUMER = """
import sys
from constellation_otel.delivery import Position
from constellation_otel.transports.kafka import KafkaSource
brokers, topic, acknowledged = sys.argv[1:]
source = KafkaSource(brokers, topic, group=f"group-of-{topic}", config={"session.timeout.ms": 1_500})
places = []
while len(places) < 100:
    places += [Position(batch.origin, offset) for batch in source.read(1) for offset in batch.offsets]
# all but one of the first, and some beyond it
source.acknowledge(places[:int(acknowledged)] + places[int(acknowledged) + 1:80])
while True:
    source.read(0.2)
"""


def test_what_a_killed_consumer_had_not_acknowledged_is_read_again_and_what_it_had_committed_is_not(
    kafka: Kafka, sink: Callable[[str], KafkaSink], make_source: MakeSource
) -> None:
    topic = new_topic(kafka)
    assert sink(topic).send(modules(100), SENDING) == []
    with subprocess.Popen([sys.executable, "-c", CONSUMER, kafka.brokers, topic, "30"]) as process:
        try:
            eventually(lambda: committed(kafka, topic) == [30], DEADLINE, "the consumer has committed")
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert names(read(make_source(topic), 21)) == [30, *range(80, 100)]


def test_a_broker_that_is_killed_while_events_are_sent_loses_none_of_them(
    kafka: Kafka, sink: Callable[[str], KafkaSink], make_source: MakeSource
) -> None:
    topic = new_topic(kafka, 4)
    sending = sink(topic)
    source = make_source(topic)
    waiting = modules(400)

    def are_delivered() -> bool:
        while waiting:
            batch = waiting[:4]
            try:
                assert sending.send(batch, 3) == []
            except UnavailableError as error:
                done = error.delivered
                waiting[:4] = [event for index, event in enumerate(batch) if index not in done]
                raise NotYet(str(error)) from error
            del waiting[:4]
            if crash.ident is None and len(waiting) <= 360:
                crash.start()
        return True

    def kill_and_start() -> None:
        kafka.kill()
        kafka.start()

    crash = threading.Thread(target=kill_and_start)
    try:
        eventually(are_delivered, DEADLINE, "all are delivered")
    finally:
        crash.join(DEADLINE)
    # what had gone to the broker when it was killed may be there twice
    assert set(names(replayed(make_source(topic, follow=False)))) == set(range(400))
    found: set[int] = set()

    def are_read() -> bool:
        found.update(names(read(source, 1)))
        return found == set(range(400))

    eventually(are_read, DEADLINE, "all are read")


def test_a_broker_that_hangs_costs_a_send_its_timeout_and_nothing_is_lost(
    kafka: Kafka, sink: Callable[[str], KafkaSink], make_source: MakeSource
) -> None:
    topic = new_topic(kafka)
    sending = sink(topic)
    assert sending.send(modules(1), SENDING) == []
    os.kill(kafka.pid, signal.SIGSTOP)
    try:
        with pytest.raises(UnavailableError, match="2 of 2 records were not acknowledged"):
            sending.send(modules(2, 1), 1)
    finally:
        os.kill(kafka.pid, signal.SIGCONT)
    assert sending.send(modules(2, 1), SENDING) == []
    assert set(names(replayed(make_source(topic, follow=False)))) == {0, 1, 2}


def test_foreign_records_do_not_stop_the_stream_and_control_records_do_not_hang_a_replay(
    kafka: Kafka, sink: Callable[[str], KafkaSink], make_source: MakeSource
) -> None:
    topic = new_topic(kafka, max_message_bytes="4000000")
    assert sink(topic).send(modules(1), SENDING) == []
    foreign = Producer({"bootstrap.servers": kafka.brokers, "transactional.id": topic, "message.max.bytes": 4_000_000})
    foreign.init_transactions(DEADLINE)
    foreign.begin_transaction()
    for value in (None, b"\xff\x00", b'{"eventType":"order.placed"}', b"x" * 3_000_000):
        foreign.produce(topic, value)
    foreign.commit_transaction(DEADLINE)
    foreign.begin_transaction()
    foreign.produce(topic, b"taken back")
    foreign.flush(DEADLINE)
    foreign.abort_transaction(DEADLINE)
    for items in (read(make_source(topic), 4), replayed(make_source(topic, follow=False))):
        assert names(items[:1]) == [0]
        unreadable = [item for item in items[1:] if isinstance(item, Unreadable)]
        assert [(item.data, item.position) for item in unreadable] == [
            (b"\xff\x00", Position((topic, 0), 2)),
            (b'{"eventType":"order.placed"}', Position((topic, 0), 3)),
            (b"x" * 65_536, Position((topic, 0), 4)),
        ]


def test_a_record_that_is_too_large_for_the_topic_is_rejected_alone(
    kafka: Kafka, sink: Callable[[str], KafkaSink], make_source: MakeSource
) -> None:
    topic = new_topic(kafka, max_message_bytes="2000")
    # random, so that no compression makes it fit
    message = "".join(str(uuid.uuid4()) for _ in range(200))
    events: list[Event] = [
        *modules(7),
        ModuleFailed(EXECUTION, MODULE, "Large", ErrorInfo("E", message), NS),
        *modules(12, 7),
    ]
    sender = Sender[Any](sink(topic), PassThrough())
    sender.add(Batch(events, range(len(events))))
    eventually(lambda: sender.tick() is None, DEADLINE, "all are sent, in halves where they are refused together")
    assert (sender.counters.delivered, sender.counters.rejected) == (19, 1)
    assert sorted(names(replayed(make_source(topic, follow=False)))) == list(range(19))


def test_a_password_lets_in_and_a_wrong_one_is_an_alarm_that_names_the_user_only(kafka: Kafka) -> None:
    topic = new_topic(kafka)
    right = f"kafka://{kafka.user}:{kafka.password}@{kafka.sasl_brokers}/{topic}"
    wrong = f"kafka://{kafka.user}:wrong@{kafka.sasl_brokers}/{topic}"
    with ExitStack() as stack:
        sink, source = (
            KafkaSink.from_url(right, SINK),
            KafkaSource.from_url(f"{right}?group=with-password", SourceOptions()),
        )
        refused_sink, refused_source = (
            KafkaSink.from_url(wrong, SINK),
            KafkaSource.from_url(f"{wrong}?group=with-password", SourceOptions()),
        )
        for each in (sink, source, refused_sink, refused_source):
            stack.callback(each.close)
        assert sink.send(modules(1), SENDING) == []
        assert names(read(source, 1)) == [0]
        with pytest.raises(MisconfiguredError, match=r"\(user 'alice', mechanism PLAIN\): check the user") as sending:
            refused_sink.send(modules(1), SENDING)
        with pytest.raises(MisconfiguredError, match=r"\(user 'alice', mechanism PLAIN\): check the user") as reading:
            refused_source.read(2)
    assert "wrong" not in str(sending.value) + str(reading.value)


def test_a_broker_that_is_not_there_is_named_within_the_timeout(kafka: Kafka) -> None:
    nobody = f"127.0.0.1:{kafka.controller_port + 40_000}"
    source = KafkaSource(nobody, "events", group="nobody")
    sink = KafkaSink(nobody, "events")
    for call in (lambda: source.read(1), lambda: sink.send(modules(1), 1)):
        with pytest.raises(UnavailableError, match=f"{nobody}.*Connection refused"):
            call()
    source.close()
    sink.close()


def test_a_missing_topic_is_an_alarm_until_it_is_created(kafka: Kafka, make_source: MakeSource) -> None:
    topic = f"e2e-{uuid.uuid4()}"
    sink = KafkaSink(kafka.brokers, topic, config={"topic.metadata.propagation.max.ms": 500})
    source = make_source(topic)
    with pytest.raises(MisconfiguredError, match="create the topic, or correct its name"):
        source.read(1)
    with pytest.raises(MisconfiguredError, match="create the topic, or correct its name"):
        sink.send(modules(1), SENDING)
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(DEADLINE)
    assert sink.send(modules(1), SENDING) == []
    assert names(read(source, 1)) == [0]
    sink.close()


GET = Path(__file__).parent / "peers" / "get"


def run_get(folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs `get kafka` where a folder has all the commands that there are."""
    environment = {"PATH": str(folder), "CONSTELLATION_OTEL_CACHE": str(folder / "cache")}
    command = [sys.executable, str(GET), "kafka"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_get_without_java_and_maven_says_how_to_install_them(tmp_path: Path) -> None:
    done = run_get(tmp_path)
    assert done.returncode == 1
    assert "there is no `java` and no `mvn` in the PATH" in done.stderr
    assert "apt-get install default-jre-headless maven" in done.stderr


def test_get_with_an_older_java_says_how_to_get_a_newer_one(tmp_path: Path) -> None:
    for command in ("java", "mvn"):
        old = tmp_path / command
        old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
        old.chmod(0o755)
    done = run_get(tmp_path)
    assert done.returncode == 1
    assert "Java 17 or newer is needed; `java -version` says 'openjdk version \"11.0.2\" 2019-01-15'" in done.stderr
    assert "apt-get install openjdk-17-jre-headless" in done.stderr
