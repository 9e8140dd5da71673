"""The commands that move events, as processes of their own, awaited and ended in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
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
    return [sys.executable, "-W", "error", "-m", "constellation_otel", *arguments]


def environment(**variables: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | variables


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        line(*arguments), capture_output=True, text=True, timeout=300, env=environment(**variables), check=False
    )


class RunningBridge:
    """A bridge as a process of its own, without a terminal, whose health is served.

    Args:
        folder: Where its log and what it is given are kept.
        *arguments: The command's.
        data: What is piped into it.
        **variables: Of its environment.

    Attributes:
        process: The process.
    """

    def __init__(self, folder: Path, *arguments: str, data: bytes = b"", **variables: str) -> None:
        name = f"bridge-{uuid.uuid4()}"
        self._log = folder / f"{name}.log"
        given = folder / f"{name}.in"
        given.write_bytes(data)
        with given.open("rb") as stdin, self._log.open("wb") as stderr:
            self.process = subprocess.Popen(
                line("bridge", *arguments, "--health", "127.0.0.1:0"),
                stdin=stdin,
                stderr=stderr,
                env=environment(**variables),
            )

    @property
    def logged(self) -> list[dict[str, Any]]:
        """What it has logged so far, but for a line that it is just writing."""
        lines = [entry for entry in self._log.read_text().splitlines(keepends=True) if entry.endswith("\n")]
        assert [entry for entry in lines if not entry.startswith("{")] == []
        return [json.loads(entry) for entry in lines]

    def messages(self, level: str) -> list[str]:
        return [entry["message"] for entry in self.logged if entry["level"] == level]

    def said(self, *parts: str, level: str = "INFO") -> bool:
        """Whether a record of that level, or a graver one, has these parts."""
        levels = _LEVELS[_LEVELS.index(level) :]
        return any(it["level"] in levels and all(part in it["message"] for part in parts) for it in self.logged)

    def wait_until_said(self, *parts: str, level: str = "INFO") -> None:
        def said() -> bool:
            assert self.process.poll() is None, self._log.read_text()
            return self.said(*parts, level=level)

        eventually(said, _DEADLINE_S, f"the bridge says {parts}")

    def asks(self, path: str) -> tuple[int, dict[str, Any]]:
        """What its health says, once it is served: the status and the body."""
        self.wait_until_said("health is served on")
        served = next(it["message"].split()[-1] for it in self.logged if "health is served" in it["message"])
        try:
            with urlopen(served + path, timeout=10) as response:
                return response.status, json.loads(response.read())
        except HTTPError as error:
            return error.code, json.loads(error.read())

    def wait_until_read(self, events: int) -> None:
        eventually(lambda: self.asks("/")[1]["events"] >= events, _DEADLINE_S, f"the bridge has read {events} events")

    def end(self, *, code: int = 0) -> dict[str, Any]:
        """Ends it in order; its report."""
        ended_with, report = self.ended()
        assert ended_with == code, self._log.read_text()
        return report

    def ended(self) -> tuple[int, dict[str, Any]]:
        """Ends it in order; its exit code and its report."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(_DEADLINE_S)
        return code, self.logged[-1]["report"]

    def kill(self) -> None:
        """Ends it at once, where it is running."""
        self.process.kill()
        self.process.wait(_DEADLINE_S)


_LEVELS = ("INFO", "WARNING", "ERROR")


@contextmanager
def bridging(folder: Path, *arguments: str, **options: Any) -> Iterator[RunningBridge]:
    """A bridge that is killed at the end if it has not been ended."""
    bridge = RunningBridge(folder, *arguments, **options)
    try:
        yield bridge
    finally:
        bridge.kill()
