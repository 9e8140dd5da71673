"""The waterfall, drawn by rich at fixed widths and compared with drawings that were checked by eye."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from opentelemetry.trace import SpanKind, StatusCode
from rich.cells import cell_len
from rich.console import Console

from constellation_otel.cli.waterfall import render_waterfall
from constellation_otel.errors import MissingExtraError
from constellation_otel.traces import MISSING, OUTCOME, AttributeValue, Span, SpanLink, critical_path_of
from support import UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Sequence

MS = 1_000_000
START = 1_700_000_000_000_000_000


def span(
    span_id: int,
    parent: int | None,
    name: str,
    start_ns: int,
    end_ns: int,
    outcome: str | None = None,
    *,
    error: str | None = None,
    status: StatusCode = StatusCode.UNSET,
    missing: AttributeValue = None,
    trace_id: int = 0x4BF92F3577B34DA6A3CE929D0E0E4736,
) -> Span:
    attributes: dict[str, AttributeValue] = {}
    if outcome is not None:
        attributes[OUTCOME] = outcome
    if missing is not None:
        attributes[MISSING] = missing
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent,
        trace_state="",
        trace_flags=1,
        name=name,
        kind=SpanKind.INTERNAL,
        start_ns=START + start_ns,
        end_ns=START + end_ns,
        attributes=attributes,
        status=status if error is None else StatusCode.ERROR,
        status_description=error,
    )


PIPELINE = [
    span(1, None, "my-pipeline", 0, 1_000 * MS, "failure", error="WordCount failed: boom"),
    span(2, 1, "Trim", 0, 250 * MS, "success"),
    span(3, 1, "Uppercase", 250 * MS, 500 * MS, "success"),
    span(4, 3, "GET /words", 300 * MS, 475 * MS),
    span(5, 1, "WordCount", 500 * MS, 1_000 * MS, "failure", error="boom"),
    span(6, 1, "Report", 600 * MS, 1_000 * MS, "unknown", missing="end"),
    span(7, 1, "Cleanup", 1_000 * MS, 1_000 * MS, "cancelled"),
]


def drawn(spans: Sequence[Span], width: int, encoding: str = "utf-8") -> str:
    """The drawing, as a file of that encoding would have it."""
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as file:
        Console(file=file, width=width).print(render_waterfall(spans))
        file.flush()
        return raw.getvalue().decode(encoding)


def test_a_trace_has_a_header_a_scale_and_a_bar_for_each_span() -> None:
    # 40 cells for the bars: 25 ms each
    assert (
        drawn(PIPELINE, 66)
        == """\
my-pipeline · failure · 1 s · 7 spans
trace 4bf92f3577b34da6a3ce929d0e0e4736
                  0                500 ms              1 s
✗ my-pipeline     ████████████████████████████████████████     1 s
  │ WordCount failed: boom
✓ ├ Trim          ██████████                                250 ms
✓ ├ Uppercase               ██████████                      250 ms
· │ └ GET /words              ███████                       175 ms
✗ ├ WordCount                         ████████████████████  500 ms
  │   boom
? ├ Report                                ████████████████  400 ms
  │   unknown; end missing
⊘ └ Cleanup                                              ▏    0 ns
      cancelled
"""
    )


def test_a_console_that_knows_only_ascii_gets_only_ascii() -> None:
    spans = [*PIPELINE, span(8, 1, "Zählen", 0, 600_000, "success")]
    assert (
        drawn(spans, 66, "latin-1")
        == """\
my-pipeline, failure, 1 s, 8 spans
trace 4bf92f3577b34da6a3ce929d0e0e4736
                  0                500 ms              1 s
x my-pipeline     ########################################     1 s
  | WordCount failed: boom
+ |-Trim          ##########                                250 ms
+ |-Z\\xe4hlen     |                                         600 us
+ |-Uppercase               ##########                      250 ms
. | `-GET /words              #######                       175 ms
x |-WordCount                         ####################  500 ms
  |   boom
? |-Report                                ################  400 ms
  |   unknown; end missing
- `-Cleanup                                              |    0 ns
      cancelled
"""
    )


def test_the_edges_of_bars_are_finer_than_a_cell() -> None:
    # 10 cells for the bars, 8 ns each: an eighth is 1 ns
    spans = [
        span(1, None, "all", 0, 80),
        span(2, 1, "to 1/8", 0, 9),
        span(3, 1, "to 7/8", 8, 23),
        span(4, 1, "from 2/8", 18, 32),
        span(5, 1, "from 4/8", 28, 40),
        span(6, 1, "from 6/8", 38, 48),
        span(7, 1, "inside", 49, 55),
        span(8, 1, "3/8", 57, 60),
        span(9, 1, "backwards", 64, 60),
    ]
    assert (
        drawn(spans, 32)
        == """\
all · 80 ns · 9 spans
trace 4bf92f3577b34da6a3ce929d0…
               0    80 ns
· all          ██████████  80 ns
· ├ to 1/8     █▏           9 ns
· ├ to 7/8      █▉         15 ns
· ├ from 2/8     ██        14 ns
· ├ from 4/8      ▐█       12 ns
· ├ from 6/8       ▕█      10 ns
· ├ inside           ▊      6 ns
· ├ 3/8               ▏     3 ns
· └ backwards          ▏    0 ns
"""
    )


def test_a_narrow_console_cuts_names_and_a_very_narrow_one_has_no_bars() -> None:
    spans = [
        span(1, None, "a-pipeline-with-a-long-name", 0, 65_000 * MS, "success"),
        span(2, 1, "漢字モジュール", 0, 5_000 * MS, "failure", error="one two three four five six seven"),
    ]
    assert (
        drawn(spans, 40)
        == """\
a-pipeline-with-a-long-name · success ·…
trace 4bf92f3577b34da6a3ce929d0e0e4736
                  0 1 min 5 s
✓ a-pipeline-wi…  ███████████  1 min 5 s
✗ └ 漢字モジュ …  ▉                  5 s
      one two three four five six seven
"""
    )
    assert "\n                 0\n" in drawn(spans, 38)
    assert (
        drawn(spans, 26)
        == """\
a-pipeline-with-a-long-na…
trace 4bf92f3577b34da6a3c…
✓ a-pipeline-w…  1 min 5 s
✗ └ 漢字モジュ…        5 s
      one two three four
      five six seven
"""
    )


def test_a_trace_without_its_root_says_which_span_is_not_there() -> None:
    spans = [
        span(2, 0xF067AA0BA902B7, "my-pipeline", 10, 90, "abandoned", error="abandoned without an end: idle"),
        span(3, 2, "Trim", 20, 50, "unknown", missing="start,end"),
        span(4, 0xF067AA0BA902B7, "audit", 90, 90),
    ]
    assert (
        drawn(spans, 60)
        == """\
my-pipeline · abandoned · 80 ns · 3 spans
trace 4bf92f3577b34da6a3ce929d0e0e4736
                 0              40 ns           80 ns
  … (parent 00f067aa0ba902b7 is missing)
? ├ my-pipeline  ████████████████████████████████████  80 ns
  │ │ abandoned without an end: idle
? │ └ Trim           ▐█████████████                    30 ns
  │     unknown; start missing; end missing
· └ audit                                           ▏   0 ns
"""
    )


def test_spans_that_are_each_others_ancestors_are_all_drawn() -> None:
    spans = [span(1, 2, "a", 0, 40), span(2, 1, "b", 10, 40), span(3, 3, "c", 20, 40)]
    assert (
        drawn(spans, 30)
        == """\
a · 40 ns · 3 spans
trace 4bf92f3577b34da6a3ce929…
         0        40 ns
  … (parents form a cycle)
· └ a    ██████████████  40 ns
·   └ b     ▐██████████  30 ns
  … (parents form a cycle)
· └ c           ███████  20 ns
"""
    )


def test_a_span_that_was_delivered_twice_is_drawn_twice() -> None:
    spans = [span(1, None, "dag", 0, 8), span(1, None, "dag", 0, 8), span(2, 1, "m", 0, 8)]
    assert [line[:5].rstrip() for line in drawn(spans, 80).splitlines()[3:]] == ["· dag", "· dag", "· └ m"]


def test_traces_are_drawn_in_the_order_of_their_starts_with_a_line_between() -> None:
    spans = [
        span(1, None, "later", 5, 5, "success", trace_id=1),
        span(1, None, "sooner", 0, 0, status=StatusCode.ERROR, trace_id=2),
    ]
    assert (
        drawn(spans, 40)
        == f"""\
sooner · failure · 0 ns · 1 span
trace {2:032x}
          0
✗ sooner  ▏                         0 ns
    failure

later · success · 0 ns · 1 span
trace {1:032x}
         0
✓ later  ▏                          0 ns
"""
    )


def test_no_spans_draw_nothing() -> None:
    assert drawn([], 80) == ""


def test_control_characters_are_escaped() -> None:
    spans = [span(1, None, "a\x1b[31m\n\ud800\N{RIGHT-TO-LEFT OVERRIDE}", 0, 8, "failure", error="x\x1b]0;t\x07\r\ny")]
    text = drawn(spans, 120)
    assert "a\\x1b[31m\\n\\ud800\\u202e" in text
    assert text.splitlines()[-2:] == ["    x\\x1b]0;t\\x07\\r", "    y"]
    assert all(char.isprintable() or char == "\n" for char in text)


def test_a_long_description_is_wrapped_and_cut_after_three_lines() -> None:
    spans = [span(1, None, "dag", 0, 8, "failure", error="word " * 100)]
    assert drawn(spans, 30).splitlines()[4:] == [
        "    word word word word word",
        "    word word word word word",
        "    word word word word word…",
    ]


def test_an_odd_attribute_of_missing_is_passed_over() -> None:
    spans = [span(1, None, "dag", 0, 8, "success", missing=3), span(2, 1, "m", 0, 8, "odd", missing=("x",))]
    assert [line[0] for line in drawn(spans, 80).splitlines()[3:]] == ["✓", "·"]


@pytest.mark.parametrize(
    ("duration_ns", "said"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1 µs"),
        (1_234, "1.23 µs"),
        (999_499, "999 µs"),
        (999_500, "1 ms"),
        (12_340_000, "12.3 ms"),
        (999_500_000, "1 s"),
        (59_900_000_000, "59.9 s"),
        (59_950_000_000, "1 min 0 s"),
        (3_599_499_999_999, "59 min 59 s"),
        (3_599_500_000_000, "1 h 0 min"),
        (7_380_000_000_000, "2 h 3 min"),
        (90_000_000_000_000, "1 d 1 h"),
    ],
)
def test_durations_have_the_unit_that_suits_them(duration_ns: int, said: str) -> None:
    assert drawn([span(1, None, "dag", 0, duration_ns)], 80).startswith(f"dag · {said} · 1 span\n")


def test_each_outcome_has_its_colour_and_without_colour_its_mark() -> None:
    spans = [
        span(number, None, outcome or "other", 0, 8, outcome)
        for number, outcome in enumerate(["success", "failure", "cancelled", "abandoned", "unknown", None], 1)
    ]
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="standard", no_color=False)
    console.print(render_waterfall(spans))
    lines = [line for line in file.getvalue().splitlines() if "█" in line]
    assert [line.split("m", 1)[0].removeprefix("\x1b[") for line in lines] == ["35", "33", "31", "2;34", "32", "35"]
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="standard", no_color=True)
    console.print(render_waterfall(spans))
    lines = [line for line in file.getvalue().splitlines() if "█" in line]
    assert [line.replace("\x1b[2m", "")[0] for line in lines] == ["?", "⊘", "✗", "·", "✓", "?"]
    assert "\x1b[3" not in file.getvalue()


@UNWATCHED
def test_a_trace_deeper_than_pythons_stack_is_drawn() -> None:
    spans = [span(number, number - 1 or None, "s", 0, 8) for number in range(1, 1_501)]
    assert len(drawn(spans, 80).splitlines()) == 1_503


@UNWATCHED
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.text(max_size=30), st.integers(0, 10**12), st.integers(0, 10**12), st.text()),
        max_size=6,
    ),
    st.integers(28, 130),
    st.sampled_from(["utf-8", "ascii"]),
)
def test_any_trace_fits_its_console(parts: list[tuple[int, str, int, int, str]], width: int, encoding: str) -> None:
    spans = [
        span(number, parent or None, name or "s", start, end, "failure", error=error or None)
        for number, (parent, name, start, end, error) in enumerate(parts, 1)
    ]
    lines = drawn(spans, width, encoding).splitlines()
    assert [line for line in lines if cell_len(line) > width] == []


def test_without_rich_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(
        MissingExtraError, match=r"^rich is not installed; run: pip install 'constellation-otel\[cli\]'$"
    ):
        render_waterfall(PIPELINE)


def test_what_a_module_takes_is_on_a_line_below_it() -> None:
    """Of the links that say so, to spans of the trace."""
    links = tuple(
        SpanLink(1, target, {"constellation.link": about})
        for target, about in ((2, "upstream"), (9, "upstream"), (1, "why"))
    )
    count = structs.replace(span(3, 1, "count", 4, 8, "success"), links=links)
    spans = [span(1, None, "dag", 0, 8, "success"), span(2, 1, "trim", 0, 4, "success"), count]
    raw = io.StringIO()
    Console(file=raw, width=60).print(render_waterfall(spans, with_links=True))
    assert raw.getvalue().splitlines()[-1] == "      takes from trim"
    assert "takes from" not in drawn(spans, 60)


def test_the_critical_path_is_marked_and_its_gaps_are_said() -> None:
    """A gap of less than 1 % is only in the sum."""
    spans = [
        structs.replace(span(1, None, "dag", 0, 1_000, "success"), is_execution=True),
        span(2, 1, "short", 9, 300, "success"),
        span(3, 1, "long", 9, 400, "success"),
        span(4, 1, "late", 500, 800, "failure", error="boom"),
    ]
    raw = io.StringIO()
    Console(file=raw, width=60).print(render_waterfall(spans, path=critical_path_of(spans)))
    assert (
        raw.getvalue()
        == """\
dag · success · 1 µs · 4 spans
trace 4bf92f3577b34da6a3ce929d0e0e4736
* critical path: 691 ns in 2 modules, gaps of 309 ns
           0                500 ns              1 µs
✓ dag      █████████████████████████████████████████    1 µs
  │ gap of 200 ns at the end
✓*├ long   ▐███████████████▍                          391 ns
✓ ├ short  ▐███████████▎                              291 ns
✗*└ late                       ▐███████████▊          300 ns
      boom; gap of 100 ns before it
"""
    )
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    lone = [spans[0], spans[3]]
    Console(file=file, width=30).print(render_waterfall(lone, path=critical_path_of(lone)))
    file.seek(0)
    assert file.readlines()[2] == "* critical path: 300 ns in ...\n"
