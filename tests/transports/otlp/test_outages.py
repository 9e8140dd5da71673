"""Endpoints that are away, slow, or cut their answers."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from constellation_otel.delivery import Rejection
from constellation_otel.errors import (
    UnavailableError,
)
from constellation_otel.receiver import Delay, Receiver
from constellation_otel.transports.otlp import OtlpSink
from constellation_otel.transports.otlp.connection import Clock
from support import DEADLINE, eventually
from transports.otlp.helpers import BOTH, RECEIVED, RESOURCE, SPANS, Wire, grpc_server, raised_by, raw_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@BOTH
def test_an_endpoint_that_is_away_gets_the_spans_when_it_is_back(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], protocol: Wire
) -> None:
    sink = sink_of(protocol)
    sink.send(SPANS[:1], DEADLINE)
    receiver.stop()
    error = raised_by(sink)
    assert type(error) is UnavailableError
    assert "refused" in str(error) or "closed" in str(error) or "reset" in str(error)
    receiver.start()

    def is_back() -> bool:
        try:
            return sink.send(SPANS[1:], 1) == []
        except UnavailableError:
            return False

    eventually(is_back, "the endpoint to be back")
    assert receiver.received == RECEIVED


@BOTH
def test_an_endpoint_that_is_late_is_unavailable_in_time(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], protocol: Wire
) -> None:
    """It may be asked again."""
    receiver.order(Delay(60))
    sink = sink_of(protocol)
    started = time.monotonic()
    error = raised_by(sink, 0.1)
    assert 0.1 <= time.monotonic() - started < 5
    assert (type(error), str(error)) == (UnavailableError, f"{sink.endpoint} did not answer in time")
    assert sink.send(SPANS, DEADLINE) == []
    receiver.stop()


@BOTH
def test_a_timeout_that_encoding_has_used_up_is_still_one(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], protocol: Wire
) -> None:
    receiver.order(Delay(60))
    assert type(raised_by(sink_of(protocol), 0)) is UnavailableError
    receiver.stop()


def test_a_server_that_answers_byte_by_byte_is_cut_off_in_time() -> None:
    was_cut = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.recv(65_536)
        with pytest.raises(OSError):  # noqa: PT012 - any of them
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not was_cut.wait(0.02):
                connection.sendall(b"x")
        was_cut.set()

    with raw_server(drip) as endpoint:
        sink = OtlpSink(endpoint, protocol="http/protobuf", resource=RESOURCE)
        started = time.monotonic()
        error = raised_by(sink, 0.3)
        assert 0.3 <= time.monotonic() - started < 5
        assert str(error) == f"{endpoint}/v1/traces did not answer in time"
        assert was_cut.wait(DEADLINE)
        sink.close()


def test_a_look_up_that_hangs_keeps_the_timeout(
    monkeypatch: pytest.MonkeyPatch, make_sink: Callable[..., OtlpSink]
) -> None:
    """It is not repeated before it has ended."""
    found = threading.Event()

    asked = []

    def hang(host: str, *_: object, flags: int = 0, **__: object) -> None:
        if not flags:
            asked.append(host)
            found.wait(DEADLINE)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    sink = make_sink("http://c:1", protocol="http/protobuf")
    for _ in range(2):
        assert str(raised_by(sink, 0.05)) == "http://c:1/v1/traces did not answer in time"
    assert asked == ["c"]
    found.set()
    error = raised_by(sink)
    assert type(error) is UnavailableError
    assert "no such name" in str(error)


PARTIAL = ExportTracePartialSuccess(rejected_spans=1, error_message="bad")
ANSWER = ExportTraceServiceResponse(partial_success=PARTIAL).SerializeToString()
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(ANSWER), ANSWER)
SIZED = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: %d\r\n\r\n%s" % (
    len(ANSWER),
    ANSWER,
)


def take_request(connection: socket.socket) -> None:
    """Reads a whole HTTP request."""
    connection.settimeout(DEADLINE)
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65_536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    while len(body) < length:
        body += connection.recv(65_536)


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """A server of a connection for each answer, which it closes after that."""

    def serve() -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                take_request(connection)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        listener.settimeout(DEADLINE)
        serving = thread.submit(serve)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving.result(DEADLINE)


@pytest.mark.parametrize("whole", [SIZED, CHUNKED], ids=["sized", "chunked"])
def test_an_answer_that_is_cut_anywhere_is_no_acknowledgement(whole: bytes) -> None:
    cuts = [whole[:length] for length in range(len(whole))]
    with answering(*cuts, whole) as endpoint:
        sink = OtlpSink(endpoint, protocol="http/protobuf", resource=RESOURCE)
        for cut in cuts:
            assert type(raised_by(sink)) is UnavailableError, cut
        assert sink.send(SPANS, DEADLINE) == [Rejection(None, 1, "bad")]
        sink.close()


def test_an_answer_may_end_with_the_connection() -> None:
    """As HTTP has it: there is no other sign, and the status is in the head."""
    head = b"HTTP/1.0 200 OK\r\n\r\n"
    with answering(head + ANSWER, head, head[:-1]) as endpoint:
        sink = OtlpSink(endpoint, protocol="http/protobuf", resource=RESOURCE)
        assert sink.send(SPANS, DEADLINE) == [Rejection(None, 1, "bad")]
        assert sink.send(SPANS, DEADLINE) == []
        assert type(raised_by(sink)) is UnavailableError
        sink.close()


def test_a_kept_connection_that_was_closed_costs_no_failure() -> None:
    """The server answers, keeps the connection open as far as the client knows, and is gone at the next request."""
    kept = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    served = 0

    def serve() -> None:
        nonlocal served
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                take_request(connection)
                connection.sendall(kept)
                served += 1
                if served == 1:
                    # takes the next request and goes without an answer
                    take_request(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        listener.settimeout(DEADLINE)
        serving = thread.submit(serve)
        sink = OtlpSink(f"http://127.0.0.1:{listener.getsockname()[1]}", protocol="http/protobuf", resource=RESOURCE)
        assert sink.send(SPANS, DEADLINE) == []
        assert sink.send(SPANS, DEADLINE) == []
        sink.close()
        serving.result(DEADLINE)
    assert served == 2


def test_nothing_is_waited_for_after_the_deadline() -> None:
    with pytest.raises(TimeoutError):
        Clock().remaining()


def test_the_first_address_that_can_be_connected_to_is_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, make_sink: Callable[..., OtlpSink]
) -> None:
    port = int(receiver.http_endpoint.rpartition(":")[2])
    real = socket.getaddrinfo

    def two(host: str, *rest: Any, **options: Any) -> Any:
        if host != "c":
            return real(host, *rest, **options)
        if options.get("flags"):
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", at)) for at in (1, port)]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    assert make_sink(f"http://c:{port}", protocol="http/protobuf").send(SPANS, DEADLINE) == []


def test_names_are_looked_up_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch, make_sink: Callable[..., OtlpSink]
) -> None:
    """As at the exit of Python 3.12.0 to 3.12.2."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with answering(SIZED) as endpoint, monkeypatch.context() as patch:
        sink = make_sink(endpoint.replace("127.0.0.1", "localhost"), protocol="http/protobuf")
        patch.setattr(threading.Thread, "start", refuse)
        assert sink.send(SPANS, DEADLINE) == [Rejection(None, 1, "bad")]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda context: context.abort(grpc.StatusCode.UNAVAILABLE, "q" * 100_000), "is unavailable: qqq"),
        (lambda context: context.abort(grpc.StatusCode.UNAVAILABLE, "q" * 5_000_000), "sent an answer that cannot be"),
        (lambda _: b"x" * 2_000_000, "sent an answer that cannot be read: RESOURCE_EXHAUSTED: "),
    ],
    ids=["long status", "very long status", "long answer"],
)
def test_a_status_that_the_client_makes_up_is_no_refusal_over_grpc(
    answer: Callable[[grpc.ServicerContext], bytes], expected: str
) -> None:
    with grpc_server(lambda _, context: answer(context)) as endpoint:
        sink = OtlpSink(endpoint, resource=RESOURCE)
        error = raised_by(sink)
        sink.close()
    assert isinstance(error, UnavailableError)
    assert str(error).startswith(f"{endpoint} {expected}")
