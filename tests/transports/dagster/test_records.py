from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

import pytest

from constellation_otel.adapters.telling import Teller
from constellation_otel.errors import DecodeError
from constellation_otel.events import (
    ErrorInfo,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleDescribed,
    ModuleDetails,
    ModuleFailed,
    ModuleStarted,
)
from constellation_otel.listener import ExecutionListener
from constellation_otel.testing import span_tree
from constellation_otel.traces import Assembler, execution_id_of, module_id_of
from constellation_otel.transports.dagster.records import Run, RunRecords
from transports.dagster.helpers import entry, recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constellation_otel.events import Attributes, Event
    from constellation_otel.traces import Span

RUN_ID = "6f1c0a5e-3b4b-4d0e-9d0e-2d8a1f5f7c01"
EXECUTION = UUID(RUN_ID)
RUN = Run(RUN_ID, "nightly")
SECOND = 1_000_000_000


def events_of(run: Run, *entries: object) -> list[tuple[int, Event]]:
    """What the records of a run give, which have the ids 10, 20, …"""
    records = RunRecords(run)
    return [found for number, each in enumerate(entries, 1) for found in records.events_of(number * 10, each)]


def spans_of(events: Sequence[Event]) -> list[Span]:
    assembler = Assembler()
    spans = [span for position, event in enumerate(events) for span in assembler.add(event, 0, position)]
    return [*spans, *assembler.finish()]


def recorded_events() -> list[tuple[int, Event]]:
    run, entries = recorded()
    records = RunRecords(run)
    return [found for storage_id, each in entries for found in records.events_of(storage_id, each)]


def test_a_recorded_run_is_drawn_as_it_was() -> None:
    """Attempts are siblings of one name, as are mapped steps; what did not run after a failure has no span."""
    assert (
        span_tree(spans_of([event for _, event in recorded_events()]))
        == """\
conformance (server) failure ERROR "fail2 failed: desc"
  askbare (internal) failure ERROR "dagster._core.definitions.events.RetryRequested"
  askbare (internal) success
  asked (internal) failure ERROR "e"
  asked (internal) success
  boom (internal) failure ERROR "no number"
  collect (internal) success
  fail2 (internal) failure ERROR "desc"
  flaky (internal) failure ERROR "'not yet'"
  flaky (internal) failure ERROR "'not yet'"
  flaky (internal) success
  length (internal) success
  length (internal) success
  load (internal) success
  maybe (internal) success
  skipme (internal) skipped
  split (internal) success
  sub.clean (internal) success"""
    )


def test_the_same_records_give_the_same_events() -> None:
    assert recorded_events() == recorded_events()


def test_the_offsets_of_a_run_ascend() -> None:
    offsets = [offset for offset, _ in recorded_events()]
    assert offsets == sorted(set(offsets))


def test_a_step_lasts_from_its_start_record_to_its_end_record() -> None:
    """Not as long as Dagster says, which begins to measure when the start record has been stored."""
    success = SimpleNamespace(duration_ms=400.0)
    events = events_of(
        RUN,
        entry("PIPELINE_START", 1.0),
        entry("STEP_START", 2.0, "load"),
        entry("STEP_SUCCESS", 2.5, "load", event_specific_data=success),
        entry("PIPELINE_SUCCESS", 3.25),
    )
    load = uuid5(EXECUTION, "load")
    assert events == [
        (10, ExecutionStarted(EXECUTION, "nightly", SECOND, engine="dagster")),
        (20, ModuleStarted(EXECUTION, load, "load", 2 * SECOND)),
        (30, ModuleCompleted(EXECUTION, load, "load", None, 2_500_000_000)),
        (40, ExecutionCompleted(EXECUTION, "nightly", True, None, 3_250_000_000)),
    ]


def test_a_time_is_exact_to_the_microsecond() -> None:
    ((_, event),) = events_of(RUN, entry("PIPELINE_START", 1796019040.5956006))
    assert event.timestamp_ns == 1_796_019_040_595_600_000


def test_an_attempt_has_an_id_that_follows_from_the_first_one() -> None:
    error = SimpleNamespace(message="ValueError: not yet\n", stack=[], cls_name="ValueError", cause=None)
    retry = SimpleNamespace(error=error)
    events = events_of(
        RUN,
        entry("STEP_START", 1.0, "flaky"),
        entry("STEP_UP_FOR_RETRY", 2.0, "flaky", event_specific_data=retry),
        entry("STEP_RESTARTED", 3.0, "flaky"),
        entry("STEP_UP_FOR_RETRY", 4.0, "flaky", event_specific_data=retry),
        entry("STEP_RESTARTED", 5.0, "flaky"),
        entry("STEP_SUCCESS", 6.0, "flaky"),
    )
    first = uuid5(EXECUTION, "flaky")
    ids = [getattr(event, "module_id", None) for _, event in events]
    assert ids == [first, first, uuid5(first, "2"), uuid5(first, "2"), uuid5(first, "3"), uuid5(first, "3")]


def test_a_step_that_a_crashed_run_starts_again_is_the_same_attempt() -> None:
    """Dagster's own number of it stays the same, which the bodies' spans go by."""
    events = events_of(RUN, entry("STEP_START", 1.0, "load"), entry("STEP_START", 9.0, "load"))
    assert len({getattr(event, "module_id", None) for _, event in events}) == 1


def test_a_mapped_step_has_the_name_of_its_op_and_an_id_of_its_own() -> None:
    events = events_of(RUN, *(entry("STEP_START", 1.0, f"length[k{index}]") for index in range(3)))
    assert [getattr(event, "module_name", None) for _, event in events] == ["length"] * 3
    assert len({getattr(event, "module_id", None) for _, event in events}) == 3


def details_of(run: Run, *entries: object) -> list[ModuleDetails | None]:
    """The details of what the records give."""
    return [getattr(event, "details", None) for _, event in events_of(run, *entries)]


def test_an_attempt_tells_its_number_and_the_first_ones_id() -> None:
    retry = SimpleNamespace(error=error("ValueError: not yet\n", "ValueError"))
    told = details_of(
        RUN,
        entry("STEP_START", 1.0, "flaky"),
        entry("STEP_UP_FOR_RETRY", 2.0, "flaky", event_specific_data=retry),
        entry("STEP_RESTARTED", 3.0, "flaky"),
        entry("STEP_SUCCESS", 4.0, "flaky"),
    )
    second = ModuleDetails(attempt=2, attempt_of=uuid5(EXECUTION, "flaky"))
    assert told == [None, None, second, second]


def test_a_mapped_step_tells_its_index() -> None:
    (told,) = details_of(RUN, entry("STEP_START", 1.0, "length[k0]"))
    assert told == ModuleDetails(attributes={"dagster.mapping_key": "k0"})


def test_a_skipped_step_tells_why() -> None:
    ((offset, event),) = events_of(RUN, entry("STEP_SKIPPED", 1.0, "after", message="no input"))
    details = ModuleDetails(outcome="skipped", reason="no input")
    assert (offset, event) == (10, ModuleDescribed(EXECUTION, uuid5(EXECUTION, "after"), "after", SECOND, details))


PLAN = {
    "split": [],
    "length[?]": ["split"],
    "square[?]": ["length[?]"],
    "total": ["square[?]", "load"],
}


def test_a_step_tells_which_steps_it_takes_the_outputs_of() -> None:
    """Of a mapped one those with its index, of one that collects all; those of another run are not in this one."""
    keys = ["split", "length[a]", "length[b]", "square[a]", "square[b]", "total"]
    told = details_of(Run(RUN_ID, "nightly", upstream=PLAN), *(entry("STEP_START", 1.0, key) for key in keys))
    ids = {uuid5(EXECUTION, key): key for key in keys}
    upstream = [[] if each is None else [ids[module] for module in each.upstream] for each in told]
    assert upstream == [[], ["split"], ["split"], ["length[a]"], ["length[b]"], ["square[a]", "square[b]"]]


def test_a_step_links_to_the_attempt_whose_output_it_takes() -> None:
    retry = SimpleNamespace(error=error("ValueError: not yet\n", "ValueError"))
    told = details_of(
        Run(RUN_ID, "nightly", upstream={"after": ["flaky"]}),
        entry("STEP_START", 1.0, "flaky"),
        entry("STEP_UP_FOR_RETRY", 2.0, "flaky", event_specific_data=retry),
        entry("STEP_RESTARTED", 3.0, "flaky"),
        entry("STEP_START", 4.0, "after"),
    )
    assert told[-1] == ModuleDetails(upstream=(uuid5(uuid5(EXECUTION, "flaky"), "2"),))


def test_a_re_execution_tells_which_runs_it_repeats() -> None:
    run = Run(RUN_ID, "nightly", parent_run_id="parent", root_run_id="root")
    ((_, event),) = events_of(run, entry("PIPELINE_START", 1.0))
    relations: Attributes = {"dagster.parent_run_id": "parent", "dagster.root_run_id": "root"}
    assert event == ExecutionStarted(EXECUTION, "nightly", SECOND, attributes=relations, engine="dagster")


def test_a_teller_computes_the_same_ids() -> None:
    """An adapter and a source of one engine are of one trace."""
    teller = Teller(ExecutionListener.noop, "dagster")
    for run_id in (RUN_ID, "monday"):
        execution_id = teller.execution_id(run_id)
        assert execution_id == execution_id_of("dagster", run_id)
        for attempt in (1, 2):
            assert teller.module_id(execution_id, "load", attempt) == module_id_of(execution_id, "load", attempt)


def test_an_old_record_without_a_handle_has_the_name_in_its_key() -> None:
    ((_, event),) = events_of(RUN, entry("STEP_START", 1.0, "sub.length[k0]", node_handle=None))
    assert getattr(event, "module_name", None) == "sub.length"


def failure(record: object) -> ErrorInfo:
    ((_, event),) = events_of(RUN, record)
    assert isinstance(event, ModuleFailed)
    return event.error


def error(message: str, cls_name: str | None, *stack: str, cause: object = None) -> SimpleNamespace:
    return SimpleNamespace(message=message, stack=list(stack), cls_name=cls_name, cause=cause)


def step_failure(what: object, source: str = "USER_CODE_ERROR") -> object:
    data = SimpleNamespace(error=what, error_source=SimpleNamespace(value=source))
    return entry("STEP_FAILURE", 1.0, "boom", event_specific_data=data)


def test_an_error_of_user_code_is_the_users_own() -> None:
    """With the errors that led to it, and without the one that Dagster wraps it in."""
    first = error("OSError: gone\n", "OSError")
    users = error("shop.NoNumber: no: number\n", "NoNumber", '  File "jobs.py", line 8, in boom\n', cause=first)
    wrapped = error("dagster.StepError: Error occurred\n", "StepError", cause=users)
    assert failure(step_failure(wrapped)) == ErrorInfo(
        "shop.NoNumber",
        "no: number",
        None,
        "OSError: gone\n\nThe above exception led to the following one:\n\n"
        'Traceback (most recent call last):\n  File "jobs.py", line 8, in boom\nshop.NoNumber: no: number\n',
    )


def test_an_error_of_dagsters_own_stays_as_it_is() -> None:
    cause = error("OSError: gone\n", "OSError")
    found = failure(step_failure(error("dagster.LostError: lost\n", "LostError", cause=cause), "FRAMEWORK_ERROR"))
    assert (found.type, found.message) == ("dagster.LostError", "lost")


def test_an_error_without_a_message_or_a_class_is_what_there_is() -> None:
    assert failure(step_failure(error("KeyError\n", "KeyError"))) == ErrorInfo("KeyError", "", None, "KeyError\n")
    assert failure(step_failure(error("odd text", None))) == ErrorInfo(None, "odd text", None, "odd text")


def test_a_failure_without_an_error_has_the_records_message() -> None:
    assert failure(step_failure(None)) == ErrorInfo(None, "a STEP_FAILURE")


def test_a_cancelled_run_is_cancelled() -> None:
    events = events_of(RUN, entry("PIPELINE_START", 1.0), entry("PIPELINE_CANCELED", 2.0))
    assert events[1] == (20, ExecutionCancelled(EXECUTION, "nightly", 2 * SECOND))


def test_a_run_that_never_started_begins_when_it_began_to_wait() -> None:
    events = events_of(
        RUN, entry("PIPELINE_ENQUEUED", 1.0), entry("PIPELINE_STARTING", 2.0), entry("PIPELINE_CANCELED", 3.0)
    )
    assert events == [
        (29, ExecutionStarted(EXECUTION, "nightly", SECOND, engine="dagster")),
        (30, ExecutionCancelled(EXECUTION, "nightly", 3 * SECOND)),
    ]


def test_a_run_that_only_failed_has_a_start_and_an_end() -> None:
    events = events_of(RUN, entry("PIPELINE_FAILURE", 3.0))
    assert events == [
        (9, ExecutionStarted(EXECUTION, "nightly", 3 * SECOND, engine="dagster")),
        (10, ExecutionCompleted(EXECUTION, "nightly", False, None, 3 * SECOND)),
    ]


def test_a_run_that_crashed_leaves_its_step_without_an_end() -> None:
    events = events_of(
        RUN, entry("PIPELINE_START", 1.0), entry("STEP_START", 2.0, "load"), entry("PIPELINE_FAILURE", 3.0)
    )
    assert (
        span_tree(spans_of([event for _, event in events]))
        == """\
nightly (server) failure ERROR "failed, and no failed module is known; a time-out in the engine looks like this"
  load (internal) unknown"""
    )


def test_a_run_remembers_that_it_has_ended() -> None:
    records = RunRecords(RUN)
    records.events_of(1, entry("PIPELINE_START", 1.0))
    assert not records.has_ended
    records.events_of(2, entry("PIPELINE_SUCCESS", 2.0))
    assert records.has_ended


def test_a_run_is_in_the_trace_that_its_tags_name() -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    run = Run(RUN_ID, "nightly", traceparent=traceparent, tracestate="vendor=1")
    ((_, event),) = events_of(run, entry("PIPELINE_START", 1.0))
    assert event == ExecutionStarted(EXECUTION, "nightly", SECOND, traceparent, "vendor=1", engine="dagster")


def test_a_run_whose_id_is_no_uuid_has_an_execution_id_of_its_own() -> None:
    ((_, event),) = events_of(Run("monday", "nightly"), entry("PIPELINE_START", 1.0))
    assert event.execution_id == uuid5(UUID("5b0c4f0e-6d0e-4f7c-9a37-0d1a54f2c6b8"), "dagster:monday")


def test_what_says_neither_begin_nor_end_gives_nothing() -> None:
    log_line = SimpleNamespace(timestamp=1.0, dagster_event=None)
    assert events_of(RUN, log_line, entry("STEP_OUTPUT", 1.0, "load")) == []


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (entry("STEP_START", 1.0), "a STEP_START without a step's key"),
        (entry("STEP_FAILURE", 1.0, "boom", event_specific_data=object()), "'object' object has no attribute 'error'"),
        (entry("PIPELINE_START", float("nan")), "cannot convert float NaN to integer"),
        (SimpleNamespace(), "has no attribute 'dagster_event'"),
    ],
)
def test_a_record_that_is_not_as_dagster_writes_them_is_refused(record: object, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        RunRecords(RUN).events_of(1, record)
