"""The command line's words: its options, errors and exit codes, as a user meets them."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from commands import HOSTILE, command
from constellation_otel import trace_id_of

if TYPE_CHECKING:
    from pathlib import Path


def test_trace_id_prints_the_id_that_the_execution_gets() -> None:
    execution_id = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")
    done = command("trace-id", str(execution_id))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{trace_id_of(execution_id):032x}\n", "")


def test_trace_id_refuses_what_is_not_a_uuid() -> None:
    done = command("trace-id", "nonsense")
    assert done.returncode == 2
    assert "'nonsense' is not a valid UUID" in done.stderr


def test_the_version_is_the_distributions() -> None:
    assert command("--version").stdout == "constellation-otel, version 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["replay", "jsonl:missing.jsonl", "--dry-run"], 1, "missing.jsonl cannot be read: No such file or directory"),
        (["replay", "ws://h:1", "--dry-run"], 2, "has no past to be replayed"),
        (["replay", "nonsense", "--dry-run"], 2, "a URL without a scheme is not a source"),
        (["replay", "journal:missing.db", "--dry-run"], 1, "missing.db"),
        (["replay", "jsonl:x", "--dry-run", "--since", "2026-01-02", "--until", "2026-01-02"], 2, "a later --until"),
        (["bridge", "kafka://h:1/t?group=g", "--to", "jsonl:-", "--execution", str(UUID(int=1))], 2, "use replay"),
        (["bridge", "ws://h:1", "--to", "jsonl:-", "--max-reconnect-wait", "inf"], 2, "max_reconnect_wait=inf must be"),
        (["replay", "jsonl:x"], 2, "Missing option '--to'; give it, or --dry-run."),
        (
            ["replay", "jsonl:x", "--dry-run", "--since", "soon"],
            2,
            "'soon' is not an ISO 8601 time, e.g. 2026",
        ),
        (["schema", "mysql:"], 2, "there is no schema for 'mysql'; give postgresql: or sqlite:"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(arguments: list[str], code: int, said: str) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("missing", "library", "extra"),
    [
        ("click", "click", "cli"),
        ("rich", "rich", "cli"),
        ("opentelemetry.instrumentation.urllib", "opentelemetry-instrumentation-sqlite3 or -urllib", "demo"),
    ],
)
def test_a_missing_extra_says_what_to_install(missing: str, library: str, extra: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['constellation-otel', 'demo']\n"
    program += "from constellation_otel.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith(f"{library} is not installed; run: pip install 'constellation-otel[{extra}]'\n")


def test_a_missing_extra_of_a_source_is_said_in_one_line() -> None:
    program = (
        "import sys; sys.modules['websockets'] = None; sys.argv = ['c', 'bridge', 'ws://h:1', '--to', 'jsonl:-']\n"
    )
    program += "from constellation_otel.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "constellation-otel bridge: websockets is not installed; run: pip install 'constellation-otel[websocket]'\n"
    )


@pytest.mark.parametrize("name", ["bridge", "replay"])
def test_the_commands_need_rich(name: str) -> None:
    program = f"import sys; sys.modules['rich'] = None\nimport constellation_otel.cli.{name}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.endswith("rich is not installed; run: pip install 'constellation-otel[cli]'\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["bridge", f"jsonl:{HOSTILE}/", "--to", "jsonl:-", "--health", HOSTILE], 2),
        (["replay", f"{HOSTILE}:x", "--to", "jsonl:-"], 2),
        (["replay", f"jsonl:{HOSTILE}.missing", "--to", "jsonl:-"], 1),
        (["replay", "jsonl:-", "--to", f"otlp://h/{HOSTILE}"], 2),
        (["show", HOSTILE, "--from", "jsonl:x"], 2),
        (["show", str(UUID(int=1)), "--from", f"{HOSTILE}://x"], 2),
        (["schema", f"{HOSTILE}:"], 2),
        (["schema", f"sqlite:?table={HOSTILE}"], 2),
        (["trace-id", HOSTILE], 2),
        ([HOSTILE], 2),
        ([f"--{HOSTILE}"], 2),
        (["demo", f"--{HOSTILE}", "x"], 2),
        (["demo", "--endpoint", f"http://me:s3cr3t@{HOSTILE}"], 2),
        (["bridge", "kafka://h:1/t?group=%FF\udcff", "--to", "jsonl:-"], 2),
        (["bridge", "kafka://h:1/t?group=g&client.id=\udcff", "--to", "jsonl:-"], 2),
        (["bridge", "jsonl:-", "--to", "kafka://me:\udcff@h:1/t"], 2),
        (["bridge", "jsonl:-", "--to", "kafka://\udcff:1/t"], 2),
        (["bridge", "jsonl:-", "--to", "kafka://h:1/t?\udcff=1"], 2),
        (["bridge", "jsonl:-", "--to", "postgresql://me:\udcff@127.0.0.1:1/d"], 2),
        (["bridge", "ws://h\udcff:1", "--to", "jsonl:-"], 2),
        (["bridge", "jsonl:-", "--to", "otlp+http://h:1/\udcff"], 2),
        (["bridge", "jsonl:-", "--to", "otlp://h:1", "--service-name", "\udcff"], 2),
    ],
)
def test_an_odd_word_is_one_error_without_a_traceback(
    arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    said = done.stderr
    assert (done.returncode, done.stdout) == (code, ""), said
    assert "Traceback" not in said
    assert "s3cr3t" not in said
    assert said.replace("\n", "").replace("│", "").isprintable()
