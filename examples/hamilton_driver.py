"""A Hamilton DAG whose executions are traces.

    python examples/hamilton_driver.py

It needs the extra "hamilton". An OTLP endpoint (localhost:4317, or what
OTEL_EXPORTER_OTLP_ENDPOINT says) gets one trace.
"""

from __future__ import annotations

from hamilton import ad_hoc_utils, driver

from constellation_otel import OtlpListener
from constellation_otel.adapters.hamilton import adapters


def words(text: str) -> list[str]:
    return text.split()


def count(words: list[str]) -> int:
    return len(words)


def longest(words: list[str]) -> str:
    return max(words, key=len)


def main() -> None:
    module = ad_hoc_utils.create_temporary_module(words, count, longest)
    listener = OtlpListener()
    built = driver.Builder().with_modules(module).with_adapters(*adapters(listener, "statistics")).build()
    print(built.execute(["count", "longest"], inputs={"text": "to be or not to be"}))
    listener.close(5)


if __name__ == "__main__":
    main()
