"""What opentelemetry-instrument loads, in this process and in programs of their own, in real servers and workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from constellation_otel import (
    Constellation,
    Dag,
    ExecutionListener,
    OpenTelemetryListener,
    OtlpListener,
    instrumentation,
)
from constellation_otel.instrumentation import ConstellationInstrumentor
from constellation_otel.testing import RecordingListener, span_tree
from programs import run_command
from support import DEADLINE, UNWATCHED, eventually, in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Application
    from constellation_otel.receiver import Receiver

TREE = """\
letters (server) success
  count (internal) success
  trim (internal) success"""


def trim(text: str) -> str:
    trace.get_current_span().set_attribute("length", len(text))
    return text.strip()


def count(trim: str) -> int:
    return len(trim.split())


def run(listener: ExecutionListener = ExecutionListener.noop) -> None:
    with Constellation(listener) as engine:
        engine.run(Dag("letters", [trim, count]), {"text": " to be "})


@pytest.fixture
def instrument(application: Application) -> Iterator[Callable[[], None]]:
    """Instruments with an application's providers; the test may uninstrument, and otherwise this does."""
    instrumentor = ConstellationInstrumentor()

    def instrument() -> None:
        instrumentor.instrument(
            tracer_provider=application.traces,
            meter_provider=application.metrics,
            logger_provider=application.logs,
        )

    yield instrument
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def arrived(application: Application) -> str:
    """What is drawn of all that was traced, when nothing is instrumented any more."""
    ConstellationInstrumentor().uninstrument()
    application.export()
    return span_tree(application.receiver.spans)


def test_an_engine_is_traced_while_it_is_instrumented_whenever_it_was_made(
    instrument: Callable[[], None], application: Application
) -> None:
    dag = Dag("letters", [trim, count])
    with Constellation() as engine:
        engine.run(dag, {"text": "before"})
        instrument()
        for _ in range(2):
            engine.run(dag, {"text": " to be "})
        run()
        assert arrived(application) == "\n\n".join(3 * [TREE])
        engine.run(dag, {"text": "after"})
        application.export()
        assert span_tree(application.receiver.spans) == "\n\n".join(3 * [TREE])
    trims = [span for span in application.receiver.spans if span.name == "trim"]
    assert [span.attributes["length"] for span in trims] == [7, 7, 7]
    counts = [it.count for it in application.receiver.metrics if it.name == "constellation.execution.duration"]
    assert set(counts) == {3}


def test_an_engines_own_listener_is_notified_too(instrument: Callable[[], None], application: Application) -> None:
    instrument()
    recording = RecordingListener()
    run(recording)
    assert len(recording.events) == 6
    assert arrived(application) == TREE


def test_an_engine_that_has_a_listener_for_traces_is_left_alone(
    instrument: Callable[[], None], application: Application
) -> None:
    instrument()
    own = OpenTelemetryListener(application.traces, application.metrics, application.logs)
    otlp = OtlpListener(application.receiver.http_endpoint, protocol="http/protobuf")
    for listener in (own, otlp):
        run(listener)
        run(ExecutionListener.composite(RecordingListener(), listener))
        assert listener.close(DEADLINE)
    assert arrived(application) == "\n\n".join(4 * [TREE])


def test_engines_of_many_threads_share_one_listener(
    instrument: Callable[[], None], application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two, OpenTelemetry would say that they have the same instruments."""
    instrument()
    in_threads(8, run)
    assert arrived(application) == "\n\n".join(8 * [TREE])
    assert caplog.messages == []


def run_in_child() -> None:
    run()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("providers", [("tracer_provider",), ()], ids=["given", "there are none"])
@pytest.mark.usefixtures("instrument")
def test_a_forked_child_exports_what_there_is_at_its_end(providers: tuple[str, ...], application: Application) -> None:
    ConstellationInstrumentor().instrument(**dict.fromkeys(providers, application.traces))
    context = multiprocessing.get_context("fork")
    for target in (run_in_child, int):
        child = context.Process(target=target)
        child.start()
        child.join(DEADLINE)
        assert child.exitcode == 0
    assert span_tree(application.receiver.spans) == (TREE if providers else "")


def test_an_sdk_that_does_not_export_holds_up_no_childs_end_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given_up = threading.Event()

    class Stuck(TracerProvider):
        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return given_up.wait(DEADLINE)

    instrumentor = ConstellationInstrumentor()
    instrumentor.instrument(tracer_provider=Stuck(shutdown_on_exit=False))
    try:
        run()
        with monkeypatch.context() as patch:
            patch.setattr(instrumentation, "_CLOSE_TIMEOUT", 0.01)
            instrumentor._export()
    finally:
        given_up.set()
        instrumentor.uninstrument()
    message = "this process ends, and the SDK has not exported all within 0.01 s; what it still holds is lost"
    assert caplog.messages == [message]


def test_nothing_is_made_where_no_engine_runs(instrument: Callable[[], None]) -> None:
    instrument()
    instrumentor = ConstellationInstrumentor()
    assert list(instrumentor.instrumentation_dependencies()) == []
    instrumentor.uninstrument()
    assert instrumentor._listener is None


# --- programs ------------------------------------------------------------------------------------------------------

PROGRAM = """\
from constellation_otel import Constellation, Dag, ExecutionListener, OpenTelemetryListener, OtlpListener

def trim(text):
    return text.strip()

def count(trim):
    return len(trim.split())

letters = Dag("letters", [trim, count])
"""
RUN = "print(Constellation({listener}).run(letters, {{'text': ' to be '}})['count'])\n"
PROGRAMS = {
    "": TREE,
    "OpenTelemetryListener()": TREE,
    "OtlpListener()": TREE,
    "ExecutionListener.composite(ExecutionListener(), OpenTelemetryListener())": TREE,
}


@UNWATCHED
@pytest.mark.parametrize("listener", PROGRAMS)
def test_a_program_is_traced_once_without_a_line_in_it(listener: str, receiver: Receiver, tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text(PROGRAM + RUN.format(listener=listener))
    assert run_command(receiver, f"opentelemetry-instrument python {program}") == ("2\n", "")
    assert span_tree(receiver.spans) == PROGRAMS[listener]


@UNWATCHED
def test_a_program_may_disable_it(receiver: Receiver, tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text(PROGRAM + RUN.format(listener=""))
    command = f"opentelemetry-instrument python {program}"
    disabled = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "flask, constellation"}
    assert run_command(receiver, command, **disabled) == ("2\n", "")
    assert receiver.spans == []


@contextmanager
def instrumented(folder: Path, receiver: Receiver, *command: str, **variables: str) -> Iterator[Path]:
    """Runs a program of the environment under opentelemetry-instrument until SIGTERM; the file of its output."""
    log = folder / "log"
    programs = Path(sys.executable).parent
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment = inherited | {"PATH": f"{programs}:{os.environ['PATH']}", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_endpoint, **variables}
    with log.open("w") as output:
        process = subprocess.Popen(
            [f"{programs}/opentelemetry-instrument", *command],
            env=environment,
            cwd=folder,
            stderr=output,
            stdout=output,
        )
    try:
        yield log
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


WEB = """
import os

engine = Constellation()

def app(environ, start_response):
    engine.run(letters, {"text": " to be "})
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


@UNWATCHED
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_the_workers_of_gunicorn_are_traced(
    options: tuple[str, ...], protocol: str, receiver: Receiver, tmp_path: Path
) -> None:
    """The application is loaded in each worker, or before they are forked."""
    (tmp_path / "application.py").write_text(PROGRAM + WEB)
    endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    command = ["gunicorn", *options, "-w", "2", "-b", "127.0.0.1:0", "application:app"]
    with instrumented(tmp_path, receiver, *command, **variables) as log:
        eventually(lambda: "Listening at: " in log.read_text(), "it listens")
        url = log.read_text().split("Listening at: ")[1].split()[0]
        answers: set[bytes] = set()
        requests = 0

        def ask() -> bool:
            nonlocal requests
            requests += 1
            answers.add(urllib.request.urlopen(url, timeout=DEADLINE).read())
            return len(answers) == 2

        eventually(ask, "both workers have answered")
        eventually(lambda: len(receiver.spans) == 3 * requests, "all spans have arrived")
    assert span_tree(receiver.spans) == "\n\n".join(requests * [TREE])


TASKS = """
from celery import Celery

app = Celery("tasks", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": "messages", "data_folder_out": "messages", "control_folder": "control"
}
app.conf.worker_hijack_root_logger = False
engine = Constellation()

@app.task(name="report")
def report(text):
    engine.run(letters, {"text": text})
"""


@UNWATCHED
def test_the_processes_of_a_celery_worker_are_traced_to_their_end(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "messages").mkdir()
    (tmp_path / "tasks.py").write_text(PROGRAM + TASKS)
    command = ["celery", "--app", "tasks", "worker", "--pool", "prefork", "--concurrency", "2", "--loglevel", "INFO"]
    send = [sys.executable, "-c", "import tasks\nfor _ in range(4): tasks.report.delay(' to be ')"]
    options = ["--without-mingle", "--without-gossip"]
    with instrumented(tmp_path, receiver, *command, *options, OTEL_BSP_SCHEDULE_DELAY="60000") as log:
        subprocess.run(send, cwd=tmp_path, check=True, timeout=DEADLINE)
        eventually(lambda: log.read_text().count("succeeded in") == 4, "the tasks have been done")
    assert span_tree(receiver.spans) == "\n\n".join(4 * [TREE])
    durations = [it for it in receiver.metrics if it.name == "constellation.execution.duration"]
    assert sum(point.count or 0 for point in durations) == 4


POOL = """
import multiprocessing

def report(text):
    Constellation().run(letters, {"text": text})

if __name__ == "__main__":
    report("before")
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        pool.map(report, 4 * [" to be "], chunksize=1)
        pool.close()
        pool.join()
"""


@UNWATCHED
def test_forked_children_are_traced_to_their_end(receiver: Receiver, tmp_path: Path) -> None:
    """Each ends behind its first execution, long before the SDK would export that."""
    program = tmp_path / "app.py"
    program.write_text(PROGRAM + POOL)
    command = f"opentelemetry-instrument python {program}"
    # that a process with threads forks is what newer Pythons warn of
    run_command(receiver, command, OTEL_BSP_SCHEDULE_DELAY="60000", PYTHONWARNINGS="ignore")
    assert span_tree(receiver.spans) == "\n\n".join(5 * [TREE])
