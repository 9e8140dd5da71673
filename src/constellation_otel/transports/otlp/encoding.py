"""Finished spans as an OTLP export request, in protobuf's wire format.

The fields of OTLP's messages that a :class:`~constellation_otel.traces.span.Span` has are
written down here by their numbers, in ascending order, as opentelemetry-proto's
generated classes would, and a test holds the two to the same bytes. These classes
take several times as long.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar

from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.traces import EXECUTION_ID, MODULE_ID, NOTHING_DROPPED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.resources import Resource

    from constellation_otel.traces import AttributeValue, Span, SpanEvent, SpanLink

__all__ = ["encode_request"]

K = TypeVar("K")
V = TypeVar("V")

_IS_REMOTE_KNOWN: Final = 0x100
"""The bit of a span's flags which says that the next one means something; that says whether the parent is remote."""
_TRACE_FLAGS: Final = 0xFF


def encode_request(spans: Sequence[Span], resource: Resource) -> bytes:
    """Writes an ExportTraceServiceRequest.

    The same spans and resource give the same bytes. Nothing in them makes it raise:
    lone surrogates become U+FFFD, and integers beyond 64 bits become text.

    Args:
        spans: Of this package's instrumentation scope.
        resource: What sends them.

    Returns:
        The request in protobuf's wire format.
    """
    encoded = _spans(spans)
    scope_length = len(_SCOPE) + sum(map(len, encoded)) + len(_SCOPE_SCHEMA_URL)
    before = _field(b"\x0a", _attributes(b"\x0a", resource.attributes)) + b"\x12" + _varint(scope_length) + _SCOPE
    after = _SCOPE_SCHEMA_URL + _text(b"\x1a", resource.schema_url)
    length = len(before) + scope_length - len(_SCOPE) - len(_SCOPE_SCHEMA_URL) + len(after)
    # put together once: it is long
    return b"".join((b"\x0a", _varint(length), before, *encoded, after))


def _spans(spans: Sequence[Span]) -> list[bytes]:  # noqa: C901, PLR0912, PLR0915 - a function for each field would cost as much as the field
    """Span messages, each as the field 2 of ScopeSpans, in parts.

    One loop, since this is where a busy listener spends its time: what comes again and again
    (names, the attributes' texts, lengths) is looked up as bytes.
    """
    encoded: list[bytes] = []
    texts, names, lengths, times = _TEXTS, _NAMES, _LENGTHS, _TIMES.pack
    trace_id, trace = -1, b""
    parent_id: int | None = -1
    parent = b""
    execution_id: AttributeValue = _NO_TEXT
    of_execution = b""
    for span in spans:
        # modules of one execution mostly come together
        if span.trace_id != trace_id:
            trace_id = span.trace_id
            trace = b"\x0a\x10" + trace_id.to_bytes(16) + b"\x12\x08"
        if span.parent_span_id != parent_id:
            parent_id = span.parent_span_id
            parent = b"" if parent_id is None else b"\x22\x08" + parent_id.to_bytes(8)
        name, state, start_ns, end_ns = span.name, span.trace_state, span.start_ns, span.end_ns
        # an execution's parent is its caller's span, and nothing says where that was
        flags = span.trace_flags & _TRACE_FLAGS
        if parent_id is None or not span.is_execution:
            flags |= _IS_REMOTE_KNOWN
        # an enum's member is hashed by a function in Python
        kind = _INTERNAL_KIND if span.kind is _INTERNAL else _KINDS[span.kind]
        parts = [
            trace,
            span.span_id.to_bytes(8),
            _text(b"\x1a", state) + parent if state else parent,
            names[name] if name in names else _remember(names, name, _text(b"\x2a", name)),
            times(kind, start_ns, b"\x41", end_ns)
            if start_ns and end_ns
            else kind[:2] + _fixed64(b"\x39", start_ns) + _fixed64(b"\x41", end_ns),
        ]
        for key, value in span.attributes.items():
            # by identity, which costs less than comparing: a key that is only equal takes the longer way
            if key is EXECUTION_ID:
                if value is not execution_id:
                    # its other spans follow
                    execution_id, of_execution = value, _key_value(b"\x4a", key, value)
                parts.append(of_execution)
            # a subclass of str may have another idea of being equal
            elif type(value) is not str:
                parts.append(_key_value(b"\x4a", key, value))
            elif key is MODULE_ID and len(value) == _ID_LENGTH and value.isascii():
                parts.append(_MODULE_ID)
                parts.append(value.encode())
            else:
                try:
                    parts.append(texts[key][value])
                except KeyError:
                    parts.append(_text_attribute(texts, b"\x4a", key, value))
        dropped = span.dropped
        if dropped is not _NOTHING and dropped.attributes:
            parts.append(b"\x50" + _varint(dropped.attributes))
        if span.events:
            parts += [_field(b"\x5a", _event(event)) for event in span.events]
        if dropped is not _NOTHING and dropped.events:
            parts.append(b"\x60" + _varint(dropped.events))
        if span.links:
            parts += [_field(b"\x6a", _link(link)) for link in span.links]
        if dropped is not _NOTHING and dropped.links:
            parts.append(b"\x70" + _varint(dropped.links))
        if span.status is not _UNSET:
            parts.append(_status(span))
        if flags:
            parts.append(_FLAGS[flags])
        message = b"".join(parts)
        length = len(message)
        encoded.append(lengths[length] if length < _MANY else b"\x12" + _varint(length))
        encoded.append(message)
    return encoded


def _event(event: SpanEvent) -> bytes:
    parts = [_fixed64(b"\x09", event.timestamp_ns), _text(b"\x12", event.name)]
    for key, value in event.attributes.items():
        if type(value) is str:
            try:
                parts.append(_EVENT_TEXTS[key][value])
            except KeyError:
                parts.append(_text_attribute(_EVENT_TEXTS, b"\x1a", key, value))
        else:
            parts.append(_key_value(b"\x1a", key, value))
    return b"".join(parts)


def _link(link: SpanLink) -> bytes:
    return b"".join(
        (
            _LINKED_TRACE,
            link.trace_id.to_bytes(16),
            _LINKED_SPAN,
            link.span_id.to_bytes(8),
            _text(b"\x1a", link.trace_state),
            _attributes(b"\x22", link.attributes),
            # nothing says where the other span was
            struct.pack("<cI", b"\x35", link.trace_flags & _TRACE_FLAGS) if link.trace_flags & _TRACE_FLAGS else b"",
        )
    )


def _status(span: Span) -> bytes:
    return _field(b"\x7a", _text(b"\x12", span.status_description or "") + b"\x18" + _ONE_BYTE[span.status.value])


def _attributes(tag: bytes, attributes: Mapping[str, AttributeValue]) -> bytes:
    """KeyValue messages, each as the field ``tag``."""
    return b"".join([_key_value(tag, key, value) for key, value in attributes.items()])


def _key_value(tag: bytes, key: str, value: AttributeValue) -> bytes:
    return _field(tag, _text(b"\x0a", key) + _field(b"\x12", _value(value)))


def _value(value: AttributeValue) -> bytes:  # noqa: PLR0911 - one for each kind that AnyValue has
    if value is None:
        return b""
    if isinstance(value, str):
        return _field(b"\x0a", _utf8(value))
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        if -(2**63) <= value < 2**63:
            return b"\x18" + _varint(value & (2**64 - 1))
        return _value(str(value))
    if isinstance(value, float):
        return _DOUBLE.pack(b"\x21", value)
    if isinstance(value, bytes):
        return _field(b"\x3a", value)
    if isinstance(value, Mapping):
        return _field(b"\x32", _attributes(b"\x0a", value))
    if isinstance(value, Iterable):
        return _field(b"\x2a", b"".join([_field(b"\x0a", _value(item)) for item in value]))
    # a user's sampler may have put anything there
    return _value(repr(value))


# Protobuf's wire format: a tag is a field's number and how long its value is


@lru_cache(maxsize=1024)
def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; remembered, since most are lengths, which come again."""
    encoded = bytearray()
    while number >= 0x80:  # noqa: PLR2004 - what seven bits hold
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _field(tag: bytes, value: bytes) -> bytes:
    """A field that has a length: text, bytes, a message; written even where it is empty."""
    length = len(value)
    return tag + (_ONE_BYTE[length] if length < 0x80 else _varint(length)) + value  # noqa: PLR2004 - what seven bits hold


def _text(tag: bytes, text: str) -> bytes:
    """A text field, which is not written where it is empty."""
    return _field(tag, _utf8(text)) if text else b""


def _fixed64(tag: bytes, number: int) -> bytes:
    """A field of eight bytes, which is not written where it is zero."""
    return _FIXED64.pack(tag, number) if number else b""


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        # a lone surrogate is three bytes of nonsense, of which each would be replaced
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _remember(known: dict[K, V], key: K, value: V) -> V:
    """Remembers a value, unless there are many; whatever comes then is made anew."""
    if len(known) < _MAX_REMEMBERED:
        known[key] = value
    return value


def _text_attribute(known: dict[str, dict[str, bytes]], tag: bytes, key: str, text: str) -> bytes:
    """A KeyValue message with a text: names and outcomes come again and again, and are remembered; ids do not."""
    made = _key_value(tag, key, text)
    if len(text) <= _MAX_TEXT and len(text) != _ID_LENGTH:
        texts = known.get(key)
        _remember(_remember(known, key, {}) if texts is None else texts, text, made)
    return made


_MAX_REMEMBERED: Final = 1024
_MAX_TEXT: Final = 128
"""Characters of an attribute's text, at most, for it to be remembered."""
_ID_LENGTH: Final = 36
"""Of a UUID's text."""

_MANY: Final = 1024
"""Bytes; most span messages have fewer."""

_ONE_BYTE: Final = [bytes([number]) for number in range(0x80)]
_FIXED64: Final = struct.Struct("<cQ")
_DOUBLE: Final = struct.Struct("<cd")
_TIMES: Final = struct.Struct("<3sQcQ")

_LINKED_TRACE: Final = b"\x0a\x10"
_LINKED_SPAN: Final = b"\x12\x08"
_NOTHING: Final = NOTHING_DROPPED
_UNSET: Final = StatusCode.UNSET
# the protocol's numbers of the kinds are the API's and one; behind it stands the tag of the start time
_KINDS: Final = {kind: b"\x30" + _ONE_BYTE[kind.value + 1] + b"\x39" for kind in SpanKind}
_INTERNAL: Final = SpanKind.INTERNAL
_INTERNAL_KIND: Final = _KINDS[_INTERNAL]
_FLAGS: Final = {flags: struct.pack("<2sI", b"\x85\x01", flags) for flags in range(0x200)}
_NAMES: Final[dict[str, bytes]] = {}
_LENGTHS: Final = [b"\x12" + _varint(length) for length in range(_MANY)]
"""What stands before a span message of a length."""
_TEXTS: Final[dict[str, dict[str, bytes]]] = {}
"""The attributes of spans that are remembered, by key and text."""
_EVENT_TEXTS: Final[dict[str, dict[str, bytes]]] = {}
"""Those of their events."""

_NO_TEXT: Final = "no span has this very one"
_MODULE_ID: Final = _key_value(b"\x4a", MODULE_ID, "0" * _ID_LENGTH)[:-_ID_LENGTH]
"""What stands before the text of a module's id."""

_SCOPE: Final = _field(b"\x0a", _text(b"\x0a", SCOPE_NAME) + _text(b"\x12", SCOPE_VERSION))
_SCOPE_SCHEMA_URL: Final = _text(b"\x1a", SCHEMA_URL)
