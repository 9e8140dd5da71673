"""What an engine and a module's body have told besides, in audit tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from constellation_otel.delivery import Record
from constellation_otel.events import Event, ExecutionStarted, ModuleCompleted, ModuleFailed, ModuleStarted, encode_json
from records import BODY, TOLD, told_all
from support import DEADLINE, UNWATCHED
from transports.sql.helpers import GUIDE_TABLE, read_all

if TYPE_CHECKING:
    from transports.sql.helpers import Database

COLUMNS = ("engine_name", "execution_attributes", "module_details", "module_body")


def without(event: Event) -> Event:
    """What the guide's record has of an event, but for its time."""
    match event:
        case ExecutionStarted():
            return structs.replace(event, attributes=None, engine=None)
        case ModuleStarted():
            return structs.replace(event, details=None)
        case ModuleCompleted() | ModuleFailed():
            return structs.replace(event, details=None, body=None)
    raise AssertionError(event)


def test_it_is_one_column_each_of_a_table_of_ours(database: Database) -> None:
    database.sink().send(told_all()[:3], DEADLINE)
    rows = database.execute(f"SELECT {', '.join(COLUMNS)} FROM execution_audit")
    body = json.loads(encode_json(told_all()[2]))["body"]
    details = json.loads(encode_json(told_all()[1]))["details"]
    assert [
        [value and (value if index == 0 else json.loads(value)) for index, value in enumerate(row)] for row in rows
    ] == [
        ["loom", {"tenant": "acme", "rows": [1, 2]}, None, None],
        [None, None, details, None],
        [None, None, details, body],
    ]


def test_one_of_everything_and_the_largest_are_read_back(database: Database) -> None:
    assert database.sink().send(told_all(), DEADLINE) == []
    assert database.events() == told_all()


@UNWATCHED
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(TOLD, min_size=1, max_size=10, unique_by=encode_json))
def test_whatever_was_told_is_read_back(database: Database, written: list[Event]) -> None:
    database.execute("DROP TABLE IF EXISTS execution_audit")
    sink = database.sink()
    assert sink.send(written, DEADLINE) == []
    sink.close()
    # of two events that differ in nothing else, one is a repetition
    once = {encode_json(without(event)): event for event in reversed(written)}
    assert sorted(map(encode_json, database.events())) == sorted(map(encode_json, once.values()))


def test_into_the_guides_columns_it_is_not_written(database: Database) -> None:
    """And costs none of what they hold."""
    database.execute(GUIDE_TABLE)
    assert database.sink().send(told_all(), DEADLINE) == []
    rows = database.execute(
        "SELECT event_type, execution_id, module_name, duration_ms, error_message FROM execution_audit"
    )
    execution = str(told_all()[0].execution_id)
    assert rows == [
        ("execution.started", execution, None, None, None),
        ("module.started", execution, "Trim", None, None),
        ("module.completed", execution, "Trim", 2, None),
        ("module.failed", execution, "Trim", None, "boom"),
        ("module.completed", execution, "Trim", 2, None),
    ]
    read = [item.event for item in read_all(database.source()) if isinstance(item, Record)]
    assert not any(getattr(event, name, None) for event in read for name in ("attributes", "engine", "details", "body"))


def test_what_a_column_has_no_room_for_is_left_out_and_not_cut(database: Database) -> None:
    database.execute(
        GUIDE_TABLE,
        *(f"ALTER TABLE execution_audit ADD COLUMN {name} VARCHAR(40)" for name in COLUMNS),
        "ALTER TABLE execution_audit ADD COLUMN module_id CHAR(36)",
        "ALTER TABLE execution_audit ADD COLUMN occurred_ns BIGINT",
    )
    assert database.sink().send(told_all()[:4], DEADLINE) == []
    first, *others = database.events()
    # 34 characters of JSON
    assert first == told_all()[0]
    assert others[:2] == [without(event) for event in told_all()[1:2]] + [
        structs.replace(without(told_all()[2]), duration_ms=2)
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "module_body"), ("[" * 100_000, "module_body"), ("7", "body"), ('{"status": "fine"}', "body")],
    ids=["cut", "too deep", "a number", "another status"],
)
def test_what_cannot_be_read_there_costs_no_event(database: Database, text: str, reason: str) -> None:
    event = told_all()[2]
    assert isinstance(event, ModuleCompleted)
    assert event.body == BODY
    database.sink().send([event], DEADLINE)
    database.execute(f"UPDATE execution_audit SET module_body = '{text}'")
    (item,) = read_all(database.source())
    assert isinstance(item, Record)
    assert item.event == structs.replace(event, body=None)
    assert len(item.corrected) == 1
    assert item.corrected[0].startswith(reason)
