"""What the dialects have in common: reading leniently what is intelligible, and never silently what is not."""

from __future__ import annotations

import json
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from constellation_otel.errors import DecodeError
from constellation_otel.events.model import Event, ns_of
from constellation_otel.events.validation import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MAX_NS", "MS", "NOT_JSON", "Reading", "fields_of", "needed", "ns_of_ms", "unreadable"]

T = TypeVar("T")

MS: Final = 1_000_000
"""Nanoseconds in a millisecond."""
MAX_NS: Final = 2**63
_SHOWN: Final = 200
_BOM: Final = "\N{ZERO WIDTH NO-BREAK SPACE}"
_BOM_BYTES: Final = _BOM.encode()
_UNITS: Final = ((1, "seconds"), (1_000_000, "microseconds"), (1_000_000_000, "nanoseconds"))
"""What else an epoch time is counted in, and how many of it a second has."""
_FIRST_SECOND: Final = 500_000_000
_LAST_SECOND: Final = 5_000_000_000
"""From 1985 to 2128: a number that is within these years in another unit, and is 1970 or no year at all in ms."""
NOT_JSON: Final = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What msgspec raises for bad JSON, for bytes or text that are not UTF-8, for a million brackets."""


class Reading(NamedTuple):
    """What a record says.

    Attributes:
        event: The event.
        corrected: What could not be read and was left out, a text each that begins with the field's name.
    """

    event: Event
    corrected: tuple[str, ...]


def fields_of(data: bytes | str, kind: type[T], decoder: msgspec.json.Decoder[T]) -> tuple[T, list[str]]:
    """A record's fields, and what of them was left out since it could not be read.

    Raises:
        DecodeError: It is not JSON, not an object, or a field that it needs cannot be read.
    """
    try:
        return decoder.decode(data), []
    except NOT_JSON as raised:
        # what msgspec says of such bytes depends on its version
        error = _why_no_text(data) or raised
    data = data.removeprefix(_BOM_BYTES) if isinstance(data, bytes) else data.removeprefix(_BOM)
    fields = _intelligible(data)
    if fields is None:
        raise unreadable(data, error) from error
    # field by field, which takes some ten times as long
    values: dict[str, Any] = {}
    corrected = ["bytes that are not UTF-8 were replaced"] if isinstance(error, UnicodeDecodeError) else []
    for field in msgspec.structs.fields(kind):  # type: ignore[arg-type] # both kinds are structs
        name = field.encode_name
        if name in fields:
            try:
                values[field.name] = msgspec.convert(fields[name], field.type)
            except (msgspec.ValidationError, UnicodeError, SystemError) as wrong:  # the last: msgspec 0.21, of 10**400
                if field.required:
                    raise unreadable(data, f"{wrong} - at `$.{name}`") from wrong
                corrected.append(f"{name} is {shown(fields[name])}: {wrong}")
        elif field.required:
            raise unreadable(data, f"Object missing required field `{name}`")
    return kind(**values), corrected


def needed(value: T | None, field: str, data: bytes | str, corrected: list[str]) -> T:
    """A value without which the record says nothing.

    Raises:
        DecodeError: There is none.
    """
    if value is None:
        why = next((reason for reason in corrected if reason.startswith(f"{field} ")), f"{field} is missing or null")
        raise unreadable(data, why)
    return value


def ns_of_ms(timestamp: float, data: bytes | str) -> int:
    """Epoch nanoseconds of what should be epoch milliseconds.

    Raises:
        DecodeError: It is out of range, or looks like another unit.
    """
    if not 0 <= timestamp < inf:
        raise unreadable(data, f"timestamp is {timestamp}, not within 0 and 2**63 - 1 ns")
    for in_a_second, unit in _UNITS:
        if _FIRST_SECOND <= timestamp // in_a_second < _LAST_SECOND:
            raise unreadable(data, f"timestamp is {timestamp}, which looks like {unit}, not epoch milliseconds")
    timestamp_ns = ns_of(timestamp)
    if timestamp_ns >= MAX_NS:
        raise unreadable(data, f"timestamp is {timestamp}, not within 0 and 2**63 - 1 ns")
    return timestamp_ns


def unreadable(data: bytes | str, why: object) -> DecodeError:
    """The error for a record that says nothing, with the record's beginning."""
    beginning = repr(data[:_SHOWN]) + ("…" if len(data) > _SHOWN else "")
    return DecodeError(f"not an event: {why}; the record is {beginning}")


def _why_no_text(data: bytes | str) -> UnicodeDecodeError | None:
    """What is wrong with bytes that are not UTF-8."""
    if isinstance(data, bytes):
        try:
            data.decode()
        except UnicodeDecodeError as error:
            return error
    return None


def _intelligible(data: bytes | str) -> Mapping[str, Any] | None:
    """The fields of what is JSON but for NaN, raw control characters, or bytes that are not UTF-8."""
    text = data if isinstance(data, str) else data.decode(errors="replace")
    try:
        fields = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None
