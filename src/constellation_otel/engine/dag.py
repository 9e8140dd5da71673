"""Modules and how they are wired: checked once, then never changed.

Functions become modules, modules a Dag. A Dag that cannot work is refused, with the name of
the module at fault and what to do. Running one is the engine's business.
"""

from __future__ import annotations

import functools
import inspect
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar, overload

from constellation_otel._support.text import message_of, shown
from constellation_otel.engine.attempts import check_stamina
from constellation_otel.errors import DagError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Dag", "Module", "module"]

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class Module(Generic[P, R_co]):
    """A function as a module of a DAG; made by :func:`module`. Calling it calls the function.

    Attributes:
        name: The module's name.
        function: The function, plain or async.
        is_async: Whether it is async.
        sources: For each parameter the name of the module or the DAG's input that supplies it.
        optional: The parameters that have a default and were not wired explicitly.
        attempts: How often it is tried at most.
    """

    def __init__(
        self,
        function: Callable[P, R_co],
        name: str | None = None,
        inputs: Mapping[str, str] | None = None,
        attempts: int = 1,
    ) -> None:
        plain: Callable[P, R_co] = function.function if isinstance(function, Module) else function
        if not callable(plain):
            _refuse(f"{shown(plain)} is not a function, so it cannot be a module")
        name = getattr(plain, "__name__", None) if name is None else name
        if not isinstance(name, str) or not name:
            _refuse(f"{shown(name)} cannot be the name of the module {shown(plain)}; name it: module(fn, name='...')")
        try:
            parameters = inspect.signature(plain).parameters
        except (TypeError, ValueError) as error:
            _refuse(f"module {name!r}: {message_of(error)}; wrap it in a function that has named parameters")
        for parameter in parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                _refuse(
                    f"module {name!r}: its parameter {parameter.name!r} is {parameter.kind.description}, and modules"
                    " are called with named arguments; give the function named parameters only"
                )
        wired = dict(inputs or {})
        for target, source in wired.items():
            if target not in parameters:
                _refuse(
                    f"module {name!r}: its function has no parameter {target!r} to wire; it has"
                    f" {_listed(parameters)}{_hint(target, parameters)}"
                )
            if not isinstance(source, str):
                _refuse(f"module {name!r}: {target!r} is wired to {shown(source)}; give a module's or an input's name")
        _check_attempts(name, attempts)
        functools.update_wrapper(self, plain)
        self.name = name
        self.function: Callable[P, R_co] = plain
        self.is_async = inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(type(plain).__call__)
        self.sources: Mapping[str, str] = MappingProxyType({each: wired.get(each, each) for each in parameters})
        self.optional = frozenset(
            each.name for each in parameters.values() if each.default is not each.empty and each.name not in wired
        )
        self.attempts = attempts

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> str:
        # pickled by reference: a decorated function's name leads to this object
        return str(vars(self)["__qualname__"])

    def __repr__(self) -> str:
        return f"module({self.name!r})"


@overload
def module(
    function: Callable[P, R_co],
    *,
    name: str | None = None,
    inputs: Mapping[str, str] | None = None,
    attempts: int = 1,
) -> Module[P, R_co]: ...
@overload
def module(
    *, name: str | None = None, inputs: Mapping[str, str] | None = None, attempts: int = 1
) -> Callable[[Callable[P, R_co]], Module[P, R_co]]: ...
def module(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    inputs: Mapping[str, str] | None = None,
    attempts: int = 1,
) -> Any:
    """Names a module, and wires parameters to modules of other names; also a decorator, with arguments or without.

    Args:
        function: Plain or async, with named parameters only.
        name: The module's name; the function's own by default.
        inputs: For a parameter's name the name of the module or of the DAG's input that
            supplies it; by default that is the parameter's own name.
        attempts: How often it is tried at most, if its body raises an :class:`Exception` that is no
            ``CancelledError``. The pauses in between grow, with a jitter, as those of stamina do, which
            is needed for more than one attempt (the extra ``retry``); they occupy no thread of the
            executor, :meth:`Execution.cancel` ends them with the execution, and once
            :meth:`Constellation.close` has been called the next attempt follows at once. A listener
            is notified of each attempt as of a module, and a :class:`~constellation_otel.ModuleDetailsTaker`
            is told which one it is. The last attempt's error is the module's.

    Raises:
        DagError: The function cannot be a module, ``inputs`` names a parameter that it does not have,
            or ``attempts`` is not an int from 1 up.
        MissingExtraError: ``attempts`` is more than 1, and stamina is not installed.
    """
    if function is None:
        return lambda decorated: Module(decorated, name, inputs, attempts)
    return Module(function, name, inputs, attempts)


class Dag:
    """Modules, each of which takes the outputs and inputs that its parameters are named after.

    A parameter that has a default keeps it unless a module or an input supplies another value.
    Immutable: one Dag may be run any number of times, concurrently too.

    Args:
        name: The DAG's name.
        modules: Functions, plain or made modules by :func:`module`.

    Attributes:
        name: The DAG's name.
        modules: By name, in the order given.
        inputs: The names of the inputs that a run must supply.
        optional_inputs: The names of those that it may.
        waits_for: For each module the modules whose outputs it takes.

    Raises:
        DagError: A module cannot be one, two have the same name, or they wait for each other.
    """

    def __init__(self, name: str, modules: Iterable[Callable[..., Any]]) -> None:
        if not name:
            _refuse(f"{name!r} cannot be the name of a Dag; give it a name that is not empty")
        by_name: dict[str, Module[..., Any]] = {}
        for given in modules:
            each = given if isinstance(given, Module) else Module(given)
            if each.name in by_name:
                _refuse(f"Dag {name!r} has two modules named {each.name!r}; rename one: module(fn, name='...')")
            by_name[each.name] = each
        if not by_name:
            _refuse(f"Dag {name!r} has no modules; give it at least one")
        self.name = name
        self.modules: Mapping[str, Module[..., Any]] = MappingProxyType(by_name)
        self.waits_for: Mapping[str, frozenset[str]] = MappingProxyType(
            {each.name: frozenset(each.sources.values()) & by_name.keys() for each in by_name.values()}
        )
        takes = [(each, *pair) for each in by_name.values() for pair in each.sources.items() if pair[1] not in by_name]
        self._needed_by = {source: (each, target) for each, target, source in takes if target not in each.optional}
        self.inputs = frozenset(self._needed_by)
        self.optional_inputs = frozenset(source for _, _, source in takes) - self.inputs
        try:
            TopologicalSorter(self.waits_for).prepare()
        except CycleError as error:
            _refuse(
                f"Dag {name!r} has a cycle: {' -> '.join(error.args[1])}; rename a parameter or wire it to"
                " something else: module(fn, inputs={parameter: source})"
            )

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Raises a DagError where an input is missing, or is one that no module takes."""
        for name in sorted(self.inputs - inputs.keys()):
            each, parameter = self._needed_by[name]
            _refuse(
                f"Dag {self.name!r} needs the input {name!r}, for the parameter {parameter!r} of {each!r}: supply it,"
                f" or name the parameter after a module{_hint(name, [*inputs, *self.modules])}"
            )
        for name in inputs.keys() - self.inputs - self.optional_inputs:
            why = "that is a module's name" if name in self.modules else "no module has such a parameter"
            takes = sorted(self.inputs | self.optional_inputs)
            _refuse(f"Dag {self.name!r} takes no input {name!r}: {why}; it takes {_listed(takes)}{_hint(name, takes)}")


def _check_attempts(name: str, attempts: object) -> None:
    if not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1:
        _refuse(f"module {name!r}: attempts={shown(attempts)} is not a number of attempts; give an int from 1 up")
    if attempts > 1:
        check_stamina()


def _refuse(message: str) -> NoReturn:
    raise DagError(message)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _hint(name: str, candidates: Iterable[str]) -> str:
    meant = get_close_matches(name, list(candidates), n=1)
    return f"; did you mean {meant[0]!r}?" if meant else ""
