"""What null-text optimization owes to each of its parts: `python -m nti_batch.benchmarks.ablations`.

Mokady et al., "Null-text Inversion for Editing Real Images using Guided Diffusion Models", 2022,
https://arxiv.org/abs/2211.09794, Figure 4: PSNR of the reconstruction against inner iterations, which are T N in all.

    null-text            Algorithm 1, N updates at every timestep and no early stop
    random caption       the same with another picture's prompt
    global null-text     one null embedding for all timesteps, N passes over the pivot
    random pivot         z*_t = sqrt(abar_t) z*_0 + sqrt(1 - abar_t) e with one e, in place of DDIM inversion
    textual inversion    the prompt's embedding, T N updates with random timesteps and noises

`--tokens` lets only the first so many tokens of a null embedding move: all 77 are far more for the 256 pixels of the
embedded model's latents than for the 4,096 of Stable Diffusion's. Prints a Markdown table, and draws the curves where
`--plot` says.
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
from nti_batch.models.source import ModelDescription, ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.scores.metrics import psnr

UPDATES = (1, 2, 5, 10, 20)
"""N."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImages:
    """Encoded images with their prompts, and the network that is asked about them."""

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
    """How many tokens of a null embedding may move, the first ones; None is all."""

    def predict(self, latents: Tensor, t: int, embeddings: Tensor) -> Tensor:
        """The network at the level t."""
        return predict_at(self.network, self.schedule, latents, t, embeddings)

    def levels(self, t: int) -> Tensor:
        """The level of each image, [images]."""
        return torch.full((len(self.latents),), t, device=self.latents.device)

    def step(self, latents: Tensor, t: int, null_embedding: Tensor, noise_cond: Tensor) -> Tensor:
        """z_{t-1} by the guided step from z_t."""
        noise = classifier_free_guidance(self.predict(latents, t, null_embedding), noise_cond, self.guidance_scale)
        return ddim_step(self.schedule, latents, noise, self.levels(t), self.levels(t - 1))

    def pivot(self) -> Tensor:
        """z*_0 ... z*_T by DDIM inversion, [T + 1, images, channels, height, width]."""
        return ddim_invert(self.network, self.schedule, self.latents, self.prompts)

    def random_pivot(self) -> Tensor:
        """z*_0 ... z*_T on the straight way to one noise."""
        noise, abar = torch.randn_like(self.latents), self.schedule.alphas_cumprod.view(-1, 1, 1, 1, 1)
        way = abar.sqrt() * self.latents + (1 - abar).sqrt() * noise
        return torch.cat([self.latents[None], way[1:]])

    def movable(self, null_embedding: Tensor) -> Tensor:
        """A copy that an optimizer may move."""
        copy = null_embedding.clone().requires_grad_()
        still = torch.zeros_like(copy, dtype=torch.bool)
        if self.tokens is not None:
            still[:, self.tokens :] = True
        copy.register_hook(lambda gradient: gradient.masked_fill(still, 0))  # which Adam does not move
        return copy

    def distances(self, latents: Tensor, target: Tensor) -> Tensor:
        """Sum over images of the mean squared distance; each image's gradient is that of its own."""
        return (latents - target).square().mean(dim=(1, 2, 3)).sum()


def null_text(pictures: EncodedImages, pivot: Tensor, updates: int) -> Tensor:
    """z_0 after Algorithm 1 with N = `updates` at every timestep."""
    settings, num_steps = InversionSettings(), pictures.schedule.num_steps
    latents, null_embedding = pivot[-1], pictures.empty
    for t in range(num_steps, 0, -1):
        with torch.no_grad():
            noise_cond = pictures.predict(latents, t, pictures.prompts)
        null_embedding = pictures.movable(null_embedding)
        adam = torch.optim.Adam([null_embedding], settings.learning_rate_at(t, num_steps))
        for _ in range(updates):
            adam.zero_grad()
            pictures.distances(pictures.step(latents, t, null_embedding, noise_cond), pivot[t - 1]).backward()
            adam.step()
        null_embedding = null_embedding.detach()
        with torch.no_grad():
            latents = pictures.step(latents, t, null_embedding, noise_cond)
    return latents


def global_null_text(pictures: EncodedImages, pivot: Tensor) -> Iterator[Tensor]:
    """z_0 after each pass over the pivot, with one null embedding for all timesteps."""
    null_embedding = pictures.movable(pictures.empty)
    adam = torch.optim.Adam([null_embedding], InversionSettings().learning_rate)
    num_steps = pictures.schedule.num_steps
    with torch.no_grad():
        conditional = [pictures.predict(z, t, pictures.prompts) for t, z in enumerate(pivot)]
    while True:
        for t in range(num_steps, 0, -1):
            adam.zero_grad()
            pictures.distances(pictures.step(pivot[t], t, null_embedding, conditional[t]), pivot[t - 1]).backward()
            adam.step()
        yield sample(pictures, pivot[-1], pictures.prompts, null_embedding.detach())


def textual_inversion(pictures: EncodedImages) -> Iterator[Tensor]:
    """z_0 after each T updates of the prompts' embeddings; sampling starts at their own DDIM inversion."""
    prompts = pictures.prompts.clone().requires_grad_()
    adam = torch.optim.Adam([prompts], InversionSettings().learning_rate)
    schedule = pictures.schedule
    while True:
        for _ in range(schedule.num_steps):
            levels = torch.randint(1, schedule.num_steps + 1, (len(prompts),), device=prompts.device)
            noise, abar = torch.randn_like(pictures.latents), schedule.alpha(levels)
            noisy = abar.sqrt() * pictures.latents + (1 - abar).sqrt() * noise
            adam.zero_grad()
            predicted = pictures.network(noisy, schedule.network_timesteps[levels], prompts)
            pictures.distances(predicted, noise).backward()
            adam.step()
        found = prompts.detach()
        pivot = ddim_invert(pictures.network, schedule, pictures.latents, found)
        yield sample(pictures, pivot[-1], found, pictures.empty)


def sample(pictures: EncodedImages, noise_latents: Tensor, prompts: Tensor, null_embedding: Tensor) -> Tensor:
    """z_0 with one null embedding for all timesteps."""
    null_embeddings = [null_embedding] * pictures.schedule.num_steps
    return ddim_sample(
        pictures.network, pictures.schedule, noise_latents, prompts, null_embeddings, pictures.guidance_scale
    )


def curves(pictures: EncodedImages, wanted: Sequence[int]) -> Iterator[tuple[str, int, Tensor]]:
    """Name, N and z_0 of every variant."""
    shuffled = pictures.prompts.roll(1, 0)
    random_caption = replace(pictures, prompts=shuffled)
    pivots = [
        ("null-text", pictures, pictures.pivot()),
        ("random caption", random_caption, random_caption.pivot()),
        ("random pivot", pictures, pictures.random_pivot()),
    ]
    for updates in wanted:
        for name, of, pivot in pivots:
            yield name, updates, null_text(of, pivot, updates)
    running: list[tuple[str, Callable[[], Iterator[Tensor]]]] = [
        ("global null-text", lambda: global_null_text(pictures, pictures.pivot())),
        ("textual inversion", lambda: textual_inversion(pictures)),
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
    axes.legend()
    figure.savefig(path, dpi=120)


@torch.enable_grad()
def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description="Null-text optimization without one of its parts.")
    parser.add_argument("--shards", default="demo", help="input, as for nti-batch invert")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--guidance_scale", type=float, default=InversionSettings().guidance_scale)
    parser.add_argument("--updates", type=int, nargs="+", default=UPDATES, help="values of N")
    parser.add_argument("--tokens", type=int, help="of null embeddings that may move; left out, all")
    parser.add_argument("--plot", type=Path, help="a picture of the curves, such as curves.png")
    arguments = parser.parse_args()
    source = ModelSource("demo")
    networks = StableDiffusion.load(source)
    images = load_images(shard_addresses(arguments.shards), "txt", ModelDescription.of(source).size, arguments.images)
    pixels = torch.stack([image.pixels for image in images])
    prompts = networks.embed_prompts([image.prompt for image in images])
    pictures = EncodedImages(
        networks.predict,
        networks.schedule(50),
        arguments.guidance_scale,
        networks.encode_pictures(pixels),
        prompts,
        networks.embed_prompts([""]).expand_as(prompts),
        arguments.tokens,
    )

    def score(latents: Tensor) -> float:
        return psnr(networks.decode_latents(latents), pixels / 255).mean().item()

    torch.manual_seed(0)
    found: dict[str, dict[int, float]] = {}
    for name, updates, latents in curves(pictures, arguments.updates):
        iterations = updates * pictures.schedule.num_steps
        found.setdefault(name, {})[iterations] = score(latents)
        print(f"{name}, {iterations} iterations: {found[name][iterations]:.2f} dB", flush=True)
    print(f"\n| iterations | {' | '.join(found)} |\n|{'---|' * (1 + len(found))}")
    for iterations in next(iter(found.values())):
        print(f"| {iterations} | {' | '.join(f'{values[iterations]:.1f}' for values in found.values())} |")
    bound = score(pictures.latents)
    print(f"\nVAE round trip: {bound:.1f} dB")
    if arguments.plot:
        plot(found, bound, arguments.plot)


if __name__ == "__main__":
    main()
