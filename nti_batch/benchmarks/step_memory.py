"""Peak memory of one inner step of each family's full-size UNet: `python -m nti_batch.benchmarks.step_memory`.

Each family has its own process, frozen random weights, a batch size of 1, and latents of the size that it was trained
for. The peak is that of the GPU memory of the process, or without a GPU that of its main memory.
"""

import argparse
from typing import get_args

import torch

from nti_batch.benchmarks.full_size import Family, random_unet
from nti_batch.benchmarks.inner_step import step_seconds
from nti_batch.benchmarks.timing import OwnProcess, peak_bytes
from nti_batch.models.source import Precision


def step_peak(family: Family, precision: Precision, device: str) -> int:
    """Peak memory of a forward pass and a backward pass to the embedding, in bytes."""
    place = torch.device(device)
    unet = random_unet(precision, place, family).requires_grad_(False).eval()
    step_seconds(unet, unet.config.sample_size)
    return peak_bytes(place)


def main() -> None:
    """Measure and print a line for each family."""
    parser = argparse.ArgumentParser(description="Peak memory of one inner step of each family's full-size UNet.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=get_args(Precision), default="bfloat16")
    parser.add_argument("--families", nargs="+", choices=get_args(Family), default=list(get_args(Family)))
    arguments = parser.parse_args()
    for family in arguments.families:
        with OwnProcess() as process:
            peak = process.call(step_peak, family, arguments.precision, arguments.device)
        print(f"{family:8} {peak / 1e9:5.2f} GB, {arguments.precision}, {arguments.device}", flush=True)


if __name__ == "__main__":
    main()
