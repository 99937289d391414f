"""This job and the authors' loop side by side, on the same images in one run: `nti-batch bench`.

The authors' loop is the one of their notebook (google/prompt-to-prompt, null_text_w_ptp.ipynb), written anew: one
image at a time, weights not frozen, step first and test afterwards, an advance that evaluates both embeddings again.
"""

import dataclasses
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.datamodule import InversionDataModule
from nti_batch.diffusion.ddim import ddim_invert, ddim_step
from nti_batch.diffusion.guidance import classifier_free_guidance
from nti_batch.diffusion.metrics import psnr
from nti_batch.diffusion.null_text import NullTextSettings, Solver, Start
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.packing import pack_tensors
from nti_batch.records import CaptionedImage
from nti_batch.stable_diffusion import ModelDescription, ModelSource, Precision, StableDiffusion
from nti_batch.stream import RawSample, read_unit


@dataclass(frozen=True, slots=True, eq=False)
class Inverted:
    """What either side found for one image, and the UNet work that it cost."""

    latents: Tensor
    """z_0, [channels, height, width]."""

    null_embeddings: Tensor
    """[T, tokens, dim]."""

    forwards: int
    backwards: int
    stored_bytes: int
    """Size of the tensors in a file."""


@dataclass(slots=True)
class Side:
    """Measurements of one side, summed over its turns."""

    seconds: float = 0.0
    unet_seconds: float = 0.0
    peak_bytes: int = 0
    inverted: list[Inverted] = field(default_factory=list)


def synchronize(device: torch.device) -> None:
    """Wait for what was asked of a GPU, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class UNetClock:
    """A `NoisePredictor` that adds up the time spent in the network, forwards and backwards."""

    def __init__(self, networks: StableDiffusion) -> None:
        """Start at zero."""
        self.networks, self.seconds, self._started = networks, 0.0, 0.0

    def __call__(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """Predict, and listen for the gradient that passes."""
        self._start()
        noise = self.networks.predict_noise(latents, timesteps, embeddings)
        self._stop()
        if noise.requires_grad and embeddings.requires_grad:
            noise.register_hook(lambda gradient: self._start())
            self._until_gradient_of(embeddings)
        return noise

    def _until_gradient_of(self, embeddings: Tensor) -> None:
        """Stop the clock once: the authors' loop gives the same tensor to many calls."""

        def stop(gradient: Tensor) -> None:
            self._stop()
            handle.remove()

        handle = embeddings.register_hook(stop)

    def _start(self) -> None:
        synchronize(self.networks.device)
        self._started = time.perf_counter()

    def _stop(self) -> None:
        synchronize(self.networks.device)
        self.seconds += time.perf_counter() - self._started


@contextmanager
def measured(side: Side, clock: UNetClock) -> Iterator[None]:
    """Add the time and the peak memory of a turn to its side: of the GPU, or of the process."""
    device = clock.networks.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    stop, peak = threading.Event(), [resident_bytes()]
    watch = threading.Thread(target=_watch_memory, args=(stop, peak), daemon=True)
    watch.start()
    before = clock.seconds
    synchronize(device)
    start = time.perf_counter()
    yield
    synchronize(device)
    side.seconds += time.perf_counter() - start
    side.unet_seconds += clock.seconds - before
    stop.set()
    watch.join()
    seen = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak[0]
    side.peak_bytes = max(side.peak_bytes, seen)


def resident_bytes() -> int:
    """Memory of this process now."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


def _watch_memory(stop: threading.Event, peak: list[int]) -> None:
    while not stop.wait(0.02):
        peak[0] = max(peak[0], resident_bytes())


# --- the two sides -------------------------------------------------------------------------------


def authors_loop(
    networks: StableDiffusion,
    predict: UNetClock,
    image: CaptionedImage,
    schedule: DDIMSchedule,
    settings: NullTextSettings,
) -> Inverted:
    """Invert one image as the authors' notebook does.

    Its weights are not frozen, so that every backward computes the gradients of the whole UNet, which nothing uses.
    """
    networks.unet.requires_grad_(True)
    latents = networks.encode_pictures(image.pixels[None])
    prompt, null = networks.embed_prompts([image.prompt]), networks.embed_prompts([""])
    trajectory = ddim_invert(predict, schedule, latents, prompt)
    z, found, forwards, backwards = trajectory[-1], [], schedule.num_steps, 0
    for level in range(schedule.num_steps, 0, -1):
        t = torch.tensor([level], device=z.device)
        timestep = schedule.network_timesteps[t]
        null = null.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([null], lr=settings.learning_rate_at(level, schedule.num_steps))
        with torch.no_grad():
            e_c = predict(z, timestep, prompt)
        forwards += 1
        for _ in range(settings.num_inner_steps):
            guided = classifier_free_guidance(predict(z, timestep, null), e_c, settings.guidance_scale)
            loss = F.mse_loss(ddim_step(schedule, z, guided, t, t - 1), trajectory[level - 1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            forwards, backwards = forwards + 1, backwards + 1
            if loss.item() < settings.threshold_at(level, schedule.num_steps):
                break
        found.append(null.detach()[0])
        with torch.no_grad():
            both = predict(z.repeat(2, 1, 1, 1), timestep.repeat(2), torch.cat([null, prompt]))
            z = ddim_step(schedule, z, classifier_free_guidance(both[:1], both[1:], settings.guidance_scale), t, t - 1)
        forwards += 2
    networks.unet.requires_grad_(False)
    networks.unet.zero_grad(set_to_none=True)
    embeddings = torch.stack(found)
    stored = pack_tensors("float32", trajectory[-1][0].cpu(), null[0].cpu(), embeddings.cpu())
    return Inverted(z[0], embeddings, forwards, backwards, len(stored))


def pooled(
    networks: StableDiffusion,
    predict: UNetClock,
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
    job, authors = Side(), Side()
    for turn in range(rounds):
        batch = images[turn::rounds]
        with measured(job, clock):
            job.inverted += pooled(networks, clock, batch, schedule, settings, slots, storage)
        with measured(authors, clock):
            authors.inverted += [authors_loop(networks, clock, image, schedule, settings) for image in batch]
        print(
            f"turn {turn + 1} of {rounds}: job {job.seconds:.0f} s, authors' loop {authors.seconds:.0f} s",
            file=sys.stderr,
        )
    order = [image for turn in range(rounds) for image in images[turn::rounds]]
    inputs = [image.pixels.to(networks.device)[None] / 255 for image in order]
    vae = [
        psnr(networks.decode_latents(networks.encode_pictures(image.pixels[None])), pixels).item()
        for image, pixels in zip(order, inputs, strict=True)
    ]
    empty = networks.embed_prompts([""])[0]
    return Comparison(
        images=len(images),
        psnr_vae=fmean(vae),
        job=_figures(networks, job, inputs, vae, empty, backward_cost=1),
        authors=_figures(networks, authors, inputs, vae, empty, backward_cost=2),
    )


def _figures(
    networks: StableDiffusion, side: Side, inputs: list[Tensor], vae: list[float], empty: Tensor, backward_cost: int
) -> Figures:
    reached = [
        psnr(networks.decode_latents(found.latents[None]), pixels).item()
        for found, pixels in zip(side.inverted, inputs, strict=True)
    ]
    gaps = [best - own for best, own in zip(vae, reached, strict=True)]
    forwards = fmean(found.forwards for found in side.inverted)
    backwards = fmean(found.backwards for found in side.inverted)
    return Figures(
        images_per_hour=3600 * len(inputs) / side.seconds,
        forwards=forwards,
        backwards=backwards,
        forward_equivalents=forwards + backward_cost * backwards,
        psnr=fmean(reached),
        gap=fmean(gaps),
        worst_gap=max(gaps),
        distance=fmean((found.null_embeddings - empty).norm(dim=(1, 2)).mean().item() for found in side.inverted),
        peak_bytes=side.peak_bytes,
        stored_bytes=fmean(found.stored_bytes for found in side.inverted),
        unet_share=side.unet_seconds / side.seconds,
    )
