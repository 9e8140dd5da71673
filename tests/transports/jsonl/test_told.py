"""What an engine and a module's body have told besides, in JSON lines."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from constellation_otel.events import Event, ModuleCompleted, encode_json
from constellation_otel.transports.jsonl import JsonlSink, JsonlSource
from records import BODY, DETAILS, EXECUTION, MODULE, NOW, TOLD, told_all
from support import UNWATCHED
from transports.jsonl.helpers import drained, events_of

LINE = (
    '{"eventType":"module.completed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410","dagName":null,'
    '"moduleName":"Trim","durationMs":2,"succeeded":true,"error":null,"timestamp":1795465363577,'
    '"moduleId":"b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538","timestampNs":1795465363577123456,"durationNs":2500000,'
    '"details":{"parentId":"6ba7b810-9dad-41d1-80b4-00c04fd430c8","attempt":2,'
    '"attemptOf":"6ba7b810-9dad-41d1-80b4-00c04fd430c8","reason":"again",'
    '"upstream":["6ba7b810-9dad-41d1-80b4-00c04fd430c8"],"attributes":{"node.kind":"sql"}},'
    '"body":{"attributes":{"text":"é\\n","yes":true,"count":7,"ratio":0.5,"many":["a",1,2.5,false]},'
    '"events":[{"name":"cache miss","timestampNs":1795465363577123456,"attributes":{"key":"k1"}},'
    '{"name":"exception","timestampNs":1795465363577123457,"attributes":{}}],'
    '"links":[{"traceId":"0af7651916cd43dd8448eb211c80319c","spanId":"b7ad6b7169203331",'
    '"attributes":{"why":"parent"},"traceState":"vendor=value","traceFlags":3}],'
    '"status":"error","description":"half of it","name":"renamed","droppedAttributes":1,"droppedEvents":2,'
    '"droppedLinks":3,"isElsewhere":true}}'
)


def through_a_file(events: list[Event]) -> list[Event]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        with closing(JsonlSink(path)) as sink:
            assert not sink.send(events, 10)
        return events_of(drained(JsonlSource(path)))


def test_it_is_one_field_each_of_the_guides_record() -> None:
    event = ModuleCompleted(EXECUTION, MODULE, "Trim", 2.5, NOW, DETAILS, BODY)
    assert encode_json(event).decode() == LINE


def test_one_of_everything_and_the_largest_are_read_back() -> None:
    assert through_a_file(told_all()) == told_all()


@UNWATCHED
@settings(deadline=None)
@given(st.lists(TOLD, max_size=5))
def test_whatever_was_told_is_read_back(events: list[Event]) -> None:
    assert (through_a_file(events) if events else []) == events
