"""Getting events and spans to a sink, surely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from constellation_otel._support.door import door

if TYPE_CHECKING:
    from constellation_otel.delivery.async_listener import AsyncListenerAdapter
    from constellation_otel.delivery.bridge import Bridge, BridgeReport, sink_names
    from constellation_otel.delivery.buffered_listener import BufferedListener
    from constellation_otel.delivery.contract import (
        InMemory,
        Position,
        Published,
        Record,
        Rejection,
        Restarted,
        Revoked,
        Sink,
        Source,
        SourceItem,
        SpanObserver,
        Store,
        Unreadable,
        item_of,
    )
    from constellation_otel.delivery.dead_letters import DeadLetters
    from constellation_otel.delivery.filter import DryRun, Selection
    from constellation_otel.delivery.losses import LossLog
    from constellation_otel.delivery.ready_listener import ListenerOptions, TransportListener
    from constellation_otel.delivery.sender import Backoff, Lane
    from constellation_otel.delivery.transform import AssemblyStage
    from constellation_otel.delivery.worker import Worker
else:
    __getattr__, __dir__ = door(
        __name__,
        {
            "async_listener": ("AsyncListenerAdapter",),
            "bridge": ("Bridge", "BridgeReport", "sink_names"),
            "buffered_listener": ("BufferedListener",),
            "contract": (
                "InMemory",
                "Position",
                "Published",
                "Record",
                "Rejection",
                "Restarted",
                "Revoked",
                "Sink",
                "Source",
                "SourceItem",
                "SpanObserver",
                "Store",
                "Unreadable",
                "item_of",
            ),
            "dead_letters": ("DeadLetters",),
            "filter": ("DryRun", "Selection"),
            "losses": ("LossLog",),
            "ready_listener": ("ListenerOptions", "TransportListener"),
            "sender": ("Backoff", "Lane"),
            "transform": ("AssemblyStage",),
            "worker": ("Worker",),
        },
    )

__all__ = [
    "AssemblyStage",
    "AsyncListenerAdapter",
    "Backoff",
    "Bridge",
    "BridgeReport",
    "BufferedListener",
    "DeadLetters",
    "DryRun",
    "InMemory",
    "Lane",
    "ListenerOptions",
    "LossLog",
    "Position",
    "Published",
    "Record",
    "Rejection",
    "Restarted",
    "Revoked",
    "Selection",
    "Sink",
    "Source",
    "SourceItem",
    "SpanObserver",
    "Store",
    "TransportListener",
    "Unreadable",
    "Worker",
    "item_of",
    "sink_names",
]
