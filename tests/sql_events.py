"""One event of each type, as the tests of audit tables write and read them."""

from __future__ import annotations

from uuid import UUID

from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
)

EXECUTION = UUID("6ba7b810-9dad-41d1-80b4-00c04fd430c8")
MODULE = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
NS = 1_774_742_400_123_456_789
"""2026-03-29T00:00:00.123456789 UTC, 01:00 in Berlin."""
TRACEPARENT = "00-4104c80a8a6c1bf4a355527a7906fb00-00f067aa0ba902b7-01"
SIX: list[Event] = [
    ExecutionStarted(EXECUTION, "my-pipeline", NS, TRACEPARENT, "vendor=1"),
    ModuleStarted(EXECUTION, MODULE, "Trim", NS + 1),
    ModuleCompleted(EXECUTION, MODULE, "Trim", 2.5, NS + 2),
    ModuleFailed(EXECUTION, MODULE, "WordCount", ErrorInfo("ValueError", "no words"), NS + 3),
    ExecutionCompleted(EXECUTION, "my-pipeline", False, 15.0, NS + 4),
    ExecutionCancelled(EXECUTION, "my-pipeline", NS + 5),
]
