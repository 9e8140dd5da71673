"""What the two span listeners share, and what a third one would have to say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider

from constellation_otel import OpenTelemetryListener
from constellation_otel.otel.exception_logs import log_exceptions
from constellation_otel.otel.span_listener import SpanListener
from constellation_otel.traces import Decision, SpanEvent
from deliveries import ListSink
from stories import E1, M1, STORY, assemble

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from opentelemetry._logs import LoggerProvider


class Records:
    """A provider of loggers that keeps what they are given."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def get_logger(self, *_: object) -> Any:
        return self

    def emit(self, *record: object, **parts: object) -> None:
        self.kept.append(record or parts)


LIMITS: dict[str, Any] = {"settle": 0.0, "max_open": 10, "idle_timeout": 10.0, "max_age": 10.0}


class Decides(SpanListener[Any]):
    """Says who decides, and no more."""

    def _decider(self) -> Any:
        return lambda *_: Decision(Context(), is_recorded=True)


class Observes(Decides):
    """Sees no span."""

    def _observer(self) -> Any:
        return None


@pytest.mark.parametrize("cls", [SpanListener, Decides])
def test_a_span_listener_has_to_say_who_decides_and_observes(cls: Callable[..., object]) -> None:
    with pytest.raises(NotImplementedError):
        cls(ListSink(takes="spans"), **LIMITS)


def test_a_span_listener_has_to_say_what_its_sink_is_sent() -> None:
    listener = Observes(ListSink(takes="spans"), **LIMITS)
    with pytest.raises(NotImplementedError):
        listener._as_items(assemble(STORY))
    assert listener.close(1.0)


def test_a_limit_out_of_its_range_opens_nothing_and_is_refused() -> None:
    sink = ListSink(takes="spans")
    with pytest.raises(ValueError, match="settle=-1"):
        Observes(sink, **LIMITS | {"settle": -1.0})
    assert sink.closed == 0


class WithContext(OpenTelemetryListener):
    """Has an idea of its own of a body's context."""

    def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
        return Context({**super().module_context(execution_id, module_id, context), "mine": module_id})


def test_a_subclass_may_have_its_own_context_of_a_body() -> None:
    listener = WithContext(TracerProvider(shutdown_on_exit=False), NoOpMeterProvider())
    listener.on_execution_start(E1, "d")
    context = listener.module_context(E1, M1, Context())
    assert context["mine"] == M1
    assert trace.get_current_span(context).is_recording()
    assert listener.close(1.0)


def test_a_listener_without_providers_keeps_no_details() -> None:
    listener = OpenTelemetryListener()
    listener.module_details(E1, M1, attempt=2)
    listener.join(E1, "d")
    assert (listener.counters.received, listener.dropped_details) == (0, 0)
    assert listener.close(1.0)


def test_only_the_models_exceptions_become_log_records() -> None:
    """An exception that a body has recorded stays on its span."""
    records = Records()
    provider: LoggerProvider = records  # type: ignore[assignment] # as far as it is used
    span = structs.replace(assemble(STORY)[2], events=(SpanEvent("exception", 1, {}),))
    log_exceptions(provider, span, Decision(Context()))
    assert records.kept == []
    log_exceptions(provider, assemble(STORY)[2], Decision(Context()))
    assert len(records.kept) == 1


def test_a_module_with_an_odd_id_ends_nobodys_body() -> None:
    """Its event is rejected, and counted."""
    listener = OpenTelemetryListener(TracerProvider(shutdown_on_exit=False), NoOpMeterProvider())
    odd: Any = "odd"
    listener.on_execution_start(E1, "d")
    listener.module_context(E1, M1, Context())
    listener.on_module_complete(odd, M1, "m", 1.0)
    listener.on_module_complete(E1, odd, "m", 1.0)
    assert listener.flush(1.0)
    assert listener.counters.rejected == 1
    assert listener.close(1.0)
