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
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.metrics import NoOpMeterProvider, get_meter_provider
from opentelemetry.sdk import _logs as sdk_logs
from opentelemetry.sdk._logs import export as logs_export
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import SpanContext, TraceFlags

from constellation_otel._support.scope import SCHEMA_URL
from constellation_otel.otel import _sdk_internals as internals
from constellation_otel.otel._sdk_internals import THEIR_LOGGERS
from constellation_otel.otel.own_providers import _Reader
from constellation_otel.traces.ids import RANDOM_TRACE_ID
from otel.helpers import SINCE, VERSION
from support import UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


@UNWATCHED
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
