"""The SDK's private names that are used are there, mean what is expected, and can be done without."""

from __future__ import annotations

import ast
import dis
import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.metrics import NoOpMeterProvider, get_meter_provider
from opentelemetry.sdk import _logs as sdk_logs
from opentelemetry.sdk import trace as sdk_trace
from opentelemetry.sdk._logs import export as logs_export
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    ReadableSpan,
    Span,
    SpanLimits,
    SpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.version import __version__ as SDK_VERSION  # noqa: N812 - a constant, whatever its name
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import SpanContext, TraceFlags

from constellation_otel._support.scope import SCHEMA_URL
from constellation_otel.otel import _sdk_internals as internals
from constellation_otel.otel.own_providers import _THEIR_LOGGERS as THEIR_LOGGERS
from constellation_otel.otel.own_providers import _Reader
from constellation_otel.otel.sdk_spans import SdkTraces
from constellation_otel.traces import Decision, decide
from constellation_otel.traces import Span as FinishedSpan
from constellation_otel.traces.ids import RANDOM_TRACE_ID
from stories import E1, STORY, assemble
from telemetry import points_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.sdk.trace import Tracer

ROOM = Path(internals.__file__).parent
LOG_EXPORTER: Any = getattr(logs_export, "InMemoryLogRecordExporter", None) or vars(logs_export)["InMemoryLogExporter"]
SDKS_OWN = (SpanProcessor, BatchSpanProcessor, SimpleSpanProcessor)


# --- the names are there ---------------------------------------------------------------------------------------------


def private_names(source: str) -> set[str]:
    """Private attributes that a module takes of something other than itself, by name or by ``getattr``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in {"self", "cls", "super()"}:
            found.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            found.update(it.value for it in node.args if isinstance(it, ast.Constant) and isinstance(it.value, str))
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


KNOWN: dict[str, Callable[[Any], object]] = {
    "_span_limits": lambda sdk: isinstance(sdk.tracer._span_limits, SpanLimits),
    "_is_enabled": lambda sdk: sdk.tracer._is_enabled() is True,
    "_tracer_metrics": lambda sdk: type(sdk.tracer._tracer_metrics).__name__ == "NoOpTracerMetrics",
    "_span_processors": lambda sdk: sdk.tracer.span_processor._span_processors == (sdk.processor,),
    "_on_ending": lambda sdk: callable(sdk.processor._on_ending),
    "_batch_processor": lambda sdk: (
        "timeout_millis" in inspect.signature(sdk.logs._batch_processor.shutdown).parameters
    ),
    "_shutdown": lambda sdk: sdk.logs._batch_processor._shutdown is False,
    "_context": lambda sdk: sdk.span._context is sdk.span.get_span_context(),
    "_measurement_consumer": lambda sdk: callable(sdk.histogram._measurement_consumer.consume_measurement),
    "_reader_storages": lambda sdk: len(sdk.histogram._measurement_consumer._reader_storages) == 1,
    "_get_or_init_view_instrument_match": lambda sdk: len(sdk.matches()) == 1,
    "_view": lambda sdk: sdk.matches()[0]._view is not None,
    "_attribute_keys": lambda sdk: sdk.matches()[0]._view._attribute_keys is None,
    "_attributes_aggregation": lambda sdk: sdk.matches()[0]._attributes_aggregation == {},
    "_hash_attributes": lambda sdk: callable(internals._MATCHES._hash_attributes),
}
"""Each private name that is used, and what is expected of it."""

SINCE = {"_is_enabled": (1, 40), "_tracer_metrics": (1, 40), "_on_ending": (1, 40), "_hash_attributes": (1, 45)}
"""The SDK that brought a name, where the oldest that is supported has not got it."""

VERSION = tuple(int(part) for part in SDK_VERSION.split(".")[:2])


@pytest.fixture
def sdk() -> Iterator[SimpleNamespace]:
    """A tracer, its one processor, and a processor of logs."""
    processor = SimpleSpanProcessor(InMemorySpanExporter())
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    logs = BatchLogRecordProcessor(LOG_EXPORTER())
    tracer = provider.get_tracer("t")
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    histogram: Any = meters.get_meter("m").create_histogram("h")

    def matches() -> Any:
        (storage,) = histogram._measurement_consumer._reader_storages.values()
        return storage._get_or_init_view_instrument_match(histogram)

    yield SimpleNamespace(
        tracer=tracer,
        processor=processor,
        logs=logs,
        span=tracer.start_span("s"),
        histogram=histogram,
        matches=matches,
    )
    meters.shutdown()
    internals.shut_down(logs, 10_000)
    provider.shutdown()


@pytest.mark.parametrize("name", KNOWN)
def test_a_private_name_of_the_sdk_means_what_is_expected(sdk: SimpleNamespace, name: str) -> None:
    """Where this fails the SDK has changed: see what the fallback costs, and use what is there now."""
    if SINCE.get(name, VERSION) <= VERSION:
        assert KNOWN[name](sdk)
    else:
        assert not any(hasattr(part, name) for part in vars(sdk).values())


def test_the_private_names_are_used_in_one_module_only() -> None:
    used = {path.name: private_names(path.read_text()) for path in ROOM.glob("*.py")}
    assert used.pop("_sdk_internals.py") == KNOWN.keys()
    assert {name: found for name, found in used.items() if found} == {}


def private_names_of_opentelemetry(path: Path) -> set[str]:
    """Private names that a file imports of OpenTelemetry, or takes of what it has imported of it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imports = [it for it in nodes if isinstance(it, ast.ImportFrom) and str(it.module).startswith("opentelemetry")]
    names = [alias for it in imports for alias in it.names]
    known = {alias.asname or alias.name for alias in names}
    taken = {it.attr for it in nodes if isinstance(it, ast.Attribute) and ast.unparse(it.value) in known}
    found = {name for name in taken | {alias.name for alias in names} if name.startswith("_")}
    return found - {"_logs", "_log_exporter", "__version__"}


def test_no_other_room_uses_private_names_but_one_of_the_api() -> None:
    """The worker's room is below this one; the key is that of OpenTelemetry's own exporters."""
    source = ROOM.parent
    used = {path.relative_to(source).as_posix(): private_names_of_opentelemetry(path) for path in source.rglob("*.py")}
    used.pop("otel/_sdk_internals.py")
    assert {name: found for name, found in used.items() if found} == {
        "delivery/worker.py": {"_SUPPRESS_INSTRUMENTATION_KEY"}
    }


def test_instrumentations_know_the_key_that_suppresses_them() -> None:
    assert is_instrumentation_enabled()
    token = otel_context.attach(otel_context.set_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        assert not is_instrumentation_enabled()
    finally:
        otel_context.detach(token)


@pytest.mark.skipif(VERSION < (1, 42), reason="has no name for it")
def test_the_random_flag_is_the_apis() -> None:
    assert vars(TraceFlags)["RANDOM_TRACE_ID"] == RANDOM_TRACE_ID


@pytest.mark.skipif(VERSION < (1, 45), reason="comes with older semantic conventions")
def test_the_schema_is_one_of_the_semantic_conventions() -> None:
    assert SCHEMA_URL in {schema.value for schema in Schemas}


def test_a_logger_makes_its_records_since_1_38() -> None:
    assert internals._EMITS_PARTS is (VERSION >= (1, 38))
    assert hasattr(sdk_logs, "LogRecord") or internals._EMITS_PARTS


def test_a_metric_readers_method_for_forks_has_the_expected_name() -> None:
    """It is overridden, so that the SDK starts no thread in a child."""
    assert callable(PeriodicExportingMetricReader._at_fork_reinit)
    assert _Reader._at_fork_reinit is internals.NoThreadAfterFork._at_fork_reinit


def test_the_api_has_a_proxy_of_the_expected_name() -> None:
    assert type(get_meter_provider()).__name__ == "_ProxyMeterProvider"
    assert internals.is_proxy(get_meter_provider())
    assert not internals.is_proxy(NoOpMeterProvider())


@pytest.mark.parametrize("name", THEIR_LOGGERS)
def test_a_logger_that_repeats_an_endpoints_answer_has_its_name(name: str) -> None:
    assert "getLogger(__name__)" in inspect.getsource(importlib.import_module(name))


def test_a_readable_span_takes_its_parts_in_this_order() -> None:
    """``SdkTraces`` makes it by position."""
    assert list(inspect.signature(ReadableSpan).parameters) == [
        "name", "context", "parent", "resource", "attributes", "events", "links", "kind", "instrumentation_info",
        "status", "start_time", "end_time", "instrumentation_scope",
    ]  # fmt: skip


@pytest.mark.parametrize("processor", SDKS_OWN)
@pytest.mark.parametrize("name", ["on_start", "_on_ending"])
def test_the_sdks_processors_do_nothing_before_a_span_ends(processor: type, name: str) -> None:
    """Otherwise they would have to be given spans that the SDK has made."""
    if SINCE.get(name, VERSION) > VERSION:
        assert not hasattr(processor, name)
        return
    operations = {it.opname for it in dis.get_instructions(getattr(processor, name))}
    assert operations <= {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}


# --- where the names are not there -----------------------------------------------------------------------------------


def test_without_a_tracers_private_names_there_are_defaults() -> None:
    tracer: Any = SimpleNamespace(span_processor=SimpleSpanProcessor(InMemorySpanExporter()))
    assert internals.is_enabled(tracer)
    assert internals.limits_of(tracer).max_span_attributes == SpanLimits().max_span_attributes
    assert not internals.needs_real_spans(tracer)
    assert internals.processors_of(tracer) is tracer.span_processor
    ours: Any = SimpleNamespace()
    internals.share_span_metrics(ours, tracer)
    assert vars(ours) == {}


def test_spans_that_the_sdk_counts_are_made_by_it_and_counted_as_its_own() -> None:
    tracer: Any = SimpleNamespace(
        span_processor=SimpleSpanProcessor(InMemorySpanExporter()), _tracer_metrics=SimpleNamespace()
    )
    assert internals.needs_real_spans(tracer)
    ours: Any = SimpleNamespace()
    internals.share_span_metrics(ours, tracer)
    assert ours._tracer_metrics is tracer._tracer_metrics


def test_without_on_ending_a_processor_is_known_by_its_on_start() -> None:
    class Older:
        on_start = SpanProcessor.on_start

    tracer: Any = SimpleNamespace(span_processor=Older())
    assert not internals.needs_real_spans(tracer)


def test_a_logger_that_makes_its_records_is_given_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internals, "_EMITS_PARTS", True)
    emitted: list[dict[str, Any]] = []
    logger: Any = SimpleNamespace(emit=lambda **parts: emitted.append(parts))
    internals.emit_log(logger, body="b", event_name="e")
    assert emitted == [{"body": "b", "event_name": "e"}]


@pytest.mark.parametrize("logger", [SimpleNamespace(resource="r"), SimpleNamespace()])
def test_a_logger_that_does_not_is_given_a_record_of_the_sdks(
    logger: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the logger's resource, which such a logger does not add."""
    monkeypatch.setattr(internals, "_EMITS_PARTS", False)
    monkeypatch.setattr(sdk_logs, "LogRecord", dict, raising=False)
    emitted: list[dict[str, Any]] = []
    given: Any = SimpleNamespace(**vars(logger), emit=emitted.append)
    internals.emit_log(given, body="b", event_name="e")
    assert emitted == [{"body": "b", "event_name": "e", "resource": getattr(logger, "resource", None)}]


def test_a_span_has_the_flags_it_was_given_and_the_rest_of_its_context(sdk: SimpleNamespace) -> None:
    before = sdk.span.get_span_context()
    flags = TraceFlags(before.trace_flags ^ RANDOM_TRACE_ID)
    internals.give_flags(sdk.span, flags)
    after = sdk.span.get_span_context()
    assert tuple(after) == tuple(SpanContext(before.trace_id, before.span_id, before.is_remote, flags))
    internals.give_flags(sdk.span, flags)
    assert sdk.span.get_span_context() is after


def test_without_a_batch_processor_logs_end_by_their_own_method() -> None:
    ended: list[str] = []
    processor: Any = SimpleNamespace(shutdown=lambda: ended.append("shutdown"))
    internals.leave_to_parent(processor)
    assert ended == []
    internals.shut_down(processor, 5)
    assert ended == ["shutdown"]


# --- who needs a span that the SDK has made --------------------------------------------------------------------------


class Sees(SpanProcessor):
    """Does something when a span starts."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("seen", "at its start")


class SeesEnding(SpanProcessor):
    """Does something just before a span ends."""

    def _on_ending(self, span: Span) -> None:
        """An attribute would be too late."""


class SeesInBatch(BatchSpanProcessor):
    """Is the SDK's, with an ``on_start`` of its own."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("seen", "at its start")


class Foreign:
    """Is no ``SpanProcessor``."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("seen", "at its start")

    def _on_ending(self, span: Span) -> None: ...

    def on_end(self, span: ReadableSpan) -> None: ...

    def shutdown(self) -> None: ...

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


class EndsOnly(SpanProcessor):
    """Is the application's own, and looks at spans that have ended."""

    def on_end(self, span: ReadableSpan) -> None: ...


class Unhashable:
    """Is called when a span starts, and is no function."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("seen", "at its start")


class SeesForAll(sdk_trace.SynchronousMultiSpanProcessor):
    """Passes spans on, and does something itself."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("seen", "at its start")
        super().on_start(span, parent_context)


def simple() -> SpanProcessor:
    return SimpleSpanProcessor(InMemorySpanExporter())


def batch() -> SpanProcessor:
    return BatchSpanProcessor(InMemorySpanExporter())


def with_attribute(on_start: Any) -> SpanProcessor:
    processor = simple()
    processor.on_start = on_start  # type: ignore[method-assign]
    return processor


def with_function() -> SpanProcessor:
    processor = simple()
    processor._on_ending = lambda span: None  # type: ignore[method-assign]
    return processor


def in_turn(cls: Any = sdk_trace.SynchronousMultiSpanProcessor) -> Any:
    """Passes spans on to its processors, one after another."""
    return cls()


def passing_on(multi: Any, *processors: Any) -> Any:
    for processor in processors:
        multi.add_span_processor(processor)
    return multi


def with_own_on_start() -> Any:
    multi = passing_on(in_turn(), simple())
    multi.on_start = Sees().on_start
    return multi


IDLE: dict[str, Callable[[], Any]] = {
    "none": in_turn,
    "simple": lambda: passing_on(in_turn(), simple()),
    "batch": lambda: passing_on(in_turn(), batch()),
    "both": lambda: passing_on(in_turn(), simple(), batch()),
    "the application's own": lambda: passing_on(in_turn(), simple(), EndsOnly()),
    "concurrent": lambda: passing_on(ConcurrentMultiSpanProcessor(), simple(), batch()),
}
LOOKING: dict[str, Callable[[], Any]] = {
    "unhashable": lambda: passing_on(in_turn(), with_attribute(Unhashable())),
    "on_start": lambda: passing_on(in_turn(), simple(), Sees()),
    "_on_ending": lambda: passing_on(in_turn(), SeesEnding(), simple()),
    "subclass": lambda: passing_on(in_turn(), SeesInBatch(InMemorySpanExporter())),
    "instance attribute": lambda: passing_on(in_turn(), with_attribute(Sees().on_start)),
    "a function for _on_ending": lambda: passing_on(in_turn(), with_function()),
    "foreign": lambda: passing_on(in_turn(), Foreign()),
    "concurrent": lambda: passing_on(ConcurrentMultiSpanProcessor(), simple(), Sees()),
    "behind another": lambda: passing_on(in_turn(), passing_on(ConcurrentMultiSpanProcessor(), Sees())),
    "the one that passes on": lambda: passing_on(in_turn(SeesForAll), simple()),
    "an attribute of the one that passes on": with_own_on_start,
}
"""Processors of which one does something before a span ends."""


class Keeps(SpanProcessor):
    """Keeps the spans that have ended, and whether the SDK has made them."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


@pytest.fixture
def provider_of() -> Iterator[Callable[..., TracerProvider]]:
    """Makes providers over an active processor."""
    made: list[TracerProvider] = []

    def make(active: Any = None, **options: Any) -> TracerProvider:
        made.append(TracerProvider(active_span_processor=active, shutdown_on_exit=False, **options))
        return made[-1]

    yield make
    for provider in made:
        provider.shutdown()


def finished() -> tuple[FinishedSpan, Decision]:
    """An execution's span, and what was decided on it."""
    return assemble(STORY)[-1], decide(ALWAYS_ON, E1, "my-pipeline", Context())


def makes_real_spans(traces: SdkTraces) -> bool:
    """Whether the SDK makes the spans, as is seen by who has its own method called."""
    span, decision = finished()
    traces.emit(span, decision, with_events=True)
    return traces._real is not None


@pytest.mark.parametrize("active", IDLE.values(), ids=IDLE)
def test_spans_that_nobody_looks_at_before_are_made_at_their_end(
    provider_of: Callable[..., TracerProvider], active: Callable[[], Any]
) -> None:
    assert not makes_real_spans(SdkTraces(tracer_of(provider_of(active()))))


@pytest.mark.parametrize("active", LOOKING.values(), ids=LOOKING)
def test_a_processor_that_looks_at_spans_before_gets_the_sdks(
    provider_of: Callable[..., TracerProvider], active: Callable[[], Any]
) -> None:
    processors = active()
    traces = SdkTraces(tracer_of(provider_of(processors)))
    assert makes_real_spans(traces)
    # what it does to the span is on what the others export
    keeps = passing_on(processors, kept := Keeps()) and kept
    span, decision = finished()
    traces.emit(span, decision, with_events=True)
    (seen,) = keeps.spans
    expected = {"seen": "at its start"} if does_something_at_start(processors) else {}
    assert dict(seen.attributes or {}) == dict(span.attributes) | expected


def does_something_at_start(processor: Any) -> bool:
    """Whether a span that is started has the attribute, as the SDK itself does it."""
    provider = TracerProvider(active_span_processor=processor, shutdown_on_exit=False)
    with provider.get_tracer("probe").start_as_current_span("probe") as span:
        return "seen" in (span.attributes or {})  # type: ignore[attr-defined] # the SDK's


def tracer_of(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("t")  # type: ignore[return-value] # the SDK's


def test_a_processor_that_is_added_later_gets_what_it_needs(provider_of: Callable[..., TracerProvider]) -> None:
    provider = provider_of()
    provider.add_span_processor(simple())
    traces = SdkTraces(tracer_of(provider))
    assert not makes_real_spans(traces)
    provider.add_span_processor(Sees())
    assert makes_real_spans(traces)


@pytest.mark.skipif(SINCE["_tracer_metrics"] > VERSION, reason="has no metrics of its own spans")
def test_the_sdks_metrics_of_spans_count_ours_too(
    provider_of: Callable[..., TracerProvider], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the meter provider that the application's tracer provider was given."""
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    traces = SdkTraces(tracer_of(provider_of(meter_provider=meters)))
    assert makes_real_spans(traces)
    assert makes_real_spans(traces)
    assert [point.value for point in points_of(reader, "otel.sdk.span.started")] == [2]
    assert [point.value for point in points_of(reader, "otel.sdk.span.live")] == [0]
    meters.shutdown()
