"""What a module's function returns: an output, or something that has to be awaited for one."""

from __future__ import annotations

import inspect
from types import CoroutineType, GeneratorType
from typing import Any

__all__ = ["awaited", "discard", "is_awaitable"]


def is_awaitable(returned: object) -> bool:
    """Whether it can be awaited; asks the type, since an object may answer anything."""
    return hasattr(type(returned), "__await__") or (type(returned) is GeneratorType and inspect.isawaitable(returned))


async def awaited(returned: Any) -> Any:
    """Awaits it, and any coroutine that an async function has returned."""
    output = await returned
    while type(output) is CoroutineType:
        output = await output
    return output


def discard(returned: object) -> None:
    """Closes a coroutine that will not be awaited, which spares it the warning."""
    if type(returned) is CoroutineType and inspect.getcoroutinestate(returned) == inspect.CORO_CREATED:
        returned.close()
