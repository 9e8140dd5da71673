"""The six events: callbacks become them and they become callbacks again; their names, messages and durations."""

from __future__ import annotations

import gc
import math
import time
import weakref
from fractions import Fraction
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from constellation_otel._support.scope import ENGINE_KEY
from constellation_otel.errors import RemoteError
from constellation_otel.events import EventListener, ExecutionJoined, ModuleDescribed, ModuleDetails
from constellation_otel.events.model import (
    MAX_MESSAGE,
    MAX_NAME,
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
    clean_message,
    clean_name,
    duration_ns_of,
    remote_parent,
)
from constellation_otel.listener import ExecutionListener
from constellation_otel.testing import RecordingListener

if TYPE_CHECKING:
    from collections.abc import Callable

EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
MODULE = UUID("b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538")
NOW = 1_795_465_363_577_123_456
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACESTATE = "vendor=value,other=1"
CALLER = SpanContext(
    0x0AF7651916CD43DD8448EB211C80319C,
    0xB7AD6B7169203331,
    is_remote=False,
    trace_flags=TraceFlags(TraceFlags.SAMPLED),
    trace_state=TraceState([("vendor", "value"), ("other", "1")]),
)


class Keeping(EventListener):
    """Keeps the events; and the span that was current when each came."""

    def __init__(self, redact: Callable[[str], str] | None = None) -> None:
        super().__init__(redact)
        self.events: list[Event] = []
        self.current: list[SpanContext] = []

    def accept(self, event: Event) -> None:
        self.events.append(event)
        self.current.append(trace.get_current_span().get_span_context())


@pytest.fixture(autouse=True)
def _frozen_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: NOW)


def fire_all(listener: ExecutionListener) -> None:
    listener.on_execution_start(EXECUTION, "pipeline")
    listener.on_module_start(EXECUTION, MODULE, "Trim")
    listener.on_module_complete(EXECUTION, MODULE, "Trim", 2.5)
    listener.on_module_failed(EXECUTION, MODULE, "Trim", RemoteError("boom", "java.lang.Error"))
    listener.on_execution_complete(EXECUTION, "pipeline", False, 15.25)
    listener.on_execution_cancelled(EXECUTION, "pipeline")


ALL_SIX: list[Event] = [
    ExecutionStarted(EXECUTION, "pipeline", NOW),
    ModuleStarted(EXECUTION, MODULE, "Trim", NOW),
    ModuleCompleted(EXECUTION, MODULE, "Trim", 2.5, NOW),
    ModuleFailed(EXECUTION, MODULE, "Trim", ErrorInfo("java.lang.Error", "boom"), NOW),
    ExecutionCompleted(EXECUTION, "pipeline", succeeded=False, duration_ms=15.25, timestamp_ns=NOW),
    ExecutionCancelled(EXECUTION, "pipeline", NOW),
]


# --- callbacks and events -------------------------------------------------------------


def test_each_callback_becomes_its_event() -> None:
    listener = Keeping()
    fire_all(listener)
    assert listener.events == ALL_SIX


def test_each_event_becomes_its_callback_again() -> None:
    listener = Keeping()
    for event in ALL_SIX:
        event.notify(listener)
    assert listener.events == ALL_SIX


def test_the_base_of_event_listeners_takes_no_event_itself() -> None:
    with pytest.raises(NotImplementedError):
        EventListener().on_execution_cancelled(EXECUTION, "pipeline")


def test_an_event_cannot_be_changed() -> None:
    for event in ALL_SIX:
        with pytest.raises(AttributeError):
            event.timestamp_ns = 0  # type: ignore[misc]


def test_an_unknown_duration_becomes_nan() -> None:
    durations: list[float] = []

    class Listener(ExecutionListener):
        def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
            durations.append(duration_ms)

        def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
            durations.append(duration_ms)

    ModuleCompleted(EXECUTION, MODULE, "Trim", None, NOW).notify(Listener())
    ExecutionCompleted(EXECUTION, "pipeline", succeeded=True, duration_ms=None, timestamp_ns=NOW).notify(Listener())
    assert [math.isnan(duration) for duration in durations] == [True, True]


def test_a_module_event_without_an_id_calls_nothing_and_says_so() -> None:
    without: list[Event] = [
        ModuleStarted(EXECUTION, None, "Trim", NOW),
        ModuleCompleted(EXECUTION, None, "Trim", 2.5, NOW),
        ModuleFailed(EXECUTION, None, "Trim", ErrorInfo(None, "boom"), NOW),
    ]
    for event in without:
        listener = Keeping()
        with pytest.raises(ValueError) as refused:
            event.notify(listener)
        assert str(refused.value) == (
            f"{event!r} has no module id, so no callback can be called with it; the assembler takes it as it is"
        )
        assert listener.events == []


# --- trace context --------------------------------------------------------------------


def test_the_callers_span_is_captured_when_an_execution_starts() -> None:
    listener = Keeping()
    with trace.use_span(NonRecordingSpan(CALLER)):
        listener.on_execution_start(EXECUTION, "pipeline")
    assert listener.events == [ExecutionStarted(EXECUTION, "pipeline", NOW, TRACEPARENT, TRACESTATE)]


def test_a_caller_without_a_tracestate_has_none_in_the_event() -> None:
    listener = Keeping()
    with trace.use_span(NonRecordingSpan(SpanContext(CALLER.trace_id, CALLER.span_id, is_remote=False))):
        listener.on_execution_start(EXECUTION, "pipeline")
    assert listener.events == [ExecutionStarted(EXECUTION, "pipeline", NOW, TRACEPARENT[:-1] + "0")]


def test_the_remote_parent_is_current_in_notify_and_only_there() -> None:
    listener = Keeping()
    started = ExecutionStarted(EXECUTION, "pipeline", NOW, TRACEPARENT, TRACESTATE)
    started.notify(listener)
    assert listener.events == [started]
    (current,) = listener.current
    remote = SpanContext(CALLER.trace_id, CALLER.span_id, True, CALLER.trace_flags, CALLER.trace_state)
    assert current == remote
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_the_engines_name_is_told_again_in_notify() -> None:
    recorder = RecordingListener()
    joined: list[object] = []

    class Joining(ExecutionListener):
        def join(self, execution_id: UUID, dag_name: str, traceparent: str | None = None) -> None:
            joined.append((otel_context.get_value(ENGINE_KEY), traceparent))

        def traceparent_of(self, execution_id: UUID) -> None:
            return None

    for traceparent in (None, TRACEPARENT):
        ExecutionStarted(EXECUTION, "pipeline", NOW, traceparent, engine="loom").notify(recorder)
        ExecutionJoined(EXECUTION, "pipeline", NOW, traceparent, "loom").notify(Joining())
    assert [(event.engine, event.traceparent) for event in recorder.events if isinstance(event, ExecutionStarted)] == [
        ("loom", None),
        ("loom", TRACEPARENT),
    ]
    assert joined == [("loom", None), ("loom", TRACEPARENT)]
    assert otel_context.get_value(ENGINE_KEY) is None


def test_the_context_is_restored_where_the_callback_raises() -> None:
    class Listener(ExecutionListener):
        def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
            raise ValueError(trace.get_current_span().get_span_context().span_id)

    with pytest.raises(ValueError, match=str(CALLER.span_id)):
        ExecutionStarted(EXECUTION, "pipeline", NOW, TRACEPARENT).notify(Listener())
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.parametrize("traceparent", [None, "", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
def test_a_header_that_names_no_span_is_no_parent(traceparent: str | None) -> None:
    assert remote_parent(traceparent, TRACESTATE) is None
    listener = Keeping()
    ExecutionStarted(EXECUTION, "pipeline", NOW, traceparent).notify(listener)
    assert listener.events == [ExecutionStarted(EXECUTION, "pipeline", NOW)]


def test_a_remote_parent_without_a_tracestate_has_an_empty_one() -> None:
    for tracestate in (None, ""):
        parent = remote_parent(TRACEPARENT, tracestate)
        assert trace.get_current_span(parent).get_span_context().trace_state == TraceState()


def test_a_listeners_redact_hook_is_asked_in_the_callback() -> None:
    listener = Keeping(lambda message: message.replace("secret", "***"))
    listener.on_module_failed(EXECUTION, MODULE, "Trim", RemoteError("a secret"))
    assert listener.events == [ModuleFailed(EXECUTION, MODULE, "Trim", ErrorInfo(None, "a ***"), NOW)]


def test_nothing_that_is_kept_pins_the_locals_of_the_frame_that_failed() -> None:
    class Local:
        pass

    alive: list[weakref.ref[Local]] = []

    def fail() -> None:
        local = Local()
        alive.append(weakref.ref(local))
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner

    listener = Keeping()
    try:
        fail()
    except ValueError as caught:
        error: BaseException | None = caught
    listener.on_module_failed(EXECUTION, MODULE, "Trim", error)  # type: ignore[arg-type]
    gc.collect()
    assert alive[0]() is not None
    del error
    gc.collect()
    assert alive[0]() is None
    (event,) = listener.events
    assert isinstance(event, ModuleFailed)
    assert (event.error.type, event.error.message) == ("ValueError", "outer")


# --- names, messages, durations -------------------------------------------------------


ANY_TEXT = st.text(st.characters())
"""With lone surrogates, which hypothesis leaves out unless told."""


@given(ANY_TEXT)
def test_a_clean_name_is_short_not_empty_encodable_and_clean_for_good(name: str) -> None:
    clean = clean_name(name)
    assert 1 <= len(clean) <= MAX_NAME
    assert clean.encode().decode() == clean
    assert not any(character < " " or "\x7f" <= character <= "\x9f" for character in clean)
    assert clean_name(clean) == clean


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=MAX_NAME))
def test_a_name_that_is_clean_is_left_alone(name: str) -> None:
    assert clean_name(name) == name


def test_an_empty_name_is_unknown_and_a_long_one_is_cut() -> None:
    assert clean_name("") == "unknown"
    assert clean_name("x" * (MAX_NAME + 1)) == "x" * MAX_NAME
    assert clean_name("\x00" * (MAX_NAME + 1)) == "�" * MAX_NAME


@given(st.one_of(ANY_TEXT, ANY_TEXT.map(lambda text: text + "x" * MAX_MESSAGE)))
def test_a_clean_message_is_bounded_encodable_and_clean_for_good(message: str) -> None:
    clean = clean_message(message)
    assert len(clean) == min(len(message), MAX_MESSAGE)
    assert clean.encode().decode() == clean
    assert not any(character < " " and character not in "\t\n\r" for character in clean)
    assert not any("\x7f" <= character <= "\x9f" for character in clean)
    assert clean_message(clean) == clean


@given(
    st.text(st.one_of(st.characters(exclude_categories=["Cc", "Cs"]), st.sampled_from("\t\n\r")), max_size=MAX_MESSAGE)
)
def test_a_message_that_is_clean_is_left_alone(message: str) -> None:
    assert clean_message(message) == message


@given(st.integers(0, 2**51))
def test_whole_nanoseconds_survive_as_milliseconds_up_to_26_days(duration_ns: int) -> None:
    assert duration_ns_of(duration_ns / 1_000_000) == duration_ns


@given(st.one_of(st.floats(), st.integers()))
def test_a_duration_is_one_that_otlp_can_hold_or_none(duration_ms: float) -> None:
    duration_ns = duration_ns_of(duration_ms)
    if duration_ns is not None:
        assert 0 <= duration_ns < 2**63
        assert abs(duration_ns - Fraction(duration_ms) * 1_000_000) <= Fraction(1, 2)
    elif math.isfinite(duration_ms):
        assert not 0 <= Fraction(duration_ms) * 1_000_000 < 2**63 - 2**12


@pytest.mark.parametrize("duration_ms", [-1, -0.001, math.nan, math.inf, -math.inf, 1e300, 10**400, 9_223_372_036_855])
def test_what_cannot_be_a_duration_is_none(duration_ms: float) -> None:
    assert duration_ns_of(duration_ms) is None


def test_a_duration_is_rounded_to_the_nanosecond() -> None:
    assert [duration_ns_of(each) for each in (0, 2, 2.5, 0.0000004, 0.0000006)] == [0, 2_000_000, 2_500_000, 0, 1]


class Told(ExecutionListener):
    """Keeps the names of what it was told, and takes details and executions that others have started."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def module_details(self, execution_id: UUID, module_id: UUID, **details: object) -> None:
        self.told.append((module_id, details))

    def join(self, execution_id: UUID, dag_name: str, traceparent: str | None = None) -> None:
        self.told.append((dag_name, traceparent))

    def traceparent_of(self, execution_id: UUID) -> str | None:
        return None

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        self.told.append(module_name)


def test_details_and_joined_executions_reach_who_takes_them() -> None:
    """The details before the callback; a listener without the methods gets the six callbacks only."""
    details = ModuleDetails(attempt=2, reason="why", attributes={"tenant": "a"})
    events: list[Event] = [
        ModuleStarted(EXECUTION, MODULE, "Trim", 1, details),
        ModuleDescribed(EXECUTION, MODULE, "Trim", 1, details),
        ExecutionJoined(EXECUTION, "pipeline", 1, "00-1"),
    ]
    told = Told()
    for event in events:
        event.notify(told)
        event.notify(ExecutionListener.noop)
    said = {
        "module_name": "Trim", "parent_id": None, "attempt": 2, "attempt_of": None, "outcome": None, "reason": "why",
        "upstream": (), "attributes": {"tenant": "a"},
    }  # fmt: skip
    assert told.told == [(MODULE, said), "Trim", (MODULE, said), ("pipeline", "00-1")]
