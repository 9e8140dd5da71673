"""The span that is current in a module's body: the SDK's, but for when it ends and what it is given."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from body_spans import ELSEWHERE, EXECUTION, MODULE, NOW, bodies_of, current_in, recorded_by
from constellation_otel import span_id_of, trace_id_of
from constellation_otel._support.log import RateLimitedLog
from constellation_otel._support.scope import SCOPE_NAME, SCOPE_VERSION
from constellation_otel.bodies import BodyRecord, BodySpan, recording
from constellation_otel.bodies import span as span_module
from constellation_otel.events import Attributes, RecordedEvent, RecordedLink, cleaned_body
from constellation_otel.events.record import is_plain_body
from odd_events import ODD, Hostile
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable

LINK = RecordedLink(f"{0xABC:032x}", f"{0xDEF:016x}", {}, "a=b", 1)
SETTING: dict[str, Callable[[trace.Span], object]] = {
    "set_attribute": lambda span: span.set_attribute("key", 1),
    "set_attributes": lambda span: span.set_attributes({"key": 1}),
    "add_event": lambda span: span.add_event("event"),
    "add_link": lambda span: span.add_link(ELSEWHERE),
    "record_exception": lambda span: span.record_exception(ValueError("boom")),
    "set_status": lambda span: span.set_status(StatusCode.ERROR, "half of it"),
    "update_name": lambda span: span.update_name("renamed"),
}


class UnspeakableError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise KeyError


@pytest.fixture(autouse=True)
def new_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier test has said is said again."""
    monkeypatch.setattr(span_module, "_LIMITED", RateLimitedLog())


def body_span(limits: SpanLimits | None = None, name: str = "Trim") -> BodySpan:
    span = recorded_by(bodies_of(limits=limits))
    span.module_name = name
    return span


def finished(span: BodySpan, error: BaseException | None = None) -> BodyRecord:
    record = span.finish(error)
    assert record is not None
    assert is_plain_body(record)
    return record


def sdk_span(limits: SpanLimits | None = None) -> SdkSpan:
    """One that the SDK has made."""
    span = TracerProvider(span_limits=limits, shutdown_on_exit=False).get_tracer("theirs").start_span("Trim")
    assert isinstance(span, SdkSpan)
    return span


def said_of(span: ReadableSpan) -> dict[str, Any]:
    """What was set on a span, without what makes each one another."""
    known = json.loads(span.to_json())
    dropped = (span.dropped_attributes, span.dropped_events, span.dropped_links)
    return {name: known[name] for name in ("name", "attributes", "events", "links", "status")} | {"dropped": dropped}


def test_it_is_a_span_of_the_sdks_with_computed_ids() -> None:
    span = body_span()
    assert isinstance(span, trace.Span)
    assert isinstance(span, ReadableSpan)
    context = span.get_span_context()
    assert context == SpanContext(
        trace_id_of(EXECUTION), span_id_of(EXECUTION, MODULE), is_remote=False, trace_flags=TraceFlags(3)
    )
    assert span.context is context
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id) == (trace_id_of(EXECUTION), span_id_of(EXECUTION))
    assert (span.name, span.kind, dict(span.attributes or {})) == ("Trim", SpanKind.INTERNAL, {})
    assert (span.events, span.links, span.status.status_code) == ((), (), StatusCode.UNSET)
    assert (span.dropped_attributes, span.dropped_events, span.dropped_links) == (0, 0, 0)
    assert (dict(span.resource.attributes), span.end_time, span.is_recording()) == ({}, None, True)
    scope = span.instrumentation_scope
    assert scope is not None
    assert (scope.name, scope.version) == (SCOPE_NAME, SCOPE_VERSION)
    assert json.loads(span.to_json())["context"]["span_id"] == f"0x{context.span_id:016x}"
    assert "Trim" in repr(span)


def test_nothing_is_made_before_something_is_set_or_read() -> None:
    span = body_span()
    assert span.is_recording()
    assert span.get_span_context().is_valid
    assert (span.recorder, span.has_something) == (None, False)
    assert span.finish() is None
    assert span.recorder is None


def test_an_exception_where_another_one_was_is_told_apart() -> None:
    """The memory of one that is gone is soon another's, and its id with it."""
    for _ in range(20):
        span = body_span()
        for number in range(5):
            span.record_exception(ValueError(f"no. {number}"))
        error = KeyError("the last")
        span.record_exception(error)
        said = [event.attributes["exception.message"] for event in finished(span, error).events]
        assert said == [f"no. {number}" for number in range(5)]


def test_what_is_read_and_not_set_is_no_record() -> None:
    span = body_span()
    assert not span.attributes
    assert span.finish() is None


def test_everything_that_is_set_is_in_the_record() -> None:
    span = body_span()
    span.set_attribute("rows", 7)
    span.set_attributes({"name": "é", "many": ["a", "b"], "ratio": 0.5})
    span.add_event("cache miss", {"key": "k1"}, NOW)
    span.add_link(ELSEWHERE, {"why": "batch"})
    span.set_status(StatusCode.ERROR, "half of it")
    span.update_name("Trim twice")
    assert (span.name, span.status.description) == ("Trim twice", "half of it")
    assert finished(span) == BodyRecord(
        {"rows": 7, "name": "é", "many": ("a", "b"), "ratio": 0.5},
        (RecordedEvent("cache miss", NOW, {"key": "k1"}),),
        (RecordedLink(f"{0xABC:032x}", f"{0xDEF:016x}", {"why": "batch"}, "a=b", 1),),
        "error",
        "half of it",
        "Trim twice",
    )


@pytest.mark.parametrize("name", SETTING)
def test_once_its_module_has_ended_it_takes_no_more(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """With the SDK's own warning, whether anything was set before or not."""
    for is_made in (True, False):
        span = body_span()
        if is_made:
            span.set_attribute("before", True)
        record = span.finish()
        caplog.clear()
        SETTING[name](span)
        assert not span.is_recording()
        assert [entry.name for entry in caplog.records] == ["opentelemetry.sdk.trace"]
        assert "ended span" in caplog.text
        assert (span.finish(), record) == (record, BodyRecord({"before": True}) if is_made else None)


@pytest.mark.parametrize("is_made", [True, False])
def test_one_that_is_closed_without_a_record_takes_no_more(is_made: bool, caplog: pytest.LogCaptureFixture) -> None:
    span = body_span()
    if is_made:
        span.set_attribute("before", True)
    span.close()
    span.close()
    span.set_attribute("after", True)
    assert dict(span.attributes or {}) == ({"before": True} if is_made else {})
    assert caplog.messages == ["Setting attribute on ended span."]


def test_a_body_does_not_end_its_own_span(caplog: pytest.LogCaptureFixture) -> None:
    span = body_span()
    span.end()
    with span:
        span.set_attribute("in it", 1)
    with pytest.raises(KeyError), span:
        raise KeyError
    span.set_attribute("behind it", 2)
    record = finished(span)
    assert (record.attributes, record.status) == ({"in it": 1, "behind it": 2}, "error")
    assert [event.attributes["exception.type"] for event in record.events] == ["KeyError"]
    assert caplog.messages == ["a module's body has ended its own span, which ends with the module; that is left out"]


def test_the_error_of_its_module_is_not_recorded_twice() -> None:
    span, error = body_span(), ValueError("boom")

    def body() -> None:
        with trace.use_span(span):
            span.record_exception(ValueError("boom"), timestamp=NOW)
            span.record_exception(error, {"attempt": 2})
            raise error

    with pytest.raises(ValueError, match="boom"):
        body()
    assert [event.attributes["exception.message"] for event in span.events if event.attributes] == ["boom"] * 3
    record = finished(span, error)
    assert (record.status, record.description) == ("error", "ValueError: boom")
    # another error that says the same is another error
    assert [event.timestamp_ns for event in record.events] == [NOW]
    assert len(finished(span).events) == 3


def test_an_error_whose_text_is_cut_is_not_recorded_twice_either() -> None:
    span, error = body_span(SpanLimits(max_attribute_length=5)), ValueError("longer than that")
    span.record_exception(error)
    span.add_event("exception", {"by": "hand"}, NOW)
    assert finished(span, error).events == (RecordedEvent("exception", NOW, {"by": "hand"}),)


def test_an_error_without_a_text_is_recorded_by_its_type(caplog: pytest.LogCaptureFixture) -> None:
    span, error = body_span(), UnspeakableError()
    span.record_exception(error, timestamp=NOW)
    said: Attributes = {
        "exception.type": f"{__name__}.UnspeakableError",
        "exception.message": "<str() of this UnspeakableError raised KeyError>",
    }
    assert finished(span).events == (RecordedEvent("exception", NOW, said),)
    assert span.finish(error) is None
    assert caplog.messages[0].startswith("record_exception of a module's span raised, and what it was to set is left")


def test_a_name_is_one_only_where_it_is_another(caplog: pytest.LogCaptureFixture) -> None:
    span = body_span()
    span.update_name("Trim")
    assert span.finish() is None
    unnamed = body_span(name="")
    assert unnamed.name == "module"
    assert unnamed.finish() is None
    renamed = body_span(name="")
    renamed.update_name("module")
    assert finished(renamed) == BodyRecord(name="module")
    assert caplog.messages == []


def test_a_status_of_ok_stays_as_the_sdk_has_it() -> None:
    span = body_span()
    span.set_status(Status(StatusCode.OK))
    span.set_status(Status(StatusCode.ERROR, "too late"))
    assert finished(span) == BodyRecord(status="ok")


@pytest.mark.parametrize("limits", [None, SpanLimits(max_span_attributes=2, max_events=3, max_links=1)])
def test_the_sdks_limits_hold_and_what_is_dropped_is_counted(limits: SpanLimits | None) -> None:
    span, theirs = body_span(limits), sdk_span(limits)
    for each in (span, theirs):
        for number in range(10_000):
            each.set_attribute(f"key {number}", number)
        for number in range(200):
            each.add_event(f"event {number}", {"key": number}, NOW)
            each.add_link(ELSEWHERE, {"number": number})
    assert said_of(span) == said_of(theirs)
    record = finished(span)
    attributes, events, links = (128, 128, 128) if limits is None else (2, 3, 1)
    assert record.attributes == {f"key {number}": number for number in range(10_000 - attributes, 10_000)}
    assert record.dropped_attributes == 10_000 - attributes
    assert record.events[0].name == f"event {200 - events}"
    assert len(record.events) + record.dropped_events == len(record.links) + record.dropped_links == 200
    assert record.links[0].attributes == {"number": 200 - links}


def test_a_long_value_is_cut_when_it_is_set() -> None:
    """A body may run for hours, and hold what nobody will see."""
    span = body_span()
    span.set_attribute("text", "x" * 10_000_000)
    span.set_attributes({"bytes": b"x" * 10_000_000, "many": [1] * 10_000_000})
    span.add_event("event", {"text": "y" * 10_000_000}, NOW)
    span.add_link(ELSEWHERE, {"text": "z" * 10_000_000})
    held = [*(span.attributes or {}).values(), *(span.events[0].attributes or {}).values()]
    held += (span.links[0].attributes or {}).values()
    assert [len(value) for value in held if isinstance(value, str | bytes | tuple)] == [8_192] * 5
    assert finished(span).attributes == {"text": "x" * 8_192, "bytes": "x" * 8_192}
    assert span.dropped_attributes == 0


@pytest.mark.parametrize("odd", [*ODD, INVALID_SPAN_CONTEXT, math.nan, 2**70], ids=lambda odd: type(odd).__name__)
def test_whatever_it_is_given_it_does_not_raise(odd: Any) -> None:
    """And what is good about it stays."""
    span = body_span()
    span.set_attribute("good", 1)
    calls: list[Callable[[], None]] = [
        lambda: span.set_attribute("odd", odd),
        lambda: span.set_attribute(odd, 1),
        lambda: span.set_attributes(odd),
        lambda: span.set_attributes({"odd": odd}),
        lambda: span.add_event(odd),
        lambda: span.add_event("odd", odd),
        lambda: span.add_event("odd", {"odd": odd}, odd),
        lambda: span.add_link(odd),
        lambda: span.add_link(odd, {"odd": 1}),
        lambda: span.add_link(ELSEWHERE, odd),
        lambda: span.record_exception(odd),
        lambda: span.record_exception(ValueError("odd"), odd, odd, odd),
        lambda: span.set_status(odd),
        lambda: span.set_status(StatusCode.ERROR, odd),
        lambda: span.set_status(Status(StatusCode.ERROR), odd),
        lambda: span.update_name(odd),
        lambda: span.end(odd),
    ]
    for call in calls:
        call()
    span.add_event("good", None, NOW)
    span.add_link(ELSEWHERE)
    record = finished(span)
    assert record.attributes["good"] == 1
    assert RecordedEvent("good", NOW, {}) in record.events
    assert LINK in record.links
    assert cleaned_body(record) == record


def test_a_link_to_nothing_is_none() -> None:
    span, empty = body_span(), SpanContext(0, 0, is_remote=False)
    span.add_link(empty)
    span.add_link(empty, {"to": "nothing"})
    span.add_link(ELSEWHERE)
    assert finished(span) == BodyRecord(links=(LINK,), dropped_links=1)


values = st.text(max_size=5) | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
keys = st.text("abc", min_size=1, max_size=2)
settings = st.one_of(
    st.tuples(st.just("set_attribute"), keys, values | st.lists(st.integers(), max_size=2)),
    st.tuples(st.just("set_attributes"), st.dictionaries(keys, values, max_size=3)),
    st.tuples(st.just("add_event"), st.text(max_size=5), st.dictionaries(keys, values, max_size=3), st.just(NOW)),
    st.tuples(st.just("add_link"), st.just(ELSEWHERE), st.dictionaries(keys, values, max_size=3)),
    st.tuples(st.just("set_status"), st.sampled_from(StatusCode), st.none()),
    st.tuples(st.just("update_name"), st.text(min_size=1, max_size=5)),
)


@given(st.lists(settings, max_size=12), st.sampled_from([None, SpanLimits(2, 2, 1, 1, 1, 3, 2)]))
def test_what_is_set_is_on_it_as_on_a_span_of_the_sdks(made: list[tuple[Any, ...]], limits: SpanLimits | None) -> None:
    ours, theirs = body_span(limits), sdk_span(limits)
    for span in (ours, theirs):
        for name, *arguments in made:
            getattr(span, name)(*arguments)
    assert said_of(ours) == said_of(theirs)


def set_much(span: BodySpan, start: threading.Barrier) -> None:
    start.wait(DEADLINE)
    for number in range(30):
        span.set_attribute(f"key {number}", number)
        span.add_event("event", {"number": number}, NOW)
        span.record_exception(ValueError("boom"))


def finish(span: BodySpan, start: threading.Barrier) -> BodyRecord | None:
    start.wait(DEADLINE)
    return span.finish()


def test_it_takes_from_any_thread_while_its_module_ends() -> None:
    """And what it takes is whole: nothing of it changes once it is in the record."""
    with ThreadPoolExecutor(9) as pool:
        for _ in range(50):
            span, start = body_span(), threading.Barrier(9)
            ending = pool.submit(finish, span, start)
            for future in [pool.submit(set_much, span, start) for _ in range(8)]:
                future.result(DEADLINE)
            assert span.finish() == ending.result(DEADLINE)
            assert not span.is_recording()


def test_it_is_current_in_the_threads_and_tasks_of_a_body() -> None:
    span = body_span()

    async def task(number: int) -> None:
        await asyncio.sleep(0)
        trace.get_current_span().set_attribute(f"task {number}", number)

    async def tasks() -> None:
        await asyncio.gather(*map(task, range(3)))

    with trace.use_span(span), ThreadPoolExecutor(2) as pool:
        asyncio.run(tasks())
        for future in [pool.submit(span.set_attribute, f"thread {number}", number) for number in range(3)]:
            future.result(DEADLINE)
    kinds = ("task", "thread")
    assert finished(span).attributes == {f"{kind} {number}": number for kind in kinds for number in range(3)}


def test_a_fork_in_a_body_sets_nothing_of_its_parents() -> None:
    span = body_span()
    span.set_attribute("before", 1)
    child = os.fork()
    if child == 0:
        try:
            span.set_attribute("in the child", 2)
            os._exit(0 if finished(span).attributes == {"before": 1, "in the child": 2} else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert finished(span).attributes == {"before": 1}


def test_another_process_records_for_its_parent() -> None:
    """Under the ids that came with the trace context, sampled or not: it is asked only where the parent records."""
    known = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(0))
    context = trace.set_span_in_context(trace.NonRecordingSpan(known), Context({"kept": 1}))
    there, inside = recording(MODULE, "Trim", context)
    assert (trace.get_current_span(inside), inside["kept"], there.name) == (there, 1, "Trim")
    assert there.get_span_context() == SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(0))
    there.set_attribute("rows", 7)
    here = body_span()
    here.is_elsewhere = True
    here.remote = finished(there)
    assert here.finish() == BodyRecord({"rows": 7}, is_elsewhere=True)
    nothing = body_span()
    nothing.is_elsewhere = True
    assert nothing.finish() == BodyRecord(is_elsewhere=True)


def test_it_has_no_other_attribute_than_the_sdks() -> None:
    span = body_span()
    for name in ("no_such_thing", "__wrapped__", "_no_such_thing"):
        with pytest.raises(AttributeError):
            getattr(span, name)
    assert not hasattr(span, "_self_")


def test_what_raises_is_logged_once_with_its_method(caplog: pytest.LogCaptureFixture) -> None:
    span = body_span()
    for _ in range(100):
        span.set_attributes(Hostile())  # type: ignore[arg-type]
    (entry,) = [entry for entry in caplog.records if entry.name.startswith("constellation_otel")]
    assert entry.levelno == logging.WARNING
    assert entry.message == "set_attributes of a module's span raised, and what it was to set is left out"


def test_one_of_an_unsampled_execution_does_not_record() -> None:
    span = current_in(bodies_of(ALWAYS_OFF))
    assert type(span) is trace.NonRecordingSpan
