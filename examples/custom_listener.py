"""A listener of one's own beside OpenTelemetry's, in an application that sets its SDK up itself.

    python examples/custom_listener.py

It prints an alarm for the module that fails. An OTLP endpoint (localhost:4317, or
what OTEL_EXPORTER_OTLP_ENDPOINT says) gets the trace, with the error on the failed
module's span; average, which needs that module's output, does not run and has no span.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from constellation_otel import Constellation, Dag, ExecutionFailedError, ExecutionListener, OpenTelemetryListener

if TYPE_CHECKING:
    from uuid import UUID


class Alarm(ExecutionListener):
    """Says which module failed. What is not overridden does nothing."""

    def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:  # noqa: ARG002 - the SPI's
        print(f"ALARM: {module_name} failed: {error}")


def lines(text: str) -> list[str]:
    return text.splitlines()


def numbers(lines: list[str]) -> list[float]:
    return [float(line) for line in lines]


def average(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def longest(lines: list[str]) -> str:
    return max(lines, key=len)


def main() -> None:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

    listener = ExecutionListener.composite(OpenTelemetryListener(), Alarm())
    pipeline = Dag("statistics", [lines, numbers, average, longest])
    with Constellation(listener=listener) as constellation:
        try:
            constellation.run(pipeline, {"text": "1\n2.5\nthree"})
        except ExecutionFailedError as failure:
            print(f"failed: {', '.join(failure.errors)}; completed: {', '.join(failure.outputs)}")


if __name__ == "__main__":
    main()
