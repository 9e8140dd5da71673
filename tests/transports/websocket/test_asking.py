"""Asking an engine once whether it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from constellation_otel.errors import MisconfiguredError, UnavailableError
from constellation_otel.transports.websocket import ask_engine
from engine_stand_in import EngineStandIn
from support import DEADLINE
from transports.otlp.helpers import raw_server
from transports.websocket.helpers import KEY
from websocket_wire import accepted, read_request

if TYPE_CHECKING:
    import socket

DATE = "Thu, 01 Jan 1970 00:01:40 GMT"


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


@pytest.mark.parametrize("dates", [1, 2])
def test_the_date_of_the_answer_is_the_engines(dates: int) -> None:
    """A proxy may have put one beside it."""

    def serve(connection: socket.socket) -> None:
        request, _ = read_request(connection)
        first, _, rest = accepted(request).partition(b"\r\n")
        connection.sendall(first + f"\r\nDate: {DATE}".encode() * dates + b"\r\n" + rest)
        while connection.recv(4096):
            """Until it disconnects."""

    with raw_server(serve) as endpoint:
        assert ask_engine(endpoint.replace("http:", "ws:"), timeout=DEADLINE) == DATE
