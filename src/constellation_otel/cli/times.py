"""Moments and lengths as a command line has them, and as nanoseconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

__all__ = ["epoch_ns", "length_ns_of"]

_UNIT_NS: Final = {
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60 * 1_000_000_000,
    "h": 3_600 * 1_000_000_000,
    "d": 86_400 * 1_000_000_000,
}
# of so many digits that the result is a number
_LENGTH: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|[smhd])", re.ASCII)


def epoch_ns(when: datetime) -> int:
    """A moment as epoch nanoseconds; without a zone it is local time."""
    since_epoch = when.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since_epoch.days * 86_400 + since_epoch.seconds) * 1_000_000 + since_epoch.microseconds) * 1_000


def length_ns_of(text: str) -> int | None:
    """The nanoseconds of ``500ms``, ``1.5s``, ``30m``, ``1h`` or ``2d``; ``None`` where it is none of these."""
    found = _LENGTH.fullmatch(text)
    return None if found is None else round(float(found[1]) * _UNIT_NS[found[2]])
