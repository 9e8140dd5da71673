"""Fixtures of the tests on engines; each engine is in an environment of its own, and imported there only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from constellation_otel.receiver import Receiver
    from engines.dagster_homes import Home


@pytest.fixture
def make_home(tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Home]]:
    """Makes Dagster instances, whose steps' bodies send their spans to ``receiver``."""
    from engines import dagster_homes, dagster_jobs  # noqa: PLC0415 - needs Dagster

    monkeypatch.setenv(dagster_jobs.ENDPOINT, receiver.http_endpoint)
    made: list[Home] = []

    def make(storage: str = "") -> Home:
        made.append(dagster_homes.Home(tmp_path, receiver, storage.format(folder=tmp_path / "history")))
        return made[-1]

    yield make
    for home in made:
        home.instance.dispose()


@pytest.fixture
def home(make_home: Callable[..., Home]) -> Home:
    """A Dagster instance with the default storage: a database for each run."""
    return make_home()
