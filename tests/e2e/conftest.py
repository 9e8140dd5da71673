"""The peers that most end-to-end tests share; a test that kills one starts its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .peers import Collector, Jaeger, Kafka, Postgres

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


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker for the whole run; each test has topics of its own."""
    with Kafka(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A database server for the whole run; tests that need a table of their own make a database."""
    with Postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server
