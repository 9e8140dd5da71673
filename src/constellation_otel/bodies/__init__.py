"""What the body of a module finds as the current span, and what comes of what it sets there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from constellation_otel._support.door import door

if TYPE_CHECKING:
    from constellation_otel.bodies.bodies import Bodies
    from constellation_otel.bodies.context import module_context, span_context_of, traceparent_of
    from constellation_otel.bodies.running import RunningModule, name_module, running_module, running_remotely
    from constellation_otel.bodies.span import BodySpan, recording
    from constellation_otel.events import BodyRecord
else:
    __getattr__, __dir__ = door(
        __name__,
        {
            "bodies": ("Bodies",),
            "context": ("module_context", "span_context_of", "traceparent_of"),
            "running": ("RunningModule", "name_module", "running_module", "running_remotely"),
            "span": ("BodyRecord", "BodySpan", "recording"),
        },
    )

__all__ = [
    "Bodies",
    "BodyRecord",
    "BodySpan",
    "RunningModule",
    "module_context",
    "name_module",
    "recording",
    "running_module",
    "running_remotely",
    "span_context_of",
    "traceparent_of",
]
