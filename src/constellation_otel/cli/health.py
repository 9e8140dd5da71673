"""A bridge's health over HTTP: whether it lives, whether it delivers, and its counters."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Final

import msgspec

from constellation_otel._support.log import RateLimitedLog
from constellation_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from constellation_otel.delivery import Bridge

__all__ = ["Health"]

_LOGGER: Final = logging.getLogger(__name__)
_ADDRESS: Final = re.compile(r"(?P<host>[^:\[\]]*|\[[^\[\]]+\]):(?P<port>[0-9]+)")
_DEFAULT_HOST: Final = "127.0.0.1"
_HANGS: Final = 60.0
"""Seconds without a turn of the reading loop that count as hanging: more than any wait in it."""
_POLL_INTERVAL: Final = 0.1
_REQUEST_TIMEOUT: Final = 10.0
"""Seconds for a client to say something, or to take what it is told."""
_MAX_CONNECTIONS: Final = 64
"""Connections at once, at most; one more is closed without an answer."""


class Health:
    """Serves ``/livez``, ``/readyz`` and ``/`` for a bridge, as JSON.

    ``/livez`` is 200 while the bridge's loop comes around, 503 where it hangs. ``/readyz``
    is 200 while the source and every sink work, 503 with the reasons otherwise. ``/`` is
    200 with the counters and the same reasons. A context manager; when it is left, no
    connection and no thread of it is.

    Args:
        address: ``host:port``, or ``[host]:port`` for IPv6; port 0 takes a free one, no host
            is ``127.0.0.1``. It is bound at once, and served from when the context is entered.
        bridge: Whose health it is.

    Attributes:
        url: Where it is served.

    Raises:
        ConfigurationError: The address is none, or cannot be listened on.
    """

    def __init__(self, address: str, bridge: Bridge) -> None:
        parts = _ADDRESS.fullmatch(address)
        if parts is None:
            message = f"{address!r} is no address to serve the health on; give host:port, or [host]:port for IPv6"
            raise ConfigurationError(message)
        host, port = parts["host"].strip("[]") or _DEFAULT_HOST, int(parts["port"])
        try:
            self._server = _Server(host, port, bridge)
        except (OSError, UnicodeError, OverflowError) as error:
            message = f"cannot serve the health on {address!r}: {error}; give this machine's host:port with a free port"
            raise ConfigurationError(message) from error
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_INTERVAL,), name="health", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """Has a thread for each connection, and waits for all of them when it is closed."""

    daemon_threads = False

    def __init__(self, host: str, port: int, bridge: Bridge) -> None:
        self.bridge = bridge
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._log = RateLimitedLog()
        self._lock = threading.Lock()
        self._connections: set[Any] = set()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's would ask DNS for the name of the address
        TCPServer.server_bind(self)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - socketserver's signature
        with self._lock:
            self._connections.add(request)
            return len(self._connections) <= _MAX_CONNECTIONS

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        message = "the connection from %s broke"
        self._log.write(_LOGGER, logging.WARNING, "broke", message, client_address[0], error=sys.exception())

    def server_close(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            # it may have ended by itself
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    timeout = _REQUEST_TIMEOUT
    server: _Server

    def do_GET(self) -> None:
        bridge = self.server.bridge
        match self.path.partition("?")[0]:
            case "/livez":
                idle_seconds = bridge.idle_seconds
                lives = idle_seconds < _HANGS
                self._answer(lives, {"status": "alive" if lives else "hanging", "idle_seconds": idle_seconds})
            case "/readyz":
                troubles = bridge.troubles
                self._answer(not troubles, {"status": "troubled" if troubles else "ready", "troubles": troubles})
            case "/":
                self._answer(True, {"troubles": bridge.troubles, **msgspec.to_builtins(bridge.report)})
            case _:
                self._send(HTTPStatus.NOT_FOUND, {"error": "there are /, /livez and /readyz"})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's
        """Says nothing: probes come every few seconds."""

    def _answer(self, is_well: bool, body: dict[str, Any]) -> None:
        self._send(HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE, body)

    def _send(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
