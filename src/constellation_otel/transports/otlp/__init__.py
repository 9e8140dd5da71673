"""OTLP: spans to an endpoint that acknowledges them, over gRPC or HTTP."""

from __future__ import annotations

from constellation_otel.transports.otlp.encoding import encode_request
from constellation_otel.transports.otlp.otlp import OtlpSink, credentials_of, make_resource, proxy_options
from constellation_otel.transports.otlp.settings import FarSide, Signal, WireProtocol, far_side_of

__all__ = [
    "FarSide",
    "OtlpSink",
    "Signal",
    "WireProtocol",
    "credentials_of",
    "encode_request",
    "far_side_of",
    "make_resource",
    "proxy_options",
]
