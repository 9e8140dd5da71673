"""A pipeline on Dask's local cluster, whose modules make spans of their own on the workers.

Needs dask[distributed].

    python examples/dask_cluster.py

The listener stays with the client; the trace context follows each module as W3C
headers. So that a module's own spans get out, each worker sets its SDK up, in a worker
plugin. An OTLP endpoint (localhost:4317, or what OTEL_EXPORTER_OTLP_ENDPOINT says) gets
one trace: the three "count words" stand under their modules' spans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distributed import Client, LocalCluster, WorkerPlugin
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from constellation_otel import Constellation, Dag, OpenTelemetryListener, module

if TYPE_CHECKING:
    from distributed import Worker


class Tracing(WorkerPlugin):
    """Sets the SDK of a worker up, and sends what it holds when the worker closes."""

    def setup(self, worker: Worker) -> None:  # noqa: ARG002 - Dask's signature
        self.provider = set_up()

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002 - Dask's signature
        self.provider.shutdown()


def set_up() -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


def words(text: str) -> int:
    with trace.get_tracer("dask-cluster").start_as_current_span("count words"):
        return len(text.split())


def total(first: int, second: int, third: int) -> int:
    return first + second + third


def main() -> None:
    set_up()
    texts = {"a": "to be", "b": "or not", "c": "to be that is the question"}
    counts = [
        module(words, name=name, inputs={"text": text})
        for name, text in zip(("first", "second", "third"), texts, strict=True)
    ]
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,  # type: ignore[no-untyped-call] # has no types
        Client(cluster) as client,  # type: ignore[no-untyped-call] # has no types
    ):
        client.register_plugin(Tracing())
        with Constellation(listener=OpenTelemetryListener(), executor=client.get_executor()) as constellation:
            print(constellation.run(Dag("word-counts", [*counts, total]), texts)["total"])


if __name__ == "__main__":
    main()
