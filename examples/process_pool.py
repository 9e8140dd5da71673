"""A pipeline in a process pool, whose modules make spans of their own in the other processes.

    python examples/process_pool.py

The listener stays in this process; the trace context follows each module as W3C
headers. So that a module's own spans get out, each worker process sets its SDK up,
in the pool's initializer. An OTLP endpoint (localhost:4317, or what
OTEL_EXPORTER_OTLP_ENDPOINT says) gets one trace: "sum" stands under its module's span.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from constellation_otel import Constellation, Dag, OpenTelemetryListener


def set_up() -> None:
    """Sets this process's SDK up; it sends what it holds when the process exits."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def squares(count: int) -> list[int]:
    return [number * number for number in range(count)]


def total(squares: list[int]) -> int:
    with trace.get_tracer("process-pool").start_as_current_span("sum"):
        return sum(squares)


def main() -> None:
    set_up()
    # spawned workers exit as any interpreter does; forked ones would leave without sending
    processes = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(2, mp_context=processes, initializer=set_up) as pool,
        Constellation(listener=OpenTelemetryListener(), executor=pool) as constellation,
    ):
        print(constellation.run(Dag("sum-of-squares", [squares, total]), {"count": 10})["total"])


if __name__ == "__main__":
    main()
