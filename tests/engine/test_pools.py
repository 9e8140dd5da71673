"""The embedded engine where its modules run in other processes: process pools and Dask."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, cast

import pytest
from distributed import Client, LocalCluster
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id

from constellation_otel import OpenTelemetryListener
from constellation_otel.engine import Constellation, Dag, module
from constellation_otel.errors import DagError, ExecutionCancelledError, ExecutionFailedError, RemoteError
from engine_support import Elsewhere, SpanPerModule
from support import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from uuid import UUID


class DemandingError(Exception):
    """Can be pickled and not be unpickled."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class LockedError(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


class LockedExit(SystemExit):
    """An exit that cannot be pickled, and has no text."""

    def __init__(self) -> None:
        super().__init__(1)
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise ValueError


class Nothing(Exception):
    """An error that is false, as one with a ``__len__`` may be."""

    def __bool__(self) -> bool:
        return False


def where() -> int:
    return os.getpid()


def span() -> str:
    found = trace.get_current_span().get_span_context()
    return f"{format_trace_id(found.trace_id)} {format_span_id(found.span_id)} {baggage.get_baggage('tenant')}"


async def async_span(where: int) -> str:
    await asyncio.sleep(0)
    return span()


@module(name="Decorated", inputs={"pid": "where"})
def decorated(pid: int) -> bool:
    return pid == os.getpid()


def bad(where: int) -> None:
    raise DagError("no")


def demanding() -> None:
    raise DemandingError(code=3)


def locked() -> None:
    raise LockedError


def exits() -> None:
    raise LockedExit


def nothing() -> None:
    raise Nothing


def nameless() -> None:
    class NamelessError(Exception):
        pass

    raise NamelessError("no")


def after_bad(bad: None) -> None: ...


def dies() -> None:
    os._exit(3)


def meets(path: str) -> str:
    """Says that it runs by reading from a pipe, and runs until something is written to it."""
    with open(path) as pipe:  # noqa: PTH123 - a pipe is no ordinary path
        return pipe.read()


DAG = Dag("p", [where, span, async_span, decorated, bad, after_bad])


class Inline(Executor):
    """An executor that has run a function when submit() returns."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - as executors do
                future.set_exception(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(DEADLINE)
        return future


class Holding(Inline):
    """An executor that runs nothing."""

    def __init__(self) -> None:
        self.held: list[Future[Any]] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.held.append(Future())
        return self.held[-1]


@pytest.fixture(scope="module")
def process_pool() -> Iterator[Executor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def dask() -> Iterator[Executor]:
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": True, "dashboard_address": "127.0.0.1:0"}
    cluster_type, client_type = cast("Any", LocalCluster), cast("Any", Client)  # which are not typed
    with cluster_type(host="127.0.0.1", **options) as cluster, client_type(cluster) as client:
        yield client.get_executor()


@pytest.fixture(params=["process_pool", "dask"])
def remote(request: pytest.FixtureRequest) -> Executor:
    executor = request.getfixturevalue(request.param)
    assert isinstance(executor, Executor)
    return executor


def test_modules_run_elsewhere_under_their_own_spans(remote: Executor) -> None:
    """And all callbacks are made here."""
    listener = SpanPerModule()
    token = otel_context.attach(baggage.set_baggage("tenant", "acme"))
    with Constellation(listener, remote) as constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.run(DAG, {})
    otel_context.detach(token)
    outputs = caught.value.outputs
    assert list(outputs) == ["where", "span", "async_span", "Decorated"]
    assert outputs["where"] != os.getpid()
    assert outputs["Decorated"] is True
    assert outputs["span"] == f"{listener.spans['span']} acme"
    assert outputs["async_span"] == f"{listener.spans['async_span']} acme"
    assert isinstance(caught.value.errors["bad"], DagError)
    assert caught.value.errors == listener.errors
    assert listener.calls[:2] == ["p starts", "where starts"]
    assert listener.calls[-1] == "p fails"
    assert len(listener.calls) == 12
    for name in ("where", "span", "async_span", "Decorated"):
        assert listener.calls.index(f"{name} starts") < listener.calls.index(f"{name} completes")
        assert 0 < listener.durations[name] < listener.durations["p"]
    assert listener.threads.pop("p starts") is threading.current_thread()
    assert {thread.name for thread in listener.threads.values()} == {"constellation-loop"}


def test_a_module_runs_once_in_each_execution(remote: Executor, tmp_path: Path) -> None:
    """And not once for all equal calls that are in flight, which Dask would do."""
    with Constellation(executor=remote) as constellation:
        dag = Dag("p", [appends])
        both = [constellation.start(dag, {"path": str(tmp_path / "file")}) for _ in range(2)]
        assert sorted(each.result(DEADLINE)["appends"] for each in both) == [1, 2]


def appends(path: str) -> int:
    with open(path, "a+") as file:  # noqa: PTH123 - shorter
        file.write("x")
        file.seek(0)
        return len(file.read())


def test_cancelling_drops_what_is_queued_elsewhere(remote: Executor, tmp_path: Path) -> None:
    """And does not wait for what runs there."""
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    listener = SpanPerModule()
    dag = Dag("p", [meets, module(where, name="queued"), module(lambda meets: None, name="after")])
    with Constellation(listener, remote) as constellation:
        execution = constellation.start(dag, {"path": path})
        with open(path, "w") as pipe:  # noqa: PTH123 - a pipe is no ordinary path
            eventually(lambda: "queued starts" in listener.calls, "the second module is submitted")
            assert execution.cancel()
            assert execution.done()
            pipe.write("go on")
        with pytest.raises(ExecutionCancelledError):
            execution.result()
    assert listener.calls == ["p starts", "meets starts", "queued starts", "p is cancelled"]


@pytest.mark.parametrize(
    ("body", "message", "type_name"),
    [
        (demanding, "code 3", "DemandingError"),
        (locked, "locked", "LockedError"),
        (nothing, "", "Nothing"),
        (exits, "<str() of this LockedExit raised ValueError>", "LockedExit"),
    ],
)
def test_an_error_that_cannot_be_sent_arrives_as_a_remote_error(
    process_pool: Executor, body: Callable[[], None], message: str, type_name: str
) -> None:
    """And the pool is not broken."""
    with Constellation(executor=process_pool) as constellation:
        with pytest.raises(ExecutionFailedError) as caught:
            constellation.run(Dag("p", [body]), {})
        assert constellation.run(Dag("p", [where]), {})["where"] != os.getpid()
    (error,) = caught.value.errors.values()
    assert isinstance(error, RemoteError)
    assert (error.message, error.type) == (message, f"{__name__}.{type_name}")


def test_dask_sends_an_error_whose_class_pickle_cannot_find(dask: Executor) -> None:
    with Constellation(executor=dask) as constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.run(Dag("p", [nameless]), {})
    assert repr(caught.value.errors["nameless"]) == "NamelessError('no')"


def test_a_function_that_cannot_be_sent_to_a_pool_fails(process_pool: Executor) -> None:
    """With a message that names the module."""
    listener = SpanPerModule()
    with Constellation(listener, process_pool) as constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.run(Dag("p", [module(lambda: 1, name="Nameless")]), {})
    error = caught.value.errors["Nameless"]
    assert isinstance(error, DagError)
    assert str(error).startswith("module('Nameless') cannot be sent to another process: ")
    assert str(error).endswith("define its function at the top level of a Python module, or use a ThreadPoolExecutor")
    assert listener.calls == ["p starts", "Nameless starts", "Nameless fails", "p fails"]


def test_dask_sends_a_function_that_pickle_cannot_find(dask: Executor) -> None:
    with Constellation(executor=dask) as constellation:
        assert constellation.run(Dag("p", [module(lambda n: n + 1, name="Nameless")]), {"n": 1}) == {"Nameless": 2}


def test_a_process_that_dies_fails_its_module() -> None:
    """And hangs no caller."""
    listener = SpanPerModule()
    dag = Dag("p", [dies, module(lambda dies: None, name="after")])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool, Constellation(listener, pool) as constellation:
        for _ in range(2):  # while it breaks, and when it has broken
            with pytest.raises(ExecutionFailedError) as caught:
                constellation.run(dag, {})
            assert isinstance(caught.value.errors["dies"], BrokenProcessPool)
    assert listener.calls == ["p starts", "dies starts", "dies fails", "p fails"] * 2


# What holds for every executor that is not a thread pool, with executors in this process


def test_an_executor_that_is_not_a_thread_pool_is_elsewhere() -> None:
    listener = SpanPerModule()
    with Constellation(listener, Inline()) as constellation:
        outputs = constellation.run(Dag("p", [where, span]), {})
    assert outputs == {"where": os.getpid(), "span": f"{listener.spans['span']} None"}
    assert listener.calls[:2] == ["p starts", "where starts"]


def test_a_long_chain_needs_no_deep_stack_elsewhere() -> None:
    """With an executor that has run a module when submit() returns."""

    def follows(before: int) -> int:
        return before

    followers = [module(follows, name=f"m{n}", inputs={"before": f"m{n - 1}"}) for n in range(1, 600)]
    chain: list[Callable[..., Any]] = [module(where, name="m0"), *followers]
    with Constellation(executor=Inline()) as constellation:
        assert constellation.run(Dag("chain", chain), {})["m599"] == os.getpid()


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (bad, "DagError"),
        (demanding, "RemoteError"),
        (locked, "RemoteError"),
        (nameless, "NamelessError"),
        (nothing, "RemoteError"),
    ],
)
def test_what_a_body_raises_is_raised_again_where_it_can_be_sent(body: Callable[..., None], name: str) -> None:
    with Constellation(executor=Inline()) as constellation, pytest.raises(ExecutionFailedError) as caught:
        constellation.run(Dag("p", [module(body, name="body")]), {"where": 1} if body is bad else {})
    assert type(caught.value.errors["body"]).__name__ == name
    assert caught.value.errors["body"].__context__ is None


def test_an_async_body_has_an_event_loop_of_its_own_there() -> None:
    with Constellation(executor=Inline()) as constellation:
        listener = constellation.run(Dag("p", [async_span]), {"where": 1})
    assert listener == {"async_span": f"{'0' * 32} {'0' * 16} None"}


def test_a_module_whose_future_something_else_cancels_fails() -> None:
    holding = Holding()
    with Constellation(executor=holding) as constellation:
        execution = constellation.start(Dag("p", [where]), {})
        eventually(lambda: holding.held and holding.held[0].cancel(), "the call is cancelled")
        holding.held[0].set_running_or_notify_cancel()
        with pytest.raises(ExecutionFailedError) as caught:
            execution.result(DEADLINE)
    assert isinstance(caught.value.errors["where"], CancelledError)


def test_a_listener_may_cancel_before_a_module_is_submitted() -> None:
    """It is not submitted then."""

    class Cancelling(SpanPerModule):
        def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
            super().on_module_start(execution_id, module_id, module_name)
            if module_name == "second":
                execution.cancel()

    holding, listener = Holding(), Cancelling()
    modules: list[Callable[..., object]] = [
        module(where, name="first"),
        module(lambda first: 1, name="second"),
        module(lambda first: 1, name="third"),
    ]
    with Constellation(listener, holding) as constellation:
        execution = constellation.start(Dag("p", modules), {})
        eventually(lambda: holding.held, "the first call is submitted")
        holding.held[0].set_result((1, 2.0, None))
        with pytest.raises(ExecutionCancelledError):
            execution.result(DEADLINE)
    assert len(holding.held) == 1
    assert listener.calls == ["p starts", "first starts", "first completes", "second starts", "p is cancelled"]


def test_a_module_submitted_during_the_cancellation_is_cancelled() -> None:
    class Cancelled(Holding):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            if self.held:
                execution.cancel()
            return super().submit(function, *args, **kwargs)

    holding, listener = Cancelled(), SpanPerModule()
    with Constellation(listener, holding) as constellation:
        execution = constellation.start(Dag("p", [where, module(lambda where: 1, name="second")]), {})
        eventually(lambda: holding.held, "the first call is submitted")
        holding.held[0].set_result((1, 2.0, None))
        with pytest.raises(ExecutionCancelledError):
            execution.result(DEADLINE)
        eventually(lambda: len(holding.held) == 2 and holding.held[1].cancelled(), "the second call is cancelled")
    assert listener.calls == ["p starts", "where starts", "where completes", "second starts", "p is cancelled"]


def fails_with_a_class_of_its_own() -> None:
    class Local(Exception):
        pass

    trace.get_current_span().set_attribute("rows", 7)
    raise Local("why")


def test_what_a_body_has_set_comes_with_an_error_of_any_class() -> None:
    """One whose class pickle does not find by its name travels where the executor can send it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    listener, executor = OpenTelemetryListener(provider, NoOpMeterProvider()), Elsewhere()
    with Constellation(listener, executor) as constellation, pytest.raises(ExecutionFailedError, match="Local: why"):
        constellation.run(Dag("d", [fails_with_a_class_of_its_own]), {})
    executor.shutdown()
    assert listener.close(DEADLINE)
    failed, _ = exporter.get_finished_spans()
    assert failed.attributes is not None
    assert failed.attributes["rows"] == 7
    provider.shutdown()
