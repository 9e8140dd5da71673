"""Hypothesis strategies that several tests share."""

from __future__ import annotations

from hypothesis import strategies as st

from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleFailed,
    ModuleStarted,
)

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def any_event(
    names: st.SearchStrategy[str],
    lengths: st.SearchStrategy[float | None],
    *,
    messages: st.SearchStrategy[str] | None = None,
    traceparents: st.SearchStrategy[str] | None = None,
    tracestates: st.SearchStrategy[str] | None = None,
) -> st.SearchStrategy[Event]:
    """One of the six, with module ids and optional fields or without.

    Args:
        names: Of DAGs, modules and types of errors.
        lengths: Milliseconds.
        messages: Of errors; names where none are given.
        traceparents: A valid one where none are given.
        tracestates: None at all where none are given.
    """
    ids, times = st.uuids(), st.integers(0, 2**63 - 1)
    module_ids = st.none() | ids
    headers = st.none() | (st.just(TRACEPARENT) if traceparents is None else traceparents)
    states = st.none() if tracestates is None else st.none() | tracestates
    errors = st.builds(ErrorInfo, st.none() | names, st.none() | (names if messages is None else messages))
    return st.one_of(
        st.builds(ExecutionStarted, ids, names, times, headers, states),
        st.builds(ModuleStarted, ids, module_ids, names, times),
        st.builds(ModuleCompleted, ids, module_ids, names, lengths, times),
        st.builds(ModuleFailed, ids, module_ids, names, errors, times),
        st.builds(ExecutionCompleted, ids, names, st.booleans(), lengths, times),
        st.builds(ExecutionCancelled, ids, names, times),
    )
