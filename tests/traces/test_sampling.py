"""Sampling: asked once for an execution, the same answer on all of its spans, and bounded memory."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.sdk.trace.sampling import Decision as Answer
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState

from constellation_otel.errors import ConfigurationError
from constellation_otel.events import ExecutionCompleted, ExecutionStarted, ModuleCompleted
from constellation_otel.traces import (
    NOT_TRACED,
    Assembler,
    Decision,
    Sampling,
    SpanEvent,
    decide,
    exported,
    sampler_of_environment,
    trace_id_of,
)
from constellation_otel.traces.ids import RANDOM_TRACE_ID
from samplers import Opinionated, RaisingSampler
from support import DEADLINE, in_threads

if TYPE_CHECKING:
    from constellation_otel.traces import Span

RANDOM = RANDOM_TRACE_ID
SAMPLED = TraceFlags.SAMPLED
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"
EXECUTION = UUID(int=7)


def sampling_by(sampler: Sampler, **options: Any) -> Sampling:
    return Sampling(partial(decide, sampler), **options)


def spans_of(
    execution_id: UUID, sampling: Sampling | None, traceparent: str | None = None, tracestate: str | None = None
) -> list[Span]:
    """A module's span and its execution's, as an assembler gives them."""
    assembler = Assembler(sampling=sampling)
    spans = []
    for event in (
        ExecutionStarted(execution_id, "d", 1_000, traceparent, tracestate),
        ModuleCompleted(execution_id, UUID(int=1), "m", 0.001, 3_000),
        ExecutionCompleted(execution_id, "d", True, 0.002, 4_000),
    ):
        spans += assembler.add(event, 0)
    return spans


def exported_by(sampler: Sampler, *parent: str) -> list[Span]:
    """What is exported of an execution of which only the events are known."""
    spans = spans_of(EXECUTION, sampling_by(sampler), *parent)
    return [*exported(with_events=True)(spans)]


def context_with(span_context: SpanContext) -> Context:
    return trace.set_span_in_context(NonRecordingSpan(span_context), Context())


# --- one decision ----------------------------------------------------------------------------------------------------


def test_a_sampler_is_asked_about_an_execution_and_its_caller() -> None:
    sampler = Opinionated()
    caller = SpanContext(5, 7, is_remote=True, trace_state=TraceState([("vendor", "1")]))
    own = decide(sampler, EXECUTION, "d", Context())
    called = decide(sampler, EXECUTION, "", context_with(caller))
    attributes = {"constellation.execution.id": str(EXECUTION), "constellation.dag.name": "d"}
    assert sampler.asked == [
        (trace_id_of(EXECUTION), "d", SpanKind.SERVER, attributes, None),
        (5, "unknown", SpanKind.INTERNAL, attributes | {"constellation.dag.name": "unknown"}, "vendor=1"),
    ]
    assert own.span_context is not None
    assert called.span_context is not None
    assert (own.span_context.trace_id, called.span_context.trace_id) == (trace_id_of(EXECUTION), 5)
    assert own.span_context.span_id == called.span_context.span_id
    assert called.attributes == {"sampler.rule": "all", "constellation.outcome": "?"}


@pytest.mark.parametrize("sampler", [ALWAYS_ON, TraceIdRatioBased(1.0), ParentBased(ALWAYS_ON)])
def test_attributes_that_a_sampler_gives_back_are_not_its_own(sampler: Sampler) -> None:
    """All of the SDK's do so; what is added to a span otherwise is a reason to look at its limits."""
    assert decide(sampler, EXECUTION, "d", Context()).attributes == {}


@pytest.mark.parametrize("caller_flags", [None, TraceFlags.DEFAULT, SAMPLED, SAMPLED | RANDOM])
@pytest.mark.parametrize(
    ("answer", "is_recorded", "sampled"),
    [
        (Answer.DROP, False, TraceFlags.DEFAULT),
        (Answer.RECORD_ONLY, True, TraceFlags.DEFAULT),
        (Answer.RECORD_AND_SAMPLE, True, SAMPLED),
    ],
)
def test_the_flags_are_the_samplers_and_the_ids_randomness(
    answer: Answer, is_recorded: bool, sampled: int, caller_flags: int | None
) -> None:
    """An id of ours is a hash, and random; of a caller's id, the caller says so."""
    context = Context()
    if caller_flags is not None:
        context = context_with(SpanContext(5, 7, is_remote=True, trace_flags=TraceFlags(caller_flags)))
    decision = decide(Opinionated(answer), EXECUTION, "d", context)
    random = RANDOM if caller_flags is None else caller_flags & RANDOM
    assert (decision.is_recorded, decision.trace_flags, decision.trace_state) == (
        is_recorded,
        sampled | random,
        "rule=all",
    )


def test_the_context_of_a_module_is_in_the_executions_trace() -> None:
    context = decide(ALWAYS_ON, EXECUTION, "d", Context()).context_of(5, Context({"kept": 1}))
    current = trace.get_current_span(context).get_span_context()
    assert context["kept"] == 1
    assert (current.trace_id, current.span_id, current.trace_flags) == (trace_id_of(EXECUTION), 5, SAMPLED | RANDOM)


def test_where_no_trace_is_known_a_context_stays_as_it_is() -> None:
    context = Context({"kept": 1})
    assert NOT_TRACED.context_of(5, context) is context
    assert NOT_TRACED.span_context_of(5) is None


# --- what is exported ------------------------------------------------------------------------------------------------


def test_sampled_spans_have_the_samplers_flags_and_state() -> None:
    """And its own span the attributes, as far as it has none of that name."""
    flags = int(SAMPLED | RANDOM)
    module, execution = spans_of(EXECUTION, None)
    assert exported_by(Opinionated()) == [
        replace(module, trace_flags=flags, trace_state="rule=all"),
        replace(
            execution,
            trace_flags=flags,
            trace_state="rule=all",
            attributes={"sampler.rule": "all", **execution.attributes},
        ),
    ]


@pytest.mark.parametrize("answer", [Answer.DROP, Answer.RECORD_ONLY])
def test_of_an_execution_that_is_not_sampled_nothing_is_exported(answer: Answer) -> None:
    assert exported_by(Opinionated(answer)) == []


def test_events_stay_on_a_span_only_where_they_are_wanted() -> None:
    plain, _ = spans_of(EXECUTION, sampling_by(ALWAYS_ON))
    failed = replace(plain, events=(SpanEvent("exception", 1, {}, is_failure=True),))
    assert exported(with_events=True)([failed, plain]) == [failed, plain]
    assert exported(with_events=False)([failed, plain]) == [plain, plain]


@pytest.mark.parametrize(("flag", "expected"), [("1", 2), ("0", 0)])
def test_a_caller_known_from_the_start_event_decides_too(flag: str, expected: int) -> None:
    kept = exported_by(ParentBased(ALWAYS_OFF if expected else ALWAYS_ON), PARENT + flag, "vendor=1")
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
def test_deciding_at_the_start_or_from_the_events_is_the_same(
    execution_id: UUID, sampler: Sampler, caller: tuple[int, int, int] | None, tracestate: str | None
) -> None:
    """After a restart there are only the events; what they become has to be the same, byte for byte."""
    context, traceparent = Context(), None
    if caller is None:
        tracestate = None
    else:
        trace_id, span_id, flags = caller
        traceparent = f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"
        state = TraceState.from_header([tracestate or ""])
        context = context_with(
            SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(flags), trace_state=state)
        )
    at_the_start, afterwards = sampling_by(sampler), sampling_by(sampler)
    assert at_the_start.decide(execution_id, "d", context)
    parent = (traceparent, tracestate)
    assert spans_of(execution_id, at_the_start, *parent) == spans_of(execution_id, afterwards, *parent)
    one, other = at_the_start.recall(execution_id), afterwards.recall(execution_id)
    assert one is not None
    assert other is not None
    assert (one.is_recorded, one.trace_flags, one.trace_state) == (
        other.is_recorded,
        other.trace_flags,
        other.trace_state,
    )


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_a_decision_at_the_start_holds_until_it_is_forgotten() -> None:
    sampler = Opinionated()
    sampling = sampling_by(sampler)
    assert sampling.decide(EXECUTION, "d", Context())
    assert not sampling.decide(EXECUTION, "d", Context())
    decision = sampling.recall(EXECUTION)
    spans_of(EXECUTION, sampling)
    assert sampling.decision_on(EXECUTION, "d", Context()) is decision
    assert len(sampler.asked) == 1
    for _ in range(2):
        sampling.forget(EXECUTION)
    assert sampling.recall(EXECUTION) is None
    assert sampling.decision_on(EXECUTION, "d", Context()) is not decision
    assert len(sampler.asked) == 2


def test_while_nobody_decides_nothing_is_traced_nor_remembered() -> None:
    sampling = Sampling(None)
    assert not sampling.decide(EXECUTION, "d", Context())
    assert sampling.decision_on(EXECUTION, "d", Context()) is NOT_TRACED
    assert sampling.join(EXECUTION, "d", PARENT + "1") is NOT_TRACED
    assert sampling.recall(EXECUTION) is None
    sampling.decider = partial(decide, ALWAYS_ON)
    assert sampling.decision_on(EXECUTION, "d", Context()).is_recorded


def test_an_execution_for_which_the_sampler_raises_is_not_traced(caplog: pytest.LogCaptureFixture) -> None:
    """It is asked once, and said once."""
    sampler = RaisingSampler()
    sampling = sampling_by(sampler)
    assert len(spans_of(EXECUTION, sampling)) == 2
    assert sampling.recall(EXECUTION) is NOT_TRACED
    assert caplog.messages == [f"the sampler raised for execution {EXECUTION}; the execution is not traced"]
    assert "no opinion" in caplog.text
    assert len(sampler.asked) == 1


def test_the_oldest_decision_is_forgotten_where_there_is_no_room() -> None:
    """And made again from the events."""
    sampling = sampling_by(ParentBased(ALWAYS_OFF), max_remembered=2)
    ids = [UUID(int=number + 1) for number in range(5)]
    for execution_id in ids:
        sampling.decide(execution_id, "d", Context())
    assert [sampling.recall(execution_id) is not None for execution_id in ids] == [False, False, False, True, True]
    assert {span.trace_flags for span in spans_of(ids[0], sampling, PARENT + "1")} == {SAMPLED}


def test_two_threads_that_decide_at_once_agree_on_one_decision() -> None:
    both = threading.Barrier(2)
    found: list[bool] = []

    def decider(execution_id: UUID, dag_name: str, context: Context, **_: Any) -> Decision:
        both.wait(DEADLINE)
        return decide(ALWAYS_ON, execution_id, dag_name, context)

    sampling = Sampling(decider)
    in_threads(2, lambda: found.append(sampling.decide(EXECUTION, "d", Context())))
    assert sorted(found) == [False, True]


def test_threads_may_decide_and_forget_at_the_same_time() -> None:
    sampling = sampling_by(ALWAYS_ON, max_remembered=10)
    together = threading.Barrier(3)
    failures: list[BaseException] = []

    def run() -> None:
        together.wait(DEADLINE)
        try:
            for _ in range(300):
                execution_id = uuid4()
                sampling.decide(execution_id, "d", Context())
                assert {span.trace_flags for span in spans_of(execution_id, sampling)} == {SAMPLED | RANDOM}
                sampling.forget(execution_id)
        except BaseException as error:  # noqa: BLE001 - for the test's own thread
            failures.append(error)

    in_threads(3, run)
    assert failures == []
    assert len(sampling.decisions) == 0


# --- the environment -------------------------------------------------------------------------------------------------


def test_the_sampler_of_the_environment_is_the_one_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    assert sampler_of_environment().get_description() == "TraceIdRatioBased{0.25}"


def test_a_limit_in_the_environment_that_is_no_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
    with pytest.raises(ConfigurationError, match="OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"):
        sampler_of_environment()
