"""The embedded engine: runs a Dag's modules and tells a listener what happens.

Read top to bottom: a run is one execution, a state machine under one lock; the
engine owns the threads. No lock is held while a callback, a module's body or an
executor runs. What a Dag is, and what is refused as one, is in ``dag``.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import os
import pickle
import threading
import weakref
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from graphlib import TopologicalSorter
from time import perf_counter
from types import CoroutineType, GeneratorType, MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeAlias, TypeVar, cast
from uuid import UUID, uuid4

from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.context import Context

from constellation_otel._support.deadline import bounded, deadline_of, seconds_left
from constellation_otel._support.log import RateLimitedLog, log
from constellation_otel._support.text import message_of
from constellation_otel.errors import (
    ConstellationOtelError,
    DagError,
    ExecutionCancelledError,
    ExecutionFailedError,
    RemoteError,
)
from constellation_otel.listener import ExecutionListener, ModuleContextProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType

    from constellation_otel.engine.dag import Dag, Module

__all__ = ["Constellation", "ConstellationBuilder", "Execution"]

T = TypeVar("T")

_CLOSE_TIMEOUT: Final = 30.0
_CLOSE_SLICE: Final = 0.1
_HELP_INTERVAL: Final = 1.0
_MAX_THREADS: Final = 1_000
_LOG: Final = logging.getLogger(__name__)
_LIMITED: Final = RateLimitedLog()


class Execution:
    """One execution, as :meth:`Constellation.start` returns it.

    Attributes:
        execution_id: A UUIDv4; what the listener is told.
        dag_name: The DAG's name.
    """

    def __init__(self, run: _Run) -> None:
        self._run: _Run | None = run
        self._future = run.future
        self.execution_id = run.execution_id
        self.dag_name = run.dag.name
        run.future.add_done_callback(self._forget)

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
        run, timeout = self._run, None if timeout is None else bounded(timeout)
        return self._future.result(timeout) if run is None else run.result(timeout)

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
        run = self._run
        return run is not None and run.cancel()

    def done(self) -> bool:
        """Whether it has ended, and the listener has been told."""
        return self._future.done()

    def _forget(self, _: object) -> None:
        """Lets go of what only a running execution needs: inputs, context, and the engine's threads."""
        self._run = None


class _Run:
    """The state of one execution.

    ``_lock`` guards all of it. A module is counted in ``_running`` from when it is ready
    until its callbacks have returned; whoever brings that to zero, with nothing ready, ends
    the execution. A callback that is being made is counted in ``_telling``; once the
    execution is stopped no more begin, and whoever brings that to zero ends the execution.

    Two things stop an execution: its cancellation, and a failure of the engine's own code,
    for which everything that runs in a thread of somebody else is ``_guarded``.
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
        self._lock = threading.Lock()  # released in C, so that no interrupt comes between: a Condition's own is not
        self._changed = threading.Condition(self._lock)
        self._waiting: dict[str, Module[..., Any]] = {}  # launched, and not begun; taken by who begins it
        self._unfinished = set(dag.modules)
        self._launching: dict[int, deque[Module[..., Any]]] = {}  # by thread
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sent: set[Future[Any]] = set()
        self._running = 0
        self._telling = 0
        self._announced = False
        self._over = False
        self._stopped = False
        self._cancelled = False
        self._failure: BaseException | None = None
        self._ending = False

    def start(self) -> None:
        self._began = perf_counter()
        try:
            self._threads.admit(self.future)
            self._announced = True
            self._listener.on_execution_start(self.execution_id, self.dag.name)
            self._advance()
        except BaseException as error:
            if not self._announced:
                self.future.set_exception(error)
            elif isinstance(error, Exception):
                self._break(error)
            else:  # KeyboardInterrupt and its like: the guarded listener lets nothing else through
                self.cancel()
            raise

    def result(self, timeout: float | None) -> Mapping[str, Any]:
        if not self.future.done():
            self._threads.check_may_wait()
        if timeout is None and self._threads.are_waited_for():
            self._help()
        return self.future.result(timeout)

    def cancel(self) -> bool:
        with self._lock:
            if self._over:
                return False
            self._over = self._cancelled = True
        try:
            self._stop()
        except BaseException as error:
            self._break(error)
            raise
        return True

    def _guarded(self, function: Callable[..., T], *args: Any) -> T | None:
        """Calls for a thread that would not know what to do with an exception: it ends the execution."""
        try:
            return function(*args)
        except BaseException as error:  # noqa: BLE001 - whatever it is, somebody waits for the execution
            self._break(error)
            return None

    def _break(self, failure: BaseException) -> None:
        """Ends the execution where the engine's own code has failed."""
        with self._lock:
            self._over = True
            if self._failure is None:
                self._failure = failure
        try:
            self._stop()
        finally:
            message = "execution %s of %r ends: the engine failed"
            _LIMITED.write(_LOG, logging.ERROR, "broken", message, self.execution_id, self.dag.name, error=failure)

    def _stop(self) -> None:
        """Lets no module begin and no callback of one be made any more."""
        with self._lock:
            self._stopped = True
            self._waiting.clear()
            tasks, sent, last = tuple(self._tasks), tuple(self._sent), not self._telling
        try:
            for task in tasks:
                with suppress(RuntimeError):  # its loop is closed: it does not run
                    task.get_loop().call_soon_threadsafe(task.cancel)
        finally:
            if last:
                self._end()
        for future in sent:
            future.cancel()

    def _advance(self) -> None:
        """Launches what is ready; ends the execution where nothing is and nothing runs."""
        with self._lock:
            if self._over:
                ready = []
                over = self._stopped and not self._telling
            else:
                ready = [self.dag.modules[name] for name in self._order.get_ready()]
                self._running += len(ready)
                over = self._over = not self._running
        if over:
            self._end()
        thread = threading.get_ident()
        launching = self._launching.get(thread)
        if launching is not None:  # the executor runs at once what it is given: this is inside its submit
            launching.extend(ready)
            return
        launching = self._launching[thread] = deque(ready)
        try:
            while launching:
                self._launch(launching.popleft())
        finally:
            del self._launching[thread]

    def _launch(self, each: Module[..., Any]) -> None:
        with self._lock:
            self._waiting[each.name] = each
            self._changed.notify_all()
        try:
            if not self._threads.is_local:
                self._hand_over(self._send, each)
            elif each.is_async:
                self._in_context(self._run_on_loop, each, self._await, each)
            else:
                ticket = self._threads.submit_plain(self._guarded, self._take, each)
                self._threads.track(ticket)
                ticket.add_done_callback(functools.partial(self._guarded, self._ticket_ended, each))
        except Exception as error:  # noqa: BLE001 - shut down or broken, no thread, no descriptor: the module fails with it
            self._take(each, error)

    def _in_context(self, function: Callable[..., T], *args: Any) -> T:
        """Calls in a copy of the caller's context: no module sees what another sets."""
        return self._context.copy().run(function, *args)

    def _run_on_loop(
        self, each: Module[..., Any], function: Callable[..., Coroutine[Any, Any, None]], *args: Any
    ) -> None:
        """Runs a coroutine, with whose end the module ends, in a copy of the current context."""
        ticket = self._threads.submit(function, *args)
        self._threads.track(ticket)
        ticket.add_done_callback(functools.partial(self._guarded, self._task_ended, each))

    def _hand_over(self, function: Callable[..., object], *args: Any) -> None:
        """Calls in the engine's own thread: submitting may take long, and a thread of the executor hold its locks."""
        if self._over:
            return
        try:
            ticket = self._in_context(self._threads.submit, self._on_loop, function, *args)
        except RuntimeError:
            if self._over:  # since then, and the engine was closed
                return
            raise
        ticket.add_done_callback(functools.partial(self._guarded, self._handed_over))

    def _handed_over(self, ticket: Future[None]) -> None:
        if ticket.cancelled() or ticket.exception() is not None:
            raise _lost(ticket, "the engine's event loop was closed, or cannot run on")

    async def _on_loop(self, function: Callable[..., object], *args: Any) -> None:
        self._guarded(function, *args)

    def _take(self, each: Module[..., Any], refusal: BaseException | None = None) -> None:
        """Runs a module in this thread, unless it has begun."""
        if self._claim(each):
            self._in_context(self._call, each, refusal)

    def _claim(self, each: Module[..., Any]) -> bool:
        with self._lock:
            return self._waiting.pop(each.name, None) is not None

    def _ticket_ended(self, each: Module[..., Any], ticket: Future[None]) -> None:
        """Fails a module whose ticket the executor dropped."""
        if each.name in self._waiting:
            self._hand_over(self._take, each, _lost(ticket, "the executor was shut down"))

    def _task_ended(self, each: Module[..., Any], ticket: Future[None]) -> None:
        """Fails a module whose task another one cancelled before it began, or whose event loop is gone."""
        if self._over:
            return
        if each.name in self._unfinished:
            error = _lost(ticket, "its task was cancelled, or its event loop closed, and not by Execution.cancel()")
            self._take(each, error)
            self._finish(each, error)
        elif not ticket.cancelled():
            ticket.result()  # raises what the engine's own code raised there

    def _help(self) -> None:
        """Does the modules itself: this thread is a module's, and there may be no other one free."""
        while True:
            with self._lock:
                while (each := self._first_plain()) is None and not self.future.done():
                    self._changed.wait(_HELP_INTERVAL)
            if each is None:
                return
            self._guarded(self._take, each)

    def _first_plain(self) -> Module[..., Any] | None:
        return next((each for each in self._waiting.values() if not each.is_async), None)

    def _begin(self, each: Module[..., Any], refusal: BaseException | None = None) -> _Begun | None:
        """Tells of a module's start and calls its function; ``None`` where that was its end."""
        began = perf_counter()
        try:
            if not self._tell(self._listener.on_module_start, each):
                return None
            if refusal is not None:
                raise refusal  # noqa: TRY301 - it ends like one that the body raises
            context = self._module_context(each)
            with self._activated(context):
                return _Begun(each.function(**self._arguments(each)), began, context)
        except BaseException as error:  # noqa: BLE001 - SystemExit fails a module, it does not stop a thread of ours
            self._finish(each, error)
            return None

    def _call(self, each: Module[..., Any], refusal: BaseException | None) -> None:
        """A plain module in this thread; what it returns is awaited on the event loop where it can be."""
        begun = self._begin(each, refusal)
        if begun is None:
            return
        if not _is_awaitable(begun.output):
            self._finish(each, None, begun.output, (perf_counter() - begun.at) * 1000.0)
            return
        try:
            self._run_on_loop(each, self._await_output, each, begun)
        except Exception as error:  # noqa: BLE001 - as in _launch
            self._finish(each, error)  # first: the loop may have it in spite of the error, and meets what is discarded
            _discard(begun.output)

    async def _await(self, each: Module[..., Any]) -> None:
        """An async module on the engine's event loop."""
        begun = self._guarded(self._begin, each) if self._claim(each) else None
        if begun is not None:
            await self._await_output(each, begun)

    async def _await_output(self, each: Module[..., Any], begun: _Begun) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            with self._lock:
                self._tasks.add(task)
                stopped = self._stopped
            if stopped:  # before this task could be cancelled
                _discard(begun.output)
                return
            with self._activated(begun.context):
                output = await _awaited(begun.output)
            duration_ms = (perf_counter() - begun.at) * 1000.0
        except BaseException as error:  # noqa: BLE001 - as in _begin
            self._finish(each, _explained(error, task))
        else:
            self._finish(each, None, output, duration_ms)
        finally:
            self._tasks.discard(task)

    def _send(self, each: Module[..., Any]) -> None:
        """A module in another process, to which only headers can follow it."""
        if not self._claim(each):
            return
        try:
            if not self._tell(self._listener.on_module_start, each):
                return
            headers: dict[str, str] = {}
            propagate.inject(headers, context=self._module_context(each))
            executor = self._threads.executor
            function = _picklable(each) if isinstance(executor, ProcessPoolExecutor) else each.function
            call = (function, each.is_async, self._arguments(each), headers, self._ids[each.name])
            future = executor.submit(_run_remotely, *call)
            self._threads.track(future)
            with self._lock:
                self._sent.add(future)
                stopped = self._stopped
            if stopped:
                future.cancel()
            future.add_done_callback(functools.partial(self._guarded, self._hand_over, self._receive, each))
        except BaseException as error:  # noqa: BLE001 - as in _begin
            self._finish(each, error)

    def _receive(self, each: Module[..., Any], future: Future[tuple[Any, float]]) -> None:
        with self._lock:
            self._sent.discard(future)
        try:
            error = future.exception()  # and not result(), for which an exception that is false is none
            output, duration_ms = (None, 0.0) if error is not None else future.result()
        except BaseException as raised:  # noqa: BLE001 - as in _begin
            self._finish(each, raised)
        else:
            self._finish(each, error, output, duration_ms)

    def _arguments(self, each: Module[..., Any]) -> dict[str, Any]:
        with self._lock:
            return {name: self._values[source] for name, source in each.sources.items() if source in self._values}

    def _module_context(self, each: Module[..., Any]) -> Context:
        context = otel_context.get_current()
        if isinstance(self._listener, ModuleContextProvider):
            return self._listener.module_context(self.execution_id, self._ids[each.name], context)
        return context

    @contextmanager
    def _activated(self, context: Context) -> Iterator[None]:
        """Makes current what a module's body is to find."""
        inside = _inside.set(self._threads.inside())
        token = otel_context.attach(context)
        try:
            yield
        finally:
            otel_context.detach(token)
            _inside.reset(inside)

    def _tell(self, callback: Callable[..., None], each: Module[..., Any], *args: Any) -> bool:
        """Makes a module's callback.

        Returns:
            Whether the execution goes on. Once it is stopped the callback is not made.
        """
        with self._lock:
            if self._stopped:
                return False
            self._telling += 1
        try:
            callback(self.execution_id, self._ids[each.name], each.name, *args)
        finally:
            with self._lock:
                self._telling -= 1
                stopped, last = self._stopped, not self._telling
            if stopped and last:
                self._end()
        return not stopped

    def _finish(
        self, each: Module[..., Any], error: BaseException | None, output: Any = None, duration_ms: float = 0.0
    ) -> None:
        """Tells of a module's end, once, and lets what waits for it go on."""
        with self._lock:
            if each.name not in self._unfinished:
                return
            self._unfinished.remove(each.name)
        self._guarded(self._tell_end, each, error, output, duration_ms)

    def _tell_end(self, each: Module[..., Any], error: BaseException | None, output: Any, duration_ms: float) -> None:
        try:
            if error is None:
                self._tell(self._listener.on_module_complete, each, duration_ms)
            else:
                self._tell(self._listener.on_module_failed, each, error)
        except BaseException as raised:  # noqa: BLE001 - KeyboardInterrupt and its like: for whoever waits, as the failure
            error = raised
        with self._lock:
            self._running -= 1
            if error is None:
                self._values[each.name] = output
                self._order.done(each.name)
            else:
                self._errors[each.name] = error
        self._advance()

    def _end(self) -> None:
        """Makes the execution's last callback and wakes who waits: once, when no module's will follow."""
        with self._lock:
            if self._ending:
                return
            self._ending = True
        outputs: Mapping[str, Any] = {}
        error: BaseException | None = None
        duration_ms = 0.0
        try:
            duration_ms = (perf_counter() - self._began) * 1000.0
            outputs, error = self._outcome()
        except BaseException as raised:  # noqa: BLE001 - the end is told all the same
            error = raised
        try:
            if self._cancelled:
                self._listener.on_execution_cancelled(self.execution_id, self.dag.name)
            else:
                self._listener.on_execution_complete(self.execution_id, self.dag.name, error is None, duration_ms)
        except BaseException as raised:  # noqa: BLE001 - as in _tell_end
            error = raised
        try:
            if error is None:
                self.future.set_result(outputs)
            else:
                self.future.set_exception(error)
        except BaseException as raised:
            if self.future.done():
                raise
            self.future.set_exception(raised)
        with self._lock:
            self._changed.notify_all()

    def _outcome(self) -> tuple[Mapping[str, Any], BaseException | None]:
        with self._lock:
            outputs = MappingProxyType({name: self._values[name] for name in self.dag.modules if name in self._values})
            errors = MappingProxyType(dict(self._errors))
        if self._cancelled:
            return outputs, ExecutionCancelledError(self.execution_id, self.dag.name, outputs)
        if errors or self._failure is not None:
            return outputs, ExecutionFailedError(self.execution_id, self.dag.name, errors, outputs, self._failure)
        return outputs, None


class _Begun(NamedTuple):
    """A module whose function has been called."""

    output: Any
    at: float
    context: Context


class Constellation:
    """Runs DAGs and tells a listener.

    Independent modules run in parallel; a module that fails stops those that wait for
    it, directly or not, and no others. The caller's context variables reach every module,
    and what a module sets reaches nobody else.

    An execution always ends, and its last callback is made: a module that cannot be started,
    or whose task another one cancels, fails with the reason; whatever else fails in the engine's
    own code ends the execution with :attr:`ExecutionFailedError.failure
    <constellation_otel.ExecutionFailedError.failure>`.

    What a plain module returns and can be awaited (a coroutine, a future, an object with
    ``__await__``) is awaited on the engine's event loop, and what that comes to is the module's
    output. A generator is an output like any other: the engine iterates none.

    Where modules run:

    * Plain modules in the executor's threads. Without an executor the engine has threads of
      its own, as many as there are modules at work (1000 at most), so that modules may wait for
      each other's executions as they like. Of an executor with fewer threads, a module that waits
      with :meth:`run` for another execution on the same executor, whichever engine's, does that
      one's modules in its own thread; a module that waits for one in another way keeps a thread
      from it.
    * Async modules on one event loop in a thread of the engine, whoever calls.
    * All modules elsewhere, where the executor is anything but a
      :class:`~concurrent.futures.ThreadPoolExecutor`: a process pool, Dask's
      ``client.get_executor()``. The listener is not there, so all callbacks are made in the engine's
      thread, a module's start when it is submitted; the trace context and baggage follow it as
      headers, context variables do not. Functions, arguments and outputs have to be such as the
      executor can send.

    An engine that is forgotten without :meth:`close` gives its threads and descriptors back when
    it is collected and what it had begun has ended.

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
    """An engine's threads in one process, started when they are needed, and what is at work in them.

    They end with it when it is collected: the executor's as Python's do, the event loop's by ``_finalizer``.
    """

    def __init__(self, executor: Executor | None) -> None:
        self.executor = ThreadPoolExecutor(_MAX_THREADS, "constellation") if executor is None else executor
        self.is_local = isinstance(self.executor, ThreadPoolExecutor)
        self._owned = executor is None
        self._lock = threading.Lock()
        self._pending: set[Future[Any]] = set()
        self._closed = False
        self._ended = False
        self._loop: _EventLoop | None = None
        self._ref = weakref.ref(self)

    def submit_plain(self, function: Callable[..., None], *args: Any) -> Future[None]:
        """Runs a function in a thread of the executor."""
        if type(self.executor) is not ThreadPoolExecutor:
            return self.executor.submit(function, *args)
        with _submitting():
            return self.executor.submit(function, *args)

    def submit(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> Future[None]:
        """Runs a coroutine on the event loop.

        Raises:
            RuntimeError: The engine was closed and all of it has ended, or there is no thread or descriptor for a loop.
        """
        with self._lock:  # so that it is not closed between
            if self._ended:
                message = "the engine has ended"
                raise RuntimeError(message)
            if self._loop is None or not self._loop.is_running:
                loop = _EventLoop()
                try:
                    # it takes no lock: a collection may come when this very thread holds one, the executor's or ours
                    finalizer = weakref.finalize(self, loop.stop)
                    finalizer.atexit = False
                    loop.start()
                except BaseException:
                    loop.stop()
                    raise
                self._loop, self._finalizer = loop, finalizer
            return self._loop.submit(function, *args)

    def inside(self) -> _Inside:
        """What ``_inside`` is in a module of this engine."""
        inside = _inside.get()
        return inside if self._ref in inside else (*inside, self._ref)

    def are_waited_for(self) -> bool:
        """Whether this is in a module, perhaps of another engine's, for which a thread of the executor waits."""
        engines = [engine for each in _inside.get() if (engine := each()) is not None]
        return any(engine.executor is self.executor for engine in engines)

    def check_may_wait(self) -> None:
        if self._loop is not None and threading.current_thread() is self._loop.thread:
            message = "waiting here would stop the event loop of this Constellation for good; await run_async() instead"
            raise ConstellationOtelError(message)

    def admit(self, execution: Future[Any]) -> None:
        execution.add_done_callback(self._pending.discard)
        with self._lock:
            if self._closed and self._ref not in _inside.get():
                message = "this Constellation is closed and starts nothing more; make another one"
                raise ConstellationOtelError(message)
            self._pending.add(execution)

    def track(self, module: Future[Any]) -> None:
        self._pending.add(module)
        module.add_done_callback(self._pending.discard)

    def close(self, timeout: float) -> bool:
        deadline = deadline_of(timeout)
        with self._lock:
            self._closed = True
        while pending := [future for future in tuple(self._pending) if not future.done()]:
            left = seconds_left(deadline)
            # in slices, for a future that is cancelled meanwhile wakes nobody before its executor looks at it
            wait(pending, min(left, _CLOSE_SLICE))
            if not left and not all(future.done() for future in pending):
                log(
                    _LOG,
                    logging.WARNING,
                    "%d executions or modules have not ended within %g s; they run on",
                    len(pending),
                    timeout,
                )
                return False
        if self._owned:
            self.executor.shutdown()
        with self._lock:
            self._ended = True
            loop = self._loop
        if loop is None:
            return True
        self._finalizer.detach()
        loop.stop()
        loop.thread.join(seconds_left(deadline))
        return not loop.thread.is_alive()


def _submitting() -> AbstractContextManager[object]:
    """A lock for submitting to thread pools, which has them start their threads.

    They hold a lock of their own meanwhile, one of all pools. Where gevent has patched the process
    since that was made, whoever waits for it stops everybody else, and starting a thread has others
    run: so nobody comes to wait for it. This one is of the class that ``threading`` has now.
    """
    key = (os.getpid(), threading.Lock)
    return _SUBMITTING.get(key) or _SUBMITTING.setdefault(key, threading.Lock())


_SUBMITTING: Final[dict[tuple[int, object], AbstractContextManager[object]]] = {}


class _EventLoop:
    """An event loop in a daemon thread of its own, which runs until it is stopped, whatever runs on it.

    Where it cannot run on, since it was closed or lost its descriptors, what it was
    given and has not ended is cancelled.

    Attributes:
        thread: The thread.
        is_running: Whether it takes anything.
    """

    def __init__(self) -> None:
        self.is_running = False
        self._lock = threading.Lock()
        self._left: set[Future[None]] = set()
        self._stopping = False
        self.thread = threading.Thread(target=self._run, name="constellation-loop", daemon=True)
        self._loop = asyncio.new_event_loop()

    def start(self) -> None:
        self.is_running = True
        self.thread.start()

    def submit(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> Future[None]:
        """Runs a coroutine.

        Raises:
            RuntimeError: The loop has ended.
        """
        with self._lock:
            if not self.is_running:
                message = "the event loop has ended"
                raise RuntimeError(message)
            future = cast("Future[None]", asyncio.run_coroutine_threadsafe(_Later(function, args), self._loop))
            self._left.add(future)
        future.add_done_callback(self._left.discard)
        return future

    def stop(self) -> None:
        """Has it end; does not wait, and takes no lock."""
        self._stopping = True
        self.is_running = False
        if self.thread.ident is None:
            self._loop.close()
        else:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        try:
            self._run_on()
        except BaseException as error:  # noqa: BLE001 - it was closed, its descriptors are gone, or others run it
            _LIMITED.write(_LOG, logging.ERROR, "loop", "the event loop cannot run on", error=error)
            self._try(self._loop.close)  # before another one takes the number of a descriptor that this one has lost
        with self._lock:
            self.is_running = False
        for future in tuple(self._left):
            future.cancel()
        if not self._loop.is_closed():
            self._try(self._wind_up)
            self._try(self._loop.close)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - nothing of the loop is used any more
            _LIMITED.write(_LOG, logging.WARNING, "close", "the event loop did not close", error=error)

    def _run_on(self) -> None:
        while not self._stopping:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt):  # of a task that a module has made, and that task has it
                _LIMITED.write(_LOG, logging.WARNING, "exit", "an exit in a task that a module left ends nothing here")

    def _wind_up(self) -> None:
        """Cancels the tasks that modules made and left behind, and waits for them."""
        winding_up = self._loop.create_task(_wind_up(self._loop))
        while not (winding_up.done() or self._loop.is_closed()):
            # an exit is of a task, as in _run_on; a RuntimeError is asyncio's own word for a loop that was stopped
            with suppress(SystemExit, KeyboardInterrupt, RuntimeError):
                self._loop.run_until_complete(winding_up)


class _Later(Coroutine[Any, Any, T]):
    """A coroutine that is made where it first runs: who gave it away has nothing to close should that have failed."""

    def __init__(self, function: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...]) -> None:
        self._make = functools.partial(function, *args)

    @functools.cached_property
    def _made(self) -> Coroutine[Any, Any, T]:
        return self._make()

    def send(self, value: Any) -> Any:
        return self._made.send(value)

    def throw(self, *error: Any) -> Any:
        return self._made.throw(*error)

    def close(self) -> None:
        self._made.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._made.__await__()


_Inside: TypeAlias = "tuple[weakref.ref[_Threads], ...]"

_inside: Final = contextvars.ContextVar[_Inside]("constellation_inside", default=())
"""The engines in whose modules this is, the outermost first."""


async def _wind_up(loop: asyncio.AbstractEventLoop) -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


def _lost(ticket: Future[None], reason: str) -> BaseException:
    """Why a module's ticket ended before the module."""
    error = None if ticket.cancelled() else ticket.exception()
    return CancelledError(reason) if error is None else error


def _explained(error: BaseException, task: asyncio.Task[None]) -> BaseException:
    """A module's error; where its task was cancelled, one that says so."""
    if type(error) is not asyncio.CancelledError or error.args or not task.cancelling():
        return error
    explained = asyncio.CancelledError("its task was cancelled, and not by Execution.cancel()")
    explained.__cause__ = error
    return explained


def _is_awaitable(output: object) -> bool:
    """Whether a plain function has returned what has yet to run; asks the type, for an object may answer anything."""
    return hasattr(type(output), "__await__") or (type(output) is GeneratorType and inspect.isawaitable(output))


async def _awaited(output: Any) -> Any:
    output = await output
    while type(output) is CoroutineType:  # an async function that returns what another one has yet to do
        output = await output
    return output


def _discard(output: object) -> None:
    """Spares a coroutine that is not awaited the warning."""
    if type(output) is CoroutineType and inspect.getcoroutinestate(output) == inspect.CORO_CREATED:
        output.close()


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
        output = function(**arguments)
        if is_async or _is_awaitable(output):
            output, error = asyncio.run(_outcome_of(output))
            if error is not None:
                raise error  # noqa: TRY301 - it ends like one that the function raises
        return output, (perf_counter() - began) * 1000.0
    except BaseException as raised:  # noqa: BLE001 - raised below, where nothing is its context
        failure = _returnable(raised)
    finally:
        otel_context.detach(token)
    raise failure


async def _outcome_of(output: Any) -> tuple[Any, BaseException | None]:
    """What an awaitable comes to; no error gets into a task, which reads its attributes and hangs where that raises."""
    try:
        return await _awaited(output), None
    except BaseException as error:  # noqa: BLE001 - raised by who asked
        return None, error


def _returnable(error: BaseException) -> BaseException:
    """The exception, or what can be said of it where it could not be sent back.

    Worst is one that can be sent and not be read, of a class whose ``__init__`` does not
    take its ``args``: that breaks a process pool for good.
    """
    try:
        pickled = pickle.dumps(error)
    except (AttributeError, pickle.PicklingError):
        return error  # its class is not found by its name; Dask sends such a class along
    except BaseException:  # noqa: BLE001 - what it holds cannot be pickled
        return _in_words(error)
    try:
        is_true = bool(pickle.loads(pickled))  # noqa: S301 - just made here
    except BaseException:  # noqa: BLE001 - whatever its class does
        is_true = False
    return error if is_true else _in_words(error)  # a process pool takes an exception that is false for none


def _in_words(error: BaseException) -> RemoteError:
    cls = type(error)
    return RemoteError(message_of(error), f"{cls.__module__}.{cls.__qualname__}")


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
