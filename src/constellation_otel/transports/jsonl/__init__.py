"""JSON lines: the guide's events, one a line, in a file or a pipe."""

from __future__ import annotations

from constellation_otel.transports.jsonl.files import places_of
from constellation_otel.transports.jsonl.sink import JsonlListener, JsonlSink
from constellation_otel.transports.jsonl.source import JsonlSource

__all__ = [
    "JsonlListener",
    "JsonlSink",
    "JsonlSource",
    "places_of",
    "sink_of",
    "source_of",
]

source_of = JsonlSource.from_url
sink_of = JsonlSink.from_url
