"""The marks, colours and units that all drawings of the command line share.

Colour is never the only sign: each outcome has its own mark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct
from opentelemetry.trace import StatusCode

from constellation_otel._support.text import printable
from constellation_otel.traces import OUTCOME, Span

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["ASCII", "STYLES", "UNICODE", "Glyphs", "duration_text", "end_ns_of", "outcome_of"]


class Glyphs(Struct, frozen=True):
    """The characters of a drawing.

    Attributes:
        success: The mark of this outcome.
        failure: The mark of this outcome.
        cancelled: The mark of this outcome.
        unknown: The mark of unknown and abandoned.
        other: The mark of another library's span.
        branch: Before a child that has later siblings.
        last: Before the last child.
        trunk: Before the lines below a child that has later siblings.
        from_left: Cells that are filled from the left edge, from 1/8 to the whole.
        from_right: The nearest characters for cells that are filled from the right edge.
        tick: Instead of a bar, for a span that is too short for one.
        ellipsis: In place of what is cut.
        separator: Between the parts of the header.
        micro: The prefix of microseconds.
    """

    success: str
    failure: str
    cancelled: str
    unknown: str
    other: str
    branch: str
    last: str
    trunk: str
    from_left: str
    from_right: str
    tick: str
    ellipsis: str
    separator: str
    micro: str

    def mark(self, outcome: str) -> str:
        """The mark of a key of ``STYLES``."""
        marks = {
            "success": self.success,
            "failure": self.failure,
            "cancelled": self.cancelled,
            "other": self.other,
        }
        return marks.get(outcome, self.unknown)

    def text(self, text: str, keep: str = "") -> str:
        """Text that this console can show, with control characters escaped, but for those that are kept."""
        escaped = printable(text, keep)
        return escaped.encode("ascii", "backslashreplace").decode() if self is ASCII else escaped

    def cut(self, text: Text, width: int) -> Text:
        """A line of at most so many columns."""
        if text.cell_len <= width:
            return text
        text.truncate(max(0, width - len(self.ellipsis)))
        return text.append(self.ellipsis[:width])


UNICODE: Final = Glyphs("✓", "✗", "⊘", "?", "·", "├ ", "└ ", "│ ", "▏▎▍▌▋▊▉█", "▕▕▐▐▐███", "▏", "…", " · ", "µ")
ASCII: Final = Glyphs("+", "x", "-", "?", ".", "|-", "`-", "| ", "   #####", "   #####", "|", "...", ", ", "u")

STYLES: Final = {
    "success": "green",
    "failure": "red",
    "cancelled": "yellow",
    "abandoned": "magenta",
    "unknown": "magenta",
    "other": "dim blue",
}


def end_ns_of(span: Span) -> int:
    """Where a span's bar ends."""
    # a clock may have been set back while the span was open
    return max(span.end_ns, span.start_ns)


def outcome_of(span: Span) -> str:
    """A span's outcome, or ``other``: a key of ``STYLES``."""
    outcome = span.attributes.get(OUTCOME)
    if isinstance(outcome, str) and outcome in STYLES:
        return outcome
    return "failure" if span.status is StatusCode.ERROR else "other"


def duration_text(duration_ns: int, micro: str) -> str:
    """A duration in the unit that suits it, with three digits or in two units.

    Args:
        duration_ns: Nanoseconds.
        micro: The prefix of microseconds.
    """
    for unit, unit_ns, limit in (
        ("ns", 1, 999.5),
        (f"{micro}s", 1_000, 999.5),
        ("ms", 1_000_000, 999.5),
        ("s", 1_000_000_000, 59.95),
    ):
        if duration_ns < limit * unit_ns:
            return f"{duration_ns / unit_ns:.3g} {unit}"
    minutes, seconds = divmod(round(duration_ns / 1_000_000_000), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
