"""A small HTTP server that closes what it opened: every connection has a deadline, and none outlives the server."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any

from constellation_otel._support.log import RateLimitedLog

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HttpHandler", "HttpServer"]


class HttpHandler(BaseHTTPRequestHandler):
    """Handles the requests of one connection; subclasses have ``do_GET`` and the like.

    Attributes:
        timeout: Seconds that a client may take to send something, or to take an answer.
    """

    timeout = 10.0
    server_version = "constellation-otel"
    sys_version = ""
    # otherwise an answer's body waits until the client has acknowledged its head
    disable_nagle_algorithm = True

    def answer(self, status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Sends a whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the overridden method's name for it
        """Writes nothing: one line for each request is too much."""


class HttpServer(ThreadingHTTPServer):
    """Serves HTTP, with a thread for each connection.

    The port is bound at once; :meth:`start` begins to accept connections. No thread and no
    socket is left when :meth:`close` returns.

    Args:
        host: A name or an IPv4 or IPv6 address of this machine.
        port: 0 takes a free one, which is then ``server_address[1]``.
        handler: Handles a connection's requests.
        logger: Where broken connections are logged.
        name: The threads' name.
        max_connections: How many connections there may be at once; one more is closed
            without an answer.

    Raises:
        OSError: The address cannot be listened on.
        OverflowError: The port is more than 65,535.
        UnicodeError: The name of the host is not one.
    """

    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        handler: type[HttpHandler],
        *,
        logger: logging.Logger,
        name: str,
        max_connections: float = inf,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._logger = logger
        self._log = RateLimitedLog()
        self._name = name
        self._max_connections = max_connections
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._handlers: list[threading.Thread] = []
        self._closing = False
        super().__init__((host, port), handler)
        self._thread = threading.Thread(target=self.serve_forever, name=name, daemon=True)

    def start(self) -> None:
        """Accepts connections from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stops accepting, cuts every connection, and waits for all threads; a second call does nothing."""
        self._closing = True
        # wakes serve_forever, which would else look for its end twice a second
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self._thread.join()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            # it may have ended by itself
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._handlers:
            thread.join()
        self.server_close()

    def server_bind(self) -> None:
        # HTTPServer's asks DNS for the name of the address
        TCPServer.server_bind(self)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - socketserver's signature
        with self._lock:
            return len(self._connections) < self._max_connections

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), name=self._name, daemon=True
        )
        self._handlers = [*(handler for handler in self._handlers if handler.is_alive()), thread]
        with self._lock:
            self._connections.add(request)
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        # closing is what breaks them then
        level = logging.DEBUG if self._closing else logging.WARNING
        message = "the connection from %s broke"
        self._log.write(self._logger, level, "broke", message, client_address[0], error=sys.exception())
