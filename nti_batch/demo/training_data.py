"""Training data of the embedded model: drawn scenes with several captions, and textures."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from nti_batch.data.images import to_bytes
from nti_batch.demo.captions import CaptionRates, random_words
from nti_batch.demo.networks import LATENT_SIZE
from nti_batch.demo.scenes import Scene, Word, draw, object_masks
from nti_batch.demo.shapes import SIZE

REGIONS = 3
"""Two objects and the background."""


@dataclass(frozen=True, slots=True, eq=False)
class Captions:
    """Several captions of each scene, as tokens."""

    tokens: Tensor
    """[scenes, captions, 77] int16."""

    regions: Tensor
    """Region of the image that each token names, [scenes, captions, 77] int8; -1 for none."""


def make_captions(
    scenes: Sequence[Scene], count: int, rates: CaptionRates, tokenizer: CLIPTokenizer, rng: random.Random
) -> Captions:
    """Write several captions of each scene.

    Every word of a scene is one token, so word i of a caption is token i + 1.

    Args:
        scenes: Scenes to describe.
        count: Number of captions of each scene.
        rates: Shares of captions with each fault.
        tokenizer: Tokenizer of the model.
        rng: Source of randomness.
    """
    captions = [random_words(scene, rates, rng) for scene in scenes for _ in range(count)]
    texts = [" ".join(word.text for word in words) for words in captions]
    tokens = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    regions = torch.full_like(tokens, -1)
    for row, words, scene in zip(regions, captions, (s for s in scenes for _ in range(count)), strict=True):
        row[1 : 1 + len(words)] = torch.tensor([_region(word, scene) for word in words])
    shape = len(scenes), count, -1
    return Captions(tokens.view(shape).short(), regions.view(shape).char())


def _region(word: Word, scene: Scene) -> int:
    """Index of a word's region; the background is the last one however many objects there are."""
    if word.region is None:
        return -1
    return REGIONS - 1 if word.region == len(scene.objects) else word.region


def garbled_captions(captions: Captions, count: int, empty_tokens: Tensor, generator: torch.Generator) -> Captions:
    """Choose captions of scenes, and replace half of their tokens by any tokens; they name no region.

    Args:
        captions: Captions of scenes.
        count: Number of images that get captions, as many as a scene has.
        empty_tokens: Tokens of the empty prompt, [1, 77].
        generator: Source of randomness.
    """
    tokens = captions.tokens[torch.randint(len(captions.tokens), (count,), generator=generator)]
    special = int(empty_tokens.min())  # the special tokens are the last ones of the vocabulary
    replaced = (torch.rand(tokens.shape, generator=generator) < 0.5) & (tokens < special)
    others = torch.randint(special, tokens.shape, generator=generator, dtype=tokens.dtype)
    return Captions(torch.where(replaced, others, tokens), torch.full_like(tokens, -1, dtype=torch.int8))


def region_masks(scenes: Sequence[Scene]) -> Tensor:
    """Compute the coverage of each latent pixel by the objects and the background, [scenes, 3, 256] in [0, 1]."""
    masks = torch.zeros(len(scenes), REGIONS, LATENT_SIZE**2)
    for mask, scene in zip(masks, scenes, strict=True):
        objects = F.avg_pool2d(object_masks(scene), SIZE // LATENT_SIZE).flatten(1)
        mask[: len(objects)] = objects
        mask[-1] = (1 - objects.sum(0)).clamp(min=0)
    return masks


def word_targets(masks: Tensor, regions: Tensor) -> Tensor:
    """Compute which tokens each latent pixel should attend to: the words that name its region, in equal parts.

    The start token stands for a region that the caption does not name.

    Args:
        masks: Output of `region_masks`, [batch, 3, 256].
        regions: Region of each token, [batch, 77].

    Returns:
        Weights of the tokens, [batch, 256, 77].
    """
    named = torch.stack([(regions == region).float() for region in range(REGIONS)], dim=1)
    named[..., 0] = (named.sum(-1) == 0).float()
    return torch.einsum("brp,brt->bpt", masks, named / named.sum(-1, keepdim=True))


def draw_all(scenes: Sequence[Scene]) -> Tensor:
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
