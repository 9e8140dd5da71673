"""The receiver's two transports, OTLP/gRPC and OTLP/HTTP with protobuf: from bytes to records, and back with answers.

They refuse requests that break the protocol; the receiver decides on the others.
https://opentelemetry.io/docs/specs/otlp has the rules.
"""

from __future__ import annotations

import gzip
import logging
import time
import zlib
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from io import BytesIO
from math import ceil
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, cast

import grpc
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # stubs without py.typed
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # stubs without py.typed
from msgspec import Struct
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from constellation_otel._support.http_server import HttpHandler, HttpServer
from constellation_otel.errors import DecodeError, ReceiverError
from constellation_otel.receiver.decoding import decode_logs, decode_metrics, decode_traces

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message

__all__ = ["HOST", "Answer", "Arrival", "Handle", "Protocol", "Servers", "Signal", "UnreadableError"]

Signal: TypeAlias = Literal["traces", "metrics", "logs"]
Protocol: TypeAlias = Literal["grpc", "http/protobuf"]

HOST: Final = "127.0.0.1"
_LOG: Final = logging.getLogger(__name__)
_GRPC_WORKERS: Final = 16
_GRPC_GRACE_S: Final = 1.0
"""How long a gRPC client may take to give up its connection before it is cut."""
_HTTP_TIMEOUT_S: Final = 300.0
"""More than an exporter's interval: its next export would meet a connection that is just being closed."""
_CHUNK_BYTES: Final = 65_536
_PROTOBUF: Final = "application/x-protobuf"


class Arrival(Struct, frozen=True):
    """What is known of a request before anything is decided; its fields are :class:`Request`'s."""

    signal: Signal | None
    protocol: Protocol | None
    headers: dict[str, str]
    size: int
    received_ns: int


class Answer(Struct, frozen=True):
    """An answer in terms of both transports."""

    outcome: Literal["accepted", "partial", "refused", "dropped", "invalid"]
    http_status: int = HTTPStatus.OK
    grpc_code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    retry_after: float | None = None
    rejected: int = 0


class UnreadableError(Exception):
    """A request breaks the protocol."""

    def __init__(self, http_status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.http_status = http_status


Handle: TypeAlias = "Callable[[Arrival, Sequence[Any] | UnreadableError], Answer]"
"""Keeps what a request has, or notes that it is unreadable; says what to answer."""


class Servers:
    """Both servers, listening from the start.

    Args:
        handle: Called in a thread of each request.
        grpc_port: 0 takes a free port.
        http_port: 0 takes a free port.
        max_request_bytes: The largest body, compressed or not.

    Attributes:
        grpc_port: The port of OTLP/gRPC.
        http_port: The port of OTLP/HTTP.

    Raises:
        ReceiverError: A port cannot be listened on.
    """

    def __init__(self, handle: Handle, grpc_port: int, http_port: int, max_request_bytes: int) -> None:
        try:
            self._http = _HttpServer(handle, http_port, max_request_bytes)
        except OSError as error:
            raise _cannot_listen("OTLP/HTTP", http_port, error) from error
        self.http_port: int = self._http.server_address[1]
        self._workers = ThreadPoolExecutor(_GRPC_WORKERS, thread_name_prefix="otlp-receiver-grpc")
        self._grpc = grpc.server(
            self._workers,
            options=[
                # otherwise a second receiver on the same port would take half of the calls
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", max_request_bytes),
            ],
        )
        try:
            self.grpc_port = self._grpc.add_insecure_port(f"{HOST}:{grpc_port}")
        except RuntimeError as error:
            self._stop_grpc()
            self._http.server_close()
            raise _cannot_listen("OTLP/gRPC", grpc_port, error) from error
        for signal, service in _SERVICES.items():
            handler = grpc.unary_unary_rpc_method_handler(_grpc_export(handle, signal))
            methods = grpc.method_handlers_generic_handler(service.name, {"Export": handler})
            self._grpc.add_generic_rpc_handlers((methods,))
        self._grpc.start()
        self._http.start()

    def stop(self) -> None:
        """Cuts every connection; no thread or socket is left."""
        self._stop_grpc()
        self._http.close()

    def _stop_grpc(self) -> None:
        # without a grace period, gRPC clients print that their calls were cancelled, even if they had none
        self._grpc.stop(_GRPC_GRACE_S).wait()
        self._workers.shutdown()


def _cannot_listen(what: str, port: int, error: Exception) -> ReceiverError:
    return ReceiverError(f"cannot listen for {what} on {HOST}:{port}: {error}; is another process using the port?")


def _grpc_export(handle: Handle, signal: Signal) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """The Export method of a signal's gRPC service, from bytes to bytes."""

    def export(body: bytes, context: grpc.ServicerContext) -> bytes:
        headers = {
            name: value if isinstance(value, str) else b64encode(value).decode()
            for name, value in context.invocation_metadata()
        }
        answer = handle(Arrival(signal, "grpc", headers, len(body), time.monotonic_ns()), _decoded(signal, body))
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


class _HttpServer(HttpServer):
    def __init__(self, handle: Handle, port: int, max_request_bytes: int) -> None:
        self.handle = handle
        self.max_request_bytes = max_request_bytes
        super().__init__(HOST, port, _HttpHandler, logger=_LOG, name="otlp-receiver-http")


class _HttpHandler(HttpHandler):
    protocol_version = "HTTP/1.1"
    timeout = _HTTP_TIMEOUT_S
    server: _HttpServer

    def do_POST(self) -> None:  # noqa: N802 - http.server's name
        headers = {name.lower(): value for name, value in self.headers.items()}
        signal = _PATHS.get(self.path.partition("?")[0])
        protocol: Protocol | None = "http/protobuf" if self.headers.get_content_type() == _PROTOBUF else None
        size = 0
        received: Sequence[Any] | UnreadableError
        try:
            size, body = self._read()
            self._check_head(signal, protocol, size)
            received = _decoded(cast("Signal", signal), self._uncompressed(body))
        except UnreadableError as error:
            received = error
        arrival = Arrival(signal, protocol, headers, size, time.monotonic_ns())
        self._send(arrival, self.server.handle(arrival, received))

    def _read(self) -> tuple[int, bytes]:
        """The size of the body and the body; of one that is too large, nothing.

        It is always read to its end: closing a connection with unread data resets it, and
        the client may not see the answer.
        """
        length = self.headers.get("content-length", "")
        # int() alone takes signs, spaces and underscores
        if not (length.isascii() and length.isdigit()):
            self.close_connection = True
            message = f"the Content-Length is {length!r}, not a number; chunked bodies are not read"
            raise UnreadableError(HTTPStatus.LENGTH_REQUIRED, message)
        size = left = int(length)
        body = bytearray()
        while left:
            chunk = self.rfile.read(min(left, _CHUNK_BYTES))
            if not chunk:
                self.close_connection = True
                raise UnreadableError(HTTPStatus.BAD_REQUEST, f"the body ended {left} bytes early")
            left -= len(chunk)
            if size <= self.server.max_request_bytes:
                body += chunk
        return size, bytes(body)

    def _check_head(self, signal: Signal | None, protocol: Protocol | None, size: int) -> None:
        limit = self.server.max_request_bytes
        if signal is None:
            message = f"there is no {self.path}; the paths are {', '.join(_PATHS)}"
            raise UnreadableError(HTTPStatus.NOT_FOUND, message)
        if protocol is None:
            message = f"the content type is {self.headers.get('content-type')}; only {_PROTOBUF} is read"
            raise UnreadableError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
        if size > limit:
            message = f"the body has {size} bytes; the limit is {limit}"
            raise UnreadableError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)

    def _uncompressed(self, body: bytes) -> bytes:
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            return body
        if encoding != "gzip":
            message = f"the content encoding is {encoding}; only gzip and identity are read"
            raise UnreadableError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
        limit = self.server.max_request_bytes
        try:
            with gzip.GzipFile(fileobj=BytesIO(body)) as file:
                uncompressed = file.read(limit + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UnreadableError(HTTPStatus.BAD_REQUEST, f"the body is not valid gzip: {error}") from error
        if len(uncompressed) > limit:
            message = f"the uncompressed body has more than {limit} bytes, the limit"
            raise UnreadableError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        return uncompressed

    def _send(self, arrival: Arrival, answer: Answer) -> None:
        if answer.outcome == "dropped":
            self.close_connection = True
            return
        if arrival.protocol is None or arrival.signal is None:
            content_type, body = "text/plain; charset=utf-8", answer.message.encode(errors="backslashreplace")
        else:
            is_ok = answer.http_status == HTTPStatus.OK
            message = _response(arrival.signal, answer) if is_ok else _status(answer)
            content_type, body = _PROTOBUF, message.SerializeToString()
        headers = {"Connection": "close"} if self.close_connection else {}
        if answer.retry_after is not None:
            headers["Retry-After"] = str(ceil(answer.retry_after))
        self.answer(answer.http_status, content_type, body, headers)


def _decoded(signal: Signal, body: bytes) -> Sequence[Any] | UnreadableError:
    try:
        return _SERVICES[signal].decode(body)
    except DecodeError as error:
        return UnreadableError(HTTPStatus.BAD_REQUEST, str(error))


def _response(signal: Signal, answer: Answer) -> Message:
    """The response of a signal's Export to a request that was taken, at least in part."""
    service = _SERVICES[signal]
    response: Any = service.response()
    if answer.outcome == "partial":
        # set even if nothing was rejected and there is no message: a client has to understand that too
        response.partial_success.SetInParent()
        response.partial_success.error_message = answer.message
        setattr(response.partial_success, service.rejected, answer.rejected)
    return cast("Message", response)


def _status(answer: Answer) -> Status:
    return Status(code=answer.grpc_code.value[0], message=answer.message)


class _Service(NamedTuple):
    """A signal's service.

    Attributes:
        name: The gRPC service.
        decode: Decodes its requests.
        response: The type of its responses.
        rejected: The response's field for the number of rejected items.
    """

    name: str
    decode: Callable[[bytes], Sequence[Any]]
    response: type[ExportTraceServiceResponse | ExportMetricsServiceResponse | ExportLogsServiceResponse]
    rejected: str


_SERVICES: Final[dict[Signal, _Service]] = {
    "traces": _Service(
        "opentelemetry.proto.collector.trace.v1.TraceService",
        decode_traces,
        ExportTraceServiceResponse,
        "rejected_spans",
    ),
    "metrics": _Service(
        "opentelemetry.proto.collector.metrics.v1.MetricsService",
        decode_metrics,
        ExportMetricsServiceResponse,
        "rejected_data_points",
    ),
    "logs": _Service(
        "opentelemetry.proto.collector.logs.v1.LogsService",
        decode_logs,
        ExportLogsServiceResponse,
        "rejected_log_records",
    ),
}
_PATHS: Final[dict[str, Signal]] = {"/v1/traces": "traces", "/v1/metrics": "metrics", "/v1/logs": "logs"}
