"""Processes in which something is measured, so that no row meets what another has left behind."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from multiprocessing.connection import Connection

__all__ = ["NO_METRICS", "isolated"]

T = TypeVar("T")

NO_METRICS: Final[Mapping[str, str]] = {"OTEL_METRICS_EXPORTER": "none"}
"""The environment in which OtlpListener sends spans only."""
_TIMEOUT: Final = 300.0
"""Seconds that one value may take."""


@contextmanager
def isolated(
    measure: Callable[..., Iterator[T]], *args: Any, environment: Mapping[str, str] | None = None
) -> Iterator[Iterator[T]]:
    """Runs a generator in a process of its own.

    It goes on when its next value is asked for, so that several can be interleaved.

    Args:
        measure: A function of a module.
        *args: What it is called with.
        environment: Variables that are set in that process.

    Yields:
        Its values, one by one.
    """
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_run, args=(theirs, measure, args), daemon=True)
    before = dict(os.environ)
    os.environ.update(environment or {})
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    theirs.close()
    try:
        yield _values(ours, measure)
    finally:
        process.kill()
        process.join()
        ours.close()


def _values(connection: Connection, measure: Callable[..., Iterator[T]]) -> Iterator[T]:
    while True:
        connection.send(None)
        if not connection.poll(_TIMEOUT):
            message = f"{measure.__module__} has measured nothing for {_TIMEOUT:.0f} s"
            raise RuntimeError(message)
        kind, value = connection.recv()
        if kind == "end":
            return
        if kind == "error":
            message = f"{measure.__module__} failed in a process of its own:\n{value}"
            raise RuntimeError(message)
        yield value


def _run(connection: Connection, measure: Callable[..., Iterator[Any]], args: tuple[Any, ...]) -> None:
    try:
        connection.recv()
        for value in measure(*args):
            connection.send(("value", value))
            connection.recv()
        connection.send(("end", None))
        # to be killed: at its own end a listener would deliver what it holds, into what is measured next
        connection.recv()
    except EOFError:
        # whoever asked has gone
        return
    except Exception:  # noqa: BLE001 - it is raised by who asked
        connection.send(("error", traceback.format_exc()))
