"""A stand-in for the Scala engine's WebSocket, with its habits and on real sockets.

The engine itself cannot be had by the tests, so this server does on the wire what was
seen of it, good and bad::

    with EngineStandIn() as engine:
        source = WebSocketSource(engine.url)    # it connects when a thread reads it, not before
        engine.play(recorded("engine-frames.jsonl"))
        engine.flush()                          # all of it is in the clients' sockets

What it has of the engine:

- a frame's header and its payload are written separately (``gap`` seconds apart), and
  the pong for a protocol ping is written as soon as the ping is read, so that it may
  land between the two, which ends such a client's connection;
- each client has a queue of 100 frames, past which its frames are dropped in silence;
- the text message ``ping`` has no answer, and a client that writes nothing for
  ``idle_timeout`` seconds is cut without a close frame;
- ``?executionId=`` on the events' path gives that execution's frames only;
- a plain GET of the events' path answers 426 and leaves a ghost; ``GET /health`` is open;
- with an ``api_key``, anything else wants it as ``Authorization: Bearer``, and not in the
  query; what does not have it gets 401 and JSON;
- :meth:`EngineStandIn.stop` refuses connections, lets frames in flight arrive, and then
  waits for its clients to leave, for 30 s; :meth:`~EngineStandIn.kill` does not wait, and
  neither sends a close frame; :meth:`~EngineStandIn.start` begins again on the same port.

No method waits without a deadline, and no thread or socket outlives the ``with``.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import parse_qs, urlsplit

from support import DEADLINE
from websocket_wire import BINARY, CLOSE, PING, PONG, TEXT, Request, accepted, header, parsed, read_request, response

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

Frame: TypeAlias = dict[str, Any] | str | bytes
"""What is sent: a dict goes as JSON in a text frame, a str as text, bytes as a binary frame."""

EVENTS_PATH = "/api/v1/executions/events"


class Line(NamedTuple):
    """A line of a recording: when its frame came, in epoch nanoseconds, and the frame."""

    received_ns: int
    frame: dict[str, Any]


def recorded(name: str = "engine-frames.jsonl") -> list[Line]:
    """The frames of a recording, in the order in which they came; it is in the package, or beside the tests."""
    beside = Path(__file__).with_name("recordings") / name
    path = beside if beside.exists() else files("constellation_otel").joinpath("data", name)
    text = path.read_text()
    return [Line(line["received_ns"], line["frame"]) for line in map(json.loads, text.splitlines())]


class EngineStandIn:
    """The engine's WebSocket on a free port of 127.0.0.1; a context manager.

    Args:
        api_key: What clients have to give; ``None`` switches authentication off.
        idle_timeout: Seconds after which a client that writes nothing is cut.
        gap: Seconds between a frame's header and its payload.
        queue_size: Frames that wait for one client, at most.
        deaf: Does not answer a close frame, and waits for the client to leave.
        tls: A server's context makes it ``wss``.

    Attributes:
        health: The status that ``/health`` is answered with; ``None``: never, 0: by hanging up.
        port: Where it listens, the same for as long as it lives.
        requests: Every HTTP request so far.
        connections: WebSockets opened so far.
        refusals: Requests answered with 401, or as :meth:`answer` has it.
        ghosts: Plain GETs of the events' path.
        text_pings: Text messages ``ping``.
        protocol_pings: Pings of the protocol.
        pongs: What pongs of the protocol had in them.
        goodbyes: Close frames that came, as their codes.
        idle_cuts: Clients cut since they wrote nothing.
        dropped: Frames dropped since a client's queue was full.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        idle_timeout: float = 600.0,
        gap: float = 0.0,
        queue_size: int = 100,
        deaf: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.api_key = api_key
        self.idle_timeout = idle_timeout
        self.gap = gap
        self.queue_size = queue_size
        self.deaf = deaf
        self.health: int | None = 200
        self.port = 0
        self.requests: list[Request] = []
        self.connections = 0
        self.refusals = 0
        self.ghosts = 0
        self.text_pings = 0
        self.protocol_pings = 0
        self.pongs: list[bytes] = []
        self.goodbyes: list[int] = []
        self.idle_cuts = 0
        self.dropped = 0
        self.changed = threading.Condition(threading.RLock())
        self._tls = tls
        self._answers: deque[bytes] = deque()
        self._clients: list[_Client] = []
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None

    @property
    def url(self) -> str:
        """What a source connects to, without a path."""
        return f"{'ws' if self._tls is None else 'wss'}://127.0.0.1:{self.port}"

    @property
    def clients(self) -> int:
        """WebSockets that are open now."""
        with self.changed:
            return sum(client.is_open for client in self._clients)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Listens; on the same port as before, if there was one. Connections are taken when this returns."""
        assert self._listener is None, "it runs already"
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._spawn(self._accept, listener)

    def kill(self) -> None:
        """Stops at once, as SIGKILL does: frames in flight are lost, and there is no close frame."""
        self.refuse()
        until = time.monotonic() + DEADLINE
        while self._threads:
            with self.changed:
                sockets = list(self._sockets)
            for sock in sockets:
                _shut(sock, socket.SHUT_RDWR)
            # again and again: a connection that was just taken may show only now
            self._threads[-1].join(0.05)
            assert time.monotonic() < until, f"threads of the stand-in are left: {self._threads}"
            with self.changed:
                self._threads = [thread for thread in self._threads if thread.is_alive()]

    def refuse(self) -> None:
        """Refuses connections, as half a second after SIGTERM; what is connected stays so."""
        # wakes the thread that accepts, which closing alone does not
        if self._listener is not None:
            _shut(self._listener, socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def stop(self, linger: float = 30.0) -> None:
        """Stops as SIGTERM does: refuses connections, sends what is queued, and ends when the clients have left.

        Args:
            linger: Seconds after which those that have not left are cut without a close frame.
        """
        self.refuse()
        self.flush()
        with self.changed:
            self.changed.wait_for(lambda: not self._clients, linger)
        self.kill()

    def cut(self, *, reset: bool = False) -> None:
        """Cuts every client without a close frame, and goes on listening.

        Args:
            reset: By a TCP reset, rather than by the connection's end.
        """
        with self.changed:
            clients = list(self._clients)
        for client in clients:
            client.cut(reset=reset)
        self.wait_until(lambda: not set(clients) & set(self._clients), "the clients to be gone")

    def close(self, code: int, reason: str = "") -> None:
        """Sends every client a close frame, which this engine never does and a proxy in front of it may."""
        self.send_raw(header(CLOSE, 2 + len(reason)) + struct.pack("!H", code) + reason.encode())

    def announce(self, length: int) -> None:
        """Writes the header of a text frame of so many bytes, and none of them."""
        self.send_raw(header(TEXT, length))

    def answer(self, status: int, headers: str = "", body: str = "") -> None:
        """Has the next handshake answered with an HTTP status; several calls, several handshakes.

        Args:
            status: Any of ``websocket_wire.REASONS``.
            headers: Lines, each with its end, to go with it.
            body: What follows.
        """
        self.answer_raw(response(status, body.encode(), headers))

    def answer_raw(self, response: bytes) -> None:
        """Has the next handshake answered with these bytes, and its connection closed."""
        with self.changed:
            self._answers.append(response)

    def send(self, frame: Frame, *, wait_for_client: bool = True) -> int:
        """Sends one frame to every client that wants it.

        Args:
            frame: As :data:`Frame` says.
            wait_for_client: Waits until there is a client.

        Returns:
            How many queues took it.
        """
        if wait_for_client:
            self.wait_for_clients()
        with self.changed:
            return sum(client.offer(frame) for client in self._clients)

    def send_raw(self, data: bytes) -> None:
        """Writes bytes to every client's socket at once, whatever they are, past its queue."""
        self.wait_for_clients()
        with self.changed:
            clients = [client for client in self._clients if client.is_open]
        for client in clients:
            client.write(data)

    def play(self, lines: Iterable[Line], *, speed: float | None = None, wait_for_client: bool = True) -> int:
        """Sends a recording's frames to every client; those of the last may still be queued when it returns.

        Args:
            lines: As :func:`recorded` gives them.
            speed: ``None``: as fast as clients take them, and nothing is dropped. A number:
                so many times as fast as it was recorded; 0.5 takes twice the time, and
                ``math.inf`` none, and a client's queue drops what comes past it.
            wait_for_client: Waits until there is a client.

        Returns:
            How many frames were played.
        """
        if wait_for_client:
            self.wait_for_clients()
        count, begun, first_ns = 0, time.monotonic(), None
        pause = threading.Event()
        for count, (received_ns, frame) in enumerate(lines, 1):  # noqa: B007 - returned
            if speed is None:
                self.wait_until(self._has_room, "room in the clients' queues")
            else:
                first_ns = received_ns if first_ns is None else first_ns
                pause.wait(max(0.0, begun + (received_ns - first_ns) / 1e9 / speed - time.monotonic()))
            self.send(frame, wait_for_client=False)
        return count

    def flush(self) -> None:
        """Waits until every client's queue is written."""
        self.wait_until(lambda: all(client.is_idle for client in self._clients), "the queues to be written")

    def wait_for_clients(self, count: int = 1) -> None:
        """Waits until so many WebSockets are open, at least."""
        self.wait_until(lambda: self.clients >= count, f"{count} clients")

    def wait_until(self, condition: Any, what: str, timeout: float = DEADLINE) -> None:
        """Waits until something is true of it, and tells of what it was that did not come true."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout), f"not within {timeout} s: {what}"

    def count(self, name: str) -> None:
        """Adds one to one of the counters."""
        with self.changed:
            setattr(self, name, getattr(self, name) + 1)
            self.changed.notify_all()

    def _has_room(self) -> bool:
        return all(len(client.queue) < self.queue_size for client in self._clients)

    def _spawn(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name=f"stand-in {target.__name__}", daemon=True)
        with self.changed:
            self._threads = [known for known in self._threads if known.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self._spawn(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        """One connection: its request, then, if it becomes one, its WebSocket."""
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        with self.changed:
            self._sockets.add(sock)
        # a client that goes away in the middle is nothing to tell of
        with sock, suppress(OSError):
            sock.settimeout(DEADLINE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            request, rest = read_request(sock)
            with self.changed:
                self.requests.append(request)
                self.changed.notify_all()
            if request.target == "/health" and not self.health:
                # until the client leaves, or not at all
                if self.health is None:
                    sock.recv(1)
            elif (refusal := self._refusal_of(request)) is None:
                self._serve_client(sock, request, rest)
            else:
                sock.sendall(refusal)
        with self.changed:
            self._sockets.remove(sock)

    def _refusal_of(self, request: Request) -> bytes | None:
        """The answer to a request that makes no WebSocket."""
        path = urlsplit(request.target).path
        if path == "/health":
            return response(self.health or 0, b'{"status":"ok"}', "Content-Type: application/json\r\n")
        if self.api_key is not None and request.headers.get("authorization") != f"Bearer {self.api_key}":
            self.count("refusals")
            return response(401, b'{"error":"Unauthorized"}', "Content-Type: application/json\r\n")
        if path != EVENTS_PATH:
            return response(404, b"")
        if request.headers.get("upgrade", "").lower() != "websocket":
            self.count("ghosts")
            return response(426, b"This is a WebSocket route.")
        with self.changed:
            if not self._answers:
                return None
            self.refusals += 1
            self.changed.notify_all()
            return self._answers.popleft()

    def _serve_client(self, sock: socket.socket, request: Request, rest: bytes) -> None:
        wanted = parse_qs(urlsplit(request.target).query).get("executionId", [None])[0]
        client = _Client(self, sock, wanted)
        with self.changed:
            # before it knows that it is one: what is sent from now on, it gets
            self._clients.append(client)
        try:
            sock.sendall(accepted(request))
            client.is_open = True
            self.count("connections")
            self._spawn(client.write_all)
            client.read_all(rest)
        finally:
            with self.changed:
                client.gone = True
                self._clients.remove(client)
                self.changed.notify_all()


class _Client:
    """A WebSocket that is open, and its queue; the engine's lock guards both."""

    def __init__(self, engine: EngineStandIn, sock: socket.socket, wanted: str | None) -> None:
        self.engine = engine
        self.sock = sock
        self.wanted = wanted
        self.queue: deque[Frame] = deque()
        self.writing = False
        self.is_open = False
        self.gone = False

    @property
    def is_idle(self) -> bool:
        return not self.queue and not self.writing

    def offer(self, frame: Frame) -> bool:
        """Queues a frame, if it is wanted and there is room."""
        if self.wanted is not None and isinstance(frame, dict) and frame.get("executionId") != self.wanted:
            return False
        if len(self.queue) >= self.engine.queue_size:
            self.engine.count("dropped")
            return False
        self.queue.append(frame)
        self.engine.changed.notify_all()
        return True

    def write(self, data: bytes) -> None:
        # a client that has gone shows where it is read
        with suppress(OSError):
            self.sock.sendall(data)

    def write_all(self) -> None:
        """Writes what is queued until the client is gone; header and payload apart, with no lock held."""
        changed, gap = self.engine.changed, threading.Event()
        while True:
            with changed:
                self.writing = False
                changed.notify_all()
                changed.wait_for(lambda: self.queue or self.gone)
                if self.gone:
                    return
                frame = self.queue.popleft()
                self.writing = True
                changed.notify_all()
            payload = frame if isinstance(frame, bytes) else _text_of(frame).encode()
            self.write(header(BINARY if isinstance(frame, bytes) else TEXT, len(payload)))
            gap.wait(self.engine.gap)
            self.write(payload)

    def read_all(self, data: bytes) -> None:
        """Reads what the client writes until it leaves, is cut, or has been silent for too long."""
        self.sock.settimeout(self.engine.idle_timeout)
        while True:
            while (message := parsed(data)) is not None:
                opcode, payload, data = message
                self._take(opcode, payload)
                if opcode == CLOSE and not self.engine.deaf:
                    self.write(header(CLOSE, 2) + payload[:2])
                    return
            try:
                more = self.sock.recv(65_536)
            except TimeoutError:
                self.engine.count("idle_cuts")
                return
            if not more:
                return
            data += more

    def _take(self, opcode: int, payload: bytes) -> None:
        with self.engine.changed:
            if opcode == CLOSE:
                self.engine.goodbyes.append(struct.unpack("!H", payload[:2])[0])
            elif opcode == PONG:
                self.engine.pongs.append(payload)
            elif opcode == PING:
                self.engine.protocol_pings += 1
            elif payload == b"ping":
                self.engine.text_pings += 1
            self.engine.changed.notify_all()
        if opcode == PING:
            # not in turn with the frames: that is the engine's fault, and the point
            self.write(header(PONG, len(payload)) + payload)

    def cut(self, *, reset: bool) -> None:
        """Wakes the thread that reads, which then closes the socket."""
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _shut(self.sock, socket.SHUT_RD if reset else socket.SHUT_RDWR)


def _shut(sock: socket.socket, how: int) -> None:
    # not the method of TLS sockets, which takes their state from under the thread that reads
    with suppress(OSError):
        socket.socket.shutdown(sock, how)


def _text_of(frame: dict[str, Any] | str) -> str:
    return frame if isinstance(frame, str) else json.dumps(frame, separators=(",", ":"))
