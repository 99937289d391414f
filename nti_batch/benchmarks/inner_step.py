"""One inner step of a full-size Stable Diffusion 1.5 UNet: `python -m nti_batch.benchmarks.inner_step`.

The weights are random, so no download is needed; time and memory do not depend on them. The authors' step has trainable
weights, so it computes the gradients of all of them. The job's step has frozen weights.
"""

import argparse
import time
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import TYPE_CHECKING

import torch

from nti_batch.benchmarks.full_size import random_unet
from nti_batch.benchmarks.timing import OwnProcess, peak_bytes, synchronize
from nti_batch.models.source import Precision

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


@dataclass(frozen=True, slots=True)
class Step:
    """A variant of the step."""

    name: str
    precision: Precision
    frozen: bool


AUTHORS = Step("authors', float32", "float32", frozen=False)
JOB = [Step("job, float32", "float32", frozen=True), Step("job, bfloat16", "bfloat16", frozen=True)]


@cache
def _unet(step: Step, device: torch.device) -> "UNet2DConditionModel":
    return random_unet(step.precision, device).requires_grad_(not step.frozen).eval()


def timed_step(step: Step, device: str, latents_size: int) -> tuple[float, int]:
    """Seconds of a forward and a backward pass of one image, and the peak memory of the process so far, in bytes."""
    place = torch.device(device)
    return step_seconds(_unet(step, place), latents_size), peak_bytes(place)


def step_seconds(unet: "UNet2DConditionModel", latents_size: int) -> float:
    """Seconds of a forward and a backward pass of one image; families other than XL ignore its conditioning."""
    place = unet.device
    latents = torch.randn(1, 4, latents_size, latents_size, device=place, dtype=unet.dtype)
    dim = unet.config.cross_attention_dim
    embedding = torch.randn(1, 77, dim, device=place, dtype=unet.dtype, requires_grad=True)
    of_xl = {
        "text_embeds": torch.randn(1, 1280, device=place, dtype=unet.dtype),
        "time_ids": torch.zeros(1, 6, device=place),
    }
    timestep = torch.tensor([500], device=place)
    synchronize(place)
    start = time.perf_counter()
    noise = unet(latents, timestep, embedding, added_cond_kwargs=of_xl, return_dict=False)[0]
    # as in the authors' code, weights that require a gradient get one and keep it
    noise.float().square().mean().backward()
    synchronize(place)
    return time.perf_counter() - start


def main() -> None:
    """Measure each variant against the authors', alternating, each in its own process, and print the ratios."""
    parser = argparse.ArgumentParser(description="One inner step of a full-size Stable Diffusion 1.5 UNet.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--latents", type=int, default=64, help="height and width of the latents")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each variant, after one that is not timed")
    arguments = parser.parse_args()
    print(f"{arguments.latents} x {arguments.latents} latents, {arguments.device}, {torch.get_num_threads()} threads")
    for step in JOB:
        with OwnProcess() as theirs, OwnProcess() as ours:
            pairs = [
                (
                    theirs.call(timed_step, AUTHORS, arguments.device, arguments.latents),
                    ours.call(timed_step, step, arguments.device, arguments.latents),
                )
                for _ in range(1 + arguments.steps)
            ]
        ratio = median(own[0] / other[0] for other, own in pairs[1:])
        other_seconds, own_seconds = (median(pair[side][0] for pair in pairs[1:]) for side in (0, 1))
        other_peak, own_peak = pairs[-1][0][1], pairs[-1][1][1]
        print(f"{step.name:14} {own_seconds:6.2f} s against {other_seconds:6.2f} s: {ratio:.2f}", end="    ")
        print(f"{own_peak / 1e9:5.2f} GB against {other_peak / 1e9:5.2f} GB: {own_peak / other_peak:.2f}", flush=True)


if __name__ == "__main__":
    main()
