"""HTTP within a deadline: connections of urllib3's that wait for nothing longer, and take a cut answer for none.

A socket's timeout is for each of its operations, so a server that answers byte by byte
would never meet it; here it is set to what is left before each of them. What is sent,
and what an answer means, is the caller's business.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any, Final, cast

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Clock", "pools_of"]

_PIECE: Final = 16_384
"""Bytes that are sent at once: a record of TLS, which is what its timeout is for."""


class Clock:
    """The deadline of a request, which bounds everything that its connection waits for.

    A socket's timeout is for each operation: before each it is set to what is left. The
    look-up of a name takes no timeout at all and has a thread, which ends when the look-up does;
    where no thread can be started, as at the interpreter's exit, only the system's resolver bounds it.

    Attributes:
        deadline: Seconds of the monotonic clock.
        connected: How many connections have been tried so far.
    """

    def __init__(self) -> None:
        self.deadline = 0.0
        self.connected = 0
        self._looking_up: Future[list[Any]] | None = None

    def remaining(self) -> float:
        """Seconds.

        Raises:
            TimeoutError: There are none.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def connect(self, host: str, port: int, options: Sequence[Any]) -> socket.socket:
        """Connects to the first address of a host that can be."""
        self.connected += 1
        addresses = self._addresses(host, port)
        while True:
            family, kind, protocol, _, address = addresses.pop(0)
            connection = socket.socket(family, kind, protocol)
            try:
                for option in options:
                    connection.setsockopt(*option)
                # one that does not answer leaves the next ones their part of the time
                connection.settimeout(self.remaining() / (1 + len(addresses)))
                connection.connect(address)
                connection.settimeout(self.remaining())
            except OSError:
                connection.close()
                if not addresses:
                    raise
            else:
                return connection

    def _addresses(self, host: str, port: int) -> list[Any]:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        with suppress(socket.gaierror):
            return look_up(flags=socket.AI_NUMERICHOST)
        if self._looking_up is None:
            future: Future[list[Any]] = Future()
            thread = threading.Thread(target=_resolve, args=(future, look_up), name="constellation-otel-look-up")
            thread.daemon = True
            try:
                thread.start()
            except RuntimeError:
                return look_up()
            self._looking_up = future
        wait([self._looking_up], self.remaining())
        if not self._looking_up.done():
            raise TimeoutError
        future, self._looking_up = self._looking_up, None
        return future.result()


def _resolve(future: Future[list[Any]], look_up: Callable[[], list[Any]]) -> None:
    try:
        future.set_result(look_up())
    except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
        future.set_exception(error)


class _Incoming(io.RawIOBase):
    """What comes from a connection: in time, and complete.

    ``http.client`` takes the end of a connection for the end of an answer's head, and of
    its body's last chunk; here it is an error unless the body ends so.
    """

    def __init__(self, raw: io.RawIOBase, connection: socket.socket, clock: Clock) -> None:
        self._raw = raw
        self._connection = connection
        self._clock = clock
        self.may_end = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._connection.settimeout(self._clock.remaining())
        count = cast("int | None", self._raw.readinto(buffer))
        if not count and not self.may_end:
            message = "the connection was closed before the end of the answer"
            raise ConnectionResetError(message)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    """An answer that is complete, or an error."""

    def __init__(self, sock: socket.socket, *args: Any, clock: Clock, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._incoming = _Incoming(cast("Any", self.fp).detach(), sock, clock)
        self.fp = io.BufferedReader(self._incoming)

    def begin(self) -> None:
        super().begin()
        # then the connection's end is the body's
        self._incoming.may_end = not self.chunked and "content-length" not in self.headers


class _Connection(HTTPConnection):
    """A connection without TLS.

    Args:
        *args: As urllib3 has them.
        clock: Says how long anything may take.
        **kwargs: As urllib3 has them.
    """

    def __init__(self, *args: Any, clock: Clock, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock = clock
        self.response_class = cast("Any", partial(_Response, clock=clock))

    def _new_conn(self) -> socket.socket:
        return self._clock.connect(self._dns_host.strip("[]"), self.port, self.socket_options or ())

    def _tunnel(self) -> None:
        cast("Any", super())._tunnel()  # noqa: SLF001 - the library's hook, which it calls itself
        self.sock.settimeout(self._clock.remaining())

    def send(self, data: Any) -> None:
        for begin in range(0, len(data), _PIECE):
            if self.sock is not None:
                self.sock.settimeout(self._clock.remaining())
            super().send(data[begin : begin + _PIECE])


class _TlsConnection(_Connection, HTTPSConnection):
    """A connection with TLS."""

    def connect(self) -> None:
        super().connect()
        # the end of a connection counts where it was announced
        cast("Any", self.sock).suppress_ragged_eofs = False


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def pools_of(clock: Clock) -> Any:
    """What makes a manager's pools by their scheme: of connections that keep a deadline."""
    return {"http": partial(_Pool, clock=clock), "https": partial(_TlsPool, clock=clock)}
