"""OTLP over HTTP, in protobuf: a request's bytes to the endpoint, and what each status means."""

from __future__ import annotations

import gzip
import re
import ssl
import time
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import HTTPException
from typing import Final, cast

import urllib3
from google.protobuf.message import DecodeError as ProtobufDecodeError
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # stubs without py.typed

from constellation_otel.errors import DeliveryError, MisconfiguredError, RefusedError, UnavailableError
from constellation_otel.transports.otlp.connection import Clock, pools_of
from constellation_otel.transports.otlp.settings import (
    LOOK_AT_CERTIFICATES,
    LOOK_AT_ENDPOINT,
    LOOK_AT_HEADERS,
    LOOK_AT_PROTOCOL,
    LOOK_AT_PROXY,
    MAX_ANSWER,
    USER_AGENT,
    FarSide,
    remaining,
)

__all__ = ["Http"]

_PROXY_REFUSAL: Final = "Tunnel connection failed: 407"


class Http:
    """OTLP/HTTP in protobuf: one connection, used in the caller's thread.

    Attributes:
        date: The ``Date`` header of the last answer, where it had one.
    """

    def __init__(self, far_side: FarSide) -> None:
        self._far_side = far_side
        self._clock = Clock()
        self._manager: urllib3.PoolManager | None = None
        self.date: str | None = None
        self._headers = {
            "user-agent": USER_AGENT,
            **far_side.headers,
            "content-type": "application/x-protobuf",
            **({"content-encoding": "gzip"} if far_side.is_zipped else {}),
        }

    def export(self, body: bytes, deadline: float) -> bytes:
        self._clock.deadline = time.monotonic() + remaining(deadline)
        if self._far_side.is_zipped:
            body = gzip.compress(body, mtime=0)
        try:
            response, content = self._exchange(body)
        except (urllib3.exceptions.HTTPError, HTTPException, OSError) as error:
            failure: DeliveryError = _connection_error(self._far_side, error)
        else:
            self.date = response.headers.get("date")
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
        manager = (
            urllib3.PoolManager(1, ssl_context=context)
            if proxy is None
            else urllib3.ProxyManager(proxy.url, 1, proxy_headers=proxy.headers, ssl_context=context)
        )
        manager.pool_classes_by_scheme = pools_of(self._clock)
        return manager

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
        message = f"{far_side.url} cannot be reached: {reason}; {LOOK_AT_CERTIFICATES}"
        raise MisconfiguredError(message)


def _content(response: urllib3.BaseHTTPResponse) -> bytes | None:
    """The answer's body; ``None`` where it is larger than any real one."""
    content = bytearray()
    for piece in response.stream(65_536):
        content += piece
        if len(content) > MAX_ANSWER:
            response.close()
            return None
    return bytes(content)


def _is_text(response: urllib3.BaseHTTPResponse) -> bool:
    return response.headers.get("content-type", "").strip().lower().startswith("text/")


def _connection_error(far_side: FarSide, error: Exception) -> UnavailableError:
    cause = _innermost(error)
    if isinstance(error, urllib3.exceptions.TimeoutError) or isinstance(cause, TimeoutError):
        return far_side.no_answer()
    message = f"{far_side.url} cannot be reached: {far_side.quoted(f'{type(cause).__name__}: {cause}')}"
    if _PROXY_REFUSAL in message:
        return MisconfiguredError(f"{message}; {LOOK_AT_PROXY}")
    # EOF is a problem of the connection and not of a certificate, during the TLS handshake too
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return MisconfiguredError(f"{message}; {LOOK_AT_CERTIFICATES}")
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
    return MisconfiguredError(f"{message}; {_HTTP_HINTS.get(status, LOOK_AT_ENDPOINT)}")


_HTTP_REFUSALS: Final = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}
)
_HTTP_RETRYABLE: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_HTTP_HINTS: Final[dict[int, str]] = {
    HTTPStatus.UNAUTHORIZED: LOOK_AT_HEADERS,
    HTTPStatus.FORBIDDEN: LOOK_AT_HEADERS,
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: LOOK_AT_PROXY,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: LOOK_AT_PROTOCOL,
    HTTPStatus.NOT_IMPLEMENTED: LOOK_AT_ENDPOINT,
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED: LOOK_AT_ENDPOINT,
    HTTPStatus.NETWORK_AUTHENTICATION_REQUIRED: LOOK_AT_ENDPOINT,
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
