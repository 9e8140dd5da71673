"""A bridge as one writes it with the SDK's spans: JSON lines in, OTLP over HTTP out.

``python -m bench.sdk_bridge FILE URL``: a dictionary of open spans, explicit times and
parents, the standard library's ``json``, ``BatchSpanProcessor`` and the SDK's exporter. No
retry and no other order of events than the file's, no ids that can be computed, nothing
validated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_MAX_QUEUE: Final = 1_000_000
"""Spans: the SDK's 2,048 would drop some."""


def _replay(path: Path, tracer: Tracer) -> None:
    executions: dict[str, tuple[Span, Context]] = {}
    modules: dict[str, Span] = {}
    with path.open("rb") as file:
        for line in file:
            event: dict[str, Any] = json.loads(line)
            execution_id, time_ns = event["executionId"], event["timestampNs"]
            match event["eventType"]:
                case "execution.started":
                    name = event["dagName"]
                    attributes = {"constellation.execution.id": execution_id, "constellation.dag.name": name}
                    span = tracer.start_span(
                        name, Context(), SpanKind.SERVER, attributes=attributes, start_time=time_ns
                    )
                    executions[execution_id] = span, set_span_in_context(span, Context())
                case "module.started":
                    execution, context = executions[execution_id]
                    attributes = {
                        "constellation.execution.id": execution_id,
                        "constellation.dag.name": execution.name,  # type: ignore[attr-defined] # the SDK's have one
                        "constellation.module.id": event["moduleId"],
                        "constellation.module.name": event["moduleName"],
                    }
                    modules[event["moduleId"]] = tracer.start_span(
                        event["moduleName"], context, attributes=attributes, start_time=time_ns
                    )
                case "module.completed" | "module.failed":
                    _end(modules.pop(event["moduleId"]), event)
                case "execution.completed" | "execution.cancelled":
                    _end(executions.pop(execution_id)[0], event)


def _end(span: Span, event: dict[str, Any]) -> None:
    if event["eventType"] == "execution.cancelled":
        span.set_attribute("constellation.outcome", "cancelled")
    elif event["succeeded"]:
        span.set_attribute("constellation.outcome", "success")
    else:
        span.set_attribute("constellation.outcome", "failure")
        span.set_status(StatusCode.ERROR, event["error"])
    span.end(event["timestampNs"])


def _main(path: str, url: str) -> None:
    provider = TracerProvider()
    exporter = OTLPSpanExporter(f"{url}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_MAX_QUEUE))
    _replay(Path(path), provider.get_tracer("sdk-bridge"))
    provider.shutdown()


if __name__ == "__main__":
    _main(*sys.argv[1:])
