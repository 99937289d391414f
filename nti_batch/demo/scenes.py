"""Drawn scenes: one or two flat objects on a softly shaded background, with caption and masks.

A caption does not determine the image, as in life. It leaves open the exact position, size and tone of an object, and
the tone, the shading and the texture of the background, so that guidance can get them wrong.

A drawn scene has a truth that a camera image lacks: the mask of each object, and the result of a perfect edit
(`dataclasses.replace` on the scene, then `draw`).

Images are 64 x 64, RGB, float32 in [0, 1]; x runs right and y down, both in pixels.
"""

import math
import random
from collections.abc import Set
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.demo.shapes import SHAPES, SIZE, draw_mask

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.97, 0.50, 0.08),
    "yellow": (0.96, 0.90, 0.18),
    "green": (0.13, 0.62, 0.22),
    "cyan": (0.25, 0.83, 0.88),
    "blue": (0.12, 0.24, 0.80),
    "purple": (0.56, 0.16, 0.68),
    "white": (0.95, 0.95, 0.95),
}
SIZES = {"small": 9.0, "large": 13.5}
"""Typical radius of the circle around a shape, in pixels."""

RADII = (7.8, 15.2)
"""Smallest and largest radius in pixels; its logarithm is uniform."""

LARGE = 11.1
"""Radius in pixels that is as often called small as large."""

LARGE_BLUR = 0.02
"""Relative width of the range of radii that are called either."""

TONE, MAX_TONE = 0.08, 0.16
"""Standard deviation of a colour's channels in [0, 1] about the colour of its word, and the largest deviation."""

SIZE_MARGIN = 0.05
"""Smallest relative difference of a clear scene's radii from `LARGE`."""

COLOUR_MARGIN = 0.7
"""Largest distance of a clear scene's colour to its word, as a share of the distance to any other word."""

MIN_CONTRAST = 0.4
"""Smallest distance of two colours of a clear scene."""

SHADE = 0.25
"""Largest relative change of the background's brightness from the centre to a border."""

TEXTURE, TEXTURE_SIZE = 0.04, 5
"""Standard deviation of the brightness of the background's texture, and the height and width of its grid."""

PLACES = {
    "left": (17.0, 32.0),
    "right": (47.0, 32.0),
    "top": (32.0, 17.0),
    "bottom": (32.0, 47.0),
    "middle": (32.0, 32.0),
}
PREPOSITIONS = {"left": "on", "right": "on", "top": "at", "bottom": "at", "middle": "in"}
OFFSET = 2.0
"""Largest distance of an object from its place, in x and in y, in pixels."""

PAIRS = (("left", "right"), ("top", "bottom"))
"""Places of two objects, in the order of a caption, which is the order of reading."""


Tone = tuple[float, float, float]
"""Difference of a colour from the colour of its word, (red, green, blue)."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """Object of a scene. `offset`, in pixels, `stretch` and `tone` make two drawings of one caption differ."""

    size: str
    colour: str
    shape: str
    place: str
    offset: tuple[float, float] = (0.0, 0.0)
    stretch: float = 1.0
    tone: Tone = (0.0, 0.0, 0.0)

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the object, (x, y) in pixels."""
        x, y = PLACES[self.place]
        return x + self.offset[0], y + self.offset[1]

    @property
    def radius(self) -> float:
        """Radius of the circle around the shape, in pixels."""
        return SIZES[self.size] * self.stretch


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two objects on a background with a texture, whose brightness rises along `shade_angle`."""

    objects: tuple[SceneObject, ...]
    background: str
    shade_angle: float = 0.0
    """Direction in which the background gets brighter, in radians."""

    shade: float = 0.0
    """Relative change of the background's brightness from the centre to a border."""

    tone: Tone = (0.0, 0.0, 0.0)
    """Tone of the background."""

    texture: tuple[float, ...] = (0.0,) * TEXTURE_SIZE**2
    """Brightness added to the background at the points of a grid over the image, in the order of reading."""

    @property
    def caption(self) -> str:
        """Caption that names every object and the background."""
        return " ".join(word.text for word in caption_words(self))


@dataclass(frozen=True, slots=True)
class Word:
    """Word of a caption."""

    text: str
    region: int | None = None
    """Index of the object whose colour or shape the word names; the number of objects for the background."""


def caption_words(scene: Scene, omitted: Set[tuple[str, int]] = frozenset()) -> list[Word]:
    """List the words of a caption, such as 'on the left a large red circle on a green background'.

    The place comes first, since a token of CLIP's text encoder depends only on the tokens before it. So the tokens of
    colour and shape also encode the place.

    Args:
        scene: Scene to describe.
        omitted: Attributes to leave out, each with the index of its object; ("background", 0) is the background.
    """
    words: list[Word] = []
    for i, thing in enumerate(scene.objects):
        named = {kind: getattr(thing, kind) for kind in ("place", "size", "colour") if (kind, i) not in omitted}
        place = [PREPOSITIONS[thing.place], "the", thing.place] if "place" in named else []
        adjectives = [
            Word(named[kind], i if kind == "colour" else None) for kind in ("size", "colour") if kind in named
        ]
        noun = [*adjectives, Word(thing.shape, i)]
        words += [Word("and")] * (i > 0) + [*map(Word, place), Word(_article(noun[0].text)), *noun]
    if ("background", 0) not in omitted:
        region = len(scene.objects)
        words += map(Word, ("on", _article(scene.background)))
        words += [Word(scene.background, region), Word("background", region)]
    return words


def _article(word: str) -> str:
    """Choose the indefinite article of a word."""
    return "an" if word[0] in "aeiou" else "a"


def random_scene(rng: random.Random, num_objects: int | None = None) -> Scene:
    """Choose every attribute at random, uniformly; all colours of a scene differ.

    Args:
        rng: Source of randomness; equal states give equal scenes.
        num_objects: Number of objects, 1 or 2; None chooses at random.
    """
    places = rng.choice(PAIRS) if (num_objects or rng.choice((1, 2))) == 2 else (rng.choice(list(PLACES)),)
    background, *colours = rng.sample(list(COLOURS), 1 + len(places))
    objects = tuple(
        _random_object(rng, colour, place, _random_radius(rng)) for colour, place in zip(colours, places, strict=True)
    )
    return Scene(
        objects,
        background,
        shade_angle=rng.uniform(0, 2 * math.pi),
        shade=rng.uniform(0, SHADE),
        tone=_random_tone(rng),
        texture=tuple(round(rng.gauss(0, TEXTURE), 4) for _ in range(TEXTURE_SIZE**2)),
    )


def _random_radius(rng: random.Random) -> float:
    smallest, largest = map(math.log, RADII)
    return math.exp(rng.uniform(smallest, largest))


def _random_object(rng: random.Random, colour: str, place: str, radius: float) -> SceneObject:
    """Choose the other attributes; the word of the size is random where the radius is near `LARGE`."""
    size = "large" if math.log(radius / LARGE) > rng.gauss(0, LARGE_BLUR) else "small"
    return SceneObject(
        size=size,
        colour=colour,
        shape=rng.choice(SHAPES),
        place=place,
        offset=(rng.uniform(-OFFSET, OFFSET), rng.uniform(-OFFSET, OFFSET)),
        stretch=radius / SIZES[size],
        tone=_random_tone(rng),
    )


def _random_tone(rng: random.Random) -> Tone:
    red, green, blue = (round(max(-MAX_TONE, min(rng.gauss(0, TONE), MAX_TONE)), 4) for _ in range(3))
    return red, green, blue


def clear_scene(rng: random.Random, num_objects: int | None = None) -> Scene:
    """Choose a scene like `random_scene` whose words fit it unmistakably, so that an image of it can be judged."""
    while not is_clear(scene := random_scene(rng, num_objects)):
        pass
    return scene


def is_clear(scene: Scene) -> bool:
    """Return whether the sizes and colours of a scene are far from those of other words, and from each other."""
    tinted = [(scene.background, scene.tone), *((thing.colour, thing.tone) for thing in scene.objects)]
    colours = [_colour(*pair).flatten() for pair in tinted]
    distances = [(a - b).norm() for a, b in combinations(colours, 2)]
    sizes_fit = all((thing.radius > LARGE) == (thing.size == "large") for thing in scene.objects)
    sizes_differ = all(abs(math.log(thing.radius / LARGE)) > SIZE_MARGIN for thing in scene.objects)
    words_fit = all(_names(colour, word) for colour, (word, _) in zip(colours, tinted, strict=True))
    return sizes_fit and sizes_differ and words_fit and min(distances) > MIN_CONTRAST


def _names(colour: Tensor, word: str) -> bool:
    """Whether a word is by far the nearest name of a colour."""
    distances = colour_distances(colour)
    own = distances.pop(word)
    return own < COLOUR_MARGIN * min(distances.values())


def colour_distances(colour: Tensor) -> dict[str, float]:
    """Compute the distance of a colour [3] to each of `COLOURS`.

    Brightness has a weight of a quarter, since shading changes it most.
    """
    difference = torch.tensor(list(COLOURS.values())) - colour
    difference -= 0.75 * difference.mean(dim=1, keepdim=True)
    return dict(zip(COLOURS, difference.norm(dim=1).tolist(), strict=True))


def unseen_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Make clear scenes for evaluation and for the sample shards; training uses other seeds."""
    rng = random.Random(f"unseen-{seed}")
    return [clear_scene(rng) for _ in range(count)]


def object_masks(scene: Scene) -> Tensor:
    """Compute the coverage of each pixel by each object, [objects, 64, 64] in [0, 1]."""
    return torch.stack([draw_mask(o.shape, o.centre, o.radius) for o in scene.objects])


def draw(scene: Scene) -> Tensor:
    """Draw a scene, [3, 64, 64] in [0, 1]."""
    axis = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    slope = axis * math.cos(scene.shade_angle) + axis.unsqueeze(1) * math.sin(scene.shade_angle)
    texture = torch.tensor(scene.texture).view(1, 1, TEXTURE_SIZE, TEXTURE_SIZE)
    texture = F.interpolate(texture, SIZE, mode="bicubic", align_corners=True)[0]
    image = _colour(scene.background, scene.tone) * (1 + scene.shade * slope) + texture
    for mask, thing in zip(object_masks(scene), scene.objects, strict=True):
        image = torch.lerp(image, _colour(thing.colour, thing.tone), mask)
    return image.clamp(0, 1)


def _colour(word: str, tone: Tone) -> Tensor:
    """Colour of a word in a tone, [3, 1, 1]."""
    return (torch.tensor(COLOURS[word]) + torch.tensor(tone))[:, None, None]
