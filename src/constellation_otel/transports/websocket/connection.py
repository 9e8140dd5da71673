"""One connection to the engine, from its host's name to the goodbye.

The protocol is spoken by ``websockets``' state machine without I/O, over asyncio's
streams: its ready-made clients write the key to a DEBUG log, follow redirects and the
environment's proxies, and end a connection for text that is not UTF-8.
Reconnecting is the business of ``source``.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from ssl import SSLCertVerificationError, SSLContext, SSLError
from typing import TYPE_CHECKING, Final, NamedTuple

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidState, InvalidStatus, PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State

from constellation_otel._support.scope import SCOPE_VERSION
from constellation_otel.errors import MisconfiguredError, UnavailableError
from constellation_otel.events import clean_message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from websockets.uri import WebSocketURI

__all__ = [
    "Connection",
    "Message",
    "OversizeError",
    "ask_for_health",
    "connected",
    "failure_of",
    "is_answer",
]

# outside the tree of loggers, so that it cannot be set to DEBUG, where it prints the key
_PROTOCOL_LOGGER: Final = logging.Logger(f"{__name__}.protocol", logging.INFO)  # noqa: LOG001 - as the line above says
_PROTOCOL_LOGGER.parent = logging.getLogger(__package__)

_MAX_READ: Final = 16 * 2**20
"""Bytes of a message that is read, at most: the message of a failed module comes whole, however long."""
_MAX_RECEIVED: Final = 64 * 2**20
"""Bytes of a message that is received, at most; a longer one costs the connection."""
_BEGINNING: Final = 65_536
"""Bytes that are kept of a message that is too long to be read."""
_BUFFER: Final = 2**20
_CHUNK: Final = 65_536
_GOODBYE: Final = 0.5
"""Seconds that the engine has to answer a close frame."""
_DATA: Final = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})
_TRIED_LATER: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_NO_HOST: Final = frozenset({errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN})
_DEAD_PEER: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 120_000}
"""After how long (s, s, number, ms) TCP gives up on a peer that has vanished."""


@asynccontextmanager
async def connected(
    uri: WebSocketURI, tls: SSLContext | None, headers: Mapping[str, str], open_timeout: float
) -> AsyncIterator[Connection]:
    """Connects, and lets go in the end.

    Args:
        uri: Where to.
        tls: How to trust the engine; ``None`` for ``ws``.
        headers: What the handshake says beside what the protocol wants.
        open_timeout: Seconds in which TCP, TLS and the handshake must be done, all together.

    Raises:
        OSError: There is no connection; see :func:`failure_of`.
        UnavailableError: There is no answer that is a WebSocket's.
        MisconfiguredError: The answer is a refusal.
    """
    until = asyncio.get_running_loop().time() + open_timeout
    async with asyncio.timeout_at(until):
        reader, writer = await _dial(uri, tls, open_timeout)
    try:
        _watch(writer.get_extra_info("socket"))
        connection = Connection(uri, reader, writer, open_timeout)
        async with asyncio.timeout_at(until):
            await connection.shake_hands(headers)
        yield connection
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def ask_for_health(uri: WebSocketURI, tls: SSLContext | None, address: str, timeout: float) -> None:  # noqa: ASYNC109 - as elsewhere here
    """Sees whether the engine takes connections: asks for ``/health``, which is open without a key.

    The events' path is not asked: the engine would count a client that never disconnects.

    Args:
        uri: As for :func:`connected`.
        tls: Likewise.
        address: Where the engine is, as :attr:`Connection.address` has it; nothing is looked up.
        timeout: Seconds that the answer may take.

    Raises:
        ConnectionRefusedError: It takes none any more.
        OSError: There is no answer in time; one of any status would be one.
    """
    async with asyncio.timeout(timeout):
        reader, writer = await _open(address, uri, tls)
        try:
            host = f"[{uri.host}]" if ":" in uri.host else uri.host
            lines = (
                "GET /health HTTP/1.1",
                f"Host: {host}:{uri.port}",
                f"User-Agent: constellation-otel/{SCOPE_VERSION}",
                "Connection: close",
            )
            writer.write("".join(f"{line}\r\n" for line in (*lines, "")).encode())
            if not await reader.read(_CHUNK):
                # what took the connection lives, and is not what was asked for
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()


def failure_of(error: OSError, host: str, open_timeout: float) -> UnavailableError:
    """What is said of an error of the network, or of TLS."""
    match error:
        case SSLCertVerificationError():
            message = (
                f"TLS: the engine's certificate is not accepted: {error.verify_message}; name its authority's PEM file"
                " by SSL_CERT_FILE, or give the host as the certificate has it"
            )
            return MisconfiguredError(message)
        case SSLError():
            why = f"TLS failed ({error.reason}); does the engine speak TLS at this port?"
        case socket.gaierror():
            why = f"the name {host!r} cannot be resolved: {error.strerror}"
        case OSError(errno=int(number)):
            why = os.strerror(number)
        case TimeoutError():
            why = f"the engine took more than {open_timeout:g} s to answer"
        case _:
            # asyncio's own, with nothing in it
            why = "the connection was closed"
    return UnavailableError(why)


def is_answer(error: OSError) -> bool:
    """Whether the host, or a name server, answered: a refusal is an answer, and a time-out is none."""
    return not isinstance(error, TimeoutError) and error.errno not in _NO_HOST


class OversizeError(UnavailableError):
    """A message was too long to be received, and the connection ended by it."""


class Message(NamedTuple):
    """What came, whole or in fragments.

    Attributes:
        data: Its bytes; of one that is too long, the beginning.
        unreadable: Why it is not to be read; ``None`` where it is.
        is_oversize: Whether it is too long.
    """

    data: bytes
    unreadable: str | None = None
    is_oversize: bool = False


class Connection:
    """A WebSocket over a pair of asyncio's streams.

    Args:
        uri: Where to.
        reader: What comes.
        writer: What goes.
        timeout: Seconds that the engine may take to read what is written.

    Attributes:
        heard_at: When something came from it last, by the loop's clock.
        date: The ``Date`` header of the handshake's answer, where it has one; known once :meth:`messages` was called.
    """

    def __init__(
        self, uri: WebSocketURI, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout: float
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._timeout = timeout
        self._protocol = ClientProtocol(uri, max_size=_MAX_RECEIVED, logger=_PROTOCOL_LOGGER)
        self._message = bytearray()
        self._length = 0
        self._is_text = True
        self._clock = asyncio.get_running_loop().time
        self.heard_at = self._clock()
        self.date: str | None = None

    @property
    def address(self) -> str:
        """The engine's address."""
        return str(self._writer.get_extra_info("peername")[0])

    async def shake_hands(self, headers: Mapping[str, str]) -> None:
        """Asks for the WebSocket; raises as :func:`connected` does."""
        protocol = self._protocol
        request = protocol.connect()
        request.headers.update(headers)
        protocol.send_request(request)
        await self._flush()
        while protocol.state is State.CONNECTING and protocol.handshake_exc is None:
            self._feed(await self._reader.read(_CHUNK))
        match protocol.handshake_exc:
            case None:
                return
            case InvalidStatus() as error:
                raise _refusal(error.response.status_code, has_key="Authorization" in headers) from error
            case error if isinstance(error.__cause__, EOFError):
                message = "the connection was closed during the handshake"
                raise UnavailableError(message) from error
            case error:
                message = (
                    f"the answer is not a WebSocket handshake ({clean_message(str(error))}); is it TLS, then wss://?"
                )
                raise UnavailableError(message) from error

    def messages(self) -> list[Message]:
        """The messages that have become complete since the last call."""
        complete = []
        for frame in self._protocol.events_received():
            if isinstance(frame, Response):
                self.date = next(iter(frame.headers.get_all("Date")), None)
            if not isinstance(frame, Frame) or frame.opcode not in _DATA:
                continue
            if frame.opcode is not Opcode.CONT:
                self._is_text = frame.opcode is Opcode.TEXT
                self._message = bytearray()
                self._length = 0
            self._length += len(frame.data)
            # of what is too long, no more than is kept
            room = (_MAX_READ if self._length <= _MAX_READ else _BEGINNING) - len(self._message)
            self._message += frame.data[: max(0, room)]
            if frame.fin:
                complete.append(self._complete())
        return complete

    def _complete(self) -> Message:
        data, self._message = bytes(self._message), bytearray()
        if self._length > _MAX_READ:
            why = f"a message of {self._length} bytes; no more than {_MAX_READ} are read"
            return Message(data[:_BEGINNING], why, is_oversize=True)
        return Message(data, None if self._is_text else "a binary frame; the engine sends text")

    async def answer(self) -> None:
        """Answers what the protocol has to answer.

        Raises:
            UnavailableError: The connection has ended.
            OversizeError: It has ended by a message that was too long.
        """
        protocol = self._protocol
        if protocol.state is State.OPEN:
            await self._flush()
            return
        with suppress(OSError):
            await self._flush()
        if isinstance(protocol.parser_exc, PayloadTooBig):
            message = f"a message has more than {_MAX_RECEIVED} bytes, the most that is received"
            raise OversizeError(message)
        if protocol.close_rcvd is not None:
            message = f"the engine closed it: {clean_message(str(protocol.close_rcvd))}"
        elif isinstance(protocol.parser_exc, EOFError):
            message = "it was cut without a close frame (1006)"
        else:
            message = f"what came breaks the protocol: {protocol.parser_exc}"
        raise UnavailableError(message)

    async def receive(self, until: float) -> None:
        """Waits for bytes, until then by the loop's clock."""
        try:
            async with asyncio.timeout_at(until) as waiting:
                data = await self._reader.read(_CHUNK)
        except TimeoutError:
            # the socket has one of its own, when the peer has vanished
            if not waiting.expired():
                raise
        else:
            self.heard_at = self._clock()
            self._feed(data)

    async def send_text(self, data: bytes) -> None:
        """Sends a text message."""
        self._protocol.send_text(data)
        await self._flush()

    async def say_goodbye(self) -> None:
        """Closes as the protocol wants it, without waiting long for an answer; takes what comes until then."""
        with suppress(OSError, InvalidState):
            self._protocol.send_close(1000)
            async with asyncio.timeout(_GOODBYE):
                await self._flush()
                # what is left unread would make a reset of our leaving, which may overtake the close frame
                while data := await self._reader.read(_CHUNK):
                    self._feed(data)

    def _feed(self, data: bytes) -> None:
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()

    async def _flush(self) -> None:
        # the empty chunk by which the protocol asks for the socket's end is not needed: it is closed anyway
        data = b"".join(self._protocol.data_to_send())
        if data:
            self._writer.write(data)
            async with asyncio.timeout(self._timeout):
                await self._writer.drain()


async def _dial(
    uri: WebSocketURI, tls: SSLContext | None, open_timeout: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects, and starts TLS where there is any."""
    # it blocks, in a thread that does nothing else; the loop's pool would keep the interpreter from ending
    found = socket.getaddrinfo(uri.host, uri.port, type=socket.SOCK_STREAM)
    failures = []
    for address in [str(place[0]) for *_, place in found]:
        try:
            # one that does not answer leaves time for the others
            async with asyncio.timeout(open_timeout / len(found)):
                return await _open(address, uri, tls)
        except OSError as error:
            failures.append(error)
    raise failures[-1]


async def _open(
    address: str, uri: WebSocketURI, tls: SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    server_hostname = uri.host if tls else None
    return await asyncio.open_connection(address, uri.port, ssl=tls, server_hostname=server_hostname, limit=_BUFFER)


def _watch(sock: socket.socket) -> None:
    """Makes TCP notice a peer that vanishes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # not every platform has all of them
    for name in filter(partial(hasattr, socket), _DEAD_PEER):
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), _DEAD_PEER[name])


def _refusal(status: int, *, has_key: bool) -> UnavailableError:
    """What an answer other than 101 means."""
    match status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN if has_key:
            why = "the engine rejects this API key; fix api_key, or CONSTELLATION_API_KEY"
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            why = "the engine requires an API key, read-only is enough; set api_key, or CONSTELLATION_API_KEY"
        case HTTPStatus.NOT_FOUND:
            why = "nothing is at this path; is it an engine, started withExecutionWebSocket(ws)?"
        case HTTPStatus.UPGRADE_REQUIRED:
            why = "it sees no WebSocket request; does a proxy drop the Upgrade header?"
        case _ if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            why = "it redirects, which is not followed, since the key would go along; give the engine's own URL"
        case _ if status in _TRIED_LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return UnavailableError(f"HTTP {status}")
        case _:
            why = "it is not an engine, or a proxy answers in its place"
    return MisconfiguredError(f"HTTP {status}: {why}")
