"""Records that cannot be read, in either dialect, and records of which one field cannot."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from constellation_otel.delivery import Position, Record, Unreadable, item_of
from constellation_otel.errors import DecodeError
from constellation_otel.events import decode_frame, decode_json, encode_json, read_frame, read_json, validated
from constellation_otel.events.model import Event, ModuleFailed
from events.helpers import FRAMES, JSON_OF_THE_GUIDE, JSON_WITH_EXTENSIONS
from support import UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Callable

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
            "eventType 'execution.paused' is none that is known",
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
        (decode_frame, FRAME.replace("execution:start", "error"), "type 'error' is none that is known"),
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


@UNWATCHED
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


@UNWATCHED
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
