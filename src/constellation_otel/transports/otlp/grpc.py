"""OTLP over gRPC: a request's bytes to the endpoint, and what each status means."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
from google.protobuf.message import DecodeError as ProtobufDecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # stubs without py.typed
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # stubs without py.typed

from constellation_otel.errors import DeliveryError, MisconfiguredError, RefusedError, UnavailableError
from constellation_otel.transports.otlp.settings import (
    LOOK_AT_CERTIFICATES,
    LOOK_AT_ENDPOINT,
    LOOK_AT_HEADERS,
    LOOK_AT_PROTOCOL,
    MAX_ANSWER,
    NO_REASON,
    USER_AGENT,
    FarSide,
    remaining,
)

with suppress(ImportError):
    # the first channel would import them: after a fork meanwhile they are half made in the child
    import grpc._channel
    import grpc.experimental

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Grpc", "credentials_of", "proxy_options"]

_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_MAX_RECONNECT_MS: Final = 5_000
"""Milliseconds, at most, until gRPC tries a collector that was away again; its own default is two minutes."""
_MAX_STATUS: Final = 4 * 1024 * 1024
"""Bytes of a gRPC status with all that comes with it."""


class Grpc:
    """OTLP/gRPC.

    Attributes:
        date: ``None``: no answer says when it was given.
    """

    date: str | None = None

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
            return method(body, timeout=remaining(deadline), metadata=self._metadata, compression=self._compression)
        except grpc.RpcError as error:
            call = cast("grpc.Call", error)
            if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                # the server of this connection may have vanished
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
            ("grpc.primary_user_agent", USER_AGENT),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", MAX_ANSWER),
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
            message = f"{self._far_side.url} cannot be reached: {error}; {LOOK_AT_CERTIFICATES}"
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
        return far_side.no_answer()
    said = far_side.quoted(details) or NO_REASON
    if code is grpc.StatusCode.UNAVAILABLE:
        message = f"{far_side.url} is unavailable: {said}"
        hint = next((hint for part, hint in _GRPC_CONNECTION_HINTS.items() if part in details), None)
    elif _GRPC_MADE_UP.match(details):
        message = f"{far_side.url} sent an answer that cannot be read: {code.name}: {said}"
        # a connection that breaks gets better by itself, an answer of many megabytes does not
        hint = LOOK_AT_ENDPOINT if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "vs." in details else None
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
    grpc.StatusCode.UNAUTHENTICATED: LOOK_AT_HEADERS,
    grpc.StatusCode.PERMISSION_DENIED: LOOK_AT_HEADERS,
    grpc.StatusCode.UNIMPLEMENTED: LOOK_AT_ENDPOINT,
    grpc.StatusCode.NOT_FOUND: LOOK_AT_ENDPOINT,
}
_GRPC_CONNECTION_HINTS: Final = {
    "CERTIFICATE_VERIFY_FAILED": LOOK_AT_CERTIFICATES,
    "Hostname Verification": LOOK_AT_CERTIFICATES,
    "WRONG_VERSION_NUMBER": LOOK_AT_CERTIFICATES,
    "security handshaker": LOOK_AT_CERTIFICATES,
    "parsing HTTP/2": LOOK_AT_PROTOCOL,
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
