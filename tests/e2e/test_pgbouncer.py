"""The audit table behind a PgBouncer that gives each transaction whichever of two server connections is free."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING
from uuid import UUID

import psycopg
import pytest

from constellation_otel.delivery import Record
from constellation_otel.errors import MisconfiguredError, UnavailableError
from constellation_otel.events import ExecutionCompleted, ExecutionStarted, encode_json
from constellation_otel.transports.sql import SqlSink, SqlSource
from deliveries import flat

from .bridges import bridging, command
from .peers import NotYet, PgBouncer, Postgres, eventually
from .peers.postgres import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from constellation_otel.events import Event

TIMEOUT = 30.0
NS = 1_774_742_400_123_456_789
CLIENTS = 4
BATCHES = 8
"""More than psycopg's five executions, after which it would prepare a statement."""


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="module")
def pgbouncer(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[PgBouncer]:
    with PgBouncer(tmp_path_factory.mktemp("pgbouncer"), postgres) as pooler:
        yield pooler


@pytest.fixture
def url(postgres: Postgres, pgbouncer: PgBouncer) -> str:
    """A database of its own for one test, through the pooler."""
    name = f"pooled_{next(numbers)}"
    postgres.psql(f"CREATE DATABASE {name}")
    return pgbouncer.url(name)


numbers = count()


def started(number: int) -> ExecutionStarted:
    return ExecutionStarted(UUID(int=number), f"dag-{number}", NS + number)


def write(url: str, events: list[Event], size: int) -> None:
    sink = SqlSink(url)
    try:
        for begin in range(0, len(events), size):
            assert sink.send(events[begin : begin + size], TIMEOUT) == []
    finally:
        sink.close()


def read(url: str) -> list[Event]:
    source = SqlSource(url)
    events: list[Event] = []
    try:
        while not source.has_ended:
            events += [item.event for item in flat(source.read(TIMEOUT)) if isinstance(item, Record)]
    finally:
        source.close()
    return events


@pytest.mark.parametrize("parameters", ["", "?prepare_threshold=0", "?prepare_threshold=5"])
def test_clients_and_runs_that_share_server_connections_write_and_read_everything(url: str, parameters: str) -> None:
    parts: list[list[Event]] = [
        [started(client * 1000 + number) for number in range(BATCHES * 20)] for client in range(CLIENTS)
    ]
    # the table, which two that make it at once would have to try again
    write(url, parts[0][:1], 1)
    for _ in range(2):
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda part: write(url + parameters, part, 20), parts))
    with ThreadPoolExecutor(CLIENTS) as pool:
        read_by_each = list(pool.map(read, [url + parameters] * CLIENTS))
    everything = sorted(event.timestamp_ns for part in parts for event in part)
    assert [sorted(event.timestamp_ns for event in events) for events in read_by_each] == [everything] * CLIENTS


def test_a_table_is_followed_while_others_write_it(url: str) -> None:
    write(url, [started(0)], 1)
    source = SqlSource(url, follow=True, poll_interval=0.01)
    writers = [
        threading.Thread(target=write, args=(url, [started(client * 1000 + n) for n in range(1, 61)], 10))
        for client in range(CLIENTS)
    ]
    come: list[int] = []

    def has_come() -> bool:
        come.extend(item.event.execution_id.int for item in flat(source.read(0.1)) if isinstance(item, Record))
        return len(come) >= 1 + CLIENTS * 60

    try:
        for writer in writers:
            writer.start()
        eventually(has_come, TIMEOUT, "every row has come")
    finally:
        for writer in writers:
            writer.join(TIMEOUT)
        source.close()
    assert sorted(come) == sorted([0, *(client * 1000 + n for client in range(CLIENTS) for n in range(1, 61))])


def test_the_commands_work_through_the_pooler_run_after_run(url: str, tmp_path: Path) -> None:
    events: list[Event] = []
    for number in range(300):
        execution = UUID(int=number)
        events += [
            ExecutionStarted(execution, "d", NS + number),
            ExecutionCompleted(execution, "d", True, 5.0, NS + number + 5_000_000),
        ]
    file = tmp_path / "many.jsonl"
    file.write_bytes(b"".join(encode_json(event) + b"\n" for event in events))
    # twice two at once
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            for done in pool.map(lambda _: command("replay", f"jsonl:{file}", "--to", url), range(2)):
                assert done.returncode == 0, done.stdout + done.stderr
    with bridging(tmp_path, url, "--to", f"jsonl:{tmp_path / 'out.jsonl'}") as bridge:
        bridge.wait_until_read(600)
        bridge.end()
    assert sorted((tmp_path / "out.jsonl").read_bytes().splitlines()) == sorted(file.read_bytes().splitlines())
    done = command("show", str(UUID(int=7)), "--from", url)
    assert done.returncode == 0, done.stderr


def test_no_setting_of_a_transaction_is_left_on_the_servers_connection(postgres: Postgres, tmp_path: Path) -> None:
    with PgBouncer(tmp_path, postgres, {"default_pool_size": "1"}) as pooler:
        write(pooler.url() + "?table=settings", [started(1)], 1)
        # by PostgreSQL's own client, on the connection that the sink has had
        assert postgres.psql("SHOW statement_timeout; SHOW datestyle", url=pooler.url()) == "0\nISO, MDY"


@pytest.mark.parametrize(
    ("options", "parameters", "message"),
    [
        ({"password": "wr0ng-passw0rd"}, "", "authentication failed"),
        ({"user": "nobody-here"}, "", "authentication failed"),
        ({"database": "no_such_database"}, "", 'database "no_such_database" does not exist'),
        ({}, "?options=-csearch_path%3Dops", "unsupported startup parameter: options"),
    ],
)
def test_what_the_pooler_does_not_let_in_is_misconfigured(
    pgbouncer: PgBouncer, options: dict[str, str], parameters: str, message: str
) -> None:
    sink = SqlSink(pgbouncer.url(**options) + parameters)
    with pytest.raises(MisconfiguredError, match=message) as caught:
        sink.send([started(1)], TIMEOUT)
    sink.close()
    assert options.get("password", PASSWORD) not in str(caught.value)


def test_a_pooler_that_has_no_connection_to_give_is_unavailable_for_a_while(tmp_path: Path) -> None:
    with (
        Postgres(tmp_path / "postgres") as postgres,
        PgBouncer(tmp_path, postgres, {"default_pool_size": "1", "query_wait_timeout": "1"}) as pooler,
    ):
        sink = SqlSink(pooler.url())
        sink.send([started(1)], TIMEOUT)
        with psycopg.connect(pooler.url(), connect_timeout=10) as other:
            # from here to its end it has the only one
            other.execute("SELECT 1")
            with pytest.raises(UnavailableError, match="query_wait_timeout") as caught:
                sink.send([started(2)], TIMEOUT)
            assert type(caught.value) is UnavailableError
        sink.send([started(2)], TIMEOUT)
        postgres.stop()
        with pytest.raises(UnavailableError) as caught:
            sink.send([started(3)], 5.0)
        assert type(caught.value) is UnavailableError
        postgres.start()

        def has_been_sent() -> bool:
            try:
                sink.send([started(3)], TIMEOUT)
            except UnavailableError as error:
                raise NotYet(str(error)) from error
            return True

        eventually(has_been_sent, TIMEOUT, "the third event has been sent")
        sink.close()
        assert read(pooler.url()) == [started(1), started(2), started(3)]
