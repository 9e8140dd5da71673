"""The adapter for Hamilton, on Hamilton: `make adapters`."""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any
from uuid import uuid5

import pytest
from hamilton import async_driver, driver
from hamilton.execution import executors
from hamilton.htypes import Collect, Parallelizable  # noqa: TC002 - Hamilton reads the annotations
from opentelemetry import context as otel_context
from opentelemetry import trace

from constellation_otel.adapters.hamilton import adapters, async_adapters
from constellation_otel.otel import OtlpListener
from constellation_otel.testing import EVERY_ENGINE, RecordingListener, check_adapter, span_tree
from constellation_otel.traces import MODULE_ID
from programs import ROOT, run_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from constellation_otel.events import Event
    from constellation_otel.listener import ExecutionListener
    from constellation_otel.receiver import Receiver
    from constellation_otel.testing import Pipeline

# the engine's own, in the releases that are tested
pytestmark = pytest.mark.filterwarnings("ignore")


def module_of(*functions: Callable[..., Any]) -> ModuleType:
    """A module as Hamilton crawls it: with the functions that are its own."""
    module = ModuleType("conformance_of_hamilton")
    for function in functions:
        function.__module__ = module.__name__
        setattr(module, function.__name__, function)
    sys.modules[module.__name__] = module
    return module


def own(function: Callable[..., Any]) -> Any:
    """A function that calls another one, and looks like it."""

    def call(**inputs: Any) -> Any:
        return function(**inputs)

    return _looking_like(call, function)


def own_async(function: Callable[..., Any]) -> Any:
    async def call(**inputs: Any) -> Any:
        await asyncio.sleep(0)
        return function(**inputs)

    return _looking_like(call, function)


def _looking_like(call: Any, function: Callable[..., Any]) -> Any:
    call.__name__, call.__doc__ = function.__name__, function.__doc__
    call.__signature__ = inspect.signature(function)
    call.__annotations__ = {name: {"str": str, "int": int}[of] for name, of in function.__annotations__.items()}
    return call


def names_of(pipeline: Pipeline) -> list[str]:
    taken = {name for node in pipeline.nodes for name in node.upstream}
    return [node.name for node in pipeline.nodes if node.name not in taken]


def module_for(pipeline: Pipeline, wrap: Callable[..., Any] = own) -> ModuleType:
    return module_of(*(wrap(node.function) for node in pipeline.nodes if node.function is not None))


def run_in_order(pipeline: Pipeline, listener: ExecutionListener) -> Mapping[str, object]:
    builder = driver.Builder().with_modules(module_for(pipeline))
    return dict(builder.with_adapters(*adapters(listener, pipeline.name)).build().execute(names_of(pipeline)))


def run_in_threads(pipeline: Pipeline, listener: ExecutionListener) -> Mapping[str, object]:
    builder = (
        driver.Builder()
        .with_modules(module_for(pipeline))
        .enable_dynamic_execution(allow_experimental_mode=True)
        .with_local_executor(executors.MultiThreadingExecutor(max_tasks=3))
    )
    return dict(builder.with_adapters(*adapters(listener, pipeline.name)).build().execute(names_of(pipeline)))


def run_async(
    pipeline: Pipeline, listener: ExecutionListener, made_by: Callable[..., Any] = async_adapters
) -> Mapping[str, object]:
    async def run() -> Mapping[str, object]:
        builder = async_driver.Builder().with_modules(module_for(pipeline, own_async))
        built = await builder.with_adapters(*made_by(listener, pipeline.name)).build()
        return dict(await built.execute(names_of(pipeline)))

    return asyncio.run(run())


@pytest.mark.parametrize("case", [*EVERY_ENGINE, "cancelled"])
@pytest.mark.parametrize("run", [run_in_order, run_in_threads])
def test_hamilton_passes_the_check(run: Callable[..., Mapping[str, object]], case: str) -> None:
    check_adapter(run, [case])


@pytest.mark.parametrize("case", EVERY_ENGINE)
def test_hamiltons_async_driver_passes_the_check(case: str) -> None:
    check_adapter(run_async, [case])


def test_plain_hooks_alone_would_be_wrong_under_the_async_driver() -> None:
    """They fire when a node's task is made: the tree is right, and only the lengths are not."""
    with pytest.raises(AssertionError, match="slow took 50 ms at least, and its span") as raised:
        check_adapter(partial(run_async, made_by=adapters), ["lengths"])
    assert "the trace is" not in str(raised.value)


# --- what Hamilton has of its own -----------------------------------------------------------------------------------


def told(recorder: RecordingListener) -> list[str]:
    """The events as words."""
    return [_words(event) for event in recorder.events]


def _words(event: Event) -> str:
    kind = type(event).__name__
    name = getattr(event, "module_name", "")
    succeeded = getattr(event, "succeeded", None)
    return " ".join([kind, *([name] if name else []), *([str(succeeded)] if succeeded is not None else [])])


@pytest.fixture
def otlp(receiver: Receiver) -> Iterator[OtlpListener]:
    listener = OtlpListener(receiver.grpc_endpoint)
    yield listener
    listener.close(10.0)


def words() -> Parallelizable[str]:
    yield from ("to", "be", "or")


def length(words: str) -> int:
    return len(words)


def total(length: Collect[int]) -> int:
    return sum(length)


def test_what_is_mapped_is_siblings_of_one_name(otlp: OtlpListener, receiver: Receiver) -> None:
    built = (
        driver.Builder()
        .with_modules(module_of(words, length, total))
        .enable_dynamic_execution(allow_experimental_mode=True)
        .with_remote_executor(executors.MultiThreadingExecutor(max_tasks=3))
        .with_adapters(*adapters(otlp, "mapped"))
        .build()
    )
    assert built.execute(["total"]) == {"total": 6}
    assert otlp.flush(10.0)
    assert (
        span_tree(receiver.spans)
        == """\
mapped (server) success
  length (internal) success
  length (internal) success
  length (internal) success
  total (internal) success
  words (internal) success"""
    )
    assert len({span.attributes[MODULE_ID] for span in receiver.spans if span.name == "length"}) == 3


def one() -> int:
    return 1


def two(one: int) -> int:
    return one + 1


def test_bodies_in_other_processes_run_as_ever_and_are_not_told_of() -> None:
    recorder = RecordingListener()
    built = (
        driver.Builder()
        .with_modules(module_of(words, length, total))
        .enable_dynamic_execution(allow_experimental_mode=True)
        .with_remote_executor(executors.MultiProcessingExecutor(max_tasks=2))
        .with_adapters(*adapters(recorder, "processes"))
        .build()
    )
    assert built.execute(["total"]) == {"total": 6}
    assert set(told(recorder)) == {
        "ExecutionStarted",
        *(f"Module{what} {name}" for what in ("Started", "Completed") for name in ("words", "total")),
        "ExecutionCompleted True",
    }


def test_a_hit_of_hamiltons_cache_looks_like_a_run(tmp_path: Path) -> None:
    """Its hooks fire, and nothing that they are given says that the body did not run."""
    for _ in range(2):
        recorder = RecordingListener()
        builder = driver.Builder().with_modules(module_of(one, two)).with_cache(path=str(tmp_path))
        built = builder.with_adapters(*adapters(recorder, "cached")).build()
        assert built.execute(["two"]) == {"two": 2}
        assert told(recorder) == [
            "ExecutionStarted",
            "ModuleStarted one",
            "ModuleCompleted one",
            "ModuleStarted two",
            "ModuleCompleted two",
            "ExecutionCompleted True",
        ]


def test_ids_are_computed_from_the_run_id_and_the_nodes_name() -> None:
    recorder = RecordingListener()
    driver.Builder().with_modules(module_of(one)).with_adapters(*adapters(recorder, "ids")).build().execute(["one"])
    ids = {(event.execution_id, getattr(event, "module_id", None)) for event in recorder.events}
    ((execution_id, module_id),) = {pair for pair in ids if pair[1] is not None}
    assert module_id == uuid5(execution_id, "one")
    assert ids == {(execution_id, module_id), (execution_id, None)}


def test_a_driver_that_is_called_while_an_error_is_handled_is_not_taken_for_cancelled() -> None:
    recorder = RecordingListener()
    built = driver.Builder().with_modules(module_of(one)).with_adapters(*adapters(recorder, "handling")).build()
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert built.execute(["one"]) == {"one": 1}
    assert told(recorder) == ["ExecutionStarted", "ModuleStarted one", "ModuleCompleted one", "ExecutionCompleted True"]


def test_what_hamilton_refuses_is_a_failed_execution() -> None:
    recorder = RecordingListener()
    built = driver.Builder().with_modules(module_of(two)).with_adapters(*adapters(recorder, "refused")).build()
    with pytest.raises(ValueError, match="one"):
        built.execute(["two"])
    assert told(recorder) == ["ExecutionStarted", "ExecutionCompleted False"]


async def waits() -> int:
    before = trace.get_current_span()
    # the body's own work, which is its span's least length
    await asyncio.sleep(0.05)
    assert before.get_span_context().is_valid
    assert trace.get_current_span() == before
    await STARTED.put(None)
    await asyncio.Event().wait()
    return 1


STARTED: Any = None


def test_a_cancelled_async_execution_is_cancelled(otlp: OtlpListener, receiver: Receiver) -> None:
    async def run() -> None:
        global STARTED  # noqa: PLW0603 - of this loop
        STARTED = asyncio.Queue()
        builder = async_driver.Builder().with_modules(module_of(waits))
        built = await builder.with_adapters(*async_adapters(otlp, "waiting")).build()
        before = otel_context.get_current()
        task = asyncio.create_task(built.execute(["waits"]))
        await STARTED.get()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert otel_context.get_current() == before

    asyncio.run(run())
    assert otlp.flush(10.0)
    assert (
        span_tree(receiver.spans)
        == """\
waiting (server) cancelled
  waits (internal) cancelled"""
    )
    (waited,) = [span for span in receiver.spans if span.name == "waits"]
    assert waited.end_ns - waited.start_ns >= 50_000_000


def test_an_adapters_own_defect_does_not_reach_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = RecordingListener()
    made = adapters(recorder, "defect")
    built = driver.Builder().with_modules(module_of(one)).with_adapters(*made).build()
    monkeypatch.setattr("constellation_otel.adapters.hamilton._key", None)
    assert built.execute(["one"]) == {"one": 1}
    assert made[0].teller.counters.errors == 2
    assert "pre_node_execute of the adapter for hamilton failed; the engine goes on" in caplog.messages
    assert told(recorder) == ["ExecutionStarted", "ExecutionCompleted True"]


# --- what users read ------------------------------------------------------------------------------------------------


def test_the_page_is_a_program_that_prints_what_it_says(receiver: Receiver, tmp_path: Path) -> None:
    page = (ROOT / "docs/hamilton.md").read_text()
    program = tmp_path / "page.py"
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    program.write_text(code.replace("http://localhost:4317", receiver.grpc_endpoint))
    outputs = "".join(re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    assert run_command(receiver, f"python {program}", PYTHONWARNINGS="ignore")[0] == outputs
    tree = "letters (server) success\n  count (internal) success\n  trim (internal) success"
    assert span_tree(receiver.spans) == f"{tree}\n\n{tree}"


def test_the_example_is_one_trace(receiver: Receiver) -> None:
    printed, _ = run_command(receiver, "python examples/hamilton_driver.py", PYTHONWARNINGS="ignore")
    assert printed == "{'count': 6, 'longest': 'not'}\n"
    assert (
        span_tree(receiver.spans)
        == """\
statistics (server) success
  count (internal) success
  longest (internal) success
  words (internal) success"""
    )
