"""Measures the embedded model on scenes that its training does not use: `python -m nti_batch.demo.evaluate`.

It prints the figures of the model card as one JSON object.
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
from nti_batch.demo.networks import LATENT_SIZE
from nti_batch.demo.scenes import Scene, SceneObject, draw, object_masks, unseen_scenes
from nti_batch.demo.shapes import SIZE
from nti_batch.demo.training_data import region_masks
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
    images: Tensor
    """Drawn scenes, [scenes, 3, 64, 64]."""

    round_trip: Tensor
    """Images after the VAE round trip, [scenes, 3, 64, 64]."""

    prompts: Tensor
    """Embeddings of the captions, [scenes, tokens, dim]."""

    noise_latents: Tensor
    """z_T, [scenes, 4, 16, 16]."""

    attention: Tensor
    """Mean cross-attention over heads, finest layers and timesteps, [scenes, pixels, tokens].

    Images and attention are on the CPU, the other tensors on the device of the networks."""


@torch.no_grad()
def invert_scenes(networks: StableDiffusion, scenes: list[Scene]) -> Inverted:
    """Draw the scenes, invert them by DDIM, and record the cross-attention."""
    images = torch.stack([draw(scene) for scene in scenes])
    prompts = networks.embed_prompts([scene.caption for scene in scenes])
    latents = networks.encode_images(to_bytes(images))
    maps = torch.zeros(())

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        nonlocal maps
        noise = networks.predict(latents, timesteps, embeddings)
        maps = maps + torch.stack([recorder.attention_map for recorder in recorders]).mean(0) / NUM_STEPS
        return noise

    with record_finest_cross_attention(networks.unet) as recorders:
        trajectory = ddim_invert(predict, networks.schedule(NUM_STEPS), latents, prompts)
    round_trip = networks.decode_latents(latents).cpu()
    return Inverted(scenes, images, round_trip, prompts, trajectory[-1], maps.cpu())


def replay_psnr(networks: StableDiffusion, inverted: Inverted, guidance_scale: float) -> Tensor:
    """Compute the PSNR of plain DDIM sampling from z_T against the VAE round trip, in dB, [scenes]."""
    empty = networks.embed_prompts([""]).expand_as(inverted.prompts)
    schedule = networks.schedule(NUM_STEPS)
    latents = ddim_sample(
        networks.predict, schedule, inverted.noise_latents, inverted.prompts, [empty] * NUM_STEPS, guidance_scale
    )
    return psnr(networks.decode_latents(latents).cpu(), inverted.round_trip)


def localisation(inverted: Inverted) -> tuple[float, float]:
    """Measure how well the attention of an object's word covers the object.

    The function divides each map by its maximum, and scales it to the size of the image. It binarises all maps at one
    threshold, which gives the best mean.

    Returns:
        Mean intersection over union, and the threshold.
    """
    maps, masks = [], []
    for scene, attention in zip(inverted.scenes, inverted.attention, strict=True):
        side = int(len(attention) ** 0.5)
        for thing, mask in zip(scene.objects, object_masks(scene), strict=True):
            _, shape = _object_tokens(scene, thing)
            word_map = attention[:, shape].view(1, 1, side, side)
            maps.append(F.interpolate(word_map / word_map.max(), SIZE, mode="bilinear")[0, 0])
            masks.append(mask > 0.5)
    stacked, drawn = torch.stack(maps), torch.stack(masks)

    def mean_overlap(threshold: float) -> float:
        inside = stacked > threshold
        return ((inside & drawn).sum((1, 2)) / (inside | drawn).sum((1, 2))).mean().item()

    return max((mean_overlap(i / 50), i / 50) for i in range(1, 50))


def _object_tokens(scene: Scene, thing: SceneObject) -> tuple[int, int]:
    """Find the tokens of an object's colour and shape in the caption of its scene."""
    # every word of a scene is one token, a start token comes first, and the shape follows the colour
    colour = scene.caption.split().index(thing.colour) + 1
    return colour, colour + 1


@torch.no_grad()
def attention_in_noise(networks: StableDiffusion, scenes: list[Scene]) -> tuple[float, float]:
    """Measure where the words of an object attend at the last timestep of the training, in pure noise.

    There a model must know from the caption alone which words belong to which place.

    Args:
        networks: Networks of the embedded model.
        scenes: Scenes of two objects.

    Returns:
        Attention of a pixel to the colour and the shape of an object, summed: the mean over the object's pixels, and
        over the pixels of the other object. Both are of the decoder's finest layers.
    """
    prompts = networks.embed_prompts([scene.caption for scene in scenes])
    noise = torch.randn(len(scenes), 4, LATENT_SIZE, LATENT_SIZE, generator=torch.Generator().manual_seed(0))
    last = torch.full((len(scenes),), len(networks.alphas_cumprod) - 1, device=networks.device)
    with record_finest_cross_attention(networks.unet) as recorders:
        networks.predict(noise.to(networks.device), last, prompts)
    # the first layer is the encoder's
    maps = torch.stack([recorder.attention_map for recorder in recorders[1:]]).mean(0).cpu()
    own, others = [], []
    for scene, attention, masks in zip(scenes, maps, region_masks(scenes), strict=True):
        weights = masks[:2] / masks[:2].sum(1, keepdim=True)
        for i, thing in enumerate(scene.objects):
            of_objects = weights @ attention[:, _object_tokens(scene, thing)].sum(1)
            own.append(of_objects[i])
            others.append(of_objects[1 - i])
    return torch.stack(own).mean().item(), torch.stack(others).mean().item()


def generate(networks: StableDiffusion, scenes: list[Scene]) -> Tensor:
    """Generate images from noise and the captions of scenes, [scenes, 3, 64, 64]."""
    images = []
    generator = torch.Generator().manual_seed(0)
    schedule = networks.schedule(NUM_STEPS)
    for start in range(0, len(scenes), BATCH):
        captions = [scene.caption for scene in scenes[start : start + BATCH]]
        prompts = networks.embed_prompts(captions)
        empty = networks.embed_prompts([""]).expand_as(prompts)
        noise = torch.randn(len(captions), 4, LATENT_SIZE, LATENT_SIZE, generator=generator).to(networks.device)
        latents = ddim_sample(networks.predict, schedule, noise, prompts, [empty] * NUM_STEPS, GUIDANCE_SCALE)
        images.append(networks.decode_latents(latents).cpu())
    return torch.cat(images)


def shares_right(images: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Compute the share of objects with the right colour, shape, place and size, and of right backgrounds."""
    verdicts = [judge(image, scene) for image, scene in zip(images, scenes, strict=True)]
    objects = [o for verdict in verdicts for o in verdict.objects]
    shares = {
        name: sum(getattr(o, name) for o in objects) / len(objects) for name in ("colour", "shape", "place", "size")
    }
    return {**shares, "background": sum(v.background for v in verdicts) / len(verdicts)}


def evaluate(networks: StableDiffusion, num_scenes: int, num_prompts: int) -> dict[str, float]:
    """Measure all figures of the model card.

    Args:
        networks: Networks of the embedded model.
        num_scenes: Number of unseen scenes for the figures of reconstruction.
        num_prompts: Number of other unseen captions to generate images from.
    """
    inverted = invert_scenes(networks, unseen_scenes(num_scenes))
    overlap, threshold = localisation(inverted)
    own, other = attention_in_noise(networks, [scene for scene in inverted.scenes if len(scene.objects) == 2])
    figures = {
        "vae_psnr": psnr(inverted.round_trip, inverted.images).mean().item(),
        "ddim_psnr_guidance_1": replay_psnr(networks, inverted, 1.0).mean().item(),
        "ddim_psnr_guidance_7.5": replay_psnr(networks, inverted, GUIDANCE_SCALE).mean().item(),
        "attention_overlap": overlap,
        "attention_threshold": threshold,
        "attention_in_noise_own_place": own,
        "attention_in_noise_other_place": other,
    }
    scenes = unseen_scenes(num_prompts, seed=1)
    images = generate(networks, scenes)
    for count, name in ((1, "one_object"), (2, "two_objects")):
        chosen = [i for i, scene in enumerate(scenes) if len(scene.objects) == count]
        shares = shares_right(images[chosen], [scenes[i] for i in chosen])
        figures.update({f"drawn_{name}_{key}": value for key, value in shares.items()})
    figures.update({f"drawn_{key}": value for key, value in shares_right(images, scenes).items()})
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m nti_batch.demo.evaluate", description=__doc__)
    parser.add_argument("--model", default="demo", help="model folder; default: the embedded model")
    parser.add_argument("--scenes", type=int, default=64, help="number of unseen scenes to reconstruct; default: 64")
    parser.add_argument("--prompts", type=int, default=200, help="number of captions to generate from; default: 200")
    arguments = parser.parse_args()
    model = StableDiffusion.load(ModelSource(arguments.model))
    print(json.dumps(evaluate(model, arguments.scenes, arguments.prompts), indent=2))
