"""A log that cannot be flooded.

The same complaint is written at most once an interval; the next one that gets
through says how many were held back. All of them are counted.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from constellation_otel._fork import after_fork_in_child

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Hashable

__all__ = ["RateLimitedLog"]

_MAX_KEYS = 1024


class RateLimitedLog:
    """Writes to a logger, each key at most once per ``interval`` seconds.

    Args:
        interval: Seconds between two records of one key.
        clock: Seconds, monotonic.

    Attributes:
        count: Records asked for so far, written or held back.
    """

    def __init__(self, interval: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self.count = 0
        self._keys: dict[Hashable, tuple[float, int]] = {}
        self._new_lock()
        after_fork_in_child(self._new_lock)

    def _new_lock(self) -> None:
        self._lock = threading.Lock()

    def write(
        self,
        logger: logging.Logger,
        level: int,
        key: Hashable,
        message: str,
        *args: object,
        error: BaseException | None = None,
    ) -> bool:
        """Writes one record, or holds it back.

        Args:
            logger: Where to.
            level: The record's level.
            key: Records with the same key share one allowance.
            message: In the logging module's % style.
            *args: The message's values; not formatted where it is held back.
            error: Logged with its traceback.

        Returns:
            Whether it was written.
        """
        now = self._clock()
        with self._lock:
            self.count += 1
            allowed_at, held_back = self._keys.get(key, (now, 0))
            if now < allowed_at:
                self._keys[key] = (allowed_at, held_back + 1)
                return False
            if len(self._keys) >= _MAX_KEYS:
                self._keys.clear()
            self._keys[key] = (now + self._interval, 0)
        if held_back:
            message += " (%d more like it since the last such record)"
            args = (*args, held_back)
        logger.log(level, message, *args, exc_info=error)
        return True
