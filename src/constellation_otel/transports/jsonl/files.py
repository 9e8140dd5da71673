"""Where the bytes of JSON lines come from and go to: files that grow, are replaced or torn, pipes and terminals.

Lines and events are the business of ``source`` and ``sink``.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import stat
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from constellation_otel._support.log import RateLimitedLog, log
from constellation_otel._support.places import names_of_file
from constellation_otel.errors import ConfigurationError, GoneError, MisconfiguredError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CHUNK",
    "LASTING",
    "STANDARD",
    "Appended",
    "Followed",
    "Pipe",
    "StandardOutput",
    "UnusableError",
    "Unzipped",
    "checked_path",
    "open_regular",
    "places_of",
]

_LOGGER: Final = logging.getLogger(__package__)
_STANDARD_OUTPUT: Final = 1
_GZIP: Final = 16 + zlib.MAX_WBITS
STANDARD: Final = "-"
"""The path of standard input and output."""
CHUNK: Final = 256 * 1024
"""Bytes that are read at a time."""
_GRACE: Final = 0.1
"""Seconds that a file which was replaced is read on."""


class UnusableError(OSError):
    """A folder, a named pipe or a device is where a file should be, or a standard stream is closed."""


LASTING: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, UnusableError)
"""What does not get better by itself."""


class Pipe:
    """Standard input that is a pipe or a terminal; it is read only where that does not wait."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout: float) -> bool:
        """Waits for bytes or the end; returns whether there is either."""
        return bool(self._poll.poll(timeout * 1000))

    def read(self, size: int, /) -> bytes | None:
        """The next bytes; none where they have yet to come; empty ones at the end."""
        return os.read(self._descriptor, size) if self.wait(0) else None

    def close(self) -> None:
        """Does nothing: it is closed where it was opened."""


class Unzipped:
    """A gzip file, uncompressed: all of its members (RFC 1952, 2.2), and none of the zeros that pad it.

    Args:
        file: Closed by :meth:`close`.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._member: zlib._Decompress | None = None
        self._input = b""
        self._error: zlib.error | None = None

    def read(self, size: int, /) -> bytes:
        """The next bytes; empty ones at the end.

        Raises:
            EOFError: The file is cut off.
            zlib.error: It is damaged; all that comes before was given.
        """
        while self._error is None:
            self._input = self._input or self._file.read(size)
            is_end = not self._input
            if self._member is None:
                if is_end:
                    return b""
                # a power failure, or a tape, pads with zeros
                self._input = self._input.lstrip(b"\0")
                if not self._input:
                    continue
                self._member = zlib.decompressobj(_GZIP)
            data = self._inflate(self._member, size)
            if data:
                return data
            if is_end:
                message = "the file is cut off in the middle"
                raise EOFError(message)
        raise self._error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _inflate(self, member: zlib._Decompress, size: int) -> bytes:
        before = member.copy()
        try:
            data = member.decompress(self._input, size)
        except zlib.error as error:
            self._error = error
            return _up_to_the_damage(before, self._input)
        if member.eof:
            self._member, self._input = None, member.unused_data
        else:
            self._input = member.unconsumed_tail
        return data


def _up_to_the_damage(member: zlib._Decompress, data: bytes) -> bytes:
    """What comes of data that is known to raise: of one byte after the other until one does."""
    good = io.BytesIO()
    with suppress(zlib.error):
        good.writelines(map(member.decompress, (bytes((byte,)) for byte in data)))
    return good.getvalue()


class Followed:
    """A file that grows, is cut, and is replaced by a new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.FileIO | None = None
        # since when another file is at the path, or none
        self._left_at: float | None = None
        self._is_awaited = False
        self._log = RateLimitedLog()

    def read(self, size: int, /) -> bytes:
        """The next bytes; empty ones where they have yet to come."""
        if self._file is None:
            self._file = self._opened()
        if self._file is None:
            return b""
        return self._file.read(size) or self._at_end(self._file)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _at_end(self, file: io.FileIO) -> bytes:
        """Goes on with a new file, where there is one; its first byte ends the old one's last line."""
        if os.fstat(file.fileno()).st_size < file.tell():
            message = "%s was cut; reading it again from its beginning"
            self._log.write(_LOGGER, logging.INFO, "cut", message, self._path)
            file.seek(0)
            return b"\n"
        if _is_at(self._path, file):
            self._left_at = None
            return b""
        now = time.monotonic()
        self._left_at = self._left_at or now
        # a writer that has the old one open may be about to write to it
        new = self._opened() if now >= self._left_at + _GRACE else None
        if new is None:
            return b""
        self._log.write(_LOGGER, logging.INFO, "replaced", "%s was replaced; reading the new file", self._path)
        file.close()
        self._file, self._left_at = new, None
        return b"\n"

    def _opened(self) -> io.FileIO | None:
        try:
            file = open_regular(self._path)
        except FileNotFoundError:
            if not self._is_awaited:
                log(_LOGGER, logging.INFO, "%s is not there yet; waiting for it", self._path)
            self._is_awaited = True
            return None
        self._is_awaited = False
        return file


class Appended:
    """A file whose lines are whole, before a write and after it, whether it succeeds or not.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._file: io.FileIO | None = None
        # what has to come before the next line; none where the file has yet to be looked at
        self._first: bytes | None = None

    def write(self, lines: Sequence[bytes], deadline: float) -> None:  # noqa: ARG002 - a disk takes its time
        """Appends lines, all or none; ``JsonlSink.send`` says what it raises, and the deadline is a monotonic time."""
        try:
            file = self._opened()
            if self._first is None:
                self._first = self._line_end(file)
            self._append(file, self._first, b"".join(lines))
        except LASTING as error:
            message = (
                f"{self._path} cannot be written: {error.strerror};"
                " check that its folder exists, and that it is a file that may be written"
            )
            raise MisconfiguredError(message) from error
        except OSError as error:
            message = f"{self._path} cannot be written now: {error.strerror}"
            raise UnavailableError(message) from error

    def close(self) -> None:
        """Closes the file; the next write opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> io.FileIO:
        if self._file is not None and not _is_at(self._path, self._file):
            self.close()
        if self._file is None:
            self._file = open_regular(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            self._first = None
        return self._file

    def _line_end(self, file: io.FileIO) -> bytes:
        """What has to come first, so that a line that a crash has torn spoils no other."""
        size = os.fstat(file.fileno()).st_size
        if not size or os.pread(file.fileno(), 1, size - 1) == b"\n":
            return b""
        log(_LOGGER, logging.WARNING, "%s ends in the middle of a line; ending the line", self._path)
        return b"\n"

    def _append(self, file: io.FileIO, first: bytes, data: bytes) -> None:
        size = os.fstat(file.fileno()).st_size
        rest = memoryview(first + data)
        self._first = None
        try:
            while rest:
                rest = rest[os.write(file.fileno(), rest) :]
            os.fsync(file.fileno())
        except OSError:
            # where this fails too, the file is looked at again before it is next written
            os.ftruncate(file.fileno(), size)
            self._first = first
            raise
        self._first = b""


class StandardOutput:
    """Lines on standard output, which may be a pipe whose reader is slow."""

    def __init__(self) -> None:
        # of a line that was written in part
        self._rest = b""

    def write(self, lines: Sequence[bytes], deadline: float) -> None:
        """Writes lines, behind the rest of the one that the last call has not ended; it raises as the file's does."""
        for index, line in enumerate([self._rest, *lines]):
            self._rest = line
            try:
                while self._rest:
                    self._wait(deadline)
                    # a pipe that can be written at all takes as much at once
                    self._rest = self._rest[os.write(_STANDARD_OUTPUT, self._rest[: select.PIPE_BUF]) :]
            except OSError as error:
                if index and self._rest is line:
                    # nothing of it was written, and it is sent again
                    self._rest = b""
                if isinstance(error, BrokenPipeError | UnusableError):
                    message = (
                        f"nothing reads standard output: {error.strerror}; start again with a reader, or name a file"
                    )
                    raise GoneError(message) from error
                message = f"standard output cannot be written now: {error.strerror}"
                raise UnavailableError(message, delivered=frozenset(range(index - 1))) from error

    def close(self) -> None:
        """Does nothing: it is closed where it was opened."""

    def _wait(self, deadline: float) -> None:
        # without this, the descriptor may be that of any file that was opened since
        if sys.__stdout__ is None:
            raise UnusableError(errno.EBADF, "it is closed")
        poll = select.poll()
        poll.register(_STANDARD_OUTPUT, select.POLLOUT)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "nobody reads it")


def open_regular(path: str | Path, flags: int = os.O_RDONLY) -> io.FileIO:
    """Opens a file, unbuffered, and nothing else: a named pipe would have it wait.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnusableError(errno.EINVAL, "it is not a regular file")
    return io.FileIO(descriptor, "r+" if flags & os.O_RDWR else "r")


def _is_at(path: Path, file: io.FileIO) -> bool:
    """Whether a file that is open is still the one at its path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def checked_path(path: str | Path) -> str:
    """The path as text, if it can be one at all."""
    text = str(path)
    if not text or "\0" in text:
        message = f"the path {text!r} cannot be a file's; name a file, or - for standard input or output"
        raise ConfigurationError(message)
    return text


def places_of(url: str) -> set[tuple[object, ...]]:
    """The file that a URL names, by each of its names."""
    return {("jsonl", name) for name in names_of_file(url.partition(":")[2])}
