"""Where an exception passed: tracebacks that another process has written."""

from __future__ import annotations

import pytest

from constellation_otel.events.frames import own_part

START = "Traceback (most recent call last):\n"
POOL = '  File "/usr/lib/python3.11/concurrent/futures/process.py", line 261, in _worker\n    r = f()\n        ^^^\n'
ENGINE = (
    '  File "/app/site-packages/constellation_otel/engine/remote.py", line 90, in run_remotely\n    raise failure\n'
)
ON_WINDOWS = '  File "C:\\app\\constellation_otel\\engine\\remote.py", line 81, in run_remotely\n'
BODY = '  File "/app/steps.py", line 3, in trim\n    raise ValueError\n'
DEEPER = '  File "/app/text.py", line 7, in strip\n'
END = "ValueError: boom\n"
BETWEEN = "\nThe above exception was the direct cause of the following exception:\n\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (START + POOL + ENGINE + ENGINE + BODY + DEEPER + END, START + BODY + DEEPER + END),
        (START + ON_WINDOWS + BODY + END, START + BODY + END),
        (START + BODY + DEEPER + END, START + BODY + DEEPER + END),
        (START + POOL + BODY + END, START + POOL + BODY + END),
        # the engine's own error
        (START + POOL + ENGINE + END, START + POOL + ENGINE + END),
        # a body that runs an engine
        (START + POOL + ENGINE + BODY + ENGINE + DEEPER + END, START + BODY + ENGINE + DEEPER + END),
        # an error with a cause
        (
            START + BODY + END + BETWEEN + START + POOL + ENGINE + BODY + END,
            START + BODY + END + BETWEEN + START + BODY + END,
        ),
        ("no traceback", "no traceback"),
        ("", ""),
    ],
)
def test_what_another_process_has_written_begins_with_the_modules_own_frame(text: str, expected: str) -> None:
    assert own_part(text) == expected
    quoted = f'\n"""\n{text}"""'
    assert own_part(quoted) == f'\n"""\n{expected}"""'


def test_a_text_without_end_takes_no_time() -> None:
    text = (START + (POOL + BODY) * 20_000) * 3
    assert own_part(text) == text
