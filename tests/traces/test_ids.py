"""Ids: the same for ever, never zero, and random where samplers look."""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from constellation_otel.traces import ids
from constellation_otel.traces.ids import (
    SpanIds,
    anonymous_module_id,
    execution_id_of,
    module_id_of,
    span_id_of,
    trace_id_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
MODULE = UUID("b44fdf1e-430d-4ac9-ab2c-8a06a5dc8538")


def test_ids_are_the_ones_that_b2sum_computes() -> None:
    """The literals come from coreutils, not from this package.

    The trace id, where ``$E`` is the execution's id as 32 hex digits::

        { printf constellation-otel/1/trace/; printf $E | xxd -r -p; } | b2sum -l 128

    Span ids have ``span`` for ``trace``, ``-l 64``, and for a module its 32 digits after
    the execution's. A stand-in module id is ``module``, the execution's digits, the
    occurrence as 8 bytes and the name, with ``-l 128``.
    """
    assert f"{trace_id_of(EXECUTION):032x}" == "1124864d364e93da0529837b3d8122c3"
    assert f"{span_id_of(EXECUTION):016x}" == "189dc6593864ea2b"
    assert f"{span_id_of(EXECUTION, MODULE):016x}" == "93295fd174b1b687"
    assert anonymous_module_id(EXECUTION, "Trim", 1).hex == "000121137a06a2829d0868e0ffa81508"
    assert f"{trace_id_of(UUID(int=0)):032x}" == "6abedd0073b08458ccced086589dda66"
    assert f"{span_id_of(UUID(int=0)):016x}" == "3bb3bf05f54e3445"


@given(st.uuids(), st.uuids())
def test_ids_fit_their_fields_and_are_never_zero(execution_id: UUID, module_id: UUID) -> None:
    assert 0 < trace_id_of(execution_id) < 2**128
    assert 0 < span_id_of(execution_id) < 2**64
    assert 0 < span_id_of(execution_id, module_id) < 2**64


@pytest.mark.parametrize(
    "identify",
    [
        lambda: trace_id_of(EXECUTION),
        lambda: span_id_of(EXECUTION),
        lambda: span_id_of(EXECUTION, MODULE),
        lambda: SpanIds(EXECUTION).execution,
        lambda: SpanIds(EXECUTION).of_module(MODULE.int),
    ],
    ids=["trace", "execution", "module", "execution, of many", "module, of many"],
)
def test_a_hash_of_zeros_becomes_one(identify: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    class Zeros:
        def __init__(self, content: bytes, *, digest_size: int) -> None:
            self.size = blake2b(content, digest_size=digest_size).digest_size

        def copy(self) -> Zeros:
            return self

        def update(self, content: bytes) -> None:
            """It stays zero."""

        def digest(self) -> bytes:
            return bytes(self.size)

    monkeypatch.setattr(ids, "blake2b", Zeros)
    assert identify() == 1


@given(st.uuids(), st.lists(st.uuids(), max_size=3))
def test_the_ids_of_one_execution_are_those_of_each_span(execution_id: UUID, module_ids: list[UUID]) -> None:
    ids_of_it = SpanIds(execution_id)
    assert ids_of_it.execution == span_id_of(execution_id)
    assert [ids_of_it.of_module(it.int) for it in module_ids] == [span_id_of(execution_id, it) for it in module_ids]


@given(st.uuids(), st.uuids(), st.uuids())
def test_a_modules_span_is_its_executions_alone(first: UUID, second: UUID, module_id: UUID) -> None:
    assert (span_id_of(first, module_id) == span_id_of(second, module_id)) == (first == second)
    assert span_id_of(first, module_id) != span_id_of(first)


@given(st.text(st.characters()), st.text(st.characters()), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_stand_in_module_id_tells_names_and_occurrences_apart(
    name: str, other_name: str, occurrence: int, other_occurrence: int
) -> None:
    one = anonymous_module_id(EXECUTION, name, occurrence)
    other = anonymous_module_id(EXECUTION, other_name, other_occurrence)
    assert (one == other) == ((name, occurrence) == (other_name, other_occurrence))


def test_a_name_with_a_lone_surrogate_has_its_own_stand_in_id() -> None:
    assert anonymous_module_id(EXECUTION, "\ud800", 0) != anonymous_module_id(EXECUTION, "\ud801", 0)


def test_ratio_sampling_keeps_its_ratio_of_version_4_uuids() -> None:
    """Of the UUIDs' own bytes it would keep none: their lower half never starts with a 0 or 1."""
    seeded = random.Random(20_240_417)
    executions = [UUID(int=seeded.getrandbits(128), version=4) for _ in range(10_000)]
    sampler = TraceIdRatioBased(0.1)

    def kept(trace_ids: list[int]) -> int:
        decisions = [sampler.should_sample(None, trace_id, "pipeline").decision for trace_id in trace_ids]
        return decisions.count(Decision.RECORD_AND_SAMPLE)

    assert kept([execution.int for execution in executions]) == 0
    assert 800 <= kept([trace_id_of(execution) for execution in executions]) <= 1_200


def test_each_bit_of_a_trace_id_is_set_in_half_of_them() -> None:
    seeded = random.Random(20_240_418)
    trace_ids = [trace_id_of(UUID(int=seeded.getrandbits(128), version=4)) for _ in range(10_000)]
    set_in = [sum(trace_id >> bit & 1 for trace_id in trace_ids) for bit in range(128)]
    assert [count for count in set_in if not 4_750 <= count <= 5_250] == []


def test_a_run_of_another_engine_has_its_own_id_where_that_is_a_uuid() -> None:
    run_id = "6f1c0a5e-3b4b-4d0e-9d0e-2d8a1f5f7c01"
    assert execution_id_of("dagster", run_id) == UUID(run_id)


def test_a_run_whose_id_is_no_uuid_gets_one_that_has_the_engines_name_in_it() -> None:
    ids = {execution_id_of(engine, run_id) for engine in ("dagster", "kedro") for run_id in ("monday", "tuesday")}
    assert len(ids) == 4
    assert execution_id_of("dagster", "monday") == UUID("42e840cb-08b6-5399-aa9c-67369d9b60fa")


def test_a_module_of_another_engine_has_an_id_for_each_attempt() -> None:
    execution_id = UUID("6f1c0a5e-3b4b-4d0e-9d0e-2d8a1f5f7c01")
    first = uuid5(execution_id, "load")
    assert [module_id_of(execution_id, "load", attempt) for attempt in (1, 2)] == [first, uuid5(first, "2")]


def test_an_id_is_computed_of_any_text() -> None:
    execution_id = execution_id_of("dagster", "\ud800")
    assert module_id_of(execution_id, "\ud800") == module_id_of(execution_id, "\\ud800")
