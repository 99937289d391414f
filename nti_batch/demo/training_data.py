"""Training data of the embedded model: drawn scenes, textures and attention targets."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.data.images import to_bytes
from nti_batch.demo.networks import LATENT_SIZE, MAX_TOKENS
from nti_batch.demo.scenes import SIZE, Scene, draw, object_masks


@dataclass(frozen=True, slots=True, eq=False)
class EncodedScenes:
    """Inputs of the UNet and the text encoder for drawn scenes."""

    latents: Tensor
    """Scaled latents, [scenes, 4, 16, 16]."""

    tokens: Tensor
    """Tokens of the captions, [scenes, 77]."""

    empty_tokens: Tensor
    """Tokens of the empty prompt, [1, 77]."""

    targets: Tensor
    """Output of `word_targets`, [scenes, 256, 77]."""


def draw_all(scenes: list[Scene]) -> Tensor:
    """Draw all scenes, [scenes, 3, 64, 64] uint8 to save memory."""
    return torch.stack([to_bytes(draw(scene)) for scene in scenes])


def textures(count: int, generator: torch.Generator) -> Tensor:
    """Make random colour images whose detail decreases with frequency, as in camera images.

    Returns:
        The images, [count, 3, 64, 64] in [-1, 1].
    """
    image = torch.zeros(count, 3, SIZE, SIZE)
    for size in (2, 4, 8, 16, 32):
        detail = torch.randn(count, 3, size, size, generator=generator) * 0.9 * size**-0.5
        image += F.interpolate(detail, SIZE, mode="bilinear")
    grey = image.mean(1, keepdim=True)
    return torch.lerp(grey, image, torch.rand(count, 1, 1, 1, generator=generator)).clamp(-1, 1)


def word_targets(scenes: list[Scene]) -> Tensor:
    """Compute which tokens each latent pixel should attend to: the words of the object drawn there.

    Every word of a scene is one token, so word i of a caption is token i + 1.

    Returns:
        Weights of the tokens, [scenes, 256, 77]; each row sums to 1.
    """
    targets = torch.zeros(len(scenes), LATENT_SIZE**2, MAX_TOKENS)
    for target, scene in zip(targets, scenes, strict=True):
        words = scene.caption.split()
        masks = F.avg_pool2d(object_masks(scene), SIZE // LATENT_SIZE).flatten(1)
        for mask, thing in zip(masks, scene.objects, strict=True):
            colour = words.index(thing.colour) + 1
            target[:, [colour, colour + 1]] = mask[:, None] / 2
        background = (1 - masks.sum(0)).clamp(min=0)[:, None]
        target[:, [len(words) - 1, len(words)]] = background / 2
    return targets
