"""What the demo makes, whatever endpoint it is sent to."""

from __future__ import annotations

import re

WORD_COUNT = """\
word-count ({kind}) success
  density (internal) success
  longest_sentence (internal) success
  most_common (internal) success
  report (internal) success
  trim (internal) success
  words (internal) success"""
BAD_YEAR = "invalid literal for int() with base 10: 'the'"
PIPELINES = {
    "word-count": WORD_COUNT.format(kind="server"),
    "age-of-text": f"""\
age-of-text (server) failure ERROR "year_of failed: {BAD_YEAR}"
  longest_sentence (internal) success
  most_common (internal) success
  trim (internal) success
  words (internal) success
  year_of (internal) failure ERROR "{BAD_YEAR}\"""",
    "slow-index": """\
slow-index (server) cancelled
  trim (internal) success
  wait-for-more (internal) cancelled
  words (internal) success""",
    "archive": """\
archive (server) success
  store (internal) success
    CREATE (client)
    GET (client)
    INSERT (client)
    SELECT (client)
  trim (internal) success
  words (internal) success""",
    "GET /report": "GET /report (server)\n  " + WORD_COUNT.format(kind="internal").replace("\n", "\n  "),
}
"""The tree of each pipeline's trace, by its root's name."""

SERVICE = "constellation-demo"
RECORDED_SERVICE = "constellation-demo-recordings"
RAN = ("word-count", "age-of-text", "slow-index", "archive", "word-count")
"""The DAGs of what the demo runs, in its order."""
RECORDED = {"ephemeral": 65, "named-pipe": 1, "cancel-demo": 1}
"""How many executions of each DAG were recorded."""
SHOWN_RECORDED = ("ephemeral", "cancel-demo")
"""The DAGs of those that are shown without ``--all``: one that failed, and one that was cancelled."""


def linked_traces(printed: str, jaeger: str) -> list[tuple[str, str]]:
    """The trace ids and names that the demo printed, each with its link for Jaeger's page.

    Raises:
        AssertionError: A link leads to another trace.
    """
    lines = re.findall(rf"^([0-9a-f]{{32}})  (\S.*)  {jaeger}/trace/(\S+)$", printed, re.MULTILINE)
    assert all(trace_id == linked for trace_id, _, linked in lines)
    return [(trace_id, name) for trace_id, name, _ in lines]
