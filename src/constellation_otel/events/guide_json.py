"""The guide's JSON: how Kafka, JSON lines and the SQL table write an event.

A field without which the rest still says something (a duration, a module's id, an
error, an extension) is left out where it cannot be read, and reported with the event.
Which fields a type has is read off the events' own declarations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import UUID

import msgspec
from msgspec import UNSET, Struct, UnsetType

from constellation_otel.errors import DecodeError
from constellation_otel.events.model import (
    EVENT_TYPES,
    ErrorInfo,
    Event,
    ModuleCompleted,
    ModuleFailed,
    clean_message,
    clean_name,
    duration_ns_of,
)
from constellation_otel.events.reading import MAX_NS, MS, NOT_JSON, Reading, fields_of, needed, ns_of_ms, unreadable
from constellation_otel.events.validation import CHECKS_OF_VALUES, validated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["decode_json", "encode_json", "plain_events", "read_json"]


class _Json(Struct, rename="camel", gc=False):
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


_DECODER: Final = msgspec.json.Decoder(_Json)
_ENCODER: Final = msgspec.json.Encoder()
_SUCCEEDED: Final[dict[type[Event], bool]] = {ModuleCompleted: True, ModuleFailed: False}
"""What the guide's own listener writes with these two, whose type says it already."""


def encode_json(event: Event) -> bytes:
    """Encodes an event as the guide's JSON, one line without its end.

    Durations and timestamps are whole milliseconds, since a Scala reader decodes
    a ``Long``; the nanoseconds follow as extension fields, where there are any.
    """
    kind = type(event)
    record = _Json(
        kind.kind,
        event.execution_id,
        succeeded=_SUCCEEDED.get(kind),
        timestamp=event.timestamp_ns // MS,
        timestamp_ns=event.timestamp_ns,
    )
    for name, write in _WRITERS[kind]:
        write(record, getattr(event, name))
    return _ENCODER.encode(record)


def decode_json(data: bytes | str) -> Event:
    """Reads the guide's JSON, with our extension fields or without.

    Args:
        data: One JSON object.

    Raises:
        DecodeError: It is not JSON, not such an object, or lacks what its type needs.
    """
    return read_json(data).event


def read_json(data: bytes | str) -> Reading:
    """Reads the guide's JSON as :func:`decode_json` does, and says what of it was left out.

    Raises:
        DecodeError: As :func:`decode_json` does.
    """
    record, corrected = fields_of(data, _Json, _DECODER)
    read = _READERS.get(record.event_type)
    if read is None:
        raise unreadable(data, f"eventType {record.event_type!r} is none of the six")
    return Reading(read(record, data, corrected), tuple(corrected) if corrected else ())


def plain_events(records: Sequence[bytes]) -> list[Event] | None:
    """The events of records in which there is nothing to be said about any; cheaper than one by one.

    Args:
        records: One JSON object each.

    Returns:
        Events that are :func:`~constellation_otel.events.validated`, one for each record. ``None`` where
        anything has to be corrected, or is no event: :func:`read_json` says of each what it is.
    """
    corrected: list[str] = []
    try:
        # one pass: an event that cannot stay as it is is missing
        events = [
            event
            for record in map(_DECODER.decode, records)
            if CHECKS_OF_VALUES[type(event := _READERS[record.event_type](record, b"", corrected))](event)
            # errors, of which the quick look is not certain
            or validated(event) == (event, ())
        ]
    except (*NOT_JSON, DecodeError, KeyError, TypeError, ValueError):
        return None
    return None if corrected or len(events) < len(records) else events


def _write_dag_name(record: _Json, name: str) -> None:
    record.dag_name = clean_name(name)


def _write_module_name(record: _Json, name: str) -> None:
    record.module_name = clean_name(name)


def _write_module_id(record: _Json, module_id: UUID | None) -> None:
    record.module_id = UNSET if module_id is None else module_id


def _write_duration(record: _Json, duration_ms: float | None) -> None:
    """Whole milliseconds and nanoseconds; what cannot be a duration is written as null."""
    duration_ns = None if duration_ms is None else duration_ns_of(duration_ms)
    if duration_ns is not None:
        record.duration_ms, record.duration_ns = duration_ns // MS, duration_ns


def _write_succeeded(record: _Json, succeeded: bool) -> None:
    record.succeeded = succeeded


def _write_error(record: _Json, error: ErrorInfo) -> None:
    record.error = None if error.message is None else clean_message(error.message)
    record.error_type = UNSET if error.type is None else clean_name(error.type)


def _write_traceparent(record: _Json, traceparent: str | None) -> None:
    record.traceparent = UNSET if traceparent is None else traceparent


def _write_tracestate(record: _Json, tracestate: str | None) -> None:
    record.tracestate = UNSET if tracestate is None else tracestate


def _duration_ms(record: _Json, corrected: list[str]) -> float | None:
    """Where there is no extension, or one that is not a duration, which does not hide the guide's field."""
    duration_ns = record.duration_ns
    if not isinstance(duration_ns, int):
        return record.duration_ms
    corrected.append(f"durationNs is {duration_ns}, not within 0 and 2**63 - 1")
    return record.duration_ms


def _timestamp_ns(record: _Json, data: bytes | str, corrected: list[str]) -> int:
    """Where the two fields do not agree: an extension that is not a time, or another one, does not hide the guide's."""
    timestamp_ns = record.timestamp_ns
    if not isinstance(timestamp_ns, int):
        return ns_of_ms(needed(record.timestamp, "timestamp", data, corrected), data)
    if record.timestamp is None:
        if 0 <= timestamp_ns < MAX_NS:
            return timestamp_ns
        raise unreadable(data, f"timestampNs is {timestamp_ns}, not within 0 and 2**63 - 1, and there is no timestamp")
    at_ns = ns_of_ms(record.timestamp, data)
    corrected.append(f"timestampNs is {timestamp_ns}, which is another time than timestamp, {record.timestamp} ms")
    return at_ns


_Write: TypeAlias = "Callable[[_Json, Any], None]"

_BY_FIELD: Final[dict[str, tuple[_Write | None, str]]] = {
    "execution_id": (None, "record.execution_id"),
    "timestamp_ns": (
        None,
        # mostly they agree, which takes no call to see
        (
            "record.timestamp_ns if type(record.timestamp_ns) is int and 0 <= record.timestamp_ns < MAX_NS"
            " and record.timestamp == record.timestamp_ns // MS else timestamp_ns(record, data, corrected)"
        ),
    ),
    "dag_name": (_write_dag_name, "record.dag_name or needed(record.dag_name, 'dagName', data, corrected)"),
    "module_id": (_write_module_id, "record.module_id or None"),
    "module_name": (
        _write_module_name,
        "record.module_name or needed(record.module_name, 'moduleName', data, corrected)",
    ),
    "duration_ms": (
        _write_duration,
        (
            "record.duration_ns / MS if type(record.duration_ns) is int and 0 <= record.duration_ns < MAX_NS"
            " else duration_ms(record, corrected)"
        ),
    ),
    "succeeded": (_write_succeeded, "needed(record.succeeded, 'succeeded', data, corrected)"),
    "error": (_write_error, "ErrorInfo(record.error_type or None, record.error)"),
    "traceparent": (_write_traceparent, "record.traceparent or None"),
    "tracestate": (_write_tracestate, "record.tracestate or None"),
}
"""How each field of an event is written (``None``: with every record), and what it is in a record that is read."""
_WRITERS: Final = {
    kind: tuple((name, write) for name in kind.__struct_fields__ if (write := _BY_FIELD[name][0]) is not None)
    for kind in EVENT_TYPES
}


def _reader_of(kind: type[Event]) -> Callable[[_Json, bytes | str, list[str]], Event]:
    """One expression that makes an event of a record: a call for each field would take half as long again."""
    values = ", ".join(_BY_FIELD[name][1] for name in kind.__struct_fields__)
    names: dict[str, object] = {
        "kind": kind,
        "ErrorInfo": ErrorInfo,
        "duration_ms": _duration_ms,
        "needed": needed,
        "MAX_NS": MAX_NS,
        "MS": MS,
        "timestamp_ns": _timestamp_ns,
    }
    reader: Callable[[_Json, bytes | str, list[str]], Event]
    reader = eval(f"lambda record, data, corrected: kind({values})", names)  # noqa: S307 - the text is ours
    return reader


_READERS: Final = {kind.kind: _reader_of(kind) for kind in EVENT_TYPES}
