"""Gzip as a file of members (RFC 1952, 2.2): writing one, and reading them all with an eye on what is whole."""

from __future__ import annotations

import io
import zlib
from contextlib import suppress
from typing import Final

__all__ = ["MEMBER_HEADER", "Members", "member_of"]

_GZIP: Final = 16 + zlib.MAX_WBITS
MEMBER_HEADER: Final = zlib.compress(b"", wbits=_GZIP)[:10]
"""What :func:`member_of` begins a member with (RFC 1952, 2.3): no name in it, and no time."""


class Members:
    """Uncompresses a gzip file, and knows how far it is whole.

    Args:
        file: Read from its beginning; closed by :meth:`close`.

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
        self._tail = data[-1:] or self._tail
        if member.eof:
            self._member = None
            self._input = member.unused_data
            self.whole = self._read - len(self._input)
            self.last_byte = self._tail
        else:
            self._input = member.unconsumed_tail
        return data


def member_of(data: bytes) -> bytes:
    """A whole member."""
    return zlib.compress(data, wbits=_GZIP)


def _up_to_the_damage(member: zlib._Decompress, data: bytes) -> bytes:
    """What comes of data that is known to raise: of one byte after the other until one does."""
    good = io.BytesIO()
    with suppress(zlib.error):
        good.writelines(map(member.decompress, (bytes((byte,)) for byte in data)))
    return good.getvalue()
