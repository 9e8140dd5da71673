"""Text that others wrote or whose objects they wrote: nothing of it raises, or does anything where it is shown."""

from __future__ import annotations

__all__ = ["message_of", "printable", "shown"]


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


def printable(text: str, keep: str = "") -> str:
    r"""The text with every character escaped that could do something to a terminal or to a line.

    Control characters (C0, C1, line ends), marks that change the direction of writing,
    invisible ones and lone surrogates become ``\x1b``, ``\u202e`` and so on.

    Args:
        text: Any text.
        keep: Characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text
    )
