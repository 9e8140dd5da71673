"""Kafka: events as records of a topic, keyed by execution, with the trace context in their headers.

A record is the guide's JSON, its key the execution's id as text, so that one partition
has all of an execution, in order. :class:`KafkaSink` writes such records, whoever wrote
them :class:`KafkaSource` reads: as a member of a consumer group, or once from end to end.
Settings and errors are in ``_kafka_cluster``, the consumer is in ``_kafka_reader``, and what
it commits of a partition in ``_kafka_partition``.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, Self, Unpack

from opentelemetry import trace

from constellation_otel._support.deadline import bounded, deadline_of
from constellation_otel._support.fork import after_fork_in_child
from constellation_otel.delivery import ListenerOptions, Rejection, TransportListener
from constellation_otel.errors import ConfigurationError, MissingExtraError, RefusedError
from constellation_otel.events import Event, ExecutionStarted, encode_json, remote_parent
from constellation_otel.traces import span_id_of, trace_id_of

try:
    from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
except ModuleNotFoundError as error:
    raise MissingExtraError("confluent-kafka", "kafka") from error

from constellation_otel.transports.kafka.cluster import TOPIC, Cluster, Setting, abandon, parse_url
from constellation_otel.transports.kafka.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from uuid import UUID

    from confluent_kafka import Message, TopicPartition
    from opentelemetry.trace import SpanContext

    from constellation_otel.delivery import Position, SourceItem

__all__ = ["KafkaListener", "KafkaSink", "KafkaSource"]

_HAS_PORT: Final = re.compile(r":\d+$")
_MAX_BATCH: Final = 512
_MAX_CALLERS: Final = 16_384
_SAMPLED_AND_RANDOM: Final = 0x03

_PURGE: Final = 0.25
"""Seconds, at most, of a send's timeout that are kept for taking back what was not acknowledged."""
_SLICE: Final = 0.1
"""Seconds after which a send that waits looks whether it is of any use."""
_CLOSE: Final = 5.0
"""Seconds that closing a source may take; twice that where a read is slow to end."""

_REFUSED: Final = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError._INVALID_DIFFERENT_RECORD,  # noqa: SLF001 - the library's own name for a local error
}
"""Refusals for good: of a record, or of all the records that went in one request with it."""
_PURGED: Final = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}  # noqa: SLF001 - as above


def places_of_topic(url: str) -> set[tuple[object, ...]]:
    """The topic at each broker that a URL names: two URLs of one topic have a broker in common.

    Raises:
        ConfigurationError: It is no Kafka URL.
    """
    brokers, topic, _ = parse_url(url)
    names = {broker.strip().lower() for broker in brokers.split(",")}
    return {(name if _HAS_PORT.search(name) else f"{name}:9092", topic) for name in names if name}


class KafkaSink:
    """Writes events to a Kafka topic.

    A record's value is the guide's JSON, its key the execution's id as text. Its headers
    are W3C trace context, for consumers that trace their own work: of ``execution.started``
    the caller's span, where it had one; of every other event the execution's own span, in
    the caller's trace where this sink has seen it start (the latest 16,384 such
    executions are remembered), and otherwise in the trace that follows from the
    execution's id, flagged as sampled and random.

    The producer is idempotent and awaits all in-sync replicas. What is not acknowledged
    within the timeout of :meth:`send` is taken back from it, so that nothing is written
    after :meth:`send` has said that it was not; only what had already gone to a broker
    that does not answer may be written twice. Keys go to the partitions to which Java's
    producer sends them. A forked child gets a producer of its own.

    Args:
        bootstrap_servers: ``host:port`` of one or more brokers, with commas between them.
        topic: The topic; it is not created here, though brokers may be set to do so.
        config: librdkafka's settings; they go before the ones made here.

    Attributes:
        name: ``kafka``.
        takes: ``events``.
        max_batch: Events in one call of :meth:`send`, at most.

    Raises:
        ConfigurationError: A setting is not librdkafka's, or has no value that it takes.
    """

    name: Final = "kafka"
    takes: Final = "events"
    max_batch: Final = _MAX_BATCH

    def __init__(
        self, bootstrap_servers: str, topic: str = TOPIC, *, config: Mapping[str, Setting] | None = None
    ) -> None:
        self._topic = topic
        self._cluster = Cluster(
            bootstrap_servers,
            topic,
            Producer,
            defaults={
                "acks": "all",
                "client.id": "constellation-otel",
                "compression.type": "lz4",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                # how long a topic may be unknown before its records fail
                "topic.metadata.propagation.max.ms": 5_000,
            },
            config=config or {},
            # what is sent at once always has room
            fixed={"queue.buffering.max.messages": 100_000, "queue.buffering.max.kbytes": 1_048_576},
        )
        self._producer: Producer | None = None
        self._callers: OrderedDict[UUID, SpanContext] = OrderedDict()
        after_fork_in_child(self._after_fork)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Makes one from ``kafka://[user:password@]broker:9092[,broker2:9092]/topic?option=value``.

        A user and a password mean SASL PLAIN, without TLS unless ``security.protocol``
        says otherwise; characters that a URL has other uses for are percent-encoded.
        Options are librdkafka's settings. Without a topic it is ``constellation-events``.

        Raises:
            ConfigurationError: The URL is of another form, or an option is unknown.
        """
        brokers, topic, settings = parse_url(url)
        return cls(brokers, topic, config=settings)

    def send(self, items: Sequence[Event], timeout: float) -> Sequence[Rejection]:
        """Writes events; when this returns, all but the rejected ones are in the log of every in-sync replica.

        Args:
            items: One or more.
            timeout: Seconds; this returns or raises within them.

        Returns:
            What is too large for the topic, or what a broker finds invalid.

        Raises:
            UnavailableError: No broker, or not all acknowledgements in time; ``delivered``
                says which there were.
            MisconfiguredError: The topic is missing, or the credentials are wrong.
            RefusedError: One bad or too large record failed all, which went in one request.
        """
        timeout = bounded(timeout)
        end = deadline_of(timeout)
        until = end - min(_PURGE, timeout / 4)
        self._cluster.forget_trouble()
        producer = self._producer = self._producer or self._cluster.open(Producer)
        rejected: dict[int, str] = {}
        reports: dict[int, KafkaError | None] = {}
        for index, event in enumerate(items):
            try:
                key, value, headers = str(event.execution_id).encode(), encode_json(event), self._headers(event)
                report = partial(_note, reports, index)
                producer.produce(self._topic, value, key, on_delivery=report, headers=headers)
            except UnicodeError as error:
                rejected[index] = f"it cannot be written as UTF-8: {error}"
            except KafkaException as error:
                if error.args[0].code() in _REFUSED:
                    rejected[index] = self._cluster.hide(error.args[0].str())
                else:
                    reports[index] = error.args[0]
        try:
            self._await_reports(producer, until, end)
        except KafkaException as error:
            # so the library tells of what no more than a new producer can mend
            self._cluster.on_error(error.args[0])
        delivered = frozenset(index for index, error in reports.items() if error is None)
        failed = {index: error for index, error in reports.items() if error is not None}
        refused = {
            index: self._cluster.hide(error.str()) for index, error in failed.items() if error.code() in _REFUSED
        }
        if len(refused) == 1:
            rejected |= refused
        left = len(items) - len(delivered) - len(rejected)
        if not left:
            return [Rejection(index, 1, reason) for index, reason in sorted(rejected.items())]
        if len(refused) == left and not delivered:
            message = f"{self._cluster.url}: {next(iter(refused.values()))}"
            raise RefusedError(message)
        # a new one tries to connect at once, tells what is wrong, and is not beyond help
        self._producer = None
        said = [error for error in failed.values() if error.code() not in _PURGED]
        message = f"{left} of {len(items)} records were not acknowledged"
        raise self._cluster.unavailable(said[0] if said else None, message, delivered)

    def close(self) -> None:
        """Lets go of the connections; what was sent has been acknowledged or taken back by then."""
        self._producer = None

    def _await_reports(self, producer: Producer, until: float, end: float) -> None:
        """Waits until all have a report or it is no use to wait, then takes back what has none."""
        while len(producer) and time.monotonic() < until and not self._cluster.is_to_be_mended:
            producer.poll(min(_SLICE, max(0.0, until - time.monotonic())))
        if len(producer):
            producer.purge(blocking=False)
        while len(producer) and time.monotonic() < end:
            producer.poll(min(_SLICE, max(0.0, end - time.monotonic())))

    def _headers(self, event: Event) -> dict[str, str | bytes | None]:
        execution_id = event.execution_id
        span_id = span_id_of(execution_id)
        if isinstance(event, ExecutionStarted):
            parent = remote_parent(event.traceparent, event.tracestate)
            if parent is not None:
                caller = trace.get_current_span(parent).get_span_context()
                span_id = caller.span_id
                self._callers[execution_id] = caller
                self._callers.move_to_end(execution_id)
                if len(self._callers) > _MAX_CALLERS:
                    self._callers.popitem(last=False)
        trace_id, flags, tracestate = trace_id_of(execution_id), _SAMPLED_AND_RANDOM, ""
        known = self._callers.get(execution_id)
        if known is not None:
            trace_id, flags, tracestate = known.trace_id, known.trace_flags, known.trace_state.to_header()
        headers = {"traceparent": f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}", "tracestate": tracestate}
        return {name: value for name, value in headers.items() if value}

    def _after_fork(self) -> None:
        abandon(self._producer)
        self._producer = None


class KafkaListener(TransportListener):
    """Publishes every event to a Kafka topic, in the background: the guide's first example.

    Its records are what :class:`KafkaSink` writes. While there is no broker, events are
    held, for as long as there is room; with ``journal="events.db"`` they outlive the process.

    Args:
        bootstrap_servers: ``host:port`` of one or more brokers, with commas between them.
        topic: The topic; it is not created here, though brokers may be set to do so.
        config: librdkafka's settings.
        **options: See :class:`~constellation_otel.delivery.ready_listener.ListenerOptions`.

    Raises:
        ConfigurationError: A setting is not librdkafka's, or has no value that it takes.
        JournalError: The journal cannot be used.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str = TOPIC,
        *,
        config: Mapping[str, Setting] | None = None,
        **options: Unpack[ListenerOptions],
    ) -> None:
        super().__init__(KafkaSink(bootstrap_servers, topic, config=config), **options)


class KafkaSource:
    """Reads events from a Kafka topic: follows it as a member of a consumer group, or replays it once.

    Following, its origins are ``(topic, partition)``. What is committed for the group is
    the offset of the first record that is not acknowledged, at most once a second, and
    once more when a partition is taken away and when the source is closed; a new group
    starts with the oldest record. Beside the offset, as its metadata, stands which later
    records are acknowledged: whoever reads the partition next is not given them, so that
    an execution that was delivered is never read again from its middle. Where that is too
    long for a broker, since too much is open, what was committed before stays.

    Partitions are assigned the cooperative way: those that stay with a member stay
    undisturbed when others come and go, and their open executions with them. What is taken
    away comes as a :class:`~constellation_otel.delivery.contract.Revoked`; acknowledgements for it
    are ignored from then on.

    A group gives a member up that does not read for ``max.poll.interval.ms`` (5 minutes).
    A reader that has no room calls :meth:`keep_alive` instead, every few seconds.

    A replay (``follow=False``) reads every partition from its oldest record to where it
    ended when the replay began. It joins no group, and commits nothing.

    A record that is no event comes as :class:`~constellation_otel.delivery.contract.Unreadable`, with
    the first 64 KiB of it. One without a value (a tombstone) is nothing.

    Args:
        bootstrap_servers: ``host:port`` of one or more brokers, with commas between them.
        topic: The topic.
        group: The consumer group; not used by a replay.
        follow: Whether to go on with what comes later.
        config: librdkafka's settings; they go before the ones made here, but for those
            that the promises above rest on.
        max_batch: Records in one answer of :meth:`read`, at most.

    Attributes:
        name: Its URL, without user and password.
        is_ordered: False: several engines may write events of one execution.
        is_durable: True.

    Raises:
        ConfigurationError: There is no group to follow with; a setting is not librdkafka's,
            or has no value that it takes, or is not to be changed.
    """

    is_ordered: Final = False
    is_durable: Final = True

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        *,
        group: str | None,
        follow: bool = True,
        config: Mapping[str, Setting] | None = None,
        max_batch: int = _MAX_BATCH,
    ) -> None:
        config = config or {}
        if follow and not (group and group.strip()):
            # of blanks alone, librdkafka would end the process
            message = "following a topic needs a consumer group: add ?group=NAME to the URL"
            raise ConfigurationError(message)
        defaults: dict[str, Setting] = {
            "auto.offset.reset": "earliest",
            "client.id": "constellation-otel",
            # kilobytes read ahead; the reader holds the rest of what is in memory
            "queued.max.messages.kbytes": 16_384,
        }
        if config.get("group.protocol") != "consumer":
            # with the newer protocol the broker assigns, and this may not be set
            defaults["partition.assignment.strategy"] = "cooperative-sticky"
        self._cluster = Cluster(
            bootstrap_servers,
            topic,
            Consumer,
            defaults=defaults,
            config=config,
            fixed={
                "enable.auto.commit": False,
                "enable.partition.eof": not follow,
                # the library wants one always; a replay never joins it
                "group.id": group if follow and group else "constellation-otel-replay",
                "on_commit": self._on_commit,
            },
        )
        self.name = self._cluster.url + (f"?group={group}" if follow else "")
        self._follow = follow
        self._max_batch = max_batch
        self._start()
        after_fork_in_child(self._after_fork)

    @classmethod
    def from_url(cls, url: str, *, follow: bool = True) -> Self:
        """Makes one from ``kafka://[user:password@]broker:9092[,broker2:9092]/topic?group=name&option=value``.

        A user and a password mean SASL PLAIN, without TLS unless ``security.protocol``
        says otherwise; characters that a URL has other uses for are percent-encoded.
        Options are librdkafka's settings. Without a topic it is ``constellation-events``.

        Raises:
            ConfigurationError: The URL is of another form, an option is unknown, or there
                is no group to follow with.
        """
        brokers, topic, settings = parse_url(url)
        group = settings.pop("group", None)
        return cls(brokers, topic, group=group, follow=follow, config=settings)

    @property
    def has_ended(self) -> bool:
        """Whether a replay has read everything; following never ends."""
        return self._reader.has_ended

    @property
    def fraction_read(self) -> float | None:
        """How much of a replay has been read, by its offsets, from 0 to 1; ``None`` where it follows."""
        return self._reader.fraction_read

    def read(self, timeout: float) -> Sequence[SourceItem]:
        """Reads what is there.

        Args:
            timeout: Seconds to wait for the first item. The first read, and the first
                after brokers were away, ask for the topic, and take at least a quarter of a
                second for that.

        Returns:
            At most ``max_batch`` records in order, each partition by itself, and what was
            taken away meanwhile; none where none came in time, or when the source is closed.

        Raises:
            UnavailableError: No broker can be reached.
            MisconfiguredError: The credentials are wrong, or the topic to follow is missing.
            SourceError: The topic to replay is missing.
        """
        with self._in_use() as may_go_on:
            return self._reader.read(timeout) if may_go_on and not self.has_ended else ()

    def keep_alive(self) -> None:
        """Stays in the group without reading: for a reader that has no room, every few seconds instead of a read.

        Every partition is paused until the next :meth:`read`, which also tells what was
        taken away meanwhile. Returns at once.
        """
        with self._in_use() as may_go_on:
            if may_go_on:
                self._reader.keep_alive()

    @property
    def trouble(self) -> str | None:
        """Why what is acknowledged cannot be committed at the moment; ``None`` where it can."""
        why = self._reader.commit_error
        return None if why is None else f"what is safe cannot be acknowledged: {why}"

    @property
    def failed_acknowledgements(self) -> int:
        """Commits that failed; what they were about is with the next one."""
        return self._reader.failed_commits

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Says that these records are safe in every sink.

        Positions that are not open are ignored: of partitions that were taken away, of a
        replay, and all of them once the source is closed. What can be committed is, within
        about a second, by this or by :meth:`read` or :meth:`keep_alive`; a commit that fails
        is logged and tried again.
        """
        with self._in_use() as may_go_on:
            if may_go_on:
                self._reader.acknowledge(positions)

    def close(self) -> None:
        """Commits what is acknowledged and leaves the group, within ten seconds; ends a :meth:`read` that waits."""
        self._reader.is_closed = True
        if not (self._is_idle.wait(_CLOSE) and self._reader.leave(_CLOSE)):
            message = (
                "not closed within %.1f s; the broker does not answer, so the last acknowledgements may be lost"
                " and the group waits for the session to time out"
            )
            self._cluster.log(logging.WARNING, message, _CLOSE)

    @contextmanager
    def _in_use(self) -> Iterator[bool]:
        """Keeps :meth:`close`, which comes from any thread, away from the reader; says whether it has not come."""
        self._is_idle.clear()
        try:
            yield not self._reader.is_closed
        finally:
            self._is_idle.set()

    def _on_commit(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        self._reader.on_commit(error, places)

    def _start(self) -> None:
        self._reader = Reader(self._cluster, follow=self._follow, max_batch=self._max_batch)
        self._is_idle = threading.Event()
        self._is_idle.set()

    def _after_fork(self) -> None:
        abandon(self._reader.consumer)
        self._start()


def _note(reports: dict[int, KafkaError | None], index: int, error: KafkaError | None, _: Message | None) -> None:
    reports[index] = error
