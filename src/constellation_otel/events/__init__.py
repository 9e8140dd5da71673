"""The six events: what callbacks become, how they look on a wire, and what each field may hold."""

from __future__ import annotations

from constellation_otel.events.engine_frames import decode_frame, encode_frame, read_frame
from constellation_otel.events.guide_json import decode_json, encode_json, plain_events, read_json
from constellation_otel.events.model import (
    EVENT_TYPES,
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
    ns_of,
    remote_parent,
    started_now,
)
from constellation_otel.events.reading import Reading
from constellation_otel.events.validation import Validated, is_valid, said, shown, validated

__all__ = [
    "EVENT_TYPES",
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
    "Validated",
    "clean_message",
    "clean_name",
    "decode_frame",
    "decode_json",
    "duration_ns_of",
    "encode_frame",
    "encode_json",
    "is_valid",
    "ns_of",
    "plain_events",
    "read_frame",
    "read_json",
    "remote_parent",
    "said",
    "shown",
    "started_now",
    "validated",
]
