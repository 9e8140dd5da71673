"""What an event costs that is replayed from JSON lines to OTLP over HTTP.

On one side ``constellation-otel replay``; on the other the bridge of ``sdk_bridge``, which
a user would write with the SDK's spans. Each runs in a process of its own, whose CPU
time is what the system says of it when it has ended. A file with one execution only
says what starting costs, which is taken off.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from bench.report import Figure, Row
from constellation_otel import ExecutionCompleted, ExecutionStarted, ModuleCompleted, ModuleStarted
from constellation_otel.events import encode_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.endpoint import Endpoint
    from constellation_otel import Event

__all__ = ["ROW"]

_MODULES: Final = 10
"""Of an execution."""
_EVENTS_EACH: Final = 2 * _MODULES + 2
_EXECUTIONS: Final = 4_500
_ROUNDS: Final = 5
_BEGAN_NS: Final = 1_700_000_000_000_000_000
_MS: Final = 1_000_000


def _events(start_ns: int) -> Iterator[Event]:
    """An execution of ten modules of 2 ms, one after the other."""
    execution_id = uuid4()
    yield ExecutionStarted(execution_id, "my-pipeline", start_ns)
    now_ns = start_ns
    for number in range(_MODULES):
        module_id, name = uuid4(), f"module-{number}"
        yield ModuleStarted(execution_id, module_id, name, now_ns)
        now_ns += 2 * _MS
        yield ModuleCompleted(execution_id, module_id, name, 2.0, now_ns)
    yield ExecutionCompleted(execution_id, "my-pipeline", True, (now_ns - start_ns) / _MS, now_ns)


def _write(path: Path, executions: int) -> None:
    with path.open("wb") as file:
        for number in range(executions):
            file.writelines(encode_json(event) + b"\n" for event in _events(_BEGAN_NS + 25 * _MS * number))


def _cpu_s(*words: str) -> float:
    """Seconds of CPU time of a Python process, all of its threads."""
    with subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:  # noqa: S603 - our own words
        assert process.stderr is not None  # noqa: S101 - it is a pipe
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        message = f"{words[0]} ended with {process.returncode}: {said.decode()}"
        raise RuntimeError(message)
    return usage.ru_utime + usage.ru_stime


def _ours_s(path: Path, endpoint: Endpoint) -> float:
    url = endpoint.http_url.replace("http://", "otlp+http://")
    return _cpu_s("constellation_otel", "replay", f"jsonl:{path}", "--to", url)


def _sdk_s(path: Path, endpoint: Endpoint) -> float:
    return _cpu_s("bench.sdk_bridge", str(path), endpoint.http_url)


def _measure(endpoint: Endpoint) -> Sequence[Figure]:
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.jsonl", Path(folder) / "large.jsonl"
        _write(small, 1)
        _write(large, _EXECUTIONS)
        for _ in range(_ROUNDS):
            took = []
            for path, executions in ((small, 1), (large, _EXECUTIONS)):
                for replay in (_ours_s, _sdk_s):
                    took.append(replay(path, endpoint))
                    endpoint.check(spans=executions * (_MODULES + 1))
            rounds.append(took)
    ours_start, sdk_start, ours_all, sdk_all = (median(column) for column in zip(*rounds, strict=True))
    events = (_EXECUTIONS - 1) * _EVENTS_EACH
    ours, sdk = ((took - start) / events * 1e6 for took, start in ((ours_all, ours_start), (sdk_all, sdk_start)))
    return [
        Figure(
            name="replay JSON lines to OTLP/HTTP, an event",
            ours=f"{ours:.1f} us",
            beside=f"{sdk:.1f} us",
            value=ours / sdk,
            unit="1/n",
            required=1 / 5,
            aim=1 / 8,
            note=f"taken off for starting: {ours_start:.2f} s of ours, {sdk_start:.2f} s beside it",
        )
    ]


ROW: Final = Row(
    "replay",
    f"CPU time of `constellation-otel replay` from a file of {_EXECUTIONS * _EVENTS_EACH:,} events to OTLP over HTTP,"
    " beside that of a bridge as one writes it with the SDK's spans (`bench/sdk_bridge.py`); from both is taken off"
    " what the same takes with a single execution.",
    _measure,
)
