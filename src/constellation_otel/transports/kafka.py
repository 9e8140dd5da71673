"""Kafka: events as records of a topic, keyed by execution, with the trace context in their headers.

A record is the guide's JSON, its key the execution's id as text, so that one partition
has all of an execution, in order. :class:`KafkaSink` writes such records, whoever wrote
them :class:`KafkaSource` reads: as a member of a consumer group, or once from end to end.
"""

from __future__ import annotations

import ctypes
import logging
import re
import threading
import time
import zlib
from base64 import b64decode, b64encode
from collections import OrderedDict, deque
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, Unpack
from urllib.parse import parse_qsl, unquote

from msgspec import Struct, msgpack
from opentelemetry import trace

from constellation_otel._fork import after_fork_in_child
from constellation_otel._log import RateLimitedLog
from constellation_otel.delivery import Position, Record, Rejection, Revoked, SourceItem, Unreadable
from constellation_otel.dialects import decode_json, encode_json
from constellation_otel.errors import (
    ConfigurationError,
    DecodeError,
    MisconfiguredError,
    MissingExtraError,
    SourceError,
    UnavailableError,
)
from constellation_otel.events import Event, ExecutionStarted, remote_parent
from constellation_otel.ids import span_id_of, trace_id_of
from constellation_otel.transports._listener import ListenerOptions, TransportListener

try:
    from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
except ModuleNotFoundError as error:
    raise MissingExtraError("confluent-kafka", "kafka") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
    from uuid import UUID

    from confluent_kafka import Message

    _Report: TypeAlias = Callable[[KafkaError | None, Message | None], None]

__all__ = ["KafkaListener", "KafkaSink", "KafkaSource"]

_Setting: TypeAlias = str | int | float | bool

_LOGGER: Final = logging.getLogger(__name__)
_TOPIC: Final = "constellation-events"
_TOPIC_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SECRET: Final = re.compile(r"password|secret|\.pem$|oauthbearer\.config|assertion")
_MAX_BATCH: Final = 512
_MAX_CALLERS: Final = 16_384
_MAX_DATA: Final = 65_536
"""Bytes that are kept of a record that cannot be read."""
_SAMPLED_AND_RANDOM: Final = 0x03

_PURGE: Final = 0.25
"""Seconds, at most, of a send's timeout that are kept for taking back what was not acknowledged."""
_SLICE: Final = 0.1
"""Seconds after which a read that waits looks whether it is to end."""
_ASK: Final = 2.0
"""Seconds that one question about a topic may take, at most."""
_ASK_AT_LEAST: Final = 0.25
_COMMIT_EVERY: Final = 1.0
_METADATA: Final = "constellation-otel/1 "
"""How what is committed beside an offset begins, where it is ours."""
_MAX_METADATA: Final = 4_000
"""Bytes; brokers take 4,096 unless they are told otherwise."""
_MAX_OPEN: Final = 65_536
"""Records that are open; more are not even tried to be written beside an offset."""
_CLOSE: Final = 5.0
"""Seconds that closing a source may take; twice that where a read is slow to end."""

_CREDENTIALS: Final = "check the user, the password and what the user may do"
_TO_BE_MENDED: Final = {
    KafkaError._AUTHENTICATION: _CREDENTIALS,  # noqa: SLF001 - the library's own names for its local errors
    KafkaError._INVALID_ARG: "check the settings and the files that they name",  # noqa: SLF001 - as above
    KafkaError._SSL: "check the ssl.* settings and the certificates",  # noqa: SLF001 - as above
    KafkaError._UNKNOWN_TOPIC: "create the topic, or correct its name",  # noqa: SLF001 - as above
    KafkaError.UNKNOWN_TOPIC_OR_PART: "create the topic, or correct its name",
    KafkaError.SASL_AUTHENTICATION_FAILED: _CREDENTIALS,
    KafkaError.TOPIC_AUTHORIZATION_FAILED: _CREDENTIALS,
    KafkaError.GROUP_AUTHORIZATION_FAILED: _CREDENTIALS,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: _CREDENTIALS,
}
"""What does not pass by itself, and what somebody has to do about it."""
_UNKNOWN_TOPIC: Final = {KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART}  # noqa: SLF001 - as above
_REFUSED: Final = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError._INVALID_DIFFERENT_RECORD,  # noqa: SLF001 - as above
}
"""Refusals for good: of a record, or of all the records that went in one request with it."""
_PURGED: Final = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}  # noqa: SLF001 - as above
_TROUBLE: Final = {KafkaError._ALL_BROKERS_DOWN, *_TO_BE_MENDED}  # noqa: SLF001 - as above
_FATAL: Final = KafkaError._FATAL  # noqa: SLF001 - as above
_END: Final = KafkaError._PARTITION_EOF  # noqa: SLF001 - as above


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
        self, bootstrap_servers: str, topic: str = _TOPIC, *, config: Mapping[str, _Setting] | None = None
    ) -> None:
        self._topic = topic
        self._cluster = _Cluster(
            bootstrap_servers,
            topic,
            {
                "acks": "all",
                "client.id": "constellation-otel",
                "compression.type": "lz4",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                # how long a topic may be unknown before its records fail
                "topic.metadata.propagation.max.ms": 5_000,
            },
            config or {},
            {},
            Producer,
        )
        self._producer: Producer | None = None
        self._callers: OrderedDict[UUID, _Caller] = OrderedDict()
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
        address = _parse(url)
        return cls(address.brokers, address.topic, config=address.settings)

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
        """
        end = time.monotonic() + timeout
        until = end - min(_PURGE, timeout / 4)
        self._cluster.try_afresh()
        rejected: dict[int, str] = {}
        records: dict[int, _Outgoing] = {}
        for index, event in enumerate(items):
            try:
                records[index] = self._encode(event)
            except UnicodeError as error:
                rejected[index] = f"it cannot be written as UTF-8: {error}"
        delivered: set[int] = set()
        groups = [list(records)] if records else []
        while groups:
            group = groups.pop()
            reports = self._produce({index: records[index] for index in group}, until, end)
            delivered.update(index for index, error in reports.items() if error is None)
            refused = {
                index: error for index, error in reports.items() if error is not None and error.code() in _REFUSED
            }
            if len(refused) + sum(error is None for error in reports.values()) < len(group):
                raise self._not_acknowledged(reports, len(records), frozenset(delivered))
            if len(refused) == 1:
                rejected.update((index, self._cluster.hide(error.str())) for index, error in refused.items())
            elif refused:
                # one bad or too large record fails all that go in a request with it: halves tell which
                suspects = list(refused)
                groups += [suspects[len(suspects) // 2 :], suspects[: len(suspects) // 2]]
        self._cluster.works()
        return [Rejection(index, 1, reason) for index, reason in sorted(rejected.items())]

    def close(self) -> None:
        """Lets go of the connections; what was sent has been acknowledged or taken back by then."""
        self._producer = None

    def _produce(self, records: dict[int, _Outgoing], until: float, end: float) -> dict[int, KafkaError | None]:
        """Hands records over and awaits their reports, then takes back what has none.

        What has no report even so is not in the answer; its report may still come, and finds nobody.
        """
        reports: dict[int, KafkaError | None] = {}
        try:
            producer = self._opened()
            for index, record in records.items():
                self._hand_over(producer, record, partial(_note, reports, index), until)
            self._wait(producer, reports, len(records), until)
            if len(reports) < len(records):
                producer.purge(blocking=False)
                self._wait(producer, reports, len(records), end, purged=True)
        except KafkaException as error:
            # the producer's end: a broken sequence that it cannot mend by itself
            self._cluster.on_error(error.args[0])
            self._producer = None
        return dict(reports)

    def _hand_over(self, producer: Producer, record: _Outgoing, report: _Report, until: float) -> None:
        while True:
            try:
                producer.produce(
                    self._topic, record.value, record.key, on_delivery=report, headers=list(record.headers)
                )
            except BufferError:
                # the queue is full: there is room when a report has come
                producer.poll(min(max(until - time.monotonic(), 0), _SLICE))
                if time.monotonic() >= until:
                    return
            except KafkaException as error:
                if error.args[0].code() == _FATAL:
                    raise
                report(error.args[0], None)
                return
            else:
                return

    def _wait(
        self, producer: Producer, reports: dict[int, KafkaError | None], count: int, end: float, *, purged: bool = False
    ) -> None:
        """Serves reports until all are there or it is no use to wait."""
        remaining = end - time.monotonic()
        while len(reports) < count and remaining > 0 and (purged or not self._cluster.is_to_be_mended):
            producer.poll(min(remaining, _SLICE))
            remaining = end - time.monotonic()

    def _opened(self) -> Producer:
        if self._producer is None:
            self._producer = Producer(self._cluster.settings, logger=self._cluster)
        return self._producer

    def _not_acknowledged(
        self, reports: dict[int, KafkaError | None], count: int, delivered: frozenset[int]
    ) -> UnavailableError:
        said = [error for error in reports.values() if error is not None and error.code() not in _PURGED | _REFUSED]
        if said and said[0].code() in _UNKNOWN_TOPIC:
            # this one would not notice for minutes that the topic has been created
            self._producer = None
        return self._cluster.unavailable(
            said[0] if said else None, f"{count - len(delivered)} of {count} records were not acknowledged", delivered
        )

    def _encode(self, event: Event) -> _Outgoing:
        return _Outgoing(str(event.execution_id).encode(), encode_json(event), self._headers(event))

    def _headers(self, event: Event) -> tuple[tuple[str, bytes], ...]:
        execution_id = event.execution_id
        parent = None
        if isinstance(event, ExecutionStarted):
            parent = remote_parent(event.traceparent, event.tracestate)
        if parent is not None:
            span = trace.get_current_span(parent).get_span_context()
            caller = _Caller(span.trace_id, span.trace_flags, span.trace_state.to_header())
            self._callers[execution_id] = caller
            self._callers.move_to_end(execution_id)
            if len(self._callers) > _MAX_CALLERS:
                self._callers.popitem(last=False)
            return caller.headers(span.span_id)
        known = self._callers.get(execution_id)
        caller = known or _Caller(trace_id_of(execution_id), _SAMPLED_AND_RANDOM, "")
        return caller.headers(span_id_of(execution_id))

    def _after_fork(self) -> None:
        _abandon(self._producer)
        self._producer = None


class KafkaListener(TransportListener):
    """Publishes every event to a Kafka topic, in the background: the guide's first example.

    Its records are what :class:`KafkaSink` writes. While there is no broker, events are
    held, for as long as there is room; with ``journal="events.db"`` they outlive the process.

    Args:
        bootstrap_servers: ``host:port`` of one or more brokers, with commas between them.
        topic: The topic; it is not created here, though brokers may be set to do so.
        config: librdkafka's settings.
        **options: See :class:`~constellation_otel.transports._listener.ListenerOptions`.

    Raises:
        ConfigurationError: A setting is not librdkafka's, or has no value that it takes.
        JournalError: The journal cannot be used.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str = _TOPIC,
        *,
        config: Mapping[str, _Setting] | None = None,
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
    away comes as a :class:`~constellation_otel.delivery.Revoked`; acknowledgements for it
    are ignored from then on.

    A group gives a member up that does not read for ``max.poll.interval.ms`` (5 minutes).
    A reader that has no room calls :meth:`keep_alive` instead, every few seconds.

    A replay (``follow=False``) reads every partition from its oldest record to where it
    ended when the replay began. It joins no group, and commits nothing.

    A record that is no event, or has no value (a tombstone), comes as
    :class:`~constellation_otel.delivery.Unreadable`, with the first 64 KiB of it.

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
        config: Mapping[str, _Setting] | None = None,
        max_batch: int = _MAX_BATCH,
    ) -> None:
        config = config or {}
        if follow and not group:
            message = "following a topic needs a consumer group: add ?group=NAME to the URL"
            raise ConfigurationError(message)
        defaults: dict[str, _Setting] = {
            "auto.offset.reset": "earliest",
            "client.id": "constellation-otel",
            # kilobytes read ahead; the reader holds the rest of what is in memory
            "queued.max.messages.kbytes": 16_384,
        }
        if config.get("group.protocol") != "consumer":
            # with the newer protocol the broker assigns, and this may not be set
            defaults["partition.assignment.strategy"] = "cooperative-sticky"
        self._topic = topic
        self._follow = follow
        self._max_batch = max_batch
        self._cluster = _Cluster(
            bootstrap_servers,
            topic,
            defaults,
            config,
            {
                "enable.auto.commit": False,
                "enable.partition.eof": not follow,
                # the library wants one always; a replay never joins it
                "group.id": group if follow and group else "constellation-otel-replay",
                "on_commit": self._on_commit,
            },
            Consumer,
        )
        self.name = self._cluster.url + (f"?group={group}" if follow else "")
        self._consumer: Consumer | None = None
        # following: what is assigned and has been read from
        self._partitions: dict[Hashable, _Partition] = {}
        self._commit_at = 0.0
        # replaying: where each partition begins and ends, and where those end that are not through
        self._watermarks: dict[int, tuple[int, int]] = {}
        self._ends: dict[int, int] = {}
        self._has_begun = False
        self._items: list[SourceItem] = []
        self._failure: UnavailableError | None = None
        # whether the topic was asked for since a broker was away, and subscribed to since it was missing
        self._is_known = False
        self._is_subscribed = False
        self._is_paused = False
        self._is_closed = False
        self._start_afresh()
        after_fork_in_child(self._after_fork)

    def _start_afresh(self) -> None:
        self._idle = threading.Condition()
        self._is_busy = False

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
        address = _parse(url)
        group = address.settings.pop("group", None)
        return cls(address.brokers, address.topic, group=group, follow=follow, config=address.settings)

    @property
    def has_ended(self) -> bool:
        """Whether a replay has read everything; following never ends."""
        return self._has_begun and not self._ends

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
        end = time.monotonic() + timeout
        with self._in_use() as may_go_on:
            if not may_go_on or self.has_ended:
                return ()
            consumer = self._opened()
            if self._is_paused:
                consumer.resume(consumer.assignment())
                self._is_paused = False
            self._raise_failure()
            if not self._is_known:
                self._ask(consumer, end)
            self._fill(consumer, end)
            items, self._items = self._items, []
            self._commit_if_due()
            if items:
                self._cluster.works()
                return items
            self._raise_failure()
            if self._cluster.trouble is not None and not self._is_closed:
                self._is_known = False
                raise self._cluster.unavailable(None, "nothing can be read")
            return ()

    def keep_alive(self) -> None:
        """Stays in the group without reading: for a reader that has no room, every few seconds instead of a read.

        Every partition is paused until the next :meth:`read`, which also tells what was
        taken away meanwhile. Returns at once.
        """
        with self._in_use() as may_go_on:
            consumer = self._consumer
            if may_go_on and consumer is not None:
                consumer.pause(consumer.assignment())
                self._is_paused = True
                self._poll(consumer, 0)
                self._commit_if_due()

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Says that these records are safe in every sink.

        Positions that are not open are ignored: of partitions that were taken away, of a
        replay, and all of them once the source is closed. What can be committed is, within
        about a second, by this or by :meth:`read` or :meth:`keep_alive`; a commit that fails
        is logged and tried again.
        """
        with self._in_use() as may_go_on:
            if may_go_on:
                for origin, offset in positions:
                    partition = self._partitions.get(origin)
                    if partition is not None:
                        partition.acknowledge(offset)
                self._commit_if_due()

    def close(self) -> None:
        """Commits what is acknowledged and leaves the group, within ten seconds; ends a :meth:`read` that waits."""
        with self._idle:
            was_closed, self._is_closed = self._is_closed, True
            is_idle = self._idle.wait_for(lambda: not self._is_busy, _CLOSE)
        if was_closed or self._consumer is None:
            return
        consumer, self._consumer = self._consumer, None
        if is_idle:
            self._commit(consumer, self._partitions.values())
            # in a thread, since without a broker it takes far longer than anybody wants to wait
            thread = threading.Thread(target=consumer.close, name=f"closing {self.name}", daemon=True)
            thread.start()
            thread.join(_CLOSE)
            is_idle = not thread.is_alive()
        if not is_idle:
            _LOGGER.warning(
                "%s: not closed within %.1f s; the broker does not answer, so the last acknowledgements may be lost"
                " and the group waits for the session to time out",
                self.name,
                _CLOSE,
            )

    @contextmanager
    def _in_use(self) -> Iterator[bool]:
        """Keeps :meth:`close`, which comes from any thread, away from the consumer; says whether it has not come."""
        with self._idle:
            self._is_busy = True
            may_go_on = not self._is_closed
        try:
            yield may_go_on
        finally:
            with self._idle:
                self._is_busy = False
                self._idle.notify_all()

    def _opened(self) -> Consumer:
        if self._consumer is None:
            try:
                self._consumer = Consumer(self._cluster.settings, logger=self._cluster)
            except KafkaException as error:
                raise self._cluster.unavailable(error.args[0], "no consumer can be made") from error
            self._is_known = self._is_subscribed = False
        return self._consumer

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _ask(self, consumer: Consumer, end: float) -> None:
        """Asks for the topic: whether it is there, and a broker; and where a replay starts and ends."""
        try:
            topic = consumer.list_topics(self._topic, timeout=_timeout(end)).topics[self._topic]
        except KafkaException as error:
            # what the connections have said, which the error has not, comes with the callbacks
            self._poll(consumer, 0)
            raise self._cluster.unavailable(error.args[0], "the topic cannot be asked for") from error
        if topic.error is not None:
            failure = self._cluster.unavailable(topic.error, "the topic cannot be read")
            if not self._follow and topic.error.code() in _UNKNOWN_TOPIC:
                raise SourceError(str(failure))
            raise failure
        if self._follow and not self._is_subscribed:
            # not before the topic is there: a subscription would not notice for minutes that it was created
            consumer.subscribe([self._topic], on_revoke=self._on_revoke, on_lost=self._on_lost)
            self._is_subscribed = True
        if not self._follow and not self._has_begun:
            self._start_replay(consumer, topic.partitions, end)
        self._cluster.works()
        self._is_known = True

    def _start_replay(self, consumer: Consumer, partitions: Sequence[int], end: float) -> None:
        for number in partitions:
            # with many partitions it may take several reads
            if number not in self._watermarks:
                try:
                    where = TopicPartition(self._topic, number)
                    self._watermarks[number] = consumer.get_watermark_offsets(where, timeout=_timeout(end))
                except KafkaException as error:
                    message = f"partition {number} cannot be asked for its offsets"
                    raise self._cluster.unavailable(error.args[0], message) from error
        self._has_begun = True
        self._ends = {number: last for number, (first, last) in self._watermarks.items() if first < last}
        consumer.assign([TopicPartition(self._topic, number, self._watermarks[number][0]) for number in self._ends])

    def _fill(self, consumer: Consumer, end: float) -> None:
        """Polls until there is enough, or nothing more at once, or nothing in time."""
        while not self.has_ended:
            remaining = max(end - time.monotonic(), 0)
            came = self._poll(consumer, 0 if self._items else min(remaining, _SLICE))
            if len(self._items) >= self._max_batch or self._failure is not None or self._is_closed:
                return
            if self._items and not came:
                return
            if not self._items and (not remaining or self._cluster.trouble is not None):
                return

    def _poll(self, consumer: Consumer, timeout: float) -> bool:
        """Takes what comes, callbacks included; says whether a record, an end or an error came."""
        message = consumer.poll(timeout)
        if message is None:
            return False
        error = message.error()
        if error is None:
            self._take(consumer, message)
        elif error.code() == _END:
            self._partition_ends(consumer, _place_of(message)[0])
        elif error.code() == _FATAL:
            # closing one that is beyond help never returns; it has left the group anyway
            self._consumer = None
            self._take_away(list(self._partitions))
            self._failure = self._cluster.unavailable(error, "this member is out of the group, a new one joins")
        else:
            if error.code() in _UNKNOWN_TOPIC:
                self._is_known = self._is_subscribed = False
            self._failure = self._cluster.unavailable(error, "the topic cannot be read")
        return True

    def _take(self, consumer: Consumer, message: Message) -> None:
        number, offset = _place_of(message)
        origin = (self._topic, number)
        if self._follow:
            if origin not in self._partitions and not self._begin(consumer, number, offset):
                return
            if not self._partitions[origin].read(offset):
                return
        else:
            last = self._ends.get(number, 0)
            if offset >= last - 1:
                self._partition_ends(consumer, number)
            if offset >= last:
                return
        self._items.append(self._decoded(message.value(), Position(origin, offset)))

    def _begin(self, consumer: Consumer, number: int, first: int) -> bool:
        """Asks what of a partition is acknowledged; if nobody answers, its first record is to be read again."""
        try:
            (place,) = consumer.committed([TopicPartition(self._topic, number)], timeout=_ASK)
        except KafkaException as error:
            consumer.seek(TopicPartition(self._topic, number, first))
            message = f"partition {number} cannot be asked for what is committed"
            self._failure = self._cluster.unavailable(error.args[0], message)
            return False
        partition = _Partition(number, first)
        # behind the end of a topic that was made anew, say, reading begins at the beginning
        if place.offset <= first:
            partition.resume(place.offset, place.metadata or "")
        self._partitions[self._topic, number] = partition
        return True

    def _decoded(self, data: bytes | None, position: Position) -> Record | Unreadable:
        if data is None:
            return Unreadable(b"", "the record has no value: a tombstone, which deletes its key", position)
        try:
            return Record(decode_json(data), position)
        except DecodeError as error:
            return Unreadable(data[:_MAX_DATA], str(error), position)

    def _partition_ends(self, consumer: Consumer, number: int) -> None:
        self._ends.pop(number, None)
        # what comes later is not asked for
        consumer.pause([TopicPartition(self._topic, number)])

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if not self._is_closed:
            origins = self._origins(partitions)
            # not awaited here: the library gives no partition away while a commit is under way
            self._commit(consumer, [self._partitions[origin] for origin in origins])
            self._on_lost(consumer, partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # the library would remember the pause, were the partition to come back
        consumer.resume(partitions)
        self._take_away(self._origins(partitions))

    def _origins(self, partitions: list[TopicPartition]) -> list[Hashable]:
        """Those that were read from; of the others nobody knows anything that would have to be dropped."""
        origins = [(self._topic, partition.partition) for partition in partitions]
        return [origin for origin in origins if origin in self._partitions]

    def _take_away(self, origins: list[Hashable]) -> None:
        for origin in origins:
            del self._partitions[origin]
            self._items.append(Revoked(origin))

    def _commit_if_due(self) -> None:
        now = time.monotonic()
        if self._consumer is not None and now >= self._commit_at:
            self._commit_at = now + _COMMIT_EVERY
            self._commit(self._consumer, self._partitions.values())

    def _commit(self, consumer: Consumer, partitions: Iterable[_Partition]) -> None:
        offsets = []
        for partition in partitions:
            if partition.acknowledged == partition.committed:
                continue
            metadata = partition.metadata()
            if metadata is None:
                message = "too much is open in partition %d for a commit; a successor reads from the last one"
                self._cluster.log(logging.INFO, message, partition.number)
                continue
            partition.committed = partition.acknowledged
            offsets.append(TopicPartition(self._topic, partition.number, partition.safe, metadata))
        if offsets:
            consumer.commit(offsets=offsets, asynchronous=True)

    def _on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        if error is not None:
            for origin in self._origins(offsets):
                self._partitions[origin].committed = None
            self._cluster.warn(
                "acknowledgements could not be committed; they are with the next, or else read again", error
            )

    def _after_fork(self) -> None:
        _abandon(self._consumer)
        self._consumer = None
        self._partitions.clear()
        self._items.clear()
        self._watermarks.clear()
        self._ends.clear()
        self._has_begun = False
        self._start_afresh()


class _Address(Struct, frozen=True):
    """What a URL says."""

    brokers: str
    topic: str
    settings: dict[str, str]


class _Outgoing(Struct, frozen=True):
    """A record on its way."""

    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


class _Caller(Struct, frozen=True, gc=False):
    """The trace that an execution is in."""

    trace_id: int
    flags: int
    tracestate: str

    def headers(self, span_id: int) -> tuple[tuple[str, bytes], ...]:
        """The W3C headers of a span in it; without tracestate where that is empty."""
        traceparent = f"00-{self.trace_id:032x}-{span_id:016x}-{self.flags:02x}".encode()
        if not self.tracestate:
            return (("traceparent", traceparent),)
        return ("traceparent", traceparent), ("tracestate", self.tracestate.encode())


class _Partition:
    """What was read of a partition and is not acknowledged.

    Attributes:
        number: The partition's.
        outstanding: Offsets, ascending, since that is how they are read.
        acknowledged: How many were acknowledged.
        committed: How many had been when a commit was asked for last; ``None`` where that has failed.
    """

    def __init__(self, number: int, first: int) -> None:
        self.number = number
        self.outstanding: OrderedDict[int, None] = OrderedDict()
        self.acknowledged = 0
        self.committed: int | None = 0
        self._next = first
        # of a predecessor's outstanding ones, those that have not come here
        self._awaited: deque[int] = deque()

    def resume(self, committed: int, metadata: str) -> None:
        """Takes over what a predecessor had outstanding, from what it committed; what somebody else did is ignored."""
        if metadata.startswith(_METADATA):
            data = zlib.decompress(b64decode(metadata[len(_METADATA) :]))
            count, *steps = msgpack.decode(data, type=list[int])
            self._next = committed + count
            for step in steps:
                committed += step
                self._awaited.append(committed)
            self.outstanding = OrderedDict.fromkeys(self._awaited)

    def read(self, offset: int) -> bool:
        """Takes note of a record; whether it is not acknowledged yet."""
        while self._awaited and self._awaited[0] < offset:
            # it is deleted
            self.acknowledge(self._awaited.popleft())
        if offset < self._next:
            if not self._awaited or self._awaited[0] > offset:
                return False
            self._awaited.popleft()
        else:
            self.outstanding[offset] = None
            self._next = offset + 1
        return True

    def acknowledge(self, offset: int) -> None:
        if offset in self.outstanding:
            del self.outstanding[offset]
            self.acknowledged += 1

    @property
    def safe(self) -> int:
        """The offset that a successor has to start with: the first that is not acknowledged."""
        return next(iter(self.outstanding), self._next)

    def metadata(self) -> str | None:
        """What a successor has to know beside that, for :meth:`resume`; ``None`` where it is too long."""
        if len(self.outstanding) > _MAX_OPEN:
            return None
        before = self.safe
        steps = [self._next - before]
        for offset in self.outstanding:
            steps.append(offset - before)
            before = offset
        text = _METADATA + b64encode(zlib.compress(msgpack.encode(steps))).decode()
        return text if len(text) <= _MAX_METADATA else None


class _Cluster:
    """What the clients of a topic have in common: settings, the library's log, and errors without secrets.

    Args:
        brokers: ``host:port``, with commas between them.
        topic: The topic.
        defaults: Settings that ``config`` may change.
        config: The user's settings.
        fixed: Settings that it may not change, and callbacks.
        client: What the settings are for.

    Attributes:
        settings: All of them, for the client.
        url: Which topic of which brokers, for messages.
        trouble: Why nothing works at the moment, as far as the library has said.
    """

    def __init__(
        self,
        brokers: str,
        topic: str,
        defaults: Mapping[str, _Setting],
        config: Mapping[str, _Setting],
        fixed: Mapping[str, Any],
        client: type[Producer | Consumer],
    ) -> None:
        self.url = f"kafka://{brokers}/{topic}"
        if not brokers.strip(", "):
            message = f"{self.url} names no broker; give one or more as host:port"
            raise ConfigurationError(message)
        if not _TOPIC_NAME.fullmatch(topic):
            message = f"{topic!r} is no topic's name: 1 to 249 of A-Z, a-z, 0-9, dot, dash, underscore"
            raise ConfigurationError(message)
        fixed = {**fixed, "bootstrap.servers": brokers, "error_cb": self.on_error}
        for setting in sorted(fixed.keys() & config.keys()):
            message = f"{self.url}: {setting} is not among the options that can be given; leave it out"
            raise ConfigurationError(message)
        self.settings: dict[str, Any] = {**defaults, **config, **fixed}
        self.trouble: KafkaError | None = None
        self._trouble_before: KafkaError | None = None
        self._complaint: KafkaError | None = None
        self._log = RateLimitedLog()
        self._secrets = [str(value) for setting, value in config.items() if value and _SECRET.search(setting)]
        try:
            # without brokers it connects to nothing
            client(
                {setting: self.settings[setting] for setting in self.settings if setting != "bootstrap.servers"},
                logger=self,
            )
        except KafkaException as error:
            message = f"{self.url}: {self.hide(error.args[0].str())}; correct or leave it out"
            raise ConfigurationError(message) from None

    def log(self, level: int, message: str, *args: object) -> None:
        """Takes what the library logs, in the place of a logger."""
        self._log.write(_LOGGER, level, ("library", *args[:1]), "%s: %s", self.url, self.hide(message % args))

    def warn(self, message: str, error: KafkaError) -> None:
        """Logs what nobody can be told otherwise."""
        self._log.write(_LOGGER, logging.WARNING, message, "%s: %s: %s", self.url, message, self.hide(error.str()))

    def on_error(self, error: KafkaError) -> None:
        """Takes what the library says of its connections, as its callback."""
        if error.code() not in _TROUBLE:
            self._complaint = error
        elif not self.is_to_be_mended:
            self.trouble = error

    @property
    def is_to_be_mended(self) -> bool:
        """Whether somebody has to do something before anything can work."""
        return self.trouble is not None and self.trouble.code() in _TO_BE_MENDED

    def try_afresh(self) -> None:
        """Waits for trouble to be told of anew, since it may be over; what it was is kept until something works."""
        self._trouble_before = self.trouble or self._trouble_before
        self.trouble = None

    def works(self) -> None:
        """Forgets all trouble."""
        self.trouble = self._trouble_before = self._complaint = None

    def hide(self, text: str) -> str:
        """The library's text without the secrets of the settings."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def unavailable(
        self, error: KafkaError | None, what: str, delivered: frozenset[int] = frozenset()
    ) -> UnavailableError:
        """The error to raise.

        Args:
            error: Why, where that is known; what only somebody can mend goes before it.
            what: What did not work.
            delivered: As in :class:`UnavailableError`.
        """
        # the library tells of the same trouble again only after a while
        reason = (self.trouble or self._trouble_before) if error is None or self.is_to_be_mended else error
        said = [found.str() for found in (reason, self._complaint) if found is not None]
        message = f"{self.url}: {what}: {self.hide('; '.join(said)) or 'no broker has answered in time'}"
        if reason is None or reason.code() not in _TO_BE_MENDED:
            return UnavailableError(message, delivered=delivered)
        user = self.settings.get("sasl.username")
        if user is not None:
            mechanism = self.settings.get("sasl.mechanism", self.settings.get("sasl.mechanisms"))
            message += f" (user {user!r}, mechanism {mechanism})"
        return MisconfiguredError(f"{message}: {_TO_BE_MENDED[reason.code()]}", delivered=delivered)


def _parse(url: str) -> _Address:
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    authority, _, topic = rest.partition("/")
    credentials, has_credentials, brokers = authority.rpartition("@")
    if scheme != "kafka":
        # not what it is: who knows where the secrets are in it
        message = "a Kafka URL is kafka://[user:password@]broker:9092/topic; this one begins otherwise"
        raise ConfigurationError(message)
    settings = {}
    if has_credentials:
        user, _, password = credentials.partition(":")
        settings = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}
        settings |= {"sasl.username": unquote(user), "sasl.password": unquote(password)}
    settings |= parse_qsl(query, keep_blank_values=True)
    return _Address(brokers, unquote(topic) or _TOPIC, settings)


def _note(reports: dict[int, KafkaError | None], index: int, error: KafkaError | None, _: Message | None) -> None:
    reports[index] = error


def _place_of(message: Message) -> tuple[int, int]:
    """Partition and offset, which what was polled always has."""
    number, offset = message.partition(), message.offset()
    return -1 if number is None else number, -1 if offset is None else offset


def _timeout(end: float) -> float:
    return max(_ASK_AT_LEAST, min(_ASK, end - time.monotonic()))


def _abandon(client: Producer | Consumer | None) -> None:
    """Has a client that came with a fork never be freed: that would wait for its threads, which did not come."""
    if client is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))
