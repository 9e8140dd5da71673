"""The span that is current while a module's body runs: a real one to whoever sets something on it.

The module's span itself is made when its end event is dealt with, as all spans of this package
are. What the body has set by then is frozen in the callback of its end, and is part of that event.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec.structs import replace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, StatusCode, get_current_span, set_span_in_context

from constellation_otel._support.log import RateLimitedLog
from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel._support.text import message_of
from constellation_otel.events import BodyRecord, RecordedEvent, RecordedLink
from constellation_otel.traces import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from opentelemetry.context import Context
    from opentelemetry.util.types import Attributes

__all__ = ["BodyRecord", "BodySpan", "recording"]

_LOGGER: Final = logging.getLogger(__name__)
_LIMITED: Final = RateLimitedLog()
_SCOPE: Final = InstrumentationScope(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)
_NO_RESOURCE: Final = Resource.get_empty()
_EMPTY: Final = BodyRecord()
_ELSEWHERE: Final = BodyRecord(is_elsewhere=True)
_STATUSES: Final[dict[StatusCode, Literal["unset", "ok", "error"]]] = {
    StatusCode.UNSET: "unset",
    StatusCode.OK: "ok",
    StatusCode.ERROR: "error",
}


class _Made(Span):
    """A span of the SDK's, whose own class is for its tracers only."""


class BodySpan(Span):
    """Records what a module's body sets on it, from any thread or task, within the SDK's limits.

    It is the SDK's span, but for two things. Nothing is allocated before something is set or read, so that
    a body that does neither costs nothing. And the engine ends it, with its module: what the body does to
    end it is left out, with a warning.

    Attributes:
        decision: What was decided on its execution, which is recorded.
        module_id: The module's id, as a number.
        module_name: The module's name, where the engine has said it.
        has_ended: Whether its module has ended.
        is_elsewhere: Whether the body runs in another process than the one that submitted it.
        remote: What it has set there.
    """

    decision: Decision
    module_id: int
    module_name = ""
    has_ended = False
    is_elsewhere = False
    remote: BodyRecord | None = None

    def __init__(self) -> None:
        # what the SDK's own makes is made where something is set; this fires for every module
        return

    def is_recording(self) -> bool:
        return not self.has_ended

    def end(self, end_time: int | None = None) -> None:  # noqa: ARG002 - the SDK's signature
        """Does nothing: it ends with its module."""
        message = "a module's body has ended its own span, which ends with the module; that is left out"
        _LIMITED.write(_LOGGER, logging.WARNING, "end", message)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: FBT002 - the SDK's signature
    ) -> None:
        self._exceptions.add(id(exception))
        super().record_exception(exception, attributes, timestamp, escaped)

    def is_of(self, decision: Decision, module_id: int) -> bool:
        """Whether it is of a module: several listeners have one span between them."""
        ours, theirs = self.decision.span_context, decision.span_context
        return (
            self.module_id == module_id
            and ours is not None
            and theirs is not None
            and (ours.trace_id, ours.span_id) == (theirs.trace_id, theirs.span_id)
        )

    def finish(self, error: BaseException | None = None) -> BodyRecord | None:
        """Ends it with its module; what is set from now on does nothing, with the SDK's own warning.

        Args:
            error: What the module has failed with, which is recorded by the module's own event.

        Returns:
            What was set; ``None`` where there is nothing to be said.
        """
        self.has_ended = True
        if self.remote is not None:
            return replace(self.remote, is_elsewhere=True)
        if "_made" not in self.__dict__:
            return _ELSEWHERE if self.is_elsewhere else None
        if self._end_time is None:
            super().end()
        record = self._record(error)
        return None if record == _EMPTY else record

    def __getattr__(self, name: str) -> Any:
        """What the SDK's own methods look for, and is not there yet."""
        if not name.startswith("_") or name.startswith("__"):
            raise AttributeError(name=name, obj=self)
        own = self.__dict__
        if name == "_context":
            ids = self.decision.ids
            span_id = 0 if ids is None else ids.of_module(self.module_id)
            return own.setdefault(name, self.decision.span_context_of(span_id))
        made = own.get("_made")
        if made is None:
            made = own.setdefault("_made", self._make())
        # threads that come at once have the same values; none of them is set anew where it has changed since
        for each, value in made.items():
            own.setdefault(each, value)
        if self.has_ended and own["_end_time"] is None:
            super().end()
        if name not in own:
            raise AttributeError(name=name, obj=self)
        return own[name]

    def _make(self) -> dict[str, Any]:
        """What the SDK's constructor makes of a span."""
        made = _Made(
            self.module_name or "module",
            self.get_span_context(),
            parent=self.decision.span_context,
            resource=_NO_RESOURCE,
            limits=self.decision.limits or SpanLimits(),
            instrumentation_scope=_SCOPE,
        )
        made.start()
        return {**vars(made), "_exceptions": set[int](), "_first_name": made.name}

    def _record(self, error: BaseException | None) -> BodyRecord:
        own = None if error is None or id(error) not in self._exceptions else _type_and_message(error)
        events = [
            RecordedEvent(event.name, event.timestamp, _plain(event.attributes))
            for event in self.events
            if own is None or event.name != "exception" or _said(event.attributes) != own
        ]
        links = [
            RecordedLink(
                format(link.context.trace_id, "032x"),
                format(link.context.span_id, "016x"),
                _plain(link.attributes),
                link.context.trace_state.to_header(),
                int(link.context.trace_flags),
            )
            for link in self.links
        ]
        return BodyRecord(
            _plain(self.attributes),
            tuple(events),
            tuple(links),
            _STATUSES[self.status.status_code],
            self.status.description,
            None if self.name == self._first_name else self.name,
            self.dropped_attributes,
            self.dropped_events,
            self.dropped_links,
            self.is_elsewhere,
        )


def recording(module_id: UUID, context: Context) -> tuple[BodySpan | None, Context]:
    """A span for the body of a module that another process has submitted, in place of the current one.

    Args:
        module_id: The module.
        context: Has the module's own span as the current one.

    Returns:
        The span, ``None`` where that is not sampled, and the context to make current.
    """
    known = get_current_span(context).get_span_context()
    if not known.trace_flags.sampled:
        return None, context
    span = BodySpan()
    span.decision, span.module_id = Decision(context, known, is_recorded=True), module_id.int
    vars(span)["_context"] = SpanContext(known.trace_id, known.span_id, False, known.trace_flags, known.trace_state)
    return span, set_span_in_context(span, context)


def _plain(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy that nobody changes; what is in it is looked at where events are."""
    return dict(attributes or {})


def _type_and_message(error: BaseException) -> tuple[object, object]:
    """As the SDK records them."""
    cls = type(error)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return name, message_of(error)


def _said(attributes: Mapping[str, Any] | None) -> tuple[object, object]:
    known = attributes or {}
    return known.get("exception.type"), known.get("exception.message")
