"""Bytes, replay and speed of each form of storage: `python -m nti_batch.benchmarks.storage --scenes SHARDS`.

First on inversions of the embedded model, replayed from what would be in a file. Then on arrays in the shapes of Stable
Diffusion 1.x, 2.x and XL, which repeat an inversion of the embedded model along the embedding's width: each repetition
in an order and with signs of its own, so that changes keep their sizes and timesteps and no block is another's copy.
"""

import argparse
import time
from dataclasses import replace
from statistics import fmean
from typing import get_args

import torch
from torch import Tensor

from nti_batch.benchmarks.job_loop import load_images
from nti_batch.benchmarks.solvers import AUTHORS, FAST
from nti_batch.datamodule import InversionDataModule
from nti_batch.diffusion.ddim import ddim_sample
from nti_batch.diffusion.metrics import psnr
from nti_batch.diffusion.null_text import NullTextSettings, NullTextState
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.rounding import Storage
from nti_batch.packing import pack_tensors, unpack_tensors
from nti_batch.records import CaptionedImage
from nti_batch.stable_diffusion import ModelDescription, ModelSource, StableDiffusion

SOLVERS = {
    'Adam from ""': AUTHORS,
    "Adam from the prompt, one threshold": FAST,
    "Polyak from the prompt, one threshold": replace(FAST, solver="polyak"),
}
SHAPES = {"SD 1.x": (768, 64), "SD 2.x": (1024, 64), "SD XL": (2048, 128)}
"""Width of the embedding, height and width of the latents."""

NUM_STEPS = 50


def invert(
    networks: StableDiffusion, images: list[CaptionedImage], settings: NullTextSettings, storage: Storage
) -> list[NullTextState]:
    """All at once."""
    empty, schedule = networks.embed_prompts([""])[0], networks.schedule(NUM_STEPS)
    pool = InversionPool[int](networks.predict_noise, schedule, settings, empty, 16, storage)
    for key, image in enumerate(images):
        latents = networks.encode_pictures(image.pixels[None])[0]
        pool.admit(key, latents, networks.embed_prompts([image.prompt])[0])
    done: dict[int, NullTextState] = {}
    while len(pool):
        done.update(pool.tick())
    return [done[key] for key in range(len(images))]


def packed(storage: Storage, state: NullTextState) -> bytes:
    """What would be in a file."""
    return pack_tensors(storage, state.trajectory[-1], state.start_embedding, torch.stack(state.null_embeddings))


def replay_loss(networks: StableDiffusion, image: CaptionedImage, state: NullTextState, payload: bytes) -> float:
    """PSNR lost from the job's own reconstruction to the replay of a file, in dB."""
    pixels = image.pixels[None] / 255
    noise_latents, null_embeddings = unpack_tensors(payload, NUM_STEPS)
    prompt, rows = networks.embed_prompts([image.prompt]), list(null_embeddings[:, None])
    guidance_scale, schedule = state.settings.guidance_scale, networks.schedule(NUM_STEPS)
    latents = ddim_sample(networks.predict_noise, schedule, noise_latents[None], prompt, rows, guidance_scale)
    reached = networks.decode_latents(torch.cat([state.current_latents[None], latents]))
    own, replayed = psnr(reached, pixels).tolist()
    return float(own - replayed)


def on_the_embedded_model(networks: StableDiffusion, images: list[CaptionedImage]) -> dict[str, NullTextState]:
    """Print a row for each solver and storage; return an inversion of the smallest storage for each solver."""
    print("| solver | storage | forwards + backwards | gap, mean | kB | share of float32 | replay loss, worst |")
    print("|---|---|---|---|---|---|---|")
    kept = {}
    for solver, settings in SOLVERS.items():
        whole = 0.0
        for storage in get_args(Storage):
            states = invert(networks, images, settings, storage)
            payloads = [packed(storage, state) for state in states]
            size = fmean(map(len, payloads))
            whole = whole or size
            losses = [replay_loss(networks, *each) for each in zip(images, states, payloads, strict=True)]
            work = fmean(s.forwards + s.backwards for s in states)
            gap = fmean(vae_gap(networks, *each) for each in zip(images, states, strict=True))
            worst = max(map(abs, losses))
            cells = f"{work:.0f} | {gap:.3f} | {size / 1000:.1f} | 1/{whole / size:.1f} | {worst:.0e} dB"
            print(f"| {solver} | {storage} | {cells} |", flush=True)
        kept[solver] = states[0]
    return kept


def vae_gap(networks: StableDiffusion, image: CaptionedImage, state: NullTextState) -> float:
    """PSNR lost from the VAE's round trip to the job's reconstruction, in dB."""
    reached = networks.decode_latents(torch.stack([state.trajectory[0], state.current_latents]))
    vae, own = psnr(reached, image.pixels[None] / 255).tolist()
    return float(vae - own)


def widened(embeddings: Tensor, width: int) -> Tensor:
    """[T, tokens, dim] to [T, tokens, width]: blocks of one inversion, each reordered and with other signs."""
    dim, generator = embeddings.shape[-1], torch.Generator().manual_seed(0)
    blocks = []
    for _ in range(width // dim):
        signs = torch.randint(0, 2, (dim,), generator=generator) * 2.0 - 1
        blocks.append(embeddings[..., torch.randperm(dim, generator=generator)] * signs)
    return torch.cat(blocks, dim=-1)


def at_full_size(kept: dict[str, NullTextState]) -> None:
    """Print bytes and speed of packing and unpacking, for inversions rounded to the smallest storage."""
    print("\n| shape | changes of | storage | MB | share of float32 | packing | unpacking |")
    print("|---|---|---|---|---|---|---|")
    for shape, (width, side) in SHAPES.items():
        noise_latents = torch.randn(4, side, side)
        for solver, state in kept.items():
            rows = torch.stack([state.start_embedding, *state.null_embeddings])
            start, *embeddings = widened(rows, width)
            whole = 0
            for storage in get_args(Storage):
                began = time.perf_counter()
                payload = pack_tensors(storage, noise_latents, start, torch.stack(embeddings))
                between = time.perf_counter()
                unpack_tensors(payload, NUM_STEPS)
                ended = time.perf_counter()
                whole = whole or len(payload)
                size = f"{len(payload) / 1e6:.2f} | 1/{whole / len(payload):.1f}"
                times = f"{between - began:.2f} s | {ended - between:.2f} s"
                print(f"| {shape} | {solver} | {storage} | {size} | {times} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Bytes, replay and speed of each form of storage.")
    parser.add_argument("--scenes", default="demo", help="shards of drawn scenes")
    parser.add_argument("--count", type=int, default=16, help="images")
    arguments = parser.parse_args()
    source = ModelSource("demo")
    networks = StableDiffusion.load(source)
    images = load_images(InversionDataModule(arguments.scenes), ModelDescription.of(source).size, arguments.count)
    at_full_size(on_the_embedded_model(networks, images))


if __name__ == "__main__":
    main()
