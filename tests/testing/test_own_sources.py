"""Every source of this package keeps the contract, as the check that users have of it says."""

from __future__ import annotations

import gzip
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from constellation_otel.delivery.journal_ends import ReadingEnd
from constellation_otel.events import encode_frame, encode_json
from constellation_otel.testing import check_source
from constellation_otel.transports.journal import Journal, JournalSink, JournalSource
from constellation_otel.transports.jsonl import JsonlSink, JsonlSource
from constellation_otel.transports.sql import SqlSink, SqlSource
from constellation_otel.transports.websocket import WebSocketSource
from deliveries import execution
from engine_stand_in import EngineStandIn
from support import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path

    from constellation_otel.delivery import Sink

EVENTS = [event for number in range(1, 201) for event in execution(number, fails=not number % 3)]
"""More than one read gives."""


def fill(sink: Sink[Any]) -> None:
    """Sends the events, in batches as large as they may be."""
    with closing(sink):
        for start in range(0, len(EVENTS), sink.max_batch):
            assert not sink.send(EVENTS[start : start + sink.max_batch], DEADLINE)


@pytest.mark.parametrize("follow", [False, True])
def test_the_jsonl_source(follow: bool, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    fill(JsonlSink(path))
    outages = {"it is not there": lambda: JsonlSource(tmp_path / "missing.jsonl", follow=follow)}
    check_source(lambda: JsonlSource(path, follow=follow), events=EVENTS, outages=outages)


def test_the_jsonl_source_of_a_gzip_file(tmp_path: Path) -> None:
    path, torn = tmp_path / "events.jsonl.gz", tmp_path / "torn.jsonl.gz"
    data = gzip.compress(b"\n".join([b"no event", *map(encode_json, EVENTS)]))
    path.write_bytes(data)
    torn.write_bytes(data[: len(data) // 2])
    check_source(lambda: JsonlSource(path), events=EVENTS)
    check_source(lambda: JsonlSource(torn))


@pytest.mark.parametrize("follow", [False, True])
def test_the_sql_source(follow: bool, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/audit.db"
    fill(SqlSink(url))
    outages = {"it is not there": lambda: SqlSource(f"sqlite:///{tmp_path}/missing.db", follow=follow)}
    check_source(lambda: SqlSource(url, follow=follow), events=EVENTS, outages=outages)


@pytest.mark.parametrize("follow", [False, True])
def test_the_journals_source(follow: bool, tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    fill(JournalSink(path))
    check_source(lambda: JournalSource(path, follow=follow), events=EVENTS, resumes=True)


def test_the_websocket_source() -> None:
    """It gives what comes while it is connected, once."""
    with EngineStandIn(queue_size=len(EVENTS)) as engine, EngineStandIn() as away:
        away.kill()

        def play() -> None:
            engine.wait_for_clients()
            for event in EVENTS:
                engine.send(encode_frame(event).decode())

        player = threading.Thread(target=play)
        player.start()
        check_source(
            lambda: WebSocketSource(engine.url),
            events=EVENTS,
            outages={"it is not there": lambda: WebSocketSource(away.url)},
        )
        player.join(DEADLINE)


def test_the_journals_source_in_a_process(tmp_path: Path) -> None:
    """Which has no time of its own, and is read when there is something."""
    with closing(Journal(tmp_path / "journal.db", sinks=["sink"])) as journal:
        assert journal.append(EVENTS) == len(EVENTS)
        check_source(lambda: ReadingEnd(journal, "sink"), events=EVENTS)
