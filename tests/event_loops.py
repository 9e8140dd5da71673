"""Event loops that are closed under those who run them."""

from __future__ import annotations

import asyncio


def close_between_turns(loop: asyncio.AbstractEventLoop) -> None:
    """Closes a loop between two of its turns, as another thread might just manage to."""

    def close() -> None:
        del loop.run_forever
        loop.close()

    loop.run_forever = close  # type: ignore[method-assign]
    loop.call_soon_threadsafe(loop.stop)


async def never() -> None:
    """Does not end; asyncio does not complain if its task is destroyed, be it in a later test."""
    task = asyncio.current_task()
    task._log_destroy_pending = False  # type: ignore[union-attr]
    await asyncio.Event().wait()
