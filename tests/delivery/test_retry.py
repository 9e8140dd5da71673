"""How long the pauses between tries are."""

from __future__ import annotations

from constellation_otel.delivery import Backoff, Retry

MOST = Retry(jitter=lambda: 1.0)
LEAST = Retry(jitter=lambda: 0.0)


def test_a_pause_doubles_until_it_is_as_long_as_it_may_be() -> None:
    backoff = Backoff(MOST)
    assert [backoff.next() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.failures == 8


def test_one_half_of_a_pause_is_certain_and_the_other_chance() -> None:
    """So that many clients come back neither together nor at once."""
    backoff = Backoff(LEAST)
    assert [backoff.next() for _ in range(8)] == [0.25, 0.5, 1, 2, 4, 8, 15, 15]
    by_chance = Retry(first=2.0, longest=2.0).backoff()
    pauses = [by_chance.next() for _ in range(100)]
    assert 1.0 <= min(pauses) < max(pauses) <= 2.0


def test_what_an_endpoint_asks_for_is_waited_an_hour_at_most() -> None:
    backoff = Backoff(LEAST)
    assert backoff.next(17.0) == 17.0
    assert backoff.next(0.1) == 0.5
    assert backoff.next(1e9) == 3_600


def test_the_pauses_begin_anew_after_a_success() -> None:
    backoff = Backoff(LEAST)
    for _ in range(3):
        backoff.next()
    backoff.reset()
    assert (backoff.failures, backoff.next(), backoff.failures) == (0, 0.25, 1)


def test_any_number_of_failures_does_not_overflow_a_pause() -> None:
    backoff = Backoff(MOST)
    for _ in range(2_000):
        backoff.next()
    assert backoff.next() == 30


def test_the_pauses_of_one_thing_may_be_shorter_than_others() -> None:
    pauses = Retry(first=1.0, longest=8.0, jitter=lambda: 1.0)
    shorter, longer = pauses.backoff(longest=3.0), pauses.backoff(longest=100.0)
    assert [shorter.next() for _ in range(4)] == [1, 2, 3, 3]
    assert [longer.next() for _ in range(5)] == [1, 2, 4, 8, 8]
