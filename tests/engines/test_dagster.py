"""Dagster's event log as a source, and the bodies of its steps, on Dagster itself: `make adapters`."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

import pytest
from dagster import DagsterInstance, ReexecutionOptions, execute_job, reconstructable
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from constellation_otel.adapters.dagster import traced
from constellation_otel.cli import cli
from constellation_otel.delivery import Batch, Bridge, Unreadable
from constellation_otel.errors import ConfigurationError, SourceError, UnavailableError
from constellation_otel.testing import check_source, span_tree
from constellation_otel.traces import MODULE_ID
from constellation_otel.transports import sink_of, source_of
from constellation_otel.transports.dagster import DagsterSource
from constellation_otel.transports.otlp import make_resource
from engines import dagster_jobs as jobs
from programs import ROOT, run_command
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from constellation_otel.delivery import BridgeReport, SourceItem
    from constellation_otel.events import Event
    from constellation_otel.receiver import Receiver
    from constellation_otel.traces import Span

# the engine's own, in the releases that are tested
pytestmark = pytest.mark.filterwarnings("default")

OK = """\
conformance (server) success
  clean (internal) success
    inside-clean (internal)
  count (internal) success
    inside-count (internal)
  load (internal) success
    inside-load (internal)
  shout (internal) success
    inside-shout (internal)"""


class Home:
    """A Dagster instance, and an endpoint for the spans of its steps' bodies."""

    def __init__(self, folder: Path, receiver: Receiver, storage: str = "") -> None:
        self.folder = folder
        self.receiver = receiver
        (folder / "dagster.yaml").write_text(f"telemetry:\n  enabled: false\n{storage}")
        self.instance = DagsterInstance.from_config(str(folder))

    def run(self, job: Any, **options: Any) -> str:
        """Runs a job in this process; its run's id."""
        result = job.execute_in_process(instance=self.instance, raise_on_error=False, **options)
        return str(result.run_id)

    def source(self, **options: Any) -> DagsterSource:
        return DagsterSource(self.folder, **options)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Runs a job in a process of its own."""
        program = str(Path(jobs.__file__))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(program).parents[1]), *sys.path])}
        command = [sys.executable, program, str(self.folder), name]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def replay(self, **options: Any) -> BridgeReport:
        """Brings the spans of all runs to the endpoint."""
        return Bridge(self.source(**options), [self.sink()], is_replay=True, on_full="wait").run()

    def sink(self) -> Any:
        endpoint = self.receiver.grpc_endpoint.replace("http:", "otlp:")
        return sink_of(endpoint, resource=make_resource("dagster"))

    def tree(self) -> str:
        return span_tree(self.receiver.spans)


@pytest.fixture
def home(tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv(jobs.ENDPOINT, receiver.http_endpoint)
    made = Home(tmp_path, receiver)
    yield made
    made.instance.dispose()


CONSOLIDATED = """\
event_log_storage:
  module: dagster._core.storage.event_log
  class: ConsolidatedSqliteEventLogStorage
  config:
    base_dir: {folder}
"""
"""A storage with one table for all runs, as PostgreSQL's and MySQL's are."""


@pytest.fixture
def one_table(tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv(jobs.ENDPOINT, receiver.http_endpoint)
    made = Home(tmp_path, receiver, CONSOLIDATED.format(folder=tmp_path / "history"))
    yield made
    made.instance.dispose()


def read_all(source: DagsterSource) -> list[SourceItem]:
    items: list[SourceItem] = []
    try:
        while not source.has_ended:
            items += source.read(1.0)
    finally:
        source.close()
    return items


def events_of(items: Sequence[SourceItem]) -> list[Event]:
    return [event for item in items if isinstance(item, Batch) for event in item.events]


def by_name(spans: Sequence[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


# --- the conformance scenario --------------------------------------------------------------------------------------


TREES: dict[str, str] = {
    "ok": OK,
    "failure": """\
conformance (server) failure ERROR "boom failed: no number"
  boom (internal) failure ERROR "no number"
    inside-boom (internal)
  clean (internal) success
    inside-clean (internal)
  load (internal) success
    inside-load (internal)""",
    "retried": """\
conformance (server) success
  clean (internal) success
    inside-clean (internal)
  flaky (internal) failure ERROR "not yet"
    inside-flaky (internal)
  flaky (internal) failure ERROR "not yet"
    inside-flaky (internal)
  flaky (internal) success
    inside-flaky (internal)
  load (internal) success
    inside-load (internal)""",
    "recovered": """\
conformance (server) failure ERROR "boom failed: no number"
  boom (internal) failure ERROR "no number"
    inside-boom (internal)
  clean (internal) success
    inside-clean (internal)
  flaky (internal) failure ERROR "not yet"
    inside-flaky (internal)
  flaky (internal) failure ERROR "not yet"
    inside-flaky (internal)
  flaky (internal) success
    inside-flaky (internal)
  load (internal) success
    inside-load (internal)""",
    "mapped": """\
conformance (server) success
  length (internal) success
    inside-length (internal)
  length (internal) success
    inside-length (internal)
  length (internal) success
    inside-length (internal)
  split (internal) success
    inside-split (internal)
  total (internal) success
    inside-total (internal)""",
    "nested": """\
conformance (server) success
  load (internal) success
    inside-load (internal)
  sub.shout (internal) success
    inside-shout (internal)""",
    "skipped": """\
conformance (server) success
  after (internal) skipped
  branch (internal) success
    inside-branch (internal)
  clean (internal) success
    inside-clean (internal)""",
    "asynchronous": """\
conformance (server) success
  awaited (internal) success
    inside-awaited (internal)
  streamed (internal) success
    inside-streamed (internal)
    inside-streamed-on (internal)""",
}


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


def check_lengths(spans: Sequence[Span]) -> None:
    """A span holds those below it."""
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        parent = by_id.get(span.parent_span_id or 0)
        if parent is not None:
            assert parent.start_ns <= span.start_ns < span.end_ns <= parent.end_ns, (parent.name, span.name)


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


def cancel(home: Home, child: subprocess.Popen[bytes]) -> None:
    """Cancels the run of a process when it is in its step."""
    eventually(lambda: has_record(home, "STEP_START"), "the step has started")
    (run,) = home.instance.get_runs()
    home.instance.report_run_canceling(run)
    child.send_signal(signal.SIGINT)


def has_record(home: Home, kind: str) -> bool:
    for run in home.instance.get_runs():
        for record in home.instance.get_records_for_run(run.run_id).records:
            event = record.event_log_entry.dagster_event
            if event is not None and event.event_type_value == kind:
                return True
    return False


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


# --- the source ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("follow", [False, True])
def test_the_source_keeps_its_contract(follow: bool, home: Home, tmp_path: Path) -> None:
    for name in ("ok", "failure", "retried"):
        home.run(getattr(jobs, name))
    events = events_of(read_all(home.source()))

    def make() -> DagsterSource:
        return home.source(follow=follow, poll_interval=0.1)

    check_source(make, events=events, outages={"no instance": lambda: DagsterSource(tmp_path / "nowhere")})


def test_a_bridge_follows_runs_that_come(home: Home) -> None:
    home.run(jobs.ok)
    with following(home) as has_spans:
        eventually(lambda: has_spans("conformance", 1), "the run from before has arrived")
        for count in (2, 3):
            home.run(jobs.retried)
            eventually(lambda count=count: has_spans("conformance", count), "the new run has arrived")  # type: ignore[misc]
    assert sorted(home.tree().split("\n\n")) == sorted([OK, TREES["retried"], TREES["retried"]])


def test_a_bridge_gives_a_step_before_its_run_has_ended(home: Home) -> None:
    child = home.start("cancelled")
    try:
        with following(home, settle=0.1):
            cancel(home, child)
            eventually(lambda: by_name(home.receiver.spans, "conformance"), "the run has ended")
    finally:
        child.kill()
        child.wait(DEADLINE)
    check_lengths(home.receiver.spans)


@contextmanager
def following(home: Home, **options: Any) -> Iterator[Callable[[str, int], bool]]:
    """Has a bridge follow the instance meanwhile."""
    bridge = Bridge(home.source(follow=True, poll_interval=0.1), [home.sink()], **options)
    thread = threading.Thread(target=bridge.run)
    thread.start()
    try:
        yield lambda name, count: len(by_name(home.receiver.spans, name)) >= count
    finally:
        bridge.stop()
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_runs_whose_records_are_in_one_table_are_read_one_by_one(one_table: Home) -> None:
    first = one_table.start("retried")
    second = one_table.start("ok")
    assert [first.wait(2 * DEADLINE), second.wait(2 * DEADLINE)] == [0, 0]
    events = events_of(read_all(one_table.source()))
    check_source(one_table.source, events=events)
    assert one_table.replay().is_delivered
    assert sorted(one_table.tree().split("\n\n")) == sorted([OK, TREES["retried"]])
    check_lengths(one_table.receiver.spans)


def test_only_the_runs_of_a_job_or_since_a_time_are_read(home: Home) -> None:
    first = home.run(jobs.ok)
    home.run(jobs.shop())
    runs = {str(event.execution_id) for event in events_of(read_all(home.source(job="conformance")))}
    assert runs == {first}
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert read_all(home.source(since=tomorrow)) == []
    assert len({event.execution_id for event in events_of(read_all(home.source(since=tomorrow - timedelta(2))))}) == 2


def test_only_one_run_is_read_for_its_execution_id(home: Home) -> None:
    wanted, _ = UUID(home.run(jobs.ok)), home.run(jobs.ok)
    assert {event.execution_id for event in events_of(read_all(home.source(execution_id=wanted)))} == {wanted}


def test_more_runs_than_a_page_has_are_read_once_each(home: Home) -> None:
    runs = [home.instance.create_run_for_job(jobs.ok) for _ in range(70)]
    for run in runs:
        home.instance.report_run_canceled(run)
    events = events_of(read_all(home.source()))
    assert [str(event.execution_id) for event in events[::2]] == [run.run_id for run in runs]
    assert len(events) == 140


def test_a_run_that_is_deleted_while_it_is_followed_stops_nothing(home: Home) -> None:
    """Dagster lists no runs behind one that is not there, and SQLite gives its place to the next one."""
    first = home.run(jobs.ok)
    source = home.source(follow=True, poll_interval=0.1)
    try:
        assert runs_in(source, 1) == {first}
        home.instance.delete_run(first)
        second = home.run(jobs.ok)
        third = home.run(jobs.ok)
        assert runs_in(source, 2) == {second, third}
    finally:
        source.close()


def runs_in(source: DagsterSource, count: int) -> set[str]:
    """The runs that a source gives the end of, as many as that."""
    ended: set[str] = set()

    def read() -> bool:
        for event in events_of(source.read(0.2)):
            if event.kind == "execution.completed":
                ended.add(str(event.execution_id))
        return len(ended) >= count

    eventually(read, f"{count} runs have ended")
    return ended


def test_a_record_that_dagster_cannot_read_costs_that_record_only(home: Home) -> None:
    run_id = home.run(jobs.ok)
    whole = events_of(read_all(home.source()))
    damaged = damage(home, run_id, "STEP_START", "clean")
    items = read_all(home.source())
    (unreadable,) = [item for item in items if isinstance(item, Unreadable)]
    assert unreadable.position == (run_id, damaged)
    clean = uuid5(UUID(run_id), "clean")
    assert events_of(items) == [
        event for event in whole if (event.kind, getattr(event, "module_id", None)) != ("module.started", clean)
    ]


def test_the_newest_record_may_be_one_that_dagster_cannot_read(home: Home) -> None:
    run_id = home.run(jobs.ok)
    damaged = damage(home, run_id, "PIPELINE_SUCCESS", None)
    source = home.source(follow=True, poll_interval=0.1)
    found: list[SourceItem] = []

    def read() -> bool:
        found.extend(source.read(0.2))
        return any(isinstance(item, Unreadable) for item in found)

    try:
        eventually(read, "the damage was given")
    finally:
        source.close()
    assert [item.position for item in found if isinstance(item, Unreadable)] == [(run_id, damaged)]
    assert len(events_of(found)) == 9


def damage(home: Home, run_id: str, kind: str, key: str | None) -> int:
    """Makes a record unreadable; its id."""
    with sqlite3.connect(home.folder / "history/runs" / f"{run_id}.db") as database:
        rows = database.execute("SELECT id, event FROM event_logs WHERE dagster_event_type = ?", (kind,)).fetchall()
        (found,) = [number for number, event in rows if json.loads(event)["dagster_event"]["step_key"] == key]
        database.execute("UPDATE event_logs SET event = '{' WHERE id = ?", (found,))
    return int(found)


# --- URLs ----------------------------------------------------------------------------------------------------------


def test_a_url_names_the_folder_or_what_dagster_home_says(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(home.folder))
    for url in ("dagster:", f"dagster:{home.folder}", "dagster:?job=conformance&since=2026-01-31"):
        source = source_of(url, follow=False)
        assert source.name == f"dagster:{home.folder}"
        source.close()
    monkeypatch.delenv("DAGSTER_HOME")
    with pytest.raises(ConfigurationError, match="DAGSTER_HOME is not set"):
        source_of("dagster:", follow=False)


@pytest.mark.parametrize("query", ["?pipeline=x", "?job=", "?since=yesterday"])
def test_a_query_with_something_unknown_is_refused(query: str) -> None:
    with pytest.raises(ConfigurationError):
        source_of(f"dagster:/srv/dagster{query}", follow=False)


def test_a_folder_without_an_instance_is_left_as_it_is(tmp_path: Path) -> None:
    source = DagsterSource(tmp_path)
    with pytest.raises(SourceError, match="not the folder of a Dagster instance"):
        source.read(0)
    source.close()
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_cannot_be_opened_is_asked_again(home: Home) -> None:
    home.run(jobs.ok)
    home.instance.dispose()
    database = home.folder / "history/runs.db"
    away = database.rename(database.with_suffix(".away"))
    database.mkdir()
    source = home.source()
    with pytest.raises(UnavailableError):
        source.read(0)
    database.rmdir()
    away.rename(database)
    assert len(events_of(read_all(source))) == 10


def test_the_command_line_replays_and_shows_a_run(home: Home) -> None:
    run_id = home.run(jobs.ok)
    home.receiver.clear()
    endpoint = home.receiver.grpc_endpoint.replace("http:", "otlp:")
    command = f"{sys.executable} -m constellation_otel"
    options: dict[str, str] = {"PYTHONWARNINGS": "ignore", "DAGSTER_HOME": str(home.folder)}
    stdout, _ = run_command(home.receiver, f"{command} replay dagster: --to {endpoint}", **options)
    assert stdout.startswith(f"10 events replayed from dagster:{home.folder}: 1 executions, 5 spans")
    assert len(home.receiver.spans) == 5
    stdout, _ = run_command(home.receiver, f"{command} show {run_id} --from dagster:", **options)
    assert "conformance" in stdout


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
