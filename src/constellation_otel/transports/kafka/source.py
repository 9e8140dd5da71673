"""Events from a Kafka topic: followed as a member of a consumer group, or replayed from end to end.

What is polled and committed is in ``consumer``.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from confluent_kafka import Consumer

from constellation_otel._support.fork import after_fork_in_child
from constellation_otel.delivery import Source
from constellation_otel.errors import ConfigurationError
from constellation_otel.transports.kafka.cluster import Cluster, Setting, abandon, parse_url
from constellation_otel.transports.kafka.consumer import Limits, Reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from confluent_kafka import KafkaError, TopicPartition

    from constellation_otel.delivery import Position, SourceItem
    from constellation_otel.transports.url import SourceOptions

__all__ = ["KafkaSource"]


class KafkaSource(Source):
    """Reads events from a Kafka topic: follows it as a member of a consumer group, or replays it once.

    Following, its origins are ``(topic, partition)``. What is committed for the group is
    the offset of the first record that is not acknowledged, at most once a second, and
    once more when a partition is taken away and when the source is closed; a new group
    starts with the oldest record. Beside the offset, as its metadata, stands which later
    records are acknowledged: the next reader of the partition is not given them, so that
    an execution that was delivered is never read again from its middle. Where that is too
    long for a broker, since too much is open, what was committed before stays.

    Partitions are assigned the cooperative way: those that stay with a member stay
    undisturbed when others come and go, and their open executions with them. What is taken
    away comes as a :class:`~constellation_otel.delivery.Revoked`; acknowledgements for it
    are ignored from then on.

    A group gives a member up that does not read for ``max.poll.interval.ms`` (5 minutes).
    A reader that has no room calls :meth:`keep_alive` instead, every few seconds.

    A replay (``follow=False``) reads every partition from its oldest record to where it
    ended when the replay began. It joins no group, and commits nothing. Nor does one that only
    looks (``only_looks=True``): it follows every partition that there is at the first read, from
    its oldest record on, and what is acknowledged to it is ignored.

    A record that is not an event comes as :class:`~constellation_otel.delivery.Unreadable`, with
    the first 64 KiB of it. One without a value (a tombstone) is nothing.

    Args:
        bootstrap_servers: ``host:port`` of one or more brokers, with commas between them.
        topic: The topic.
        group: The consumer group; not used by a replay, nor by one that only looks.
        follow: Whether to go on with what comes later.
        only_looks: Whether to follow without the group.
        config: librdkafka's settings; they override the ones made here, but for those
            that the promises above rest on.
        limits: How often it commits, how much a read gives, and how long closing takes.

    Raises:
        ConfigurationError: There is no group to follow with; a setting is not librdkafka's,
            or has no value that it takes, or is not to be changed.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        *,
        group: str | None,
        follow: bool = True,
        only_looks: bool = False,
        config: Mapping[str, Setting] | None = None,
        limits: Limits | None = None,
    ) -> None:
        config = config or {}
        is_member = follow and not only_looks
        if is_member and not (group and group.strip()):
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
                # the library wants one always; who is no member never joins it
                "group.id": group if is_member and group else "constellation-otel-replay",
                "on_commit": self._on_commit,
            },
        )
        self._name = self._cluster.url + (f"?group={group}" if is_member else "")
        self._follow = follow
        self._is_member = is_member
        self._limits = limits or Limits()
        self._start()
        after_fork_in_child(self._after_fork)

    @classmethod
    def from_url(cls, url: str, options: SourceOptions) -> Self:
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
        looks = options.only_looks
        return cls(brokers, topic, group=group, follow=options.follow, only_looks=looks, config=settings)

    @property
    def name(self) -> str:
        return self._name

    @property
    def is_durable(self) -> bool:
        return True

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
            At most 512 records in order, each partition by itself, and what was taken away
            meanwhile; empty where nothing came in time, or when the source is closed.

        Raises:
            UnavailableError: No broker can be reached.
            MisconfiguredError: The credentials are wrong, or the topic to follow is missing.
            SourceError: The topic to replay is missing.
        """
        with self._in_use() as may_go_on:
            return self._reader.read(timeout) if may_go_on and not self.has_ended else ()

    def look(self, timeout: float) -> tuple[int, int]:
        """Asks the brokers for the topic of a replay, without reading it.

        Args:
            timeout: Seconds that each question may take.

        Returns:
            How many partitions it has, and how many records are in them.

        Raises:
            UnavailableError: No broker can be reached.
            MisconfiguredError: The credentials are wrong.
            SourceError: The topic is missing.
        """
        with self._in_use():
            return self._reader.look(timeout)

    def keep_alive(self) -> None:
        """Stays in the group without reading: for a reader that has no room, every few seconds instead of a read.

        Every partition is paused until the next :meth:`read`, which also gives what was
        taken away meanwhile. Returns at once.
        """
        with self._in_use() as may_go_on:
            if may_go_on:
                self._reader.keep_alive()

    @property
    def last_error(self) -> str | None:
        """Why what is acknowledged cannot be committed at the moment; ``None`` where it can."""
        why = self._reader.commit_error
        return None if why is None else f"delivered records cannot be acknowledged: {why}"

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
        close_s = self._limits.close_s
        if not (self._is_idle.wait(close_s) and self._reader.leave(close_s)):
            message = (
                "not closed within %.1f s; the broker does not answer, so the last acknowledgements may be lost"
                " and the group waits for the session to time out"
            )
            self._cluster.log(logging.WARNING, message, close_s)

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
        self._reader = Reader(self._cluster, follow=self._follow, is_member=self._is_member, limits=self._limits)
        self._is_idle = threading.Event()
        self._is_idle.set()

    def _after_fork(self) -> None:
        abandon(self._reader.consumer)
        self._start()
