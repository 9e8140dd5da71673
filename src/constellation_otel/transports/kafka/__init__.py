"""Kafka: the guide's events as the records of a topic."""

from __future__ import annotations

from constellation_otel.errors import MissingExtraError

try:
    import confluent_kafka  # noqa: F401 - everything here needs it
except ModuleNotFoundError as error:
    raise MissingExtraError("confluent-kafka", "kafka") from error

from constellation_otel.transports.kafka.cluster import places_of
from constellation_otel.transports.kafka.sink import KafkaListener, KafkaSink
from constellation_otel.transports.kafka.source import KafkaSource

__all__ = [
    "KafkaListener",
    "KafkaSink",
    "KafkaSource",
    "places_of",
    "sink_of",
    "source_of",
]

source_of = KafkaSource.from_url
sink_of = KafkaSink.from_url
