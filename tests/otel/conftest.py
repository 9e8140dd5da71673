"""The two span listeners, closed when a test ends."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from constellation_otel import OpenTelemetryListener, OtlpListener
from constellation_otel.delivery import Retry
from support import DEADLINE
from telemetry import provider_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

SOON = Retry(first=0.02, longest=0.05, jitter=lambda: 1.0)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is configured but by the test."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def make_listener() -> Iterator[Callable[..., OpenTelemetryListener]]:
    """Makes listeners that are closed at the end."""
    made: list[OpenTelemetryListener] = []

    def make(*providers: Any, **options: Any) -> OpenTelemetryListener:
        made.append(OpenTelemetryListener(*providers, **options))
        return made[-1]

    yield make
    for listener in made:
        listener.close(DEADLINE)


@pytest.fixture
def make_otlp() -> Iterator[Callable[..., OtlpListener]]:
    """Makes listeners that try an endpoint again soon, and are closed at the end."""
    made: list[OtlpListener] = []

    def make(endpoint: str | None, **options: Any) -> OtlpListener:
        made.append(OtlpListener(endpoint, **{"retry": SOON} | options))
        return made[-1]

    yield make
    for listener in made:
        listener.close(2.0)


@pytest.fixture
def memory() -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    """A tracer provider for tests of what needs no wire."""
    provider, exporter = provider_with(ALWAYS_ON)
    yield provider, exporter
    provider.shutdown()
