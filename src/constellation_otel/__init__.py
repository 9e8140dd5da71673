"""Traces, metrics and logs from a pipeline engine's execution events.

The everyday names, each loaded when it is first used. What needs an extra is
imported from its own module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from constellation_otel.aio import AsyncListenerAdapter
    from constellation_otel.bridge import Bridge
    from constellation_otel.buffer import BufferedListener
    from constellation_otel.dag import Dag, module
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
        ExecutionStarted,
        ModuleCompleted,
        ModuleFailed,
        ModuleStarted,
    )
    from constellation_otel.ids import span_id_of, trace_id_of
    from constellation_otel.listener import ExecutionListener, LoggingListener, ModuleContextProvider
    from constellation_otel.otel import OpenTelemetryListener
    from constellation_otel.otlp_listener import OtlpListener
    from constellation_otel.runtime import Constellation, Execution

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
    "ExecutionListener",
    "ExecutionStarted",
    "JournalError",
    "ListenerDefinitionError",
    "LoggingListener",
    "MisconfiguredError",
    "MissingExtraError",
    "ModuleCompleted",
    "ModuleContextProvider",
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
    "span_id_of",
    "trace_id_of",
]

_HOMES: Final = {
    "aio": ("AsyncListenerAdapter",),
    "bridge": ("Bridge",),
    "buffer": ("BufferedListener",),
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
        "ExecutionStarted",
        "ModuleCompleted",
        "ModuleFailed",
        "ModuleStarted",
    ),
    "ids": ("span_id_of", "trace_id_of"),
    "listener": ("ExecutionListener", "LoggingListener", "ModuleContextProvider"),
    "otel": ("OpenTelemetryListener",),
    "otlp_listener": ("OtlpListener",),
    "dag": ("Dag", "module"),
    "runtime": ("Constellation", "Execution"),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
