"""An OTLP endpoint in this process, for the demo and for tests: what it keeps, how to wait for it, how to make it fail.

It speaks the protocol as a Collector does, keeps what arrives in memory, and fails on
order. It stores nothing and forwards nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, cast

import grpc
from msgspec import Struct
from msgspec.structs import asdict, replace

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel.errors import ReceiverError
from constellation_otel.receiver.faults import Delay, Drop, Fault, PartialSuccess, Refuse
from constellation_otel.receiver.servers import HOST, Answer, Arrival, Protocol, Servers, Signal, UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from constellation_otel.receiver.decoding import LogRecord, MetricPoint, Received
    from constellation_otel.traces import Span

__all__ = ["Receiver", "Request"]

_NAMED_IN_MESSAGES: Final = 10
"""How many spans and requests the message of a missed deadline names."""

T = TypeVar("T")


class Request(Struct, frozen=True, kw_only=True):
    """A request and what became of it.

    Attributes:
        signal: What it exports; ``None`` if OTLP has no such path.
        protocol: The transport; ``None`` for an HTTP request of another content type.
        headers: HTTP headers or gRPC metadata, names in lower case; a binary
            metadata value in base64, as it is on the wire.
        size: Bytes of the body: as sent over HTTP, uncompressed over gRPC.
        received_ns: When it was read, in nanoseconds of :func:`time.monotonic_ns`.
        outcome: ``accepted``, ``partial`` (some of it rejected by order), ``refused``
            (by order), ``dropped`` (no answer, by order or because the receiver was
            stopped) or ``invalid`` (it broke the protocol).
        status: The HTTP status (``200``) or the gRPC code (``OK``) of the answer;
            empty if there was none.
        message: The error message of the answer.
    """

    signal: Signal | None
    protocol: Protocol | None
    headers: dict[str, str]
    size: int
    received_ns: int
    outcome: Literal["accepted", "partial", "refused", "dropped", "invalid"]
    status: str
    message: str = ""


class Receiver:
    """An OTLP endpoint that keeps what it gets.

    It reads protobuf, compressed with gzip or not, over gRPC and HTTP. It refuses JSON,
    chunked bodies, summaries and exponential histograms.

    A context manager: both ports accept connections when ``with`` or :meth:`start`
    returns, and no thread or socket is left when it ends or :meth:`stop` returns. It
    listens on 127.0.0.1, on free ports, which it keeps as long as it lives. Safe to use
    from several threads.

    Args:
        max_kept: How many spans, data points, log records and requests are kept, of
            each; the oldest are removed first, and counted in :attr:`dropped`.
        max_request_bytes: The largest request, compressed or not. A larger one is refused
            with 413; over gRPC with RESOURCE_EXHAUSTED by gRPC itself, so that it is not
            among the :attr:`requests`.
    """

    def __init__(self, *, max_kept: int = 100_000, max_request_bytes: int = 20 * 1024 * 1024) -> None:
        self._grpc_port = self._http_port = 0
        self._max_request_bytes = max_request_bytes
        self._changed = threading.Condition()
        self._changes = 0  # requests and faults
        self._spans: _Kept[Received] = _Kept(max_kept)
        self._metrics: _Kept[MetricPoint] = _Kept(max_kept)
        self._logs: _Kept[LogRecord] = _Kept(max_kept)
        self._requests: _Kept[Request] = _Kept(max_kept)
        self._faults: list[tuple[Signal | None, Fault]] = []
        self._lifecycle = threading.Lock()
        self._servers: Servers | None = None
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listens, on the same ports as before; does nothing if it is running.

        Raises:
            ReceiverError: A port has been taken meanwhile.
        """
        with self._lifecycle:
            if self._servers is not None:
                return
            self._stopping.clear()
            self._servers = Servers(self._handle, self._grpc_port, self._http_port, self._max_request_bytes)
            self._grpc_port, self._http_port = self._servers.grpc_port, self._servers.http_port

    def stop(self) -> None:
        """Cuts every connection and frees both ports, and keeps what has arrived; does nothing if it is stopped."""
        with self._lifecycle:
            if self._servers is None:
                return
            self._stopping.set()
            self._servers.stop()
            self._servers = None

    @property
    def grpc_endpoint(self) -> str:
        """The ``OTEL_EXPORTER_OTLP_ENDPOINT`` for gRPC; raises ReceiverError before the first start."""
        return self._endpoint(self._grpc_port)

    @property
    def http_endpoint(self) -> str:
        """The ``OTEL_EXPORTER_OTLP_ENDPOINT`` for HTTP; raises ReceiverError before the first start."""
        return self._endpoint(self._http_port)

    @property
    def spans(self) -> list[Span]:
        """The spans in order of arrival."""
        return [received.span for received in self.received]

    @property
    def received(self) -> list[Received]:
        """The spans in order of arrival, with their resources and scopes."""
        with self._changed:
            return list(self._spans.items)

    @property
    def metrics(self) -> list[MetricPoint]:
        """The metrics' data points in order of arrival."""
        with self._changed:
            return list(self._metrics.items)

    @property
    def logs(self) -> list[LogRecord]:
        """The log records in order of arrival."""
        with self._changed:
            return list(self._logs.items)

    @property
    def requests(self) -> list[Request]:
        """The requests in order of arrival, refused ones included."""
        with self._changed:
            return list(self._requests.items)

    @property
    def faults(self) -> list[Fault]:
        """The ordered faults that are still to happen, each with its remaining ``times``."""
        with self._changed:
            return [fault for _, fault in self._faults]

    @property
    def dropped(self) -> dict[str, int]:
        """How many were removed to keep to ``max_kept``: of ``spans``, ``metrics``, ``logs`` and ``requests``."""
        with self._changed:
            return {
                "spans": self._spans.dropped,
                "metrics": self._metrics.dropped,
                "logs": self._logs.dropped,
                "requests": self._requests.dropped,
            }

    def order(self, fault: Fault, *, signal: Signal | None = None) -> None:
        """Makes requests fail, after the faults that were ordered before.

        A request takes the first fault for its signal; one that breaks the protocol takes none.

        Args:
            fault: What happens, and to how many requests.
            signal: The requests of one signal; ``None`` for any.

        Raises:
            ValueError: ``times`` is not positive.
        """
        if fault.times < 1:
            message = f"{fault!r} would happen {fault.times} times; times must be at least 1"
            raise ValueError(message)
        with self._changed:
            self._faults.append((signal, fault))

    def clear(self) -> None:
        """Forgets what has arrived, the counters and the faults."""
        with self._changed:
            for kept in (self._spans, self._metrics, self._logs, self._requests):
                kept.clear()
            self._faults.clear()

    def wait_for(self, predicate: Callable[[Receiver], bool], timeout: float, what: str) -> None:
        """Waits until a condition is true.

        Args:
            predicate: Called at once, and after each request and each beginning of a fault.
            timeout: Seconds.
            what: What is awaited, for the error message.

        Raises:
            ReceiverError: It was not true in time; the message says what has arrived.
        """
        deadline = deadline_of(timeout)
        while True:
            with self._changed:
                seen = self._changes
            if predicate(self):
                return
            with self._changed:
                if not self._changed.wait_for(partial(self._has_changed, seen), seconds_left(deadline)):
                    message = f"waited {timeout:g} s for {what}; there are {self._inventory()}"
                    raise ReceiverError(message)

    def _has_changed(self, seen: int) -> bool:
        return self._changes != seen

    def wait_for_spans(self, count: int, timeout: float = 10.0) -> list[Span]:
        """Waits until at least ``count`` spans have arrived, for ``timeout`` seconds at most.

        Returns:
            All spans that have arrived by then, in order.

        Raises:
            ReceiverError: There were fewer; the message says what has arrived.
        """
        self.wait_for(lambda receiver: len(receiver.spans) >= count, timeout, f"{count} spans")
        return self.spans

    def _endpoint(self, port: int) -> str:
        if not port:
            message = "the receiver has no port yet; use it in a with statement or call start()"
            raise ReceiverError(message)
        return f"http://{HOST}:{port}"

    def _inventory(self) -> str:
        spans = _listed(span.name for span in self.spans)
        requests = _listed(
            " ".join(filter(None, (request.signal, request.protocol, request.outcome, request.status)))
            for request in self.requests
        )
        return (
            f"{len(self.spans)} spans{spans}, {len(self.metrics)} data points and {len(self.logs)} log records"
            f" in {len(self.requests)} requests{requests}"
        )

    def _next_fault(self, signal: Signal) -> Fault | None:
        with self._changed:
            for position, (only, fault) in enumerate(self._faults):
                if only in {None, signal}:
                    if fault.times == 1:
                        del self._faults[position]
                    else:
                        self._faults[position] = only, replace(fault, times=fault.times - 1)
                    self._notify()
                    return fault
        return None

    def _handle(self, arrival: Arrival, received: Sequence[Any] | UnreadableError) -> Answer:
        """Decides what becomes of a request, and keeps it."""
        if isinstance(received, UnreadableError):
            code = grpc.StatusCode.INVALID_ARGUMENT
            return self._record(arrival, Answer("invalid", received.http_status, code, str(received)))
        # a readable request has a signal
        signal = cast("Signal", arrival.signal)
        fault = self._next_fault(signal)
        answer = _ACCEPTED
        if isinstance(fault, Refuse):
            answer = Answer("refused", fault.http_status, fault.grpc_code, fault.message, fault.retry_after)
            return self._record(arrival, answer)
        if isinstance(fault, Delay) and self._stopping.wait(fault.seconds):
            return self._record(arrival, _NO_ANSWER)
        if isinstance(fault, Drop):
            if not fault.kept:
                return self._record(arrival, _NO_ANSWER)
            answer = _NO_ANSWER
        if isinstance(fault, PartialSuccess):
            answer = Answer("partial", message=fault.message, rejected=min(fault.rejected, len(received)))
        kept: dict[Signal, _Kept[Any]] = {"traces": self._spans, "metrics": self._metrics, "logs": self._logs}
        with self._changed:
            kept[signal].extend(received[: len(received) - answer.rejected])
            return self._record(arrival, answer)

    def _record(self, arrival: Arrival, answer: Answer) -> Answer:
        if answer.outcome == "dropped":
            status = ""
        elif arrival.protocol == "grpc":
            status = answer.grpc_code.name
        else:
            status = str(int(answer.http_status))
        request = Request(**asdict(arrival), outcome=answer.outcome, status=status, message=answer.message)
        with self._changed:
            self._requests.extend([request])
            self._notify()
        return answer

    def _notify(self) -> None:
        self._changes += 1
        self._changed.notify_all()


class _Kept(Generic[T]):
    """The newest items, and how many older ones were removed."""

    def __init__(self, max_kept: int) -> None:
        self.items: deque[T] = deque(maxlen=max_kept)
        self.dropped = 0
        self._max_kept = max_kept

    def extend(self, items: Sequence[T]) -> None:
        self.dropped += max(0, len(self.items) + len(items) - self._max_kept)
        self.items.extend(items)

    def clear(self) -> None:
        self.items.clear()
        self.dropped = 0


_ACCEPTED: Final = Answer("accepted")
_NO_ANSWER: Final = Answer("dropped")


def _listed(names: Iterable[str]) -> str:
    """The last few names in brackets."""
    listed = list(names)
    more = "… " if len(listed) > _NAMED_IN_MESSAGES else ""
    return f" ({more}{', '.join(listed[-_NAMED_IN_MESSAGES:])})" if listed else ""
