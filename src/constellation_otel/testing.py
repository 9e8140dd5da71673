"""The test kit: a listener that records, a trace as text, and a check of listeners.

For the tests of whoever writes a listener or runs an engine; this package's own
tests use it too. It needs no test framework.
"""

from __future__ import annotations

import inspect
import json
import sys
import threading
from collections import Counter, defaultdict
from functools import partial
from math import inf, nan
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from msgspec import Struct
from opentelemetry import context as otel_context
from opentelemetry.trace import StatusCode

from constellation_otel._support.deadline import deadline_of, seconds_left
from constellation_otel._support.text import message_of
from constellation_otel.errors import RemoteError
from constellation_otel.events import EventListener
from constellation_otel.listener import ExecutionListener, ModuleContextProvider
from constellation_otel.traces import OUTCOME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from constellation_otel.events import Event
    from constellation_otel.traces import Span

__all__ = ["RecordingListener", "check_listener", "span_tree"]


class RecordingListener(EventListener):
    """Keeps every event, in the order in which the callbacks came.

    Safe to use from several threads. What it keeps is not bounded.

    Args:
        redact: Rewrites the message of each error before it is kept.
    """

    def __init__(self, redact: Callable[[str], str] | None = None) -> None:
        super().__init__(redact)
        self._arrived = threading.Condition()
        self._accepted = 0  # those that were forgotten included
        self._events: list[Event] = []

    @property
    def events(self) -> list[Event]:
        """The events so far; a copy."""
        with self._arrived:
            return list(self._events)

    def accept(self, event: Event) -> None:
        with self._arrived:
            self._events.append(event)
            self._accepted += 1
            self._arrived.notify_all()

    def wait_for(self, condition: int | Callable[[Sequence[Event]], bool], timeout: float = 10.0) -> list[Event]:
        """Waits for events.

        Args:
            condition: At least so many, or what must be true of those that have come.
            timeout: Seconds.

        Returns:
            The events that were there when the condition was met.

        Raises:
            AssertionError: It was not met in time; the message has the events that did come.
        """
        deadline = deadline_of(timeout)
        while True:
            with self._arrived:
                events, seen = list(self._events), self._accepted
            if len(events) >= condition if isinstance(condition, int) else condition(events):
                return events
            with self._arrived:
                if self._arrived.wait_for(partial(self._has_changed, seen), seconds_left(deadline)):
                    continue
                what = f"{condition} events" if isinstance(condition, int) else "the events to meet the condition"
                came = "".join(f"\n  {event!r}" for event in self._events)
                message = f"waited {timeout:g} s for {what}; {len(self._events)} came{':' if came else ''}{came}"
                raise AssertionError(message)

    def _has_changed(self, seen: int) -> bool:
        return self._accepted != seen

    def clear(self) -> None:
        """Forgets the events."""
        with self._arrived:
            self._events.clear()


def span_tree(spans: Iterable[Span]) -> str:
    """Draws traces as text that is the same in every run.

    A line has a span's name, its kind, its ``constellation.outcome`` where it has one,
    and its status where that is set; children are indented by two spaces. There are no
    ids and no times, and siblings are in the order of their names, then of their whole
    subtrees' text: where modules run in parallel, which starts first is chance. Traces
    are separated by an empty line.

    * Spans whose parent is not among ``spans`` stand under ``… (parent not here)``,
      siblings under one.
    * The same line twice for one span id is marked ``x2``: it was delivered twice.
    * Spans that are each other's ancestors stand under ``… (parents in a circle)``.

    Control characters and lone surrogates of a name are escaped.

    Args:
        spans: Of any number of traces, in any order.

    Returns:
        The text, without a newline at its end; empty without spans.
    """
    traces: defaultdict[int, dict[int, list[Span]]] = defaultdict(dict)
    for span in spans:
        traces[span.trace_id].setdefault(span.span_id, []).append(span)
    return "\n\n".join(sorted("\n".join(_trace_lines(nodes)) for nodes in traces.values()))


_ABSENT: Final = "… (parent not here)"
_CIRCLE: Final = "… (parents in a circle)"


def _trace_lines(nodes: dict[int, list[Span]]) -> list[str]:
    """The lines of one trace; a node is what was delivered under one span id."""
    roots: list[int] = []
    children: defaultdict[int, list[int]] = defaultdict(list)
    for span_id, copies in nodes.items():
        parent = copies[0].parent_span_id
        (roots if parent is None else children[parent]).append(span_id)
    blocks = _blocks(roots, nodes, children)
    for parent in [parent for parent in children if parent not in nodes]:
        blocks.append([_ABSENT, *_indented(_blocks(children.pop(parent), nodes, children))])
    while children:
        # whoever is left hangs on a circle, which is cut at the span of the least line
        top = min(_circle_above(next(iter(children)), nodes), key=lambda span_id: _node_lines(nodes[span_id]))
        blocks.append([_CIRCLE, *_indented(_blocks([top], nodes, children))])
    return [line for block in sorted(blocks) for line in block]


def _circle_above(span_id: int, nodes: dict[int, list[Span]]) -> list[int]:
    """The circle that a span's line of ancestors leads into."""
    path: list[int] = []
    while span_id not in path:
        path.append(span_id)
        # in a circle, everyone has a parent
        span_id = cast("int", nodes[span_id][0].parent_span_id)
    return path[path.index(span_id) :]


def _blocks(
    span_ids: list[int], nodes: dict[int, list[Span]], children: defaultdict[int, list[int]]
) -> list[list[str]]:
    """The lines of each span's subtree; takes the children that it has drawn from ``children``.

    Without recursion, since a trace may be deeper than Python's stack.
    """
    below: dict[int, list[int]] = {}
    order: list[int] = []
    left = list(span_ids)
    while left:
        span_id = left.pop()
        order.append(span_id)
        # in a circle, the span at which it was cut comes again
        below[span_id] = [child for child in children.pop(span_id, []) if child not in below and child not in span_ids]
        left.extend(below[span_id])
    drawn: dict[int, list[str]] = {}
    for span_id in reversed(order):
        subtrees = sorted(drawn.pop(child) for child in below[span_id])
        drawn[span_id] = [*_node_lines(nodes[span_id]), *_indented(subtrees)]
    return [drawn[span_id] for span_id in span_ids]


def _indented(blocks: list[list[str]]) -> list[str]:
    return [f"  {line}" for block in sorted(blocks) for line in block]


def _node_lines(copies: list[Span]) -> list[str]:
    counts = Counter(map(_line, copies))
    return [line if count == 1 else f"{line} x{count}" for line, count in sorted(counts.items())]


def _line(span: Span) -> str:
    parts = [_escaped(span.name), f"({span.kind.name.lower()})"]
    outcome = span.attributes.get(OUTCOME)
    if outcome is not None:
        parts.append(str(outcome))
    if span.status is not StatusCode.UNSET:
        parts.append(span.status.name)
    if span.status_description is not None:
        parts.append(json.dumps(_escaped(span.status_description, keep="\n\t"), ensure_ascii=False))
    return " ".join(parts)


def _escaped(text: str, keep: str = "") -> str:
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text
    )


def check_listener(make: Callable[[], ExecutionListener], timeout: float = 30.0) -> None:
    """Checks that a listener keeps the SPI's promises.

    Calls every callback, and ``module_context`` where the listener has it, with values
    that are odd and legal, in orders that no engine intends, and from eight threads at
    once. A callback may not raise, block, return an awaitable, or leave another
    OpenTelemetry context current; ``module_context`` has to return a context.

    Args:
        make: Makes a listener; called once for each part of the check. A listener that
            has a ``close`` method is closed at the end of its part: with two seconds as its
            timeout where it wants one, otherwise without arguments. What it could not
            deliver by then is no violation.
        timeout: Seconds that each part may take. It is for telling that a callback
            blocks, not for measuring how fast one is.

    Raises:
        AssertionError: The listener does not; the message has every violation.
    """
    violations = _Violations()
    interval = sys.getswitchinterval()
    try:
        # threads that take turns this often meet inside a callback
        sys.setswitchinterval(_SWITCH_INTERVAL)
        for what, part in (
            ("with odd values", _odd_values),
            ("in any order", _any_order),
            ("from eight threads at once", _eight_threads),
        ):
            progress = _Progress("make()")
            # a daemon, so that a callback that blocks for ever does not keep the process
            thread = threading.Thread(
                target=_run_part,
                args=(make, part, f" {what}", progress, violations),
                name="check-listener",
                daemon=True,
            )
            thread.start()
            thread.join(timeout)
            if thread.is_alive():
                violations.add(f"{progress.call} had not returned after {timeout:g} s", f" {what}")
    finally:
        sys.setswitchinterval(interval)
    violations.raise_if_any()


_THREADS: Final = 8
_ROUNDS: Final = 25
_SWITCH_INTERVAL: Final = 1e-5
_CLOSE_TIMEOUT: Final = 2.0
_MEGABYTE: Final = 1_000_000
_EXECUTION: Final = UUID("6f3a0b52-6c1e-4f0c-9d55-2f6b4f6d7a11")
_MODULE: Final = UUID("b1946ac9-2f4e-4a57-8f5e-6b1f4d0c9e22")


class _Violations:
    """What was found, each once, with where it was seen first and how often."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, list[str]] = {}

    def add(self, what: str, where: str) -> None:
        with self._lock:
            self._found.setdefault(what, []).append(where)

    def raise_if_any(self) -> None:
        with self._lock:
            lines = [
                f"  {what}{seen[0]}" + (f", and {len(seen) - 1} times more" if len(seen) > 1 else "")
                for what, seen in self._found.items()
            ]
        if lines:
            message = "\n".join(["the listener does not keep the SPI's promises:", *lines])
            raise AssertionError(message)


class _Progress:
    """What a part is doing, for when it hangs there."""

    def __init__(self, call: str) -> None:
        self.call = call


class _Call(Struct, frozen=True):
    """A callback to call."""

    name: str
    args: tuple[Any, ...]
    note: str = ""


def _run_part(
    make: Callable[[], ExecutionListener],
    part: Callable[[Callable[[_Call], None], bool], None],
    what: str,
    progress: _Progress,
    violations: _Violations,
) -> None:
    try:
        listener = make()
    except BaseException as error:  # noqa: BLE001 - reported, whatever it is
        violations.add(f"make() raised {_told(error)}", "")
        return
    if not isinstance(listener, ExecutionListener):
        given = f"the class {listener.__name__}" if isinstance(listener, type) else f"a {type(listener).__name__}"
        message = f"make() returned {given}, which is no ExecutionListener; derive the class from it and call it"
        violations.add(message, "")
        return

    def call(it: _Call) -> None:
        progress.call = it.name
        _call(listener, it, what, violations)

    part(call, isinstance(listener, ModuleContextProvider))
    close = getattr(listener, "close", None)
    if close is not None:
        progress.call = "close()"
        try:
            answer = close(*_arguments_of(close))
        except BaseException as error:  # noqa: BLE001 - reported, whatever it is
            violations.add(f"close() raised {_told(error)}", what)
        else:
            if _is_awaitable(answer):
                violations.add("close() returned an awaitable, which nobody awaits", what)


def _arguments_of(close: Callable[..., object]) -> tuple[float, ...]:
    """A timeout, where ``close`` does not do without."""
    try:
        inspect.signature(close).bind()
    except TypeError:
        return (_CLOSE_TIMEOUT,)
    return ()


def _is_awaitable(answer: object) -> bool:
    if inspect.iscoroutine(answer):
        # else it would warn that nobody awaited it
        answer.close()
    return inspect.isawaitable(answer)


def _call(listener: ExecutionListener, it: _Call, what: str, violations: _Violations) -> None:
    where = what + (f" ({it.note})" if it.note else "")
    before = otel_context.get_current()
    try:
        answer = getattr(listener, it.name)(*it.args)
    except BaseException as error:  # noqa: BLE001 - reported, whatever it is
        violations.add(f"{it.name} raised {_told(error)}", where)
        answer = None
    else:
        if it.name == "module_context" and not isinstance(answer, otel_context.Context):
            violations.add(f"module_context returned a {type(answer).__name__} and no context", where)
    if _is_awaitable(answer):
        violations.add(f"{it.name} returned an awaitable, which nobody awaits", where)
    if otel_context.get_current() != before:
        violations.add(f"{it.name} left another OpenTelemetry context current", where)
        otel_context.attach(before)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {message_of(error)[:200]!r}"


def _odd_values(call: Callable[[_Call], None], provides_context: bool) -> None:
    """Each callback with each odd value, the others being plain."""
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
    if provides_context:
        for module_id in (_MODULE, _EXECUTION, UUID(int=0)):
            call(_Call("module_context", (_EXECUTION, module_id, otel_context.Context())))


def _any_order(call: Callable[[_Call], None], provides_context: bool) -> None:
    """Backwards, every callback twice, ends without starts, and again after the end."""
    forth = list(_life(_EXECUTION, _MODULE, "dag", "module", 1.0, ValueError("boom"), ""))
    orders = {
        "backwards": forth[::-1],
        "each twice": [it for it in forth for _ in range(2)],
        "the whole execution again": forth,
        "of executions that never started": [
            _Call(it.name, (UUID(int=number), *it.args[1:])) for number, it in enumerate(forth, 1)
        ],
    }
    for note, calls in orders.items():
        for it in calls:
            call(_Call(it.name, it.args, note))
            if provides_context:
                module_context = (it.args[0], _MODULE, otel_context.get_current())
                call(_Call("module_context", module_context, note))


def _eight_threads(call: Callable[[_Call], None], provides_context: bool) -> None:
    """All threads over one execution, and each over one of its own; every round over modules of its own."""
    together = threading.Barrier(_THREADS)

    def work(number: int) -> None:
        own = UUID(int=number + 1)
        together.wait()
        for round_ in range(_ROUNDS):
            module_id = UUID(int=number * _ROUNDS + round_ + 1)
            for execution_id in (_EXECUTION, own):
                for it in _life(execution_id, module_id, "dag", "module", 1.0, ValueError("boom"), ""):
                    call(it)
                if provides_context:
                    call(_Call("module_context", (execution_id, module_id, otel_context.get_current())))

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
    """All six callbacks of one execution, with every end that there is."""
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
_ODD_DURATIONS: Final = (0, 0.0, -0.0, -1.0, 5e-324, 1e308, nan, inf, -inf, 10**30)


def _odd_errors() -> list[tuple[str, BaseException]]:
    circle = ValueError("a circle")
    circle.__cause__ = KeyError("the other half")
    circle.__cause__.__cause__ = circle
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
        ("cannot be told: str() of it raises", _UntellableError()),
        ("is a KeyboardInterrupt", KeyboardInterrupt()),
        ("is a SystemExit", SystemExit(3)),
        ("is a group", BaseExceptionGroup("several", [ValueError("one"), KeyboardInterrupt()])),
        ("came over a wire without anything", RemoteError(None)),
        ("is its own cause", circle),
        ("has 2000 causes", chain),
    ]


class _UntellableError(Exception):
    """An exception whose own code fails."""

    def __str__(self) -> str:
        message = "str() of this exception raises"
        raise RuntimeError(message)

    __repr__ = __str__
