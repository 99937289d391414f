"""One inner step of a full-size Stable Diffusion 1.5 UNet: `python -m nti_batch.benchmarks.inner_step`.

The weights are random, so that nothing is fetched; time and memory do not depend on them. The authors' step has
trainable weights, so that the gradients of all of them are computed; the job's has frozen ones.
"""

import argparse
import time
from dataclasses import dataclass

import torch

from nti_batch.benchmarks.stopwatch import OwnProcess, peak_bytes, synchronize
from nti_batch.stable_diffusion import Precision


@dataclass(frozen=True, slots=True)
class Step:
    """A way to do the step."""

    name: str
    precision: Precision
    frozen: bool


AUTHORS = Step("authors', float32", "float32", frozen=False)
JOB = [Step("job, float32", "float32", frozen=True), Step("job, bfloat16", "bfloat16", frozen=True)]


def timed_step(step: Step, device: str, latents_size: int, repetitions: int) -> tuple[float, int]:
    """Seconds of the fastest of some forwards and backwards of one image, and the peak memory of it all, in bytes."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    dtype, place = getattr(torch, step.precision), torch.device(device)
    torch.set_default_dtype(dtype)  # or a float32 copy would count as memory of the bfloat16 step
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).to(place)
    unet.requires_grad_(not step.frozen).eval()
    torch.set_default_dtype(torch.float32)
    latents = torch.randn(1, 4, latents_size, latents_size, device=place, dtype=dtype)
    seconds = []
    for _ in range(repetitions):
        embedding = torch.randn(1, 77, 768, device=place, dtype=dtype, requires_grad=True)
        synchronize(place)
        start = time.perf_counter()
        noise = unet(latents, torch.tensor([500], device=place), embedding, return_dict=False)[0]
        noise.float().square().mean().backward()  # as the authors': every parameter that requires a gradient gets one
        synchronize(place)
        seconds.append(time.perf_counter() - start)
        unet.zero_grad(set_to_none=True)
    return min(seconds), peak_bytes(place)


def main() -> None:
    """Measure each way in a process of its own, alternating, and print the ratios to the authors' step."""
    parser = argparse.ArgumentParser(description="One inner step of a full-size Stable Diffusion 1.5 UNet.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--latents", type=int, default=64, help="height and width of the latents")
    parser.add_argument("--repetitions", type=int, default=3, help="steps in a round; the fastest counts")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each way; the fastest and the leanest count")
    arguments = parser.parse_args()
    steps = [AUTHORS, *JOB]
    measured: dict[Step, list[tuple[float, int]]] = {step: [] for step in steps}
    for _ in range(arguments.rounds):
        for step in steps:
            with OwnProcess() as process:
                result = process.call(timed_step, step, arguments.device, arguments.latents, arguments.repetitions)
            measured[step].append(result)
    best = {step: tuple(map(min, zip(*results, strict=True))) for step, results in measured.items()}
    print(f"{arguments.latents} x {arguments.latents} latents, {arguments.device}, {torch.get_num_threads()} threads")
    for step, (seconds, peak) in best.items():
        time_ratio, memory_ratio = seconds / best[AUTHORS][0], peak / best[AUTHORS][1]
        print(f"{step.name:18} {seconds:7.2f} s {peak / 1e9:6.2f} GB   {time_ratio:.2f} {memory_ratio:.2f}")


if __name__ == "__main__":
    main()
