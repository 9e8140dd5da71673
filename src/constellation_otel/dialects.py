"""How events look on a wire: the guide's JSON, and the engine's WebSocket frames.

Each dialect is a pair of functions, bytes to event and back. Reading is lenient
where the data is intelligible (unknown fields, missing extensions, a duration
with a fraction) and raises :class:`DecodeError` where it is not.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar, assert_never
from uuid import UUID

import msgspec
from msgspec import UNSET, Struct, UnsetType

from constellation_otel.errors import DecodeError
from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
    clean_message,
    clean_name,
    duration_ns_of,
    ns_of,
)

__all__ = ["decode_frame", "decode_json", "encode_frame", "encode_json"]

_T = TypeVar("_T")
_MS: Final = 1_000_000
_MAX_NS: Final = 2**63
_SHOWN: Final = 200


class _Json(Struct, rename="camel"):
    """The guide's ExecutionEvent, then our extension fields, which its readers ignore."""

    event_type: str
    execution_id: UUID
    dag_name: str | None = None
    module_name: str | None = None
    duration_ms: float | None = None
    succeeded: bool | None = None
    error: str | None = None
    timestamp: int | float | None = None
    module_id: UUID | UnsetType | None = UNSET
    error_type: str | UnsetType | None = UNSET
    timestamp_ns: int | UnsetType | None = UNSET
    duration_ns: int | UnsetType | None = UNSET
    traceparent: str | UnsetType | None = UNSET
    tracestate: str | UnsetType | None = UNSET


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


_JSON_DECODER: Final = msgspec.json.Decoder(_Json)
_FRAME_DECODER: Final = msgspec.json.Decoder(_Frame)
_ENCODER: Final = msgspec.json.Encoder()
_NOT_JSON: Final = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What msgspec raises for bad JSON, for bytes or text that are no UTF-8, for a million brackets."""


def encode_json(event: Event) -> bytes:
    """Encodes an event as the guide's JSON, one line without its end.

    Durations and timestamps are whole milliseconds, since a Scala reader decodes
    a ``Long``; the nanoseconds follow as extension fields, where there are any.
    """
    record = _Json("", event.execution_id, timestamp=event.timestamp_ns // _MS, timestamp_ns=event.timestamp_ns)
    match event:
        case ExecutionStarted():
            record.event_type = "execution.started"
            record.dag_name = clean_name(event.dag_name)
            record.traceparent = UNSET if event.traceparent is None else event.traceparent
            record.tracestate = UNSET if event.tracestate is None else event.tracestate
        case ModuleStarted():
            record.event_type = "module.started"
        case ModuleCompleted():
            record.event_type = "module.completed"
            record.succeeded = True
            record.duration_ms, record.duration_ns = _durations(event.duration_ms)
        case ModuleFailed():
            record.event_type = "module.failed"
            record.succeeded = False
            record.error = None if event.error.message is None else clean_message(event.error.message)
            record.error_type = UNSET if event.error.type is None else clean_name(event.error.type)
        case ExecutionCompleted():
            record.event_type = "execution.completed"
            record.dag_name = clean_name(event.dag_name)
            record.succeeded = event.succeeded
            record.duration_ms, record.duration_ns = _durations(event.duration_ms)
        case ExecutionCancelled():
            record.event_type = "execution.cancelled"
            record.dag_name = clean_name(event.dag_name)
        case _:
            assert_never(event)
    if isinstance(event, ModuleStarted | ModuleCompleted | ModuleFailed):
        record.module_name = clean_name(event.module_name)
        record.module_id = UNSET if event.module_id is None else event.module_id
    return _ENCODER.encode(record)


def decode_json(data: bytes | str) -> Event:
    """Reads the guide's JSON, with our extension fields or without.

    Args:
        data: One JSON object.

    Raises:
        DecodeError: It is no JSON, no such object, or lacks what its type needs.
    """
    try:
        record = _JSON_DECODER.decode(data)
    except _NOT_JSON as error:
        raise _unreadable(data, error) from error
    timestamp_ns = record.timestamp_ns or ns_of(_needed(record.timestamp, "timestamp", data))
    _check_timestamp(timestamp_ns, data)
    read = _Reader(
        data, record.execution_id, timestamp_ns, record.dag_name, record.module_name, record.module_id or None
    )
    match record.event_type:
        case "execution.started":
            return ExecutionStarted(
                record.execution_id,
                read.dag_name(),
                timestamp_ns,
                record.traceparent or None,
                record.tracestate or None,
            )
        case "module.started":
            return read.module_started()
        case "module.completed":
            return read.module_completed(_duration_ms(record))
        case "module.failed":
            return read.module_failed(ErrorInfo(record.error_type or None, record.error))
        case "execution.completed":
            return read.execution_completed(record.succeeded, _duration_ms(record))
        case "execution.cancelled":
            return ExecutionCancelled(record.execution_id, read.dag_name(), timestamp_ns)
        case unknown:
            raise _unreadable(data, f"eventType {unknown!r} is none of the six")


def encode_frame(event: Event) -> bytes:
    """Encodes an event as the engine's WebSocket would send it.

    Times are whole milliseconds: what is finer is lost, as are an error's type and
    the caller's trace context. An error without a message gets its type's name.
    """
    fields: dict[str, Any] = {"type": "", "executionId": event.execution_id}
    match event:
        case ExecutionStarted():
            fields |= {"type": "execution:start", "dagName": clean_name(event.dag_name)}
        case ModuleStarted():
            fields |= {"type": "module:start", **_module_fields(event)}
        case ModuleCompleted():
            fields |= {
                "type": "module:complete",
                **_module_fields(event),
                "durationMs": _durations(event.duration_ms)[0] or 0,
            }
        case ModuleFailed():
            message = event.error.message or event.error.type or ""
            fields |= {"type": "module:failed", **_module_fields(event), "error": clean_message(message)}
        case ExecutionCompleted():
            fields |= {
                "type": "execution:complete",
                "dagName": clean_name(event.dag_name),
                "succeeded": event.succeeded,
                "durationMs": _durations(event.duration_ms)[0] or 0,
            }
        case ExecutionCancelled():
            fields |= {"type": "execution:cancelled", "dagName": clean_name(event.dag_name)}
        case _:
            assert_never(event)
    fields["timestamp"] = event.timestamp_ns // _MS
    return _ENCODER.encode(fields)


def decode_frame(data: bytes | str) -> Event:
    """Reads a frame of the engine's WebSocket.

    Args:
        data: One JSON object.

    Raises:
        DecodeError: It is no JSON, no such object, or lacks what its type needs.
    """
    try:
        frame = _FRAME_DECODER.decode(data)
    except _NOT_JSON as error:
        raise _unreadable(data, error) from error
    timestamp_ns = ns_of(frame.timestamp)
    _check_timestamp(timestamp_ns, data)
    read = _Reader(data, frame.execution_id, timestamp_ns, frame.dag_name, frame.module_name, frame.module_id)
    match frame.type:
        case "execution:start":
            return ExecutionStarted(frame.execution_id, read.dag_name(), timestamp_ns)
        case "module:start":
            return read.module_started()
        case "module:complete":
            return read.module_completed(frame.duration_ms)
        case "module:failed":
            return read.module_failed(ErrorInfo(None, frame.error))
        case "execution:complete":
            return read.execution_completed(frame.succeeded, frame.duration_ms)
        case "execution:cancelled":
            return ExecutionCancelled(frame.execution_id, read.dag_name(), timestamp_ns)
        case unknown:
            raise _unreadable(data, f"type {unknown!r} is none of the six")


class _Reader(Struct):
    """What the dialects' records have in common, and what their types need of it."""

    data: bytes | str
    execution_id: UUID
    timestamp_ns: int
    raw_dag_name: str | None
    raw_module_name: str | None
    module_id: UUID | None

    def dag_name(self) -> str:
        return _needed(self.raw_dag_name, "dagName", self.data)

    def module_name(self) -> str:
        return _needed(self.raw_module_name, "moduleName", self.data)

    def module_started(self) -> ModuleStarted:
        return ModuleStarted(self.execution_id, self.module_id, self.module_name(), self.timestamp_ns)

    def module_completed(self, duration_ms: float | None) -> ModuleCompleted:
        return ModuleCompleted(self.execution_id, self.module_id, self.module_name(), duration_ms, self.timestamp_ns)

    def module_failed(self, error: ErrorInfo) -> ModuleFailed:
        return ModuleFailed(self.execution_id, self.module_id, self.module_name(), error, self.timestamp_ns)

    def execution_completed(self, succeeded: bool | None, duration_ms: float | None) -> ExecutionCompleted:
        done = _needed(succeeded, "succeeded", self.data)
        return ExecutionCompleted(self.execution_id, self.dag_name(), done, duration_ms, self.timestamp_ns)


def _durations(duration_ms: float | None) -> tuple[int | None, int | UnsetType]:
    """Whole milliseconds and nanoseconds; what cannot be a duration is written as none."""
    duration_ns = None if duration_ms is None else duration_ns_of(duration_ms)
    return (None, UNSET) if duration_ns is None else (duration_ns // _MS, duration_ns)


def _duration_ms(record: _Json) -> float | None:
    """As exact as the record has it; an extension that is no duration does not hide the guide's field."""
    duration_ns = record.duration_ns
    return duration_ns / _MS if isinstance(duration_ns, int) and 0 <= duration_ns < _MAX_NS else record.duration_ms


def _check_timestamp(timestamp_ns: int, data: bytes | str) -> None:
    if not 0 <= timestamp_ns < _MAX_NS:
        raise _unreadable(data, f"the timestamp, {timestamp_ns} ns, is not within 0 and 2**63 - 1")


def _module_fields(event: ModuleStarted | ModuleCompleted | ModuleFailed) -> dict[str, Any]:
    return {"moduleId": event.module_id, "moduleName": clean_name(event.module_name)}


def _needed(value: _T | None, field: str, data: bytes | str) -> _T:
    if value is None:
        raise _unreadable(data, f"{field} is missing or null")
    return value


def _unreadable(data: bytes | str, why: object) -> DecodeError:
    shown = repr(data[:_SHOWN]) + ("…" if len(data) > _SHOWN else "")
    return DecodeError(f"not an event: {why}; the record is {shown}")
