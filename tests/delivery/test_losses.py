"""The warning that a source loses events."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from constellation_otel.delivery import LossLog
from constellation_otel.traces import Assembler
from deliveries import execution

if TYPE_CHECKING:
    from constellation_otel.events import Event

FIRST, MODULE, MODULE_END, LAST = execution(1)
ID = "00000000-0000-0000-0000-000000000001"


def warnings_of(caplog: pytest.LogCaptureFixture, events: list[Event]) -> list[str]:
    assembler = Assembler(idle_timeout=1, on_loss=LossLog("kafka://broker/topic"))
    for event in events:
        assembler.add(event, 0)
    assembler.advance(1_000_000_000)
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([FIRST, MODULE, LAST], f"events: the end of module 'trim' of execution {ID} of DAG 'dag-1'"),
        ([FIRST, MODULE_END, LAST], f"events: the start of module 'trim' of execution {ID} of DAG 'dag-1'"),
        ([LAST], f"events: the start of execution {ID} of DAG 'dag-1'"),
        ([MODULE, MODULE_END], f"events: the start and the end of execution {ID} of DAG 'unknown'"),
        (
            [FIRST],
            (
                "events, or does not say when an execution is cancelled or times out:"
                f" the end of execution {ID} of DAG 'dag-1'"
            ),
        ),
    ],
)
def test_it_names_the_source_and_what_never_came(
    events: list[Event], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings_of(caplog, events) == [f"kafka://broker/topic loses {said} never came"]


def test_it_is_one_warning_however_much_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    lasts = [execution(number)[-1] for number in range(1, 100)]
    assert warnings_of(caplog, lasts) == [
        f"kafka://broker/topic loses events: the start of execution {ID} of DAG 'dag-1' never came"
    ]


def test_nothing_is_said_where_nothing_was_lost(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(caplog, execution(1)) == []
