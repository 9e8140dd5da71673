"""Until when somebody waits: a deadline out of any float, and what is left of it."""

from __future__ import annotations

import time
from typing import Final

__all__ = ["deadline_of", "seconds_left"]

_LONGEST: Final = 1e9
"""Seconds; some thirty years, which every call that takes a timeout can wait."""


def deadline_of(timeout: float) -> float:
    """A timeout as a time of :func:`time.monotonic`.

    Args:
        timeout: Seconds, any float: less than 0 and NaN are 0, infinity is thirty years.
    """
    # in this order, since NaN is neither more nor less than anything
    return time.monotonic() + min(max(0.0, timeout), _LONGEST)


def seconds_left(deadline: float) -> float:
    """Seconds until a deadline, and 0 after it."""
    return max(0.0, deadline - time.monotonic())
