"""The Teller: an engine's hooks in, a listener's callbacks out, and nothing that reaches the engine."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from concurrent.futures import CancelledError as FutureCancelledError
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4, uuid5

import pytest
from opentelemetry import context as otel_context

from constellation_otel.adapters.telling import Teller, TellerCounters
from constellation_otel.listener import ExecutionListener
from support import DEADLINE, in_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.context import Context

RUN = UUID("3f0c6c0e-6a3e-4b6f-8a44-0d1c6a8f9b01")


class Recorder(ExecutionListener):
    """Keeps what it is told, with the optional protocols; has a context for each module."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.details: dict[UUID, dict[str, Any]] = {}
        self.engines: list[object] = []
        self.traceparent: str | None = "00-11-22-01"
        self.flushed: list[float] = []
        self.is_flushed = True

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        self.engines.append(otel_context.get_value("constellation-engine"))
        self.calls.append(("start", execution_id, dag_name))

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        self.calls.append(("module start", module_id, module_name))

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        assert 0 <= duration_ms < DEADLINE * 1e3
        self.calls.append(("module complete", module_id, module_name))

    def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
        self.calls.append(("module failed", module_id, module_name, str(error)))

    def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
        assert 0 <= duration_ms < DEADLINE * 1e3
        self.calls.append(("complete", execution_id, dag_name, succeeded))

    def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
        self.calls.append(("cancelled", execution_id, dag_name))

    def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
        return otel_context.set_value("module", module_id, context)

    def module_details(self, execution_id: UUID, module_id: UUID, **details: Any) -> None:
        self.details[module_id] = details

    def join(self, execution_id: UUID, dag_name: str, traceparent: str | None = None) -> None:
        self.engines.append(otel_context.get_value("constellation-engine"))
        self.calls.append(("join", execution_id, dag_name, traceparent))

    def traceparent_of(self, execution_id: UUID) -> str | None:
        return self.traceparent

    def flush(self, timeout: float) -> bool:
        self.flushed.append(timeout)
        return self.is_flushed


class Raiser(Recorder):
    """Raises from everything."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith(("on_", "module_", "join", "traceparent_", "flush")):
            return self.boom
        return super().__getattribute__(name)

    def boom(self, *_: object, **__: object) -> None:
        raise RuntimeError("the listener's")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def teller(recorder: Recorder) -> Iterator[Teller]:
    """One that nothing goes wrong with, unless the test says what did; and no context is left behind."""
    before = otel_context.get_current()
    yield Teller(recorder, "loom")
    assert otel_context.get_current() == before


def current_module() -> object:
    return otel_context.get_value("module")


# --- ids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run_id", [RUN, str(RUN), RUN.hex])
def test_a_run_id_that_is_a_uuid_is_the_executions(teller: Teller, run_id: object) -> None:
    assert teller.execution_id(run_id) == RUN


def test_any_other_run_id_is_hashed_with_the_engines_name(teller: Teller) -> None:
    ids = {
        teller.execution_id(run_id)
        for run_id in ("2026-11-27T10.00", "", "\ud800", 17, ("a", 1), b"\xff", None, "x" * 100_000)
    }
    assert len(ids) == 8
    assert teller.execution_id("2026-11-27T10.00") in ids
    assert Teller(ExecutionListener.noop, "other").execution_id("2026-11-27T10.00") not in ids


def test_a_modules_id_is_computed_from_its_key_and_attempt(teller: Teller) -> None:
    first = uuid5(RUN, "load")
    for _ in range(2):
        assert teller.module_id(RUN, "load") == first
        assert teller.module_id(RUN, "load", 3) == uuid5(first, "3")
    assert teller.module_id(RUN, "\ud800") == uuid5(RUN, "\\ud800")


# --- an execution ---------------------------------------------------------------------------------------------------


def test_hooks_become_callbacks_with_the_engines_name_in_the_context(teller: Teller, recorder: Recorder) -> None:
    load, clean = uuid5(RUN, "load"), uuid5(RUN, "clean")
    teller.execution_started(RUN, "etl")
    teller.module_started(RUN, "load", "Load")
    teller.module_ended(RUN, "load")
    teller.module_started(RUN, "clean", "Clean")
    teller.module_ended(RUN, "clean", ValueError("no number"))
    teller.execution_ended(RUN, ValueError("no number"))
    assert recorder.calls == [
        ("start", RUN, "etl"),
        ("module start", load, "Load"),
        ("module complete", load, "Load"),
        ("module start", clean, "Clean"),
        ("module failed", clean, "Clean", "no number"),
        ("complete", RUN, "etl", False),
    ]
    assert recorder.engines == ["loom"]
    assert recorder.details == {}
    assert teller.counters == TellerCounters()


@pytest.mark.parametrize(
    ("error", "succeeded", "end"),
    [
        (None, None, ("complete", RUN, "etl", True)),
        (None, False, ("complete", RUN, "etl", False)),
        (ValueError(), None, ("complete", RUN, "etl", False)),
        (ValueError(), True, ("complete", RUN, "etl", True)),
        (SystemExit(1), None, ("complete", RUN, "etl", False)),
        (asyncio.CancelledError(), None, ("cancelled", RUN, "etl")),
        (FutureCancelledError(), None, ("cancelled", RUN, "etl")),
        (KeyboardInterrupt(), None, ("cancelled", RUN, "etl")),
    ],
)
def test_an_execution_ends_as_its_engine_says(
    teller: Teller, recorder: Recorder, error: BaseException | None, succeeded: bool | None, end: tuple[Any, ...]
) -> None:
    teller.execution_started(RUN, "etl")
    teller.execution_ended(RUN, error, succeeded)
    assert recorder.calls == [("start", RUN, "etl"), end]


def test_a_cancelled_module_ends_with_its_execution(teller: Teller, recorder: Recorder) -> None:
    teller.execution_started(RUN, "etl")
    teller.module_started(RUN, "load", "load", attach=True)
    teller.module_ended(RUN, "load", KeyboardInterrupt())
    assert current_module() is None
    teller.execution_ended(RUN, KeyboardInterrupt())
    assert [call[0] for call in recorder.calls] == ["start", "module start", "cancelled"]
    assert teller.counters == TellerCounters()


def test_what_is_known_of_a_module_is_told_before_it_starts(teller: Teller, recorder: Recorder) -> None:
    teller.execution_started(RUN, "etl")
    flaky = uuid5(RUN, "flaky")
    teller.module_started(RUN, "flaky", "flaky", parent="group", upstream=("load", "clean"), attributes={"index": 3})
    teller.module_ended(RUN, "flaky", ValueError("not yet"))
    teller.module_started(RUN, "flaky", "flaky", attempt=2)
    teller.module_ended(RUN, "flaky")
    teller.module_skipped(RUN, "late", "late", "load failed")
    teller.module_skipped(RUN, "old", "old", "the cache", outcome="cached")
    assert recorder.details == {
        flaky: {
            "parent_id": uuid5(RUN, "group"),
            "attempt": 1,
            "attempt_of": None,
            "upstream": (uuid5(RUN, "load"), uuid5(RUN, "clean")),
            "attributes": {"index": 3},
        },
        uuid5(flaky, "2"): {
            "parent_id": None,
            "attempt": 2,
            "attempt_of": flaky,
            "upstream": (),
            "attributes": None,
        },
        uuid5(RUN, "late"): {"module_name": "late", "outcome": "skipped", "reason": "load failed"},
        uuid5(RUN, "old"): {"module_name": "old", "outcome": "cached", "reason": "the cache"},
    }
    assert [call[:2] for call in recorder.calls[1:]] == [
        ("module start", flaky),
        ("module failed", flaky),
        ("module start", uuid5(flaky, "2")),
        ("module complete", uuid5(flaky, "2")),
    ]


# --- contexts -------------------------------------------------------------------------------------------------------


def test_a_body_runs_in_its_modules_context(teller: Teller) -> None:
    teller.execution_started(RUN, "etl")
    with teller.module(RUN, "sub", "sub"):
        assert current_module() == uuid5(RUN, "sub")
        with teller.module(RUN, "inner", "inner", parent="sub", attempt=2):
            assert current_module() == teller.module_id(RUN, "inner", 2)
        assert current_module() == uuid5(RUN, "sub")
    assert current_module() is None
    context = teller.context(RUN, "later")
    assert otel_context.get_value("module", context) == uuid5(RUN, "later")
    assert current_module() is None


@pytest.mark.parametrize("error", [ValueError("no number"), StopIteration(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_a_body_raises_passes_unchanged(teller: Teller, recorder: Recorder, error: BaseException) -> None:
    teller.execution_started(RUN, "etl")
    with pytest.raises(type(error)) as raised, teller.module(RUN, "boom", "boom"):
        raise error
    assert raised.value is error
    failed = ("module failed", uuid5(RUN, "boom"), "boom", str(error))
    assert (failed in recorder.calls) is not isinstance(error, KeyboardInterrupt)


def test_a_context_that_was_attached_in_another_task_is_left_there_silently(
    teller: Teller, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    teller.execution_started(RUN, "etl")
    contextvars.copy_context().run(teller.module_started, RUN, "load", "load", attach=True)
    teller.module_ended(RUN, "load")
    teller.execution_ended(RUN)
    assert [call[0] for call in recorder.calls] == ["start", "module start", "module complete", "complete"]
    assert caplog.records == []
    assert teller.counters == TellerCounters()


def test_an_execution_that_ends_takes_the_contexts_back_of_what_has_no_end(teller: Teller) -> None:
    teller.execution_started(RUN, "etl")
    teller.execution_started(uuid4(), "other")
    teller.module_started(RUN, "a", "a", attach=True)
    teller.module_started(RUN, "b", "b", attach=True)
    teller.execution_ended(RUN)
    assert current_module() is None
    teller.module_ended(RUN, "a")
    assert teller.counters == TellerCounters(unmatched=1)


# --- other processes ------------------------------------------------------------------------------------------------


def test_another_process_joins_with_the_carrier_and_has_no_end_of_its_own(teller: Teller, recorder: Recorder) -> None:
    teller.execution_started(RUN, "etl")
    carrier = teller.carrier(RUN)
    assert carrier == {"execution-id": str(RUN), "name": "etl", "traceparent": "00-11-22-01"}
    there = Recorder()
    other = Teller(there, "loom")
    assert [other.joined(carrier) for _ in range(2)] == [RUN, RUN]
    with other.module(RUN, "load", "load"):
        assert current_module() == uuid5(RUN, "load")
    assert other.flush()
    other.execution_ended(RUN)
    assert [call[0] for call in there.calls] == ["join", "module start", "module complete"]
    assert there.calls[0] == ("join", RUN, "etl", "00-11-22-01")
    assert there.engines == ["loom"]
    assert other.counters == TellerCounters()


def test_an_execution_that_is_not_traced_is_joined_without_a_traceparent(teller: Teller, recorder: Recorder) -> None:
    recorder.traceparent = None
    teller.execution_started(RUN, "etl")
    assert teller.carrier(RUN) == {"execution-id": str(RUN), "name": "etl"}
    other = Teller(recorder, "loom")
    assert other.joined(teller.carrier(RUN)) == RUN
    assert recorder.calls[-1] == ("join", RUN, "etl", None)


def test_a_forked_child_has_none_of_its_parents_executions(teller: Teller, recorder: Recorder) -> None:
    teller.execution_started(RUN, "etl")
    teller.module_started(RUN, "load", "load")
    carrier = teller.carrier(RUN)
    child = os.fork()
    if child == 0:
        teller.module_ended(RUN, "load")
        is_right = teller.counters == TellerCounters(unmatched=1) and teller.joined(carrier) == RUN
        teller.module_started(RUN, "load", "load")
        os._exit(0 if is_right and [call[0] for call in recorder.calls[2:]] == ["join", "module start"] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_flush_is_as_good_as_every_listeners(recorder: Recorder) -> None:
    other = Recorder()
    teller = Teller(ExecutionListener.composite(recorder, ExecutionListener(), other), "loom")
    assert teller.flush(5.0)
    recorder.is_flushed = False
    assert not teller.flush(5.0)
    assert len(other.flushed) == 2
    assert all(0 < timeout <= 5 for timeout in recorder.flushed + other.flushed)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_without_a_listener_nothing_happens() -> None:
    teller = Teller(ExecutionListener.noop, "loom")
    before = otel_context.get_current()
    teller.execution_started(RUN, "etl")
    with teller.module(RUN, "load", "load", attempt=2):
        assert otel_context.get_current() == before
    assert teller.carrier(RUN) == {"execution-id": str(RUN), "name": "etl"}
    assert teller.flush()
    teller.execution_ended(RUN)
    assert teller.counters == TellerCounters()


def test_what_is_no_listener_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="is not an ExecutionListener"):
        Teller(object(), "loom")  # type: ignore[arg-type]


def test_a_listener_that_raises_reaches_neither_the_engine_nor_the_other_listener(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    teller = Teller(ExecutionListener.composite(Raiser(), recorder), "loom")
    teller.execution_started(RUN, "etl")
    with teller.module(RUN, "load", "load", attempt=2):
        assert current_module() == teller.module_id(RUN, "load", 2)
    assert teller.carrier(RUN)["traceparent"] == "00-11-22-01"
    assert not teller.flush()
    teller.execution_ended(RUN)
    teller.execution_started(uuid4(), "etl")
    assert [call[0] for call in recorder.calls] == ["start", "module start", "module complete", "complete", "start"]
    assert teller.counters == TellerCounters(errors=1)
    logged = {record.getMessage() for record in caplog.records}
    assert "flush of the adapter for loom failed; the engine goes on" in logged
    assert any("Raiser.on_module_start raised" in message for message in logged)


def test_arguments_of_wrong_types_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    teller: Any = Teller(Recorder(), "loom")
    before = otel_context.get_current()
    teller.execution_started("no UUID", "etl")
    teller.execution_ended(None)
    teller.execution_started(RUN, "etl")
    teller.module_started(RUN, ["no", "key"], "load")
    teller.module_ended(RUN, ["no", "key"])
    teller.module_skipped(None, "load", "load", "why")
    assert teller.context(None, "load") == before
    assert teller.carrier(None) == {}
    for carrier in ({}, {"execution-id": "?", "name": "etl"}, None):
        assert teller.joined(carrier) is None
    assert teller.counters == TellerCounters(errors=10)
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    assert all(record.exc_info for record in caplog.records)


def test_what_an_adapters_own_code_raises_does_not_reach_the_engine(
    teller: Teller, caplog: pytest.LogCaptureFixture
) -> None:
    with teller.guarded("before_run"):
        raise KeyError("run_id")
    with teller.guarded("before_run"):
        pass
    with pytest.raises(KeyboardInterrupt), teller.guarded("before_run"):
        raise KeyboardInterrupt
    assert teller.counters == TellerCounters(errors=1)
    assert caplog.records[0].getMessage() == "before_run of the adapter for loom failed; the engine goes on"


def test_calls_for_what_is_not_open_are_counted_and_left_out(
    teller: Teller, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    teller.execution_ended(RUN)
    teller.module_started(RUN, "load", "load", attach=True)
    teller.module_ended(RUN, "load")
    teller.module_skipped(RUN, "load", "load", "why")
    assert teller.carrier(RUN) == {}
    assert recorder.calls == []
    assert teller.counters == TellerCounters(unmatched=5)
    # at most one in ten seconds
    assert [record.getMessage() for record in caplog.records] == [
        "loom told the end of an execution that is not open here; it is left out"
    ]


def test_a_start_that_comes_again_is_left_out_with_one_warning(
    teller: Teller, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Luigi, for instance, starts a task again that waited for another one, with no event between."""
    teller.execution_started(RUN, "etl")
    teller.execution_started(RUN, "etl")
    for _ in range(2):
        teller.module_started(RUN, "load", "load", attach=True)
    teller.module_ended(RUN, "load")
    teller.module_started(RUN, "load", "load", attach=True)
    assert current_module() is None
    teller.execution_ended(RUN)
    teller.execution_started(RUN, "etl")
    assert [call[0] for call in recorder.calls] == ["start", "module start", "module complete", "complete"]
    assert teller.counters == TellerCounters(repeated=4)
    (record,) = caplog.records
    assert record.getMessage() == (
        "loom told another start of execution etl, which is open or has ended; it is left out. One run of a body has"
        " an id of its own: give each run another key, or its attempt. This is logged once"
    )


def test_what_is_open_is_bounded_and_the_oldest_is_given_up(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    teller = Teller(recorder, "loom", max_open=3)
    others = [uuid4() for _ in range(3)]
    for execution_id in (RUN, *others):
        teller.execution_started(execution_id, "etl")
    for number in range(5):
        teller.module_started(others[0], str(number), "part")
    assert teller.counters == TellerCounters(given_up=3)
    teller.execution_ended(RUN)
    teller.module_ended(others[0], "1")
    assert teller.counters == TellerCounters(given_up=3, unmatched=2)
    for number in (2, 3, 4):
        teller.module_ended(others[0], str(number))
    assert [call[0] for call in recorder.calls].count("module complete") == 3
    assert caplog.records[0].getMessage() == (
        "loom has more than 3 open; the execution that has been open longest is given up: its end was never told"
    )
    for execution_id in others:
        teller.execution_ended(execution_id)
        teller.execution_id(str(execution_id))
        teller.execution_id(f"run {execution_id}")
    assert all(len(store) <= 3 for store in _stores_of(teller))


def test_a_module_of_an_execution_that_was_given_up_still_ends(recorder: Recorder) -> None:
    teller = Teller(recorder, "loom", max_open=2)
    teller.execution_started(RUN, "etl")
    teller.module_started(RUN, "load", "load")
    for _ in range(2):
        teller.execution_started(uuid4(), "etl")
    teller.module_ended(RUN, "load")
    assert [call[0] for call in recorder.calls].count("module complete") == 1
    assert teller.counters == TellerCounters(given_up=1)


def _stores_of(teller: Teller) -> list[Any]:
    return [teller._executions, teller._open, teller._runs, teller._ids, teller._ended]


def test_joined_executions_are_bounded_and_none_is_missed() -> None:
    teller = Teller(Recorder(), "loom", max_open=3)
    for _ in range(9):
        teller.joined({"execution-id": str(uuid4()), "name": "etl"})
    assert teller.counters == TellerCounters()
    assert len(teller._executions) == 3


def test_many_threads_may_tell_of_one_execution(teller: Teller, recorder: Recorder) -> None:
    teller.execution_started(RUN, "etl")

    def work() -> None:
        for _ in range(100):
            with teller.module(RUN, str(uuid4()), "part"):
                assert current_module() is not None

    in_threads(8, work)
    teller.execution_ended(RUN)
    assert len(recorder.calls) == 2 + 2 * 800
    assert teller.counters == TellerCounters()
