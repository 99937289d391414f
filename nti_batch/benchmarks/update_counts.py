"""The number of updates of each timestep, and a job that takes just these: random weights do not converge.

`python -m nti_batch.benchmarks.update_counts` measures them anew on the embedded model and writes
`update_counts.json`, the file that `nti-batch bench --full-size` reads.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Literal
from unittest.mock import patch

import torch

from nti_batch.benchmarks.job_loop import load_images, pool_inputs
from nti_batch.diffusion.null_text import Decision, InversionState
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.jobs.flags import shard_addresses
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.models.supported import ModelDescription
from nti_batch.records import CaptionedImage

FILE = Path(__file__).with_suffix(".json")
NUM_STEPS = 50
Method = Literal["default", "fast", "reference"]

SETTINGS: dict[Method, InversionSettings] = {
    "default": InversionSettings(),
    "fast": InversionSettings(null_init="prompt", early_stop_epsilon=3e-4, early_stop_growth=0.0),
    "reference": InversionSettings(solver="authors"),
}
"""Settings of the lists: the default, those of `configs/fast.yaml`, and the authors'."""


def measured_counts() -> dict[Method, list[int]]:
    """The measured lists: number of updates of each timestep, t = T first."""
    counts: dict[Method, list[int]] = json.loads(FILE.read_text())
    return counts


def whole_counts(means: Sequence[float], length: int) -> list[int]:
    """Round means to whole numbers whose sum stays right, and give each of `length` equal parts of the list its own.

    A part has the mean of its timesteps: the sum of the list shrinks by `length / len(means)`.
    """
    ends = [sum(means[: round(i * len(means) / length)]) * length / len(means) for i in range(length + 1)]
    return [round(end) - round(start) for start, end in pairwise(ends)]


@contextmanager
def fixed_updates(counts: Sequence[int]) -> Iterator[None]:
    """Let the job take a fixed number of updates at each timestep, whatever the losses are.

    Args:
        counts: Number of updates of each timestep, t = T first.
    """
    original = InversionState.decide

    def decide(state: InversionState, loss: float) -> Decision:
        decision = original(state, loss)
        if decision in ("update", "evaluate again") and state.current.updates >= counts[state.num_steps - state.t]:
            return "accept"
        return decision

    with patch.object(InversionState, "decide", decide), patch.object(InversionState, "threshold", -math.inf):
        yield


@contextmanager
def fixed_reference_updates(counts: Sequence[int]) -> Iterator[None]:
    """Let the reference loop take a fixed number of updates at each timestep, but at least one, as it always does.

    Args:
        counts: Number of updates of each timestep, t = T first.
    """
    taken: Counter[int] = Counter()

    def threshold_at(_: InversionSettings, t: int, num_steps: int) -> float:
        taken[t] += 1
        if taken[t] < counts[num_steps - t]:
            return -math.inf
        del taken[t]  # for the next image
        return math.inf

    with patch.object(InversionSettings, "threshold_at", threshold_at):
        yield


def measure(images: Sequence[CaptionedImage], networks: StableDiffusion, settings: InversionSettings) -> list[int]:
    """Mean number of updates of each timestep, in whole numbers whose sum is right."""
    pool = InversionPool[int](
        networks.predict, networks.schedule(NUM_STEPS), settings, networks.embed_prompts([""])[0], batch_size=16
    )
    steps = zip(*(image.inner_steps for _, image in pool.run(pool_inputs(networks, images, settings))), strict=True)
    means = [fmean(of_timestep) for of_timestep in steps]
    return whole_counts(means, len(means))


def main() -> None:
    """Measure the lists on the package's samples and write them."""
    parser = argparse.ArgumentParser(description="Measure the number of updates of each timestep.")
    parser.add_argument("--images", type=int, default=16, help="number of images")
    arguments = parser.parse_args()
    source = ModelSource("demo")
    size = ModelDescription.of(source).image_size(None, None)
    images = load_images(shard_addresses("demo"), "txt", size, arguments.images)
    networks = StableDiffusion.load(source).to("cuda" if torch.cuda.is_available() else "cpu")
    counts = {method: measure(images, networks, settings) for method, settings in SETTINGS.items()}
    FILE.write_text("{\n" + ",\n".join(f'  "{m}": {json.dumps(c)}' for m, c in counts.items()) + "\n}\n")
    for method, of_method in counts.items():
        print(f"{method:9} {sum(of_method):3} updates: {of_method}", flush=True)


if __name__ == "__main__":
    main()
