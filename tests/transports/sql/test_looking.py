"""Looking at an audit table, which changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from constellation_otel.errors import SourceError
from constellation_otel.transports.sql import AuditTable, look_at
from constellation_otel.transports.sql.table import OURS
from support import DEADLINE
from transports.sql.helpers import GUIDE_TABLE, Database

if TYPE_CHECKING:
    from pathlib import Path


def test_a_table_is_told_by_what_it_lacks_and_demands(database: Database) -> None:
    database.execute(GUIDE_TABLE.replace("execution_audit (", "execution_audit (tenant TEXT NOT NULL,"))
    assert look_at(database.url, DEADLINE) == AuditTable(
        database.url, "execution_audit", exists=True, lacking=tuple(OURS), demands=("tenant",)
    )
    assert look_at(f"{database.url}?table=other", DEADLINE) == AuditTable(f"{database.url}?table=other", "other")


def test_a_file_that_is_not_there_is_not_made(database: Database, tmp_path: Path) -> None:
    assert look_at(database.url, DEADLINE) == AuditTable(database.url, "execution_audit")
    with pytest.raises(SourceError, match=r"there is no file .*, and none can be made there; fix the URL"):
        look_at(f"sqlite:///{tmp_path}/no/audit.db", DEADLINE)
    assert list(tmp_path.iterdir()) == []
