"""UNet evaluations, quality and bytes of each method and solver: `python -m nti_batch.benchmarks.solvers`.

Prints a Markdown table for the embedded model: rendered scenes that are not in its training set, real images, several
guidance scales and numbers of steps.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from nti_batch.benchmarks.job_loop import job_loop, load_images
from nti_batch.benchmarks.loop_result import Score, score
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.jobs.flags import SAMPLES, shard_addresses
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.models.supported import ModelDescription
from nti_batch.records import CaptionedImage

AUTHORS = InversionSettings()
TWO_UPDATES = InversionSettings(num_inner_steps=2, learning_rate=0.03)
FAST = InversionSettings(null_init="prompt", early_stop_epsilon=3e-4, early_stop_growth=0)
SOLVERS = {
    'Adam from ""': AUTHORS,
    'Adam from "", two updates': TWO_UPDATES,
    'Polyak from ""': replace(AUTHORS, solver="polyak"),
    "Adam from the prompt": replace(AUTHORS, null_init="prompt"),
    "Polyak from the prompt": replace(AUTHORS, null_init="prompt", solver="polyak"),
    "Adam from the prompt, one threshold": FAST,
    "Polyak from the prompt, one threshold": replace(FAST, solver="polyak"),
    "direct": replace(AUTHORS, method="direct"),
    "negative-prompt": replace(AUTHORS, method="negative-prompt"),
    "ddim": replace(AUTHORS, method="ddim"),
    "ddpm": replace(AUTHORS, method="ddpm"),
}
CASES = [(3.0, 50), (12.0, 50), (7.5, 20), (7.5, 100)]
"""Guidance scales and numbers of steps beside 7.5 and 50."""

HEADER = """\
| solver | images | guidance | steps | forwards | backwards | evaluations | ΔPSNR, mean | ΔPSNR, worst | distance | kB |
|---|---|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Images and settings with which every solver is measured."""

    name: str
    images: Sequence[CaptionedImage]
    guidance_scale: float = 7.5
    num_steps: int = 50


def table_row(solver: str, case: Case, scores: Sequence[Score]) -> str:
    """Format the means over the images; ΔPSNR is the PSNR below the VAE bound, in dB."""
    forwards, backwards = fmean(s.forwards for s in scores), fmean(s.backwards for s in scores)
    below_bound = [s.psnr_below_bound for s in scores]
    cells = [
        solver,
        f"{len(scores)} {case.name}",
        f"{case.guidance_scale:g}",
        str(case.num_steps),
        f"{forwards:.0f}",
        f"{backwards:.0f}",
        f"{forwards + backwards:.0f}",
        f"{fmean(below_bound):.3f}",
        f"{max(below_bound):.2f}",
        f"{fmean(s.distance for s in scores):.1f}",
        f"{fmean(s.stored_bytes for s in scores) / 1000:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def measure(networks: StableDiffusion, settings: InversionSettings, case: Case, storage: Storage) -> list[Score]:
    """Invert the images of a case."""
    schedule = networks.schedule(case.num_steps)
    settings = replace(settings, guidance_scale=case.guidance_scale)
    found = job_loop(networks, networks.predict, case.images, schedule, settings, 16, storage)
    return [score(networks, image, inverted) for image, inverted in zip(case.images, found, strict=True)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="UNet evaluations, quality and bytes of each method and solver.")
    parser.add_argument("--scenes", required=True, help="shards of drawn scenes, by nti_batch.demo.samples")
    parser.add_argument(
        "--count", type=int, default=64, help="scenes at guidance 7.5 and 50 steps; a quarter elsewhere"
    )
    parser.add_argument("--storage", default="compact", choices=("float32", "float16", "compact"))
    arguments = parser.parse_args()
    networks, size = (
        StableDiffusion.load(ModelSource("demo")),
        ModelDescription.of(ModelSource("demo")).image_size(None, None),
    )
    scenes = load_images(shard_addresses(arguments.scenes), "txt", size, arguments.count)
    photographs = load_images(shard_addresses(str(SAMPLES / "photographs-000000.tar")), "txt", size, 8)
    cases = [Case(name="scenes", images=scenes), Case(name="photographs", images=photographs)]
    quarter = scenes[: len(scenes) // 4]
    cases += [Case(name="scenes", images=quarter, guidance_scale=w, num_steps=steps) for w, steps in CASES]
    print(HEADER)
    for case in cases:
        for solver, settings in SOLVERS.items():
            print(table_row(solver, case, measure(networks, settings, case, arguments.storage)))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
