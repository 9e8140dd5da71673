"""The two JSON dialects, byte for byte, both ways; and what is said of a record that is neither."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from constellation_otel.delivery import Position, Record, Unreadable, item_of
from constellation_otel.errors import DecodeError
from constellation_otel.events import (
    EVENT_TYPES,
    decode_frame,
    decode_json,
    encode_frame,
    encode_json,
    engine_frames,
    guide_json,
    read_frame,
    read_json,
    validated,
)
from constellation_otel.events.model import (
    MAX_MESSAGE,
    MAX_NAME,
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    Frames,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
    clean_message,
    clean_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable

EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
MODULE = UUID("b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538")
NS = 1_795_465_363_577_123_456
MS = 1_795_465_363_577_000_000
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def completed(duration_ms: float | None, timestamp_ns: int, *, succeeded: bool = False) -> ExecutionCompleted:
    return ExecutionCompleted(EXECUTION, "my-pipeline", succeeded, duration_ms, timestamp_ns)


# --- the guide's JSON -----------------------------------------------------------------

JSON_WITH_EXTENSIONS: dict[str, tuple[Event, str]] = {
    "execution.started": (
        ExecutionStarted(EXECUTION, "my-pipeline", NS, TRACEPARENT, "vendor=value"),
        (
            '{"eventType":"execution.started","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577,"timestampNs":1795465363577123456,'
            '"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","tracestate":"vendor=value"}'
        ),
    ),
    "module.started": (
        ModuleStarted(EXECUTION, MODULE, "Trim", NS),
        (
            '{"eventType":"module.started","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577,"moduleId":"b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538",'
            '"timestampNs":1795465363577123456}'
        ),
    ),
    "module.completed": (
        ModuleCompleted(EXECUTION, MODULE, "Trim", 2.345678, NS),
        (
            '{"eventType":"module.completed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":2,"succeeded":true,"error":null,'
            '"timestamp":1795465363577,"moduleId":"b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538",'
            '"timestampNs":1795465363577123456,"durationNs":2345678}'
        ),
    ),
    "module.failed": (
        ModuleFailed(EXECUTION, MODULE, "Trim", ErrorInfo("java.lang.IllegalStateException", "boom"), NS),
        (
            '{"eventType":"module.failed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":null,"succeeded":false,"error":"boom",'
            '"timestamp":1795465363577,"moduleId":"b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538",'
            '"errorType":"java.lang.IllegalStateException","timestampNs":1795465363577123456}'
        ),
    ),
    "execution.completed": (
        completed(15.25, NS),
        (
            '{"eventType":"execution.completed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":15,"succeeded":false,"error":null,'
            '"timestamp":1795465363577,"timestampNs":1795465363577123456,"durationNs":15250000}'
        ),
    ),
    "execution.cancelled": (
        ExecutionCancelled(EXECUTION, "my-pipeline", NS),
        (
            '{"eventType":"execution.cancelled","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577,"timestampNs":1795465363577123456}'
        ),
    ),
}

JSON_OF_THE_GUIDE: dict[str, tuple[Event, str]] = {
    "execution.started": (
        ExecutionStarted(EXECUTION, "my-pipeline", MS),
        (
            '{"eventType":"execution.started","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577}'
        ),
    ),
    "module.started": (
        ModuleStarted(EXECUTION, None, "Trim", MS),
        (
            '{"eventType":"module.started","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577}'
        ),
    ),
    "module.completed": (
        ModuleCompleted(EXECUTION, None, "Trim", 2, MS),
        (
            '{"eventType":"module.completed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":2,"succeeded":true,"error":null,'
            '"timestamp":1795465363577}'
        ),
    ),
    "module.failed": (
        ModuleFailed(EXECUTION, None, "Trim", ErrorInfo(None, None), MS),
        (
            '{"eventType":"module.failed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":null,"succeeded":false,"error":null,'
            '"timestamp":1795465363577}'
        ),
    ),
    "execution.completed": (
        completed(15, MS, succeeded=True),
        (
            '{"eventType":"execution.completed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":15,"succeeded":true,"error":null,'
            '"timestamp":1795465363577}'
        ),
    ),
    "execution.cancelled": (
        ExecutionCancelled(EXECUTION, "my-pipeline", MS),
        (
            '{"eventType":"execution.cancelled","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577}'
        ),
    ),
}

JSON_WITHOUT_OPTIONAL_EXTENSIONS: dict[str, tuple[Event, str]] = {
    "execution.started": (
        JSON_OF_THE_GUIDE["execution.started"][0],
        (
            '{"eventType":"execution.started","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577,"timestampNs":1795465363577000000}'
        ),
    ),
    "module.started": (
        JSON_OF_THE_GUIDE["module.started"][0],
        (
            '{"eventType":"module.started","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577,"timestampNs":1795465363577000000}'
        ),
    ),
    "module.completed": (
        ModuleCompleted(EXECUTION, None, "Trim", None, MS),
        (
            '{"eventType":"module.completed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":null,"succeeded":true,"error":null,'
            '"timestamp":1795465363577,"timestampNs":1795465363577000000}'
        ),
    ),
    "module.failed": (
        JSON_OF_THE_GUIDE["module.failed"][0],
        (
            '{"eventType":"module.failed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":null,"succeeded":false,"error":null,'
            '"timestamp":1795465363577,"timestampNs":1795465363577000000}'
        ),
    ),
    "execution.completed": (
        completed(None, MS, succeeded=True),
        (
            '{"eventType":"execution.completed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":null,"succeeded":true,"error":null,'
            '"timestamp":1795465363577,"timestampNs":1795465363577000000}'
        ),
    ),
    "execution.cancelled": (
        JSON_OF_THE_GUIDE["execution.cancelled"][0],
        (
            '{"eventType":"execution.cancelled","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577,"timestampNs":1795465363577000000}'
        ),
    ),
}

every_type = pytest.mark.parametrize("event_type", JSON_WITH_EXTENSIONS)


@every_type
def test_json_is_written_and_read_byte_for_byte(event_type: str) -> None:
    event, text = JSON_WITH_EXTENSIONS[event_type]
    assert encode_json(event).decode() == text
    assert decode_json(text) == event
    assert decode_json(text.encode()) == event


@every_type
def test_what_an_event_does_not_have_is_null_in_the_guides_fields_and_absent_beyond(event_type: str) -> None:
    event, text = JSON_WITHOUT_OPTIONAL_EXTENSIONS[event_type]
    assert encode_json(event).decode() == text
    assert decode_json(text) == event


@every_type
def test_a_record_of_the_guides_own_listener_is_read(event_type: str) -> None:
    event, text = JSON_OF_THE_GUIDE[event_type]
    assert decode_json(text) == event


@every_type
def test_fields_that_nobody_knows_and_extensions_that_are_null_are_ignored(event_type: str) -> None:
    event, text = JSON_OF_THE_GUIDE[event_type]
    nulls = '"moduleId":null,"errorType":null,"timestampNs":null,"durationNs":null,"traceparent":null,"tracestate":null'
    assert decode_json(f'{{"later":{{"a":[1,2]}},{nulls},{text[1:]}') == event


@every_type
def test_null_fields_may_be_absent(event_type: str) -> None:
    event, text = JSON_OF_THE_GUIDE[event_type]
    present = {name: value for name, value in json.loads(text).items() if value is not None}
    assert decode_json(json.dumps(present)) == event


def test_a_timestamp_may_have_a_fraction() -> None:
    text = JSON_OF_THE_GUIDE["execution.cancelled"][1].replace("1795465363577", "1795465363577.25")
    assert decode_json(text) == ExecutionCancelled(EXECUTION, "my-pipeline", MS + 250_000)


def test_nanoseconds_need_no_timestamp_beside_them() -> None:
    text = JSON_WITH_EXTENSIONS["execution.cancelled"][1].replace('"timestamp":1795465363577,', "")
    assert decode_json(text) == ExecutionCancelled(EXECUTION, "my-pipeline", NS)


@pytest.mark.parametrize("duration_ns", ["-1", "9223372036854775808", "9" * 400])
def test_nanoseconds_that_are_no_duration_leave_the_guides_field(duration_ns: str) -> None:
    text = JSON_WITH_EXTENSIONS["execution.completed"][1].replace("15250000", duration_ns)
    assert decode_json(text) == completed(15, NS)


@pytest.mark.parametrize("duration_ms", [-1.0, float("nan"), float("inf"), 1e300])
def test_what_is_no_duration_is_written_as_none(duration_ms: float) -> None:
    assert (
        encode_json(completed(duration_ms, MS, succeeded=True)).decode()
        == (JSON_WITHOUT_OPTIONAL_EXTENSIONS["execution.completed"][1])
    )


def test_json_is_one_line_whatever_the_names_are() -> None:
    event = ModuleFailed(EXECUTION, MODULE, "a\nb\ud800", ErrorInfo("T\x00", "c\r\nd\udfff"), NS)
    line = encode_json(event)
    assert b"\n" not in line
    assert decode_json(line) == ModuleFailed(EXECUTION, MODULE, "a�b�", ErrorInfo("T�", "c\r\nd�"), NS)


def test_a_message_that_was_cut_once_is_written_as_it_is() -> None:
    kept = ErrorInfo.of(ValueError("x" * 1_000_000))
    event = ModuleFailed(EXECUTION, MODULE, "Trim", kept, NS)
    assert decode_json(encode_json(event)) == ModuleFailed(
        EXECUTION, MODULE, "Trim", ErrorInfo(kept.type, kept.message), NS
    )


def test_a_traceback_stays_at_home() -> None:
    error = ErrorInfo("ValueError", "boom", Frames("ValueError", "boom", (("a.py", 1, "f"),)))
    event = ModuleFailed(EXECUTION, MODULE, "Trim", error, NS)
    without = ModuleFailed(EXECUTION, MODULE, "Trim", ErrorInfo("ValueError", "boom"), NS)
    assert encode_json(event) == encode_json(without)
    assert decode_json(encode_json(event)) == without


def test_every_field_of_every_event_is_in_both_dialects() -> None:
    """A field that is new has to be given a form, or stand among those that an engine's frame does not have."""
    fields = {name for kind in EVENT_TYPES for name in kind.__struct_fields__}
    assert fields == guide_json._BY_FIELD.keys()
    assert fields == engine_frames._FORMS.keys() | {"timestamp_ns", "traceparent", "tracestate"}


# --- the engine's frames --------------------------------------------------------------

FRAMES: dict[str, tuple[Event, str]] = {
    "execution:start": (
        ExecutionStarted(EXECUTION, "ephemeral", MS),
        (
            '{"type":"execution:start","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"ephemeral","timestamp":1795465363577}'
        ),
    ),
    "module:start": (
        ModuleStarted(EXECUTION, MODULE, "Trim", MS),
        (
            '{"type":"module:start","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"moduleId":"b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538","moduleName":"Trim","timestamp":1795465363577}'
        ),
    ),
    "module:complete": (
        ModuleCompleted(EXECUTION, MODULE, "Trim", 14, MS),
        (
            '{"type":"module:complete","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"moduleId":"b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538","moduleName":"Trim","durationMs":14,'
            '"timestamp":1795465363577}'
        ),
    ),
    "module:failed": (
        ModuleFailed(EXECUTION, MODULE, "Trim", ErrorInfo(None, "boom"), MS),
        (
            '{"type":"module:failed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"moduleId":"b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538","moduleName":"Trim","error":"boom",'
            '"timestamp":1795465363577}'
        ),
    ),
    "execution:complete": (
        completed(0, MS),
        (
            '{"type":"execution:complete","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","succeeded":false,"durationMs":0,"timestamp":1795465363577}'
        ),
    ),
    "execution:cancelled": (
        ExecutionCancelled(EXECUTION, "ephemeral", MS),
        (
            '{"type":"execution:cancelled","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"ephemeral","timestamp":1795465363577}'
        ),
    ),
}

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


# --- what cannot be read --------------------------------------------------------------

STARTED = JSON_OF_THE_GUIDE["execution.started"][1]
FRAME = FRAMES["execution:start"][1]
decoders = pytest.mark.parametrize("decode", [decode_json, decode_frame])


@pytest.mark.parametrize(
    ("decode", "text", "why"),
    [
        (decode_json, STARTED.replace('"my-pipeline"', "null"), "dagName is missing or null"),
        (decode_json, STARTED.replace("execution.started", "module.started"), "moduleName is missing or null"),
        (decode_json, STARTED.replace("execution.started", "execution.completed"), "succeeded is missing or null"),
        (
            decode_json,
            STARTED.replace("execution.started", "execution.paused"),
            "eventType 'execution.paused' is none of the six",
        ),
        (decode_json, STARTED.replace("1795465363577", "null"), "timestamp is missing or null"),
        (
            decode_json,
            STARTED.replace("1795465363577", "-1"),
            "timestamp is -1, not within 0 and 2**63 - 1 ns",
        ),
        (
            decode_json,
            STARTED.replace("1795465363577", "9223372036855"),
            "timestamp is 9223372036855, not within 0 and 2**63 - 1 ns",
        ),
        (
            decode_json,
            STARTED.replace('"timestamp"', '"timestampNs"').replace("1795465363577", "-5"),
            "timestampNs is -5, not within 0 and 2**63 - 1, and there is no timestamp",
        ),
        (decode_json, STARTED.replace('"my-pipeline"', "7"), "dagName is 7: Expected `str | null`, got `int`"),
        (decode_json, STARTED.replace("54b81984", "54b8198"), "Invalid UUID - at `$.executionId`"),
        (decode_json, STARTED.replace('"executionId"', '"id"'), "Object missing required field `executionId`"),
        (decode_json, STARTED.replace('"eventType"', '"type"'), "Object missing required field `eventType`"),
        (decode_frame, FRAME.replace('"dagName"', '"name"'), "dagName is missing or null"),
        (decode_frame, FRAME.replace("execution:start", "module:start"), "moduleName is missing or null"),
        (decode_frame, FRAME.replace("execution:start", "execution:complete"), "succeeded is missing or null"),
        (decode_frame, FRAME.replace("execution:start", "error"), "type 'error' is none of the six"),
        (decode_frame, FRAME.replace('"timestamp"', '"time"'), "Object missing required field `timestamp`"),
        (
            decode_frame,
            FRAME.replace("1795465363577", "-0.5"),
            "timestamp is -0.5, not within 0 and 2**63 - 1 ns",
        ),
        (decode_frame, FRAME.replace("1795465363577", "1e308"), "timestamp is 1e+308, not within 0 and 2**63 - 1 ns"),
        (decode_frame, FRAME.replace("1795465363577", "NaN"), "timestamp is nan, not within 0 and 2**63 - 1 ns"),
        (decode_json, "[]", "Expected `object`, got `array`"),
        (decode_json, "null", "Expected `object`, got `null`"),
        (decode_json, "", "Input data was truncated"),
        (decode_frame, "ping", "JSON is malformed: invalid character (byte 0)"),
        (decode_json, STARTED[:-1], "Input data was truncated"),
        (decode_json, STARTED + STARTED, f"JSON is malformed: trailing characters (byte {len(STARTED) + 1})"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused_with_the_reason_and_the_record(
    decode: Callable[[bytes | str], Event], text: str, why: str
) -> None:
    with pytest.raises(DecodeError) as refused:
        decode(text)
    shown = repr(text) if len(text) <= 200 else repr(text[:200]) + "…"
    assert str(refused.value) == f"not an event: {why}; the record is {shown}"


@decoders
def test_bytes_that_are_no_text_are_refused(decode: Callable[[bytes | str], Event]) -> None:
    with pytest.raises(DecodeError) as refused:
        decode(b'{"dagName":"\xff"')
    assert str(refused.value) == (
        "not an event: 'utf-8' codec can't decode byte 0xff in position 12: invalid start byte;"
        ' the record is b\'{"dagName":"\\xff"\''
    )


@decoders
def test_text_that_has_no_bytes_is_refused(decode: Callable[[bytes | str], Event]) -> None:
    with pytest.raises(DecodeError) as refused:
        decode('"\ud800"')
    assert str(refused.value) == (
        "not an event: 'utf-8' codec can't encode character '\\ud800' in position 1: surrogates not allowed;"
        " the record is '\"\\ud800\"'"
    )


@decoders
def test_a_hundred_thousand_brackets_are_refused(decode: Callable[[bytes | str], Event]) -> None:
    text = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(DecodeError) as refused:
        decode(text)
    assert str(refused.value) == (
        f"not an event: maximum recursion depth exceeded while deserializing an object; the record is {text[:200]!r}…"
    )


@decoders
@given(data=st.one_of(st.binary(), st.text(st.characters())))
def test_noise_is_refused_and_nothing_else_is_raised(decode: Callable[[bytes | str], Event], data: bytes | str) -> None:
    with pytest.raises(DecodeError):
        decode(data)


SOME_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("decode", "golden"),
    [
        *((decode_json, text) for _, text in JSON_WITH_EXTENSIONS.values()),
        *((decode_frame, text) for _, text in FRAMES.values()),
    ],
)
@given(data=st.data())
def test_any_value_in_any_field_is_read_or_refused(
    decode: Callable[[bytes | str], Event], golden: str, data: st.DataObject
) -> None:
    record = json.loads(golden)
    record[data.draw(st.sampled_from(sorted(record)))] = data.draw(SOME_JSON)
    try:
        event = decode(json.dumps(record))
    except DecodeError:
        return
    assert 0 <= event.timestamp_ns < 2**63
    assert decode_json(encode_json(event)).execution_id == event.execution_id


# --- laws -----------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = st.text(max_size=MAX_NAME).map(clean_name)
MESSAGES = TEXT.map(clean_message)
TIMES_NS = st.integers(0, 2**63 - 1)
DURATIONS_NS = st.none() | st.integers(0, 2**51).map(lambda duration_ns: duration_ns / 1_000_000)
MODULE_IDS = st.none() | st.uuids()
# but for the weeks of 1970 that are this century's years where seconds were meant
TIMES_MS = (st.integers(0, 499_999_999) | st.integers(5_000_000_000, 2**63 // 1_000_000 - 1)).map(
    lambda milliseconds: milliseconds * 1_000_000
)
DURATIONS_MS = st.integers(0, 2**43).map(float)

EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        ExecutionStarted, st.uuids(), NAMES, TIMES_NS, st.none() | TEXT.filter(bool), st.none() | TEXT.filter(bool)
    ),
    st.builds(ModuleStarted, st.uuids(), MODULE_IDS, NAMES, TIMES_NS),
    st.builds(ModuleCompleted, st.uuids(), MODULE_IDS, NAMES, DURATIONS_NS, TIMES_NS),
    st.builds(
        ModuleFailed,
        st.uuids(),
        MODULE_IDS,
        NAMES,
        st.builds(ErrorInfo, st.none() | NAMES, st.none() | MESSAGES),
        TIMES_NS,
    ),
    st.builds(ExecutionCompleted, st.uuids(), NAMES, st.booleans(), DURATIONS_NS, TIMES_NS),
    st.builds(ExecutionCancelled, st.uuids(), NAMES, TIMES_NS),
)

FRAME_EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(ExecutionStarted, st.uuids(), NAMES, TIMES_MS),
    st.builds(ModuleStarted, st.uuids(), MODULE_IDS, NAMES, TIMES_MS),
    st.builds(ModuleCompleted, st.uuids(), MODULE_IDS, NAMES, DURATIONS_MS, TIMES_MS),
    st.builds(ModuleFailed, st.uuids(), MODULE_IDS, NAMES, st.builds(ErrorInfo, st.none(), MESSAGES), TIMES_MS),
    st.builds(ExecutionCompleted, st.uuids(), NAMES, st.booleans(), DURATIONS_MS, TIMES_MS),
    st.builds(ExecutionCancelled, st.uuids(), NAMES, TIMES_MS),
)


@given(EVENTS)
def test_json_loses_nothing_of_an_event_but_its_traceback(event: Event) -> None:
    assert decode_json(encode_json(event)) == event


@given(EVENTS)
def test_the_guides_numbers_are_the_nanoseconds_cut_to_whole_milliseconds(event: Event) -> None:
    record = json.loads(encode_json(event))
    assert record["timestamp"] == event.timestamp_ns // 1_000_000
    assert isinstance(record["timestamp"], int)
    duration_ns = record.get("durationNs")
    assert record["durationMs"] == (None if duration_ns is None else duration_ns // 1_000_000)
    assert isinstance(record["durationMs"], int | None)


@given(FRAME_EVENTS)
def test_a_frame_loses_nothing_of_an_event_in_whole_milliseconds(event: Event) -> None:
    assert decode_frame(encode_frame(event)) == event


@given(FRAME_EVENTS)
def test_a_frame_of_a_frame_is_the_same_frame(event: Event) -> None:
    assert encode_frame(decode_frame(encode_frame(event))) == encode_frame(event)


@given(st.integers(MAX_MESSAGE - 40, MAX_MESSAGE + 40))
def test_a_long_message_is_the_same_after_any_number_of_hops(length: int) -> None:
    once = decode_json(encode_json(ModuleFailed(EXECUTION, MODULE, "Trim", ErrorInfo(None, "x" * length), NS)))
    assert decode_json(encode_json(once)) == once


# --- one bad field does not cost the record -------------------------------------------

COMPLETED, FAILED, BEGUN = (
    JSON_WITH_EXTENSIONS[kind][1] for kind in ("module.completed", "module.failed", "execution.started")
)


def with_field(text: str, field: str, value: str) -> str:
    """A record with one field set to a JSON text, which need not be JSON."""
    fields = {name: json.dumps(each) for name, each in json.loads(text).items()} | {field: value}
    return "{" + ",".join(f"{json.dumps(name)}:{each}" for name, each in fields.items()) + "}"


WRONG = ["7", '"seven"', "true", "[1]", '{"a":1}', "NaN", "-Infinity", "1e400", "9" * 400, '"\\ud800"', '"a\nb"']
OPTIONAL = {
    "durationMs": COMPLETED,
    "moduleId": COMPLETED,
    "durationNs": COMPLETED,
    "timestampNs": COMPLETED,
    "error": FAILED,
    "errorType": FAILED,
    "traceparent": BEGUN,
    "tracestate": BEGUN,
}


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("field", OPTIONAL)
def test_an_optional_field_that_cannot_be_read_costs_nothing_but_itself(field: str, value: str) -> None:
    """What is left out is told, by the reader or by the door behind it."""
    text = OPTIONAL[field]
    event, told = read_json(with_field(text, field, value))
    kept, corrected = validated(event)
    expected: Any = decode_json(text)
    assert (type(kept), kept.execution_id, kept.timestamp_ns // 10**6) == (
        type(expected),
        expected.execution_id,
        expected.timestamp_ns // 10**6,
    )
    assert decode_json(encode_json(kept)) == kept
    has_changed = structs.astuple(kept) != structs.astuple(expected)
    is_right = value in {"7", '"seven"', '"a\nb"', '"\\ud800"'}
    assert bool(told or corrected) or is_right or not has_changed


@pytest.mark.parametrize("field", ["executionId", "dagName", "eventType", "timestamp"])
@pytest.mark.parametrize("value", ["7.5", "[1]", "NaN", "null"])
def test_a_field_without_which_a_record_says_nothing_costs_the_record(field: str, value: str) -> None:
    if (field, value) == ("timestamp", "7.5"):
        value = '"seven"'
    with pytest.raises(DecodeError, match=field):
        decode_json(with_field(STARTED, field, value))


def test_bytes_that_are_not_utf_8_are_replaced_and_told() -> None:
    event, corrected = read_json(FAILED.encode().replace(b"boom", b"caf\xe9"))
    assert isinstance(event, ModuleFailed)
    assert (event.error.message, corrected) == (
        "caf\N{REPLACEMENT CHARACTER}",
        ("bytes that are not UTF-8 were replaced",),
    )


@pytest.mark.parametrize("read", [read_json, read_frame])
@pytest.mark.parametrize("encode", [str.encode, str])
def test_a_byte_order_mark_before_a_record_is_nothing(read: Any, encode: Any) -> None:
    text = STARTED if read is read_json else FRAME
    plain = item_of(read, encode(text), Position(None, 0))
    assert item_of(read, encode("\ufeff" + text), Position(None, 0)) == plain
    assert isinstance(plain, Record)


@pytest.mark.parametrize("read", [read_json, read_frame])
def test_what_is_no_event_is_given_as_it_came(read: Any) -> None:
    item = item_of(read, "\ud800", Position(None, 3))
    assert isinstance(item, Unreadable)
    assert (item.data, item.position) == (b"\xed\xa0\x80", Position(None, 3))


@pytest.mark.parametrize(
    ("timestamp", "unit"),
    [
        ("1795465363", "seconds"),
        ("1795465363.577", "seconds"),
        ("1795465363577000", "microseconds"),
        ("1795465363577000000", "nanoseconds"),
    ],
)
@decoders
def test_a_time_in_another_unit_is_refused_with_the_unit(
    decode: Callable[[bytes | str], Event], timestamp: str, unit: str
) -> None:
    text = (STARTED if decode is decode_json else FRAME).replace("1795465363577", timestamp)
    with pytest.raises(DecodeError, match=f"which looks like {unit}, not epoch milliseconds"):
        decode(text)


def test_nanoseconds_that_contradict_the_milliseconds_are_left_out() -> None:
    event, corrected = read_json(with_field(STARTED, "timestampNs", "1795465363577"))
    assert event == decode_json(STARTED)
    assert corrected == ("timestampNs is 1795465363577, which is another time than timestamp, 1795465363577 ms",)
