"""Finished spans to an OTLP endpoint, over gRPC or HTTP, acknowledged.

A batch is safe when :meth:`OtlpSink.send` returns. What becomes of it otherwise
goes by the far side's answer:

====================  ===========================================  ==========================================
what is raised        gRPC                                         HTTP
====================  ===========================================  ==========================================
UnavailableError      CANCELLED, DEADLINE_EXCEEDED, ABORTED,       408, 425, 429, 500 to 599 but for those
                      OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS;        below; no connection, no answer in time
                      RESOURCE_EXHAUSTED with a RetryInfo;
                      UNKNOWN, INTERNAL
RefusedError          INVALID_ARGUMENT, ALREADY_EXISTS,            400, 413, 422
                      FAILED_PRECONDITION; RESOURCE_EXHAUSTED
                      without a RetryInfo
MisconfiguredError    UNAUTHENTICATED, PERMISSION_DENIED,          every other status but 200: redirections,
                      UNIMPLEMENTED, NOT_FOUND; no trust           401, 403, 404, 405, 415, 501, 505, 511; 200
                      between the two                              with another body; no trust between the two
====================  ===========================================  ==========================================

These are the rules of the OTLP specification (https://opentelemetry.io/docs/specs/otlp,
the sections on failures) but for one: it has clients drop what was answered with UNKNOWN,
INTERNAL or 500. Such an answer may be about the data, but it is also what comes of a
stream that was reset, from a server whose storage is away, and from a proxy whose
collector is. So what got it is held.

Only a whole answer is one. Over HTTP that is its head and the body that the head
announces; with neither length nor chunks the body ends with the connection, as HTTP has
it. What gRPC's client makes up itself, of an answer that it cannot read, is an
UnavailableError.

Where the endpoint is, and what else is configured, is found out in ``_otlp_settings``.
"""

from __future__ import annotations

import gzip
import logging
import re
import ssl
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import grpc
import urllib3
from google.protobuf.message import DecodeError as ProtobufDecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # stubs without py.typed
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # stubs without py.typed
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import (
    SERVICE_NAME,
    TELEMETRY_SDK_LANGUAGE,
    TELEMETRY_SDK_NAME,
    TELEMETRY_SDK_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.version import __version__ as _SDK_VERSION  # noqa: N812 - a constant, whatever its name

from constellation_otel._support.deadline import deadline_of
from constellation_otel._support.fork import after_fork_in_child
from constellation_otel._support.log import RateLimitedLog
from constellation_otel._support.scope import SCOPE_VERSION
from constellation_otel.delivery import Rejection
from constellation_otel.errors import (
    ConfigurationError,
    DeliveryError,
    MisconfiguredError,
    RefusedError,
    UnavailableError,
)
from constellation_otel.transports.otlp.bounded_http import Clock, Connection, TlsConnection
from constellation_otel.transports.otlp.encoding import encode_request
from constellation_otel.transports.otlp.settings import FarSide, endpoint_of_url, far_side_of

with suppress(ImportError):
    # the first channel would: a fork during that leaves it half made in the child
    import grpc._channel
    import grpc.experimental

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from constellation_otel.traces import Span
    from constellation_otel.transports.otlp.settings import Compression, WireProtocol

__all__ = ["OtlpSink", "credentials_of", "make_resource", "proxy_options"]

_LOG: Final = logging.getLogger(__name__)
_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_USER_AGENT: Final = f"constellation-otel/{SCOPE_VERSION}"
_DEFAULT_SERVICE_NAME: Final = "constellation"
_LEAST_TIMEOUT: Final = 0.01
"""Seconds that a request gets where encoding has taken all of its time: a timeout of 0 means another thing to many."""
_MAX_RECONNECT_MS: Final = 5_000
"""Milliseconds, at most, until gRPC tries a collector that was away again; its own default is two minutes."""
_MAX_ANSWER: Final = 1024 * 1024
_MAX_STATUS: Final = 4 * 1024 * 1024
"""Bytes of a gRPC status with all that comes with it."""
_NO_REASON: Final = "no reason was given"

_LOOK_AT_ENDPOINT: Final = "look at the endpoint, OTEL_EXPORTER_OTLP_ENDPOINT: an OTLP server does not answer so"
_LOOK_AT_HEADERS: Final = "look at the headers, OTEL_EXPORTER_OTLP_HEADERS, which have the credentials"
_LOOK_AT_PROTOCOL: Final = "look at the protocol, OTEL_EXPORTER_OTLP_PROTOCOL"
_LOOK_AT_PROXY: Final = "look at the proxy's URL and its credentials"
_PROXY_REFUSAL: Final = "Tunnel connection failed: 407"
_LOOK_AT_CERTIFICATES: Final = (
    "look at the endpoint's scheme, and at OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE and _CLIENT_KEY"
)


def make_resource(service_name: str | None = None) -> Resource:
    """Says what sends the spans, in a way that is the same after a restart and in every replica.

    A repeated span is only the same span with the same resource. So there is nothing of
    the process in it, and no ``service.instance.id``, unless OTEL_RESOURCE_ATTRIBUTES has it.

    Args:
        service_name: The service; otherwise OTEL_SERVICE_NAME, then what
            OTEL_RESOURCE_ATTRIBUTES says, then ``constellation``.

    Returns:
        What OTEL_RESOURCE_ATTRIBUTES has, ``service.name`` and ``telemetry.sdk.*``.

    Raises:
        ConfigurationError: One of these is not UTF-8.
    """
    attributes = {
        TELEMETRY_SDK_LANGUAGE: "python",
        TELEMETRY_SDK_NAME: "opentelemetry",
        TELEMETRY_SDK_VERSION: _SDK_VERSION,
        **OTELResourceDetector().detect().attributes,
    }
    attributes[SERVICE_NAME] = service_name or attributes.get(SERVICE_NAME) or _DEFAULT_SERVICE_NAME
    try:
        "".join(f"{name}{value}" for name, value in attributes.items()).encode()
    except UnicodeEncodeError:
        message = "the service's name, OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES is not UTF-8; correct it"
        raise ConfigurationError(message) from None
    return Resource(attributes)


class OtlpSink:
    """Sends spans to an OTLP endpoint; a :class:`~constellation_otel.delivery.contract.Sink`.

    What is not given comes from the standard variables, ``OTEL_EXPORTER_OTLP_TRACES_*``
    before ``OTEL_EXPORTER_OTLP_*``, read when the sink is made. Nothing is connected
    before the first :meth:`send`. A forked child makes connections of its own. Over
    HTTP the proxies of the environment are used as requests does.

    Args:
        endpoint: ``http://`` or ``https://``, host and port. Over HTTP ``/v1/traces`` is
            appended where it does not end so, as it is to OTEL_EXPORTER_OTLP_ENDPOINT, and
            is not to OTEL_EXPORTER_OTLP_TRACES_ENDPOINT. Over gRPC a path means nothing, and
            without a scheme OTEL_EXPORTER_OTLP_INSECURE says whether to do without TLS.
        protocol: ``grpc`` where the variables are silent, too.
        resource: What sends the spans, as :func:`make_resource` has it.
        headers: Sent with every request, as gRPC metadata or HTTP headers.
        compression: ``none`` where the variables are silent, too.
        timeout: Seconds for one request, at most; 10 where the variables, in seconds too as
            OpenTelemetry Python has them, are silent.
        certificate: A PEM file: whom to trust, instead of the well-known authorities.
        client_key: A PEM file: the client's key, where ``client_certificate`` has it not.
        client_certificate: A PEM file: how the client proves who it is.

    Raises:
        ConfigurationError: One of these, or a variable, cannot be used.
    """

    name: Final = "otlp"
    takes: Final = "spans"
    max_batch: Final = 512

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        protocol: WireProtocol | None = None,
        resource: Resource,
        headers: Mapping[str, str] | None = None,
        compression: Compression | None = None,
        timeout: float | None = None,
        certificate: str | os.PathLike[str] | None = None,
        client_key: str | os.PathLike[str] | None = None,
        client_certificate: str | os.PathLike[str] | None = None,
    ) -> None:
        self._resource = resource
        self._far_side = far_side_of(
            endpoint,
            protocol=protocol,
            headers=headers,
            compression=compression,
            timeout=timeout,
            certificate=certificate,
            client_key=client_key,
            client_certificate=client_certificate,
        )
        self._transport: _Transport = (_Grpc if self.protocol == "grpc" else _Http)(self._far_side)
        self._log = RateLimitedLog()
        after_fork_in_child(self._transport.forget)

    @classmethod
    def from_url(cls, url: str, *, resource: Resource) -> OtlpSink:
        """Makes a sink from a URL; what that does not say comes from the standard variables.

        Args:
            url: ``otlp://host`` (gRPC without TLS), ``otlps://host`` (gRPC with TLS),
                ``otlp+http://host`` or ``otlp+https://host``; then a port if it is not 4317
                (gRPC) or 4318 (HTTP), and over HTTP a path that ``/v1/traces`` is appended to.
            resource: What sends the spans.

        Raises:
            ConfigurationError: The URL, or a variable, cannot be used.
        """
        endpoint, protocol = endpoint_of_url(url)
        return cls(endpoint, protocol=protocol, resource=resource)

    @property
    def endpoint(self) -> str:
        """Where the spans go, as a URL; it has no secret in it."""
        return self._far_side.url

    @property
    def protocol(self) -> WireProtocol:
        """What the endpoint is spoken to in."""
        return self._far_side.protocol

    def send(self, items: Sequence[Span], timeout: float) -> Sequence[Rejection]:
        """Sends spans in one request.

        Args:
            items: One or more. Sent again they are the same bytes, which a backend that
                knows spans by their ids shows once.
            timeout: Seconds, for everything.

        Returns:
            One rejection where the endpoint tells of a partial success.

        Raises:
            UnavailableError: Send them again, later.
            MisconfiguredError: The same, when somebody has mended it.
            RefusedError: The endpoint refuses them for good, or so many at once.
        """
        deadline = deadline_of(min(timeout, self._far_side.timeout))
        body = encode_request(items, self._resource)
        answer = self._transport.export(body, deadline)
        try:
            partial_success = ExportTraceServiceResponse.FromString(answer).partial_success
        except ProtobufDecodeError:
            message = f"{self.endpoint} answered with no ExportTraceServiceResponse; {_LOOK_AT_ENDPOINT}"
            raise MisconfiguredError(message) from None
        said = self._far_side.quoted(partial_success.error_message)
        if partial_success.rejected_spans > 0:
            count = min(partial_success.rejected_spans, len(items))
            return [Rejection(None, count, said or _NO_REASON)]
        if said:
            self._log.write(_LOG, logging.WARNING, "warned", "%s took the spans and warned: %s", self.endpoint, said)
        return []

    def close(self) -> None:
        """Closes the connections. :meth:`send` would open new ones."""
        self._transport.close()


class _Transport(Protocol):
    """Gets a request's bytes to the far side and the answer's bytes back, or raises a DeliveryError."""

    def export(self, body: bytes, deadline: float) -> bytes:
        """Sends; ``deadline`` is in seconds of the monotonic clock."""

    def close(self) -> None:
        """Closes what is open."""

    def forget(self) -> None:
        """Leaves what is open to the process that this one was forked from."""


def _remaining(deadline: float) -> float:
    return max(_LEAST_TIMEOUT, deadline - time.monotonic())


def _no_answer(far_side: FarSide) -> UnavailableError:
    return UnavailableError(f"{far_side.url} did not answer in time")


class _Grpc:
    """OTLP/gRPC."""

    def __init__(self, far_side: FarSide) -> None:
        self._far_side = far_side
        self._metadata = tuple(far_side.headers.items())
        self._compression = grpc.Compression.Gzip if far_side.is_zipped else grpc.Compression.NoCompression
        self._channel: grpc.Channel | None = None
        self._inherited: tuple[Any, grpc.Channel | None] | None = None

    def export(self, body: bytes, deadline: float) -> bytes:
        if self._channel is None:
            self._channel = self._new_channel()
        # without serializers, which the stubs want to see, it is from bytes to bytes
        method: Callable[..., bytes] = cast("Any", self._channel).unary_unary(_METHOD)
        try:
            return method(body, timeout=_remaining(deadline), metadata=self._metadata, compression=self._compression)
        except grpc.RpcError as error:
            call = cast("grpc.Call", error)
            if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                # whoever is at the other end of this connection may be gone without a word
                self.close()
            # the call's own words are all in the message, cleared of secrets
            raise _grpc_error(self._far_side, call) from None

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def forget(self) -> None:
        # kept, since letting go of it would close it
        self._inherited = (self._inherited, self._channel)
        self._channel = None

    def _new_channel(self) -> grpc.Channel:
        options = [
            ("grpc.primary_user_agent", _USER_AGENT),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", _MAX_ANSWER),
            # a status that is longer would be replaced by one that the client makes up
            ("grpc.max_metadata_size", _MAX_STATUS),
            ("grpc.absolute_max_metadata_size", _MAX_STATUS),
            ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_MS),
            # a shared one would be the parent's connection in a forked child
            ("grpc.use_local_subchannel_pool", 1),
            *proxy_options(self._far_side),
        ]
        target = self._far_side.endpoint.netloc
        if self._far_side.endpoint.scheme == "http":
            return grpc.insecure_channel(target, options)
        try:
            credentials = credentials_of(self._far_side)
        except OSError as error:
            message = f"{self._far_side.url} cannot be connected to: {error}; {_LOOK_AT_CERTIFICATES}"
            raise MisconfiguredError(message) from None
        return grpc.secure_channel(target, credentials, options)


def credentials_of(far_side: FarSide) -> grpc.ChannelCredentials:
    """GRPC's credentials for an endpoint with TLS.

    Raises:
        OSError: A file cannot be read.
    """
    certificate = far_side.client_certificate
    return grpc.ssl_channel_credentials(
        _contents(far_side.certificate),
        # gRPC would abort the process if it got one of the two without the other
        _contents(far_side.client_key or certificate),
        _contents(certificate),
    )


def proxy_options(far_side: FarSide) -> list[tuple[str, Any]]:
    """Options of a channel, without which gRPC would read the variables itself, and print one that it cannot use."""
    proxy = far_side.proxy
    if proxy is None:
        return [("grpc.enable_http_proxy", 0)]
    return [
        ("grpc.http_proxy", proxy.url if not proxy.credentials else proxy.url.replace("//", f"//{proxy.credentials}@"))
    ]


def _contents(path: str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def _grpc_error(far_side: FarSide, call: grpc.Call) -> DeliveryError:
    code, details = call.code(), call.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return _no_answer(far_side)
    said = far_side.quoted(details) or _NO_REASON
    if code is grpc.StatusCode.UNAVAILABLE:
        message = f"{far_side.url} is unavailable: {said}"
        hint = next((hint for part, hint in _GRPC_CONNECTION_HINTS.items() if part in details), None)
    elif _GRPC_MADE_UP.match(details):
        message = f"{far_side.url} sent no answer that can be read: {code.name}: {said}"
        # a connection that breaks gets better by itself, an answer of many megabytes does not
        hint = _LOOK_AT_ENDPOINT if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "vs." in details else None
        return UnavailableError(message) if hint is None else MisconfiguredError(f"{message}; {hint}")
    else:
        message = f"{far_side.url} answered {code.name}: {said}"
        hint = _GRPC_HINTS.get(code)
    if hint is not None:
        return MisconfiguredError(f"{message}; {hint}")
    retry_after = _retry_info(call)
    if code in _GRPC_REFUSALS or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after is None):
        return RefusedError(message)
    return UnavailableError(message, retry_after=retry_after)


_GRPC_MADE_UP: Final = re.compile(
    r"(Stream removed|CLIENT:|received (initial |trailing )?metadata size exceeds|Received RST_STREAM|RST_STREAM)"
)
"""How a status' message begins that the client library has made itself; it is not the server's answer."""
_GRPC_REFUSALS: Final = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION}
)
_GRPC_HINTS: Final = {
    grpc.StatusCode.UNAUTHENTICATED: _LOOK_AT_HEADERS,
    grpc.StatusCode.PERMISSION_DENIED: _LOOK_AT_HEADERS,
    grpc.StatusCode.UNIMPLEMENTED: _LOOK_AT_ENDPOINT,
    grpc.StatusCode.NOT_FOUND: _LOOK_AT_ENDPOINT,
}
_GRPC_CONNECTION_HINTS: Final = {
    "CERTIFICATE_VERIFY_FAILED": _LOOK_AT_CERTIFICATES,
    "Hostname Verification": _LOOK_AT_CERTIFICATES,
    "WRONG_VERSION_NUMBER": _LOOK_AT_CERTIFICATES,
    "security handshaker": _LOOK_AT_CERTIFICATES,
    "parsing HTTP/2": _LOOK_AT_PROTOCOL,
}
"""What gRPC says of a connection, in parts that tell why it will never get better by itself."""


def _retry_info(call: grpc.Call) -> float | None:
    """Seconds that a google.rpc.RetryInfo in the status' details asks to wait."""
    metadata: dict[str, Any] = dict(call.trailing_metadata() or ())
    retry_info = RetryInfo()
    try:
        for detail in Status.FromString(metadata.get("grpc-status-details-bin", b"")).details:
            if detail.Unpack(retry_info):
                delay_ns: int = retry_info.retry_delay.ToNanoseconds()
                return max(0.0, delay_ns / 1e9)
    except (ProtobufDecodeError, ValueError):
        # a delay that cannot be read is none
        return None
    return None


class _Http:
    """OTLP/HTTP in protobuf: one connection, used in the caller's thread."""

    def __init__(self, far_side: FarSide) -> None:
        self._far_side = far_side
        self._clock = Clock()
        self._manager: urllib3.PoolManager | None = None
        self._headers = {
            "user-agent": _USER_AGENT,
            **far_side.headers,
            "content-type": "application/x-protobuf",
            **({"content-encoding": "gzip"} if far_side.is_zipped else {}),
        }

    def export(self, body: bytes, deadline: float) -> bytes:
        self._clock.deadline = time.monotonic() + _remaining(deadline)
        if self._far_side.is_zipped:
            body = gzip.compress(body, mtime=0)
        try:
            response, content = self._exchange(body)
        except (urllib3.exceptions.HTTPError, HTTPException, OSError) as error:
            failure: DeliveryError = _connection_error(self._far_side, error)
        else:
            if response.status == HTTPStatus.OK and content is not None and not _is_text(response):
                return content
            failure = _http_error(self._far_side, response, content)
        # outside of the except clause: an error that is its context would be logged with what it repeats of secrets
        raise failure

    def close(self) -> None:
        if self._manager is not None:
            self._manager.clear()
            self._manager = None

    def forget(self) -> None:
        self._manager = None
        self._clock = Clock()

    def _exchange(self, body: bytes) -> tuple[urllib3.BaseHTTPResponse, bytes | None]:
        """One request and its whole answer."""
        manager = self._manager = self._manager or self._new_manager()
        pool = manager.connection_from_url(self._far_side.url)
        # urllib3 does no more with it than call it
        cast("Any", pool).ConnectionCls = partial(
            TlsConnection if pool.scheme == "https" else Connection, clock=self._clock
        )
        connected = self._clock.connected
        try:
            return self._request(manager, body)
        except (urllib3.exceptions.ProtocolError, HTTPException, OSError):
            if self._clock.connected != connected:
                raise
        # a connection that was kept may have been closed by the server meanwhile
        return self._request(manager, body)

    def _request(self, manager: urllib3.PoolManager, body: bytes) -> tuple[urllib3.BaseHTTPResponse, bytes | None]:
        response = manager.urlopen(
            "POST",
            self._far_side.url,
            body=body,
            headers=self._headers,
            retries=False,
            redirect=False,
            preload_content=False,
            timeout=self._clock.remaining(),
        )
        return response, _content(response)

    def _new_manager(self) -> urllib3.PoolManager:
        context, proxy = self._new_context(), self._far_side.proxy
        if proxy is None:
            return urllib3.PoolManager(1, ssl_context=context)
        return urllib3.ProxyManager(proxy.url, 1, proxy_headers=proxy.headers, ssl_context=context)

    def _new_context(self) -> ssl.SSLContext | None:
        far_side = self._far_side
        if far_side.endpoint.scheme == "http":
            return None
        read = far_side.certificate
        try:
            context = ssl.create_default_context(cafile=read)
            if far_side.client_certificate is not None:
                read = far_side.client_certificate
                # without a password OpenSSL would ask for one, on the terminal
                context.load_cert_chain(read, far_side.client_key, password="")
        except OSError as error:
            reason = far_side.quoted(f"{read}: {error}")
        else:
            return context
        message = f"{far_side.url} cannot be connected to: {reason}; {_LOOK_AT_CERTIFICATES}"
        raise MisconfiguredError(message)


def _content(response: urllib3.BaseHTTPResponse) -> bytes | None:
    """The answer's body; ``None`` where it is larger than any real one."""
    content = bytearray()
    for piece in response.stream(65_536):
        content += piece
        if len(content) > _MAX_ANSWER:
            response.close()
            return None
    return bytes(content)


def _is_text(response: urllib3.BaseHTTPResponse) -> bool:
    return response.headers.get("content-type", "").strip().lower().startswith("text/")


def _connection_error(far_side: FarSide, error: Exception) -> UnavailableError:
    cause = _innermost(error)
    if isinstance(error, urllib3.exceptions.TimeoutError) or isinstance(cause, TimeoutError):
        return _no_answer(far_side)
    message = f"{far_side.url} cannot be reached: {far_side.quoted(f'{type(cause).__name__}: {cause}')}"
    if _PROXY_REFUSAL in message:
        return MisconfiguredError(f"{message}; {_LOOK_AT_PROXY}")
    # the end of a connection is no matter of trust, in the middle of a handshake either
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
        return MisconfiguredError(f"{message}; {_LOOK_AT_CERTIFICATES}")
    return UnavailableError(message)


def _innermost(error: BaseException) -> BaseException:
    """What urllib3 has wrapped, each in their own way."""
    for inner in (getattr(error, "reason", None), *error.args):
        if isinstance(inner, BaseException):
            return _innermost(inner)
    return error


def _http_error(far_side: FarSide, response: urllib3.BaseHTTPResponse, content: bytes | None) -> DeliveryError:
    status = response.status
    said = far_side.quoted(_said(response, content or b""))
    message = f"{far_side.url} answered {status}{f': {said}' if said else ''}"
    if status in _HTTP_REFUSALS:
        return RefusedError(message)
    if status in _HTTP_RETRYABLE or (status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in _HTTP_HINTS):
        return UnavailableError(message, retry_after=_retry_after(response.headers.get("retry-after", "")))
    return MisconfiguredError(f"{message}; {_HTTP_HINTS.get(status, _LOOK_AT_ENDPOINT)}")


_HTTP_REFUSALS: Final = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}
)
_HTTP_RETRYABLE: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_HTTP_HINTS: Final[dict[int, str]] = {
    HTTPStatus.UNAUTHORIZED: _LOOK_AT_HEADERS,
    HTTPStatus.FORBIDDEN: _LOOK_AT_HEADERS,
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: _LOOK_AT_PROXY,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: _LOOK_AT_PROTOCOL,
    HTTPStatus.NOT_IMPLEMENTED: _LOOK_AT_ENDPOINT,
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED: _LOOK_AT_ENDPOINT,
    HTTPStatus.NETWORK_AUTHENTICATION_REQUIRED: _LOOK_AT_ENDPOINT,
}


def _said(response: urllib3.BaseHTTPResponse, content: bytes) -> str:
    """What an answer says in words: of OTLP's status or of a plain text, not of a page."""
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/x-protobuf":
        try:
            return cast("str", Status.FromString(content).message)
        except ProtobufDecodeError:
            return ""
    return "" if content_type == "text/html" else content.decode(errors="replace")


def _retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks to wait: a number of them, or until a date."""
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
