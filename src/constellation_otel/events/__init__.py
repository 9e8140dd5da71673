"""The six events: what callbacks become, how they look on a wire, and what each field may hold."""

from __future__ import annotations

from constellation_otel.events.dialects import (
    Reading,
    decode_frame,
    decode_json,
    encode_frame,
    encode_json,
    read_frame,
    read_json,
)
from constellation_otel.events.model import (
    ErrorInfo,
    Event,
    EventListener,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
    clean_message,
    clean_name,
    duration_ns_of,
    remote_parent,
    started_now,
)
from constellation_otel.events.validation import said, shown, validated

__all__ = [
    "ErrorInfo",
    "Event",
    "EventListener",
    "ExecutionCancelled",
    "ExecutionCompleted",
    "ExecutionStarted",
    "ModuleCompleted",
    "ModuleFailed",
    "ModuleStarted",
    "Reading",
    "clean_message",
    "clean_name",
    "decode_frame",
    "decode_json",
    "duration_ns_of",
    "encode_frame",
    "encode_json",
    "read_frame",
    "read_json",
    "remote_parent",
    "said",
    "shown",
    "started_now",
    "validated",
]
