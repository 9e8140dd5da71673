"""Appending to a file: crashes, full disks, files that are moved away."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from constellation_otel.delivery import Position, Record, Unreadable
from constellation_otel.errors import ConfigurationError, MisconfiguredError, UnavailableError
from constellation_otel.transports.jsonl import JsonlListener, JsonlSink, JsonlSource
from support import small_disk
from transports.jsonl.helpers import NS, drained, event, events, events_of, line, lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from constellation_otel.delivery import Sink
    from constellation_otel.events import (
        Event,
    )


def written(path: Path) -> list[Event]:
    """The events of a file in which there is nothing else."""
    items = drained(JsonlSource(path))
    assert [item for item in items if isinstance(item, Unreadable)] == []
    return events_of(items)


def test_a_sink_says_what_it_is() -> None:
    sink: Sink[Event] = JsonlSink("events.jsonl")
    assert (sink.name, sink.takes, sink.max_batch) == ("jsonl", "events", 512)


def test_events_are_appended_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(0))
    with closing(JsonlSink(path)) as sink:
        assert sink.send([event(1), event(2)], 1) == ()
        assert path.read_bytes() == lines(3)
        assert sink.send([event(3)], 1) == ()
        assert path.read_bytes() == lines(4)


def test_nothing_is_opened_before_the_first_events(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = JsonlSink(path)
    sink.close()
    assert not path.exists()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_is_created_as_the_umask_has_it(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "events.jsonl"
    before = os.umask(umask)
    try:
        with closing(JsonlSink(path)) as sink:
            sink.send([event(0)], 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_sink_that_was_closed_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = JsonlSink(path)
    for number in range(3):
        sink.send([event(number)], 10)
        sink.close()
    assert written(path) == events(3)


def test_a_file_that_is_moved_away_is_created_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with closing(JsonlSink(path)) as sink:
        sink.send([event(0)], 10)
        path.rename(tmp_path / "old.jsonl")
        sink.send([event(1)], 10)
        path.unlink()
        sink.send([event(2)], 10)
    assert written(tmp_path / "old.jsonl") == [event(0)]
    assert written(path) == [event(2)]


def misconfiguration(path: Path, why: str) -> str:
    return f"{path} cannot be written: {why}; check that its folder exists, and that it is a file that may be written"


def misconfigured(path: Path) -> str:
    """What sending says; and the file, where there is one, is as it was."""
    before = path.read_bytes() if path.is_file() else None
    with closing(JsonlSink(path)) as sink, pytest.raises(MisconfiguredError) as error:
        sink.send([event(0)], 10)
    assert (path.read_bytes() if path.is_file() else None) == before
    return str(error.value)


def test_a_folder_that_is_not_there_is_not_created(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "events.jsonl"
    sink = JsonlSink(path)
    with closing(sink), pytest.raises(MisconfiguredError) as error:
        sink.send([event(0)], 1)
    assert str(error.value) == misconfiguration(path, "No such file or directory")
    path.parent.mkdir()
    with closing(sink):
        sink.send([event(0)], 1)
    assert written(path) == [event(0)]


def test_a_folder_cannot_be_written(tmp_path: Path) -> None:
    assert misconfigured(tmp_path) == misconfiguration(tmp_path, "Is a directory")


def test_a_named_pipe_and_a_device_cannot_be_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/full")):
        assert misconfigured(path) == misconfiguration(path, "it is not a regular file")


@pytest.mark.usefixtures("unprivileged")
def test_a_file_that_must_not_be_written_stays() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        path.touch(0o400)
        assert misconfigured(path) == misconfiguration(path, "Permission denied")


def test_a_sink_without_a_path_is_refused() -> None:
    with pytest.raises(ConfigurationError) as refused:
        JsonlSink("")
    assert str(refused.value) == "the path '' cannot be a file's; name a file, or - for standard input or output"


@pytest.mark.parametrize("make", [JsonlSink, JsonlListener])
def test_gzip_is_not_written_and_the_error_says_what_to_do(make: Callable[[str], object], tmp_path: Path) -> None:
    path = f"{tmp_path}/events.jsonl.gz"
    with pytest.raises(ConfigurationError) as refused:
        make(path)
    assert str(refused.value) == (
        f"{path} would be gzip, which is read but not written; give '{tmp_path}/events.jsonl',"
        " and compress it with gzip when nothing writes to it any more"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_is_ended_so_that_it_alone_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events.jsonl"
    torn = line(1)[:20]
    path.write_bytes(line(0) + torn)
    with closing(JsonlSink(path)) as sink:
        sink.send([event(2)], 1)
    assert drained(JsonlSource(path)) == [
        Record(event(0), Position(None, 0)),
        Unreadable(
            torn, f"not an event: Input data was truncated; the record is {torn!r}", Position(None, len(line(0)))
        ),
        Record(event(2), Position(None, len(line(0)) + 21)),
    ]
    assert caplog.messages == [f"{path} ends in the middle of a line; ending the line"]


WRITER = """
import sys
from uuid import UUID
from constellation_otel.events import ModuleStarted
from constellation_otel.transports.jsonl import JsonlSink

sink = JsonlSink(sys.argv[1])
number = 0
while True:
    sink.send(
        [ModuleStarted(UUID(int=n), UUID(int=n + 1), "Trim", int(sys.argv[2]) + n) for n in range(number, number + 7)],
        10,
    )
    number += 7
    print(number, flush=True)
"""


def test_what_was_sent_outlives_a_kill(tmp_path: Path) -> None:
    """The next run goes on behind it."""
    path = tmp_path / "events.jsonl"
    arguments = [sys.executable, "-c", WRITER, str(path), str(NS)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            sent = [int(writer.stdout.readline()) for _ in range(20)][-1]
        finally:
            writer.send_signal(signal.SIGKILL)
        sent = max([sent, *map(int, writer.stdout.read().split())])
    with closing(JsonlSink(path)) as sink:
        sink.send([event(1_000_000)], 10)
    survived = events_of(drained(JsonlSource(path)))
    assert len(survived) > sent
    assert survived == [*events(len(survived) - 1), event(1_000_000)]


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file of this process may grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """The batch is written when there is room."""
    batch = events(500, 2)
    with small_disk(tmp_path / "disk", "64k") as folder, closing(JsonlSink(folder / "events.jsonl")) as sink:
        path, filler = folder / "events.jsonl", folder / "filler"
        sink.send(events(2), 10)
        filler.write_bytes(os.urandom(65_536 - 2 * 4096))
        before = path.read_bytes()
        for _ in range(2):
            with pytest.raises(UnavailableError) as unavailable:
                sink.send(batch, 10)
            assert str(unavailable.value) == f"{path} cannot be written now: No space left on device"
            assert not isinstance(unavailable.value, MisconfiguredError)
            assert unavailable.value.delivered == frozenset()
            assert path.read_bytes() == before
        filler.unlink()
        sink.send(batch[:100], 10)
        assert written(path) == events(102)


def test_a_batch_that_is_written_in_part_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with closing(JsonlSink(path)) as sink:
        sink.send(events(2), 10)
        before = path.read_bytes()
        with small_files(len(before) + 100), pytest.raises(UnavailableError) as unavailable:
            sink.send(events(50, 2), 10)
        assert str(unavailable.value) == f"{path} cannot be written now: File too large"
        assert path.read_bytes() == before
        sink.send(events(50, 2), 10)
    assert written(path) == events(52)


def test_a_batch_that_the_disk_does_not_confirm_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    with closing(JsonlSink(path)) as sink:
        sink.send(events(2), 10)
        before = path.read_bytes()
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", fail)
            with pytest.raises(UnavailableError) as unavailable:
                sink.send(events(2, 2), 10)
        assert str(unavailable.value) == f"{path} cannot be written now: Input/output error"
        assert path.read_bytes() == before
        sink.send(events(2, 2), 10)
    assert written(path) == events(4)


def fail(*arguments: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_batch_that_cannot_be_taken_back_gets_a_line_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    with closing(JsonlSink(path)) as sink:
        sink.send(events(2), 10)
        with monkeypatch.context() as broken, small_files(path.stat().st_size + 100):
            broken.setattr(os, "ftruncate", fail)
            with pytest.raises(UnavailableError):
                sink.send(events(50, 2), 10)
        sink.send(events(50, 2), 10)
    items = drained(JsonlSource(path))
    assert events_of(items) == events(52)
    torn = [item.data for item in items if isinstance(item, Unreadable)]
    assert torn == [line(2)[:100]]


def test_a_torn_line_that_cannot_be_ended_now_is_ended_later(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(0)[:-1])
    with closing(JsonlSink(path)) as sink:
        with small_files(len(line(0)) - 1), pytest.raises(UnavailableError):
            sink.send([event(1)], 1)
        assert path.read_bytes() == line(0)[:-1]
        sink.send([event(1)], 1)
    assert path.read_bytes() == lines(2)
