"""Reading a file as it grows, is replaced and is cut."""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from constellation_otel.delivery import Position, Record
from constellation_otel.transports.jsonl import JsonlSource
from support import DEADLINE, eventually
from transports.jsonl.helpers import SOON, append, awaited, event, events, events_of, line, lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


LOGGER = "constellation_otel.transports.jsonl"


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[JsonlSource]:
    with closing(JsonlSource(tmp_path / "events.jsonl", follow=True)) as source:
        yield source


def test_a_followed_file_is_read_as_it_grows(tmp_path: Path, followed: JsonlSource) -> None:
    path = tmp_path / "events.jsonl"
    append(path, lines(2))
    assert events_of(awaited(followed, 2)) == events(2)
    assert followed.read(0.01) == []
    append(path, lines(600, 2))
    assert events_of(awaited(followed, 600)) == events(600, 2)
    assert not followed.has_ended


def test_a_line_is_waited_for_until_it_has_its_end(tmp_path: Path, followed: JsonlSource) -> None:
    path = tmp_path / "events.jsonl"
    for byte in line(0)[:-1]:
        append(path, bytes((byte,)))
        assert followed.read(0) == []
    append(path, b"\n")
    assert awaited(followed, 1) == [Record(event(0), Position(None, 0))]


def test_a_file_that_is_not_there_yet_is_waited_for(
    tmp_path: Path, followed: JsonlSource, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once."""
    path = tmp_path / "events.jsonl"
    with caplog.at_level(logging.INFO, LOGGER):
        assert followed.read(SOON) == []
        assert followed.read(0) == []
    assert caplog.messages == [f"{path} is not there yet; waiting for it"]
    append(path, line(0))
    assert awaited(followed, 1) == [Record(event(0), Position(None, 0))]


def test_a_replaced_file_is_read_to_its_end_first(
    tmp_path: Path, followed: JsonlSource, caplog: pytest.LogCaptureFixture
) -> None:
    path, old = tmp_path / "events.jsonl", tmp_path / "events.jsonl.1"
    append(path, line(0))
    assert events_of(awaited(followed, 1)) == [event(0)]
    path.rename(old)
    # whoever writes has it open still
    append(old, line(1))
    assert events_of(awaited(followed, 1)) == [event(1)]
    append(old, line(2)[:-1])
    append(path, line(3))
    with caplog.at_level(logging.INFO, LOGGER):
        assert awaited(followed, 2) == [
            Record(event(2), Position(None, len(lines(2)))),
            Record(event(3), Position(None, len(lines(3)))),
        ]
    assert caplog.messages == [f"{path} was replaced; reading the new file"]
    append(path, line(4))
    assert events_of(awaited(followed, 1)) == [event(4)]


def test_what_is_written_to_a_replaced_file_is_not_lost(tmp_path: Path, followed: JsonlSource) -> None:
    """Just after it was replaced."""
    path, old = tmp_path / "events.jsonl", tmp_path / "events.jsonl.1"
    append(path, line(0))
    assert events_of(awaited(followed, 1)) == [event(0)]
    path.rename(old)
    append(path, line(2))
    # notices the new one
    assert followed.read(0) == []
    append(old, line(1))
    assert events_of(awaited(followed, 2)) == [event(1), event(2)]


def test_a_file_that_is_replaced_can_be_closed_at_any_time(tmp_path: Path, followed: JsonlSource) -> None:
    path = tmp_path / "events.jsonl"
    append(path, line(0))
    assert events_of(awaited(followed, 1)) == [event(0)]
    path.rename(tmp_path / "events.jsonl.1")
    append(path, line(1))
    assert followed.read(0) == []


def test_a_file_that_is_cut_is_read_from_its_beginning_again(
    tmp_path: Path, followed: JsonlSource, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events.jsonl"
    append(path, lines(3))
    assert events_of(awaited(followed, 3)) == events(3)
    with caplog.at_level(logging.INFO, LOGGER):
        path.write_bytes(line(3))
        assert awaited(followed, 1) == [Record(event(3), Position(None, len(lines(3)) + 1))]
    assert caplog.messages == [f"{path} was cut; reading it again from its beginning"]


def test_closing_while_it_is_read_closes_the_file(tmp_path: Path, followed: JsonlSource) -> None:
    path = tmp_path / "events.jsonl"
    append(path, line(0))
    thread = threading.Thread(target=followed.read, args=(DEADLINE,))
    assert events_of(awaited(followed, 1)) == [event(0)]
    thread.start()
    try:
        eventually(lambda: followed._is_reading, "the read to begin")
    finally:
        followed.close()
        thread.join(DEADLINE / 2)
    assert not thread.is_alive()
    file = followed._input
    assert file is not None
    with pytest.raises(ValueError, match="closed file"):
        file.read(1)
