"""The dead-letter file: whole lines, whatever the data, and never an exception."""

from __future__ import annotations

import json
import os
import threading
from base64 import b64decode
from typing import TYPE_CHECKING

import pytest

from constellation_otel.dead_letters import DeadLetters

if TYPE_CHECKING:
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


def test_a_disk_that_fills_up_in_the_middle_of_a_line_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("constellation_otel.dead_letters.os.write", lambda _, data: len(data) - 1)
    assert not DeadLetters(tmp_path / "dead.jsonl").write("here", "bad", b"x")
    assert "the disk is full" in caplog.text


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
