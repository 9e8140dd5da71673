"""The executions that were recorded from the real engine, and what has to become of them, read off their frames."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from constellation_otel import span_id_of
from engine_stand_in import recorded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from constellation_otel.traces import Span
    from engine_stand_in import Line

MS = 1_000_000
RUNS = ("engine-frames.jsonl", "engine-frames-50.jsonl")
"""The recordings in which nothing was lost."""

Frames: TypeAlias = list[dict[str, Any]]


def by_execution(lines: Iterable[Line]) -> dict[UUID, Frames]:
    frames: defaultdict[UUID, Frames] = defaultdict(list)
    for line in lines:
        frames[UUID(line.frame["executionId"])].append(line.frame)
    return dict(frames)


def recorded_executions() -> dict[UUID, Frames]:
    """The frames of all recorded executions, each in order."""
    return by_execution(line for run in RUNS for line in recorded(run))


def spans_in(frames: Frames) -> int:
    """How many spans are made of an execution's frames: its own, and one for each module that is told of."""
    return 1 + len({frame["moduleId"] for frame in frames if "moduleId" in frame})


def is_module(span: Span) -> bool:
    return "constellation.module.name" in span.attributes


def check_whole(spans: list[Span], execution_id: UUID, frames: Frames) -> None:
    """An execution all of whose frames arrived is one whole trace, with the engine's own times and durations."""
    assert len(spans) == len({span.span_id for span in spans}) == spans_in(frames)
    assert {span.span_id: (span.start_ns, span.end_ns) for span in spans} == times_told(execution_id, frames)
    completed = [frame for frame in frames if "durationMs" in frame]
    reported = {_span_id_of(execution_id, frame.get("moduleId")): frame["durationMs"] for frame in completed}
    not_kept_to = {
        span.span_id: reported[span.span_id]
        for span in spans
        if span.span_id in reported and span.end_ns - span.start_ns != reported[span.span_id] * MS
    }
    name = "constellation.reported_duration_ms"
    assert {span.span_id: span.attributes[name] for span in spans if name in span.attributes} == not_kept_to
    (whole,) = [span for span in spans if not is_module(span)]
    assert {span.parent_span_id for span in spans} <= {None, whole.span_id}
    assert whole.parent_span_id is None
    cancelled = [frame["timestamp"] * MS for frame in frames if frame["type"] == "execution:cancelled"]
    assert [(event.name, event.timestamp_ns) for event in whole.events] == [("cancelled", at_ns) for at_ns in cancelled]


def times_told(execution_id: UUID, frames: Frames) -> dict[int, tuple[int, int]]:
    """When each span begins and ends, of an execution all of whose frames arrived.

    From its start on it is as long as reported, or else until its end, and at least a nanosecond. The execution holds
    its modules, and a module without an end lasts until the execution's.
    """
    begins: dict[str | None, int] = {}
    ends: dict[str | None, int] = {}
    for frame in frames:
        module_id, at_ns = frame.get("moduleId"), frame["timestamp"] * MS
        if frame["type"].endswith(":start"):
            begins[module_id] = at_ns
        else:
            begun_ns = begins[module_id]
            told_ns = begun_ns + frame["durationMs"] * MS if "durationMs" in frame else at_ns
            # the dashboard's runs send their completion twice; the earlier one counts
            ends.setdefault(module_id, max(told_ns, begun_ns + 1))
    begins[None], ends[None] = min(begins.values()), max(ends.values())
    return {
        _span_id_of(execution_id, module_id): (begun_ns, ends.get(module_id, ends[None]))
        for module_id, begun_ns in begins.items()
    }


def _span_id_of(execution_id: UUID, module_id: str | None) -> int:
    return span_id_of(execution_id, None if module_id is None else UUID(module_id))
