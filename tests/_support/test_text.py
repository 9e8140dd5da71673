"""Text of objects whose own code fails."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from constellation_otel._support.text import message_of, shown
from constellation_otel.errors import ExecutionFailedError


class Said(str):
    """A text whose formatting fails."""

    __slots__ = ()

    def __format__(self, _: str) -> str:
        raise ValueError


class Odd(Exception):
    """An error whose text is what it was made with: raised, or returned."""

    def __str__(self) -> str:
        said: Any = self.args[0]
        if isinstance(said, BaseException):
            raise said
        return said  # type: ignore[no-any-return]

    __repr__ = __str__


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("no licence", "no licence"),
        (Said("no licence"), "no licence"),
        (None, "<{}() of this Odd raised TypeError>"),
        (LookupError(), "<{}() of this Odd raised LookupError>"),
        (KeyboardInterrupt(), "<{}() of this Odd raised KeyboardInterrupt>"),
        (SystemExit(), "<{}() of this Odd raised SystemExit>"),
    ],
)
def test_text_of_an_object_never_raises(said: object, message: str) -> None:
    assert message_of(Odd(said)) == message.format("str")
    assert shown(Odd(said)) == message.format("repr")
    assert type(message_of(Odd(said))) is type(shown(Odd(said))) is str


def test_an_executions_error_says_what_each_module_raised() -> None:
    errors = {"a": ValueError("no"), "b": Odd(None), "c": KeyboardInterrupt()}
    error = ExecutionFailedError(UUID(int=1), "p", errors, {})
    assert str(error) == (
        "execution 00000000-0000-0000-0000-000000000001 of 'p' failed:"
        " a: ValueError: no; b: Odd: <str() of this Odd raised TypeError>; c: KeyboardInterrupt"
    )
