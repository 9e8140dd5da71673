"""The main job, whole: the demo's telemetry through the real Collector into the real Jaeger, and read back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from constellation_otel import trace_id_of
from constellation_otel.testing import span_tree
from demo_traces import PIPELINES, RAN, RECORDED, RECORDED_SERVICE, SERVICE, SHOWN_RECORDED, linked_traces
from engine_stand_in import recorded

from .peers import Jaeger, eventually
from .recorded_runs import MS, RUNS, check_whole, is_module, recorded_executions, spans_in
from .traces import JAEGERS_OWN, received_in

if TYPE_CHECKING:
    from pathlib import Path

    from constellation_otel.receiver import Received

    from .peers import Collector

REPORTED_DURATION = "constellation.reported_duration_ms"
JAEGER_PAGE = "http://jaeger.test"


def demo(*arguments: str, **variables: str) -> str:
    """What the demo prints, of which nothing goes wrong."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment |= variables
    line = [sys.executable, "-m", "constellation_otel", "demo", "--jaeger", JAEGER_PAGE, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def printed(collector: Collector) -> str:
    """What the demo printed when it sent everything to the Collector."""
    return demo("--all", OTEL_EXPORTER_OTLP_ENDPOINT=collector.grpc_endpoint)


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
    names = [name for _, name in lines]
    assert (tuple(names[:5]), Counter(names[5:])) == (RAN, RECORDED)
    services = [SERVICE] * 5 + [RECORDED_SERVICE] * 67
    for (trace_id, received), service in zip(traces.items(), services, strict=True):
        assert {f"{item.span.trace_id:032x}" for item in received} == {trace_id}
        assert {item.resource.attributes["service.name"] for item in received} == {service}


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


def test_the_recorded_executions_are_whole_as_if_they_had_run_just_now(
    jaeger: Jaeger, printed: str, traces: dict[str, list[Received]]
) -> None:
    """With other ids, and all of them as much later; in the order in which they started."""
    executions = recorded_executions()
    assert (len(executions), sum(map(spans_in, executions.values()))) == (67, 245)
    frames = [line.frame for run in RUNS for line in recorded(run)]
    started = [UUID(frame["executionId"]) for frame in frames if frame["type"] == "execution:start"]
    moved_ms = set()
    for recorded_id, (trace_id, _) in zip(started, linked_traces(printed, JAEGER_PAGE)[5:], strict=True):
        told = executions[recorded_id]
        received = received_in(jaeger.trace(trace_id, spans=spans_in(told)))
        (whole,) = [item.span for item in received if not is_module(item.span)]
        execution_id = UUID(str(whole.attributes["constellation.execution.id"]))
        assert f"{trace_id_of(execution_id):032x}" == trace_id
        assert execution_id not in executions
        by_ms = whole.start_ns // MS - min(frame["timestamp"] for frame in told)
        moved_ms.add(by_ms)
        moved = [frame | {"timestamp": frame["timestamp"] + by_ms} for frame in told]
        check_whole([item.span for item in received], execution_id, moved)
    assert len(moved_ms) == 1


def test_a_search_finds_what_failed_by_its_outcome_and_not_by_its_status(
    jaeger: Jaeger, printed: str, traces: dict[str, list[Received]]
) -> None:
    """What the README says of searches; the demo's traces are all in the last hour."""
    lines = linked_traces(printed, JAEGER_PAGE)
    ran, replayed = dict(lines[:5]), dict(lines[5:])
    assert jaeger.search(SERVICE, {}).keys() == ran.keys()
    assert jaeger.search(RECORDED_SERVICE, {}).keys() == replayed.keys()
    for service, of_service in ((SERVICE, ran), (RECORDED_SERVICE, replayed)):
        for outcome in ("failure", "cancelled"):
            expected = {
                trace_id
                for trace_id in of_service
                if outcome in {item.span.attributes.get("constellation.outcome") for item in traces[trace_id]}
            }
            assert expected
            assert jaeger.search(service, {"constellation.outcome": outcome}).keys() == expected
        assert jaeger.search(service, {"error": "true"}) == {}
    for name, value in (
        ("error.type", "ValueError"),
        ("constellation.dag.name", "age-of-text"),
        ("constellation.module.name", "year_of"),
    ):
        (failed,) = jaeger.search(SERVICE, {name: value})
        assert ran[failed] == "age-of-text"


def test_a_second_demo_doubles_no_span(tmp_path: Path) -> None:
    """Into a Jaeger without a Collector, which takes no metrics."""
    variables = {"OTEL_METRICS_EXPORTER": "none"}
    jaeger = Jaeger(tmp_path / "jaeger")
    try:
        jaeger.start()
        variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = jaeger.grpc_endpoint
        twice = [linked_traces(demo(**variables), JAEGER_PAGE) for _ in range(2)]
        ran, replayed = jaeger.search(SERVICE, {}), jaeger.search(RECORDED_SERVICE, {})
    finally:
        # it takes long to stop in order
        jaeger.kill()
    assert [tuple(name for _, name in lines) for lines in twice] == [(*RAN, *SHOWN_RECORDED)] * 2
    assert (len(ran), sum(ran.values())) == (10, 66)
    assert (len(replayed), sum(replayed.values())) == (134, 490)


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
