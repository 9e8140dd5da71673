"""The events: what callbacks become, and what becomes callbacks again.

The one model in the middle of everything: whatever produces events is a source,
whatever takes them is a sink. How events look on a wire is in ``guide_json`` and ``engine_frames``.
"""

from __future__ import annotations

import linecache
import re
from math import nan
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias, get_args
from uuid import UUID

from msgspec import Struct
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from constellation_otel._support.scope import ENGINE_KEY
from constellation_otel._support.text import message_of
from constellation_otel.errors import RemoteError
from constellation_otel.events.frames import own_frames, own_part
from constellation_otel.events.record import Attributes, BodyRecord, ModuleDetails
from constellation_otel.listener import ExecutionJoiner, ModuleDetailsTaker

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from opentelemetry.context import Context

    from constellation_otel.listener import ExecutionListener

__all__ = [
    "CALLBACK_EVENTS",
    "EVENT_TYPES",
    "MAX_DURATION_MS",
    "MAX_MESSAGE",
    "MAX_NAME",
    "CallbackEvent",
    "ErrorInfo",
    "Event",
    "ExecutionCancelled",
    "ExecutionCompleted",
    "ExecutionJoined",
    "ExecutionStarted",
    "Frames",
    "ModuleCompleted",
    "ModuleDescribed",
    "ModuleFailed",
    "ModuleStarted",
    "clean_message",
    "clean_name",
    "clean_stacktrace",
    "duration_ns_of",
    "ns_of",
    "redacted",
    "remote_parent",
]

MAX_MESSAGE: Final = 8_192
"""Characters that are kept of an error's message."""
MAX_NAME: Final = 1_024
"""Characters that are kept of a DAG's or a module's name."""

MAX_DURATION_MS: Final = (2**63 - 1) / 1_000_000
"""Milliseconds: a duration is below this, since backends hold nanoseconds in a signed integer."""

_MAX_CAUSES: Final = 4
_MAX_SOURCE: Final = 200
_MAX_STACKTRACE: Final = 32_768
_NOT_IN_NAMES: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_IN_MESSAGES: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Frames(Struct, frozen=True):
    """A light traceback: where an exception passed, and nothing that was alive there.

    Attributes:
        type: The exception's class.
        message: Its message, redacted.
        frames: File name, line number and function of each frame, the innermost last.
        cause: The exception that led to it.
    """

    type: str
    message: str
    frames: tuple[tuple[str, int, str], ...]
    cause: Frames | None = None

    def format(self) -> str:
        """The text that Python would print; reads source files, so not for a callback."""
        parts = []
        if self.cause is not None:
            parts.append(f"{self.cause.format()}\nThe above exception led to the following one:\n\n")
        if self.frames:
            parts.append("Traceback (most recent call last):\n")
        for filename, line_number, function in self.frames:
            parts.append(f'  File "{filename}", line {line_number}, in {function}\n')
            source = linecache.getline(filename, line_number).strip()
            if source:
                parts.append(f"    {source[:_MAX_SOURCE]}\n")
        parts.append(f"{self.type}: {self.message}\n" if self.message else f"{self.type}\n")
        return "".join(parts)


class ErrorInfo(Struct, frozen=True):
    """What is kept of a module's error.

    The exception itself is not: a queued exception would pin its frames' locals.

    Attributes:
        type: The class, with its module unless that is ``builtins``; ``None`` where
            a wire did not say.
        message: At most :data:`MAX_MESSAGE` characters; ``None`` where a wire had null.
        frames: The light traceback; never on a wire.
        stacktrace: The traceback's text, once there was time to read the source files.
    """

    type: str | None
    message: str | None
    frames: Frames | None = None
    stacktrace: str | None = None

    def formatted(self) -> ErrorInfo:
        """The same with its traceback as text; reads source files, so not for a callback."""
        if self.frames is None:
            return self
        return ErrorInfo(self.type, self.message, None, clean_stacktrace(self.frames.format()))

    @classmethod
    def of(cls, error: BaseException, redact: Callable[[str], str] | None = None) -> ErrorInfo:
        """Reduces an exception; never raises, whatever the exception's own code does.

        Args:
            error: The exception.
            redact: Rewrites each message before it is kept anywhere. Where it raises,
                or returns no text, the message is withheld.
        """
        try:
            if isinstance(error, RemoteError):
                message = None if error.message is None else clean_message(redacted(error.message, redact))
                return cls(clean_name(error.type) if error.type else None, message)
            frames = _frames_of(error, redact, _MAX_CAUSES)
        except BaseException as raised:  # noqa: BLE001 - the exception's own code; the callback may not raise
            return cls(clean_name(type(error).__name__), f"<reading this error raised {type(raised).__name__}>")
        return cls(frames.type, frames.message, frames)


class ExecutionStarted(Struct, frozen=True, omit_defaults=True, gc=False):
    """A DAG's execution has started.

    Attributes:
        execution_id: The execution.
        dag_name: The DAG's name.
        timestamp_ns: Epoch nanoseconds, wall clock, taken in the callback.
        traceparent: The caller's span as a W3C header value, where it had one.
        tracestate: The W3C tracestate that goes with it.
        attributes: Further attributes of the execution's span.
        engine: The engine's name, where it is not the embedded one.
    """

    kind: ClassVar[str] = "execution.started"
    frame_type: ClassVar[str] = "execution:start"
    callback: ClassVar[str] = "on_execution_start"

    execution_id: UUID
    dag_name: str
    timestamp_ns: int
    traceparent: str | None = None
    tracestate: str | None = None
    attributes: Attributes | None = None
    engine: str | None = None

    def notify(self, listener: ExecutionListener) -> None:
        """Calls the listener's callback, with the remote parent and the engine's name current where there are any."""
        parent = remote_parent(self.traceparent, self.tracestate)
        _call_in(parent, self.engine, listener.on_execution_start, self.execution_id, self.dag_name)


class ModuleStarted(Struct, frozen=True, omit_defaults=True, gc=False):
    """A module has begun to execute.

    Attributes:
        execution_id: The execution.
        module_id: The module's id in it; ``None`` where a wire has no such field.
        module_name: The module's name.
        timestamp_ns: Epoch nanoseconds.
        details: What the engine tells of it besides.
    """

    kind: ClassVar[str] = "module.started"
    frame_type: ClassVar[str] = "module:start"
    callback: ClassVar[str] = "on_module_start"

    execution_id: UUID
    module_id: UUID | None
    module_name: str
    timestamp_ns: int
    details: ModuleDetails | None = None

    def notify(self, listener: ExecutionListener) -> None:
        """Calls the listener's callback, after having handed it the details."""
        _tell_details(self, listener)
        listener.on_module_start(self.execution_id, _required(self.module_id, self), self.module_name)


class ModuleCompleted(Struct, frozen=True, omit_defaults=True, gc=False):
    """A module has completed.

    Attributes:
        execution_id: The execution.
        module_id: The module's id in it; ``None`` where a wire has no such field.
        module_name: The module's name.
        duration_ms: Milliseconds, as the engine measured them; ``None`` where a wire
            had none.
        timestamp_ns: Epoch nanoseconds.
        details: What the engine tells of it besides.
        body: What the module's body has set on its span.
    """

    kind: ClassVar[str] = "module.completed"
    frame_type: ClassVar[str] = "module:complete"
    callback: ClassVar[str] = "on_module_complete"

    execution_id: UUID
    module_id: UUID | None
    module_name: str
    duration_ms: float | None
    timestamp_ns: int
    details: ModuleDetails | None = None
    body: BodyRecord | None = None

    def notify(self, listener: ExecutionListener) -> None:
        """Calls the listener's callback, with NaN for a duration that is not known, after the details."""
        _tell_details(self, listener)
        duration_ms = nan if self.duration_ms is None else self.duration_ms
        listener.on_module_complete(self.execution_id, _required(self.module_id, self), self.module_name, duration_ms)


class ModuleFailed(Struct, frozen=True, omit_defaults=True):
    """A module has failed.

    Attributes:
        execution_id: The execution.
        module_id: The module's id in it; ``None`` where a wire has no such field.
        module_name: The module's name.
        error: What is kept of the error.
        timestamp_ns: Epoch nanoseconds.
        details: What the engine tells of it besides.
        body: What the module's body has set on its span.
    """

    kind: ClassVar[str] = "module.failed"
    frame_type: ClassVar[str] = "module:failed"
    callback: ClassVar[str] = "on_module_failed"

    execution_id: UUID
    module_id: UUID | None
    module_name: str
    error: ErrorInfo
    timestamp_ns: int
    details: ModuleDetails | None = None
    body: BodyRecord | None = None

    def notify(self, listener: ExecutionListener) -> None:
        """Calls the listener's callback with a :class:`RemoteError`, after the details."""
        _tell_details(self, listener)
        error = RemoteError(self.error.message, self.error.type)
        listener.on_module_failed(self.execution_id, _required(self.module_id, self), self.module_name, error)


class ExecutionCompleted(Struct, frozen=True, gc=False):
    """An execution has ended, well or not.

    Attributes:
        execution_id: The execution.
        dag_name: The DAG's name.
        succeeded: Whether every module completed.
        duration_ms: Milliseconds, as the engine measured them; ``None`` where a wire
            had none.
        timestamp_ns: Epoch nanoseconds.
    """

    kind: ClassVar[str] = "execution.completed"
    frame_type: ClassVar[str] = "execution:complete"
    callback: ClassVar[str] = "on_execution_complete"

    execution_id: UUID
    dag_name: str
    succeeded: bool
    duration_ms: float | None
    timestamp_ns: int

    def notify(self, listener: ExecutionListener) -> None:
        """Calls the listener's callback, with NaN for a duration that is not known."""
        duration_ms = nan if self.duration_ms is None else self.duration_ms
        listener.on_execution_complete(self.execution_id, self.dag_name, self.succeeded, duration_ms)


class ExecutionCancelled(Struct, frozen=True, gc=False):
    """An execution was cancelled.

    Attributes:
        execution_id: The execution.
        dag_name: The DAG's name.
        timestamp_ns: Epoch nanoseconds.
    """

    kind: ClassVar[str] = "execution.cancelled"
    frame_type: ClassVar[str] = "execution:cancelled"
    callback: ClassVar[str] = "on_execution_cancelled"

    execution_id: UUID
    dag_name: str
    timestamp_ns: int

    def notify(self, listener: ExecutionListener) -> None:
        """Calls the listener's callback."""
        listener.on_execution_cancelled(self.execution_id, self.dag_name)


class ModuleDescribed(Struct, frozen=True, gc=False):
    """A module whose body does not run, of which no callback tells: it was skipped, or its output is a cached one.

    Attributes:
        execution_id: The execution.
        module_id: The module's id in it.
        module_name: The module's name.
        timestamp_ns: Epoch nanoseconds.
        details: What the engine tells of it; the outcome is among it.
    """

    kind: ClassVar[str] = "module.described"

    execution_id: UUID
    module_id: UUID
    module_name: str
    timestamp_ns: int
    details: ModuleDetails

    def notify(self, listener: ExecutionListener) -> None:
        """Hands the details to a listener that takes them."""
        _tell_details(self, listener)


class ExecutionJoined(Struct, frozen=True, omit_defaults=True, gc=False):
    """Modules of an execution run here which another process has started, and tells of.

    Attributes:
        execution_id: The execution.
        dag_name: The DAG's name.
        timestamp_ns: Epoch nanoseconds.
        traceparent: The execution's own span as a W3C header value; its trace is computed where there is none.
        engine: The engine's name, where it is not the embedded one.
    """

    kind: ClassVar[str] = "execution.joined"

    execution_id: UUID
    dag_name: str
    timestamp_ns: int
    traceparent: str | None = None
    engine: str | None = None

    def notify(self, listener: ExecutionListener) -> None:
        """Has a listener join the execution that can, with the engine's name current."""
        if isinstance(listener, ExecutionJoiner):
            _call_in(None, self.engine, listener.join, self.execution_id, self.dag_name, self.traceparent)


CallbackEvent: TypeAlias = (
    ExecutionStarted | ModuleStarted | ModuleCompleted | ModuleFailed | ExecutionCompleted | ExecutionCancelled
)
Event: TypeAlias = CallbackEvent | ModuleDescribed | ExecutionJoined

CALLBACK_EVENTS: Final[tuple[type[CallbackEvent], ...]] = get_args(CallbackEvent)
"""The six that callbacks become, and that every reader of the guide's records knows.

Each says its name on a wire (``kind``: JSON, SQL, the journal; ``frame_type``: the engine's
WebSocket) and the ``callback`` that it stands for.
"""
EVENT_TYPES: Final[tuple[type[Event], ...]] = get_args(Event)
"""Every kind of event, declared here and nowhere else: the six, and those that only our own readers meet."""


def remote_parent(traceparent: str | None, tracestate: str | None) -> Context | None:
    """A context whose current span is the one that W3C headers name.

    Args:
        traceparent: The header's value.
        tracestate: The header's value.

    Returns:
        ``None`` where there is no header, or none that is valid.
    """
    if not isinstance(traceparent, str):
        # whoever joins an execution may give anything
        return None
    carrier = {"traceparent": traceparent}
    if tracestate:
        carrier["tracestate"] = tracestate
    parent = _PROPAGATOR.extract(carrier, otel_context.Context())
    return parent if trace.get_current_span(parent).get_span_context().is_valid else None


def duration_ns_of(duration_ms: float) -> int | None:
    """A reported duration in whole nanoseconds.

    Args:
        duration_ms: Milliseconds.

    Returns:
        ``None`` where the number cannot be a duration: negative, not finite, or over 2**63 - 1 ns.
    """
    if not 0 <= duration_ms < MAX_DURATION_MS:
        return None
    return ns_of(duration_ms)


def ns_of(milliseconds: float) -> int:
    """Whole nanoseconds; exact for whole milliseconds, which a product of floats is not past 2**53."""
    whole = int(milliseconds)
    if whole == milliseconds:
        return whole * 1_000_000
    return whole * 1_000_000 + round((milliseconds - whole) * 1_000_000)


def clean_name(name: str) -> str:
    """A name that every backend can hold.

    Args:
        name: A DAG's or a module's name.

    Returns:
        The name itself, as a rule. Control characters and lone surrogates become
        U+FFFD, an empty name ``unknown``, and :data:`MAX_NAME` characters are kept.
    """
    if name.isprintable() and 0 < len(name) <= MAX_NAME:
        return name
    return _NOT_IN_NAMES.sub(_REPLACEMENT, name[:MAX_NAME]) or "unknown"


def clean_message(message: str) -> str:
    """An error's message that every backend can hold.

    Args:
        message: The message.

    Returns:
        At most :data:`MAX_MESSAGE` characters, the last of which say how long it was
        where it had more; control characters but tab, newline and carriage return, and
        lone surrogates, become U+FFFD. Cleaning it once more changes nothing.
    """
    if len(message) > MAX_MESSAGE:
        note = f"… (cut; it had {len(message)} characters)"
        message = message[: MAX_MESSAGE - len(note)] + note
    return message if message.isprintable() else _NOT_IN_MESSAGES.sub(_REPLACEMENT, message)


def clean_stacktrace(text: str) -> str:
    """A traceback that every backend can hold.

    Args:
        text: The traceback.

    Returns:
        At most some 32,768 characters, the last ones, with a note before them where there
        were more; characters are replaced as :func:`clean_message` does it. Cleaning it
        once more changes nothing.
    """
    if len(text) > _MAX_STACKTRACE:
        # what matters most is at the end
        note = f"(cut; it had {len(text)} characters) …"
        text = note + text[len(note) - _MAX_STACKTRACE :]
    return text if text.isprintable() else _NOT_IN_MESSAGES.sub(_REPLACEMENT, text)


def _call_in(parent: Context | None, engine: str | None, call: Callable[..., None], *args: object) -> None:
    """Makes a call in a context that has the remote parent and the engine's name; in the current one without both."""
    if parent is None and engine is None:
        call(*args)
        return
    context = otel_context.get_current() if parent is None else parent
    token = otel_context.attach(context if engine is None else otel_context.set_value(ENGINE_KEY, engine, context))
    try:
        call(*args)
    finally:
        otel_context.detach(token)


def _tell_details(
    event: ModuleStarted | ModuleCompleted | ModuleFailed | ModuleDescribed, listener: ExecutionListener
) -> None:
    details = event.details
    if details is not None and isinstance(listener, ModuleDetailsTaker):
        listener.module_details(
            event.execution_id,
            _required(event.module_id, event),
            module_name=event.module_name,
            parent_id=details.parent_id,
            attempt=details.attempt,
            attempt_of=details.attempt_of,
            outcome=details.outcome,
            reason=details.reason,
            upstream=details.upstream,
            attributes=details.attributes,
        )


def _required(module_id: UUID | None, event: Event) -> UUID:
    if module_id is None:
        message = f"{event!r} has no module id, so no callback can be called with it; the assembler takes it as it is"
        raise ValueError(message)
    return module_id


def _frames_of(error: BaseException, redact: Callable[[str], str] | None, causes: int) -> Frames:
    cause = error.__cause__
    if cause is None and not error.__suppress_context__:
        cause = error.__context__
    return Frames(
        _type_of(error),
        clean_message(redacted(_message_of(error), redact)),
        _frames_in(error.__traceback__),
        _frames_of(cause, redact, causes - 1) if cause is not None and causes > 0 else None,
    )


def _message_of(error: BaseException) -> str:
    """What it says; of what a process pool says of the other process, from the module's own frame on."""
    message = message_of(error)
    return own_part(message) if type(error).__name__ == "_RemoteTraceback" else message


def _frames_in(traceback: TracebackType | None) -> tuple[tuple[str, int, str], ...]:
    return tuple(
        (clean_name(filename), line_number, clean_name(function)[:_MAX_SOURCE])
        for filename, line_number, function in own_frames(traceback)
    )


def _type_of(error: BaseException) -> str:
    cls = type(error)
    return clean_name(cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}")


def redacted(message: str, redact: Callable[[str], object] | None) -> str:
    """A message as the hook rewrites it, and withheld where that raises, or gives no text."""
    if redact is None:
        return message
    try:
        rewritten = redact(message)
    except Exception as raised:  # noqa: BLE001 - what could not be redacted must not get out
        return f"<withheld: the redact hook raised {type(raised).__name__}>"
    if isinstance(rewritten, str):
        return rewritten
    return f"<withheld: the redact hook returned {type(rewritten).__name__}>"
