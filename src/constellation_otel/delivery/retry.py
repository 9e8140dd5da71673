"""When to try again, and what went wrong last."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from msgspec import Struct

__all__ = ["Backoff", "LastError", "Retry"]

_LONGEST_ASKED_FOR: Final = 3_600.0


class LastError(Struct, frozen=True):
    """Why something does not work at the moment.

    Attributes:
        reason: What it, or its protocol, said last.
        since: When that began, in seconds of :func:`time.monotonic`.
        needs_fixing: Whether it takes an operator: credentials, a path, a table.
    """

    reason: str
    since: float
    needs_fixing: bool


class Retry(Struct, frozen=True):
    """How tries follow each other: twice as long between them each time, with jitter, bounded.

    Attributes:
        first: Seconds before the second try, at most.
        longest: Seconds, at most; what an endpoint asks for may be longer.
        jitter: Gives numbers from 0 to 1.
    """

    first: float = 0.5
    longest: float = 30.0
    jitter: Callable[[], float] = random.random

    def backoff(self, longest: float | None = None) -> Backoff:
        """The pauses of one thing that is tried.

        Args:
            longest: Seconds, where these pauses are to be no longer.
        """
        return Backoff(self if longest is None else Retry(self.first, min(longest, self.longest), self.jitter))


class Backoff:
    """The pauses between the tries of one thing.

    Args:
        retry: How they grow.

    Attributes:
        failures: Since it worked last.
    """

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self.failures = 0

    def next(self, asked_for: float | None = None) -> float:
        """Seconds to wait after one more failure.

        Args:
            asked_for: What the endpoint asked for: waited at least, an hour at most.
        """
        # half of it is certain, so that many clients come back neither together nor at once
        ceiling = min(self._retry.longest, self._retry.first * 2.0 ** min(self.failures, 32))
        self.failures += 1
        wait = ceiling * (0.5 + self._retry.jitter() / 2)
        return wait if asked_for is None else max(wait, min(asked_for, _LONGEST_ASKED_FOR))

    def reset(self) -> None:
        """After a success."""
        self.failures = 0
