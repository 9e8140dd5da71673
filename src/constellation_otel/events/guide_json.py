"""The guide's JSON: how Kafka, JSON lines and the SQL table write an event.

A field without which the rest still says something (a duration, a module's id, an
error, an extension) is left out where it cannot be read, and reported with the event.
Which fields a type has is read off the events' own declarations.
"""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeAlias, Union, get_args
from uuid import UUID

import msgspec
from msgspec import NODEFAULT, UNSET, Meta, Struct, UnsetType, defstruct, structs

from constellation_otel.errors import DecodeError
from constellation_otel.events.model import (
    CALLBACK_EVENTS,
    EVENT_TYPES,
    MAX_DURATION_MS,
    MAX_NAME,
    ErrorInfo,
    Event,
    ExecutionJoined,
    ModuleCompleted,
    ModuleDescribed,
    ModuleFailed,
    clean_message,
    clean_name,
    duration_ns_of,
)
from constellation_otel.events.reading import MAX_NS, MS, NOT_JSON, Reading, fields_of, needed, ns_of_ms, unreadable
from constellation_otel.events.record import BodyRecord, ModuleDetails, PlainValue
from constellation_otel.events.validation import MAX_HEADER, validated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["decode_json", "encode_identity", "encode_json", "plain_events", "read_json"]


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
    engine: str | UnsetType | None = UNSET
    attributes: dict[str, PlainValue] | UnsetType | None = UNSET
    details: ModuleDetails | UnsetType | None = UNSET
    body: BodyRecord | UnsetType | None = UNSET


_DECODER: Final = msgspec.json.Decoder(_Json)
_ENCODER: Final = msgspec.json.Encoder()
_SUCCEEDED: Final[dict[type[Event], bool]] = {ModuleCompleted: True, ModuleFailed: False}
"""What the guide's own listener writes with these two, whose type says it already."""


def encode_json(event: Event) -> bytes:
    """Encodes an event as the guide's JSON, one line without its end.

    Durations and timestamps are whole milliseconds, since a Scala reader decodes
    a ``Long``; the nanoseconds follow as extension fields, where there are any, and
    what the engine and the module's body have told besides.
    """
    return _ENCODER.encode(_record_of(event, _WRITERS[type(event)]))


def encode_identity(event: Event) -> bytes:
    """What makes an event itself, encoded: as :func:`encode_json` does, without what may be told besides.

    It stays the same from one release to the next, and so do ids that are made of it.
    """
    return _ENCODER.encode(_record_of(event, _IDENTITY[type(event)]))


def _record_of(event: Event, writers: Sequence[tuple[str, Callable[[_Json, Any], None]]]) -> _Json:
    kind = type(event)
    record = _Json(
        kind.kind,
        event.execution_id,
        succeeded=_SUCCEEDED.get(kind),
        timestamp=event.timestamp_ns // MS,
        timestamp_ns=event.timestamp_ns,
    )
    for name, write in writers:
        write(record, getattr(event, name))
    return record


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
    events = plain_events((data,))
    return Reading(events[0], ()) if events is not None else read_closely(data)


def read_closely(data: bytes | str) -> Reading:
    """Reads any record as :func:`read_json` does, which asks this one where a record is not plain.

    Raises:
        DecodeError: As :func:`decode_json` does.
    """
    record, corrected = fields_of(data, _Json, _DECODER)
    kind = _KINDS.get(record.event_type)
    if kind is None:
        raise unreadable(data, f"eventType {record.event_type!r} is none that is known")
    if kind is ModuleDescribed and not isinstance(record.details, ModuleDetails):
        needed(None, "details", data, corrected)
    if kind is ModuleDescribed and not record.module_id:
        needed(None, "moduleId", data, corrected)
    values = [_BY_FIELD[name].read(record, data, corrected) for name in kind.__struct_fields__]
    return Reading(kind(*values), tuple(corrected))


def plain_events(records: Sequence[bytes | str]) -> list[Event] | None:
    """The events of records in which there is nothing to be said about any, in less time than one by one.

    Args:
        records: One JSON object each.

    Returns:
        Events that are :func:`~constellation_otel.events.validated`, one for each record. ``None`` where
        anything has to be corrected, or is no event: :func:`read_json` says of each what it is.
    """
    try:
        events = [
            event
            for record in map(_PLAIN_DECODER.decode, records)
            if (event := _PLAIN[type(record)](record)) is not None
        ]
    except _NOT_PLAIN:
        return None
    return events if len(events) == len(records) else None


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


def _write_engine(record: _Json, engine: str | None) -> None:
    record.engine = UNSET if engine is None else engine


def _write_attributes(record: _Json, attributes: dict[str, PlainValue] | None) -> None:
    record.attributes = attributes or UNSET


def _write_details(record: _Json, details: ModuleDetails | None) -> None:
    record.details = UNSET if details is None else details


def _write_body(record: _Json, body: BodyRecord | None) -> None:
    record.body = UNSET if body is None else body


def _duration_ms(record: _Json, _data: bytes | str, corrected: list[str]) -> float | None:
    """The extension, where there is one; one that is not a duration does not hide the guide's field."""
    duration_ns = record.duration_ns
    if not isinstance(duration_ns, int):
        return record.duration_ms
    if 0 <= duration_ns < MAX_NS:
        return duration_ns / MS
    corrected.append(f"durationNs is {duration_ns}, not within 0 and 2**63 - 1")
    return record.duration_ms


def _timestamp_ns(record: _Json, data: bytes | str, corrected: list[str]) -> int:
    """The extension, where there is one that agrees with the guide's field; another one does not hide that."""
    timestamp_ns = record.timestamp_ns
    if not isinstance(timestamp_ns, int):
        return ns_of_ms(needed(record.timestamp, "timestamp", data, corrected), data)
    if 0 <= timestamp_ns < MAX_NS and record.timestamp in {None, timestamp_ns // MS}:
        return timestamp_ns
    if record.timestamp is None:
        raise unreadable(data, f"timestampNs is {timestamp_ns}, not within 0 and 2**63 - 1, and there is no timestamp")
    at_ns = ns_of_ms(record.timestamp, data)
    corrected.append(f"timestampNs is {timestamp_ns}, which is another time than timestamp, {record.timestamp} ms")
    return at_ns


class _Field(NamedTuple):
    """How a field of an event is written and read.

    Attributes:
        write: Puts it into a record; ``None`` where every record has it.
        read: What it is in a record that has to be looked at closely.
        plain: What has to be so of a plain record, and what the field is then, both as an expression.
        of_plain: The types of a plain record's fields that it is read from, where they are narrower than
            those of any record; msgspec sees to it that they are.
    """

    write: Callable[[_Json, Any], None] | None
    read: Callable[[_Json, bytes | str, list[str]], Any]
    plain: tuple[str, str]
    of_plain: dict[str, Any]


_Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
_Ns: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_NS - 1)]
_Header: TypeAlias = Annotated[str, Meta(max_length=MAX_HEADER)]
_IS_NAME: Final = "(value.isprintable() or clean_name(value) == value)"
_IS_HEADER: Final = "(value is None or value.isascii() and value.isprintable())"

_BY_FIELD: Final[dict[str, _Field]] = {
    "execution_id": _Field(
        None, lambda record, _data, _corrected: record.execution_id, ("", "record.execution_id"), {"execution_id": UUID}
    ),
    "timestamp_ns": _Field(
        None,
        _timestamp_ns,
        (
            (
                "(record.timestamp_ns is None or record.timestamp is None"
                " or type(record.timestamp) is int and 0 <= record.timestamp_ns - record.timestamp * MS < MS)"
            ),
            "record.timestamp_ns if record.timestamp_ns is not None else ns_of_ms(record.timestamp, b'')",
        ),
        {"timestamp_ns": _Ns | None},
    ),
    "dag_name": _Field(
        _write_dag_name,
        lambda record, data, corrected: record.dag_name or needed(record.dag_name, "dagName", data, corrected),
        (_IS_NAME.replace("value", "record.dag_name"), "record.dag_name"),
        {"dag_name": _Name},
    ),
    "module_id": _Field(
        _write_module_id,
        lambda record, _data, _corrected: record.module_id or None,
        ("", "record.module_id"),
        {"module_id": UUID | None},
    ),
    "module_name": _Field(
        _write_module_name,
        lambda record, data, corrected: needed(record.module_name, "moduleName", data, corrected),
        (_IS_NAME.replace("value", "record.module_name"), "record.module_name"),
        {"module_name": _Name},
    ),
    "duration_ms": _Field(
        _write_duration,
        _duration_ms,
        ("", "record.duration_ns / MS if record.duration_ns is not None else record.duration_ms"),
        {
            "duration_ms": Annotated[float, Meta(ge=0, lt=MAX_DURATION_MS)] | None,
            # the largest become a float that is too large
            "duration_ns": Annotated[int, Meta(ge=0, le=MAX_NS - 2_048)] | None,
        },
    ),
    "succeeded": _Field(
        _write_succeeded,
        lambda record, data, corrected: needed(record.succeeded, "succeeded", data, corrected),
        ("", "record.succeeded"),
        {"succeeded": bool},
    ),
    "error": _Field(
        _write_error,
        lambda record, _data, _corrected: ErrorInfo(record.error_type or None, record.error),
        # rare, and not worth an expression
        ("validated(event) == (event, ())", "ErrorInfo(record.error_type or None, record.error)"),
        {"error": str | None, "error_type": str | None},
    ),
    "traceparent": _Field(
        _write_traceparent,
        lambda record, _data, _corrected: record.traceparent or None,
        (_IS_HEADER.replace("value", "record.traceparent"), "record.traceparent or None"),
        {"traceparent": _Header | None},
    ),
    "tracestate": _Field(
        _write_tracestate,
        lambda record, _data, _corrected: record.tracestate or None,
        (_IS_HEADER.replace("value", "record.tracestate"), "record.tracestate or None"),
        {"tracestate": _Header | None},
    ),
    "engine": _Field(
        _write_engine,
        lambda record, _data, _corrected: record.engine or None,
        ("(record.engine is None or clean_name(record.engine) == record.engine)", "record.engine or None"),
        {"engine": str | None},
    ),
    # each rare, and not worth an expression
    "attributes": _Field(
        _write_attributes,
        lambda record, _data, _corrected: record.attributes or None,
        ("(record.attributes is None or validated(event) == (event, ()))", "record.attributes or None"),
        {"attributes": dict[str, PlainValue] | None},
    ),
    "details": _Field(
        _write_details,
        lambda record, _data, _corrected: record.details or None,
        ("(record.details is None or validated(event) == (event, ()))", "record.details"),
        {"details": ModuleDetails | None},
    ),
    "body": _Field(
        _write_body,
        lambda record, _data, _corrected: record.body or None,
        ("(record.body is None or validated(event) == (event, ()))", "record.body"),
        {"body": BodyRecord | None},
    ),
}
_BESIDES: Final = {"engine", "attributes", "details", "body"}
"""The fields that were told besides what the guide's record has, and that are no part of an event's identity."""
_WRITTEN: Final = tuple(kind for kind in EVENT_TYPES if kind is not ExecutionJoined)
"""That an execution was joined is a process's own business."""
_WRITERS: Final = {
    kind: tuple((name, write) for name in kind.__struct_fields__ if (write := _BY_FIELD[name].write) is not None)
    for kind in _WRITTEN
}
_IDENTITY: Final = {
    kind: tuple((name, write) for name, write in writers if name not in _BESIDES or kind is ModuleDescribed)
    for kind, writers in _WRITERS.items()
}
_KINDS: Final = {kind.kind: kind for kind in _WRITTEN}


def _plain_record_of(kind: type[Event]) -> type[Struct]:
    """What a record of an event is like in which there is nothing to be said about any field, its own or another."""
    types = {field.name: (field.type, field.default) for field in structs.fields(_Json) if field.name != "event_type"}
    for name in kind.__struct_fields__:
        for field, of in _BY_FIELD[name].of_plain.items():
            types[field] = (of, None if NoneType in get_args(of) else NODEFAULT)
    fields: list[Any] = [
        (name, of) if default is NODEFAULT else (name, of, default) for name, (of, default) in types.items()
    ]
    # what is required comes first
    fields.sort(key=len)
    return defstruct(f"_Plain{kind.__name__}", fields, rename="camel", gc=False, tag_field="eventType", tag=kind.kind)


def _plain_event_of(kind: type[Event]) -> Callable[[Any], Event | None]:
    """One expression that makes an event of such a record, ``None`` where it is none: calls take as long again."""
    fields = [_BY_FIELD[name].plain for name in kind.__struct_fields__]
    values = ", ".join(value for _, value in fields)
    conditions = " and ".join([f"(event := kind({values}))", *(condition for condition, _ in fields if condition)])
    names = {
        "kind": kind,
        "ErrorInfo": ErrorInfo,
        "MS": MS,
        "clean_name": clean_name,
        "ns_of_ms": ns_of_ms,
        "validated": validated,
    }
    plain: Callable[[Any], Event | None]
    plain = eval(f"lambda record: event if {conditions} else None", names)  # noqa: S307 - the text is ours
    return plain


_PLAIN: Final = {_plain_record_of(kind): _plain_event_of(kind) for kind in CALLBACK_EVENTS}
_PLAIN_DECODER: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(Union[*_PLAIN])
_NOT_PLAIN: Final = (*NOT_JSON, DecodeError, TypeError, SystemError)
"""What reading a record raises that is not plain; the last: msgspec 0.21, of 10**400."""
