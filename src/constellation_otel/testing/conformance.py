"""The check of adapters: one scenario on the engine itself, whole traces, lengths included."""

from __future__ import annotations

import logging
import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context

from constellation_otel.errors import ReceiverError
from constellation_otel.events import EventListener
from constellation_otel.listener import ExecutionListener
from constellation_otel.testing.pipelines import CASES, ENDPOINT, PROCESS, SLEEP_S, TRIES, Pipeline, body_span
from constellation_otel.testing.span_trees import span_tree
from constellation_otel.testing.violations import Violations, described, run_in_time
from constellation_otel.traces import tree_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from constellation_otel.events import Event
    from constellation_otel.testing.violations import Progress
    from constellation_otel.traces import Span

__all__ = ["EVERY_ENGINE", "check_adapter"]

EVERY_ENGINE: Final = ("ok", "failure", "caller", "two-at-once", "raising-listener", "no-sdk", "lengths")
"""The cases that every engine can run."""


def check_adapter(
    run: Callable[[Pipeline, ExecutionListener], Mapping[str, object]],
    cases: Sequence[str] = EVERY_ENGINE,
    timeout: float = 60.0,
) -> None:
    """Checks that an adapter for an engine tells of executions as they are.

    Each case is run on the real engine, with an
    :class:`~constellation_otel.OtlpListener` that delivers to an endpoint in this process. Compared
    are what the run returns, the whole trace with the spans that the bodies open, and the lengths: a
    module's span holds what its body does, and an execution's span its modules'. The adapter must
    leave no context behind and log no warning.

    ===================  ==================================================================
    ``ok``               ``load``, ``clean``, and then ``count`` and ``shout``
    ``failure``          a node raises, and the one behind it does not run
    ``caller``           the run is part of the caller's trace
    ``two-at-once``      two threads run the pipeline at the same time
    ``raising-listener`` another listener raises from every callback
    ``no-sdk``           an OpenTelemetryListener where OpenTelemetry is not set up
    ``lengths``          a node takes 50 ms
    ``retried``          a node fails twice before it succeeds; for engines that try again
    ``recovered``        the same, and then another node fails for good
    ``cancelled``        a node is interrupted; for engines that tell of it
    ``mapped``           a node is run three times side by side
    ``nested``           a node is in a group that has a span of its own
    ``processes``        the pipeline of ``ok``, with bodies in other processes
    ===================  ==================================================================

    Args:
        run: Builds the pipeline on the engine, attaches the listener by the adapter, and runs it to its
            end. Returns the outputs of :attr:`Pipeline.outputs`, or raises what the engine raises.
        cases: Which cases to run.
        timeout: Seconds for each case.

    Raises:
        AssertionError: The adapter breaks a promise; the message has every violation.
        ValueError: There is no such case.
    """
    unknown = [case for case in cases if case not in CASES]
    if unknown:
        message = f"there is no case {unknown[0]!r}; there are {', '.join(CASES)}"
        raise ValueError(message)
    violations = Violations("the adapter does not tell of executions as they are")
    for case in cases:
        part = partial(_run_case, CASES[case], run, violations)
        run_in_time(part, f" in the case {case}", violations, timeout, f"check-adapter-{case}")
    violations.raise_if_any()


_TOLERANCE_NS: Final = 2_000_000
"""By how much the clocks of spans and durations may differ."""
_ARRIVE_S: Final = 10.0
_ATTEMPT: Final = "constellation.module.attempt"


class _Raising(EventListener):
    """Raises from every callback."""

    def accept(self, event: Event) -> None:
        message = f"the check's own listener takes no {type(event).__name__}"
        raise RuntimeError(message)


class _Warnings(logging.Handler):
    """Notes what this package and OpenTelemetry warn of."""

    def __init__(self, add: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._add = add

    def emit(self, record: logging.LogRecord) -> None:
        self._add(f"{record.name} logged {record.getMessage()!r}")


def _drop(_: logging.LogRecord) -> bool:
    return False


def _run_case(
    pipeline: Pipeline,
    run: Callable[[Pipeline, ExecutionListener], Mapping[str, object]],
    violations: Violations,
    progress: Progress,
) -> None:
    from constellation_otel.otel import OpenTelemetryListener, OtlpListener  # noqa: PLC0415 - the SDK, for this only
    from constellation_otel.receiver import Receiver  # noqa: PLC0415 - gRPC, for this only

    case = pipeline.case

    def add(what: str) -> None:
        violations.add(what, f" in the case {case}")

    warnings = _Warnings(add)
    loggers = [logging.getLogger(name) for name in ("constellation_otel", "opentelemetry")]
    TRIES.clear()
    with Receiver() as receiver:
        otlp = OtlpListener(receiver.http_endpoint, protocol="http/protobuf")
        sdk = OpenTelemetryListener()
        os.environ[ENDPOINT] = receiver.http_endpoint
        listener: ExecutionListener = sdk if case == "no-sdk" else otlp
        if case == "raising-listener":
            listener = ExecutionListener.composite(_Raising(), otlp)
        # what the composite says of it; an engine that sets logging up would take ``disabled`` back
        logging.getLogger(f"{ExecutionListener.__module__}.{_Raising.__name__}").addFilter(_drop)
        for logger in loggers:
            logger.addHandler(warnings)
        progress.call = "run"
        try:
            _run(pipeline, run, listener, add)
        finally:
            progress.call = "the listener's close"
            is_delivered = otlp.close(_ARRIVE_S) and sdk.close(_ARRIVE_S)
            for logger in loggers:
                logger.removeHandler(warnings)
            os.environ.pop(ENDPOINT, None)
        if not is_delivered:
            add("the listener has not delivered everything")
        if case != "no-sdk":
            _check_trace(pipeline, _awaited(receiver, len(pipeline.tree.replace("\n\n", "\n").splitlines())), add)


def _awaited(receiver: Any, expected: int) -> list[Span]:
    try:
        receiver.wait_for_spans(expected, _ARRIVE_S)
    except ReceiverError:
        # which ones are missing, the tree says
        return list(receiver.spans)
    return list(receiver.spans)


def _run(
    pipeline: Pipeline,
    run: Callable[[Pipeline, ExecutionListener], Mapping[str, object]],
    listener: ExecutionListener,
    add: Callable[[str], None],
) -> None:
    one = partial(_run_once, pipeline, run, listener, add)
    match pipeline.case:
        case "caller":
            with body_span("request"):
                one()
        case "two-at-once":
            threads = [threading.Thread(target=one, name=f"run-{number}", daemon=True) for number in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        case _:
            one()


def _run_once(
    pipeline: Pipeline,
    run: Callable[[Pipeline, ExecutionListener], Mapping[str, object]],
    listener: ExecutionListener,
    add: Callable[[str], None],
) -> None:
    before = otel_context.get_current()
    try:
        outputs = dict(run(pipeline, listener))
    except BaseException as error:  # noqa: BLE001 - judged here, whatever it is
        if pipeline.outputs is not None:
            add(f"run raised {described(error)}")
    else:
        if pipeline.outputs is None:
            add("run raised nothing, though a node did")
        elif outputs != pipeline.outputs:
            add(f"run returned {outputs!r}, not {pipeline.outputs!r}")
    if otel_context.get_current() != before:
        add("the adapter left another OpenTelemetry context current")


def _check_trace(pipeline: Pipeline, spans: Sequence[Span], add: Callable[[str], None]) -> None:
    drawn = span_tree(spans)
    if drawn != pipeline.tree:
        add(f"the trace is\n{drawn or '(empty)'}\n  and not\n{pipeline.tree}\n ")
        return
    for violation in _wrong_lengths(spans):
        add(violation)
    attempts = [
        span.attributes.get(_ATTEMPT, 1)
        for span in sorted(spans, key=lambda span: span.start_ns)
        if span.name == "flaky"
    ]
    if attempts != list(range(1, len(attempts) + 1)):
        add(f"{_ATTEMPT} of the attempts is {attempts}")
    if pipeline.case == "processes" and {span.attributes.get(PROCESS) for span in spans} <= {None, os.getpid()}:
        add("no body ran in another process")


def _wrong_lengths(spans: Sequence[Span]) -> Iterator[str]:
    tree = tree_of(spans)
    for parent_id, children in tree.children.items():
        (parent,) = tree.spans[parent_id]
        for child_id in children:
            (child,) = tree.spans[child_id]
            # a body's own span tells how long its module really took
            sticks_out = max(parent.start_ns - child.start_ns, child.end_ns - parent.end_ns)
            if sticks_out > _TOLERANCE_NS:
                yield f"{child.name} sticks {sticks_out / 1e6:.3f} ms out of {parent.name}"
    for span in spans:
        if span.name == "slow" and span.end_ns - span.start_ns < SLEEP_S * 1e9:
            yield f"slow took {SLEEP_S * 1e3:g} ms at least, and its span {(span.end_ns - span.start_ns) / 1e6:.3f} ms"
