"""Exceptions as log records, and whether they are span events, log records, or both.

OpenTelemetry's semantic conventions move exceptions from span events to log
records. A variable, which the SDK does not read, says what a user has opted for.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from opentelemetry._logs import SeverityNumber
from opentelemetry.context import Context

from constellation_otel._support.log import log
from constellation_otel._support.scope import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from constellation_otel.otel import _sdk_internals as internals

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider

    from constellation_otel.traces import AttributeValue, Decision, Span

__all__ = ["exception_signals", "log_exceptions"]

_LOGGER: Final = logging.getLogger(__name__)
_EXCEPTION_SIGNAL: Final = "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN"


def exception_signals() -> tuple[bool, bool]:
    """Whether exceptions are span events, and whether they are log records."""
    value = os.environ.get(_EXCEPTION_SIGNAL, "").strip()
    match value:
        case "":
            return True, False
        case "logs":
            return False, True
        case "logs/dup":
            return True, True
        case _:
            message = "%s=%s is unknown and ignored: exceptions are span events; use 'logs' or 'logs/dup'"
            log(_LOGGER, logging.WARNING, message, _EXCEPTION_SIGNAL, repr(value))
            return True, False


def log_exceptions(provider: LoggerProvider, span: Span, decision: Decision) -> None:
    """Emits a log record for the exception that a module failed with.

    Args:
        provider: Whose logger emits.
        span: A finished span; one without events emits nothing.
        decision: What was decided on its execution.

    Raises:
        Exception: What the provider, or its processors, raise.
    """
    context = decision.context_of(span.span_id, Context())
    logger = provider.get_logger(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)
    for event in span.events:
        if not event.is_failure:
            continue
        attributes: dict[str, AttributeValue] = {**span.attributes, **event.attributes}
        internals.emit_log(
            logger,
            timestamp=event.timestamp_ns,
            context=context,
            severity_number=SeverityNumber.ERROR,
            severity_text="ERROR",
            body=span.status_description,
            attributes=attributes,
            event_name=event.name,
        )
