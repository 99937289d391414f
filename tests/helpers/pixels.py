"""Decoded pixels, to compare."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nti_batch.data.images import decode_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def pixels_of(image: Image.Image) -> Tensor:
    """Convert an RGB image to [3, height, width]."""
    return torch.tensor(np.array(image)).permute(2, 0, 1)


def assert_close(a: Tensor, b: Tensor, within: int) -> None:
    """Check that every pixel agrees within so many grey levels."""
    assert a.shape == b.shape
    assert (a.int() - b.int()).abs().max() <= within


def colour(data: bytes) -> tuple[int, ...]:
    """Decode a file, and return its mean colour."""
    return tuple(decode_image(data, 8, 8).float().mean((1, 2)).round().int().tolist())


def halves(data: bytes) -> tuple[tuple[int, ...], ...]:
    """Decode a file, and return the colours at its left and right edge."""
    pixels = decode_image(data, 8, 8)
    return tuple(pixels[:, 4, 0].tolist()), tuple(pixels[:, 4, 7].tolist())
