"""Events into a Kafka topic: records keyed by execution, with the trace context in their headers."""

from __future__ import annotations

import time
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final, Self, Unpack

from confluent_kafka import KafkaError, KafkaException, Producer
from opentelemetry import trace

from constellation_otel._support.deadline import bounded, deadline_of
from constellation_otel._support.fork import after_fork_in_child
from constellation_otel.delivery import BufferedListener, ListenerOptions, Rejection, Sink
from constellation_otel.errors import RefusedError
from constellation_otel.events import Event, ExecutionStarted, encode_json, remote_parent
from constellation_otel.traces import span_id_of, trace_id_of
from constellation_otel.transports.kafka.cluster import TOPIC, Cluster, Setting, abandon, parse_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from confluent_kafka import Message
    from opentelemetry.trace import SpanContext

    from constellation_otel.transports.url import SinkOptions

__all__ = ["KafkaListener", "KafkaSink"]

_SAMPLED_AND_RANDOM: Final = 0x03

_PURGE: Final = 0.25
"""Seconds, at most, of a send's timeout that are kept for taking back what was not acknowledged."""
_SLICE: Final = 0.1
"""Seconds after which a send that waits looks whether it is of any use."""

_REFUSED: Final = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError._INVALID_DIFFERENT_RECORD,  # noqa: SLF001 - the library's own name for a local error
}
"""Refusals for good: of a record, or of all the records that went in one request with it."""
_PURGED: Final = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}  # noqa: SLF001 - the library's own names for its local errors


class KafkaSink(Sink[Event]):
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
        config: librdkafka's settings; they override the ones made here.
        max_callers: Executions of which the caller's span is remembered.
        takes_details: Whether modules that did not run get a record, too.

    Raises:
        ConfigurationError: A setting is not librdkafka's, or has no value that it takes.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str = TOPIC,
        *,
        config: Mapping[str, Setting] | None = None,
        max_callers: int = 16_384,
        takes_details: bool = False,
    ) -> None:
        self.takes_details = takes_details
        self._topic = topic
        self._max_callers = max_callers
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

    @property
    def name(self) -> str:
        return "kafka"

    @classmethod
    def from_url(cls, url: str, options: SinkOptions) -> Self:
        """Makes one from ``kafka://[user:password@]broker:9092[,broker2:9092]/topic?option=value``.

        A user and a password mean SASL PLAIN, without TLS unless ``security.protocol``
        says otherwise; characters that a URL has other uses for are percent-encoded.
        Options are librdkafka's settings. Without a topic it is ``constellation-events``.

        Raises:
            ConfigurationError: The URL is of another form, or an option is unknown.
        """
        brokers, topic, settings = parse_url(url)
        return cls(brokers, topic, config=settings, takes_details=options.takes_details)

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
        self._cluster.forget_error()
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
            # the library raises what only a new producer can fix
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
        # a new one connects at once, says what is wrong, and can go on
        self._producer = None
        said = [error for error in failed.values() if error.code() not in _PURGED]
        message = f"{left} of {len(items)} records were not acknowledged"
        raise self._cluster.unavailable(said[0] if said else None, message, delivered)

    def close(self) -> None:
        """Lets go of the connections; what was sent has been acknowledged or taken back by then."""
        self._producer = None

    def _await_reports(self, producer: Producer, until: float, end: float) -> None:
        """Waits until all have a report or waiting is useless, then takes back what has none."""
        while len(producer) and time.monotonic() < until and not self._cluster.needs_fixing:
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
                if len(self._callers) > self._max_callers:
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


class KafkaListener(BufferedListener[Event]):
    """Publishes every event to a Kafka topic, in the background: the guide's first example.

    Its records are what :class:`KafkaSink` writes. While there is no broker, events are
    held, for as long as there is room; with ``journal="events.db"`` they outlive the process.

    Args:
        bootstrap_servers: ``host:port`` of one or more brokers, with commas between them.
        topic: The topic; it is not created here, though brokers may be set to do so.
        config: librdkafka's settings.
        takes_details: Whether modules that did not run get a record, too.
        **options: See :class:`~constellation_otel.delivery.ListenerOptions`.

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
        takes_details: bool = False,
        **options: Unpack[ListenerOptions],
    ) -> None:
        sink = KafkaSink(bootstrap_servers, topic, config=config, takes_details=takes_details)
        super().__init__(sink, **options)


def _note(reports: dict[int, KafkaError | None], index: int, error: KafkaError | None, _: Message | None) -> None:
    reports[index] = error
