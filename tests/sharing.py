"""A program whose execution several processes tell of: each module is told of by the process in which it runs.

    python tests/sharing.py pool|orphans fork|spawn otlp|sdk|kafka ENDPOINT [JOURNAL or TOPIC]

With ``pool`` it ends well; with ``orphans`` it waits to be killed, after which its children end their modules.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from uuid import UUID, uuid5

from opentelemetry import context as otel_context
from opentelemetry import trace

from constellation_otel import ExecutionListener, OpenTelemetryListener, OtlpListener

EXECUTION = UUID("11111111-1111-4111-8111-111111111111")
DAG = "squares"
PATIENCE = 30.0
"""Seconds."""

_flushes: list[Any] = []
"""What has to be flushed, the first one first, before a process may end."""
_listener: Any
_together: Any


def make_listener(kind: str, endpoint: str, more: str | None) -> ExecutionListener:
    """A listener of a process."""
    if kind == "otlp":
        listener: Any = OtlpListener(endpoint, protocol="http/protobuf", journal=more)
        _flushes[:] = [lambda: listener.flush(PATIENCE)]
        return listener  # type: ignore[no-any-return] # it is one
    if kind == "kafka":
        from constellation_otel.transports.kafka import KafkaListener  # noqa: PLC0415 - an extra

        listener = KafkaListener(endpoint, str(more))
        _flushes[:] = [lambda: listener.flush(PATIENCE)]
        return listener  # type: ignore[no-any-return] # likewise
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - takes a while
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    listener = OpenTelemetryListener(provider)
    _flushes[:] = [lambda: listener.flush(PATIENCE), provider.force_flush]
    return listener  # type: ignore[no-any-return] # likewise


def say(*words: object) -> None:
    """Writes a line at once."""
    sys.stdout.write(f"{' '.join(map(str, words))}\n")
    sys.stdout.flush()


def set_up(together: Any, *made_of: Any) -> None:
    """A worker's listener, where it is not the parent's own, and what the workers meet at."""
    global _listener, _together  # noqa: PLW0603 - a process has one of each
    _together = together
    if made_of:
        _listener = make_listener(*made_of)


def run_module(name: str, traceparent: str | None, *, joins: bool = True, waits_for: Any = None) -> int:
    """Runs a module's body and tells of it here; which process that is."""
    if joins:
        _listener.join(EXECUTION, DAG, traceparent)
    module_id = uuid5(EXECUTION, name)
    _listener.on_module_start(EXECUTION, module_id, name)
    token = otel_context.attach(_listener.module_context(EXECUTION, module_id, otel_context.get_current()))
    try:
        trace.get_current_span().set_attribute("pid", os.getpid())
        if waits_for is not None:
            waits_for()
    finally:
        otel_context.detach(token)
    _listener.on_module_complete(EXECUTION, module_id, name, 1.0)
    # a worker may be ended without notice
    assert all(flush() for flush in _flushes)
    return os.getpid()


def in_step(name: str, traceparent: str | None) -> int:
    """A module that runs while another one does, in another process."""
    return run_module(name, traceparent, waits_for=lambda: _together.wait(PATIENCE))


def orphan(name: str, traceparent: str | None, made_of: tuple[Any, ...]) -> None:
    """A child whose module goes on until its parent has been killed."""
    set_up(None, *made_of)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def outlive() -> None:
        say("running")
        parent.join(PATIENCE)
        assert not parent.is_alive()

    run_module(name, traceparent, waits_for=outlive)
    say("ended")


def main(scene: str, method: str, *made_of: str) -> None:
    processes: Any = multiprocessing.get_context(method)
    kind, endpoint, more = (*made_of, None)[:3]
    set_up(None, kind, endpoint, more)
    listener = _listener
    listener.on_execution_start(EXECUTION, DAG)
    run_module("load", None, joins=False)
    traceparent = listener.traceparent_of(EXECUTION)
    # the journal is the parent's; a topic is everybody's
    theirs: tuple[Any, ...] = (kind, endpoint, more if kind == "kafka" else None)
    # forked ones have the parent's listener; but for the SDK's exporter, whose connection would be everybody's
    given = () if method == "fork" and kind != "sdk" else theirs
    if scene == "orphans":
        for name in ("first", "second"):
            processes.Process(target=orphan, args=(name, traceparent, given)).start()
        threading.Event().wait()
    initargs = (processes.Barrier(2), *given)
    with ProcessPoolExecutor(2, mp_context=processes, initializer=set_up, initargs=initargs) as pool:
        told = list(pool.map(in_step, ["0", "1", "2", "3"], [traceparent] * 4))
    listener.on_execution_complete(EXECUTION, DAG, True, 5.0)
    assert all(flush() for flush in _flushes)
    counters = listener.counters
    say(os.getpid(), *told)
    say(counters.assembly.executions if counters.assembly else 0, counters.held)


if __name__ == "__main__":
    main(*sys.argv[1:])
