"""Whatever the DAG, and from however many threads: callbacks come in the promised order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation_otel.engine import Constellation, Dag, module
from constellation_otel.errors import ExecutionCancelledError, ExecutionFailedError
from engine_support import Recorder, check_order, throw, trim, uppercase, word_count
from support import DEADLINE, UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID


@st.composite
def dags(draw: st.DrawFn) -> tuple[Dag, dict[str, str]]:
    """A DAG of plain and async modules, of which some fail, and what is to become of each that runs."""
    outcomes: dict[str, str] = {}
    modules = []
    for number in range(draw(st.integers(1, 8))):
        name = f"m{number}"
        sources = draw(st.sets(st.sampled_from([f"m{before}" for before in range(number)]))) if number else set()
        fails = draw(st.booleans()) and draw(st.booleans())
        modules.append(module(_body(sources, fails, draw(st.booleans())), name=name))
        if all(outcomes.get(source) == "completes" for source in sources):
            outcomes[name] = "fails" if fails else "completes"
    return Dag("p", draw(st.permutations(modules))), outcomes


def _body(sources: set[str], fails: bool, is_async: bool) -> Callable[..., Any]:
    arguments = ", ".join(sorted(sources))
    outcome = "1 // 0" if fails else f"1 + sum([{arguments}])"
    code = f"{'async ' if is_async else ''}def body({arguments}): return {outcome}"
    names: dict[str, Any] = {}
    exec(code, names)
    return names["body"]  # type: ignore[no-any-return]


@UNWATCHED
@settings(max_examples=150, deadline=None)
@given(dags())
def test_whatever_the_dag_callbacks_come_in_the_promised_order(drawn: tuple[Dag, dict[str, str]]) -> None:
    dag, outcomes = drawn
    recorder = Recorder()
    with Constellation(recorder) as constellation:
        execution = constellation.start(dag, {})
        if "fails" in outcomes.values():
            with pytest.raises(ExecutionFailedError) as caught:
                execution.result(DEADLINE)
            assert caught.value.errors.keys() == {name for name, outcome in outcomes.items() if outcome == "fails"}
            outputs = caught.value.outputs
        else:
            outputs = execution.result(DEADLINE)
        assert outputs.keys() == {name for name, outcome in outcomes.items() if outcome == "completes"}
    check_order(recorder.calls, dag, outcomes)


def drive(constellation: Constellation, dag: Dag, number: int) -> dict[UUID, str]:
    """Runs 40 executions, of which a third fail and a third are cancelled, and says what became of each."""
    became: dict[UUID, str] = {}
    for turn in range(40):
        kind = ("good", "bad", "cancelled")[(number + turn) % 3]
        execution = constellation.start(dag, {"text": f" {kind} "})
        cancelled = kind == "cancelled" and execution.cancel()
        try:
            execution.result(DEADLINE)
            became[execution.execution_id] = "good"
        except ExecutionFailedError:
            became[execution.execution_id] = "bad"
        except ExecutionCancelledError:
            became[execution.execution_id] = "cancelled"
        assert became[execution.execution_id] == ("good" if kind == "cancelled" and not cancelled else kind)
    return became


@UNWATCHED
@pytest.mark.parametrize("threads", [None, 4])
def test_many_executions_from_many_threads_keep_their_order(threads: int | None) -> None:
    """And none of them is lost."""

    def checks(trim: str) -> str:
        return trim if trim != "bad" else throw(ValueError(trim))

    recorder = Recorder()
    dag = Dag("p", [trim, uppercase, word_count, checks, module(lambda uppercase, word_count: None, name="last")])
    outcomes = dict.fromkeys(dag.modules, "completes")
    pool = ThreadPoolExecutor(threads) if threads else None
    became: dict[UUID, str] = {}
    with ThreadPoolExecutor(8) as drivers, Constellation(recorder, pool) as constellation:
        for each in [drivers.submit(drive, constellation, dag, number) for number in range(8)]:
            became |= each.result(DEADLINE)
    if pool:
        pool.shutdown()
    assert len(became) == 320
    assert recorder.by_execution.keys() == became.keys()
    for execution_id, outcome in became.items():
        calls = recorder.by_execution[execution_id]
        if outcome == "cancelled":
            assert (calls[0], calls[-1], len(set(calls))) == ("p starts", "p is cancelled", len(calls))
            ended = [call.removesuffix(" completes") for call in calls if call.endswith(" completes")]
            assert all(calls.index(f"{name} starts") < calls.index(f"{name} completes") for name in ended)
        else:
            check_order(calls, dag, outcomes | ({"checks": "fails"} if outcome == "bad" else {}))
