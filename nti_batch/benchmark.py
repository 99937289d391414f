"""This job and the authors' loop side by side, on the same images in one run: `nti-batch bench`."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

import torch
from torch import Tensor

from nti_batch.authors_loop import Inverted, authors_loop
from nti_batch.datamodule import InversionDataModule
from nti_batch.diffusion.guidance import NoisePredictor
from nti_batch.diffusion.metrics import psnr
from nti_batch.diffusion.null_text import NullTextSettings, Solver, Start
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.packing import pack_tensors
from nti_batch.records import CaptionedImage
from nti_batch.stable_diffusion import ModelDescription, ModelSource, Precision, StableDiffusion
from nti_batch.stopwatch import Cost, UNetClock, measured
from nti_batch.stream import RawSample, read_unit


def pooled(
    networks: StableDiffusion,
    predict: NoisePredictor,
    images: Sequence[CaptionedImage],
    schedule: DDIMSchedule,
    settings: NullTextSettings,
    slots: int,
    storage: Storage,
) -> list[Inverted]:
    """Invert images as the job does."""
    empty = networks.embed_prompts([""])[0]
    pool = InversionPool[int](predict, schedule, settings, empty, slots, storage)
    done: dict[int, Inverted] = {}

    def advance() -> None:
        for key, s in pool.tick():
            embeddings = torch.stack(s.null_embeddings)
            stored = pack_tensors(storage, s.trajectory[-1].cpu(), s.start_embedding.cpu(), embeddings.cpu())
            done[key] = Inverted(s.current_latents, embeddings, s.forwards, s.backwards, len(stored))

    for key, image in enumerate(images):
        while len(pool) == pool.capacity:
            advance()
        latents = networks.encode_pictures(image.pixels[None])[0]
        pool.admit(key, latents, networks.embed_prompts([image.prompt])[0])
    while len(pool):
        advance()
    return [done[key] for key in range(len(images))]


def load_images(shards: str, size: int, count: int) -> list[CaptionedImage]:
    """The first images of some shards, square.

    Raises:
        ValueError: If there are fewer.
    """
    data = InversionDataModule(shards, height=size, width=size, slices=1)
    samples = (sample for unit in data.units for sample in read_unit(unit, data.caption, ()))
    decoded = (data.decode(sample) for sample in samples if isinstance(sample, RawSample))
    images = list(islice((image for image in decoded if isinstance(image, CaptionedImage)), count))
    if len(images) < count:
        raise ValueError(f"--images is {count}, and {shards!r} holds {len(images)}: give more shards or ask for fewer")
    return images


def run_benchmark(
    *,
    model: str,
    precision: Precision,
    device: str | None,
    shards: str,
    count: int,
    slots: int,
    num_steps: int,
    guidance_scale: float,
    solver: Solver,
    start: Start,
    storage: Storage,
    rounds: int,
) -> "Comparison":
    """Load what `nti-batch bench` names, and compare.

    Raises:
        ValueError: If a setting is wrong.
    """
    if not 1 <= rounds <= count:
        raise ValueError(f"--rounds is {rounds}, allowed: 1 to the number of images, {count}")
    source = ModelSource(model)
    settings = NullTextSettings(guidance_scale=guidance_scale, solver=solver, start=start)
    images = load_images(shards, ModelDescription.of(source).size, count)
    networks = StableDiffusion.load(source, precision)
    networks.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return compare(networks, images, settings, num_steps, slots, storage, rounds)


# --- figures -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is told of one cost."""

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
    """Most memory of the GPU, or of the process, during its turns."""

    stored_bytes: float
    """Of an image's tensors in a file."""

    unet_share: float
    """Share of the time that was spent in the UNet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both sides on the same images."""

    images: int
    psnr_vae: float
    job: Figures
    authors: Figures

    @property
    def speedup(self) -> float:
        """Images an hour of the job over those of the authors' loop."""
        return self.job.images_per_hour / self.authors.images_per_hour

    def as_json(self) -> dict[str, object]:
        """The fields by name, and the ratio."""
        return {**dataclasses.asdict(self), "speedup": self.speedup}

    def lines(self) -> list[str]:
        """For a person: a row for each figure."""
        rows = [f"{self.images} images, VAE {self.psnr_vae:.2f} dB; the job is {self.speedup:.1f} times as fast"]
        rows.append(f"{'':22}{'job':>12}{'authors':>12}")
        for f in dataclasses.fields(Figures):
            ours, theirs = getattr(self.job, f.name), getattr(self.authors, f.name)
            rows.append(f"{f.name.replace('_', ' '):22}{_shown(f.name, ours):>12}{_shown(f.name, theirs):>12}")
        return rows


def _shown(name: str, value: float) -> str:
    if name == "peak_bytes":
        return f"{value / 2**20:.0f} MiB"
    if name == "stored_bytes":
        return f"{value / 1000:.1f} kB"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def compare(
    networks: StableDiffusion,
    images: Sequence[CaptionedImage],
    settings: NullTextSettings,
    num_steps: int,
    slots: int,
    storage: Storage,
    rounds: int,
) -> Comparison:
    """Let both sides invert the images, alternating `rounds` times.

    Args:
        networks: Frozen; the authors' loop thaws the UNet for its own turns.
        images: Of one size.
        settings: Of the job; the authors' loop takes its learning rate, thresholds and inner steps.
        num_steps: DDIM steps, T.
        slots: Images in one UNet call of the job.
        storage: Form in which the job stores embeddings; the authors' loop is counted in float32.
        rounds: Turns of each side; each takes its share of the images.
    """
    schedule, clock = networks.schedule(num_steps), UNetClock(networks)
    job, authors = Cost(), Cost()
    ours: list[Inverted] = []
    theirs: list[Inverted] = []
    turns = [images[turn::rounds] for turn in range(rounds)]
    for number, batch in enumerate(turns, 1):
        with measured(job, clock):
            ours += pooled(networks, clock, batch, schedule, settings, slots, storage)
        with measured(authors, clock):
            theirs += [authors_loop(networks, clock, image, schedule, settings) for image in batch]
        print(
            f"turn {number} of {rounds}: job {job.seconds:.0f} s, authors' loop {authors.seconds:.0f} s",
            file=sys.stderr,
        )
    order = [image for batch in turns for image in batch]
    inputs = [image.pixels.to(networks.device)[None] / 255 for image in order]
    vae = [
        psnr(networks.decode_latents(networks.encode_pictures(image.pixels[None])), pixels).item()
        for image, pixels in zip(order, inputs, strict=True)
    ]
    empty = networks.embed_prompts([""])[0]
    return Comparison(
        images=len(images),
        psnr_vae=fmean(vae),
        job=_figures(networks, ours, job, inputs, vae, empty, backward_cost=1),
        authors=_figures(networks, theirs, authors, inputs, vae, empty, backward_cost=2),
    )


def _figures(
    networks: StableDiffusion,
    inverted: list[Inverted],
    cost: Cost,
    inputs: list[Tensor],
    vae: list[float],
    empty: Tensor,
    backward_cost: int,
) -> Figures:
    reached = [
        psnr(networks.decode_latents(found.latents[None]), pixels).item()
        for found, pixels in zip(inverted, inputs, strict=True)
    ]
    gaps = [best - own for best, own in zip(vae, reached, strict=True)]
    forwards = fmean(found.forwards for found in inverted)
    backwards = fmean(found.backwards for found in inverted)
    return Figures(
        images_per_hour=3600 * len(inputs) / cost.seconds,
        forwards=forwards,
        backwards=backwards,
        forward_equivalents=forwards + backward_cost * backwards,
        psnr=fmean(reached),
        gap=fmean(gaps),
        worst_gap=max(gaps),
        distance=fmean((found.null_embeddings - empty).norm(dim=(1, 2)).mean().item() for found in inverted),
        peak_bytes=cost.peak_bytes,
        stored_bytes=fmean(found.stored_bytes for found in inverted),
        unet_share=cost.unet_seconds / cost.seconds,
    )
