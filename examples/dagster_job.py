"""A Dagster job whose run becomes a trace afterwards, with what its ops did themselves.

    python examples/dagster_job.py

It needs the extra "dagster". An OTLP endpoint (localhost:4317, or what
OTEL_EXPORTER_OTLP_ENDPOINT says) gets one trace: the body's span from the process that
runs the op, the others from the event log, as
`constellation-otel replay dagster:folder --to otlp://localhost:4317` would send them.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from dagster import DagsterInstance, job, op
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from constellation_otel import Bridge
from constellation_otel.adapters.dagster import traced
from constellation_otel.transports.dagster import DagsterSource
from constellation_otel.transports.otlp import OtlpSink, make_resource

provider = TracerProvider(resource=make_resource())
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("shop")


@op
@traced
def orders() -> list[int]:
    with tracer.start_as_current_span("SELECT orders"):
        return [3, 1, 2]


@op
@traced
def total(orders: list[int]) -> int:
    return sum(orders)


@job
def nightly() -> None:
    total(orders())


def main() -> None:
    with TemporaryDirectory() as home:
        # Dagster would count this run, and say so the first time
        Path(home, "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        run(home)


def run(home: str) -> None:
    """Runs the job in an instance of its own, and replays what that has logged."""
    with DagsterInstance.from_config(home) as instance:
        result = nightly.execute_in_process(instance=instance)
        print(f"total: {result.output_for_node('total')}")
        report = Bridge(DagsterSource(home), [OtlpSink(resource=make_resource())], is_replay=True).run()
    print(f"{report.events} events replayed as {report.assembly.spans} spans; delivered: {report.is_delivered}")


if __name__ == "__main__":
    main()
