"""What a defect costs where spans are made: one record, or one span, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from msgspec.structs import astuple, replace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from constellation_otel.delivery import Position, Watermark
from constellation_otel.delivery.transform import Outbox
from constellation_otel.events import ExecutionCompleted, ExecutionStarted, ModuleCompleted
from constellation_otel.traces import Assembler, Sampling, decide
from constellation_otel.traces.rendering import Rendering
from deliveries import MS, T0, execution
from sender_parts import added, assembly, batch, names, raising, safe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.context import Context

    from constellation_otel.events import Event
    from constellation_otel.traces import Decision, Execution, Reason, Span


def choosy(*bad: type[Event], after: bool = False) -> Any:
    """An assembler that raises for events of some types: before it takes them in, or after."""

    return raising(lambda event, _: isinstance(event, bad), after=after)


def test_an_event_for_which_the_assembler_raises_costs_itself() -> None:
    transform = assembly(choosy(ModuleCompleted))
    events = execution(1)
    out = added(transform, batch(events, "a"))
    ((event, origin, offset, error),) = out.faulty
    assert (event, origin, offset, type(error)) == (events[2], "a", 2, LookupError)
    assert names(out) == ["trim", "dag-1"]
    assert astuple(out.receipts[0]) == ("a", 3, 3, [0, 1, 3], None, 2, True, 0, False, None)
    assert (transform.open_records, transform.open_executions) == (0, 0)


@pytest.mark.parametrize("after", [True, False])
def test_an_event_that_nothing_is_known_of_leaves_nothing_behind(after: bool) -> None:
    transform = assembly(choosy(ExecutionStarted, after=after), tracks=False)
    out = added(transform, batch(execution(1)[:1]))
    assert len(out.faulty) == 1
    assert (transform.open_records, transform.open_executions) == (0, 0)
    assert [receipt.count for receipt in out.settled] == [0] * after


def test_the_position_of_a_faulty_event_is_that_of_its_own_part() -> None:
    """And not another record's, where the execution is in two parts."""
    transform = assembly(choosy(ModuleCompleted, after=True))
    start, module, end, whole = execution(1)
    out = added(transform, batch([start], "a"), batch([module], "b"), batch([end], "a", first=1))
    added(transform, batch([end], "c"), batch([whole], "a", first=2), out=out)
    assert [(origin, offset) for _, origin, offset, _ in out.faulty] == [("a", 1), ("c", 0)]
    assert out.receipts[0].positions() == [Position("a", 0), Position("a", 2), Position("b", 0)]


def test_an_execution_that_the_assembler_has_lost_is_rejected() -> None:
    """It was closed before the assembler raised: nothing will ever be made of its records."""
    transform = assembly(choosy(ExecutionCompleted, after=True))
    out = added(transform, batch(execution(1)), batch(execution(2)[:1], first=4))
    assert [(offset, type(error)) for _, _, offset, error in out.faulty] == [(3, LookupError)]
    (receipt,) = out.settled
    assert astuple(receipt) == (None, 2, 3, [0, 1, 2], None, 1, True, 3, False, None)
    assert (transform.open_records, transform.open_executions) == (1, 1)


class Unfinished(Assembler):
    """Raises for one execution that it is to finish."""

    def emit(self, execution: Execution, reason: Reason | None) -> list[Span]:
        if execution.key == 2:
            raise ZeroDivisionError
        return super().emit(execution, reason)


def test_an_execution_that_cannot_be_finished_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    transform = assembly(Unfinished)
    out = added(transform, batch([execution(1)[0], *execution(2)[:3], execution(3)[0]]))
    transform.finish(out, abandon=True)
    assert names(out) == ["trim", "dag-1", "dag-3"]
    (receipt,) = out.settled
    # its module's span is on its way
    assert astuple(receipt) == (None, 3, 3, [1, 2, 3], None, 1, True, 3, False, None)
    assert (transform.open_executions, transform.open_records) == (0, 0)
    assert caplog.messages == [f"no spans can be made of execution {UUID(int=2)}, and it is left out"]
    assert caplog.records[0].exc_info is not None


@pytest.mark.parametrize("way", ["time", "room", "restart"])
def test_an_execution_of_which_no_spans_can_be_made_costs_no_other(
    way: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever makes them due."""
    spans_of = Rendering.module_spans

    def module_spans(self: Rendering, execution: Execution, modules: Any, **options: bool) -> list[Span]:
        if execution.key == 2:
            raise ZeroDivisionError
        return spans_of(self, execution, modules, **options)

    monkeypatch.setattr(Rendering, "module_spans", module_spans)
    transform = assembly(settle=0 if way == "restart" else 1e-9, watermark=Watermark() if way == "time" else None)
    out = added(transform, batch([*execution(1)[:2], *execution(2)[:2], *execution(3)[:2]]))
    if way == "time":
        ended = [event for number in (1, 2, 3) for event in execution(number)[2:]]
        later = [replace(event, timestamp_ns=T0 + 60_000 * MS) for event in execution(4)] * 40
        added(transform, batch([*ended, *later], first=6), out=out)
    elif way == "room":
        while transform.make_room(out):
            pass
    else:
        transform.restart(Position(None, 9), out)
    assert sorted(set(names(out)) - {"dag-4"}) == ["dag-1", "dag-3", "trim"]
    if way != "time":
        assert (transform.open_executions, transform.open_records) == (0, 0)
    assert [receipt.offsets for receipt in out.settled if receipt.rejected] == [
        [2, 3, *([8, 9] if way == "time" else [])]
    ]
    assert caplog.messages == [f"no spans can be made of execution {UUID(int=2)}, and it is left out"]


@pytest.mark.parametrize(("bad", "sent"), [("trim", ["dag-1", "dag-2"]), ("dag-2", ["dag-1", "trim"])])
@pytest.mark.parametrize("is_finished", [True, False])
def test_a_span_that_cannot_be_made_an_item_costs_no_other(
    bad: str, sent: list[str], is_finished: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def as_item(span: Span) -> Span:
        if span.name == bad:
            raise ZeroDivisionError
        return span

    transform = assembly(as_item=as_item)
    last = 2 if is_finished else 4
    out = added(transform, batch([execution(1)[0], execution(1)[3], *execution(2)[:last]]))
    transform.finish(out, abandon=True)
    assert names(out) == sent
    receipt = out.receipts[-1]
    assert (receipt.rejected, receipt.pending, receipt.is_complete, receipt.count) == (1, 1, True, last)
    assert transform.open_records == 0
    assert caplog.messages == [f"a span of execution {UUID(int=2)} cannot be sent, and is left out"]
    assert caplog.records[0].exc_info is not None


def test_spans_that_raise_together_only_are_all_sent_and_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    transform = assembly(as_item=lambda span: span)
    as_items = transform._as_items

    def alone(spans: Sequence[Span]) -> Sequence[Any]:
        if len(spans) > 1:
            raise ZeroDivisionError
        return as_items(spans)

    transform._as_items = alone
    start, *_, end = execution(1)
    modules = [replace(execution(1)[1], module_id=UUID(int=number)) for number in (1, 2)]
    out = added(transform, batch([start, *modules, end]))
    assert (names(out), out.receipts[0].rejected) == (["trim", "trim", "dag-1"], 0)
    assert caplog.messages == [
        f"spans of execution {UUID(int=1)} were made ready one by one, which failed for all together"
    ]
    assert caplog.records[0].exc_info is not None


class Observer:
    """Notes the spans that it sees, and whether they are sampled; raises for some."""

    with_events = True

    def __init__(self, *bad: str) -> None:
        self.seen: list[tuple[str, bool]] = []
        self.bad = bad

    def observe(self, span: Span, decision: Decision) -> None:
        self.seen.append((span.name, bool(decision.trace_flags)))
        if span.name in self.bad:
            raise LookupError

    def count(self, gained: Mapping[str, int]) -> None:
        """Nothing is counted here."""


def test_an_observer_sees_every_span_and_may_raise_for_one(caplog: pytest.LogCaptureFixture) -> None:
    """Whether it is sent or not."""
    observer = Observer("trim")
    transform = assembly(observer=observer, as_item=lambda span: span if span.name == "trim" else None)
    out = added(transform, batch(execution(1)))
    assert observer.seen == [("trim", True), ("dag-1", True)]
    assert names(out) == ["trim"]
    assert caplog.messages == [f"the span trim of execution {UUID(int=1)} is not in the metrics or logs"]
    assert caplog.records[0].exc_info is not None


def test_a_sampler_is_asked_once_where_few_answers_are_remembered() -> None:
    asked: list[int] = []

    def decider(execution_id: UUID, dag_name: str, context: Context, **_: Any) -> Decision:
        asked.append(execution_id.int)
        return decide(ALWAYS_OFF, execution_id, dag_name, context)

    transform = assembly(sampling=Sampling(decider, max_remembered=1), watermark=Watermark(), idle_timeout=60)
    out = added(transform, batch([execution(1)[0], execution(2)[0]]))
    # both are given up at once
    later = [replace(event, timestamp_ns=T0 + 120_000 * MS) for event in execution(3)] * 40
    added(transform, batch(later), out=out)
    assert [number for number in asked if number < 3] == [1, 2]
    assert out.items == []
    assert sorted(receipt.count for receipt in out.settled)[-3:] == [1, 1, 4]


def test_a_restart_after_a_defect_is_settled_all_the_same() -> None:
    transform = assembly(choosy(ModuleCompleted))
    out = added(transform, batch(execution(1)[:3]))
    transform.restart(Position(None, 9), out)
    assert names(out) == ["trim", "dag-1"]
    again = Outbox[Any]()
    safe(out.receipts)
    transform.restart(Position(None, 10), again)
    assert [receipt.offsets for receipt in again.settled] == [[10]]
