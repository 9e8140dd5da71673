"""Modules whose bodies set all sorts of things on their spans, importable by the processes of a pool or a cluster."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from opentelemetry import trace
from opentelemetry.trace import SpanContext, StatusCode, TraceFlags, TraceState

NOW = 1_795_465_363_577_123_456
ELSEWHERE = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("a", "b")]))


class WordsError(Exception):
    """Travels without its attributes."""

    def __reduce__(self) -> tuple[type[WordsError], tuple[str]]:
        return (WordsError, (str(self),))


class WordyError(Exception):
    """Cannot travel itself: an error that says the same does."""

    def __init__(self, *, words: str) -> None:
        super().__init__(words)


class LocalText(str):
    """A text that cannot travel."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError


def set_all() -> None:
    """Everything that a body can set, once."""
    span = trace.get_current_span()
    span.set_attribute("rows", 7)
    span.set_attributes({"tenant": LocalText("acme"), "many": ["a", "b"], "constellation.outcome": "mine"})
    span.add_event("cache miss", {"key": "k1"}, NOW)
    span.add_link(ELSEWHERE, {"why": "batch"})
    span.set_status(StatusCode.ERROR, "half of it")
    span.update_name("renamed")


def sets() -> str:
    set_all()
    return trace.get_current_span().name  # type: ignore[attr-defined, no-any-return] # it is one of the SDK's


async def sets_async() -> int:
    await asyncio.sleep(0)
    await asyncio.gather(asyncio.to_thread(set_all))
    return 1


def quiet() -> int:
    return 1


def fails() -> NoReturn:
    set_all()
    error = ValueError("boom")
    trace.get_current_span().record_exception(error)
    with trace.use_span(trace.get_current_span()):
        raise error


async def fails_async() -> NoReturn:
    await asyncio.sleep(0)
    fails()


def fails_oddly() -> NoReturn:
    set_all()
    raise WordsError("boom")


def fails_in_words() -> NoReturn:
    set_all()
    raise WordyError(words="boom")
