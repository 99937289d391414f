"""Captions as people write them: some say less than their image shows, and some say what is wrong.

Both decide what guidance does. A model whose captions are always true takes a word for certain: the predictions for
"red" and "green" differ at every timestep, whatever the latents show, and guidance of 7.5 multiplies that difference
until a colour is neon. Where captions are sometimes wrong, the latents overrule the word once they show an attribute
clearly, as in Stable Diffusion, which learned from the captions of the web.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nti_batch.demo.scenes import COLOURS, SIZES, Scene, SceneObject, Word, caption_words
from nti_batch.demo.shapes import SHAPES


@dataclass(frozen=True, slots=True)
class CaptionRates:
    """Shares of the captions that leave out an attribute, or name a wrong one."""

    omitted: dict[str, float] = field(
        default_factory=lambda: {"size": 0.2, "place": 0.1, "colour": 0.07, "background": 0.12}
    )
    """By attribute. The place is left out only where the object is alone, since it tells two objects apart."""

    mistaken: dict[str, float] = field(default_factory=lambda: {"size": 0.05, "colour": 0.1, "shape": 0.1})
    """By attribute.

    Places and backgrounds are always right. The noise latents of an inversion show them, and a model that does not
    trust the caption would keep them in an edit."""


def random_words(scene: Scene, rates: CaptionRates, rng: random.Random) -> list[Word]:
    """Choose the words of a caption of a scene.

    Args:
        scene: Scene to describe.
        rates: Shares of captions with each fault.
        rng: Source of randomness; equal states give equal captions.
    """
    alone = len(scene.objects) == 1
    captioned = replace(scene, objects=tuple(_mistake_object(thing, rates.mistaken, rng) for thing in scene.objects))
    kinds = [(kind, i) for i in range(len(scene.objects)) for kind in ("place", "size", "colour")]
    possible = [*(pair for pair in kinds if alone or pair[0] != "place"), ("background", 0)]
    omitted = frozenset(pair for pair in possible if rng.random() < rates.omitted[pair[0]])
    return caption_words(captioned, omitted)


def _mistake_object(thing: SceneObject, rates: Mapping[str, float], rng: random.Random) -> SceneObject:
    return replace(
        thing,
        size=_mistake(thing.size, SIZES, rates["size"], rng),
        colour=_mistake(thing.colour, COLOURS, rates["colour"], rng),
        shape=_mistake(thing.shape, SHAPES, rates["shape"], rng),
    )


def _mistake(word: str, words: Iterable[str], rate: float, rng: random.Random) -> str:
    """Replace a word by another one, in a share of the cases."""
    return rng.choice([other for other in words if other != word]) if rng.random() < rate else word
