"""Callbacks become events: what every listener of ours begins with."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from msgspec.structs import replace
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from constellation_otel._support.log import RateLimitedLog
from constellation_otel._support.scope import ENGINE_KEY
from constellation_otel._support.text import shown
from constellation_otel.events.model import (
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleDescribed,
    ModuleFailed,
    ModuleStarted,
    redacted,
)
from constellation_otel.events.record import Attributes, BodyRecord, ModuleDetails, RecordedEvent
from constellation_otel.listener import ExecutionListener

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["EventListener", "WaitingDetails", "merged_details", "redacted_body", "started_now"]

_LOGGER: Final = logging.getLogger(__name__)
_MAX_SHOWN: Final = 200
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class EventListener(ExecutionListener):
    """Turns the callbacks into events and hands each to :meth:`accept`.

    It takes details of modules: what is told of one goes with the next event of it.

    Args:
        redact: Rewrites the message of each error before it is kept anywhere.
        max_details: Modules of which details may wait for an event; beyond them the oldest are dropped.
    """

    def __init__(self, redact: Callable[[str], str] | None = None, max_details: int = 100_000) -> None:
        self._redact = redact
        self._waiting = WaitingDetails(max_details)

    @property
    def dropped_details(self) -> int:
        """Modules whose details were dropped: too many waited, or their last event had been there before."""
        return self._waiting.dropped

    def accept(self, event: Event) -> None:
        """Takes an event; called in the callback, so it must not wait."""
        raise NotImplementedError

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        self.accept(started_now(execution_id, dag_name))

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        details = self._waiting.take(execution_id, module_id)
        self.accept(ModuleStarted(execution_id, module_id, module_name, time.time_ns(), details))

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        now, details = time.time_ns(), self._waiting.take(execution_id, module_id)
        body = self._body_of(execution_id, module_id, None)
        self.accept(ModuleCompleted(execution_id, module_id, module_name, duration_ms, now, details, body))

    def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
        now, details = time.time_ns(), self._waiting.take(execution_id, module_id)
        body = self._body_of(execution_id, module_id, error)
        info = ErrorInfo.of(error, self._redact)
        self.accept(ModuleFailed(execution_id, module_id, module_name, info, now, details, body))

    def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
        self._waiting.end(execution_id)
        self.accept(ExecutionCompleted(execution_id, dag_name, succeeded, duration_ms, time.time_ns()))

    def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
        self._waiting.end(execution_id)
        self.accept(ExecutionCancelled(execution_id, dag_name, time.time_ns()))

    def module_details(
        self,
        execution_id: UUID,
        module_id: UUID,
        *,
        module_name: str | None = None,
        parent_id: UUID | None = None,
        attempt: int = 1,
        attempt_of: UUID | None = None,
        outcome: str | None = None,
        reason: str | None = None,
        upstream: Sequence[UUID] = (),
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Keeps details of a module for its next event; one that did not run has an event of its own.

        As :class:`~constellation_otel.ModuleDetailsTaker` has it. What cannot be used is left out
        and counted where events are looked at.
        """
        known: Any = outcome
        copied: Any = _copied(dict, {} if attributes is None else attributes)
        details = ModuleDetails(parent_id, attempt, attempt_of, known, reason, _copied(tuple, upstream), copied)
        if outcome is None:
            self._waiting.put(execution_id, module_id, details)
            return
        waited = self._waiting.take(execution_id, module_id)
        if waited is not None:
            details = self._waiting.merged(waited, details) or details
        self.accept(ModuleDescribed(execution_id, module_id, module_name or "unknown", time.time_ns(), details))

    def _body_of(
        self,
        execution_id: UUID,  # noqa: ARG002 - for those that keep some
        module_id: UUID,  # noqa: ARG002
        error: BaseException | None,  # noqa: ARG002
    ) -> BodyRecord | None:
        """What the body of a module that has ended has set on its span."""
        return None


class WaitingDetails:
    """Details of modules that wait for the next event of them.

    Any thread may call it: each step is one call in C.

    Args:
        limit: Modules, at most; beyond them the oldest are dropped.

    Attributes:
        details: By the ids' numbers.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.details: dict[tuple[int, int], ModuleDetails] = {}
        self._drops = RateLimitedLog()

    @property
    def dropped(self) -> int:
        """Modules whose details were dropped."""
        return self._drops.count

    def put(self, execution_id: UUID, module_id: UUID, details: ModuleDetails) -> None:
        """Keeps details of a module; what was told of it before wins, key by key."""
        try:
            key = (execution_id.int, module_id.int)
            known = self.details.setdefault(key, details)
        except (AttributeError, TypeError):
            message = "details of a module with the id %s are dropped: ids have to be UUIDs"
            self._drops.write(_LOGGER, logging.WARNING, "id", message, shown(module_id)[:_MAX_SHOWN])
            return
        if known is not details:
            self.details[key] = self.merged(known, details) or known
        if len(self.details) > self._limit:
            self._drop("details of more than %d modules wait for an event; the oldest are dropped", self._limit)

    def merged(self, first: ModuleDetails, then: ModuleDetails) -> ModuleDetails | None:
        """As :func:`merged_details`; ``None`` where they are not what they are declared as, which is logged."""
        try:
            return merged_details(first, then)
        except Exception as error:  # noqa: BLE001 - the values' own code
            message = "details of a module that were told twice could not be put together; some are dropped"
            self._drops.write(_LOGGER, logging.WARNING, "merge", message, error=error)
            return None

    def take(self, execution_id: UUID, module_id: UUID) -> ModuleDetails | None:
        """What waits for an event of a module."""
        if not self.details:
            return None
        try:
            return self.details.pop((execution_id.int, module_id.int), None)
        except (AttributeError, TypeError):
            # of an event that will be rejected
            return None

    def end(self, execution_id: UUID) -> None:
        """Drops what was told after a module's last event, since the execution is over."""
        if not self.details:
            return
        number = getattr(execution_id, "int", None)
        for key in [key for key in self.details.copy() if key[0] == number]:
            if self.details.pop(key, None) is not None:
                message = "details of module %s of execution %s came after its last event, and are dropped"
                self._drops.write(_LOGGER, logging.WARNING, "late", message, UUID(int=key[1]), execution_id)

    def _drop(self, message: str, *values: object) -> None:
        try:
            self.details.pop(next(iter(self.details)), None)
        except (StopIteration, RuntimeError):
            # another thread has taken some meanwhile
            return
        self._drops.write(_LOGGER, logging.WARNING, "full", message, *values)


def merged_details(first: ModuleDetails, then: ModuleDetails) -> ModuleDetails:
    """What is known of a module of which details were told twice: key by key, what was told first."""
    attributes: Any = {**then.attributes, **first.attributes}
    return ModuleDetails(
        first.parent_id if first.parent_id is not None else then.parent_id,
        first.attempt if first.attempt != 1 else then.attempt,
        first.attempt_of if first.attempt_of is not None else then.attempt_of,
        first.outcome if first.outcome is not None else then.outcome,
        first.reason if first.reason is not None else then.reason,
        tuple(dict.fromkeys((*first.upstream, *then.upstream))),
        attributes,
    )


def redacted_body(record: BodyRecord, redact: Callable[[str], str]) -> BodyRecord:
    """What a body has set, with what the exceptions say that it has recorded, and its own status, rewritten."""
    events = tuple(
        RecordedEvent(event.name, event.timestamp_ns, _redacted_exception(event.attributes, redact))
        if event.name == "exception"
        else event
        for event in record.events
    )
    description = None if record.description is None else redacted(record.description, redact)
    return replace(record, events=events, description=description)


def _redacted_exception(attributes: Attributes, redact: Callable[[str], str]) -> Attributes:
    changed = dict(attributes)
    for name in ("exception.message", "exception.stacktrace"):
        text = attributes.get(name)
        # a stack trace has the messages of causes, and notes
        if isinstance(text, str) and text:
            changed[name] = redacted(text, redact)
    return changed


def _copied(kind: type[Any], value: Any) -> Any:
    """A copy that nobody changes; what cannot be copied is left out when the event is looked at."""
    try:
        return kind(value)
    except Exception:  # noqa: BLE001 - the value's own code
        return value


def started_now(execution_id: UUID, dag_name: str) -> ExecutionStarted:
    """The event of an execution that starts at this moment, called from the current span."""
    engine: Any = otel_context.get_value(ENGINE_KEY)
    if not trace.get_current_span().get_span_context().is_valid:
        return ExecutionStarted(execution_id, dag_name, time.time_ns(), engine=engine)
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    traceparent, tracestate = carrier["traceparent"], carrier.get("tracestate")
    return ExecutionStarted(execution_id, dag_name, time.time_ns(), traceparent, tracestate, engine=engine)
