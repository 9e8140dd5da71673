"""PostgreSQL: a cluster of its own per test run, with passwords, on a free port.

It is not built but taken as the system's packages install it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from .artifact import MissingPeerError
from .server import HOST, PeerError, Server, free_port
from .waiting import NotYet, eventually

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

USER: Final = "constellation"
PASSWORD: Final = "Pa55-w0rd-that-no-log-may-have"

_DEBIAN: Final = Path("/usr/lib/postgresql")
_HOW_TO_GET: Final = "install PostgreSQL 12 or newer (Debian: apt-get install postgresql) with its programs in PATH"
_ASK_TIMEOUT_S: Final = 60.0
_INSTALL_TIMEOUT_S: Final = 600.0
_RESTART_DEADLINE_S: Final = 30.0
# What packages install as the cluster's owner, and what every system has.
_UNPRIVILEGED: Final = ("postgres", "nobody")
# Debian's package otherwise starts a cluster on port 5432.
_NO_SYSTEM_CLUSTER: Final = "create_main_cluster = false\n"
_CREATE_CLUSTER_CONF: Final = Path("/etc/postgresql-common/createcluster.conf")


@dataclass(frozen=True)
class Installed:
    """PostgreSQL's programs, wherever the system has them.

    Attributes:
        name: The peer's name, as `get` takes it.
    """

    name: str

    def require(self) -> Path:
        """The folder with initdb and postgres, the newest version's.

        Raises:
            MissingPeerError: There is none.
        """
        found = _programs()
        if found is None:
            message = f"{self.name} is not installed: {_HOW_TO_GET}, or run `tests/e2e/peers/get {self.name}` as root."
            raise MissingPeerError(message)
        return found

    def get(self) -> Path:
        """The same, after installing the package where that can be done; says on standard output what it does.

        Raises:
            MissingPeerError: It is not there, and cannot be installed from here.
        """
        if _programs() is None and os.getuid() == 0 and shutil.which("apt-get"):
            _install(self.name)
        found = self.require()
        print(f"{self.name}: installed, {found}", flush=True)  # noqa: T201 - it is a script
        return found


ARTIFACT: Final = Installed("postgres")


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

    def psql(self, script: str, *, database: str = "postgres") -> str:
        """Runs SQL by PostgreSQL's own client.

        Returns:
            What it printed: values separated by `|`, one row a line.

        Raises:
            AssertionError: A statement failed.
        """
        options = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")
        done = subprocess.run(
            [str(ARTIFACT.require() / "psql"), *options, self.url(database)],
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
        return [*change_folder, *_unprivileged(), str(ARTIFACT.require() / "postgres"), "-D", str(data), *options]

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
        owner = _owner()
        if owner is not None:
            shutil.chown(home, owner)
            shutil.chown(password, owner)
        options = ("-U", USER, f"--pwfile={password}", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync")
        done = subprocess.run(
            [*_unprivileged(), str(ARTIFACT.require() / "initdb"), "-D", str(home / "data"), *options],
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


def _programs() -> Path | None:
    def version(folder: Path) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", folder.parent.name))

    for folder in sorted(_DEBIAN.glob("*/bin"), key=version, reverse=True):
        if os.access(folder / "initdb", os.X_OK):
            return folder
    found = shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


def _owner() -> str | None:
    """Who the server runs as, where we are root, which it refuses to run as."""
    if os.getuid() != 0:
        return None
    import pwd  # noqa: PLC0415 - needed in this corner only

    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in _UNPRIVILEGED if name in names)


def _unprivileged() -> Sequence[str]:
    """What runs a command as that user, under the process id that we know."""
    owner = _owner()
    return () if owner is None else ("setpriv", f"--reuid={owner}", f"--regid={_group(owner)}", "--init-groups", "--")


def _group(owner: str) -> str:
    import pwd  # noqa: PLC0415 - needed in this corner only

    return str(pwd.getpwnam(owner).pw_gid)


def _install(name: str) -> None:
    if not _CREATE_CLUSTER_CONF.exists():
        _CREATE_CLUSTER_CONF.parent.mkdir(parents=True, exist_ok=True)
        _CREATE_CLUSTER_CONF.write_text(_NO_SYSTEM_CLUSTER)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    keep_ours = ("-o", "Dpkg::Options::=--force-confold")
    for step in (("update",), ("install", "--yes", "--no-install-recommends", *keep_ours, "postgresql")):
        print(f"{name}: apt-get {' '.join(step)}", flush=True)  # noqa: T201 - it is a script
        try:
            done = subprocess.run(
                ["apt-get", *step], env=environment, stdin=subprocess.DEVNULL, timeout=_INSTALL_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            message = f"{name}: apt-get was not done after {_INSTALL_TIMEOUT_S:.0f} s; {_HOW_TO_GET}."
            raise MissingPeerError(message) from error
        if done.returncode != 0:
            message = f"{name}: apt-get exited with code {done.returncode}, its output is above; {_HOW_TO_GET}."
            raise MissingPeerError(message)
