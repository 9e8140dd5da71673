"""What an adapter's node costs beside the engine alone: a chain of Hamilton's nodes, CPU time of the caller's thread.

Hamilton is in an environment of its own, in which this file is run as a program.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["line"]

_ROOT: Final = Path(__file__).parent.parent
_NODES: Final = 100
_EXECUTIONS: Final = 20
_ROUNDS: Final = 11


def line() -> str:
    """What a node costs, or how to get what measures it."""
    where = [sys.executable, str(_ROOT / "tests/engines/run"), "--where", "hamilton"]
    python = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603 - our own words
    if not python:
        return "adapters: Hamilton is not there; `make adapters` gets it"
    measured = subprocess.run(  # noqa: S603 - our own words
        [python, __file__],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT / "src")},
    )
    alone, adapter, listener = json.loads(measured.stdout)
    return (
        f"adapters: a node of Hamilton {alone:.1f} us; the adapter adds {adapter - alone:.1f} us,"
        f" with `OtlpListener` {listener - alone:.1f} us (the caller's thread, a chain of {_NODES} nodes)"
    )


def _chain() -> ModuleType:
    """A module of functions, each of which takes what the one before returns."""
    module = ModuleType("chain")
    lines = ["def node_0() -> int:\n    return 0"]
    lines += [f"def node_{n}(node_{n - 1}: int) -> int:\n    return node_{n - 1} + 1" for n in range(1, _NODES)]
    exec("\n".join(lines), vars(module))  # noqa: S102 - our own words
    sys.modules[module.__name__] = module
    return module


def _node_us(driver: Any) -> float:
    last = [f"node_{_NODES - 1}"]
    start = time.thread_time()
    for _ in range(_EXECUTIONS):
        driver.execute(last)
    return (time.thread_time() - start) / (_EXECUTIONS * _NODES) * 1e6


def _measure() -> Sequence[float]:
    """Microseconds a node: of the engine alone, with an adapter for no listener, and for a real one."""
    from hamilton.driver import Builder  # noqa: PLC0415 - it is not where the bench is

    from constellation_otel import ExecutionListener, OtlpListener  # noqa: PLC0415 - where it is run as a program
    from constellation_otel.adapters.hamilton import adapters  # noqa: PLC0415 - it needs Hamilton
    from constellation_otel.receiver import Receiver  # noqa: PLC0415 - where it is run as a program

    chain = _chain()
    with Receiver() as receiver:
        listener = OtlpListener(receiver.grpc_endpoint)
        sides: list[Sequence[Any]] = [[], adapters(ExecutionListener.noop, "chain"), adapters(listener, "chain")]
        drivers = [Builder().with_modules(chain).with_adapters(*side).build() for side in sides]
        rounds = []
        for _ in range(_ROUNDS + 1):
            took = []
            for driver in drivers:
                gc.collect()
                took.append(_node_us(driver))
                listener.flush(60.0)
            rounds.append(took)
        listener.close(10.0)
    return [median(column) for column in zip(*rounds[1:], strict=True)]


if __name__ == "__main__":
    print(json.dumps(_measure()))
