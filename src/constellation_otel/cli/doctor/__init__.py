"""What ``constellation-otel doctor`` does: look at this installation and at what URLs name, and say what to do.

Each check gives findings: ``installation`` of versions and variables, ``endpoints`` of
URLs, ``found_again`` of one span that is sent through an endpoint to Jaeger.
"""

from __future__ import annotations

import os
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Final, cast

import click
import msgspec
from msgspec import structs
from rich.text import Text

from constellation_otel._support.text import printable
from constellation_otel.cli.console import make_console
from constellation_otel.cli.doctor.endpoints import check_url, is_otlp, name_of
from constellation_otel.cli.doctor.finding import Finding, warning
from constellation_otel.cli.doctor.found_again import check_jaeger_url, check_span
from constellation_otel.cli.doctor.installation import check_environment, check_versions
from constellation_otel.cli.doctor.notes import noting
from constellation_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from io import TextIOWrapper

    from rich.console import Console

__all__ = ["Finding", "run_doctor"]

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_STYLES: Final = {"ok": "green", "warning": "yellow", "problem": "bold red"}
_WIDTHS: Final = (max(map(len, _STYLES)), len("environment"))


def run_doctor(urls: Sequence[str], *, jaeger: str | None, as_json: bool, api_key: str | None) -> int:
    """Prints what is found of this installation, and of each URL.

    Args:
        urls: Sources and sinks. Where there is none, the OTLP endpoint that the variables name.
        jaeger: The URL of a Jaeger's UI, in which a span is to be found that goes through each OTLP endpoint.
        as_json: Whether to print one JSON object, at the end.
        api_key: The engine's.

    Returns:
        The exit code: 1 if there is a problem.

    Raises:
        ConfigurationError: ``jaeger`` cannot be used.
    """
    targets: list[str | None] = [*urls]
    if not targets and any(os.environ.get(name, "").strip() for name in _ENDPOINTS):
        targets = [None]
    if jaeger is not None:
        jaeger = check_jaeger_url(jaeger)
        if not any(url is None or is_otlp(url) for url in targets):
            message = "--jaeger needs an OTLP endpoint to send a span to; give its URL too, as otlp://collector:4317"
            raise ConfigurationError(message)
    findings = _findings(targets, jaeger, api_key)
    if as_json:
        found = list(findings)
        counts = {f"{level}s": _count(found, level) for level in ("problem", "warning")}
        click.echo(msgspec.json.encode({**counts, "findings": found}))
    else:
        # an encoding without arrows gets question marks
        cast("TextIOWrapper", sys.stdout).reconfigure(errors="replace")
        found = _shown(findings, make_console())
    return 1 if _count(found, "problem") else 0


def _findings(targets: Sequence[str | None], jaeger: str | None, api_key: str | None) -> Iterator[Finding]:
    """Everything that is found, with nothing in it that could do something to a terminal, or is no UTF-8."""
    with noting() as notes:
        for finding in (*check_versions(), *check_environment(os.environ, notes)):
            yield _clean(finding, None)
        for number, url in enumerate(targets, 1):
            target = printable(name_of(url, number))
            for finding in _findings_of(url, jaeger, api_key):
                yield _clean(finding, target)
            said = notes.taken()
            # a consumer says of each setting of a producer's that it is of no use to it
            for note in () if target.startswith("kafka:") else said:
                yield _clean(warning("log", note, "correct what it names, or go on if it is meant so"), target)


def _findings_of(url: str | None, jaeger: str | None, api_key: str | None) -> Iterator[Finding]:
    has_problem = False
    for finding in check_url(url, api_key):
        has_problem = has_problem or finding.level == "problem"
        yield finding
    if jaeger is not None and (url is None or is_otlp(url)) and not has_problem:
        yield from check_span(url, jaeger)


def _clean(finding: Finding, target: str | None) -> Finding:
    remedy = None if finding.remedy is None else printable(finding.remedy)
    return structs.replace(finding, found=printable(finding.found), remedy=remedy, target=target)


def _count(findings: Iterable[Finding], level: str) -> int:
    return sum(finding.level == level for finding in findings)


def _shown(findings: Iterator[Finding], console: Console) -> list[Finding]:
    """Prints findings as they come, and their number; returns them."""
    found = []
    for target, group in groupby(findings, key=lambda finding: finding.target):
        if target is not None:
            _print(Text(f"\n{target}", "bold"), console)
        for finding in group:
            found.append(finding)
            level, check = (
                text.ljust(width) for text, width in zip((finding.level, finding.check), _WIDTHS, strict=True)
            )
            _print(Text.assemble((level, _STYLES[finding.level]), f"  {check}  {finding.found}"), console)
            if finding.remedy is not None:
                _print(Text(f"{'':{sum(_WIDTHS) + 2}}  → {finding.remedy}"), console)
    counts = [(_count(found, level), level) for level in ("problem", "warning")]
    said = ", ".join(f"{count} {level}{'s' if count > 1 else ''}" for count, level in counts if count)
    _print(Text(f"\n{said or 'no problem'}"), console)
    return found


def _print(text: Text, console: Console) -> None:
    # as long as it is: who searches the output finds whole lines
    console.print(text, soft_wrap=True)
