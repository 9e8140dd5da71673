"""The main job, whole: the demo's telemetry through the real Collector into the real Jaeger, and read back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from constellation_otel import trace_id_of
from constellation_otel.testing import span_tree
from demo_traces import PIPELINES, TRACES, linked_traces

from .peers import eventually
from .recorded_runs import check_whole, is_module, recorded_executions, spans_in
from .traces import JAEGERS_OWN, read_back, received_in

if TYPE_CHECKING:
    from constellation_otel.receiver import Received

    from .peers import Collector, Jaeger

MS = 1_000_000
REPORTED_DURATION = "constellation.reported_duration_ms"
JAEGER_PAGE = "http://jaeger.test"


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
def traces(printed: str, collector: Collector, jaeger: Jaeger) -> dict[str, list[Received]]:
    """Each trace that was printed, as Jaeger's query API has it, by its id.

    Jaeger is not asked before it has everything: it finds modules whose execution is not there yet odd.
    """
    eventually(lambda: collector.queued_bytes() == 0, 20, "the Collector has sent everything on")
    found = {}
    for trace_id, name in linked_traces(printed, JAEGER_PAGE):
        expected = len(PIPELINES[name].splitlines()) if name in PIPELINES else 1
        answer = jaeger.trace(trace_id, spans=expected)
        found[trace_id] = received_in(answer)
    return found


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
        if REPORTED_DURATION in span.attributes:
            # its last module began to be measured before its start was told, and ends some microseconds late
            assert not is_module(span)
            assert float(str(span.attributes[REPORTED_DURATION])) * MS < span.end_ns - span.start_ns
            expected.add(REPORTED_DURATION)
        assert span.attributes.keys() == expected
    (failed,) = [span for span in ours if span.name == "year_of"]
    (event,) = failed.events
    assert event.name == "exception"
    assert event.attributes["exception.type"] == "ValueError"
    assert "return int(words[0])" in str(event.attributes["exception.stacktrace"])


def test_the_recorded_executions_are_whole_with_the_engines_own_durations(
    jaeger: Jaeger, printed: str, traces: dict[str, list[Received]]
) -> None:
    executions = recorded_executions()
    assert (len(executions), sum(map(spans_in, executions.values()))) == (67, 245)
    for execution_id, frames in executions.items():
        spans = [it.span for it in read_back(jaeger, trace_id_of(execution_id), spans=spans_in(frames))]
        check_whole(spans, execution_id, frames)
        assert [span for span in spans if JAEGERS_OWN in span.attributes] == []


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
