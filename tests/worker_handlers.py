"""Handlers of the tests' workers: functions put together, and one that waits until it is released."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from constellation_otel.delivery import Handler
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable


class Doing(Handler[Any]):
    """Calls functions; ``each`` with every item, one after the other."""

    def __init__(
        self,
        each: Callable[[Any], object] = lambda _: None,
        *,
        is_ready: Callable[[], bool] | None = None,
        tick: Callable[[], float | None] | None = None,
        finish: Callable[[], object] | None = None,
        after_fork: Callable[[], object] | None = None,
        also_held: Callable[[], int] | None = None,
    ) -> None:
        self._each = each
        for name, function in {
            "is_ready": is_ready,
            "tick": tick,
            "finish": finish,
            "after_fork": after_fork,
            "also_held": also_held,
        }.items():
            if function is not None:
                setattr(self, name, function)

    def handle(self, items: list[Any]) -> None:
        for item in items:
            self._each(item)


class Blocked(Handler[int]):
    """Waits with each item until it is released."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.items: list[int] = []

    def handle(self, items: list[int]) -> None:
        for item in items:
            self.entered.set()
            assert self.gate.wait(DEADLINE)
            self.items.append(item)


def output_of(program: str) -> tuple[str, str]:
    """What a program writes to stdout and stderr, to the end of its interpreter."""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return ran.stdout, ran.stderr
