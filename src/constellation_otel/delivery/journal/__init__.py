"""The journal: a durable buffer of events in one SQLite file."""

from __future__ import annotations

from constellation_otel.delivery.journal.journal import (
    DEFAULT_SINK,
    Journal,
    JournalSink,
    JournalSource,
    all_events_of,
    check_max_bytes,
    events_of,
    forget,
    held_of,
)

__all__ = [
    "DEFAULT_SINK",
    "Journal",
    "JournalSink",
    "JournalSource",
    "all_events_of",
    "check_max_bytes",
    "events_of",
    "forget",
    "held_of",
]
