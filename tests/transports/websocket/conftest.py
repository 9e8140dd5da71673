"""Fixtures of the tests of websocket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from constellation_otel.transports.websocket.source import (
    Timing,
    WebSocketSource,
)
from engine_stand_in import EngineStandIn
from support import self_signed
from transports.websocket.helpers import SOON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    MakeSource = Callable[..., WebSocketSource]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSTELLATION_API_KEY", raising=False)


@pytest.fixture
def engine() -> Iterator[EngineStandIn]:
    with EngineStandIn() as engine:
        yield engine


@pytest.fixture
def make_source() -> Iterator[MakeSource]:
    """Makes sources that are closed in the end; they try again soon."""
    made: list[WebSocketSource] = []

    def make(url: str, **options: Any) -> WebSocketSource:
        timing = Timing(**{name: options.pop(name) for name in Timing.__struct_fields__ if name in options})
        made.append(WebSocketSource(url, **{"max_reconnect_wait": SOON, "timing": timing, **options}))
        return made[-1]

    yield make
    for source in made:
        source.close()


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The files of a certificate and of its key."""
    return self_signed(tmp_path_factory.mktemp("tls"), "engine", "IP:127.0.0.1")
