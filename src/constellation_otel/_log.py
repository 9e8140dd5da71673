"""A log that cannot be flooded.

The same complaint is written at most once an interval; the next one that gets
through says how many were held back. All of them are counted. And one that
cannot break the caller: a logging handler that raises is told of on stderr.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from constellation_otel._fork import PerProcess

if TYPE_CHECKING:
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
        failed: Records that were not written because the logger, a handler or a filter raised.
    """

    _lock = PerProcess(lambda: threading.Lock())  # noqa: PLW0108 - which class that is, is known when it is called

    def __init__(self, interval: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self.count = 0
        self.failed = 0
        # until when each is held back, and how often it was; the one that was written longest ago is the first
        self._keys: dict[Hashable, tuple[float, int]] = {}

    def write(
        self,
        logger: logging.Logger,
        level: int,
        key: Hashable,
        message: str,
        *args: object,
        error: BaseException | None = None,
    ) -> bool:
        """Writes one record, or holds it back; never raises.

        What the logger, a handler or a filter raises is counted, and told to
        ``logging.lastResort``, which is stderr, together with the record.

        Args:
            logger: Where to.
            level: The record's level.
            key: Records with the same key share one allowance. It is of our own words, such as
                the kind of an error: with foreign data in it, the data would decide how much
                is written.
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
            if self._keys.pop(key, None) is None and len(self._keys) >= _MAX_KEYS:
                del self._keys[next(iter(self._keys))]
            self._keys[key] = (now + self._interval, 0)
        if held_back:
            message += " (%d more like it since the last such record)"
            args = (*args, held_back)
        try:
            logger.log(level, message, *args, exc_info=error)
        except (Exception, SystemExit) as raised:  # noqa: BLE001 - the application's; it may end neither a callback nor a worker
            self._tell_last_resort(logger.name, message, args, raised)
            return False
        return True

    def _tell_last_resort(self, name: str, message: str, args: tuple[object, ...], raised: BaseException) -> None:
        with self._lock:
            self.failed += 1
        exc_info = (type(raised), raised, raised.__traceback__)
        record = logging.LogRecord(
            name, logging.ERROR, __file__, 0, f"%s could not log: {message}", (name, *args), exc_info
        )
        # stderr may be closed, too: then there is nobody left to tell, and the count has it
        with suppress(Exception):
            (logging.lastResort or logging.StreamHandler()).handle(record)
