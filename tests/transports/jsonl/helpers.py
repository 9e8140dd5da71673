"""Events as lines, and what a source gives of them."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

from constellation_otel.delivery import Record, Unreadable
from constellation_otel.events import (
    Event,
    ModuleStarted,
    encode_json,
)
from deliveries import flat
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from constellation_otel.transports.jsonl import JsonlSource


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
            read = flat(source.read(1))
            assert len(read) <= 512
            items += read
    return items


def awaited(source: JsonlSource, count: int) -> list[Record | Unreadable]:
    """The next items of a source, as many as are told."""
    items: list[Record | Unreadable] = []

    def is_enough() -> bool:
        items.extend(flat(source.read(0.2)))
        return len(items) >= count

    eventually(is_enough, f"{count} items")
    return items


def events_of(items: Sequence[Record | Unreadable]) -> list[Event]:
    return [item.event for item in items if isinstance(item, Record)]


def refusal(path: Path | str, why: str) -> str:
    return f"{path} cannot be read: {why}; name a file that is there and may be read, or - and redirect standard input"


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
