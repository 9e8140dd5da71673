"""The check of listeners."""

from __future__ import annotations

import inspect
import sys
import threading
from functools import partial
from math import inf, nan
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from msgspec import Struct
from opentelemetry import context as otel_context

from constellation_otel.errors import RemoteError
from constellation_otel.listener import (
    ExecutionJoiner,
    ExecutionListener,
    ModuleContextProvider,
    ModuleDetailsTaker,
)
from constellation_otel.testing.violations import Violations, described, is_awaitable, run_in_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from constellation_otel.testing.violations import Progress

__all__ = ["check_listener"]


def check_listener(make: Callable[[], ExecutionListener], timeout: float = 30.0, *, close_timeout: float = 2.0) -> None:
    """Checks that a listener keeps the SPI's promises.

    Calls every callback, and what the listener has of ``module_context``, ``module_details``,
    ``join`` and ``traceparent_of``, with odd but legal values, in unintended orders, and from
    eight threads at once. None of these may raise, block, return an awaitable, or leave another
    OpenTelemetry context current; ``module_context`` must return a context, and
    ``traceparent_of`` a header's value or ``None``.

    Args:
        make: Makes a listener; called once for each part of the check. If the listener
            has a ``close`` method, it is called at the end of its part. What is not
            delivered by then is not a violation.
        timeout: Seconds for each part. It finds callbacks that block, not slow ones.
        close_timeout: Seconds that are passed to ``close`` if it requires an argument.

    Raises:
        AssertionError: The listener breaks a promise; the message has every violation.
    """
    violations = Violations("the listener does not keep the SPI's promises")
    interval = sys.getswitchinterval()
    try:
        # threads that switch this often meet inside a callback
        sys.setswitchinterval(_SWITCH_INTERVAL)
        for what, part in (
            ("with odd values", _odd_values),
            ("in any order", _any_order),
            ("from eight threads at once", _eight_threads),
        ):
            run = partial(_run_part, make, part, f" {what}", violations, close_timeout)
            run_in_time(run, f" {what}", violations, timeout, "check-listener")
    finally:
        sys.setswitchinterval(interval)
    violations.raise_if_any()


_THREADS: Final = 8
_ROUNDS: Final = 25
_SWITCH_INTERVAL: Final = 1e-5
_MEGABYTE: Final = 1_000_000
_EXECUTION: Final = UUID("6f3a0b52-6c1e-4f0c-9d55-2f6b4f6d7a11")
_MODULE: Final = UUID("b1946ac9-2f4e-4a57-8f5e-6b1f4d0c9e22")


class _Call(Struct, frozen=True):
    """A callback to call."""

    name: str
    args: tuple[Any, ...]
    note: str = ""
    details: dict[str, Any] = {}


def _run_part(
    make: Callable[[], ExecutionListener],
    part: Callable[[Callable[[_Call], None], ExecutionListener], None],
    what: str,
    violations: Violations,
    close_timeout: float,
    progress: Progress,
) -> None:
    try:
        listener = make()
    except BaseException as error:  # noqa: BLE001 - reported, whatever it is
        violations.add(f"make() raised {described(error)}", "")
        return
    if not isinstance(listener, ExecutionListener):
        given = f"the class {listener.__name__}" if isinstance(listener, type) else f"a {type(listener).__name__}"
        message = f"make() returned {given}, which is not an ExecutionListener; derive the class from it and call it"
        violations.add(message, "")
        return

    def call(it: _Call) -> None:
        progress.call = it.name
        _call(listener, it, what, violations)

    part(call, listener)
    close = getattr(listener, "close", None)
    if close is not None:
        progress.call = "close()"
        try:
            answer = close(*_arguments_of(close, close_timeout))
        except BaseException as error:  # noqa: BLE001 - reported, whatever it is
            violations.add(f"close() raised {described(error)}", what)
        else:
            if is_awaitable(answer):
                violations.add("close() returned an awaitable, which is never awaited", what)


def _arguments_of(close: Callable[..., object], timeout: float) -> tuple[float, ...]:
    """The timeout, if ``close`` cannot be called without an argument."""
    try:
        inspect.signature(close).bind()
    except TypeError:
        return (timeout,)
    return ()


def _call(listener: ExecutionListener, it: _Call, what: str, violations: Violations) -> None:
    where = what + (f" ({it.note})" if it.note else "")
    before = otel_context.get_current()
    try:
        answer = getattr(listener, it.name)(*it.args, **it.details)
    except BaseException as error:  # noqa: BLE001 - reported, whatever it is
        violations.add(f"{it.name} raised {described(error)}", where)
        answer = None
    else:
        if it.name == "module_context" and not isinstance(answer, otel_context.Context):
            violations.add(f"module_context returned a {type(answer).__name__}, not a Context", where)
        if it.name == "traceparent_of" and not (answer is None or isinstance(answer, str)):
            violations.add(f"traceparent_of returned a {type(answer).__name__}, not a header's value or None", where)
    if is_awaitable(answer):
        violations.add(f"{it.name} returned an awaitable, which is never awaited", where)
    if otel_context.get_current() != before:
        violations.add(f"{it.name} left another OpenTelemetry context current", where)
        otel_context.attach(before)


def _optional(
    listener: ExecutionListener, execution_id: UUID, module_id: UUID, context: otel_context.Context, note: str = ""
) -> Iterator[_Call]:
    """What it has besides the callbacks, called once each."""
    if isinstance(listener, ModuleContextProvider):
        yield _Call("module_context", (execution_id, module_id, context), note)
    if isinstance(listener, ModuleDetailsTaker):
        yield _Call("module_details", (execution_id, module_id), note, {"attempt": 2, "attempt_of": _MODULE})
    if isinstance(listener, ExecutionJoiner):
        yield _Call("join", (execution_id, "dag", _TRACEPARENT), note)
        yield _Call("traceparent_of", (execution_id,), note)


def _odd_values(call: Callable[[_Call], None], listener: ExecutionListener) -> None:
    """Each callback with each odd value, one at a time."""
    plain = _EXECUTION, _MODULE, "dag", "module", 1.0, ValueError("boom")
    lives = [
        *(((odd, odd, *plain[2:]), f"both ids are {odd}") for odd in (UUID(int=0), UUID(int=2**128 - 1), _EXECUTION)),
        *(((*plain[:2], name, name, *plain[4:]), f"the names are {note}") for note, name in _ODD_NAMES.items()),
        *(((*plain[:4], odd, plain[5]), f"the duration is {odd} ms") for odd in _ODD_DURATIONS),
        *(((*plain[:5], error), f"the error {note}") for note, error in _odd_errors()),
    ]
    for values, note in lives:
        for it in _life(*values, note):
            call(it)
    for module_id in (_MODULE, _EXECUTION, UUID(int=0)):
        for it in _optional(listener, _EXECUTION, module_id, otel_context.Context()):
            call(it)
    if isinstance(listener, ModuleDetailsTaker):
        for note, details in _ODD_DETAILS.items():
            call(_Call("module_details", (_EXECUTION, _MODULE), f"the details have {note}", details))
    if isinstance(listener, ExecutionJoiner):
        for note, traceparent in _ODD_TRACEPARENTS.items():
            for name in ("dag", *_ODD_NAMES.values()):
                call(_Call("join", (UUID(int=1), name, traceparent), f"the traceparent is {note}"))


def _any_order(call: Callable[[_Call], None], listener: ExecutionListener) -> None:
    """Backwards, every callback twice, ends without starts, and the whole once more after the end."""
    in_order = list(_life(_EXECUTION, _MODULE, "dag", "module", 1.0, ValueError("boom"), ""))
    orders = {
        "backwards": in_order[::-1],
        "each twice": [it for it in in_order for _ in range(2)],
        "the whole execution again": in_order,
        "of executions that never started": [
            _Call(it.name, (UUID(int=number), *it.args[1:])) for number, it in enumerate(in_order, 1)
        ],
    }
    for note, calls in orders.items():
        for it in calls:
            call(_Call(it.name, it.args, note))
            for other in _optional(listener, it.args[0], _MODULE, otel_context.get_current(), note):
                call(other)


def _eight_threads(call: Callable[[_Call], None], listener: ExecutionListener) -> None:
    """Each thread with a shared execution and one of its own, with new modules in every round."""
    together = threading.Barrier(_THREADS)

    def work(number: int) -> None:
        own = UUID(int=number + 1)
        together.wait()
        for round_ in range(_ROUNDS):
            module_id = UUID(int=number * _ROUNDS + round_ + 1)
            for execution_id in (_EXECUTION, own):
                for it in _life(execution_id, module_id, "dag", "module", 1.0, ValueError("boom"), ""):
                    call(it)
                for it in _optional(listener, execution_id, module_id, otel_context.get_current()):
                    call(it)

    threads = [
        threading.Thread(target=work, args=(number,), name=f"check-listener-{number}", daemon=True)
        for number in range(_THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _life(
    execution_id: UUID,
    module_id: UUID,
    dag_name: str,
    module_name: str,
    duration_ms: float,
    error: BaseException,
    note: str,
) -> Iterator[_Call]:
    """All six callbacks of one execution, with every kind of end."""
    yield _Call("on_execution_start", (execution_id, dag_name), note)
    yield _Call("on_module_start", (execution_id, module_id, module_name), note)
    yield _Call("on_module_complete", (execution_id, module_id, module_name, duration_ms), note)
    yield _Call("on_module_failed", (execution_id, module_id, module_name, error), note)
    yield _Call("on_execution_complete", (execution_id, dag_name, False, duration_ms), note)
    yield _Call("on_execution_cancelled", (execution_id, dag_name), note)


_ODD_NAMES: Final = {
    "empty": "",
    "a space": " ",
    "a lone surrogate": "\ud800",
    "control characters": "\x00\x1b[31m\r\n\x7f",
    "a format string": "%s %d {0} {name} %(name)s",
    "not Latin": "\N{PILE OF POO}\N{RIGHT-TO-LEFT OVERRIDE}\N{CJK UNIFIED IDEOGRAPH-6F22}",
    "a megabyte": "x" * _MEGABYTE,
}
_TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_ODD_TRACEPARENTS: Final = {
    "missing": None,
    "empty": "",
    "no header": "00-nothing",
    "all zero": f"00-{'0' * 32}-{'0' * 16}-00",
    "of a version that is none": f"ff{_TRACEPARENT[2:]}",
    "a megabyte": "0" * _MEGABYTE,
}
_ODD_DETAILS: Final[dict[str, dict[str, Any]]] = {
    "an attempt of 0": {"attempt": 0},
    "an attempt that is another one's first": {"attempt": 2, "attempt_of": None},
    "a parent that nothing is known of": {"parent_id": UUID(int=5)},
    "the module itself for its parent": {"parent_id": _MODULE},
    "an outcome and no name": {"outcome": "skipped"},
    "an outcome with everything": {"module_name": "module", "outcome": "cached", "reason": "\ud800"},
    "an outcome that is none": {"module_name": "module", "outcome": "odd"},
    "links to nothing and to itself": {"upstream": (UUID(int=0), _MODULE, _MODULE)},
    "10,000 attributes": {"attributes": {f"key {number}": number for number in range(10_000)}},
    "odd attributes": {"attributes": {"": None, "nan": nan, "list": [1, "a", None], "object": object(), "\ud800": 1}},
}
_ODD_DURATIONS: Final = (0, 0.0, -0.0, -1.0, 5e-324, 1e308, nan, inf, -inf, 10**30)


def _odd_errors() -> list[tuple[str, BaseException]]:
    cycle = ValueError("a cycle")
    cycle.__cause__ = KeyError("the other half")
    cycle.__cause__.__cause__ = cycle
    chain: BaseException = ValueError("the first of many")
    for _ in range(2_000):
        effect = ValueError("one of many")
        effect.__cause__ = chain
        chain = effect
    return [
        ("has no message", ValueError()),
        ("has a lone surrogate", ValueError("\ud800")),
        ("has control characters", ValueError("\x00\x1b[31m\r\n")),
        ("has a message of a megabyte", ValueError("x" * _MEGABYTE)),
        ("has bytes and None for arguments", ValueError(b"\xff", None)),
        ("cannot be printed: str() of it raises", _UnprintableError()),
        ("is a KeyboardInterrupt", KeyboardInterrupt()),
        ("is a SystemExit", SystemExit(3)),
        ("is a group", BaseExceptionGroup("several", [ValueError("one"), KeyboardInterrupt()])),
        ("came over a wire without a message", RemoteError(None)),
        ("is its own cause", cycle),
        ("has 2000 causes", chain),
    ]


class _UnprintableError(Exception):
    """An exception whose ``__str__`` raises."""

    def __str__(self) -> str:
        message = "str() of this exception raises"
        raise RuntimeError(message)

    __repr__ = __str__
