"""What importing the package costs on top of the OpenTelemetry SDK that it needs."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median
from typing import Final

__all__ = ["line"]

_ROUNDS: Final = 7
_CLAIM_MS: Final = 150
_SDK: Final = "import opentelemetry.sdk.trace, opentelemetry.sdk.metrics, opentelemetry.sdk._logs"
_PACKAGE: Final = f"{_SDK}; import constellation_otel"
_EVERYDAY: Final = f"{_SDK}; from constellation_otel import Constellation, Dag, OpenTelemetryListener, module"


def _milliseconds(program: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603 - our own words
    return (time.perf_counter() - start) * 1e3


def line() -> str:
    """What is added, and what the claim is."""
    programs = (_SDK, _PACKAGE, _EVERYDAY)
    rounds = [[_milliseconds(program) for program in programs] for _ in range(_ROUNDS + 1)][1:]
    sdk, package, everyday = (median(column) for column in zip(*rounds, strict=True))
    return (
        f"import: the SDK {sdk:.0f} ms; constellation_otel adds {package - sdk:.0f} ms,"
        f" its everyday names {everyday - sdk:.0f} ms (claimed: at most {_CLAIM_MS} ms)"
    )
