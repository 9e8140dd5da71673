"""The spans of bodies that a listener keeps: one for each module, until it ends."""

from __future__ import annotations

import logging
from itertools import repeat
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, StaticSampler
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags

from body_spans import EXECUTION, MODULE, OTHER, bodies_of, current_in, recorded_by
from constellation_otel import ConfigurationError, span_id_of, trace_id_of
from constellation_otel.bodies import Bodies, BodyRecord, module_context, span_context_of, traceparent_of
from constellation_otel.bodies import context as context_module
from constellation_otel.bodies.body import Body
from constellation_otel.bodies.running import RUNNING
from constellation_otel.traces import Sampling
from odd_events import Hostile
from samplers import Opinionated, RaisingSampler

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD_ONLY = StaticSampler(Decision.RECORD_ONLY)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Listless:
    """An id that no dictionary can have."""

    int: Any = []  # noqa: RUF012 - what it is about


def test_a_second_look_at_a_module_finds_the_same_span() -> None:
    bodies = bodies_of()
    span = recorded_by(bodies)
    assert recorded_by(bodies, context=Context({"kept": 1})) is span
    assert recorded_by(bodies, OTHER) is not span
    context = bodies.context_of(EXECUTION, MODULE, Context({"kept": 1}))
    assert context == {"kept": 1, context_module.CURRENT_SPAN: span, RUNNING: span}
    assert trace.get_current_span(context) is span


def test_what_is_taken_ends_the_span_and_is_taken_once() -> None:
    bodies = bodies_of()
    span = recorded_by(bodies)
    span.set_attribute("rows", 7)
    assert bodies.take(EXECUTION, OTHER) is None
    assert bodies.take(EXECUTION, MODULE) == BodyRecord({"rows": 7})
    assert not span.is_recording()
    assert bodies.take(EXECUTION, MODULE) is None
    assert recorded_by(bodies) is not span


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, RaisingSampler()])
def test_where_nothing_is_traced_nothing_is_kept(sampler: Any) -> None:
    bodies = bodies_of(sampler)
    assert not current_in(bodies).is_recording()
    (decision,) = bodies.sampling.remembered()
    assert decision.bodies == {}
    assert bodies.take(EXECUTION, MODULE) is None


def test_an_unsampled_execution_hands_on_its_ids() -> None:
    span = current_in(bodies_of(ALWAYS_OFF))
    assert type(span) is NonRecordingSpan
    assert span.get_span_context() == SpanContext(
        trace_id_of(EXECUTION), span_id_of(EXECUTION, MODULE), is_remote=False, trace_flags=TraceFlags(2)
    )


def test_what_is_recorded_only_records_without_being_sampled() -> None:
    bodies = bodies_of(RECORD_ONLY)
    span = recorded_by(bodies)
    assert (span.is_recording(), span.get_span_context().trace_flags) == (True, 2)
    span.set_attribute("rows", 7)
    assert bodies.take(EXECUTION, MODULE) == BodyRecord({"rows": 7})


def test_the_samplers_state_and_the_applications_limits_hold() -> None:
    span = recorded_by(bodies_of(Opinionated(), SpanLimits(max_span_attributes=1)))
    assert span.get_span_context().trace_state.to_header() == "rule=all"
    span.set_attributes({"a": 1, "b": 2})
    assert span.finish() == BodyRecord({"b": 2}, dropped_attributes=1)


def test_the_limits_of_the_environment_hold_where_there_are_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1")
    span = recorded_by(bodies_of())
    span.set_attributes({"a": 1, "b": 2})
    assert span.finish() == BodyRecord({"b": 2}, dropped_attributes=1)


def test_limits_that_cannot_be_used_cost_no_body_its_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
    bodies = bodies_of()
    recorded_by(bodies).set_attribute("a", 1)
    assert bodies.take(EXECUTION, MODULE) is None
    assert "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT" in caplog.text


def test_of_an_execution_that_is_not_known_nothing_is_kept() -> None:
    bodies, context = bodies_of(), Context({"kept": 1})
    assert bodies.context_of(OTHER, MODULE, context) is context
    assert bodies.take(OTHER, MODULE) is None
    assert bodies.traceparent_of(OTHER) is None


def test_beyond_its_limit_the_oldest_are_let_go(caplog: pytest.LogCaptureFixture) -> None:
    bodies = bodies_of(max_open=3)
    spans = [recorded_by(bodies, UUID(int=number)) for number in range(5)]
    for span in spans:
        span.set_attribute("rows", 7)
    assert [span.is_recording() for span in spans] == [False, False, True, True, True]
    taken = [bodies.take(EXECUTION, UUID(int=number)) for number in range(5)]
    assert taken == [None, None, *[BodyRecord({"rows": 7})] * 3]
    assert bodies.let_go == 2
    assert caplog.messages[0] == "more than 3 modules run; what the body of the oldest sets on its span is lost"
    # what has ended has left its room to others
    later = [recorded_by(bodies, UUID(int=number)) for number in range(10, 13)]
    assert all(span.is_recording() for span in later)
    assert bodies.let_go == 2


def test_the_oldest_are_those_of_the_execution_that_started_first() -> None:
    bodies = bodies_of(max_open=2)
    bodies.sampling.decide(OTHER, "later", Context())
    bodies.context_of(OTHER, MODULE, Context())
    first, second = recorded_by(bodies), recorded_by(bodies, OTHER)
    assert (first.is_recording(), second.is_recording()) == (False, True)
    later = trace.get_current_span(bodies.context_of(OTHER, MODULE, Context()))
    assert later.is_recording()


def test_of_a_module_that_was_taken_meanwhile_none_is_let_go() -> None:
    bodies = bodies_of(max_open=1)

    class Racing(dict[int, Any]):
        """Another thread takes what this one has just found."""

        def __iter__(self) -> Any:
            self.clear()
            raise RuntimeError

    (decision,) = bodies.sampling.remembered()
    spans = Racing({1: Body(), 2: Body()})
    bodies._room = repeat(None, 0)
    object.__setattr__(bodies.sampling, "remembered", lambda: [type("Decision", (), {"bodies": spans})()])
    assert recorded_by(bodies).is_recording()
    assert bodies.let_go == 0
    assert list(decision.bodies) == [MODULE.int]


@pytest.mark.parametrize("how", ["end", "forget", "too many"])
def test_the_spans_of_an_execution_that_is_over_take_no_more(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of one that was cancelled, a body may run on."""
    bodies = bodies_of()
    made, other = recorded_by(bodies), recorded_by(bodies, OTHER)
    made.set_attribute("before", 1)
    if how == "end":
        bodies.end(EXECUTION)
    elif how == "forget":
        bodies.sampling.forget(EXECUTION)
    else:
        bodies.sampling._max_remembered = 1
        bodies.sampling.decide(OTHER, "later", Context())
    for span in (made, other):
        span.set_attribute("after", 1)
        span.add_event("after")
        assert not span.is_recording()
    assert dict(made.attributes or {}) == {"before": 1}
    assert caplog.messages == ["Setting attribute on ended span.", "Tried calling _add_event on an ended span."] * 2
    assert bodies.take(EXECUTION, MODULE) is None
    assert bodies.traceparent_of(EXECUTION) is None


def test_several_listeners_have_one_span_between_them() -> None:
    """Each takes all of what was set, also the one that records where another one's sampler has dropped."""
    first, dropping, second = bodies_of(), bodies_of(ALWAYS_OFF), bodies_of(RECORD_ONLY)
    context = Context({"kept": 1})
    for bodies in (first, dropping, second):
        context = bodies.context_of(EXECUTION, MODULE, context)
    trace.get_current_span(context).set_attribute("rows", 7)
    assert [bodies.take(EXECUTION, MODULE) for bodies in (first, dropping, second)] == [BodyRecord({"rows": 7})] * 3
    late = bodies_of(ALWAYS_OFF)
    only = bodies_of(RECORD_ONLY)
    context = only.context_of(EXECUTION, MODULE, late.context_of(EXECUTION, MODULE, Context()))
    trace.get_current_span(context).set_attribute("rows", 8)
    assert (late.take(EXECUTION, MODULE), only.take(EXECUTION, MODULE)) == (None, BodyRecord({"rows": 8}))


@pytest.mark.parametrize("module_id", [MODULE, OTHER])
def test_a_span_of_another_module_or_trace_is_not_shared(module_id: UUID) -> None:
    """A module may run an engine of its own."""
    caller = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))
    outer = bodies_of(caller=trace.set_span_in_context(NonRecordingSpan(caller), Context()))
    context = outer.context_of(EXECUTION, MODULE, Context())
    inner = bodies_of()
    span = recorded_by(inner, module_id, context)
    assert span is not trace.get_current_span(context)
    span.set_attribute("rows", 7)
    assert (outer.take(EXECUTION, MODULE), inner.take(EXECUTION, module_id)) == (None, BodyRecord({"rows": 7}))


def test_the_error_of_a_module_is_left_out_of_what_is_taken() -> None:
    bodies, error = bodies_of(), ValueError("boom")
    span = recorded_by(bodies)
    span.record_exception(error)
    span.set_status(StatusCode.OK)
    assert bodies.take(EXECUTION, MODULE, error) == BodyRecord(status="ok")


def test_redact_rewrites_all_that_recorded_errors_say() -> None:
    """Causes and notes are in the stack trace."""
    bodies = bodies_of(redact=lambda text: text.replace("secret", "***"))
    span = recorded_by(bodies)
    try:
        try:
            raise KeyError("secret cause")
        except KeyError as cause:
            error = ValueError("a secret")
            error.add_note("noted: secret")
            raise error from cause
    except ValueError as raised:
        span.record_exception(raised)
    span.add_event("exception", {"exception.message": "", "exception.stacktrace": "secret", "other": 5})
    span.add_event("exception", {"exception.message": 5})
    span.add_event("not an exception", {"exception.message": "a secret of its own"})
    span.set_status(StatusCode.ERROR, "ValueError: a secret")
    record = bodies.take(EXECUTION, MODULE)
    assert record is not None
    assert record.description == "ValueError: a ***"
    first, second, third, fourth = record.events
    assert first.attributes["exception.message"] == "a ***"
    trace_ = first.attributes["exception.stacktrace"]
    assert isinstance(trace_, str)
    assert "KeyError: '*** cause'" in trace_
    assert "ValueError: a ***\nnoted: ***\n" in trace_
    # the text of the source is one that anybody can read, and is rewritten as well
    assert "secret" not in trace_
    assert second.attributes == {"exception.message": "", "exception.stacktrace": "***", "other": 5}
    assert third.attributes == {"exception.message": 5}
    assert fourth.attributes == {"exception.message": "a secret of its own"}


@pytest.mark.parametrize(("redact", "kept"), [(lambda _: 1 / 0, "raised ZeroDivisionError"), (int, "ValueError")])
def test_what_redact_cannot_rewrite_is_withheld(redact: Callable[[str], Any], kept: str) -> None:
    bodies = bodies_of(redact=redact)
    span = recorded_by(bodies)
    span.record_exception(ValueError("a secret"))
    record = bodies.take(EXECUTION, MODULE)
    assert record is not None
    said = record.events[0].attributes
    assert all(kept in str(said[f"exception.{name}"]) for name in ("message", "stacktrace"))
    assert "secret" not in str(record)


@pytest.mark.parametrize("odd", [None, "id", 5, Hostile(), Listless()], ids=lambda odd: type(odd).__name__)
def test_ids_that_are_none_cost_no_callback(odd: Any) -> None:
    bodies = bodies_of()
    recorded_by(bodies)
    assert bodies.take(odd, MODULE) is None
    assert bodies.take(EXECUTION, odd) is None
    if not isinstance(odd, Listless):
        assert bodies.traceparent_of(odd) is None
        bodies.end(odd)


def test_a_span_that_cannot_be_read_costs_what_was_set_only(caplog: pytest.LogCaptureFixture) -> None:
    bodies = bodies_of()
    span = recorded_by(bodies)
    span.set_attribute("rows", 7)
    vars(span.recorder)["_status"] = None
    assert bodies.take(EXECUTION, MODULE) is None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.message == (f"what the body of module {MODULE} has set on its span is lost, since reading it raised")


def test_a_tracer_without_the_sdks_ids_hands_on_its_own_context() -> None:
    """Its spans are made when the execution has ended."""
    from constellation_otel.traces import Decision as Made  # noqa: PLC0415 - the SDK's has the same name

    bodies = Bodies(Sampling(lambda execution_id, dag_name, context, own=None: Made(context, is_recorded=True)), 10)
    bodies.sampling.decide(EXECUTION, "pipeline", Context())
    context = Context({"kept": 1})
    assert bodies.context_of(EXECUTION, MODULE, context) is context
    assert bodies.traceparent_of(EXECUTION) is None


def test_the_traceparent_of_an_execution_is_its_own_spans() -> None:
    trace_id, span_id = trace_id_of(EXECUTION), span_id_of(EXECUTION)
    assert bodies_of().traceparent_of(EXECUTION) == f"00-{trace_id:032x}-{span_id:016x}-03"
    assert bodies_of(ALWAYS_OFF).traceparent_of(EXECUTION) == f"00-{trace_id:032x}-{span_id:016x}-02"
    assert traceparent_of(None) is None


@pytest.mark.parametrize(
    ("traceparent", "sampler", "expected"),
    [
        (TRACEPARENT, None, (0x0AF7651916CD43DD8448EB211C80319C, 1)),
        (TRACEPARENT, ALWAYS_OFF, (0x0AF7651916CD43DD8448EB211C80319C, 1)),
        ("not one", None, (trace_id_of(EXECUTION), 3)),
        (None, None, (trace_id_of(EXECUTION), 3)),
        (None, ALWAYS_ON, (trace_id_of(EXECUTION), 3)),
        (None, ALWAYS_OFF, (trace_id_of(EXECUTION), 2)),
    ],
)
def test_where_no_listener_is_a_body_has_its_computed_span(
    traceparent: str | None, sampler: Any, expected: tuple[int, int]
) -> None:
    context = module_context(EXECUTION, MODULE, traceparent, sampler=sampler)
    known = trace.get_current_span(context).get_span_context()
    assert (known.trace_id, known.trace_flags) == expected
    assert known.span_id == span_id_of(EXECUTION, MODULE)
    assert not trace.get_current_span(context).is_recording()
    execution = span_context_of(EXECUTION, traceparent, sampler=sampler)
    assert (execution.trace_id, execution.span_id, execution.trace_flags) == (
        expected[0],
        span_id_of(EXECUTION),
        expected[1],
    )


def test_a_sampler_that_cannot_be_used_is_said_where_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    context_module._sampler_of_environment.cache_clear()
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
    with pytest.raises(ConfigurationError, match="OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"):
        module_context(EXECUTION, MODULE)
