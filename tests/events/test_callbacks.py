"""Callbacks become events, and what is told of a module besides waits for the next of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from constellation_otel.errors import DecodeError
from constellation_otel.events import (
    ErrorInfo,
    Event,
    EventListener,
    ExecutionJoined,
    ModuleCompleted,
    ModuleDescribed,
    ModuleDetails,
    ModuleFailed,
    ModuleStarted,
    decode_json,
    encode_frame,
    encode_json,
    merged_details,
    validated,
)
from constellation_otel.events.callbacks import WaitingDetails
from constellation_otel.listener import ExecutionListener
from constellation_otel.testing import RecordingListener
from odd_events import Hostile
from records import BODY, DETAILS, EXECUTION, MODULE, NOW, OTHER

if TYPE_CHECKING:
    from collections.abc import Sequence

SOME = ModuleDetails(attempt=2, attempt_of=OTHER)


def told(listener: EventListener, details: ModuleDetails, module_id: UUID = MODULE) -> None:
    listener.module_details(
        EXECUTION,
        module_id,
        module_name="Trim",
        parent_id=details.parent_id,
        attempt=details.attempt,
        attempt_of=details.attempt_of,
        outcome=details.outcome,
        reason=details.reason,
        upstream=details.upstream,
        attributes=details.attributes,
    )


def details_in(events: Sequence[Event]) -> list[tuple[type, ModuleDetails | None]]:
    return [(type(event), getattr(event, "details", None)) for event in events]


def test_details_go_with_the_next_event_of_their_module() -> None:
    listener = RecordingListener()
    told(listener, SOME)
    listener.on_module_start(EXECUTION, OTHER, "Other")
    listener.on_module_start(EXECUTION, MODULE, "Trim")
    told(listener, DETAILS)
    listener.on_module_complete(EXECUTION, MODULE, "Trim", 2.0)
    told(listener, SOME, OTHER)
    listener.on_module_failed(EXECUTION, OTHER, "Other", ValueError("boom"))
    listener.on_execution_complete(EXECUTION, "pipeline", False, 5.0)
    assert details_in(listener.events)[:4] == [
        (ModuleStarted, None),
        (ModuleStarted, SOME),
        (ModuleCompleted, DETAILS),
        (ModuleFailed, SOME),
    ]
    assert listener.dropped_details == 0


def test_what_is_told_of_a_module_twice_is_put_together() -> None:
    """What was told first wins, key by key."""
    listener = RecordingListener()
    told(listener, ModuleDetails(None, 1, None, None, "first", (OTHER,), {"a": 1, "b": 1}))
    told(listener, ModuleDetails(OTHER, 3, OTHER, None, "then", (MODULE, OTHER), {"b": 2, "c": 2}))
    listener.on_module_start(EXECUTION, MODULE, "Trim")
    both = ModuleDetails(OTHER, 3, OTHER, None, "first", (OTHER, MODULE), {"a": 1, "b": 1, "c": 2})
    assert details_in(listener.events) == [(ModuleStarted, both)]


def test_putting_nothing_to_details_changes_none() -> None:
    whole = ModuleDetails(OTHER, 2, OTHER, "cached", "again", (OTHER,), {"node.kind": "sql"})
    assert merged_details(whole, ModuleDetails()) == merged_details(ModuleDetails(), whole) == whole


def test_a_module_that_does_not_run_has_an_event_of_its_own() -> None:
    """With what was told of it before."""
    listener = RecordingListener()
    told(listener, ModuleDetails(upstream=(OTHER,)))
    told(listener, ModuleDetails(outcome="skipped", reason="not needed"))
    told(listener, ModuleDetails(outcome="cached"), OTHER)
    listener.module_details(EXECUTION, OTHER, outcome="cached")
    first, second, third = listener.events
    assert isinstance(first, ModuleDescribed)
    assert (first.module_name, first.details) == (
        "Trim",
        ModuleDetails(None, 1, None, "skipped", "not needed", (OTHER,)),
    )
    assert details_in([second]) == [(ModuleDescribed, ModuleDetails(outcome="cached"))]
    assert isinstance(third, ModuleDescribed)
    assert third.module_name == "unknown"
    assert decode_json(encode_json(first)) == first


@pytest.mark.parametrize("end", ["on_execution_complete", "on_execution_cancelled"])
def test_what_is_told_after_the_last_event_is_dropped_and_said(end: str, caplog: pytest.LogCaptureFixture) -> None:
    listener = RecordingListener()
    told(listener, SOME)
    listener.module_details(OTHER, MODULE, attempt=2)
    arguments: tuple[Any, ...] = (True, 5.0) if end == "on_execution_complete" else ()
    getattr(listener, end)(EXECUTION, "pipeline", *arguments)
    getattr(listener, end)(EXECUTION, "pipeline", *arguments)
    getattr(listener, end)("no id", "pipeline", *arguments)
    assert listener.dropped_details == 1
    assert caplog.messages == [
        f"details of module {MODULE} of execution {EXECUTION} came after its last event, and are dropped"
    ]
    listener.on_module_start(OTHER, MODULE, "Trim")
    assert details_in(listener.events[-1:]) == [(ModuleStarted, ModuleDetails(attempt=2))]


def test_beyond_their_limit_the_oldest_details_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    waiting = WaitingDetails(2)
    for number in range(4):
        waiting.put(EXECUTION, UUID(int=number), SOME)
    assert [waiting.take(EXECUTION, UUID(int=number)) for number in range(4)] == [None, None, SOME, SOME]
    assert waiting.dropped == 2
    assert caplog.messages == ["details of more than 2 modules wait for an event; the oldest are dropped"]


def test_details_that_another_thread_takes_meanwhile_are_not_dropped() -> None:
    class Racing(dict[tuple[int, int], ModuleDetails]):
        """Another thread has changed it while this one looks for the oldest."""

        def __iter__(self) -> Any:
            raise RuntimeError

        def copy(self) -> Any:
            """As it was before: what is in it is gone."""
            return {(EXECUTION.int, 1): SOME}

    waiting = WaitingDetails(0)
    waiting.details = Racing()
    waiting.put(EXECUTION, MODULE, SOME)
    waiting.end(EXECUTION)
    assert waiting.dropped == 0
    assert waiting.take(EXECUTION, MODULE) == SOME


@pytest.mark.parametrize("odd", [None, "id", 5, Hostile()], ids=lambda odd: type(odd).__name__)
def test_details_of_what_has_no_id_are_dropped_and_said(odd: Any, caplog: pytest.LogCaptureFixture) -> None:
    listener = RecordingListener()
    told(listener, SOME)
    listener.module_details(odd, MODULE)
    listener.module_details(EXECUTION, odd)
    listener.on_module_start(EXECUTION, odd, "Trim")
    listener.on_module_complete(odd, MODULE, "Trim", 2.0)
    assert listener.dropped_details == 2
    assert caplog.messages[0].endswith("are dropped: ids have to be UUIDs")
    assert details_in(listener.events) == [(ModuleStarted, None), (ModuleCompleted, None)]


def test_what_cannot_be_copied_costs_no_more_than_itself() -> None:
    """It is left out, and said, where the event is looked at."""
    listener = RecordingListener()
    odd: Any = Hostile()
    listener.module_details(EXECUTION, MODULE, attempt=2, upstream=odd, attributes=odd)
    listener.on_module_start(EXECUTION, MODULE, "Trim")
    passed = validated(listener.events[0])
    assert details_in([passed.event]) == [(ModuleStarted, ModuleDetails(attempt=2))]
    assert [reason.split(" ")[0] for reason in passed.corrected] == ["details.upstream", "details.attributes"]


def test_details_told_twice_that_cannot_be_put_together_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    listener = RecordingListener()
    odd: Any = Hostile()
    told(listener, SOME)
    listener.module_details(EXECUTION, MODULE, attributes=odd)
    listener.on_module_start(EXECUTION, MODULE, "Trim")
    assert details_in(listener.events) == [(ModuleStarted, SOME)]
    listener.module_details(EXECUTION, MODULE, upstream=odd)
    told(listener, ModuleDetails(outcome="cached"))
    assert details_in(listener.events[1:]) == [(ModuleDescribed, ModuleDetails(outcome="cached"))]
    assert listener.dropped_details == 2
    assert "could not be put together" in caplog.text


def test_a_listener_has_to_say_what_it_does_with_events() -> None:
    with pytest.raises(NotImplementedError):
        EventListener().on_execution_cancelled(EXECUTION, "pipeline")


def test_events_hand_details_on_to_those_that_take_them() -> None:
    """A listener that has the six callbacks only is not asked."""
    cached = ModuleDescribed(EXECUTION, MODULE, "Trim", NOW, ModuleDetails(outcome="cached"))
    events: list[Event] = [
        ModuleStarted(EXECUTION, MODULE, "Trim", NOW, DETAILS),
        ModuleCompleted(EXECUTION, MODULE, "Trim", 2.0, NOW, SOME, BODY),
        ModuleFailed(EXECUTION, OTHER, "Other", ErrorInfo("ValueError", "boom"), NOW, SOME),
        cached,
    ]
    listener = RecordingListener()
    for event in [*events, ExecutionJoined(EXECUTION, "pipeline", NOW)]:
        event.notify(listener)
        event.notify(ExecutionListener())
    assert details_in(listener.events) == details_in(events)


def test_a_module_that_is_described_needs_details_and_an_id() -> None:
    record = encode_json(ModuleDescribed(EXECUTION, MODULE, "Trim", NOW, ModuleDetails(outcome="cached")))
    for name, other in ((b'"moduleId"', b'"otherId"'), (b'"details"', b'"others"')):
        with pytest.raises(DecodeError, match=name.decode().strip('"')):
            decode_json(record.replace(name, other))


def test_the_engines_websocket_has_no_frame_for_what_it_does_not_know() -> None:
    described = ModuleDescribed(EXECUTION, MODULE, "Trim", NOW, ModuleDetails(outcome="cached"))
    for event in (described, ExecutionJoined(EXECUTION, "pipeline", NOW)):
        with pytest.raises(ValueError, match=f"no frame for {event.kind}"):
            encode_frame(event)
