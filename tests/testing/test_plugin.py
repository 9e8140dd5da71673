"""The pytest plugin: its fixture, here and in runs of pytest's own."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace

from constellation_otel import Constellation, Dag, ExecutionListener, OpenTelemetryListener
from constellation_otel.adapters.telling import Teller
from constellation_otel.automatic import further_listener, notify_further
from constellation_otel.testing import ConstellationTraces, RecordingListener
from programs import ROOT
from support import DEADLINE

if TYPE_CHECKING:
    from conftest import Application

pytest_plugins = ["pytester"]

TREE = """\
letters (server) success
  count (internal) success
  trim (internal) success"""


def trim(text: str) -> str:
    return text.strip()


def count(trim: str) -> int:
    return len(trim.split())


def run(listener: ExecutionListener = ExecutionListener.noop) -> None:
    with Constellation(listener) as engine:
        engine.run(Dag("letters", [trim, count]), {"text": " to be "})


def test_the_fixture_draws_what_engines_have_done_that_know_nothing_of_it(
    constellation_traces: ConstellationTraces,
) -> None:
    assert constellation_traces.tree() == ""
    run()
    assert constellation_traces.tree() == TREE
    run(RecordingListener())
    assert constellation_traces.tree() == f"{TREE}\n\n{TREE}"
    assert {span.name for span in constellation_traces.spans()} == {"letters", "count", "trim"}


def test_an_engine_that_has_the_fixtures_listener_notifies_it_once(constellation_traces: ConstellationTraces) -> None:
    run(constellation_traces.listener)
    run(ExecutionListener.composite(RecordingListener(), constellation_traces.listener))
    assert constellation_traces.tree() == f"{TREE}\n\n{TREE}"
    assert constellation_traces.listener.counters.received == 12


def test_the_fixture_has_what_an_adapter_tells_and_what_bodies_make(constellation_traces: ConstellationTraces) -> None:
    teller = Teller(constellation_traces.listener, "loom")
    execution_id = teller.execution_id("the first")
    teller.execution_started(execution_id, "cloth")
    with (
        teller.module(execution_id, "weave", "weave"),
        constellation_traces.tracer_provider.get_tracer("app").start_as_current_span("shuttle"),
    ):
        trace.get_current_span().set_attribute("colour", "red")
    teller.execution_ended(execution_id)
    tree = """\
cloth (server) success
  weave (internal) success
    shuttle (internal)"""
    assert constellation_traces.tree() == tree


def test_an_applications_own_traces_go_on(constellation_traces: ConstellationTraces, application: Application) -> None:
    own = OpenTelemetryListener(application.traces, application.metrics, application.logs)
    run(own)
    assert own.close(DEADLINE)
    application.export()
    assert len(application.receiver.spans) == 3
    assert constellation_traces.tree() == TREE


def test_what_was_set_before_is_so_again() -> None:
    other = RecordingListener()
    notify_further(lambda _: other)
    try:
        before = further_listener()
        with ConstellationTraces() as traces:
            run()
            assert traces.tree() == TREE
        assert further_listener() is before
        assert other.events == []
    finally:
        notify_further(None)


def test_spans_that_are_not_made_in_time_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with ConstellationTraces() as traces:
        monkeypatch.setattr(traces.listener, "flush", lambda _: False)
        with pytest.raises(TimeoutError, match="the spans of 0 events were not made within 30 s"):
            traces.tree()


USING = '''
from constellation_otel import Constellation, Dag


def trim(text):
    return text.strip()


def test_trims(constellation_traces):
    with Constellation() as engine:
        engine.run(Dag("letters", [trim]), {"text": " a "})
    assert constellation_traces.tree() == """\\
letters (server) success
  trim (internal) success"""


def test_sees_its_own_only(constellation_traces):
    assert constellation_traces.spans() == []
'''
UNUSED = """
import sys

def test_is_cheap():
    ours = {name for name in sys.modules if name.partition(".")[0] == "constellation_otel"}
    assert ours == {
        "constellation_otel", "constellation_otel._support", "constellation_otel._support.door",
        "constellation_otel.testing", "constellation_otel.testing.plugin",
    }
    assert "opentelemetry.sdk" not in sys.modules
"""


INSTALLED = {
    "METADATA": "Metadata-Version: 2.1\nName: constellation-otel-as-a-wheel\nVersion: 0\n",
    "RECORD": "constellation_otel/__init__.py,,\n",
    "entry_points.txt": "[pytest11]\nconstellation_otel = constellation_otel.testing.plugin\n",
}
IMPORTED_BEFORE = "import constellation_otel, pytest, sys; sys.exit(pytest.main(['-W', 'error']))"


def test_pytest_does_not_mind_that_the_package_is_imported_before(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a wheel pytest knows the files, and wants to be the first who imports them."""
    folder = pytester.mkdir("installed") / "constellation_otel_as_a_wheel-0.dist-info"
    folder.mkdir()
    for name, text in INSTALLED.items():
        (folder / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    pytester.makepyfile(USING)
    result = pytester.run(sys.executable, "-c", IMPORTED_BEFORE)
    result.assert_outcomes(passed=2)


(PAGE,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/pytest.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("tests", "passed"), [(USING, 2), (UNUSED, 1), (PAGE, 1)], ids=["used", "unused", "docs/pytest.md"]
)
def test_pytest_finds_the_plugin_by_itself(pytester: pytest.Pytester, tests: str, passed: int) -> None:
    pytester.makepyfile(tests)
    options = ["-p", "no:hypothesispytest", "-W", "error", "--strict-markers"]
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=passed)
