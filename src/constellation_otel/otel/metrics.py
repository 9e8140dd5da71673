"""The metrics: histograms of durations, what is open, and what was lost.

One set of instruments for each meter provider, however many listeners share it:
an observable instrument can be made only once.
"""

from __future__ import annotations

import threading
import time
import weakref
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final, Protocol

from msgspec import Struct, field
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Histogram, NoOpMeter, Observation

from constellation_otel._support.fork import PerProcess
from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.otel._sdk_internals import Recorder
from constellation_otel.traces import ATTEMPT, DAG_NAME, ERROR_TYPE, MODULE_NAME, OUTCOME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from opentelemetry.metrics import Meter, MeterProvider

    from constellation_otel.traces import AttributeValue, Decision, Span

__all__ = ["COUNTED", "Instruments", "Observed"]

COUNTED: Final[Mapping[str, tuple[str, str, str]]] = {
    "dropped": ("constellation.events.dropped", "{event}", "Events that found the queue full, or the listener closed."),
    "rejected": ("constellation.events.rejected", "{event}", "Events that could not be assembled."),
    "late": ("constellation.events.late", "{event}", "Events of executions or modules whose span was already emitted."),
    "duplicate": ("constellation.events.duplicate", "{event}", "Events that repeated what was already known."),
    "abandoned": ("constellation.executions.abandoned", "{execution}", "Executions abandoned without an end."),
    "incomplete_executions": (
        "constellation.executions.incomplete",
        "{execution}",
        "Executions whose start or end never came.",
    ),
    "incomplete_modules": ("constellation.modules.incomplete", "{module}", "Modules whose start or end never came."),
    "failed": ("constellation.spans.failed", "{span}", "Spans for which the application's SDK raised."),
}
"""The counters that are metrics too: name, unit and description of each."""

_DURATION_BOUNDARIES: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""Seconds: from a function call to an hour's job."""


_EXEMPLAR_EVERY_S: Final = 1.0
_MAX_KINDS: Final = 4_096
"""Sets of attributes whose histogram is remembered; the SDK itself has 2,000 of an instrument."""
_MAX_ATTEMPT: Final = 10
"""What stands for all later attempts, since each number is a series of its own."""


class _Kind(Struct):
    """What the durations of one set of attributes go to.

    Attributes:
        histogram: The instrument.
        attributes: The attributes.
        recorder: Records those that are no exemplar.
        exemplar_due: When the next exemplar of a bucket is due, in seconds of :func:`time.monotonic`.
    """

    histogram: Histogram
    attributes: dict[str, str]
    recorder: Recorder
    exemplar_due: dict[int, float] = field(default_factory=dict)


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
        self._kinds: dict[tuple[AttributeValue, ...], _Kind] = {}
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

    def record(self, span: Span, decision: Decision) -> None:
        """Records the duration of what a span is of, where that is known.

        An exemplar that points at the span goes with the first of each second, outcome and
        bucket: a data point keeps one a bucket, and most of the cost would be for the others.

        Args:
            span: A finished span.
            decision: What was decided on its execution.
        """
        attributes = span.attributes
        duration_ns = span.duration_ns
        if duration_ns is None:
            return
        get = attributes.get
        attempt: Any = get(ATTEMPT)
        if attempt is not None:
            attempt = min(attempt, _MAX_ATTEMPT)
        key = (get(DAG_NAME), get(MODULE_NAME), get(OUTCOME), get(ERROR_TYPE), attempt)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kind_of(key)
        duration_s = duration_ns / 1e9
        context = self._exemplar_of(kind, duration_s, span, decision)
        if context is None:
            kind.recorder.record(duration_s)
        else:
            kind.histogram.record(duration_s, kind.attributes, context)

    def _kind_of(self, key: tuple[AttributeValue, ...]) -> _Kind:
        attributes = {
            name: str(value)
            for name, value in zip((DAG_NAME, MODULE_NAME, OUTCOME, ERROR_TYPE, ATTEMPT), key, strict=True)
            if value is not None
        }
        histogram = self._module_duration if MODULE_NAME in attributes else self._execution_duration
        kind = _Kind(histogram, attributes, Recorder(histogram, attributes))
        if len(self._kinds) >= _MAX_KINDS:
            self._kinds.clear()
        self._kinds[key] = kind
        return kind

    def _exemplar_of(self, kind: _Kind, duration_s: float, span: Span, decision: Decision) -> Context | None:
        """Has the span as the current one; ``None`` where no exemplar is due."""
        if not decision.is_recorded:
            return None
        bucket = bisect_left(_DURATION_BOUNDARIES, duration_s)
        now = time.monotonic()
        if kind.exemplar_due.get(bucket, 0.0) > now:
            return None
        kind.exemplar_due[bucket] = now + _EXEMPLAR_EVERY_S
        return decision.context_of(span.span_id, Context())

    def count(self, gained: Mapping[str, int]) -> None:
        """Adds what counters have gained.

        Args:
            gained: By the names in :data:`COUNTED`.

        Raises:
            ExceptionGroup: What some of the application's counters raised; the others have counted.
        """
        errors = []
        for name, number in gained.items():
            if number:
                try:
                    self._counters[name].add(number)
                except Exception as error:  # noqa: BLE001 - the application's; the other counters still count
                    errors.append(error)
        if errors:
            message = "some counters raised"
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
