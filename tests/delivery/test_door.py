"""What callbacks have made becomes a batch of valid events; the rest is counted, logged and dead-lettered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from uuid import UUID

from msgspec.structs import replace

from constellation_otel.delivery import Batch, DeadLetters
from constellation_otel.delivery.door import Door
from constellation_otel.events import ModuleStarted
from deliveries import T0, execution

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

WHY = "module_name must be a str, not 7; the event is dropped; fix what made it"
BAD = ModuleStarted(UUID(int=1), UUID(int=2), 7, T0)  # type: ignore[arg-type] # what it is about


def test_valid_events_are_a_batch_numbered_through_all_of_them() -> None:
    door = Door("list")
    first, second = execution(1), execution(2)
    assert door.admit(first) == Batch(first, range(1, 5))
    assert door.admit([]) == Batch([], range(5, 5))
    assert door.admit(second) == Batch(second, range(5, 9))
    assert (door.rejected, door.corrected, door.dead_lettered) == (0, 0, 0)


def test_an_event_no_sink_could_take_is_left_out_by_its_number(caplog: pytest.LogCaptureFixture) -> None:
    door = Door("list")
    start, module, *_ = execution(1)
    assert door.admit([start, BAD, "no event", module]) == Batch([start, module], [1, 4])
    assert door.admit([BAD]) == Batch([], [])
    assert door.admit([start]) == Batch([start], range(6, 7))
    assert (door.rejected, door.corrected, door.dead_lettered) == (3, 0, 0)
    assert caplog.messages == [f"list: an event cannot be sent: {WHY}"]


def test_what_is_left_out_is_a_dead_letter_that_can_be_read(tmp_path: Path) -> None:
    door = Door("list", DeadLetters(tmp_path / "dead.jsonl"))
    door.admit([BAD])
    (line,) = (tmp_path / "dead.jsonl").read_text().splitlines()
    letter = json.loads(line)
    assert (letter["where"], letter["reason"]) == ("list", WHY)
    assert letter["data"].startswith("ModuleStarted(execution_id=UUID('00000000-0000-0000-0000-000000000001')")
    assert (door.rejected, door.dead_lettered) == (1, 1)


def test_what_can_be_corrected_is_and_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    door = Door("list")
    start, *others = execution(1)
    odd = replace(start, traceparent=5)
    assert door.admit([odd, *others]) == Batch([start, *others], [1, 2, 3, 4])
    assert (door.rejected, door.corrected) == (0, 1)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages == [
        "list: a value of an event was left out or replaced: traceparent is 5, not a W3C header's value"
    ]
