"""The guide's first example: every event of an execution to Kafka, and who reads them there.

    KAFKA_BOOTSTRAP_SERVERS=localhost:9092 python examples/kafka_events.py

The broker has to have the topic constellation-events, or make it when it is asked
for. It prints the types of the events that a consumer finds in the topic.
`constellation-otel bridge "kafka://localhost:9092/constellation-events?group=traces"
--to otlp://localhost:4317` makes traces of them as they come.
"""

from __future__ import annotations

import os

from constellation_otel import Constellation, Dag
from constellation_otel.delivery import Batch
from constellation_otel.transports.kafka import KafkaListener, KafkaSource


def trim(text: str) -> str:
    return text.strip()


def main() -> None:
    brokers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
    listener = KafkaListener(brokers, "constellation-events")
    with Constellation(listener=listener) as constellation:
        constellation.run(Dag("my-pipeline", [trim]), {"text": " to be "})
    if not listener.close(timeout=20):
        held = listener.counters.held
        message = f"{held} events were not delivered; start a broker at {brokers}, or set KAFKA_BOOTSTRAP_SERVERS"
        raise SystemExit(message)

    source = KafkaSource(brokers, "constellation-events", group=None, follow=False)
    while not source.has_ended:
        for item in source.read(timeout=5):
            if isinstance(item, Batch):
                for event in item.events:
                    print(type(event).__name__)
    source.close()


if __name__ == "__main__":
    main()
