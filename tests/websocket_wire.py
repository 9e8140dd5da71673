"""What an engine's WebSocket has on the wire: the HTTP of the handshake, and the frames after it."""

from __future__ import annotations

import re
import struct
from base64 import b64encode
from hashlib import sha1
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import socket


TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
MAX_REQUEST = 16_384
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""What RFC 6455 has a server append to the client's key."""
REASONS = {
    200: "OK",
    301: "Moved Permanently",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    426: "Upgrade Required",
    429: "Too Many Requests",
    503: "Service Unavailable",
}


class Request(NamedTuple):
    """An HTTP request that came, whatever became of it; the headers' names in lower case."""

    method: str
    target: str
    headers: dict[str, str]


def header(opcode: int, length: int) -> bytes:
    """A server's frame before its payload."""
    if length < 126:
        return struct.pack("!BB", 0x80 | opcode, length)
    if length < 65_536:
        return struct.pack("!BBH", 0x80 | opcode, 126, length)
    return struct.pack("!BBQ", 0x80 | opcode, 127, length)


def parsed(data: bytes) -> tuple[int, bytes, bytes] | None:
    """A client's frame, short and masked, at the beginning: its opcode, its payload, and what follows."""
    if len(data) < 6:
        return None
    length, start = data[1] & 0x7F, 6
    assert data[1] & 0x80, "a client's frames are masked"
    assert length < 126, "no client has anything so long to say"
    if len(data) < start + length:
        return None
    payload = bytes(byte ^ data[2 + index % 4] for index, byte in enumerate(data[start : start + length]))
    return data[0] & 0x0F, payload, data[start + length :]


def read_request(sock: socket.socket) -> tuple[Request, bytes]:
    """A client's request, and what it has sent behind that."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(4096)
        if not more or len(data) > MAX_REQUEST:
            raise ConnectionError("no HTTP request")
        data += more
        if not data[:1].isalpha():
            sock.sendall(response(400, b""))
            raise ConnectionError("no HTTP request")
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target = re.fullmatch(r"(\S+) (\S+) HTTP/1\.1", first).groups()  # type: ignore[union-attr] # a test's client
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Request(method, target, headers), rest


def response(status: int, body: bytes, headers: str = "") -> bytes:
    """An answer after which the connection is closed."""
    head = f"HTTP/1.1 {status} {REASONS[status]}\r\n{headers}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("latin-1") + body


def accepted(request: Request) -> bytes:
    """The answer to a handshake that makes a WebSocket."""
    digest = sha1(f"{request.headers['sec-websocket-key']}{GUID}".encode()).digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + b64encode(digest) + b"\r\n\r\n"
    )
