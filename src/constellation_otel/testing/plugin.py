"""The pytest plugin, which pytest loads in every run: it imports next to nothing until a test asks for its fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from constellation_otel.testing.traces import ConstellationTraces

__all__ = ["constellation_traces"]


@pytest.fixture
def constellation_traces() -> Iterator[ConstellationTraces]:
    """The traces of a test: ``constellation_traces.tree()`` draws what its engines have done, the same in every run."""
    from constellation_otel.testing.traces import ConstellationTraces  # noqa: PLC0415 - only where it is asked for

    with ConstellationTraces() as traces:
        yield traces
