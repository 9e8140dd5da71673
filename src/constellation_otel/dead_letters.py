"""The dead-letter file: what could not be read, or was refused for good, with the reason.

JSON lines, appended, bounded in size. Nothing that is written here is lost
silently: where the file itself fails, that is logged and counted.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from base64 import b64encode
from pathlib import Path
from typing import Final

import msgspec

from constellation_otel._fork import after_fork_in_child
from constellation_otel._log import RateLimitedLog

__all__ = ["DeadLetters"]

_LOGGER: Final = logging.getLogger(__name__)
_MAX_DATA: Final = 65_536


class DeadLetters:
    """Appends what nobody could take to a file, for a person to look at.

    A line is ``{"time_ns", "where", "reason", "data" | "data_base64"}``. It is written
    before the record is acknowledged. Safe to use from several threads.

    Args:
        path: The file; it is made when there is something to write.
        max_bytes: When the file has grown to this, no more is written to it, which is
            logged; what comes then is only counted.

    Attributes:
        written: Lines that were written.
        failed: What could not be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int = 100 * 1024 * 1024) -> None:
        self._path = Path(path)
        self._max_bytes = max_bytes
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
        """Writes a line in one call, so that several processes may share the file; says why where it did not."""
        descriptor = None
        error: str | None = None
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            if os.fstat(descriptor).st_size + len(line) > self._max_bytes:
                error = f"it has grown to {self._max_bytes} bytes; move it away"
            elif os.write(descriptor, line) < len(line):
                error = "the disk is full"
        except OSError as raised:
            error = str(raised)
        finally:
            if descriptor is not None:
                os.close(descriptor)
        with self._lock:
            if error is None:
                self.written += 1
            else:
                self.failed += 1
        return error
