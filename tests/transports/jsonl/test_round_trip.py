"""What the sink writes the source reads, whatever lies between."""

from __future__ import annotations

import gzip
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation_otel.delivery import Unreadable
from constellation_otel.events import (
    Event,
    clean_message,
    clean_name,
    encode_json,
)
from constellation_otel.transports.jsonl import JsonlSink, JsonlSource
from constellation_otel.transports.jsonl.source import _Lines
from strategies import any_event
from support import UNWATCHED
from transports.jsonl.helpers import append, drained, events, events_of, line

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = UNWATCHED


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
SOME_NAMES = TEXT.map(clean_name)
HEADERS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=50)
DURATIONS = st.none() | st.integers(0, 2**51).map(lambda duration_ns: duration_ns / 1_000_000)
EVENTS = any_event(SOME_NAMES, DURATIONS, messages=TEXT.map(clean_message), traceparents=HEADERS)
JUNK = st.one_of(
    # junk that is a line of its own, and an event that was torn
    st.binary(max_size=50).filter(lambda data: b"\n" not in data),
    st.tuples(EVENTS, st.integers(1, 60)).map(lambda torn: encode_json(torn[0])[: torn[1]]),
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(EVENTS, min_size=1, max_size=4), st.none() | JUNK), max_size=4))
def test_what_the_sink_has_written_the_source_reads_back(
    batches: list[tuple[list[Event], bytes | None]],
) -> None:
    """Whatever else is in the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        for batch, junk in batches:
            with closing(JsonlSink(path)) as sink:
                sink.send(batch, 10)
            if junk is not None:
                # without its end, as a crash leaves it
                append(path, junk)
        items = drained(JsonlSource(path)) if batches else []
    assert events_of(items) == [event for batch, _ in batches for event in batch]
    assert [item.data for item in items if isinstance(item, Unreadable)] == [
        junk for _, junk in batches if junk is not None and junk.strip()
    ]
    offsets = [item.position.offset for item in items]
    assert offsets == sorted(set(offsets))


def all_lines(cut: _Lines, parts: Iterable[bytes]) -> list[tuple[int, bytes, bool]]:
    found: list[tuple[int, bytes, bool]] = []
    for part in parts:
        offsets, lines, is_too_long = cut.feed(part)
        whole = [line.removesuffix(b"\n") for line in lines]
        found += zip(offsets, whole, [is_too_long, *[False] * len(lines)], strict=False)
    return found


@given(
    st.lists(st.sampled_from([b"\n", b"x", b"longer than ten"])).map(b"".join),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_lines_are_the_same_however_their_bytes_come(whole: bytes, max_line: int, size: int) -> None:
    """In parts that are no longer than a line may be."""
    whole += b"\n"
    expected, offset = [], 0
    for text in whole[:-1].split(b"\n"):
        expected.append((offset, text, False) if len(text) <= max_line else (offset, None, True))
        offset += len(text) + 1
    size = min(size, max_line)
    cut = _Lines(max_line)
    found = all_lines(cut, (whole[first : first + size] for first in range(0, len(whole), size)))
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
