"""Errors are the same in another process, and say what to do."""

from __future__ import annotations

import copy
import pickle
from uuid import UUID

import pytest

from constellation_otel.errors import (
    ConstellationOtelError,
    ExecutionCancelledError,
    ExecutionFailedError,
    MissingExtraError,
    RemoteError,
)

EXECUTION = UUID("54b81984-f9a6-4e39-b99f-6ab4e8a03410")


def test_a_remote_error_is_its_message_and_is_no_error_of_this_package() -> None:
    assert (str(RemoteError("boom", "java.lang.Error")), str(RemoteError(None))) == ("boom", "")
    assert not issubclass(RemoteError, ConstellationOtelError)


@pytest.mark.parametrize(
    "error",
    [
        RemoteError("boom", "java.lang.Error"),
        RemoteError(None),
        MissingExtraError("click", "cli"),
        ExecutionFailedError(EXECUTION, "pipeline", {"Trim": RemoteError("boom")}, {"Upper": 3}),
        ExecutionCancelledError(EXECUTION, "pipeline", {"Upper": 3}),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_after_a_pickle_and_after_a_copy(error: Exception) -> None:
    """A pool that could not unpickle what a module raised would be broken for good."""

    def whole(each: object) -> object:
        attributes = {name: whole(value) for name, value in vars(each).items()} if isinstance(each, Exception) else {}
        if isinstance(each, dict):
            return {key: whole(value) for key, value in each.items()}
        return (type(each), str(each), attributes) if isinstance(each, Exception) else each

    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert whole(again) == whole(error)


def test_a_missing_extra_says_what_to_install() -> None:
    error = MissingExtraError("click", "cli")
    assert (str(error), error.name) == (
        "click is not installed; run: pip install 'constellation-otel[cli]'",
        "click",
    )
