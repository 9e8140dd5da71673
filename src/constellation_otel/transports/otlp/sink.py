"""Finished spans to an OTLP endpoint, over gRPC or HTTP, acknowledged.

A batch is safe when :meth:`OtlpSink.send` returns. What becomes of it otherwise
goes by the endpoint's answer:

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

Where the endpoint is, and what else is configured, is found out in ``settings``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self

from google.protobuf.message import DecodeError as ProtobufDecodeError
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
from constellation_otel.delivery import Rejection, Sink
from constellation_otel.errors import ConfigurationError, MisconfiguredError
from constellation_otel.traces import Span
from constellation_otel.transports.otlp.encoding import encode_request
from constellation_otel.transports.otlp.grpc import Grpc
from constellation_otel.transports.otlp.http import Http
from constellation_otel.transports.otlp.settings import LOOK_AT_ENDPOINT, NO_REASON, endpoint_of_url, far_side_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from constellation_otel.transports.otlp.settings import Compression, WireProtocol
    from constellation_otel.transports.url import SinkOptions

__all__ = ["OtlpSink", "make_resource"]

_LOGGER: Final = logging.getLogger(__package__)
_MAX_BATCH: Final = 2_048
"""Spans in a request: some 0.7 MiB, of the 4 MiB that gRPC servers take unless they are told otherwise."""
_DEFAULT_SERVICE_NAME: Final = "constellation"


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


class OtlpSink(Sink[Span]):
    """Sends spans to an OTLP endpoint; a :class:`~constellation_otel.delivery.Sink`.

    What is not given comes from the standard variables, ``OTEL_EXPORTER_OTLP_TRACES_*``
    before ``OTEL_EXPORTER_OTLP_*``, read when the sink is made. Nothing is connected
    before the first :meth:`send`. A forked child makes connections of its own. Over
    HTTP the environment's proxies are used as the standard library reads them.

    Args:
        endpoint: ``http://`` or ``https://``, host and port. Over HTTP ``/v1/traces`` is
            appended where it does not end so, as it is to OTEL_EXPORTER_OTLP_ENDPOINT, and
            is not to OTEL_EXPORTER_OTLP_TRACES_ENDPOINT. Over gRPC a path means nothing, and
            without a scheme OTEL_EXPORTER_OTLP_INSECURE says whether to do without TLS.
        protocol: ``grpc`` unless the variables say otherwise.
        resource: What sends the spans, as :func:`make_resource` has it.
        headers: Sent with every request, as gRPC metadata or HTTP headers.
        compression: ``none`` unless the variables say otherwise.
        timeout: Seconds for one request, at most; 10 unless the variables say otherwise, in
            seconds too, as OpenTelemetry Python has them.
        certificate: A PEM file: whom to trust, instead of the well-known authorities.
        client_key: A PEM file: the client's key, unless ``client_certificate`` has it.
        client_certificate: A PEM file: how the client proves who it is.

    Raises:
        ConfigurationError: One of these, or a variable, cannot be used.
    """

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
        self._transport: _Transport = (Grpc if self.protocol == "grpc" else Http)(self._far_side)
        self._log = RateLimitedLog()
        after_fork_in_child(self._transport.forget)

    @classmethod
    def from_url(cls, url: str, options: SinkOptions) -> Self:
        """Makes a sink from a URL; what that does not say comes from the standard variables.

        Args:
            url: ``otlp://host`` (gRPC without TLS), ``otlps://host`` (gRPC with TLS),
                ``otlp+http://host`` or ``otlp+https://host``; then a port if it is not 4317
                (gRPC) or 4318 (HTTP), and over HTTP a path that ``/v1/traces`` is appended to.
            options: What sends the spans.

        Raises:
            ConfigurationError: The URL, or a variable, cannot be used.
        """
        endpoint, protocol = endpoint_of_url(url)
        return cls(endpoint, protocol=protocol, resource=options.resource)

    @property
    def name(self) -> str:
        return "otlp"

    @property
    def max_batch(self) -> int:
        return _MAX_BATCH

    @property
    def takes(self) -> Literal["events", "spans"]:
        return "spans"

    @property
    def endpoint(self) -> str:
        """Where the spans go, as a URL; it has no secret in it."""
        return self._far_side.url

    @property
    def protocol(self) -> WireProtocol:
        """The protocol of the endpoint."""
        return self._far_side.protocol

    def send(self, items: Sequence[Span], timeout: float) -> Sequence[Rejection]:
        """Sends spans in one request.

        Args:
            items: One or more. Sent again they are the same bytes, which a backend that
                knows spans by their ids shows once.
            timeout: Seconds, for everything.

        Returns:
            One rejection where the endpoint reports a partial success.

        Raises:
            UnavailableError: Send them again, later.
            MisconfiguredError: The same, once the settings are fixed.
            RefusedError: The endpoint refuses them for good, or so many at once.
        """
        deadline = deadline_of(min(timeout, self._far_side.timeout))
        body = encode_request(items, self._resource)
        answer = self._transport.export(body, deadline)
        try:
            partial_success = ExportTraceServiceResponse.FromString(answer).partial_success
        except ProtobufDecodeError:
            message = f"{self.endpoint} did not answer with an ExportTraceServiceResponse; {LOOK_AT_ENDPOINT}"
            raise MisconfiguredError(message) from None
        said = self._far_side.quoted(partial_success.error_message)
        if partial_success.rejected_spans > 0:
            count = min(partial_success.rejected_spans, len(items))
            return [Rejection(None, count, said or NO_REASON)]
        if said:
            self._log.write(_LOGGER, logging.WARNING, "warned", "%s took the spans and warned: %s", self.endpoint, said)
        return []

    def ask(self, timeout: float) -> str | None:
        """Sends a request without spans: it is answered as one with spans is, and nothing is stored.

        Args:
            timeout: Seconds, for everything.

        Returns:
            The answer's ``Date`` header, over HTTP, where it has one.

        Raises:
            UnavailableError: As :meth:`send` does.
            MisconfiguredError: Likewise.
            RefusedError: The endpoint refuses a request without spans.
        """
        self.send([], timeout)
        return self._transport.date

    def close(self) -> None:
        """Closes the connections. :meth:`send` would open new ones."""
        self._transport.close()


class _Transport(Protocol):
    """Sends a request's bytes to the endpoint and returns the answer's, or raises a DeliveryError."""

    date: str | None
    """When the last answer was given, as its header says."""

    def export(self, body: bytes, deadline: float) -> bytes:
        """Sends; ``deadline`` is in seconds of the monotonic clock."""

    def close(self) -> None:
        """Closes what is open."""

    def forget(self) -> None:
        """Leaves what is open to the process that this one was forked from."""
