"""The command line in processes of its own, as a user runs it; and the sources and endpoints that its tests use.

The processes are forked from one that has imported the package, to start sooner.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from constellation_otel.__main__ import main
from constellation_otel.events import encode_json
from deliveries import execution
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from constellation_otel.events import Event
    from constellation_otel.receiver import Receiver

__all__ = ["HOSTILE", "command", "ended", "environment", "events_of", "line", "otlp", "running", "until", "written"]

HOSTILE = "a\x1b[2J\x9b5n\u202e[red]b[/]"
"""Text with control characters, a change of direction, and markup."""
_TIMEOUT = 60.0
_FORKS = multiprocessing.get_context("forkserver")
_PRELOADED = ["cli.bridge", "cli.replay", "transports.sql"]
_FORKS.set_forkserver_preload([*(f"constellation_otel.{module}" for module in _PRELOADED), "commands"])


def line(*arguments: str) -> list[str]:
    """A command line as for a shell; warnings are errors."""
    return [sys.executable, "-W", "error", "-m", "constellation_otel", *arguments]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without OpenTelemetry's variables, and with the given ones."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return inherited | {"COLUMNS": "100"} | variables


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, without input, as ``subprocess.run`` would run :func:`line`."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, "stdout"), Path(folder, "stderr")]
        given = (list(arguments), environment(**variables), str(Path.cwd()), list(map(str, outputs)))
        _start_to_fork_from()
        process = _FORKS.Process(target=_run, args=given)
        process.start()
        process.join(_TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(line(*arguments), _TIMEOUT)
        stdout, stderr = (output.read_text("utf-8") for output in outputs)
        return subprocess.CompletedProcess(line(*arguments), process.exitcode, stdout, stderr)


@cache
def _start_to_fork_from() -> None:
    """Starts the process that the others are forked from, with this module in it: only so does it find that."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths))):
        forkserver.ensure_running()


def _run(arguments: list[str], variables: dict[str, str], folder: str, outputs: list[str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for number, name in enumerate([os.devnull, *outputs]):
        opened = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8")
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)), "utf-8", "backslashreplace", line_buffering=True
    )
    warnings.simplefilter("error")
    sys.argv = ["constellation-otel", *arguments]
    main()


@contextmanager
def running(*arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Runs a command that only a signal ends, and kills it at the end."""
    with subprocess.Popen(
        line(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**variables)
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    """Stops a bridge with SIGTERM; returns its exit code and its log."""
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=DEADLINE)
    return process.returncode, [json.loads(logged) for logged in stderr.splitlines()]


def until(process: subprocess.Popen[str], said: str) -> str:
    """Waits for a line of a process's log, which is returned; one that ends, or does not say it in time, fails."""
    assert process.stderr is not None
    lines = [""]
    # so that the log ends
    watchdog = threading.Timer(DEADLINE, process.kill)
    watchdog.start()
    try:
        while said not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], f"it has ended with {process.wait(DEADLINE)}, and has logged {lines}"
    finally:
        watchdog.cancel()
    return lines[-1]


def otlp(receiver: Receiver) -> str:
    """The URL of a receiver as a sink."""
    return receiver.grpc_endpoint.replace("http://", "otlp://")


def events_of(*numbers: int) -> list[Event]:
    """The events of some executions, one after the other."""
    return [event for number in numbers for event in execution(number)]


def written(path: Path, events: list[Event]) -> str:
    """Writes events to a file of JSON lines; returns its URL as a source."""
    path.write_bytes(b"".join(encode_json(event) + b"\n" for event in events))
    return f"jsonl:{path}"
