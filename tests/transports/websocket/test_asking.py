"""Asking an engine once whether it answers."""

from __future__ import annotations

import pytest

from constellation_otel.errors import MisconfiguredError, UnavailableError
from constellation_otel.transports.websocket import ask_engine
from engine_stand_in import EngineStandIn
from support import DEADLINE
from transports.websocket.helpers import KEY


def test_an_engine_is_left_as_soon_as_it_has_answered() -> None:
    with EngineStandIn(api_key=KEY) as engine:
        assert ask_engine(engine.url, api_key=KEY, timeout=DEADLINE) is None
        assert (engine.connections, engine.goodbyes) == (1, [1000])


def test_an_engine_is_asked_once_only() -> None:
    with EngineStandIn(api_key=KEY) as engine:
        with pytest.raises(MisconfiguredError, match=r"^HTTP 401: the engine requires an API key"):
            ask_engine(engine.url, timeout=DEADLINE)
        assert (engine.connections, engine.refusals) == (0, 1)
        url = engine.url
    with pytest.raises(UnavailableError, match=r"^Connection refused$"):
        ask_engine(url, timeout=DEADLINE)
