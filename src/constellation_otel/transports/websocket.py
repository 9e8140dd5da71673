"""The Scala engine's WebSocket as a source of events.

The engine keeps 100 events for each client, drops what comes past them, and sends
nothing twice. So one thread reads the socket and appends to a queue, and does
nothing else; frames are decoded in :meth:`WebSocketSource.read`. The protocol is
spoken by ``websockets``' state machine without I/O, over a socket of our own: its
ready-made clients write the key to a DEBUG log, follow redirects and the environment's
proxies, and cannot be left while they connect.
"""

from __future__ import annotations

import logging
import math
import os
import random
import select
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from errno import EINPROGRESS
from functools import partial
from http import HTTPStatus
from ssl import (
    SSLCertVerificationError,
    SSLContext,
    SSLError,
    SSLWantReadError,
    SSLWantWriteError,
    create_default_context,
)
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, NoReturn, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit
from uuid import UUID

from msgspec import Struct

from constellation_otel._log import RateLimitedLog
from constellation_otel._version import SCOPE_VERSION
from constellation_otel.delivery import Position, Record, SourceItem, Unreadable
from constellation_otel.dialects import decode_frame
from constellation_otel.errors import (
    ConfigurationError,
    DecodeError,
    MisconfiguredError,
    MissingExtraError,
    UnavailableError,
)
from constellation_otel.events import clean_message

try:
    from websockets.client import ClientProtocol
    from websockets.exceptions import InvalidStatus
    from websockets.frames import Frame, Opcode
    from websockets.protocol import State
    from websockets.uri import WebSocketURI
except ModuleNotFoundError as error:
    raise MissingExtraError("websockets", "websocket") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["WebSocketCounters", "WebSocketSource", "WebSocketState"]

T = TypeVar("T")

_LOGGER: Final = logging.getLogger(__name__)
# outside the loggers' tree, where nobody can set it to DEBUG: it would then print the key
_PROTOCOL_LOGGER: Final = logging.Logger(f"{__name__}.protocol", logging.INFO)  # noqa: LOG001 - as the line above says
_PROTOCOL_LOGGER.parent = _LOGGER

_PATH: Final = "/api/v1/executions/events"
_EXECUTION_ID: Final = "executionId"
_PORTS: Final = {"ws": 8080, "wss": 443}
_KEY_VARIABLE: Final = "CONSTELLATION_API_KEY"
_KEY_LENGTH: Final = 24
"""Characters that the engine wants at least."""
_PING: Final = b"ping"
_SILENCE_LIMIT: Final = 600.0
"""Seconds after which the engine cuts a client that writes nothing."""
_CLOSE_TIMEOUT: Final = 2.0
_GOODBYE: Final = 0.5
"""Seconds that the engine has to answer a close frame."""
_MAX_FRAME: Final = 2**20
_MAX_READ: Final = 512
_CHUNK: Final = 65_536
_MAX_DOUBLINGS: Final = 32
_TRIED_LATER: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_DEAD_PEER: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 120_000}
"""After how long (s, s, number, ms) TCP gives up on a far side that has vanished without a word."""


class WebSocketState(Struct, frozen=True):
    """How the connection is, for a health check.

    Attributes:
        status: ``connected``; ``connecting``, before the first :meth:`~WebSocketSource.read`
            and between connections, too; ``refused``, where only somebody can mend it (a wrong
            key, a wrong path, a certificate), though it is tried on and on; ``closed``.
        reason: Why it is not connected: what the last connection, or the last try, ended
            with; ``None`` where it is connected or was not tried yet.
    """

    status: Literal["connecting", "connected", "refused", "closed"]
    reason: str | None


class WebSocketCounters(Struct, frozen=True):
    """What has become of the frames, ``frames = delivered + dropped + held``, and of the connections.

    Attributes:
        frames: Frames that have arrived.
        delivered: Frames that :meth:`~WebSocketSource.read` has given.
        dropped: Frames that found ``max_held`` others waiting.
        held: Frames that wait.
        connections: Connections that were made.
        disconnections: Connections that were lost.
        failures: Tries that made no connection.
        connected: Whether there is a connection now.
    """

    frames: int
    delivered: int
    dropped: int
    held: int
    connections: int
    disconnections: int
    failures: int
    connected: bool


class WebSocketSource:
    """A :class:`~constellation_otel.delivery.Source` that reads the engine's events off its WebSocket.

    Making one opens nothing: its thread and its connection start with the first
    :meth:`read`. From then on it connects for ever, waiting longer between tries, and
    :meth:`read` gives nothing while there is no connection: :attr:`state` and the log
    say why. Only :meth:`close` ends the thread. A forked child has none; it makes a
    source of its own. Environment variables that name an HTTP proxy are not heeded.

    What the engine sends while no connection is there is lost, and the engine says
    nothing of what it drops: an execution may lack its start, its end or any module.

    Args:
        url: ``ws://host:port`` or ``wss://host:port``. The port is 8080, or 443 for ``wss``,
            where there is none, the path ``/api/v1/executions/events``; a query may have
            ``executionId``, and nothing else.
        api_key: Goes into the ``Authorization`` header; where it is ``None``, what
            ``CONSTELLATION_API_KEY`` has. An empty one is none.
        execution_id: Only this execution's events.
        max_held: Frames that wait to be read, at most, some 300 bytes each as a rule;
            beyond it the newest is dropped and counted.
        ssl: How to trust the engine of a ``wss`` URL; the system's certificates otherwise.
        ping_interval: Seconds between the text messages that keep the engine from cutting
            the connection, which it does after 600.
        open_timeout: Seconds in which TCP, TLS and the handshake must be done, all together.
        backoff: Seconds between tries, the first time and at most, of which a random half
            or more is waited; they double in between. It starts again after a connection
            that lasted longer than the wait before it, and is the longest where the
            engine refuses.

    Raises:
        ConfigurationError: The URL, the key or a number cannot be used; the message has no secret.
    """

    is_ordered: Final = False
    is_durable: Final = False
    has_ended: Final = False

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        execution_id: UUID | None = None,
        max_held: int = 65_536,
        ssl: SSLContext | None = None,
        ping_interval: float = 60.0,
        open_timeout: float = 10.0,
        backoff: tuple[float, float] = (0.5, 30.0),
    ) -> None:
        if max_held < 1:
            message = f"max_held={max_held!r} must be at least 1"
            raise ConfigurationError(message)
        if not 0 < ping_interval < _SILENCE_LIMIT:
            message = f"ping_interval={ping_interval!r} must be more than 0 and less than {_SILENCE_LIMIT:.0f} s"
            raise ConfigurationError(message)
        if not 0 < open_timeout < math.inf or not 0 < backoff[0] <= backoff[1] < math.inf:
            message = f"open_timeout={open_timeout!r} and backoff={backoff!r} must be positive, finite and ascending"
            raise ConfigurationError(message)
        self._uri = _uri_of(url, execution_id)
        self.name: Final = _name_of(self._uri)
        if ssl is not None and not self._uri.secure:
            message = f"{self.name}: ssl is for wss://, and this is ws://"
            raise ConfigurationError(message)
        self._tls = ssl or (create_default_context() if self._uri.secure else None)
        self._headers = _headers_of(api_key, self.name)
        self._max_held = max_held
        self._ping_interval = ping_interval
        self._open_timeout = open_timeout
        self._backoff = _Backoff(*backoff)
        self._log = RateLimitedLog()
        self._alarms = RateLimitedLog(interval=60.0)
        self._condition = threading.Condition(threading.Lock())
        self._held: deque[_Held] = deque()
        # the thread, and what is closed to wake it for good
        self._running: tuple[threading.Thread, socket.socket] | None = None
        self._closed = False
        self._hinted = False
        self._state = WebSocketState("connecting", None)
        self._frames = 0
        self._dropped = 0
        self._dropped_untold = 0
        self._connections = 0
        self._disconnections = 0
        self._failures = 0

    @property
    def state(self) -> WebSocketState:
        """How the connection is."""
        return WebSocketState("closed", None) if self._closed else self._state

    @property
    def trouble(self) -> str | None:
        """Why there is no connection; ``None`` where there is one."""
        state = self.state
        return None if state.status == "connected" else state.reason or state.status

    @property
    def dropped(self) -> int:
        """Frames that found ``max_held`` others waiting."""
        return self._dropped

    @property
    def counters(self) -> WebSocketCounters:
        """What has become of frames and connections so far."""
        with self._condition:
            held = len(self._held)
            return WebSocketCounters(
                self._frames,
                self._frames - self._dropped - held,
                self._dropped,
                held,
                self._connections,
                self._disconnections,
                self._failures,
                self.state.status == "connected",
            )

    def read(self, timeout: float) -> Sequence[SourceItem]:
        """Gives what has arrived, at most 512 frames; the first call connects.

        Args:
            timeout: Seconds to wait for the first one.

        Returns:
            A record for each frame, positioned by its number since the source was made, in
            which dropped ones are counted; none where none came in time, where there is
            no connection, and once the source is closed and all is read.

        Raises:
            UnavailableError: The process has no thread or no file left to connect with.
        """
        with self._condition:
            self._start_once()
            self._condition.wait_for(lambda: self._held or self._closed, min(timeout, threading.TIMEOUT_MAX))
            taken = [self._held.popleft() for _ in range(min(len(self._held), _MAX_READ))]
            dropped, self._dropped_untold = self._dropped_untold, 0
        if dropped:
            # told here, not where it happens: a log's handler may be slow, and that thread may not be
            message = "%s: %d frames found %d others waiting and were dropped; what reads them is too slow"
            self._log.write(_LOGGER, logging.WARNING, "dropped", message, self.name, dropped, self._max_held)
        return [_item_of(held) for held in taken]

    def acknowledge(self, positions: Sequence[Position]) -> None:
        """Does nothing: the engine keeps nothing to be acknowledged."""

    def close(self) -> None:
        """Leaves the engine and ends the thread, within two seconds; what has arrived can still be read.

        Only a host name that is being resolved may keep the thread for longer; this then returns
        all the same, and says so in the log.
        """
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            running = self._running
        if running is None:
            return
        thread, waker = running
        waker.close()
        thread.join(_CLOSE_TIMEOUT)
        if thread.is_alive():
            message = "%s: the thread is still busy %.0f s after closing; it ends when the name server answers"
            self._log.write(_LOGGER, logging.WARNING, "close", message, self.name, _CLOSE_TIMEOUT)

    def _start_once(self) -> None:
        """Starts the thread unless there is one, or was; the lock is held."""
        if self._closed or self._running is not None:
            return
        try:
            wake, waker = socket.socketpair()
        except OSError as error:
            message = f"{self.name}: cannot connect: no socket: {error.strerror}"
            raise UnavailableError(message) from error
        thread = threading.Thread(target=self._run, args=(wake,), name=self.name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            wake.close()
            waker.close()
            message = f"{self.name}: cannot connect: no thread: {error}"
            raise UnavailableError(message) from error
        self._running = thread, waker

    def _run(self, wake: socket.socket) -> None:
        waiter = _Waiter(wake)
        with wake, suppress(_StoppedError):
            while True:
                failure, lasted = self._attend(waiter)
                refused = isinstance(failure, MisconfiguredError)
                wait = self._backoff.after(lasted or 0.0, refused=refused)
                self._note_failure(failure, lasted, wait)
                waiter.pause(wait)

    def _attend(self, waiter: _Waiter) -> tuple[UnavailableError, float | None]:
        """Connects and reads for as long as it lasts.

        Returns:
            Why there is no connection, and how many seconds it lasted if there was one.
        """
        opened_at = None
        until = time.monotonic() + self._open_timeout
        try:
            with _dial(self._uri, self._tls, waiter, until) as sock:
                connection = _Connection(sock, self._uri, waiter, self._open_timeout)
                connection.shake_hands(self._headers, until)
                opened_at = time.monotonic()
                self._note_connection()
                self._read_all(connection)
        except _StoppedError:
            raise
        except Exception as error:  # noqa: BLE001 - nothing may end the one thread that reads; it is logged or told
            failure = self._failure_of(error)
        return failure, None if opened_at is None else time.monotonic() - opened_at

    def _read_all(self, connection: _Connection) -> NoReturn:
        """Reads until the connection is lost or the source closed, either of which is raised."""
        ping_at = time.monotonic() + self._ping_interval
        while True:
            self._hold(connection.messages())
            connection.check()
            if self._closed:
                connection.say_goodbye()
                raise _StoppedError
            if time.monotonic() >= ping_at:
                connection.send_text(_PING)
                ping_at = time.monotonic() + self._ping_interval
                self._hint_at_silence()
            connection.receive(ping_at)

    def _hold(self, messages: Sequence[tuple[bool, bytes]]) -> None:
        if not messages:
            return
        with self._condition:
            for is_text, data in messages:
                self._frames += 1
                if len(self._held) < self._max_held:
                    self._held.append(_Held(self._frames, is_text, data))
                else:
                    self._dropped += 1
                    self._dropped_untold += 1
            self._condition.notify_all()

    def _hint_at_silence(self) -> None:
        """Says once that nothing has come, if nothing has."""
        if self._frames == 0 and not self._hinted:
            self._hinted = True
            message = (
                "%s: connected, and nothing has come for %g s; nothing may have run,"
                " or the engine was started without withListener(ws.listener)"
            )
            self._log.write(_LOGGER, logging.INFO, "silent", message, self.name, self._ping_interval)

    def _note_connection(self) -> None:
        with self._condition:
            self._connections += 1
            again = self._connections > 1
            self._state = WebSocketState("connected", None)
        message = "%s: connected again" if again else "%s: connected"
        self._log.write(_LOGGER, logging.INFO, message, message, self.name)

    def _note_failure(self, failure: UnavailableError, lasted: float | None, wait: float) -> None:
        refused = isinstance(failure, MisconfiguredError)
        reason = str(failure)
        with self._condition:
            if lasted is None:
                self._failures += 1
            else:
                self._disconnections += 1
            self._state = WebSocketState("refused" if refused else "connecting", reason)
        if refused:
            message = "%s: cannot connect: %s; trying again in %.1f s, and for ever"
            self._alarms.write(_LOGGER, logging.ERROR, reason, message, self.name, reason, wait)
        elif lasted is None:
            message = "%s: cannot connect: %s; trying again in %.1f s"
            self._log.write(_LOGGER, logging.WARNING, reason, message, self.name, reason, wait)
        else:
            message = (
                "%s: lost the connection after %.1f s: %s; trying again in %.1f s; what the engine sends meanwhile"
                " is lost, and executions that are open now will be abandoned unless their end still comes"
            )
            self._log.write(_LOGGER, logging.WARNING, ("lost", reason), message, self.name, lasted, reason, wait)

    def _failure_of(self, error: Exception) -> UnavailableError:
        """What is said of an error."""
        match error:
            case UnavailableError():
                return error
            case SSLCertVerificationError():
                return MisconfiguredError(f"TLS: the engine's certificate is not accepted: {error.verify_message}")
            case SSLError():
                why = f"TLS failed ({error.reason}); does the engine speak TLS at this port?"
            case socket.gaierror():
                why = f"the name {self._uri.host!r} cannot be resolved: {error.strerror}"
            case OSError():
                why = error.strerror or type(error).__name__
            case _DeadlineError():
                why = f"the engine took more than {self._open_timeout:g} s to answer"
            case _:
                why = f"an unexpected {type(error).__name__}"
                message = "%s: an unexpected error; the source goes on"
                self._log.write(_LOGGER, logging.ERROR, why, message, self.name, error=error)
        return UnavailableError(why)


class _Held(NamedTuple):
    """A frame that waits to be read."""

    number: int
    is_text: bool
    data: bytes


class _StoppedError(Exception):
    """The source was closed."""


class _DeadlineError(Exception):
    """The far side took too long."""


class _Backoff:
    """How long to wait for the next try; without a clock.

    Args:
        first: Seconds, nominally, after the first failure.
        longest: Seconds, nominally, at most.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._doublings = 0
        self._waited = 0.0

    def after(self, lasted: float, *, refused: bool) -> float:
        """Seconds to wait after a connection that lasted so many, or none, which lasted 0."""
        if lasted > self._waited:
            self._doublings = 0
        nominal = self._longest if refused else min(self._longest, self._first * 2**self._doublings)
        self._doublings = min(self._doublings + 1, _MAX_DOUBLINGS)
        self._waited = random.uniform(nominal / 2, nominal)  # noqa: S311 - it keeps clients apart, and nothing secret
        return self._waited


class _Waiter:
    """Waits for a socket, with a deadline, until the source is closed.

    Args:
        wake: Readable once the source is closed.
    """

    def __init__(self, wake: socket.socket) -> None:
        self._wake = wake

    def wait(self, sock: socket.socket, events: int, until: float) -> None:
        """Waits until a socket is ready.

        Raises:
            _DeadlineError: It was not in time.
            _StoppedError: The source is closed.
        """
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(sock, events)
        ready = {descriptor for descriptor, _ in poll.poll(max(0, math.ceil((until - time.monotonic()) * 1000)))}
        if self._wake.fileno() in ready:
            raise _StoppedError
        if not ready:
            raise _DeadlineError

    def pause(self, seconds: float) -> None:
        """Lets time pass, unless the source is closed, which is raised."""
        with suppress(_DeadlineError):
            self.wait(self._wake, select.POLLIN, time.monotonic() + seconds)

    def again(self, action: Callable[[], T], sock: socket.socket, events: int, until: float) -> T:
        """Repeats what would block until it does not; raises as :meth:`wait` does."""
        while True:
            try:
                return action()
            except (BlockingIOError, SSLWantReadError, SSLWantWriteError) as error:
                # TLS may have to read in order to write, and the other way round
                self.wait(sock, _TLS_WANTS.get(type(error), events), until)


_TLS_WANTS: Final[dict[type[OSError], int]] = {SSLWantReadError: select.POLLIN, SSLWantWriteError: select.POLLOUT}


class _Connection:
    """A WebSocket over a socket that does not block.

    Args:
        sock: Connected.
        uri: Where to.
        waiter: Waits for the socket.
        timeout: Seconds that the far side may take to answer or to take what is written.
    """

    def __init__(self, sock: socket.socket, uri: WebSocketURI, waiter: _Waiter, timeout: float) -> None:
        self._socket = sock
        self._waiter = waiter
        self._timeout = timeout
        self._protocol = ClientProtocol(uri, max_size=_MAX_FRAME, logger=_PROTOCOL_LOGGER)
        self._message = bytearray()
        self._is_text = True

    def shake_hands(self, headers: dict[str, str], until: float) -> None:
        """Asks for the WebSocket.

        Raises:
            UnavailableError: There is no answer, or none that can be used.
            MisconfiguredError: The answer is a refusal.
        """
        protocol = self._protocol
        request = protocol.connect()
        request.headers.update(headers)
        protocol.send_request(request)
        self._flush(until)
        while protocol.state is State.CONNECTING and protocol.handshake_exc is None:
            self._feed(until)
        match protocol.handshake_exc:
            case None:
                return
            case InvalidStatus() as error:
                raise _refusal(error.response.status_code, has_key="Authorization" in headers) from error
            case error if isinstance(error.__cause__, EOFError):
                message = "the connection was closed during the handshake"
                raise UnavailableError(message) from error
            case error:
                message = f"the answer is no WebSocket's ({clean_message(str(error))}); is it TLS, then wss://?"
                raise UnavailableError(message) from error

    def receive(self, until: float) -> None:
        """Waits for bytes, until then or until the source is closed."""
        with suppress(_DeadlineError, _StoppedError):
            self._feed(until)

    def messages(self) -> list[tuple[bool, bytes]]:
        """The messages that have become complete since the last call: whether it is text, and its bytes."""
        complete = []
        for frame in self._protocol.events_received():
            if not isinstance(frame, Frame) or frame.opcode not in _MESSAGES:
                continue
            if frame.opcode is not Opcode.CONT:
                self._is_text = frame.opcode is Opcode.TEXT
                self._message.clear()
            self._message += frame.data
            if frame.fin:
                complete.append((self._is_text, bytes(self._message)))
        return complete

    def check(self) -> None:
        """Answers what the protocol has to answer.

        Raises:
            UnavailableError: The connection has ended.
        """
        protocol = self._protocol
        until = time.monotonic() + self._timeout
        if protocol.state is State.OPEN:
            self._flush(until)
            return
        with suppress(OSError, _DeadlineError, _StoppedError):
            self._flush(until)
        if protocol.close_rcvd is not None:
            message = f"the engine closed it: {clean_message(str(protocol.close_rcvd))}"
        elif isinstance(protocol.parser_exc, EOFError):
            message = "it was cut without a close frame (1006)"
        else:
            message = f"what came breaks the protocol: {protocol.parser_exc}"
        raise UnavailableError(message)

    def send_text(self, data: bytes) -> None:
        """Sends a text message."""
        self._protocol.send_text(data)
        self._flush(time.monotonic() + self._timeout)

    def say_goodbye(self) -> None:
        """Closes as the protocol wants it, without waiting long for an answer."""
        self._protocol.send_close(1000)
        until = time.monotonic() + _GOODBYE
        self._socket.settimeout(_GOODBYE)
        with suppress(OSError):
            self._socket.sendall(b"".join(self._protocol.data_to_send()))
            # what is left unread would make a reset of our leaving, which may overtake the close frame
            while self._socket.recv(_CHUNK) and time.monotonic() < until:
                pass

    def _feed(self, until: float) -> None:
        data = self._waiter.again(partial(self._socket.recv, _CHUNK), self._socket, select.POLLIN, until)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()

    def _flush(self, until: float) -> None:
        # the empty chunk by which the protocol asks for the socket's end is not needed: it is closed anyway
        data = b"".join(self._protocol.data_to_send())
        while data:
            sent = self._waiter.again(partial(self._socket.send, data), self._socket, select.POLLOUT, until)
            data = data[sent:]


_MESSAGES: Final = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})


def _item_of(held: _Held) -> SourceItem:
    position = Position(None, held.number)
    if not held.is_text:
        return Unreadable(held.data, "a binary frame; the engine sends text", position)
    try:
        return Record(decode_frame(held.data), position)
    except DecodeError as error:
        return Unreadable(held.data, str(error), position)


def _dial(uri: WebSocketURI, tls: SSLContext | None, waiter: _Waiter, until: float) -> socket.socket:
    """Connects, and starts TLS where there is any; the socket does not block."""
    # the resolver has deadlines of its own, which are the system's business
    addresses = socket.getaddrinfo(uri.host, uri.port, type=socket.SOCK_STREAM)
    failures: list[Exception] = []
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        now = time.monotonic()
        sock = socket.socket(family, kind, protocol)
        try:
            # an address that does not answer leaves time for the others
            _connect(sock, address, waiter, now + (until - now) / (len(addresses) - index))
            return sock if tls is None else _secured(sock, uri.host, tls, waiter, until)
        except (OSError, _DeadlineError) as error:
            sock.close()
            failures.append(error)
        except BaseException:
            sock.close()
            raise
    raise failures[-1]


def _connect(sock: socket.socket, address: tuple[object, ...], waiter: _Waiter, until: float) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # not every platform has all of them
    for name in filter(partial(hasattr, socket), _DEAD_PEER):
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), _DEAD_PEER[name])
    code = sock.connect_ex(address)
    if code == EINPROGRESS:
        waiter.wait(sock, select.POLLOUT, until)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _secured(sock: socket.socket, host: str, tls: SSLContext, waiter: _Waiter, until: float) -> socket.socket:
    secured = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    try:
        waiter.again(secured.do_handshake, secured, select.POLLIN, until)
    except BaseException:
        secured.close()
        raise
    return secured


def _refusal(status: int, *, has_key: bool) -> UnavailableError:
    """What an answer other than 101 means."""
    match status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN if has_key:
            why = "the engine does not take this API key; mend api_key, or CONSTELLATION_API_KEY"
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            why = "the engine wants an API key, a read-only one suffices; set api_key, or CONSTELLATION_API_KEY"
        case HTTPStatus.NOT_FOUND:
            why = "nothing is at this path; is it an engine, started withExecutionWebSocket(ws)?"
        case HTTPStatus.UPGRADE_REQUIRED:
            why = "it sees no WebSocket request; does a proxy in between drop the Upgrade header?"
        case _ if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            why = "it redirects, which is not followed, since the key would go along; give the engine's own URL"
        case _ if status in _TRIED_LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return UnavailableError(f"HTTP {status}")
        case _:
            why = "it is no engine, or something in between answers for it"
    return MisconfiguredError(f"HTTP {status}: {why}")


def _uri_of(url: str, execution_id: UUID | None) -> WebSocketURI:
    """The URL with what it leaves out; says nothing of what may hide a key in it."""
    remedy = "give ws://host:port or wss://host:port"
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError:
        message = f"the URL's host or port cannot be used; {remedy}"
        # not chained: its message has the URL's parts
        raise ConfigurationError(message) from None
    if parts.scheme not in _PORTS or not host:
        message = f"the URL is no WebSocket's; {remedy}"
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
    wanted = {*([] if execution_id is None else [execution_id]), *(_uuid_of(value, where) for _, value in query)}
    if len(wanted) > 1:
        message = f"{where}: one executionId, not {', '.join(sorted(map(str, wanted)))}"
        raise ConfigurationError(message)
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~") if parts.path.strip("/") else _PATH
    query_string = "".join(f"{_EXECUTION_ID}={one}" for one in wanted)
    return WebSocketURI(parts.scheme == "wss", host, port or _PORTS[parts.scheme], path, query_string)


def _uuid_of(value: str, where: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        message = f"{where}: executionId is no UUID"
        raise ConfigurationError(message) from None


def _name_of(uri: WebSocketURI) -> str:
    host = f"[{uri.host}]" if ":" in uri.host else uri.host
    return f"{'wss' if uri.secure else 'ws'}://{host}:{uri.port}{uri.resource_name}"


def _headers_of(api_key: str | None, name: str) -> dict[str, str]:
    headers = {"User-Agent": f"constellation-otel/{SCOPE_VERSION}"}
    key = os.environ.get(_KEY_VARIABLE, "") if api_key is None else api_key
    if not key:
        return headers
    if not (key.isascii() and key.isprintable()) or " " in key:
        message = f"{name}: the API key has spaces, line ends or other characters that no header takes; check its ends"
        raise ConfigurationError(message)
    if len(key) < _KEY_LENGTH:
        message = "%s: the API key has %d characters, and an engine takes none below %d"
        _LOGGER.warning(message, name, len(key), _KEY_LENGTH)
    return headers | {"Authorization": f"Bearer {key}"}
