"""The six events: callbacks become them and they become callbacks again; nothing pins what failed."""

from __future__ import annotations

import copy
import gc
import linecache
import math
import pickle
import time
import weakref
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from constellation_otel.errors import (
    ConstellationOtelError,
    ExecutionCancelledError,
    ExecutionFailedError,
    MissingExtraError,
    RemoteError,
)
from constellation_otel.events.model import (
    MAX_MESSAGE,
    MAX_NAME,
    ErrorInfo,
    Event,
    EventListener,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    Frames,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
    clean_message,
    clean_name,
    duration_ns_of,
    remote_parent,
)
from constellation_otel.listener import ExecutionListener

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
WITHOUT_A_CLASS = "<reading this error raised RuntimeError>"


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


def raised(error: BaseException) -> BaseException:
    """The exception once it has been raised, so that it has a traceback."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - any is given back
        return caught


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


# --- what is kept of an error ---------------------------------------------------------


def test_a_plain_error_is_its_type_its_message_and_where_it_passed() -> None:
    error = raised(ValueError("boom"))
    line = error.__traceback__.tb_lineno if error.__traceback__ is not None else 0
    frames = Frames("ValueError", "boom", ((__file__, line, "raised"),))
    assert ErrorInfo.of(error) == ErrorInfo("ValueError", "boom", frames)


def test_an_error_that_was_never_raised_has_no_frames() -> None:
    assert ErrorInfo.of(KeyError("k")) == ErrorInfo("KeyError", "'k'", Frames("KeyError", "'k'", ()))


def test_a_type_that_is_not_built_in_is_named_with_its_module() -> None:
    class Inner(Exception):
        pass

    name = f"{__name__}.test_a_type_that_is_not_built_in_is_named_with_its_module.<locals>.Inner"
    assert ErrorInfo.of(Inner()) == ErrorInfo(name, "", Frames(name, "", ()))


def test_a_types_name_is_cleaned_like_any_other() -> None:
    kind = type("Odd\n" + "x" * 5_000, (Exception,), {"__module__": "builtins"})
    assert ErrorInfo.of(kind()).type == "Odd\N{REPLACEMENT CHARACTER}" + "x" * (MAX_NAME - 4)


def test_causes_and_contexts_are_kept_as_python_would_print_them() -> None:
    def error_from(cause: BaseException | None, context: BaseException | None, *, suppress: bool) -> BaseException:
        error = ValueError("outer")
        error.__cause__, error.__context__, error.__suppress_context__ = cause, context, suppress
        return error

    def of(cause: BaseException | None, context: BaseException | None, *, suppress: bool) -> Frames | None:
        frames = ErrorInfo.of(error_from(cause, context, suppress=suppress)).frames
        return frames.cause if frames is not None else None

    inner, context = Frames("KeyError", "'inner'", ()), Frames("OSError", "context", ())
    assert of(None, None, suppress=False) is None
    assert of(KeyError("inner"), None, suppress=True) == inner
    assert of(None, OSError("context"), suppress=False) == context
    assert of(KeyError("inner"), OSError("context"), suppress=True) == inner
    assert of(None, OSError("context"), suppress=True) is None


def test_a_cause_that_is_false_in_a_condition_is_a_cause() -> None:
    class Empty(Exception):
        def __len__(self) -> int:
            return 0

    Empty.__module__, Empty.__qualname__ = "builtins", "Empty"
    error = ValueError("outer")
    error.__cause__ = Empty("inner")
    assert ErrorInfo.of(error).frames == Frames("ValueError", "outer", (), Frames("Empty", "inner", ()))


def test_a_chain_that_bites_its_tail_is_cut_after_four_causes() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__context__, second.__context__ = second, first
    said = []
    frames = ErrorInfo.of(first).frames
    while frames is not None:
        said.append(frames.message)
        frames = frames.cause
    assert said == ["first", "'second'", "first", "'second'", "first"]


def test_an_error_whose_str_raises_says_so() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise LookupError

    Mute.__module__, Mute.__qualname__ = "builtins", "Mute"
    message = "<str() of this Mute raised LookupError>"
    assert ErrorInfo.of(Mute()) == ErrorInfo("Mute", message, Frames("Mute", message, ()))


def test_an_error_that_cannot_even_be_looked_at_says_so() -> None:
    class Hidden(Exception):
        @property
        def __cause__(self) -> BaseException | None:  # type: ignore[override]
            raise RuntimeError

    assert ErrorInfo.of(Hidden()) == ErrorInfo("Hidden", WITHOUT_A_CLASS)


def test_a_message_of_a_megabyte_is_cut_and_says_how_long_it_was() -> None:
    note = "… (cut; it had 1000000 characters)"
    message = "x" * (MAX_MESSAGE - len(note)) + note
    assert ErrorInfo.of(ValueError("x" * 1_000_000)) == ErrorInfo(
        "ValueError", message, Frames("ValueError", message, ())
    )
    assert len(message) == MAX_MESSAGE


def test_lone_surrogates_and_control_characters_in_a_message_are_replaced() -> None:
    assert ErrorInfo.of(ValueError("a\ud800b\x00c\x1b[31m\x9b1m\td\ne\r\n")).message == "a�b�c�[31m�1m\td\ne\r\n"


def test_redact_rewrites_the_message_of_every_cause() -> None:
    error = ValueError("password=one")
    error.__cause__ = KeyError("password=two")
    kept = ErrorInfo.of(error, lambda message: message.replace("password", "***"))
    assert kept == ErrorInfo(
        "ValueError", "***=one", Frames("ValueError", "***=one", (), Frames("KeyError", "'***=two'", ()))
    )


def test_redact_sees_the_whole_message_before_it_is_cut() -> None:
    seen: list[str] = []

    def redact(message: str) -> str:
        seen.append(message)
        return "short"

    assert ErrorInfo.of(ValueError("x" * 1_000_000), redact).message == "short"
    assert seen == ["x" * 1_000_000]


def test_a_redact_hook_that_raises_withholds_the_message() -> None:
    def redact(message: str) -> str:
        raise LookupError(message)

    withheld = "<withheld: the redact hook raised LookupError>"
    assert ErrorInfo.of(ValueError("secret"), redact).message == withheld
    assert ErrorInfo.of(RemoteError("secret", "java.lang.Error"), redact) == ErrorInfo("java.lang.Error", withheld)


def test_a_redact_hook_that_returns_no_text_withholds_the_message() -> None:
    redact: Any = lambda message: None  # noqa: E731 - a hook of the wrong type
    assert ErrorInfo.of(ValueError("secret"), redact).message == "<withheld: the redact hook returned NoneType>"


def test_a_listeners_redact_hook_is_asked_in_the_callback() -> None:
    listener = Keeping(lambda message: message.replace("secret", "***"))
    listener.on_module_failed(EXECUTION, MODULE, "Trim", RemoteError("a secret"))
    assert listener.events == [ModuleFailed(EXECUTION, MODULE, "Trim", ErrorInfo(None, "a ***"), NOW)]


@pytest.mark.parametrize("name", [None, ""])
@pytest.mark.parametrize("message", [None, "", "boom"])
def test_a_remote_error_keeps_what_the_wire_told(message: str | None, name: str | None) -> None:
    assert ErrorInfo.of(RemoteError(message, name)) == ErrorInfo(None, message)
    assert ErrorInfo.of(RemoteError(message, "java.lang.Error")) == ErrorInfo("java.lang.Error", message)


def test_a_remote_errors_type_and_message_are_cleaned() -> None:
    assert ErrorInfo.of(RemoteError("a\ud800", "b\x00")) == ErrorInfo("b�", "a�")


def test_a_deep_recursion_keeps_the_innermost_frames_only() -> None:
    def sink(depth: int) -> None:
        if depth == 0:
            raise ValueError("bottom")
        sink(depth - 1)

    def sunk() -> ErrorInfo:
        try:
            sink(500)
        except ValueError as error:
            return ErrorInfo.of(error)
        raise AssertionError

    frames = sunk().frames
    assert frames is not None
    first = sink.__code__.co_firstlineno
    name = sink.__qualname__
    assert frames.frames == ((__file__, first + 3, name),) * 31 + ((__file__, first + 2, name),)


def test_an_endless_recursion_is_kept_in_as_few_frames() -> None:
    def endless() -> None:
        endless()

    def sunk() -> ErrorInfo:
        try:
            endless()
        except RecursionError as error:
            return ErrorInfo.of(error)
        raise AssertionError

    frames = sunk().frames
    assert frames is not None
    assert frames.frames == ((__file__, endless.__code__.co_firstlineno + 1, endless.__qualname__),) * 32


def test_a_file_name_that_is_no_text_cannot_get_onto_a_wire() -> None:
    namespace: dict[str, Any] = {}
    exec(
        compile("def fail():\n    raise ValueError('boom')", "caf\udce9.py", "exec"), namespace
    )  # the name as os.fsdecode gives it

    def failed() -> ErrorInfo:
        try:
            namespace["fail"]()
        except ValueError as error:
            return ErrorInfo.of(error)
        raise AssertionError

    frames = failed().frames
    assert frames is not None
    assert frames.frames[-1] == ("caf�.py", 2, "fail")


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


def test_a_light_traceback_reads_like_pythons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {("a.py", 3): "    call()\n", ("b.py", 7): ""}
    monkeypatch.setattr(linecache, "getline", lambda filename, line_number: lines[filename, line_number])
    cause = Frames("KeyError", "'k'", ())
    frames = Frames("ValueError", "", (("a.py", 3, "outer"), ("b.py", 7, "inner")), cause)
    assert frames.format() == (
        "KeyError: 'k'\n"
        "\n"
        "The above exception led to the following one:\n"
        "\n"
        "Traceback (most recent call last):\n"
        '  File "a.py", line 3, in outer\n'
        "    call()\n"
        '  File "b.py", line 7, in inner\n'
        "ValueError\n"
    )


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


# --- errors cross processes -----------------------------------------------------------


def test_a_remote_error_is_its_message_and_is_no_error_of_this_package() -> None:
    assert (str(RemoteError("boom", "java.lang.Error")), str(RemoteError(None))) == ("boom", "")
    assert not issubclass(RemoteError, ConstellationOtelError)


@pytest.mark.parametrize(
    "error",
    [
        RemoteError("boom", "java.lang.Error"),
        RemoteError(None),
        MissingExtraError("click", "cli"),
        ExecutionFailedError(EXECUTION, "pipeline", {"Trim": RemoteError("boom")}, {"Upper": 3}),
        ExecutionCancelledError(EXECUTION, "pipeline", {"Upper": 3}),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_after_a_pickle_and_after_a_copy(error: Exception) -> None:
    """A pool that could not unpickle what a module raised would be broken for good."""

    def whole(each: object) -> object:
        attributes = {name: whole(value) for name, value in vars(each).items()} if isinstance(each, Exception) else {}
        if isinstance(each, dict):
            return {key: whole(value) for key, value in each.items()}
        return (type(each), str(each), attributes) if isinstance(each, Exception) else each

    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert whole(again) == whole(error)


def test_a_missing_extra_says_what_to_install() -> None:
    error = MissingExtraError("click", "cli")
    assert (str(error), error.name) == (
        "click is not installed; run: pip install 'constellation-otel[cli]'",
        "click",
    )


def test_a_stacktrace_is_bounded_whatever_the_source_files_hold(tmp_path: Path) -> None:
    """A line of a megabyte, as minified or generated code has, and a message that is itself long."""
    source = tmp_path / "generated.py"
    source.write_text(f"def fail(): raise ValueError('y' * 8000) #{'x' * 1_000_000}\n")
    namespace: dict[str, Any] = {}
    exec(compile(source.read_text(), str(source), "exec"), namespace)
    errors: list[Exception] = []
    for _ in range(6):
        try:
            try:
                namespace["fail"]()
            except ValueError as error:
                raise error from (errors[-1] if errors else None)
        except ValueError as error:
            errors.append(error)
    info = ErrorInfo.of(errors[-1]).formatted()
    assert info.frames is None
    assert info.stacktrace is not None
    assert info.stacktrace.startswith("(cut; it had ")
    assert len(info.stacktrace) < 33_000
    assert "x" * 201 not in info.stacktrace
    assert info.stacktrace.endswith(f"ValueError: {'y' * 8000}\n")


def test_an_error_without_a_traceback_stays_as_it_is_when_it_is_formatted() -> None:
    info = ErrorInfo("E", "said on a wire")
    assert info.formatted() is info
