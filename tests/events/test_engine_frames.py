"""The engine's frames, byte for byte, both ways; those that were recorded, too."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constellation_otel.events import ModuleDetails, decode_frame, encode_frame
from constellation_otel.events.model import (
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionJoined,
    ExecutionStarted,
    Frames,
    ModuleCompleted,
    ModuleDescribed,
    ModuleFailed,
    ModuleStarted,
)
from events.helpers import EXECUTION, FRAMES, MESSAGES, MODULE, MODULE_IDS, MS, NAMES, NS, TRACEPARENT, completed

FRAMES_OF_RICHER_EVENTS: dict[str, tuple[Event, str]] = {
    "execution:start": (ExecutionStarted(EXECUTION, "ephemeral", NS, TRACEPARENT, "a=b"), FRAMES["execution:start"][1]),
    "module:start": (ModuleStarted(EXECUTION, MODULE, "Trim", NS), FRAMES["module:start"][1]),
    "module:complete": (ModuleCompleted(EXECUTION, MODULE, "Trim", 14.75, NS), FRAMES["module:complete"][1]),
    "module:failed": (
        ModuleFailed(EXECUTION, MODULE, "Trim", ErrorInfo("ValueError", "boom", Frames("V", "", ())), NS),
        FRAMES["module:failed"][1],
    ),
    "execution:complete": (completed(0.25, NS), FRAMES["execution:complete"][1]),
    "execution:cancelled": (ExecutionCancelled(EXECUTION, "ephemeral", NS), FRAMES["execution:cancelled"][1]),
}

every_frame = pytest.mark.parametrize("frame_type", FRAMES)


@every_frame
def test_a_frame_is_written_and_read_byte_for_byte(frame_type: str) -> None:
    event, text = FRAMES[frame_type]
    assert encode_frame(event).decode() == text
    assert decode_frame(text) == event
    assert decode_frame(text.encode()) == event


@every_frame
def test_what_a_frame_has_no_field_for_is_left_out(frame_type: str) -> None:
    event, text = FRAMES_OF_RICHER_EVENTS[frame_type]
    assert encode_frame(event).decode() == text


@every_frame
def test_fields_of_a_frame_that_nobody_knows_are_ignored(frame_type: str) -> None:
    event, text = FRAMES[frame_type]
    assert decode_frame(f'{{"later":{{"a":[1,2]}},{text[1:]}') == event


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ErrorInfo("ValueError", ""), "ValueError"),
        (ErrorInfo("ValueError", None), "ValueError"),
        (ErrorInfo(None, None), ""),
    ],
)
def test_an_error_without_a_message_is_its_class_in_a_frame(error: ErrorInfo, said: str) -> None:
    text = FRAMES["module:failed"][1].replace('"error":"boom"', f'"error":"{said}"')
    assert encode_frame(ModuleFailed(EXECUTION, MODULE, "Trim", error, MS)).decode() == text


def test_a_duration_that_is_not_known_is_zero_in_a_frame() -> None:
    text = FRAMES["module:complete"][1].replace('"durationMs":14', '"durationMs":0')
    assert encode_frame(ModuleCompleted(EXECUTION, MODULE, "Trim", None, MS)).decode() == text
    assert encode_frame(completed(None, MS)).decode() == FRAMES["execution:complete"][1]


def test_a_frame_may_lack_a_module_id_and_a_duration() -> None:
    text = (
        '{"type":"module:complete","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
        '"moduleName":"Trim","timestamp":1795465363577}'
    )
    assert decode_frame(text) == ModuleCompleted(EXECUTION, None, "Trim", None, MS)


RECORDED = {
    f"{name}:{number}": json.loads(line)["frame"]
    for name in ("engine-frames", "engine-frames-50", "engine-frames-50-lossy")
    for number, line in enumerate(
        (files("constellation_otel") / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(), start=1
    )
}


def test_all_recorded_frames_are_there() -> None:
    assert len(RECORDED) == 89 + 400 + 217
    assert {frame["type"] for frame in RECORDED.values()} == set(FRAMES)


def test_every_recorded_frame_is_written_as_the_engine_wrote_it() -> None:
    for where, frame in RECORDED.items():
        written = json.loads(encode_frame(decode_frame(json.dumps(frame))))
        assert (where, list(written.items())) == (where, list(frame.items()))


# but for the weeks of 1970 that are this century's years where seconds were meant
TIMES_MS = (st.integers(0, 499_999_999) | st.integers(5_000_000_000, 2**63 // 1_000_000 - 1)).map(
    lambda milliseconds: milliseconds * 1_000_000
)
DURATIONS_MS = st.integers(0, 2**43).map(float)

FRAME_EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(ExecutionStarted, st.uuids(), NAMES, TIMES_MS),
    st.builds(ModuleStarted, st.uuids(), MODULE_IDS, NAMES, TIMES_MS),
    st.builds(ModuleCompleted, st.uuids(), MODULE_IDS, NAMES, DURATIONS_MS, TIMES_MS),
    st.builds(ModuleFailed, st.uuids(), MODULE_IDS, NAMES, st.builds(ErrorInfo, st.none(), MESSAGES), TIMES_MS),
    st.builds(ExecutionCompleted, st.uuids(), NAMES, st.booleans(), DURATIONS_MS, TIMES_MS),
    st.builds(ExecutionCancelled, st.uuids(), NAMES, TIMES_MS),
)


@given(FRAME_EVENTS)
def test_a_frame_loses_nothing_of_an_event_in_whole_milliseconds(event: Event) -> None:
    assert decode_frame(encode_frame(event)) == event


@given(FRAME_EVENTS)
def test_a_frame_of_a_frame_is_the_same_frame(event: Event) -> None:
    assert encode_frame(decode_frame(encode_frame(event))) == encode_frame(event)


@pytest.mark.parametrize(
    "event",
    [ExecutionJoined(EXECUTION, "d", 1), ModuleDescribed(EXECUTION, MODULE, "m", 1, ModuleDetails(outcome="skipped"))],
)
def test_what_no_callback_tells_of_has_no_frame(event: Event) -> None:
    with pytest.raises(ValueError, match=f"the engine's WebSocket has no frame for {event.kind}"):
        encode_frame(event)
