"""What is done when a process ends, in processes that end by every way; test_exits.py has whole applications."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from constellation_otel._support import exit as _exit
from constellation_otel._support.exit import call_at_exit, call_where_atexit_is_not_reached, exit_hook, forget_at_exit
from support import DEADLINE, UNWATCHED

if TYPE_CHECKING:
    from pathlib import Path

    from constellation_otel.receiver import Receiver

LISTENERS = """
import os, sys
from pathlib import Path
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from constellation_otel import (
    AsyncListenerAdapter, Constellation, Dag, ExecutionListener, OpenTelemetryListener, OtlpListener
)
from constellation_otel.transports.jsonl import JsonlListener

endpoint, folder = sys.argv[1:3]

class Noting:
    async def on_execution_start(self, execution_id, dag_name):
        with Path(folder, "noted").open("a") as file:
            file.write(f"{dag_name}\\n")

provider = TracerProvider(resource=Resource({"service.name": "sdk"}))
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
otlp = OtlpListener(endpoint, protocol="http/protobuf", service_name="otlp")
sdk = OpenTelemetryListener(provider)
jsonl = JsonlListener(f"{folder}/events.jsonl")
listeners = [otlp, sdk, jsonl, AsyncListenerAdapter(Noting())]

def load(n: int) -> int:
    return n + 1

def run(name):
    # not closed: neither the engine nor the listeners
    Constellation(listener=ExecutionListener.composite(*listeners)).run(Dag(name, [load]), {"n": 1})
"""
CHILDREN = """
import multiprocessing, threading
from concurrent.futures import ProcessPoolExecutor

def raise_after(name):
    run(name)
    sys.stderr.close()
    raise ValueError

def exit_after(name):
    run(name)
    sys.exit(3)

def go_on(name):
    threading.Thread(target=run_late, args=(name,)).start()

def run_and_go_on(name):
    run(name)
    go_on(name)

def run_late(name):
    # multiprocessing has called its finalizers by then, and waits for this thread
    while sys.version_info < (3, 13) and not multiprocessing.util.is_exiting():
        threading.main_thread().join(0.01)
    run(name)

def fork_again(name):
    run(name)
    inner = multiprocessing.get_context("fork").Process(target=run, args=("fork_again",))
    inner.start()
    inner.join()

def in_pool(name):
    with context.Pool(1, maxtasksperchild=1) as pool:
        pool.map(run, [name] * 2, chunksize=1)
        pool.close()
        pool.join()

def in_executor(name):
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        executor.submit(run, name).result()

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    for name in sys.argv[3:]:
        if name.startswith("in_"):
            globals()[name](name)
        else:
            process = context.Process(target=globals()[name], args=(name,))
            process.start()
            process.join()
            print(process.exitcode)
"""


def program(folder: Path, text: str) -> str:
    path = folder / "program.py"
    path.write_text(text)
    return str(path)


def output_of(*arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def dags(receiver: Receiver, folder: Path) -> list[Counter[str]]:
    """Which executions have arrived: by OTLP and by the SDK together, by JSON lines, by the async listener."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [
        Counter(span.name for span in receiver.spans if span.name != "load"),
        Counter(line.split('"dagName":"')[1].split('"')[0] for line in lines if "execution.started" in line),
        Counter((folder / "noted").read_text().splitlines()),
    ]


WAYS = {
    "run": 1,
    "raise_after": 1,
    "exit_after": 1,
    "fork_again": 2,
    "go_on": 1,
    "run_and_go_on": 2,
    "in_pool": 2,
    "in_executor": 1,
}
"""How a child of multiprocessing may end, and how many executions it has then had."""


def test_a_child_of_multiprocessing_delivers_whichever_way_it_ends(receiver: Receiver, tmp_path: Path) -> None:
    path = program(tmp_path, LISTENERS + CHILDREN)
    printed = output_of(path, receiver.http_endpoint, str(tmp_path), *WAYS)
    exit_codes = {"raise_after": "1", "exit_after": "3"}
    assert printed.split() == [exit_codes.get(way, "0") for way in WAYS if not way.startswith("in_")]
    ended = Counter(WAYS)
    assert dags(receiver, tmp_path) == [ended + ended, ended, ended]
    durations = [point for point in receiver.metrics if point.name == "constellation.execution.duration"]
    assert sum(point.count or 0 for point in durations) == ended.total()


BILLIARD = """
import billiard, billiard.pool

def noting(pid, exit_code):
    # as Celery's pool tells its tasks
    run("shutdown")

if __name__ == "__main__":
    process = billiard.Process(target=run, args=("process",))
    process.start()
    process.join()
    for on_exit in (None, noting):
        pool = billiard.pool.Pool(1, maxtasksperchild=1, on_process_exit=on_exit)
        pool.map(run, ["pool"], chunksize=1)
        pool.close()
        pool.join()
"""


def test_children_of_billiard_deliver(receiver: Receiver, tmp_path: Path) -> None:
    output_of(program(tmp_path, LISTENERS + BILLIARD), receiver.http_endpoint, str(tmp_path))
    ended = Counter({"process": 1, "pool": 2, "shutdown": 1})
    assert dags(receiver, tmp_path) == [ended + ended, ended, ended]


GEVENT = """
import faulthandler
faulthandler.dump_traceback_later(20, exit=True)
for listener in listeners if "used" in sys.argv else []:
    listener.on_execution_cancelled(uuid.UUID(int=1), "before")
    assert listener.flush(10)
import gevent.monkey
gevent.monkey.patch_all()
run("after")
if (3, 12) <= sys.version_info < (3, 12, 3):
    # their exit refuses gevent the threads in which it looks names up
    for listener in listeners:
        assert listener.close(10)
"""


@UNWATCHED
@pytest.mark.parametrize("how", ["new", "used"])
def test_gevent_may_patch_after_the_listeners_were_made(receiver: Receiver, tmp_path: Path, how: str) -> None:
    """New or used before; what is not closed is so at the exit, except where gevent itself cannot work in one."""
    path = program(tmp_path, f"import uuid\n{LISTENERS}{GEVENT}")
    output_of(path, receiver.http_endpoint, str(tmp_path), how)
    ended = Counter({"after": 1})
    otlp, jsonl, noted = dags(receiver, tmp_path)
    assert (otlp["after"], jsonl, noted) == (2, ended, ended)


UNUSED = """
import threading
run("before")
for listener in listeners:
    # all that they build is there, and the async listener has its loop before the exit, where 3.12.1 refuses threads
    assert listener.flush(10)
child = os.fork()
if child == 0:
    print(sorted(thread.name for thread in threading.enumerate()), otlp.counters.received, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@UNWATCHED
def test_a_forked_child_that_never_uses_a_listener_builds_nothing(receiver: Receiver, tmp_path: Path) -> None:
    journal = LISTENERS.replace('service_name="otlp"', 'journal=f"{folder}/journal.db"')
    path = program(tmp_path, journal + UNUSED)
    command = [sys.executable, "-W", "ignore", path, receiver.http_endpoint, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "['MainThread'] 0\n"
    assert ran.stderr == ""
    requests = Counter(request.signal for request in receiver.requests)
    assert requests["metrics"] == 1


IMPORTING = """
import os, sys
endpoint, protocol, os.environ["OTEL_METRICS_EXPORTER"] = sys.argv[1:]
from constellation_otel import Constellation, Dag, OtlpListener

def load(n: int) -> int:
    return n + 1

listener = OtlpListener(endpoint, protocol=protocol)
engine = Constellation(listener=listener)
dag = Dag("orders", [load])
before = set(sys.modules)
engine.run(dag, {"n": 1})
assert listener.close(10)
print(sorted(set(sys.modules) - before))
"""


@UNWATCHED
@pytest.mark.parametrize(
    ("protocol", "metrics"), [("http/protobuf", "none"), ("http/protobuf", "otlp"), ("grpc", "none"), ("grpc", "otlp")]
)
def test_a_listener_at_work_imports_nothing(receiver: Receiver, tmp_path: Path, protocol: str, metrics: str) -> None:
    """A module that another thread was importing during a fork is half made in the child for ever."""
    endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
    assert output_of(program(tmp_path, IMPORTING), endpoint, protocol, metrics) == "[]\n"


def test_hooks_are_called_the_latest_first_and_one_that_raises_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leaving = _exit._Exit()
    monkeypatch.setattr(_exit, "_EXIT", leaving)
    called: list[str] = []

    def first() -> None:
        called.append("first")

    def forgotten() -> None:
        called.append("forgotten")

    def raising() -> None:
        called.append("raising")
        raise ValueError

    def last() -> None:
        called.append("last")

    hooks = (first, forgotten, raising)
    for hook in hooks:
        call_at_exit(hook)
    forget_at_exit(forgotten)
    call_at_exit(first)
    call_where_atexit_is_not_reached(last)
    call_at_exit(first)
    leaving._call_hooks([])
    assert called == ["first", "last", "raising"]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ValueError]
    for hook in hooks:
        forget_at_exit(hook)


def test_hooks_are_called_when_the_threads_that_are_waited_for_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before Python 3.13 in a child of multiprocessing."""
    leaving = _exit._Exit()
    monkeypatch.setattr(_exit, "_EXIT", leaving)
    gate = threading.Event()
    other = threading.Thread(target=gate.wait, args=(DEADLINE,), daemon=True)
    other.start()
    monkeypatch.setattr(_exit, "_awaited", lambda: [other])
    called: list[str] = []

    def hook() -> None:
        called.append("hook")

    call_at_exit(hook)
    leaving._leave()
    leaving._leave()
    waiting = leaving._thread
    assert (called, waiting is not None) == ([], True)
    gate.set()
    assert waiting is not None
    waiting.join(DEADLINE)
    assert called == ["hook"]


def test_a_hook_does_not_keep_its_object_and_is_forgotten_with_it() -> None:
    called: list[str] = []

    class Owner:
        def close(self) -> None:
            called.append("closed")

    owner = Owner()
    hook = exit_hook(owner.close)
    call_at_exit(hook)
    hook()
    del owner
    hook()
    assert called == ["closed"]
    assert hook not in _exit._EXIT.hooks


def test_the_package_does_not_import_multiprocessing_for_it() -> None:
    text = (
        "import sys; before = 'multiprocessing' in sys.modules; import constellation_otel._support.exit as e;"
        " e.call_at_exit(print); print(('multiprocessing' in sys.modules) is before)"
    )
    assert output_of("-c", text) == "True\n\n"
