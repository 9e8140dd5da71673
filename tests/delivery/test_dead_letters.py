"""The dead-letter file: whole lines, whatever the data, and never an exception."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import threading
from base64 import b64decode
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from constellation_otel.delivery import DeadLetters

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def letters_in(path: Path) -> list[dict[str, object]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(letter.pop("time_ns") > 0 for letter in found)
    return found


def test_a_letter_says_where_why_and_what(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    letters = DeadLetters(path)
    assert letters.write("kafka, 7", "no event", b'{"a": "\xc3\xa4"}')
    assert letters.write("kafka, 8", "junk", b"\xff\x00")
    assert letters.write("kafka, 9", "long", b"x" * 100_000)
    text, junk, long = letters_in(path)
    assert text == {"where": "kafka, 7", "reason": "no event", "data": '{"a": "ä"}'}
    assert b64decode(str(junk.pop("data_base64"))) == b"\xff\x00"
    assert junk == {"where": "kafka, 8", "reason": "junk"}
    assert long == {"where": "kafka, 9", "reason": "long", "data": "x" * 65_536, "bytes": 100_000}
    assert letters.write("caf\udce9.log", "\ud800", b"x")
    assert letters_in(path)[-1] == {"where": "caf\\udce9.log", "reason": "\\ud800", "data": "x"}
    assert (letters.written, letters.failed) == (4, 0)


def test_a_file_that_has_grown_to_its_bound_takes_no_more_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "dead.jsonl"
    letters = DeadLetters(path, max_bytes=150)
    assert [letters.write("here", "bad", b"x") for _ in range(3)] == [True, True, False]
    assert (letters.written, letters.failed, len(letters_in(path))) == (2, 1, 2)
    assert "has grown to 150 bytes; move it away" in caplog.text


@pytest.mark.parametrize(("path", "why"), [("/dev/full", "No space left"), ("missing/dead.jsonl", "No such file")])
def test_a_file_that_cannot_be_written_is_logged_and_counted(
    path: str, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    letters = DeadLetters(tmp_path / path)
    assert not letters.write("here", "bad", b"x")
    assert (letters.written, letters.failed) == (0, 1)
    assert why in caplog.text


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files cannot grow beyond a size, as on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_that_a_full_disk_cuts_short_is_taken_out_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "dead.jsonl"
    # larger than any other file that is written to meanwhile; most of it is a hole
    size = 64 * 2**20
    with path.open("wb") as file:
        file.truncate(size - 100)
        file.seek(0, os.SEEK_END)
        file.write(b"\n")
    letters = DeadLetters(path)
    with largest_file(size):
        assert not letters.write("here", "bad", b"x" * 1_000)
    assert "the disk is full" in caplog.text
    assert path.stat().st_size == size - 99
    assert letters.write("here", "after", b"x")
    assert (letters.written, letters.failed) == (1, 1)
    with path.open("rb") as file:
        file.seek(size - 100)
        empty, line, rest = file.read().split(b"\n")
    assert (empty, json.loads(line)["reason"], rest) == (b"", "after", b"")


def test_a_line_that_a_crash_has_torn_is_ended_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    path.write_bytes(b'{"time_ns": 1, "where"')
    letters = DeadLetters(path)
    assert letters.write("here", "bad", b"x")
    assert letters.write("here", "bad", b"y")
    torn, *others = path.read_bytes().splitlines()
    assert torn == b'{"time_ns": 1, "where"'
    assert [json.loads(line)["data"] for line in others] == ["x", "y"]


def test_a_pipe_that_nobody_reads_keeps_nobody_waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    letters = DeadLetters(path)
    assert not letters.write("here", "bad", b"x")
    assert "No such device or address" in caplog.text


def test_a_pipe_that_is_read_too_slowly_loses_the_letter_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        letters = DeadLetters(path)
        assert letters.write("here", "bad", b"x" * 40_000)
        assert not letters.write("here", "bad", b"x" * 40_000)
        assert (letters.written, letters.failed) == (1, 1)
    finally:
        os.close(reader)
    assert "whoever reads it is too slow" in caplog.text


def test_a_file_that_another_process_keeps_locked_is_waited_for_only_so_long(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "dead.jsonl"
    letters = DeadLetters(path, lock_timeout=0.02)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not letters.write("here", "bad", b"x")
    assert letters.write("here", "bad", b"x")
    assert "another process has had it locked" in caplog.text


def test_lines_of_several_threads_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    letters = DeadLetters(path)

    def work(number: int) -> None:
        for _ in range(50):
            letters.write(str(number), "bad", b"y" * 1_000)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(letter["where"]) for letter in letters_in(path)) == sorted("0123" * 50)


def test_a_forked_child_writes_while_another_thread_of_its_parent_does(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl")
    with letters._lock:
        child = os.fork()
        if child == 0:
            try:
                letters.write("child", "bad", b"x")
            finally:
                os._exit(0)
    os.waitpid(child, 0)
    assert [letter["where"] for letter in letters_in(tmp_path / "dead.jsonl")] == ["child"]
