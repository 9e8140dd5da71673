"""Spans arrive, once, whatever the process does."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import pytest
from opentelemetry import context as otel_context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from constellation_otel._support.scope import SCOPE_VERSION
from constellation_otel.traces import Span
from constellation_otel.transports.otlp import OtlpSink, make_resource
from support import DEADLINE
from transports.otlp.helpers import BOTH, RECEIVED, RESOURCE, SPANS, Wire, answering_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from constellation_otel.delivery import Sink
    from constellation_otel.receiver import Receiver


@BOTH
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_spans_arrive_whole_and_nothing_is_rejected(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], protocol: Wire, compression: str
) -> None:
    sink: Sink[Span] = sink_of(protocol, compression=compression, headers={"Authorization": "Bearer x"})
    assert (sink.name, sink.takes, sink.max_batch) == ("otlp", "spans", 2048)
    assert sink.send(SPANS, DEADLINE) == []
    assert receiver.received == RECEIVED
    (request,) = receiver.requests
    assert (request.protocol, request.outcome, request.headers["authorization"]) == (protocol, "accepted", "Bearer x")
    assert request.headers["user-agent"].startswith(f"constellation-otel/{SCOPE_VERSION}")
    if protocol == "http/protobuf":
        assert request.headers.get("content-encoding", "none") == compression


@BOTH
def test_a_batch_that_is_sent_again_is_the_same_bytes(protocol: Wire) -> None:
    bodies: list[bytes] = []
    with answering_server(protocol, bodies.append) as endpoint:
        sinks = [OtlpSink(endpoint, protocol=protocol, resource=make_resource(), compression="gzip") for _ in range(2)]
        for sink in sinks:
            sink.send(SPANS, DEADLINE)
            sink.close()
    first, second = bodies
    assert first == second


def test_what_is_compressed_over_grpc_is_small_on_the_wire(receiver: Receiver) -> None:
    target = receiver.grpc_endpoint.rpartition(":")[2]
    spans = [Span(1, 2, None, "", 1, "long", SpanKind.INTERNAL, 1, 2, {"text": "x" * 500_000})]
    sent = {}
    choices: tuple[Literal["none", "gzip"], ...] = ("none", "gzip")
    for compression in choices:
        with counting_relay(int(target)) as (port, count):
            sink = OtlpSink(f"http://127.0.0.1:{port}", resource=RESOURCE, compression=compression)
            sink.send(spans, DEADLINE)
            sink.close()
            sent[compression] = count()
    assert receiver.spans == spans * 2
    assert sent["none"] > 500_000
    assert sent["gzip"] < 50_000


@BOTH
def test_all_requests_of_a_sink_use_one_connection(protocol: Wire) -> None:
    """Closing ends it."""
    peers: set[Any] = set()
    with answering_server(protocol, lambda _: None, peers.add) as endpoint:
        sink = OtlpSink(endpoint, protocol=protocol, resource=RESOURCE)
        for _ in range(3):
            sink.send(SPANS, DEADLINE)
        assert len(peers) == 1
        sink.close()
        sink.close()
        sink.send(SPANS, DEADLINE)
        sink.close()
    assert len(peers) == 2


def test_sending_is_not_traced_where_the_caller_says_so(receiver: Receiver, sink_of: Callable[..., OtlpSink]) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = URLLib3Instrumentor()
    instrumentor.instrument(tracer_provider=provider)
    sink = sink_of("http/protobuf")
    try:
        sink.send(SPANS, DEADLINE)
        assert [span.name for span in exporter.get_finished_spans()] == ["POST"]
        token = otel_context.attach(otel_context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        try:
            sink.send(SPANS, DEADLINE)
        finally:
            otel_context.detach(token)
    finally:
        instrumentor.uninstrument()
        provider.shutdown()
    assert [span.name for span in exporter.get_finished_spans()] == ["POST"]
    assert ["traceparent" in request.headers for request in receiver.requests] == [True, False]


FORKING = """
import os, sys
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanKind
from constellation_otel.traces import Span
from constellation_otel.transports.otlp.connection import Clock
from constellation_otel.transports.otlp import OtlpSink

def send(name):
    span = Span(1, 2, None, "", 1, name, SpanKind.INTERNAL, 1, 2, {})
    return sink.send([span], 10)

sink = OtlpSink(sys.argv[1], protocol=sys.argv[2], resource=Resource({}))
send("parent")
child = os.fork()
if child == 0:
    send("child")
    grandchild = os.fork()
    if grandchild == 0:
        send("grandchild")
        sink.close()
        os._exit(0)
    _, status = os.waitpid(grandchild, 0)
    send("child again")
    sink.close()
    os._exit(os.waitstatus_to_exitcode(status))
_, status = os.waitpid(child, 0)
send("parent again")
sink.close()
print(os.waitstatus_to_exitcode(status))
"""


@BOTH
def test_forked_children_send_by_connections_of_their_own(receiver: Receiver, protocol: Wire) -> None:
    endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
    line = [sys.executable, "-c", FORKING, endpoint, protocol]
    done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert [span.name for span in receiver.spans] == ["parent", "child", "grandchild", "child again", "parent again"]


@contextmanager
def counting_relay(port: int) -> Iterator[tuple[int, Callable[[], int]]]:
    """A relay for one connection to a port, and how many bytes have gone there so far."""
    count = 0

    def pump(source: socket.socket, target: socket.socket, *, is_counted: bool) -> None:
        nonlocal count
        while data := source.recv(65_536):
            target.sendall(data)
            if is_counted:
                count += len(data)
        target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        client, _ = listener.accept()
        with client, socket.create_connection(("127.0.0.1", port)) as server, ThreadPoolExecutor(2) as pumps:
            client.settimeout(DEADLINE)
            server.settimeout(DEADLINE)
            pumps.submit(pump, client, server, is_counted=True)
            pumps.submit(pump, server, client, is_counted=False)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        listener.settimeout(DEADLINE)
        serving = thread.submit(serve)
        yield listener.getsockname()[1], lambda: count
        serving.result(DEADLINE)


@BOTH
def test_a_request_without_spans_is_answered_and_nothing_is_stored(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], protocol: Wire
) -> None:
    """Over HTTP the answer has a date."""
    date = sink_of(protocol).ask(DEADLINE)
    assert (date is None) is (protocol == "grpc")
    assert receiver.spans == []
    assert [request.outcome for request in receiver.requests] == ["accepted"]
