"""Which records become safe together, and how a source is told so until it takes that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constellation_otel.delivery import LastError, Position, Retry, Source
from constellation_otel.delivery.receipt import Acknowledgements, Receipt, place_of
from constellation_otel.errors import JournalError, MisconfiguredError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LONG = Retry(first=1_000.0, longest=1_000.0, jitter=lambda: 1.0)
NONE = Retry(first=0.0, longest=0.0)


class Told(Source):
    """Keeps what it is told; each call first does the next thing that was ordered.

    Attributes:
        faults: What the next calls raise instead, or a function to call with the positions.
        positions: What it took.
        calls: How many positions each call had.
    """

    name = "told"

    def __init__(self, *faults: Any) -> None:
        self.faults = list(faults)
        self.positions: list[Position] = []
        self.calls: list[int] = []

    def acknowledge(self, positions: Sequence[Position]) -> None:
        self.calls.append(len(positions))
        fault = self.faults.pop(0) if self.faults else None
        if callable(fault):
            fault = fault(positions)
        if fault is not None:
            raise fault
        self.positions += positions

    @property
    def offsets(self) -> list[int]:
        return [position.offset for position in self.positions]


def raises_for(*bad: int, error: Exception | None = None) -> Callable[[Sequence[Position]], Exception | None]:
    """A defect about some offsets."""

    def fault(positions: Sequence[Position]) -> Exception | None:
        is_bad = any(position.offset in bad for position in positions)
        return (error or ZeroDivisionError("odd")) if is_bad else None

    return fault


def at(*offsets: int, origin: object = None) -> list[Position]:
    return [Position(origin, offset) for offset in offsets]


def acknowledgements(
    source: Source, *offsets: int, retry: Retry = NONE, max_owed: int | None = None
) -> Acknowledgements:
    owed = Acknowledgements(source, retry.backoff(), max_owed)
    owed.add(at(*offsets))
    return owed


def test_a_receipt_keeps_where_its_part_has_the_records() -> None:
    receipt = Receipt("a", 7, 1, [7])
    receipt.add("a", [9])
    assert (receipt.count, receipt.last, receipt.positions()) == (2, 9, at(7, 9, origin="a"))


def test_a_receipt_keeps_what_other_parts_have_beside_it() -> None:
    """Offsets of two parts say nothing about each other: the last one is that of its own part."""
    receipt = Receipt("a", 7, 1, [7])
    receipt.add("b", [100, 101])
    receipt.add("c", [1])
    receipt.add("a", [8, 9])
    assert (receipt.count, receipt.last) == (6, 9)
    assert receipt.positions() == [*at(7, 8, 9, origin="a"), *at(100, 101, origin="b"), Position("c", 1)]


def test_a_receipt_without_offsets_has_no_positions_to_tell() -> None:
    assert Receipt(None, 12, 512, []).positions() == []


def test_a_source_is_told_all_that_is_owed_in_one_call() -> None:
    source = Told()
    owed = acknowledgements(source, 3, 1)
    owed.add(at(2, origin="a"))
    assert owed.owed == 3
    assert owed.tell() is None
    assert (source.positions, source.calls, owed.owed) == ([*at(3, 1), *at(2, origin="a")], [3], 0)
    assert owed.tell() is None
    assert (source.calls, owed.failed, owed.last_error) == ([3], 0, None)


def test_what_a_source_does_with_the_list_is_its_own_business() -> None:
    class Clearing(Told):
        def acknowledge(self, positions: Sequence[Position]) -> None:
            super().acknowledge(positions)
            positions.clear()  # type: ignore[attr-defined] # it is a list

    source = Clearing(UnavailableError("busy"))
    owed = acknowledgements(source, 1, 2)
    owed.tell()
    owed.hurry()
    assert owed.tell() is None
    assert source.offsets == [1, 2]


@pytest.mark.parametrize(
    ("error", "reason", "needs_fixing"),
    [
        (UnavailableError("locked"), "locked", False),
        (MisconfiguredError("locked"), "locked", True),
        (JournalError("closed"), "closed", True),
        (RuntimeError(), "RuntimeError", True),
    ],
)
def test_what_a_source_did_not_take_is_told_again_after_a_pause(
    error: Exception, reason: str, needs_fixing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With what is newer; it is counted, logged, and the last error until it succeeds."""
    source = Told(error, *[error] * isinstance(error, RuntimeError))
    owed = acknowledgements(source, 1, retry=LONG)
    before = time.monotonic()
    assert owed.tell() == 1_000.0
    assert (owed.failed, owed.owed, source.offsets) == (1, 1, [])
    last_error = owed.last_error
    assert last_error is not None
    assert before <= last_error.since <= time.monotonic()
    assert last_error == LastError(
        f"delivered records cannot be acknowledged: {reason}", last_error.since, needs_fixing
    )
    (message,) = caplog.messages
    assert message == (
        f"told: 1 delivered records could not be acknowledged: {reason}; trying again in 1000.0 s; a restart"
        " before that succeeds reads them again"
    )
    assert (caplog.records[0].exc_info is None) is isinstance(error, UnavailableError)
    calls = len(source.calls)
    owed.add(at(2))
    assert 990 < (owed.tell() or 0) <= 1_000
    assert len(source.calls) == calls
    owed.hurry()
    assert owed.tell() is None
    assert (source.offsets, owed.owed, owed.last_error, owed.failed) == ([1, 2], 0, None, 1)


def test_an_error_lasts_since_its_first_and_the_pauses_grow() -> None:
    source = Told(*[UnavailableError("busy")] * 3)
    owed = acknowledgements(source, 1, retry=Retry(first=100.0, longest=300.0, jitter=lambda: 1.0))
    pauses, since = [], set()
    for _ in range(3):
        owed.hurry()
        pauses.append(owed.tell())
        assert owed.last_error is not None
        since.add(owed.last_error.since)
    assert (pauses, len(since), owed.failed) == ([100, 200, 300], 1, 3)
    owed.hurry()
    assert owed.tell() is None
    source.faults.append(UnavailableError("busy"))
    owed.add(at(2))
    assert owed.tell() == 100


def test_what_waits_is_bounded_and_the_oldest_are_given_up() -> None:
    """During a pause as well: their records are read again after a restart."""
    source = Told(UnavailableError("busy"))
    owed = acknowledgements(source, *range(10), retry=LONG, max_owed=4)
    owed.tell()
    assert owed.owed == 4
    owed.add(at(10, 11))
    owed.tell()
    assert owed.owed == 4
    owed.hurry()
    assert owed.tell() is None
    assert source.offsets == [8, 9, 10, 11]


def test_no_more_than_the_bound_is_told_where_the_source_works() -> None:
    source = Told()
    owed = acknowledgements(source, *range(10), max_owed=4)
    assert owed.tell() is None
    assert source.offsets == [*range(10)]


def test_nothing_is_told_of_a_part_that_another_reader_has() -> None:
    source = Told(UnavailableError("busy"))
    owed = acknowledgements(source, 1)
    owed.add(at(2, 3, origin="a"))
    owed.tell()
    owed.forget("a")
    assert owed.owed == 1
    assert owed.tell() is None
    assert source.positions == at(1)


@given(st.integers(1, 40), st.sets(st.integers(0, 39), min_size=1, max_size=3))
def test_positions_at_fault_are_isolated_and_the_others_told(count: int, bad: set[int]) -> None:
    """They are left out where the source takes any; where it takes none, nothing is known to be about one."""
    source = Told(*[raises_for(*bad)] * 500)
    owed = acknowledgements(source, *range(count))
    here = {offset for offset in bad if offset < count}
    if not here:
        assert (owed.tell(), owed.failed) == (None, 0)
    elif len(here) == count:
        assert owed.tell() == 0.0
        assert (source.offsets, owed.owed, owed.failed) == ([], count, 1)
        return
    else:
        assert (owed.tell(), owed.failed) == (None, 1)
    assert source.offsets == [offset for offset in range(count) if offset not in bad]
    assert (owed.owed, owed.last_error) == (0, None)


def test_positions_at_fault_are_logged_some_of_them_by_place(caplog: pytest.LogCaptureFixture) -> None:
    owed = acknowledgements(Told(*[raises_for(1, 3, 4, 6)] * 50), *range(8))
    owed.tell()
    (message,) = caplog.messages
    assert message == (
        "told: the acknowledgement of some records raised odd; not acknowledged: record 1, record 3, record 4"
        " (4 records)"
    )
    assert caplog.records[0].exc_info is not None


def test_a_defect_that_passes_leaves_no_position_out(caplog: pytest.LogCaptureFixture) -> None:
    """What failed alone is tried once more after the others."""
    source = Told(ZeroDivisionError("odd"), ZeroDivisionError("odd"))
    owed = acknowledgements(source, 1, 2)
    assert owed.tell() is None
    assert (sorted(source.offsets), owed.owed) == ([1, 2], 0)
    assert caplog.messages == [
        "told: the acknowledgement of some records raised odd; not acknowledged: none (0 records)"
    ]


def test_what_is_left_when_a_source_goes_away_is_told_later() -> None:
    """In the middle of an isolation; it says that it wants to be called again, since nothing else would."""
    bad = raises_for(0)
    source = Told(*[bad] * 5, UnavailableError("busy"), UnavailableError("busy"))
    owed = acknowledgements(source, *range(4))
    assert owed.tell() == 0.0
    assert (source.offsets, owed.owed) == ([1], 3)
    source.faults = [bad] * 50
    assert owed.tell() is None
    assert (sorted(source.offsets), owed.owed) == ([1, 2, 3], 0)


@given(st.lists(st.sampled_from(["take", "busy", "odd", "journal"]), max_size=30), st.sets(st.integers(0, 9)))
def test_whatever_a_source_does_nothing_is_owed_twice_or_lost(answers: list[str], bad: set[int]) -> None:
    """Each position was taken once, or is still owed; or it is at fault, or was alone when the source was."""
    errors = {
        "take": raises_for(*bad),
        "busy": UnavailableError("busy"),
        "odd": ZeroDivisionError("odd"),
        "journal": JournalError("closed"),
    }
    source = Told(*(errors[answer] for answer in answers))
    owed = acknowledgements(source)
    for offset in range(10):
        owed.add(at(offset))
        owed.hurry()
        wait = owed.tell()
        assert (wait is None) is (owed.owed == 0)
        assert len(set(source.offsets)) == len(source.offsets)
        still_owed = {position.offset for position in owed._owed}
        assert len(still_owed) == owed.owed
        assert not still_owed & set(source.offsets)
        if "odd" not in answers and not bad:
            assert still_owed | set(source.offsets) == set(range(offset + 1))


@pytest.mark.parametrize(
    ("origin", "place"),
    [
        (None, "record 7"),
        ("audit", "audit, record 7"),
        (("constellation-events", 3), "constellation-events/3, record 7"),
    ],
)
def test_a_position_is_written_for_a_person_to_read(origin: Any, place: str) -> None:
    assert place_of(Position(origin, 7)) == place
