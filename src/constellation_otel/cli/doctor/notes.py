"""What the package and OpenTelemetry log while a doctor looks: kept, and not written anywhere."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Notes", "noting"]

_LOGGERS: Final = (logging.getLogger("constellation_otel"), logging.getLogger("opentelemetry"))


class Notes(logging.Handler):
    """Keeps warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        # in their order, and whether each was taken
        self._said: dict[str, bool] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a record's message, unless it was kept before."""
        self._said.setdefault(record.getMessage(), False)

    def taken(self) -> list[str]:
        """The messages since the last call."""
        said = [message for message, is_taken in self._said.items() if not is_taken]
        self._said |= dict.fromkeys(said, True)
        return said


@contextmanager
def noting() -> Iterator[Notes]:
    """Within this these logs go into notes, and nowhere else."""
    notes, propagated = Notes(), [logger.propagate for logger in _LOGGERS]
    for logger in _LOGGERS:
        logger.addHandler(notes)
        logger.propagate = False
    try:
        yield notes
    finally:
        for logger, propagate in zip(_LOGGERS, propagated, strict=True):
            logger.propagate = propagate
            logger.removeHandler(notes)
