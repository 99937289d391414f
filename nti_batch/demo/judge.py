"""Judges by a fixed rule which attributes of a scene an image shows.

The rule fits the background, takes regions that differ from it as objects, and compares their outlines with drawn
shapes. It uses only the number of objects and their places from the scene.
"""

import math
from dataclasses import dataclass, fields
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.demo.scenes import LARGE, PLACES, Scene, colour_distances
from nti_batch.demo.shapes import SHAPES, SIZE, shape_distance

FRAME = 3
"""Width in pixels of the frame that the background is fitted to."""

CONTRAST = 0.25
"""RGB distance to the background above which a pixel belongs to an object."""

MIN_AREA = 40.0
"""Smallest area of an object in pixels; the smallest drawn object has twice as many."""

REACH = 8.0
"""Largest distance in pixels from a place's centre to an object at this place."""

MIN_LIKENESS = 0.6
"""Smallest intersection over union of an outline with the best shape; below it, the outline has no shape."""

Y, X = torch.meshgrid(*[torch.arange(SIZE) + 0.5] * 2, indexing="ij")


@dataclass(frozen=True, slots=True)
class Finding:
    """Object seen in an image, in the words of `SceneObject`; None where no word fits."""

    size: str
    colour: str
    shape: str | None
    place: str | None


@dataclass(frozen=True, slots=True)
class ObjectVerdict:
    """Whether each attribute of an object is right."""

    colour: bool
    shape: bool
    place: bool
    size: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether each attribute of a scene is right; `objects` is in the order of the scene."""

    background: bool
    objects: tuple[ObjectVerdict, ...]


def judge(image: Tensor, scene: Scene) -> Verdict:
    """Compare an image with the scene that it should show.

    Args:
        image: Image, [3, 64, 64] in [0, 1].
        scene: Scene that the image should show.
    """
    centre = fit_background(image)[:, SIZE // 2, SIZE // 2]
    places = tuple(o.place for o in scene.objects)
    verdicts = []
    for thing in scene.objects:
        finding = recognise(image, thing.place, places)
        right = {f.name: getattr(finding, f.name, None) == getattr(thing, f.name) for f in fields(ObjectVerdict)}
        verdicts.append(ObjectVerdict(**right))
    return Verdict(name_colour(centre) == scene.background, tuple(verdicts))


def recognise(image: Tensor, place: str, places: tuple[str, ...]) -> Finding | None:
    """Describe the largest object in one part of an image.

    Args:
        image: Image, [3, 64, 64] in [0, 1].
        place: Place of the part, which has the pixels nearer to it than to the other places.
        places: Places of all objects.

    Returns:
        The object, or None if the part has no object.
    """
    background = fit_background(image)
    contrast = (image - background).norm(dim=0)
    nearest = torch.stack([torch.hypot(X - px, Y - py) for px, py in map(PLACES.__getitem__, places)]).argmin(0)
    blob = _largest_blob((contrast > CONTRAST) & (nearest == places.index(place)))
    if blob.sum() < MIN_AREA:
        return None
    # an antialiased or blurred edge has less contrast than the inside
    colour = image[:, blob & (contrast >= contrast[blob].median())].median(dim=1).values
    direction = colour[:, None, None] - background
    coverage = ((image - background) * direction).sum(0) / direction.square().sum(0).clamp(min=1e-6)
    coverage = coverage.clamp(0, 1) * F.max_pool2d(blob[None].float(), 3, 1, 1)[0]
    x, y = _centroid(coverage)
    distances = {math.hypot(x - px, y - py): name for name, (px, py) in PLACES.items()}
    shape, radius, likeness = fit_shape(coverage)
    return Finding(
        size="large" if radius > LARGE else "small",
        colour=name_colour(colour),
        shape=shape if likeness >= MIN_LIKENESS else None,
        place=distances[min(distances)] if min(distances) <= REACH else None,
    )


def fit_background(image: Tensor) -> Tensor:
    """Fit colours linear in x and y to the frame of an image, and extend them to the whole image, [3, 64, 64]."""
    terms = torch.stack([torch.ones_like(X), X / SIZE - 0.5, Y / SIZE - 0.5], dim=-1)
    frame = torch.maximum((X - SIZE / 2).abs(), (Y - SIZE / 2).abs()) > SIZE / 2 - FRAME
    design, pixels = terms[frame], image[:, frame].T
    keep = torch.ones(len(pixels), dtype=torch.bool)
    for _ in range(4):
        weights = torch.linalg.lstsq(design[keep], pixels[keep]).solution
        error = (design @ weights - pixels).norm(dim=1)
        # a large object can reach into the frame
        keep = error <= error.quantile(0.8)
    return torch.einsum("yxk,kc->cyx", terms, weights)


def name_colour(colour: Tensor) -> str:
    """Name the nearest colour of `COLOURS`."""
    distances = colour_distances(colour)
    return min(distances, key=distances.__getitem__)


def fit_shape(coverage: Tensor) -> tuple[str, float, float]:
    """Find the shape that is most similar to an outline.

    Args:
        coverage: Coverage of each pixel, [64, 64] in [0, 1].

    Returns:
        Name of the shape, its radius in pixels, and the intersection over union.
    """
    x, y = _centroid(coverage)
    scale, dx, dy = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3).T[:, :, None, None]
    best = ("", 0.0, -1.0)
    for shape in SHAPES:
        area, shift_x, shift_y = _moments(shape)
        radius = (1 + 0.05 * scale) * (coverage.sum() / area).sqrt()
        across = (X - x - dx) / radius + shift_x
        down = (Y - y - dy) / radius + shift_y
        masks = (0.5 - shape_distance(shape, across, down) * radius).clamp(0, 1)
        likeness = torch.minimum(masks, coverage).sum((1, 2)) / torch.maximum(masks, coverage).sum((1, 2))
        k = int(likeness.argmax())
        best = max(best, (shape, float(radius[k]), float(likeness[k])), key=lambda candidate: candidate[2])
    return best


@cache
def _moments(shape: str) -> tuple[float, float, float]:
    """Compute the area of a shape of radius 1, and its centroid (x, y) relative to the centre."""
    y, x = torch.meshgrid(*[torch.linspace(-1.25, 1.25, 501)] * 2, indexing="ij")
    inside = shape_distance(shape, x, y) < 0
    return float(inside.sum()) * 0.005**2, float(x[inside].mean()), float(y[inside].mean())


def _centroid(weights: Tensor) -> tuple[float, float]:
    """Compute the weighted mean position (x, y) in pixels."""
    return float((X * weights).sum() / weights.sum()), float((Y * weights).sum() / weights.sum())


def _largest_blob(mask: Tensor) -> Tensor:
    """Keep the largest connected part of a mask, diagonal neighbours included, [64, 64]."""
    labels = torch.arange(1.0, SIZE * SIZE + 1).reshape(1, SIZE, SIZE) * mask
    while not torch.equal(spread := F.max_pool2d(labels, 3, 1, 1) * mask, labels):
        labels = spread
    sizes = labels[0, mask].long().bincount(minlength=1)
    return (labels[0] == sizes.argmax()) & mask
