"""What ``constellation-otel bridge`` does: follow a source until a signal, and deliver its events."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import msgspec

from constellation_otel import otel
from constellation_otel._support.log import log
from constellation_otel.cli.console import (
    collecting_rarely,
    exit_code,
    log_handler,
    make_console,
    say,
    status_line,
    stopping,
)
from constellation_otel.cli.health import Health
from constellation_otel.delivery import Bridge, DeadLetters, ExecutionFilter, sink_names
from constellation_otel.delivery.journal import Journal
from constellation_otel.errors import ConfigurationError
from constellation_otel.traces import sampler_of_environment
from constellation_otel.transports import refuse_loop, sink_of, source_of
from constellation_otel.transports.otlp import OtlpSink, make_resource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from opentelemetry.sdk.resources import Resource

    from constellation_otel.delivery import Sink

__all__ = ["run_bridge"]

_LOGGER: Final = logging.getLogger(__name__)
_TELEMETRY_TIMEOUT_S: Final = 5.0


def run_bridge(
    source_url: str,
    sink_urls: Sequence[str],
    *,
    journal: str | None,
    service_name: str | None,
    settle: float | None,
    idle_timeout: float,
    max_age: float,
    max_held: int,
    execution_id: UUID | None,
    api_key: str | None,
    max_reconnect_wait: float | None,
    dead_letters: str | None,
    health: str | None,
    close_timeout: float,
) -> int:
    """Follows a source until SIGTERM or SIGINT, delivers what is held, and reports what it did.

    Args:
        source_url: The source of events.
        sink_urls: Where the events go.
        journal: A file that keeps events until every sink has them.
        service_name: The ``service.name`` of the traces.
        settle: Passed to :class:`~constellation_otel.Bridge`, as are the next three.
        idle_timeout: Seconds.
        max_age: Seconds.
        max_held: Events.
        execution_id: The only execution to follow.
        api_key: The engine's API key.
        max_reconnect_wait: The longest wait between two attempts to connect to the engine, in seconds.
        dead_letters: A file for what is unreadable or refused.
        health: The ``host:port`` to serve health on.
        close_timeout: Seconds to deliver what is held at the end.

    Returns:
        The exit code.

    Raises:
        ConstellationOtelError: It cannot start, or cannot continue.
    """
    if journal is not None and source_url.startswith("kafka:"):
        message = (
            "a journal is of no use between Kafka and its sinks: the topic keeps what is not acknowledged, and another"
            " bridge that takes over a partition cannot read this one's journal; leave --journal out"
        )
        raise ConfigurationError(message)
    if execution_id is not None and source_url.startswith("kafka:"):
        message = (
            "a Kafka consumer group cannot follow one execution, since it commits offsets for all of them;"
            " leave --execution out, or use replay"
        )
        raise ConfigurationError(message)
    refuse_loop(source_url, sink_urls)
    resource = make_resource(service_name)
    console = make_console(stderr=True)
    with ExitStack() as stack:
        stack.enter_context(log_handler(console))
        source = source_of(
            source_url,
            follow=True,
            execution_id=execution_id,
            api_key=api_key,
            max_reconnect_wait=max_reconnect_wait,
        )
        if execution_id is not None:
            source = ExecutionFilter(source, execution_id=execution_id)
        sinks = [sink_of(url, resource=resource) for url in sink_urls]
        kept = None if journal is None else Journal(journal, sinks=sink_names(sinks))
        letters = None if dead_letters is None else DeadLetters(dead_letters)
        telemetry = _telemetry_of(sinks, resource)
        bridge = Bridge(
            source,
            sinks,
            journal=kept,
            settle=settle,
            idle_timeout=idle_timeout,
            max_age=max_age,
            max_held=max_held,
            # whatever writes to the pipe can wait
            on_full="wait" if source_url == "jsonl:-" else None,
            telemetry=telemetry,
            dead_letters=letters,
            close_timeout=close_timeout,
        )
        log(_LOGGER, logging.INFO, "bridging from %s to %s", source.name, ", ".join(sink_names(sinks)))
        if health is not None:
            served = stack.enter_context(Health(health, bridge))
            log(_LOGGER, logging.INFO, "health is served on %s", served.url)
        if telemetry is not None:
            telemetry.watch(bridge)
        with stopping(bridge), collecting_rarely():
            try:
                with status_line(bridge, console):
                    report = bridge.run()
            finally:
                if telemetry is not None:
                    telemetry.close(_TELEMETRY_TIMEOUT_S)
        if console.is_terminal:
            say(report, "bridged", console)
        else:
            log(_LOGGER, logging.INFO, "%d events bridged", report.events, report=msgspec.to_builtins(report))
        return exit_code(report)


def _telemetry_of(sinks: Sequence[Sink[Any]], resource: Resource) -> otel.PrivateSignals | None:
    """Metrics and failure logs go to the endpoint of the traces: the first OTLP sink."""
    for sink in sinks:
        if isinstance(sink, OtlpSink):
            # raises what Bridge would, before there are metrics that would be sent at the exit
            sampler_of_environment()
            # found now: without an OTLP sink, the SDK's metrics are not imported
            return otel.PrivateSignals(resource, endpoint=sink.endpoint, protocol=sink.protocol)
    return None
