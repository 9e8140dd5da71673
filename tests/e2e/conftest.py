"""The peers that most end-to-end tests share; a test that kills one starts its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .peers import Collector, Jaeger

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """A Jaeger for the whole run."""
    with Jaeger(tmp_path_factory.mktemp("jaeger")) as server:
        yield server


@pytest.fixture(scope="session")
def collector(tmp_path_factory: pytest.TempPathFactory, jaeger: Jaeger) -> Iterator[Collector]:
    """A Collector for the whole run, with collector-config.yaml, in front of the shared Jaeger."""
    with Collector(tmp_path_factory.mktemp("collector"), jaeger=jaeger.target) as server:
        yield server
