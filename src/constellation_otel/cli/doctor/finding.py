"""What a doctor has found: one finding, and how errors of the package become findings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from msgspec import Struct

from constellation_otel.errors import ConfigurationError, RefusedError, UnavailableError

if TYPE_CHECKING:
    from constellation_otel.errors import ConstellationOtelError

__all__ = ["Check", "Finding", "Level", "of_error", "ok", "problem", "warning"]

Level: TypeAlias = Literal["ok", "warning", "problem"]
"""``problem`` if it does not work, ``warning`` if it may not do what was meant."""
Check: TypeAlias = Literal[
    "versions",
    "extras",
    "environment",
    "url",
    "connection",
    "credentials",
    "tls",
    "clock",
    "engine",
    "topic",
    "table",
    "columns",
    "file",
    "journal",
    "instance",
    "log",
    "span",
]
"""What is looked at; docs/doctor.md says what each is."""

_CHECKS: Final[dict[str, Check]] = {
    "OTEL_EXPORTER_OTLP_HEADERS": "credentials",
    "OTEL_EXPORTER_OTLP_CERTIFICATE": "tls",
    "CONSTELLATION_API_KEY": "credentials",
    "the user, the password": "credentials",
    "ssl.* settings": "tls",
    "SSL_CERT_FILE": "tls",
    "create the topic": "topic",
    "constellation-otel schema": "columns",
}
"""Words of the package's own remedies, and what it is that they fix."""
_POSTGRESQL: Final = "fix the URL, the table or the user's rights"
"""The remedy of all that PostgreSQL refuses."""
_NOT_LET_IN: Final = re.compile("authentication failed|no password supplied|no pg_hba.conf entry|permission denied")
"""What PostgreSQL says to whom it does not let in."""


class Finding(Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        check: What was looked at.
        level: ``problem`` if it does not work, ``warning`` if it may not do what was meant.
        found: What was found; it has no secret.
        remedy: What to do about it; ``None`` where it is ok.
        target: The URL that it is about, without secrets; ``None`` where it is about this installation.
    """

    check: Check
    level: Level
    found: str
    remedy: str | None = None
    target: str | None = None


def ok(check: Check, found: str) -> Finding:
    """Something that is as it should be."""
    return Finding(check, "ok", found)


def warning(check: Check, found: str, remedy: str) -> Finding:
    """Something that may not do what was meant."""
    return Finding(check, "warning", found, remedy)


def problem(check: Check, found: str, remedy: str) -> Finding:
    """Something that does not work."""
    return Finding(check, "problem", found, remedy)


def of_error(error: ConstellationOtelError, check: Check, remedy: str, *, separator: str = "; ") -> Finding:
    """A problem, from the error that a bridge would meet.

    Args:
        error: Its message ends with what to do, unless that passes by itself or is about the data.
        check: What was looked at, where the message does not say it.
        remedy: What to do, where the message does not say it.
        separator: What stands before the message's own remedy.
    """
    found, _, own = str(error).rpartition(separator)
    if not found or type(error) in {UnavailableError, RefusedError}:
        return problem(check, str(error), remedy)
    if not isinstance(error, ConfigurationError):
        check = next((about for words, about in _CHECKS.items() if words in own), check)
    if own == _POSTGRESQL and _NOT_LET_IN.search(found):
        check, own = "credentials", "correct the user and the password, or ask for the right to use the table"
    return problem(check, found, own)
