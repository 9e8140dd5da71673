"""Text of objects that others wrote: their ``__str__`` and ``__repr__`` may raise anything."""

from __future__ import annotations

__all__ = ["message_of", "shown"]


def message_of(error: BaseException) -> str:
    """``str(error)``, or which exception that raised; never raises itself."""
    try:
        return str.__str__(str(error))  # a plain str, should it be of a subclass
    except BaseException as raised:  # noqa: BLE001 - the error's own code; the text says what it raised
        return f"<str() of this {type(error).__name__} raised {type(raised).__name__}>"


def shown(value: object) -> str:
    """``repr(value)``, or which exception that raised; never raises itself."""
    try:
        return str.__str__(repr(value))
    except BaseException as raised:  # noqa: BLE001 - the value's own code; the text says what it raised
        return f"<repr() of this {type(value).__name__} raised {type(raised).__name__}>"
