"""What ``constellation-otel demo`` does: the main job on real input, with nothing else running.

It runs a few pipelines over this package's own documentation, and replays what was
recorded from the real engine. All telemetry is sent over OTLP; what is drawn is what
arrived.
"""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack, contextmanager, suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from opentelemetry import trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import SpanKind

from constellation_otel._support.text import printable
from constellation_otel.cli.console import make_console
from constellation_otel.cli.demo.application import Application, DemoError
from constellation_otel.cli.demo.pipelines import ARCHIVE, FAILING, TEXT, WORD_COUNT, page, slow_index
from constellation_otel.cli.waterfall import render_waterfall
from constellation_otel.engine import Constellation
from constellation_otel.errors import ExecutionFailedError
from constellation_otel.events import ExecutionStarted, decode_frame
from constellation_otel.listener import ExecutionListener
from constellation_otel.otel import OpenTelemetryListener
from constellation_otel.receiver import Receiver
from constellation_otel.traces import trace_id_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

__all__ = ["DemoError", "run_demo"]

_RECORDINGS: Final = ("engine-frames.jsonl", "engine-frames-50.jsonl")
_TIMEOUT_S: Final = 20.0


class _Shown(NamedTuple):
    """A trace that the demo has made."""

    trace_id: int
    name: str


def run_demo(endpoint: str | None, jaeger: str) -> None:
    """Runs the pipelines, replays the recorded frames, and shows their traces.

    Args:
        endpoint: The URL of an OTLP endpoint to send everything to; each trace id is
            printed with a link. ``None`` sends to a receiver in this process, and each
            trace is drawn as it arrived.
        jaeger: The URL of Jaeger's UI, for the links.

    Raises:
        ConfigurationError: The endpoint, or a variable, cannot be used.
        DemoError: Some of the telemetry could not be delivered.
    """
    console = make_console()
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver()) if endpoint is None else None
        application = Application(receiver.grpc_endpoint if receiver else str(endpoint))
        stack.callback(application.shutdown)
        moody = MoodyListener()
        recorded = _play_recordings(application)
        ran = _run_pipelines(application, moody)
        application.export()
        if receiver is None:
            for shown in (*recorded, *ran):
                trace_id = format(shown.trace_id, "032x")
                line = printable(f"{trace_id}  {shown.name}  {jaeger.rstrip('/')}/trace/{trace_id}")
                console.print(line, soft_wrap=True, markup=False, emoji=False)
        else:
            arrived = receiver.spans
            for shown in (*recorded, *ran):
                console.print(render_waterfall([span for span in arrived if span.trace_id == shown.trace_id]))
                console.print()
            console.print(
                f"{len({span.trace_id for span in arrived})} traces with {len(arrived)} spans,"
                f" {len(receiver.metrics)} metric points and {len(receiver.logs)} log records arrived over OTLP."
            )
        console.print(
            f"{len(recorded)} executions were recorded from the real engine, {len(ran)} pipelines ran here; a listener"
            f" beside OpenTelemetry's raised {moody.raised} times, which affected nothing else."
        )


class MoodyListener(ExecutionListener):
    """Raises whenever a module starts, beside the other listeners of a composite.

    Attributes:
        raised: How often it raised.
    """

    def __init__(self) -> None:
        self.raised = 0

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:  # noqa: ARG002 - the SPI's
        self.raised += 1
        message = f"no mood for {module_name}"
        raise RuntimeError(message)


class _Names(ExecutionListener):
    """Notes the executions and their traces."""

    def __init__(self) -> None:
        self.shown: list[_Shown] = []

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        caller = trace.get_current_span().get_span_context()
        trace_id = caller.trace_id if caller.is_valid else trace_id_of(execution_id)
        self.shown.append(_Shown(trace_id, dag_name))


def _run_pipelines(application: Application, moody: MoodyListener) -> list[_Shown]:
    """Runs the pipelines as a user would, with other listeners beside OpenTelemetry's."""
    names = _Names()
    telemetry = OpenTelemetryListener(application.traces, application.metrics, application.logs)
    tracer = application.traces.get_tracer("demo")
    inputs = {"text": TEXT}
    with (
        page(application.traces) as url,
        _quiet(MoodyListener),
        Constellation(ExecutionListener.composite(moody, telemetry, names)) as engine,
    ):
        engine.run(WORD_COUNT, inputs)
        with suppress(ExecutionFailedError):
            engine.run(FAILING, inputs)
        running, gate = threading.Event(), threading.Event()
        execution = engine.start(slow_index(running, gate), inputs)
        running.wait(_TIMEOUT_S)
        execution.cancel()
        gate.set()
        engine.run(ARCHIVE, {**inputs, "url": url, "provider": application.traces})
        with tracer.start_as_current_span("GET /report", kind=SpanKind.SERVER):
            engine.run(WORD_COUNT, inputs)
    _close(telemetry)
    return names.shown


def _play_recordings(application: Application) -> list[_Shown]:
    """Replays what was recorded from the real engine, with its original times."""
    shown = []
    for name in _RECORDINGS:
        telemetry = OpenTelemetryListener(application.traces, NoOpMeterProvider(), application.logs, settle=1.0)
        recording = files("constellation_otel").joinpath("data", name)
        for line in recording.read_bytes().splitlines():
            event = decode_frame(bytes(msgspec.json.decode(line, type=_Recorded).frame))
            if isinstance(event, ExecutionStarted):
                shown.append(_Shown(trace_id_of(event.execution_id), event.dag_name))
            telemetry.accept(event)
        _close(telemetry)
    return shown


class _Recorded(msgspec.Struct):
    """A line of a recording; its other fields are about the recording itself."""

    frame: msgspec.Raw


def _close(telemetry: OpenTelemetryListener, timeout: float = _TIMEOUT_S) -> None:
    if not telemetry.close(timeout):
        message = f"the listener still held {telemetry.counters.held} events after {timeout:g} s"
        raise DemoError(message)


@contextmanager
def _quiet(listener: type[ExecutionListener]) -> Iterator[None]:
    """Keeps a listener's expected errors off the terminal."""
    logger = logging.getLogger(f"constellation_otel.listener.{listener.__name__}")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
