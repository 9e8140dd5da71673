"""Programs that are built once and kept: a cache folder keyed by a hash of everything that goes into them.

How a Collector or a Jaeger is built is data (`Artifact`); this module knows when, where and under which lock.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# A cold build takes 5 to 10 minutes on two cores; a loaded machine gets six times that.
_DEADLINE_S = 3600.0
_ASK_FOR_LOCK_EVERY_S = 0.5


class MissingPeerError(Exception):
    """A peer cannot be built or is not built; the message says what to do."""


class Toolchain(Protocol):
    """A compiler or package manager that artifacts are made with."""

    @property
    def settings(self) -> Mapping[str, str]:
        """Environment variables that shape the result, and so are part of the key."""

    def version(self) -> str:
        """What the tool says of itself; raises MissingPeerError where it is absent or too old."""

    def environment(self) -> Mapping[str, str]:
        """What a step's environment has beside this process's: the settings, and where the tool keeps its caches."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What one program is made from.

    Attributes:
        name: The peer's name, as `get` takes it.
        program: The file that the steps leave in `out/`.
        lock: The folder of lock files; the steps run in a copy of it.
        steps: Command lines, run in order. They use relative paths only, so that they can be part of the key.
        toolchain: What the steps need.
    """

    name: str
    program: str
    lock: Path
    steps: tuple[tuple[str, ...], ...]
    toolchain: Toolchain

    def key(self) -> str:
        """A hash of the lock files, the steps, and the toolchain's version and settings.

        Raises:
            MissingPeerError: The toolchain is absent or too old.
        """
        parts = [self.name, self.program, repr(self.steps)]
        parts += [self.toolchain.version(), repr(sorted(self.toolchain.settings.items()))]
        digest = hashlib.sha256("\0".join(parts).encode())
        for file in sorted(self.lock.iterdir()):
            digest.update(f"\0{file.name}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]

    def path(self) -> Path:
        """Where the program is once it is built."""
        return _peers() / f"{self.name}-{self.key()}" / self.program

    def require(self) -> Path:
        """The built program.

        Raises:
            MissingPeerError: It is not in the cache.
        """
        remedy = f"run `make e2e`, which gets it with `tests/e2e/peers/get {self.name}`"
        try:
            path = self.path()
        except MissingPeerError as error:
            message = f"{self.name} cannot be looked up: {error}\nThen {remedy}."
            raise MissingPeerError(message) from error
        if not path.is_file():
            message = f"{self.name} is not in the cache ({path}): {remedy}."
            raise MissingPeerError(message)
        return path

    def get(self) -> Path:
        """The program, built now if the cache does not have it; says on standard output what it does.

        Two runs at once build once. A build that is interrupted leaves nothing that looks finished.

        Raises:
            MissingPeerError: A tool is missing, a step failed, or it took more than an hour.
        """
        path = self.path()
        started = time.monotonic()
        if path.is_file():
            _say(f"{self.name}: in the cache, {path}")
            return path
        with _locked(_peers() / f"{self.name}.lock", self.name):
            if path.is_file():
                _say(f"{self.name}: built by another run meanwhile, {path}")
            else:
                self._build(path)
                _say(f"{self.name}: built in {time.monotonic() - started:.0f} s, {path}")
        return path

    def _build(self, path: Path) -> None:
        end = time.monotonic() + _DEADLINE_S
        _say(f"{self.name}: not in the cache; building it takes some minutes the first time ({path})")
        # What killed builds have left; the lock makes it ours to remove.
        for leftover in _peers().glob(f".building-{self.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        # On the cache's own filesystem, so that the last step is one rename; and new, so that no step of a killed
        # build that is still running can write into it.
        work = Path(tempfile.mkdtemp(prefix=f".building-{self.name}-", dir=_peers()))
        shutil.copytree(self.lock, work, dirs_exist_ok=True)
        (work / "out").mkdir()
        environment = {**os.environ, **self.toolchain.environment()}
        for step in self.steps:
            _say(f"{self.name}: {shlex.join(step)}")
            _run(self.name, step, work, environment, end)
        if not os.access(work / "out" / self.program, os.X_OK):
            message = f"{self.name}: the build ended without making {self.program}; its folder is {work}."
            raise MissingPeerError(message)
        (work / "out").rename(path.parent)
        shutil.rmtree(work)


def cache_root() -> Path:
    """The folder that this project's caches are in.

    It is `$CONSTELLATION_OTEL_CACHE`, or else `constellation-otel` in `$XDG_CACHE_HOME`, or else in `~/.cache`.

    Raises:
        MissingPeerError: There is no home folder to put it in.
    """
    chosen = os.environ.get("CONSTELLATION_OTEL_CACHE")
    if chosen:
        return Path(chosen).absolute()
    general = os.environ.get("XDG_CACHE_HOME")
    if general:
        return Path(general).absolute() / "constellation-otel"
    home = os.environ.get("HOME")
    if home:
        return Path(home).absolute() / ".cache" / "constellation-otel"
    # HOME is unset or empty (cron, systemd, containers): ask who we are, as a login shell would.
    expanded = Path("~" + _user_name()).expanduser()
    return expanded / ".cache" / "constellation-otel"


def main(artifacts: Sequence[Artifact], arguments: Sequence[str]) -> int:
    """The `get` script: gets the named artifacts, one after the other.

    Args:
        artifacts: All that there are.
        arguments: The command line, without the program's name.

    Returns:
        The exit code: 0, or 1 with a message on standard error where one cannot be had.
    """
    known = {artifact.name: artifact for artifact in artifacts}
    parser = argparse.ArgumentParser(prog="get", description="Builds the servers that the end-to-end tests need.")
    parser.add_argument("peer", nargs="+", choices=sorted(known), help="what to get: %(choices)s")
    wanted = parser.parse_args(arguments).peer
    try:
        for name in wanted:
            known[name].get()
    except MissingPeerError as error:
        print(error, file=sys.stderr)  # noqa: T201 - it is a script
        return 1
    except OSError as error:
        print(f"cannot write the cache in {_peers()}: {error}. Set CONSTELLATION_OTEL_CACHE.", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _user_name() -> str:
    import pwd  # noqa: PLC0415 - needed in this corner only

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        message = "There is no home folder for a cache: set CONSTELLATION_OTEL_CACHE to a folder that can be written."
        raise MissingPeerError(message) from None


def _peers() -> Path:
    return cache_root() / "peers"


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a build of minutes must say where it is


def _run(name: str, step: tuple[str, ...], work: Path, environment: Mapping[str, str], end: float) -> None:
    try:
        done = subprocess.run(
            step,
            cwd=work,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            timeout=max(end - time.monotonic(), 0),
            check=False,
        )
    except FileNotFoundError as error:
        message = f"{name}: {step[0]} is missing; install it (apt-get install {step[0]}) and run this again."
        raise MissingPeerError(message) from error
    except subprocess.TimeoutExpired as error:
        message = f"{name}: not built after {_DEADLINE_S:.0f} s; run this again, it goes on from what is there."
        raise MissingPeerError(message) from error
    if done.returncode != 0:
        message = f"{name}: `{shlex.join(step)}` failed with exit code {done.returncode}; its output is above."
        raise MissingPeerError(message)


@contextlib.contextmanager
def _locked(file: Path, name: str) -> Iterator[None]:
    """Holds a lock that other processes respect, and that goes with this one, however it ends."""
    file.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + _DEADLINE_S
    told = False
    with file.open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    message = (
                        f"{name}: another run has held {file} for {_DEADLINE_S:.0f} s; stop it and run this again."
                    )
                    raise MissingPeerError(message) from None
                if not told:
                    _say(f"{name}: another run is building it; waiting")
                    told = True
                time.sleep(_ASK_FOR_LOCK_EVERY_S)
            else:
                break
        yield
