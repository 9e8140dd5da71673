"""Reading gzip: members, padding, and what a damage leaves."""

from __future__ import annotations

import gzip
import tempfile
import tracemalloc
import zlib
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from constellation_otel.delivery import Position, Record, Unreadable
from constellation_otel.transports.jsonl import JsonlSource
from transports.jsonl.helpers import drained, event, events, events_of, line, lines


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
        Unreadable(b" " * 4096, "the line is longer than 1048576 bytes", Position(None, 0)),
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


def test_gzip_with_a_wrong_checksum_gives_all_its_lines(tmp_path: Path) -> None:
    """And says so."""
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
def test_a_damaged_gzip_file_gives_a_beginning_of_its_events(
    data: st.DataObject,
) -> None:
    """And says once that it is damaged."""
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
