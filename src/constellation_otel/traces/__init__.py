"""Events in, finished spans out: the assembler, ids, sampling, attributes. No I/O, no thread, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from constellation_otel._support.door import door

if TYPE_CHECKING:
    from constellation_otel.traces.assembler import Assembler, Counters
    from constellation_otel.traces.critical_path import CriticalPath, Gap, PathPart, critical_path_of
    from constellation_otel.traces.ids import attempt_id_of, execution_id_of, module_id_of, span_id_of, trace_id_of
    from constellation_otel.traces.rendering import Execution, Module, Reason
    from constellation_otel.traces.sampling import (
        NOT_TRACED,
        Decider,
        Decision,
        Sampling,
        decide,
        exported,
        sampler_of_environment,
        without_exceptions,
    )
    from constellation_otel.traces.span import (
        ATTEMPT,
        DAG_NAME,
        ERROR_TYPE,
        EXCEPTION_EVENT,
        EXCEPTION_MESSAGE,
        EXCEPTION_STACKTRACE,
        EXCEPTION_TYPE,
        EXECUTION_ID,
        LINK,
        MISSING,
        MODULE_ID,
        MODULE_NAME,
        NOTHING_DROPPED,
        OUTCOME,
        UPSTREAM,
        AttributeValue,
        Dropped,
        Span,
        SpanEvent,
        SpanLink,
    )
    from constellation_otel.traces.tree import Tree, tree_of
else:
    __getattr__, __dir__ = door(
        __name__,
        {
            "assembler": ("Assembler", "Counters"),
            "critical_path": ("CriticalPath", "Gap", "PathPart", "critical_path_of"),
            "rendering": ("Execution", "Module", "Reason"),
            "ids": ("attempt_id_of", "execution_id_of", "module_id_of", "span_id_of", "trace_id_of"),
            "sampling": (
                "NOT_TRACED",
                "Decider",
                "Decision",
                "Sampling",
                "decide",
                "exported",
                "sampler_of_environment",
                "without_exceptions",
            ),
            "span": (
                "DAG_NAME",
                "ERROR_TYPE",
                "EXCEPTION_EVENT",
                "EXCEPTION_MESSAGE",
                "EXCEPTION_STACKTRACE",
                "EXCEPTION_TYPE",
                "EXECUTION_ID",
                "LINK",
                "MODULE_ID",
                "MISSING",
                "MODULE_NAME",
                "NOTHING_DROPPED",
                "OUTCOME",
                "UPSTREAM",
                "ATTEMPT",
                "AttributeValue",
                "Dropped",
                "Span",
                "SpanEvent",
                "SpanLink",
            ),
            "tree": ("Tree", "tree_of"),
        },
    )

__all__ = [
    "ATTEMPT",
    "DAG_NAME",
    "ERROR_TYPE",
    "EXCEPTION_EVENT",
    "EXCEPTION_MESSAGE",
    "EXCEPTION_STACKTRACE",
    "EXCEPTION_TYPE",
    "EXECUTION_ID",
    "LINK",
    "MISSING",
    "MODULE_ID",
    "MODULE_NAME",
    "NOTHING_DROPPED",
    "NOT_TRACED",
    "OUTCOME",
    "UPSTREAM",
    "Assembler",
    "AttributeValue",
    "Counters",
    "CriticalPath",
    "Decider",
    "Decision",
    "Dropped",
    "Execution",
    "Gap",
    "Module",
    "PathPart",
    "Reason",
    "Sampling",
    "Span",
    "SpanEvent",
    "SpanLink",
    "Tree",
    "attempt_id_of",
    "critical_path_of",
    "decide",
    "execution_id_of",
    "exported",
    "module_id_of",
    "sampler_of_environment",
    "span_id_of",
    "trace_id_of",
    "tree_of",
    "without_exceptions",
]
