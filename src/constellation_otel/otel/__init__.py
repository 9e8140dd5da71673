"""Executions as OpenTelemetry's traces, metrics and logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from constellation_otel._support.door import door

if TYPE_CHECKING:
    from constellation_otel.otel.otlp_listener import OtlpListener
    from constellation_otel.otel.own_providers import (
        Exporters,
        PrivateSignals,
        grpc_options,
        http_options,
        is_wanted,
    )
    from constellation_otel.otel.sdk_listener import OpenTelemetryListener
    from constellation_otel.otel.span_listener import SpanListener
else:
    __getattr__, __dir__ = door(
        __name__,
        {
            "otlp_listener": ("OtlpListener",),
            "own_providers": ("Exporters", "PrivateSignals", "grpc_options", "http_options", "is_wanted"),
            "sdk_listener": ("OpenTelemetryListener",),
            "span_listener": ("SpanListener",),
        },
    )

__all__ = [
    "Exporters",
    "OpenTelemetryListener",
    "OtlpListener",
    "PrivateSignals",
    "SpanListener",
    "grpc_options",
    "http_options",
    "is_wanted",
]
