"""What the checks have in common: the promises that were broken, and calls that may never return."""

from __future__ import annotations

import inspect
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from constellation_otel._support.text import message_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FEW_SECONDS", "SLACK", "Component", "Progress", "Violations", "described", "is_awaitable", "run_in_time"]

SLACK: Final = 2.0
"""Seconds that a call may take longer than its timeout, on a machine that is busy."""
FEW_SECONDS: Final = 5.0 + SLACK
"""The few seconds in which a component closes."""


class Violations:
    """The violations, each once, with where it was first seen and how often.

    Args:
        summary: What they come to: the message's first line.
    """

    def __init__(self, summary: str) -> None:
        self._summary = summary
        self._lock = threading.Lock()
        self._found: dict[str, list[str]] = {}

    def add(self, what: str, where: str) -> None:
        """Notes a violation, and where it was seen."""
        with self._lock:
            self._found.setdefault(what, []).append(where)

    def raise_if_any(self) -> None:
        """Raises an AssertionError with every violation."""
        with self._lock:
            lines = [
                f"  {what}{seen[0]}" + (f", and {len(seen) - 1} more like it" if len(seen) > 1 else "")
                for what, seen in self._found.items()
            ]
        if lines:
            message = "\n".join([f"{self._summary}:", *lines])
            raise AssertionError(message)


class Progress:
    """The call that a part of a check is making, to be named if it hangs."""

    def __init__(self, call: str) -> None:
        self.call = call


class Component:
    """What is checked, in one part of a check: its calls are timed, and what is wrong is noted.

    Args:
        where: Which part it is.
        violations: Where what is wrong is noted.
        progress: Which call is being made.
    """

    def __init__(self, where: str, violations: Violations, progress: Progress) -> None:
        self.progress = progress
        self._where = where
        self._violations = violations

    def add(self, what: str) -> None:
        """Notes a violation."""
        self._violations.add(what, self._where)

    def call(self, what: str, function: Callable[..., object], *args: Any, within: float) -> object:
        """Calls a method of the component.

        Args:
            what: The call, for the message.
            function: The method.
            *args: Its arguments.
            within: Seconds that it may take.

        Returns:
            What it returned, or what it raised.
        """
        self.progress.call = what
        start = time.monotonic()
        try:
            answer = function(*args)
        except BaseException as error:  # noqa: BLE001 - judged by the caller, whatever it is
            answer = error
        if time.monotonic() - start > within:
            self.add(f"{what} took longer than {within:g} s")
        return answer


def run_in_time(
    part: Callable[[Progress], object], where: str, violations: Violations, timeout: float, thread_name: str
) -> None:
    """Runs a part of a check in a thread of its own, and reports the call that has not returned in time.

    Args:
        part: It says in the progress which call it is making.
        where: Which part it is, for the message.
        violations: Where what is wrong is noted.
        timeout: Seconds.
        thread_name: The thread's name.
    """
    progress = Progress("make()")

    def run() -> None:
        try:
            part(progress)
        except BaseException as error:  # noqa: BLE001 - reported, whatever it is
            violations.add(f"{progress.call} raised {described(error)}", where)

    # a daemon, so that a call that blocks for ever does not keep the process alive
    thread = threading.Thread(target=run, name=thread_name, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        violations.add(f"{progress.call} had not returned after {timeout:g} s", where)


def is_awaitable(answer: object) -> bool:
    """Whether a call that is never awaited has to be."""
    if inspect.iscoroutine(answer):
        # otherwise Python warns that it was never awaited
        answer.close()
    return inspect.isawaitable(answer)


def described(error: BaseException) -> str:
    """An exception's type and message, for a report."""
    return f"{type(error).__name__}: {message_of(error)[:200]!r}"
