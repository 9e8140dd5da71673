"""The records of one Dagster run, turned into events. No I/O, and nothing of Dagster is imported.

A record is looked at by the names of its fields, which Dagster keeps for old logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import replace

from constellation_otel.errors import DecodeError
from constellation_otel.events import (
    MAX_UPSTREAM,
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleDescribed,
    ModuleDetails,
    ModuleFailed,
    ModuleStarted,
)
from constellation_otel.traces import execution_id_of, module_id_of

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["ENGINE", "READ_TYPES", "Run", "RunRecords", "UnreadableError"]

ENGINE: Final = "dagster"
"""What this engine is called, in ids and attributes."""
_WAITING: Final = {"PIPELINE_ENQUEUED", "PIPELINE_STARTING"}
_STARTED: Final = "PIPELINE_START"
_CANCELLED: Final = "PIPELINE_CANCELED"
_ENDED: Final = {"PIPELINE_SUCCESS": True, "PIPELINE_FAILURE": False}
_STEP_BEGINS: Final = {"STEP_START", "STEP_RESTARTED"}
_STEP_SUCCESS: Final = "STEP_SUCCESS"
_STEP_FAILURE: Final = "STEP_FAILURE"
_STEP_RETRY: Final = "STEP_UP_FOR_RETRY"
_STEP_SKIPPED: Final = "STEP_SKIPPED"
READ_TYPES: Final = frozenset(
    {*_WAITING, _STARTED, _CANCELLED, *_ENDED, *_STEP_BEGINS, _STEP_SUCCESS, _STEP_FAILURE, _STEP_RETRY, _STEP_SKIPPED}
)
"""The types of the records that are read, as Dagster writes them: its runs were once called pipelines."""
_ANY_INDEX: Final = "[?]"
_MAPPING_KEY: Final = "dagster.mapping_key"
_PARENT_RUN: Final = "dagster.parent_run_id"
_ROOT_RUN: Final = "dagster.root_run_id"
_NO_DETAILS: Final = ModuleDetails()
_USER_CODE: Final = "USER_CODE_ERROR"
_RETRY_REQUESTED: Final = {"RetryRequested", "RetryRequestedFromPolicy"}


class UnreadableError(Exception):
    """A page has a record that Dagster itself cannot read, and so gives none of them."""


class Run(Struct, frozen=True):
    """What is known of a run beside its records.

    Attributes:
        run_id: Dagster's id.
        job_name: The job's name.
        parent_run_id: The run that this one is a re-execution of.
        root_run_id: The first run in the line of re-executions.
        traceparent: The caller's span as a W3C header's value, from the run's tag of that name.
        tracestate: The header that goes with it.
        upstream: The keys of the steps whose outputs a step takes, by the step's key; with
            ``[?]`` in place of an index that is only known when the run has got there.
    """

    run_id: str
    job_name: str
    parent_run_id: str | None = None
    root_run_id: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    upstream: Mapping[str, Sequence[str]] = {}


class RunRecords:
    """Turns the records of one run into events, one after the other.

    It remembers as much as the run has steps: the attempts of each, by which their ids are
    computed. The same records give the same events, whoever reads them, and whenever.

    Args:
        run: The run.

    Attributes:
        has_ended: Whether a record has ended the run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._execution_id = execution_id_of(ENGINE, run.run_id)
        self._has_started = False
        self._waits_since_ns: int | None = None
        self._attempts: dict[str, int] = {}
        self.has_ended = False

    def events_of(self, storage_id: int, entry: Any) -> list[tuple[int, Event]]:
        """The events of a record, each with an offset that is unique in the run.

        Args:
            storage_id: The record's id in the event log.
            entry: The record, an ``EventLogEntry``.

        Returns:
            None, one, or two where a run ends that never started.

        Raises:
            DecodeError: It cannot be understood.
        """
        try:
            return self._events_of(storage_id, entry)
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            message = f"the record is not what Dagster writes: {error}"
            raise DecodeError(message) from error

    def _events_of(self, storage_id: int, entry: Any) -> list[tuple[int, Event]]:
        record = entry.dagster_event
        kind = None if record is None else record.event_type_value
        if kind not in READ_TYPES:
            return []
        # a float of seconds has no more than these digits
        at_ns = round(entry.timestamp * 1_000_000) * 1_000
        if kind in _WAITING:
            if self._waits_since_ns is None:
                self._waits_since_ns = at_ns
            return []
        if kind == _STARTED:
            self._has_started = True
            return [(storage_id, self._start(at_ns))]
        if kind in _ENDED or kind == _CANCELLED:
            return self._end(storage_id, kind, at_ns)
        return [(storage_id, self._step_event(kind, record, at_ns))]

    def _start(self, at_ns: int) -> Event:
        run = self._run
        relations = {_PARENT_RUN: run.parent_run_id, _ROOT_RUN: run.root_run_id}
        return ExecutionStarted(
            self._execution_id,
            run.job_name,
            at_ns,
            run.traceparent,
            run.tracestate,
            attributes={name: run_id for name, run_id in relations.items() if run_id is not None} or None,
            engine=ENGINE,
        )

    def _end(self, storage_id: int, kind: str, at_ns: int) -> list[tuple[int, Event]]:
        name = self._run.job_name
        event: Event = (
            ExecutionCancelled(self._execution_id, name, at_ns)
            if kind == _CANCELLED
            # from the start record to this one
            else ExecutionCompleted(self._execution_id, name, _ENDED[kind], None, at_ns)
        )
        events = [(storage_id, event)]
        if not (self._has_started or self._attempts or self.has_ended):
            # cancelled in the queue, or not launched: the start is when it began to wait; nothing has the offset before
            begins_ns = at_ns if self._waits_since_ns is None else self._waits_since_ns
            events.insert(0, (storage_id - 1, self._start(begins_ns)))
        self.has_ended = True
        return events

    def _step_event(self, kind: str, record: Any, at_ns: int) -> Event:
        step = _Step.of(record)
        attempt = self._attempts.setdefault(step.key, 1)
        module_id = self._id_of(step.key)
        details = self._details(step, attempt)
        if kind == _STEP_SKIPPED:
            described = replace(details or ModuleDetails(), outcome="skipped", reason=record.message)
            return ModuleDescribed(self._execution_id, module_id, step.name, at_ns, described)
        if kind in _STEP_BEGINS:
            return ModuleStarted(self._execution_id, module_id, step.name, at_ns, details)
        if kind == _STEP_SUCCESS:
            # not the record's own duration, which is measured from when the start record was stored: bodies
            # would end after it
            return ModuleCompleted(self._execution_id, module_id, step.name, None, at_ns, details=details)
        if kind == _STEP_RETRY:
            # Dagster's own number of an attempt counts these, too
            self._attempts[step.key] = attempt + 1
        return ModuleFailed(self._execution_id, module_id, step.name, _error_of(record), at_ns, details=details)

    def _details(self, step: _Step, attempt: int) -> ModuleDetails | None:
        """What is more than the callbacks' facts; ``None`` where there is nothing."""
        details = ModuleDetails(
            attempt=attempt,
            attempt_of=module_id_of(self._execution_id, step.key) if attempt > 1 else None,
            upstream=tuple(self._id_of(key) for key in self._upstream_of(step)),
            attributes={} if step.index is None else {_MAPPING_KEY: step.index},
        )
        return None if details == _NO_DETAILS else details

    def _upstream_of(self, step: _Step) -> list[str]:
        """The steps of this run whose outputs a step takes; those of a run before it have no spans here."""
        found: list[str] = []
        for key in self._run.upstream.get(step.key if step.index is None else f"{step.op}{_ANY_INDEX}", ()):
            if not key.endswith(_ANY_INDEX):
                found.append(key)
            elif step.index is not None:
                # mapped over the same outputs
                found.append(f"{key.removesuffix(_ANY_INDEX)}[{step.index}]")
            else:
                # it collects what was mapped
                begins = key.removesuffix(_ANY_INDEX) + "["
                found += [other for other in self._attempts if other.startswith(begins)]
        return [key for key in found if key in self._attempts][:MAX_UPSTREAM]

    def _id_of(self, key: str) -> UUID:
        """The id of a step's latest attempt."""
        return module_id_of(self._execution_id, key, self._attempts[key])


class _Step(Struct, frozen=True):
    """A step.

    Attributes:
        key: Dagster's key of it, unique in the run.
        op: The key without an index.
        name: The op's name, with the graphs that it is in: the same for all steps of a mapped op.
        index: Which of the steps of a mapped op it is.
    """

    key: str
    op: str
    name: str
    index: str | None

    @classmethod
    def of(cls, record: Any) -> _Step:
        """The step of a record.

        Raises:
            ValueError: It has none.
        """
        key = record.step_key
        if type(key) is not str or not key:
            message = f"a {record.event_type_value} without a step's key"
            raise ValueError(message)
        op, bracket, rest = key.partition("[")
        index = rest.removesuffix("]") if bracket else None
        return cls(key, op, str(record.node_handle or op), index)


def _error_of(record: Any) -> ErrorInfo:
    """What a failed step's record says; of an error in user code, not the one that Dagster has wrapped it in."""
    data = record.event_specific_data
    error = data.error
    if error is None:
        return ErrorInfo(None, record.message)
    source = getattr(data, "error_source", None)
    is_wrapped = getattr(source, "value", None) == _USER_CODE or error.cls_name in _RETRY_REQUESTED
    if is_wrapped and error.cause is not None:
        error = error.cause
    kind, message = _type_and_message(error)
    return ErrorInfo(kind, message, None, _stacktrace(error))


def _type_and_message(error: Any) -> tuple[str | None, str]:
    """The class, with its module where that is no built-in one, and the message."""
    text = error.message.strip()
    head, colon, rest = text.partition(":")
    if error.cls_name and head.rpartition(".")[2] == error.cls_name:
        return head, rest.strip() if colon else ""
    return error.cls_name, text


def _stacktrace(error: Any) -> str:
    """As Python prints it, with the errors that led to it."""
    parts = []
    if error.cause is not None:
        parts += [_stacktrace(error.cause), "\nThe above exception led to the following one:\n\n"]
    if error.stack:
        parts += ["Traceback (most recent call last):\n", *error.stack]
    return "".join([*parts, error.message])
