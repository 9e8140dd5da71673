"""Dagster instances for tests, and the traces of the jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster import DagsterInstance

from constellation_otel.delivery import Batch, Bridge
from constellation_otel.testing import span_tree
from constellation_otel.transports import sink_of
from constellation_otel.transports.dagster import DagsterSource
from constellation_otel.transports.otlp import make_resource
from engines import dagster_jobs as jobs
from support import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constellation_otel.delivery import BridgeReport, SourceItem
    from constellation_otel.events import Event
    from constellation_otel.receiver import Receiver
    from constellation_otel.traces import Span

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


CONSOLIDATED = """\
event_log_storage:
  module: dagster._core.storage.event_log
  class: ConsolidatedSqliteEventLogStorage
  config:
    base_dir: {folder}
"""
"""A storage with one table for all runs, as PostgreSQL's and MySQL's are."""


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


def check_lengths(spans: Sequence[Span]) -> None:
    """A span holds those below it."""
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        parent = by_id.get(span.parent_span_id or 0)
        if parent is not None:
            assert parent.start_ns <= span.start_ns < span.end_ns <= parent.end_ns, (parent.name, span.name)


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
