"""OtlpListener asks a sampler once, and its answer holds for all of an execution."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind, TraceFlags

from constellation_otel import Constellation, Dag, trace_id_of
from constellation_otel.events import ExecutionCompleted, ExecutionStarted, ModuleCompleted
from constellation_otel.testing import span_tree
from constellation_otel.traces.ids import RANDOM_TRACE_ID
from reports import run
from samplers import Opinionated, RaisingSampler
from stories import with_spans_inside
from support import DEADLINE, UNWATCHED
from telemetry import assert_sum, caller_of, traces_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from constellation_otel.otel import OtlpListener
    from constellation_otel.receiver import Receiver


pytestmark = pytest.mark.usefixtures("clean_environment")


def test_an_execution_called_inside_a_span_is_its_child(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], application: Any
) -> None:
    """And what its modules do is theirs."""
    listener = make_otlp(receiver.grpc_endpoint)
    tracer = application.traces.get_tracer("library")

    def fetch(text: str) -> str:
        with tracer.start_as_current_span("GET", kind=SpanKind.CLIENT):
            return text

    with Constellation(listener=listener) as engine:
        dag = Dag("report", [fetch])
        with tracer.start_as_current_span("GET /", kind=SpanKind.SERVER):
            engine.run(dag, {"text": "to be"})
        engine.run(dag, {"text": "to be"})
    assert listener.flush(DEADLINE)
    application.export()
    below = "report ({}) success\n{}  fetch (internal) success\n{}    GET (client)"
    assert span_tree(receiver.spans) == (
        f"GET / (server)\n  {below.format('internal', '  ', '  ')}\n\n{below.format('server', '', '')}"
    )


@pytest.mark.parametrize("how", ["local", "remote", "traceparent"])
@pytest.mark.parametrize("sampled", [True, False])
def test_the_callers_decision_holds_for_all_of_the_execution(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], how: str, sampled: bool
) -> None:
    """And for what its modules do."""
    listener = make_otlp(receiver.grpc_endpoint, sampler=ParentBased(ALWAYS_OFF if sampled else ALWAYS_ON))
    if how == "traceparent":
        execution_id, module_id = uuid4(), uuid4()
        parent = f"00-{5:032x}-{7:016x}-{int(sampled):02x}"
        listener.accept(ExecutionStarted(execution_id, "my-pipeline", 1_000, parent))
        listener.accept(ModuleCompleted(execution_id, module_id, "Trim", 0.0, 2_000))
        listener.accept(ExecutionCompleted(execution_id, "my-pipeline", True, 0.0, 3_000))
        names = ["Trim", "my-pipeline"]
    else:
        with caller_of(5, int(sampled), remote=how == "remote"):
            execution_id = uuid4()
            listener.on_execution_start(execution_id, "open")
            inside = trace.get_current_span(listener.module_context(execution_id, uuid4(), Context()))
            assert (inside.get_span_context().trace_id, inside.get_span_context().trace_flags) == (5, int(sampled))
            run(listener)
        names = ["Trim", "WordCount", "my-pipeline"]
    assert listener.flush(DEADLINE)
    assert traces_of(receiver.spans) == ({5: names} if sampled else {})
    if sampled:
        root = next(span for span in receiver.spans if span.name == "my-pipeline")
        assert (root.parent_span_id, root.kind) == (7, SpanKind.INTERNAL)
    assert_sum(listener.counters)
    assert listener.counters.held == (0 if how == "traceparent" else 1)


def test_an_unsampled_execution_is_in_metrics_without_exemplars(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    listener = make_otlp(receiver.grpc_endpoint, sampler=ALWAYS_OFF)
    run(listener)
    assert listener.close(DEADLINE)
    assert receiver.spans == []
    (point,) = [point for point in receiver.metrics if point.name == "constellation.execution.duration"]
    assert (point.count, point.exemplars) == (1, ())
    assert (listener.counters.delivered, listener.counters.sending.sent) == (6, 0)


@UNWATCHED
@pytest.mark.parametrize("sampler", [TraceIdRatioBased(0.1), ParentBased(TraceIdRatioBased(0.1)), None])
def test_ratio_sampling_keeps_its_share_of_whole_executions(
    receiver: Receiver,
    make_otlp: Callable[..., OtlpListener],
    make_application: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    sampler: Sampler | None,
) -> None:
    """1,000 executions, with a span that a library makes inside each module's body."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.1")
    application = make_application()
    library = application.traces.get_tracer("library")
    listener = make_otlp(receiver.grpc_endpoint, sampler=sampler)
    with_spans_inside(listener, library, 1_000)
    assert listener.flush(DEADLINE)
    application.export()
    traces = traces_of(receiver.spans)
    assert 60 <= len(traces) <= 140
    assert {tuple(names) for names in traces.values()} == {("d", "inner", "m")}


def test_the_samplers_attributes_and_trace_state_are_used(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    """It is asked once, in the callback."""
    sampler = Opinionated()
    listener = make_otlp(receiver.grpc_endpoint, sampler=sampler)
    with caller_of(5, 1, [("vendor", "1")]):
        run(listener)
    assert listener.flush(DEADLINE)
    assert [asked[:2] for asked in sampler.asked] == [(5, "my-pipeline")]
    assert sampler.threads == [threading.current_thread().name]
    spans = {span.name: span for span in receiver.spans}
    assert {span.trace_state for span in spans.values()} == {"rule=all"}
    assert spans["my-pipeline"].attributes["sampler.rule"] == "all"
    assert "sampler.rule" not in spans["Trim"].attributes


def test_a_callers_trace_state_and_randomness_are_kept(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    listener = make_otlp(receiver.grpc_endpoint)
    for flags in (TraceFlags.SAMPLED, TraceFlags.SAMPLED | RANDOM_TRACE_ID):
        with caller_of(5, flags, [("vendor", "1")]):
            run(listener)
        assert listener.flush(DEADLINE)
    assert [span.trace_flags & 0xFF for span in receiver.spans] == [1] * 3 + [3] * 3
    assert {span.trace_state for span in receiver.spans} == {"vendor=1"}


def test_an_execution_for_which_the_sampler_raises_is_not_traced(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked once, which is logged once."""
    sampler = RaisingSampler()
    listener = make_otlp(receiver.grpc_endpoint, sampler=sampler)
    execution_id, module_id = uuid4(), uuid4()
    listener.on_execution_start(execution_id, "d")
    caller = Context()
    assert listener.module_context(execution_id, module_id, caller) is caller
    listener.on_module_start(execution_id, module_id, "m")
    listener.on_module_complete(execution_id, module_id, "m", 1.0)
    listener.on_execution_complete(execution_id, "d", True, 1.0)
    assert listener.flush(DEADLINE)
    assert receiver.spans == []
    assert caplog.messages == [f"the sampler raised for execution {execution_id}; the execution is not traced"]
    assert (len(sampler.asked), listener.counters.delivered) == (1, 4)


def test_module_context_of_an_unknown_execution_is_the_callers(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    caller = Context({"kept": 1})
    assert make_otlp(receiver.grpc_endpoint).module_context(uuid4(), uuid4(), caller) is caller


def test_a_second_start_of_an_execution_does_not_part_its_trace(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    listener = make_otlp(receiver.grpc_endpoint)
    execution_id = uuid4()
    listener.on_execution_start(execution_id, "d")
    listener.on_module_complete(execution_id, uuid4(), "m", 1.0)
    with caller_of(5, 1):
        listener.on_execution_start(execution_id, "d")
    assert listener._sampling.recall(execution_id) is not None
    listener.on_execution_complete(execution_id, "d", True, 2.0)
    assert listener.flush(DEADLINE)
    assert traces_of(receiver.spans) == {trace_id_of(execution_id): ["d", "m"]}


def test_a_start_that_finds_no_room_takes_no_decision_away(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], caplog: pytest.LogCaptureFixture
) -> None:
    """Of one that started before."""
    listener = make_otlp(receiver.grpc_endpoint)
    first, second = uuid4(), uuid4()
    listener.on_execution_start(first, "d")
    assert listener.flush(DEADLINE)
    listener._pipeline.worker.room = 0
    listener.on_execution_start(first, "d")
    listener.on_execution_start(second, "d")
    assert listener._sampling.recall(first) is not None
    assert listener._sampling.recall(second) is None
    assert listener.counters.dropped == 2


def test_a_late_or_refused_start_leaves_no_decision_behind(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    listener = make_otlp(receiver.grpc_endpoint)
    execution_id = run(listener)
    assert listener.flush(DEADLINE)
    listener.on_execution_start(execution_id, "my-pipeline")
    listener.on_execution_start(uuid4(), 7)  # type: ignore[arg-type]
    listener.on_execution_start(["no id"], "my-pipeline")  # type: ignore[arg-type]
    assert listener.flush(DEADLINE)
    assert len(listener._sampling.decisions) == 0
    assert (listener.counters.rejected, listener.counters.held) == (2, 0)
