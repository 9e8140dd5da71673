"""The ready listeners: the guide's examples, each over its transport's sink."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from constellation_otel import Constellation, Dag, ExecutionFailedError, ExecutionListener
from constellation_otel.delivery import batches_of
from constellation_otel.errors import JournalError
from constellation_otel.testing import RecordingListener
from constellation_otel.transports.jsonl import JsonlListener, JsonlSource
from constellation_otel.transports.kafka import KafkaListener
from constellation_otel.transports.sql import SqlAuditListener, SqlSource
from deliveries import read_all
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from constellation_otel.delivery import BufferedListener, Source


def trim(text: str) -> str:
    return text.strip()


def year(trim: str) -> int:
    return int(trim)


PIPELINE = Dag("my-pipeline", [trim, year])


@pytest.mark.parametrize("has_journal", [True, False])
@pytest.mark.parametrize("kind", ["jsonl", "sql"])
def test_what_a_ready_listener_was_told_can_be_read_back(kind: str, has_journal: bool, tmp_path: Path) -> None:
    options = {"redact": lambda message: message.replace("secret", "***"), "max_queue": 100, "send_timeout": 5.0}
    if has_journal:
        options["journal"] = tmp_path / "journal.db"
    options["dead_letters"] = tmp_path / "dead.jsonl"
    path = tmp_path / "events"
    made: dict[str, Callable[[], BufferedListener[Any]]] = {
        "jsonl": lambda: JsonlListener(path, **options),  # type: ignore[arg-type] # a plain dict
        "sql": lambda: SqlAuditListener(f"sqlite:///{path}", **options),  # type: ignore[arg-type] # as above
    }
    listener = made[kind]()
    recording = RecordingListener()
    with (
        Constellation(ExecutionListener.composite(listener, recording)) as engine,
        pytest.raises(ExecutionFailedError),
    ):
        engine.run(PIPELINE, {"text": " secret "})
    assert listener.close(DEADLINE)
    source: Source = JsonlSource(path) if kind == "jsonl" else SqlSource(f"sqlite:///{path}")
    read = [type(event).__name__ for batch in batches_of(read_all(source)) for event in batch.events]  # type: ignore[union-attr] # all can be read
    assert read == [type(event).__name__ for event in recording.events]
    assert "secret" not in path.read_bytes().decode(errors="replace")
    assert not (tmp_path / "dead.jsonl").exists()


def test_a_listener_without_a_broker_holds_all_in_its_journal(tmp_path: Path) -> None:
    """Nobody else can use that meanwhile."""
    options = {"journal": tmp_path / "journal.db", "send_timeout": 0.5}
    listener = KafkaListener("127.0.0.1:1", config={"socket.timeout.ms": 500}, **options)  # type: ignore[arg-type]
    with Constellation(listener) as engine, pytest.raises(ExecutionFailedError):
        engine.run(PIPELINE, {"text": "x"})
    assert not listener.flush(0.5)
    assert listener.counters.held == 6
    with pytest.raises(JournalError):
        KafkaListener("127.0.0.1:1", journal=tmp_path / "journal.db")
    assert not listener.close(1.0)
