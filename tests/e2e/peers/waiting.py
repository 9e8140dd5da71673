"""Waiting for a condition, with a deadline: what the tests have instead of sleeps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_INTERVAL_S = 0.05


class NotYet(Exception):
    """Raised by a condition that does not hold yet; its message says what was found instead."""


def eventually(condition: Callable[[], T], deadline: float, what: str) -> T:
    """Calls a condition until it holds, and returns what it returned.

    Args:
        condition: Holds when it returns something true; a false value or a `NotYet` is asked again.
            Every other exception passes at once.
        deadline: Seconds from now. The condition is asked at least once, and once more at the end.
        what: What is waited for, for the message.

    Raises:
        AssertionError: The deadline has passed; the message has what the condition answered last.
    """
    end = time.monotonic() + deadline
    while True:
        last_try = time.monotonic() >= end
        try:
            answer = condition()
        except NotYet as reason:
            found = str(reason)
        else:
            if answer:
                return answer
            found = repr(answer)
        if last_try:
            message = f"not within {deadline:g} s: {what}; the last answer was: {found}"
            raise AssertionError(message)
        time.sleep(_INTERVAL_S)
