"""The commands of ``constellation-otel``: their words and options, and nothing else."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from constellation_otel.errors import ConstellationOtelError, MissingExtraError
from constellation_otel.ids import trace_id_of

try:
    import click
except ModuleNotFoundError as error:
    raise MissingExtraError("click", "cli") from error

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["cli"]

_OTLP_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="constellation-otel")
def cli() -> None:
    """Traces, metrics and logs from a pipeline engine's execution events."""


@cli.command("trace-id")
@click.argument("execution_id", metavar="UUID", type=click.UUID)
def trace_id(execution_id: UUID) -> None:
    """Print the trace id of the execution UUID.

    That of an execution whose caller had no span of its own; where it had one, the
    execution is in the caller's trace.
    """
    click.echo(format(trace_id_of(execution_id), "032x"))


@cli.command()
@click.option(
    "--endpoint",
    metavar="URL",
    envvar=_OTLP_ENDPOINT,
    show_envvar=True,
    help="Send to this OTLP endpoint and print links, rather than to an embedded one and draw.",
)
@click.option(
    "--jaeger",
    metavar="URL",
    default="http://localhost:16686",
    show_default=True,
    help="Jaeger's page, for the links.",
)
def demo(endpoint: str | None, jaeger: str) -> None:
    """Run pipelines over real text, play recorded engine frames, and show their traces."""
    try:
        from constellation_otel.demo import run_demo  # noqa: PLC0415 - it needs more than the other commands

        run_demo(endpoint, jaeger)
    except ConstellationOtelError as error:
        sys.exit(f"constellation-otel demo: {error}")
