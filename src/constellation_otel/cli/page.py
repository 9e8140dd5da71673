"""An execution as one HTML page that needs nothing else: no network, no other file.

The page's frame, with its style sheet and its script, is ``data/execution.html``; what
is here fills it. Summary, critical path and errors are there without the script, which
draws the timeline. Everything that others wrote is escaped, and the page's own policy
allows no script, style or request but those in the frame.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from datetime import UTC, datetime
from hashlib import sha256
from html import escape
from importlib.resources import files
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from constellation_otel._support.text import printable, shown
from constellation_otel.cli.signs import UNICODE, duration_text, end_ns_of, outcome_of
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
    Span,
    tree_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from constellation_otel.traces import AttributeValue, CriticalPath

__all__ = ["page_of"]

_PLACE: Final = re.compile(r"@@(\w+)@@")
_INLINE: Final = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)
_KEPT: Final = "\n\t"
_MAX_LISTED: Final = 100
"""How many errors, and steps of the path, stand above the timeline, which has all of them."""
_IN_HEADER: Final = {EXECUTION_ID, DAG_NAME}
"""Attributes of every span, which the page has once."""


class _Row(Struct, frozen=True):
    """A row of the timeline.

    Attributes:
        span: Its span.
        level: How many spans are around it.
    """

    span: Span
    level: int


def page_of(spans: Sequence[Span], path: CriticalPath | None) -> str:
    """Makes the page of an execution.

    Args:
        spans: The spans of one execution, at least one, in any order.
        path: Its critical path.

    Returns:
        The HTML, to be written in UTF-8.
    """
    rows = list(_rows(spans))
    numbers = {row.span.span_id: number for number, row in reversed(list(enumerate(rows)))}
    start_ns = min(row.span.start_ns for row in rows)
    length_ns = max(end_ns_of(row.span) for row in rows) - start_ns
    top = next((row.span for row in rows if row.span.is_execution), rows[0].span)
    frame = files("constellation_otel").joinpath("data", "execution.html").read_text("utf-8")
    filling = {
        "policy": _policy_of(frame),
        "title": escape(_text(f"{top.name}: {_label(top)}")),
        "header": "\n".join(_header(top, rows, length_ns)),
        "path": "" if path is None else "\n".join(_path(path, rows, numbers)),
        "errors": "\n".join(_errors(rows)),
        "data": _json(_data(rows, numbers, path, start_ns, length_ns)),
    }
    return _PLACE.sub(lambda place: filling[place[1]], frame)


def _policy_of(frame: str) -> str:
    """What a browser may do with the page: its own style sheet and script, by their hashes, and nothing else."""
    hashes = {
        kind: b64encode(sha256(content.encode()).digest()).decode("ascii") for kind, content in _INLINE.findall(frame)
    }
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}';"
        " base-uri 'none'; form-action 'none'"
    )


def _rows(spans: Sequence[Span]) -> Iterator[_Row]:
    """All spans, as a tree from the top, siblings in the order of their starts."""
    tree = tree_of(sorted(spans, key=lambda span: (span.start_ns, span.name, span.span_id)))
    tops = [*tree.roots, *chain.from_iterable(tree.orphans.values()), *tree.cycles]
    levels = dict.fromkeys(tops, 0)
    for span_id in tree.walk(tops):
        level = levels[span_id]
        levels |= dict.fromkeys(tree.children.get(span_id, ()), level + 1)
        for span in tree.spans[span_id]:
            yield _Row(span, level)


def _text(text: str) -> str:
    """Text of others: with its lines, and without characters that do something."""
    return printable(text, _KEPT)


def _label(span: Span) -> str:
    """A span's outcome, in its own word."""
    outcome = span.attributes.get(OUTCOME)
    return outcome if isinstance(outcome, str) else outcome_of(span)


def _duration(duration_ns: int) -> str:
    return duration_text(duration_ns, UNICODE.micro)


def _header(top: Span, rows: Sequence[_Row], length_ns: int) -> Iterator[str]:
    kind = outcome_of(top)
    started = datetime.fromtimestamp(top.start_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    facts = {
        "Duration": _duration(length_ns),
        "Started": started,
        "Spans": f"{len(rows):,}",
        "Failed modules": f"{len(_failed(rows)):,}",
        "Execution": "" if top.execution_id is None else str(top.execution_id),
        "Trace": f"{top.trace_id:032x}",
    }
    yield f"<h1>{escape(_text(top.name))}</h1>"
    mark = f'<span aria-hidden="true">{UNICODE.mark(kind)}</span>'
    outcome = f'<span class="outcome {kind}">{mark} {escape(_text(_label(top)))}</span>'
    yield f"<dl>\n<div><dt>Outcome</dt><dd>{outcome}</dd></div>"
    for name, value in facts.items():
        if value:
            yield f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>"
    yield "</dl>"
    if top.status_description:
        yield f"<p>{escape(_text(top.status_description))}</p>"


def _path(path: CriticalPath, rows: Sequence[_Row], numbers: Mapping[int, int]) -> Iterator[str]:
    """The critical path's modules and gaps, in order."""
    in_modules = sum(part.end_ns - part.start_ns for part in path.parts)
    in_gaps = sum(gap.end_ns - gap.start_ns for gap in path.gaps)
    steps: list[tuple[int, str]] = []
    for part in path.parts:
        number = numbers[part.span_id]
        name, length = escape(_text(rows[number].span.name)), _duration(part.end_ns - part.start_ns)
        button = f'<button type="button" data-row="{number}">{name} <span class="quiet">{length}</span></button>'
        steps.append((part.start_ns, f"<li>{button}</li>"))
    steps += [
        (gap.start_ns, f'<li class="gap">gap of {_duration(gap.end_ns - gap.start_ns)}</li>') for gap in path.gaps
    ]
    yield '<section aria-labelledby="critical-path">\n<h2 id="critical-path">Critical path</h2>'
    yield f"<p>{_duration(in_modules)} in modules, gaps of {_duration(in_gaps)}.</p>"
    yield '<ol class="steps listed">'
    yield from (step for _, step in sorted(steps)[:_MAX_LISTED])
    yield "</ol>"
    yield from _more(len(steps))
    yield "</section>"


def _errors(rows: Sequence[_Row]) -> Iterator[str]:
    """What failed, with tracebacks; nothing where nothing did."""
    failed = _failed(rows)
    if not failed:
        return
    yield '<section aria-labelledby="errors">\n<h2 id="errors">Errors</h2>\n<div class="listed">'
    for number, span in failed[:_MAX_LISTED]:
        exceptions = _exceptions(span)
        error_type = next((one["type"] for one in exceptions if one["type"]), "")
        said = ": ".join(filter(None, [error_type, _text(span.status_description or "")]))
        mark = f'<span class="outcome failure"><span aria-hidden="true">{UNICODE.failure}</span>'
        yield f"<details>\n<summary>{mark} {escape(_text(span.name))}</span> {escape(said)}</summary>"
        yield from (
            f'<pre tabindex="0" role="region" aria-label="Traceback">{escape(one["stack"])}</pre>'
            for one in exceptions
            if one["stack"]
        )
        yield f'<p><button type="button" data-row="{number}">Show in the timeline</button></p>\n</details>'
    yield "</div>"
    yield from _more(len(failed))
    yield "</section>"


def _failed(rows: Sequence[_Row]) -> list[tuple[int, Span]]:
    """The modules that failed, each with its row's number."""
    return [
        (number, row.span)
        for number, row in enumerate(rows)
        if outcome_of(row.span) == "failure" and not row.span.is_execution
    ]


def _more(count: int) -> Iterator[str]:
    if count > _MAX_LISTED:
        yield f'<p class="quiet">{count - _MAX_LISTED:,} more are in the timeline.</p>'


def _data(
    rows: Sequence[_Row], numbers: Mapping[int, int], path: CriticalPath | None, start_ns: int, length_ns: int
) -> dict[str, Any]:
    """What the script draws; times are nanoseconds since the start."""
    parts: dict[int, list[tuple[int, int]]] = {}
    for part in () if path is None else path.parts:
        parts.setdefault(part.span_id, []).append((part.start_ns - start_ns, part.end_ns - start_ns))
    on_path = frozenset[int]() if path is None else path.span_ids
    gaps = [
        {
            "start": gap.start_ns - start_ns,
            "end": gap.end_ns - start_ns,
            "before": None if gap.before is None else numbers[gap.before],
        }
        for gap in (() if path is None else path.gaps)
    ]
    return {
        "length": length_ns,
        "gaps": gaps,
        "rows": [
            {
                "name": _text(row.span.name),
                "kind": outcome_of(row.span),
                "outcome": _text(_label(row.span)),
                "level": row.level,
                "start": row.span.start_ns - start_ns,
                "end": end_ns_of(row.span) - start_ns,
                "onPath": row.span.span_id in on_path,
                "parts": parts.get(row.span.span_id, []),
                "takes": _taken(row.span, numbers),
                "description": _text(row.span.status_description or ""),
                "exceptions": _exceptions(row.span),
                "events": _events(row.span, start_ns),
                "attributes": _pairs(row.span.attributes, _IN_HEADER),
            }
            for row in rows
        ],
    }


def _taken(span: Span, numbers: Mapping[int, int]) -> list[int]:
    """The rows of the modules whose outputs a module takes."""
    taken = (numbers.get(link.span_id) for link in span.links if link.attributes.get(LINK) == UPSTREAM)
    return [number for number in taken if number is not None]


def _exceptions(span: Span) -> list[dict[str, str]]:
    return [
        {
            "type": _value(event.attributes.get(EXCEPTION_TYPE, "")),
            "message": _value(event.attributes.get(EXCEPTION_MESSAGE, "")),
            "stack": _value(event.attributes.get(EXCEPTION_STACKTRACE, "")),
        }
        for event in span.events
        if event.name == EXCEPTION_EVENT
    ]


def _events(span: Span, start_ns: int) -> list[dict[str, Any]]:
    """What happened in a span besides exceptions."""
    return [
        {
            "at": max(0, event.timestamp_ns - start_ns),
            "text": "\n".join([_text(event.name), *(f"{name}: {value}" for name, value in _pairs(event.attributes))]),
        }
        for event in span.events
        if event.name != EXCEPTION_EVENT
    ]


def _pairs(attributes: Mapping[str, AttributeValue], without: frozenset[str] | set[str] = frozenset()) -> list[Any]:
    return [(_text(name), _value(value)) for name, value in attributes.items() if name not in without]


def _value(value: object) -> str:
    return _text(value if isinstance(value, str) else shown(value))


def _json(data: object) -> str:
    """JSON that ends no element and opens no comment, wherever in HTML it stands."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
