"""What it costs to have an event in the journal, against a line in a file.

On one side ``Journal.append`` and ``Journal.acknowledge``, with one sink and with two.
On the other the same events as JSON lines, appended to a file that is synced (fsync)
after each batch, which is the least that survives a power cut, and which knows nothing
of who has which line. Batches are of 512 events, as a bridge's are.

Measured is elapsed time, since the disk is what it is about; each round has all sides in
turn, and the ratios are those of the medians.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from constellation_otel.delivery import Batch, Position
from constellation_otel.events import ModuleCompleted, ModuleStarted, encode_json
from constellation_otel.transports.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constellation_otel.delivery import Restarted, Unreadable
    from constellation_otel.events import Event

__all__ = ["line"]

_BATCH: Final = 512
_BATCHES: Final = 20
_ROUNDS: Final = 7
_CLAIM: Final = 4
_MODULES: Final = 8


def _events() -> list[Event]:
    """Executions of eight modules, as they come."""
    events: list[Event] = []
    while len(events) < _BATCH:
        execution_id = uuid4()
        for number in range(_MODULES):
            module_id = uuid4()
            events.append(ModuleStarted(execution_id, module_id, "Trim", time.time_ns()))
            events.append(ModuleCompleted(execution_id, module_id, "Trim", number / 7, time.time_ns()))
    return events[:_BATCH]


def _lines_us(folder: Path, batches: Sequence[Sequence[Event]]) -> float:
    """Microseconds an event."""
    start = time.perf_counter()
    with (folder / "events.jsonl").open("ab") as file:
        for batch in batches:
            file.write(b"".join(encode_json(event) + b"\n" for event in batch))
            file.flush()
            os.fsync(file.fileno())
    return (time.perf_counter() - start) / (_BATCH * len(batches)) * 1e6


def _positions_in(items: Sequence[Batch | Unreadable | Restarted]) -> list[Position]:
    batches = [item for item in items if isinstance(item, Batch)]
    return [Position(batch.origin, offset) for batch in batches for offset in batch.offsets]


def _journal_us(folder: Path, batches: Sequence[Sequence[Event]], sinks: Sequence[str]) -> tuple[float, float]:
    """Microseconds an event: to append it, and to acknowledge it for all sinks."""
    with closing(Journal(folder / f"events-{len(sinks)}.db", sinks=sinks)) as journal:
        start = time.perf_counter()
        for batch in batches:
            journal.append(batch)
        appended = time.perf_counter()
        read = [_positions_in(journal.read(sink, 0, _BATCH * _BATCHES)) for sink in sinks]
        chosen = time.perf_counter()
        for first in range(0, _BATCH * len(batches), _BATCH):
            for sink, positions in zip(sinks, read, strict=True):
                journal.acknowledge(sink, positions[first : first + _BATCH])
        acknowledged = time.perf_counter()
    events = _BATCH * len(batches)
    return (appended - start) / events * 1e6, (acknowledged - chosen) / events * 1e6


def line() -> str:
    """The ratios, and what the claim is."""
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(_ROUNDS):
            batches = [_events() for _ in range(_BATCHES)]
            lines = _lines_us(folder, batches)
            rounds.append(
                (lines, *_journal_us(folder, batches, ["otlp"]), *_journal_us(folder, batches, ["otlp", "sql"]))
            )
    lines, append, acknowledge, append_two, acknowledge_two = (median(column) for column in zip(*rounds, strict=True))
    return (
        f"journal: synced JSON lines {lines:.1f} us an event, append {append:.1f} us:"
        f" {append / lines:.1f} times (claimed: at most {_CLAIM});"
        f" acknowledge {acknowledge / append:.2f} of an append with one sink,"
        f" {acknowledge_two / append_two:.2f} with two, both together"
    )
