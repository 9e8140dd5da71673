"""What it costs to write finished spans as an OTLP request.

On one side ``encode_request``. On the other the OpenTelemetry SDK's encoder, as its
OTLP exporters call it, on the same spans as the SDK has them: to bytes, both, and
of executions of eight modules, one module in ten with an exception.
"""

from __future__ import annotations

import gc
import time
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, TraceFlags

from bench.children import isolated
from bench.report import Figure, Row
from constellation_otel.events import (
    ErrorInfo,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
)
from constellation_otel.traces import Assembler, Sampling, decide
from constellation_otel.transports.otlp import encode_request, make_resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from opentelemetry.sdk.resources import Resource

    from bench.endpoint import Endpoint
    from constellation_otel.traces import Span

__all__ = ["ROW"]

_SPANS: Final = 512
_MODULES: Final = 8
"""Of an execution."""
_ROUNDS: Final = 41
_BEGAN_NS: Final = 1_700_000_000_000_000_000
_ERROR: Final = ErrorInfo("ValueError", "no number")


def _finished_spans() -> list[Span]:
    """As an assembler makes them, one module in ten of them failed."""
    assembler = Assembler(sampling=Sampling(partial(decide, ALWAYS_ON)))
    spans: list[Span] = []
    modules = 0
    while len(spans) < _SPANS:
        execution_id, now_ns = uuid4(), _BEGAN_NS
        spans += assembler.add(ExecutionStarted(execution_id, "my-pipeline", now_ns), 0)
        for number in range(_MODULES):
            module_id, name = uuid4(), f"module-{number}"
            spans += assembler.add(ModuleStarted(execution_id, module_id, name, now_ns), 0)
            now_ns += 2_000_000
            if modules % 10:
                spans += assembler.add(ModuleCompleted(execution_id, module_id, name, 2.0, now_ns), 0)
            else:
                spans += assembler.add(ModuleFailed(execution_id, module_id, name, _ERROR, now_ns), 0)
            modules += 1
        spans += assembler.add(ExecutionCompleted(execution_id, "my-pipeline", True, 2.0 * _MODULES, now_ns), 0)
    return spans[:_SPANS]


def _as_the_sdk_has_it(span: Span, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    flags = TraceFlags(span.trace_flags)
    parent = None
    if span.parent_span_id is not None:
        parent = SpanContext(span.trace_id, span.parent_span_id, is_remote=False, trace_flags=flags)
    return ReadableSpan(
        span.name,
        SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=flags),
        parent,
        resource,
        span.attributes,
        [Event(event.name, event.attributes, event.timestamp_ns) for event in span.events],
        (),
        span.kind,
        status=Status(span.status, span.status_description),
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=scope,
    )


def _thread_us(encode: Callable[[], object]) -> float:
    """Microseconds a span."""
    gc.collect()
    start = time.thread_time()
    encode()
    return (time.thread_time() - start) / _SPANS * 1e6


def _rounds() -> Iterator[tuple[float, float]]:
    resource = make_resource("shop")
    scope = InstrumentationScope("constellation_otel", "1", "https://opentelemetry.io/schemas/1.0.0")
    for _ in range(_ROUNDS):
        # new ones each time, so that no round finds the ids of the one before in a cache
        spans = _finished_spans()
        readable = [_as_the_sdk_has_it(span, resource, scope) for span in spans]
        sdk = _thread_us(lambda: encode_spans(readable).SerializeToString())  # noqa: B023 - called at once
        yield sdk, _thread_us(lambda: encode_request(spans, resource))  # noqa: B023 - called at once


def _measure(_: Endpoint) -> Sequence[Figure]:
    with isolated(_rounds) as rounds:
        sdk, ours = (median(column) for column in zip(*rounds, strict=True))
    return [
        Figure(
            name="span to OTLP bytes",
            ours=f"{ours:.2f} us",
            beside=f"{sdk:.1f} us",
            value=ours / sdk,
            unit="1/n",
            required=1 / 10,
            aim=1 / 15,
        )
    ]


ROW: Final = Row(
    "encoding",
    f"CPU time a span of `encode_request`, beside that of the encoder of the SDK's OTLP exporters, for {_SPANS} equal"
    " spans to bytes, one in ten with an exception.",
    _measure,
)
