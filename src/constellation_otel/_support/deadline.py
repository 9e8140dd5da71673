"""Until when somebody waits: a deadline out of any float, and what is left of it."""

from __future__ import annotations

import time
from typing import Final

__all__ = ["bounded", "deadline_of", "seconds_left"]

_LONGEST: Final = 2e6
"""Seconds; some 23 days, which every call that takes a timeout can wait, those in milliseconds of 32 bits, too."""


def bounded(timeout: float) -> float:
    """A timeout that every call takes.

    Args:
        timeout: Seconds, any float: less than 0 and NaN are 0, infinity is 23 days.
    """
    # in this order, since NaN is neither more nor less than anything
    return min(max(0.0, timeout), _LONGEST)


def deadline_of(timeout: float) -> float:
    """A timeout as a time of :func:`time.monotonic`.

    Args:
        timeout: Seconds, any float, which becomes :func:`bounded`.
    """
    return time.monotonic() + bounded(timeout)


def seconds_left(deadline: float) -> float:
    """Seconds until a deadline, and 0 after it."""
    return max(0.0, deadline - time.monotonic())
