"""What belongs to one process only: what a forked child does first, and what each process makes for itself."""

from __future__ import annotations

import os
import weakref
from functools import cache
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PerProcess", "after_fork_in_child"]

T = TypeVar("T")

_METHODS: Final[weakref.WeakKeyDictionary[object, Callable[..., None]]] = weakref.WeakKeyDictionary()
_MADE: Final[dict[tuple[int, str], weakref.ref[object]]] = {}
"""Whose attribute of which name was made in this process, by the owner's id and the name."""


class PerProcess(Generic[T]):
    """An attribute that is made when it is first needed, in the process that needs it.

    For locks, and what has one inside. A lock that was made before gevent patched
    ``threading`` blocks all greenlets at once, and one that another thread held during a
    fork stays locked in the child for ever. A forked child forgets its parent's before
    anything else runs in it.

    Args:
        make: Makes the value. Where threads race to be the first it is called more than
            once, and all of them get the same value.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> T:
        # found in the instance from now on, without a call of this
        _register_once()
        key = (id(instance), self._name)
        _MADE[key] = weakref.ref(instance, lambda _: _MADE.pop(key, None))
        made: T = instance.__dict__.setdefault(self._name, self._make())
        return made


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
    for (_, name), reference in list(_MADE.items()):
        getattr(reference(), "__dict__", {}).pop(name, None)
    _MADE.clear()
    for owner, function in list(_METHODS.items()):
        function(owner)
