"""Measure the embedded model on scenes that its training never saw: `python -m nti_batch.demo.evaluate`.

Prints the figures of the model card as one JSON object.
"""

import argparse
import json
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.data.images import to_bytes
from nti_batch.demo.attention import record_finest_cross_attention
from nti_batch.demo.judge import judge
from nti_batch.demo.scenes import SIZE, Scene, draw, object_masks, unseen_scenes
from nti_batch.diffusion.ddim import ddim_invert, ddim_sample
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.scores.metrics import psnr

GUIDANCE_SCALE = 7.5
NUM_STEPS = 50
BATCH = 32


@dataclass(frozen=True, slots=True)
class Inverted:
    """Scenes after DDIM inversion with guidance scale 1."""

    scenes: list[Scene]
    pictures: Tensor
    """As drawn, [scenes, 3, 64, 64]."""

    round_trip: Tensor
    """After the VAE alone, in the same shape."""

    prompts: Tensor
    """[scenes, tokens, dim]."""

    noise_latents: Tensor
    """z_T, [scenes, 4, 16, 16]."""

    attention: Tensor
    """Mean cross-attention over heads, finest layers and timesteps, [scenes, pixels, tokens]."""


@torch.no_grad()
def invert_scenes(networks: StableDiffusion, scenes: list[Scene]) -> Inverted:
    """Draw the scenes, encode them, append_pivot the pivot and watch where each word is looked for."""
    pictures = torch.stack([draw(scene) for scene in scenes])
    prompts = networks.embed_prompts([scene.caption for scene in scenes])
    latents = networks.encode_pictures(to_bytes(pictures))
    maps = torch.zeros(())

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        nonlocal maps
        noise = networks.predict(latents, timesteps, embeddings)
        maps = maps + torch.stack([recorder.attention_map for recorder in recorders]).mean(0) / NUM_STEPS
        return noise

    with record_finest_cross_attention(networks.unet) as recorders:
        trajectory = ddim_invert(predict, networks.schedule(NUM_STEPS), latents, prompts)
    return Inverted(scenes, pictures, networks.decode_latents(latents), prompts, trajectory[-1], maps)


def replay_psnr(networks: StableDiffusion, inverted: Inverted, guidance_scale: float) -> Tensor:
    """PSNR of plain DDIM sampling from z_T against the VAE's picture, [scenes]."""
    empty = networks.embed_prompts([""]).expand_as(inverted.prompts)
    schedule = networks.schedule(NUM_STEPS)
    latents = ddim_sample(
        networks.predict, schedule, inverted.noise_latents, inverted.prompts, [empty] * NUM_STEPS, guidance_scale
    )
    return psnr(networks.decode_latents(latents), inverted.round_trip)


def localisation(inverted: Inverted) -> tuple[float, float]:
    """How well the object word's attention covers the object: (mean intersection over union, threshold).

    Each map is divided by its maximum, enlarged to the picture's size and cut at the one threshold that is
    best for all scenes together.
    """
    maps, masks = [], []
    for scene, attention in zip(inverted.scenes, inverted.attention, strict=True):
        words = scene.caption.split()
        side = int(len(attention) ** 0.5)
        for thing, mask in zip(scene.objects, object_masks(scene), strict=True):
            # every scene word is one token, after the start token; the shape follows the colour
            word_map = attention[:, words.index(thing.colour) + 2].view(1, 1, side, side)
            maps.append(F.interpolate(word_map / word_map.max(), SIZE, mode="bilinear")[0, 0])
            masks.append(mask > 0.5)
    stacked, drawn = torch.stack(maps), torch.stack(masks)

    def mean_overlap(threshold: float) -> float:
        cut = stacked > threshold
        return ((cut & drawn).sum((1, 2)) / (cut | drawn).sum((1, 2))).mean().item()

    return max((mean_overlap(i / 50), i / 50) for i in range(1, 50))


def draw_from_noise(networks: StableDiffusion, scenes: list[Scene]) -> Tensor:
    """Pictures drawn from pure noise and the scenes' captions, [scenes, 3, 64, 64]."""
    pictures = []
    generator = torch.Generator().manual_seed(0)
    schedule = networks.schedule(NUM_STEPS)
    for start in range(0, len(scenes), BATCH):
        captions = [scene.caption for scene in scenes[start : start + BATCH]]
        prompts = networks.embed_prompts(captions)
        empty = networks.embed_prompts([""]).expand_as(prompts)
        noise = torch.randn(len(captions), 4, SIZE // 4, SIZE // 4, generator=generator)
        latents = ddim_sample(networks.predict, schedule, noise, prompts, [empty] * NUM_STEPS, GUIDANCE_SCALE)
        pictures.append(networks.decode_latents(latents))
    return torch.cat(pictures)


def shares_right(pictures: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Share of objects whose colour, shape, place and size are as asked, and of backgrounds."""
    verdicts = [judge(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    objects = [o for verdict in verdicts for o in verdict.objects]
    shares = {
        name: sum(getattr(o, name) for o in objects) / len(objects) for name in ("colour", "shape", "place", "size")
    }
    return {**shares, "background": sum(v.background for v in verdicts) / len(verdicts)}


def evaluate(networks: StableDiffusion, num_scenes: int, num_prompts: int) -> dict[str, float]:
    """All figures of the model card.

    Args:
        networks: The embedded model.
        num_scenes: Unseen scenes for the reconstruction figures.
        num_prompts: Captions drawn from noise, other ones.
    """
    inverted = invert_scenes(networks, unseen_scenes(num_scenes))
    overlap, threshold = localisation(inverted)
    figures = {
        "vae_psnr": psnr(inverted.round_trip, inverted.pictures).mean().item(),
        "ddim_psnr_guidance_1": replay_psnr(networks, inverted, 1.0).mean().item(),
        "ddim_psnr_guidance_7.5": replay_psnr(networks, inverted, GUIDANCE_SCALE).mean().item(),
        "attention_overlap": overlap,
        "attention_threshold": threshold,
    }
    scenes = unseen_scenes(num_prompts, seed=1)
    pictures = draw_from_noise(networks, scenes)
    for count, name in ((1, "one_object"), (2, "two_objects")):
        chosen = [i for i, scene in enumerate(scenes) if len(scene.objects) == count]
        shares = shares_right(pictures[chosen], [scenes[i] for i in chosen])
        figures.update({f"drawn_{name}_{key}": value for key, value in shares.items()})
    figures.update({f"drawn_{key}": value for key, value in shares_right(pictures, scenes).items()})
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m nti_batch.demo.evaluate", description=__doc__)
    parser.add_argument("--model", default="demo", help="model folder (default: the embedded model)")
    parser.add_argument("--scenes", type=int, default=64, help="unseen scenes to rebuild (default: 64)")
    parser.add_argument("--prompts", type=int, default=200, help="captions to draw from noise (default: 200)")
    chosen = parser.parse_args()
    print(
        json.dumps(evaluate(StableDiffusion.load(ModelSource(chosen.model)), chosen.scenes, chosen.prompts), indent=2)
    )
