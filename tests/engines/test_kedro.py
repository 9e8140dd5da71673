"""The adapter for Kedro, on projects of Kedro's: `make adapters`."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import re
import shutil
import sys
import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

import pytest
from kedro.framework.project import configure_project
from kedro.framework.session import KedroSession
from kedro.pipeline import Pipeline as KedroPipeline
from kedro.pipeline import node
from kedro.runner import ParallelRunner, SequentialRunner, ThreadRunner
from opentelemetry import context as otel_context

from constellation_otel.adapters import kedro_plugin
from constellation_otel.adapters.kedro import ConstellationHooks
from constellation_otel.adapters.telling import TellerCounters
from constellation_otel.events import ExecutionCompleted, ExecutionStarted
from constellation_otel.listener import ExecutionListener
from constellation_otel.testing import EVERY_ENGINE, RecordingListener, check_adapter, span_tree
from constellation_otel.testing.pipelines import CASES
from engines.environments import PROJECT
from programs import ROOT, run_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from constellation_otel.receiver import Receiver
    from constellation_otel.testing import Pipeline

# the engine's own, in the releases that are tested
pytestmark = pytest.mark.filterwarnings("ignore")

HOOKS: dict[str, ConstellationHooks] = {}
PIPELINES: dict[str, KedroPipeline] = {}
"""What the projects' settings and registries import, by package."""
SETTINGS = """\
import sys
HOOKS = (sys.modules["kedro_parts"].HOOKS[__name__.partition(".")[0]],)
"""
REGISTRY = """\
import sys
def register_pipelines():
    pipeline = sys.modules["kedro_parts"].PIPELINES[__name__.partition(".")[0]]
    return {"conformance": pipeline, "__default__": pipeline}
"""
PYPROJECT = """\
[tool.kedro]
package_name = "{package}"
project_name = "{package}"
kedro_init_version = "1.0.0"
source_dir = "src"
"""


class Project:
    """A project on disk, whose only hooks are the adapter's."""

    def __init__(self, folder: Path, pipeline: KedroPipeline, listener: ExecutionListener) -> None:
        self.package = f"woven_{next(_numbers)}"
        self.folder = folder / self.package
        self.hooks = HOOKS[self.package] = ConstellationHooks(listener)
        PIPELINES[self.package] = pipeline
        sys.modules["kedro_parts"] = sys.modules[__name__]
        source = self.folder / "src" / self.package
        source.mkdir(parents=True)
        (self.folder / "conf/base").mkdir(parents=True)
        (self.folder / "conf/local").mkdir(parents=True)
        (self.folder / "conf/base/catalog.yml").write_text("")
        (self.folder / "pyproject.toml").write_text(PYPROJECT.format(package=self.package))
        (source / "__init__.py").write_text("")
        (source / "settings.py").write_text(SETTINGS)
        (source / "pipeline_registry.py").write_text(REGISTRY)
        sys.path.insert(0, str(source.parent))
        configure_project(self.package)

    def run(self, runner: Any, **options: Any) -> Mapping[str, object]:
        with _session(self.folder) as session:
            outputs = session.run(runner=runner, **options)
        return {name: output.load() for name, output in outputs.items()}


_numbers = itertools.count()
NAMED: dict[str, Any] = {"pipeline_name": "conformance"}
if "pipeline_names" in inspect.signature(KedroSession.run).parameters:
    NAMED = {"pipeline_names": ["conformance"]}
_ids: set[str] = set()
_making = threading.Lock()


def _session(folder: Path) -> KedroSession:
    """A session with an id of its own: Kedro's are the time in milliseconds."""
    with _making:
        while True:
            session = KedroSession.create(project_path=folder)
            if session.session_id not in _ids:
                _ids.add(session.session_id)
                return session


def kedro_pipeline(pipeline: Pipeline) -> KedroPipeline:
    return KedroPipeline(
        [
            node(it.function, inputs=list(it.upstream) or None, outputs=it.name, name=it.name)
            for it in pipeline.nodes
            if it.function is not None
        ]
    )


def runs_with(runner: Callable[[], Any], folder: Path) -> Callable[..., Mapping[str, object]]:
    """Runs the check's pipelines in a project each, which is the whole process's while it runs."""
    projects: dict[str, Project] = {}
    lock = threading.Lock()

    def run(pipeline: Pipeline, listener: ExecutionListener) -> Mapping[str, object]:
        with lock:
            if pipeline.case not in projects:
                projects[pipeline.case] = Project(folder, kedro_pipeline(pipeline), listener)
        return projects[pipeline.case].run(runner(), **NAMED)

    return run


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kedro reports nothing, and leaves the process as it was."""
    monkeypatch.setenv("KEDRO_DISABLE_TELEMETRY", "yes")
    monkeypatch.setenv("CONSTELLATION_OTEL_KEDRO_RUNS", "{}")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    HOOKS.clear()
    PIPELINES.clear()


@pytest.mark.parametrize("case", EVERY_ENGINE)
@pytest.mark.parametrize("runner", [SequentialRunner, ThreadRunner])
def test_kedro_passes_the_check(runner: Callable[[], Any], case: str, tmp_path: Path) -> None:
    check_adapter(runs_with(runner, tmp_path), [case])


def test_nodes_in_forked_processes_are_told_of_by_those(tmp_path: Path) -> None:
    check_adapter(runs_with(ParallelRunner, tmp_path), ["processes"])


class FileListener(ExecutionListener):
    """Writes what it is told into a file, whichever process it is told in."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def _write(self, *what: object) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps([os.getpid(), *map(str, what)]) + "\n")

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        self._write("start", execution_id, dag_name)

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        self._write("module start", execution_id, module_name)

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        self._write("module complete", execution_id, module_name)

    def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
        self._write("complete", execution_id, dag_name)

    def module_details(self, execution_id: UUID, module_id: UUID, *, upstream: Sequence[UUID], **_: object) -> None:
        self._write("details", execution_id, module_id, *upstream)

    def join(self, execution_id: UUID, dag_name: str, traceparent: str | None = None) -> None:
        self._write("join", execution_id, dag_name, traceparent)

    def traceparent_of(self, execution_id: UUID) -> str:
        return "00-11-22-01"

    def flush(self, timeout: float) -> bool:
        self._write("flush")
        return True

    @property
    def lines(self) -> list[list[Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]


def test_the_process_of_a_node_joins_the_run_and_delivers_at_the_nodes_end(tmp_path: Path) -> None:
    listener = FileListener(tmp_path / "told")
    project = Project(tmp_path, kedro_pipeline(CASES["ok"]), listener)
    assert project.run(ParallelRunner(), **NAMED) == CASES["ok"].outputs
    here = [what for pid, *what in listener.lines if pid == os.getpid()]
    execution_id = UUID(here[0][1])
    assert here == [["start", str(execution_id), "conformance"], ["complete", str(execution_id), "conformance"]]
    there = [what for pid, *what in listener.lines if pid != os.getpid()]
    assert {tuple(what) for what in there if what[0] == "join"} == {
        ("join", str(execution_id), "conformance", "00-11-22-01")
    }
    assert sorted(what[2] for what in there if what[0] == "module complete") == ["clean", "count", "load", "shout"]
    assert [what[0] for what in there].count("flush") == 4
    clean = str(uuid5(execution_id, "clean"))
    assert sorted(what[2:] for what in there if what[0] == "details") == sorted(
        [
            [clean, str(uuid5(execution_id, "load"))],
            [str(uuid5(execution_id, "count")), clean],
            [str(uuid5(execution_id, "shout")), clean],
        ]
    )
    assert json.loads(os.environ["CONSTELLATION_OTEL_KEDRO_RUNS"]) == {}


def test_kedro_fires_no_hooks_of_nodes_in_processes_that_it_spawns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is told of, and its nodes are not; where Kedro will do so, this fails."""
    monkeypatch.setenv("KEDRO_MP_CONTEXT", "spawn")
    listener = FileListener(tmp_path / "told")
    project = Project(tmp_path, kedro_pipeline(CASES["ok"]), listener)
    assert project.run(ParallelRunner(), **NAMED) == CASES["ok"].outputs
    assert [what[0] for _, *what in listener.lines] == ["start", "complete"]


def test_a_run_id_is_one_of_a_host_a_process_and_a_project() -> None:
    """Kedro's own is the time of day."""
    recorder = RecordingListener()
    for path in ("/a", "/b"):
        hooks = ConstellationHooks(recorder)
        hooks.before_pipeline_run({"run_id": "2026-11-27T10.00.00.000Z", "project_path": path}, KedroPipeline([]))
    first, second = recorder.events
    assert first.execution_id != second.execution_id
    assert [event.dag_name for event in recorder.events if isinstance(event, ExecutionStarted)] == 2 * ["__default__"]


def test_an_interrupted_run_has_no_end_since_kedro_calls_no_hook(tmp_path: Path) -> None:
    recorder = RecordingListener()
    project = Project(tmp_path, kedro_pipeline(CASES["cancelled"]), recorder)
    before = otel_context.get_current()
    with pytest.raises(KeyboardInterrupt):
        project.run(SequentialRunner(), **NAMED)
    otel_context.attach(before)
    assert [type(event).__name__ for event in recorder.events] == [
        "ExecutionStarted",
        *2 * ("ModuleStarted", "ModuleCompleted"),
        "ModuleStarted",
    ]


def test_interrupted_runs_of_a_long_process_are_kept_up_to_a_bound() -> None:
    recorder = RecordingListener()
    hooks = ConstellationHooks(recorder)
    for number in range(70):
        hooks.before_pipeline_run({"run_id": f"run {number}"}, KedroPipeline([]))
    carried = json.loads(os.environ["CONSTELLATION_OTEL_KEDRO_RUNS"])
    assert list(carried) == [f"run {number}" for number in range(6, 70)]
    for number in range(6, 70):
        hooks.after_pipeline_run({"run_id": f"run {number}"})
    assert json.loads(os.environ["CONSTELLATION_OTEL_KEDRO_RUNS"]) == {}
    assert [type(event) for event in recorder.events] == 70 * [ExecutionStarted] + 64 * [ExecutionCompleted]
    assert hooks.teller.counters == TellerCounters()


def test_an_adapters_own_defect_does_not_reach_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = RecordingListener()
    project = Project(tmp_path, kedro_pipeline(CASES["ok"]), recorder)
    monkeypatch.setenv("CONSTELLATION_OTEL_KEDRO_RUNS", "{ no JSON")
    assert project.run(SequentialRunner(), **NAMED) == CASES["ok"].outputs
    # what other processes would need is lost, at the start and at the end
    assert project.hooks.teller.counters == TellerCounters(errors=2)
    assert isinstance(recorder.events[-1], ExecutionCompleted)
    hooks = ConstellationHooks(recorder)
    hooks.before_node_run(kedro_pipeline(CASES["ok"]).nodes[0], "another process's")
    hooks.after_pipeline_run({})
    assert hooks.teller.counters == TellerCounters(errors=2)


def test_a_node_of_a_run_that_nobody_has_told_of_is_left_out() -> None:
    recorder = RecordingListener()
    hooks = ConstellationHooks(recorder)
    it = node(CASES["ok"].nodes[0].function, inputs=None, outputs="load", name="load")
    hooks.before_node_run(it, "unknown")
    hooks.after_node_run(it, "unknown")
    assert recorder.events == []
    assert hooks.teller.counters == TellerCounters()


# --- what users read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", " --runner=ThreadRunner"])
def test_the_example_is_one_trace(receiver: Receiver, tmp_path: Path, options: str) -> None:
    """Its settings are what the page says."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/kedro.md").read_text(), re.MULTILINE | re.DOTALL)
    project = tmp_path / "kedro_project"
    shutil.copytree(ROOT / "examples/kedro_project", project)
    settings = project / "src/letters/settings.py"
    assert settings.read_text().endswith(block)
    settings.write_text(settings.read_text().replace("http://localhost:4317", receiver.grpc_endpoint))
    run_command(receiver, f"cd {project} && kedro run{options}", PYTHONWARNINGS="ignore")
    assert (
        span_tree(receiver.spans)
        == """\
__default__ (server) success
  count (internal) success
  longest (internal) success
  words (internal) success"""
    )


INSTALLED = """\
Metadata-Version: 2.1
Name: constellation-otel
Version: 0
"""
TREE = """\
__default__ (server) success
  count (internal) success
  longest (internal) success
  words (internal) success"""
OWN_HOOKS = """\
from constellation_otel import {listener}
from constellation_otel.adapters.kedro import ConstellationHooks

HOOKS = (ConstellationHooks({listener}()),)
"""
SETTINGS_OF = {
    "none of its own": "",
    "one for traces": OWN_HOOKS.format(listener="OtlpListener"),
    "another one": OWN_HOOKS.format(listener="LoggingListener"),
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This package as pip has it: these environments have its source only, without its entry points."""
    groups = PROJECT["project"]["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in it.items()) for group, it in groups.items()
    ]
    folder = tmp_path / "installed/constellation_otel-0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(INSTALLED)
    (folder / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", f"{folder.parent}:{os.environ['PYTHONPATH']}")


def run_project(receiver: Receiver, tmp_path: Path, settings: str, command: str, **variables: str) -> str:
    """Runs the example with other settings; what it logs, and the traces."""
    project = tmp_path / "kedro_project"
    shutil.copytree(ROOT / "examples/kedro_project", project)
    (project / "src/letters/settings.py").write_text(settings)
    stdout, stderr = run_command(receiver, f"cd {project} && {command}", PYTHONWARNINGS="ignore", **variables)
    return stdout + stderr


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("options", ["", " --runner=ThreadRunner"])
@pytest.mark.parametrize("hooks", SETTINGS_OF)
def test_a_project_is_traced_once_under_opentelemetry_instrument(
    hooks: str, options: str, receiver: Receiver, tmp_path: Path
) -> None:
    run_project(receiver, tmp_path, SETTINGS_OF[hooks], f"opentelemetry-instrument kedro run{options}")
    assert span_tree(receiver.spans) == TREE


@pytest.mark.usefixtures("installed")
def test_nodes_in_forked_processes_are_traced_under_opentelemetry_instrument(
    receiver: Receiver, tmp_path: Path
) -> None:
    """Each exports at its end what it has, long before the SDK would."""
    command = "opentelemetry-instrument kedro run --runner=ParallelRunner"
    run_project(receiver, tmp_path, "", command, OTEL_BSP_SCHEDULE_DELAY="60000")
    assert span_tree(receiver.spans) == TREE


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("settings", "command", "disabled"),
    [
        ("", "kedro run", ""),
        ("", "opentelemetry-instrument kedro run", "constellation"),
        ('DISABLE_HOOKS_FOR_PLUGINS = ("constellation-otel",)\n', "opentelemetry-instrument kedro run", ""),
    ],
    ids=["not instrumented", "disabled", "disabled in the project"],
)
def test_a_project_is_not_traced_otherwise(
    settings: str, command: str, disabled: str, receiver: Receiver, tmp_path: Path
) -> None:
    variables = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": disabled, "COLUMNS": "200"}
    logged = run_project(receiver, tmp_path, settings, command, **variables)
    assert "Pipeline execution completed successfully" in logged
    assert receiver.spans == []


def test_the_plugin_has_hooks_only() -> None:
    with pytest.raises(AttributeError, match="kedro_plugin' has no attribute 'hook'"):
        kedro_plugin.hook  # noqa: B018 - the access is the test
