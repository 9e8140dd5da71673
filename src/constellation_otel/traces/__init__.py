"""Events in, finished spans out: the assembler, ids, sampling, attributes. No I/O, no thread, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from constellation_otel._support.door import door

if TYPE_CHECKING:
    from constellation_otel.traces.assembler import Assembler, Counters
    from constellation_otel.traces.ids import span_id_of, trace_id_of
    from constellation_otel.traces.sampling import NOT_TRACED, Decision, Sampled, decide, sampler_of_environment
    from constellation_otel.traces.span import (
        DAG_NAME,
        ERROR_TYPE,
        EXECUTION_ID,
        MISSING,
        MODULE_NAME,
        OUTCOME,
        AttributeValue,
        Span,
        SpanEvent,
    )
else:
    __getattr__, __dir__ = door(
        __name__,
        {
            "assembler": ("Assembler", "Counters"),
            "ids": ("span_id_of", "trace_id_of"),
            "sampling": ("NOT_TRACED", "Decision", "Sampled", "decide", "sampler_of_environment"),
            "span": (
                "DAG_NAME",
                "ERROR_TYPE",
                "EXECUTION_ID",
                "MISSING",
                "MODULE_NAME",
                "OUTCOME",
                "AttributeValue",
                "Span",
                "SpanEvent",
            ),
        },
    )

__all__ = [
    "DAG_NAME",
    "ERROR_TYPE",
    "EXECUTION_ID",
    "MISSING",
    "MODULE_NAME",
    "NOT_TRACED",
    "OUTCOME",
    "Assembler",
    "AttributeValue",
    "Counters",
    "Decision",
    "Sampled",
    "Span",
    "SpanEvent",
    "decide",
    "sampler_of_environment",
    "span_id_of",
    "trace_id_of",
]
