"""A full disk under a bridge's journal: that is said, and nothing that was written down is lost."""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from engine_stand_in import EngineStandIn

from .executions import DEADLINE, frames_of, otlp, seen, whole
from .peers import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from constellation_otel.receiver import Receiver

    from .bridges import RunningBridge

    StartBridge = Callable[..., RunningBridge]

DISK_MB = 32


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)],
        capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.fail(
            f"no small disk can be had here ({done.stderr.strip()}): run this as root, in a container with"
            " --cap-add SYS_ADMIN"
        )
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], timeout=DEADLINE, check=True)


def fill(disk: Path) -> Path:
    """Fills a disk to its last byte; answers with what."""
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for _ in range(DISK_MB * 1024):
                file.write(bytes(1024))
    except OSError as error:
        assert "No space left" in str(error)  # noqa: PT017 - it is to happen
    return ballast


def send(engine: EngineStandIn, frames: Sequence[str]) -> None:
    for first in range(0, len(frames), 50):
        for frame in frames[first : first + 50]:
            engine.send(frame)
        engine.flush()


def test_a_full_disk_under_the_journal_is_said_and_nothing_is_lost_when_there_is_room_again(
    small_disk: Path, receiver: Receiver, start_bridge: StartBridge
) -> None:
    """A full disk under the journal: a clear message, a counter, and nothing is lost, with a live source."""
    with EngineStandIn() as engine:
        bridge = start_bridge(engine.url, "--to", otlp(receiver), "--journal", str(small_disk / "journal.db"))
        send(engine, frames_of(range(1, 51)))
        receiver.wait_for_spans(100, DEADLINE)
        ballast = fill(small_disk)
        send(engine, frames_of(range(51, 301)))
        bridge.wait_until_said(
            "the journal cannot be written: ", "free some space", "events wait for it", level="ERROR"
        )
        status, body = bridge.asks("/readyz")
        assert (status, [*body["troubles"]]) == (503, ["journal"])
        ballast.unlink()
        receiver.wait_for_spans(600, DEADLINE)
        code, report = bridge.ended()
        assert engine.dropped == 0
    assert (code, report["events"], report["dropped"], report["is_delivered"]) == (0, 1_200, 0, True)
    assert seen(receiver) == whole(*range(1, 301))


def test_what_is_in_a_journal_survives_a_full_disk_and_a_kill(
    small_disk: Path, receiver: Receiver, start_bridge: StartBridge
) -> None:
    """A full disk under the journal: nothing that was written down is lost, though the bridge is killed meanwhile."""
    endpoint, journal = otlp(receiver), small_disk / "journal.db"
    receiver.stop()
    with EngineStandIn() as engine:
        bridge = start_bridge(engine.url, "--to", endpoint, "--journal", str(journal), OTEL_METRICS_EXPORTER="none")
        send(engine, frames_of(range(1, 51)))
        bridge.wait_until_said("otlp: ", "are held")
        eventually(lambda: rows_of(journal) == 200, DEADLINE, "what was sent is in the journal")
        ballast = fill(small_disk)
        send(engine, frames_of(range(51, 301)))
        bridge.wait_until_said("the journal cannot be written: ", "free some space", level="ERROR")
        bridge.kill()
    ballast.unlink()
    receiver.start()
    with EngineStandIn() as engine:
        again = start_bridge(engine.url, "--to", otlp(receiver), "--journal", str(journal))
        receiver.wait_for_spans(100, DEADLINE)
        eventually(lambda: rows_of(journal) == 0, DEADLINE, "all is acknowledged")
        assert again.ended()[0] == 0
    # of the others some events found room in what the journal had already
    assert seen(receiver, range(1, 51)) == whole(*range(1, 51))


def rows_of(journal: Path) -> int:
    """How many events a journal holds."""
    with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT coalesce(max(held), 0) FROM sinks").fetchone()[0])
