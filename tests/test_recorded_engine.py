"""Every frame recorded from the real engine is accounted for in the traces that arrive.

What is expected is read off the frames here, with nothing of the package's own.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from constellation_otel import OpenTelemetryListener, span_id_of, trace_id_of
from constellation_otel.events import decode_frame
from engine_stand_in import recorded
from support import DEADLINE

if TYPE_CHECKING:
    from constellation_otel.delivery import AssemblyCounters
    from constellation_otel.traces import Span

MS = 1_000_000
RUNS = ("engine-frames.jsonl", "engine-frames-50.jsonl", "engine-frames-50-lossy.jsonl")


def frames_of(run: str) -> list[dict[str, Any]]:
    return [line.frame for line in recorded(run)]


def play(frames: list[dict[str, Any]], application: Any) -> tuple[OpenTelemetryListener, list[Span]]:
    """Plays frames through the listener; the spans that arrived over OTLP."""
    listener = OpenTelemetryListener(application.traces, NoOpMeterProvider(), settle=1.0)
    for frame in frames:
        listener.accept(decode_frame(json.dumps(frame)))
    assert listener.close(DEADLINE)
    application.export()
    return listener, application.receiver.spans


def assembly_of(listener: OpenTelemetryListener) -> AssemblyCounters:
    assembly = listener.counters.assembly
    assert assembly is not None
    return assembly


def missing_of(span: Span) -> str:
    return str(span.attributes.get("constellation.missing", ""))


def length_ms_of(span: Span) -> object:
    """As reported, where the span is longer: for the modules that it holds, or for the nanosecond that it needs."""
    return span.attributes.get("constellation.reported_duration_ms", (span.end_ns - span.start_ns) // MS)


def expected_execution(frames: list[dict[str, Any]]) -> dict[tuple[str, str | None], dict[str, Any]]:
    """What the frames of one execution say, by module id and, as the execution's own, ``None``."""
    facts: dict[tuple[str, str | None], dict[str, Any]] = {}
    execution_id = frames[0]["executionId"]
    for frame in frames:
        kind, what = frame["type"].split(":")
        about = facts.setdefault((execution_id, frame.get("moduleId") if kind == "module" else None), {})
        side = "start" if what == "start" else "end"
        assert side not in about, "these runs have no doubled frames"
        about[side] = frame
    facts.setdefault((execution_id, None), {})
    return facts


def described(facts: dict[str, Any], execution_end: dict[str, Any] | None) -> dict[str, Any]:
    """A span's name, times, outcome and what it lacks, worked out by hand from its two frames."""
    start, end = facts.get("start"), facts.get("end")
    known = start or end or {}
    name = known.get("moduleName") or known.get("dagName") or "unknown"
    if end is None:
        outcome = "unknown" if "moduleName" in known else "abandoned"
        if "moduleName" in known and execution_end and execution_end["type"].endswith("cancelled"):
            outcome = "cancelled"
        begins_ms = length_ms = None
    else:
        outcome = {
            "module:complete": "success",
            "module:failed": "failure",
            "execution:cancelled": "cancelled",
            "execution:complete": "success" if end.get("succeeded") else "failure",
        }[end["type"]]
        length_ms = end.get("durationMs")
        if length_ms is None and start is not None:
            length_ms = end["timestamp"] - start["timestamp"]
        begins_ms = end["timestamp"] - (length_ms or 0) if start is None else start["timestamp"]
    missing = ",".join(side for side, frame in (("start", start), ("end", end)) if frame is None)
    return {
        "name": name,
        "outcome": outcome,
        "missing": missing,
        "begins_ms": begins_ms,
        "length_ms": length_ms,
    }


@pytest.mark.parametrize("run", RUNS)
def test_every_execution_is_one_trace_with_the_engines_times(run: str, application: Any) -> None:
    """It says what is missing of it."""
    frames = frames_of(run)
    listener, spans = play(frames, application)
    counters, assembly = listener.counters, assembly_of(listener)
    assert (counters.received, counters.delivered) == (len(frames), len(frames))
    assert (assembly.late, assembly.duplicate) == (0, 0)
    by_execution: dict[str, list[dict[str, Any]]] = {}
    for frame in frames:
        by_execution.setdefault(frame["executionId"], []).append(frame)
    expected = {}
    for execution in by_execution.values():
        facts = expected_execution(execution)
        execution_end = facts[execution[0]["executionId"], None].get("end")
        for (execution_id, module_id), known in facts.items():
            ids = UUID(execution_id), UUID(module_id) if module_id else None
            expected[trace_id_of(ids[0]), span_id_of(*ids)] = described(known, execution_end)
    found = {
        (span.trace_id, span.span_id): {
            "name": span.name,
            "outcome": span.attributes["constellation.outcome"],
            "missing": missing_of(span),
            "begins_ms": None if "end" in missing_of(span) else -(-span.start_ns // MS),
            "length_ms": None if "end" in missing_of(span) else length_ms_of(span),
        }
        for span in spans
    }
    assert len(spans) == len(found)
    assert found == expected
    for span in spans:
        root = span.attributes.get("constellation.module.name") is None
        own_id = UUID(str(span.attributes["constellation.execution.id"]))
        assert span.parent_span_id == (None if root else span_id_of(own_id))


def test_nothing_is_missing_where_nothing_was_lost(application: Any) -> None:
    _, spans = play(frames_of("engine-frames-50.jsonl"), application)
    assert len({span.trace_id for span in spans}) == 50
    assert Counter(span.name for span in spans) == {"ephemeral": 50, "Trim": 50, "Uppercase": 50, "WordCount": 50}
    assert {span.attributes["constellation.outcome"] for span in spans} == {"success"}
    assert not any("constellation.missing" in span.attributes for span in spans)


def test_what_was_lost_shows(application: Any) -> None:
    """Of this run 29 executions were seen; four of them lost frames."""
    listener, spans = play(frames_of("engine-frames-50-lossy.jsonl"), application)
    lacking = Counter(
        (span.attributes["constellation.outcome"], missing_of(span))
        for span in spans
        if "constellation.missing" in span.attributes
    )
    assert len({span.trace_id for span in spans}) == 29
    assert lacking == {("abandoned", "end"): 4, ("unknown", "end"): 5}
    assembly = assembly_of(listener)
    assert assembly.abandoned == 4
    assert (assembly.incomplete_executions, assembly.incomplete_modules) == (4, 5)


# What the engine tells otherwise than one expects; docs/trace-model.md has the table


def described_by_name(spans: list[Span]) -> dict[str, tuple[object, str | None]]:
    return {span.name: (span.attributes["constellation.outcome"], span.status_description) for span in spans}


def test_a_time_out_in_the_engine_is_a_failure_without_a_module(application: Any) -> None:
    """And the module below the one that timed out, which never ran, has completed as well."""
    _, spans = play(frames_of("module-times-out-with-downstream.jsonl"), application)
    why = "failed, and no failed module is known; a time-out in the engine looks like this"
    assert described_by_name(spans) == {
        "SlowDefault": ("success", None),
        "Uppercase": ("success", None),
        "ephemeral": ("failure", why),
    }
    (failed,) = [span for span in spans if span.parent_span_id is None]
    assert failed.attributes["error.type"] == "_OTHER"


def test_of_two_failed_modules_the_execution_names_the_first(application: Any) -> None:
    _, spans = play(frames_of("two-modules-fail.jsonl"), application)
    assert described_by_name(spans) == {
        "FailNoMessage": ("failure", "IllegalStateException"),
        "FailAlways": ("failure", "boom: hello"),
        "ephemeral": ("failure", "FailNoMessage failed: IllegalStateException"),
    }


def test_a_run_from_the_dashboard_is_two_traces(application: Any) -> None:
    """The one with the modules says how it went.

    Three runs: a good one, a failing one, and one that lacks an input, which has a start only.
    """
    _, spans = play(frames_of("dashboard-runs.jsonl"), application)
    modules = Counter(span.trace_id for span in spans if span.parent_span_id is not None)
    roots = [span for span in spans if span.parent_span_id is None]
    assert {span.name for span in roots} == {"dashboard_exec"}
    assert Counter((modules[span.trace_id], span.attributes["constellation.outcome"]) for span in roots) == {
        (0, "success"): 2,
        (3, "success"): 1,
        (1, "failure"): 1,
        (0, "abandoned"): 1,
    }


def test_a_dag_of_150_modules_says_which_events_are_missing(application: Any) -> None:
    frames = frames_of("150-modules-one-run.jsonl")
    _, spans = play(frames, application)
    assert len({span.trace_id for span in spans}) == 1
    told = Counter(frame["type"] for frame in frames if frame["type"].startswith("module:"))
    lacking = Counter(missing_of(span) for span in spans if span.parent_span_id is not None)
    assert lacking[""] + lacking["end"] == told["module:start"]
    assert lacking[""] + lacking["start"] == told["module:complete"]
    assert lacking["end"] + lacking["start"] > 0
