"""The pipelines that an adapter is checked with, and what their traces are to be; they know no engine."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from opentelemetry import trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["CASES", "ENDPOINT", "PROCESS", "SLEEP_S", "TRIES", "Node", "Pipeline", "body_span"]


class Node(Struct, frozen=True, kw_only=True):
    """A node of a pipeline.

    Attributes:
        name: Its name, and its function's.
        function: Its body, which opens a span ``inside-<name>``; ``None`` for a group, which only
            has other nodes in it. A parameter is called like the node whose output it takes. It is a
            function of a module, so that it can be sent to another process.
        upstream: The nodes whose outputs it takes.
        attempts: How often it is tried at most.
        times: How often it is run side by side, each time with a number from 0 as the parameter ``index``.
        parent: The group that it is in.
    """

    name: str
    function: Callable[..., Any] | None
    upstream: tuple[str, ...] = ()
    attempts: int = 1
    times: int | None = None
    parent: str | None = None


class Pipeline(Struct, frozen=True, kw_only=True):
    """A pipeline to build and run on an engine, under the name ``conformance``.

    Attributes:
        case: What it shows; the names are those of :func:`check_adapter`.
        nodes: Its nodes, upstream ones first.
        outputs: What a run returns: the outputs of the nodes that no other one takes. ``None`` where it fails.
        tree: The trace of a run, as :func:`~constellation_otel.testing.span_tree` draws it.
        name: Its name.
    """

    case: str
    nodes: tuple[Node, ...]
    outputs: Mapping[str, object] | None
    tree: str
    name: str = "conformance"


ENDPOINT: Final = "CONSTELLATION_OTEL_CONFORMANCE_ENDPOINT"
"""Where bodies send their spans, for those in other processes too."""
PROCESS: Final = "process.pid"
"""The attribute of a body's span that has its process."""
SLEEP_S: Final = 0.05
"""How long the body of ``slow`` sleeps."""
TRIES: Final = Counter[str]()
"""How often bodies have run that fail at first; forgotten before each case."""
_TRIES_TO_FAIL: Final = 2


@cache
def _provider(endpoint: str, _: int) -> TracerProvider:
    """The SDK of one process, by its id: a forked child must not use its parent's connections."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - for the check
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - for the check only
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415 - for the check only

    provider = TracerProvider(shutdown_on_exit=False)
    # sent when it ends: a process of a pool may end without notice
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    return provider


def body_span(name: str) -> Any:
    """A span that is the current one; how its block ends does not show on it."""
    endpoint = os.environ.get(ENDPOINT)
    # a body may outlive a check that timed out
    provider = trace.NoOpTracerProvider() if endpoint is None else _provider(endpoint, os.getpid())
    return provider.get_tracer("conformance").start_as_current_span(
        name, attributes={PROCESS: os.getpid()}, record_exception=False, set_status_on_exception=False
    )


def load() -> str:
    """The first node's body."""
    with body_span("inside-load"):
        return " to be or not to be "


def clean(load: str) -> str:
    """The second node's body."""
    with body_span("inside-clean"):
        return load.strip()


def count(clean: str) -> int:
    """A node that runs beside ``shout``."""
    with body_span("inside-count"):
        return len(clean.split())


def shout(clean: str) -> str:
    """A node that runs beside ``count``."""
    with body_span("inside-shout"):
        return clean.upper()


def boom(clean: str) -> str:  # noqa: ARG001 - it is wired by its parameter
    """A node that fails."""
    with body_span("inside-boom"):
        message = "no number"
        raise ValueError(message)


def boom_later(flaky: str) -> str:
    """The same behind a node that has recovered."""
    return boom(flaky)


def after(boom: str) -> str:
    """A node that never runs."""
    with body_span("inside-after"):
        return boom


def flaky(clean: str) -> str:
    """A node that fails twice before it succeeds."""
    with body_span("inside-flaky"):
        TRIES["flaky"] += 1
        if TRIES["flaky"] <= _TRIES_TO_FAIL:
            message = "not yet"
            raise ValueError(message)
        return clean


def stop(clean: str) -> str:  # noqa: ARG001 - it is wired by its parameter
    """A node that somebody interrupts."""
    with body_span("inside-stop"):
        raise KeyboardInterrupt


def slow(load: str) -> str:
    """A node whose length is known."""
    with body_span("inside-slow"):
        time.sleep(SLEEP_S)
        return load.strip()


def part(load: str, index: int) -> str:
    """A node that is run several times side by side."""
    with body_span("inside-part"):
        return load.split()[index]


def inner(load: str) -> str:
    """A node in a group."""
    with body_span("inside-inner"):
        return load.strip()


_LOAD: Final = Node(name="load", function=load)
_CLEAN: Final = Node(name="clean", function=clean, upstream=("load",))
_FLAKY: Final = Node(name="flaky", function=flaky, upstream=("clean",), attempts=_TRIES_TO_FAIL + 1)
_BOOM: Final = Node(name="boom", function=boom, upstream=("clean",))
_OK: Final = Pipeline(
    case="ok",
    nodes=(
        _LOAD,
        _CLEAN,
        Node(name="count", function=count, upstream=("clean",)),
        Node(name="shout", function=shout, upstream=("clean",)),
    ),
    outputs={"count": 6, "shout": "TO BE OR NOT TO BE"},
    tree="""\
conformance (server) success
  clean (internal) success
    inside-clean (internal)
  count (internal) success
    inside-count (internal)
  load (internal) success
    inside-load (internal)
  shout (internal) success
    inside-shout (internal)""",
)
_FLAKY_TREE: Final = """\
  flaky (internal) failure ERROR "not yet"
    inside-flaky (internal)
  flaky (internal) failure ERROR "not yet"
    inside-flaky (internal)
  flaky (internal) success
    inside-flaky (internal)
  load (internal) success
    inside-load (internal)"""


def _like_ok(case: str, tree: str = _OK.tree) -> Pipeline:
    return Pipeline(case=case, nodes=_OK.nodes, outputs=_OK.outputs, tree=tree)


CASES: Final = {
    pipeline.case: pipeline
    for pipeline in (
        _OK,
        Pipeline(
            case="failure",
            nodes=(_LOAD, _CLEAN, _BOOM, Node(name="after", function=after, upstream=("boom",))),
            outputs=None,
            tree="""\
conformance (server) failure ERROR "boom failed: no number"
  boom (internal) failure ERROR "no number"
    inside-boom (internal)
  clean (internal) success
    inside-clean (internal)
  load (internal) success
    inside-load (internal)""",
        ),
        _like_ok("caller", "request (internal)\n  " + _OK.tree.replace("(server)", "(internal)").replace("\n", "\n  ")),
        _like_ok("two-at-once", f"{_OK.tree}\n\n{_OK.tree}"),
        _like_ok("raising-listener"),
        _like_ok("no-sdk"),
        _like_ok("processes"),
        Pipeline(
            case="lengths",
            nodes=(_LOAD, Node(name="slow", function=slow, upstream=("load",))),
            outputs={"slow": "to be or not to be"},
            tree="""\
conformance (server) success
  load (internal) success
    inside-load (internal)
  slow (internal) success
    inside-slow (internal)""",
        ),
        Pipeline(
            case="retried",
            nodes=(_LOAD, _CLEAN, _FLAKY),
            outputs={"flaky": "to be or not to be"},
            tree=f"""\
conformance (server) success
  clean (internal) success
    inside-clean (internal)
{_FLAKY_TREE}""",
        ),
        Pipeline(
            case="recovered",
            nodes=(_LOAD, _CLEAN, _FLAKY, Node(name="boom", function=boom_later, upstream=("flaky",))),
            outputs=None,
            tree=f"""\
conformance (server) failure ERROR "boom failed: no number"
  boom (internal) failure ERROR "no number"
    inside-boom (internal)
  clean (internal) success
    inside-clean (internal)
{_FLAKY_TREE}""",
        ),
        Pipeline(
            case="cancelled",
            nodes=(_LOAD, _CLEAN, Node(name="stop", function=stop, upstream=("clean",))),
            outputs=None,
            tree="""\
conformance (server) cancelled
  clean (internal) success
    inside-clean (internal)
  load (internal) success
    inside-load (internal)
  stop (internal) cancelled
    inside-stop (internal)""",
        ),
        Pipeline(
            case="mapped",
            nodes=(_LOAD, Node(name="part", function=part, upstream=("load",), times=3)),
            outputs={"part": ["to", "be", "or"]},
            tree="conformance (server) success\n  load (internal) success\n    inside-load (internal)"
            + 3 * "\n  part (internal) success\n    inside-part (internal)",
        ),
        Pipeline(
            case="nested",
            nodes=(
                _LOAD,
                Node(name="sub", function=None),
                Node(name="inner", function=inner, upstream=("load",), parent="sub"),
            ),
            outputs={"inner": "to be or not to be"},
            tree="""\
conformance (server) success
  load (internal) success
    inside-load (internal)
  sub (internal) success
    inner (internal) success
      inside-inner (internal)""",
        ),
    )
}
