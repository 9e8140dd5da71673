"""This installation: which versions there are, and what the environment says."""

from __future__ import annotations

import platform
import re
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

from constellation_otel.cli.doctor.finding import Finding, of_error, ok, warning
from constellation_otel.errors import ConfigurationError
from constellation_otel.traces import sampler_of_environment
from constellation_otel.transports.otlp import far_side_of, make_resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from constellation_otel.cli.doctor.notes import Notes

__all__ = ["check_environment", "check_versions"]

_RELEASED_TOGETHER: Final = (
    "opentelemetry-api",
    "opentelemetry-sdk",
    "opentelemetry-proto",
    "opentelemetry-exporter-otlp",
)
_BEHIND_EXTRAS: Final = {
    "confluent-kafka": "kafka",
    "sqlalchemy": "sql",
    "psycopg": "sql",
    "websockets": "websocket",
    "dagster": "dagster",
}
_DEFINED_IN: Final = (
    "opentelemetry.environment_variables",
    "opentelemetry.sdk.environment_variables",
    "opentelemetry.instrumentation.environment_variables",
)
_OURS: Final = ("CONSTELLATION_API_KEY", "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN")
_LOOKS_LIKE_OURS: Final = re.compile(r"_*(OTEL|OTLP|OLTP|OPEN_?TELEMETRY|CONSTELLATION)_.*", re.IGNORECASE)
_ALIKE: Final = 0.85
"""How much of two names has to be the same, from 0 to 1, for one to be a misspelling of the other."""
_SIGNALS: Final = ("traces", "metrics", "logs")


def check_versions() -> Iterator[Finding]:
    """What is installed of what the package needs, and whether OpenTelemetry's parts are of one release."""
    found = {name: installed for name in _RELEASED_TOGETHER if (installed := _version_of(name)) is not None}
    ours = f"constellation-otel {_version_of('constellation-otel')}, Python {platform.python_version()}"
    yield ok("versions", f"{ours}, OpenTelemetry {found['opentelemetry-sdk']}")
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} {installed}" for name, installed in found.items())
        remedy = f"run: pip install --upgrade {' '.join(found)}"
        yield warning("versions", f"OpenTelemetry's parts are of several releases: {listed}", remedy)
    optional = {name: _version_of(name) for name in _BEHIND_EXTRAS}
    there = [f"{name} {installed}" for name, installed in optional.items() if installed is not None]
    missing = [f"{name} (the extra {_BEHIND_EXTRAS[name]})" for name, installed in optional.items() if not installed]
    parts = [", ".join(there), f"not installed: {', '.join(missing)}" if missing else ""]
    yield ok("extras", "; ".join(filter(None, parts)))


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_environment(variables: Mapping[str, str], notes: Notes) -> Iterator[Finding]:
    """Which variables are set and read, which seem to be misspelt, and which have a value that cannot be used.

    Args:
        variables: The environment.
        notes: What the package logs while it reads them.
    """
    known = _known()
    read = sorted(name for name in variables if name in known and variables[name].strip())
    # the values may be secret
    yield ok("environment", f"{', '.join(read)}: set" if read else "no variable of OpenTelemetry's is set")
    for name in sorted(variables.keys() - known):
        meant = _meant(name, known)
        if meant is not None:
            yield warning("environment", f"{name} is set, and nothing reads it", f"rename it to {meant}, or unset it")
    parts: list[Callable[[], object]] = [
        sampler_of_environment,
        make_resource,
        *(
            partial(
                far_side_of,
                None,
                signal=signal,
                protocol=None,
                headers=None,
                compression=None,
                timeout=None,
                certificate=None,
                client_key=None,
                client_certificate=None,
            )
            for signal in _SIGNALS
        ),
    ]
    told = set()
    for part in parts:
        try:
            part()
        except ConfigurationError as error:
            # one variable of three signals is one problem
            if str(error) not in told:
                yield of_error(error, "environment", "correct or unset the variable")
            told.add(str(error))
    for said in notes.taken():
        yield warning("environment", said, "correct the value, or go on if it is meant so")


def _known() -> set[str]:
    """The names that the installed parts of OpenTelemetry, and this package, define."""
    names = set(_OURS)
    for module in _DEFINED_IN:
        try:
            defined = vars(import_module(module))
        except ModuleNotFoundError:
            continue
        names |= {value for value in defined.values() if isinstance(value, str) and value.startswith("OTEL_")}
    return names


def _meant(name: str, known: set[str]) -> str | None:
    """The variable that a name is a misspelling of."""
    if not _LOOKS_LIKE_OURS.fullmatch(name):
        return None
    return next(iter(get_close_matches(name.upper(), known, n=1, cutoff=_ALIKE)), None)
