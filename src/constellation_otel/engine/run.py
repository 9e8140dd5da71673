"""One execution: a state machine under one lock, which decides what runs when, and makes the callbacks."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from graphlib import TopologicalSorter
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID, uuid4

from constellation_otel._support.log import RateLimitedLog
from constellation_otel.engine.call import Call
from constellation_otel.errors import ExecutionCancelledError, ExecutionFailedError
from constellation_otel.traces import module_id_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from constellation_otel.engine.dag import Dag, Module
    from constellation_otel.engine.threads import Threads
    from constellation_otel.listener import ExecutionListener

__all__ = ["Run"]

T = TypeVar("T")

_HELP_INTERVAL: Final = 1.0
_LOGGER: Final = logging.getLogger(__name__)
_LIMITED: Final = RateLimitedLog()


class Run:
    """The state of one execution; :class:`Call` knows where its modules run.

    ``_lock`` guards all of it, and is not held while a callback, a module's body or an executor runs.
    A module is counted in ``_running`` from when it is ready until its last attempt's callbacks have
    returned; the thread that brings that to zero, with nothing ready, ends the execution. A callback that is being
    made is counted in ``_telling``; once the execution is stopped no more begin, and the thread that
    brings that to zero ends the execution.

    Two things stop an execution: its cancellation, and a failure of the engine's own code. So whatever
    a thread of the executor or of the event loop calls is :meth:`guarded`.
    """

    def __init__(self, dag: Dag, inputs: Mapping[str, Any], listener: ExecutionListener, threads: Threads) -> None:
        self.dag = dag
        self.execution_id = uuid4()
        self.module_ids = {name: module_id_of(self.execution_id, name) for name in dag.modules}
        self.future: Future[Mapping[str, Any]] = Future()
        self.future.set_running_or_notify_cancel()  # so that nothing that waits on it can cancel it
        self.listener = listener
        self.threads = threads
        self.context = contextvars.copy_context()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.sent: set[Future[Any]] = set()
        self._values = dict(inputs)  # and outputs: no input has a module's name
        self._errors: dict[str, BaseException] = {}
        self._failures: list[BaseException] = []  # of the engine's own code
        self._order = TopologicalSorter(dag.waits_for)
        self._order.prepare()
        self._lock = threading.Lock()  # released in C, so that no interrupt comes between: a Condition's own is not
        self._changed = threading.Condition(self._lock)
        self.waiting: dict[UUID, Call] = {}  # launched, and not begun; taken by the thread that begins it
        self.unfinished: set[UUID] = set()  # launched, and not ended
        self._launching: dict[int, deque[Call]] = {}  # by thread
        self._running = 0
        self._telling = 0
        self._stopped = False
        self._cancelled = False
        self._ending = False
        self.is_over = False

    def start(self) -> None:
        self._began = perf_counter()
        try:
            self.threads.admit(self.future)
        except BaseException as error:
            self.future.set_exception(error)
            raise
        try:
            self.listener.on_execution_start(self.execution_id, self.dag.name)
            self._advance()
        except Exception as error:
            self._break(error)
            raise
        except BaseException:  # KeyboardInterrupt and its like, of the listener too
            self.cancel()
            raise

    def result(self, timeout: float | None) -> Mapping[str, Any]:
        if not self.future.done():
            self.threads.check_may_wait()
        if timeout is None and self.threads.are_waited_for():
            self._help()
        return self.future.result(timeout)

    def _help(self) -> None:
        """Runs the execution's modules in this thread, which may be the executor's only one."""
        while True:
            with self._lock:
                while not (plain := [each for each in self.waiting.values() if not each.module.is_async]):
                    if self.future.done():
                        return
                    self._changed.wait(_HELP_INTERVAL)
            self.guarded(plain[0].take)

    def cancel(self) -> bool:
        with self._lock:
            if self.is_over:
                return False
            self.is_over = self._cancelled = True
        try:
            self._stop()
        except BaseException as error:
            self._break(error)
            raise
        return True

    def guarded(self, function: Callable[..., T], *args: Any) -> T | None:
        """Calls in a thread that cannot handle an exception: it ends the execution instead."""
        try:
            return function(*args)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the execution has to end
            self._break(error)
            return None

    def _break(self, failure: BaseException) -> None:
        """Ends the execution where the engine's own code has failed."""
        with self._lock:
            self.is_over = True
            self._failures.append(failure)
        try:
            self._stop()
        finally:
            message = "execution %s of %r ends: the engine failed"
            _LIMITED.write(_LOGGER, logging.ERROR, "broken", message, self.execution_id, self.dag.name, error=failure)

    def _stop(self) -> None:
        """Lets no module begin and no callback of one be made any more."""
        with self._lock:
            self._stopped = True
            self.waiting.clear()
            tasks, sent, last = tuple(self.tasks), tuple(self.sent), not self._telling
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
            if self.is_over:
                ready = []
                over = self._stopped and not self._telling
            else:
                ready = [Call(self, self.dag.modules[name]) for name in self._order.get_ready()]
                self._running += len(ready)
                over = self.is_over = not self._running
        if over:
            self._end()
        self._launch(ready)

    def launch(self, call: Call) -> None:
        """Launches another attempt of a module, unless the execution is over."""
        if not self.is_over:
            self._launch([call])

    def _launch(self, ready: list[Call]) -> None:
        thread = threading.get_ident()
        launching = self._launching.get(thread)
        if launching is not None:  # the executor runs a module inside submit(), which is on this thread's stack
            launching.extend(ready)
            return
        launching = self._launching[thread] = deque(ready)
        try:
            while launching:
                call = launching.popleft()
                with self._lock:
                    self.unfinished.add(call.module_id)
                    self.waiting[call.module_id] = call
                    self._changed.notify_all()
                call.launch()
        finally:
            del self._launching[thread]

    def claim(self, call: Call) -> bool:
        """Whether the caller is the one to begin the module's attempt: true once."""
        with self._lock:
            return self.waiting.pop(call.module_id, None) is not None

    def keep(self, item: T, kept: set[T]) -> bool:
        """Keeps a task or a future in ``tasks`` or ``sent``, to be cancelled when the execution is stopped.

        Returns:
            Whether the execution goes on. If not, it is too late: the caller has to do without it.
        """
        with self._lock:
            kept.add(item)
            return not self._stopped

    def arguments(self, module: Module[..., Any]) -> dict[str, Any]:
        with self._lock:
            return {name: self._values[source] for name, source in module.sources.items() if source in self._values}

    def tell(self, callback: Callable[..., None], call: Call, *args: Any) -> bool:
        """Makes a module's callback, unless the execution is stopped.

        Returns:
            Whether the execution goes on.
        """
        with self._lock:
            if self._stopped:
                return False
            self._telling += 1
        try:
            callback(self.execution_id, call.module_id, call.module.name, *args)
        finally:
            with self._lock:
                self._telling -= 1
                stopped, last = self._stopped, not self._telling
            if stopped and last:
                self._end()
        return not stopped

    def finish(self, call: Call, error: BaseException | None, output: Any = None, duration_ms: float = 0.0) -> None:
        """Reports the end of a module's attempt, once; another attempt follows, or :meth:`settle`."""
        with self._lock:
            if call.module_id not in self.unfinished:
                return
            self.unfinished.remove(call.module_id)
        self.guarded(self._finish, call, error, output, duration_ms)

    def _finish(self, call: Call, error: BaseException | None, output: Any, duration_ms: float) -> None:
        try:
            if error is None:
                self.tell(self.listener.on_module_complete, call, duration_ms)
            else:
                self.tell(self.listener.on_module_failed, call, error)
        except BaseException as raised:  # noqa: BLE001 - KeyboardInterrupt and its like fail the module
            error = raised
        if error is None or not call.try_again(error):
            self.settle(call, error, output)

    def settle(self, call: Call, error: BaseException | None, output: Any = None) -> None:
        """Notes what a module has come to, and launches what waits for it."""
        with self._lock:
            self._running -= 1
            if error is None:
                self.module_ids[call.module.name] = call.module_id
                self._values[call.module.name] = output
                self._order.done(call.module.name)
            else:
                self._errors[call.module.name] = error
        self._advance()

    def _end(self) -> None:
        """Makes the execution's last callback and sets its result: once, when no callback of a module will follow."""
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
        except BaseException as raised:  # noqa: BLE001 - the last callback is made all the same
            error = raised
        try:
            if self._cancelled:
                self.listener.on_execution_cancelled(self.execution_id, self.dag.name)
            else:
                self.listener.on_execution_complete(self.execution_id, self.dag.name, error is None, duration_ms)
        except BaseException as raised:  # noqa: BLE001 - KeyboardInterrupt and its like: result() raises it
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
        if errors or self._failures:
            failure = self._failures[0] if self._failures else None
            return outputs, ExecutionFailedError(self.execution_id, self.dag.name, errors, outputs, failure)
        return outputs, None
