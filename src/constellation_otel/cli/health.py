"""A bridge's health over HTTP: whether it is alive, whether it delivers, and its counters."""

from __future__ import annotations

import json
import logging
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec

from constellation_otel._support.http_server import HttpHandler, HttpServer
from constellation_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from constellation_otel.delivery import Bridge

__all__ = ["Health"]

_LOGGER: Final = logging.getLogger(__name__)
_ADDRESS: Final = re.compile(r"(?P<host>[^:\[\]]*|\[[^\[\]]+\]):(?P<port>[0-9]+)")
_DEFAULT_HOST: Final = "127.0.0.1"
_HANGING_AFTER_S: Final = 60.0
"""How long the reading loop may take for one turn: more than any wait in it."""
_MAX_CONNECTIONS: Final = 64


class Health:
    """Serves ``/livez``, ``/readyz`` and ``/`` for a bridge, as JSON.

    ``/livez`` is 200 while the bridge's loop makes progress, 503 when it hangs. ``/readyz``
    is 200 while the source and every sink work, 503 with the reasons otherwise. ``/`` is
    200 with the counters and the same reasons. At most 64 connections are served at once.

    A context manager: the address is bound when it is made, requests are answered inside
    the context, and no connection or thread is left after it.

    Args:
        address: ``host:port``, or ``[host]:port`` for IPv6; port 0 takes a free one, no host
            is ``127.0.0.1``.
        bridge: The bridge to report on.

    Attributes:
        url: The URL of ``/``, without the slash.

    Raises:
        ConfigurationError: The address is not valid, or cannot be listened on.
    """

    def __init__(self, address: str, bridge: Bridge) -> None:
        parts = _ADDRESS.fullmatch(address)
        if parts is None:
            message = f"{address!r} is not a valid health address; give host:port, or [host]:port for IPv6"
            raise ConfigurationError(message)
        host, port = parts["host"].strip("[]") or _DEFAULT_HOST, int(parts["port"])
        try:
            self._server = _Server(host, port, bridge)
        except (OSError, UnicodeError, OverflowError) as error:
            message = f"cannot serve health on {address!r}: {error}; give this machine's host:port with a free port"
            raise ConfigurationError(message) from error
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.close()


class _Server(HttpServer):
    """An HTTP server that knows the bridge."""

    def __init__(self, host: str, port: int, bridge: Bridge) -> None:
        self.bridge = bridge
        super().__init__(host, port, _Handler, logger=_LOGGER, name="health", max_connections=_MAX_CONNECTIONS)


class _Handler(HttpHandler):
    server: _Server

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        bridge = self.server.bridge
        match self.path.partition("?")[0]:
            case "/livez":
                idle_seconds = bridge.idle_seconds
                is_alive = idle_seconds < _HANGING_AFTER_S
                self._send_if(is_alive, {"status": "alive" if is_alive else "hanging", "idle_seconds": idle_seconds})
            case "/readyz":
                troubles = bridge.troubles
                self._send_if(not troubles, {"status": "troubled" if troubles else "ready", "troubles": troubles})
            case "/":
                self._send(HTTPStatus.OK, {"troubles": bridge.troubles, **msgspec.to_builtins(bridge.report)})
            case _:
                self._send(HTTPStatus.NOT_FOUND, {"error": "there is no such path; use /, /livez or /readyz"})

    def _send_if(self, is_well: bool, body: dict[str, Any]) -> None:
        self._send(HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE, body)

    def _send(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        self.answer(status, "application/json", json.dumps(body).encode())
