"""JSON lines: events in a file, on standard input and on standard output, one a line.

The lines are the guide's JSON, which ``dialects`` writes and reads; here is how
they get into a file so that a crash breaks none, and out of one that grows, is
replaced, or is full of something else.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import stat
import struct
import sys
import threading
import time
import zlib
from contextlib import suppress
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Unpack

from constellation_otel._log import RateLimitedLog
from constellation_otel.delivery import Position, Record, Unreadable
from constellation_otel.dialects import decode_json, encode_json
from constellation_otel.errors import (
    ConfigurationError,
    DecodeError,
    MisconfiguredError,
    SourceError,
    UnavailableError,
)
from constellation_otel.transports._listener import ListenerOptions, TransportListener

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constellation_otel.delivery import Rejection
    from constellation_otel.events import Event

__all__ = ["JsonlListener", "JsonlSink", "JsonlSource"]

_LOGGER: Final = logging.getLogger(__name__)
_STANDARD: Final = "-"
_STANDARD_INPUT: Final = 0
_STANDARD_OUTPUT: Final = 1
_MAX_ITEMS: Final = 512
_CHUNK: Final = 256 * 1024
"""Bytes that are read at a time."""
_SHOWN: Final = 4096
"""Bytes that are kept of a line that is too long."""
_POLL: Final = 0.1
"""Seconds between two looks at a file that grows, and until a close is noticed at the latest."""
_GZIP: Final = 16 + zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
_MEMBER_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""RFC 1952, 2.3: deflate, no flags, no time, unknown system. What this sink begins a member with."""


class _UnusableError(OSError):
    """A folder, a named pipe or a device is where a file should be, or a standard stream is closed."""


_LASTING: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, _UnusableError)
"""What stays as it is until somebody changes it."""


class JsonlSource:
    """Reads events from a JSON lines file, plain or gzip, or from standard input.

    What is no event (junk, foreign JSON, a torn line) is an
    :class:`~constellation_otel.delivery.Unreadable`, and reading goes on behind it;
    blank lines are nothing. A gzip file that is cut off or corrupt gives what comes
    before the damage, then one ``Unreadable`` that says so, and has ended.

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
        if follow and _is_gzip(self._path):
            message = f"{self._path} is gzip, which cannot be followed; read it without follow, or follow a plain file"
            raise ConfigurationError(message)
        self._follow = follow
        self._max_line = max_line
        self._lines = _Lines(max_line)
        self._closed = threading.Event()
        self._input: _Input | None = None
        self._wait: Callable[[float], object] = self._closed.wait
        # what comes after the last line: why there is no more, where that has to be said
        self._last: list[Unreadable] | None = None
        self._has_ended = False
        self._lock = threading.Lock()
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
        deadline = time.monotonic() + timeout
        with self._lock:
            if self._closed.is_set() or self._has_ended:
                return []
            self._is_reading = True
        try:
            return self._read(deadline)
        except _LASTING as error:
            message = (
                f"{self._said} cannot be read: {error.strerror};"
                " name a file that is there and may be read, or - and redirect standard input"
            )
            raise SourceError(message) from error
        except OSError as error:
            message = f"{self._said} cannot be read now: {error.strerror}"
            raise UnavailableError(message) from error
        finally:
            with self._lock:
                self._is_reading = False
            if self._closed.is_set():
                self._release()

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Does nothing: no position is kept between runs."""

    def close(self) -> None:
        """Closes the file, and ends a :meth:`read` that waits within a tenth of a second; may be called twice."""
        self._closed.set()
        with self._lock:
            # a file is never closed under who reads it: the descriptor may be another file's by then
            is_reading = self._is_reading
        if not is_reading:
            self._release()

    @property
    def _said(self) -> str:
        return "standard input" if self._path == _STANDARD else self._path

    def _release(self) -> None:
        if self._input is not None:
            self._input.close()

    def _read(self, deadline: float) -> list[Record | Unreadable]:
        is_late = False
        while True:
            items = self._take()
            if items or is_late or self._has_ended or self._closed.is_set():
                return items
            # with no time at all it still looks once
            is_late = time.monotonic() >= deadline
            self._fetch(deadline)

    def _take(self) -> list[Record | Unreadable]:
        """Makes items of the lines that are here; after the last one, of the end."""
        made = (self._item(line) for line in iter(self._lines.next, None))
        items = list(islice((item for item in made if item is not None), _MAX_ITEMS))
        if items or self._last is None:
            return items
        self._has_ended = True
        return [*self._last]

    def _item(self, line: _Line) -> Record | Unreadable | None:
        """What a line is; nothing where it is blank."""
        position = Position(None, line.offset)
        if line.is_cut:
            reason = f"the line is longer than {self._max_line} bytes; raise max_line to read it"
            return Unreadable(line.data, reason, position)
        if not line.data.strip():
            return None
        try:
            return Record(decode_json(line.data), position)
        except DecodeError as error:
            return Unreadable(line.data, str(error), position)

    def _fetch(self, deadline: float) -> None:
        """Gets some bytes, or the end; waits where there are neither, but not for long."""
        if self._input is None:
            self._input = self._open()
        try:
            data = self._input.read(_CHUNK)
        except (EOFError, zlib.error) as error:
            self._end(f"{self._path} is damaged, nothing can be read from here on: {error}")
            return
        if data is None:
            self._wait(min(_POLL, max(0.0, deadline - time.monotonic())))
        elif data:
            self._lines.feed(data)
        else:
            self._end(None)

    def _end(self, reason: str | None) -> None:
        # a last line without its end is a line
        self._lines.feed(b"\n")
        self._last = [] if reason is None else [Unreadable(b"", reason, Position(None, self._lines.end))]

    def _open(self) -> _Input:
        if self._path == _STANDARD:
            return self._open_standard()
        if self._follow:
            return _Followed(Path(self._path))
        file = _open_regular(self._path, os.O_RDONLY)
        return _Members(file) if _is_gzip(self._path) else file

    def _open_standard(self) -> _Input:
        # without this, the descriptor may be that of any file that was opened since
        if sys.__stdin__ is None:
            raise _UnusableError(errno.EBADF, "it is closed")
        if stat.S_ISREG(os.fstat(_STANDARD_INPUT).st_mode):
            file = io.FileIO(_STANDARD_INPUT, closefd=False)
            return _Growing(file) if self._follow else file
        pipe = _Pipe(_STANDARD_INPUT)
        self._wait = pipe.wait
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
        self._output = _StandardOutput() if checked == _STANDARD else _Appended(checked)

    def send(self, items: Sequence[Event], timeout: float) -> Sequence[Rejection]:
        """Appends a line for each event.

        Args:
            items: The events.
            timeout: Seconds; how long a disk takes is the system's business.

        Returns:
            Nothing: no event is refused.

        Raises:
            MisconfiguredError: The folder is not there, the file must not be written, or is
                none, or is damaged gzip; or the program that read standard output has
                ended, and only starting both again helps. The last has BrokenPipeError as
                its cause, so that who runs in front of ``head`` can end instead.
            UnavailableError: The disk is full, or failed, and the file is as before; or
                standard output is read too slowly, and ``delivered`` says what it has.
        """
        self._output.write([encode_json(event) + b"\n" for event in items], time.monotonic() + timeout)
        return ()

    def close(self) -> None:
        """Closes the file; standard output stays open."""
        self._output.close()


class JsonlListener(TransportListener):
    """Appends every event to a JSON lines file, in the background.

    Its lines are what :class:`JsonlSink` writes.

    Args:
        path: The file; one that ends in ``.gz`` is gzip. ``-`` is standard output.
        **options: See :class:`~constellation_otel.transports._listener.ListenerOptions`.

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
        self._held = bytearray()
        # of the first byte that is held
        self._offset = 0
        # no line's end is before it
        self._searched = 0
        self._is_skipping = False

    @property
    def end(self) -> int:
        """The offset behind everything that was fed."""
        return self._offset + len(self._held)

    def feed(self, data: bytes) -> None:
        self._held += data

    def next(self) -> _Line | None:
        """The next whole line without its end, or the head of one that is too long; none where it is not there yet."""
        if self._is_skipping:
            self._skip()
        end = self._held.find(b"\n", self._searched)
        length = len(self._held) if end < 0 else end
        if length > self._max_line:
            head = bytes(self._held[: min(length, _SHOWN)])
            line = _Line(self._offset, head, is_cut=True)
            self._skip()
            return line
        if end < 0:
            self._searched = length
            return None
        line = _Line(self._offset, bytes(self._held[:end]), is_cut=False)
        self._drop(end + 1)
        return line

    def _skip(self) -> None:
        """Drops what is here of a line that is too long, up to its end."""
        end = self._held.find(b"\n", self._searched)
        self._is_skipping = end < 0
        self._drop(len(self._held) if end < 0 else end + 1)

    def _drop(self, count: int) -> None:
        del self._held[:count]
        self._offset += count
        self._searched = 0


class _Input(Protocol):
    """What a source reads bytes from."""

    def read(self, size: int, /) -> bytes | None:
        """The next bytes; none where they have yet to come; empty ones at the end."""

    def close(self) -> None: ...


class _Pipe:
    """Standard input that is a pipe or a terminal; it is read only where that does not wait."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout: float) -> bool:
        """Waits for bytes or the end; returns whether there is either."""
        return bool(self._poll.poll(timeout * 1000))

    def read(self, size: int, /) -> bytes | None:
        return os.read(self._descriptor, size) if self.wait(0) else None

    def close(self) -> None:
        """Does nothing: whoever opened it closes it."""


class _Growing:
    """Standard input that is a file, and has no end."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file

    def read(self, size: int, /) -> bytes | None:
        return self._file.read(size) or None

    def close(self) -> None:
        self._file.close()


class _Followed:
    """A file that grows, is cut, and is replaced by a new one; it has no end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.FileIO | None = None
        # what will be read next, and since when it is open
        self._new: io.FileIO | None = None
        self._new_since = 0.0
        self._is_awaited = False
        self._log = RateLimitedLog()

    def read(self, size: int, /) -> bytes | None:
        if self._file is None:
            self._file = self._opened()
        if self._file is None:
            return None
        return self._file.read(size) or self._at_end(self._file)

    def close(self) -> None:
        for file in filter(None, (self._file, self._new)):
            file.close()

    def _at_end(self, file: io.FileIO) -> bytes | None:
        """Goes on with a new file, where there is one; its first byte ends the old one's last line."""
        if os.fstat(file.fileno()).st_size < file.tell():
            message = "%s was cut; reading it from its beginning again"
            self._log.write(_LOGGER, logging.INFO, "cut", message, self._path)
            file.seek(0)
            return b"\n"
        if self._new is None:
            if not _is_at(self._path, file):
                self._new, self._new_since = self._opened(), time.monotonic()
            return None
        if time.monotonic() < self._new_since + _POLL:
            # whoever had the old one open may be about to write to it
            return None
        self._log.write(_LOGGER, logging.INFO, "replaced", "%s was replaced; reading the new file", self._path)
        file.close()
        self._file, self._new = self._new, None
        return b"\n"

    def _opened(self) -> io.FileIO | None:
        try:
            file = _open_regular(self._path, os.O_RDONLY)
        except FileNotFoundError:
            if not self._is_awaited:
                _LOGGER.info("%s is not there yet; waiting for it", self._path)
            self._is_awaited = True
            return None
        self._is_awaited = False
        return file


class _Members:
    """Uncompresses a gzip file, and knows how far it is whole.

    Attributes:
        whole: Bytes of the file up to where its last whole member ends.
        last_byte: The last byte that came of whole members.
    """

    def __init__(self, file: io.FileIO) -> None:
        file.seek(0)
        self._file = file
        self._member: zlib._Decompress | None = None
        self._input = b""
        self._read = 0
        self._tail = b""
        self._error: zlib.error | None = None
        self.whole = 0
        self.last_byte = b""

    def read(self, size: int, /) -> bytes:
        """The next bytes; empty ones at the end.

        Raises:
            EOFError: The file is cut off.
            zlib.error: It is damaged; all that comes before was given.
        """
        while self._error is None:
            if not self._input:
                self._input = self._file.read(size)
                self._read += len(self._input)
            if self._member is None:
                if not self._input:
                    return b""
                # a power failure, or a tape, pads with zeros
                self._input = self._input.lstrip(b"\0")
                if not self._input:
                    continue
                self._member = zlib.decompressobj(_GZIP)
            is_end = not self._input
            data = self._inflate(self._member, size)
            if data:
                return data
            if is_end:
                message = "the file is cut off in the middle"
                raise EOFError(message)
        raise self._error

    def close(self) -> None:
        self._file.close()

    def _inflate(self, member: zlib._Decompress, size: int) -> bytes:
        before = member.copy()
        try:
            data = member.decompress(self._input, size)
        except zlib.error as error:
            self._error = error
            return _up_to_the_damage(before, self._input)
        self._tail = data[-1:] or self._tail
        if member.eof:
            self._member = None
            self._input = member.unused_data
            self.whole = self._read - len(self._input)
            self.last_byte = self._tail
        else:
            self._input = member.unconsumed_tail
        return data


class _Appended:
    """A file whose lines are whole, before a write and after it, whether it succeeds or not."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._is_gzip = _is_gzip(path)
        self._file: io.FileIO | None = None
        # whether the file is known to end with a whole line, and a whole member
        self._is_whole = False
        self._members: _Members | None = None

    def write(self, lines: Sequence[bytes], deadline: float) -> None:
        try:
            file = self._opened()
            if not self._is_whole:
                self._mend(file, deadline)
            self._append(file, b"".join(lines))
        except _LASTING as error:
            message = (
                f"{self._path} cannot be written: {error.strerror};"
                " see that its folder is there, and that it is a file that may be written"
            )
            raise MisconfiguredError(message) from error
        except OSError as error:
            message = f"{self._path} cannot be written now: {error.strerror}"
            raise UnavailableError(message) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> io.FileIO:
        if self._file is not None and not _is_at(self._path, self._file):
            self.close()
        if self._file is None:
            self._file = _open_regular(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            self._is_whole = False
            self._members = None
        return self._file

    def _mend(self, file: io.FileIO, deadline: float) -> None:
        """Ends what a crash has left half written, so that what follows can be read."""
        size = os.fstat(file.fileno()).st_size
        last_byte = self._cut_torn_member(file, size, deadline) if self._is_gzip else _byte_before(file, size)
        if last_byte not in {b"", b"\n"}:
            _LOGGER.warning("%s ends in the middle of a line; ending the line", self._path)
            self._append(file, b"\n")
        self._is_whole = True

    def _cut_torn_member(self, file: io.FileIO, size: int, deadline: float) -> bytes:
        """Returns the last byte that is left, uncompressed."""
        members = self._members = self._members or _Members(file)
        # not the end: then what is behind the last whole member is looked at
        with suppress(EOFError):
            self._check(members, size, deadline)
        self._members = None
        torn = os.pread(file.fileno(), len(_MEMBER_HEADER), members.whole)
        if not _MEMBER_HEADER.startswith(torn.rstrip(b"\0")):
            message = (
                f"{self._path} is cut off in a part, from byte {members.whole} on, that was written by"
                " something else; move it away, or mend it"
            )
            raise MisconfiguredError(message)
        if torn:
            message = "%s ends in a batch that was not written to its end; cutting off its %d bytes"
            _LOGGER.warning(message, self._path, size - members.whole)
            os.ftruncate(file.fileno(), members.whole)
        return members.last_byte

    def _check(self, members: _Members, size: int, deadline: float) -> None:
        """Reads members to the end of the last whole one.

        Raises:
            EOFError: It is not the end of the file.
            MisconfiguredError: Not all of it is gzip.
            UnavailableError: There is not enough time; the next call goes on from there.
        """
        try:
            while members.read(_CHUNK):
                if time.monotonic() >= deadline:
                    message = (
                        f"{self._path} is being checked before it is written: {members.whole} bytes of {size} so far"
                    )
                    raise UnavailableError(message)
        except zlib.error as error:
            message = (
                f"{self._path} is no gzip file, or is damaged, from byte {members.whole} on: {error}; move it away"
            )
            raise MisconfiguredError(message) from error

    def _append(self, file: io.FileIO, data: bytes) -> None:
        size = os.fstat(file.fileno()).st_size
        rest = memoryview(_member_of(data) if self._is_gzip else data)
        was_whole, self._is_whole = self._is_whole, False
        try:
            while rest:
                rest = rest[os.write(file.fileno(), rest) :]
            os.fsync(file.fileno())
        except OSError:
            # where this fails too, the file is mended before it is next written
            os.ftruncate(file.fileno(), size)
            self._is_whole = was_whole
            raise
        self._is_whole = True


class _StandardOutput:
    """Lines on standard output, which may be a pipe whose reader is slow."""

    def __init__(self) -> None:
        # of a line that was written in part
        self._rest = b""

    def write(self, lines: Sequence[bytes], deadline: float) -> None:
        data = self._rest + b"".join(lines)
        ends = list(accumulate(map(len, lines), initial=len(self._rest)))
        written = 0
        try:
            while written < len(data):
                self._wait(deadline)
                # a pipe that can be written at all takes as much at once
                written += os.write(_STANDARD_OUTPUT, data[written : written + select.PIPE_BUF])
        except OSError as error:
            self._rest = data[written : next(end for end in ends if end >= written)]
            if isinstance(error, BrokenPipeError | _UnusableError):
                message = f"nothing reads standard output: {error.strerror}; start again with a reader, or name a file"
                raise MisconfiguredError(message) from error
            message = f"standard output cannot be written now: {error.strerror}"
            delivered = frozenset(index for index, end in enumerate(ends[1:]) if end <= written)
            raise UnavailableError(message, delivered=delivered) from error
        self._rest = b""

    def close(self) -> None:
        """Does nothing: whoever opened it closes it."""

    def _wait(self, deadline: float) -> None:
        # without this, the descriptor may be that of any file that was opened since
        if sys.__stdout__ is None:
            raise _UnusableError(errno.EBADF, "it is closed")
        poll = select.poll()
        poll.register(_STANDARD_OUTPUT, select.POLLOUT)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "nobody reads it")


def _checked(path: str | Path) -> str:
    """The path as text, if it can be one at all."""
    text = str(path)
    if not text or "\0" in text:
        message = f"the path {text!r} cannot be a file's; name a file, or - for standard input or output"
        raise ConfigurationError(message)
    return text


def _is_gzip(path: str) -> bool:
    return path.endswith(".gz")


def _open_regular(path: str | Path, flags: int) -> io.FileIO:
    """Opens a file, unbuffered, and nothing else: a named pipe would have it wait."""
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _UnusableError(errno.EINVAL, "it is no regular file")
    return io.FileIO(descriptor, "r+" if flags & os.O_RDWR else "r")


def _is_at(path: Path, file: io.FileIO) -> bool:
    """Whether a file that is open is still the one at its path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _byte_before(file: io.FileIO, offset: int) -> bytes:
    return os.pread(file.fileno(), 1, offset - 1) if offset else b""


def _member_of(data: bytes) -> bytes:
    """A whole gzip member (RFC 1952, 2.3)."""
    deflate = zlib.compressobj(wbits=_RAW)
    trailer = struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)
    return b"".join((_MEMBER_HEADER, deflate.compress(data), deflate.flush(), trailer))


def _up_to_the_damage(member: zlib._Decompress, data: bytes) -> bytes:
    """What comes of data that is known to raise: of one byte after the other until one does."""
    good = io.BytesIO()
    with suppress(zlib.error):
        good.writelines(map(member.decompress, (bytes((byte,)) for byte in data)))
    return good.getvalue()
