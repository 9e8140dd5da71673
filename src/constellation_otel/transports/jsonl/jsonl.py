"""JSON lines: events in a file, on standard input and on standard output, one a line.

The lines are the guide's JSON, which ``dialects`` writes and reads. How they get into
a file so that a crash breaks none, and out of one that grows or is replaced, is in
``_jsonl_files``.
"""

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
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, Unpack

from constellation_otel._support.deadline import deadline_of
from constellation_otel.delivery import ListenerOptions, Position, Record, TransportListener, Unreadable, item_of
from constellation_otel.errors import ConfigurationError, SourceError, UnavailableError
from constellation_otel.events import encode_json, read_json
from constellation_otel.transports.jsonl.files import (
    CHUNK,
    LASTING,
    Appended,
    Followed,
    Pipe,
    StandardOutput,
    UnusableError,
    open_regular,
)
from constellation_otel.transports.jsonl.gzip_members import Members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from constellation_otel.delivery import Rejection
    from constellation_otel.events import Event

__all__ = ["JsonlListener", "JsonlSink", "JsonlSource"]

_STANDARD: Final = "-"
_STANDARD_INPUT: Final = 0
_MAX_ITEMS: Final = 512
_SHOWN: Final = 4096
"""Bytes that are kept of a line that is too long."""
_POLL: Final = 0.1
"""Seconds between two looks at a file that grows, and until a close is noticed at the latest."""
_Input: TypeAlias = io.FileIO | Followed | Members | Pipe
"""What bytes are read from: ``None`` where they have yet to come, empty ones at the end of what there is."""


class JsonlSource:
    """Reads events from a JSON lines file, plain or gzip, or from standard input.

    What is no event (junk, foreign JSON, a torn line) is an
    :class:`~constellation_otel.delivery.contract.Unreadable`, and reading goes on behind it;
    blank lines are nothing, and so is a byte order mark before a line. A gzip file that
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
            (unless it has grown beyond where it was before the next look, which nobody
            can see). A pipe ends with its writers all the same.
        max_line: Bytes of a line, at most. A longer one is ``Unreadable``, with its first
            4 KiB, and is not held in memory.

    Raises:
        ConfigurationError: The path cannot be one, ``max_line`` is below 1, or a gzip file
            is to be followed.
    """

    is_ordered: Final = False

    def __init__(self, path: str | Path, *, follow: bool = False, max_line: int = 1_048_576) -> None:
        self._path = _checked(path)
        if max_line < 1:
            message = f"max_line={max_line!r} must be at least 1 byte"
            raise ConfigurationError(message)
        self._is_gzip = self._path.endswith(".gz")
        if follow and self._is_gzip:
            message = f"{self._path} is gzip, which cannot be followed; read it without follow, or follow a plain file"
            raise ConfigurationError(message)
        self._said = "standard input" if self._path == _STANDARD else self._path
        self._follow = follow
        self._max_line = max_line
        self._lines = _Lines(max_line)
        # of the bytes that were read last
        self._items: Iterator[Record | Unreadable] = iter(())
        self._input: _Input | None = None
        self._is_at_end = self._has_ended = False
        self._closed = threading.Event()
        self._wait: Callable[[float], object] = self._closed.wait
        self._is_reading = False

    @property
    def name(self) -> str:
        """The URL: ``jsonl:`` and the path."""
        return f"jsonl:{self._path}"

    @property
    def is_durable(self) -> bool:
        """Whether it is a file, which the next run reads again from its beginning; standard input is gone."""
        return self._path != _STANDARD

    @property
    def has_ended(self) -> bool:
        """Whether everything has been read; never of a file that is followed, nor where it was closed before."""
        return self._has_ended

    @property
    def fraction_read(self) -> float | None:
        """How much of a plain file has been read, from 0 to 1; ``None`` of what has no known length."""
        if self._follow or self._is_gzip or self._path == _STANDARD:
            return None
        try:
            size = Path(self._path).stat().st_size
        except OSError:
            return None
        return min(1.0, self._lines.end / size) if size else 1.0

    def read(self, timeout: float) -> Sequence[Record | Unreadable]:
        """Reads the lines that are there, 512 at most.

        Args:
            timeout: Seconds to wait for the first one.

        Returns:
            The events and what is none, in order; none where none came in time, at the
            end, and once this is closed.

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

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Does nothing: no position is kept between runs."""

    def close(self) -> None:
        """Closes the file, and ends a :meth:`read` that waits within a tenth of a second; may be called twice."""
        self._closed.set()
        # a file is never closed under who reads it: the descriptor may be another file's by then
        if not self._is_reading:
            self._release()

    def _release(self) -> None:
        if self._input is not None:
            self._input.close()

    def _read(self, deadline: float) -> list[Record | Unreadable]:
        is_late = False
        while not (self._closed.is_set() or self._has_ended):
            items = list(islice(self._items, _MAX_ITEMS))
            self._has_ended = self._is_at_end and not items
            if items or is_late or self._has_ended:
                return items
            # with no time at all it still looks once
            is_late = time.monotonic() >= deadline
            self._fetch(deadline)
        return []

    def _fetch(self, deadline: float) -> None:
        """Gets some bytes, or the end; waits where there are neither, but not for long."""
        if self._input is None:
            self._input = self._open()
        damage: list[Unreadable] = []
        try:
            data = self._input.read(CHUNK)
        except (EOFError, zlib.error) as error:
            reason = f"{self._path} is damaged, nothing can be read from here on: {error}"
            # behind the end of the last line, which comes with the end of the file
            damage.append(Unreadable(b"", reason, Position(None, self._lines.end + 1)))
            data = b""
        if data:
            self._items = self._items_of(self._lines.feed(data))
        elif data is None or self._follow:
            self._wait(min(_POLL, max(0.0, deadline - time.monotonic())))
        else:
            # a last line without its end is a line
            self._items = chain(self._items_of(self._lines.feed(b"\n")), damage)
            self._is_at_end = True

    def _items_of(self, lines: Iterable[_Line]) -> Iterator[Record | Unreadable]:
        for line in lines:
            position = Position(None, line.offset)
            if line.is_cut:
                reason = f"the line is longer than {self._max_line} bytes; raise max_line to read it"
                yield Unreadable(line.data, reason, position)
            elif line.data.removeprefix(BOM_UTF8).strip():
                yield item_of(read_json, line.data, position)

    def _open(self) -> _Input:
        if self._path == _STANDARD:
            return self._open_standard()
        if self._follow:
            return Followed(Path(self._path))
        file = open_regular(self._path)
        return Members(file) if self._is_gzip else file

    def _open_standard(self) -> _Input:
        # without this, the descriptor may be that of any file that was opened since
        if sys.__stdin__ is None:
            raise UnusableError(errno.EBADF, "it is closed")
        if stat.S_ISREG(os.fstat(_STANDARD_INPUT).st_mode):
            return io.FileIO(_STANDARD_INPUT, closefd=False)
        pipe = Pipe(_STANDARD_INPUT)
        self._wait, self._follow = pipe.wait, False
        return pipe


class JsonlSink:
    """Appends events to a JSON lines file, plain or gzip, or to standard output.

    When :meth:`send` returns, the lines are on the disk: they outlive a crash of the
    process and of the machine. A batch that fails, as on a full disk, leaves no part of
    it in the file. A line that a crash has torn is ended when the file is next opened,
    so that it is the only one that cannot be read.

    In a gzip file every batch is a member of its own (RFC 1952, 2.2), so that whatever
    was sent is a whole gzip file, too. A member that a crash has torn is cut off when
    the file is next opened, which reads it through once, over as many calls as that
    takes; it was in no batch that had returned.

    A file is created where there is none, with the mode that the umask leaves of 0o666,
    and again where it is moved away; its folder is not created. One process at a time
    writes a file.

    Standard output gets the lines at once, and they are as safe as who reads them makes
    them. One who reads slowly is waited for; the rest of a line that was written in part
    comes first the next time.

    Nothing is opened before the first :meth:`send`.

    Args:
        path: The file; one that ends in ``.gz`` is gzip. ``-`` is standard output.

    Raises:
        ConfigurationError: The path cannot be one.
    """

    name: Final = "jsonl"
    takes: Final = "events"
    max_batch: Final = 512

    def __init__(self, path: str | Path) -> None:
        checked = _checked(path)
        self._output = StandardOutput() if checked == _STANDARD else Appended(checked)

    def send(self, items: Sequence[Event], timeout: float) -> Sequence[Rejection]:
        """Appends a line for each event.

        Args:
            items: The events.
            timeout: Seconds; how long a disk takes is the system's business.

        Returns:
            Nothing: no event is refused.

        Raises:
            MisconfiguredError: The folder is not there, the file must not be written, or is
                none, or is damaged gzip.
            GoneError: The program that read standard output has ended, as ``head`` does.
            UnavailableError: The disk is full, or failed, and the file is as before; or
                standard output is read too slowly, and ``delivered`` says what it has.
        """
        self._output.write([encode_json(event) + b"\n" for event in items], deadline_of(timeout))
        return ()

    def close(self) -> None:
        """Closes the file; standard output stays open."""
        self._output.close()


class JsonlListener(TransportListener):
    """Appends every event to a JSON lines file, in the background.

    Its lines are what :class:`JsonlSink` writes.

    Args:
        path: The file; one that ends in ``.gz`` is gzip. ``-`` is standard output.
        **options: See :class:`~constellation_otel.delivery.ready_listener.ListenerOptions`.

    Raises:
        ConfigurationError: The path cannot be one.
        JournalError: The journal cannot be used.
    """

    def __init__(self, path: str | Path, **options: Unpack[ListenerOptions]) -> None:
        super().__init__(JsonlSink(path), **options)


class _Line(NamedTuple):
    offset: int
    data: bytes
    is_cut: bool


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

    def feed(self, data: bytes) -> Iterator[_Line]:
        """The lines that end with these bytes, without their ends, or the heads of those that are too long."""
        first, *others = data.split(b"\n")
        self._hold(first)
        for other in others:
            is_cut = self._length > self._max_line
            yield _Line(self._offset, bytes(self._held[:_SHOWN] if is_cut else self._held), is_cut)
            self._offset += self._length + 1
            self._length = 0
            self._held.clear()
            self._hold(other)

    def _hold(self, part: bytes) -> None:
        room = max(self._max_line, _SHOWN) - len(self._held)
        self._held += part[:room]
        self._length += len(part)


def _checked(path: str | Path) -> str:
    """The path as text, if it can be one at all."""
    text = str(path)
    if not text or "\0" in text:
        message = f"the path {text!r} cannot be a file's; name a file, or - for standard input or output"
        raise ConfigurationError(message)
    return text
