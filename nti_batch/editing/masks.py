"""The pixels of a mask, on its own grid and on the picture that a job makes of an image."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor

from nti_batch.records import Mask


def mask_pixels(mask: Mask, height: int, width: int) -> Tensor:
    """The pixels inside a mask after the centre crop and resize of `images.decode_image`, bool [height, width].

    A pixel is inside if any part of it is, so that what is left over surely is not edited.

    Raises:
        ValueError: If a run does not lie on the mask's grid, or has no length.
    """
    grid = decode_runs(mask)
    scale = min(Fraction(mask.height, height), Fraction(mask.width, width))
    rows = torch.stack([grid[rows].any(dim=0) for rows in _cut(mask.height, height, scale)])
    return torch.stack([rows[:, columns].any(dim=1) for columns in _cut(mask.width, width, scale)], dim=1)


def _cut(length: int, pieces: int, scale: Fraction) -> list[slice]:
    """What of a side's `length` pixels touches each of `pieces`, of `scale` pixels each and centred."""
    edges = [(length - pieces * scale) / 2 + i * scale for i in range(pieces + 1)]
    return [slice(math.floor(first), math.ceil(last)) for first, last in pairwise(edges)]


def decode_runs(mask: Mask) -> Tensor:
    """The pixels inside on the mask's own grid, bool [mask.height, mask.width].

    Raises:
        ValueError: As `mask_pixels`.
    """
    if len(mask.runs) % 2:
        raise ValueError(f"the mask's runs are {len(mask.runs)} numbers, allowed: pairs of a start and a length")
    pixels = torch.zeros(mask.height * mask.width, dtype=torch.bool)
    for start, length in zip(mask.runs[::2], mask.runs[1::2], strict=True):
        if start < 0 or length < 0 or start + length > len(pixels):
            raise ValueError(
                f"the mask has a run of {length} pixels from {start} on, allowed: runs within the {len(pixels)} pixels "
                f"of its grid of height {mask.height} and width {mask.width}; give the size of the picture that it "
                "was drawn on"
            )
        pixels[start : start + length] = True
    return pixels.view(mask.height, mask.width)


def encode_runs(pixels: Tensor) -> Mask:
    """The mask of bool [height, width]; `decode_runs` is its inverse."""
    height, width = pixels.shape
    outside = torch.zeros(1, dtype=torch.int8)
    change = torch.cat([outside, pixels.flatten().to(torch.int8), outside]).diff()
    starts, ends = _places(change == 1), _places(change == -1)
    runs = (number for start, end in zip(starts, ends, strict=True) for number in (start, end - start))
    return Mask(tuple(runs), height, width)


def _places(chosen: Tensor) -> Sequence[int]:
    places: list[int] = chosen.nonzero().flatten().tolist()
    return places
