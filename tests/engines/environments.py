"""Each engine's two virtual environments, in the cache of the peers, made once and kept.

One has the lower bound that pyproject.toml has for the engine, the other the newest release of the day
on which it was made or upgraded.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.peers.artifact import cache_root

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENGINES = ("dagster", "hamilton", "kedro")
VERSIONS = ("oldest", "newest")
ZERO_CODE = ("kedro",)
"""Those that opentelemetry-instrument traces, which they have for it."""
OLDEST = {"hamilton": "sf-hamilton==1.88"}
"""What users have that is older than the bound: Hamilton under its former name."""


class Environment:
    """A virtual environment with an engine, without this package: that is taken from where it is tested.

    Args:
        engine: The engine's extra.
        version: ``oldest`` or ``newest``.
    """

    def __init__(self, engine: str, version: str) -> None:
        self.engine, self.version = engine, version
        (requirement,) = PROJECT["project"]["optional-dependencies"][engine]
        if version == "oldest":
            requirement = OLDEST.get(engine, requirement.replace(">=", "=="))
        tools = [it for it in PROJECT["dependency-groups"]["test"] if re.match("hypothesis|pytest>|requests", it)]
        tools += [it for it in PROJECT["dependency-groups"]["test"] if engine in ZERO_CODE and "-distro>" in it]
        self.requirements = [requirement, *PROJECT["project"]["dependencies"], *tools]
        digest = hashlib.sha256("\0".join([platform.python_version(), *self.requirements]).encode()).hexdigest()[:16]
        self.folder = cache_root() / "peers" / f"{engine}-{version}-{digest}"
        self.python = str(self.folder / "bin/python")
        self._stamp = self.folder / ".installed"

    @property
    def is_there(self) -> bool:
        return self._stamp.exists()

    def get(self, *, upgrade: bool) -> None:
        """Makes it, or makes the newest one new; two runs at once do it once."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.is_there:
                _say(f"{self.engine}, {self.version}: getting it takes a minute ({self.folder})")
                subprocess.run([sys.executable, "-m", "venv", "--clear", str(self.folder)], check=True)
            elif not upgrade or self.version == "oldest":
                return
            install = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
            subprocess.run([*install, *self.requirements], check=True)
            self._stamp.touch()

    def test(self) -> bool:
        """Runs the engine's tests; whether they pass."""
        _say(f"== {self.engine}, {self.version}")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        environment |= {"PYTHONPATH": str(ROOT / "src"), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        tests = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests/engines").glob(f"test_{self.engine}*.py"))
        command = [self.python, "-m", "pytest", *tests]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - minutes pass, and it says where it is


def main(words: Sequence[str]) -> int:
    """The `run` script: gets the environments, and runs the tests in each.

    Args:
        words: The command line, without the program's name.

    Returns:
        The exit code: 1 where a test failed, or an environment cannot be had.
    """
    parser = argparse.ArgumentParser(prog="tests/engines/run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", nargs="*", help=f"one of {', '.join(ENGINES)}; all where none is given")
    parser.add_argument("--upgrade", action="store_true", help="have the newest releases of today")
    parser.add_argument("--where", action="store_true", help="only print the Python of the newest one that is there")
    arguments = parser.parse_args(words)
    engines = arguments.engine or ENGINES
    if arguments.where:
        found = [environment for it in engines if (environment := Environment(it, "newest")).is_there]
        _say("\n".join(environment.python for environment in found))
        return 0
    environments = [Environment(engine, version) for engine in engines for version in VERSIONS]
    try:
        for environment in environments:
            environment.get(upgrade=arguments.upgrade)
    except subprocess.CalledProcessError as error:
        _say(f"{error}; its output is above")
        return 1
    failed = [environment for environment in environments if not environment.test()]
    for environment in failed:
        _say(f"FAILED  {environment.engine}, {environment.version}")
    return 1 if failed else 0
