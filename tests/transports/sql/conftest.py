"""Fixtures of the tests of sql."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from transports.sql.helpers import Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "audit.db")
    yield made
    for opened in made.opened:
        opened.close()
