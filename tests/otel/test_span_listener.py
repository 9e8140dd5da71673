"""What the two span listeners share, and what a third one would have to say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.context import Context

from constellation_otel.otel.span_listener import SpanListener
from constellation_otel.traces import Decision
from deliveries import ListSink
from stories import STORY, assemble

if TYPE_CHECKING:
    from collections.abc import Callable

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
