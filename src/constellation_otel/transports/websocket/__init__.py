"""WebSocket: the events of a running Constellation Engine."""

from __future__ import annotations

from constellation_otel.transports.websocket.websocket import WebSocketCounters, WebSocketSource, WebSocketState

__all__ = [
    "WebSocketCounters",
    "WebSocketSource",
    "WebSocketState",
]
