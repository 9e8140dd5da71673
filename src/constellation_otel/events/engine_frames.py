"""The frames of the engine's WebSocket: how it writes an event, and how we read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Struct

from constellation_otel.events.model import (
    CALLBACK_EVENTS,
    ErrorInfo,
    Event,
    ExecutionJoined,
    ModuleDescribed,
    clean_message,
    clean_name,
    duration_ns_of,
)
from constellation_otel.events.reading import MS, Reading, fields_of, needed, ns_of_ms, unreadable

__all__ = ["decode_frame", "encode_frame", "read_frame"]


class _Frame(Struct, rename="camel"):
    """Every field of the engine's frames."""

    type: str
    execution_id: UUID
    timestamp: int | float
    dag_name: str | None = None
    module_id: UUID | None = None
    module_name: str | None = None
    duration_ms: float | None = None
    succeeded: bool | None = None
    error: str | None = None


_DECODER: Final = msgspec.json.Decoder(_Frame)
_ENCODER: Final = msgspec.json.Encoder()


def encode_frame(event: Event) -> bytes:
    """Encodes an event as the engine's WebSocket would send it.

    Times are whole milliseconds: what is finer is lost, as are an error's type and
    the caller's trace context. An error without a message gets its type's name.

    Raises:
        ValueError: No callback tells of what it is about, and no frame.
    """
    if isinstance(event, ModuleDescribed | ExecutionJoined):
        message = f"the engine's WebSocket has no frame for {event.kind}"
        raise ValueError(message)  # noqa: TRY004 - it is an event
    frame: dict[str, Any] = {"type": event.frame_type}
    for name in event.__struct_fields__:
        form = _FORMS.get(name)
        if form is not None:
            frame[form.key] = form.write(getattr(event, name))
    frame["timestamp"] = event.timestamp_ns // MS
    return _ENCODER.encode(frame)


def decode_frame(data: bytes | str) -> Event:
    """Reads a frame of the engine's WebSocket.

    Args:
        data: One JSON object.

    Raises:
        DecodeError: It is not JSON, not such an object, or lacks what its type needs.
    """
    return read_frame(data).event


def read_frame(data: bytes | str) -> Reading:
    """Reads a frame as :func:`decode_frame` does, and says what of it was left out.

    Raises:
        DecodeError: As :func:`decode_frame` does.
    """
    frame, corrected = fields_of(data, _Frame, _DECODER)
    kind = _KINDS.get(frame.type)
    timestamp_ns = ns_of_ms(frame.timestamp, data)
    if kind is None:
        raise unreadable(data, f"type {frame.type!r} is none that is known")
    values: dict[str, Any] = {"timestamp_ns": timestamp_ns}
    for name in kind.__struct_fields__:
        form = _FORMS.get(name)
        if form is not None:
            value = form.read(frame)
            values[name] = needed(value, form.key, data, corrected) if form.is_needed else value
    return Reading(kind(**values), tuple(corrected))


class _Form(Struct, frozen=True):
    """How a field of an event stands in a frame.

    Attributes:
        key: The frame's name for it.
        write: Its value in a frame.
        read: Its value in an event; ``None`` where the frame has none.
        is_needed: Whether a frame without it says nothing.
    """

    key: str
    write: Callable[[Any], object]
    read: Callable[[_Frame], object]
    is_needed: bool


def _as_it_is(value: object) -> object:
    return value


def _whole_ms(duration_ms: float | None) -> int:
    duration_ns = None if duration_ms is None else duration_ns_of(duration_ms)
    return 0 if duration_ns is None else duration_ns // MS


def _message(error: ErrorInfo) -> str:
    return clean_message(error.message or error.type or "")


_FORMS: Final[dict[str, _Form]] = {
    "execution_id": _Form("executionId", _as_it_is, lambda frame: frame.execution_id, is_needed=True),
    "dag_name": _Form("dagName", clean_name, lambda frame: frame.dag_name, is_needed=True),
    "module_id": _Form("moduleId", _as_it_is, lambda frame: frame.module_id, is_needed=False),
    "module_name": _Form("moduleName", clean_name, lambda frame: frame.module_name, is_needed=True),
    "duration_ms": _Form("durationMs", _whole_ms, lambda frame: frame.duration_ms, is_needed=False),
    "succeeded": _Form("succeeded", _as_it_is, lambda frame: frame.succeeded, is_needed=True),
    "error": _Form("error", _message, lambda frame: ErrorInfo(None, frame.error), is_needed=False),
}
"""But for the timestamp, which every frame has, and what no frame has: the caller's trace context."""
_KINDS: Final = {kind.frame_type: kind for kind in CALLBACK_EVENTS}
