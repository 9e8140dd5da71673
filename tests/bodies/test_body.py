"""The context of a module's body: a dictionary as any other, whose span is made when somebody looks at it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from body_spans import EXECUTION, MODULE, OTHER, bodies_of
from constellation_otel.bodies import Bodies, BodyRecord, BodySpan, running_module
from constellation_otel.bodies.body import Body
from constellation_otel.bodies.context import CURRENT_SPAN
from constellation_otel.bodies.running import RUNNING
from support import DEADLINE


def body_of(bodies: Bodies, around: Context | None = None) -> Body:
    context = bodies.context_of(EXECUTION, MODULE, Context() if around is None else around)
    assert isinstance(context, Body)
    return context


def test_no_span_is_made_until_somebody_looks_at_it() -> None:
    bodies = bodies_of()
    body = body_of(bodies, Context({"kept": 1}))
    token = otel_context.attach(body)
    try:
        assert otel_context.get_value("kept") == 1
        assert otel_context.get_value("other") is None
        assert running_module() is body
        assert (body.span, len(body)) == (None, 3)
        assert trace.get_current_span() is body.span
    finally:
        otel_context.detach(token)
    assert bodies.take(EXECUTION, MODULE) is None


OTHERS: dict[str, object] = {}
READING: dict[str, Any] = {
    "get": lambda context: [context.get("kept"), context.get("none"), context.get("none", 3)],
    "getitem": lambda context: context["kept"],
    "span": lambda context: type(context[CURRENT_SPAN]),
    "in": lambda context: ["kept" in context, CURRENT_SPAN in context, "none" in context],
    "iter": list,
    "reversed": lambda context: list(reversed(context)),
    "len": len,
    "bool": bool,
    "dict": dict,
    "unpacked": lambda context: {**context},
    "copy": lambda context: context.copy(),
    "keys": lambda context: list(context.keys()),
    "values": lambda context: list(context.values()),
    "items": lambda context: list(context.items()),
    "equal": lambda context: [context == dict(context), dict(context) == context, context == OTHERS, context == OTHERS],
    "unequal": lambda context: [
        context != dict(context),
        dict(context) != context,
        context != OTHERS,
        context != OTHERS,
    ],
    "or": lambda context: [context | {"more": 2}, {"kept": 2, "more": 3} | context],
    "repr": repr,
}


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize(
    "around",
    [
        {"kept": 1},
        {"kept": 1, CURRENT_SPAN: trace.INVALID_SPAN},
        {"kept": 1, CURRENT_SPAN: 0, RUNNING: 0},
    ],
    ids=["kept", "span", "module"],
)
def test_it_reads_as_the_dictionary_that_it_stands_for(name: str, around: dict[str, object]) -> None:
    body, read = body_of(bodies_of(), Context(around)), READING[name]
    span = body_of(bodies_of()).current()
    if name in ("values", "items", "dict", "unpacked", "copy", "or", "repr"):
        span = body.current()
    plain = Context({**around, CURRENT_SPAN: span, RUNNING: span})
    assert read(body) == read(plain)


def test_it_cannot_be_changed_or_hashed_as_no_context_can() -> None:
    body = body_of(bodies_of())
    with pytest.raises(ValueError):
        body["key"] = 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(body)
    with pytest.raises(KeyError):
        _ = body["none"]


def test_what_is_put_into_it_is_in_another_context() -> None:
    body = body_of(bodies_of())
    changed = baggage.set_baggage("tenant", "acme", body)
    assert baggage.get_baggage("tenant", changed) == "acme"
    assert baggage.get_baggage("tenant", body) is None
    assert trace.get_current_span(changed) is trace.get_current_span(body)


def test_who_looks_only_when_the_module_has_ended_sees_a_span_that_has(caplog: pytest.LogCaptureFixture) -> None:
    bodies = bodies_of()
    body = body_of(bodies)
    assert bodies.take(EXECUTION, MODULE) is None
    span = trace.get_current_span(body)
    assert isinstance(span, BodySpan)
    assert not span.is_recording()
    span.set_attribute("late", 1)
    assert caplog.messages == ["Setting attribute on ended span."]


def test_threads_that_look_at_once_see_the_same_span() -> None:
    bodies, start = bodies_of(), threading.Barrier(4)
    body = body_of(bodies)
    seen: list[trace.Span] = []

    def look(number: int) -> None:
        start.wait(DEADLINE)
        span = trace.get_current_span(body)
        span.set_attribute(f"thread {number}", number)
        seen.append(span)

    threads = [threading.Thread(target=look, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(set(map(id, seen))) == 1
    record = bodies.take(EXECUTION, MODULE)
    assert record is not None
    assert record.attributes == {f"thread {number}": number for number in range(4)}


def test_bodies_that_start_executions_make_no_chain() -> None:
    """Each has the context of the one in which it was started, and the first one's would be kept for ever."""
    bodies = bodies_of()
    bodies.sampling.decide(OTHER, "inner", Context())
    outer = body_of(bodies, Context({"kept": 1}))
    inner = bodies.context_of(OTHER, MODULE, outer)
    assert isinstance(inner, Body)
    assert inner.around is outer.around
    assert outer.span is None
    assert inner.get("kept") == 1


def test_a_name_that_is_said_later_is_the_spans() -> None:
    body = body_of(bodies_of())
    assert body.module_name == ""
    span = body.current()
    body.module_name = "Trim"
    assert (body.module_name, span.name) == ("Trim", "Trim")
    early = body_of(bodies_of())
    early.module_name = "Trim"
    assert early.current().name == "Trim"


def test_a_span_that_another_listener_keeps_is_shared_where_its_context_was_changed() -> None:
    """A provider of the user's own stands between the two."""
    first, second = bodies_of(), bodies_of()
    between = baggage.set_baggage("tenant", "acme", first.context_of(EXECUTION, MODULE, Context()))
    context = second.context_of(EXECUTION, MODULE, between)
    assert context is between
    trace.get_current_span(context).set_attribute("rows", 7)
    assert [bodies.take(EXECUTION, MODULE) for bodies in (first, second)] == [BodyRecord({"rows": 7})] * 2
    assert not trace.get_current_span(context).is_recording()
