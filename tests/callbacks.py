"""The SPI's six callbacks, with arguments for each, and a class that defines one of any name."""

from __future__ import annotations

import types
from typing import Any
from uuid import UUID

import pytest

from constellation_otel._support.spelling import CALLBACKS
from constellation_otel.listener import ExecutionListener

EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
MODULE = UUID("b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538")
BOOM = ValueError("boom")

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "on_execution_start": (EXECUTION, "pipeline"),
    "on_module_start": (EXECUTION, MODULE, "Trim"),
    "on_module_complete": (EXECUTION, MODULE, "Trim", 2.5),
    "on_module_failed": (EXECUTION, MODULE, "Trim", BOOM),
    "on_execution_complete": (EXECUTION, "pipeline", False, 15.25),
    "on_execution_cancelled": (EXECUTION, "pipeline"),
}

every_callback = pytest.mark.parametrize("callback", CALLBACKS)


def fire(listener: ExecutionListener, callback: str) -> None:
    getattr(listener, callback)(*ARGUMENTS[callback])


def listener_class(name: str, value: object = lambda self: None) -> type[ExecutionListener]:
    return types.new_class("Mine", (ExecutionListener,), exec_body=lambda body: body.update({name: value}))
