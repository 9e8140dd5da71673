"""The names of the SPI's callbacks, and the refusal of names that only look like one."""

from __future__ import annotations

import inspect
import re
from typing import Final

from constellation_otel.errors import ListenerDefinitionError

__all__ = ["CALLBACKS", "check_callbacks"]

CALLBACKS: Final = (
    "on_execution_start",
    "on_module_start",
    "on_module_complete",
    "on_module_failed",
    "on_execution_complete",
    "on_execution_cancelled",
)
"""The names of the SPI's callbacks, in the order of a module's life in an execution."""

_FORMS: Final = {
    "on": (),
    "execution": ("exec",),
    "module": ("mod",),
    "start": ("started", "starting"),
    "complete": ("completed", "completing", "completion"),
    "failed": ("fail", "fails", "failing", "failure"),
    "cancelled": ("cancel", "canceled", "cancelling", "canceling", "cancellation"),
}
"""What else people write for each word of the callbacks' names."""

_LONG: Final = 5
"""Letters of a word in which one slip leaves no doubt of what was meant."""


def check_callbacks(cls: type, *, allow_async: bool) -> None:
    """Refuses a class that defines a callback which no engine would call.

    Args:
        cls: The class; only what it defines itself is looked at.
        allow_async: Whether callbacks may be coroutine functions; async generators they never may.

    Raises:
        ListenerDefinitionError: With the right spelling, or the way to have async callbacks.
    """
    for name, attribute in vars(cls).items():
        value = attribute.__func__ if isinstance(attribute, staticmethod | classmethod) else attribute
        if not callable(value):
            continue
        if name in CALLBACKS:
            if allow_async and inspect.isasyncgenfunction(value):
                message = (
                    f"{cls.__qualname__}.{name} is an async generator, which nobody would iterate, so that its body"
                    " would never run: take the yield out"
                )
                raise ListenerDefinitionError(message)
            if not allow_async and (inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value)):
                message = (
                    f"{cls.__qualname__}.{name} is async, and callbacks are called, not awaited: make it a plain"
                    " function, or keep it in a class of its own and wrap that in AsyncListenerAdapter"
                )
                raise ListenerDefinitionError(message)
            continue
        meant = _meant(name)
        if meant is not None:
            message = f"{cls.__qualname__}.{name} would never be called: the callback's name is {meant}"
            raise ListenerDefinitionError(message)


def _meant(name: str) -> str | None:
    """The callback that a method's name is a misspelling of; a private method's never is."""
    if name.startswith("_"):
        return None
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_")
    for callback in CALLBACKS:
        expected = callback.split("_")
        if "".join(words) == "".join(expected):
            return callback
        if len(words) == len(expected) and all(map(_same_word, words, expected)):
            return callback
    return None


def _same_word(word: str, expected: str) -> bool:
    forms = (expected, *_FORMS[expected])
    return word in forms or any(len(form) >= _LONG and _one_slip(word, form) for form in forms)


def _one_slip(word: str, meant: str) -> bool:
    """Whether the two differ by one letter, or by two neighbours that changed places."""
    while word[:1] == meant[:1] != "":
        word, meant = word[1:], meant[1:]
    while word[-1:] == meant[-1:] != "":
        word, meant = word[:-1], meant[:-1]
    return max(len(word), len(meant)) <= 1 or (len(word) == len("ab") and word == meant[::-1])
