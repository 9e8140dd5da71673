"""The receiver's two transports: how they read requests, and refuse those that break the protocol."""

from __future__ import annotations

import gzip
import socket
import struct

import grpc
import pytest
import requests
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # stubs without py.typed

from constellation_otel.receiver import Receiver
from otlp_client import PROTOBUF, call, names, outcomes, post, spans_named
from support import eventually


def connected(receiver: Receiver) -> socket.socket:
    """A connection to the HTTP port."""
    host, port = receiver.http_endpoint.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def test_a_body_that_is_not_protobuf_is_a_bad_request(receiver: Receiver) -> None:
    answer = requests.post(f"{receiver.http_endpoint}/v1/logs", data=b"\xff", headers=PROTOBUF, timeout=10)
    status = Status.FromString(answer.content)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/x-protobuf")
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert status.message.startswith("the body is not a valid ExportLogsServiceRequest in protobuf: ")
    with pytest.raises(grpc.RpcError) as refused:
        call(receiver, b"\xff", "logs")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == status.message
    assert outcomes(receiver) == [
        ("logs", "http/protobuf", "invalid", "400"),
        ("logs", "grpc", "invalid", "INVALID_ARGUMENT"),
    ]


def test_a_wrong_path_or_content_type_is_refused(receiver: Receiver) -> None:
    """A query in the path is passed over."""
    url = receiver.http_endpoint
    text = {"Content-Type": "text/plain"}
    with requests.Session() as session:
        elsewhere = session.post(f"{url}/v2/traces", data=b"x", headers=PROTOBUF, timeout=10)
        plain = session.post(f"{url}/v1/traces", data=b"x", headers=text, timeout=10)
        untyped = session.post(f"{url}/v1/traces", data=b"x", timeout=10)
        json = session.post(f"{url}/v1/traces", json={}, timeout=10)
        fine = session.post(f"{url}/v1/traces?a=b", data=b"", headers=PROTOBUF, timeout=10)
    assert (elsewhere.status_code, elsewhere.text) == (
        404,
        "there is no /v2/traces; the paths are /v1/traces, /v1/metrics, /v1/logs",
    )
    assert (plain.status_code, plain.text) == (
        415,
        "the content type is text/plain; only application/x-protobuf is read",
    )
    assert (untyped.status_code, json.status_code, fine.status_code) == (415, 415, 200)
    assert outcomes(receiver) == [
        (None, "http/protobuf", "invalid", "404"),
        ("traces", None, "invalid", "415"),
        ("traces", None, "invalid", "415"),
        ("traces", None, "invalid", "415"),
        ("traces", "http/protobuf", "accepted", "200"),
    ]


def test_a_method_other_than_post_is_refused(receiver: Receiver) -> None:
    answer = requests.get(f"{receiver.http_endpoint}/v1/traces", timeout=10)
    assert (answer.status_code, answer.reason) == (501, "Unsupported method ('GET')")
    assert receiver.requests == []


def test_requests_share_a_connection_whatever_the_answers(receiver: Receiver) -> None:
    junk = b"POST /v1/traces HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\n{"
    with connected(receiver) as connection:
        connection.sendall(junk * 3)
        seen = b""
        while seen.count(b"protobuf is read") < 3:
            seen += connection.recv(65_536)
    assert seen.count(b"HTTP/1.1 415 Unsupported Media Type") == 3


@pytest.mark.parametrize(
    ("encoding", "body", "status", "said"),
    [
        ("gzip", b"not gzip", 400, "the body is not valid gzip: "),
        ("gzip", gzip.compress(b"x" * 100, mtime=0)[:-9], 400, "the body is not valid gzip: "),
        ("gzip", gzip.compress(b"x", mtime=0)[:10] + b"\xff\xff\xff\xff" * 5, 400, "the body is not valid gzip: "),
        ("br", b"x", 415, "the content encoding is br; only gzip and identity are read"),
    ],
)
def test_a_body_that_cannot_be_decompressed_is_refused(
    receiver: Receiver, encoding: str, body: bytes, status: int, said: str
) -> None:
    headers = {**PROTOBUF, "Content-Encoding": encoding}
    answer = requests.post(f"{receiver.http_endpoint}/v1/traces", data=body, headers=headers, timeout=10)
    assert answer.status_code == status
    assert Status.FromString(answer.content).message.startswith(said)


def test_a_request_over_the_limit_is_refused() -> None:
    """Compressed or not; the connection stays usable."""
    request = spans_named("x" * 2_000).SerializeToString()
    with Receiver(max_request_bytes=1_000) as receiver, requests.Session() as session:
        url = f"{receiver.http_endpoint}/v1/traces"
        large = session.post(url, data=request, headers=PROTOBUF, timeout=10)
        huge = session.post(url, data=bytes(3_000_000), headers=PROTOBUF, timeout=10)
        bomb = {**PROTOBUF, "Content-Encoding": "gzip"}
        compressed = session.post(url, data=gzip.compress(request), headers=bomb, timeout=10)
        small = session.post(url, data=b"", headers=PROTOBUF, timeout=10)
        with pytest.raises(grpc.RpcError) as refused:
            call(receiver, request)
        statuses = [large.status_code, huge.status_code, compressed.status_code, small.status_code]
    assert statuses == [413, 413, 413, 200]
    assert Status.FromString(large.content).message == f"the body has {len(request)} bytes; the limit is 1000"
    assert Status.FromString(compressed.content).message == "the uncompressed body has more than 1000 bytes, the limit"
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert receiver.spans == []
    assert [it.size for it in receiver.requests] == [len(request), 3_000_000, len(gzip.compress(request)), 0]


@pytest.mark.parametrize(
    ("head", "status", "said"),
    [
        ("Content-Length: -1", b"411 Length Required", "the Content-Length is '-1', not a number"),
        ("Content-Length: ab", b"411 Length Required", "the Content-Length is 'ab', not a number"),
        ("Transfer-Encoding: chunked", b"411 Length Required", "the Content-Length is '', not a number"),
        ("Content-Length: 10", b"400 Bad Request", "the body ended 10 bytes early"),
    ],
)
def test_a_body_without_an_end_closes_the_connection(receiver: Receiver, head: str, status: bytes, said: str) -> None:
    """Where the next request begins cannot be known."""
    with connected(receiver) as connection:
        connection.sendall(f"POST /v1/traces HTTP/1.1\r\n{head}\r\n\r\n".encode())
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert b"Connection: close\r\n" in answer
    assert said in answer.decode()
    assert outcomes(receiver) == [("traces", None, "invalid", status.decode()[:3])]


def test_a_broken_connection_is_logged_and_others_are_served(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connected(receiver)
    connection.sendall(b"POST /v1/traces HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
    # its thread is in the middle of this request now
    assert connection.recv(1) == b"H"
    # a reset, where a close would be an end
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert post(receiver, spans_named("after")).status_code == 200
    eventually(lambda: caplog.messages, "the log of the reset")
    assert caplog.messages == ["the connection from 127.0.0.1 broke"]
    assert names(receiver) == ["after"]


def test_stopping_in_the_middle_of_a_request_logs_nothing(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    with connected(receiver) as connection:
        connection.sendall(b"POST /v1/traces HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
        # its thread is in the middle of this request now
        assert connection.recv(1) == b"H"
        receiver.stop()
    assert outcomes(receiver) == [("traces", None, "invalid", "400")]
    assert caplog.records == []


def test_grpc_metadata_is_kept_with_binary_values_in_base64(receiver: Receiver) -> None:
    call(receiver, spans_named("a"), metadata=(("authorization", "Bearer x"), ("token-bin", b"\xff")))
    headers = receiver.requests[0].headers
    assert (headers["authorization"], headers["token-bin"]) == ("Bearer x", "/w==")
