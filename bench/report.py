"""What a row says: its figures, what is required of them, and the page that they are written to."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.endpoint import Endpoint

__all__ = ["HEAD", "Figure", "Row", "page_of", "write_page"]

_PAGE: Final = Path(__file__).parent.parent / "docs" / "performance.md"

Unit: TypeAlias = Literal["ratio", "1/n", "bytes", "us"]
_HALF: Final = 0.5
_KIB: Final = 1024


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table.

    Attributes:
        name: What it is about.
        ours: What this package took, with its unit.
        beside: What it is held against took, with its unit; empty where there is nothing.
        value: What is compared: a ratio, bytes, or microseconds.
        unit: How it is shown: ``1/n`` is a ratio, too.
        required: The most that it may be; ``None`` where nothing is required.
        aim: What it is to be; ``None`` where there is no aim.
        note: What a reader has to know of this figure of this run.
    """

    name: str
    ours: str
    beside: str
    value: float
    unit: Unit
    required: float | None = None
    aim: float | None = None
    note: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The line's cells, in the order of :data:`HEAD`."""
        required, aim = ("" if limit is None else self._shown(limit) for limit in (self.required, self.aim))
        return (self.name, self.ours, self.beside, self._shown(self.value), required, aim, self._verdict)

    @property
    def _verdict(self) -> str:
        if self.aim is not None and self.value <= self.aim:
            return "aim reached"
        if self.required is None:
            return "aim not reached"
        return "held" if self.value <= self.required else "not held"

    def _shown(self, value: float) -> str:
        match self.unit:
            case "1/n" if 0 < value < _HALF:
                return f"1/{1 / value:.3g}"
            case "bytes":
                return f"{value / _KIB:.2f} KiB"
            case "us":
                return f"{value:.2f} us more"
            case _:
                return f"{value:.3g}"


HEAD: Final = ("row", "ours", "beside it", "measured", "at most", "aim", "result")
"""The columns of the table."""
_INTRODUCTION: Final = """\
# What it costs

`make bench` writes this page, all of it in one run. Absolute figures are this machine's at that moment; what is \
claimed are the ratios. Both sides of a row run in turns, and the figures are medians. CPU time is that of all threads \
together, where nothing else is said, until an OTLP endpoint in another process has acknowledged everything; rounds \
check that it has all of it.

*By hand* is the same telemetry as a user writes it inline with the OpenTelemetry SDK: for a module a span with five \
attributes, a value of a histogram with an exemplar, and two adds to an up-down counter, through `BatchSpanProcessor`, \
`PeriodicExportingMetricReader` and the SDK's OTLP exporters over gRPC."""
_ROWS: Final = """\
## How each row is measured

`python -m bench ROW...` measures some rows only, by these names, and leaves this page as it is."""


@dataclass(frozen=True)
class Row:
    """Something that is measured.

    Attributes:
        name: What it is called on the command line.
        how: How it is measured, in a sentence or two.
        measure: Measures it.
    """

    name: str
    how: str
    measure: Callable[[Endpoint], Sequence[Figure]]


def page_of(figures: Sequence[Figure], rows: Sequence[Row], lines: Sequence[str]) -> str:
    """The page of a run.

    Args:
        figures: The table.
        rows: What was measured.
        lines: What was measured beside the table.
    """
    table = [HEAD, ("---",) * len(HEAD), *(figure.cells for figure in figures)]
    parts = [
        _INTRODUCTION,
        f"{_machine()}; {_versions()}; {datetime.now(UTC):%Y-%m-%d}; `python -m bench`.",
        "\n".join("| " + " | ".join(cells) + " |" for cells in table),
        "\n".join(f"- {figure.name}: {figure.note}." for figure in figures if figure.note),
        "Beside the table:",
        "\n".join(f"- {line}" for line in lines),
        _ROWS,
        "\n".join(f"- `{row.name}`: {row.how}" for row in rows),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_page(text: str) -> None:
    """Writes the page."""
    _PAGE.write_text(text, encoding="utf-8")


def _machine() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    model = platform.machine() if found is None else found[1].strip()
    return f"{os.cpu_count()} CPUs, {model}"


def _versions() -> str:
    packages = ("opentelemetry-sdk", "opentelemetry-exporter-otlp", "grpcio", "protobuf", "msgspec")
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return ", ".join([python, *(f"{package} {version(package)}" for package in packages)])
