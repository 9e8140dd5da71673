"""PgBouncer: a connection pooler in front of a PostgreSQL of ours, on a free port."""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from .package import Package, owner, unprivileged
from .postgres import PASSWORD, USER
from .server import HOST, Server, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from .postgres import Postgres

_ASK_TIMEOUT_S: Final = 10.0


def _program() -> Path | None:
    # Debian has it in sbin, which is not in everybody's PATH.
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    return None if found is None else Path(found)


ARTIFACT: Final = Package(
    "pgbouncer", "pgbouncer", "install PgBouncer (Debian: apt-get install pgbouncer) with its program in PATH", _program
)


class PgBouncer(Server):
    """A PgBouncer on a free port, which asks for the same password as the PostgreSQL behind it.

    Without settings it pools transactions, on two connections to the server.
    As a context manager it removes its configuration on exit.

    Args:
        folder: For its log. Its configuration is elsewhere, since an unprivileged user has to reach it.
        postgres: The server behind it.
        settings: Of pgbouncer.ini: `{"default_pool_size": "1"}`.

    Attributes:
        port: Where it listens.
    """

    name: ClassVar[str] = "pgbouncer"
    stop_deadline_s: ClassVar[float] = 10.0

    def __init__(self, folder: Path, postgres: Postgres, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(folder)
        self.port = free_port()
        self._postgres = postgres
        self._settings = settings or {}
        self._home: Path | None = None

    def url(self, database: str = "postgres", *, user: str = USER, password: str = PASSWORD) -> str:
        """What a user would write."""
        return f"postgresql://{user}:{password}@{HOST}:{self.port}/{database}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    def command(self) -> list[str]:
        if self._home is None:
            self._home = self._configured()
        return [*unprivileged(), str(ARTIFACT.require()), str(self._home / "pgbouncer.ini")]

    def environment(self) -> Mapping[str, str]:
        return {"LC_ALL": "C"}

    def check_ready(self) -> None:
        with socket.create_connection((HOST, self.port), timeout=_ASK_TIMEOUT_S):
            pass

    def _configured(self) -> Path:
        home = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        users = home / "users.txt"
        users.write_text(f'"{USER}" "{PASSWORD}"\n')
        settings = {
            "listen_addr": HOST,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(users),
            "pool_mode": "transaction",
            "default_pool_size": "2",
            # Seconds until it tries again to reach a server that it could not reach.
            "server_login_retry": "1",
            **self._settings,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        databases = f"[databases]\n* = host={HOST} port={self._postgres.port}\n"
        (home / "pgbouncer.ini").write_text(databases + "\n".join(["[pgbouncer]", *lines, ""]))
        user = owner()
        if user is not None:
            for path in (home, *home.iterdir()):
                shutil.chown(path, user)
        return home
