"""OTLP: spans to an endpoint that acknowledges them, over gRPC or HTTP."""

from __future__ import annotations

from constellation_otel.transports.otlp.encoding import encode_request
from constellation_otel.transports.otlp.grpc import credentials_of, proxy_options
from constellation_otel.transports.otlp.settings import FarSide, Signal, WireProtocol, far_side_of
from constellation_otel.transports.otlp.sink import OtlpSink, make_resource

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
    "sink_of",
]

sink_of = OtlpSink.from_url
