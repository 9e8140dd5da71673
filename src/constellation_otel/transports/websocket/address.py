"""What an engine's URL and key mean, looked at before anything connects; no message has a secret in it."""

from __future__ import annotations

import logging
import os
from typing import Final
from urllib.parse import parse_qsl, quote
from uuid import UUID

from websockets.uri import WebSocketURI

from constellation_otel._support.log import log
from constellation_otel._support.scope import SCOPE_VERSION
from constellation_otel.errors import ConfigurationError
from constellation_otel.transports.url import split

__all__ = ["headers_of", "name_of", "uri_of"]

_LOGGER: Final = logging.getLogger(__package__)
_PATH: Final = "/api/v1/executions/events"
_EXECUTION_ID: Final = "executionId"
_PORTS: Final = {"ws": 8080, "wss": 443}
_KEY_VARIABLE: Final = "CONSTELLATION_API_KEY"
_KEY_LENGTH: Final = 24
"""Characters that the engine wants at least."""


def uri_of(url: str, execution_id: UUID | None) -> WebSocketURI:
    """The URL, completed with the defaults.

    Raises:
        ConfigurationError: It cannot be used; the message says nothing of what may hide a key in it.
    """
    remedy = "give ws://host:port or wss://host:port"
    unusable = f"the URL's host, port or path cannot be used; {remedy}"
    parts = split(url, unusable)
    try:
        host = (parts.hostname or "").encode("idna").decode()
        parts.path.encode()
    except ValueError:
        raise ConfigurationError(unusable) from None
    if parts.scheme not in _PORTS or not host:
        message = f"the URL is not a WebSocket URL; {remedy}"
        raise ConfigurationError(message)
    where = f"{parts.scheme}://{host}"
    if parts.username is not None or parts.password is not None:
        message = f"{where}: a URL may have no user or password; the key goes into api_key, or {_KEY_VARIABLE}"
        raise ConfigurationError(message)
    if parts.fragment:
        message = f"{where}: a URL may have no fragment (#…) here"
        raise ConfigurationError(message)
    query = parse_qsl(parts.query, keep_blank_values=True)
    if any(name != _EXECUTION_ID for name, _ in query):
        message = f"{where}: a query may have executionId only; the key goes into api_key, or {_KEY_VARIABLE}"
        raise ConfigurationError(message)
    try:
        wanted = {UUID(value) for _, value in query}
    except ValueError:
        message = f"{where}: executionId is not a UUID"
        raise ConfigurationError(message) from None
    if execution_id is not None:
        wanted.add(execution_id)
    if len(wanted) > 1:
        message = f"{where}: give one executionId, not {', '.join(sorted(map(str, wanted)))}"
        raise ConfigurationError(message)
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~") if parts.path.strip("/") else _PATH
    query_string = "".join(f"{_EXECUTION_ID}={one}" for one in wanted)
    return WebSocketURI(parts.scheme == "wss", host, parts.port or _PORTS[parts.scheme], path, query_string)


def name_of(uri: WebSocketURI) -> str:
    """The URL, as it is written; it has no secret."""
    host = f"[{uri.host}]" if ":" in uri.host else uri.host
    return f"{'wss' if uri.secure else 'ws'}://{host}:{uri.port}{uri.resource_name}"


def headers_of(api_key: str | None, name: str) -> dict[str, str]:
    """What a handshake says beside what the protocol wants.

    Args:
        api_key: The key, or none where it is empty; what the variable has where it is ``None``.
        name: The source's, for messages.

    Raises:
        ConfigurationError: The key cannot go into a header.
    """
    headers = {"User-Agent": f"constellation-otel/{SCOPE_VERSION}"}
    key = os.environ.get(_KEY_VARIABLE, "") if api_key is None else api_key
    if not key:
        return headers
    if not (key.isascii() and key.isprintable()) or " " in key:
        message = f"{name}: the API key has spaces, line ends or other characters that no header takes; check its ends"
        raise ConfigurationError(message)
    if len(key) < _KEY_LENGTH:
        message = "%s: the API key has %d characters, and an engine takes none with less than %d"
        log(_LOGGER, logging.WARNING, message, name, len(key), _KEY_LENGTH)
    return headers | {"Authorization": f"Bearer {key}"}
