"""What a forked child does before anything else runs in it."""

from __future__ import annotations

import os
import weakref
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["after_fork_in_child"]

_METHODS: Final[weakref.WeakKeyDictionary[object, Callable[..., None]]] = weakref.WeakKeyDictionary()


def after_fork_in_child(method: Callable[[], None]) -> None:
    """Calls a bound method in every forked child, for as long as its object lives.

    Args:
        method: A bound method, one of each object; the object is not kept alive by this.
    """
    _register_once()
    _METHODS[method.__self__] = method.__func__  # type: ignore[attr-defined]


@cache
def _register_once() -> None:
    """The one hook that the interpreter gets: it never forgets any."""
    os.register_at_fork(after_in_child=_call_all)


def _call_all() -> None:
    for owner, function in list(_METHODS.items()):
        function(owner)
