"""A server that runs as a process of ours: started on free loopback ports, awaited, and stopped by its own id."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import socket
import subprocess
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Self

from .waiting import NotYet, eventually

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

HOST = "127.0.0.1"
_READY_DEADLINE_S = 30.0
_KILL_DEADLINE_S = 10.0
_LOG_TAIL_LINES = 40
_REQUEST_TIMEOUT_S = 5.0

# Below what systems hand out by themselves (Linux from 32768, others from 49152). A port from that range could be
# taken by any outgoing connection while its server is down, even by a client that is trying to reach that server.
_PORTS = range(20_000, 32_768)
_handed_out: set[int] = set()


class PeerError(Exception):
    """A peer did not start; the message ends with the end of its log."""


class Server(ABC):
    """One server process. Subclasses say what to run and how to tell that it is ready.

    As a context manager it is started on entry and stopped on exit, also when the block fails.

    Attributes:
        name: The peer's name, also of its log file.
        stop_deadline_s: How long it may take to exit after SIGTERM.
        folder: Its working folder; its data and its log live there and survive `kill` and `start`.
        log: Everything that the process wrote to its standard output and error, over all its starts.
    """

    name: ClassVar[str]
    stop_deadline_s: ClassVar[float]

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments."""

    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """The process's whole environment beside PATH: no variable of a developer's shell can change a test."""

    @abstractmethod
    def check_ready(self) -> None:
        """Returns when the server can be used; raises `NotYet`, or `OSError` from a refused connection, before."""

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of the process, as long as it is running."""
        return self._started().pid

    def start(self) -> None:
        """Starts the process and returns when it is ready. After `stop` or `kill`: on the same ports and data.

        Raises:
            PeerError: It exited or was not ready in time; it is gone then.
            MissingPeerError: It is not in the cache.
        """
        if self.running:
            message = f"{self.name} is running already, with process id {self.pid}"
            raise PeerError(message)
        command = self.command()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={"PATH": os.environ.get("PATH", os.defpath), **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A Ctrl-C at the terminal is for pytest, whose fixtures then stop us in order.
                start_new_session=True,
            )
        try:
            eventually(self._ready, _READY_DEADLINE_S, f"{self.name} is ready")
        except AssertionError as error:
            self.kill()
            message = f"{error}\n{self._log_tail()}"
            raise PeerError(message) from None
        except BaseException:
            self.kill()
            raise

    def stop(self) -> int | None:
        """Asks the process to exit and awaits that; kills it when the deadline has passed.

        Returns:
            Its exit code (-9 if it had to be killed), or None if it was not running.
        """
        if not self.running:
            return None
        process = self._started()
        process.terminate()
        try:
            return process.wait(self.stop_deadline_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int | None:
        """Ends the process at once with SIGKILL, as a crash would; its ports are free when this returns.

        Returns:
            Its exit code, or None if it was not running.
        """
        if not self.running:
            return None
        process = self._started()
        process.kill()
        return process.wait(_KILL_DEADLINE_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            message = f"{self.name} was not started"
            raise PeerError(message)
        return self._process

    def _ready(self) -> bool:
        code = self._started().poll()
        if code is not None:
            message = f"{self.name} exited with code {code} instead of getting ready\n{self._log_tail()}"
            raise PeerError(message)
        try:
            self.check_ready()
        except OSError as error:
            raise NotYet(str(error)) from error
        return True

    def _log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return "\n".join([f"the end of {self.log}:", *lines])


def free_port() -> int:
    """A loopback port that nothing listens on, and that no connection takes by chance later."""
    while True:
        # By chance, so that test runs side by side do not all try the same one.
        port = random.choice(_PORTS)
        if port in _handed_out:
            continue
        with socket.socket() as probe:
            # As servers do it, so that the rests of closed connections are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        _handed_out.add(port)
        return port


def http_get(port: int, path: str, accept: str = "*/*") -> tuple[int, str]:
    """Asks a loopback server; returns the status code and the body, whatever the status.

    Raises:
        OSError: It cannot be reached, or broke off.
    """
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=_REQUEST_TIMEOUT_S)) as connection:
        try:
            connection.request("GET", path, headers={"Accept": accept})
            response = connection.getresponse()
            return response.status, response.read().decode()
        except http.client.HTTPException as error:
            message = f"{HOST}:{port}{path} broke off: {error!r}"
            raise ConnectionError(message) from error
