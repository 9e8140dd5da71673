"""A real PostgreSQL that is killed, stopped or locked, or that lets nobody in."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
import traceback
from itertools import count
from typing import TYPE_CHECKING

import pytest

from constellation_otel.errors import MisconfiguredError, UnavailableError
from constellation_otel.transports.sql import SqlSink, SqlSource, schema_ddl
from deliveries import flat
from sql_events import SIX

from .databases import TIMEOUT, Database, offsets, started
from .peers import Postgres, eventually
from .peers.postgres import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from constellation_otel.events import ExecutionStarted


def test_a_server_that_is_killed_and_started_again_has_all_that_was_acknowledged(
    tmp_path: Path, make_database: Callable[[Postgres], Database]
) -> None:
    with Postgres(tmp_path) as postgres:
        database = make_database(postgres)
        sink = database.sink()
        acknowledged: list[ExecutionStarted] = []
        failures: list[UnavailableError] = []
        stopped = threading.Event()

        def send() -> None:
            batches = count()
            batch: list[ExecutionStarted] = []
            while not stopped.is_set():
                batch = batch or [started(next(batches) * 100 + number) for number in range(50)]
                try:
                    sink.send(batch, 5.0)
                except UnavailableError as error:
                    failures.append(error)
                    stopped.wait(0.05)
                else:
                    acknowledged.extend(batch)
                    batch = []

        sender = threading.Thread(target=send)
        sender.start()
        try:
            for _ in range(2):
                had = len(acknowledged)
                eventually(lambda had=had: len(acknowledged) > had + 200, TIMEOUT, "some batches are written")  # type: ignore[misc] # bound
                postgres.kill()
                failed = len(failures)
                eventually(lambda failed=failed: len(failures) > failed, TIMEOUT, "the sink notices")  # type: ignore[misc] # bound
                postgres.start()
            had = len(acknowledged)
            eventually(lambda: len(acknowledged) > had + 200, TIMEOUT, "it writes again")
        finally:
            stopped.set()
            sender.join(TIMEOUT)
        assert {type(failure) for failure in failures} == {UnavailableError}
        found = database.events()
        assert len(found) == len(set(found))
        assert set(acknowledged) <= set(found)
        for opened in database.opened:
            opened.close()


def test_a_table_that_somebody_has_locked_is_unavailable_within_the_timeout(database: Database) -> None:
    sink = database.sink()
    sink.send([started(1)], TIMEOUT)
    with database.connection() as other:
        other.execute("LOCK TABLE execution_audit")
        begun = time.monotonic()
        with pytest.raises(UnavailableError, match="canceling statement due to statement timeout"):
            sink.send([started(2)], 4.0)
        assert 2.0 < time.monotonic() - begun < 4.0
    sink.send([started(2)], TIMEOUT)
    assert database.events() == [started(1), started(2)]


def test_a_server_that_answers_nothing_is_unavailable_within_the_timeout(database: Database) -> None:
    sink, source = database.sink(), database.source(follow=True, poll_interval=0.01)
    sink.send([started(1)], TIMEOUT)
    assert offsets(flat(source.read(TIMEOUT))) == [1]
    processes = database.psql(
        f"SELECT pid FROM pg_stat_activity WHERE datname = '{database.name}' AND pid <> pg_backend_pid()"
    )
    backends = [int(line) for line in processes.splitlines()]
    assert len(backends) == 2
    for backend in backends:
        os.kill(backend, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            sink.send([started(2)], 2.0)
        assert 1.0 < time.monotonic() - begun < 2.5
        assert type(caught.value) is UnavailableError
        results: list[object] = []
        reader = threading.Thread(target=lambda: results.append(source.read(TIMEOUT)))
        reader.start()
        eventually(lambda: not source._idle.is_set(), TIMEOUT, "it reads")
        source.close()
        reader.join(TIMEOUT)
        assert results == [[]]
    finally:
        for backend in backends:
            os.kill(backend, signal.SIGCONT)
    sink.send([started(2)], TIMEOUT)
    assert database.events() == [started(1), started(2)]


def test_a_whole_server_that_is_stopped_is_unavailable_within_the_timeout(
    tmp_path: Path, make_database: Callable[[Postgres], Database]
) -> None:
    with Postgres(tmp_path) as postgres:
        sink = make_database(postgres).sink()
        os.kill(postgres.pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            with pytest.raises(UnavailableError, match="timeout expired"):
                sink.send(SIX, 5.0)
            assert time.monotonic() - begun < 5.0
        finally:
            os.kill(postgres.pid, signal.SIGCONT)
        sink.send(SIX, TIMEOUT)
        sink.close()


@pytest.mark.parametrize(
    ("user", "password", "name", "message"),
    [
        ("constellation", "wr0ng-passw0rd", "postgres", 'password authentication failed for user "constellation"'),
        ("nobody-here", PASSWORD, "postgres", 'password authentication failed for user "nobody-here"'),
        ("constellation", PASSWORD, "no_such_database", 'database "no_such_database" does not exist'),
    ],
)
def test_who_is_not_let_in_is_told_and_nothing_tells_the_password(
    berlin: Postgres, caplog: pytest.LogCaptureFixture, user: str, password: str, name: str, message: str
) -> None:
    url = berlin.url(name, user=user, password=password)
    with caplog.at_level(logging.DEBUG):
        for transport in (SqlSink(url), SqlSource(url)):
            with pytest.raises(MisconfiguredError, match=re.escape(message)) as caught:
                transport.send(SIX, TIMEOUT) if isinstance(transport, SqlSink) else transport.read(TIMEOUT)
            transport.close()
            said = (
                f"{caught.value!r} {''.join(traceback.format_exception(caught.value))} {transport!r} {transport.name}"
            )
            assert password not in said
    assert password not in caplog.text


def test_who_may_not_write_or_read_is_told(database: Database) -> None:
    database.psql(schema_ddl("postgresql") + "CREATE ROLE guest LOGIN PASSWORD 'guest'")
    url = database.postgres.url(database.name, user="guest", password="guest")
    sink, source = SqlSink(url), SqlSource(url)
    with pytest.raises(MisconfiguredError, match="permission denied for table execution_audit; fix the URL"):
        sink.send(SIX, TIMEOUT)
    with pytest.raises(MisconfiguredError, match="permission denied for table execution_audit; fix the URL"):
        source.read(TIMEOUT)
    database.psql("GRANT ALL ON execution_audit, execution_audit_id_seq TO guest")
    sink.send(SIX, TIMEOUT)
    assert len(flat(source.read(TIMEOUT))) == 6
    sink.close()
    source.close()
    database.psql("DROP OWNED BY guest; DROP ROLE guest")


def test_a_server_that_is_not_there_and_an_option_that_is_none_are_told_apart(berlin: Postgres) -> None:
    nowhere = SqlSink("postgresql://me:secret@127.0.0.1:1/shop")
    with pytest.raises(UnavailableError, match=r"[Cc]onnection refused") as caught:
        nowhere.send(SIX, TIMEOUT)
    assert type(caught.value) is UnavailableError
    nowhere.close()
    misspelt = SqlSink(f"{berlin.url()}?ssl_mode=require")
    with pytest.raises(MisconfiguredError, match='invalid connection option "ssl_mode"'):
        misspelt.send(SIX, TIMEOUT)
    misspelt.close()
