"""The README and the pages in docs: every block is run or checked, every table held to what it is about."""

from __future__ import annotations

import re
import shlex
import tomllib
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import pytest
from opentelemetry.metrics import NoOpMeter

from constellation_otel.cli import cli
from constellation_otel.cli.doctor.finding import Check
from constellation_otel.otel.metrics import Instruments
from constellation_otel.testing import span_tree
from constellation_otel.traces import span as spans
from programs import ROOT, run_command
from support import UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from constellation_otel.receiver import Receiver

pytestmark = UNWATCHED

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
README = PAGES["README.md"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCAL_ENDPOINT = "http://localhost:4317"
LOCAL_OTLP = "otlp://localhost:4317"
DOCTOR = "constellation-otel doctor"


class Block(NamedTuple):
    """A fenced block of a page."""

    kind: str
    text: str


def blocks_of(text: str) -> list[Block]:
    fences = [line for line in text.splitlines() if "```" in line]
    blocks = [Block(*found) for found in re.findall(r"^```(.*)\n((?:.*\n)*?)^```$", text, re.MULTILINE)]
    assert len(fences) == 2 * len(blocks), "a fence that opens or closes nothing, or is indented"
    return blocks


BLOCKS = {page: blocks_of(text) for page, text in PAGES.items()}


def table_after(text: str, head: str) -> list[list[str]]:
    """The cells of the table that begins with ``head``, row by row."""
    assert text.count(head) == 1
    rows = text[text.index(head) :].split("\n\n", maxsplit=1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def names_in(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# --- blocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_block_of_a_kind_that_nothing_here_checks(page: str) -> None:
    kinds = [block.kind for block in BLOCKS[page]]
    assert set(kinds) <= {"python", "sh", "text", "diagram"}
    # an output follows what puts it out
    assert all(before in {"python", "sh"} for before, kind in zip(["", *kinds], kinds, strict=False) if kind == "text")


def test_the_quick_start_is_the_example() -> None:
    assert BLOCKS["README.md"][1] == Block("python", (ROOT / "examples/quickstart.py").read_text())


def with_outputs(kind: str, page: str) -> list[tuple[Block, Block]]:
    """The blocks of a kind, each with the output that follows it; an empty one where none does."""
    blocks = [*BLOCKS[page], Block("", "")]
    pairs = pairwise(blocks)
    return [(it, after if after.kind == "text" else Block("text", "")) for it, after in pairs if it.kind == kind]


QUICK_START = """\
my-pipeline (server) success
  trim (internal) success
  uppercase (internal) success
  word_count (internal) success"""
WITH_JOURNAL = f"{QUICK_START}\n\n{QUICK_START}"
"""What OpenTelemetryListener sends, and then OtlpListener."""
REQUEST = "print(app.test_client().get('/report/to be').text.strip())"
"""What a browser does with the README's web application."""
IN_REQUEST = QUICK_START.replace("(server)", "(internal)").replace("\n", "\n  ")
LETTERS = """\
letters (server) success
  count (internal) success
  trim (internal) success"""
CHECKED = """\
conformance (server) success
  clean (internal) success
  count (internal) success
  load (internal) success
  shout (internal) success"""
"""What of the check of adapters goes to the application's SDK."""
LOGGING = """\
letters (server) success
  count (internal) success"""
MODEL = """\
letters (server) success
  count (internal) success

report (server) success
  load (internal) success"""
PYTHON = {
    "README.md": (
        "TO BE OR NOT TO BE 6\n",
        REQUEST,
        '{"trim":"to be","uppercase":"TO BE","word_count":2}\n',
        f"GET /report/<text> (server)\n  {IN_REQUEST}\n\n{WITH_JOURNAL}",
    ),
    "docs/logs.md": ("", "", "", f"{LOGGING}\n\n{LOGGING}"),
    "docs/trace-model.md": ("", "", "", MODEL),
    "docs/zero-code.md": ("", "", "", f"{LETTERS}\n\n{LETTERS}"),
    "docs/adapters.md": ("", "", "", f"{CHECKED}\n\n{LETTERS}"),
}
"""Each page with Python: what is printed before the outputs that it shows; what is done behind it, and what that
prints; and the traces that arrive."""


RUN_ELSEWHERE = {
    "docs/dagster.md": "tests/engines/test_dagster.py",
    "docs/hamilton.md": "tests/engines/test_hamilton.py",
    "docs/kedro.md": "tests/engines/test_kedro.py",
    "docs/pytest.md": "tests/testing/test_plugin.py",
}
"""Each page whose Python, or commands, need an engine or pytest, and what runs them where that is."""


def program_of(page: str, receiver: Receiver, folder: Path) -> str:
    """All of a page's Python, since a block may use what those above it have; the receiver is its local endpoint."""
    text = "\n".join(block.text for block in BLOCKS[page] if block.kind == "python")
    return text.replace(LOCAL_ENDPOINT, receiver.grpc_endpoint).replace("/tmp/", f"{folder}/")


def test_the_block_that_shows_spans_on_the_console_is_run() -> None:
    assert sum("EXPORTER=console" in block.text for block, _ in with_outputs("sh", "README.md")) == 1


def test_every_page_with_python_is_run() -> None:
    pages = {page for page, blocks in BLOCKS.items() if "python" in {block.kind for block in blocks}}
    assert pages == PYTHON.keys() | RUN_ELSEWHERE.keys()
    assert all(page in (ROOT / where).read_text() for page, where in RUN_ELSEWHERE.items())


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_is_a_program_that_prints_what_the_page_says(
    page: str, receiver: Receiver, tmp_path: Path
) -> None:
    """A web application is asked something, and what that does is one trace."""
    before, more, after, tree = PYTHON[page]
    program = tmp_path / "page.py"
    program.write_text(f"{program_of(page, receiver, tmp_path)}\n{more}\n")
    outputs = "".join(output.text for _, output in with_outputs("python", page))
    assert run_command(receiver, f"opentelemetry-instrument python {program}") == (before + outputs + after, "")
    assert span_tree(receiver.spans) == tree


def check_make(words: list[str]) -> None:
    """Its target and variables are there; what it does is run by whoever runs the tests, or takes servers."""
    target, *variables = words
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for variable in variables:
        assert re.search(rf"^{variable.partition('=')[0]} :?=", makefile, re.MULTILINE)


def check_activation(words: list[str]) -> None:
    """The environment is the Makefile's; the tests run in one already."""
    assert words == [".venv/bin/activate"]
    assert "VENV := .venv\n" in (ROOT / "Makefile").read_text()


def check_collector(words: list[str]) -> None:
    """The Collector is a server of its own, which the end-to-end tests run with this file."""
    assert words == ["--config", "collector-config.yaml"]
    assert (ROOT / words[1]).is_file()


def check_bridge(words: list[str]) -> None:
    """It goes on for ever, and needs what it bridges; its words are those of the command line."""
    cli.commands["bridge"].make_context("bridge", words)


def check_watch(words: list[str]) -> None:
    """It goes on for ever, too."""
    cli.commands["watch"].make_context("watch", words)


NOT_RUN: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    ".": check_activation,
    "otelcol-contrib": check_collector,
    "constellation-otel bridge": check_bridge,
    "constellation-otel watch": check_watch,
}
"""The commands that are checked here and not run."""


def runnable(text: str) -> str:
    """A shell block without the commands that are not run, each of which is checked."""
    lines = []
    for line in text.splitlines():
        words = shlex.split(line)
        for length in (1, 2):
            check = NOT_RUN.get(" ".join(words[:length]))
            if check is not None:
                check(words[length:])
                break
        else:
            lines.append(line)
    return "\n".join(lines)


SHELL = [
    pytest.param(block, output, id=f"{page}: {block.text.splitlines()[0]}")
    for page in PAGES
    if page not in RUN_ELSEWHERE
    for block, output in with_outputs("sh", page)
]


@pytest.mark.parametrize(("block", "output"), SHELL)
def test_a_shell_block_runs_and_prints_what_the_page_says(block: Block, output: Block, receiver: Receiver) -> None:
    """Where it names the local endpoint, the receiver stands in for that."""
    text = runnable(block.text).replace(LOCAL_ENDPOINT, receiver.grpc_endpoint)
    text = text.replace(LOCAL_OTLP, receiver.grpc_endpoint.replace("http:", "otlp:"))
    if "examples/audit_log.py" in text:
        text = f"export OTEL_EXPORTER_OTLP_ENDPOINT={receiver.grpc_endpoint}\n{text}"
    stdout, stderr = run_command(receiver, f"unset OTEL_EXPORTER_OTLP_ENDPOINT OTEL_SERVICE_NAME\n{text}")
    assert stderr == ""
    if "█" in output.text:
        assert {shape(trace) for trace in output.text.split("\n\n")} <= {shape(it) for it in stdout.split("\n\n")}
    elif DOCTOR in block.text:
        here = stdout.replace(receiver.grpc_endpoint.removeprefix("http://"), "localhost:4317")
        assert without_versions(here) == without_versions(output.text)
    elif output.text:
        assert stdout == output.text
    if "EXPORTER=console" in block.text:
        # the quick start's spans
        names = re.findall(r'^    "name": "(.*)",$', stdout, re.MULTILINE)
        assert sorted(names) == ["my-pipeline", "trim", "uppercase", "word_count"]
    delivers = any(it in block.text for it in (LOCAL_ENDPOINT, LOCAL_OTLP, "examples/audit_log.py"))
    # which sends no span unless it is told to
    delivers = delivers and DOCTOR not in block.text
    assert bool(receiver.spans) == (delivers and bool(text))


def without_versions(text: str) -> str:
    return re.sub(r"\b\d+(\.\d+)+\b", "…", text)


def shape(drawn: str) -> tuple[str, ...]:
    """What is the same of a drawn trace in every run: not the ids, the times, or the order of what is parallel."""
    text = re.sub(r"\b[0-9a-f]{32}\b", "", drawn)
    text = re.sub(r"\b[\d.]+ (?:ns|µs|ms|s|min)(?!\w)", "", text)
    text = re.sub(r"[▁-▟├└│]", "", text)
    return tuple(sorted(" ".join(line.split()) for line in text.splitlines()))


def test_no_drawn_line_is_wider_than_eighty_columns() -> None:
    drawn = [
        line
        for blocks in BLOCKS.values()
        for block in blocks
        if block.kind == "text"
        for line in block.text.splitlines()
    ]
    assert max(map(len, [line for line in drawn if "█" in line or "│" in line])) <= 80


# --- tables and links ----------------------------------------------------------------------------------------------


class RecordingMeter(NoOpMeter):
    """Keeps what is made of it."""

    def __init__(self) -> None:
        super().__init__("recording")
        self.made: list[tuple[str, str, str]] = []

    def create_histogram(self, name: str, unit: str = "", *args: Any, **kwargs: Any) -> Any:
        self.made.append((name, unit, "histogram, with exemplars"))
        return super().create_histogram(name, unit, *args, **kwargs)

    def create_observable_up_down_counter(
        self, name: str, callbacks: Any = None, unit: str = "", description: str = ""
    ) -> Any:
        self.made.append((name, unit, "up-down counter"))
        return super().create_observable_up_down_counter(name, callbacks, unit, description)

    def create_counter(self, name: str, unit: str = "", description: str = "") -> Any:
        self.made.append((name, unit, "counter"))
        return super().create_counter(name, unit, description)


def test_the_readme_has_every_metric() -> None:
    meter = RecordingMeter()
    Instruments(meter)
    rows = table_after(README, "| metric | unit | kind | attributes |")
    assert [(name.strip("`"), unit.strip("`"), kind) for name, unit, kind, _ in rows] == meter.made


ATTRIBUTES = sorted([
    spans.EXECUTION_ID, spans.DAG_NAME, spans.MODULE_ID, spans.MODULE_NAME, spans.OUTCOME, spans.MISSING,
    spans.REPORTED_DURATION, spans.ENGINE, spans.ATTEMPT, spans.REASON, spans.ABANDONED_REASON, spans.ERROR_TYPE,
])  # fmt: skip


@pytest.mark.parametrize(
    ("page", "head"),
    [("README.md", "| attribute | value |"), ("docs/trace-model.md", "| attribute | on | value |")],
)
def test_a_table_of_attributes_has_every_one(page: str, head: str) -> None:
    rows = table_after(PAGES[page], head)
    assert sorted(name for row in rows for name in names_in(row[0])) == ATTRIBUTES


def test_the_page_of_the_doctor_has_every_check() -> None:
    rows = table_after(PAGES["docs/doctor.md"], "| check | what is looked at |")
    assert [name for row in rows for name in names_in(row[0])] == list(get_args(Check))


def test_the_layout_has_every_room() -> None:
    rows = table_after(README, "| room | what is in it |")
    source = ROOT / "src/constellation_otel"
    rooms = {f"{path.parent.name}/" for path in source.glob("*/__init__.py")} | {
        path.name for path in source.glob("*.py")
    }
    rooms = {room for room in rooms if not room.startswith("_")}
    assert sorted(name for row in rows for name in names_in(row[0])) == sorted(rooms)


def test_the_page_of_dependencies_has_every_one_with_its_bound_and_two_reasons() -> None:
    documented: dict[str, list[str]] = {}
    for section in PAGES["docs/dependencies.md"].split("\n## ")[1:]:
        rows = table_after(section, "| dependency | why | lower bound |")
        assert all(len(row) == 3 and all(row) for row in rows)
        documented[section.splitlines()[0]] = [name for row in rows for name in names_in(row[0])]
    project = PROJECT["project"]
    assert documented == {
        "build": PROJECT["build-system"]["requires"],
        "runtime": project["dependencies"],
        **project["optional-dependencies"],
        **PROJECT["dependency-groups"],
    }


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_and_names_in_this_project_is_there(page: str) -> None:
    folder = (ROOT / page).parent
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]) if "://" not in link]
    paths = [
        name for name in names_in(PAGES[page]) if re.fullmatch(r"(?:examples|tests|src|docs|bench)/[\w./-]*", name)
    ]
    missing = [link for link in links if not (folder / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_the_changelog_has_a_section_for_what_is_not_released() -> None:
    assert re.findall(r"^## (.*)$", PAGES["CHANGELOG.md"], re.MULTILINE)[0] == "[Unreleased]"
