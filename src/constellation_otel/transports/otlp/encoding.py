"""Finished spans as an OTLP export request, in protobuf's wire format.

The fields of OTLP's messages that a :class:`~constellation_otel.traces.span.Span` has are
written down here by their numbers, in ascending order, as opentelemetry-proto's
generated classes would, and a test holds the two to the same bytes. These classes
take several times as long. Reading is in ``otlp_decoding``, sending in
``transports.otlp``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.traces import MODULE_NAME, AttributeValue, Span, SpanEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.resources import Resource

__all__ = ["encode_request"]

_IS_REMOTE_KNOWN: Final = 0x100
"""The bit of a span's flags which says that the next one means something; that says whether the parent is remote."""
_TRACE_FLAGS: Final = 0xFF
_MAX_CACHED: Final = 128
"""Characters of an attribute's text, at most, for its bytes to be remembered."""


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
    scope_spans = _SCOPE + b"".join([_field(b"\x12", _span(span)) for span in spans]) + _SCOPE_SCHEMA_URL
    resource_spans = (
        _field(b"\x0a", _attributes(b"\x0a", resource.attributes))
        + _field(b"\x12", scope_spans)
        + _text(b"\x1a", resource.schema_url)
    )
    return _field(b"\x0a", resource_spans)


def _span(span: Span) -> bytes:
    parent = span.parent_span_id
    # an execution's parent is its caller's span, and nothing tells where that was
    flags = span.trace_flags & _TRACE_FLAGS
    if parent is None or MODULE_NAME in span.attributes:
        flags |= _IS_REMOTE_KNOWN
    return b"".join(
        (
            b"\x0a\x10",
            span.trace_id.to_bytes(16),
            b"\x12\x08",
            span.span_id.to_bytes(8),
            _text(b"\x1a", span.trace_state),
            b"" if parent is None else b"\x22\x08" + parent.to_bytes(8),
            _text(b"\x2a", span.name),
            # the protocol's numbers of the kinds are the API's and one
            b"\x30",
            _ONE_BYTE[span.kind.value + 1],
            _fixed64(b"\x39", span.start_ns),
            _fixed64(b"\x41", span.end_ns),
            _attributes(b"\x4a", span.attributes),
            *[_field(b"\x5a", _event(event)) for event in span.events],
            _status(span),
            _FLAGS.pack(b"\x85\x01", flags) if flags else b"",
        )
    )


def _event(event: SpanEvent) -> bytes:
    return _fixed64(b"\x09", event.timestamp_ns) + _text(b"\x12", event.name) + _attributes(b"\x1a", event.attributes)


def _status(span: Span) -> bytes:
    code = span.status.value
    if not code:
        return b""
    return _field(b"\x7a", _text(b"\x12", span.status_description or "") + b"\x18" + _ONE_BYTE[code])


def _attributes(tag: bytes, attributes: Mapping[str, AttributeValue]) -> bytes:
    """KeyValue messages, each as the field ``tag``."""
    return b"".join(
        [
            # a subclass of str may have another idea of being equal
            _short(tag, key, value) if type(value) is str and len(value) <= _MAX_CACHED else _key_value(tag, key, value)
            for key, value in attributes.items()
        ]
    )


def _key_value(tag: bytes, key: str, value: AttributeValue) -> bytes:
    return _field(tag, _text(b"\x0a", key) + _field(b"\x12", _value(value)))


@lru_cache(maxsize=1024)
def _short(tag: bytes, key: str, text: str) -> bytes:
    """A KeyValue of short text, remembered: names and outcomes come again and again."""
    return _key_value(tag, key, text)


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
    # a sampler of somebody's own may have put anything there
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


_ONE_BYTE: Final = [bytes([number]) for number in range(0x80)]
_FIXED64: Final = struct.Struct("<cQ")
_DOUBLE: Final = struct.Struct("<cd")
_FLAGS: Final = struct.Struct("<2sI")

_SCOPE: Final = _field(b"\x0a", _text(b"\x0a", SCOPE_NAME) + _text(b"\x12", SCOPE_VERSION))
_SCOPE_SCHEMA_URL: Final = _text(b"\x1a", SCHEMA_URL)
