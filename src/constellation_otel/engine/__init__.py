"""The embedded engine: runs DAGs of modules, and notifies a listener."""

from __future__ import annotations

from constellation_otel.engine.constellation import Constellation, ConstellationBuilder, Execution
from constellation_otel.engine.dag import Dag, Module, module

__all__ = [
    "Constellation",
    "ConstellationBuilder",
    "Dag",
    "Execution",
    "Module",
    "module",
]
