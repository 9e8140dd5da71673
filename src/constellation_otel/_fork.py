"""What a forked child does before anything else runs in it."""

from __future__ import annotations

import os
import weakref
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["after_fork_in_child"]

_METHODS: Final[dict[weakref.WeakMethod[Callable[[], None]], None]] = {}


def after_fork_in_child(method: Callable[[], None]) -> None:
    """Calls a bound method in every forked child, for as long as its object lives.

    Args:
        method: A bound method; its object is not kept alive by this.
    """
    _register_once()
    reference = weakref.WeakMethod(method, _METHODS.pop)
    # hashed while its object lives, so that it can still be found when that has gone
    _METHODS[reference] = None


@cache
def _register_once() -> None:
    """The one hook that the interpreter gets: it never forgets any."""
    os.register_at_fork(after_in_child=_call_all)


def _call_all() -> None:
    for reference in tuple(_METHODS):
        method = reference()
        if method is not None:
            method()
