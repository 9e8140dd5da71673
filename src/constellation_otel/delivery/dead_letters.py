"""The dead-letter file: what could not be read, or was refused for good, with the reason.

JSON lines, appended, bounded in size. Nothing that is written here is lost
silently: where the file itself fails, that is logged and counted.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import threading
import time
from base64 import b64encode
from pathlib import Path
from typing import Final

import msgspec

from constellation_otel._support.fork import after_fork_in_child
from constellation_otel._support.log import RateLimitedLog

__all__ = ["DeadLetters"]

_LOGGER: Final = logging.getLogger(__name__)
_MAX_DATA: Final = 65_536
_LOCK_STEP: Final = 0.005


class DeadLetters:
    """Appends what nobody could take to a file, for a person to look at.

    A line is ``{"time_ns", "where", "reason", "data" | "data_base64"}``. It is written
    before the record is acknowledged. Lines are whole: what a full disk cuts short is taken
    out again, and a line that a crash has torn is ended before the next one. Several
    threads and processes may write to one file.

    Args:
        path: The file; it is made when there is something to write.
        max_bytes: When the file has grown to this, no more is written to it, which is
            logged; what comes then is only counted.
        lock_timeout: Seconds that a write waits for other threads and processes that write to the file.

    Attributes:
        written: Lines that were written.
        failed: What could not be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, max_bytes: int = 100 * 1024 * 1024, lock_timeout: float = 1.0
    ) -> None:
        self._path = Path(path)
        self._max_bytes = max_bytes
        self._lock_timeout = lock_timeout
        self._log = RateLimitedLog()
        self.written = 0
        self.failed = 0
        self._new_lock()
        after_fork_in_child(self._new_lock)

    def _new_lock(self) -> None:
        self._lock = threading.Lock()

    def write(self, where: str, reason: str, data: bytes) -> bool:
        """Writes one letter; never raises.

        Args:
            where: What it was for, or where it was read.
            reason: Why nobody took it.
            data: As it was; at most 64 KiB of it are kept.

        Returns:
            Whether it was written.
        """
        where, reason = (text.encode(errors="backslashreplace").decode() for text in (where, reason))
        letter: dict[str, object] = {"time_ns": time.time_ns(), "where": where, "reason": reason}
        kept = data[:_MAX_DATA]
        try:
            letter["data"] = kept.decode()
        except UnicodeDecodeError:
            letter["data_base64"] = b64encode(kept).decode()
        if len(data) > len(kept):
            letter["bytes"] = len(data)
        line = msgspec.json.encode(letter) + b"\n"
        error = self._append(line)
        if error is None:
            return True
        self._log.write(_LOGGER, logging.ERROR, "write", "dead letters are not written to %s: %s", self._path, error)
        return False

    def _append(self, line: bytes) -> str | None:
        """Writes a line, or nothing of it; says why where it did not."""
        error: str | None = None
        try:
            # a pipe that nobody reads is not waited for
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o644)
            try:
                self._write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as raised:
            error = raised.strerror or str(raised)
        with self._lock:
            if error is None:
                self.written += 1
            else:
                self.failed += 1
        return error

    def _write(self, descriptor: int, line: bytes) -> None:
        """Writes a line, or raises OSError."""
        _lock(descriptor, self._lock_timeout)
        status = os.fstat(descriptor)
        is_file = stat.S_ISREG(status.st_mode)
        if is_file and self._is_torn(status.st_size):
            line = b"\n" + line
        if status.st_size + len(line) > self._max_bytes:
            message = f"it has grown to {self._max_bytes} bytes; move it away"
            raise OSError(message)
        if os.write(descriptor, line) < len(line):
            message = "whoever reads it is too slow"
            if is_file:
                os.ftruncate(descriptor, status.st_size)
                message = "the disk is full; free some space"
            raise OSError(message)

    def _is_torn(self, size: int) -> bool:
        """Whether the file's last line has no end."""
        if not size:
            return False
        with self._path.open("rb") as file:
            file.seek(size - 1)
            return file.read(1) != b"\n"


def _lock(descriptor: int, timeout: float) -> None:
    """Waits until nobody else writes to the file; closing it lets go of the lock."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                message = f"another process has had it locked for {timeout} s; end that one, or name another file"
                raise OSError(message) from None
            time.sleep(_LOCK_STEP)
        else:
            return
