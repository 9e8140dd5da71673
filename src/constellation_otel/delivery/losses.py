"""The warning that a source loses events; the assembler decides which absences are a loss."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from constellation_otel._support.log import RateLimitedLog
from constellation_otel.traces import DAG_NAME, EXECUTION_ID, MISSING, MODULE_NAME

if TYPE_CHECKING:
    from constellation_otel.traces import Span

__all__ = ["LossLog"]

_LOGGER: Final = logging.getLogger(__name__)


class LossLog:
    """Warns, rate-limited, of spans that are incomplete since an event was lost.

    Args:
        source: Who loses events: the source's name.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._log = RateLimitedLog()

    def __call__(self, span: Span) -> None:
        """Names what is missing of a span; never raises."""
        module = span.attributes.get(MODULE_NAME)
        missing = str(span.attributes[MISSING])
        # an execution's end is also missing where an engine does not report every end
        is_certain = module is not None or missing != "end"
        self._log.write(
            _LOGGER,
            logging.WARNING,
            "loses",
            "%s loses events%s: the %s of %sexecution %s of DAG %r never came",
            self._source,
            "" if is_certain else ", or does not say when an execution is cancelled or times out",
            missing.replace(",", " and the "),
            "" if module is None else f"module {module!r} of ",
            span.attributes[EXECUTION_ID],
            span.attributes[DAG_NAME],
        )
