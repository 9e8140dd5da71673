"""What the helpers promise when a peer is not there, does not start or has not what a test waits for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .peers import Collector, Jaeger, MissingPeerError, NotYet, PeerError, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GET = Path(__file__).parent / "peers" / "get"


# Stands for Go: "builds" after it has read a line from the pipe `go-on` beside it, and counts its builds.
FAKE_GO = """#!/bin/sh
[ "$1" = version ] && echo go version go1.26.7 linux/amd64 && exit
here=${0%/*}
read line < "$here/go-on"
echo built >> "$here/builds"
echo '#!/bin/sh' > out/jaeger
/bin/chmod +x out/jaeger
"""


def run_get(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(GET), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_eventually_returns_the_first_true_answer() -> None:
    answers = iter([0, None, "", "yes", "no"])
    assert eventually(lambda: next(answers), 10, "there is an answer") == "yes"


def test_eventually_says_what_was_awaited_and_what_was_there() -> None:
    def condition() -> bool:
        raise NotYet("two of three")

    with pytest.raises(AssertionError, match=r"not within 0\.1 s: all are there; the last answer was: two of three"):
        eventually(condition, 0.1, "all are there")


def test_eventually_lets_every_other_exception_pass_at_once() -> None:
    def condition() -> bool:
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        eventually(condition, 10, "never")


def test_a_peer_that_is_not_in_the_cache_names_the_command_that_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSTELLATION_OTEL_CACHE", str(tmp_path / "empty"))
    with pytest.raises(MissingPeerError, match=r"jaeger is not in the cache .*: run `make e2e`"):
        Jaeger(tmp_path / "jaeger").start()


def test_a_peer_that_exits_at_once_is_reported_with_its_log(tmp_path: Path, collector: Collector) -> None:
    unlucky = Collector(tmp_path, jaeger="127.0.0.1:1")
    unlucky.grpc_port = collector.grpc_port
    with pytest.raises(PeerError, match=r"(?s)collector exited with code 1 .*address already in use"):
        unlucky.start()
    assert not unlucky.running


def test_a_peer_that_was_asked_to_stop_exits_in_order_and_frees_its_ports(tmp_path: Path) -> None:
    jaeger = Jaeger(tmp_path)
    jaeger.start()
    assert jaeger.stop() == 0
    assert jaeger.stop() is None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", jaeger.grpc_port))


def test_a_peer_that_hangs_is_killed_when_its_deadline_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Jaeger, "stop_deadline_s", 0.2)
    jaeger = Jaeger(tmp_path)
    jaeger.start()
    os.kill(jaeger.pid, signal.SIGSTOP)
    assert jaeger.stop() == -signal.SIGKILL
    assert not jaeger.running


def test_a_trace_that_does_not_come_is_reported_with_what_is_there(jaeger: Jaeger) -> None:
    with pytest.raises(AssertionError, match=r"trace 0{31}1 with 2 spans is in Jaeger; .* no such trace"):
        jaeger.trace("1".zfill(32), spans=2, deadline=0.1)


def test_get_without_go_says_how_to_install_it(tmp_path: Path) -> None:
    done = run_get("collector", PATH=str(tmp_path), CONSTELLATION_OTEL_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert "Go 1.26.7 or newer is needed" in done.stderr
    assert "apt-get install golang-go" in done.stderr


def test_get_with_an_older_go_says_how_to_get_a_newer_one(tmp_path: Path) -> None:
    old = tmp_path / "go"
    old.write_text("#!/bin/sh\necho go version go1.22.2 linux/amd64\n")
    old.chmod(0o755)
    done = run_get("collector", PATH=str(tmp_path), CONSTELLATION_OTEL_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert "`go version` says go version go1.22.2 linux/amd64" in done.stderr
    assert "export GOTOOLCHAIN=go1.26.7" in done.stderr


def test_a_build_that_fails_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    broken = tmp_path / "go"
    broken.write_text('#!/bin/sh\n[ "$1" = version ] && echo go version go1.26.7 linux/amd64 && exit\nexit 3\n')
    broken.chmod(0o755)
    cache = tmp_path / "cache"
    done = run_get("jaeger", PATH=str(tmp_path), CONSTELLATION_OTEL_CACHE=str(cache))
    assert done.returncode == 1
    assert "failed with exit code 3" in done.stderr
    assert not list(cache.glob("peers/jaeger-*"))


class SlowGet:
    """A run of `get jaeger` with a `go` that waits until it is told to go on."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.output = folder / f"{name}.out"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(GET), "jaeger"],
                env={"PATH": str(folder), "CONSTELLATION_OTEL_CACHE": str(folder / "cache")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def says(self, text: str) -> bool:
        return eventually(lambda: text in self.output.read_text(), 30, f"get says {text!r}")

    def building(self) -> int:
        """Awaits that the fake Go waits; returns the open pipe to it."""

        def opened() -> int:
            try:
                return os.open(self.folder / "go-on", os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                raise NotYet(str(error)) from error

        return eventually(opened, 30, "the fake Go reads its pipe")

    def ends(self) -> int:
        return self.process.wait(30)


def go_on(pipe: int) -> None:
    os.write(pipe, b"\n")
    os.close(pipe)


@pytest.fixture
def slow_get(tmp_path: Path) -> Iterator[Callable[[str], SlowGet]]:
    go = tmp_path / "go"
    go.write_text(FAKE_GO)
    go.chmod(0o755)
    os.mkfifo(tmp_path / "go-on")
    runs: list[SlowGet] = []

    def start(name: str) -> SlowGet:
        runs.append(SlowGet(tmp_path, name))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.ends()


def test_two_runs_of_get_at_once_build_once(slow_get: Callable[[str], SlowGet]) -> None:
    first = slow_get("first")
    pipe = first.building()
    second = slow_get("second")
    second.says("another run is building it; waiting")
    go_on(pipe)
    assert (first.ends(), second.ends()) == (0, 0)
    assert first.says("jaeger: built in")
    assert second.says("jaeger: built by another run meanwhile")
    assert (first.folder / "builds").read_text() == "built\n"


def test_a_build_that_was_killed_leaves_nothing_that_looks_finished_and_the_next_one_succeeds(
    slow_get: Callable[[str], SlowGet],
) -> None:
    killed = slow_get("killed")
    pipe = killed.building()
    killed.process.kill()
    killed.ends()
    # The orphaned step may end; nobody is left to put its result in place.
    go_on(pipe)
    eventually((killed.folder / "builds").is_file, 10, "the orphaned step has ended")
    assert not list(killed.folder.glob("cache/peers/jaeger-*"))

    again = slow_get("again")
    go_on(again.building())
    assert again.ends() == 0
    assert len(list(killed.folder.glob("cache/peers/jaeger-*/jaeger"))) == 1
