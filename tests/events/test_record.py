"""What is told of a module besides its events: plain and bounded, whatever it was made of."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from constellation_otel.events import (
    BodyRecord,
    Budget,
    Event,
    ExecutionStarted,
    ModuleCompleted,
    ModuleDetails,
    RecordedEvent,
    RecordedLink,
    clean_attributes,
    cleaned_body,
    decode_json,
    encode_json,
    validated,
)
from constellation_otel.events.record import are_plain_details, cleaned_details, is_plain_body
from constellation_otel.events.validation import Validated, is_valid
from odd_events import ODD, DriversUUID, Hostile, Int, Text
from records import BODY, DETAILS, EXECUTION, EXTREME, MODULE, NOW, OTHER, RAW_BODIES, RAW_DETAILS, TOLD

if TYPE_CHECKING:
    from collections.abc import Callable

LINK = BODY.links[0]
MISS = BODY.events[0]


def completed(body: Any = None, details: Any = None) -> ModuleCompleted:
    return ModuleCompleted(EXECUTION, MODULE, "Trim", 2.5, NOW, details, body)


def kept_of(value: object) -> object:
    """What is kept of an attribute's value; nothing where it is dropped."""
    kept, dropped = clean_attributes({"key": value}, Budget())
    assert dropped == (0 if kept else 1)
    return kept.get("key")


class Mapping(dict[str, str]):
    """Raises where it is asked for what it has."""

    def items(self) -> Any:
        raise KeyError


class List(list[Any]):
    """Raises where it is cut."""

    def __getitem__(self, index: Any) -> Any:
        raise KeyError


def test_what_a_body_has_set_passes_the_door_as_it_is() -> None:
    for event in (completed(BODY), completed(BodyRecord(), DETAILS), completed(structs.replace(BODY, links=()))):
        assert is_valid(event)
        assert validated(event) == Validated(event, ())


@given(RAW_BODIES)
def test_a_cleaned_record_is_plain_and_stays_the_same(raw: BodyRecord) -> None:
    cleaned = cleaned_body(raw)
    assert is_plain_body(cleaned)
    assert cleaned_body(cleaned) == cleaned
    assert validated(completed(raw)).event == validated(completed(cleaned)).event == completed(cleaned)
    assert not is_plain_body(raw) or cleaned == raw


@given(RAW_DETAILS)
def test_cleaned_details_are_plain_and_stay_the_same(raw: ModuleDetails) -> None:
    cleaned = cleaned_details(raw, MODULE, [])
    corrected: list[str] = []
    assert are_plain_details(cleaned, MODULE)
    assert cleaned_details(cleaned, MODULE, corrected) == cleaned
    assert not corrected
    assert not are_plain_details(raw, MODULE) or cleaned == raw


@given(TOLD)
def test_every_record_and_all_details_survive_json(event: Event) -> None:
    assert decode_json(encode_json(event)) == event
    assert validated(event) == Validated(event, ())


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.floats()))
def test_an_executions_attributes_survive_json(raw: dict[Any, Any]) -> None:
    event = validated(ExecutionStarted(EXECUTION, "pipeline", NOW, attributes=raw)).event
    assert isinstance(event, ExecutionStarted)
    assert validated(event) == Validated(event, ())
    assert decode_json(encode_json(event)) == structs.replace(event, attributes=event.attributes or None)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("text", "text"),
        (Text("a\x00\ud800"), "a\ufffd\ufffd"),
        ("x" * 10_000_000, "x" * 8_192),
        (True, True),
        (Int(7), 7),
        (2**63 - 1, 2**63 - 1),
        (2**70, str(2**70)),
        (10**5000, "<repr() of this int raised ValueError>"),
        (2.5, 2.5),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (b"caf\xc3\xa9 \xff", "café \ufffd"),
        (b"x" * 10_000_000, "x" * 8_192),
        (["a", 1, None, 2**70, object()], ("a", 1, str(2**70))),
        (range(3), (0, 1, 2)),
        ([1] * 1_000, (1,) * 1_000),
        (["x" * 10_000] * 10_000, None),
        ([], ()),
        (None, None),
        ({"a": 1}, None),
        (object(), None),
        (List([1]), None),
        (Hostile(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_attributes_value_is_made_plain_or_dropped(value: object, kept: object) -> None:
    plain = kept_of(value)
    assert plain == kept
    assert type(plain) is type(kept)


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        ("key", {"key": 1}),
        ("k" * 300, {"k" * 256: 1}),
        ("a\nb\ud800", {"a\ufffdb\ufffd": 1}),
        ("", {}),
        (5, {}),
        (None, {}),
    ],
)
def test_an_attributes_key_is_cleaned_or_its_value_dropped(key: Any, kept: object) -> None:
    assert clean_attributes({key: 1}, Budget()) == (kept, 0 if kept else 1)


def test_the_first_attributes_are_kept_and_the_others_counted() -> None:
    many: dict[str, int] = {f"key {number}": number for number in range(10_000)}
    kept, dropped = clean_attributes(many, Budget())
    assert kept == {f"key {number}": number for number in range(128)}
    assert dropped == 9_872


def test_a_key_that_becomes_another_one_takes_no_room() -> None:
    assert clean_attributes({"\x00": 1, "\x01": 2, "b": 3}, Budget(), 1) == ({"\ufffd": 2}, 1)


@pytest.mark.parametrize("field", [field.name for field in structs.fields(BodyRecord)])
def test_an_odd_value_in_a_record_costs_that_field_only(field: str) -> None:
    for value in [*ODD, (), (Hostile(), MISS, LINK), List([1]), Mapping()]:
        record = structs.replace(BODY, **{field: value})
        passed = validated(completed(record))
        body = passed.event.body  # type: ignore[union-attr]
        assert passed == Validated(completed(body), ())
        assert isinstance(body, BodyRecord)
        assert is_plain_body(body)
        others = {each.name for each in structs.fields(BodyRecord)} - {field, f"dropped_{field}"}
        assert {name: getattr(body, name) for name in others} == {name: getattr(BODY, name) for name in others}


@pytest.mark.parametrize(
    ("one", "name"),
    [(each, field.name) for each in (MISS, LINK) for field in structs.fields(type(each))],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_an_odd_value_in_an_event_or_a_link_costs_no_other(one: Any, name: str) -> None:
    for value in ODD:
        odd = structs.replace(one, **{name: value})
        record = BodyRecord(events=(MISS, odd, MISS)) if one is MISS else BodyRecord(links=(LINK, odd, LINK))
        body = cleaned_body(record)
        assert is_plain_body(body)
        kept: tuple[Any, ...] = body.events if one is MISS else body.links
        assert (kept[0], kept[-1], len(kept)) == (one, one, 3 - body.dropped_events - body.dropped_links)


@pytest.mark.parametrize(
    "link",
    [
        RecordedLink("0" * 32, "1" * 16),
        RecordedLink("1" * 32, "0" * 16),
        RecordedLink("1" * 31, "1" * 16),
        RecordedLink("A" * 32, "1" * 16),
        RecordedLink("1" * 32, "1" * 16, trace_state="é"),
        RecordedLink("", ""),
    ],
)
def test_a_link_to_nothing_is_dropped_and_counted(link: RecordedLink) -> None:
    record = structs.replace(BODY, links=(link, LINK))
    assert cleaned_body(record) == structs.replace(BODY, dropped_links=4)


def test_an_event_outside_of_all_times_is_dropped_and_counted() -> None:
    events = tuple(structs.replace(MISS, timestamp_ns=at_ns) for at_ns in (-1, 0, 2**63 - 1, 2**63))
    assert cleaned_body(BodyRecord(events=events)) == BodyRecord(events=events[1:3], dropped_events=2)


def test_the_counts_of_what_was_dropped_stay_within_32_bits() -> None:
    most = 2**31 - 1
    record = BodyRecord({"": 1}, (5,), (5,), dropped_attributes=most, dropped_events=2**70, dropped_links=-7)  # type: ignore[arg-type]
    assert cleaned_body(record) == BodyRecord(dropped_attributes=most, dropped_events=most, dropped_links=1)


def test_more_events_and_links_than_are_kept_are_counted() -> None:
    record = BodyRecord(events=(RecordedEvent("e", NOW, {}),) * 3_000, links=(RecordedLink("1" * 32, "1" * 16),) * 900)
    cleaned = cleaned_body(record)
    assert (len(cleaned.links), cleaned.dropped_links) == (900, 0)
    # what is left of all that is kept has room for so many
    assert (len(cleaned.events), cleaned.dropped_events) == (118, 2_882)
    many = cleaned_body(structs.replace(record, links=record.links * 2, events=()))
    assert (len(many.links), many.dropped_links) == (963, 837)
    few = cleaned_body(structs.replace(record, links=()))
    assert (len(few.events), few.dropped_events) == (1_024, 1_976)
    assert is_plain_body(cleaned)
    assert not is_plain_body(record)


@pytest.mark.parametrize("make", [lambda: EXTREME, lambda: BodyRecord({"a": ("",) * 8_000, "b": (1,) * 8_000})])
def test_the_largest_event_is_a_record_that_every_wire_takes(make: Callable[[], BodyRecord]) -> None:
    """A million bytes are what Kafka takes unless it is told otherwise, and a line of JSON may have 48,576 more."""
    attributes: dict[str, Any] = {f"key {number}": '"' * 8_000 for number in range(128)}
    details = structs.replace(DETAILS, attributes=attributes, reason='"' * 9_000, upstream=(OTHER,) * 200)
    event = validated(completed(make(), details)).event
    assert isinstance(event, ModuleCompleted)
    assert event.body is not None
    assert event.details is not None
    assert 300_000 < len(encode_json(event)) < 900_000
    assert decode_json(encode_json(event)) == event


@pytest.mark.parametrize("field", [field.name for field in structs.fields(ModuleDetails)])
def test_an_odd_value_in_details_costs_that_field_only(field: str) -> None:
    good = structs.replace(DETAILS, outcome="skipped")
    for value in [*ODD, MODULE, List([OTHER]), Mapping(a="b"), ("x", OTHER), {"": 1}]:
        passed = validated(completed(None, structs.replace(good, **{field: value})))
        event = passed.event
        assert isinstance(event, ModuleCompleted)
        assert event.details is not None
        assert are_plain_details(event.details, MODULE)
        others = {each.name for each in structs.fields(ModuleDetails)} - {field}
        assert {it: getattr(event.details, it) for it in others} == {it: getattr(good, it) for it in others}
        assert [reason.split(" ")[0] for reason in passed.corrected] in ([], [f"details.{field}"])


@pytest.mark.parametrize(
    "record",
    [
        structs.replace(BODY, attributes={"many": ("a",) * 8_193}),
        structs.replace(BODY, events=(structs.replace(MISS, timestamp_ns=-1),)),
        structs.replace(BODY, links=(LINK, structs.replace(LINK, trace_flags=256))),
    ],
    ids=["attributes", "events", "links"],
)
def test_a_record_that_is_almost_plain_is_looked_at_closely(record: BodyRecord) -> None:
    assert not is_valid(completed(record))
    assert validated(completed(record)) == Validated(completed(cleaned_body(record)), ())


def test_what_cannot_be_kept_of_details_is_said() -> None:
    details: Any = ModuleDetails(MODULE, 0, MODULE, "odd", 7, (OTHER, "x"), {"a": 1, "": 2})  # type: ignore[arg-type]
    assert validated(completed(None, details)) == Validated(
        completed(None, ModuleDetails(upstream=(OTHER,), attributes={"a": 1})),
        (
            "details.attributes has 1 of 2 that cannot be kept",
            "details.parent_id is UUID('b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538'), not the id of another module",
            "details.attempt is 0, not a whole number from 1",
            "details.attempt_of is UUID('b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538'), not the id of another module",
            "details.outcome is 'odd', not skipped or cached",
            "details.reason is 7, not a text",
            "details.upstream is (UUID('6ba7b810-9dad-41d1-80b4-00c04fd430c8'), 'x'), not at most 128 ids of modules",
        ),
    )


def test_details_of_subclasses_become_plain_without_a_word() -> None:
    details: Any = ModuleDetails(DriversUUID(int=5), 1, None, Text("cached"), Text("why"), [DriversUUID(int=6)])  # type: ignore[arg-type]
    passed = validated(completed(None, details))
    assert passed.corrected == ()
    event = passed.event
    assert isinstance(event, ModuleCompleted)
    assert event.details is not None
    assert are_plain_details(event.details, MODULE)
    assert event.details.upstream[0].int == 6


@pytest.mark.parametrize(
    "told",
    [
        {"body": "text"},
        {"body": {"attributes": 5}},
        {"body": {"events": [{"name": "e"}]}},
        {"body": {"status": "fine"}},
        {"details": 7},
        {"details": {"attempt": "second"}},
        {"body": [1], "details": {"upstream": ["x"]}},
    ],
)
def test_what_cannot_be_read_besides_costs_no_event(told: dict[str, Any]) -> None:
    record = json.loads(encode_json(completed(BODY, DETAILS)))
    read = decode_json(json.dumps({**record, **told}))
    kept = {name: None if name in told else value for name, value in {"body": BODY, "details": DETAILS}.items()}
    assert validated(read).event == completed(**kept)
