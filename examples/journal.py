"""Telemetry that is not lost while the collector is down: a listener with a journal.

    python examples/journal.py

The first run finds no collector, and its process ends with everything in the
journal. The second one delivers both to an OTLP endpoint (localhost:4317, or what
OTEL_EXPORTER_OTLP_ENDPOINT says), where two traces arrive. Killing the process at
any moment would have lost no event that the journal had.
"""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from constellation_otel import Constellation, Dag, OtlpListener


def trim(text: str) -> str:
    return text.strip()


def count(trim: str) -> int:
    return len(trim)


PIPELINE = Dag("letters", [trim, count])


def run_once(listener: OtlpListener) -> None:
    with Constellation(listener=listener) as constellation:
        constellation.run(PIPELINE, {"text": " to be "})
    everything = listener.close(timeout=2)
    counters = listener.counters
    print(f"delivered: {everything}; {counters.delivered} of {counters.received} events, {counters.held} held")


def main() -> None:
    # what the listener logs of the endpoint that is down is not shown
    logging.getLogger().addHandler(logging.NullHandler())
    with TemporaryDirectory() as folder:
        journal = Path(folder) / "telemetry.db"
        run_once(OtlpListener("http://127.0.0.1:9", journal=journal))
        run_once(OtlpListener(journal=journal))


if __name__ == "__main__":
    main()
