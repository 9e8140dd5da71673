"""Every way out of a process that runs any code delivers; real programs with a real endpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from support import DEADLINE, UNWATCHED, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from constellation_otel.receiver import Receiver

pytestmark = UNWATCHED

PROGRAM = """
import logging, os, sys
from constellation_otel import Constellation, Dag, OtlpListener

def load(n):
    return n + 1

listener = OtlpListener(os.environ["ENDPOINT"], protocol="http/protobuf")
engine = Constellation(listener=listener)

def task(n):
    engine.run(Dag("child", [load]), {"n": n})

def fails(n):
    task(n)
    raise SystemExit(3)

if __name__ == "__main__":
    engine.run(Dag("parent", [load]), {"n": 0})
"""


def started(tmp_path: Path, receiver: Receiver, program: str, *arguments: str) -> subprocess.Popen[str]:
    path = tmp_path / "program.py"
    path.write_text(program)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment = inherited | {"ENDPOINT": receiver.http_endpoint, "OTEL_METRICS_EXPORTER": "none"}
    return subprocess.Popen(
        [sys.executable, str(path), *arguments], env=environment, cwd=tmp_path, text=True, stderr=subprocess.PIPE
    )


def names(receiver: Receiver) -> list[str]:
    return sorted(span.name for span in receiver.spans if span.name != "load")


def run_to_the_end(tmp_path: Path, receiver: Receiver, program: str) -> str:
    with started(tmp_path, receiver, PROGRAM + program) as process:
        errors = process.communicate(timeout=DEADLINE)[1]
        assert process.returncode == 0, errors
    return errors


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_children_of_multiprocessing_deliver(tmp_path: Path, receiver: Receiver, method: str) -> None:
    program = f"""
    import multiprocessing
    context = multiprocessing.get_context("{method}")
    children = [context.Process(target=target, args=(1,)) for target in (task, fails)]
    for child in children: child.start()
    for child in children: child.join(30)
    assert [child.exitcode for child in children] == [0, 3]
    with context.Pool(1, maxtasksperchild=1) as pool:
        pool.map(task, range(2), chunksize=1)
        pool.close()
        pool.join()
"""
    assert "lost" not in run_to_the_end(tmp_path, receiver, program)
    # with spawn each child is a parent's program of its own, but runs nothing of it
    assert names(receiver) == ["child"] * 4 + ["parent"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_gevent_may_patch_before_a_listener_is_made_or_after(tmp_path: Path, receiver: Receiver, when: str) -> None:
    """Whichever listener it is."""
    program = f"""
import faulthandler, os
faulthandler.dump_traceback_later(20, exit=True)
from constellation_otel import (
    AsyncListenerAdapter, Constellation, Dag, ExecutionListener, LoggingListener, OpenTelemetryListener, OtlpListener
)
from constellation_otel.transports.jsonl import JsonlListener
from opentelemetry.sdk.trace import TracerProvider

def make():
    return {{
        "sdk": OpenTelemetryListener(TracerProvider()),
        "jsonl": JsonlListener("events.jsonl"),
        "otlp": OtlpListener(os.environ["ENDPOINT"], protocol="http/protobuf"),
        "logging": LoggingListener(),
        "async": AsyncListenerAdapter(Listener()),
    }}

class Listener:
    async def on_execution_complete(self, execution_id, dag_name, succeeded, duration_ms): pass

def load(n):
    return n + 1

if "{when}" == "before":
    listeners = make()
import gevent.monkey
gevent.monkey.patch_all()
if "{when}" == "after":
    listeners = make()
for kind, listener in listeners.items():
    assert dict(Constellation(listener=listener).run(Dag(kind, [load]), {{"n": 1}})) == {{"load": 2}}, kind
    assert kind == "logging" or listener.close(timeout=10), kind
"""
    with started(tmp_path, receiver, program) as process:
        errors = process.communicate(timeout=DEADLINE)[1]
        assert process.returncode == 0, errors
    assert names(receiver) == ["otlp"]
    assert '"dagName":"jsonl"' in (tmp_path / "events.jsonl").read_text()


@pytest.mark.parametrize("is_used", [False, True])
def test_greenlets_that_run_engines_at_the_same_time_go_on(tmp_path: Path, receiver: Receiver, is_used: bool) -> None:
    """Also where gevent has patched after a listener and an engine were made, or used."""
    program = f"""
import faulthandler
faulthandler.dump_traceback_later(20, exit=True)
if {is_used}:
    engine.run(Dag("child", [load]), {{"n": 0}})
import gevent.monkey
gevent.monkey.patch_all()
import gevent

def run():
    for n in range(5):
        made = engine if n % 2 and not {is_used} else Constellation(listener=listener)
        assert dict(made.run(Dag("child", [load]), {{"n": n}})) == {{"load": n + 1}}

greenlets = [gevent.spawn(run) for _ in range(20)]
gevent.joinall(greenlets, timeout=15, raise_error=True)
assert all(greenlet.successful() for greenlet in greenlets)
assert listener.close(timeout=10)
"""
    program = PROGRAM.partition("if __name__")[0] + program
    with started(tmp_path, receiver, program) as process:
        errors = process.communicate(timeout=DEADLINE)[1]
        assert process.returncode == 0, errors
    assert len(names(receiver)) == 100 + is_used


APPLICATION = """
import os
from constellation_otel import Constellation, Dag, OtlpListener

def load(n):
    return n + 1

engine = Constellation(listener=OtlpListener(os.environ["ENDPOINT"], protocol="http/protobuf"))

def app(environ, start_response):
    engine.run(Dag("request", [load]), {"n": 1})
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


@contextmanager
def gunicorn(tmp_path: Path, receiver: Receiver, worker: str) -> Iterator[str]:
    """A server whose worker is forked when the application is there; its URL."""
    (tmp_path / "application.py").write_text(APPLICATION)
    log = tmp_path / "log"
    command = [sys.executable, "-m", "gunicorn", "--preload", "-k", worker, "-w", "1", "-b", "127.0.0.1:0"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment = inherited | {"ENDPOINT": receiver.http_endpoint, "OTEL_METRICS_EXPORTER": "none"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "application:app"], env=environment, cwd=tmp_path, stderr=output, stdout=output
        )
    try:
        eventually(lambda: "Listening at: " in log.read_text(), "it listens")
        yield log.read_text().split("Listening at: ")[1].split()[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
def test_gunicorns_preloaded_workers_deliver(tmp_path: Path, receiver: Receiver, worker: str) -> None:
    """With gevent it patches the standard library in each worker, after the listener was made."""
    with gunicorn(tmp_path, receiver, worker) as url, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: urllib.request.urlopen(url, timeout=DEADLINE).read(), range(12)))
    assert all(answer.isdigit() for answer in answers)
    assert names(receiver) == ["request"] * 12
