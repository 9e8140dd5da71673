"""The test kit: a listener that records, a trace as text, and checks of listeners, sinks, sources and adapters.

For tests of components of one's own, this package's own included. It needs no test
framework; pytest finds a fixture in it, ``constellation_traces``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from constellation_otel._support.door import door

if TYPE_CHECKING:
    from constellation_otel.testing.conformance import EVERY_ENGINE, check_adapter
    from constellation_otel.testing.listeners import check_listener
    from constellation_otel.testing.pipelines import Node, Pipeline
    from constellation_otel.testing.recording import RecordingListener
    from constellation_otel.testing.sinks import check_sink
    from constellation_otel.testing.sources import check_source
    from constellation_otel.testing.span_trees import span_tree
    from constellation_otel.testing.traces import ConstellationTraces
else:
    __getattr__, __dir__ = door(
        __name__,
        {
            "conformance": ("EVERY_ENGINE", "check_adapter"),
            "listeners": ("check_listener",),
            "pipelines": ("Node", "Pipeline"),
            "recording": ("RecordingListener",),
            "sinks": ("check_sink",),
            "sources": ("check_source",),
            "span_trees": ("span_tree",),
            "traces": ("ConstellationTraces",),
        },
    )

__all__ = [
    "EVERY_ENGINE",
    "ConstellationTraces",
    "Node",
    "Pipeline",
    "RecordingListener",
    "check_adapter",
    "check_listener",
    "check_sink",
    "check_source",
    "span_tree",
]
