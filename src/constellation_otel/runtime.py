"""The embedded engine: runs a Dag's modules and tells a listener what happens.

Read top to bottom: a run is one execution, a state machine under one lock; the
engine owns the threads. No lock is held while a callback, a module's body or an
executor runs. What a Dag is, and what is refused as one, is in ``dag``.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import os
import pickle
import threading
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from graphlib import TopologicalSorter
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self, cast
from uuid import UUID, uuid4

from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.context import Context

from constellation_otel._deadline import deadline_of, seconds_left
from constellation_otel.errors import (
    ConstellationOtelError,
    DagError,
    ExecutionCancelledError,
    ExecutionFailedError,
    RemoteError,
)
from constellation_otel.listener import ExecutionListener, ModuleContextProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from constellation_otel.dag import Dag, Module

__all__ = ["Constellation", "ConstellationBuilder", "Execution"]

_CLOSE_TIMEOUT: Final = 30.0
_MAX_THREADS: Final = 1_000
_LOG: Final = logging.getLogger(__name__)


class Execution:
    """One execution, as :meth:`Constellation.start` returns it.

    Attributes:
        execution_id: A UUIDv4; what the listener is told.
        dag_name: The DAG's name.
    """

    def __init__(self, run: _Run) -> None:
        self._run = run
        self.execution_id = run.execution_id
        self.dag_name = run.dag.name

    def result(self, timeout: float | None = None) -> Mapping[str, Any]:
        """Waits for the execution's end, of which the listener has been told by then.

        Args:
            timeout: Seconds; ``None`` waits for as long as it takes.

        Returns:
            Each module's output, by module name, in the order of the DAG's modules.

        Raises:
            ExecutionFailedError: A module failed; with what every module came to.
            ExecutionCancelledError: It was cancelled.
            TimeoutError: It has not ended within the timeout; it runs on.
            ConstellationOtelError: Called on the engine's own event loop, which would
                stop what it waits for: await :meth:`Constellation.run_async` instead.
        """
        return self._run.result(timeout)

    def cancel(self) -> bool:
        """Cancels the execution; does not wait.

        No module starts any more and no callback of a module fires any more. Async
        modules are cancelled as asyncio does it; plain ones that run, run out, and
        what they come to is dropped. The listener's ``on_execution_cancelled`` fires
        before this returns, or where callbacks are being made meanwhile, right
        after them, in the last one's thread. May be called anywhere, in a callback
        and in a module's body too.

        Returns:
            Whether this cancelled it: ``False`` where it has ended, or was cancelled before.
        """
        return self._run.cancel()

    def done(self) -> bool:
        """Whether it has ended, and the listener has been told."""
        return self._run.future.done()


class _Run:
    """The state of one execution.

    ``_changed`` guards all of it. A module is counted in ``_running`` from when it is
    ready until its callbacks have returned; whoever brings that to zero, with nothing
    ready, ends the execution. A callback that is being made is counted in ``_telling``;
    after a cancellation no more begin, and whoever brings that to zero ends the execution.
    """

    def __init__(self, dag: Dag, inputs: Mapping[str, Any], listener: ExecutionListener, threads: _Threads) -> None:
        self.dag = dag
        self.execution_id = uuid4()
        self.future: Future[Mapping[str, Any]] = Future()
        self.future.set_running_or_notify_cancel()  # so that nobody who waits on it can cancel it
        self._listener = listener
        self._threads = threads
        self._context = contextvars.copy_context()
        self._ids = {name: uuid4() for name in dag.modules}
        self._values = dict(inputs)  # and outputs: no input has a module's name
        self._errors: dict[str, BaseException] = {}
        self._order = TopologicalSorter(dag.waits_for)
        self._order.prepare()
        self._changed = threading.Condition()
        self._ready: dict[str, Module[..., Any]] = {}  # has a ticket in the executor's queue; taken by who runs it
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sent: set[Future[Any]] = set()
        self._running = 0
        self._telling = 0
        self._over = False
        self._cancelled = False

    def start(self) -> None:
        self._began = perf_counter()
        try:
            self._listener.on_execution_start(self.execution_id, self.dag.name)
        except BaseException as error:  # KeyboardInterrupt and its like: the guarded listener lets nothing else through
            self.future.set_exception(error)
            raise
        try:
            self._advance()
        except BaseException:
            self.cancel()
            raise

    def result(self, timeout: float | None) -> Mapping[str, Any]:
        if not self.future.done():
            self._threads.check_may_wait()
        if timeout is None and _inside.get() is self._threads:
            self._help()
        return self.future.result(timeout)

    def cancel(self) -> bool:
        with self._changed:
            if self._over:
                return False
            self._over = self._cancelled = True
            self._ready.clear()
            tasks, sent, last = tuple(self._tasks), tuple(self._sent), not self._telling
        for task in tasks:
            task.get_loop().call_soon_threadsafe(task.cancel)
        if last:
            self._end()
        for future in sent:
            future.cancel()
        return True

    def _advance(self) -> None:
        """Launches what is ready; ends the execution where nothing is and nothing runs."""
        with self._changed:
            if self._over:
                return
            ready = [self.dag.modules[name] for name in self._order.get_ready()]
            self._running += len(ready)
            over = self._over = not self._running
        if over:
            self._end()
        for each in ready:
            self._launch(each)

    def _launch(self, each: Module[..., Any]) -> None:
        if not self._threads.is_local:
            self._hand_over(self._send, each)
        elif each.is_async:
            loop = self._threads.event_loop()
            self._threads.track(self._in_context(asyncio.run_coroutine_threadsafe, self._await(each), loop))
        else:
            with self._changed:
                self._ready[each.name] = each
                self._changed.notify_all()
            try:
                ticket = self._threads.executor.submit(self._take, each)
            except Exception as error:  # noqa: BLE001 - shut down or broken: the module fails with it
                self._take(each, error)
            else:
                self._threads.track(ticket)
                ticket.add_done_callback(functools.partial(self._ticket_ended, each))

    def _in_context(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls in a copy of the caller's context: no module sees what another sets."""
        return self._context.copy().run(function, *args)

    def _hand_over(self, function: Callable[..., Any], *args: Any) -> None:
        """Calls in the engine's own thread: submitting may take long, and a thread of the executor hold its locks."""
        if not self._over:  # then the engine does not close before it is
            self._threads.call_soon(self._in_context, function, *args)

    def _take(self, each: Module[..., Any], refusal: BaseException | None = None) -> None:
        """Runs a module that waits for a thread, unless another thread has taken it."""
        with self._changed:
            taken = self._ready.pop(each.name, None)
        if taken is not None:
            self._in_context(self._call, each, refusal)

    def _ticket_ended(self, each: Module[..., Any], ticket: Future[None]) -> None:
        """Fails a module whose ticket the executor dropped."""
        dropped = CancelledError("the executor was shut down") if ticket.cancelled() else ticket.exception()
        if dropped is not None:
            self._hand_over(self._take, each, dropped)

    def _help(self) -> None:
        """Does the modules itself: this thread is a module's, and there may be no other one free."""
        while True:
            with self._changed:
                while not self._ready and not self.future.done():
                    self._changed.wait()
                if not self._ready:
                    return
                each = next(iter(self._ready.values()))
            self._take(each)

    def _call(self, each: Module[..., Any], refusal: BaseException | None) -> None:
        """A plain module in this thread: a coroutine that never waits."""
        with suppress(StopIteration):
            self._perform(each, refusal).send(None)

    async def _await(self, each: Module[..., Any]) -> None:
        """An async module on the engine's event loop."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        with self._changed:
            self._tasks.add(task)
        await self._perform(each)
        with self._changed:
            self._tasks.discard(task)

    async def _perform(self, each: Module[..., Any], refusal: BaseException | None = None) -> None:
        began = perf_counter()
        try:
            if not self._tell(self._listener.on_module_start, each):
                return
            if refusal is not None:
                raise refusal  # noqa: TRY301 - it ends like one that the body raises
            with self._activated(each):
                output = each.function(**self._arguments(each))
                if each.is_async:
                    output = await output
        except BaseException as error:  # noqa: BLE001 - SystemExit fails a module, it does not stop a thread of ours
            self._finish(each, error)
        else:
            self._finish(each, None, output, (perf_counter() - began) * 1000.0)

    def _send(self, each: Module[..., Any]) -> None:
        """A module in another process, to which only headers can follow it."""
        try:
            if not self._tell(self._listener.on_module_start, each):
                return
            headers: dict[str, str] = {}
            propagate.inject(headers, context=self._module_context(each))
            executor = self._threads.executor
            function = _picklable(each) if isinstance(executor, ProcessPoolExecutor) else each.function
            call = (function, each.is_async, self._arguments(each), headers, self._ids[each.name])
            future = executor.submit(_run_remotely, *call)
        except BaseException as error:  # noqa: BLE001 - as in _perform
            self._finish(each, error)
            return
        self._threads.track(future)
        with self._changed:
            self._sent.add(future)
            cancelled = self._cancelled
        if cancelled:
            future.cancel()
        future.add_done_callback(functools.partial(self._hand_over, self._receive, each))

    def _receive(self, each: Module[..., Any], future: Future[tuple[Any, float]]) -> None:
        with self._changed:
            self._sent.discard(future)
        try:
            output, duration_ms = future.result()
        except BaseException as error:  # noqa: BLE001 - as in _perform
            self._finish(each, error)
        else:
            self._finish(each, None, output, duration_ms)

    def _arguments(self, each: Module[..., Any]) -> dict[str, Any]:
        with self._changed:
            return {name: self._values[source] for name, source in each.sources.items() if source in self._values}

    def _module_context(self, each: Module[..., Any]) -> Context:
        context = otel_context.get_current()
        if isinstance(self._listener, ModuleContextProvider):
            return self._listener.module_context(self.execution_id, self._ids[each.name], context)
        return context

    @contextmanager
    def _activated(self, each: Module[..., Any]) -> Iterator[None]:
        """Makes current what a module's body is to find."""
        inside = _inside.set(self._threads)
        token = otel_context.attach(self._module_context(each))
        try:
            yield
        finally:
            otel_context.detach(token)
            _inside.reset(inside)

    def _tell(self, callback: Callable[..., None], each: Module[..., Any], *args: Any) -> bool:
        """Makes a module's callback.

        Returns:
            Whether the execution goes on. After a cancellation the callback is not made.
        """
        with self._changed:
            if self._cancelled:
                return False
            self._telling += 1
        try:
            callback(self.execution_id, self._ids[each.name], each.name, *args)
        finally:
            with self._changed:
                self._telling -= 1
                cancelled, last = self._cancelled, not self._telling
            if cancelled and last:
                self._end()
        return not cancelled

    def _finish(
        self, each: Module[..., Any], error: BaseException | None, output: Any = None, duration_ms: float = 0.0
    ) -> None:
        """Tells of a module's end, and lets what waits for it go on."""
        try:
            if error is None:
                self._tell(self._listener.on_module_complete, each, duration_ms)
            else:
                self._tell(self._listener.on_module_failed, each, error)
        except BaseException as raised:  # noqa: BLE001 - KeyboardInterrupt and its like: for whoever waits, as the failure
            error = raised
        with self._changed:
            self._running -= 1
            if error is None:
                self._values[each.name] = output
                self._order.done(each.name)
            else:
                self._errors[each.name] = error
        self._advance()

    def _end(self) -> None:
        """Makes the execution's last callback and wakes who waits. Called once, when no module's will follow."""
        duration_ms = (perf_counter() - self._began) * 1000.0
        with self._changed:
            outputs = MappingProxyType({name: self._values[name] for name in self.dag.modules if name in self._values})
            errors = MappingProxyType(dict(self._errors))
        error: BaseException | None = None
        try:
            if self._cancelled:
                error = ExecutionCancelledError(self.execution_id, self.dag.name, outputs)
                self._listener.on_execution_cancelled(self.execution_id, self.dag.name)
            else:
                if errors:
                    error = ExecutionFailedError(self.execution_id, self.dag.name, errors, outputs)
                self._listener.on_execution_complete(self.execution_id, self.dag.name, not errors, duration_ms)
        except BaseException as raised:  # noqa: BLE001 - as in _finish
            error = raised
        if error is None:
            self.future.set_result(outputs)
        else:
            self.future.set_exception(error)
        with self._changed:
            self._changed.notify_all()


class Constellation:
    """Runs DAGs and tells a listener.

    Independent modules run in parallel; a module that fails stops those that wait for
    it, directly or not, and no others. The caller's context variables reach every module,
    and what a module sets reaches nobody else.

    Where modules run:

    * Plain modules in the executor's threads. Without an executor the engine has threads of
      its own, as many as there are modules at work (1000 at most), so that modules may wait for
      each other's executions as they like. Of an executor with fewer threads, a module that waits
      with :meth:`run` for another execution of this engine does that one's modules in its own
      thread; a module that waits for one in another way keeps a thread from it.
    * Async modules on one event loop in a thread of the engine, whoever calls.
    * All modules elsewhere, where the executor is anything but a
      :class:`~concurrent.futures.ThreadPoolExecutor`: a process pool, Dask's
      ``client.get_executor()``. The listener is not there, so all callbacks are made in the engine's
      thread, a module's start when it is submitted; the trace context and baggage follow it as
      headers, context variables do not. Functions, arguments and outputs have to be such as the
      executor can send.

    Args:
        listener: What to tell; an exception of its callbacks is logged and goes no further.
        executor: Where modules run; never shut down by the engine.
    """

    def __init__(self, listener: ExecutionListener = ExecutionListener.noop, executor: Executor | None = None) -> None:
        self._listener = ExecutionListener.composite(listener)
        self._executor = executor
        self._by_process: dict[int, _Threads] = {}

    @staticmethod
    def builder() -> ConstellationBuilder:
        """The guide's way to make one: ``Constellation.builder().with_listener(listener).build()``."""
        return ConstellationBuilder()

    def run(self, dag: Dag, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Runs a DAG and waits for its end. Interrupted by Ctrl-C, it cancels the execution.

        Args:
            dag: The DAG.
            inputs: The DAG's inputs by name.

        Returns:
            Each module's output, by module name, in the order of the DAG's modules.

        Raises:
            DagError: The inputs are not the DAG's; nothing has been started.
            ExecutionFailedError: A module failed; with what every module came to.
            ExecutionCancelledError: Somebody cancelled it.
            ConstellationOtelError: The engine is closed, or this is its event loop: await :meth:`run_async` there.
        """
        self._threads().check_may_wait()
        run = self._start(dag, inputs)
        try:
            return run.result(None)
        except BaseException:
            run.cancel()  # nobody else has hold of it; does nothing where it has ended
            raise

    async def run_async(self, dag: Dag, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Like :meth:`run`, without keeping the caller's event loop from anything else.

        Cancelling the task that awaits this cancels the execution.
        """
        run = self._start(dag, inputs)
        try:
            return await asyncio.wrap_future(run.future)
        except BaseException:
            run.cancel()  # as in run
            raise

    def start(self, dag: Dag, inputs: Mapping[str, Any]) -> Execution:
        """Starts a DAG; the listener's ``on_execution_start`` is called before this returns, in this thread.

        Args:
            dag: The DAG.
            inputs: The DAG's inputs by name.

        Raises:
            DagError: The inputs are not the DAG's; nothing has been started.
            ConstellationOtelError: The engine is closed.
        """
        return Execution(self._start(dag, inputs))

    def close(self, timeout: float = _CLOSE_TIMEOUT) -> bool:
        """Starts nothing more, waits for what runs, and ends the engine's own threads.

        Cancels nothing. Modules that run may still run DAGs of this engine. To call
        this from a module or a callback is to wait for oneself.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether everything has ended. Where not, that is logged, everything runs
            on, and this may be called again.
        """
        return self._threads().close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, dag: Dag, inputs: Mapping[str, Any]) -> _Run:
        dag.check_inputs(inputs)
        threads = self._threads()
        run = _Run(dag, inputs, self._listener, threads)
        threads.admit(run.future)
        run.start()
        return run

    def _threads(self) -> _Threads:
        """This process's: a forked child has none of its parent's threads."""
        pid = os.getpid()
        return self._by_process.get(pid) or self._by_process.setdefault(pid, _Threads(self._executor))


class ConstellationBuilder:
    """Makes a :class:`Constellation` step by step, as the guide does."""

    def __init__(self) -> None:
        self._listener = ExecutionListener.noop
        self._executor: Executor | None = None

    def with_listener(self, listener: ExecutionListener) -> ConstellationBuilder:
        """Sets the listener, in place of one set before."""
        self._listener = listener
        return self

    def with_executor(self, executor: Executor) -> ConstellationBuilder:
        """Sets the executor, in place of one set before."""
        self._executor = executor
        return self

    def build(self) -> Constellation:
        """Makes the engine."""
        return Constellation(self._listener, self._executor)


class _Threads:
    """An engine's threads in one process, started when they are needed, and what is at work in them."""

    def __init__(self, executor: Executor | None) -> None:
        self.executor = ThreadPoolExecutor(_MAX_THREADS, "constellation") if executor is None else executor
        self.is_local = isinstance(self.executor, ThreadPoolExecutor)
        self._owned = executor is None
        self._lock = threading.Lock()
        self._pending: set[Future[Any]] = set()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def event_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            return self._started_loop()

    def call_soon(self, function: Callable[..., object], *args: Any) -> None:
        with self._lock:  # so that it is not closed between
            self._started_loop().call_soon_threadsafe(function, *args)

    def check_may_wait(self) -> None:
        if threading.current_thread() is self._thread:
            message = "waiting here would stop the event loop of this Constellation for good; await run_async() instead"
            raise ConstellationOtelError(message)

    def admit(self, execution: Future[Any]) -> None:
        with self._lock:
            if self._closed and _inside.get() is not self:
                message = "this Constellation is closed and starts nothing more; make another one"
                raise ConstellationOtelError(message)
            self._pending.add(execution)
        execution.add_done_callback(self._untrack)

    def track(self, module: Future[Any]) -> None:
        with self._lock:
            self._pending.add(module)
        module.add_done_callback(self._untrack)

    def close(self, timeout: float) -> bool:
        deadline = deadline_of(timeout)
        with self._lock:
            self._closed = True
        while pending := self._unfinished():
            if wait(pending, seconds_left(deadline)).not_done:
                _LOG.warning("%d executions or modules have not ended within %g s; they run on", len(pending), timeout)
                return False
        if self._owned:
            self.executor.shutdown()
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
        if self._thread is None:
            return True
        self._thread.join(seconds_left(deadline))
        return not self._thread.is_alive()

    def _started_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=_run_loop, args=(self._loop,), name="constellation-loop", daemon=True
            )
            self._thread.start()
        return self._loop

    def _untrack(self, future: Future[Any]) -> None:
        with self._lock:
            self._pending.discard(future)

    def _unfinished(self) -> list[Future[Any]]:
        with self._lock:
            return [future for future in self._pending if not future.done()]


_inside: Final = contextvars.ContextVar[_Threads | None]("constellation_inside", default=None)
"""The engine one of whose modules is running here."""


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        try:
            loop.run_forever()
        except BaseException:  # noqa: BLE001, S112 - SystemExit of a task that a module has made: that task has it
            continue
        break
    loop.run_until_complete(_wind_up(loop))
    loop.close()


async def _wind_up(loop: asyncio.AbstractEventLoop) -> None:
    """Cancels the tasks that modules made and left behind."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


def _run_remotely(
    function: Callable[..., Any],
    is_async: bool,
    arguments: dict[str, Any],
    headers: dict[str, str],
    module_id: UUID,  # noqa: ARG001 - makes each call another one for executors that remember calls, as Dask's does
) -> tuple[Any, float]:
    """A module in another process.

    Returns:
        Its output and how long it took, in milliseconds.
    """
    token = otel_context.attach(propagate.extract(headers, context=Context()))
    began = perf_counter()
    try:
        returned = function(**arguments)
        output = asyncio.run(returned) if is_async else returned
        return output, (perf_counter() - began) * 1000.0
    except Exception as error:  # noqa: BLE001 - raised below, where nothing is its context
        failure = _returnable(error)
    finally:
        otel_context.detach(token)
    raise failure


def _returnable(error: Exception) -> Exception:
    """The exception, or what can be said of it where it could not be sent back.

    Worst is one that can be sent and not be read, of a class whose ``__init__`` does not
    take its ``args``: that breaks a process pool for good.
    """
    try:
        pickled = pickle.dumps(error)
    except (AttributeError, pickle.PicklingError):
        return error  # its class is not found by its name; Dask sends such a class along
    except Exception:  # noqa: BLE001 - what it holds cannot be pickled
        return _in_words(error)
    try:
        pickle.loads(pickled)  # noqa: S301 - just made here
    except Exception:  # noqa: BLE001 - whatever its class does
        return _in_words(error)
    return error


def _in_words(error: Exception) -> RemoteError:
    cls = type(error)
    return RemoteError(str(error), f"{cls.__module__}.{cls.__qualname__}")


def _picklable(each: Module[..., Any]) -> Callable[..., Any]:
    """What stands for a module's function in a process pool: itself, or what decorated it."""
    for candidate in (each.function, each):
        try:
            pickle.dumps(candidate)
        except Exception as error:  # noqa: BLE001 - pickle raises all sorts
            reason = error
        else:
            return candidate
    message = (
        f"{each!r} cannot be sent to another process: {reason}; define its function at the top level of a Python"
        " module, or hand in a ThreadPoolExecutor"
    )
    raise DagError(message) from reason
