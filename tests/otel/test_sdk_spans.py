"""Spans through a tracer that is not the SDK's; the metrics' sums while listeners are made."""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING
from uuid import UUID

from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from constellation_otel.otel.metrics import Instruments
from constellation_otel.otel.sdk_spans import PlainTraces
from constellation_otel.traces import Assembler
from deliveries import execution
from support import DEADLINE

if TYPE_CHECKING:
    import pytest


def test_spans_that_wait_for_their_executions_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces, assembler = PlainTraces(provider.get_tracer("plain"), max_held=10), Assembler()

    def emit(event: object) -> None:
        for span in assembler.add(event, 0):  # type: ignore[arg-type] # an event
            decision = traces.decide(UUID(int=0), "dag", Context())
            traces.emit(span, decision, with_events=True)

    with caplog.at_level(logging.WARNING):
        for number in range(1, 101):
            for event in execution(number)[:3]:
                emit(event)
    assert len(traces._modules) == 10
    # of the first 90 there are modules only, each a trace of its own
    spans = exporter.get_finished_spans()
    assert ([span.name for span in spans], {span.parent for span in spans}) == (["trim"] * 90, {None})
    assert len(caplog.records) == 1
    for number in (1, 100):
        emit(execution(number)[3])
    first, module, last = exporter.get_finished_spans()[90:]
    assert (first.name, module.name, last.name) == ("dag-1", "trim", "dag-100")
    assert module.parent is not None
    assert module.parent.span_id == last.get_span_context().span_id  # type: ignore[union-attr] # it has one
    assert len(traces._modules) == 9


class Observed:
    open_executions = 1
    open_modules = 2


def test_listeners_may_be_made_while_the_metrics_are_read() -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    instruments = Instruments.of(meters)
    assert instruments is not None
    kept: list[Observed] = []
    ends = threading.Event()

    def make() -> None:
        while not ends.is_set() and len(kept) < 5_000:
            kept.append(Observed())
            instruments.observe(kept[-1])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=make)
    thread.start()
    try:
        for _ in range(100):
            # raises where the set changes meanwhile
            instruments._active_executions(None)  # type: ignore[arg-type] # not looked at
            instruments._active_modules(None)  # type: ignore[arg-type] # as above
    finally:
        ends.set()
        thread.join(DEADLINE)
        sys.setswitchinterval(interval)
    meters.shutdown()
