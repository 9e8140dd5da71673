"""Dagster's event log as a source, and the bodies of its steps, on Dagster itself: `make adapters`."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import sys
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

import pytest
from dagster import ReexecutionOptions, execute_job, reconstructable
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from constellation_otel.adapters.dagster import traced
from constellation_otel.cli import cli
from constellation_otel.testing import span_tree
from constellation_otel.traces import MODULE_ID
from constellation_otel.transports import source_of
from engines import dagster_jobs as jobs
from engines.dagster_homes import OK, TREES, Home, by_name, cancel, check_lengths, events_of, read_all
from programs import ROOT, run_command
from support import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path

    from constellation_otel.receiver import Receiver

# the engine's own, in the releases that are tested
pytestmark = pytest.mark.filterwarnings("default")

# --- the conformance scenario --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TREES)
def test_a_run_is_drawn_as_it_was_with_its_bodies_spans(name: str, home: Home) -> None:
    home.run(getattr(jobs, name))
    assert home.replay().is_delivered
    assert home.tree() == TREES[name]
    check_lengths(home.receiver.spans)


def test_attempts_are_numbered(home: Home) -> None:
    home.run(jobs.retried)
    home.replay()
    tries = sorted(by_name(home.receiver.spans, "flaky"), key=lambda span: span.start_ns)
    assert [span.attributes.get("constellation.module.attempt", 1) for span in tries] == [1, 2, 3]


def test_steps_link_to_those_whose_outputs_they_take(home: Home) -> None:
    home.run(jobs.mapped)
    home.replay()
    spans = home.receiver.spans
    names = {span.span_id: span.name for span in spans}
    links = {(span.name, names[link.span_id]) for span in spans for link in span.links}
    assert links == {("length", "split"), ("total", "length")}
    (total,) = by_name(spans, "total")
    assert len(total.links) == 3
    indices = {span.attributes["dagster.mapping_key"] for span in by_name(spans, "length")}
    assert indices == {"k0", "k1", "k2"}


def test_a_re_execution_is_a_trace_that_names_the_run_before(home: Home) -> None:
    job = reconstructable(jobs.failure)
    with execute_job(job, instance=home.instance) as result:
        first = result.run_id
    options = ReexecutionOptions(parent_run_id=first, step_selection=["boom"])
    with execute_job(job, instance=home.instance, reexecution_options=options) as result:
        assert not result.success
    home.receiver.clear()
    home.replay(execution_id=UUID(result.run_id))
    assert (
        home.tree()
        == """\
conformance (server) failure ERROR "boom failed: no number"
  boom (internal) failure ERROR "no number\""""
    )
    (execution,) = by_name(home.receiver.spans, "conformance")
    assert execution.attributes["dagster.parent_run_id"] == first
    assert execution.attributes["constellation.engine"] == "dagster"


def test_a_step_is_as_long_as_its_body_at_least(home: Home) -> None:
    home.run(jobs.lengths)
    home.replay()
    (slow,), (execution,) = by_name(home.receiver.spans, "slow"), by_name(home.receiver.spans, "conformance")
    assert slow.end_ns - slow.start_ns >= jobs.SLOW_S * 1e9
    assert slow.end_ns - slow.start_ns < 2e9
    check_lengths(home.receiver.spans)
    assert execution.start_ns <= slow.start_ns


def test_a_run_in_several_processes_is_one_trace(home: Home) -> None:
    """Dagster starts a process for each step; nothing is handed to it but its own ids."""
    assert home.start("processes").wait(4 * DEADLINE) == 0
    home.replay()
    assert home.tree() == OK
    pids = {span.attributes["process.pid"] for span in home.receiver.spans if "process.pid" in span.attributes}
    assert len(pids) == 4
    assert os.getpid() not in pids
    check_lengths(home.receiver.spans)


def test_a_run_that_is_interrupted_is_cancelled(home: Home) -> None:
    """As Dagster's own button does it: the run is said to be cancelled, and its process gets a signal."""
    child = home.start("cancelled")
    try:
        cancel(home, child)
        child.wait(DEADLINE)
    finally:
        child.kill()
        child.wait(DEADLINE)
    home.replay()
    (execution,) = by_name(home.receiver.spans, "conformance")
    assert execution.attributes["constellation.outcome"] == "cancelled"
    check_lengths(home.receiver.spans)


def test_a_run_whose_process_died_has_a_step_without_an_end(home: Home) -> None:
    """What Dagster's daemon finds out later is one record: that the run failed."""
    assert home.start("crashed").wait(DEADLINE) == 3
    (run,) = home.instance.get_runs()
    home.instance.report_run_failed(run)
    home.replay()
    assert (
        home.tree()
        == """\
conformance (server) failure ERROR "failed, and no failed module is known; a time-out in the engine looks like this"
  crashes (internal) unknown"""
    )


def test_a_run_that_was_cancelled_before_it_started_is_a_trace_of_its_own(home: Home) -> None:
    run = home.instance.create_run_for_job(jobs.ok)
    home.instance.report_run_canceled(run)
    home.replay()
    assert home.tree() == "conformance (server) cancelled"


def test_assets_are_steps(home: Home) -> None:
    home.run(jobs.shop())
    home.replay()
    assert (
        home.tree()
        == """\
shop (server) success
  orders (internal) success
    inside-orders (internal)
  report (internal) success
    inside-report (internal)"""
    )


def test_a_run_with_a_callers_span_in_its_tags_is_part_of_the_callers_trace(home: Home) -> None:
    tags: dict[str, str] = {}
    with trace.get_tracer("caller").start_as_current_span("request"):
        TraceContextTextMapPropagator().inject(tags)
        home.run(jobs.ok, tags=tags)
    home.replay()
    indented = OK.replace("(server)", "(internal)").replace("\n", "\n  ")
    assert home.tree() == f"request (internal)\n  {indented}"


# --- ids -----------------------------------------------------------------------------------------------------------


def test_the_same_run_read_twice_is_the_same_spans(home: Home) -> None:
    for name in ("recovered", "mapped"):
        home.run(getattr(jobs, name))
    assert events_of(read_all(home.source())) == events_of(read_all(home.source()))
    home.replay()
    spans = home.receiver.spans
    home.receiver.clear()
    home.replay()
    again = home.receiver.spans
    ours = [span for span in spans if not span.name.startswith("inside-")]
    assert sorted(ours, key=lambda span: span.span_id) == sorted(again, key=lambda span: span.span_id)


def test_a_step_has_the_id_that_its_key_says(home: Home) -> None:
    run_id = UUID(home.run(jobs.mapped))
    home.replay()
    found = {span.attributes[MODULE_ID] for span in by_name(home.receiver.spans, "length")}
    assert found == {str(uuid5(run_id, f"length[k{index}]")) for index in range(3)}


def test_an_execution_that_is_not_sampled_has_no_spans_of_bodies(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.provider, "sampler", ALWAYS_OFF)
    home.run(jobs.ok)
    assert home.receiver.spans == []


def test_a_body_that_is_called_without_a_run_runs_as_it_is() -> None:
    def body() -> trace.SpanContext:
        return trace.get_current_span().get_span_context()

    assert traced(body)() == trace.INVALID_SPAN_CONTEXT


# --- what users read ------------------------------------------------------------------------------------------------


def test_the_page_is_a_job_and_commands(home: Home, tmp_path: Path) -> None:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs/dagster.md").read_text(), re.MULTILINE | re.DOTALL)
    (code,) = [text for kind, text in blocks if kind == "python"]
    program = tmp_path / "page.py"
    program.write_text(code)
    page = runpy.run_path(str(program))
    home.run(page["nightly"])
    replay, bridge = [shlex.split(text) for kind, text in blocks if kind == "sh"]
    endpoint = home.receiver.grpc_endpoint.replace("http:", "otlp:")
    words = shlex.join([sys.executable, "-m", "constellation_otel", *replay[1:]])
    options: dict[str, str] = {"PYTHONWARNINGS": "ignore", "DAGSTER_HOME": str(home.folder)}
    run_command(home.receiver, words.replace("otlp://localhost:4317", endpoint), **options)
    assert (
        home.tree()
        == """\
nightly (server) success
  orders (internal) success
    SELECT orders (internal)
  total (internal) success"""
    )
    cli.commands["bridge"].make_context("bridge", bridge[2:])
    source_of(bridge[2].replace(":", f":{home.folder}", 1), follow=True).close()


def test_the_example_is_one_trace(receiver: Receiver) -> None:
    printed, _ = run_command(receiver, "python examples/dagster_job.py", PYTHONWARNINGS="ignore")
    assert printed == "total: 6\n6 events replayed as 3 spans; delivered: True\n"
    assert (
        span_tree(receiver.spans)
        == """\
nightly (server) success
  orders (internal) success
    SELECT orders (internal)
  total (internal) success"""
    )


def test_a_doctor_reads_the_beginning_of_an_instance(home: Home) -> None:
    home.run(jobs.retried)
    words = shlex.join([sys.executable, "-m", "constellation_otel", "doctor", f"dagster:{home.folder}"])
    stdout, _ = run_command(home.receiver, words, PYTHONWARNINGS="ignore")
    assert f"ok       instance     dagster:{home.folder} can be read: " in stdout
