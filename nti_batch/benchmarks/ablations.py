"""Ablations of null-text optimization: `python -m nti_batch.benchmarks.ablations`.

Mokady et al., "Null-text Inversion for Editing Real Images using Guided Diffusion Models", 2022,
https://arxiv.org/abs/2211.09794, Figure 4: PSNR of the reconstruction against inner iterations, which are T N in all.

    null-text            Algorithm 1, N updates at every timestep and no early stop
    random caption       the same with another image's prompt
    global null-text     one null embedding for all timesteps, N passes over the pivot
    random pivot         z*_t = sqrt(abar_t) z*_0 + sqrt(1 - abar_t) e with one e, in place of DDIM inversion
    textual inversion    the prompt's embedding, T N updates with random timesteps and noises

With `--tokens`, only so many first tokens of a null embedding are optimized: all 77 are far more for the 256 pixels of
the embedded model's latents than for the 4,096 of Stable Diffusion's. The command prints a Markdown table, and draws
the curves into the file that `--plot` names.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nti_batch.benchmarks.job_loop import load_images
from nti_batch.diffusion.ddim import ddim_invert, ddim_sample, ddim_step, predict_at
from nti_batch.diffusion.guidance import Predictor, classifier_free_guidance
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.jobs.flags import shard_addresses
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.models.supported import ModelDescription
from nti_batch.records import CaptionedImage
from nti_batch.scores.metrics import psnr

UPDATES = (1, 2, 5, 10, 20)
"""N."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImages:
    """Encoded images with their prompts, and the network that predicts from them."""

    network: Predictor
    schedule: DDIMSchedule
    guidance_scale: float
    latents: Tensor
    """z*_0, [images, channels, height, width]."""

    prompts: Tensor
    """C, [images, tokens, dim]."""

    empty: Tensor
    """Embedding of the empty prompt, in the same shape."""

    tokens: int | None = None
    """Number of first tokens of a null embedding that are optimized; None is all."""

    def predict(self, latents: Tensor, t: int, embeddings: Tensor) -> Tensor:
        """The network's prediction at the level t."""
        return predict_at(self.network, self.schedule, latents, t, embeddings)

    def levels(self, t: int) -> Tensor:
        """The level of each image, [images]."""
        return torch.full((len(self.latents),), t, device=self.latents.device)

    def step(self, latents: Tensor, t: int, null_embedding: Tensor, cond: Tensor) -> Tensor:
        """z_{t-1} by the guided step from z_t."""
        noise = classifier_free_guidance(self.predict(latents, t, null_embedding), cond, self.guidance_scale)
        return ddim_step(self.schedule, latents, noise, self.levels(t), self.levels(t - 1))

    def pivot(self) -> Tensor:
        """z*_0 ... z*_T by DDIM inversion, [T + 1, images, channels, height, width]."""
        return ddim_invert(self.network, self.schedule, self.latents, self.prompts)

    def random_pivot(self) -> Tensor:
        """z*_0 ... z*_T, each a mixture of the image and one noise."""
        noise, abar = torch.randn_like(self.latents), self.schedule.alphas_cumprod.view(-1, 1, 1, 1, 1)
        mixture = abar.sqrt() * self.latents + (1 - abar).sqrt() * noise
        return torch.cat([self.latents[None], mixture[1:]])

    def trainable(self, null_embedding: Tensor) -> Tensor:
        """Copy an embedding for an optimizer, which changes only its first `tokens` tokens."""
        copy = null_embedding.clone().requires_grad_()
        frozen = torch.zeros_like(copy, dtype=torch.bool)
        if self.tokens is not None:
            frozen[:, self.tokens :] = True
        copy.register_hook(lambda gradient: gradient.masked_fill(frozen, 0))  # Adam does not change these
        return copy

    def distances(self, latents: Tensor, target: Tensor) -> Tensor:
        """Sum over images of the mean squared distance; each image gets the gradient of its own."""
        return (latents - target).square().mean(dim=(1, 2, 3)).sum()


def null_text(images: EncodedImages, pivot: Tensor, updates: int) -> Tensor:
    """z_0 after Algorithm 1 with N = `updates` at every timestep."""
    settings, num_steps = InversionSettings(), images.schedule.num_steps
    latents, null_embedding = pivot[-1], images.empty
    for t in range(num_steps, 0, -1):
        with torch.no_grad():
            cond = images.predict(latents, t, images.prompts)
        null_embedding = images.trainable(null_embedding)
        adam = torch.optim.Adam([null_embedding], settings.learning_rate_at(t, num_steps))
        for _ in range(updates):
            adam.zero_grad()
            images.distances(images.step(latents, t, null_embedding, cond), pivot[t - 1]).backward()
            adam.step()
        null_embedding = null_embedding.detach()
        with torch.no_grad():
            latents = images.step(latents, t, null_embedding, cond)
    return latents


def global_null_text(images: EncodedImages, pivot: Tensor) -> Iterator[Tensor]:
    """z_0 after each pass over the pivot, with one null embedding for all timesteps."""
    null_embedding = images.trainable(images.empty)
    adam = torch.optim.Adam([null_embedding], InversionSettings().learning_rate)
    num_steps = images.schedule.num_steps
    with torch.no_grad():
        cond = [images.predict(z, t, images.prompts) for t, z in enumerate(pivot)]
    while True:
        for t in range(num_steps, 0, -1):
            adam.zero_grad()
            images.distances(images.step(pivot[t], t, null_embedding, cond[t]), pivot[t - 1]).backward()
            adam.step()
        yield sample(images, pivot[-1], images.prompts, null_embedding.detach())


def textual_inversion(images: EncodedImages) -> Iterator[Tensor]:
    """z_0 after each T updates of the prompts' embeddings, for a network that predicts the noise.

    Sampling starts at the DDIM inversion with the embeddings found.
    """
    prompts = images.prompts.clone().requires_grad_()
    adam = torch.optim.Adam([prompts], InversionSettings().learning_rate)
    schedule = images.schedule
    while True:
        for _ in range(schedule.num_steps):
            levels = torch.randint(1, schedule.num_steps + 1, (len(prompts),), device=prompts.device)
            noise, abar = torch.randn_like(images.latents), schedule.alpha(levels)
            noisy = abar.sqrt() * images.latents + (1 - abar).sqrt() * noise
            adam.zero_grad()
            predicted = images.network(noisy, schedule.network_timesteps[levels], prompts)
            images.distances(predicted, noise).backward()
            adam.step()
        found = prompts.detach()
        pivot = ddim_invert(images.network, schedule, images.latents, found)
        yield sample(images, pivot[-1], found, images.empty)


def sample(images: EncodedImages, noise_latents: Tensor, prompts: Tensor, null_embedding: Tensor) -> Tensor:
    """z_0 with one null embedding for all timesteps."""
    null_embeddings = [null_embedding] * images.schedule.num_steps
    return ddim_sample(images.network, images.schedule, noise_latents, prompts, null_embeddings, images.guidance_scale)


def curves(images: EncodedImages, wanted: Sequence[int]) -> Iterator[tuple[str, int, Tensor]]:
    """Name, N and z_0 of every variant."""
    shuffled = images.prompts.roll(1, 0)
    random_caption = replace(images, prompts=shuffled)
    pivots = [
        ("null-text", images, images.pivot()),
        ("random caption", random_caption, random_caption.pivot()),
        ("random pivot", images, images.random_pivot()),
    ]
    for updates in wanted:
        for name, of, pivot in pivots:
            yield name, updates, null_text(of, pivot, updates)
    running: list[tuple[str, Callable[[], Iterator[Tensor]]]] = [
        ("global null-text", lambda: global_null_text(images, images.pivot())),
        ("textual inversion", lambda: textual_inversion(images)),
    ]
    for name, run in running:
        for updates, latents in zip(range(1, max(wanted) + 1), run(), strict=False):
            if updates in wanted:
                yield name, updates, latents


def plot(found: dict[str, dict[int, float]], bound: float, path: Path) -> None:
    """Draw PSNR against iterations; `bound` is the VAE's own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="inner iterations", ylabel="PSNR against the input, dB")
    axes.axhline(bound, color="grey", linestyle="dashed", label="VAE round trip")
    for name, values in found.items():
        axes.plot(list(values), list(values.values()), marker="o", label=name)
        axes.set_xticks(list(values), map(str, values))
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    flags = argparse.ArgumentParser(description="Null-text optimization without one of its parts.")
    flags.add_argument("--shards", default="demo", help="input, as for nti-batch invert")
    flags.add_argument("--images", type=int, default=16)
    flags.add_argument("--guidance_scale", type=float, default=InversionSettings().guidance_scale)
    flags.add_argument("--updates", type=int, nargs="+", default=UPDATES, help="values of N")
    flags.add_argument("--tokens", type=int, help="tokens of a null embedding that are optimized; all if left out")
    flags.add_argument("--plot", type=Path, help="file for the plot of the curves, such as curves.png")
    return flags


def encode(
    networks: StableDiffusion, images: Sequence[CaptionedImage], guidance_scale: float, tokens: int | None
) -> EncodedImages:
    """Encode images and prompts for 50 steps."""
    prompts = networks.embed_prompts([image.prompt for image in images])
    return EncodedImages(
        networks.predict,
        networks.schedule(50),
        guidance_scale,
        networks.encode_images(torch.stack([image.pixels for image in images])),
        prompts,
        networks.embed_prompts([""]).expand_as(prompts),
        tokens,
    )


@torch.enable_grad()
def main() -> None:
    """Measure, print and draw."""
    arguments = parser().parse_args()
    source = ModelSource("demo")
    networks, size = StableDiffusion.load(source), ModelDescription.of(source).image_size(None, None)
    loaded = load_images(shard_addresses(arguments.shards), "txt", size, arguments.images)
    pixels = torch.stack([image.pixels for image in loaded])
    images = encode(networks, loaded, arguments.guidance_scale, arguments.tokens)

    def score(latents: Tensor) -> float:
        return psnr(networks.decode_latents(latents), pixels / 255).mean().item()

    torch.manual_seed(0)
    found: dict[str, dict[int, float]] = {}
    for name, updates, latents in curves(images, arguments.updates):
        iterations = updates * images.schedule.num_steps
        found.setdefault(name, {})[iterations] = score(latents)
        print(f"{name}, {iterations} iterations: {found[name][iterations]:.2f} dB", flush=True)
    bound = score(images.latents)
    print_table(found, bound)
    if arguments.plot:
        plot(found, bound, arguments.plot)


def print_table(found: dict[str, dict[int, float]], bound: float) -> None:
    """Print PSNR against iterations as a Markdown table; `bound` is the VAE's own."""
    print(f"\n| iterations | {' | '.join(found)} |\n|{'---|' * (1 + len(found))}")
    for iterations in next(iter(found.values())):
        print(f"| {iterations} | {' | '.join(f'{values[iterations]:.1f}' for values in found.values())} |")
    print(f"\nVAE round trip: {bound:.1f} dB")


if __name__ == "__main__":
    main()
