"""Compares the job with the reference loop on the same images: `nti-batch bench`."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import fmean
from typing import Literal

from nti_batch.benchmarks.job_loop import job_loop
from nti_batch.benchmarks.loop_result import Inverted, Score, score
from nti_batch.benchmarks.reference_loop import reference_loop
from nti_batch.benchmarks.timing import Cost, OwnProcess, UNetClock, measured, peak_bytes
from nti_batch.diffusion.batch_size import find_batch_size
from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.models.acceleration import Acceleration, checkpoint_activations
from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.records import CaptionedImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Model, device and settings of a comparison."""

    source: ModelSource
    device: str
    precision: Precision
    acceleration: Acceleration
    num_steps: int
    settings: InversionSettings
    batch_size: int | Literal["auto"]
    storage: Storage
    optimize_pooled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Outcome of one round of one side."""

    scores: list[Score]
    cost: Cost
    peak_bytes: int


@cache
def _networks(source: ModelSource, device: str, precision: Precision) -> StableDiffusion:
    return StableDiffusion.load(source, precision).to(device)


@cache
def _predictor(setup: Setup) -> Predictor:
    """The network as the job calls it."""
    networks, batch_size = _networks(setup.source, setup.device, setup.precision), setup.batch_size
    assert batch_size != "auto"
    return setup.acceleration.predictor(networks, lambda: batch_size, setup.optimize_pooled)


def prepare(setup: Setup, image: CaptionedImage) -> Setup:
    """Find the batch size and warm up; nothing here is timed.

    Args:
        setup: Setup of the comparison.
        image: Image to warm up with.

    Returns:
        The setup with a number as batch size.
    """
    networks = _networks(setup.source, setup.device, setup.precision)
    if setup.batch_size == "auto":
        if setup.acceleration.checkpointing:
            checkpoint_activations(networks.unet)
        latents, prompt = networks.encode_images(image.pixels[None])[0], networks.embed_prompts([image.prompt])[0]
        batch_size = find_batch_size(networks.predict, latents, networks.schedule(2).network_timesteps[1], prompt)
        setup = dataclasses.replace(setup, batch_size=batch_size)
    assert setup.batch_size != "auto"
    job_round(dataclasses.replace(setup, num_steps=2), [image] * (2 * setup.batch_size - 1))
    return setup


def job_round(setup: Setup, images: Sequence[CaptionedImage]) -> Round:
    """Invert images with the loop of the job.

    Args:
        setup: Setup with a number as batch size.
        images: Images of one size.
    """
    networks = _networks(setup.source, setup.device, setup.precision)
    batch_size = setup.batch_size
    assert batch_size != "auto"

    def invert(predict: Predictor, schedule: DDIMSchedule) -> list[Inverted]:
        return job_loop(networks, predict, images, schedule, setup.settings, batch_size, setup.storage)

    return _timed(networks, _predictor(setup), setup, images, invert)


def reference_settings(setup: Setup) -> InversionSettings:
    """The settings of the paper's authors, with the guidance scale of the comparison."""
    return InversionSettings(guidance_scale=setup.settings.guidance_scale, solver="authors")


def reference_round(setup: Setup, images: Sequence[CaptionedImage]) -> Round:
    """Invert images with the reference loop in float32, with the constants of the paper's authors.

    Args:
        setup: Setup of the comparison; it gives the guidance scale and T.
        images: Images of one size.
    """
    networks = _networks(setup.source, setup.device, "float32")
    settings = reference_settings(setup)

    def invert(predict: Predictor, schedule: DDIMSchedule) -> list[Inverted]:
        return [reference_loop(networks, predict, image, schedule, settings) for image in images]

    predict = partial(networks.predict, optimize_pooled=setup.optimize_pooled)
    return _timed(networks, predict, setup, images, invert)


def _timed(
    networks: StableDiffusion,
    predict: Predictor,
    setup: Setup,
    images: Sequence[CaptionedImage],
    invert: Callable[[Predictor, DDIMSchedule], list[Inverted]],
) -> Round:
    clock, schedule = UNetClock(predict, networks.device), networks.schedule(setup.num_steps)
    with measured(clock) as cost:
        inverted = invert(clock, schedule)
    peak = peak_bytes(networks.device)
    scores = [score(networks, image, result) for image, result in zip(images, inverted, strict=True)]
    return Round(scores=scores, cost=cost, peak_bytes=peak)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures of one side, mostly means over its images."""

    images_per_hour: float
    forwards: float
    """Forward passes of the UNet for an image, inversion included."""

    backwards: float
    """Backward passes of the UNet for an image."""

    forward_equivalents: float
    """Forward passes, plus 1 for a backward pass with frozen weights, or 2 for one with gradients of the weights."""

    psnr: float
    """Mean PSNR of the reconstructions, in dB."""

    psnr_below_vae: float
    """Mean PSNR below the VAE bound, in dB."""

    worst_psnr_below_vae: float
    """Largest PSNR below the VAE bound of an image, in dB."""

    null_distance: float
    """Mean L2 distance of the null embeddings to the empty-prompt embedding."""

    peak_bytes: int
    """Peak memory of the GPU, or of the process on a CPU."""

    stored_bytes: float
    """Mean size of an image's tensors in a file."""

    unet_share: float
    """Share of the time that the UNet takes."""

    @classmethod
    def of(cls, rounds: list[Round], backward_cost: int) -> "Figures":
        """Sum up rounds.

        Args:
            rounds: Rounds of one side.
            backward_cost: Cost of a backward pass, in forward passes.
        """
        scores = [s for r in rounds for s in r.scores]
        seconds = sum(r.cost.seconds for r in rounds)
        forwards, backwards = fmean(s.forwards for s in scores), fmean(s.backwards for s in scores)
        return cls(
            images_per_hour=3600 * len(scores) / seconds,
            forwards=forwards,
            backwards=backwards,
            forward_equivalents=forwards + backward_cost * backwards,
            psnr=fmean(s.psnr for s in scores),
            psnr_below_vae=fmean(s.psnr_below_bound for s in scores),
            worst_psnr_below_vae=max(s.psnr_below_bound for s in scores),
            null_distance=fmean(s.distance for s in scores),
            peak_bytes=max(r.peak_bytes for r in rounds),
            stored_bytes=fmean(s.stored_bytes for s in scores),
            unet_share=sum(r.cost.unet_seconds for r in rounds) / seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Figures of both sides on the same images."""

    images: int
    psnr_vae: float
    """Mean PSNR of the VAE round trip, in dB."""

    worst_psnr_below_reference: float
    """Largest PSNR of an image below that of the reference loop, in dB; negative if the job is better on all images."""

    job: Figures
    reference: Figures

    @property
    def speedup(self) -> float:
        """Images an hour of the job, divided by those of the reference loop."""
        return self.job.images_per_hour / self.reference.images_per_hour

    def to_json(self) -> dict[str, object]:
        """Return the fields by name, and the speedup."""
        return {**dataclasses.asdict(self), "speedup": self.speedup}

    def lines(self) -> list[str]:
        """Return a table for a person, with a line for each figure."""
        rows = [
            f"{self.images} images, VAE {self.psnr_vae:.2f} dB; the job is {self.speedup:.1f} times as fast, "
            f"and at most {self.worst_psnr_below_reference:.2f} dB below the reference loop on an image",
            f"{'':22}{'job':>12}{'reference':>12}",
        ]
        for f in dataclasses.fields(Figures):
            job, reference = getattr(self.job, f.name), getattr(self.reference, f.name)
            label = f.name.replace("_", " ").replace("psnr", "PSNR").replace("vae", "VAE").replace("unet", "UNet")
            rows.append(f"{label:22}{_format(f.name, job):>12}{_format(f.name, reference):>12}")
        return rows


def _format(name: str, value: float) -> str:
    if name == "peak_bytes":
        return f"{value / 2**20:.0f} MiB"
    if name == "stored_bytes":
        return f"{value / 1000:.1f} kB"
    if "psnr_below" in name:
        return f"{value:.3f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def compare(setup: Setup, images: Sequence[CaptionedImage], rounds: int) -> Comparison:
    """Invert the images with both sides in alternating rounds, each side in its own process.

    Args:
        setup: Setup of the comparison.
        images: Images of one size.
        rounds: Number of rounds of each side, which share the images.

    Raises:
        ValueError: If there are more rounds than images, or more steps than the authors' learning rate has.
    """
    reference_settings(setup).check_num_steps(setup.num_steps)
    if not 1 <= rounds <= len(images):
        raise ValueError(f"--rounds is {rounds}, allowed: 1 to the number of images, {len(images)}")
    of_job: list[Round] = []
    of_reference: list[Round] = []
    with OwnProcess() as job, OwnProcess() as reference:
        setup = job.call(prepare, setup, images[0])
        reference.call(reference_round, dataclasses.replace(setup, num_steps=2), images[:1])
        for i in range(rounds):
            of_job.append(job.call(job_round, setup, images[i::rounds]))
            of_reference.append(reference.call(reference_round, setup, images[i::rounds]))
            seconds = of_job[-1].cost.seconds, of_reference[-1].cost.seconds
            print(
                f"round {i + 1} of {rounds}: job {seconds[0]:.1f} s, reference loop {seconds[1]:.1f} s",
                file=sys.stderr,
            )
    pairs = [(a, b) for x, y in zip(of_job, of_reference, strict=True) for a, b in zip(x.scores, y.scores, strict=True)]
    return Comparison(
        images=len(images),
        psnr_vae=fmean(a.psnr_vae for a, _ in pairs),
        worst_psnr_below_reference=max(b.psnr - a.psnr for a, b in pairs),
        job=Figures.of(of_job, backward_cost=1),
        reference=Figures.of(of_reference, backward_cost=2),
    )
