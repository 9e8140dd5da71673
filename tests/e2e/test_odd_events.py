"""Behind events with every odd value in every field the good ones arrive, through the real servers too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from constellation_otel.transports.kafka import KafkaListener, KafkaSource
from constellation_otel.transports.sql import SqlAuditListener, SqlSource
from deliveries import read_all
from odd_events import GOOD, check, put_all

if TYPE_CHECKING:
    from pathlib import Path

    from .peers import Kafka, Postgres


@pytest.fixture(params=[None, "journal.db"], ids=["memory", "journal"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param is None else tmp_path / request.param


def test_through_kafka(kafka: Kafka, journal: Any) -> None:
    topic = f"odd-{'memory' if journal is None else 'journal'}"
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(30)
    listener = KafkaListener(kafka.brokers, topic, journal=journal)
    put_all(listener)
    check(listener)
    items = read_all(KafkaSource(kafka.brokers, topic, group=None, follow=False))
    assert len(items) == listener.counters.delivered
    assert [item.corrected for item in items if item.corrected] == []
    assert len([item for item in items if item.event.execution_id == GOOD]) == 2


def test_through_postgresql(postgres: Postgres, journal: Any) -> None:
    table = f"odd_{'memory' if journal is None else 'journal'}"
    listener = SqlAuditListener(postgres.url(), table=table, journal=journal)
    put_all(listener)
    check(listener)
    assert [
        item.event.execution_id for item in read_all(SqlSource(postgres.url(), table=table, execution_id=GOOD))
    ] == [GOOD] * 2
