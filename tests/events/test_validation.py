"""What an event may carry, found out by reflection, so that no field can be forgotten."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from msgspec import structs

from constellation_otel import OtlpListener
from constellation_otel.delivery import Batch, batches_of
from constellation_otel.delivery.journal.rows import Gathered, row_of
from constellation_otel.events import (
    BodyRecord,
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ModuleCompleted,
    ModuleDetails,
    ModuleFailed,
    encode_frame,
    encode_json,
)
from constellation_otel.events.validation import Validated, is_valid, said, shown, validated
from constellation_otel.transports.jsonl import JsonlListener, JsonlSource
from constellation_otel.transports.sql import SqlAuditListener, SqlSource
from deliveries import read_all
from odd_events import (
    EVENTS,
    EXECUTION,
    FRAMES,
    GOOD,
    MODULE,
    NOW,
    ODD,
    PATHS,
    Hostile,
    Int,
    Text,
    check,
    put_all,
    with_value,
)

if TYPE_CHECKING:
    from pathlib import Path

    from constellation_otel.delivery import Source
    from constellation_otel.receiver import Receiver

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
    gathered = Gathered()
    gathered.add(1, row_of([passed.event]).data)
    assert gathered.items == [Batch([passed.event], [1])]
    types = {type(value) for value in structs.astuple(passed.event)}
    assert types <= {UUID, str, int, float, bool, dict, ErrorInfo, ModuleDetails, BodyRecord, type(None)}
    return passed


def test_an_event_as_its_callback_promises_stays_as_it_is() -> None:
    for event in EVENTS.values():
        assert validated(event).event is event
    for duration in (None, 0, 2, 2**43):
        event = ModuleCompleted(EXECUTION, None, "Trim", duration, 2**63 - 1)
        assert validated(event) == Validated(event, ())


@pytest.mark.parametrize(("name", "path"), PATHS, ids=lambda each: each if isinstance(each, str) else ".".join(each))
def test_an_odd_value_is_made_plain_left_out_or_refused(name: str, path: tuple[str, ...]) -> None:
    for value in ODD:
        passed = try_all(with_value(EVENTS[name], path, value))
        # what an event can do without never costs it
        assert passed is not None or path[0] in NEEDED


def test_the_fast_check_never_says_yes_where_something_changes() -> None:
    """It may say no where nothing does: of errors, and of texts that have to be looked at."""
    for name, path in PATHS:
        for value in ODD:
            event = with_value(EVENTS[name], path, value)
            if is_valid(event):
                assert validated(event) == Validated(event, ())
                assert try_all(event) == Validated(event, ())
    fast = {type(event) for event in EVENTS.values() if is_valid(event)}
    assert fast == {type(event) for event in EVENTS.values()} - {ModuleFailed}


@pytest.mark.parametrize("value", [None, 5, "event", Hostile(), EXECUTION])
def test_the_fast_check_says_no_to_what_is_no_event(value: object) -> None:
    assert not is_valid(value)


def test_what_is_left_out_or_replaced_is_named_with_its_value() -> None:
    event = ModuleCompleted("id", "m", Text("a\x00"), math.nan, NOW)  # type: ignore[arg-type]
    with pytest.raises(TypeError) as refused:
        validated(event)
    assert str(refused.value) == ("execution_id must be a UUID, not 'id'; the event is dropped; fix what made it")
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


def test_a_subclass_becomes_the_event_and_a_traceback_text() -> None:
    class Mine(ModuleFailed, frozen=True):
        pass

    event, corrected = validated(Mine(EXECUTION, MODULE, "Trim", ErrorInfo("ValueError", "boom", FRAMES), NOW))
    assert type(event) is ModuleFailed
    assert (event.error.frames, corrected) == (None, ())
    assert str(event.error.stacktrace).endswith('  File "a.py", line 1, in f\nValueError: boom\n')


@pytest.mark.parametrize("value", [None, 5, "event", Hostile(), {"eventType": "execution.started"}])
def test_what_is_no_event_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="is no event"):
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


@pytest.fixture(params=[None, "journal.db"], ids=["memory", "journal"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param is None else tmp_path / request.param


def events_of(source: Source) -> list[Event]:
    """The events that a source gives; none of them had to be corrected."""
    batches = batches_of(read_all(source))
    assert all(isinstance(batch, Batch) and not batch.corrected for batch in batches)
    return [event for batch in batches if isinstance(batch, Batch) for event in batch.events]


def test_through_json_lines(tmp_path: Path, journal: Any) -> None:
    listener = JsonlListener(tmp_path / "events.jsonl", journal=journal)
    put_all(listener)
    check(listener)
    events = events_of(JsonlSource(tmp_path / "events.jsonl"))
    assert [event.execution_id for event in events[-2:]] == [GOOD, GOOD]
    assert len(events) == listener.counters.delivered


def test_through_an_audit_table(tmp_path: Path, journal: Any) -> None:
    url = f"sqlite:///{tmp_path}/audit.db"
    listener = SqlAuditListener(url, journal=journal)
    put_all(listener)
    check(listener)
    assert [event.execution_id for event in events_of(SqlSource(url, execution_id=GOOD))] == [GOOD, GOOD]


def test_through_otlp(receiver: Receiver, journal: Any) -> None:
    listener = OtlpListener(receiver.grpc_endpoint, journal=journal)
    put_all(listener)
    assert listener.close(30)
    counters = listener.counters
    assert (counters.held, counters.sending.refused, counters.dropped) == (0, 0, 0)
    assert [span.name for span in receiver.spans if span.attributes["constellation.execution.id"] == str(GOOD)] == [
        "after"
    ]
