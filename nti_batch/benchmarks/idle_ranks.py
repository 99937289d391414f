"""Time from the first to the last rank's end, simulated: `python -m nti_batch.benchmarks.idle_ranks`.

The ranks take work units in the job's order (`JobPart.queue`): each its own alone, or at the end those of others, too.
An image takes as many passes of the UNet as images were measured to, from 150 to 1,200, the logarithm of the number
being uniform. A rank needs the sum of its images: the simulation has no start, no reading and no tail of the pool.
"""

import argparse
import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Literal, get_args

from nti_batch.data.shards import work_units
from nti_batch.jobs.ranks import JobPart
from nti_batch.records import WorkUnit

PASSES = 150, 1200
SECONDS_A_PASS = 0.005
"""Between the time of a forward pass on an NVIDIA H200, and that of one with its backward pass."""

SLOW = 0.5
Load = Literal["all shards alike", "shards differ", "one slow rank"]


@dataclass(frozen=True, slots=True)
class Input:
    """The input of a run."""

    shards: int
    images_per_shard: int
    units_per_shard: int

    @property
    def units(self) -> list[WorkUnit]:
        """All work units."""
        return work_units({f"{i:05}": "" for i in range(self.shards)}, self.units_per_shard)

    def seconds(self, load: Load, dice: random.Random) -> dict[WorkUnit, float]:
        """Time of each work unit on a rank of full speed.

        Args:
            load: Whether each shard has a mean of its own: half of the logarithm is the shard's, half the image's.
            dice: Random numbers.
        """
        images, found = self.images_per_shard // self.units_per_shard, dict[WorkUnit, float]()
        of_shard = {unit.shard: _passes(dice) for unit in self.units}
        for unit in self.units:
            passes = [_passes(dice) for _ in range(images)]
            if load == "shards differ":
                passes = [(of_image * of_shard[unit.shard]) ** 0.5 for of_image in passes]
            found[unit] = SECONDS_A_PASS * sum(passes)
        return found


def _passes(dice: random.Random) -> float:
    least, most = PASSES
    return float(least * (most / least) ** dice.random())


def rank_ends(
    units: Sequence[WorkUnit], seconds: dict[WorkUnit, float], speeds: Sequence[float], helps: bool
) -> list[float]:
    """Times at which the ranks end.

    Args:
        units: Work units of the job.
        seconds: Time of each unit on a rank of speed 1.
        speeds: Speed of each rank.
        helps: Whether a rank that has done its own units takes those of others.
    """
    ranks = len(speeds)
    queues = [JobPart().queue(units, rank, ranks) for rank in range(ranks)]
    orders = [chain(own, others if helps else ()) for own, others in queues]
    taken, ends, running = set[WorkUnit](), [0.0] * ranks, [(0.0, rank) for rank in range(ranks)]
    while running:
        now, rank = heapq.heappop(running)
        ends[rank] = now
        if unit := next((unit for unit in orders[rank] if unit not in taken), None):
            taken.add(unit)
            heapq.heappush(running, (now + seconds[unit] / speeds[rank], rank))
    return ends


def mean_idle(of_input: Input, load: Load, ranks: int, helps: bool, rounds: int) -> tuple[float, float]:
    """Mean time from the first to the last rank's end, and mean time to the last one's, in minutes."""
    spans, ends = list[float](), list[float]()
    speeds = [SLOW if load == "one slow rank" and rank == 0 else 1.0 for rank in range(ranks)]
    for seed in range(rounds):
        found = rank_ends(of_input.units, of_input.seconds(load, random.Random(seed)), speeds, helps)
        spans.append((max(found) - min(found)) / 60)
        ends.append(max(found) / 60)
    return fmean(spans), fmean(ends)


def main() -> None:
    """Print a line for each load and number of ranks."""
    parser = argparse.ArgumentParser(description="Simulate the time from the first to the last rank's end.")
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--images_per_shard", type=int, default=1000)
    parser.add_argument("--units_per_shard", type=int, default=8)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--rounds", type=int, default=10, help="simulations of which the mean is printed")
    arguments = parser.parse_args()
    of_input = Input(arguments.shards, arguments.images_per_shard, arguments.units_per_shard)
    for load in get_args(Load):
        for ranks in arguments.ranks:
            own, help_ = (mean_idle(of_input, load, ranks, helps, arguments.rounds) for helps in (False, True))
            print(
                f"{load:16} {ranks:3} ranks: {own[0]:5.1f} of {own[1]:5.0f} min with its own units alone, "
                f"{help_[0]:5.1f} of {help_[1]:5.0f} min with those of others",
                flush=True,
            )


if __name__ == "__main__":
    main()
