"""The URL, the key and the numbers."""

from __future__ import annotations

import logging
import math
import runpy
import ssl
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import constellation_otel.transports.websocket
from constellation_otel.errors import ConfigurationError, MissingExtraError
from constellation_otel.transports.websocket.source import (
    WebSocketSource,
)
from engine_stand_in import EVENTS_PATH
from transports.websocket.helpers import KEY, ONE, TWO, messages_of

if TYPE_CHECKING:
    from constellation_otel.delivery import Source


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("ws://engine", f"ws://engine:8080{EVENTS_PATH}"),
        ("wss://engine", f"wss://engine:443{EVENTS_PATH}"),
        ("ws://engine:1234/", f"ws://engine:1234{EVENTS_PATH}"),
        ("WS://Engine:80/behind/a proxy", "ws://engine:80/behind/a%20proxy"),
        ("ws://[::1]:9", f"ws://[::1]:9{EVENTS_PATH}"),
        ("ws://bücher.example", f"ws://xn--bcher-kva.example:8080{EVENTS_PATH}"),
        (f"ws://engine?executionId={ONE}", f"ws://engine:8080{EVENTS_PATH}?executionId={ONE}"),
        (f"ws://engine?executionId={ONE.hex}", f"ws://engine:8080{EVENTS_PATH}?executionId={ONE}"),
    ],
)
def test_a_url_is_completed_and_is_the_sources_name(url: str, name: str) -> None:
    source: Source = WebSocketSource(url)
    assert (source.name, source.is_ordered, source.is_durable, source.has_ended) == (name, False, False, False)


def test_an_execution_id_goes_into_the_query() -> None:
    """It may be given twice if it is the same."""
    expected = f"ws://engine:8080{EVENTS_PATH}?executionId={ONE}"
    assert WebSocketSource("ws://engine", execution_id=ONE).name == expected
    assert WebSocketSource(f"ws://engine?executionId={ONE}", execution_id=ONE).name == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://engine", "the URL is not a WebSocket URL; give ws://host:port or wss://host:port"),
        ("engine:8080", "the URL is not a WebSocket URL; give ws://host:port or wss://host:port"),
        ("ws://:8080", "the URL is not a WebSocket URL; give ws://host:port or wss://host:port"),
        ("ws://engine:port", "the URL's host, port or path cannot be used; give ws://host:port or wss://host:port"),
        ("ws://[::1", "the URL's host, port or path cannot be used; give ws://host:port or wss://host:port"),
        ("ws://h:1/\udcff", "the URL's host, port or path cannot be used; give ws://host:port or wss://host:port"),
        ("ws://a..b", "the URL's host, port or path cannot be used; give ws://host:port or wss://host:port"),
        (
            "ws://me:secret@engine",
            "ws://engine: a URL may have no user or password; the key goes into api_key, or CONSTELLATION_API_KEY",
        ),
        (
            "ws://engine?token=secret",
            "ws://engine: a query may have executionId only; the key goes into api_key, or CONSTELLATION_API_KEY",
        ),
        ("ws://engine#there", "ws://engine: a URL may have no fragment (#…) here"),
        ("ws://engine?executionId=7", "ws://engine: executionId is not a UUID"),
        (f"ws://engine?executionId={TWO}&executionId={ONE}", f"ws://engine: give one executionId, not {ONE}, {TWO}"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        WebSocketSource(url)
    assert str(refused.value) == message


@settings(deadline=None)
@given(secret=st.text("abcdefghijkmnpqrstuvwxyz0123456789-_.~", min_size=12), port=st.sampled_from(["", ":1", ":x"]))
def test_no_message_has_what_a_url_hides(secret: str, port: str) -> None:
    secret = f"Qq{secret}"
    for url in (
        f"ws://{secret}@engine{port}",
        f"ws://me:{secret}@engine{port}",
        f"ws://engine{port}?{secret}",
        f"ws://engine{port}?apiKey={secret}",
        f"ws://engine{port}?executionId={secret}",
        f"ws://engine{port}#{secret}",
        f"ws://me:{secret}@[engine{port}",
    ):
        with pytest.raises(ConfigurationError) as refused:
            WebSocketSource(url)
        assert secret not in str(refused.value)
        assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize(
    "options",
    [
        {"max_held": 0},
        {"max_reconnect_wait": 0},
        {"max_reconnect_wait": -1},
        {"max_reconnect_wait": math.inf},
        {"max_reconnect_wait": math.nan},
    ],
    ids=str,
)
def test_a_number_that_cannot_be_used_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="^" + next(iter(options)) + "="):
        WebSocketSource("ws://engine", **options)


def test_tls_settings_for_a_url_without_tls_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^ws://engine:8080/\S+: ssl is for wss://, and this is ws://$"):
        WebSocketSource("ws://engine", ssl=ssl.create_default_context())


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\r\nX-Evil: 1", f"Bearer {KEY}", f"{KEY}ü"])
def test_a_key_that_no_header_takes_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigurationError, match="the API key has spaces, line ends or other characters") as refused:
        WebSocketSource("ws://engine", api_key=key)
    assert KEY not in str(refused.value)


def test_a_short_key_is_warned_of_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    WebSocketSource("ws://engine", api_key=KEY[:23])
    assert messages_of(caplog, logging.WARNING) == [
        f"ws://engine:8080{EVENTS_PATH}: the API key has 23 characters, and an engine takes none with less than 24"
    ]


def test_without_the_library_the_import_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets", None)
    with pytest.raises(
        MissingExtraError,
        match=r"^websockets is not installed; run: pip install 'constellation-otel\[websocket\]'$",
    ):
        runpy.run_path(constellation_otel.transports.websocket.__file__)
