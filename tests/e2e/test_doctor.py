"""``constellation-otel doctor`` against the servers that users have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from constellation_otel.transports.sql import schema_ddl

from .databases import GUIDE_DDL

if TYPE_CHECKING:
    from .databases import Database
    from .peers import Collector, Jaeger, Kafka, Postgres

SECRET = "geheim"


def examined(*arguments: str) -> tuple[int, list[tuple[str, str, str]]]:
    """The exit code, and the check, the level and the words of each finding about a URL."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    line = [sys.executable, "-m", "constellation_otel", "doctor", "--json", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, env=inherited, check=False)
    assert done.stderr == ""
    assert SECRET not in done.stdout
    found = [it for it in json.loads(done.stdout)["findings"] if it["target"] is not None]
    return done.returncode, [(it["check"], it["level"], it["found"]) for it in found]


def test_one_span_goes_through_the_collector_and_is_found_in_jaeger(collector: Collector, jaeger: Jaeger) -> None:
    urls = [
        collector.grpc_endpoint.replace("http:", "otlp:"),
        collector.http_endpoint.replace("http:", "otlp+http:"),
        jaeger.grpc_endpoint.replace("http:", "otlp:"),
        jaeger.http_endpoint.replace("http:", "otlp+http:"),
    ]
    code, found = examined(*urls, "--jaeger", f"http://127.0.0.1:{jaeger.query_port}")
    assert (code, {level for _, level, _ in found}) == (0, {"ok"})
    assert [check for check, *_ in found if check != "clock"] == ["connection", "span"] * len(urls)
    assert all(" was found in Jaeger after " in said for check, _, said in found if check == "span")


def test_a_table_its_clock_and_a_password_are_looked_at_in_postgresql(database: Database, berlin: Postgres) -> None:
    url = berlin.url(database.name)
    same_clock = ("clock", "ok", "its clock and this machine's are the same within 2 s")
    code, (missing, clock) = examined(url)
    assert (code, missing[:2], clock) == (0, ("table", "warning"), same_clock)
    assert database.psql("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'").strip() == "0"
    database.psql(GUIDE_DDL)
    database.psql(schema_ddl("postgresql", "ours"))
    code, (guides, _, ours, clock) = examined(url, f"{url}?table=ours")
    assert (code, guides[:2], ours[:2], clock) == (0, ("columns", "warning"), ("columns", "ok"), same_clock)
    code, (refused,) = examined(berlin.url(database.name, password=SECRET))
    assert (code, refused[:2]) == (1, ("credentials", "problem"))


def test_a_topic_and_a_password_are_looked_at_in_kafka(kafka: Kafka) -> None:
    missing, refused, allowed = (
        f"kafka://{kafka.brokers}/there-is-no-such-topic",
        f"kafka://{kafka.user}:{SECRET}@{kafka.sasl_brokers}/t",
        f"kafka://{kafka.user}:{kafka.password}@{kafka.sasl_brokers}/there-is-no-such-topic",
    )
    code, found = examined(missing, refused, allowed)
    assert code == 1
    assert [it[:2] for it in found] == [("topic", "problem"), ("credentials", "problem"), ("topic", "problem")]
