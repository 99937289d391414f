"""Bytes, replay and speed of each form of storage: `python -m nti_batch.benchmarks.storage --scenes SHARDS`.

The first table is of inversions by the embedded model, replayed from packed tensors. The second is of arrays in the
shapes of each family of Stable Diffusion. They repeat an inversion of the embedded model along the embedding's width:
each repetition has its own order and signs, so that changes keep their sizes and timesteps and no block is a copy.
"""

import argparse
import time
from statistics import fmean
from typing import get_args

import torch
from torch import Tensor

from nti_batch.benchmarks.job_loop import job_loop, load_images
from nti_batch.benchmarks.loop_result import Inverted, score
from nti_batch.benchmarks.solvers import SOLVERS
from nti_batch.diffusion.ddim import ddim_sample
from nti_batch.diffusion.rounding import Storage
from nti_batch.jobs.flags import shard_addresses
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.models.supported import ModelDescription
from nti_batch.output.serialization import pack_tensors, unpack_tensors
from nti_batch.records import CaptionedImage
from nti_batch.scores.metrics import psnr

COMPARED = ('Adam from ""', "Adam from the prompt, one threshold", "Polyak from the prompt, one threshold")
SHAPES = {"1.x": (768, 64), "2.1 base": (1024, 64), "2.1": (1024, 96), "XL": (2048, 128)}
"""Width of the embedding, height and width of the latents."""

NUM_STEPS = 50


def packed(storage: Storage, found: Inverted) -> bytes:
    """Pack the tensors as in a file."""
    return pack_tensors(storage, found.noise_latents, found.start_embedding, found.null_embeddings, None)


def replay_psnr(
    networks: StableDiffusion, image: CaptionedImage, payload: bytes, num_steps: int, guidance_scale: float
) -> float:
    """PSNR of a replay from packed tensors, in dB."""
    noise_latents, null_embeddings, _ = unpack_tensors(payload, num_steps)
    prompt, rows = networks.embed_prompts([image.prompt]), list(null_embeddings[:, None])
    schedule = networks.schedule(num_steps)
    latents = ddim_sample(networks.predict, schedule, noise_latents[None], prompt, rows, guidance_scale)
    return float(psnr(networks.decode_latents(latents), image.pixels[None] / 255).item())


def on_the_embedded_model(networks: StableDiffusion, images: list[CaptionedImage]) -> dict[str, Inverted]:
    """Print a row for each solver and storage; return an inversion of the smallest storage for each solver."""
    print("| solver | storage | evaluations | ΔPSNR, mean | kB | share of float32 | replay loss, worst |")
    print("|---|---|---|---|---|---|---|")
    kept, schedule = {}, networks.schedule(NUM_STEPS)
    for solver in COMPARED:
        settings, whole = SOLVERS[solver], 0.0
        for storage in get_args(Storage):
            found = job_loop(networks, networks.predict, images, schedule, settings, 16, storage)
            scores = [score(networks, *each) for each in zip(images, found, strict=True)]
            replays = [
                replay_psnr(networks, image, packed(storage, each), NUM_STEPS, settings.guidance_scale)
                for image, each in zip(images, found, strict=True)
            ]
            size = fmean(s.stored_bytes for s in scores)
            whole = whole or size
            evaluations = fmean(s.forwards + s.backwards for s in scores)
            below_bound = fmean(s.psnr_below_bound for s in scores)
            worst = max(abs(s.psnr - replayed) for s, replayed in zip(scores, replays, strict=True))
            cells = f"{evaluations:.0f} | {below_bound:.3f} | {size / 1000:.1f} | 1/{whole / size:.1f} | {worst:.0e} dB"
            print(f"| {solver} | {storage} | {cells} |", flush=True)
        kept[solver] = found[0]
    return kept


def widened(embeddings: Tensor, width: int) -> Tensor:
    """Widen [T, tokens, dim] to [T, tokens, width] by blocks of one inversion, each reordered and with other signs."""
    dim, generator = embeddings.shape[-1], torch.Generator().manual_seed(0)
    blocks = []
    for _ in range(width // dim):
        signs = torch.randint(0, 2, (dim,), generator=generator) * 2.0 - 1
        blocks.append(embeddings[..., torch.randperm(dim, generator=generator)] * signs)
    return torch.cat(blocks, dim=-1)


def at_full_size(kept: dict[str, Inverted]) -> None:
    """Print bytes and speed of packing and unpacking, for inversions rounded to the smallest form."""
    print("\n| shape | changes of | storage | MB | share of float32 | packing | unpacking |")
    print("|---|---|---|---|---|---|---|")
    for shape, (width, side) in SHAPES.items():
        noise_latents = torch.randn(4, side, side)
        for solver, found in kept.items():
            rows = torch.stack([found.start_embedding, *found.null_embeddings])
            start, *embeddings = widened(rows, width)
            whole = 0
            for storage in get_args(Storage):
                began = time.perf_counter()
                payload = pack_tensors(storage, noise_latents, start, torch.stack(embeddings), None)
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
    images = load_images(
        shard_addresses(arguments.scenes), "txt", ModelDescription.of(source).image_size(None, None), arguments.count
    )
    at_full_size(on_the_embedded_model(networks, images))


if __name__ == "__main__":
    main()
