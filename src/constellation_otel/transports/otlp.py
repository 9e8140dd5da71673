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

Where the endpoint is, and what else is configured, is found out in ``_otlp_settings``.
"""

from __future__ import annotations

import contextvars
import gzip
import logging
import re
import socket
import ssl
import threading
import time
from concurrent.futures import Future, wait
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import grpc
import requests
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
from requests.adapters import HTTPAdapter

from constellation_otel._fork import after_fork_in_child
from constellation_otel._log import RateLimitedLog
from constellation_otel._version import SCOPE_VERSION
from constellation_otel.delivery import Rejection
from constellation_otel.errors import (
    DeliveryError,
    MisconfiguredError,
    RefusedError,
    UnavailableError,
)
from constellation_otel.otlp_encoding import encode_request
from constellation_otel.transports._otlp_settings import FarSide, endpoint_of_url, far_side_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from urllib3.connection import HTTPConnection

    from constellation_otel.spans import Span
    from constellation_otel.transports._otlp_settings import Compression, WireProtocol

__all__ = ["OtlpSink", "make_resource"]

_LOG: Final = logging.getLogger(__name__)
_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_USER_AGENT: Final = f"constellation-otel/{SCOPE_VERSION}"
_DEFAULT_SERVICE_NAME: Final = "constellation"
_LEAST_TIMEOUT: Final = 0.01
"""Seconds that a request gets where encoding has taken all of its time: a timeout of 0 means another thing to many."""
_MAX_RECONNECT_MS: Final = 5_000
"""Milliseconds, at most, until gRPC tries a collector that was away again; its own default is two minutes."""
_MAX_ANSWER: Final = 1024 * 1024
_NO_REASON: Final = "no reason was given"

_LOOK_AT_ENDPOINT: Final = "look at the endpoint, OTEL_EXPORTER_OTLP_ENDPOINT: an OTLP server does not answer so"
_LOOK_AT_HEADERS: Final = "look at the headers, OTEL_EXPORTER_OTLP_HEADERS, which have the credentials"
_LOOK_AT_PROTOCOL: Final = "look at the protocol, OTEL_EXPORTER_OTLP_PROTOCOL"
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
    """
    attributes = {
        TELEMETRY_SDK_LANGUAGE: "python",
        TELEMETRY_SDK_NAME: "opentelemetry",
        TELEMETRY_SDK_VERSION: _SDK_VERSION,
        **OTELResourceDetector().detect().attributes,
    }
    attributes[SERVICE_NAME] = service_name or attributes.get(SERVICE_NAME) or _DEFAULT_SERVICE_NAME
    return Resource(attributes)


class OtlpSink:
    """Sends spans to an OTLP endpoint; a :class:`~constellation_otel.delivery.Sink`.

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
        deadline = time.monotonic() + min(timeout, self._far_side.timeout)
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
            ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_MS),
            # a shared one would be the parent's connection in a forked child
            ("grpc.use_local_subchannel_pool", 1),
        ]
        target = self._far_side.endpoint.netloc
        if self._far_side.endpoint.scheme == "http":
            return grpc.insecure_channel(target, options)
        certificate = self._far_side.client_certificate
        try:
            credentials = grpc.ssl_channel_credentials(
                _contents(self._far_side.certificate),
                # gRPC would abort the process if it got one of the two without the other
                _contents(self._far_side.client_key or certificate),
                _contents(certificate),
            )
        except OSError as error:
            message = f"{self._far_side.url} cannot be connected to: {error}; {_LOOK_AT_CERTIFICATES}"
            raise MisconfiguredError(message) from error
        return grpc.secure_channel(target, credentials, options)


def _contents(path: str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def _grpc_error(far_side: FarSide, call: grpc.Call) -> DeliveryError:
    code, details = call.code(), call.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return _no_answer(far_side)
    message = f"{far_side.url} answered {code.name}: {far_side.quoted(details) or _NO_REASON}"
    hint = _GRPC_HINTS.get(code)
    if hint is None and code is grpc.StatusCode.UNAVAILABLE:
        message = f"{far_side.url} is unavailable: {far_side.quoted(details) or _NO_REASON}"
        hint = next((hint for part, hint in _GRPC_CONNECTION_HINTS.items() if part in details), None)
    if hint is not None:
        return MisconfiguredError(f"{message}; {hint}")
    retry_after = _retry_info(call)
    if code in _GRPC_REFUSALS or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after is None):
        return RefusedError(message)
    return UnavailableError(message, retry_after=retry_after)


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
    """OTLP/HTTP in protobuf.

    requests' own timeout is for each read, and for no look-up of a name, so each request
    has a thread, and its connection is cut when its time is over.
    """

    def __init__(self, far_side: FarSide) -> None:
        self._far_side = far_side
        self._session: requests.Session | None = None
        self._abandoned: Future[bytes] | None = None

    def export(self, body: bytes, deadline: float) -> bytes:
        if self._abandoned is not None:
            wait([self._abandoned], _remaining(deadline))
            if not self._abandoned.done():
                message = f"{self._far_side.url} is not asked again before the request that it did not answer has ended"
                raise UnavailableError(message)
            self._abandoned = None
        if self._session is None:
            self._session = self._new_session()
        future: Future[bytes] = Future()
        # the caller's context says that none of this is traced
        run = partial(contextvars.copy_context().run, _resolve, future, self._exchange, self._session, body, deadline)
        threading.Thread(target=run, name="constellation-otel-otlp-http", daemon=True).start()
        wait([future], _remaining(deadline))
        if not future.done():
            self._abandoned = future
            cast("_Adapter", self._session.get_adapter(self._far_side.url)).cut()
            self.close()
            raise _no_answer(self._far_side)
        return future.result()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def forget(self) -> None:
        self._session = self._abandoned = None

    def _new_session(self) -> requests.Session:
        session = requests.Session()
        session.mount(f"{self._far_side.endpoint.scheme}://", _Adapter())
        # otherwise a .netrc would replace the authorization header
        session.auth = _as_it_is
        session.headers = {
            "user-agent": _USER_AGENT,
            **self._far_side.headers,
            "content-type": "application/x-protobuf",
        }
        return session

    def _exchange(self, session: requests.Session, body: bytes, deadline: float) -> bytes:
        """One request and its answer, in a thread of its own."""
        headers = {}
        if self._far_side.is_zipped:
            headers["content-encoding"] = "gzip"
            body = gzip.compress(body, mtime=0)
        certificate, key = self._far_side.client_certificate, self._far_side.client_key
        try:
            with session.post(
                self._far_side.url,
                body,
                headers=headers,
                # the caller cuts what is connected; this ends what never will be, when nobody waits for it
                timeout=2 * _remaining(deadline),
                allow_redirects=False,
                # given here, they go before those of the environment
                verify=self._far_side.certificate or True,
                cert=(certificate, key) if certificate and key else certificate,
                stream=True,
            ) as response:
                content = _content(response)
        # urllib3's own come through where a name cannot be one
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _connection_error(self._far_side, error) from error
        except OSError as error:
            message = f"{self._far_side.url} cannot be connected to: {error}; {_LOOK_AT_CERTIFICATES}"
            raise MisconfiguredError(message) from error
        if response.status_code != HTTPStatus.OK or content is None or _is_text(response):
            raise _http_error(self._far_side, response, content)
        return content


def _resolve(future: Future[bytes], exchange: Callable[..., bytes], *args: object) -> None:
    try:
        future.set_result(exchange(*args))
    except BaseException as error:  # noqa: BLE001 - whoever waits for the future raises it
        future.set_exception(error)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class _Adapter(HTTPAdapter):
    """Speaks through one connection at a time, which another thread may cut."""

    def __init__(self) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1)
        self._connection: HTTPConnection | None = None

    def cut(self) -> None:
        """Ends what is waited for on the connection."""
        connected = None if self._connection is None else self._connection.sock
        if connected is not None:
            # it may have ended by itself
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        # urllib3 does no more with it than call it
        pool.ConnectionCls = partial(self._connect, type(pool).ConnectionCls)
        return pool

    def _connect(self, connection_class: Callable[..., HTTPConnection], **options: Any) -> HTTPConnection:
        self._connection = connection_class(**options)
        return self._connection


def _content(response: requests.Response) -> bytes | None:
    """The answer's body; ``None`` where it is larger than any real one."""
    content = bytearray()
    for piece in response.iter_content(65_536):
        content += piece
        if len(content) > _MAX_ANSWER:
            return None
    return bytes(content)


def _is_text(response: requests.Response) -> bool:
    return response.headers.get("content-type", "").strip().lower().startswith("text/")


def _connection_error(far_side: FarSide, error: Exception) -> UnavailableError:
    cause = _innermost(error)
    message = f"{far_side.url} cannot be reached: {type(cause).__name__}: {cause}"
    # the end of a connection is no matter of trust, in the middle of a handshake either
    if isinstance(error, requests.exceptions.SSLError) and not isinstance(cause, ssl.SSLEOFError):
        return MisconfiguredError(f"{message}; {_LOOK_AT_CERTIFICATES}")
    return UnavailableError(message)


def _innermost(error: BaseException) -> BaseException:
    """What requests and urllib3 have wrapped, each in their own way."""
    for inner in (getattr(error, "reason", None), *error.args):
        if isinstance(inner, BaseException):
            return _innermost(inner)
    return error


def _http_error(far_side: FarSide, response: requests.Response, content: bytes | None) -> DeliveryError:
    status = response.status_code
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
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: "look at the proxy's credentials in HTTP_PROXY or HTTPS_PROXY",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: _LOOK_AT_PROTOCOL,
    HTTPStatus.NOT_IMPLEMENTED: _LOOK_AT_ENDPOINT,
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED: _LOOK_AT_ENDPOINT,
    HTTPStatus.NETWORK_AUTHENTICATION_REQUIRED: _LOOK_AT_ENDPOINT,
}


def _said(response: requests.Response, content: bytes) -> str:
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
