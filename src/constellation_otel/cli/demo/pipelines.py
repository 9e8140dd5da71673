"""The demo's pipelines: plain functions over this package's own documentation.

Only one module knows of telemetry: its database and HTTP calls are instrumented by
their own libraries.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import lzma
import sqlite3
from collections import Counter
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final
from urllib.request import urlopen

from constellation_otel import events, listener
from constellation_otel._support.http_server import HttpHandler, HttpServer
from constellation_otel.engine import Dag, module
from constellation_otel.errors import MissingExtraError

try:
    from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
    from opentelemetry.instrumentation.urllib import URLLibInstrumentor
except ModuleNotFoundError as error:
    library = "opentelemetry-instrumentation-sqlite3 or -urllib"
    raise MissingExtraError(library, "demo") from error

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from opentelemetry.trace import TracerProvider

__all__ = ["ARCHIVE", "FAILING", "TEXT", "WORD_COUNT", "page", "slow_index"]

TEXT: Final = "\n\n".join(
    inspect.getdoc(documented) or ""
    for home in (listener, events)
    for documented in (home, *vars(home).values())
    if inspect.ismodule(documented) or inspect.isclass(documented) or inspect.isfunction(documented)
)
"""The pipelines' input: the docstrings of the SPI and of the events."""

_TIMEOUT_S: Final = 10.0


def trim(text: str) -> str:
    """Strips the whitespace around each line."""
    return "\n".join(line.strip() for line in text.splitlines())


def words(trim: str) -> list[str]:
    """The words of the text, in lower case."""
    return [word.strip(".,;:()[]`*'\"").lower() for word in trim.split()]


def most_common(words: list[str]) -> list[tuple[str, int]]:
    """The ten most common words."""
    return Counter(word for word in words if len(word) > len("the")).most_common(10)


def density(trim: str) -> float:
    """The share of the text's bytes that is left after compression."""
    data = (trim * 20).encode()
    return len(lzma.compress(data)) / len(data)


def longest_sentence(trim: str) -> str:
    """The sentence with the most words."""
    return max(trim.replace("\n", " ").split(". "), key=lambda sentence: len(sentence.split()))


def report(most_common: list[tuple[str, int]], density: float, longest_sentence: str) -> str:
    """The findings in one line."""
    word, times = most_common[0]
    return f"{word!r} occurs {times} times; density {density:.3f}; longest sentence: {longest_sentence}"


def year_of(words: list[str]) -> int:
    """Reads the first word as a year, and fails."""
    return int(words[0])


WORD_COUNT: Final = Dag("word-count", [trim, words, most_common, density, longest_sentence, report])
"""Parallel modules."""

FAILING: Final = Dag(
    "age-of-text",
    [trim, words, year_of, most_common, longest_sentence, module(report, inputs={"density": "year_of"})],
)
"""One module fails; its dependent does not run, the others do."""


def store(words: list[str], url: str, provider: TracerProvider) -> int:
    """Stores the words in SQLite and fetches a page over HTTP; both calls are instrumented."""
    with closing(sqlite3.connect(":memory:")) as plain:
        connection = SQLite3Instrumentor.instrument_connection(plain, provider)
        with closing(connection.cursor()) as cursor:
            cursor.execute("CREATE TABLE word (word TEXT)")
            cursor.executemany("INSERT INTO word VALUES (?)", [(word,) for word in words])
            cursor.execute("SELECT COUNT(DISTINCT word) FROM word")
            (distinct,) = cursor.fetchone()
    with urlopen(url, timeout=_TIMEOUT_S) as response:  # noqa: S310 - our own page, on loopback
        response.read()
    return int(distinct)


ARCHIVE: Final = Dag("archive", [trim, words, store])
"""One module makes SQLite and HTTP calls, whose spans nest under its own."""


def slow_index(running: threading.Event) -> Dag:
    """A pipeline that waits for ten seconds, unless it is cancelled.

    Args:
        running: Set when its last module runs.
    """

    # async, so that its body ends when the execution is cancelled, and not after that
    async def wait_for_more(words: list[str]) -> int:
        running.set()
        return await asyncio.sleep(_TIMEOUT_S, len(words))

    return Dag("slow-index", [trim, words, module(wait_for_more, name="wait-for-more")])


class _Page(HttpHandler):
    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        self.answer(200, "text/plain", b"hello")


@contextmanager
def page(provider: TracerProvider) -> Iterator[str]:
    """Serves a page on loopback, with the HTTP client instrumented; gives its URL."""
    instrumentor = URLLibInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    server = HttpServer("127.0.0.1", 0, _Page, logger=logging.getLogger(__name__), name="page")
    server.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.close()
        instrumentor.uninstrument()
