"""An OTLP endpoint in a process of its own, over gRPC and HTTP: it takes requests and acknowledges them.

It reads a request, keeps its bytes and answers with an empty response. What is in
the requests is only looked at when somebody asks what was taken, so that counting
happens outside of what is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from select import select
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.request import urlopen

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Endpoint", "Taken", "started_endpoint"]

_HOST: Final = "127.0.0.1"
_START_TIMEOUT: Final = 30.0
_SIGNALS: Final = ("trace", "metrics", "logs")


class Taken(NamedTuple):
    """What was acknowledged since it was last asked.

    Attributes:
        spans: How many spans.
        recorded: How many values the last request with metrics has in all of its histograms.
    """

    spans: int
    recorded: int


class Endpoint(NamedTuple):
    """Where it is.

    Attributes:
        grpc_url: For OTLP over gRPC.
        http_url: For OTLP over HTTP, without a path.
    """

    grpc_url: str
    http_url: str

    def taken(self) -> Taken:
        """What was acknowledged since the last call."""
        with urlopen(f"{self.http_url}/taken", timeout=60) as answer:  # noqa: S310 - our own endpoint
            return Taken(*json.load(answer))

    def check(self, *, spans: int, recorded: int = 0) -> None:
        """Checks what was acknowledged since the last call: a cost is no cost where data was lost.

        Args:
            spans: How many spans it must be.
            recorded: How many values of histograms.

        Raises:
            RuntimeError: It is something else.
        """
        taken = self.taken()
        if taken != Taken(spans, recorded):
            message = f"the endpoint has {taken}, not {Taken(spans, recorded)}: nothing is measured by that"
            raise RuntimeError(message)


@contextmanager
def started_endpoint() -> Iterator[Endpoint]:
    """Starts an endpoint in another process, on free ports, and ends it.

    Raises:
        RuntimeError: It did not start in time.
    """
    command = [sys.executable, "-m", "bench.endpoint"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own words
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            is_ready, _, _ = select([process.stdout], [], [], _START_TIMEOUT)
            line = process.stdout.readline() if is_ready else ""
            if not line:
                message = f"the endpoint did not start within {_START_TIMEOUT:.0f} s"
                raise RuntimeError(message)
            yield Endpoint(*json.loads(line))
        finally:
            process.kill()


class _Requests:
    """The bytes of the requests that nobody has asked for yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bodies: dict[str, list[bytes]] = {signal: [] for signal in _SIGNALS}

    def add(self, signal: str, body: bytes) -> None:
        with self._lock:
            self._bodies[signal].append(body)

    def take(self) -> Taken:
        with self._lock:
            bodies, self._bodies = self._bodies, {signal: [] for signal in _SIGNALS}
        spans = recorded = 0
        for body in bodies["trace"]:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans += sum(len(scope.spans) for scope in resource.scope_spans)
        # what the SDK reports is cumulative
        for body in bodies["metrics"][-1:]:
            for metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                recorded += sum(
                    point.count
                    for scope in metrics.scope_metrics
                    for metric in scope.metrics
                    for point in metric.histogram.data_points
                )
        return Taken(spans, recorded)


def _grpc_server(requests: _Requests) -> tuple[grpc.Server, int]:
    """A server that ends when nobody refers to it, and its port."""

    def handler(signal: str) -> grpc.GenericRpcHandler[Any, Any]:
        def export(body: bytes, _: grpc.ServicerContext) -> bytes:
            requests.add(signal, body)
            return b""

        service = f"opentelemetry.proto.collector.{signal}.v1.{signal.capitalize()}Service"
        return grpc.method_handlers_generic_handler(service, {"Export": grpc.unary_unary_rpc_method_handler(export)})

    server = grpc.server(ThreadPoolExecutor(4), [handler(signal) for signal in _SIGNALS])
    port = server.add_insecure_port(f"{_HOST}:0")
    server.start()
    return server, port


def _http_server(requests: _Requests) -> ThreadingHTTPServer:
    signals = {"/v1/traces": "trace", "/v1/metrics": "metrics", "/v1/logs": "logs"}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            requests.add(signals[self.path], self.rfile.read(int(self.headers["Content-Length"])))
            self._answer("application/x-protobuf", b"")

        def do_GET(self) -> None:
            self._answer("application/json", json.dumps(requests.take()).encode())

        def _answer(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Logs nothing."""

    server = ThreadingHTTPServer((_HOST, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _serve() -> None:
    """Says where it is, and serves until whoever started it has ended."""
    requests = _Requests()
    http = _http_server(requests)
    server, grpc_port = _grpc_server(requests)
    print(json.dumps([f"http://{_HOST}:{port}" for port in (grpc_port, http.server_port)]), flush=True)
    sys.stdin.read()
    server.stop(None)


if __name__ == "__main__":
    _serve()
