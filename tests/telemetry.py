"""What the tests of both span listeners need: an execution to report, and a look at what has become of it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from constellation_otel import trace_id_of
from constellation_otel.delivery.journal import Journal
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from uuid import UUID

    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace.sampling import Sampler

    from constellation_otel.delivery import AssemblyCounters, BufferedListener, Counters
    from constellation_otel.receiver import Receiver
    from constellation_otel.traces import Span

Wire = Literal["grpc", "http/protobuf"]
BOTH = pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
OPT_IN = "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN"
LONG = 10 * DEADLINE
"""For what is much work, not a wait."""
TREE = """\
my-pipeline (server) failure ERROR "WordCount failed: too many words"
  Trim (internal) success
  WordCount (internal) failure ERROR "too many words"\
"""
"""The trace of :func:`run`, as ``span_tree`` draws it."""


def traces_of(spans: Sequence[Span]) -> dict[int, list[str]]:
    """The names of the spans of each trace, a span that came twice once; it has to be the same both times."""
    known: dict[tuple[int, int], Span] = {}
    for span in spans:
        assert known.setdefault((span.trace_id, span.span_id), span) == span
    traces: dict[int, list[str]] = {}
    for span in known.values():
        traces.setdefault(span.trace_id, []).append(span.name)
    return {trace_id: sorted(names) for trace_id, names in traces.items()}


def whole(ids: Sequence[UUID]) -> dict[int, list[str]]:
    """What :func:`traces_of` finds of executions of :func:`run`."""
    return {trace_id_of(execution_id): ["Trim", "WordCount", "my-pipeline"] for execution_id in ids}


def assembly_of(listener: BufferedListener[Any]) -> AssemblyCounters:
    assembly = listener.counters.assembly
    assert assembly is not None
    return assembly


def assert_sum(counters: Counters) -> None:
    assert counters.received == counters.delivered + counters.dropped + counters.rejected + counters.held


@contextmanager
def caller_of(
    trace_id: int, flags: int = 0, state: Sequence[tuple[str, str]] = (), *, remote: bool = True
) -> Iterator[None]:
    """A span that calls: ``trace_id``, and 7."""
    span_context = SpanContext(
        trace_id, 7, is_remote=remote, trace_flags=TraceFlags(flags), trace_state=TraceState(list(state))
    )
    with trace.use_span(NonRecordingSpan(span_context)):
        yield


def provider_with(sampler: Sampler) -> tuple[TracerProvider, InMemorySpanExporter]:
    """A tracer provider, and where its spans are."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def points_of(reader: InMemoryMetricReader, name: str) -> list[Any]:
    """The data points of a metric; none where it has not been recorded."""
    data = reader.get_metrics_data()
    assert data is not None
    return [
        point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


class BlockingExporter(SpanExporter):
    """An exporter that does not return until its gate is opened."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        assert self.gate.wait(LONG)
        return SpanExportResult.SUCCESS


def endpoint_of(receiver: Receiver, protocol: str) -> str:
    return receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint


@contextmanager
def journal_in(folder: Path) -> Iterator[Journal]:
    journal = Journal(folder / "journal.db", sinks=["otlp"])
    try:
        yield journal
    finally:
        journal.close()


def our_threads() -> set[threading.Thread]:
    """The threads that are not the receiver's."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("otlp-receiver")}
