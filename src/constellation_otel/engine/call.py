"""One attempt of a module of one execution: where its function is called, and how its output gets to the run."""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import CancelledError, ProcessPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar, cast

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace

from constellation_otel.bodies import name_module
from constellation_otel.engine.attempts import Retries, is_worth_another
from constellation_otel.engine.outputs import awaited, discard, is_awaitable
from constellation_otel.engine.remote import failure_in, picklable, run_remotely
from constellation_otel.listener import ModuleContextProvider, ModuleDetailsTaker
from constellation_otel.traces import attempt_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future
    from uuid import UUID

    from opentelemetry.context import Context

    from constellation_otel.engine.dag import Module
    from constellation_otel.engine.run import Run

__all__ = ["Call"]

T = TypeVar("T")


class Call:
    """An attempt of a module, from when it is ready until it has ended, and the pause before the next one.

    A plain module is called in a thread of the executor, an async one on the event loop; if the
    executor is not a thread pool, any module is called elsewhere, and its callbacks are made on the
    event loop. Whatever fails on the way, :meth:`Run.finish` ends it.

    Args:
        run: The execution.
        module: The module.
        before: The attempt before this one, if there is one.

    Attributes:
        module: The module.
        attempt: Which attempt this is, from 1.
        module_id: Its id in this execution.
        retries: The pauses before further attempts, where one has failed.
    """

    def __init__(self, run: Run, module: Module[..., Any], before: Call | None = None) -> None:
        self.module = module
        self.attempt: int = 1 if before is None else before.attempt + 1
        self.retries: Retries | None = None if before is None else before.retries
        self._first_id = run.module_ids[module.name]
        self.module_id = attempt_id_of(self._first_id, self.attempt)
        self._run = run
        self._threads = run.threads
        self._has_begun = False
        # the span that its body records on elsewhere, where it does
        self._body: Any = None

    def launch(self) -> None:
        """Starts the module where it belongs; if that is refused, the module fails."""
        try:
            if not self._threads.is_local:
                self._hand_over(self._send)
            elif self.module.is_async:
                self._in_context(self._run_on_loop, self._await)
            else:
                ticket = self._threads.submit(self._run.guarded, self.take)
                ticket.add_done_callback(functools.partial(self._run.guarded, self._ticket_ended))
        except Exception as error:  # noqa: BLE001 - shut down or broken, no thread, no descriptor: the module fails with it
            self.take(error)

    def take(self, refusal: BaseException | None = None) -> None:
        """Runs the module in this thread, unless it has begun; fails it with the refusal if there is one."""
        if self._run.claim(self):
            self._in_context(self._call, refusal)

    def _in_context(self, function: Callable[..., T], *args: Any) -> T:
        """Calls in a copy of the caller's context: no module sees what another sets."""
        return self._run.context.copy().run(function, *args)

    def _run_on_loop(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        ticket = self._threads.track(self._threads.submit_async(function, *args))
        ticket.add_done_callback(functools.partial(self._run.guarded, self._task_ended))

    def _hand_over(self, function: Callable[..., object], *args: Any) -> None:
        """Calls in the engine's thread: submitting may take long, and the executor's thread may hold its locks."""
        if self._run.is_over:
            return
        try:
            self._in_context(self._run_on_loop, self._on_loop, function, *args)
        except RuntimeError:
            if not self._run.is_over:  # else it was cancelled meanwhile, and the engine closed
                raise

    async def _on_loop(self, function: Callable[..., object], *args: Any) -> None:
        self._run.guarded(function, *args)

    def _ticket_ended(self, ticket: Future[None]) -> None:
        """Fails the module if the executor dropped its ticket."""
        if self.module_id in self._run.waiting:
            self._hand_over(self.take, _lost(ticket, "the executor was shut down"))

    def _task_ended(self, ticket: Future[None]) -> None:
        """Fails the module if its task was cancelled before it began, or its event loop is gone."""
        if self._run.is_over or not (ticket.cancelled() or ticket.exception() is not None):
            return
        if self.module_id in self._run.unfinished:
            error = _lost(ticket, "its task was cancelled, or its event loop closed, and not by Execution.cancel()")
            self.take(error)
            self._run.finish(self, error)
        elif not ticket.cancelled():
            ticket.result()  # raises what the engine's own code raised there

    def _begin(self, refusal: BaseException | None = None) -> tuple[Any, float, Context] | None:
        """Reports the module's start and calls its function.

        Returns:
            What the function returned, when it was called, and the module's context; ``None``
            where the module has ended.
        """
        try:
            if not self._run.tell(self._tell_start, self):
                return None
            # behind the callback, which says when the module starts: it ends before its execution does
            began = perf_counter()
            if refusal is not None:
                raise refusal  # noqa: TRY301 - it ends like one that the body raises
            context = self._context()
            self._has_begun = True
            with self._threads.entered(context):
                return self.module.function(**self._run.arguments(self.module)), began, context
        except BaseException as error:  # noqa: BLE001 - SystemExit fails a module, it does not stop a thread of ours
            self._run.finish(self, error)
            return None

    def _call(self, refusal: BaseException | None) -> None:
        """Runs a plain module in this thread; what it returns is awaited on the event loop, if it can be."""
        begun = self._begin(refusal)
        if begun is None:
            return
        returned, began, _ = begun
        if not is_awaitable(returned):
            self._run.finish(self, None, returned, (perf_counter() - began) * 1000.0)
            return
        try:
            self._run_on_loop(self._await_output, *begun)
        except Exception as error:  # noqa: BLE001 - no thread, no descriptor: the module fails with it
            # finish first: the loop may have taken the task in spite of the error, and finds its coroutine closed
            self._run.finish(self, error)
            discard(returned)

    async def _await(self) -> None:
        """Runs an async module, on the event loop."""
        begun = self._run.guarded(self._begin) if self._run.claim(self) else None
        if begun is not None:
            await self._await_output(*begun)

    async def _await_output(self, returned: Any, began: float, context: Context) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            if not self._run.keep(task, self._run.tasks):
                discard(returned)
                return
            with self._threads.entered(context):
                output = await awaited(returned)
            duration_ms = (perf_counter() - began) * 1000.0
        except BaseException as error:  # noqa: BLE001 - SystemExit fails a module, it does not stop the loop
            self._run.finish(self, _explained(error, task))
        else:
            self._run.finish(self, None, output, duration_ms)
        finally:
            self._run.tasks.discard(task)

    def _send(self) -> None:
        """Submits a module that runs in another process; its trace context goes along as headers."""
        if not self._run.claim(self):
            return
        try:
            if not self._run.tell(self._tell_start, self):
                return
            headers: dict[str, str] = {}
            context = self._context()
            body: Any = trace.get_current_span(context)
            if hasattr(type(body), "is_elsewhere"):
                body.is_elsewhere = body.has_something = True
                self._body = body
            propagate.inject(headers, context=context)
            executor = self._threads.executor
            module = self.module
            function = picklable(module) if isinstance(executor, ProcessPoolExecutor) else module.function
            records = self._body is not None
            ids = (self._run.execution_id, self.module_id)
            call = (function, module.is_async, self._run.arguments(module), headers, ids, module.name, records)
            future = self._threads.track(executor.submit(run_remotely, *call))
            self._has_begun = True
            if not self._run.keep(future, self._run.sent):
                future.cancel()
            future.add_done_callback(functools.partial(self._run.guarded, self._hand_over, self._receive))
        except BaseException as error:  # noqa: BLE001 - whatever the executor raises: the module fails with it
            self._run.finish(self, error)

    def _receive(self, future: Future[tuple[Any, float, Any]]) -> None:
        self._run.sent.discard(future)
        try:
            error = future.exception()  # result() would treat an exception that is false as none
            if error is None:
                output, duration_ms, record = future.result()
            else:
                output, duration_ms = None, 0.0
                error, record = failure_in(error)
            if self._body is not None and record is not None:
                self._body.remote = record
        except BaseException as raised:  # noqa: BLE001 - cancelled, or a result that was not one of ours
            self._run.finish(self, raised)
        else:
            self._run.finish(self, error, output, duration_ms)

    def try_again(self, error: BaseException) -> bool:
        """Has the next attempt made, after a pause on the event loop, which occupies no thread of the executor.

        Returns:
            Whether the module is no longer the caller's business; if not, the error is its last.
        """
        is_last = self.attempt >= self.module.attempts or self._run.is_over
        # a refusal to begin is not the body's error, and stays
        if is_last or not (self._has_begun and is_worth_another(error)):
            return False
        try:
            ticket = self._threads.track(self._in_context(self._threads.submit_async, self._pause, error))
        except Exception as refusal:  # noqa: BLE001 - no thread, no descriptor: the module fails with it
            refusal.__cause__ = error
            self._run.settle(self, refusal)
            return True
        ticket.add_done_callback(functools.partial(self._run.guarded, self._pause_ended, error))
        return True

    async def _pause(self, error: BaseException) -> None:
        """Waits until it is time for the next attempt."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            if not self._run.keep(task, self._run.tasks):
                return
            self.retries = retries = self.retries or Retries(self.module.attempts)
            await retries.fail(error)
            with self._threads.pausing() as limit:
                try:
                    async with limit:
                        await retries.wait()
                except TimeoutError:
                    if not limit.expired():
                        raise  # a hook's
                    await retries.wait()
        finally:
            self._run.tasks.discard(task)

    def _pause_ended(self, error: BaseException, ticket: Future[None]) -> None:
        are_over = self.retries is not None and self.retries.are_over
        if are_over or ticket.cancelled():  # with its execution, with the event loop, or by the code of a module
            self._run.settle(self, error)
        elif (raised := ticket.exception()) is not None:
            self._run.settle(self, raised)
        else:
            self._run.launch(Call(self._run, self.module, self))

    def _context(self) -> Context:
        context = otel_context.get_current()
        listener = self._run.listener
        if isinstance(listener, ModuleContextProvider):
            context = listener.module_context(self._run.execution_id, self.module_id, context)
            name_module(context, self.module_id, self.module.name)
        return context

    def _tell_start(self, execution_id: UUID, module_id: UUID, name: str) -> None:
        listener = self._run.listener
        upstream = [self._run.module_ids[each] for each in self._run.dag.waits_for[name]]
        if (upstream or self.attempt > 1) and isinstance(listener, ModuleDetailsTaker):
            first_id = self._first_id if self.attempt > 1 else None
            details: Any = {"attempt": self.attempt, "attempt_of": first_id, "upstream": upstream}
            listener.module_details(execution_id, module_id, module_name=name, **details)
        listener.on_module_start(execution_id, module_id, name)


def _lost(ticket: Future[None], reason: str) -> BaseException:
    """Why a ticket ended before its module."""
    error = None if ticket.cancelled() else ticket.exception()
    return CancelledError(reason) if error is None else error


def _explained(error: BaseException, task: asyncio.Task[None]) -> BaseException:
    """A module's error; where its task was cancelled, one that says so."""
    if type(error) is not asyncio.CancelledError or error.args or not task.cancelling():
        return error
    explained = asyncio.CancelledError("its task was cancelled, and not by Execution.cancel()")
    explained.__cause__ = error
    return explained
