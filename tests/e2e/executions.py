"""Executions as the records of a source, and as the spans that arrive of them."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING
from uuid import UUID

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from constellation_otel.events import encode_frame, encode_json
from constellation_otel.traces import MISSING
from deliveries import MS, T0, execution

from .bridges import command

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from constellation_otel.receiver import Receiver

    from .peers import Kafka

DEADLINE = 60.0
LOST = 4


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    return command("replay", *arguments)


def otlp(receiver: Receiver) -> str:
    return receiver.grpc_endpoint.replace("http://", "otlp://")


def written(path: Path, records: Iterable[bytes]) -> str:
    """A file of lines as a source."""
    path.write_bytes(b"".join(record + b"\n" for record in records))
    return f"jsonl:{path}"


def good(*numbers: int) -> list[bytes]:
    return [encode_json(event) for number in numbers for event in execution(number)]


Seen = list[tuple[str, str, int, int]]


def seen(receiver: Receiver, among: range = range(2**31)) -> Seen:
    """The spans of some executions that have arrived: execution and name, when they began, and how long they are."""
    spans = [it for it in receiver.spans if UUID(str(it.attributes["constellation.execution.id"])).int in among]
    assert {span.attributes["constellation.outcome"] for span in spans} <= {"success"}
    assert not any(MISSING in span.attributes for span in spans)
    return sorted(
        (str(it.attributes["constellation.execution.id"]), it.name, it.start_ns, it.end_ns - it.start_ns)
        for it in spans
    )


def whole(*numbers: int, start_ns: Callable[[int], int] = lambda number: T0) -> Seen:
    """The spans of executions of which nothing was lost."""
    return sorted(
        span
        for number in numbers
        for span in (
            (str(UUID(int=number)), f"dag-{number}", start_ns(number), 4 * MS),
            (str(UUID(int=number)), "trim", start_ns(number) + 1 * MS, 2 * MS),
        )
    )


def new_topic(kafka: Kafka) -> str:
    name = f"e2e-{uuid.uuid4()}"
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(DEADLINE)
    return name


def frames_of(numbers: range) -> list[str]:
    return [encode_frame(event).decode() for number in numbers for event in execution(number)]
