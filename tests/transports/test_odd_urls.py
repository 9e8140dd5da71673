"""An odd value in any part of a URL: it can be used, or one error of ours says why not; nothing else is raised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.resources import Resource

from constellation_otel.errors import ConstellationOtelError
from constellation_otel.transports import sink_of, source_of
from deliveries import execution

if TYPE_CHECKING:
    from pathlib import Path

ODD = [
    "",
    " ",
    "x",
    "-1",
    "nan",
    "9" * 40,
    "\udcff",
    "a\x1b[2J",
    "%00",
    "%FF",
    "1s",
    "\n",
    "[",
    "@",
    "%",
    "é",
    "../..",
    ".",
]

DATABASES = [
    "postgresql://{}",
    "postgresql://h{}/d",
    "postgresql://127.0.0.1:{}/d",
    "postgresql://127.0.0.1:1/{}",
    "postgresql://{}:p@127.0.0.1:1/d",
    "postgresql://127.0.0.1:1/d?{}=1",
    *(
        f"postgresql://127.0.0.1:1/d?{name}={{}}"
        for name in ("table", "timezone", "sslmode", "connect_timeout", "options", "host", "port", "dbname", "user")
    ),
    "sqlite:{}",
    "sqlite://{}",
    "sqlite:///{}",
    "sqlite:///a.db?{}=1",
    "sqlite:///a.db?table={}",
    *(f"sqlite:///file:a.db?uri=true&{name}={{}}" for name in ("mode", "timeout", "cached_statements", "{}")),
    *(f"sqlite:///a.db?{name}={{}}" for name in ("uri", "timezone", "check_same_thread", "isolation_level")),
]
FILES = [
    "jsonl:x{}",
    "journal:{}",
    "journal:a.journal?sink={}",
    "journal:b.journal?max_bytes={}",
    "journal:a.journal?{}=1",
]
SOURCES = [
    *("ws://{}:1", "ws://127.0.0.1:{}", "ws://127.0.0.1:1/{}", "ws://127.0.0.1:1?{}=1", "ws://u:{}@127.0.0.1:1"),
    "ws://127.0.0.1:1?executionId={}",
]
SINKS = [
    *(
        "otlp://{}:1",
        "otlp://127.0.0.1:{}",
        "otlp://127.0.0.1:1/{}",
        "otlp://127.0.0.1:1?{}=1",
        "otlp://{}@127.0.0.1:1",
    ),
    *("otlps://{}", "otlp+http://127.0.0.1:{}/", "otlp+http://127.0.0.1:1/{}", "otlp+https://{}"),
]


@pytest.mark.parametrize("template", [*SOURCES, *DATABASES, *FILES])
@pytest.mark.parametrize("follow", [True, False])
def test_of_a_source(template: str, follow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    for value in ODD:
        try:
            source = source_of(template.replace("{}", value), follow=follow)
            try:
                source.read(0.0)
            finally:
                source.close()
        except ConstellationOtelError as error:
            said.append(str(error))
    assert all(0 < len(message) < 1_000 for message in said)


@pytest.mark.parametrize("template", [*SINKS, *DATABASES, *FILES])
def test_of_a_sink(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    for value in ODD:
        try:
            sink = sink_of(template.replace("{}", value), resource=Resource({}))
            try:
                sink.send(execution(1) if sink.takes == "events" else [], 0.1)
            finally:
                sink.close()
        except ConstellationOtelError as error:
            said.append(str(error))
    assert all(0 < len(message) < 1_000 for message in said)
