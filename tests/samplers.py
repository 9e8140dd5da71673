"""Samplers of invented applications."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, TraceState

if TYPE_CHECKING:
    from opentelemetry.context import Context


class Opinionated(Sampler):
    """Says more than yes or no.

    Attributes:
        asked: What it was asked: trace id, name, kind, attributes and the parent's trace state.
        threads: The name of the thread of each call.
        decision: What it answers.
    """

    def __init__(self, decision: Decision = Decision.RECORD_AND_SAMPLE) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.threads: list[str] = []
        self.decision = decision

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        links: Any = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        self.asked.append((trace_id, name, kind, dict(attributes), trace_state and trace_state.to_header()))
        self.threads.append(threading.current_thread().name)
        attributes = {"sampler.rule": "all", "constellation.outcome": "?"}
        return SamplingResult(self.decision, attributes, TraceState([("rule", "all")]))

    def get_description(self) -> str:
        return "Opinionated"


class NoOpinionError(Exception):
    """What :class:`RaisingSampler` raises."""


class RaisingSampler(Opinionated):
    """Raises whenever it is asked."""

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        self.asked.append(args)
        raise NoOpinionError("no opinion")
