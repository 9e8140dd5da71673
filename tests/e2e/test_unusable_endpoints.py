"""Endpoints that cannot be used as they are: out of reach, with a wrong password, a table with other columns."""

from __future__ import annotations

import json
import sqlite3
import uuid
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from engine_stand_in import EngineStandIn

from .executions import DEADLINE, good, new_topic, otlp, replay, seen, whole, written
from .peers import Kafka, Postgres, eventually
from .peers.postgres import PASSWORD
from .peers.server import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from constellation_otel.receiver import Receiver

    from .bridges import RunningBridge

    StartBridge = Callable[..., RunningBridge]

NOT_DELIVERED = 3
SECRET = "W0rd-that-nobody-may-read"
"""A password, or a key, that is wrong wherever it is given."""


def new_database(postgres: Postgres) -> str:
    name = f"bad_{uuid.uuid4().hex}"
    postgres.psql(f"CREATE DATABASE {name}")
    return name


# --- endpoints that are out of reach -------------------------------------------------------------------------------


def test_an_unreachable_broker_is_said_and_the_other_sink_gets_all(
    receiver: Receiver, tmp_path: Path, start_bridge: StartBridge
) -> None:
    """An unreachable broker: a clear message, a counter, and nothing else is lost."""
    source = written(tmp_path / "events.jsonl", good(1, 2))
    broker = f"127.0.0.1:{free_port()}"
    bridge = start_bridge(source, "--to", f"kafka://{broker}/t", "--to", otlp(receiver))
    receiver.wait_for_spans(4, DEADLINE)
    bridge.wait_until_said("kafka: ", broker, "Connection refused", "; 8 events are held, the next try is in")
    status, body = bridge.asks("/readyz")
    assert (status, [*body["troubles"]]) == (503, ["kafka"])
    code, report = bridge.ended()
    assert (code, report["sinks"]["kafka"]["held"], report["sinks"]["kafka"]["sending"]["sent"]) == (
        NOT_DELIVERED,
        8,
        0,
    )
    assert seen(receiver) == whole(1, 2)


def test_an_unreachable_broker_as_a_source_is_said_and_tried_on(start_bridge: StartBridge, tmp_path: Path) -> None:
    """An unreachable broker: a clear message; the bridge goes on trying and says that it is not ready."""
    broker = f"127.0.0.1:{free_port()}"
    bridge = start_bridge(f"kafka://{broker}/t?group=g", "--to", f"jsonl:{tmp_path}/out.jsonl")
    bridge.wait_until_said(broker, "Connection refused", "trying again in")
    status, body = bridge.asks("/readyz")
    assert (status, [*body["troubles"]]) == (503, [f"kafka://{broker}/t?group=g"])
    assert bridge.ended()[0] == 0


# --- wrong passwords -----------------------------------------------------------------------------------------------


def assert_kept(secret: str, folder: Path) -> None:
    """The secret is in no file that is there: no output, no log, no journal, no dead letter."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_sinks_with_wrong_passwords_hold_everything_tell_nobody_the_password_and_go_on_when_it_is_mended(
    receiver: Receiver, kafka: Kafka, postgres: Postgres, tmp_path: Path, start_bridge: StartBridge
) -> None:
    """A wrong password, never printed: a clear message, a counter, and nothing else is lost."""
    source = written(tmp_path / "events.jsonl", good(1, 2))
    user, database = f"user_{uuid.uuid4().hex}", new_database(postgres)
    postgres.psql(f"CREATE ROLE {user} LOGIN PASSWORD 'another'; ALTER DATABASE {database} OWNER TO {user}")
    topic = new_topic(kafka)
    bridge = start_bridge(
        source, "--journal", str(tmp_path / "journal.db"), "--dead-letters", str(tmp_path / "dead.jsonl"),
        "--to", postgres.url(database, user=user, password=SECRET),
        "--to", f"kafka://{kafka.user}:{SECRET}@{kafka.sasl_brokers}/{topic}",
        "--to", otlp(receiver),
    )  # fmt: skip
    receiver.wait_for_spans(4, DEADLINE)
    bridge.wait_until_said("sql: ", "password authentication failed", "; 8 events are held", level="ERROR")
    bridge.wait_until_said("kafka: ", "uthentication", "check the user, the password", level="ERROR")
    status, body = bridge.asks("/readyz")
    assert (status, sorted(body["troubles"])) == (503, ["kafka", "sql"])
    assert SECRET not in json.dumps(bridge.asks("/"))
    postgres.psql(f"ALTER ROLE {user} PASSWORD '{SECRET}'")

    def rows() -> bool:
        there = postgres.psql("SELECT to_regclass('execution_audit') IS NOT NULL", database=database) == "t"
        return there and postgres.psql("SELECT count(*) FROM execution_audit", database=database) == "8"

    eventually(rows, DEADLINE, "what was held is in the table")
    code, report = bridge.ended()
    sent = {name: (lane["sending"]["sent"], lane["held"]) for name, lane in report["sinks"].items()}
    assert (code, sent) == (NOT_DELIVERED, {"sql": (8, 0), "kafka": (0, 8), "otlp": (4, 0)})
    assert seen(receiver) == whole(1, 2)
    assert_kept(SECRET, tmp_path)


def test_sources_with_a_wrong_password_say_so_and_tell_nobody_the_password(
    kafka: Kafka, postgres: Postgres, tmp_path: Path, start_bridge: StartBridge
) -> None:
    """A wrong password, never printed: a clear message from PostgreSQL, and from Kafka."""
    topic = new_topic(kafka)
    urls = {
        postgres.url(password=SECRET): ("password authentication failed", "fix the URL"),
        f"kafka://{kafka.user}:{SECRET}@{kafka.sasl_brokers}/{topic}?group=g": ("uthentication", "the password"),
    }
    bridges = {start_bridge(url, "--to", f"jsonl:{tmp_path}/out.jsonl"): said for url, said in urls.items()}
    for bridge, said in bridges.items():
        bridge.wait_until_said(*said)
        status, body = bridge.asks("/readyz")
        assert (status, len(body["troubles"])) == (503, 1)
        assert SECRET not in json.dumps([body, bridge.asks("/")])
        code, report = bridge.ended()
        assert (code, report["events"]) == (0, 0)
    assert_kept(SECRET, tmp_path)


@pytest.mark.parametrize("given", ["file", "variable"])
def test_a_wrong_api_key_is_said_and_told_nobody(tmp_path: Path, start_bridge: StartBridge, given: str) -> None:
    """A wrong password, never printed: the engine's API key, from a file and from the environment."""
    options: dict[str, str] = {}
    arguments: list[str] = []
    if given == "variable":
        options = {"CONSTELLATION_API_KEY": SECRET}
    else:
        key = tmp_path / "key"
        key.write_text(f"{SECRET}\n")
        arguments = ["--api-key-file", str(key)]
    with EngineStandIn(api_key="k" * 24) as engine:
        bridge = start_bridge(
            engine.url,
            "--to",
            f"jsonl:{tmp_path}/out.jsonl",
            "--journal",
            str(tmp_path / "j.db"),
            *arguments,
            **options,
        )
        bridge.wait_until_said("HTTP 401: the engine rejects this API key", level="ERROR")
        assert SECRET not in json.dumps([bridge.asks("/"), bridge.asks("/readyz")])
        assert bridge.ended()[0] == 0
        assert engine.requests[0].headers["authorization"] == f"Bearer {SECRET}"
    (tmp_path / "key").unlink(missing_ok=True)
    assert_kept(SECRET, tmp_path)


# --- tables with other columns -------------------------------------------------------------------------------------


def test_a_table_with_other_columns_as_a_source_is_refused_with_what_is_missing(
    postgres: Postgres, tmp_path: Path
) -> None:
    """A table with other columns: a clear message, at once."""
    database, file = new_database(postgres), tmp_path / "audit.db"
    ddl = "CREATE TABLE execution_audit (id INTEGER PRIMARY KEY, event_type VARCHAR(50), who TEXT)"
    postgres.psql(ddl, database=database)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(ddl)
    for url in (postgres.url(database), f"sqlite:///{file}"):
        done = replay(url, "--to", f"jsonl:{tmp_path}/out.jsonl")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert "the table execution_audit is not an audit table: execution_id is missing; " in done.stderr
        assert PASSWORD not in done.stderr


def test_a_table_with_other_columns_as_a_sink_holds_everything_until_it_is_mended(
    receiver: Receiver, postgres: Postgres, tmp_path: Path, start_bridge: StartBridge
) -> None:
    """A table with other columns: a clear message, a counter, and nothing else is lost."""
    database = new_database(postgres)
    postgres.psql("CREATE TABLE execution_audit (id SERIAL PRIMARY KEY, who TEXT)", database=database)
    source = written(tmp_path / "events.jsonl", good(1, 2))
    bridge = start_bridge(source, "--to", postgres.url(database), "--to", otlp(receiver))
    bridge.wait_until_said("the table execution_audit is not an audit table", "8 events are held", level="ERROR")
    receiver.wait_for_spans(4, DEADLINE)
    status, body = bridge.asks("/")
    assert (status, body["sinks"]["sql"]["held"], [*body["troubles"]]) == (200, 8, ["sql"])
    postgres.psql("ALTER TABLE execution_audit RENAME TO of_somebody_else", database=database)

    def sent() -> int:
        return int(bridge.asks("/")[1]["sinks"]["sql"]["sending"]["sent"])

    eventually(lambda: sent() == 8, DEADLINE, "the events are in a new table")
    code, report = bridge.ended()
    assert (code, report["is_delivered"], seen(receiver)) == (0, True, whole(1, 2))
    assert postgres.psql("SELECT count(*) FROM execution_audit", database=database) == "8"
