"""JSON lines: the guide's events, one a line, in a file or a pipe."""

from __future__ import annotations

from constellation_otel.transports.jsonl.jsonl import JsonlListener, JsonlSink, JsonlSource

__all__ = [
    "JsonlListener",
    "JsonlSink",
    "JsonlSource",
]
