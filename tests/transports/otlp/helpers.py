"""Spans, sinks and servers that answer as they are told."""

from __future__ import annotations

import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import grpc
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.errors import (
    DeliveryError,
)
from constellation_otel.receiver import decoding as otlp_decoding
from constellation_otel.traces import Span, SpanEvent
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceResponse,
    )

    from constellation_otel.transports.otlp import OtlpSink


RESOURCE = Resource({"service.name": "shop"})
SPANS = [
    Span(
        trace_id=0xABC << 100,
        span_id=number,
        parent_span_id=None if number == 1 else 1,
        trace_state="a=b",
        trace_flags=3,
        name=f"span {number}",
        kind=SpanKind.SERVER,
        start_ns=1_000,
        end_ns=2_000,
        attributes={"n": number, "many": ("a", "é")},
        status=StatusCode.ERROR,
        status_description="boom",
        events=(SpanEvent("exception", 1_500, {"exception.type": "ValueError"}),),
    )
    for number in (1, 2, 3)
]
RECEIVED = [
    otlp_decoding.Received(
        span,
        otlp_decoding.Resource({"service.name": "shop"}),
        otlp_decoding.Scope(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL),
    )
    for span in SPANS
]


Wire: TypeAlias = Literal["grpc", "http/protobuf"]


BOTH = pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
SECRET = "s3cr3t"


def raised_by(sink: OtlpSink, timeout: float = DEADLINE) -> DeliveryError:
    """The error of sending all spans; its class, message and more are what a lane goes by."""
    with pytest.raises(DeliveryError) as raised:
        sink.send(SPANS, timeout)
    return raised.value


class Certificates(NamedTuple):
    """PEM files: of a server that is 127.0.0.1, of one that is not, and of a client."""

    server: str
    server_key: str
    other: str
    other_key: str
    client: str
    client_key: str
    client_with_key: str
    nonsense: str


@contextmanager
def tls_server(protocol: Wire, certificate: str, key: str, client: str | None = None) -> Iterator[str]:
    """An endpoint with TLS that takes everything, of clients that have the certificate ``client``."""
    if protocol == "grpc":
        credentials = grpc.ssl_server_credentials(
            [(read(key), read(certificate))], None if client is None else read(client), client is not None
        )
        with grpc_server(lambda _, __: b"", credentials) as endpoint:
            yield endpoint
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if client is not None:
        context.load_verify_locations(client)
        context.verify_mode = ssl.CERT_REQUIRED
    with web_server(200, {}, b"", context) as endpoint:
        yield endpoint


def read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - a name is what there is
        return file.read()


@contextmanager
def grpc_server(
    export: Callable[[bytes, grpc.ServicerContext], bytes], credentials: grpc.ServerCredentials | None = None
) -> Iterator[str]:
    """A gRPC server whose traces service answers as ``export`` says."""
    with ThreadPoolExecutor(2) as workers:
        server = grpc.server(workers)
        handler = grpc.unary_unary_rpc_method_handler(export)
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        if credentials is None:
            endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        else:
            endpoint = f"https://127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
        server.start()
        try:
            yield endpoint
        finally:
            server.stop(0.5).wait(DEADLINE)


@contextmanager
def web_server(
    status: int,
    headers: dict[str, str],
    body: bytes,
    context: ssl.SSLContext | None = None,
    took: Callable[[bytes, Any], object] | None = None,
) -> Iterator[str]:
    """An HTTP server that answers every POST with the same."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = self.rfile.read(int(self.headers["content-length"]))
            if took is not None:
                took(request, self.client_address)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keeps quiet."""

    class Server(ThreadingHTTPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            if context is None:
                super().finish_request(request, client_address)
                return
            with context.wrap_socket(request, server_side=True) as wrapped:
                super().finish_request(wrapped, client_address)

        def handle_error(self, *_: object) -> None:
            """A client that does not trust us goes away."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def answering_server(
    protocol: Wire,
    took: Callable[[bytes], object],
    peer: Callable[[Any], object] = lambda _: None,
    response: ExportTraceServiceResponse | None = None,
) -> Iterator[str]:
    """A server of either protocol that tells what it took, and from whom."""
    answer = b"" if response is None else response.SerializeToString()
    if protocol == "grpc":

        def export(body: bytes, context: grpc.ServicerContext) -> bytes:
            took(body)
            peer(context.peer())
            return answer

        with grpc_server(export) as endpoint:
            yield endpoint
    else:
        with web_server(200, {}, answer, took=lambda body, address: (took(body), peer(address))) as endpoint:
            yield endpoint


@contextmanager
def raw_server(serve: Callable[[socket.socket], object]) -> Iterator[str]:
    """A TCP server for one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        listener.settimeout(DEADLINE)

        def accept() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(DEADLINE)
                serve(connection)

        serving = thread.submit(accept)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving.result(DEADLINE)
