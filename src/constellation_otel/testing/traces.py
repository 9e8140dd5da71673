"""What the engines of a test have done, as traces in memory: behind the fixture ``constellation_traces``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from opentelemetry._logs import NoOpLoggerProvider
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from constellation_otel.automatic import further_listener, notify_further
from constellation_otel.listener import CompositeListener, ExecutionListener
from constellation_otel.otel import OpenTelemetryListener
from constellation_otel.receiver import decode_traces
from constellation_otel.testing.span_trees import span_tree

if TYPE_CHECKING:
    from constellation_otel.traces import Span

__all__ = ["ConstellationTraces"]

_TIMEOUT: Final = 30.0


class ConstellationTraces:
    """Keeps the traces of every ``Constellation`` of this process, while it is entered; no engine has to say so.

    Nothing goes over a network, everything is sampled, and there are no metrics and logs. An application's own
    providers are left alone.

    Attributes:
        listener: For what is no ``Constellation``: give it to an adapter, or notify it by hand.
        tracer_provider: Keeps spans besides: give it to the instrumentation of what modules' bodies call.
    """

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(ALWAYS_ON, shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.listener = OpenTelemetryListener(self.tracer_provider, NoOpMeterProvider(), NoOpLoggerProvider())

    def __enter__(self) -> Self:
        self._before = further_listener()
        notify_further(self._further)
        return self

    def __exit__(self, *_: object) -> None:
        notify_further(self._before)
        self.listener.close(_TIMEOUT)
        self.tracer_provider.shutdown()

    def spans(self) -> list[Span]:
        """The spans so far: of modules that have ended, and of executions that have.

        Raises:
            TimeoutError: Something was not made within 30 seconds.
        """
        if not self.listener.flush(_TIMEOUT):
            message = f"the spans of {self.listener.counters.held} events were not made within {_TIMEOUT:g} s"
            raise TimeoutError(message)
        request = encode_spans(self._exporter.get_finished_spans())
        return [received.span for received in decode_traces(request.SerializeToString())]

    def tree(self) -> str:
        """The same as text without ids and times: see :func:`~constellation_otel.testing.span_tree`."""
        return span_tree(self.spans())

    def _further(self, own: ExecutionListener) -> ExecutionListener:
        listeners = own.listeners if isinstance(own, CompositeListener) else (own,)
        return ExecutionListener.noop if self.listener in listeners else self.listener
