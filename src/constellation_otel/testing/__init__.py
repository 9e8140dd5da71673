"""The test kit: a listener that records, a trace as text, and checks of listeners, sinks, sources and adapters.

For tests of components of one's own, this package's own included. It needs no test
framework.
"""

from __future__ import annotations

from constellation_otel.testing.conformance import EVERY_ENGINE, check_adapter
from constellation_otel.testing.listeners import check_listener
from constellation_otel.testing.pipelines import Node, Pipeline
from constellation_otel.testing.recording import RecordingListener
from constellation_otel.testing.sinks import check_sink
from constellation_otel.testing.sources import check_source
from constellation_otel.testing.span_trees import span_tree

__all__ = [
    "EVERY_ENGINE",
    "Node",
    "Pipeline",
    "RecordingListener",
    "check_adapter",
    "check_listener",
    "check_sink",
    "check_source",
    "span_tree",
]
