"""What was read of a partition and what of it is acknowledged; nothing here connects.

An offset that a group commits says that all before it is acknowledged. What is acknowledged
beyond it stands in the metadata that brokers keep beside an offset, for the next reader.
"""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections import OrderedDict, deque
from typing import Final

from msgspec import msgpack

__all__ = ["Partition"]

_METADATA: Final = "constellation-otel/1 "
"""How what is committed beside an offset begins, where it is ours."""


class Partition:
    """What was read of a partition and is not acknowledged.

    Args:
        number: The partition's.
        first: The first offset that may be read.

    Attributes:
        number: The partition's.
        outstanding: Offsets, ascending, since that is how they are read.
        is_changed: Whether something was acknowledged since a commit was asked for.
    """

    def __init__(self, number: int, first: int) -> None:
        self.number = number
        self.outstanding: OrderedDict[int, None] = OrderedDict()
        self.is_changed = False
        self._next = first
        # of a predecessor's outstanding ones, those that have not come here
        self._awaited: deque[int] = deque()

    def resume(self, committed: int, metadata: str) -> None:
        """Takes over what a predecessor had outstanding, from what it committed; foreign metadata is ignored."""
        if metadata.startswith(_METADATA):
            data = zlib.decompress(b64decode(metadata[len(_METADATA) :]))
            count, *steps = msgpack.decode(data, type=list[int])
            self._next = committed + count
            for step in steps:
                committed += step
                self._awaited.append(committed)
            self.outstanding = OrderedDict.fromkeys(self._awaited)

    def read(self, offset: int) -> bool:
        """Takes note of a record; whether it is not acknowledged yet."""
        while self._awaited and self._awaited[0] <= offset:
            awaited = self._awaited.popleft()
            if awaited < offset:
                # it is deleted
                self.acknowledge(awaited)
        if offset >= self._next:
            self.outstanding[offset] = None
            self._next = offset + 1
        return offset in self.outstanding

    def acknowledge(self, offset: int) -> None:
        if offset in self.outstanding:
            del self.outstanding[offset]
            self.is_changed = True

    @property
    def safe(self) -> int:
        """The offset that a successor has to start with: the first that is not acknowledged."""
        return next(iter(self.outstanding), self._next)

    @property
    def metadata(self) -> str:
        """What a successor has to know beside that, for :meth:`resume`."""
        before = self.safe
        steps = [self._next - before]
        for offset in self.outstanding:
            steps.append(offset - before)
            before = offset
        return _METADATA + b64encode(zlib.compress(msgpack.encode(steps))).decode()
