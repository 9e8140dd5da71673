"""Ids in log records: of the trace, the span and the execution, and the module's name, where a module's body logs.

:class:`ModuleIds` is for the standard library's logging, :func:`add_module_ids` for structlog. Neither needs the
OpenTelemetry SDK, and structlog is not imported.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace

from constellation_otel.bodies import running_module

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

__all__ = ["ModuleIds", "add_module_ids"]

_NAMES: Final = ("trace_id", "span_id", "execution_id", "module_name")


class ModuleIds(logging.Filter):
    """Gives each record ``trace_id``, ``span_id``, ``execution_id`` and ``module_name``; it keeps every record.

    Add it to a handler, so that it sees the records of all loggers. Each of the four is a text, empty where there is
    none: a format may name them. ``trace_id`` and ``span_id`` are the current span's, in hexadecimal, outside of
    bodies too. ``execution_id`` and ``module_name`` are those of the module whose body logs, in the spans that the
    body makes too. What a record has already, as ``extra=`` gives it, stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Adds the four; always true."""
        ids = _current()
        for name in _NAMES:
            record.__dict__.setdefault(name, ids.get(name, ""))
        return True


def add_module_ids(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ARG001 - structlog's signature
    """A processor for structlog that adds what :class:`ModuleIds` does, and leaves out what there is not.

    What the event has already, as ``bind`` gives it, stays.
    """
    for name, value in _current().items():
        event.setdefault(name, value)
    return event


def _current() -> Mapping[str, str]:
    ids: dict[str, str] = {}
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        ids["trace_id"] = format(span.trace_id, "032x")
        ids["span_id"] = format(span.span_id, "016x")
    module = running_module()
    if module is not None:
        known = {"execution_id": module.execution_id, "module_name": module.module_name}
        ids |= {name: str(value) for name, value in known.items() if value}
    return ids
