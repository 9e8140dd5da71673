"""The one door that events pass before anything is made of them: checked, and made plain.

Whatever is behind it can trust an event: every field has the type that it is
declared with, and not a subclass of it; every text can be encoded; every number
is in its range. What a field has to be is read off the events' own declarations,
so that a new field cannot be forgotten.
"""

from __future__ import annotations

from functools import partial
from operator import index
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast, get_args
from uuid import UUID

from msgspec import structs

from constellation_otel._support.text import message_of
from constellation_otel._support.text import shown as repr_of
from constellation_otel.events.model import (
    EVENT_TYPES,
    MAX_DURATION_MS,
    MAX_NAME,
    ErrorInfo,
    Event,
    clean_message,
    clean_name,
    clean_stacktrace,
    duration_ns_of,
)
from constellation_otel.events.record import (
    MAX_RECORD,
    Attributes,
    BodyRecord,
    Budget,
    ModuleDetails,
    are_plain_details,
    clean_attributes,
    cleaned_body,
    cleaned_details,
    is_plain_body,
    plain_size,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_HEADER", "MAX_TIMESTAMP_NS", "Validated", "is_valid", "said", "shown", "validated"]

MAX_TIMESTAMP_NS: Final = 2**63
"""Epoch nanoseconds are below this, since SQL and most backends hold a signed integer."""

_MAX_SHOWN: Final = 100
MAX_HEADER: Final = 8_192
"""Characters of a traceparent or tracestate; a longer one is none."""


class Validated(NamedTuple):
    """An event that every encoder can write.

    Attributes:
        event: The event; the same object where nothing had to be changed.
        corrected: What was replaced or left out, a text each that begins with the field's name.
    """

    event: Event
    corrected: tuple[str, ...]


def is_valid(event: object) -> bool:
    """Whether an event can stay as it is: what :func:`validated` finds out at its own pace, in half a microsecond.

    Args:
        event: Anything.

    Returns:
        ``False`` also where it is not certain; :func:`validated` has the last word then.
    """
    check = _CHECKS.get(type(event))
    return check is not None and check(event)


def validated(event: object) -> Validated:
    """Checks every field of an event, nested ones included, and makes it plain.

    A field without which an event says nothing (an id, a name, a time, the outcome) has
    to be right. Any other that is wrong is left out, and the rest is kept. Names and
    messages are cleaned as :func:`~constellation_otel.events.clean_name` does. A light
    traceback becomes text, which reads source files: not for a callback.

    Args:
        event: An event; a user's own source may give anything.

    Raises:
        TypeError: It is not an event, or a field that it needs has another type.
        ValueError: A field that it needs has a value that no backend can hold.
    """
    if is_valid(event):
        return Validated(cast("Event", event), ())
    corrected: list[str] = []
    for cls in (type(event), *_EVENTS):
        fields = _EVENTS.get(cls)
        if fields is not None and isinstance(event, cls):
            changed = _changes(fields, event, corrected)
            if cls is not type(event):
                # of a subclass, what it is a subclass of
                changed = {field.name: getattr(event, field.name) for field in fields} | changed
                return Validated(cls(**changed), tuple(corrected))
            known = cast("Event", event)
            return Validated(structs.replace(known, **changed) if changed else known, tuple(corrected))
    message = f"{shown(event)} is no event, and is dropped; fix what made it"
    raise TypeError(message)


def shown(value: object) -> str:
    """A value for an error message: its repr, cleaned and cut; never raises, whatever the value's own code does."""
    text = repr_of(value)
    return clean_name(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")


def said(error: BaseException) -> str:
    """What an exception says, cleaned and cut; never raises, whatever the exception's own code does."""
    return clean_message(message_of(error))


class _Field(NamedTuple):
    """A field, and what it may hold.

    Attributes:
        name: The field.
        kinds: The types that its values have.
        is_right: Whether a value of these types can stay as it is.
        plain: Makes of a value one of these types; raises whatever it likes where it cannot.
        expected: What the field may hold, for an error message.
        is_optional: Whether ``None`` is among it.
    """

    name: str
    kinds: tuple[type, ...]
    is_right: Callable[[Any], bool]
    plain: Callable[[Any], object]
    expected: str
    is_optional: bool


def _changes(fields: tuple[_Field, ...], event: object, corrected: list[str]) -> dict[str, Any]:
    """What of an event, or of an error in one, cannot stay as it is, and what becomes of it."""
    changed: dict[str, Any] = {}
    for field in fields:
        value = getattr(event, field.name)
        if field.kinds == (ModuleDetails,) and isinstance(value, ModuleDetails):
            changed[field.name] = cleaned_details(value, _plain_module_id(event), corrected)
            continue
        if type(value) in field.kinds:
            if field.is_right(value):
                continue
        elif value is None and field.is_optional:
            continue
        if field.kinds == (ErrorInfo,) and isinstance(value, ErrorInfo):
            changed[field.name] = _plain_error(value, corrected)
        else:
            changed[field.name] = _plain(field, value, corrected)
    return changed


def _plain(field: _Field, value: object, corrected: list[str]) -> object:
    """What a field holds from now on, instead of a value that it cannot hold."""
    try:
        plain = field.plain(value)
    except Exception:  # noqa: BLE001 - the value's own code, too; what cannot be read is wrong
        plain = value
    if type(plain) in field.kinds and field.is_right(plain):
        if isinstance(value, str) and plain != str.__str__(value) and field.name not in _TEXTS:
            corrected.append(f"{field.name} is {shown(value)}, which became {shown(plain)}")
        return plain
    if field.kinds == (ErrorInfo,) or field.is_optional:
        corrected.append(f"{field.name} is {shown(value)}, not {field.expected}")
        return ErrorInfo(None, None) if field.kinds == (ErrorInfo,) else None
    message = f"{field.name} must be {field.expected}, not {shown(value)}; the event is dropped; fix what made it"
    if type(plain) in field.kinds:
        raise ValueError(message)
    raise TypeError(message)


def _plain_error(error: ErrorInfo, corrected: list[str]) -> ErrorInfo:
    if error.frames is not None:
        try:
            error = error.formatted()
        except Exception as raised:  # noqa: BLE001 - frames that were made by hand; their own code, too
            corrected.append(f"frames could not be written as text: that raised {type(raised).__name__}")
    kept = {field.name: getattr(error, field.name) for field in _ERROR}
    return ErrorInfo(**kept | _changes(_ERROR, error, corrected))


def _is_plain_error(error: ErrorInfo) -> bool:
    return error.frames is None and not _changes(_ERROR, error, [])


def _plain_body(value: Any) -> object:
    return cleaned_body(value) if isinstance(value, BodyRecord) else value


def _are_plain_attributes(attributes: object) -> bool:
    return plain_size(attributes) <= MAX_RECORD


def _plain_attributes(attributes: Any) -> object:
    return clean_attributes(attributes, Budget())[0]


def _plain_module_id(event: object) -> UUID | None:
    module_id = getattr(event, "module_id", None)
    return module_id if isinstance(module_id, UUID) else None


def _is_any(value: object) -> bool:  # noqa: ARG001 - its type says it all
    return True


def _is_timestamp(value: int) -> bool:
    return 0 <= value < MAX_TIMESTAMP_NS


def _is_duration(value: float) -> bool:
    return duration_ns_of(value) is not None


def _is_header(value: str) -> bool:
    return len(value) <= MAX_HEADER and value.isascii() and value.isprintable()


def _is_clean(clean: Callable[[str], str], value: str) -> bool:
    return clean(value) == value


def _cleaned(clean: Callable[[str], str], value: str) -> str:
    return clean(str.__str__(value))


def _plain_uuid(value: Any) -> object:
    # drivers have subclasses of their own, which encoders refuse
    return UUID(int=value.int) if isinstance(value, UUID) else value


def _plain_int(value: Any) -> object:
    return value if isinstance(value, bool) else int.__int__(index(value))


def _plain_number(value: Any) -> object:
    """Of NumPy's and decimal's numbers, too; a bool is none, and what a text says is not looked at."""
    if isinstance(value, bool) or not hasattr(type(value), "__float__"):
        return value
    return int.__int__(value) if isinstance(value, int) else float.__float__(float(value))


def _as_it_is(value: object) -> object:
    return value


_TEXTS: Final = {"message": clean_message, "stacktrace": clean_stacktrace}
"""Texts that are no names. In them it can be seen what was cut or replaced, so that is not counted."""
_HEADERS: Final = ("traceparent", "tracestate")


def _field(name: str, annotation: Any) -> _Field:
    """What a field may hold, by what it is declared as."""
    kinds = tuple(kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType)
    is_optional = NoneType in get_args(annotation)
    if kinds == (str,) and name in _HEADERS:
        return _Field(name, kinds, _is_header, str.__str__, "a W3C header's value", is_optional)
    if kinds == (str,):
        clean = _TEXTS.get(name, clean_name)
        return _Field(name, kinds, partial(_is_clean, clean), partial(_cleaned, clean), "a str", is_optional)
    kinds, is_right, plain, expected = _KINDS[kinds]
    return _Field(name, kinds, is_right, plain, expected, is_optional)


_KINDS: Final[dict[tuple[type, ...], tuple[tuple[type, ...], Callable[[Any], bool], Callable[[Any], object], str]]] = {
    (UUID,): ((UUID,), _is_any, _plain_uuid, "a UUID"),
    (int,): ((int,), _is_timestamp, _plain_int, "an int within 0 and 2**63 - 1"),
    (float,): ((float, int), _is_duration, _plain_number, "a number of milliseconds, from 0 to 2**63 - 1 ns"),
    (bool,): ((bool,), _is_any, _as_it_is, "a bool"),
    (ErrorInfo,): ((ErrorInfo,), _is_plain_error, _as_it_is, "an ErrorInfo"),
    (BodyRecord,): ((BodyRecord,), is_plain_body, _plain_body, "what a body has set"),
    # looked at with the module's id
    (ModuleDetails,): ((ModuleDetails,), _is_any, _as_it_is, "details of a module"),
    (Attributes,): ((dict,), _are_plain_attributes, _plain_attributes, "attributes"),
}


def _fields(cls: type) -> tuple[_Field, ...]:
    return tuple(_field(field.name, field.type) for field in structs.fields(cls) if field.name != "frames")


_ERROR: Final = _fields(ErrorInfo)
"""But for the light traceback, which has become text before these are looked at."""
_EVENTS: Final[dict[type, tuple[_Field, ...]]] = {cls: _fields(cls) for cls in EVENT_TYPES}


def _check_of(fields: tuple[_Field, ...]) -> Callable[[Any], bool]:
    """One expression that looks at all fields of an event, written from the same table.

    Walking the table takes five times as long, and every event passes here.
    """
    parts = []
    for field in fields:
        test = _TESTS[field.kinds if field.name not in _HEADERS else _HEADERS].replace("value", f"event.{field.name}")
        parts.append(f"(event.{field.name} is None or {test})" if field.is_optional else test)
    names = {
        "UUID": UUID,
        "MAX_NAME": MAX_NAME,
        "MAX_NS": MAX_TIMESTAMP_NS,
        "MAX_MS": MAX_DURATION_MS,
        "MAX": MAX_HEADER,
        "is_plain_body": is_plain_body,
        "are_plain_details": are_plain_details,
        "are_plain_attributes": _are_plain_attributes,
        "ModuleDetails": ModuleDetails,
    }
    check: Callable[[Any], bool] = eval(f"lambda event: {' and '.join(parts)}", names)  # noqa: S307 - the text is ours
    return check


_TESTS: Final[dict[tuple[object, ...], str]] = {
    (UUID,): "type(value) is UUID",
    (int,): "(type(value) is int and 0 <= value < MAX_NS)",
    (float, int): "((type(value) is float or type(value) is int) and 0 <= value < MAX_MS)",
    (bool,): "type(value) is bool",
    (str,): "(type(value) is str and 0 < len(value) <= MAX_NAME and value.isprintable())",
    _HEADERS: "(type(value) is str and len(value) <= MAX and value.isascii() and value.isprintable())",
    # rare, and not worth an expression
    (ErrorInfo,): "False",
    (BodyRecord,): "is_plain_body(value)",
    (ModuleDetails,): "(type(value) is ModuleDetails and are_plain_details(value, event.module_id))",
    (dict,): "are_plain_attributes(value)",
}
_CHECKS: Final = {cls: _check_of(fields) for cls, fields in _EVENTS.items()}
