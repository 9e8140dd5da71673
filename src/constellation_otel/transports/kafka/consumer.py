"""One consumer of a Kafka topic: what it polls, what it has to be asked, what it commits.

Not thread-safe, but for ``is_closed``.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from msgspec import Struct

from constellation_otel._support.deadline import bounded, deadline_of
from constellation_otel.delivery import BatchBuilder, Position, Revoked
from constellation_otel.errors import SourceError, UnavailableError
from constellation_otel.events import read_json
from constellation_otel.transports.kafka.cluster import UNKNOWN_TOPIC, Cluster
from constellation_otel.transports.kafka.offsets import Partition

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from confluent_kafka import Message

    from constellation_otel.delivery import SourceItem

__all__ = ["Limits", "Reader"]

_MAX_DATA: Final = 65_536
"""Bytes that are kept of a record that cannot be read."""
_ASK: Final = 2.0
"""Seconds that one question may take, at most."""
_ASK_AT_LEAST: Final = 0.25
_SLICE: Final = 0.1
"""Seconds after which a read that waits looks whether it is to end."""
_FATAL: Final = KafkaError._FATAL  # noqa: SLF001 - the library's own name for a local error
_END: Final = KafkaError._PARTITION_EOF  # noqa: SLF001 - the library's own name for a local error


class Limits(Struct, frozen=True):
    """What bounds a source of Kafka's.

    Attributes:
        commit_every_s: Seconds between two commits.
        max_metadata: Bytes beside a committed offset; brokers take 4,096 unless they are told otherwise.
        max_batch: Records in one answer of a read.
        close_s: Seconds that closing may take; twice that where a read is slow to end.
    """

    commit_every_s: float = 1.0
    max_metadata: int = 4_000
    max_batch: int = 512
    close_s: float = 5.0


class Reader:
    """Reads a topic: follows it, as a member of a group or not, or replays it to where it ended.

    Args:
        cluster: With a consumer's settings.
        follow: Whether to follow.
        is_member: Whether it follows as a member of a group.
        limits: How often it commits, and how much it gives at once.

    Attributes:
        consumer: The library's, once there is one.
        is_closed: Set to have a :meth:`read` end.
        commit_error: Why the last commit failed; ``None`` where it did not, or nothing is assigned.
        failed_commits: Commits that failed.
    """

    def __init__(self, cluster: Cluster, *, follow: bool, is_member: bool, limits: Limits) -> None:
        self.consumer: Consumer | None = None
        self.is_closed = False
        self.commit_error: str | None = None
        self.failed_commits = 0
        self._cluster = cluster
        self._topic = cluster.topic
        self._follow = follow
        self._is_member = is_member
        self._limits = limits
        # what was polled and not given yet, and how many records that are
        self._polled = BatchBuilder(_MAX_DATA)
        self._count = 0
        self._failure: UnavailableError | None = None
        # whether the topic, which is there, was subscribed to or assigned
        self._has_begun = False
        self._is_paused = False
        # following: what is assigned and has been read from
        self._partitions: dict[Hashable, Partition] = {}
        self._commit_at = 0.0
        # of a replay: where each partition ends that is not through
        self._ends: dict[int, int] = {}
        # of a replay: the first offset of each partition, how far it was read, and where it ends
        self._progress: dict[int, tuple[int, int, int]] = {}

    @property
    def has_ended(self) -> bool:
        return self._has_begun and not self._follow and not self._ends

    @property
    def fraction_read(self) -> float | None:
        """How much of a replay has been read, from 0 to 1; ``None`` where it follows, or has not begun."""
        if self._follow or not self._has_begun:
            return None
        whole = sum(last - first for first, _, last in self._progress.values())
        return sum(at - first for first, at, _ in self._progress.values()) / whole if whole else 1.0

    def read(self, timeout: float) -> Sequence[SourceItem]:
        """Polls until there is enough, or nothing more at once, or nothing in time."""
        timeout = bounded(timeout)
        end = deadline_of(timeout)
        consumer = self.consumer = self.consumer or self._cluster.open(Consumer)
        if self._is_paused:
            consumer.resume(consumer.assignment())
            self._is_paused = False
        self._raise_failure()
        if not self._has_begun or self._cluster.last_error is not None:
            self._ask(consumer, max(_ASK_AT_LEAST, min(_ASK, timeout)))
        while not self.has_ended:
            remaining = max(end - time.monotonic(), 0)
            came = self._poll(consumer, 0 if self._polled.items else min(remaining, _SLICE))
            if self._count >= self._limits.max_batch or self._failure is not None or self.is_closed:
                break
            if self._polled.items and not came:
                break
            if not self._polled.items and (not remaining or self._cluster.last_error is not None):
                break
        self._commit_if_due(consumer)
        items, self._polled, self._count = self._polled.items, BatchBuilder(_MAX_DATA), 0
        if items:
            self._cluster.forget_error()
            return items
        self._raise_failure()
        if self._cluster.last_error is not None and not self.is_closed:
            raise self._cluster.unavailable(None, "nothing can be read")
        return ()

    def look(self, timeout: float) -> tuple[int, int]:
        """Asks for the topic, of a replay: how many partitions it has, and how many records are in them."""
        consumer = self.consumer = self.consumer or self._cluster.open(Consumer)
        partitions = self._ask(consumer, bounded(timeout))
        return partitions, sum(last - first for first, _, last in self._progress.values())

    def keep_alive(self) -> None:
        """Polls with every partition paused until the next :meth:`read`."""
        if self.consumer is not None:
            self.consumer.pause(self.consumer.assignment())
            self._is_paused = True
            self._poll(self.consumer, 0)
            self._commit_if_due(self.consumer)

    def acknowledge(self, positions: Iterable[Position]) -> None:
        """Says that these are safe; those of other partitions are ignored."""
        for origin, offset in positions:
            partition = self._partitions.get(origin)
            if partition is not None:
                partition.acknowledge(offset)
        if self.consumer is not None:
            self._commit_if_due(self.consumer)

    def leave(self, timeout: float) -> bool:
        """Commits what is acknowledged and leaves the group; whether that was done in time."""
        consumer, self.consumer = self.consumer, None
        if consumer is None:
            return True
        self._commit(consumer)
        # in a thread, since without a broker it takes far longer than anybody wants to wait
        thread = threading.Thread(target=consumer.close, name=f"closing {self._cluster.url}", daemon=True)
        thread.start()
        thread.join(timeout)
        return not thread.is_alive()

    def on_commit(self, error: KafkaError | None, _: list[TopicPartition]) -> None:
        """Takes what became of a commit, as the library's callback."""
        self.commit_error = None
        if error is not None:
            self.failed_commits += 1
            for partition in self._partitions.values():
                partition.is_changed = True
                # of what was taken away, its next owner reads it again
                self.commit_error = error.str()
            message = "acknowledgements could not be committed; the next commit has them, or they are read again: %s"
            self._cluster.log(logging.WARNING, message, error.str())

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _ask(self, consumer: Consumer, timeout: float) -> int:
        """Asks for the topic: whether it is there, and a broker; then begins, unless it has. Returns its partitions."""
        try:
            topic = consumer.list_topics(self._topic, timeout=timeout).topics[self._topic]
            if topic.error is not None:
                raise KafkaException(topic.error)  # noqa: TRY301 - it is told as what is raised by the line before
            if not self._has_begun:
                self._begin(consumer, topic.partitions, timeout)
                self._has_begun = True
        except KafkaException as error:
            # what the connections have said, which the error has not, comes with the callbacks
            self._poll(consumer, 0)
            failure = self._cluster.unavailable(error.args[0], "the topic cannot be looked up")
            if not self._follow and error.args[0].code() in UNKNOWN_TOPIC:
                raise SourceError(str(failure)) from error
            raise failure from error
        self._cluster.forget_error()
        return len(topic.partitions)

    def _begin(self, consumer: Consumer, partitions: Iterable[int], timeout: float) -> None:
        if self._is_member:
            # not before the topic is there: a subscription would not notice for minutes that it was created
            consumer.subscribe([self._topic], on_revoke=self._on_revoke, on_lost=self._on_lost)
            return
        if self._follow:
            consumer.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in partitions])
            return
        for number in partitions:
            first, last = consumer.get_watermark_offsets(TopicPartition(self._topic, number), timeout=timeout)
            if first < last:
                self._ends[number] = last
                self._progress[number] = (first, first, last)
        consumer.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in self._ends])

    def _poll(self, consumer: Consumer, timeout: float) -> bool:
        """Takes what comes, callbacks included; says whether a record, an end or an error came."""
        message = consumer.poll(timeout)
        if message is None:
            return False
        error = message.error()
        if error is None:
            self._take(consumer, message)
        elif error.code() == _END:
            self._end_partition(consumer, _place_of(message)[0])
        elif error.code() == _FATAL:
            # closing one after a fatal error never returns; it is out of the group anyway
            self.consumer = None
            self._has_begun = False
            self._drop(list(self._partitions))
            self._failure = self._cluster.unavailable(error, "this member is out of the group, a new one joins")
        else:
            if error.code() in UNKNOWN_TOPIC:
                # a replay has all that it asks for
                self._has_begun = not self._follow
            self._failure = self._cluster.unavailable(error, "the topic cannot be read")
        return True

    def _take(self, consumer: Consumer, message: Message) -> None:
        number, offset = _place_of(message)
        origin = (self._topic, number)
        if not self._follow:
            last = self._ends.get(number, 0)
            self._advance(number, offset + 1)
            if offset >= last - 1:
                self._end_partition(consumer, number)
            is_wanted = offset < last
        elif not self._is_member:
            is_wanted = True
        elif origin in self._partitions or self._resume(consumer, number, offset):
            is_wanted = self._partitions[origin].read(offset)
        else:
            is_wanted = False
        data = message.value()
        if is_wanted and data is not None:
            self._polled.decode(read_json, data, offset, origin)
            self._count += 1
        elif is_wanted and origin in self._partitions:
            # a tombstone, which deletes its key's records and is none
            self._partitions[origin].acknowledge(offset)

    def _resume(self, consumer: Consumer, number: int, first: int) -> bool:
        """Asks what of a partition is acknowledged; without an answer, its first record is read again."""
        try:
            (place,) = consumer.committed([TopicPartition(self._topic, number)], timeout=_ASK)
        except KafkaException as error:
            consumer.seek(TopicPartition(self._topic, number, first))
            message = f"the committed offset of partition {number} cannot be looked up"
            self._failure = self._cluster.unavailable(error.args[0], message)
            return False
        partition = self._partitions[self._topic, number] = Partition(number, first)
        # behind the end of a topic that was made anew, say, reading begins at the beginning
        if place.offset <= first:
            partition.resume(place.offset, place.metadata or "")
        return True

    def _end_partition(self, consumer: Consumer, number: int) -> None:
        self._advance(number, self._ends.pop(number, 0))
        # what comes later is not asked for
        consumer.pause([TopicPartition(self._topic, number)])

    def _advance(self, number: int, at: int) -> None:
        first, before, last = self._progress[number]
        self._progress[number] = (first, max(before, min(at, last)), last)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if not self.is_closed:
            # not awaited here: the library gives no partition away while a commit is under way
            self._commit(consumer)
            self._on_lost(consumer, partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # the library would remember the pause, were the partition to come back
        consumer.resume(partitions)
        self._drop([(self._topic, partition.partition) for partition in partitions])

    def _drop(self, origins: Iterable[Hashable]) -> None:
        # nothing is open of a partition that was never read from
        for origin in origins:
            if self._partitions.pop(origin, None) is not None:
                self._polled.put(Revoked(origin))
        # of what is still ours, the next commit says whether it works
        self.commit_error = None

    def _commit_if_due(self, consumer: Consumer) -> None:
        now = time.monotonic()
        if now >= self._commit_at:
            self._commit_at = now + self._limits.commit_every_s
            self._commit(consumer)

    def _commit(self, consumer: Consumer) -> None:
        places = []
        for partition in self._partitions.values():
            if not partition.is_changed:
                continue
            metadata = partition.metadata
            if len(metadata) > self._limits.max_metadata:
                message = "too much is open in partition %d for a commit; its next reader starts from the last one"
                self._cluster.log(logging.INFO, message, partition.number)
                continue
            partition.is_changed = False
            places.append(TopicPartition(self._topic, partition.number, partition.safe, metadata))
        if not places:
            return
        try:
            consumer.commit(offsets=places, asynchronous=True)
        except KafkaException as error:
            self.on_commit(error.args[0], places)


def _place_of(message: Message) -> tuple[int, int]:
    """Partition and offset, which what was polled always has."""
    return cast("tuple[int, int]", (message.partition(), message.offset()))
