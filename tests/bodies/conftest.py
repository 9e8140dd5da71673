"""The two listeners that make spans, into a real endpoint, as an application has them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from constellation_otel import OpenTelemetryListener, OtlpListener
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Application
    from constellation_otel.receiver import Receiver
    from constellation_otel.traces import Span


class Listening:
    """A listener, and a look at what has become of what it was told.

    Attributes:
        listener: The listener.
        receiver: Where its spans arrive.
    """

    def __init__(self, listener: Any, receiver: Receiver, export: Callable[[], None]) -> None:
        self.listener = listener
        self.receiver = receiver
        self._export = export

    def all_spans(self) -> list[Span]:
        """The spans so far."""
        assert self.listener.flush(DEADLINE)
        self._export()
        return self.receiver.spans

    def spans(self) -> dict[str, Span]:
        """The same, by name."""
        return {span.name: span for span in self.all_spans()}

    def modules(self) -> dict[object, Span]:
        """The spans of modules, by the modules' names."""
        return {
            span.attributes["constellation.module.name"]: span
            for span in self.all_spans()
            if "constellation.module.name" in span.attributes
        }


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is configured but by the test."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def through_sdk(receiver: Receiver, make_application: Callable[..., Application]) -> Iterator[Callable[..., Listening]]:
    """OpenTelemetryListener, through an application's SDK."""
    made: list[Listening] = []

    def make(sampler: Any = None, processors: Any = (), **options: Any) -> Listening:
        application = make_application(sampler=sampler)
        for processor in processors:
            application.traces.add_span_processor(processor)
        listener = OpenTelemetryListener(application.traces, application.metrics, application.logs, **options)
        made.append(Listening(listener, receiver, application.export))
        return made[-1]

    yield make
    for each in made:
        each.listener.close(DEADLINE)


@pytest.fixture
def through_otlp(receiver: Receiver) -> Iterator[Callable[..., Listening]]:
    """OtlpListener, without an SDK."""
    made: list[Listening] = []

    def make(**options: Any) -> Listening:
        made.append(Listening(OtlpListener(receiver.grpc_endpoint, **options), receiver, lambda: None))
        return made[-1]

    yield make
    for each in made:
        each.listener.close(DEADLINE)


@pytest.fixture(params=["OpenTelemetryListener", "OtlpListener"])
def make(
    request: pytest.FixtureRequest, through_sdk: Callable[..., Listening], through_otlp: Callable[..., Listening]
) -> Callable[..., Listening]:
    """Either of them, with the options that both have."""
    return through_sdk if request.param == "OpenTelemetryListener" else through_otlp
