"""Measures every row of the table, prints a line for each, and writes docs/performance.md.

``python -m bench ROW...`` measures some of them, by name, and writes nothing. What is
not held is printed; it is no error.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Final

from bench import (
    adapters,
    growth,
    hot_path,
    import_time,
    journal_append,
    listeners,
    memory,
    otlp_encoding,
    pipelines,
    replay,
)
from bench.endpoint import started_endpoint
from bench.report import HEAD, page_of, write_page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.report import Figure, Row

_ROWS: Final = (
    hot_path.ROW,
    *listeners.ROWS,
    replay.ROW,
    otlp_encoding.ROW,
    pipelines.ROW,
    memory.ROW,
    *growth.ROWS,
)
_LINES: Final = {"import-time": import_time.line, "journal-append": journal_append.line, "adapters": adapters.line}
_WIDTHS: Final = (64, 9, 9, 13, 12, 12, 0)


def _print(cells: Sequence[str]) -> None:
    print("  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip(), flush=True)


def _chosen() -> list[str]:
    """The names on the command line; none where everything is to be measured."""
    names = [*(row.name for row in _ROWS), *_LINES]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of {', '.join(names)}; all where none is given")
    chosen: list[str] = parser.parse_args().rows
    for name in chosen:
        if name not in names:
            parser.error(f"{name!r} is no row; there are {', '.join(names)}")
    return chosen


def _measured(rows: Sequence[Row]) -> list[Figure]:
    """Measures rows, and prints them as they come."""
    figures: list[Figure] = []
    if not rows:
        return figures
    _print(HEAD)
    with started_endpoint() as endpoint:
        for row in rows:
            endpoint.taken()
            for figure in row.measure(endpoint):
                _print(figure.cells)
                figures.append(figure)
    for figure in figures:
        if figure.note:
            print(f"{figure.name}: {figure.note}", flush=True)
    return figures


def _main() -> None:
    chosen = _chosen()
    # what is measured is not what somebody has set up for something else
    for variable in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[variable]
    figures = _measured([row for row in _ROWS if not chosen or row.name in chosen])
    lines = []
    for name, measured_line in _LINES.items():
        if not chosen or name in chosen:
            lines.append(measured_line())
            print(lines[-1], flush=True)
    if not chosen:
        write_page(page_of(figures, _ROWS, lines))


if __name__ == "__main__":
    _main()
