"""Events from a JSON lines file or standard input: lines are cut here, and their bytes come from ``files``."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
import threading
import time
import zlib
from codecs import BOM_UTF8
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeAlias

from constellation_otel._support.deadline import deadline_of
from constellation_otel.delivery import Batch, BatchBuilder, Position, Source, Unreadable
from constellation_otel.errors import ConfigurationError, SourceError, UnavailableError
from constellation_otel.events import plain_events, read_json
from constellation_otel.transports.jsonl.files import (
    CHUNK,
    LASTING,
    STANDARD,
    Followed,
    Pipe,
    UnusableError,
    Unzipped,
    checked_path,
    open_regular,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constellation_otel.delivery import Restarted, Revoked, SourceItem
    from constellation_otel.transports.url import SourceOptions

__all__ = ["JsonlSource"]

_STANDARD_INPUT: Final = 0
_MAX_ITEMS: Final = 512
_MAX_LINE: Final = 1_048_576
"""Bytes of a line, at most."""
_SHOWN: Final = 4096
"""Bytes that are kept of a line that is too long."""
_POLL: Final = 0.1
"""Seconds between two looks at a file that grows, and until a close is noticed at the latest."""
_Input: TypeAlias = io.FileIO | Followed | Unzipped | Pipe
"""What bytes are read from: ``None`` where they have yet to come, empty ones at the end of what there is."""


class JsonlSource(Source):
    """Reads events from a JSON lines file, plain or gzip, or from standard input.

    What is not an event (junk, foreign JSON, a torn line) is an
    :class:`~constellation_otel.delivery.Unreadable`, and reading goes on behind it;
    a line of more than 1 MiB is one, with its first 4 KiB, and is not held in memory.
    Blank lines are nothing, and so is a byte order mark before a line. A gzip file that
    is cut off or corrupt gives what comes before the damage, then one ``Unreadable`` that
    says so, and has ended.

    A position's offset is where its line begins, in bytes of the uncompressed
    stream; where a followed file is replaced, the next one's bytes count on from it.

    Nothing is opened before the first :meth:`read`. Nothing is kept between runs: the
    next one reads a file from its beginning.

    Args:
        path: The file; one that ends in ``.gz`` is gzip. ``-`` is standard input.
        follow: Whether to go on at the end of the file, as ``tail -F`` does, instead of
            ending there. A file that is not there yet is waited for; a line without its
            end is, too. One that is replaced is read to its end, and a tenth of a second
            longer, before the new one; one that is cut is read from its beginning again
            (unless it has grown beyond where it was before the next look, which cannot
            be seen). A pipe ends with its writers all the same.

    Raises:
        ConfigurationError: The path cannot be one, or a gzip file is to be followed.
    """

    def __init__(self, path: str | Path, *, follow: bool = False) -> None:
        self._path = checked_path(path)
        self._is_gzip = self._path.endswith(".gz")
        if follow and self._is_gzip:
            message = f"{self._path} is gzip, which cannot be followed; read it without follow, or follow a plain file"
            raise ConfigurationError(message)
        self._said = "standard input" if self._path == STANDARD else self._path
        self._follow = follow
        self._lines = _Lines(_MAX_LINE)
        # of the bytes that were read last
        self._rest = _NO_LINES
        self._damage: list[Unreadable] = []
        self._input: _Input | None = None
        self._is_at_end = self._has_ended = False
        self._closed = threading.Event()
        self._wait: Callable[[float], object] = self._closed.wait
        self._is_reading = False

    @classmethod
    def from_url(cls, url: str, options: SourceOptions) -> Self:
        """Makes one from ``jsonl:file``, or ``jsonl:-``; everything behind the colon is the path."""
        return cls(url.partition(":")[2], follow=options.follow)

    @property
    def name(self) -> str:
        """The URL: ``jsonl:`` and the path."""
        return f"jsonl:{self._path}"

    @property
    def is_durable(self) -> bool:
        """Whether it is a file, which the next run reads again from its beginning; standard input is gone."""
        return self._path != STANDARD

    @property
    def has_ended(self) -> bool:
        """Whether everything has been read; never of a file that is followed, nor where it was closed before."""
        return self._has_ended

    @property
    def fraction_read(self) -> float | None:
        """How much of a plain file has been read, from 0 to 1; ``None`` of what has no known length."""
        if self._follow or self._is_gzip or self._path == STANDARD:
            return None
        try:
            size = Path(self._path).stat().st_size
        except OSError:
            return None
        return min(1.0, self._lines.end / size) if size else 1.0

    def read(self, timeout: float) -> Sequence[SourceItem]:
        """Reads the lines that are there, 512 at most.

        Args:
            timeout: Seconds to wait for the first one.

        Returns:
            The events and what could not be read as one, in order; an empty list where
            nothing came in time, at the end, and once this is closed.

        Raises:
            SourceError: There is no such file (and it is not waited for), it is no regular
                file, or it must not be read.
            UnavailableError: The system could not read it now.
        """
        deadline = deadline_of(timeout)
        # set before it looks whether this is closed, as close() does it the other way round: one of them lets go
        self._is_reading = True
        try:
            return self._read(deadline)
        except LASTING as error:
            message = (
                f"{self._said} cannot be read: {error.strerror};"
                " name a file that is there and may be read, or - and redirect standard input"
            )
            raise SourceError(message) from error
        except OSError as error:
            message = f"{self._said} cannot be read now: {error.strerror}"
            raise UnavailableError(message) from error
        finally:
            self._is_reading = False
            if self._closed.is_set():
                self._release()

    def close(self) -> None:
        """Closes the file, and ends a :meth:`read` that waits within a tenth of a second; may be called twice."""
        self._closed.set()
        # a file is never closed under who reads it: the descriptor may be another file's by then
        if not self._is_reading:
            self._release()

    def _release(self) -> None:
        if self._input is not None:
            self._input.close()

    def _read(self, deadline: float) -> list[Batch | Unreadable | Revoked | Restarted]:
        is_late = False
        while not (self._closed.is_set() or self._has_ended):
            if self._rest.lines:
                cut, self._rest = self._rest.cut(_MAX_ITEMS)
                items = _items_of(cut)
                if items:
                    return items
                continue
            damage, self._damage = self._damage, []
            self._has_ended = self._is_at_end and not damage
            if damage or self._has_ended or is_late:
                return [*damage]
            # with no time at all it still looks once
            is_late = time.monotonic() >= deadline
            self._fetch(deadline)
        return []

    def _fetch(self, deadline: float) -> None:
        """Gets some bytes, or the end; waits where there are neither, but not for long."""
        if self._input is None:
            self._input = self._open()
        try:
            data = self._input.read(CHUNK)
        except (EOFError, zlib.error) as error:
            reason = f"{self._path} is damaged, nothing can be read from here on: {error}"
            # behind the end of the last line, which comes with the end of the file
            self._damage = [Unreadable(b"", reason, Position(None, self._lines.end + 1))]
            data = b""
        if data:
            self._rest = self._lines.feed(data)
        elif data is None or self._follow:
            self._wait(min(_POLL, max(0.0, deadline - time.monotonic())))
        else:
            # a last line without its end is a line
            self._rest = self._lines.feed(b"\n")
            self._is_at_end = True

    def _open(self) -> _Input:
        if self._path == STANDARD:
            return self._open_standard()
        if self._follow:
            return Followed(Path(self._path))
        file = open_regular(self._path)
        return Unzipped(file) if self._is_gzip else file

    def _open_standard(self) -> _Input:
        # without this, the descriptor may be that of any file that was opened since
        if sys.__stdin__ is None:
            raise UnusableError(errno.EBADF, "it is closed")
        if stat.S_ISREG(os.fstat(_STANDARD_INPUT).st_mode):
            return io.FileIO(_STANDARD_INPUT, closefd=False)
        pipe = Pipe(_STANDARD_INPUT)
        self._wait, self._follow = pipe.wait, False
        return pipe


def _items_of(cut: _Cut) -> list[Batch | Unreadable | Revoked | Restarted]:
    """What lines are; a blank one is nothing."""
    is_too_long = cut.is_first_too_long
    events = None if is_too_long else plain_events(cut.lines)
    if events is not None:
        return [Batch(events, cut.offsets)]
    gathered = BatchBuilder()
    for offset, data in zip(cut.offsets, cut.lines, strict=True):
        if is_too_long:
            reason = f"the line is longer than {_MAX_LINE} bytes"
            gathered.put(Unreadable(data, reason, Position(None, offset)))
        elif data.removeprefix(BOM_UTF8).strip():
            gathered.decode(read_json, data.removesuffix(b"\n"), offset)
        is_too_long = False
    return gathered.items


class _Cut(NamedTuple):
    """Lines.

    Attributes:
        offsets: Where each begins.
        lines: What it is, mostly with its end.
        is_first_too_long: Whether of the first one that is only the beginning.
    """

    offsets: list[int]
    lines: list[bytes]
    is_first_too_long: bool

    def cut(self, count: int) -> tuple[_Cut, _Cut]:
        """The first ones, and the others."""
        first = _Cut(self.offsets[:count], self.lines[:count], self.is_first_too_long)
        return first, _Cut(self.offsets[count:], self.lines[count:], False)


_NO_LINES: Final = _Cut([], [], False)


class _Lines:
    """Cuts bytes into lines, and holds no more of one than it may have."""

    def __init__(self, max_line: int) -> None:
        self._max_line = max_line
        # of the line that has yet to end: its beginning, where it begins, and how long it is so far
        self._held = bytearray()
        self._offset = 0
        self._length = 0

    @property
    def end(self) -> int:
        """The offset behind everything that was fed."""
        return self._offset + self._length

    def feed(self, data: bytes) -> _Cut:
        """The lines that end with these bytes, which are no more than a line may have; the first may be too long."""
        # several times as fast as to split them
        lines = io.BytesIO(data).readlines()
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        if not lines:
            self._hold(rest)
            return _NO_LINES
        self._hold(lines[0])
        is_too_long = self._length > self._max_line + 1
        lengths = [self._length, *map(len, lines[1:])]
        lines[0] = bytes(self._held[:_SHOWN] if is_too_long else self._held)
        offsets = [*accumulate(lengths, initial=self._offset)]
        self._offset, self._length = offsets.pop(), 0
        self._held.clear()
        self._hold(rest)
        return _Cut(offsets, lines, is_too_long)

    def _hold(self, part: bytes) -> None:
        room = max(self._max_line, _SHOWN) - len(self._held)
        self._held += part[:room]
        self._length += len(part)
