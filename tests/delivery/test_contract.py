"""What a source may give, how that becomes batches, and what a source and a sink need not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from constellation_otel.delivery import (
    Batch,
    Position,
    Record,
    Restarted,
    Revoked,
    Sink,
    Source,
    Unreadable,
    as_source,
    batches_of,
    item_of,
)
from constellation_otel.events import Event, ModuleStarted, encode_json, read_json
from deliveries import T0, ListSource, execution, records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constellation_otel.delivery import Rejection, SourceItem


class Least:
    """A source of a user's own that has what is needed and no more."""

    name = "least"
    is_ordered = True
    is_durable = True
    has_ended = False

    def __init__(self) -> None:
        self.calls: list[object] = []

    def read(self, timeout: float) -> Sequence[Any]:
        self.calls.append(timeout)
        return records(execution(1)[:1])

    def acknowledge(self, positions: Sequence[Position]) -> None:
        self.calls.append(positions)

    def close(self) -> None:
        self.calls.append("close")


class Own(Source):
    """A source as this package has them."""


def test_a_source_of_a_users_own_needs_the_needed_methods_only() -> None:
    own = Least()
    source = as_source(own)
    assert (source.name, source.is_ordered, source.is_durable, source.has_ended) == ("least", True, True, False)
    assert source.read(0.5) == records(execution(1)[:1])
    source.acknowledge([Position(None, 1)])
    source.keep_alive()
    source.close()
    assert own.calls == [0.5, [Position(None, 1)], "close"]
    assert (source.last_error, source.failed_acknowledgements, source.dropped) == (None, 0, 0)
    assert (source.fraction_read, source.wants_acknowledgements, source.gaps) == (None, True, 0)


def test_what_else_a_source_of_a_users_own_has_is_asked() -> None:
    class More(Least):
        last_error = "no connection"
        failed_acknowledgements = 2
        dropped = 3
        fraction_read = 0.5
        gaps = 4

        def keep_alive(self) -> None:
            self.calls.append("alive")

    own = More()
    source = as_source(own)
    source.keep_alive()
    assert own.calls == ["alive"]
    assert (source.last_error, source.failed_acknowledgements, source.dropped) == ("no connection", 2, 3)
    assert (source.fraction_read, source.gaps) == (0.5, 4)


def test_a_source_of_this_package_stays_as_it_is() -> None:
    source = Own()
    assert as_source(source) is source


def test_a_source_without_more_has_the_defaults_of_its_base() -> None:
    source = Own()
    assert (source.is_ordered, source.is_durable, source.has_ended) == (False, False, False)
    assert (source.last_error, source.failed_acknowledgements, source.dropped) == (None, 0, 0)
    assert (source.fraction_read, source.wants_acknowledgements, source.gaps) == (None, False, 0)
    source.acknowledge([Position(None, 1)])
    source.keep_alive()
    for needed in (lambda: source.name, lambda: source.read(0), source.close):
        with pytest.raises(NotImplementedError):
            needed()


def test_a_source_that_can_acknowledge_wants_acknowledgements() -> None:
    class Durable(Own):
        def acknowledge(self, positions: Sequence[Position]) -> None:
            """Writes them down."""

    assert Durable().wants_acknowledgements


def test_a_sink_without_more_has_the_defaults_of_its_base() -> None:
    class Plain(Sink[Event]):
        def send(self, items: Sequence[Event], timeout: float) -> Sequence[Rejection]:
            raise super().send(items, timeout)  # type: ignore[safe-super,misc] # what a call of it does

    sink = Plain()  # type: ignore[abstract] # without a name, which it needs
    assert (sink.takes, sink.max_batch) == ("events", 512)
    sink.close()
    with pytest.raises(NotImplementedError):
        assert sink.name
    with pytest.raises(NotImplementedError):
        sink.send(execution(1), 1.0)


def test_records_of_a_part_are_gathered_in_one_batch() -> None:
    events = execution(1)
    assert batches_of(records(events, "a", first=7)) == [Batch(events, [7, 8, 9, 10], "a")]
    assert batches_of([]) == []


def test_another_part_and_what_is_no_record_begin_a_batch() -> None:
    """All stays in its order."""
    first, second, third, fourth = execution(1)
    others: list[SourceItem] = [
        Unreadable(b"{", "it is cut", Position("b", 8)),
        Restarted(Position("b", 9)),
        Revoked("a"),
        Batch([third], [3], "b"),
    ]
    for other in others:
        items: list[SourceItem] = [Record(first, Position("a", 0)), Record(second, Position("b", 1)), other]
        items += [Record(third, Position("b", 2)), Record(fourth, Position("b", 3))]
        assert batches_of(items) == [
            Batch([first], [0], "a"),
            Batch([second], [1], "b"),
            other,
            Batch([third, fourth], [2, 3], "b"),
        ]


def test_a_batch_that_a_source_gives_stays_the_same_object() -> None:
    batch = Batch(execution(1), range(4))
    (same,) = batches_of([batch])
    assert same is batch


def test_what_was_corrected_in_a_record_comes_with_its_offset() -> None:
    """What validation corrects is behind it."""
    start, module, *_ = execution(1)
    odd = replace(start, traceparent=5)
    items = [Record(odd, Position(None, 4), ("dag_name: cut",)), Record(module, Position(None, 5), ("a", "b"))]
    corrected = [
        (4, "dag_name: cut"),
        (4, "traceparent is 5, not a W3C header's value"),
        (5, "a"),
        (5, "b"),
    ]
    assert batches_of(items) == [Batch([start, module], [4, 5], None, corrected)]


def test_a_record_whose_event_no_sink_could_take_is_unreadable() -> None:
    first, second, *_ = execution(1)
    bad = ModuleStarted(UUID(int=1), UUID(int=2), 7, T0)  # type: ignore[arg-type] # what it is about
    before, unreadable, after = batches_of(records([first, bad, second], "a"))
    assert (before, after) == (Batch([first], [0], "a"), Batch([second], [2], "a"))
    assert isinstance(unreadable, Unreadable)
    assert unreadable.reason == "module_name must be a str, not 7; the event is dropped; fix what made it"
    assert unreadable.position == Position("a", 1)
    assert unreadable.data.startswith(b"ModuleStarted(")


@pytest.mark.parametrize("item", [None, "text", execution(1)[0]])
def test_a_source_is_told_what_it_may_give_and_what_it_gave(item: Any) -> None:
    with pytest.raises(TypeError, match=r"is not a Record, Batch, Unreadable, Restarted or Revoked; fix the source"):
        batches_of([*records(execution(1)), item])


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3))))
def test_gathering_keeps_every_record_and_their_order(chosen: list[tuple[str, int]]) -> None:
    items = [Record(execution(1)[which], Position(origin, offset)) for offset, (origin, which) in enumerate(chosen)]
    batches = batches_of(items)
    again = [
        Record(event, Position(batch.origin, offset))
        for batch in batches
        if isinstance(batch, Batch)
        for event, offset in zip(batch.events, batch.offsets, strict=True)
    ]
    assert again == items
    assert len(batches) == sum(index == 0 or chosen[index - 1][0] != origin for index, (origin, _) in enumerate(chosen))


def test_a_record_that_can_be_read_has_its_event_and_position() -> None:
    event = execution(1)[0]
    assert item_of(read_json, encode_json(event), Position("a", 3)) == Record(event, Position("a", 3))


@pytest.mark.parametrize(("data", "kept"), [(b"{", b"{"), ("{", b"{"), ("\ud800", b"\xed\xa0\x80")])
def test_a_record_that_cannot_be_read_is_kept_as_it_came(data: bytes | str, kept: bytes) -> None:
    item = item_of(read_json, data, Position(None, 3))
    assert isinstance(item, Unreadable)
    assert (item.data, item.position) == (kept, Position(None, 3))
    assert item.reason


def test_the_sources_of_the_tests_are_a_users_own() -> None:
    """So that what a bridge does with one is tested with it."""
    assert not isinstance(ListSource(), Source)
