"""How far two clocks are apart."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from constellation_otel.cli.doctor.finding import Finding, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Asked", "check_clock", "seconds_of"]

_TOLERATED_S: Final = 2.0
"""Seconds that two clocks may differ: a ``Date`` header has whole ones."""
_REMEDY: Final = "set both clocks by NTP: the times of spans are those of the machine that made them"


class Asked(NamedTuple):
    """When a question began and ended, in seconds since 1970, by this machine's clock."""

    began: float
    ended: float

    @classmethod
    def since(cls, began: float) -> Asked:
        """A question that ends now."""
        return cls(began, time.time())


def seconds_of(date: str | None) -> float | None:
    """A ``Date`` header in seconds since 1970; ``None`` where it is none."""
    try:
        # whole seconds are cut off: half of one is more, as a rule
        return None if date is None else parsedate_to_datetime(date).timestamp() + 0.5
    except (ValueError, OverflowError):
        return None


def check_clock(theirs: float | None, asked: Asked) -> Iterator[Finding]:
    """Compares an endpoint's time, where it has told it, with this machine's.

    Args:
        theirs: Seconds since 1970, at some moment of the question.
        asked: When it was asked.
    """
    if theirs is None:
        return
    ahead = theirs - (asked.began + asked.ended) / 2
    if abs(ahead) <= _TOLERATED_S + (asked.ended - asked.began) / 2:
        yield ok("clock", f"its clock and this machine's are the same within {_TOLERATED_S:g} s")
    else:
        side = "ahead of" if ahead > 0 else "behind"
        yield warning("clock", f"its clock is {abs(ahead):.1f} s {side} this machine's", _REMEDY)
