"""OpenTelemetryListener with a real SDK, over real OTLP: what an execution looks like in a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from opentelemetry import baggage, context
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace import (
    SpanLimits,
    SpanProcessor,
    TracerProvider,
)
from opentelemetry.trace import SpanKind

from constellation_otel import (
    OpenTelemetryListener,
    span_id_of,
    trace_id_of,
)
from constellation_otel.delivery import AssemblyCounters, Counters, SendingCounters
from constellation_otel.events import ExecutionCompleted, ExecutionStarted, ModuleCompleted
from constellation_otel.testing import span_tree
from reports import BOOM, Boom, run
from support import DEADLINE, eventually
from telemetry import TREE, assembly_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from constellation_otel.receiver import Receiver


def test_an_execution_arrives_as_a_trace_and_is_counted(
    application: Any, make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    listener = make_listener(application.traces, application.metrics, application.logs)
    execution_id = run(listener)
    assert listener.flush(DEADLINE)
    application.export()
    spans = application.receiver.spans
    assert span_tree(spans) == TREE
    assert {span.trace_id for span in spans} == {trace_id_of(execution_id)}
    by_name = {span.name: span for span in spans}
    assert by_name["my-pipeline"].span_id == span_id_of(execution_id)
    # a busy machine may start a module so late that its execution is widened to hold it
    whole_span = by_name["my-pipeline"]
    length_ms = (whole_span.end_ns - whole_span.start_ns) / 1e6
    assert whole_span.attributes.get("constellation.reported_duration_ms", length_ms) == 15.0
    assert by_name["Trim"].end_ns - by_name["Trim"].start_ns == 2_000_000
    (event,) = by_name["WordCount"].events
    assert event.attributes["exception.type"] == BOOM
    assert event.attributes["exception.message"] == "too many words"
    assert 'raise Boom("too many words")\n' in str(event.attributes["exception.stacktrace"])
    assert application.receiver.logs == []
    assembly = AssemblyCounters(events=6, executions=1, spans=3)
    assert listener.counters == Counters(6, 6, 0, 0, 0, 0, SendingCounters(sent=3), None, assembly)
    assert (listener.failed, listener.last_error) == (0, None)


def test_all_signals_have_our_scope_and_the_apps_resource(
    application: Any, make_listener: Callable[..., OpenTelemetryListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs/dup")
    listener = make_listener(application.traces, application.metrics, application.logs)
    run(listener)
    assert listener.flush(DEADLINE)
    application.export()
    receiver: Receiver = application.receiver
    everything: list[Any] = [*receiver.received, *receiver.metrics, *receiver.logs]
    assert {type(item).__name__ for item in everything} == {"Received", "MetricPoint", "LogRecord"}
    for item in everything:
        assert item.resource.attributes["service.name"] == "shop"
        assert (item.scope.name, item.scope.version, item.scope.schema_url) == (
            "constellation_otel",
            "0.1.0",
            "https://opentelemetry.io/schemas/1.44.0",
        )


@pytest.mark.parametrize(
    ("opt_in", "as_event", "as_log"),
    [(None, True, False), ("", True, False), ("logs", False, True), ("logs/dup", True, True), ("spans", True, False)],
)
def test_an_exception_goes_where_the_conventions_opt_in_says(
    application: Any,
    make_listener: Callable[..., OpenTelemetryListener],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    opt_in: str | None,
    as_event: bool,
    as_log: bool,
) -> None:
    if opt_in is not None:
        monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", opt_in)
    listener = make_listener(application.traces, application.metrics, application.logs)
    run(listener)
    assert listener.flush(DEADLINE)
    application.export()
    failed = next(span for span in application.receiver.spans if span.name == "WordCount")
    assert bool(failed.events) is as_event
    assert len(application.receiver.logs) == as_log
    for record in application.receiver.logs:
        assert (record.trace_id, record.span_id) == (failed.trace_id, failed.span_id)
        assert (record.severity_text, record.event_name, record.body) == ("ERROR", "exception", "too many words")
        assert record.attributes["exception.type"] == BOOM
        assert record.attributes["constellation.module.name"] == "WordCount"
    expected = (
        "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN='spans' is unknown and ignored: exceptions are span events;"
        " use 'logs' or 'logs/dup'"
    )
    assert [text for text in caplog.messages if "OPT_IN" in text] == ([expected] if opt_in == "spans" else [])


def test_an_execution_called_inside_a_span_is_its_child(
    application: Any, make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    """And the application's processors see the caller's baggage."""
    started: list[object] = []

    class SeesBaggage(SpanProcessor):
        def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
            started.append((span.name, baggage.get_baggage("tenant", parent_context)))

    application.traces.add_span_processor(SeesBaggage())
    listener = make_listener(application.traces)
    token = context.attach(baggage.set_baggage("tenant", "blue"))
    try:
        with application.traces.get_tracer("web").start_as_current_span("GET /", kind=SpanKind.SERVER):
            run(listener)
    finally:
        context.detach(token)
    assert listener.flush(DEADLINE)
    application.export()
    indented = TREE.replace("(server)", "(internal)").replace("\n", "\n  ")
    assert span_tree(application.receiver.spans) == f"GET / (server)\n  {indented}"
    assert started == [("GET /", "blue"), ("Trim", "blue"), ("WordCount", "blue"), ("my-pipeline", "blue")]


def test_what_a_modules_body_does_nests_under_the_modules_span(
    application: Any, make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    listener = make_listener(application.traces)
    execution_id, module_id = uuid4(), uuid4()
    listener.on_execution_start(execution_id, "my-pipeline")
    listener.on_module_start(execution_id, module_id, "Trim")
    current = listener.module_context(execution_id, module_id, Context({"kept": 1}))
    assert current["kept"] == 1
    application.traces.get_tracer("http").start_span("GET", current).end()
    listener.on_module_complete(execution_id, module_id, "Trim", 2.0)
    listener.on_execution_complete(execution_id, "my-pipeline", True, 3.0)
    assert listener.flush(DEADLINE)
    application.export()
    assert span_tree(application.receiver.spans) == (
        "my-pipeline (server) success\n  Trim (internal) success\n    GET (internal)"
    )


def test_module_context_of_an_unknown_execution_is_the_callers(
    make_listener: Callable[..., OpenTelemetryListener],
) -> None:
    caller = Context({"kept": 1})
    assert make_listener().module_context(uuid4(), uuid4(), caller) is caller


def test_events_from_a_source_keep_their_times_and_their_parents(
    application: Any, make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    listener = make_listener(application.traces, settle=0.01)
    execution_id, module_id = uuid4(), uuid4()
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for _ in range(2):
        listener.accept(ExecutionStarted(execution_id, "my-pipeline", 4_000_000_000, parent))
    listener.accept(ExecutionCompleted(execution_id, "my-pipeline", True, 3.0, 6_000_000_000))
    listener.accept(ModuleCompleted(execution_id, module_id, "Trim", 2.0, 5_000_000_000))
    eventually(lambda: assembly_of(listener).executions == 1, "the execution to settle")
    application.export()
    module, execution = application.receiver.spans
    assert (module.name, module.start_ns, module.end_ns) == ("Trim", 4_998_000_000, 5_000_000_000)
    assert (execution.name, execution.start_ns, execution.end_ns) == ("my-pipeline", 4_000_000_000, 5_000_000_000)
    assert {span.trace_id for span in (module, execution)} == {0x0AF7651916CD43DD8448EB211C80319C}
    assert execution.parent_span_id == 0xB7AD6B7169203331


def test_the_sdks_limits_of_attributes_and_events_hold(
    make_application: Any, make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    application = make_application(
        span_limits=SpanLimits(max_span_attribute_length=8, max_span_attributes=3, max_events=0)
    )
    listener = make_listener(application.traces)
    run(listener)
    assert listener.flush(DEADLINE)
    application.export()
    assert len(application.receiver.spans) == 3
    for span in application.receiver.spans:
        assert len(span.attributes) == 3
        assert all(len(str(value)) <= 8 for value in span.attributes.values())
        assert span.events == ()


def test_logs_need_no_meter_provider(
    application: Any, make_listener: Callable[..., OpenTelemetryListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs")
    listener = make_listener(application.traces, None, application.logs)
    run(listener)
    assert listener.flush(DEADLINE)
    application.export()
    assert [record.body for record in application.receiver.logs] == ["too many words"]


def test_a_trace_of_which_the_start_is_unknown_says_so(
    memory: tuple[TracerProvider, InMemorySpanExporter], make_listener: Callable[..., OpenTelemetryListener]
) -> None:
    provider, exporter = memory
    listener = make_listener(provider)
    run(listener)
    execution_id = uuid4()
    listener.on_module_complete(execution_id, uuid4(), "Trim", 2.0)
    listener.on_execution_complete(execution_id, "my-pipeline", True, 3.0)
    assert listener.flush(DEADLINE)
    spans = exporter.get_finished_spans()[3:]
    assert [(span.name, (span.attributes or {})["constellation.missing"]) for span in spans] == [
        ("Trim", "start"),
        ("my-pipeline", "start"),
    ]
    assert {span.context.trace_id for span in spans} == {trace_id_of(execution_id)}


class StrRaises(Exception):
    def __str__(self) -> str:
        raise Boom("not even this")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Boom("x" * 1_000_000), "x" * 8_158 + "… (cut; it had 1000000 characters)"),
        (StrRaises(), "<str() of this StrRaises raised Boom>"),
        (Boom("lone \ud800 and \x00"), "lone � and �"),
    ],
    ids=["a megabyte", "str raises", "surrogates"],
)
def test_an_error_however_odd_has_a_bounded_effect(
    application: Any, make_listener: Callable[..., OpenTelemetryListener], error: Exception, message: str
) -> None:
    listener = make_listener(application.traces)
    run(listener, error=error)
    assert listener.flush(DEADLINE)
    application.export()
    failed = next(span for span in application.receiver.spans if span.name == "WordCount")
    assert failed.status_description == message
    assert failed.events[0].attributes["exception.message"] == message


@pytest.mark.parametrize(
    ("name", "shown"),
    [("", "unknown"), ("a\x07b", "a�b"), ("\udcff", "�"), ("x" * 2000, "x" * 1024)],
    ids=["empty", "control character", "lone surrogate", "long"],
)
def test_a_name_however_odd_arrives_clean_and_is_counted(
    application: Any, make_listener: Callable[..., OpenTelemetryListener], name: str, shown: str
) -> None:
    """As is a negative duration, which is left out."""
    listener = make_listener(application.traces)
    execution_id = uuid4()
    listener.on_execution_start(execution_id, name)
    listener.on_execution_complete(execution_id, name, True, -1.0)
    assert listener.flush(DEADLINE)
    application.export()
    (span,) = application.receiver.spans
    assert span.name == shown
    # the name of both events, and the duration
    assert listener.counters.corrected == 3


def test_what_the_redact_hook_takes_out_is_nowhere(
    application: Any, make_listener: Callable[..., OpenTelemetryListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs/dup")
    listener = make_listener(
        application.traces, application.metrics, application.logs, redact=lambda text: text.replace("s3cret", "***")
    )
    secret = "s3" + "cret"
    try:
        try:
            raise Boom(f"password {secret}")
        except Boom as cause:
            raise Boom(f"and {secret} again") from cause
    except Boom as error:
        run(listener, error=error)
    assert listener.flush(DEADLINE)
    application.export()
    receiver = application.receiver
    assert "and *** again" in repr(receiver.spans)
    assert "password ***" in repr(receiver.logs)
    assert secret not in repr((receiver.spans, receiver.logs, receiver.metrics))
