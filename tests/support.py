"""What tests of several modules need."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE = 30.0
"""Seconds that anything in these tests may take before it counts as hanging."""


def eventually(condition: Callable[[], object], what: str) -> None:
    """Polls a condition that nothing announces, with a deadline.

    Raises:
        AssertionError: It did not come true; with ``what`` was awaited.
    """
    end = time.monotonic() + DEADLINE
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE} s: {what}"
        pause.wait(0.005)
