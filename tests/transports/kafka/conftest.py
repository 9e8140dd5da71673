"""Fixtures of the tests of kafka."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from constellation_otel.transports.kafka import KafkaSink, KafkaSource
from transports.kafka.helpers import IMPATIENT, QUICK, TOPIC, Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from constellation_otel.transports.kafka.consumer import Limits

    MakeSink = Callable[..., KafkaSink]
    MakeSource = Callable[..., KafkaSource]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def make_sink(cluster: Cluster) -> Iterator[MakeSink]:
    with ExitStack() as stack:

        def make(topic: str = TOPIC, *, max_callers: int = 100, **config: Any) -> KafkaSink:
            sink = KafkaSink(cluster.brokers, topic, config={**QUICK, **config}, max_callers=max_callers)
            stack.callback(sink.close)
            return sink

        yield make


@pytest.fixture
def make_source(cluster: Cluster) -> Iterator[MakeSource]:
    with ExitStack() as stack:

        def make(
            topic: str = TOPIC, *, follow: bool = True, limits: Limits | None = None, **config: Any
        ) -> KafkaSource:
            # the stand-in rebalances a group that is not new a second before a session would time out
            settings = {
                "session.timeout.ms": 1_500,
                "heartbeat.interval.ms": 50,
                **IMPATIENT,
                "reconnect.backoff.max.ms": 200,
            }
            settings |= {name.replace("_", "."): value for name, value in config.items()}
            source = KafkaSource(cluster.brokers, topic, group="bridge", follow=follow, config=settings, limits=limits)
            stack.callback(source.close)
            return source

        yield make
