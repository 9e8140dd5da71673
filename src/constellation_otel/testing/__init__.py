"""The test kit: a listener that records, a trace as text, and checks of listeners, sinks and sources.

For tests of components of one's own, this package's own included. It needs no test
framework.
"""

from __future__ import annotations

from constellation_otel.testing.listeners import check_listener
from constellation_otel.testing.recording import RecordingListener
from constellation_otel.testing.sinks import check_sink
from constellation_otel.testing.sources import check_source
from constellation_otel.testing.span_trees import span_tree

__all__ = ["RecordingListener", "check_listener", "check_sink", "check_source", "span_tree"]
