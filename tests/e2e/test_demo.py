"""The main job, whole: the demo's telemetry through the real Collector into the real Jaeger, and read back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from constellation_otel import span_id_of, trace_id_of
from constellation_otel.testing import span_tree
from demo_traces import PIPELINES, TRACES, linked_traces

from .peers import eventually
from .traces import JAEGERS_OWN, received_in

if TYPE_CHECKING:
    from constellation_otel.receiver import Received
    from constellation_otel.traces import Span

    from .peers import Collector, Jaeger

MS = 1_000_000
JAEGER_PAGE = "http://jaeger.test"
RUNS = ("engine-frames.jsonl", "engine-frames-50.jsonl")


@pytest.fixture(scope="module")
def printed(collector: Collector) -> str:
    """What the demo printed when it sent everything to the Collector."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    line = [sys.executable, "-m", "constellation_otel", "demo", "--jaeger", JAEGER_PAGE]
    environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.grpc_endpoint}
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def traces(printed: str, jaeger: Jaeger) -> dict[str, list[Received]]:
    """Each trace that was printed, as Jaeger's query API has it, by its id."""
    read_back = {}
    for trace_id, name in linked_traces(printed, JAEGER_PAGE):
        expected = len(PIPELINES[name].splitlines()) if name in PIPELINES else 1
        answer = jaeger.trace(trace_id, spans=expected)
        read_back[trace_id] = received_in(answer)
    return read_back


def test_every_trace_id_that_was_printed_is_one_that_jaeger_has(
    printed: str, traces: dict[str, list[Received]]
) -> None:
    lines = linked_traces(printed, JAEGER_PAGE)
    assert Counter(name for _, name in lines) == TRACES
    for trace_id, received in traces.items():
        assert {f"{item.span.trace_id:032x}" for item in received} == {trace_id}
        assert {item.resource.attributes["service.name"] for item in received} == {"constellation-demo"}


def test_jaeger_finds_no_span_odd(traces: dict[str, list[Received]]) -> None:
    """No negative length, and none that sticks out of its parent's."""
    odd = [item.span for received in traces.values() for item in received if JAEGERS_OWN in item.span.attributes]
    assert odd == []


def test_the_pipelines_traces_are_the_expected_trees(traces: dict[str, list[Received]]) -> None:
    trees = [span_tree(item.span for item in received) for received in traces.values()]
    by_root = {tree.split(" (")[0]: tree for tree in trees}
    assert {name: by_root[name] for name in PIPELINES} == PIPELINES


def test_the_pipelines_spans_have_the_attributes_and_durations_of_what_ran(
    traces: dict[str, list[Received]],
) -> None:
    ours = [
        item.span
        for received in traces.values()
        for item in received
        if item.scope.name == "constellation_otel" and item.span.attributes["constellation.dag.name"] in PIPELINES
    ]
    executions = {span.attributes["constellation.execution.id"]: span for span in ours if not is_module(span)}
    for span in ours:
        expected = {"constellation.execution.id", "constellation.dag.name", "constellation.outcome"}
        if is_module(span):
            expected |= {"constellation.module.id", "constellation.module.name"}
            assert span.name == span.attributes["constellation.module.name"]
            execution = executions[span.attributes["constellation.execution.id"]]
            assert span.parent_span_id == execution.span_id
            assert span.end_ns - span.start_ns <= execution.end_ns - execution.start_ns
        if span.attributes["constellation.outcome"] == "failure":
            expected.add("error.type")
            assert span.attributes["error.type"] == "ValueError"
        if span.name == "wait-for-more":
            expected.add("constellation.missing")
        assert span.end_ns > span.start_ns
        assert span.attributes.keys() == expected
    (failed,) = [span for span in ours if span.name == "year_of"]
    (event,) = failed.events
    assert event.name == "exception"
    assert event.attributes["exception.type"] == "ValueError"
    assert "return int(words[0])" in str(event.attributes["exception.stacktrace"])


def is_module(span: Span) -> bool:
    return "constellation.module.name" in span.attributes


def test_the_recorded_executions_are_whole_with_the_engines_own_durations(
    jaeger: Jaeger, printed: str, traces: dict[str, list[Received]]
) -> None:
    begins: dict[UUID, int] = {}
    times: dict[tuple[int, int], tuple[int, int]] = {}
    spans_of: Counter[int] = Counter()
    for run in RUNS:
        for line in files("constellation_otel").joinpath("data", run).read_text().splitlines():
            frame: dict[str, Any] = json.loads(line)["frame"]
            execution_id = UUID(frame["executionId"])
            trace_id = trace_id_of(execution_id)
            spans_of[trace_id] += frame["type"] in ("execution:start", "module:start")
            module_id = UUID(frame["moduleId"]) if "moduleId" in frame else None
            if frame["type"].endswith(":start"):
                begins[module_id or execution_id] = frame["timestamp"] * MS
            elif "durationMs" in frame:
                start_ns, length_ns = begins[module_id or execution_id], frame["durationMs"] * MS
                times[trace_id, span_id_of(execution_id, module_id)] = (start_ns, start_ns + max(length_ns, 1))
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for trace_id, expected in spans_of.items():
        answer = jaeger.trace(f"{trace_id:032x}", spans=expected)
        spans = [item.span for item in received_in(answer)]
        assert len({span.span_id for span in spans}) == len(spans) == expected
        (root,) = [span for span in spans if span.parent_span_id is None]
        for span in spans:
            assert JAEGERS_OWN not in span.attributes
            assert root.start_ns <= span.start_ns < span.end_ns <= root.end_ns
        found |= {(span.trace_id, span.span_id): (span.start_ns, span.end_ns) for span in spans if span is not root}
    assert len(spans_of) == 67
    assert found == {ids: times[ids] for ids in found}
    assert len(found) == 245 - 67


def test_the_metrics_arrive_with_exemplars_that_lead_to_the_printed_traces(printed: str, collector: Collector) -> None:
    known = {trace_id for trace_id, _ in linked_traces(printed, JAEGER_PAGE)}

    def exemplars() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        pattern = r'^(constellation_\w+_duration_seconds)_bucket\{.*\} .* # \{.*trace_id="([0-9a-f]{32})".*\}'
        for name, trace_id in re.findall(pattern, collector.scrape(), re.MULTILINE):
            found.setdefault(name, set()).add(trace_id)
        return found

    found = eventually(exemplars, 20, "the exemplars are on the Prometheus endpoint")
    assert found.keys() == {"constellation_execution_duration_seconds", "constellation_module_duration_seconds"}
    assert set().union(*found.values()) <= known
    text = collector.scrape()
    for dag, outcome in [("word-count", "success"), ("age-of-text", "failure"), ("slow-index", "cancelled")]:
        labels = rf'\{{.*constellation_dag_name="{dag}".*constellation_outcome="{outcome}".*\}}'
        (count,) = re.findall(rf"constellation_execution_duration_seconds_count{labels} (\d+)", text)
        assert int(float(count)) == (2 if dag == "word-count" else 1)
