"""What an engine and a module's body have told besides, in a topic."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from constellation_otel.delivery import Record
from constellation_otel.events import Event, encode_json
from records import TOLD, told_all
from support import UNWATCHED
from transports.kafka.helpers import SENDING, Cluster, read

if TYPE_CHECKING:
    from collections.abc import Callable

    from constellation_otel.transports.kafka import KafkaSink, KafkaSource

NUMBERS = count()
"""Of topics."""


def test_one_of_everything_and_the_largest_are_read_back(
    cluster: Cluster, make_sink: Callable[..., KafkaSink], make_source: Callable[..., KafkaSource]
) -> None:
    """A broker takes a record of a million bytes, unless it is told otherwise."""
    assert make_sink().send(told_all(), SENDING) == []
    assert cluster.values() == [encode_json(event) for event in told_all()]
    items = read(make_source(), len(told_all()))
    assert [item.event for item in items if isinstance(item, Record)] == told_all()


@UNWATCHED
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(TOLD, min_size=40, max_size=40))
def test_whatever_was_told_is_read_back(
    cluster: Cluster, make_sink: Callable[..., KafkaSink], make_source: Callable[..., KafkaSource], events: list[Event]
) -> None:
    topic = f"events-{next(NUMBERS)}"
    cluster.create(topic)
    assert make_sink(topic).send(events, SENDING) == []
    items = read(make_source(topic, follow=False), len(events))
    assert [item.event for item in items if isinstance(item, Record)] == events
