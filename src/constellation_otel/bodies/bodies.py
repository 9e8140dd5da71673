"""The spans of the bodies that run, as a listener keeps them: one for each module, from the first look at it."""

from __future__ import annotations

import logging
from itertools import repeat
from typing import TYPE_CHECKING, Final

from opentelemetry.context import Context

from constellation_otel._support.log import RateLimitedLog
from constellation_otel.bodies.body import Body
from constellation_otel.bodies.context import CURRENT_SPAN, traceparent_of
from constellation_otel.bodies.running import RUNNING, Unrecorded
from constellation_otel.bodies.span import BodySpan
from constellation_otel.events import redacted_body

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from constellation_otel.events import BodyRecord
    from constellation_otel.traces import Decision, Sampling

__all__ = ["Bodies"]

_LOGGER: Final = logging.getLogger(__name__)


class Bodies:
    """Keeps a span for each module whose body runs, with what was decided on its execution.

    Any thread may call it. The spans of an execution go when the decision is forgotten.

    Args:
        sampling: What is decided on each execution.
        max_open: Spans kept at most; beyond it the oldest are let go: what was set on them is lost.
        redact: Rewrites what an exception says that a body has recorded.

    Attributes:
        sampling: What is decided on each execution.
    """

    __slots__ = ("_decisions", "_let_go", "_max_open", "_redact", "_room", "sampling")

    def __init__(self, sampling: Sampling, max_open: int, redact: Callable[[str], str] | None = None) -> None:
        self.sampling = sampling
        # a call less for each module
        self._decisions = sampling.decisions
        self._max_open = max_open
        self._redact = redact
        # an item for each that there may be before all of them are counted: its next one is a call in C
        self._room = repeat(None, max_open)
        self._let_go = RateLimitedLog()

    def traceparent_of(self, execution_id: UUID) -> str | None:
        """The execution's own span as a W3C header value; ``None`` where it is not known, or not traced at all."""
        try:
            return traceparent_of(self.sampling.recall(execution_id))
        except AttributeError:
            # it is no UUID
            return None

    def end(self, execution_id: UUID) -> None:
        """Forgets an execution that is over, and the spans of its modules that have no end."""
        if hasattr(execution_id, "int"):
            self.sampling.forget(execution_id)

    @property
    def let_go(self) -> int:
        """Spans that were let go, since there were too many."""
        return self._let_go.count

    def context_of(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
        """The context in which a module's body runs.

        Args:
            execution_id: An execution that has started.
            module_id: The module.
            context: The caller's.

        Returns:
            One whose current span records what the body sets; ``context`` itself where the execution is not
            known, or not traced at all, or where another listener's span is current that records.
        """
        try:
            decision = self._decisions[execution_id.int]
        except KeyError:
            return context
        if context or not decision.has_bodies:
            shared = self._shared(decision, module_id.int, context)
            if shared is not None:
                return shared
            if isinstance(context, Body):
                # there is no chain of them where bodies start executions
                context = context.around
        body = Body()
        body.around = context
        body.decision = decision
        body.module_id = key = module_id.int
        body.has_ended = False
        body.span = None
        known: Body = decision.bodies.setdefault(key, body)
        if known is not body:
            span = known.current()
            return Context({**context, CURRENT_SPAN: span, RUNNING: span})
        try:
            next(self._room)
        except StopIteration:
            self._count()
        return body

    def _shared(self, decision: Decision, key: int, context: Context) -> Context | None:
        """The context where another listener keeps the module's span, or none is kept; ``None`` where one is to be."""
        bodies = decision.bodies
        if key not in bodies:
            # of another listener that is notified of the same
            if isinstance(context, Body):
                if _is_of(context, decision, key):
                    bodies[key] = context
                    return context
            elif isinstance(span := context.get(CURRENT_SPAN), BodySpan) and _is_of(span, decision, key):
                body = Body()
                body.around, body.decision, body.module_id = context, span.decision, key
                body.has_ended, body.span = span.has_ended, span
                bodies[key] = body
                return context
        if decision.has_bodies:
            return None
        ids = decision.ids
        if ids is None:
            # nothing of it is known here
            return context
        here = Unrecorded(ids.execution_id, key)
        return Context({**decision.context_of(ids.of_module(key), context), RUNNING: here})

    def take(self, execution_id: UUID, module_id: UUID, error: BaseException | None = None) -> BodyRecord | None:
        """Ends the span of a module's body.

        Args:
            execution_id: The execution.
            module_id: The module, which has ended.
            error: What it has failed with.

        Returns:
            What the body has set, if anything.
        """
        try:
            decision = self._decisions.get(execution_id.int)
            body: Body | None = None if decision is None else decision.bodies.pop(module_id.int, None)
        except (AttributeError, TypeError):
            # an id is none, and the event will be rejected
            return None
        return None if body is None else self.record_of(body, module_id, error)

    def record_of(self, body: Body, module_id: UUID, error: BaseException | None = None) -> BodyRecord | None:
        """Ends a span that was taken; what was set on it, if anything."""
        body.has_ended = True
        span = body.span
        if span is None:
            return None
        span.has_ended = True
        if not span.has_something:
            return None
        try:
            record = span.finish(error)
        except Exception as raised:  # noqa: BLE001 - of odd values, their own code
            message = "what the body of module %s has set on its span is lost, since reading it raised"
            self._let_go.write(_LOGGER, logging.ERROR, "finish", message, module_id, error=raised)
            return None
        return record if record is None or self._redact is None else redacted_body(record, self._redact)

    def _count(self) -> None:
        """Counts all of them, and lets the oldest go where there are too many."""
        decisions = self.sampling.remembered()
        total = sum(len(decision.bodies) for decision in decisions)
        for decision in decisions:
            while total > self._max_open and decision.bodies:
                self._drop_first(decision)
                total -= 1
        self._room = repeat(None, self._max_open - total)

    def _drop_first(self, decision: Decision) -> None:
        try:
            body: Body = decision.bodies.pop(next(iter(decision.bodies)))
        except (LookupError, StopIteration, RuntimeError):
            # another thread has taken some meanwhile
            return
        body.close()
        message = "more than %d modules run; what the body of the oldest sets on its span is lost"
        self._let_go.write(_LOGGER, logging.WARNING, "let go", message, self._max_open)


def _is_of(it: Body | BodySpan, decision: Decision, module_id: int) -> bool:
    """Whether it is of a module: several listeners have one span between them."""
    ours, theirs = it.decision.span_context, decision.span_context
    return (
        it.module_id == module_id
        and ours is not None
        and theirs is not None
        and (ours.trace_id, ours.span_id) == (theirs.trace_id, theirs.span_id)
    )
