"""The encoder against opentelemetry-proto's own classes, byte for byte, and against our decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.receiver import Received, Resource, Scope, decode_traces
from constellation_otel.traces import MODULE_NAME, NOTHING_DROPPED, AttributeValue, Dropped, Span, SpanEvent, SpanLink
from constellation_otel.transports.otlp import encode_request
from support import UNWATCHED

RESOURCE = SdkResource({"service.name": "shop", "ports": (80, 443)}, "https://example.com/resource")
SCOPE = Scope(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)

# other work on the machine takes its time, too
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# every character that UTF-8 has
texts = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["x" * 127, "é" * 64, "x" * 20_000])
int64 = st.integers(-(2**63), 2**63 - 1)
values: st.SearchStrategy[AttributeValue] = st.recursive(
    st.none() | st.booleans() | texts | int64 | st.floats(allow_nan=False) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=3,
)
attributes = st.dictionaries(texts | st.just(MODULE_NAME), values, max_size=3)
nanoseconds = st.integers(0, 2**64 - 1)
span_ids = st.integers(1, 2**64 - 1)


counts = st.just(0) | st.integers(0, 2**32 - 1)
links = st.builds(SpanLink, st.integers(1, 2**128 - 1), span_ids, attributes, texts, st.integers(0, 255))


@st.composite
def spans(draw: st.DrawFn) -> Span:
    failed = draw(st.booleans())
    return Span(
        trace_id=draw(st.integers(1, 2**128 - 1)),
        span_id=draw(span_ids),
        parent_span_id=draw(st.none() | span_ids),
        trace_state=draw(texts),
        trace_flags=draw(st.integers(0, 255)),
        name=draw(texts),
        kind=draw(st.sampled_from(SpanKind)),
        start_ns=draw(nanoseconds),
        end_ns=draw(nanoseconds),
        attributes=draw(attributes),
        status=StatusCode.ERROR if failed else draw(st.sampled_from([StatusCode.UNSET, StatusCode.OK])),
        status_description=draw(st.none() | texts.filter(bool)) if failed else None,
        events=tuple(draw(st.lists(st.builds(SpanEvent, texts, nanoseconds, attributes), max_size=2))),
        is_execution=draw(st.booleans()),
        links=tuple(draw(st.lists(links, max_size=2))),
        dropped=draw(st.just(NOTHING_DROPPED) | st.builds(Dropped, counts, counts, counts)),
    )


def any_value(value: Any) -> AnyValue:
    if value is None:
        return AnyValue()
    if isinstance(value, Mapping):
        return AnyValue(kvlist_value=KeyValueList(values=key_values(value)))
    if isinstance(value, (tuple, list)):
        return AnyValue(array_value=ArrayValue(values=map(any_value, value)))
    field = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value", bytes: "bytes_value"}
    return AnyValue(**{field[type(value)]: value})


def key_values(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in attributes.items()]


def with_protobufs_classes(spans: list[Span], resource: SdkResource) -> bytes:
    """What :func:`encode_request` promises, by opentelemetry-proto."""
    group = trace_pb2.ScopeSpans(
        scope=InstrumentationScope(name=SCOPE_NAME, version=SCOPE_VERSION), schema_url=SCHEMA_URL
    )
    for span in spans:
        is_local = span.parent_span_id is None or not span.is_execution
        message = group.spans.add(
            trace_id=span.trace_id.to_bytes(16),
            span_id=span.span_id.to_bytes(8),
            trace_state=span.trace_state,
            parent_span_id=b"" if span.parent_span_id is None else span.parent_span_id.to_bytes(8),
            name=span.name,
            kind=trace_pb2.Span.SpanKind.Value(f"SPAN_KIND_{span.kind.name}"),
            start_time_unix_nano=span.start_ns,
            end_time_unix_nano=span.end_ns,
            attributes=key_values(span.attributes),
            flags=span.trace_flags | (trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK if is_local else 0),
            dropped_attributes_count=span.dropped.attributes,
            dropped_events_count=span.dropped.events,
            dropped_links_count=span.dropped.links,
        )
        for link in span.links:
            message.links.add(
                trace_id=link.trace_id.to_bytes(16),
                span_id=link.span_id.to_bytes(8),
                trace_state=link.trace_state,
                attributes=key_values(link.attributes),
                flags=link.trace_flags,
            )
        for event in span.events:
            message.events.add(
                time_unix_nano=event.timestamp_ns, name=event.name, attributes=key_values(event.attributes)
            )
        if span.status is not StatusCode.UNSET:
            message.status.code = trace_pb2.Status.StatusCode.Value(f"STATUS_CODE_{span.status.name}")
            message.status.message = span.status_description or ""
    request = ExportTraceServiceRequest(
        resource_spans=[
            trace_pb2.ResourceSpans(
                resource=resource_pb2.Resource(attributes=key_values(resource.attributes)),
                scope_spans=[group],
                schema_url=resource.schema_url,
            )
        ]
    )
    return request.SerializeToString()


@UNWATCHED
@unhurried
@given(st.lists(spans(), max_size=2), st.sampled_from([RESOURCE, SdkResource({})]))
def test_the_bytes_are_those_of_opentelemetry_protos_own_classes(some: list[Span], resource: SdkResource) -> None:
    assert encode_request(some, resource) == with_protobufs_classes(some, resource)


@unhurried
@given(st.lists(spans(), max_size=2))
def test_what_is_encoded_is_decoded_to_the_same_spans(some: list[Span]) -> None:
    resource = Resource({"service.name": "shop", "ports": (80, 443)}, "https://example.com/resource")
    assert decode_traces(encode_request(some, RESOURCE)) == [
        Received(replace(it, is_execution=False), resource, SCOPE) for it in some
    ]


def decoded(**fields: Any) -> Span:
    """A span with these fields, encoded and decoded."""
    span = Span(
        **{
            "trace_id": 1,
            "span_id": 2,
            "parent_span_id": None,
            "trace_state": "",
            "trace_flags": 3,
            "name": "n",
            "kind": SpanKind.INTERNAL,
            "start_ns": 1,
            "end_ns": 2,
            "attributes": {},
            **fields,
        }
    )
    (received,) = decode_traces(encode_request([span], RESOURCE))
    return received.span


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("\ud800", "\ufffd"),
        ("a\udfff\ud83db", "a\ufffd\ufffdb"),
        ("😀\ud83d", "😀\ufffd"),
        # a pair is a character, however it got in
        ("\ud83d\ude00", "😀"),
        ("\ufeffa\ud800", "\ufeffa\ufffd"),
    ],
)
def test_lone_surrogates_are_replaced_wherever_they_are(text: str, replaced: str) -> None:
    span = decoded(
        name=text,
        trace_state=text,
        attributes={text: text, "many": (text, "y" * 200 + text)},
        status=StatusCode.ERROR,
        status_description=text,
        events=(SpanEvent(text, 1, {}),),
    )
    assert (span.name, span.trace_state, span.status_description) == (replaced,) * 3
    assert span.attributes == {replaced: replaced, "many": (replaced, "y" * 200 + replaced)}
    assert span.events == (SpanEvent(replaced, 1, {}),)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
def test_an_integer_beyond_64_bits_becomes_text(number: int) -> None:
    assert decoded(attributes={"n": number}).attributes == {"n": str(number)}


def test_what_no_attribute_can_be_is_written_as_its_text() -> None:
    odd: Any = {"made by a sampler": RESOURCE.attributes.__class__}
    (value,) = decoded(attributes=odd).attributes.values()
    assert value == repr(RESOURCE.attributes.__class__)


def test_a_subclass_of_a_type_is_written_as_that_type() -> None:
    class Name(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = str.__hash__

    assert decoded(
        attributes={"a": Name("x"), "b": Name("y"), "c": SpanKind.CLIENT.value, "d": [1, True]}
    ).attributes == {
        "a": "x",
        "b": "y",
        "c": 2,
        "d": (1, True),
    }


@pytest.mark.parametrize(
    ("parent", "is_execution", "trace_flags", "flags"),
    [
        pytest.param(None, True, 3, 0x103, id="a root has no parent that could be remote"),
        pytest.param(5, False, 3, 0x103, id="a module's parent is its execution, of the same process"),
        pytest.param(5, True, 3, 0x003, id="where an execution's caller was is not known"),
        pytest.param(5, True, 0, 0, id="where there are none, none are written"),
    ],
)
def test_the_flags_say_whether_the_parent_is_remote(
    parent: int | None, is_execution: bool, trace_flags: int, flags: int
) -> None:
    """Where that is known."""
    span = Span(1, 2, parent, "", trace_flags, "n", SpanKind.INTERNAL, 1, 2, {}, is_execution=is_execution)
    request = ExportTraceServiceRequest.FromString(encode_request([span], RESOURCE))
    assert request.resource_spans[0].scope_spans[0].spans[0].flags == flags


def test_what_is_remembered_is_bounded_and_changes_no_bytes() -> None:
    """Names and texts beyond the bound, and texts that are too long for it, are written anew each time."""
    for number in range(1_100):
        text = f"{number}" * 50
        span = decoded(name=text, attributes={text: text, "constellation.dag.name": text}, trace_flags=0)
        assert (span.name, span.attributes) == (text, {text: text, "constellation.dag.name": text})
