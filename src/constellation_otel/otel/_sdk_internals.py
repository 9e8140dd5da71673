"""The names of OpenTelemetry's SDK that are private, or newer than the oldest version that is supported.

They are used here and nowhere else, each with what is done where a version does not have
it; a test says when one has changed. The oldest version is in pyproject.toml. ``_logs`` and
``_log_exporter`` do not count: OpenTelemetry publishes its logs under these names.
"""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, Final

from opentelemetry._logs import Logger
from opentelemetry.context import Context
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    SpanLimits,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    Tracer,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import SpanContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.metrics import Histogram, MeterProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.trace import Span, TraceFlags

__all__ = [
    "THEIR_LOGGERS",
    "NoThreadAfterFork",
    "Recorder",
    "emit_log",
    "give_dropped",
    "give_flags",
    "is_enabled",
    "is_proxy",
    "leave_to_parent",
    "limits_of",
    "needs_real_spans",
    "processors_of",
    "share_span_metrics",
    "shut_down",
]

THEIR_LOGGERS: Final = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.metrics._internal.export",
)
"""What repeats the answers of an endpoint in the log."""
_PASSING_ON: Final = (SynchronousMultiSpanProcessor, ConcurrentMultiSpanProcessor)
_EMPTY: Final = [
    getattr(processor, name, None)
    for processor in (SpanProcessor, BatchSpanProcessor, SimpleSpanProcessor)
    for name in ("on_start", "_on_ending")
]
"""What the SDK's own processors do when a span starts, and before it ends: nothing."""
_EMITS_PARTS: Final = "event_name" in signature(Logger.emit).parameters
"""Whether a logger makes the record itself, as it does since 1.38."""


def limits_of(tracer: Tracer) -> SpanLimits:
    """The application's span limits; those of the environment where the tracer does not have them."""
    limits: SpanLimits | None = getattr(tracer, "_span_limits", None)
    return SpanLimits() if limits is None else limits


def is_enabled(tracer: Tracer) -> bool:
    """Whether the tracer makes spans at all, as a tracer configurator may have decided."""
    asked = getattr(tracer, "_is_enabled", None)
    return True if asked is None else bool(asked())


def is_proxy(provider: MeterProvider) -> bool:
    """Whether it stands for a meter provider that is yet to be set; the API's class has no public name."""
    return type(provider).__name__ == "_ProxyMeterProvider"


def needs_real_spans(tracer: Tracer) -> bool:
    """Whether anything of the application looks at a span before it has ended.

    That is a processor that does something in ``on_start`` or ``_on_ending``, or may do so for
    all that is known, or the SDK's metrics of its own spans.
    """
    if type(getattr(tracer, "_tracer_metrics", None)).__name__ not in {"NoneType", "NoOpTracerMetrics"}:
        return True
    processor = tracer.span_processor
    processors: tuple[Any, ...] = (processor,)
    if type(processor) in _PASSING_ON and {"on_start", "_on_ending"}.isdisjoint(vars(processor)):
        processors = getattr(processor, "_span_processors", processors)
    return not all(map(_is_idle_until_the_end, processors))


def processors_of(tracer: Tracer) -> object:
    """What changes where the application adds a processor; compared by identity."""
    return getattr(tracer.span_processor, "_span_processors", tracer.span_processor)


def _is_idle_until_the_end(processor: Any) -> bool:
    # one that is no method, as an attribute of the processor itself may be, does something
    methods = (processor.on_start, getattr(processor, "_on_ending", None))
    return all(method is None or getattr(method, "__func__", method) in _EMPTY for method in methods)


def share_span_metrics(ours: Any, theirs: Tracer) -> None:
    """Has the SDK's metrics of its own spans count ours where theirs are counted, which only their provider knows."""
    metrics = getattr(theirs, "_tracer_metrics", None)
    if metrics is not None:
        ours._tracer_metrics = metrics  # noqa: SLF001 - the provider that knows is not known here


def give_flags(made: Span, flags: TraceFlags) -> None:
    """Gives a span of the SDK's the flags of its execution; an SDK before 1.42 does not set the random flag.

    A processor's ``on_start`` has seen the span without it.
    """
    context = made.get_span_context()
    if context.trace_flags != flags:
        marked: Any = made
        marked._context = SpanContext(  # noqa: SLF001 - it has no other way
            context.trace_id, context.span_id, context.is_remote, flags, context.trace_state
        )


def give_dropped(made: Span, **counts: int) -> None:
    """Counts on a span of the SDK's what was dropped before it was made.

    Args:
        made: The span, which has not ended.
        **counts: How many ``attributes``, ``events`` and ``links``.
    """
    for name, count in counts.items():
        kept = getattr(made, f"_{name}", None)
        if count and kept is not None:
            kept.dropped += count


def emit_log(logger: Logger, **parts: Any) -> None:
    """Emits a log record through any provider's logger.

    Args:
        logger: The logger.
        parts: What ``Logger.emit`` takes since 1.38. Before, it takes a record, which has to be the SDK's own.
    """
    if _EMITS_PARTS:
        logger.emit(**parts)
        return
    record = import_module("opentelemetry.sdk._logs").LogRecord
    logger.emit(record(**parts, resource=getattr(logger, "resource", None)))


def shut_down(processor: BatchLogRecordProcessor, timeout_millis: float) -> None:
    """Ends a processor's thread, within the time where the version can; its own method takes no timeout."""
    batch: Any = getattr(processor, "_batch_processor", None)
    if batch is not None:
        batch.shutdown(timeout_millis=timeout_millis)
    else:
        processor.shutdown()  # type: ignore[no-untyped-call] # the SDK's


def leave_to_parent(processor: BatchLogRecordProcessor) -> None:
    """Ends, in a forked child, the thread that the SDK starts again there; otherwise it has nothing to do."""
    batch: Any = getattr(processor, "_batch_processor", None)
    if batch is not None:
        batch._shutdown = True  # noqa: SLF001 - it has no other way


class _Amount:
    """What is left of a measurement without an exemplar."""

    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value


_MATCHES: Final = import_module("opentelemetry.sdk.metrics._internal._view_instrument_match")
_KEY_OF: Final[Callable[[dict[str, str]], object]] = getattr(
    _MATCHES, "_hash_attributes", lambda attributes: frozenset(attributes.items())
)
_NO_CONTEXT: Final = Context()


class Recorder:
    """Records amounts with the same attributes and without an exemplar, as ``histogram.record`` does.

    The first time that does it; then it is known where each of the SDK's readers and views
    adds them up, and the way there, most of the cost, is not gone again. Where this is
    not to be found, ``histogram.record`` does it every time.

    Args:
        histogram: An instrument of any provider.
        attributes: As its ``record`` takes them.
    """

    def __init__(self, histogram: Histogram, attributes: dict[str, str]) -> None:
        self._histogram: Any = histogram
        self._attributes = attributes
        self._consumer: Any = getattr(histogram, "_measurement_consumer", None)
        self._is_enabled: Callable[[], bool] | None = getattr(histogram, "_is_enabled", None)
        # a reader that is added, or taken away, makes it another one
        self._storages: object = None
        self._aggregates: list[Callable[[_Amount, bool], object]] = []

    def record(self, amount: float) -> None:
        """Records a number of at least 0."""
        storages = self._storages
        if storages is None or self._consumer._reader_storages is not storages:  # noqa: SLF001 - what this module is for
            self._histogram.record(amount, self._attributes, _NO_CONTEXT)
            self._look_up()
        elif self._is_enabled is None or self._is_enabled():
            measured = _Amount(amount)
            for aggregate in self._aggregates:
                aggregate(measured, False)

    def _look_up(self) -> None:
        storages = getattr(self._consumer, "_reader_storages", None)
        try:
            self._aggregates = [
                match._attributes_aggregation[self._key_of(match)].aggregate  # noqa: SLF001 - what this module is for
                for storage in (storages or {}).values()
                for match in storage._get_or_init_view_instrument_match(self._histogram)  # noqa: SLF001 - what this module is for
            ]
        except (AttributeError, LookupError):
            storages = None
        self._storages = storages

    def _key_of(self, match: Any) -> object:
        kept = match._view._attribute_keys  # noqa: SLF001 - what this module is for
        if kept is None:
            return _KEY_OF(self._attributes)
        return _KEY_OF({name: value for name, value in self._attributes.items() if name in kept})


class NoThreadAfterFork:
    """For a metric reader whose thread the SDK does not start again in a forked child, where nobody has use for it."""

    def _at_fork_reinit(self) -> None:
        """Does nothing."""
