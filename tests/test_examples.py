"""Every example, run as its docstring says, against a real OTLP endpoint."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest
from opentelemetry.sdk.resources import Resource

from constellation_otel.testing import span_tree
from programs import ROOT, SERVICE, run_command
from support import UNWATCHED

if TYPE_CHECKING:
    from constellation_otel.receiver import Receiver

pytestmark = UNWATCHED


class Shown(NamedTuple):
    """What one sees of an example; what it writes is a pattern, the trace is the whole one."""

    tree: str
    stdout: str
    stderr: str = ""
    made_elsewhere: str | None = None
    """The scope of the spans that come from other processes than the listener's."""
    is_stable: bool = False
    """Whether the resource is the same after a restart, since the package sends the spans itself."""


UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
MS = r"\d+\.\d{3} ms"

EXAMPLES = {
    "quickstart": Shown(
        """\
my-pipeline (server) success
  trim (internal) success
  uppercase (internal) success
  word_count (internal) success""",
        "TO BE OR NOT TO BE 6\n",
    ),
    "custom_listener": Shown(
        """\
statistics (server) failure ERROR "numbers failed: could not convert string to float: 'three'"
  lines (internal) success
  longest (internal) success
  numbers (internal) failure ERROR "could not convert string to float: 'three'\"""",
        "ALARM: numbers failed: could not convert string to float: 'three'\n"
        "failed: numbers; completed: lines, longest\n",
    ),
    "builder": Shown(
        """\
my-pipeline (server) success
  Trim (internal) success
  Uppercase (internal) success
  WordCount (internal) success""",
        rf"execution {UUID} of my-pipeline started\n"
        rf"(?:execution {UUID}: module (?:Trim|Uppercase|WordCount) \({UUID}\) (?:started|completed in {MS})\n){{6}}"
        rf"execution {UUID} of my-pipeline completed in {MS}\n4\n",
    ),
    "web_request": Shown(
        """\
GET /report/<text> (server)
  report (internal) success
    distinct (internal) success
      CREATE (client)
      INSERT (client)
      SELECT (client)
    words (internal) success""",
        r'\{"distinct":4,"trace":"(?P<trace>[0-9a-f]{32})"\}\n',
        r'127\.0\.0\.1 - - \[.*\] "GET /report/To%20be%20or%20not%20to%20be HTTP/1\.1" 200 -\n',
    ),
    "process_pool": Shown(
        """\
sum-of-squares (server) success
  squares (internal) success
  total (internal) success
    sum (internal)""",
        "285\n",
        made_elsewhere="process-pool",
    ),
    "dask_cluster": Shown(
        """\
word-counts (server) success
  first (internal) success
    count words (internal)
  second (internal) success
    count words (internal)
  third (internal) success
    count words (internal)
  total (internal) success""",
        "10\n",
        made_elsewhere="dask-cluster",
    ),
    "worker_processes": Shown(
        """\
word-counts (server) success
  first (internal) success
  second (internal) success""",
        "10\n",
        is_stable=True,
    ),
    "audit_log": Shown(
        """\
sum (server) failure ERROR "total failed: invalid literal for int() with base 10: 'three'"
  total (internal) failure ERROR "invalid literal for int() with base 10: 'three'"
  words (internal) success""",
        r"""failed: total
execution\.started \| sum \| None \| None \| None
module\.started \| None \| words \| None \| None
module\.completed \| None \| words \| 1 \| None
module\.started \| None \| total \| None \| None
module\.failed \| None \| total \| 0 \| invalid literal for int\(\) with base 10: 'three'
execution\.completed \| sum \| None \| 0 \| None
6 events replayed as 3 spans; delivered: True
""",
        is_stable=True,
    ),
    "journal": Shown(
        """\
letters (server) success
  count (internal) success
  trim (internal) success

letters (server) success
  count (internal) success
  trim (internal) success""",
        r"delivered: False; 0 of 6 events, 6 held\ndelivered: True; 12 of 12 events, 0 held\n",
        is_stable=True,
    ),
}
ELSEWHERE = {
    "dagster_job": "tests/engines/test_dagster.py",
    "hamilton_driver": "tests/engines/test_hamilton.py",
    "kafka_events": "tests/e2e/test_examples.py",
    "kedro_project": "tests/engines/test_kedro.py",
}
"""Which examples need a server or an engine, and are run where there is one."""


def command_of(name: str) -> str:
    """The command in an example's docstring."""
    documented = ast.get_docstring(ast.parse((ROOT / "examples" / f"{name}.py").read_text())) or ""
    (command,) = re.findall(r"^    (\S.*)$", documented, re.MULTILINE)
    assert str(command).endswith(f"python examples/{name}.py")
    return str(command)


def test_every_example_is_among_these() -> None:
    examples = {path.stem for path in (ROOT / "examples").iterdir() if path.suffix or (path / "src").exists()}
    assert examples == EXAMPLES.keys() | ELSEWHERE.keys()
    assert all(name in (ROOT / where).read_text() for name, where in ELSEWHERE.items())


SDK_NAMES_INSTANCES = "service.instance.id" in Resource.create().attributes
"""An older SDK's resource does not have it."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_shows_what_it_says_and_ends_without_a_warning(name: str, receiver: Receiver) -> None:
    shown = EXAMPLES[name]
    stdout, stderr = run_command(receiver, command_of(name))
    printed = re.fullmatch(shown.stdout, stdout)
    assert printed, stdout
    assert re.fullmatch(shown.stderr, stderr), stderr
    assert span_tree(receiver.spans) == shown.tree
    instances: dict[str, set[object]] = {}
    has_instances = not shown.is_stable and SDK_NAMES_INSTANCES
    for received in receiver.received:
        assert received.resource.attributes["service.name"] == SERVICE
        if has_instances:
            instances.setdefault(received.scope.name, set()).add(received.resource.attributes["service.instance.id"])
    if not has_instances:
        assert not any("service.instance.id" in received.resource.attributes for received in receiver.received)
        return
    assert len(instances["constellation_otel"]) == 1
    for scope, of_scope in instances.items():
        assert instances["constellation_otel"].isdisjoint(of_scope) == (scope == shown.made_elsewhere)
    if "trace" in printed.groupdict():
        assert {format(span.trace_id, "032x") for span in receiver.spans} == {printed["trace"]}
