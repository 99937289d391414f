"""Masks of edits: their check, and their pixels on the mask's own grid and on a decoded image."""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor

from nti_batch.records import Fit, Mask
from nti_batch.settings import MAX_SIDE


def mask_pixels(mask: Mask, height: int, width: int, fit: Fit = "crop") -> Tensor:
    """Fit a mask as `images.decode_original` does with its image.

    A pixel is inside if any part of it is, so that the pixels outside are certainly not edited.

    Args:
        mask: A mask on a grid of its own.
        height: Height of the decoded image, without padding, in pixels.
        width: Width of the decoded image, without padding, in pixels.
        fit: How the image was fitted.

    Returns:
        Whether each pixel is inside, bool [height, width].

    Raises:
        ValueError: As `check_mask`.
    """
    grid = decode_runs(mask)
    scales = Fraction(mask.height, height), Fraction(mask.width, width)
    if fit == "crop":
        scales = (min(scales),) * 2
    rows = torch.stack([grid[rows].any(dim=0) for rows in _cut(mask.height, height, scales[0])])
    return torch.stack([rows[:, columns].any(dim=1) for columns in _cut(mask.width, width, scales[1])], dim=1)


def _cut(length: int, pieces: int, scale: Fraction) -> list[slice]:
    """Return which of a side's `length` pixels touch each of `pieces` centred pieces of `scale` pixels."""
    edges = [(length - pieces * scale) / 2 + i * scale for i in range(pieces + 1)]
    return [slice(math.floor(first), math.ceil(last)) for first, last in pairwise(edges)]


def check_grid(height: int, width: int) -> None:
    """Raise a ValueError unless a mask may have this height and width."""
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"the mask's grid has height {height} and width {width}, allowed: 1 to {MAX_SIDE}")


def check_pairs(runs: Sequence[int]) -> None:
    """Raise a ValueError unless the numbers are pairs of a start and a length."""
    if len(runs) % 2:
        raise ValueError(f"the mask's runs are {len(runs)} numbers, allowed: pairs of a start and a length")


def check_mask(mask: Mask) -> None:
    """Check that a mask has pairs of numbers, and that each run lies on its grid.

    Raises:
        ValueError: If not.
    """
    check_grid(mask.height, mask.width)
    check_pairs(mask.runs)
    pixels = mask.height * mask.width
    for start, length in _pairs(mask):
        if start < 0 or length < 0 or start + length > pixels:
            raise ValueError(
                f"the mask has a run of {length} pixels from {start} on, allowed: runs within the {pixels} pixels "
                f"of its grid of height {mask.height} and width {mask.width}; give the size of the image that it "
                "was drawn on"
            )


def _pairs(mask: Mask) -> Iterator[tuple[int, int]]:
    """Start and length of each run."""
    return zip(mask.runs[::2], mask.runs[1::2], strict=True)


def decode_runs(mask: Mask) -> Tensor:
    """Return whether each pixel of the mask's own grid is inside, bool [mask.height, mask.width].

    Raises:
        ValueError: As `check_mask`.
    """
    check_mask(mask)
    pixels = torch.zeros(mask.height * mask.width, dtype=torch.bool)
    for start, length in _pairs(mask):
        pixels[start : start + length] = True
    return pixels.view(mask.height, mask.width)


def encode_runs(pixels: Tensor) -> Mask:
    """Return the mask whose pixels inside are True in bool [height, width]; the inverse of `decode_runs`."""
    height, width = pixels.shape
    outside = torch.zeros(1, dtype=torch.int8)
    change = torch.cat([outside, pixels.flatten().to(torch.int8), outside]).diff()
    starts, ends = _indices(change == 1), _indices(change == -1)
    runs = (number for start, end in zip(starts, ends, strict=True) for number in (start, end - start))
    return Mask(tuple(runs), height, width)


def _indices(chosen: Tensor) -> list[int]:
    indices: list[int] = chosen.nonzero().flatten().tolist()
    return indices
