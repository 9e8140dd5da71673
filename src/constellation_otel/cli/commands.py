"""The commands of ``constellation-otel``: their options and help texts, and nothing else.

Each command imports what it does when it runs, so that none pays for the others.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from constellation_otel._support.text import printable
from constellation_otel.cli.times import epoch_ns, length_ns_of
from constellation_otel.errors import ConfigurationError, ConstellationOtelError, MissingExtraError
from constellation_otel.traces import trace_id_of

try:
    import click
except ModuleNotFoundError as error:
    raise MissingExtraError("click", "cli") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    _Time = click.ParamType[datetime]
    _Number = click.ParamType[int]
else:
    _Time = _Number = click.ParamType  # not generic in older releases

__all__ = ["cli"]

_USAGE = 2
_OTLP_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class _When(_Time):
    """A moment in ISO 8601; without a zone, local time."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not an ISO 8601 time, e.g. 2026-11-24 or 2026-11-24T12:30:00+01:00", param, ctx)


class _Since(_When):
    """A moment in ISO 8601, or how long ago it was."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        length_ns = length_ns_of(value)
        if length_ns is None:
            return super().convert(value, param, ctx)
        try:
            return datetime.now(UTC) - timedelta(microseconds=length_ns // 1_000)
        except OverflowError:
            self.fail(f"{value!r} is before the year 1", param, ctx)


class _Length(_Number):
    """A length of time, in nanoseconds."""

    name = "length"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        length_ns = length_ns_of(value)
        if length_ns is None:
            self.fail(f"{value!r} is not a length of time, e.g. 500ms, 2s, 1.5m, 1h or 2d", param, ctx)
        return length_ns


class _Commands(click.Group):
    """Commands whose errors escape control characters that they quote from the command line."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _printable_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _printable_errors():
            return super().invoke(ctx)


@contextmanager
def _printable_errors() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        cast("Any", error).message = printable(error.message, keep="\n")
        raise


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="constellation-otel")
def cli() -> None:
    """Traces, metrics and logs from a pipeline engine's execution events."""


@cli.command("trace-id")
@click.argument("execution_id", metavar="UUID", type=click.UUID)
def trace_id(execution_id: UUID) -> None:
    """Print the trace id of the execution UUID.

    An execution whose caller had a span is in the caller's trace instead.
    """
    click.echo(format(trace_id_of(execution_id), "032x"))


@cli.command()
@click.option(
    "--endpoint",
    metavar="URL",
    envvar=_OTLP_ENDPOINT,
    show_envvar=True,
    help="Send to this OTLP endpoint and print links, instead of drawing the traces here.",
)
@click.option(
    "--jaeger",
    metavar="URL",
    default="http://localhost:16686",
    show_default=True,
    help="The URL of Jaeger's UI, for the links.",
)
@click.option("--all", "shows_all", is_flag=True, help="Show all of the recorded executions, not two of them.")
def demo(endpoint: str | None, jaeger: str, shows_all: bool) -> None:
    """Run pipelines over real text, replay recorded engine frames, and show their traces."""
    try:
        from constellation_otel.cli.demo import run_demo  # noqa: PLC0415 - for this command only

        run_demo(endpoint, jaeger, shows_all=shows_all)
    except ConstellationOtelError as error:
        _fail(error, "demo")


_SOURCE = click.argument("source", metavar="SOURCE")
_DEAD_LETTERS = click.option(
    "--dead-letters", metavar="FILE", help="Write what is unreadable or refused for good to this file."
)
_SERVICE_NAME = click.option(
    "--service-name",
    metavar="NAME",
    help="The service.name of the traces.  [default: OTEL_SERVICE_NAME, or constellation]",
)
_API_KEY_FILE = click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A file with the engine's API key.  [default: the variable CONSTELLATION_API_KEY]",
)
_SETTLE = click.option(
    "--settle",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long spans wait after their end for late events.  [default: 1]",
)
_EXIT_CODES = """\b
Exit codes: 0 everything was delivered; 1 it could not start, or not continue;
2 wrong usage; 3 something is still to be delivered, run it again;
4 something was lost: dropped, refused, unreadable, or not delivered in time
and not readable again. Executions without an end are left for the next run."""


@cli.command(epilog=_EXIT_CODES)
@_SOURCE
@click.option(
    "--to", "sinks", metavar="SINK", multiple=True, required=True, help="Deliver to this sink; may be repeated."
)
@click.option("--journal", metavar="FILE", help="Keep events in this file until every sink has them.")
@_SERVICE_NAME
@_SETTLE
@click.option(
    "--idle-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3_600,
    show_default=True,
    metavar="SECONDS",
    help="Abandon an execution after this time without an event.",
)
@click.option(
    "--max-age",
    type=click.FloatRange(min=0, min_open=True),
    default=86_400,
    show_default=True,
    metavar="SECONDS",
    help="Abandon an execution at this age.",
)
@click.option(
    "--max-held",
    type=click.IntRange(min=1),
    default=65_536,
    show_default=True,
    metavar="EVENTS",
    help="Hold at most this many events for each sink.",
)
@click.option("--execution", type=click.UUID, metavar="UUID", help="Follow this execution only.")
@_API_KEY_FILE
@click.option(
    "--max-reconnect-wait",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Wait at most this long before reconnecting to the engine.  [default: 5 while its host answers, else 30]",
)
@_DEAD_LETTERS
@click.option("--health", metavar="HOST:PORT", help="Serve /livez, /readyz and counters on this address.")
@click.option(
    "--close-timeout",
    type=click.FloatRange(min=0),
    default=20,
    show_default=True,
    metavar="SECONDS",
    help="Take at most this long to deliver what is held at the end; metrics and logs get five seconds more.",
)
def bridge(
    source: str,
    sinks: tuple[str, ...],
    journal: str | None,
    service_name: str | None,
    settle: float | None,
    idle_timeout: float,
    max_age: float,
    max_held: int,
    execution: UUID | None,
    api_key_file: Path | None,
    max_reconnect_wait: float | None,
    dead_letters: str | None,
    health: str | None,
    close_timeout: float,
) -> None:
    """Follow SOURCE and deliver its events to every SINK, until SIGTERM.

    \b
    SOURCE: ws[s]://host:port  kafka://broker:9092/topic?group=name
            postgresql://…  sqlite:///file  jsonl:file  jsonl:-  journal:file.db
            dagster:[folder][?job=name&since=time]
    SINK:   otlp://host:4317  otlp+http://host:4318  otlps://…  otlp+https://…
            kafka://…  postgresql://…  sqlite:///file  jsonl:file  jsonl:-
            journal:file.db
    """

    def run() -> int:
        from constellation_otel.cli.bridge import run_bridge  # noqa: PLC0415 - for this command only

        return run_bridge(
            source,
            sinks,
            journal=journal,
            service_name=service_name,
            settle=settle,
            idle_timeout=idle_timeout,
            max_age=max_age,
            max_held=max_held,
            execution_id=execution,
            api_key=None if api_key_file is None else _key_in(api_key_file),
            max_reconnect_wait=max_reconnect_wait,
            dead_letters=dead_letters,
            health=health,
            close_timeout=close_timeout,
        )

    _exit_with(run, "bridge")


@cli.command(epilog=_EXIT_CODES)
@_SOURCE
@click.option("--to", "sinks", metavar="SINK", multiple=True, help="Deliver to this sink; may be repeated.")
@_SERVICE_NAME
@_SETTLE
@click.option(
    "--since", type=_When(), metavar="TIME", help="Only executions that started at or after this time (ISO 8601)."
)
@click.option("--until", type=_When(), metavar="TIME", help="Only executions that started before this time.")
@click.option("--execution", type=click.UUID, metavar="UUID", help="Only this execution.")
@click.option("--abandon-open", is_flag=True, help="Also deliver executions without an end, as abandoned.")
@click.option("--dry-run", is_flag=True, help="Count only, deliver nothing.")
@_DEAD_LETTERS
def replay(
    source: str,
    sinks: tuple[str, ...],
    service_name: str | None,
    settle: float | None,
    since: datetime | None,
    until: datetime | None,
    execution: UUID | None,
    abandon_open: bool,
    dry_run: bool,
    dead_letters: str | None,
) -> None:
    """Read SOURCE to its end and deliver its events to every SINK.

    The clock is the events' timestamps: nothing waits, and no metrics are made.

    \b
    SOURCE: kafka://broker:9092/topic  postgresql://…  sqlite:///file
            jsonl:file  jsonl:-  journal:file.db  dagster:[folder]
    SINK:   as for bridge
    """
    if not sinks and not dry_run:
        message = "Missing option '--to'; give it, or --dry-run."
        raise click.UsageError(message)

    def run() -> int:
        from constellation_otel.cli.replay import run_replay  # noqa: PLC0415 - for this command only

        return run_replay(
            source,
            sinks,
            service_name=service_name,
            settle=settle,
            since=since,
            until=until,
            execution_id=execution,
            abandon_open=abandon_open,
            dry_run=dry_run,
            dead_letters=dead_letters,
        )

    _exit_with(run, "replay")


_MOST_LISTED = 20
_OUTCOMES = ("success", "failure", "cancelled", "abandoned")


@cli.command()
@click.argument("execution_id", metavar="[UUID]", type=click.UUID, required=False)
@click.option("--from", "source", metavar="SOURCE", required=True, help="The source of its events.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the trace to this file, as a page for a browser that needs no network.",
)
@click.option("--dag", metavar="NAME", help="List only executions of this DAG.")
@click.option(
    "--outcome",
    type=click.Choice(_OUTCOMES),
    help="List only executions with this outcome; abandoned are those without an end.",
)
@click.option("--slower-than", type=_Length(), metavar="LENGTH", help="List only longer ones, e.g. 500ms or 2s.")
@click.option(
    "--since",
    type=_Since(),
    metavar="TIME",
    help="List only executions that started at or after this time (ISO 8601), or this long ago, e.g. 1h or 30m.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="NUMBER", help="List at most so many.  [default: 20]")
def show(
    execution_id: UUID | None,
    source: str,
    html: Path | None,
    dag: str | None,
    outcome: str | None,
    slower_than: int | None,
    since: datetime | None,
    limit: int | None,
) -> None:
    """Draw the trace of the execution UUID from its events in SOURCE.

    Without a UUID, list the executions of SOURCE, the newest first.

    \b
    SOURCE: postgresql://…  sqlite:///file  kafka://broker:9092/topic
            jsonl:file  journal:file.db  dagster:[folder]
    """
    of_list = (dag, outcome, slower_than, since, limit)
    if execution_id is not None and any(option is not None for option in of_list):
        message = "--dag, --outcome, --slower-than, --since and --limit are for the list; leave them or the UUID out."
        raise click.UsageError(message)

    if execution_id is None and html is not None:
        message = "--html is for the trace of one execution; give its UUID, which the list without --html has."
        raise click.UsageError(message)

    def draw(execution_id: UUID) -> int:
        from constellation_otel.cli.console import make_console  # noqa: PLC0415 - for this command only
        from constellation_otel.cli.show import show, show_page  # noqa: PLC0415 - for this command only

        if show(execution_id, source, make_console()) if html is None else show_page(execution_id, source, html):
            return 0
        click.echo(f"constellation-otel show: no event of execution {execution_id}; check the id and --from", err=True)
        return 1

    def list_all() -> int:
        from constellation_otel.cli.console import make_console  # noqa: PLC0415 - for this command only
        from constellation_otel.cli.listing import Wanted  # noqa: PLC0415 - for this command only
        from constellation_otel.cli.show import show_list  # noqa: PLC0415 - for this command only

        since_ns = None if since is None else epoch_ns(since)
        most = limit or _MOST_LISTED
        count = show_list(source, Wanted(dag, outcome, slower_than, since_ns), most, make_console())
        if count > most:
            click.echo(f"constellation-otel show: {count - most} older ones are left out; see --limit", err=True)
        if count:
            return 0
        click.echo(
            f"constellation-otel show: no such execution; check {'the filters and ' * is_filtered}--from", err=True
        )
        return 1

    is_filtered = any(option is not None for option in of_list[:-1])
    _exit_with(list_all if execution_id is None else lambda: draw(execution_id), "show")


@cli.command()
@_SOURCE
@_API_KEY_FILE
def watch(source: str, api_key_file: Path | None) -> None:
    """Show what runs in SOURCE now, live, until Ctrl-C or SIGTERM.

    On a terminal: the executions that run, with their modules; rates; the last
    failures; the slowest; and what the source has lost. Elsewhere: one line for
    each execution that ends. A source that keeps its events is read from its
    beginning. Nothing is acknowledged, and no consumer group is joined.

    \b
    SOURCE: ws[s]://host:port  kafka://broker:9092/topic  postgresql://…
            sqlite:///file  jsonl:file  jsonl:-  dagster:[folder]
    """

    def run() -> int:
        from constellation_otel.cli.watch import run_watch  # noqa: PLC0415 - for this command only

        return run_watch(source, api_key=None if api_key_file is None else _key_in(api_key_file))

    _exit_with(run, "watch")


@cli.command()
@click.argument("url", metavar="URL")
def schema(url: str) -> None:
    """Print the DDL of the audit table for the database of URL, postgresql: or sqlite:."""

    def run() -> int:
        from constellation_otel.cli.show import schema  # noqa: PLC0415 - for this command only

        click.echo(schema(url), nl=False)
        return 0

    _exit_with(run, "schema")


@cli.command(epilog="Exit codes: 0 no problem; 1 a problem; 2 wrong usage.")
@click.argument("urls", metavar="[URL]...", nargs=-1)
@click.option("--jaeger", metavar="URL", help="Send one span through each OTLP URL, and find it in this Jaeger.")
@_API_KEY_FILE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(urls: tuple[str, ...], jaeger: str | None, api_key_file: Path | None, as_json: bool) -> None:
    """Look at versions, variables, and every URL of a source or a sink, and say what to do.

    Nothing is written, but for the one span of --jaeger. Without a URL, the OTLP endpoint
    of the environment is looked at, if it names one.

    \b
    URL:    as SOURCE and SINK for bridge
    """

    def run() -> int:
        # read when gRPC is imported: what it would write to standard error is in its errors, too
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from constellation_otel.cli.doctor import run_doctor  # noqa: PLC0415 - for this command only

        api_key = None if api_key_file is None else _key_in(api_key_file)
        return run_doctor(urls, jaeger=jaeger, as_json=as_json, api_key=api_key)

    _exit_with(run, "doctor")


def _key_in(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except UnicodeDecodeError as error:
        message = f"{file} is not an API key: it has characters that are not ASCII; write only the key into it"
        raise ConfigurationError(message) from error


def _exit_with(run: Callable[[], int], command: str) -> None:
    """Exits with the command's exit code, or with its error in one line."""
    try:
        code = run()
    except ConstellationOtelError as error:
        _fail(error, command)
    sys.exit(code)


def _fail(error: ConstellationOtelError, command: str) -> NoReturn:
    """Exits with an error in one line."""
    click.echo(f"constellation-otel {command}: {error}", err=True)
    # a URL, option or variable that is not valid is wrong usage
    sys.exit(_USAGE if isinstance(error, ConfigurationError) else 1)
