"""WebSocket: the events of a running Constellation Engine."""

from __future__ import annotations

from constellation_otel.errors import MissingExtraError

try:
    import websockets  # noqa: F401 - everything here needs it
except ModuleNotFoundError as error:
    raise MissingExtraError("websockets", "websocket") from error

from constellation_otel.transports.websocket.asking import ask_engine
from constellation_otel.transports.websocket.source import WebSocketCounters, WebSocketSource, WebSocketState

__all__ = [
    "WebSocketCounters",
    "WebSocketSource",
    "WebSocketState",
    "ask_engine",
    "source_of",
]

source_of = WebSocketSource.from_url
