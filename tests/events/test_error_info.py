"""What is kept of an error: its type, its message, where it passed, its causes; in bounds, and nothing that pins it."""

from __future__ import annotations

import linecache
from typing import TYPE_CHECKING, Any

import pytest

from constellation_otel.errors import RemoteError
from constellation_otel.events.model import MAX_MESSAGE, MAX_NAME, ErrorInfo, Frames

if TYPE_CHECKING:
    from pathlib import Path

WITHOUT_A_CLASS = "<reading this error raised RuntimeError>"


def raised(error: BaseException) -> BaseException:
    """The exception once it has been raised, so that it has a traceback."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - any is given back
        return caught


def test_a_plain_error_is_its_type_its_message_and_where_it_passed() -> None:
    error = raised(ValueError("boom"))
    line = error.__traceback__.tb_lineno if error.__traceback__ is not None else 0
    frames = Frames("ValueError", "boom", ((__file__, line, "raised"),))
    assert ErrorInfo.of(error) == ErrorInfo("ValueError", "boom", frames)


def test_an_error_that_was_never_raised_has_no_frames() -> None:
    assert ErrorInfo.of(KeyError("k")) == ErrorInfo("KeyError", "'k'", Frames("KeyError", "'k'", ()))


def test_a_type_that_is_not_built_in_is_named_with_its_module() -> None:
    class Inner(Exception):
        pass

    name = f"{__name__}.test_a_type_that_is_not_built_in_is_named_with_its_module.<locals>.Inner"
    assert ErrorInfo.of(Inner()) == ErrorInfo(name, "", Frames(name, "", ()))


def test_a_types_name_is_cleaned_like_any_other() -> None:
    kind = type("Odd\n" + "x" * 5_000, (Exception,), {"__module__": "builtins"})
    assert ErrorInfo.of(kind()).type == "Odd\N{REPLACEMENT CHARACTER}" + "x" * (MAX_NAME - 4)


def test_causes_and_contexts_are_kept_as_python_would_print_them() -> None:
    def error_from(cause: BaseException | None, context: BaseException | None, *, suppress: bool) -> BaseException:
        error = ValueError("outer")
        error.__cause__, error.__context__, error.__suppress_context__ = cause, context, suppress
        return error

    def of(cause: BaseException | None, context: BaseException | None, *, suppress: bool) -> Frames | None:
        frames = ErrorInfo.of(error_from(cause, context, suppress=suppress)).frames
        return frames.cause if frames is not None else None

    inner, context = Frames("KeyError", "'inner'", ()), Frames("OSError", "context", ())
    assert of(None, None, suppress=False) is None
    assert of(KeyError("inner"), None, suppress=True) == inner
    assert of(None, OSError("context"), suppress=False) == context
    assert of(KeyError("inner"), OSError("context"), suppress=True) == inner
    assert of(None, OSError("context"), suppress=True) is None


def test_a_cause_that_is_false_in_a_condition_is_a_cause() -> None:
    class Empty(Exception):
        def __len__(self) -> int:
            return 0

    Empty.__module__, Empty.__qualname__ = "builtins", "Empty"
    error = ValueError("outer")
    error.__cause__ = Empty("inner")
    assert ErrorInfo.of(error).frames == Frames("ValueError", "outer", (), Frames("Empty", "inner", ()))


def test_a_chain_that_bites_its_tail_is_cut_after_four_causes() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__context__, second.__context__ = second, first
    said = []
    frames = ErrorInfo.of(first).frames
    while frames is not None:
        said.append(frames.message)
        frames = frames.cause
    assert said == ["first", "'second'", "first", "'second'", "first"]


def test_an_error_whose_str_raises_says_so() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise LookupError

    Mute.__module__, Mute.__qualname__ = "builtins", "Mute"
    message = "<str() of this Mute raised LookupError>"
    assert ErrorInfo.of(Mute()) == ErrorInfo("Mute", message, Frames("Mute", message, ()))


def test_an_error_that_cannot_even_be_looked_at_says_so() -> None:
    class Hidden(Exception):
        @property
        def __cause__(self) -> BaseException | None:  # type: ignore[override]
            raise RuntimeError

    assert ErrorInfo.of(Hidden()) == ErrorInfo("Hidden", WITHOUT_A_CLASS)


def test_a_message_of_a_megabyte_is_cut_and_says_how_long_it_was() -> None:
    note = "… (cut; it had 1000000 characters)"
    message = "x" * (MAX_MESSAGE - len(note)) + note
    assert ErrorInfo.of(ValueError("x" * 1_000_000)) == ErrorInfo(
        "ValueError", message, Frames("ValueError", message, ())
    )
    assert len(message) == MAX_MESSAGE


def test_lone_surrogates_and_control_characters_in_a_message_are_replaced() -> None:
    assert ErrorInfo.of(ValueError("a\ud800b\x00c\x1b[31m\x9b1m\td\ne\r\n")).message == "a�b�c�[31m�1m\td\ne\r\n"


def test_redact_rewrites_the_message_of_every_cause() -> None:
    error = ValueError("password=one")
    error.__cause__ = KeyError("password=two")
    kept = ErrorInfo.of(error, lambda message: message.replace("password", "***"))
    assert kept == ErrorInfo(
        "ValueError", "***=one", Frames("ValueError", "***=one", (), Frames("KeyError", "'***=two'", ()))
    )


def test_redact_sees_the_whole_message_before_it_is_cut() -> None:
    seen: list[str] = []

    def redact(message: str) -> str:
        seen.append(message)
        return "short"

    assert ErrorInfo.of(ValueError("x" * 1_000_000), redact).message == "short"
    assert seen == ["x" * 1_000_000]


def test_a_redact_hook_that_raises_withholds_the_message() -> None:
    def redact(message: str) -> str:
        raise LookupError(message)

    withheld = "<withheld: the redact hook raised LookupError>"
    assert ErrorInfo.of(ValueError("secret"), redact).message == withheld
    assert ErrorInfo.of(RemoteError("secret", "java.lang.Error"), redact) == ErrorInfo("java.lang.Error", withheld)


def test_a_redact_hook_that_returns_no_text_withholds_the_message() -> None:
    redact: Any = lambda message: None  # noqa: E731 - a hook of the wrong type
    assert ErrorInfo.of(ValueError("secret"), redact).message == "<withheld: the redact hook returned NoneType>"


@pytest.mark.parametrize("name", [None, ""])
@pytest.mark.parametrize("message", [None, "", "boom"])
def test_a_remote_error_keeps_what_the_wire_told(message: str | None, name: str | None) -> None:
    assert ErrorInfo.of(RemoteError(message, name)) == ErrorInfo(None, message)
    assert ErrorInfo.of(RemoteError(message, "java.lang.Error")) == ErrorInfo("java.lang.Error", message)


def test_a_remote_errors_type_and_message_are_cleaned() -> None:
    assert ErrorInfo.of(RemoteError("a\ud800", "b\x00")) == ErrorInfo("b�", "a�")


def test_a_deep_recursion_keeps_the_innermost_frames_only() -> None:
    def sink(depth: int) -> None:
        if depth == 0:
            raise ValueError("bottom")
        sink(depth - 1)

    def sunk() -> ErrorInfo:
        try:
            sink(500)
        except ValueError as error:
            return ErrorInfo.of(error)
        raise AssertionError

    frames = sunk().frames
    assert frames is not None
    first = sink.__code__.co_firstlineno
    name = sink.__qualname__
    assert frames.frames == ((__file__, first + 3, name),) * 31 + ((__file__, first + 2, name),)


def test_an_endless_recursion_is_kept_in_as_few_frames() -> None:
    def endless() -> None:
        endless()

    def sunk() -> ErrorInfo:
        try:
            endless()
        except RecursionError as error:
            return ErrorInfo.of(error)
        raise AssertionError

    frames = sunk().frames
    assert frames is not None
    assert frames.frames == ((__file__, endless.__code__.co_firstlineno + 1, endless.__qualname__),) * 32


def test_a_file_name_that_is_no_text_cannot_get_onto_a_wire() -> None:
    namespace: dict[str, Any] = {}
    exec(
        compile("def fail():\n    raise ValueError('boom')", "caf\udce9.py", "exec"), namespace
    )  # the name as os.fsdecode gives it

    def failed() -> ErrorInfo:
        try:
            namespace["fail"]()
        except ValueError as error:
            return ErrorInfo.of(error)
        raise AssertionError

    frames = failed().frames
    assert frames is not None
    assert frames.frames[-1] == ("caf�.py", 2, "fail")


def test_a_light_traceback_reads_like_pythons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {("a.py", 3): "    call()\n", ("b.py", 7): ""}
    monkeypatch.setattr(linecache, "getline", lambda filename, line_number: lines[filename, line_number])
    cause = Frames("KeyError", "'k'", ())
    frames = Frames("ValueError", "", (("a.py", 3, "outer"), ("b.py", 7, "inner")), cause)
    assert frames.format() == (
        "KeyError: 'k'\n"
        "\n"
        "The above exception led to the following one:\n"
        "\n"
        "Traceback (most recent call last):\n"
        '  File "a.py", line 3, in outer\n'
        "    call()\n"
        '  File "b.py", line 7, in inner\n'
        "ValueError\n"
    )


def test_a_stacktrace_is_bounded_whatever_the_source_files_hold(tmp_path: Path) -> None:
    """A line of a megabyte, as minified or generated code has, and a message that is itself long."""
    source = tmp_path / "generated.py"
    source.write_text(f"def fail(): raise ValueError('y' * 8000) #{'x' * 1_000_000}\n")
    namespace: dict[str, Any] = {}
    exec(compile(source.read_text(), str(source), "exec"), namespace)
    errors: list[Exception] = []
    for _ in range(6):
        try:
            try:
                namespace["fail"]()
            except ValueError as error:
                raise error from (errors[-1] if errors else None)
        except ValueError as error:
            errors.append(error)
    info = ErrorInfo.of(errors[-1]).formatted()
    assert info.frames is None
    assert info.stacktrace is not None
    assert info.stacktrace.startswith("(cut; it had ")
    assert len(info.stacktrace) < 33_000
    assert "x" * 201 not in info.stacktrace
    assert info.stacktrace.endswith(f"ValueError: {'y' * 8000}\n")


def test_an_error_without_a_traceback_stays_as_it_is_when_it_is_formatted() -> None:
    info = ErrorInfo("E", "said on a wire")
    assert info.formatted() is info
