"""The SPI: how a pipeline engine notifies a listener, and how several listeners share that.

Read this file first. It knows nothing of OpenTelemetry, of threads or of
files; what a listener does with the six callbacks lives elsewhere.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from constellation_otel._support.log import RateLimitedLog, log
from constellation_otel._support.spelling import check_callbacks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from opentelemetry.context import Context
    from opentelemetry.util.types import AttributeValue

__all__ = [
    "CompositeListener",
    "ExecutionJoiner",
    "ExecutionListener",
    "LoggingListener",
    "ModuleContextProvider",
    "ModuleDetailsTaker",
]


class ExecutionListener:
    """Observes the executions of a pipeline engine.

    A plain base class whose callbacks do nothing: override what you need.

    * Callbacks are fire-and-forget. What one raises is caught and logged by the
      engine and by :meth:`composite`; it never reaches the pipeline. Where
      delivery must be sure, the listener has to see to that itself.
    * Callbacks are on the execution's hot path: return at once.
    * Callbacks may fire concurrently, from any thread, for one execution too.

    Raises:
        ListenerDefinitionError: When a subclass is made that defines a callback
            under a name that no engine calls (``onModuleStart``,
            ``on_module_started``) or as ``async def``. Other ``on_*`` methods are
            the subclass's own business.
    """

    noop: ClassVar[ExecutionListener]
    """The listener that does nothing."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[:-1]:  # a mixin that is no listener was not looked at when it was made
            check_callbacks(base, allow_async=False)

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        """A DAG's execution starts."""

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        """A module begins to execute."""

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        """A module has completed.

        Args:
            execution_id: The execution.
            module_id: The module's id in this execution.
            module_name: The module's name.
            duration_ms: Wall clock in milliseconds as the engine measured it: with
                scheduling overhead, without queue wait.
        """

    def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
        """A module has failed with ``error``."""

    def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
        """An execution has ended, well or not.

        Args:
            execution_id: The execution.
            dag_name: The DAG's name.
            succeeded: Whether every module completed.
            duration_ms: Wall clock in milliseconds as the engine measured it.
        """

    def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
        """An execution was cancelled; nothing else fires this."""

    @staticmethod
    def composite(*listeners: ExecutionListener) -> ExecutionListener:
        """Combines listeners into one that notifies each of them, in order.

        What one raises is caught, counted and logged with its traceback under
        the listener's class name (logger ``constellation_otel.listener.<Class>``,
        at most once in ten seconds for each callback), and the others still run.
        Only :class:`Exception` is caught: KeyboardInterrupt and its like pass.

        Composites among the listeners are flattened and :attr:`noop` is left out;
        without any listener the answer is :attr:`noop`.

        Args:
            *listeners: In the order in which they are notified.

        Raises:
            TypeError: One of them is no ExecutionListener.
        """
        flat: list[ExecutionListener] = []
        for listener in listeners:
            if isinstance(listener, CompositeListener):
                flat.extend(listener.listeners)
            elif not isinstance(listener, ExecutionListener):
                message = (
                    f"{listener!r} is not an ExecutionListener; subclass constellation_otel.ExecutionListener"
                    " (or wrap a listener that has async callbacks in AsyncListenerAdapter)"
                )
                raise TypeError(message)
            elif listener is not ExecutionListener.noop:
                flat.append(listener)
        return CompositeListener(tuple(flat)) if flat else ExecutionListener.noop


ExecutionListener.noop = ExecutionListener()


@runtime_checkable
class ModuleContextProvider(Protocol):
    """What a listener has besides the SPI to nest a module's own work under its span.

    An engine asks before it runs a module's body and makes the answer current
    around the body. Nothing is attached or held between callbacks.
    """

    def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
        """Derives the context of a module's body from the caller's.

        Args:
            execution_id: The execution.
            module_id: The module's id in this execution.
            context: What would be current without this provider.

        Returns:
            The context to make current; ``context`` itself where there is nothing to add.
        """


@runtime_checkable
class ModuleDetailsTaker(Protocol):
    """What a listener has besides the SPI to be told more of a module than the callbacks can say.

    An engine tells what it knows whenever it knows it, at the latest before the module's last
    callback. Listeners without this see the six callbacks as ever.
    """

    def module_details(
        self,
        execution_id: UUID,
        module_id: UUID,
        *,
        module_name: str | None = None,
        parent_id: UUID | None = None,
        attempt: int = 1,
        attempt_of: UUID | None = None,
        outcome: str | None = None,
        reason: str | None = None,
        upstream: Sequence[UUID] = (),
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> None:
        """Tells details of a module; never raises.

        Args:
            execution_id: The execution.
            module_id: The module's id in this execution: one run of its body.
            module_name: The module's name; needed with ``outcome`` only.
            parent_id: The module that this one is a part of.
            attempt: Which run of the module this is, from 1.
            attempt_of: The first attempt's module id, where this is another one.
            outcome: ``skipped`` or ``cached``, for a module whose body does not run and of which
                no callback tells.
            reason: Why it was skipped, or where its output came from.
            upstream: The modules whose outputs it takes.
            attributes: Further attributes of its span.
        """


@runtime_checkable
class ExecutionJoiner(Protocol):
    """What a listener has besides the SPI for an execution that several processes tell of.

    The process that starts the execution gives :meth:`traceparent_of` to the others, and
    these :meth:`join` before they tell of modules.
    """

    def join(self, execution_id: UUID, dag_name: str, traceparent: str | None = None) -> None:
        """Says that modules of an execution run here which another process has started; never raises.

        Args:
            execution_id: The execution.
            dag_name: Its DAG's name.
            traceparent: The execution's own span as a W3C header value, whose flag is the
                sampler's answer; without one, this process's sampler is asked.
        """

    def traceparent_of(self, execution_id: UUID) -> str | None:
        """The execution's own span as a W3C header value.

        Args:
            execution_id: An execution that has started, or was joined.

        Returns:
            ``None`` where the execution is not known, or not traced at all.
        """


class CompositeListener(ExecutionListener):
    """What :meth:`ExecutionListener.composite` returns.

    Attributes:
        listeners: The listeners, flattened, in order.
        errors: How many exceptions were caught so far.
    """

    def __init__(self, listeners: tuple[ExecutionListener, ...]) -> None:
        self.listeners = listeners
        self._log = RateLimitedLog()
        self._providers = tuple(listener for listener in listeners if isinstance(listener, ModuleContextProvider))
        self._takers = tuple(listener for listener in listeners if isinstance(listener, ModuleDetailsTaker))
        self._joiners = tuple(listener for listener in listeners if isinstance(listener, ExecutionJoiner))

    # written out, since all of them are on the hot path: to look each one up by its name takes several times as long

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        for listener in self.listeners:
            try:
                listener.on_execution_start(execution_id, dag_name)
            except Exception as error:  # noqa: BLE001 - the other listeners still run
                self._failed(listener, "on_execution_start", execution_id, error)

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        for listener in self.listeners:
            try:
                listener.on_module_start(execution_id, module_id, module_name)
            except Exception as error:  # noqa: BLE001 - the other listeners still run
                self._failed(listener, "on_module_start", execution_id, error)

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        for listener in self.listeners:
            try:
                listener.on_module_complete(execution_id, module_id, module_name, duration_ms)
            except Exception as error:  # noqa: BLE001 - the other listeners still run
                self._failed(listener, "on_module_complete", execution_id, error)

    def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
        for listener in self.listeners:
            try:
                listener.on_module_failed(execution_id, module_id, module_name, error)
            except Exception as raised:  # noqa: BLE001 - the other listeners still run
                self._failed(listener, "on_module_failed", execution_id, raised)

    def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
        for listener in self.listeners:
            try:
                listener.on_execution_complete(execution_id, dag_name, succeeded, duration_ms)
            except Exception as error:  # noqa: BLE001 - the other listeners still run
                self._failed(listener, "on_execution_complete", execution_id, error)

    def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
        for listener in self.listeners:
            try:
                listener.on_execution_cancelled(execution_id, dag_name)
            except Exception as error:  # noqa: BLE001 - the other listeners still run
                self._failed(listener, "on_execution_cancelled", execution_id, error)

    def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
        """Asks every listener that is a :class:`ModuleContextProvider`, each on top of the one before."""
        for provider in self._providers:
            try:
                context = provider.module_context(execution_id, module_id, context)
            except Exception as error:  # noqa: BLE001 - the other listeners still run
                self._failed(provider, "module_context", execution_id, error)
        return context

    def module_details(self, execution_id: UUID, module_id: UUID, **details: Any) -> None:
        """Hands a module's details to every listener that is a :class:`ModuleDetailsTaker`."""
        for taker in self._takers:
            try:
                taker.module_details(execution_id, module_id, **details)
            except Exception as error:  # noqa: BLE001 - the other listeners still run
                self._failed(taker, "module_details", execution_id, error)

    def join(self, execution_id: UUID, dag_name: str, traceparent: str | None = None) -> None:
        """Has every listener that is an :class:`ExecutionJoiner` join the execution."""
        for joiner in self._joiners:
            try:
                joiner.join(execution_id, dag_name, traceparent)
            except Exception as error:  # noqa: BLE001 - the other listeners still run
                self._failed(joiner, "join", execution_id, error)

    def traceparent_of(self, execution_id: UUID) -> str | None:
        """What the first listener answers that knows the execution."""
        for joiner in self._joiners:
            try:
                traceparent = joiner.traceparent_of(execution_id)
            except Exception as error:  # noqa: BLE001 - the other listeners still run
                self._failed(joiner, "traceparent_of", execution_id, error)
            else:
                if traceparent is not None:
                    return traceparent
        return None

    @property
    def errors(self) -> int:
        return self._log.count

    def _failed(self, listener: object, callback: str, execution_id: UUID, error: Exception) -> None:
        name = type(listener).__name__
        self._log.write(
            logging.getLogger(f"{__name__}.{name}"),
            logging.ERROR,
            (name, callback),
            "%s.%s raised for execution %s; the pipeline and the other listeners go on",
            name,
            callback,
            execution_id,
            error=error,
        )


class LoggingListener(ExecutionListener):
    """Writes a log record for every event: INFO, and WARNING for what failed.

    Args:
        logger: Where to; ``constellation_otel.executions`` where none is given.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger if logger is not None else logging.getLogger("constellation_otel.executions")

    def on_execution_start(self, execution_id: UUID, dag_name: str) -> None:
        log(self._logger, logging.INFO, "execution %s of %s started", execution_id, dag_name)

    def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
        log(self._logger, logging.INFO, "execution %s: module %s (%s) started", execution_id, module_name, module_id)

    def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
        log(
            self._logger,
            logging.INFO,
            "execution %s: module %s (%s) completed in %.3f ms",
            execution_id,
            module_name,
            module_id,
            duration_ms,
        )

    def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
        log(
            self._logger,
            logging.WARNING,
            "execution %s: module %s (%s) failed",
            execution_id,
            module_name,
            module_id,
            error=error,
        )

    def on_execution_complete(self, execution_id: UUID, dag_name: str, succeeded: bool, duration_ms: float) -> None:
        if succeeded:
            log(
                self._logger,
                logging.INFO,
                "execution %s of %s completed in %.3f ms",
                execution_id,
                dag_name,
                duration_ms,
            )
        else:
            log(
                self._logger,
                logging.WARNING,
                "execution %s of %s failed after %.3f ms",
                execution_id,
                dag_name,
                duration_ms,
            )

    def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
        log(self._logger, logging.INFO, "execution %s of %s was cancelled", execution_id, dag_name)
