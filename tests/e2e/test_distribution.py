"""The wheel and the source distribution, as a user gets them: built, installed in new environments, and run."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from constellation_otel._support.scope import SCOPE_VERSION
from programs import ROOT

if TYPE_CHECKING:
    from constellation_otel.receiver import Receiver

DEADLINE = 300.0
NAME = f"constellation_otel-{SCOPE_VERSION}"


class Distributions(NamedTuple):
    sdist: Path
    wheel: Path


class Environment:
    """A virtual environment that has nothing but what it is told to install."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run(sys.executable, "-m", "venv", str(folder))

    def install(self, *requirements: str) -> None:
        run(str(self.folder / "bin/pip"), "install", "--quiet", *requirements)

    def __call__(self, program: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return run(str(self.folder / "bin" / program), *arguments, cwd=cwd)


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, cwd=cwd, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Built of a copy of what git has, the wheel from the source distribution."""
    folder = tmp_path_factory.mktemp("distributions")
    checkout = folder / "checkout"
    run("git", "clone", "--quiet", str(ROOT), str(checkout))
    run(sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(checkout))
    return Distributions(folder / f"dist/{NAME}.tar.gz", folder / f"dist/{NAME}-py3-none-any.whl")


def tracked() -> set[str]:
    return set(run("git", "-C", str(ROOT), "ls-files").stdout.split())


def test_the_source_distribution_has_all_that_its_tests_need(built: Distributions) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    needed = {name for name in tracked() if not name.startswith((".", "bench/"))}
    assert sorted(needed - names) == []
    assert {name for name in names - needed if "/" in name or name.startswith(".")} <= {".gitignore"}


def test_the_wheel_has_the_package_its_licence_and_its_entry_points(built: Distributions) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = set(archive.namelist())
        info = f"{NAME}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    package = {name.removeprefix("src/") for name in tracked() if name.startswith("src/")}
    assert sorted(name for name in names if not name.startswith(info)) == sorted(package)
    assert f"{info}/licenses/LICENSE" in names
    assert "constellation_otel/py.typed" in names
    assert "constellation-otel = constellation_otel.__main__:main" in entry_points
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert re.findall(r"^(Version|License-Expression): (.+)$", metadata, re.MULTILINE) == [
        ("Version", SCOPE_VERSION),
        ("License-Expression", project["license"]),
    ]
    assert set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)) == set(project["optional-dependencies"])


def test_what_is_installed_runs_without_the_checkout(built: Distributions, tmp_path: Path, receiver: Receiver) -> None:
    """First alone, where a command says what it needs; then with what the quick start installs."""
    environment = Environment(tmp_path / "environment")
    environment.install(str(built.wheel))
    environment("pip", "check")
    code = "import constellation_otel; print(constellation_otel.OtlpListener.__name__, constellation_otel.__file__)"
    name, file = environment("python", "-c", code, cwd=tmp_path).stdout.split()
    assert (name, Path(file).is_relative_to(environment.folder)) == ("OtlpListener", True)
    bare = subprocess.run(
        [environment.folder / "bin/constellation-otel"], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert bare.returncode == 1
    assert "pip install 'constellation-otel[cli]'" in bare.stderr
    # which finds instrumentations that go together, as pip 23 does not
    environment.install("--upgrade", "pip>=25.1")
    environment.install(f"{built.wheel}[all,demo]")
    environment("pip", "check")
    assert f"version {SCOPE_VERSION}" in environment("constellation-otel", "--version").stdout
    example = tmp_path / "quickstart.py"
    example.write_text((ROOT / "examples/quickstart.py").read_text())
    assert environment("python", str(example), cwd=tmp_path).stdout == "TO BE OR NOT TO BE 6\n"
    drawn = environment("constellation-otel", "demo", cwd=tmp_path).stdout
    assert "spans" in drawn
    assert receiver.spans == []
