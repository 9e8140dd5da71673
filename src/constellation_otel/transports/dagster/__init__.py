"""Dagster: the runs in an instance's event log, those of years ago and those that are running.

Dagster itself is imported when a source is made. What its records mean is in ``records``.
"""

from __future__ import annotations

from constellation_otel.transports.dagster.source import DagsterSource

__all__ = ["DagsterSource", "source_of"]

source_of = DagsterSource.from_url
