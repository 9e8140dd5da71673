"""Sampled: what a sampler says of an execution, for spans that we send ourselves."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState

from constellation_otel.events import ExecutionCompleted, ExecutionStarted, ModuleCompleted
from constellation_otel.traces import NOT_TRACED, Assembler, Sampled, span_id_of, trace_id_of
from support import DEADLINE, in_threads

if TYPE_CHECKING:
    from constellation_otel.traces import Span

RANDOM = TraceFlags.RANDOM_TRACE_ID
SAMPLED = TraceFlags.SAMPLED
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"


class Boom(Exception):
    """What a sampler raises in these tests."""


class Opinionated(Sampler):
    """Says more than yes or no, and keeps what it was asked."""

    def __init__(self, decision: Decision = Decision.RECORD_AND_SAMPLE) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.decision = decision

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        links: Any = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        self.asked.append((trace_id, name, kind, dict(attributes), trace_state and trace_state.to_header()))
        return SamplingResult(
            self.decision, {"rule": "all", "constellation.outcome": "?"}, TraceState([("rule", "all")])
        )

    def get_description(self) -> str:
        return "Opinionated"


class Raising(Opinionated):
    """Has no opinion."""

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        raise Boom("no opinion")


def spans_of(execution_id: UUID, traceparent: str | None = None, tracestate: str | None = None) -> list[Span]:
    """A module's span and its execution's, as an assembler gives them."""
    assembler = Assembler()
    spans = []
    for event in (
        ExecutionStarted(execution_id, "d", 1_000, traceparent, tracestate),
        ModuleCompleted(execution_id, UUID(int=1), "m", 0.001, 3_000),
        ExecutionCompleted(execution_id, "d", True, 0.002, 4_000),
    ):
        spans += assembler.add(event, 0)
    return spans


def test_a_sampled_execution_gets_the_flags_the_trace_state_and_its_own_span_the_attributes() -> None:
    sampler = Opinionated()
    execution_id = uuid4()
    module, execution = spans_of(execution_id)
    sampled = Sampled(sampler)
    flags = int(SAMPLED | RANDOM)
    assert sampled(module) == replace(module, trace_flags=flags, trace_state="rule=all")
    assert sampled(execution) == replace(
        execution, trace_flags=flags, trace_state="rule=all", attributes={"rule": "all", **execution.attributes}
    )
    asked_attributes = {"constellation.execution.id": str(execution_id), "constellation.dag.name": "d"}
    assert sampler.asked == [(trace_id_of(execution_id), "d", SpanKind.SERVER, asked_attributes, None)]


@pytest.mark.parametrize("decision", [Decision.DROP, Decision.RECORD_ONLY])
def test_an_execution_that_is_not_sampled_has_no_spans_and_is_observed_all_the_same(decision: Decision) -> None:
    observed: list[tuple[str, SpanContext]] = []

    def observe(span: Span, context: Context) -> None:
        observed.append((span.name, trace.get_current_span(context).get_span_context()))

    sampled = Sampled(Opinionated(decision), observe)
    spans = spans_of(uuid4())
    assert [sampled(span) for span in spans] == [None, None]
    assert [(name, found.trace_id, found.span_id, found.trace_flags) for name, found in observed] == [
        (span.name, span.trace_id, span.span_id, RANDOM) for span in spans
    ]


def test_what_was_decided_at_the_start_holds_and_is_forgotten_with_the_executions_own_span() -> None:
    sampler = Opinionated()
    sampled = Sampled(sampler)
    execution_id = uuid4()
    decision = sampled.decide(execution_id, "d", Context())
    sampled.remember(execution_id, decision)
    assert sampled.decision_of(execution_id) is decision
    module, execution = spans_of(execution_id)
    sampled(module)
    assert sampled.decision_of(execution_id) is decision
    sampled(execution)
    assert sampled.decision_of(execution_id) is None
    assert len(sampler.asked) == 1


def test_an_execution_that_is_not_to_be_traced_has_no_spans() -> None:
    sampled = Sampled(ALWAYS_ON)
    execution_id = uuid4()
    sampled.remember(execution_id, NOT_TRACED)
    assert [sampled(span) for span in spans_of(execution_id)] == [None, None]


def test_what_is_forgotten_is_decided_anew() -> None:
    sampled = Sampled(ALWAYS_ON)
    execution_id = uuid4()
    sampled.remember(execution_id, NOT_TRACED)
    sampled.forget(execution_id)
    sampled.forget(execution_id)
    assert sampled.decision_of(execution_id) is None
    assert all(sampled(span) is not None for span in spans_of(execution_id))


@pytest.mark.parametrize(("flag", "expected"), [("1", 2), ("0", 0)])
def test_a_caller_who_is_only_known_from_the_spans_has_the_say_too(flag: str, expected: int) -> None:
    sampled = Sampled(ParentBased(ALWAYS_OFF if expected else ALWAYS_ON))
    sent = [sampled(span) for span in spans_of(uuid4(), PARENT + flag, "vendor=1")]
    kept = [span for span in sent if span is not None]
    assert len(kept) == expected
    assert {(span.trace_id, span.trace_flags, span.trace_state) for span in kept} == (
        {(0x0AF7651916CD43DD8448EB211C80319C, SAMPLED, "vendor=1")} if expected else set()
    )


SAMPLERS = (
    ALWAYS_ON, ALWAYS_OFF, TraceIdRatioBased(0.5), ParentBased(TraceIdRatioBased(0.5)), ParentBased(ALWAYS_ON),
)  # fmt: skip


@given(
    st.uuids(),
    st.sampled_from(SAMPLERS),
    st.none() | st.tuples(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.sampled_from([0, 1, 2, 3])),
    st.sampled_from([None, "vendor=1"]),
)
def test_the_answer_at_the_start_and_the_answer_from_the_spans_are_the_same(
    execution_id: UUID, sampler: Sampler, caller: tuple[int, int, int] | None, tracestate: str | None
) -> None:
    """After a restart there are only the spans; what they become has to be the same, byte for byte."""
    context, traceparent = Context(), None
    if caller is None:
        tracestate = None
    else:
        trace_id, span_id, flags = caller
        traceparent = f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"
        state = TraceState.from_header([tracestate or ""])
        span_context = SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(flags), trace_state=state)
        context = trace.set_span_in_context(NonRecordingSpan(span_context))
    spans = spans_of(execution_id, traceparent, tracestate)
    at_the_start, afterwards = Sampled(sampler), Sampled(sampler)
    at_the_start.remember(execution_id, at_the_start.decide(execution_id, "d", context))
    assert [at_the_start(span) for span in spans] == [afterwards(span) for span in spans]


def test_an_execution_for_which_the_sampler_raises_is_not_traced(caplog: pytest.LogCaptureFixture) -> None:
    observed: list[Span] = []
    sampled = Sampled(Raising(), lambda span, _: observed.append(span))
    execution_id = uuid4()
    assert [sampled(span) for span in spans_of(execution_id)] == [None] * len(spans_of(execution_id))
    assert observed == spans_of(execution_id)
    assert caplog.messages == [f"the sampler raised for execution {execution_id}; the execution is not traced"]
    assert "no opinion" in caplog.text


def test_metrics_that_raise_cost_no_span(caplog: pytest.LogCaptureFixture) -> None:
    def observe(span: Span, context: Context) -> None:
        raise Boom("no histogram")

    sampled = Sampled(ALWAYS_ON, observe)
    assert all(sampled(span) is not None for span in spans_of(uuid4()))
    assert caplog.messages == ["a span is not in the metrics or logs"]
    assert "no histogram" in caplog.text


def test_the_oldest_decision_goes_where_there_is_no_room_and_is_made_again_from_the_spans() -> None:
    sampled = Sampled(ParentBased(ALWAYS_OFF), max_remembered=2)
    ids = [UUID(int=number + 1) for number in range(5)]
    for execution_id in ids:
        sampled.remember(execution_id, sampled.decide(execution_id, "d", Context()))
    assert [sampled.decision_of(execution_id) is not None for execution_id in ids] == [False, False, False, True, True]
    assert all(sampled(span) is not None for span in spans_of(ids[0], PARENT + "1"))


def test_threads_may_remember_and_forget_while_another_one_goes_by_it() -> None:
    sampled = Sampled(ALWAYS_ON, max_remembered=10)
    together = threading.Barrier(3)
    failures: list[BaseException] = []

    def tell() -> None:
        together.wait(DEADLINE)
        try:
            for _ in range(300):
                execution_id = uuid4()
                sampled.remember(execution_id, sampled.decide(execution_id, "d", Context()))
                for span in spans_of(execution_id):
                    assert sampled(span) is not None
        except BaseException as error:  # noqa: BLE001 - for the test's own thread
            failures.append(error)

    in_threads(3, tell)
    assert failures == []
    assert len(sampled._decisions) == 0


def test_the_context_of_a_module_has_its_span_in_the_executions_trace() -> None:
    sampled = Sampled(ALWAYS_ON)
    execution_id = uuid4()
    context = sampled.decide(execution_id, "d", Context()).context_of(5, Context({"kept": 1}))
    current = trace.get_current_span(context).get_span_context()
    assert context["kept"] == 1
    assert (current.trace_id, current.span_id, current.trace_flags) == (
        trace_id_of(execution_id),
        5,
        SAMPLED | RANDOM,
    )
    assert span_id_of(execution_id) != 5
