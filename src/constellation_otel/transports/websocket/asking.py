"""Whether an engine answers: one connection, which is closed as soon as it is there."""

from __future__ import annotations

import asyncio
from ssl import create_default_context
from typing import TYPE_CHECKING

from constellation_otel.transports.websocket.address import headers_of, name_of, uri_of
from constellation_otel.transports.websocket.connection import connected, failure_of

if TYPE_CHECKING:
    from websockets.uri import WebSocketURI

__all__ = ["ask_engine"]


def ask_engine(url: str, *, api_key: str | None = None, timeout: float) -> str | None:
    """Connects once as :class:`~constellation_otel.transports.websocket.WebSocketSource` does, and closes at once.

    Args:
        url: As for the source.
        api_key: Likewise.
        timeout: Seconds for TCP, TLS and the handshake.

    Returns:
        The ``Date`` header of the engine's answer, where it has one.

    Raises:
        ConfigurationError: The URL or the key cannot be used.
        UnavailableError: There is no engine, or none that answers now.
        MisconfiguredError: The key or the path is wrong, or its certificate is not trusted.
    """
    uri = uri_of(url, None)
    headers = headers_of(api_key, name_of(uri))
    try:
        return asyncio.run(_ask(uri, headers, timeout))
    except OSError as error:
        failure = failure_of(error, uri.host, timeout)
    raise failure


async def _ask(uri: WebSocketURI, headers: dict[str, str], timeout: float) -> str | None:  # noqa: ASYNC109 - as elsewhere here
    tls = create_default_context() if uri.secure else None
    async with connected(uri, tls, headers, timeout) as connection:
        connection.messages()
        await connection.say_goodbye()
        return connection.date
