"""What ``constellation-otel show`` and ``schema`` do.

One draws an execution's trace, writes it as a page, or lists executions; the other gives an audit table's DDL.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from constellation_otel._support.log import log
from constellation_otel.cli.console import collecting_rarely
from constellation_otel.cli.listing import list_executions, print_listing
from constellation_otel.cli.page import page_of
from constellation_otel.cli.waterfall import render_waterfall
from constellation_otel.delivery import Batch, ExecutionFilter, Unreadable, batches_of
from constellation_otel.delivery.journal import all_events_of, events_of
from constellation_otel.errors import ConfigurationError
from constellation_otel.traces import Assembler, critical_path_of
from constellation_otel.transports import source_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID

    from rich.console import Console

    from constellation_otel.cli.listing import Wanted
    from constellation_otel.events import Event
    from constellation_otel.traces import Span

__all__ = ["schema", "show", "show_list", "show_page"]

_LOGGER: Final = logging.getLogger(__name__)
_READ_TIMEOUT_S: Final = 10.0


def show(execution_id: UUID, source_url: str, console: Console) -> bool:
    """Draws the trace of an execution from its events in a source.

    Args:
        execution_id: The execution.
        source_url: The source of its events.
        console: The console to draw on.

    Returns:
        Whether there was any event of it.
    """
    spans = _spans_of(execution_id, source_url)
    if spans:
        console.print(render_waterfall(spans, with_links=True, path=critical_path_of(spans)))
    return bool(spans)


def show_page(execution_id: UUID, source_url: str, file: Path) -> bool:
    """Writes the trace of an execution as a page of HTML.

    Args:
        execution_id: The execution.
        source_url: The source of its events.
        file: Where it is written; what was there is replaced.

    Returns:
        Whether there was any event of it; nothing is written where there was none.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    spans = _spans_of(execution_id, source_url)
    if not spans:
        return False
    page = page_of(spans, critical_path_of(spans))
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        message = f"{file} cannot be written: {error.strerror}; give another --html"
        raise ConfigurationError(message) from error
    return True


def _spans_of(execution_id: UUID, source_url: str) -> list[Span]:
    assembler = Assembler(settle=1.0)
    spans: list[Span] = []
    for position, event in enumerate(_events_of(execution_id, source_url)):
        spans += assembler.add(event, 0, position)
    return spans + assembler.finish()


def show_list(source_url: str, wanted: Wanted, limit: int, console: Console) -> int:
    """Lists executions of a source, the newest first.

    Args:
        source_url: The source of their events.
        wanted: Which executions.
        limit: How many are listed at most.
        console: The console to print on.

    Returns:
        How many there were; none of them is printed where there are none.
    """
    with collecting_rarely():
        listed, count = list_executions(_events_of(None, source_url), wanted, limit)
    if listed:
        print_listing(listed, console)
    return count


def _events_of(execution_id: UUID | None, source_url: str) -> Iterator[Event]:
    scheme, _, rest = source_url.partition(":")
    if scheme == "journal":
        # reads beside the process that has the journal open
        yield from all_events_of(rest) if execution_id is None else events_of(rest, execution_id)
        return
    source = ExecutionFilter(source_of(source_url, follow=False, execution_id=execution_id), execution_id=execution_id)
    unreadable = 0
    first: Unreadable | None = None
    try:
        while not source.has_ended:
            items = batches_of(source.read(_READ_TIMEOUT_S))
            for batch in (item for item in items if isinstance(item, Batch)):
                yield from batch.events
            for bad in (item for item in items if isinstance(item, Unreadable)):
                unreadable += 1
                first = first or bad
    finally:
        source.close()
    if first is not None:
        text = "%s: unreadable records are left out: %d, the first at %s: %s"
        log(_LOGGER, logging.WARNING, text, source.name, unreadable, first.position.offset, first.reason)


def schema(url: str) -> str:
    """The DDL of the audit table for a URL's database.

    Raises:
        ConfigurationError: The URL is not of a database.
    """
    from constellation_otel.transports.sql import schema_ddl  # noqa: PLC0415 - needs an extra

    # a database's kind, and a table, are enough
    table = parse_qs(url.partition("?")[2]).get("table", ["execution_audit"])[-1]
    match url.partition(":")[0]:
        case "postgresql":
            return schema_ddl("postgresql", table)
        case "sqlite":
            return schema_ddl("sqlite", table)
        case scheme:
            message = f"there is no schema for {scheme!r}; give postgresql: or sqlite:"
            raise ConfigurationError(message)
