"""TLS: whom to trust, and who the client is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from constellation_otel.errors import (
    MisconfiguredError,
    UnavailableError,
)
from constellation_otel.receiver import Receiver
from support import DEADLINE
from transports.otlp.helpers import BOTH, SPANS, Certificates, Wire, raised_by, raw_server, read, tls_server

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from constellation_otel.transports.otlp import OtlpSink


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
def test_a_server_that_is_not_trusted_gets_nothing(
    certificates: Certificates, make_sink: Callable[..., OtlpSink], protocol: Wire
) -> None:
    """The error says where to look."""
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
        assert "; check the endpoint's scheme, and OTEL_EXPORTER_OTLP_CERTIFICATE, " in str(error)


@BOTH
def test_a_client_proves_who_it_is_with_a_certificate(
    certificates: Certificates, make_sink: Callable[..., OtlpSink], protocol: Wire
) -> None:
    """With its key in the same file, or in one of its own."""
    options = {"protocol": protocol, "certificate": certificates.server}
    with tls_server(protocol, certificates.server, certificates.server_key, certificates.client) as endpoint:
        two = {"client_certificate": certificates.client, "client_key": certificates.client_key}
        assert make_sink(endpoint, **options, **two).send(SPANS, DEADLINE) == []
        one = {"client_certificate": certificates.client_with_key}
        assert make_sink(endpoint, **options, **one).send(SPANS, DEADLINE) == []
        assert isinstance(raised_by(make_sink(endpoint, **options)), UnavailableError)


@BOTH
def test_spans_are_held_while_a_certificate_is_not_there(
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


@pytest.mark.parametrize("last_words", [b"", b"\x15\x03\x03\x00\x02\x01\x00"], ids=["nothing", "close_notify"])
def test_eof_in_the_tls_handshake_is_not_a_matter_of_trust(
    last_words: bytes, make_sink: Callable[..., OtlpSink]
) -> None:
    """Whether or not it is announced."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(last_words)

    with raw_server(serve) as endpoint:
        error = raised_by(make_sink(endpoint.replace("http", "https"), protocol="http/protobuf"))
    assert type(error) is UnavailableError
