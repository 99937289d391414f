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

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64
"""Height and width of a drawn image in pixels."""

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
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
SIZES = {"small": 9.3, "large": 13.0}
"""Typical radius of the circle around a shape, in pixels."""

RADII = (7.8, 15.2)
"""Smallest and largest radius in pixels; its logarithm is uniform."""

LARGE = 11.1
"""Radius in pixels that is as often called small as large."""

LARGE_BLUR = 0.02
"""Relative width of the range of radii that are called either."""

TONE, MAX_TONE = 0.08, 0.16
"""Standard deviation of a colour's channels in [0, 1] about the colour of its word, and the largest deviation."""

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
        told = {kind: getattr(thing, kind) for kind in ("place", "size", "colour") if (kind, i) not in omitted}
        place = [PREPOSITIONS[thing.place], "the", thing.place] if "place" in told else []
        adjectives = [Word(told[kind], i if kind == "colour" else None) for kind in ("size", "colour") if kind in told]
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


def unseen_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Make scenes for evaluation and for the sample shards; training uses other seeds."""
    rng = random.Random(f"unseen-{seed}")
    return [random_scene(rng) for _ in range(count)]


def shape_distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Compute the signed distance to the outline, negative inside, in units of the shape's radius.

    The distance is exact near the straight and round parts of the outline, as antialiasing needs.

    Args:
        shape: Name from `SHAPES`.
        x: Horizontal position from the centre, in radii.
        y: Vertical position from the centre, in radii, down.

    Raises:
        ValueError: If the shape is unknown.
    """
    r = torch.hypot(x, y)
    match shape:
        case "circle":
            return r - 0.92
        case "square":
            return torch.maximum(x.abs(), y.abs()) - 0.80
        case "diamond":
            return (x.abs() + y.abs() - 1.05) / math.sqrt(2)
        case "ring":
            return (r - 0.72).abs() - 0.26
        case "cross":
            wide = torch.maximum(x.abs() - 0.98, y.abs() - 0.30)
            tall = torch.maximum(x.abs() - 0.30, y.abs() - 0.98)
            return torch.minimum(wide, tall)
        case "triangle":
            return _half_planes(x, y, 3, 0.58).amax(0)
        case "star":
            # a point is inside a pentagram if it is inside at least four of its five half-planes
            return _half_planes(x, -y, 5, 0.37).topk(2, dim=0).values[1]
        case "heart":
            lobes = torch.hypot(x.abs() - 0.45, y + 0.30) - 0.52
            # the sides touch the lobes at (0.82, 0.07)
            sides = (x.abs() + y - 0.885) / math.sqrt(2)
            point = torch.stack([sides, x.abs() - 0.82, -0.30 - y]).amax(0)
            return torch.minimum(lobes, point)
    raise ValueError(f"shape is {shape!r}, allowed: {', '.join(SHAPES)}")


def _half_planes(x: Tensor, y: Tensor, corners: int, inradius: float) -> Tensor:
    """Compute the distances to the sides of a regular polygon with a corner at the top, [corners, ...]."""
    angles = [math.pi / 2 + math.pi / corners + 2 * math.pi * k / corners for k in range(corners)]
    return torch.stack([x * math.cos(a) - y * math.sin(a) - inradius for a in angles])


def draw_mask(shape: str, centre: tuple[float, float], radius: float) -> Tensor:
    """Compute the coverage of each pixel by a shape, [64, 64] in [0, 1].

    Args:
        shape: Name from `SHAPES`.
        centre: Centre (x, y) in pixels.
        radius: Radius in pixels.
    """
    axis = torch.arange(SIZE) + 0.5
    x = ((axis - centre[0]) / radius).expand(SIZE, SIZE)
    y = ((axis - centre[1]) / radius).unsqueeze(1).expand(SIZE, SIZE)
    return (0.5 - shape_distance(shape, x, y) * radius).clamp(0, 1)


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
