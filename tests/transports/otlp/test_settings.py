"""Endpoints, URLs, headers and the standard variables."""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.version import __version__ as sdk_version

from constellation_otel.errors import (
    ConfigurationError,
)
from constellation_otel.receiver import Delay, Receiver
from constellation_otel.transports.otlp import OtlpSink, make_resource
from constellation_otel.transports.url import SinkOptions
from support import DEADLINE
from transports.otlp.helpers import BOTH, RESOURCE, SECRET, SPANS, Wire, raised_by

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
def test_a_given_endpoint_goes_before_the_variables(
    make_sink: Callable[..., OtlpSink], monkeypatch: pytest.MonkeyPatch, given: str, protocol: Wire, endpoint: str
) -> None:
    """It may have the signal's path."""
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
    sink = OtlpSink.from_url(url, SinkOptions(resource=RESOURCE))
    assert (sink.endpoint, sink.protocol) == (endpoint, "http/protobuf" if "+http" in url else "grpc")


def test_a_sink_from_a_url_has_its_headers_from_the_variables(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "tenant=blue")
    sink = OtlpSink.from_url(receiver.grpc_endpoint.replace("http", "otlp"), SinkOptions(resource=RESOURCE))
    sink.send(SPANS, DEADLINE)
    sink.close()
    assert receiver.requests[0].headers["tenant"] == "blue"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("otlp://user:s3cr3t@c", "the URL has a user or a password; credentials go into the headers"),
        ("otlp://s3cr3t@c", "the URL has a user or a password; credentials go into the headers"),
        ("otlp://c?key=s3cr3t", "the URL has a query or a fragment after otlp://c; leave it out"),
        ("otlp+http://c/a#s3cr3t", "the URL has a query or a fragment after otlp+http://c/a;"),
        ("otlp://", "the URL names no host: otlp:"),
        ("otlp://c:s3cr3t", "the URL is not a URL: its host or its port cannot be read"),
        ("otlp://[s3cr3t", "the URL is not a URL: its host or its port cannot be read"),
        (
            "otlp+http://c..d",
            "the URL has 'c..d' for a host; a host has letters, digits and hyphens between single dots",
        ),
        ("otlp+http://é", "the URL has 'é' for a host; a host has letters"),
        (f"otlp://{'c' * 64}", "the URL has 'cccc"),
        ("otlp://c/v1/traces", "otlp://c/v1/traces has a path, and gRPC has none; otlp+http:// is OTLP over HTTP"),
        ("http://c", "the URL does not begin with otlp:// or otlps:// or otlp+http:// or otlp+https://"),
        ("s3cr3t", "the URL does not begin with otlp://"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secret(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        OtlpSink.from_url(url, SinkOptions(resource=RESOURCE))
    assert str(refused.value).startswith(said)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ENDPOINT", "http://x:s3cr3t@c", "OTEL_EXPORTER_OTLP_ENDPOINT has a user or a password; "),
        ("TRACES_ENDPOINT", "ftp://c", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT does not begin with http:// or https://"),
        ("PROTOCOL", "http/json", "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'; use grpc or http/protobuf"),
        ("COMPRESSION", "zstd", "OTEL_EXPORTER_OTLP_COMPRESSION is 'zstd'; use none or gzip"),
        ("TIMEOUT", "soon", "OTEL_EXPORTER_OTLP_TIMEOUT is 'soon'; a positive number of seconds is needed"),
        ("TRACES_TIMEOUT", "0", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT is '0'; a positive number"),
        ("CERTIFICATE", "/no/such", "OTEL_EXPORTER_OTLP_CERTIFICATE is '/no/such', and there is no such file"),
        (
            "HEADERS",
            "a=1,s3cr3t",
            "entry 2 of OTEL_EXPORTER_OTLP_HEADERS is not name=value; write a list like: a=1",
        ),
        ("HEADERS", "s3cr3t key=1", "the name of header 1 in OTEL_EXPORTER_OTLP_HEADERS has characters that cannot be"),
        ("HEADERS", "a=s3cr3t%0A", "the value of a in OTEL_EXPORTER_OTLP_HEADERS has characters that cannot be sent"),
        (
            "HEADERS",
            "grpc-timeout=s3cr3t",
            "grpc-timeout in OTEL_EXPORTER_OTLP_HEADERS is a header that gRPC sets itself",
        ),
        (
            "HEADERS",
            "Content-Length=5",
            "content-length in OTEL_EXPORTER_OTLP_HEADERS is a header that HTTP sets itself",
        ),
        ("HEADERS", "te=5,a=b", "te in OTEL_EXPORTER_OTLP_HEADERS is a header that HTTP sets itself; leave it out"),
        ("HEADERS", "a-bin=s3cr3t", "a-bin in OTEL_EXPORTER_OTLP_HEADERS would be binary over gRPC, which is not"),
    ],
)
def test_a_variable_that_cannot_be_used_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    """Without secrets."""
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{variable}", value)
    with pytest.raises(ConfigurationError) as refused:
        OtlpSink(resource=RESOURCE)
    assert str(refused.value).startswith(said)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocol": "http"}, "protocol is 'http'; use grpc or http/protobuf"),
        ({"compression": "zip"}, "compression is 'zip'; use none or gzip"),
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
def test_headers_come_from_the_variables_percent_encoded(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], monkeypatch: pytest.MonkeyPatch, protocol: Wire
) -> None:
    """As OpenTelemetry Python reads them."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "general=unused")
    listed = "Api-Key=a%20b%2Cc=, x = y , authorization=Bearer a%20b,,empty="
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", listed)
    sink_of(protocol).send(SPANS, DEADLINE)
    headers = receiver.requests[0].headers
    expected = {"api-key": "a b,c=", "x": "y", "authorization": "Bearer a%20b", "empty": ""}
    assert {name: headers.get(name) for name in (*expected, "general")} == {**expected, "general": None}


def test_given_headers_replace_those_of_the_variables(
    receiver: Receiver, sink_of: Callable[..., OtlpSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But never the content type."""
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
def test_the_resource_has_nothing_of_the_process(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], argument: str | None, expected: dict[str, str]
) -> None:
    """Only what is configured."""
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    sdk = {"language": "python", "name": "opentelemetry", "version": sdk_version}
    assert dict(make_resource(argument).attributes) == {
        **{f"telemetry.sdk.{name}": value for name, value in sdk.items()},
        **expected,
    }


def test_a_timeout_that_looks_like_milliseconds_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The specification has milliseconds, OpenTelemetry Python has seconds."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10000")
    OtlpSink(resource=RESOURCE).close()
    assert caplog.messages == [
        "OTEL_EXPORTER_OTLP_TIMEOUT is 10000: these are seconds, as OpenTelemetry Python has them, not milliseconds"
    ]


def test_a_resource_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"OTEL_RESOURCE_ATTRIBUTES is not UTF-8; correct it$"):
        make_resource("\udcff")
