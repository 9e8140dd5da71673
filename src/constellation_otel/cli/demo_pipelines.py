"""The demo's pipelines: plain functions over this package's own documentation.

Nothing here knows of telemetry, but for the module whose database and HTTP calls
are instrumented by their own libraries.
"""

from __future__ import annotations

import inspect
import lzma
import sqlite3
import threading
from collections import Counter
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final
from urllib.request import urlopen

from constellation_otel import events, listener
from constellation_otel.engine import Dag, module
from constellation_otel.errors import MissingExtraError

try:
    from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
    from opentelemetry.instrumentation.urllib import URLLibInstrumentor
except ModuleNotFoundError as error:
    library = "opentelemetry-instrumentation-sqlite3 or -urllib"
    raise MissingExtraError(library, "demo") from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.trace import TracerProvider

__all__ = ["ARCHIVE", "FAILING", "TEXT", "WORD_COUNT", "page", "slow_index"]

TEXT: Final = "\n\n".join(
    inspect.getdoc(documented) or ""
    for home in (listener, events)
    for documented in (home, *vars(home).values())
    if inspect.ismodule(documented) or inspect.isclass(documented) or inspect.isfunction(documented)
)
"""What the pipelines read: the docstrings of the SPI and of the events."""

_TIMEOUT: Final = 10.0


def trim(text: str) -> str:
    """The text without the blanks around its lines."""
    return "\n".join(line.strip() for line in text.splitlines())


def words(trim: str) -> list[str]:
    """Its words, in lower case."""
    return [word.strip(".,;:()[]`*'\"").lower() for word in trim.split()]


def most_common(words: list[str]) -> list[tuple[str, int]]:
    """The ten words that occur most."""
    return Counter(word for word in words if len(word) > len("the")).most_common(10)


def density(trim: str) -> float:
    """How well it compresses: the share of its bytes that is left."""
    data = (trim * 20).encode()
    return len(lzma.compress(data)) / len(data)


def longest_sentence(trim: str) -> str:
    """The sentence with the most words."""
    return max(trim.replace("\n", " ").split(". "), key=lambda sentence: len(sentence.split()))


def report(most_common: list[tuple[str, int]], density: float, longest_sentence: str) -> str:
    """What was found, in a line."""
    word, times = most_common[0]
    return f"{word!r} occurs {times} times; density {density:.3f}; longest sentence: {longest_sentence}"


def year_of(words: list[str]) -> int:
    """Takes the first word for a year, which it is not."""
    return int(words[0])


WORD_COUNT: Final = Dag("word-count", [trim, words, most_common, density, longest_sentence, report])
"""Parallel modules."""

FAILING: Final = Dag(
    "age-of-text",
    [trim, words, year_of, most_common, longest_sentence, module(report, inputs={"density": "year_of"})],
)
"""One module fails; its dependent is not run, the others are."""


def archive(words: list[str], url: str, provider: TracerProvider) -> int:
    """Stores the words in SQLite and fetches a page over HTTP; both calls are instrumented."""
    with closing(sqlite3.connect(":memory:")) as plain:
        connection = SQLite3Instrumentor.instrument_connection(plain, provider)
        with closing(connection.cursor()) as cursor:
            cursor.execute("CREATE TABLE word (word TEXT)")
            cursor.executemany("INSERT INTO word VALUES (?)", [(word,) for word in words])
            cursor.execute("SELECT COUNT(DISTINCT word) FROM word")
            (distinct,) = cursor.fetchone()
    with urlopen(url, timeout=_TIMEOUT) as response:  # noqa: S310 - our own page, on loopback
        response.read()
    return int(distinct)


ARCHIVE: Final = Dag("archive", [trim, words, archive])
"""One module makes SQLite and HTTP calls, whose spans nest under its own."""


def slow_index(running: threading.Event, gate: threading.Event) -> Dag:
    """A pipeline that does not end by itself.

    Args:
        running: Set when its module runs.
        gate: What the module waits for, at most ten seconds.
    """

    def wait_for_more(words: list[str]) -> int:
        running.set()
        gate.wait(_TIMEOUT)
        return len(words)

    return Dag("slow-index", [trim, words, module(wait_for_more, name="wait-for-more")])


@contextmanager
def page(provider: TracerProvider) -> Iterator[str]:
    """Serves a page on loopback, with the HTTP client instrumented; gives its URL."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the overridden method's
            """Keeps the terminal for the traces."""

    instrumentor = URLLibInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
            thread = threading.Thread(target=server.serve_forever, name="page", daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}/"
            server.shutdown()
            thread.join(_TIMEOUT)
    finally:
        instrumentor.uninstrument()
