"""Every sink of this package keeps the contract, as the check that users have of it says."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest
from opentelemetry.sdk.resources import Resource

from constellation_otel.delivery import Record
from constellation_otel.delivery.journal_ends import ReadingEnd, WritingEnd
from constellation_otel.receiver import Delay, Drop, PartialSuccess, Receiver, Refuse
from constellation_otel.testing import check_sink
from constellation_otel.transports.journal import Journal, JournalSink, JournalSource
from constellation_otel.transports.jsonl import JsonlSink, JsonlSource
from constellation_otel.transports.otlp import OtlpSink
from constellation_otel.transports.sql import SqlSink, SqlSource
from deliveries import flat, read_all
from journals import locked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from constellation_otel.delivery import Source
    from constellation_otel.events import Event

NOWHERE: Final = "http://127.0.0.1:1"


def events_of(source: Source, path: Path) -> list[Event]:
    """The events in a file, which may not be there yet."""
    if not path.exists():
        return []
    return [item.event for item in read_all(source) if isinstance(item, Record)]


def test_the_jsonl_sink(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    check_sink(
        lambda: JsonlSink(path),
        received=lambda: events_of(JsonlSource(path), path),
        outages={
            "there is no folder": lambda: JsonlSink(tmp_path / "missing" / "events.jsonl"),
            "it is a folder": lambda: JsonlSink(tmp_path),
        },
    )


def test_the_sql_sink(tmp_path: Path) -> None:
    path, busy = tmp_path / "audit.db", tmp_path / "busy.db"
    with locked(busy):
        check_sink(
            lambda: SqlSink(f"sqlite:///{path}"),
            received=lambda: events_of(SqlSource(f"sqlite:///{path}"), path),
            outages={
                "there is no folder": lambda: SqlSink(f"sqlite:///{tmp_path}/missing/audit.db"),
                "the file is locked": lambda: SqlSink(f"sqlite:///{busy}"),
            },
        )


def test_the_journals_sink(tmp_path: Path) -> None:
    path, busy = tmp_path / "journal.db", tmp_path / "busy.db"
    blocked = JournalSink(busy)
    with locked(busy):
        check_sink(
            lambda: JournalSink(path),
            received=lambda: events_of(JournalSource(path, follow=False), path),
            outages={"the file is locked": lambda: blocked},
        )


def test_the_journals_sink_in_a_process(tmp_path: Path) -> None:
    """Whose end is not closed with the journal."""
    journal = Journal(tmp_path / "journal.db", sinks=["sink"])

    def received() -> list[Event]:
        reading, events = ReadingEnd(journal, "sink"), []
        while items := flat(reading.read(0)):
            events += [item.event for item in items]
        return events

    try:
        check_sink(lambda: WritingEnd(journal, lambda written: None), received=received)
    finally:
        journal.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_otlp_sink(protocol: Any, receiver: Receiver, silent: str) -> None:
    endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint

    def make(url: str = endpoint) -> OtlpSink:
        return OtlpSink(url, protocol=protocol, resource=Resource({}))

    def flaky() -> OtlpSink:
        for fault in (
            Refuse(times=2),
            Drop(),
            Drop(kept=True),
            PartialSuccess(rejected=2),
            Refuse(http_status=413, grpc_code=grpc.StatusCode.INVALID_ARGUMENT, message="too large"),
            Refuse(http_status=429, grpc_code=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=1.0),
            Delay(seconds=0.1),
        ):
            receiver.order(fault)
        return make()

    def refusing() -> OtlpSink:
        receiver.clear()
        receiver.order(Refuse(http_status=400, grpc_code=grpc.StatusCode.INVALID_ARGUMENT))
        receiver.order(PartialSuccess(rejected=1_000))
        return make()

    check_sink(
        make,
        received=lambda: receiver.spans,
        flaky=flaky,
        refusing=refusing,
        outages={"it is not there": lambda: make(NOWHERE), "it never answers": lambda: make(silent)},
    )
