"""What an adapter for an engine stands on: the engine's hooks and own names in, a listener's callbacks out.

It imports no engine. An adapter calls a :class:`Teller` from the hooks that its engine has.
"""

from __future__ import annotations

import logging
import threading
import time
from asyncio import CancelledError
from collections import OrderedDict
from concurrent.futures import CancelledError as FutureCancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Final, Literal, ParamSpec, TypeVar
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from opentelemetry import context as otel_context

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.fork import PerProcess, after_fork_in_child
from constellation_otel._support.log import RateLimitedLog
from constellation_otel._support.scope import ENGINE_KEY
from constellation_otel._support.text import shown
from constellation_otel.bodies import name_module
from constellation_otel.listener import CompositeListener, ExecutionListener
from constellation_otel.traces import attempt_id_of, execution_id_of, module_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.util.types import AttributeValue

__all__ = ["Teller", "TellerCounters"]

_LOGGER: Final = logging.getLogger(__name__)
_CANCELLED: Final = (CancelledError, FutureCancelledError, KeyboardInterrupt)

P = ParamSpec("P")
K = TypeVar("K")
V = TypeVar("V")


class TellerCounters(Struct, frozen=True, kw_only=True):
    """What a :class:`Teller` could not tell as it should.

    Attributes:
        given_up: Executions and modules that were open when there were too many; their ends are unmatched.
        unmatched: Calls for an execution or a module that is not open here.
        repeated: Starts of an execution or a module that is open, or has ended.
        errors: Calls that failed, for instance with an argument of a wrong type.
    """

    given_up: int = 0
    unmatched: int = 0
    repeated: int = 0
    errors: int = 0


@dataclass(slots=True, eq=False)
class _Execution:
    name: str
    start: float
    is_joined: bool = False
    modules: dict[tuple[int, str], None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Module:
    module_id: UUID
    name: str
    start: float
    token: Token[Context] | None = None


class _Guard:
    """Counts and logs what its block raises."""

    __slots__ = ("_call", "_teller")

    def __init__(self, teller: Teller, call: str) -> None:
        self._teller = teller
        self._call = call

    def __enter__(self) -> None:
        return

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._teller._raised(self._call, error)  # noqa: SLF001 - it is a part of it
        return True


def _guarded(method: Callable[Concatenate[Teller, P], None]) -> Callable[Concatenate[Teller, P], None]:
    """Counts and logs what a method raises; the engine that calls it goes on."""

    @wraps(method)
    def guarded(self: Teller, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - counted and logged; it is not the engine's
            self._raised(method.__name__, error)

    return guarded


class Teller:
    """Notifies a listener of an engine's executions, in the engine's own terms.

    An execution is known by the engine's run id, a module by a *key* that is unique in its
    execution. The ids that a listener gets are computed from these, so every process
    computes the same ones.

    Thread-safe. No method raises, and no error of the listener reaches the engine: what goes
    wrong is counted, and logged at most once in ten seconds. The listener is the caller's, who
    closes it.

    Args:
        listener: Whom to notify. Only the callbacks and the optional protocols that it has are used.
        engine: The engine's name, ``kedro`` for instance; ``constellation.engine`` of every span.
        max_open: Executions, and modules, that are open at most. The oldest is given up where
            an engine never tells the end of many.

    Raises:
        TypeError: ``listener`` is no ExecutionListener.
    """

    _lock = PerProcess(lambda: threading.Lock())  # noqa: PLW0108 - which class that is, is known when it is called
    _counting = PerProcess(lambda: threading.Lock())  # noqa: PLW0108 - likewise; taken inside the other one

    def __init__(self, listener: ExecutionListener, engine: str, *, max_open: int = 10_000) -> None:
        combined = ExecutionListener.composite(listener)
        self._listener = combined if isinstance(combined, CompositeListener) else CompositeListener(())
        self.engine = engine
        self._max_open = max_open
        self._log = RateLimitedLog()
        self._has_warned = False
        self._counters = TellerCounters()
        self._forget()
        after_fork_in_child(self._forget)

    def _forget(self) -> None:
        """Forgets everything, which in a forked child is its parent's."""
        self._executions: OrderedDict[int, _Execution] = OrderedDict()
        self._open: OrderedDict[tuple[int, str], _Module] = OrderedDict()
        # to make an id takes some microseconds, and each is needed several times
        self._runs: OrderedDict[str, UUID] = OrderedDict()
        self._ids: OrderedDict[tuple[int, str], UUID] = OrderedDict()
        self._ended: OrderedDict[int, None] = OrderedDict()

    @property
    def counters(self) -> TellerCounters:
        """What could not be told as it should."""
        return self._counters

    def guarded(self, call: str) -> AbstractContextManager[None]:
        """Keeps what an adapter's own code raises from the engine: counted and logged, as this class's own.

        Args:
            call: Which of the adapter's hooks it is, for the log.
        """
        return _Guard(self, call)

    def execution_id(self, run_id: object) -> UUID:
        """The execution's id for an engine's run id.

        Args:
            run_id: A UUID or its text is taken as it is; of anything else the id is a hash, with the
                engine's name. It has to be unique among all runs of the engine, on every machine.
        """
        if isinstance(run_id, UUID):
            return run_id
        text = run_id if isinstance(run_id, str) else shown(run_id)
        execution_id = self._runs.get(text)
        if execution_id is None:
            execution_id = execution_id_of(self.engine, text)
            with self._lock:
                _put(self._runs, text, execution_id, self._max_open)
        return execution_id

    def module_id(self, execution_id: UUID, key: str, attempt: int = 1) -> UUID:
        """The id of a module, for one run of its body.

        Args:
            execution_id: The execution.
            key: What the engine calls the module, unique in its execution.
            attempt: Which run of its body, from 1.
        """
        at = (execution_id.int, key)
        module_id = self._ids.get(at)
        if module_id is None:
            module_id = module_id_of(execution_id, key)
            with self._lock:
                _put(self._ids, at, module_id, self._max_open)
        return attempt_id_of(module_id, attempt)

    @_guarded
    def execution_started(self, execution_id: UUID, name: str) -> None:
        """An execution starts. The span that is current now is its caller's.

        Args:
            execution_id: The execution.
            name: The name of its DAG or pipeline; one of few, since metrics have it.
        """
        if self._enter(execution_id, _Execution(name, time.perf_counter())):
            self._as_engine(self._listener.on_execution_start, execution_id, name)

    @_guarded
    def execution_ended(
        self, execution_id: UUID, error: BaseException | None = None, succeeded: bool | None = None
    ) -> None:
        """An execution ends.

        Args:
            execution_id: The execution.
            error: What ended it; a cancellation or KeyboardInterrupt makes it a cancelled one.
            succeeded: Whether it succeeded; by default, whether there is no ``error``.
        """
        with self._lock:
            execution = self._executions.pop(execution_id.int, None)
            modules = [] if execution is None else [self._open.pop(at) for at in execution.modules]
            if execution is not None:
                _put(self._ended, execution_id.int, None, self._max_open)
        if execution is None:
            return self._unmatched("the end of an execution")
        for module in reversed(modules):
            _restore(module.token)
        if execution.is_joined:
            return None
        if isinstance(error, _CANCELLED):
            self._listener.on_execution_cancelled(execution_id, execution.name)
        else:
            duration_ms = (time.perf_counter() - execution.start) * 1e3
            has_succeeded = error is None if succeeded is None else succeeded
            self._listener.on_execution_complete(execution_id, execution.name, has_succeeded, duration_ms)
        return None

    @_guarded
    def module_started(
        self,
        execution_id: UUID,
        key: str,
        name: str,
        *,
        attempt: int = 1,
        parent: str | None = None,
        upstream: Sequence[str] = (),
        attributes: Mapping[str, AttributeValue] | None = None,
        attach: bool = False,
    ) -> None:
        """A module's body is about to run.

        Args:
            execution_id: The execution.
            key: What the engine calls the module, unique in its execution.
            name: The module's name; one of few, since metrics have it.
            attempt: Which run of its body, from 1.
            parent: The key of the module that this one is a part of.
            upstream: The keys of the modules whose outputs it takes.
            attributes: Further attributes of its span.
            attach: Whether to make its span the current one until :meth:`module_ended`, for an engine
                whose hooks run in the thread or task in which the body runs.
        """
        module_id = self.module_id(execution_id, key, attempt)
        at, module, given_up = (execution_id.int, key), _Module(module_id, name, 0.0), None
        with self._lock:
            execution = self._executions.get(execution_id.int)
            is_again = module_id.int in self._ended or at in self._open
            if execution is not None and not is_again:
                execution.modules[at] = None
                given_up = _put(self._open, at, module, self._max_open)
                if given_up is not None and (others := self._executions.get(given_up[0][0])) is not None:
                    del others.modules[given_up[0]]
        if execution is None:
            return self._unmatched("a module")
        if is_again:
            return self._repeated(f"module {name}")
        if given_up is not None:
            self._gave_up("module")
        if attempt != 1 or parent is not None or upstream or attributes:
            self._listener.module_details(
                execution_id,
                module_id,
                parent_id=None if parent is None else self.module_id(execution_id, parent),
                attempt=attempt,
                attempt_of=None if attempt == 1 else self.module_id(execution_id, key),
                upstream=tuple(self.module_id(execution_id, other) for other in upstream),
                attributes=attributes,
            )
        module.start = time.perf_counter()
        self._listener.on_module_start(execution_id, module_id, name)
        if attach:
            context = self.context(execution_id, key, attempt)
            name_module(context, module_id, name)
            module.token = otel_context.attach(context)
        return None

    @_guarded
    def module_ended(self, execution_id: UUID, key: str, error: BaseException | None = None) -> None:
        """A module's body has ended, and what :meth:`module_started` attached is taken back.

        Args:
            execution_id: The execution.
            key: What the engine calls the module.
            error: What the body raised. A module that was cancelled is not told of: it ends with
                its execution.
        """
        now = time.perf_counter()
        at = (execution_id.int, key)
        with self._lock:
            module = self._open.pop(at, None)
            if module is not None:
                _put(self._ended, module.module_id.int, None, self._max_open)
                if (execution := self._executions.get(execution_id.int)) is not None:
                    execution.modules.pop(at, None)
        if module is None:
            return self._unmatched("the end of a module")
        _restore(module.token)
        if error is None:
            duration_ms = (now - module.start) * 1e3
            self._listener.on_module_complete(execution_id, module.module_id, module.name, duration_ms)
        elif not isinstance(error, _CANCELLED):
            self._listener.on_module_failed(execution_id, module.module_id, module.name, error)
        return None

    @_guarded
    def module_skipped(
        self,
        execution_id: UUID,
        key: str,
        name: str,
        reason: str,
        *,
        outcome: Literal["skipped", "cached"] = "skipped",
    ) -> None:
        """A module's body does not run.

        Args:
            execution_id: The execution.
            key: What the engine calls the module, unique in its execution.
            name: The module's name; one of few.
            reason: Why, or where its output came from.
            outcome: ``cached`` where there is an output all the same.
        """
        if execution_id.int not in self._executions:
            return self._unmatched("a module")
        module_id = self.module_id(execution_id, key)
        self._listener.module_details(execution_id, module_id, module_name=name, outcome=outcome, reason=reason)
        return None

    def context(self, execution_id: UUID, key: str, attempt: int = 1) -> Context:
        """The context of a module's body, for an engine that wraps bodies or makes tasks.

        The module need not have started: its span's id is known before.

        Args:
            execution_id: An execution that has started, or was joined.
            key: What the engine calls the module.
            attempt: Which run of its body, from 1.

        Returns:
            The current context with the module's span as the current one, where it is traced.
        """
        context = otel_context.get_current()
        try:
            return self._listener.module_context(execution_id, self.module_id(execution_id, key, attempt), context)
        except Exception as error:  # noqa: BLE001 - counted and logged; it is not the engine's
            self._raised("context", error)
            return context

    @contextmanager
    def module(self, execution_id: UUID, key: str, name: str, **details: Any) -> Iterator[None]:
        """Runs a module's body in its span, for an engine that lets its adapter wrap bodies.

        Args:
            execution_id: The execution.
            key: What the engine calls the module, unique in its execution.
            name: The module's name; one of few.
            **details: As :meth:`module_started` has them.
        """
        self.module_started(execution_id, key, name, **{**details, "attach": True})
        try:
            yield
        except BaseException as error:
            self.module_ended(execution_id, key, error)
            raise
        self.module_ended(execution_id, key)

    def carrier(self, execution_id: UUID) -> dict[str, str]:
        """What another process needs to tell of the execution's modules, for :meth:`joined` there.

        Returns:
            The execution's id, its name, and its traceparent where it is traced. Empty where it is not open here.
        """
        try:
            execution = self._executions.get(execution_id.int)
            if execution is None:
                self._unmatched("an execution to carry")
                return {}
            carrier = {"execution-id": str(execution_id), "name": execution.name}
            traceparent = self._listener.traceparent_of(execution_id)
        except Exception as error:  # noqa: BLE001 - counted and logged; it is not the engine's
            self._raised("carrier", error)
            return {}
        return carrier if traceparent is None else {**carrier, "traceparent": traceparent}

    def joined(self, carrier: Mapping[str, str]) -> UUID | None:
        """Has modules of an execution told of here that another process has started.

        A second call for one execution does nothing. The execution's end is the other process's.
        Where the process may end without notice, :meth:`flush` belongs behind each module.

        Args:
            carrier: What :meth:`carrier` gave in the process that started it.

        Returns:
            The execution's id; ``None`` where the carrier cannot be read.
        """
        try:
            execution_id, name = UUID(carrier["execution-id"]), carrier["name"]
            if self._enter(execution_id, _Execution(name, time.perf_counter(), is_joined=True)):
                self._as_engine(self._listener.join, execution_id, name, carrier.get("traceparent"))
        except Exception as error:  # noqa: BLE001 - counted and logged; it is not the engine's
            self._raised("joined", error)
            return None
        return execution_id

    def flush(self, timeout: float = 1.0) -> bool:
        """Has every listener that can be flushed deliver what it holds.

        Args:
            timeout: Seconds, for all of them together.

        Returns:
            Whether all of it was delivered.
        """
        deadline = deadline_of(timeout)
        is_delivered = True
        for listener in self._listener.listeners:
            try:
                flush = getattr(listener, "flush", None)
                if flush is not None and not flush(seconds_left(deadline)):
                    is_delivered = False
            except Exception as error:  # noqa: BLE001 - counted and logged; the others are still flushed
                self._raised("flush", error)
                is_delivered = False
        return is_delivered

    def _enter(self, execution_id: UUID, execution: _Execution) -> bool:
        """Notes that an execution is open; whether it was not before."""
        given_up = None
        with self._lock:
            is_open = execution_id.int in self._executions
            is_again = is_open or execution_id.int in self._ended
            if not is_again:
                given_up = _put(self._executions, execution_id.int, execution, self._max_open)
        if is_again:
            # each module of it may join it, where that runs in another process
            if not (is_open and execution.is_joined):
                self._repeated(f"execution {execution.name}")
            return False
        # one that was joined has no end here that could be missing
        if given_up is not None and not given_up[1].is_joined:
            self._gave_up("execution")
        return True

    def _as_engine(self, call: Callable[..., None], *args: object) -> None:
        """Makes a call in a context that has the engine's name."""
        token = otel_context.attach(otel_context.set_value(ENGINE_KEY, self.engine))
        try:
            call(*args)
        finally:
            _restore(token)

    def _gave_up(self, what: str) -> None:
        self._count("given_up")
        self._warn(
            "%s has more than %d open; the %s that has been open longest is given up: its end was never told",
            self.engine,
            self._max_open,
            what,
        )

    def _unmatched(self, what: str) -> None:
        self._count("unmatched")
        self._warn("%s told %s that is not open here; it is left out", self.engine, what)

    def _repeated(self, what: str) -> None:
        self._count("repeated")
        if not self._has_warned:
            self._has_warned = True
            self._warn(
                "%s told another start of %s, which is open or has ended; it is left out. One run of a body has an id"
                " of its own: give each run another key, or its attempt. This is logged once",
                self.engine,
                what,
            )

    def _raised(self, call: str, error: Exception) -> None:
        self._count("errors")
        message = "%s of the adapter for %s failed; the engine goes on"
        self._log.write(_LOGGER, logging.ERROR, call, message, call, self.engine, error=error)

    def _count(self, counter: str) -> None:
        with self._counting:
            self._counters = replace(self._counters, **{counter: getattr(self._counters, counter) + 1})

    def _warn(self, message: str, *args: object) -> None:
        self._log.write(_LOGGER, logging.WARNING, message, message, *args)


def _put(store: OrderedDict[K, V], key: K, value: V, bound: int) -> tuple[K, V] | None:
    """Puts a value at the end; what had to go for it."""
    store[key] = value
    return store.popitem(last=False) if len(store) > bound else None


def _restore(token: Token[Context] | None) -> None:
    """Takes an attached context back, unless it was attached in another thread or task."""
    if token is not None:
        try:
            # detach would log an error with a traceback: some engines end a module in another task than they start it
            token.var.reset(token)
        except ValueError:
            # there is nothing to take back here, and the context over there ends with its task
            return
