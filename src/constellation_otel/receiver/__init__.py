"""An OTLP endpoint in this process: for the demo, and for tests."""

from __future__ import annotations

from constellation_otel.receiver.decoding import (
    Exemplar,
    LogRecord,
    MetricPoint,
    Received,
    Resource,
    Scope,
    decode_logs,
    decode_metrics,
    decode_traces,
)
from constellation_otel.receiver.faults import Delay, Drop, Fault, PartialSuccess, Refuse
from constellation_otel.receiver.receiver import Receiver, Request
from constellation_otel.receiver.servers import Signal

__all__ = [
    "Delay",
    "Drop",
    "Exemplar",
    "Fault",
    "LogRecord",
    "MetricPoint",
    "PartialSuccess",
    "Received",
    "Receiver",
    "Refuse",
    "Request",
    "Resource",
    "Scope",
    "Signal",
    "decode_logs",
    "decode_metrics",
    "decode_traces",
]
