"""Peers that are not built but taken as the system's packages install them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .artifact import MissingPeerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_INSTALL_TIMEOUT_S: Final = 600.0
# What packages install as the cluster's owner, and what every system has.
_UNPRIVILEGED: Final = ("postgres", "nobody")
# Debian's package otherwise starts a cluster on port 5432.
_NO_SYSTEM_CLUSTER: Final = "create_main_cluster = false\n"
_CREATE_CLUSTER_CONF: Final = Path("/etc/postgresql-common/createcluster.conf")


@dataclass(frozen=True)
class Package:
    """A package's programs, wherever the system has them.

    Attributes:
        name: The peer's name, as `get` takes it.
        package: Debian's name of the package.
        how_to_get: What to do where it is missing, as the message says it.
        find: Where its programs are; `None` where they are not.
    """

    name: str
    package: str
    how_to_get: str
    find: Callable[[], Path | None]

    def require(self) -> Path:
        """Where its programs are.

        Raises:
            MissingPeerError: There are none.
        """
        found = self.find()
        if found is None:
            message = (
                f"{self.name} is not installed: {self.how_to_get}, or run `tests/e2e/peers/get {self.name}` as root."
            )
            raise MissingPeerError(message)
        return found

    def get(self) -> Path:
        """The same, after installing the package where that can be done; says on standard output what it does.

        Raises:
            MissingPeerError: It is not there, and cannot be installed from here.
        """
        if self.find() is None and os.getuid() == 0 and shutil.which("apt-get"):
            self._install()
        found = self.require()
        print(f"{self.name}: installed, {found}", flush=True)  # noqa: T201 - it is a script
        return found

    def _install(self) -> None:
        if not _CREATE_CLUSTER_CONF.exists():
            _CREATE_CLUSTER_CONF.parent.mkdir(parents=True, exist_ok=True)
            _CREATE_CLUSTER_CONF.write_text(_NO_SYSTEM_CLUSTER)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        keep_ours = ("-o", "Dpkg::Options::=--force-confold")
        for step in (("update",), ("install", "--yes", "--no-install-recommends", *keep_ours, self.package)):
            print(f"{self.name}: apt-get {' '.join(step)}", flush=True)  # noqa: T201 - it is a script
            try:
                done = subprocess.run(
                    ["apt-get", *step],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    timeout=_INSTALL_TIMEOUT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                message = f"{self.name}: apt-get was not done after {_INSTALL_TIMEOUT_S:.0f} s; {self.how_to_get}."
                raise MissingPeerError(message) from error
            if done.returncode != 0:
                message = (
                    f"{self.name}: apt-get exited with code {done.returncode}, its output is above; {self.how_to_get}."
                )
                raise MissingPeerError(message)


def owner() -> str | None:
    """Who the server runs as, where we are root, which it refuses to run as."""
    if os.getuid() != 0:
        return None
    import pwd  # noqa: PLC0415 - needed in this corner only

    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in _UNPRIVILEGED if name in names)


def unprivileged() -> Sequence[str]:
    """What runs a command as that user, under the process id that we know."""
    user = owner()
    return () if user is None else ("setpriv", f"--reuid={user}", f"--regid={_group(user)}", "--init-groups", "--")


def _group(user: str) -> str:
    import pwd  # noqa: PLC0415 - needed in this corner only

    return str(pwd.getpwnam(user).pw_gid)
