"""Events with every odd value in every field, found by reflection, and good ones before and behind them."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from msgspec import structs

from constellation_otel.events.model import (
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    Frames,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from constellation_otel.delivery import BufferedListener

EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
MODULE = UUID("b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538")
NOW = 1_795_465_363_577_123_456
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FRAMES = Frames("ValueError", "boom", (("a.py", 1, "f"),), Frames("KeyError", "k", ()))
EVENTS: dict[str, Event] = {
    type(event).__name__: event
    for event in (
        ExecutionStarted(EXECUTION, "pipeline", NOW, TRACEPARENT, "vendor=value"),
        ModuleStarted(EXECUTION, MODULE, "Trim", NOW),
        ModuleCompleted(EXECUTION, MODULE, "Trim", 2.5, NOW),
        ModuleFailed(EXECUTION, MODULE, "Trim", ErrorInfo("ValueError", "boom", None, "a stack trace\n"), NOW),
        ExecutionCompleted(EXECUTION, "pipeline", True, 15.25, NOW),
        ExecutionCancelled(EXECUTION, "pipeline", NOW),
    )
}


class Text(str):
    """As markupsafe's and Django's are."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        raise ValueError

    def __ne__(self, other: object) -> bool:
        raise ValueError

    __hash__ = str.__hash__


class Int(int):
    pass


class Float(float):
    def __float__(self) -> float:
        raise ValueError


class DriversUUID(UUID):
    pass


class Error(ErrorInfo, frozen=True):
    pass


class Hostile:
    """Raises whatever it is asked for."""

    def __repr__(self) -> str:
        raise KeyError

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        raise KeyError

    def __hash__(self) -> int:
        raise KeyError

    def __float__(self) -> float:
        raise KeyError

    def __index__(self) -> int:
        raise KeyError


ODD: list[object] = [
    None,
    7,
    -1,
    2**63,
    10**400,
    Int(5),
    True,
    2.5,
    Float(2.5),
    math.nan,
    math.inf,
    Decimal("2.5"),
    Decimal("NaN"),
    Fraction(5, 2),
    "",
    "text",
    Text("text"),
    "lone \ud800 surrogate",
    Text("\udfff"),
    "nul \x00 and \x1b[31m",
    "x" * 100_000,
    b"bytes",
    EXECUTION,
    DriversUUID(int=5),
    ErrorInfo(5, 7),  # type: ignore[arg-type]
    ErrorInfo(Text("E"), "\ud800", None, Text("\x00")),
    ErrorInfo("E", "m", 7),  # type: ignore[arg-type]
    ErrorInfo("E", "m", Frames(5, Hostile(), ((1, "x", None),))),  # type: ignore[arg-type]
    ErrorInfo("E", "m", FRAMES),
    Error("E", "m"),
    ValueError("an exception itself"),
    [1],
    {"a": object()},
    object(),
    Hostile(),
]


def with_value(event: Event, path: tuple[str, ...], value: object) -> Event:
    if len(path) == 1:
        return structs.replace(event, **{path[0]: value})
    inner = structs.replace(getattr(event, path[0]), **{path[1]: value})
    return structs.replace(event, **{path[0]: inner})


def paths() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every field of every event, and of the error in one."""
    for name, event in EVENTS.items():
        for field in structs.fields(event):
            yield name, (field.name,)
            if isinstance(getattr(event, field.name), msgspec.Struct):
                yield from ((name, (field.name, inner.name)) for inner in structs.fields(ErrorInfo))


PATHS = list(paths())

GOOD = UUID("00000000-0000-4000-8000-000000000001")


def put_all(listener: BufferedListener[Any]) -> None:
    """An execution, every odd value in every field, and another execution behind them."""
    listener.on_execution_start(EXECUTION, "before")
    for name, path in PATHS:
        for value in ODD:
            listener.accept(with_value(EVENTS[name], path, value))
    listener.on_execution_start(GOOD, "after")
    listener.on_execution_complete(GOOD, "after", True, 1.0)


def check(listener: BufferedListener[Any]) -> None:
    assert listener.close(30)
    counters = listener.counters
    assert (counters.held, counters.dropped, counters.sending.refused) == (0, 0, 0)
    assert counters.received == counters.delivered + counters.rejected == len(PATHS) * len(ODD) + 3
    assert min(counters.delivered, counters.rejected, counters.corrected) > 100
