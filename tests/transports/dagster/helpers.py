"""Records of Dagster's event log without Dagster: as it stores them, and as it gives them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from constellation_otel.transports.dagster.records import Run
from programs import ROOT

RECORDING = ROOT / "tests/recordings/dagster-run.jsonl"
"""What Dagster 1.13 stored of a run, but for the frames of its own code."""


class Handle(SimpleNamespace):
    """A node's handle, whose text is its path."""

    def __str__(self) -> str:
        return f"{self.parent}.{self.name}" if self.parent else str(self.name)


def loaded(stored: Any) -> Any:
    """What Dagster makes of what it stores, as far as it is looked at here."""
    match stored:
        case {"__enum__": name}:
            return SimpleNamespace(value=name.partition(".")[2])
        case {"__class__": "SolidHandle"}:
            return Handle(name=stored["name"], parent=loaded(stored["parent"]))
        case dict():
            found = {name.replace("solid_handle", "node_handle"): loaded(value) for name, value in stored.items()}
            return SimpleNamespace(**found)
        case list():
            return [loaded(value) for value in stored]
        case _:
            return stored


def recorded() -> tuple[Run, list[tuple[int, Any]]]:
    """A run and its records."""
    first, *lines = map(json.loads, RECORDING.read_text().splitlines())
    return Run(**first), [(line["storage_id"], loaded(line["entry"])) for line in lines]


def entry(kind: str, at: float, key: str | None = None, **more: Any) -> Any:
    """A record."""
    record = SimpleNamespace(
        event_type_value=kind,
        step_key=key,
        node_handle=None if key is None else Handle(name=key.partition("[")[0], parent=None),
        step_handle=None,
        message=f"a {kind}",
        event_specific_data=None,
    )
    vars(record).update(more)
    return SimpleNamespace(timestamp=at, dagster_event=record)
