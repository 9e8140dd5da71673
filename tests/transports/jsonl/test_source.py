"""Reading a JSON lines file to its end."""

from __future__ import annotations

import os
import tempfile
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from constellation_otel.delivery import Position, Record, Unreadable
from constellation_otel.errors import ConfigurationError, MisconfiguredError, SourceError, UnavailableError
from constellation_otel.transports.jsonl import JsonlSource
from deliveries import flat
from transports.jsonl.helpers import drained, event, events, events_of, line, lines, refusal

if TYPE_CHECKING:
    from constellation_otel.delivery import Source


def test_a_file_is_read_to_its_end_in_order(tmp_path: Path) -> None:
    """With the bytes where lines begin."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(3))
    assert drained(JsonlSource(path)) == [
        Record(event(0), Position(None, 0)),
        Record(event(1), Position(None, len(line(0)))),
        Record(event(2), Position(None, len(line(0)) + len(line(1)))),
    ]


def test_a_source_says_what_it_is(tmp_path: Path) -> None:
    source: Source = JsonlSource("events.jsonl")
    assert (source.name, source.is_ordered, source.is_durable, source.has_ended) == (
        "jsonl:events.jsonl",
        False,
        True,
        False,
    )
    assert (JsonlSource("-").name, JsonlSource("-").is_durable) == ("jsonl:-", False)


def test_a_long_file_comes_in_parts_of_at_most_512_items(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(3000))
    items = drained(JsonlSource(path))
    assert events_of(items) == events(3000)
    assert [item.position.offset for item in items[:2]] == [0, len(line(0))]


def test_no_time_at_all_is_enough_to_read_on(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(1))
    with closing(JsonlSource(path)) as source:
        assert flat(source.read(0)) == [Record(event(0), Position(None, 0))]
        assert source.read(0) == []
        assert source.has_ended
        assert source.read(0) == []


def test_an_empty_file_ends(tmp_path: Path) -> None:
    for name in ("events.jsonl", "events.jsonl.gz"):
        (tmp_path / name).write_bytes(b"")
        assert drained(JsonlSource(tmp_path / name)) == []


def test_blank_lines_are_nothing(tmp_path: Path) -> None:
    """A carriage return is not part of a line."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n\r\n  \t\n" + line(0)[:-1] + b"\r\n\n" + line(1))
    assert drained(JsonlSource(path)) == [
        Record(event(0), Position(None, 7)),
        Record(event(1), Position(None, 7 + len(line(0)) + 2)),
    ]
    path.write_bytes(b"\n" * 2_000 + line(0))
    assert drained(JsonlSource(path)) == [Record(event(0), Position(None, 2_000))]


def test_a_last_line_without_its_end_is_read_where_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(2)[:-1])
    assert events_of(drained(JsonlSource(path))) == events(2)


def test_a_torn_last_line_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    torn = line(1)[:20]
    path.write_bytes(line(0) + torn)
    assert drained(JsonlSource(path)) == [
        Record(event(0), Position(None, 0)),
        Unreadable(
            torn,
            f"not an event: Input data was truncated; the record is {torn!r}",
            Position(None, len(line(0))),
        ),
    ]


@pytest.mark.parametrize(
    ("junk", "why"),
    [
        pytest.param(b"junk", "JSON is malformed: invalid character (byte 0)", id="no JSON"),
        pytest.param(b"[1, 2]", "Expected `object`, got `array`", id="no object"),
        pytest.param(b'{"level": "info"}', "Object missing required field `eventType`", id="another object"),
        pytest.param(
            b'{"eventType":"\xff"',
            "'utf-8' codec can't decode byte 0xff in position 14: invalid start byte",
            id="no text",
        ),
        pytest.param(b"\0\0\0", "JSON is malformed: invalid character (byte 0)", id="zeros"),
    ],
)
def test_what_is_no_event_is_unreadable_and_reading_goes_on(tmp_path: Path, junk: bytes, why: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(0) + junk + b"\n" + line(1))
    assert drained(JsonlSource(path)) == [
        Record(event(0), Position(None, 0)),
        Unreadable(junk, f"not an event: {why}; the record is {junk!r}", Position(None, len(line(0)))),
        Record(event(1), Position(None, len(line(0)) + len(junk) + 1)),
    ]


def test_a_line_may_have_a_mebibyte_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    longest, longer = line(0)[:-1].ljust(1_048_576) + b"\n", line(1)[:-1].ljust(1_048_577) + b"\n"
    path.write_bytes(longest + longer + line(2))
    assert drained(JsonlSource(path)) == [
        Record(event(0), Position(None, 0)),
        Unreadable(longer[:4096], "the line is longer than 1048576 bytes", Position(None, len(longest))),
        Record(event(2), Position(None, len(longest) + len(longer))),
    ]


def test_a_very_long_line_is_cut_and_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    length = 64 * 1024 * 1024
    with path.open("wb") as file:
        file.write(line(0))
        file.truncate(len(line(0)) + length)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + line(1))
    tracemalloc.start()
    try:
        items = drained(JsonlSource(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert items == [
        Record(event(0), Position(None, 0)),
        Unreadable(
            b"\0" * 4096,
            "the line is longer than 1048576 bytes",
            Position(None, len(line(0))),
        ),
        Record(event(1), Position(None, len(line(0)) + length + 1)),
    ]
    assert peak < 8 * 1024 * 1024


def test_a_very_long_line_without_its_end_is_the_last(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * 1_100_000)
    reason = "the line is longer than 1048576 bytes"
    assert drained(JsonlSource(path)) == [Unreadable(b"x" * 4096, reason, Position(None, 0))]


def test_acknowledging_a_file_keeps_nothing(tmp_path: Path) -> None:
    """The next run reads everything again."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(2))
    with closing(JsonlSource(path)) as source:
        source.acknowledge([item.position for item in flat(source.read(1))])
    assert events_of(drained(JsonlSource(path))) == events(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            {"path": ""}, "the path '' cannot be a file's; name a file, or - for standard input or output", id="empty"
        ),
        pytest.param(
            {"path": "a\0b"},
            "the path 'a\\x00b' cannot be a file's; name a file, or - for standard input or output",
            id="NUL",
        ),
        pytest.param(
            {"path": "a.gz", "follow": True},
            "a.gz is gzip, which cannot be followed; read it without follow, or follow a plain file",
            id="gzip",
        ),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        JsonlSource(**arguments)
    assert str(refused.value) == message


@pytest.mark.parametrize("name", ["events.jsonl", "events.jsonl.gz"])
def test_a_file_that_is_not_there_is_an_error(tmp_path: Path, name: str) -> None:
    with closing(JsonlSource(tmp_path / name)) as source, pytest.raises(SourceError) as refused:
        source.read(1)
    assert str(refused.value) == refusal(tmp_path / name, "No such file or directory")


@pytest.mark.parametrize("follow", [False, True])
def test_a_folder_is_no_file(tmp_path: Path, follow: bool) -> None:
    with closing(JsonlSource(tmp_path, follow=follow)) as source, pytest.raises(SourceError) as refused:
        source.read(1)
    assert str(refused.value) == refusal(tmp_path, "it is not a regular file")


def test_a_named_pipe_is_no_file_and_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with closing(JsonlSource(path)) as source, pytest.raises(SourceError) as refused:
        source.read(1)
    assert str(refused.value) == refusal(path, "it is not a regular file")


@pytest.mark.usefixtures("unprivileged")
def test_a_file_that_must_not_be_read_is_an_error() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        path.touch(0o200)
        with closing(JsonlSource(path)) as source, pytest.raises(SourceError) as refused:
            source.read(1)
        assert str(refused.value) == refusal(path, "Permission denied")


def test_a_disk_that_fails_is_tried_again() -> None:
    with closing(JsonlSource("/proc/self/mem")) as source:
        for _ in range(2):
            with pytest.raises(UnavailableError) as unavailable:
                source.read(1)
            assert str(unavailable.value) == "/proc/self/mem cannot be read now: Input/output error"
            assert not isinstance(unavailable.value, MisconfiguredError)


def test_a_plain_file_says_how_much_of_it_has_been_read(tmp_path: Path) -> None:
    path, empty, packed = tmp_path / "events.jsonl", tmp_path / "empty.jsonl", tmp_path / "events.jsonl.gz"
    path.write_bytes(lines(10_000))
    empty.touch()
    with closing(JsonlSource(path)) as source:
        assert source.fraction_read == 0
        source.read(1)
        fraction = source.fraction_read
        assert fraction is not None
        assert 0 < fraction < 1
        drained(source)
        assert source.fraction_read == 1
    assert JsonlSource(empty).fraction_read == 1
    unknown = [JsonlSource(path, follow=True), JsonlSource(packed), JsonlSource("-"), JsonlSource(tmp_path / "missing")]
    assert [source.fraction_read for source in unknown] == [None] * 4


def test_a_closed_source_gives_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(1000))
    source = JsonlSource(path)
    assert len(flat(source.read(1))) == 512
    source.close()
    source.close()
    assert source.read(1) == []
    assert not source.has_ended


def test_a_source_that_was_never_read_can_be_closed() -> None:
    source = JsonlSource("events.jsonl")
    source.close()
    assert source.read(1) == []
