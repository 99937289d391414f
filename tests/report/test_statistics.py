"""Statistics of a run agree with its inversions and with a count by hand."""

import itertools
from collections import Counter
from statistics import median

import numpy as np
import pytest
from helpers.runs import plan_of, units_of

from nti_batch import read_inversions
from nti_batch.output.inversions import InversionRun
from nti_batch.output.manifest_rows import InversionRow
from nti_batch.report.statistics import (
    MAX_REASONS,
    Reasons,
    RunNumbers,
    by_timestep,
    extremes,
    histogram,
    read_sample,
    throughput,
)


def numbers_of(run: InversionRun) -> RunNumbers[InversionRow]:
    numbers = RunNumbers(InversionRow, ("psnr", "psnr_vae", "inner_steps"))
    plan_of(run).status(units_of(run), numbers.add)
    return numbers


def test_columns_hold_the_numbers_of_the_inversions(run: InversionRun):
    numbers = numbers_of(run)
    stored = {(s.shard, s.key): s.metadata for s in read_inversions(run.out)}
    rows = [row for _, row in numbers.find(range(len(numbers)))]
    assert len(rows) == len(stored) == 8
    for i, row in enumerate(rows):
        metadata = stored[row.shard, row.key]
        assert [numbers[name][i] for name in ("psnr", "psnr_vae", "finished", "seconds")] == [
            metadata[name] for name in ("psnr", "psnr_vae", "finished", "seconds")
        ]
        assert numbers["inner_steps"][i] == sum(metadata["inner_steps"])  # type: ignore[arg-type]


def test_losses_by_timestep_are_the_median_and_the_outer_deciles_of_the_images(run: InversionRun):
    numbers = numbers_of(run)
    sample, stored = read_sample(numbers.find(numbers.sample(100)), num_steps=3), list(read_inversions(run.out))
    curve = by_timestep(sample.timesteps, sample.losses)
    assert sample.errors == [] and len(sample.losses) == 8
    assert curve.timesteps.tolist() == stored[0].metadata["timesteps"]
    steps = sorted(s.metadata["inner_steps"] for s in stored)
    assert sorted(sample.inner_steps.tolist()) == steps
    for i in range(3):
        losses = sorted(s.metadata["losses"][i] for s in stored)
        # the quantile 0.1 of 8 sorted values lies 0.7 of the way from the first to the second
        assert curve.low[i] == pytest.approx(losses[0] + 0.7 * (losses[1] - losses[0]))
        assert curve.median[i] == pytest.approx(median(losses))
        assert curve.high[i] == pytest.approx(losses[7] - 0.7 * (losses[7] - losses[6]))


def test_a_sample_has_different_images_and_is_reproducible(run: InversionRun):
    numbers = numbers_of(run)
    sample = numbers.sample(5)
    assert len(set(sample)) == 5 and sample == numbers_of(run).sample(5)
    assert numbers.sample(100) == list(range(8))


@pytest.mark.parametrize(
    "values", [[3.0], [2.5, 2.5, 2.5], [0.0] * 5, [1.0, 2.0, 40.0], list(np.geomspace(0.01, 9, 500))]
)
def test_a_histogram_counts_every_value_once(values: list[float]):
    bars = histogram(np.array(values))
    assert bars.counts.sum() == len(values)
    edges = bars.edges.copy()
    edges[[0, -1]] = -np.inf, np.inf
    by_hand = [sum(low <= v < high for v in values) for low, high in itertools.pairwise(edges)]
    # numpy closes its last bin on the right
    assert bars.counts.tolist() == by_hand


def test_outliers_do_not_widen_the_bins_of_a_histogram():
    values = np.append(np.linspace(29, 31, 999), -40.0)
    bars = histogram(values)
    assert bars.edges[0] > 28.9 and bars.counts.sum() == 1000


def test_bins_of_whole_numbers_have_whole_widths():
    bars = histogram(np.repeat(np.arange(100.0, 400.0), 7))
    (width,) = set(np.diff(bars.edges))
    assert width == int(width)
    assert set(bars.counts[1:-1]) == {7 * width}, "the outer bins include the values beyond them"


def test_throughput_counts_from_the_start_of_the_first_image():
    finished, seconds = np.array([1000.0, 1010, 1020, 1039.9]), np.array([np.nan, 20.0, 5, 5])
    bars = throughput(finished, seconds)
    assert bars.edges.tolist() == pytest.approx([990, 1014.95, 1039.9])
    assert bars.counts.tolist() == [2, 2]


def test_extremes_have_each_entry_once():
    assert extremes(np.array([5.0, 1, 4, 2, 3, 9, 7]), 2) == {"worst": [1, 3], "median": [4, 2], "best": [5, 6]}
    assert extremes(np.array([5.0, 1, 4]), 2) == {"worst": [1, 2], "best": [0]}
    assert extremes(np.array([5.0]), 2) == {"worst": [0]}


def failed(error: str, key: str = "k", shard: str = "s") -> InversionRow:
    return InversionRow(shard=shard, key=key, status="failed", stage="image", error=error, finished=0.0)


def test_failures_that_differ_only_in_names_and_numbers_have_one_reason():
    reasons = Reasons()
    for i in range(4):
        reasons.add(
            failed(f"the image's header says {i}.5 of {i}00 bytes of 'x{i}.jpg' in /tmp/{i}/a: 0x7f{i}e", f"k{i}")
        )
    reasons.add(failed("image is empty", "e"))
    first, second = reasons.sorted()
    assert (first.count, first.example, second.count) == (4, "s/k0", 1)
    assert first.reason == "the image's header says … of … bytes of … in … …"
    assert first.error == "the image's header says 0.5 of 000 bytes of 'x0.jpg' in /tmp/0/a: 0x7f0e"


def test_a_damaged_shard_counts_once_and_the_number_of_reasons_is_limited():
    reasons = Reasons()
    for _ in range(8):
        reasons.add(failed("cut", key=""))
    for i in range(3 * MAX_REASONS):
        reasons.add(failed("because " + "very " * i))
    groups = reasons.sorted()
    assert len(groups) == MAX_REASONS + 1
    assert sum(group.count for group in groups) == 1 + 3 * MAX_REASONS
    assert Counter(group.reason for group in groups)["other reasons"] == 1
    assert next(group for group in groups if group.reason == "cut").count == 1
