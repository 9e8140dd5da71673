"""The wiring of the Execution Listener guide, in Python: builder, composite, and its three modules.

    opentelemetry-instrument python examples/builder.py

LoggingListener prints a line for every callback. An OTLP endpoint (localhost:4317, or
what OTEL_EXPORTER_OTLP_ENDPOINT says) gets the trace of the guide's timeline: Trim and
Uppercase, which need only the text, side by side, then WordCount.
"""

import logging
import sys

from constellation_otel import Constellation, Dag, ExecutionListener, LoggingListener, OpenTelemetryListener, module


@module(name="Trim")
def trim(text: str) -> str:
    return text.strip()


@module(name="Uppercase")
def uppercase(text: str) -> str:
    return text.upper()


@module(name="WordCount", inputs={"trimmed": "Trim", "shouted": "Uppercase"})
def word_count(trimmed: str, shouted: str) -> int:
    return len(trimmed.split()) + len(shouted.split())


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    listener = ExecutionListener.composite(OpenTelemetryListener(), LoggingListener())
    constellation = Constellation.builder().with_listener(listener).build()
    outputs = constellation.run(Dag("my-pipeline", [trim, uppercase, word_count]), {"text": " hello world "})
    constellation.close()
    print(outputs["WordCount"])


if __name__ == "__main__":
    main()
