"""An execution's page, read as HTML; a real browser is in the end-to-end tests."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from opentelemetry.trace import SpanKind, StatusCode

from commands import HOSTILE
from constellation_otel.cli.page import page_of
from constellation_otel.traces import (
    DAG_NAME,
    EXCEPTION_EVENT,
    EXCEPTION_MESSAGE,
    EXCEPTION_STACKTRACE,
    EXCEPTION_TYPE,
    EXECUTION_ID,
    LINK,
    OUTCOME,
    UPSTREAM,
    AttributeValue,
    Span,
    SpanEvent,
    SpanLink,
    critical_path_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

START = 1_795_465_363_577_000_000
MS = 1_000_000


def span(
    span_id: int,
    start_ms: int,
    end_ms: int,
    outcome: str | None = "success",
    *,
    parent: int | None = 1,
    name: str = "",
    error: str | None = None,
    events: Sequence[SpanEvent] = (),
    takes: Sequence[int] = (),
    attributes: Mapping[str, AttributeValue] = MappingProxyType({}),
) -> Span:
    """A module's span, or with the id 1 the execution's own."""
    own: dict[str, AttributeValue] = {EXECUTION_ID: "an id", DAG_NAME: "nightly", **attributes}
    if outcome is not None:
        own[OUTCOME] = outcome
    return Span(
        trace_id=0x4BF92F3577B34DA6A3CE929D0E0E4736,
        span_id=span_id,
        parent_span_id=None if span_id == 1 else parent,
        trace_state="",
        trace_flags=1,
        name=name or ("nightly" if span_id == 1 else f"m{span_id}"),
        kind=SpanKind.INTERNAL,
        start_ns=START + start_ms * MS,
        end_ns=START + end_ms * MS,
        attributes={
            EXECUTION_ID: "an id",
            DAG_NAME: "nightly",
            **attributes,
            **({OUTCOME: outcome} if outcome else {}),
        },
        status=StatusCode.UNSET if error is None else StatusCode.ERROR,
        status_description=error,
        events=tuple(events),
        execution_id=UUID(int=7) if span_id == 1 else None,
        is_execution=span_id == 1,
        links=tuple(SpanLink(1, target, {LINK: UPSTREAM}) for target in takes),
    )


def exception(stack: AttributeValue = "Traceback\n  x < y") -> SpanEvent:
    attributes = {EXCEPTION_TYPE: "ValueError", EXCEPTION_MESSAGE: "bo<om>", EXCEPTION_STACKTRACE: stack}
    return SpanEvent(EXCEPTION_EVENT, START, attributes, is_failure=True)


RUN = [
    span(1, 0, 100, "failure", error="m3 failed: boom"),
    span(2, 5, 40),
    span(3, 45, 90, "failure", error="boom", events=[exception()], takes=[2, 99]),
    span(4, 5, 10, "skipped"),
    span(5, 6, 7, None, parent=2, attributes={"rows": 3, "note": HOSTILE}),
]


class Read(HTMLParser):
    """A page that was read: each element's attributes and text, by its tag.

    Attributes:
        elements: The tag, the attributes and the text of each that was closed, in the order of their ends.
        comments: All comments.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.comments: list[str] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"meta", "input"}:
            self.elements.append((tag, dict(attrs), ""))
        else:
            self._open.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        opened, attributes, texts = self._open.pop()
        assert opened == tag
        self.elements.append((tag, attributes, "".join(texts)))

    def handle_data(self, data: str) -> None:
        for _, _, texts in self._open:
            texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def texts(self, tag: str) -> list[str]:
        return [text for found, _, text in self.elements if found == tag]

    @property
    def data(self) -> dict[str, Any]:
        """What the script draws."""
        (text,) = (text for _, attributes, text in self.elements if attributes.get("id") == "data")
        read: dict[str, Any] = json.loads(text)
        return read


def page(*spans: Span) -> Read:
    return Read(page_of(spans, critical_path_of(spans)))


def test_a_page_has_its_summary_path_and_errors_without_its_script() -> None:
    read = page(*reversed(RUN))
    assert read.texts("title") == ["nightly: failure"]
    assert read.texts("h1") == ["nightly"]
    facts = dict(zip(read.texts("dt"), read.texts("dd"), strict=True))
    assert facts == {
        "Outcome": "✗ failure",
        "Duration": "100 ms",
        "Started": "2026-11-23 20:22:43 UTC",
        "Spans": "5",
        "Failed modules": "1",
        "Execution": str(UUID(int=7)),
        "Trace": "4bf92f3577b34da6a3ce929d0e0e4736",
    }
    assert read.texts("li") == [
        "gap of 5 ms",
        "m2 1 ms",
        "m5 1 ms",
        "m2 33 ms",
        "gap of 5 ms",
        "m3 45 ms",
        "gap of 10 ms",
    ]
    assert read.texts("p")[:2] == ["m3 failed: boom", "80 ms in modules, gaps of 20 ms."]
    assert read.texts("summary") == ["✗ m3 ValueError: boom"]
    assert read.texts("pre") == ["Traceback\n  x < y"]


def test_the_script_gets_rows_as_a_tree_with_edges_and_times_from_the_start() -> None:
    data = page(*RUN).data
    assert data["length"] == 100 * MS
    assert data["gaps"] == [
        {"start": 0, "end": 5 * MS, "before": 1},
        {"start": 40 * MS, "end": 45 * MS, "before": 4},
        {"start": 90 * MS, "end": 100 * MS, "before": None},
    ]
    rows = data["rows"]
    assert [(row["name"], row["level"], row["kind"], row["outcome"], row["onPath"]) for row in rows] == [
        ("nightly", 0, "failure", "failure", False),
        ("m2", 1, "success", "success", True),
        ("m5", 2, "other", "other", True),
        ("m4", 1, "other", "skipped", False),
        ("m3", 1, "failure", "failure", True),
    ]
    assert rows[1]["parts"] == [[5 * MS, 6 * MS], [7 * MS, 40 * MS]]
    assert (rows[4]["start"], rows[4]["end"], rows[4]["takes"]) == (45 * MS, 90 * MS, [1])
    assert rows[4]["exceptions"] == [{"type": "ValueError", "message": "bo<om>", "stack": "Traceback\n  x < y"}]
    assert rows[2]["attributes"] == [["rows", "3"], ["note", "a\\x1b[2J\\x9b5n\\u202e[red]b[/]"]]


def test_a_page_needs_nothing_else_and_its_policy_allows_nothing_else() -> None:
    text = page_of(RUN, critical_path_of(RUN))
    read = Read(text)
    assert (
        re.findall(r"\b(?:src|href|action|style|on\w+)=|@import|url\(|https?:(?!//www\.w3\.org/2000/svg)", text) == []
    )
    hashes = {
        tag: f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
        for tag, attributes, content in read.elements
        if tag in {"script", "style"} and not attributes
    }
    (policy,) = (
        attributes["content"]
        for _, attributes, _ in read.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']};"
        " base-uri 'none'; form-action 'none'"
    )


def test_without_a_path_or_an_error_a_page_does_not_speak_of_them() -> None:
    read = page(span(2, 0, 10, parent=9), span(3, 20, 30, parent=9))
    assert read.texts("h1") == ["m2"]
    assert read.texts("h2") == ["Timeline"]
    assert "Execution" not in read.texts("dt")
    assert (read.data["gaps"], [row["level"] for row in read.data["rows"]]) == ([], [0, 0])


def test_what_is_too_much_for_a_list_is_in_the_timeline() -> None:
    modules = [span(number, number, number + 1, "failure") for number in range(2, 155)]
    read = page(span(1, 0, 200), *modules)
    assert (len(read.texts("li")), len(read.texts("summary"))) == (100, 100)
    assert [text for text in read.texts("p") if "more" in text] == [
        "55 more are in the timeline.",
        "53 more are in the timeline.",
    ]
    assert read.texts("summary")[0] == "✗ m2 "


def test_an_exception_without_a_traceback_and_events_of_a_body_are_there() -> None:
    """An event from before the start is at the start; what is no text is shown as Python has it."""
    events = [exception(""), SpanEvent("cache miss", START - 5, {"key": "k", "sizes": (1, 2)})]
    read = page(span(1, 0, 10), span(2, 0, 10, "failure", events=events))
    assert (read.texts("summary"), read.texts("pre")) == (["✗ m2 ValueError"], [])
    assert read.data["rows"][1]["events"] == [{"at": 0, "text": "cache miss\nkey: k\nsizes: (1, 2)"}]


def test_spans_that_are_odd_have_rows_too() -> None:
    """Two with one id, each other's parents, and one that ends before it starts."""
    read = page(
        span(1, 0, 10), span(2, 0, 5), span(2, 0, 5), span(3, 9, 8), span(4, 0, 5, parent=5), span(5, 0, 5, parent=4)
    )
    assert [(row["name"], row["level"]) for row in read.data["rows"]] == [
        ("nightly", 0), ("m2", 1), ("m2", 1), ("m3", 1), ("m4", 0), ("m5", 1),
    ]  # fmt: skip
    assert read.data["rows"][3]["end"] == read.data["rows"][3]["start"]


TEXTS = st.text(min_size=1, max_size=30) | st.lists(
    st.sampled_from(
        ["</script>", "<!--", "-->", "<script>", "]]>", "@@data@@", "@@title@@", "&lt;", '"', "'", "\\", "\0"]
    ),
    min_size=1,
).map("".join)


@given(TEXTS, TEXTS, TEXTS)
def test_whatever_texts_a_trace_has_they_are_text_in_its_page(name: str, error: str, stack: str) -> None:
    run = [
        structs.replace(RUN[0], name=name, status_description=error),
        span(2, 0, 5, name, name=name, error=error, events=[exception(stack)], attributes={name: stack}),
    ]
    text = page_of(run, critical_path_of(run))
    read = Read(text)
    text.encode("utf-8")
    assert all(char.isprintable() or char in "\n\t" for char in text)
    assert [tag for tag, _, _ in read.elements].count("script") == 2
    assert read.comments == []
    (_, row) = read.data["rows"]
    assert read.texts("h1") == [row["name"]]
    assert read.texts("pre") == [row["exceptions"][0]["stack"]]
    if name.isprintable() and stack.isprintable():
        assert (row["name"], row["exceptions"][0]["stack"]) == (name, stack)
