"""What modules' bodies set on their spans, through a real Collector, as a real Jaeger shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanContext, StatusCode, TraceFlags

from constellation_otel import (
    Constellation,
    Dag,
    ExecutionFailedError,
    OpenTelemetryListener,
    OtlpListener,
    trace_id_of,
)
from constellation_otel.traces import SpanEvent, SpanLink

from .traces import JAEGERS_OWN, read_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from constellation_otel.events import ExecutionStarted
    from constellation_otel.traces import Span

    from .peers import Collector, Jaeger

DEADLINE = 30.0
BATCH = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1))
NOW = 1_795_465_363_577_123_456


class QuotaError(Exception):
    """What a module fails with."""


def load() -> int:
    span = trace.get_current_span()
    span.set_attributes({"rows": 7, "ratio": 0.5, "cached": True, "tables": ["a", "b"], "name": "Zoë \N{WINKING FACE}"})
    span.add_event("cache miss", {"key": "k1", "tries": 2}, NOW)
    span.add_link(BATCH, {"why": "batch"})
    span.set_status(StatusCode.ERROR, "half of it")
    span.update_name("load orders")
    return 7


async def check(load: int) -> None:
    span = trace.get_current_span()
    span.set_attribute("rows", load)
    span.set_status(StatusCode.OK)
    error = QuotaError("too many rows")
    span.record_exception(error)
    with trace.use_span(span):
        raise error


def of(_: ExecutionStarted, context: Any) -> dict[str, Any]:
    return {"tenant": "acme", "has.context": context is not None}


@pytest.fixture
def through_sdk(collector: Collector) -> Iterator[tuple[Any, Callable[[], object]]]:
    provider = TracerProvider(resource=Resource({"service.name": "e2e"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{collector.http_endpoint}/v1/traces")))
    listener = OpenTelemetryListener(provider, attributes=of)
    yield listener, lambda: listener.flush(DEADLINE)
    assert listener.close(DEADLINE)
    provider.shutdown()


@pytest.fixture
def through_otlp(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Callable[[], object]]]:
    # the Collector is shared, and another test reads its metrics
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    listener = OtlpListener(collector.grpc_endpoint, attributes=of)
    yield listener, lambda: listener.flush(DEADLINE)
    assert listener.close(DEADLINE)


def model_of(span: Span, outcome: str) -> dict[str, object]:
    """The model's attributes of a module's span, which no body changes."""
    names = ("constellation.execution.id", "constellation.module.id")
    assert all(name in span.attributes for name in names)
    return {
        **{name: span.attributes[name] for name in names},
        "constellation.dag.name": "orders",
        "constellation.module.name": "load" if outcome == "success" else "check",
        "constellation.outcome": outcome,
    }


@pytest.mark.parametrize("way", ["through_sdk", "through_otlp"])
def test_jaeger_shows_what_bodies_have_set(jaeger: Jaeger, way: str, request: pytest.FixtureRequest) -> None:
    listener, flush = request.getfixturevalue(way)
    with Constellation(listener) as engine:
        execution = engine.start(Dag("orders", [load, check]), {})
        with pytest.raises(ExecutionFailedError):
            execution.result(DEADLINE)
    assert flush()
    spans = {it.span.name: it.span for it in read_back(jaeger, trace_id_of(execution.execution_id), spans=3)}
    assert set(spans) == {"orders", "load orders", "check"}
    loaded, checked, whole = spans["load orders"], spans["check"], spans["orders"]
    assert loaded.attributes == {
        **model_of(loaded, "success"),
        "rows": 7,
        "ratio": 0.5,
        "cached": True,
        "tables": ("a", "b"),
        "name": "Zoë \N{WINKING FACE}",
    }
    assert loaded.events == (SpanEvent("cache miss", NOW, {"key": "k1", "tries": 2}),)
    assert [(link.trace_id, link.span_id, link.attributes) for link in loaded.links] == [
        (0xABC, 0xDEF, {"why": "batch"})
    ]
    assert (loaded.status, loaded.status_description) == (StatusCode.ERROR, "half of it")
    assert checked.attributes == {
        **model_of(checked, "failure"),
        "rows": 7,
        "error.type": f"{QuotaError.__module__}.QuotaError",
    }
    assert (checked.status, checked.status_description) == (StatusCode.ERROR, "too many rows")
    assert [(event.name, event.attributes["exception.message"]) for event in checked.events] == [
        ("exception", "too many rows")
    ]
    assert checked.links == (SpanLink(loaded.trace_id, loaded.span_id, {"constellation.link": "upstream"}),)
    assert (whole.attributes["tenant"], whole.attributes["has.context"]) == ("acme", True)
    assert whole.status_description == "check failed: too many rows"
    assert {span.parent_span_id for span in (loaded, checked)} == {whole.span_id}
    assert not any(JAEGERS_OWN in span.attributes for span in spans.values())
