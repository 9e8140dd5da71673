"""One package per protocol, all of one shape, and the URLs that name them."""

from __future__ import annotations

from constellation_otel.transports.registry import check_sink, refuse_loop, sink_of, source_of

__all__ = [
    "check_sink",
    "refuse_loop",
    "sink_of",
    "source_of",
]
