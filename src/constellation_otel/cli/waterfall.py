"""A trace as a waterfall in the terminal: what ran when, for how long, and with which outcome.

Drawing only, with rich (the extra ``cli``). Colour is never the only sign: each outcome
has its own mark.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from constellation_otel.cli.signs import ASCII, STYLES, UNICODE, Glyphs, duration_text, end_ns_of, outcome_of
from constellation_otel.errors import MissingExtraError
from constellation_otel.traces import LINK, MISSING, UPSTREAM, Span, tree_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.text import Text

    from constellation_otel.traces import CriticalPath, Tree

__all__ = ["render_waterfall"]


def render_waterfall(
    spans: Sequence[Span], *, with_links: bool = False, path: CriticalPath | None = None
) -> RenderableType:
    """Draws traces for a rich console: ``Console().print(render_waterfall(spans))``.

    A trace's header has its root's name and outcome, its length, its number of spans and
    its id. Each span has a line: a mark and a colour for its outcome, its name in the
    tree, a bar on the trace's time scale, its duration. Why it failed, and which of its
    events never arrived, follows on lines below. Siblings are ordered by start. A span
    whose parent is not among ``spans`` stands under a line that says so.

    The drawing takes the console's width: names are cut, and below about 30 columns
    there are no bars. On a console without Unicode it is all ASCII, and other characters
    of names are escaped. Control characters are always escaped.

    Args:
        spans: The spans of any number of traces, in any order; the traces are drawn in
            the order of their starts.
        with_links: Whether a line below a module says which modules' outputs it takes.
        path: The critical path of one of them, which is marked with stars. A line below the
            header sums it up, and a gap of 1 % or more has a line where it is.

    Raises:
        MissingExtraError: rich is not installed.
    """
    try:
        import rich  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        library, extra = "rich", "cli"
        raise MissingExtraError(library, extra) from error
    return _Waterfall(spans, with_links=with_links, path=path)


_MISSING: Final = {"start": "start missing", "end": "end missing"}

_GAP: Final = "  "
_NAME_SHARE: Final = 0.35
"""The share of the width that long names get at most."""
_MIN_NAME: Final = 12
_MIN_BAR: Final = 8
"""Columns below which a bar shows nothing."""
_MIN_BAR_WITH_MIDDLE: Final = 30
"""Columns from which the time scale has a label in its middle."""
_MARK_WIDTH: Final = 2
_MAX_NOTE_LINES: Final = 3
_ON_PATH: Final = "*"
_MIN_GAP: Final = 100
"""A gap is said where it is if so many of it are as long as the execution."""
_EIGHTHS: Final = 8


class _Row(Struct, frozen=True):
    """A row of the tree.

    Attributes:
        span: The span; ``None`` for a placeholder.
        label: The placeholder's text.
        guide: The tree's lines before the name.
        guide_below: The tree's lines before further lines of this row.
    """

    span: Span | None
    label: str
    guide: str
    guide_below: str


class _Waterfall:
    """The object that rich draws."""

    def __init__(self, spans: Sequence[Span], *, with_links: bool, path: CriticalPath | None) -> None:
        self._with_links = with_links
        self._path = path
        traces: defaultdict[int, list[Span]] = defaultdict(list)
        for span in sorted(spans, key=_by_start):
            traces[span.trace_id].append(span)
        self._traces = list(traces.values())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text  # noqa: PLC0415 - an extra

        for number, trace in enumerate(self._traces):
            if number:
                yield Text()
            drawing = _Drawing(trace, options, with_links=self._with_links, path=self._path)
            yield from drawing.lines(console)


class _Drawing:
    """One trace on one console. Its spans are in the order of their starts."""

    def __init__(
        self, trace: list[Span], options: ConsoleOptions, *, with_links: bool, path: CriticalPath | None
    ) -> None:
        self._trace = trace
        self._names = {span.span_id: span.name for span in trace} if with_links else {}
        self._glyphs = ASCII if options.ascii_only else UNICODE
        self._width = options.max_width
        self._start_ns = trace[0].start_ns
        self._length_ns = max(map(end_ns_of, trace)) - self._start_ns
        self._rows = list(_rows(trace, self._glyphs))
        self._path = path
        # what is too short to be seen is in the sum only
        gaps = () if path is None else path.gaps
        self._gaps = {gap.before: gap for gap in gaps if _MIN_GAP * (gap.end_ns - gap.start_ns) >= self._length_ns}

    def lines(self, console: Console) -> Iterator[Text]:
        duration_width = max(len(self._duration(end_ns_of(span) - span.start_ns)) for span in self._trace)
        name_width, bar_width = self._columns(duration_width)
        yield from self._header()
        if self._path is not None:
            yield self._summary(self._path)
        if bar_width:
            yield self._scale(name_width, bar_width)
        for row in self._rows:
            if row.span is None:
                yield self._placeholder(row)
            else:
                yield self._line(row, row.span, name_width, bar_width, duration_width)
                yield from self._notes(row, row.span, console)

    def _columns(self, duration_width: int) -> tuple[int, int]:
        """The widths of names and bars; 0 for bars if there is no room for them."""
        from rich.cells import cell_len  # noqa: PLC0415 - an extra

        longest = max(
            cell_len(row.guide + self._glyphs.text(row.span.name)) for row in self._rows if row.span is not None
        )
        free = self._width - _MARK_WIDTH - len(_GAP) - duration_width
        name_width = min(longest, max(_MIN_NAME, int(self._width * _NAME_SHARE)))
        bar_width = free - name_width - len(_GAP)
        if bar_width < _MIN_BAR:
            return max(1, min(longest, free)), 0
        return name_width, bar_width

    def _header(self) -> Iterator[Text]:
        from rich.text import Text  # noqa: PLC0415 - an extra

        top = next(row.span for row in self._rows if row.span is not None)
        spans = f"{len(self._trace)} span{'s' if len(self._trace) > 1 else ''}"
        outcome = outcome_of(top)
        separator = (self._glyphs.separator, "dim")
        parts: list[str | tuple[str, str]] = [(self._glyphs.text(top.name), "bold")]
        if outcome != "other":
            parts += [separator, (outcome, f"bold {STYLES[outcome]}")]
        parts += [separator, self._duration(self._length_ns), separator, spans]
        yield self._glyphs.cut(Text.assemble(*parts), self._width)
        yield self._glyphs.cut(Text(f"trace {top.trace_id:032x}", style="dim"), self._width)

    def _summary(self, path: CriticalPath) -> Text:
        """The line about the critical path: how much of it is modules', and how much nobody's."""
        from rich.text import Text  # noqa: PLC0415 - an extra

        in_modules = sum(part.end_ns - part.start_ns for part in path.parts)
        in_gaps = sum(gap.end_ns - gap.start_ns for gap in path.gaps)
        modules = f"{len(path.span_ids)} module{'' if len(path.span_ids) == 1 else 's'}"
        text = f"{_ON_PATH} critical path: {self._duration(in_modules)} in {modules}, gaps of {self._duration(in_gaps)}"
        return self._glyphs.cut(Text(text, style="dim"), self._width)

    def _scale(self, name_width: int, bar_width: int) -> Text:
        """The line above the bars: the times at their beginning, middle and end."""
        from rich.text import Text  # noqa: PLC0415 - an extra

        end = self._duration(self._length_ns) if self._length_ns else ""
        middle = self._duration(self._length_ns // 2) if end and bar_width >= _MIN_BAR_WITH_MIDDLE else ""
        room = bar_width - len("0") - len(end)
        scale = f"{middle:^{bar_width - 2}}"[:room] + end if room > 0 else ""
        indent = " " * (_MARK_WIDTH + name_width + len(_GAP))
        return Text(f"{indent}0{scale}".rstrip(), style="dim")

    def _placeholder(self, row: _Row) -> Text:
        from rich.text import Text  # noqa: PLC0415 - an extra

        text = Text(f"{' ' * _MARK_WIDTH}{self._glyphs.ellipsis} ({row.label})", style="dim")
        return self._glyphs.cut(text, self._width)

    def _line(self, row: _Row, span: Span, name_width: int, bar_width: int, duration_width: int) -> Text:
        from rich.text import Text  # noqa: PLC0415 - an extra

        outcome = outcome_of(span)
        style = STYLES[outcome]
        name_style = style if outcome == "other" else ""
        name = self._glyphs.cut(
            Text.assemble((row.guide, "dim"), (self._glyphs.text(span.name), name_style)), name_width
        )
        name.pad_right(name_width - name.cell_len)
        parts: list[str | Text | tuple[str, str]] = [(self._glyphs.mark(outcome), style), self._star(span), name, _GAP]
        if bar_width:
            parts += [(self._bar(span, bar_width), style), _GAP]
        return Text.assemble(*parts, f"{self._duration(end_ns_of(span) - span.start_ns):>{duration_width}}")

    def _star(self, span: Span) -> str:
        return _ON_PATH if self._path is not None and span.span_id in self._path.span_ids else " "

    def _notes(self, row: _Row, span: Span, console: Console) -> Iterator[Text]:
        """The lines under a span's name: why it failed, what is missing."""
        from rich.text import Text  # noqa: PLC0415 - an extra

        outcome = outcome_of(span)
        said = [span.status_description or ("" if outcome in {"success", "other"} else outcome)]
        missing = span.attributes.get(MISSING)
        if isinstance(missing, str):
            said += [said_of for which, said_of in _MISSING.items() if which in missing]
        upstream = [
            self._names[link.span_id]
            for link in span.links
            if link.attributes.get(LINK) == UPSTREAM and link.span_id in self._names
        ]
        if upstream:
            said.append(f"takes from {', '.join(upstream)}")
        gap = self._gaps.get(None if span.is_execution else span.span_id)
        if gap is not None:
            where = "at the end" if span.is_execution else "before it"
            said.append(f"gap of {self._duration(gap.end_ns - gap.start_ns)} {where}")
        note = Text(self._glyphs.text("; ".join(filter(None, said)), keep="\n"), style=STYLES[outcome])
        indent = Text.assemble(" " * _MARK_WIDTH, (row.guide_below, "dim"))
        width = max(1, self._width - indent.cell_len)
        lines: list[Text] = list(note.wrap(console, width)) if note else []
        for number, line in enumerate(lines[:_MAX_NOTE_LINES], 1):
            line.rstrip()
            if number == _MAX_NOTE_LINES < len(lines):
                line.truncate(max(0, width - len(self._glyphs.ellipsis)))
                line.append(self._glyphs.ellipsis[:width])
            yield Text.assemble(indent, line)

    def _bar(self, span: Span, width: int) -> str:
        """The span's bar, as exact at its edges as there are characters."""
        scale = width * _EIGHTHS / self._length_ns if self._length_ns else 0
        start = round((span.start_ns - self._start_ns) * scale)
        end = round((end_ns_of(span) - self._start_ns) * scale)
        if end - start < _EIGHTHS // 2:
            cell = min(start // _EIGHTHS, width - 1)
            return " " * cell + self._glyphs.tick + " " * (width - 1 - cell)
        return "".join(
            self._cell(max(0, start - left), min(_EIGHTHS, end - left)) for left in range(0, width * _EIGHTHS, _EIGHTHS)
        )

    def _cell(self, begin: int, end: int) -> str:
        """One cell of a bar, filled from one eighth to another."""
        if begin >= end:
            return " "
        if end == _EIGHTHS:
            return self._glyphs.from_right[end - begin - 1]
        return self._glyphs.from_left[end - begin - 1]

    def _duration(self, duration_ns: int) -> str:
        return duration_text(duration_ns, self._glyphs.micro)


def _by_start(span: Span) -> tuple[int, str, int]:
    return span.start_ns, span.name, span.span_id


def _rows(trace: Sequence[Span], glyphs: Glyphs) -> Iterator[_Row]:
    """The trace's tree from the top."""
    tree = tree_of(trace)
    yield from _subtrees(tree, tree.roots, dict.fromkeys(tree.roots, ("", "")), glyphs)
    for parent, siblings in tree.orphans.items():
        yield _Row(None, f"parent {parent:016x} is missing", "", "")
        yield from _subtrees(tree, siblings, _guides(siblings, "", glyphs), glyphs)
    for top in tree.cycles:
        yield _Row(None, "parents form a cycle", "", "")
        yield from _subtrees(tree, [top], _guides([top], "", glyphs), glyphs)


def _subtrees(tree: Tree, span_ids: list[int], guides: dict[int, tuple[str, str]], glyphs: Glyphs) -> Iterator[_Row]:
    """Siblings, each with what is below it; ``guides`` has their lines before the name and below it."""
    for span_id in tree.walk(span_ids):
        guide, below = guides.pop(span_id)
        children = tree.children.get(span_id, [])
        guides |= _guides(children, below, glyphs)
        for span in tree.spans[span_id]:
            yield _Row(span, "", guide, below + (glyphs.trunk if children else "  "))


def _guides(siblings: list[int], below: str, glyphs: Glyphs) -> dict[int, tuple[str, str]]:
    guides = dict.fromkeys(siblings, (below + glyphs.branch, below + glyphs.trunk))
    return guides | dict.fromkeys(siblings[-1:], (below + glyphs.last, below + "  "))
