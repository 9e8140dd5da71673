"""Which SDK is installed, and which one brought what."""

from __future__ import annotations

from opentelemetry.sdk.version import __version__ as SDK_VERSION  # noqa: N812 - a constant, whatever its name

SINCE = {"_is_enabled": (1, 40), "_tracer_metrics": (1, 40), "_on_ending": (1, 40), "_hash_attributes": (1, 45)}
"""The SDK that brought a name, where the oldest that is supported has not got it."""

VERSION = tuple(int(part) for part in SDK_VERSION.split(".")[:2])
