"""Events and spans that the checks send: ordinary ones, and odd ones that a sink has to take all the same."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID, uuid4

from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
    validated,
)
from constellation_otel.traces import Span, SpanEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["key_of", "odd_items", "plain_items"]

_LAST_NS: Final = 2**63 - 1
_ODD_TEXTS: Final = (
    " ",
    "control characters \x00\x1b[31m\r\n\x7f",
    "a lone surrogate \ud800",
    "%s %d {0} {name} %(name)s '; DROP TABLE events; --",
    "\N{PILE OF POO}\N{RIGHT-TO-LEFT OVERRIDE}\N{CJK UNIFIED IDEOGRAPH-6F22}",
    "x" * 100_000,
)


def key_of(item: object) -> Hashable:
    """What an event or a span is known by, when it comes back from where it was sent."""
    if isinstance(item, Span):
        return item.trace_id, item.span_id
    return type(item).__name__, getattr(item, "execution_id", None), getattr(item, "module_id", None)


def plain_items(takes: Literal["events", "spans"], count: int) -> list[Any]:
    """Ordinary items, each of an execution of its own, so that none is like one that was sent before."""
    if takes == "spans":
        return [_span(f"module-{number}") for number in range(count)]
    return [_EVENTS[number % len(_EVENTS)](f"name-{number}", time.time_ns()) for number in range(count)]


def odd_items(takes: Literal["events", "spans"]) -> list[Any]:
    """Items as they may come: every field is of its type, and what is in it is unusual."""
    if takes == "spans":
        return _odd_spans()
    events = [make(text, time.time_ns()) for text in _ODD_TEXTS for make in _EVENTS]
    events += [make("at the edge of time", at) for at in (0, _LAST_NS) for make in _EVENTS]
    none, every = UUID(int=0), UUID(int=2**128 - 1)
    events += [
        ModuleStarted(none, none, "zeros", time.time_ns()),
        ModuleStarted(every, every, "ones", time.time_ns()),
        ModuleStarted(uuid4(), None, "a module without an id", time.time_ns()),
        ModuleCompleted(uuid4(), uuid4(), "no duration", None, time.time_ns()),
        ModuleCompleted(uuid4(), uuid4(), "a short one", 5e-324, time.time_ns()),
        ModuleFailed(uuid4(), uuid4(), "nothing is known", ErrorInfo(None, None), time.time_ns()),
        ExecutionCompleted(uuid4(), "failed", False, 0.0, time.time_ns()),
        ExecutionStarted(uuid4(), "not a traceparent", time.time_ns(), "zz", "="),
    ]
    # as they are when they reach a sink
    return [validated(event).event for event in events]


_EVENTS: Final[tuple[Callable[[str, int], Event], ...]] = (
    lambda name, at: ExecutionStarted(uuid4(), name, at),
    lambda name, at: ModuleStarted(uuid4(), uuid4(), name, at),
    lambda name, at: ModuleCompleted(uuid4(), uuid4(), name, 2.5, at),
    lambda name, at: ModuleFailed(uuid4(), uuid4(), name, ErrorInfo("ValueError", name, None, f"{name}\n"), at),
    lambda name, at: ExecutionCompleted(uuid4(), name, True, 4.0, at),
    lambda name, at: ExecutionCancelled(uuid4(), name, at),
)


def _odd_spans() -> list[Span]:
    values: dict[str, Any] = {
        "none": None,
        "empty": "",
        "false": False,
        "large": _LAST_NS,
        "small": -(2**63),
        "infinite": float("inf"),
        "bytes": b"\xff\x00",
        "mixed": [1, "two", [3.0, None], {"four": b"5"}],
        "map": {"deeper": {"still": [[]]}},
        "x" * 10_000: "a long name",
        "texts": list(_texts()),
    }
    return [
        *(_span(text, attributes={text: text}) for text in _texts()),
        _span("odd attributes", attributes=values),
        _span("failed", status=StatusCode.ERROR, status_description="\x00\x1b[31m"),
        _span("failed without a word", status=StatusCode.ERROR),
        _span("at the beginning of time", start_ns=0, end_ns=0),
        _span("at the end of time", start_ns=0, end_ns=_LAST_NS),
        _span("small ids", trace_id=1, span_id=1, parent_span_id=2**64 - 1),
        _span("large ids", trace_id=2**128 - 1, span_id=2**64 - 1, parent_span_id=1, trace_state="vendor=value"),
        _span("many events", events=tuple(SpanEvent("again", at, {"at": at}) for at in range(1_000))),
    ]


def _texts() -> list[str]:
    # what makes spans cleans their texts
    return [text.encode(errors="replace").decode() for text in _ODD_TEXTS]


def _span(name: str, **fields: Any) -> Span:
    now = time.time_ns()
    known: dict[str, Any] = {
        "trace_id": uuid4().int,
        "span_id": uuid4().int >> 64,
        "parent_span_id": None,
        "trace_state": "",
        "trace_flags": 1,
        "name": name,
        "kind": SpanKind.INTERNAL,
        "start_ns": now - 1_000_000,
        "end_ns": now,
        "attributes": {"number": 1},
    }
    return Span(**(known | fields))
