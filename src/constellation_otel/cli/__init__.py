"""The command line: ``constellation-otel``."""

from __future__ import annotations

from constellation_otel.cli.commands import cli

__all__ = [
    "cli",
]
