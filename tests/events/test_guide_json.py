"""The guide's JSON, byte for byte, both ways: what its own listener writes, and the extensions of this package."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constellation_otel.errors import DecodeError
from constellation_otel.events import (
    EVENT_TYPES,
    ModuleDescribed,
    ModuleDetails,
    decode_json,
    encode_json,
    engine_frames,
    guide_json,
    plain_events,
    validated,
)
from constellation_otel.events.model import (
    MAX_MESSAGE,
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
from events.helpers import (
    EXECUTION,
    JSON_OF_THE_GUIDE,
    JSON_WITH_EXTENSIONS,
    MESSAGES,
    MODULE,
    MODULE_IDS,
    MS,
    NAMES,
    NS,
    TEXT,
    completed,
)

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


PLAIN = [text.encode() for texts in (JSON_WITH_EXTENSIONS, JSON_OF_THE_GUIDE) for _, text in texts.values()]
PLAIN += [
    PLAIN[0].replace(b"my-pipeline", "\N{MAN}\N{ZERO WIDTH JOINER}\N{ROCKET}".encode()),
    PLAIN[0].replace(b'"timestamp":1795465363577,', b""),
    PLAIN[6].replace(b"1795465363577", b"1795465363577.25"),
]
ODD = [
    b"",
    b"[]",
    b"{}",
    PLAIN[0][:-1],
    PLAIN[0].replace(b"started", b"paused"),
    PLAIN[0].replace(b"my-pipeline", b"\\u0000"),
    PLAIN[0].replace(b"my-pipeline", b"\xff"),
    PLAIN[0].replace(b'"my-pipeline"', b'""'),
    PLAIN[0].replace(b"vendor=value", b"\\u00e9"),
    PLAIN[0].replace(b'Ns":1795465363577', b'Ns":1795465363578'),
    PLAIN[2].replace(b'Ns":2345678', b'Ns":-1'),
    # which is a float that is too large
    PLAIN[2].replace(b'Ns":2345678', b'Ns":9223372036854775807'),
    # a field that an event of its type does not have
    PLAIN[0].replace(b'"durationMs":null', b'"durationMs":"abc"'),
    PLAIN[3].replace(b"boom", b"\\u0000"),
    JSON_OF_THE_GUIDE["module.completed"][1].encode().replace(b'Ms":2', b'Ms":-2'),
]


@given(st.lists(st.sampled_from(PLAIN)), st.data())
def test_records_are_read_together_where_there_is_nothing_to_be_said_about_any(
    records: list[bytes], data: st.DataObject
) -> None:
    """As they are closely; and not at all where there is."""
    assert plain_events(records) == [validated(guide_json.read_closely(record).event).event for record in records]
    assert [record for record in records if guide_json.read_closely(record).corrected] == []
    records.insert(data.draw(st.integers(0, len(records))), data.draw(st.sampled_from(ODD)))
    assert plain_events(records) is None


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
    beside = {"attributes", "engine", "details", "body"}
    fields = {name for kind in EVENT_TYPES for name in kind.__struct_fields__}
    assert fields == guide_json._BY_FIELD.keys()
    assert fields == engine_frames._FORMS.keys() | {"timestamp_ns", "traceparent", "tracestate"} | beside


TIMES_NS = st.integers(0, 2**63 - 1)
DURATIONS_NS = st.none() | st.integers(0, 2**51).map(lambda duration_ns: duration_ns / 1_000_000)

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


@given(st.integers(MAX_MESSAGE - 40, MAX_MESSAGE + 40))
def test_a_long_message_is_the_same_after_any_number_of_hops(length: int) -> None:
    once = decode_json(encode_json(ModuleFailed(EXECUTION, MODULE, "Trim", ErrorInfo(None, "x" * length), NS)))
    assert decode_json(encode_json(once)) == once


@pytest.mark.parametrize("missing", ["details", "moduleId"])
def test_a_module_that_did_not_run_needs_its_details_and_id(missing: str) -> None:
    event = ModuleDescribed(UUID(int=1), UUID(int=2), "m", 1_000_000, ModuleDetails(outcome="skipped", reason="cached"))
    record = encode_json(event)
    assert decode_json(record) == event
    fields = json.loads(record)
    del fields[missing]
    with pytest.raises(DecodeError, match=f"{missing} is missing or null"):
        decode_json(json.dumps(fields))
