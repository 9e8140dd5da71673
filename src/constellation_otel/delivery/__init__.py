"""Getting events and spans to a sink, surely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from constellation_otel._support.door import door

if TYPE_CHECKING:
    from constellation_otel.delivery.async_listener import AsyncListenerAdapter
    from constellation_otel.delivery.bridge import Bridge, BridgeReport, sink_names
    from constellation_otel.delivery.buffered_listener import BufferedListener, ListenerOptions
    from constellation_otel.delivery.clocks import Watermark
    from constellation_otel.delivery.contract import (
        AnySource,
        Batch,
        BatchBuilder,
        Position,
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
        as_source,
        batches_of,
        item_of,
    )
    from constellation_otel.delivery.counters import (
        AssemblyCounters,
        Counters,
        JournalCounters,
        SendingCounters,
        SinkCounters,
    )
    from constellation_otel.delivery.dead_letters import DeadLetters
    from constellation_otel.delivery.filter import ExecutionFilter
    from constellation_otel.delivery.losses import LossLog
    from constellation_otel.delivery.retry import Backoff, LastError, Retry
    from constellation_otel.delivery.transform import TraceAssembly, Transform
    from constellation_otel.delivery.worker import Handler, QueueCounters, Worker
else:
    __getattr__, __dir__ = door(
        __name__,
        {
            "async_listener": ("AsyncListenerAdapter",),
            "bridge": (
                "Bridge",
                "BridgeReport",
                "sink_names",
            ),
            "buffered_listener": ("BufferedListener", "ListenerOptions"),
            "clocks": ("Watermark",),
            "contract": (
                "AnySource",
                "Batch",
                "BatchBuilder",
                "Position",
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
                "as_source",
                "batches_of",
                "item_of",
            ),
            "counters": (
                "AssemblyCounters",
                "Counters",
                "JournalCounters",
                "SendingCounters",
                "SinkCounters",
            ),
            "dead_letters": ("DeadLetters",),
            "filter": ("ExecutionFilter",),
            "losses": ("LossLog",),
            "retry": (
                "Backoff",
                "LastError",
                "Retry",
            ),
            "transform": (
                "TraceAssembly",
                "Transform",
            ),
            "worker": (
                "Handler",
                "QueueCounters",
                "Worker",
            ),
        },
    )

__all__ = [
    "AnySource",
    "AssemblyCounters",
    "AsyncListenerAdapter",
    "Backoff",
    "Batch",
    "BatchBuilder",
    "Bridge",
    "BridgeReport",
    "BufferedListener",
    "Counters",
    "DeadLetters",
    "ExecutionFilter",
    "Handler",
    "JournalCounters",
    "LastError",
    "ListenerOptions",
    "LossLog",
    "Position",
    "QueueCounters",
    "Record",
    "Rejection",
    "Restarted",
    "Retry",
    "Revoked",
    "SendingCounters",
    "Sink",
    "SinkCounters",
    "Source",
    "SourceItem",
    "SpanObserver",
    "Store",
    "TraceAssembly",
    "Transform",
    "Unreadable",
    "Watermark",
    "Worker",
    "as_source",
    "batches_of",
    "item_of",
    "sink_names",
]
