"""The rate counts finished records and the time in which they were in progress."""

import random

import pytest

from nti_batch.output.throughput import MAX_SPANS, Throughput

DAY = 86400.0


def rate(*spans: tuple[float, float]) -> float | None:
    """The rate of records, each given by its end and its seconds, in random order."""
    found = Throughput()
    for finished, seconds in random.Random(0).sample(spans, len(spans)):
        found.add(finished, seconds)
    return found.per_hour()


def test_images_one_after_the_other_and_at_the_same_time():
    assert rate() is None
    assert rate((DAY, 36.0)) == pytest.approx(100)
    assert rate((DAY, 36.0), (DAY + 36, 36.0)) == pytest.approx(100)
    assert rate(*((DAY, 36.0) for _ in range(8))) == pytest.approx(800)
    assert rate((DAY, 10.0), (DAY + 5, 10.0)) == pytest.approx(2 / 15 * 3600)


def test_the_time_between_two_jobs_does_not_count():
    first = [(DAY + 2 * n, 2.0) for n in range(100)]
    resumed = [(DAY + 1800 + 2 * n, 2.0) for n in range(3)]
    assert rate(*first, *resumed) == pytest.approx(1800)


def test_the_rate_covers_the_last_hour_of_work():
    slow = [(DAY + 100 * n, 100.0) for n in range(36)]
    quick = [(2 * DAY + 10 * n, 10.0) for n in range(720)]
    assert rate(*slow, *quick) == pytest.approx(360)


def test_a_rate_above_the_number_of_kept_records_is_right():
    spans = [(DAY + n / 10, 0.1) for n in range(MAX_SPANS + 500)]
    assert rate(*spans) == pytest.approx(36000, rel=1e-3)


def test_the_times_of_two_ranks_add_up():
    one, other = Throughput([(DAY, DAY - 36)]), Throughput([(DAY + 10, DAY - 26)])
    assert (one + other).per_hour() == pytest.approx(2 / 46 * 3600)
