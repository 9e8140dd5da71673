"""The rate-limited log: each complaint once an interval, every one counted."""

from __future__ import annotations

import ast
import io
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import constellation_otel
from constellation_otel._support import log as _log
from constellation_otel._support.log import CleanFormatter, RateLimitedLog, clean
from support import UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Callable

LOGGER = logging.getLogger("constellation_otel.test_log")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> RateLimitedLog:
    return RateLimitedLog(10.0, clock)


def write(log: RateLimitedLog, key: object = "key", number: int = 7) -> bool:
    return log.write(LOGGER, logging.WARNING, key, "complaint %d", number)


def test_the_first_record_is_written_as_it_is(log: RateLimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    assert write(log)
    assert caplog.record_tuples == [(LOGGER.name, logging.WARNING, "complaint 7")]
    assert caplog.records[0].exc_info is None
    assert log.count == 1


def test_a_key_is_written_once_an_interval_and_then_says_how_many_were_held_back(
    log: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    written = []
    for clock.now in (0.0, 1.0, 9.999, 10.0, 10.5, 30.0, 40.0):
        written.append(write(log))
    assert written == [True, False, False, True, False, True, True]
    assert caplog.messages == [
        "complaint 7",
        "complaint 7 (2 more like it since the last such record)",
        "complaint 7 (1 more like it since the last such record)",
        "complaint 7",
    ]
    assert log.count == 7


def test_keys_have_allowances_of_their_own(log: RateLimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    assert [write(log, key, number) for number, key in enumerate(["a", "b", "a", "b"])] == [True, True, False, False]
    assert caplog.messages == ["complaint 0", "complaint 1"]
    assert log.count == 4


def test_an_error_is_logged_with_its_traceback(log: RateLimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("boom")
    assert log.write(LOGGER, logging.ERROR, "key", "it failed", error=error)
    assert caplog.record_tuples == [(LOGGER.name, logging.ERROR, "it failed")]
    assert caplog.records[0].exc_info == (ValueError, error, None)


def test_what_is_held_back_is_not_formatted(log: RateLimitedLog) -> None:
    class Unformattable:
        def __str__(self) -> str:
            raise AssertionError

    write(log)
    assert not log.write(LOGGER, logging.WARNING, "key", "%s", Unformattable())


def test_keys_are_bounded_and_the_one_written_longest_ago_is_forgotten_first(
    log: RateLimitedLog, caplog: pytest.LogCaptureFixture
) -> None:
    assert all(write(log, key) for key in range(_log._MAX_KEYS))
    assert not write(log, 0)
    assert write(log, "one more")
    assert len(log._keys) == _log._MAX_KEYS
    assert not write(log, 2)
    assert write(log, 0)
    assert log.count == len(caplog.records) + 2


def test_a_clock_is_there_where_none_is_given(caplog: pytest.LogCaptureFixture) -> None:
    log = RateLimitedLog(3_600.0)
    assert [write(log), write(log)] == [True, False]
    assert caplog.messages == ["complaint 7"]


class Refusing(logging.Handler):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def emit(self, record: logging.LogRecord) -> None:
        raise self.error


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    return lambda error: monkeypatch.setattr(LOGGER, "handlers", [Refusing(error)])


@pytest.mark.parametrize("error", [ValueError("the disk is full"), SystemExit("the disk is full")])
def test_what_logging_raises_is_counted_and_told_to_stderr_and_stays_inside(
    log: RateLimitedLog,
    refuse: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    refuse(error)
    assert [write(log), write(log)] == [False, False]
    assert (log.count, log.failed) == (2, 1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        f"{LOGGER.name} could not log: complaint 7",
        "Traceback (most recent call last):",
    ]
    assert lines[-1] == f"{type(error).__name__}: the disk is full"


def test_an_interrupt_by_the_user_is_not_held_back(
    log: RateLimitedLog, refuse: Callable[[BaseException], None]
) -> None:
    refuse(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(log)
    assert log.failed == 0


def test_stderr_is_told_also_where_the_application_has_no_last_resort(
    log: RateLimitedLog,
    refuse: Callable[[BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(logging, "lastResort", None)
    refuse(ValueError())
    assert not write(log)
    assert capsys.readouterr().err.startswith(f"{LOGGER.name} could not log: complaint 7\n")


def test_where_stderr_is_gone_too_it_is_only_counted(
    log: RateLimitedLog, refuse: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    stderr.close()
    monkeypatch.setattr(sys, "stderr", stderr)
    refuse(ValueError())
    assert not write(log)
    assert log.failed == 1


HOSTILE = "a\x1b[2J\x9b5n\u202e\udcff\nINFO [red]forged[/] \x7f"


def test_no_text_of_others_does_anything_to_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("constellation_otel.test")
    error = ValueError(HOSTILE)
    RateLimitedLog().write(logger, logging.ERROR, "key", "%s: %d, %.1f", HOSTILE, 1, 2.0, error=error)
    (record,) = caplog.records
    escaped = "a\\x1b[2J\\x9b5n\\u202e\\udcff\\nINFO [red]forged[/] \\x7f"
    assert record.getMessage() == f"{escaped}: 1, 2.0"
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert all(line.replace("\t", " ").isprintable() for line in logging.Formatter().format(record).split("\n"))


def test_a_clean_formatter_escapes_what_others_have_logged() -> None:
    record = logging.LogRecord("theirs", logging.ERROR, "", 0, HOSTILE, (), None)
    assert CleanFormatter().format(record).isprintable()
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record.exc_info = sys.exc_info()
    assert all(line.isprintable() for line in CleanFormatter().format(record).split("\n"))


def test_others_records_are_cleaned_and_left_alone_where_they_are_clean(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("theirs")
    for _ in range(2):
        clean(logger.name)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("bad: %s", HOSTILE)
    logger.error("good: %s", 1)
    with pytest.raises(TypeError):  # by the handler, as without
        logger.error("%d", "none")
    bad, good = caplog.records[:2]
    assert all(line.replace("\t", " ").isprintable() for line in logging.Formatter().format(bad).split("\n"))
    assert (good.msg, good.args) == ("good: %s", (1,))
    assert len(logger.filters) == 1


@UNWATCHED
def test_nothing_is_logged_but_by_the_function_that_cleans_it() -> None:
    """No module calls a logger's own methods."""
    source = Path(constellation_otel.__file__).parent
    methods = {"debug", "info", "warning", "error", "exception", "critical"}
    found = [
        (path.name, node.lineno)
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in methods
        and "log" in ast.unparse(node.func.value).lower()
    ]
    assert found == []
