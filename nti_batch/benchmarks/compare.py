"""This job and the authors' loop on the same images in one run: `nti-batch bench`."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import fmean
from typing import Literal

from nti_batch.benchmarks.inverted import Inverted, Score, score
from nti_batch.benchmarks.job_loop import job_loop
from nti_batch.benchmarks.reference_loop import reference_loop
from nti_batch.benchmarks.timing import Cost, OwnProcess, UNetClock, measured, peak_bytes
from nti_batch.diffusion.batch_size import find_batch_size
from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.records import CaptionedImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What both sides run on, and how the job's side runs."""

    source: ModelSource
    device: str
    precision: Precision
    compile_backend: str | None
    num_steps: int
    settings: InversionSettings
    batch_size: int | Literal["auto"]
    storage: Storage
    optimize_pooled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one side did at its turn."""

    scores: list[Score]
    cost: Cost
    peak_bytes: int


@cache
def _networks(source: ModelSource, device: str, precision: Precision, backend: str | None) -> StableDiffusion:
    networks = StableDiffusion.load(source, precision).to(device)
    if backend:
        networks.unet.compile(backend=backend)
    return networks


def prepared(setup: Setup, image: CaptionedImage) -> Setup:
    """The setup with a number of batch_size, once calls with so many images have been made: they are not timed."""
    networks = _networks(setup.source, setup.device, setup.precision, setup.compile_backend)
    if setup.batch_size == "auto":
        latents, prompt = networks.encode_pictures(image.pixels[None])[0], networks.embed_prompts([image.prompt])[0]
        batch_size = find_batch_size(networks.predict, latents, networks.schedule(2).network_timesteps[1], prompt)
        setup = dataclasses.replace(setup, batch_size=batch_size)
    assert setup.batch_size != "auto"
    job_round(dataclasses.replace(setup, num_steps=2), [image] * (2 * setup.batch_size - 1))
    return setup


def job_round(setup: Setup, images: Sequence[CaptionedImage]) -> Round:
    """Invert images as the job does."""
    networks = _networks(setup.source, setup.device, setup.precision, setup.compile_backend)
    batch_size = setup.batch_size
    assert batch_size != "auto"

    def invert(predict: Predictor, schedule: DDIMSchedule) -> list[Inverted]:
        return job_loop(networks, predict, images, schedule, setup.settings, batch_size, setup.storage)

    return _timed(networks, setup, images, invert)


def reference_round(setup: Setup, images: Sequence[CaptionedImage]) -> Round:
    """Invert images by the authors' loop with their constants, in float32; guidance scale and T are the job's."""
    networks = _networks(setup.source, setup.device, "float32", None)
    settings = InversionSettings(guidance_scale=setup.settings.guidance_scale)

    def invert(predict: Predictor, schedule: DDIMSchedule) -> list[Inverted]:
        return [reference_loop(networks, predict, image, schedule, settings) for image in images]

    return _timed(networks, setup, images, invert)


def _timed(
    networks: StableDiffusion,
    setup: Setup,
    images: Sequence[CaptionedImage],
    invert: Callable[[Predictor, DDIMSchedule], list[Inverted]],
) -> Round:
    predict = partial(networks.predict, optimize_pooled=setup.optimize_pooled)
    clock, schedule = UNetClock(predict, networks.device), networks.schedule(setup.num_steps)
    with measured(clock) as cost:
        inverted = invert(clock, schedule)
    peak = peak_bytes(networks.device)
    scores = [score(networks, image, found) for image, found in zip(images, inverted, strict=True)]
    return Round(scores=scores, cost=cost, peak_bytes=peak)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is told of one side."""

    images_per_hour: float
    forwards: float
    """UNet forwards an image, the inversion included."""

    backwards: float
    forward_equivalents: float
    """Forwards, plus 1 for a backward with frozen weights, 2 for one that computes the weights' gradients too."""

    psnr: float
    gap: float
    """Mean distance to the VAE's own PSNR, in dB."""

    worst_gap: float
    distance: float
    """Mean norm of an embedding's change from the one of the empty prompt."""

    peak_bytes: int
    """Most memory of the GPU, or of the process."""

    stored_bytes: float
    """Of an image's tensors in a file."""

    unet_share: float
    """Share of the time that was spent in the UNet."""

    @classmethod
    def of(cls, turns: list[Round], backward_cost: int) -> "Figures":
        """Means over the images of all turns; a backward costs that many forwards."""
        scores = [s for turn in turns for s in turn.scores]
        seconds = sum(turn.cost.seconds for turn in turns)
        forwards, backwards = fmean(s.forwards for s in scores), fmean(s.backwards for s in scores)
        return cls(
            images_per_hour=3600 * len(scores) / seconds,
            forwards=forwards,
            backwards=backwards,
            forward_equivalents=forwards + backward_cost * backwards,
            psnr=fmean(s.psnr for s in scores),
            gap=fmean(s.gap for s in scores),
            worst_gap=max(s.gap for s in scores),
            distance=fmean(s.distance for s in scores),
            peak_bytes=max(turn.peak_bytes for turn in turns),
            stored_bytes=fmean(s.stored_bytes for s in scores),
            unet_share=sum(turn.cost.unet_seconds for turn in turns) / seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both sides on the same images."""

    images: int
    psnr_vae: float
    most_behind: float
    """Largest lead of the authors' loop on one image, in dB; below 0 if it leads on none."""

    job: Figures
    authors: Figures

    @property
    def speedup(self) -> float:
        """Images an hour of the job over those of the authors' loop."""
        return self.job.images_per_hour / self.authors.images_per_hour

    def to_json(self) -> dict[str, object]:
        """The fields by name, and the ratio."""
        return {**dataclasses.asdict(self), "speedup": self.speedup}

    def lines(self) -> list[str]:
        """For a person: a row for each figure."""
        rows = [
            f"{self.images} images, VAE {self.psnr_vae:.2f} dB; the job is {self.speedup:.1f} times as fast, "
            f"and at most {self.most_behind:.2f} dB behind on an image",
            f"{'':22}{'job':>12}{'authors':>12}",
        ]
        for f in dataclasses.fields(Figures):
            ours, theirs = getattr(self.job, f.name), getattr(self.authors, f.name)
            rows.append(f"{f.name.replace('_', ' '):22}{_shown(f.name, ours):>12}{_shown(f.name, theirs):>12}")
        return rows


def _shown(name: str, value: float) -> str:
    if name == "peak_bytes":
        return f"{value / 2**20:.0f} MiB"
    if name == "stored_bytes":
        return f"{value / 1000:.1f} kB"
    if "gap" in name:
        return f"{value:.3f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def compare(setup: Setup, images: Sequence[CaptionedImage], rounds: int) -> Comparison:
    """Let both sides invert the images, each in a process of its own, alternating.

    Args:
        setup: What to run.
        images: Of one size.
        rounds: Turns of each side; each takes its share of the images.

    Raises:
        ValueError: If there are more rounds than images.
    """
    if not 1 <= rounds <= len(images):
        raise ValueError(f"--rounds is {rounds}, allowed: 1 to the number of images, {len(images)}")
    ours: list[Round] = []
    theirs: list[Round] = []
    with OwnProcess() as job, OwnProcess() as authors:
        setup = job.call(prepared, setup, images[0])
        authors.call(reference_round, dataclasses.replace(setup, num_steps=2), images[:1])
        for turn in range(rounds):
            ours.append(job.call(job_round, setup, images[turn::rounds]))
            theirs.append(authors.call(reference_round, setup, images[turn::rounds]))
            seconds = ours[-1].cost.seconds, theirs[-1].cost.seconds
            print(
                f"turn {turn + 1} of {rounds}: job {seconds[0]:.1f} s, authors' loop {seconds[1]:.1f} s",
                file=sys.stderr,
            )
    pairs = [(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x.scores, y.scores, strict=True)]
    return Comparison(
        images=len(images),
        psnr_vae=fmean(a.psnr_vae for a, _ in pairs),
        most_behind=max(b.psnr - a.psnr for a, b in pairs),
        job=Figures.of(ours, backward_cost=1),
        authors=Figures.of(theirs, backward_cost=2),
    )
