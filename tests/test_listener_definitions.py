"""Which listener classes may be defined: a misspelt or async callback is refused, with what to write instead."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import pytest

from callbacks import every_callback, listener_class
from constellation_otel._support.spelling import check_callbacks
from constellation_otel.errors import ListenerDefinitionError
from constellation_otel.listener import ExecutionListener

if TYPE_CHECKING:
    from collections.abc import Callable


async def coroutine_function(self: object) -> None: ...


async def async_generator_function(self: object) -> Any:
    yield


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("onExecutionStart", "on_execution_start"),
        ("onModuleStart", "on_module_start"),
        ("onModuleComplete", "on_module_complete"),
        ("onModuleFailed", "on_module_failed"),
        ("onExecutionComplete", "on_execution_complete"),
        ("onExecutionCancelled", "on_execution_cancelled"),
        ("OnModuleStart", "on_module_start"),
        ("on_moduleStart", "on_module_start"),
        ("onmodulestart", "on_module_start"),
        ("on_modulestart", "on_module_start"),
        ("on_module_start_", "on_module_start"),
        ("on_module_started", "on_module_start"),
        ("on_module_starting", "on_module_start"),
        ("on_module_starts", "on_module_start"),
        ("on_modules_start", "on_module_start"),
        ("on_mod_start", "on_module_start"),
        ("on_mdoule_start", "on_module_start"),
        ("on_module_strat", "on_module_start"),
        ("on_module_completed", "on_module_complete"),
        ("on_module_compelted", "on_module_complete"),
        ("on_module_completion", "on_module_complete"),
        ("on_module_fail", "on_module_failed"),
        ("on_module_faild", "on_module_failed"),
        ("on_module_failure", "on_module_failed"),
        ("on_exec_start", "on_execution_start"),
        ("on_excution_start", "on_execution_start"),
        ("on_execution_started", "on_execution_start"),
        ("on_execution_completed", "on_execution_complete"),
        ("on_execution_cancel", "on_execution_cancelled"),
        ("on_execution_canceled", "on_execution_cancelled"),
        ("on_execution_cancellation", "on_execution_cancelled"),
        ("onExecutionCanceled", "on_execution_cancelled"),
    ],
)
def test_a_camel_case_or_misspelt_callback_is_refused_with_the_right_spelling(name: str, meant: str) -> None:
    with pytest.raises(ListenerDefinitionError) as refused:
        listener_class(name)
    assert str(refused.value) == f"Mine.{name} would never be called: the callback's name is {meant}"


@pytest.mark.parametrize(
    "name",
    [
        "on_start",
        "on_module",
        "on_module_retry",
        "on_module_restart",
        "on_module_state",
        "on_module_stats",
        "on_module_startup",
        "on_module_error",
        "on_executor_start",
        "on_execution_finished",
        "on_pipeline_start",
        "on_module_start_late",
        "before_module_start",
        "module_start",
        "_on_module_start",
        "_on_module_started",
        "_onModuleStart",
        "onClick",
    ],
)
def test_other_methods_are_the_users_own_business(name: str) -> None:
    assert callable(getattr(listener_class(name), name))


@every_callback
@pytest.mark.parametrize(
    "function",
    [
        coroutine_function,
        async_generator_function,
        staticmethod(coroutine_function),
        classmethod(coroutine_function),
    ],
    ids=["function", "generator", "static", "class"],
)
def test_an_async_callback_is_refused_with_the_way_to_have_one(callback: str, function: object) -> None:
    with pytest.raises(ListenerDefinitionError) as refused:
        listener_class(callback, function)
    assert str(refused.value) == (
        f"Mine.{callback} is async, and callbacks are called, not awaited: make it a plain"
        " function, or keep it in a class of its own and wrap that in AsyncListenerAdapter"
    )


@pytest.mark.parametrize("wrap", [staticmethod, classmethod])
def test_a_misspelt_static_or_class_method_is_refused_as_a_plain_one_is(wrap: Callable[..., object]) -> None:
    with pytest.raises(ListenerDefinitionError, match=r"^Mine\.onModuleStart would never be called: "):
        listener_class("onModuleStart", wrap(coroutine_function))


@pytest.mark.parametrize("listener_first", [True, False])
def test_what_a_mixin_brings_is_refused_under_the_mixins_name(listener_first: bool) -> None:
    mixin = type("Mixin", (), {"on_module_start": coroutine_function})
    bases = (ExecutionListener, mixin) if listener_first else (mixin, ExecutionListener)
    with pytest.raises(ListenerDefinitionError, match=r"^Mixin\.on_module_start is async, "):
        types.new_class("Mine", bases)


def test_an_attribute_that_cannot_be_called_may_have_any_name() -> None:
    assert vars(listener_class("onModuleStart", "a note"))["onModuleStart"] == "a note"


def test_async_callbacks_pass_where_they_are_allowed_and_misspelt_ones_still_do_not() -> None:
    check_callbacks(type("Target", (), {"on_module_start": coroutine_function}), allow_async=True)
    with pytest.raises(ListenerDefinitionError, match=r"^Target\.onModuleStart would never be called"):
        check_callbacks(type("Target", (), {"onModuleStart": coroutine_function}), allow_async=True)


def test_a_definition_error_is_a_type_error() -> None:
    assert issubclass(ListenerDefinitionError, TypeError)


def test_a_subclass_passes_its_class_arguments_on() -> None:
    class Tagged:
        def __init_subclass__(cls, tag: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            cls.tag = tag

        tag: str

    class Mine(ExecutionListener, Tagged, tag="mine"):
        pass

    assert Mine.tag == "mine"
