"""How events look on a wire: the guide's JSON, and the engine's WebSocket frames.

Each dialect is a pair of functions, bytes to event and back. Reading is lenient
where the data is intelligible (unknown fields, missing extensions, a duration with
a fraction) and raises :class:`DecodeError` where it is not. A field without which
the rest still says something (a duration, a module's id, an error, an extension) is
left out where it cannot be read, and told with the event.
"""

from __future__ import annotations

import json
from math import inf
from typing import Any, Final, NamedTuple, TypeVar, assert_never
from uuid import UUID

import msgspec
from msgspec import UNSET, Struct, UnsetType

from constellation_otel.errors import DecodeError
from constellation_otel.events.model import (
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
from constellation_otel.events.validation import shown

__all__ = [
    "Reading",
    "decode_frame",
    "decode_json",
    "encode_frame",
    "encode_json",
    "read_frame",
    "read_json",
]

_T = TypeVar("_T")
_R = TypeVar("_R", "_Json", "_Frame")
_MS: Final = 1_000_000
_MAX_NS: Final = 2**63
_SHOWN: Final = 200
_BOM: Final = "\N{ZERO WIDTH NO-BREAK SPACE}"
_BOM_BYTES: Final = _BOM.encode()
_UNITS: Final = ((1, "seconds"), (1_000_000, "microseconds"), (1_000_000_000, "nanoseconds"))
"""What else an epoch time is counted in, and how many of it a second has."""
_FIRST_SECOND: Final = 500_000_000
_LAST_SECOND: Final = 5_000_000_000
"""From 1985 to 2128: a number that is within these years in another unit, and is 1970 or no year at all in ms."""


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


class Reading(NamedTuple):
    """What a record says.

    Attributes:
        event: The event.
        corrected: What could not be read and was left out, a text each that begins with the field's name.
    """

    event: Event
    corrected: tuple[str, ...]


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
    return read_json(data).event


def read_json(data: bytes | str) -> Reading:
    """Reads the guide's JSON as :func:`decode_json` does, and tells what of it was left out.

    Raises:
        DecodeError: As :func:`decode_json` has it.
    """
    record, corrected = _record(data, _Json, _JSON_DECODER)
    timestamp_ns = _timestamp_ns(record, data, corrected)
    read = _Reader(
        data,
        corrected,
        record.execution_id,
        timestamp_ns,
        record.dag_name,
        record.module_name,
        record.module_id or None,
    )
    event: Event
    match record.event_type:
        case "execution.started":
            event = ExecutionStarted(
                record.execution_id,
                read.dag_name(),
                timestamp_ns,
                record.traceparent or None,
                record.tracestate or None,
            )
        case "module.started":
            event = read.module_started()
        case "module.completed":
            event = read.module_completed(_duration_ms(record, corrected))
        case "module.failed":
            event = read.module_failed(ErrorInfo(record.error_type or None, record.error))
        case "execution.completed":
            event = read.execution_completed(record.succeeded, _duration_ms(record, corrected))
        case "execution.cancelled":
            event = ExecutionCancelled(record.execution_id, read.dag_name(), timestamp_ns)
        case unknown:
            raise _unreadable(data, f"eventType {unknown!r} is none of the six")
    return Reading(event, tuple(corrected))


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
    return read_frame(data).event


def read_frame(data: bytes | str) -> Reading:
    """Reads a frame as :func:`decode_frame` does, and tells what of it was left out.

    Raises:
        DecodeError: As :func:`decode_frame` has it.
    """
    frame, corrected = _record(data, _Frame, _FRAME_DECODER)
    timestamp_ns = _ns_of_ms(frame.timestamp, data)
    read = _Reader(
        data, corrected, frame.execution_id, timestamp_ns, frame.dag_name, frame.module_name, frame.module_id
    )
    event: Event
    match frame.type:
        case "execution:start":
            event = ExecutionStarted(frame.execution_id, read.dag_name(), timestamp_ns)
        case "module:start":
            event = read.module_started()
        case "module:complete":
            event = read.module_completed(frame.duration_ms)
        case "module:failed":
            event = read.module_failed(ErrorInfo(None, frame.error))
        case "execution:complete":
            event = read.execution_completed(frame.succeeded, frame.duration_ms)
        case "execution:cancelled":
            event = ExecutionCancelled(frame.execution_id, read.dag_name(), timestamp_ns)
        case unknown:
            raise _unreadable(data, f"type {unknown!r} is none of the six")
    return Reading(event, tuple(corrected))


def _record(data: bytes | str, kind: type[_R], decoder: msgspec.json.Decoder[_R]) -> tuple[_R, list[str]]:
    """A record's fields, and what of them was left out since it could not be read.

    Raises:
        DecodeError: It is no JSON, no object, or its type or execution's id cannot be read.
    """
    data = data.removeprefix(_BOM_BYTES) if isinstance(data, bytes) else data.removeprefix(_BOM)
    try:
        return decoder.decode(data), []
    except _NOT_JSON as raised:
        error = raised
    fields = _intelligible(data)
    if fields is None:
        raise _unreadable(data, error) from error
    # field by field, which takes some ten times as long
    values: dict[str, Any] = {}
    corrected = ["bytes that are not UTF-8 were replaced"] if isinstance(error, UnicodeDecodeError) else []
    for field in msgspec.structs.fields(kind):
        name = field.encode_name
        if name in fields:
            try:
                values[field.name] = msgspec.convert(fields[name], field.type)
            except (msgspec.ValidationError, UnicodeError, SystemError) as wrong:  # the last: msgspec 0.21, of 10**400
                if field.required:
                    raise _unreadable(data, f"{wrong} - at `$.{name}`") from wrong
                corrected.append(f"{name} is {shown(fields[name])}: {wrong}")
        elif field.required:
            raise _unreadable(data, f"Object missing required field `{name}`")
    return kind(**values), corrected


def _intelligible(data: bytes | str) -> dict[str, Any] | None:
    """The fields of what is JSON but for NaN, raw control characters, or bytes that are not UTF-8."""
    text = data if isinstance(data, str) else data.decode(errors="replace")
    try:
        fields = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


class _Reader(Struct):
    """What the dialects' records have in common, and what their types need of it."""

    data: bytes | str
    corrected: list[str]
    execution_id: UUID
    timestamp_ns: int
    raw_dag_name: str | None
    raw_module_name: str | None
    module_id: UUID | None

    def dag_name(self) -> str:
        return _needed(self.raw_dag_name, "dagName", self.data, self.corrected)

    def module_name(self) -> str:
        return _needed(self.raw_module_name, "moduleName", self.data, self.corrected)

    def module_started(self) -> ModuleStarted:
        return ModuleStarted(self.execution_id, self.module_id, self.module_name(), self.timestamp_ns)

    def module_completed(self, duration_ms: float | None) -> ModuleCompleted:
        return ModuleCompleted(self.execution_id, self.module_id, self.module_name(), duration_ms, self.timestamp_ns)

    def module_failed(self, error: ErrorInfo) -> ModuleFailed:
        return ModuleFailed(self.execution_id, self.module_id, self.module_name(), error, self.timestamp_ns)

    def execution_completed(self, succeeded: bool | None, duration_ms: float | None) -> ExecutionCompleted:
        done = _needed(succeeded, "succeeded", self.data, self.corrected)
        return ExecutionCompleted(self.execution_id, self.dag_name(), done, duration_ms, self.timestamp_ns)


def _durations(duration_ms: float | None) -> tuple[int | None, int | UnsetType]:
    """Whole milliseconds and nanoseconds; what cannot be a duration is written as none."""
    duration_ns = None if duration_ms is None else duration_ns_of(duration_ms)
    return (None, UNSET) if duration_ns is None else (duration_ns // _MS, duration_ns)


def _duration_ms(record: _Json, corrected: list[str]) -> float | None:
    """As exact as the record has it; an extension that is no duration does not hide the guide's field."""
    duration_ns = record.duration_ns
    if not isinstance(duration_ns, int):
        return record.duration_ms
    if 0 <= duration_ns < _MAX_NS:
        return duration_ns / _MS
    corrected.append(f"durationNs is {duration_ns}, not within 0 and 2**63 - 1")
    return record.duration_ms


def _timestamp_ns(record: _Json, data: bytes | str, corrected: list[str]) -> int:
    """As exact as the record has it; an extension that is no time, or another one, does not hide the guide's field."""
    timestamp_ns = record.timestamp_ns
    if not isinstance(timestamp_ns, int):
        return _ns_of_ms(_needed(record.timestamp, "timestamp", data, corrected), data)
    if 0 <= timestamp_ns < _MAX_NS and record.timestamp in {None, timestamp_ns // _MS}:
        return timestamp_ns
    if record.timestamp is None:
        raise _unreadable(data, f"timestampNs is {timestamp_ns}, not within 0 and 2**63 - 1, and there is no timestamp")
    at_ns = _ns_of_ms(record.timestamp, data)
    corrected.append(f"timestampNs is {timestamp_ns}, which is another time than timestamp, {record.timestamp} ms")
    return at_ns


def _ns_of_ms(timestamp: float, data: bytes | str) -> int:
    """Epoch nanoseconds of what should be epoch milliseconds."""
    if not 0 <= timestamp < inf:
        raise _unreadable(data, f"timestamp is {timestamp}, not within 0 and 2**63 - 1 ns")
    for in_a_second, unit in _UNITS:
        if _FIRST_SECOND <= timestamp // in_a_second < _LAST_SECOND:
            raise _unreadable(data, f"timestamp is {timestamp}, which looks like {unit}, not epoch milliseconds")
    timestamp_ns = ns_of(timestamp)
    if timestamp_ns >= _MAX_NS:
        raise _unreadable(data, f"timestamp is {timestamp}, not within 0 and 2**63 - 1 ns")
    return timestamp_ns


def _module_fields(event: ModuleStarted | ModuleCompleted | ModuleFailed) -> dict[str, Any]:
    return {"moduleId": event.module_id, "moduleName": clean_name(event.module_name)}


def _needed(value: _T | None, field: str, data: bytes | str, corrected: list[str]) -> _T:
    if value is None:
        why = next((reason for reason in corrected if reason.startswith(f"{field} ")), f"{field} is missing or null")
        raise _unreadable(data, why)
    return value


def _unreadable(data: bytes | str, why: object) -> DecodeError:
    shown = repr(data[:_SHOWN]) + ("…" if len(data) > _SHOWN else "")
    return DecodeError(f"not an event: {why}; the record is {shown}")
