"""Shapes of drawn scenes, by the signed distance to their outlines."""

import math

import torch
from torch import Tensor

SIZE = 64
"""Height and width of a drawn image in pixels."""

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")


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
