"""Who is speaking: the instrumentation scope of everything this package emits."""

from __future__ import annotations

from typing import Final

from opentelemetry.semconv.schemas import Schemas

__all__ = ["SCHEMA_URL", "SCOPE_NAME", "SCOPE_VERSION"]

SCOPE_NAME: Final = "constellation_otel"
SCOPE_VERSION: Final = "0.1.0"
SCHEMA_URL: Final = Schemas.V1_44_0.value
"""The semantic conventions that the attribute names are taken from."""
