"""What every engine of this process notifies besides its own listener, for programs whose code does not say it.

It is set by :mod:`constellation_otel.instrumentation`. Engines ask for it when an execution starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from constellation_otel.listener import ExecutionListener

__all__ = ["Further", "further_listener", "notify_further"]

Further: TypeAlias = "Callable[[ExecutionListener], ExecutionListener]"
"""Given an engine's own listener, the one to notify besides; ``ExecutionListener.noop`` where there is none."""


class _Process:
    """What is set in this process; a forked child has its parent's."""

    further: Further | None = None


_PROCESS = _Process()


def notify_further(further: Further | None) -> None:
    """Has every engine of this process notify a further listener, those included that are there already.

    It holds from the next execution that an engine starts.

    Args:
        further: Is asked once for each engine; any thread may ask. ``None`` takes back what was set.
    """
    _PROCESS.further = further


def further_listener() -> Further | None:
    """What was last given to :func:`notify_further`; the same object for as long as that holds."""
    return _PROCESS.further
