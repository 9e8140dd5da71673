"""The OTLP sink against our receiver, and against servers that are wrong, silent or encrypted."""

from __future__ import annotations

import gzip
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import grpc
import pytest
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # stubs without py.typed
from opentelemetry import context as otel_context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.version import __version__ as sdk_version
from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.delivery import Rejection
from constellation_otel.errors import (
    ConfigurationError,
    DeliveryError,
    MisconfiguredError,
    RefusedError,
    UnavailableError,
)
from constellation_otel.receiver import Delay, Drop, PartialSuccess, Receiver, Refuse
from constellation_otel.receiver import decoding as otlp_decoding
from constellation_otel.traces import Span, SpanEvent
from constellation_otel.transports.otlp import OtlpSink, make_resource
from constellation_otel.transports.otlp.bounded_http import Clock
from support import DEADLINE, eventually, self_signed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from constellation_otel.delivery import Sink

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
USE_PROXY = "http://host:port or http://user:password@host:port"
VARIABLES = ("OTEL_", "REQUESTS_", "HTTP_", "HTTPS_", "http_", "https_", "ALL_", "all_", "NO_", "no_", "grpc_")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own environment counts."""
    for name in os.environ:
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)


@pytest.fixture
def make_sink() -> Iterator[Callable[..., OtlpSink]]:
    """Makes sinks that are closed whatever happens."""
    made: list[OtlpSink] = []

    def make(endpoint: str | None = None, **options: Any) -> OtlpSink:
        made.append(OtlpSink(endpoint, **{"resource": RESOURCE, **options}))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


@pytest.fixture
def sink_of(receiver: Receiver, make_sink: Callable[..., OtlpSink]) -> Callable[..., OtlpSink]:
    """Makes sinks that send to ``receiver``."""

    def make(protocol: Wire, **options: Any) -> OtlpSink:
        endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
        return make_sink(endpoint, protocol=protocol, **options)

    return make


def raised_by(sink: OtlpSink, timeout: float = DEADLINE) -> DeliveryError:
    """The error of sending all spans; its class, message and more are what a lane goes by."""
    with pytest.raises(DeliveryError) as raised:
        sink.send(SPANS, timeout)
    return raised.value


# What arrives


@BOTH
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_spans_arrive_whole_and_nothing_is_rejected(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], protocol: Wire, compression: str
) -> None:
    sink: Sink[Span] = sink_of(protocol, compression=compression, headers={"Authorization": "Bearer x"})
    assert (sink.name, sink.takes, sink.max_batch) == ("otlp", "spans", 512)
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
def test_all_of_a_sinks_requests_use_one_connection_which_closing_ends(protocol: Wire) -> None:
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


# What is configured


@pytest.mark.parametrize(
    ("variables", "protocol", "endpoint"),
    [
        ({}, None, "http://localhost:4317"),
        ({}, "http/protobuf", "http://localhost:4318/v1/traces"),
        ({"PROTOCOL": "http/protobuf"}, None, "http://localhost:4318/v1/traces"),
        ({"PROTOCOL": "grpc", "TRACES_PROTOCOL": "HTTP/protobuf"}, None, "http://localhost:4318/v1/traces"),
        ({"ENDPOINT": "http://c:1"}, None, "http://c:1"),
        ({"ENDPOINT": "http://c:1/ignored/"}, "grpc", "http://c:1"),
        ({"ENDPOINT": "https://c"}, "grpc", "https://c"),
        ({"ENDPOINT": "c:1"}, "grpc", "https://c:1"),
        ({"ENDPOINT": "c:1", "INSECURE": "True"}, "grpc", "http://c:1"),
        ({"ENDPOINT": "c:1", "INSECURE": "true", "TRACES_INSECURE": "false"}, "grpc", "https://c:1"),
        ({"ENDPOINT": "https://c:1", "INSECURE": "true"}, "grpc", "https://c:1"),
        ({"ENDPOINT": "http://c:1", "INSECURE": "false"}, "grpc", "http://c:1"),
        ({"ENDPOINT": "http://c:1"}, "http/protobuf", "http://c:1/v1/traces"),
        ({"ENDPOINT": "http://c:1/"}, "http/protobuf", "http://c:1/v1/traces"),
        ({"ENDPOINT": "http://c:1/otlp"}, "http/protobuf", "http://c:1/otlp/v1/traces"),
        ({"ENDPOINT": "http://c:1/v1/traces"}, "http/protobuf", "http://c:1/v1/traces/v1/traces"),
        ({"ENDPOINT": "http://c:1", "TRACES_ENDPOINT": "http://d:2/x/"}, "http/protobuf", "http://d:2/x/"),
        ({"TRACES_ENDPOINT": "http://d:2"}, "http/protobuf", "http://d:2/"),
        ({"TRACES_ENDPOINT": " ", "ENDPOINT": "http://c:1"}, "grpc", "http://c:1"),
        ({"ENDPOINT": "http://[::1]:1"}, "grpc", "http://[::1]:1"),
    ],
)
def test_the_endpoint_comes_from_the_standard_variables(
    make_sink: Callable[..., OtlpSink],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    protocol: Wire | None,
    endpoint: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    assert make_sink(protocol=protocol).endpoint == endpoint


@pytest.mark.parametrize(
    ("given", "protocol", "endpoint"),
    [
        ("http://c:1", "grpc", "http://c:1"),
        ("c:1", "grpc", "https://c:1"),
        ("http://c:1", "http/protobuf", "http://c:1/v1/traces"),
        ("http://c:1/otlp/", "http/protobuf", "http://c:1/otlp/v1/traces"),
        ("http://c:1/otlp/v1/traces", "http/protobuf", "http://c:1/otlp/v1/traces"),
        ("https://c:1/v1/traces/", "http/protobuf", "https://c:1/v1/traces"),
    ],
)
def test_a_given_endpoint_goes_before_the_variables_and_may_have_the_signals_path(
    make_sink: Callable[..., OtlpSink], monkeypatch: pytest.MonkeyPatch, given: str, protocol: Wire, endpoint: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://unused:9")
    assert make_sink(given, protocol=protocol).endpoint == endpoint


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("otlp://c", "http://c:4317"),
        ("otlp://c:1/", "http://c:1"),
        ("otlp://A_b.c-d.:1", "http://A_b.c-d.:1"),
        ("otlp://10.0.0.1", "http://10.0.0.1:4317"),
        ("otlp://[fe80::1%eth0]:1", "http://[fe80::1%eth0]:1"),
        ("otlp://[::1]", "http://[::1]:4317"),
        ("otlps://c:", "https://c:4317"),
        ("otlp+http://c", "http://c:4318/v1/traces"),
        ("otlp+http://c:1/otlp", "http://c:1/otlp/v1/traces"),
        ("otlp+https://c:1/", "https://c:1/v1/traces"),
    ],
)
def test_a_url_says_the_protocol_the_security_and_the_default_port(
    monkeypatch: pytest.MonkeyPatch, url: str, endpoint: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://unused:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "nonsense")
    sink = OtlpSink.from_url(url, resource=RESOURCE)
    assert (sink.endpoint, sink.protocol) == (endpoint, "http/protobuf" if "+http" in url else "grpc")


def test_a_sink_from_a_url_has_its_headers_from_the_variables(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "tenant=blue")
    sink = OtlpSink.from_url(receiver.grpc_endpoint.replace("http", "otlp"), resource=RESOURCE)
    sink.send(SPANS, DEADLINE)
    sink.close()
    assert receiver.requests[0].headers["tenant"] == "blue"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("otlp://user:s3cr3t@c", "the URL has a user or a password; credentials go into the headers"),
        ("otlp://s3cr3t@c", "the URL has a user or a password; credentials go into the headers"),
        ("otlp://c?key=s3cr3t", "the URL has something after its path, otlp://c, which means nothing; leave it out"),
        ("otlp+http://c/a#s3cr3t", "the URL has something after its path, otlp+http://c/a, which"),
        ("otlp://", "the URL names no host: otlp:"),
        ("otlp://c:s3cr3t", "the URL is no URL: its host or its port cannot be read"),
        ("otlp://[s3cr3t", "the URL is no URL: its host or its port cannot be read"),
        (
            "otlp+http://c..d",
            "the URL has 'c..d' for a host; there are letters, digits and hyphens between single dots",
        ),
        ("otlp+http://é", "the URL has 'é' for a host; there are letters"),
        (f"otlp://{'c' * 64}", "the URL has 'cccc"),
        ("otlp://c/v1/traces", "otlp://c/v1/traces has a path, which gRPC has not; otlp+http:// is OTLP over HTTP"),
        ("http://c", "the URL does not begin with otlp:// or otlps:// or otlp+http:// or otlp+https://"),
        ("s3cr3t", "the URL does not begin with otlp://"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secret(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        OtlpSink.from_url(url, resource=RESOURCE)
    assert str(refused.value).startswith(said)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ENDPOINT", "http://x:s3cr3t@c", "OTEL_EXPORTER_OTLP_ENDPOINT has a user or a password; "),
        ("TRACES_ENDPOINT", "ftp://c", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT does not begin with http:// or https://"),
        ("PROTOCOL", "http/json", "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'; there are grpc and http/protobuf"),
        ("COMPRESSION", "zstd", "OTEL_EXPORTER_OTLP_COMPRESSION is 'zstd'; there are none and gzip"),
        ("TIMEOUT", "soon", "OTEL_EXPORTER_OTLP_TIMEOUT is 'soon'; a positive number of seconds is needed"),
        ("TRACES_TIMEOUT", "0", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT is '0'; a positive number"),
        ("CERTIFICATE", "/no/such", "OTEL_EXPORTER_OTLP_CERTIFICATE is '/no/such', and there is no such file"),
        ("HEADERS", "a=1,s3cr3t", "entry 2 of OTEL_EXPORTER_OTLP_HEADERS is no name=value; it is a list like: a=1,b=2"),
        ("HEADERS", "s3cr3t key=1", "the name of header 1 in OTEL_EXPORTER_OTLP_HEADERS has characters that cannot be"),
        ("HEADERS", "a=s3cr3t%0A", "the value of a in OTEL_EXPORTER_OTLP_HEADERS has characters that cannot be sent"),
        ("HEADERS", "grpc-timeout=s3cr3t", "grpc-timeout in OTEL_EXPORTER_OTLP_HEADERS is a name that gRPC keeps to"),
        ("HEADERS", "Content-Length=5", "content-length in OTEL_EXPORTER_OTLP_HEADERS is a name that HTTP keeps to"),
        ("HEADERS", "te=5,a=b", "te in OTEL_EXPORTER_OTLP_HEADERS is a name that HTTP keeps to itself; leave it out"),
        ("HEADERS", "a-bin=s3cr3t", "a-bin in OTEL_EXPORTER_OTLP_HEADERS would be binary over gRPC, which is not"),
    ],
)
def test_a_variable_that_cannot_be_used_is_refused_by_its_name_and_without_secrets(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{variable}", value)
    with pytest.raises(ConfigurationError) as refused:
        OtlpSink(resource=RESOURCE)
    assert str(refused.value).startswith(said)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocol": "http"}, "protocol is 'http'; there are grpc and http/protobuf"),
        ({"compression": "zip"}, "compression is 'zip'; there are none and gzip"),
        ({"timeout": -1.0}, "timeout is '-1.0'; a positive number of seconds is needed"),
        ({"timeout": float("nan")}, "timeout is 'nan'; a positive number of seconds is needed"),
        ({"headers": {"a": "s3cr3t\n"}}, "the value of a in headers has characters that cannot be sent"),
        ({"client_key": __file__}, "client_key is given without client_certificate; give both, or neither"),
        ({"endpoint": "c:1", "protocol": "http/protobuf"}, "endpoint does not begin with http:// or https://"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused_by_its_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        OtlpSink(**{"resource": RESOURCE, **options})
    assert str(refused.value).startswith(said)
    assert SECRET not in str(refused.value)


@BOTH
def test_headers_come_from_the_variables_in_the_encoding_of_opentelemetry(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], monkeypatch: pytest.MonkeyPatch, protocol: Wire
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "general=unused")
    listed = "Api-Key=a%20b%2Cc=, x = y , authorization=Bearer a%20b,,empty="
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", listed)
    sink_of(protocol).send(SPANS, DEADLINE)
    headers = receiver.requests[0].headers
    expected = {"api-key": "a b,c=", "x": "y", "authorization": "Bearer a%20b", "empty": ""}
    assert {name: headers.get(name) for name in (*expected, "general")} == {**expected, "general": None}


def test_given_headers_are_instead_of_those_of_the_variables_and_cannot_replace_the_content_type(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "general=unused")
    sink_of("http/protobuf", headers={"Content-Type": "text/plain", "User-Agent": "mine"}).send(SPANS, DEADLINE)
    headers = receiver.requests[0].headers
    assert (headers["content-type"], headers["user-agent"], "general" in headers) == (
        "application/x-protobuf",
        "mine",
        False,
    )


def test_a_netrc_file_does_not_replace_the_authorization(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    sink_of("http/protobuf", headers={"authorization": "Bearer x"}).send(SPANS, DEADLINE)
    assert receiver.requests[0].headers["authorization"] == "Bearer x"


class Asked(NamedTuple):
    """What a proxy was asked."""

    line: str
    authorization: str | None


@contextmanager
def proxy_to(port: int, status: str = "200 OK") -> Iterator[tuple[str, list[Asked]]]:
    """A real proxy for one connection, whatever is asked for: forwards to a port, after CONNECT too."""
    asked: list[Asked] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        client, _ = listener.accept()
        with client, socket.create_connection(("127.0.0.1", port)) as server, ThreadPoolExecutor(2) as pumps:
            client.settimeout(DEADLINE)
            server.settimeout(DEADLINE)
            received = b""
            while b"\r\n\r\n" not in received:
                received += client.recv(65_536)
            head = received.partition(b"\r\n\r\n")[0].decode().split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            asked.append(Asked(head[0], fields.get("proxy-authorization")))
            if head[0].startswith("CONNECT"):
                client.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())
                if status != "200 OK":
                    return
            else:
                # our receiver takes a path only
                method, url, version = received.split(b" ", 2)
                server.sendall(b" ".join([method, b"/" + url.split(b"/", 3)[3], version]))
            pumps.submit(pump, client, server)
            pumps.submit(pump, server, client)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        listener.settimeout(DEADLINE)
        serving = thread.submit(serve)
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked
        serving.result(DEADLINE)


@pytest.mark.parametrize(
    ("variable", "user", "token"),
    [
        ("HTTP_PROXY", "", None),
        ("http_proxy", "http://", None),
        ("ALL_PROXY", "http://me:a%40b@", "Basic bWU6YUBi"),
        ("http_proxy", "http://token@", "Basic dG9rZW4="),
    ],
)
def test_over_http_the_proxy_of_the_environment_is_used_with_its_credentials(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, variable: str, user: str, token: str | None
) -> None:
    with proxy_to(int(receiver.http_endpoint.rpartition(":")[2])) as (proxy, asked):
        monkeypatch.setenv(variable, f"{user}{proxy}")
        sink = OtlpSink("http://collector.invalid:4318", protocol="http/protobuf", resource=RESOURCE)
        assert sink.send(SPANS, DEADLINE) == []
        sink.close()
    assert asked == [Asked("POST http://collector.invalid:4318/v1/traces HTTP/1.1", token)]
    assert receiver.received == RECEIVED


def test_a_proxy_connects_through_to_an_endpoint_with_tls(
    certificates: Certificates, make_sink: Callable[..., OtlpSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls_server("http/protobuf", certificates.server, certificates.server_key) as endpoint:
        with proxy_to(int(endpoint.rpartition(":")[2])) as (proxy, asked):
            monkeypatch.setenv("https_proxy", f"http://me:pw@{proxy}")
            monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
            sink = make_sink(endpoint, protocol="http/protobuf", certificate=certificates.server)
            assert sink.send(SPANS, DEADLINE) == []
            sink.close()
        assert [(one.line.rpartition(" ")[0], one.authorization) for one in asked] == [
            (f"CONNECT {endpoint.removeprefix('https://')}", "Basic bWU6cHc=")
        ]


def test_a_proxy_that_wants_other_credentials_says_where_to_look(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, make_sink: Callable[..., OtlpSink]
) -> None:
    port = int(receiver.http_endpoint.rpartition(":")[2])
    with proxy_to(port, "407 no, \x1b[31mme:s3cr3t") as (proxy, _):
        monkeypatch.setenv("https_proxy", f"http://me:s3cr3t@{proxy}")
        error = raised_by(make_sink("https://collector.invalid:4318", protocol="http/protobuf"))
    assert type(error) is MisconfiguredError
    assert str(error).endswith("; look at the proxy's URL and its credentials")
    assert SECRET not in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize("listed", ["127.0.0.1", "10.0.0.0/8, 127.0.0.0/8", "*", "127.0.0.1:{port}"])
@BOTH
def test_what_no_proxy_lists_is_connected_to_directly(
    receiver: Receiver,
    sink_of: Callable[..., OtlpSink],
    monkeypatch: pytest.MonkeyPatch,
    protocol: Wire,
    listed: str,
) -> None:
    endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
    monkeypatch.setenv("http_proxy", f"http://me:{SECRET}@[")
    monkeypatch.setenv("no_proxy", listed.format(port=endpoint.rpartition(":")[2]))
    assert sink_of(protocol).send(SPANS, DEADLINE) == []


def test_over_grpc_a_proxy_is_used_that_is_in_lower_case(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://unused:1")
    monkeypatch.setenv("no_grpc_proxy", "10.0.0.0/8")
    with proxy_to(int(receiver.grpc_endpoint.rpartition(":")[2])) as (proxy, asked):
        monkeypatch.setenv("grpc_proxy", f"me:pw@{proxy}")
        sink = sink_of("grpc")
        assert sink.send(SPANS, DEADLINE) == []
        sink.close()
    assert [(one.line.split()[0], one.authorization) for one in asked] == [("CONNECT", "Basic bWU6cHc=")]


@pytest.mark.parametrize(
    ("protocol", "value", "said"),
    [
        *[
            (protocol, value, f"is not the URL of a proxy; use {USE_PROXY}")
            for protocol in ("grpc", "http/protobuf")
            for value in (
                "://me:s3cr3t@x",
                "http://me:s3cr3t@",
                "http://me:s3cr3t@127.0.0.1:99999",
                "http://me:s3cr3t@[::1",
                "://me:s3cr3t@",
                "http://me:s3cr3t@127.0.0.1:abc",
                "http://me:s3cr3t@a..b:1",
            )
        ],
        ("http/protobuf", "socks5://me:s3cr3t@c:1", "names a proxy of a kind that OTLP over http/protobuf cannot use;"),
        ("grpc", "https://me:s3cr3t@c:1", "names a proxy of a kind that OTLP over grpc cannot use; use http://"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_by_its_variable_and_without_secrets(
    monkeypatch: pytest.MonkeyPatch, protocol: Wire, value: str, said: str
) -> None:
    monkeypatch.setenv("http_proxy", value)
    with pytest.raises(ConfigurationError) as refused:
        OtlpSink("http://c:1", protocol=protocol, resource=RESOURCE)
    assert str(refused.value).startswith(f"http_proxy {said}")
    assert SECRET not in str(refused.value)


@BOTH
def test_what_is_printed_of_the_settings_has_no_secrets(monkeypatch: pytest.MonkeyPatch, protocol: Wire) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:{SECRET}@127.0.0.1:1")
    sink = OtlpSink("http://c:1", protocol=protocol, resource=RESOURCE, headers={"key": SECRET})
    assert repr(sink._far_side) == f"FarSide({protocol!r}, {sink.endpoint!r})"
    assert repr(sink._far_side.proxy) == "Proxy('http://127.0.0.1:1')"
    logged = "".join(traceback.format_exception(raised_by(sink)))
    sink.close()
    assert SECRET not in logged


def test_an_undecodable_password_of_a_proxy_is_sent_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:p\udcff@127.0.0.1:1")
    sink = OtlpSink("http://c:1", protocol="http/protobuf", resource=RESOURCE)
    assert sink._far_side.proxy is not None
    assert sink._far_side.proxy.headers == {"proxy-authorization": "Basic bWU6cP8="}


@BOTH
def test_the_timeout_of_the_variables_is_in_seconds(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], monkeypatch: pytest.MonkeyPatch, protocol: Wire
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    receiver.order(Delay(60))
    started = time.monotonic()
    raised_by(sink_of(protocol))
    assert 0.1 <= time.monotonic() - started < 5
    receiver.stop()


@pytest.mark.parametrize(
    ("variables", "argument", "expected"),
    [
        ({}, None, {"service.name": "constellation"}),
        ({"RESOURCE_ATTRIBUTES": "service.name=a,x=%C3%A9"}, None, {"service.name": "a", "x": "é"}),
        ({"RESOURCE_ATTRIBUTES": "service.name=a", "SERVICE_NAME": "b"}, None, {"service.name": "b"}),
        ({"SERVICE_NAME": "b"}, "c", {"service.name": "c"}),
        ({"RESOURCE_ATTRIBUTES": "service.name="}, "", {"service.name": "constellation"}),
        (
            {"RESOURCE_ATTRIBUTES": "service.instance.id=1,process.pid=2"},
            None,
            {"service.name": "constellation", "service.instance.id": "1", "process.pid": "2"},
        ),
    ],
)
def test_the_resource_has_what_is_configured_and_nothing_of_the_process(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], argument: str | None, expected: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    sdk = {"language": "python", "name": "opentelemetry", "version": sdk_version}
    assert dict(make_resource(argument).attributes) == {
        **{f"telemetry.sdk.{name}": value for name, value in sdk.items()},
        **expected,
    }


# What is answered


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        *[
            (code, UnavailableError)
            for code in ("CANCELLED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS", "UNKNOWN", "INTERNAL")
        ],
        *[
            (code, RefusedError)
            for code in ("INVALID_ARGUMENT", "ALREADY_EXISTS", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED")
        ],
        *[
            (code, MisconfiguredError)
            for code in ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "NOT_FOUND")
        ],
    ],
)
def test_a_grpc_code_decides_what_becomes_of_the_spans(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], code: str, expected: type[DeliveryError]
) -> None:
    receiver.order(Refuse(grpc_code=grpc.StatusCode[code], message="so it is"))
    error = raised_by(sink_of("grpc"))
    assert type(error) is expected
    says = "is unavailable" if code == "UNAVAILABLE" else f"answered {code}"
    assert str(error).startswith(f"{receiver.grpc_endpoint} {says}: so it is")
    assert (str(error) == f"{receiver.grpc_endpoint} {says}: so it is") == (expected is not MisconfiguredError)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *[(status, UnavailableError) for status in (408, 425, 429, 500, 502, 503, 504, 507, 520, 530, 599)],
        *[(status, RefusedError) for status in (400, 413, 422)],
        *[
            (status, MisconfiguredError)
            for status in (202, 301, 302, 307, 401, 402, 403, 404, 405, 407, 410, 415, 431, 501, 505, 511)
        ],
    ],
)
def test_an_http_status_decides_what_becomes_of_the_spans(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], status: int, expected: type[DeliveryError]
) -> None:
    receiver.order(Refuse(http_status=status, message="so it is"))
    error = raised_by(sink_of("http/protobuf"))
    assert type(error) is expected
    says = f"{receiver.http_endpoint}/v1/traces answered {status}: so it is"
    assert str(error).startswith(says)
    assert (str(error) == says) == (expected is not MisconfiguredError)


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        (Refuse(http_status=401, grpc_code=grpc.StatusCode.UNAUTHENTICATED), "the headers, OTEL_EXPORTER_OTLP_HEADERS"),
        (Refuse(http_status=404, grpc_code=grpc.StatusCode.UNIMPLEMENTED), "the endpoint, OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
@BOTH
def test_what_only_somebody_can_mend_names_the_setting(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], protocol: Wire, fault: Refuse, hint: str
) -> None:
    receiver.order(fault)
    assert f": refused by order; look at {hint}" in str(raised_by(sink_of(protocol)))


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_a_retry_info_says_how_long_to_wait_over_grpc(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], code: str
) -> None:
    receiver.order(Refuse(grpc_code=grpc.StatusCode[code], retry_after=1.25))
    error = raised_by(sink_of("grpc"))
    assert isinstance(error, UnavailableError)
    assert (type(error), error.retry_after, error.delivered) == (UnavailableError, 1.25, frozenset())


@pytest.mark.parametrize(
    "details", [b"\xff", Status(code=8).SerializeToString(), pytest.param("other", id="another detail")]
)
def test_details_of_a_status_without_a_retry_info_say_nothing_of_waiting(details: bytes | str) -> None:
    if isinstance(details, str):
        status = Status(code=8)
        status.details.add().Pack(Status(code=1))
        details = status.SerializeToString()

    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "")
        raise AssertionError

    with grpc_server(refuse) as endpoint:
        sink = OtlpSink(endpoint, resource=RESOURCE)
        error = raised_by(sink)
        sink.close()
    assert (type(error), str(error)) == (
        RefusedError,
        f"{endpoint} answered RESOURCE_EXHAUSTED: no reason was given",
    )


def test_a_retry_after_header_says_how_long_to_wait_over_http(
    receiver: Receiver, sink_of: Callable[..., OtlpSink]
) -> None:
    receiver.order(Refuse(http_status=429, retry_after=7))
    error = raised_by(sink_of("http/protobuf"))
    assert isinstance(error, UnavailableError)
    assert error.retry_after == 7


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        (" 3 ", 3, 3),
        (format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True), 3_000, 3_600),
        (format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True), 0, 0),
    ],
    ids=["seconds", "a date to come", "a date that has passed"],
)
def test_a_retry_after_header_is_a_number_of_seconds_or_a_date(header: str, least: float, most: float) -> None:
    error = error_of_answer(503, {"Retry-After": header})
    assert isinstance(error, UnavailableError)
    assert error.retry_after is not None
    assert least <= error.retry_after <= most


@pytest.mark.parametrize("header", ["soon", "-1", "9" * 30, "", "Mon, 99 Foo 2020 99:99:99 GMT"])
def test_a_retry_after_header_that_is_neither_is_as_good_as_none(header: str) -> None:
    error = error_of_answer(503, {"Retry-After": header})
    assert isinstance(error, UnavailableError)
    assert error.retry_after is None


@BOTH
@pytest.mark.parametrize(("rejected", "message", "reason"), [(2, "bad ids", "bad ids"), (3, "", "no reason was given")])
def test_a_partial_success_is_one_rejection(
    receiver: Receiver,
    sink_of: Callable[..., OtlpSink],
    protocol: Wire,
    rejected: int,
    message: str,
    reason: str,
) -> None:
    receiver.order(PartialSuccess(rejected, message))
    assert sink_of(protocol).send(SPANS, DEADLINE) == [Rejection(None, rejected, reason)]


@BOTH
def test_no_more_can_be_rejected_than_were_sent(protocol: Wire) -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 1_000
    with answering_server(protocol, lambda _: None, response=response) as endpoint:
        sink = OtlpSink(endpoint, protocol=protocol, resource=RESOURCE)
        assert sink.send(SPANS, DEADLINE) == [Rejection(None, 3, "no reason was given")]
        sink.close()


@BOTH
def test_a_warning_is_logged_once_in_a_while_and_an_empty_partial_success_is_a_success(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], caplog: pytest.LogCaptureFixture, protocol: Wire
) -> None:
    receiver.order(PartialSuccess(0, ""))
    receiver.order(PartialSuccess(0, "your clock is late", times=2))
    sink = sink_of(protocol)
    for _ in range(3):
        assert sink.send(SPANS, DEADLINE) == []
    assert [record.getMessage() for record in caplog.records] == [
        f"{sink.endpoint} took the spans and warned: your clock is late"
    ]


@BOTH
def test_a_batch_that_is_too_large_for_the_endpoint_is_refused(protocol: Wire) -> None:
    with Receiver(max_request_bytes=200) as receiver:
        endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
        sink = OtlpSink(endpoint, protocol=protocol, resource=RESOURCE)
        error = raised_by(sink)
        sink.close()
    assert type(error) is RefusedError


@BOTH
def test_what_the_endpoint_repeats_of_our_headers_is_not_in_the_message(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], protocol: Wire
) -> None:
    said = f"no tenant has the key {SECRET},\n or Bearer {SECRET}"
    receiver.order(Refuse(http_status=401, grpc_code=grpc.StatusCode.UNAUTHENTICATED, message=said))
    sink = sink_of(protocol, headers={"authorization": f"Bearer {SECRET}", "tenant": "a", "empty": ""})
    assert ": no tenant has the key ***, or ***; look at" in str(raised_by(sink))


@pytest.mark.parametrize(
    ("status", "headers", "body", "says"),
    [
        (200, {"Content-Type": "text/html"}, b"<html>Log in</html>", "answered 200; look at the endpoint"),
        (200, {"Content-Type": "Text/Plain"}, b"", "answered 200; look at the endpoint"),
        (200, {"Content-Type": "text/plain"}, b"fine\xff", "answered 200: fine\ufffd; look at the endpoint"),
        (200, {}, b"<html>", "answered with no ExportTraceServiceResponse; look at the endpoint"),
        (200, {}, b"\0" * 2_000_000, "answered 200; look at the endpoint"),
        (302, {"Location": "https://login.example"}, b"", "answered 302; look at the endpoint"),
        (404, {"Content-Type": "application/x-protobuf"}, b"\xff", "answered 404; look at the endpoint"),
    ],
)
def test_an_answer_that_no_otlp_server_gives_is_no_success(
    status: int, headers: dict[str, str], body: bytes, says: str
) -> None:
    error = error_of_answer(status, headers, body)
    assert type(error) is MisconfiguredError
    assert f"/v1/traces {says}" in str(error)


def test_an_answer_that_is_no_response_is_no_success_over_grpc() -> None:
    with grpc_server(lambda _, __: b"\xff") as endpoint:
        sink = OtlpSink(endpoint, resource=RESOURCE)
        error = raised_by(sink)
        sink.close()
    assert type(error) is MisconfiguredError
    assert str(error).startswith(f"{endpoint} answered with no ExportTraceServiceResponse; look at the endpoint")


def test_a_zipped_answer_is_read() -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 1
    body = gzip.compress(response.SerializeToString())
    with web_server(200, {"Content-Encoding": "gzip"}, body) as endpoint:
        sink = OtlpSink(endpoint, protocol="http/protobuf", resource=RESOURCE)
        assert sink.send(SPANS, DEADLINE) == [Rejection(None, 1, "no reason was given")]
        sink.close()


def test_an_answer_that_cannot_be_unpacked_is_as_good_as_none() -> None:
    error = error_of_answer(200, {"Content-Encoding": "gzip"}, b"not gzip")
    assert type(error) is UnavailableError
    assert "cannot be reached: " in str(error)


def test_grpc_to_a_server_of_http_1_says_to_look_at_the_protocol(
    receiver: Receiver, make_sink: Callable[..., OtlpSink]
) -> None:
    error = raised_by(make_sink(receiver.http_endpoint, protocol="grpc"))
    assert type(error) is MisconfiguredError
    assert str(error).endswith("; look at the protocol, OTEL_EXPORTER_OTLP_PROTOCOL")


# What does not answer


@BOTH
def test_an_endpoint_that_is_away_is_unavailable_and_gets_the_spans_when_it_is_back(
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
def test_a_lost_answer_is_unavailable_though_the_spans_have_arrived(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], protocol: Wire
) -> None:
    receiver.order(Drop(kept=True))
    assert type(raised_by(sink_of(protocol))) is UnavailableError
    assert receiver.received == RECEIVED


@BOTH
def test_an_endpoint_that_is_late_is_unavailable_within_the_timeout_and_may_be_asked_again(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], protocol: Wire
) -> None:
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


def test_a_server_that_answers_byte_by_byte_is_cut_off_when_the_time_is_over() -> None:
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


def test_a_look_up_that_hangs_keeps_the_timeout_and_is_not_repeated_before_it_has_ended(
    monkeypatch: pytest.MonkeyPatch, make_sink: Callable[..., OtlpSink]
) -> None:
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


def test_an_answer_whose_end_is_the_connections_is_complete_with_its_head() -> None:
    """As HTTP has it: there is no other sign, and the status is in the head."""
    head = b"HTTP/1.0 200 OK\r\n\r\n"
    with answering(head + ANSWER, head, head[:-1]) as endpoint:
        sink = OtlpSink(endpoint, protocol="http/protobuf", resource=RESOURCE)
        assert sink.send(SPANS, DEADLINE) == [Rejection(None, 1, "bad")]
        assert sink.send(SPANS, DEADLINE) == []
        assert type(raised_by(sink)) is UnavailableError
        sink.close()


def test_a_connection_that_the_server_has_closed_meanwhile_costs_no_failure() -> None:
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


def test_where_no_thread_can_be_started_names_are_looked_up_all_the_same(
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
        (lambda context: context.abort(grpc.StatusCode.UNAVAILABLE, "q" * 5_000_000), "sent no answer that can be"),
        (lambda _: b"x" * 2_000_000, "sent no answer that can be read: RESOURCE_EXHAUSTED: "),
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


# Trust


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


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Self-signed certificates."""
    folder = tmp_path_factory.mktemp("tls")
    for name, alternative in (("server", "IP:127.0.0.1"), ("other", "DNS:other.example"), ("client", "DNS:client")):
        self_signed(folder, name, alternative)
    (folder / "both.pem").write_text((folder / "client.key").read_text() + (folder / "client.pem").read_text())
    (folder / "nonsense.pem").write_text("nonsense")
    return Certificates(
        server=f"{folder}/server.pem",
        server_key=f"{folder}/server.key",
        other=f"{folder}/other.pem",
        other_key=f"{folder}/other.key",
        client=f"{folder}/client.pem",
        client_key=f"{folder}/client.key",
        client_with_key=f"{folder}/both.pem",
        nonsense=f"{folder}/nonsense.pem",
    )


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


@BOTH
def test_a_server_that_is_trusted_gets_the_spans(
    certificates: Certificates, make_sink: Callable[..., OtlpSink], monkeypatch: pytest.MonkeyPatch, protocol: Wire
) -> None:
    # the environment's authorities do not go before ours
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificates.other)
    with tls_server(protocol, certificates.server, certificates.server_key) as endpoint:
        assert make_sink(endpoint, protocol=protocol, certificate=certificates.server).send(SPANS, DEADLINE) == []
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", certificates.server)
        assert make_sink(endpoint, protocol=protocol).send(SPANS, DEADLINE) == []


@BOTH
def test_a_server_that_is_not_trusted_gets_nothing_and_says_where_to_look(
    certificates: Certificates, make_sink: Callable[..., OtlpSink], protocol: Wire
) -> None:
    errors = []
    with tls_server(protocol, certificates.server, certificates.server_key) as endpoint:
        errors.append(raised_by(make_sink(endpoint, protocol=protocol)))
        errors.append(raised_by(make_sink(endpoint, protocol=protocol, certificate=certificates.nonsense)))
    with tls_server(protocol, certificates.other, certificates.other_key) as endpoint:
        errors.append(raised_by(make_sink(endpoint, protocol=protocol, certificate=certificates.other)))
    with Receiver() as plain:
        endpoint = (plain.grpc_endpoint if protocol == "grpc" else plain.http_endpoint).replace("http", "https")
        errors.append(raised_by(make_sink(endpoint, protocol=protocol)))
    for error in errors:
        assert type(error) is MisconfiguredError
        assert "; look at the endpoint's scheme, and at OTEL_EXPORTER_OTLP_CERTIFICATE, " in str(error)


@BOTH
def test_a_client_proves_who_it_is_with_a_certificate_and_a_key_in_one_file_or_two(
    certificates: Certificates, make_sink: Callable[..., OtlpSink], protocol: Wire
) -> None:
    options = {"protocol": protocol, "certificate": certificates.server}
    with tls_server(protocol, certificates.server, certificates.server_key, certificates.client) as endpoint:
        two = {"client_certificate": certificates.client, "client_key": certificates.client_key}
        assert make_sink(endpoint, **options, **two).send(SPANS, DEADLINE) == []
        one = {"client_certificate": certificates.client_with_key}
        assert make_sink(endpoint, **options, **one).send(SPANS, DEADLINE) == []
        assert isinstance(raised_by(make_sink(endpoint, **options)), UnavailableError)


@BOTH
def test_a_certificate_that_has_gone_since_is_held_until_it_is_back(
    certificates: Certificates, make_sink: Callable[..., OtlpSink], tmp_path: Path, protocol: Wire
) -> None:
    copy = tmp_path / "copy.pem"
    copy.write_bytes(read(certificates.server))
    with tls_server(protocol, certificates.server, certificates.server_key) as endpoint:
        sink = make_sink(endpoint, protocol=protocol, certificate=copy)
        copy.unlink()
        error = raised_by(sink)
        assert type(error) is MisconfiguredError
        assert str(copy) in str(error)
        copy.write_bytes(read(certificates.server))
        assert sink.send(SPANS, DEADLINE) == []


def test_a_connection_that_ends_in_the_handshake_is_no_matter_of_trust(make_sink: Callable[..., OtlpSink]) -> None:
    with raw_server(lambda connection: connection.recv(65_536)) as endpoint:
        error = raised_by(make_sink(endpoint.replace("http", "https"), protocol="http/protobuf"))
    assert type(error) is UnavailableError


# The process around it


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
from constellation_otel.transports.otlp.bounded_http import Clock
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


# Servers


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


def error_of_answer(status: int, headers: dict[str, str], body: bytes = b"") -> DeliveryError:
    """What is raised where this is what an HTTP server answers."""
    with web_server(status, headers, body) as endpoint:
        sink = OtlpSink(endpoint, protocol="http/protobuf", resource=RESOURCE)
        error = raised_by(sink)
        sink.close()
    return error


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
