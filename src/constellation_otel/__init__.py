"""Traces, metrics and logs from a pipeline engine's execution events.

The everyday names, each loaded when it is first used. What needs an extra is
imported from its own module.

PYTEST_DONT_REWRITE: pytest warns of a plugin's package that is imported before pytest
is, as opentelemetry-instrument imports this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from constellation_otel._support.door import door

if TYPE_CHECKING:
    from constellation_otel.bodies import module_context
    from constellation_otel.delivery import AsyncListenerAdapter, Bridge, BufferedListener
    from constellation_otel.engine import Constellation, Dag, Execution, module
    from constellation_otel.errors import (
        ConfigurationError,
        ConstellationOtelError,
        DagError,
        DecodeError,
        DeliveryError,
        ExecutionCancelledError,
        ExecutionFailedError,
        JournalError,
        ListenerDefinitionError,
        MisconfiguredError,
        MissingExtraError,
        ReceiverError,
        RefusedError,
        RemoteError,
        SourceError,
        UnavailableError,
    )
    from constellation_otel.events import (
        ErrorInfo,
        Event,
        EventListener,
        ExecutionCancelled,
        ExecutionCompleted,
        ExecutionJoined,
        ExecutionStarted,
        ModuleCompleted,
        ModuleDescribed,
        ModuleDetails,
        ModuleFailed,
        ModuleStarted,
    )
    from constellation_otel.listener import (
        ExecutionJoiner,
        ExecutionListener,
        LoggingListener,
        ModuleContextProvider,
        ModuleDetailsTaker,
    )
    from constellation_otel.otel import OpenTelemetryListener, OtlpListener
    from constellation_otel.traces import span_id_of, trace_id_of
else:
    __getattr__, __dir__ = door(
        __name__,
        {
            "bodies": ("module_context",),
            "delivery": ("AsyncListenerAdapter", "Bridge", "BufferedListener"),
            "engine": ("Constellation", "Dag", "Execution", "module"),
            "errors": (
                "ConfigurationError",
                "ConstellationOtelError",
                "DagError",
                "DecodeError",
                "DeliveryError",
                "ExecutionCancelledError",
                "ExecutionFailedError",
                "JournalError",
                "ListenerDefinitionError",
                "MisconfiguredError",
                "MissingExtraError",
                "ReceiverError",
                "RefusedError",
                "RemoteError",
                "SourceError",
                "UnavailableError",
            ),
            "events": (
                "ErrorInfo",
                "Event",
                "EventListener",
                "ExecutionCancelled",
                "ExecutionCompleted",
                "ExecutionJoined",
                "ExecutionStarted",
                "ModuleCompleted",
                "ModuleDescribed",
                "ModuleDetails",
                "ModuleFailed",
                "ModuleStarted",
            ),
            "listener": (
                "ExecutionJoiner",
                "ExecutionListener",
                "LoggingListener",
                "ModuleContextProvider",
                "ModuleDetailsTaker",
            ),
            "otel": ("OpenTelemetryListener", "OtlpListener"),
            "traces": ("span_id_of", "trace_id_of"),
        },
    )

__all__ = [
    "AsyncListenerAdapter",
    "Bridge",
    "BufferedListener",
    "ConfigurationError",
    "Constellation",
    "ConstellationOtelError",
    "Dag",
    "DagError",
    "DecodeError",
    "DeliveryError",
    "ErrorInfo",
    "Event",
    "EventListener",
    "Execution",
    "ExecutionCancelled",
    "ExecutionCancelledError",
    "ExecutionCompleted",
    "ExecutionFailedError",
    "ExecutionJoined",
    "ExecutionJoiner",
    "ExecutionListener",
    "ExecutionStarted",
    "JournalError",
    "ListenerDefinitionError",
    "LoggingListener",
    "MisconfiguredError",
    "MissingExtraError",
    "ModuleCompleted",
    "ModuleContextProvider",
    "ModuleDescribed",
    "ModuleDetails",
    "ModuleDetailsTaker",
    "ModuleFailed",
    "ModuleStarted",
    "OpenTelemetryListener",
    "OtlpListener",
    "ReceiverError",
    "RefusedError",
    "RemoteError",
    "SourceError",
    "UnavailableError",
    "module",
    "module_context",
    "span_id_of",
    "trace_id_of",
]
