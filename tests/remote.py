"""What the processes of a pool or a cluster import: modules that make spans of their own, and the SDK for them."""

from __future__ import annotations

import os

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor


def set_up(endpoint: str) -> None:
    """Sets this process's SDK up; a span has arrived when it has ended."""
    provider = TracerProvider(resource=Resource({"process.pid": os.getpid()}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    trace.set_tracer_provider(provider)


def words(text: str) -> list[str]:
    with trace.get_tracer("remote").start_as_current_span("split"):
        return text.split()


async def count(words: list[str]) -> int:
    with trace.get_tracer("remote").start_as_current_span("count"):
        return len(words)


def refuse(words: list[str]) -> None:
    with trace.get_tracer("remote").start_as_current_span("look"):
        message = f"{words[0]!r} is not welcome"
        raise ValueError(message)
