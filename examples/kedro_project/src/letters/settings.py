"""The project's settings: all that a trace takes is here."""

from constellation_otel import OtlpListener
from constellation_otel.adapters.kedro import ConstellationHooks

HOOKS = (ConstellationHooks(OtlpListener("http://localhost:4317")),)
