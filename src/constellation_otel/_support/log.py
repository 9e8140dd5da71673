"""A log that cannot be flooded, and cannot break its caller.

The same complaint is written at most once an interval; the next one that gets
through says how many were held back. All of them are counted. If a logging
handler raises, stderr says so.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from constellation_otel._support.fork import PerProcess
from constellation_otel._support.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["CleanFormatter", "RateLimitedLog", "clean", "log"]

_MAX_KEYS = 1024
_IN_TRACEBACKS = "\n\t"
_FORMATTER = logging.Formatter()


def log(
    logger: logging.Logger, level: int, message: str, *args: object, error: BaseException | None = None, **extra: object
) -> None:
    """Writes a record, in which no text of others can do anything to a terminal or begin a line of its own.

    Args:
        logger: Where to.
        level: The record's level.
        message: In the logging module's % style, with %s for what is text.
        *args: The message's values; all but numbers are logged as text.
        error: Logged with its traceback.
        **extra: The record's further attributes.

    Raises:
        Exception: What the logger, a handler, a filter or a value's ``__str__`` raise.
    """
    if not logger.isEnabledFor(level):
        return
    cleaned = tuple(arg if isinstance(arg, (int, float)) else printable(str(arg)) for arg in args)
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, level, __file__, 0, message, cleaned, exc_info, "log", extra)
    if exc_info is not None:
        text = _FORMATTER.formatException(exc_info)
        shown = printable(text, keep=_IN_TRACEBACKS)
        if shown != text:
            # a formatter takes this instead of making its own
            record.exc_text = shown
    logger.handle(record)


class CleanFormatter(logging.Formatter):
    """Formats records of others, too, so that nothing of them can do anything to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        said = printable(record.getMessage())
        return f"{said}\n{self.formatException(record.exc_info)}" if record.exc_info else said

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the base class's
        return printable(super().formatException(ei), keep=_IN_TRACEBACKS)


class _Cleaned(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        with suppress(Exception):  # a message that does not go with its values: the handler says so
            said = record.getMessage()
            if not said.isprintable():
                record.msg, record.args = printable(said), None
        if record.exc_info:
            record.exc_text = printable(_FORMATTER.formatException(record.exc_info), keep=_IN_TRACEBACKS)
        return True


_CLEANED = _Cleaned()


def clean(*loggers: str) -> None:
    """Cleans what others write to their own loggers, as :func:`log` cleans ours; once more does nothing."""
    for name in loggers:
        logging.getLogger(name).addFilter(_CLEANED)


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

        What the logger, a handler or a filter raises is counted, and written to
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
            log(logger, level, message, *args, error=error)
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
        # stderr may be closed, too: then only the count has it
        with suppress(Exception):
            (logging.lastResort or logging.StreamHandler()).handle(record)
