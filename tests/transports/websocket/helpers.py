"""Sources on an engine's stand-in, and its frames."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING
from uuid import UUID

from constellation_otel.events import (
    ExecutionCompleted,
    ExecutionStarted,
    encode_frame,
)
from constellation_otel.transports.websocket.source import (
    WebSocketSource,
    WebSocketState,
)
from deliveries import flat
from support import DEADLINE, eventually

if TYPE_CHECKING:
    import pytest

    from constellation_otel.delivery import SourceItem

ONE_TRY = {"first_wait_s": 60.0}
"""So long between tries that a test sees the first one only."""
LOGGER = "constellation_otel.transports.websocket"
KEY = "a-key-of-twenty-four-chars"
SOON = 0.05
"""Seconds between tries, at most, so that tests need not wait."""
ONE = UUID("00000000-0000-4000-8000-000000000001")
TWO = UUID("00000000-0000-4000-8000-000000000002")
CONNECTED = WebSocketState("connected", None)


def server_tls(tls_files: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls_files)
    return context


def client_tls(tls_files: tuple[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=tls_files[0])


def connected(source: WebSocketSource) -> WebSocketSource:
    """The source, once it has a connection."""
    source.read(0)
    eventually(lambda: source.state == CONNECTED, f"{source.name} to be connected, but it is {source.state}")
    return source


def read_count(source: WebSocketSource, count: int) -> list[SourceItem]:
    """So many items of it."""
    items: list[SourceItem] = []
    end = time.monotonic() + DEADLINE
    while len(items) < count:
        assert time.monotonic() < end, f"{len(items)} of {count} items came from {source.name}: {source.counters}"
        items += flat(source.read(0.1))
    return items


def started(number: int, execution_id: UUID = ONE) -> ExecutionStarted:
    return ExecutionStarted(execution_id, f"dag-{number}", number * 1_000_000)


def completed(execution_id: UUID) -> ExecutionCompleted:
    return ExecutionCompleted(execution_id, "dag-1", True, 5.0, 9_000_000)


def frame_of(event: ExecutionStarted) -> str:
    return encode_frame(event).decode()


def messages_of(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER and record.levelno == level]
