"""JSON lines over real files, pipes and full disks: what is read back is what was written, whatever lies between."""

from __future__ import annotations

import errno
import gzip
import logging
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import zlib
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation_otel.delivery import Position, Record, Unreadable
from constellation_otel.errors import ConfigurationError, GoneError, MisconfiguredError, SourceError, UnavailableError
from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
    clean_message,
    clean_name,
    encode_json,
)
from constellation_otel.transports.jsonl import JsonlSink, JsonlSource
from constellation_otel.transports.jsonl.jsonl import _Lines
from support import DEADLINE, eventually, small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from constellation_otel.delivery import Sink, Source

LOGGER = "constellation_otel.transports.jsonl.files"
NS = 1_795_465_363_577_123_456
SOON = 0.3
"""Seconds to wait for what is not to come."""


def event(number: int) -> Event:
    return ModuleStarted(UUID(int=number), UUID(int=number + 1), "Trim", NS + number)


def line(number: int) -> bytes:
    return encode_json(event(number)) + b"\n"


def lines(count: int, start: int = 0) -> bytes:
    return b"".join(map(line, range(start, start + count)))


def events(count: int, start: int = 0) -> list[Event]:
    return [event(number) for number in range(start, start + count)]


def drained(source: JsonlSource) -> list[Record | Unreadable]:
    """Everything that a source has, to its end."""
    items: list[Record | Unreadable] = []
    with closing(source):
        end = time.monotonic() + DEADLINE
        while not source.has_ended:
            assert time.monotonic() < end, f"not at its end within {DEADLINE} s"
            read = source.read(1)
            assert len(read) <= 512
            items += read
    return items


def awaited(source: JsonlSource, count: int) -> list[Record | Unreadable]:
    """The next items of a source, as many as are told."""
    items: list[Record | Unreadable] = []

    def is_enough() -> bool:
        items.extend(source.read(0.2))
        return len(items) >= count

    eventually(is_enough, f"{count} items")
    return items


def events_of(items: Sequence[Record | Unreadable]) -> list[Event]:
    return [item.event for item in items if isinstance(item, Record)]


def written(path: Path) -> list[Event]:
    """The events of a file in which there is nothing else."""
    items = drained(JsonlSource(path))
    assert [item for item in items if isinstance(item, Unreadable)] == []
    return events_of(items)


@contextmanager
def descriptor(number: int, file: int) -> Iterator[None]:
    """Another file as standard input or output of this process, for a while; it is closed in the end."""
    saved = os.dup(number)
    os.dup2(file, number)
    os.close(file)
    try:
        yield
    finally:
        os.dup2(saved, number)
        os.close(saved)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Nobody, where the tests are run by root, whom no permission stops."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(user)


def run_python(program: str, redirections: str = "") -> subprocess.CompletedProcess[str]:
    command = f'exec "$0" -W error -c "$1" {redirections}'
    arguments = ["bash", "-c", command, sys.executable, program]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)


# --- the source: what is in a file ----------------------------------------------------


def test_a_file_is_read_to_its_end_in_order_and_with_the_bytes_where_lines_begin(tmp_path: Path) -> None:
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
        assert source.read(0) == [Record(event(0), Position(None, 0))]
        assert source.read(0) == []
        assert source.has_ended
        assert source.read(0) == []


def test_an_empty_file_ends(tmp_path: Path) -> None:
    for name in ("events.jsonl", "events.jsonl.gz"):
        (tmp_path / name).write_bytes(b"")
        assert drained(JsonlSource(tmp_path / name)) == []


def test_blank_lines_are_nothing_and_a_carriage_return_is_none_of_the_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n\r\n  \t\n" + line(0)[:-1] + b"\r\n\n" + line(1))
    assert drained(JsonlSource(path)) == [
        Record(event(0), Position(None, 7)),
        Record(event(1), Position(None, 7 + len(line(0)) + 2)),
    ]


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
            "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
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


def test_a_line_may_be_as_long_as_max_line_and_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(0)[:-1] + b" \n" + line(1))
    length = len(line(0))
    assert drained(JsonlSource(path, max_line=length)) == [
        Record(event(0), Position(None, 0)),
        Record(event(1), Position(None, length + 1)),
    ]
    assert drained(JsonlSource(path, max_line=length - 1)) == [
        Unreadable(
            line(0)[:-1] + b" ",
            f"the line is longer than {length - 1} bytes; raise max_line to read it",
            Position(None, 0),
        ),
        Record(event(1), Position(None, length + 1)),
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
            "the line is longer than 1048576 bytes; raise max_line to read it",
            Position(None, len(line(0))),
        ),
        Record(event(1), Position(None, len(line(0)) + length + 1)),
    ]
    assert peak < 8 * 1024 * 1024


def test_a_very_long_line_without_its_end_is_the_last(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * 10_000)
    reason = "the line is longer than 100 bytes; raise max_line to read it"
    assert drained(JsonlSource(path, max_line=100)) == [Unreadable(b"x" * 4096, reason, Position(None, 0))]


def test_acknowledging_keeps_nothing_so_that_the_next_run_reads_everything_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(2))
    with closing(JsonlSource(path)) as source:
        source.acknowledge([item.position for item in source.read(1)])
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
        pytest.param({"path": "a", "max_line": 0}, "max_line=0 must be at least 1 byte", id="no line"),
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


def refusal(path: Path | str, why: str) -> str:
    return f"{path} cannot be read: {why}; name a file that is there and may be read, or - and redirect standard input"


@pytest.mark.parametrize("name", ["events.jsonl", "events.jsonl.gz"])
def test_a_file_that_is_not_there_is_an_error(tmp_path: Path, name: str) -> None:
    with closing(JsonlSource(tmp_path / name)) as source, pytest.raises(SourceError) as refused:
        source.read(1)
    assert str(refused.value) == refusal(tmp_path / name, "No such file or directory")


@pytest.mark.parametrize("follow", [False, True])
def test_a_folder_is_no_file(tmp_path: Path, follow: bool) -> None:
    with closing(JsonlSource(tmp_path, follow=follow)) as source, pytest.raises(SourceError) as refused:
        source.read(1)
    assert str(refused.value) == refusal(tmp_path, "it is no regular file")


def test_a_named_pipe_is_no_file_and_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with closing(JsonlSource(path)) as source, pytest.raises(SourceError) as refused:
        source.read(1)
    assert str(refused.value) == refusal(path, "it is no regular file")


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
    assert len(source.read(1)) == 512
    source.close()
    source.close()
    assert source.read(1) == []
    assert not source.has_ended


def test_a_source_that_was_never_read_can_be_closed() -> None:
    source = JsonlSource("events.jsonl")
    source.close()
    assert source.read(1) == []


# --- the source: gzip -----------------------------------------------------------------


def test_gzip_is_read_through_all_its_members_and_padding(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    torn_over_two = gzip.compress(line(2)[:30]) + gzip.compress(line(2)[30:])
    path.write_bytes(gzip.compress(lines(2)) + gzip.compress(b"") + torn_over_two + b"\0" * 600_000)
    assert drained(JsonlSource(path)) == [
        Record(event(number), Position(None, len(lines(number)))) for number in range(3)
    ]


def test_a_long_gzip_file_is_read_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(lines(5000), compresslevel=1))
    assert events_of(drained(JsonlSource(path))) == events(5000)


def test_gzip_that_unpacks_to_very_much_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    length = 32 * 1024 * 1024
    path.write_bytes(gzip.compress(b" " * length + b"\n" + line(0), compresslevel=1))
    tracemalloc.start()
    try:
        items = drained(JsonlSource(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert items == [
        Unreadable(b" " * 4096, "the line is longer than 1048576 bytes; raise max_line to read it", Position(None, 0)),
        Record(event(0), Position(None, length + 1)),
    ]
    assert peak < 8 * 1024 * 1024


def damaged(path: Path, why: str, offset: int) -> Unreadable:
    reason = f"{path} is damaged, nothing can be read from here on: {why}"
    return Unreadable(b"", reason, Position(None, offset))


def test_gzip_that_is_cut_off_gives_what_there_is_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    whole = gzip.compress(lines(5))
    path.write_bytes(whole[:-8])
    assert drained(JsonlSource(path)) == [
        *(Record(event(number), Position(None, len(lines(number)))) for number in range(5)),
        damaged(path, "the file is cut off in the middle", len(lines(5)) + 1),
    ]


def test_a_line_that_was_cut_off_with_its_gzip_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    stored = zlib.compressobj(level=0, wbits=31)
    data = stored.compress(lines(2)) + stored.flush()
    path.write_bytes(data[:-28])
    torn = line(1)[:-20]
    assert drained(JsonlSource(path)) == [
        Record(event(0), Position(None, 0)),
        Unreadable(
            torn,
            f"not an event: Input data was truncated; the record is {torn[:200]!r}…",
            Position(None, len(line(0))),
        ),
        damaged(path, "the file is cut off in the middle", len(lines(2)) - 19),
    ]


def test_gzip_with_a_wrong_checksum_gives_all_its_lines_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    whole = gzip.compress(lines(4000))
    path.write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:] + gzip.compress(line(9)))
    items = drained(JsonlSource(path))
    assert events_of(items) == events(4000)
    assert items[4000:] == [
        damaged(path, "Error -3 while decompressing data: incorrect data check", len(lines(4000)) + 1)
    ]


def test_what_is_no_gzip_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(lines(5))
    assert drained(JsonlSource(path)) == [damaged(path, "Error -3 while decompressing data: incorrect header check", 1)]


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_whatever_happens_to_a_gzip_file_gives_a_beginning_of_its_events_and_one_word_of_damage(
    data: st.DataObject,
) -> None:
    batches = [gzip.compress(lines(20, 20 * number)) for number in range(3)]
    whole = bytearray(b"".join(batches))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl.gz"
        path.write_bytes(whole)
        items = drained(JsonlSource(path))
    before = sum(1 for number in range(3) if at >= sum(map(len, batches[: number + 1])))
    assert events_of(items)[: 20 * before] == events(20 * before)
    unreadable = [item.reason for item in items if isinstance(item, Unreadable)]
    assert sum("is damaged" in reason for reason in unreadable) <= 1


# --- the source: a file that grows ----------------------------------------------------


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[JsonlSource]:
    with closing(JsonlSource(tmp_path / "events.jsonl", follow=True)) as source:
        yield source


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


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


def test_a_file_that_is_not_there_yet_is_waited_for_and_said_to_be_once(
    tmp_path: Path, followed: JsonlSource, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events.jsonl"
    with caplog.at_level(logging.INFO, LOGGER):
        assert followed.read(SOON) == []
        assert followed.read(0) == []
    assert caplog.messages == [f"{path} is not there yet; waiting for it"]
    append(path, line(0))
    assert awaited(followed, 1) == [Record(event(0), Position(None, 0))]


def test_a_file_that_is_replaced_is_read_to_its_end_before_the_new_one(
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


def test_what_is_written_to_the_old_file_just_after_it_was_replaced_is_not_lost(
    tmp_path: Path, followed: JsonlSource
) -> None:
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
    assert caplog.messages == [f"{path} was cut; reading it from its beginning again"]


def test_closing_ends_a_read_that_waits(followed: JsonlSource) -> None:
    reads: list[Sequence[Record | Unreadable]] = []
    thread = threading.Thread(target=lambda: reads.append(followed.read(DEADLINE)))
    thread.start()
    try:
        eventually(lambda: followed._is_reading, "the read to begin")
    finally:
        followed.close()
        thread.join(DEADLINE / 2)
    assert not thread.is_alive()
    assert reads == [[]]


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


# --- the source: standard input -------------------------------------------------------


def test_standard_input_may_be_a_pipe() -> None:
    far, near = os.pipe()
    with descriptor(0, far), closing(JsonlSource("-")) as source:
        began = time.monotonic()
        assert source.read(SOON) == []
        assert time.monotonic() - began >= SOON
        os.write(near, line(0) + line(1)[:9])
        assert awaited(source, 1) == [Record(event(0), Position(None, 0))]
        assert source.read(0) == []
        os.write(near, line(1)[9:-1])
        os.close(near)
        assert awaited(source, 1) == [Record(event(1), Position(None, len(line(0))))]
        eventually(lambda: source.read(0.1) == [] and source.has_ended, "the end")


def test_closing_ends_a_read_of_standard_input_that_waits() -> None:
    far, near = os.pipe()
    source = JsonlSource("-")
    thread = threading.Thread(target=source.read, args=(DEADLINE,))
    with descriptor(0, far):
        thread.start()
        try:
            eventually(lambda: source._is_reading, "the read to begin")
        finally:
            source.close()
            thread.join(DEADLINE / 2)
            os.close(near)
    assert not thread.is_alive()


def test_standard_input_may_be_a_terminal() -> None:
    near, far = os.openpty()
    with descriptor(0, far), closing(JsonlSource("-")) as source:
        os.write(near, line(0))
        assert events_of(awaited(source, 1)) == [event(0)]
        # a terminal's end of file
        os.write(near, b"\x04")
        eventually(lambda: source.read(0.1) == [] and source.has_ended, "the end")
    os.close(near)


def test_standard_input_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(2))
    with descriptor(0, os.open(path, os.O_RDONLY)):
        assert events_of(drained(JsonlSource("-"))) == events(2)


def test_standard_input_that_is_a_file_may_be_followed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(2))
    with descriptor(0, os.open(path, os.O_RDONLY)), closing(JsonlSource("-", follow=True)) as source:
        assert events_of(awaited(source, 2)) == events(2)
        assert source.read(0.01) == []
        append(path, line(2))
        assert events_of(awaited(source, 1)) == [event(2)]


def test_a_folder_is_no_standard_input(tmp_path: Path) -> None:
    with (
        descriptor(0, os.open(tmp_path, os.O_RDONLY)),
        closing(JsonlSource("-")) as source,
        pytest.raises(SourceError) as refused,
    ):
        source.read(1)
    assert str(refused.value) == refusal("standard input", "Is a directory")


def test_closed_standard_input_is_not_taken_for_another_file() -> None:
    program = "from constellation_otel.transports.jsonl.jsonl import JsonlSource; JsonlSource('-').read(1)"
    done = run_python(program, "<&-")
    assert done.stderr.splitlines()[-1] == (
        f"constellation_otel.errors.SourceError: {refusal('standard input', 'it is closed')}"
    )


# --- the sink: files ------------------------------------------------------------------

NAMES = ["events.jsonl", "events.jsonl.gz"]


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


def test_any_gzip_program_reads_what_was_sent_while_the_file_is_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(line(0)))
    with closing(JsonlSink(path)) as sink:
        for number in range(1, 4):
            sink.send([event(number)], 10)
            assert gzip.decompress(path.read_bytes()) == lines(number + 1)
            subprocess.run(["gzip", "--test", path], timeout=60, check=True)


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


@pytest.mark.parametrize("name", NAMES)
def test_a_sink_that_was_closed_goes_on_where_it_was(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    sink = JsonlSink(path)
    for number in range(3):
        sink.send([event(number)], 10)
        sink.close()
    assert written(path) == events(3)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_moved_away_is_created_again(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with closing(JsonlSink(path)) as sink:
        sink.send([event(0)], 10)
        path.rename(tmp_path / f"old-{name}")
        sink.send([event(1)], 10)
        path.unlink()
        sink.send([event(2)], 10)
    assert written(tmp_path / f"old-{name}") == [event(0)]
    assert written(path) == [event(2)]


def misconfiguration(path: Path, why: str) -> str:
    return f"{path} cannot be written: {why}; see that its folder is there, and that it is a file that may be written"


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
        assert misconfigured(path) == misconfiguration(path, "it is no regular file")


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


# --- the sink: crashes and full disks -------------------------------------------------


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


def test_a_torn_line_of_a_whole_gzip_file_is_ended_too(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(line(0)[:-1]) + gzip.compress(b""))
    with closing(JsonlSink(path)) as sink:
        sink.send([event(1)], 10)
    assert written(path) == events(2)


def test_wherever_a_crash_has_torn_a_gzip_batch_it_is_cut_off_and_nothing_else_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events.jsonl.gz"
    with closing(JsonlSink(path)) as sink:
        sink.send(events(2), 10)
        size = path.stat().st_size
        sink.send([event(7)], 10)
    whole = path.read_bytes()
    for cut in range(size + 1, len(whole)):
        path.write_bytes(whole[:cut])
        caplog.clear()
        with closing(JsonlSink(path)) as sink:
            sink.send([event(2)], 10)
        assert gzip.decompress(path.read_bytes()) == lines(3)
        assert caplog.messages == [
            f"{path} ends in a batch that was not written to its end; cutting off its {cut - size} bytes"
        ]


def test_zeros_that_a_power_failure_has_left_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(line(0)) + b"\0" * 5000)
    with closing(JsonlSink(path)) as sink:
        sink.send([event(1)], 10)
    assert gzip.decompress(path.read_bytes()) == lines(2)
    assert b"\0" * 100 not in path.read_bytes()


def test_a_torn_gzip_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    first = gzip.compress(line(0))
    path.write_bytes(first + gzip.compress(line(1), mtime=1)[:-1])
    assert misconfigured(path) == (
        f"{path} is cut off in a part, from byte {len(first)} on, that was written by something else;"
        " move it away, or mend it"
    )


def test_what_is_no_gzip_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(line(0))
    assert misconfigured(path) == (
        f"{path} is no gzip file, or is damaged, from byte 0 on:"
        " Error -3 while decompressing data: incorrect header check; move it away"
    )


def test_a_long_gzip_file_is_checked_over_as_many_calls_as_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    first, second = gzip.compress(lines(1500), 1), gzip.compress(lines(1500, 1500), 1)
    path.write_bytes(first + second)
    waits: list[UnavailableError] = []
    with closing(JsonlSink(path)) as sink:

        def is_sent() -> bool:
            try:
                sink.send([event(3000)], 0)
            except UnavailableError as error:
                waits.append(error)
                return False
            return True

        eventually(is_sent, "the event to be written")
    assert written(path) == events(3001)
    size = len(first) + len(second)
    said = [str(error) for error in waits]
    assert said[0] == f"{path} is being checked before it is written: 0 bytes of {size} so far"
    assert said[-1] == f"{path} is being checked before it is written: {size} bytes of {size} so far"
    assert {type(error) for error in waits} == {UnavailableError}


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


@pytest.mark.parametrize("name", NAMES)
def test_what_was_sent_outlives_a_kill_and_the_next_run_goes_on_behind_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
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


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_leaves_whole_lines_and_the_batch_is_written_when_there_is_room(tmp_path: Path, name: str) -> None:
    # ids that gzip cannot make shorter
    batch: list[Event] = [ModuleStarted(uuid4(), uuid4(), "Trim", NS) for _ in range(500)]
    with small_disk(tmp_path / "disk", "64k") as folder, closing(JsonlSink(folder / name)) as sink:
        path, filler = folder / name, folder / "filler"
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
        assert written(path) == [*events(2), *batch[:100]]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_that_is_written_in_part_is_taken_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with closing(JsonlSink(path)) as sink:
        sink.send(events(2), 10)
        before = path.read_bytes()
        with small_files(len(before) + 100), pytest.raises(UnavailableError) as unavailable:
            sink.send(events(50, 2), 10)
        assert str(unavailable.value) == f"{path} cannot be written now: File too large"
        assert path.read_bytes() == before
        sink.send(events(50, 2), 10)
    assert written(path) == events(52)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_that_the_disk_does_not_confirm_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
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


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_that_cannot_be_taken_back_is_mended_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
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
    assert torn == ([] if name.endswith(".gz") else [line(2)[:100]])


def test_a_torn_line_that_cannot_be_ended_now_is_ended_later(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(0)[:-1])
    with closing(JsonlSink(path)) as sink:
        with small_files(len(line(0)) - 1), pytest.raises(UnavailableError):
            sink.send([event(1)], 1)
        assert path.read_bytes() == line(0)[:-1]
        sink.send([event(1)], 1)
    assert path.read_bytes() == lines(2)


# --- the sink: standard output --------------------------------------------------------


def test_standard_output_gets_lines_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with closing(JsonlSink("-")) as sink:
        sink.send([event(0), event(1)], 10)
        assert capfd.readouterr().out.encode() == lines(2)
        sink.send([event(2)], 10)
        assert capfd.readouterr().out.encode() == line(2)


def long_events(count: int) -> list[Event]:
    """Events whose lines no pipe takes at once."""
    error = ErrorInfo("ValueError", "x" * 8_000)
    return [ModuleFailed(UUID(int=number), None, "Trim", error, NS + number) for number in range(count)]


@pytest.mark.parametrize("batch", [events(1500), long_events(50)], ids=["short lines", "long lines"])
def test_a_slow_reader_of_standard_output_gets_every_line_whole(batch: list[Event]) -> None:
    far, near = os.pipe()
    sink = JsonlSink("-")
    waiting, failures = list(batch), list[UnavailableError]()
    read: list[Record | Unreadable] = []
    with descriptor(0, far), descriptor(1, near), closing(JsonlSource("-")) as source:
        while waiting:
            try:
                sink.send(waiting, 0)
            except UnavailableError as unavailable:
                failures.append(unavailable)
                # a line that was written in part is sent again, and its rest comes first all the same
                waiting = waiting[len(unavailable.delivered) :]
                read += source.read(0)
            else:
                waiting = []

        def is_read() -> bool:
            read.extend(source.read(0.1))
            return {record.event for record in read if isinstance(record, Record)} == set(batch)

        eventually(is_read, "every event to be read")
    assert {str(error) for error in failures} == {"standard output cannot be written now: nobody reads it"}
    assert all(error.delivered == frozenset(range(len(error.delivered))) for error in failures)
    assert [item for item in read if isinstance(item, Unreadable)] == []


def test_the_rest_of_a_line_is_kept_however_often_it_cannot_be_written() -> None:
    far, near = os.pipe()
    sink = JsonlSink("-")
    with descriptor(0, far), descriptor(1, near), closing(JsonlSource("-")) as source:
        for _ in range(3):
            with pytest.raises(UnavailableError):
                sink.send(long_events(10), 0)
        items = awaited(source, 1)
        sink.send([event(1000)], 0)
        items += awaited(source, 1)
        assert events_of(items) == [*long_events(len(items) - 1), event(1000)]


def test_standard_output_that_nobody_can_read_any_more_is_gone() -> None:
    far, near = os.pipe()
    os.close(far)
    with descriptor(1, near), pytest.raises(GoneError) as error:
        JsonlSink("-").send([event(0)], 1)
    assert str(error.value) == ("nothing reads standard output: Broken pipe; start again with a reader, or name a file")
    assert isinstance(error.value.__cause__, BrokenPipeError)


def test_standard_output_may_be_on_a_full_disk() -> None:
    with descriptor(1, os.open("/dev/full", os.O_WRONLY)), pytest.raises(UnavailableError) as error:
        JsonlSink("-").send([event(0)], 1)
    assert str(error.value) == "standard output cannot be written now: No space left on device"
    assert not isinstance(error.value, MisconfiguredError)


def test_closed_standard_output_is_not_taken_for_another_file() -> None:
    program = """
from uuid import UUID
from constellation_otel.events import ExecutionCancelled
from constellation_otel.transports.jsonl import JsonlSink
JsonlSink("-").send([ExecutionCancelled(UUID(int=1), "pipeline", 1)], 1)
"""
    done = run_python(program, ">&-")
    assert done.stderr.splitlines()[-1] == (
        "constellation_otel.errors.GoneError: nothing reads standard output: it is closed;"
        " start again with a reader, or name a file"
    )


# --- laws -----------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
SOME_NAMES = TEXT.map(clean_name)
TIMES_NS = st.integers(0, 2**63 - 1)
DURATIONS = st.none() | st.integers(0, 2**51).map(lambda duration_ns: duration_ns / 1_000_000)
MODULE_IDS = st.none() | st.uuids()
ERRORS = st.builds(ErrorInfo, st.none() | SOME_NAMES, st.none() | TEXT.map(clean_message))

EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(ExecutionStarted, st.uuids(), SOME_NAMES, TIMES_NS, st.none() | TEXT.filter(bool), st.none()),
    st.builds(ModuleStarted, st.uuids(), MODULE_IDS, SOME_NAMES, TIMES_NS),
    st.builds(ModuleCompleted, st.uuids(), MODULE_IDS, SOME_NAMES, DURATIONS, TIMES_NS),
    st.builds(ModuleFailed, st.uuids(), MODULE_IDS, SOME_NAMES, ERRORS, TIMES_NS),
    st.builds(ExecutionCompleted, st.uuids(), SOME_NAMES, st.booleans(), DURATIONS, TIMES_NS),
    st.builds(ExecutionCancelled, st.uuids(), SOME_NAMES, TIMES_NS),
)
JUNK = st.one_of(
    # junk that is a line of its own, and an event that was torn
    st.binary(max_size=50).filter(lambda data: b"\n" not in data),
    st.tuples(EVENTS, st.integers(1, 60)).map(lambda torn: encode_json(torn[0])[: torn[1]]),
)


@settings(deadline=None)
@given(
    batches=st.lists(st.tuples(st.lists(EVENTS, min_size=1, max_size=4), st.none() | JUNK), max_size=4),
    is_gzip=st.booleans(),
)
def test_what_the_sink_has_written_the_source_reads_back_whatever_else_is_in_the_file(
    batches: list[tuple[list[Event], bytes | None]], is_gzip: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("events.jsonl.gz" if is_gzip else "events.jsonl")
        for batch, junk in batches:
            with closing(JsonlSink(path)) as sink:
                sink.send(batch, 10)
            if junk is not None:
                # without its end, as a crash leaves it
                append(path, gzip.compress(junk) if is_gzip else junk)
        items = drained(JsonlSource(path)) if batches else []
    assert events_of(items) == [event for batch, _ in batches for event in batch]
    assert [item.data for item in items if isinstance(item, Unreadable)] == [
        junk for _, junk in batches if junk is not None and junk.strip()
    ]
    offsets = [item.position.offset for item in items]
    assert offsets == sorted(set(offsets))


def all_lines(cut: _Lines, parts: Sequence[bytes]) -> list[tuple[int, bytes, bool]]:
    found: list[tuple[int, bytes, bool]] = []
    for part in parts:
        found += cut.feed(part)
    return found


@given(
    st.lists(st.lists(st.sampled_from([b"\n", b"x", b"longer than ten"])).map(b"".join)),
    st.integers(1, 12),
)
def test_lines_are_the_same_however_their_bytes_come(parts: list[bytes], max_line: int) -> None:
    whole = b"".join(parts) + b"\n"
    expected, offset = [], 0
    for text in whole[:-1].split(b"\n"):
        expected.append((offset, text, False) if len(text) <= max_line else (offset, None, True))
        offset += len(text) + 1
    for fed in ([*parts, b"\n"], [whole], [bytes((byte,)) for byte in whole]):
        cut = _Lines(max_line)
        found = all_lines(cut, fed)
        assert [(at, None if is_cut else data, is_cut) for at, data, is_cut in found] == expected
        assert all(whole[at:].startswith(data) for at, data, _ in found)
        assert cut.end == len(whole)


@pytest.mark.parametrize("name", ["events.jsonl", "events.jsonl.gz"])
def test_a_byte_order_mark_is_nothing(tmp_path: Path, name: str) -> None:
    """As editors write one at the beginning of a file, and programs before each line."""
    path = tmp_path / name
    marked = b"".join(b"\xef\xbb\xbf" + line(number) for number in range(2)) + b"\xef\xbb\xbf\n"
    path.write_bytes(gzip.compress(marked) if name.endswith("gz") else marked)
    assert events_of(drained(JsonlSource(path))) == events(2)
