"""What several tests share: a real OTLP endpoint, and an application's SDK that exports to it."""

from __future__ import annotations

import gc
import os
import pkgutil
import sys
import threading
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import constellation_otel
from constellation_otel.errors import MissingExtraError
from constellation_otel.receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

# what is slow is no failure: a machine may be busy
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

RESOURCE = Resource({"service.name": "shop", "service.version": "1.2.3"})


class Application:
    """An application's OpenTelemetry set-up, exporting over OTLP/HTTP to a receiver.

    Args:
        receiver: Where everything goes.
        trace_options: Passed on to the TracerProvider: a sampler, limits.
    """

    def __init__(self, receiver: Receiver, **trace_options: Any) -> None:
        endpoint = receiver.http_endpoint
        self.receiver = receiver
        self.traces = TracerProvider(resource=RESOURCE, shutdown_on_exit=False, **trace_options)
        spans = OTLPSpanExporter(f"{endpoint}/v1/traces")
        self.traces.add_span_processor(BatchSpanProcessor(spans, max_queue_size=200_000))
        metrics = OTLPMetricExporter(f"{endpoint}/v1/metrics")
        reader = PeriodicExportingMetricReader(metrics, export_interval_millis=float("inf"))
        self.metrics = MeterProvider([reader], resource=RESOURCE, shutdown_on_exit=False)
        self.logs = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
        self.logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"{endpoint}/v1/logs")))

    def export(self) -> None:
        """Sends what the SDK holds; it has arrived when this returns."""
        self.traces.force_flush()
        self.metrics.force_flush()
        self.logs.force_flush()

    def shutdown(self) -> None:
        self.traces.shutdown()
        self.metrics.shutdown()
        self.logs.shutdown()


@contextmanager
def unwatched() -> Iterator[None]:
    """Within this no lines are noted for coverage.

    pytest-cov's ``no_cover`` stops coverage and starts it again, and with each start one more coverage is
    started in every child that is forked later, which takes that some seconds in the end.
    """
    trace, trace_of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        yield
    finally:
        threading.settrace(trace_of_threads)
        sys.settrace(trace)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "unwatched: no coverage is measured, neither of the test nor of its children.")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, Any, Any]:
    """Collects the tests unwatched, which halves the time; the package is imported before, with its lines noted."""
    if session.config.getoption("numprocesses", None):
        # the processes that run the tests collect them
        return (yield)
    if sys.gettrace() is not None:
        for module in pkgutil.walk_packages(constellation_otel.__path__, "constellation_otel."):
            with suppress(MissingExtraError):  # an adapter, whose engine is not here
                import_module(module.name)
    with unwatched():
        collected = yield
    # what is there now is there to the end: it need not be looked through for garbage again and again
    gc.collect()
    gc.freeze()
    return collected


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Runs a test unwatched that is marked so, and its children."""
    if item.get_closest_marker("unwatched") is None:
        return (yield)
    # by which children are told to measure
    config = os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    try:
        with unwatched():
            return (yield)
    finally:
        if config is not None:
            os.environ["COVERAGE_PROCESS_CONFIG"] = config


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Lets reports with lone surrogates in their logs, which some tests are about, go from one process to another."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {key: _encodable(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(map(_encodable, value))
        case _:
            return value


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A real OTLP endpoint in this process."""
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def make_application(receiver: Receiver) -> Iterator[Callable[..., Application]]:
    """Makes applications whose telemetry arrives at ``receiver``."""
    made: list[Application] = []

    def make(**trace_options: Any) -> Application:
        made.append(Application(receiver, **trace_options))
        return made[-1]

    yield make
    for application in made:
        application.shutdown()


@pytest.fixture
def application(make_application: Callable[..., Application]) -> Application:
    """An application with the SDK's defaults."""
    return make_application()
