"""What is told of a module beside the callbacks' own fields: what its body set on its span, and what its engine knows.

Both are part of the module's start or end event, so that they travel and are kept together with it, and both are
plain: every value can be written on every wire, and they are bounded in number and size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

from msgspec import Struct, field

from constellation_otel._support.text import shown

__all__ = [
    "MAX_ATTRIBUTES",
    "MAX_RECORD",
    "MAX_UPSTREAM",
    "MAX_VALUE",
    "Attributes",
    "BodyRecord",
    "Budget",
    "ModuleDetails",
    "PlainValue",
    "RecordedEvent",
    "RecordedLink",
    "are_plain_details",
    "clean_attributes",
    "clean_text",
    "cleaned_body",
    "cleaned_details",
    "is_plain_body",
    "plain_size",
]

MAX_ATTRIBUTES: Final = 128
"""Attributes that details may have, as many as the SDK gives a span."""
MAX_VALUE: Final = 8_192
"""Characters that are kept of a text in an attribute, and values of a sequence."""
MAX_RECORD: Final = 131_072
"""Bytes that are kept of everything that a body has set: twice as many in JSON, at most, as it escapes characters."""
MAX_UPSTREAM: Final = 128
"""Modules that a module may link to, as many links as the SDK gives a span."""
_MAX_KEY: Final = 256
_MAX_SHOWN: Final = 100
_MAX_ATTEMPT: Final = 2**31
_MAX_INT: Final = 2**63
_MAX_MOMENTS: Final = 1_024
"""Events and links that are kept of a body, whatever the SDK's limits are."""
_NOT_IN_TEXTS: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_IN_KEYS: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_TRACE_ID: Final = re.compile("(?!0{32})[0-9a-f]{32}")
_SPAN_ID: Final = re.compile("(?!0{16})[0-9a-f]{16}")
_MAX_COUNT: Final = 2**31 - 1
"""Of what was dropped, since backends hold that in 32 bits."""
# what JSON needs besides the texts
_TEXT_SIZE: Final = 8
_NUMBER_SIZE: Final = 24
_EVENT_SIZE: Final = 64
_LINK_SIZE: Final = 128
_MAX_NAME: Final = 1_024
_MAX_FLAGS: Final = 0xFF
_TOO_MUCH: Final = MAX_RECORD + 1
_OUTCOMES: Final = ("skipped", "cached")
_STATUSES: Final = ("unset", "ok", "error")

_Scalar: TypeAlias = str | bool | int | float
PlainValue: TypeAlias = str | bool | int | float | tuple[str | bool | int | float, ...]
"""What an attribute may be on every wire."""
Attributes: TypeAlias = dict[str, PlainValue]


class RecordedEvent(Struct, frozen=True, rename="camel"):
    """Something that a body has told of its span at one moment.

    Attributes:
        name: The event's name.
        timestamp_ns: Epoch nanoseconds.
        attributes: By name.
    """

    name: str
    timestamp_ns: int
    attributes: Attributes


class RecordedLink(Struct, frozen=True, rename="camel", omit_defaults=True):
    """A link that a body has added to its span.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
        attributes: By name.
        trace_state: The tracestate header.
        trace_flags: The W3C flags.
    """

    trace_id: str
    span_id: str
    attributes: Attributes = field(default_factory=dict)
    trace_state: str = ""
    trace_flags: int = 0


class BodyRecord(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a module's body has set on its span.

    Attributes:
        attributes: By name.
        events: In the order in which they were added.
        links: In the order in which they were added.
        status: What the body says of itself; a module that fails has failed, whatever that is.
        description: What goes with an error.
        name: The span's name, where the body has given it another one.
        dropped_attributes: How many were too many.
        dropped_events: How many were too many.
        dropped_links: How many were too many.
        is_elsewhere: Whether the body ran in another process, whose start is told at submission.
    """

    attributes: Attributes = field(default_factory=dict)
    events: tuple[RecordedEvent, ...] = ()
    links: tuple[RecordedLink, ...] = ()
    status: Literal["unset", "ok", "error"] = "unset"
    description: str | None = None
    name: str | None = None
    dropped_attributes: int = 0
    dropped_events: int = 0
    dropped_links: int = 0
    is_elsewhere: bool = False


class ModuleDetails(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What an engine tells of a module beside the callbacks, as ``ModuleDetailsTaker`` has it.

    Attributes:
        parent_id: The module that this one is a part of.
        attempt: Which run of the module this is, from 1.
        attempt_of: The first attempt's module id, where this is another one.
        outcome: For a module whose body did not run.
        reason: Why that is.
        upstream: The modules whose outputs it takes.
        attributes: Further attributes of its span.
    """

    parent_id: UUID | None = None
    attempt: int = 1
    attempt_of: UUID | None = None
    outcome: Literal["skipped", "cached"] | None = None
    reason: str | None = None
    upstream: tuple[UUID, ...] = ()
    attributes: Attributes = field(default_factory=dict)


class Budget:
    """How much more is kept of something that many parts add to.

    Args:
        left: Bytes.
    """

    __slots__ = ("left",)

    def __init__(self, left: int = MAX_RECORD) -> None:
        self.left = left

    def takes(self, size: int) -> bool:
        """Whether there is room for so much more, which is taken then."""
        if size > self.left:
            return False
        self.left -= size
        return True


def clean_text(text: str, limit: int = MAX_VALUE) -> str:
    """A text that every backend can hold; cleaning it once more changes nothing."""
    text = str.__str__(text)[:limit]
    return text if text.isprintable() else _NOT_IN_TEXTS.sub("\N{REPLACEMENT CHARACTER}", text)


def clean_attributes(
    attributes: Mapping[Any, Any], budget: Budget, limit: int = MAX_ATTRIBUTES
) -> tuple[Attributes, int]:
    """Attributes that every wire can hold.

    Args:
        attributes: By name.
        budget: How much is kept.
        limit: How many are kept.

    Returns:
        Those that can be held, the first ones, and how many cannot. Texts are cut at :data:`MAX_VALUE`
        characters; whole numbers beyond 64 bits, and numbers that are not finite, become text.
    """
    cleaned: Attributes = {}
    dropped = 0
    for key, value in attributes.items():
        name = _clean_key(key) if isinstance(key, str) else ""
        has_room = name in cleaned or (name and len(cleaned) < limit)
        plain: PlainValue | None = _or_none(_plain_value, value) if has_room else None
        if plain is None or not budget.takes(_size(name) + _size(plain)):
            dropped += 1
        else:
            cleaned[name] = plain
    return cleaned, dropped


def plain_size(attributes: object, limit: int = MAX_ATTRIBUTES) -> int:
    """How much attributes take of a budget that can stay as they are; more than any budget has where they cannot."""
    if type(attributes) is not dict or len(attributes) > limit:
        return _TOO_MUCH
    size = 0
    for key, value in attributes.items():
        if type(key) is not str or not 0 < len(key) <= _MAX_KEY or not (key.isprintable() or _clean_key(key) == key):
            return _TOO_MUCH
        if type(value) is tuple:
            if len(value) > MAX_VALUE or not all(map(_is_plain_scalar, value)):
                return _TOO_MUCH
        elif not _is_plain_scalar(value):
            return _TOO_MUCH
        size += _size(key) + _size(value)
    return size


def is_plain_body(record: BodyRecord) -> bool:
    """Whether :func:`cleaned_body` has nothing to do; never raises."""
    if type(record) is not BodyRecord or type(record.events) is not tuple or type(record.links) is not tuple:
        return False
    if max(len(record.events), len(record.links)) > _MAX_MOMENTS:
        return False
    size = plain_size(record.attributes, _MAX_MOMENTS)
    for event in record.events:
        if type(event) is not RecordedEvent or not _is_plain_text(event.name):
            return False
        if type(event.timestamp_ns) is not int or not 0 <= event.timestamp_ns < _MAX_INT:
            return False
        size += _size(event.name) + _EVENT_SIZE + plain_size(event.attributes, _MAX_MOMENTS)
    for link in record.links:
        if type(link) is not RecordedLink or not _is_plain_link(link):
            return False
        size += _size(link.trace_state) + _LINK_SIZE + plain_size(link.attributes, _MAX_MOMENTS)
    return (
        size <= MAX_RECORD
        and type(record.status) is str
        and record.status in _STATUSES
        and (record.description is None or _is_plain_text(record.description))
        and (record.name is None or (_is_plain_text(record.name) and 0 < len(record.name) <= _MAX_NAME))
        and all(
            type(count) is int and 0 <= count <= _MAX_COUNT
            for count in (record.dropped_attributes, record.dropped_events, record.dropped_links)
        )
        and type(record.is_elsewhere) is bool
    )


def are_plain_details(details: ModuleDetails, module_id: UUID | None) -> bool:
    """Whether :func:`cleaned_details` has nothing to do; never raises."""
    parent_id, attempt_of = details.parent_id, details.attempt_of
    return (
        type(details) is ModuleDetails
        and type(details.attempt) is int
        and 0 < details.attempt < _MAX_ATTEMPT
        and (parent_id is None or (type(parent_id) is UUID and parent_id != module_id))
        and (attempt_of is None or (type(attempt_of) is UUID and attempt_of != module_id))
        and (details.outcome is None or (type(details.outcome) is str and details.outcome in _OUTCOMES))
        and (details.reason is None or _is_plain_text(details.reason))
        and type(details.upstream) is tuple
        and len(details.upstream) <= MAX_UPSTREAM
        and all(type(each) is UUID for each in details.upstream)
        and plain_size(details.attributes) <= MAX_RECORD
    )


def cleaned_body(record: BodyRecord) -> BodyRecord:
    """The same record as every wire can hold it, within bounds; an equal one where there is nothing to be done.

    What is not what it is declared as is left out, and counted as dropped where that is counted. Never raises.
    """
    told: Any = record
    budget = Budget()
    attributes, dropped_attributes = _attributes_of(told.attributes, budget)
    events, links = _first(told.events), _first(told.links)
    # the few and small ones first: events may take all that is kept
    kept_links = [kept for each in links if (kept := _or_none(_cleaned_link, each, budget)) is not None]
    kept_events = [kept for each in events if (kept := _or_none(_cleaned_event, each, budget)) is not None]
    return BodyRecord(
        attributes,
        tuple(kept_events),
        tuple(kept_links),
        record.status if type(told.status) is str and told.status in _STATUSES else "unset",
        clean_text(told.description) if isinstance(told.description, str) else None,
        (clean_text(told.name, _MAX_NAME) or None) if isinstance(told.name, str) else None,
        _count(told.dropped_attributes, dropped_attributes),
        _count(told.dropped_events, _length(told.events) - len(kept_events)),
        _count(told.dropped_links, _length(told.links) - len(kept_links)),
        told.is_elsewhere is True,
    )


def _cleaned_event(event: RecordedEvent, budget: Budget) -> RecordedEvent | None:
    name = clean_text(event.name)
    timestamp_ns = int.__int__(event.timestamp_ns)
    if not 0 <= timestamp_ns < _MAX_INT or not budget.takes(_size(name) + _EVENT_SIZE):
        return None
    return RecordedEvent(name, timestamp_ns, _attributes_of(event.attributes, budget)[0])


def _cleaned_link(link: RecordedLink, budget: Budget) -> RecordedLink | None:
    state = clean_text(link.trace_state)
    ids = str.__str__(link.trace_id), str.__str__(link.span_id)
    if not (_TRACE_ID.fullmatch(ids[0]) and _SPAN_ID.fullmatch(ids[1]) and state.isascii()):
        return None
    if not budget.takes(_size(state) + _LINK_SIZE):
        return None
    flags = int.__int__(link.trace_flags) & _MAX_FLAGS
    return RecordedLink(*ids, _attributes_of(link.attributes, budget)[0], state, flags)


def cleaned_details(details: ModuleDetails, module_id: UUID | None, corrected: list[str]) -> ModuleDetails:
    """The same details as every wire can hold them, within bounds; an equal one where there is nothing to be done.

    Args:
        details: What was told; its fields may be anything.
        module_id: Of which module.
        corrected: Takes what was left out, a text each.
    """
    told: Any = details

    def kept(name: str, expected: str, plain: Any, default: Any) -> Any:
        """What there is instead of a field; the default, where that is ``None`` and the field is not."""
        value = getattr(told, name)
        if plain is None and value is not None:
            corrected.append(f"details.{name} is {shown(value)[:_MAX_SHOWN]}, not {expected}")
        return default if plain is None else plain

    attempt = told.attempt if type(told.attempt) is int and 0 < told.attempt < _MAX_ATTEMPT else None
    upstream = _plain_ids(told.upstream)
    cleaned = _or_none(clean_attributes, told.attributes, Budget())
    attributes, dropped = (None, 0) if cleaned is None else cleaned
    if dropped:
        corrected.append(f"details.attributes has {dropped} of {len(told.attributes)} that cannot be kept")
    return ModuleDetails(
        kept("parent_id", "the id of another module", _plain_id(told.parent_id, module_id), None),
        kept("attempt", "a whole number from 1", attempt, 1),
        kept("attempt_of", "the id of another module", _plain_id(told.attempt_of, module_id), None),
        kept("outcome", "skipped or cached", _plain_outcome(told.outcome), None),
        kept("reason", "a text", clean_text(told.reason) if isinstance(told.reason, str) else None, None),
        kept("upstream", f"at most {MAX_UPSTREAM} ids of modules", upstream, _first_ids(told.upstream)),
        kept("attributes", "a mapping", attributes, {}),
    )


def _or_none(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function makes of values that are somebody else's, whose own code may raise anything; ``None`` then."""
    try:
        return function(*arguments)
    except Exception:  # noqa: BLE001 - the values' own code; whoever asks counts what is left out
        return None


def _attributes_of(attributes: Any, budget: Budget) -> tuple[Attributes, int]:
    """Of something that is no mapping, none; how many those were is not known."""
    return _or_none(clean_attributes, attributes, budget, _MAX_MOMENTS) or ({}, 1)


def _first(items: Any) -> Sequence[Any]:
    return items[:_MAX_MOMENTS] if type(items) in {tuple, list} else ()


def _length(items: Any) -> int:
    return len(items) if type(items) in {tuple, list} else 0


def _plain_outcome(outcome: object) -> str | None:
    text = str.__str__(outcome) if isinstance(outcome, str) else None
    return text if text in _OUTCOMES else None


def _plain_ids(ids: Any) -> tuple[UUID, ...] | None:
    """``None`` where some are left out."""
    first = _first_ids(ids)
    return first if isinstance(ids, Sequence) and len(first) == _or_none(len, ids) else None


def _first_ids(ids: Any) -> tuple[UUID, ...]:
    first = _or_none(lambda: ids[:MAX_UPSTREAM]) if isinstance(ids, Sequence) else None
    return tuple(plain for value in first or () if (plain := _plain_id(value, None)) is not None)


def _clean_key(key: str) -> str:
    return _NOT_IN_KEYS.sub("\N{REPLACEMENT CHARACTER}", str.__str__(key)[:_MAX_KEY])


def _is_plain_text(text: object) -> bool:
    return type(text) is str and len(text) <= MAX_VALUE and (text.isprintable() or clean_text(text) == text)


def _is_plain_link(link: RecordedLink) -> bool:
    texts = link.trace_id, link.span_id, link.trace_state
    return (
        all(type(text) is str for text in texts)
        and _TRACE_ID.fullmatch(link.trace_id) is not None
        and _SPAN_ID.fullmatch(link.span_id) is not None
        and link.trace_state.isascii()
        and _is_plain_text(link.trace_state)
        and type(link.trace_flags) is int
        and 0 <= link.trace_flags <= _MAX_FLAGS
    )


def _is_plain_scalar(value: object) -> bool:
    kind = type(value)
    if kind is str:
        return _is_plain_text(value)
    if kind is int:
        return -_MAX_INT <= value < _MAX_INT  # type: ignore[operator] # it is one
    return kind is bool or (kind is float and isfinite(value))  # type: ignore[arg-type] # likewise


def _plain_id(value: object, other_than: UUID | None) -> UUID | None:
    if not isinstance(value, UUID) or value == other_than:
        return None
    return value if type(value) is UUID else UUID(int=value.int)


def _count(told: object, more: int) -> int:
    return min(max(int.__int__(told), 0) + more, _MAX_COUNT) if isinstance(told, int) else more


def _plain_value(value: object) -> PlainValue | None:
    """``None`` where it can be no attribute."""
    if isinstance(value, str | bool | int | float):
        return _plain_scalar(value)
    if isinstance(value, bytes):
        return clean_text(value[:MAX_VALUE].decode(errors="replace"))
    if not isinstance(value, Sequence):
        return None
    size, plain = 0, list[_Scalar]()
    for item in value[:MAX_VALUE]:
        if isinstance(item, str | bool | int | float):
            plain.append(_plain_scalar(item))
            size += _size(plain[-1])
        if size > MAX_RECORD:
            # what is too much is not looked at to its end
            return None
    return tuple(plain)


def _plain_scalar(value: _Scalar) -> _Scalar:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int.__int__(value) if -_MAX_INT <= value < _MAX_INT else clean_text(shown(int.__int__(value)))
    return float.__float__(value) if isfinite(value) else str(float.__float__(value))


def _size(value: PlainValue) -> int:
    if isinstance(value, str):
        return _TEXT_SIZE + (len(value) if value.isascii() else len(value.encode()))
    return sum(map(_size, value)) + _TEXT_SIZE if isinstance(value, tuple) else _NUMBER_SIZE
