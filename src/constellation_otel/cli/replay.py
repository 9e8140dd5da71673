"""What ``constellation-otel replay`` does: read a source to its end, and deliver its events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from constellation_otel.cli.console import (
    NOT_DELIVERED,
    collecting_rarely,
    exit_code,
    log_handler,
    make_console,
    say,
    status_line,
    stopping,
)
from constellation_otel.cli.times import epoch_ns
from constellation_otel.delivery import Bridge, DeadLetters, ExecutionFilter
from constellation_otel.errors import ConfigurationError
from constellation_otel.transports import check_sink, refuse_loop, sink_of, source_of
from constellation_otel.transports.otlp import make_resource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from constellation_otel.delivery import Rejection, Sink
    from constellation_otel.traces import Span

__all__ = ["run_replay"]


def run_replay(
    source_url: str,
    sink_urls: Sequence[str],
    *,
    service_name: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    execution_id: UUID | None = None,
    abandon_open: bool = False,
    dry_run: bool = False,
    dead_letters: str | None = None,
    settle: float | None = None,
) -> int:
    """Reads a source to its end, delivers everything, and reports what it did.

    Args:
        source_url: The source of events.
        sink_urls: Where the events go; a dry run checks them, and does not use them.
        service_name: The ``service.name`` of the traces.
        since: Leaves out executions that started earlier; without a zone, local time.
        until: Leaves out executions that started then or later.
        execution_id: The only execution to replay.
        abandon_open: Whether executions without an end are delivered, as abandoned.
        dry_run: Whether events are only counted.
        dead_letters: A file for what is unreadable or refused.
        settle: Passed to :class:`~constellation_otel.Bridge`.

    Returns:
        The exit code.

    Raises:
        ConstellationOtelError: It cannot start, or cannot continue.
    """
    since_ns = None if since is None else epoch_ns(since)
    until_ns = None if until is None else epoch_ns(until)
    if since_ns is not None and until_ns is not None and since_ns >= until_ns:
        message = f"--until {until} is not after --since {since}; give a later --until"
        raise ConfigurationError(message)
    refuse_loop(source_url, sink_urls)
    resource = make_resource(service_name)
    for url in sink_urls if dry_run else ():
        check_sink(url, resource=resource)
    source = ExecutionFilter(
        source_of(source_url, follow=False, execution_id=execution_id, dry_run=dry_run),
        since_ns=since_ns,
        until_ns=until_ns,
        execution_id=execution_id,
        acknowledges=not dry_run,
    )
    sinks: list[Sink[Any]] = [_Nowhere()] if dry_run else [sink_of(url, resource=resource) for url in sink_urls]
    bridge = Bridge(
        source,
        sinks,
        settle=settle,
        is_replay=True,
        on_full="wait",
        abandon_open=abandon_open,
        dead_letters=None if dead_letters is None or dry_run else DeadLetters(dead_letters),
    )
    console = make_console(stderr=True)
    with log_handler(console), stopping(bridge), collecting_rarely(), status_line(bridge, console):
        report = bridge.run()
    # standard output may be a sink
    result = console if "jsonl:-" in sink_urls else make_console()
    say(report, "would be replayed" if dry_run else "replayed", result, with_sinks=not dry_run)
    # a signal may have stopped it before the end
    return exit_code(report) if source.has_ended else NOT_DELIVERED


class _Nowhere:
    """The sink of a dry run: takes spans, and keeps none."""

    name: Final = "nowhere"
    takes: Final = "spans"
    max_batch: Final = 512

    def send(self, items: Sequence[Span], timeout: float) -> Sequence[Rejection]:  # noqa: ARG002 - a sink's signature
        return ()

    def close(self) -> None:
        """Nothing is open."""
