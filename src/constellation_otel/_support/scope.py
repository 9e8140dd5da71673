"""The instrumentation scope of everything that this package emits, and where a context has the engine's name."""

from __future__ import annotations

from typing import Final

__all__ = ["ENGINE_KEY", "SCHEMA_URL", "SCOPE_NAME", "SCOPE_VERSION"]

SCOPE_NAME: Final = "constellation_otel"
SCOPE_VERSION: Final = "0.1.0"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The semantic conventions that the attribute names are taken from.

Written out, as the packages of older conventions do not list it.
"""
ENGINE_KEY: Final = "constellation-engine"
"""What an OpenTelemetry context has the name of the engine under whose callback is being made."""
