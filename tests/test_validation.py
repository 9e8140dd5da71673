"""What an event may carry, found out by reflection, so that no field can be forgotten."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import pytest
from msgspec import structs

from constellation_otel import OtlpListener
from constellation_otel.delivery import Position, Record
from constellation_otel.dialects import encode_frame, encode_json
from constellation_otel.events import (
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
from constellation_otel.transports._journal_file import _item, _row
from constellation_otel.transports.jsonl import JsonlListener, JsonlSource
from constellation_otel.transports.sql import SqlAuditListener, SqlSource
from constellation_otel.validation import Validated, said, shown, validated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from constellation_otel.buffer import BufferedListener
    from constellation_otel.receiver import Receiver

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
NEEDED = {"execution_id", "dag_name", "module_name", "succeeded", "timestamp_ns"}


def try_all(event: Event) -> Validated | None:
    """What passes the door: it is the same when it passes again, and all that is written of events can be."""
    try:
        passed = validated(event)
    except (TypeError, ValueError) as error:
        text = str(error)
        assert text.isprintable()
        assert len(text) < 500
        return None
    again = validated(passed.event)
    assert again == Validated(passed.event, ())
    assert again.event is passed.event
    encode_json(passed.event)
    encode_frame(passed.event)
    assert _item(1, _row(passed.event).data) == Record(passed.event, Position(None, 1))
    types = {type(value) for value in structs.astuple(passed.event)}
    assert types <= {UUID, str, int, float, bool, ErrorInfo, type(None)}
    return passed


def test_an_event_as_its_callback_promises_stays_as_it_is() -> None:
    for event in EVENTS.values():
        assert validated(event).event is event
    for duration in (None, 0, 2, 2**43):
        event = ModuleCompleted(EXECUTION, None, "Trim", duration, 2**63 - 1)
        assert validated(event) == Validated(event, ())


@pytest.mark.parametrize(("name", "path"), PATHS, ids=lambda each: each if isinstance(each, str) else ".".join(each))
def test_every_odd_value_of_a_field_is_made_plain_left_out_or_refused(name: str, path: tuple[str, ...]) -> None:
    for value in ODD:
        passed = try_all(with_value(EVENTS[name], path, value))
        # what an event can do without never costs it
        assert passed is not None or path[0] in NEEDED


def test_what_is_left_out_or_replaced_is_told_with_its_field_and_value() -> None:
    event = ModuleCompleted("id", "m", Text("a\x00"), math.nan, NOW)  # type: ignore[arg-type]
    with pytest.raises(TypeError) as refused:
        validated(event)
    assert str(refused.value) == ("execution_id must be a UUID, not 'id'; the event is dropped, fix what sent it")
    assert validated(structs.replace(event, execution_id=EXECUTION)) == Validated(
        ModuleCompleted(EXECUTION, None, "a\N{REPLACEMENT CHARACTER}", None, NOW),
        (
            "module_id is 'm', not a UUID",
            "module_name is 'a\\x00', which became 'a\N{REPLACEMENT CHARACTER}'",
            "duration_ms is nan, not a number of milliseconds, from 0 to 2**63 - 1 ns",
        ),
    )
    failed = ModuleFailed(EXECUTION, None, "m", "boom", NOW)  # type: ignore[arg-type]
    assert validated(failed) == Validated(
        ModuleFailed(EXECUTION, None, "m", ErrorInfo(None, None), NOW), ("error is 'boom', not an ErrorInfo",)
    )


@pytest.mark.parametrize("timestamp_ns", [-1, 2**63])
def test_a_time_that_otlp_cannot_hold_is_refused_with_its_value(timestamp_ns: int) -> None:
    with pytest.raises(ValueError, match=f"timestamp_ns must be an int within 0 and .*, not {timestamp_ns};"):
        validated(ExecutionCancelled(EXECUTION, "pipeline", timestamp_ns))


@pytest.mark.parametrize(
    ("number", "kept"), [(Decimal("2.5"), 2.5), (Fraction(5, 2), 2.5), (Int(3), 3), (True, None), ("2.5", None)]
)
def test_numbers_of_any_library_are_durations(number: Any, kept: float | None) -> None:
    event = validated(ModuleCompleted(EXECUTION, MODULE, "Trim", number, NOW)).event
    assert isinstance(event, ModuleCompleted)
    assert (event.duration_ms, type(event.duration_ms)) == (kept, type(kept))


def test_an_events_subclass_becomes_the_event_and_a_traceback_text() -> None:
    class Mine(ModuleFailed, frozen=True):
        pass

    event, corrected = validated(Mine(EXECUTION, MODULE, "Trim", ErrorInfo("ValueError", "boom", FRAMES), NOW))
    assert type(event) is ModuleFailed
    assert (event.error.frames, corrected) == (None, ())
    assert str(event.error.stacktrace).endswith('  File "a.py", line 1, in f\nValueError: boom\n')


@pytest.mark.parametrize("value", [None, 5, "event", Hostile(), {"eventType": "execution.started"}])
def test_what_is_no_event_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="is none of the six events"):
        validated(value)


def test_a_value_is_shown_short_clean_and_whatever_its_code_does() -> None:
    assert shown("a\x1b" + "x" * 1000) == "'a\\x1b" + "x" * 94 + "…"
    assert shown(Hostile()) == "<repr() of this Hostile raised KeyError>"

    class Mute(Exception):
        def __str__(self) -> str:
            raise LookupError

    assert said(Mute()) == "<str() of this Mute raised LookupError>"
    assert said(ValueError("a\x1b")) == "a\N{REPLACEMENT CHARACTER}"


# --- behind any odd event, the good ones arrive -----------------------------------------

GOOD = UUID("00000000-0000-4000-8000-000000000001")


def put_all(listener: BufferedListener) -> None:
    """An execution, every odd value in every field, and another execution behind them."""
    listener.on_execution_start(EXECUTION, "before")
    for name, path in PATHS:
        for value in ODD:
            listener.accept(with_value(EVENTS[name], path, value))
    listener.on_execution_start(GOOD, "after")
    listener.on_execution_complete(GOOD, "after", True, 1.0)


def check(listener: BufferedListener) -> None:
    assert listener.close(30)
    counters = listener.counters
    assert (counters.held, counters.dropped, counters.refused) == (0, 0, 0)
    assert counters.received == counters.delivered + counters.rejected == len(PATHS) * len(ODD) + 3
    assert min(counters.delivered, counters.rejected, counters.corrected) > 100


@pytest.fixture(params=[None, "journal.db"], ids=["memory", "journal"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param is None else tmp_path / request.param


def test_through_json_lines(tmp_path: Path, journal: Any) -> None:
    listener = JsonlListener(tmp_path / "events.jsonl", journal=journal)
    put_all(listener)
    check(listener)
    source = JsonlSource(tmp_path / "events.jsonl")
    items: list[Any] = []
    while not source.has_ended:
        items += source.read(1)
    source.close()
    assert [item.event.execution_id for item in items[-2:]] == [GOOD, GOOD]
    assert [item.corrected for item in items if item.corrected] == []
    assert len(items) == listener.counters.delivered


def test_through_an_audit_table(tmp_path: Path, journal: Any) -> None:
    url = f"sqlite:///{tmp_path}/audit.db"
    listener = SqlAuditListener(url, journal=journal)
    put_all(listener)
    check(listener)
    source = SqlSource(url, execution_id=GOOD)
    items: list[Any] = []
    while not source.has_ended:
        items += source.read(1)
    source.close()
    assert [item.event.execution_id for item in items] == [GOOD, GOOD]


def test_through_otlp(receiver: Receiver, journal: Any) -> None:
    listener = OtlpListener(receiver.grpc_endpoint, journal=journal)
    put_all(listener)
    assert listener.close(30)
    counters = listener.counters
    assert (counters.held, counters.refused, counters.dropped) == (0, 0, 0)
    assert [span.name for span in receiver.spans if span.attributes["constellation.execution.id"] == str(GOOD)] == [
        "after"
    ]
