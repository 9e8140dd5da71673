"""The span that is current while a module's body runs: a real one to whoever sets something on it.

The module's span itself is made when its end event is dealt with, as all spans of this package
are. What the body has set by then is frozen in the callback of its end, and is part of that event.
"""

from __future__ import annotations

import logging
from collections import deque
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec.structs import replace
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode

from constellation_otel._support.log import RateLimitedLog
from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel._support.text import message_of, shown
from constellation_otel.events import MAX_VALUE, BodyRecord, RecordedEvent, RecordedLink, cleaned_body
from constellation_otel.traces import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from uuid import UUID

    from opentelemetry.context import Context
    from opentelemetry.trace import Link
    from opentelemetry.util.types import Attributes

__all__ = ["BodyRecord", "BodySpan", "recording"]

_LOGGER: Final = logging.getLogger(__name__)
_LIMITED: Final = RateLimitedLog()
_SCOPE: Final = InstrumentationScope(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)
_NO_RESOURCE: Final = Resource.get_empty()
_EXCEPTION: Final = "exception"
_MAX_EXCEPTIONS: Final = 1_024
_UNNAMED: Final = str(b"module", "ascii")
"""The name of a span whose module's is not known; a text that is the same one is still another object."""
_EMPTY: Final = BodyRecord()
_ELSEWHERE: Final = BodyRecord(is_elsewhere=True)
_STATUSES: Final[dict[StatusCode, Literal["unset", "ok", "error"]]] = {
    StatusCode.UNSET: "unset",
    StatusCode.OK: "ok",
    StatusCode.ERROR: "error",
}


class _Recorder(Span):
    """A span of the SDK's, whose own class is for its tracers only."""


class BodySpan(trace.Span, ReadableSpan):
    """Records what a module's body sets on it, from any thread or task, within the SDK's limits.

    What is set, and what is read of it as of the SDK's ``ReadableSpan``, a span of the SDK's keeps, which is made when
    that is first done: a body that does neither costs next to nothing. The engine ends it, with its module: what the
    body does to end it is left out, with a warning. Whatever it is given, it does not raise, and keeps no more of a
    value than will be kept in the end.

    Args:
        decision: What was decided on its execution, which is recorded.
        module_id: The module's id, as a number.
        module_name: The module's name; empty where the engine has not said it.
        known_context: Its span context, where it is not computed.

    Attributes:
        decision: The same.
        module_id: The same.
        module_name: The same.
        has_something: Whether there may be anything to be said at its end.
        has_ended: Whether its module has ended.
        is_elsewhere: Whether the body runs in another process than the one that submitted it.
        remote: What it has set there.
        recorder: Keeps what is set, once something is.
        exceptions: What tells the exceptions apart that were recorded, and when.
    """

    module_name = ""
    has_something = False
    has_ended = False
    is_elsewhere = False
    remote: BodyRecord | None = None
    recorder: _Recorder | None = None

    # the SDK's own is called where there is something to be kept
    def __init__(
        self, decision: Decision, module_id: int, module_name: str = "", known_context: SpanContext | None = None
    ) -> None:
        self.decision = decision
        self.module_id = module_id
        self.module_name = module_name
        self._known_context = known_context
        self.exceptions: deque[tuple[tuple[int, int], int]] = deque(maxlen=_MAX_EXCEPTIONS)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.module_name or _UNNAMED!r}, context={self.get_span_context()})"

    @property
    def execution_id(self) -> UUID | None:
        """The execution's id, where it is known."""
        return self.decision.execution_id

    def get_span_context(self) -> SpanContext:
        known = self._known_context
        if known is None:
            decision = self.decision
            made = decision.span_context_of(0 if decision.ids is None else decision.ids.of_module(self.module_id))
            known = self._known_context = made or trace.INVALID_SPAN_CONTEXT
        return known

    def is_recording(self) -> bool:
        return not self.has_ended

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self._try("set_attributes", _all_cut(attributes))

    def set_attribute(self, key: str, value: Any) -> None:
        self._try("set_attribute", key, _cut(value))

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        at_ns = timestamp if isinstance(timestamp, int) else None
        self._try("add_event", _text(name), _all_cut(attributes), at_ns)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        self._try("add_link", context, _all_cut(attributes))

    def update_name(self, name: str) -> None:
        self._try("update_name", _text(name))

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self._try("set_status", status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: FBT002 - the SDK's signature
    ) -> None:
        at_ns = timestamp if isinstance(timestamp, int) else time_ns()
        if not self._try("record_exception", exception, attributes, at_ns, escaped):
            # its own code has raised, where the SDK asks it for its message
            kind, message = _type_and_message(exception)
            self.add_event(_EXCEPTION, {"exception.type": kind, "exception.message": message}, at_ns)
        # by which its own event is known: another one may say the same
        self.exceptions.append((_mark_of(exception), at_ns))

    def _try(self, name: str, *arguments: Any) -> bool:
        """Calls the recorder's method; what that raises of odd values costs the body nothing but what it sets.

        Returns:
            Whether it has not raised.
        """
        try:
            getattr(self._made(), name)(*arguments)
        except Exception as error:  # noqa: BLE001 - the values' own code, too
            message = "%s of a module's span raised, and what it was to set is left out"
            _LIMITED.write(_LOGGER, logging.WARNING, name, message, name, error=error)
            return False
        return True

    def end(self, end_time: int | None = None) -> None:  # noqa: ARG002 - the SDK's signature
        """Does nothing: it ends with its module."""
        message = "a module's body has ended its own span, which ends with the module; that is left out"
        _LIMITED.write(_LOGGER, logging.WARNING, "end", message)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """As the SDK's own: an exception is recorded, and is the status; the span goes on."""
        if error is not None and self.is_recording():
            self.record_exception(error, escaped=True)
            self.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {message_of(error)}"))
        super().__exit__(kind, error, traceback)

    def __getattr__(self, name: str) -> Any:
        """What of ``ReadableSpan`` is asked for, which the recorder has."""
        if name.startswith("__"):
            raise AttributeError(name=name, obj=self)
        return getattr(self._made(), name)

    def close(self) -> None:
        """Ends it; what is set from now on does nothing, with the SDK's own warning."""
        self.has_ended = True
        if self.recorder is not None:
            _end(self.recorder)

    def finish(self, error: BaseException | None = None) -> BodyRecord | None:
        """Ends it with its module.

        Args:
            error: What the module has failed with, which is recorded by the module's own event.

        Returns:
            What was set, plain and within bounds; ``None`` where there is nothing to be said.
        """
        self.close()
        if self.remote is not None:
            return replace(self.remote, is_elsewhere=True)
        if self.recorder is None:
            return _ELSEWHERE if self.is_elsewhere else None
        record = cleaned_body(self._record(self.recorder, error))
        return None if record == _EMPTY else record

    def _made(self) -> _Recorder:
        recorder: _Recorder | None = self.recorder
        if recorder is None:
            # before it is made: what is set from now on may be looked for
            self.has_something = True
            made = _Recorder(
                self.module_name or _UNNAMED,
                self.get_span_context(),
                parent=self.decision.span_context,
                resource=_NO_RESOURCE,
                limits=self.decision.limits or SpanLimits(),
                instrumentation_scope=_SCOPE,
            )
            made.start()
            # of threads that come at once, all get the first one's
            recorder = self.__dict__.setdefault("recorder", made)
            if self.has_ended:
                _end(recorder)
        return recorder

    def _record(self, recorder: _Recorder, error: BaseException | None) -> BodyRecord:
        mark = None if error is None else _mark_of(error)
        own = {at_ns for recorded, at_ns in tuple(self.exceptions) if recorded == mark}
        events = [
            RecordedEvent(event.name, event.timestamp, _plain(event.attributes))
            for event in recorder.events
            if event.name != _EXCEPTION or event.timestamp not in own
        ]
        status, name = recorder.status, recorder.name
        return BodyRecord(
            _plain(recorder.attributes),
            tuple(events),
            tuple(map(_recorded_link, recorder.links)),
            _STATUSES[status.status_code],
            status.description,
            None if name is _UNNAMED or name == self.module_name else name,
            recorder.dropped_attributes,
            recorder.dropped_events,
            recorder.dropped_links,
            self.is_elsewhere,
        )


def recording(module_id: UUID, module_name: str, context: Context) -> tuple[BodySpan, Context]:
    """A span for the body of a module that another process has submitted, in place of the current one.

    Args:
        module_id: The module.
        module_name: Its name.
        context: Has the module's own span as the current one.

    Returns:
        The span, and the context to make current.
    """
    known = trace.get_current_span(context).get_span_context()
    own = SpanContext(known.trace_id, known.span_id, False, known.trace_flags, known.trace_state)
    span = BodySpan(Decision(context, known), module_id.int, module_name, own)
    return span, trace.set_span_in_context(span, context)


def _end(recorder: _Recorder) -> None:
    if recorder.end_time is None:
        recorder.end()


def _plain(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy that nobody changes; what is in it is looked at where events are."""
    return dict(attributes or {})


def _recorded_link(link: Link) -> RecordedLink:
    """A link; one without ids, which is dropped and counted, where it is to nothing."""
    context: object = link.context
    if not (isinstance(context, SpanContext) and context.is_valid):
        return RecordedLink("", "")
    return RecordedLink(
        format(context.trace_id, "032x"),
        format(context.span_id, "016x"),
        _plain(link.attributes),
        context.trace_state.to_header(),
        int(context.trace_flags),
    )


def _text(value: object) -> str:
    return str.__str__(value) if isinstance(value, str) else shown(value)


def _cut(value: Any) -> Any:
    """A value without what would not be kept of it: bodies run for long."""
    if isinstance(value, str | bytes | list | tuple) and len(value) > MAX_VALUE:
        return value[:MAX_VALUE]
    return value


def _all_cut(attributes: Any) -> Any:
    if not isinstance(attributes, dict):
        return attributes
    return {key: _cut(value) for key, value in attributes.items()}


def _mark_of(error: BaseException) -> tuple[int, int]:
    """What tells an exception apart, without keeping it: the next one may have the id of one that is gone."""
    return id(error), hash(_type_and_message(error))


def _type_and_message(error: BaseException) -> tuple[str, str]:
    """As the SDK records them."""
    cls = type(error)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return name, message_of(error)
