"""The Scala engine's WebSocket as a source of events.

The engine keeps 100 events for each client, drops what comes past them, and sends
nothing twice. So one thread reads the socket and appends to a queue, and does
nothing else; frames are decoded in :meth:`WebSocketSource.read`. What goes over the
socket is in ``connection``, what a URL and a key mean in ``address``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import OrderedDict, deque
from contextlib import closing, suppress
from ssl import SSLContext, create_default_context
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, NoReturn, Self

from msgspec import Struct

from constellation_otel._support.deadline import bounded
from constellation_otel._support.log import RateLimitedLog
from constellation_otel.delivery import (
    Backoff,
    Batch,
    BatchBuilder,
    Position,
    Restarted,
    Retry,
    Source,
    Unreadable,
)
from constellation_otel.errors import ConfigurationError, MisconfiguredError, UnavailableError
from constellation_otel.events import ExecutionCancelled, ExecutionCompleted, read_frame
from constellation_otel.transports.websocket.address import headers_of, name_of, uri_of
from constellation_otel.transports.websocket.connection import (
    Message,
    OversizeError,
    ask_for_health,
    connected,
    failure_of,
    is_answer,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from constellation_otel.delivery import SourceItem
    from constellation_otel.events import Event
    from constellation_otel.transports.url import SourceOptions
    from constellation_otel.transports.websocket.connection import Connection

__all__ = ["WebSocketCounters", "WebSocketSource", "WebSocketState"]

_LOGGER: Final = logging.getLogger(__package__)
_LONGEST_WAITS: Final = {True: 5.0, False: 30.0}
"""Seconds between two tries, at most, by whether the host answers."""
_LOOK_AGAIN: Final = 0.05
_MAX_READ: Final = 512
_MAX_HELD_BYTES: Final = 64 * 2**20
"""Bytes of all frames that wait; a single one may have a quarter of it."""


class Timing(Struct, frozen=True):
    """How long a source waits for what, in seconds.

    Attributes:
        open_s: TCP, TLS and the handshake must be done in it, all together.
        ping_s: Between the text messages that keep the engine from cutting the connection,
            which it does after 600.
        first_wait_s: Before the second try to connect, at most.
        quiet_s: Without a frame, after which the engine is asked for its health, again and again.
        health_s: That the engine has to answer then.
        last_frames_s: That an engine that is shutting down has for executions to end, before the source disconnects.
        close_s: That closing waits for the thread.
    """

    open_s: float = 10.0
    ping_s: float = 60.0
    first_wait_s: float = 0.1
    quiet_s: float = 2.0
    health_s: float = 2.0
    last_frames_s: float = 4.0
    close_s: float = 2.0


class WebSocketState(Struct, frozen=True):
    """How the connection is, for a health check.

    Attributes:
        status: ``connected``; ``connecting``, before the first :meth:`~WebSocketSource.read`
            and between connections, too; ``refused``, where an operator has to fix it (a wrong
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
        dropped: Frames that found no room: ``max_held`` others waiting, or 64 MiB of them.
        oversize: Frames of more than 16 MiB, of which :meth:`~WebSocketSource.read` gives the
            beginning, and of more than 64 MiB, each of which costs the connection.
        held: Frames that wait.
        connections: Connections that were made.
        disconnections: Connections that were lost.
        failures: Tries that made no connection.
        health_failures: Questions for the engine's health that had no answer, without those
            by which it was seen to be shutting down.
        connected: Whether there is a connection now.
    """

    frames: int
    delivered: int
    dropped: int
    oversize: int
    held: int
    connections: int
    disconnections: int
    failures: int
    health_failures: int
    connected: bool


class WebSocketSource(Source):
    """A :class:`~constellation_otel.delivery.Source` that reads the engine's events off its WebSocket.

    Making one opens nothing: its thread and its connection start with the first
    :meth:`read`. From then on it connects for ever, waiting longer between tries, and
    :meth:`read` gives nothing while there is no connection: :attr:`state` and the log
    say why. Only :meth:`close` ends the thread. A forked child has none; it makes a
    source of its own. Environment variables that name an HTTP proxy are ignored.

    What the engine sends while no connection is there is lost, and the engine says
    nothing of what it drops: an execution may lack its start, its end or any module.
    Where its port has refused a connection before it takes one, it was restarted:
    :meth:`read` then gives a :class:`~constellation_otel.delivery.Restarted`.

    A message of up to 16 MiB is read. Of one of up to 64 MiB the beginning is given, as
    unreadable; a longer one costs the connection, which is made again at once.

    An engine does not end while a client is connected. So while nothing comes for two
    seconds, it is asked for its health, at ``/health``; where it refuses the connection, it
    is shutting down: what still comes is taken until no execution is open, for four
    seconds at most, then this side closes, and connects again as ever.

    It is one class of more than 300 lines: who reads and the thread that connects change the
    same few fields, under one lock.

    Args:
        url: ``ws://host:port`` or ``wss://host:port``. The port is 8080, or 443 for ``wss``,
            where there is none, the path ``/api/v1/executions/events``; a query may have
            ``executionId``, and nothing else.
        api_key: Goes into the ``Authorization`` header; where it is ``None``, what
            ``CONSTELLATION_API_KEY`` has. An empty one is none.
        execution_id: Only this execution's events.
        max_held: Frames that wait to be read, at most, some 300 bytes each as a rule, and no
            more than 64 MiB; beyond it the newest is dropped and counted.
        ssl: How to trust the engine of a ``wss`` URL; the system's certificates otherwise.
        max_reconnect_wait: Seconds between two tries, at most; where there is none, 5 while
            the host answers, as by refusing, and 30 while it does not. The waits begin with
            0.1 and double; a random half or more of each is waited, so that replicas do
            not come all at once. They begin again after a connection that lasted longer than
            the wait before it.
        timing: The other waits.

    Raises:
        ConfigurationError: The URL, the key or a number cannot be used; the message has no secret.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        execution_id: UUID | None = None,
        max_held: int = 65_536,
        ssl: SSLContext | None = None,
        max_reconnect_wait: float | None = None,
        timing: Timing | None = None,
    ) -> None:
        if max_held < 1:
            message = f"max_held={max_held!r} must be at least 1"
            raise ConfigurationError(message)
        if max_reconnect_wait is not None and not 0 < max_reconnect_wait < math.inf:
            message = f"max_reconnect_wait={max_reconnect_wait!r} must be more than 0 and finite"
            raise ConfigurationError(message)
        self._uri = uri_of(url, execution_id)
        self._name: Final = name_of(self._uri)
        if ssl is not None and not self._uri.secure:
            message = f"{self.name}: ssl is for wss://, and this is ws://"
            raise ConfigurationError(message)
        self._tls = ssl or (create_default_context() if self._uri.secure else None)
        self._headers = headers_of(api_key, self.name)
        self._max_held = max_held
        self._timing = timing or Timing()
        self._backoffs = {
            answers: Backoff(Retry(self._timing.first_wait_s, max_reconnect_wait or longest))
            for answers, longest in _LONGEST_WAITS.items()
        }
        self._waited = 0.0
        self._log = RateLimitedLog()
        self._condition = threading.Condition(threading.Lock())
        self._held: deque[_Held | Restarted] = deque()
        self._number = 0
        self._is_refused = False
        self._held_bytes = 0
        self._running: _Running | None = None
        self._closed = False
        self._hinted = False
        self._state = WebSocketState("connecting", None)
        self._frames = 0
        self._delivered = 0
        self._dropped = 0
        self._dropped_untold = 0
        self._oversize = 0
        self._connections = 0
        self._disconnections = 0
        self._failures = 0
        self._health_failures = 0
        self._executions = _Executions()
        # frames that were taken and not looked at yet
        self._decoding = 0

    @classmethod
    def from_url(cls, url: str, options: SourceOptions) -> Self:
        """Makes one from a URL, as the class does.

        Raises:
            ConfigurationError: It is not to follow, or the class refuses something.
        """
        if not options.follow:
            message = "an engine's WebSocket has no past to be replayed; use constellation-otel bridge to follow it"
            raise ConfigurationError(message)
        return cls(
            url,
            api_key=options.api_key,
            execution_id=options.execution_id,
            max_reconnect_wait=options.max_reconnect_wait,
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def engine(self) -> str:
        """What the spans of its executions say of the engine."""
        return "constellation"

    @property
    def state(self) -> WebSocketState:
        """How the connection is."""
        return WebSocketState("closed", None) if self._closed else self._state

    @property
    def last_error(self) -> str | None:
        """Why there is no connection; ``None`` where there is one."""
        state = self.state
        return None if state.status == "connected" else state.reason or state.status

    @property
    def dropped(self) -> int:
        """Frames that found no room."""
        return self._dropped

    @property
    def gaps(self) -> int:
        """Connections that were lost: the engine sends nothing twice."""
        return self._disconnections

    @property
    def counters(self) -> WebSocketCounters:
        """What has become of frames and connections so far."""
        with self._condition:
            held = self._frames - self._delivered - self._dropped
            return WebSocketCounters(
                frames=self._frames,
                delivered=self._delivered,
                dropped=self._dropped,
                oversize=self._oversize,
                held=held,
                connections=self._connections,
                disconnections=self._disconnections,
                failures=self._failures,
                health_failures=self._health_failures,
                connected=self.state.status == "connected",
            )

    def read(self, timeout: float) -> Sequence[SourceItem]:
        """Gives what has arrived, at most 512 frames; the first call connects.

        Args:
            timeout: Seconds to wait for the first one.

        Returns:
            The frames' events, and a ``Restarted`` where the engine was restarted. A position is
            the frame's number since the source was made, dropped ones counted. The list is
            empty where nothing came in time, where there is no connection, and once the
            source is closed and all is read.

        Raises:
            UnavailableError: The process has no file descriptor left to connect with.
        """
        with self._condition:
            if self._running is None and not self._closed:
                self._running = self._start()
            self._condition.wait_for(lambda: self._held or self._closed, bounded(timeout))
            taken = [self._held.popleft() for _ in range(min(len(self._held), _MAX_READ))]
            frames = [held for held in taken if isinstance(held, _Held)]
            self._held_bytes -= sum(len(held.message.data) for held in frames)
            self._delivered += len(frames)
            self._decoding = len(frames)
            dropped, self._dropped_untold = self._dropped_untold, 0
        if dropped:
            # told here, not where it happens: a log's handler may be slow, and that thread may not be
            message = "%s: %d frames were dropped, since %d others, or %d bytes, waited; their reader is too slow"
            most = self._max_held, _MAX_HELD_BYTES
            self._log.write(_LOGGER, logging.WARNING, "dropped", message, self.name, dropped, *most)
        gathered = BatchBuilder()
        for held in taken:
            if isinstance(held, Restarted):
                gathered.put(held)
            elif held.message.unreadable is None:
                gathered.decode(read_frame, held.message.data, held.number)
            else:
                gathered.put(Unreadable(held.message.data, held.message.unreadable, Position(None, held.number)))
        for item in gathered.items:
            self._executions.see(item)
        self._decoding = 0
        return gathered.items

    def close(self) -> None:
        """Disconnects and ends the thread, within two seconds; what has arrived can still be read.

        Only a host name that is being resolved may keep the thread for longer; this then returns
        all the same.
        """
        with self._condition:
            was_closed, self._closed = self._closed, True
            self._condition.notify_all()
            running = self._running
        if running is not None and not was_closed:
            running.loop.call_soon_threadsafe(running.task.cancel)
            running.thread.join(self._timing.close_s)

    def _start(self) -> _Running:
        try:
            loop = asyncio.new_event_loop()
        except OSError as error:
            message = f"{self.name}: cannot connect: {error.strerror}"
            raise UnavailableError(message) from error
        task = loop.create_task(self._keep_connected())
        thread = threading.Thread(target=_run, args=(loop, task), name=self.name, daemon=True)
        thread.start()
        return _Running(thread, loop, task)

    async def _keep_connected(self) -> NoReturn:
        while True:
            loss = await self._attend()
            wait = self._wait_after(loss)
            self._note_loss(loss, wait)
            await asyncio.sleep(wait)

    def _wait_after(self, loss: _Loss) -> float:
        """Seconds to wait before the next try."""
        if (loss.lasted or 0.0) > self._waited:
            for backoff in self._backoffs.values():
                backoff.reset()
        backoff = self._backoffs[loss.is_answered]
        is_first = not backoff.failures
        self._waited = backoff.next()
        # at once, but not again and again
        return 0.0 if is_first and isinstance(loss.failure, OversizeError) else self._waited

    async def _attend(self) -> _Loss:
        """Connects and reads for as long as it lasts."""
        clock = asyncio.get_running_loop().time
        opened_at = None
        is_answered = True
        failure: UnavailableError
        try:
            async with connected(self._uri, self._tls, self._headers, self._timing.open_s) as connection:
                opened_at = clock()
                self._note_connection()
                await self._read_while_it_runs(connection)
        except OversizeError as error:
            failure = error
            self._hold([Message(b"", str(error), is_oversize=True)])
        except UnavailableError as error:
            failure = error
        except OSError as error:
            failure = failure_of(error, self._uri.host, self._timing.open_s)
            is_answered = is_answer(error)
            self._is_refused = self._is_refused or isinstance(error, ConnectionRefusedError)
        except Exception as error:  # noqa: BLE001 - nothing may end the one thread that reads; it is logged
            failure = UnavailableError(f"an unexpected {type(error).__name__}")
            message = "%s: an unexpected error; the source goes on"
            self._log.write(_LOGGER, logging.ERROR, type(error).__name__, message, self.name, error=error)
        return _Loss(failure, None if opened_at is None else clock() - opened_at, is_answered)

    async def _read_while_it_runs(self, connection: Connection) -> NoReturn:
        """Reads until the connection is lost or given up, or the source closed, any of which is raised."""
        try:
            async with asyncio.timeout(None) as reading:
                watching = asyncio.create_task(self._watch(connection, reading))
                try:
                    await self._read_all(connection)
                finally:
                    watching.cancel()
                    await asyncio.wait({watching})
        except TimeoutError as error:
            message = "the engine is shutting down, and was disconnected so that it can end"
            # or one of the connection's own
            raise UnavailableError(message) if reading.expired() else error from None

    async def _watch(self, connection: Connection, reading: asyncio.Timeout) -> NoReturn:
        """Sees when the engine is shutting down, and ends the reading then, by which this is cancelled."""
        clock = asyncio.get_running_loop().time
        asked_at = connection.heard_at
        while True:
            left = max(asked_at, connection.heard_at) + self._timing.quiet_s - clock()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await self._ask_for_health(connection, reading)
                asked_at = clock()

    async def _let_go(self, reading: asyncio.Timeout) -> None:
        """Ends the reading once no execution is open, or in four seconds."""
        clock = asyncio.get_running_loop().time
        last_frames_s = self._timing.last_frames_s
        reading.reschedule(clock() + last_frames_s)
        message = (
            "%s: the engine takes no connections any more, so it is shutting down;"
            " it is disconnected when no execution is open, in %g s at most"
        )
        self._log.write(_LOGGER, logging.INFO, "shutting down", message, self.name, last_frames_s)
        while self._has_open:  # noqa: ASYNC110 - what ends them is another thread, which no event of this loop tells
            await asyncio.sleep(_LOOK_AGAIN)
        reading.reschedule(clock())

    async def _ask_for_health(self, connection: Connection, reading: asyncio.Timeout) -> None:
        """Asks an engine how it is; one that refuses the connection is shutting down."""
        try:
            await ask_for_health(self._uri, self._tls, connection.address, self._timing.health_s)
        except ConnectionRefusedError:
            self._is_refused = True
            await self._let_go(reading)
        except Exception as error:  # noqa: BLE001 - nothing may end the watch, or the engine could not end
            with self._condition:
                self._health_failures += 1
            is_known = isinstance(error, OSError)
            why = f"an unexpected {type(error).__name__}"
            if isinstance(error, OSError):
                why = str(failure_of(error, self._uri.host, self._timing.health_s))
            message = "%s: GET /health has no answer: %s; the events are read all the same"
            shown = None if is_known else error
            self._log.write(_LOGGER, logging.WARNING, "health", message, self.name, why, error=shown)

    @property
    def _has_open(self) -> bool:
        """Whether any execution is open, as far as is known, or may be, since frames have not been looked at."""
        with self._condition:
            return bool(self._held or self._decoding or self._executions.open)

    async def _read_all(self, connection: Connection) -> NoReturn:
        """Reads until the connection is lost or the source closed, either of which is raised."""
        clock = asyncio.get_running_loop().time
        ping_at = clock() + self._timing.ping_s
        try:
            while True:
                self._hold(connection.messages())
                await connection.answer()
                if clock() >= ping_at:
                    await connection.send_text(b"ping")
                    ping_at = clock() + self._timing.ping_s
                    self._hint_at_silence()
                await connection.receive(ping_at)
        except asyncio.CancelledError:
            await connection.say_goodbye()
            self._hold(connection.messages())
            raise

    def _hold(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        with self._condition:
            for message in messages:
                self._frames += 1
                self._number += 1
                self._oversize += message.is_oversize
                held_bytes = self._held_bytes + len(message.data)
                if len(self._held) < self._max_held and held_bytes <= _MAX_HELD_BYTES:
                    self._held.append(_Held(self._number, message))
                    self._held_bytes = held_bytes
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
            self._log.write(_LOGGER, logging.INFO, "silent", message, self.name, self._timing.ping_s)

    def _note_connection(self) -> None:
        with self._condition:
            if self._is_refused:
                self._is_refused = False
                if self._held and isinstance(self._held[-1], Restarted):
                    # nothing has come in between
                    self._held.pop()
                self._number += 1
                self._held.append(Restarted(Position(None, self._number)))
                self._condition.notify_all()
            self._connections += 1
            self._state = WebSocketState("connected", None)
        self._log.write(_LOGGER, logging.INFO, "connected", "%s: connected", self.name)

    def _note_loss(self, loss: _Loss, wait: float) -> None:
        failure, lasted = loss.failure, loss.lasted
        is_refused = isinstance(failure, MisconfiguredError)
        reason = str(failure)
        with self._condition:
            if lasted is None:
                self._failures += 1
            else:
                self._disconnections += 1
            self._state = WebSocketState("refused" if is_refused else "connecting", reason)
        if lasted is None:
            level = logging.ERROR if is_refused else logging.WARNING
            message = "%s: cannot connect: %s; trying again in %.1f s, and until it succeeds"
            # not keyed by the reason, in which the server has its say
            self._log.write(_LOGGER, level, ("connect", type(failure).__name__), message, self.name, reason, wait)
        else:
            message = (
                "%s: lost the connection after %.1f s: %s; trying again in %.1f s; what the engine sends meanwhile"
                " is lost, and executions that are open now will be abandoned unless their end still comes"
            )
            self._log.write(_LOGGER, logging.WARNING, "lost", message, self.name, lasted, reason, wait)


class _Executions:
    """Which executions are open.

    Args:
        most: How many are known; past that, the first ones are forgotten.

    Attributes:
        open: How many are.
    """

    def __init__(self, most: int = 65_536) -> None:
        self.open = 0
        self._most = most
        # an execution that has ended stays, since a frame of it may come late
        self._is_open: OrderedDict[int, bool] = OrderedDict()

    def see(self, item: SourceItem) -> None:
        """Takes note of what an item says."""
        if isinstance(item, Restarted):
            self.open = 0
            self._is_open.clear()
        if isinstance(item, Batch):
            for event in item.events:
                self._see(event)

    def _see(self, event: Event) -> None:
        execution_id = event.execution_id.int
        was_open = self._is_open.get(execution_id)
        is_open = was_open is not False and not isinstance(event, ExecutionCompleted | ExecutionCancelled)
        self._is_open[execution_id] = is_open
        self.open += is_open - bool(was_open)
        if len(self._is_open) > self._most:
            self.open -= self._is_open.popitem(last=False)[1]


class _Loss(NamedTuple):
    """How a connection ended, or a try to make one.

    Attributes:
        failure: Why.
        lasted: For how many seconds there was a connection, if there was one.
        is_answered: Whether the host answered.
    """

    failure: UnavailableError
    lasted: float | None
    is_answered: bool


class _Held(NamedTuple):
    """A frame that waits to be read."""

    number: int
    message: Message


class _Running(NamedTuple):
    """The thread that reads, and what runs in it."""

    thread: threading.Thread
    loop: asyncio.AbstractEventLoop
    task: asyncio.Task[NoReturn]


def _run(loop: asyncio.AbstractEventLoop, task: asyncio.Task[NoReturn]) -> None:
    with closing(loop), suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
