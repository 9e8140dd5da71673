"""The metrics: histograms of durations, what is open, and what was lost.

One set of instruments for each meter provider, however many listeners share it:
an observable instrument can be made only once.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Final, Protocol

from opentelemetry.metrics import CallbackOptions, NoOpMeter, Observation

from constellation_otel._support.fork import PerProcess
from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.traces import DAG_NAME, ERROR_TYPE, MISSING, MODULE_NAME, OUTCOME, Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter, MeterProvider

__all__ = ["COUNTED", "Instruments", "Observed"]

COUNTED: Final[Mapping[str, tuple[str, str, str]]] = {
    "dropped": ("constellation.events.dropped", "{event}", "Events that found the queue full, or the listener closed."),
    "rejected": ("constellation.events.rejected", "{event}", "Events that could not be assembled."),
    "late": ("constellation.events.late", "{event}", "Events of executions or modules whose span had left."),
    "duplicate": ("constellation.events.duplicate", "{event}", "Events that repeated a fact that was known."),
    "abandoned": ("constellation.executions.abandoned", "{execution}", "Executions that were let go without an end."),
    "incomplete_executions": (
        "constellation.executions.incomplete",
        "{execution}",
        "Executions whose start or end never came.",
    ),
    "incomplete_modules": ("constellation.modules.incomplete", "{module}", "Modules whose start or end never came."),
    "failed": ("constellation.spans.failed", "{span}", "Spans that the application's SDK refused by raising."),
}
"""The counters that are metrics too: name, unit and description of each."""

_DURATION_BOUNDARIES: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""Seconds: from a function call to an hour's job."""


class Observed(Protocol):
    """What knows how much is open."""

    @property
    def open_executions(self) -> int: ...

    @property
    def open_modules(self) -> int: ...


class Instruments:
    """The instruments of a meter provider; see :meth:`of`."""

    def __init__(self, meter: Meter) -> None:
        # a dict, since listing one is a single step: the reader's thread does so while others add. Without a lock,
        # since the SDK's own is held then, which making instruments waits for
        self._observed: dict[weakref.ref[Observed], None] = {}
        self._execution_duration = meter.create_histogram(
            "constellation.execution.duration",
            "s",
            "Duration of an execution, as the engine reported it.",
            explicit_bucket_boundaries_advisory=_DURATION_BOUNDARIES,
        )
        self._module_duration = meter.create_histogram(
            "constellation.module.duration",
            "s",
            "Duration of a module, as the engine reported it.",
            explicit_bucket_boundaries_advisory=_DURATION_BOUNDARIES,
        )
        meter.create_observable_up_down_counter(
            "constellation.execution.active",
            [self._active_executions],
            "{execution}",
            "Executions that have started and not ended.",
        )
        meter.create_observable_up_down_counter(
            "constellation.module.active",
            [self._active_modules],
            "{module}",
            "Modules that have started and not ended.",
        )
        self._counters = {field: meter.create_counter(*instrument) for field, instrument in COUNTED.items()}

    @classmethod
    def of(cls, provider: MeterProvider) -> Instruments | None:
        """The instruments of a provider, made at the first call.

        Args:
            provider: A provider that is not a proxy.

        Returns:
            ``None`` where its meters do nothing.
        """
        meter = provider.get_meter(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)
        if isinstance(meter, NoOpMeter):
            return None
        with _REGISTRY.lock:
            instruments = _REGISTRY.instruments.get(provider)
            if instruments is None:
                instruments = _REGISTRY.instruments[provider] = cls(meter)
            return instruments

    def observe(self, observed: Observed) -> None:
        """Adds a listener to the sums of what is open, for as long as it lives."""
        self._observed[weakref.ref(observed, self._observed.pop)] = None

    def record(self, span: Span, context: Context) -> None:
        """Records a span's length, where it has one.

        Args:
            span: A finished span.
            context: Has the span as the current one: exemplars point at it.
        """
        missing = span.attributes.get(MISSING)
        if missing and ("end" in missing or span.start_ns == span.end_ns):  # type: ignore[operator]
            return
        attributes: dict[str, str] = {}
        for key in (DAG_NAME, MODULE_NAME, OUTCOME, ERROR_TYPE):
            value = span.attributes.get(key)
            if value is not None:
                attributes[key] = str(value)
        histogram = self._module_duration if MODULE_NAME in attributes else self._execution_duration
        histogram.record((span.end_ns - span.start_ns) / 1e9, attributes, context)

    def count(self, before: object, now: object) -> None:
        """Adds what counters have gained.

        Args:
            before: The counters when this was last called.
            now: The counters; fields are looked up by the names in :data:`COUNTED`.

        Raises:
            ExceptionGroup: What some of the application's counters raised; the others have counted.
        """
        errors = []
        for field, counter in self._counters.items():
            gained = getattr(now, field) - getattr(before, field)
            if gained:
                try:
                    counter.add(gained)
                except Exception as error:  # noqa: BLE001 - the application's; the other counters still count
                    errors.append(error)
        if errors:
            message = "not all counters took what they gained"
            raise ExceptionGroup(message, errors)

    def _active_executions(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(sum(observed.open_executions for observed in self._all_observed()))]

    def _active_modules(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(sum(observed.open_modules for observed in self._all_observed()))]

    def _all_observed(self) -> list[Observed]:
        return [observed for ref in list(self._observed) if (observed := ref()) is not None]


class _Registry:
    """The instruments of each meter provider, for as long as that lives."""

    lock = PerProcess(lambda: threading.Lock())  # noqa: PLW0108 - which class that is, is known when it is called

    def __init__(self) -> None:
        self.instruments: weakref.WeakKeyDictionary[MeterProvider, Instruments] = weakref.WeakKeyDictionary()


_REGISTRY: Final = _Registry()
