"""Attempts of a module that may fail: which error is worth another one, its id, and the wait before it.

How long to wait is stamina's business, where to wait the engine's: :class:`Call` does it on the event loop.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

from constellation_otel.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Retries", "check_stamina", "is_worth_another"]


def check_stamina() -> None:
    """Raises a MissingExtraError where stamina is not installed."""
    try:
        import stamina  # noqa: F401, PLC0415 - optional: what is tried once does not need it
    except ModuleNotFoundError as error:
        raise MissingExtraError("stamina", "retry") from error


def is_worth_another(error: BaseException) -> bool:
    """Whether an error may pass: neither an exit nor a cancellation, of which there is an ``Exception`` too."""
    return isinstance(error, Exception) and not isinstance(error, CancelledError)


class Retries:
    """The waits between the attempts of one module, with stamina's backoff, jitter and hooks.

    Args:
        attempts: How often the module is tried at most.

    Attributes:
        are_over: Whether stamina allows no other attempt, as where it is switched off.
    """

    def __init__(self, attempts: int) -> None:
        import stamina  # noqa: PLC0415 - optional

        # without a timeout: stamina's own counts the bodies' time, too
        retrying = stamina.retry_context(on=Exception, attempts=attempts, timeout=None)
        self._attempts: AsyncIterator[stamina.Attempt] = aiter(retrying)
        self._attempt: stamina.Attempt | None = None
        self._error: BaseException | None = None
        self.are_over = False

    async def fail(self, error: BaseException) -> None:
        """Says how the latest attempt has ended, which :meth:`wait` is to know."""
        if self._attempt is None:
            self._attempt = await anext(self._attempts)
        self._error = error
        # not raised in a block: that would put this line into the error's traceback
        self._attempt.__exit__(type(error), error, error.__traceback__)

    async def wait(self) -> None:
        """Waits for the next attempt; called again after it was cancelled, it does not wait any more."""
        try:
            self._attempt = await anext(self._attempts)
        except BaseException as raised:
            if raised is not self._error:
                raise
            self.are_over = True
