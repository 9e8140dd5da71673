"""Where an OTLP endpoint is and how to reach it, from arguments, the standard variables and URLs.

What is given overrides ``OTEL_EXPORTER_OTLP_TRACES_*`` (or ``_METRICS_``, ``_LOGS_``), and
that overrides ``OTEL_EXPORTER_OTLP_*``.
Nothing here connects.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from base64 import b64encode
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast
from urllib.parse import SplitResult, unquote
from urllib.request import getproxies, proxy_bypass

from msgspec import Struct

from constellation_otel._support.log import log
from constellation_otel._support.scope import SCOPE_VERSION
from constellation_otel._support.text import printable
from constellation_otel.errors import ConfigurationError, UnavailableError
from constellation_otel.transports.url import Secrets, split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "LOOK_AT_CERTIFICATES",
    "LOOK_AT_ENDPOINT",
    "LOOK_AT_HEADERS",
    "LOOK_AT_PROTOCOL",
    "LOOK_AT_PROXY",
    "MAX_ANSWER",
    "NO_REASON",
    "USER_AGENT",
    "Compression",
    "FarSide",
    "Proxy",
    "Signal",
    "WireProtocol",
    "endpoint_of_url",
    "far_side_of",
    "remaining",
]

WireProtocol: TypeAlias = Literal["grpc", "http/protobuf"]
Compression: TypeAlias = Literal["none", "gzip"]
Signal: TypeAlias = Literal["traces", "metrics", "logs"]

_LOGGER: Final = logging.getLogger(__package__)
USER_AGENT: Final = f"constellation-otel/{SCOPE_VERSION}"
MAX_ANSWER: Final = 1024 * 1024
"""Bytes of an answer that is read, at most."""
NO_REASON: Final = "no reason was given"

LOOK_AT_ENDPOINT: Final = "check the endpoint, OTEL_EXPORTER_OTLP_ENDPOINT: an OTLP server does not answer like this"
LOOK_AT_HEADERS: Final = "check the headers, OTEL_EXPORTER_OTLP_HEADERS, which have the credentials"
LOOK_AT_PROTOCOL: Final = "check the protocol, OTEL_EXPORTER_OTLP_PROTOCOL"
LOOK_AT_PROXY: Final = "check the proxy's URL and its credentials"
LOOK_AT_CERTIFICATES: Final = (
    "check the endpoint's scheme, and OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE and _CLIENT_KEY"
)

_LEAST_TIMEOUT: Final = 0.01
"""Seconds that a request gets where encoding has taken all of its time: a timeout of 0 means another thing to many."""
_DEFAULT_TIMEOUT: Final = 10.0
_MAX_TIMEOUT: Final = 86_400.0
_IN_MILLISECONDS: Final = 1_000.0
"""From which on a timeout was probably meant in milliseconds, as the specification has them."""
_SHORTEST_SECRET: Final = 4
"""Characters of a header's value, at least, for it to be one; a tenant's number would be part of everything."""
_MAX_SAID: Final = 300
"""Characters of an endpoint's answer, at most, in an error's message."""


class Proxy(Struct, frozen=True):
    """An HTTP proxy of the environment.

    Attributes:
        url: Where it is, without its credentials.
        credentials: ``user:password`` as its URL has them, percent-encoded; empty where there are none.
    """

    url: str
    credentials: str

    @property
    def headers(self) -> dict[str, str]:
        """The header that authenticates with the proxy."""
        return {"proxy-authorization": f"Basic {self._token}"} if self.credentials else {}

    @property
    def secrets(self) -> tuple[str, ...]:
        """Everything that may not be repeated, as it may be written."""
        user, _, password = self.credentials.partition(":")
        found = (self.credentials, password, self._decoded, unquote(password), self._token)
        # a user without a password is a token
        return found if password else (*found, user, unquote(user))

    @property
    def _decoded(self) -> str:
        return unquote(self.credentials)

    @property
    def _token(self) -> str:
        # undecodable bytes of the variable as they were
        return b64encode(self._decoded.encode(errors="surrogateescape")).decode()

    def __repr__(self) -> str:
        return f"Proxy({self.url!r})"


class FarSide(Struct, frozen=True):
    """An endpoint and how to reach it; the same for both protocols."""

    protocol: WireProtocol
    endpoint: SplitResult
    headers: dict[str, str]
    is_zipped: bool
    timeout: float
    certificate: str | None
    client_key: str | None
    client_certificate: str | None
    proxy: Proxy | None

    @property
    def url(self) -> str:
        return self.endpoint.geturl()

    def __repr__(self) -> str:
        # no headers and no proxy, which have secrets
        return f"FarSide({self.protocol!r}, {self.url!r})"

    def no_answer(self) -> UnavailableError:
        """What is raised where no answer came in time."""
        return UnavailableError(f"{self.url} did not answer in time")

    def quoted(self, said: str) -> str:
        """What the endpoint answered: on one line, cut, and without our headers' values."""
        return printable(" ".join(self.hidden(said).split()))[:_MAX_SAID]

    def hidden(self, text: str) -> str:
        """A text without what it has of our headers' values and of the proxy's credentials."""
        # of "Bearer token", the token alone is secret, too
        secrets = [secret for value in self.headers.values() for secret in (value, value.rpartition(" ")[2])]
        secrets += self.proxy.secrets if self.proxy else ()
        return Secrets(secrets, shortest=_SHORTEST_SECRET).hide(text)


def far_side_of(
    endpoint: str | None,
    *,
    signal: Signal = "traces",
    protocol: WireProtocol | None,
    headers: Mapping[str, str] | None,
    compression: Compression | None,
    timeout: float | None,
    certificate: str | os.PathLike[str] | None,
    client_key: str | os.PathLike[str] | None,
    client_certificate: str | os.PathLike[str] | None,
) -> FarSide:
    """Completes what is given by the variables; :class:`~constellation_otel.transports.otlp.OtlpSink` says how.

    Raises:
        ConfigurationError: An argument, or a variable, cannot be used.
    """
    protocol = _chosen_protocol(signal, protocol)
    url = _chosen_endpoint(signal, endpoint, protocol)
    far_side = FarSide(
        protocol=protocol,
        endpoint=url,
        headers=_chosen_headers(signal, headers, protocol),
        is_zipped=_chosen_compression(signal, compression) == "gzip",
        timeout=_chosen_timeout(signal, timeout),
        certificate=_chosen_file(signal, "certificate", certificate),
        client_key=_chosen_file(signal, "client_key", client_key),
        client_certificate=_chosen_file(signal, "client_certificate", client_certificate),
        proxy=_chosen_proxy(url, protocol),
    )
    if far_side.client_key is not None and far_side.client_certificate is None:
        message = "client_key is given without client_certificate; give both, or neither"
        raise ConfigurationError(message)
    return far_side


def remaining(deadline: float) -> float:
    """Seconds until a monotonic time, and a few milliseconds where it is over."""
    return max(_LEAST_TIMEOUT, deadline - time.monotonic())


def endpoint_of_url(url: str) -> tuple[str, WireProtocol]:
    """Takes a sink's URL apart, as :meth:`~constellation_otel.transports.otlp.OtlpSink.from_url` has it.

    Raises:
        ConfigurationError: The URL cannot be used.
    """
    parsed = _parsed(url, "the URL", _URL_SCHEMES)
    protocol, scheme, port = _URL_SCHEMES[parsed.scheme]
    if protocol == "grpc" and parsed.path not in {"", "/"}:
        message = f"{_printable(parsed)} has a path, and gRPC has none; otlp+http:// is OTLP over HTTP"
        raise ConfigurationError(message)
    netloc = parsed.netloc if parsed.port is not None else f"{parsed.netloc.removesuffix(':')}:{port}"
    return parsed._replace(scheme=scheme, netloc=netloc).geturl(), protocol


def _variable(signal: Signal, name: str) -> tuple[str, str] | None:
    """The variable that counts, and its value; an empty one is as good as none."""
    for variable in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        if value := os.environ.get(variable, "").strip():
            return variable, value
    return None


def _chosen(signal: Signal, what: str, given: str | None, default: str, choices: Sequence[str]) -> str:
    if given is not None:
        value = given
    elif found := _variable(signal, what.upper()):
        what, value = found[0], found[1].lower()
    else:
        value = default
    if value not in choices:
        message = f"{what} is {value!r}; use {' or '.join(choices)}"
        raise ConfigurationError(message)
    return value


def _chosen_protocol(signal: Signal, given: WireProtocol | None) -> WireProtocol:
    return cast("WireProtocol", _chosen(signal, "protocol", given, "grpc", ("grpc", "http/protobuf")))


def _chosen_compression(signal: Signal, given: Compression | None) -> Compression:
    return cast("Compression", _chosen(signal, "compression", given, "none", ("none", "gzip")))


def _chosen_timeout(signal: Signal, given: float | None) -> float:
    what, value = "timeout", str(given)
    if given is None:
        found = _variable(signal, "TIMEOUT")
        if found is None:
            return _DEFAULT_TIMEOUT
        what, value = found
    try:
        timeout = float(value)
    except ValueError:
        timeout = math.nan
    if not 0 < timeout <= _MAX_TIMEOUT:
        message = f"{what} is {value!r}; a positive number of seconds is needed, {_MAX_TIMEOUT:.0f} at most"
        raise ConfigurationError(message)
    if given is None and signal == "traces" and timeout >= _IN_MILLISECONDS:
        message = "%s is %s: these are seconds, as OpenTelemetry Python has them, not milliseconds"
        log(_LOGGER, logging.WARNING, message, what, value)
    return timeout


def _chosen_file(signal: Signal, what: str, given: str | os.PathLike[str] | None) -> str | None:
    if given is not None:
        path = os.fspath(given)
    elif found := _variable(signal, what.upper()):
        what, path = found
    else:
        return None
    if not Path(path).is_file():
        message = f"{what} is {path!r}, and there is no such file"
        raise ConfigurationError(message)
    return path


def _chosen_endpoint(signal: Signal, given: str | None, protocol: WireProtocol) -> SplitResult:
    what, text = "endpoint", given
    if text is None:
        default = "http://localhost:4317" if protocol == "grpc" else "http://localhost:4318"
        what, text = _variable(signal, "ENDPOINT") or (what, default)
    if protocol == "grpc" and "://" not in text:
        insecure = _variable(signal, "INSECURE")
        is_insecure = insecure is not None and insecure[1].lower() == "true"
        text = f"{'http' if is_insecure else 'https'}://{text}"
    url = _parsed(text, what, _ENDPOINT_SCHEMES)
    if protocol == "grpc":
        return url._replace(path="")
    if what == f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT":
        return url._replace(path=url.path or "/")
    base, path = url.path.rstrip("/"), f"/v1/{signal}"
    is_whole = given is not None and base.endswith(path)
    return url._replace(path=base if is_whole else base + path)


def _chosen_proxy(endpoint: SplitResult, protocol: WireProtocol) -> Proxy | None:
    """The proxy of the environment: gRPC's variables as gRPC reads them, else as the standard library does."""
    if protocol == "grpc":
        found = {name: os.environ[name].strip() for name in _GRPC_PROXIES if os.environ.get(name, "").strip()}
    else:
        proxies = getproxies()
        found = {
            f"{kind}_proxy": proxies[kind].strip() for kind in (endpoint.scheme, "all") if proxies.get(kind, "").strip()
        }
    if not found or _is_direct(endpoint, protocol):
        return None
    what, text = next(iter(found.items()))
    what = next((name for name in (what, what.upper()) if os.environ.get(name)), what)
    if "://" not in text:
        text = f"http://{text}"
    unusable = f"{what} is not the URL of a proxy; use http://host:port or http://user:password@host:port"
    url = split(text, unusable)
    if not _HOST.fullmatch(url.hostname or ""):
        raise ConfigurationError(unusable)
    if url.scheme not in (("http",) if protocol == "grpc" else ("http", "https")):
        message = (
            f"{what} names a proxy of a kind that OTLP over {protocol} cannot use; use http://host:port, or list"
            " the endpoint's host in no_proxy"
        )
        raise ConfigurationError(message)
    credentials, _, host = url.netloc.rpartition("@")
    return Proxy(f"{url.scheme}://{host if url.port else host.removesuffix(':')}", credentials)


def _is_direct(endpoint: SplitResult, protocol: WireProtocol) -> bool:
    """Whether an endpoint is among those that are connected to without a proxy."""
    host = str(endpoint.hostname)
    if proxy_bypass(f"{host}:{endpoint.port}" if endpoint.port else host):
        return True
    listed = getproxies().get("no", "")
    if protocol == "grpc":
        listed = os.environ.get(_GRPC_DIRECT, "") or listed
    for entry in listed.split(","):
        # the standard library knows no networks
        with suppress(ValueError):
            if ip_address(host) in ip_network(entry.strip(), strict=False):
                return True
    return False


_GRPC_DIRECT: Final = "no_grpc_proxy"
_GRPC_PROXIES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
_ENDPOINT_SCHEMES: Final = ("http", "https")
_URL_SCHEMES: Final[dict[str, tuple[WireProtocol, str, int]]] = {
    "otlp": ("grpc", "http", 4317),
    "otlps": ("grpc", "https", 4317),
    "otlp+http": ("http/protobuf", "http", 4318),
    "otlp+https": ("http/protobuf", "https", 4318),
}
"""The protocol, the endpoint's scheme and the port of each scheme that a sink's URL may have."""


def _parsed(text: str, what: str, schemes: Sequence[str] | Mapping[str, object]) -> SplitResult:
    """A URL of which nothing is secret; the messages have no part of it that could be."""
    url = split(
        text, f"{what} is not a URL: its host or its port cannot be read; give {next(iter(schemes))}://host:port"
    )
    if url.username is not None or url.password is not None:
        message = f"{what} has a user or a password; credentials go into the headers, OTEL_EXPORTER_OTLP_HEADERS"
    elif url.scheme not in schemes:
        message = f"{what} does not begin with {' or '.join(f'{scheme}://' for scheme in schemes)}"
    elif not url.hostname:
        message = f"{what} names no host: {_printable(url)}"
    elif not _HOST.fullmatch(url.hostname):
        message = f"{what} has {url.hostname!r} for a host; a host has letters, digits and hyphens between single dots"
    elif not url.path.isprintable():
        message = f"{what} has a path with characters that cannot be sent: {url.path!r}"
    elif url.query or url.fragment:
        message = f"{what} has a query or a fragment after {_printable(url)}; leave it out"
    else:
        return url
    raise ConfigurationError(message)


_HOST: Final = re.compile(r"[0-9a-z_-]{1,63}(\.[0-9a-z_-]{1,63})*\.?|[0-9a-f.]*:[0-9a-f:.]*(%[0-9a-z._-]+)?")
"""A name, or an address of either kind; urlsplit has it in lower case and without brackets."""


def _printable(url: SplitResult) -> str:
    return url._replace(query="", fragment="").geturl()


_OF_HTTP: Final = frozenset(
    {
        *("connection", "content-encoding", "content-length", "expect"),
        *("keep-alive", "te", "trailer", "transfer-encoding", "upgrade"),
    }
)
"""Say how the body or the connection is to be read: another value, and a server refuses for good what it could take."""


def _chosen_headers(signal: Signal, given: Mapping[str, str] | None, protocol: WireProtocol) -> dict[str, str]:
    """Names in lower case and their values; an error's message has no value in it, nor what may be one."""
    what, pairs = "headers", list((given or {}).items())
    if given is None and (found := _variable(signal, "HEADERS")):
        what, pairs = found[0], _header_list(*found)
    headers = {}
    for number, (name, value) in enumerate(pairs, 1):
        name = name.lower()  # noqa: PLW2901 - it is the same name
        if not _HEADER_NAME.fullmatch(name):
            message = f"the name of header {number} in {what} has characters that cannot be sent"
            raise ConfigurationError(message)
        if name in _OF_HTTP or (protocol == "grpc" and name.startswith("grpc-")):
            whose = "HTTP" if name in _OF_HTTP else "gRPC"
            message = f"{name} in {what} is a header that {whose} sets itself; leave it out"
            raise ConfigurationError(message)
        if protocol == "grpc" and name.endswith("-bin"):
            message = f"{name} in {what} would be binary over gRPC, which is not supported; leave it out"
            raise ConfigurationError(message)
        if not _HEADER_VALUE.fullmatch(value):
            message = f"the value of {name} in {what} has characters that cannot be sent; use printable ASCII only"
            raise ConfigurationError(message)
        headers[name] = value
    return headers


_HEADER_NAME: Final = re.compile(r"[0-9a-z_.-]+")
"""What gRPC metadata may be called; HTTP would allow a little more."""
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]*")


def _header_list(variable: str, text: str) -> list[tuple[str, str]]:
    """Headers from a variable, as OpenTelemetry Python reads them: percent-decoded unless there is a space."""
    pairs = []
    for number, entry in enumerate(text.split(","), 1):
        if not entry.strip():
            continue
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not equals:
            message = f"entry {number} of {variable} is not name=value; write a list like: a=1,b=2"
            raise ConfigurationError(message)
        is_encoded = " " not in value
        pairs.append((unquote(name), unquote(value)) if is_encoded else (name, value))
    return pairs
