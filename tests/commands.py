"""The command line in processes of their own, forked from one that has imported it: as by a user, but sooner."""

from __future__ import annotations

import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from constellation_otel.__main__ import main

__all__ = ["command", "environment", "line"]

_TIMEOUT = 60.0
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["constellation_otel.cli.operations", "constellation_otel.transports.sql", "commands"])


def line(*arguments: str) -> list[str]:
    """What a shell would be given, warnings being errors."""
    return [sys.executable, "-W", "error", "-m", "constellation_otel", *arguments]


def environment(**variables: str) -> dict[str, str]:
    """This process's without what OpenTelemetry reads, and with these variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return inherited | {"COLUMNS": "100"} | variables


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs one to its end, without any input, as ``subprocess.run`` would :func:`line`."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, "stdout"), Path(folder, "stderr")]
        given = (list(arguments), environment(**variables), str(Path.cwd()), list(map(str, outputs)))
        process = _FORKS.Process(target=_run, args=given)
        process.start()
        process.join(_TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(line(*arguments), _TIMEOUT)
        stdout, stderr = (output.read_text("utf-8") for output in outputs)
        return subprocess.CompletedProcess(line(*arguments), process.exitcode, stdout, stderr)


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
