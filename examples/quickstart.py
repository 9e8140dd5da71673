"""Two lines make traces of a plain Python pipeline: the import, and the engine's listener.

OpenTelemetry is set up from outside; nothing in here does it:

    opentelemetry-instrument python examples/quickstart.py

It prints what the modules found. An OTLP endpoint (localhost:4317, or what
OTEL_EXPORTER_OTLP_ENDPOINT says) gets a trace: my-pipeline with the spans of
its three modules below it, uppercase and word_count at the same time.
"""

from constellation_otel import Constellation, Dag, OpenTelemetryListener


def trim(text: str) -> str:
    return text.strip()


def uppercase(trim: str) -> str:
    return trim.upper()


def word_count(trim: str) -> int:
    return len(trim.split())


# a parameter is named after the module, or the input, that supplies it
pipeline = Dag("my-pipeline", [trim, uppercase, word_count])

with Constellation(listener=OpenTelemetryListener()) as constellation:
    outputs = constellation.run(pipeline, {"text": "  to be or not to be  "})

print(outputs["uppercase"], outputs["word_count"])
