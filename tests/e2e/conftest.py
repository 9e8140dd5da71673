"""The peers that most end-to-end tests share, a test that kills one starts its own; databases, and bridges."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from .bridges import RunningBridge, bridging
from .databases import BERLIN, Database
from .peers import Collector, Jaeger, Kafka, Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# what it finds wrong is said in full, as in a test
pytest.register_assert_rewrite(f"{__package__}.recorded_runs")

NUMBERS = count()
"""Of databases, no two of which have one name."""


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


@pytest.fixture(scope="session")
def berlin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A database server for the whole run whose time zone is Berlin's."""
    with Postgres(tmp_path_factory.mktemp("berlin"), {"timezone": BERLIN}) as server:
        yield server


@pytest.fixture
def make_database() -> Iterator[Callable[[Postgres], Database]]:
    """Makes databases; what is opened on them is closed at the end."""
    made: list[Database] = []

    def make(postgres: Postgres) -> Database:
        name = f"audit_{next(NUMBERS)}"
        postgres.psql(f"CREATE DATABASE {name}")
        made.append(Database(postgres, name))
        return made[-1]

    yield make
    for database in made:
        for opened in database.opened:
            opened.close()


@pytest.fixture
def database(berlin: Postgres, make_database: Callable[[Postgres], Database]) -> Database:
    """A database of its own, in the server in Berlin."""
    return make_database(berlin)


@pytest.fixture
def start_bridge(tmp_path: Path) -> Iterator[Callable[..., RunningBridge]]:
    """Starts bridges that end within two seconds, whatever they hold; killed at the end."""
    with ExitStack() as stack:

        def start(*arguments: str, **options: Any) -> RunningBridge:
            return stack.enter_context(bridging(tmp_path, *arguments, "--close-timeout", "2", **options))

        yield start
