"""Kafka: the guide's events as the records of a topic."""

from __future__ import annotations

from constellation_otel.transports.kafka.kafka import KafkaListener, KafkaSink, KafkaSource, places_of_topic

__all__ = [
    "KafkaListener",
    "KafkaSink",
    "KafkaSource",
    "places_of_topic",
]
