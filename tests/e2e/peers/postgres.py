"""PostgreSQL: a cluster of its own per test run, with passwords, on a free port.

It is taken as the system's packages install it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from .package import Package, owner, unprivileged
from .server import HOST, PeerError, Server, free_port
from .waiting import NotYet, eventually

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

USER: Final = "constellation"
PASSWORD: Final = "Pa55-w0rd-that-no-log-may-have"

_DEBIAN: Final = Path("/usr/lib/postgresql")
_ASK_TIMEOUT_S: Final = 60.0
_RESTART_DEADLINE_S: Final = 30.0


def _programs() -> Path | None:
    def version(folder: Path) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", folder.parent.name))

    for folder in sorted(_DEBIAN.glob("*/bin"), key=version, reverse=True):
        if os.access(folder / "initdb", os.X_OK):
            return folder
    found = shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


ARTIFACT: Final = Package(
    "postgres",
    "postgresql",
    "install PostgreSQL 12 or newer (Debian: apt-get install postgresql) with its programs in PATH",
    _programs,
)


class Postgres(Server):
    """A PostgreSQL on a free port, which asks for passwords. Its data survive `kill` and `start`.

    As a context manager it removes its data on exit.

    Args:
        folder: For its log. The data are elsewhere, since an unprivileged user has to reach them.
        settings: Of postgresql.conf: `{"timezone": "Europe/Berlin"}`.

    Attributes:
        port: Where it listens.
    """

    name: ClassVar[str] = "postgres"
    stop_deadline_s: ClassVar[float] = 20.0

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(folder)
        self.port = free_port()
        self._settings = settings or {}
        self._home: Path | None = None

    def url(self, database: str = "postgres", *, user: str = USER, password: str = PASSWORD) -> str:
        """What a user would write."""
        return f"postgresql://{user}:{password}@{HOST}:{self.port}/{database}"

    def psql(self, script: str, *, database: str = "postgres", url: str | None = None) -> str:
        """Runs SQL by PostgreSQL's own client.

        Returns:
            What it printed: values separated by `|`, one row a line.

        Raises:
            AssertionError: A statement failed.
        """
        options = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")
        done = subprocess.run(
            [str(ARTIFACT.require() / "psql"), *options, url or self.url(database)],
            input=script,
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self) -> None:
        """As every server's; after `kill` it waits until what the crash has left of the old one is gone."""
        if self._home is None:
            self._home = self._initialized()

        def started() -> bool:
            try:
                super(Postgres, self).start()
            except PeerError as error:
                if "shared memory block" in str(error) and "still in use" in str(error):
                    raise NotYet(str(error)) from error
                raise
            return True

        eventually(started, _RESTART_DEADLINE_S, "the killed server's own processes have ended")

    def stop(self) -> int | None:
        """Ends its clients' sessions and exits, in order; kills it when the deadline has passed."""
        if not self.running:
            return None
        process = self._started()
        # SIGTERM would wait for the clients to go.
        process.send_signal(signal.SIGINT)
        try:
            return process.wait(self.stop_deadline_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": str(self._home),
            "fsync": "off",
            "shared_buffers": "16MB",
            "max_connections": "30",
            **self._settings,
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        data = self._data()
        # The test's own folder may be closed to the server's user.
        change_folder = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', str(data)]
        return [*change_folder, *unprivileged(), str(ARTIFACT.require() / "postgres"), "-D", str(data), *options]

    def environment(self) -> Mapping[str, str]:
        return {"LC_ALL": "C"}

    def check_ready(self) -> None:
        with socket.create_connection((HOST, self.port), timeout=_ASK_TIMEOUT_S):
            pass
        done = subprocess.run(
            [str(ARTIFACT.require() / "pg_isready"), "-q", "-h", HOST, "-p", str(self.port)],
            timeout=_ASK_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            message = f"pg_isready exits with {done.returncode}"
            raise NotYet(message)

    def _data(self) -> Path:
        if self._home is None:
            message = "postgres was not started"
            raise PeerError(message)
        return self._home / "data"

    def _initialized(self) -> Path:
        # Directly in the folder for temporary files: a socket's path has at most some 100 characters.
        home = Path(tempfile.mkdtemp(prefix="pg-"))
        password = home / "password"
        password.write_text(PASSWORD)
        user = owner()
        if user is not None:
            shutil.chown(home, user)
            shutil.chown(password, user)
        options = ("-U", USER, f"--pwfile={password}", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync")
        done = subprocess.run(
            [*unprivileged(), str(ARTIFACT.require() / "initdb"), "-D", str(home / "data"), *options],
            cwd=home,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            shutil.rmtree(home, ignore_errors=True)
            message = f"initdb exited with code {done.returncode}:\n{done.stdout}{done.stderr}"
            raise PeerError(message)
        return home
