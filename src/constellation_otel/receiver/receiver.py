"""An OTLP endpoint in this process, for the demo and for tests.

It speaks the protocol as a Collector does, over gRPC and over HTTP with protobuf
or JSON, keeps what arrives in memory, and fails on order. It stores nothing and
forwards nothing. https://opentelemetry.io/docs/specs/otlp has the rules.
"""

from __future__ import annotations

import gzip
import logging
import socket
import sys
import threading
import time
import zlib
from base64 import b64encode
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from json import dumps
from math import ceil
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar, cast

import grpc
from google.protobuf import json_format
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # stubs without py.typed
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # stubs without py.typed
from msgspec import Struct
from msgspec.structs import replace
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceResponse,
)

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.log import log
from constellation_otel.errors import DecodeError, ReceiverError
from constellation_otel.receiver.decoding import (
    LogRecord,
    MetricPoint,
    Received,
    decode_logs,
    decode_metrics,
    decode_traces,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from google.protobuf.message import Message

    from constellation_otel.traces import Span

__all__ = [
    "Delay",
    "Drop",
    "Fault",
    "PartialSuccess",
    "Receiver",
    "Refuse",
    "Request",
    "Signal",
]

Signal: TypeAlias = Literal["traces", "metrics", "logs"]

_LOG: Final = logging.getLogger(__name__)
_GRPC_WORKERS: Final = 16
_GRPC_GRACE: Final = 1.0
"""Seconds that a gRPC client may take to let go of its connection, before it is cut."""
_POLL_INTERVAL: Final = 0.02
"""Seconds in which the HTTP server notices that it should stop."""
_CHUNK: Final = 65_536
_NAMED_IN_MESSAGES: Final = 10
"""How many spans and requests the message of a missed deadline names."""

T = TypeVar("T")


# What arrives


class Request(Struct, frozen=True, kw_only=True):
    """A request, whatever became of it.

    Attributes:
        signal: What it exports; ``None`` where its path is none of OTLP's.
        protocol: How it came; ``None`` for an HTTP request of another content type.
        headers: HTTP headers or gRPC metadata, names in lower case; a binary
            metadata value in base64, as it is on the wire.
        size: Bytes of the body: as sent over HTTP, unpacked over gRPC.
        received_ns: When it had come whole, in nanoseconds of :func:`time.monotonic_ns`.
        outcome: ``accepted``, ``partial`` (some of it rejected by order), ``refused``
            (by order), ``dropped`` (no answer, by order or because the receiver was
            stopped) or ``invalid`` (it broke the protocol).
        status: The HTTP status (``200``) or the gRPC code (``OK``) of the answer;
            empty where there was none.
        message: What the answer said was wrong.
    """

    signal: Signal | None
    protocol: Literal["grpc", "http/protobuf", "http/json"] | None
    headers: dict[str, str]
    size: int
    received_ns: int
    outcome: Literal["accepted", "partial", "refused", "dropped", "invalid"]
    status: str
    message: str = ""


# What goes wrong on order


class Refuse(Struct, frozen=True, kw_only=True):
    """Answers with an error; nothing of the request is kept.

    Over HTTP the answer is ``http_status``, a ``Retry-After`` header in whole seconds
    (rounded up) and a google.rpc.Status in the request's encoding. Over gRPC it is
    ``grpc_code``, with a google.rpc.RetryInfo in the trailing metadata.

    Attributes:
        http_status: OTLP clients retry after 429, 502, 503 and 504.
        grpc_code: OTLP clients retry after UNAVAILABLE and a few more, and after
            RESOURCE_EXHAUSTED where ``retry_after`` is given.
        retry_after: Seconds; ``None`` leaves it to the client.
        message: What the status says.
        times: How many requests.
    """

    http_status: int = HTTPStatus.SERVICE_UNAVAILABLE
    grpc_code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    retry_after: float | None = None
    message: str = "refused by order"
    times: int = 1


class Delay(Struct, frozen=True):
    """Waits, then keeps the request and answers, even where the client has given up.

    Attributes:
        seconds: How long.
        times: How many requests.
    """

    seconds: float
    times: int = 1


class PartialSuccess(Struct, frozen=True):
    """Answers that some of the request was rejected; the others are kept.

    Attributes:
        rejected: How many spans, data points or log records: the last ones of the
            request, or all where it has fewer. 0 makes ``message`` a warning.
        message: What the answer says.
        times: How many requests.
    """

    rejected: int
    message: str = "rejected by order"
    times: int = 1


class Drop(Struct, frozen=True):
    """Gives no answer: closes the HTTP connection, resets the gRPC call's stream.

    A gRPC client sees CANCELLED. :meth:`Receiver.stop` cuts whole gRPC connections.

    Attributes:
        kept: Whether what was sent is kept, as when only the answer gets lost. A
            client that does its duty then sends it again.
        times: How many requests.
    """

    kept: bool = False
    times: int = 1


Fault: TypeAlias = Refuse | Delay | PartialSuccess | Drop


class Receiver:
    """An OTLP endpoint that keeps what it gets.

    A context manager; both ports accept connections when ``with`` or :meth:`start`
    returns, and no thread or socket is left when it ends or :meth:`stop` returns.
    Safe to use from several threads.

    Args:
        host: The address to listen on.
        grpc_port: 0 takes a free one, which is then kept for as long as the receiver lives.
        http_port: Likewise.
        max_kept: How many spans, data points, log records and requests are kept, of
            each; the oldest go first and are counted in :attr:`dropped`.
        max_request_bytes: The largest request, packed or not. A larger one is refused
            with 413; over gRPC with RESOURCE_EXHAUSTED by gRPC itself, so that it is not
            among the :attr:`requests`.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        grpc_port: int = 0,
        http_port: int = 0,
        *,
        max_kept: int = 100_000,
        max_request_bytes: int = 20 * 1024 * 1024,
    ) -> None:
        self._host = host
        self._grpc_port = grpc_port
        self._http_port = http_port
        self._max_request_bytes = max_request_bytes
        self._condition = threading.Condition()
        self._happened = 0  # arrivals and faults
        self._spans: _Kept[Received] = _Kept(max_kept)
        self._metrics: _Kept[MetricPoint] = _Kept(max_kept)
        self._logs: _Kept[LogRecord] = _Kept(max_kept)
        self._requests: _Kept[Request] = _Kept(max_kept)
        self._faults: list[tuple[Signal | None, Fault]] = []
        self._life = threading.Lock()
        self._servers: _Servers | None = None
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listens; on the same ports as before where it was stopped. A running receiver stays as it is.

        Raises:
            ReceiverError: It cannot listen there.
        """
        with self._life:
            if self._servers is not None:
                return
            self._stopping.clear()
            self._servers = _Servers(self, self._host, self._grpc_port, self._http_port, self._max_request_bytes)
            self._grpc_port, self._http_port = self._servers.grpc_port, self._servers.http_port

    def stop(self) -> None:
        """Cuts every connection and frees both ports; what has arrived stays. A stopped receiver stays as it is."""
        with self._life:
            if self._servers is None:
                return
            self._stopping.set()
            self._servers.stop()
            self._servers = None

    @property
    def grpc_endpoint(self) -> str:
        """What ``OTEL_EXPORTER_OTLP_ENDPOINT`` is for gRPC; raises ReceiverError where it was never started."""
        return self._endpoint(self._grpc_port)

    @property
    def http_endpoint(self) -> str:
        """What ``OTEL_EXPORTER_OTLP_ENDPOINT`` is for HTTP; raises ReceiverError where it was never started."""
        return self._endpoint(self._http_port)

    @property
    def spans(self) -> list[Span]:
        """The spans in order of arrival."""
        return [received.span for received in self.received]

    @property
    def received(self) -> list[Received]:
        """The spans in order of arrival, with where they came from."""
        with self._condition:
            return list(self._spans.items)

    @property
    def metrics(self) -> list[MetricPoint]:
        """The metrics' data points in order of arrival."""
        with self._condition:
            return list(self._metrics.items)

    @property
    def logs(self) -> list[LogRecord]:
        """The log records in order of arrival."""
        with self._condition:
            return list(self._logs.items)

    @property
    def requests(self) -> list[Request]:
        """The requests in order of arrival, also those that were refused."""
        with self._condition:
            return list(self._requests.items)

    @property
    def faults(self) -> list[Fault]:
        """What was ordered and has not happened yet, each with the ``times`` that are left."""
        with self._condition:
            return [fault for _, fault in self._faults]

    @property
    def dropped(self) -> dict[str, int]:
        """How many were let go to keep to ``max_kept``: of ``spans``, ``metrics``, ``logs`` and ``requests``."""
        with self._condition:
            return {
                "spans": self._spans.dropped,
                "metrics": self._metrics.dropped,
                "logs": self._logs.dropped,
                "requests": self._requests.dropped,
            }

    def order(self, fault: Fault, *, signal: Signal | None = None) -> None:
        """Lets requests fail, after those that were ordered before.

        A request takes the first fault in order that is for its signal. One that breaks
        the protocol in its path, type, encoding or size takes none.

        Args:
            fault: What happens, and to how many requests.
            signal: Whose requests; ``None`` for any.

        Raises:
            ValueError: ``times`` is not positive.
        """
        if fault.times < 1:
            message = f"{fault!r} would happen {fault.times} times; order at least one"
            raise ValueError(message)
        with self._condition:
            self._faults.append((signal, fault))

    def clear(self) -> None:
        """Forgets what has arrived, what was counted and what was ordered."""
        with self._condition:
            for kept in (self._spans, self._metrics, self._logs, self._requests):
                kept.clear()
            self._faults.clear()

    def wait_for(self, predicate: Callable[[Receiver], bool], timeout: float, what: str) -> None:
        """Waits until something has arrived.

        Args:
            predicate: Asked at once, and whenever something has arrived or a fault begins.
            timeout: Seconds.
            what: What is awaited, for the message.

        Raises:
            ReceiverError: It was not there in time; the message says what was.
        """
        deadline = deadline_of(timeout)
        while True:
            with self._condition:
                seen = self._happened
            if predicate(self):
                return
            with self._condition:
                if not self._condition.wait_for(partial(self._has_more_happened, seen), seconds_left(deadline)):
                    message = f"waited {timeout:g} s for {what}; there were {self._inventory()}"
                    raise ReceiverError(message)

    def _has_more_happened(self, seen: int) -> bool:
        return self._happened != seen

    def wait_for_spans(self, count: int, timeout: float = 10.0) -> list[Span]:
        """Waits for at least so many spans.

        Args:
            count: How many.
            timeout: Seconds.

        Returns:
            All that are there then, in order of arrival.

        Raises:
            ReceiverError: They were not there in time; the message says what was.
        """
        self.wait_for(lambda receiver: len(receiver.spans) >= count, timeout, f"{count} spans")
        return self.spans

    def _endpoint(self, port: int) -> str:
        if not port:
            message = "the receiver has no port yet; use it in a with statement or call start()"
            raise ReceiverError(message)
        return f"http://{_address(self._host, port)}"

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
        with self._condition:
            for position, (only, fault) in enumerate(self._faults):
                if only in {None, signal}:
                    if fault.times == 1:
                        del self._faults[position]
                    else:
                        self._faults[position] = only, replace(fault, times=fault.times - 1)
                    # for who waits until it happens
                    self._happened += 1
                    self._condition.notify_all()
                    return fault
        return None

    def _take(self, arrival: _Arrival, signal: Signal, body: bytes) -> _Answer:
        """Decides what becomes of a request whose envelope is in order."""
        fault = self._next_fault(signal)
        if isinstance(fault, Refuse):
            refusal = _Answer("refused", fault.http_status, fault.grpc_code, fault.message, fault.retry_after)
            return self._settle(arrival, refusal)
        lost = isinstance(fault, Drop) and not fault.kept
        if lost or (isinstance(fault, Delay) and self._stopping.wait(fault.seconds)):
            return self._settle(arrival, _NO_ANSWER)
        answer = _NO_ANSWER if isinstance(fault, Drop) else _ACCEPTED
        rejected = 0
        if isinstance(fault, PartialSuccess):
            answer = _Answer("partial", HTTPStatus.OK, grpc.StatusCode.OK, fault.message)
            rejected = fault.rejected
        json = arrival.protocol == "http/json"
        try:
            if signal == "traces":
                return self._keep(arrival, answer, self._spans, decode_traces(body, json=json), rejected)
            if signal == "metrics":
                return self._keep(arrival, answer, self._metrics, decode_metrics(body, json=json), rejected)
            return self._keep(arrival, answer, self._logs, decode_logs(body, json=json), rejected)
        except DecodeError as error:
            invalid = _invalid(HTTPStatus.BAD_REQUEST, str(error))
            return self._settle(arrival, _NO_ANSWER if answer is _NO_ANSWER else invalid)

    def _keep(self, arrival: _Arrival, answer: _Answer, kept: _Kept[T], items: list[T], rejected: int) -> _Answer:
        rejected = min(rejected, len(items))
        with self._condition:
            kept.extend(items[: len(items) - rejected])
            return self._settle(arrival, replace(answer, rejected=rejected))

    def _settle(self, arrival: _Arrival, answer: _Answer) -> _Answer:
        """Records a request with its answer, and tells those who wait."""
        if answer.outcome == "dropped":
            status = ""
        elif arrival.protocol == "grpc":
            status = answer.grpc_code.name
        else:
            status = str(int(answer.http_status))
        request = Request(
            signal=arrival.signal,
            protocol=arrival.protocol,
            headers=arrival.headers,
            size=arrival.size,
            received_ns=arrival.received_ns,
            outcome=answer.outcome,
            status=status,
            message=answer.message,
        )
        with self._condition:
            self._requests.extend([request])
            self._happened += 1
            self._condition.notify_all()
        return answer


class _Kept(Generic[T]):
    """The newest items, and how many older ones were let go."""

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


class _Arrival(Struct, frozen=True):
    """What is known of a request before it is decided what becomes of it."""

    signal: Signal | None
    protocol: Literal["grpc", "http/protobuf", "http/json"] | None
    headers: dict[str, str]
    size: int
    received_ns: int


class _Answer(Struct, frozen=True):
    """An answer, before it is put in a transport's words."""

    outcome: Literal["accepted", "partial", "refused", "dropped", "invalid"]
    http_status: int
    grpc_code: grpc.StatusCode
    message: str = ""
    retry_after: float | None = None
    rejected: int = 0


_ACCEPTED: Final = _Answer("accepted", HTTPStatus.OK, grpc.StatusCode.OK)
_NO_ANSWER: Final = _Answer("dropped", HTTPStatus.OK, grpc.StatusCode.CANCELLED)


def _invalid(http_status: HTTPStatus, message: str) -> _Answer:
    return _Answer("invalid", http_status, grpc.StatusCode.INVALID_ARGUMENT, message)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listed(names: Iterable[str]) -> str:
    """The last few names in brackets."""
    listed = list(names)
    more = "… " if len(listed) > _NAMED_IN_MESSAGES else ""
    return f" ({more}{', '.join(listed[-_NAMED_IN_MESSAGES:])})" if listed else ""


# The two transports


class _Servers:
    """Both listening servers; the life between one start and its stop."""

    def __init__(self, receiver: Receiver, host: str, grpc_port: int, http_port: int, max_request_bytes: int) -> None:
        try:
            self._http = _HttpServer(receiver, host, http_port, max_request_bytes)
        except (OSError, OverflowError) as error:
            message = f"cannot listen for OTLP/HTTP on {_address(host, http_port)}: {error}; port 0 takes a free one"
            raise ReceiverError(message) from error
        self.http_port: int = self._http.server_address[1]
        self._workers = ThreadPoolExecutor(_GRPC_WORKERS, thread_name_prefix="otlp-receiver-grpc")
        self._grpc = grpc.server(
            self._workers,
            options=[
                # with it, a second receiver on the same port would take half of the calls
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", max_request_bytes),
            ],
        )
        try:
            self.grpc_port = self._grpc.add_insecure_port(_address(host, grpc_port))
        except RuntimeError as error:
            self._stop_grpc()
            self._http.server_close()
            message = f"cannot listen for OTLP/gRPC on {_address(host, grpc_port)}: {error}; port 0 takes a free one"
            raise ReceiverError(message) from error
        for signal, (service, *_) in _SERVICES.items():
            handler = grpc.unary_unary_rpc_method_handler(_grpc_export(receiver, signal))
            self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        self._grpc.start()
        self._http_thread = threading.Thread(
            target=self._http.serve_forever, args=(_POLL_INTERVAL,), name="otlp-receiver-http", daemon=True
        )
        self._http_thread.start()

    def stop(self) -> None:
        self._stop_grpc()
        self._http.shutdown()
        self._http_thread.join()
        self._http.close_connections()
        self._http.server_close()

    def _stop_grpc(self) -> None:
        # without a grace, gRPC clients would print that their calls were cancelled, also where they had none
        self._grpc.stop(_GRPC_GRACE).wait()
        self._workers.shutdown()


def _grpc_export(receiver: Receiver, signal: Signal) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """The Export method of a signal's gRPC service, from bytes to bytes."""

    def export(body: bytes, context: grpc.ServicerContext) -> bytes:
        headers = {
            name: value if isinstance(value, str) else b64encode(value).decode()
            for name, value in context.invocation_metadata()
        }
        answer = receiver._take(_Arrival(signal, "grpc", headers, len(body), time.monotonic_ns()), signal, body)  # noqa: SLF001 - one machine in two parts
        if answer.outcome == "dropped":
            context.cancel()  # type: ignore[no-untyped-call] # so the stubs have it
            return b""
        if answer.grpc_code is not grpc.StatusCode.OK:
            if answer.retry_after is not None:
                retry_info = RetryInfo()
                retry_info.retry_delay.FromNanoseconds(round(answer.retry_after * 1_000_000_000))
                status = _status(answer)
                status.details.add().Pack(retry_info)
                context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(answer.grpc_code, answer.message)
        return _response(signal, answer).SerializeToString()

    return export


class _HttpServer(ThreadingHTTPServer):
    """Accepts connections, each with a thread that is gone after :meth:`close_connections`."""

    request_queue_size = 128

    def __init__(self, receiver: Receiver, host: str, port: int, max_request_bytes: int) -> None:
        self.receiver = receiver
        self.max_request_bytes = max_request_bytes
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        super().__init__((host, port), _HttpHandler)

    def server_bind(self) -> None:
        # HTTPServer's would ask DNS for the name of the address
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name="otlp-receiver-http-connection",
            daemon=True,
        )
        with self._lock:
            self._connections[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            del self._connections[request]
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        # stopping is what cuts them then
        level = logging.DEBUG if self.receiver._stopping.is_set() else logging.WARNING  # noqa: SLF001 - one machine in two parts
        log(_LOG, level, "the connection from %s broke", client_address, error=sys.exception())

    def close_connections(self) -> None:
        """Ends every connection's thread; to be called when no more are accepted."""
        with self._lock:
            connections = dict(self._connections)
        for connection, thread in connections.items():
            # it may have ended by itself
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()


class _HttpHandler(BaseHTTPRequestHandler):
    """One HTTP connection."""

    protocol_version = "HTTP/1.1"
    server_version = "constellation-otel"
    sys_version = ""
    # an answer's body would wait for the client to acknowledge its head
    disable_nagle_algorithm = True
    server: _HttpServer

    def do_POST(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        signal = _PATHS.get(self.path.partition("?")[0])
        content_type = self.headers.get_content_type() if "content-type" in headers else None
        protocol = _PROTOCOLS.get(content_type or "")
        try:
            body, size = self._read_body()
        except _UnreadableError as error:
            arrival = _Arrival(signal, protocol, headers, 0, time.monotonic_ns())
            self.close_connection = True
            self._answer(arrival, self._settle(arrival, _invalid(HTTPStatus.BAD_REQUEST, str(error))))
            return
        arrival = _Arrival(signal, protocol, headers, size, time.monotonic_ns())
        answer = self._refusal_of_envelope(arrival, content_type)
        if answer is None:
            try:
                body = self._unpacked(body, headers.get("content-encoding", "identity").strip().lower())
            except _UnreadableError as error:
                answer = _invalid(error.http_status, str(error))
        if answer is None:
            answer = self.server.receiver._take(arrival, cast("Signal", signal), body)  # noqa: SLF001 - one machine in two parts
        else:
            self._settle(arrival, answer)
        self._answer(arrival, answer)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the overridden method's name for it
        """Writes nothing: the receiver's ``requests`` are the log."""

    def _settle(self, arrival: _Arrival, answer: _Answer) -> _Answer:
        return self.server.receiver._settle(arrival, answer)  # noqa: SLF001 - one machine in two parts

    def _refusal_of_envelope(self, arrival: _Arrival, content_type: str | None) -> _Answer | None:
        """What is wrong with a request before its body is looked at."""
        if arrival.signal is None:
            message = f"{self.path} is not here; there are {', '.join(_PATHS)}"
            return _invalid(HTTPStatus.NOT_FOUND, message)
        if self.command != "POST":
            return _invalid(HTTPStatus.METHOD_NOT_ALLOWED, f"{self.command} is not allowed here; OTLP is sent by POST")
        if arrival.protocol is None:
            message = f"the content type {content_type} is unknown here; there are {', '.join(_PROTOCOLS)}"
            return _invalid(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
        if arrival.size > self.server.max_request_bytes:
            return _too_large(f"{arrival.size} bytes are", self.server.max_request_bytes)
        return None

    def _read_body(self) -> tuple[bytes, int]:
        """The request's body and its size; of one that is too large, only the beginning.

        The body is always read to its end: a connection that is closed with unread data is
        reset, and the client may not see the answer.
        """
        if self.headers.get("transfer-encoding", "").strip().lower() == "chunked":
            chunks = self._chunks()
        else:
            chunks = self._pieces(_length(self.headers.get("content-length", "0"), 10))
        kept = bytearray()
        size = 0
        for chunk in chunks:
            kept += chunk[: max(0, self.server.max_request_bytes - size)]
            size += len(chunk)
        return bytes(kept), size

    def _chunks(self) -> Iterator[bytes]:
        while length := _length(self.rfile.readline(_CHUNK).decode("latin-1").partition(";")[0], 16):
            yield from self._pieces(length)
            self.rfile.readline(_CHUNK)
        while self.rfile.readline(_CHUNK).strip():
            pass

    def _pieces(self, length: int) -> Iterator[bytes]:
        left = length
        while left:
            piece = self.rfile.read(min(left, _CHUNK))
            if not piece:
                message = f"the body ended {left} bytes before its end"
                raise _UnreadableError(message)
            left -= len(piece)
            yield piece

    def _unpacked(self, body: bytes, encoding: str) -> bytes:
        if encoding == "identity":
            return body
        if encoding != "gzip":
            message = f"the content encoding {encoding} is unknown here; there are gzip and identity"
            raise _UnreadableError(message, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        limit = self.server.max_request_bytes
        try:
            with gzip.GzipFile(fileobj=BytesIO(body)) as file:
                unpacked = file.read(limit + 1)
        except (OSError, EOFError, zlib.error) as error:
            message = f"the body is no gzip: {error}"
            raise _UnreadableError(message) from error
        if len(unpacked) > limit:
            raise _UnreadableError(
                _too_large("the unpacked body is", limit).message, HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            )
        return unpacked

    def _answer(self, arrival: _Arrival, answer: _Answer) -> None:
        if answer.outcome == "dropped":
            self.close_connection = True
            return
        ok = answer.http_status == HTTPStatus.OK and arrival.signal is not None
        message = _response(cast("Signal", arrival.signal), answer) if ok else _status(answer)
        if arrival.protocol == "http/json":
            content_type, body = "application/json", dumps(json_format.MessageToDict(message)).encode()
        elif arrival.protocol == "http/protobuf":
            content_type, body = "application/x-protobuf", message.SerializeToString()
        else:
            content_type, body = "text/plain; charset=utf-8", answer.message.encode(errors="backslashreplace")
        self.send_response(answer.http_status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if answer.retry_after is not None:
            self.send_header("Retry-After", str(ceil(answer.retry_after)))
        if answer.http_status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "POST")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _UnreadableError(Exception):
    """A request's body cannot be had."""

    def __init__(self, message: str, http_status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.http_status = http_status


def _length(text: str, base: int) -> int:
    # int() alone would take signs, spaces and underscores
    digits = text.strip()
    if not digits.isalnum() or not digits.isascii():
        message = f"{text!r} is no length of a body"
        raise _UnreadableError(message)
    try:
        return int(digits, base)
    except ValueError as error:
        message = f"{text!r} is no length of a body"
        raise _UnreadableError(message) from error


def _too_large(what: str, limit: int) -> _Answer:
    return _invalid(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{what} too much; the limit is {limit} bytes")


def _response(signal: Signal, answer: _Answer) -> Message:
    """What a signal's Export answers where there is no error."""
    _, response_type, rejected_field = _SERVICES[signal]
    response: Any = response_type()
    if answer.outcome == "partial":
        # set even where nothing was rejected and nothing is said, so that a client meets that too
        response.partial_success.SetInParent()
        response.partial_success.error_message = answer.message
        setattr(response.partial_success, rejected_field, answer.rejected)
    return cast("Message", response)


def _status(answer: _Answer) -> Status:
    return Status(code=answer.grpc_code.value[0], message=answer.message)


_Response: TypeAlias = ExportTraceServiceResponse | ExportMetricsServiceResponse | ExportLogsServiceResponse

_SERVICES: Final[dict[Signal, tuple[str, type[_Response], str]]] = {
    "traces": (
        "opentelemetry.proto.collector.trace.v1.TraceService",
        ExportTraceServiceResponse,
        "rejected_spans",
    ),
    "metrics": (
        "opentelemetry.proto.collector.metrics.v1.MetricsService",
        ExportMetricsServiceResponse,
        "rejected_data_points",
    ),
    "logs": (
        "opentelemetry.proto.collector.logs.v1.LogsService",
        ExportLogsServiceResponse,
        "rejected_log_records",
    ),
}
"""The gRPC service of each signal, its response and what that calls the rejected ones."""
_PATHS: Final[dict[str, Signal]] = {"/v1/traces": "traces", "/v1/metrics": "metrics", "/v1/logs": "logs"}
_PROTOCOLS: Final[dict[str, Literal["http/protobuf", "http/json"]]] = {
    "application/x-protobuf": "http/protobuf",
    "application/json": "http/json",
}
