"""Zero code: what ``opentelemetry-instrument`` loads, so that the engines of a program are traced without a line in it.

It needs ``opentelemetry-instrumentation``, which whoever loads this has.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import _logs, metrics, trace
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from constellation_otel._support.exit import call_where_atexit_is_not_reached
from constellation_otel._support.fork import PerProcess, after_fork_in_child
from constellation_otel._support.log import log
from constellation_otel.automatic import notify_further
from constellation_otel.listener import CompositeListener, ExecutionListener

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from constellation_otel.otel import OpenTelemetryListener

__all__ = ["ConstellationInstrumentor"]

_LOGGER: Final = logging.getLogger(__name__)
_CLOSE_TIMEOUT: Final = 5.0
_PROVIDERS: Final[Mapping[str, Callable[[], object]]] = {
    "tracer_provider": trace.get_tracer_provider,
    "meter_provider": metrics.get_meter_provider,
    "logger_provider": _logs.get_logger_provider,
}


class ConstellationInstrumentor(BaseInstrumentor):
    """Has every engine that has no listener for traces notify one :class:`~constellation_otel.OpenTelemetryListener`.

    Engines are every ``Constellation``, made before or after, and the sessions of Kedro. One whose own listener is,
    or has among others, an ``OpenTelemetryListener`` or an ``OtlpListener`` is left alone: it is traced already.

    :meth:`instrument` takes ``tracer_provider``, ``meter_provider`` and ``logger_provider``; the global ones are used
    where they are not given. :meth:`uninstrument` closes the listener, in 5 seconds at most: what is still open is
    abandoned. A forked child of multiprocessing or billiard, as Celery's processes are, ends without the SDK's own
    exit hook; there, what the SDK holds is exported at the child's end.
    """

    _making = PerProcess(lambda: threading.Lock())  # noqa: PLW0108 - which class that is, is known when it is called
    _listener: OpenTelemetryListener | None = None
    _options: Mapping[str, Any]

    def instrumentation_dependencies(self) -> Collection[str]:
        """Nothing: the engine is in this package."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        self._options = {name: kwargs.get(name) for name in _PROVIDERS}
        notify_further(self._further)
        after_fork_in_child(self._export_at_end)

    def _uninstrument(self, **_: Any) -> None:
        notify_further(None)
        with self._making:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.close(_CLOSE_TIMEOUT)

    def _export_at_end(self) -> None:
        call_where_atexit_is_not_reached(self._export)

    def _export(self) -> None:
        """Exports what the listener has handed over: such a program has no line that does."""
        if self._listener is None:
            return
        # the SDK's force_flush does not keep its timeout
        exporting = threading.Thread(target=self._flush, name="constellation-export", daemon=True)
        exporting.start()
        exporting.join(_CLOSE_TIMEOUT)
        if exporting.is_alive():
            message = "this process ends, and the SDK has not exported all within %g s; what it still holds is lost"
            log(_LOGGER, logging.WARNING, message, _CLOSE_TIMEOUT)

    def _flush(self) -> None:
        for name, get in _PROVIDERS.items():
            flush = getattr(self._options[name] or get(), "force_flush", None)
            if flush is not None:
                flush(int(_CLOSE_TIMEOUT * 1e3))

    def _further(self, own: ExecutionListener) -> ExecutionListener:
        # not before an engine is used: most programs that are instrumented have none
        from constellation_otel.otel import OpenTelemetryListener, SpanListener  # noqa: PLC0415

        listeners = own.listeners if isinstance(own, CompositeListener) else (own,)
        if any(isinstance(each, SpanListener) for each in listeners):
            return ExecutionListener.noop
        with self._making:
            if self._listener is None:
                self._listener = OpenTelemetryListener(**self._options)
            return self._listener
