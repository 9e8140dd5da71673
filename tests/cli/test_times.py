"""Moments and lengths of a command line."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from constellation_otel.cli.times import epoch_ns, length_ns_of


@pytest.mark.parametrize(
    ("text", "length_ns"),
    [
        ("0ms", 0),
        ("500ms", 500_000_000),
        ("1.5s", 1_500_000_000),
        ("30m", 1_800_000_000_000),
        ("1h", 3_600_000_000_000),
        ("2d", 172_800_000_000_000),
        ("0.001ms", 1_000),
        *((text, None) for text in ("", "5", "ms", "-1s", "1 s", "1e3s", "1.s", "٣s", "1s\n", "9" * 400 + "s", "1us")),
    ],
)
def test_a_length_is_a_number_and_a_unit(text: str, length_ns: int | None) -> None:
    assert length_ns_of(text) == length_ns


def test_a_moment_is_exact_to_the_microsecond() -> None:
    assert epoch_ns(datetime(2026, 11, 23, 20, 22, 43, 577_123, tzinfo=UTC)) == 1_795_465_363_577_123_000
    assert epoch_ns(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == -1_000
