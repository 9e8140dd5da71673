"""The commands that move events, as processes of their own, awaited and ended in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

from .peers import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["RunningBridge", "bridging", "command"]

_DEADLINE_S = 60.0


def line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "constellation_otel", *arguments]


def environment(**variables: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | variables


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        line(*arguments), capture_output=True, text=True, timeout=300, env=environment(**variables), check=False
    )


class RunningBridge:
    """A bridge in a process of its own.

    Attributes:
        process: The process.
        log: Where its log goes: a JSON object a line.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def logged(self) -> list[dict[str, Any]]:
        """What it has logged until now, but for a line that it is just writing."""
        return [json.loads(entry) for entry in self.log.read_text().splitlines(keepends=True) if entry.endswith("\n")]

    def said(self, text: str) -> bool:
        """Whether something is in its log."""
        return any(text in entry["message"] for entry in self.logged())

    def wait_until_said(self, text: str) -> None:
        eventually(lambda: self.said(text), _DEADLINE_S, f"the bridge says {text!r}")

    def asks(self, path: str) -> tuple[int, dict[str, Any]]:
        """What its health says, once it is served: the status and the body."""
        self.wait_until_said("health is served on")
        served = next(it["message"].split()[-1] for it in self.logged() if "health is served" in it["message"])
        try:
            with urlopen(served + path, timeout=10) as response:
                return response.status, json.loads(response.read())
        except HTTPError as error:
            return error.code, json.loads(error.read())

    def wait_until_read(self, events: int) -> None:
        eventually(lambda: self.asks("/")[1]["events"] >= events, _DEADLINE_S, f"the bridge has read {events} events")

    def end(self, *, code: int = 0) -> dict[str, Any]:
        """Ends it in order; its report."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(_DEADLINE_S) == code, self.log.read_text()
        report: dict[str, Any] = self.logged()[-1]["report"]
        return report


@contextmanager
def bridging(folder: Path, *arguments: str, **variables: str) -> Iterator[RunningBridge]:
    """A bridge that is killed at the end if it has not been ended."""
    log = folder / f"bridge-{len(list(folder.glob('bridge-*')))}.log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(line("bridge", *arguments), stderr=stderr, env=environment(**variables)) as process,
    ):
        try:
            yield RunningBridge(process, log)
        finally:
            process.kill()
