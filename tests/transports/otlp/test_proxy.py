"""The proxies of the environment."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest

from constellation_otel.errors import (
    ConfigurationError,
    MisconfiguredError,
)
from constellation_otel.transports.otlp import OtlpSink
from support import DEADLINE
from transports.otlp.helpers import BOTH, RECEIVED, RESOURCE, SECRET, SPANS, Certificates, Wire, raised_by, tls_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from constellation_otel.receiver import Receiver


USE_PROXY = "http://host:port or http://user:password@host:port"


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
def test_the_proxy_of_the_environment_is_used_with_its_credentials(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, variable: str, user: str, token: str | None
) -> None:
    """Over HTTP."""
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
    assert str(error).endswith("; check the proxy's URL and its credentials")
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
def test_a_proxy_that_cannot_be_used_is_refused_without_secrets(
    monkeypatch: pytest.MonkeyPatch, protocol: Wire, value: str, said: str
) -> None:
    """By the name of its variable."""
    monkeypatch.setenv("http_proxy", value)
    with pytest.raises(ConfigurationError) as refused:
        OtlpSink("http://c:1", protocol=protocol, resource=RESOURCE)
    assert str(refused.value).startswith(f"http_proxy {said}")
    assert SECRET not in str(refused.value)
