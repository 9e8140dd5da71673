"""Modules and Dags: how they are wired, and what is refused."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from constellation_otel.engine import Constellation, Dag, module
from constellation_otel.errors import DagError
from engine_support import PIPELINE, Recorder, trim, uppercase, word_count

if TYPE_CHECKING:
    from collections.abc import Callable


def test_parameters_are_named_after_modules_or_inputs() -> None:
    """And the outputs keep the order of the modules."""
    dag = Dag("pipeline", [uppercase, word_count, trim])
    with Constellation() as constellation:
        outputs = constellation.run(dag, {"text": " to be "})
    assert list(outputs.items()) == [("uppercase", "TO BE"), ("word_count", 2), ("trim", "to be")]
    assert (dag.inputs, dag.optional_inputs) == (frozenset({"text"}), frozenset())
    with pytest.raises(TypeError):
        outputs["trim"] = ""  # type: ignore[index]


def test_module_names_and_wires_what_by_name_wiring_cannot() -> None:
    @module
    def shout(text: str, *, mark: str = "!") -> str:
        return text + mark

    @module(name="Twice")
    def twice(shout: str) -> str:
        return shout * 2

    again = module(shout, name="Again", inputs={"text": "Twice", "mark": "end"})
    with Constellation() as constellation:
        outputs = constellation.run(Dag("pipeline", [shout, twice, again]), {"text": "a", "end": "."})
    assert outputs == {"shout": "a!", "Twice": "a!a!", "Again": "a!a!."}
    assert shout("b", mark="?") == "b?"
    assert repr(again) == "module('Again')"


def test_a_default_is_used_unless_something_else_is_supplied() -> None:
    """By a module or by an input."""

    def width(size: int = 1, scale: int = 10) -> int:
        return size * scale

    def size() -> int:
        return 2

    alone, fed = Dag("alone", [width]), Dag("fed", [width, size])
    assert (alone.inputs, alone.optional_inputs) == (frozenset(), frozenset({"size", "scale"}))
    with Constellation() as constellation:
        assert constellation.run(alone, {}) == {"width": 10}
        assert constellation.run(alone, {"size": 3}) == {"width": 30}
        assert constellation.run(fed, {"scale": 5}) == {"width": 10, "size": 2}


def test_whatever_can_be_called_with_named_arguments_is_a_module() -> None:
    class Adder:
        async def __call__(self, a: int, b: int) -> int:
            return a + b

    def add(a: int, b: int) -> int:
        return a + b

    five = functools.partial(add, b=5)
    dag = Dag("sums", [module(Adder(), name="object"), module(five, name="partial"), module(lambda: None, name="none")])
    with Constellation() as constellation:
        assert constellation.run(dag, {"a": 1, "b": 2}) == {"object": 3, "partial": 3, "none": None}


def positional(text: str, /) -> None: ...


def variadic(*texts: str) -> None: ...


def keywords(**texts: str) -> None: ...


def first(third: int) -> None: ...


def second(first: int) -> None: ...


def third(second: int) -> None: ...


def itself(itself: int) -> None: ...


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Dag("", [trim]), "'' cannot be the name of a Dag; give it a name that is not empty"),
        (lambda: Dag("p", []), "Dag 'p' has no modules; give it at least one"),
        (
            lambda: Dag("p", [trim, trim]),
            "Dag 'p' has two modules named 'trim'; rename one: module(fn, name='...')",
        ),
        (
            lambda: Dag("p", [first, second, third]),
            (
                "Dag 'p' has a cycle: first -> second -> third -> first; rename a parameter or wire it to something"
                " else: module(fn, inputs={parameter: source})"
            ),
        ),
        (
            lambda: Dag("p", [itself]),
            (
                "Dag 'p' has a cycle: itself -> itself; rename a parameter or wire it to something else:"
                " module(fn, inputs={parameter: source})"
            ),
        ),
        (
            lambda: Dag("p", ["trim"]),  # type: ignore[list-item]
            "'trim' is not a function, so it cannot be a module",
        ),
        (
            lambda: module(functools.partial(print)),
            (
                "None cannot be the name of the module functools.partial(<built-in function print>); name it:"
                " module(fn, name='...')"
            ),
        ),
        (
            lambda: module(print, name=""),
            "'' cannot be the name of the module <built-in function print>; name it: module(fn, name='...')",
        ),
        (
            lambda: module(max),
            (
                "module 'max': no signature found for builtin <built-in function max>; wrap it in a function that has"
                " named parameters"
            ),
        ),
        (
            lambda: module(positional),
            (
                "module 'positional': its parameter 'text' is positional-only, and modules are called with named"
                " arguments; give the function named parameters only"
            ),
        ),
        (
            lambda: module(variadic),
            (
                "module 'variadic': its parameter 'texts' is variadic positional, and modules are called with named"
                " arguments; give the function named parameters only"
            ),
        ),
        (
            lambda: module(keywords),
            (
                "module 'keywords': its parameter 'texts' is variadic keyword, and modules are called with named"
                " arguments; give the function named parameters only"
            ),
        ),
        (
            lambda: module(trim, name="Trim", inputs={"txt": "raw"}),
            "module 'Trim': its function has no parameter 'txt' to wire; it has 'text'; did you mean 'text'?",
        ),
        (
            lambda: module(lambda: None, name="Nothing", inputs={"txt": "raw"}),
            "module 'Nothing': its function has no parameter 'txt' to wire; it has none",
        ),
        (
            lambda: module(uppercase, inputs={"trim": module(trim)}),  # type: ignore[dict-item]
            "module 'uppercase': 'trim' is wired to module('trim'); give a module's or an input's name",
        ),
    ],
)
def test_what_cannot_be_wired_is_refused_when_it_is_built(build: Callable[[], object], message: str) -> None:
    with pytest.raises(DagError) as caught:
        build()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {},
            (
                "Dag 'pipeline' needs the input 'text', for the parameter 'text' of module('trim'): supply it, or name"
                " the parameter after a module"
            ),
        ),
        (
            {"txt": " a "},
            (
                "Dag 'pipeline' needs the input 'text', for the parameter 'text' of module('trim'): supply it, or name"
                " the parameter after a module; did you mean 'txt'?"
            ),
        ),
        (
            {"text": " a ", "texts": " b "},
            (
                "Dag 'pipeline' takes no input 'texts': no module has such a parameter; it takes 'text'; did you mean"
                " 'text'?"
            ),
        ),
        (
            {"text": " a ", "trim": "a"},
            "Dag 'pipeline' takes no input 'trim': that is a module's name; it takes 'text'",
        ),
    ],
)
def test_wrong_inputs_are_refused_before_anything_starts(inputs: dict[str, str], message: str) -> None:
    recorder = Recorder()
    with Constellation(recorder) as constellation:
        for start in (constellation.run, constellation.start):
            with pytest.raises(DagError) as caught:
                start(PIPELINE, inputs)
            assert str(caught.value) == message
    assert recorder.calls == []


def test_a_parameter_wired_by_hand_has_to_be_supplied() -> None:
    """Though it has a default."""

    def width(size: int = 1) -> int:
        return size

    dag = Dag("typo", [module(width, inputs={"size": "sice"})])
    with Constellation() as constellation, pytest.raises(DagError, match="needs the input 'sice'"):
        constellation.run(dag, {})
