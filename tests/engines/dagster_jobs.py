"""The jobs that the source of Dagster's event log is tested with; Dagster's own processes import this file, too."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator  # noqa: TC003 - Dagster evaluates what its ops return
from functools import cache
from typing import TYPE_CHECKING, Any

from dagster import (
    DagsterInstance,
    Definitions,
    DynamicOut,
    DynamicOutput,
    Out,
    Output,
    RetryPolicy,
    asset,
    define_asset_job,
    execute_job,
    graph,
    in_process_executor,
    job,
    multiprocess_executor,
    op,
    reconstructable,
)
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from constellation_otel.adapters.dagster import traced

if TYPE_CHECKING:
    from collections.abc import Sequence

ENDPOINT = "CONFORMANCE_ENDPOINT"
"""The variable with the OTLP endpoint that bodies send their spans to, in every process."""
SLOW_S = 0.05


class ToEndpoint(SpanExporter):
    """Sends a span when it ends to the endpoint that there is then: a process of Dagster's may end without notice."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return exporter_to(os.environ[ENDPOINT]).export(spans)


@cache
def exporter_to(endpoint: str) -> OTLPSpanExporter:
    return OTLPSpanExporter(f"{endpoint}/v1/traces")


provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(ToEndpoint()))
trace.set_tracer_provider(provider)


def inside(name: str) -> Any:
    """A span of a body's own; how its block ends does not show on it."""
    attributes = {"process.pid": os.getpid()}
    start = trace.get_tracer("conformance").start_as_current_span
    return start(f"inside-{name}", attributes=attributes, record_exception=False, set_status_on_exception=False)


@op
@traced
def load() -> str:
    with inside("load"):
        return " to be or not to be "


@op
@traced
def clean(text: str) -> str:
    with inside("clean"):
        return text.strip()


@op
@traced
def count(text: str) -> int:
    with inside("count"):
        return len(text.split())


@op
@traced
def shout(text: str) -> str:
    with inside("shout"):
        return text.upper()


@op
@traced
def boom(text: str) -> str:
    with inside("boom"):
        message = "no number"
        raise ValueError(message)


@op
@traced
def after(text: str) -> str:
    with inside("after"):
        return text


@op(retry_policy=RetryPolicy(max_retries=2))
@traced
def flaky(context, text: str) -> str:  # type: ignore[no-untyped-def] # noqa: ANN001 - Dagster takes no text for its type
    with inside("flaky"):
        if context.retry_number < 2:
            message = "not yet"
            raise ValueError(message)
        return text


@op
@traced
def slow() -> None:
    with inside("slow"):
        time.sleep(SLOW_S)


@op(out=DynamicOut())
@traced
def split() -> Iterator[DynamicOutput[int]]:
    with inside("split"):
        for index in range(3):
            yield DynamicOutput(index, mapping_key=f"k{index}")


@op
@traced
def length(index: int) -> int:
    with inside("length"):
        return index


@op
@traced
def total(lengths: list[int]) -> int:
    with inside("total"):
        return sum(lengths)


@op(out={"found": Out(is_required=False), "rest": Out()})
@traced
def branch() -> Iterator[Output[str]]:
    with inside("branch"):
        yield Output("rest", "rest")


@op
@traced
async def awaited() -> None:
    with inside("awaited"):
        await asyncio.sleep(0)


@op
@traced
async def streamed() -> Any:
    with inside("streamed"):
        await asyncio.sleep(0)
    yield Output(1)
    with inside("streamed-on"):
        await asyncio.sleep(0)


@op
@traced
def waits() -> None:
    with inside("waits"):
        # a test interrupts it
        time.sleep(60)


@op
@traced
def crashes() -> None:
    os._exit(3)


@graph
def sub(text: str) -> Any:
    return shout(text)


@asset
@traced
def orders() -> int:
    with inside("orders"):
        return 3


@asset
@traced
def report(orders: int) -> int:
    with inside("report"):
        return orders


@job(name="conformance", executor_def=in_process_executor)
def ok() -> None:
    text = clean(load())
    count(text)
    shout(text)


@job(name="conformance", executor_def=in_process_executor)
def failure() -> None:
    after(boom(clean(load())))


@job(name="conformance", executor_def=in_process_executor)
def retried() -> None:
    flaky(clean(load()))


@job(name="conformance", executor_def=in_process_executor)
def recovered() -> None:
    boom(flaky(clean(load())))


@job(name="conformance", executor_def=in_process_executor)
def mapped() -> None:
    total(split().map(length).collect())


@job(name="conformance", executor_def=in_process_executor)
def nested() -> None:
    sub(load())


@job(name="conformance", executor_def=in_process_executor)
def skipped() -> None:
    found, rest = branch()
    clean(rest)
    after(found)


@job(name="conformance", executor_def=in_process_executor)
def lengths() -> None:
    slow()


@job(name="conformance", executor_def=in_process_executor)
def asynchronous() -> None:
    awaited()
    streamed()


@job(name="conformance", executor_def=in_process_executor)
def cancelled() -> None:
    waits()


@job(name="conformance", executor_def=in_process_executor)
def crashed() -> None:
    crashes()


@job(name="conformance", executor_def=multiprocess_executor.configured({"max_concurrent": 2}))
def processes() -> None:
    text = clean(load())
    count(text)
    shout(text)


def shop() -> Any:
    """A job of assets."""
    made = define_asset_job("shop", executor_def=in_process_executor)
    definitions = Definitions(assets=[orders, report], jobs=[made])
    # as it is called since 1.11
    resolve = getattr(definitions, "resolve_job_def", None) or definitions.get_job_def
    return resolve("shop")


if __name__ == "__main__":
    home, name = sys.argv[1:]
    with DagsterInstance.from_config(home) as instance:
        execute_job(reconstructable(globals()[name]), instance=instance)
