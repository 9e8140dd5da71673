"""Events as the two JSON dialects have them, and what any field of an event may hold."""

from __future__ import annotations

from uuid import UUID

from hypothesis import strategies as st

from constellation_otel.events.model import (
    MAX_NAME,
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
    clean_message,
    clean_name,
)

EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
MODULE = UUID("b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538")
NS = 1_795_465_363_577_123_456
MS = 1_795_465_363_577_000_000
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def completed(duration_ms: float | None, timestamp_ns: int, *, succeeded: bool = False) -> ExecutionCompleted:
    return ExecutionCompleted(EXECUTION, "my-pipeline", succeeded, duration_ms, timestamp_ns)


JSON_WITH_EXTENSIONS: dict[str, tuple[Event, str]] = {
    "execution.started": (
        ExecutionStarted(EXECUTION, "my-pipeline", NS, TRACEPARENT, "vendor=value"),
        (
            '{"eventType":"execution.started","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577,"timestampNs":1795465363577123456,'
            '"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","tracestate":"vendor=value"}'
        ),
    ),
    "module.started": (
        ModuleStarted(EXECUTION, MODULE, "Trim", NS),
        (
            '{"eventType":"module.started","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577,"moduleId":"b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538",'
            '"timestampNs":1795465363577123456}'
        ),
    ),
    "module.completed": (
        ModuleCompleted(EXECUTION, MODULE, "Trim", 2.345678, NS),
        (
            '{"eventType":"module.completed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":2,"succeeded":true,"error":null,'
            '"timestamp":1795465363577,"moduleId":"b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538",'
            '"timestampNs":1795465363577123456,"durationNs":2345678}'
        ),
    ),
    "module.failed": (
        ModuleFailed(EXECUTION, MODULE, "Trim", ErrorInfo("java.lang.IllegalStateException", "boom"), NS),
        (
            '{"eventType":"module.failed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":null,"succeeded":false,"error":"boom",'
            '"timestamp":1795465363577,"moduleId":"b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538",'
            '"errorType":"java.lang.IllegalStateException","timestampNs":1795465363577123456}'
        ),
    ),
    "execution.completed": (
        completed(15.25, NS),
        (
            '{"eventType":"execution.completed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":15,"succeeded":false,"error":null,'
            '"timestamp":1795465363577,"timestampNs":1795465363577123456,"durationNs":15250000}'
        ),
    ),
    "execution.cancelled": (
        ExecutionCancelled(EXECUTION, "my-pipeline", NS),
        (
            '{"eventType":"execution.cancelled","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577,"timestampNs":1795465363577123456}'
        ),
    ),
}

JSON_OF_THE_GUIDE: dict[str, tuple[Event, str]] = {
    "execution.started": (
        ExecutionStarted(EXECUTION, "my-pipeline", MS),
        (
            '{"eventType":"execution.started","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577}'
        ),
    ),
    "module.started": (
        ModuleStarted(EXECUTION, None, "Trim", MS),
        (
            '{"eventType":"module.started","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577}'
        ),
    ),
    "module.completed": (
        ModuleCompleted(EXECUTION, None, "Trim", 2, MS),
        (
            '{"eventType":"module.completed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":2,"succeeded":true,"error":null,'
            '"timestamp":1795465363577}'
        ),
    ),
    "module.failed": (
        ModuleFailed(EXECUTION, None, "Trim", ErrorInfo(None, None), MS),
        (
            '{"eventType":"module.failed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":null,"moduleName":"Trim","durationMs":null,"succeeded":false,"error":null,'
            '"timestamp":1795465363577}'
        ),
    ),
    "execution.completed": (
        completed(15, MS, succeeded=True),
        (
            '{"eventType":"execution.completed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":15,"succeeded":true,"error":null,'
            '"timestamp":1795465363577}'
        ),
    ),
    "execution.cancelled": (
        ExecutionCancelled(EXECUTION, "my-pipeline", MS),
        (
            '{"eventType":"execution.cancelled","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","moduleName":null,"durationMs":null,"succeeded":null,"error":null,'
            '"timestamp":1795465363577}'
        ),
    ),
}


FRAMES: dict[str, tuple[Event, str]] = {
    "execution:start": (
        ExecutionStarted(EXECUTION, "ephemeral", MS),
        (
            '{"type":"execution:start","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"ephemeral","timestamp":1795465363577}'
        ),
    ),
    "module:start": (
        ModuleStarted(EXECUTION, MODULE, "Trim", MS),
        (
            '{"type":"module:start","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"moduleId":"b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538","moduleName":"Trim","timestamp":1795465363577}'
        ),
    ),
    "module:complete": (
        ModuleCompleted(EXECUTION, MODULE, "Trim", 14, MS),
        (
            '{"type":"module:complete","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"moduleId":"b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538","moduleName":"Trim","durationMs":14,'
            '"timestamp":1795465363577}'
        ),
    ),
    "module:failed": (
        ModuleFailed(EXECUTION, MODULE, "Trim", ErrorInfo(None, "boom"), MS),
        (
            '{"type":"module:failed","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"moduleId":"b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538","moduleName":"Trim","error":"boom",'
            '"timestamp":1795465363577}'
        ),
    ),
    "execution:complete": (
        completed(0, MS),
        (
            '{"type":"execution:complete","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"my-pipeline","succeeded":false,"durationMs":0,"timestamp":1795465363577}'
        ),
    ),
    "execution:cancelled": (
        ExecutionCancelled(EXECUTION, "ephemeral", MS),
        (
            '{"type":"execution:cancelled","executionId":"54b81984-f9a6-4e39-b99f-6ab4e8a03410",'
            '"dagName":"ephemeral","timestamp":1795465363577}'
        ),
    ),
}


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = st.text(max_size=MAX_NAME).map(clean_name)
MESSAGES = TEXT.map(clean_message)
MODULE_IDS = st.none() | st.uuids()
