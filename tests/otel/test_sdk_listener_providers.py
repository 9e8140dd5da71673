"""OpenTelemetryListener and the providers of its process: set late, disabled, foreign, shared, forked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk import trace as sdk_trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from constellation_otel import (
    OpenTelemetryListener,
    trace_id_of,
)
from constellation_otel.testing import span_tree
from reports import run
from support import DEADLINE, UNWATCHED
from telemetry import LONG

if TYPE_CHECKING:
    from collections.abc import Callable

    from constellation_otel.receiver import Receiver


DISABLE: Any = getattr(sdk_trace, "_disable_tracer_configurator", None)


@pytest.mark.skipif(DISABLE is None, reason="this SDK has no tracer configurator")
def test_a_scope_that_is_switched_off_makes_no_spans(make_listener: Callable[..., OpenTelemetryListener]) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False, _tracer_configurator=DISABLE)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    listener = make_listener(provider)
    run(listener)
    assert listener.flush(DEADLINE)
    assert exporter.get_finished_spans() == ()
    assert listener.counters.delivered == 6
    provider.shutdown()


@UNWATCHED
def test_listeners_do_not_disturb_the_ids_of_other_libraries(
    memory: tuple[TracerProvider, InMemorySpanExporter], make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    """Nor those of each other."""
    provider, exporter = memory
    listeners = [make_listener(provider), make_listener(provider)]
    library = provider.get_tracer("constellation_otel", "0.1.0", "https://opentelemetry.io/schemas/1.44.0")
    executions: list[list[UUID]] = [[], []]
    together = threading.Barrier(3)

    def trace_on() -> None:
        together.wait(DEADLINE)
        for _ in range(2_000):
            with library.start_as_current_span("theirs"), library.start_as_current_span("child"):
                pass

    def execute(number: int) -> None:
        together.wait(DEADLINE)
        executions[number] = [run(listeners[number]) for _ in range(500)]

    threads = [threading.Thread(target=trace_on), *(threading.Thread(target=execute, args=(n,)) for n in (0, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert all(listener.flush(LONG) for listener in listeners)
    ours = {trace_id_of(execution_id) for ids in executions for execution_id in ids}
    spans = exporter.get_finished_spans()
    traces: dict[int, list[str]] = {}
    for span in spans:
        traces.setdefault(span.context.trace_id, []).append(span.name)
    assert len({span.context.span_id for span in spans}) == len(spans)
    assert {tuple(sorted(traces[trace_id])) for trace_id in ours} == {("Trim", "WordCount", "my-pipeline")}
    assert {tuple(names) for trace_id, names in traces.items() if trace_id not in ours} == {("child", "theirs")}


def test_a_provider_that_has_no_tracer_to_give_is_asked_again(
    memory: tuple[TracerProvider, InMemorySpanExporter],
    make_listener: Callable[..., OpenTelemetryListener],
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider, exporter = memory
    answers: list[trace.Tracer] = []

    class NotReady(trace.TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            return answers.pop()

    listener = make_listener(NotReady())
    run(listener)
    assert caplog.messages == ["the tracer provider raised; it is asked again when the next execution starts"]
    answers.append(provider.get_tracer("library"))
    run(listener)
    assert listener.flush(DEADLINE)
    assert len(exporter.get_finished_spans()) == 3
    assert listener.counters.received == 6


def test_a_provider_that_is_not_the_sdks_gets_plain_spans(
    memory: tuple[TracerProvider, InMemorySpanExporter],
    make_listener: Callable[..., OpenTelemetryListener],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With one warning."""
    provider, exporter = memory

    class VendorsTracer(trace.Tracer):
        def __init__(self, tracer: trace.Tracer) -> None:
            self.tracer = tracer

        def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
            return self.tracer.start_span(*args, **kwargs)

        def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    class Vendor(trace.TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            return VendorsTracer(provider.get_tracer(*args, **kwargs))

    listener = make_listener(Vendor())
    with provider.get_tracer("web").start_as_current_span("GET /"):
        run(listener)
    run(listener)
    execution_id = uuid4()
    listener.on_execution_start(execution_id, "d")
    caller = Context()
    assert listener.module_context(execution_id, uuid4(), caller) is caller
    assert listener.flush(DEADLINE)
    assert [message.split(":")[0] for message in caplog.messages] == [
        f"{Vendor.__qualname__} is not the OpenTelemetry SDK's tracer provider"
    ]
    spans = exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in spans}
    inside = [span for span in spans if span.context.trace_id == spans[0].context.trace_id]
    assert [(span.name, names[span.parent.span_id] if span.parent else None) for span in inside] == [
        ("GET /", None),
        ("Trim", "my-pipeline"),
        ("WordCount", "my-pipeline"),
        ("my-pipeline", "GET /"),
    ]
    assert inside[2].status.status_code is StatusCode.ERROR
    assert len(spans) == 7


def program(receiver: Receiver, text: str, **env: str) -> str:
    """Runs a program of its own, since global providers can be set only once; what it printed."""
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint} | env
    command = [sys.executable, "-W", "error", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


PRELUDE = """
import threading, uuid
from constellation_otel import OpenTelemetryListener, trace_id_of
listener = OpenTelemetryListener()
def run(name):
    execution_id, module_id, other_id = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    listener.on_execution_start(execution_id, name)
    listener.on_module_start(execution_id, module_id, "m")
    listener.on_module_failed(execution_id, module_id, "m", ValueError("x"))
    listener.on_module_start(execution_id, other_id, "n")
    listener.on_module_complete(execution_id, other_id, "n", 1.0)
    listener.on_execution_complete(execution_id, name, True, 2.0)
    return execution_id
def set_up():
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
"""


MODULES = '  m (internal) failure ERROR "x"\n  n (internal) success'


@UNWATCHED
def test_without_an_sdk_callbacks_return_and_start_no_thread(receiver: Receiver) -> None:
    text = PRELUDE + "run('nobody listens'); print(threading.active_count(), listener.counters.received)"
    assert program(receiver, text) == "1 0\n"
    assert receiver.requests == []


@UNWATCHED
def test_providers_may_be_set_after_the_listener_was_made(receiver: Receiver) -> None:
    """And the interpreter's exit loses nothing."""
    text = PRELUDE + "run('before'); set_up(); print(format(trace_id_of(run('after')), '032x'))"
    trace_id = program(receiver, text).strip()
    assert span_tree(receiver.spans) == f"after (server) success\n{MODULES}"
    assert {format(span.trace_id, "032x") for span in receiver.spans} == {trace_id}


@UNWATCHED
def test_a_disabled_sdk_is_given_nothing(receiver: Receiver) -> None:
    text = PRELUDE + "set_up(); run('x'); print(listener.counters.received)"
    assert program(receiver, text, OTEL_SDK_DISABLED="true") == "0\n"
    assert receiver.requests == []


@UNWATCHED
def test_a_forked_child_sends_none_of_its_parents_executions(receiver: Receiver) -> None:
    """But its own."""
    text = """
import os
set_up()
listener.on_execution_start(uuid.uuid4(), "left open by the parent")
run("parent")
child = os.fork()
if child == 0:
    run("child")
    assert listener.close(20)
    from opentelemetry import trace
    trace.get_tracer_provider().force_flush()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    program(receiver, PRELUDE + text)
    assert span_tree(receiver.spans) == (
        f"child (server) success\n{MODULES}\n\n"
        'left open by the parent (server) abandoned ERROR "abandoned without an end: the source ended"\n\n'
        f"parent (server) success\n{MODULES}"
    )


@UNWATCHED
def test_tracing_that_is_set_up_after_metrics_is_served_at_exit(receiver: Receiver) -> None:
    text = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
metrics.set_meter_provider(MeterProvider())
run("metrics only")
assert listener.flush(20)
set_up()
run("and traces")
"""
    program(receiver, PRELUDE + text)
    assert span_tree(receiver.spans) == f"and traces (server) success\n{MODULES}"


@UNWATCHED
def test_a_fork_while_instruments_are_made_hangs_no_child(receiver: Receiver) -> None:
    """That is, while another thread makes them."""
    text = """
import os
from constellation_otel.otel import metrics as instruments
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
metrics.set_meter_provider(MeterProvider())
with instruments._REGISTRY.lock:
    child = os.fork()
    if child == 0:
        run("child")
        os._exit(0 if listener.close(20) and not listener._sampling.decisions else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    program(receiver, PRELUDE + text)


@UNWATCHED
def test_a_forked_child_knows_no_decision_of_its_parent(receiver: Receiver) -> None:
    text = """
import os
set_up()
listener.on_execution_start(uuid.UUID(int=1), "the parent's")
assert len(listener._sampling.decisions) == 1
child = os.fork()
if child == 0:
    os._exit(len(listener._sampling.decisions) or listener.counters.received)
assert os.waitpid(child, 0)[1] == 0
"""
    program(receiver, PRELUDE + text)
