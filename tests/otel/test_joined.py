"""Executions that several processes tell of, with either span listener, and an endpoint at which all of it arrives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from constellation_otel import ExecutionListener, module_context, span_id_of, trace_id_of
from constellation_otel.testing import span_tree
from programs import ROOT
from samplers import Opinionated, RaisingSampler
from sharing import DAG, EXECUTION
from stories import E1, E2, M1, M2
from support import DEADLINE, UNWATCHED, eventually
from telemetry import assembly_of, assert_sum, provider_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

    from constellation_otel import OpenTelemetryListener, OtlpListener
    from constellation_otel.receiver import Receiver

pytestmark = pytest.mark.usefixtures("clean_environment")

THEIRS = 0x0AF7651916CD43DD8448EB211C80319C
SAMPLED = f"00-{THEIRS:032x}-{span_id_of(E1):016x}-01"
NOT_SAMPLED = f"{SAMPLED[:-1]}0"
METHODS = pytest.mark.parametrize("method", ["fork", "spawn"])


@contextmanager
def sharing(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The program that shares an execution with its children; killed at the end."""
    # a newer Python warns of each fork beside threads
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "tests/sharing.py", *arguments]
    environment = os.environ | {"OTEL_METRICS_EXPORTER": "none"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as program:
        try:
            yield program
        finally:
            program.kill()


def tell(listener: ExecutionListener, *, body: Callable[[], object] = lambda: None, module_id: Any = M1) -> None:
    """A module of execution E1, with what its body does."""
    told: Any = listener
    told.on_module_start(E1, module_id, "Trim")
    token = otel_context.attach(told.module_context(E1, module_id, otel_context.get_current()))
    try:
        body()
    finally:
        otel_context.detach(token)
    told.on_module_complete(E1, module_id, "Trim", 2.0)


def set_color() -> None:
    trace.get_current_span().set_attribute("color", "blue")


def contexts_of(span: ReadableSpan) -> tuple[object, object, int]:
    """The span's trace, its parent, and its flags."""
    context: Any = span.get_span_context()
    return context.trace_id, span.parent and span.parent.span_id, int(context.trace_flags)


# --- real processes --------------------------------------------------------------------------------------------------


@UNWATCHED
@METHODS
@pytest.mark.parametrize("kind", ["otlp", "sdk"])
def test_a_pool_whose_workers_tell_their_modules_makes_one_trace(receiver: Receiver, kind: str, method: str) -> None:
    """It arrives once, and whole; what bodies set in the workers is on it."""
    with sharing("pool", method, kind, receiver.http_endpoint) as program:
        printed, logged = program.communicate(timeout=DEADLINE)
    assert (program.returncode, logged) == (0, "")
    pids, counts = (list(map(int, line.split())) for line in printed.splitlines())
    modules = ["0", "1", "2", "3", "load"]
    tree = [f"{DAG} (server) success", *(f"  {name} (internal) success" for name in modules)]
    assert span_tree(receiver.spans) == "\n".join(tree)
    assert len(receiver.spans) == 6
    assert {span.trace_id for span in receiver.spans} == {trace_id_of(EXECUTION)}
    parent, *workers = pids
    told = {span.name: span.attributes["pid"] for span in receiver.spans if span.name != DAG}
    assert told == dict(zip(["load", *modules], pids, strict=False))
    assert len(set(workers)) == 2
    assert parent not in workers
    assert counts == [1, 0]


@UNWATCHED
@METHODS
def test_a_killed_parents_execution_is_abandoned_once_by_its_journals_reader(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], tmp_path: Path, method: str
) -> None:
    """And not by its children, which tell of their modules to the end."""
    journal = tmp_path / "journal.db"
    with sharing("orphans", method, "otlp", receiver.http_endpoint, str(journal)) as program:
        assert program.stdout is not None
        assert [program.stdout.readline() for _ in range(2)] == ["running\n"] * 2
        program.send_signal(signal.SIGKILL)
        printed, logged = program.communicate(timeout=DEADLINE)
    assert (program.returncode, printed) == (-signal.SIGKILL, "ended\n" * 2), logged
    assert sorted(span.name for span in receiver.spans) == ["first", "load", "second"]
    listener = make_otlp(receiver.grpc_endpoint, journal=journal, idle_timeout=0.5)
    eventually(lambda: DAG in {span.name for span in receiver.spans}, "the execution to be abandoned")
    assert listener.flush(DEADLINE)
    spans = {(span.trace_id, span.span_id): span for span in receiver.spans}
    assert span_tree(spans.values()) == (
        f'{DAG} (server) abandoned ERROR "abandoned without an end: no event for the idle time"\n'
        "  first (internal) success\n"
        "  load (internal) success\n"
        "  second (internal) success"
    )
    # what was not acknowledged when the parent was killed is sent again
    assert sorted(span.name for span in receiver.spans if span.name != "load") == ["first", "second", DAG]
    assert (assembly_of(listener).executions, assembly_of(listener).abandoned) == (1, 1)
    assert_sum(listener.counters)
    assert listener.counters.held == 0


# --- either listener -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("traceparent", "flags"), [(SAMPLED, 1), (None, 3), ("none", 3), (7, 3)])
@pytest.mark.parametrize("looks", [False, True])
def test_modules_go_through_the_applications_sdk_below_the_others_span(
    make_listener: Callable[..., OpenTelemetryListener], traceparent: Any, flags: int, looks: bool
) -> None:
    """Also where a processor wants spans that the SDK has made; what bodies do nests, and what they set is there."""
    provider, exporter = provider_with(ALWAYS_ON)
    if looks:
        provider.add_span_processor(Looks())
    listener = make_listener(provider)
    listener.join(E1, "d", traceparent)

    def body() -> None:
        set_color()
        provider.get_tracer("app").start_span("GET").end()

    tell(listener, body=body)
    assert listener.flush(DEADLINE)
    inner, module = exporter.get_finished_spans()
    trace_id = THEIRS if traceparent == SAMPLED else trace_id_of(E1)
    assert contexts_of(module) == (trace_id, span_id_of(E1), flags)
    assert contexts_of(inner)[:2] == (trace_id, span_id_of(E1, M1))
    assert (module.name, module.attributes) == (
        "Trim",
        {
            "constellation.execution.id": str(E1),
            "constellation.dag.name": "d",
            "constellation.module.id": str(M1),
            "constellation.module.name": "Trim",
            "constellation.outcome": "success",
            "color": "blue",
        },
    )
    assert listener.close(DEADLINE)
    assert len(exporter.get_finished_spans()) == 2
    provider.shutdown()


class Looks(SpanProcessor):
    """Has to be given spans that the SDK has made."""

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        """Does nothing, which is not known."""


@pytest.mark.parametrize("sampler", [Opinionated(), RaisingSampler()])
def test_the_applications_sampler_is_not_asked_where_the_flag_answers(
    make_listener: Callable[..., OpenTelemetryListener], sampler: Opinionated
) -> None:
    provider, exporter = provider_with(sampler)
    listener = make_listener(provider)
    for execution_id, traceparent in ((E1, SAMPLED), (E2, NOT_SAMPLED)):
        listener.join(execution_id, "d", traceparent)
        listener.on_module_start(execution_id, M1, "Trim")
        listener.on_module_complete(execution_id, M1, "Trim", 2.0)
    assert listener.flush(DEADLINE)
    assert [contexts_of(span) for span in exporter.get_finished_spans()] == [(THEIRS, span_id_of(E1), 1)]
    assert sampler.asked == []
    provider.shutdown()


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF])
def test_without_a_traceparent_every_process_computes_the_same(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], sampler: Any
) -> None:
    """The process that starts it, one that joins it, and one without a listener."""
    owner, other = (make_otlp(receiver.grpc_endpoint, sampler=sampler) for _ in range(2))
    owner.on_execution_start(E1, "d")
    other.join(E1, "d")
    assert other.traceparent_of(E1) == owner.traceparent_of(E1)
    in_owner, in_other, without = (
        trace.get_current_span(context).get_span_context()
        for context in (
            owner.module_context(E1, M1, Context()),
            other.module_context(E1, M1, Context()),
            module_context(E1, M1, sampler=sampler),
        )
    )
    assert in_owner == in_other == without
    tell(other)
    assert other.flush(DEADLINE)
    owner.on_execution_complete(E1, "d", True, 9.0)
    assert owner.flush(DEADLINE)
    tree = "d (server) success\n  Trim (internal) success" if sampler is ALWAYS_ON else ""
    assert span_tree(receiver.spans) == tree


def test_a_composite_joins_with_each_and_each_makes_the_modules(
    receiver: Receiver,
    memory: tuple[TracerProvider, InMemorySpanExporter],
    make_listener: Callable[..., OpenTelemetryListener],
    make_otlp: Callable[..., OtlpListener],
) -> None:
    otlp, sdk = make_otlp(receiver.grpc_endpoint), make_listener(memory[0])
    composite: Any = ExecutionListener.composite(otlp, ExecutionListener(), sdk)
    composite.join(E1, "d", SAMPLED)
    assert composite.traceparent_of(E1) == SAMPLED
    tell(composite, body=set_color)
    assert otlp.flush(DEADLINE)
    assert sdk.flush(DEADLINE)
    (sent,), (exported,) = receiver.spans, memory[1].get_finished_spans()
    context: Any = exported.get_span_context()
    assert (sent.trace_id, sent.span_id, sent.parent_span_id) == (THEIRS, span_id_of(E1, M1), span_id_of(E1))
    assert (sent.trace_id, sent.span_id) == (context.trace_id, context.span_id)
    assert sent.attributes == dict(exported.attributes or {})
    assert composite.errors == 0


def test_a_joined_execution_is_forgotten_after_the_idle_time(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    """Nothing is sent for it, and its modules go on as before."""
    listener = make_otlp(receiver.grpc_endpoint, idle_timeout=0.2)
    listener.join(E1, "d", SAMPLED)
    tell(listener)
    eventually(lambda: listener.traceparent_of(E1) is None, "it is forgotten")
    assert listener.flush(DEADLINE)
    assert listener.counters.delivered == listener.counters.received == 3
    listener.join(E1, "d", SAMPLED)
    assert listener.traceparent_of(E1) == SAMPLED
    tell(listener, module_id=M2)
    assert listener.flush(DEADLINE)
    assert [(span.trace_id, span.span_id) for span in receiver.spans] == [
        (THEIRS, span_id_of(E1, module_id)) for module_id in (M1, M2)
    ]
    counters = assembly_of(listener)
    assert (counters.executions, counters.abandoned, counters.incomplete_executions) == (0, 0, 0)


def test_at_close_an_open_module_is_unknown_and_no_execution_counts(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    """As a metric neither."""
    listener = make_otlp(receiver.grpc_endpoint)
    listener.join(E1, "d", SAMPLED)
    listener.on_module_start(E1, M1, "Trim")
    eventually(lambda: listener.open_modules == 1, "the module is open")
    assert listener.open_executions == 0
    assert listener.close(DEADLINE)
    (span,) = receiver.spans
    assert (span.name, span.attributes["constellation.outcome"]) == ("Trim", "unknown")
    assert span.attributes["constellation.missing"] == "end"
    counters = assembly_of(listener)
    assert (counters.executions, counters.spans, counters.abandoned) == (0, 1, 0)
    assert (counters.incomplete_executions, counters.incomplete_modules) == (0, 1)
    names = {point.name for point in receiver.metrics if getattr(point, "value", None) != 0}
    assert {name for name in names if "execution" in name} == set()


def test_a_full_queue_still_takes_that_an_execution_is_joined(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], caplog: pytest.LogCaptureFixture
) -> None:
    """Without it, what comes later looks as of an execution that was abandoned."""
    listener = make_otlp(receiver.grpc_endpoint)
    worker = listener._worker
    room, worker.room = worker.room, 0
    listener.join(E1, "d", SAMPLED)
    tell(listener)
    assert listener.counters.dropped == 2
    worker.room = room
    tell(listener, module_id=M2)
    assert listener.close(DEADLINE)
    assert [(span.trace_id, span.span_id) for span in receiver.spans] == [(THEIRS, span_id_of(E1, M2))]
    assert assembly_of(listener).abandoned == 0
    listener.join(E1, "d", SAMPLED)
    assert listener.counters.dropped == 3
    assert_sum(listener.counters)


def test_a_listener_that_is_switched_off_joins_nothing(
    make_otlp: Callable[..., OtlpListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    listener = make_otlp("http://127.0.0.1:1")
    listener.join(E1, "d", SAMPLED)
    assert (listener.traceparent_of(E1), listener.counters.received) == (None, 0)


def test_a_journal_has_what_was_joined_for_the_next_process(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener], tmp_path: Path
) -> None:
    """So that modules of it are none of an execution that this one has started."""
    receiver.stop()
    listener = make_otlp(receiver.grpc_endpoint, journal=tmp_path / "journal.db")
    listener.join(E1, "d", SAMPLED)
    tell(listener)
    assert not listener.close(0.5)
    receiver.start()
    listener = make_otlp(receiver.grpc_endpoint, journal=tmp_path / "journal.db", idle_timeout=0.2)
    receiver.wait_for_spans(1, DEADLINE)
    eventually(lambda: listener.counters.held == 0, "it is forgotten")
    assert [(span.name, span.trace_id) for span in receiver.spans] == [("Trim", THEIRS)]
    assert assembly_of(listener).executions == 0
    assert_sum(listener.counters)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_two_processes_that_own_one_execution_cost_nobody_else(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    """Each makes the execution's span, with one id; the modules are what each has told of."""
    owners = [make_otlp(receiver.grpc_endpoint) for _ in range(2)]
    for owner, module_id in zip(owners, (M1, M2), strict=True):
        owner.on_execution_start(E1, "d")
        owner.join(E1, "d", SAMPLED)
        tell(owner, module_id=module_id)
    for owner in owners:
        owner.on_execution_complete(E1, "d", True, 5.0)
        assert owner.flush(DEADLINE)
    assert sorted((span.name, span.span_id) for span in receiver.spans) == sorted(
        [("d", span_id_of(E1))] * 2 + [("Trim", span_id_of(E1, module_id)) for module_id in (M1, M2)]
    )
    assert {span.trace_id for span in receiver.spans} == {trace_id_of(E1)}
    assert [(it.executions, it.late + it.duplicate) for it in map(assembly_of, owners)] == [(1, 1)] * 2


def test_an_end_that_a_joining_process_tells_makes_no_span(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    listener = make_otlp(receiver.grpc_endpoint)
    listener.join(E1, "d", SAMPLED)
    tell(listener)
    listener.on_execution_complete(E1, "d", True, 5.0)
    assert listener.flush(DEADLINE)
    assert [span.name for span in receiver.spans] == ["Trim"]
    assert assembly_of(listener).executions == 0


ODD = [None, 7, "11111111-1111-4111-8111-111111111111", b"", object()]


@pytest.mark.parametrize("kind", ["otlp", "sdk"])
def test_joining_without_ids_is_counted_and_nothing_raises(
    kind: str,
    receiver: Receiver,
    memory: tuple[TracerProvider, InMemorySpanExporter],
    make_listener: Callable[..., OpenTelemetryListener],
    make_otlp: Callable[..., OtlpListener],
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener: Any = make_otlp(receiver.grpc_endpoint) if kind == "otlp" else make_listener(memory[0])
    for odd in ODD:
        listener.join(odd, "d", SAMPLED)
        listener.join(odd, odd, odd)
        assert listener.traceparent_of(odd) is None
    for odd in (None, 7, object()):
        listener.join(E1, odd, SAMPLED)
    assert listener.flush(DEADLINE)
    assert (listener.counters.received, listener.counters.rejected) == (13, 13)
    assert (listener.open_executions, listener.open_modules) == (0, 0)
    assert_sum(listener.counters)
    assert len(caplog.messages) == 1
    assert "an event cannot be sent: execution_id must be a UUID, not None" in caplog.messages[0]


def test_a_traceparent_that_is_none_is_counted_and_left_out(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    listener: Any = make_otlp(receiver.grpc_endpoint)
    for odd in (7, "x" * 10_000, "none"):
        listener.join(E1, "d", odd)
    tell(listener)
    assert listener.flush(DEADLINE)
    assert [span.trace_id for span in receiver.spans] == [trace_id_of(E1)]
    assert (listener.counters.corrected, listener.counters.rejected) == (2, 0)
    assert_sum(listener.counters)


def test_joined_executions_are_bounded_however_many_there_are(
    receiver: Receiver, make_otlp: Callable[..., OtlpListener]
) -> None:
    listener = make_otlp(receiver.grpc_endpoint, max_open=10)
    for number in range(1, 101):
        execution_id = UUID(int=number)
        listener.join(execution_id, "d", SAMPLED)
        listener.on_module_start(execution_id, M1, "Trim")
    assert listener.flush(DEADLINE)
    assert listener.open_modules <= 5
    assert len(listener._sampling.remembered()) <= 10
    assert assembly_of(listener).abandoned == 0
    assert listener.close(DEADLINE)
    assert {span.name for span in receiver.spans} == {"Trim"}
    assert len(receiver.spans) == 100


# --- a tracer provider that is not the SDK's -------------------------------------------------------------------------


class Vendor(trace.TracerProvider):
    """Makes the SDK's spans, with ids of its own choosing, and is not the SDK's."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return VendorsTracer(self.provider.get_tracer(*args, **kwargs))


class VendorsTracer(trace.Tracer):
    """One of its tracers."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self.tracer = tracer

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self.tracer.start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("traceparent", [SAMPLED, None])
def test_another_makers_tracer_gets_joined_modules_at_once(
    make_listener: Callable[..., OpenTelemetryListener], traceparent: str | None
) -> None:
    """Below the execution's span where that is known; none waits for one that is made elsewhere."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    listener = make_listener(Vendor(provider))
    listener.join(E1, "d", traceparent)
    caller = Context()
    # its ids are not known before
    assert listener.module_context(E1, M1, caller) is caller
    for module_id in (M1, M2):
        tell(listener, module_id=module_id)
    assert listener.flush(DEADLINE)
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["Trim", "Trim"]
    if traceparent is None:
        assert {span.parent for span in spans} == {None}
    else:
        assert {contexts_of(span)[:2] for span in spans} == {(THEIRS, span_id_of(E1))}
    traces: Any = listener._spans.traces
    assert (traces._held, traces._modules) == (0, {})
    provider.shutdown()


def test_another_makers_tracer_gets_nothing_that_is_not_sampled(
    make_listener: Callable[..., OpenTelemetryListener],
) -> None:
    provider, exporter = provider_with(ALWAYS_ON)
    listener = make_listener(Vendor(provider))
    listener.join(E1, "d", NOT_SAMPLED)
    tell(listener)
    assert listener.flush(DEADLINE)
    assert listener.close(DEADLINE)
    assert exporter.get_finished_spans() == ()
    assert listener.counters.delivered == 3
    provider.shutdown()


def test_another_makers_tracer_gets_an_own_start_whole(make_listener: Callable[..., OpenTelemetryListener]) -> None:
    """Though the process has joined the execution before, by mistake."""
    provider, exporter = provider_with(ALWAYS_ON)
    listener = make_listener(Vendor(provider))
    listener.join(E1, "d", SAMPLED)
    listener.on_execution_start(E1, "d")
    tell(listener)
    listener.on_execution_complete(E1, "d", True, 5.0)
    assert listener.flush(DEADLINE)
    assert sorted(span.name for span in exporter.get_finished_spans()) == ["Trim", "d"]
    provider.shutdown()
