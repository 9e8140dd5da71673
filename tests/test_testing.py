"""The test kit, tried on listeners that keep the SPI's promises and on ones that do not."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, StatusCode

from constellation_otel.delivery import AsyncListenerAdapter
from constellation_otel.events import ExecutionCancelled, ExecutionStarted, ModuleFailed, ModuleStarted
from constellation_otel.listener import ExecutionListener, LoggingListener
from constellation_otel.otel import OpenTelemetryListener, OtlpListener
from constellation_otel.testing import RecordingListener, check_listener, span_tree
from constellation_otel.traces import OUTCOME, Span, tree_of
from constellation_otel.transports.jsonl import JsonlListener
from constellation_otel.transports.kafka import KafkaListener
from constellation_otel.transports.sql import SqlAuditListener
from support import DEADLINE, UNWATCHED, in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from random import Random

    from opentelemetry.context import Context

    from constellation_otel.events import Event

EXECUTION = UUID(int=1)
MODULE = UUID(int=2)


def span(
    span_id: int,
    parent: int | None,
    name: str,
    outcome: str | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    status: StatusCode = StatusCode.UNSET,
    description: str | None = None,
    trace_id: int = 1,
    start_ns: int = 0,
) -> Span:
    attributes = {} if outcome is None else {OUTCOME: outcome}
    return Span(trace_id, span_id, parent, "", 1, name, kind, start_ns, 9, dict(attributes), status, description)


def test_a_recording_listener_has_the_events_in_order() -> None:
    listener = RecordingListener()
    listener.on_execution_start(EXECUTION, "dag")
    listener.on_module_start(EXECUTION, MODULE, "Trim")
    listener.on_execution_cancelled(EXECUTION, "dag")
    started, module, cancelled = listener.events
    assert started == ExecutionStarted(EXECUTION, "dag", started.timestamp_ns)
    assert module == ModuleStarted(EXECUTION, MODULE, "Trim", module.timestamp_ns)
    assert cancelled == ExecutionCancelled(EXECUTION, "dag", cancelled.timestamp_ns)
    listener.clear()
    assert listener.events == []


def test_a_recording_listener_redacts_before_it_keeps() -> None:
    listener = RecordingListener(redact=lambda message: message.replace("hunter2", "***"))
    listener.on_module_failed(EXECUTION, MODULE, "Login", ValueError("password hunter2"))
    (failed,) = listener.events
    assert isinstance(failed, ModuleFailed)
    assert failed.error.message == "password ***"


def test_waiting_for_events_ends_when_they_arrived() -> None:
    listener = RecordingListener()
    with ThreadPoolExecutor(2) as threads:
        two = threads.submit(listener.wait_for, 2)
        cancelled = threads.submit(
            listener.wait_for, lambda events: any(isinstance(event, ExecutionCancelled) for event in events)
        )
        listener.on_execution_start(EXECUTION, "dag")
        listener.on_execution_cancelled(EXECUTION, "dag")
        assert two.result(timeout=10) == cancelled.result(timeout=10) == listener.events


def test_a_missed_deadline_shows_what_arrived() -> None:
    listener = RecordingListener()
    with pytest.raises(AssertionError, match=r"^waited 0 s for the events to meet the condition; 0 arrived$"):
        listener.wait_for(lambda events: False, timeout=0)
    listener.on_execution_start(EXECUTION, "dag")
    with pytest.raises(AssertionError, match=r"^waited 0\.01 s for 2 events; 1 arrived:\n  ExecutionStarted\(.*'dag'"):
        listener.wait_for(2, timeout=0.01)


def test_a_tree_shows_name_kind_outcome_and_status() -> None:
    spans = [
        span(4, 3, "GET", kind=SpanKind.CLIENT, start_ns=7),
        span(3, 1, "WordCount", "failure", status=StatusCode.ERROR, description="boom"),
        span(2, 1, "Trim", "success", start_ns=5),
        span(
            1,
            None,
            "my-pipeline",
            "failure",
            kind=SpanKind.SERVER,
            status=StatusCode.ERROR,
            description="WordCount failed: boom",
        ),
        span(5, 4, "checked", status=StatusCode.OK),
        span(6, 4, "broken", status=StatusCode.ERROR),
    ]
    expected = """\
my-pipeline (server) failure ERROR "WordCount failed: boom"
  Trim (internal) success
  WordCount (internal) failure ERROR "boom"
    GET (client)
      broken (internal) ERROR
      checked (internal) OK"""
    assert span_tree(spans) == expected
    assert span_tree(reversed(spans)) == expected


def test_a_tree_of_nothing_is_empty() -> None:
    assert span_tree([]) == ""


def test_siblings_of_one_name_are_in_the_order_of_their_subtrees() -> None:
    """Whichever started first."""
    expected = """\
dag (internal)
  m (internal) failure
  m (internal) success
    a (internal)
  m (internal) success
    b (internal)"""
    for first, second in ((0, 1), (1, 0)):
        spans = [
            span(1, None, "dag"),
            span(2, 1, "m", "success", start_ns=first),
            span(3, 1, "m", "success", start_ns=second),
            span(4, 1, "m", "failure", start_ns=5),
            span(5, 2, "a"),
            span(6, 3, "b"),
        ]
        assert span_tree(spans) == expected


def test_traces_and_roots_are_told_apart() -> None:
    spans = [
        span(1, None, "second", trace_id=1),
        span(2, None, "another root", trace_id=1),
        span(1, None, "first", trace_id=2),
        span(2, 1, "child", trace_id=2),
    ]
    assert span_tree(spans) == "another root (internal)\nsecond (internal)\n\nfirst (internal)\n  child (internal)"


def test_siblings_whose_parent_is_missing_stand_together() -> None:
    spans = [
        span(2, 9, "dag", "success"),
        span(3, 2, "m"),
        span(4, 9, "after"),
        span(5, 8, "other"),
        span(6, None, "root"),
    ]
    expected = """\
root (internal)
… (parent missing)
  after (internal)
  dag (internal) success
    m (internal)
… (parent missing)
  other (internal)"""
    assert span_tree(spans) == expected


def test_a_span_that_was_delivered_twice_is_one_node_that_says_so() -> None:
    spans = [
        span(1, None, "dag"),
        span(1, None, "dag"),
        span(2, 1, "m", "unknown"),
        span(2, 1, "m", "success"),
        span(3, 2, "below"),
    ]
    assert span_tree(spans) == (
        "dag (internal) x2\n  m (internal) success\n  m (internal) unknown\n    below (internal)"
    )


def test_spans_that_are_each_others_ancestors_are_cut_into_a_tree() -> None:
    spans = [span(4, 3, "hangs on it"), span(1, 3, "b"), span(2, 1, "a"), span(3, 2, "c"), span(5, 5, "itself")]
    expected = """\
… (parents form a cycle)
  a (internal)
    c (internal)
      b (internal)
      hangs on it (internal)
… (parents form a cycle)
  itself (internal)"""
    assert span_tree(spans) == expected
    assert span_tree(reversed(spans)) == expected


@given(st.lists(st.tuples(st.integers(1, 6), st.none() | st.integers(1, 8))), st.randoms())
def test_any_spans_are_a_tree_with_each_id_once(ids: list[tuple[int, int | None]], random: Random) -> None:
    """Parents come before their children; the text is the same in any order of the spans."""
    spans = [span(span_id, parent, f"{span_id} under {parent}") for span_id, parent in dict(ids).items()]
    tree = tree_of([*spans, *spans])
    order = list(tree.walk([*tree.roots, *(it for siblings in tree.orphans.values() for it in siblings), *tree.cycles]))
    assert sorted(order) == sorted(span.span_id for span in spans)
    assert all(order.index(parent) < order.index(child) for parent in tree.children for child in tree.children[parent])
    assert all(copies == [copies[0]] * 2 for copies in tree.spans.values())
    shuffled = random.sample(spans, len(spans))
    assert span_tree(shuffled) == span_tree(spans)
    assert len([line for line in span_tree(spans).splitlines() if "…" not in line]) == len(spans)


def test_what_would_disturb_the_text_is_escaped() -> None:
    spans = [span(1, None, "a\nb\ud800\x1b[31m é", status=StatusCode.ERROR, description='say "é"\n\tand\x1b')]
    assert span_tree(spans) == 'a\\nb\\ud800\\x1b[31m é (internal) ERROR "say \\"é\\"\\n\\tand\\\\x1b"'


@UNWATCHED
def test_a_trace_deeper_than_pythons_stack_is_drawn() -> None:
    tree = span_tree([span(number, number - 1 or None, "s") for number in range(1, 2_001)])
    assert tree.splitlines()[-1] == "  " * 1_999 + "s (internal)"


@UNWATCHED
def test_listeners_that_keep_the_promises_pass() -> None:
    class Closing(RecordingListener):
        def close(self) -> None:
            closed.append(self)

    class Provides(RecordingListener):
        def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
            return otel_context.set_value("module", module_id, context)

    closed: list[Closing] = []
    check_listener(Closing)
    assert len(closed) == 3
    check_listener(Provides)
    check_listener(LoggingListener)
    check_listener(lambda: ExecutionListener.composite(Provides(), LoggingListener()))
    check_listener(lambda: ExecutionListener.noop)


NOWHERE = "127.0.0.1:1"
READY: dict[str, Callable[[], ExecutionListener]] = {
    "OpenTelemetryListener": lambda: OpenTelemetryListener(TracerProvider(shutdown_on_exit=False)),
    "OtlpListener over gRPC": lambda: OtlpListener(f"http://{NOWHERE}"),
    "OtlpListener over HTTP": lambda: OtlpListener(f"http://{NOWHERE}", protocol="http/protobuf"),
    "KafkaListener": lambda: KafkaListener(NOWHERE),
    "AsyncListenerAdapter": lambda: AsyncListenerAdapter(ExecutionListener.noop),
}
WITH_JOURNAL: dict[str, Callable[[Path, Any], ExecutionListener]] = {
    "JsonlListener": lambda folder, journal: JsonlListener(folder / "events.jsonl", journal=journal),
    "SqlAuditListener": lambda folder, journal: SqlAuditListener(f"sqlite:///{folder}/audit.db", journal=journal),
}


@UNWATCHED
@pytest.mark.parametrize("name", READY)
def test_our_own_listeners_keep_the_promises_without_an_endpoint(name: str) -> None:
    check_listener(READY[name], close_timeout=0.1)


@UNWATCHED
@pytest.mark.parametrize("has_journal", [False, True])
@pytest.mark.parametrize("name", WITH_JOURNAL)
def test_our_own_listeners_keep_the_promises_with_a_journal(name: str, has_journal: bool, tmp_path: Path) -> None:
    """Or without one."""
    journal = str(tmp_path / "journal.db") if has_journal else None
    # all parts share the journal, which a close without time may still be busy with
    check_listener(lambda: WITH_JOURNAL[name](tmp_path, journal), close_timeout=DEADLINE)


def test_a_close_that_wants_a_timeout_gets_one() -> None:
    class Closing(ExecutionListener):
        def close(self, timeout: float) -> None:
            timeouts.append(timeout)

    timeouts: list[float] = []
    check_listener(Closing)
    assert timeouts == [2.0] * 3


def test_a_listener_that_is_not_safe_for_threads_is_reported() -> None:
    class Keeps(ExecutionListener):
        def __init__(self) -> None:
            self.names: dict[UUID, str] = {}

        def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
            self.names[module_id] = module_name
            for _ in self.names:
                time.sleep(0)

    message = "on_module_start raised RuntimeError: 'dictionary changed size during iteration' from eight threads"
    interval = sys.getswitchinterval()
    with pytest.raises(AssertionError, match=message):
        check_listener(Keeps)
    assert sys.getswitchinterval() == interval


def test_every_callback_of_the_spi_is_called() -> None:
    called: set[str] = set()

    class Notes(ExecutionListener):
        def __getattribute__(self, name: str) -> Any:
            called.add(name)
            return super().__getattribute__(name)

    check_listener(Notes)
    assert {name for name in vars(ExecutionListener) if name.startswith("on_")} <= called


def test_what_a_callback_raises_is_reported_once() -> None:
    class Raises(ExecutionListener):
        def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> None:
            module_name.encode()

        def on_module_complete(self, execution_id: UUID, module_id: UUID, module_name: str, duration_ms: float) -> None:
            if duration_ms == float("inf"):
                raise SystemExit(3)

        def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
            str(error)
            if isinstance(error, KeyboardInterrupt):
                raise error

    with pytest.raises(AssertionError) as violations:
        check_listener(Raises)
    assert str(violations.value).splitlines() == [
        "the listener does not keep the SPI's promises:",
        (
            "  on_module_start raised UnicodeEncodeError: \"'utf-8' codec can't encode character '\\\\ud800'"
            ' in position 0: surrogates not allowed" with odd values (the names are a lone surrogate)'
        ),
        "  on_module_complete raised SystemExit: '3' with odd values (the duration is inf ms)",
        (
            "  on_module_failed raised RuntimeError: 'str() of this exception raises'"
            " with odd values (the error cannot be printed: str() of it raises)"
        ),
        "  on_module_failed raised KeyboardInterrupt: '' with odd values (the error is a KeyboardInterrupt)",
    ]


def test_an_exception_that_cannot_be_printed_is_reported() -> None:
    class PassesOn(ExecutionListener):
        def on_module_failed(self, execution_id: UUID, module_id: UUID, module_name: str, error: BaseException) -> None:
            if type(error).__name__ == "_UnprintableError":
                raise error

    with pytest.raises(AssertionError, match=r"\n  on_module_failed raised _UnprintableError: '<str\(\) of"):
        check_listener(PassesOn)


def test_a_callback_that_blocks_is_reported_after_the_deadline() -> None:
    release = threading.Event()

    class Blocks(ExecutionListener):
        def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
            release.wait(60)

    try:
        with pytest.raises(AssertionError) as violations:
            check_listener(Blocks, timeout=0.3)
    finally:
        release.set()
    assert str(violations.value).splitlines() == [
        "the listener does not keep the SPI's promises:",
        "  on_execution_cancelled had not returned after 0.3 s with odd values, and 2 more like it",
    ]
    for thread in threading.enumerate():
        if thread.name.startswith("check-listener"):
            thread.join(10)


def test_awaitables_and_contexts_that_are_left_are_reported() -> None:
    future: asyncio.Future[None] = asyncio.Future(loop=asyncio.new_event_loop())

    class Wrong(ExecutionListener):
        def on_execution_start(self, execution_id: UUID, dag_name: str) -> Any:
            return asyncio.sleep(0)

        def on_module_start(self, execution_id: UUID, module_id: UUID, module_name: str) -> Any:
            return future

        def on_execution_cancelled(self, execution_id: UUID, dag_name: str) -> None:
            otel_context.attach(otel_context.set_value("left", "behind"))

        def module_context(self, execution_id: UUID, module_id: UUID, context: Context) -> Context:
            return None  # type: ignore[return-value] # that is the violation

    with pytest.raises(AssertionError) as violations:
        check_listener(Wrong)
    future.get_loop().close()
    said = str(violations.value)
    assert "\n  on_execution_start returned an awaitable, which is never awaited with odd values (both ids are " in said
    assert "\n  on_module_start returned an awaitable, which is never awaited with odd values (both ids are " in said
    assert (
        "\n  on_execution_cancelled left another OpenTelemetry context current with odd values (both ids are " in said
    )
    assert "\n  module_context returned a NoneType, not a Context with odd values, and " in said
    assert len(said.splitlines()) == 5


def test_what_it_has_besides_the_callbacks_is_called_and_reported() -> None:
    class Wrong(ExecutionListener):
        def module_details(self, execution_id: UUID, module_id: UUID, **details: Any) -> None:
            if details.get("attempt") == 0:
                raise ValueError("an attempt of 0")

        def join(self, execution_id: UUID, dag_name: str, traceparent: str | None = None) -> None:
            if not traceparent:
                raise ValueError("no traceparent")

        def traceparent_of(self, execution_id: UUID) -> str | None:
            return 5  # type: ignore[return-value] # that is the violation

    with pytest.raises(AssertionError) as violations:
        check_listener(Wrong)
    said = str(violations.value)
    assert "\n  module_details raised ValueError: 'an attempt of 0' with odd values (the details have an" in said
    assert "\n  join raised ValueError: 'no traceparent' with odd values (the traceparent is missing), and" in said
    assert "\n  traceparent_of returned a int, not a header's value or None with odd values, and " in said
    assert len(said.splitlines()) == 4


def test_a_listener_that_cannot_be_made_or_closed_is_reported() -> None:
    class Stuck(ExecutionListener):
        def close(self) -> None:
            raise OSError("no space left")

    def make() -> ExecutionListener:
        raise ValueError("no url")

    with pytest.raises(
        AssertionError, match=r"\n  close\(\) raised OSError: 'no space left' with odd values, and 2 more like it"
    ):
        check_listener(Stuck)
    with pytest.raises(AssertionError, match=r"\n  make\(\) raised ValueError: 'no url', and 2 more like it$"):
        check_listener(make)
    given = {"a int": lambda: 3, "the class Stuck": lambda: Stuck}
    for what, wrong in given.items():
        message = (
            rf"\n  make\(\) returned {what}, which is not an ExecutionListener; derive the class from it and call it,"
        )
        with pytest.raises(AssertionError, match=message):
            check_listener(wrong)  # type: ignore[arg-type] # that is the violation


def test_a_close_that_has_to_be_awaited_is_reported() -> None:
    class Closing(ExecutionListener):
        async def close(self) -> None:
            """Never gets here."""

    with pytest.raises(AssertionError, match=r"\n  close\(\) returned an awaitable, which is never awaited with odd"):
        check_listener(Closing)


def test_a_condition_is_called_without_a_lock() -> None:
    """And again for what arrives after a clearing."""
    recorder = RecordingListener()
    seen: list[int] = []

    def met(events: Sequence[Event]) -> bool:
        seen.append(len(events))
        if len(seen) == 1:
            # would wait for this one's lock
            in_threads(1, lambda: recorder.on_execution_start(uuid4(), "d"), 5.0)
            recorder.clear()
        return len(seen) == 2

    recorder.wait_for(met)
    assert seen == [0, 0]
