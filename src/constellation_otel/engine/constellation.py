"""The embedded engine: runs a Dag's modules and notifies a listener of what happens."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Self

from constellation_otel._support.deadline import bounded
from constellation_otel.automatic import further_listener
from constellation_otel.engine.run import Run
from constellation_otel.engine.threads import Threads
from constellation_otel.listener import ExecutionListener

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

    from constellation_otel.automatic import Further
    from constellation_otel.engine.dag import Dag

__all__ = ["Constellation", "ConstellationBuilder", "Execution"]


class Execution:
    """One execution, as :meth:`Constellation.start` returns it.

    Attributes:
        execution_id: A UUIDv4; the listener gets the same.
        dag_name: The DAG's name.
    """

    def __init__(self, run: Run) -> None:
        self._run: Run | None = run
        self._future = run.future
        self.execution_id = run.execution_id
        self.dag_name = run.dag.name
        run.future.add_done_callback(self._forget)

    def result(self, timeout: float | None = None) -> Mapping[str, Any]:
        """Waits for the execution's end; the listener has been notified of it when this returns.

        Args:
            timeout: Seconds; ``None`` waits for as long as it takes.

        Returns:
            Each module's output, by module name, in the order of the DAG's modules.

        Raises:
            ExecutionFailedError: A module failed; carries every module's error or output.
            ExecutionCancelledError: It was cancelled.
            TimeoutError: It has not ended within the timeout; it runs on.
            ConstellationOtelError: Called on the engine's own event loop, which would
                stop what it waits for: await :meth:`Constellation.run_async` instead.
        """
        run, timeout = self._run, None if timeout is None else bounded(timeout)
        return self._future.result(timeout) if run is None else run.result(timeout)

    def cancel(self) -> bool:
        """Cancels the execution; does not wait.

        No module starts any more and no callback of a module fires any more. Async modules
        are cancelled as asyncio does it; plain ones that run, run to their end, and their
        outputs are dropped. The listener's ``on_execution_cancelled`` fires before this
        returns, or, if callbacks are being made meanwhile, right after them, in the last
        one's thread. May be called anywhere, in a callback and in a module's body too.

        Returns:
            Whether this cancelled it: ``False`` if it has ended, or was cancelled before.
        """
        run = self._run
        return run is not None and run.cancel()

    def done(self) -> bool:
        """Whether it has ended, and the listener has been notified."""
        return self._future.done()

    def _forget(self, _: object) -> None:
        """Drops what only a running execution needs: inputs, context, and the engine's threads."""
        self._run = None


class Constellation:
    """Runs DAGs and notifies a listener.

    Independent modules run in parallel; a module that fails stops those that wait for it,
    directly or not, and no others. Every module sees the caller's context variables; what it
    sets itself, no other one sees.

    An execution always ends, and its last callback is made: a module that cannot be started,
    or whose task another one cancels, fails with the reason; any other failure in the engine's
    own code ends the execution with :attr:`ExecutionFailedError.failure
    <constellation_otel.ExecutionFailedError.failure>`.

    If a plain module returns something that can be awaited (a coroutine, a future, an object
    with ``__await__``), the engine awaits it on its event loop, and the result is the module's
    output. A generator is an output like any other: the engine iterates none.

    Where modules run:

    * Plain modules in the executor's threads. Without an executor the engine has its own
      threads, as many as there are running modules (1000 at most), so that modules may wait for
      each other's executions as they like. With an executor of fewer threads, a module that waits
      with :meth:`run` for another execution on the same executor, of any engine, runs that one's
      modules in its own thread; a module that waits in another way occupies a thread.
    * Async modules on one event loop in a thread of the engine.
    * All modules elsewhere, if the executor is anything but a
      :class:`~concurrent.futures.ThreadPoolExecutor`: a process pool, Dask's
      ``client.get_executor()``. The listener is not there, so all callbacks are made in the engine's
      thread, a module's start when it is submitted; the trace context and baggage go along as
      headers, context variables do not. The executor has to be able to send functions, arguments
      and outputs.

    An engine that is dropped without :meth:`close` releases its threads and descriptors when it is
    collected and what it had begun has ended.

    Args:
        listener: Is notified; an exception in its callbacks is logged and goes no further. Under
            ``opentelemetry-instrument`` an engine whose listener makes no traces notifies one that does, too.
        executor: Where modules run; never shut down by the engine.
    """

    def __init__(self, listener: ExecutionListener = ExecutionListener.noop, executor: Executor | None = None) -> None:
        self._listener = ExecutionListener.composite(listener)
        # with what it was asked for; the same one for all executions of an engine, until that changes
        self._notified: tuple[Further | None, ExecutionListener] = (None, self._listener)
        self._executor = executor
        self._by_process: dict[int, Threads] = {}

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
            ExecutionFailedError: A module failed; carries every module's error or output.
            ExecutionCancelledError: It was cancelled.
            ConstellationOtelError: The engine is closed, or this is its event loop: await :meth:`run_async` there.
        """
        self._threads().check_may_wait()
        run = self._start(dag, inputs)
        try:
            return run.result(None)
        except BaseException:
            run.cancel()  # no other code can; does nothing if the execution has ended
            raise

    async def run_async(self, dag: Dag, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Like :meth:`run`, without blocking the caller's event loop.

        Cancelling the task that awaits this cancels the execution.
        """
        run = self._start(dag, inputs)
        try:
            return await asyncio.wrap_future(run.future)
        except BaseException:
            run.cancel()
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

    def close(self, timeout: float = 30.0) -> bool:
        """Starts nothing more, waits for what runs, and ends the engine's own threads.

        Cancels nothing; but where a module waits for its next attempt, that follows at once.
        Modules that run may still run DAGs of this engine. A module or a callback that calls this
        waits for itself.

        Args:
            timeout: Seconds; this returns within them.

        Returns:
            Whether everything has ended. If not, that is logged, everything runs on, and
            this may be called again.
        """
        return self._threads().close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, dag: Dag, inputs: Mapping[str, Any]) -> Run:
        dag.check_inputs(inputs)
        run = Run(dag, inputs, self._listeners(), self._threads())
        run.start()
        return run

    def _listeners(self) -> ExecutionListener:
        """The engine's own listener, with what every engine of this process notifies besides."""
        further = further_listener()
        asked, listener = self._notified
        if asked is not further:
            more = ExecutionListener.noop if further is None else further(self._listener)
            listener = ExecutionListener.composite(more, self._listener)
            self._notified = (further, listener)
        return listener

    def _threads(self) -> Threads:
        """This process's threads: a forked child has none of its parent's."""
        pid = os.getpid()
        return self._by_process.get(pid) or self._by_process.setdefault(pid, Threads(self._executor))


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
