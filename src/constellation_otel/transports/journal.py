"""The journal as a source and a sink; the journal itself is in ``delivery.journal``."""

from __future__ import annotations

from constellation_otel.delivery.journal import DEFAULT_SINK, Journal, JournalSink, JournalSource, events_of, forget

__all__ = ["DEFAULT_SINK", "Journal", "JournalSink", "JournalSource", "events_of", "forget"]
