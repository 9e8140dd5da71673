"""Bridges in one consumer group: they come, are killed and leave, in the middle of executions."""

from __future__ import annotations

import random
import signal
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from constellation_otel import span_id_of, trace_id_of
from constellation_otel.events import (
    ErrorInfo,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
)
from constellation_otel.traces.ids import anonymous_module_id
from constellation_otel.transports.kafka import KafkaSink
from deliveries import MS, T0

from .bridges import bridging
from .peers import Kafka, eventually
from .traces import read_back

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from constellation_otel.events import Event

    from .bridges import RunningBridge
    from .peers import Jaeger

DEADLINE = 90.0
SENDING = 30.0
TOPIC, GROUP, PARTITIONS = "events", "replicas", 4
MODULES = ("fetch", "parse", "score", "store")
STEPS = 2 + 2 * len(MODULES)

EXECUTIONS = 300
STRIDE = 10
"""Ticks between two events of an execution: each tick, one more begins, and ten go on."""
LAST_TICK = EXECUTIONS - 1 + (STEPS - 1) * STRIDE
TICK_NS = 10 * MS


class Told(NamedTuple):
    """An execution: its events in order, and its spans as text."""

    events: list[Event]
    trace_id: int
    spans: list[str]


def told(number: int) -> Told:
    """Of every kind: with a caller or without, with module ids or not, succeeded, failed, cancelled.

    Two modules run at a time: both begin, the first ends, the second ends.
    """
    # the same in every run, so that every partition has its share
    seeded = random.Random(number)
    execution_id, caller = UUID(int=seeded.getrandbits(128), version=4), UUID(int=seeded.getrandbits(128), version=4)
    dag = f"dag-{number}"
    at_ns = [T0 + (number + step * STRIDE) * TICK_NS for step in range(STEPS)]
    has_caller, has_ids = number % 5 == 0, number % 2 == 0
    is_failed, is_cancelled = number % 7 == 3, number % 11 == 5
    trace_id = caller.int if has_caller else trace_id_of(execution_id)
    parent = caller.int & 0xFFFF_FFFF_FFFF_FFFF
    traceparent = f"00-{trace_id:032x}-{parent:016x}-01" if has_caller else None

    events: dict[int, Event] = {0: ExecutionStarted(execution_id, dag, at_ns[0], traceparent)}
    spans = []
    for index, name in enumerate(MODULES):
        begins = 1 + index // 2 * 4 + index % 2
        ends = begins + 2
        known_id = UUID(int=seeded.getrandbits(128), version=4) if has_ids else None
        duration_ms = 2 * STRIDE * TICK_NS / MS - 1.5
        events[begins] = ModuleStarted(execution_id, known_id, name, at_ns[begins])
        events[ends] = ModuleCompleted(execution_id, known_id, name, duration_ms, at_ns[ends])
        # its end is told 1.5 ms late
        end_ns, outcome = at_ns[ends] - 1_500_000, "success None"
        if is_failed and name == "store":
            events[ends] = ModuleFailed(execution_id, known_id, name, ErrorInfo("OSError", "full"), at_ns[ends])
            end_ns, outcome = at_ns[ends], "failure full"
        span_id = span_id_of(execution_id, known_id or anonymous_module_id(execution_id, name, 0))
        where = f"{trace_id:032x} {span_id:016x} < {span_id_of(execution_id):016x}"
        spans.append(f"{where} {name} of {dag} INTERNAL {at_ns[begins]} {end_ns} {outcome}")

    end_ns, outcome = at_ns[-1] - 500_000, "failure store failed: full" if is_failed else "success None"
    events[STEPS - 1] = ExecutionCompleted(execution_id, dag, not is_failed, (end_ns - at_ns[0]) / MS, at_ns[-1])
    if is_cancelled:
        events[STEPS - 1] = ExecutionCancelled(execution_id, dag, at_ns[-1])
        end_ns, outcome = at_ns[-1], "cancelled None"
    where = f"{trace_id:032x} {span_id_of(execution_id):016x} < {f'{parent:016x}' if has_caller else None}"
    kind = "INTERNAL" if has_caller else "SERVER"
    spans.append(f"{where} {dag} of {dag} {kind} {at_ns[0]} {end_ns} {outcome}")
    return Told([events[step] for step in range(STEPS)], trace_id, sorted(spans))


def read(jaeger: Jaeger, trace_id: int) -> list[str]:
    """A trace that Jaeger has, as text."""
    spans = [it.span for it in read_back(jaeger, trace_id, spans=1 + len(MODULES))]
    lines = []
    for span in spans:
        parent = None if span.parent_span_id is None else f"{span.parent_span_id:016x}"
        dag, outcome = (str(span.attributes[f"constellation.{name}"]) for name in ("dag.name", "outcome"))
        lines.append(
            f"{span.trace_id:032x} {span.span_id:016x} < {parent} {span.name} of {dag} {span.kind.name}"
            f" {span.start_ns} {span.end_ns} {outcome} {span.status_description}"
        )
    return sorted(lines)


class Stream:
    """Writes executions to the topic tick by tick, so that a hundred are open at any time but the first and the last.

    Attributes:
        executions: All of them.
        written: Events that are in the topic.
        open: Executions that have begun in the topic, and not ended.
    """

    def __init__(self, sink: KafkaSink) -> None:
        self.executions = [told(number) for number in range(EXECUTIONS)]
        self.written = 0
        self.open = 0
        self._sink = sink
        self._next_tick = 0

    def write(self, until: int) -> None:
        for tick in range(self._next_tick, until):
            due = [divmod(tick - number, STRIDE) for number in range(EXECUTIONS)]
            steps = {number: step for number, (step, rest) in enumerate(due) if rest == 0 and 0 <= step < STEPS}
            batch = [self.executions[number].events[step] for number, step in steps.items()]
            assert self._sink.send(batch, SENDING) == []
            self.written += len(batch)
            self.open += sum(step == 0 for step in steps.values()) - sum(step == STEPS - 1 for step in steps.values())
        self._next_tick = until


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[Kafka]:
    with Kafka(tmp_path / "kafka") as server:
        admin = AdminClient({"bootstrap.servers": server.brokers})
        admin.create_topics([NewTopic(TOPIC, PARTITIONS)])[TOPIC].result(DEADLINE)
        yield server


@pytest.fixture
def sink(kafka: Kafka) -> Iterator[KafkaSink]:
    sink = KafkaSink(kafka.brokers, TOPIC)
    yield sink
    sink.close()


def not_committed(kafka: Kafka) -> int:
    """How many of the topic's records the group would read again."""
    with Consumer({"bootstrap.servers": kafka.brokers, "group.id": GROUP}) as consumer:
        places = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
        ends = [consumer.get_watermark_offsets(place, timeout=SENDING)[1] for place in places]
        # negative where nothing is
        committed = [max(place.offset, 0) for place in consumer.committed(places, SENDING)]
    return sum(ends) - sum(committed)


def open_in(*bridges: RunningBridge) -> int:
    """How many executions they have open, together."""
    return sum(bridge.asks("/")[1]["open"] for bridge in bridges)


def test_replicas_that_come_and_go_and_are_killed_leave_every_execution_as_one_whole_trace(
    tmp_path: Path, jaeger: Jaeger, kafka: Kafka, sink: KafkaSink
) -> None:
    """Two bridge replicas in one consumer group; one is killed with SIGKILL in the middle of executions.

    Every execution is one whole trace in Jaeger, with no span shown twice. A replica that joins later and one that
    leaves in order change nothing of that, and what is committed is not read again by the group's next bridge.
    """
    url = f"kafka://{kafka.brokers}/{TOPIC}?group={GROUP}&session.timeout.ms=4000&heartbeat.interval.ms=500"
    otlp = jaeger.grpc_endpoint.replace("http://", "otlp://")
    # Jaeger takes traces only
    variables = {"OTEL_METRICS_EXPORTER": "none"}
    arguments = (url, "--to", otlp, "--health", "127.0.0.1:0")
    stream = Stream(sink)
    with bridging(tmp_path, *arguments, **variables) as first:
        stream.write(80)
        eventually(lambda: open_in(first) == stream.open == 80, DEADLINE, "the first replica has all that is open")

        with bridging(tmp_path, *arguments, **variables) as killed:
            # it takes partitions over whose executions the first one has open
            eventually(lambda: open_in(killed) > 20, DEADLINE, "the second replica has partitions")
            stream.write(160)
            eventually(lambda: open_in(first, killed) == stream.open, DEADLINE, "the two have all that is open")
            assert open_in(killed) > 20
            killed.process.kill()
            assert killed.process.wait(DEADLINE) == -signal.SIGKILL
        stream.write(240)
        eventually(lambda: open_in(first) == stream.open, DEADLINE, "the first has taken all over from the killed one")

        with bridging(tmp_path, *arguments, **variables) as leaving:
            eventually(lambda: open_in(leaving) > 20, DEADLINE, "the third replica has partitions")
            stream.write(320)
            eventually(lambda: open_in(first, leaving) == stream.open, DEADLINE, "the two have all that is open")
            left = leaving.end()
        assert left["open"] > 20
        stream.write(LAST_TICK + 1)
        assert (stream.written, stream.open) == (EXECUTIONS * STEPS, 0)
        eventually(lambda: not_committed(kafka) == 0, DEADLINE, "the group has committed everything")
        stayed = first.end()
    # what was taken from it in the middle of executions
    assert stayed["sinks"]["otlp"]["revoked"] > 0
    for report in (left, stayed):
        assert report["assembly"]["abandoned"] == 0
        assert [report[name] for name in ("unreadable", "dropped", "is_delivered")] == [0, 0, True]

    one_more = told(EXECUTIONS)
    assert sink.send(one_more.events, SENDING) == []
    with bridging(tmp_path, *arguments, **variables) as later:
        later.wait_until_read(1)
        eventually(lambda: not_committed(kafka) == 0, DEADLINE, "the group has committed that, too")
        assert later.end()["events"] == STEPS

    # not before everything was sent: in memory, Jaeger changes what it was asked for, and then finds the same span new
    everything = [*stream.executions, one_more]
    found = "\n".join(line for it in everything for line in read(jaeger, it.trace_id))
    assert found == "\n".join(line for it in everything for line in it.spans)
