"""How large a journal becomes, and how small again."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from constellation_otel.events import ErrorInfo, ModuleFailed
from constellation_otel.transports.journal import Journal, JournalSink
from journals import EXECUTION, numbered, numbers_of, positions_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("make", [lambda path, size: Journal(path, sinks=["otlp"], max_bytes=size), JournalSink])
def test_a_size_that_is_too_small_is_refused_at_once(path: Path, make: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="max_bytes=65535 must be at least 65536"):
        make(path, max_bytes=65_535) if make is JournalSink else make(path, 65_535)


def test_the_newest_events_find_no_room_in_a_full_journal(path: Path) -> None:
    """And room is used again when it was made."""
    with closing(Journal(path, sinks=["otlp"], max_bytes=300_000)) as journal:
        batch = numbered(*range(1, 301))
        taken = [journal.append(batch) for _ in range(10)]
        assert taken[0] == 300
        assert taken[-1] < 300
        assert 200_000 < journal.size_bytes <= 300_000
        assert journal.held("otlp") == sum(taken)
        assert [journal.append(batch) for _ in range(200)][-1] == 0
        held = journal.read("otlp", 0, 10_000)
        assert numbers_of(held)[:300] == list(range(1, 301))
        journal.acknowledge("otlp", positions_of(held))
        assert journal.append(batch) == 300
        assert journal.size_bytes < 200_000


def test_the_file_shrinks_again_and_the_log_stays_small(path: Path) -> None:
    """After an outage."""
    big = [
        *numbered(0),
        *(ModuleFailed(EXECUTION, None, "m", ErrorInfo("E", "x" * 3_000), number) for number in range(500)),
    ]
    with closing(Journal(path, sinks=["otlp"])) as journal:
        for _ in range(8):
            journal.append(big)
        grown = path.stat().st_size
        while items := journal.read("otlp", 0, 500):
            journal.acknowledge("otlp", positions_of(items))
        assert path.with_name("events.db-wal").stat().st_size < 12_000_000
    assert grown > 9_000_000
    assert path.stat().st_size < 5_000_000
