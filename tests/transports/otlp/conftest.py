"""Fixtures of the tests of otlp."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from constellation_otel.transports.otlp import OtlpSink
from support import self_signed
from transports.otlp.helpers import RESOURCE, Certificates, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from constellation_otel.receiver import Receiver


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
