"""What ``constellation-otel demo`` does: the main job on real input, with nothing else running.

It runs a few pipelines over this package's own documentation, and replays what was
recorded from the real engine, as if that had run just now. All telemetry is sent over
OTLP; what is drawn is what arrived.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager, suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import uuid4

import msgspec
from msgspec.structs import replace
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
_SHOWN_SCENARIOS: Final = frozenset({"fail", "cancel"})
"""Of the recordings: what is shown without being asked for all."""
_TIMEOUT_S: Final = 20.0
_CANCELLED_AFTER_S: Final = 0.1
"""How long the module runs that is cancelled: to be seen beside the others."""
_MS: Final = 1_000_000


class _Shown(NamedTuple):
    """A trace that the demo has made.

    Attributes:
        trace_id: Its id.
        name: The DAG's name.
        is_extra: Whether it is shown only where all are asked for.
    """

    trace_id: int
    name: str
    is_extra: bool = False


def run_demo(endpoint: str | None, jaeger: str, *, shows_all: bool = False) -> None:
    """Runs the pipelines, replays the recorded frames, and shows their traces.

    Args:
        endpoint: The URL of an OTLP endpoint to send everything to; each trace id is
            printed with a link. ``None`` sends to a receiver in this process, and each
            trace is drawn as it arrived.
        jaeger: The URL of Jaeger's UI, for the links.
        shows_all: Whether all of the recorded executions are shown, and not two of them only.

    Raises:
        ConfigurationError: The endpoint, or a variable, cannot be used.
        DemoError: Some of the telemetry could not be delivered.
    """
    console = make_console()
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver()) if endpoint is None else None
        application = Application(receiver.grpc_endpoint if receiver else str(endpoint))
        stack.callback(application.shutdown)
        service = f"{application.service}-recordings"
        moody = MoodyListener()
        # before the pipelines, which are then the latest in a backend's list
        recorded = _play_recordings(application, service)
        ran = _run_pipelines(application, moody)
        application.export()
        shown = [it for it in (*ran, *recorded) if shows_all or not it.is_extra]
        rest = len(ran) + len(recorded) - len(shown)
        if receiver is None:
            for it in shown:
                trace_id = format(it.trace_id, "032x")
                line = printable(f"{trace_id}  {it.name}  {jaeger.rstrip('/')}/trace/{trace_id}")
                console.print(line, soft_wrap=True, markup=False, emoji=False)
            said = f"They are of the service {application.service}, and where they were recorded, of {service}."
        else:
            arrived = receiver.spans
            for it in shown:
                spans = [span for span in arrived if span.trace_id == it.trace_id]
                console.print(render_waterfall(spans, with_links=True))
                console.print()
            said = (
                f"{len({span.trace_id for span in arrived})} traces with {len(arrived)} spans,"
                f" {len(receiver.metrics)} metric points and {len(receiver.logs)} log records arrived over OTLP."
            )
        if rest:
            console.print(f"{rest} more executions were recorded from the real engine; --all shows them, too.")
        console.print(printable(said), markup=False, emoji=False)
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
        running = threading.Event()
        execution = engine.start(slow_index(running), inputs)
        running.wait(_TIMEOUT_S)
        time.sleep(_CANCELLED_AFTER_S)
        execution.cancel()
        engine.run(ARCHIVE, {**inputs, "url": url, "provider": application.traces})
        with tracer.start_as_current_span("GET /report", kind=SpanKind.SERVER):
            engine.run(WORD_COUNT, inputs)
    _close(telemetry)
    return names.shown


def _play_recordings(application: Application, service: str) -> list[_Shown]:
    """Replays what was recorded from the real engine, as executions of other ids of which the last has just ended.

    A backend's search begins with the last hour, and two runs of the demo are two of each.
    """
    lines = [line for name in _RECORDINGS for line in _lines_of(name)]
    events = [decode_frame(bytes(line.frame)) for line in lines]
    # whole milliseconds, as the engine's own times are
    moved_ns = (time.time_ns() - max(event.timestamp_ns for event in events)) // _MS * _MS
    ids: defaultdict[UUID, UUID] = defaultdict(uuid4)
    shown = []
    traces, logs = application.providers_of(service)
    telemetry = OpenTelemetryListener(traces, NoOpMeterProvider(), logs, settle=1.0)
    for line, event in zip(lines, events, strict=True):
        execution_id = ids[event.execution_id]
        if isinstance(event, ExecutionStarted):
            is_extra = line.scenario not in _SHOWN_SCENARIOS
            shown.append(_Shown(trace_id_of(execution_id), event.dag_name, is_extra))
        telemetry.accept(replace(event, execution_id=execution_id, timestamp_ns=event.timestamp_ns + moved_ns))
    _close(telemetry)
    return shown


def _lines_of(recording: str) -> list[_Recorded]:
    lines = files("constellation_otel").joinpath("data", recording).read_bytes().splitlines()
    return [msgspec.json.decode(line, type=_Recorded) for line in lines]


class _Recorded(msgspec.Struct):
    """A line of a recording; its other fields are about the recording itself.

    Attributes:
        frame: What the engine sent.
        scenario: What was tried on the engine, where that is known.
    """

    frame: msgspec.Raw
    scenario: str | None = None


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
