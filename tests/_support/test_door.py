"""The doors of the rooms: names that are looked up when they are first asked for."""

from __future__ import annotations

import pytest

from constellation_otel import delivery, traces


@pytest.mark.parametrize("room", [delivery, traces])
def test_a_door_lists_what_it_has_and_refuses_what_it_has_not(room: object) -> None:
    assert {*room.__all__} <= {*dir(room)}  # type: ignore[attr-defined] # a module
    with pytest.raises(AttributeError, match=r"module 'constellation_otel\.\w+' has no attribute 'nothing'"):
        room.nothing  # type: ignore[attr-defined] # noqa: B018 - to be refused
